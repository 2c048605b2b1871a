"""How weights change: Muon and AdamW, and the running average that acts."""

import contextlib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

# How torch's own Muon scales a step by the shape of a matrix.
from torch.optim._muon import _adjust_lr


def local(tensor: Any) -> torch.Tensor:
    """Return this rank's part of a tensor, which is all of it where it is not spread."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def freeze(model: nn.Module, rates: Sequence[str]) -> dict[str, float]:
    """Switch off the gradients of the parameters whose rate is 0.

    Args:
        model: Its parameters are looked at by name.
        rates: 'pattern=factor' each; the last pattern that fits a parameter's name counts.

    Returns:
        For each parameter that is trained, the factor of its learning rate.

    Raises:
        ValueError: A pattern fits no parameter.
    """
    factors = {name: 1.0 for name, _ in model.named_parameters()}
    for rate in rates:
        pattern, _, factor = rate.partition('=')
        if not re.fullmatch(r'\d+(\.\d*)?(e-?\d+)?', factor):
            raise ValueError(f"rates {rate!r}: expected 'pattern=factor', as in 'vision.*=0.1'")
        fits = fnmatch.filter(factors, pattern)
        if not fits:
            parts = sorted({name.split('.')[0] for name in factors})
            raise ValueError(
                f'rates {rate!r} fits no parameter; their names begin with {", ".join(parts)}'
            )
        factors |= dict.fromkeys(fits, float(factor))
    for name, p in model.named_parameters():
        p.requires_grad_(factors[name] > 0)
    return {name: factor for name, factor in factors.items() if factor > 0}


def configure_optimizers(
    model: nn.Module,
    learning_rate: float = 2e-3,
    muon_learning_rate: float = 0.04,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.95),
    rates: Sequence[str] = (),
) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices of the decoder blocks and AdamW for the rest.

    Vectors do not decay. Each group keeps its peak rate as group['peak_lr'], see set_rates.

    Args:
        model: A VLA, whole or spread over ranks.
        learning_rate: Peak rate of AdamW.
        muon_learning_rate: Peak rate of Muon; 0 gives everything to AdamW.
        weight_decay: Of matrices.
        betas: Of AdamW.
        rates: See freeze.

    Returns:
        AdamW and Muon, each only where it has parameters.
    """
    params = dict(model.named_parameters())
    groups: dict[tuple[bool, float, float], list] = {}  # (Muon?, decay, rate) -> parameters
    for name, factor in freeze(model, rates).items():
        p = params[name]
        muon = p.ndim == 2 and name.startswith('decoder.blocks.') and muon_learning_rate > 0
        lr = (muon_learning_rate if muon else learning_rate) * factor
        decay = weight_decay if p.ndim > 1 else 0.0
        groups.setdefault((muon, decay, lr), []).append(p)

    def groups_of(muon: bool) -> list[dict]:
        return [
            dict(params=part, weight_decay=decay, lr=lr)
            for (is_muon, decay, lr), part in groups.items()
            if is_muon == muon
        ]

    optimizers: list[torch.optim.Optimizer] = []
    rest = groups_of(muon=False)
    if rest:
        optimizers.append(torch.optim.AdamW(rest, lr=learning_rate, betas=betas, fused=True))
    matrices = groups_of(muon=True)
    if matrices:
        is_sharded = isinstance(matrices[0]['params'][0], DTensor)
        muon_class = ShardedMuon if is_sharded else Muon
        optimizers.append(muon_class(matrices, lr=muon_learning_rate, momentum=0.95))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group['peak_lr'] = group['lr']
    return optimizers


