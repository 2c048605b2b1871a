"""What test files share: the root as working folder, one thread per process, reasons for skips.

make test                       everything but `slow`
python -m pytest --slow         everything
python -m pytest -m smoke       the quick selection
"""

import os

# This stands before torch and numpy are loaded: tests start processes, and threads would fight over
# the cores.
os.environ['OMP_NUM_THREADS'] = '1'

import importlib.util
import pathlib
import subprocess
import sys

import launch
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Scripts and relative paths count from the root, and so do the processes that tests start.
os.chdir(ROOT)


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='also run the tests marked slow')


def has_gpu():
    import torch

    return None if torch.cuda.is_available() else 'no CUDA device'


def has_renderer():
    if importlib.util.find_spec('mujoco') is None:
        return 'mujoco is not installed'
    from sim.gl import gl_backend

    if gl_backend() == 'disable':
        return 'no GL backend renders: apt-get install libegl1 libgl1 libgl1-mesa-dri libopengl0'
    return None


def has_display():
    displays = [os.environ.get(name) for name in ('DISPLAY', 'WAYLAND_DISPLAY')]
    if sys.platform.startswith('linux') and not any(displays):
        return 'no display'
    return None


def has_gloo():
    import torch.distributed as dist

    has_it = dist.is_available() and dist.is_gloo_available()
    return None if has_it else 'torch was built without gloo'


def has_lerobot():
    python = os.environ.get('LEROBOT_PYTHON', sys.executable)
    look = 'import importlib.util as u, sys; sys.exit(u.find_spec("lerobot") is None)'
    there = subprocess.run([python, '-c', look]).returncode == 0
    return None if there else 'no lerobot: LEROBOT_PYTHON names the Python that has it'


# The longest files by far. `make test` hands files out in this order, so that none of these comes
# last.
FIRST = (
    'test_parallel',
    'test_expert',
    'test_bench',
    'test_train',
    'test_hands',
    'test_slurm',
    'test_rollout',
)
REQUIRES = {
    'gpu': has_gpu,
    'mujoco': has_renderer,
    'viewer': has_display,
    'dist': has_gloo,
    'lerobot': has_lerobot,
}


def pytest_collection_modifyitems(config, items):
    place = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(FIRST)))
    reasons = {}  # Each question is asked once, and only if a test needs the answer.
    for item in items:
        if 'slow' in item.keywords and not config.getoption('--slow'):
            item.add_marker(pytest.mark.skip(reason='slow: run with --slow'))
        for mark, question in REQUIRES.items():
            if mark not in item.keywords:
                continue
            if mark not in reasons:
                reasons[mark] = question()
            if reasons[mark] is not None:
                # Where we set the machine up, a missing renderer is a broken install and no reason
                # to skip.
                assert mark != 'mujoco' or not os.environ.get('CI'), reasons[mark]
                item.add_marker(pytest.mark.skip(reason=f'{mark}: {reasons[mark]}'))


@pytest.fixture(scope='session')
def recorded(tmp_path_factory):
    """Two kicked episodes of `place`."""
    folder = tmp_path_factory.mktemp('record') / 'episodes'
    said = launch.run('sim_rollout.py', '--episodes=2', '--kicks=0.1', f'--record={folder}')
    assert 'place 2/2 (100%, 95% CI 34-100) seeds 0-1' in said
    return folder


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    """A checkpoint that is hardly trained, on made-up episodes."""
    folder = tmp_path_factory.mktemp('out') / 'tiny'
    launch.run(
        'train.py',
        '--synthetic=4',
        f'--episodes={folder.parent}/episodes',
        f'--out_dir={folder}',
        '--max_steps=2',
        '--batch_size=8',
        '--n_layers=1',
        '--val_fraction=0',
        '--delay=2',
    )
    return folder


@pytest.fixture(scope='session')
def beside_lerobot():
    """LeRobot's Python, and the environment in which it takes the plugin of this checkout."""
    python = os.environ.get('LEROBOT_PYTHON', sys.executable)
    look = 'from importlib.metadata import version; version("lerobot_env_vla_lego")'
    if subprocess.run([python, '-c', look], capture_output=True).returncode:
        pytest.skip('beside LeRobot: pip install -e plugins/lerobot_env_vla_lego')
    ours = f'{ROOT}/plugins/lerobot_env_vla_lego'
    return python, {**os.environ, 'PYTHONPATH': ours, 'HF_HUB_OFFLINE': '1'}


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    """A test may change the folder; the next one starts at the root again."""
    monkeypatch.chdir(ROOT)
