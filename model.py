"""One decoder over [images, state, text, action rows]: it reads, writes text and draws action chunks by flow matching.

    model = VLA(VLAConfig(vocab_size=512, state_dim=79, action_dim=15, ...))
    loss, parts = model(batch)                      # training; batch is described in data.py
    actions = model.act(batch, steps=5)             # (B, H, A) normalised; the prefix is read once, then `steps` passes
    actions, texts = model.plan_and_act(batch)      # decode the subtask first, act having read it

One row of training is one pass over  user part | assistant part | draw 0 | draw 1 | ...
    user part       <|image_pad|>* <|state_pad|> instruction <|vla|>; image and state embeddings replace their tokens
    assistant part  subtask text <|action_start|>; causal, supervised by cross entropy
    draw k          H action rows made of (noise, time) draw k of the same chunk. A draw sees the user part, the assistant
                    part only where read_text, and itself: K draws share the cost of one prefix and one image encoding.
Flow convention (pi0, EO-1), everywhere: t = 1 is noise, t = 0 is data,
    x_t = t * noise + (1 - t) * action,   velocity = noise - action,   Euler from t = 1 down to 0.
"""
# B batch, N cameras, L prefix tokens, K draws, H horizon, A action, S state, T tokens, D width, h heads, c head width
import json
import math
import os
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

PAD, USER, ASSISTANT, ACTION = 0, 1, 2, 3      # token kinds in a Layout
MASKED = -1e4                                  # added to a score: exp() of it is exactly 0, and bf16 can hold it


@dataclass(frozen=True, kw_only=True)
class VLAConfig:
    # sizes given by tokenizer and processor
    vocab_size: int
    state_dim: int
    action_dim: int
    horizon: int                      # rows of one chunk
    image_pad_id: int
    state_pad_id: int
    action_start_id: int              # ends the decoded text
    # decoder
    hidden_size: int = 192
    n_layers: int = 4
    n_heads: int = 3
    n_kv_heads: int = 3
    head_dim: int = 64
    intermediate_size: int = 768
    mlp: str = 'relu2'                # 'swiglu' | 'gelu' | 'relu2'
    norm: str = 'rms'                 # 'rms' | 'layer'
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    mrope_section: tuple = (8, 12, 12)  # frequencies turned by the time, height and width position; sums to head_dim / 2
    tie_embeddings: bool = True
    # vision
    vision: str = 'conv'
    image_size: int = 96              # pixels, square
    n_cameras: int = 3
    tokens_per_camera: int = 4
    # action head
    prefix_attention: str = 'bidirectional'  # user part; 'causal' = EO-1
    chunk_attention: str = 'bidirectional'   # rows of one chunk; 'causal' = EO-1
    predict: str = 'action'           # 'action': the head gives the clean chunk (small budgets); 'velocity': EO-1
    row_embedding: bool = True        # learnt embedding per row, besides the rotary position
    time_period_min: float = 0.06     # of the sine embedding of t; pi0 and EO-1: 4e-3
    time_period_max: float = 4.0
    text_weight: float = 0.1

    def __post_init__(self):
        choices = dict(mlp=('swiglu', 'gelu', 'relu2'), norm=('rms', 'layer'), vision=('conv',),
                       prefix_attention=('bidirectional', 'causal'), chunk_attention=('bidirectional', 'causal'),
                       predict=('action', 'velocity'))
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f'VLAConfig.{name} = {getattr(self, name)!r}, expected one of {allowed}')
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f'n_heads {self.n_heads} is no multiple of n_kv_heads {self.n_kv_heads}')
        if sum(self.mrope_section) * 2 != self.head_dim:
            raise ValueError(f'mrope_section {self.mrope_section} must sum to head_dim / 2 = {self.head_dim // 2}')
        if self.vision == 'conv' and self.image_size % 16:
            raise ValueError(f'image_size {self.image_size} must be a multiple of 16 for the conv stem')


