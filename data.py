"""From episodes to batches: windows over folders of files, ordered by (seed, step) alone.

python data.py check episodes/demo       # names every fault in every file; exit code 1 if any
python data.py stats episodes/demo       # counts, and mean, spread and range per slot, in its unit
python data.py show episodes/demo        # contact sheet and plots of a file, or of 6 in a folder
python data.py merge episodes/all episodes/place episodes/join     # one folder of several; links
python data.py split episodes/demo 0.1   # links a tenth into _held, the others into _rest
python data.py jpeg episodes/demo 90     # pictures packed, quality 90, into episodes/demo_jpeg
python data.py tokenizer                 # makes assets/tokenizer.json; --from=FOLDER, --out=FILE
python data.py to_lerobot episodes/demo out/lerobot    # --pictures=image: no losses; --action=joint
python data.py from_lerobot user/name episodes/name    # or a folder; --image_size=224, --jpeg=90
python data.py from_hdf5 data/aloha episodes/aloha --control_hz=50 "--instruction=hand it over"

Episode files (episode.py) hold SI units and raw pixels, nothing normalised. Anchoring, normalising
and the token sequence (vla/processor.py) happen at load time, in the same functions as for a live
observation.

The keys of a batch. B samples, N cameras of h x w pixels, L tokens, S state slots, A action slots,
H horizon, K noise samples of a chunk, n bricks; normalised is (value - mean) / spread, no unit.

    Dataset.batch, for training
    images       (B, N, h, w, 3)  uint8    0..255; `augment` makes float32 of them
    frame        (B,)             int64    in their place, where they are on the device already
    state        (B, S)           float32  normalised
    tool         (B, 2, 4)        float32  measured hands in the torso frame: x, y, z m, yaw rad;
                                           of robots whose state holds such poses; with a
                                           hand_path where they will be at its end
    hand_path    (B, T, 2, 4)     float32  the hands when the pictures were taken and after each of
                                           T - 1 commands that are executed before the chunk; only
                                           where chunks are late, see vla/foresight.py
    shut         (B, T, 2)        bool     whether each hand is commanded to be shut then
    input_ids    (B, L)           int64    user part, assistant part, padding on the right
    labels       (B, L)           int64    the assistant part; -100 where nothing is to be learnt
    label_at     (B, M)           int64    columns of the labels; -1 behind the last one
    user_len     (B,)             int64    tokens of the user part
    total_len    (B,)             int64    tokens of both parts
    actions      (B, H, A)        float32  the chunk: anchored in the command in force, normalised
    action_mask  (B, H)           bool     rows that count
    noise        (B, K, H, A)     float32  standard normal
    time         (B, K)           float32  flow time, 1 is noise; (B, K, H) with prefix_rows
    read_text    (B, K)           bool     whether the noise sample sees the assistant part
    n_rows       ()               float32  rows that count in the global batch, per process
    n_tokens     ()               float32  labels in the global batch, per process
    scene        (B, N, n, 4)     float32  bricks in the frame of what carries the camera:
                                           x, y, z m, yaw rad; nan for one that is not there
    referents    (B, 8)           float32  what the words mean (vla/grounding.py); -1 for a question
                                           and for what cannot be done
    `augment` uses up, and only what is switched on is there:
    gain         (B, 1, 1, 1, 3)  float32  factor of the colours
    offset       (B, 1, 1, 1, 1)  float32  brightness, out of 255
    crop         (B, N, 3)        float32  side of what is left, its centre (y, x) from -1 to 1
    scene and referents are there where every file holds the simulator's truth.

    L and M are the same for all batches of a data set: a new shape would be compiled anew.

    Processor.encode, for acting: images, state, tool, input_ids, labels, label_at, user_len,
    total_len.

    EO-1's inline layout: chunks stand inside the text as <|action_pad|> (noisy) or <|action_pass|>
    (clean) tokens, c of them in the batch in order of appearance.
    input_ids, labels (B, L), images or patches, state (one row per <|state_pad|>, S) as above
    document     (B, L)           int64    which document of its row a token belongs to; -1: padding
    user_len     (B,) or (B, documents)    int64; left out: all is user part
    actions      (c, H, A)        float32  normalised
    noise        (c, H, A)        float32  left out, with actions: text and pictures only
    time         (c,)             float32  flow time
    action_mask  (c, H)           bool     rows that count

    A published model's own pictures (vla/pretrained.py) come in place of images:
    patches      (p, 3 * patch_frames * patch_size**2)  float32, normalised as the model asks
    grids        [(t, h, w)]      ints     patches of each picture or video, in order of appearance
    grid_seconds [float]          s        of video: time between two rows of patches; optional
"""

import collections
import concurrent.futures
import fnmatch
import functools
import itertools
import math
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import torch

import hub
import instructions
from episode import check_episode, episode_paths, read_episode
from vla import browse, questions
from vla.frames import Frames
from vla.hdf5_reader import from_hdf5
from vla.lerobot_reader import from_lerobot
from vla.lerobot_writer import to_lerobot
from vla.processor import Batch, Processor
from vla.tokenizer import make_tokenizer
from vla.windows import Windows, frame_of, held_out

