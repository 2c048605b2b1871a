"""One decoder over [images, state, text, action rows]: reads, writes text, draws chunks by flow
matching.

    model = VLA(VLAConfig(vocab_size=512, state_dim=79, action_dim=15, ...))
    loss, parts = model(batch)                      # training; batch is described in data.py
    actions = model.act(batch, steps=5)             # (B, H, A) normalised; a prefix pass, then
    `steps` passes
    actions, texts = model.plan_and_act(batch)      # decode the subtask first, act having read it

One row of training is one pass over  user part | assistant part | draw 0 | draw 1 | ...
    user part       <|image_pad|>* <|state_pad|> instruction <|vla|>; image and state tokens are
                    replaced
    assistant part  subtask text <|action_start|>; causal, supervised by cross entropy
    draw k          H action rows made of (noise, time) draw k of the same chunk. A draw sees the
                    user part,
                    the assistant part only where read_text, and itself: K draws share a prefix, its
                    images.
Flow convention (pi0, EO-1), everywhere: t = 1 is noise, t = 0 is data,
    x_t = t * noise + (1 - t) * action,   velocity = noise - action,   Euler from t = 1 down to 0.
"""

# B batch, N cameras, L prefix tokens, K draws, H horizon, A action, S state, T tokens, D width, h
# heads of c
import functools
import json
import math
import os
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

from vla import grounding, layers, pretrained, vision

PAD, USER, ASSISTANT, ACTION = range(4)  # token kinds in a Layout
MASKED = -1e4  # added to a score: exp() of it is exactly 0; bf16 can hold it


@dataclass(frozen=True, kw_only=True)
class VLAConfig:
    # sizes and ids given by tokenizer and processor
    vocab_size: int
    state_dim: int
    action_dim: int
    horizon: int  # rows of one chunk
    image_pad_id: int
    state_pad_id: int
    action_start_id: int  # ends the decoded text
    action_pad_id: int | None = (
        None  # where the rows of a chunk stand inside the text: EO-1's layout,
    )
    action_pass_id: int | None = None  # noisy and clean
    video_pad_id: int | None = (
        None  # like image_pad_id; the pictures of a batch are listed as they appear
    )
    # decoder
    hidden_size: int = 192
    n_layers: int = 4
    n_heads: int = 3
    n_kv_heads: int = 3
    head_dim: int = 64
    intermediate_size: int = 768
    mlp: str = 'relu2'  # 'swiglu' | 'gelu' | 'relu2'
    norm: str = 'rms'  # 'rms' | 'layer'
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    mrope_section: tuple = (
        8,
        12,
        12,
    )  # frequencies turned by time, row and column; sums to head_dim / 2
    tie_embeddings: bool = False  # one table for reading and writing words; Qwen2.5-VL-3B: True
    # vision
    vision: str = 'conv'  # 'conv': stem for small budgets; 'qwen': Qwen2.5-VL's tower
    image_size: int = 96  # pixels, square; 'conv' takes only these three
    n_cameras: int = 3
    tokens_per_camera: int = 4
    vision_width: int = 1280  # 'qwen' only, with the sizes of the 3B model
    vision_layers: int = 32
    vision_heads: int = 16
    vision_intermediate: int = 3420
    vision_full_blocks: tuple = (7, 15, 23, 31)  # the other blocks attend within windows
    vision_window: int = 112  # pixels
    patch_size: int = 14  # pixels
    merge_size: int = 2  # patches on the side of a token
    patch_frames: int = 2
    tokens_per_second: float = 2  # rotary positions that a second of video takes
    # state
    state_frequencies: int = 6  # sines and cosines per state slot, periods 8, 4, 2 .. spreads; EO-1: 0
    # action head
    prefix_attention: str = 'bidirectional'  # user part; 'causal' = EO-1
    chunk_attention: str = 'bidirectional'  # rows of one chunk; 'causal' = EO-1
    predict: str = 'action'  # the head gives the clean chunk (small budgets); 'velocity' = EO-1
    head_layers: int = 1  # linear maps from hidden state to row; EO-1 has 2 with nothing between
    row_embedding: bool = True  # learnt embedding per row, besides the rotary position
    time_period_min: float = 0.06  # of the sine embedding of t; pi0 and EO-1: 4e-3
    time_period_max: float = 4.0
    action_loss: str = 'mse'  # 'mse' (EO-1) | 'l1'
    row_decay: float = 1.0  # weight of a row in the loss against that of the row before
    text_weight: float = 0.1
    scene_bricks: int = 0  # bricks seen in pictures and named by words; 0: without grounding.py
    scene_frames: tuple = ()  # what carries each camera: 0 torso, 1 left tool, 2 right tool
    eo1_compat: bool = False  # EO-1's diluted mean, and its sampled time on clean rows
    recompute: bool = False  # activation checkpointing per block: a third more work, less memory

    def __post_init__(self):
        both = ('bidirectional', 'causal')
        choices = dict(
            mlp=('swiglu', 'gelu', 'relu2'),
            norm=('rms', 'layer'),
            vision=('conv', 'qwen'),
            prefix_attention=both,
            chunk_attention=both,
            predict=('action', 'velocity'),
            head_layers=(1, 2),
            action_loss=('mse', 'l1'),
        )
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f'VLAConfig.{name} = {getattr(self, name)!r}, expected one of {allowed}'
                )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f'n_heads {self.n_heads} is no multiple of n_kv_heads {self.n_kv_heads}'
            )
        if sum(self.mrope_section) * 2 != self.head_dim:
            raise ValueError(
                f'mrope_section {self.mrope_section} must sum to head_dim {self.head_dim} / 2'
            )
        if self.vision == 'conv' and self.image_size % 16:
            raise ValueError(
                f'image_size {self.image_size} must be a multiple of 16 for the conv stem'
            )


