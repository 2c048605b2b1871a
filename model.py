"""One decoder over [images, state, text, action rows]: reads, writes text, draws action chunks.

    model = VLA(VLAConfig(vocab_size=512, state_dim=79, action_dim=15, ...))
    loss, parts = model(batch)                      # training; the table of a batch's keys stands
                                                    # on top of data.py
    actions = model.act(batch, steps=5)             # (B, H, A) normalised; one pass over the
                                                    # prefix, then `steps` over the rows
    actions, texts = model.plan_and_act(batch)      # decode the subtask first, act having read it

One row of training is one pass over  user part | assistant part | noise sample 0 | 1 | ...
    user part        <|image_pad|>* <|state_pad|> instruction <|vla|>; image and state tokens are
                     replaced by what the stem and the state give
    assistant part   subtask text <|action_start|>; causal, supervised by cross entropy
    noise sample k   H action rows at (noise, time) k of the same chunk. It sees the user part, the
                     assistant part only where read_text, and itself: K of them share one reading of
                     the prefix and its images.
Both parts are the prefix, the rows are the suffix; vla/layout.py describes who sees whom. EO-1's
other layout, with rows inside the text, is vla/inline.py.

Flow convention (pi0, EO-1), everywhere: t = 1 is noise, t = 0 is data,
    x_t = t * noise + (1 - t) * action,   velocity = noise - action,   Euler from t = 1 down to 0.
"""

# B batch, N cameras, n bricks, L prefix tokens, K noise samples, H horizon, A action, S state,
# T tokens of a call, D width, h heads of c, V words
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vla import grounding, layers, pretrained
from vla.folder import check_sizes, read_meta
from vla.layout import (
    USER,
    Batch,
    Layout,
    attention_bias,
    chunk_layout,
    column_after,
    documents,
    fill_places,
    give_text,
    prefix_layout,
    rotary_tables,
    stand_for,
    user_part,
    word_layout,
)
from vla.vision import STEMS, has_pictures

KeysValues = tuple[Tensor, Tensor]  # (B, h_kv, T, c) each

# What an error calls places that a prompt to act on must not have.
ACTION_ROWS = (
    'rows of action chunks (which only vla/inline.py takes inside the text; act() takes a prompt '
    'that ends with <|action_start|>)'
)
# Fields of VLAConfig in earlier revisions, with the values that are what the code does now.
GONE = {'norm': ('rms',), 'eo1_compat': (False, True)}


