"""Demonstrations in HDF5, as ALOHA and robomimic record them.

    from_hdf5('data/aloha', 'episodes/aloha', 50, 'hand the cube over')

ALOHA: a file per episode with observations/qpos, observations/images/<camera> and action, joints of
two arms. robomimic: a file of episodes data/demo_<i> with obs/<name> and actions, which are steps
already and so are learnt as they are. h5py has to be installed.
"""

import io
import os
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import PIL.Image

from episode import ARMS, Arrays, Header, slot_keys
from vla.lerobot_reader import fitted, naming, write_all

_ARM = ('waist', 'shoulder', 'elbow', 'forearm_roll', 'wrist_angle', 'wrist_rotate')
_ALOHA = [
    slot
    for arm in ARMS
    for slot in (
        *[(f'{arm}/{name}', 'rad', 'joint') for name in _ARM],
        (f'{arm}/gripper', '', 'absolute'),
    )
]


def _groups(source: str) -> Iterator[tuple[str, Any]]:
    """The file and the group of each episode of a file, or of a folder of files."""
    try:
        import h5py
    except ImportError:
        raise ValueError('these recordings are HDF5: pip install h5py') from None
    names = sorted(os.listdir(source)) if os.path.isdir(source) else ['']
    for name in names:
        if name and not name.endswith(('.hdf5', '.h5')):
            continue
        path = os.path.join(source, name) if name else source
        with naming(path):
            file = h5py.File(path, 'r')
        with file:
            if 'data' not in file:
                yield path, file
                continue
            demos = file['data']
            if not len(demos):
                raise ValueError(f'{path}: there is no episode in data')
            for demo in sorted(demos, key=_number):
                yield f'{path}, data/{demo}', demos[demo]


def _number(name: str) -> tuple[int, str]:
    """What names with a number at their end are ordered by."""
    digits = name.rpartition('_')[2]
    return (int(digits) if digits.isdecimal() else -1), name


def _array(group: Any, name: str, dimensions: Collection[int]) -> Any:
    """An array of a group.

    Raises:
        ValueError: It is not there, is no array, or has not so many dimensions.
    """
    there = ', '.join(group) if hasattr(group, 'keys') else 'none, it is an array'
    if not hasattr(group, 'keys') or name not in group:
        raise ValueError(f'no {name} in {group.name}; there are {there}')
    array = group[name]
    if not hasattr(array, 'ndim') or array.ndim not in dimensions:
        shape = array.shape if hasattr(array, 'shape') else 'a group'
        expected = ' or '.join(map(str, dimensions))
        raise ValueError(f'{array.name} is {shape}, expected an array of {expected} dimensions')
    return array


def _numbers(group: Any, name: str) -> np.ndarray:
    """An array of numbers, a row per step; (T, C)."""
    rows = _array(group, name, (2,))[:]
    if rows.dtype.kind not in 'fiu':
        raise ValueError(f'{group.name}/{name} holds {rows.dtype}, expected numbers')
    return rows


def _frames(array: Any, image_size: int) -> np.ndarray:
    """Pictures (T, h, w, 3) of an array of them, or of jpeg as rows of bytes."""
    rows = array[:]
    if rows.dtype.kind not in 'iu':
        raise ValueError(f'{array.name} holds {rows.dtype}, expected uint8')
    if rows.ndim == 2:
        blobs = [io.BytesIO(row.tobytes()) for row in rows]
        rows = [np.asarray(PIL.Image.open(blob).convert('RGB')) for blob in blobs]
    elif rows.shape[3] != 3:
        raise ValueError(f'{array.name} is {rows.shape}, expected three colours')
    return np.stack([fitted(row, image_size) for row in rows])


def _read(group: Any, image_size: int) -> tuple[Arrays, list, list]:
    """Arrays of an episode but for its time, and the slots of its state and action."""
    is_aloha = 'observations' in group
    if not is_aloha and 'obs' not in group:
        raise ValueError(
            f'neither observations (ALOHA) nor obs (robomimic) in {group.name}; there are '
            f'{", ".join(group) or "none"}'
        )
    found = group['observations'] if is_aloha else group['obs']
    action = _numbers(group, 'action' if is_aloha else 'actions')
    if is_aloha:
        states = {'qpos': _numbers(found, 'qpos')}
        pictures = found['images'] if 'images' in found else {}
        images = {name: _array(pictures, name, (2, 4)) for name in pictures}
    else:
        names = [name for name in sorted(found) if name != 'object']  # the simulator's truth
        states = {name: _numbers(found, name) for name in names if found[name].ndim == 2}
        images = {name: found[name] for name in names if found[name].ndim == 4}
    for what, there in (('state', states), ('camera', images)):
        if not there:
            raise ValueError(f'no {what} in {found.name}; there are {", ".join(found) or "none"}')
    arrays = {f'image/{name}': _frames(array, image_size) for name, array in images.items()}
    arrays |= {'state': np.concatenate([*states.values()], 1), 'joint_action': action}
    if is_aloha and action.shape[1] == len(_ALOHA) == arrays['state'].shape[1]:
        return arrays, _ALOHA, _ALOHA
    slots = [(f'{name}_{i}', '', '') for name, rows in states.items() for i in range(rows.shape[1])]
    kind = 'joint' if is_aloha else 'absolute'
    return arrays, slots, [(f'action_{i}', '', kind) for i in range(action.shape[1])]


def from_hdf5(
    source: str, to: str, control_hz: float, instruction: str, image_size: int = 0, jpeg: int = 0
) -> list[str]:
    """Write the episodes of HDF5 files as ours, into a folder.

    Args:
        source: A file, or a folder of them.
        to: Where they go; it must not be there.
        control_hz: Rows per second: the files do not tell.
        instruction: Of all of them: the files do not tell.
        image_size: Pictures become squares of so many pixels; 0: as is.
        jpeg: Quality, 1 to 95, in which pictures are packed; 0: not at all.

    Returns:
        In lines, what has been written and what to type next.

    Raises:
        ValueError: A file is none of these, or h5py is missing.
    """

    def episodes() -> Iterator[tuple[str, Arrays, Header]]:
        for seed, (origin, group) in enumerate(_groups(source)):
            with naming(origin):
                arrays, state, action = _read(group, image_size)
            arrays['time'] = np.arange(len(arrays['state'])) / control_hz
            header: Header = {'task': 'hdf5', 'instruction': instruction, 'control_hz': control_hz}
            header |= {'seed': seed, 'success': True}  # it is a demonstration
            yield origin, arrays, header | slot_keys(state=state, joint_action=action)

    return write_all(source, episodes(), to, None, jpeg)
