"""What a run leaves on disk so that it can be used, and be gone on with after any kill.

    out/<run>/model.safetensors, ema.safetensors, meta.json     the newest weights: model.VLA.load
    out/<run>/best/          the same three, of the lowest held-out loss
    out/<run>/step_<n>/      the same three, of the last few checkpoints
    out/<run>/state/<n>/     optimizer, weights and average as they are spread over the ranks, a
    file per rank
    out/<run>/state.json     which of these is whole, and all else that going on takes
Everything is safetensors and JSON: reading it runs no code. state.json is replaced when all that it
names is on disk, so a kill at any moment leaves the old state or the new one.
"""

import json
import os
import shutil
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from episode import slots, write_atomic
from vla.processor import saved_names


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
        tensors |= {
            f'optimizer/{names[p]}/{key}': value
            for p, values in optimizer.state.items()
            for key, value in values.items()
        }
    if average_weights is not None:
        tensors |= {
            f'average/{name}': value for name, value in average_weights.state_dict(net).items()
        }
    return tensors


def quietly(action, *args, **kwargs):
    with warnings.catch_warnings():  # one process is what is meant where there is one
        warnings.filterwarnings('ignore', message='torch.distributed is disabled')
        return action(*args, **kwargs)


def save_state(folder, tensors, facts):
    """Called by all ranks. facts: a dict for JSON, with the step. -> bytes written by all"""
    step = f'{facts["step"]:09d}'
    path = f'{folder}/state/{step}'
    if first_rank():
        shutil.rmtree(path, ignore_errors=True)  # of a run that was killed while it wrote
        os.makedirs(path)
    wait_for_all()
    writer = dcp.HuggingFaceStorageWriter(path, save_distributed=True)
    quietly(
        dcp.save,
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        storage_writer=writer,
    )
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
    with open(f'{folder}/state.json') as f:  # sums: not kept by early runs
        return {'sums': [{}], 'summed': 0} | json.load(f)


def as_json(settings):
    """Settings as JSON gives them back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def settings_that_differ(old, new, may_change):
    """Texts naming the settings that differ from those of the run to go on with: (may, may not)."""
    changed = [k for k in new if old[k] != new[k]]
    return [
        ', '.join(f'{k} {old[k]!r} -> {new[k]!r}' for k in changed if (k in may_change) is allowed)
        for allowed in (True, False)
    ]


def overruled(settings, processor):
    """Settings in whose place a run takes those of another's processor -> {name: value there}.

    settings    as JSON has them, but for the tokenizer: its text
    processor   as meta.json has it
    """
    ours = {k: settings[k] for k in settings if k in processor}
    state_names, action_names = saved_names(processor)
    ours['state_slots'] = list(slots(ours['state_slots'], state_names))
    if ours.get('action_space') == processor.get('action_space'):  # else the names are others
        ours['action_slots'] = list(slots(ours['action_slots'], action_names))
    return {
        k: 'its own' if k == 'tokenizer' else processor[k] for k in ours if ours[k] != processor[k]
    }


def load_state(folder, facts, net, optimizers, average_weights):
    """Into a model, its optimizers and its average, spread over however many ranks there are now;
    called by all of them.
    """
    for (
        optimizer
    ) in optimizers:  # a step makes what an optimizer keeps; it changes what is loaded next
        for p in (
            p for group in optimizer.param_groups for p in group['params'] if p.requires_grad
        ):
            p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    reader = dcp.HuggingFaceStorageReader(f'{folder}/state/{facts["folder"]}')
    tensors = tensors_of(net, optimizers, average_weights)
    quietly(dcp.load, tensors, storage_reader=reader)
    if average_weights is not None:
        average_weights.step = facts['average_step']


def save(folder, net, optimizers, average_weights, meta, facts, gather, keep_checkpoints=0):
    """Weights to act, state to go on, in this order: a kill in between has the step taken and
    saved again.

    meta     what model.VLA.save writes beside the weights
    facts    what else going on takes, see save_state
    keep_checkpoints     so many of the newest weights stay
    -> bytes of the state, written by all ranks
    """
    save_weights(folder, net, meta, average_weights, gather)
    if first_rank() and keep_checkpoints:
        keep_last(folder, facts['step'], keep_checkpoints)
    facts = facts | {'average_step': average_weights.step if average_weights else 0}
    return save_state(folder, tensors_of(net, optimizers, average_weights), facts)


def clear(folder):
    """Before a run starts over: nothing of the last one may be taken for its own. The weights in
    the folder itself stay until the first checkpoint replaces them, but for an average, which this
    run may not have.
    """
    halves = [name for name in _names(folder) if name.endswith('.tmp')]  # left by a kill
    for name in ['state.json', 'state', 'best', 'ema.safetensors', *_steps(folder), *halves]:
        if os.path.isdir(f'{folder}/{name}'):
            shutil.rmtree(f'{folder}/{name}')
        elif os.path.exists(f'{folder}/{name}'):
            os.remove(f'{folder}/{name}')


def _names(folder):
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def _steps(folder):
    return [name for name in _names(folder) if name.startswith('step_')]


def size_of(folder):
    """Bytes of the weights that act, and the others beside them."""
    return sum(
        entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith('.safetensors')
    )


def save_weights(folder, net, meta, average_weights, gather):
    """The three files that act, by model.VLA.save; called by all ranks. They are written elsewhere
    and put in place together: a kill leaves the old ones or the new ones. Between two renames it
    leaves them without meta.json, from which nothing loads; never new weights under an old
    description.
    """
    new = f'{folder}/new.tmp'
    old = f'{folder}/meta.json'
    if first_rank():
        shutil.rmtree(new, ignore_errors=True)  # of a run that was killed while it wrote
    net.save(new, meta, average_weights, gather)
    if first_rank():
        if os.path.exists(old):
            os.remove(old)
        for name in sorted(os.listdir(new), key='meta.json'.__eq__):  # which comes last
            os.replace(f'{new}/{name}', f'{folder}/{name}')
        os.rmdir(new)


def link(folder, to):
    """The three files that act, once more under another name: hard links, they take no room
    twice.
    """
    os.makedirs(to)
    for name in ('model.safetensors', 'ema.safetensors', 'meta.json'):
        if os.path.exists(f'{folder}/{name}'):
            os.link(f'{folder}/{name}', f'{to}/{name}')


def keep_last(folder, step, count):
    """Keep the newest weights as <folder>/step_<n>, and so many of them. A folder of that name is
    whole: it comes and goes by one rename.
    """
    new = f'{folder}/step.tmp'
    old = f'{folder}/old.tmp'
    to = f'{folder}/step_{step:09d}'

    def discard(path):
        os.replace(path, old)
        shutil.rmtree(old)

    for half in (new, old):  # left by a kill
        shutil.rmtree(half, ignore_errors=True)
    link(folder, new)
    if os.path.exists(to):  # the same step again, after a kill
        discard(to)
    os.replace(new, to)
    for name in _steps(folder)[:-count]:
        discard(f'{folder}/{name}')
