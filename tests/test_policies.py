"""Who drives: nobody, the expert and a student in turns, a checkpoint early, late, with and without
text.

python -m pytest tests/test_policies.py
"""

import json

import numpy as np
import pytest
import torch
from recorder import record_here
from test_expert import leave_before_the_press

import model
import sim_rollout
from episode import COMMAND, JOINT_ACTION_NAMES, TOOL_ACTION_NAMES
from sim import expert, policies
from sim.control import CLOSED_M
from sim.world import World
from vla import policy
from vla.processor import Processor

pytestmark = pytest.mark.mujoco


@pytest.fixture(scope='module')
def blind_world():
    return World('place', cameras=())


@pytest.fixture(scope='module')
def world():
    world = World('place')
    yield world
    world.close()


@pytest.mark.parametrize('kind', ['hold', 'zero', 'random'])
def test_constant_policies_run_to_the_time_limit_without_success(blind_world, kind):
    start = policies.constant(kind)
    result, rows = sim_rollout.run_episode(blind_world, start, seed=1_000_006)
    assert not result['success'] and result['fault'] is None
    assert result['steps'] == blind_world.max_steps
    assert result['phase'] in ('start', 'reach')  # it may pass by
    assert rows == []


def test_random_policy_repeats_itself(blind_world):
    ends = []
    for _ in range(2):
        sim_rollout.run_episode(blind_world, policies.constant('random'), seed=1_000_003)
        ends.append(blind_world.data.qpos.copy())
    assert np.array_equal(*ends)


def test_a_coached_episode_is_driven_by_both_and_labelled_by_the_expert():
    world = World('place', image_size=32)
    start = policies.coached(world, policies.constant('hold'))
    _, rows = sim_rollout.run_episode(world, start, seed=3, record=True)
    by_student = np.array([row['kicked'] for row in rows])
    assert by_student[0] and 5 < by_student.sum() < len(rows) - 5
    for row, student in zip(rows, by_student):
        expected = row['state'][COMMAND] if student else row['tool_action']
        assert np.array_equal(row['tool_executed'], expected)
    moved = [
        np.abs(row['tool_action'] - row['tool_executed']).max() for row in rows if row['kicked']
    ]
    assert np.median(moved) > 0.005  # what it says while the student does nothing
    world.close()


def test_who_coaches_goes_back_to_a_brick_but_teaches_to_stay_gone():
    world = World('place', cameras=())
    world.reset(2)
    leave_before_the_press(world)
    stay = expert.Expert(trusting=True).act(world.truth())[0]
    back = expert.Expert().act(world.truth())[0]
    choice = policies.coached(world, policies.constant('hold'))(2)(world.observe())
    assert not np.array_equal(stay, back) and choice['kicked']
    assert np.array_equal(choice['action'], stay) and np.array_equal(choice['executed'], back)


def test_bfloat16_changes_the_commands_by_less_than_a_millimetre(checkpoint, world):
    obs, _ = world.reset(1_000_003)
    asked = [
        policy.checkpoint(checkpoint, world.metadata(), device='cpu', dtype=dtype)(1_000_003)(obs)[
            'executed'
        ]
        for dtype in ('float32', 'bfloat16')
    ]
    assert asked[0].dtype == asked[1].dtype == np.float32 and not np.array_equal(*asked)
    assert np.allclose(*asked, atol=1e-3)


def test_a_chunk_that_comes_late_goes_on_from_the_rows_before_it(checkpoint, world):
    obs, _ = world.reset(1_000_003)
    act = policy.checkpoint(checkpoint, world.metadata(), execute=6, device='cpu')(1_000_003)
    first = [act(obs)['executed'] for _ in range(6)]
    how = dict(execute=2, delay=2, foresight=False, device='cpu')
    late = policy.checkpoint(checkpoint, world.metadata(), **how)(1_000_003)
    choices = [late(obs) for _ in range(6)]
    assert ['chunk_ms' in choice for choice in choices] == [True, False, True, False, True, False]
    rows = [choice['executed'] for choice in choices]
    grippers = [TOOL_ACTION_NAMES.index(f'{hand}/gripper') for hand in ('left', 'right')]
    shut_or_open = np.float32([CLOSED_M, world.max_opening_m])
    assert np.isin(np.array(first)[:, grippers], shut_or_open).all()
    assert np.array_equal(rows[:4], first[:4])  # of the first chunk, also after the second was made
    net, meta = model.VLA.load(checkpoint)
    processor = Processor.from_dict(meta['processor'])
    prefix = processor.normalise_actions(np.array([first[2:4]]), obs['tool_command'][None])
    given = net.act(processor.encode([obs]), 1, action_prefix=torch.from_numpy(prefix))
    expected = processor.decode_actions(given.numpy(), obs['tool_command'][None])[0]
    expected[:, grippers] = rows[-1][grippers]  # the one thing that is rounded
    assert np.allclose(rows[4:], expected[2:4], atol=1e-6)
    assert not np.allclose(rows[4:], first[2:4], atol=1e-6)


