"""Runs the slurm scripts under commands that stand in for SLURM's: what is each node asked to do,
and does a job that is preempted come back and finish? train.py and sim_rollout.py are the real
ones, on CPU.

    python -m pytest tests/test_slurm.py
"""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from episode import write_synthetic_episodes

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRINT = 'echo "$@"'
RUN = 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"'  # without srun's own options
OTHERS = ('make', 'apptainer', 'docker', 'nvidia-smi')
# `show job` has these two lines in SLURM 22.05's; THEN: the state once a requeue was asked for
SCONTROL = """case "$1 $2" in
'show job') [ ! -e {0}/scontrol ] || STATE=${{THEN:-}}
            echo "   JobState=${{STATE:-RUNNING}} Reason=None Dependency=(null)"
            echo "   PreemptEligibleTime=2026-01-02T03:04:05 PreemptTime=${{PREEMPTED:-None}}" ;;
'show hostnames') echo "${{HEAD:-node7}}" ;;
*) echo "$@" >> {0}/scontrol; exit "${{REQUEUE:-0}}" ;;
esac"""


@pytest.fixture
def cluster(tmp_path):
    """-> cluster(script, *arguments, srun=, **variables) -> Popen of the script, as sbatch would
    start it."""

    def start(script, *arguments, srun=PRINT, cwd=ROOT, **variables):
        stubs = {
            'bin/srun': srun,
            'bin/module': f'echo "$@" > {tmp_path}/modules',
            'bin/scontrol': SCONTROL.format(tmp_path),
            'bin/sbatch': f'echo "$@"${{SLURM_MEM_PER_CPU:-}} >> {tmp_path}/sbatch',
            **{f'bin/{name}': f'echo {name} "$@"' for name in OTHERS},
            'venv/bin/activate': f'PATH={pathlib.Path(sys.executable).parent}:$PATH',
        }
        for name, body in stubs.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f'#!/bin/bash\n{body}\n')
            file.chmod(0o755)
        env = dict(
            os.environ,
            PATH=f'{tmp_path}/bin:{os.environ["PATH"]}',
            VENV=f'{tmp_path}/venv',
            SLURM_SUBMIT_DIR=str(ROOT),
            SLURM_JOB_NODELIST='node[7-8]',
            SLURM_JOB_ID='1234567',
            SLURM_NNODES='2',
            SLURM_CPUS_PER_TASK='16',
            SLURM_ARRAY_TASK_ID='3',
        )
        return subprocess.Popen(
            ['bash', f'slurm/{script}', *map(str, arguments)],
            cwd=cwd,
            text=True,
            env=env | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return start


def said(process):
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    return out.strip()


RENDEZVOUS = (
    '--rdzv_id=1234567.0 --rdzv_backend=c10d --rdzv_endpoint=node7:34567 '
    '--signals-to-handle=SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout=280'
)


@pytest.mark.parametrize(
    'script, words, variables, command',
    [
        (
            'train.sh',
            'config/join.py --batch_size=512',
            {'SLURM_GPUS_ON_NODE': '8'},
            '--kill-on-bad-exit=1 torchrun '
            f'--nnodes=2 --nproc_per_node=8 {RENDEZVOUS} train.py config/join.py --batch_size=512',
        ),
        (
            'train.sh',
            'config/demo.py',
            {'SLURM_RESTART_COUNT': '0'},
            '--kill-on-bad-exit=1 torchrun '
            f'--nnodes=2 --nproc_per_node=1 {RENDEZVOUS} train.py config/demo.py',
        ),
        # the first saves after a step, the second goes on
        (
            'smoke_8gpu.sh',
            '--max_steps=9',
            {'SLURM_GPUS_ON_NODE': '8'},
            '\n'.join(
                f'--kill-on-bad-exit=1 torchrun --nnodes=2 --nproc_per_node=8 {RENDEZVOUS} '
                'train.py config/debug.py --device=cuda --fsdp=True --recompute=True '
                f'--out_dir=out/smoke_8gpu --max_steps=9{more}'
                for more in (' --resume=never --max_minutes=1e-6', '')
            ),
        ),
        (
            'smoke_1gpu.sh',
            '',
            {},
            'python train.py config/debug.py --device=cuda --resume=never --out_dir=out/smoke_1gpu',
        ),
        (
            'smoke_sim.sh',
            '',
            {},
            'python sim_rollout.py --task=place --episodes=2 --video=1 --out=out/smoke_sim',
        ),
        ('bench_gpu.sh', '', {}, 'python bench.py --gpu'),
        # tasks of an array take neighbouring seeds
        (
            'collect.sh',
            'config/join_collect.py',
            {},
            'python sim_rollout.py config/join_collect.py --seeds=750:1000 --workers=16',
        ),
        (
            'collect.sh',
            'config/join_collect.py',
            {'SEEDS': '10'},
            'python sim_rollout.py config/join_collect.py --seeds=30:40 --workers=16',
        ),
        (
            'eval.sh',
            '--ckpt=out/join --episodes=100',
            {},
            'python sim_rollout.py --ckpt=out/join --episodes=100 --workers=16',
        ),
        (
            'eval.sh',
            '--ckpt=out/join',
            {'VLA_IMAGE': 'a.sif'},
            f'apptainer exec --nv --bind {ROOT},{ROOT} --pwd {ROOT} a.sif '
            'python sim_rollout.py --ckpt=out/join --workers=16',
        ),
    ],
)
def test_each_script_asks_for_its_command(cluster, script, words, variables, command):
    assert said(cluster(script, *words.split(), **variables)) == command


OPTIONS = {
    'job-name',
    'array',
    'nodes',
    'ntasks',
    'ntasks-per-node',
    'gpus-per-node',
    'cpus-per-task',
    'time',
    'requeue',
    'signal',
    'open-mode',
    'output',
}  # nobody's account, partition or mail


@pytest.mark.parametrize(
    'script', sorted((ROOT / 'slurm').glob('*.sh')), ids=lambda path: path.name
)
def test_sbatch_understands_every_option_of_a_script(script):
    """It stops reading at the first command."""
    head, rest = re.split(r'^(?=[^#\n])', script.read_text(), maxsplit=1, flags=re.M)
    found = [
        re.fullmatch(r'#SBATCH --([a-z-]+)(=[^\s/]+)?', line)
        for line in head.splitlines()
        if line.startswith('#SBATCH')
    ]
    assert all(found) and '#SBATCH' not in rest
    names = [match[1] for match in found]
    assert set(names) <= OPTIONS and len(set(names)) == len(names)
    assert not names or {'job-name', 'nodes', 'time', 'output'} <= set(names)


def test_modules_and_folders_come_from_the_environment(cluster, tmp_path):
    """The variables are those of .env.example."""
    names = re.findall(r'^#(\w+)=', (ROOT / '.env.example').read_text(), re.M)
    for name in ('VLA_SCRATCH_ROOT', 'MODULES', 'VLA_IMAGE', 'WANDB_MODE'):
        assert name in names
    (tmp_path / 'slurm').symlink_to(ROOT / 'slurm')
    scratch = tmp_path / 'scratch'
    show = 'echo $HF_HOME $HF_HUB_OFFLINE $WANDB_MODE'
    out = said(
        cluster(
            'eval.sh',
            srun=show,
            SLURM_SUBMIT_DIR=str(tmp_path),
            VLA_SCRATCH_ROOT=str(scratch),
            MODULES='python/3.11 cuda/12',
        )
    )
    assert out == f'{scratch}/huggingface 1 offline'
    assert (tmp_path / 'modules').read_text() == 'load python/3.11 cuda/12\n'
    assert (tmp_path / 'out').resolve() == scratch / 'out' and (scratch / 'episodes').is_dir()


def test_modules_may_use_variables_that_are_not_set():
    """Lmod does, and the scripts run under `set -u`, which holds again afterwards."""
    script = (
        'set -euo pipefail; module() { echo "$1 $2 $NOWHERE"; }; MODULES=cuda; VLA_IMAGE=a.sif; '
        'cd "$(mktemp -d)"; source "$0"; [[ $- == *e*u* ]] && echo strict'
    )
    command = ['bash', '-c', script, str(ROOT / 'slurm' / 'setup.sh')]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.split() == ['load', 'cuda', 'strict'], run


def test_the_login_node_installs_and_a_sourced_setup_does_not(cluster, tmp_path):
    (tmp_path / 'slurm').symlink_to(ROOT / 'slurm')
    login = dict(cwd=tmp_path, SLURM_JOB_ID='', VENV='', VLA_SCRATCH_ROOT=f'{tmp_path}/scratch')
    assert said(cluster('setup.sh', **login)) == (
        f'make setup VENV={tmp_path}/scratch/.venv TORCH=cuda'
    )
    assert (tmp_path / 'out').resolve() == tmp_path / 'scratch' / 'out'
    assert said(cluster('setup.sh', VLA_IMAGE='a.sif', **login)) == ''
    assert said(cluster('run.sh', 'echo', 'hello', cwd=tmp_path, SLURM_JOB_ID='')) == 'hello'
    makefile = (ROOT / 'Makefile').read_text()
    assert re.search(r'^setup:', makefile, re.M) and re.search(r'^VENV \?=', makefile, re.M)


DOCKER = (
    'docker run --rm --ipc=host --gpus=all --volume={0}:{0}%s --workdir={0} --user={1} '
    '--env=HOME=/tmp --env=USER --env=HF_HOME --env=WANDB_MODE --env=WANDB_API_KEY vla-lego'
)


@pytest.mark.parametrize(
    'image, root, command',
    [
        ('a.sif', '/big', 'apptainer exec --nv --bind {0},/big --pwd {0} a.sif'),
        ('vla-lego', '', DOCKER % ''),
        ('vla-lego', '/big', DOCKER % ' --volume=/big:/big'),
    ],
)
def test_any_command_runs_in_the_image_with_the_code_mounted(
    cluster, tmp_path, image, root, command
):
    for name in ('slurm', 'out', 'episodes'):  # that nothing is made under root
        (tmp_path / name).symlink_to(ROOT / 'slurm')
    words = 'python train.py config/debug.py'
    out = said(
        cluster(
            'run.sh',
            *words.split(),
            cwd=tmp_path,
            SLURM_JOB_ID='',
            VLA_IMAGE=image,
            VLA_SCRATCH_ROOT=root,
        )
    )
    assert out == f'{command.format(tmp_path, f"{os.getuid()}:{os.getgid()}")} {words}'


def test_training_queues_its_score_once(cluster, tmp_path):
    job = ('train.sh', 'config/debug.py', '--out_dir', 'out/elsewhere')
    said(cluster(*job, VLA_EVAL='50', SLURM_RESTART_COUNT='1'))
    said(cluster(*job, VLA_EVAL=''))
    said(cluster('smoke_8gpu.sh', VLA_EVAL='50'))
    assert not (tmp_path / 'sbatch').exists()
    said(cluster(*job, VLA_EVAL='50', SLURM_MEM_PER_CPU='800'))
    dependency, kill, script, *words = (tmp_path / 'sbatch').read_text().split()
    assert dependency == '--dependency=afterok:1234567' and kill == '--kill-on-invalid-dep=yes'
    assert script == 'slurm/eval.sh'
    command = said(cluster('eval.sh', *words))
    assert command == 'python sim_rollout.py --ckpt=out/elsewhere --episodes=50 --workers=16'


STOPPED = 'echo "stopped at step 3, saved"; exit 1'  # as torchrun does, whatever the signal
WHEN = '2026-01-02T03:14:15'


@pytest.mark.parametrize(
    'srun, state, asked, code',
    [
        (STOPPED, dict(PREEMPTED=WHEN), True, 0),
        (STOPPED, dict(PREEMPTED=WHEN, REQUEUE='1', THEN='PENDING'), True, 0),  # SLURM was faster
        (STOPPED, dict(PREEMPTED=WHEN, REQUEUE='1'), True, 1),  # the cluster does not allow it
        (STOPPED, {}, False, 0),  # scancel --signal=TERM
        (STOPPED, dict(PREEMPTED=WHEN, STATE='COMPLETING'), False, 0),  # scancel in the GraceTime
        (
            STOPPED,
            dict(STATE='COMPLETING'),
            False,
            0,
        ),  # scancel, or no GraceTime and SLURM requeues
        ('echo "next: python"; exit 1', dict(PREEMPTED=WHEN), False, 0),  # finished just in time
        ('echo "requeue: stopped at step 3, saved"; exit 1', {}, True, 0),
        ('exit 3', dict(PREEMPTED=WHEN), False, 3),
    ],
)
def test_what_was_preempted_or_ran_out_of_time_is_queued_again(
    cluster, tmp_path, srun, state, asked, code
):
    process = cluster('train.sh', 'config/debug.py', srun=srun, **state)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == code, out
    assert (tmp_path / 'scontrol').exists() is asked


def tiny(folder):
    """Settings of train.py for a run of seconds, on episodes of its own."""
    write_synthetic_episodes(folder / 'episodes', 12, ('overhead',), 16)
    return (
        '--n_layers=1',
        '--image_size=16',
        '--cameras=overhead,',
        '--tokens_per_camera=2',
        '--batch_size=8',
        '--log_interval=1',
        '--max_steps=40',
        '--fsdp=True',
        f'--episodes={folder}/episodes',
        f'--out_dir={folder}/run',
    )


ONE_NODE = dict(HEAD='localhost', SLURM_NNODES='1', RANKS='2', SLURM_CPUS_PER_TASK='2')


@pytest.mark.dist
def test_a_job_that_is_stopped_is_queued_again_and_finishes(cluster, tmp_path):
    """First by its time limit, then by preemption. srun runs what it is given: torchrun with 2
    ranks. SLURM's signals go there, not to the script's shell."""
    job, start = ('train.sh', 'config/debug.py', *tiny(tmp_path), '--device=cpu'), 0
    where = dict(ONE_NODE, srun=f'echo $$ > {tmp_path}/pid\n{RUN}')
    for count, number, word in ((0, signal.SIGUSR1, 'requeue: '), (1, signal.SIGTERM, '')):
        process = cluster(
            *job, **where, PREEMPTED='None' if word else WHEN, SLURM_RESTART_COUNT=str(count)
        )
        for line in process.stdout:
            if line.startswith(f'step {start + 3:6d}'):
                break
        os.kill(int((tmp_path / 'pid').read_text()), number)
        out = process.communicate(timeout=120)[0]
        assert process.returncode == 0, out
        start = int(re.search(rf'^{word}stopped at step (\d+), saved', out, re.M)[1])
        assert (tmp_path / 'scontrol').read_text() == 'requeue 1234567\n' * (
            count + 1
        ) and start < 40
    out = said(
        cluster(*job, **where | dict(RANKS='1', SLURM_RESTART_COUNT='2'))
    )  # on a smaller node
    assert f'starting at step {start}' in out and 'next: python' in out
    assert (tmp_path / 'scontrol').read_text() == 'requeue 1234567\n' * 2  # not once more


@pytest.mark.dist
def test_the_smoke_job_for_many_gpus_saves_and_goes_on(cluster, tmp_path):
    where = ONE_NODE | dict(srun=RUN, RANKS='1')
    out = said(cluster('smoke_8gpu.sh', *tiny(tmp_path), '--max_steps=3', '--device=cpu', **where))
    first, second = out.split('stopped at step 1, saved')
    assert 'starting\n' in first and 'starting at step 1\n' in second and 'next: python' in second


def test_a_smoke_job_without_a_gpu_fails(cluster, tmp_path):
    process = cluster('smoke_1gpu.sh', *tiny(tmp_path), srun=RUN, CUDA_VISIBLE_DEVICES='')
    out = process.communicate(timeout=120)[0]
    assert (
        process.returncode != 0 and 'device=cuda: torch' in out and not (tmp_path / 'run').exists()
    ), out


def test_the_smoke_job_of_the_simulator_renders_on_the_gpu_or_not_at_all(cluster):
    assert said(cluster('smoke_sim.sh', srun='echo $MUJOCO_GL', MUJOCO_GL='osmesa')) == 'egl'


@pytest.mark.mujoco
def test_demonstrations_and_scores_come_out_of_their_jobs(cluster, tmp_path):
    """One episode each, without pictures."""
    small = ('--task=place', '--cameras=')
    where = dict(srun=RUN, SLURM_CPUS_PER_TASK='1')
    out = said(cluster('collect.sh', f'--record={tmp_path}/episodes', *small, SEEDS='1', **where))
    assert 'place 1/1' in out and 'seeds 3-3' in out
    assert [path.name for path in tmp_path.glob('episodes/*.safetensors')] == [
        'place_0000003.safetensors'
    ]
    out = said(
        cluster(
            'eval.sh', '--policy=expert', '--episodes=1', f'--out={tmp_path}/score', *small, **where
        )
    )
    assert 'place 1/1' in out and 'seeds 1000000-1000000' in out


@pytest.mark.dist
def test_a_job_that_fails_says_why_and_is_not_queued_again(cluster, tmp_path):
    where = ONE_NODE | dict(srun=RUN, RANKS='1')
    process = cluster(
        'train.sh', 'config/debug.py', f'--episodes={tmp_path}/none', '--synthetic=0', **where
    )
    out = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and 'none' in out and not (tmp_path / 'scontrol').exists()
