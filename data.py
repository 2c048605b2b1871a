"""
Episodes on disk, and the one road from an observation to model input.

python data.py check episodes/demo         # names every fault in every file; exit code 1 when there is one
python data.py stats episodes/demo         # counts, and mean, spread and range per slot, in physical units
python data.py show episodes/demo          # contact sheet and plots of a file, or of each in a folder: *.png
python data.py tokenizer                   # makes assets/tokenizer.json; --from=FOLDER adds words, --out=FILE

An episode is one safetensors file: arrays whose row t holds the observation before action t, and a JSON
header under the metadata key "header". It holds SI units and raw pixels, nothing normalised. Windows,
anchoring, normalising and the token sequence happen here, at load time, in the same functions for a recorded
frame and for a live observation.

T rows, S state slots, A action slots, H horizon, B batch, N cameras, K draws of (noise, time), L tokens
"""
import concurrent.futures
import fnmatch
import functools
import hashlib
import json
import os
import sys
import zlib
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import tokenizers
import torch

# -----------------------------------------------------------------------------
# The observation/action table. Everything else refers to slots by name.
# Poses are those of the tool (between the fingertips) in the torso frame: x forward, y left, z up, table top
# at z = 0. The tool frame equals the torso frame when the hand points straight down at rest; orientation in an
# action is the rotation vector r from there, R = exp(r). A gripper command below zero squeezes harder.
# `floor` is the smallest spread the normaliser divides by: what moves less than that carries no signal.

SPEC_VERSION = 1
ARMS = ('left', 'right')


class Slot(NamedTuple):
    name: str
    unit: str
    low: float      # outside [low, high] is a fault in the file, not a wide motion
    high: float
    floor: float


def _per_arm(rows, prefix=''):
    return tuple(Slot(f'{prefix}{arm}/{row[0]}', *row[1:]) for arm in ARMS for row in rows)


_XYZ = [(f'tool_{a}', 'm', -1.5, 1.5, 0.001) for a in 'xyz']
_ROTATION = [(f'tool_r{a}', 'rad', -6.3, 6.3, 0.01) for a in 'xyz']
_GRIPPER = [('gripper', 'm', -0.05, 0.20, 0.001)]
_ARM_JOINTS = ('shoulder_y', 'shoulder_x', 'shoulder_z', 'elbow_y', 'wrist_z', 'wrist_x', 'gripper_z')

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
    + tuple(slot._replace(name=f'command/{slot.name}') for slot in TOOL_ACTION)    # the command in force
    # measured minus commanded: a press, a jam or a missed grasp shows here first
    + _per_arm([(n, u, -2.0, 2.0, f) for n, u, _, _, f in _XYZ] + _ROTATION, prefix='error/'))
JOINT_ACTION_NAMES = tuple(slot.name for slot in JOINT_ACTION)      # 17
TOOL_ACTION_NAMES = tuple(slot.name for slot in TOOL_ACTION)        # 15
STATE_NAMES = tuple(slot.name for slot in STATE)                    # 79
TABLES = {'state': STATE, 'tool_action': TOOL_ACTION, 'tool_executed': TOOL_ACTION,
          'joint_action': JOINT_ACTION}

# array: dtype, and the number of columns (None: one value per row; 0: whatever the robot has)
ARRAYS = {
    'time': ('float64', None),
    'state': ('float32', 79),
    'tool_action': ('float32', 15),      # the label: what the expert would do, seeing row t
    'tool_executed': ('float32', 15),    # what the world got: differs from the label where kicked
    'joint_action': ('float32', 17),     # joint command in force after the step
    'kicked': ('uint8', None),
    'qpos': ('float64', 0), 'qvel': ('float64', 0), 'ctrl': ('float64', 0),
    'connections': ('int32', None), 'phase': ('int32', None), 'subtask_id': ('int32', None),
    'goal': ('uint8', None),
    # ground truth about the scene, one block per instruction of header['askable']: a training target, never an input
    'geometry': ('float32', 0),
}
HEADER_KEYS = (
    'spec', 'task', 'instruction', 'subtasks', 'control_hz', 'cameras', 'seed', 'success', 'metrics', 'world',
    'git_rev', 'qa', 'askable', 'state_slots', 'state_units', 'tool_action_slots', 'tool_action_units',
    'joint_action_slots', 'joint_action_units')


def slots(patterns, names):
    """Names selected by exact name or glob pattern ('command/*/tool_?'), in the order asked for, each once."""
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
    """(..., 4) wxyz, unit -> (..., 3) rotation vector with angle <= pi. Exact near 0 and near pi."""
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
    u, w = q[..., 1:], q[..., :1]
    cross = np.cross(u, v)
    return v + 2 * (w * cross + np.cross(u, cross))


# -----------------------------------------------------------------------------
# observation -> state vector, and back

_FIELDS = {'joint_pos': (15,), 'joint_vel': (15,), 'gripper': (2,), 'tool_pos': (2, 3), 'tool_quat': (2, 4),
           'tool_vel': (2, 3), 'tool_command': (15,)}
_POSITION = np.array([[TOOL_ACTION_NAMES.index(f'{arm}/tool_{a}') for a in 'xyz'] for arm in ARMS])  # (2, 3)
_ROTVEC = np.array([[TOOL_ACTION_NAMES.index(f'{arm}/tool_r{a}') for a in 'xyz'] for arm in ARMS])   # (2, 3)
_SPINE = TOOL_ACTION_NAMES.index('spine_z')
COMMAND = slice(STATE_NAMES.index('command/spine_z'), STATE_NAMES.index('command/right/gripper') + 1)


