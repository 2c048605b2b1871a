"""A GPU computes what the CPU computes, and launches a chunk as one CUDA graph.

python -m pytest -m gpu
"""

import json
import subprocess
import sys

import pytest
import torch
from test_model import grounded, make_batch, network

from vla import graphs, layers, parallel

pytestmark = pytest.mark.gpu
DEVICE = 'cuda'
NETWORKS = {
    'grounded': grounded,
    'plain': lambda: (network(prefix_attention='causal', chunk_attention='causal'), make_batch()),
    'velocity': lambda: (
        network(predict='velocity', mlp='swiglu', tie_embeddings=True),
        make_batch(),
    ),
}


@pytest.fixture(autouse=True)
def float32_is_float32():
    layers.autocast_for(DEVICE, 'float32')


def on_gpu(net, batch):
    return net.to(DEVICE), {k: v.to(DEVICE) for k, v in batch.items()}


@pytest.mark.parametrize('name', NETWORKS)
def test_losses_gradients_and_actions_are_those_of_the_cpu(name):
    net, batch = NETWORKS[name]()
    loss, parts = net(batch)
    loss.backward()
    grads = {k: p.grad for k, p in net.named_parameters()}
    chunk, (planned, texts) = net.act(batch, 5), net.plan_and_act(batch, 5)
    net.zero_grad()
    net, there = on_gpu(net, batch)
    again, again_parts = net(there)
    again.backward()
    assert all(
        abs(parts[k].item() - again_parts[k].item()) < 1e-4 * (1 + parts[k].item()) for k in parts
    )
    for k, p in net.named_parameters():
        assert (p.grad.cpu() - grads[k]).norm() <= 1e-3 * grads[k].norm() + 1e-6, k
    assert torch.allclose(net.act(there, 5).cpu(), chunk, atol=2e-4)
    planned_there, texts_there = net.plan_and_act(there, 5)
    assert texts_there == texts and torch.allclose(planned_there.cpu(), planned, atol=2e-4)


def test_a_chunk_is_one_cuda_graph():
    net, batch = on_gpu(*grounded())
    act = torch.compile(net.act, mode='reduce-overhead', fullgraph=True, dynamic=False)
    with torch.inference_mode():
        for seed in range(4):  # the first calls record, the later ones replay with other inputs
            state = torch.randn(batch['state'].shape, generator=torch.Generator().manual_seed(seed))
            other = dict(batch, state=state.to(DEVICE))
            assert torch.allclose(act(other, 3).clone(), net.act(other, 3), atol=1e-4)


def test_a_chunk_is_recorded_and_replayed_with_other_inputs():
    net, batch = on_gpu(*grounded())
    act = graphs.Graphed(lambda inputs: net.act(inputs, 3))
    with torch.inference_mode():
        for seed in range(4):
            state = torch.randn(batch['state'].shape, generator=torch.Generator().manual_seed(seed))
            other = dict(batch, state=state.to(DEVICE))
            assert torch.allclose(act(other).clone(), net.act(other, 3), atol=1e-4)


def test_gradients_by_a_graph_are_those_of_each_batch():
    net, batch = on_gpu(*grounded())
    learn = graphs.GraphedBackward(net, net.forward)
    for seed in range(4):
        other = dict(batch, state=batch['state'] + seed)
        loss = learn(other)['loss'].item()
        grads = [p.grad.clone() for p in net.parameters()]
        net.zero_grad(set_to_none=True)
        expected = net(other)[0]
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-4)
        for p, grad in zip(net.parameters(), grads, strict=True):
            assert (p.grad - grad).norm() <= 1e-3 * grad.norm() + 1e-6
        net.zero_grad(set_to_none=True)


def test_a_step_asks_the_gpu_nothing():
    """CUDA itself refuses whatever waits for the device."""
    net, batch = on_gpu(*grounded())
    net(batch)[0].backward()
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode('error')
        net(batch)[0].backward()
        net.act(batch, 3)
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_compiled_blocks_give_the_same_loss():
    net, batch = on_gpu(*grounded())
    expected = net(batch)[0].item()
    parallel.compile_blocks(net)
    assert net(batch)[0].item() == pytest.approx(expected, rel=1e-4)


def test_bfloat16_is_close_to_float32():
    net, batch = on_gpu(*grounded())
    expected = net(batch)[0].item()
    with torch.autocast(DEVICE, torch.bfloat16):
        assert net(batch)[0].item() == pytest.approx(expected, rel=0.05)


def test_training_starts_as_on_the_cpu_and_learns(tmp_path):
    losses = {}
    for device in ('cpu', DEVICE):
        folder = tmp_path / device
        subprocess.run(
            [
                sys.executable,
                'train.py',
                'config/debug.py',
                f'--episodes={tmp_path}/episodes',
                f'--out_dir={folder}',
                f'--device={device}',
                '--dtype=float32',
                '--max_steps=40',
            ],
            check=True,
            capture_output=True,
            timeout=300,
        )
        lines = (folder / 'log.jsonl').read_text().splitlines()
        losses[device] = [json.loads(line)['loss'] for line in lines]
    assert losses[DEVICE][0] == pytest.approx(losses['cpu'][0], rel=1e-3)
    assert losses[DEVICE][-1] < 0.8 * losses[DEVICE][0]
