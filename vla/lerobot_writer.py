"""Episodes as a LeRobot data set, version 3.0, written without LeRobot.

    to_lerobot(episode_paths('episodes/demo'), 'out/demo_lerobot')

What travels is CORE of episode.py: state, action, pictures, instruction, names, and subtask texts
where there are some; nothing that only a simulator knows. The layout is that of lerobot 0.6.1
(lerobot/datasets/dataset_writer.py, language.py). pyarrow and, for video, av have to be installed.

    meta/info.json                                 rate, features, counts, where files are
    meta/stats.json                                of every feature, over all of its rows
    meta/tasks.parquet                             instructions by number
    meta/episodes/chunk-000/file-000.parquet       per episode: where it is, and its own statistics
    data/chunk-000/file-000.parquet                rows; one row group per episode
    videos/<key>/chunk-000/file-000.mp4            pictures, many episodes in a file
"""

import collections
import io
import json
import os
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from tqdm import tqdm

from episode import ACTIONS, Arrays, Header, Table, read_episode, slot_tables, write_atomic

VERSION = 'v3.0'
CHUNK = 'chunk-{chunk_index:03d}/file-{file_index:03d}'
DATA_PATH = f'data/{CHUNK}.parquet'
VIDEO_PATH = f'videos/{{video_key}}/{CHUNK}.mp4'
EPISODES_PATH = f'meta/episodes/{CHUNK}.parquet'
IMAGES = 'observation.images.'
STATE = 'observation.state'
LANGUAGE = 'language_persistent'
QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
INDICES = ('frame_index', 'episode_index', 'index', 'task_index')
# What lerobot 0.6.1 encodes with: every other frame is a key frame, so that any is soon decoded.
CODEC = 'libsvtav1'
ENCODER = {'g': 2, 'crf': 30, 'preset': 12}
BATCH = 100  # episodes whose descriptions are written at a time
OURS = 'vla_lego/'  # columns of an episode's description that LeRobot has no word for


class Limits(NamedTuple):
    """How files are cut: the next one begins where one has so many megabytes."""

    chunk_files: int = 1000  # files of a folder
    data_mb: float = 100
    video_mb: float = 200


LIMITS = Limits()


def arrow() -> Any:
    """The package pyarrow; ValueError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError('LeRobot data sets are parquet files: pip install pyarrow') from None
    return pyarrow


def video() -> Any:
    """The package av; ValueError where it is not installed."""
    try:
        import av
    except ImportError:
        raise ValueError(
            'these pictures are video: pip install av, or --pictures=image where they are written'
        ) from None
    return av


# -----------------------------------------------------------------------------
# statistics


def row_stats(values: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of rows, (N,) or (N, D), exact: means of quantiles would be none.

    Returns:
        min, max, mean, std, q01, q10, q50, q90 and q99, (D,) each, and count (1,).
    """
    rows = values.reshape(len(values), -1).astype(np.float64)
    stats = {'min': rows.min(0), 'max': rows.max(0), 'mean': rows.mean(0), 'std': rows.std(0)}
    stats['count'] = np.array([len(rows)])
    levels = np.quantile(rows, QUANTILES, axis=0)
    return stats | {f'q{100 * q:02.0f}': level for q, level in zip(QUANTILES, levels)}


def count_pixels(frames: np.ndarray) -> np.ndarray:
    """How often each value 0..255 stands in each channel of (T, h, w, 3): (3, 256)."""
    return np.stack([np.bincount(frames[..., c].ravel(), minlength=256) for c in range(3)])


