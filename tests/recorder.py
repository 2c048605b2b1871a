"""What stands for the recording of a CUDA graph where there is no GPU."""

import runpy
import sys

import torch
from torch.utils._pytree import tree_map

from vla import graphs


def record_here(function):
    """In the place of CUDA's: fixed memory for results, which a replay writes to."""
    results = tree_map(torch.clone, function())

    def replay():
        tree_map(lambda fixed, new: fixed.copy_(new), results, function())

    return replay, results


def run_recorded(*words):
    """Run a script in a process of its own, as if this machine took CUDA graphs."""
    graphs.can_record = lambda device: True
    graphs.Graphed.__init__.__defaults__ = (record_here,)
    graphs.GraphedBackward.__init__.__defaults__ = (counted,)
    sys.argv = list(words)
    runpy.run_path(words[0], run_name='__main__')


def counted(function):
    """Record it here, and say so."""
    print('recorded', flush=True)
    return record_here(function)
