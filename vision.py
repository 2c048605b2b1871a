"""Pictures to tokens: a convolutional stem that learns from scratch; Qwen2.5-VL's tower and its file layout.

    ConvStem      (M, s, s, 3) bytes -> (M, few tokens, D)
    QwenVision    flattened patches of pictures of any size, and their grids -> (tokens, D) in reading order
    patchify      (M, h, w, 3) bytes -> what QwenVision reads
    grid_positions   the rotary positions of token rows that hold pictures
    hub_names, config_from_hf, ...   published names and settings of Qwen2.5-VL and EO-1: VLA.from_pretrained
A grid is (frames, rows, columns) of patches; merge x merge patches become one token, a `cell`.
"""
# M pictures, n patches of all pictures, P patches of one, h heads, c head width, D width
import json
import os
import re

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)    # CLIP's, of pixels in 0..1
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
# VLAConfig field -> Qwen2.5-VL's vision_config
HUB_CONFIG = {'vision_width': 'hidden_size', 'vision_layers': 'depth', 'vision_heads': 'num_heads',
              'vision_intermediate': 'intermediate_size', 'vision_window': 'window_size',
              'patch_size': 'patch_size', 'merge_size': 'spatial_merge_size',
              'patch_frames': 'temporal_patch_size'}


def compute_dtype(x):
    """What matrix products of x come out as, under autocast or not."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def rotate(x, cos, sin):
    """x (..., h, c); first and second half of c are the two coordinates of each rotation (Hugging Face's
    layout); cos and sin (..., 1, c), the first half of sin negated."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def rotation(angle, dtype):
    """angle (..., c/2) -> cos and sin (..., 1, c) for rotate."""
    cos, sin = angle.cos(), angle.sin()
    cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    return cos.to(dtype).unsqueeze(-2), sin.to(dtype).unsqueeze(-2)


# -----------------------------------------------------------------------------
# from scratch

