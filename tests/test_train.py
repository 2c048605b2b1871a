"""
Protects training: exact resume, the same numbers for any number of processes, self-sufficient checkpoints.

python -m pytest tests/test_train.py
"""
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import checkpoint
import data
import launch
import layers
import model
import train
from processor import Processor

TINY = ('--n_layers=1', '--image_size=16', '--cameras=overhead,', '--tokens_per_camera=2', '--max_steps=24',
        '--batch_size=8', '--log_interval=4', '--eval_interval=12', '--eval_batches=1',
        '--checkpoint_interval=5', '--dtype=float32')
SHORT = ('--max_steps=6', '--muon_learning_rate=0')


@pytest.fixture(scope='module')
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('episodes')
    data.write_synthetic_episodes(folder, 12, ('overhead',), 16)
    return folder


def command(episodes, out, *words):
    return ('train.py', 'config/debug.py', *TINY, f'--episodes={episodes}', f'--out_dir={out}', *words)


def read_log(folder):
    """The finished lines of a run's log."""
    lines = (folder / 'log.jsonl').read_text().splitlines(True)
    return [json.loads(line) for line in lines if line.endswith('\n')]


def run(*args, **kwargs):
    return launch.run(*command(*args), **kwargs)


def user_runs(*args, **kwargs):
    """As typed, in an interpreter of its own."""
    done = subprocess.run([sys.executable, *command(*args)], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for_step(process, log, step):
    while process.poll() is None:
        if log.exists() and any(line['step'] >= step for line in read_log(log.parent)):
            return
        time.sleep(0.005)
    raise AssertionError(f'ended before step {step}: {process.communicate()[0]}')


def same(a, b, tolerance=0.0):
    """Both weight files of two runs agree."""
    for name in ('model', 'ema'):
        x, y = load_file(a / f'{name}.safetensors'), load_file(b / f'{name}.safetensors')
        assert x.keys() == y.keys()
        for k in x:
            assert (x[k] - y[k]).abs().max() <= tolerance, (name, k, float((x[k] - y[k]).abs().max()))
    return True


@pytest.fixture(scope='module')
def whole(episodes, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp('whole')
    return out, user_runs(episodes, out)


def test_rate_warms_up_then_falls_to_its_end():
    rates = [train.get_lr(step, 1000, 100, 0.02) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01, rel=0.01)
    assert max(rates) == pytest.approx(rates[99], abs=0.01) and rates[99] > 0.95
    assert rates[1000] == pytest.approx(0.02) and all(a > b for a, b in zip(rates[100:], rates[101:]))


def test_a_run_writes_a_checkpoint_that_suffices_by_itself(whole, episodes):
    out, said = whole
    assert f'next: python sim_rollout.py --ckpt={out}' in said and (out / 'loss.png').stat().st_size > 10_000
    net, meta = model.VLA.load(out)
    processor = Processor.from_dict(meta['processor'])
    assert (meta['step'], meta['settings']['batch_size'], processor.control_hz) == (24, 8, 10)
    dataset = data.Dataset(episodes, processor)
    obs = dataset.row(0)
    chunk = net.act(processor.encode([obs]))
    actions = processor.decode_actions(chunk.numpy(), obs['tool_command'][None])
    assert actions.shape == (1, 8, 15) and abs(actions[0, 0] - obs['tool_command']).max() < 0.2
    best = min(read_log(out), key=lambda line: line.get('val_loss', math.inf))
    assert model.VLA.load(out / 'best')[1]['step'] == best['step']
    files = {p.name for p in out.rglob('*') if p.is_file() and not p.name.endswith('.png')}
    # holds no code
    assert {os.path.splitext(name)[1] for name in files} == {'.safetensors', '.json', '.jsonl'}
    facts = checkpoint.read_facts(out)
    assert facts['step'] == 24 and os.listdir(out / 'state') == [facts['folder']]
    assert f'{sum(p.stat().st_size for p in (out / "state").rglob("*.*")) / 1e6:.0f} MB to go on,' in said


def test_the_log_has_one_line_per_interval_and_held_out_scores(whole):
    lines = read_log(whole[0])
    assert [line['step'] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert all(math.isfinite(line['loss']) for line in lines) and lines[-1]['loss'] < lines[0]['loss']
    assert [line['step'] for line in lines if 'val_position_mm' in line] == [12, 24]
    assert lines[-1]['val_position_mm'] < 60


def test_a_killed_run_goes_on_to_bit_equal_weights(whole, episodes, tmp_path):
    """kill -9 at a moment nobody chose, twice; checkpoints every 5 steps, an epoch border on the way."""
    for step in (8, 16):
        process = launch.Script(*command(episodes, tmp_path))
        wait_for_step(process, tmp_path / 'log.jsonl', step)
        time.sleep(time.time() % 0.05)
        process.kill()
        process.communicate()
        assert not (tmp_path / 'loss.png').exists()
    said = run(episodes, tmp_path)
    assert 'starting at step ' in said and same(whole[0], tmp_path)
    logs = [read_log(folder) for folder in (whole[0], tmp_path)]
    steps = [line['step'] for line in logs[1]]
    assert steps == sorted(set(steps)) and logs[0][-1]['val_loss'] == logs[1][-1]['val_loss']


@pytest.mark.parametrize('number, words', [(signal.SIGTERM, 'stopped at step '),
                                           (signal.SIGUSR1, 'requeue: stopped at step ')])
def test_a_signal_finishes_the_step_saves_and_leaves_in_peace(whole, episodes, tmp_path, number, words):
    """SIGUSR1 comes before SLURM's time limit, slurm/train.sh looks for the line; SIGTERM from scancel."""
    process = launch.Script(*command(episodes, tmp_path, '--checkpoint_interval=1000'))
    wait_for_step(process, tmp_path / 'log.jsonl', 4)
    process.send_signal(number)
    said = process.communicate()[0]
    assert process.returncode == 0 and said.splitlines()[-1].startswith(words)
    assert 'the same command goes on from here' in said
    said = run(episodes, tmp_path, '--keep=1')
    assert 'starting at step ' in said and same(whole[0], tmp_path)
    assert "going on with other settings: checkpoint_interval 1000 -> 5, keep 0 -> 1" in said
    kept, = tmp_path.glob('step_*')
    assert kept.name == 'step_000000024' and (kept / 'ema.safetensors').samefile(tmp_path / 'ema.safetensors')


def test_a_dry_run_says_what_is_needed_draws_a_batch_and_changes_nothing(episodes, tmp_path):
    said = run(episodes, tmp_path, '--dry_run=True', '--accumulate=2', '--fsdp=True', processes=2)
    assert '2 processes x 2 x 2 accumulated = 8 chunks per step' in said
    per_process = re.search(r'([\d.]+) M parameters, ([\d.]+) M of them per process', said)
    assert float(per_process[2]) == pytest.approx(float(per_process[1]) / 2, rel=0.02)
    assert 'memory per process, estimated: ' in said and 'starting' not in said
    assert [p.name for p in tmp_path.iterdir()] == ['batch.png']


def test_an_offline_wandb_run_is_gone_on_with_under_its_id(episodes, tmp_path):
    pytest.importorskip('wandb')
    env = dict(os.environ, WANDB_MODE='offline', SLURM_JOB_ID='12', WANDB_SILENT='true',
               WANDB_DATA_DIR=str(tmp_path / 'staged'))
    ids = []
    for minutes in (1e-6, 0):      # the first run stops after one step
        user_runs(episodes, tmp_path, '--max_steps=2', '--wandb_project=test', f'--max_minutes={minutes}',
                  '--wandb_artifacts=True', env=env)
        ids.append(checkpoint.read_facts(tmp_path)['wandb_id'])
    assert ids[0] and ids[0] == ids[1]
    assert len(list(tmp_path.glob(f'wandb/offline-run-*-{ids[0]}'))) == 2
    staged = [p.read_bytes() for p in tmp_path.glob('staged/**/*') if p.is_file()]
    assert (tmp_path / 'model.safetensors').read_bytes() in staged      # what `wandb sync` sends


def test_a_finished_or_different_run_is_not_continued(whole, episodes, tmp_path):
    out = whole[0]
    assert 'is finished at step 24' in run(episodes, out)
    said = run(episodes, out, '--learning_rate=0.1', fails=True)
    assert 'learning_rate 0.002 -> 0.1' in said and '--resume=never' in said


@pytest.fixture(scope='module')
def short(episodes, tmp_path_factory):
    """A short run of one process without Muon, which rounds to bfloat16 and so enlarges rounding errors."""
    out = tmp_path_factory.mktemp('short')
    run(episodes, out, *SHORT)
    return out


def test_gradient_accumulation_changes_nothing_but_rounding(short, episodes, tmp_path):
    run(episodes, tmp_path, *SHORT, '--accumulate=4')
    assert same(short, tmp_path, 1e-5)


def test_a_new_run_can_start_from_the_weights_of_another(whole, episodes, tmp_path):
    run(episodes, tmp_path, *SHORT, f'--init_from={whole[0]}')
    first, fresh = [read_log(out)[0] for out in (tmp_path, whole[0])]
    assert first['loss'] < 0.9 * fresh['loss']


@pytest.mark.mujoco
@pytest.mark.slow
def test_a_run_scores_itself_in_closed_loop(tmp_path):
    launch.run('sim_rollout.py', 'config/demo_collect.py', '--episodes=4', '--image_size=16',
               f'--record={tmp_path}/e')
    said = run(tmp_path / 'e', tmp_path / 'run', '--cameras=overhead,left/wrist,right/wrist', '--max_steps=4',
               '--val_fraction=0', '--rollout_interval=2', '--rollout_episodes=2', '--state_slots=*',
               '--horizon=4', '--action_slots=*/tool_[xyz],*/tool_rz,*/gripper')
    assert 'closed loop at 2:  ' in said and 'closed loop at 4:  ' in said
    assert [line['success'] for line in read_log(tmp_path / 'run')][-1] in (0, 0.5, 1)
    assert len(list((tmp_path / 'run/rollout/4').glob('*.mp4'))) > 0


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_agree_under_muon_and_resume_exactly(whole, episodes, tmp_path):
    run(episodes, tmp_path / 'two', processes=2)
    last = [read_log(folder)[-1] for folder in (whole[0], tmp_path / 'two')]
    assert last[0]['loss'] == pytest.approx(last[1]['loss'], rel=0.02)
    process = launch.Script(*command(episodes, tmp_path / 'cut'), processes=2)
    wait_for_step(process, tmp_path / 'cut' / 'log.jsonl', 8)
    process.send_signal(signal.SIGTERM)      # all ranks leave after the same step
    process.communicate()
    run(episodes, tmp_path / 'cut', processes=2)
    assert same(tmp_path / 'two', tmp_path / 'cut')


def test_bfloat16_is_chosen_only_where_the_hardware_has_it():
    has = torch.cpu.get_capabilities()
    fast = has.get('avx512_bf16') or has.get('amx_bf16')
    assert layers.autocast_for('cpu').fast_dtype == (torch.bfloat16 if fast else torch.float32)
    with layers.autocast_for('cpu', 'float32'):
        assert not torch.is_autocast_enabled('cpu')
    with pytest.raises(ValueError, match='float16'):
        layers.autocast_for('cpu', 'float16')
