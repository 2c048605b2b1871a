"""Whether the state in which a late chunk begins is foreseen as it comes.

python -m pytest tests/test_foresight.py
"""

import json

import numpy as np
import pytest
import torch

import data
import episode
from episode import COMMAND, GRIPPER, POSITION, ROTVEC, STATE_NAMES
from vla import grounding
from vla.foresight import UNITS, Foresight, columns_of
from vla.processor import Processor, hand_columns, tool_frames

CAMERAS = ('overhead', 'left/wrist', 'right/wrist')
FRAMES = (0, 1, 2)
HANDS = hand_columns(STATE_NAMES)
COLUMNS = columns_of(STATE_NAMES)
WHERE = np.arange(COMMAND.start, COMMAND.stop)
DELAY = 3


def commands(rng, *shape):
    """Poses near each other, top-down but for a few degrees, hands open or shut."""
    made = np.zeros((*shape, 15))
    made[..., POSITION] = rng.uniform([0.25, -0.1, 0.02], [0.45, 0.1, 0.15], (*shape, 2, 3))
    made[..., ROTVEC] = rng.normal(0, 0.05, (*shape, 2, 3))
    made[..., ROTVEC[:, 2]] = rng.uniform(-1, 1, (*shape, 2))
    made[..., GRIPPER] = np.where(rng.random((*shape, 2)) < 0.5, -0.02, 0.064)
    return made.astype(np.float32)


def states_of(commands, errors, openings):
    """States (n, C) of hands that are so far from what they are told: (n, 2, 6), (n, 2)."""
    rows = []
    for command, error, opening in zip(commands, errors, openings):
        told = episode.quat_from_rotvec(command[ROTVEC])
        turned = episode.quat_mul(episode.quat_from_rotvec(error[:, 3:]), told)
        obs = dict(
            joint_pos=np.zeros(15),
            joint_vel=np.zeros(15),
            gripper=opening,
            tool_pos=command[POSITION] + error[:, :3],
            tool_quat=turned,
            tool_vel=np.zeros((2, 3)),
            tool_command=command,
        )
        rows.append(episode.state_vector(obs))
    return np.stack(rows)


def lagging_episode(seed, rows=40):
    """Hands that keep 0.4 of each way to go, and shut on a brick of 31 mm within a step."""
    rng = np.random.default_rng(seed)
    made = np.zeros((rows, 15), np.float32)
    made[:, POSITION] = np.cumsum(rng.normal(0, 0.006, (rows, 2, 3)), 0) + [0.3, 0, 0.1]
    made[:, ROTVEC[:, 2]] = np.cumsum(rng.normal(0, 0.04, (rows, 2)), 0)
    shut = rng.random((rows, 2)) < 0.5
    made[:, GRIPPER] = np.where(shut, -0.02, 0.064)
    errors = np.zeros((rows, 2, 6))
    for t in range(1, rows):
        moved = made[t] - made[t - 1]
        way = np.concatenate([moved[POSITION], moved[ROTVEC]], -1)
        errors[t] = 0.4 * (errors[t - 1] - way)
    return states_of(made, errors, np.where(shut, 0.031, 0.064))


def foreseen(foresight, states, ahead):
    """What is foreseen of the last states of an episode from those so many rows before them."""
    n = len(states) - ahead
    under_way = np.stack([states[1 + t : 1 + t + n, COMMAND] for t in range(ahead)], 1)
    return foresight.states(states[:n], under_way)[:, -1], states[ahead:]


def test_hands_that_track_perfectly_are_where_their_commands_lead():
    rng = np.random.default_rng(0)
    still = np.zeros((5, 2, 6))
    state = states_of(commands(rng, 5), still, np.full((5, 2), 0.064))
    under_way = commands(rng, 5, DELAY)
    path = Foresight(COLUMNS, WHERE).states(state, under_way)
    assert path.shape == (5, 1 + DELAY, len(STATE_NAMES)) and np.array_equal(path[:, 0], state)
    for t in range(DELAY):
        then = states_of(under_way[:, t], still, np.full((5, 2), 0.064))
        moved = np.concatenate([*COLUMNS.error, *COLUMNS.position, *COLUMNS.quaternion])
        assert np.allclose(path[:, 1 + t, moved], then[:, moved], atol=1e-6)
        assert np.array_equal(path[:, 1 + t, COMMAND], under_way[:, t])
    assert np.array_equal(Foresight(COLUMNS, WHERE).shut(path[:, 1:]), under_way[..., GRIPPER] < 0)