# -----------------------------------------------------------------------------
# who sees whom


class Layout(NamedTuple):
    """One entry per token, all (B, T): the attention mask and the rotary angles follow from these
    alone.
    """

    position: (
        torch.Tensor
    )  # rotary position; (3, B, T) time, row, column where image tokens form a grid
    order: torch.Tensor  # a token sees tokens of the same or lower order
    document: torch.Tensor  # ... and of its own document; -1 is padding
    draw: torch.Tensor  # -1 outside the draws; a draw is seen by itself only
    kind: torch.Tensor
    reads: torch.Tensor  # whether the token may see the assistant part

    def join(self, other):
        return Layout(*(torch.cat(pair, -1) for pair in zip(self, other)))

    def after(self, *kinds):
        """The first position (B) that no token of these kinds has reached in the row's last
        document.
        """
        position = self.position if self.position.ndim == 2 else self.position.amax(0)
        member = (sum(self.kind == kind for kind in kinds) > 0) & (
            self.document == self.last_document
        )
        return position.masked_fill(~member, -1).amax(1) + 1

    @property
    def last_document(self):
        return self.document.amax(1, keepdim=True)  # (B, 1)


def attention_bias(query, key):
    """0 where a query may look, MASKED elsewhere: float32 (B, 1, Tq, Tk)."""
    q = Layout(*(f[..., None] for f in query))
    k = Layout(*(f[..., None, :] for f in key))
    seen = (k.order <= q.order) & (k.document == q.document)
    seen &= ((k.draw < 0) | (k.draw == q.draw)) & (q.reads | (k.kind != ASSISTANT))
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, MASKED).unsqueeze(1)


def documents(batch):
    """document (B, L): to which document of its row a token belongs, -1 for padding; place (B, L):
    the token's number in it; user (B, L): is it of the user part? Rows are padded on the right to
    total_len, unless 'document' is in the batch: padding anywhere (an attention mask minus 1),
    several documents in a row. Then user_len is (B,) or, per document, (B, documents); without it
    all is user part.
    """
    ids = batch['input_ids']
    index = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    if 'document' not in batch:
        user = index < batch['user_len'][:, None]
        real = index < batch['total_len'][:, None]
        return torch.where(real, 0, -1), index, user
    document = batch['document']
    begins = document != F.pad(document, (1, 0), value=-2)[:, :-1]
    place = index - torch.where(begins, index, 0).cummax(1).values
    if 'user_len' not in batch:
        return document, place, document >= 0
    user_len = batch['user_len'].view(len(ids), -1).gather(1, document.clamp(min=0))
    return document, place, place < user_len


def column_after(member):
    """bool (B, L) -> (B): the column after the last True."""
    return (member * torch.arange(1, member.shape[1] + 1, device=member.device)).amax(1)


def rotary_tables(position, head_dim, theta, mrope_section, dtype):
    """cos and signed sin of the rotary angles, (B, T, 1, c). Text has equal positions on the three
    axes: a (B, T) position is the common case, and (3, B, T) picks for each frequency the axis that
    turns it.
    """
    ramp = torch.arange(0, head_dim, 2, device=position.device, dtype=torch.float32) / head_dim
    angle = position[..., None].float() * theta**-ramp
    if position.ndim == 3:
        parts = angle.split(list(mrope_section), -1)
        angle = torch.cat([part[axis] for axis, part in enumerate(parts)], -1)
    return layers.rotation(angle, dtype)


# -----------------------------------------------------------------------------
# decoder


def make_norm(cfg):
    return (layers.RMSNorm if cfg.norm == 'rms' else nn.LayerNorm)(
        cfg.hidden_size, eps=cfg.norm_eps
    )


def row_weights(cfg, device):
    """(H), mean 1"""
    weights = cfg.row_decay ** torch.arange(cfg.horizon, device=device)
    return weights / weights.mean()


class Prefix(NamedTuple):
    """What reading the images, the state and the text leaves for words and rows to go on from."""

    layout: Layout
    cache: list  # keys and values of each block
    hidden: torch.Tensor  # (B, L - skip, D)
    skip: int
    seen: torch.Tensor | None  # (B, N, n, 5), see grounding.SceneHead
    answer: torch.Tensor | None  # (B, R), see grounding.Grounding
    goal_embedding: torch.Tensor | None  # (B, D), what that means for the rows of a chunk