def state_vector(obs):
    """Observation dict -> (79,) float32 in the order of STATE."""
    # cast first, compute from the cast values: a recorded row then reproduces its tracking error bit for bit
    field = {name: np.asarray(obs[name], np.float32).reshape(shape) for name, shape in _FIELDS.items()}
    pos, quat, command = (field[name].astype(np.float64) for name in ('tool_pos', 'tool_quat', 'tool_command'))
    turn = quat_mul(quat, quat_inv(quat_from_rotvec(command[_ROTVEC])))                    # (2, 4)
    error = np.concatenate([pos - command[_POSITION], rotvec_from_quat(turn)], -1)          # (2, 6)
    return np.concatenate([*(value.ravel() for value in field.values()), error.ravel().astype(np.float32)])


def observation_from_state(state):
    """(79,) state row -> the observation dict it came from, without images, time and instruction."""
    ends = np.cumsum([np.prod(shape) for shape in _FIELDS.values()])
    parts = zip(np.split(state, ends), _FIELDS.items())
    return {name: np.array(part).reshape(shape) for part, (name, shape) in parts}


# -----------------------------------------------------------------------------
# tool actions relative to the command in force when the chunk starts: small numbers around zero, the same for
# a brick anywhere on the table. Position and rotation in the frame of the commanded tool, spine as a
# difference, gripper absolute.

def anchor(actions, command):
    """(..., H, 15) absolute tool actions, (..., 15) command in force -> (..., H, 15) relative, float64."""
    actions, command = np.asarray(actions, np.float64), np.asarray(command, np.float64)[..., None, :]
    out = actions.copy()
    out[..., _SPINE] -= command[..., _SPINE]
    for p, r in zip(_POSITION, _ROTVEC):
        back = quat_inv(quat_from_rotvec(command[..., r]))
        out[..., p] = quat_rotate(back, actions[..., p] - command[..., p])
        out[..., r] = rotvec_from_quat(quat_mul(back, quat_from_rotvec(actions[..., r])))
    return out


def unanchor(relative, command):
    """Exact inverse of `anchor` (rotation vectors come back with angle <= pi)."""
    relative, command = np.asarray(relative, np.float64), np.asarray(command, np.float64)[..., None, :]
    out = relative.copy()
    out[..., _SPINE] += command[..., _SPINE]
    for p, r in zip(_POSITION, _ROTVEC):
        turn = quat_from_rotvec(command[..., r])
        out[..., p] = command[..., p] + quat_rotate(turn, relative[..., p])
        out[..., r] = rotvec_from_quat(quat_mul(turn, quat_from_rotvec(relative[..., r])))
    return out


# -----------------------------------------------------------------------------
# episode files

_DTYPES = {'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'I64': 'int64', 'I32': 'int32',
           'I16': 'int16', 'I8': 'int8', 'U8': 'uint8', 'BOOL': 'bool'}