# -----------------------------------------------------------------------------
# who sees whom

class Layout(NamedTuple):
    """One entry per token, all (B, T): the attention mask and the rotary angles follow from these alone."""
    position: torch.Tensor   # rotary position, (B, T), or (3, B, T) time/height/width where image patches form a grid
    order: torch.Tensor      # a token sees tokens of the same or lower order
    draw: torch.Tensor       # -1 outside the draws; a draw is seen by itself only
    kind: torch.Tensor       # PAD is seen by nobody
    reads: torch.Tensor      # whether the token may see the assistant part

    def join(self, other):
        return Layout(*(torch.cat(pair, -1) for pair in zip(self, other)))


def attention_bias(query, key):
    """0 where a query may look, MASKED elsewhere: float32 (B, 1, Tq, Tk)."""
    q, k = Layout(*(f[..., None] for f in query)), Layout(*(f[..., None, :] for f in key))
    seen = (k.order <= q.order) & (k.kind != PAD)
    seen &= ((k.draw < 0) | (k.draw == q.draw)) & (q.reads | (k.kind != ASSISTANT))
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, MASKED).unsqueeze(1)


def rotary_tables(position, head_dim, theta, mrope_section, dtype):
    """cos and signed sin of the rotary angles, (B, T, 1, c). Text has equal positions on the three axes, so that
    a (B, T) position is the common case and (3, B, T) picks for each frequency the axis that turns it."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=position.device, dtype=torch.float32) / head_dim)
    angle = position[..., None].float() * frequency
    if position.ndim == 3:
        parts = angle.split(list(mrope_section), -1)
        angle = torch.cat([part[axis] for axis, part in enumerate(parts)], -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1).to(dtype)[:, :, None], torch.cat([-sin, sin], -1).to(dtype)[:, :, None]


def rotate(x, cos, sin):
    """x (B, T, h, c); first and second half of c are the two coordinates of each rotation (Hugging Face layout)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def attend(q, k, v, bias):
    """q (B, h, Tq, c), k and v (B, h_kv, Tk, c) -> (B, h, Tq, c)."""
    if q.device.type != 'cpu':
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), enable_gqa=q.shape[1] != k.shape[1])
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    # written out: 2-3x faster backward than SDPA's on CPU; and softmax is 3x faster in float32 than in bf16 there
    scores = torch.add(bias, q @ k.transpose(-1, -2), alpha=q.shape[-1] ** -0.5)
    return scores.softmax(-1).to(v.dtype) @ v


def compute_dtype(x):
    """What matrix products of x come out as, under autocast or not."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


# -----------------------------------------------------------------------------
# decoder

class FastRMSNorm(torch.autograd.Function):
    """RMS norm whose backward is written out: PyTorch's is composed of small operations on CPU, 2 ms against 1.2 ms."""

    @staticmethod
    def forward(ctx, x, weight, eps, dtype):
        scale = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1]).add_(eps).rsqrt_()
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return (unit * weight).to(dtype)

    @staticmethod
    def backward(ctx, grad):
        unit, scale, weight = ctx.saved_tensors
        grad = grad.to(unit.dtype)
        along = grad * unit
        mean = (along @ weight)[..., None] / unit.shape[-1]
        return torch.addcmul(grad * weight, unit, mean, value=-1).mul_(scale), along.flatten(0, -2).sum(0), None, None


class RMSNorm(nn.RMSNorm):
    def forward(self, x):
        if x.device.type != 'cpu':
            return super().forward(x)
        return FastRMSNorm.apply(x, self.weight, self.eps, compute_dtype(x))


class SquaredReLU(torch.autograd.Function):
    """relu(x)^2; by itself the pair keeps both inputs and goes through memory five times in the backward pass."""

    @staticmethod
    def forward(ctx, x):
        x = x.relu()
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, grad):
        return (grad * ctx.saved_tensors[0]).mul_(2)


