"""Episodes on disk: what a frame holds, slot by slot, and files that are written, read, checked
and drawn.

    arrays, header = read_episode(path)        # {name: array}, dict
    write_episode(path, arrays, header)        # refuses what check_episode would find fault with

An episode is one safetensors file: arrays whose row t holds the observation before action t, and a
JSON header under the metadata key "header". It holds SI units and raw pixels, nothing normalised;
it is read without torch or a simulator. ARRAYS lists what is in it, TABLES the columns of states
and actions.
"""

import collections
import fnmatch
import functools
import io
import json
import os
import subprocess
from typing import NamedTuple

import numpy as np
import PIL.Image
import safetensors.numpy

# -----------------------------------------------------------------------------
# The observation/action table. Everything else refers to slots by name.
# Poses are those of the tool (between the fingertips) in the torso frame: x forward, y left, z up,
# table top at z = 0. The tool frame equals the torso frame when the hand points straight down at
# rest; orientation in an action is the rotation vector r from there, R = exp(r). A gripper command
# below zero squeezes harder. `floor` is the smallest spread the normaliser divides by: what moves
# less than that carries no signal.

SPEC_VERSION = 1
ARMS = ('left', 'right')


class Slot(NamedTuple):
    name: str
    unit: str
    low: float  # outside [low, high] is a fault in the file, not a wide motion
    high: float
    floor: float


def _per_arm(rows, prefix=''):
    return tuple(Slot(f'{prefix}{arm}/{row[0]}', *row[1:]) for arm in ARMS for row in rows)


_XYZ = [(f'tool_{a}', 'm', -1.5, 1.5, 0.001) for a in 'xyz']
_ROTATION = [(f'tool_r{a}', 'rad', -6.3, 6.3, 0.01) for a in 'xyz']
_GRIPPER = [('gripper', 'm', -0.05, 0.20, 0.001)]
_ARM_JOINTS = (
    'shoulder_y',
    'shoulder_x',
    'shoulder_z',
    'elbow_y',
    'wrist_z',
    'wrist_x',
    'gripper_z',
)

JOINT_NAMES = ('spine_z',) + tuple(f'{arm}/{joint}' for arm in ARMS for joint in _ARM_JOINTS)
_JOINTS = tuple(Slot(name, 'rad', -6.3, 6.3, 0.01) for name in JOINT_NAMES)
JOINT_ACTION = _JOINTS + _per_arm(_GRIPPER)
TOOL_ACTION = (Slot('spine_z', 'rad', -3.2, 3.2, 0.005),) + _per_arm(_XYZ + _ROTATION + _GRIPPER)
STATE = (
    _JOINTS
    + tuple(Slot(f'velocity/{name}', 'rad/s', -100.0, 100.0, 0.05) for name in JOINT_NAMES)
    + _per_arm(_GRIPPER)
    + _per_arm(_XYZ)
    + _per_arm([(f'tool_q{a}', '', -1.001, 1.001, 0.01) for a in 'wxyz'])
    + _per_arm([(f'tool_v{a}', 'm/s', -50.0, 50.0, 0.02) for a in 'xyz'])
    + tuple(
        slot._replace(name=f'command/{slot.name}') for slot in TOOL_ACTION
    )  # the command in force
    # measured minus commanded: a press, a jam or a missed grasp shows here first
    + _per_arm([(n, u, -2.0, 2.0, f) for n, u, _, _, f in _XYZ] + _ROTATION, prefix='error/')
)
JOINT_ACTION_NAMES = tuple(slot.name for slot in JOINT_ACTION)  # 17
TOOL_ACTION_NAMES = tuple(slot.name for slot in TOOL_ACTION)  # 15
STATE_NAMES = tuple(slot.name for slot in STATE)  # 79


def _columns(names, arm):
    """Where the slots of an arm, which stand side by side, are among the names."""
    at = [i for i, name in enumerate(names) if name.startswith(f'{arm}/')]
    return slice(at[0], at[-1] + 1)


