"""Episodes of a LeRobot data set, version 3, read without LeRobot.

    from_lerobot('data/aloha', 'episodes/aloha')

State, action, pictures and instructions come over, and subtask texts where there are some. pyarrow
and, for video, av have to be installed. What is not told, as units, is left open.
"""

import contextlib
import io
import os
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import PIL.Image
from tqdm import tqdm

from episode import ACTIONS, Arrays, Header, slot_keys, write_episode
from vla.folder import (
    Rules,
    are_texts,
    check_fields,
    is_number,
    is_object,
    is_text,
    is_whole,
    read_json,
)
from vla.lerobot_writer import IMAGES, LANGUAGE, OURS, STATE, arrow, video


def _is_below(path: Any) -> bool:
    """Whether it is a path that leads nowhere else than into the folder."""
    return is_text(path) and not path.startswith('/') and '..' not in path


def _are_names(value: Any) -> bool:
    """Whether it is names of columns, or a list of names by kind of column, or nothing."""
    groups = list(value.values()) if is_object(value) else [value]
    return value is None or all(map(are_texts, groups))


def _is_about(value: Any) -> bool:
    """Whether it is what a feature says beside its columns; ours say these things."""
    if value is None:
        return True
    if not is_object(value) or not is_text(value.get('camera', '')):
        return False
    lists = [value[key] for key in ('units', 'kinds') if key in value]
    return all(map(are_texts, lists)) and value.get('array', ACTIONS[0]) in ACTIONS


def _is_feature(value: Any) -> bool:
    return (
        is_object(value)
        and is_text(value.get('dtype'))
        and isinstance(value.get('shape'), list)
        and all(is_whole(n) for n in value['shape'])
        and _are_names(value.get('names'))
        and _is_about(value.get('info'))
        and _is_about(value.get('video_info'))
    )


def _are_features(value: Any) -> bool:
    return is_object(value) and all(map(_is_feature, value.values()))


# What is read of info.json, which somebody else may have written.
INFO: Rules = {
    'fps': (True, lambda value: is_number(value) and value > 0, 'frames per second'),
    'features': (True, _are_features, 'by name dtype, shape, and names of its columns'),
    'data_path': (True, _is_below, 'a path in the folder'),
    'video_path': (False, lambda value: value is None or _is_below(value), 'a path in the folder'),
    'total_episodes': (True, is_whole, 'a whole number'),
}
# What is read of the description of an episode.
EPISODE: Rules = {
    'episode_index': (True, is_whole, 'a whole number'),
    'length': (True, lambda value: is_whole(value, 1), 'a whole number, at least 1'),
    'data/chunk_index': (True, is_whole, 'a whole number'),
    'data/file_index': (True, is_whole, 'a whole number'),
}
# What reading a damaged file may end in.
FAULTS = (AttributeError, LookupError, NotImplementedError, OSError, TypeError, ValueError)


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """Say whatever goes wrong with somebody else's file in one line that begins with its name."""
    try:
        yield
    except FAULTS as fault:
        said = ' '.join(str(fault).split())
        if said.startswith(source):
            raise ValueError(said) from None
        kind = '' if type(fault) is ValueError else f'{type(fault).__name__}: '
        raise ValueError(f'{source}: {kind}{said}') from None


def _read_table(path: str, filters: Any = None) -> Any:
    with naming(path):
        return arrow().parquet.read_table(path, filters=filters)


def read_info(folder: str) -> dict[str, Any]:
    """meta/info.json of a LeRobot data set that can be read here.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or of another version.
    """
    path = f'{folder}/meta/info.json'
    if not os.path.exists(path):
        raise FileNotFoundError(f'{folder} is no LeRobot data set: there is no meta/info.json')
    info = read_json(path)
    version = str(info.get('codebase_version'))
    if not version.startswith('v3.'):
        raise ValueError(
            f'{path}: codebase_version {version}, this code reads v3; LeRobot converts it: python '
            '-m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=...'
        )
    check_fields(path, info, INFO)
    return info