class Block(nn.Module):
    """Pre-norm Qwen2.5 block: grouped-query attention with qkv bias and rotary positions, then the
    MLP.
    """

    def __init__(self, cfg):
        super().__init__()
        self.heads = (cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads)
        self.head_dim = cfg.head_dim
        self.mlp = cfg.mlp
        up = cfg.intermediate_size * (2 if cfg.mlp == 'swiglu' else 1)  # gate, then up
        self.norm1 = make_norm(cfg)
        self.norm2 = make_norm(cfg)
        self.qkv = nn.Linear(cfg.hidden_size, sum(self.heads) * cfg.head_dim)
        self.out = nn.Linear(cfg.n_heads * cfg.head_dim, cfg.hidden_size, bias=False)
        self.up = nn.Linear(cfg.hidden_size, up, bias=False)
        self.down = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)

    def forward(self, x, cos, sin, bias, past=None, skip=0):
        """x (B, T, D); past: keys and values (B, h_kv, T_past, c) seen before. Returns x without
        its first `skip` tokens, which others may look at all the same, and the extended keys and
        values.
        """
        B, T, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(B, T, -1, self.head_dim)  # (B, T, h + 2 h_kv, c)
        qk, v = qkv.split([sum(self.heads[:2]), self.heads[2]], 2)
        q, k = (
            layers.rotate(qk, cos, sin).transpose(1, 2).split(self.heads[:2], 1)
        )  # (B, h or h_kv, T, c)
        v = v.transpose(1, 2)
        if past is not None:
            k = torch.cat([past[0], k], 2)
            v = torch.cat([past[1], v], 2)
        y = layers.attend(q[:, :, skip:], k, v, bias[:, :, skip:])  # (B, h, T - skip, c)
        x = x[:, skip:] + self.out(y.transpose(1, 2).flatten(2))
        y = self.up(self.norm2(x))
        if self.mlp == 'swiglu':
            gate, y = y.chunk(2, -1)
            y = F.silu(gate) * y
        else:
            y = F.gelu(y) if self.mlp == 'gelu' else layers.SquaredReLU.apply(y)
        return x + self.down(y), (k, v)


