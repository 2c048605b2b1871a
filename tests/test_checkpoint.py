"""Protects what a run leaves on disk: whole at any moment, the same when it is read back, no code
in it.

python -m pytest tests/test_checkpoint.py
"""

import os

import pytest
import test_parallel
import torch

import model
from vla import checkpoint, optim, pretrained


def make(seed):
    """A model that has taken a step by Muon and AdamW, its optimizers, its average."""
    torch.manual_seed(seed)
    net = torch.nn.ModuleDict(
        {
            'decoder': torch.nn.ModuleDict(
                {'blocks': torch.nn.ModuleList([torch.nn.Linear(8, 16)])}
            ),
            'conv': torch.nn.Conv2d(3, 4, 3),
        }
    ).to(memory_format=torch.channels_last)
    optimizers, average = optim.configure_optimizers(net), optim.EMA(net)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    for optimizer in optimizers:
        optimizer.step()
    average.update(net)
    return net, optimizers, average


def values(parts):
    return {name: tensor.clone() for name, tensor in checkpoint.tensors_of(*parts).items()}


PROCESSOR = {
    'cameras': ['front'],
    'image_size': 32,
    'state_slots': ['a'],
    'action_slots': ['a'],
    'horizon': 2,
    'control_hz': 10,
    'tokenizer': '{}',
}
FACTS = {  # what a run writes beside these
    'settings': {},
    'processor': PROCESSOR,
    'fingerprint': '',
    'world_size': 1,
    'best': 0.5,
    'wandb_id': None,
}


def save(folder, step, parts):
    facts = FACTS | {'step': step, 'average_step': parts[2].step}
    return checkpoint.save_state(folder, checkpoint.tensors_of(*parts), facts)


def load(folder):
    parts = make(9)
    facts = checkpoint.read_state(folder)
    checkpoint.load_state(folder, facts, *parts)
    return facts['step'], values(parts)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_what_is_loaded_is_what_was_saved_bit_for_bit(tmp_path):
    parts = make(1)
    size = save(tmp_path, 5, parts)
    step, read = load(tmp_path)
    assert step == 5 and equal(read, values(parts))
    assert {
        'optimizer/decoder.blocks.0.weight/momentum_buffer',
        'optimizer/conv.weight/exp_avg_sq',
        'optimizer/conv.bias/step',
        'average/conv.weight',
        'model/conv.weight',
    } < read.keys()
    assert size > sum(v.numel() * 4 for v in read.values())
    assert parts[1][0].state_dict()['state'].keys() == {
        0,
        1,
        2,
    }  # loading has made no state of its own


@pytest.mark.parametrize('broken', ['dcp.save', 'write_atomic', 'os.listdir'])
def test_a_kill_while_saving_leaves_the_old_state_or_the_new_one(tmp_path, monkeypatch, broken):
    """Each write in turn is the last thing that happens; half of a file is on disk."""
    old, new = make(1), make(2)
    save(tmp_path, 5, old)
    owner, name = broken.split('.') if '.' in broken else (None, broken)

    def die(*args, **kwargs):
        writing = tmp_path / 'state' / '000000010'
        (writing / 'shard-00001-model-00001-of-00001.safetensors').write_bytes(b'half a file')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if broken == 'os.listdir':  # the new state is whole, the old one not yet deleted
            patch.setattr(os, 'listdir', lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        else:
            patch.setattr(getattr(checkpoint, owner) if owner else checkpoint, name, die)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 10, new)
    step, read = load(tmp_path)
    assert step == (10 if broken == 'os.listdir' else 5)
    assert equal(read, values(new if step == 10 else old))
    save(tmp_path, 10, new)  # the run goes on, and comes to the same step again
    step, read = load(tmp_path)
    assert (
        step == 10 and equal(read, values(new)) and os.listdir(tmp_path / 'state') == ['000000010']
    )


def test_the_last_few_weights_are_kept_without_taking_room_twice(tmp_path):
    for step in (1, 2, 3):
        for name in ('model.safetensors', 'meta.json'):
            (tmp_path / 'new').write_text(f'{name} {step}')
            os.replace(tmp_path / 'new', tmp_path / name)
        checkpoint.keep_last(tmp_path, step, 2)
        checkpoint.keep_last(tmp_path, step, 2)  # the same step again, after a kill
    kept = sorted(p.name for p in tmp_path.glob('step_*'))
    assert kept == ['step_000000002', 'step_000000003']
    assert (tmp_path / kept[0] / 'meta.json').read_text() == 'meta.json 2'
    assert (tmp_path / kept[1] / 'model.safetensors').samefile(tmp_path / 'model.safetensors')