def pixel_stats(counts: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """Statistics of all pixels, from 0 to 1, (3, 1, 1) each.

    Args:
        counts: Of `count_pixels`, of as many pictures as there are: (3, 256).
        frames: How many these are.
    """
    values = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    variance = share @ values**2 - mean**2
    there = counts > 0
    stats = {
        'min': values[there.argmax(1)],
        'max': values[255 - there[:, ::-1].argmax(1)],
        'mean': mean,
        'std': np.sqrt(np.maximum(variance, 0)),
    }
    below = share.cumsum(1)
    for q in QUANTILES:
        stats[f'q{100 * q:02.0f}'] = values[(below >= q - 1e-12).argmax(1)]
    shaped = {name: value.reshape(3, 1, 1) for name, value in stats.items()}
    return shaped | {'count': np.array([frames])}


def _as_lists(stats: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, list]]:
    return {
        feature: {name: value.tolist() for name, value in of_feature.items()}
        for feature, of_feature in stats.items()
    }


# -----------------------------------------------------------------------------
# files that are cut at a size


class _ParquetFiles:
    """Tables one behind the other, in files of a limited size."""

    def __init__(self, root: str, path: str, limits: Limits, limit_mb: float):
        self.root = root
        self.path = path
        self.limits = limits
        self.limit_mb = limit_mb
        self.number = 0  # Number of the file that is written now.
        self.writer: Any = None

    def place(self) -> tuple[int, int]:
        """Chunk and file that the next table goes into."""
        return divmod(self.number, self.limits.chunk_files)

    def write(self, table: Any) -> None:
        chunk, file = self.place()
        path = os.path.join(self.root, self.path.format(chunk_index=chunk, file_index=file))
        if self.writer is None:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self.writer = arrow().parquet.ParquetWriter(path, table.schema, compression='snappy')
        self.writer.write_table(table, row_group_size=len(table))
        if os.path.getsize(path) >= self.limit_mb * 2**20:
            self.close()
            self.number += 1

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.writer = None


class _VideoFiles:
    """Pictures of a camera one behind the other, in files of a limited size."""

    def __init__(self, root: str, key: str, rate: int, limits: Limits):
        self.root = root
        self.key = key
        self.rate = rate
        self.limits = limits
        self.number = 0
        self.frames = 0  # Frames in the file that is written now.
        self.bytes = 0
        self.file: Any = None
        self.stream: Any = None

    def write(self, frames: np.ndarray) -> dict[str, Any]:
        """Append pictures (T, h, w, 3); returns where they are, as an episode's row says it."""
        chunk, file = divmod(self.number, self.limits.chunk_files)
        names = {'video_key': self.key, 'chunk_index': chunk, 'file_index': file}
        path = os.path.join(self.root, VIDEO_PATH.format(**names))
        if self.file is None:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            options = {name: str(value) for name, value in ENCODER.items()}
            self.file = video().open(path, 'w', options={'movflags': 'faststart'})
            self.stream = self.file.add_stream(CODEC, self.rate, options=options)
            self.stream.height, self.stream.width = frames.shape[1:3]
            self.stream.pix_fmt = 'yuv420p'
            self.frames = 0
            self.bytes = 0
        start = self.frames / self.rate
        for picture in frames:
            self._mux(self.stream.encode(video().VideoFrame.from_ndarray(picture, 'rgb24')))
        self.frames += len(frames)
        place = {'from_timestamp': start, 'to_timestamp': self.frames / self.rate}
        place |= {'chunk_index': chunk, 'file_index': file}
        if self.bytes >= self.limits.video_mb * 2**20:
            self.close()
            self.number += 1
        return {f'videos/{self.key}/{name}': value for name, value in place.items()}

    def _mux(self, packets: list[Any]) -> None:
        self.file.mux(packets)
        self.bytes += sum(packet.size for packet in packets)

    def close(self) -> None:
        if self.file is not None:
            self._mux(self.stream.encode())
            self.file.close()
        self.file = None


# -----------------------------------------------------------------------------
# out: what is the same in all episodes


class _Plan(NamedTuple):
    """What all episodes of a data set share."""

    rate: int
    robot: str
    action: str  # the array that becomes `action`
    tables: dict[str, Table]
    cameras: dict[str, tuple[int, int]]  # height and width
    has_subtasks: bool
    notes: list[str]  # Lines about what is left out.


def camera_key(camera: str) -> str:
    """The name that a camera's feature has: left/wrist -> observation.images.left_wrist."""
    return IMAGES + camera.replace('/', '_')


