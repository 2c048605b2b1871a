"""Protects the promise that nothing wrong is taken in silence: damaged files get one line that says
which file it is, and what in it.

python -m pytest tests/test_damage.py
"""

import copy
import json
import os
import shutil
import signal
import struct
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import data
import episode
import model
from sim import ledger
from vla import checkpoint, folder, parallel, pretrained, processor, tokenizer, vision, watch
from vla.processor import Processor

CAMERAS = ('front',)
ODD = [
    None,
    True,
    -1,
    0,
    1e300,
    float('nan'),
    float('inf'),
    '',
    'x',
    '<|vla|>',
    '../../x',
    [],
    [[]],
]
ODD += [{}, [0], [None], {'a': 1}, 2**70, 0.5, 'a' * 10_000]
HARMLESS = ('metrics', 'git_rev', 'qa')  # keys of a header of which nobody asks more than a type


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    """Bytes of a sound episode that holds TRUTH."""
    path = tmp_path_factory.mktemp('sound') / 'e.safetensors'
    episode.write_episode(path, *episode.synthetic_episode(3, CAMERAS, 16))
    return path.read_bytes()


def open_up(raw):
    """Table, header and arrays' bytes of a file."""
    n = struct.unpack('<Q', raw[:8])[0]
    table = json.loads(raw[8 : 8 + n])
    return table, json.loads(table.pop('__metadata__')['header']), raw[8 + n :]


def close(table, header, blob):
    text = json.dumps({'__metadata__': {'header': json.dumps(header)}, **table}).encode()
    return struct.pack('<Q', len(text)) + text + blob


def episode_mutants(raw, count):
    """(what was done, bytes): bytes cut and turned, table and header and numbers changed."""
    rng = np.random.default_rng(0)
    table, header, blob = open_up(raw)
    n = len(raw) - len(blob)
    for i in range(count):
        kind = i % 6
        t = copy.deepcopy(table)
        h = copy.deepcopy(header)
        if kind == 0:
            at = int(rng.integers(len(raw)))
            yield f'cut at {at}', raw[:at]
        elif kind == 1:
            at = int(rng.integers(n))
            yield f'byte {at} of the table', raw[:at] + bytes([rng.integers(256)]) + raw[at + 1 :]
        elif kind == 2:
            name = sorted(t)[rng.integers(len(t))]
            key = ('dtype', 'shape', 'data_offsets')[rng.integers(3)]
            t[name][key] = ODD[rng.integers(len(ODD))]
            yield f'{name} {key} {t[name][key]!r:.20}', close(t, h, blob)
        elif kind == 3:
            key = sorted(h)[rng.integers(len(h))]
            h[key] = ODD[rng.integers(len(ODD))]
            yield f'header {key} {h[key]!r:.20}', close(t, h, blob)
        elif kind == 4:
            key = sorted(h)[rng.integers(len(h))]
            del h[key]
            yield f'header without {key}', close(t, h, blob)
        else:
            name = sorted(t)[rng.integers(len(t))]
            arrays = {k: v.copy() for k, v in safetensors.numpy.load(raw).items()}
            flat = arrays[name].reshape(-1)
            value = [np.nan, 1e30, -1e30, 200, -7][rng.integers(5)]
            if flat.dtype.kind != 'f':
                value = [200, 255, 99, 7, 2][rng.integers(5)]
            flat[rng.integers(len(flat))] = value
            damaged = safetensors.numpy.save(arrays, metadata={'header': json.dumps(h)})
            yield f'{name} holds {value}', damaged


