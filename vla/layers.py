"""What decoder and vision stems share: precision, rotary positions, attention, norms, activations.

PyTorch composes several of these of small operations; what is written out here was slower that way
on CPU.
"""

# B batch, T tokens, h heads of c, M pictures, P places of a map, C channels, G groups, D width
import functools
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type that matrix products of x come out as, under autocast or not."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def choose_device(device: str | None, environment: Mapping[str, str] | None = None) -> str:
    """Return the device to compute on; None and 'auto' are cuda where there is one, else the CPU.

    Args:
        device: None, 'auto', 'cpu', 'cuda' or 'cuda:1'.
        environment: Of the process, to see whether GPUs are there that torch does not see.

    Raises:
        ValueError: There is no such device here, or nobody asked for the CPU and this job has GPUs.
    """
    has_gpu = torch.cuda.is_available()
    if device in (None, 'auto'):
        if not has_gpu and environment is not None:
            refuse_cpu(environment)
        return 'cuda' if has_gpu else 'cpu'
    if not re.fullmatch(r'cpu|cuda(:\d+)?', device):
        raise ValueError(f"device={device}: expected 'cpu', 'cuda' or 'cuda:1'")
    if device != 'cpu' and not has_gpu:
        raise ValueError(f'device={device}: torch {torch.__version__} sees no GPU here')
    number = int(device.partition(':')[2] or 0)
    if device != 'cpu' and number >= torch.cuda.device_count():
        raise ValueError(
            f'device={device}: the last one here is cuda:{torch.cuda.device_count() - 1}'
        )
    return device


def all_devices(device: str | None) -> list[str]:
    """Return every device that a choice stands for: 'cuda' and None are all GPUs there are."""
    chosen = choose_device(device)
    if chosen != 'cuda':
        return [chosen]
    return [f'cuda:{i}' for i in range(torch.cuda.device_count())]


def refuse_cpu(environment: Mapping[str, str]) -> None:
    """Raise ValueError where GPUs are there for this job; torch sees none of them.

    Args:
        environment: Of the process. SLURM tells a job in it which GPUs it has. torchrun tells how
            many processes there are: several are meant to be a large run, and nvidia-smi is asked.
    """
    there = ''
    for name in ('SLURM_JOB_GPUS', 'SLURM_STEP_GPUS'):  # numbers of GPUs: 0 is one
        if environment.get(name):
            there = f'{name}={environment[name]}'
    if environment.get('SLURM_GPUS_ON_NODE', '0') not in ('', '0'):  # SLURM says how many.
        there = f'SLURM_GPUS_ON_NODE={environment["SLURM_GPUS_ON_NODE"]}'
    launched = environment.get('WORLD_SIZE', '1') != '1'
    if not there and launched and shutil.which('nvidia-smi'):
        listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True).stdout
        there = listed.strip().partition('\n')[0]
    if there:
        build = 'is its CPU build' if torch.version.cuda is None else 'sees none: the driver?'
        raise ValueError(
            f'device: GPUs are there ({there}), but torch {torch.__version__} {build}; install it '
            'with `make setup TORCH=cuda`, or say that CPUs are meant: --device=cpu'
        )


def autocast_for(device: str, dtype: str = 'auto') -> torch.autocast:
    """Context in which matrix products are done in `dtype`.

    With float32 on a GPU its convolutions are float32 as well, which they are not by default: cuDNN
    rounds what it multiplies to TF32, and losses differed from the CPU's in the fifth digit. This
    is a switch of the whole process, which stays as the last call has set it.

    Args:
        device: 'cpu' or 'cuda:<i>'.
        dtype: 'float32', 'bfloat16', or 'auto': bfloat16 where it is faster than float32, see
            `cpu_likes_bfloat16`.

    Raises:
        ValueError: another dtype was asked for.
    """
    kind = torch.device(device).type
    if dtype == 'auto':
        fast = kind == 'cuda' or cpu_likes_bfloat16(torch.cpu.get_capabilities())
        dtype = 'bfloat16' if fast else 'float32'
    if dtype not in ('float32', 'bfloat16'):
        raise ValueError(f"dtype {dtype!r}, expected 'auto', 'float32' or 'bfloat16'")
    if kind == 'cuda':
        torch.backends.cudnn.allow_tf32 = dtype != 'float32'
    return torch.autocast(kind, getattr(torch, dtype), enabled=dtype != 'float32')


