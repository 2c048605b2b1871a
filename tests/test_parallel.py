"""
Protects training on several processes: DDP, FSDP and one process learn the same, and each rank of FSDP holds its
part only; what a rank that dies, a second node, or another number of ranks does to a run.

python -m pytest tests/test_parallel.py
"""
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import data
import model
import optim
import parallel
import test_model

pytestmark = pytest.mark.dist
# no Muon: it rounds to bfloat16, and so makes a rounding error anywhere a thousand times as large
SETTINGS = ('config/debug.py', '--n_layers=2', '--image_size=16', '--cameras=overhead,', '--tokens_per_camera=2',
            '--batch_size=8', '--log_interval=1', '--eval_interval=10', '--eval_batches=1', '--val_fraction=0.2',
            '--checkpoint_interval=8', '--dtype=float32', '--muon_learning_rate=0', '--max_steps=20',
            '--learning_rate=5e-4', '--ema=0.9', '--questions=0.3')


@pytest.fixture(scope='module')
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('episodes')
    data.write_synthetic_episodes(folder, 12, ('overhead',), 16)
    return folder


def torchrun(processes, *words):
    return [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}', *words]


def command(episodes, out, *words, processes=1):
    train = ('train.py', *SETTINGS, f'--episodes={episodes}', f'--out_dir={out}', *words)
    return [sys.executable, *train] if processes == 1 else torchrun(processes, *train)


def run(*args, **kwargs):
    done = subprocess.run(command(*args, **kwargs), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_log(folder):
    return [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]


def same_losses(a, b, tolerance=1e-5):
    """Training and held-out losses of two runs agree step for step. -> how many steps were compared"""
    a, b = ({line['step']: line for line in read_log(folder)} for folder in (a, b))
    for step in b:
        for key in ('loss', 'flow', 'text', 'scene', 'words', 'val_loss', 'val_flow'):
            assert a[step].get(key) == pytest.approx(b[step].get(key), abs=tolerance), (step, key)
    return len(b)


@pytest.fixture(scope='module')
def whole(episodes, tmp_path_factory):
    """20 steps by one process."""
    out = tmp_path_factory.mktemp('whole')
    run(episodes, out)
    return out


# processes, other settings. Accumulation, and the mixture of both, are the same batch as well
@pytest.mark.parametrize('processes, words', [
    (2, ()), (4, ()), (2, ('--fsdp=True',)), (4, ('--fsdp=True', '--recompute=True')),
    (2, ('--fsdp=True', '--accumulate=2', '--offload=True'))])
def test_many_processes_learn_what_one_learns(whole, episodes, tmp_path, processes, words):
    said = run(episodes, tmp_path, *words, processes=processes)
    assert said.count('next: python') == 1      # one process speaks
    assert same_losses(whole, tmp_path) == 20
    per_process = re.search(r'([\d.]+) M parameters(?:, ([\d.]+) M of them per process)?', said)
    if '--fsdp=True' in words:
        assert float(per_process[2]) == pytest.approx(float(per_process[1]) / processes, rel=0.02)
    # and what is written is the whole model, in the shapes of one process's
    ours, theirs = (load_file(out / 'ema.safetensors') for out in (tmp_path, whole))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert max((ours[k] - theirs[k]).abs().max() for k in theirs) < 1e-3
    model.VLA.load(tmp_path / 'best')


@pytest.mark.parametrize('before, after', [
    ((2, '--fsdp=True'), (1, '--fsdp=False')), ((1, '--fsdp=False'), (2, '--fsdp=True')),
    ((2, '--fsdp=False'), (4, '--fsdp=True'))])
def test_a_run_goes_on_with_another_number_of_processes(whole, episodes, tmp_path, before, after):
    process = subprocess.Popen(command(episodes, tmp_path, before[1], processes=before[0]),
                               stdout=subprocess.PIPE, text=True)
    for line in process.stdout:      # until the first checkpoint is on disk
        if line.startswith('checkpoint: '):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate()
    said = run(episodes, tmp_path, after[1], processes=after[0])
    start = int(re.search(r'starting at step (\d+)', said)[1])
    assert 8 <= start < 20 and f'processes {before[0]} -> {after[0]}' in said
    assert same_losses(whole, tmp_path) == 20


def test_fsdp_goes_on_bit_for_bit_under_muon_after_kill_9(episodes, tmp_path):
    words = ('--fsdp=True', '--muon_learning_rate=0.02', '--checkpoint_interval=5')
    run(episodes, tmp_path / 'whole', *words, processes=2)
    process = subprocess.Popen(command(episodes, tmp_path / 'cut', *words, processes=2),
                               stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if line.startswith('step') and int(line.split()[1].split('/')[0]) >= 7:
            break
    # torchrun first, or it would see its workers off; they are in sessions of their own
    workers = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(process.pid)], capture_output=True, text=True)
    process.kill()
    for pid in workers.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    process.communicate()
    assert 'starting at step 5' in run(episodes, tmp_path / 'cut', *words, processes=2)
    for name in ('model', 'ema'):
        a, b = (load_file(tmp_path / run / f'{name}.safetensors') for run in ('whole', 'cut'))
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_rank_that_dies_ends_the_job_with_its_error(episodes, tmp_path):
    process = subprocess.Popen(command(episodes, tmp_path, '--max_steps=100000', '--log_interval=1', processes=2),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith('step'):
            break
    workers = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(process.pid)], capture_output=True, text=True)
    os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
    began = time.monotonic()
    errors = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and 'Signal 9 (SIGKILL)' in errors and time.monotonic() - began < 60