def test_what_is_not_fitted_keeps_its_tracking_error():
    rng = np.random.default_rng(1)
    errors = rng.normal(0, 0.01, (4, 2, 6))
    state = states_of(commands(rng, 4), errors, np.full((4, 2), 0.031))
    under_way = commands(rng, 4, 1)
    then = Foresight(COLUMNS, WHERE).states(state, under_way)[:, 1]
    expected = states_of(under_way[:, 0], errors, np.full((4, 2), 0.031))
    moved = np.concatenate([*COLUMNS.error, *COLUMNS.position, *COLUMNS.opening])
    assert np.allclose(then[:, moved], expected[:, moved], atol=1e-6)


@pytest.fixture(scope='module')
def fitted():
    foresight = Foresight(COLUMNS, WHERE)
    foresight.fit([lagging_episode(seed) for seed in range(60)])
    return foresight


def test_the_lag_of_hands_and_how_they_close_are_learnt_from_what_they_did(fitted):
    plain = Foresight(COLUMNS, WHERE)
    there, expected = foreseen(fitted, lagging_episode(1000), DELAY)
    off = np.abs((there - expected)[:, COLUMNS.position]).mean()
    assert fitted.off_m([lagging_episode(1000)], DELAY) == pytest.approx(off, rel=1e-4)
    for ahead in (1, DELAY):
        errors = []
        for foresight in (plain, fitted):
            there, expected = foreseen(foresight, lagging_episode(1000), ahead)
            off = there - expected
            errors.append([np.abs(off[:, c]).mean() for c in (COLUMNS.position, COLUMNS.opening)])
        (tool, opening), (tool_fitted, opening_fitted) = errors
        assert tool > 0.002 and tool_fitted < 0.25 * tool, (ahead, errors)
        assert opening > 0.01 and opening_fitted < 0.15 * opening, (ahead, errors)


def test_what_was_learnt_goes_through_json_bit_for_bit(fitted):
    weights = json.loads(json.dumps(fitted.weights()))
    again = Foresight(COLUMNS, WHERE, weights)
    states = lagging_episode(7)
    assert np.array_equal(foreseen(again, states, 2)[0], foreseen(fitted, states, 2)[0])
    assert again.weights() == fitted.weights()
    other = Foresight(COLUMNS, WHERE)
    other.fit([lagging_episode(seed) for seed in range(60)])
    assert other.weights() == fitted.weights()  # a run that starts over learns the same
    with pytest.raises(ValueError, match='no episode has more than 3 rows'):
        other.fit([states[:3]])


def test_a_robot_that_measures_less_has_no_columns_and_is_told_so():
    assert columns_of(STATE_NAMES[1:]) is not None  # the spine does not matter
    assert columns_of([name for name in STATE_NAMES if name != 'left/tool_vz']) is None
    assert len(UNITS) == sum(part.shape[1] for part in COLUMNS[:3])


# -----------------------------------------------------------------------------
# the scene


def seen_by(head, bricks, hands):
    """What a SceneHead says that sees all bricks (B, n, 4) of the torso frame as they are."""
    cameras = [bricks / head.units[0]]
    said = [torch.ones_like(bricks[..., :1])]
    for hand in (0, 1):
        poses = grounding.in_frame(bricks, hands[:, hand, None])
        near = (poses[..., :2].abs() < grounding.RANGE_M).all(-1, keepdim=True)
        cameras.append(poses / head.units[1 + hand])
        said.append(2.0 * near - 1)
    return torch.cat([torch.stack(cameras, 1), torch.stack(said, 1)], -1)


def poses(*rows):
    return torch.tensor([[*row] for row in rows])


