"""Protects training on several processes: DDP, FSDP and one process learn the same, and each rank
of FSDP holds its part only; what a rank that dies, a second node, or another number of ranks does
to a run. Where torchrun would do nothing but start processes, launch.py does so.

python -m pytest tests/test_parallel.py
"""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time

import launch
import pytest
import test_model
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import model
from episode import write_synthetic_episodes
from vla import layers, optim, parallel

pytestmark = pytest.mark.dist
STEPS = 20
# no Muon: it rounds to bfloat16, and so makes a rounding error anywhere a thousand times as large
SETTINGS = (
    'config/debug.py',
    '--n_layers=2',
    '--image_size=16',
    '--cameras=overhead,',
    '--tokens_per_camera=2',
    '--batch_size=8',
    f'--max_steps={STEPS}',
    '--log_interval=1',
    '--eval_interval=7',
    '--eval_batches=1',
    '--val_fraction=0.2',
    '--checkpoint_interval=100',
    '--dtype=float32',
    '--muon_learning_rate=0',
    '--learning_rate=5e-4',
    '--ema=0.9',
    '--question_share=0.3',
)


@pytest.fixture(scope='module')
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('episodes')
    write_synthetic_episodes(folder, 12, ('overhead',), 16)
    return folder


def command(episodes, out, *words):
    return ('train.py', *SETTINGS, f'--episodes={episodes}', f'--out_dir={out}', *words)


def torchrun(episodes, out, *words, launcher=('--standalone', '--nproc_per_node=2'), **kwargs):
    words = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        *launcher,
        *command(episodes, out, *words),
    ]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, **kwargs)


def run(episodes, out, *words, **kwargs):
    return launch.run(*command(episodes, out, *words), **kwargs)


def read_log(folder):
    return [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]


def same_losses(a, b, tolerance=1e-5):
    """Training and held-out losses of two runs agree step for step. -> how many steps were
    compared"""
    a, b = ({line['step']: line for line in read_log(folder)} for folder in (a, b))
    for step in b:
        for key in ('loss', 'flow', 'text', 'scene', 'words', 'val_loss', 'val_flow'):
            assert a[step].get(key) == pytest.approx(b[step].get(key), abs=tolerance), (step, key)
    return len(b)


def same_run(whole, out, said, processes, sharded):
    """What several processes have learnt, said and written is what one would have."""
    assert said.count('next: python') == 1  # one process speaks
    assert same_losses(whole, out) == STEPS
    per_process = re.search(r'([\d.]+) M parameters(?:, ([\d.]+) M of them per process)?', said)
    if sharded:
        assert float(per_process[2]) == pytest.approx(float(per_process[1]) / processes, rel=0.02)
    # The file that is written has the whole model, in the shapes of one process's
    ours, theirs = (load_file(folder / 'ema.safetensors') for folder in (out, whole))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert max((ours[k] - theirs[k]).abs().max() for k in theirs) < 1e-3
    model.VLA.load(out / 'best')


@pytest.fixture(scope='module')
def whole(episodes, tmp_path_factory):
    """A run of one process."""
    out = tmp_path_factory.mktemp('whole')
    run(episodes, out)
    return out


# processes, other settings; FSDP on two of them is below, as two nodes. Accumulation, and the
# mixture of both, are the same batch as well
@pytest.mark.parametrize(
    'processes, words',
    [
        (2, ()),
        (4, ()),
        (4, ('--fsdp=True', '--recompute=True')),
        (2, ('--fsdp=True', '--accumulate=2', '--offload=True')),
    ],
)
def test_many_processes_learn_what_one_learns(whole, episodes, tmp_path, processes, words):
    said = run(episodes, tmp_path, *words, processes=processes)
    same_run(whole, tmp_path, said, processes, '--fsdp=True' in words)


