"""Tasks as data: which bricks lie on the table, where, and what is asked for.

    task = TASKS['place']
    bricks = task.bricks(scale)                    # scale 2 = DUPLO, 1 = LEGO
    poses, askable = task.sample(rng, scale)       # {brick: (x, y, yaw)}, [(Goal, words)]
    poses, askable = vary(task, rng, scale, more, pose_range=.5, target_range=.5)

The words for a goal are a goal frame, see instructions.py: what is asked for without the words, of
which the grammar makes thousands of wordings. A sampler calls bricks by their names there; `vary`
puts in by which properties each can be told from the others. A task of one's own is two functions
and a row in TASKS; in place of a frame it may give its own text, which then is all there is to say.

A loose brick is known by its colour, in every task the same (episode.COLOURS), so no two of a scene
share one. Positions in m in the world frame (see world.py), z = 0 on the table top; angles in rad.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

import numpy as np

from episode import ARMS, COLOURS
from instructions import SIZES, Frame
from sim.bricks import BRICK_HEIGHT_M, STUD_HEIGHT_M, Brick

HANDS = ARMS
FINGERTIP_M = 0.006  # the tool is this far above the fingertips


def grasp_height(brick_scale: float) -> float:
    """Height of the tool above the bottom of a brick that it grasps, m.

    The fingertips are FINGERTIP_M below the tool and must clear the studs beside the brick.
    """
    return max(0.8 * brick_scale * BRICK_HEIGHT_M, 0.0075 + brick_scale * STUD_HEIGHT_M)


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
COLOUR_OF = {rgba: colour for colour, rgba in RGBA.items()}
# Where a hand lays a brick that is to lie on the table: (x, y, yaw), long side away from the robot.
PUT_DOWN = {'left': (0.36, 0.17, np.pi / 2), 'right': (0.36, -0.17, np.pi / 2)}
MIN_JOIN_HEIGHT_M = 0.05  # "in the air": the lower brick's bottom is at least this high
TABLE_M = ((0.18, -0.42), (0.46, 0.42))  # corners of where distractors lie
HAND_ROOM_M = 0.03  # around what a hand may come to
# Where hands meet and where a bridge comes to stand.
MIDDLE_M = ((0.28, 0), (0.34, 0), (0.40, 0), (0.46, 0))
MIDDLE_Y_M = 0.06  # a brick lies in the middle up to here
PLACE_ROOM_M = 0.04  # radius of what is kept clear there, and where hands lay bricks down


@dataclass(frozen=True)
class Grip:
    """Where a hand holds a brick that goes between others, in the brick's own frame.

    The brick has to come to lie just as the goal says, not half a turn from it.
    """

    at_m: tuple[float, float] = (0.0, 0.0)  # the tool, from the brick's middle
    # What the fingers hold is so much higher than the brick itself, and is this one, which was
    # joined on it; None: they hold the brick.
    up_m: float = 0.0
    by: str | None = None
    width_m: float = 0.032  # Width of what is between the fingers.
    along: int = 1  # axis that the hand may move along; the fingers close along the other one
    open_m: float = 0.064  # opening that fits in between there
    shift_m: tuple[float, float] = (0.0, 0.0)  # Aim this far from the seat, away from a neighbour.
    clear_m: float = 0.0  # height above the seat that is clear of all around it
    tight: bool = False  # there are neighbours on two sides
    via: tuple[float, float] | None = None  # place m on the table where a brick taken off is laid
    # How the brick is held where it has come off and some of the bricks `after` it stand already.
    late: 'Grip | None' = None
    after: tuple[str, ...] = ()


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
    grip: Grip | None = None  # The hold on upper between neighbours (plans from files).

    @property
    def chain(self) -> tuple['Goal', ...]:
        """This goal and those that come after it."""
        if self.then is None:
            return (self,)
        return (self, *self.then.chain)


Place = tuple[float, float, float]  # x, y, yaw on the table
Poses = dict[str, Place | Goal]  # A goal holds from the start: the brick sits on another.
# What could be asked for, as a goal and as its frame or text; the first one is.
Askable = list[tuple[Goal, Frame | str]]


@dataclass(frozen=True)
class Task:
    """A task as data."""

    bricks: Callable[[float], tuple[Brick, ...]]  # scale -> what lies on the table
    sample: Callable[..., tuple[Poses, Askable]]  # (rng, scale) -> where, what is asked for
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
    described = describe([*task.bricks(scale), *more], poses)
    return poses, [(goal, _with_bricks(words, described)) for goal, words in askable]


def colour_number(brick: Brick) -> int:
    """The number of a brick's colour in episode.COLOURS.

    Raises:
        ValueError: It has none of these colours.
    """
    if brick.rgba not in COLOUR_OF:
        known = ', '.join(RGBA)
        raise ValueError(
            f'brick {brick.name!r}: rgba {brick.rgba!r} is no colour of tasks.RGBA ({known}), by '
            'which bricks are known'
        )
    return COLOURS.index(COLOUR_OF[brick.rgba])


def check_colours(bricks: Sequence[Brick]) -> None:
    """Raise ValueError where a loose brick has no colour of its own."""
    seen: dict[int, str] = {}
    for brick in bricks:
        if brick.fixed:
            continue
        number = colour_number(brick)
        if number in seen:
            raise ValueError(
                f'bricks {seen[number]!r} and {brick.name!r} are both {COLOURS[number]}: loose '
                'bricks are known by their colour, so each needs one of its own'
            )
        seen[number] = brick.name


def describe(bricks: Sequence[Brick], poses: Poses) -> dict[str, dict]:
    """How each loose brick can be named in a scene: a BRICK of a goal frame by brick.

    A property names a brick where no other has it. Plates are not called bricks.
    """
    said: dict[str, dict] = {}
    for brick in bricks:
        if brick.fixed or brick.plate:
            continue
        words: dict[str, Any] = {'colour': COLOURS[colour_number(brick)]}
        size = 'x'.join(map(str, sorted(brick.studs)))
        if size in SIZES:
            words['studs'] = size
        if max(brick.studs) <= 2:
            words['length'] = 'small'
        elif max(brick.studs) >= 8:
            words['length'] = 'long'
        words['side'] = _side_of(brick.name, poses)
        said[brick.name] = words
    for words in said.values():
        by = ['colour']
        for key in ('studs', 'length', 'side'):
            alike = [other for other in said.values() if other.get(key) == words.get(key)]
            if key in words and len(alike) == 1:
                by.append(key)
        words['by'] = by
    return said


def _side_of(name: str, poses: Poses) -> str:
    """On which side a brick lies at the start, or what it sits on."""
    pose = poses.get(name, (0, 0))  # plates are fixed in the middle
    if isinstance(pose, Goal):
        return _side_of(pose.lower, poses)
    if abs(pose[1]) < MIDDLE_Y_M:
        return 'middle'
    return 'left' if pose[1] > 0 else 'right'


def _with_bricks(words: Frame | str, described: dict[str, dict]) -> Frame | str:
    """A frame with what names its bricks, where it has their names."""
    if isinstance(words, str):
        return words
    bricks = {key: dict(described[words[key]]) for key in ('upper', 'lower') if key in words}
    return words | bricks


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


def _apart(
    rng, n: int, x: tuple, y: tuple, side: int, clear: Sequence[tuple[float, float]] = ()
) -> np.ndarray:
    """Places (n, 2) m on one side of the table, all far enough from each other for a hand.

    All are drawn anew each time: beside two there may be no room for a third.

    Args:
        rng: Of the episode.
        n: How many.
        x: Range, m.
        y: Range, m, of the distance from the middle.
        side: 1 on the left, -1 on the right.
        clear: Places (2,) m that are kept clear as well.
    """
    for _ in range(10_000):
        at = np.column_stack([rng.uniform(*x, n), side * rng.uniform(*y, n)])
        all_of_them = np.vstack([at, np.reshape(clear, (-1, 2))])
        gaps = np.linalg.norm(at[:, None] - all_of_them, axis=2)
        gaps[np.arange(n), np.arange(n)] = np.inf
        if gaps.min() > SIDE_GAP_M:
            return at
    raise ValueError(f'no room for {n} bricks on a side: expected a larger pose_range')


def _of_colours(studs: tuple[int, int], *colours: str) -> tuple[Brick, ...]:
    """Loose bricks of one size that are called by their colours."""
    return tuple(Brick(colour, studs, RGBA[colour]) for colour in colours)


# -- place: a 2x4 on an 8x8 plate ------------------------------------------------------------------
# Where the corners are, {corner: signs of (x, y)}; for each quarter turn how far the brick's centre
# gets to lie from the edge of the plate, in studs, and the word for it.
CORNERS = {'near left': (-1, 1), 'near right': (-1, -1), 'far left': (1, 1), 'far right': (1, -1)}
ROTATIONS = {1: ((2, 1), 'lengthwise'), 0: ((1, 2), 'crosswise')}


def _place_bricks(scale: float) -> tuple[Brick, ...]:
    plate = Brick('plate', (8, 8), RGBA['green'], plate=True, fixed=True)
    return (plate, *_of_colours((2, 4), 'red', 'blue'))


def _place_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """A brick on each side of the plate, either for every corner and either way round."""
    colours = ['red', 'blue']
    rng.shuffle(colours)
    # Each colour's hand is the one on the brick's side.
    hands = HANDS if rng.integers(2) else HANDS[::-1]
    places = [(corner, turns) for corner in CORNERS for turns in ROTATIONS]
    rng.shuffle(places)
    poses: Poses = {}
    for colour, hand in zip(colours, hands):
        side = SIDES[HANDS.index(hand)]
        poses[colour] = _lies(rng, (0.28, 0.38), (0.14, 0.24), side, degrees=30)
    askable: Askable = []
    for colour, hand in zip(colours, hands):
        for corner, turns in places:
            cell = _corner_cell(corner, turns, (8, 8))
            askable.append(_place_goal(colour, corner, turns, hand, cell, turns))
    return poses, askable


def _corner_cell(corner: str, turns: int, plate: tuple[int, int]) -> tuple[int, int]:
    """Where a 2x4 sits on a corner of a plate of so many studs ahead and across."""
    (ahead, left), (far_ahead, far_left) = CORNERS[corner], ROTATIONS[turns][0]
    return ahead * (plate[0] // 2 - far_ahead), left * (plate[1] // 2 - far_left)


def _place_goal(
    upper: str, corner: str, turns: int, hand: str, cell: tuple[int, int], turns_on_plate: int
) -> tuple[Goal, Frame]:
    """A 2x4 onto a corner of a plate.

    Args:
        upper: The brick.
        corner: By name.
        turns: Quarter turns, seen from the robot.
        hand: That presses.
        cell: In the plate's frame.
        turns_on_plate: In the plate's frame.
    """
    goal = Goal(upper, 'plate', cell, turns_on_plate, hand, where=corner)
    turn = ROTATIONS[turns][1]
    return goal, dict(task='place', upper=upper, corner=corner, turn=turn, hand=hand)


# -- join: press a small brick onto an end of a long one, in the air -------------------------------
JOIN_ENDS = {
    'near': 1,
    'far': -1,
}  # sign of the cell's y on a brick that points away from the robot


def _long_studs(scale: float) -> tuple[int, int]:
    """Studs of what two hands work on side by side.

    The right palm and the left forearm need ~70 mm between the two grips (96 and 64 mm here).
    """
    return (2, 8 if scale > 1.5 else 10)


def _end_cell(scale: float, end: str) -> tuple[int, int]:
    """Where a 2x2 sits on the end of a long brick."""
    return (0, JOIN_ENDS[end] * (_long_studs(scale)[1] // 2 - 1))


def _join_bricks(scale: float) -> tuple[Brick, ...]:
    return (*_of_colours(_long_studs(scale), 'red'), *_of_colours((2, 2), 'blue', 'white'))


def _join_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """The long brick on one side, two small ones on the other: either, onto either end."""
    holder, hand = HANDS if rng.integers(2) else HANDS[::-1]
    side = SIDES[HANDS.index(holder)]
    poses: Poses = {'red': _lies(rng, (0.29, 0.38), (0.15, 0.24), side, degrees=35)}
    names = rng.permutation(['blue', 'white']).tolist()
    for name, (x, y) in zip(names, _apart(rng, 2, (0.27, 0.38), (0.14, 0.29), -side)):
        poses[name] = (x, y, np.pi / 2 + np.radians(rng.uniform(-35, 35)))
    askable: Askable = [
        _join_goal(name, 'red', end, holder, hand, scale) for name in names for end in JOIN_ENDS
    ]
    rng.shuffle(askable)
    return poses, askable


def _join_goal(
    upper: str, lower: str, end: str, holder: str, hand: str, scale: float
) -> tuple[Goal, Frame]:
    """A small brick onto an end of a long one."""
    goal = Goal(upper, lower, _end_cell(scale, end), 0, hand, holder=holder, where=f'{end} end')
    frame = dict(task='join', upper=upper, lower=lower, end=end, holder=holder, hand=hand)
    return goal, frame


# -- stack: on a brick that stands by itself -------------------------------------------------------
# {where: (cell, quarter turns)} for each size of the upper brick, on a 2x4 whose long side points
# away from the robot; the near end is the one of positive y.
STACK_CELLS = {
    (2, 4): {'lined up': ((0, 0), 0), 'across': ((0, 0), 1)},
    (2, 2): {'near end': ((0, 1), 0), 'far end': ((0, -1), 0), 'middle': ((0, 0), 0)},
}


def _stack_bricks(scale: float) -> tuple[Brick, ...]:
    return (*_of_colours((2, 4), 'red', 'blue'), *_of_colours((2, 2), 'white'))


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
    askable: Askable = []
    for name, hand in zip(sides, HANDS):
        askable += _stack_goals(name, lower, studs[name], hand)
    rng.shuffle(askable)
    return poses, askable


def _stack_goals(upper: str, lower: str, studs: tuple[int, int], hand: str) -> Askable:
    """Every way in which a brick of so many studs goes onto a 2x4."""
    askable: Askable = []
    for where, (cell, turns) in STACK_CELLS[studs].items():
        goal = Goal(upper, lower, cell, turns, hand, where=where)
        frame = dict(task='stack', upper=upper, lower=lower, where=where, hand=hand)
        askable.append((goal, frame))
    return askable


# -- handover: a 2x4 onto the 4x4 plate of the other side ------------------------------------------
# {half of the plate: (cell, quarter turns)}
HALVES = {
    'left': ((0, 1), 1),
    'right': ((0, -1), 1),
    'far': ((1, 0), 0),
    'near': ((-1, 0), 0),
}


def _handover_bricks(scale: float) -> tuple[Brick, ...]:
    return (*_side_plates(), *_of_colours((2, 4), 'red', 'blue'))


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
    askable: Askable = []
    for name, giver, hand, side in zip(names, HANDS, HANDS[::-1], SIDES):
        poses[name] = _lies(rng, (0.25, 0.31), (0.24, 0.31), side, degrees=30)
        for half, (cell, turns) in HALVES.items():
            goal = Goal(name, f'{hand} plate', cell, turns, hand, giver=giver, where=f'{half} half')
            frame = dict(task='handover', upper=name, half=half, giver=giver, hand=hand)
            askable.append((goal, frame))
    rng.shuffle(askable)
    return poses, askable


# -- separate: pull a small brick off the end of a long one, in the air ----------------------------
SEPARATE_STACKS = (('red', 'blue'), ('black', 'white'))  # lower, upper


def _separate_bricks(scale: float) -> tuple[Brick, ...]:
    # As long as the one of `join`, and for the same reason.
    lower, upper = zip(*SEPARATE_STACKS)
    return (*_of_colours(_long_studs(scale), *lower), *_of_colours((2, 2), *upper))


def _separate_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """A stack on each side, a small brick on the far end of a long one; either may be asked for.

    The hand on a stack's side lifts it, and the other one lays what it pulls off down on its own
    side, between the middle and the other stack.
    """
    poses: Poses = {}
    askable: Askable = []
    order = [SEPARATE_STACKS[i] for i in rng.permutation(len(SEPARATE_STACKS))]
    for (lower, upper), holder, hand, side in zip(order, HANDS, HANDS[::-1], SIDES):
        poses[lower] = _lies(rng, (0.27, 0.33), (0.27, 0.32), side, degrees=20)
        goal = Goal(upper, lower, _end_cell(scale, 'far'), 0, hand, holder=holder, apart=True)
        poses[upper] = goal
        frame = dict(task='separate', upper=upper, lower=lower, holder=holder, hand=hand)
        askable.append((goal, frame))
    rng.shuffle(askable)
    return poses, askable


# -- unplug: pull a brick off a loose plate --------------------------------------------------------
def _loose_plate(scale: float) -> Brick:
    """A loose plate 128 mm wide at either scale.

    Palms are 90 mm wide, and two hands work on it side by side. It lies as other bricks do, turned
    by about a quarter: targets tell a yaw but for half a turn, and so do not flip.
    """
    return Brick('plate', (8 if scale > 1.5 else 16, 8), RGBA['green'], plate=True)


def _plate_lies(rng) -> Place:
    return _lies(rng, (0.31, 0.37), (-0.02, 0.02), 1, degrees=10)


def _on_loose_plate(cell: tuple[int, int], turns: int) -> tuple[tuple[int, int], int]:
    """Cell and quarter turns in the loose plate's own frame.

    Args:
        cell: Studs ahead and to the left of its middle, seen from the robot.
        turns: Quarter turns, seen from the robot.
    """
    ahead, left = cell
    return (left, -ahead), (turns + 1) % 2


def _unplug_bricks(scale: float) -> tuple[Brick, ...]:
    return (_loose_plate(scale), *_of_colours((2, 4), 'red', 'blue'))


def _unplug_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """A brick on each side of the plate, which the hand of that side pulls off.

    Both are in one row, so that the other hand can hold the plate down in the other row.
    """
    poses: Poses = {'plate': _plate_lies(rng)}
    askable: Askable = []
    names = rng.permutation(['red', 'blue']).tolist()
    row = int(rng.choice([-2, 2]))
    for upper, hand, holder in zip(names, HANDS, HANDS[::-1]):
        goal, frame = _unplug_goal(upper, row, hand, holder, scale)
        poses[upper] = goal
        askable.append((goal, frame))
    rng.shuffle(askable)
    return poses, askable


def _unplug_goal(upper: str, row: int, hand: str, holder: str, scale: float) -> tuple[Goal, Frame]:
    """A 2x4 off the edge of the plate at the hand's side, `row` studs away from the robot."""
    edge = _loose_plate(scale).studs[0] // 2 - 1
    cell, turns = _on_loose_plate((row, SIDES[HANDS.index(hand)] * edge), 1)
    goal = Goal(upper, 'plate', cell, turns, hand, holder=holder, apart=True)
    return goal, dict(task='unplug', upper=upper, holder=holder, hand=hand)