MEASURED_WORDINGS = 1000  # instructions that are drawn to see how long they get
MOST_SHOWN = 6  # Episodes of a folder that `show` draws.
MOST_FORKS = 8  # Processes that make batches; more of them make more than one GPU takes.
PARENT_LOOK_S = 0.2  # A process that was forked ends so soon after its parent.
MOST_DRAWS = 20  # An instruction that is too long is drawn again so often.


def shares_of(tasks: Sequence[str], patterns: Sequence[str]) -> dict[str, float]:
    """The shares of the samples that tasks have, by their names.

    Args:
        tasks: Names.
        patterns: 'pattern=share' each; the last pattern that fits a task counts, 0 leaves it out.

    Raises:
        ValueError: A pattern fits no task, or is no share.
    """
    shares = dict.fromkeys(tasks, 1.0)
    for text in patterns:
        pattern, equals, share = text.partition('=')
        fits = fnmatch.filter(tasks, pattern)
        if not fits:
            raise ValueError(f'task_shares {text!r} fits no task; there are {", ".join(tasks)}')
        try:
            number = float(share)
        except ValueError:
            number = -1
        if not 0 <= number < math.inf:
            raise ValueError(
                f"task_shares {text!r}: expected 'pattern=share', a share of at least 0"
            )
        shares |= dict.fromkeys(fits, number)
    return shares


