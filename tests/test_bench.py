"""bench.py prints its table.

    python -m pytest tests/test_bench.py
"""
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.mujoco


def bench(*arguments):
    command = [sys.executable, 'bench.py', '--seconds=0.3', *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def tiny(folder):
    """config/demo.py with a small model and no episodes of its own -> path."""
    path = folder / 'tiny.py'
    small = f'n_layers = 2\nbatch_size = 24\nepisodes = {str(folder / "none")!r}\n'
    path.write_text(open('config/demo.py').read() + small)
    return path


def test_world_and_render_sections_print_rates():
    done = bench('--only=world,render')
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(('world ', 'render '))]
    assert len(rows) == 5 and 'cores' in done.stdout
    rates = [float(line[54:].split()[0]) for line in rows]
    assert rates[0] > rates[1] > 5 and 0.1 < rates[2] < 1.5


def test_training_loader_and_latency_are_those_of_the_config(tmp_path):
    """One run of train.py serves all three; its settings reach the loader."""
    config = tiny(tmp_path)
    done = bench('--only=train,loader,act', '--train_steps=4', '--processes=1', f'--train_config={config}')
    assert done.returncode == 0, done.stderr
    rows = re.findall(r'^(?:train|loader|act) +(.*?) +([0-9.]+) (?:samples/s|GFLOP/s|ms)', done.stdout, re.M)
    rate = {name: float(value) for name, value in rows}
    assert 'Dataset.batch of 24, then data.augment' in rate
    assert rate['Dataset.batch of 24'] > rate['Dataset.batch of 24, then data.augment'] > 0
    assert rate[f'train.py {config}'] > 0 and rate['arithmetic done'] > 0
    assert 0 < rate['chunk, 1 step(s), float32'] < rate['chunk, 5 step(s), after 8 words, float32']


def test_unknown_section_is_named():
    done = bench('--only=wrld')
    assert done.returncode and 'no section wrld; there are world' in done.stderr
