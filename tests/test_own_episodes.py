"""Other robots: the converters of docs/own_episodes.md are run, and what they write trains.

python -m pytest tests/test_own_episodes.py
"""

import json
import re
import runpy

import numpy as np
import pytest
from launch import ROOT, run

import data
import episode
from vla.processor import Processor

SMALL = (  # of the network: 50 steps take seconds
    '--image_size=32',
    '--horizon=8',
    '--hidden_size=64',
    '--n_layers=2',
    '--n_heads=2',
    '--n_kv_heads=2',
    '--head_dim=32',
    '--mrope_section=(4, 6, 6)',
    '--intermediate_size=256',
    '--batch_size=16',
    '--warmup_steps=5',
    '--max_steps=50',
    '--log_interval=5',
    '--eval_interval=25',
    '--val_fraction=0.3',
    '--ema=0.9',
    '--dtype=float32',
)
CAMERAS = {
    'arm': {'front': (48, 64)},
    'aloha': {'cam_high': (48, 64), 'cam_left_wrist': (32, 32), 'cam_right_wrist': (60, 40)},
}
HZ = {'arm': 20, 'aloha': 50}


def picture(shape, at, rng):
    """A grey room with a red square, which is to be reached, somewhere; at: 0 to 1."""
    image = rng.integers(90, 110, (*shape, 3)).astype(np.uint8)
    y, x = (int(share * (side - 8)) for share, side in zip(at, shape))
    image[y : y + 8, x : x + 8] = 200, 30, 30
    return image


def way(rng, n, rows):
    """Joints (rows, n) go from rest to a goal by a first-order lag; -> measured, commanded."""
    goal = rng.uniform(-1, 1, n)
    measured = np.zeros((rows, n))
    for t in range(1, rows):
        measured[t] = measured[t - 1] + 0.15 * (goal - measured[t - 1])
    return measured, measured + 0.3 * (goal - measured)


def write_logs(folder, robot, count=6, rows=30):
    """Made-up recordings in the form that the converter reads."""
    (folder / 'logs' / robot).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        at = rng.random(2)
        frames = {
            name: np.stack([picture(shape, at, rng) for _ in range(rows)])
            for name, shape in CAMERAS[robot].items()
        }
        path = folder / 'logs' / robot / f'demo_{i}.npz'
        if robot == 'arm':
            measured, target = way(rng, 7, rows)
            np.savez(path, position=measured, target=target, instruction='reach it', **frames)
        else:
            measured, target = way(rng, 14, rows)
            for arm in (6, 13):  # grippers close half way
                measured[:, arm] = target[:, arm] = np.arange(rows) < rows / 2
            np.savez(path, qpos=measured, action=target, success=True, **frames)


@pytest.fixture(scope='module', params=['arm', 'aloha'])
def converted(request, tmp_path_factory):
    """-> (robot, folder of its episodes)"""
    robot = request.param
    folder = tmp_path_factory.mktemp(robot)
    write_logs(folder, robot)
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/own_episodes.md').read_text(), re.S)
    (code,) = (block for block in blocks if f'convert_{robot}.py' in block)
    assert len(code.splitlines()) <= 36
    script = folder / f'convert_{robot}.py'
    script.write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runpy.run_path(str(script), run_name='__main__')
    return robot, folder / 'episodes' / robot


def settings_of(robot, folder):
    cameras = ','.join(CAMERAS[robot]) + ','
    return f'--episodes={folder}', f'--control_hz={HZ[robot]}', f'--cameras={cameras}'


def test_what_a_converter_writes_is_sound_and_can_be_looked_at(converted):
    robot, folder = converted
    assert run('data.py', 'check', folder) == '6 episodes, 0 with faults\n'
    said = run('data.py', 'stats', folder)
    assert '6 episodes, 6 successful, 180 rows' in said and 'joint_action' in said
    run('data.py', 'show', episode.episode_paths(folder)[0])
    picture = next(folder.glob('*.png'))
    assert picture.stat().st_size > 10_000
    picture.unlink()


def test_a_few_episodes_are_learnt_and_chunks_are_drawn(converted, tmp_path):
    robot, folder = converted
    out = tmp_path / 'run'
    run('train.py', 'config/own.py', *settings_of(robot, folder), *SMALL, f'--out_dir={out}')
    log = [json.loads(line) for line in (out / 'log.jsonl').read_text().splitlines()]
    flow = [line['flow'] for line in log if 'flow' in line]
    assert flow[-1] < 0.5 * flow[0], flow
    assert log[-1]['val_joint_rad'] < 0.3 and ('val_absolute_error' in log[-1]) == (
        robot == 'aloha'
    )
    made = json.loads((out / 'meta.json').read_text())['processor']
    again = Processor.from_dict(made)  # needs no episode to know its slots
    tables = episode.tables_of(folder)
    assert (again.state_table, again.action_table) == (tables['state'], tables['joint_action'])
    said = run('sample.py', f'--ckpt={out}', '--count=20', '--samples=3')
    last = tables['joint_action'][-1].name
    assert len(re.findall(rf'^{last} ', said, re.M)) == 3 and 'sim_rollout' not in said
    assert (out / 'sample.png').stat().st_size > 20_000
    # the same command goes on, and finds that there is nothing left to do
    words = ('train.py', 'config/own.py', *settings_of(robot, folder), *SMALL, f'--out_dir={out}')
    assert 'is finished at step 50' in run(*words)