@dataclass(frozen=True, kw_only=True)
class VLAConfig:
    """Sizes and choices of a network; the defaults are those of the model for two CPU cores."""

    # sizes and ids given by tokenizer and processor
    vocab_size: int
    state_dim: int
    action_dim: int
    horizon: int  # rows of one chunk
    image_pad_id: int
    state_pad_id: int
    action_start_id: int  # ends the decoded text
    # Where rows of a chunk stand inside the text, noisy and clean: vla/inline.py.
    action_pad_id: int | None = None
    action_pass_id: int | None = None
    # like image_pad_id; the pictures of a batch are listed as they appear
    video_pad_id: int | None = None
    # decoder
    hidden_size: int = 192
    n_layers: int = 4
    n_heads: int = 3
    n_kv_heads: int = 3
    head_dim: int = 64
    intermediate_size: int = 768
    mlp: str = 'relu2'  # 'swiglu' | 'gelu' | 'relu2'
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    # frequencies turned by time, row and column; they sum to head_dim / 2
    mrope_section: tuple[int, ...] = (8, 12, 12)
    tie_embeddings: bool = False  # one table for reading and writing words; Qwen2.5-VL-3B: True
    # vision
    vision: str = 'conv'  # a stem of vla/vision.py; 'qwen': Qwen2.5-VL's tower
    image_size: int = 96  # pixels, square
    n_cameras: int = 3
    tokens_per_camera: int = 4  # 'conv' is free to choose, 'qwen' is not
    vision_width: int = 1280  # 'qwen' only, as all below: the sizes of the 3B model
    vision_layers: int = 32
    vision_heads: int = 16
    vision_intermediate: int = 3420
    # the other blocks attend within windows
    vision_full_blocks: tuple[int, ...] = (7, 15, 23, 31)
    vision_window: int = 112  # pixels
    patch_size: int = 14  # pixels
    merge_size: int = 2  # patches on the side of a token
    patch_frames: int = 2
    tokens_per_second: float = 2  # rotary positions that a second of video takes
    # state
    # sines and cosines per state slot, of periods 8, 4, 2 .. spreads; EO-1: 0
    state_frequencies: int = 6
    # action head
    prefix_attention: str = 'bidirectional'  # user part; 'causal' = EO-1
    chunk_attention: str = 'bidirectional'  # rows of one chunk; 'causal' = EO-1
    predict: str = 'action'  # the head gives the clean chunk (small budgets); 'velocity' = EO-1
    head_layers: int = 1  # linear maps from hidden state to row; EO-1 has 2 with nothing between
    row_embedding: bool = True  # learnt embedding per row, besides the rotary position
    time_period_min: float = 0.06  # Shortest period of t's sine embedding; pi0 and EO-1: 4e-3
    time_period_max: float = 4.0
    action_loss: str = 'mse'  # 'mse' (EO-1) | 'l1'
    row_decay: float = 1.0  # weight of a row in the loss against that of the row before
    text_weight: float = 0.1
    scene_bricks: int = 0  # bricks seen in pictures and named by words; 0: without grounding.py
    scene_frames: tuple[int, ...] = ()  # carriers of cameras: 0 torso, 1 left tool, 2 right tool
    # With scene_bricks: the places that words can name, each as x, y, z (m) and yaw (rad).
    scene_places: tuple[tuple[float, ...], ...] = ()
    # With scene_bricks: what the pictures show reaches the decoder as poses of bricks alone, and
    # the prompt has no places for them. The stem then learns from the poses alone, and poses can be
    # moved on to where late chunks begin; a picture cannot.
    hide_pictures: bool = False
    sight_only: bool = False  # With scene_bricks: the loss is that of what is seen of them, alone.
    recompute: bool = False  # activation checkpointing per block: a third more work, less memory

    def __post_init__(self):
        both = ('bidirectional', 'causal')
        choices = dict(
            mlp=('swiglu', 'gelu', 'relu2'),
            vision=tuple(STEMS),
            prefix_attention=both,
            chunk_attention=both,
            predict=('action', 'velocity'),
            head_layers=(1, 2),
            action_loss=('mse', 'l1'),
        )
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f'VLAConfig.{name} = {value!r}, expected one of {allowed}')
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f'n_heads {self.n_heads} is no multiple of n_kv_heads {self.n_kv_heads}'
            )
        if sum(self.mrope_section) * 2 != self.head_dim:
            raise ValueError(
                f'mrope_section {self.mrope_section} must sum to head_dim {self.head_dim} / 2'
            )
        if self.hide_pictures and not self.scene_bricks:
            raise ValueError(
                'hide_pictures=True leaves nothing of the pictures without grounding: '
                '--grounding=True, or --hide_pictures=False'
            )
        if self.scene_bricks and not self.scene_places:
            raise ValueError('scene_bricks without scene_places: words would name no place')
        STEMS[self.vision].check(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> 'VLAConfig':
        """The configuration that a meta.json holds, of this or an earlier revision.

        Raises:
            ValueError: it names what this code does not know, or does no more.
        """
        known = {field.name for field in fields(cls)}
        unknown = [name for name in saved if name not in known and name not in GONE]
        if unknown:
            raise ValueError(f'this code knows no {", ".join(sorted(unknown))}')
        for name, still in GONE.items():
            if name in saved and saved[name] not in still:
                raise ValueError(f'this code knows no {name}={saved[name]!r} any more')
        values: dict[str, Any] = {}
        for name, value in saved.items():
            if name in known:
                values[name] = as_tuples(value)
        return cls.checked(values)

    @classmethod
    def checked(cls, values: dict[str, Any]) -> 'VLAConfig':
        """The configuration of values that somebody else has written; ValueError where none is."""
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
        if missing:
            raise ValueError(f'no {", ".join(missing)} (of tokens: is tokenizer.json there?)')
        check_sizes(values, {f.name: getattr(f.type, '__name__', str(f.type)) for f in fields(cls)})
        return cls(**values)


def as_tuples(value: Any) -> Any:
    """JSON has no tuples: lists become such, also those in lists."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


# -----------------------------------------------------------------------------
# decoder


class Goal(NamedTuple):
    """What is to be done, as grounding.py takes it from pictures and words.

    scene       (B, N, n, 5), what SceneHead predicts
    referents   (B, R), what Grounding predicts
    embedding   (B, D), what these mean for the rows of a chunk
    """

    scene: Tensor
    referents: Tensor
    embedding: Tensor


class Prefix(NamedTuple):
    """What reading the images, the state and the text leaves for words and rows to go on from.

    layout   of the tokens in the cache
    cache    keys and values of each block
    hidden   (B, L - skip, D)
    skip     tokens whose hidden states nobody asked for
    goal     None without grounding
    """

    layout: Layout
    cache: list[KeysValues]
    hidden: Tensor
    skip: int
    goal: Goal | None


class Block(nn.Module):
    """Pre-norm Qwen2.5 block: grouped-query attention with qkv bias and rotary positions, MLP."""

    def __init__(self, cfg: VLAConfig):
        super().__init__()
        gates = 2 if cfg.mlp == 'swiglu' else 1  # gate, then up
        self.heads = (cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads)
        self.head_dim = cfg.head_dim
        self.mlp = cfg.mlp
        self.norm1 = layers.RMSNorm(cfg.hidden_size, eps=cfg.norm_eps)
        self.norm2 = layers.RMSNorm(cfg.hidden_size, eps=cfg.norm_eps)
        self.qkv = nn.Linear(cfg.hidden_size, sum(self.heads) * cfg.head_dim)
        self.out = nn.Linear(cfg.n_heads * cfg.head_dim, cfg.hidden_size, bias=False)
        self.up = nn.Linear(cfg.hidden_size, gates * cfg.intermediate_size, bias=False)
        self.down = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor,
        past: KeysValues | None = None,
        skip: int = 0,
        has_room: bool = False,
    ) -> tuple[Tensor, KeysValues]:
        """One block over tokens and what came before them.

        Args:
            x: (B, T, D).
            cos: (B, T, 1, c), as sin.
            sin: see layers.rotate.
            bias: (B, h / h_kv, T, T_past + T), see layout.attention_bias.
            past: keys and values (B, h_kv, T_past, c) that the tokens see besides their own.
            skip: the first tokens are left out of the result; others may look at them all the same.
            has_room: the past has places for these tokens at its end, which are written over.

        Returns:
            x (B, T - skip, D), and keys and values with the past.
        """
        B, T, _ = x.shape
        h, h_kv, _ = self.heads
        qkv = self.qkv(self.norm1(x))
        qkv = qkv.view(B, T, -1, self.head_dim)  # (B, T, h + 2 h_kv, c)
        qk, v = qkv.split([h + h_kv, h_kv], 2)
        qk = layers.rotate(qk, cos, sin).transpose(1, 2)
        q, k = qk.split([h, h_kv], 1)  # (B, h or h_kv, T, c)
        v = v.transpose(1, 2)
        if past is not None and has_room:
            past[0][:, :, -T:] = k
            past[1][:, :, -T:] = v
            k, v = past
        elif past is not None:
            k = torch.cat([past[0], k], 2)
            v = torch.cat([past[1], v], 2)
        q = q[:, :, skip:]
        bias = bias[:, :, skip:]
        y = layers.attend(q, k, v, bias)  # (B, h, T - skip, c)
        y = y.transpose(1, 2).flatten(2)
        x = x[:, skip:] + self.out(y)
        y = self.up(self.norm2(x))
        if self.mlp == 'swiglu':
            gate, y = y.chunk(2, -1)
            y = F.silu(gate) * y
        elif self.mlp == 'gelu':
            y = F.gelu(y)
        else:
            y = layers.SquaredReLU.apply(y)
        return x + self.down(y), (k, v)


class Decoder(nn.Module):
    """The blocks and the norm after them."""

    def __init__(self, cfg: VLAConfig):
        super().__init__()
        self.cfg = cfg
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = layers.RMSNorm(cfg.hidden_size, eps=cfg.norm_eps)

    def mask_and_rope(
        self, x: Tensor, layout: Layout, past_layout: Layout | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotary tables (cos, sin) and attention bias of tokens behind those of past_layout.

        Args:
            x: any tensor of the type and on the device of the tokens.
            layout: of the tokens.
            past_layout: of what their cache holds.
        """
        cfg = self.cfg
        dtype = layers.compute_dtype(x)
        cos, sin = rotary_tables(
            layout.position, cfg.head_dim, cfg.rope_theta, cfg.mrope_section, dtype
        )
        seen = layout if past_layout is None else past_layout.join(layout)
        # On CPUs scores are float32, elsewhere of the type of what is multiplied: a bias that has
        # it already is not converted by every block.
        score_dtype = torch.float32 if x.device.type == 'cpu' else dtype
        groups = cfg.n_heads // cfg.n_kv_heads
        return cos, sin, attention_bias(layout, seen, score_dtype, groups)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        past: list[KeysValues] | None = None,
        past_layout: Layout | None = None,
        skip: int = 0,
        mask_and_rope: tuple[Tensor, Tensor, Tensor] | None = None,
        has_room: bool = False,
    ) -> tuple[Tensor, list[KeysValues]]:
        """All blocks over tokens x (B, T, D), described by layout.

        Args:
            x: token embeddings.
            layout: of the tokens.
            past: what an earlier call returned, keys and values of each block.
            past_layout: of the tokens in it.
            skip: what the first tokens become in the last block is not computed; that is a tenth of
                the work of the demo.
            mask_and_rope: the method's result, where many calls have the same layouts.
            has_room: past is that of `with_room` for these tokens, which are written there.

        Returns:
            the normed hidden states (B, T - skip, D), and keys and values with the past.
        """
        if mask_and_rope is None:
            mask_and_rope = self.mask_and_rope(x, layout, past_layout)
        last = len(self.blocks) - 1
        cache = []
        for i, block in enumerate(self.blocks):
            run = layers.recomputed(block, self.cfg.recompute)
            block_past = None if past is None else past[i]
            block_skip = skip if i == last else 0
            x, keys_values = run(x, *mask_and_rope, block_past, block_skip, has_room)
            cache.append(keys_values)
        return self.norm(x), cache


