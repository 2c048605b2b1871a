"""Folders of the Hub in the place of paths, and their cards, against a Hub on this machine.

python -m pytest tests/test_hub.py
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import fake_hub
import pytest
from launch import ROOT

import hub
from episode import episode_paths, write_synthetic_episodes
from vla.folder import read_meta

DOORS = ROOT / 'docs/doors.md'


@pytest.fixture(scope='module')
def server(checkpoint, tmp_path_factory):
    """A Hub with a checkpoint, three episodes and a data set of LeRobot's."""
    made = tmp_path_factory.mktemp('hub') / 'made'
    write_synthetic_episodes(made, 3, ('overhead', 'left/wrist', 'right/wrist'), 96)
    with fake_hub.running() as server:
        unwanted = {'pytorch_model.bin': b'a pickle', 'modeling.py': b'raise SystemExit'}
        unwanted |= {'state/optimizer.safetensors': b'large', 'best/meta.json': b'{}'}
        server.add('models/user/tiny', checkpoint, others=unwanted)
        server.add('models/user/tiny', checkpoint, 'v1', unwanted)
        server.add('datasets/user/made', made)
        (made.parent / 'theirs').mkdir()
        server.add('datasets/user/theirs', made.parent / 'theirs', others={'meta/info.json': b'{}'})
        yield server


@pytest.fixture
def run(server, tmp_path):
    """Runs a command in a folder of its own, with this Hub and a cache of its own."""

    def run(*words, fails=False, **env):
        server.asked.clear()
        hub_env = {'HF_ENDPOINT': server.address, 'HF_HOME': f'{tmp_path}/hf', 'HF_TOKEN': 'hf_x'}
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, **hub_env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert bool(done.returncode) == fails, done.stdout
        return done.stdout

    return run


def documented(script):
    """The words of the command in docs/doors.md, with the names that this Hub has."""
    (line,) = re.findall(rf'^python {script} .*user/name.*$', DOORS.read_text(), re.M)
    words = shlex.split(
        line.replace('user/name', 'user/tiny').replace('user/episodes', 'user/made')
    )
    return [ROOT / script, *words[2:]]


def cached(tmp_path):
    """Names of the files in the snapshots of the cache."""
    return {path.name for path in tmp_path.glob('hf/hub/*/snapshots/*/**/*') if path.is_file()}


def test_a_run_starts_from_a_checkpoint_and_episodes_of_the_hub_and_is_sampled(run, tmp_path):
    words = [*documented('train.py'), '--max_steps=1', '--batch_size=4', '--n_layers=1']
    said = run(*words, '--val_fraction=0')
    assert f'init_from=user/tiny@v1: {tmp_path}/hf/hub/models--user--tiny/snapshots/' in said
    assert 'share: hf upload <you>/more out/more . --exclude "*/*"' in said
    names = cached(tmp_path)
    assert {'model.safetensors', 'meta.json', 'synthetic_000000.safetensors'} <= names
    assert not names & {'pytorch_model.bin', 'modeling.py', 'optimizer.safetensors'}
    card = (tmp_path / 'out/more/README.md').read_text()
    assert 'python train.py --init_from=user/tiny@v1 --episodes=user/made' in card
    # The cache is enough without a network, and results do not go there
    alone = dict(HF_HUB_OFFLINE='1')
    said = run(ROOT / 'sample.py', '--ckpt=user/tiny@v1', '--episodes=user/made', **alone)
    assert 'picture: out/user--tiny@v1/sample.png' in said
    said = run(ROOT / 'data.py', 'check', 'user/made', **alone)
    assert '3 episodes, 0 with faults' in said


def test_what_the_hub_has_not_is_said_in_one_line(run, server, tmp_path):
    for name, why in (('user/none', 'RepositoryNotFound'), ('user/tiny@v2', 'RevisionNotFound')):
        # It comes after the line of changed settings.
        said = run(ROOT / 'sample.py', f'--ckpt={name}', fails=True).strip().partition('\n')[2]
        assert said.startswith(f'ckpt={name}: there is no such folder, and {server.address} gives')
        assert f'{tmp_path}/hf/hub' in said and why in said and '\n' not in said
    said = run(ROOT / 'data.py', 'check', 'user/made', fails=True, HF_HUB_OFFLINE='1')
    assert 'user/made' in said and not server.asked
    said = run(ROOT / 'data.py', 'check', 'user/theirs', fails=True)
    assert said.splitlines()[-1].endswith('python data.py from_lerobot user/theirs episodes/theirs')


