"""Windows of H actions over folders of episodes: what files hold, by number of row.

    windows = Windows('episodes/demo', processor)
    windows.chunk(rows), windows.commands(rows), windows.gather_images(rows)
Rows count through all episodes. data.Dataset makes batches of them.
"""

import concurrent.futures
import functools
import hashlib
import json
import math
import os
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from episode import COLOURS, Arrays, Header, JpegFrames, episode_paths, lacks, read_episode
from vla import questions
from vla.grounding import number_of_place
from vla.processor import Processor, fit_picture

REFERENTS = 8  # numbers that tell what the words mean, see vla/grounding.py
SCENE_FRAMES = 3  # torso, left tool, right tool: each sees every brick in its frame
PER_BRICK = 4 * SCENE_FRAMES  # columns of a scene
MOST_PLACES = 1000  # Words can name so many places; 33 in all tasks but `build`, which has 11.
# Errors are stated by kind and unit of slot: name, and what a unit is multiplied by.
ERRORS = {
    ('pose', 'm'): ('position_mm', 1e3),
    ('pose', 'rad'): ('rotation_rad', 1),
    ('absolute', 'm'): ('gripper_mm', 1e3),
    ('joint', 'rad'): ('joint_rad', 1),
}

Parts = dict[str, list]  # Something of each episode, by name.


def map_bytes(path: str) -> np.ndarray:
    """A file as bytes that are read where they are touched.

    numpy's own mapping keeps the file open, and most systems let a process have 1,024 files open.
    """
    return torch.from_file(path, False, os.path.getsize(path), dtype=torch.uint8).numpy()


def split_share(task: str, seed: int) -> float:
    """The val_fraction, 0 to 1, above which an episode is held out: a hash."""
    return zlib.crc32(f'{task}/{seed}'.encode()) / 2**32


def in_validation(task: str, seed: int, fraction: float) -> bool:
    """Whether an episode is held out: by hash, so that more episodes never move one across."""
    return split_share(task, seed) < fraction


@functools.cache
def frame_of(text: str) -> dict[str, Any]:
    """The goal frame (instructions.py) that a JSON text holds; nobody changes it."""
    return json.loads(text)


def held_out(headers: Sequence[Header], fraction: float) -> list[bool]:
    """Which of all episodes are held out: one at least, where there are two and a fraction is.

    Where the hash chooses none it is the one whose hash is lowest, the first that a larger fraction
    would choose.
    """
    keys = [(header['task'], header['seed']) for header in headers]
    chosen = [in_validation(*key, fraction) for key in keys]
    if fraction > 0 and len(keys) > 1 and not any(chosen):
        hashes = [zlib.crc32(f'{task}/{seed}'.encode()) for task, seed in keys]
        chosen[hashes.index(min(hashes))] = True
    return chosen


