"""Runs our scripts as `python` and torchrun do, without waiting 3 s for the imports of each
process: a server imports torch, mujoco and our modules once, every process is forked from it.

    said = launch.run('train.py', 'config/debug.py', processes=2)
    process = launch.Script('train.py', 'config/debug.py')     # to be listened to, signalled,
    killed
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
# what our scripts import, some of it when they come to need it
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
PORTS = itertools.count(
    20_000 + os.getpid() % 10_000
)  # below those that systems give to whoever asks


def free_port():
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(('localhost', port)):
                return port


def begin(work, words, env, out):
    """In the new process: run a script with these words, or call a function; all it says goes into
    a pipe."""
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
    """A script, or a function of a test file, in so many processes; to be handled like a
    subprocess.Popen."""

    def __init__(self, work, *words, processes=1, timeout=300):
        mine, theirs = SERVER.Pipe(duplex=False)
        self.stdout, env = os.fdopen(os.dup(mine.fileno())), {}  # and what would go to stderr
        mine.close()
        if processes > 1:
            env = dict(
                MASTER_ADDR='localhost', MASTER_PORT=str(free_port()), WORLD_SIZE=str(processes)
            )
        words = words if callable(work) else [str(word) for word in words]
        self.ranks = []
        for i in range(processes):
            place = dict(RANK=str(i), LOCAL_RANK=str(i)) if processes > 1 else {}
            self.ranks.append(SERVER.Process(target=begin, args=(work, words, env | place, theirs)))
            self.ranks[-1].start()
        theirs.close()
        self.watchdog = threading.Timer(timeout, self.kill)
        self.watchdog.daemon = True
        self.watchdog.start()  # a rank may wait forever for one that has died

    @property
    def returncode(self):
        """The first of its processes' exit codes that is not 0; None while one of them runs."""
        codes = [rank.exitcode for rank in self.ranks]
        return None if None in codes else next(filter(None, codes), 0)

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        for rank in self.ranks:
            if rank.exitcode is None:
                os.kill(rank.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self):
        """Wait for its end -> what it still had to say, None as that went to stdout, too."""
        with self.stdout:
            said = self.stdout.read()
        for rank in self.ranks:
            rank.join()
        self.watchdog.cancel()
        return said, None


def run(work, *words, processes=1, fails=False):
    """-> what it said."""
    script = Script(work, *words, processes=processes)
    said, _ = script.communicate()
    assert bool(script.returncode) == fails, f'exit code {script.returncode}: {said}'
    return said
