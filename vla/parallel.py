"""Several processes train one model: each holds a copy (DDP), or all hold one between them (FSDP2).

    net = shard(net, 'cuda:0', torch.bfloat16)     # on the meta device: every parameter becomes a
    DTensor
    materialise(net, 'cuda:0')                     # now there is room for this rank's part
    fill(net, weights)                             # rank 0 hands out what it has read or drawn
    tensors = gather(net.state_dict())             # ordinary tensors on rank 0, {} elsewhere
Under FSDP a block's weights are put together just before it runs and dropped after; weights,
gradients, Adam's moments and the running average are cut into as many parts as there are ranks.
Whatever puts weights together (forward, act, gather) is called on all ranks, or those that call it
wait for the others.
"""

import ctypes
import platform
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor


def keep_freed_memory():
    """Tell glibc not to hand freed memory back to the kernel: every step asks for the same tens of
    MB again, and mapping and clearing those pages took 10-20 % of a CPU step. Other C libraries are
    left as they are.
    """
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL('libc.so.6')
        for parameter, value in (
            (-4, 0),
            (-1, 2**31 - 1),
        ):  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
            libc.mallopt(parameter, value)


def local(tensor):
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor):
    """The whole of a tensor, on every rank; every rank has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def blocks_of(net):
    """What is put together and dropped as one: the blocks of the decoder and of Qwen's vision
    tower.
    """
    return [*net.decoder.blocks, *getattr(net.vision, 'blocks', ())]


def shard(net, device, dtype=torch.float32, offload=False):
    """Cut a model that was made on the meta device into one part per rank. Only rank 0 ever holds
    all of the weights, in main memory: a new model's until `fill` has handed them out, and what
    `gather` is to write.

    device    of this rank, 'cpu' or 'cuda:<i>'
    dtype     that blocks are sent around and multiplied in; parameters and sums of gradients stay
              float32,
              and so does what is outside the blocks, whose heads need it (autocast takes care of
              the rest)
    offload   parts of parameters, gradients and optimizer live in main memory: slower, less of the
              GPU's
    """
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    low = dtype if dtype != torch.float32 else None
    policies = {
        True: MixedPrecisionPolicy(low, torch.float32, cast_forward_inputs=False),
        False: MixedPrecisionPolicy(cast_forward_inputs=False),
    }
    net.to(memory_format=torch.contiguous_format)  # convolutions: FSDP takes no other layout
    place = CPUOffloadPolicy(pin_memory=mesh.device_type != 'cpu') if offload else OffloadPolicy()
    for module in [*blocks_of(net), net]:
        fully_shard(module, mesh=mesh, mp_policy=policies[module is not net], offload_policy=place)
    register_fsdp_forward_method(net, 'act')
    # a block returns keys and values that are views; nothing is done to them in place
    warnings.filterwarnings('ignore', message='FSDP2-wrapped module .* returned a view')
    return net


def materialise(net, device, offload=False):
    """Memory for the parameters of a model on the meta device, not filled; its buffers keep their
    values.
    """
    buffers = dict(net.named_buffers())
    net.to_empty(device='cpu' if offload else device)
    for name, buffer in buffers.items():  # to_empty has emptied these as well
        owner, _, own = name.rpartition('.')
        setattr(net.get_submodule(owner), own, buffer.to(device))
    return net


@torch.no_grad()
def fill(net, weights):
    """Give a sharded model its weights: {name: tensor} on rank 0, None elsewhere; one parameter at
    a time.
    """
    for name, p in net.named_parameters():
        tensor = (
            torch.empty(p.shape, dtype=p.dtype) if weights is None else weights[name].contiguous()
        )
        tensor = tensor.to(p.device_mesh.device_type)
        p.to_local().copy_(distribute_tensor(tensor, p.device_mesh, p.placements).to_local())


@torch.no_grad()
def gather(tensors):
    """{name: tensor} -> the same, whole and in main memory, on rank 0; {} on the others, who have
    to ask.
    """
    out = {}
    first = not dist.is_initialized() or dist.get_rank() == 0
    for name, tensor in tensors.items():
        tensor = whole(tensor.detach())
        if first:
            out[name] = tensor.cpu()
    return out


def reshard(net):
    """Drop what a forward without a backward has left put together: weights can be changed
    again.
    """
    if isinstance(net, FSDPModule):
        net.reshard()


def of_each(values):
    """A dict of numbers -> those of every process, as floats: a list of dicts."""
    values = {name: float(whole(v)) for name, v in values.items()}
    if not dist.is_initialized():
        return [values]
    each = [None] * dist.get_world_size()
    dist.all_gather_object(each, values)
    return each


def mean(each):
    """Of what of_each gives."""
    return {name: sum(values[name] for values in each) / len(each) for name in each[0]}


def average(values):
    """Mean over processes of a dict of numbers, as floats."""
    return mean(of_each(values))


def own(each):
    """This process's part of what of_each gave in an earlier run; the mean where there were more or
    fewer.
    """
    rank, n = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return dict(each[rank]) if len(each) == n else mean(each)


def highest(value):
    """The highest of all processes' small integers."""
    if not dist.is_initialized():
        return value
    value = torch.tensor(value)  # in main memory: no waiting for the GPU
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def all_finite(tensors):
    """Whether none of these numbers is infinite or NaN, on any process; every one of them has to
    ask.
    """
    here = all(bool(torch.isfinite(local(torch.as_tensor(t))).all()) for t in tensors)
    return not highest(int(not here))


