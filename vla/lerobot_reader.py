"""Episodes of a LeRobot data set, version 3, read without LeRobot.

    from_lerobot('data/aloha', 'episodes/aloha')

State, action, pictures and instructions come over, and subtask texts where there are some. pyarrow
and, for video, av have to be installed. What is not told, as units, is left open.
"""

import io
import os
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import PIL.Image
from tqdm import tqdm

from episode import Arrays, Header, slot_keys, write_episode
from vla.folder import Rules, check_fields, is_number, is_object, is_text, is_whole, read_json
from vla.lerobot_writer import IMAGES, LANGUAGE, OURS, STATE, arrow, video


def _is_below(path: Any) -> bool:
    """Whether it is a path that leads nowhere else than into the folder."""
    return is_text(path) and not path.startswith('/') and '..' not in path


def _are_features(value: Any) -> bool:
    return is_object(value) and all(
        is_object(feature)
        and is_text(feature.get('dtype'))
        and isinstance(feature.get('shape'), list)
        for feature in value.values()
    )


# What is read of info.json, which somebody else may have written.
INFO: Rules = {
    'fps': (True, lambda value: is_number(value) and value > 0, 'frames per second'),
    'features': (True, _are_features, 'dtype and shape by name'),
    'data_path': (True, _is_below, 'a path in the folder'),
    'video_path': (False, lambda value: value is None or _is_below(value), 'a path in the folder'),
    'total_episodes': (True, is_whole, 'a whole number'),
}


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
    names = feature.get('names')
    if isinstance(names, dict):  # Names are by kind of column.
        names = [name for group in names.values() for name in group]
    (n,) = feature['shape']
    if not isinstance(names, list) or len(names) != n or len(set(names)) != n:
        return [f'{key}_{i}' for i in range(n)]
    return [str(name) for name in names]


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
        self.state = _table_of(self.features, STATE)
        self.action = _table_of(self.features, 'action')
        about = self.features['action'].get('info') or {}
        self.array = about['array'] if 'array' in about else 'joint_action'
        read = arrow().parquet.read_table
        tasks = read(f'{folder}/meta/tasks.parquet').to_pydict()
        texts = tasks['task'] if 'task' in tasks else tasks['__index_level_0__']
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
            file = arrow().parquet.ParquetFile(path)
            columns = [name for name in file.schema_arrow.names if not name.startswith('stats/')]
            yield from file.read(columns).to_pylist()

    def read(self, about: dict[str, Any]) -> tuple[Arrays, Header]:
        """Arrays and header of an episode.

        Args:
            about: Its description.
        """
        number = about['episode_index']
        names = {'chunk_index': about['data/chunk_index'], 'file_index': about['data/file_index']}
        path = os.path.join(self.folder, self.info['data_path'].format(**names))
        table = arrow().parquet.read_table(path, filters=[('episode_index', '=', number)])
        length = len(table)
        if length != about['length'] or not length:
            raise ValueError(f'{path}: {length} rows of episode {number}, not {about["length"]}')
        order = np.argsort(table['frame_index'].to_numpy())
        arrays: Arrays = {'time': np.arange(length) / self.rate}
        for name, key in (('state', STATE), (self.array, 'action')):
            flat = table[key].combine_chunks().flatten().to_numpy()
            arrays[name] = flat.reshape(length, -1)[order].astype(np.float32)
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
    try:
        said = write_all(map(reader.read, reader.episodes()), to, reader.total, jpeg)
    except KeyError as missing:  # A column or an entry is missing.
        raise ValueError(f'{folder} is not laid out as LeRobot does it: no {missing}') from None
    return [*reader.notes, *said]


def write_all(
    episodes: Iterable[tuple[Arrays, Header]], to: str, count: int | None, jpeg: int = 0
) -> list[str]:
    """Write episodes into a folder that is not there yet; a kill leaves none.

    Args:
        episodes: Arrays and header of each.
        to: The folder.
        count: How many there will be, where that is known.
        jpeg: Quality in which pictures are packed; 0: not at all.

    Returns:
        In lines, what has been written and what to type next.
    """
    if os.path.exists(to):
        raise ValueError(f'{to} is there already: name another folder, or remove it')
    root = f'{to.rstrip("/")}.tmp'
    shutil.rmtree(root, ignore_errors=True)  # A conversion that was killed has left it.
    n = 0
    for arrays, header in tqdm(episodes, total=count, unit='ep', disable=None):
        path = os.path.join(root, f'{header["task"]}_{n:07d}.safetensors')
        write_episode(path, arrays, header, jpeg)
        n += 1
    if not n:
        raise ValueError('there is no episode in it')
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
