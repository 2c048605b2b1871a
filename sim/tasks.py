"""Tasks as data: which bricks lie on the table, where, what is asked for and in which words.

    task = TASKS['place']
    bricks = task.bricks(scale)                    # scale 2 = DUPLO, 1 = LEGO
    poses, askable = task.sample(rng, scale)       # {brick: (x, y, yaw)}, [(Goal, instruction)]
    poses, askable = vary(task, rng, scale, more, pose_range=.5, target_range=.5)      # harder or
    easier

Positions in m in the world frame (see world.py), z = 0 on the table top; angles in rad.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim.clutch import Brick

HANDS = ('left', 'right')
RGBA = dict(
    red='0.80 0.10 0.10 1',
    blue='0.10 0.25 0.85 1',
    yellow='0.95 0.80 0.10 1',
    white='0.90 0.90 0.90 1',
    orange='0.95 0.45 0.05 1',
    green='0.30 0.55 0.30 1',
    black='0.12 0.12 0.13 1',
)
# Where a hand lays a brick that is to lie on the table: (x, y, yaw), long side away from the robot
PUT_DOWN = {'left': (0.36, 0.17, np.pi / 2), 'right': (0.36, -0.17, np.pi / 2)}
MIN_JOIN_HEIGHT_M = 0.05  # "in the air": the lower brick's bottom is at least this high


@dataclass(frozen=True)
class Grip:
    """Where a hand holds a brick that goes between others, in the brick's own frame: it has to come
    to lie just as the goal says, not half a turn from it.

    at_m: tool from the brick's middle. along: axis that the hand may move along, 0 or 1; the fingers
    close along the other. open_m: opening that fits in between there. shift_m: where to aim, from
    the seat: away from a neighbour on one side. clear_m: height above the seat that is clear of all
    around it. tight: neighbours on two sides. via: place (x, y) m on the table where a giver lays
    the brick.
    """

    at_m: tuple = (0.0, 0.0)
    along: int = 1
    open_m: float = 0.064
    shift_m: tuple = (0.0, 0.0)
    clear_m: float = 0.0
    tight: bool = False
    via: tuple | None = None


@dataclass(frozen=True)
class Goal:
    """What one episode asks for: `upper` sits on `lower` with its centre `cell` studs from lower's
    centre and its long side along quarter turn `turns` (modulo the brick's symmetry), pressed by
    `hand`. `holder`: hand that has to keep `lower` in the air while they are joined, and to lay
    both down after that, None where lower lies on the table or is fixed to it. `giver`: hand that
    has to fetch `upper` and lay it where `hand` reaches, None where hand reaches it by itself.
    `apart`: the other way round: upper sits there at the start and has to come off, and both have
    to lie on the table; the holder lifts lower first, or holds it down where it is a plate.
    `steady`: the holder keeps lower from tipping where it stands. `where`: words for the cell, None
    where there are none. `then`: what comes next; which goal of such a chain is at work follows
    from the state (World.current). `grip`: how to hold upper between neighbours (plans from files).
    """

    upper: str
    lower: str
    cell: tuple
    turns: int
    hand: str
    holder: str | None = None
    giver: str | None = None
    apart: bool = False
    steady: bool = False
    where: str | None = None
    then: 'Goal | None' = None
    grip: Grip | None = None

    @property
    def chain(self):
        """This goal and those that come after it."""
        return (self, *(self.then.chain if self.then else ()))


@dataclass(frozen=True)
class Task:
    """A task as data. `bricks(scale)` lists what lies on the table; `sample(rng, scale)` draws
    poses {brick: (x, y, yaw), or the Goal that holds from the start} and what could be asked for
    there, [(Goal, instruction)], the first of which is.
    """

    bricks: Callable
    sample: Callable
    time_limit_s: float
    two_hands: str  # why one hand does not suffice, or why it does


TABLE_M = ((0.18, -0.42), (0.46, 0.42))  # corners of where distractors lie
HAND_ROOM_M = 0.03  # around what a hand may come to
MIDDLE_M = ((0.28, 0), (0.34, 0), (0.40, 0), (0.46, 0))


class Narrow:
    """A random generator whose uniform draws are nearer to the middle of their range."""

    def __init__(self, rng, share):
        self.rng = rng
        self.share = share

    def __getattr__(self, name):
        return getattr(self.rng, name)

    def uniform(self, low=0.0, high=1.0, size=None):
        middle = (low + high) / 2
        return middle + self.share * (self.rng.uniform(low, high, size) - middle)


def distractors(bricks, n):
    """n bricks of colours and names that `bricks` have not, for a task that does not ask for
    them.
    """
    taken = {b.rgba for b in bricks}
    free = [colour for colour in RGBA if RGBA[colour] not in taken]
    if not 0 <= n <= len(free):
        raise ValueError(f'distractors={n}: expected 0 to {len(free)}, as many colours are left')
    sizes = ((2, 2), (2, 4), (2, 3), (1, 4))
    return tuple(
        Brick(colour, sizes[i % len(sizes)], RGBA[colour]) for i, colour in enumerate(free[:n])
    )


def vary(task, rng, scale, more=(), pose_range=1.0, target_range=1.0):
    """task.sample with bricks `more` scattered over the table, spawn poses drawn from the middle
    `pose_range` of their ranges, and only the first `target_range` of the places (Goal.where, by
    name) asked for.
    """
    for name, share in (('pose_range', pose_range), ('target_range', target_range)):
        if not 0 <= share <= 1:
            raise ValueError(f'{name}={share}: expected 0 to 1')
    poses, askable = task.sample(rng if pose_range == 1 else Narrow(rng, pose_range), scale)
    places = sorted({goal.where for goal, _ in askable if goal.where})
    places = places[: max(1, round(target_range * len(places)))]
    askable = [(goal, text) for goal, text in askable if goal.where in places or not goal.where]

    def size(brick):
        """Half the diagonal, m."""
        return scale * 0.004 * np.hypot(*brick.studs)

    used = [
        (np.array(poses.get(b.name, b.at_m)[:2]), size(b))
        for b in task.bricks(scale)
        if not isinstance(poses.get(b.name), Goal)
    ]
    # where hands lay bricks down, and the middle, where they meet and where a bridge comes to stand
    used += [(np.array(spot), 0.04) for spot in (*MIDDLE_M, *(at[:2] for at in PUT_DOWN.values()))]
    for brick in more:
        for _ in range(1000):
            at = rng.uniform(*TABLE_M)
            if all(np.linalg.norm(at - there) > size(brick) + r + HAND_ROOM_M for there, r in used):
                break
        else:
            raise ValueError(f'{len(more)} distractors: no room for {brick.name}; ask for fewer')
        used.append((at, size(brick)))
        poses[brick.name] = (*at, rng.uniform(0, np.pi))
    return poses, askable


# Placing: 2x4 on an 8x8 plate. Where the corners are, {corner: signs of (x, y)}; for each quarter
# turn how far from the middle the brick's centre gets to lie, in studs, and the words for it.
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


# Stacking: {where: (cell, quarter turns)} for each size of the upper brick, on a 2x4 whose long
# side points away from the robot; the near end is the one of positive y.
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


def _stack_bricks(scale):
    return (
        *(Brick(c, (2, 4), RGBA[c]) for c in ('red', 'blue')),
        Brick('white', (2, 2), RGBA['white']),
    )


def _stack_sample(rng, scale):
    """A 2x4 in the middle, the other 2x4 and the 2x2 on one side each: either may be asked for, the
    one that is not lies there to distract.
    """
    names = ['red', 'blue']
    rng.shuffle(names)
    lower, other = names
    sides = [other, 'white']
    rng.shuffle(sides)
    poses = {
        lower: (
            rng.uniform(0.29, 0.38),
            rng.uniform(-0.03, 0.03),
            np.pi / 2 + np.radians(rng.uniform(-30, 30)),
        )
    }
    askable = []
    for name, hand, s in zip(sides, HANDS, (1, -1)):
        poses[name] = (
            rng.uniform(0.28, 0.38),
            s * rng.uniform(0.16, 0.25),
            np.pi / 2 + np.radians(rng.uniform(-35, 35)),
        )
    bricks = {b.name: b for b in _stack_bricks(scale)}
    for name, hand in zip(sides, HANDS):
        for where, (cell, turns) in STACK_CELLS[bricks[name].studs].items():
            words = {'white': ('white brick', 'small brick', 'square brick')}
            upper = rng.choice([*words.get(name, (f'{name} brick',)), f'{hand} brick'])
            base = rng.choice([f'{lower} brick', 'middle brick', f'{lower} one'])
            text = rng.choice(STACK_TEMPLATES).format(
                upper=upper, lower=base, how=rng.choice(STACK_WORDS[where])
            )
            askable.append((Goal(name, lower, cell, turns, hand, where=where), str(text)))
    rng.shuffle(askable)
    return poses, askable


# Handing over: 2x4 on a 4x4 plate, {half of the plate: (cell, quarter turns)}
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


def _handover_bricks(scale):
    # out of the other arm, which points down: 0.15 m beyond the middle it ends at x = 0.34 m
    plates = (
        Brick(f'{hand} plate', (4, 4), RGBA['green'], plate=True, fixed=True, at_m=(0.42, s * 0.19))
        for hand, s in zip(HANDS, (1, -1))
    )
    return (*plates, *(Brick(c, (2, 4), RGBA[c]) for c in ('red', 'blue')))


def _handover_sample(rng, scale):
    """A brick on each side, each may be asked for on the plate of the other side."""
    names = ['red', 'blue']
    rng.shuffle(names)
    poses = {}
    askable = []
    for name, giver, hand, s in zip(names, HANDS, HANDS[::-1], (1, -1)):
        poses[name] = (
            rng.uniform(0.25, 0.31),
            s * rng.uniform(0.24, 0.31),
            np.pi / 2 + np.radians(rng.uniform(-30, 30)),
        )
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


def _separate_bricks(scale):
    small = (Brick(c, (2, 2), RGBA[c]) for c in ('blue', 'white'))
    return (_join_bricks(scale)[0], *small)


def _separate_sample(rng, scale):
    """A small brick on the far end of the long one, on one side of the table; the other small one
    lies on the other side to distract.
    """
    names = ['blue', 'white']
    rng.shuffle(names)
    upper, other = names
    holder, hand = HANDS if rng.integers(2) else HANDS[::-1]
    s = 1 if holder == 'left' else -1
    poses = {
        'red': (
            rng.uniform(0.30, 0.36),
            s * rng.uniform(0.16, 0.24),
            np.pi / 2 + np.radians(rng.uniform(-30, 30)),
        ),
        other: (rng.uniform(0.24, 0.28), -s * rng.uniform(0.16, 0.28), rng.uniform(0, np.pi)),
    }
    text = rng.choice(SEPARATE_TEMPLATES).format(
        upper=rng.choice([f'{upper} brick', f'{upper} one', 'small brick on top']),
        lower=rng.choice(['red brick', 'red one', 'long brick']),
        hand=hand,
        holder=holder,
        side=holder,
    )
    cell = 0, -3 if scale > 1.5 else -4
    poses[upper] = goal = Goal(upper, 'red', cell, 0, hand, holder=holder, apart=True)
    return poses, [(goal, str(text))]


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


def _unplug_bricks(scale):
    # A loose plate 128 mm wide at either scale: palms are 90 mm wide, and two hands work on it side
    # by side.
    return (
        Brick('plate', (8, 8 if scale > 1.5 else 16), RGBA['green'], plate=True),
        *(Brick(c, (2, 4), RGBA[c]) for c in ('red', 'blue')),
    )


def _unplug_sample(rng, scale):
    """A brick on one side of the plate, which the hand of that side pulls; another lies on the
    table.
    """
    names = ['red', 'blue']
    rng.shuffle(names)
    upper, other = names
    hand, holder = HANDS if rng.integers(2) else HANDS[::-1]
    s = 1 if hand == 'left' else -1
    poses = {
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
    cell = int(rng.integers(-2, 3)), s * (3 if scale > 1.5 else 6)
    poses[upper] = goal = Goal(upper, 'plate', cell, 1, hand, holder=holder, apart=True)
    return poses, [(goal, str(text))]


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


def _bridge_bricks(scale):
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


def _bridge_sample(rng, scale):
    """The white tower in the middle, near, its arm pointing away from the robot; on one side the
    blue tower and the long brick. That side's hand presses the brick onto blue, then both onto the
    arm of white.
    """
    hand, holder = HANDS if rng.integers(2) else HANDS[::-1]
    s = 1 if hand == 'left' else -1
    small = scale < 1.5

    def ahead(degrees):
        return np.pi / 2 + np.radians(rng.uniform(-degrees, degrees))

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
    poses = {
        'white foot': (rng.uniform(0.24, 0.28), rng.uniform(-0.02, 0.02), ahead(12)),
        'white': Goal('white', 'white foot', (0, -2), 0, holder),
        'blue foot': (rng.uniform(0.36, 0.40), s * rng.uniform(0.15, 0.18), ahead(15)),
        'blue': Goal('blue', 'blue foot', (0, 0), 0, holder),
        'red': (rng.uniform(0.29, 0.33), s * rng.uniform(0.26, 0.29), ahead(12)),
    }
    text = rng.choice(BRIDGE_TEMPLATES).format(
        long=rng.choice(['red brick', 'long brick', 'red one']),
        first='blue',
        second='white',
        hand=hand,
        holder=holder,
    )
    return poses, [(first, str(text))]


# Building: towers on the two plates of `handover`, out of 2x4 bricks
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


def _build_bricks(scale):
    plates = [b for b in _handover_bricks(scale) if b.plate]
    return (*plates, *(Brick(c, (2, 4), RGBA[c]) for c in BUILD_COLOURS))


def _build_sample(rng, scale):
    """Three bricks on each side. A plan has three to six of them in two towers, some of them on the
    side that their brick is not on; what it leaves out lies there to distract.
    """
    names = rng.permutation(BUILD_COLOURS).tolist()
    poses = {}
    side = {name: HANDS[i % 2] for i, name in enumerate(names)}
    for hand, sign in zip(HANDS, (1, -1)):
        mine = [name for name in names if side[name] == hand]
        for _ in range(10_000):  # all three anew: beside two there may be no room for a third
            at = np.column_stack([rng.uniform(0.22, 0.31, 3), sign * rng.uniform(0.13, 0.33, 3)])
            gaps = np.linalg.norm(at - np.roll(at, 1, 0), axis=1)
            if gaps.min() > 0.085:  # what a hand needs
                break
        else:
            raise ValueError('no room for three bricks on a side: expected a larger pose_range')
        poses |= {
            name: (*xy, np.pi / 2 + np.radians(rng.uniform(-30, 30))) for name, xy in zip(mine, at)
        }
    return poses, [_build_plan(rng, side) for _ in range(4)]


def _build_plan(rng, side):
    """-> chain of goals, instruction. side: {brick: hand that reaches it}."""
    n = int(rng.integers(3, 7))
    half_words = list(HALVES)
    while True:
        names = rng.permutation(BUILD_COLOURS)[:n].tolist()
        hands = rng.permutation(
            [HANDS[i % 2] for i in range(n)]
        ).tolist()  # whose plate each goes on
        if any(side[name] != hand for name, hand in zip(names, hands)):
            break
    top = {}
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
            half = half_words[rng.integers(4)]
            lower = f'{hand} plate'
            (cell, turns), where = HALVES[half], f'{half} of {lower}'
            how = f'the {half} of the {lower}'
        top[hand] = name
        steps.append(
            dict(
                upper=name,
                lower=lower,
                cell=cell,
                turns=turns,
                hand=hand,
                where=where,
                giver=side[name] if side[name] != hand else None,
            )
        )
        words.append(phrase.format(upper=name, lower=how))
    goal = None
    for step in reversed(steps):
        goal = Goal(**step, then=goal)
    return goal, str(rng.choice(BUILD_TEMPLATES).format(plan=str(link).join(words)))


def _place_bricks(scale):
    return (
        Brick('plate', (8, 8), RGBA['green'], plate=True, fixed=True),
        *(Brick(c, (2, 4), RGBA[c]) for c in ('red', 'blue')),
    )


def _place_sample(rng, scale):
    colours = ['red', 'blue']
    rng.shuffle(colours)
    hands = HANDS if rng.integers(2) else HANDS[::-1]  # of each colour: the one on the brick's side
    places = [(cell, turns) for cell in CORNERS for turns in ROTATIONS]
    rng.shuffle(places)
    poses = {
        c: (
            rng.uniform(0.28, 0.38),
            s * rng.uniform(0.14, 0.24),
            np.pi / 2 + np.radians(rng.uniform(-30, 30)),
        )
        for c, s in zip(colours, [1 if hand == 'left' else -1 for hand in hands])
    }
    askable = []
    for colour, hand in zip(colours, hands):
        for cell, turns in places:
            (row, column), (far, words) = cell.split(), ROTATIONS[turns]
            text = rng.choice(PLACE_TEMPLATES).format(
                colour=colour, cell=cell, row=row, column=column, hand=hand, how=rng.choice(words)
            )
            at = tuple(sign * studs for sign, studs in zip(CORNERS[cell], far))
            askable.append((Goal(colour, 'plate', at, turns, hand, where=cell), text))
    return poses, askable


def _join_bricks(scale):
    # Two hands side by side: the right palm and the left forearm need ~70 mm between the two grips
    # (96 and 64 mm here).
    return (
        Brick('red', (2, 8 if scale > 1.5 else 10), RGBA['red']),
        Brick('blue', (2, 2), RGBA['blue']),
    )


def _join_sample(rng, scale):
    poses = {
        c: (
            rng.uniform(0.29, 0.38),
            s * rng.uniform(0.15, 0.24),
            np.pi / 2 + np.radians(rng.uniform(-35, 35)),
        )
        for c, s in (('red', 1), ('blue', -1))
    }
    text = JOIN_TEMPLATES[rng.integers(len(JOIN_TEMPLATES))].format(
        upper='blue', lower='red', hand='right', holder='left'
    )
    return poses, [
        (Goal('blue', 'red', (0, -3 if scale > 1.5 else -4), 0, 'right', holder='left'), text)
    ]


TASKS = {
    'place': Task(
        _place_bricks,
        _place_sample,
        15.0,
        'one hand does: the baseplate is screwed to the table. '
        'Which hand follows from where the brick lies.',
    ),
    'stack': Task(
        _stack_bricks,
        _stack_sample,
        15.0,
        'one hand does: the table carries the press, and the lower brick is heavy enough not to slide. '
        'Which hand follows from where the upper brick lies.',
    ),
    'handover': Task(
        _handover_bricks,
        _handover_sample,
        25.0,
        'the arm that reaches the brick does not reach the plate it goes on, and the other way round.',
    ),
    'separate': Task(
        _separate_bricks,
        _separate_sample,
        25.0,
        'the bricks must come apart while the lower one is in the air (5 cm or more): one hand has to hold '
        'it against the pull of the other; pulled up by the upper one alone, the stack comes along.',
    ),
    'unplug': Task(
        _unplug_bricks,
        _unplug_sample,
        20.0,
        'the plate is loose and light: pulled by the brick it comes along, if no other hand holds it down.',
    ),
    'bridge': Task(
        _bridge_bricks,
        _bridge_sample,
        30.0,
        'the studs of the white tower overhang its foot: pressed there it tips over, if no other hand '
        'steadies it. (The blue tower stands upright under the press: one hand does for that.)',
    ),
    'build': Task(
        _build_bricks,
        _build_sample,
        110.0,
        'neither arm reaches both plates, and at least one brick lies where only the arm of the other plate '
        'reaches.',
    ),
    'join': Task(
        _join_bricks,
        _join_sample,
        20.0,
        'the bricks must snap together while the lower one is in the air (5 cm or more), before the pair is '
        'laid down: one hand has to hold it against the press of the other, and a single gripper cannot be '
        'on both bricks at once.',
    ),
}
