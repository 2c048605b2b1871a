"""
From episodes to batches: the one road from an observation to model input, and from a chunk back to commands.

python data.py check episodes/demo         # names every fault in every file; exit code 1 when there is one
python data.py stats episodes/demo         # counts, and mean, spread and range per slot, in physical units
python data.py show episodes/demo          # contact sheet and plots of a file, or of each in a folder: *.png
python data.py merge episodes/all episodes/place episodes/join     # one folder of several; links, no copies
python data.py split episodes/demo 0.1     # links a tenth into episodes/demo_held, the others into _rest
python data.py jpeg episodes/demo 90       # pictures packed, quality 90, into episodes/demo_jpeg
python data.py tokenizer                   # makes assets/tokenizer.json; --from=FOLDER adds words, --out=FILE

Episode files (episode.py) hold SI units and raw pixels, nothing normalised. Windows, anchoring, normalising
and the token sequence happen here, at load time, in the same functions for a recorded frame and for a live
observation.

S state slots, A action slots, H horizon, B batch, N cameras, K draws of (noise, time), L tokens
"""
import concurrent.futures
import fnmatch
import functools
import hashlib
import os
import sys
import zlib

import numpy as np
import tokenizers
import torch

import questions
from episode import (
    ARMS, COMMAND, POSITION, ROTVEC, SPINE, STATE, STATE_NAMES, TOOL_ACTION, TOOL_ACTION_NAMES, TOOL_POSE,
    check_episode, draw_episode, episode_paths, link_episodes, observation_from_state, pack_episodes,
    print_stats, quat_from_rotvec, quat_inv, quat_mul, quat_rotate, read_episode, rotvec_from_quat, slots,
    state_vector, write_atomic)
# not used here: whoever feeds a model needs one import for it
from episode import JOINT_ACTION_NAMES, write_episode, write_synthetic_episodes  # noqa: F401

# -----------------------------------------------------------------------------
# tool actions relative to the command in force when the chunk starts: small numbers around zero, the same for
# a brick anywhere on the table. Position and rotation in the frame of the commanded tool, spine as a
# difference, gripper absolute.

def anchor(actions, command):
    """(..., H, 15) absolute tool actions, (..., 15) command in force -> (..., H, 15) relative, float64."""
    actions, command = np.asarray(actions, np.float64), np.asarray(command, np.float64)[..., None, :]
    out = actions.copy()
    out[..., SPINE] -= command[..., SPINE]
    for p, r in zip(POSITION, ROTVEC):
        back = quat_inv(quat_from_rotvec(command[..., r]))
        out[..., p] = quat_rotate(back, actions[..., p] - command[..., p])
        out[..., r] = rotvec_from_quat(quat_mul(back, quat_from_rotvec(actions[..., r])))
    return out


def unanchor(relative, command):
    """Exact inverse of `anchor` (rotation vectors come back with angle <= pi)."""
    relative, command = np.asarray(relative, np.float64), np.asarray(command, np.float64)[..., None, :]
    out = relative.copy()
    out[..., SPINE] += command[..., SPINE]
    for p, r in zip(POSITION, ROTVEC):
        turn = quat_from_rotvec(command[..., r])
        out[..., p] = command[..., p] + quat_rotate(turn, relative[..., p])
        out[..., r] = rotvec_from_quat(quat_mul(turn, quat_from_rotvec(relative[..., r])))
    return out


# -----------------------------------------------------------------------------
# tokenizer: byte-level BPE small enough to train from scratch; every word of our templates is one token

SPECIAL_TOKENS = ('<|pad|>', '<|image_pad|>', '<|state_pad|>', '<|vla|>', '<|action_start|>',
                  '<|action_pad|>', '<|action_pass|>', '<|action_end|>', '<|im_start|>', '<|im_end|>')
VOCABULARY_SIZE = 1024
TEMPLATE_WORDS = '''the a of on onto in into to with and is it its both over under down up at from then now
put press place take goes join hold keep give pull apart off reach grasp lift carry align release retreat
wait rest hand hands left right near far front back top end corner cell row column plate baseplate brick
bricks stud studs air lower upper red blue yellow green white orange : ; , . ? 2x2 2x3 2x4 2x6 2x8 2x10 0
1 2 3 4 5 6 7 8 9 across after are assemble away be below beside black bridge bring build by centre clear
close comes connect crosswise did does done edges finished flush follow for further gets gives go half has
holds how joined lay lies lined long make many middle move nearer next one other part pass pick plan
plugged pressed presses pulls puts quarter remove says separate set sit small something span square stack
step table task this together tower towers turned two undo unplug unplugs went what where which wrong you
fell broke joint nothing none yes no'''.split()