# -- bridge: a long brick over two towers, one of which would tip over -----------------------------
BRIDGES = ('red', 'black')


def _bridge_bricks(scale: float) -> tuple[Brick, ...]:
    # The white tower is an upside-down L: the studs that the bridge goes on overhang its foot by
    # two. Nearer to the foot (less than 0.6 of the height, the friction between bricks) it jams
    # under the press instead of tipping over. The grips are then 144 (DUPLO) and 88 mm apart; at 80
    # and 64 mm the palms met.
    return (
        *_of_colours((2, 12 if scale < 1.5 else 8), *BRIDGES),
        *_of_colours((2, 2), 'blue', 'orange'),  # the blue tower and its foot
        *_of_colours((2, 8), 'white'),
        *_of_colours((2, 4), 'yellow'),  # the foot of the white tower
    )


def _bridge_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """The white tower in the middle, near, its arm pointing away from the robot.

    On one side are the blue tower and two long bricks, either of which may be asked for. That
    side's hand presses the brick onto blue, then both onto the arm of white.
    """
    hand, holder = HANDS if rng.integers(2) else HANDS[::-1]
    side = SIDES[HANDS.index(hand)]
    small = scale < 1.5
    poses: Poses = {
        'yellow': _lies(rng, (0.24, 0.28), (-0.02, 0.02), 1, degrees=12),
        'white': Goal('white', 'yellow', (0, -2), 0, holder),
        'orange': _lies(rng, (0.36, 0.40), (0.15, 0.18), side, degrees=15),
        'blue': Goal('blue', 'orange', (0, 0), 0, holder),
    }
    askable: Askable = []
    lanes = ((0.26, 0.275), (0.35, 0.365))
    for name, lane in zip(rng.permutation(BRIDGES).tolist(), lanes):
        poses[name] = _lies(rng, (0.29, 0.33), lane, side, degrees=8)
        over = (0, -8 if small else -6)
        second = Goal(name, 'white', over, 0, hand, holder=holder, steady=True, where='white tower')
        onto = (0, 5 if small else 3)
        first = Goal(name, 'blue', onto, 0, hand, where='blue tower', then=second)
        frame = dict(
            task='bridge', upper=name, first='blue', second='white', holder=holder, hand=hand
        )
        askable.append((first, frame))
    rng.shuffle(askable)
    return poses, askable


