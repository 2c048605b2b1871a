"""The task that a plan makes: its bricks, where they lie at first, the goals and words for them.

    task = plan_task('assets/plans/arch.yaml', scale=2.0)       # a tasks.Task, as World takes it

The plan's x and y are those of the world. Its layer 0 goes onto a green base plate that is screwed
to the table where both arms reach.
"""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np

from sim.bricks import STUD_PITCH_M, Brick
from sim.plan import PLATE, Structure, read_plan
from sim.planner import Step, order, undo
from sim.tasks import HANDS, RGBA, Goal, Task

MIDDLE_X_M = 0.33  # A small plate's middle.
NEAR_EDGE_M = 0.25  # no plate comes nearer to the robot
PLATE_MARGIN = 1  # studs around layer 0
SECONDS_PER_BRICK = 20.0
SPARE_SECONDS = 15.0
# Where bricks are scattered, on either side: x, and y from the middle outwards
SCATTER_X_M = (0.20, 0.45)
SCATTER_Y_M = (0.13, 0.37)
BESIDE_PLATE_M = 0.05  # a brick's middle is this far from the plate, and half its own size
ROOM_M = 0.014  # between the circles around two bricks: a finger
SHARED_Y_M = 0.02  # a seat this near to the middle is for the hand on whose side the brick lies
SPREAD_RAD = np.radians(30)
JOIN_REACH_M = (0.24, 0.36), 0.27  # x, and y up to there: where a hand can press with any yaw
PLACE_M = 0.085  # between rows where bricks are laid down, for a hand between them
LIMITS_X_M = (0.18, 0.46)  # Hands can fetch a brick from here.
LIMITS_Y_M = 0.38


def plan_task(
    path: str | Path,
    scale: float,
    insertion_force_n: float = 1.0,
    pull_force_n: float = 2.0,
    initial_blocks: bool = False,
    reverse: bool = False,
) -> Task:
    """The task of building the plan in a file.

    initial_blocks: bricks lie where the file says instead of where the seed does. reverse: the
    structure stands there, and is to be taken apart.

    Raises:
        FileNotFoundError, ValueError: the file is no plan, cannot be built, or bricks are out of
            reach; one line with the reason.
    """
    structure = read_plan(path)
    plate = base_plate(structure, scale)
    bricks = (plate, *(Brick(p.name, p.studs, RGBA[p.colour]) for p in structure.parts))
    if initial_blocks and structure.initial is None:
        raise ValueError(f'{path}: initial_blocks: the file does not say where bricks lie at first')
    if reverse:
        sample = functools.partial(_sample_undo, structure, undo(structure, scale), plate)
    else:
        steps = order(structure, scale, insertion_force_n, pull_force_n)
        sample = functools.partial(_sample, structure, steps, plate, initial_blocks)
    seconds = SPARE_SECONDS + SECONDS_PER_BRICK * len(structure.parts)
    why = 'each arm fetches on its own side, and steadies or hands over where the plan needs it.'
    return Task(lambda scale: bricks, sample, seconds, why)


def base_plate(structure: Structure, scale: float) -> Brick:
    """The plate under layer 0, where on the table both arms reach all of it."""
    low, high = _base(structure)
    size = high - low + 2 * PLATE_MARGIN
    x = max(MIDDLE_X_M, NEAR_EDGE_M + size[0] / 2 * scale * STUD_PITCH_M)
    studs = tuple(size.tolist())
    return Brick(PLATE, studs, RGBA['green'], plate=True, fixed=True, at_m=(float(x), 0.0))


def _base(structure):
    base = [part for part in structure.parts if part.layer == 0]
    low = np.min([part.corner for part in base], axis=0)
    high = np.max([np.add(part.corner, part.size) for part in base], axis=0)
    return low, high


def goals_of(structure: Structure, steps: list[Step], hands: dict, givers: dict) -> Goal | None:
    """The chain of goals of these steps.

    hands: {part: hand that presses it on}. givers: {part: hand that brings it first}.
    """
    low, high = _base(structure)
    middle = {PLATE: (low + high) / 2}
    turns = {PLATE: 0}
    for part in structure.parts:
        middle[part.name] = part.middle
        turns[part.name] = part.turns
    pairs = []
    for step in steps:
        pairs += [(lower, step.part.name, step) for lower in step.lowers]
        pairs += [(lower, upper, step) for lower, upper in step.also]
    goal = None
    for lower, upper, step in reversed(pairs):
        x, y = middle[upper] - middle[lower]
        cell = (float(y), float(-x)) if turns[lower] else (float(x), float(y))
        hand = hands[step.part.name]
        giver = givers.get(upper)
        quarter = (turns[upper] - turns[lower]) % 4
        goal = Goal(
            upper, lower, cell, quarter, hand, giver=giver, where=lower, then=goal, grip=step.grip
        )
    return goal