def write_atomic(path, blob):
    """Write bytes so that a kill leaves either the old file or the new one, never half of it."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    tmp = f'{path}.{os.getpid()}.tmp'     # its own name per process: two writers cannot interleave
    with open(tmp, 'wb') as f:
        f.write(blob)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


def write_episode(path, arrays, header):
    """
    Save one episode. `arrays` holds the keys of ARRAYS plus 'image/<camera>' uint8 (T, h, w, 3), cast to the
    table's dtypes. `header` gives task, instruction, subtasks, control_hz, seed, success, metrics and world
    (World.metadata()), and may give git_rev and qa; spec version, slots, units and cameras are added here.
    """
    path = os.fspath(path)
    arrays = {k: np.ascontiguousarray(v, ARRAYS[k][0] if k in ARRAYS else None) for k, v in arrays.items()}
    header = {'qa': [], 'git_rev': header['world'].get('git_rev'), **header, 'spec': SPEC_VERSION}
    for key in ('state', 'tool_action', 'joint_action'):
        header[f'{key}_slots'] = [slot.name for slot in TABLES[key]]
        header[f'{key}_units'] = [slot.unit for slot in TABLES[key]]
    fovy = header['world'].get('camera_fovy_deg', {})
    header['cameras'] = {k[6:]: {'height': v.shape[1], 'width': v.shape[2], 'fovy_deg': fovy.get(k[6:])}
                         for k, v in arrays.items() if k.startswith('image/')}
    faults = find_faults(arrays, header)
    if faults:
        raise ValueError(f'{path} not written: ' + '; '.join(faults))
    write_atomic(path, safetensors.numpy.save(arrays, metadata={'header': json.dumps(header)}))


def read_episode(path):
    """-> ({name: array}, header dict). Arrays are views of the mapped file: touching one row reads one row."""
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
    raw = np.memmap(path, mode='r', dtype=np.uint8).view(np.ndarray)      # a plain array: slicing is 5 times faster
    arrays = {}
    for name, entry in table.items():
        start, stop = (8 + n + offset for offset in entry['data_offsets'])
        arrays[name] = raw[start:stop].view(_DTYPES[entry['dtype']]).reshape(entry['shape'])
    return arrays, json.loads(metadata['header'])


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
    expected = {k: (dtype, () if columns is None else (columns,)) for k, (dtype, columns) in ARRAYS.items()}
    for camera, size in header['cameras'].items():
        expected[f'image/{camera}'] = ('uint8', (size['height'], size['width'], 3))
    faults += [f'header names camera {k[6:]!r}, no array {k!r}' for k in expected if k not in arrays]
    faults += [f'array {k!r} is not in the specification or the header' for k in arrays if k not in expected]
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
            faults.append(f'header {key}_slots differ from the table of data.py')
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
        low, high = np.array([s.low for s in table]), np.array([s.high for s in table])
        for i in np.flatnonzero(((arrays[name] < low) | (arrays[name] > high)).any(0)):
            worst = arrays[name][np.abs(arrays[name][:, i]).argmax(), i]
            faults.append(f'{name} slot {table[i].name}: {worst:.4g} is outside {low[i]}..{high[i]}')
    step_s, dt_s = np.diff(arrays['time']), 1 / header['control_hz']
    if len(step_s) and (step_s <= 0).any():
        faults.append(f'time does not increase at row {np.flatnonzero(step_s <= 0)[0] + 1}')
    elif len(step_s) and np.abs(step_s - dt_s).max() > 0.01 * dt_s:
        faults.append(f'time steps of {step_s.min():.4f}..{step_s.max():.4f} s, control_hz says {dt_s:.4f} s')
    for name in ('kicked', 'goal'):
        if arrays[name].max() > 1:
            faults.append(f'{name} holds {arrays[name].max()}, not only 0 and 1')
    if arrays['phase'].min() < 0:
        faults.append('phase is negative')
    ids, n = arrays['subtask_id'], len(header['subtasks'])
    if ids.min() < 0 or ids.max() >= n:
        faults.append(f'subtask_id {ids.min()}..{ids.max()}, header has {n} subtasks')
    changed = (arrays['tool_executed'] != arrays['tool_action']).any(1) & (arrays['kicked'] == 0)
    if changed.any():
        faults.append(f'tool_executed differs from tool_action in unkicked row {np.flatnonzero(changed)[0]}')
    if not isinstance(header['instruction'], str) or not header['instruction']:
        faults.append('instruction is empty')
    elif header['askable'][:1] != [header['instruction']]:
        faults.append('askable does not begin with the instruction')
    elif arrays['geometry'].shape[1] % len(header['askable']):
        faults.append(f'geometry has {arrays["geometry"].shape[1]} columns, for {len(header["askable"])} askable goals')
    for camera in header['cameras']:
        flat = np.ptp(arrays[f'image/{camera}'].reshape(len(arrays['time']), -1), axis=1) == 0
        if flat.any():
            faults.append(f'image/{camera} is one flat colour in row {np.flatnonzero(flat)[0]}: not rendered')
    return faults


def check_episode(path):
    """-> list of faults of a file, [] when sound."""
    try:
        arrays, header = read_episode(path)
    except (ValueError, OSError, KeyError) as error:      # a damaged file is a finding, not a crash
        return [f'cannot be read: {error}']
    return find_faults(arrays, header)


def episode_paths(source):
    """Folder, file or list of them -> sorted list of episode files."""
    sources = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    paths = []
    for item in map(str, sources):
        if os.path.isdir(item):
            names = sorted(name for name in os.listdir(item) if name.endswith('.safetensors'))
            paths += [os.path.join(item, name) for name in names]
        elif os.path.isfile(item):
            paths.append(item)
    if not paths:
        raise FileNotFoundError(f'no *.safetensors episodes in {source}; record some: '
                                'python sim_rollout.py config/demo_collect.py')
    return paths


# -----------------------------------------------------------------------------
# tokenizer: byte-level BPE small enough to train from scratch; every word of our templates is one token

SPECIAL_TOKENS = ('<|pad|>', '<|image_pad|>', '<|state_pad|>', '<|vla|>', '<|action_start|>', '<|action_pad|>',
                  '<|action_pass|>', '<|action_end|>', '<|im_start|>', '<|im_end|>')
VOCABULARY_SIZE = 512
TEMPLATE_WORDS = '''the a of on onto in into to with and is it its both over under down up at from then now
put press place take goes join hold keep give pull apart off reach grasp lift carry align release retreat wait
rest hand hands left right near far front back top end corner cell row column plate baseplate brick bricks stud
studs air lower upper red blue yellow green white orange : ; , . ? 2x2 2x3 2x4 2x6 2x8 2x10
0 1 2 3 4 5 6 7 8 9'''.split()


def make_tokenizer(texts, path):
    """Train on the words of `texts` and TEMPLATE_WORDS, each equally often: rare ones stay whole, too. Writes `path`.
    -> the tokenizer, the words that take more than one token"""
    words = sorted({word for text in texts for word in text.split()} | set(TEMPLATE_WORDS))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces = tokenizers.Regex(r' ?[\p{L}\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+')      # '2x4' is one piece
    tokenizer.normalizer = tokenizers.normalizers.Prepend(' ')      # the first word is spelt like the others
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(pieces, 'isolated'),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())     # any text can be encoded
    tokenizer.train_from_iterator([' '.join(words)] * 10, trainer)
    write_atomic(path, tokenizer.to_str(pretty=True).encode())
    return tokenizer, [word for word in words if len(tokenizer.encode(word).ids) > 1]


# -----------------------------------------------------------------------------

class Processor:
    """
    Everything that stands between an observation and the model, and between the model and an action. It lives in
    the checkpoint's meta.json; a rollout takes it from there and from nowhere else.

    cameras        names, in the order the model sees them
    image_size     pixels, square
    state_slots    names or patterns out of STATE_NAMES
    action_slots   names or patterns out of TOOL_ACTION_NAMES; the command in force is held in the others
    horizon        H, rows of a chunk, at control_hz
    tokenizer      the JSON text of a `tokenizers` file
    stats          mean and spread per state slot, (S,), and per row and action slot, (H, A): see `fit`
    """

    def __init__(self, cameras, image_size, state_slots, action_slots, horizon, control_hz, tokenizer,
                 tokens_per_camera=4, action_space='tool', template='minimal', stats=None):
        for name, value, known in (('action_space', action_space, 'tool'), ('template', template, 'minimal')):
            if value != known:
                raise ValueError(f'{name} {value!r}, expected {known!r}')
        self.cameras, self.image_size = tuple(cameras), image_size
        self.state_slots = slots(state_slots, STATE_NAMES)
        self.action_slots = slots(action_slots, TOOL_ACTION_NAMES)
        self.horizon, self.control_hz, self.tokens_per_camera = horizon, control_hz, tokens_per_camera
        self.action_space, self.template = action_space, template
        self.tokenizer_json, self.tokenizer = tokenizer, tokenizers.Tokenizer.from_str(tokenizer)
        self.token_id = {name: self.tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
        missing = [name for name, i in self.token_id.items() if i is None]
        if missing:
            raise ValueError(f'tokenizer lacks {", ".join(missing)}; make one: python data.py tokenizer')
        self.state_index = np.array([STATE_NAMES.index(n) for n in self.state_slots])
        self.action_index = np.array([TOOL_ACTION_NAMES.index(n) for n in self.action_slots])
        self.stats = stats and {k: np.asarray(v, np.float64) for k, v in stats.items()}

    def to_dict(self):
        plain = ('cameras', 'image_size', 'state_slots', 'action_slots', 'horizon', 'control_hz',
                 'tokens_per_camera', 'action_space', 'template')
        return {**{k: list(v) if isinstance(v := getattr(self, k), tuple) else v for k in plain},
                'tokenizer': self.tokenizer_json,
                'stats': self.stats and {k: v.tolist() for k, v in self.stats.items()},
                'state_units': [STATE[i].unit for i in self.state_index],
                'action_units': [TOOL_ACTION[i].unit for i in self.action_index]}

    @classmethod
    def from_dict(cls, d):
        return cls(**{k: v for k, v in d.items() if k not in ('state_units', 'action_units')})

    # ---- agreement with a simulated world or a recorded episode
    def check_world(self, metadata):
        """Raise ValueError, naming the differences, where a world (World.metadata()) does not fit."""
        size = {'height': metadata['image_size'], 'width': metadata['image_size']}
        self._compare('the world', dict.fromkeys(metadata['cameras'], size), metadata['control_hz'],
                      metadata['tool_action_names'])

    def check_header(self, header, path):
        self._compare(path, header['cameras'], header['control_hz'], header['tool_action_slots'])

    def _compare(self, where, cameras, control_hz, action_names):
        faults = []
        for name in self.cameras:
            if name not in cameras:
                faults.append(f'no camera {name!r} (there are: {", ".join(cameras)})')
            elif {cameras[name]['height'], cameras[name]['width']} != {self.image_size}:
                faults.append(f'camera {name!r} gives {cameras[name]["height"]}x{cameras[name]["width"]} px, '
                              f'the policy sees {self.image_size} px squares')
        if control_hz != self.control_hz:
            faults.append(f'control rate {control_hz} Hz, the policy acts at {self.control_hz} Hz')
        if tuple(action_names) != TOOL_ACTION_NAMES:
            faults.append(f'action slots {", ".join(action_names)}, expected {", ".join(TOOL_ACTION_NAMES)}')
        if faults:
            raise ValueError(f'{where} does not fit the policy: ' + '; '.join(faults))

    # ---- text
    def prompt(self, instruction, subtask=None):
        """-> user part, assistant part ('' without subtask): the token sequence as text."""
        for text in (instruction, subtask or ''):
            if '<|' in text:
                raise ValueError(f'{text!r}: "<|" would forge a special token')
        images = '<|image_pad|>' * (self.tokens_per_camera * len(self.cameras))
        assistant = '' if subtask is None else f'{subtask}<|action_start|>'
        return f'{images}<|state_pad|>{instruction}<|vla|>', assistant

    @functools.lru_cache(maxsize=100_000)
    def prompt_ids(self, instruction, subtask=None):
        """-> token ids of the user part, of the assistant part."""
        parts = self.prompt(instruction, subtask)
        return tuple(tuple(self.tokenizer.encode(part).ids) if part else () for part in parts)

    def decode_text(self, ids):
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def pad(self, prompts):
        """[(user ids, assistant ids)] -> input_ids, labels (B, L), user_len, total_len (B,), right-padded."""
        user_len = torch.tensor([len(user) for user, _ in prompts])
        total_len = torch.tensor([len(user) + len(assistant) for user, assistant in prompts])
        shape = (len(prompts), int(total_len.max()))
        ids, labels = torch.full(shape, self.token_id['<|pad|>']), torch.full(shape, -100)
        for i, (user, assistant) in enumerate(prompts):
            ids[i, :total_len[i]] = torch.tensor(user + assistant)
            labels[i, user_len[i]:total_len[i]] = torch.tensor(assistant, dtype=torch.int64)
        return {'input_ids': ids, 'labels': labels, 'user_len': user_len, 'total_len': total_len}

    # ---- numbers
    def normalise_state(self, states):
        """(B, 79) -> (B, S) float32."""
        centred = states[:, self.state_index] - self.stats['state_mean']
        return (centred / self.stats['state_std']).astype(np.float32)

    def normalise_actions(self, actions, commands):
        """(B, H, 15) absolute tool actions, (B, 15) command in force -> (B, H, A) float32."""
        relative = anchor(actions, commands)[..., self.action_index]
        return ((relative - self.stats['action_mean']) / self.stats['action_std']).astype(np.float32)

    def decode_actions(self, chunk, commands):
        """Inverse: (B, H, A) normalised, (B, 15) command in force -> (B, H, 15) absolute actions, float32."""
        chunk, commands = np.asarray(chunk, np.float64), np.asarray(commands, np.float64)
        hold = np.repeat(commands[:, None], chunk.shape[1], 1)     # (B, H, 15)
        relative = anchor(hold, commands)
        relative[..., self.action_index] = chunk * self.stats['action_std'] + self.stats['action_mean']
        out = unanchor(relative, commands)
        for columns in _ROTVEC:      # an arm that predicts no rotation keeps exactly the commanded one
            if not set(columns) & set(self.action_index):
                out[..., columns] = hold[..., columns]
        return out.astype(np.float32)

    def encode(self, rows, subtasks=None):
        """Observations -> batch for the model. `rows` are observation dicts, live from the world or `Dataset.row`: the
        images of our cameras, the state fields and the instruction are read. With `subtasks`, one text per row, the
        batch contains the assistant part and the model acts having read it."""
        for camera in self.cameras:
            shape = np.shape(rows[0][f'image/{camera}'])
            if shape != (self.image_size, self.image_size, 3):
                raise ValueError(f'image/{camera} is {shape}, the model sees {self.image_size} px squares')
        subtasks = [None] * len(rows) if subtasks is None else subtasks
        images = np.stack([[row[f'image/{camera}'] for camera in self.cameras] for row in rows])
        states = np.stack([state_vector(row) for row in rows])
        prompts = [self.prompt_ids(row['instruction'], subtask) for row, subtask in zip(rows, subtasks)]
        return self.assemble(images, states, prompts)

    def assemble(self, images, states, prompts):
        """(B, N, h, w, 3) uint8, (B, 79), prompt ids -> batch. The one place to put model inputs together."""
        state = torch.from_numpy(self.normalise_state(states))
        return {'images': torch.from_numpy(images), 'state': state, **self.pad(prompts)}

    def fit(self, dataset):
        """Mean and spread of exactly the tensors the loss sees: anchored, masked, the sampled windows. A spread below
        the slot's floor becomes the floor: a slot that does not move must not turn noise into signal.
        -> names of those slots, which are constant as far as the model is concerned"""
        state = dataset.state[dataset.windows][:, self.state_index].astype(np.float64)
        total, square, count = 0, 0, 0
        for start in range(0, len(dataset.windows), 65_536):      # in blocks: a million windows take gigabytes
            rows = dataset.windows[start:start + 65_536]
            relative = anchor(dataset.chunk(rows), dataset.state[rows][:, COMMAND])[..., self.action_index]
            mask = dataset.chunk_mask(rows)[..., None]
            total = total + (relative * mask).sum(0)           # (H, A)
            square = square + (relative ** 2 * mask).sum(0)    # (H, A)
            count = count + mask.sum(0)                        # (H, 1)
        mean = total / np.maximum(count, 1)
        spread = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean ** 2, 0))
        state_floor = np.array([STATE[i].floor for i in self.state_index])
        action_floor = np.array([TOOL_ACTION[i].floor for i in self.action_index])
        geometry = dataset.geometry[dataset.windows, 0].astype(np.float64)      # as it comes back from a checkpoint
        self.stats = {'geometry_mean': geometry.mean(0), 'geometry_std': geometry.std(0) + 0.05,
                      'state_mean': state.mean(0), 'state_std': np.maximum(state.std(0), state_floor),
                      'action_mean': mean, 'action_std': np.maximum(spread, action_floor)}
        return ([n for n, low in zip(self.state_slots, state.std(0) < state_floor) if low]
                + [f'action {n}' for n, low in zip(self.action_slots, spread.max(0) < action_floor) if low])


# -----------------------------------------------------------------------------
# Dataset

def in_validation(task, seed, fraction):
    """Whether an episode is held out: by hash, so that recording more episodes never moves one across."""
    return zlib.crc32(f'{task}/{seed}'.encode()) / 2 ** 32 < fraction


class Dataset:
    """
    Windows of H actions over a folder of episodes. Low-dimensional arrays are in memory; images stay in the
    mapped files and one row is read per sample. `batch` is a pure function of (seed, step).

    split        'train', 'val' or None (all); val_fraction of the episodes is held out, by hash of the seed
    tail         windows that start more than `tail` rows after the goal was reached for good are not sampled
    draws        K, (noise, time) draws per chunk; they share one reading of the images
    read_text    probability that a draw sees the subtask text
    gain         spread of the colour gain, per image channel; brightness: of the offset, in 0..255
    shift        largest image shift, pixels; state_noise: in normalised units
    """

    def __init__(self, source, processor, split=None, val_fraction=0.05, tail=3, draws=1, read_text=0.5,
                 gain=0.0, brightness=0.0, shift=0, state_noise=0.0,
                 ask=0.0):
        self.ask = ask
        self.processor, self.draws, self.read_text = processor, draws, read_text
        self.gain, self.brightness, self.shift, self.state_noise = gain, brightness, shift, state_noise
        self.paths, self.headers, self.images = [], [], []
        parts = {name: [] for name in ('state', 'tool_action', 'time', 'subtask_id', 'kicked', 'goal', 'geometry')}
        for path in episode_paths(source):
            arrays, header = read_episode(path)
            if split and (split == 'val') != in_validation(header['task'], header['seed'], val_fraction):
                continue
            processor.check_header(header, path)
            self.paths.append(path)
            self.headers.append(header)
            self.images.append([arrays[f'image/{camera}'] for camera in processor.cameras])
            if parts.keys() - arrays.keys():
                raise ValueError(f'{path} has no {", ".join(parts.keys() - arrays.keys())}: record it anew')
            for name, part in parts.items():
                part.append(np.array(arrays[name]))
        if not self.paths:
            raise ValueError(f'no episode of {source} is in the {split!r} part (val_fraction {val_fraction})')
        lengths = np.array([len(t) for t in parts['time']])
        self.state, self.tool_action, self.time, self.subtask_id = (
            np.concatenate(parts[name]) for name in ('state', 'tool_action', 'time', 'subtask_id'))
        # What could have been asked in the same scene: (n, G, columns), G the most of any episode. Millimetres matter
        # when close, decimetres do not when far: linear to 1 cm, logarithmic beyond.
        self.n_askable = np.array([len(h['askable']) for h in self.headers])
        blocks = [g.reshape(len(g), k, -1) for g, k in zip(parts['geometry'], self.n_askable)]
        fill = [(0, 0), (0, 0), (0, 0)]
        blocks = [np.pad(b, [*fill[:1], (0, self.n_askable.max() - b.shape[1]), *fill[2:]]) for b in blocks]
        self.geometry = np.arcsinh(np.concatenate(blocks) / 0.01)
        self.start = np.concatenate([[0], np.cumsum(lengths)])           # (E+1,) first row of each episode
        self.episode = np.repeat(np.arange(len(lengths)), lengths)       # (n,) row -> its episode
        self.last = self.start[1:][self.episode] - 1                     # (n,) row -> last row of its episode
        self.held = np.array([bool(h['success']) for h in self.headers])[self.episode]      # (n,)
        self.kicks_before = np.concatenate([[0], np.cumsum(np.concatenate(parts['kicked']) > 0)])      # (n+1,)
        # first row from which on the goal holds to the end
        settled = [0 if goal.all() else n - np.argmin(goal[::-1]) for n, goal in zip(lengths, parts['goal'])]
        sampled = [np.arange(n) <= at + tail for n, at in zip(lengths, settled)]
        self.windows = np.flatnonzero(np.concatenate(sampled))           # rows at which a window may start
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)     # a batch across epochs needs two

    def __len__(self):
        return len(self.windows)

    def fingerprint(self):
        """Short hash of what is in the files: resuming on other data would not be resuming."""
        digest = hashlib.sha256(np.ascontiguousarray(self.tool_action))
        for path, header in zip(self.paths, self.headers):
            digest.update(f'{os.path.basename(path)} {header["task"]} {header["seed"]} '.encode())
        return digest.hexdigest()[:16]

    # ---- windows, by arrays of row numbers that count through all episodes
    def chunk(self, rows):
        """-> (B, H, 15) absolute actions; past the end of the episode the last command is held."""
        at = rows[:, None] + np.arange(self.processor.horizon)
        return self.tool_action[np.minimum(at, self.last[rows][:, None])]

    def chunk_mask(self, rows):
        """-> (B, H) bool. Row j counts if nothing kicked the robot in rows 0..j-1 of the window: from a kick on, the
        recorded actions answer another situation. Past the end rows count if the episode was a success."""
        at, last = rows[:, None] + np.arange(self.processor.horizon), self.last[rows][:, None]
        undisturbed = self.kicks_before[np.minimum(at, last + 1)] == self.kicks_before[rows][:, None]
        return undisturbed & ((at <= last) | self.held[rows][:, None])

    def instruction(self, row, k=0):
        """What the row's episode was asked for; k > 0: what else could have been asked in that scene."""
        return self.headers[self.episode[row]]['askable'][k]

    def subtask(self, row):
        return self.headers[self.episode[row]]['subtasks'][self.subtask_id[row]]

    def row(self, row):
        """Recorded frame as the observation dict the world gave."""
        obs = {'time': float(self.time[row]), **observation_from_state(self.state[row])}
        obs |= {f'image/{c}': image for c, image in zip(self.processor.cameras, self.gather_images([row])[0])}
        return obs | {'instruction': self.instruction(row)}

    def gather_images(self, rows):
        """-> (B, N, h, w, 3) uint8."""
        size = self.processor.image_size
        out = np.empty((len(rows), len(self.processor.cameras), size, size, 3), np.uint8)
        for i, row in enumerate(rows):
            episode = self.episode[row]
            for n, images in enumerate(self.images[episode]):
                out[i, n] = images[row - self.start[episode]]
        return out

    def action_error(self, rows, chunk):
        """Mean absolute error of (B, H, A) chunks over the rows that count, by kind of slot, in its unit."""
        processor = self.processor
        predicted = processor.decode_actions(chunk, self.state[rows][:, COMMAND])
        error = np.abs(predicted - self.chunk(rows))[self.chunk_mask(rows)]      # (rows that count, 15)
        result = {}
        for name, pattern, scale in (('position_mm', '*/tool_[xyz]', 1e3), ('rotation_rad', '*/tool_r?', 1),
                                     ('gripper_mm', '*/gripper', 1e3), ('spine_rad', 'spine_z', 1)):
            names = fnmatch.filter(processor.action_slots, pattern)
            if names:
                columns = [TOOL_ACTION_NAMES.index(slot) for slot in names]
                result[name] = float(error[:, columns].mean() * scale)
        return result

    # ---- batches
    def _shuffled(self, seed, epoch):
        return np.random.default_rng([seed, epoch]).permutation(len(self.windows))

    def sample_rows(self, step, batch_size, seed):
        """Rows of the global batch of a step: a permutation of the windows per epoch, none left out."""
        n = len(self.windows)
        at = np.arange(step * batch_size, (step + 1) * batch_size)
        order = [self._order(seed, int(epoch))[at[at // n == epoch] % n] for epoch in np.unique(at // n)]
        return self.windows[np.concatenate(order)]

    def batch(self, step, batch_size, rank=0, world_size=1, seed=0):
        """Slice `rank` of the global batch of `step`: the keys model.VLA reads, and those `augment` takes out.
        Everything random is drawn for the global batch, so that the number of ranks changes no number.
        n_rows and n_tokens are the loss's denominators: global counts divided by world_size."""
        if batch_size % world_size:
            raise ValueError(f'global batch {batch_size} does not divide into {world_size} slices')
        processor, B, K = self.processor, batch_size, self.draws
        H, A, S = processor.horizon, len(processor.action_slots), len(processor.state_slots)
        rng = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))
        draws = {
            'noise': torch.randn(B, K, H, A, generator=rng),
            'time': 0.001 + 0.999 * torch.rand(B, K, generator=rng) ** (1 / 1.5),    # Beta(1.5, 1) by inversion
            'read_text': torch.rand(B, K, generator=rng) < self.read_text,
            'gain': 1 + self.gain * torch.randn(B, 1, 1, 1, 3, generator=rng),
            'offset': self.brightness * torch.randn(B, 1, 1, 1, 1, generator=rng),
            'shift': torch.randint(-self.shift, self.shift + 1, (B, len(processor.cameras), 2), generator=rng),
            'state_noise': self.state_noise * torch.randn(B, S, generator=rng)}
        ask = torch.rand(B, 2, generator=rng).numpy()
        rows = self.sample_rows(step, batch_size, seed)
        # Some samples ask for something else than what the episode was about: there is no action to learn from them, but
        # the answer to `where` needs the words, because what the arms are doing no longer gives it away.
        others = self.n_askable[self.episode[rows]] - 1
        asked = np.where(ask[:, 0] < self.ask, np.ceil(ask[:, 1] * others).astype(int), 0)       # 0: as it was
        prompts = [processor.prompt_ids(self.instruction(row, k), None if k else self.subtask(row))
                   for row, k in zip(rows, asked)]
        longest = max(prompts, key=lambda parts: len(parts[0]) + len(parts[1]))
        mine = slice(rank * B // world_size, (rank + 1) * B // world_size)
        n, state = len(rows[mine]), self.state[rows[mine]]
        # the longest prompt of all ranks sets the width of every rank's batch
        batch = processor.assemble(self.gather_images(rows[mine]), state, prompts[mine] + [longest])
        batch = {k: v[:n] for k, v in batch.items()} | {k: v[mine] for k, v in draws.items()}
        batch['state'] += batch.pop('state_noise')
        actions = processor.normalise_actions(self.chunk(rows[mine]), state[:, COMMAND])
        mask = self.chunk_mask(rows) & (asked == 0)[:, None]
        n_tokens = sum(len(assistant) for _, assistant in prompts)
        geometry = (self.geometry[rows, asked][mine] - processor.stats['geometry_mean']) / processor.stats['geometry_std']
        return batch | {'geometry': torch.from_numpy(geometry.astype(np.float32)),
                        'actions': torch.from_numpy(actions), 'action_mask': torch.from_numpy(mask[mine]),
                        'n_rows': torch.tensor(mask.sum() / world_size, dtype=torch.float32),
                        'n_tokens': torch.tensor(n_tokens / world_size, dtype=torch.float32)}


def augment(batch):
    """
    Apply the batch's own draws to its images, on whatever device they are: shift by whole pixels (edges
    repeated), colour gain, brightness. Images come out as float 0..255, not clipped: one pass less.
    """
    batch = dict(batch)
    images, gain, offset, shift = (batch.pop(k) for k in ('images', 'gain', 'offset', 'shift'))
    if shift.any():
        size = torch.arange(images.shape[2], device=images.device)
        y, x = ((size + shift[..., axis, None]).clamp(0, len(size) - 1) for axis in (0, 1))      # (B, N, h)
        b, n = (torch.arange(k, device=images.device) for k in images.shape[:2])
        images = images[b[:, None, None, None], n[:, None, None], y[..., :, None], x[..., None, :]]
    if offset.any() or (gain != 1).any():
        flat = images.flatten(3).float()      # (B, N, h, w*3): an inner loop of 3 channels would be 3 times slower
        flat = flat.mul_(gain.repeat(1, 1, 1, images.shape[3], 1).flatten(3)).add_(offset[..., 0])
        images = flat.view(images.shape)
    return batch | {'images': images}


def prefetch(make, steps):
    """Yield make(step) for each step; a thread makes the next one meanwhile. Order and numbers stay."""
    with concurrent.futures.ThreadPoolExecutor(1, initializer=torch.set_num_threads,
                                               initargs=(torch.get_num_threads(),)) as pool:
        ahead = None
        for step in steps:
            now = ahead or pool.submit(make, step)
            ahead = pool.submit(make, step + 1) if step + 1 in steps else None
            yield now.result()


# -----------------------------------------------------------------------------
# synthetic episodes, for config/debug.py and the tests; no simulator needed

def write_synthetic_episodes(folder, count, cameras, image_size, control_hz=10, kicks=0.1, seed0=0):
    for seed in range(seed0, seed0 + count):
        write_episode(os.path.join(folder, f'synthetic_{seed:06d}.safetensors'),
                      *synthetic_episode(seed, cameras, image_size, control_hz, kicks))


def synthetic_episode(seed, cameras, image_size, control_hz=10, kicks=0.1):
    """-> arrays, header. Random but learnable: the right tool goes to the square of the named colour and closes."""
    rng = np.random.default_rng(seed)
    colours = {'red': (200, 40, 40), 'blue': (40, 60, 200)}
    name = list(colours)[rng.integers(2)]
    places = {colour: rng.uniform([0.25, -0.1, 0], [0.45, 0.1, 0]) for colour in colours}
    command = np.zeros(15, np.float32)
    command[_POSITION] = rng.uniform([0.25, -0.1, 0.05], [0.45, 0.1, 0.15], (2, 3))
    command[_ROTVEC[:, 2]] = rng.uniform(-0.5, 0.5, 2)
    command[[7, 14]] = 0.06
    rows, settled, grid = [], 0, np.stack(np.indices((image_size, image_size)), -1)      # grid (h, w, 2)
    while len(rows) < 60 and settled < 4:
        pos = command[_POSITION] + rng.normal(0, 0.0005, (2, 3))
        obs = {'joint_pos': np.zeros(15), 'joint_vel': np.zeros(15), 'tool_vel': np.zeros((2, 3)), 'tool_pos': pos,
               'tool_quat': quat_from_rotvec(command[_ROTVEC]), 'gripper': command[[7, 14]], 'tool_command': command}
        away = places[name] - command[_POSITION][1]
        near = np.abs(away).max() < 0.002
        settled += bool(near and command[14] < 0.03)
        action, kicked = command.copy(), not near and rng.random() < kicks
        action[_POSITION[1]] += np.clip(away, -0.03, 0.03)
        action[14] = 0.02 if near else 0.06
        executed = action.copy()
        executed[_POSITION[1]] += kicked * rng.normal(0, 0.02, 3)
        row = {'time': len(rows) / control_hz, 'state': state_vector(obs), 'tool_action': action,
               'tool_executed': executed, 'joint_action': np.zeros(17), 'kicked': kicked, 'goal': settled > 0,
               'connections': 0, 'phase': int(near), 'subtask_id': int(near),
               'geometry': away, **{k: np.zeros(3) for k in ('qpos', 'qvel', 'ctrl')}}
        for camera in cameras:
            image = np.full((image_size, image_size, 3), 128, np.uint8)
            centre = pos[ARMS.index(camera.split('/')[0])] if '/' in camera else np.array([0.35, 0, 0])
            for colour, place in places.items():
                at = (0.5 + (place - centre)[:2] / 0.4) * image_size
                image[(np.abs(grid - at) < image_size * 0.06).all(-1)] = colours[colour]
            image[0, 0] = 0      # a view with no square in it is still a picture
            row[f'image/{camera}'] = image
        rows.append(row)
        command = executed
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}, {
        'task': 'synthetic', 'instruction': f'reach the {name} brick', 'askable': [f'reach the {name} brick'], 'control_hz': control_hz, 'seed': seed,
        'subtasks': [f'right hand: reach the {name} brick', f'right hand: grasp the {name} brick'],
        'success': settled > 0, 'metrics': {}, 'world': {}}


# -----------------------------------------------------------------------------
# commands

def print_stats(paths):
    """Counts, instructions, and one line per slot: mean, spread and range over all rows of all files."""
    loaded = [read_episode(path) for path in paths]
    kicked = np.concatenate([a['kicked'] for a, _ in loaded])
    successes = sum(bool(h['success']) for _, h in loaded)
    print(f'{len(paths)} episodes, {successes} successful, {len(kicked)} rows, '
          f'{len(kicked) / len(paths):.1f} per episode, {kicked.sum(dtype=int)} kicked, '
          f'{sum(map(os.path.getsize, paths)) / 1e9:.2f} GB')
    texts = [h['instruction'] for _, h in loaded]
    print(*(f'{texts.count(text):6d} x {text}' for text in sorted(set(texts))), sep='\n')
    for key in ('state', 'tool_action', 'joint_action'):
        values = np.concatenate([a[key] for a, _ in loaded]).astype(np.float64)
        print(f'\n{key:32s}{"unit":>6s}{"mean":>10s}{"std":>10s}{"min":>10s}{"max":>10s}')
        for slot, v in zip(TABLES[key], values.T):
            numbers = ''.join(f'{x:10.4f}' for x in (v.mean(), v.std(), v.min(), v.max()))
            dead = '  below its floor' if v.std() < slot.floor else ''
            print(f'{slot.name:32s}{slot.unit:>6s}{numbers}{dead}')


def draw_episode(path, out):
    """Contact sheet (a row per camera, 12 moments) over plots of labels and commands in force."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    arrays, header = read_episode(path)
    time, n = arrays['time'], len(header['cameras'])
    figure, axes = plt.subplots(n + 4, 1, figsize=(18, 1.6 * n + 9), constrained_layout=True)
    for axis, camera in zip(axes, header['cameras']):
        moments = np.linspace(0, len(time) - 1, 12).astype(int)
        axis.imshow(np.concatenate([arrays[f'image/{camera}'][t] for t in moments], 1))
        axis.set(ylabel=camera, xticks=[], yticks=[])
    curves = {'tool_[xy]': 'x, y (m)', 'tool_z': 'z (m)', 'tool_rz': 'yaw (rad)', 'gripper': 'grip (m)'}
    for axis, (pattern, title) in zip(axes[n:], curves.items()):
        for name in slots([f'*/{pattern}'], TOOL_ACTION_NAMES):
            line, = axis.plot(time, arrays['tool_action'][:, TOOL_ACTION_NAMES.index(name)], label=name)
            in_force = arrays['state'][:, STATE_NAMES.index(f'command/{name}')]
            axis.plot(time, in_force, ':', color=line.get_color())
        for t in np.flatnonzero(arrays['kicked']):
            axis.axvline(time[t], color='0.8', zorder=0)
        axis.set_ylabel(title)
        axis.legend(loc='upper right', ncols=4, fontsize=7)
    for t in np.flatnonzero(np.diff(arrays['subtask_id'], prepend=-1)):
        words = header['subtasks'][arrays['subtask_id'][t]]
        axes[n].annotate(words, (time[t], axes[n].get_ylim()[0]), rotation=90, fontsize=7, va='bottom')
    axes[-1].set_xlabel('time (s). Lines: label; dotted: command in force; grey: kicked')
    outcome = 'success' if header['success'] else 'failure'
    figure.suptitle(f'{path}\n{header["task"]} seed {header["seed"]}: {header["instruction"]} ({outcome})')
    figure.savefig(out, dpi=70)
    plt.close(figure)


def main(argv):
    """-> exit code."""
    options = {'from': None, 'out': 'assets/tokenizer.json'}
    options |= dict(word[2:].split('=', 1) for word in argv if word.startswith('--') and '=' in word)
    command, *rest = [word for word in argv if not word.startswith('--')] or ['help']
    if command == 'tokenizer' and not rest and len(options) == 2:
        out, paths = options['out'], episode_paths(options['from']) if options['from'] else []
        headers = [read_episode(path)[1] for path in paths]
        texts = {text for header in headers for text in [header['instruction'], *header['subtasks']]}
        tokenizer, split = make_tokenizer(texts, out)
        print(f'{out}: {tokenizer.get_vocab_size()} entries; cut into pieces: {" ".join(split) or "no word"}')
    elif command == 'check' and len(rest) == 1:
        faults = {path: check_episode(path) for path in episode_paths(rest[0])}
        print(*(f'{path}: {fault}\n' for path in faults for fault in faults[path]), sep='', end='')
        faulty = sum(map(bool, faults.values()))
        print(f'{len(faults)} episodes, {faulty} with faults')
        return int(faulty > 0)
    elif command == 'stats' and len(rest) == 1:
        print_stats(episode_paths(rest[0]))
    elif command == 'show' and len(rest) == 1:
        for path in episode_paths(rest[0]):
            out = os.path.splitext(path)[0] + '.png'
            draw_episode(path, out)
            print(out)
    else:
        print(__doc__.split('\n\n')[1])
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
