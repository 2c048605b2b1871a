"""Protects README: what it tells a reader to type is done as a reader would do it.

python -m pytest tests/test_readme.py
"""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import fake_hub
import numpy as np
import pytest

from episode import episode_paths, write_synthetic_episodes

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = ('_collect', '_start', '_coach', '')


def block(language, holding):
    """The fenced block of README in this language that holds a text."""
    text = (ROOT / 'README.md').read_text()
    blocks = re.findall(rf'```{language}\n(.*?)```', text, re.S)
    found = [text for text in blocks if holding in text]
    assert len(found) == 1, f'{len(found)} blocks of {language} in README hold {holding!r}'
    return found[0]


def bash(command, python=sys.executable):
    """The words that run a shell command, with a Python and its scripts in place of any other."""
    command = re.sub(r'^python\b', python, command)
    return ['bash', '-c', re.sub(r'^lerobot-', f'{os.path.dirname(python)}/lerobot-', command)]


def said(command, folder, python=sys.executable, env=None):
    """What a shell command says in a folder, see `bash`; env is added to the environment."""
    run = subprocess.run(
        bash(command, python),
        cwd=folder,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


@pytest.fixture
def fork(tmp_path):
    """A copy of the code that a reader may change."""
    for name in ('sim', 'vla', 'config', 'assets'):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in [*ROOT.glob('*.py'), ROOT / 'Makefile', ROOT / 'requirements.txt']:
        shutil.copy(path, tmp_path)
    return tmp_path


def test_the_new_task_is_done_by_the_expert_and_has_configs_for_every_stage(fork):
    with open(fork / 'sim' / 'tasks.py', 'a') as tasks:
        tasks.write(block('python', "TASKS['ends']"))
    expert, configs, make = block('bash', 'make ends').splitlines()
    assert 'ends 5/5 (100%' in said(expert, fork)
    said(configs, fork)
    plan = said(f'{make} --dry-run', fork)
    for part in PARTS:
        assert f'config/ends{part}.py' in plan
        text = (fork / f'config/ends{part}.py').read_text()
        assert 'demo' not in text and "'place'" not in text
    assert "task = 'ends'" in (fork / 'config' / 'ends_collect.py').read_text()


def test_own_episodes_are_converted_and_pass_the_check(fork):
    """That such episodes train is tested with the converters of docs/own_episodes.md."""
    logs = fork / 'logs' / 'arm'
    logs.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        np.savez(
            logs / f'{i}.npz',
            position=rng.normal(size=(30, 7)),
            target=rng.normal(size=(30, 7)),
            front=rng.integers(0, 256, (30, 48, 64, 3), dtype=np.uint8),
            instruction='reach the cup',
        )
    (fork / 'convert.py').write_text(block('python', 'write_episode'))
    said('python convert.py', fork)
    check, _ = block('bash', 'config/own.py').splitlines()
    assert '3 episodes, 0 with faults' in said(check.partition('#')[0], fork)


# -----------------------------------------------------------------------------
# "Use it with": episodes and a checkpoint as `make demo` would leave them, but small


def test_the_block_of_lerobot_gives_its_data_set(fork):
    pytest.importorskip('pyarrow', reason='pip install pyarrow')
    pytest.importorskip('av', reason='pip install av')
    write_synthetic_episodes(fork / 'episodes/demo', 2, ('overhead',), 32)
    command, install, _ = block('bash', 'to_lerobot').splitlines()
    said(command, fork, env={'SVT_LOG': '1'})
    assert (fork / 'out/demo_lerobot/meta/info.json').exists()
    said('python data.py from_lerobot out/demo_lerobot episodes/again', fork)
    assert len(episode_paths(fork / 'episodes/again')) == 2
    plugin = install.partition('#')[0].split()[-1]
    assert install.startswith('pip install -e ') and (ROOT / plugin / 'pyproject.toml').exists()


@pytest.mark.lerobot
@pytest.mark.mujoco
def test_the_block_of_lerobot_runs_a_policy_of_its_own_at_every_task(beside_lerobot, tmp_path):
    """It is an untrained ACT policy; it takes a few minutes."""
    python, env = beside_lerobot
    said(f'python {ROOT}/plugins/lerobot_env_vla_lego/check.py out/act', tmp_path, python, env)
    *_, command = block('bash', 'to_lerobot').splitlines()
    assert 'Overall Aggregated Metrics' in said(command, tmp_path, python, env)


@pytest.mark.mujoco
def test_the_block_of_gymnasium_makes_an_environment(fork):
    pytest.importorskip('gymnasium', reason='pip install gymnasium')
    look = "print(info['instruction'], sorted(obs['pixels']), obs['agent_pos'].shape)"
    (fork / 'look.py').write_text(block('python', 'import gymnasium') + look)
    assert re.search(
        r"\w+ .*\['left_wrist', 'overhead', .*\] \(79,\)", said('python look.py', fork)
    )


@pytest.mark.mujoco
def test_the_block_of_openpi_serves_and_drives(fork, checkpoint):
    for package in ('websockets', 'msgpack'):
        pytest.importorskip(package, reason='pip install websockets msgpack')
    with socket.socket() as probe:
        if not probe.connect_ex(('localhost', 8000)):
            pytest.skip('somebody listens at port 8000 of this machine')
    shutil.copytree(checkpoint, fork / 'out/demo')
    serve, drive = block('bash', '--serve --ckpt').splitlines()
    # `exec`: the signal reaches the script.
    command = bash(serve)
    command[-1] = f'exec {command[-1]}'
    server = subprocess.Popen(command, cwd=fork, stdout=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith('next: ') for line in iter(server.stdout.readline, ''))
        assert re.search(r'place \d/2 .*seeds 1000000-1000001', said(drive, fork))
    finally:
        server.terminate()
        server.communicate()
    assert server.returncode == 0


@pytest.mark.mujoco
def test_the_block_of_the_hub_scores_what_it_fetches(fork, checkpoint):
    with fake_hub.running() as server:
        server.add('models/user/name', checkpoint, 'v1')
        env = {'HF_ENDPOINT': server.address, 'HF_HOME': f'{fork}/hf', 'HF_HUB_OFFLINE': '0'}
        (command,) = block('bash', 'user/name').splitlines()
        assert re.search(r'place \d/2 .*seeds 1000000-1000001', said(command, fork, env=env))
    assert (fork / 'out/user--name@v1/rollout/scores.json').exists()