@pytest.mark.mujoco
def test_a_checkpoint_of_the_hub_drives_and_its_scores_stay_here(run, tmp_path):
    said = run(*documented('sim_rollout.py')[:2], '--task=place', '--episodes=1', '--workers=1')
    assert 'place 0/1' in said or 'place 1/1' in said
    assert (tmp_path / 'out/user--tiny@main/rollout/scores.json').exists()


@pytest.mark.mujoco
def test_a_score_goes_onto_the_card_and_the_line_that_uploads_it_is_said(run, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / 'out/demo')
    words = ('--ckpt=out/demo', '--task=place', '--episodes=1', '--workers=1')
    said = run(ROOT / 'sim_rollout.py', *words)
    assert 'share: hf upload <you>/demo out/demo . --exclude "*/*"' in said
    assert re.search(r'^\| place \| [01]/1 ', (tmp_path / 'out/demo/README.md').read_text(), re.M)


def test_a_folder_that_is_there_or_would_be_ours_is_never_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_id('user/demo') and hub.is_id('user/demo@v1') and hub.is_id('datasets/user/demo')
    (tmp_path / 'user/demo').mkdir(parents=True)
    assert hub.fetch('ckpt', 'user/demo', 'model') == 'user/demo'
    assert hub.home('user/demo') == 'user/demo' and hub.home('they/demo') == 'out/they--demo'
    for name in 'out/demo episodes/demo /user/demo user/other ./a/b a/b/c a'.split():
        assert not hub.is_id(name), name


def test_the_line_that_a_run_prints_uploads_what_can_be_fetched_again(run, server, checkpoint):
    command = hub.upload_line(checkpoint, 'model').replace('<you>', 'user')
    name, *words = shlex.split(command.replace('/tiny ', '/again ', 1))
    assert name == 'hf'
    line = hub.upload_line('out/demo', 'model').replace('<you>/demo', 'user/name')
    assert f'\n{line}\n' in DOORS.read_text()
    run('-m', 'huggingface_hub.cli.hf', *words)
    files = server.repositories['models/user/again']['main']
    assert files['model.safetensors'] == (checkpoint / 'model.safetensors').read_bytes()
    assert 'README.md' in files and not [name for name in files if '/' in name]
    look = (
        'import sys; sys.path.append(sys.argv[1]); import hub; hub.fetch("c", sys.argv[2], "model")'
    )
    folder = run('-c', look, ROOT, 'user/again').splitlines()[-1].removeprefix('c=user/again: ')
    assert read_meta(folder)['step'] == 2


def test_a_checkpoint_and_episodes_carry_a_card_that_the_hub_reads(checkpoint, tmp_path):
    (tmp_path / 'rollout').mkdir()
    shutil.copy(checkpoint / 'meta.json', tmp_path)
    hub.write_card(tmp_path, 'model', 'python train.py --synthetic=4')
    card = (tmp_path / 'README.md').read_text()
    assert 'python train.py --synthetic=4' in (checkpoint / 'README.md').read_text()
    assert re.match(
        r'---\ntags: \[.*\]\nlibrary_name: vla-lego\npipeline_tag: robotics\n---\n', card
    )
    for part in (
        'synthetic',
        'python train.py --synthetic=4',
        'Not scored yet',
        '96 x 96 px',
        '10 Hz',
    ):
        assert part in card
    score = dict(k=3, n=4, success=0.75, low=0.3, high=0.95)
    scores = {'tasks': {'place': {'score': score, 'blanked': None}}}
    (tmp_path / 'rollout/scores.json').write_text(json.dumps(scores))
    hub.write_card(tmp_path, 'model')
    text = (tmp_path / 'README.md').read_text()
    assert '| place | 3/4 (75 %, 95 % CI 30-95) |  |' in text
    folder = tmp_path / 'episodes'
    write_synthetic_episodes(folder, 2, ('overhead',), 32)
    hub.write_card(folder, 'dataset', 'python make.py')
    card = (folder / 'README.md').read_text()
    for part in (
        'task_categories: [robotics]',
        '| synthetic | 2 |',
        'python make.py',
        'overhead 32',
    ):
        assert part in card
    assert '`left/tool_x` m' in card and len(episode_paths(folder)) == 2
    (folder / 'README.md').write_text('my own words')
    hub.write_card(folder, 'dataset')
    assert (folder / 'README.md').read_text() == 'my own words'
