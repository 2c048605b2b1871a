"""Several processes train one model: each holds a copy (DDP), or all hold one between them (FSDP2).

    device = parallel.join('auto', local_rank, world_size, timeout_minutes=10)
    net = parallel.build(cfg, first_model, device, sharded=True)
    forward = parallel.wrap(net, local_rank, device)     # DDP, where every process holds a copy
    tensors = parallel.gather(net.state_dict())          # ordinary tensors on rank 0, {} elsewhere

Under FSDP `build` cuts a model without memory into parts (shard), gives this rank's part memory
(materialise) and has rank 0 hand out the weights (fill). A block's weights are put together just
before it runs and dropped after; weights, gradients, Adam's moments and the running average are cut
into as many parts as there are ranks. Whatever puts weights together (forward, act, gather) is
called on all ranks, or those that call it wait for the others.
"""

import contextlib
import ctypes
import datetime
import fcntl
import os
import platform
import shutil
import signal
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
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
from torch.nn.parallel import DistributedDataParallel

import model
from vla import optim
from vla.layers import choose_device
from vla.vision import STEMS, BlockSizes

# Why a run stops early; of several ranks' reasons the highest counts.
LEAVE = 1
REQUEUE = 2

# -----------------------------------------------------------------------------
# the processes


def join(device: str, local_rank: int, world_size: int, timeout_minutes: float) -> str:
    """Choose this process's device and meet the other processes.

    Args:
        device: 'auto' (cuda where there is one), 'cpu' or 'cuda'.
        local_rank: Number of this process on its machine.
        world_size: Number of processes on all machines.
        timeout_minutes: A process that the others wait for so long ends the run: it hangs.

    Returns:
        'cpu' or 'cuda:<local_rank>'.
    """
    device = choose_device(device)
    if device == 'cuda':
        device = f'cuda:{local_rank}'
        torch.cuda.set_device(device)
    if world_size > 1:
        # gloo is for what is in main memory: flags, averages for the log, offloaded parts.
        backend = 'cpu:gloo,cuda:nccl' if device.startswith('cuda') else 'gloo'
        dist.init_process_group(backend, timeout=datetime.timedelta(minutes=timeout_minutes))
    return device