def test_500_damaged_episodes_each_get_one_line_that_names_the_file(sound, tmp_path):
    path = str(tmp_path / 'e.safetensors')
    silent = []
    for what, raw in episode_mutants(sound, 500):
        with open(path, 'wb') as f:
            f.write(raw)
        said = episode.check_episode(path)
        assert all('\n' not in fault for fault in said), what
        try:
            arrays, header = episode.read_episode(path)
        except ValueError as refusal:
            assert str(refusal).startswith(f'{path}: ') and '\n' not in str(refusal), what
            assert said, f'{what}: reading refuses what check finds sound'
            continue
        if not said and raw != sound:
            silent.append(what)
    for what in silent:  # what cannot be told from a sound file, or makes no difference
        pixel = what.startswith('image/')
        free = any(key in what for key in HARMLESS)
        number = what.split(' holds ')[0] in ('connections', 'goal', 'phase', 'state', 'scene')
        number |= what.split(' holds ')[0] in ('qpos', 'qvel', 'ctrl', 'joint_action')
        text = what.startswith(('byte ', 'header '))
        assert pixel or free or number or text, what
    assert len(silent) < 150, silent


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(seed=[0]), "header 'seed' is [0], expected a whole number"),
        (dict(control_hz=float('nan')), "header 'control_hz' is nan"),
        (dict(control_hz='ten'), "header 'control_hz' is 'ten'"),
        (dict(world=None), "header 'world' is None"),
        (dict(world={'task': '../x'}), "header world 'task' is '../x'"),
        (dict(world={'image_size': 'big'}), "header world 'image_size' is 'big'"),
        (dict(task='../../../tmp/x'), "header 'task' is '../../../tmp/x', expected a plain name"),
        (dict(subtasks=['<|vla|>']), "header 'subtasks' is ['<|vla|>']"),
        (dict(instruction='put ' * 100_000), "header 'instruction' is 'put put"),
        (dict(success='true'), "header 'success' is 'true', expected true or false"),
        (dict(cameras={'../x': dict(height=16, width=16)}), "header 'cameras' is"),
    ],
)
def test_a_header_is_checked_by_meaning(sound, tmp_path, change, words):
    table, header, blob = open_up(sound)
    path = tmp_path / 'e.safetensors'
    path.write_bytes(close(table, header | change, blob))
    with pytest.raises(ValueError) as refusal:
        episode.read_episode(path)
    assert f'{path}: ' in str(refusal.value) and words in str(refusal.value)
    assert words in '; '.join(episode.check_episode(path))


