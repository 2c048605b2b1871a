"""From an observation to model input, and from a chunk back to commands: the same for training and
acting.

processor = Processor(cameras, 96, ('command/*',), ('*/tool_[xyz]',), 16, 10, tokenizer)
processor.fit(dataset)                          # the normaliser, of a data.Dataset
batch = processor.encode([observation])         # live from the world, or of a recorded frame
actions = processor.decode_actions(net.act(batch), observation['tool_command'][None])
"""

# S state slots, A action slots, H horizon, B batch, N cameras, L tokens
import functools
import hashlib

import numpy as np
import tokenizers
import torch

from episode import (
    ARMS,
    COMMAND,
    POSITION,
    ROTVEC,
    SPINE,
    STATE,
    STATE_NAMES,
    TOOL_ACTION,
    TOOL_ACTION_NAMES,
    TOOL_POSE,
    quat_from_rotvec,
    quat_inv,
    quat_mul,
    quat_rotate,
    rotvec_from_quat,
    slots,
    state_vector,
    write_atomic,
)

# -----------------------------------------------------------------------------
# tool actions relative to the command in force when the chunk starts: small numbers around zero,
# the same for a brick anywhere on the table. Position and rotation in the frame of the commanded
# tool, spine as a difference, gripper absolute.


def anchor(actions, command):
    """(..., H, 15) absolute tool actions, (..., 15) command in force -> (..., H, 15) relative,
    float64.
    """
    actions = np.asarray(actions, np.float64)
    command = np.asarray(command, np.float64)[..., None, :]
    out = actions.copy()
    out[..., SPINE] -= command[..., SPINE]
    for p, r in zip(POSITION, ROTVEC):
        back = quat_inv(quat_from_rotvec(command[..., r]))
        out[..., p] = quat_rotate(back, actions[..., p] - command[..., p])
        out[..., r] = rotvec_from_quat(quat_mul(back, quat_from_rotvec(actions[..., r])))
    return out


def unanchor(relative, command):
    """Exact inverse of `anchor` (rotation vectors come back with angle <= pi)."""
    relative = np.asarray(relative, np.float64)
    command = np.asarray(command, np.float64)[..., None, :]
    out = relative.copy()
    out[..., SPINE] += command[..., SPINE]
    for p, r in zip(POSITION, ROTVEC):
        turn = quat_from_rotvec(command[..., r])
        out[..., p] = command[..., p] + quat_rotate(turn, relative[..., p])
        out[..., r] = rotvec_from_quat(quat_mul(turn, quat_from_rotvec(relative[..., r])))
    return out


# -----------------------------------------------------------------------------
# tokenizer: byte-level BPE small enough to train from scratch; every word of our templates is one
# token

SPECIAL_TOKENS = (
    '<|pad|>',
    '<|image_pad|>',
    '<|state_pad|>',
    '<|vla|>',
    '<|action_start|>',
    '<|action_pad|>',
    '<|action_pass|>',
    '<|action_end|>',
    '<|im_start|>',
    '<|im_end|>',
)
VOCABULARY_SIZE = 1024
TEMPLATE_WORDS = """the a of on onto in into to with and is it its both over under down up at from then now
put press place take goes join hold keep give pull apart off reach grasp lift carry align release retreat
wait rest hand hands left right near far front back top end corner cell row column plate baseplate brick
bricks stud studs air lower upper red blue yellow green white orange : ; , . ? 2x2 2x3 2x4 2x6 2x8 2x10 0
1 2 3 4 5 6 7 8 9 across after are assemble away be below beside black bridge bring build by centre clear
close comes connect crosswise did does done edges finished flush follow for further gets gives go half has
holds how joined lay lies lined long make many middle move nearer next one other part pass pick plan
plugged pressed presses pulls puts quarter remove says separate set sit small something span square stack
step table task this together tower towers turned two undo unplug unplugs went what where which wrong you
fell broke joint nothing none yes no lengthwise pointing sideways them""".split()


