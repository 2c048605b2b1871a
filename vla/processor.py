"""From an observation to model input, and from a chunk back to commands: training and acting alike.

processor = Processor(cameras, 96, ('command/*',), ('*/tool_[xyz]',), 16, 10, tokenizer)
processor.fit(dataset)                          # the normaliser, of a data.Dataset
batch = processor.encode([observation])         # live from the world, or of a recorded frame
actions = processor.decode_actions(net.act(batch), observation['tool_command'][None])
"""

# B batch, N cameras, L tokens, H horizon; C all columns of a state or an action, of which the model
# is given S and A
import functools
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch

from episode import (
    ARMS,
    STATE_NAMES,
    TABLES,
    Header,
    Slot,
    Table,
    Tables,
    pose_columns,
    quat_from_rotvec,
    quat_inv,
    quat_mul,
    quat_rotate,
    rotvec_from_quat,
    slot_tables,
    slots,
    state_vector,
    table_of,
)
from instructions import plain
from vla.folder import check_processor
from vla.foresight import Foresight, columns_of
from vla.tokenizer import SPECIAL_TOKENS, parse_tokenizer

# -----------------------------------------------------------------------------
# Actions relative to the command in force when the chunk starts are small numbers around zero, the
# same for a brick anywhere on the table. What that means follows from the kind of a slot: a pose is
# seen in the frame of the commanded tool, a joint as a difference, an absolute slot as it is.

Batch = dict[str, torch.Tensor]  # The table on top of data.py has its keys.
Ids = tuple[tuple[int, ...], ...]  # token ids of a user part and of an assistant part


class Anchors(NamedTuple):
    """Columns of an action that are relative to the command in force."""

    poses: np.ndarray  # (tools, 6) x, y, z, rx, ry, rz
    joints: np.ndarray  # (joints,)


def anchors_of(table: Sequence[Slot]) -> Anchors:
    """The columns of a table of slots by their kind."""
    joints = [i for i, slot in enumerate(table) if slot.kind == 'joint']
    return Anchors(pose_columns(table), np.array(joints, int))


def anchor(actions: np.ndarray, command: np.ndarray, columns: Anchors) -> np.ndarray:
    """(..., H, C) absolute actions, (..., C) command in force -> (..., H, C) relative, float64."""
    actions = np.asarray(actions, np.float64)
    command = np.asarray(command, np.float64)[..., None, :]
    out = actions.copy()
    out[..., columns.joints] -= command[..., columns.joints]
    for pose in columns.poses:
        p = pose[:3]
        r = pose[3:]
        back = quat_inv(quat_from_rotvec(command[..., r]))
        out[..., p] = quat_rotate(back, actions[..., p] - command[..., p])
        out[..., r] = rotvec_from_quat(quat_mul(back, quat_from_rotvec(actions[..., r])))
    return out


def unanchor(relative: np.ndarray, command: np.ndarray, columns: Anchors) -> np.ndarray:
    """Exact inverse of `anchor`; rotation vectors come back with an angle <= pi."""
    relative = np.asarray(relative, np.float64)
    command = np.asarray(command, np.float64)[..., None, :]
    out = relative.copy()
    out[..., columns.joints] += command[..., columns.joints]
    for pose in columns.poses:
        p = pose[:3]
        r = pose[3:]
        turn = quat_from_rotvec(command[..., r])
        out[..., p] = command[..., p] + quat_rotate(turn, relative[..., p])
        out[..., r] = rotvec_from_quat(quat_mul(turn, quat_from_rotvec(relative[..., r])))
    return out


# -----------------------------------------------------------------------------
# pictures and hands


def fit_picture(picture: np.ndarray, size: int) -> np.ndarray:
    """Bring a picture to the square that the model sees; one of that size is returned untouched.

    The sides keep their ratio and black fills the rest, as in openpi's resize_with_pad.

    Args:
        picture: (h, w, 3) uint8 of any size.
        size: Side of the square, pixels.

    Returns:
        (size, size, 3) uint8.

    Raises:
        ValueError: It is no such picture.
    """
    shape = np.shape(picture)
    if len(shape) != 3 or shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f'is {shape}, expected a picture (height, width, 3) of uint8')
    height, width = shape[:2]
    if height == width == size:
        return picture
    scale = size / max(height, width)
    height = max(1, round(height * scale))
    width = max(1, round(width * scale))
    image = PIL.Image.fromarray(np.ascontiguousarray(picture))
    image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
    top = (size - height) // 2
    left = (size - width) // 2
    square = np.zeros((size, size, 3), np.uint8)
    square[top : top + height, left : left + width] = np.asarray(image)
    return square


