"""How weights change: Muon and AdamW, and the running average that acts."""

import contextlib
import fnmatch
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

# These are the two steps of torch's own Muon.
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz


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
        muon_class = ShardedMuon if is_sharded else torch.optim.Muon
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


class ShardedMuon(torch.optim.Muon):
    """Muon for matrices whose rows are spread over ranks (FSDP).

    What Muon does to a gradient takes the whole of it. Each rank does that for every n-th matrix
    and hands the others their rows, so that none is done twice.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Change all matrices by one step; called by all ranks."""
        n = dist.get_world_size()
        for group in self.param_groups:
            params = [p for p in group['params'] if p.grad is not None]
            for first in range(0, len(params), n):
                self._step_some(group, params[first : first + n])

    def _step_some(self, group: dict, params: Sequence[Any]) -> None:
        """Change at most as many matrices as there are ranks: rank i orthogonalises number i."""
        rank = dist.get_rank()
        for i, p in enumerate(params):
            buffer = self.state[p].setdefault('momentum_buffer', torch.zeros_like(p.grad))
            buffer.lerp_(p.grad, 1 - group['momentum'])
            update = p.grad.lerp(buffer, group['momentum']).full_tensor()
            if i == rank:
                mine = _zeropower_via_newtonschulz(
                    update, group['ns_coefficients'], group['ns_steps'], group['eps']
                )
        for i, p in enumerate(params):
            whole = torch.empty(p.shape, dtype=torch.bfloat16, device=p.device)
            if i == rank:
                whole = mine
            update = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=i)
            lr = _adjust_lr(group['lr'], group['adjust_lr_fn'], p.shape)
            p.to_local().mul_(1 - group['lr'] * group['weight_decay'])
            p.to_local().add_(update.to_local(), alpha=-lr)


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