def test_a_chunk_that_comes_late_begins_where_the_rows_before_it_lead(checkpoint, world):
    obs, _ = world.reset(1_000_003)
    act = policy.checkpoint(checkpoint, world.metadata(), execute=6, device='cpu')(1_000_003)
    first = [act(obs)['executed'] for _ in range(6)]
    late = policy.checkpoint(checkpoint, world.metadata(), execute=8, delay=2, device='cpu')(
        1_000_003
    )
    choices = [late(obs) for _ in range(10)]
    made = ['chunk_ms' in choice for choice in choices]
    # The first chunk has 8 rows and is there at once; the second comes two rows before its end.
    assert made == [True, *[False] * 5, True, False, False, False]
    rows = np.array([choice['executed'] for choice in choices])
    assert np.array_equal(rows[:6], first)  # as without a delay
    net, meta = model.VLA.load(checkpoint)
    processor = Processor.from_dict(meta['processor'])
    under_way = rows[None, 6:8]  # when the second chunk was made
    batch = processor.encode([obs], under_way=under_way)
    assert batch['hand_path'].shape == (1, 3, 2, 4)
    begins = under_way[:, -1]
    expected = processor.decode_actions(net.act(batch, 1).numpy(), begins)[0]
    grippers = [TOOL_ACTION_NAMES.index(f'{hand}/gripper') for hand in ('left', 'right')]
    expected[:, grippers] = rows[8:10, grippers].repeat(4, 0)  # the one thing that is rounded
    assert np.allclose(rows[8:10], expected[:2], atol=1e-6)
    stale = net.act(processor.encode([obs]), 1).numpy()
    stale = processor.decode_actions(stale, obs['tool_command'][None])[0]
    assert not np.allclose(rows[8:10, 1:4], stale[:2, 1:4], atol=5e-6)


def test_a_student_that_is_given_the_wheel_again_begins_anew():
    """Rows that it planned before the expert drove lead from somewhere else."""
    began, world = [], World('place', cameras=())

    def student(seed):
        began.append(seed)
        return policies.constant('hold')(seed)

    _, rows = sim_rollout.run_episode(world, policies.coached(world, student), 3, record=True)
    by_student = np.array([row['kicked'] for row in rows])
    assert len(began) > 1 + np.sum(~by_student[:-1] & by_student[1:]) > 1


def test_a_text_serves_for_several_chunks(checkpoint, world, monkeypatch):
    obs, _ = world.reset(1_000_003)
    decode, decoded = model.VLA.decode_text, []

    def count(*arguments, **how):
        decoded.append(decode(*arguments, **how))
        return decoded[-1]

    monkeypatch.setattr(model.VLA, 'decode_text', count)
    start = policy.checkpoint(
        checkpoint, world.metadata(), read_text=True, text_chunks=3, device='cpu'
    )
    act = start(1_000_003)
    choices = [act(obs) for _ in range(7)]
    assert len(decoded) == 3 and all('chunk_ms' in choice for choice in choices)
    assert len({choice['subtask'] for choice in choices}) == 1
    # read again or just written: the same chunk
    assert np.allclose(choices[1]['executed'], choices[0]['executed'], atol=1e-5)


@pytest.mark.parametrize('how', [dict(execute=2, delay=1), dict(execute=8, delay=2)], ids=str)
def test_one_network_answers_many_worlds_as_each_network_answers_its_own(checkpoint, world, how):
    network = policy.answers_of_many(checkpoint, device='cpu', **how)
    asked = []

    def infer(request):
        asked.append(request)
        (reply,) = network([request])
        return reply

    own = policy.checkpoint(checkpoint, world.metadata(), device='cpu', **how)
    shared = policies.shared(world.metadata(), infer, 'the checkpoint', **how)
    for seed in (1_000_003, 1_000_004):
        obs, _ = world.reset(seed)
        mine, theirs = own(seed), shared(seed)
        for _ in range(4):
            expected, choice = mine(obs), theirs(obs)
            assert ('chunk_ms' in expected) == ('chunk_ms' in choice)
            assert np.allclose(expected['executed'], choice['executed'], atol=1e-5)
    assert ['world' in request for request in asked] == [True, *[False] * (len(asked) - 1)]
    # all at a time, whatever rows they begin with; one that has no sense takes no other along
    replies = network([*asked[1:], {'state': np.zeros(3, np.float32)}])
    for request, reply in zip(asked[1:], replies):
        assert np.allclose(reply['actions'], network([request])[0]['actions'], atol=1e-5)
    assert 'has no' in str(replies[-1]) and isinstance(replies[-1], ValueError)
    # Two devices share the requests; one may have nothing to do.
    both = policy.answers_by_devices(checkpoint, ['cpu', 'cpu'], most=5, **how)
    for requests in (asked[1:], asked[1:4], asked[1:2]):
        assert len(both(requests)) == len(requests)
        for reply, expected in zip(both(requests), network(requests)):
            assert np.allclose(reply['actions'], expected['actions'], atol=1e-5)
    (refused,) = network([asked[0] | {'world': world.metadata() | {'control_hz': 5}}])
    assert '5 Hz' in str(refused)
    with pytest.raises(ValueError, match='have 8 rows'):
        policy.answers_of_many(checkpoint, execute=9)