def make_tokenizer(texts, path):
    """Train on the words of `texts` and TEMPLATE_WORDS, each equally often: rare ones stay whole, too.
    Writes `path`. -> the tokenizer, the words that take more than one token"""
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

def tool_frames(states):
    """Measured poses of the hands in the torso frame: (B, 79) -> (B, 2, 4) x, y, z, yaw; m, rad; float32."""
    position, quat = (np.reshape(states[:, columns], (len(states), 2, -1)) for columns in TOOL_POSE)
    w, x, y, z = np.moveaxis(quat, -1, 0)
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return np.concatenate([position, yaw[..., None]], -1).astype(np.float32)


class Processor:
    """
    Everything that stands between an observation and the model, and between the model and an action. It lives
    in the checkpoint's meta.json; a rollout takes it from there and from nowhere else.

    cameras        names, in the order the model sees them
    image_size     pixels, square
    state_slots    names or patterns out of STATE_NAMES
    action_slots   names or patterns out of TOOL_ACTION_NAMES; the command in force is held in the others
    horizon        H, rows of a chunk, at control_hz
    tokenizer      the JSON text of a `tokenizers` file
    compand        m, tenths of a rad: moves are linear up to about this and logarithmic beyond, so that the
                   last millimetre before a press weighs as much in the loss as the way to it; 0: linear
    stats          mean and spread per state slot, (S,), and per row and action slot, (H, A): see `fit`
    stats_of       `Processor.stats_of` of the one that they were made for; None: not known
    template       'minimal', or 'qwen': EO-1's prompt, for a tokenizer of Qwen's with EO-1's tokens added
    pad_dims       S and A are filled up with zeros to so many, 32 in EO-1; 0: left as they are
    """

    def __init__(self, cameras, image_size, state_slots, action_slots, horizon, control_hz, tokenizer,
                 tokens_per_camera=4, action_space='tool', template='minimal', compand=0.0, pad_dims=0,
                 stats=None, stats_of=None):
        for name, value, known in (('action_space', action_space, ('tool',)),
                                   ('template', template, ('minimal', 'qwen'))):
            if value not in known:
                raise ValueError(f'{name} {value!r}, expected {" or ".join(map(repr, known))}')
        self.cameras, self.image_size = tuple(cameras), image_size
        # what carries each camera: 0 torso, 1 left hand, 2 right hand
        self.frames = tuple(ARMS.index(c.split('/')[0]) + 1 if '/' in c else 0 for c in self.cameras)
        self.state_slots = slots(state_slots, STATE_NAMES)
        self.action_slots = slots(action_slots, TOOL_ACTION_NAMES)
        self.horizon, self.control_hz, self.tokens_per_camera = horizon, control_hz, tokens_per_camera
        self.action_space, self.template, self.compand = action_space, template, compand
        self.state_dim, self.action_dim = (pad_dims or len(s) for s in (self.state_slots, self.action_slots))
        self.pad_dims = pad_dims
        if self.state_dim < len(self.state_slots) or self.action_dim < len(self.action_slots):
            raise ValueError(f'{len(self.state_slots)} state and {len(self.action_slots)} action slots '
                             f'are more than pad_dims {pad_dims}')
        self.tokenizer_json, self.tokenizer = tokenizer, tokenizers.Tokenizer.from_str(tokenizer)
        stands_for = {'<|pad|>': '<|endoftext|>'} if template == 'qwen' else {}
        self.token_id = {name: self.tokenizer.token_to_id(stands_for[name] if name in stands_for else name)
                         for name in SPECIAL_TOKENS}
        missing = [name for name, i in self.token_id.items() if i is None]
        if missing:
            raise ValueError(f'tokenizer lacks {", ".join(missing)}; make one: python data.py tokenizer')
        self.state_index = np.array([STATE_NAMES.index(n) for n in self.state_slots])
        self.action_index = np.array([TOOL_ACTION_NAMES.index(n) for n in self.action_slots])
        units = {'m': compand, 'rad': 10 * compand}
        self.action_scale = np.array([0 if n.endswith('gripper') else units[TOOL_ACTION[i].unit]
                                      for n, i in zip(self.action_slots, self.action_index)])      # (A,)
        self.stats = stats and {k: np.asarray(v, np.float64) for k, v in stats.items()}
        if stats and stats_of not in (None, self.stats_of):
            raise ValueError(f'the normaliser was made for other numbers ({stats_of}) than these settings '
                             f'give ({self.stats_of}): it depends on slots, horizon, rate and compand')

    @property
    def stats_of(self):
        """Short hash of all that gives the normalised numbers their meaning."""
        names = ('state_slots', 'action_slots', 'horizon', 'control_hz', 'action_space', 'compand')
        return hashlib.sha256(repr([getattr(self, name) for name in names]).encode()).hexdigest()[:16]

    def to_dict(self):
        plain = ('cameras', 'image_size', 'state_slots', 'action_slots', 'horizon', 'control_hz',
                 'tokens_per_camera', 'action_space', 'template', 'compand', 'pad_dims')
        return {**{k: list(v) if isinstance(v := getattr(self, k), tuple) else v for k in plain},
                'tokenizer': self.tokenizer_json,
                'stats': self.stats and {k: v.tolist() for k, v in self.stats.items()},
                'stats_of': self.stats_of,
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
    def prompt(self, instruction, subtask=None, question=False):
        """-> user part, assistant part ('' without subtask): the token sequence as text. With `question` the
        two are a question and its answer: no <|vla|>, which asks for action, and <|im_end|> at the end."""
        for text in (instruction, subtask or ''):
            if '<|' in text:
                raise ValueError(f'{text!r}: "<|" would forge a special token')
        image = '<|image_pad|>' * self.tokens_per_camera
        assistant = '' if subtask is None else subtask + ('<|im_end|>' if question else '<|action_start|>')
        if self.template == 'minimal':
            text = f'{image * len(self.cameras)}<|state_pad|>{instruction}'
            return text + ('<|im_start|>' if question else '<|vla|>'), assistant
        images = f'<|vision_start|>{image}<|vision_end|>' * len(self.cameras)
        return ('<|im_start|>system\nYou are a helpful physical assistant.<|im_end|>\n<|im_start|>user\n'
                f'{images}<|state_start|><|state_pad|><|state_end|>{instruction}'
                f'{"" if question else "<|vla|>"}<|im_end|>\n<|im_start|>assistant\n'), assistant

    @functools.lru_cache(maxsize=100_000)
    def prompt_ids(self, instruction, subtask=None, question=False):
        """-> token ids of the user part, of the assistant part."""
        parts = self.prompt(instruction, subtask, question)
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
        return self.fill_up((centred / self.stats['state_std']).astype(np.float32))

    def fill_up(self, values):
        """(..., slots) -> (..., pad_dims), zeros behind; unchanged without pad_dims."""
        if not self.pad_dims:
            return values
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, self.pad_dims - values.shape[-1])])

    def relative_actions(self, actions, commands):
        """(B, H, 15) absolute tool actions, (B, 15) command in force -> (B, H, A) anchored and companded."""
        relative, scale = anchor(actions, commands)[..., self.action_index], self.action_scale
        return np.where(scale > 0, np.arcsinh(relative / np.where(scale > 0, scale, 1)), relative)

    def normalise_actions(self, actions, commands):
        """(B, H, 15) absolute tool actions, (B, 15) command in force -> (B, H, A) float32. Or the first rows
        of a chunk only."""
        relative = self.relative_actions(actions, commands)
        mean, std = (self.stats[name][:relative.shape[1]] for name in ('action_mean', 'action_std'))
        return self.fill_up(((relative - mean) / std).astype(np.float32))

    def decode_actions(self, chunk, commands):
        """Inverse: (B, H, A) normalised, (B, 15) command in force -> (B, H, 15) absolute actions, float32."""
        chunk = np.asarray(chunk, np.float64)[..., :len(self.action_slots)]
        commands = np.asarray(commands, np.float64)
        hold = np.repeat(commands[:, None], chunk.shape[1], 1)     # (B, H, 15)
        relative = anchor(hold, commands)
        chunk, scale = chunk * self.stats['action_std'] + self.stats['action_mean'], self.action_scale
        relative[..., self.action_index] = np.where(scale > 0, scale * np.sinh(np.clip(chunk, -9, 9)), chunk)
        out = unanchor(relative, commands)
        for columns in ROTVEC:      # an arm that predicts no rotation keeps exactly the commanded one
            if not set(columns) & set(self.action_index):
                out[..., columns] = hold[..., columns]
        return out.astype(np.float32)

    def encode(self, rows, subtasks=None, questions=None):
        """Observations -> batch for the model. `rows` are observation dicts, live from the world or
        `Dataset.row`: the images of our cameras, the state fields and the instruction are read.
        With `subtasks`, one text per row, the batch contains the assistant part and the model acts having
        read it. `questions`, one per row, take the place of the instructions: VLA.generate answers them."""
        for camera in self.cameras:
            shape = np.shape(rows[0][f'image/{camera}'])
            if shape != (self.image_size, self.image_size, 3):
                raise ValueError(f'image/{camera} is {shape}, the model sees {self.image_size} px squares')
        subtasks = [None] * len(rows) if subtasks is None else subtasks
        images = np.stack([[row[f'image/{camera}'] for camera in self.cameras] for row in rows])
        states = np.stack([state_vector(row) for row in rows])
        prompts = [self.prompt_ids(row['instruction'], subtask) for row, subtask in zip(rows, subtasks)]
        if questions is not None:
            prompts = [self.prompt_ids(question, None, True) for question in questions]
        return self.assemble(images, states, prompts)

    def assemble(self, images, states, prompts):
        """(B, N, h, w, 3) uint8, (B, 79), prompt ids -> batch. The one place to put model inputs together."""
        state = torch.from_numpy(self.normalise_state(states))
        return {'images': torch.from_numpy(images), 'state': state,
                'tool': torch.from_numpy(tool_frames(states)), **self.pad(prompts)}

    def fit(self, dataset):
        """Mean and spread of exactly the tensors the loss sees: anchored, masked, the sampled windows.
        A spread below the slot's floor becomes the floor: a slot that does not move must not turn noise into
        signal.
        -> {slot: what is wrong with it}: constant as far as the model is concerned, or reaching so far that
        its spread says little"""
        # of a million windows an even selection tells as much
        windows = dataset.windows[::-(-len(dataset.windows) // FIT_WINDOWS)]
        state, total, square, count, furthest = [], 0, 0, 0, 0
        for start in range(0, len(windows), 65_536):
            rows = windows[start:start + 65_536]
            states = dataset.read('state', rows)
            state.append(states[:, self.state_index])
            relative = self.relative_actions(dataset.chunk(rows), states[:, COMMAND])
            mask = dataset.chunk_mask(rows)[..., None]
            total = total + (relative * mask).sum(0)           # (H, A)
            square = square + (relative ** 2 * mask).sum(0)    # (H, A)
            count = count + mask.sum(0)                        # (H, 1)
            furthest = np.maximum(furthest, np.abs(relative * mask).max(0))
        state = np.concatenate(state).astype(np.float64)
        mean = total / np.maximum(count, 1)
        spread = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean ** 2, 0))
        state_floor = np.array([STATE[i].floor for i in self.state_index])
        action_floor = np.array([TOOL_ACTION[i].floor for i in self.action_index])
        action_floor /= np.where(self.action_scale > 0, self.action_scale, 1)  # asinh(x / s) is x / s here
        self.stats = {'state_mean': state.mean(0), 'state_std': np.maximum(state.std(0), state_floor),
                      'action_mean': mean, 'action_std': np.maximum(spread, action_floor)}
        stats, table = self.stats, {}
        for name, spread, floor, reach in (
                *zip(self.state_slots, state.std(0), state_floor,
                     np.abs((state - stats['state_mean']) / stats['state_std']).max(0)),
                *zip([f'action {n}' for n in self.action_slots], spread.max(0), action_floor,
                     ((furthest + np.abs(mean)) / stats['action_std']).max(0))):
            if spread < floor:
                table[name] = f'does not move: spread {spread:.2g} is below its floor {floor:.2g}'
            elif reach > FAR:
                table[name] = f'reaches {reach:.0f} spreads of {spread:.2g}'
        return table