def _names(feature: dict[str, Any], key: str) -> list[str]:
    """Names of a feature's columns, however they are written."""
    names = feature.get('names') or []
    if isinstance(names, dict):  # Names are by kind of column.
        names = [name for group in names.values() for name in group]
    (n,) = feature['shape']
    if len(names) != n or len(set(names)) != n:
        return [f'{key}_{i}' for i in range(n)]
    return names


def _table_of(features: dict[str, dict[str, Any]], key: str) -> list[tuple[str, str, str]]:
    """Slots of a feature: (name, unit, kind) each. Others' data sets do not tell unit and kind.

    There a gripper, by its name, is left as it is, and all else is learnt relative to the command
    before.
    """
    if key not in features or len(features[key]['shape']) != 1:
        raise ValueError(
            f'there is no {key} with one row of numbers per frame; there are {", ".join(features)}'
        )
    feature = features[key]
    names = _names(feature, key.rpartition('.')[2])
    info = feature.get('info') or {}
    units = info['units'] if 'units' in info else [''] * len(names)
    kinds = [''] * len(names)
    if 'kinds' in info:
        kinds = info['kinds']
    elif key == 'action':
        kinds = ['absolute' if 'gripper' in name else 'joint' for name in names]
    if not len(names) == len(units) == len(kinds):
        raise ValueError(
            f'{key} has {len(names)} columns, {len(units)} units and {len(kinds)} kinds'
        )
    return list(zip(names, units, kinds))