# -- build: towers on the two plates of `handover`, out of 2x4 bricks ------------------------------
BUILD_COLOURS = ('red', 'blue', 'yellow', 'white', 'orange', 'black')
SIDE_GAP_M = 0.085  # between bricks that lie side by side: what a hand needs


def _build_bricks(scale: float) -> tuple[Brick, ...]:
    return (*_side_plates(), *_of_colours((2, 4), *BUILD_COLOURS))


def _build_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """Three bricks on each side.

    A plan has three to six of them in two towers, some of them on the side that their brick is not
    on; what it leaves out lies there to distract.
    """
    names = rng.permutation(BUILD_COLOURS).tolist()
    poses: Poses = {}
    hand_of = {name: HANDS[i % 2] for i, name in enumerate(names)}  # This hand reaches it.
    for hand, side in zip(HANDS, SIDES):
        mine = [name for name in names if hand_of[name] == hand]
        for name, (x, y) in zip(mine, _apart(rng, 3, (0.22, 0.31), (0.13, 0.33), side)):
            poses[name] = (x, y, np.pi / 2 + np.radians(rng.uniform(-30, 30)))
    return poses, [_build_plan(rng, hand_of) for _ in range(4)]


def _build_plan(rng, hand_of: dict[str, str]) -> tuple[Goal, Frame]:
    """Draw a chain of goals and its frame.

    Args:
        rng: Of the episode.
        hand_of: {brick: hand that reaches it}.
    """
    n = int(rng.integers(3, 7))
    names, hands = _build_order(rng, hand_of, n)
    top: dict[str, str] = {}  # The top brick of the tower on each hand's plate.
    goals = []
    steps = []
    for name, hand in zip(names, hands):
        place: dict[str, str]
        if hand in top:
            turns = int(rng.integers(2))
            lower = top[hand]
            cell = (0, 0)
            where = lower
            place = {'brick': lower}
            crosswise = turns == 1
        else:
            half = list(HALVES)[rng.integers(len(HALVES))]
            lower = f'{hand} plate'
            cell, turns = HALVES[half]
            where = f'{half} half of {lower}'
            place = {'plate': hand, 'half': half}
            crosswise = False
        top[hand] = name
        giver = hand_of[name] if hand_of[name] != hand else None
        goals.append(Goal(name, lower, cell, turns, hand, giver=giver, where=where))
        steps.append({'upper': name, 'on': place, 'crosswise': crosswise})
    plan = goals[-1]
    for goal in reversed(goals[:-1]):
        plan = replace(goal, then=plan)
    return plan, dict(task='build', steps=steps)


