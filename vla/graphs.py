"""One CUDA graph per set of shapes: a call launches all of its kernels at once.

    act = Graphed(lambda batch: net.act(batch, steps=5))
    chunk = act(batch)               # recorded at the first call, replayed at all others

A small network runs a thousand kernels of a few microseconds each, and to launch one takes as long:
EO-1-3B took 143 ms for a chunk whose weights are read in 21. What is recorded may ask the device
nothing and may not change its shapes; tests/test_static.py watches over that on the CPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]
Record = Callable[[Callable[[], Any]], tuple[Callable[[], Any], Any]]
WARM_UPS = 3  # calls before recording, in which libraries choose kernels and compilers compile


def can_record(device: str) -> bool:
    """Tell whether a device takes CUDA graphs."""
    return device.startswith('cuda')


def record_on_cuda(function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
    """Record a function of fixed memory; returns what replays it, and where its results will be."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(side)
    # Weights that autocast has cast belong to whoever did it: the warm-ups' are freed when autocast
    # is left, the graph's are written by its replays alone.
    torch.clear_autocast_cache()
    graph = torch.cuda.CUDAGraph()
    # Loader threads pin memory meanwhile, for which the default, 'global', would end the recording.
    with torch.cuda.graph(graph, capture_error_mode='thread_local'):
        results = function()
    torch.clear_autocast_cache()
    return graph.replay, results


class Graphed:
    """A function of a dict of tensors that is recorded once for each set of shapes."""

    def __init__(self, function: Callable[[Tensors], Any], record: Record = record_on_cuda):
        self.function = function
        self.record = record
        self.recorded: dict[tuple, tuple[Tensors, Callable[[], Any], Any]] = {}

    def __call__(self, inputs: Tensors) -> Any:
        """The results, in memory that the next call with the same shapes writes over."""
        key = tuple((name, x.shape, x.dtype) for name, x in sorted(inputs.items()))
        if key not in self.recorded:
            fixed = {name: x.clone() for name, x in inputs.items()}
            replay, results = self.record(lambda: self.function(fixed))
            self.recorded[key] = (fixed, replay, results)
        fixed, replay, results = self.recorded[key]
        for name, x in inputs.items():
            fixed[name].copy_(x, non_blocking=True)
        replay()
        return results


class GraphedBackward:
    """Loss and gradients of a batch as one CUDA graph: what a training step asks of the network.

    Optimizers stay outside, because their rates change with every step.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_of: Callable[[Tensors], tuple[Tensor, Tensors]],
        record: Record = record_on_cuda,
    ):
        """Make it of a function of a batch that gives the loss and its parts."""
        self.params = [p for p in net.parameters() if p.requires_grad]
        self.loss_of = loss_of
        self.graphed = Graphed(self._run, record)

    def _run(self, batch: Tensors) -> tuple[Tensors, list[Tensor | None]]:
        for p in self.params:  # the recording makes gradients of its own, each replay writes them
            p.grad = None
        loss, parts = self.loss_of(batch)
        loss.backward()
        numbers = {'loss': loss.detach(), **parts}
        return numbers, [p.grad for p in self.params]

    def __call__(self, batch: Tensors) -> Tensors:
        """The loss and its parts; parameters then have the gradients of this batch alone."""
        numbers, grads = self.graphed(batch)
        for p, grad in zip(self.params, grads):
            p.grad = grad
        return numbers
