"""How long the parts of a training step and a chunk take, and what the memory would allow.

    result = training(net, dataset, 128, 'cuda:0', autocast, optimizers, average_weights, 5.0)
    eager_ms = chunk_ms(net, batch, 10, 'cuda:0', autocast)
bench.py prints it. On a GPU times are those of its own clock (CUDA events); nobody waits for it
within a step, so that what is measured is what a run does.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import data
import model
from vla import graphs, optim, parallel, watch

WARM_UPS = 3  # steps or calls that do not count
PARTS = (
    'loader wait',
    'graph',
    'forward',
    'backward',
    'clip',
    'Muon',
    'AdamW',
    'EMA',
    'Meter, Unsound',
)
Mark = Callable[[str], None]
LINE_EVERY = 20  # steps: train.py writes a line as often, and reads what it has counted


class Clock:
    """Marks in the order of a device's work, and the times between them."""

    def __init__(self, device: str):
        self.on_gpu = device.startswith('cuda')
        self.marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """What was done since the last mark is called so."""
        at: Any = time.perf_counter()
        if self.on_gpu:
            at = torch.cuda.Event(enable_timing=True)
            at.record()
        self.marks.append((name, at))

    def _spans_ms(self) -> list[tuple[str, float]]:
        """Each mark's name, and the milliseconds since the one before it."""
        if self.on_gpu:
            torch.cuda.synchronize()
        spans = []
        for (_, before), (name, at) in itertools.pairwise(self.marks):
            spans.append((name, before.elapsed_time(at) if self.on_gpu else 1e3 * (at - before)))
        return spans

    def sums_ms(self) -> dict[str, float]:
        """Milliseconds by name; a mark 'start' begins anew."""
        sums: dict[str, float] = {}
        for name, spent in self._spans_ms():
            if name != 'start':
                sums[name] = sums.get(name, 0.0) + spent
        return sums

    def steps_ms(self) -> list[float]:
        """Milliseconds of each step: from one mark 'start' to the last one before the next."""
        steps = [0.0]
        for name, spent in self._spans_ms():
            if name == 'start':
                steps.append(0.0)
            else:
                steps[-1] += spent
        return steps


def wait_for(device: str) -> None:
    """Wait until a GPU has done all that it was asked for."""
    if device.startswith('cuda'):
        torch.cuda.synchronize()