def _build_order(rng, hand_of: dict[str, str], n: int) -> tuple[list[str], list[str]]:
    """Which n bricks are built in, in this order, and the hand whose plate each goes on.

    At least one of them lies on the other side.
    """
    while True:
        names = rng.permutation(BUILD_COLOURS)[:n].tolist()
        hands = rng.permutation([HANDS[i % 2] for i in range(n)]).tolist()
        if any(hand_of[name] != hand for name, hand in zip(names, hands)):
            return names, hands


# -- mixed: one table, and the words say which of four tasks is to be done on it -------------------
def _mixed_bricks(scale: float) -> tuple[Brick, ...]:
    return (
        _loose_plate(scale),
        *_of_colours((2, 4), 'red', 'blue'),
        *_of_colours((2, 2), 'white'),
        *_of_colours(_long_studs(scale), 'yellow'),
    )


def _mixed_sample(rng, scale: float) -> tuple[Poses, Askable]:
    """A loose plate with the red brick on it, a long brick on one side, two more on the other.

    Red may have to come off, blue to go on the plate's free side, white on blue or on an end of the
    long brick. Where hands lay bricks down stays clear.
    """
    holder, hand = HANDS if rng.integers(2) else HANDS[::-1]  # the long brick's side, and the other
    side = SIDES[HANDS.index(holder)]
    spots = [place[:2] for place in PUT_DOWN.values()]
    poses: Poses = {
        'plate': _plate_lies(rng),
        'yellow': _lies(rng, (0.27, 0.32), (0.28, 0.32), side, degrees=15),
    }
    lie = _apart(rng, 2, (0.22, 0.34), (0.15, 0.33), -side, clear=spots)
    for name, (x, y) in zip(('blue', 'white'), lie):
        poses[name] = (x, y, np.pi / 2 + np.radians(rng.uniform(-25, 25)))
    puller, other = HANDS if rng.integers(2) else HANDS[::-1]
    plugged = _unplug_goal('red', int(rng.choice([-2, 2])), puller, other, scale)
    poses['red'] = plugged[0]
    free = [f'{row} {other}' for row in ('near', 'far')]
    place: Askable = []
    for corner in free:
        for turns in ROTATIONS:
            cell = _corner_cell(corner, turns, _loose_plate(scale).studs[::-1])
            on_plate = _on_loose_plate(cell, turns)
            place.append(_place_goal('blue', corner, turns, hand, *on_plate))
    by_task: list[Askable] = [
        [plugged],
        place,
        _stack_goals('white', 'blue', (2, 2), hand),
        [_join_goal('white', 'yellow', end, holder, hand, scale) for end in JOIN_ENDS],
    ]
    # Each task is asked for as often as any other, though they differ in how many goals they have.
    rng.shuffle(by_task)
    for goals in by_task:
        rng.shuffle(goals)
    return poses, sum(by_task, [])


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
    'mixed': Task(
        _mixed_bricks,
        _mixed_sample,
        time_limit_s=30.0,
        two_hands='what is joined or unplugged here takes two hands, as it does in those tasks; '
        'what is placed or stacked takes one. The words say which it is.',
    ),
}