# Brick 0 is between the fingers of the left hand, brick 1 lies under the way of the right one.
BRICKS = poses((0.3, 0.1, 0.05, 0.2), (0.4, -0.1, 0.01, -0.3))
START = poses((0.32, 0.1, 0.05, 0.1), (0.3, -0.2, 0.1, 0.0))
END = poses((0.35, 0.16, 0.12, 0.7), (0.4, -0.12, 0.06, -0.3))


@pytest.mark.parametrize('shut', [True, False])
def test_bricks_stay_but_for_one_that_shut_fingers_carry(shut):
    head = grounding.SceneHead(FRAMES, 2, 8)
    middle = (START + END) / 2
    path = torch.stack([START, middle, END])[None]  # (1, 3, 2, 4)
    closed = torch.tensor([shut, False]).expand(1, 3, 2)
    expected = BRICKS.clone()
    if shut:
        carried = grounding.in_frame(BRICKS[:1], START[0])
        expected[:1] = grounding.out_of_frame(carried, END[0])
    then = head.foresee(seen_by(head, BRICKS[None], path[:, 0]), path, closed)
    true = seen_by(head, expected[None], path[:, -1])
    assert torch.equal(then[..., 4] > 0, true[..., 4] > 0)
    assert then[0, 2, 1, 4] > 0  # it has come into the right hand's range
    assert torch.allclose(then[..., :4], true[..., :4], atol=1e-4)
    assert (expected != BRICKS).any() == shut


def test_fingers_that_shut_on_the_way_carry_from_then_on():
    head = grounding.SceneHead(FRAMES, 2, 8)
    lifted = START + torch.tensor([0.0, 0, 0.05, 0])
    path = torch.stack([START, START, lifted])[None]
    closed = torch.tensor([[[False, False], [True, False], [True, False]]])
    expected = BRICKS + poses((0, 0, 0.05, 0), (0, 0, 0, 0))
    then = head.foresee(seen_by(head, BRICKS[None], path[:, 0]), path, closed)
    true = seen_by(head, expected[None], path[:, -1])
    assert torch.allclose(then[..., :4], true[..., :4], atol=1e-4)


def test_nothing_changes_where_no_hand_moves():
    head = grounding.SceneHead(FRAMES, 2, 8)
    seen = torch.randn(2, 3, 2, 5)
    path = torch.stack([torch.stack([START, END, END]), torch.stack([START, START, START])])
    then = head.foresee(seen, path, torch.ones(2, 3, 2, dtype=torch.bool))
    assert torch.equal(then[1], seen[1]) and not torch.equal(then[0], seen[0])


def test_a_brick_that_is_not_there_comes_into_no_range():
    head = grounding.SceneHead(FRAMES, 2, 8)
    path = torch.stack([START, END])[None]
    seen = seen_by(head, BRICKS[None], path[:, 0])
    seen[:, :, 1, 4] = -1  # the right hand goes over what nobody sees
    then = head.foresee(seen, path, torch.zeros(1, 2, 2, dtype=torch.bool))
    assert (then[:, :, 1, 4] < 0).all() and then[0, 0, 0, 4] > 0


def test_a_brick_that_is_not_there_keeps_none_from_being_carried():
    head = grounding.SceneHead(FRAMES, 3, 8)
    path = torch.stack([START, END])[None]
    bricks = torch.cat([BRICKS, BRICKS[:1]])  # a third pose, nobody's, in the middle of the hand
    bricks[2, :3] = START[0, :3]
    seen = seen_by(head, bricks[None], path[:, 0])
    seen[:, :, 2, 4] = -1
    shut = torch.ones(1, 2, 2, dtype=torch.bool)
    without = grounding.SceneHead(FRAMES, 2, 8)
    expected = without.foresee(seen[:, :, :2], path, shut)
    assert torch.allclose(head.foresee(seen, path, shut)[:, :, :2], expected)
    assert not torch.allclose(expected[:, 0], seen[:, 0, :2])  # one is carried


