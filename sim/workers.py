"""Worker processes, each with a world of its own, to which jobs are handed one at a time.

    pool = start_workers(2, world_settings, driver, run)
    for result in dispatch(pool, [Job('place', seed) for seed in range(100)]):
        ...
    stop_workers(pool)

Everything a worker needs comes by argument and can be pickled. Processes are spawned, not forked,
because neither OpenGL nor CUDA survives a fork. A spawned process imports the script again with its
default settings, so nothing is read from there.
"""

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from sim.policies import Start
from sim.world import World

Driver = Callable[..., Start]  # a picklable policies.driver, but for the world
Pool = dict[Connection, Any]  # our end of the pipe: the process


class Job(NamedTuple):
    """One episode to be run.

    task         Name of the task: a worker makes a world for each that it comes to see.
    seed         Draws everything that differs from episode to episode.
    instruction  In place of the world's own words; None: those.
    film         Path of its film without the ending; None: it is not filmed.
    """

    task: str
    seed: int
    instruction: str | None = None
    film: Path | None = None


class Ask(NamedTuple):
    """What a worker asks of the network that all of them share, see vla.policy.answers_of_many."""

    request: dict[str, Any]


class WorkerError(RuntimeError):
    """A worker died, or refused what it was asked for; the message says which and why."""


# -----------------------------------------------------------------------------
# In the worker


def setup(
    world_settings: dict[str, Any], driver: Driver, infer: Callable | None = None
) -> tuple[World, Start]:
    """Make the world and who drives in it; this is done once per process and task.

    Args:
        world_settings: Arguments of World.
        driver: Makes who drives, given the world.
        infer: Asks the network that all workers share, for a driver that takes one.
    """
    world = World(**world_settings)
    return world, driver(world) if infer is None else driver(world, infer=infer)


def ask(pipe: Connection, request: dict[str, Any]) -> dict[str, Any]:
    """Ask the network in the parent; RuntimeError says why it has no answer."""
    pipe.send(Ask(request))
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise RuntimeError(str(answer))
    return answer


def attempt(action: Callable, *args: Any) -> Any:
    """Call the action; return its result, or what it refuses and where as a RuntimeError.

    Exceptions of other packages may not get through a pipe; a RuntimeError does.
    """
    try:
        return action(*args)
    except (ValueError, RuntimeError, OSError) as refusal:
        at = traceback.extract_tb(refusal.__traceback__)[-1]
        said = str(refusal) or type(refusal).__name__
        return RuntimeError(f'{said} ({Path(at.filename).name}:{at.lineno})')


def work(
    pipe: Connection,
    world_settings: dict[str, Any],
    driver: Driver,
    run: Callable,
    shares_network: bool,
) -> None:
    """Live a worker's life: set up, say so, and answer jobs until the pipe breaks.

    The pipe breaks when it is closed, and when the parent is gone.
    """
    # Ctrl-C reaches every process of the terminal; the parent decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    infer = functools.partial(ask, pipe) if shares_network else None
    made = attempt(setup, world_settings, driver, infer)
    if isinstance(made, RuntimeError):
        with contextlib.suppress(BrokenPipeError):
            pipe.send(made)
        return
    cells = {made[0].task: made}  # the world of each task, and who drives in it
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send('ready')
        while True:
            job = pipe.recv()
            if job.task not in cells:
                made = attempt(setup, world_settings | {'task': job.task}, driver, infer)
                if isinstance(made, RuntimeError):
                    pipe.send(made)
                    continue
                cells[job.task] = made
            pipe.send(attempt(run, *cells[job.task], job))
    for world, _ in cells.values():
        world.close()


# -----------------------------------------------------------------------------
# In the parent


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):  # Linux; a job may have been given a part of a machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_workers(
    n: int,
    world_settings: dict[str, Any],
    driver: Driver,
    run: Callable[[World, Start, Job], Any],
    shares_network: bool = False,
) -> Pool:
    """Start n processes and wait until all of them are ready for jobs.

    Args:
        n: Number of processes; with 0 the pool is empty and does no jobs.
        world_settings: Arguments of World; a job may name another task than these do.
        driver: Makes who drives, given the world. Where it is a checkpoint, unpickling this is what
            imports torch; the expert does without.
        run: Does one job and returns what the parent is to get.
        shares_network: The driver asks a network in this process, see `dispatch`.

    Raises:
        WorkerError: A worker cannot be set up.
    """
    context = multiprocessing.get_context('spawn')
    pool: Pool = {}
    for _ in range(n):
        ours, theirs = context.Pipe()
        args = (theirs, world_settings, driver, run, shares_network)
        pool[ours] = context.Process(target=work, args=args, daemon=True)
        pool[ours].start()
        theirs.close()
    for pipe in pool:
        receive(pipe, 'setting up')
    return pool


def receive(pipe: Connection, doing: str) -> Any:
    """Take a worker's answer; a refusal is raised as a WorkerError that says what it was doing."""
    try:
        answer = pipe.recv()
    except EOFError:
        raise WorkerError(
            f'a worker died {doing}: the reason is above, or memory ran out'
        ) from None
    if isinstance(answer, RuntimeError):
        raise WorkerError(f'{doing}: {answer}')
    return answer


def dispatch(
    pool: Pool, jobs: Iterable[Job], network: Callable[[list], list] | None = None
) -> Iterator[Any]:
    """Hand out jobs one at a time, so that no worker waits for a slower one.

    Args:
        pool: Of start_workers.
        jobs: To be done.
        network: Answers requests of workers that share it, as many at a time as have come while it
            was busy: on a GPU sixteen take as long as one.

    Yields:
        Results, in the order in which they come.
    """
    waiting = iter(jobs)
    idle = list(pool)
    busy: dict[Connection, Job] = {}  # our end of the pipe: what is run there
    while True:
        for pipe, job in zip(idle, waiting):  # zip takes a job only where a pipe is left
            pipe.send(job)
            busy[pipe] = job
        if not busy:
            return
        answered = multiprocessing.connection.wait(list(busy))
        idle = []
        results = []
        requests: dict[Connection, dict[str, Any]] = {}
        for pipe, job in list(busy.items()):
            if pipe not in answered:
                continue
            said = receive(pipe, f'running seed {job.seed} of {job.task}')
            if isinstance(said, Ask):
                requests[pipe] = said.request
                continue
            del busy[pipe]
            idle.append(pipe)
            results.append(said)
        if requests:
            assert network is not None, 'workers that share a network are given one'
            for pipe, answer in zip(requests, network(list(requests.values()))):
                pipe.send(answer)
        yield from results


def stop_workers(pool: Pool) -> None:
    """End the workers: they leave once the episode in hand is over and written."""
    for pipe in pool:
        pipe.close()
    for process in pool.values():
        process.join(timeout=20)
