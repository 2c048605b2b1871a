"""Pictures to tokens: a convolutional stem that learns from scratch, and Qwen2.5-VL's tower.

    stem = STEMS[cfg.vision](cfg)
    tokens = stem(batch)         # (n, D): of all pictures of the batch, in order of appearance
`Stem` says what the model asks of a stem: its tokens, their positions, its blocks and its cost.
Nobody else asks which one it is, so that another stem is one class and one line in STEMS.

Qwen2.5-VL reads flattened patches. A grid is (frames, rows, columns) of patches; merge x merge
patches become one token, a `cell`. `patchify` cuts pictures up, `preprocess` brings them to a fit
size before, and `grid_positions` gives their tokens rotary positions, all as published.
"""

# B batch, N cameras, L tokens of a row, M pictures, n patches of all pictures, P patches of one,
# h heads, c head width, D width
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import PIL.Image
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vla import layers
from vla.layout import Batch, column_of

if TYPE_CHECKING:
    from model import VLAConfig

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of pixels in 0..1
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
Grid = tuple[int, int, int]


class BlockSizes(NamedTuple):
    """Sizes of a stack of transformer blocks, from which follows what a backward pass keeps.

    depth       number of blocks
    width       of the residual stream
    attention   numbers per token that attention keeps
    mlp         numbers per token that the MLP keeps
    heads       of attention
    keys        tokens that a token attends to
    tokens      of one sample
    """

    depth: int
    width: int
    attention: int
    mlp: int
    heads: int
    keys: int
    tokens: int


class Stem(nn.Module):
    """What the model asks of a vision stem.

    n_places   tokens of a sample, where each of them gets a learnt embedding that says where it is;
               0 where rotary positions say it
    blocks     modules that are compiled, recomputed and spread over ranks one by one
    """

    def __init__(self, cfg: 'VLAConfig', n_places: int = 0):
        super().__init__()
        self.cfg = cfg
        self.n_places = n_places
        self.blocks: Iterable[nn.Module] = ()

    def forward(self, batch: Batch) -> Tensor:
        """The tokens of all pictures of the batch in order of appearance, (n, D)."""
        raise NotImplementedError

    def positions(self, batch: Batch, picture: Tensor, place: Tensor) -> Tensor:
        """Rotary positions (3, B, L) of all tokens of the prefix; here they are counted as text.

        Args:
            batch: a batch with input_ids (B, L).
            picture: bool (B, L), where tokens stand for pictures.
            place: (B, L), the number of the token in its document.
        """
        return place.expand(3, -1, -1)

    @staticmethod
    def check(cfg: 'VLAConfig') -> None:
        """Raise ValueError where the sizes do not fit this stem."""

    @staticmethod
    def tokens_per_picture(cfg: 'VLAConfig') -> int:
        """Tokens of one picture of image_size x image_size pixels."""
        raise NotImplementedError

    @staticmethod
    def cost(cfg: 'VLAConfig') -> int:
        """Multiply-adds for one picture of image_size x image_size pixels."""
        raise NotImplementedError

    @staticmethod
    def block_sizes(cfg: 'VLAConfig') -> list[BlockSizes]:
        """Sizes of the transformer blocks of which the memory of a step is estimated."""
        return []


def has_pictures(batch: Batch) -> bool:
    """Whether a batch holds pictures; a text need not have any."""
    return 'images' in batch or 'patches' in batch


# -----------------------------------------------------------------------------
# from scratch


