"""Nothing in a step depends on numbers: shapes stay, one graph holds it, nobody waits for a GPU.

python -m pytest tests/test_static.py
"""

import dataclasses
import pathlib
import re
import runpy

import pytest
import torch
from recorder import record_here
from test_model import grounded, make_batch, network
from test_train import TRAIN_CONFIGS, publish
from torch.utils._python_dispatch import TorchDispatchMode

import data
import train
from episode import write_synthetic_episodes
from model import VLA, with_room
from vla import checkpoint, graphs, optim, parallel, watch
from vla.processor import Processor

TINY = dict(
    hidden_size=32,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    head_dim=16,
    mrope_section=(2, 3, 3),
    intermediate_size=64,
    dtype='float32',
)
BATCH = 6
BATCHES = 20


def prepare(folder, name):
    """The network that a config asks for, tiny, and the data set it trains on."""
    run = re.sub('_(start|sight)$', '', name)
    files = [f'config/{run}.py', f'config/{name}.py']
    if name == 'qa':  # it goes on from the demo, with its settings
        files = ['config/demo.py', 'config/qa.py']
    settings = dict(train.config)
    for path in dict.fromkeys(files):
        assigned = runpy.run_path(path)
        settings |= {key: value for key, value in assigned.items() if key in settings}
    size = 56 if name == 'eo1_3b' else 16
    settings |= dict(image_size=size, init_from='', out_dir=str(folder / 'run'))
    if name == 'eo1_3b':  # the folder decides the sizes
        settings['init_from'] = str(publish(folder / 'published'))
    else:
        settings |= TINY
    shape = (settings['cameras'], size, settings['control_hz'])
    # Another robot's files say in plain words what was done, ours hold goal frames as well.
    write_synthetic_episodes(folder / 'e', 5, *shape, grammar=name != 'own')
    words = pathlib.Path('assets/tokenizer.json').read_text()
    start = checkpoint.find_start(
        checkpoint.as_json(settings), checkpoint.as_json(train.DEFAULTS), [], 1, words
    )
    shape = train.pick(settings, train.PROCESSING) | start.prompt
    processor = Processor(**shape)
    how = train.pick(settings, train.READING + train.SAMPLING) | {'val_fraction': 0.0}
    dataset = data.Dataset(folder / 'e', processor, 'train', multiple=8, **how)
    processor.fit(dataset)
    if settings['delay']:
        processor.learn_hands(dataset)
    processor.user_tokens = dataset.user_tokens
    torch.manual_seed(0)
    return VLA(train.model_config(settings, start, processor, dataset)), dataset


def compilations():
    return torch._dynamo.utils.counters['stats']['unique_graphs']


# A first lesson has the network and the samples of the second one.
CONFIGS = ['own', *(name for name in TRAIN_CONFIGS if not name.endswith('_start'))]


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_trains_and_acts_in_one_graph_each(tmp_path, name):
    """fullgraph=True raises at the first thing that no compiler can follow."""
    net, dataset = prepare(tmp_path, name)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    forward = torch.compile(net.forward, backend='eager', fullgraph=True, dynamic=False)
    loss, _ = forward(data.augment(dataset.batch(0, BATCH)))
    loss.backward()
    assert compilations() == 1
    net.eval()
    act = torch.compile(net.act, backend='eager', fullgraph=True, dynamic=False)
    processor = dataset.processor
    with torch.inference_mode():
        act(processor.encode([dataset.row(0)]), 2)
    assert compilations() == 2
    net.train()
    widths = set()
    for step in range(1, BATCHES + 1):
        batch = data.augment(dataset.batch(step, BATCH))
        widths.add(tuple(batch['input_ids'].shape))
        forward(batch)
    assert len(widths) == 1 and widths.pop()[1] % 8 == 0
    net.eval()
    with torch.inference_mode():
        for row in range(BATCHES):
            batch = processor.encode([dataset.row(row)])
            chunk = act(batch, 2)
            if row < 3:
                assert torch.allclose(chunk, net.act(batch, 2), atol=1e-5)
    assert compilations() == 2


