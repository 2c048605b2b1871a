"""Runs the slurm scripts with a srun and a scontrol that only print: what would each node be asked to do?

    python -m pytest tests/test_slurm.py
"""
import os
import pathlib
import subprocess

import pytest

SLURM = pathlib.Path('slurm').resolve()

@pytest.fixture
def submit(tmp_path):
    """-> submit(script, *arguments, **variables) -> the srun line."""
    stubs = {'bin/srun': 'echo "$@"', 'bin/scontrol': 'seq -f node%g 7 20000', '.venv/bin/activate': ''}
    for name, body in stubs.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'#!/bin/bash\n{body}\n')
        file.chmod(0o755)

    def submit(script, *arguments, **variables):
        env = dict(os.environ, PATH=f'{tmp_path}/bin:{os.environ["PATH"]}', SLURM_SUBMIT_DIR=str(tmp_path),
                   SLURM_JOB_NODELIST='node[7-20000]', SLURM_JOB_ID='1234567', SLURM_NNODES='2',
                   SLURM_CPUS_PER_TASK='16', SLURM_ARRAY_TASK_ID='3', **variables)
        run = subprocess.run(['bash', SLURM / script, *arguments], env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()
    return submit

def test_train_meets_on_the_head_node_with_one_process_per_gpu(submit):
    rendezvous = '--rdzv_id=1234567 --rdzv_backend=c10d --rdzv_endpoint=node7:34567'
    assert submit('train.sh', 'config/join.py', '--batch_size=512', SLURM_GPUS_ON_NODE='8') == \
        f'torchrun --nnodes=2 --nproc_per_node=8 {rendezvous} train.py config/join.py --batch_size=512'
    assert submit('train.sh', 'config/demo.py') == \
        f'torchrun --nnodes=2 --nproc_per_node=1 {rendezvous} train.py config/demo.py'

def test_collect_tasks_take_neighbouring_seeds(submit):
    assert submit('collect.sh', 'config/join_collect.py') == \
        'python sim_rollout.py config/join_collect.py --seeds=750:1000 --workers=16'
    assert submit('collect.sh', 'config/join_collect.py', SEEDS='10') == \
        'python sim_rollout.py config/join_collect.py --seeds=30:40 --workers=16'

def test_eval_passes_its_arguments_on(submit):
    assert submit('eval.sh', '--ckpt=out/join', '--episodes=100') == \
        'python sim_rollout.py --ckpt=out/join --episodes=100 --workers=16'