# -----------------------------------------------------------------------------
# Dataset

FIT_WINDOWS = 200_000      # at most so many are looked at for the normaliser
FAR = 10                   # spreads


def map_bytes(path):
    """A file as bytes that are read where they are touched. numpy's own mapping keeps the file open, and most
    systems let a process have 1,024 files open."""
    return torch.from_file(path, False, os.path.getsize(path), dtype=torch.uint8).numpy()


def in_validation(task, seed, fraction):
    """Whether an episode is held out: by hash, so that recording more episodes never moves one across."""
    return zlib.crc32(f'{task}/{seed}'.encode()) / 2 ** 32 < fraction


TIMES = {      # of uniform numbers, by inversion
    'beta': lambda u: u ** (1 / 1.5), 'uniform': lambda u: u, 'shifted': lambda u: 3 * u / (1 + 2 * u)}


class Dataset:
    """
    Windows of H actions over a folder of episodes. What is as wide as a picture or a state stays in the
    mapped files and is read a row per sample; in memory are actions and a few numbers per row. `batch` is a
    pure function of (seed, step).

    split        'train', 'val' or None (all); val_fraction of the episodes is held out, by hash of the seed
    tail         windows that start more than `tail` rows after the goal was reached for good are not sampled
    draws        K, (noise, time) draws per chunk; they share one reading of the images
    read_text    probability that a draw sees the subtask text
    pure_noise   share of draws with time 1; the others are distributed as `times` says: 'beta', Beta(1.5, 1)
                 as in pi0 and EO-1; 'uniform'; 'shifted' towards noise, 3u / (1 + 2u) as in Esser et al. 2024
    gain         spread of the colour gain, per image channel; brightness: of the offset, in 0..255
    shift        largest image shift, pixels; state_noise: in normalised units
    ask          probability that a sample asks for another goal in the same scene, see `batch`
    prefix_rows  up to so many first rows of a draw are given clean, as when they are being executed already
    questions    probability that a sample is a question about the scene and its answer, see questions.py
    weights      of the folders in `source`: their shares of the samples; (): as many as they have windows
    """

    def __init__(self, source, processor, split=None, val_fraction=0.05, tail=3, draws=1, read_text=0.5,
                 gain=0.0, brightness=0.0, shift=0, state_noise=0.0, ask=0.0, pure_noise=0.0,
                 questions=0.0, prefix_rows=0, times='beta', weights=()):
        if times not in TIMES:
            raise ValueError(f'times {times!r}, expected one of {", ".join(TIMES)}')
        self.processor, self.draws, self.read_text, self.ask = processor, draws, read_text, ask
        self.questions, self.prefix_rows = questions, prefix_rows
        self.gain, self.brightness, self.shift, self.state_noise = gain, brightness, shift, state_noise
        self.pure_noise, self.times = pure_noise, times
        self.paths, self.names, self.askable, self.subtasks, referents, held = [], [], [], [], [], []
        wide = ('state', 'time', 'scene', *(f'image/{camera}' for camera in processor.cameras))
        self.files = {name: [] for name in wide}        # an array per episode, a view of its mapped file
        parts = {name: [] for name in ('tool_action', 'subtask_id', 'kicked', 'goal')}
        folders = str(source).split(',') if isinstance(source, (str, os.PathLike)) else list(map(str, source))
        for path in episode_paths(folders):
            arrays, header = read_episode(path, map_bytes)
            missing = [*parts.keys() - arrays.keys(), *self.files.keys() - arrays.keys(),
                       *{'askable', 'referents'} - header.keys(),
                       *['referents by row'] * (len(header.get('referents', [()])[0]) == 8)]
            processor.check_header(header, path)
            if missing:
                raise ValueError(f'{path} has no {", ".join(missing)}: record it anew')
            if split and (split == 'val') != in_validation(header['task'], header['seed'], val_fraction):
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
            raise ValueError(f'no episode of {source} is in the {split!r} part (val_fraction {val_fraction})')
        lengths = np.array([len(t) for t in parts['goal']])
        self.tool_action, self.subtask_id = (np.concatenate(parts[k]) for k in ('tool_action', 'subtask_id'))
        # What the words of each goal that could have been asked for in the same scene refer to (spans, G, 8),
        # G the most of any episode; a span of rows ends where a plan goes on to its next goal. Where tasks
        # have fewer bricks than others, `none` is the others' number.
        self.n_askable = np.array([len(texts) for texts in self.askable])
        n_bricks = [scene.shape[1] // 12 for scene in self.files['scene']]
        self.n_bricks = max(n_bricks)
        self.start = np.concatenate([[0], np.cumsum(lengths)])           # (E+1,) first row of each episode
        self.referents = np.zeros((sum(map(len, referents)), self.n_askable.max(), 8), np.float32)
        tables, self.spans = iter(self.referents), []                    # (spans,) first row of each
        for start, spans, n in zip(self.start, referents, n_bricks):
            for (first, table), row in zip(spans, tables):
                row[:len(table)] = table
                row[row[:, 2] == n, 2] = self.n_bricks
                self.spans.append(start + first)
        self.episode = np.repeat(np.arange(len(lengths)), lengths)       # (n,) row -> its episode
        self.last = self.start[1:][self.episode] - 1                     # (n,) row -> last row of its episode
        self.held = np.array(held)[self.episode]                         # (n,)
        kicked = np.concatenate(parts['kicked']) > 0
        self.kicks_before = np.concatenate([[0], np.cumsum(kicked)])     # (n+1,)
        self.goal = np.concatenate(parts['goal'])
        # first row from which on the goal holds to the end
        settled = [0 if goal.all() else n - np.argmin(goal[::-1]) for n, goal in zip(lengths, parts['goal'])]
        sampled = [np.arange(n) <= at + tail for n, at in zip(lengths, settled)]
        self.windows = np.flatnonzero(np.concatenate(sampled))           # rows at which a window may start
        self.sources = [(1, self.windows)]                               # (weight, windows) of each
        if weights:
            if len(weights) != len(folders):
                raise ValueError(f'{len(weights)} weights for {len(folders)} folders: {", ".join(folders)}')
            places = {folder.rstrip('/'): i for i, folder in enumerate(folders)}
            of = np.array([places[os.path.dirname(path)] for path in self.paths])[self.episode[self.windows]]
            self.sources = [(w, self.windows[of == i]) for i, w in enumerate(weights) if w]
            empty = [folders[i] for i, w in enumerate(weights) if w and not (of == i).any()]
            if empty:
                raise ValueError(f'{empty[0]} has a weight and no windows in the {split!r} part')
        self._order = functools.lru_cache(2 * len(self.sources))(self._shuffled)     # across epochs: two each

    def __len__(self):
        return len(self.windows)

    def fingerprint(self):
        """Short hash of what is in the files: resuming on other data would not be resuming."""
        digest = hashlib.sha256(np.ascontiguousarray(self.tool_action))
        for name in self.names:
            digest.update(name.encode())
        return digest.hexdigest()[:16]

    def header(self, episode):
        """The whole header of an episode, read anew."""
        return read_episode(self.paths[episode])[1]

    def read(self, name, rows):
        """Rows of a wide array ('state', 'time', 'image/<camera>') out of the mapped files, (n, ...)."""
        arrays, episodes = self.files[name], self.episode[rows]
        out = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for i, (episode, at) in enumerate(zip(episodes.tolist(), (rows - self.start[episodes]).tolist())):
            out[i] = arrays[episode][at]
        return out

    def scene(self, rows):
        """Where each camera sees the bricks, m and rad: (B, N, n_bricks, 4), nan for those there are not."""
        out = np.full((len(rows), len(self.processor.cameras), self.n_bricks, 4), np.nan, np.float32)
        for i, row in enumerate(rows):
            episode = self.episode[row]
            poses = self.files['scene'][episode][row - self.start[episode]].reshape(3, -1, 4)
            out[i, :, :poses.shape[1]] = poses[list(self.processor.frames)]
        return out

    # ---- windows, by arrays of row numbers that count through all episodes
    def chunk(self, rows):
        """-> (B, H, 15) absolute actions; past the end of the episode the last command is held."""
        at = rows[:, None] + np.arange(self.processor.horizon)
        return self.tool_action[np.minimum(at, self.last[rows][:, None])]

    def chunk_mask(self, rows):
        """-> (B, H) bool. Row j counts if nothing kicked the robot in rows 0..j-1 of the window: from a kick
        on, the recorded actions answer another situation. Past the end rows count after a success."""
        at, last = rows[:, None] + np.arange(self.processor.horizon), self.last[rows][:, None]
        undisturbed = self.kicks_before[np.minimum(at, last + 1)] == self.kicks_before[rows][:, None]
        return undisturbed & ((at <= last) | self.held[rows][:, None])

    def instruction(self, row, k=0):
        """What the row's episode was asked for; k > 0: what else could have been asked in that scene."""
        return self.askable[self.episode[row]][k]

    def subtask(self, row):
        return self.subtasks[self.episode[row]][self.subtask_id[row]]

    def questions_at(self, row, rng):
        """[(kind, question, answer)] of a row, each in one of its wordings."""
        episode = self.episode[row]
        recorded = dict(subtask_id=self.subtask_id, goal=self.goal)
        first = self.start[episode]
        arrays = {k: v[first:self.start[episode + 1]] for k, v in recorded.items()}
        return questions.at(self.header(episode), arrays, row - first, rng)

    def row(self, row):
        """Recorded frame as the observation dict the world gave."""
        rows = np.array([row])
        time, state = (self.read(name, rows)[0] for name in ('time', 'state'))
        obs = {'time': float(time), **observation_from_state(state)}
        obs |= {f'image/{c}': image for c, image in zip(self.processor.cameras, self.gather_images(rows)[0])}
        return obs | {'instruction': self.instruction(row)}

    def gather_images(self, rows):
        """-> (B, N, h, w, 3) uint8."""
        size, cameras = self.processor.image_size, self.processor.cameras
        out, files = np.empty((len(rows), len(cameras), size, size, 3), np.uint8), self.files
        files = [files[f'image/{camera}'] for camera in cameras]
        episodes = self.episode[rows]
        for i, (episode, at) in enumerate(zip(episodes.tolist(), (rows - self.start[episodes]).tolist())):
            for n, images in enumerate(files):
                out[i, n] = images[episode][at]
        return out

    def action_error(self, rows, chunk):
        """Mean absolute error of (B, H, A) chunks over the rows that count, by kind of slot, in its unit: of
        all rows, and of rows 1, 2, 4 .. ahead ('position_mm@4')."""
        processor, result = self.processor, {}
        predicted = processor.decode_actions(chunk, self.read('state', rows)[:, COMMAND])
        error, mask = np.abs(predicted - self.chunk(rows)), self.chunk_mask(rows)       # (B, H, 15), (B, H)
        ahead = [2 ** i for i in range(processor.horizon.bit_length())]
        for name, pattern, scale in (('position_mm', '*/tool_[xyz]', 1e3), ('rotation_rad', '*/tool_r?', 1),
                                     ('gripper_mm', '*/gripper', 1e3), ('spine_rad', 'spine_z', 1)):
            names = fnmatch.filter(processor.action_slots, pattern)
            if names:
                columns = [TOOL_ACTION_NAMES.index(slot) for slot in names]
                result[name] = float(error[mask][:, columns].mean() * scale)
                for n in ahead:
                    there = error[:, n - 1][mask[:, n - 1]]
                    result[f'{name}@{n}'] = float(there[:, columns].mean() * scale) if len(there) else 0.0
        return result

    # ---- batches
    def _shuffled(self, source, seed, epoch):
        # the first source's order is that of a data set without weights
        key = [seed, epoch, source] if source else [seed, epoch]
        return np.random.default_rng(key).permutation(len(self.sources[source][1]))

    def _in_order(self, source, at, seed):
        """Windows number `at` of a source, which goes on through epochs: none is left out of any."""
        windows, n = self.sources[source][1], len(self.sources[source][1])
        order = [self._order(source, seed, int(epoch))[at[at // n == epoch] % n]
                 for epoch in np.unique(at // n)]
        return windows[np.concatenate(order)] if order else windows[:0]

    def sample_rows(self, step, batch_size, seed):
        """Rows of the global batch of a step. Sources take turns evenly: source 0 takes sample i wherever its
        share of i passes a whole number, source 1 likewise of what is left, and so on."""
        at = np.arange(step * batch_size, (step + 1) * batch_size)
        rows, mine = np.empty(batch_size, np.int64), np.arange(batch_size)
        left = sum(weight for weight, _ in self.sources)
        for source, (weight, _) in enumerate(self.sources):
            last = source == len(self.sources) - 1
            share = 1 << 30 if last else round(weight / left * (1 << 30))      # in whole numbers: exact
            before, after = at * share >> 30, (at + 1) * share >> 30
            taken = after > before
            rows[mine[taken]] = self._in_order(source, before[taken], seed)
            mine, at, left = mine[~taken], (at - before)[~taken], left - weight
        return rows

    def batch(self, step, batch_size, rank=0, world_size=1, seed=0):
        """Slice `rank` of the global batch of `step`: the keys model.VLA reads, and those that `augment` uses
        up. Everything random is drawn for the global batch, so that the number of ranks changes no number.
        n_rows and n_tokens are the loss's denominators: global counts divided by world_size."""
        if batch_size % world_size:
            raise ValueError(f'global batch {batch_size} does not divide into {world_size} slices')
        processor, B, K, N = self.processor, batch_size, self.draws, len(self.processor.cameras)
        H, A, S = processor.horizon, processor.action_dim, processor.state_dim
        rng = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))
        draws = {
            'noise': torch.randn(B, K, H, A, generator=rng),
            'time': 0.001 + 0.999 * TIMES[self.times](torch.rand(B, K, generator=rng)),
            'read_text': torch.rand(B, K, generator=rng) < self.read_text,
            'gain': 1 + self.gain * torch.randn(B, 1, 1, 1, 3, generator=rng),
            'offset': self.brightness * torch.randn(B, 1, 1, 1, 1, generator=rng),
            'shift': torch.randint(-self.shift, self.shift + 1, (B, N, 2), generator=rng),
            'state_noise': self.state_noise * torch.randn(B, S, generator=rng)}
        draws['time'].masked_fill_(torch.rand(B, K, generator=rng) < self.pure_noise, 1.0)
        ask = torch.rand(B, 2, generator=rng).numpy()
        rows = self.sample_rows(step, batch_size, seed)
        # Some samples ask for something else than what the episode was about: there is no action to learn
        # from them, but the answer to `where` needs the words, because what the arms are doing no longer
        # gives it away.
        others = self.n_askable[self.episode[rows]] - 1
        asked = np.where(ask[:, 0] < self.ask, np.ceil(ask[:, 1] * others).astype(int), 0)     # 0: as it was
        prompts = [processor.prompt_ids(self.instruction(row, k), None if k else self.subtask(row))
                   for row, k in zip(rows, asked)]
        quiz = torch.rand(B, generator=rng).numpy() < self.questions
        words = np.random.default_rng([seed, step])
        for i in np.flatnonzero(quiz):
            pairs = self.questions_at(rows[i], words)
            kinds = sorted({kind for kind, *_ in pairs})
            kind = kinds[words.integers(len(kinds))]         # every kind as often as it can be asked
            pairs = [pair for pair in pairs if pair[0] == kind]
            _, question, answer = pairs[words.integers(len(pairs))]
            prompts[i] = processor.prompt_ids(question, answer, True)
        longest = max(prompts, key=lambda parts: len(parts[0]) + len(parts[1]))
        if self.prefix_rows:
            given = torch.arange(H) < torch.randint(self.prefix_rows + 1, (B, K, 1), generator=rng)
            draws['time'] = draws['time'][..., None].expand(B, K, H).masked_fill(given, 0.0)
        mine = slice(rank * B // world_size, (rank + 1) * B // world_size)
        n, state = len(rows[mine]), self.read('state', rows[mine])
        # the longest prompt of all ranks sets the width of every rank's batch
        batch = processor.assemble(self.gather_images(rows[mine]), state, prompts[mine] + [longest])
        batch = {k: v[:n] for k, v in batch.items()} | {k: v[mine] for k, v in draws.items()}
        batch['state'] += batch.pop('state_noise')
        actions = processor.normalise_actions(self.chunk(rows[mine]), state[:, COMMAND])
        mask = self.chunk_mask(rows) & ((asked == 0) & ~quiz)[:, None]
        n_rows = mask.sum() if not self.prefix_rows else (mask[:, None] & ~given.numpy()).sum() / K
        n_tokens = sum(len(assistant) for _, assistant in prompts)
        referents = self.referents[np.searchsorted(self.spans, rows, 'right') - 1, asked]
        referents[quiz] = -1                             # a question refers to nothing that is to be done
        return batch | {'scene': torch.from_numpy(self.scene(rows[mine])),
                        'referents': torch.from_numpy(referents[mine]),
                        'actions': torch.from_numpy(actions), 'action_mask': torch.from_numpy(mask[mine]),
                        'n_rows': torch.tensor(n_rows / world_size, dtype=torch.float32),
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
        flat = images.flatten(3).float()     # (B, N, h, w*3): an inner loop of 3 channels is 3 times slower
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
# commands

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
    elif command == 'merge' and len(rest) > 2:
        link_episodes(episode_paths(rest[1:]), rest[0])
    elif command == 'split' and len(rest) == 2:
        paths, parts = episode_paths(rest[0]), {True: [], False: []}
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