ARM_JOINTS = {arm: _columns(JOINT_NAMES, arm) for arm in ARMS}  # in JOINT_NAMES, a joint action
ARM_TOOL = {arm: _columns(TOOL_ACTION_NAMES, arm) for arm in ARMS}  # in a tool action
JOINT_GRIPPER = {arm: JOINT_ACTION_NAMES.index(f'{arm}/gripper') for arm in ARMS}
MAX_JITTER = (
    0.02  # m, rad: a label and what was executed are further apart only in rows marked as kicked
)
TABLES = {
    'state': STATE,
    'tool_action': TOOL_ACTION,
    'tool_executed': TOOL_ACTION,
    'joint_action': JOINT_ACTION,
}

# array: dtype, and the number of columns (None: one value per row; 0: whatever the robot has)
ARRAYS = {
    'time': ('float64', None),
    'state': ('float32', 79),
    'tool_action': ('float32', 15),  # the label: what the expert would do, seeing row t
    'tool_executed': ('float32', 15),  # what the world got: the label and a jitter, if not kicked
    'joint_action': ('float32', 17),  # joint command in force after the step
    'kicked': ('uint8', None),
    'qpos': ('float64', 0),
    'qvel': ('float64', 0),
    'ctrl': ('float64', 0),
    'connections': ('int32', None),
    'phase': ('int32', None),
    'subtask_id': ('int32', None),
    'goal': ('uint8', None),
    # ground truth, a training target only: labels.scene of sim/, 12 columns per loose brick
    'scene': ('float32', 0),
}
HEADER_KEYS = (
    'spec',
    'task',
    'instruction',
    'subtasks',
    'control_hz',
    'cameras',
    'seed',
    'success',
    'metrics',
    'world',
    'git_rev',
    'qa',
    'askable',
    'referents',
    'state_slots',
    'state_units',
    'tool_action_slots',
    'tool_action_units',
    'joint_action_slots',
    'joint_action_units',
)


def slots(patterns, names):
    """Names chosen by exact name or glob pattern ('command/*/tool_?'), each once, in the order
    asked for.
    """
    chosen = []
    for pattern in patterns:
        hits = [n for n in names if fnmatch.fnmatchcase(n, pattern)]
        if not hits:
            raise ValueError(f'no slot matches {pattern!r}; the slots are: {", ".join(names)}')
        chosen += [n for n in hits if n not in chosen]
    return tuple(chosen)


# -----------------------------------------------------------------------------
# rotations, all vectorised over leading dimensions, computed in float64


def quat_from_rotvec(r):
    """(..., 3) rotation vector, rad -> (..., 4) wxyz."""
    r = np.asarray(r, np.float64)
    half = np.linalg.norm(r, axis=-1, keepdims=True) / 2
    return np.concatenate([np.cos(half), np.sinc(half / np.pi) / 2 * r], -1)


def rotvec_from_quat(q):
    """(..., 4) wxyz, unit -> (..., 3) rotation vector with angle <= pi. Exact near 0 and near
    pi.
    """
    q = np.asarray(q, np.float64)
    q = np.where(q[..., :1] < 0, -q, q)
    n = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    small = n < 1e-12
    angle = 2 * np.arctan2(n, q[..., :1])
    return q[..., 1:] * np.where(small, 2.0, angle / np.where(small, 1.0, n))


def quat_mul(a, b):
    w = a[..., :1] * b[..., :1] - (a[..., 1:] * b[..., 1:]).sum(-1, keepdims=True)
    v = a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:] + np.cross(a[..., 1:], b[..., 1:])
    return np.concatenate([w, v], -1)


def quat_inv(q):
    return q * np.array([1.0, -1.0, -1.0, -1.0])


def quat_rotate(q, v):
    """Rotate (..., 3) vectors by (..., 4) quaternions."""
    u = q[..., 1:]
    w = q[..., :1]
    cross = np.cross(u, v)
    return v + 2 * (w * cross + np.cross(u, cross))


# -----------------------------------------------------------------------------
# observation -> state vector, and back

