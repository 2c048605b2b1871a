"""What decoder and vision tower share: precision, rotary positions, attention, fast norms and
activations.

PyTorch composes several of these of small operations; what is written out here was the slower on
CPU.
"""

# B batch, T tokens, h heads of c, M pictures, P places of a map, C channels, D width
import functools
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


def compute_dtype(x):
    """What matrix products of x come out as, under autocast or not."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def autocast_for(device, dtype='auto'):
    """Context in which matrix products are done in `dtype`, 'float32' or 'bfloat16'. 'auto':
    bfloat16 where there are units for it; CPUs without them emulate it, slower than float32.
    """
    kind = torch.device(device).type
    cpu = torch.cpu.get_capabilities()
    if dtype == 'auto':
        dtype = (
            'bfloat16'
            if kind == 'cuda' or cpu.get('avx512_bf16') or cpu.get('amx_bf16')
            else 'float32'
        )
    if dtype not in ('float32', 'bfloat16'):
        raise ValueError(f"dtype {dtype!r}, expected 'auto', 'float32' or 'bfloat16'")
    return torch.autocast(kind, getattr(torch, dtype), enabled=dtype != 'float32')


def rotate(x, cos, sin):
    """x (..., h, c); first and second half of c are the two coordinates of each rotation (Hugging
    Face's layout); cos and sin (..., 1, c), the first half of sin negated.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def rotation(angle, dtype):
    """angle (..., c/2) -> cos and sin (..., 1, c) for rotate."""
    cos = angle.cos()
    sin = angle.sin()
    cos = torch.cat([cos, cos], -1)
    sin = torch.cat([-sin, sin], -1)
    return cos.to(dtype).unsqueeze(-2), sin.to(dtype).unsqueeze(-2)


def attend(q, k, v, bias):
    """q (B, h, Tq, c), k and v (B, h_kv, Tk, c) -> (B, h, Tq, c)."""
    grouped = q.shape[1] != k.shape[1]
    if q.device.type != 'cpu' or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias.to(q.dtype), enable_gqa=grouped
        )
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    # written out: 2-3x faster backward than SDPA's on CPU, where softmax is 3x faster in float32
    # than in bf16
    scores = torch.add(bias, q @ k.transpose(-1, -2), alpha=q.shape[-1] ** -0.5)
    return scores.softmax(-1).to(v.dtype) @ v


def recomputed(block, recompute):
    """The block; or a call of it that keeps its inputs alone and works through it again in the
    backward.
    """
    if recompute and torch.is_grad_enabled():
        return functools.partial(checkpoint, block, use_reentrant=False)
    return block


# -----------------------------------------------------------------------------
# norms and activations


def unit_rms(x, eps):
    """x (..., D) in float32, scaled to a root mean square of 1, and the scale (..., 1)."""
    x = x.float()
    scale = (
        (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1])
        .add_(eps)
        .rsqrt_()
    )
    return x * scale, scale


class FastRMSNorm(torch.autograd.Function):
    """RMS norm with a written-out backward: PyTorch composes it of small operations on CPU, 2 ms to
    1.2.
    """

    @staticmethod
    def forward(ctx, x, weight, eps, dtype):
        ctx.dtype = x.dtype
        unit, scale = unit_rms(x, eps)
        ctx.save_for_backward(unit, scale, weight)
        return (unit * weight).to(dtype)

    @staticmethod
    def backward(ctx, grad):
        unit, scale, weight = ctx.saved_tensors
        grad = grad.float()
        along = grad * unit
        mean = (along @ weight.float())[..., None] / unit.shape[-1]
        grad_x = torch.addcmul(grad * weight, unit, mean, value=-1).mul_(scale)
        return grad_x.to(ctx.dtype), along.flatten(0, -2).sum(0).to(weight.dtype), None, None


class RMSNorm(nn.RMSNorm):
    def forward(self, x):
        if (
            x.device.type != 'cpu'
        ):  # one kernel only if both are of one type, which they are not in FSDP
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
        if (
            not torch.is_grad_enabled()
        ):  # a few rows: half of the time went into calling the function
            return (unit_rms(x, self.eps)[0] * self.weight).to(compute_dtype(x))
        return FastRMSNorm.apply(x, self.weight, self.eps, compute_dtype(x))


class SquaredReLU(torch.autograd.Function):
    """relu(x)^2; by itself the pair keeps both inputs and goes through memory five times in the
    backward.
    """

    @staticmethod
    def forward(ctx, x):
        x = x.relu()
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, grad):
        return (grad * ctx.saved_tensors[0]).mul_(2)


class FastGroupNorm(torch.autograd.Function):
    """Group norm of a map stored channels last, x (M, P, C), where PyTorch's needs 23 ms against 6
    on CPU.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        M, P, C = x.shape
        mean, square = (
            y.sum(1, dtype=torch.float32).view(M, groups, -1).mean(-1, keepdim=True) / P
            for y in (x, x * x)
        )  # (M, groups, 1)
        inv = (square - mean * mean + eps).rsqrt_()
        scale = inv * weight.view(groups, -1)  # (M, groups, C / groups)
        shift = bias.view(groups, -1) - mean * scale
        ctx.save_for_backward(x, mean, inv, weight)
        return torch.addcmul(shift.view(M, 1, C).to(x.dtype), x, scale.view(M, 1, C).to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        x, mean, inv, weight = ctx.saved_tensors
        (M, P, C), (_, groups, _) = x.shape, mean.shape
        dot, total = (y.sum(1, dtype=torch.float32).view(M, groups, -1) for y in (grad * x, grad))
        w = weight.view(groups, -1)
        n = P * C // groups
        dot_w = (dot * w).sum(-1, keepdim=True)
        total_w = (total * w).sum(-1, keepdim=True)
        slope = (total_w * mean - dot_w) * inv**3 / n
        offset = -slope * mean - total_w * inv / n
        slope, offset, scale = (
            y.expand(M, groups, C // groups).reshape(M, 1, C).to(x.dtype)
            for y in (slope, offset, inv * w)
        )
        grad_x = torch.addcmul(offset, x, slope).addcmul_(grad, scale)
        return (
            grad_x,
            ((dot - total * mean) * inv).sum(0).flatten(),
            total.sum(0).flatten(),
            None,
            None,
        )


def group_norm(x, norm):
    """norm(x) for a map x (M, C, h, w) stored channels last."""
    if x.device.type != 'cpu':
        return norm(x)
    flat = x.permute(0, 2, 3, 1).flatten(1, 2)
    flat = FastGroupNorm.apply(flat, norm.weight, norm.bias, norm.num_groups, norm.eps)
    return flat.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def fourier_features(x, frequencies):
    """(..., n) -> (..., n (1 + 2 F)): numbers and their sines and cosines, of periods 8, 4, 2 ..
    (Tancik et al. 2020): a linear map of a coordinate that ranges over decimetres hardly resolves
    millimetres.
    """
    if not frequencies:
        return x
    angle = (
        2 * math.pi / 8 * 2.0 ** torch.arange(frequencies, device=x.device) * x.float()[..., None]
    )
    angle = angle.flatten(-2)
    return torch.cat([x, angle.sin(), angle.cos()], -1)