class Windows:
    """Windows of H actions over folders of episodes.

    What is as wide as a picture or a state stays in the mapped files and is read a row per sample;
    in memory are actions and a few numbers per row. Where a file holds CORE only (see episode.py),
    nothing was kicked, the subtask is the instruction, and a successful episode reaches its goal in
    its last row.

    Args: see data.Dataset.
    """

    def __init__(
        self,
        source: str | os.PathLike | Sequence,
        processor: Processor,
        split: str | None,
        val_fraction: float,
        rows_after_success: int,
        workers: int,
    ):
        self.processor = processor
        self.workers = workers
        if isinstance(source, (str, os.PathLike)):
            self.folders = str(source).split(',')
        else:
            self.folders = [str(folder) for folder in source]
        parts = self._read_files(split, val_fraction)
        if not self.paths:
            raise ValueError(
                f'no episode of {source} is in the {split!r} part (val_fraction {val_fraction}): '
                'record more, or hold none out: --val_fraction=0'
            )
        self._index_rows(parts, rows_after_success)
        self._index_referents(parts)
        self._start_pool()
        self._facts = functools.cache(self._read_facts)

    # ---- reading the files

    def _read_files(self, split: str | None, val_fraction: float, only_held: str = '') -> Parts:
        """Map all files and keep views of their wide arrays; return what is kept in memory.

        only_held is the file that is held out where the hash chooses none.
        """
        paths: list[str] = []
        keys: list[Header] = []
        self.paths: list[str] = []
        self._opened: list[os.stat_result] = []  # each file as it was when it was mapped
        self.names: list[str] = []
        self.task: list[str] = []
        self.askable: list[list[str]] = []
        self.goals: list[list[str]] = []  # frames of these as JSON, '' for one without a grammar
        self.subtasks: list[list[str]] = []
        self._lacking: dict[str, str] = {}
        self._n_bricks = 0  # the most of any scene, also of the split that is left out
        self._numbering: dict[bool, str] = {}  # whether bricks go by colour: a file of that kind
        wide = ['state', 'time', 'scene']
        wide += [f'image/{camera}' for camera in self.processor.cameras]
        # There is an array per episode, a view of its mapped file.
        self.files: dict[str, list] = {name: [] for name in wide}
        parts: Parts = {
            name: [] for name in ('action', 'subtask_id', 'kicked', 'goal', 'success', 'referents')
        }
        for path in episode_paths(self.folders):
            arrays, header = read_episode(path, map_bytes)
            self._check(path, arrays, header)
            paths.append(path)
            keys.append({'task': header['task'], 'seed': header['seed']})
            is_held = in_validation(header['task'], header['seed'], val_fraction)
            if only_held:
                is_held = path == only_held
            if not split or (split == 'val') == is_held:
                self._keep(path, arrays, header, parts)
        chosen = held_out(keys, val_fraction)
        if split and not only_held and sum(chosen) == 1:
            # By hash there may be none: then the episode that is held out all the same is another.
            path = paths[chosen.index(True)]
            key = keys[chosen.index(True)]
            if not in_validation(key['task'], key['seed'], val_fraction):
                return self._read_files(split, val_fraction, path)
        if 'grounding' in self._lacking:
            del self.files['scene']
        return parts

    def _check(self, path: str, arrays: Arrays, header: Header) -> None:
        """Refuse a file that does not fit, and note what TRUTH it lacks."""
        self.processor.check_header(header, path)
        needed = [name for name in self.files if name != 'scene']
        needed.append(f'{self.processor.action_space}_action')
        missing = [name for name in needed if name not in arrays]
        if missing:
            raise ValueError(f'{path} has no {", ".join(missing)}: python data.py check {path}')
        for use in ('grounding', 'questions'):
            lack = lacks(use, arrays, header)
            if lack:
                self._lacking.setdefault(use, f'{path} {lack}')
        if 'scene' not in arrays:
            return
        n_bricks = arrays['scene'].shape[1] // PER_BRICK
        self._n_bricks = max(self._n_bricks, n_bricks)
        self._numbering.setdefault(n_bricks == len(COLOURS), path)
        if len(self._numbering) == 2:
            self._lacking.setdefault(
                'grounding',
                f'{self._numbering[False]} numbers its bricks by their place in its task, as an '
                f'earlier revision did, {self._numbering[True]} by colour: record it anew, or '
                'train without it: --grounding=False',
            )

    def _keep(self, path: str, arrays: Arrays, header: Header, parts: Parts) -> None:
        rows = len(arrays['time'])
        success = bool(header['success'])
        self.paths.append(path)
        self._opened.append(os.stat(path))
        self.names.append(f'{os.path.basename(path)} {header["task"]} {header["seed"]} ')
        self.task.append(sys.intern(header['task']))
        askable = header['askable'] if 'askable' in header else [header['instruction']]
        subtasks = header['subtasks'] if 'subtask_id' in arrays else [header['instruction']]
        # The same few texts are in thousands of episodes.
        self.askable.append([sys.intern(text) for text in askable])
        frames = header['goals'] if 'goals' in header else [None] * len(askable)
        texts = [json.dumps(frame) if isinstance(frame, dict) else '' for frame in frames]
        self.goals.append([sys.intern(text) for text in texts])
        self.subtasks.append([sys.intern(text) for text in subtasks])
        default: dict[str, np.ndarray] = {
            'subtask_id': np.zeros(rows, np.int32),
            'kicked': np.zeros(rows, np.uint8),
            'goal': np.zeros(rows, np.uint8),
        }
        default['goal'][-1] = success
        for name, array in default.items():
            parts[name].append(np.array(arrays[name]) if name in arrays else array)
        parts['action'].append(np.array(arrays[f'{self.processor.action_space}_action']))
        parts['success'].append(success)
        parts['referents'].append(header['referents'] if 'referents' in header else [])
        for name, views in self.files.items():
            if name in arrays:
                views.append(arrays[name])

    def _index_rows(self, parts: Parts, rows_after_success: int) -> None:
        """Arrays over all rows of all episodes, n of them, and over the episodes, E."""
        lengths = np.array([len(goal) for goal in parts['goal']])
        self.start = np.concatenate([[0], np.cumsum(lengths)])  # (E+1,) first row of each episode
        self.episode = np.repeat(np.arange(len(lengths)), lengths)  # (n,) row -> its episode
        self.last = self.start[1:][self.episode] - 1  # (n,) row -> last row of its episode
        self.action = np.concatenate(parts['action'])  # (n, C)
        self.subtask_id = np.concatenate(parts['subtask_id'])
        self.goal = np.concatenate(parts['goal'])
        self.held = np.array(parts['success'])[self.episode]  # (n,)
        kicked = np.concatenate(parts['kicked']) > 0
        self.kicks_before = np.concatenate([[0], np.cumsum(kicked)])  # (n+1,)
        sampled = []
        for goal in parts['goal']:
            # This is the first row from which on the goal holds to the end.
            settled = 0 if goal.all() else len(goal) - np.argmin(goal[::-1])
            sampled.append(np.arange(len(goal)) <= settled + rows_after_success)
        self.windows = np.flatnonzero(np.concatenate(sampled))  # rows at which a window may start
        self.first_command = None
        if self.processor.command_index is None:
            self.first_command = self._first_commands()

    def _first_commands(self) -> np.ndarray:
        """The commands in force in the first row of each episode, where the state holds none.

        (E, C): what is measured of the slot where the state holds it, else the row's own action.
        """
        commands = self.action[self.start[:-1]]
        state_names = self.processor.state_names
        for column, name in enumerate(self.processor.action_names):
            if name in state_names:
                at = state_names.index(name)
                commands[:, column] = [state[0, at] for state in self.files['state']]
        return commands

    def _index_referents(self, parts: Parts) -> None:
        """What the words of each goal refer to that could have been asked for in the same scene.

        (spans, G, 8), G the most goals of any episode; a span of rows ends where a plan goes on to
        its next goal. Where tasks have fewer bricks than others, `none` is the others' number.
        """
        self.n_askable = np.array([len(texts) for texts in self.askable])
        if 'scene' not in self.files:
            self.referents = np.zeros((0, 1, REFERENTS), np.float32)
            self.spans = np.zeros(0, int)
            return
        n_bricks = [scene.shape[1] // PER_BRICK for scene in self.files['scene']]
        count = sum(map(len, parts['referents']))
        self.referents = np.zeros((count, self.n_askable.max(), REFERENTS), np.float32)
        first_rows: list[int] = []
        for start, spans, n in zip(self.start, parts['referents'], n_bricks):
            for first, table in spans:
                row = self.referents[len(first_rows)]
                row[: len(table)] = table
                row[row[:, 2] == n, 2] = self._n_bricks
                row[len(table) :, 0] = -1  # There is no such goal.
                first_rows.append(start + first)
        self.spans = np.array(first_rows)  # (spans,) first row of each

    def _start_pool(self) -> None:
        self.pool = None
        packed = any(
            isinstance(view, JpegFrames) for views in self.files.values() for view in views
        )
        if packed and self.workers > 1:
            self.pool = concurrent.futures.ThreadPoolExecutor(self.workers)

    # ---- what there is

    def __len__(self):
        return len(self.windows)

    @property
    def tasks(self) -> list[str]:
        """Names of all tasks, sorted."""
        return sorted(set(self.task))

    def rows_of(self, task: str, rows: np.ndarray) -> np.ndarray:
        """Which of these rows are of a task, bool (B,)."""
        return np.array([self.task[episode] == task for episode in self.episode[rows]])

    @property
    def n_bricks(self) -> int:
        """The most bricks of any scene, for grounding; ValueError where a file tells of none."""
        self.demand('grounding')
        return self._n_bricks

    def places(self) -> tuple[tuple[float, ...], ...]:
        """All places that goals of these episodes name, (x, y, z, yaw) in m and rad, sorted.

        Raises:
            ValueError: there are too many to be places on a grid of studs.
        """
        self.demand('grounding')
        named = self.referents[self.referents[..., 0] >= 0][:, 4:].astype(float)  # (n, 4)
        distinct = np.unique(named.round(5), axis=0) + 0.0  # There is no -0.0 then.
        places = torch.from_numpy(distinct)
        table = places[:1]
        for place in places[1:]:
            if number_of_place(table, place[None]) < 0:
                table = torch.cat([table, place[None]])
            if len(table) > MOST_PLACES:
                raise ValueError(
                    f'{",".join(self.folders)}: goals name more than {MOST_PLACES} places, which '
                    'are on no grid of studs; train without: --grounding=False'
                )
        return tuple(map(tuple, table.tolist()))

    def demand(self, use: str) -> None:
        """Raise ValueError, naming a file, where one lacks the truth that a use of it asks for.

        Args:
            use: 'grounding' or 'questions', see episode.NEEDS.
        """
        if use in self._lacking:
            raise ValueError(self._lacking[use])
        if use == 'grounding' and self.processor.hands is None:
            raise ValueError(
                f'{self.paths[0]}: its state has no poses of the hands (left/tool_x, ..): '
                'grounding works in their frames; train without it: --grounding=False'
            )

    def fingerprint(self) -> str:
        """Short hash of what is in the files: resuming on other data would not be resuming.

        All numbers and texts that batches are made of are in it. Pictures are too many to be read:
        of them it has the sizes of files and, of each episode's middle row, every eighth line, or
        the whole picture as packed.
        """
        digest = hashlib.sha256()
        for array in (
            self.start,
            self.action,
            self.subtask_id,
            self.kicks_before,
            self.goal,
            self.held,
            self.spans,
            self.referents,
        ):
            digest.update(np.ascontiguousarray(array).data)
        for i, path in enumerate(self.paths):
            texts = self.names[i], self.askable[i], self.subtasks[i], os.path.getsize(path)
            digest.update(repr(texts).encode())
            if any(self.goals[i]):
                digest.update(repr(self.goals[i]).encode())
            for name, arrays in self.files.items():
                array = arrays[i]
                if name.startswith('image/'):
                    middle = len(array) // 2
                    packed = isinstance(array, JpegFrames)
                    array = array.blob(middle) if packed else array[middle, ::8]
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def header(self, episode: int) -> Header:
        """The whole header of an episode, read anew."""
        return read_episode(self.paths[episode])[1]

    # ---- windows, by arrays of row numbers that count through all episodes

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows of a wide array ('state', 'time') out of the mapped files, (rows, ...)."""
        arrays = self.files[name]
        episodes = self.episode[rows]
        within = rows - self.start[episodes]
        out = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for i, (episode, at) in enumerate(zip(episodes.tolist(), within.tolist())):
            out[i] = arrays[episode][at]
        return out

    def scene(self, rows: np.ndarray) -> np.ndarray:
        """Where each camera sees the bricks: (B, N, n, 4) m and rad, nan for those not there."""
        shape = (len(rows), len(self.processor.cameras), self.n_bricks, 4)
        out = np.full(shape, np.nan, np.float32)
        frames = list(self.processor.frames)
        for i, row in enumerate(rows):
            episode = self.episode[row]
            scene = self.files['scene'][episode][row - self.start[episode]]
            poses = scene.reshape(SCENE_FRAMES, -1, 4)
            out[i, :, : poses.shape[1]] = poses[frames]
        return out

    def commands(self, rows: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
        """The commands in force when windows start, (B, C).

        They stand in the state as 'command/<slot>' where a robot reports them, and else are the
        actions of the row before.

        Args:
            rows: First rows of the windows, (B,).
            states: Their states (B, C) where they have been read already.
        """
        if self.first_command is None:
            states = self.read('state', rows) if states is None else states
            return states[:, self.processor.command_index]
        episodes = self.episode[rows]
        first = self.start[episodes]
        before = self.action[np.maximum(rows - 1, first)]
        return np.where((rows == first)[:, None], self.first_command[episodes], before)

    def chunk(self, rows: np.ndarray) -> np.ndarray:
        """(B, H, C) absolute actions; past the end of the episode the last command is held."""
        at = rows[:, None] + np.arange(self.processor.horizon)
        return self.action[np.minimum(at, self.last[rows][:, None])]

    def chunk_mask(self, rows: np.ndarray) -> np.ndarray:
        """(B, H) bool. Row j counts if nothing kicked the robot in rows 0..j-1 of the window.

        From a kick on, the recorded actions answer another situation. A joint action is what was in
        force after the row was executed, so that of a kicked row it is the kick and not the label:
        there row j itself has to be undisturbed, too. Past the end rows count after a success.
        """
        at = rows[:, None] + np.arange(self.processor.horizon)
        last = self.last[rows][:, None]
        seen = at + 1 if self.processor.action_space == 'joint' else at  # rows before this one
        before = self.kicks_before[np.minimum(seen, last + 1)]
        undisturbed = before == self.kicks_before[rows][:, None]
        return undisturbed & ((at <= last) | self.held[rows][:, None])

    def instruction(self, row: int, k: int = 0) -> str:
        """What the row's episode was asked for; k > 0: what else could have been asked there."""
        return self.askable[self.episode[row]][k]

    def goal_frame(self, row: int, k: int = 0) -> str:
        """The goal frame of that instruction as JSON; '' where the file has none."""
        return self.goals[self.episode[row]][k]

    def colours_at(self, row: int) -> set[str]:
        """Colours of the loose bricks that lie in the row's scene."""
        episode = self.episode[row]
        scene = self.files['scene'][episode][row - self.start[episode]]
        first = scene.reshape(SCENE_FRAMES, -1, 4)[0, :, 0]  # nan for a brick that is not there
        return {colour for colour, x in zip(COLOURS, first) if np.isfinite(x)}

    def subtask(self, row: int) -> str:
        """The subtask text of a row."""
        return self.subtasks[self.episode[row]][self.subtask_id[row]]

    def questions_at(
        self, row: int, rng: np.random.Generator, words: str | None = None
    ) -> list[tuple[str, str, str]]:
        """[(kind, question, answer)] of a row, each in one of its wordings.

        Args:
            row: Counts through all episodes.
            rng: Chooses the wordings.
            words: The instruction, where it is not to be the recorded one.
        """
        episode = self.episode[row]
        rows = slice(self.start[episode], self.start[episode + 1])
        arrays = {'subtask_id': self.subtask_id[rows], 'goal': self.goal[rows]}
        facts = self._facts(episode)
        if words is not None:
            facts = facts | {'instruction': words}
        return questions.at(facts, arrays, row - self.start[episode], rng)

    def _read_facts(self, episode: int) -> Header:
        """What questions need of a header; it is read when the first question is asked."""
        self.demand('questions')
        header = self.header(episode)
        unknown = {fact[0] for fact in header['qa']} - questions.TEMPLATES.keys()
        if unknown:
            raise ValueError(f'{self.paths[episode]}: qa of the kind {min(unknown)!r}: unknown')
        return {name: header[name] for name in ('qa', 'subtasks', 'instruction')}

    def row(self, row: int) -> dict[str, Any]:
        """A recorded frame as an observation that Processor.encode takes."""
        rows = np.array([row])
        state = self.read('state', rows)
        obs = {
            'time': float(self.read('time', rows)[0]),
            'state': state[0],
            f'{self.processor.action_space}_command': self.commands(rows, state)[0],
            'instruction': self.instruction(row),
        }
        for camera, image in zip(self.processor.cameras, self.gather_images(rows)[0]):
            obs[f'image/{camera}'] = image
        return obs

    def check_files(self, rows: np.ndarray) -> None:
        """Raise OSError where a file that holds some of these rows has been cut off meanwhile.

        To touch what is missing of a mapped file would end the process with a bus error, which
        names nothing. A file that was removed or replaced stays as it was for who has it mapped.
        """
        for episode in np.unique(self.episode[rows]).tolist():
            then = self._opened[episode]
            try:
                now = os.stat(self.paths[episode])
            except FileNotFoundError:
                continue
            same = (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino)
            if same and now.st_size < then.st_size:
                raise OSError(
                    f'{self.paths[episode]}: cut off while it was in use: {then.st_size} bytes '
                    f'when it was opened, {now.st_size} now; record it anew or remove it, and '
                    'start again'
                )

    def gather_images(self, rows: np.ndarray) -> np.ndarray:
        """Pictures as the model sees them, (B, N, h, w, 3) uint8.

        Raises:
            OSError: One cannot be decoded; names file and row.
        """
        size = self.processor.image_size
        cameras = self.processor.cameras
        out = np.empty((len(rows), len(cameras), size, size, 3), np.uint8)
        files = [self.files[f'image/{camera}'] for camera in cameras]
        episodes = self.episode[rows]
        within = rows - self.start[episodes]
        wanted = list(enumerate(zip(episodes.tolist(), within.tolist())))

        def copy(part: list) -> None:
            for i, (episode, at) in part:
                for n, images in enumerate(files):
                    try:
                        out[i, n] = fit_picture(images[episode][at], size)
                    except ValueError as error:  # jpeg shows its damage only now
                        where = f'{self.paths[episode]}: image/{cameras[n]}'
                        raise OSError(f'{where} {error}') from error

        if self.pool:  # PIL decodes outside of Python's lock; each thread fills places of its own
            shares = [wanted[k :: self.workers] for k in range(self.workers)]
            list(self.pool.map(copy, shares))
        else:
            copy(wanted)
        return out

    def action_error(self, rows: np.ndarray, chunk: np.ndarray) -> dict[str, float]:
        """Mean absolute error of chunks (B, H, A) over the rows that count, by kind of slot.

        Returns:
            In the unit that the name ends with, of all rows, and of rows 1, 2, 4 .. ahead
            ('position_mm@4'); nan where no row counts.
        """
        processor = self.processor
        predicted = processor.decode_actions(chunk, self.commands(rows))
        error = np.abs(predicted - self.chunk(rows))  # (B, H, C)
        mask = self.chunk_mask(rows)  # (B, H)
        groups: dict[tuple[str, str], list[int]] = {}
        for i in processor.action_index:
            slot = processor.action_table[i]
            groups.setdefault((slot.kind, slot.unit), []).append(i)
        result = {}
        for (kind, unit), columns in groups.items():
            name, scale = ERRORS.get((kind, unit), (f'{kind}_{unit or "error"}', 1))
            parts = {name: error[mask]}  # (rows that count, C)
            for exponent in range(processor.horizon.bit_length()):
                n = 2**exponent
                parts[f'{name}@{n}'] = error[:, n - 1][mask[:, n - 1]]
            for key, there in parts.items():
                mean = there[:, columns].mean() * scale if len(there) else math.nan
                result[key] = float(mean)
        return result