def _sample(structure, steps, plate, initial_blocks, rng, scale):
    """-> poses of the bricks, [(chain of goals, instruction)]."""
    pitch = scale * STUD_PITCH_M
    low, high = _base(structure)
    seat_y = {step.part.name: (step.part.middle - (low + high) / 2)[1] * pitch for step in steps}
    group_of = {}
    for step in steps:
        for name in step.group:
            group_of.setdefault(name, step)
    hands = {}
    lean = rng.permutation(HANDS).tolist()
    for step in steps[::-1]:  # The hand that places a group joins it, too.
        name = step.part.name
        y = seat_y[name]
        if step.table:
            whole = next(s for s in steps if name in s.group and not s.table)
            hands[name] = hands[whole.part.name]
        elif abs(y) > SHARED_Y_M:
            hands[name] = HANDS[0] if y > 0 else HANDS[1]
        else:
            hands[name] = lean[0]
            lean = lean[::-1]
    side = {}
    for step in steps:
        for name in step.group:
            side.setdefault(name, hands[step.part.name])
    if initial_blocks:
        poses = dict(structure.initial)
        _check_reach(structure, plate, poses, pitch)
        side = {name: HANDS[0] if y > 0 else HANDS[1] for name, (_, y, _) in poses.items()}
    else:
        poses = _scatter(structure, steps, plate, side, rng, pitch)
    givers = {name: side[name] for name in hands if side[name] != hands[name]}
    goal = goals_of(structure, steps, hands, givers)
    words = [f'{g.upper} on {g.lower}' for g in goal.chain]
    text = str(rng.choice(BUILD_TEMPLATES)).format(plan=' , '.join(words))
    return poses, [(goal, text)]


BUILD_TEMPLATES = (
    'build : {plan}',
    'build this : {plan}',
    'the plan : {plan}',
    'follow the plan : {plan}',
    'assemble {plan}',
    'put together {plan}',
    'step by step : {plan}',
    'with both hands build {plan}',
)
UNDO_TEMPLATES = (
    'take it apart : {plan}',
    'undo all of it : {plan}',
    'clear the plate : {plan}',
    'lay every brick on the table : {plan}',
)


def _sample_undo(structure, steps, plate, rng, scale):
    """-> the standing structure {brick: chain of its links}, [(chain of goals, instruction)]."""
    pitch = scale * STUD_PITCH_M
    low, high = _base(structure)
    hands = {}
    lean = rng.permutation(HANDS).tolist()
    vias = {}
    laid = {hand: [] for hand in HANDS}  # (x, y, half its length) m
    for step in steps:
        y = (step.part.middle - (low + high) / 2)[1] * pitch
        wanted = lean[0] if abs(y) <= SHARED_Y_M else HANDS[int(y < 0)]
        other = HANDS[1 - HANDS.index(wanted)]
        lean = lean[::-1]
        even = len(laid[wanted]) <= len(laid[other]) + 2
        half_m = max(step.part.studs) / 2 * pitch
        for hand in (wanted, other) if even else (other, wanted):
            place = _free_place(laid[hand], half_m, plate, hand, pitch)
            if place:
                break
        else:
            raise ValueError(f'{structure.name}: no room on the table for {len(steps)} bricks')
        laid[hand].append((*place, half_m))
        hands[step.part.name] = hand
        vias[step.part.name] = place
    poses = {}
    for step in steps[::-1]:
        poses[step.part.name] = goals_of(structure, [step], hands, {})
    goal = None
    for step in reversed(steps):
        first = poses[step.part.name]
        grip = replace(first.grip, via=vias[step.part.name])
        goal = replace(first, apart=True, then=goal, grip=grip)
    words = [f'{g.upper} off {g.lower}' for g in goal.chain]
    text = str(rng.choice(UNDO_TEMPLATES)).format(plan=' , '.join(words))
    return poses, [(goal, text)]