def test_a_lesson_in_seeing_has_the_loss_of_the_scene_and_changes_nothing_else(tmp_path):
    net, dataset = prepare(tmp_path, 'all_sight')
    batch = data.augment(dataset.batch(0, BATCH))
    factors = optim.freeze(net, train.SIGHT_RATES)
    loss, parts = net(batch)
    loss.backward()
    assert parts.keys() == {'scene'}
    changed = {name.partition('.')[0] for name, p in net.named_parameters() if p.grad is not None}
    assert (
        changed
        == {'vision', 'image_embedding', 'scene_head'}
        == {name.partition('.')[0] for name in factors}
    )
    net.cfg = dataclasses.replace(net.cfg, sight_only=False)
    assert torch.equal(net(batch)[1]['scene'], loss.detach())


class NoQuestions(TorchDispatchMode):
    """Refuses whatever needs the numbers of a tensor in Python, for which a GPU would be waited."""

    REFUSED = (
        '_local_scalar_dense',
        'nonzero',
        'masked_select',
        'unique',
        '_unique2',
        'is_nonzero',
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix('aten::')
        indices = args[1] if name in ('index', 'index_put', 'index_put_') else ()
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        # a tensor that is made of Python's numbers is sent to the GPU, which is waited for as well
        if name in self.REFUSED or by_mask or name == 'lift_fresh':
            raise AssertionError(f'a step asks the device: {name}')
        return func(*args, **kwargs or {})


@pytest.mark.parametrize('name', CONFIGS)
def test_a_step_and_a_chunk_ask_the_device_nothing(tmp_path, name):
    """From the batch to the averaged weights, and all that is counted on the way."""
    net, dataset = prepare(tmp_path, name)
    batch = dataset.batch(0, BATCH)
    optimizers = optim.configure_optimizers(net)
    average_weights = optim.EMA(net)
    meter = watch.Meter({}, 0)
    unsound = watch.Unsound([name for name, _ in net.named_parameters()], 'cpu')
    for _ in range(2):  # optimizers begin with the first step
        with NoQuestions():
            loss, parts = net(data.augment(batch))
            loss.backward()
            meter.add({'loss': loss.detach(), **parts})
            norm, norms = optim.clip(net, 1.0)
            sound = norm.isfinite()
            for optimizer in optimizers:
                optim.step_on_device(optimizer, sound)
                optimizer.zero_grad(set_to_none=True)
            average_weights.update(net)
            meter.end_step({'grad_norm': norm}, sound)
            unsound.bad_params = torch.zeros_like(norms, dtype=torch.bool)
            unsound.note(0, sound, meter.last_step, norms)
    with NoQuestions():
        net.act(batch, 3)
        net.act(batch, 3, batch['noise'][:, 0], action_prefix=batch['actions'][:, :2])
        net.act(batch, 2, read_text=False)
    assert unsound.report() is None and float(meter.own_means()['skipped']) == 0


class Ops(TorchDispatchMode):
    """Notes the name of each operation and the shape of what it gives."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        name = func._schema.name.removeprefix('aten::')
        self.done.append((name, getattr(result, 'shape', ())))
        return result


@pytest.mark.parametrize('changes', [{}, {'n_heads': 4, 'n_kv_heads': 2, 'head_dim': 16}])
def test_a_denoising_step_copies_nothing_of_the_prefix(changes):
    """Keys and values of the prefix are written once; rows are written over in each step."""
    if changes:
        changes['mrope_section'] = (2, 3, 3)
    net = network(**changes).eval()
    batch = make_batch()
    L = batch['input_ids'].shape[1]
    H = net.cfg.horizon
    counts = []
    for steps in (1, 2, 5):
        with Ops() as ops:
            net.act(batch, steps)
        counts.append(len(ops.done))
        copied = [name for name, shape in ops.done if len(shape) == 4 and shape[2] == L + H]
        assert copied.count('constant_pad_nd') == 2 * net.cfg.n_layers and 'cat' not in copied
    assert counts[2] - counts[1] == 3 * (counts[1] - counts[0]) > 0
    with torch.no_grad():
        prefix = net.read(batch)
        reads = torch.ones_like(batch['input_ids'][:, :1], dtype=torch.bool)
        layout = net.chunk_layout(prefix.layout, reads)
        room = with_room(prefix.cache, H)
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randn(len(reads), H, net.cfg.hidden_size, generator=generator)
            expected, _ = net.decoder(rows, layout, prefix.cache, prefix.layout)
            hidden, _ = net.decoder(rows, layout, room, prefix.layout, has_room=True)
            assert torch.equal(hidden, expected)


@pytest.mark.parametrize(
    'ask',
    [
        lambda x: x.sum().item(),
        lambda x: int(x.argmax()),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1.0, 2.0]) * x[0],
    ],
)
def test_a_question_would_be_noticed(ask):
    with pytest.raises(AssertionError, match='asks the device'):
        with NoQuestions():
            ask(torch.randn(3, 2))


# -----------------------------------------------------------------------------
# blocks are compiled once


def test_blocks_that_are_alike_are_compiled_once():
    """Twelve blocks have the graphs of two: prefix and rows, and the last block's shorter one."""
    counts = {}
    for n_layers in (2, 12):
        net = network(n_layers=n_layers).train()
        batch = make_batch()
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        expected = net(batch)[0]
        expected.backward()
        grads = [p.grad for p in net.parameters()]
        net.zero_grad(set_to_none=True)
        parallel.compile_blocks(net)
        for block in net.decoder.blocks:  # the same cut, without Inductor's minutes
            block.compile(backend='aot_eager', dynamic=False)
        net.vision._compiled_call_impl = None
        loss, _ = net(batch)
        loss.backward()
        counts[n_layers] = compilations()
        assert torch.allclose(loss, expected, atol=1e-5)
        for p, grad in zip(net.parameters(), grads, strict=True):
            assert (p.grad - grad).norm() <= 1e-4 * grad.norm() + 1e-7
    assert counts[12] == counts[2] <= 4


# -----------------------------------------------------------------------------
# what a CUDA graph takes and gives


def test_gradients_by_a_graph_are_those_of_each_batch_alone():
    net, batch = grounded()
    learn = graphs.GraphedBackward(net, net.forward, record_here)
    for seed in range(3):
        other = dict(batch, state=batch['state'] + seed)
        numbers = learn(other)
        grads = [p.grad for p in net.parameters()]
        net.zero_grad(set_to_none=True)  # as train.py does after every step
        loss, parts = net(other)
        loss.backward()
        assert torch.equal(numbers['loss'], loss) and numbers.keys() == {'loss', *parts}
        expected = [p.grad for p in net.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))
        net.zero_grad(set_to_none=True)


