"""How long the parts of a training step and a chunk take, and what the memory would allow.

    result = training(net, dataset, 128, 'cuda:0', autocast, optimizers, average_weights, 5.0)
    eager_ms, graph_ms = chunk_ms(net, batch, 10, 'cuda:0', autocast)
bench.py prints it. On a GPU times are those of its own clock (CUDA events); nobody waits for it
within a step, so that what is measured is what a run does.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import data
import model
from vla import graphs, optim

WARM_UPS = 3  # steps or calls that do not count
PARTS = ('loader wait', 'graph', 'forward', 'backward', 'clip', 'Muon', 'AdamW', 'EMA')


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

    def sums_ms(self) -> dict[str, float]:
        """Milliseconds by name; a mark 'start' begins anew."""
        if self.on_gpu:
            torch.cuda.synchronize()
        sums: dict[str, float] = {}
        for (_, before), (name, at) in itertools.pairwise(self.marks):
            if name != 'start':
                spent = before.elapsed_time(at) if self.on_gpu else 1e3 * (at - before)
                sums[name] = sums.get(name, 0.0) + spent
        return sums


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
    threads: int = 1,
    graphed: bool = False,
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
        seconds: For either measurement, three steps at least.
        threads: That make batches.
        graphed: Forward and backward are one CUDA graph, see train.py --cuda_graph.

    Returns:
        samples_per_s; step_ms; first_step_s, which compiling falls into; memory_gb, the peak;
        parts_ms, of a step by name, 'other' is the rest; loss, of the last step.
    """
    on_gpu = device.startswith('cuda')
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    batches = data.prefetch(
        lambda step: [dataset.batch(step, batch_size)], range(1_000_000), on_gpu, threads
    )
    loss = torch.zeros(())

    def loss_of(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with autocast:
            return net(data.augment(batch, dataset.frames))

    graph = graphs.GraphedBackward(net, loss_of) if graphed else None

    def step(mark: Callable[[str], None]) -> None:
        nonlocal loss
        mark('start')
        (batch,) = next(batches)
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        mark('loader wait')
        if graph:
            loss = graph(batch)['loss']
            mark('graph')
        else:
            loss, _ = loss_of(batch)
            mark('forward')
            loss.backward()
            mark('backward')
        norm, _ = optim.clip(net, 1.0)
        sound = norm.isfinite()
        mark('clip')
        for optimizer in optimizers:
            optim.step_if([optimizer], sound)
            mark('Muon' if isinstance(optimizer, torch.optim.Muon) else 'AdamW')
            optimizer.zero_grad(set_to_none=True)
        if average_weights:
            average_weights.update(net)
        mark('EMA')

    def run(mark: Callable[[str], None]) -> tuple[int, float]:
        wait_for(device)
        began = time.perf_counter()
        count = 0
        while count < 3 or time.perf_counter() - began < seconds:
            step(mark)
            count += 1
            if count % 20 == 0:  # train.py writes a line as often.
                wait_for(device)
        wait_for(device)
        return count, time.perf_counter() - began

    def no_mark(name: str) -> None:
        pass

    began = time.perf_counter()
    step(no_mark)
    wait_for(device)
    first_step_s = time.perf_counter() - began
    for _ in range(WARM_UPS):
        step(no_mark)
    steps, spent_s = run(no_mark)
    clock = Clock(device)
    marked, marked_s = run(clock.mark)
    batches.close()
    parts = {name: value / marked for name, value in clock.sums_ms().items()}
    parts['other'] = 1e3 * marked_s / marked - sum(parts.values())
    return {
        'samples_per_s': steps * batch_size / spent_s,
        'step_ms': 1e3 * spent_s / steps,
        'first_step_s': first_step_s,
        'memory_gb': torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0,
        'parts_ms': {name: parts[name] for name in (*PARTS, 'other') if name in parts},
        'loss': float(loss.detach()),
    }


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
) -> tuple[float, float | None]:
    """Median time of a chunk, kernel by kernel and as one CUDA graph (None on CPUs), ms."""
    with torch.inference_mode(), autocast:
        eager = median_ms(lambda: net.act(batch, steps), device, seconds)
        if not device.startswith('cuda'):
            return eager, None
        act = graphs.Graphed(lambda inputs: net.act(inputs, steps))
        return eager, median_ms(lambda: act(batch), device, seconds)


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