def hand_columns(state_names: Sequence[str]) -> np.ndarray | None:
    """Where the measured poses of both hands stand in a state: (arms, 7) x, y, z, qw, qx, qy, qz.

    None for a robot that does not measure them: only grounding asks for them.
    """
    axes = ('x', 'y', 'z', 'qw', 'qx', 'qy', 'qz')
    names = [[f'{arm}/tool_{axis}' for axis in axes] for arm in ARMS]
    if not set(state_names).issuperset(np.ravel(names)):
        return None
    return np.array([[state_names.index(name) for name in row] for row in names])


def command_columns(state_names: Sequence[str], action_names: Sequence[str]) -> np.ndarray | None:
    """Where the command in force stands in a state, (C,), as command/<slot of the action>.

    None where a slot is not there: then the action of the row before takes its place.
    """
    names = [f'command/{name}' for name in action_names]
    if not set(state_names).issuperset(names):
        return None
    return np.array([state_names.index(name) for name in names])


def tool_frames(states: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Measured poses of the hands in the torso frame, out of states (..., C).

    Returns:
        (..., arms, 4) x, y, z, yaw; m, rad; float32.
    """
    pose = states[..., columns]  # (..., arms, 7)
    w, x, y, z = np.moveaxis(pose[..., 3:], -1, 0)
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return np.concatenate([pose[..., :3], yaw[..., None]], -1).astype(np.float32)


# -----------------------------------------------------------------------------

SPACES = ('tool', 'joint')  # Either of the action arrays may be learnt.
FIT_WINDOWS = 200_000  # The normaliser looks at so many at most.
STRAY = 100  # times as far from the middle as 98 % of the rows: a slot is named as well
SMALLEST_SPREAD = 1e-9  # A normaliser's floors are a thousand times larger and more.
FAR = 10  # spreads: a slot that reaches further is named before training


def choose_action_slots(patterns: Iterable[str], tables: Tables, space: str) -> tuple[str, ...]:
    """Names of the action slots that patterns ask for, see `episode.slots`.

    Raises:
        ValueError: A pattern matches nothing in this action space, or the space is not there; it
            says so where the other one would do.
    """
    other = SPACES[1 - SPACES.index(space)]
    names = {key: [slot.name for slot in table] for key, table in tables.items()}
    if f'{space}_action' not in names:
        raise ValueError(f'the episodes hold no {space}_action: --action_space={other}')
    try:
        return slots(patterns, names[f'{space}_action'])
    except ValueError as error:
        if f'{other}_action' in names:
            try:
                slots(patterns, names[f'{other}_action'])
            except ValueError:
                raise error from None
            raise ValueError(
                f'{error}; in the other space they match: --action_space={other}'
            ) from None
        raise


class Processor:
    """What stands between an observation and the model, and between the model and an action.

    It lives in the checkpoint's meta.json; a rollout takes it from there and from nowhere else.

    Args:
        cameras: Names, in the order in which the model sees them.
        image_size: Side of the squares that the model sees, pixels.
        state_slots: Names of state slots, or patterns.
        action_slots: Names of slots of the action space, or patterns; in the other slots the
            command in force is held.
        horizon: H, rows of a chunk, at control_hz.
        control_hz: Rows per second.
        tokenizer: The JSON text of a `tokenizers` file.
        tokens_per_camera: Image tokens that the model makes of a picture.
        hide_pictures: The prompt has no places for pictures: the decoder gets poses only.
        action_space: 'tool' learns the array tool_action, 'joint' learns joint_action.
        template: 'minimal', or 'qwen': EO-1's prompt, for a tokenizer of Qwen's with EO-1's tokens.
        log_scale_m: m, tenths of a rad: moves are linear up to about this and logarithmic beyond,
            so that the last millimetre before a press weighs as much in the loss as the way to
            it; 0: linear.
        pad_dims: S and A are filled up with zeros to so many, 32 in EO-1; 0: left as they are.
        plain_words: What the model is told is spelt as instructions.plain does: lower case, without
            punctuation; None: with the minimal template. Published models read it as it is.
        stats: Mean and spread per state slot, (S,), and per row and action slot, (H, A), see `fit`.
        user_tokens: Prompts without an assistant part are padded to so many tokens, so that what
            acts is of one shape, whatever it is asked for; 0: to the longest of a batch.
        foresight: What hands make of commands, see Foresight.weights; None: not learnt.
        stats_of: `Processor.stats_of` of the one that they were made for; None: not known.
        tables: The slots there are, by array, see `episode.slot_tables`; None: our own robot's.
    """

    def __init__(
        self,
        cameras: Iterable[str],
        image_size: int,
        state_slots: Iterable[str],
        action_slots: Iterable[str],
        horizon: int,
        control_hz: float,
        tokenizer: str,
        tokens_per_camera: int = 4,
        hide_pictures: bool = False,
        action_space: str = 'tool',
        template: str = 'minimal',
        log_scale_m: float = 0.0,
        pad_dims: int = 0,
        plain_words: bool | None = None,
        stats: dict[str, Any] | None = None,
        stats_of: str | None = None,
        tables: Tables | None = None,
        user_tokens: int = 0,
        foresight: dict[str, Any] | None = None,
    ):
        for name, value, known in (
            ('action_space', action_space, SPACES),
            ('template', template, ('minimal', 'qwen')),
        ):
            if value not in known:
                raise ValueError(f'{name} {value!r}, expected {" or ".join(map(repr, known))}')
        self.cameras = tuple(cameras)
        self.image_size = image_size
        self.horizon = horizon
        self.control_hz = control_hz
        self.tokens_per_camera = tokens_per_camera
        self.hide_pictures = hide_pictures
        self.action_space = action_space
        self.template = template
        self.log_scale_m = log_scale_m
        self.pad_dims = pad_dims
        self.plain_words = template == 'minimal' if plain_words is None else plain_words
        self.user_tokens = user_tokens
        self.frames = tuple(map(_carrier, self.cameras))
        self._choose_slots(state_slots, action_slots, tables or TABLES)
        self._read_tokenizer(tokenizer)
        self.forget_prompts_after(300_000)
        self.foresight: Foresight | None = None
        if foresight is not None:
            self.foresight = self._new_foresight(foresight)
        self.stats: Any = None  # {name: array}
        if stats:
            self.stats = self._checked_stats(stats)
            if stats_of not in (None, self.stats_of):
                raise ValueError(
                    f'the normaliser was made for other numbers ({stats_of}) than these settings '
                    f'give ({self.stats_of}): it depends on slots, horizon, rate and log_scale_m'
                )

    def _new_foresight(self, weights: dict[str, Any] | None = None) -> Foresight:
        """A Foresight for these states; ValueError where they, or the weights, do not do."""
        columns = columns_of(self.state_names)
        if columns is None or self.command_index is None:
            raise ValueError(
                'chunks that come late need a state that measures the poses, velocities and '
                'openings of two hands and reports the commands in force, as of our own robot in '
                f'tool actions; this one has {len(self.state_names)} slots in the action space '
                f'{self.action_space!r}: --delay=0'
            )
        try:
            return Foresight(columns, self.command_index, weights)
        except (RuntimeError, TypeError, ValueError) as fault:
            said = str(fault).strip().splitlines()[-1].strip()
            raise ValueError(f'foresight holds no weights of its network: {said}') from None

    def _checked_stats(self, stats: dict[str, Any]) -> dict[str, np.ndarray]:
        """Mean and spread as arrays; ValueError where they are not those of these slots."""
        n_state = len(self.state_slots)
        n_action = len(self.action_slots)
        shapes = {
            'state_mean': (n_state,),
            'state_std': (n_state,),
            'action_mean': (self.horizon, n_action),
            'action_std': (self.horizon, n_action),
        }
        if stats.keys() != shapes.keys():
            raise ValueError(f'stats holds {", ".join(stats)}, expected {", ".join(shapes)}')
        arrays = {}
        for name, shape in shapes.items():
            try:
                array = np.asarray(stats[name], np.float64)
            except (ValueError, TypeError):
                raise ValueError(f'stats {name} is no array of numbers {shape}') from None
            if array.shape != shape:
                raise ValueError(f'stats {name} has shape {array.shape}, expected {shape}')
            if not np.isfinite(array).all():
                raise ValueError(f'stats {name} is not finite')
            if name.endswith('_std') and (array < SMALLEST_SPREAD).any():
                raise ValueError(f'stats {name} is {array.min():.4g}, expected spreads above 0')
            arrays[name] = array
        return arrays

    def _choose_slots(
        self, state_slots: Iterable[str], action_slots: Iterable[str], tables: Tables
    ) -> None:
        self.action_slots = choose_action_slots(action_slots, tables, self.action_space)
        self.state_table = tables['state']
        self.action_table = tables[f'{self.action_space}_action']
        self.state_names = tuple(slot.name for slot in self.state_table)
        self.action_names = tuple(slot.name for slot in self.action_table)
        self.state_slots = slots(state_slots, self.state_names)
        self.state_index = np.array([self.state_names.index(n) for n in self.state_slots])
        self.action_index = np.array([self.action_names.index(n) for n in self.action_slots])
        self.anchors = anchors_of(self.action_table)
        self.hands = hand_columns(self.state_names)
        self.command_index = command_columns(self.state_names, self.action_names)
        n_state = len(self.state_slots)
        n_action = len(self.action_slots)
        self.state_dim = self.pad_dims or n_state
        self.action_dim = self.pad_dims or n_action
        if self.state_dim < n_state or self.action_dim < n_action:
            raise ValueError(
                f'{n_state} state and {n_action} action slots are more than pad_dims '
                f'{self.pad_dims}'
            )
        units = {'m': self.log_scale_m, 'rad': 10 * self.log_scale_m}
        scales = []
        for i in self.action_index:
            slot = self.action_table[i]
            linear = slot.kind == 'absolute' or slot.unit not in units
            scales.append(0 if linear else units[slot.unit])
        self.action_scale = np.array(scales)  # (A,); 0: linear

    def _read_tokenizer(self, tokenizer: str) -> None:
        self.tokenizer_json = tokenizer
        self.tokenizer = parse_tokenizer(tokenizer, 'the text of the tokenizer')
        stands_for = {'<|pad|>': '<|endoftext|>'} if self.template == 'qwen' else {}
        self.token_id: dict[str, Any] = {
            name: self.tokenizer.token_to_id(stands_for.get(name, name)) for name in SPECIAL_TOKENS
        }
        missing = [name for name, i in self.token_id.items() if i is None]
        if missing:
            raise ValueError(
                f'tokenizer lacks {", ".join(missing)}; make one: python data.py tokenizer'
            )
        for name, i in self.token_id.items():
            if self.tokenizer.encode(stands_for.get(name, name), add_special_tokens=False).ids != [
                i
            ]:
                raise ValueError(
                    f'tokenizer cuts {name} into pieces: it is none of its added_tokens'
                )

    # ---- what a checkpoint keeps

    @property
    def stats_of(self) -> str:
        """Short hash of all that gives the normalised numbers their meaning."""
        names = (
            'state_slots',
            'action_slots',
            'horizon',
            'control_hz',
            'action_space',
            'log_scale_m',
        )
        values = repr([getattr(self, name) for name in names])
        return hashlib.sha256(values.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """All that `from_dict` needs, for JSON."""
        stats = None
        if self.stats:
            stats = {name: value.tolist() for name, value in self.stats.items()}
        return {
            'cameras': list(self.cameras),
            'image_size': self.image_size,
            'state_slots': list(self.state_slots),
            'action_slots': list(self.action_slots),
            'horizon': self.horizon,
            'control_hz': self.control_hz,
            'tokens_per_camera': self.tokens_per_camera,
            'hide_pictures': self.hide_pictures,
            'action_space': self.action_space,
            'template': self.template,
            'log_scale_m': self.log_scale_m,
            'pad_dims': self.pad_dims,
            'plain_words': self.plain_words,
            'user_tokens': self.user_tokens,
            'foresight': self.foresight.weights() if self.foresight else None,
            'tokenizer': self.tokenizer_json,
            'stats': stats,
            'stats_of': self.stats_of,
            'state_table': _as_columns(self.state_table),
            'action_table': _as_columns(self.action_table),
        }

    @classmethod
    def from_dict(cls, made: dict[str, Any], where: str = '') -> 'Processor':
        """The processor that `to_dict` was asked of, also by earlier revisions.

        Args:
            made: What it gave.
            where: File that this stands in, for the error.
        """
        made = dict(made)
        if 'compand' in made:  # the name of log_scale_m in checkpoints of earlier revisions
            made['log_scale_m'] = made.pop('compand')
        made.setdefault('plain_words', False)  # earlier revisions read what was written
        for name in ('state_units', 'action_units'):  # earlier revisions said no more than units
            made.pop(name, None)
        tables = saved_tables(made)
        for name in ('state_table', 'action_table'):
            made.pop(name, None)
        try:
            return cls(**made, tables=tables)
        except ValueError as fault:
            if not where:
                raise
            raise ValueError(f'{where}: processor: {fault}') from None

    @classmethod
    def of_checkpoint(cls, folder: str, meta: dict[str, Any]) -> 'Processor':
        """The processor of a checkpoint of train.py.

        Args:
            folder: That it stands in, for the error.
            meta: Its meta.json.

        Raises:
            ValueError: It is damaged, or does not fit the model beside it.
        """
        where = f'{folder}/meta.json'
        if 'processor' not in meta:
            raise ValueError(f"{where}: no 'processor': these weights were not written by train.py")
        check_processor(f'{where}: processor', meta['processor'])
        processor = cls.from_dict(meta['processor'], where)
        ours = {
            'state_dim': processor.state_dim,
            'action_dim': processor.action_dim,
            'horizon': processor.horizon,
            'image_pad_id': processor.token_id['<|image_pad|>'],
            'state_pad_id': processor.token_id['<|state_pad|>'],
            'action_start_id': processor.token_id['<|action_start|>'],
        }
        sizes = dict(
            image_size=processor.image_size,
            n_cameras=len(processor.cameras),
            tokens_per_camera=processor.tokens_per_camera,
            hide_pictures=processor.hide_pictures,
        )
        ours |= {field: value for field, value in sizes.items() if field in meta['model']}
        for field, value in ours.items():
            theirs = meta['model'][field]
            if theirs != value:
                raise ValueError(f'{where}: model {field} is {theirs}, the processor gives {value}')
        n_words = processor.tokenizer.get_vocab_size()
        if n_words > meta['model']['vocab_size']:
            raise ValueError(
                f'{where}: model vocab_size is {meta["model"]["vocab_size"]}, the tokenizer has '
                f'{n_words} words'
            )
        return processor

    # ---- agreement with a simulated world or a recorded episode

    def check_world(self, metadata: dict[str, Any]) -> None:
        """Raise ValueError, naming the differences, where a world does not fit.

        Args:
            metadata: World.metadata().
        """
        faults = self._camera_faults(metadata['cameras'])
        size = metadata['image_size']
        if size != self.image_size:
            faults.append(
                f'its cameras give {size}x{size} px, the policy sees {self.image_size} px squares'
            )
        faults += self._rate_faults(metadata['control_hz'])
        space = metadata.get('action_space', 'tool')  # a world that does not say takes tool actions
        if space != self.action_space:
            faults.append(f'it takes {space} actions, the policy gives {self.action_space} actions')
        names = metadata[f'{self.action_space}_action_names']
        faults += _name_faults('action', names, self.action_names)
        faults += _name_faults('state', STATE_NAMES, self.state_names)
        self._refuse('the world', faults)

    def check_header(self, header: Header, path: str) -> None:
        """Raise ValueError, naming the differences, where a recorded episode does not fit.

        Pictures may be of any size, as `fit_picture` brings them to ours.
        """
        faults = self._camera_faults(header['cameras'])
        faults += self._rate_faults(header['control_hz'])
        tables = slot_tables(header)
        ours = {'state': self.state_table, f'{self.action_space}_action': self.action_table}
        for name, table in ours.items():
            if name not in tables:
                faults.append(f'no {name}')
            elif tables[name] != table:
                what = name.removeprefix(f'{self.action_space}_')
                there = [slot.name for slot in tables[name]]
                named = _name_faults(what, there, [slot.name for slot in table])
                faults += named or [f'units or kinds of its {name} slots differ']
        self._refuse(path, faults)

    def _camera_faults(self, there: Iterable[str]) -> list[str]:
        return [
            f'no camera {name!r} (there are: {", ".join(there)})'
            for name in self.cameras
            if name not in there
        ]

    def _rate_faults(self, control_hz: float) -> list[str]:
        if control_hz == self.control_hz:
            return []
        return [f'control rate {control_hz} Hz, the policy acts at {self.control_hz} Hz']

    def _refuse(self, where: str, faults: list[str]) -> None:
        if faults:
            raise ValueError(f'{where} does not fit the policy: ' + '; '.join(faults))

    # ---- text

    def prompt(
        self, instruction: str, subtask: str | None = None, question: bool = False
    ) -> tuple[str, str]:
        """The token sequence as text: user part, assistant part ('' without subtask).

        With `question` the two are a question and its answer: no <|vla|>, which asks for action,
        and <|im_end|> at the end.
        """
        for text in (instruction, subtask or ''):
            if '<|' in text:
                raise ValueError(f'{text!r}: "<|" would forge a special token')
        if self.plain_words:
            instruction = plain(instruction)
        image = '' if self.hide_pictures else '<|image_pad|>' * self.tokens_per_camera
        assistant = ''
        if subtask is not None:
            assistant = subtask + ('<|im_end|>' if question else '<|action_start|>')
        if self.template == 'minimal':
            text = f'{image * len(self.cameras)}<|state_pad|>{instruction}'
            return text + ('<|im_start|>' if question else '<|vla|>'), assistant
        images = f'<|vision_start|>{image}<|vision_end|>' * len(self.cameras) if image else ''
        user = (
            '<|im_start|>system\nYou are a helpful physical assistant.<|im_end|>\n'
            '<|im_start|>user\n'
            f'{images}<|state_start|><|state_pad|><|state_end|>{instruction}'
            f'{"" if question else "<|vla|>"}<|im_end|>\n<|im_start|>assistant\n'
        )
        return user, assistant

    def forget_prompts_after(self, n: int) -> None:
        """Keep the token ids of the last n prompts: strangers may send ever new ones.

        The two parts are known apart: a few hundred texts answer any number of instructions.
        """
        self._user_ids = functools.lru_cache(maxsize=n)(self._encode_user)
        self._assistant_ids = functools.lru_cache(maxsize=n)(self._encode_assistant)

    def prompt_ids(
        self, instruction: str, subtask: str | None = None, question: bool = False
    ) -> Ids:
        """Token ids of the user part and of the assistant part, see `prompt`."""
        return self._user_ids(instruction, question), self._assistant_ids(subtask, question)

    def _encode_user(self, instruction: str, question: bool) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(self.prompt(instruction, None, question)[0]).ids)

    def _encode_assistant(self, subtask: str | None, question: bool) -> tuple[int, ...]:
        text = self.prompt('', subtask, question)[1]
        return tuple(self.tokenizer.encode(text).ids) if text else ()

    def decode_text(self, ids: Iterable[int]) -> str:
        """Token ids -> text without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def pad(self, prompts: Sequence[Ids], tokens: int = 0, answer_tokens: int = 0) -> Batch:
        """[(user ids, assistant ids)] -> one batch of text, padded on the right.

        Args:
            prompts: Of the samples.
            tokens: L; 0, or where a prompt is longer: that of the longest one.
            answer_tokens: M likewise, of the assistant parts.

        Returns:
            input_ids and labels (B, L), label_at (B, M), user_len and total_len (B,).
        """
        user_len = np.array([len(user) for user, _ in prompts])
        answer_len = np.array([len(assistant) for _, assistant in prompts])
        total_len = user_len + answer_len
        answer = np.arange(max(answer_tokens, int(answer_len.max())))
        label_at = np.where(answer < answer_len[:, None], user_len[:, None] + answer, -1)
        # One assignment for all rows: to fill them one by one took a third of a batch's time.
        column = np.arange(max(tokens, int(total_len.max())))
        is_text = column < total_len[:, None]  # (B, L)
        is_answer = is_text & (column >= user_len[:, None])
        parts = itertools.chain.from_iterable(prompts)  # user, assistant, user, assistant ..
        text = itertools.chain.from_iterable(parts)
        ids = np.full(is_text.shape, self.token_id['<|pad|>'])
        ids[is_text] = np.fromiter(text, np.int64, total_len.sum())
        labels = np.where(is_answer, ids, -100)
        arrays = {'input_ids': ids, 'labels': labels, 'label_at': label_at}
        arrays |= {'user_len': user_len, 'total_len': total_len}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    # ---- numbers

    def normalise_state(self, states: np.ndarray) -> np.ndarray:
        """(B, C) states -> (B, S) float32."""
        centred = states[:, self.state_index] - self.stats['state_mean']
        return self.fill_up((centred / self.stats['state_std']).astype(np.float32))

    def fill_up(self, values: np.ndarray) -> np.ndarray:
        """(..., slots) -> (..., pad_dims), zeros behind; unchanged without pad_dims."""
        if not self.pad_dims:
            return values
        behind = self.pad_dims - values.shape[-1]
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, behind)])

    def relative_actions(self, actions: np.ndarray, commands: np.ndarray) -> np.ndarray:
        """(B, H, C) actions, (B, C) commands in force -> (B, H, A) anchored and log-scaled."""
        relative = anchor(actions, commands, self.anchors)[..., self.action_index]
        scale = self.action_scale
        return np.where(scale > 0, np.arcsinh(relative / np.where(scale > 0, scale, 1)), relative)

    def normalise_actions(self, actions: np.ndarray, commands: np.ndarray) -> np.ndarray:
        """(B, H, C) absolute actions, (B, C) commands in force -> (B, H, A) float32.

        It takes the first rows of a chunk, too.
        """
        relative = self.relative_actions(actions, commands)
        rows = relative.shape[1]
        mean = self.stats['action_mean'][:rows]
        std = self.stats['action_std'][:rows]
        return self.fill_up(((relative - mean) / std).astype(np.float32))

    def decode_actions(self, chunk: np.ndarray, commands: np.ndarray) -> np.ndarray:
        """The inverse: (B, H, A) normalised, (B, C) commands in force -> (B, H, C) absolute.

        Slots that the model does not predict hold the command in force. float32.
        """
        chunk = np.asarray(chunk, np.float64)[..., : len(self.action_slots)]
        commands = np.asarray(commands, np.float64)
        hold = np.repeat(commands[:, None], chunk.shape[1], 1)  # (B, H, C)
        relative = anchor(hold, commands, self.anchors)
        chunk = chunk * self.stats['action_std'] + self.stats['action_mean']
        scale = self.action_scale
        relative[..., self.action_index] = np.where(
            scale > 0, scale * np.sinh(np.clip(chunk, -9, 9)), chunk
        )
        out = unanchor(relative, commands, self.anchors)
        for pose in self.anchors.poses:  # a tool whose turn is not predicted keeps it exactly
            turn = pose[3:]
            if not set(turn) & set(self.action_index):
                out[..., turn] = hold[..., turn]
        return out.astype(np.float32)

    def encode(
        self,
        rows: Sequence[dict[str, Any]],
        subtasks: Sequence[str] | None = None,
        questions: Sequence[str] | None = None,
        under_way: np.ndarray | None = None,
    ) -> Batch:
        """Observations -> batch for the model, see the table on top of data.py.

        Args:
            rows: Observations, live from the world or `Dataset.row`: the images of our cameras, the
                instruction, and 'state' or the fields that `episode.state_vector` makes it of.
            subtasks: One text per row: the batch contains the assistant part, and the model acts
                having read it.
            questions: One per row, in place of the instructions: VLA.generate answers them.
            under_way: (B, T, C) absolute commands that are executed before the chunk: the model
                answers what will be there then. It takes a processor with foresight.
        """
        texts: Sequence[str | None] = [None] * len(rows) if subtasks is None else subtasks
        images = np.stack([self._pictures(row) for row in rows])
        states = np.stack([row['state'] if 'state' in row else state_vector(row) for row in rows])
        if questions is None:
            prompts = [self.prompt_ids(row['instruction'], text) for row, text in zip(rows, texts)]
        else:
            prompts = [self.prompt_ids(question, None, True) for question in questions]
        if under_way is None:
            return self.assemble(images, states, prompts, self.user_tokens)
        assert self.foresight is not None, 'without it nobody knows what will be there'
        path = self.foresight.states(states, under_way)
        batch = self.assemble(images, path[:, -1], prompts, self.user_tokens)
        return batch | self.hand_path(path)

    def _pictures(self, row: dict[str, Any]) -> np.ndarray:
        pictures = []
        for camera in self.cameras:
            try:
                pictures.append(fit_picture(row[f'image/{camera}'], self.image_size))
            except ValueError as error:
                raise ValueError(f'image/{camera} {error}') from None
        return np.stack(pictures)

    def assemble(
        self,
        images: np.ndarray | None,
        states: np.ndarray,
        prompts: Sequence,
        tokens: int = 0,
        answer_tokens: int = 0,
    ) -> Batch:
        """(B, N, h, w, 3) uint8, (B, C) states, prompt ids -> batch: the one place to make it.

        Without pictures they are to be put in later. For the numbers of tokens see `pad`.
        """
        batch = {'state': torch.from_numpy(self.normalise_state(states))}
        if images is not None:
            batch['images'] = torch.from_numpy(images)
        if self.hands is not None:
            batch['tool'] = torch.from_numpy(tool_frames(states, self.hands))
        return batch | self.pad(prompts, tokens, answer_tokens)

    def hand_path(self, states: np.ndarray) -> Batch:
        """What moves a scene on to the last of some states (B, T, C): hand_path and shut."""
        assert self.hands is not None and self.foresight is not None, 'see _new_foresight'
        return {
            'hand_path': torch.from_numpy(tool_frames(states, self.hands)),
            'shut': torch.from_numpy(self.foresight.shut(states)),
        }

    # ---- the normaliser

    def fit(self, dataset: Any) -> dict[str, str]:
        """Take mean and spread of exactly the tensors that the loss sees: anchored, masked windows.

        A spread below the slot's floor becomes the floor: a slot that does not move must not turn
        noise into signal.

        Args:
            dataset: A data.Dataset.

        Returns:
            {slot: what is wrong with it}: constant as far as the model is concerned, or reaching so
            far that its spread says little.
        """
        # An even selection tells as much as a million windows.
        windows = dataset.windows[:: -(-len(dataset.windows) // FIT_WINDOWS)]
        parts = []
        firsts = []  # first rows of the chunks, for quantiles
        total = 0
        square = 0
        count = 0
        furthest = 0
        for start in range(0, len(windows), 65_536):
            rows = windows[start : start + 65_536]
            states = dataset.read('state', rows)
            parts.append(states[:, self.state_index])
            relative = self.relative_actions(dataset.chunk(rows), dataset.commands(rows, states))
            mask = dataset.chunk_mask(rows)[..., None]
            firsts.append(relative[:, 0][mask[:, 0, 0]])
            total = total + (relative * mask).sum(0)  # (H, A)
            square = square + (relative**2 * mask).sum(0)  # (H, A)
            count = count + mask.sum(0)  # (H, 1)
            furthest = np.maximum(furthest, np.abs(relative * mask).max(0))
        state = np.concatenate(parts).astype(np.float64)
        mean = total / np.maximum(count, 1)
        spread = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean**2, 0))
        state_floor, action_floor = self._floors()
        self.stats = {
            'state_mean': state.mean(0),
            'state_std': np.maximum(state.std(0), state_floor),
            'action_mean': mean,
            'action_std': np.maximum(spread, action_floor),
        }
        reach = np.abs((state - self.stats['state_mean']) / self.stats['state_std']).max(0)
        odd = _odd(self.state_slots, state.std(0), state_floor, reach)
        odd |= _strays(self.state_slots, state, state_floor)
        reach = ((furthest + np.abs(mean)) / self.stats['action_std']).max(0)
        names = [f'action {name}' for name in self.action_slots]
        odd |= _odd(names, spread.max(0), action_floor, reach)
        return odd | _strays(names, np.concatenate(firsts), action_floor)

    def learn_hands(self, dataset: Any) -> None:
        """Learn what hands make of commands, of a data.Dataset; see vla/foresight.py."""
        self.foresight = self._new_foresight()
        self.foresight.fit(dataset.files['state'])

    def _floors(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the state slots (S,) and of the action slots (A,), as they are log-scaled."""
        state_floor = np.array([self.state_table[i].floor for i in self.state_index])
        action_floor = np.array([self.action_table[i].floor for i in self.action_index])
        # asinh(x / scale) is x / scale where x is as small as this
        action_floor /= np.where(self.action_scale > 0, self.action_scale, 1)
        return state_floor, action_floor


def _odd(
    names: Iterable[str], spreads: np.ndarray, floors: np.ndarray, reaches: np.ndarray
) -> dict[str, str]:
    """{slot: what is wrong with it}, see `Processor.fit`."""
    table = {}
    for name, spread, floor, reach in zip(names, spreads, floors, reaches):
        if spread < floor:
            table[name] = f'does not move: spread {spread:.2g} is below its floor {floor:.2g}'
        elif reach > FAR:
            table[name] = f'reaches {reach:.0f} spreads of {spread:.2g}'
    return table


def _strays(names: Sequence[str], values: np.ndarray, floors: np.ndarray) -> dict[str, str]:
    """{slot: what is wrong with it} where single rows (n, slots) lie far from all others.

    One of them widens the spread that everything is divided by, so that it does not look far in
    spreads.
    """
    if not len(values):
        return {}
    off = np.abs(values - np.median(values, 0))
    middle = np.maximum(np.quantile(off, 0.98, axis=0), floors)
    table = {}
    for i in np.flatnonzero(off.max(0) > STRAY * middle).tolist():
        table[names[i]] = (
            f'reaches {off[:, i].max():.3g} from the middle, 98 % of the rows {middle[i]:.2g}: '
            'python data.py stats'
        )
    return table


def _carrier(camera: str) -> int:
    """What carries a camera: 0 the torso or the room, 1 the left hand, 2 the right hand."""
    first, slash, _ = camera.partition('/')
    return ARMS.index(first) + 1 if slash and first in ARMS else 0


def _as_columns(table: Table) -> dict[str, list[str]]:
    """Names, units and kinds of a table of slots, for JSON."""
    return {
        'names': [slot.name for slot in table],
        'units': [slot.unit for slot in table],
        'kinds': [slot.kind for slot in table],
    }


def saved_tables(made: dict[str, Any]) -> Tables:
    """The slots there were for a processor that meta.json holds, by array.

    Checkpoints of earlier revisions do not say: theirs are our own robot's.
    """
    if 'state_table' not in made:
        return TABLES
    tables = {}
    space = made['action_space']
    for name, key in (('state', 'state_table'), (f'{space}_action', 'action_table')):
        columns = made[key]
        tables[name] = table_of(name, columns['names'], columns['units'], columns['kinds'])
    return tables


def saved_names(made: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of all state and action slots there were for a processor that meta.json holds."""
    tables = saved_tables(made)
    action = f'{made.get("action_space", "tool")}_action'
    return [slot.name for slot in tables['state']], [slot.name for slot in tables[action]]


def _name_faults(what: str, there: Iterable[str], ours: Iterable[str]) -> list[str]:
    if tuple(there) == tuple(ours):
        return []
    return [f'{what} slots {", ".join(there)}, expected {", ".join(ours)}']