def test_of_few_episodes_one_is_held_out(converted):
    robot, folder = converted
    tables = episode.tables_of(folder)
    shape = dict(cameras=tuple(CAMERAS[robot]), control_hz=HZ[robot], action_space='joint')
    shape |= dict(image_size=32, state_slots=('*',), action_slots=('*',), horizon=8)
    words = (ROOT / 'assets/tokenizer.json').read_text()
    processor = Processor(**shape, tokenizer=words, tables=tables)
    held = data.Dataset(folder, processor, 'val', 0.001)
    assert len(held.paths) == 1  # one at least, whatever the hash says
    with pytest.raises(ValueError, match='--val_fraction=0'):
        data.Dataset(folder, processor, 'train', 0.999)


def test_what_needs_the_simulators_truth_says_so_in_a_sentence(converted, tmp_path):
    robot, folder = converted
    words = ('train.py', 'config/own.py', *settings_of(robot, folder), *SMALL)
    words += (f'--out_dir={tmp_path}/run',)
    first = episode.episode_paths(folder)[0]
    for setting, sentence in (
        (
            '--grounding=True',
            f"{first} has no scene, askable, referents: grounding learns from the simulator's "
            'truth; train without it: --grounding=False',
        ),
        (
            '--question_share=0.5',
            f"{first} has no goal, subtask_id, qa, subtasks: the simulator's truth answers the "
            'questions; ask none: --question_share=0',
        ),
        ('--action_space=tool', 'the episodes hold no tool_action: --action_space=joint'),
    ):
        assert run(*words, setting, fails=True).splitlines()[-1].endswith(sentence)
    said = run('sim_rollout.py', f'--policy={first}', fails=True)
    assert f'{first} has no tool_action, tool_executed, kicked, qpos' in said


# ---- the command in force, pictures, anchors


def write(path, rng, joints, tables, rows=6, **extra):
    arrays = {
        'time': np.arange(rows) / 10,
        'state': rng.normal(size=(rows, len(tables['state']))),
        'joint_action': rng.normal(size=(rows, len(joints))),
        'image/front': rng.integers(0, 255, (rows, 16, 16, 3), np.uint8),
        **extra,
    }
    header = dict(task='t', instruction='go', control_hz=10, seed=0, success=False)
    episode.write_episode(path, arrays, header | episode.slot_keys(**tables))
    return arrays


def make(folder, horizon=2):
    with open('assets/tokenizer.json') as f:
        words = f.read()
    tables = episode.tables_of(folder)
    processor = Processor(
        ['front'], 16, ['*'], ['*'], horizon, 10, words, action_space='joint', tables=tables
    )
    return data.Dataset(folder, processor)


def test_the_command_in_force_is_the_reported_one_else_the_action_before(tmp_path):
    rng = np.random.default_rng(0)
    joints = [('a', 'rad', 'joint'), ('b', 'rad', 'joint')]
    reported = [('command/b', 'rad', ''), ('x', '', ''), ('command/a', 'rad', '')]
    told = write(
        tmp_path / '1/e.safetensors', rng, joints, dict(state=reported, joint_action=joints)
    )
    commands = make(tmp_path / '1').commands(np.arange(6))
    assert np.array_equal(commands, told['state'][:, [2, 0]].astype(np.float32))
    measured = [('x', '', ''), ('b', 'rad', '')]  # of a nothing is known in the first row
    told = write(
        tmp_path / '2/e.safetensors', rng, joints, dict(state=measured, joint_action=joints)
    )
    write(tmp_path / '2/f.safetensors', rng, joints, dict(state=measured, joint_action=joints))
    dataset = make(tmp_path / '2')
    commands = dataset.commands(np.arange(6))
    action = told['joint_action'].astype(np.float32)
    assert np.array_equal(commands[1:], action[:-1])
    assert commands[0].tolist() == [action[0, 0], np.float32(told['state'][0, 1])]
    assert dataset.commands(np.array([6]))[0, 0] == dataset.action[6, 0]  # not the last file's
    dataset.processor.fit(dataset)
    rows = np.arange(12)
    chunk = dataset.processor.normalise_actions(dataset.chunk(rows), dataset.commands(rows))
    decoded = dataset.processor.decode_actions(chunk, dataset.commands(rows))
    assert np.abs(decoded - dataset.chunk(rows)).max() < 1e-6
    observation = dataset.row(3)
    assert np.array_equal(observation['joint_command'], dataset.commands(np.array([3]))[0])


