"""Protects episodes on disk: what is written comes back, every kind of fault is named, slots mean
what they say.

python -m pytest tests/test_episode.py
"""

import io
import mmap
import os
import resource

import launch
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

import data
import episode
from vla import browse

CAMERAS = ('overhead', 'right/wrist')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('episodes')
    episode.write_synthetic_episodes(folder, 12, CAMERAS, 16, kicks=0.3)
    return folder


# ---- files


def test_an_episode_comes_back_as_written(tmp_path):
    arrays, header = episode.synthetic_episode(3, CAMERAS, 16)
    path = tmp_path / 'a' / 'e.safetensors'
    episode.write_episode(path, arrays, header)
    read, read_header = episode.read_episode(path)
    assert read.keys() == arrays.keys() and os.listdir(tmp_path / 'a') == ['e.safetensors']
    for name in arrays:
        written = arrays[name].astype(read[name].dtype)
        assert np.array_equal(read[name], written, equal_nan=name == 'scene')
    dtypes = [read[name].dtype for name in ('state', 'qpos', 'kicked')]
    assert dtypes == [np.float32, np.float64, np.uint8]
    assert (
        header.items() <= read_header.items() and read_header['cameras']['overhead']['height'] == 16
    )
    assert episode.check_episode(path) == []
    with safetensors.safe_open(path, 'numpy') as f:  # any safetensors reader opens it
        assert (f.get_tensor('tool_action') == read['tool_action']).all()


def test_reading_one_row_maps_the_file_instead_of_loading_it(folder):
    arrays, _ = episode.read_episode(episode.episode_paths(folder)[0])
    base = arrays['image/overhead']
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap) and not arrays['image/overhead'].flags.writeable


def nan(a):
    a['state'][2, 7] = np.nan


