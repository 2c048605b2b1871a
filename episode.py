"""Episodes on disk: what a frame holds, slot by slot, and files that are written, read and checked.

    arrays, header = read_episode(path)        # {name: array}, dict
    write_episode(path, arrays, header)        # refuses what check_episode would find fault with

An episode is one safetensors file: arrays whose row t holds the observation before action t, and a
JSON header under the metadata key "header". It holds SI units and raw pixels, nothing normalised;
it is read without torch or a simulator. It has two parts:
    CORE     what any robot's log has and all that training needs: time, state, the commanded
             action, pictures, instruction, and the names, units and kinds of every slot
    TRUTH    what our simulator adds: physics, where the bricks are, what words refer to, answers
Grounding, questions and replays ask for TRUTH and say what they miss (`demand`); nothing else does.
"""

import fnmatch
import functools
import io
import json
import math
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import safetensors.numpy

# -----------------------------------------------------------------------------
# Slots. A slot is a column of a state or of an action; everything refers to slots by name. Which
# slots there are stands in the header of the file, so that any robot's episodes can be read.

ARMS = ('left', 'right')
# A brick is its colour: the number of a loose brick in scene targets, referents and questions is
# its colour's number here, in every task. No two loose bricks of a scene share a colour.
COLOURS = ('red', 'blue', 'yellow', 'white', 'orange', 'black', 'green')
KINDS = ('pose', 'joint', 'absolute')
# The smallest spread that the normaliser divides by, where a robot's own table names none: what
# moves less than a millimetre or half a degree is noise of the sensor and carries no signal. Of
# other units nothing is known; theirs only keeps a slot that never moves from being divided by 0.
FLOORS = {'m': 0.001, 'rad': 0.01}
OTHER_FLOOR = 0.001


class Slot(NamedTuple):
    """A column of a state or an action.

    The kind tells what an action is relative to in the model's eyes. 'pose': six slots in a row,
    x, y, z and the rotation vector rx, ry, rz of one tool, are seen in the frame of the pose that
    was commanded before; 'joint': the difference to the command before; 'absolute': as it is, for
    grippers. A state's slots have no kind.
    """

    name: str
    unit: str
    kind: str
    low: float  # outside [low, high] is a fault in the file, not a wide motion
    high: float
    floor: float  # the smallest spread that the normaliser divides by


Table = tuple[Slot, ...]
Tables = dict[str, Table]  # Tables by the name of their array.
Arrays = dict[str, Any]  # {name: array with a row per step}; pictures may be JpegFrames
Header = dict[str, Any]
Path = str | os.PathLike


def plain_slot(name: str, unit: str, kind: str = '') -> Slot:
    """A slot of a robot that we know nothing else of: no range, the floor of its unit."""
    floor = FLOORS[unit] if unit in FLOORS else OTHER_FLOOR
    return Slot(name, unit, kind, -math.inf, math.inf, floor)


