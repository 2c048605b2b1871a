"""From episodes to batches: windows over folders of files, in an order that is a function of
(seed, step).

python data.py check episodes/demo         # names every fault in every file; exit code 1 when there
is one python data.py stats episodes/demo         # counts, and mean, spread and range per slot, in
physical units python data.py show episodes/demo          # contact sheet and plots of a file, or of
each in a folder: *.png python data.py merge episodes/all episodes/place episodes/join     # one
folder of several; links, no copies python data.py split episodes/demo 0.1     # links a tenth into
episodes/demo_held, the others into _rest python data.py jpeg episodes/demo 90       # pictures
packed, quality 90, into episodes/demo_jpeg python data.py tokenizer                   # makes
assets/tokenizer.json; --from=FOLDER adds words, --out=FILE

Episode files (episode.py) hold SI units and raw pixels, nothing normalised. Anchoring, normalising
and the token sequence (processor.py) happen at load time, in the same functions as for a live
observation.

S state slots, A action slots, H horizon, B batch, N cameras, K draws of (noise, time), L tokens
"""

import concurrent.futures
import fnmatch
import functools
import hashlib
import math
import os
import sys
import zlib

import numpy as np
import torch

from episode import (
    COMMAND,
    TOOL_ACTION_NAMES,
    JpegFrames,
    check_episode,
    draw_episode,
    episode_paths,
    link_episodes,
    observation_from_state,
    pack_episodes,
    print_stats,
    read_episode,
)
from vla import questions
from vla.processor import make_tokenizer


def map_bytes(path):
    """A file as bytes that are read where they are touched. numpy's own mapping keeps the file
    open, and most systems let a process have 1,024 files open.
    """
    return torch.from_file(path, False, os.path.getsize(path), dtype=torch.uint8).numpy()


def in_validation(task, seed, fraction):
    """Whether an episode is held out: by hash, so that recording more episodes never moves one
    across.
    """
    return zlib.crc32(f'{task}/{seed}'.encode()) / 2**32 < fraction


TIMES = {  # of uniform numbers, by inversion
    'beta': lambda u: u ** (1 / 1.5),
    'uniform': lambda u: u,
    'shifted': lambda u: 3 * u / (1 + 2 * u),
}