class FastGroupNorm(torch.autograd.Function):
    """Group norm of a map stored channels last, x (M, P, C), where PyTorch's needs 23 ms against 6 on CPU."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        M, P, C = x.shape
        mean, square = (y.sum(1, dtype=torch.float32).view(M, groups, -1).mean(-1, keepdim=True) / P
                        for y in (x, x * x))                                  # (M, groups, 1)
        inv = (square - mean * mean + eps).rsqrt_()
        scale = inv * weight.view(groups, -1)                                 # (M, groups, C / groups)
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
        slope, offset, scale = (y.expand(M, groups, C // groups).reshape(M, 1, C).to(x.dtype)
                                for y in (slope, offset, inv * w))
        grad_x = torch.addcmul(offset, x, slope).addcmul_(grad, scale)
        return grad_x, ((dot - total * mean) * inv).sum(0).flatten(), total.sum(0).flatten(), None, None


def group_norm(x, norm):
    """norm(x) for a map x (M, C, h, w) stored channels last."""
    if x.device.type != 'cpu':
        return norm(x)
    flat = x.permute(0, 2, 3, 1).flatten(1, 2)
    flat = FastGroupNorm.apply(flat, norm.weight, norm.bias, norm.num_groups, norm.eps)
    return flat.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


class ConvStem(nn.Module):
    """(M, s, s, 3) -> (M, tokens, D). Keypoints (where does each feature fire) beside a flattened coarse map:
    from scratch this learns positions from few samples; patch tokens were ignored for the whole budget."""

    def __init__(self, image_size, tokens, width, channels=64, coarse=32):
        super().__init__()
        self.tokens, grid = tokens, 16
        self.patch = nn.Conv2d(3, channels, image_size // grid, stride=image_size // grid)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(8, channels)
        self.coarse = nn.Conv2d(channels, coarse, 3, stride=2, padding=1)
        self.coarse_norm = nn.LayerNorm(coarse * (grid // 2) ** 2)
        self.sharpness = nn.Parameter(torch.tensor(2.0))     # inverse temperature of the spatial softmax
        self.proj = nn.Linear(2 * channels + coarse * (grid // 2) ** 2, tokens * width)
        at = (torch.arange(grid) + 0.5) / grid * 2 - 1       # cell centres in -1..1
        where = torch.stack([at.repeat(grid), at.repeat_interleave(grid)], 1)  # (256, 2): x, y
        self.register_buffer('where', where * 3, persistent=False)             # x3: about unit variance
        self.to(memory_format=torch.channels_last)           # convolutions of small maps: 2x on CPU

    def forward(self, images):
        """images (M, h, w, 3), 0..255. Bytes are exact in bf16: instead of the pixels, the weights that meet
        them are scaled to the range -1..1, which saves two passes over the largest tensor of the step."""
        weight = self.patch.weight / 127.5
        bias = self.patch.bias - self.patch.weight.sum((1, 2, 3))
        pixels = images.permute(0, 3, 1, 2).to(compute_dtype(weight))          # (M, 3, h, w), channels last
        x = F.relu(F.conv2d(pixels, weight, bias, stride=self.patch.stride))   # (M, 64, 16, 16)
        x = group_norm(x + self.conv(x), self.norm)
        heat = x.permute(0, 2, 3, 1).flatten(1, 2) * self.sharpness.to(x.dtype)  # (M, 256, 64)
        keypoints = (self.where.to(x.dtype).t() @ heat.softmax(1)).flatten(1)  # (M, 128)
        coarse = self.coarse(F.relu(x)).permute(0, 2, 3, 1).flatten(1)         # (M, 2048)
        features = torch.cat([keypoints.to(coarse.dtype), self.coarse_norm(coarse).to(coarse.dtype)], -1)
        return self.proj(features).view(len(x), self.tokens, -1)


# -----------------------------------------------------------------------------
# Qwen2.5-VL

class VisionBlock(nn.Module):
    def __init__(self, width, heads, intermediate):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * intermediate)         # gate, then up
        self.down = nn.Linear(intermediate, width)

    def forward(self, x, cos, sin, real):
        """x (M, W, P, D): attention within each of the W groups of P patches. cos and sin (W, P, 1, c); real
        bool (W, P) or None: False for padding, which nobody sees."""
        M, W, P, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(M, W, P, 3, self.heads, -1).unbind(3)
        q, k, v = (y.flatten(0, 1).transpose(1, 2) for y in (rotate(q, cos, sin), rotate(k, cos, sin), v))
        mask = None if real is None else real.expand(M, W, P).reshape(M * W, 1, 1, P)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)            # (M * W, h, P, c)
        x = x + self.proj(y.transpose(1, 2).reshape(M, W, P, D))
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class QwenVision(nn.Module):
    """Patches attend within windows of window x window pixels, in a few blocks within the whole picture."""

    def __init__(self, width, layers, heads, intermediate, out, full_blocks, patch=14, merge=2, frames=2,
                 window=112):
        super().__init__()
        self.heads, self.merge, self.full_blocks = heads, merge, set(full_blocks)
        self.window = window // patch // merge               # cells on a side
        self.patch = nn.Linear(3 * frames * patch * patch, width, bias=False)  # a convolution without overlap
        self.blocks = nn.ModuleList(VisionBlock(width, heads, intermediate) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.merge_in = nn.Linear(width * merge ** 2, width * merge ** 2)
        self.merge_out = nn.Linear(width * merge ** 2, out)

    def forward(self, patches, grids):
        """patches (n, 3 * frames * patch^2), picture after picture; grids: (frames, rows, columns) of each.
        -> (n / merge^2, D). Pictures of one size go through together."""
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
        """Frames of one size, (M, P, .) with the patches of a cell side by side -> (M, P / merge^2, D)."""
        m, s, gh, gw = self.merge, self.window, rows // self.merge, columns // self.merge
        nh, nw = -(-gh // s), -(-gw // s)                    # windows; the last may stick out: padding

        def to_windows(x):                                   # (M, P, .) -> (M, W, P / W, .)
            x = F.pad(x.view(len(x), gh, gw, -1), (0, 0, 0, nw * s - gw, 0, nh * s - gh))
            x = x.view(len(x), nh, s, nw, s, -1).transpose(2, 3)
            return x.reshape(len(x), nh * nw, s * s * m * m, -1)
        x = to_windows(self.patch(patches))
        c, whole = x.shape[-1] // self.heads, (1, nh * nw * s * s * m * m)
        place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(gh, m, gw, m, 2)
        place = place.transpose(1, 2).reshape(1, -1, 2).float()
        place = to_windows(place)[0].to(x.device)            # (W, P / W, 2): row, column
        frequency = 10_000.0 ** (-torch.arange(0, c // 2, 2, device=x.device, dtype=torch.float32) / (c // 2))
        tables = rotation((place[..., None] * frequency).flatten(2), compute_dtype(x))
        real = to_windows(x.new_ones(1, rows * columns, 1))[0, :, :, 0].bool()
        real = None if real.all() else real                                    # (W, P / W)
        for i, block in enumerate(self.blocks):
            if i in self.full_blocks:
                cos, sin = (y.reshape(*whole, 1, c) for y in tables)
                seen = None if real is None else real.view(whole)
                x = block(x.view(len(x), *whole, -1), cos, sin, seen).view(x.shape)
            else:
                x = block(x, *tables, real)
        x = self.norm(x).view(len(x), nh, nw, s, s, -1).transpose(2, 3).reshape(len(x), nh * s, nw * s, -1)
        x = x[:, :gh, :gw].flatten(1, 2)                                       # (M, cells, merge^2 * width)
        return self.merge_out(F.gelu(self.merge_in(x)))


def patchify(images, patch=14, merge=2, frames=2):
    """Pictures (M, h, w, 3), 0..255, sides multiples of patch * merge -> patches (n, 3 * frames * patch^2)
    float32, grids [(1, rows, columns)]. A still picture is shown as `frames` equal frames."""
    M, h, w, _ = images.shape
    if h % (patch * merge) or w % (patch * merge):
        raise ValueError(f'pictures are {h} x {w} px; both sides must be multiples of {patch * merge}')
    mean, std = (255 * torch.tensor(v, device=images.device) for v in (PIXEL_MEAN, PIXEL_STD))
    gh, gw = h // patch // merge, w // patch // merge
    x = ((images.float() - mean) / std).view(M, gh, merge, patch, gw, merge, patch, 3)
    x = x.permute(0, 1, 4, 2, 5, 7, 3, 6).unsqueeze(6)       # (M, gh, gw, merge, merge, 3, 1, patch, patch)
    x = x.expand(*x.shape[:6], frames, patch, patch).reshape(-1, 3 * frames * patch * patch)
    return x, [(1, h // patch, w // patch)] * M


def grid_positions(ids, image_id, grids, merge=2):
    """Rotary positions (3, B, L) of token rows with pictures: time, row and column of each cell, counted from
    where the picture starts; text goes on after the largest. grids: of the pictures as they appear."""
    advance, offset = torch.ones_like(ids), torch.zeros(3, *ids.shape, dtype=ids.dtype, device=ids.device)
    cells = [torch.cartesian_prod(*map(torch.arange, (t, h // merge, w // merge))) for t, h, w in grids]
    if cells:
        at = ids == image_id
        steps = [F.one_hot(torch.tensor(len(c) - 1)) * (c.max() + 1) for c in cells]   # all at the last cell
        advance[at] = torch.cat(steps).to(ids)
        offset[:, at] = torch.cat(cells).t().to(ids)
    return advance.cumsum(1) - advance + offset


# -----------------------------------------------------------------------------
# files of Qwen2.5-VL and EO-1

def hub_name(key):
    """Any generation's name of a tensor -> the one in the published Qwen2.5-VL files; the head keeps EO-1's.
    vlm_backbone.model.* (EO-1), model.language_model.* (transformers 5), model.vlm_backbone.* (LeRobot)."""
    for pattern, start in ((r'.*\bvisual\.', 'visual.'), (r'.*\blanguage_model\.', 'model.'),
                           (r'.*\bvlm_backbone\.', ''), (r'.*\b(?=state_proj|action_)', '')):
        key, found = re.subn('^' + pattern, start, key)
        if found:
            break
    return key


def hub_names(cfg):
    """Our parameter -> the tensors it is made of, stacked along the first axis."""
    modules = {'embed_tokens': 'model.embed_tokens', 'decoder.norm': 'model.norm', 'lm_head': 'lm_head',
               'state_in': 'state_proj', 'head.action_in': 'action_in_proj',
               'head.time_mlp_in': 'action_time_mlp_in', 'head.time_mlp_out': 'action_time_mlp_out',
               'head.action_out.0': 'action_out_proj.0', 'head.action_out.2': 'action_out_proj.2'}
    block = {'norm1': 'input_layernorm', 'qkv': 'self_attn.q_proj self_attn.k_proj self_attn.v_proj',
             'out': 'self_attn.o_proj', 'norm2': 'post_attention_layernorm',
             'up': 'mlp.gate_proj mlp.up_proj', 'down': 'mlp.down_proj'}
    for i in range(cfg.n_layers):
        modules |= {
            f'decoder.blocks.{i}.{ours}': ' '.join(f'model.layers.{i}.{part}' for part in theirs.split())
            for ours, theirs in block.items()}
    modules |= {f'vision.{ours}': theirs for ours, theirs in tower_modules(cfg.vision_layers).items()}
    return {f'{ours}.{kind}': [f'{part}.{kind}' for part in theirs.split()]
            for ours, theirs in modules.items() for kind in ('weight', 'bias')}


def config_from_hf(hf):
    """config.json of Qwen2.5-VL (flat or nested) or EO-1 -> fields of VLAConfig."""
    text, tower = hf['text_config'] if 'text_config' in hf else hf, hf['vision_config']
    rope = text['rope_parameters'] if 'rope_parameters' in text else text['rope_scaling'] | text
    cfg = dict(vocab_size=text['vocab_size'], hidden_size=text['hidden_size'],
               n_layers=text['num_hidden_layers'], n_heads=text['num_attention_heads'],
               n_kv_heads=text['num_key_value_heads'],
               head_dim=text['hidden_size'] // text['num_attention_heads'],
               intermediate_size=text['intermediate_size'], mlp='swiglu',
               norm='rms', norm_eps=text['rms_norm_eps'],
               rope_theta=rope['rope_theta'], mrope_section=tuple(rope['mrope_section']),
               tie_embeddings=(hf if 'tie_word_embeddings' in hf else text)['tie_word_embeddings'],
               vision='qwen', image_pad_id=hf['image_token_id'],
               **{ours: tower[theirs] for ours, theirs in HUB_CONFIG.items()},
               vision_full_blocks=tuple(tower['fullatt_block_indexes']),
               prefix_attention='causal', chunk_attention='causal', predict='velocity', row_embedding=False,
               head_layers=2, time_period_min=4e-3, time_period_max=4.0, text_weight=1.0, eo1_compat=True)
    if 'action_chunk_size' in hf:
        if hf['action_act'] != 'linear' or hf['num_action_layers'] != 2:
            raise ValueError(f'action head {hf["action_act"]!r} x {hf["num_action_layers"]}: '
                             'only two linear layers')
        cfg |= dict(horizon=hf['action_chunk_size'],
                    state_dim=hf['max_action_dim'], action_dim=hf['max_action_dim'],
                    state_pad_id=hf['state_token_id'], action_pad_id=hf['action_token_id'],
                    action_pass_id=hf['action_pass_id'])
    return cfg


def config_to_hf(cfg):
    """The other way; only for what that layout can say."""
    ours = (cfg.vision, cfg.mlp, cfg.norm, cfg.head_layers, bool(cfg.row_embedding))
    if ours != ('qwen', 'swiglu', 'rms', 2, False):
        raise ValueError('only a model of Qwen2.5-VL\'s architecture can be written in its layout')
    rope = dict(rope_type='default', type='default', mrope_section=list(cfg.mrope_section),
                rope_theta=cfg.rope_theta)
    text = dict(model_type='qwen2_5_vl_text', vocab_size=cfg.vocab_size, hidden_size=cfg.hidden_size,
                intermediate_size=cfg.intermediate_size, num_hidden_layers=cfg.n_layers, hidden_act='silu',
                num_attention_heads=cfg.n_heads, num_key_value_heads=cfg.n_kv_heads,
                rms_norm_eps=cfg.norm_eps, rope_scaling=rope, rope_theta=cfg.rope_theta,
                tie_word_embeddings=cfg.tie_embeddings, use_sliding_window=False)
    tower = dict(model_type='qwen2_5_vl', hidden_act='silu', in_channels=3, tokens_per_second=2,
                 **{theirs: getattr(cfg, ours) for ours, theirs in HUB_CONFIG.items()},
                 fullatt_block_indexes=list(cfg.vision_full_blocks), out_hidden_size=cfg.hidden_size)
    return dict(architectures=['Qwen2_5_VLForConditionalGeneration'], model_type='qwen2_5_vl',
                text_config=text, vision_config=tower, image_token_id=cfg.image_pad_id,
                tie_word_embeddings=cfg.tie_embeddings, action_chunk_size=cfg.horizon,
                max_action_dim=cfg.action_dim, state_token_id=cfg.state_pad_id,
                action_token_id=cfg.action_pad_id, action_pass_id=cfg.action_pass_id, num_action_layers=2,
                action_act='linear')


def tower_modules(layers):
    """The part of hub_names in QwenVision."""
    block = {'norm1': 'norm1', 'qkv': 'attn.qkv', 'proj': 'attn.proj', 'norm2': 'norm2',
             'up': 'mlp.gate_proj mlp.up_proj', 'down': 'mlp.down_proj'}
    modules = {'patch': 'visual.patch_embed.proj', 'norm': 'visual.merger.ln_q',
               'merge_in': 'visual.merger.mlp.0', 'merge_out': 'visual.merger.mlp.2'}
    for i in range(layers):
        modules |= {f'blocks.{i}.{ours}': ' '.join(f'visual.blocks.{i}.{part}' for part in theirs.split())
                    for ours, theirs in block.items()}
    return modules


def read_hub(folder):
    """All tensors of a folder, one file or shards, by their published names."""
    files, index = ['model.safetensors'], f'{folder}/model.safetensors.index.json'
    if os.path.exists(index):
        with open(index) as f:
            files = sorted(set(json.load(f)['weight_map'].values()))
    return {hub_name(key): tensor for file in files for key, tensor in load_file(f'{folder}/{file}').items()}


# -----------------------------------------------------------------------------

def macs(cfg):
    """(multiply-adds, image tokens) of the pictures of one sample."""
    D, N = cfg.hidden_size, cfg.n_cameras
    if cfg.vision == 'conv':
        conv = 256 * (3 * (cfg.image_size // 16) ** 2 * 64 + 64 * 64 * 9) + 64 * 64 * 32 * 9
        return N * (conv + (128 + 2048) * cfg.tokens_per_camera * D), N * cfg.tokens_per_camera
    w, cell, picture = cfg.vision_width, cfg.merge_size ** 2, (cfg.image_size // cfg.patch_size) ** 2
    window, tokens = (cfg.vision_window // cfg.patch_size) ** 2, N * picture // cell
    seen = cfg.vision_layers * window + len(cfg.vision_full_blocks) * (picture - window)
    block = cfg.vision_layers * (4 * w + 3 * cfg.vision_intermediate) + 2 * seen
    tower = picture * w * (block + 3 * cfg.patch_frames * cfg.patch_size ** 2)
    return N * tower + tokens * w * cell * (w * cell + D), tokens