FAULTS = {  # A change of a sound episode: words of the fault that must be named
    'no array': (lambda a, h: a.pop('qvel'), ["no array 'qvel'"]),
    'no key': (lambda a, h: h.pop('seed'), ["header has no 'seed'"]),
    'version': (lambda a, h: h.update(spec=99), ['spec version 99']),
    'no rows': (lambda a, h: [a.update({k: v[:0]}) for k, v in list(a.items())], ['no rows']),
    'dtype': (
        lambda a, h: a.update(state=a['state'].astype(np.float64)),
        ['state is float64, not float32'],
    ),
    'row count': (
        lambda a, h: a.update({'image/overhead': a['image/overhead'][1:]}),
        ['image/overhead has', 'rows'],
    ),
    'columns': (
        lambda a, h: a.update(tool_action=a['tool_action'][:, 1:]),
        ['tool_action has shape'],
    ),
    'dimensions': (lambda a, h: a.update(qpos=a['qpos'][:, 0]), ['qpos has shape']),
    'image size': (
        lambda a, h: h['cameras']['overhead'].update(height=8),
        ['image/overhead has shape'],
    ),
    'lost camera': (lambda a, h: a.pop('image/overhead'), ["no array 'image/overhead'"]),
    'stray array': (
        lambda a, h: a.update(extra=a['time']),
        ["'extra' is not in the specification"],
    ),
    'slot order': (lambda a, h: h['state_slots'].reverse(), ['state_slots differ']),
    'not finite': (lambda a, h: nan(a), ['state is not finite, first at row 2 column 7']),
    'unit mistake': (
        lambda a, h: a['tool_action'].__setitem__((1, 8), 260.0),
        ['slot right/tool_x: 260'],
    ),
    'time stands': (
        lambda a, h: a['time'].__setitem__(3, a['time'][2]),
        ['time does not increase at row 3'],
    ),
    'time rate': (lambda a, h: a.update(time=a['time'] * 2), ['control_hz says 0.1000']),
    'flag': (lambda a, h: a['kicked'].__setitem__(0, 7), ['kicked holds 7']),
    'phase': (lambda a, h: a['phase'].__setitem__(0, -1), ['phase is negative']),
    'subtask': (lambda a, h: a['subtask_id'].__setitem__(0, 9), ['subtask_id 0..9, header has 2']),
    'hidden kick': (
        lambda a, h: a['tool_executed'].__setitem__((0, 8), 0.3),
        ['in unkicked row 0'],
    ),
    'instruction': (lambda a, h: h.update(instruction=''), ['instruction is empty']),
    'black image': (
        lambda a, h: a['image/overhead'].__setitem__(1, 0),
        ['image/overhead is one flat colour in row 1'],
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_check_names_every_kind_of_fault(folder, fault):
    arrays, header = episode.read_episode(episode.episode_paths(folder)[0])
    arrays = {k: np.array(v) for k, v in arrays.items()}
    arrays['kicked'][0] = 0
    arrays['tool_executed'][0] = arrays['tool_action'][0]
    assert episode.find_faults(arrays, header) == []
    damage, words = FAULTS[fault]
    damage(arrays, header)
    said = '; '.join(episode.find_faults(arrays, header))
    assert all(word in said for word in words), said


def test_check_command_names_damaged_files_and_writing_refuses_faults(folder, tmp_path):
    arrays, header = episode.synthetic_episode(3, CAMERAS, 16)
    episode.write_episode(tmp_path / 'good.safetensors', arrays, header)
    whole = (tmp_path / 'good.safetensors').read_bytes()
    (tmp_path / 'cut.safetensors').write_bytes(whole[:-100])
    (tmp_path / 'garbage.safetensors').write_bytes(b'\xff' * 100)
    (tmp_path / 'empty.safetensors').write_bytes(b'')
    nan(arrays)
    with pytest.raises(ValueError, match='bad.safetensors not written: state is not finite'):
        episode.write_episode(tmp_path / 'bad.safetensors', arrays, header)
    said = launch.run('data.py', 'check', tmp_path, fails=True)
    assert '4 episodes, 3 with faults' in said and 'good' not in said
    for name in ('cut', 'garbage', 'empty'):
        assert f'{name}.safetensors: cannot be read' in said
    assert launch.run('data.py', 'check', folder) == '12 episodes, 0 with faults\n'


def test_show_and_stats_run(folder, tmp_path):
    path = tmp_path / 'e.safetensors'
    path.write_bytes(open(episode.episode_paths(folder)[0], 'rb').read())
    launch.run('data.py', 'show', path)
    assert (tmp_path / 'e.png').stat().st_size > 10_000
    said = launch.run('data.py', 'stats', folder)
    assert '12 episodes, 12 successful' in said and 'command/right/tool_x' in said


def test_stats_of_more_files_than_may_be_open_are_those_of_all_their_rows(folder, capsys):
    paths = episode.episode_paths(folder)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + 10, limit[1]))
    try:
        browse.print_stats(paths * 5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    said = capsys.readouterr().out.splitlines()
    whole = [episode.read_episode(path)[0] for path in paths]
    kicked = np.concatenate([a['kicked'] for a in whole])
    assert said[0].startswith(
        f'60 episodes, 60 successful, {5 * len(kicked)} rows, '
        f'{len(kicked) / 12:.1f} per episode, {5 * kicked.sum(dtype=int)} kicked'
    )
    assert sum(int(line.split()[0]) for line in said if ' x reach the ' in line) == 60
    first = next(i for i, line in enumerate(said) if line.startswith('tool_action '))
    for name, i in (('right/tool_x', 8), ('left/tool_z', 3)):
        (line,) = (line.split() for line in said[first:] if line.startswith(name + ' '))
        values = np.concatenate([a['tool_action'][:, i] for a in whole]).astype(np.float64)
        expected = values.mean(), values.std(), values.min(), values.max()
        assert np.allclose([float(x) for x in line[2:6]], expected, atol=6e-5)
    # Slots that stand still are marked: joints of a synthetic episode, not the hand that moves
    assert (
        sum(line.startswith('velocity/') and line.endswith('  below its floor') for line in said)
        == 15
    )
    assert not any(
        line.endswith('floor') for line in said if line.startswith('command/right/tool_x ')
    )


# ---- names, rotations, state


def test_packed_pictures_are_small_nearly_the_same_and_read_like_others(tmp_path):
    os.mkdir(tmp_path / 'raw')
    episode.write_episode(
        tmp_path / 'raw' / 'e.safetensors', *episode.synthetic_episode(3, CAMERAS, 64)
    )
    launch.run('data.py', 'jpeg', tmp_path / 'raw', 95)
    (path,) = episode.episode_paths(tmp_path / 'raw_jpeg')
    raw, header = episode.read_episode(tmp_path / 'raw' / 'e.safetensors')
    packed, same = episode.read_episode(path)
    assert header == same and episode.check_episode(path) == [] and raw.keys() == packed.keys()
    for name in (name for name in raw if name.startswith('image/')):
        images = packed[name]
        assert images.shape == raw[name].shape and len(images) == len(raw[name])
        assert np.abs(np.asarray(images).astype(int) - raw[name]).mean() < 4
        assert (images[-1] == images[len(images) - 1]).all() and (images[1:3][0] == images[1]).all()
        with pytest.raises(IndexError):
            images[len(images)]
    assert sum(packed[n].packed.nbytes for n in raw if n.startswith('image/')) < 0.8 * sum(
        raw[n].nbytes for n in raw if n.startswith('image/')
    )
    draw = tmp_path / 'e.png'
    browse.draw_episode(path, draw)
    assert draw.stat().st_size > 10_000


DAMAGE = {  # A change of one camera's packed pictures: words of the fault
    'garbage': (lambda blobs: blobs[:3] + [b'\0' * len(blobs[3])] + blobs[4:], 'row 3 is no jpeg'),
    'cut off': (lambda blobs: blobs[:2] + [blobs[2][:-200]] + blobs[3:], 'row 2 is no jpeg'),
    'empty': (lambda blobs: [b''] + blobs[1:], 'row 0 is no jpeg'),
    'one of another size': (
        lambda blobs: blobs[:1] + [jpeg_of(8)] + blobs[2:],
        'row 1 is 8x8 px RGB, the header says 16x16 px RGB',
    ),
    'all of another size': (
        lambda blobs: [jpeg_of(32)] * len(blobs),
        'row 0 is 32x32 px RGB, the header',
    ),
    'grey': (lambda blobs: [jpeg_of(16, 'L')] * len(blobs), 'row 0 is 16x16 px L, the header'),
    'another format': (lambda blobs: [jpeg_of(16, 'RGB', 'png')] * len(blobs), 'row 0 is no jpeg'),
}


def jpeg_of(size, mode='RGB', kind='jpeg'):
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
    PIL.Image.fromarray(noise).convert(mode).save(blob := io.BytesIO(), kind)
    return blob.getvalue()


@pytest.mark.parametrize('damage', DAMAGE)
def test_check_names_the_file_and_the_row_of_a_damaged_picture(tmp_path, capsys, damage):
    spoil, words = DAMAGE[damage]
    arrays, header = episode.synthetic_episode(3, CAMERAS, 16)
    path = str(tmp_path / 'e.safetensors')
    episode.write_episode(path, arrays, header, jpeg=90)
    with safetensors.safe_open(path, 'np') as f:
        tensors, metadata = {name: f.get_tensor(name) for name in f.keys()}, f.metadata()
    packed, offset = (
        tensors['image/right/wrist/bytes'].tobytes(),
        tensors['image/right/wrist/offset'],
    )
    blobs = spoil([packed[a:b] for a, b in zip(offset, offset[1:])])
    tensors['image/right/wrist/bytes'] = np.frombuffer(b''.join(blobs), np.uint8)
    tensors['image/right/wrist/offset'] = np.cumsum([0, *map(len, blobs)]).astype(np.int64)
    safetensors.numpy.save_file(tensors, path, metadata)
    assert data.main(['check', str(tmp_path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f'{path}: image/right/wrist {words}')
    assert said[1:] == ['1 episodes, 1 with faults']


def test_slots_are_chosen_by_name_and_pattern_and_typos_are_refused():
    assert episode.slots(
        ['right/tool_x', '*/tool_[xz]', '*/tool_x'], episode.TOOL_ACTION_NAMES
    ) == ('right/tool_x', 'left/tool_x', 'left/tool_z', 'right/tool_z')
    assert (len(episode.STATE_NAMES), len(set(episode.STATE_NAMES))) == (79, 79)
    said = "no slot matches 'rigth/tool_x'; the slots are: spine_z, left/tool_x"
    with pytest.raises(ValueError, match=said):
        episode.slots(['rigth/tool_x'], episode.TOOL_ACTION_NAMES)


def test_rotation_vectors_survive_quaternions_also_near_zero_and_pi():
    rng = np.random.default_rng(0)
    axis = rng.normal(size=(1000, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    for angle in (0, 1e-15, 1e-9, 1e-4, 1.0, 3.0, np.pi - 1e-7):
        back = episode.rotvec_from_quat(
            -episode.quat_from_rotvec(axis * angle)
        )  # -q is the same rotation
        assert np.abs(back - axis * angle).max() < 1e-14 + 1e-9 * (angle > 3)


def test_state_error_is_measured_minus_commanded_in_the_torso_frame():
    obs = {
        'joint_pos': np.zeros(15),
        'joint_vel': np.zeros(15),
        'gripper': np.zeros(2),
        'tool_pos': np.array([[0, 0, 0], [0.31, -0.1, 0.04]]),
        'tool_quat': episode.quat_from_rotvec(np.array([[0, 0, 0], [0, 0, 0.5]])),
        'tool_vel': np.zeros((2, 3)),
        'tool_command': np.zeros(15),
    }
    obs['tool_command'][[8, 9, 10, 13]] = 0.3, -0.1, 0.05, 0.4
    state = dict(zip(episode.STATE_NAMES, episode.state_vector(obs)))
    for name, value in {'x': 0.01, 'y': 0, 'z': -0.01, 'rx': 0, 'ry': 0, 'rz': 0.1}.items():
        assert state[f'error/right/tool_{name}'] == pytest.approx(value, abs=1e-6)
