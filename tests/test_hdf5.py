"""Recordings in HDF5, as ALOHA and robomimic lay them out, become episodes.

python -m pytest tests/test_hdf5.py
"""

import io
import re
import shlex

import numpy as np
import PIL.Image
import pytest
from launch import ROOT, run

import data
from episode import check_episode, episode_paths, read_episode
from vla.hdf5_reader import from_hdf5

h5py = pytest.importorskip('h5py', reason='pip install h5py')


def test_aloha_files_keep_their_joints_and_cameras_packed_or_not(tmp_path):
    rng = np.random.default_rng(0)
    # Smooth, so that jpeg is nearly exact; no two colours can be taken for each other.
    ramp = np.add.outer(np.arange(12), np.add.outer(np.arange(48), np.arange(64)))
    frames = np.stack([ramp, ramp // 2 + 100, 200 - ramp], -1).astype(np.uint8)
    blobs = []
    for frame in frames:
        blob = io.BytesIO()
        PIL.Image.fromarray(frame).save(blob, 'jpeg')
        blobs.append(np.frombuffer(blob.getvalue(), np.uint8))
    packed = np.zeros((12, max(map(len, blobs))), np.uint8)
    for row, blob in zip(packed, blobs):
        row[: len(blob)] = blob
    (tmp_path / 'logs').mkdir()
    action = rng.normal(size=(12, 14)).astype(np.float32)
    for i, pictures in enumerate((frames, packed)):
        with h5py.File(tmp_path / f'logs/episode_{i}.hdf5', 'w') as file:
            file['observations/qpos'] = rng.normal(size=(12, 14))
            file['observations/images/cam_high'] = pictures
            file['action'] = action
    words = (tmp_path / 'logs', tmp_path / 'out', '--instruction=hand it over')
    said = run('data.py', 'from_hdf5', *words)
    assert '2 episodes at 50 Hz' in said and '--cameras=cam_high,' in said
    for path in episode_paths(tmp_path / 'out'):
        arrays, header = read_episode(path)
        assert check_episode(path) == [] and np.array_equal(arrays['joint_action'], action)
        assert header['joint_action_slots'][6:8] == ['left/gripper', 'right/waist']
        assert header['joint_action_kinds'][5:7] == ['joint', 'absolute']
        assert header['instruction'] == 'hand it over' and arrays['time'][1] == 1 / 50
        assert np.abs(arrays['image/cam_high'].astype(int) - frames).mean() < 5
    assert np.array_equal(
        read_episode(episode_paths(tmp_path / 'out')[0])[0]['image/cam_high'], frames
    )


def test_robomimic_demonstrations_come_in_their_order_without_the_simulators_truth(tmp_path):
    with h5py.File(tmp_path / 'demo.hdf5', 'w') as file:
        for i in (0, 10, 2):
            demo = file.create_group(f'data/demo_{i}')
            demo['actions'] = np.full((9, 7), i / 10)
            demo['obs/robot0_eef_pos'] = np.zeros((9, 3))
            demo['obs/object'] = np.zeros((9, 14))
            demo['obs/agentview_image'] = np.arange(9 * 32 * 32 * 3).reshape(9, 32, 32, 3) % 251
    with pytest.raises(ValueError, match='is one flat|uint8|not written'):
        from_hdf5(str(tmp_path / 'demo.hdf5'), str(tmp_path / 'bad'), 20, 'lift it')
    with h5py.File(tmp_path / 'demo.hdf5', 'a') as file:
        for demo in file['data'].values():
            frames = demo['obs/agentview_image'][:].astype(np.uint8)
            del demo['obs/agentview_image']
            demo['obs/agentview_image'] = frames
    from_hdf5(str(tmp_path / 'demo.hdf5'), str(tmp_path / 'out'), 20, 'lift it', 16)
    read = [read_episode(path) for path in episode_paths(tmp_path / 'out')]
    assert np.allclose([arrays['joint_action'][0, 0] for arrays, _ in read], [0, 0.2, 1])
    arrays, header = read[0]
    assert arrays['state'].shape == (9, 3) and arrays['image/agentview_image'].shape[1:3] == (
        16,
        16,
    )
    assert set(header['joint_action_kinds']) == {'absolute'}  # steps already


def test_the_command_in_the_docs_runs(tmp_path, monkeypatch):
    (line,) = re.findall(
        '^python data.py from_hdf5 .*$', (ROOT / 'docs/doors.md').read_text(), re.M
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data/aloha').mkdir(parents=True)
    with h5py.File(tmp_path / 'data/aloha/episode_0.hdf5', 'w') as file:
        file['observations/qpos'] = ROWS
        file['observations/images/top'] = FRAMES
        file['action'] = ROWS
    assert data.main(shlex.split(line)[2:]) == 0
    (path,) = episode_paths('episodes/aloha')
    assert read_episode(path)[1]['control_hz'] == 50


ROWS = np.random.default_rng(0).normal(size=(12, 14))
FRAMES = (np.arange(12 * 16 * 16 * 3).reshape(12, 16, 16, 3) % 251).astype(np.uint8)


@pytest.mark.parametrize(
    'changed, words',
    [
        ({'observations/qpos': None}, 'no qpos in /observations; there are images'),
        ({'action': None}, 'no action in /; there are observations'),
        (
            {'observations/images/top': None},
            'no images in /observations|no camera in /observations',
        ),
        ({'observations/qpos': ROWS[:, 0]}, r'qpos is \(12,\), expected an array of 2 dimensions'),
        ({'action': np.float32(1)}, r'action is \(\), expected an array of 2 dimensions'),
        ({'action': np.full((12, 14), b'x')}, 'action holds .S1, expected numbers'),
        ({'action': ROWS[:5]}, 'joint_action has 5 rows, time has 12'),
        ({'observations/qpos': ROWS * np.nan}, 'state is not finite'),
        ({'observations/images/top': FRAMES[..., :2]}, 'expected three colours'),
        ({'observations/images/top': FRAMES[:, 0, :, 0]}, 'cannot identify image file'),
        ({'observations/images/top': FRAMES[:3]}, 'image/top has 3 rows, time has 12'),
        ({'observations/images/top': FRAMES / 255}, 'top holds float64, expected uint8'),
    ],
)
def test_a_file_of_another_layout_is_named_with_what_is_wrong_in_it(tmp_path, changed, words):
    sound = {'observations/qpos': ROWS, 'action': ROWS, 'observations/images/top': FRAMES}
    path = tmp_path / 'e.hdf5'
    with h5py.File(path, 'w') as file:
        for name, array in (sound | changed).items():
            if array is not None:
                file[name] = array
    with pytest.raises(ValueError, match=f'^{path}.*({words})') as refusal:
        from_hdf5(str(path), str(tmp_path / 'out'), 50, 'hand it over')
    assert '\n' not in str(refusal.value) and not (tmp_path / 'out').exists()


def test_what_is_no_hdf5_is_named(tmp_path):
    path = tmp_path / 'e.hdf5'
    for text in ('', 'no HDF5 at all'):
        path.write_text(text)
        with pytest.raises(ValueError, match=f'^{path}: '):
            from_hdf5(str(tmp_path), str(tmp_path / 'out'), 50, 'hand it over')


def test_a_file_without_demonstrations_is_named(tmp_path):
    path = tmp_path / 'e.hdf5'
    with h5py.File(path, 'w') as file:
        file.create_group('data')
    with pytest.raises(ValueError, match=f'^{path}: there is no episode in data'):
        from_hdf5(str(path), str(tmp_path / 'out'), 50, 'hand it over')