class Dataset:
    """Windows of H actions over a folder of episodes. What is as wide as a picture or a state
    stays in the mapped files and is read a row per sample; in memory are actions and a few numbers
    per row. `batch` is a pure function of (seed, step).

    split        'train', 'val' or None (all); val_fraction of the episodes is held out, by hash of
                 the seed
    rows_after_success  windows that start more than so many rows after the goal was reached for good are
                 not sampled
    noise_samples  K, (noise, time) pairs per chunk; they share one reading of the images
    read_text    probability that a draw sees the subtask text
    pure_noise   share of draws with time 1; the others are distributed as `times` says: 'beta',
                 Beta(1.5, 1)
                 as in pi0 and EO-1; 'uniform'; 'shifted' towards noise, 3u / (1 + 2u) as in Esser
                 et al. 2024
    gain         spread of the colour gain, per image channel; brightness: of the offset, in 0..255
    shift        largest image shift, pixels; state_noise: in normalised units
    crop         up to this share of a picture's side is cut off, anywhere, and what is left is
                 enlarged
    reask_share  probability that a sample asks for another goal in the same scene, see `batch`
    prefix_rows  up to so many first rows of a draw are given clean, as when they are being executed
    already
    question_share  probability that a sample is a question about the scene and its answer, see
                 questions.py
    weights      of the folders in `source`: their shares of the samples; (): as many as they have
                 windows
    workers      threads that decode jpeg; raw pictures are copied by the thread that asks for them
    """

    def __init__(
        self,
        source,
        processor,
        split=None,
        val_fraction=0.05,
        rows_after_success=3,
        noise_samples=1,
        read_text=0.5,
        gain=0.0,
        brightness=0.0,
        shift=0,
        state_noise=0.0,
        reask_share=0.0,
        pure_noise=0.0,
        question_share=0.0,
        prefix_rows=0,
        times='beta',
        weights=(),
        crop=0.0,
        workers=1,
    ):
        if times not in TIMES:
            raise ValueError(f'times {times!r}, expected one of {", ".join(TIMES)}')
        self.processor = processor
        self.noise_samples = noise_samples
        self.read_text = read_text
        self.reask_share = reask_share
        self.question_share = question_share
        self.prefix_rows = prefix_rows
        self.gain = gain
        self.brightness = brightness
        self.shift = shift
        self.state_noise = state_noise
        self.pure_noise = pure_noise
        self.times = times
        self.crop = crop
        self.workers = workers
        self.paths = []
        self.names = []
        self.askable = []
        self.subtasks = []
        referents = []
        held = []
        wide = ('state', 'time', 'scene', *(f'image/{camera}' for camera in processor.cameras))
        self.files = {name: [] for name in wide}  # an array per episode, a view of its mapped file
        parts = {name: [] for name in ('tool_action', 'subtask_id', 'kicked', 'goal')}
        folders = (
            str(source).split(',')
            if isinstance(source, (str, os.PathLike))
            else list(map(str, source))
        )
        for path in episode_paths(folders):
            arrays, header = read_episode(path, map_bytes)
            missing = [
                *parts.keys() - arrays.keys(),
                *self.files.keys() - arrays.keys(),
                *{'askable', 'referents'} - header.keys(),
                *['referents by row'] * (len(header.get('referents', [()])[0]) == 8),
            ]
            processor.check_header(header, path)
            if missing:
                raise ValueError(f'{path} has no {", ".join(missing)}: record it anew')
            if split and (split == 'val') != in_validation(
                header['task'], header['seed'], val_fraction
            ):
                continue
            self.paths.append(path)
            self.names.append(f'{os.path.basename(path)} {header["task"]} {header["seed"]} ')
            # the same few texts in thousands of episodes
            self.askable.append([sys.intern(text) for text in header['askable']])
            self.subtasks.append([sys.intern(text) for text in header['subtasks']])
            referents.append(header['referents'])
            held.append(bool(header['success']))
            for name, part in parts.items():
                part.append(np.array(arrays[name]))
            for name, part in self.files.items():
                part.append(arrays[name])
        if not self.paths:
            raise ValueError(
                f'no episode of {source} is in the {split!r} part (val_fraction {val_fraction})'
            )
        lengths = np.array([len(t) for t in parts['goal']])
        self.tool_action, self.subtask_id = (
            np.concatenate(parts[k]) for k in ('tool_action', 'subtask_id')
        )
        # What the words of each goal that could have been asked for in the same scene refer to
        # (spans, G, 8), G the most of any episode; a span of rows ends where a plan goes on to its
        # next goal. Where tasks have fewer bricks than others, `none` is the others' number.
        self.n_askable = np.array([len(texts) for texts in self.askable])
        n_bricks = [scene.shape[1] // 12 for scene in self.files['scene']]
        self.n_bricks = max(n_bricks)
        self.start = np.concatenate([[0], np.cumsum(lengths)])  # (E+1,) first row of each episode
        self.referents = np.zeros((sum(map(len, referents)), self.n_askable.max(), 8), np.float32)
        # (spans,) first row of each
        tables = iter(self.referents)
        self.spans = []
        for start, spans, n in zip(self.start, referents, n_bricks):
            for (first, table), row in zip(spans, tables):
                row[: len(table)] = table
                row[row[:, 2] == n, 2] = self.n_bricks
                self.spans.append(start + first)
        self.episode = np.repeat(np.arange(len(lengths)), lengths)  # (n,) row -> its episode
        self.last = self.start[1:][self.episode] - 1  # (n,) row -> last row of its episode
        self.held = np.array(held)[self.episode]  # (n,)
        kicked = np.concatenate(parts['kicked']) > 0
        self.kicks_before = np.concatenate([[0], np.cumsum(kicked)])  # (n+1,)
        self.goal = np.concatenate(parts['goal'])
        # first row from which on the goal holds to the end
        settled = [
            0 if goal.all() else n - np.argmin(goal[::-1])
            for n, goal in zip(lengths, parts['goal'])
        ]
        sampled = [np.arange(n) <= at + rows_after_success for n, at in zip(lengths, settled)]
        self.windows = np.flatnonzero(np.concatenate(sampled))  # rows at which a window may start
        self.sources = [(1, self.windows)]  # (weight, windows) of each
        if weights:
            if len(weights) != len(folders):
                raise ValueError(
                    f'{len(weights)} weights for {len(folders)} folders: {", ".join(folders)}'
                )
            places = {folder.rstrip('/'): i for i, folder in enumerate(folders)}
            of = np.array([places[os.path.dirname(path)] for path in self.paths])[
                self.episode[self.windows]
            ]
            self.sources = [(w, self.windows[of == i]) for i, w in enumerate(weights) if w]
            empty = [folders[i] for i, w in enumerate(weights) if w and not (of == i).any()]
            if empty:
                raise ValueError(f'{empty[0]} has a weight and no windows in the {split!r} part')
        packed = any(
            isinstance(array, JpegFrames) for arrays in self.files.values() for array in arrays
        )
        self.pool = (
            concurrent.futures.ThreadPoolExecutor(workers) if packed and workers > 1 else None
        )
        self._order = functools.lru_cache(2 * len(self.sources))(
            self._shuffled
        )  # across epochs: two each

    def __len__(self):
        return len(self.windows)

    def fingerprint(self):
        """Short hash of what is in the files: resuming on other data would not be resuming. All
        numbers and texts that batches are made of are in it. Of pictures, which are too many to be
        read: the sizes of files, and of each episode's middle row every eighth line, or the whole
        picture as packed.
        """
        digest = hashlib.sha256()
        for array in (
            self.start,
            self.tool_action,
            self.subtask_id,
            self.kicks_before,
            self.goal,
            self.held,
            self.spans,
            self.referents,
        ):
            digest.update(np.ascontiguousarray(array))
        for i, path in enumerate(self.paths):
            texts = self.names[i], self.askable[i], self.subtasks[i], os.path.getsize(path)
            digest.update(repr(texts).encode())
            for name, arrays in self.files.items():
                array = arrays[i]
                middle = len(arrays[i]) // 2
                if name.startswith('image/'):
                    array = (
                        array.blob(middle) if isinstance(array, JpegFrames) else array[middle, ::8]
                    )
                digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()[:16]

    def header(self, episode):
        """The whole header of an episode, read anew."""
        return read_episode(self.paths[episode])[1]

    def read(self, name, rows):
        """Rows of a wide array ('state', 'time', 'image/<camera>') out of the mapped files, (n,
        ...).
        """
        arrays = self.files[name]
        episodes = self.episode[rows]
        out = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for i, (episode, at) in enumerate(
            zip(episodes.tolist(), (rows - self.start[episodes]).tolist())
        ):
            out[i] = arrays[episode][at]
        return out

    def scene(self, rows):
        """Where each camera sees the bricks, m and rad: (B, N, n_bricks, 4), nan for those there
        are not.
        """
        out = np.full(
            (len(rows), len(self.processor.cameras), self.n_bricks, 4), np.nan, np.float32
        )
        for i, row in enumerate(rows):
            episode = self.episode[row]
            poses = self.files['scene'][episode][row - self.start[episode]].reshape(3, -1, 4)
            out[i, :, : poses.shape[1]] = poses[list(self.processor.frames)]
        return out

    # ---- windows, by arrays of row numbers that count through all episodes
    def chunk(self, rows):
        """-> (B, H, 15) absolute actions; past the end of the episode the last command is held."""
        at = rows[:, None] + np.arange(self.processor.horizon)
        return self.tool_action[np.minimum(at, self.last[rows][:, None])]

    def chunk_mask(self, rows):
        """-> (B, H) bool. Row j counts if nothing kicked the robot in rows 0..j-1 of the window:
        from a kick on, the recorded actions answer another situation. Past the end rows count after
        a success.
        """
        at = rows[:, None] + np.arange(self.processor.horizon)
        last = self.last[rows][:, None]
        undisturbed = (
            self.kicks_before[np.minimum(at, last + 1)] == self.kicks_before[rows][:, None]
        )
        return undisturbed & ((at <= last) | self.held[rows][:, None])

    def instruction(self, row, k=0):
        """What the row's episode was asked for; k > 0: what else could have been asked in that
        scene.
        """
        return self.askable[self.episode[row]][k]

    def subtask(self, row):
        return self.subtasks[self.episode[row]][self.subtask_id[row]]

    def questions_at(self, row, rng):
        """[(kind, question, answer)] of a row, each in one of its wordings."""
        episode = self.episode[row]
        recorded = dict(subtask_id=self.subtask_id, goal=self.goal)
        first = self.start[episode]
        arrays = {k: v[first : self.start[episode + 1]] for k, v in recorded.items()}
        return questions.at(self.header(episode), arrays, row - first, rng)

    def row(self, row):
        """Recorded frame as the observation dict the world gave."""
        rows = np.array([row])
        time, state = (self.read(name, rows)[0] for name in ('time', 'state'))
        obs = {'time': float(time), **observation_from_state(state)}
        obs |= {
            f'image/{c}': image
            for c, image in zip(self.processor.cameras, self.gather_images(rows)[0])
        }
        return obs | {'instruction': self.instruction(row)}

    def gather_images(self, rows):
        """-> (B, N, h, w, 3) uint8."""
        size = self.processor.image_size
        cameras = self.processor.cameras
        out = np.empty((len(rows), len(cameras), size, size, 3), np.uint8)
        files = [self.files[f'image/{camera}'] for camera in cameras]
        episodes = self.episode[rows]
        wanted = list(enumerate(zip(episodes.tolist(), (rows - self.start[episodes]).tolist())))

        def copy(part):
            for i, (episode, at) in part:
                for n, images in enumerate(files):
                    try:
                        out[i, n] = images[episode][at]
                    except ValueError as error:  # jpeg shows its damage only now
                        raise ValueError(
                            f'{self.paths[episode]}: image/{cameras[n]} {error}'
                        ) from error

        if self.pool:  # PIL decodes outside of Python's lock; each thread fills places of its own
            list(self.pool.map(copy, [wanted[k :: self.workers] for k in range(self.workers)]))
        else:
            copy(wanted)
        return out

    def action_error(self, rows, chunk):
        """Mean absolute error of (B, H, A) chunks over the rows that count, by kind of slot, in its
        unit: of all rows, and of rows 1, 2, 4 .. ahead ('position_mm@4'); nan where no row
        counts.
        """
        processor = self.processor
        result = {}
        predicted = processor.decode_actions(chunk, self.read('state', rows)[:, COMMAND])
        # (B, H, 15), (B, H)
        error = np.abs(predicted - self.chunk(rows))
        mask = self.chunk_mask(rows)
        ahead = [2**i for i in range(processor.horizon.bit_length())]
        for name, pattern, scale in (
            ('position_mm', '*/tool_[xyz]', 1e3),
            ('rotation_rad', '*/tool_r?', 1),
            ('gripper_mm', '*/gripper', 1e3),
            ('spine_rad', 'spine_z', 1),
        ):
            names = fnmatch.filter(processor.action_slots, pattern)
            if names:
                columns = [TOOL_ACTION_NAMES.index(slot) for slot in names]
                parts = [(name, error[mask])]
                parts += [(f'{name}@{n}', error[:, n - 1][mask[:, n - 1]]) for n in ahead]
                for key, there in parts:  # there (rows that count, 15)
                    result[key] = (
                        float(there[:, columns].mean() * scale) if len(there) else math.nan
                    )
        return result

    # ---- batches
    def _shuffled(self, source, seed, epoch):
        # the first source's order is that of a data set without weights
        key = [seed, epoch, source] if source else [seed, epoch]
        return np.random.default_rng(key).permutation(len(self.sources[source][1]))

    def _in_order(self, source, at, seed):
        """Windows number `at` of a source, which goes on through epochs: none is left out of
        any.
        """
        windows = self.sources[source][1]
        n = len(self.sources[source][1])
        order = [
            self._order(source, seed, int(epoch))[at[at // n == epoch] % n]
            for epoch in np.unique(at // n)
        ]
        return windows[np.concatenate(order)] if order else windows[:0]

    def sample_rows(self, step, batch_size, seed):
        """Rows of the global batch of a step. Sources take turns evenly: source 0 takes sample i
        wherever its share of i passes a whole number, source 1 likewise of what is left, and so
        on.
        """
        at = np.arange(step * batch_size, (step + 1) * batch_size)
        rows = np.empty(batch_size, np.int64)
        mine = np.arange(batch_size)
        left = sum(weight for weight, _ in self.sources)
        for source, (weight, _) in enumerate(self.sources):
            last = source == len(self.sources) - 1
            share = 1 << 30 if last else round(weight / left * (1 << 30))  # in whole numbers: exact
            before = at * share >> 30
            after = (at + 1) * share >> 30
            taken = after > before
            rows[mine[taken]] = self._in_order(source, before[taken], seed)
            mine = mine[~taken]
            at = (at - before)[~taken]
            left = left - weight
        return rows

    def batch(self, step, batch_size, rank=0, world_size=1, seed=0):
        """Slice `rank` of the global batch of `step`: the keys model.VLA reads, and those that
        `augment` uses up. Everything random is drawn for the global batch, so that the number of
        ranks changes no number. n_rows and n_tokens are the loss's denominators: global counts
        divided by world_size.
        """
        if batch_size % world_size:
            raise ValueError(f'global batch {batch_size} does not divide into {world_size} slices')
        processor = self.processor
        B = batch_size
        K = self.noise_samples
        N = len(self.processor.cameras)
        H = processor.horizon
        A = processor.action_dim
        S = processor.state_dim
        rng = torch.Generator().manual_seed(
            int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
        )
        drawn = {
            'noise': torch.randn(B, K, H, A, generator=rng),
            'time': 0.001 + 0.999 * TIMES[self.times](torch.rand(B, K, generator=rng)),
            'read_text': torch.rand(B, K, generator=rng) < self.read_text,
            'gain': 1 + self.gain * torch.randn(B, 1, 1, 1, 3, generator=rng),
            'offset': self.brightness * torch.randn(B, 1, 1, 1, 1, generator=rng),
            'shift': torch.randint(-self.shift, self.shift + 1, (B, N, 2), generator=rng),
            'state_noise': self.state_noise * torch.randn(B, S, generator=rng),
        }
        drawn['time'].masked_fill_(torch.rand(B, K, generator=rng) < self.pure_noise, 1.0)
        reask = torch.rand(B, 2, generator=rng).numpy()
        rows = self.sample_rows(step, batch_size, seed)
        # Some samples ask for something else than what the episode was about: there is no action to
        # learn from them, but the answer to `where` needs the words, because what the arms are
        # doing no longer gives it away.
        others = self.n_askable[self.episode[rows]] - 1
        asked = np.where(
            reask[:, 0] < self.reask_share, np.ceil(reask[:, 1] * others).astype(int), 0
        )  # 0: as it was
        prompts = [
            processor.prompt_ids(self.instruction(row, k), None if k else self.subtask(row))
            for row, k in zip(rows, asked)
        ]
        quiz = torch.rand(B, generator=rng).numpy() < self.question_share
        words = np.random.default_rng([seed, step])
        for i in np.flatnonzero(quiz):
            pairs = self.questions_at(rows[i], words)
            kinds = sorted({kind for kind, *_ in pairs})
            shares = np.array([questions.SHARES[kind] for kind in kinds])
            kind = words.choice(kinds, p=shares / shares.sum())
            pairs = [pair for pair in pairs if pair[0] == kind]
            _, question, answer = pairs[words.integers(len(pairs))]
            prompts[i] = processor.prompt_ids(question, answer, True)
        longest = max(prompts, key=lambda parts: len(parts[0]) + len(parts[1]))
        if self.prefix_rows:
            given = torch.arange(H) < torch.randint(self.prefix_rows + 1, (B, K, 1), generator=rng)
            drawn['time'] = drawn['time'][..., None].expand(B, K, H).masked_fill(given, 0.0)
        # what is switched off is left out: `augment` need not ask a GPU whether there is anything
        # to do
        if not (self.gain or self.brightness):
            del drawn['gain'], drawn['offset']
        if not self.shift:
            del drawn['shift']
        if self.crop:  # side of what is left, and its centre (y, x) in a picture from -1 to 1
            side = 1 - self.crop * torch.rand(B, N, 1, generator=rng)
            drawn['crop'] = torch.cat(
                [side, (1 - side) * (2 * torch.rand(B, N, 2, generator=rng) - 1)], -1
            )
        mine = slice(rank * B // world_size, (rank + 1) * B // world_size)
        n = len(rows[mine])
        state = self.read('state', rows[mine])
        # the longest prompt of all ranks sets the width of every rank's batch
        batch = processor.assemble(self.gather_images(rows[mine]), state, prompts[mine] + [longest])
        batch = {k: v[:n] for k, v in batch.items()} | {k: v[mine] for k, v in drawn.items()}
        batch['state'] += batch.pop('state_noise')
        actions = processor.normalise_actions(self.chunk(rows[mine]), state[:, COMMAND])
        mask = self.chunk_mask(rows) & ((asked == 0) & ~quiz)[:, None]
        n_rows = mask.sum() if not self.prefix_rows else (mask[:, None] & ~given.numpy()).sum() / K
        n_tokens = sum(len(assistant) for _, assistant in prompts)
        referents = self.referents[np.searchsorted(self.spans, rows, 'right') - 1, asked]
        referents[quiz] = -1  # a question refers to nothing that is to be done
        return batch | {
            'scene': torch.from_numpy(self.scene(rows[mine])),
            'referents': torch.from_numpy(referents[mine]),
            'actions': torch.from_numpy(actions),
            'action_mask': torch.from_numpy(mask[mine]),
            'n_rows': torch.tensor(n_rows / world_size, dtype=torch.float32),
            'n_tokens': torch.tensor(n_tokens / world_size, dtype=torch.float32),
        }


def augment(batch):
    """Apply the batch's own draws to its images, on whatever device they are: shift by whole
    pixels (edges repeated), crop, colour gain, brightness. What there is no draw of is not done;
    with any but shift images come out as float 0..255, not clipped: one pass less.
    """
    batch = dict(batch)
    images = batch.pop('images')
    gain, offset, shift, crop = (batch.pop(k, None) for k in ('gain', 'offset', 'shift', 'crop'))
    if shift is not None:
        size = torch.arange(images.shape[2], device=images.device)
        y, x = (
            (size + shift[..., axis, None]).clamp(0, len(size) - 1) for axis in (0, 1)
        )  # (B, N, h)
        b, n = (torch.arange(k, device=images.device) for k in images.shape[:2])
        images = images[b[:, None, None, None], n[:, None, None], y[..., :, None], x[..., None, :]]
    if crop is not None:  # by hand: affine_grid multiplies matrices, in bfloat16 under autocast
        h = images.shape[2]
        at = (2 * torch.arange(h, device=images.device) + 1) / h - 1  # middles of pixels
        y, x = (crop[..., :1] * at + crop[..., axis, None] for axis in (1, 2))  # (B, N, h)
        grid = torch.stack(
            [x[..., None, :].expand(*x.shape, h), y[..., None].expand(*y.shape, h)], -1
        )
        flat = images.flatten(0, 1).permute(0, 3, 1, 2).float()  # (B*N, 3, h, w)
        flat = torch.nn.functional.grid_sample(
            flat, grid.flatten(0, 1), padding_mode='border', align_corners=False
        )
        images = flat.permute(0, 2, 3, 1).reshape(images.shape)
    if gain is not None:
        flat = images.flatten(
            3
        ).float()  # (B, N, h, w*3): an inner loop of 3 channels is 3 times slower
        flat = flat.mul_(gain.repeat(1, 1, 1, images.shape[3], 1).flatten(3)).add_(offset[..., 0])
        images = flat.view(images.shape)
    return batch | {'images': images}


def prefetch(make, steps, pin=False):
    """Yield make(step) for each step; a thread makes the next one meanwhile. Order and numbers
    stay. pin: make gives a list of batches; they go into memory that a GPU copies from while it
    computes
    """

    def work(step):
        made = make(step)
        return [{k: v.pin_memory() for k, v in batch.items()} for batch in made] if pin else made

    with concurrent.futures.ThreadPoolExecutor(
        1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
    ) as pool:
        ahead = None
        for step in steps:
            now = ahead or pool.submit(work, step)
            ahead = pool.submit(work, step + 1) if step + 1 in steps else None
            yield now.result()


# -----------------------------------------------------------------------------
# commands


def main(argv):
    """-> exit code."""
    options = {'from': None, 'out': 'assets/tokenizer.json'}
    options |= dict(
        word[2:].split('=', 1) for word in argv if word.startswith('--') and '=' in word
    )
    command, *rest = [word for word in argv if not word.startswith('--')] or ['help']
    if command == 'tokenizer' and not rest and len(options) == 2:
        out = options['out']
        paths = episode_paths(options['from']) if options['from'] else []
        headers = [read_episode(path)[1] for path in paths]
        texts = {
            text for header in headers for text in [header['instruction'], *header['subtasks']]
        }
        tokenizer, split = make_tokenizer(texts, out)
        print(
            f'{out}: {tokenizer.get_vocab_size()} entries; cut into pieces: {" ".join(split) or "no word"}'
        )
    elif command == 'check' and len(rest) == 1:
        faults = {path: check_episode(path) for path in episode_paths(rest[0])}
        print(*(f'{path}: {fault}\n' for path in faults for fault in faults[path]), sep='', end='')
        faulty = sum(map(bool, faults.values()))
        print(f'{len(faults)} episodes, {faulty} with faults')
        return int(faulty > 0)
    elif command == 'merge' and len(rest) > 2:
        link_episodes(episode_paths(rest[1:]), rest[0])
    elif command == 'split' and len(rest) == 2:
        paths = episode_paths(rest[0])
        parts = {True: [], False: []}
        for path in paths:
            header = read_episode(path)[1]
            parts[in_validation(header['task'], header['seed'], float(rest[1]))].append(path)
        for held, name in ((True, 'held'), (False, 'rest')):
            link_episodes(parts[held], f'{rest[0].rstrip("/")}_{name}')
    elif command == 'jpeg' and len(rest) == 2:
        pack_episodes(episode_paths(rest[0]), f'{rest[0].rstrip("/")}_jpeg', int(rest[1]))
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
