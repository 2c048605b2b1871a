"""Tasks as data: which bricks lie on the table, where, what is asked for and in which words.

    task = TASKS['place']
    bricks = task.bricks(scale)                    # scale 2 = DUPLO, 1 = LEGO
    poses, askable = task.sample(rng, scale)       # {brick: (x, y, yaw)}, [(Goal, instruction)]
    poses, askable = vary(task, rng, scale, more, pose_range=.5, target_range=.5)

A task of one's own is two functions and a row in TASKS. Positions in m in the world frame (see
world.py), z = 0 on the table top; angles in rad.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

import numpy as np

from episode import ARMS
from sim.bricks import Brick

HANDS = ARMS
SIDES = (1, -1)  # sign of y on each hand's side of the table
RGBA = dict(
    red='0.80 0.10 0.10 1',
    blue='0.10 0.25 0.85 1',
    yellow='0.95 0.80 0.10 1',
    white='0.90 0.90 0.90 1',
    orange='0.95 0.45 0.05 1',
    green='0.30 0.55 0.30 1',
    black='0.12 0.12 0.13 1',
)
# Where a hand lays a brick that is to lie on the table: (x, y, yaw), long side away from the robot.
PUT_DOWN = {'left': (0.36, 0.17, np.pi / 2), 'right': (0.36, -0.17, np.pi / 2)}
MIN_JOIN_HEIGHT_M = 0.05  # "in the air": the lower brick's bottom is at least this high
TABLE_M = ((0.18, -0.42), (0.46, 0.42))  # corners of where distractors lie
HAND_ROOM_M = 0.03  # around what a hand may come to
# Where hands meet and where a bridge comes to stand.
MIDDLE_M = ((0.28, 0), (0.34, 0), (0.40, 0), (0.46, 0))
PLACE_ROOM_M = 0.04  # radius of what is kept clear there, and where hands lay bricks down


@dataclass(frozen=True)
class Goal:
    """What one episode asks for: `upper` sits on `lower`, pressed by `hand`."""

    upper: str
    lower: str
    # Upper's centre is so many studs from lower's centre, its long side along so many quarter turns
    # (modulo the brick's symmetry).
    cell: tuple
    turns: int
    hand: str
    # The hand that has to keep `lower` in the air while they are joined, and to lay both down after
    # that; None where lower lies on the table or is fixed to it.
    holder: str | None = None
    # The hand that has to fetch `upper` and lay it where `hand` reaches; None where hand reaches it
    # by itself.
    giver: str | None = None
    # The other way round: upper sits there at the start and has to come off, and both have to lie
    # on the table. The holder lifts lower first, or holds it down where it is a plate.
    apart: bool = False
    steady: bool = False  # the holder keeps lower from tipping where it stands
    where: str | None = None  # words for the cell, None where there are none
    # What comes next; which goal of such a chain is at work follows from the state
    # (judge.goal_at_work).
    then: Union['Goal', None] = None

    @property
    def chain(self) -> tuple['Goal', ...]:
        """This goal and those that come after it."""
        if self.then is None:
            return (self,)
        return (self, *self.then.chain)


Place = tuple[float, float, float]  # x, y, yaw on the table
Poses = dict[str, Place | Goal]  # or the goal that holds from the start: the brick sits on another
Askable = list[tuple[Goal, str]]  # what could be asked for, and the instruction; the first one is


@dataclass(frozen=True)
class Task:
    """A task as data."""

    bricks: Callable[[float], tuple[Brick, ...]]  # scale -> what lies on the table
    sample: Callable[..., tuple[Poses, Askable]]  # (rng, scale) -> where, and what is asked for
    time_limit_s: float
    two_hands: str  # why one hand does not suffice, or why it does


class Narrow:
    """A random generator whose draws of places are nearer to the middle of their range.

    Samplers draw places by `uniform` and `normal`, which are narrowed, and make discrete choices
    (which brick, which side, which words) by the other methods, which are not. Draws of any other
    kind are refused: nobody has said whether they are places.
    """

    def __init__(self, rng: np.random.Generator, share: float):
        """Narrow the draws of rng to this share of their range, 0 to 1."""
        self.rng = rng
        self.share = share
        self.integers = rng.integers
        self.choice = rng.choice
        self.shuffle = rng.shuffle
        self.permutation = rng.permutation

    def uniform(
        self, low: float = 0.0, high: float = 1.0, size: int | tuple[int, ...] | None = None
    ) -> Any:
        """Like Generator.uniform, from the middle of low..high."""
        middle = np.add(low, high) / 2
        return middle + self.share * (self.rng.uniform(low, high, size) - middle)

    def normal(
        self, loc: float = 0.0, scale: float = 1.0, size: int | tuple[int, ...] | None = None
    ) -> Any:
        """Like Generator.normal, nearer to loc."""
        return loc + self.share * (self.rng.normal(loc, scale, size) - np.asarray(loc))

    def __getattr__(self, name):
        raise AttributeError(
            f'Narrow has no draw {name!r}: where pose_range is below 1, samplers draw places by '
            'uniform or normal, and choose by integers, choice, shuffle or permutation'
        )


def distractors(bricks: Sequence[Brick], n: int) -> tuple[Brick, ...]:
    """Bricks that a task does not ask for.

    Args:
        bricks: Those of the task; the others have other colours and names.
        n: How many.
    """
    taken = {brick.rgba for brick in bricks}
    free = [colour for colour in RGBA if RGBA[colour] not in taken]
    if not 0 <= n <= len(free):
        raise ValueError(f'distractors={n}: expected 0 to {len(free)}, as many colours are left')
    sizes = ((2, 2), (2, 4), (2, 3), (1, 4))
    named = enumerate(free[:n])
    return tuple(Brick(colour, sizes[i % len(sizes)], RGBA[colour]) for i, colour in named)


def vary(
    task: Task,
    rng: np.random.Generator,
    scale: float,
    more: Sequence[Brick] = (),
    pose_range: float = 1.0,
    target_range: float = 1.0,
) -> tuple[Poses, Askable]:
    """task.sample, made easier or harder.

    Args:
        task: The task.
        rng: Of the episode.
        scale: 1 for LEGO, 2 for DUPLO.
        more: Bricks to scatter over the table.
        pose_range: Spawn poses are drawn from this middle share of their ranges, 0 to 1.
        target_range: Only this share of the places (Goal.where, by name) is asked for, 0 to 1.
    """
    for name, share in (('pose_range', pose_range), ('target_range', target_range)):
        if not 0 <= share <= 1:
            raise ValueError(f'{name}={share}: expected 0 to 1')
    poses, askable = task.sample(rng if pose_range == 1 else Narrow(rng, pose_range), scale)
    places = sorted({goal.where for goal, _ in askable if goal.where})
    places = places[: max(1, round(target_range * len(places)))]
    askable = [(goal, text) for goal, text in askable if goal.where in places or not goal.where]
    used = _used_room(task.bricks(scale), poses, scale)
    for brick in more:
        at = _free_place(rng, _half_diagonal_m(brick, scale), used)
        if at is None:
            raise ValueError(f'{len(more)} distractors: no room for {brick.name}; ask for fewer')
        used.append((at, _half_diagonal_m(brick, scale)))
        x, y = at
        poses[brick.name] = (x, y, rng.uniform(0, np.pi))
    return poses, askable


def _half_diagonal_m(brick: Brick, scale: float) -> float:
    return scale * 0.004 * np.hypot(*brick.studs)


def _used_room(bricks: Sequence[Brick], poses: Poses, scale: float) -> list:
    """Circles [(middle (2,) m, radius m)] that no distractor may lie in."""
    used = []
    for brick in bricks:
        pose = poses.get(brick.name, brick.at_m)
        if not isinstance(pose, Goal):
            used.append((np.array(pose[:2]), _half_diagonal_m(brick, scale)))
    spots = (*MIDDLE_M, *(place[:2] for place in PUT_DOWN.values()))
    return used + [(np.array(spot), PLACE_ROOM_M) for spot in spots]


def _free_place(rng: np.random.Generator, radius_m: float, used: list) -> np.ndarray | None:
    """A place on the table (2,) m that is far enough from all circles; None if none is found."""
    for _ in range(1000):
        at = rng.uniform(*TABLE_M)
        if all(np.linalg.norm(at - there) > radius_m + r + HAND_ROOM_M for there, r in used):
            return at
    return None


def _lies(rng, x: tuple, y: tuple, side: int, degrees: float) -> Place:
    """A place where a brick lies, its long side about away from the robot.

    Args:
        rng: Of the episode.
        x: Range, m.
        y: Range, m, of the distance from the middle.
        side: 1 on the left, -1 on the right.
        degrees: By up to so much it is turned.
    """
    return (
        rng.uniform(*x),
        side * rng.uniform(*y),
        np.pi / 2 + np.radians(rng.uniform(-degrees, degrees)),
    )


# -- place: a 2x4 on an 8x8 plate ------------------------------------------------------------------
# Where the corners are, {corner: signs of (x, y)}; for each quarter turn how far from the middle
# the brick's centre gets to lie, in studs, and the words for it.
CORNERS = {'near left': (-1, 1), 'near right': (-1, -1), 'far left': (1, 1), 'far right': (1, -1)}
ROTATIONS = {
    1: ((2, 3), ('lengthwise', 'pointing away from you')),
    0: ((3, 2), ('crosswise', 'sideways')),
}
PLACE_TEMPLATES = (
    'put the {colour} brick on the {cell} corner of the plate , {how}',
    'place the {colour} brick {how} on the {cell} corner',
    'press the {colour} brick onto the {cell} corner of the plate , {how}',
    'the {colour} brick goes on the {cell} corner , {how}',
    'take the {colour} brick and press it onto the {cell} corner , {how}',
    'on the {cell} corner put the {colour} brick , {how}',
    'the {cell} corner of the plate gets the {colour} 2x4 , {how}',
    'put the {colour} one in the {row} row , {column} column , {how}',
    'pick up the {colour} brick : {row} row , {column} column , {how}',
    '{column} column , {row} row , {how} : press the {colour} brick on',
    'with the {hand} hand press the {colour} brick {how} onto the {cell} corner',
    'take the {hand} brick and press it {how} onto the {cell} corner of the plate',
    'build : {colour} on {cell} , {how}',
)


def _place_bricks(scale: float) -> tuple[Brick, ...]:
    plate = Brick('plate', (8, 8), RGBA['green'], plate=True, fixed=True)
    return (plate, *(Brick(colour, (2, 4), RGBA[colour]) for colour in ('red', 'blue')))


def _place_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """A brick on each side of the plate, either for every corner and either way round."""
    colours = ['red', 'blue']
    rng.shuffle(colours)
    hands = HANDS if rng.integers(2) else HANDS[::-1]  # of each colour: the one on the brick's side
    places = [(corner, turns) for corner in CORNERS for turns in ROTATIONS]
    rng.shuffle(places)
    poses: Poses = {}
    for colour, hand in zip(colours, hands):
        side = SIDES[HANDS.index(hand)]
        poses[colour] = _lies(rng, (0.28, 0.38), (0.14, 0.24), side, degrees=30)
    askable = []
    for colour, hand in zip(colours, hands):
        for corner, turns in places:
            far, words = ROTATIONS[turns]
            row, column = corner.split()
            text = rng.choice(PLACE_TEMPLATES).format(
                colour=colour, cell=corner, row=row, column=column, hand=hand, how=rng.choice(words)
            )
            cell = tuple(sign * studs for sign, studs in zip(CORNERS[corner], far))
            askable.append((Goal(colour, 'plate', cell, turns, hand, where=corner), text))
    return poses, askable


# -- join: press a small brick onto the end of a long one, in the air ------------------------------
JOIN_TEMPLATES = (
    'join the {upper} brick onto the end of the {lower} brick and lay both down',
    'hold the {lower} brick and press the {upper} brick onto it , then put them on the table',
    'put the {upper} brick on the end of the {lower} brick in the air',
    'press the {upper} brick onto the {lower} brick and lay them on the table',
    'take both bricks , join {upper} onto {lower} and put them down',
    'the {upper} brick goes on the end of the {lower} brick',
    'with both hands join the {upper} one and the {lower} one',
    'the {holder} hand holds {lower} , the {hand} hand presses {upper} on',
    'lift the {lower} brick with the {holder} hand and press the {upper} brick onto its end',
    'press the 2x2 onto the end of the long brick in the air',
    'hold the long brick up and put the small brick on it , then lay both down',
    'the {hand} brick goes on the end of the {holder} brick',
    'build : {upper} on {lower}',
)


def _join_bricks(scale: float) -> tuple[Brick, ...]:
    # Two hands side by side: the right palm and the left forearm need ~70 mm between the two grips
    # (96 and 64 mm here).
    long = 8 if scale > 1.5 else 10
    return Brick('red', (2, long), RGBA['red']), Brick('blue', (2, 2), RGBA['blue'])


def _join_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """The long brick on the left, the small one on the right."""
    poses: Poses = {}
    for colour, side in zip(('red', 'blue'), SIDES):
        poses[colour] = _lies(rng, (0.29, 0.38), (0.15, 0.24), side, degrees=35)
    text = JOIN_TEMPLATES[rng.integers(len(JOIN_TEMPLATES))].format(
        upper='blue', lower='red', hand='right', holder='left'
    )
    cell = (0, -3 if scale > 1.5 else -4)
    return poses, [(Goal('blue', 'red', cell, 0, 'right', holder='left'), text)]


# -- stack: on a brick that stands by itself -------------------------------------------------------
# {where: (cell, quarter turns)} for each size of the upper brick, on a 2x4 whose long side points
# away from the robot; the near end is the one of positive y.
STACK_CELLS = {
    (2, 4): {'lined up': ((0, 0), 0), 'across': ((0, 0), 1)},
    (2, 2): {'near end': ((0, 1), 0), 'far end': ((0, -1), 0), 'middle': ((0, 0), 0)},
}
STACK_WORDS = {
    'lined up': ('edges flush', 'lined up with it'),
    'across': ('crosswise', 'turned a quarter'),
    'near end': ('at the near end', 'at the end close to you'),
    'far end': ('at the far end', 'at the end away from you'),
    'middle': ('in the middle', 'at its centre'),
}
STACK_TEMPLATES = (
    'stack the {upper} on the {lower} , {how}',
    'put the {upper} on top of the {lower} , {how}',
    'press the {upper} onto the {lower} , {how}',
    'take the {upper} and stack it on the {lower} , {how}',
    'the {upper} goes on the {lower} , {how}',
    'pick up the {upper} and press it onto the {lower} , {how}',
    'on the {lower} put the {upper} , {how}',
    'build a tower : {upper} on {lower} , {how}',
    'set the {upper} on the {lower} , {how}',
    'lay the {upper} onto the {lower} , {how}',
    'the {lower} gets the {upper} on top , {how}',
    'place the {upper} on the {lower} , {how}',
)


STACK_UPPER = {'white': ('white brick', 'small brick', 'square brick')}  # else its colour


def _stack_bricks(scale: float) -> tuple[Brick, ...]:
    large = (Brick(colour, (2, 4), RGBA[colour]) for colour in ('red', 'blue'))
    return (*large, Brick('white', (2, 2), RGBA['white']))


def _stack_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """A 2x4 in the middle, the other 2x4 and the 2x2 on one side each.

    Either may be asked for; the one that is not lies there to distract.
    """
    names = ['red', 'blue']
    rng.shuffle(names)
    lower, other = names
    sides = [other, 'white']
    rng.shuffle(sides)
    poses: Poses = {lower: _lies(rng, (0.29, 0.38), (-0.03, 0.03), 1, degrees=30)}
    for name, side in zip(sides, SIDES):
        poses[name] = _lies(rng, (0.28, 0.38), (0.16, 0.25), side, degrees=35)
    studs = {brick.name: brick.studs for brick in _stack_bricks(scale)}
    askable = []
    for name, hand in zip(sides, HANDS):
        for where, (cell, turns) in STACK_CELLS[studs[name]].items():
            words = STACK_UPPER.get(name, (f'{name} brick',))
            upper = rng.choice([*words, f'{hand} brick'])
            base = rng.choice([f'{lower} brick', 'middle brick', f'{lower} one'])
            text = rng.choice(STACK_TEMPLATES).format(
                upper=upper, lower=base, how=rng.choice(STACK_WORDS[where])
            )
            askable.append((Goal(name, lower, cell, turns, hand, where=where), str(text)))
    rng.shuffle(askable)
    return poses, askable


# -- handover: a 2x4 onto the 4x4 plate of the other side ------------------------------------------
# {half of the plate: (cell, quarter turns)}
HALVES = {
    'left half': ((0, 1), 1),
    'right half': ((0, -1), 1),
    'far half': ((1, 0), 0),
    'near half': ((-1, 0), 0),
}
HANDOVER_TEMPLATES = (
    'hand the {upper} to the {hand} hand and press it onto the {half} of the {lower}',
    'give the {upper} to the other hand for the {half} of the {lower}',
    'pass the {upper} over and put it on the {half} of the {lower}',
    'put the {upper} on the {half} of the {lower}',
    'bring the {upper} across to the {half} of the {lower}',
    'move the {upper} from the {giver} to the {half} of the {lower}',
    'the {upper} goes on the {half} of the {lower}',
    'the {half} of the {lower} gets the {upper}',
    'take the {upper} to the {lower} and press it onto the {half}',
    'on the {lower} put the {upper} , on the {half}',
    'with both hands bring the {upper} to the {half} of the {lower}',
    '{giver} hand gives , {hand} hand presses : {upper} on the {half} of the {lower}',
    'lay the {upper} in the middle , the {hand} hand puts it on the {half} of the {lower}',
)


def _handover_bricks(scale: float) -> tuple[Brick, ...]:
    return (*_side_plates(), *(Brick(colour, (2, 4), RGBA[colour]) for colour in ('red', 'blue')))


def _side_plates() -> tuple[Brick, ...]:
    """A plate on each side, out of reach of the other arm.

    That arm points down: 0.15 m beyond the middle it ends at x = 0.34 m.
    """
    plates = []
    for hand, side in zip(HANDS, SIDES):
        at_m = (0.42, side * 0.19)
        plate = Brick(f'{hand} plate', (4, 4), RGBA['green'], plate=True, fixed=True, at_m=at_m)
        plates.append(plate)
    return tuple(plates)


def _handover_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """A brick on each side, each may be asked for on the plate of the other side."""
    names = ['red', 'blue']
    rng.shuffle(names)
    poses: Poses = {}
    askable = []
    for name, giver, hand, side in zip(names, HANDS, HANDS[::-1], SIDES):
        poses[name] = _lies(rng, (0.25, 0.31), (0.24, 0.31), side, degrees=30)
        for half, (cell, turns) in HALVES.items():
            text = rng.choice(HANDOVER_TEMPLATES).format(
                upper=rng.choice([f'{name} brick', f'{giver} brick', f'{name} one']),
                hand=hand,
                giver=giver,
                half=half,
                lower=f'{hand} plate',
            )
            goal = Goal(name, f'{hand} plate', cell, turns, hand, giver=giver, where=half)
            askable.append((goal, str(text)))
    rng.shuffle(askable)
    return poses, askable


# -- separate: pull a small brick off the end of a long one, in the air ----------------------------
SEPARATE_TEMPLATES = (
    'pull the {upper} off the {lower}',
    'take the {upper} and the {lower} apart',
    'separate the {upper} from the {lower}',
    'hold the {lower} and pull the {upper} off',
    'remove the {upper} from the {lower}',
    'take the {upper} off the {lower} and lay both down',
    'undo the {upper} and the {lower}',
    'the {upper} comes off the {lower}',
    'pull the stack on the {side} apart',
    'take the stack apart and lay both bricks on the table',
    'lift the stack , pull the {upper} off and lay both down',
    'the {holder} hand holds the {lower} , the {hand} hand pulls the {upper} off',
    'part the {upper} and the {lower} in the air',
)


def _separate_bricks(scale: float) -> tuple[Brick, ...]:
    # As long as the one of `join`, and for the same reason.
    long = 8 if scale > 1.5 else 10
    small = (Brick(colour, (2, 2), RGBA[colour]) for colour in ('blue', 'white'))
    return (Brick('red', (2, long), RGBA['red']), *small)


def _separate_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """A small brick on the far end of the long one, on one side of the table.

    The other small one lies on the other side to distract.
    """
    names = ['blue', 'white']
    rng.shuffle(names)
    upper, other = names
    holder, hand = HANDS if rng.integers(2) else HANDS[::-1]
    side = SIDES[HANDS.index(holder)]
    poses: Poses = {
        'red': _lies(rng, (0.30, 0.36), (0.16, 0.24), side, degrees=30),
        other: (rng.uniform(0.24, 0.28), -side * rng.uniform(0.16, 0.28), rng.uniform(0, np.pi)),
    }
    text = rng.choice(SEPARATE_TEMPLATES).format(
        upper=rng.choice([f'{upper} brick', f'{upper} one', 'small brick on top']),
        lower=rng.choice(['red brick', 'red one', 'long brick']),
        hand=hand,
        holder=holder,
        side=holder,
    )
    cell = (0, -3 if scale > 1.5 else -4)
    goal = Goal(upper, 'red', cell, 0, hand, holder=holder, apart=True)
    poses[upper] = goal
    return poses, [(goal, str(text))]


# -- unplug: pull a brick off a loose plate --------------------------------------------------------
UNPLUG_TEMPLATES = (
    'unplug the {upper} from the plate',
    'take the {upper} off the plate',
    'pull the {upper} off the plate and lay it down',
    'hold the plate and pull the {upper} off',
    'remove the {upper} from the plate',
    'the {upper} comes off the plate',
    'hold the plate down with the {holder} hand and take the {upper} off',
    'with the {hand} hand pull the {upper} off the plate',
    'lay the {upper} beside the plate',
    'clear the plate : take the {upper} off',
    'put the {upper} from the plate onto the table',
    'undo the {upper}',
    'the {holder} hand holds the plate , the {hand} hand unplugs the {upper}',
)


def _unplug_bricks(scale: float) -> tuple[Brick, ...]:
    # A loose plate 128 mm wide at either scale: palms are 90 mm wide, and two hands work on it side
    # by side.
    wide = 8 if scale > 1.5 else 16
    bricks = (Brick(colour, (2, 4), RGBA[colour]) for colour in ('red', 'blue'))
    return (Brick('plate', (8, wide), RGBA['green'], plate=True), *bricks)


def _unplug_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """A brick on one side of the plate, which the hand of that side pulls; another lies beside."""
    names = ['red', 'blue']
    rng.shuffle(names)
    upper, other = names
    hand, holder = HANDS if rng.integers(2) else HANDS[::-1]
    side = SIDES[HANDS.index(hand)]
    poses: Poses = {
        'plate': (
            rng.uniform(0.31, 0.37),
            rng.uniform(-0.02, 0.02),
            np.radians(rng.uniform(-10, 10)),
        ),
        other: (
            rng.uniform(0.20, 0.24),
            rng.choice([-1, 1]) * rng.uniform(0.20, 0.28),
            rng.uniform(0, np.pi),
        ),
    }
    text = rng.choice(UNPLUG_TEMPLATES).format(
        upper=rng.choice([f'{upper} brick', f'{upper} one', 'plugged brick']),
        hand=hand,
        holder=holder,
    )
    cell = (int(rng.integers(-2, 3)), side * (3 if scale > 1.5 else 6))
    goal = Goal(upper, 'plate', cell, 1, hand, holder=holder, apart=True)
    poses[upper] = goal
    return poses, [(goal, str(text))]


# -- bridge: a long brick over two towers, one of which would tip over -----------------------------
BRIDGE_TEMPLATES = (
    'build a bridge : {long} over the {first} tower and the {second} tower',
    'bridge the two towers with the {long}',
    'put the {long} over both towers',
    'lay the {long} across the {first} tower and the {second} tower',
    'join the {first} tower and the {second} tower with the {long}',
    'press the {long} onto both towers',
    'the {long} goes over the {first} tower and the {second} tower',
    'connect the towers with the {long}',
    'make a bridge from the {first} tower to the {second} tower',
    'hold the {second} tower and press the {long} onto both towers',
    'the {holder} hand holds the {second} tower , the {hand} hand presses the {long} on',
    'span the {first} tower and the {second} tower with the {long}',
    'take the {long} and bridge both towers',
)


def _bridge_bricks(scale: float) -> tuple[Brick, ...]:
    # The white tower is an upside-down L: the studs that the bridge goes on overhang its foot by
    # two. Nearer to the foot (less than 0.6 of the height, the friction between bricks) it jams
    # under the press instead of tipping over. The grips are then 144 (DUPLO) and 88 mm apart; at 80
    # and 64 mm the palms met.
    return (
        Brick('red', (2, 12 if scale < 1.5 else 8), RGBA['red']),
        Brick('blue', (2, 2), RGBA['blue']),
        Brick('blue foot', (2, 2), RGBA['blue']),
        Brick('white', (2, 8), RGBA['white']),
        Brick('white foot', (2, 4), RGBA['white']),
    )


def _bridge_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """The white tower in the middle, near, its arm pointing away from the robot.

    On one side are the blue tower and the long brick. That side's hand presses the brick onto blue,
    then both onto the arm of white.
    """
    hand, holder = HANDS if rng.integers(2) else HANDS[::-1]
    side = SIDES[HANDS.index(hand)]
    small = scale < 1.5
    second = Goal(
        'red',
        'white',
        (0, -8 if small else -6),
        0,
        hand,
        holder=holder,
        steady=True,
        where='white tower',
    )
    first = Goal('red', 'blue', (0, 5 if small else 3), 0, hand, where='blue tower', then=second)
    poses: Poses = {
        'white foot': _lies(rng, (0.24, 0.28), (-0.02, 0.02), 1, degrees=12),
        'white': Goal('white', 'white foot', (0, -2), 0, holder),
        'blue foot': _lies(rng, (0.36, 0.40), (0.15, 0.18), side, degrees=15),
        'blue': Goal('blue', 'blue foot', (0, 0), 0, holder),
        'red': _lies(rng, (0.29, 0.33), (0.26, 0.29), side, degrees=12),
    }
    text = rng.choice(BRIDGE_TEMPLATES).format(
        long=rng.choice(['red brick', 'long brick', 'red one']),
        first='blue',
        second='white',
        hand=hand,
        holder=holder,
    )
    return poses, [(first, str(text))]


# -- build: towers on the two plates of `handover`, out of 2x4 bricks ------------------------------
BUILD_COLOURS = ('red', 'blue', 'yellow', 'white', 'orange', 'black')
BUILD_TEMPLATES = (
    'build : {plan}',
    'build this : {plan}',
    'the plan : {plan}',
    'follow the plan : {plan}',
    'make two towers : {plan}',
    'assemble {plan}',
    'put together {plan}',
    'step by step : {plan}',
    'with both hands build {plan}',
    'stack {plan}',
    'one after the other : {plan}',
    'build what the plan says : {plan}',
    'two towers : {plan}',
)
BUILD_STEPS = (
    '{upper} on {lower}',
    '{upper} onto {lower}',
    '{upper} goes on {lower}',
    'put {upper} on {lower}',
)


SIDE_GAP_M = 0.085  # between bricks that lie side by side: what a hand needs


def _build_bricks(scale: float) -> tuple[Brick, ...]:
    return (*_side_plates(), *(Brick(colour, (2, 4), RGBA[colour]) for colour in BUILD_COLOURS))


def _build_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """Three bricks on each side.

    A plan has three to six of them in two towers, some of them on the side that their brick is not
    on; what it leaves out lies there to distract.
    """
    names = rng.permutation(BUILD_COLOURS).tolist()
    poses: Poses = {}
    hand_of = {name: HANDS[i % 2] for i, name in enumerate(names)}  # that reaches it
    for hand, side in zip(HANDS, SIDES):
        mine = [name for name in names if hand_of[name] == hand]
        for name, (x, y) in zip(mine, _three_places(rng, side)):
            poses[name] = (x, y, np.pi / 2 + np.radians(rng.uniform(-30, 30)))
    return poses, [_build_plan(rng, hand_of) for _ in range(4)]


def _three_places(rng, side: int) -> np.ndarray:
    """Places (3, 2) m on one side of the table, all far enough from each other.

    All three are drawn anew each time: beside two there may be no room for a third.
    """
    for _ in range(10_000):
        x = rng.uniform(0.22, 0.31, 3)
        y = side * rng.uniform(0.13, 0.33, 3)
        at = np.column_stack([x, y])
        gaps = np.linalg.norm(at - np.roll(at, 1, 0), axis=1)
        if gaps.min() > SIDE_GAP_M:
            return at
    raise ValueError('no room for three bricks on a side: expected a larger pose_range')


def _build_plan(rng, hand_of: dict[str, str]) -> tuple[Goal, str]:
    """Draw a chain of goals and its instruction.

    Args:
        rng: Of the episode.
        hand_of: {brick: hand that reaches it}.
    """
    n = int(rng.integers(3, 7))
    names, hands = _build_order(rng, hand_of, n)
    top: dict[str, str] = {}  # of the tower on each hand's plate
    steps = []
    words = []
    phrase = rng.choice(BUILD_STEPS)
    link = rng.choice([' , ', ' , then ', ' ; '])
    for name, hand in zip(names, hands):
        if hand in top:
            turns = int(rng.integers(2))
            lower = top[hand]
            cell = (0, 0)
            where = lower
            how = f'{lower} , crosswise' if turns else lower
        else:
            half = list(HALVES)[rng.integers(len(HALVES))]
            lower = f'{hand} plate'
            cell, turns = HALVES[half]
            where = f'{half} of {lower}'
            how = f'the {half} of the {lower}'
        top[hand] = name
        giver = hand_of[name] if hand_of[name] != hand else None
        steps.append(Goal(name, lower, cell, turns, hand, giver=giver, where=where))
        words.append(phrase.format(upper=name, lower=how))
    plan = steps[-1]
    for goal in reversed(steps[:-1]):
        plan = replace(goal, then=plan)
    return plan, str(rng.choice(BUILD_TEMPLATES).format(plan=str(link).join(words)))


def _build_order(rng, hand_of: dict[str, str], n: int) -> tuple[list[str], list[str]]:
    """Which n bricks are built in, in this order, and the hand whose plate each goes on.

    At least one of them lies on the other side.
    """
    while True:
        names = rng.permutation(BUILD_COLOURS)[:n].tolist()
        hands = rng.permutation([HANDS[i % 2] for i in range(n)]).tolist()
        if any(hand_of[name] != hand for name, hand in zip(names, hands)):
            return names, hands


# -- the table of tasks ----------------------------------------------------------------------------
TASKS = {
    'place': Task(
        _place_bricks,
        _place_sample,
        time_limit_s=15.0,
        two_hands='one hand does: the baseplate is screwed to the table. Which hand follows from '
        'where the brick lies.',
    ),
    'stack': Task(
        _stack_bricks,
        _stack_sample,
        time_limit_s=15.0,
        two_hands='one hand does: the table carries the press, and the lower brick is heavy enough '
        'not to slide. Which hand follows from where the upper brick lies.',
    ),
    'handover': Task(
        _handover_bricks,
        _handover_sample,
        time_limit_s=25.0,
        two_hands='the arm that reaches the brick does not reach the plate it goes on, and the '
        'other way round.',
    ),
    'separate': Task(
        _separate_bricks,
        _separate_sample,
        time_limit_s=25.0,
        two_hands='the bricks must come apart while the lower one is in the air (5 cm or more): '
        'one hand has to hold it against the pull of the other; pulled up by the upper one alone, '
        'the stack comes along.',
    ),
    'unplug': Task(
        _unplug_bricks,
        _unplug_sample,
        time_limit_s=20.0,
        two_hands='the plate is loose and light: pulled by the brick it comes along, if no other '
        'hand holds it down.',
    ),
    'bridge': Task(
        _bridge_bricks,
        _bridge_sample,
        time_limit_s=30.0,
        two_hands='the studs of the white tower overhang its foot: pressed there it tips over, if '
        'no other hand steadies it. (The blue tower stands upright under the press: one hand does '
        'for that.)',
    ),
    'build': Task(
        _build_bricks,
        _build_sample,
        time_limit_s=110.0,
        two_hands='neither arm reaches both plates, and at least one brick lies where only the arm '
        'of the other plate reaches.',
    ),
    'join': Task(
        _join_bricks,
        _join_sample,
        time_limit_s=20.0,
        two_hands='the bricks must snap together while the lower one is in the air (5 cm or more), '
        'before the pair is laid down: one hand has to hold it against the press of the other, and '
        'a single gripper cannot be on both bricks at once.',
    ),
}