def test_a_recorded_chunk_is_of_as_many_worlds_whoever_asks(checkpoint, world, monkeypatch):
    """What answers one world or three is one recording, and the answers are those without it."""
    recorded = []

    def record(function):
        recorded.append(function)
        return record_here(function)

    monkeypatch.setattr(policy.graphs, 'can_record', lambda device: True)
    monkeypatch.setattr(policy.graphs.Graphed.__init__, '__defaults__', (record,))
    graphed = policy.load_predictor(checkpoint, 2, device='cpu', most=3)
    eager = policy.load_predictor(checkpoint, 2, device='cpu', compile_model='off')
    observations = [world.reset(seed)[0] for seed in (1, 2, 3)]
    rows = np.zeros((3, 0, len(eager.processor.action_names)), np.float32)
    for n in (1, 3, 2):
        asked = (observations[:n], [None] * n, rows[:n])
        answers = [predictor.predict(*asked)[0] for predictor in (graphed, eager)]
        assert len(answers[0]) == n and np.allclose(*answers, atol=1e-5)
    assert len(recorded) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason='has a GPU')
def test_a_gpu_that_is_not_there_is_refused(checkpoint, world):
    with pytest.raises(ValueError, match='device=cuda: torch .* sees no GPU here'):
        policy.checkpoint(checkpoint, world.metadata(), device='cuda')


def test_what_a_checkpoint_cannot_do_is_refused(checkpoint, world):
    for how, said in (
        (dict(execute=9), 'have 8 rows'),
        (dict(execute=5, delay=4, foresight=False), 'have 8 rows'),
        (dict(dtype='half'), "'half'"),
        (dict(compile_model='on', read_text=True), 'anew'),
        (dict(compile_model='perhaps'), "'auto', 'on' or 'off'"),
    ):
        with pytest.raises(ValueError, match=said):
            policy.checkpoint(checkpoint, world.metadata(), device='cpu', **how)


@pytest.mark.parametrize('names', [TOOL_ACTION_NAMES, JOINT_ACTION_NAMES, ('waist', 'arm/gripper')])
def test_hands_open_altogether_or_shut(names):
    rows = np.full((2, 3, len(names)), 0.02, np.float32)
    grippers = [i for i, name in enumerate(names) if 'gripper' in name and name[-2:] != '_z']
    rows[..., grippers] = np.linspace(-0.01, 0.07, 6).reshape(2, 3, 1)
    before = rows.copy()
    rounded = policy.round_grippers(rows, names, (-0.02, 0.06))
    assert np.array_equal(rows, before) and rounded.dtype == np.float32
    expected = np.where(rows[..., grippers] > 0.03, np.float32(0.06), np.float32(-0.02))
    assert np.array_equal(rounded[..., grippers], expected)
    others = [i for i in range(len(names)) if i not in grippers]
    assert np.array_equal(rounded[..., others], rows[..., others])


def test_nothing_is_rounded_where_hands_are_unknown_or_missing():
    rows = np.linspace(0, 1, 6).reshape(2, 3)
    assert np.array_equal(policy.round_grippers(rows, ('a', 'b', 'arm/gripper'), None), rows)
    assert np.array_equal(policy.round_grippers(rows, ('a', 'b', 'c'), (-0.02, 0.06)), rows)
    assert policy.gripper_range_m({}) is None
    assert policy.gripper_range_m({'gripper_m': None}) is None


@pytest.mark.parametrize('scale', [1.0, 1.3, 2.0])
def test_recordings_without_an_entry_for_grippers_are_of_these_hands(scale):
    """The same bits as a World of that scale, which rounding must reproduce."""
    made = World('place', brick_scale=scale, cameras=())
    said = made.metadata()
    old = {key: value for key, value in said.items() if key != 'gripper_m'}
    assert policy.gripper_range_m(old) == (CLOSED_M, made.max_opening_m)
    assert policy.gripper_range_m(said) == (CLOSED_M, made.max_opening_m)


def test_a_chunk_starts_from_the_command_of_its_action_space(blind_world):
    obs, _ = blind_world.reset(0)
    for space, n in (('tool', 15), ('joint', 17)):
        command = policy.command_in_force(obs, space)
        assert command.shape == (n,) and np.array_equal(command, obs[f'{space}_command'])


def test_a_checkpoint_of_joint_actions_asks_for_a_world_of_joint_actions(checkpoint, tmp_path):
    meta = json.loads((checkpoint / 'meta.json').read_text())
    default = dict(task='place', control_hz=10)
    for space, expected in (('tool', {}), ('joint', {'action_space': 'joint'})):
        meta['processor']['action_space'] = space
        (tmp_path / 'meta.json').write_text(json.dumps(meta))
        kind, headers, made = policies.resolve(str(tmp_path), default)
        assert (kind, headers) == ('checkpoint', {})
        assert {key: made[key] for key in made.keys() - default.keys()} == expected