def test_two_nodes_meet_by_rendezvous(whole, episodes, tmp_path):
    """Two launchers on this machine, as on two nodes: they share nothing but the name of the first one."""
    words = command(episodes, tmp_path, '--fsdp=True')[1:]
    rendezvous = ('--nnodes=2', '--nproc_per_node=1', '--rdzv_backend=c10d', '--rdzv_id=7',
                  f'--rdzv_endpoint=localhost:{20000 + os.getpid() % 20000}')
    nodes = [subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', *rendezvous, *words],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert sum('2 processes x 4 x 1 accumulated = 8 chunks' in text for text in said) == 1
    assert same_losses(whole, tmp_path) == 20


# run by torchrun below: parts of tensors, the optimizer's and the average's included
PARTS = '''
import sys; sys.path.insert(0, '.')
import torch, torch.distributed as dist
import model, optim, parallel
from test_parallel import small
dist.init_process_group('gloo')
rank, n = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
whole = small()
with torch.device('meta'):
    net = small()
net = parallel.materialise(parallel.shard(net, 'cpu'), 'cpu')
parallel.fill(net, whole.state_dict() if rank == 0 else None)
assert torch.equal(net.vision.where, whole.vision.where)
back = parallel.gather(net.state_dict())
assert set(back) == (set() if rank else set(whole.state_dict()))
assert all(torch.equal(back[k], v) for k, v in whole.state_dict().items() if rank == 0)

# a step of Muon and AdamW, and of the average, against the same with whole tensors
averages = optim.EMA(net, 0.9), optim.EMA(whole, 0.9)
optimizers = [optim.configure_optimizers(x) for x in (net, whole)]
for _ in range(2):
    for (name, p), q in zip(net.named_parameters(), whole.parameters()):
        grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(len(name)))
        q.grad = torch.empty_like(q).copy_(grad)       # in the layout of q, which fused AdamW relies on
        p.grad = torch.distributed.tensor.distribute_tensor(grad, p.device_mesh, p.placements)
    norms = [parallel.whole(torch.nn.utils.clip_grad_norm_(x.parameters(), 1e9)) for x in (net, whole)]
    assert torch.allclose(*norms), norms
    for x, average, both in zip((net, whole), averages, optimizers):
        for optimizer in both:
            optimizer.step()
        average.update(x)
for (name, p), q in zip(net.named_parameters(), whole.parameters()):
    assert torch.allclose(parallel.whole(p), q, atol=2e-4), name
averages[0].swap(net)
averages[1].swap(whole)
for (name, p), q in zip(net.named_parameters(), whole.parameters()):
    assert torch.allclose(parallel.whole(p), q, atol=2e-4), name

held = sum(parallel.local(p).numel() for p in net.parameters())
kept = sum(parallel.local(v).numel() for o in optimizers[0] for s in o.state.values()
           for k, v in s.items() if k != 'step')
mean = sum(parallel.local(w).numel() for w in averages[0].weights)
total = whole.n_parameters
matrices = sum(p.numel() for p in optimizers[1][1].param_groups[0]['params'])
for size, of in ((held, total), (mean, total), (kept, 2 * total - matrices)):
    assert abs(size / of * n - 1) < 0.02, (size, of, n)
dist.destroy_process_group()
'''


def small():
    return model.VLA(model.VLAConfig(
        vocab_size=512, state_dim=9, action_dim=5, horizon=4, image_pad_id=1, state_pad_id=2, action_start_id=4,
        n_cameras=1, image_size=32, hidden_size=64, n_heads=2, n_kv_heads=2, head_dim=32, mrope_section=(4, 6, 6),
        intermediate_size=128, n_layers=3, tokens_per_camera=2))


@pytest.mark.parametrize('processes', [2, 4])
def test_each_rank_holds_its_part_of_weights_moments_and_average(tmp_path, processes):
    script = tmp_path / 'parts.py'
    script.write_text(PARTS)
    env = dict(os.environ, PYTHONPATH=f'{os.getcwd()}:{os.getcwd()}/tests')
    done = subprocess.run(torchrun(processes, script), env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('change', [
    {}, {'mlp': 'swiglu'}, {'n_kv_heads': 2}, {'mlp': 'gelu', 'n_layers': 8}])
def test_activations_are_estimated_to_within_a_third(change):
    """Against what autograd keeps, 32 samples at a time, in float32 as written out on CPUs."""
    sizes = dict(hidden_size=128, n_layers=6, n_heads=4, n_kv_heads=4, head_dim=32, mrope_section=(4, 6, 6),
                 intermediate_size=512)
    net, kept = model.VLA(test_model.config(**sizes | change)).train(), {}
    batch = test_model.make_batch(B=32, K=4)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = net(batch)
    tokens = batch['input_ids'].shape[1] + 4 * net.cfg.horizon
    parts = parallel.memory_gb(net, 'cpu', 0.9, 32, tokens, torch.float32)
    assert parts['weights'] == 4 * net.n_parameters / 1e9 and parts['optimizer'] == 2 * parts['weights']
    assert parts['activations'] == pytest.approx(sum(kept.values()) / 1e9, rel=1 / 3)