def network_interface(other_node: str) -> str | None:
    """Name of the interface through which this machine reaches another one.

    gloo looks up this machine's own name, which Debian and Ubuntu write down as 127.0.1.1: other
    nodes are then told to connect to themselves. It takes GLOO_SOCKET_IFNAME instead where that is
    set.

    Args:
        other_node: Name or address of the first node; on that node itself any address will do.

    Returns:
        None where there is no interface but the loopback.
    """
    addresses = {}
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            try:  # SIOCGIFADDR of sockios.h, which takes and gives a struct ifreq
                answer = fcntl.ioctl(s, 0x8915, struct.pack('256s', name[:15].encode()))
            except OSError:  # it has no IPv4 address
                continue
            addresses[socket.inet_ntoa(answer[20:24])] = name
    for target in (other_node, '192.0.2.1'):  # TEST-NET-1 of RFC 5737: by the default route
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            try:
                s.connect((target, 9))  # sends nothing
            except OSError:
                continue
            own = s.getsockname()[0]
        if own in addresses and not own.startswith('127.'):
            return addresses[own]
    return next((name for own, name in addresses.items() if not own.startswith('127.')), None)


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """Return the number of this process and how many there are; (0, 1) where there is one."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def wait_for_all() -> None:
    """Wait until every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def keep_freed_memory() -> None:
    """Tell glibc not to hand freed memory back to the kernel.

    Every step needs the same tens of MB again, and mapping and clearing those pages took 10-20 %
    of a CPU step. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(-4, 0)  # M_MMAP_MAX of malloc.h
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def exit_with(message: str, rank: int) -> NoReturn:
    """End this process by a user's mistake, which one of several processes says.

    The others wait a moment: the launcher ends them when the first one has gone. Where that one has
    made no mistake they speak for themselves.
    """
    if rank:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(5)
    raise SystemExit(message)


class StopRequest:
    """Whether somebody wants the run to stop early: finish the step, save, leave.

    SIGTERM and Ctrl-C request that (LEAVE); a second Ctrl-C ends the process at once. The requeue
    signal wants the job to be queued again as well (REQUEUE): slurm/train.sh does so. Signals may
    come at any moment and to one process only, so all processes agree once a step.

    Args:
        requeue_signal: Its name.
        launched: By torchrun. When that is gone, killed, nobody looks after the run any more: it
            stops as well, instead of training on unseen and in the way of the same command.
    """

    def __init__(self, requeue_signal: str, launched: bool = False):
        if requeue_signal not in signal.Signals.__members__:
            raise ValueError(
                f'requeue_signal {requeue_signal!r} is no signal, expected e.g. SIGUSR1'
            )
        self.reason = 0
        self.requeue_signal = signal.Signals[requeue_signal]
        self.launcher = os.getppid() if launched else 0
        for number in (signal.SIGTERM, signal.SIGINT, self.requeue_signal):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.set(REQUEUE if number == self.requeue_signal else LEAVE)

    def set(self, reason: int) -> None:
        """Request a stop from within the run."""
        self.reason = max(self.reason, reason)

    def agreed(self) -> int:
        """Return the reason that all processes act on: 0, LEAVE or REQUEUE; called by all."""
        if self.launcher and os.getppid() != self.launcher:
            self.set(LEAVE)
        return highest(self.reason)


# -----------------------------------------------------------------------------
# the model in parts


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a tensor, on every rank; called by all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def blocks_of(net: model.VLA) -> list[nn.Module]:
    """Return what is put together and dropped as one: blocks of decoder and stem."""
    return [*net.decoder.blocks, *net.vision.blocks]


def build(
    cfg: model.VLAConfig,
    first_model: Callable[[], model.VLA] | None,
    device: str,
    dtype: torch.dtype = torch.float32,
    rates: Sequence[str] = (),
    sharded: bool = False,
    offload: bool = False,
    compiled: bool = False,
    allocate: bool = True,
) -> model.VLA:
    """Make a run's model where it is trained, whole or this rank's part of it.

    Args:
        cfg: Its sizes.
        first_model: Makes it with its first weights, in main memory; under FSDP on rank 0 only,
            which sends the others their parts. None: the weights stay unset, because a checkpoint
            is loaded into them later.
        device: Of this process, 'cpu' or 'cuda:<i>'.
        dtype: That products are done in, see shard.
        rates: See optim.freeze.
        sharded: One model over all ranks (FSDP2).
        offload: See shard.
        compiled: See compile_blocks.
        allocate: False: for a look at its sizes only, nothing is put into memory.

    Returns:
        The model, in training mode.
    """
    rank, _ = rank_and_size()
    if not allocate:
        first_model = None
    net = None
    weights = None
    if first_model is not None and (rank == 0 or not sharded):
        net = first_model()
        weights = net.state_dict()
    if sharded or net is None:
        with torch.device('meta'):
            net = model.VLA(cfg)
    optim.freeze(net, rates)  # FSDP and DDP have to know before they start what has no gradient
    if compiled:
        compile_blocks(net)
    if sharded:
        net = shard(net, device, dtype, offload)
    if allocate and (sharded or first_model is None):
        materialise(net, device, offload)
    if sharded and first_model is not None:
        fill(net, weights)
    elif allocate and not sharded:
        net = net.to(device)
    return net.train()


def decide(name: str, setting: str | bool, automatic: bool) -> bool:
    """Return what a setting with the values 'auto', 'on' and 'off' comes to.

    Args:
        name: Of the setting.
        setting: Its value; True and False are taken, too, as they were in earlier revisions.
        automatic: What 'auto' comes to.

    Raises:
        ValueError: It has another value.
    """
    values = {'auto': automatic, 'on': True, 'off': False, 'True': True, 'False': False}
    if str(setting) not in values:
        raise ValueError(f"{name} {setting!r}, expected 'auto', 'on' or 'off'")
    return values[str(setting)]


def can_compile(device: str) -> bool:
    """Tell whether compiling pays: on a GPU, where there is a C compiler, which Triton calls."""
    has_compiler = any(shutil.which(name) for name in ('cc', 'gcc', 'clang'))
    return device.startswith('cuda') and has_compiler


def compile_blocks(net: model.VLA) -> None:
    """Let torch.compile make kernels for a block, which all blocks of one kind share.

    The whole network would be compiled block by block: twelve times the time for the same kernels,
    and config/large.py had made no step after 55 s. A stem without blocks is one part.
    """
    # A block runs in eight ways: on prefix or rows, last or not, to learn or not.
    torch._dynamo.config.recompile_limit = 32
    parts = blocks_of(net)
    if not list(net.vision.blocks):
        parts.append(net.vision)
    for part in parts:
        part.compile(dynamic=False)


def shard(
    net: model.VLA, device: str, dtype: torch.dtype = torch.float32, offload: bool = False
) -> model.VLA:
    """Cut a model that was made on the meta device into one part per rank.

    Only rank 0 ever holds all of the weights, in main memory: a new model's until `fill` has handed
    them out, and what `gather` is to write.

    Args:
        net: A VLA on the meta device; every parameter of it becomes a DTensor.
        device: Of this rank, 'cpu' or 'cuda:<i>'.
        dtype: That blocks are sent around and multiplied in. Parameters and sums of gradients stay
            float32, and so does what is outside the blocks, whose heads need it (autocast takes
            care of the rest).
        offload: Parts of parameters, gradients and optimizer live in main memory: slower, but it
            takes less of the GPU's.

    Returns:
        The same model.
    """
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    low = dtype if dtype != torch.float32 else None
    in_blocks = MixedPrecisionPolicy(low, torch.float32, cast_forward_inputs=False)
    outside = MixedPrecisionPolicy(cast_forward_inputs=False)
    # Convolutions are channels-last; FSDP takes no other layout than the plain one.
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    place = CPUOffloadPolicy(pin_memory=mesh.device_type != 'cpu') if offload else OffloadPolicy()
    for block in blocks_of(net):
        fully_shard(block, mesh=mesh, mp_policy=in_blocks, offload_policy=place)
    fully_shard(net, mesh=mesh, mp_policy=outside, offload_policy=place)
    register_fsdp_forward_method(net, 'act')
    # A block returns keys and values that are views; nothing is done to them in place.
    warnings.filterwarnings('ignore', message='FSDP2-wrapped module .* returned a view')
    return net


def materialise(net: model.VLA, device: str, offload: bool = False) -> model.VLA:
    """Give a model on the meta device memory for its parameters, which stay unset.

    Its buffers keep their values.
    """
    buffers = dict(net.named_buffers())
    net.to_empty(device='cpu' if offload else device)
    for name, buffer in buffers.items():  # to_empty has emptied these as well
        owner, _, own_name = name.rpartition('.')
        setattr(net.get_submodule(owner), own_name, buffer.to(device))
    return net


@torch.no_grad()
def fill(net: nn.Module, weights: Mapping[str, torch.Tensor] | None) -> None:
    """Give a sharded model its weights, one parameter at a time; called by all ranks.

    Args:
        net: Sharded and materialised.
        weights: Whole tensors by name on rank 0, None elsewhere.
    """
    p: Any
    for name, p in net.named_parameters():
        if weights is None:
            tensor = torch.empty(p.shape, dtype=p.dtype)
        else:
            tensor = weights[name].contiguous()
        tensor = tensor.to(p.device_mesh.device_type)
        p.to_local().copy_(distribute_tensor(tensor, p.device_mesh, p.placements).to_local())


@torch.no_grad()
def gather(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors whole and in main memory on rank 0, {} elsewhere; called by all."""
    out = {}
    rank, _ = rank_and_size()
    for name, tensor in tensors.items():
        tensor = whole(tensor.detach())
        if rank == 0:
            out[name] = tensor.cpu()
    return out


