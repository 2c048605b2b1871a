"""Batches made by processes, where threads would wait for Python's lock.

    make = ForkedMaker(dataset_batches_of_a_step, processes=6)
    for batches in data.prefetch(make, steps, pin=True, threads=make.processes):
        ...
    make.close()

To draw an instruction and to cut it into tokens is Python's own work, 0.1 ms for a sample, and all
threads of a process share one lock: however many they are, they make 6,000 samples a second.
Processes are forked, because then a data set need not be sent to them. They touch no GPU, which
would not survive it.
"""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vla.processor import Batch

Make = Callable[[int], list[Batch]]
LOOK_EVERY_S = 0.2  # A process that was forked ends so soon after its parent.
MOST = 8  # More of them make more than one GPU takes.

_make: Make | None = None  # What this process makes, if it was forked for that.


def count(sharing: int) -> int:
    """How many processes make batches for one of so many that share this machine; 0: no core."""
    return max(0, min(MOST, (os.cpu_count() or 1) // sharing - 1))


def _begin(make: Make, parent: int) -> None:
    """Live in a forked process: Ctrl-C is the parent's to answer, and its end is ours."""
    global _make
    _make = make
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _arrays(step: int) -> list[dict[str, np.ndarray]]:
    """Make the batches of a step. As arrays they go through a pipe, and need no shared memory."""
    assert _make is not None, '_begin comes first'
    return [{name: x.numpy() for name, x in batch.items()} for batch in _make(step)]


class ForkedMaker:
    """A function of a step that makes its batches, done by processes; several threads may call it.

    processes   so many
    """

    def __init__(self, make: Make, processes: int):
        """Fork them, each with all that `make` needs as it is now."""
        self.processes = processes
        context: Any = multiprocessing.get_context('fork')
        self.pool = concurrent.futures.ProcessPoolExecutor(
            processes, context, _begin, (make, os.getpid())
        )
        self.pool.submit(os.getpid).result()  # The first call forks all of them, in this thread.

    def __call__(self, step: int) -> list[Batch]:
        """Batches of a step, bit for bit those of `make`; its exceptions are raised here."""
        made = self.pool.submit(_arrays, step).result()
        return [{name: torch.from_numpy(x) for name, x in batch.items()} for batch in made]

    def close(self) -> None:
        """End the processes; what is being made is waited for."""
        self.pool.shutdown(cancel_futures=True)
