"""How weights change: Muon and AdamW for a model's parameters, and the running average that
acts.
"""

import fnmatch

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

# the two steps of torch's own Muon
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz


def freeze(model, rates):
    """rates: 'pattern=factor', patterns of parameter names. What the last fitting one gives 0 is
    not trained.
    -> {name: factor of its learning rate} of the others
    """
    factors = {name: 1.0 for name, _ in model.named_parameters()}
    for rate in rates:
        pattern, _, factor = rate.partition('=')
        if not (fits := fnmatch.filter(factors, pattern)):
            parts = sorted({name.split('.')[0] for name in factors})
            raise ValueError(
                f'rates {rate!r} fits no parameter; their names begin with {", ".join(parts)}'
            )
        factors |= dict.fromkeys(fits, float(factor))
    for name, p in model.named_parameters():
        p.requires_grad_(factors[name] > 0)
    return {name: factor for name, factor in factors.items() if factor > 0}


def configure_optimizers(
    model,
    learning_rate=2e-3,
    muon_learning_rate=0.04,
    weight_decay=0.01,
    betas=(0.9, 0.95),
    rates=(),
):
    """Muon on the matrices of the decoder blocks, AdamW on the rest, no decay on vectors; rates:
    see freeze. A group keeps its peak rate as group["peak_lr"]; schedules multiply that.
    muon_learning_rate = 0: all goes to AdamW.
    """
    # {(Muon?, decay, rate): [...]}
    groups = {}
    params = dict(model.named_parameters())
    optimizers = []
    for name, factor in freeze(model, rates).items():
        p = params[name]
        muon = p.ndim == 2 and name.startswith('decoder.blocks.') and muon_learning_rate > 0
        lr = (muon_learning_rate if muon else learning_rate) * factor
        groups.setdefault((muon, weight_decay if p.ndim > 1 else 0.0, lr), []).append(p)
    for kind in (False, True):
        mine = [
            dict(params=part, weight_decay=decay, lr=lr)
            for (muon, decay, lr), part in groups.items()
            if muon == kind
        ]
        if mine and kind:
            muon = ShardedMuon if isinstance(mine[0]['params'][0], DTensor) else torch.optim.Muon
            optimizers.append(muon(mine, lr=muon_learning_rate, momentum=0.95))
        elif mine:
            optimizers.append(torch.optim.AdamW(mine, lr=learning_rate, betas=betas, fused=True))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group['peak_lr'] = group['lr']
    return optimizers


class ShardedMuon(torch.optim.Muon):
    """Muon for matrices whose rows are spread over ranks (FSDP). What it does to a gradient takes
    the whole of it: each rank does that for every n-th matrix and hands the others their rows; none
    is done twice.
    """

    @torch.no_grad()
    def step(self):
        rank = dist.get_rank()
        n = dist.get_world_size()
        for group in self.param_groups:
            params = [p for p in group['params'] if p.grad is not None]
            for first in range(0, len(params), n):
                some = params[first : first + n]
                for i, p in enumerate(some):
                    buffer = self.state[p].setdefault('momentum_buffer', torch.zeros_like(p.grad))
                    buffer.lerp_(p.grad, 1 - group['momentum'])
                    update = p.grad.lerp(buffer, group['momentum']).full_tensor()
                    if i == rank:
                        mine = _zeropower_via_newtonschulz(
                            update, group['ns_coefficients'], group['ns_steps'], group['eps']
                        )
                for i, p in enumerate(some):
                    empty = torch.empty(p.shape, dtype=torch.bfloat16, device=p.device)
                    update = distribute_tensor(
                        mine if i == rank else empty, p.device_mesh, p.placements, src_data_rank=i
                    )
                    lr = _adjust_lr(group['lr'], group['adjust_lr_fn'], p.shape)
                    p.to_local().mul_(1 - group['lr'] * group['weight_decay'])
                    p.to_local().add_(update.to_local(), alpha=-lr)


class EMA:
    """Running average of the weights; the decay warms up: early averages forget the initial
    weights.
    """

    def __init__(self, model, decay=0.995):
        self.decay = decay
        self.step = 0
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
        self.weights = [tensors[name].clone() for name, _ in model.named_parameters()]
        self.step = step