def make_norm(cfg):
    return (RMSNorm if cfg.norm == 'rms' else nn.LayerNorm)(cfg.hidden_size, eps=cfg.norm_eps)


class Block(nn.Module):
    """Pre-norm Qwen2.5 block: grouped-query attention with qkv bias and rotary positions, then the MLP."""

    def __init__(self, cfg):
        super().__init__()
        self.heads = (cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads)
        self.head_dim, self.mlp = cfg.head_dim, cfg.mlp
        self.norm1, self.norm2 = make_norm(cfg), make_norm(cfg)
        self.qkv = nn.Linear(cfg.hidden_size, sum(self.heads) * cfg.head_dim)
        self.out = nn.Linear(cfg.n_heads * cfg.head_dim, cfg.hidden_size, bias=False)
        self.up = nn.Linear(cfg.hidden_size, cfg.intermediate_size * (2 if cfg.mlp == 'swiglu' else 1), bias=False)
        self.down = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)

    def forward(self, x, cos, sin, bias, past=None, skip=0):
        """x (B, T, D); past: keys and values (B, h_kv, T_past, c) seen before. Returns x without its first `skip` tokens,
        which others may look at all the same, and the extended keys and values."""
        B, T, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(B, T, -1, self.head_dim)                    # (B, T, h + 2 h_kv, c)
        qk, v = qkv.split([sum(self.heads[:2]), self.heads[2]], 2)
        q, k = rotate(qk, cos, sin).transpose(1, 2).split(self.heads[:2], 1)          # (B, h, T, c), (B, h_kv, T, c)
        v = v.transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = attend(q[:, :, skip:], k, v, bias[:, :, skip:])                            # (B, h, T - skip, c)
        x = x[:, skip:] + self.out(y.transpose(1, 2).flatten(2))
        y = self.up(self.norm2(x))
        if self.mlp == 'swiglu':
            gate, y = y.chunk(2, -1)
            y = F.silu(gate) * y
        else:
            y = F.gelu(y) if self.mlp == 'gelu' else SquaredReLU.apply(y)
        return x + self.down(y), (k, v)