def slots(patterns: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    """Names chosen by exact name or glob pattern, each once, in the order asked for.

    Args:
        patterns: For instance 'right/tool_x' or 'command/*/tool_?'.
        names: What there is to choose from.

    Raises:
        ValueError: A pattern matches nothing.
    """
    chosen: list[str] = []
    for pattern in patterns:
        hits = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            raise ValueError(f'no slot matches {pattern!r}; the slots are: {", ".join(names)}')
        chosen += [name for name in hits if name not in chosen]
    return tuple(chosen)


def pose_columns(table: Sequence[Slot]) -> np.ndarray:
    """Columns of the tools' poses in an action: (tools, 6), x, y, z, rx, ry, rz each."""
    columns = [i for i, slot in enumerate(table) if slot.kind == 'pose']
    return np.array(columns, int).reshape(-1, 6)


# -----------------------------------------------------------------------------
# The table of our own robot, Alex.
# Poses are those of the tool (between the fingertips) in the torso frame: x forward, y left, z up,
# table top at z = 0. The tool frame equals the torso frame when the hand points straight down at
# rest; orientation in an action is the rotation vector r from there, R = exp(r). A gripper command
# below zero squeezes harder.


def _per_arm(rows: Iterable[Slot], prefix: str = '') -> Table:
    rows = list(rows)
    return tuple(slot._replace(name=f'{prefix}{arm}/{slot.name}') for arm in ARMS for slot in rows)


def _measured(table: Iterable[Slot], prefix: str = '') -> Table:
    """The same slots in a state, where they have no kind."""
    return tuple(slot._replace(name=f'{prefix}{slot.name}', kind='') for slot in table)


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
_JOINTS = tuple(Slot(name, 'rad', 'joint', -6.3, 6.3, 0.01) for name in JOINT_NAMES)
_VELOCITIES = tuple(
    Slot(f'velocity/{name}', 'rad/s', '', -100.0, 100.0, 0.05) for name in JOINT_NAMES
)
_SPINE = Slot('spine_z', 'rad', 'joint', -3.2, 3.2, 0.005)
_XYZ = tuple(Slot(f'tool_{axis}', 'm', 'pose', -1.5, 1.5, 0.001) for axis in 'xyz')
_ROTATION = tuple(Slot(f'tool_r{axis}', 'rad', 'pose', -6.3, 6.3, 0.01) for axis in 'xyz')
_GRIPPER = (Slot('gripper', 'm', 'absolute', -0.05, 0.20, 0.001),)
_QUATERNION = tuple(Slot(f'tool_q{axis}', '', '', -1.001, 1.001, 0.01) for axis in 'wxyz')
_TOOL_VELOCITY = tuple(Slot(f'tool_v{axis}', 'm/s', '', -50.0, 50.0, 0.02) for axis in 'xyz')
# measured minus commanded: a press, a jam or a missed grasp shows here first
_ERROR = tuple(slot._replace(low=-2.0, high=2.0) for slot in _XYZ) + _ROTATION

JOINT_ACTION = _JOINTS + _per_arm(_GRIPPER)
TOOL_ACTION = (_SPINE,) + _per_arm(_XYZ + _ROTATION + _GRIPPER)
STATE = (
    _measured(_JOINTS)
    + _VELOCITIES
    + _measured(_per_arm(_GRIPPER))
    + _measured(_per_arm(_XYZ))
    + _per_arm(_QUATERNION)
    + _per_arm(_TOOL_VELOCITY)
    + _measured(TOOL_ACTION, 'command/')  # the command in force
    + _measured(_per_arm(_ERROR, 'error/'))
)
JOINT_ACTION_NAMES = tuple(slot.name for slot in JOINT_ACTION)
TOOL_ACTION_NAMES = tuple(slot.name for slot in TOOL_ACTION)
STATE_NAMES = tuple(slot.name for slot in STATE)
TABLES = {'state': STATE, 'tool_action': TOOL_ACTION, 'joint_action': JOINT_ACTION}
ACTIONS = ('tool_action', 'joint_action')


def _columns(names, arm):
    """Where the slots of an arm, which stand side by side, are among the names."""
    at = [i for i, name in enumerate(names) if name.startswith(f'{arm}/')]
    return slice(at[0], at[-1] + 1)


ARM_JOINTS = {arm: _columns(JOINT_NAMES, arm) for arm in ARMS}  # Columns of a joint action.
ARM_TOOL = {arm: _columns(TOOL_ACTION_NAMES, arm) for arm in ARMS}  # Columns of a tool action.
JOINT_GRIPPER = {arm: JOINT_ACTION_NAMES.index(f'{arm}/gripper') for arm in ARMS}


POSITION = pose_columns(TOOL_ACTION)[:, :3]  # (arms, 3) columns of a tool action
ROTVEC = pose_columns(TOOL_ACTION)[:, 3:]  # (arms, 3)
GRIPPER = np.array([TOOL_ACTION_NAMES.index(f'{arm}/gripper') for arm in ARMS])
COMMAND = slice(  # The command in force stands here in the state.
    STATE_NAMES.index(f'command/{TOOL_ACTION_NAMES[0]}'),
    STATE_NAMES.index(f'command/{TOOL_ACTION_NAMES[-1]}') + 1,
)


# -----------------------------------------------------------------------------
# slots in a header


def slot_keys(**tables: Sequence[tuple]) -> dict[str, list[str]]:
    """What a header says about the slots of its arrays.

    Args:
        tables: By array ('state', 'tool_action', 'joint_action'), its slots in the order of the
            columns: a Slot, or (name, unit, kind) each. A state's kind is ''.

    Returns:
        '<array>_slots' and '<array>_units', and of actions '<array>_kinds'.
    """
    keys = {}
    for name, table in tables.items():
        keys[f'{name}_slots'] = [slot[0] for slot in table]
        keys[f'{name}_units'] = [slot[1] for slot in table]
        if name in ACTIONS:
            keys[f'{name}_kinds'] = [slot[2] for slot in table]
    return keys


def table_of(name: str, names: Sequence[str], units: Sequence[str], kinds: Sequence[str]) -> Table:
    """Slots of an array by what a header or a checkpoint says of them.

    Ranges and floors are those of our own table where names and units are its own: they are not
    written into files.
    """
    own = TABLES[name]
    if [(slot.name, slot.unit) for slot in own] == list(zip(names, units)):
        return own
    return tuple(map(plain_slot, names, units, kinds))


def slot_tables(header: Header) -> Tables:
    """The slots of state and actions of an episode, by array.

    Files of spec 1 name no kinds: they all hold our own robot's slots.
    """
    tables = {}
    for name in TABLES:
        if f'{name}_slots' not in header:
            continue
        names = header[f'{name}_slots']
        kinds = [''] * len(names)
        if f'{name}_kinds' in header:
            kinds = header[f'{name}_kinds']
        tables[name] = table_of(name, names, header[f'{name}_units'], kinds)
    return tables


def tables_of(source: Path | Sequence) -> Tables:
    """The slots of the first episode of a folder, see `slot_tables`."""
    return slot_tables(read_episode(episode_paths(source)[0])[1])


# -----------------------------------------------------------------------------
# rotations, all vectorised over leading dimensions, computed in float64


def quat_from_rotvec(r: np.ndarray) -> np.ndarray:
    """(..., 3) rotation vector, rad -> (..., 4) wxyz."""
    r = np.asarray(r, np.float64)
    half = np.linalg.norm(r, axis=-1, keepdims=True) / 2
    return np.concatenate([np.cos(half), np.sinc(half / np.pi) / 2 * r], -1)


def rotvec_from_quat(q: np.ndarray) -> np.ndarray:
    """(..., 4) wxyz, unit -> (..., 3) rotation vector with angle <= pi, rad.

    It is exact near 0 and near pi.
    """
    q = np.asarray(q, np.float64)
    q = np.where(q[..., :1] < 0, -q, q)
    n = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    small = n < 1e-12
    angle = 2 * np.arctan2(n, q[..., :1])
    return q[..., 1:] * np.where(small, 2.0, angle / np.where(small, 1.0, n))


def quat_mul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Product of (..., 4) quaternions wxyz: b's turn first, then a's."""
    w = a[..., :1] * b[..., :1] - (a[..., 1:] * b[..., 1:]).sum(-1, keepdims=True)
    v = a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:] + np.cross(a[..., 1:], b[..., 1:])
    return np.concatenate([w, v], -1)


def quat_inv(q: np.ndarray) -> np.ndarray:
    """Inverse of (..., 4) unit quaternions wxyz."""
    return q * np.array([1.0, -1.0, -1.0, -1.0])


def quat_rotate(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Rotate (..., 3) vectors by (..., 4) quaternions wxyz."""
    u = q[..., 1:]
    w = q[..., :1]
    cross = np.cross(u, v)
    return v + 2 * (w * cross + np.cross(u, cross))


# -----------------------------------------------------------------------------
# our robot's observation -> state vector

_FIELDS: dict[str, tuple[int, ...]] = {
    'joint_pos': (len(JOINT_NAMES),),
    'joint_vel': (len(JOINT_NAMES),),
    'gripper': (len(ARMS),),
    'tool_pos': (len(ARMS), 3),
    'tool_quat': (len(ARMS), 4),
    'tool_vel': (len(ARMS), 3),
    'tool_command': (len(TOOL_ACTION),),
}


def state_vector(obs: Mapping[str, Any]) -> np.ndarray:
    """Observation of the world -> (S,) float32 in the order of STATE."""
    # The fields are cast first and computed with then: a recorded row reproduces its tracking
    # error bit for bit.
    field = {
        name: np.asarray(obs[name], np.float32).reshape(shape) for name, shape in _FIELDS.items()
    }
    pos = field['tool_pos'].astype(np.float64)
    quat = field['tool_quat'].astype(np.float64)
    command = field['tool_command'].astype(np.float64)
    turn = quat_mul(quat, quat_inv(quat_from_rotvec(command[ROTVEC])))  # (arms, 4)
    error = np.concatenate([pos - command[POSITION], rotvec_from_quat(turn)], -1)  # (arms, 6)
    parts = [value.ravel() for value in field.values()]
    return np.concatenate([*parts, error.ravel().astype(np.float32)])


# -----------------------------------------------------------------------------
# what a file holds

SPEC_VERSION = 2  # 1 held our own robot's slots only and named no kinds
READABLE = (1, 2)
# A label and what was executed are further apart than this (m, rad) in rows marked as kicked only.
MAX_JITTER = 0.02

# By array its dtype and its columns: None for one value per row, 0 for as many as the robot has,
# or the table that counts them.
CORE_ARRAYS: dict[str, tuple[str, None | int | str]] = {
    'time': ('float64', None),  # s
    'state': ('float32', 'state'),
    # What was commanded, one of these at least. tool_action: poses; of our own robot what the
    # expert would do, seeing row t. joint_action: joints; of our own robot the joint command in
    # force after the step that was executed.
    'tool_action': ('float32', 'tool_action'),
    'joint_action': ('float32', 'joint_action'),
}
TRUTH_ARRAYS: dict[str, tuple[str, None | int | str]] = {
    # What the world got: the label and a jitter; something else where the row is kicked.
    'tool_executed': ('float32', 'tool_action'),
    'kicked': ('uint8', None),  # 1: what was executed is not the label
    'qpos': ('float64', 0),
    'qvel': ('float64', 0),
    'ctrl': ('float64', 0),
    'connections': ('int32', None),
    'phase': ('int32', None),
    'subtask_id': ('int32', None),
    'goal': ('uint8', None),  # 1: the goal is reached
    # A training target only, labels.scene: 12 columns for each of COLOURS, nan where no loose brick
    # has that colour.
    'scene': ('float32', 0),
}
CORE_KEYS = ('spec', 'task', 'instruction', 'control_hz', 'cameras', 'seed', 'success')
TRUTH_KEYS = ('subtasks', 'metrics', 'world', 'git_rev', 'qa', 'askable', 'referents')
# These ask for TRUTH: arrays, header keys, and what to do without.
NEEDS = {
    'grounding': (
        ('scene',),
        ('askable', 'referents'),
        "grounding learns from the simulator's truth; train without it: --grounding=False",
    ),
    'questions': (
        ('goal', 'subtask_id'),
        ('qa', 'subtasks'),
        "the simulator's truth answers the questions; ask none: --question_share=0",
    ),
    'replay': (
        ('tool_action', 'tool_executed', 'kicked', 'qpos', 'subtask_id'),
        ('world', 'subtasks'),
        'a replay repeats physics; replay what sim_rollout.py recorded',
    ),
}


def lacks(use: str, arrays: Iterable[str], header: Header) -> str:
    """What an episode lacks for a use of NEEDS and what to do then, in words; '' where nothing."""
    needed_arrays, needed_keys, remedy = NEEDS[use]
    missing = [name for name in needed_arrays if name not in arrays]
    missing += [key for key in needed_keys if key not in header]
    if use == 'grounding' and 'referents' not in missing and not _by_row(header['referents']):
        missing.append('referents by row')
    return f'has no {", ".join(missing)}: {remedy}' if missing else ''


def demand(use: str, path: Path, arrays: Iterable[str], header: Header) -> None:
    """Raise ValueError where an episode lacks what a use of NEEDS asks for."""
    lack = lacks(use, arrays, header)
    if lack:
        raise ValueError(f'{path} {lack}')


def _by_row(referents: list) -> bool:
    """Whether referents are [first row, table] each; an older version wrote one table."""
    return all(len(span) == 2 and isinstance(span[1], list) for span in referents)


# -----------------------------------------------------------------------------
# reading and writing

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


def write_atomic(path: Path, content: bytes | Callable[[str], Any]) -> None:
    """Write a file so that a kill leaves either the old one or the new one, never half of it.

    A write that fails leaves nothing. Who may read the file is what umask says, as for any other
    file.

    Args:
        path: Where the file goes; its folder is made if it is not there.
        content: Bytes, or a function that is given a path and writes the file there.
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    tmp = f'{path}.{os.getpid()}.tmp'  # its own name per process: two writers cannot interleave
    try:
        if callable(content):
            content(tmp)
        else:
            with open(tmp, 'wb') as f:
                f.write(content)
        with open(tmp, 'rb') as f:
            os.fsync(f.fileno())
        os.chmod(tmp, 0o666 & ~_umask())  # safetensors makes files that only their owner can read
        os.replace(tmp, path)
    except OSError:  # a full disk, for instance
        if os.path.exists(tmp):
            os.remove(tmp)
        raise


@functools.cache
def _umask() -> int:
    mask = os.umask(0o077)  # the only way to ask is to set it
    os.umask(mask)
    return mask


class JpegFrames:
    """Pictures that are decoded where they are looked at: an array (T, h, w, 3) to whoever indexes.

    Args:
        packed: u8 (N), all pictures one after the other.
        offset: i64 (T + 1), where each of them begins.
        height: Pixels.
        width: Pixels.
    """

    dtype = np.dtype('uint8')
    ndim = 4

    def __init__(self, packed: np.ndarray, offset: np.ndarray, height: int, width: int):
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

    def blob(self, at: int) -> np.ndarray:
        """One picture as it was packed."""
        start, stop = self.offset[at % len(self) :][:2]
        return self.packed[start:stop]

    def __array__(self, dtype=None, copy=None):
        return self[:]


def encode_jpeg(frames: np.ndarray, quality: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, h, w, 3) -> packed u8 (N), offset i64 (T + 1).

    Colours stay at full resolution: studs are few pixels.
    """
    blobs = []
    for frame in frames:
        blob = io.BytesIO()
        PIL.Image.fromarray(frame).save(blob, 'jpeg', quality=quality, subsampling=0)
        blobs.append(blob.getvalue())
    offset = np.cumsum([0, *map(len, blobs)]).astype(np.int64)
    return np.frombuffer(b''.join(blobs), np.uint8), offset


@functools.cache
def git_rev() -> str:
    """Revision of this code, '+' where files have changed; 'none' without git or a repository."""
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


def write_episode(path: Path, arrays: Arrays, header: Header, jpeg: int = 0) -> None:
    """Save one episode.

    Args:
        path: The file, *.safetensors.
        arrays: Those of CORE_ARRAYS and, where they are known, of TRUTH_ARRAYS, cast to the dtypes
            that stand there, and 'image/<camera>' uint8 (T, h, w, 3).
        header: task, instruction, control_hz, seed, success and `slot_keys` of state and actions;
            without these the slots are our own robot's. Of TRUTH_KEYS those that are known: a
            world (World.metadata()) says that all of TRUTH is there. Spec version and cameras are
            added here.
        jpeg: 0, or the quality, 1 to 95, in which pictures are packed.

    Raises:
        ValueError: `find_faults` finds something; nothing is written.
    """
    path = os.fspath(path)
    arrays = {name: _as_written(name, array) for name, array in arrays.items()}
    header = _whole_header(arrays, header)
    faults = find_faults(arrays, header)
    if faults:
        raise ValueError(f'{path} not written: ' + '; '.join(faults))
    if jpeg:
        for name in [name for name in arrays if name.startswith('image/')]:
            arrays[f'{name}/bytes'], arrays[f'{name}/offset'] = encode_jpeg(arrays.pop(name), jpeg)
    write_atomic(path, safetensors.numpy.save(arrays, metadata={'header': json.dumps(header)}))


def _as_written(name: str, array: Any) -> np.ndarray:
    known = CORE_ARRAYS | TRUTH_ARRAYS
    return np.ascontiguousarray(array, known[name][0] if name in known else None)


def _whole_header(arrays: Arrays, header: Header) -> Header:
    """The header with all that follows from the arrays."""
    given = slot_tables(header)
    tables = {name: own for name, own in TABLES.items() if name in arrays or name == 'state'}
    header = {**header, **slot_keys(**(tables | given)), 'spec': SPEC_VERSION}
    fovy = {}
    if 'world' in header:
        header = {'qa': [], 'git_rev': git_rev(), **header}
        fovy = header['world'].get('camera_fovy_deg', {})
    header['cameras'] = {}
    for name, array in arrays.items():
        if name.startswith('image/'):
            camera = name.removeprefix('image/')
            height, width = array.shape[1:3]
            header['cameras'][camera] = dict(height=height, width=width, fovy_deg=fovy.get(camera))
    return header


def read_episode(path: Path, map_bytes: Callable | None = None) -> tuple[Arrays, Header]:
    """Read {name: array} and the header of an episode, which are sound but for the pictures.

    Args:
        path: The file.
        map_bytes: How to map a file, for who has thousands of them open; None: as numpy does,
            which keeps the file open.

    Returns:
        Views of the mapped file, so that touching one row reads one row, and the header.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no episode, or has one of the faults that `data.py check` names; it says
            which file, and which array, row, slot or key of the header.
    """
    path = os.fspath(path)
    try:
        arrays, header = _read_file(path, map_bytes)
    except ValueError as fault:
        raise ValueError(f'{path}: cannot be read: {fault}') from None
    faults = find_number_faults(arrays, header, whole=False)
    if faults:
        more = f'; and {len(faults) - 3} more: python data.py check' if len(faults) > 3 else ''
        raise ValueError(f'{path}: ' + '; '.join(faults[:3]) + more)
    return arrays, header


def _read_file(path: str, map_bytes: Callable | None) -> tuple[Arrays, Header]:
    """Arrays and header of a file, the header's values unseen; ValueError without its name."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError('it is no regular file')  # a pipe would be waited for
    size = os.path.getsize(path)
    with open(path, 'rb') as f:
        n = int.from_bytes(f.read(8), 'little')
        if not 0 < n <= size - 8:
            raise ValueError(f'not a safetensors file, or cut off ({size} bytes)')
        if n > MAX_TABLE:
            raise ValueError(f'its table of arrays has {n} bytes, at most {MAX_TABLE} are allowed')
        table = _read_json('its table of arrays', f.read(n))
    metadata = table.pop('__metadata__', {})
    if not isinstance(metadata, dict) or not isinstance(metadata.get('header'), str):
        raise ValueError('no "header" in the safetensors metadata: not an episode')
    header = _read_json('its header', metadata['header'])
    _check_table(table, size - 8 - n)
    if map_bytes is None:  # a plain array slices 5 times faster than a memmap
        raw = np.memmap(path, mode='r', dtype=np.uint8).view(np.ndarray)
    else:
        raw = map_bytes(path)
    arrays: Arrays = {}
    for name, entry in table.items():
        start, stop = (8 + n + offset for offset in entry['data_offsets'])
        arrays[name] = raw[start:stop].view(_DTYPES[entry['dtype']]).reshape(entry['shape'])
    faults = _find_header_faults(header)
    if faults:
        raise ValueError('; '.join(faults))
    for name in [name.removesuffix('/bytes') for name in arrays if name.endswith('/bytes')]:
        arrays[name] = _packed_frames(name, arrays, header)
    return arrays, header


def _read_json(what: str, text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as fault:  # among them bytes that are no UTF-8
        raise ValueError(f'{what} is no JSON: {fault}') from None
    if not isinstance(value, dict):
        raise ValueError(f'{what} is {type(value).__name__}, expected a JSON object')
    return value


def _check_table(table: dict[str, Any], size: int) -> None:
    """Raise ValueError where arrays are not described, or do not lie one behind the other."""
    spans = []
    for name, entry in table.items():
        keys = ('dtype', 'shape', 'data_offsets')
        if not isinstance(entry, dict) or not all(key in entry for key in keys):
            raise ValueError(f'array {name!r}: expected dtype, shape and data_offsets')
        dtype, shape, offsets = (entry[key] for key in keys)
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            known = ', '.join(_DTYPES)
            raise ValueError(f'array {name!r}: dtype {dtype!r}, expected one of {known}')
        if not _are(shape, _is_count):
            raise ValueError(f'array {name!r}: shape {shape!r}, expected whole numbers')
        if not _are(offsets, _is_count) or len(offsets) != 2:
            raise ValueError(f'array {name!r}: data_offsets {offsets!r}, expected two numbers')
        bytes_there = offsets[1] - offsets[0]
        if bytes_there != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
            raise ValueError(f'array {name!r}: {bytes_there} bytes are not {dtype} {shape}')
        spans.append((*offsets, name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise ValueError(f'array {name!r} begins at byte {start}, the one before ends at {end}')
        end = stop
    if end != size:
        raise ValueError(f'{size} bytes of arrays, its own table says {end}: cut off or damaged')


def _packed_frames(name: str, arrays: Arrays, header: Header) -> JpegFrames:
    """Take a camera's packed pictures out of the arrays and make frames of them."""
    camera = name.removeprefix('image/')
    if camera not in header['cameras']:
        raise ValueError(f'array {name!r}: the header names no such camera')
    if f'{name}/offset' not in arrays:
        raise ValueError(f"no array '{name}/offset'")
    packed = arrays.pop(f'{name}/bytes')
    offset = arrays.pop(f'{name}/offset')
    if packed.dtype != np.uint8 or packed.ndim != 1:
        raise ValueError(f"array '{name}/bytes' is {packed.dtype} {packed.shape}, not uint8 (N)")
    fits = offset.dtype == np.int64 and offset.ndim == 1 and len(offset) > 0
    if not fits or offset[0] != 0 or offset[-1] != len(packed) or (np.diff(offset) < 0).any():
        raise ValueError(f"array '{name}/offset' does not say where {len(packed)} bytes divide")
    size = header['cameras'][camera]
    return JpegFrames(packed, offset, size['height'], size['width'])


# -----------------------------------------------------------------------------
# faults


# What somebody else's file may ask for. Texts are padded to the longest, tables are read whole.
MAX_TABLE = 100_000_000  # bytes, as in the safetensors library
MAX_TEXT = 4_000  # characters of an instruction or a subtask; our longest plan takes 700
MAX_PICTURE = 16_384  # pixels on a side
# Larger numbers are no measurements of a robot at a table, in whatever unit.
LARGEST = 1e6
LARGEST_IN_WORLD = 1e4  # The largest number in arrays whose units we know: qpos, qvel, ctrl, scene.


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -math.inf < value < math.inf


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    """Whether it is text that a prompt can hold."""
    return isinstance(value, str) and len(value) <= MAX_TEXT and '<|' not in value


def is_plain_name(value: Any) -> bool:
    """Whether it can be part of a file's name and leads nowhere else."""
    return isinstance(value, str) and bool(re.fullmatch(r'\w[\w .,:+-]{0,99}', value))


def _is_camera(value: Any) -> bool:
    return isinstance(value, str) and all(map(is_plain_name, value.split('/')))


def _are(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _is_size(value: Any) -> bool:
    """Whether it is a camera's entry in the header."""
    if not isinstance(value, dict):
        return False
    pixels: list[Any] = [value.get(side) for side in ('height', 'width')]
    fovy: Any = value.get('fovy_deg')
    return all(_is_count(n) and 0 < n <= MAX_PICTURE for n in pixels) and (
        fovy is None or (_is_number(fovy) and 0 < fovy < 180)
    )


def _are_sizes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_camera(name) and _is_size(size) for name, size in value.items()
    )


def _is_fact(value: Any) -> bool:
    """Whether it is [kind, subject, answer, first row, end]."""
    return (
        isinstance(value, list)
        and len(value) == 5
        and all([_are(value[:3], _is_text), _are(value[3:], _is_count)])
    )


def _are_referents(value: Any) -> bool:
    """Whether it is [first row, table] each, or the table that an older version wrote."""

    def is_table(table: Any) -> bool:
        return _are(table, lambda row: _are(row, _is_number))

    def is_span(span: Any) -> bool:
        return isinstance(span, list) and len(span) == 2 and _is_count(span[0])

    return is_table(value) or (_are(value, is_span) and all(is_table(span[1]) for span in value))


def _in_range(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: _is_number(value) and low < value <= high


_TEXTS = (lambda value: _are(value, _is_text), f'texts of at most {MAX_TEXT} characters, no "<|"')
_NAMES = (lambda value: _are(value, lambda x: isinstance(x, str)), 'a list of names')
_RATE = (_in_range(0, 10_000), 'a number of rows per second')
_PLAIN = (is_plain_name, 'a plain name: letters, digits and -_.,:+')
# By key: what its value has to be, as a test and in words.
Rules = dict[str, tuple[Callable[[Any], bool], str]]
HEADER_RULES: Rules = {
    'spec': (_is_count, 'a whole number'),
    'task': _PLAIN,
    'instruction': (_is_text, f'text of at most {MAX_TEXT} characters without "<|"'),
    'control_hz': _RATE,
    'cameras': (_are_sizes, 'by name of the camera its height and width in pixels'),
    'seed': (_is_count, 'a whole number'),
    'success': (lambda value: isinstance(value, bool), 'true or false'),
    'subtasks': _TEXTS,
    'askable': _TEXTS,
    'referents': (_are_referents, 'rows and tables of numbers'),
    'metrics': (lambda value: isinstance(value, dict), 'a JSON object'),
    'world': (lambda value: isinstance(value, dict), 'a JSON object'),
    'git_rev': (lambda value: isinstance(value, str), 'text'),
    'qa': (lambda value: _are(value, _is_fact), '[kind, subject, answer, first row, end] each'),
    **{f'{name}_{what}': _NAMES for name in TABLES for what in ('slots', 'units', 'kinds')},
}
WORLD_RULES: Rules = {
    'task': _PLAIN,
    'robot': _PLAIN,
    'brick_scale': (_in_range(0, 100), 'a number'),
    'cameras': (lambda value: _are(value, _is_camera), 'a list of names'),
    'image_size': (lambda value: _is_count(value) and 0 < value <= MAX_PICTURE, 'pixels'),
    'control_hz': _RATE,
    'physics_dt_s': (_in_range(0, 1), 'seconds'),
    'action_space': (lambda value: value in ('tool', 'joint'), "'tool' or 'joint'"),
    'gripper_m': (
        lambda value: value is None or (_are(value, _is_number) and len(value) == 2),
        'two numbers or null',
    ),
    'camera_fovy_deg': (
        lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
        'a number by camera',
    ),
    'camera_pose': (
        lambda value: (
            isinstance(value, dict)
            and all(_are(pose, _is_number) and len(pose) == 12 for pose in value.values())
        ),
        '12 numbers by camera',
    ),
}


def is_whole(path: Path) -> bool:
    """Whether a file is there and is an episode, whatever its numbers are."""
    try:
        _read_file(os.fspath(path), None)
    except (ValueError, OSError):
        return False
    return True


def find_world_faults(where: str, world: Any) -> list[str]:
    """What is wrong with settings of a world that a file holds, in words."""
    if not isinstance(world, dict):
        return [f'{where} is {type(world).__name__}, expected a JSON object']
    return _broken_rules(where, world, WORLD_RULES)


def check_episode(path: Path) -> list[str]:
    """Faults of a file in words, [] when it is sound."""
    try:
        arrays, header = _read_file(os.fspath(path), None)
    except (ValueError, OSError) as error:  # a damaged file is a finding, not a crash
        return [f'cannot be read: {error}']
    return find_faults(arrays, header)


def find_faults(arrays: Arrays, header: Header) -> list[str]:
    """Everything wrong with one episode, each fault named in words; [] when sound.

    CORE has to be there; TRUTH is checked where it is, and has to be whole where the header names
    a world: then our simulator has written the file.
    """
    faults = find_number_faults(arrays, header)
    if faults:
        return faults
    if 'referents' in header and not _by_row(header['referents']):
        faults.append('referents are not by row, as an older version wrote them: record it anew')
    return faults + _find_picture_faults(arrays, header)


def find_number_faults(arrays: Arrays, header: Header, whole: bool = True) -> list[str]:
    """All that `find_faults` names but for the pictures: `read_episode` refuses a file for it.

    whole: TRUTH has to be whole where there is a world; earlier code recorded less of it, and who
    needs it says what is missing (`demand`).
    """
    faults = _find_header_faults(header) or _find_missing(arrays, header, whole)
    if faults:
        return faults
    if header['spec'] not in READABLE:
        known = ' and '.join(map(str, READABLE))
        return [f'spec version {header["spec"]}, this code reads {known}']
    if arrays['time'].ndim != 1 or len(arrays['time']) == 0:
        return ['no rows'] if arrays['time'].ndim == 1 else ['time is not one number per row']
    faults = _find_slot_faults(arrays, header)
    faults = faults or _find_shape_faults(arrays, header)
    faults = faults or _find_infinite(arrays)
    if faults:
        return sorted(faults)
    return [
        *_find_range_faults(arrays, header),
        *_find_time_faults(arrays, header),
        *_find_truth_faults(arrays, header),
        *_find_word_faults(arrays, header),
    ]


def _find_header_faults(header: Header) -> list[str]:
    """Keys of a header whose values are none that the key can have."""
    missing = [key for key in CORE_KEYS if key not in header]
    if missing:
        return [f'header has no {key!r}' for key in missing]
    faults = _broken_rules('header', header, HEADER_RULES)
    if not faults and 'world' in header:
        faults = find_world_faults('header world', header['world'])
    return faults


def _broken_rules(where: str, values: dict[str, Any], rules: Rules) -> list[str]:
    faults = []
    for key, (fits, words) in rules.items():
        if key in values and not fits(values[key]):
            shown = repr(values[key])
            shown = shown if len(shown) < 60 else f'{shown[:50]}...'
            faults.append(f'{where} {key!r} is {shown}, expected {words}')
    return faults


def _find_missing(arrays: Arrays, header: Header, whole: bool) -> list[str]:
    keys = [*CORE_KEYS, 'state_slots', 'state_units']
    names = ['time', 'state']
    if whole and 'world' in header:
        keys += TRUTH_KEYS
        names = [*CORE_ARRAYS, *TRUTH_ARRAYS]
    for name in ACTIONS:
        if name in arrays:
            keys += [f'{name}_slots', f'{name}_units']
    if 'subtask_id' in arrays:
        keys.append('subtasks')
    if 'referents' in header or 'goals' in header:
        keys.append('askable')
    faults = [f'header has no {key!r}' for key in dict.fromkeys(keys) if key not in header]
    faults += [f'no array {name!r}' for name in names if name not in arrays]
    if not faults and not any(name in arrays for name in ACTIONS):
        faults.append(f'no action: one of the arrays {" and ".join(ACTIONS)} has to be there')
    return faults


def _find_slot_faults(arrays: Arrays, header: Header) -> list[str]:
    faults = []
    for name in TABLES:
        if name not in arrays:
            continue
        names = header[f'{name}_slots']
        units = header[f'{name}_units']
        own = [slot.name for slot in TABLES[name]]
        if 'world' in header and names != own:
            faults.append(f'header {name}_slots differ from the table of episode.py')
        twice = [x for x in names if names.count(x) > 1]
        if twice:
            faults.append(f'header {name}_slots name {twice[0]} twice')
        if len(units) != len(names):
            faults.append(f'header {name}_units are {len(units)}, {name}_slots {len(names)}')
        elif name in ACTIONS and names != own:
            faults += _find_kind_faults(name, header)
    return faults


def _find_kind_faults(name: str, header: Header) -> list[str]:
    """What is wrong with the kinds of an action of a robot that is not our own."""
    n = len(header[f'{name}_slots'])
    if f'{name}_kinds' not in header:
        return [f"header has no '{name}_kinds'"]
    kinds = header[f'{name}_kinds']
    if len(kinds) != n:
        return [f'header {name}_kinds are {len(kinds)}, {name}_slots {n}']
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        return [f'header {name}_kinds: {unknown[0]!r}, expected one of {", ".join(KINDS)}']
    faults = []
    at = [i for i, kind in enumerate(kinds) if kind == 'pose']
    for start in range(0, len(at), 6):
        pose = at[start : start + 6]
        units = [header[f'{name}_units'][i] for i in pose]
        if units != ['m'] * 3 + ['rad'] * 3 or pose[-1] - pose[0] != 5:
            first = header[f'{name}_slots'][pose[0]]
            faults.append(
                f'{name} slot {first}: the kind pose is of six slots in a row, x, y, z in m and '
                'the rotation vector rx, ry, rz in rad'
            )
    return faults


def _find_shape_faults(arrays: Arrays, header: Header) -> list[str]:
    rows = len(arrays['time'])
    expected: dict[str, tuple[str, tuple | None]] = {}
    for name, (dtype, columns) in (CORE_ARRAYS | TRUTH_ARRAYS).items():
        if isinstance(columns, str):
            if f'{columns}_slots' in header:
                expected[name] = (dtype, (len(header[f'{columns}_slots']),))
        else:
            expected[name] = (dtype, () if columns is None else None)
    for camera, size in header['cameras'].items():
        expected[f'image/{camera}'] = ('uint8', (size['height'], size['width'], 3))
    faults = [
        f'header names camera {camera!r}, no array {f"image/{camera}"!r}'
        for camera in header['cameras']
        if f'image/{camera}' not in arrays
    ]
    for name, array in arrays.items():
        if name not in expected:
            faults.append(f'array {name!r} is not in the specification or the header')
            continue
        dtype, tail = expected[name]
        if array.dtype != dtype:
            faults.append(f'{name} is {array.dtype}, not {dtype}')
        if array.ndim == 0 or len(array) != rows:
            n = len(array) if array.ndim else 'no'
            faults.append(f'{name} has {n} rows, time has {rows}')
        elif tail is None and array.ndim != 2:
            faults.append(f'{name} has shape {array.shape}, not ({rows}, any number)')
        elif tail is not None and array.shape[1:] != tail:
            faults.append(f'{name} has shape {array.shape}, not {(rows, *tail)}')
    return faults


def _find_infinite(arrays: Arrays) -> list[str]:
    faults = []
    for name, array in arrays.items():
        if array.dtype.kind != 'f':
            continue
        bad = np.isinf(array) if name == 'scene' else ~np.isfinite(array)
        if bad.any():
            row, column = np.argwhere(bad.reshape(len(array), -1))[0]
            faults.append(f'{name} is not finite, first at row {row} column {column}')
    return faults


def _find_range_faults(arrays: Arrays, header: Header) -> list[str]:
    faults = []
    tables = slot_tables(header)
    if 'tool_executed' in arrays:
        tables['tool_executed'] = tables['tool_action']
    for name, table in tables.items():
        if name not in arrays:
            continue
        low = np.maximum([slot.low for slot in table], -LARGEST)
        high = np.minimum([slot.high for slot in table], LARGEST)
        array = arrays[name]
        for i in np.flatnonzero(((array < low) | (array > high)).any(0)):
            worst = array[np.abs(array[:, i]).argmax(), i]
            faults.append(
                f'{name} slot {table[i].name}: {worst:.4g} in row '
                f'{np.abs(array[:, i]).argmax()} is outside {low[i]:g}..{high[i]:g}'
            )
    for name in ('qpos', 'qvel', 'ctrl', 'scene'):
        if name in arrays and (np.abs(arrays[name]) > LARGEST_IN_WORLD).any():
            row, column = np.argwhere(np.abs(arrays[name]) > LARGEST_IN_WORLD)[0]
            worst = arrays[name][row, column]
            faults.append(f'{name} is {worst:.4g} at row {row} column {column}: not of this world')
    return faults


def _find_time_faults(arrays: Arrays, header: Header) -> list[str]:
    if np.abs(arrays['time']).max() > 1e11:  # s: 3,000 years
        return [f'time reaches {np.abs(arrays["time"]).max():.4g} s']
    step_s = np.diff(arrays['time'])
    dt_s = 1 / header['control_hz']
    if len(step_s) and (step_s <= 0).any():
        return [f'time does not increase at row {np.flatnonzero(step_s <= 0)[0] + 1}']
    if len(step_s) and np.abs(step_s - dt_s).max() > 0.01 * dt_s:
        return [
            f'time steps of {step_s.min():.4f}..{step_s.max():.4f} s, control_hz says {dt_s:.4f} s'
        ]
    return []


def _find_truth_faults(arrays: Arrays, header: Header) -> list[str]:
    faults = []
    for name in ('kicked', 'goal'):
        if name in arrays and arrays[name].max() > 1:
            faults.append(f'{name} holds {arrays[name].max()}, not only 0 and 1')
    if 'phase' in arrays and arrays['phase'].min() < 0:
        faults.append('phase is negative')
    if 'phase' in arrays and arrays['phase'].max() > 99:
        faults.append(f'phase {arrays["phase"].max()}, expected a few')
    for *fact, first, end in header['qa'] if 'qa' in header else []:
        if not first <= end <= len(arrays['time']):
            faults.append(f'qa {fact} holds in rows {first} to {end} of {len(arrays["time"])}')
    if 'subtask_id' in arrays:
        ids = arrays['subtask_id']
        n = len(header['subtasks'])
        if ids.min() < 0 or ids.max() >= n:
            faults.append(f'subtask_id {ids.min()}..{ids.max()}, header has {n} subtasks')
    if arrays.keys() >= {'tool_executed', 'tool_action', 'kicked'}:
        off = np.abs(arrays['tool_executed'] - arrays['tool_action']).max(1)
        off = off * (arrays['kicked'] == 0)
        if (off > MAX_JITTER).any():
            faults.append(f'tool_executed differs from tool_action in unkicked row {off.argmax()}')
    return faults


def _find_word_faults(arrays: Arrays, header: Header) -> list[str]:
    if not header['instruction']:
        return ['instruction is empty']
    if 'askable' in header and header['askable'][:1] != [header['instruction']]:
        return ['askable does not begin with the instruction']
    if 'goals' in header:
        faults = _find_goal_faults(header)
        if faults:
            return faults
    if 'referents' not in header or not _by_row(header['referents']):
        return []
    faults = []
    starts = [first for first, _ in header['referents']]
    if starts[:1] != [0] or starts != sorted(set(starts)) or starts[-1] >= len(arrays['time']):
        faults.append(f'referents start at rows {starts}, expected 0 and then later ones')
    n_goals = len(header['askable'])
    for first, table in header['referents']:
        if len(table) != n_goals or any(len(row) != 8 for row in table):
            faults.append(f'referents of row {first}: expected 8 for each of {n_goals} goals')
    return faults


def _find_goal_faults(header: Header) -> list[str]:
    """What is wrong with the goal frames, see instructions.py; None where a goal has none."""
    goals = header['goals']
    n = len(header['askable'])
    if len(goals) != n:
        return [f'{len(goals)} goals, expected one for each of {n} askable texts']
    for i, frame in enumerate(goals):
        if frame is not None and 'task' not in frame:
            return [f"goal {i} has no 'task': {frame}"]
    return []


def _find_picture_faults(arrays: Arrays, header: Header) -> list[str]:
    faults = []
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


# -----------------------------------------------------------------------------
# folders


def episode_paths(source: Path | Sequence) -> list[str]:
    """Episode files of a folder or file, or of several in a list or separated by commas.

    Raises:
        FileNotFoundError: One of them is not there, or holds no episode.
    """
    sources = str(source).split(',') if isinstance(source, (str, os.PathLike)) else list(source)
    paths = []
    for item in map(str, sources):
        found = [item] if item.endswith('.safetensors') or os.path.isfile(item) else []
        if os.path.isdir(item):
            names = sorted(name for name in os.listdir(item) if name.endswith('.safetensors'))
            found = [os.path.join(item, name) for name in names]
        elif not os.path.exists(item):
            found = []
        if not found:
            of_several = f' (of {source})' if len(sources) > 1 else ''
            raise FileNotFoundError(
                f'no *.safetensors episodes in {item or "an empty name"}{of_several}; '
                f'record some: {_recording_command(item)}'
            )
        paths += found
    return paths


def _recording_command(folder: str) -> str:
    """The command that records into a folder that one of our configs names."""
    here = os.path.dirname(os.path.abspath(__file__))
    stem, _, coached = os.path.basename(folder.rstrip('/')).partition('_coached')
    last = '_collect'
    if coached or folder.rstrip('/').endswith('_coached'):
        last = '_coach'
    config = f'config/{stem}{last}.py'
    if not os.path.exists(os.path.join(here, config)):
        config = 'config/demo_collect.py'
    return f'python sim_rollout.py {config}'


# -----------------------------------------------------------------------------
# synthetic episodes, for config/debug.py and the tests; no simulator needed

_SQUARES = {'red': (200, 40, 40), 'blue': (40, 60, 200)}


def write_synthetic_episodes(
    folder: Path,
    count: int,
    cameras: Sequence[str],
    image_size: int,
    control_hz: int = 10,
    kicks: float = 0.1,
    seed0: int = 0,
    jpeg: int = 0,
    grammar: bool = False,
) -> None:
    """Write `count` made-up episodes, see `synthetic_episode`, of seeds from seed0 on.

    With `grammar` they hold a goal frame, of which training draws other words.
    """
    for seed in range(seed0, seed0 + count):
        path = os.path.join(folder, f'synthetic_{seed:06d}.safetensors')
        arrays, header = synthetic_episode(seed, cameras, image_size, control_hz, kicks)
        if grammar:
            header['goals'] = [_synthetic_goal(header['instruction'])]
        write_episode(path, arrays, header, jpeg)


def synthetic_episode(
    seed: int,
    cameras: Sequence[str],
    image_size: int,
    control_hz: int = 10,
    kicks: float = 0.1,
) -> tuple[Arrays, Header]:
    """Arrays and header of an episode that is made up: random but learnable.

    The right tool goes to the square of the named colour and closes. kicks is the probability
    per row that something else than the label is executed.
    """
    rng = np.random.default_rng(seed)
    name = list(_SQUARES)[rng.integers(len(_SQUARES))]
    places = {colour: rng.uniform([0.25, -0.1, 0], [0.45, 0.1, 0]) for colour in _SQUARES}
    right = ARMS.index('right')
    grip = GRIPPER[right]
    command = np.zeros(len(TOOL_ACTION), np.float32)
    command[POSITION] = rng.uniform([0.25, -0.1, 0.05], [0.45, 0.1, 0.15], (len(ARMS), 3))
    command[ROTVEC[:, 2]] = rng.uniform(-0.5, 0.5, len(ARMS))
    command[GRIPPER] = 0.06
    rows: list[dict[str, Any]] = []
    settled = 0
    while len(rows) < 60 and settled < 4:
        pos = command[POSITION] + rng.normal(0, 0.0005, (len(ARMS), 3))
        away = places[name] - command[POSITION][right]
        near = np.abs(away).max() < 0.002
        settled += bool(near and command[grip] < 0.03)
        action = command.copy()
        kicked = not near and rng.random() < kicks
        action[POSITION[right]] += np.clip(away, -0.03, 0.03)
        action[grip] = 0.02 if near else 0.06
        executed = action.copy()
        executed[POSITION[right]] += kicked * rng.normal(0, 0.02, 3)
        row = {
            'time': len(rows) / control_hz,
            'state': _synthetic_state(command, pos),
            'tool_action': action,
            'tool_executed': executed,
            'joint_action': np.zeros(len(JOINT_ACTION)),
            'kicked': kicked,
            'goal': settled > 0,
            'connections': 0,
            'phase': int(near),
            'subtask_id': int(near),
            'scene': _synthetic_scene(places, pos),
            **{k: np.zeros(3) for k in ('qpos', 'qvel', 'ctrl')},
        }
        for camera in cameras:
            row[f'image/{camera}'] = _synthetic_picture(camera, image_size, places, pos)
        rows.append(row)
        command = executed
    text = f'reach the {name} brick'
    brick = COLOURS.index(name)
    header = {
        'task': 'synthetic',
        'instruction': text,
        'askable': [text],
        'referents': [[0, [[brick, brick, len(COLOURS), 1, 0, 0, 0, 0]]]],
        'control_hz': control_hz,
        'seed': seed,
        'subtasks': [f'right hand: reach the {name} brick', f'right hand: grasp the {name} brick'],
        'success': settled > 0,
        'metrics': {},
        'world': {},
    }
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}, header


def _synthetic_goal(instruction: str) -> dict[str, Any]:
    """A goal frame (instructions.py) that names the brick of a made-up instruction."""
    colour = instruction.split()[2]
    brick = {'colour': colour, 'studs': '2x4', 'by': ['colour']}
    where = {'corner': 'far left', 'turn': 'lengthwise', 'hand': 'right'}
    return {'task': 'place', 'upper': brick, **where}


def _synthetic_state(command: np.ndarray, pos: np.ndarray) -> np.ndarray:
    return state_vector(
        {
            'joint_pos': np.zeros(len(JOINT_NAMES)),
            'joint_vel': np.zeros(len(JOINT_NAMES)),
            'gripper': command[GRIPPER],
            'tool_pos': pos,
            'tool_quat': quat_from_rotvec(command[ROTVEC]),
            'tool_vel': np.zeros((len(ARMS), 3)),
            'tool_command': command,
        }
    )


def _synthetic_scene(places: dict[str, np.ndarray], pos: np.ndarray) -> np.ndarray:
    """The squares as the torso and each tool (arms, 3) see them, all unturned."""
    frames = [np.zeros(3), *pos]
    scene = np.full((len(frames), len(COLOURS), 4), np.nan)
    for frame, at in zip(scene, frames):
        for colour, place in places.items():
            frame[COLOURS.index(colour)] = [*(place - at), 0]
    return scene.ravel()


def _synthetic_picture(
    camera: str, size: int, places: dict[str, np.ndarray], pos: np.ndarray
) -> np.ndarray:
    """The squares from above, 0.4 m wide, around a tool or a point on the table."""
    image = np.full((size, size, 3), 128, np.uint8)
    centre = np.array([0.35, 0, 0])
    if '/' in camera:
        centre = pos[ARMS.index(camera.split('/')[0])]
    grid = np.moveaxis(np.indices((size, size)), 0, -1)  # (h, w, 2)
    for colour, place in places.items():
        at = (0.5 + (place - centre)[:2] / 0.4) * size
        image[(np.abs(grid - at) < size * 0.06).all(-1)] = _SQUARES[colour]
    image[0, 0] = 0  # a view with no square in it is still a picture
    return image
