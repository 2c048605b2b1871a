"""What an episode keeps of the truth: training targets, facts to ask about, the rows of its file.

    rows.append(labels.episode_row(world.truth(), obs, info, choice))     # before each step
    arrays, header = labels.pack_episode(world.truth(), world.metadata(), result, rows)

All of it is read off sim/truth.py's snapshot. Loose bricks are numbered by their colour
(episode.COLOURS). Two targets ground words and pictures in the scene: `scene` says where every
loose brick is, `referents` says what the words of a goal refer to. `facts` are what questions are
made of; `spans` are the runs of rows in which they hold.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from episode import COLOURS, state_vector
from sim.judge import goal_at_work
from sim.kinematics import wrap, yaw_of
from sim.tasks import HANDS, Goal
from sim.truth import Truth

Fact = tuple[str, str, str]  # kind, subject, answer
# A brick is the leftmost or the nearest one only where it is so by this much.
LEFT_MARGIN_M = 0.03
NEAR_MARGIN_M = 0.015


# -- training targets ------------------------------------------------------------------------------
def scene(truth: Truth) -> np.ndarray:
    """What pictures alone tell: where every loose brick is.

    Returns:
        (3, n, 4) float32: in the frame of the torso, of the left and of the right tool, which are
        the frames of what carries a camera, of the brick of each of the n COLOURS the position m,
        and the yaw rad, modulo pi, by which that frame has to turn for a hand to grasp the brick;
        nan where no loose brick has that colour. Of several of one colour, which only plans from
        files have, it is the first.
    """
    frames = [(np.zeros(3), np.eye(3))]
    frames += [truth.tool_pose(hand) for hand in HANDS]
    seen = np.full((len(frames), len(COLOURS), 4), np.nan, np.float32)
    for name in truth.movable:
        number = truth.number(name)
        if not np.isnan(seen[0, number, 0]):
            continue
        pos, R = truth.brick_pose(name)
        for row, (at, Rf) in zip(seen, frames):
            yaw = wrap(yaw_of(R) - np.pi / 2 - yaw_of(Rf), np.pi)
            row[number] = [*(Rf.T @ (pos - at)), yaw]
    return seen


def goals_at_work(truth: Truth) -> list[Goal]:
    """The goal at work of each plan that could be asked for."""
    return [goal_at_work(truth, plan) for plan, _ in truth.askable]


def referents(truth: Truth, goals: Sequence[Goal]) -> np.ndarray:
    """What the words of each goal refer to now.

    Args:
        truth: The state.
        goals: One for each plan that could be asked for, see goals_at_work.

    Returns:
        (G, 8) float32. Columns 0 and 1: the bricks, by number, that the left and the right hand
        have to fetch (an idle hand: the other's). 2: the brick that it goes on, len(COLOURS) where
        that is fixed. 3: the hand that presses, 0 for left. 4 to 7: the place, as the pose (x, y,
        z, yaw) of the upper brick, m and rad, in the frame of the lower one, or of the torso where
        that is fixed. To take bricks apart, each hand fetches one, and the upper one goes on the
        table, which is fixed.
    """
    rows = []
    for goal in goals:
        place, yaw = truth.goal_pose(goal)
        base = len(COLOURS)
        if not truth.brick(goal.lower).fixed and not goal.apart:
            base = truth.number(goal.lower)
            pos, R = truth.brick_pose(goal.lower)
            place = R.T @ (place - pos)
            yaw = yaw - yaw_of(R)
        fetched = [goal.lower if hand == goal.holder else goal.upper for hand in HANDS]
        left, right = map(truth.number, fetched)
        rows.append([left, right, base, HANDS.index(goal.hand), *place, wrap(yaw, np.pi)])
    return np.array(rows, np.float32)


# -- facts to ask about ----------------------------------------------------------------------------
def facts(truth: Truth, metrics: Mapping) -> list[Fact]:
    """All facts that hold at this instant, as (kind, subject, answer).

    Args:
        truth: The state.
        metrics: What the judge has noted so far: what went wrong is no property of the state.
    """
    below = _what_is_below(truth)
    found: list[Fact] = []
    for name in truth.movable:
        hand = truth.held_by(name)
        if hand:
            place = f'{hand} hand'
        elif name in below:
            place = f'on {below[name]}'
        else:
            place = 'table left' if truth.brick_pose(name)[0][1] > 0 else 'table right'
        found.append(('where', name, place))
        found.append(('hand', name, hand or 'none'))
        found.append(('joined', name, below.get(name, 'nothing')))
    found += _places(truth)
    found += _outermost(truth, 'left', axis=1, sign=1, margin_m=LEFT_MARGIN_M)
    found += _outermost(truth, 'near', axis=0, sign=-1, margin_m=NEAR_MARGIN_M)
    if truth.impossible is None:
        found.append(('arm', '', truth.goal.hand))
    found.append(('count', '', str(len(below))))
    found.append(('wrong', '', _what_went_wrong(metrics)))
    return found


def _what_is_below(truth: Truth) -> dict[str, str]:
    """{brick: what it sits on}, in words; a bridge sits on two bricks, on a part of each."""
    below: dict[str, set[str]] = {}
    for link in truth.links:
        if not link.loose:
            below.setdefault(link.upper, set()).add(link.lower)
    return {name: ' and '.join(sorted(lower)) for name, lower in below.items()}


def _places(truth: Truth) -> list[Fact]:
    """On which named cell of a fixed plate, or part of a movable brick, bricks sit."""
    places: dict[tuple[str, str], set[str]] = {}
    for plan, _ in truth.askable:
        for goal in plan.chain:
            if goal.where and truth.joined(goal):
                kind = 'part' if goal.lower in truth.movable else 'cell'
                places.setdefault((kind, goal.upper), set()).add(goal.where)
    return [(kind, name, ' and '.join(sorted(words))) for (kind, name), words in places.items()]


def _outermost(truth: Truth, kind: str, axis: int, sign: int, margin_m: float) -> list[Fact]:
    """The brick that is furthest along an axis, where it is so by the margin."""
    along = {name: sign * truth.brick_pose(name)[0][axis] for name in truth.movable}
    order = sorted(along, key=along.__getitem__)
    if len(order) < 2 or abs(along[order[-1]] - along[order[-2]]) <= margin_m:
        return []
    return [(kind, '', order[-1])]


def _what_went_wrong(metrics: Mapping) -> str:
    if metrics['drops']:
        return 'brick fell'
    if metrics.get('broken', 0):  # it is not counted before the first step
        return 'joint broke'
    return 'nothing'


def spans(rows: Sequence[Sequence]) -> list[list]:
    """Facts of every row -> [[kind, subject, answer, first row, row after the last]], sorted."""
    runs = []
    open_runs: dict[tuple, int] = {}
    for t, found in enumerate([*rows, []]):
        ended = [fact for fact in open_runs if fact not in found]
        for fact in ended:
            runs.append([*fact, open_runs.pop(fact), t])
        for fact in map(tuple, found):
            open_runs.setdefault(fact, t)
    return sorted(runs)


# -- rows of an episode file -----------------------------------------------------------------------
UNKNOWN = -1  # referents of words that refer to nothing in the scene
NOT_ARRAYS = ('subtask', 'facts', 'referents')  # keys of a row that go into the header


def episode_row(truth: Truth, obs: Mapping, info: Mapping, choice: Mapping) -> dict:
    """What an episode file keeps of one step, taken before the step.

    Args:
        truth: The state before the step.
        obs: The observation of that state.
        info: What the world says of that state.
        choice: What the policy answers, see sim/policies.py.

    Returns:
        One row. The stepping loop adds `joint_action` after the step.
    """
    goals = goals_at_work(truth)
    table = referents(truth, goals)
    if truth.impossible is not None:  # Its words refer to something that is not there.
        table = np.vstack([np.full_like(table[:1], UNKNOWN), table])
    row = dict(
        time=obs['time'],
        state=state_vector(obs),
        tool_action=choice['action'],
        tool_executed=choice['executed'],
        kicked=choice['kicked'],
        subtask=choice['subtask'],
        qpos=truth.qpos,
        qvel=truth.qvel,
        ctrl=truth.ctrl,
        connections=sum(not link.loose for link in truth.links),
        phase=info['phase'],
        goal=info['goal'],
        scene=scene(truth).ravel(),
        facts=facts(truth, info['metrics']),
        referents=(goals, table),
    )
    pictures = {key: value for key, value in obs.items() if key.startswith('image/')}
    return row | pictures


def pack_episode(truth: Truth, metadata: dict, result: Mapping, rows: Sequence[Mapping]) -> tuple:
    """Rows of one episode -> arrays and header of its file.

    Args:
        truth: Any state of the episode, for its task and words.
        metadata: World.metadata().
        result: seed, success and metrics of the episode.
        rows: From episode_row, `joint_action` added.

    Returns:
        ({name: array}, header), as episode.write_episode takes them.
    """
    subtasks = sorted({row['subtask'] for row in rows})
    keys = [key for key in rows[0] if key not in NOT_ARRAYS]
    arrays = {key: np.stack([row[key] for row in rows]) for key in keys}
    arrays['subtask_id'] = np.array([subtasks.index(row['subtask']) for row in rows])
    texts = [text for _, text in truth.askable]
    frames = list(truth.frames)
    if truth.impossible is not None:
        texts.insert(0, truth.instruction)
        frames.insert(0, truth.impossible)
    header = dict(
        seed=result['seed'],
        success=result['success'],
        metrics=result['metrics'],
        qa=spans([row['facts'] for row in rows]),
        subtasks=subtasks,
        task=truth.task,
        instruction=truth.instruction,
        askable=texts,
        goals=frames,
        referents=_referents_by_row(rows),
        control_hz=truth.control_hz,
        world=metadata,
    )
    return arrays, header


def _referents_by_row(rows: Sequence[Mapping]) -> list[list]:
    """[[first row, table]]: what words refer to changes where a plan goes on to its next goal."""
    found = []
    before = None
    for t, row in enumerate(rows):
        goals, table = row['referents']
        if goals != before:
            found.append([t, table.tolist()])
        before = goals
    return found