def _plan(paths: Sequence[str], action: str, pictures: str) -> _Plan:
    """Find out what episodes share, or say in which they differ."""
    if action not in ('', 'tool', 'joint'):
        raise ValueError(f"action={action}: expected 'tool' or 'joint'")
    arrays, header = read_episode(paths[0])
    array = f'{action}_action' if action else next(name for name in ACTIONS if name in arrays)
    first = slot_tables(header)
    rate = header['control_hz']
    if rate != int(rate):
        raise ValueError(f'{paths[0]}: control_hz {rate}; LeRobot counts whole frames per second')
    seen: dict[str, dict[str, tuple[int, int]]] = {}  # Cameras and their sizes by file.
    has_subtasks = True
    for path in paths:
        arrays, header = read_episode(path)
        if array not in arrays:
            raise ValueError(f'{path} has no {array}: --action={array[:-7]} is not to be had')
        tables = slot_tables(header)
        is_same = all(tables[name] == first[name] for name in ('state', array))
        if not is_same or header['control_hz'] != rate:
            raise ValueError(
                f'{path} has another rate or other slots than {paths[0]}: a data set has one of '
                'each, convert them into two'
            )
        has_subtasks &= 'subtask_id' in arrays
        sizes = header['cameras'].items()
        seen[path] = {name: (size['height'], size['width']) for name, size in sizes}
    robot = header['world']['robot'] if 'robot' in header.get('world', {}) else 'unknown'
    shared = {'state': first['state'], array: first[array]}
    cameras, notes = _common_cameras(seen, pictures)
    return _Plan(int(rate), robot, array, shared, cameras, has_subtasks, notes)


def _common_cameras(
    seen: dict[str, dict[str, tuple[int, int]]], pictures: str
) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """(Sizes of the cameras that every file has, what is left out, in lines)."""
    there = collections.Counter(name for cameras in seen.values() for name in cameras)
    common: dict[str, tuple[int, int]] = {}
    for path, cameras in seen.items():
        for name, size in cameras.items():
            if there[name] == len(seen) and common.setdefault(name, size) != size:
                raise ValueError(f'{path}: camera {name} is {size}, {common[name]} before')
    for name, (height, width) in common.items():
        if pictures == 'video' and (height % 2 or width % 2):
            raise ValueError(
                f'camera {name} has {height} x {width} pixels, a video even numbers of them: '
                '--pictures=image'
            )
    if len(set(map(camera_key, common))) < len(common):
        raise ValueError(f'two of the cameras {", ".join(common)} would have the same name')
    notes = [
        f'camera {name} is left out: {count} of {len(seen)} episodes have it'
        for name, count in there.items()
        if count < len(seen)
    ]
    return common, notes


def _features(plan: _Plan, pictures: str) -> dict[str, dict[str, Any]]:
    """The features of info.json; `info` says what LeRobot has no word for."""
    features: dict[str, dict[str, Any]] = {}
    for key, name in ((STATE, 'state'), ('action', plan.action)):
        table = plan.tables[name]
        info: dict[str, Any] = {'units': [slot.unit for slot in table]}
        if name != 'state':
            info |= {'kinds': [slot.kind for slot in table], 'array': name}
        names = [slot.name for slot in table]
        features[key] = {'dtype': 'float32', 'shape': [len(table)], 'names': names, 'info': info}
    for camera, (height, width) in plan.cameras.items():
        info = {'camera': camera}
        if pictures == 'video':
            info |= {'video.height': height, 'video.width': width, 'video.codec': 'av1'}
            info |= {'video.pix_fmt': 'yuv420p', 'video.fps': plan.rate, 'video.channels': 3}
            info |= {f'video.{name}': value for name, value in ENCODER.items()}
            info |= {'video.fast_decode': 0, 'video.video_backend': 'pyav'}
            info |= {'video.extra_options': {}, 'has_audio': False, 'is_depth_map': False}
        features[camera_key(camera)] = {
            'dtype': pictures,
            'shape': [height, width, 3],
            'names': ['height', 'width', 'channels'],
            'info': info,
        }
    if plan.has_subtasks:
        features[LANGUAGE] = {'dtype': 'language', 'shape': [1], 'names': None}
    features['timestamp'] = {'dtype': 'float32', 'shape': [1], 'names': None}
    for name in INDICES:
        features[name] = {'dtype': 'int64', 'shape': [1], 'names': None}
    return features