_FIELDS = {
    'joint_pos': (15,),
    'joint_vel': (15,),
    'gripper': (2,),
    'tool_pos': (2, 3),
    'tool_quat': (2, 4),
    'tool_vel': (2, 3),
    'tool_command': (15,),
}
# columns of a tool action, and where the command in force stands in the state
POSITION = np.array(
    [[TOOL_ACTION_NAMES.index(f'{arm}/tool_{a}') for a in 'xyz'] for arm in ARMS]
)  # (2, 3)
ROTVEC = np.array(
    [[TOOL_ACTION_NAMES.index(f'{arm}/tool_r{a}') for a in 'xyz'] for arm in ARMS]
)  # (2, 3)
SPINE = TOOL_ACTION_NAMES.index('spine_z')
TOOL_POSE = tuple(
    [STATE_NAMES.index(f'{arm}/tool_{a}') for arm in ARMS for a in axes]
    for axes in (('x', 'y', 'z'), ('qw', 'qx', 'qy', 'qz'))
)
COMMAND = slice(
    STATE_NAMES.index('command/spine_z'), STATE_NAMES.index('command/right/gripper') + 1
)


def state_vector(obs):
    """Observation dict -> (79,) float32 in the order of STATE."""
    # cast first, compute from the cast values: a recorded row then reproduces its tracking error
    # bit for bit
    field = {
        name: np.asarray(obs[name], np.float32).reshape(shape) for name, shape in _FIELDS.items()
    }
    pos, quat, command = (
        field[k].astype(np.float64) for k in ('tool_pos', 'tool_quat', 'tool_command')
    )
    turn = quat_mul(quat, quat_inv(quat_from_rotvec(command[ROTVEC])))  # (2, 4)
    error = np.concatenate([pos - command[POSITION], rotvec_from_quat(turn)], -1)  # (2, 6)
    return np.concatenate(
        [*(value.ravel() for value in field.values()), error.ravel().astype(np.float32)]
    )


def observation_from_state(state):
    """(79,) state row -> the observation dict it came from, without images, time and
    instruction.
    """
    ends = np.cumsum([np.prod(shape) for shape in _FIELDS.values()])
    parts = zip(np.split(state, ends), _FIELDS.items())
    return {name: np.array(part).reshape(shape) for part, (name, shape) in parts}


# -----------------------------------------------------------------------------
# episode files

_DTYPES = {
    'F64': 'float64',
    'F32': 'float32',
    'F16': 'float16',
    'I64': 'int64',
    'I32': 'int32',
    'I16': 'int16',
    'I8': 'int8',
    'U8': 'uint8',
    'BOOL': 'bool',
}