class Decoder(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = make_norm(cfg)

    def forward(self, x, layout, past=None, past_layout=None, skip=0):
        """x (B, T, D), described by layout. `past` is what an earlier call returned (one (k, v) per block), described by
        past_layout. Returns the normed hidden states (B, T - skip, D) and keys and values including the past. Nobody
        asks what the first `skip` tokens become in the last block (a tenth of the work at the demo's size)."""
        cfg = self.cfg
        cos, sin = rotary_tables(layout.position, cfg.head_dim, cfg.rope_theta, cfg.mrope_section, compute_dtype(x))
        bias = attention_bias(layout, layout if past is None else past_layout.join(layout))
        cache = []
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            x, kv = block(x, cos, sin, bias, None if past is None else past[i], skip if last else 0)
            cache.append(kv)
        return self.norm(x), cache


# -----------------------------------------------------------------------------
# vision and action head

class FastGroupNorm(torch.autograd.Function):
    """Group norm of a map stored channels last, x (M, P, C), where PyTorch's needs 23 ms against 6 on CPU."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        M, P, C = x.shape
        mean, square = (y.sum(1, dtype=torch.float32).view(M, groups, -1).mean(-1, keepdim=True) / P
                        for y in (x, x * x))                                          # (M, groups, 1)
        inv = (square - mean * mean + eps).rsqrt_()
        scale = inv * weight.view(groups, -1)                                         # (M, groups, C / groups)
        shift = bias.view(groups, -1) - mean * scale
        ctx.save_for_backward(x, mean, inv, weight)
        return torch.addcmul(shift.view(M, 1, C).to(x.dtype), x, scale.view(M, 1, C).to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        x, mean, inv, weight = ctx.saved_tensors
        (M, P, C), (_, groups, _) = x.shape, mean.shape
        dot, total = (y.sum(1, dtype=torch.float32).view(M, groups, -1) for y in (grad * x, grad))
        w, n = weight.view(groups, -1), P * C // groups
        dot_w, total_w = (dot * w).sum(-1, keepdim=True), (total * w).sum(-1, keepdim=True)
        slope = (total_w * mean - dot_w) * inv ** 3 / n
        offset = -slope * mean - total_w * inv / n
        slope, offset, scale = (y.expand(M, groups, C // groups).reshape(M, 1, C).to(x.dtype) for y in (slope, offset, inv * w))
        grad_x = torch.addcmul(offset, x, slope).addcmul_(grad, scale)
        return grad_x, ((dot - total * mean) * inv).sum(0).flatten(), total.sum(0).flatten(), None, None


def group_norm(x, norm):
    """norm(x) for a map x (M, C, h, w) stored channels last."""
    if x.device.type != 'cpu':
        return norm(x)
    flat = FastGroupNorm.apply(x.permute(0, 2, 3, 1).flatten(1, 2), norm.weight, norm.bias, norm.num_groups, norm.eps)
    return flat.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


class ConvStem(nn.Module):
    """(M, 3, s, s) -> (M, tokens, D). Keypoints (where does each feature fire) beside a flattened coarse map: from
    scratch this learns positions from few samples, where patch tokens were ignored for the whole budget."""

    def __init__(self, image_size, tokens, width, channels=64, coarse=32):
        super().__init__()
        self.tokens, grid = tokens, 16
        self.patch = nn.Conv2d(3, channels, image_size // grid, stride=image_size // grid)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(8, channels)
        self.coarse = nn.Conv2d(channels, coarse, 3, stride=2, padding=1)
        self.coarse_norm = nn.LayerNorm(coarse * (grid // 2) ** 2)
        self.sharpness = nn.Parameter(torch.tensor(2.0))       # inverse temperature of the spatial softmax
        self.proj = nn.Linear(2 * channels + coarse * (grid // 2) ** 2, tokens * width)
        at = (torch.arange(grid) + 0.5) / grid * 2 - 1         # cell centres in -1..1
        where = torch.stack([at.repeat(grid), at.repeat_interleave(grid)], 1)          # (256, 2): x, y
        self.register_buffer('where', where * 3, persistent=False)  # x3: keypoints then have about unit variance

    def forward(self, images):
        """images (M, h, w, 3), 0..255. Bytes are exact in bf16: instead of the pixels, the weights that meet them are
        scaled to the range -1..1, which saves two passes over the largest tensor of the step."""
        weight = self.patch.weight / 127.5
        bias = self.patch.bias - self.patch.weight.sum((1, 2, 3))
        pixels = images.permute(0, 3, 1, 2).to(compute_dtype(weight))                 # (M, 3, h, w), channels last
        x = F.relu(F.conv2d(pixels, weight, bias, stride=self.patch.stride))          # (M, 64, 16, 16)
        x = group_norm(x + self.conv(x), self.norm)
        heat = (x.permute(0, 2, 3, 1).flatten(1, 2) * self.sharpness.to(x.dtype)).softmax(1)   # (M, 256, 64)
        keypoints = (self.where.to(heat.dtype).t() @ heat).flatten(1)                 # (M, 128)
        coarse = self.coarse(F.relu(x)).permute(0, 2, 3, 1).flatten(1)                # (M, 2048)
        features = torch.cat([keypoints.to(coarse.dtype), self.coarse_norm(coarse).to(coarse.dtype)], -1)
        return self.proj(features).view(len(x), self.tokens, -1)


class ActionHead(nn.Module):
    """EO-1's head: noisy rows and their flow time to embeddings, hidden states to rows."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, D = cfg, cfg.hidden_size
        self.action_in = nn.Linear(cfg.action_dim, D)
        self.time_mlp_in = nn.Linear(2 * D, D)
        self.time_mlp_out = nn.Linear(D, D)
        self.row = nn.Parameter(torch.zeros(cfg.horizon, D)) if cfg.row_embedding else None
        self.action_out = nn.Linear(D, cfg.action_dim)

    def time_embedding(self, time):
        """(...) in 0..1 -> (..., D), float32: sines and cosines with log-spaced periods."""
        cfg, n = self.cfg, self.cfg.hidden_size // 2
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


# -----------------------------------------------------------------------------
# the model

class VLA(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg, D = cfg, cfg.hidden_size
        self.embed_tokens = nn.Embedding(cfg.vocab_size, D)
        self.vision = ConvStem(cfg.image_size, cfg.tokens_per_camera, D)
        self.image_embedding = nn.Parameter(torch.zeros(cfg.n_cameras * cfg.tokens_per_camera, D))
        self.state_in = nn.Linear(cfg.state_dim, D)
        self.head = ActionHead(cfg)
        self.decoder = Decoder(cfg)
        self.lm_head = None if cfg.tie_embeddings else nn.Linear(D, cfg.vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self):
        cfg = self.cfg
        for table in (self.embed_tokens.weight, self.image_embedding, self.head.row):
            if table is not None:
                nn.init.normal_(table, std=0.02)
        for block in self.decoder.blocks:                      # residual branches start small
            for linear in (block.out, block.down):
                nn.init.normal_(linear.weight, std=0.02 / cfg.n_layers ** 0.5)
        nn.init.normal_(self.head.action_out.weight, std=0.002)  # the first prediction is the mean action
        nn.init.zeros_(self.head.action_out.bias)
        self.vision.to(memory_format=torch.channels_last)      # convolutions of small maps: 2x on CPU

    @property
    def n_parameters(self):
        return sum(p.numel() for p in self.parameters())

    # ---- reading the batch

    def embed_prefix(self, batch):
        """(B, L, D): token embeddings, with images and state at their places."""
        ids, images = batch['input_ids'], batch['images']
        B, L = ids.shape
        x = self.embed_tokens(ids).flatten(0, 1)                                      # (B*L, D)
        image = self.vision(images.flatten(0, 1)).view(B, -1, x.shape[-1])            # (B, N*P, D)
        image = image + self.image_embedding
        state = self.state_in(batch['state'])                                         # (B, D)
        for token_id, value in ((self.cfg.image_pad_id, image.flatten(0, 1)), (self.cfg.state_pad_id, state)):
            at = (ids.flatten() == token_id).nonzero().squeeze(1)
            assert len(at) == len(value), f'{len(at)} tokens of id {token_id} in input_ids, but {len(value)} embeddings'
            x = x.index_copy(0, at, value.to(x.dtype))
        return x.view(B, L, -1)

    def prefix_layout(self, batch):
        ids = batch['input_ids']
        index = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        user, real = index < batch['user_len'][:, None], index < batch['total_len'][:, None]
        kind = torch.where(user, USER, torch.where(real, ASSISTANT, PAD))
        # one order for the whole user part makes it bidirectional; the assistant part counts on and is causal
        order = index if self.cfg.prefix_attention == 'causal' else torch.where(user, 0, index)
        return Layout(index, order, torch.full_like(index, -1), kind, torch.ones_like(user))

    def chunk_layout(self, prefix, reads):
        """K draws of H rows that follow `prefix`; reads bool (B, K). Positions go on after the part that is read, so
        that training and inference, with or without text, put a row at the same place."""
        H, (B, K) = self.cfg.horizon, reads.shape
        position = prefix.position if prefix.position.ndim == 2 else prefix.position.amax(0)
        user_end = position.masked_fill(prefix.kind != USER, -1).amax(1)
        total_end = position.masked_fill(prefix.kind == PAD, -1).amax(1)
        start = torch.where(reads, total_end[:, None], user_end[:, None]) + 1         # (B, K)
        row = torch.arange(H, device=reads.device).expand(B, K, H)
        place = (start[..., None] + row).flatten(1)                                   # (B, K*H)
        order = 1 << 30 if self.cfg.chunk_attention == 'bidirectional' else (1 << 30) + row.flatten(1)
        draw = torch.arange(K, device=reads.device)[:, None].expand(B, K, H).flatten(1)
        return Layout(place if prefix.position.ndim == 2 else place.expand(3, -1, -1), torch.zeros_like(place) + order, draw,
                      torch.full_like(place, ACTION), reads[..., None].expand(B, K, H).flatten(1))

    def logits(self, hidden):
        return F.linear(hidden, (self.embed_tokens if self.lm_head is None else self.lm_head).weight).float()

    # ---- training

    def predict(self, batch, skip=0):
        """What the head says of each draw (B, K, H, A), and the hidden states of the prefix (B, L - skip, D)."""
        actions, noise, time = batch['actions'], batch['noise'], batch['time']
        B, K, H, A = noise.shape
        time = time if time.ndim == 3 else time[..., None].expand(B, K, H)            # a flow time per row
        x_t = time[..., None] * noise + (1 - time[..., None]) * actions[:, None]      # (B, K, H, A)
        prefix = self.prefix_layout(batch)
        x = self.embed_prefix(batch)                                                  # (B, L, D)
        rows = self.head.embed(x_t, time).flatten(1, 2)                               # (B, K*H, D)
        layout = prefix.join(self.chunk_layout(prefix, batch['read_text']))
        x = torch.cat([x, rows.to(x.dtype)], 1)                                       # (B, L + K*H, D)
        prefix_hidden, hidden = self.decoder(x, layout, skip=skip)[0].split([x.shape[1] - K * H - skip, K * H], 1)
        return self.head.action_out(hidden).float().view(B, K, H, A), prefix_hidden

    def forward(self, batch):
        """Loss and its parts. Flow: mean over valid rows, draws and dims. Text: mean over supervised tokens. Where the
        batch is a share of a larger one, n_rows and n_tokens in it are the counts to divide by."""
        cfg, actions, noise = self.cfg, batch['actions'], batch['noise']
        labels = batch['labels'][:, 1:]                                               # the token after each token
        supervised = labels != -100
        skip = int(supervised.any(0).int().argmax())                                  # nobody asks for those before
        predicted, hidden = self.predict(batch, skip)
        target = actions[:, None] if cfg.predict == 'action' else noise - actions[:, None]
        valid = batch['action_mask'].float()                                          # (B, H)
        n_rows = batch['n_rows'] if 'n_rows' in batch else valid.sum()
        error = (predicted - target).square().mean(-1)                                # (B, K, H)
        flow = (error * valid[:, None]).sum() / (n_rows * noise.shape[1])

        at = supervised[:, skip:].flatten().nonzero().squeeze(1)
        logits, labels = self.logits(hidden[:, :-1].flatten(0, 1)[at]), labels[:, skip:].flatten()[at]
        n_tokens = batch['n_tokens'] if 'n_tokens' in batch else max(len(at), 1)
        text = F.cross_entropy(logits, labels, reduction='sum') / n_tokens
        hits = (logits.detach().argmax(-1) == labels).sum() / n_tokens
        return flow + cfg.text_weight * text, dict(flow=flow.detach(), text=text.detach(), text_acc=hits)

    # ---- inference

    @torch.no_grad()
    def act(self, batch, steps=5, noise=None, solver='euler', read_text=True):
        """Action chunk (B, H, A), normalised. noise (B, H, A) starts the flow; None = zeros, the deterministic answer.
        A sample with an assistant part in the batch has read it, unless read_text is False."""
        batch = batch if read_text else user_part(batch)
        layout = self.prefix_layout(batch)
        _, cache = self.decoder(self.embed_prefix(batch), layout, skip=layout.kind.shape[1])
        return self.denoise(cache, layout, steps, noise, solver)

    @torch.no_grad()
    def generate(self, batch, max_new_tokens=24):
        """Greedy text after the user part: token ids per sample, up to and without <|action_start|>."""
        return self.decode_text(batch, max_new_tokens)[0]

    @torch.no_grad()
    def plan_and_act(self, batch, steps=5, max_new_tokens=24, noise=None, solver='euler'):
        """Decode the text, then act having read it; one prefix pass serves both. Returns (actions, token ids)."""
        texts, cache, layout = self.decode_text(batch, max_new_tokens)
        return self.denoise(cache, layout, steps, noise, solver), texts

    def decode_text(self, batch, max_new_tokens):
        """Every text ends with <|action_start|> in the cache, also one that ran into max_new_tokens."""
        batch = user_part(batch)
        layout, end = self.prefix_layout(batch), batch['user_len']
        skip, (B, device) = int(end.min()) - 1, (len(end), end.device)
        hidden, cache = self.decoder(self.embed_prefix(batch), layout, skip=skip)
        logits = self.logits(hidden[torch.arange(B, device=device), end - 1 - skip])  # (B, V)
        done, texts = torch.zeros(B, dtype=torch.bool, device=device), [[] for _ in range(B)]
        for i in range(max_new_tokens + 1):
            token = logits.argmax(-1) if i < max_new_tokens else torch.full_like(end, self.cfg.action_start_id)
            for text, t, d in zip(texts, token.tolist(), (done | (token == self.cfg.action_start_id)).tolist()):
                text += [] if d else [t]
            # a finished sample rides along as padding until all are done
            one = Layout((end + i)[:, None], (end + i)[:, None], torch.full_like(end, -1)[:, None],
                         torch.where(done, PAD, ASSISTANT)[:, None], torch.ones_like(done)[:, None])
            hidden, cache = self.decoder(self.embed_tokens(token)[:, None], one, cache, layout)
            layout, done = layout.join(one), done | (token == self.cfg.action_start_id)
            if done.all():
                break
            logits = self.logits(hidden[:, 0])
        return texts, cache, layout

    def denoise(self, cache, prefix, steps, noise, solver):
        cfg, B = self.cfg, len(prefix.kind)
        layout = self.chunk_layout(prefix, torch.ones(B, 1, dtype=torch.bool, device=prefix.kind.device))
        dtype, device = self.state_in.weight.dtype, prefix.kind.device
        x = torch.zeros(B, cfg.horizon, cfg.action_dim, dtype=dtype, device=device) if noise is None else noise.clone()

        def velocity(x, t):
            rows = self.head.embed(x, torch.full(x.shape[:2], t, device=device))
            hidden, _ = self.decoder(rows.to(dtype), layout, cache, prefix)
            out = self.head.action_out(hidden).to(x.dtype)
            return (x - out) / t if cfg.predict == 'action' else out   # a clean chunk c means velocity (x_t - c) / t
        for i in range(steps):
            t, dt = 1 - i / steps, 1 / steps
            v = velocity(x, t)
            if solver == 'midpoint':
                v = velocity(x - 0.5 * dt * v, t - 0.5 * dt)
            elif solver != 'euler':
                raise ValueError(f"solver {solver!r}, expected 'euler' or 'midpoint'")
            x = x - dt * v
        return x

    # ---- disk

    def save(self, folder, meta, ema=None):
        """model.safetensors, ema.safetensors (an EMA, optional) and meta.json, each replaced atomically."""
        os.makedirs(folder, exist_ok=True)
        write_tensors(f'{folder}/model.safetensors', self.state_dict())
        if ema is not None:
            write_tensors(f'{folder}/ema.safetensors', ema.state_dict(self))
        write_atomic(f'{folder}/meta.json',
                     lambda tmp: open(tmp, 'w').write(json.dumps(dict(meta, model=asdict(self.cfg)), indent=1)))

    @classmethod
    def load(cls, folder, ema=True):
        """(model in eval mode, meta). Prefers the averaged weights where there are any."""
        if not os.path.exists(f'{folder}/meta.json'):
            raise FileNotFoundError(f'{folder} holds no meta.json: not a checkpoint folder written by train.py')
        with open(f'{folder}/meta.json') as f:
            meta = json.load(f)
        model = cls(VLAConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in meta['model'].items()}))
        name = 'ema' if ema and os.path.exists(f'{folder}/ema.safetensors') else 'model'
        model.load_state_dict(load_file(f'{folder}/{name}.safetensors'))
        return model.eval(), meta