def with_room(cache: list[KeysValues], tokens: int) -> list[KeysValues]:
    """A copy of a cache with places for so many tokens at its end.

    Each call of the decoder writes over them, where torch.cat would copy all that came before.
    """
    return [(F.pad(k, (0, 0, 0, tokens)), F.pad(v, (0, 0, 0, tokens))) for k, v in cache]


class ActionHead(nn.Module):
    """EO-1's head: noisy rows and their flow time to embeddings, hidden states to rows."""

    def __init__(self, cfg: VLAConfig):
        super().__init__()
        self.cfg = cfg
        D = cfg.hidden_size
        self.action_in = nn.Linear(cfg.action_dim, D)
        self.time_mlp_in = nn.Linear(2 * D, D)
        self.time_mlp_out = nn.Linear(D, D)
        self.row = nn.Parameter(torch.zeros(cfg.horizon, D)) if cfg.row_embedding else None
        out = nn.Linear(D, cfg.action_dim)
        nn.init.normal_(out.weight, std=0.002)  # the first prediction is the mean action
        nn.init.zeros_(out.bias)
        if cfg.head_layers == 1:
            self.action_out: nn.Module = out
        else:
            self.action_out = nn.Sequential(nn.Linear(D, D), nn.Identity(), out)

    def time_embedding(self, time: Tensor) -> Tensor:
        """Flow times (...) in 0..1 -> (..., D), float32: sines and cosines, log-spaced periods."""
        cfg = self.cfg
        n = cfg.hidden_size // 2
        ramp = torch.linspace(0, 1, n, device=time.device, dtype=torch.float32)
        period = cfg.time_period_min * (cfg.time_period_max / cfg.time_period_min) ** ramp
        angle = time.float()[..., None] * (2 * math.pi / period)
        return torch.cat([angle.sin(), angle.cos()], -1)

    def embed(self, rows: Tensor, time: Tensor) -> Tensor:
        """Noisy rows (..., H, A) at flow times (..., H) -> (..., H, D)."""
        x = self.action_in(rows)
        x = torch.cat([x, self.time_embedding(time).to(x.dtype)], -1)
        x = self.time_mlp_out(F.silu(self.time_mlp_in(x)))
        return x if self.row is None else x + self.row

    def embed_at(
        self, times: Tensor, goal: Tensor | None = None
    ) -> Callable[[int, Tensor], Tensor]:
        """`embed` for many rows at few times, with all that does not depend on the rows done first.

        The first layer of the time MLP is linear in rows and time, so that it is folded into the
        map that comes before: a step then reads A x D numbers instead of 3 x D x D.

        Args:
            times: flow times (n, B, H).
            goal: (B, D), is added to every row.

        Returns:
            a function of i and noisy rows (B, H, A) that gives what embed gives at times[i], and
            the goal in it.
        """
        D = self.cfg.hidden_size
        to_rows, to_time = self.time_mlp_in.weight.split([D, D], 1)
        known = F.linear(self.time_embedding(times).to(to_time.dtype), to_time)
        from_bias = F.linear(self.action_in.bias, to_rows, self.time_mlp_in.bias)
        known = known + from_bias  # (n, B, H, D)
        folded = to_rows @ self.action_in.weight  # (D, A)
        always: Tensor | None = self.row  # (H, D)
        if goal is not None:
            goal = goal[:, None]
            always = goal if always is None else always + goal  # (B, H, D)

        def embed(i: int, rows: Tensor) -> Tensor:
            x = F.linear(rows, folded) + known[i]
            x = self.time_mlp_out(F.silu(x))
            return x if always is None else x + always

        return embed

    def read(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) -> rows (..., A), float32: clean actions or velocities."""
        return self.action_out(hidden.to(self.action_in.weight.dtype)).float()


# -----------------------------------------------------------------------------
# the model


class VLA(nn.Module):
    """Vision stem, decoder, flow head, and for small models the grounding of words in pictures."""

    def __init__(self, cfg: VLAConfig):
        super().__init__()
        self.cfg = cfg
        D = cfg.hidden_size
        self.embed_tokens = nn.Embedding(cfg.vocab_size, D)
        self.vision = STEMS[cfg.vision](cfg)
        places = self.vision.n_places
        self.image_embedding = nn.Parameter(torch.zeros(places, D)) if places else None
        self.add_robot_parts()
        self.decoder = Decoder(cfg)
        self.lm_head = None if cfg.tie_embeddings else nn.Linear(D, cfg.vocab_size, bias=False)
        self.reset_parameters()

    def add_robot_parts(self) -> None:
        """Make all that no vision-language model brings along."""
        cfg = self.cfg
        D = cfg.hidden_size
        numbers = cfg.state_dim + cfg.n_cameras * cfg.scene_bricks * 5  # the state and the scene
        self.state_in = nn.Linear(numbers * (1 + 2 * cfg.state_frequencies), D)
        self.scene_head: Any = None  # a grounding.SceneHead
        self.grounding: Any = None  # a grounding.Grounding
        if cfg.scene_bricks:
            features = self.vision.tokens_per_picture(cfg) * D
            self.scene_head = grounding.SceneHead(cfg.scene_frames, cfg.scene_bricks, features)
            self.grounding = grounding.Grounding(
                cfg.scene_bricks, cfg.scene_places, D, cfg.state_frequencies
            )
        self.head = ActionHead(cfg)

    def reset_parameters(self) -> None:
        """Initial values where PyTorch's own do not do."""
        # A word has to outweigh what attention adds to it, or the model is slow to notice which
        # word it was.
        word_std = 0.02 if self.cfg.tie_embeddings else 1.0
        nn.init.normal_(self.embed_tokens.weight, std=word_std)
        lm_head = None if self.lm_head is None else self.lm_head.weight
        for table in (self.image_embedding, self.head.row, lm_head):
            if table is not None:
                nn.init.normal_(table, std=0.02)
        for name, p in self.decoder.named_parameters():
            if name.endswith(('.out.weight', '.down.weight')):  # residual branches start small
                nn.init.normal_(p, std=0.02 / self.cfg.n_layers**0.5)

    @property
    def placeholders(self) -> list[int]:
        """Ids of the tokens that stand for pictures, the state and rows of a chunk."""
        cfg = self.cfg
        pictures = [cfg.image_pad_id, cfg.video_pad_id]
        rows = [cfg.action_pad_id, cfg.action_pass_id]
        return [i for i in (*pictures, cfg.state_pad_id, *rows) if i is not None]

    @property
    def n_parameters(self) -> int:
        """Number of parameters; a tied table counts once."""
        return sum(p.numel() for p in self.parameters())

    # ---- reading the batch

    def picture_tokens(self, ids: Tensor) -> Tensor:
        """Where tokens stand for pictures, bool (B, L)."""
        return stand_for(ids, self.cfg.image_pad_id, self.cfg.video_pad_id)

    def row_tokens(self, ids: Tensor) -> Tensor:
        """Where tokens stand for rows of a chunk, bool (B, L); in vla/inline.py only."""
        return stand_for(ids, self.cfg.action_pad_id, self.cfg.action_pass_id)

    def prefix_layout(self, batch: Batch) -> Layout:
        """Layout (B, L) of the text and what stands in it."""
        document, place, user = documents(batch)
        position = self.vision.positions(batch, self.picture_tokens(batch['input_ids']), place)
        causal = self.cfg.prefix_attention == 'causal'
        return prefix_layout(document, place, user, position, causal)

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch whose text has other places than it brings pictures, states and rows for.

        This asks the device for numbers. `forward` and `act`, which run thousands of times and
        inside of CUDA graphs, do not call it: whoever makes batches by hand does, once.

        Raises:
            ValueError: places and what the batch brings for them differ in number, or the lengths
                of its parts are not known.
        """
        documents(batch)
        ids = batch['input_ids']
        pictures = 0
        if 'images' in batch:
            B, N = batch['images'].shape[:2]
            pictures = B * N * self.vision.tokens_per_picture(self.cfg)
        elif 'patches' in batch:
            pictures = len(batch['patches']) // self.cfg.merge_size**2
        if self.cfg.hide_pictures:
            pictures = 0
        action_rows = (
            'rows of action chunks (which only vla/inline.py takes inside the text; act() takes a '
            'prompt that ends with <|action_start|>)'
        )
        counts = (
            ('pictures', self.picture_tokens(ids), pictures),
            (
                'a state',
                ids == self.cfg.state_pad_id,
                len(batch['state']) if 'state' in batch else 0,
            ),
            (action_rows, self.row_tokens(ids), 0),
        )
        for what, places, n in counts:
            found = int(places.sum())
            if found != n:
                raise ValueError(f'input_ids has {found} places for {what}, the batch brings {n}')

    def tokens_before_words(self, batch: Batch) -> int:
        """How many tokens of every row are sure to stand before its first word.

        A stem that embeds places has its tokens first, and the state's behind them; published
        prompts begin with words.
        """
        places = self.vision.n_places
        before = 0 if self.cfg.hide_pictures else places
        return before + 1 if places and has_pictures(batch) and 'state' in batch else 0

    def embed_pictures(self, batch: Batch) -> Tensor:
        """Tokens of all pictures of the batch in order of appearance, (n, D)."""
        tokens = self.vision(batch)
        if self.image_embedding is None:
            return tokens
        tokens = tokens.view(-1, *self.image_embedding.shape)  # (B, N*P, D)
        return (tokens + self.image_embedding).flatten(0, 1)

    def see(self, pictures: Tensor) -> Tensor:
        """What the tokens of all pictures, (n, D), tell of the bricks: (B, N, bricks, 5)."""
        features = self.vision.tokens_per_picture(self.cfg) * self.cfg.hidden_size
        return self.scene_head(pictures.view(-1, self.cfg.n_cameras, features))

    def embed_prefix(
        self, batch: Batch, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Token embeddings of the prefix, with pictures and state where the text has places.

        A text without such places needs neither pictures nor a state in its batch.

        Args:
            batch: see data.py.
            rows: (n, D), rows of chunks that stand inside the text, see vla/inline.py.

        Returns:
            the embeddings (B, L, D), what is seen of the bricks (B, N, n, 5), and what will be seen
            when the chunk begins, which is the same where no commands are under way; both are None
            without a SceneHead.
        """
        cfg = self.cfg
        ids = batch['input_ids']
        x = self.embed_tokens(ids).flatten(0, 1)  # (B*L, D)
        pictures = None
        scene = None
        expected = None
        state = None
        if has_pictures(batch):
            pictures = self.embed_pictures(batch)  # (n, D)
        if self.scene_head is not None and pictures is not None:
            scene = self.see(pictures)
            expected = scene
            if 'hand_path' in batch:
                expected = self.scene_head.foresee(scene, batch['hand_path'], batch['shut'])
        if 'state' in batch:
            state = batch['state']
            if expected is not None:
                state = torch.cat([state, self.scene_head.features(expected)], -1)
            state = self.state_in(layers.fourier_features(state, cfg.state_frequencies))
        if not cfg.hide_pictures:
            x = fill_places(x, self.picture_tokens(ids), pictures)
        x = fill_places(x, ids == cfg.state_pad_id, state)
        x = fill_places(x, self.row_tokens(ids), rows)
        return x.view(*ids.shape, -1), scene, expected

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) -> scores of words (..., V), float32."""
        table = self.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(hidden, table.weight).float()

    def read(self, batch: Batch, skip: int | None = None) -> Prefix:
        """One pass over images, state and text.

        Args:
            batch: see data.py.
            skip: what the first tokens become in the last block is not computed; None: all that
                are sure to precede the first word.
        """
        ids = batch['input_ids']
        layout = self.prefix_layout(batch)
        if skip is None:
            skip = self.tokens_before_words(batch)
        x, scene, expected = self.embed_prefix(batch)
        hidden, cache = self.decoder(x, layout, skip=skip)
        goal = None
        if scene is not None and expected is not None:
            words = (layout.kind == USER) & ~stand_for(ids, *self.placeholders)
            words = words[:, skip:, None].to(hidden.dtype)
            mean = (hidden * words).sum(1) / words.sum(1)  # (B, D)
            referents = self.grounding(mean)
            poses = self.scene_head.poses(expected.detach(), batch['tool'])
            chosen = self.grounding.choose(referents)
            if self.training and 'referents' in batch:
                # Rows are told what the words mean: hands need not wait until it is understood.
                told = self.grounding.classes(batch['referents'])
                chosen = torch.where(told >= 0, told, chosen)
            goal = Goal(scene, referents, self.grounding.embed(chosen, poses, batch['tool']))
        return Prefix(layout, cache, hidden, skip, goal)

    def embed_rows(self, rows: Tensor, time: Tensor, prefix: Prefix) -> Tensor:
        """Noisy rows (B, K, H, A) at flow times (B, K, H) -> (B, K, H, D).

        They know what is to be done, and are of the decoder's type: a pretrained one is bfloat16.
        """
        x = self.head.embed(rows, time)
        if prefix.goal is not None:
            x = x + prefix.goal.embedding[:, None, None].to(x.dtype)
        return x.to(self.embed_tokens.weight.dtype)

    def chunk_layout(self, prefix: Layout, reads: Tensor) -> Layout:
        """Layout (B, K*H) of noise samples behind a prefix; reads bool (B, K)."""
        causal = self.cfg.chunk_attention == 'causal'
        return chunk_layout(prefix, reads, self.cfg.horizon, causal)

    # ---- training

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts, to be differentiated and to be logged.

        flow is the mean over valid rows, noise samples and dims, text the mean over supervised
        tokens, text_acc the share of them that is guessed right; scene and words are the losses of
        grounding.py. Where the batch is a share of a larger one, n_rows and n_tokens in it are the
        counts to divide by. With sight_only the loss is the scene's, and the decoder does not run.
        """
        if self.cfg.sight_only:
            seen = self.see(self.embed_pictures(batch))
            scene = self.scene_head.loss(seen, batch['scene'])
            return scene, dict(scene=scene.detach())
        predicted, prefix = self.predict(batch)
        flow = self.flow_loss(predicted, batch)
        document = prefix.layout.document
        loss, parts = self.add_text_loss(flow, prefix.hidden, document, batch, prefix.skip)
        if prefix.goal is not None:
            scene = self.scene_head.loss(prefix.goal.scene, batch['scene'])
            words = self.grounding.loss(prefix.goal.referents, batch['referents'])
            loss = loss + scene + words
            parts = parts | dict(scene=scene.detach(), words=words.detach())
        return loss, parts

    def predict(self, batch: Batch, skip: int | None = None) -> tuple[Tensor, Prefix]:
        """What the head says of each noise sample (B, K, H, A), and the Prefix; skip: see read."""
        noise = batch['noise']  # (B, K, H, A)
        time = self.time_of_rows(batch)
        t = time[..., None]
        x_t = t * noise + (1 - t) * batch['actions'][:, None]
        prefix = self.read(batch, skip)
        rows = self.embed_rows(x_t, time, prefix).flatten(1, 2)  # (B, K*H, D)
        layout = self.chunk_layout(prefix.layout, batch['read_text'])
        hidden, _ = self.decoder(rows, layout, prefix.cache, prefix.layout)
        return self.head.read(hidden).view(noise.shape), prefix

    def time_of_rows(self, batch: Batch) -> Tensor:
        """Flow times (B, K, H) of a batch that has them per row or per noise sample, (B, K)."""
        shape = batch['noise'].shape[:3]
        return batch['time'].view(*shape[:2], -1).expand(shape)

    def flow_target(self, actions: Tensor, noise: Tensor) -> Tensor:
        """What the head should say: the clean action, or the velocity."""
        return actions if self.cfg.predict == 'action' else noise - actions

    def row_error(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Error of each row: (..., H, A) twice -> (..., H)."""
        off = predicted - target
        off = off.abs() if self.cfg.action_loss == 'l1' else off.square()
        return off.mean(-1)

    def flow_loss(self, predicted: Tensor, batch: Batch) -> Tensor:
        """Mean error of the rows that count, of all noise samples."""
        actions = batch['actions'][:, None]  # (B, 1, H, A)
        noise = batch['noise']
        K, H = noise.shape[1:3]
        weights = self.cfg.row_decay ** torch.arange(H, device=noise.device)
        weights = weights / weights.mean()
        valid = batch['action_mask'][:, None] * weights  # (B, 1, H)
        valid = valid * (self.time_of_rows(batch) > 0)  # (B, K, H); rows at time 0 are given
        n_rows = batch['n_rows'] if 'n_rows' in batch else valid.sum() / K
        error = self.row_error(predicted, self.flow_target(actions, noise))
        return (error * valid).sum() / (n_rows * K)

    def add_text_loss(
        self,
        flow: Tensor,
        hidden: Tensor,
        document: Tensor,
        batch: Batch,
        skip: int = 0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow loss plus weighted text loss, and the parts.

        Args:
            flow: the flow loss.
            hidden: (B, L - skip, D).
            document: (B, L), see layout.documents.
            batch: labels (B, L) in it, -100 is not supervised, are what each token has to be
                foretold as. Where it holds label_at, only these columns are looked at; a table of
                151,936 words would else be multiplied with every token. n_tokens in it is the count
                to divide by.
            skip: the first tokens whose hidden states are not there.
        """
        other_document = document.diff(dim=1) != 0
        # Each token's label is the next one.
        labels = batch['labels'][:, 1:].masked_fill(other_document, -100)
        labels = labels[:, skip:]
        if 'label_at' in batch:
            at = batch['label_at'] - 1 - skip  # (B, M) the columns that foretell
            real = at >= 0
            at = at.clamp(min=0)
            labels = labels.gather(1, at).masked_fill(~real, -100)
            first = torch.arange(len(at), device=at.device)[:, None] * hidden.shape[1]
            hidden = hidden.flatten(0, 1).index_select(0, (at + first).flatten())
        else:
            hidden = hidden[:, :-1].flatten(0, 1)
        labels = labels.flatten()
        logits = self.logits(hidden)
        n_tokens = batch['n_tokens'] if 'n_tokens' in batch else (labels != -100).sum().clamp(min=1)
        text = F.cross_entropy(logits, labels, reduction='sum', ignore_index=-100) / n_tokens
        hits = (logits.detach().argmax(-1) == labels).sum() / n_tokens
        parts = dict(flow=flow.detach(), text=text.detach(), text_acc=hits)
        return flow + self.cfg.text_weight * text, parts

    # ---- inference

    @torch.no_grad()
    def act(
        self,
        batch: Batch,
        steps: int = 5,
        noise: Tensor | None = None,
        read_text: bool = True,
        action_prefix: Tensor | None = None,
    ) -> Tensor:
        """Action chunk (B, H, A), normalised.

        Args:
            batch: prompts. One with an assistant part in the batch has read it.
            steps: of Euler's method from noise to data.
            noise: (B, H, A) starts the flow; None: zeros, deterministic.
            read_text: False: no assistant part is read.
            action_prefix: (B, P, A), the first P rows of the chunk, which are being executed while
                this one is made. They stay as they are, clean, at t = 0; the rest is drawn to go on
                from them.

        Raises:
            ValueError: the lengths of the prompts are not known; what else can be wrong with them
                is asked by check_batch.
        """
        if not read_text:
            batch = user_part(batch)
        # Only grounding asks for hidden states of the prefix.
        skip = batch['input_ids'].shape[1] if self.grounding is None else None
        return self.denoise(self.read(batch, skip), steps, noise, action_prefix)

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        max_new_tokens: int = 24,
        stop: Sequence[int] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> list[list[int]]:
        """Text after the user part: token ids per sample, up to and without a token of `stop`.

        Args:
            batch: prompts; an assistant part is not read.
            max_new_tokens: at most so many.
            stop: token ids; None: <|action_start|>.
            temperature: 0: the likeliest word every time, else see pick_token.
            top_p: see pick_token.
            generator: of the random numbers.
        """
        self.check_batch(batch)
        pick = functools.partial(
            pick_token, temperature=temperature, top_p=top_p, generator=generator
        )
        return self.decode_text(batch, max_new_tokens, stop, pick)[0]

    @torch.no_grad()
    def plan_and_act(
        self,
        batch: Batch,
        steps: int = 5,
        max_new_tokens: int = 24,
        noise: Tensor | None = None,
        action_prefix: Tensor | None = None,
        texts: list[list[int]] | None = None,
    ) -> tuple[Tensor, list[list[int]]]:
        """Decode the text, then act having read it; one prefix pass serves both.

        Args:
            batch: prompts; an assistant part is not read.
            steps: see act, as for noise and action_prefix.
            max_new_tokens: see generate.
            noise: (B, H, A).
            action_prefix: (B, P, A).
            texts: token ids of an earlier call, to act several times on one text: they are read
                instead of decoded.

        Returns:
            actions (B, H, A), and the token ids of each text.
        """
        self.check_batch(batch)
        if texts is not None:
            batch = give_text(batch, [[*text, self.cfg.action_start_id] for text in texts])
            return self.act(batch, steps, noise, action_prefix=action_prefix), texts
        texts, prefix = self.decode_text(batch, max_new_tokens)
        return self.denoise(prefix, steps, noise, action_prefix), texts

    def decode_text(
        self,
        batch: Batch,
        max_new_tokens: int,
        stop: Sequence[int] | None = None,
        pick: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[list[list[int]], Prefix]:
        """Token ids of each text, and the Prefix that has read them.

        Without `stop` every text ends with <|action_start|> in the cache, also one that got too
        long.
        """
        pick = pick or pick_token
        go = self.cfg.action_start_id
        to_act = stop is None
        stop_ids = [go] if stop is None else list(stop)
        prefix = self.read(user_part(batch))
        layout = prefix.layout
        cache = prefix.cache
        document = layout.last_document
        position = layout.after(USER)  # (B), of the next word
        order = column_after(layout.kind == USER)
        samples = torch.arange(len(order), device=order.device)
        last_word = order - 1 - prefix.skip
        logits = self.logits(prefix.hidden[samples, last_word])  # (B, V)
        done = torch.zeros_like(order, dtype=torch.bool)
        texts: list[list[int]] = [[] for _ in samples]
        for i in range(max_new_tokens + to_act):
            if to_act:  # a text that is read again must not ask for pictures, state or rows
                logits[:, self.placeholders] = -torch.inf
            token = pick(logits) if i < max_new_tokens else torch.full_like(order, go)
            for text, word, finished in zip(texts, token.tolist(), done.tolist()):
                if not finished and word not in stop_ids:
                    text.append(word)
            word_at = word_layout(document, position + i, order + i, done)
            x = self.embed_tokens(token)[:, None]  # (B, 1, D)
            hidden, cache = self.decoder(x, word_at, cache, layout)
            layout = layout.join(word_at)
            done = done | torch.isin(token, order.new_tensor(stop_ids))
            if done.all():
                break
            logits = self.logits(hidden[:, 0])
        return texts, prefix._replace(layout=layout, cache=cache)

    def denoise(
        self,
        prefix: Prefix,
        steps: int,
        noise: Tensor | None,
        action_prefix: Tensor | None = None,
    ) -> Tensor:
        """Euler's method from noise at t = 1 to the chunk (B, H, A) at t = 0; see act."""
        cfg = self.cfg
        kind = prefix.layout.kind
        shape = (len(kind), cfg.horizon, cfg.action_dim)
        reads = torch.ones_like(kind[:, :1], dtype=torch.bool)  # (B, 1): one noise sample
        layout = self.chunk_layout(prefix.layout, reads)
        x = torch.zeros(shape, device=kind.device) if noise is None else noise
        given = 0 if action_prefix is None else action_prefix.shape[1]
        if action_prefix is not None:
            x = torch.cat([action_prefix, x[:, given:]], 1)
        free = (torch.arange(cfg.horizon, device=kind.device) >= given).float()
        free = free.expand(shape[:2])  # (B, H): 0 for rows that are given
        word = self.embed_tokens.weight  # Its type is that of the rows to come.
        # Nothing that is the same for all noise is done within the loop.
        mask_and_rope = self.decoder.mask_and_rope(word, layout, prefix.layout)
        step = torch.arange(steps, device=kind.device)
        times = (1 - step / steps).view(-1, 1, 1) * free  # (steps, B, H)
        goal = None if prefix.goal is None else prefix.goal.embedding
        embed = self.head.embed_at(times, goal)
        cache = with_room(prefix.cache, cfg.horizon)
        on = dict(mask_and_rope=mask_and_rope, has_room=True)
        for i in range(steps):
            t = 1 - i / steps
            rows = embed(i, x).to(word.dtype)
            hidden, _ = self.decoder(rows, layout, cache, **on)
            velocity = self.head.read(hidden)
            if cfg.predict == 'action':
                velocity = (x - velocity) / t  # x_t = t * noise + (1 - t) * action, solved for it
            if given:
                velocity = velocity * free[..., None]
            x = x - 1 / steps * velocity
        return x

    # ---- disk

    def save(
        self,
        folder: str,
        meta: Mapping[str, Any],
        ema: Any = None,
        gather: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    ) -> None:
        """Write ema.safetensors, model.safetensors and meta.json.

        meta.json is gone until all is there: nothing loads without.

        Args:
            folder: to write into.
            meta: to stand in meta.json beside the configuration.
            ema: an optim.EMA, or None.
            gather: parallel.gather where several ranks call this; rank 0 writes.
        """
        path = f'{folder}/meta.json'

        def write(name: str, tensors: dict[str, Tensor]) -> bool:
            tensors = gather(tensors)
            if not tensors:  # another rank writes
                return False
            if os.path.exists(path):
                os.remove(path)
            pretrained.write_tensors(f'{folder}/{name}.safetensors', tensors)
            return True

        if ema is not None:
            write('ema', ema.state_dict(self))
        if write('model', self.state_dict()):
            pretrained.write_json(path, dict(meta, model=asdict(self.cfg)))

    @classmethod
    def load(cls, folder: str, ema: bool = True) -> tuple['VLA', dict[str, Any]]:
        """A checkpoint of train.py: the model in eval mode, and meta.json.

        Args:
            folder: with the files that `save` writes.
            ema: prefer the averaged weights where there are any.

        Raises:
            FileNotFoundError: the folder holds no checkpoint of train.py.
            ValueError: this code cannot make such a network.
        """
        meta = read_meta(folder)
        if meta is None:
            raise FileNotFoundError(
                f'{folder} holds no meta.json that train.py has written, so it is no checkpoint; '
                'a published folder is read by VLA.from_pretrained'
            )
        try:
            cfg = VLAConfig.from_json(meta['model'])
        except ValueError as fault:
            raise ValueError(
                f'{folder}/meta.json: {fault}; the checkpoint was made by revision '
                f'{meta.get("git_rev")}: use that'
            ) from None
        with torch.device('meta'):
            shapes = {name: tuple(t.shape) for name, t in cls(cfg).state_dict().items()}
        averaged = ema and os.path.exists(f'{folder}/ema.safetensors')
        if ema and not averaged and meta.get('settings', {}).get('ema'):
            raise ValueError(
                f'{folder}/ema.safetensors is missing: the run averaged its weights (ema '
                f'{meta["settings"]["ema"]}), and those that were not averaged act worse'
            )
        name = 'ema' if averaged else 'model'
        weights = pretrained.read_weights(f'{folder}/{name}.safetensors', shapes)
        model = cls(cfg)
        model.load_state_dict(weights)
        return model.eval(), meta

    @classmethod
    def from_pretrained(
        cls, folder: str, dtype: torch.dtype | None = None, **changes: Any
    ) -> 'VLA':
        """Read a Hugging Face folder of Qwen2.5-VL or of EO-1, or one of ours.

        With Qwen2.5-VL the action head is new.

        Args:
            folder: a meta.json that is not of train.py does not matter beside a config.json.
            dtype: of all but the action head; None: as in the files.
            changes: fields of VLAConfig for a published folder; one without tokenizer.json does not
                tell action_start_id.
        """
        if read_meta(folder) is not None:
            return cls.load(folder)[0].to(dtype)
        try:
            cfg = VLAConfig.checked(pretrained.read_config(folder) | changes)
        except ValueError as fault:
            raise ValueError(f'{folder} is no model that this code can make: {fault}') from None
        with torch.device('meta'):
            model = cls(cfg)
        model.add_robot_parts()
        if model.head.row is not None:
            nn.init.normal_(model.head.row, std=0.02)
        pretrained.fill(model, folder, dtype)
        return model.eval()

    def save_pretrained(self, folder: str, layout: str = 'hf') -> None:
        """Write a published folder, for transformers ('hf') or for EO-1's code ('eo1')."""
        pretrained.save(self, folder, layout)


def pick_token(
    logits: Tensor,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Scores (B, V) -> token ids (B): the likeliest, or at a temperature a random one.

    That is drawn from the fewest tokens that together have the probability top_p.
    """
    if not temperature:
        return logits.argmax(-1)
    p = (logits / temperature).softmax(-1)
    p, token = p.sort(-1, descending=True)
    likelier = p.cumsum(-1) - p
    p = p.masked_fill(likelier >= top_p, 0)
    drawn = torch.multinomial(p, 1, generator=generator)
    return token.gather(-1, drawn).squeeze(-1)


def flops_per_sample(cfg: VLAConfig, prefix_len: float, noise_samples: int) -> float:
    """Multiply-adds x 2 of one training sample, forward and backward, for the share of the peak.

    A backward pass costs twice a forward pass.

    Args:
        cfg: of the model.
        prefix_len: tokens of the prefix, padding included; a mean where that differs.
        noise_samples: K.
    """
    stem = STEMS[cfg.vision]
    D = cfg.hidden_size
    c = cfg.head_dim
    rows = noise_samples * cfg.horizon
    T = prefix_len + rows
    sight = cfg.n_cameras * stem.cost(cfg)
    if cfg.sight_only:
        return 6 * sight
    image_tokens = cfg.n_cameras * stem.tokens_per_picture(cfg)
    # Image and state tokens stop before the last block's queries and MLP.
    queries = cfg.n_layers * T - image_tokens - 1
    keys_values = cfg.n_layers * T * D * c * (cfg.n_heads + 2 * cfg.n_kv_heads)
    mlp = D * cfg.intermediate_size * (3 if cfg.mlp == 'swiglu' else 2)
    attention = D * c * cfg.n_heads + 2 * T * cfg.n_heads * c
    decoder = keys_values + queries * (attention + mlp)
    head = rows * (2 * cfg.action_dim * D + 3 * D * D)
    return 6 * (decoder + sight + head)