def set_rates(optimizers: Sequence[torch.optim.Optimizer], fraction: float) -> None:
    """Give every group this fraction of its peak rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group['lr'] = group['peak_lr'] * fraction


def orthogonalise(
    matrices: torch.Tensor, coefficients: Sequence[float], steps: int, eps: float
) -> torch.Tensor:
    """Newton-Schulz iterations of many matrices at once: (n, rows, columns) -> bfloat16 of them.

    This is what torch.optim.Muon does to one matrix after the other. A network of 24 equal blocks
    has four shapes of matrices, so that a step launches tens of kernels where it launched
    hundreds; small matrices by themselves leave most of a GPU idle.

    Args:
        matrices: of one shape, (n, rows, columns).
        coefficients: a, b, c of X <- a X + (b X X^T + c (X X^T)^2) X.
        steps: of that.
        eps: the least norm a matrix is divided by.
    """
    a, b, c = coefficients
    x = matrices.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x = x / norm.clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT  # (n, rows, rows)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if is_tall else x


def orthogonalising_flops(shapes: Iterable[Sequence[int]], steps: int = 5) -> int:
    """Multiply-adds x 2 of Newton-Schulz for matrices of these shapes, once per step of training.

    They do not depend on the batch: the larger that is, the less of a step they are.
    """
    flops = 0
    for rows, columns in shapes:
        short, long = sorted((rows, columns))
        flops += steps * 2 * short * short * (2 * long + short)
    return flops


def by_shape(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """Numbers of the tensors of each shape, in the order in which shapes appear."""
    members: dict[torch.Size, list[int]] = {}
    for i, tensor in enumerate(tensors):
        members.setdefault(tensor.shape, []).append(i)
    return list(members.values())


def orthogonalise_between_ranks(updates: Sequence[torch.Tensor], group: dict) -> list[torch.Tensor]:
    """Newton-Schulz of matrices of one shape that all ranks have, bfloat16: each does its share.

    Rank r of n takes matrices r, r + n, .. and hands them to the others. With copies (DDP) every
    rank would else do all of them, an eighth of what a step of the demo takes.
    """
    how = (group['ns_coefficients'], group['ns_steps'], group['eps'])
    n = dist.get_world_size() if dist.is_initialized() else 1
    if n == 1:
        return list(orthogonalise(torch.stack(list(updates)), *how))
    mine = list(updates[dist.get_rank() :: n])
    most = -(-len(updates) // n)
    # Ranks with fewer matrices send zeros behind theirs, because all have to send as many.
    share = updates[0].new_zeros(most, *updates[0].shape, dtype=torch.bfloat16)
    if mine:
        share[: len(mine)] = orthogonalise(torch.stack(list(mine)), *how)
    shares = [torch.empty_like(share) for _ in range(n)]
    dist.all_gather(shares, share)
    return [shares[i % n][i // n] for i in range(len(updates))]


class Muon(torch.optim.Muon):
    """torch.optim.Muon, equal to rounding, that treats matrices of one shape together.

    sound   bool on the device: where it is false a step changes nothing, and nobody waits to see
            which it is (AdamW's found_inf is the same); None: every step is taken
    """

    sound: torch.Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Change all matrices by one step; called by all ranks."""
        for group in self.param_groups:
            params = [p for p in group['params'] if p.grad is not None]
            if not params:
                continue
            updates = self._momentum(group, params)
            torch._foreach_mul_(params, self._decay(group))
            for members in by_shape(params):
                those = [params[i] for i in members]
                done = orthogonalise_between_ranks([updates[i] for i in members], group)
                done = [x.to(those[0].dtype) for x in done]
                if self.sound is not None:
                    torch._foreach_mul_(done, self.sound.to(done[0].dtype))
                lr = _adjust_lr(group['lr'], group['adjust_lr_fn'], those[0].shape)
                torch._foreach_add_(those, done, alpha=-lr)

    def _momentum(self, group: dict, params: Sequence[Any]) -> list[torch.Tensor]:
        """Take the gradients into the momentum buffers; what is orthogonalised comes back.

        It is done number by number, so that a rank can do it to its own part of a matrix.
        """
        buffers = []
        for p in params:
            if 'momentum_buffer' not in self.state[p]:
                self.state[p]['momentum_buffer'] = torch.zeros_like(p.grad)
            buffers.append(local(self.state[p]['momentum_buffer']))
        grads = [local(p.grad) for p in params]
        if self.sound is not None:  # a buffer that is taken into itself stays as it is
            grads = [torch.where(self.sound, g, buffer) for g, buffer in zip(grads, buffers)]
        torch._foreach_lerp_(buffers, grads, 1 - group['momentum'])
        if not group['nesterov']:
            return buffers
        return list(torch._foreach_lerp(grads, buffers, group['momentum']))

    def _decay(self, group: dict) -> Any:
        """The factor that decay leaves of a matrix: 1 where the step is not taken."""
        decay = 1 - group['lr'] * group['weight_decay']
        return decay if self.sound is None else torch.where(self.sound, decay, 1.0)


class ShardedMuon(Muon):
    """Muon for matrices whose rows are spread over ranks (FSDP).

    What Muon does to a gradient takes the whole of it. Of the matrices of one shape each rank
    treats every n-th, all of its own at once, and hands the others their rows, so that none is
    done twice.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Change all matrices by one step; called by all ranks."""
        for group in self.param_groups:
            params = [p for p in group['params'] if p.grad is not None]
            if not params:
                continue
            updates = self._momentum(group, params)
            for members in by_shape(params):  # These are shapes of whole matrices.
                self._step_some(group, [params[i] for i in members], [updates[i] for i in members])

    def _step_some(self, group: dict, params: Sequence[Any], updates: Sequence[Any]) -> None:
        """Change matrices of one shape: rank r orthogonalises number r, r + n, r + 2 n .."""
        rank = dist.get_rank()
        n = dist.get_world_size()
        whole_updates = []
        for i, (p, part) in enumerate(zip(params, updates)):
            shape = dict(shape=p.shape, stride=p.stride())
            update = DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, **shape)
            whole = update.full_tensor()  # all ranks take part
            if i % n == rank:
                whole_updates.append(whole.bfloat16())
        mine = None
        if whole_updates:
            mine = orthogonalise(
                torch.stack(whole_updates),
                group['ns_coefficients'],
                group['ns_steps'],
                group['eps'],
            )
        lr = _adjust_lr(group['lr'], group['adjust_lr_fn'], params[0].shape)
        for i, p in enumerate(params):
            whole = torch.empty(p.shape, dtype=torch.bfloat16, device=p.device)
            if mine is not None and i % n == rank:
                whole = mine[i // n].contiguous()
            update = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=i % n)
            change = local(update)
            if self.sound is not None:
                change = change * self.sound
            local(p).mul_(self._decay(group))
            local(p).add_(change, alpha=-lr)