def user_part(batch):
    """The batch without its assistant part."""
    return dict(batch, total_len=batch['user_len'], input_ids=batch['input_ids'][:, :int(batch['user_len'].max())])


def write_atomic(path, write):
    write(path + '.tmp')
    with open(path + '.tmp', 'rb') as f:
        os.fsync(f.fileno())
    os.replace(path + '.tmp', path)


def write_tensors(path, tensors):
    tensors = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    write_atomic(path, lambda tmp: save_file(tensors, tmp))


# -----------------------------------------------------------------------------
# optimisation

def configure_optimizers(model, learning_rate=2e-3, muon_learning_rate=0.04, weight_decay=0.01, betas=(0.9, 0.95)):
    """Muon on the matrices of the decoder blocks, AdamW on the rest, no decay on vectors. Each group remembers its
    peak rate as group['peak_lr']; schedules multiply that. muon_learning_rate = 0 gives everything to AdamW."""
    matrices, decayed, plain = [], [], []
    for name, p in model.named_parameters():
        in_block = p.ndim == 2 and name.startswith('decoder.blocks.')
        (matrices if in_block and muon_learning_rate else decayed if p.ndim > 1 else plain).append(p)
    groups = [dict(params=decayed, weight_decay=weight_decay), dict(params=plain, weight_decay=0.0)]
    optimizers = [torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=muon_learning_rate, momentum=0.95, weight_decay=weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group['peak_lr'] = group['lr']
    return optimizers


class EMA:
    """Running average of the weights; the decay warms up, so that early averages forget the initial weights."""

    def __init__(self, model, decay=0.995):
        self.decay, self.step = decay, 0
        self.weights = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, model):
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.weights, list(model.parameters()), 1 - decay)
        self.step += 1

    @torch.no_grad()
    def swap(self, model):
        """Exchange weights and averages; call again to change back."""
        for p, average in zip(model.parameters(), self.weights):
            p_copy = p.detach().clone()
            p.copy_(average)
            average.copy_(p_copy)

    def state_dict(self, model):
        return dict(zip((name for name, _ in model.named_parameters()), self.weights))

    def load_state_dict(self, model, tensors, step):
        self.weights, self.step = [tensors[name].clone() for name, _ in model.named_parameters()], step


def flops_per_sample(cfg, prefix_len, draws):
    """Multiply-adds x 2 of one training sample, forward and backward (3x forward), for the share of peak reported."""
    T, D, c = prefix_len + draws * cfg.horizon, cfg.hidden_size, cfg.head_dim
    unread = cfg.n_cameras * cfg.tokens_per_camera + 1         # image and state tokens stop before the last block's MLP
    queries = cfg.n_layers * T - unread
    keys_values = cfg.n_layers * T * D * c * (cfg.n_heads + 2 * cfg.n_kv_heads)
    mlp = D * cfg.intermediate_size * (3 if cfg.mlp == 'swiglu' else 2)
    decoder = keys_values + queries * (D * c * cfg.n_heads + mlp + 2 * T * cfg.n_heads * c)
    conv = 256 * (3 * (cfg.image_size // 16) ** 2 * 64 + 64 * 64 * 9) + 64 * 64 * 32 * 9
    vision = cfg.n_cameras * (conv + (128 + 2048) * cfg.tokens_per_camera * D)
    head = draws * cfg.horizon * (2 * cfg.action_dim * D + 3 * D * D)
    return 6 * (decoder + vision + head)