# -----------------------------------------------------------------------------
# out: rows


def _schema(features: dict[str, dict[str, Any]]) -> Any:
    """The schema of a data file; its metadata tell the Hub's viewer which columns are pictures."""
    pa = arrow()
    fields = []
    images = {}
    for key, feature in features.items():
        kind = feature['dtype']
        if kind == 'image':
            fields.append((key, pa.struct([('bytes', pa.binary()), ('path', pa.string())])))
            images[key] = {'_type': 'Image'}
        elif kind == 'language':
            fields.append((key, pa.list_(_language_row())))
        elif kind != 'video':
            value = pa.type_for_alias(kind)
            (n,) = feature['shape']
            is_one = n == 1 and feature['names'] is None
            fields.append((key, value if is_one else pa.list_(value, n)))
    about = json.dumps({'info': {'features': images}})
    return pa.schema(fields, metadata={'huggingface': about})


def _language_row() -> Any:
    """The type of a text that holds from a moment on, see lerobot/datasets/language.py."""
    pa = arrow()
    return pa.struct(
        [
            pa.field('role', pa.string(), nullable=False),
            pa.field('content', pa.string()),
            pa.field('style', pa.string()),
            pa.field('timestamp', pa.float32(), nullable=False),
            pa.field('camera', pa.string()),
            pa.field('tool_calls', pa.list_(pa.json_())),
        ]
    )


def _language(arrays: Arrays, header: Header, rate: int) -> Any:
    """The column of an episode's subtasks: every row holds all of them, as LeRobot has it."""
    pa = arrow()
    ids = np.asarray(arrays['subtask_id'])
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    rows = len(ids)
    texts = [header['subtasks'][ids[start]] for start in starts] * rows
    n = len(texts)
    columns = [
        pa.array(['assistant'] * n),
        pa.array(texts),
        pa.array(['subtask'] * n),
        pa.array(np.tile(starts / rate, rows).astype(np.float32)),
        pa.nulls(n, pa.string()),
        pa.nulls(n, pa.list_(pa.json_())),
    ]
    structs = pa.StructArray.from_arrays(columns, fields=list(_language_row()))
    offsets = pa.array(np.arange(rows + 1) * len(starts), pa.int32())
    return pa.ListArray.from_arrays(offsets, structs)


def _png(frames: np.ndarray, key: str) -> list[dict[str, Any]]:
    packed = []
    for number, frame in enumerate(frames):
        blob = io.BytesIO()
        PIL.Image.fromarray(frame).save(blob, 'png')
        packed.append({'bytes': blob.getvalue(), 'path': f'{key}-{number:06d}.png'})
    return packed