def training(
    net: model.VLA,
    dataset: data.Dataset,
    batch_size: int,
    device: str,
    autocast: Any,
    optimizers: Sequence[torch.optim.Optimizer],
    average_weights: optim.EMA | None,
    seconds: float,
    processes: int = 0,
    graphed: bool = False,
    accumulate: int = 1,
) -> dict[str, Any]:
    """Take the steps that train.py takes, first timed as a whole and then part by part.

    Args:
        net: On the device, in training mode.
        dataset: Its frames may be on the device.
        batch_size: Samples per step.
        device: 'cpu' or 'cuda:<i>'.
        autocast: Context of the forward pass.
        optimizers: Of optim.configure_optimizers.
        average_weights: Running average, or None.
        seconds: For either measurement, three steps at least, or two with `accumulate`.
        processes: That make batches; 0: a thread of this one.
        graphed: Forward and backward are one CUDA graph, see train.py --cuda_graph.
        accumulate: Backward passes per step; with several two steps are enough to time.

    Returns:
        samples_per_s; step_ms, the mean; first_step_s; compile_s, by how much the first step takes
        longer than the median of the others; memory_gb, the peak; parts_ms, of a step by name,
        'other' is the rest; loss, of the last step.
    """
    on_gpu = device.startswith('cuda')
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()

    def make(index: int) -> list[data.Batch]:
        return [dataset.batch(index, batch_size, i, accumulate) for i in range(accumulate)]

    def loss_of(batch: data.Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with autocast:
            return net(data.augment(batch, dataset.frames))

    forks = data.ForkedMaker(make, processes) if processes else None
    batches = data.prefetch(forks or make, range(1_000_000), on_gpu, max(1, processes))
    graph = graphs.GraphedBackward(net, loss_of) if graphed else None
    step = _Step(net, batches, device, optimizers, average_weights, loss_of, graph)
    fewest = 3 if accumulate == 1 else 2
    began = time.perf_counter()
    step(_no_mark)
    wait_for(device)
    first_step_s = time.perf_counter() - began
    # The parts of an accumulated step have warmed up what there is.
    for _ in range(WARM_UPS if accumulate == 1 else 0):
        step(_no_mark)
    steps, spent_s = _repeat(step, _no_mark, device, fewest, seconds)
    clock = Clock(device)
    marked, marked_s = _repeat(step, clock.mark, device, fewest, seconds)
    batches.close()
    if forks:
        forks.close()
    parts = {name: value / marked for name, value in clock.sums_ms().items()}
    parts['other'] = 1e3 * marked_s / marked - sum(parts.values())
    return {
        'samples_per_s': steps * batch_size / spent_s,
        'step_ms': 1e3 * spent_s / steps,
        'first_step_s': first_step_s,
        'compile_s': first_step_s - 1e-3 * statistics.median(clock.steps_ms()),
        'memory_gb': torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0,
        'parts_ms': {name: parts[name] for name in (*PARTS, 'other') if name in parts},
        'loss': float(step.loss.detach()),
    }


def _no_mark(name: str) -> None:
    """Take no time: what a step is given where it is not timed part by part."""


def _repeat(
    step: Callable[[Mark], None], mark: Mark, device: str, fewest: int, seconds: float
) -> tuple[int, float]:
    """Take steps for so long; returns how many, and the seconds."""
    wait_for(device)
    began = time.perf_counter()
    count = 0
    while count < fewest or time.perf_counter() - began < seconds:
        step(mark)
        count += 1
    wait_for(device)
    return count, time.perf_counter() - began


class _Step:
    """A step as train.py takes it, which calls `mark` with a name after each of its parts.

    Arguments are those of `training`; besides

    batches   lists of the parts of a step, endless
    loss_of   a batch -> its loss, and numbers to be logged
    graph     forward and backward as one CUDA graph, or None
    """

    def __init__(
        self,
        net: model.VLA,
        batches: Iterator[list[data.Batch]],
        device: str,
        optimizers: Sequence[torch.optim.Optimizer],
        average_weights: optim.EMA | None,
        loss_of: Callable[[data.Batch], tuple[torch.Tensor, dict[str, torch.Tensor]]],
        graph: graphs.GraphedBackward | None,
    ):
        self.net = net
        self.batches = batches
        self.device = device
        self.optimizers = optimizers
        self.average_weights = average_weights
        self.loss_of = loss_of
        self.graph = graph
        self.meter = watch.Meter({}, 0)
        self.unsound: watch.Unsound | None = None  # It is made once there are gradients.
        self.loss = torch.zeros(())

    def __call__(self, mark: Mark) -> None:
        mark('start')
        parts = next(self.batches)
        mark('loader wait')
        for batch in parts:
            numbers = self._backward(batch, len(parts), mark)
            self.meter.add({**numbers, 'loss': self.loss.detach()}, len(parts))
        norm, norms = optim.clip(self.net, 1.0)
        sound = norm.isfinite()
        mark('clip')
        if self.unsound is None:
            self.unsound = watch.Unsound(optim.with_gradient(self.net), self.device)
        for optimizer in self.optimizers:
            optim.step_if([optimizer], sound)
            mark('Muon' if isinstance(optimizer, torch.optim.Muon) else 'AdamW')
            optimizer.zero_grad(set_to_none=True)
        if self.average_weights:
            self.average_weights.update(self.net)
        mark('EMA')
        meter = self.meter
        meter.end_step({'grad_norm': norm}, sound)
        self.unsound.note(meter.steps, sound, meter.last_step, norms)
        if meter.steps % LINE_EVERY == 0:
            self.unsound.report()
            parallel.average(meter.own_means())
            meter.clear()
        mark('Meter, Unsound')

    def _backward(self, batch: data.Batch, parts: int, mark: Mark) -> dict[str, torch.Tensor]:
        batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        if self.graph:
            numbers = self.graph(batch)
            self.loss = numbers['loss']
            mark('graph')
            return numbers
        self.loss, numbers = self.loss_of(batch)
        mark('forward')
        (self.loss / parts).backward()
        mark('backward')
        return numbers


def muon_ms(optimizers: Sequence[torch.optim.Optimizer], device: str) -> float:
    """Time of what Muon multiplies in a step, measured by itself; called by all ranks."""
    matrices: list[tuple[dict, list[torch.Tensor]]] = []
    for optimizer in optimizers:
        for group in optimizer.param_groups if isinstance(optimizer, optim.Muon) else ():
            params = group['params']
            for members in optim.by_shape(params):
                shape = params[members[0]].shape
                alike = torch.ones(len(members), *shape, dtype=torch.bfloat16, device=device)
                matrices.append((group, list(alike)))

    def multiply() -> None:
        for group, alike in matrices:
            optim.orthogonalise_between_ranks(alike, group)

    if not matrices:
        return 0.0
    multiply()  # The first call chooses kernels.
    wait_for(device)
    began = time.perf_counter()
    multiply()
    wait_for(device)
    return 1e3 * (time.perf_counter() - began)


def median_ms(action: Callable[[], Any], device: str, seconds: float) -> float:
    """Median time of a call whose result is waited for, five calls at least."""
    for _ in range(WARM_UPS):
        action()
    wait_for(device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        began = time.perf_counter()
        action()
        wait_for(device)
        times.append(time.perf_counter() - began)
    return 1e3 * sorted(times)[len(times) // 2]


def chunk_ms(
    net: model.VLA,
    batch: dict[str, torch.Tensor],
    steps: int,
    device: str,
    autocast: Any,
    seconds: float = 1.0,
    graphed: bool = False,
) -> float:
    """Median time of a chunk, kernel by kernel or as one CUDA graph, ms."""

    def act(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return net.act(inputs, steps)

    with torch.inference_mode(), autocast:
        run = graphs.Graphed(act) if graphed else act
        return median_ms(lambda: run(batch), device, seconds)


def copy_bytes_per_s(device: str, size: int = 1 << 30) -> float:
    """Bytes per second, read and written, of a copy within the device's memory."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (1e-3 * median_ms(lambda: target.copy_(source), device, 0.5))


def chunk_floor_ms(net: model.VLA, steps: int, bytes_per_s: float, wide: int) -> float:
    """What reading the weights alone takes: all of them once, then the decoder for every step.

    Args:
        net: The model; of its table of words a chunk reads a few rows.
        steps: Of denoising.
        bytes_per_s: That the memory gives.
        wide: Bytes of a weight in a product.
    """
    decoder = sum(p.numel() for p in net.decoder.parameters())
    tables = [net.embed_tokens, net.lm_head]
    words = sum(table.weight.numel() for table in tables if table is not None)
    head = sum(p.numel() for p in net.head.parameters())
    once = net.n_parameters - words - head
    return 1e3 * wide * (once + steps * (decoder + head)) / bytes_per_s