def make_tokenizer(texts, path):
    """Train on the words of `texts` and TEMPLATE_WORDS, each equally often: rare ones stay whole,
    too. Writes `path`. -> the tokenizer, the words that take more than one token
    """
    words = sorted({word for text in texts for word in text.split()} | set(TEMPLATE_WORDS))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces = tokenizers.Regex(r' ?[\p{L}\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+')  # '2x4' is one piece
    tokenizer.normalizer = tokenizers.normalizers.Prepend(
        ' '
    )  # the first word is spelt like the others
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(pieces, 'isolated'),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # any text can be encoded
    tokenizer.train_from_iterator([' '.join(words)] * 10, trainer)
    write_atomic(path, tokenizer.to_str(pretty=True).encode())
    return tokenizer, [word for word in words if len(tokenizer.encode(word).ids) > 1]


# -----------------------------------------------------------------------------


def tool_frames(states):
    """Measured poses of the hands in the torso frame: (B, 79) -> (B, 2, 4) x, y, z, yaw; m, rad;
    float32.
    """
    position, quat = (np.reshape(states[:, columns], (len(states), 2, -1)) for columns in TOOL_POSE)
    w, x, y, z = np.moveaxis(quat, -1, 0)
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return np.concatenate([position, yaw[..., None]], -1).astype(np.float32)


FIT_WINDOWS = 200_000  # at most so many are looked at for the normaliser
FAR = 10  # spreads