def test_two_nodes_meet_by_rendezvous_and_learn_what_one_process_learns(whole, episodes, tmp_path):
    """Two launchers on this machine, as on two nodes: they share nothing but the name of the first
    one."""
    rendezvous = (
        '--nnodes=2',
        '--nproc_per_node=1',
        '--rdzv_backend=c10d',
        '--rdzv_id=7',
        f'--rdzv_endpoint=localhost:{launch.free_port()}',
    )
    nodes = [
        torchrun(episodes, tmp_path, '--fsdp=True', launcher=rendezvous, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert sum('2 processes x 4 x 1 accumulated = 8 chunks' in text for text in said) == 1
    same_run(whole, tmp_path, ''.join(said), 2, True)


def test_a_run_that_torchrun_ends_goes_on_with_one_process(whole, episodes, tmp_path):
    """torchrun passes SIGTERM on, all ranks leave after the same step."""
    process = torchrun(episodes, tmp_path, '--fsdp=True')
    goes_on(whole, episodes, tmp_path, process, 2, (1, '--fsdp=False'))


@pytest.mark.parametrize(
    'before, after',
    [((1, '--fsdp=False'), (2, '--fsdp=True')), ((2, '--fsdp=False'), (4, '--fsdp=True'))],
)
def test_a_run_goes_on_with_more_processes(whole, episodes, tmp_path, before, after):
    process = launch.Script(*command(episodes, tmp_path, before[1]), processes=before[0])
    goes_on(whole, episodes, tmp_path, process, before[0], after)


def late(words, folder):
    """train.py; ranks but the first look for a folder so late that the first has made it
    meanwhile."""
    isdir = os.path.isdir

    def look(path):
        while os.environ['RANK'] != '0' and str(path) == folder and not isdir(path):
            time.sleep(0.01)
        return isdir(path)

    os.path.isdir, sys.argv = look, list(words)
    runpy.run_path(words[0], run_name='__main__')


def test_ranks_that_find_made_up_episodes_made_wait_like_the_others(tmp_path):
    words = command(
        f'{tmp_path}/e',
        tmp_path / 'run',
        '--synthetic=12',
        '--max_steps=1',
        '--timeout_minutes=0.2',
    )
    launch.run(late, words, f'{tmp_path}/e', processes=2)
    assert read_log(tmp_path / 'run')[-1]['step'] == 1


def test_closed_loop_scores_are_refused_to_several_processes(episodes, tmp_path):
    said = run(episodes, tmp_path, '--rollout_interval=2', processes=2, fails=True)
    assert 'rollout_interval 2: 2 processes would wait for one simulator' in said


def test_bfloat16_is_as_close_in_parts_as_in_copies(episodes, tmp_path):
    words = ('--dtype=bfloat16', '--max_steps=8')
    for name, sharded in (('copies', False), ('parts', True)):
        said = run(episodes, tmp_path / name, *words, f'--fsdp={sharded}', processes=2)
        assert 'torch.bfloat16 on ' in said
    assert same_losses(tmp_path / 'copies', tmp_path / 'parts', 0.01) == 8


def goes_on(whole, episodes, out, process, before, after):
    for line in process.stdout:
        if line.startswith('step ') and int(line.split()[1].split('/')[0]) >= 4:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate()
    said = run(episodes, out, after[1], processes=after[0])
    start = int(re.search(r'starting at step (\d+)', said)[1])
    assert 4 <= start < STEPS and f'processes {before} -> {after[0]}' in said
    assert same_losses(whole, out) == STEPS


def test_fsdp_goes_on_bit_for_bit_under_muon_after_kill_9(episodes, tmp_path):
    words = (
        '--fsdp=True',
        '--muon_learning_rate=0.02',
        '--checkpoint_interval=6',
        '--max_steps=12',
        '--log_interval=4',
    )  # the line of step 8 tells of steps before and after the kill
    run(episodes, tmp_path / 'whole', *words, processes=2)
    process = launch.Script(*command(episodes, tmp_path / 'cut', *words), processes=2)
    for line in process.stdout:
        if line.startswith('step      8'):
            break
    process.kill()
    process.communicate()
    assert 'starting at step 6' in run(episodes, tmp_path / 'cut', *words, processes=2)
    for name in ('model', 'ema'):
        a, b = (load_file(tmp_path / run / f'{name}.safetensors') for run in ('whole', 'cut'))
        assert all(torch.equal(a[k], b[k]) for k in a)
    kept = [
        [
            {k: line[k] for k in ('step', 'loss', 'flow', 'text', 'grad_norm') if k in line}
            for line in read_log(tmp_path / run)
        ]
        for run in ('whole', 'cut')
    ]
    assert kept[0] == kept[1]


def kill_rank_1(process, out):
    workers = subprocess.run(
        ['ps', '-o', 'pid=', '--ppid', str(process.pid)], capture_output=True, text=True
    )
    os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)


def trip_rank_0(process, out):
    """Its next line goes to a folder, all at once."""
    (out / 'trap').symlink_to(out)
    os.replace(out / 'trap', out / 'log.jsonl')


@pytest.mark.parametrize(
    'sharded, strike, error',
    [(False, kill_rank_1, 'Signal 9 (SIGKILL)'), (True, trip_rank_0, 'IsADirectoryError')],
)
def test_a_rank_that_dies_ends_the_job_with_its_error(episodes, tmp_path, sharded, strike, error):
    process = torchrun(
        episodes, tmp_path, '--max_steps=100000', f'--fsdp={sharded}', stderr=subprocess.PIPE
    )
    for line in process.stdout:
        if line.startswith('step'):
            break
    strike(process, tmp_path)
    began = time.monotonic()
    errors = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and error in errors and time.monotonic() - began < 60


def test_a_rank_that_hangs_ends_the_others(episodes, tmp_path):
    process = launch.Script(
        *command(episodes, tmp_path, '--max_steps=100000', '--timeout_minutes=0.15'), processes=2
    )
    for line in process.stdout:
        if line.startswith('step'):
            break
    os.kill(process.ranks[1].pid, signal.SIGSTOP)
    process.ranks[0].join(60)
    code = process.ranks[0].exitcode
    process.kill()
    assert code == 1, process.communicate()[0]


def small():
    return model.VLA(
        model.VLAConfig(
            vocab_size=512,
            state_dim=9,
            action_dim=5,
            horizon=4,
            image_pad_id=1,
            state_pad_id=2,
            action_start_id=4,
            n_cameras=1,
            image_size=32,
            hidden_size=64,
            n_heads=2,
            n_kv_heads=2,
            head_dim=32,
            mrope_section=(4, 6, 6),
            intermediate_size=128,
            n_layers=3,
            tokens_per_camera=2,
        )
    )


def check_parts():
    """On each rank: parts of tensors, the optimizer's and the average's included."""
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
            q.grad = torch.empty_like(q).copy_(
                grad
            )  # in the layout of q, which fused AdamW relies on
            p.grad = torch.distributed.tensor.distribute_tensor(grad, p.device_mesh, p.placements)
        norms = [
            parallel.whole(torch.nn.utils.clip_grad_norm_(x.parameters(), 1e9))
            for x in (net, whole)
        ]
        assert torch.allclose(*norms), norms
        for optimizer in optimizers[0]:
            optim.step_on_device(optimizer, torch.tensor(True))
        for optimizer in optimizers[1]:
            optimizer.step()
        for x, average in zip((net, whole), averages):
            average.update(x)
    for (name, p), q in zip(net.named_parameters(), whole.parameters()):
        assert torch.allclose(parallel.whole(p), q, atol=2e-4), name
    averages[0].swap(net)
    averages[1].swap(whole)
    for (name, p), q in zip(net.named_parameters(), whole.parameters()):
        assert torch.allclose(parallel.whole(p), q, atol=2e-4), name

    # a bad step changes nothing on any rank, and nobody has asked what it is
    kept_of = [state for o in optimizers[0] for state in o.state.values()]
    held = [*net.parameters(), *(v for state in kept_of for v in state.values())]
    before = [optim.local(tensor).clone() for tensor in held]
    for p in net.parameters():
        optim.local(p.grad).fill_(torch.nan)
    for optimizer in optimizers[0]:
        optim.step_on_device(optimizer, torch.tensor(False))
    assert all(torch.equal(optim.local(tensor), old) for tensor, old in zip(held, before))

    # Each has counted for itself, and all have to know the sum.
    each = parallel.of_each({'a': torch.tensor(0.1 + rank), 'b': rank})
    assert [values['b'] for values in each] == list(range(n))
    assert parallel.average({'b': rank})['b'] == (n - 1) / 2
    assert parallel.own(each) == each[rank] and parallel.own(each[:1]) == each[0]
    assert parallel.own([*each, *each])['b'] == (n - 1) / 2
    assert parallel.all_finite([*net.parameters(), 1.0])
    for bad in (torch.nan, torch.inf):
        assert not parallel.all_finite([torch.tensor(bad if rank == n - 1 else 0.0)])

    (parts,) = parallel.memory_gb(net, 'cpu', 0.9, 1, 9, torch.float32).values()
    places = parallel.memory_gb(net, 'cpu', 0.9, 1, 9, torch.float32, offload=True)
    assert places['main memory'].keys() == {'weights', 'gradients', 'optimizer', 'average'}
    assert places['memory'] | places['main memory'] == parts

    held = sum(optim.local(p).numel() for p in net.parameters())
    kept = sum(
        optim.local(v).numel()
        for o in optimizers[0]
        for s in o.state.values()
        for k, v in s.items()
        if k != 'step'
    )
    mean = sum(optim.local(w).numel() for w in averages[0].weights)
    total = whole.n_parameters
    matrices = sum(p.numel() for p in optimizers[1][1].param_groups[0]['params'])
    for size, of in ((held, total), (mean, total), (kept, 2 * total - matrices)):
        assert abs(size / of * n - 1) < 0.02, (size, of, n)
    dist.destroy_process_group()


def check_compiled():
    """On each rank: blocks that are compiled first and cut into parts then."""
    dist.init_process_group('gloo')
    torch.manual_seed(0)
    whole = test_model.network(n_layers=2)
    batch = test_model.make_batch()
    expected, _ = whole(batch)
    expected.backward()

    def compile_here(net):  # the same cut, without Inductor's minutes
        for block in net.decoder.blocks:
            block.compile(backend='aot_eager', dynamic=False)

    parallel.compile_blocks = compile_here
    net = parallel.build(whole.cfg, lambda: whole, 'cpu', sharded=True, compiled=True)
    loss, _ = net(batch)
    loss.backward()
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0
    assert torch.allclose(loss, expected, atol=1e-5)
    for (name, p), q in zip(net.named_parameters(), whole.parameters()):
        assert torch.allclose(parallel.whole(p.grad), q.grad, atol=1e-4), name
    dist.destroy_process_group()


@pytest.mark.slow  # It compiles in two processes.
def test_compiled_blocks_can_be_cut_into_parts():
    launch.run(check_compiled, processes=2)


@pytest.mark.parametrize('processes', [2, 4])
def test_each_rank_holds_its_part_of_weights_moments_and_average(processes):
    launch.run(check_parts, processes=processes)


@pytest.mark.parametrize(
    'change', [{}, {'mlp': 'swiglu'}, {'n_kv_heads': 2}, {'mlp': 'gelu', 'n_layers': 8}]
)
def test_activations_are_estimated_to_within_a_third(change):
    """Against what autograd keeps, 32 samples at a time, in float32 as written out on CPUs."""
    sizes = dict(
        hidden_size=128,
        n_layers=6,
        n_heads=4,
        n_kv_heads=4,
        head_dim=32,
        mrope_section=(4, 6, 6),
        intermediate_size=512,
    )
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
    (parts,) = parallel.memory_gb(net, 'cpu', 0.9, 32, tokens, torch.float32).values()
    assert (
        parts['weights'] == 4 * net.n_parameters / 1e9
        and parts['optimizer'] == 2 * parts['weights']
    )
    assert parts['activations'] == pytest.approx(sum(kept.values()) / 1e9, rel=1 / 3)


@pytest.mark.parametrize(
    'environment', [dict(SLURM_JOB_GPUS='0'), dict(SLURM_GPUS_ON_NODE='8')], ids=str
)
def test_cpus_are_refused_where_the_job_has_gpus(environment, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    ((name, value),) = environment.items()
    with pytest.raises(ValueError, match=f'{name}={value}.*make setup TORCH=cuda.*--device=cpu'):
        layers.choose_device(None, environment)
    assert layers.choose_device('cpu', environment) == 'cpu'
    none = dict(SLURM_GPUS_ON_NODE='0', SLURM_JOB_GPUS='')
    assert layers.choose_device('auto', none) == 'cpu'
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert layers.choose_device(None, environment) == 'cuda'
