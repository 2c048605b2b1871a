"""Pictures to tokens: a convolutional stem that learns from scratch, and Qwen2.5-VL's tower.

    ConvStem      (M, s, s, 3) bytes -> (M, few tokens, D)
    QwenVision    flattened patches of pictures of any size, and their grids -> (tokens, D) in
                  reading order
    preprocess    pictures and videos of any size -> what QwenVision reads, as Qwen2.5-VL's
                  processor makes it
    patchify      (M, h, w, 3) bytes -> the same, without resizing
    grid_positions   the rotary positions of token rows that hold pictures
A grid is (frames, rows, columns) of patches; merge x merge patches become one token, a `cell`.
"""

# M pictures, n patches of all pictures, P patches of one, h heads, c head width, D width
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from vla import layers

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of pixels in 0..1
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


# -----------------------------------------------------------------------------
# from scratch


class ConvStem(nn.Module):
    """(M, s, s, 3) -> (M, tokens, D). Keypoints (where does each feature fire) beside a flattened
    coarse map: from scratch this learns positions from few samples; patch tokens were ignored for
    the whole budget.
    """

    def __init__(self, image_size, tokens, width, channels=64, coarse=32):
        super().__init__()
        self.tokens = tokens
        grid = 16
        self.patch = nn.Conv2d(3, channels, image_size // grid, stride=image_size // grid)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(8, channels)
        self.coarse = nn.Conv2d(channels, coarse, 3, stride=2, padding=1)
        self.coarse_norm = nn.LayerNorm(coarse * (grid // 2) ** 2)
        self.sharpness = nn.Parameter(
            torch.full((1,), 2.0)
        )  # inverse temperature of the spatial softmax
        self.proj = nn.Linear(2 * channels + coarse * (grid // 2) ** 2, tokens * width)
        # cell centres in -1..1; real also in a model that is made on the meta device
        at = (torch.arange(grid, device='cpu') + 0.5) / grid * 2 - 1
        where = torch.stack([at.repeat(grid), at.repeat_interleave(grid)], 1)  # (256, 2): x, y
        self.register_buffer('where', where * 3, persistent=False)  # x3: about unit variance
        self.to(memory_format=torch.channels_last)  # convolutions of small maps: 2x on CPU

    def forward(self, images):
        """images (M, h, w, 3), 0..255. Bytes are exact in bf16: instead of the pixels, the weights
        that meet them are scaled to the range -1..1, which saves two passes over the largest tensor
        of the step.
        """
        weight = self.patch.weight / 127.5
        bias = self.patch.bias - self.patch.weight.sum((1, 2, 3))
        pixels = images.permute(0, 3, 1, 2).to(
            layers.compute_dtype(weight)
        )  # (M, 3, h, w), channels last
        x = F.relu(F.conv2d(pixels, weight, bias, stride=self.patch.stride))  # (M, 64, 16, 16)
        x = layers.group_norm(x + self.conv(x), self.norm)
        heat = x.permute(0, 2, 3, 1).flatten(1, 2) * self.sharpness.to(x.dtype)  # (M, 256, 64)
        keypoints = (self.where.to(x.dtype).t() @ heat.softmax(1)).flatten(1)  # (M, 128)
        coarse = self.coarse(F.relu(x)).permute(0, 2, 3, 1).flatten(1)  # (M, 2048)
        features = torch.cat(
            [keypoints.to(coarse.dtype), self.coarse_norm(coarse).to(coarse.dtype)], -1
        )
        return self.proj(features).view(len(x), self.tokens, -1)


# -----------------------------------------------------------------------------
# Qwen2.5-VL


class VisionBlock(nn.Module):
    def __init__(self, width, heads, intermediate):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * intermediate)  # gate, then up
        self.down = nn.Linear(intermediate, width)

    def forward(self, x, cos, sin, real):
        """x (M, W, P, D): attention within each of the W groups of P patches. cos and sin (W, P, 1,
        c); real bool (W, P) or None: False for padding, which nobody sees.
        """
        M, W, P, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(M, W, P, 3, self.heads, -1).unbind(3)
        q, k, v = (
            y.flatten(0, 1).transpose(1, 2)
            for y in (layers.rotate(q, cos, sin), layers.rotate(k, cos, sin), v)
        )
        mask = None if real is None else real.expand(M, W, P).reshape(M * W, 1, 1, P)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (M * W, h, P, c)
        x = x + self.proj(y.transpose(1, 2).reshape(M, W, P, D))
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class QwenVision(nn.Module):
    """Patches attend within windows of window x window pixels, in a few blocks within the whole
    picture.
    """

    def __init__(
        self,
        width,
        layers,
        heads,
        intermediate,
        out,
        full_blocks,
        patch=14,
        merge=2,
        frames=2,
        window=112,
        recompute=False,
    ):
        super().__init__()
        self.recompute = recompute
        self.heads = heads
        self.merge = merge
        self.full_blocks = set(full_blocks)
        self.window = window // patch // merge  # cells on a side
        self.patch = nn.Linear(
            3 * frames * patch * patch, width, bias=False
        )  # a convolution without overlap
        self.blocks = nn.ModuleList(VisionBlock(width, heads, intermediate) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.merge_in = nn.Linear(width * merge**2, width * merge**2)
        self.merge_out = nn.Linear(width * merge**2, out)

    def forward(self, patches, grids):
        """patches (n, 3 * frames * patch^2), picture after picture; grids: (frames, rows, columns)
        of each.
        -> (n / merge^2, D). Pictures of one size go through together.
        """
        grids = [tuple(grid) for grid in grids]
        parts = patches.split([t * h * w for t, h, w in grids])
        out = [None] * len(grids)
        for t, h, w in dict.fromkeys(grids):
            members = [i for i, grid in enumerate(grids) if grid == (t, h, w)]
            x = torch.stack([parts[i] for i in members]).view(len(members) * t, h * w, -1)
            x = self.encode(x.to(self.patch.weight.dtype), h, w)
            for i, tokens in zip(members, x.view(len(members), -1, x.shape[-1])):
                out[i] = tokens
        return torch.cat(out)

    def encode(self, patches, rows, columns):
        """Frames of one size, (M, P, .) with the patches of a cell side by side -> (M, P / merge^2,
        D).
        """
        m = self.merge
        s = self.window
        gh = rows // self.merge
        gw = columns // self.merge
        # windows; the last may stick out: padding
        nh = -(-gh // s)
        nw = -(-gw // s)

        def to_windows(x):  # (M, P, .) -> (M, W, P / W, .)
            x = F.pad(x.view(len(x), gh, gw, -1), (0, 0, 0, nw * s - gw, 0, nh * s - gh))
            x = x.view(len(x), nh, s, nw, s, -1).transpose(2, 3)
            return x.reshape(len(x), nh * nw, s * s * m * m, -1)

        x = to_windows(self.patch(patches))
        c = x.shape[-1] // self.heads
        whole = (1, nh * nw * s * s * m * m)
        place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(
            gh, m, gw, m, 2
        )
        place = place.transpose(1, 2).reshape(1, -1, 2).float()
        place = to_windows(place)[0].to(x.device)  # (W, P / W, 2): row, column
        frequency = 10_000.0 ** (
            -torch.arange(0, c // 2, 2, device=x.device, dtype=torch.float32) / (c // 2)
        )
        tables = layers.rotation((place[..., None] * frequency).flatten(2), layers.compute_dtype(x))
        real = None  # nothing sticks out; else (W, P / W)
        if gh % s or gw % s:
            real = to_windows(x.new_ones(1, rows * columns, 1))[0, :, :, 0].bool()
        for i, block in enumerate(self.blocks):
            run = layers.recomputed(block, self.recompute)
            if i in self.full_blocks:
                cos, sin = (y.reshape(*whole, 1, c) for y in tables)
                seen = None if real is None else real.view(whole)
                x = run(x.view(len(x), *whole, -1), cos, sin, seen).view(x.shape)
            else:
                x = run(x, *tables, real)
        x = (
            self.norm(x)
            .view(len(x), nh, nw, s, s, -1)
            .transpose(2, 3)
            .reshape(len(x), nh * s, nw * s, -1)
        )
        x = x[:, :gh, :gw].flatten(1, 2)  # (M, cells, merge^2 * width)
        return self.merge_out(F.gelu(self.merge_in(x)))


def patchify(images, patch=14, merge=2, frames=2):
    """Pictures (M, h, w, 3) or videos (M, T, h, w, 3), 0..255, sides multiples of patch * merge ->
    patches (n, 3 * frames * patch^2) float32, grids [(time, rows, columns)]. `frames` frames become
    one row of time; where they do not divide T the last one is repeated, so that a picture is shown
    as equal frames.
    """
    x = images[:, None] if images.ndim == 4 else images
    M, T, h, w, _ = x.shape
    if h % (patch * merge) or w % (patch * merge):
        raise ValueError(
            f'pictures are {h} x {w} px; both sides must be multiples of {patch * merge}'
        )
    mean, std = (255 * torch.tensor(v, device=images.device) for v in (PIXEL_MEAN, PIXEL_STD))
    t = -(-T // frames)
    gh = h // patch // merge
    gw = w // patch // merge
    x = (x.float() - mean) / std
    x = torch.cat([x, x[:, -1:].expand(-1, t * frames - T, -1, -1, -1)], 1)
    x = x.view(M, t, frames, gh, merge, patch, gw, merge, patch, 3)
    x = x.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)  # (M, t, gh, gw, merge, merge, 3, frames, p, p)
    return x.reshape(-1, 3 * frames * patch * patch), [(t, h // patch, w // patch)] * M


def smart_size(height, width, min_pixels, max_pixels, cell=28):
    """Size in pixels that a picture is brought to: sides that are multiples of a cell, the aspect
    ratio about kept, the area within bounds. Qwen2.5-VL's rule; EO-1's bounds are 64 and 128
    cells.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f'a picture of {height} x {width} px is too narrow: at most 1 to 200')
    h, w = (max(cell, round(side / cell) * cell) for side in (height, width))
    if h * w > max_pixels:
        shrink = (height * width / max_pixels) ** 0.5
        return tuple(max(cell, math.floor(side / shrink / cell) * cell) for side in (height, width))
    if h * w < min_pixels:
        grow = (min_pixels / (height * width)) ** 0.5
        return tuple(math.ceil(side * grow / cell) * cell for side in (height, width))
    return h, w


def preprocess(
    pictures, min_pixels=56 * 56, max_pixels=28 * 28 * 1280, patch=14, merge=2, frames=2
):
    """[(h, w, 3) pictures or (T, h, w, 3) videos], uint8, of any sizes -> patches, grids for
    QwenVision.
    """
    patches = []
    grids = []
    for picture in pictures:
        x = torch.as_tensor(picture)
        h, w = smart_size(*x.shape[-3:-1], min_pixels, max_pixels, patch * merge)
        if (h, w) != x.shape[-3:-1]:
            y = x.view(-1, *x.shape[-3:]).permute(0, 3, 1, 2).float()
            for size in ((y.shape[2], w), (h, w)):  # PIL rounds to bytes after either direction
                y = (
                    F.interpolate(y, size, mode='bicubic', antialias=True)
                    .add(0.5)
                    .floor()
                    .clamp(0, 255)
                )
            x = y.permute(0, 2, 3, 1).view(*x.shape[:-3], h, w, 3)
        parts, grid = patchify(x[None], patch, merge, frames)
        patches.append(parts)
        grids += grid
    return torch.cat(patches) if patches else torch.empty(0, 3 * frames * patch * patch), grids


def grid_positions(at, grids, merge=2, seconds=None, per_second=2, start=None):
    """Rotary positions (3, B, L) of token rows with pictures: time, row and column of each cell,
    counted from where the picture starts; text goes on after the largest, as in EO-1 also after
    videos. at bool (B, L): tokens of pictures; grids: of the pictures as they appear; seconds: of
    each, from one row of time to the next (1), every second taking per_second positions; start (B,
    L): where the token's document begins, from which positions count (0).
    """
    advance = torch.ones_like(at, dtype=torch.int64)
    offset = torch.zeros(3, *at.shape, dtype=torch.int64, device=at.device)
    if grids:
        cells = []
        steps = []
        for (t, h, w), s in zip(grids, seconds or [1] * len(grids)):
            times = [int(row * s * per_second) for row in range(t)]
            axes = [torch.tensor(times), torch.arange(h // merge), torch.arange(w // merge)]
            cells.append(torch.stack(torch.meshgrid(*axes, indexing='ij')).flatten(1))  # (3, cells)
            step = torch.zeros(cells[-1].shape[1], dtype=torch.int64)
            step[-1] = max(times[-1], h // merge - 1, w // merge - 1) + 1  # at the last cell
            steps.append(step)
        advance = advance.masked_scatter(at, torch.cat(steps).to(at.device))
        offset = offset.masked_scatter(at.expand(3, -1, -1), torch.cat(cells, 1).to(at.device))
    before = advance.cumsum(1) - advance
    return before + offset - (0 if start is None else before.gather(1, start))


# -----------------------------------------------------------------------------
# arithmetic


def macs(cfg):
    """(multiply-adds, image tokens) of the pictures of one sample."""
    D = cfg.hidden_size
    N = cfg.n_cameras
    if cfg.vision == 'conv':
        conv = 256 * (3 * (cfg.image_size // 16) ** 2 * 64 + 64 * 64 * 9) + 64 * 64 * 32 * 9
        return N * (conv + (128 + 2048) * cfg.tokens_per_camera * D), N * cfg.tokens_per_camera
    w = cfg.vision_width
    cell = cfg.merge_size**2
    picture = (cfg.image_size // cfg.patch_size) ** 2
    window = (cfg.vision_window // cfg.patch_size) ** 2
    tokens = N * picture // cell
    seen = cfg.vision_layers * window + len(cfg.vision_full_blocks) * (picture - window)
    block = cfg.vision_layers * (4 * w + 3 * cfg.vision_intermediate) + 2 * seen
    tower = picture * w * (block + 3 * cfg.patch_frames * cfg.patch_size**2)
    return N * tower + tokens * w * cell * (w * cell + D), tokens