def test_check_goes_on_to_the_next_file_and_no_pipe_is_waited_for(sound, tmp_path, capsys):
    (tmp_path / 'a.safetensors').write_bytes(struct.pack('<Q', 4) + b'null')
    os.mkfifo(tmp_path / 'b.safetensors')
    with open(tmp_path / 'c.safetensors', 'wb') as f:  # takes no room on disk
        f.write(struct.pack('<Q', 2 * 10**9))
        f.truncate(2 * 10**9 + 100)
    (tmp_path / 'd.safetensors').write_bytes(sound)
    assert data.main(['check', str(tmp_path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == '4 episodes, 3 with faults'
    for line, name, words in zip(said, 'abc', ('NoneType', 'no regular file', '2000000000 bytes')):
        assert line.startswith(f'{tmp_path}/{name}.safetensors: cannot be read: ') and words in line


def test_a_misspelt_folder_among_several_is_refused(sound, tmp_path):
    for name in ('place', 'empty'):
        (tmp_path / name).mkdir()
    (tmp_path / 'place' / 'a.safetensors').write_bytes(sound)
    for other in ('empty', 'palce'):
        with pytest.raises(FileNotFoundError, match=f'no .* episodes in {tmp_path}/{other} '):
            episode.episode_paths(f'{tmp_path}/place,{tmp_path}/{other}')
    with pytest.raises(FileNotFoundError, match='config/join_coach.py'):
        episode.episode_paths(tmp_path / 'join_coached')


def test_merge_and_split_can_be_repeated_and_refuse_what_would_be_lost(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    episode.write_synthetic_episodes('a', 3, CAMERAS, 16)
    episode.write_synthetic_episodes('b', 2, CAMERAS, 16, seed0=9)
    for _ in range(2):
        assert data.main(['merge', 'all', 'a', 'b']) == 0
        assert data.main(['split', 'a', '.01']) == 0  # by hash there would be none
    assert len(os.listdir('all')) == 5 and len(os.listdir('a_held')) == 1
    assert len(os.listdir('a_rest')) == 2 and not list(tmp_path.glob('*/*.tmp'))
    with pytest.raises(ValueError, match='b holds synthetic_000009.safetensors, which is none of'):
        data.main(['merge', 'b', 'a', 'a_rest'])  # as cp would have it: the last one is new
    assert len(os.listdir('b')) == 2
    with pytest.raises(ValueError, match='101: expected a number from 1 to 95'):
        data.main(['jpeg', 'a', '101'])
    monkeypatch.setattr(os, 'link', lambda *names: (_ for _ in ()).throw(OSError('other disk')))
    assert data.main(['merge', 'copies', 'a', 'b']) == 0  # across file systems
    assert len(os.listdir('copies')) == 5 and os.stat('a/synthetic_000000.safetensors').st_nlink > 1


def test_files_are_for_whom_umask_says(tmp_path):
    pretrained.write_tensors(str(tmp_path / 'w.safetensors'), {'a': torch.zeros(2)})
    (tmp_path / 'plain').write_text('')
    modes = [os.stat(tmp_path / name).st_mode & 0o777 for name in ('w.safetensors', 'plain')]
    assert modes[0] == modes[1]


# ---- checkpoints


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A folder as train.py leaves it, of a tiny network that never learnt."""
    out = tmp_path_factory.mktemp('run')
    with open('assets/tokenizer.json', encoding='utf-8') as f:
        words = f.read()
    made = Processor(CAMERAS, 32, ('spine_z',), ('spine_z', '*/gripper'), 2, 10, words)
    made.stats = {
        'state_mean': np.zeros(1),
        'state_std': np.ones(1),
        'action_mean': np.zeros((2, 3)),
        'action_std': np.ones((2, 3)),
    }
    cfg = model.VLAConfig(
        vocab_size=made.tokenizer.get_vocab_size(),
        state_dim=1,
        action_dim=3,
        horizon=2,
        image_pad_id=made.token_id['<|image_pad|>'],
        state_pad_id=made.token_id['<|state_pad|>'],
        action_start_id=made.token_id['<|action_start|>'],
        hidden_size=16,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        head_dim=16,
        intermediate_size=16,
        mrope_section=(2, 3, 3),
        image_size=32,
        n_cameras=1,
    )
    facts = {'processor': made.to_dict(), 'settings': {}, 'step': 3, 'git_rev': 'x'}
    model.VLA(cfg).save(str(out), facts)
    state = {'step': 3, 'folder': '000000003', 'settings': {}, 'processor': made.to_dict()}
    state |= {'world_size': 1, 'fingerprint': 'x', 'best': 1.0, 'wandb_id': None, 'average_step': 3}
    pretrained.write_json(str(out / 'state.json'), state)
    return out


def load(path):
    net, meta = model.VLA.load(path)
    Processor.of_checkpoint(path, meta)
    assert folder.read_state(path) is not None
    return net


def json_mutants(facts, count, seed):
    """(what was done, JSON text): values replaced, keys dropped and added, text cut."""
    rng = np.random.default_rng(seed)
    text = json.dumps(facts)
    for i in range(count):
        mutant = copy.deepcopy(facts)
        place, name = mutant, '/'
        while True:
            keys = sorted(place)
            key = keys[rng.integers(len(keys))]
            inner = place[key]
            if not isinstance(inner, dict) or not inner or key in ('settings', 'world'):
                break
            place, name = inner, f'{name}{key}/'
        if i % 4 == 0:
            yield 'cut', text[: rng.integers(len(text))]
        elif i % 4 == 1:
            place['surprise'] = 1
            yield f'{name} has a surprise', json.dumps(mutant)
        elif i % 4 == 2:
            del place[key]
            yield f'{name} without {key}', json.dumps(mutant)
        else:
            place[key] = ODD[rng.integers(len(ODD))]
            yield f'{name} {key} {place[key]!r:.20}', json.dumps(mutant)


@pytest.mark.parametrize('name', ['meta.json', 'state.json'])
def test_120_damaged_descriptions_of_a_run_each_get_one_line_with_the_file(run, tmp_path, name):
    shutil.copytree(run, tmp_path / 'run')
    path = str(tmp_path / 'run')
    load(path)
    facts = json.loads((run / name).read_text())
    taken = []
    for what, text in json_mutants(facts, 120, len(name)):
        (tmp_path / 'run' / name).write_text(text)
        try:
            load(path)
            taken.append(what)
        except (ValueError, FileNotFoundError) as refusal:
            assert path in str(refusal) and '\n' not in str(refusal), f'{what}: {refusal}'
    free = (
        'settings',
        'world',
        'git_rev',
        'fingerprint',
        ' step',
        'best',
        'wandb',
        'sum',
        'average',
    )
    free += (
        'surprise',
        'without',
        'log_scale',
        'row_decay',
        'text_weight',
        'rope_theta',
        'norm_eps',
    )
    for what in taken:  # changes no number that acts, or is a number like any other
        assert any(word in what for word in free) or what.startswith('/model/'), what
    assert len(taken) < 60, taken


@pytest.mark.parametrize('missing', ['action_space', 'state_table', 'action_table'])
def test_tables_of_slots_are_whole_or_not_there(run, tmp_path, missing):
    shutil.copytree(run, tmp_path / 'run')
    meta = json.loads((run / 'meta.json').read_text())
    del meta['processor'][missing]
    (tmp_path / 'run/meta.json').write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=f"meta.json: processor: no '{missing}', which goes with"):
        load(str(tmp_path / 'run'))


@pytest.mark.parametrize(
    'damage, words',
    [
        (lambda t: t['embed_tokens.weight'].reshape(-1).fill_(np.nan), 'is not finite'),
        (lambda t: t.pop('embed_tokens.weight'), 'missing: embed_tokens.weight'),
        (lambda t: t.update(extra=torch.zeros(1)), 'not in the model: extra'),
        (lambda t: t.update({'embed_tokens.weight': torch.zeros(3, 3)}), 'other shape: embed_tok'),
        (lambda t: t.update({'embed_tokens.weight': torch.zeros(3, dtype=torch.int64)}), 'is I64'),
    ],
)
def test_weights_are_compared_with_the_network_before_they_are_used(run, tmp_path, damage, words):
    shutil.copytree(run, tmp_path / 'run')
    path = str(tmp_path / 'run' / 'model.safetensors')
    tensors = safetensors.torch.load_file(path)
    damage(tensors)
    pretrained.write_tensors(path, tensors)
    with pytest.raises(ValueError) as refusal:
        load(str(tmp_path / 'run'))
    assert str(refusal.value).startswith(path) and words in str(refusal.value)


def test_a_network_that_is_too_large_is_refused_before_it_is_made(run, tmp_path):
    shutil.copytree(run, tmp_path / 'run')
    meta = json.loads((run / 'meta.json').read_text())
    for change, words in (
        (dict(n_layers=50_000), 'n_layers is 50000, expected a whole number from 1 to 1000'),
        (dict(n_layers=900), 'does not fit the sizes in meta.json: missing: decoder.blocks.1'),
        (dict(intermediate_size=9_000_000), 'other shape'),
    ):
        changed = meta | {'model': meta['model'] | change}
        (tmp_path / 'run' / 'meta.json').write_text(json.dumps(changed))
        with pytest.raises(ValueError, match='run/m') as refusal:
            load(str(tmp_path / 'run'))
        assert words in str(refusal.value)


def test_half_a_file_and_a_pipe_are_named(run, tmp_path):
    shutil.copytree(run, tmp_path / 'run')
    path = tmp_path / 'run' / 'model.safetensors'
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match='model.safetensors is cut off or damaged'):
            load(str(tmp_path / 'run'))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match='model.safetensors is no regular file'):
        load(str(tmp_path / 'run'))


@pytest.mark.parametrize('text', ['', '{}', '[]', 'null', '{"model": 3}', 'no JSON', '\xff'])
def test_what_is_no_tokenizer_is_named(tmp_path, text):
    path = tmp_path / 'tokenizer.json'
    path.write_bytes(text.encode('latin-1'))
    with pytest.raises(ValueError) as refusal:
        tokenizer.read_text(path)
    assert str(path) in str(refusal.value)


# ---- a run's own folder


@pytest.mark.parametrize('name', ['new.tmp', 'state', 'best', 'step_000000001', 'meta.json'])
def test_a_link_inside_a_runs_folder_is_not_followed(tmp_path, name):
    (tmp_path / 'victim').mkdir()
    (tmp_path / 'victim' / 'notes.txt').write_text('mine')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / name).symlink_to(tmp_path / 'victim')
    with pytest.raises(ValueError, match=f'run/{name} is a link to .*victim'):
        checkpoint.check_folder(str(tmp_path / 'run'))
    assert (tmp_path / 'victim' / 'notes.txt').read_text() == 'mine'


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path):
    out = str(tmp_path / 'run')
    first = checkpoint.lock(out)
    (tmp_path / 'run' / 'state.json.77.tmp').write_text('half')
    with pytest.raises(ValueError, match=f'under way in {out} .process {os.getpid()} on '):
        checkpoint.lock(out)
    first.close()
    checkpoint.lock(out).close()
    assert os.listdir(out) == ['run.lock']  # and what a kill had left is gone


def test_ctrl_c_asks_for_a_stop_once_and_so_does_a_launcher_that_is_gone(monkeypatch):
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in signals}
    try:
        request = parallel.StopRequest('SIGUSR1', launched=True)
        assert request.agreed() == 0
        signal.raise_signal(signal.SIGINT)
        assert request.agreed() == parallel.LEAVE
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        request = parallel.StopRequest('SIGUSR1', launched=True)
        monkeypatch.setattr(os, 'getppid', lambda: 1)
        assert request.agreed() == parallel.LEAVE
        assert parallel.StopRequest('SIGUSR1').agreed() == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_damaged_lines_of_logs_are_left_out(tmp_path):
    row = dict(seed=1, success=True, made_with={'task': 'place'})
    path = tmp_path / 'rollouts.jsonl'
    path.write_text('{"seed": 9')
    ledger.append(path, row)  # behind a line that was cut off
    with open(path, 'ab') as f:
        f.write(
            b'{"seed": }}\n{"seed": 2}\n[1]\n\xff\n{"seed": "x", "success": 1, "made_with": {}}\n'
        )
    assert ledger.read_log(path) == {('place', 1): row}
    log = tmp_path / 'log.jsonl'
    log.write_text('{"step": 1, "loss": 2}\n{"step": \nnull\n{"loss": 3}\n')
    assert watch.read_log(str(log)) == [{'step': 1, 'loss': 2}]


def test_collectors_share_a_folder_where_their_settings_agree(tmp_path):
    (tmp_path / 'place_0000500.safetensors.8978.tmp').write_text('left by a kill')
    first = ledger.share(tmp_path, dict(task='place', kicks=0.1))
    assert os.listdir(tmp_path) == ['recording.lock']
    second = ledger.share(tmp_path, dict(task='place', kicks=0.1))
    with pytest.raises(ValueError, match='kicks was 0.1, is 0.2; take another folder'):
        ledger.share(tmp_path, dict(task='place', kicks=0.2))
    first.close()
    second.close()
    ledger.share(tmp_path, dict(task='place', kicks=0.2)).close()


def test_an_emptied_recording_counts_as_none(sound, tmp_path):
    made_with = dict(task='place')
    row = dict(seed=3, success=True, made_with=made_with)
    log = tmp_path / 'rollouts.jsonl'
    ledger.append(log, row)
    path = ledger.episode_file(tmp_path, 'place', 3)
    path.write_bytes(sound)
    assert ledger.recorded(log, tmp_path, 'place', [3], made_with) == {3: row}
    path.write_bytes(b'')
    assert ledger.recorded(log, tmp_path, 'place', [3], made_with) == {}


def test_one_stray_action_that_widens_the_spread_is_named():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.02, (1000, 2))
    values[7, 1] = 9
    assert processor._strays(('a', 'b'), values, np.full(2, 0.001)).keys() == {'b'}


def test_the_interface_between_nodes_is_not_the_loopback():
    name = parallel.network_interface('127.0.1.1')  # what Debian calls this machine
    assert name is None or (name != 'lo' and os.path.exists(f'/sys/class/net/{name}'))


@pytest.mark.parametrize('size', [(480, 640), (100, 900), (640, 30), (29, 29)])
def test_pictures_are_brought_to_their_size_as_the_installed_pillow_does_it(size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    h, w = vision.smart_size(*size, 56 * 56, 28 * 28 * 1280)
    expected = PIL.Image.fromarray(picture).resize((w, h), PIL.Image.Resampling.BICUBIC)
    assert np.array_equal(vision.resize(torch.from_numpy(picture), h, w), np.asarray(expected))


@pytest.mark.mujoco
@pytest.mark.parametrize('value, words', [('opengl', 'MUJOCO_GL=opengl: MuJoCo knows '), ('', '')])
def test_a_word_that_mujoco_does_not_know_is_refused_and_none_is_as_unset(value, words):
    done = subprocess.run(
        [sys.executable, '-c', 'from sim.gl import gl_backend; print(gl_backend())'],
        env=os.environ | {'MUJOCO_GL': value},
        capture_output=True,
        text=True,
    )
    assert len(done.stderr.splitlines()) == bool(words) and words in done.stderr
    assert done.returncode == bool(words)
