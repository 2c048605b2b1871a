"""Numbers stay finite, or the step that made them otherwise is not taken, is named and kept.

python -m pytest tests/test_finite.py
"""

import json
import re
import runpy
import sys

import launch
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import data
from episode import write_synthetic_episodes
from vla import layers, optim, watch

TINY = (
    'config/debug.py',
    '--n_layers=1',
    '--image_size=16',
    '--cameras=overhead,',
    '--tokens_per_camera=2',
    '--batch_size=8',
    '--val_fraction=0',
    '--log_interval=4',
    '--checkpoint_interval=1000',
)


class Two(nn.Module):
    """A matrix for Muon and a vector for AdamW."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = nn.ModuleDict({'blocks': nn.Linear(6, 4)})

    def forward(self, x):
        return self.decoder['blocks'](x).square().mean()


def train(net, optimizers, inputs, step):
    for x in inputs:
        net(x).backward()
        norm, _ = optim.clip(net, 1.0)
        step(optimizers, norm.isfinite())
        for optimizer in optimizers:
            optimizer.zero_grad()
    return [
        *net.parameters(),
        *(v for o in optimizers for s in o.state.values() for v in s.values()),
    ]


def on_device(optimizers, sound):
    for optimizer in optimizers:
        optim.step_on_device(optimizer, sound)


@pytest.mark.parametrize('step', [optim.step_if, on_device])
@pytest.mark.parametrize('bad', [torch.inf, torch.nan, 1e30])
def test_a_step_without_a_finite_gradient_changes_nothing_at_all(step, bad):
    """Neither weights nor what optimizers keep; 1e30 squared is too much for float32."""
    good = [torch.randn(3, 6, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    poisoned = [good[0], torch.full((3, 6), bad), *good[1:3], torch.full((3, 6), bad), good[3]]
    results = []
    for inputs in (good, poisoned):
        net = Two()
        optimizers = optim.configure_optimizers(net)
        assert len(optimizers) == 2
        results.append(train(net, optimizers, inputs, step))
    assert len(results[0]) == len(results[1]) > 5
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize('step', [optim.step_if, on_device])
def test_the_very_first_step_may_be_the_bad_one(step):
    net = Two()
    optimizers = optim.configure_optimizers(net)
    before = [p.clone() for p in net.parameters()]
    kept = train(net, optimizers, [torch.full((3, 6), torch.nan)], step)
    assert all(torch.equal(a, b) for a, b in zip(before, kept))
    after = train(net, optimizers, [torch.ones(3, 6)], step)
    assert all(tensor.isfinite().all() for tensor in after)


def test_clipping_alone_turns_one_infinite_gradient_into_nan_everywhere():
    """Which is what a step must not be taken with."""
    net = Two()
    net(torch.ones(3, 6)).backward()
    net.decoder['blocks'].bias.grad[0] = torch.nan
    norm, norms = optim.clip(net, 1.0)
    assert not norm.isfinite() and norms.isfinite().tolist() == [True, False]
    assert all(p.grad.isnan().all() for p in net.parameters())


@pytest.mark.parametrize('size', [0.0, 1e-38, 1e-12, 1.0])
@pytest.mark.parametrize('rank', [1, 8])
def test_muon_makes_finite_steps_of_any_gradient_that_was_clipped(size, rank):
    rng = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.zeros(16, 8))
    p.grad = torch.randn(16, rank, generator=rng) @ torch.randn(rank, 8, generator=rng)
    p.grad *= size / p.grad.norm()
    torch.optim.Muon([p], lr=0.04).step()
    assert p.isfinite().all() and p.norm() < 1


def test_a_flat_map_far_from_zero_is_normed_to_finite_numbers():
    """Its variance, as mean of squares less square of mean, rounded to less than zero."""
    x = torch.full((2, 16, 16, 64), 377.7) + 1e-3 * torch.randn(2, 16, 16, 64)
    x = x.permute(0, 3, 1, 2).requires_grad_()
    norm = nn.GroupNorm(8, 64)
    out = layers.group_norm(x, norm)
    out.square().sum().backward()
    assert out.isfinite().all() and x.grad.isfinite().all()


def test_the_first_bad_step_is_named_and_the_others_are_counted():
    unsound = watch.Unsound(['first.weight', 'last.weight'], 'cpu')
    fine, bad = torch.tensor(1.0), torch.tensor(torch.nan)
    for step, (flow, norms) in enumerate(
        [(fine, (1, 1)), (bad, (torch.inf, torch.nan)), (fine, (1, torch.inf)), (fine, (1, 1))]
    ):
        norms = torch.tensor(norms, dtype=torch.float32)
        sound = norms.isfinite().all()
        unsound.note(step + 7, sound, {'flow': flow, 'text': fine}, norms)
    report = unsound.report()
    assert (report['count'], report['in_a_row'], report['ended'], report['step']) == (2, 2, 0, 8)
    assert report['what'] == (
        'not finite in the loss: flow; not finite are 2 of 2 gradients, first last.weight'
    )
    assert unsound.report() is None
    for step in range(3):  # a row goes on from one report to the next
        unsound.note(step, torch.tensor(False), {'flow': fine}, torch.tensor([1.0, torch.inf]))
        report = unsound.report()
    assert (report['in_a_row'], report['ended'], report['count']) == (3, 3, 1)
    assert report['what'].startswith('the loss is finite; ')


def test_means_are_over_the_steps_that_were_taken():
    meter = watch.Meter({}, 0)
    for loss, sound in ((1.0, True), (float('nan'), False), (3.0, True)):
        meter.add({'loss': torch.tensor(loss)})
        meter.end_step({'grad_norm': torch.tensor(loss)}, torch.tensor(sound))
    means = meter.own_means()
    assert {name: float(value) for name, value in means.items()} == {
        'loss': 2.0,
        'grad_norm': 2.0,
        'skipped': 1.0,
    }


def poisoned_training(bad, *words):
    """train.py with a state of NaN in the batches of these numbers."""
    augment = data.augment
    calls = iter(range(1_000_000))

    def poison(batch, frames=None):
        batch = augment(batch, frames)
        if next(calls) in bad:
            batch['state'] = batch['state'] * torch.nan
        return batch

    data.augment = poison
    sys.argv = ['train.py', *words]
    runpy.run_path('train.py', run_name='__main__')


@pytest.fixture(scope='module')
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('episodes')
    write_synthetic_episodes(folder, 4, ('overhead',), 16)
    return folder


def read_log(folder):
    return [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]


def test_a_run_goes_on_past_a_bad_batch_names_it_and_replays_it(episodes, tmp_path):
    words = [*TINY, f'--episodes={episodes}', f'--out_dir={tmp_path}', '--max_steps=12']
    said = launch.run(poisoned_training, [5, 6], *words)
    line = next(line for line in said.splitlines() if 'steps were not taken' in line)
    assert line.startswith(
        '2 steps were not taken: the gradient was not finite, first on the batch'
    )
    assert 'of step 5 (not finite in the loss: loss, flow' in line and 'gradients, first ' in line
    assert [entry['skipped'] for entry in read_log(tmp_path)] == [0, 2, 0]
    weights = load_file(tmp_path / 'model.safetensors')
    assert all(tensor.isfinite().all() for tensor in weights.values())
    path = tmp_path / 'bad_batch.safetensors'
    assert f'--replay_batch={path}' in line and load_file(path)['images'].shape[0] == 8
    said = launch.run('train.py', *words, f'--replay_batch={path}')
    assert f'{path}: batch of step 5: not finite in the loss' in said
    assert 'weights of step 12' in said and 'forward: all is finite' in said
    assert len(re.findall('^  gradient +[0-9.e+-]+  ', said, re.M)) == len(weights)


def test_ten_bad_steps_in_a_row_end_a_run(episodes, tmp_path):
    words = [*TINY, f'--episodes={episodes}', f'--out_dir={tmp_path}', '--max_steps=40']
    words.append('--checkpoint_interval=4')
    said = launch.run(poisoned_training, range(6, 100), *words, fails=True)
    assert re.search(r'^step 1[56]: 1\d steps in a row without a finite gradient', said, re.M)
    assert f'the checkpoint of step 4 in {tmp_path} holds finite numbers' in said


def test_a_checkpoint_is_due_by_minutes_too(episodes, tmp_path):
    words = [*TINY, f'--episodes={episodes}', f'--out_dir={tmp_path}', '--max_steps=31']
    launch.run('train.py', *words, '--checkpoint_minutes=1e-6', '--keep_checkpoints=9')
    steps = sorted(int(path.name[5:]) for path in tmp_path.glob('step_*'))
    assert steps == [10, 20, 30, 31]