def cpu_likes_bfloat16(has: Mapping[str, Any]) -> bool:
    """Say whether a CPU multiplies bfloat16 matrices faster than float32, by what it has.

    AMX does, and AVX512-BF16 does on AMD's cores. Intel's have one such unit where they have two
    for float32: without AMX, which a virtual machine may hide, products of 1024 x 1024 came at 75
    GFLOP/s instead of 142, and a step of config/demo.py took 1.5 times as long. CPUs without any
    of this emulate bfloat16.

    Args:
        has: torch.cpu.get_capabilities().
    """
    intel = 'Intel' in str(has.get('cpu_name', ''))
    return bool(has.get('amx_bf16') or (has.get('avx512_bf16') and not intel))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (..., h, c) by the angles of cos and sin (..., 1, c), as `rotation` gives them.

    The first and the second half of c are the two coordinates of each rotation, which is Hugging
    Face's layout.
    """
    half = x.shape[-1] // 2
    other = x.roll(half, -1)
    return torch.addcmul(x * cos, other, sin)


def rotation(angle: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Angles (..., c/2) -> cosine and sine (..., 1, c), the first half of the sine negated."""
    cos = angle.cos()
    sin = angle.sin()
    cos = torch.cat([cos, cos], -1).to(dtype)
    sin = torch.cat([-sin, sin], -1).to(dtype)
    return cos.unsqueeze(-2), sin.unsqueeze(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of q (B, h, Tq, c) over k and v (B, h_kv, Tk, c) -> (B, h, Tq, c).

    The g = h / h_kv heads that share keys are taken as one head of g * Tq queries: no key is
    copied, and of the kernels that take a mask on a GPU none knows such groups.

    Args:
        q: queries; head i looks at keys i // g.
        k: keys.
        v: values.
        bias: (B, g, Tq, Tk), is added to the scores.
    """
    h_kv = k.shape[1]
    groups = q.shape[1] // h_kv
    if groups > 1:
        q = q.unflatten(1, (h_kv, groups)).flatten(2, 3)  # (B, h_kv, g * Tq, c)
        bias = bias.flatten(1, 2).unsqueeze(1)  # (B, 1, g * Tq, Tk)
    if q.device.type != 'cpu' or not torch.is_grad_enabled():
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    else:
        # Written out, the backward is 2-3x faster than SDPA's on CPU, where softmax is 3x faster
        # in float32 than in bf16.
        scale = q.shape[-1] ** -0.5
        scores = torch.add(bias, q @ k.transpose(-1, -2), alpha=scale)
        y = scores.softmax(-1).to(v.dtype) @ v
    return y.unflatten(2, (groups, -1)).flatten(1, 2) if groups > 1 else y


def recomputed(block: nn.Module, recompute: bool) -> Callable[..., Any]:
    """The block, or with `recompute` a call of it that keeps its inputs alone.

    The backward works through it again: activation checkpointing.
    """
    if recompute and torch.is_grad_enabled():
        # Nothing in a block is random, and to keep a GPU's random state is not for CUDA graphs.
        return functools.partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
    return block


# -----------------------------------------------------------------------------
# norms and activations


def unit_rms(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Give x (..., D) in float32, scaled to a root mean square of 1, and the scale (..., 1)."""
    x = x.float()
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    mean_square = length.square_() / x.shape[-1]
    scale = mean_square.add_(eps).rsqrt_()
    return x * scale, scale


class FastRMSNorm(torch.autograd.Function):
    """RMS norm with a written-out backward: 1.2 ms on CPU where PyTorch's own took 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """Norm x (..., D); the result is of `dtype`."""
        ctx.dtype = x.dtype
        unit, scale = unit_rms(x, eps)
        ctx.save_for_backward(unit, scale, weight)
        return (unit * weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and weight."""
        unit, scale, weight = ctx.saved_tensors
        grad = grads[0].float()
        along = grad * unit
        D = unit.shape[-1]
        mean = (along @ weight.float())[..., None] / D
        grad_x = torch.addcmul(grad * weight, unit, mean, value=-1).mul_(scale)
        grad_weight = along.flatten(0, -2).sum(0)
        return grad_x.to(ctx.dtype), grad_weight.to(weight.dtype), None, None


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm, each device by its fastest way."""

    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """Norm x (..., D)."""
        if x.device.type != 'cpu':
            # One kernel does it only if both are of one type, which they are not in FSDP.
            weight = self.weight.to(x.dtype)
            return F.rms_norm(x, self.normalized_shape, weight, self.eps)
        if not torch.is_grad_enabled():
            # For a few rows half of the time went into calling the autograd function.
            unit, _ = unit_rms(x, self.eps)
            return (unit * self.weight).to(compute_dtype(x))
        return FastRMSNorm.apply(x, self.weight, self.eps, compute_dtype(x))


class SquaredReLU(torch.autograd.Function):
    """relu(x)^2 that keeps one tensor.

    The two operations by themselves keep both inputs and go through memory five times in the
    backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Square relu(x)."""
        x = x.relu()
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Gradient of x."""
        (x,) = ctx.saved_tensors
        return (grads[0] * x).mul_(2)


def group_sums(x: Tensor, groups: int) -> Tensor:
    """Sums over the places of a map x (M, P, C): (M, G, C / G), float32."""
    return x.sum(1, dtype=torch.float32).view(len(x), groups, -1)


class FastGroupNorm(torch.autograd.Function):
    """Group norm of a map stored channels last: 6 ms on CPU where PyTorch's own took 23."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
    ) -> Tensor:
        """Norm x (M, P, C) with weight and bias (C)."""
        M, P, C = x.shape
        total = group_sums(x, groups)  # (M, G, C / G)
        mean = total.mean(-1, keepdim=True) / P  # (M, G, 1)
        square = group_sums(x * x, groups)
        square = square.mean(-1, keepdim=True) / P
        # By rounding, the variance of a map that is all but flat would come out below zero.
        inv = ((square - mean * mean).clamp_(min=0) + eps).rsqrt_()
        scale = inv * weight.view(groups, -1)  # (M, G, C / G)
        shift = bias.view(groups, -1) - mean * scale
        ctx.save_for_backward(x, mean, inv, weight)
        scale = scale.view(M, 1, C).to(x.dtype)
        shift = shift.view(M, 1, C).to(x.dtype)
        return torch.addcmul(shift, x, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        (grad,) = grads
        x, mean, inv, weight = ctx.saved_tensors
        M, P, C = x.shape
        groups = mean.shape[1]
        n = P * C // groups
        w = weight.view(groups, -1)
        dot = group_sums(grad * x, groups)  # (M, G, C / G)
        total = group_sums(grad, groups)
        dot_w = (dot * w).sum(-1, keepdim=True)  # (M, G, 1)
        total_w = (total * w).sum(-1, keepdim=True)
        slope = total_w * mean - dot_w
        slope = slope * inv**3 / n
        offset = -slope * mean
        offset = offset - total_w * inv / n

        def per_channel(y: Tensor) -> Tensor:
            y = y.expand(M, groups, C // groups)
            return y.reshape(M, 1, C).to(x.dtype)

        grad_x = torch.addcmul(per_channel(offset), x, per_channel(slope))
        grad_x.addcmul_(grad, per_channel(inv * w))
        grad_weight = ((dot - total * mean) * inv).sum(0).flatten()
        grad_bias = total.sum(0).flatten()
        return grad_x, grad_weight, grad_bias, None, None


def group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """norm(x) for a map x (M, C, height, width) stored channels last."""
    if x.device.type != 'cpu':
        return norm(x)
    M, _, height, width = x.shape
    flat = x.permute(0, 2, 3, 1).flatten(1, 2)  # (M, P, C)
    flat = FastGroupNorm.apply(flat, norm.weight, norm.bias, norm.num_groups, norm.eps)
    return flat.view(M, height, width, -1).permute(0, 3, 1, 2)


def fourier_features(x: Tensor, frequencies: int) -> Tensor:
    """Numbers with their sines and cosines: (..., n) -> (..., n (1 + 2 F)).

    The periods are 8, 4, 2 .. (Tancik et al. 2020): a linear map of a coordinate that ranges over
    decimetres hardly resolves millimetres.
    """
    if not frequencies:
        return x
    octave = torch.arange(frequencies, device=x.device)
    rate = 2 * math.pi / 8 * 2.0**octave
    angle = rate * x.float()[..., None]
    angle = angle.flatten(-2)
    return torch.cat([x, angle.sin(), angle.cos()], -1)
