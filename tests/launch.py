"""Runs our scripts as `python` and torchrun do, without 3 s of imports for each process.

    said = launch.run('train.py', 'config/debug.py', processes=2)
    process = launch.Script('train.py', 'config/debug.py')  # to be listened to, signalled, killed

A server imports torch, mujoco and our modules once; every process is forked from it.
"""

import itertools
import multiprocessing
import os
import pathlib
import runpy
import signal
import socket
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
SERVER = multiprocessing.get_context('forkserver')
# What our scripts import, some of it when they come to need it.
SERVER.set_forkserver_preload(
    [
        'train',
        'sample',
        'sim_rollout',
        'pytest',
        'torch._dynamo',
        'matplotlib.pyplot',
        'matplotlib.backends.backend_agg',
    ]
)
# These ports lie below those that systems give to whoever asks.
PORTS = itertools.count(20_000 + os.getpid() % 10_000)


def free_port():
    """A port of this machine on which nobody listens."""
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(('localhost', port)):
                return port


def begin(work, words, env, out):
    """In the new process: run a script with these words, or call a function.

    All that it says goes into the pipe `out`.
    """
    for number in (1, 2):
        os.dup2(out.fileno(), number)
    out.close()
    os.chdir(ROOT)
    os.environ.update(env)
    if callable(work):
        return work(*words)
    sys.argv = [work, *words]
    runpy.run_path(work, run_name='__main__')


class Script:
    """A script, or a function of a test file, in so many processes.

    It is handled like a subprocess.Popen.
    """

    def __init__(self, work, *words, processes=1, timeout=300):
        mine, theirs = SERVER.Pipe(duplex=False)
        self.stdout = os.fdopen(os.dup(mine.fileno()))  # What would go to stderr comes here, too.
        mine.close()
        env = {}
        if processes > 1:
            env['MASTER_ADDR'] = 'localhost'
            env['MASTER_PORT'] = str(free_port())
            env['WORLD_SIZE'] = str(processes)
        words = words if callable(work) else [str(word) for word in words]
        self.ranks = []
        for i in range(processes):
            place = dict(RANK=str(i), LOCAL_RANK=str(i)) if processes > 1 else {}
            self.ranks.append(SERVER.Process(target=begin, args=(work, words, env | place, theirs)))
            self.ranks[-1].start()
        theirs.close()
        self.watchdog = threading.Timer(timeout, self.kill)
        self.watchdog.daemon = True
        self.watchdog.start()  # A rank may wait forever for one that has died.

    @property
    def returncode(self):
        """The first of its processes' exit codes that is not 0; None while one of them runs."""
        codes = [rank.exitcode for rank in self.ranks]
        if None in codes:
            return None
        return next(filter(None, codes), 0)

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        for rank in self.ranks:
            if rank.exitcode is None:
                os.kill(rank.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self):
        """Wait for its end; return what it still had to say, and None for stderr, as Popen does."""
        with self.stdout:
            said = self.stdout.read()
        for rank in self.ranks:
            rank.join()
        self.watchdog.cancel()
        return said, None


def run(work, *words, processes=1, fails=False):
    """Run a script, or a function of a test file, to its end; return what it said."""
    script = Script(work, *words, processes=processes)
    said, _ = script.communicate()
    assert bool(script.returncode) == fails, f'exit code {script.returncode}: {said}'
    return said