class _Writer:
    """A LeRobot data set that grows by an episode at a time."""

    def __init__(self, root: str, plan: _Plan, pictures: str, limits: Limits):
        self.root = root
        self.plan = plan
        self.pictures = pictures
        self.limits = limits
        self.features = _features(plan, pictures)
        self.schema = _schema(self.features)
        self.rows = _ParquetFiles(root, DATA_PATH, limits, limits.data_mb)
        self.descriptions = _ParquetFiles(root, EPISODES_PATH, limits, limits.data_mb)
        keys = [camera_key(camera) for camera in plan.cameras]
        self.videos: dict[str, _VideoFiles] = {}
        if pictures == 'video':
            self.videos = {key: _VideoFiles(root, key, plan.rate, limits) for key in keys}
        self.tasks: dict[str, int] = {}  # instruction: its number
        self.columns: dict[str, list] = collections.defaultdict(list)  # Columns of all episodes.
        self.pixels = {key: np.zeros((3, 256), np.int64) for key in keys}
        self.told: list[dict] = []  # descriptions that are not written yet
        self.episodes = 0
        self.frames = 0

    def add(self, arrays: Arrays, header: Header) -> None:
        """Append an episode."""
        length = len(arrays['time'])
        task = self.tasks.setdefault(header['instruction'], len(self.tasks))
        columns: dict[str, np.ndarray] = {
            STATE: np.asarray(arrays['state'], np.float32),
            'action': np.asarray(arrays[self.plan.action], np.float32),
            'timestamp': (np.arange(length) / self.plan.rate).astype(np.float32),
            'frame_index': np.arange(length),
            'episode_index': np.full(length, self.episodes),
            'index': np.arange(self.frames, self.frames + length),
            'task_index': np.full(length, task),
        }
        stats = {key: row_stats(values) for key, values in columns.items()}
        for key, values in columns.items():
            self.columns[key].append(values)
        table = {key: _column(values) for key, values in columns.items()}
        about: dict[str, Any] = {'episode_index': self.episodes, 'length': length}
        about['tasks'] = [header['instruction']]
        for camera in self.plan.cameras:
            key = camera_key(camera)
            frames = np.asarray(arrays[f'image/{camera}'])
            counts = count_pixels(frames)
            self.pixels[key] += counts
            stats[key] = pixel_stats(counts, length)
            if self.videos:
                about |= self.videos[key].write(frames)
            else:
                table[key] = _png(frames, key)
        if self.plan.has_subtasks:
            table[LANGUAGE] = _language(arrays, header, self.plan.rate)
        about['data/chunk_index'], about['data/file_index'] = self.rows.place()
        about['dataset_from_index'] = self.frames
        about['dataset_to_index'] = self.frames + length
        about |= {f'{OURS}{key}': header[key] for key in ('task', 'seed', 'success')}
        for feature, of_feature in _as_lists(stats).items():
            about |= {f'stats/{feature}/{name}': value for name, value in of_feature.items()}
        ordered = {name: table[name] for name in self.schema.names}
        self.rows.write(arrow().table(ordered, self.schema))
        self.told.append(about)
        if len(self.told) == BATCH:
            self._tell()
        self.episodes += 1
        self.frames += length

    def _tell(self) -> None:
        """Write the descriptions of the last episodes."""
        chunk, file = self.descriptions.place()
        at = {'meta/episodes/chunk_index': chunk, 'meta/episodes/file_index': file}
        table = arrow().Table.from_pylist([about | at for about in self.told])
        self.descriptions.write(table)
        self.told = []

    def finish(self) -> None:
        """Write what is said of all episodes."""
        if self.told:
            self._tell()
        self.rows.close()
        self.descriptions.close()
        for video_files in self.videos.values():
            video_files.close()
        stats = {key: row_stats(np.concatenate(values)) for key, values in self.columns.items()}
        stats |= {key: pixel_stats(counts, self.frames) for key, counts in self.pixels.items()}
        info = {
            'codebase_version': VERSION,
            'fps': self.plan.rate,
            'features': self.features,
            'total_episodes': self.episodes,
            'total_frames': self.frames,
            'total_tasks': len(self.tasks),
            'chunks_size': self.limits.chunk_files,
            'data_files_size_in_mb': self.limits.data_mb,
            'video_files_size_in_mb': self.limits.video_mb,
            'data_path': DATA_PATH,
            'video_path': VIDEO_PATH if self.videos else None,
            'robot_type': self.plan.robot,
            'splits': {'train': f'0:{self.episodes}'},
        }
        for name, content in (('info', info), ('stats', _as_lists(stats))):
            text = json.dumps(content, indent=4)
            write_atomic(f'{self.root}/meta/{name}.json', text.encode())
        write_atomic(f'{self.root}/README.md', _card(info).encode())
        table = _tasks_table(list(self.tasks))
        arrow().parquet.write_table(table, f'{self.root}/meta/tasks.parquet')