class Dataset(Windows):
    """Batches of windows of H actions; `batch` is a pure function of (seed, step).

    Args:
        source: Folders or files, a list or separated by commas.
        processor: Says which slots, cameras and rows a sample has.
        split: 'train', 'val' or None (all).
        val_fraction: Share of the episodes that is held out, by hash of the seed.
        rows_after_success: Windows that start more than so many rows after the goal was reached for
            good are not sampled.
        noise_samples: K, (noise, time) pairs per chunk; they share one reading of the images.
        read_text: Probability that a noise sample sees the subtask text.
        gain: Spread of the colour gain, per image channel.
        brightness: Spread of the brightness offset, in 0..255.
        reask_share: Probability that a sample asks for another goal in the same scene, see `batch`.
        pure_noise: Share of noise samples with time 1; the times of the others are distributed as
            Beta(1.5, 1), as in pi0 and EO-1.
        question_share: Probability that a sample is a question about the scene and its answer, see
            vla/questions.py.
        prefix_rows: Up to so many first rows of a noise sample are given clean, as when they are
            being executed already.
        weights: Of the folders in `source`, their shares of the samples; (): as many as they have
            windows.
        task_shares: Of the tasks in them, see `shares_of`; (): as many as they have windows, which
            is more for a task that takes longer. With weights, shares within each folder.
        wording_noise: Probability that a drawn instruction loses small words or gets words that
            mean nothing, see instructions.draw.
        wordings: So many are drawn for a goal, and samples take one of them; 0: a new one is drawn
            for every sample, which takes 0.1 ms.
        refuse_share: Probability that a sample asks for what the scene has not: the command is
            held, and the text asks back.
        crop: Up to this share of a picture's side is cut off, anywhere, and the rest enlarged.
        delay: Chunks begin up to so many steps after the pictures were taken, drawn per sample: the
            state is what the processor's foresight makes of the commands executed meanwhile.
        workers: Threads that decode jpeg; raw pictures are copied by the thread that asks for them.
        multiple: Prompts are padded to a multiple of so many tokens; GPUs like 8.

    Raises:
        ValueError: A file does not fit the processor, or lacks what is asked for.
    """

    def __init__(
        self,
        source: str | os.PathLike | Sequence,
        processor: Processor,
        split: str | None = None,
        val_fraction: float = 0.05,
        rows_after_success: int = 3,
        noise_samples: int = 1,
        read_text: float = 0.5,
        gain: float = 0.0,
        brightness: float = 0.0,
        reask_share: float = 0.0,
        pure_noise: float = 0.0,
        question_share: float = 0.0,
        prefix_rows: int = 0,
        weights: Sequence[float] = (),
        task_shares: Sequence[str] = ('*=1',),
        wording_noise: float = 0.0,
        wordings: int = 0,
        refuse_share: float = 0.0,
        crop: float = 0.0,
        delay: int = 0,
        workers: int = 1,
        multiple: int = 1,
    ):
        super().__init__(source, processor, split, val_fraction, rows_after_success, workers)
        self.noise_samples = noise_samples
        self.read_text = read_text
        self.reask_share = reask_share
        self.question_share = question_share
        self.prefix_rows = prefix_rows
        self.gain = gain
        self.brightness = brightness
        self.pure_noise = pure_noise
        self.crop = crop
        self.delay = delay
        self.wording_noise = wording_noise
        self.wordings = wordings
        self.refuse_share = refuse_share
        self.frames: Frames | None = None  # keep_frames sets it.
        if question_share:
            self.demand('questions')
        if refuse_share:
            self._demand_refusals()
        self._known_words = functools.lru_cache(300_000)(self._one_of_the_wordings)
        self._measure_prompts(multiple)
        self._weigh(weights, task_shares, split)
        # across epochs: two of each source
        self._order = functools.lru_cache(2 * len(self.sources))(self._shuffled)

    # ---- how long prompts are

    def _measure_prompts(self, multiple: int) -> None:
        """Tokens of the longest prompts: user part alone, all of it, assistant part alone.

        A text that was not foreseen, as an answer of many words, makes its batch wider.
        """
        count = self.processor.prompt_ids
        longest = np.zeros(3, int)
        for asked, subtasks in set(zip(map(tuple, self.askable), map(tuple, self.subtasks))):
            user = max(len(count(text)[0]) for text in asked)
            answer = max(len(count('', text)[1]) for text in subtasks)
            longest = np.maximum(longest, [user, user + answer, answer])
        # What is drawn instead of a recorded instruction may be longer, and may be asked back for.
        more = max(0, self._drawn_tokens() - longest[0])
        if self.refuse_share:
            longest[2] = max(longest[2], len(count('', instructions.ASK_BACK)[1]))
        longest = np.maximum(longest + [more, more, 0], [0, longest[0] + more + longest[2], 0])
        if self.question_share:
            words = max(set().union(*self.askable), key=lambda text: len(count(text)[0]))
            texts = [
                text.format(x='orange') for kind in questions.TEMPLATES.values() for text in kind
            ]
            asks = [f'{words} : {text}' for text in texts]
            user = max(len(count(text, None, True)[0]) for text in asks) + more
            longest = np.maximum(longest, [user, user + longest[2], longest[2]])
        self.multiple = multiple
        self.user_tokens, self.prompt_tokens, self.answer_tokens = map(self._up, longest.tolist())

    def _drawn_tokens(self) -> int:
        """Tokens of a user part that 99 of 100 drawn instructions have at most; 0: none is drawn.

        The longest ones are rare and far longer: with 128 samples a batch had from 57 to 82 tokens,
        where half of all prompts have less than 40.
        """
        frames = sorted(set().union(*self.goals) - {''})
        if not frames:
            return 0
        rng = np.random.default_rng(0)
        noise = self.wording_noise > 0
        lengths = []
        for i in range(MEASURED_WORDINGS):
            text = instructions.draw(rng, frame_of(frames[i % len(frames)]), noise)
            lengths.append(len(self.processor.prompt_ids(text)[0]))
        return int(np.quantile(lengths, 0.99))

    def _fitting(self, draw: Callable[[], str]) -> str:
        """What `draw` gives, drawn again while it is longer than was foreseen.

        Shapes then stay, which a GPU needs: a new one is compiled and recorded anew.
        """
        words = draw()
        for _ in range(MOST_DRAWS):
            if len(self.processor.prompt_ids(words)[0]) <= self.user_tokens:
                break
            words = draw()
        return words

    def _up(self, tokens: int) -> int:
        """The next multiple that a prompt is padded to."""
        return -(-tokens // self.multiple) * self.multiple

    # ---- the order of windows

    def _weigh(
        self, weights: Sequence[float], task_shares: Sequence[str], split: str | None
    ) -> None:
        """Share the windows out to sources, one per folder and task: (weight, windows) of each."""
        self.sources: list[tuple[float, np.ndarray]] = []
        if split != 'val':
            shares_of(self.tasks, task_shares)  # A slip is said where one task has all, too.
        for folder, weight, windows in self._by_folder(weights):
            if not weight:
                continue
            if not len(windows):
                raise ValueError(f'{folder} has a weight and no windows in the {split!r} part')
            by_task = {task: windows[self.rows_of(task, windows)] for task in self.tasks}
            by_task = {task: mine for task, mine in by_task.items() if len(mine)}
            if not task_shares or len(by_task) == 1:
                self.sources.append((weight, windows))
                continue
            shares = shares_of(list(by_task), task_shares)
            total = sum(shares.values())
            for task, mine in by_task.items():
                if shares[task]:
                    self.sources.append((weight * shares[task] / total, mine))
        if not self.sources:
            raise ValueError(f'task_shares {task_shares}: no task is left')

    def _by_folder(self, weights: Sequence[float]) -> list[tuple[str, float, np.ndarray]]:
        """[(folder, weight, windows)]; without weights all folders are one."""
        folders = self.folders
        if not weights:
            return [(','.join(folders), 1, self.windows)]
        if len(weights) != len(folders):
            raise ValueError(
                f'{len(weights)} weights for {len(folders)} folders: {", ".join(folders)}'
            )
        places = {folder.rstrip('/'): i for i, folder in enumerate(folders)}
        place = np.array([places[os.path.dirname(path)] for path in self.paths])  # (E,)
        of = place[self.episode[self.windows]]
        return [
            (folder, weight, self.windows[of == i])
            for i, (folder, weight) in enumerate(zip(folders, weights))
        ]

    def by_task(self) -> dict[str, tuple[int, int, float]]:
        """{task: its episodes, its windows, its share of the samples}."""
        total = sum(weight for weight, _ in self.sources)
        table = {}
        for task in self.tasks:
            share = 0.0
            for weight, windows in self.sources:
                share += weight / total * self.rows_of(task, windows).mean()
            count = int(self.rows_of(task, self.windows).sum())
            table[task] = (self.task.count(task), count, share)
        return table

    def _shuffled(self, source: int, seed: int, epoch: int) -> np.ndarray:
        # the first source's order is that of a data set without weights
        key = [seed, epoch, source] if source else [seed, epoch]
        return np.random.default_rng(key).permutation(len(self.sources[source][1]))

    def _in_order(self, source: int, at: np.ndarray, seed: int) -> np.ndarray:
        """Windows number `at` of a source, which goes on through epochs: each comes in each."""
        windows = self.sources[source][1]
        n = len(windows)
        order = [
            self._order(source, seed, int(epoch))[at[at // n == epoch] % n]
            for epoch in np.unique(at // n)
        ]
        return windows[np.concatenate(order)] if order else windows[:0]

    def sample_rows(self, step: int, batch_size: int, seed: int) -> np.ndarray:
        """Rows of the global batch of a step, (batch_size,).

        Sources take turns evenly: source 0 takes sample i wherever its share of i passes a whole
        number, source 1 likewise of what is left, and so on.
        """
        at = np.arange(step * batch_size, (step + 1) * batch_size)
        rows = np.empty(batch_size, np.int64)
        mine = np.arange(batch_size)
        left = sum(weight for weight, _ in self.sources)
        for source, (weight, _) in enumerate(self.sources):
            last = source == len(self.sources) - 1
            # Whole numbers are exact.
            share = 1 << 30 if last else round(weight / left * (1 << 30))
            before = at * share >> 30
            after = (at + 1) * share >> 30
            taken = after > before
            rows[mine[taken]] = self._in_order(source, before[taken], seed)
            mine = mine[~taken]
            at = (at - before)[~taken]
            left = left - weight
        return rows

    # ---- batches

    def batch(
        self, step: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0
    ) -> Batch:
        """Slice `rank` of the global batch of `step`: the table on top of this file.

        Everything random is drawn for the global batch, so that the number of ranks changes no
        number. n_rows and n_tokens are the loss's denominators: global counts divided by
        world_size.
        """
        if batch_size % world_size:
            raise ValueError(f'global batch {batch_size} does not divide into {world_size} slices')
        processor = self.processor
        key = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
        rng = torch.Generator().manual_seed(key)
        drawn = self._draw(batch_size, rng)
        reask = torch.rand(batch_size, 2, generator=rng).numpy()
        rows = self.sample_rows(step, batch_size, seed)
        asked = self._choose_goals(rows, reask)
        quiz = torch.rand(batch_size, generator=rng).numpy() < self.question_share
        refused = self._choose_refusals(rows, asked, quiz, seed, step)
        prompts = self._prompts(rows, asked, quiz, refused, seed, step)
        given = self._give_rows(drawn, rng)
        self._leave_out(drawn)
        self._draw_crop(drawn, batch_size, rng)

        mine = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.check_files(rows[mine])
        late = self._late(rows, seed, step)  # rows that the chunks begin with
        state = self.read('state', rows[mine])
        path = None
        if self.delay:
            path = self._states_on_the_way(rows[mine], late[mine], state)
            state = path[:, -1]
        images = None if self.frames else self.gather_images(rows[mine])
        batch = processor.assemble(images, state, prompts[mine], *self._widths(prompts))
        batch |= {k: v[mine] for k, v in drawn.items()}
        if path is not None:
            batch |= processor.hand_path(path)
        if self.frames:
            batch['frame'] = self.frames.numbers(rows[mine])
        commands = self.commands(late[mine], state)
        chunk = self.chunk(late[mine])
        chunk[refused[mine]] = commands[refused[mine], None]  # the hands stay where they are
        actions = processor.normalise_actions(chunk, commands)
        mask = self.chunk_mask(late) & ((asked == 0) & ~quiz)[:, None]
        mask[refused] = True
        n_rows = mask.sum()
        if given is not None:
            n_rows = (mask[:, None] & ~given).sum() / self.noise_samples
        n_tokens = sum(len(assistant) for _, assistant in prompts)
        batch |= {
            'actions': torch.from_numpy(actions),
            'action_mask': torch.from_numpy(mask[mine]),
            # A small batch may hold questions or other goals only: nothing over nothing is no loss.
            'n_rows': torch.tensor(max(n_rows, 1) / world_size, dtype=torch.float32),
            'n_tokens': torch.tensor(max(n_tokens, 1) / world_size, dtype=torch.float32),
        }
        if 'scene' in self.files and processor.hands is not None:
            span = np.searchsorted(self.spans, late, 'right') - 1
            referents = self.referents[span, asked]
            referents[quiz | refused] = -1  # they refer to nothing that is to be done
            batch['scene'] = torch.from_numpy(self.scene(rows[mine]))
            batch['referents'] = torch.from_numpy(referents[mine])
        return batch

    def keep_frames(self, device: str) -> None:
        """Put all pictures that windows start with on a device, once; `augment` takes them there.

        From then on batches hold `frame` in the place of `images`.
        """
        self.frames = Frames(self, device)

    def _widths(self, prompts: Sequence) -> tuple[int, int]:
        """Tokens of all rows and of their answers, see Processor.pad.

        If a prompt is longer than was foreseen, it sets the width of every rank's batch.
        """
        longest = max(len(user) + len(answer) for user, answer in prompts)
        longest_answer = max(len(answer) for _, answer in prompts)
        answer_tokens = max(self.answer_tokens, self._up(longest_answer))
        return max(self.prompt_tokens, self._up(longest)), answer_tokens

    def _late(self, rows: np.ndarray, seed: int, step: int) -> np.ndarray:
        """The row that each chunk begins with: up to `delay` rows after the pictures of `rows`."""
        if not self.delay:
            return rows
        rng = np.random.default_rng([seed, step, 3])
        return np.minimum(rows + rng.integers(0, self.delay + 1, len(rows)), self.last[rows])

    def _states_on_the_way(
        self, rows: np.ndarray, late: np.ndarray, state: np.ndarray
    ) -> np.ndarray:
        """States from the pictures to the chunk, (B, 1 + delay, C), as they are foreseen.

        The commands are those that were executed. A chunk that is less late stays in its state.

        Args:
            rows: Of the pictures, (B,).
            late: Of the chunks, (B,).
            state: Of `rows`, (B, C).
        """
        foresight = self.processor.foresight
        assert foresight is not None, 'learn_hands comes first'
        ahead = rows[:, None] + 1 + np.arange(self.delay)  # (B, delay)
        at = np.minimum(ahead, late[:, None])
        commands = self.commands(at.ravel()).reshape(*at.shape, -1)
        path = foresight.states(state, commands)
        reached = np.minimum(np.arange(1 + self.delay), (late - rows)[:, None])
        return path[np.arange(len(rows))[:, None], reached]

    def _draw(self, batch_size: int, rng: torch.Generator) -> Batch:
        """All that is random about the samples of a global batch, whoever they are."""
        B = batch_size
        K = self.noise_samples
        H = self.processor.horizon
        A = self.processor.action_dim
        # Uniform numbers, by inversion, are distributed as Beta(1.5, 1).
        time = torch.rand(B, K, generator=rng) ** (1 / 1.5)
        drawn = {
            'noise': torch.randn(B, K, H, A, generator=rng),
            'time': 0.001 + 0.999 * time,
            'read_text': torch.rand(B, K, generator=rng) < self.read_text,
            'gain': 1 + self.gain * torch.randn(B, 1, 1, 1, 3, generator=rng),
            'offset': self.brightness * torch.randn(B, 1, 1, 1, 1, generator=rng),
        }
        drawn['time'].masked_fill_(torch.rand(B, K, generator=rng) < self.pure_noise, 1.0)
        return drawn

    def _choose_goals(self, rows: np.ndarray, reask: np.ndarray) -> np.ndarray:
        """Which of the goals of its scene each sample asks for, 0: the one it was about.

        A sample that asks for another one has no action to learn from, but the answer to `where`
        needs the words, because what the arms are doing no longer gives it away.
        """
        others = self.n_askable[self.episode[rows]] - 1
        other = np.ceil(reask[:, 1] * others).astype(int)
        return np.where(reask[:, 0] < self.reask_share, other, 0)

    def _choose_refusals(
        self, rows: np.ndarray, asked: np.ndarray, quiz: np.ndarray, seed: int, step: int
    ) -> np.ndarray:
        """Which samples ask for what cannot be done, bool (B,)."""
        if not self.refuse_share:
            return np.zeros(len(rows), bool)
        rng = np.random.default_rng([seed, step, 1])
        chosen = rng.random(len(rows)) < self.refuse_share
        has_frame = np.array([bool(self.goal_frame(row)) for row in rows])
        return chosen & has_frame & (asked == 0) & ~quiz

    def _demand_refusals(self) -> None:
        """Raise ValueError where no file tells what its scene has and has not."""
        if not any(map(any, self.goals)):
            raise ValueError(
                f'{self.paths[0]} has no goals: its words cannot be drawn; record it anew, or '
                'refuse nothing: --refuse_share=0'
            )
        self.demand('grounding')

    def _prompts(
        self,
        rows: np.ndarray,
        asked: np.ndarray,
        quiz: np.ndarray,
        refused: np.ndarray,
        seed: int,
        step: int,
    ) -> list:
        """Token ids of each sample, user part and assistant part.

        Args:
            rows: Of the global batch, (B,).
            asked: Which of its goals each sample asks for, (B,).
            quiz: Which are questions, (B,).
            refused: Which ask for what cannot be done, (B,).
            seed: Of the run.
            step: Of the batch.
        """
        processor = self.processor
        rng = np.random.default_rng([seed, step, 2])
        prompts = []
        told = []
        for row, k, refuse in zip(rows, asked, refused):
            text: str | None
            if refuse:
                words = self._impossible_words(row, rng)
                text = instructions.ASK_BACK
            else:
                words = self.words(row, k, rng)
                text = None if k else self.subtask(row)
            told.append(words)
            prompts.append(processor.prompt_ids(words, text))
        rng = np.random.default_rng([seed, step])
        for i in np.flatnonzero(quiz):
            pairs = self.questions_at(rows[i], rng, None if asked[i] else told[i])
            kinds = sorted({kind for kind, *_ in pairs})
            shares = np.array([questions.SHARES[kind] for kind in kinds])
            kind = rng.choice(kinds, p=shares / shares.sum())
            pairs = [pair for pair in pairs if pair[0] == kind]
            _, question, answer = pairs[rng.integers(len(pairs))]
            prompts[i] = processor.prompt_ids(question, answer, True)
        return prompts

    def words(self, row: int, k: int, rng: np.random.Generator) -> str:
        """An instruction for goal k of the row's scene: drawn, where the file has its frame."""
        frame = self.goal_frame(row, k)
        if not frame:
            return self.instruction(row, k)
        noise = self.wording_noise > 0 and rng.random() < self.wording_noise
        if self.wordings:
            return self._known_words(frame, noise, int(rng.integers(self.wordings)))
        return self._fitting(lambda: instructions.draw(rng, frame_of(frame), noise))

    def _one_of_the_wordings(self, frame: str, noise: bool, number: int) -> str:
        rng = np.random.default_rng([zlib.crc32(frame.encode()), number])
        return self._fitting(lambda: instructions.draw(rng, frame_of(frame), noise))

    def _impossible_words(self, row: int, rng: np.random.Generator) -> str:
        """An instruction that cannot be followed in the row's scene."""
        noise = self.wording_noise > 0 and rng.random() < self.wording_noise
        frame = frame_of(self.goal_frame(row))
        scene = self.task[self.episode[row]]
        task = scene if scene in instructions.CANNOT else None
        colours = self.colours_at(row)
        return self._fitting(lambda: instructions.impossible(rng, frame, colours, noise, task))

    def _give_rows(self, drawn: Batch, rng: torch.Generator) -> np.ndarray | None:
        """Set the time of rows that are given clean to 0; return which they are, (B, K, H)."""
        if not self.prefix_rows:
            return None
        B, K = drawn['time'].shape
        H = self.processor.horizon
        count = torch.randint(self.prefix_rows + 1, (B, K, 1), generator=rng)
        given = torch.arange(H) < count
        drawn['time'] = drawn['time'][..., None].expand(B, K, H).masked_fill(given, 0.0)
        return given.numpy()

    def _leave_out(self, drawn: Batch) -> None:
        """Drop what is switched off: `augment` need not ask a GPU whether there is work."""
        if not (self.gain or self.brightness):
            del drawn['gain'], drawn['offset']

    def _draw_crop(self, drawn: Batch, batch_size: int, rng: torch.Generator) -> None:
        """Side of what is left of a picture, and its centre (y, x) in one from -1 to 1."""
        if self.crop:
            N = len(self.processor.cameras)
            side = 1 - self.crop * torch.rand(batch_size, N, 1, generator=rng)
            centre = (1 - side) * (2 * torch.rand(batch_size, N, 2, generator=rng) - 1)
            drawn['crop'] = torch.cat([side, centre], -1)


# -----------------------------------------------------------------------------
# augmentation, prefetching


def augment(batch: Batch, frames: Frames | None = None) -> Batch:
    """Apply the batch's own draws to its images, on whatever device they are.

    In this order: crop, colour gain, brightness. What there is no draw of is not done; with
    any draw images come out as float 0..255, not clipped: one pass less.

    Args:
        batch: Of Dataset.batch.
        frames: Where the pictures are, of a data set that keeps them on a device.
    """
    batch = dict(batch)
    if frames is not None:
        images = frames.images.index_select(0, batch.pop('frame'))
    else:
        images = batch.pop('images')
    crop = batch.pop('crop', None)
    gain = batch.pop('gain', None)
    offset = batch.pop('offset', None)
    if crop is not None:
        images = _cropped(images, crop)
    if gain is not None and offset is not None:  # the two are drawn together
        # (B, N, h, w*3): an inner loop of 3 channels is 3 times slower
        flat = images.flatten(3).float()
        flat = flat.mul_(gain.repeat(1, 1, 1, images.shape[3], 1).flatten(3)).add_(offset[..., 0])
        images = flat.view(images.shape)
    return batch | {'images': images}


def by_length(batch: Batch, groups: int) -> list[Batch]:
    """Cut a batch into parts of samples with prompts of like length, each as wide as its longest.

    Prompts with words of the grammar have 39 tokens on average, and the longest of 128 had 57 to
    82: two fifths of a prefix were padding. A CPU need not do that work, as its shapes may change.
    The mean of the parts' losses is the loss of the batch, because they are of one size.

    Args:
        batch: Of Dataset.batch.
        groups: How many parts, or the next smaller number that divides the samples.
    """
    samples = len(batch['input_ids'])
    groups = next(n for n in range(groups, 0, -1) if samples % n == 0)
    if groups == 1:
        return [batch]
    parts = []
    for rows in batch['total_len'].argsort(stable=True).chunk(groups):
        # n_rows and n_tokens are counts, of which each part gets its share.
        part = {name: x[rows] if x.ndim else x / groups for name, x in batch.items()}
        longest = int(part['total_len'].max())
        for name in ('input_ids', 'labels'):
            part[name] = part[name][:, :longest].contiguous()
        parts.append(part)
    return parts


def _cropped(images: torch.Tensor, crop: torch.Tensor) -> torch.Tensor:
    # The grid is made by hand: affine_grid multiplies matrices, in bfloat16 under autocast.
    h = images.shape[2]
    at = (2 * torch.arange(h, device=images.device) + 1) / h - 1  # middles of pixels
    y = crop[..., :1] * at + crop[..., 1, None]  # (B, N, h)
    x = crop[..., :1] * at + crop[..., 2, None]
    columns = x[..., None, :].expand(*x.shape, h)
    lines = y[..., None].expand(*y.shape, h)
    grid = torch.stack([columns, lines], -1)
    flat = images.flatten(0, 1).permute(0, 3, 1, 2).float()  # (B*N, 3, h, w)
    flat = torch.nn.functional.grid_sample(
        flat, grid.flatten(0, 1), padding_mode='border', align_corners=False
    )
    return flat.permute(0, 2, 3, 1).reshape(images.shape)


def prefetch(
    make: Callable[[int], list[Batch]], steps: range, pin: bool = False, threads: int = 1
) -> Generator[Any, None, None]:
    """Yield make(step) for each step; threads make the next ones meanwhile, each one of its own.

    Order and numbers stay as they are.

    Args:
        make: Gives a list of batches.
        steps: In this order.
        pin: The batches go into memory that a GPU copies from while it computes.
        threads: So many, and twice as many steps are made or being made at any time.
    """

    def work(step: int) -> Any:
        made = make(step)
        if pin:
            return [{k: v.pin_memory() for k, v in batch.items()} for batch in made]
        return made

    with concurrent.futures.ThreadPoolExecutor(
        threads, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
    ) as pool:
        left = iter(steps)
        ahead = collections.deque(pool.submit(work, i) for i in itertools.islice(left, 2 * threads))
        try:
            while ahead:
                now = ahead.popleft()
                yield now.result()
                ahead.extend(pool.submit(work, i) for i in itertools.islice(left, 1))
        finally:  # whoever needs no more waits for what is being made, not for what is not begun
            for future in ahead:
                future.cancel()


# -----------------------------------------------------------------------------
# batches made by processes, where threads would wait for Python's lock
#
# To draw an instruction and to cut it into tokens is Python's own work, 0.1 ms for a sample, and
# all threads of a process share one lock: however many they are, they make 6,000 samples a second.
# Processes are forked, because then a data set need not be sent to them. They touch no GPU, which
# would not survive it.

_make: Callable[[int], list[Batch]] | None = None  # What this process makes, if forked for that.


def count_forks(sharing: int) -> int:
    """How many processes make batches for one of so many that share this machine; 0: no core."""
    return max(0, min(MOST_FORKS, (os.cpu_count() or 1) // sharing - 1))


def _begin(make: Callable[[int], list[Batch]], parent: int) -> None:
    """Live in a forked process: Ctrl-C is the parent's to answer, and its end is ours."""
    global _make
    _make = make
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _arrays(step: int) -> list[dict[str, np.ndarray]]:
    """Make the batches of a step. As arrays they go through a pipe, and need no shared memory."""
    assert _make is not None, '_begin comes first'
    return [{name: x.numpy() for name, x in batch.items()} for batch in _make(step)]


class ForkedMaker:
    """A function of a step that makes its batches, done by processes; several threads may call it.

    processes   so many
    """

    def __init__(self, make: Callable[[int], list[Batch]], processes: int):
        """Fork them, each with all that `make` needs as it is now."""
        self.processes = processes
        context: Any = multiprocessing.get_context('fork')
        self.pool = concurrent.futures.ProcessPoolExecutor(
            processes, context, _begin, (make, os.getpid())
        )
        self.pool.submit(os.getpid).result()  # The first call forks all of them, in this thread.

    def __call__(self, step: int) -> list[Batch]:
        """Batches of a step, bit for bit those of `make`; its exceptions are raised here."""
        made = self.pool.submit(_arrays, step).result()
        return [{name: torch.from_numpy(x) for name, x in batch.items()} for batch in made]

    def close(self) -> None:
        """End the processes; what is being made is waited for."""
        self.pool.shutdown(cancel_futures=True)


# -----------------------------------------------------------------------------
# commands


def check(source: str) -> int:
    """Print every fault of every file; the exit code is 1 where there is one."""
    paths = episode_paths(source)
    faulty = 0
    for path in paths:
        faults = check_episode(path)
        faulty += bool(faults)
        for fault in faults:
            print(f'{path}: {fault}')
    print(f'{len(paths)} episodes, {faulty} with faults')
    return int(faulty > 0)


def split_folder(folder: str, fraction: float) -> None:
    """Link the episodes that are held out, and the others, into two folders beside it."""
    stem = folder.rstrip('/')
    paths = episode_paths(folder)
    held = held_out([read_episode(path)[1] for path in paths], fraction)
    link_into(
        {
            f'{stem}_held': [path for path, is_held in zip(paths, held) if is_held],
            f'{stem}_rest': [path for path, is_held in zip(paths, held) if not is_held],
        }
    )


def link_into(parts: dict[str, list[str]]) -> None:
    """Link episodes into folders and say how many they are."""
    for folder, n in browse.link_episodes(parts).items():
        print(f'{folder}: {n} episodes')


def pack(folder: str, quality: int) -> None:
    """Copy a folder with its pictures as jpeg and say how large it is."""
    to = f'{folder.rstrip("/")}_jpeg'
    before, after = browse.pack_episodes(episode_paths(folder), to, quality)
    print(f'{to}: {after / 1e9:.3f} GB, {after / before:.0%} of what it was')


def show(source: str) -> None:
    """Draw an episode beside its file; of a folder a few, from the first to the last."""
    paths = episode_paths(source)
    chosen = np.unique(np.linspace(0, len(paths) - 1, MOST_SHOWN).astype(int)).tolist()
    for path in [paths[i] for i in chosen]:
        out = os.path.splitext(path)[0] + '.png'
        browse.draw_episode(path, out)
        print(out, flush=True)
    if len(chosen) < len(paths):
        print(f'{len(chosen)} of {len(paths)}; any other one: python data.py show <its file>')


def write_tokenizer(source: str | None, out: str) -> None:
    """Make a tokenizer, of the words in a folder of episodes, too."""
    texts = set()
    for path in episode_paths(source) if source else []:
        header = read_episode(path)[1]
        texts |= {header['instruction'], *header.get('subtasks', [])}
    tokenizer, split = make_tokenizer(texts, out)
    cut = ' '.join(split) or 'no word'
    print(f'{out}: {tokenizer.get_vocab_size()} entries; cut into pieces: {cut}')


def number(text: str, kind: Callable[[str], Any], low: float, high: float) -> Any:
    """Read a number of the command line that has to lie in a range."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise ValueError(f'{text}: expected a number from {low} to {high}')
    return value


# Type and range of the options that are numbers.
RANGES = {'image_size': (int, 0, 4096), 'jpeg': (int, 0, 95), 'control_hz': (float, 0.01, 4096)}
OPTIONS = {  # Options by command; the others have none.
    'tokenizer': {'from', 'out'},
    'to_lerobot': {'pictures', 'action'},
    'from_lerobot': {'image_size', 'jpeg'},
    'from_hdf5': {'image_size', 'jpeg', 'control_hz', 'instruction'},
}


def main(argv: Sequence[str]) -> int:
    """Run one of the commands on top of this file; returns the exit code."""
    command, *rest = [word for word in argv if not word.startswith('--')] or ['help']
    options = dict(word[2:].split('=', 1) for word in argv if word.startswith('--') and '=' in word)
    made = ''  # a folder that others may want
    known = OPTIONS.get(command, set())
    for name in sorted(options.keys() - known):
        takes = ', '.join(f'--{option}' for option in sorted(known)) or 'no options'
        raise ValueError(f'--{name}: unknown; {command} takes {takes}')
    if command == 'tokenizer' and not rest:
        write_tokenizer(options.get('from'), options.get('out', 'assets/tokenizer.json'))
    elif command == 'check' and len(rest) == 1:
        return check(hub.fetch_all(command, rest[0]))
    elif command == 'merge' and len(rest) > 2:
        sources = [hub.fetch_all(command, name) for name in rest[1:]]
        link_into({rest[0]: episode_paths(sources)})
    elif command == 'split' and len(rest) == 2:
        split_folder(rest[0], number(rest[1], float, 0, 1))
    elif command == 'jpeg' and len(rest) == 2:
        pack(rest[0], number(rest[1], int, 1, 95))
    elif command == 'stats' and len(rest) == 1:
        browse.print_stats(episode_paths(hub.fetch_all(command, rest[0])))
    elif command == 'show' and len(rest) == 1:
        show(rest[0])
    elif command == 'to_lerobot' and len(rest) == 2:
        paths = episode_paths(hub.fetch_all(command, rest[0]))
        how = (options.get('pictures', 'video'), options.get('action', ''))
        print('\n'.join(to_lerobot(paths, rest[1], *how)))
    elif command == 'from_lerobot' and len(rest) == 2:
        made = rest[1]
        folder = hub.fetch(command, rest[0], 'lerobot')
        numbers = {name: number(text, *RANGES[name]) for name, text in options.items()}
        print('\n'.join(from_lerobot(folder, made, **numbers)))
    elif command == 'from_hdf5' and len(rest) == 2 and 'instruction' in options:
        made = rest[1]
        words = options.pop('instruction')
        numbers = {'control_hz': 50}
        numbers |= {name: number(text, *RANGES[name]) for name, text in options.items()}
        print('\n'.join(from_hdf5(rest[0], made, instruction=words, **numbers)))
    else:
        print(str(__doc__).split('\n\n')[1])
        return 2
    if made:
        hub.write_card(made, 'dataset', shlex.join(['python', 'data.py', *argv]))
    return 0


if __name__ == '__main__':
    os.environ.setdefault('SVT_LOG', '1')  # the encoder of videos talks at length otherwise
    try:
        code = main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit('stopped')
    sys.exit(code)