def reshard(net: nn.Module) -> None:
    """Drop what a forward without a backward has left put together.

    Only then can weights be changed again.
    """
    if isinstance(net, FSDPModule):
        net.reshard()


# -----------------------------------------------------------------------------
# the model in copies


def wrap(net: model.VLA, local_rank: int, device: str) -> nn.Module:
    """Return what is called in a training step instead of `net`: averaged by DDP.

    A model that is sharded looks after itself and comes back as it is.
    """
    if isinstance(net, FSDPModule):
        return net
    forward: nn.Module = net
    _, world_size = rank_and_size()
    if world_size > 1:
        device_ids = [local_rank] if device.startswith('cuda') else None
        forward = DistributedDataParallel(forward, device_ids, gradient_as_bucket_view=True)
    return forward


def accumulating(forward: nn.Module, is_last: bool) -> contextlib.AbstractContextManager:
    """Return the context of one of a step's backward passes.

    DDP averages gradients in the last one only; the others add up what this process has.
    """
    if isinstance(forward, DistributedDataParallel) and not is_last:
        return forward.no_sync()
    return contextlib.nullcontext()


# -----------------------------------------------------------------------------
# numbers that all processes know


def of_each(values: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return a dict of numbers as floats, one for every process; called by all."""
    values = {name: float(whole(v)) for name, v in values.items()}
    if not dist.is_initialized():
        return [values]
    each: list = [None] * dist.get_world_size()
    dist.all_gather_object(each, values)
    return each


def mean(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean over processes of what of_each gives."""
    return {name: sum(values[name] for values in each) / len(each) for name in each[0]}


def average(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean over processes of a dict of numbers, as floats; called by all."""
    return mean(of_each(values))


def own(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return this process's part of what of_each gave in an earlier run.

    Where that had more or fewer processes it is the mean.
    """
    rank, n = rank_and_size()
    return dict(each[rank]) if len(each) == n else mean(each)


def highest(value: int) -> int:
    """Return the highest of all processes' small integers; called by all."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value)  # It is in main memory, so that nobody waits for the GPU.
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def all_finite(tensors: Iterable[Any]) -> bool:
    """Tell whether none of these numbers is infinite or NaN on any process; all have to ask."""
    flags = [torch.isfinite(optim.local(torch.as_tensor(t))).all() for t in tensors]
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for flag in flags:
        by_device.setdefault(flag.device, []).append(flag)
    # Each device is asked, and so waited for, once.
    here = all(bool(torch.stack(mine).all()) for mine in by_device.values())
    return not highest(int(not here))


# -----------------------------------------------------------------------------
# memory


def memory_gb(
    net: model.VLA,
    device: str,
    ema: float,
    samples: int,
    tokens: int,
    dtype: torch.dtype,
    offload: bool = False,
    parts: int = 1,
) -> dict[str, dict[str, float]]:
    """Estimate what a step will need on this rank, to within a third.

    A test compares the estimate with what autograd keeps.

    Args:
        net: Whole or sharded; it may be on the meta device.
        device: Of this rank.
        ema: Decay of the averaged weights; 0: there are none.
        samples: Worked on at a time.
        tokens: In the row that a sample is.
        dtype: That matrix products are done in.
        offload: See shard.
        parts: So many processes would hold a net between them that is whole here.

    Returns:
        {where: {kind: GB}}. Where: 'memory' of the device, and with offload 'main memory' for what
        waits there.
    """
    numbers = sum(optim.local(p).numel() for p in net.parameters()) / parts
    learnt = sum(optim.local(p).numel() for p in net.parameters() if p.requires_grad) / parts
    wide = dtype.itemsize
    sharded = isinstance(net, FSDPModule) or parts > 1
    if sharded:
        # Put together are this block, the next and a gradient; and all that is outside of blocks,
        # with its gradient.
        sizes = [sum(p.numel() for p in block.parameters()) for block in blocks_of(net)]
        copies: float = wide * 3 * max(sizes) + 8 * (net.n_parameters - sum(sizes))
    else:
        copies = wide * numbers if wide < 4 else 0.0
    waiting = {
        'weights': 4 * numbers / 1e9,
        'gradients': 4 * learnt / 1e9,
        'optimizer': 8 * learnt / 1e9,
        'average': 4 * numbers * bool(ema) / 1e9,
    }
    working = {
        'copies to multiply with': copies / 1e9,
        'activations': samples * activation_bytes(net.cfg, device, tokens, wide) / 1e9,
    }
    if sharded and offload:
        return {'memory': working, 'main memory': waiting}
    return {'memory': waiting | working}


def activation_bytes(cfg: model.VLAConfig, device: str, tokens: int, wide: int) -> int:
    """Estimate what autograd keeps of one sample; `wide` are the bytes of a number in a product."""
    decoder = BlockSizes(
        depth=cfg.n_layers,
        width=cfg.hidden_size,
        attention=(3 * cfg.n_heads + 4 * cfg.n_kv_heads) * cfg.head_dim,
        mlp=cfg.intermediate_size * (4 if cfg.mlp == 'swiglu' else 2),
        heads=cfg.n_heads,
        keys=tokens,
        tokens=tokens,
    )
    kept = 0
    # On CPUs attention scores are written out, and so kept.
    scores = torch.device(device).type == 'cpu'
    for sizes in [decoder, *STEMS[cfg.vision].block_sizes(cfg)]:
        block = (8 + 2 * wide) * sizes.width + wide * (sizes.attention + sizes.mlp)
        block += scores * (4 + wide) * sizes.heads * sizes.keys
        per_token = sizes.depth * block
        if cfg.recompute:  # the inputs of all blocks, and one block that is being worked through
            per_token = sizes.depth * 4 * sizes.width + block
        kept += sizes.tokens * per_token
    return kept