class ConvStem(Stem):
    """(M, s, s, 3) -> (M, tokens, D) by keypoints beside a flattened coarse map.

    A keypoint says where a feature fires. From scratch this learns positions from few samples;
    patch tokens were ignored for the whole budget.
    """

    GRID = 16  # places of the map on a side
    CHANNELS = 64
    COARSE = 32  # channels of the coarse map, of 8 x 8 places
    where: Tensor  # (256, 2), x and y of the places

    def __init__(self, cfg: 'VLAConfig'):
        super().__init__(cfg, cfg.n_cameras * cfg.tokens_per_camera)
        grid = self.GRID
        channels = self.CHANNELS
        coarse = self.COARSE
        self.tokens = cfg.tokens_per_camera
        patch = cfg.image_size // grid
        coarse_features = coarse * (grid // 2) ** 2
        self.patch = nn.Conv2d(3, channels, patch, stride=patch)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(8, channels)
        self.coarse = nn.Conv2d(channels, coarse, 3, stride=2, padding=1)
        self.coarse_norm = nn.LayerNorm(coarse_features)
        # This is the inverse temperature of the spatial softmax.
        self.sharpness = nn.Parameter(torch.full((1,), 2.0))
        self.proj = nn.Linear(2 * channels + coarse_features, self.tokens * cfg.hidden_size)
        # Cell centres in -1..1; they are real also in a model that is made on the meta device.
        at = (torch.arange(grid, device='cpu') + 0.5) / grid * 2 - 1
        where = torch.stack([at.repeat(grid), at.repeat_interleave(grid)], 1)  # (256, 2): x, y
        self.register_buffer('where', where * 3, persistent=False)  # x3: about unit variance
        # Convolutions of small maps are 2x as fast this way on CPU; PyTorch's stubs lack the call.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, batch: Batch) -> Tensor:
        """Pictures (B, N, s, s, 3) of the batch -> (B * N * tokens, D)."""
        return self.encode(batch['images'].flatten(0, 1)).flatten(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (M, s, s, 3), 0..255 -> (M, tokens, D).

        Bytes are exact in bf16: instead of the pixels, the weights that meet them are scaled to the
        range -1..1, which saves two passes over the largest tensor of the step.
        """
        assert self.patch.bias is not None
        weight = self.patch.weight / 127.5
        bias = self.patch.bias - self.patch.weight.sum((1, 2, 3))
        pixels = images.permute(0, 3, 1, 2)  # (M, 3, s, s), channels last
        pixels = pixels.to(layers.compute_dtype(weight))
        x = F.relu(F.conv2d(pixels, weight, bias, stride=self.patch.stride))  # (M, 64, 16, 16)
        x = layers.group_norm(x + self.conv(x), self.norm)
        heat = x.permute(0, 2, 3, 1).flatten(1, 2)  # (M, 256, 64)
        heat = heat * self.sharpness.to(x.dtype)
        where = self.where.to(x.dtype)
        keypoints = (where.t() @ heat.softmax(1)).flatten(1)  # (M, 128)
        coarse = self.coarse(F.relu(x))
        coarse = coarse.permute(0, 2, 3, 1).flatten(1)  # (M, 2048)
        keypoints = keypoints.to(coarse.dtype)
        coarse = self.coarse_norm(coarse).to(coarse.dtype)
        tokens = self.proj(torch.cat([keypoints, coarse], -1))
        return tokens.view(len(x), self.tokens, -1)

    @staticmethod
    def check(cfg: 'VLAConfig') -> None:
        """Raise ValueError where image_size is no multiple of the grid."""
        if cfg.image_size % ConvStem.GRID:
            raise ValueError(
                f'image_size {cfg.image_size} must be a multiple of {ConvStem.GRID} '
                'for the conv stem'
            )

    @staticmethod
    def tokens_per_picture(cfg: 'VLAConfig') -> int:
        """Tokens of one picture; the configuration is free to choose."""
        return cfg.tokens_per_camera

    @staticmethod
    def cost(cfg: 'VLAConfig') -> int:
        """Multiply-adds for one picture."""
        places = ConvStem.GRID**2
        coarse_places = places // 4
        channels = ConvStem.CHANNELS
        patch = 3 * (cfg.image_size // ConvStem.GRID) ** 2
        features = 2 * channels + ConvStem.COARSE * coarse_places
        maps = places * channels * (patch + 9 * channels)
        coarse = coarse_places * 9 * channels * ConvStem.COARSE
        return maps + coarse + features * cfg.tokens_per_camera * cfg.hidden_size


# -----------------------------------------------------------------------------
# Qwen2.5-VL


class VisionBlock(nn.Module):
    """Pre-norm block of Qwen2.5-VL's tower: attention within groups of patches, then a SwiGLU."""

    def __init__(self, width: int, heads: int, intermediate: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * intermediate)  # gate, then up
        self.down = nn.Linear(intermediate, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, real: Tensor | None) -> Tensor:
        """Attend within each of the W groups of P patches.

        Args:
            x: (M, W, P, D).
            cos: (W, P, 1, c), as sin.
            sin: see layers.rotate.
            real: bool (W, P), False for padding, which nobody sees; None without padding.
        """
        M, W, P, D = x.shape
        qkv = self.qkv(self.norm1(x))
        q, k, v = qkv.view(M, W, P, 3, self.heads, -1).unbind(3)
        q = layers.rotate(q, cos, sin)
        k = layers.rotate(k, cos, sin)
        q = q.flatten(0, 1).transpose(1, 2)  # (M * W, h, P, c)
        k = k.flatten(0, 1).transpose(1, 2)
        v = v.flatten(0, 1).transpose(1, 2)
        mask = None
        if real is not None:
            mask = real.expand(M, W, P).reshape(M * W, 1, 1, P)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (M * W, h, P, c)
        y = y.transpose(1, 2).reshape(M, W, P, D)
        x = x + self.proj(y)
        y = self.up(self.norm2(x))
        gate, up = y.chunk(2, -1)
        y = F.silu(gate) * up
        return x + self.down(y)


class QwenStem(Stem):
    """Qwen2.5-VL's tower: most blocks attend within windows, a few within the whole picture."""

    def __init__(self, cfg: 'VLAConfig'):
        super().__init__(cfg)
        width = cfg.vision_width
        cell_width = width * cfg.merge_size**2
        patch_numbers = 3 * cfg.patch_frames * cfg.patch_size**2
        self.heads = cfg.vision_heads
        self.merge = cfg.merge_size
        self.full_blocks = set(cfg.vision_full_blocks)
        self.window = cfg.vision_window // cfg.patch_size // cfg.merge_size  # cells on a side
        # It is a convolution without overlap.
        self.patch = nn.Linear(patch_numbers, width, bias=False)
        self.blocks = nn.ModuleList(
            VisionBlock(width, cfg.vision_heads, cfg.vision_intermediate)
            for _ in range(cfg.vision_layers)
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.merge_in = nn.Linear(cell_width, cell_width)
        self.merge_out = nn.Linear(cell_width, cfg.hidden_size)

    def forward(self, batch: Batch) -> Tensor:
        """Patches (n, 3 * frames * patch^2) of all pictures and their grids -> (n / merge^2, D).

        A batch holds them as `preprocess` makes them, or `images` (B, N, s, s, 3), which are cut up
        here. Pictures of one size go through together.
        """
        if 'patches' in batch:
            patches = batch['patches']
        else:
            cfg = self.cfg
            images = batch['images'].flatten(0, 1)
            patches, _ = patchify(images, cfg.patch_size, cfg.merge_size, cfg.patch_frames)
        grids = self.grids(batch)
        if len(set(grids)) == 1:  # Cameras of a robot have one size.
            t, h, w = grids[0]
            x = patches.view(len(grids) * t, h * w, -1).to(self.patch.weight.dtype)
            return self.encode_frames(x, h, w).flatten(0, 1)
        parts = patches.split([t * h * w for t, h, w in grids])
        out: list[Tensor] = [patches] * len(grids)  # each is replaced below
        for t, h, w in dict.fromkeys(grids):
            members = [i for i, grid in enumerate(grids) if grid == (t, h, w)]
            M = len(members)
            x = torch.stack([parts[i] for i in members])
            x = x.view(M * t, h * w, -1).to(self.patch.weight.dtype)
            x = self.encode_frames(x, h, w)
            x = x.view(M, -1, x.shape[-1])
            for i, tokens in zip(members, x):
                out[i] = tokens
        return torch.cat(out)

    def grids(self, batch: Batch) -> list[Grid]:
        """(frames, rows, columns) of patches of each picture of the batch."""
        if 'grids' in batch:
            return [tuple(grid) for grid in batch['grids']]
        if 'images' not in batch:
            return []
        B, N, height, width, _ = batch['images'].shape
        patch = self.cfg.patch_size
        return [(1, height // patch, width // patch)] * (B * N)

    def positions(self, batch: Batch, picture: Tensor, place: Tensor) -> Tensor:
        """Rotary positions (3, B, L): the tokens of a picture form a grid, see grid_positions."""
        return grid_positions(
            picture,
            self.grids(batch),
            self.merge,
            batch['grid_seconds'] if 'grid_seconds' in batch else None,
            self.cfg.tokens_per_second,
            column_of(place) - place,
        )

    def to_windows(self, x: Tensor, gh: int, gw: int) -> Tensor:
        """(M, P, .) of gh x gw cells -> (M, W, P / W, .); the last windows may be padded."""
        s = self.window
        nh = math.ceil(gh / s)
        nw = math.ceil(gw / s)
        M = len(x)
        below = nh * s - gh
        right = nw * s - gw
        x = x.view(M, gh, gw, -1)
        x = F.pad(x, (0, 0, 0, right, 0, below))
        x = x.view(M, nh, s, nw, s, -1).transpose(2, 3)
        patches = s * s * self.merge**2
        return x.reshape(M, nh * nw, patches, -1)

    def from_windows(self, x: Tensor, gh: int, gw: int) -> Tensor:
        """(M, W, P / W, .) -> (M, gh * gw, merge^2 * .), cells in reading order."""
        s = self.window
        nh = math.ceil(gh / s)
        nw = math.ceil(gw / s)
        M = len(x)
        x = x.view(M, nh, nw, s, s, -1).transpose(2, 3)
        x = x.reshape(M, nh * s, nw * s, -1)
        return x[:, :gh, :gw].flatten(1, 2)

    def rotary_tables(self, x: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Tables (W, P / W, 1, c) that turn half of the frequencies by row, half by column."""
        m = self.merge
        gh = rows // m
        gw = columns // m
        c = x.shape[-1] // self.heads
        row = torch.arange(rows, device=x.device)
        column = torch.arange(columns, device=x.device)
        place = torch.cartesian_prod(row, column)
        place = place.view(gh, m, gw, m, 2).transpose(1, 2)
        place = place.reshape(1, -1, 2).float()
        place = self.to_windows(place, gh, gw)[0]  # (W, P / W, 2): row, column
        half = c // 2
        ramp = torch.arange(0, half, 2, device=x.device, dtype=torch.float32) / half
        angle = place[..., None] * 10_000.0**-ramp
        return layers.rotation(angle.flatten(2), layers.compute_dtype(x))

    def encode_frames(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """Frames of one size, (M, P, .), patches of a cell side by side -> (M, P / merge^2, D)."""
        gh = rows // self.merge
        gw = columns // self.merge
        x = self.to_windows(self.patch(patches), gh, gw)  # (M, W, P / W, D)
        M, W, P, D = x.shape
        cos, sin = self.rotary_tables(x, rows, columns)
        whole = (1, W * P)  # the windows of a picture, taken as one
        whole_cos = cos.reshape(*whole, 1, -1)
        whole_sin = sin.reshape(*whole, 1, -1)
        real = None  # no window sticks out
        whole_real = None
        if gh % self.window or gw % self.window:
            ones = x.new_ones(1, rows * columns, 1)
            real = self.to_windows(ones, gh, gw)[0, :, :, 0].bool()
            whole_real = real.view(whole)
        for i, block in enumerate(self.blocks):
            run = layers.recomputed(block, self.cfg.recompute)
            if i in self.full_blocks:
                x = x.view(M, *whole, D)
                x = run(x, whole_cos, whole_sin, whole_real)
                x = x.view(M, W, P, D)
            else:
                x = run(x, cos, sin, real)
        x = self.from_windows(self.norm(x), gh, gw)  # (M, cells, merge^2 * width)
        return self.merge_out(F.gelu(self.merge_in(x)))

    @staticmethod
    def tokens_per_picture(cfg: 'VLAConfig') -> int:
        """Cells of one picture."""
        return (cfg.image_size // cfg.patch_size) ** 2 // cfg.merge_size**2

    @staticmethod
    def cost(cfg: 'VLAConfig') -> int:
        """Multiply-adds for one picture."""
        width = cfg.vision_width
        cell = cfg.merge_size**2
        patches = (cfg.image_size // cfg.patch_size) ** 2
        window = (cfg.vision_window // cfg.patch_size) ** 2
        full = len(cfg.vision_full_blocks)
        # Keys of all blocks together.
        keys = cfg.vision_layers * window + full * (patches - window)
        block = 4 * width + 3 * cfg.vision_intermediate
        per_patch = cfg.vision_layers * block + 2 * keys
        per_patch += 3 * cfg.patch_frames * cfg.patch_size**2
        merger = width * cell * (width * cell + cfg.hidden_size)
        return patches * width * per_patch + QwenStem.tokens_per_picture(cfg) * merger

    @staticmethod
    def block_sizes(cfg: 'VLAConfig') -> list[BlockSizes]:
        """Sizes of the tower: it has more tokens than the decoder, each patch is one."""
        width = cfg.vision_width
        patches = (cfg.image_size // cfg.patch_size) ** 2
        return [
            BlockSizes(
                depth=cfg.vision_layers,
                width=width,
                attention=7 * width,
                mlp=4 * cfg.vision_intermediate,
                heads=cfg.vision_heads,
                keys=patches,
                tokens=cfg.n_cameras * patches,
            )
        ]


STEMS: dict[str, type[Stem]] = {'conv': ConvStem, 'qwen': QwenStem}


# -----------------------------------------------------------------------------
# pictures as Qwen2.5-VL's processor prepares them


def numbers(values: Sequence[float], device: torch.device) -> Tensor:
    """A few numbers as a float32 tensor, made where it is needed.

    torch.tensor makes it in main memory, and the copy waits for all that a GPU has to do.
    """
    parts = [torch.full((1,), value, device=device) for value in values]
    return torch.cat(parts)


def patchify(
    images: Tensor, patch: int = 14, merge: int = 2, frames: int = 2
) -> tuple[Tensor, list[Grid]]:
    """Cut pictures into flattened patches.

    `frames` frames become one row of time; where they do not divide T the last one is repeated, so
    that a picture is shown as equal frames.

    Args:
        images: pictures (M, h, w, 3) or videos (M, T, h, w, 3), 0..255.
        patch: pixels on a side.
        merge: patches of a cell on a side.
        frames: of one row of time.

    Returns:
        patches (n, 3 * frames * patch^2) float32, and the grids.

    Raises:
        ValueError: the sides of the pictures are no multiples of patch * merge.
    """
    x = images[:, None] if images.ndim == 4 else images
    M, T, h, w, _ = x.shape
    cell = patch * merge
    if h % cell or w % cell:
        raise ValueError(f'pictures are {h} x {w} px; both sides must be multiples of {cell}')
    mean = 255 * numbers(PIXEL_MEAN, images.device)
    std = 255 * numbers(PIXEL_STD, images.device)
    t = math.ceil(T / frames)
    x = (x.float() - mean) / std
    repeated = t * frames - T
    last = x[:, -1:].expand(-1, repeated, -1, -1, -1)
    x = torch.cat([x, last], 1)
    x = x.view(M, t, frames, h // cell, merge, patch, w // cell, merge, patch, 3)
    x = x.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)  # (M, t, gh, gw, merge, merge, 3, frames, p, p)
    grids = [(t, h // patch, w // patch)] * M
    return x.reshape(-1, 3 * frames * patch * patch), grids


def smart_size(
    height: int, width: int, min_pixels: int, max_pixels: int, cell: int = 28
) -> tuple[int, int]:
    """The size in pixels that a picture is brought to, by Qwen2.5-VL's rule.

    Sides are multiples of a cell, the aspect ratio is about kept, the area lies within bounds;
    EO-1's bounds are 64 and 128 cells.

    Raises:
        ValueError: the picture is narrower than 1 to 200.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f'a picture of {height} x {width} px is too narrow: at most 1 to 200')
    h = max(cell, round(height / cell) * cell)
    w = max(cell, round(width / cell) * cell)
    if h * w > max_pixels:
        shrink = (height * width / max_pixels) ** 0.5
        h = max(cell, math.floor(height / shrink / cell) * cell)
        w = max(cell, math.floor(width / shrink / cell) * cell)
    elif h * w < min_pixels:
        grow = (min_pixels / (height * width)) ** 0.5
        h = math.ceil(height * grow / cell) * cell
        w = math.ceil(width * grow / cell) * cell
    return h, w


def resize(picture: Tensor, h: int, w: int) -> Tensor:
    """(..., height, width, 3) bytes -> (..., h, w, 3) float32, by PIL's bicubic filter.

    PIL does it itself, as in the published processor: in which order it takes the two directions,
    with a rounding to bytes after each, has changed from version to version.
    """
    frames = picture.reshape(-1, *picture.shape[-3:]).cpu().numpy()
    images = [PIL.Image.fromarray(frame) for frame in frames]
    resized = [np.asarray(x.resize((w, h), PIL.Image.Resampling.BICUBIC)) for x in images]
    return torch.from_numpy(np.stack(resized)).view(*picture.shape[:-3], h, w, 3).float()


def preprocess(
    pictures: Sequence,
    min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 1280,
    patch: int = 14,
    merge: int = 2,
    frames: int = 2,
) -> tuple[Tensor, list[Grid]]:
    """Bring pictures of any sizes to sizes that fit, and cut them into patches.

    Args:
        pictures: (h, w, 3) pictures or (T, h, w, 3) videos, uint8.
        min_pixels: see smart_size, as for max_pixels.
        max_pixels: of a picture.
        patch: see patchify, as for merge and frames.
        merge: patches of a cell on a side.
        frames: of one row of time.

    Returns:
        patches and grids of all pictures, for a batch that QwenStem reads.
    """
    patches = []
    grids: list[Grid] = []
    for picture in pictures:
        x = torch.as_tensor(picture)
        height, width = x.shape[-3:-1]
        h, w = smart_size(height, width, min_pixels, max_pixels, patch * merge)
        if (h, w) != (height, width):
            x = resize(x, h, w)
        parts, grid = patchify(x[None], patch, merge, frames)
        patches.append(parts)
        grids += grid
    if not patches:
        return torch.empty(0, 3 * frames * patch * patch), grids
    return torch.cat(patches), grids


def grid_positions(
    at: Tensor,
    grids: Sequence[Grid],
    merge: int = 2,
    seconds: Sequence[float] | None = None,
    per_second: float = 2,
    start: Tensor | None = None,
) -> Tensor:
    """Rotary positions (3, B, L) of token rows with pictures: time, row and column of each cell.

    They are counted from where the picture starts; text goes on after the largest, as in EO-1 also
    after videos.

    Args:
        at: bool (B, L), tokens of pictures.
        grids: of the pictures as they appear.
        merge: patches of a cell on a side.
        seconds: of each picture, from one row of time to the next; None: 1.
        per_second: positions that a second takes.
        start: (B, L), the column where the token's document begins and positions count from 0;
            None: column 0.
    """
    advance = torch.ones_like(at, dtype=torch.int64)
    offset = torch.zeros(3, *at.shape, dtype=torch.int64, device=at.device)
    if grids:
        kinds = list(zip(grids, seconds or [1] * len(grids)))
        made = {kind: _grid_cells(*kind, merge, per_second, at.device) for kind in set(kinds)}
        steps = [made[kind][0] for kind in kinds]
        cells = [made[kind][1] for kind in kinds]
        advance = advance.masked_scatter(at, torch.cat(steps))
        offset = offset.masked_scatter(at.expand(3, -1, -1), torch.cat(cells, 1))
    before = advance.cumsum(1) - advance
    if start is not None:
        before = before - before.gather(1, start)
    return before + offset


def _grid_cells(
    grid: Grid, pause: float, merge: int, per_second: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """How far each cell of a picture moves the text on (cells,), and its axes (3, cells)."""
    t, h, w = grid
    times = [int(row * pause * per_second) for row in range(t)]
    rows = h // merge
    columns = w // merge
    time = torch.zeros(1, dtype=torch.int64, device=device)
    if t > 1:
        time = torch.tensor(times, device=device)
    axes = [time, torch.arange(rows, device=device), torch.arange(columns, device=device)]
    cell = torch.stack(torch.meshgrid(*axes, indexing='ij')).flatten(1)
    longest = max(times[-1], rows - 1, columns - 1)
    place = torch.arange(cell.shape[1], device=device)
    # Text goes on after the last cell.
    step = torch.where(place == cell.shape[1] - 1, longest + 1, 0)
    return step, cell