def _free_place(laid, half_m, plate, hand, pitch):
    """A place (x, y) m where the hand lays a brick down, the farthest from the plate; or None.

    laid: (x, y, half its length) m of what lies there by then, the long side away from the robot.
    """
    sign = 1 if hand == HANDS[0] else -1
    inner = max(SCATTER_Y_M[0], plate.studs[1] / 2 * pitch + BESIDE_PLATE_M) + 0.01
    for row in np.arange(SCATTER_Y_M[1] - 0.02, inner - 1e-6, -PLACE_M):
        y = float(sign * row)
        for x in np.arange(SCATTER_X_M[0] + 0.03, SCATTER_X_M[1], PLACE_M / 2).tolist():
            free = all(
                abs(x - u) >= half_m + half + ROOM_M or abs(y - v) >= PLACE_M - 1e-6
                for u, v, half in laid
            )
            if free:
                return x, y
    return None


def _check_reach(structure, plate, poses, pitch):
    half = np.array(plate.studs) / 2 * pitch
    for name, (x, y, _) in poses.items():
        beside = np.maximum(np.abs(np.array([x, y]) - plate.at_m) - half, 0)
        if not LIMITS_X_M[0] <= x <= LIMITS_X_M[1] or abs(y) > LIMITS_Y_M:
            raise ValueError(
                f'{structure.name}: initial_blocks: {name} lies at ({x:.3f}, {y:.3f}) m, out of '
                f'reach: expected x {LIMITS_X_M[0]} to {LIMITS_X_M[1]}, y within {LIMITS_Y_M}'
            )
        if np.hypot(*beside) < BESIDE_PLATE_M:
            raise ValueError(
                f'{structure.name}: initial_blocks: {name} lies at ({x:.3f}, {y:.3f}) m, where the '
                'base plate is: expected a place beside it'
            )


def _scatter(structure, steps, plate, side, rng, pitch):
    """{brick: (x, y, yaw)}, each on the side of its hand, with room for fingers all around.

    There is also room for what is joined onto it while it lies there. How it lies, a hand grasps it
    nearly straight.
    """
    around = {part.name: np.hypot(*part.size) / 2 * pitch for part in structure.parts}
    joined_on = set()
    for step in steps:
        if step.table:
            root = min(
                (structure.part(name) for name in _whole(steps, step.part.name).group),
                key=lambda part: part.layer,
            )
            off = np.linalg.norm(step.part.middle - root.middle) * pitch
            reach = off + np.hypot(*step.part.size) / 2 * pitch
            around[root.name] = max(around[root.name], reach)
            joined_on.add(root.name)
    half = np.array(plate.studs) / 2 * pitch
    inner = max(SCATTER_Y_M[0], half[1] + BESIDE_PLATE_M)
    for _ in range(200):
        poses = {}
        spots = []
        for step in steps[::-1]:
            for name in sorted(step.group, key=lambda n: -around[n]):
                if name in poses:
                    continue
                reach = JOIN_REACH_M if name in joined_on else (SCATTER_X_M, SCATTER_Y_M[1])
                spot = _free_spot(rng, spots, around[name], side[name], inner, reach)
                if spot is None:
                    break
                spots.append((*spot, around[name]))
                spread = SPREAD_RAD / 3 if name in joined_on else SPREAD_RAD
                poses[name] = (*spot, _lying(structure, steps, name, rng, spread))
        if len(poses) == len(structure.parts):
            return poses
    raise ValueError(
        f'{structure.name}: no room on the table for {len(structure.parts)} bricks: expected fewer'
    )


def _whole(steps, name):
    return next(step for step in steps if name in step.group and not step.table)


def _free_spot(rng, spots, size, side, inner, reach):
    sign = 1 if side == HANDS[0] else -1
    for _ in range(60):
        x = rng.uniform(*reach[0])
        y = sign * rng.uniform(inner, max(reach[1], inner + 0.02))
        if all(np.hypot(x - u, y - v) > size + r + ROOM_M for u, v, r in spots):
            return float(x), float(y)
    return None


def _lying(structure, steps, name, rng, spread):
    """Yaw, rad, of a brick on the table.

    It is that of its place in the plan, turned so that the hand grasps it nearly straight.
    """
    part = structure.part(name)
    own = [step for step in steps if step.part.name == name]
    along = own[0].grip.along if own else 1
    straight = np.pi / 2 if along == 1 else 0.0  # The brick's yaw when the hand is at rest.
    seated = part.turns * np.pi / 2
    turn = (straight - seated + np.pi / 2) % np.pi - np.pi / 2  # It is half a turn at most.
    return float(seated + turn + rng.uniform(-spread, spread))