class Decoder(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = make_norm(cfg)

    def mask_and_rope(self, x, layout, past_layout=None):
        """Rotary tables and attention bias of tokens x, described by layout, behind those of
        past_layout.
        """
        cfg = self.cfg
        dtype = layers.compute_dtype(x)
        cos, sin = rotary_tables(
            layout.position, cfg.head_dim, cfg.rope_theta, cfg.mrope_section, dtype
        )
        return (
            cos,
            sin,
            attention_bias(layout, layout if past_layout is None else past_layout.join(layout)),
        )

    def forward(self, x, layout, past=None, past_layout=None, skip=0, mask_and_rope=None):
        """x (B, T, D), described by layout. `past` is what an earlier call returned (one (k, v) per
        block), described by past_layout. Returns the normed hidden states (B, T - skip, D) and keys
        and values with the past. What the first `skip` tokens become in the last block is not
        computed (a tenth of the work of the demo). mask_and_rope: where there are many calls with the same
        layouts it is worked out once.
        """
        cfg = self.cfg
        last = len(self.blocks) - 1
        cache = []
        mask_and_rope = mask_and_rope or self.mask_and_rope(x, layout, past_layout)
        for i, block in enumerate(self.blocks):
            run = layers.recomputed(block, cfg.recompute)
            seen = None if past is None else past[i]
            x, kv = run(x, *mask_and_rope, seen, skip if i == last else 0)
            cache.append(kv)
        return self.norm(x), cache


class ActionHead(nn.Module):
    """EO-1's head: noisy rows and their flow time to embeddings, hidden states to rows."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        D = cfg.hidden_size
        self.action_in = nn.Linear(cfg.action_dim, D)
        self.time_mlp_in = nn.Linear(2 * D, D)
        self.time_mlp_out = nn.Linear(D, D)
        self.row = nn.Parameter(torch.zeros(cfg.horizon, D)) if cfg.row_embedding else None
        self.action_out = nn.Linear(D, cfg.action_dim)
        nn.init.normal_(
            self.action_out.weight, std=0.002
        )  # the first prediction is the mean action
        nn.init.zeros_(self.action_out.bias)
        if cfg.head_layers == 2:
            self.action_out = nn.Sequential(nn.Linear(D, D), nn.Identity(), self.action_out)

    def time_embedding(self, time):
        """(...) in 0..1 -> (..., D), float32: sines and cosines with log-spaced periods."""
        cfg = self.cfg
        n = self.cfg.hidden_size // 2
        ramp = torch.linspace(0, 1, n, device=time.device, dtype=torch.float32)
        period = cfg.time_period_min * (cfg.time_period_max / cfg.time_period_min) ** ramp
        angle = time.float()[..., None] * (2 * math.pi / period)
        return torch.cat([angle.sin(), angle.cos()], -1)

    def embed(self, rows, time):
        """rows (..., H, A), time (..., H) -> (..., H, D)."""
        x = self.action_in(rows)
        x = torch.cat([x, self.time_embedding(time).to(x.dtype)], -1)
        x = self.time_mlp_out(F.silu(self.time_mlp_in(x)))
        return x if self.row is None else x + self.row

    def read(self, hidden):
        """Hidden states (..., D) -> rows (..., A), float32: clean actions or velocities."""
        return self.action_out(hidden.to(self.action_in.weight.dtype)).float()


# -----------------------------------------------------------------------------
# the model


class VLA(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        D = cfg.hidden_size
        self.embed_tokens = nn.Embedding(cfg.vocab_size, D)
        if cfg.vision == 'conv':
            self.vision = vision.ConvStem(cfg.image_size, cfg.tokens_per_camera, D)
            self.image_embedding = nn.Parameter(
                torch.zeros(cfg.n_cameras * cfg.tokens_per_camera, D)
            )
        else:
            self.vision = vision.QwenVision(
                cfg.vision_width,
                cfg.vision_layers,
                cfg.vision_heads,
                cfg.vision_intermediate,
                D,
                cfg.vision_full_blocks,
                cfg.patch_size,
                cfg.merge_size,
                cfg.patch_frames,
                cfg.vision_window,
                cfg.recompute,
            )
            self.image_embedding = None
        self.add_robot_parts()
        self.decoder = Decoder(cfg)
        self.lm_head = None if cfg.tie_embeddings else nn.Linear(D, cfg.vocab_size, bias=False)
        self.reset_parameters()

    def add_robot_parts(self):
        """All that no language model brings along."""
        cfg = self.cfg
        D = self.cfg.hidden_size
        numbers = cfg.state_dim + cfg.n_cameras * cfg.scene_bricks * 5  # state and sights
        self.state_in = nn.Linear(numbers * (1 + 2 * cfg.state_frequencies), D)  # and their sines
        self.scene_head = None
        self.grounding = None
        if cfg.scene_bricks:
            per_camera = cfg.tokens_per_camera * D
            self.scene_head = grounding.SceneHead(cfg.scene_frames, cfg.scene_bricks, per_camera)
            self.grounding = grounding.Grounding(cfg.scene_bricks, D, cfg.state_frequencies)
        self.head = ActionHead(cfg)

    def reset_parameters(self):
        # a word has to outweigh what attention adds to it, or the model is slow to notice which
        # word it was
        nn.init.normal_(self.embed_tokens.weight, std=0.02 if self.cfg.tie_embeddings else 1.0)
        head = None if self.lm_head is None else self.lm_head.weight
        for table in (self.image_embedding, self.head.row, head):
            if table is not None:
                nn.init.normal_(table, std=0.02)
        for block in self.decoder.blocks:  # residual branches start small
            for linear in (block.out, block.down):
                nn.init.normal_(linear.weight, std=0.02 / self.cfg.n_layers**0.5)

    @property
    def placeholders(self):
        """Ids of the tokens that stand for pictures, the state and rows of a chunk."""
        cfg = self.cfg
        ids = (
            cfg.image_pad_id,
            cfg.video_pad_id,
            cfg.state_pad_id,
            cfg.action_pad_id,
            cfg.action_pass_id,
        )
        return [i for i in ids if i is not None]

    @property
    def n_parameters(self):
        return sum(p.numel() for p in self.parameters())

    # ---- reading the batch

    def embed_images(self, batch):
        """All image tokens of the batch in order of appearance, (n, D)."""
        cfg = self.cfg
        if cfg.vision == 'conv':
            tokens = self.vision(batch['images'].flatten(0, 1))  # (B*N, P, D)
            tokens = tokens.view(len(batch['images']), -1, cfg.hidden_size)  # (B, N*P, D)
            return (tokens + self.image_embedding).flatten(0, 1)
        if 'patches' in batch:  # pictures of any size
            return self.vision(batch['patches'], batch['grids'])
        return self.vision(
            *vision.patchify(
                batch['images'].flatten(0, 1), cfg.patch_size, cfg.merge_size, cfg.patch_frames
            )
        )

    def embed_prefix(self, batch):
        """Token embeddings (B, L, D), with images, state and, where they stand in the text, action
        rows; and what is seen of the bricks, None without a SceneHead.
        """
        cfg = self.cfg
        ids = batch['input_ids']
        parts = []
        seen = None
        x = self.embed_tokens(ids).flatten(0, 1)  # (B*L, D)
        if 'images' in batch or 'patches' in batch:
            images = self.embed_images(batch)  # (n, D)
            parts.append((self.picture_tokens(ids), images))
        if 'state' in batch:
            state = batch['state']
            if self.scene_head is not None:
                seen = self.scene_head(images.view(len(ids), cfg.n_cameras, -1))
                state = torch.cat([state, self.scene_head.features(seen)], -1)
            state = layers.fourier_features(state, cfg.state_frequencies)
            parts.append((ids == cfg.state_pad_id, self.state_in(state)))
        if 'rows' in batch:
            rows = self.head.embed(batch['rows'], batch['row_time'])
            parts.append((self.row_tokens(ids), rows.flatten(0, 1)))
        for where, value in parts:
            if not torch.compiler.is_compiling():
                assert (n := int(where.sum())) == len(value), (
                    f'{n} places, {len(value)} embeddings for them'
                )
            # the number of places is known, so that a compiler need not look at the ids
            at = where.flatten().nonzero_static(size=len(value)).squeeze(1)
            x = x.index_copy(0, at, value.to(x.dtype))
        return x.view(*ids.shape, -1), seen

    def row_tokens(self, ids):
        """Where rows of a chunk stand in the text, bool (B, L)."""
        return (ids == self.cfg.action_pad_id) | (ids == self.cfg.action_pass_id)

    def picture_tokens(self, ids):
        image = ids == self.cfg.image_pad_id
        video = self.cfg.video_pad_id
        return image if video is None else image | (ids == video)

    def prefix_layout(self, batch):
        cfg = self.cfg
        ids = batch['input_ids']
        document, position, user = documents(batch)
        index = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        kind = torch.where(document < 0, PAD, torch.where(user, USER, ASSISTANT))
        # one order for the whole user part makes it bidirectional; the assistant part counts on and
        # is causal
        order = (
            index
            if cfg.prefix_attention == 'causal'
            else torch.where(user, index - position, index)
        )
        if cfg.vision == 'qwen':
            square = (1, *[cfg.image_size // cfg.patch_size] * 2)
            grids = []
            if 'grids' in batch or 'images' in batch:
                grids = (
                    batch['grids']
                    if 'grids' in batch
                    else [square] * batch['images'].shape[:2].numel()
                )
            seconds = batch['grid_seconds'] if 'grid_seconds' in batch else None
            position = vision.grid_positions(
                self.picture_tokens(ids),
                grids,
                cfg.merge_size,
                seconds,
                cfg.tokens_per_second,
                index - position,
            )
        if cfg.action_pad_id is not None and cfg.chunk_attention == 'bidirectional':
            row = self.row_tokens(ids)
            order = torch.where(row, order - (row.cumsum(1) - 1) % cfg.horizon, order)
        return Layout(
            position, order, document, torch.full_like(index, -1), kind, torch.ones_like(user)
        )

    def chunk_layout(self, prefix, reads):
        """K draws of H rows that follow `prefix`; reads bool (B, K). Positions go on after the part
        that is read, so that training and inference, with or without text, put a row at the same
        place.
        """
        H, (B, K) = self.cfg.horizon, reads.shape
        start = torch.where(
            reads.t(), prefix.after(USER, ASSISTANT), prefix.after(USER)
        ).t()  # (B, K)
        row = torch.arange(H, device=reads.device).expand(B, K, H)
        place = (start[..., None] + row).flatten(1)  # (B, K*H)
        order = torch.full_like(place, 1 << 30)  # after everything
        if self.cfg.chunk_attention == 'causal':
            order += row.flatten(1)
        draw = torch.arange(K, device=reads.device)[:, None].expand(B, K, H).flatten(1)
        position = place if prefix.position.ndim == 2 else place.expand(3, -1, -1)
        document = prefix.last_document.expand(place.shape)
        kind = torch.full_like(place, ACTION)
        reads = reads.repeat_interleave(H, 1)
        return Layout(position, order, document, draw, kind, reads)

    def logits(self, hidden):
        return F.linear(
            hidden, (self.embed_tokens if self.lm_head is None else self.lm_head).weight
        ).float()

    def read(self, batch, skip=None):
        """One pass over images, state and text. What the first `skip` tokens become in the last
        block is not computed; None: all that precede the first word that matters to anybody.
        """
        layout = self.prefix_layout(batch)
        ids = batch['input_ids']
        answer = None
        goal_embedding = None
        words = layout.kind == USER
        if self.grounding is not None:
            words = words & ~torch.isin(ids, ids.new_tensor(self.placeholders))
        if skip is None and torch.compiler.is_compiling():
            skip = 0  # looking at ids would break the graph
        elif skip is None:
            first = words.int().argmax(1) if self.grounding is not None else column_after(words) - 1
            skip = int(first.min())
        x, seen = self.embed_prefix(batch)
        hidden, cache = self.decoder(x, layout, skip=skip)
        if self.grounding is not None:
            words = words[:, skip:, None].to(hidden.dtype)
            answer = self.grounding((hidden * words).sum(1) / words.sum(1))
            poses = self.scene_head.poses(seen.detach(), batch['tool'])
            goal_embedding = self.grounding.embed(answer, poses, batch['tool'])
        return Prefix(layout, cache, hidden, skip, seen, answer, goal_embedding)

    def embed_rows(self, rows, time, prefix):
        """Noisy rows (B, ..., H, A) and their flow time -> (B, ..., H, D)."""
        x = self.head.embed(rows, time)
        if prefix.goal_embedding is not None:
            x = x + prefix.goal_embedding.view(len(x), *[1] * (x.ndim - 2), -1).to(x.dtype)
        return x.to(self.embed_tokens.weight.dtype)  # of a pretrained decoder: bfloat16

    # ---- training

    def predict(self, batch, skip=None):
        """What the head says of each draw (B, K, H, A), and the Prefix."""
        actions = batch['actions']
        noise = batch['noise']
        time = batch['time']
        B, K, H, A = noise.shape
        time = time if time.ndim == 3 else time[..., None].expand(B, K, H)  # a flow time per row
        x_t = time[..., None] * noise + (1 - time[..., None]) * actions[:, None]  # (B, K, H, A)
        prefix = self.read(batch, skip)
        rows = self.embed_rows(x_t, time, prefix).flatten(1, 2)  # (B, K*H, D)
        layout = self.chunk_layout(prefix.layout, batch['read_text'])
        hidden, _ = self.decoder(rows, layout, prefix.cache, prefix.layout)
        return self.head.read(hidden).view(B, K, H, A), prefix

    def row_error(self, predicted, target):
        """(..., H, A) twice -> (..., H)"""
        off = predicted - target
        return (off.abs() if self.cfg.action_loss == 'l1' else off.square()).mean(-1)

    def forward(self, batch):
        """Loss and its parts. Flow: mean over valid rows, draws and dims. Text: mean over
        supervised tokens. Where the batch is a share of a larger one, n_rows and n_tokens in it are
        the counts to divide by.
        """
        if 'noise' not in batch or batch['noise'].ndim == 3:
            return self.forward_inline(batch)
        cfg = self.cfg
        actions = batch['actions']
        noise = batch['noise']
        predicted, prefix = self.predict(batch, 0 if 'document' in batch else None)
        target = actions[:, None] if cfg.predict == 'action' else noise - actions[:, None]
        valid = batch['action_mask'][:, None] * row_weights(cfg, noise.device)  # (B, 1, H)
        if batch['time'].ndim == 3:  # rows at time 0 are given, not asked for
            valid = valid * (batch['time'] > 0)  # (B, K, H)
        n_rows = batch['n_rows'] if 'n_rows' in batch else valid.sum() / valid.shape[1]
        error = self.row_error(predicted, target)  # (B, K, H)
        flow = (error * valid).sum() / (n_rows * noise.shape[1])
        loss, parts = self.total_loss(flow, prefix.hidden, batch['labels'][:, prefix.skip :], batch)
        if self.grounding is not None:
            scene = self.scene_head.loss(prefix.seen, batch['scene'])
            words = self.grounding.loss(prefix.answer, batch['referents'])
            loss = loss + scene + words
            parts = parts | dict(scene=scene.detach(), words=words.detach())
        return loss, parts

    def forward_inline(self, batch):
        """Loss of rows that stand inside the text, EO-1's layout and its interleaved samples:
        <|action_pad|> tokens are a noisy chunk, <|action_pass|> tokens one given clean. actions and
        noise (n, H, A), time (n) and action_mask (n, H) list the chunks of the batch in order of
        appearance; a batch without them is text (and pictures) only.
        """
        cfg = self.cfg
        ids = batch['input_ids']
        layout = self.prefix_layout(batch)
        if 'noise' not in batch:
            hidden, _ = self.decoder(self.embed_prefix(batch)[0], layout)
            return self.total_loss(hidden.new_zeros(()), hidden, batch['labels'], batch)
        at = self.row_tokens(ids)
        actions = batch['actions']
        noise = batch['noise']
        clean = (ids[at] == cfg.action_pass_id).view(actions.shape[:2])  # (n, H)
        time = batch['time'][:, None].expand(clean.shape)
        per_row = time.masked_fill(clean, 0.0)
        x_t = per_row[..., None] * noise + (1 - per_row[..., None]) * actions
        rows = dict(rows=x_t, row_time=time if cfg.eo1_compat else per_row)
        hidden, _ = self.decoder(self.embed_prefix(batch | rows)[0], layout)  # (B, L, D)
        target = actions if cfg.predict == 'action' else noise - actions
        valid = batch['action_mask'] & ~clean
        error = self.row_error(self.head.read(hidden[at]).view(actions.shape), target)
        flow = (error * valid).sum() / (valid.numel() if cfg.eo1_compat else valid.sum())
        return self.total_loss(flow, hidden, batch['labels'], batch)

    def total_loss(self, flow, hidden, labels, batch):
        """Add the text loss; hidden (B, L, D) and labels (B, L) belong to the same tokens."""
        labels = labels[:, 1:]  # what comes after each
        if 'document' in batch:  # no token foretells the next document
            document = batch['document'][:, -hidden.shape[1] :]
            labels = labels.masked_fill(document.diff(dim=1) != 0, -100)
        at = ((labels := labels.flatten()) != -100).nonzero().squeeze(1)
        logits = self.logits(hidden[:, :-1].flatten(0, 1)[at])
        labels = labels[at]
        n_tokens = batch['n_tokens'] if 'n_tokens' in batch else max(len(at), 1)
        text = F.cross_entropy(logits, labels, reduction='sum') / n_tokens
        hits = (logits.detach().argmax(-1) == labels).sum() / n_tokens
        parts = dict(flow=flow.detach(), text=text.detach(), text_acc=hits)
        return flow + self.cfg.text_weight * text, parts

    # ---- inference

    @torch.no_grad()
    def act(self, batch, steps=5, noise=None, solver='euler', read_text=True, action_prefix=None):
        """Action chunk (B, H, A), normalised. noise (B, H, A) starts the flow; None = zeros,
        deterministic. A sample with an assistant part in the batch has read it, unless read_text is
        False. action_prefix (B, P, A): the first P rows of the chunk, which are being executed
        while this one is made. They stay as they are, clean, at t = 0; the rest is drawn to go on
        from them.
        """
        batch = batch if read_text else user_part(batch)
        prefix = self.read(batch, batch['input_ids'].shape[1] if self.grounding is None else None)
        return self.denoise(prefix, steps, noise, solver, action_prefix)

    @torch.no_grad()
    def generate(
        self, batch, max_new_tokens=24, stop=None, temperature=0.0, top_p=1.0, generator=None
    ):
        """Text after the user part: token ids per sample, up to and without a token of `stop`;
        None: <|action_start|>. temperature 0: the likeliest word every time, else see
        pick_token.
        """
        pick = functools.partial(
            pick_token, temperature=temperature, top_p=top_p, generator=generator
        )
        return self.decode_text(batch, max_new_tokens, stop, pick)[0]

    @torch.no_grad()
    def plan_and_act(
        self,
        batch,
        steps=5,
        max_new_tokens=24,
        noise=None,
        solver='euler',
        action_prefix=None,
        texts=None,
    ):
        """Decode the text, then act having read it; one prefix pass serves both. -> (actions, token
        ids). texts: token ids of an earlier call, to act k times on one text: they are read instead
        of decoded.
        """
        if texts is not None:
            batch = give_text(batch, [[*text, self.cfg.action_start_id] for text in texts])
            return self.act(batch, steps, noise, solver, action_prefix=action_prefix), texts
        texts, prefix = self.decode_text(batch, max_new_tokens)
        return self.denoise(prefix, steps, noise, solver, action_prefix), texts

    def decode_text(self, batch, max_new_tokens, stop=None, pick=None):
        """Without `stop` every text ends with <|action_start|> in the cache, also one that got too
        long.
        """
        go = self.cfg.action_start_id
        closing = stop is None
        batch = user_part(batch)
        stop = [go] if closing else list(stop)
        pick = pick or pick_token
        prefix = self.read(batch)
        layout = prefix.layout
        cache = prefix.cache
        document = layout.last_document
        end = column_after(layout.kind == USER)
        B = len(end)
        start = layout.after(USER)
        last = end - 1 - prefix.skip
        logits = self.logits(prefix.hidden[torch.arange(B, device=end.device), last])  # (B, V)
        done = torch.zeros_like(end, dtype=torch.bool)
        texts = [[] for _ in range(B)]
        for i in range(max_new_tokens + closing):
            if closing:  # a text that is read again must not ask for pictures, state or rows
                logits[:, self.placeholders] = -torch.inf
            token = pick(logits) if i < max_new_tokens else torch.full_like(end, go)
            for text, t, d in zip(texts, token.tolist(), done.tolist()):
                text += [] if d or t in stop else [t]
            # a finished sample rides along as padding until all are done
            place = (start + i)[:, None]
            kind = torch.where(done, PAD, ASSISTANT)[:, None]
            position = place if layout.position.ndim == 2 else place.expand(3, -1, -1)
            order = (end + i)[:, None]
            draw = torch.full_like(place, -1)
            own = torch.where(done[:, None], -1, document)
            one = Layout(position, order, own, draw, kind, torch.ones_like(kind, dtype=torch.bool))
            hidden, cache = self.decoder(self.embed_tokens(token)[:, None], one, cache, layout)
            layout = layout.join(one)
            done = done | torch.isin(token, end.new_tensor(stop))
            if done.all():
                break
            logits = self.logits(hidden[:, 0])
        return texts, prefix._replace(layout=layout, cache=cache)

    def denoise(self, prefix, steps, noise, solver, action_prefix=None):
        cfg = self.cfg
        kind = prefix.layout.kind
        layout = self.chunk_layout(prefix.layout, torch.ones_like(kind[:, :1], dtype=torch.bool))
        shape = (len(kind), cfg.horizon, cfg.action_dim)
        x = torch.zeros(shape, device=kind.device) if noise is None else noise
        clean = 0 if action_prefix is None else action_prefix.shape[1]
        x = torch.cat([action_prefix, x[:, clean:]], 1) if clean else x
        free = (
            (torch.arange(cfg.horizon, device=kind.device) >= clean).float().expand(shape[:2])
        )  # (B, H)

        mask_and_rope = self.decoder.mask_and_rope(self.embed_tokens.weight, layout, prefix.layout)

        def velocity(x, t):
            rows = self.embed_rows(x, t * free, prefix)
            hidden, _ = self.decoder(rows, layout, prefix.cache, mask_and_rope=mask_and_rope)
            out = self.head.read(hidden)
            out = (
                (x - out) / t if cfg.predict == 'action' else out
            )  # clean chunk c: velocity (x_t - c) / t
            return out * free[..., None] if clean else out

        for i in range(steps):
            t = 1 - i / steps
            dt = 1 / steps
            v = velocity(x, t)
            if solver == 'midpoint':
                v = velocity(x - 0.5 * dt * v, t - 0.5 * dt)
            elif solver != 'euler':
                raise ValueError(f"solver {solver!r}, expected 'euler' or 'midpoint'")
            x = x - dt * v
        return x

    # ---- disk

    def save(self, folder, meta, ema=None, gather=dict):
        """ema.safetensors (an EMA, optional), model.safetensors and meta.json, which is gone until
        all is there: nothing loads without. gather: parallel.gather where several ranks call this;
        rank 0 writes.
        """
        for name, tensors in (('ema', ema and ema.state_dict(self)), ('model', self.state_dict())):
            if tensors and (tensors := gather(tensors)):
                if os.path.exists(f'{folder}/meta.json'):
                    os.remove(f'{folder}/meta.json')
                pretrained.write_tensors(f'{folder}/{name}.safetensors', tensors)
        if tensors:  # the model's, on the rank that writes
            pretrained.write_json(f'{folder}/meta.json', dict(meta, model=asdict(self.cfg)))

    @classmethod
    def load(cls, folder, ema=True):
        """(model in eval mode, meta). Prefers the averaged weights where there are any."""
        if not os.path.exists(f'{folder}/meta.json'):
            raise FileNotFoundError(
                f'{folder} holds no meta.json: not a checkpoint written by train.py'
            )
        with open(f'{folder}/meta.json') as f:
            meta = json.load(f)
        unknown = meta['model'].keys() - VLAConfig.__dataclass_fields__.keys()
        if unknown:
            raise ValueError(
                f'{folder}/meta.json: this code knows no {", ".join(sorted(unknown))}; the '
                f'checkpoint was made by revision {meta.get("git_rev")}: use that'
            )
        model = cls(
            VLAConfig(**{k: tuple(v) if type(v) is list else v for k, v in meta['model'].items()})
        )
        name = 'ema' if ema and os.path.exists(f'{folder}/ema.safetensors') else 'model'
        weights = load_file(f'{folder}/{name}.safetensors')
        model.load_state_dict({k: v.view(-1) if v.ndim == 0 else v for k, v in weights.items()})
        return model.eval(), meta

    @classmethod
    def from_pretrained(cls, folder, dtype=None, **changes):
        """Read a Hugging Face folder of Qwen2.5-VL, whose action head is then new, of EO-1, or one
        of ours. dtype: of all but the action head; None: as in the files. `changes` are fields of
        VLAConfig; a folder without tokenizer.json does not tell action_start_id.
        """
        if os.path.exists(f'{folder}/meta.json'):
            return cls.load(folder)[0].to(dtype)
        cfg = VLAConfig(**pretrained.read_config(folder) | changes)
        with torch.device('meta'):
            model = cls(cfg)
        model.add_robot_parts()
        if cfg.row_embedding:
            nn.init.normal_(model.head.row, std=0.02)
        pretrained.fill(model, folder, dtype)
        return model.eval()

    def save_pretrained(self, folder, layout='hf'):
        """Write a folder that transformers ('hf') or EO-1's code ('eo1') opens, and
        from_pretrained.
        """
        pretrained.save(self, folder, layout)


def user_part(batch):
    """The batch without its assistant part."""
    if 'document' in batch:
        document, _, user = documents(batch)
        return dict(batch, document=torch.where(user, document, -1))
    L = int(batch['user_len'].max())
    return dict(batch, total_len=batch['user_len'], input_ids=batch['input_ids'][:, :L])


def give_text(batch, texts):
    """The batch with these token ids as assistant parts; one document in a row."""
    document, _, user = documents(batch)
    assert document.max() == 0, 'a row of several documents has no one assistant part'
    users = [ids[keep] for ids, keep in zip(batch['input_ids'], user & (document == 0))]
    rows = [torch.cat([ids, ids.new_tensor(text)]) for ids, text in zip(users, texts)]
    lengths = {
        name: torch.tensor([len(row) for row in part], device=rows[0].device)
        for name, part in (('user_len', users), ('total_len', rows))
    }
    batch = {k: v for k, v in batch.items() if k != 'document'}
    return dict(batch, **lengths, input_ids=nn.utils.rnn.pad_sequence(rows, batch_first=True))


def pick_token(logits, temperature=0.0, top_p=1.0, generator=None):
    """Scores (B, V) -> token ids (B): the likeliest; or, at a temperature, one drawn from the
    fewest tokens that together have the probability top_p.
    """
    if not temperature:
        return logits.argmax(-1)
    p, token = (logits / temperature).softmax(-1).sort(-1, descending=True)
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0)
    return token.gather(-1, torch.multinomial(p, 1, generator=generator)).squeeze(-1)


# -----------------------------------------------------------------------------


def flops_per_sample(cfg, prefix_len, noise_samples):
    """Multiply-adds x 2 of one training sample, forward and backward (3x forward), for the share of
    peak.
    """
    T = prefix_len + noise_samples * cfg.horizon
    D = cfg.hidden_size
    c = cfg.head_dim
    pictures, image_tokens = vision.macs(cfg)
    queries = cfg.n_layers * T - image_tokens - 1  # image and state tokens stop before the last MLP
    keys_values = cfg.n_layers * T * D * c * (cfg.n_heads + 2 * cfg.n_kv_heads)
    mlp = D * cfg.intermediate_size * (3 if cfg.mlp == 'swiglu' else 2)
    decoder = keys_values + queries * (D * c * cfg.n_heads + mlp + 2 * T * cfg.n_heads * c)
    head = noise_samples * cfg.horizon * (2 * cfg.action_dim * D + 3 * D * D)
    return 6 * (decoder + pictures + head)