def memory_gb(net, device, ema, samples, tokens, dtype, offload=False):
    """What a step will need on this rank: {where: {kind: GB}}, to within a third (a test compares
    with what autograd keeps). `samples` are worked on at a time, each a row of `tokens`; matrix
    products are done in `dtype`. Where: 'memory' of the device, and with offload 'main memory' for
    what waits there.
    """
    cfg = net.cfg
    numbers = sum(local(p).numel() for p in net.parameters())
    learnt = sum(local(p).numel() for p in net.parameters() if p.requires_grad)
    sharded = isinstance(net, FSDPModule)
    wide = dtype.itemsize
    decoder = (
        cfg.n_layers,
        cfg.hidden_size,
        (3 * cfg.n_heads + 4 * cfg.n_kv_heads) * cfg.head_dim,
        cfg.intermediate_size * (4 if cfg.mlp == 'swiglu' else 2),
        cfg.n_heads,
        tokens,
        tokens,
    )
    work = [decoder]
    if cfg.vision == 'qwen':  # it has more tokens than the decoder: a patch is a quarter of one
        patches = (cfg.image_size // cfg.patch_size) ** 2
        work.append(
            (
                cfg.vision_layers,
                cfg.vision_width,
                7 * cfg.vision_width,
                4 * cfg.vision_intermediate,
                cfg.vision_heads,
                patches,
                cfg.n_cameras * patches,
            )
        )
    # which are written out there
    kept = 0
    scores = torch.device(device).type == 'cpu'
    for n, width, attention, mlp, heads, seen, rows in work:
        block = (
            (8 + 2 * wide) * width + wide * (attention + mlp) + scores * (4 + wide) * heads * seen
        )
        kept += rows * (n * 4 * width + block if cfg.recompute else n * block)
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks_of(net)]
    # put together: this block, the next, a gradient; and with its gradient all that is outside of
    # blocks
    copies = (
        wide * 3 * max(sizes) + 8 * (net.n_parameters - sum(sizes))
        if sharded
        else wide * numbers * (wide < 4)
    )
    parts = {
        'weights': 4 * numbers,
        'gradients': 4 * learnt,
        'optimizer': 8 * learnt,
        'average': 4 * numbers * bool(ema),
        'copies to multiply with': copies,
        'activations': samples * kept,
    }
    parts = {name: size / 1e9 for name, size in parts.items()}
    if not (sharded and offload):
        return {'memory': parts}
    return {
        'memory': {name: parts.pop(name) for name in ('copies to multiply with', 'activations')},
        'main memory': parts,
    }