class Processor:
    """Everything that stands between an observation and the model, and between the model and an
    action. It lives in the checkpoint's meta.json; a rollout takes it from there and from nowhere
    else.

    cameras        names, in the order the model sees them
    image_size     pixels, square
    state_slots    names or patterns out of STATE_NAMES
    action_slots   names or patterns out of TOOL_ACTION_NAMES; the command in force is held in the
                   others
    horizon        H, rows of a chunk, at control_hz
    tokenizer      the JSON text of a `tokenizers` file
    log_scale_m        m, tenths of a rad: moves are linear up to about this and logarithmic beyond, so
                   that the
                   last millimetre before a press weighs as much in the loss as the way to it; 0:
                   linear
    stats          mean and spread per state slot, (S,), and per row and action slot, (H, A): see
                   `fit`
    stats_of       `Processor.stats_of` of the one that they were made for; None: not known
    template       'minimal', or 'qwen': EO-1's prompt, for a tokenizer of Qwen's with EO-1's tokens
                   added
    pad_dims       S and A are filled up with zeros to so many, 32 in EO-1; 0: left as they are
    """

    def __init__(
        self,
        cameras,
        image_size,
        state_slots,
        action_slots,
        horizon,
        control_hz,
        tokenizer,
        tokens_per_camera=4,
        action_space='tool',
        template='minimal',
        log_scale_m=0.0,
        pad_dims=0,
        stats=None,
        stats_of=None,
    ):
        for name, value, known in (
            ('action_space', action_space, ('tool',)),
            ('template', template, ('minimal', 'qwen')),
        ):
            if value not in known:
                raise ValueError(f'{name} {value!r}, expected {" or ".join(map(repr, known))}')
        self.cameras = tuple(cameras)
        self.image_size = image_size
        # what carries each camera: 0 torso, 1 left hand, 2 right hand
        self.frames = tuple(
            ARMS.index(c.split('/')[0]) + 1 if '/' in c else 0 for c in self.cameras
        )
        self.state_slots = slots(state_slots, STATE_NAMES)
        self.action_slots = slots(action_slots, TOOL_ACTION_NAMES)
        self.horizon = horizon
        self.control_hz = control_hz
        self.tokens_per_camera = tokens_per_camera
        self.action_space = action_space
        self.template = template
        self.log_scale_m = log_scale_m
        self.state_dim, self.action_dim = (
            pad_dims or len(s) for s in (self.state_slots, self.action_slots)
        )
        self.pad_dims = pad_dims
        if self.state_dim < len(self.state_slots) or self.action_dim < len(self.action_slots):
            raise ValueError(
                f'{len(self.state_slots)} state and {len(self.action_slots)} action slots '
                f'are more than pad_dims {pad_dims}'
            )
        self.tokenizer_json = tokenizer
        self.tokenizer = tokenizers.Tokenizer.from_str(tokenizer)
        stands_for = {'<|pad|>': '<|endoftext|>'} if template == 'qwen' else {}
        self.token_id = {
            name: self.tokenizer.token_to_id(stands_for[name] if name in stands_for else name)
            for name in SPECIAL_TOKENS
        }
        missing = [name for name, i in self.token_id.items() if i is None]
        if missing:
            raise ValueError(
                f'tokenizer lacks {", ".join(missing)}; make one: python data.py tokenizer'
            )
        self.state_index = np.array([STATE_NAMES.index(n) for n in self.state_slots])
        self.action_index = np.array([TOOL_ACTION_NAMES.index(n) for n in self.action_slots])
        units = {'m': log_scale_m, 'rad': 10 * log_scale_m}
        self.action_scale = np.array(
            [
                0 if n.endswith('gripper') else units[TOOL_ACTION[i].unit]
                for n, i in zip(self.action_slots, self.action_index)
            ]
        )  # (A,)
        self.stats = stats and {k: np.asarray(v, np.float64) for k, v in stats.items()}
        if stats and stats_of not in (None, self.stats_of):
            raise ValueError(
                f'the normaliser was made for other numbers ({stats_of}) than these settings '
                f'give ({self.stats_of}): it depends on slots, horizon, rate and log_scale_m'
            )

    @property
    def stats_of(self):
        """Short hash of all that gives the normalised numbers their meaning."""
        names = (
            'state_slots',
            'action_slots',
            'horizon',
            'control_hz',
            'action_space',
            'log_scale_m',
        )
        return hashlib.sha256(repr([getattr(self, name) for name in names]).encode()).hexdigest()[
            :16
        ]

    def to_dict(self):
        plain = (
            'cameras',
            'image_size',
            'state_slots',
            'action_slots',
            'horizon',
            'control_hz',
            'tokens_per_camera',
            'action_space',
            'template',
            'log_scale_m',
            'pad_dims',
        )
        return {
            **{k: list(v) if isinstance(v := getattr(self, k), tuple) else v for k in plain},
            'tokenizer': self.tokenizer_json,
            'stats': self.stats and {k: v.tolist() for k, v in self.stats.items()},
            'stats_of': self.stats_of,
            'state_units': [STATE[i].unit for i in self.state_index],
            'action_units': [TOOL_ACTION[i].unit for i in self.action_index],
        }

    @classmethod
    def from_dict(cls, d):
        if 'compand' in d:  # the name of log_scale_m in checkpoints of earlier revisions
            d = d | {'log_scale_m': d['compand']}
        unused = ('state_units', 'action_units', 'compand')
        return cls(**{k: v for k, v in d.items() if k not in unused})

    # ---- agreement with a simulated world or a recorded episode
    def check_world(self, metadata):
        """Raise ValueError, naming the differences, where a world (World.metadata()) does not
        fit.
        """
        size = {'height': metadata['image_size'], 'width': metadata['image_size']}
        self._compare(
            'the world',
            dict.fromkeys(metadata['cameras'], size),
            metadata['control_hz'],
            metadata['tool_action_names'],
        )

    def check_header(self, header, path):
        self._compare(path, header['cameras'], header['control_hz'], header['tool_action_slots'])

    def _compare(self, where, cameras, control_hz, action_names):
        faults = []
        for name in self.cameras:
            if name not in cameras:
                faults.append(f'no camera {name!r} (there are: {", ".join(cameras)})')
            elif {cameras[name]['height'], cameras[name]['width']} != {self.image_size}:
                faults.append(
                    f'camera {name!r} gives {cameras[name]["height"]}x{cameras[name]["width"]} px, '
                    f'the policy sees {self.image_size} px squares'
                )
        if control_hz != self.control_hz:
            faults.append(f'control rate {control_hz} Hz, the policy acts at {self.control_hz} Hz')
        if tuple(action_names) != TOOL_ACTION_NAMES:
            faults.append(
                f'action slots {", ".join(action_names)}, expected {", ".join(TOOL_ACTION_NAMES)}'
            )
        if faults:
            raise ValueError(f'{where} does not fit the policy: ' + '; '.join(faults))

    # ---- text
    def prompt(self, instruction, subtask=None, question=False):
        """-> user part, assistant part ('' without subtask): the token sequence as text. With
        `question` the two are a question and its answer: no <|vla|>, which asks for action, and
        <|im_end|> at the end.
        """
        for text in (instruction, subtask or ''):
            if '<|' in text:
                raise ValueError(f'{text!r}: "<|" would forge a special token')
        image = '<|image_pad|>' * self.tokens_per_camera
        assistant = (
            '' if subtask is None else subtask + ('<|im_end|>' if question else '<|action_start|>')
        )
        if self.template == 'minimal':
            text = f'{image * len(self.cameras)}<|state_pad|>{instruction}'
            return text + ('<|im_start|>' if question else '<|vla|>'), assistant
        images = f'<|vision_start|>{image}<|vision_end|>' * len(self.cameras)
        return (
            '<|im_start|>system\nYou are a helpful physical assistant.<|im_end|>\n<|im_start|>user\n'
            f'{images}<|state_start|><|state_pad|><|state_end|>{instruction}'
            f'{"" if question else "<|vla|>"}<|im_end|>\n<|im_start|>assistant\n'
        ), assistant

    @functools.lru_cache(maxsize=100_000)
    def prompt_ids(self, instruction, subtask=None, question=False):
        """-> token ids of the user part, of the assistant part."""
        parts = self.prompt(instruction, subtask, question)
        return tuple(tuple(self.tokenizer.encode(part).ids) if part else () for part in parts)

    def decode_text(self, ids):
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def pad(self, prompts):
        """[(user ids, assistant ids)] -> input_ids, labels (B, L), user_len, total_len (B,),
        right-padded.
        """
        user_len = torch.tensor([len(user) for user, _ in prompts])
        total_len = torch.tensor([len(user) + len(assistant) for user, assistant in prompts])
        shape = (len(prompts), int(total_len.max()))
        ids = torch.full(shape, self.token_id['<|pad|>'])
        labels = torch.full(shape, -100)
        for i, (user, assistant) in enumerate(prompts):
            ids[i, : total_len[i]] = torch.tensor(user + assistant)
            labels[i, user_len[i] : total_len[i]] = torch.tensor(assistant, dtype=torch.int64)
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
        return np.pad(
            values, [(0, 0)] * (values.ndim - 1) + [(0, self.pad_dims - values.shape[-1])]
        )

    def relative_actions(self, actions, commands):
        """(B, H, 15) absolute tool actions, (B, 15) command in force -> (B, H, A) anchored and
        companded.
        """
        relative = anchor(actions, commands)[..., self.action_index]
        scale = self.action_scale
        return np.where(scale > 0, np.arcsinh(relative / np.where(scale > 0, scale, 1)), relative)

    def normalise_actions(self, actions, commands):
        """(B, H, 15) absolute tool actions, (B, 15) command in force -> (B, H, A) float32. Or the
        first rows of a chunk only.
        """
        relative = self.relative_actions(actions, commands)
        mean, std = (
            self.stats[name][: relative.shape[1]] for name in ('action_mean', 'action_std')
        )
        return self.fill_up(((relative - mean) / std).astype(np.float32))

    def decode_actions(self, chunk, commands):
        """Inverse: (B, H, A) normalised, (B, 15) command in force -> (B, H, 15) absolute actions,
        float32.
        """
        chunk = np.asarray(chunk, np.float64)[..., : len(self.action_slots)]
        commands = np.asarray(commands, np.float64)
        hold = np.repeat(commands[:, None], chunk.shape[1], 1)  # (B, H, 15)
        relative = anchor(hold, commands)
        chunk = chunk * self.stats['action_std'] + self.stats['action_mean']
        scale = self.action_scale
        relative[..., self.action_index] = np.where(
            scale > 0, scale * np.sinh(np.clip(chunk, -9, 9)), chunk
        )
        out = unanchor(relative, commands)
        for columns in ROTVEC:  # an arm that predicts no rotation keeps exactly the commanded one
            if not set(columns) & set(self.action_index):
                out[..., columns] = hold[..., columns]
        return out.astype(np.float32)

    def encode(self, rows, subtasks=None, questions=None):
        """Observations -> batch for the model. `rows` are observation dicts, live from the world or
        `Dataset.row`: the images of our cameras, the state fields and the instruction are read.
        With `subtasks`, one text per row, the batch contains the assistant part and the model acts
        having read it. `questions`, one per row, take the place of the instructions: VLA.generate
        answers them.
        """
        for camera in self.cameras:
            shape = np.shape(rows[0][f'image/{camera}'])
            if shape != (self.image_size, self.image_size, 3):
                raise ValueError(
                    f'image/{camera} is {shape}, the model sees {self.image_size} px squares'
                )
        subtasks = [None] * len(rows) if subtasks is None else subtasks
        images = np.stack([[row[f'image/{camera}'] for camera in self.cameras] for row in rows])
        states = np.stack([state_vector(row) for row in rows])
        prompts = [
            self.prompt_ids(row['instruction'], subtask) for row, subtask in zip(rows, subtasks)
        ]
        if questions is not None:
            prompts = [self.prompt_ids(question, None, True) for question in questions]
        return self.assemble(images, states, prompts)

    def assemble(self, images, states, prompts):
        """(B, N, h, w, 3) uint8, (B, 79), prompt ids -> batch. The one place to put model inputs
        together.
        """
        state = torch.from_numpy(self.normalise_state(states))
        return {
            'images': torch.from_numpy(images),
            'state': state,
            'tool': torch.from_numpy(tool_frames(states)),
            **self.pad(prompts),
        }

    def fit(self, dataset):
        """Mean and spread of exactly the tensors the loss sees: anchored, masked, the sampled
        windows. A spread below the slot's floor becomes the floor: a slot that does not move must
        not turn noise into signal.
        -> {slot: what is wrong with it}: constant as far as the model is concerned, or reaching so
        far that its spread says little
        """
        # of a million windows an even selection tells as much
        windows = dataset.windows[:: -(-len(dataset.windows) // FIT_WINDOWS)]
        state = []
        total = 0
        square = 0
        count = 0
        furthest = 0
        for start in range(0, len(windows), 65_536):
            rows = windows[start : start + 65_536]
            states = dataset.read('state', rows)
            state.append(states[:, self.state_index])
            relative = self.relative_actions(dataset.chunk(rows), states[:, COMMAND])
            mask = dataset.chunk_mask(rows)[..., None]
            total = total + (relative * mask).sum(0)  # (H, A)
            square = square + (relative**2 * mask).sum(0)  # (H, A)
            count = count + mask.sum(0)  # (H, 1)
            furthest = np.maximum(furthest, np.abs(relative * mask).max(0))
        state = np.concatenate(state).astype(np.float64)
        mean = total / np.maximum(count, 1)
        spread = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean**2, 0))
        state_floor = np.array([STATE[i].floor for i in self.state_index])
        action_floor = np.array([TOOL_ACTION[i].floor for i in self.action_index])
        action_floor /= np.where(
            self.action_scale > 0, self.action_scale, 1
        )  # asinh(x / s) is x / s here
        self.stats = {
            'state_mean': state.mean(0),
            'state_std': np.maximum(state.std(0), state_floor),
            'action_mean': mean,
            'action_std': np.maximum(spread, action_floor),
        }
        stats = self.stats
        table = {}
        for name, spread, floor, reach in (
            *zip(
                self.state_slots,
                state.std(0),
                state_floor,
                np.abs((state - stats['state_mean']) / stats['state_std']).max(0),
            ),
            *zip(
                [f'action {n}' for n in self.action_slots],
                spread.max(0),
                action_floor,
                ((furthest + np.abs(mean)) / stats['action_std']).max(0),
            ),
        ):
            if spread < floor:
                table[name] = f'does not move: spread {spread:.2g} is below its floor {floor:.2g}'
            elif reach > FAR:
                table[name] = f'reaches {reach:.0f} spreads of {spread:.2g}'
        return table