def _column(values: np.ndarray) -> Any:
    """A column of a table: of numbers, or of rows of as many numbers each."""
    pa = arrow()
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _card(info: dict[str, Any]) -> str:
    """The text of README.md; its first lines make the Hub show rows and pictures by itself."""
    lines = ['---', 'tags: [LeRobot, robotics, vla-lego]', 'task_categories: [robotics]']
    lines += ['configs:', '- config_name: default', '  data_files: data/*/*.parquet', '---']
    lines += ['# Bimanual LEGO assembly, as a LeRobot data set', '']
    lines += [f'Robot: {info["robot_type"]}. Recorded with VLA-LEGO, by `data.py to_lerobot`.', '']
    counts = ('total_episodes', 'total_frames', 'total_tasks', 'fps')
    lines += [f'- {name}: {info[name]}' for name in counts]
    for key, feature in info['features'].items():
        lines.append(f'- `{key}`: {feature["dtype"]} {feature["shape"]}')
    table = info['features']['action']
    slots = zip(table['names'], table['info']['units'])
    lines += ['', 'Action: ' + ', '.join(f'`{name}` {unit}'.strip() for name, unit in slots), '']
    return '\n'.join(lines)


def _tasks_table(instructions: list[str]) -> Any:
    """Instructions by number, with the metadata by which pandas makes an index of them."""
    pa = arrow()

    def column(name: str, kind: str, numpy_kind: str) -> dict[str, Any]:
        types = {'pandas_type': kind, 'numpy_type': numpy_kind, 'metadata': None}
        return {'name': name, 'field_name': name, **types}

    about = {
        'index_columns': ['task'],
        'column_indexes': [],
        'columns': [column('task_index', 'int64', 'int64'), column('task', 'unicode', 'object')],
        'pandas_version': '2.0.0',
    }
    table = pa.table({'task_index': pa.array(range(len(instructions))), 'task': instructions})
    return table.replace_schema_metadata({'pandas': json.dumps(about)})


def to_lerobot(
    paths: Sequence[str],
    folder: str,
    pictures: str = 'video',
    action: str = '',
    limits: Limits = LIMITS,
) -> list[str]:
    """Write episodes as a LeRobot data set of version 3.0.

    Args:
        paths: Episode files of one robot, one rate and one size of pictures.
        folder: Where it goes; it must not be there.
        pictures: 'video', AV1, with losses; 'image', PNG, without.
        action: 'tool' or 'joint': which action is `action`; '': the first of them that is there.
        limits: Sizes of files.

    Returns:
        In lines, what has been left out and what has been written.

    Raises:
        ValueError: The episodes do not go into one data set, or a package is missing.
    """
    if pictures not in ('video', 'image'):
        raise ValueError(f"pictures={pictures}: expected 'video' or 'image'")
    if os.path.exists(folder):
        raise ValueError(f'{folder} is there already: name another folder, or remove it')
    arrow()
    plan = _plan(paths, action, pictures)
    if pictures == 'video' and plan.cameras:
        video()  # A missing package is said before anything is written.
    root = f'{folder.rstrip("/")}.tmp'
    shutil.rmtree(root, ignore_errors=True)  # A conversion that was killed has left it.
    writer = _Writer(root, plan, pictures, limits)
    for path in tqdm(paths, unit='ep', disable=None):
        writer.add(*read_episode(path))
    writer.finish()
    os.replace(root, folder)
    said = f'{writer.episodes} episodes, {writer.frames} frames, {len(writer.tasks)} instructions'
    name = os.path.basename(os.path.abspath(folder))
    size = sum(
        os.path.getsize(os.path.join(at, name))
        for at, _, names in os.walk(folder)
        for name in names
    )
    return [
        *plan.notes,
        f'{folder}: {said}, {size / 1e6:.1f} MB',
        f'share: hf upload <you>/{name} {folder} . --type dataset && '
        f'hf repos tag create <you>/{name} {VERSION} --type dataset',
    ]