ACT = ('model.safetensors', 'ema.safetensors', 'meta.json')


class Net:
    """All that save_weights asks of one: files that say their step."""

    def save(self, folder, meta, average_weights, gather):
        os.makedirs(folder)
        for name in ACT:
            with open(f'{folder}/{name}', 'w') as f:
                f.write(str(meta))


def says(folder):
    """The step that all files of a folder agree on; None where nothing would load."""
    if not (folder / 'meta.json').exists():
        return None
    (step,) = {(folder / name).read_text() for name in ACT}
    return int(step)


def test_a_kill_while_weights_are_put_in_place_never_mixes_two_steps(tmp_path, monkeypatch):
    """The run dies before each single change to a folder in turn, and comes to the same step
    again."""

    def save(out, step):
        checkpoint.save_weights(out, Net(), step, None)
        checkpoint.keep_last(out, step, 2)

    for last in range(1, 100):
        out, left, seen = tmp_path / str(last), [last], []
        for step in (1, 2, 3):
            save(out, step)

        def count(function):
            def counted(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return function(*args, **kwargs)

            return counted

        with monkeypatch.context() as patch:
            for name in ('replace', 'remove', 'unlink', 'rmdir', 'link'):
                patch.setattr(os, name, count(getattr(os, name)))
            try:
                save(out, 4)
                save(out, 4)
            except KeyboardInterrupt:
                seen = [says(out)] + [says(folder) for folder in out.glob('step_*')]
        assert seen[:1] in ([], [None], [3], [4]) and None not in seen[1:], (last, seen)
        save(out, 4)
        kept = sorted(out.glob('step_*'))
        assert says(out) == 4 and [says(folder) for folder in kept] == [3, 4]
        assert sorted(os.listdir(out)) == sorted([*ACT, *(folder.name for folder in kept)])
        if not seen:
            return
    raise AssertionError('it never got through')


@pytest.mark.parametrize('dies', [(1, 'write_tensors'), (2, 'write_tensors'), (1, 'write_json')])
def test_a_model_half_saved_over_another_does_not_load(tmp_path, monkeypatch, dies):
    net, (left, name) = test_parallel.small(), dies
    average = optim.EMA(net)
    net.save(str(tmp_path), {'step': 1}, average)
    write, calls = getattr(pretrained, name), []

    def die(*args):
        calls.append(args)
        if len(calls) == left:
            raise KeyboardInterrupt
        return write(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrained, name, die)
        net.save(str(tmp_path), {'step': 2}, average)
    with pytest.raises(FileNotFoundError, match='meta.json'):
        model.VLA.load(str(tmp_path))
    net.save(str(tmp_path), {'step': 2}, average)
    assert model.VLA.load(str(tmp_path))[1]['step'] == 2


def test_settings_that_a_checkpoint_brings_along_are_named():
    theirs = dict(
        horizon=8,
        log_scale_m=0.1,
        state_slots=['left/gripper', 'right/gripper'],
        action_slots=['spine_z'],
        tokenizer='{}',
        stats=None,
    )
    ours = dict(theirs, state_slots=['[lr]*t/gripper'], batch_size=3)
    assert checkpoint.overruled(ours, theirs) == {}
    ours |= dict(horizon=3, tokenizer='{"other": 1}', action_slots=['*'])
    assert checkpoint.overruled(ours, theirs) == {
        'horizon': 8,
        'action_slots': ['spine_z'],
        'tokenizer': 'its own',
    }


def test_starting_over_leaves_nothing_that_could_be_taken_for_the_new_run(tmp_path):
    save(tmp_path, 5, make(1))
    for name in ('model.safetensors', 'ema.safetensors', 'meta.json', 'log.jsonl'):
        (tmp_path / name).write_text(name)
    checkpoint.keep_last(tmp_path, 5, 1)
    checkpoint.link(tmp_path, tmp_path / 'best')
    checkpoint.link(tmp_path, tmp_path / 'new.tmp')
    checkpoint.clear(tmp_path)
    assert checkpoint.read_state(tmp_path) is None
    assert sorted(os.listdir(tmp_path)) == [
        'log.jsonl',
        'meta.json',
        'model.safetensors',
    ]  # still loads
    checkpoint.clear(tmp_path / 'new')  # nor does it need anything to be there
