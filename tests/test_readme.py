"""Protects "Fork it" in README: what it tells a reader to type is done as a reader would do it.

python -m pytest tests/test_readme.py
"""

import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = ('_collect', '_start', '_coach', '')


def block(language, holding):
    """The fenced block of README in this language that holds a text."""
    text = (ROOT / 'README.md').read_text()
    blocks = re.findall(rf'```{language}\n(.*?)```', text, re.S)
    found = [text for text in blocks if holding in text]
    assert len(found) == 1, f'{len(found)} blocks of {language} in README hold {holding!r}'
    return found[0]


def said(command, folder):
    """What a shell command says in a folder, with our Python in place of any other."""
    command = re.sub(r'^python\b', sys.executable, command)
    run = subprocess.run(
        ['bash', '-c', command],
        cwd=folder,
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