def test_a_graph_is_recorded_once_per_shape_and_works_on_what_it_is_given():
    recorded = []

    def record(function):
        recorded.append(function)
        return record_here(function)

    double = graphs.Graphed(lambda inputs: 2 * inputs['x'] + inputs['y'], record)
    for n in (3, 4, 3, 4):
        for seed in range(2):
            torch.manual_seed(seed)
            x, y = torch.randn(2, n)
            assert torch.equal(double({'x': x, 'y': y}), 2 * x + y)
    assert len(recorded) == 2


def test_a_chunk_by_a_graph_is_that_of_the_network():
    net, batch = grounded()
    act = graphs.Graphed(lambda inputs: net.act(inputs, 3), record_here)
    with torch.inference_mode():
        for seed in range(3):
            state = torch.randn(batch['state'].shape, generator=torch.Generator().manual_seed(seed))
            other = dict(batch, state=state)
            assert torch.equal(act(other), net.act(other, 3))


# -----------------------------------------------------------------------------
# parts of like length, where shapes may change


def test_parts_of_like_length_have_the_loss_and_the_gradients_of_their_batch():
    net, batch = grounded()
    supervised = (batch['labels'] != -100).sum()
    rows = batch['action_mask'].sum()
    batch |= {'n_rows': rows.float(), 'n_tokens': supervised.float()}
    loss, parts = net(batch)
    loss.backward()
    expected = [p.grad for p in net.parameters()]
    net.zero_grad(set_to_none=True)
    cut = data.by_length(batch, 3)
    assert len({part['input_ids'].shape[1] for part in cut}) > 1
    losses = []
    for part in cut:
        part_loss, part_parts = net(part)
        (part_loss / 3).backward()
        losses.append(torch.stack([part_loss, *part_parts.values()]).detach())
    whole = torch.stack([loss, *parts.values()]).detach()
    assert torch.allclose(torch.stack(losses).mean(0), whole, rtol=1e-6, atol=1e-6)
    for p, grad in zip(net.parameters(), expected, strict=True):
        assert (p.grad - grad).norm() <= 1e-5 * grad.norm() + 1e-7