# -----------------------------------------------------------------------------
# batches


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('episodes')
    episode.write_synthetic_episodes(folder, 8, CAMERAS, 16, kicks=0.2)
    return folder


@pytest.fixture(scope='module')
def processor(folder):
    with open('assets/tokenizer.json') as f:
        text = f.read()
    processor = Processor(CAMERAS, 16, ('command/*', '*/gripper'), ('*',), 4, 10, text)
    dataset = data.Dataset(folder, processor)
    processor.fit(dataset)
    processor.learn_hands(dataset)
    return processor


def test_late_chunks_begin_where_the_commands_lead(folder, processor):
    late = data.Dataset(folder, processor, delay=DELAY)
    batch = late.batch(2, 32, seed=5)
    rows = late.sample_rows(2, 32, seed=5)
    begins = late._late(rows, 5, 2)
    assert sorted(set(begins - rows)) == list(range(DELAY + 1))
    state = late.read('state', rows)
    assert torch.equal(batch['hand_path'][:, 0], torch.from_numpy(tool_frames(state, HANDS)))
    assert torch.equal(batch['hand_path'][:, -1], batch['tool'])
    in_force = late.commands(begins)
    expected = processor.normalise_actions(late.chunk(begins), in_force)
    assert np.allclose(batch['actions'].numpy(), expected, atol=1e-5)
    mean, std = processor.stats['state_mean'][:15], processor.stats['state_std'][:15]
    assert np.allclose(batch['state'][:, :15], (in_force - mean) / std, atol=1e-4)
    assert torch.equal(batch['action_mask'], torch.from_numpy(late.chunk_mask(begins)))
    assert not np.array_equal(late.chunk_mask(begins), late.chunk_mask(rows))
    now = begins == rows
    assert (batch['hand_path'][now] == batch['hand_path'][now, :1]).all()
    assert (batch['hand_path'][~now] != batch['hand_path'][~now, :1]).any(-1).any(-1).any(-1).all()
    plain = data.Dataset(folder, processor).batch(2, 32, seed=5)
    assert 'hand_path' not in plain
    for name in ('images', 'scene', 'input_ids', 'noise'):  # pictures and words are of the first
        assert torch.equal(batch[name].nan_to_num(), plain[name].nan_to_num())
    for name in ('state', 'actions'):
        assert torch.equal(batch[name][now], plain[name][now])


def test_ranks_share_a_batch_of_late_chunks_out(folder, processor):
    late = data.Dataset(folder, processor, delay=DELAY)
    whole = late.batch(4, 16, seed=1)
    halves = [late.batch(4, 16, rank, 2, seed=1) for rank in (0, 1)]
    for name in ('hand_path', 'shut', 'state', 'actions', 'action_mask'):
        assert torch.equal(torch.cat([half[name] for half in halves]), whole[name]), name


def test_a_live_observation_is_moved_on_as_a_recorded_one(folder, processor):
    dataset = data.Dataset(folder, processor, delay=DELAY)
    rows = np.array([3])
    under_way = dataset.commands(rows + 1 + np.arange(DELAY))[None]
    live = processor.encode([dataset.row(3)], under_way=under_way)
    path = dataset._states_on_the_way(rows, rows + DELAY, dataset.read('state', rows))
    recorded = processor.hand_path(path)
    assert torch.equal(live['hand_path'], recorded['hand_path'])
    assert torch.equal(live['shut'], recorded['shut'])
    assert np.array_equal(live['state'], processor.normalise_state(path[:, -1]))
    again = Processor.from_dict(json.loads(json.dumps(processor.to_dict())))
    assert torch.equal(
        again.encode([dataset.row(3)], under_way=under_way)['hand_path'], live['hand_path']
    )
    broken = processor.to_dict()
    good = processor.foresight.weights()
    endless = dict(good, **{'net.0.bias': [np.inf] * len(good['net.0.bias'])})
    for weights in ({'net.0.bias': [1.0]}, dict(good, **{'net.0.bias': 'no'}), endless):
        broken['foresight'] = weights
        with pytest.raises(ValueError, match='foresight holds no weights of its network'):
            Processor.from_dict(broken)
