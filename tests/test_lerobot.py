"""LeRobot's data sets are written and read; with the real package in an environment of its own.

python -m pytest tests/test_lerobot.py                # the layout; pip install pyarrow av
LEROBOT_PYTHON=/tmp/lerobot/bin/python python -m pytest tests/test_lerobot.py    # lerobot, too
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from launch import ROOT, run

import data
from episode import (
    episode_paths,
    read_episode,
    slot_keys,
    slot_tables,
    write_episode,
    write_synthetic_episodes,
)
from sim.tasks import TASKS

pa = pytest.importorskip('pyarrow', reason='pip install pyarrow')
pytest.importorskip('av', reason='pip install av')
from vla import lerobot_reader, lerobot_writer  # noqa: E402

os.environ.setdefault('SVT_LOG', '1')  # the encoder of videos talks at length otherwise
CAMERAS = ('overhead', 'right/wrist')
COUNT = 10  # the encoder keeps some forty pictures back, and a file is cut by what it has given
PYTHON = os.environ.get('LEROBOT_PYTHON', sys.executable)


@pytest.fixture(scope='module')
def ours(tmp_path_factory):
    """Episodes of two cameras."""
    folder = tmp_path_factory.mktemp('ours') / 'made'
    write_synthetic_episodes(folder, COUNT, CAMERAS, 64)
    return folder


@pytest.fixture(scope='module')
def theirs(ours):
    """{'image' | 'video': folder}; files are cut early, so that there are several of each kind."""
    limits = lerobot_writer.Limits(chunk_files=2, data_mb=0.001, video_mb=0.001)
    folders = {}
    for pictures in ('image', 'video'):
        folders[pictures] = f'{ours.parent}/{pictures}'
        lerobot_writer.to_lerobot(episode_paths(ours), folders[pictures], pictures, limits=limits)
    return folders


def table(path):
    return pa.parquet.read_table(path)


def rows_of(folder):
    """All rows of a data set, in the order of its files."""
    return pa.concat_tables(map(table, sorted(walk(folder, 'data'))))


def walk(folder, part):
    for at, _, names in os.walk(f'{folder}/{part}'):
        yield from (f'{at}/{name}' for name in names)


def test_the_layout_is_that_of_version_3(ours, theirs):
    for pictures, folder in theirs.items():
        info = json.load(open(f'{folder}/meta/info.json'))
        assert (info['codebase_version'], info['fps'], info['total_episodes']) == (
            'v3.0',
            10,
            COUNT,
        )
        features = info['features']
        names = ['observation.images.overhead', 'observation.images.right_wrist']
        assert [key for key in features if features[key]['dtype'] == pictures] == names
        assert features['observation.images.right_wrist']['shape'] == [64, 64, 3]
        episodes = [read_episode(path) for path in episode_paths(ours)]
        rows = rows_of(folder)
        assert len(rows) == info['total_frames'] == sum(len(a['time']) for a, _ in episodes)
        assert rows['index'].to_pylist() == list(range(len(rows)))
        state = np.array(rows['observation.state'].to_pylist(), np.float32)
        assert np.array_equal(state, np.concatenate([a['state'] for a, _ in episodes]))
        tasks = table(f'{folder}/meta/tasks.parquet')
        texts = dict(zip(tasks['task_index'].to_pylist(), tasks['task'].to_pylist()))
        about = json.loads(tasks.schema.metadata[b'pandas'])
        assert about['index_columns'] == ['task'] and info['total_tasks'] == len(texts) == 2
        told = pa.concat_tables(map(table, sorted(walk(folder, 'meta/episodes')))).to_pylist()
        for row, (arrays, header) in zip(told, episodes):
            first, end = row['dataset_from_index'], row['dataset_to_index']
            assert end - first == row['length'] == len(arrays['time'])
            assert row['tasks'] == [header['instruction']]
            assert texts[rows['task_index'][first].as_py()] == header['instruction']
            names = dict(chunk_index=row['data/chunk_index'], file_index=row['data/file_index'])
            there = table(f'{folder}/{info["data_path"].format(**names)}')
            assert row['episode_index'] in there['episode_index'].to_pylist()
            texts_now = [header['subtasks'][i] for i in arrays['subtask_id']]
            for t in (0, len(arrays['time']) - 1):
                spans = rows['language_persistent'][first + t].as_py()
                held = [span for span in spans if span['timestamp'] <= t / 10 + 1e-6]
                assert held[-1]['content'] == texts_now[t] and held[-1]['style'] == 'subtask'
        files = list(walk(folder, 'data'))
        assert len(files) > 2 and any('chunk-001' in name for name in files)
        if pictures == 'video':
            assert len([*walk(folder, 'videos')]) > len(CAMERAS)
        columns = set(rows.column_names)
        assert not columns & {'scene', 'qpos', 'connections', 'phase', 'kicked'}  # no secrets
        card = open(f'{folder}/README.md').read()
        assert 'tags: [LeRobot' in card and 'data_files: data/*/*.parquet' in card


def test_statistics_are_those_of_all_rows(ours, theirs):
    arrays = [read_episode(path)[0] for path in episode_paths(ours)]
    action = np.concatenate([a['tool_action'] for a in arrays]).astype(np.float64)
    pixels = np.concatenate([np.asarray(a['image/overhead']) for a in arrays]) / 255
    stats = json.load(open(f'{theirs["video"]}/meta/stats.json'))
    for name, q in (('q01', 0.01), ('q50', 0.5), ('q99', 0.99)):
        assert np.allclose(stats['action'][name], np.quantile(action, q, axis=0))
        level = np.quantile(pixels, q, axis=(0, 1, 2), method='inverted_cdf')
        assert np.allclose(np.ravel(stats['observation.images.overhead'][name]), level)
    assert np.allclose(stats['action']['std'], action.std(0))
    assert np.allclose(np.ravel(stats['observation.images.overhead']['std']), pixels.std((0, 1, 2)))
    assert np.shape(stats['observation.images.overhead']['mean']) == (3, 1, 1)
    assert stats['action']['count'] == [len(action)]


def test_what_is_read_back_is_equal_and_videos_are_near(ours, theirs, tmp_path):
    for pictures, folder in theirs.items():
        said = run('data.py', 'from_lerobot', folder, tmp_path / pictures)
        assert f'{tmp_path / pictures}: {COUNT} episodes at 10 Hz' in said
        assert run('data.py', 'check', tmp_path / pictures).endswith('0 with faults\n')
        again = [read_episode(path) for path in episode_paths(tmp_path / pictures)]
        for (arrays, header), (back, told) in zip(map(read_episode, episode_paths(ours)), again):
            for name in ('state', 'tool_action', 'subtask_id'):
                assert np.array_equal(back[name], arrays[name])
            for key in ('instruction', 'seed', 'success', 'control_hz', 'task', 'subtasks'):
                assert told[key] == header[key], key
            assert slot_tables(told)['tool_action'] == slot_tables(header)['tool_action']
            assert 'scene' not in back and 'world' not in told
            for camera in CAMERAS:
                were = np.asarray(arrays[f'image/{camera}']).astype(int)
                are = np.asarray(back[f'image/{camera}']).astype(int)
                if pictures == 'image':
                    assert np.array_equal(were, are)
                else:
                    assert np.abs(are - were).mean() < 6
        # the longest episode's hand moves on: its second picture is nearest to what it was
        whole = max(map(read_episode, episode_paths(ours)), key=lambda pair: len(pair[0]['time']))
        (back,) = (pair for pair in again if pair[1]['seed'] == whole[1]['seed'])
        seen = np.asarray(back[0]['image/right/wrist'])[1].astype(int)
        off = [np.abs(seen - whole[0]['image/right/wrist'][t]).mean() for t in (0, 1, 2)]
        assert np.argmin(off) == 1, off
    assert (tmp_path / 'image/README.md').exists()


def test_the_command_that_is_printed_trains_on_it(theirs, tmp_path):
    said = run('data.py', 'from_lerobot', theirs['video'], tmp_path / 'back', '--image_size=32')
    command = said.splitlines()[-1].partition('python train.py ')[2].split()
    small = ['--max_steps=2', '--batch_size=4', '--image_size=32', '--n_layers=1', '--horizon=4']
    out = run('train.py', *command, *small, '--val_fraction=0', f'--out_dir={tmp_path}/run')
    assert '2 steps in' in out


def test_the_commands_in_the_docs_run(ours, tmp_path, monkeypatch):
    text = (ROOT / 'docs/doors.md').read_text()
    blocks = re.findall(r'```bash\n(.*?)```', text, re.S)
    (block,) = (block for block in blocks if 'to_lerobot' in block)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'episodes').mkdir()
    (tmp_path / 'episodes/demo').symlink_to(ours)
    for line in block.splitlines():
        script, *words = shlex.split(line, comments=True)[1:]
        assert script == 'data.py' and data.main(words) == 0
    assert len(episode_paths('episodes/again')) == COUNT


def test_what_does_not_fit_is_named(ours, theirs, tmp_path):
    (tmp_path / 'mixed').mkdir()
    for i, path in enumerate(episode_paths(ours)):
        arrays, header = read_episode(path)
        arrays = {k: np.asarray(v) for k, v in arrays.items()}
        if i == 0:
            del arrays['image/right/wrist']
        write_episode(tmp_path / f'mixed/{i}.safetensors', arrays, header)
    said = run('data.py', 'to_lerobot', tmp_path / 'mixed', tmp_path / 'out', '--pictures=image')
    assert f'camera right/wrist is left out: {COUNT - 1} of {COUNT} episodes have it' in said
    for words, why in (
        (('to_lerobot', ours, tmp_path / 'out'), 'is there already'),
        (('to_lerobot', ours, tmp_path / 'x', '--pictures=gif'), "expected 'video' or 'image'"),
        (('to_lerobot', ours, tmp_path / 'x', '--action=arm'), "expected 'tool' or 'joint'"),
        (('from_lerobot', ours, tmp_path / 'x'), 'is no LeRobot data set'),
        (('from_lerobot', tmp_path / 'old', tmp_path / 'x'), 'convert_dataset_v21_to_v30'),
    ):
        (tmp_path / 'old/meta').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'old/meta/info.json').write_text('{"codebase_version": "v2.1"}')
        said = run('data.py', *words, fails=True)
        assert why in said and 'Traceback' not in said and not (tmp_path / 'x').exists()
    slots = [('a', 'rad', 'joint')]
    header = dict(task='t', instruction='go', control_hz=10, seed=0, success=True)
    arrays = dict(time=np.arange(3) / 10, state=np.zeros((3, 1)), joint_action=np.zeros((3, 1)))
    header |= slot_keys(state=slots, joint_action=slots)
    write_episode(tmp_path / 'mixed/other.safetensors', arrays, header)
    said = run('data.py', 'to_lerobot', tmp_path / 'mixed', tmp_path / 'x', fails=True)
    assert 'other slots than' in said or 'has no tool_action' in said


# ---- the real package


def lerobot(*words):
    done = subprocess.run(
        [PYTHON, str(ROOT / 'tests/lerobot_side.py'), *map(str, words)],
        env={**os.environ, 'HF_HUB_OFFLINE': '1', 'SVT_LOG': '1'},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.lerobot
def test_lerobot_opens_ours(ours, theirs, tmp_path):
    for pictures, folder in theirs.items():
        lerobot('open', folder, tmp_path / f'{pictures}.npz')
        read = np.load(tmp_path / f'{pictures}.npz')
        assert list(read['cameras']) == [lerobot_writer.camera_key(name) for name in CAMERAS]
        for number, path in enumerate(episode_paths(ours)):
            arrays, header = read_episode(path)
            length = len(arrays['time'])
            for at in (0, 1, 7, -1):
                row = at % length
                item = {key: read[f'{number}/{at}/{key}'] for key in ('task', 'action')}
                assert str(item['task']) == header['instruction']
                chunk = np.minimum(np.arange(row, row + 4), length - 1)
                assert np.array_equal(item['action'], arrays['tool_action'][chunk])
                state = read[f'{number}/{at}/observation.state']
                assert np.array_equal(state, arrays['state'][row])
                text = header['subtasks'][arrays['subtask_id'][row]]
                assert str(read[f'{number}/{at}/language_persistent']) == text
                for camera in CAMERAS:
                    seen = read[f'{number}/{at}/{lerobot_writer.camera_key(camera)}']
                    off = np.abs(255 * seen.transpose(1, 2, 0) - arrays[f'image/{camera}'][row])
                    assert off.max() < 1e-3 if pictures == 'image' else off.mean() < 6
        assert np.shape(read['stats/action/q99']) == (15,)


@pytest.mark.lerobot
def test_ours_trains_on_what_lerobot_has_recorded(tmp_path):
    lerobot('record', tmp_path / 'arm')
    said = run('data.py', 'from_lerobot', tmp_path / 'arm', tmp_path / 'episodes')
    arrays, header = read_episode(episode_paths(tmp_path / 'episodes')[1])
    assert header['instruction'] == 'push the block 1' and header['control_hz'] == 30
    assert np.allclose(arrays['state'], np.linspace(0, 1, 7) * np.arange(20)[:, None])
    assert header['joint_action_kinds'] == ['joint'] * 6 + ['absolute']
    frames = np.asarray(arrays['image/front'])
    for t in (0, 9, 19):  # the red block is where it was at that row
        red = frames[t, 30, :, 0].astype(int) - frames[t, 30, :, 2]
        assert abs(np.flatnonzero(red > 80).mean() - (19.5 + 3 * t)) < 1.5
    command = said.splitlines()[-1].partition('python train.py ')[2].split()
    small = ['--max_steps=2', '--batch_size=4', '--image_size=32', '--n_layers=1', '--horizon=4']
    run('train.py', *command, *small, '--val_fraction=0', f'--out_dir={tmp_path}/run')
    assert data.main(['check', str(tmp_path / 'episodes')]) == 0
    assert lerobot_reader.read_info(str(tmp_path / 'arm'))['fps'] == 30


def _without(column):
    return lambda rows: rows.drop_columns([column])


def _as_text(column):
    def change(rows):
        i = rows.column_names.index(column)
        return rows.set_column(i, column, pa.array(['x'] * len(rows)))

    return change


DATA = 'data/chunk-000/file-000.parquet'
EPISODES = 'meta/episodes/chunk-000/file-000.parquet'


@pytest.mark.parametrize(
    'name, change, words',
    [
        (DATA, _without('observation.state'), 'there is no column observation.state'),
        (DATA, _as_text('action'), 'column action is string, expected 15 numbers per row'),
        (DATA, _as_text('observation.images.overhead'), 'TypeError'),
        (DATA, _without('episode_index'), 'episode_index'),
        (DATA, _as_text('episode_index'), 'NotImplementedError'),
        (DATA, _as_text('frame_index'), 'column frame_index is string'),
        (DATA, _as_text('task_index'), "LookupError|KeyError: 'x'"),
        (DATA, lambda rows: rows.slice(0, 5), '5 rows of episode 0, not'),
        (EPISODES, _without('length'), 'length'),
        (EPISODES, _as_text('data/file_index'), "'data/file_index' is 'x', expected"),
        ('meta/tasks.parquet', _without('task_index'), 'expected a text for each task_index'),
    ],
)
def test_a_table_of_another_layout_is_named_with_what_is_wrong_in_it(
    theirs, tmp_path, name, change, words
):
    copy = shutil.copytree(theirs['image'], tmp_path / 'copy')
    pa.parquet.write_table(change(table(copy / name)), copy / name)
    with pytest.raises(ValueError, match=f'^{copy}/{name}.*({words})') as refusal:
        lerobot_reader.from_lerobot(str(copy), str(tmp_path / 'out'))
    assert '\n' not in str(refusal.value) and not (tmp_path / 'out').exists()


def test_100_damaged_data_sets_each_get_one_line_that_names_the_file(theirs, tmp_path):
    """Bytes of the tables are cut off, and parts of info.json are replaced or left out."""
    rng = np.random.default_rng(0)
    copy = shutil.copytree(theirs['image'], tmp_path / 'copy')
    refused = 0
    for i in range(100):
        name = (DATA, EPISODES, 'meta/tasks.parquet', 'meta/info.json')[i % 4]
        raw = (copy / name).read_bytes()
        if i % 8 == 7:
            (copy / name).write_bytes(_with_something_replaced(raw, rng))
        else:
            (copy / name).write_bytes(raw[: rng.integers(len(raw))])
        shutil.rmtree(tmp_path / 'out', ignore_errors=True)
        try:
            lerobot_reader.from_lerobot(str(copy), str(tmp_path / 'out'))
        except ValueError as refusal:
            assert str(refusal).startswith(f'{copy}/') and '\n' not in str(refusal)
            refused += 1
        (copy / name).write_bytes(raw)
    assert refused >= 88  # what is cut off, and some of what is replaced


def _with_something_replaced(raw, rng):
    info = json.loads(raw)
    at = info
    while True:
        key = sorted(at)[rng.integers(len(at))]
        if not isinstance(at[key], dict) or not at[key] or rng.random() < 0.2:
            break
        at = at[key]
    at[key] = [None, -1, 'x', [], {}, [[]], 0.5][rng.integers(7)]
    return json.dumps(info).encode()


@pytest.mark.lerobot
def test_lerobot_counts_the_experts_successes_and_its_own_policy_runs_every_task(beside_lerobot):
    """check.py of the plugin, a few minutes on two cores."""
    python, env = beside_lerobot
    command = [python, 'plugins/lerobot_env_vla_lego/check.py']
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for task in TASKS:
        assert re.search(rf'expert in one process: {task} [12]/2', done.stdout), done.stdout
        assert re.search(rf'untrained ACT .*, to the end: {task} [01]/1', done.stdout), done.stdout
    assert re.search('expert in processes: place [12]/2', done.stdout)