def write_atomic(path, content):
    """Write a file so that a kill leaves either the old one or the new one, never half of it.

    Args:
        path: Where the file goes; its folder is made if it is not there.
        content: Bytes, or a function that is given a path and writes the file there.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    tmp = f'{path}.{os.getpid()}.tmp'  # its own name per process: two writers cannot interleave
    if callable(content):
        content(tmp)
    else:
        with open(tmp, 'wb') as f:
            f.write(content)
    with open(tmp, 'rb') as f:
        os.fsync(f.fileno())
    os.replace(tmp, path)


class JpegFrames:
    """Pictures that are decoded where they are looked at: an array (T, h, w, 3) for whoever indexes
    it. packed u8 (N), offset i64 (T + 1): where each picture begins in it.
    """

    dtype = np.dtype('uint8')
    ndim = 4

    def __init__(self, packed, offset, height, width):
        self.packed = packed
        self.offset = offset
        self.shape = (len(offset) - 1, height, width, 3)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, at):
        if isinstance(at, slice):
            return np.stack([self[i] for i in range(*at.indices(len(self)))])
        if not -len(self) <= at < len(self):
            raise IndexError(f'frame {at} of {len(self)}')
        try:
            with PIL.Image.open(io.BytesIO(self.blob(at)), formats=('JPEG',)) as image:
                if (image.height, image.width, image.mode) != (*self.shape[1:3], 'RGB'):
                    raise ValueError(
                        f'row {at} is {image.height}x{image.width} px {image.mode}, the header '
                        f'says {self.shape[1]}x{self.shape[2]} px RGB'
                    )
                return np.asarray(image)
        except (OSError, PIL.Image.DecompressionBombError) as error:  # PIL's words for damage
            raise ValueError(f'row {at} is no jpeg that can be decoded') from error

    def blob(self, at):
        """One picture as it was packed."""
        start, stop = self.offset[at % len(self) :][:2]
        return self.packed[start:stop]

    def __array__(self, dtype=None, copy=None):
        return self[:]


def encode_jpeg(frames, quality):
    """(T, h, w, 3) -> packed u8 (N), offset i64 (T + 1). Colours at full resolution: studs are few
    pixels.
    """
    blobs = []
    for frame in frames:
        blob = io.BytesIO()
        PIL.Image.fromarray(frame).save(blob, 'jpeg', quality=quality, subsampling=0)
        blobs.append(blob.getvalue())
    return np.frombuffer(b''.join(blobs), np.uint8), np.cumsum([0, *map(len, blobs)]).astype(
        np.int64
    )


@functools.cache
def git_rev():
    """Revision of this code, '+' where files have changed; 'none' without git or outside a
    repository.
    """
    try:
        run = subprocess.run(
            ['git', 'describe', '--always', '--dirty=+', '--abbrev=7'],
            text=True,
            cwd=os.path.dirname(os.path.abspath(__file__)),
            capture_output=True,
        )
    except FileNotFoundError:
        return 'none'
    return run.stdout.strip() or 'none'


def write_episode(path, arrays, header, jpeg=0):
    """Save one episode. `arrays` holds the keys of ARRAYS plus 'image/<camera>' uint8 (T, h, w,
    3), cast to the table's dtypes; with `jpeg`, a quality in 1..95, they are packed. `header` gives
    task, instruction, subtasks, control_hz, seed, success, metrics and world (World.metadata()),
    and may give qa and another git_rev; spec version, slots, units and cameras are added here.
    """
    path = os.fspath(path)
    arrays = {
        k: np.ascontiguousarray(v, ARRAYS[k][0] if k in ARRAYS else None) for k, v in arrays.items()
    }
    header = {'qa': [], 'git_rev': git_rev(), **header, 'spec': SPEC_VERSION}
    for key in ('state', 'tool_action', 'joint_action'):
        header[f'{key}_slots'] = [slot.name for slot in TABLES[key]]
        header[f'{key}_units'] = [slot.unit for slot in TABLES[key]]
    fovy = header['world'].get('camera_fovy_deg', {})
    header['cameras'] = {
        k[6:]: {'height': v.shape[1], 'width': v.shape[2], 'fovy_deg': fovy.get(k[6:])}
        for k, v in arrays.items()
        if k.startswith('image/')
    }
    faults = find_faults(arrays, header)
    if faults:
        raise ValueError(f'{path} not written: ' + '; '.join(faults))
    if jpeg:
        for name in [name for name in arrays if name.startswith('image/')]:
            arrays[f'{name}/bytes'], arrays[f'{name}/offset'] = encode_jpeg(arrays.pop(name), jpeg)
    write_atomic(path, safetensors.numpy.save(arrays, metadata={'header': json.dumps(header)}))


def map_bytes(path):
    return np.memmap(path, mode='r', dtype=np.uint8).view(
        np.ndarray
    )  # a plain array slices 5 times faster


def read_episode(path, map_bytes=map_bytes):
    """-> {name: array}, header dict. Arrays are views of the mapped file: touching one row reads
    one row. map_bytes: how to map a file, for who has thousands of them open.
    """
    path = os.fspath(path)
    size = os.path.getsize(path)
    with open(path, 'rb') as f:
        n = int.from_bytes(f.read(8), 'little')
        if not 0 < n <= size - 8:
            raise ValueError(f'{path}: not a safetensors file, or cut off ({size} bytes)')
        table = json.loads(f.read(n))
    metadata = table.pop('__metadata__', {})
    if 'header' not in metadata:
        raise ValueError(f'{path}: no "header" in the safetensors metadata: not an episode')
    end = 8 + n + max(entry['data_offsets'][1] for entry in table.values())
    if end != size:
        raise ValueError(f'{path}: {size} bytes, its own table says {end}: cut off or damaged')
    raw = map_bytes(path)
    arrays = {}
    for name, entry in table.items():
        start, stop = (8 + n + offset for offset in entry['data_offsets'])
        arrays[name] = raw[start:stop].view(_DTYPES[entry['dtype']]).reshape(entry['shape'])
    header = json.loads(metadata['header'])
    for name in [name[:-6] for name in arrays if name.endswith('/bytes')]:
        size = header['cameras'][name[6:]]
        packed = arrays.pop(f'{name}/bytes'), arrays.pop(f'{name}/offset')
        arrays[name] = JpegFrames(*packed, size['height'], size['width'])
    return arrays, header


def find_faults(arrays, header):
    """Everything wrong with one episode, each fault named in words; [] when sound."""
    faults = [f'header has no {key!r}' for key in HEADER_KEYS if key not in header]
    faults += [f'no array {name!r}' for name in ARRAYS if name not in arrays]
    if faults:
        return faults
    if header['spec'] != SPEC_VERSION:
        return [f'spec version {header["spec"]}, this code reads {SPEC_VERSION}']
    T = len(arrays['time'])
    if T == 0:
        return ['no rows']
    expected = {
        k: (dtype, () if columns is None else (columns,)) for k, (dtype, columns) in ARRAYS.items()
    }
    for camera, size in header['cameras'].items():
        expected[f'image/{camera}'] = ('uint8', (size['height'], size['width'], 3))
    faults += [
        f'header names camera {k[6:]!r}, no array {k!r}' for k in expected if k not in arrays
    ]
    faults += [
        f'array {k!r} is not in the specification or the header'
        for k in arrays
        if k not in expected
    ]
    for name in arrays.keys() & expected.keys():
        dtype, tail = expected[name]
        a = arrays[name]
        if a.dtype != dtype:
            faults.append(f'{name} is {a.dtype}, not {dtype}')
        if len(a) != T:
            faults.append(f'{name} has {len(a)} rows, time has {T}')
        elif a.ndim != 2 if tail == (0,) else a.shape[1:] != tail:
            faults.append(f'{name} has shape {a.shape}, not {(T, *tail)}')
    for key in ('state', 'tool_action', 'joint_action'):
        if header[f'{key}_slots'] != [slot.name for slot in TABLES[key]]:
            faults.append(f'header {key}_slots differ from the table of episode.py')
    return sorted(faults) or _find_value_faults(arrays, header)


def _find_value_faults(arrays, header):
    """Second pass of find_faults: shapes are known to be right."""
    faults = []
    for name, a in arrays.items():
        if a.dtype.kind == 'f' and not np.isfinite(a).all():
            row = np.argwhere(~np.isfinite(a.reshape(len(a), -1)))[0]
            faults.append(f'{name} is not finite, first at row {row[0]} column {row[1]}')
    if faults:
        return faults
    for name, table in TABLES.items():
        low = np.array([s.low for s in table])
        high = np.array([s.high for s in table])
        for i in np.flatnonzero(((arrays[name] < low) | (arrays[name] > high)).any(0)):
            worst = arrays[name][np.abs(arrays[name][:, i]).argmax(), i]
            faults.append(
                f'{name} slot {table[i].name}: {worst:.4g} is outside {low[i]}..{high[i]}'
            )
    step_s = np.diff(arrays['time'])
    dt_s = 1 / header['control_hz']
    if len(step_s) and (step_s <= 0).any():
        faults.append(f'time does not increase at row {np.flatnonzero(step_s <= 0)[0] + 1}')
    elif len(step_s) and np.abs(step_s - dt_s).max() > 0.01 * dt_s:
        faults.append(
            f'time steps of {step_s.min():.4f}..{step_s.max():.4f} s, control_hz says {dt_s:.4f} s'
        )
    for name in ('kicked', 'goal'):
        if arrays[name].max() > 1:
            faults.append(f'{name} holds {arrays[name].max()}, not only 0 and 1')
    if arrays['phase'].min() < 0:
        faults.append('phase is negative')
    ids = arrays['subtask_id']
    n = len(header['subtasks'])
    if ids.min() < 0 or ids.max() >= n:
        faults.append(f'subtask_id {ids.min()}..{ids.max()}, header has {n} subtasks')
    off = np.abs(arrays['tool_executed'] - arrays['tool_action']).max(1) * (arrays['kicked'] == 0)
    if (off > MAX_JITTER).any():
        faults.append(f'tool_executed differs from tool_action in unkicked row {off.argmax()}')
    if not isinstance(header['instruction'], str) or not header['instruction']:
        faults.append('instruction is empty')
    elif header['askable'][:1] != [header['instruction']]:
        faults.append('askable does not begin with the instruction')
    elif any(len(span) != 2 for span in header['referents']):
        faults.append('referents are not by row, as an older version wrote them: record it anew')
    else:
        starts = [first for first, _ in header['referents']]
        if starts[:1] != [0] or starts != sorted(set(starts)) or starts[-1] >= len(arrays['time']):
            faults.append(f'referents start at rows {starts}, expected 0 and then later ones')
        shapes = {np.shape(table) for _, table in header['referents']}
        if shapes != {(len(header['askable']), 8)}:
            faults.append(
                f'referents are {shapes}, expected 8 for each of {len(header["askable"])} goals'
            )
    for camera in header['cameras']:
        try:
            frames = np.asarray(arrays[f'image/{camera}'])
        except ValueError as error:  # jpeg is decoded only here
            faults.append(f'image/{camera} {error}')
            continue
        flat = np.ptp(frames.reshape(len(frames), -1), axis=1) == 0
        if flat.any():
            faults.append(
                f'image/{camera} is one flat colour in row {np.flatnonzero(flat)[0]}: not rendered'
            )
    return faults


def check_episode(path):
    """-> list of faults of a file, [] when sound."""
    try:
        arrays, header = read_episode(path)
    except (ValueError, OSError, KeyError) as error:  # a damaged file is a finding, not a crash
        return [f'cannot be read: {error}']
    return find_faults(arrays, header)


def episode_paths(source):
    """Folder or file, several of them in a list or separated by commas -> list of episode files."""
    sources = str(source).split(',') if isinstance(source, (str, os.PathLike)) else list(source)
    paths = []
    for item in map(str, sources):
        if os.path.isdir(item):
            names = sorted(name for name in os.listdir(item) if name.endswith('.safetensors'))
            paths += [os.path.join(item, name) for name in names]
        elif os.path.isfile(item):
            paths.append(item)
    if not paths:
        raise FileNotFoundError(
            f'no *.safetensors episodes in {source}; record some: '
            'python sim_rollout.py config/demo_collect.py'
        )
    return paths


def link_episodes(paths, folder):
    """Hard links to episodes, named after their folder: the same seed may be in several."""
    os.makedirs(folder, exist_ok=True)
    for path in paths:
        at, name = os.path.split(os.path.abspath(path))
        os.link(path, f'{folder}/{os.path.basename(at)}_{name}')
    print(f'{folder}: {len(paths)} episodes')


def pack_episodes(paths, folder, quality):
    """Copies with jpeg pictures."""
    before = 0
    after = 0
    for path in paths:
        to = f'{folder}/{os.path.basename(path)}'
        write_episode(to, *read_episode(path), jpeg=quality)
        before = before + os.path.getsize(path)
        after = after + os.path.getsize(to)
    print(f'{folder}: {after / 1e9:.3f} GB, {after / before:.0%} of what it was')


# -----------------------------------------------------------------------------
# synthetic episodes, for config/debug.py and the tests; no simulator needed


def write_synthetic_episodes(
    folder, count, cameras, image_size, control_hz=10, kicks=0.1, seed0=0, jpeg=0
):
    for seed in range(seed0, seed0 + count):
        write_episode(
            os.path.join(folder, f'synthetic_{seed:06d}.safetensors'),
            *synthetic_episode(seed, cameras, image_size, control_hz, kicks),
            jpeg,
        )


def synthetic_episode(seed, cameras, image_size, control_hz=10, kicks=0.1):
    """-> arrays, header. Random but learnable: the right tool goes to the square of the named
    colour and closes.
    """
    rng = np.random.default_rng(seed)
    colours = {'red': (200, 40, 40), 'blue': (40, 60, 200)}
    name = list(colours)[rng.integers(2)]
    places = {colour: rng.uniform([0.25, -0.1, 0], [0.45, 0.1, 0]) for colour in colours}
    command = np.zeros(15, np.float32)
    command[POSITION] = rng.uniform([0.25, -0.1, 0.05], [0.45, 0.1, 0.15], (2, 3))
    command[ROTVEC[:, 2]] = rng.uniform(-0.5, 0.5, 2)
    command[[7, 14]] = 0.06
    # grid (h, w, 2)
    rows = []
    settled = 0
    grid = np.stack(np.indices((image_size, image_size)), -1)
    while len(rows) < 60 and settled < 4:
        pos = command[POSITION] + rng.normal(0, 0.0005, (2, 3))
        obs = {
            'joint_pos': np.zeros(15),
            'joint_vel': np.zeros(15),
            'gripper': command[[7, 14]],
            'tool_pos': pos,
            'tool_quat': quat_from_rotvec(command[ROTVEC]),
            'tool_vel': np.zeros((2, 3)),
            'tool_command': command,
        }
        away = places[name] - command[POSITION][1]
        near = np.abs(away).max() < 0.002
        settled += bool(near and command[14] < 0.03)
        action = command.copy()
        kicked = not near and rng.random() < kicks
        action[POSITION[1]] += np.clip(away, -0.03, 0.03)
        action[14] = 0.02 if near else 0.06
        executed = action.copy()
        executed[POSITION[1]] += kicked * rng.normal(0, 0.02, 3)
        row = {
            'time': len(rows) / control_hz,
            'state': state_vector(obs),
            'tool_action': action,
            'tool_executed': executed,
            'joint_action': np.zeros(17),
            'kicked': kicked,
            'goal': settled > 0,
            'connections': 0,
            'phase': int(near),
            'subtask_id': int(near),
            'scene': np.ravel([[[*(p - at), 0] for p in places.values()] for at in (0, *pos)]),
            **{k: np.zeros(3) for k in ('qpos', 'qvel', 'ctrl')},
        }
        for camera in cameras:
            image = np.full((image_size, image_size, 3), 128, np.uint8)
            centre = (
                pos[ARMS.index(camera.split('/')[0])] if '/' in camera else np.array([0.35, 0, 0])
            )
            for colour, place in places.items():
                at = (0.5 + (place - centre)[:2] / 0.4) * image_size
                image[(np.abs(grid - at) < image_size * 0.06).all(-1)] = colours[colour]
            image[0, 0] = 0  # a view with no square in it is still a picture
            row[f'image/{camera}'] = image
        rows.append(row)
        command = executed
    text = f'reach the {name} brick'
    brick = list(colours).index(name)
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}, {
        'task': 'synthetic',
        'instruction': text,
        'askable': [text],
        'referents': [[0, [[brick, brick, len(colours), 1, 0, 0, 0, 0]]]],
        'control_hz': control_hz,
        'seed': seed,
        'subtasks': [f'right hand: reach the {name} brick', f'right hand: grasp the {name} brick'],
        'success': settled > 0,
        'metrics': {},
        'world': {},
    }


# -----------------------------------------------------------------------------
# for eyes


def print_stats(paths):
    """Counts, instructions, and one line per slot: mean, spread and range over all rows of all
    files.
    """
    rows = 0
    kicked = 0
    successes = 0
    texts = collections.Counter()
    sums = {key: [] for key in ('state', 'tool_action', 'joint_action')}
    for path in paths:  # one at a time: a mapped file is an open file, and many systems allow 1,024
        arrays, header = read_episode(path)
        rows = rows + len(arrays['kicked'])
        kicked = kicked + int(arrays['kicked'].sum(dtype=int))
        successes += bool(header['success'])
        texts[header['instruction']] += 1
        for key, parts in sums.items():
            v = arrays[key].astype(np.float64)
            parts.append((v.sum(0), (v**2).sum(0), v.min(0), v.max(0)))
    print(
        f'{len(paths)} episodes, {successes} successful, {rows} rows, '
        f'{rows / len(paths):.1f} per episode, {kicked} kicked, '
        f'{sum(map(os.path.getsize, paths)) / 1e9:.2f} GB'
    )
    print(*(f'{texts[text]:6d} x {text}' for text in sorted(texts)), sep='\n')
    for key, parts in sums.items():
        total, square, low, high = (np.stack(part) for part in zip(*parts))  # (episodes, slots)
        mean = total.sum(0) / rows
        std = np.sqrt(np.maximum(square.sum(0) / rows - mean**2, 0))
        print(f'\n{key:32s}{"unit":>6s}{"mean":>10s}{"std":>10s}{"min":>10s}{"max":>10s}')
        for slot, *numbers in zip(TABLES[key], mean, std, low.min(0), high.max(0)):
            dead = '  below its floor' if numbers[1] < slot.floor else ''
            print(f'{slot.name:32s}{slot.unit:>6s}' + ''.join(f'{x:10.4f}' for x in numbers) + dead)


def draw_episode(path, out):
    """Contact sheet (a row per camera, 12 moments) over plots of labels and commands in force."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    arrays, header = read_episode(path)
    time = arrays['time']
    n = len(header['cameras'])
    figure, axes = plt.subplots(n + 4, 1, figsize=(18, 1.6 * n + 9), constrained_layout=True)
    for axis, camera in zip(axes, header['cameras']):
        moments = np.linspace(0, len(time) - 1, 12).astype(int)
        axis.imshow(np.concatenate([arrays[f'image/{camera}'][t] for t in moments], 1))
        axis.set(ylabel=camera, xticks=[], yticks=[])
    curves = {
        'tool_[xy]': 'x, y (m)',
        'tool_z': 'z (m)',
        'tool_rz': 'yaw (rad)',
        'gripper': 'grip (m)',
    }
    for axis, (pattern, title) in zip(axes[n:], curves.items()):
        for name in slots([f'*/{pattern}'], TOOL_ACTION_NAMES):
            (line,) = axis.plot(
                time, arrays['tool_action'][:, TOOL_ACTION_NAMES.index(name)], label=name
            )
            in_force = arrays['state'][:, STATE_NAMES.index(f'command/{name}')]
            axis.plot(time, in_force, ':', color=line.get_color())
        for t in np.flatnonzero(arrays['kicked']):
            axis.axvline(time[t], color='0.8', zorder=0)
        axis.set_ylabel(title)
        axis.legend(loc='upper right', ncols=4, fontsize=7)
    for t in np.flatnonzero(np.diff(arrays['subtask_id'], prepend=-1)):
        words = header['subtasks'][arrays['subtask_id'][t]]
        axes[n].annotate(
            words, (time[t], axes[n].get_ylim()[0]), rotation=90, fontsize=7, va='bottom'
        )
    axes[-1].set_xlabel('time (s). Lines: label; dotted: command in force; grey: kicked')
    outcome = 'success' if header['success'] else 'failure'
    figure.suptitle(
        f'{path}\n{header["task"]} seed {header["seed"]}: {header["instruction"]} ({outcome})'
    )
    figure.savefig(out, dpi=70)
    plt.close(figure)