def _cameras(features: dict[str, dict[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """({feature: camera}, what is left out, in lines)."""
    cameras = {}
    notes = []
    for key, feature in features.items():
        if feature['dtype'] not in ('image', 'video'):
            continue
        info = (feature.get('info') or {}) | (feature.get('video_info') or {})
        if info.get('is_depth_map') or info.get('video.is_depth_map'):
            notes.append(f'{key} is left out: it is depth')
            continue
        cameras[key] = info.get('camera', key.removeprefix(IMAGES).removeprefix('observation.'))
    return cameras, notes


class _VideoReader:
    """Pictures of a camera, in the order in which they stand in its files."""

    def __init__(self, rate: float):
        self.rate = rate
        self.path = ''
        self.file: Any = None
        self.frames: Iterator[Any] = iter(())
        self.next = 0  # number of the next picture

    def read(self, path: str, start_s: float, count: int) -> Iterator[np.ndarray]:
        """Yield `count` pictures (h, w, 3) from a moment on.

        Raises:
            ValueError: They are not all there.
        """
        first = round(start_s * self.rate)
        if path != self.path or first < self.next:
            self.close()
            self.file = video().open(path)
            self.frames = self.file.decode(video=0)
            self.path = path
        given = 0
        while given < count:
            frame = next(self.frames, None)
            if frame is None:
                raise ValueError(f'{path}: ends {count - given} pictures early')
            self.next = round(frame.time * self.rate) + 1
            if self.next > first:
                given += 1
                yield frame.to_ndarray(format='rgb24')

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.file = None
        self.path = ''
        self.next = 0


def fitted(picture: np.ndarray, size: int) -> np.ndarray:
    """A picture as a square of so many pixels, as it is for 0."""
    if not size or picture.shape[:2] == (size, size):
        return picture
    image = PIL.Image.fromarray(picture).resize((size, size), PIL.Image.Resampling.BOX)
    return np.asarray(image)


def _unpacked(cells: Any, folder: str) -> Iterator[np.ndarray]:
    """Pictures that lie in a table, as bytes or as files beside it."""
    for cell in cells.to_pylist():
        source: Any = io.BytesIO(cell['bytes']) if cell['bytes'] else None
        if source is None:
            source = os.path.join(folder, os.path.normpath('/' + cell['path'])[1:])
        with PIL.Image.open(source) as image:
            yield np.asarray(image.convert('RGB'))


def _subtasks(rows: list[dict[str, Any]], rate: float, length: int) -> tuple[list[str], np.ndarray]:
    """Subtask texts of an episode and which of them holds in each row, (T,)."""
    spans = [row for row in rows if row['style'] == 'subtask' and row['content']]
    texts = list(dict.fromkeys(row['content'] for row in spans))
    ids = np.zeros(length, np.int32)
    for row in sorted(spans, key=lambda row: row['timestamp']):
        ids[max(0, round(row['timestamp'] * rate)) :] = texts.index(row['content'])
    return texts, ids


def _numbers(table: Any, key: str, width: int) -> np.ndarray:
    """A column of a table that holds lists of numbers, (T, width) float32."""
    if key not in table.column_names:
        raise ValueError(f'there is no column {key}; there are {", ".join(table.column_names)}')
    rows = table[key].combine_chunks()
    flat = rows.flatten() if hasattr(rows, 'flatten') else rows
    numbers = flat.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind not in 'fiu' or numbers.size != len(table) * width:
        raise ValueError(f'column {key} is {rows.type}, expected {width} numbers per row')
    return numbers.reshape(-1, width).astype(np.float32)


class _Reader:
    """Episodes of a LeRobot data set, one after the other."""

    def __init__(self, folder: str, image_size: int):
        self.folder = folder
        self.image_size = image_size
        self.info = read_info(folder)
        self.rate = self.info['fps']
        self.total = self.info['total_episodes']
        self.features = self.info['features']
        self.cameras, self.notes = _cameras(self.features)
        with naming(f'{folder}/meta/info.json'):
            self.state = _table_of(self.features, STATE)
            self.action = _table_of(self.features, 'action')
        about = self.features['action'].get('info') or {}
        self.array = about['array'] if 'array' in about else 'joint_action'
        path = f'{folder}/meta/tasks.parquet'
        tasks = _read_table(path).to_pydict()
        texts = tasks['task'] if 'task' in tasks else tasks.get('__index_level_0__')
        if not are_texts(texts) or 'task_index' not in tasks:
            raise ValueError(f'{path}: expected a text for each task_index')
        self.tasks = dict(zip(tasks['task_index'], texts))
        self.videos = {key: _VideoReader(self.rate) for key in self.cameras}

    def episodes(self) -> Iterator[dict[str, Any]]:
        """Descriptions of the episodes, in order."""
        at = f'{self.folder}/meta/episodes'
        paths = sorted(
            os.path.join(of, name)
            for of, _, names in os.walk(at)
            for name in names
            if name.endswith('.parquet')
        )
        for path in paths:
            with naming(path):
                file = arrow().parquet.ParquetFile(path)
                every = file.schema_arrow.names
                rows = file.read([n for n in every if not n.startswith('stats/')]).to_pylist()
            for row in rows:
                check_fields(path, row, EPISODE)
            yield from rows

    def read_all(self) -> Iterator[tuple[str, Arrays, Header]]:
        """The file, arrays and header of each episode."""
        for about in self.episodes():
            number = about['episode_index']
            places = {key: about[f'data/{key}'] for key in ('chunk_index', 'file_index')}
            with naming(f'{self.folder}/meta/info.json'):
                path = os.path.join(self.folder, self.info['data_path'].format(**places))
            table = _read_table(path, [('episode_index', '=', number)])
            with naming(path):
                arrays, header = self._read(about, table)
            yield f'{path}, episode {number}', arrays, header

    def _read(self, about: dict[str, Any], table: Any) -> tuple[Arrays, Header]:
        """Arrays and header of an episode.

        Args:
            about: Its description.
            table: Its rows.
        """
        number = about['episode_index']
        length = len(table)
        if length != about['length']:
            raise ValueError(f'{length} rows of episode {number}, not {about["length"]}')
        order = np.argsort(_numbers(table, 'frame_index', 1)[:, 0])
        arrays: Arrays = {'time': np.arange(length) / self.rate}
        tables = {'state': (STATE, self.state), self.array: ('action', self.action)}
        for name, (key, slots) in tables.items():
            arrays[name] = _numbers(table, key, len(slots))[order]
        for key, camera in self.cameras.items():
            if self.features[key]['dtype'] == 'video':
                frames = self._decoded(about, key, length)
            else:
                frames = _unpacked(table[key].take(order), self.folder)
            arrays[f'image/{camera}'] = np.stack(
                [fitted(frame, self.image_size) for frame in frames]
            )
        header: Header = {
            'task': about.get(f'{OURS}task', 'lerobot'),
            'instruction': self.tasks[table['task_index'][0].as_py()],
            'control_hz': self.rate,
            'seed': about.get(f'{OURS}seed', number),
            'success': about.get(f'{OURS}success', True),  # it is a demonstration
        }
        if LANGUAGE in table.column_names:
            texts, ids = _subtasks(table[LANGUAGE][0].as_py() or [], self.rate, length)
            if texts:
                header['subtasks'] = texts
                arrays['subtask_id'] = ids
        return arrays, header | slot_keys(state=self.state, **{self.array: self.action})

    def _decoded(self, about: dict[str, Any], key: str, length: int) -> Iterator[np.ndarray]:
        names = {name: about[f'videos/{key}/{name}'] for name in ('chunk_index', 'file_index')}
        path = self.info['video_path'].format(video_key=key, **names)
        start = about[f'videos/{key}/from_timestamp']
        return self.videos[key].read(os.path.join(self.folder, path), start, length)


def from_lerobot(folder: str, to: str, image_size: int = 0, jpeg: int | None = None) -> list[str]:
    """Write the episodes of a LeRobot data set as ours, into a folder.

    Args:
        folder: Of the data set, version 3.
        to: Where they go; it must not be there.
        image_size: Pictures become squares of so many pixels, as training makes them; 0: as is.
        jpeg: Quality, 1 to 95, in which pictures are packed; 0: not at all; None: 90 of videos,
            which have their losses already, 0 of others.

    Returns:
        In lines, what has been left out, what has been written, and what to type next.

    Raises:
        ValueError: It cannot be read, or a package is missing.
        FileNotFoundError: There is no data set.
    """
    reader = _Reader(folder, image_size)
    if jpeg is None:
        kinds = [reader.features[key]['dtype'] for key in reader.cameras]
        jpeg = 90 if 'video' in kinds else 0
    said = write_all(folder, reader.read_all(), to, reader.total, jpeg)
    return [*reader.notes, *said]


def write_all(
    source: str,
    episodes: Iterable[tuple[str, Arrays, Header]],
    to: str,
    count: int | None,
    jpeg: int = 0,
) -> list[str]:
    """Write episodes into a folder that is not there yet; a kill leaves none.

    Args:
        source: What they are read from.
        episodes: Where each one comes from, its arrays and header.
        to: The folder.
        count: How many there will be, where that is known.
        jpeg: Quality in which pictures are packed; 0: not at all.

    Returns:
        In lines, what has been written and what to type next.

    Raises:
        ValueError: There is no episode, or one is not what this code can train on.
    """
    if os.path.exists(to):
        raise ValueError(f'{to} is there already: name another folder, or remove it')
    root = f'{to.rstrip("/")}.tmp'
    shutil.rmtree(root, ignore_errors=True)  # A conversion that was killed has left it.
    n = 0
    for origin, arrays, header in tqdm(episodes, total=count, unit='ep', disable=None):
        path = os.path.join(root, f'{header["task"]}_{n:07d}.safetensors')
        try:
            write_episode(path, arrays, header, jpeg)
        except ValueError as refusal:
            said = str(refusal).removeprefix(f'{path} not written: ')
            raise ValueError(f'{origin}: {said}') from None
        n += 1
    if not n:
        raise ValueError(f'{source}: there is no episode in it')
    os.replace(root, to)
    cameras = ''.join(
        f'{name.removeprefix("image/")},' for name in arrays if name.startswith('image/')
    )
    rate = f'{header["control_hz"]:g}'
    command = f'python train.py config/own.py --episodes={to} --control_hz={rate}'
    space = '' if 'joint_action' in arrays else ' --action_space=tool'
    return [
        f'{to}: {n} episodes at {rate} Hz',
        f'next: python data.py check {to} && {command}{space} --cameras={cameras}',
    ]