class EMA:
    """Running average of the weights.

    Its decay warms up, so that early averages forget the first weights.
    """

    def __init__(self, model: nn.Module, decay: float = 0.995):
        self.decay = decay
        self.step = 0
        self.weights = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's weights into the average."""
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.weights, list(model.parameters()), 1 - decay)
        self.step += 1

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange weights and averages; call again to change back."""
        for p, average in zip(model.parameters(), self.weights):
            p_copy = p.detach().clone()
            p.copy_(average)
            average.copy_(p_copy)

    def state_dict(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the averages under the names of the model's parameters, by reference."""
        return dict(zip((name for name, _ in model.named_parameters()), self.weights))


@contextlib.contextmanager
def averaged(model: nn.Module, average_weights: EMA | None) -> Iterator[None]:
    """Let the model act with its averaged weights inside a `with` block, where it has any."""
    if average_weights:
        average_weights.swap(model)
    yield
    if average_weights:
        average_weights.swap(model)


# -----------------------------------------------------------------------------
# steps that are not taken


def clip(model: nn.Module, largest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale the gradient down to a largest norm; called by all ranks.

    Returns:
        The norm that it had, and the norms of the parameters' own gradients in the order of
        with_gradient, (P,), of what this rank holds. An infinite number in a gradient makes NaN of
        it when it is scaled, and a NaN makes NaN of all gradients: see step_if.
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norms = torch.stack(torch._foreach_norm([local(grad) for grad in grads])).float()
    return torch.nn.utils.clip_grad_norm_(model.parameters(), largest), norms


def with_gradient(model: nn.Module) -> list[str]:
    """Return the names of the parameters that have a gradient, in the order of `clip`'s norms."""
    return [name for name, p in model.named_parameters() if p.grad is not None]


def step_if(optimizers: Sequence[torch.optim.Optimizer], sound: torch.Tensor) -> None:
    """Let optimizers take a step where `sound`, a bool on their device, is true.

    On GPUs nobody waits for it: there a step that is not taken is one that changes nothing.
    """
    for optimizer in optimizers:
        if optimizer.param_groups[0]['params'][0].device.type == 'cpu':
            if bool(sound):
                optimizer.step()
        else:
            step_on_device(optimizer, sound)


@torch.no_grad()
def step_on_device(optimizer: torch.optim.Optimizer, sound: torch.Tensor) -> None:
    """Take a step, or none, without asking the device which of the two it is."""
    if isinstance(optimizer, torch.optim.AdamW):
        # Its fused kernel looks at this flag by itself, as it does for torch's GradScaler.
        optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]
        optimizer.step()
        return
    assert isinstance(optimizer, Muon)
    optimizer.sound = sound
    optimizer.step()
