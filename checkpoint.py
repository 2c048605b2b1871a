"""What a run leaves on disk so that it can be used, and be gone on with after any kill.

    out/<run>/model.safetensors, ema.safetensors, meta.json     the newest weights: model.VLA.load
    out/<run>/best/          the same three, of the lowest held-out loss
    out/<run>/step_<n>/      the same three, of the last few checkpoints
    out/<run>/state/<n>/     optimizer, weights and average as they are spread over the ranks, a file per rank
    out/<run>/state.json     which of these is whole, and all else that going on takes
Everything is safetensors and JSON: reading it runs no code. state.json is replaced when all that it names is
on disk, so a kill at any moment leaves the old state or the new one.
"""
import json
import os
import shutil
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from episode import write_atomic


def first_rank():
    return not dist.is_initialized() or dist.get_rank() == 0


def wait_for_all():
    if dist.is_initialized():
        dist.barrier()


def tensors_of(net, optimizers, average_weights):
    """{name: tensor} of all that training changes, by reference: loading writes into these."""
    names = {p: name for name, p in net.named_parameters()}
    tensors = {f'model/{name}': p.detach() for name, p in net.named_parameters()}
    for optimizer in optimizers:
        tensors |= {f'optimizer/{names[p]}/{key}': value
                    for p, values in optimizer.state.items() for key, value in values.items()}
    if average_weights is not None:
        tensors |= {f'average/{name}': value for name, value in average_weights.state_dict(net).items()}
    return tensors


def quietly(action, *args, **kwargs):
    with warnings.catch_warnings():      # one process is what is meant where there is one
        warnings.filterwarnings('ignore', message='torch.distributed is disabled')
        return action(*args, **kwargs)


def save_state(folder, tensors, facts):
    """Called by all ranks. facts: a dict for JSON, with the step. -> bytes written by all"""
    step = f'{facts["step"]:09d}'
    path = f'{folder}/state/{step}'
    if first_rank():
        shutil.rmtree(path, ignore_errors=True)      # of a run that was killed while it wrote
        os.makedirs(path)
    wait_for_all()
    writer = dcp.HuggingFaceStorageWriter(path, save_distributed=True)
    quietly(dcp.save, {name: tensor.contiguous() for name, tensor in tensors.items()}, storage_writer=writer)
    if not first_rank():
        return 0
    size = sum(entry.stat().st_size for entry in os.scandir(path))
    write_atomic(f'{folder}/state.json', json.dumps(facts | {'folder': step}, indent=1).encode())
    for other in os.listdir(f'{folder}/state'):
        if other != step:
            shutil.rmtree(f'{folder}/state/{other}')
    return size


def read_facts(folder):
    """state.json of a run, None where there is none."""
    if not os.path.exists(f'{folder}/state.json'):
        return None
    with open(f'{folder}/state.json') as f:
        return json.load(f)


def load_state(folder, facts, net, optimizers, average_weights):
    """Into a model, its optimizers and its average, spread over however many ranks there are now; called by
    all of them."""
    for optimizer in optimizers:      # a step makes what an optimizer keeps; it changes what is loaded next
        for p in (p for group in optimizer.param_groups for p in group['params'] if p.requires_grad):
            p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    reader = dcp.HuggingFaceStorageReader(f'{folder}/state/{facts["folder"]}')
    tensors = tensors_of(net, optimizers, average_weights)
    quietly(dcp.load, tensors, storage_reader=reader)
    if average_weights is not None:
        average_weights.step = facts['average_step']


def clear(folder):
    """Before a run starts over: nothing of the last one may be taken for its own. The weights in the folder
    itself stay until the first checkpoint replaces them, but for an average, which this run may not have."""
    for name in ['state.json', 'state', 'best', 'ema.safetensors', *_steps(folder)]:
        if os.path.isdir(f'{folder}/{name}'):
            shutil.rmtree(f'{folder}/{name}')
        elif os.path.exists(f'{folder}/{name}'):
            os.remove(f'{folder}/{name}')


def _steps(folder):
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(name for name in names if name.startswith('step_'))


def size_of(folder):
    """Bytes of the weights that act, and the others beside them."""
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith('.safetensors'))


def link(folder, to):
    """The three files that act, once more under another name: hard links, they take no room twice."""
    os.makedirs(to, exist_ok=True)
    for name in ('model.safetensors', 'ema.safetensors', 'meta.json'):
        if os.path.exists(f'{folder}/{name}'):
            if os.path.exists(f'{to}/{name}.tmp'):
                os.remove(f'{to}/{name}.tmp')
            os.link(f'{folder}/{name}', f'{to}/{name}.tmp')
            os.replace(f'{to}/{name}.tmp', f'{to}/{name}')


def keep_last(folder, step, count):
    """Keep the newest weights as <folder>/step_<n>, and so many of them."""
    link(folder, f'{folder}/step_{step:09d}')
    for name in _steps(folder)[:-count]:
        shutil.rmtree(f'{folder}/{name}')
