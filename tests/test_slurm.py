"""Runs the slurm scripts under a srun and a scontrol that stand in for SLURM's: what is each node asked to
do, and does a job that is preempted come back and finish? train.py is the real one, on two CPU ranks.

    python -m pytest tests/test_slurm.py
"""
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

import data

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRINT = 'echo "$@"'
RUN = 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"'      # without srun's own options


@pytest.fixture
def cluster(tmp_path):
    """-> cluster(script, *arguments, srun=, **variables) -> Popen of the script, as sbatch would start it."""
    def start(script, *arguments, srun=PRINT, **variables):
        stubs = {'bin/srun': srun, 'bin/module': f'echo "$@" > {tmp_path}/modules',
                 'bin/scontrol': 'if [ $1 = show ]; then echo "${HEAD:-node7}"; '
                                 f'else echo "$@" >> {tmp_path}/scontrol; fi',
                 'venv/bin/activate': f'PATH={pathlib.Path(sys.executable).parent}:$PATH'}
        for name, body in stubs.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f'#!/bin/bash\n{body}\n')
            file.chmod(0o755)
        env = dict(os.environ, PATH=f'{tmp_path}/bin:{os.environ["PATH"]}', VENV=f'{tmp_path}/venv',
                   SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_NODELIST='node[7-8]', SLURM_JOB_ID='1234567',
                   SLURM_NNODES='2', SLURM_CPUS_PER_TASK='16', SLURM_ARRAY_TASK_ID='3')
        return subprocess.Popen(['bash', ROOT / 'slurm' / script, *map(str, arguments)], env=env | variables,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return start


def said(process):
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    return out.strip()


RENDEZVOUS = ('--rdzv_id=1234567.0 --rdzv_backend=c10d --rdzv_endpoint=node7:34567 '
              '--signals-to-handle=SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout=280')


@pytest.mark.parametrize('script, words, variables, command', [
    ('train.sh', 'config/join.py --batch_size=512', {'SLURM_GPUS_ON_NODE': '8'},
     '--kill-on-bad-exit=1 torchrun '
     f'--nnodes=2 --nproc_per_node=8 {RENDEZVOUS} train.py config/join.py --batch_size=512'),
    ('train.sh', 'config/demo.py', {'SLURM_RESTART_COUNT': '0'}, '--kill-on-bad-exit=1 torchrun '
     f'--nnodes=2 --nproc_per_node=1 {RENDEZVOUS} train.py config/demo.py'),
    ('smoke_8gpu.sh', '--max_steps=9', {'SLURM_GPUS_ON_NODE': '8'}, '--kill-on-bad-exit=1 torchrun '
     f'--nnodes=2 --nproc_per_node=8 {RENDEZVOUS} train.py config/debug.py --fsdp=True --recompute=True '
     '--out_dir=out/smoke_8gpu --max_steps=9'),
    ('smoke_1gpu.sh', '', {}, 'python train.py config/debug.py --resume=never --out_dir=out/smoke_1gpu'),
    ('smoke_sim.sh', '', {}, 'python sim_rollout.py --task=place --episodes=2 --video=1 --out=out/smoke_sim'),
    # tasks of an array take neighbouring seeds
    ('collect.sh', 'config/join_collect.py', {},
     'python sim_rollout.py config/join_collect.py --seeds=750:1000 --workers=16'),
    ('collect.sh', 'config/join_collect.py', {'SEEDS': '10'},
     'python sim_rollout.py config/join_collect.py --seeds=30:40 --workers=16'),
    ('eval.sh', '--ckpt=out/join --episodes=100', {},
     'python sim_rollout.py --ckpt=out/join --episodes=100 --workers=16'),
    ('eval.sh', '--ckpt=out/join', {'VLA_IMAGE': 'a.sif'},
     f'apptainer exec --nv --bind {ROOT},{ROOT} --pwd {ROOT} a.sif '
     'python sim_rollout.py --ckpt=out/join --workers=16')])
def test_each_script_asks_for_its_command(cluster, script, words, variables, command):
    assert said(cluster(script, *words.split(), **variables)) == command


def test_modules_and_folders_come_from_the_environment(cluster, tmp_path):
    """The variables are those of .env.example."""
    names = re.findall(r'^#(\w+)=', (ROOT / '.env.example').read_text(), re.M)
    for name in ('VLA_SCRATCH_ROOT', 'MODULES', 'VLA_IMAGE', 'WANDB_MODE'):
        assert name in names
    (tmp_path / 'slurm').symlink_to(ROOT / 'slurm')
    scratch = tmp_path / 'scratch'
    show = 'echo $HF_HOME $HF_HUB_OFFLINE $WANDB_MODE'
    out = said(cluster('eval.sh', srun=show, SLURM_SUBMIT_DIR=str(tmp_path), VLA_SCRATCH_ROOT=str(scratch),
                       MODULES='python/3.11 cuda/12'))
    assert out == f'{scratch}/huggingface 1 offline'
    assert (tmp_path / 'modules').read_text() == 'load python/3.11 cuda/12\n'
    assert (tmp_path / 'out').resolve() == scratch / 'out' and (scratch / 'episodes').is_dir()


@pytest.mark.dist
def test_a_job_that_is_preempted_is_queued_again_and_finishes(cluster, tmp_path):
    """srun runs what it is given: torchrun with 2 ranks. SLURM's warning reaches torchrun, not this shell."""
    data.write_synthetic_episodes(tmp_path / 'episodes', 12, ('overhead',), 16)
    job = ('train.sh', 'config/debug.py', '--n_layers=1', '--image_size=16', '--cameras=overhead,',
           '--tokens_per_camera=2', '--batch_size=8', '--log_interval=1', '--max_steps=40', '--fsdp=True',
           f'--episodes={tmp_path}/episodes', f'--out_dir={tmp_path}/run')
    where = dict(srun=f'echo $$ > {tmp_path}/pid\n{RUN}', HEAD='localhost', SLURM_NNODES='1', RANKS='2',
                 SLURM_CPUS_PER_TASK='2')
    process = cluster(*job, **where)
    for line in process.stdout:
        if line.startswith('step      3'):
            break
    os.kill(int((tmp_path / 'pid').read_text()), signal.SIGUSR1)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0, out
    step = int(re.search(r'^requeue: stopped at step (\d+), saved', out, re.M)[1])
    assert (tmp_path / 'scontrol').read_text() == 'requeue 1234567\n' and step < 40
    out = said(cluster(*job, **where | dict(RANKS='1', SLURM_RESTART_COUNT='1')))      # on a smaller node
    assert f'starting at step {step}' in out and 'next: python' in out
    assert (tmp_path / 'scontrol').read_text() == 'requeue 1234567\n'      # not once more


@pytest.mark.dist
def test_a_job_that_fails_says_why_and_is_not_queued_again(cluster, tmp_path):
    where = dict(srun=RUN, HEAD='localhost', SLURM_NNODES='1', RANKS='1', SLURM_CPUS_PER_TASK='1')
    process = cluster('train.sh', 'config/debug.py', f'--episodes={tmp_path}/none', '--synthetic=0', **where)
    out = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and 'none' in out and not (tmp_path / 'scontrol').exists()