def test_a_kicked_row_is_no_label_of_a_joint_action(tmp_path):
    """It is in force after the row was executed; a tool action is what the teacher would do."""
    arrays, header = episode.synthetic_episode(5, ['front'], 16, kicks=0.0)
    arrays['kicked'][2] = 1
    episode.write_episode(tmp_path / 'e.safetensors', arrays, header)
    joint = make(tmp_path, horizon=4)
    assert joint.chunk_mask(np.arange(4)).astype(int).tolist() == [
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
        [1, 1, 1, 1],
    ]
    joint.processor.action_space = 'tool'
    assert joint.chunk_mask(np.arange(1))[0].astype(int).tolist() == [1, 1, 1, 0]


FAULTS = {
    'kinds': (dict(joint_action_kinds=['joint', 'odd']), "'odd', expected one of pose, joint"),
    'pose': (dict(joint_action_kinds=['pose', 'pose']), 'slot a: the kind pose is of six slots'),
    'units': (dict(state_units=['']), 'state_units are 1, state_slots 2'),
    'twice': (dict(state_slots=['x', 'x']), 'state_slots name x twice'),
    'count': (
        dict(state_slots=['x'], state_units=['']),
        'state has shape (6, 2), not (6, 1)',
    ),
    'no slots': (dict(joint_action_slots=None), "header has no 'joint_action_slots'"),
    'no kinds': (dict(joint_action_kinds=None), "header has no 'joint_action_kinds'"),
    'subtasks': (dict(), "header has no 'subtasks'"),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_check_names_faults_of_another_robots_header(tmp_path, fault):
    joints = [('a', 'rad', 'joint'), ('b', 'rad', 'joint')]
    tables = dict(state=[('x', '', ''), ('b', 'rad', '')], joint_action=joints)
    write(tmp_path / 'e.safetensors', np.random.default_rng(0), joints, tables)
    arrays, header = episode.read_episode(tmp_path / 'e.safetensors')
    assert episode.find_faults(arrays, header) == []
    change, words = FAULTS[fault]
    if fault == 'subtasks':
        arrays['subtask_id'] = np.zeros(6, np.int32)
    header |= change
    header = {key: value for key, value in header.items() if value is not None}
    assert words in '; '.join(episode.find_faults(arrays, header))


def test_a_robot_with_tool_poses_trains_in_the_frames_of_its_tools(tmp_path):
    axes = [('x', 'm'), ('y', 'm'), ('z', 'm'), ('rx', 'rad'), ('ry', 'rad'), ('rz', 'rad')]
    pose = [(f'hand/{name}', unit, 'pose') for name, unit in axes]
    tables = dict(state=pose, tool_action=[('lift', 'm', 'joint'), *pose, ('jaw', 'm', 'absolute')])
    rng = np.random.default_rng(1)
    arrays = {
        'time': np.arange(5) / 10,
        'state': rng.uniform(-1, 1, (5, 6)),
        'tool_action': rng.uniform(-1, 1, (5, 8)),
    }
    header = dict(task='t', instruction='go', control_hz=10, seed=0, success=True)
    episode.write_episode(tmp_path / 'e.safetensors', arrays, header | episode.slot_keys(**tables))
    with open('assets/tokenizer.json') as f:
        processor = Processor(
            [], 16, ['*'], ['*'], 2, 10, f.read(), tables=episode.tables_of(tmp_path)
        )
    dataset = data.Dataset(tmp_path, processor)
    processor.fit(dataset)
    rows = np.arange(5)
    commands, chunk = dataset.commands(rows), dataset.chunk(rows)
    relative = processor.relative_actions(chunk, commands)
    turn = episode.quat_inv(episode.quat_from_rotvec(commands[:, None, 4:7].astype(float)))
    seen = episode.quat_rotate(turn, (chunk - commands[:, None])[..., 1:4].astype(float))
    assert np.allclose(relative[..., 1:4], seen, atol=1e-6)
    assert np.allclose(relative[..., 0], chunk[..., 0] - commands[:, None, 0], atol=1e-6)
    assert np.array_equal(relative[..., 7], chunk[..., 7])
    normal = processor.normalise_actions(chunk, commands)
    assert np.abs(processor.decode_actions(normal, commands) - chunk).max() < 1e-6
    errors = dataset.action_error(rows, normal)
    assert {name.split('@')[0] for name in errors} == {
        'position_mm',
        'rotation_rad',
        'gripper_mm',
        'joint_m',
    }
    assert max(errors.values()) < 1e-3
