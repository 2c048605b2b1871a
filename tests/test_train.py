"""Protects training: exact resume, the same numbers for any number of processes, self-sufficient
checkpoints.

python -m pytest tests/test_train.py
"""

import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import launch
import pytest
import test_pretrained
import torch
from recorder import run_recorded
from safetensors.torch import load_file, save_file

import data
import model
import train
from episode import git_rev, write_synthetic_episodes
from vla import checkpoint, layers, parallel, pretrained, watch
from vla.processor import FAR, Processor

TINY = (
    '--n_layers=1',
    '--image_size=16',
    '--cameras=overhead,',
    '--tokens_per_camera=2',
    '--max_steps=24',
    '--batch_size=8',
    '--log_interval=4',
    '--eval_interval=12',
    '--eval_batches=1',
    '--checkpoint_interval=5',
    '--dtype=float32',
)
SHORT = ('--max_steps=6', '--muon_learning_rate=0')


@pytest.fixture(scope='module')
def episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('episodes')
    write_synthetic_episodes(folder, 12, ('overhead',), 16)
    return folder


def command(episodes, out, *words):
    return (
        'train.py',
        'config/debug.py',
        *TINY,
        f'--episodes={episodes}',
        f'--out_dir={out}',
        *words,
    )


def read_log(folder):
    """The finished lines of a run's log."""
    lines = (folder / 'log.jsonl').read_text().splitlines(True)
    return [json.loads(line) for line in lines if line.endswith('\n')]


def run(*args, **kwargs):
    return launch.run(*command(*args), **kwargs)


def user_runs(*args, **kwargs):
    """As typed, in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, *command(*args)], capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured(folder):
    """The log without what depends on the clock and on the machine."""
    clock = ['samples_per_s', 'gflops', 'mfu', 'data_wait', 'muon_share', 'memory_gb', 'mapped_gb']
    return [
        json.dumps({k: v for k, v in line.items() if k not in clock}) for line in read_log(folder)
    ]


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
            assert (x[k] - y[k]).abs().max() <= tolerance, (
                name,
                k,
                float((x[k] - y[k]).abs().max()),
            )
    return True


def identical(a, b):
    """Every line of two runs' logs, their weights, and all that their optimizers keep."""
    assert measured(a) == measured(b)
    states = [sorted(folder.glob('state/*/*.safetensors')) for folder in (a, b)]
    assert [path.name for path in states[0]] == [path.name for path in states[1]] != []
    for x, y in ((load_file(x), load_file(y)) for x, y in zip(*states)):
        assert x.keys() == y.keys() and any(k.startswith('optimizer/') for k in x)
        assert all(torch.equal(x[k], y[k]) for k in x)
    return same(a, b)


@pytest.fixture(scope='module')
def whole(episodes, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp('whole')
    return out, user_runs(episodes, out)


def test_rate_warms_up_then_falls_to_its_end():
    rates = [train.get_lr(step, 1000, 100, 0.02) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01, rel=0.01)
    assert max(rates) == pytest.approx(rates[99], abs=0.01) and rates[99] > 0.95
    assert rates[1000] == pytest.approx(0.02) and all(
        a > b for a, b in zip(rates[100:], rates[101:])
    )


def test_a_run_writes_a_checkpoint_that_suffices_by_itself(whole, episodes):
    out, said = whole
    assert (
        f'next: python sim_rollout.py --ckpt={out}' in said
        and (out / 'loss.png').stat().st_size > 10_000
    )
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
    assert {os.path.splitext(name)[1] for name in files} == {
        '.safetensors',
        '.json',
        '.jsonl',
        '.lock',
        '.md',
    }
    facts = checkpoint.read_state(out)
    assert facts['step'] == 24 and os.listdir(out / 'state') == [facts['folder']]
    assert (
        f'{sum(p.stat().st_size for p in (out / "state").rglob("*.*")) / 1e6:.0f} MB to go on,'
        in said
    )


def test_a_start_that_is_refused_leaves_the_last_run_as_it_is(whole, episodes, tmp_path):
    shutil.copytree(whole[0], tmp_path / 'run')
    before = {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*.json')}
    again = (episodes, tmp_path / 'run', '--resume=never')
    assert 'cuda_graph=on needs a GPU' in run(*again, '--cuda_graph=on', fails=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / 'run').rglob('*.json')}


def test_the_log_has_one_line_per_interval_and_held_out_scores(whole):
    lines = read_log(whole[0])
    assert [line['step'] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert (
        all(math.isfinite(line['loss']) for line in lines) and lines[-1]['loss'] < lines[0]['loss']
    )
    assert [line['step'] for line in lines if 'val_position_mm' in line] == [12, 24]
    assert lines[-1]['val_position_mm'] < 60
    assert lines[-1]['lr'] == pytest.approx(
        2e-3 * train.get_lr(23, 24, 10, 0.02)
    )  # AdamW's, not a share


def test_a_killed_run_goes_on_to_bit_equal_weights(whole, episodes, tmp_path):
    """kill -9 at a moment nobody chose, twice; checkpoints every 5 steps, an epoch border on the
    way."""
    for step in (8, 16):
        process = launch.Script(*command(episodes, tmp_path))
        wait_for_step(process, tmp_path / 'log.jsonl', step)
        time.sleep(time.time() % 0.05)
        process.kill()
        process.communicate()
        assert not (tmp_path / 'loss.png').exists()
    said = run(episodes, tmp_path)
    assert 'starting at step ' in said and identical(whole[0], tmp_path)


def test_a_run_for_late_chunks_goes_on_with_the_hands_that_it_learnt(tmp_path):
    """They are learnt once, of the same episodes as the normaliser, and acted with as they are."""
    words = (*SHORT, '--delay=2', '--hide_pictures=True', '--cameras=overhead,right/wrist')
    folder = tmp_path / 'episodes'
    write_synthetic_episodes(folder, 8, ('overhead', 'right/wrist'), 16)
    run(folder, tmp_path / 'whole', *words)
    run(folder, tmp_path / 'cut', *words, '--max_minutes=1e-6')
    said = run(folder, tmp_path / 'cut', *words)
    assert 'starting at step 1' in said and identical(tmp_path / 'whole', tmp_path / 'cut')
    both = [model.VLA.load(tmp_path / name)[1]['processor'] for name in ('whole', 'cut')]
    assert both[0]['foresight'] is not None and both[0] == both[1]
    said = run(folder, tmp_path / 'plain', *words, '--grounding=False', fails=True)
    assert 'delay 2: what will be seen is foreseen from where bricks are' in said


def test_a_stop_between_two_lines_of_the_log_changes_neither_without_augmentation(
    episodes, tmp_path
):
    words = (*SHORT, '--gain=0', '--brightness=0', '--reask_share=0')
    run(episodes, tmp_path / 'whole', *words)
    assert 'stopped at step 1' in run(episodes, tmp_path / 'cut', *words, '--max_minutes=1e-6')
    run(episodes, tmp_path / 'cut', *words)
    assert identical(tmp_path / 'whole', tmp_path / 'cut')


@pytest.mark.parametrize(
    'number, words',
    [
        (signal.SIGTERM, 'stopped at step '),
        (signal.SIGUSR1, 'requeue: stopped at step '),
        (signal.SIGUSR2, 'requeue: stopped at step '),
    ],
)
def test_a_signal_finishes_the_step_saves_and_leaves_in_peace(
    whole, episodes, tmp_path, number, words
):
    """SIGUSR1 comes before SLURM's time limit, slurm/train.sh looks for the line; SIGTERM from
    scancel."""
    other = ('--requeue_signal=SIGUSR2',) if number == signal.SIGUSR2 else ()
    process = launch.Script(*command(episodes, tmp_path, '--checkpoint_interval=1000', *other))
    wait_for_step(process, tmp_path / 'log.jsonl', 4)
    process.send_signal(number)
    said = process.communicate()[0]
    assert process.returncode == 0 and said.splitlines()[-1].startswith(words)
    assert 'the same command goes on from here' in said
    said = run(episodes, tmp_path, '--keep_checkpoints=1', *other)
    assert 'starting at step ' in said and identical(whole[0], tmp_path)
    assert (
        'going on with other settings: checkpoint_interval 1000 -> 5, keep_checkpoints 0 -> 1'
        in said
    )
    (kept,) = tmp_path.glob('step_*')
    assert kept.name == 'step_000000024' and (kept / 'ema.safetensors').samefile(
        tmp_path / 'ema.safetensors'
    )


def test_a_dry_run_says_what_is_needed_draws_a_batch_and_changes_nothing(episodes, tmp_path):
    said = run(
        episodes,
        tmp_path,
        '--dry_run=True',
        '--accumulate=2',
        '--fsdp=True',
        '--offload=True',
        '--muon_learning_rate=0',
        processes=2,
    )
    assert '2 processes x 2 x 2 accumulated = 8 chunks per step' in said
    per_process = re.search(r'([\d.]+) M parameters, ([\d.]+) M of them per process', said)
    assert float(per_process[2]) == pytest.approx(float(per_process[1]) / 2, rel=0.02)
    where = re.findall(r'^(.*) per process, estimated: ', said, re.M)
    assert where == ['memory', 'main memory'] and 'starting' not in said
    assert [p.name for p in tmp_path.iterdir()] == ['batch.png']


def test_an_offline_wandb_run_is_gone_on_with_under_its_id(episodes, tmp_path):
    pytest.importorskip('wandb')
    env = dict(
        os.environ,
        WANDB_MODE='offline',
        SLURM_JOB_ID='12',
        WANDB_SILENT='true',
        WANDB_DATA_DIR=str(tmp_path / 'staged'),
    )
    ids = []
    for minutes in (1e-6, 0):  # the first run stops after one step
        user_runs(
            episodes,
            tmp_path,
            '--max_steps=2',
            '--wandb_project=test',
            f'--max_minutes={minutes}',
            '--wandb_artifacts=True',
            env=env,
        )
        ids.append(checkpoint.read_state(tmp_path)['wandb_id'])
    assert ids[0] and ids[0] == ids[1]
    assert len(list(tmp_path.glob(f'wandb/offline-run-*-{ids[0]}'))) == 2
    staged = [p.read_bytes() for p in tmp_path.glob('staged/**/*') if p.is_file()]
    assert (tmp_path / 'model.safetensors').read_bytes() in staged  # what `wandb sync` sends


def test_wandb_is_told_name_group_settings_and_revision(episodes, tmp_path):
    """By a stand-in, which writes down what it hears."""
    (tmp_path / 'wandb.py').write_text(
        'import json, types\n'
        'def init(**told):\n'
        f'    open({str(tmp_path / "told")!r}, "w").write(json.dumps(told))\n'
        '    return types.SimpleNamespace(id="7", finish=lambda: 0, log=lambda line: 0,\n'
        '                                 define_metric=lambda *args, **kwargs: 0)\n'
    )
    env = dict(os.environ, PYTHONPATH=str(tmp_path), SLURM_JOB_ID='12', SLURM_ARRAY_JOB_ID='11')
    user_runs(
        episodes,
        tmp_path / 'run',
        '--max_steps=1',
        '--val_fraction=0',
        '--wandb_project=p',
        env=env,
    )
    told = json.loads((tmp_path / 'told').read_text())
    assert (told['project'], told['name'], told['group']) == ('p', 'run-12', '11')
    assert told['config']['batch_size'] == 8 and told['config']['git_rev'] == git_rev()


def test_a_run_that_diverges_saves_nothing_of_it(episodes, tmp_path):
    words = ('--learning_rate=1e30', '--muon_learning_rate=0', '--val_fraction=0')
    said = run(episodes, tmp_path, *words, '--checkpoint_interval=3', fails=True)
    assert re.search('^step [0-9]+: (10|11|1[2-9]|20) steps in a row without a finite', said, re.M)
    assert f'there is no checkpoint in {tmp_path} yet' in said
    assert [path.name for path in tmp_path.rglob('*.safetensors')] == ['bad_batch.safetensors']
    said = run(episodes, tmp_path, *words, '--checkpoint_interval=1', fails=True)
    assert f'the checkpoint of step 1 in {tmp_path} holds finite numbers' in said
    files = [path for path in tmp_path.rglob('*.safetensors') if path.stem != 'bad_batch']
    assert len(files) == 3 and checkpoint.read_state(tmp_path)['step'] == 1
    assert model.VLA.load(tmp_path)[1]['step'] == 1
    assert all(v.isfinite().all() for path in files for v in load_file(path).values())


def test_an_episode_that_is_cut_off_under_a_run_is_named_and_the_checkpoint_stays(tmp_path):
    folder = tmp_path / 'episodes'
    write_synthetic_episodes(folder, 12, ('overhead',), 16)
    out = tmp_path / 'out'
    long = ('--max_steps=100000', '--val_fraction=0')
    process = launch.Script(*command(folder, out, *long))
    wait_for_step(process, out / 'log.jsonl', 8)
    path = sorted(folder.glob('*.safetensors'))[3]
    size = path.stat().st_size
    os.truncate(path, size // 2)
    said = process.communicate()[0]
    assert process.returncode == 1 and 'Traceback' not in said
    expected = f'{path}: cut off while it was in use: {size} bytes when it was opened, {size // 2}'
    assert expected in said.splitlines()[-1]
    assert checkpoint.read_state(out)['step'] >= 5


def test_a_finished_or_different_run_is_not_continued(whole, episodes, tmp_path):
    out = whole[0]
    assert 'is finished at step 24' in run(episodes, out)
    said = run(episodes, out, '--learning_rate=0.1', fails=True)
    assert 'learning_rate 0.002 -> 0.1' in said and '--resume=never' in said
    facts = checkpoint.read_state(out)  # of a time when there was no such setting
    del facts['settings']['row_decay'], facts['settings']['keep_checkpoints']
    (tmp_path / 'state.json').write_text(json.dumps(facts))
    assert 'is finished at step 24' in run(episodes, tmp_path)
    said = run(episodes, tmp_path, '--row_decay=0.5', '--keep_checkpoints=2', fails=True)
    assert 'holds a run with other settings (row_decay 1.0 -> 0.5): ' in said


def test_a_run_with_another_stem_goes_on_with_it_only(whole, tmp_path):
    facts = checkpoint.read_state(whole[0])
    facts['settings'] |= dict(vision='mine', max_steps=30, out_dir=str(tmp_path))
    (tmp_path / 'state.json').write_text(json.dumps(facts))
    defaults = checkpoint.as_json(train.DEFAULTS)
    rest = (defaults, train.MAY_CHANGE, facts['world_size'], '')
    assert checkpoint.find_start(facts['settings'], *rest).kind == 'resumed'
    with pytest.raises(ValueError, match="vision 'mine' -> 'conv'"):
        checkpoint.find_start(facts['settings'] | {'vision': 'conv'}, *rest)


def test_a_run_is_not_continued_on_other_data(episodes, tmp_path):
    shutil.copytree(episodes, tmp_path / 'e')
    assert 'stopped at step 1' in run(
        tmp_path / 'e', tmp_path / 'run', *SHORT, '--max_minutes=1e-6'
    )
    path = data.Dataset(tmp_path / 'e', model_processor(tmp_path / 'run'), 'train', 0.2).paths[0]
    os.remove(path)
    said = run(tmp_path / 'e', tmp_path / 'run', *SHORT, fails=True)
    assert (
        f'{tmp_path}/e has changed since {tmp_path}/run was started' in said
        and '--resume=never' in said
    )


def model_processor(folder):
    return Processor.from_dict(json.loads((folder / 'meta.json').read_text())['processor'])


@pytest.fixture(scope='module')
def short(episodes, tmp_path_factory):
    """A short run of one process without Muon, which rounds to bfloat16 and so enlarges rounding
    errors."""
    out = tmp_path_factory.mktemp('short')
    run(episodes, out, *SHORT)
    return out


def test_gradient_accumulation_changes_nothing_but_rounding(short, episodes, tmp_path):
    run(episodes, tmp_path, *SHORT, '--accumulate=4')
    assert same(short, tmp_path, 1e-5)


def test_where_pictures_live_and_who_makes_batches_changes_nothing(short, episodes, tmp_path):
    run(episodes, tmp_path, *SHORT, '--frames_on_device=on', '--loader_processes=2')
    identical(short, tmp_path)


def test_steps_are_recorded_as_a_graph_where_shapes_stay_in_one_process_on_a_gpu():
    def records(world_size=1, device='cuda:0', **changes):
        return train.records(train.config | changes, world_size, device)

    assert records() and records(length_groups=1) and records(cuda_graph='on')
    assert not records(cuda_graph='off') and not records(device='cpu')
    assert not records(world_size=2) and not records(accumulate=2) and not records(length_groups=2)


def test_a_run_whose_steps_are_recorded_is_the_same(short, episodes, tmp_path):
    said = launch.run(run_recorded, *command(episodes, tmp_path, *SHORT))
    identical(short, tmp_path)
    assert said.count('recorded\n') == 1


def test_a_new_run_can_start_from_the_weights_of_another(whole, episodes, tmp_path):
    run(episodes, tmp_path, *SHORT, f'--init_from={whole[0]}')
    first, fresh = [read_log(out)[0] for out in (tmp_path, whole[0])]
    assert first['loss'] < 0.9 * fresh['loss']


def test_weights_of_another_run_come_with_what_they_depend_on(whole, episodes, tmp_path):
    """Asked for otherwise it is refused, and where nothing is asked for it is said."""
    where = (f'--init_from={tmp_path}', '--max_steps=1', '--val_fraction=0')
    for name in ('model.safetensors', 'ema.safetensors', 'meta.json'):
        shutil.copy(whole[0] / name, tmp_path)
    said = run(episodes, tmp_path / 'run', *where, '--horizon=3', '--log_scale_m=0.1', fails=True)
    assert 'trained with other settings' in said and '--init_from= starts from scratch' in said
    assert '(horizon 3 here, 8 there; log_scale_m 0.1 here, 0.004 there): ' in said
    meta = json.loads((tmp_path / 'meta.json').read_text())
    slot, spread = meta['processor']['state_slots'][0], meta['processor']['stats']['state_std']
    meta['processor'] |= dict(log_scale_m=0.1, stats_of=None)
    meta['processor']['stats']['state_std'] = [spread[0] / 1e3, *spread[1:]]
    (tmp_path / 'meta.json').write_text(json.dumps(meta))
    said = run(episodes, tmp_path / 'run', *where)
    assert f'the settings of {tmp_path} are used: log_scale_m 0.004 here, 0.1 there\n' in said
    assert re.search(f'{slot} +reaches [0-9]+ spreads of the normaliser that is taken over', said)
    meta = json.loads((tmp_path / 'run/meta.json').read_text())
    assert meta['settings']['log_scale_m'] == meta['processor']['log_scale_m'] == 0.1
    assert 'is finished at step 1' in run(episodes, tmp_path / 'run', *where)  # the same command


def test_data_that_a_normaliser_was_not_made_of_is_compared_with_it(whole, episodes):
    processor = model_processor(whole[0])
    dataset = data.Dataset(episodes, processor, 'train', 0.2)
    own = Processor.from_dict(processor.to_dict() | {'stats': None}).fit(dataset)
    assert watch.odd_slots(processor, dataset, FAR) == own
    processor.stats['action_std'][:, -1] /= 1e4
    name = f'action {processor.action_slots[-1]}'
    odd = watch.odd_slots(processor, dataset, FAR)
    assert odd.keys() == {*own, name} and odd[name].startswith('reaches ')


def test_the_debug_config_runs_as_it_is_from_any_folder_and_learns(tmp_path):
    """It writes to out/ and episodes/ there, and finds its config and tokenizer beside the code."""
    done = subprocess.run(
        [sys.executable, pathlib.Path('train.py').resolve(), 'config/debug.py'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 'torch.float32 on ' in done.stdout
    lines = read_log(tmp_path / 'out/debug')
    assert lines[-1]['step'] == 100 and lines[-1]['loss'] < 0.5 * lines[0]['loss']


def test_help_is_to_be_had_from_any_folder():
    done = subprocess.run(
        [sys.executable, pathlib.Path('train.py').resolve(), '--help'],
        cwd='/',
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 'python train.py config/debug.py' in done.stdout
    lines = done.stdout.splitlines()
    headings = ['where and what', 'data', 'model: these', 'optimizer', 'running']
    found = [line[4:] for line in lines if any(line.startswith(f'  # {h}') for h in headings)]
    assert [len(found), found[0], found[-1]] == [5, 'where and what', 'running']
    assert f'  --hidden_size={model.VLAConfig.hidden_size}  # 8..65_536' in lines
    settings = [line for line in lines if line.startswith('  --')]
    assert len(settings) == len(train.config)


def publish(folder):
    """A tiny folder of Qwen2.5-VL: no action head, no action tokens."""
    folder.mkdir()
    tokenizer = test_pretrained.write_qwen_tokenizer(folder)
    published = pathlib.Path(test_pretrained.FOLDER)
    hf = json.loads((published / 'config.json').read_text())
    hf = {k: v for k, v in hf.items() if 'action' not in k and k != 'state_token_id'}
    hf['image_token_id'] = tokenizer.token_to_id('<|image_pad|>')
    hf['video_token_id'] = tokenizer.token_to_id('<|video_pad|>')
    (folder / 'config.json').write_text(json.dumps(hf))
    tensors = load_file(published / 'model.safetensors')
    of_head = [k for k in tensors if pretrained.hub_name(k).startswith(pretrained.HEAD)]
    save_file({k: v for k, v in tensors.items() if k not in of_head}, folder / 'model.safetensors')
    return folder


TRAIN_CONFIGS = [
    path.stem
    for path in sorted(pathlib.Path('config').glob('*.py'))
    if 'train.py' in path.read_text() and path.stem != 'own'  # test_own_episodes.py types that one
]


def typed(name):
    """The configs that the head of a config tells to type for it."""
    if name == 'qa':  # it goes on from the demo, with its settings
        return ['config/demo.py', 'config/qa.py']
    if name.endswith(('_start', '_sight')):
        return [f'config/{name[: -len("_start")]}.py', f'config/{name}.py']
    return [f'config/{name}.py']


def starts_from_weights(name):
    """Whether a config names a checkpoint or a published model to start from."""
    return re.search("^init_from = '.+'", pathlib.Path(f'config/{name}.py').read_text(), re.M)


@pytest.mark.parametrize('name', TRAIN_CONFIGS)
def test_every_config_says_what_it_needs_where_nothing_is_there_yet(tmp_path, name):
    """On a laptop: no episodes, no first lesson, no published weights."""
    out = f'--out_dir={tmp_path}/run'
    elsewhere = [f'--episodes={tmp_path}/episodes/demo'] if name != 'debug' else []
    said = launch.run('train.py', *typed(name), *elsewhere, out, '--dry_run=True')
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['batch.png']
    claimed = re.findall(
        r'(\d+) GPUs?, (\d+) GB (?:of each )?by estimate', pathlib.Path(typed(name)[-1]).read_text()
    )
    for n, gb in claimed:
        found = re.search(rf'on {n} GPUs? in bfloat16, estimated: ([\d.]+) GB', said)
        assert round(float(found[1])) == int(gb), f'the head of {name} says {gb} GB: {found[0]}'
    assert 'GB = ' in said and 'Traceback' not in said
    muon = re.search(r' of Muon, ([\d.]+)% of both', said)
    assert muon is None or float(muon[1]) <= 10


@pytest.mark.parametrize('name', [name for name in TRAIN_CONFIGS if starts_from_weights(name)])
def test_every_config_that_starts_from_weights_does_so_as_typed(tmp_path, name):
    """It names what it starts from: a run of another config, or a published model."""
    words = typed(name)
    size = 224 if name == 'eo1_3b' else 96
    cameras = ('overhead', 'left/wrist', 'right/wrist')
    write_synthetic_episodes(tmp_path / 'e', 3, cameras, size)
    small = [f'--episodes={tmp_path}/e', '--val_fraction=0', '--batch_size=8']
    small.append('--refuse_share=0')  # these episodes have words without a grammar
    if name == 'eo1_3b':
        words.append(f'--init_from={publish(tmp_path / "published")}')
    else:
        start = f'--out_dir={tmp_path}/start'
        launch.run('train.py', words[0], '--init_from=', *small, start, '--max_steps=1')
        words.append(f'--init_from={tmp_path}/start')
    said = launch.run('train.py', *words, *small, f'--out_dir={tmp_path}/run', '--dry_run=True')
    assert f'first batch: {tmp_path}/run/batch.png' in said
    assert 'GB = ' in said and 'Traceback' not in said


def test_a_published_folder_decides_sizes_tokens_and_prompt(tmp_path):
    folder = publish(tmp_path / 'published')
    write_synthetic_episodes(tmp_path / 'e', 3, ('overhead', 'left/wrist'), 56)
    words = ('train.py', 'config/eo1_3b.py', f'--init_from={folder}', f'--episodes={tmp_path}/e')
    words += ('--image_size=56', '--cameras=overhead,left/wrist', '--batch_size=4')
    words += (f'--out_dir={tmp_path}/run', '--max_steps=2', '--val_fraction=0', '--dtype=float32')
    said = launch.run(*words, '--hidden_size=64', fails=True)
    assert 'was trained with other settings' in said and 'hidden_size 64 here, 128 there' in said
    said = launch.run(*words, '--image_size=60', fails=True)
    assert f'image_size 60: {folder} takes multiples of 28 pixels' in said
    said = launch.run(*words, '--max_minutes=1e-6')
    assert f'the settings of {folder} are used: hidden_size 192 here, 128 there; ' in said
    meta = json.loads((tmp_path / 'run/meta.json').read_text())
    fields = pretrained.read_config(str(folder))
    ours = {'horizon': 16, 'state_dim': 32, 'action_dim': 32, 'text_weight': 1.0}
    ours |= {k: meta['model'][k] for k in ('image_pad_id', 'state_pad_id', 'action_start_id')}
    for key, value in (fields | ours).items():
        assert meta['model'][key] == (list(value) if isinstance(value, tuple) else value), key
    assert meta['model']['predict'] == 'velocity' and meta['model']['tokens_per_camera'] == 4
    assert [meta['processor'][k] for k in ('template', 'pad_dims')] == ['qwen', 32]
    assert meta['settings']['hidden_size'] == 128
    assert 'starting at step 1' in launch.run(*words)  # the same command goes on


OLD = {new: old for old, new in checkpoint.RENAMED.items()}


def make_old(folder, **settings):
    """Turn a run's state into one of the time when settings had other names, and more of them."""
    facts = checkpoint.read_state(folder)
    old = checkpoint.GONE | checkpoint.GONE_TO_THE_FOLDER | facts['settings'] | settings
    facts['settings'] = {OLD.get(name, name): value for name, value in old.items()}
    facts['processor'] = {OLD.get(name, name): v for name, v in facts['processor'].items()}
    assert 'draws' in facts['settings'] and 'compand' in facts['processor']
    (folder / 'state.json').write_text(json.dumps(facts))


def test_a_run_of_a_time_with_other_settings_goes_on(episodes, tmp_path):
    words = (*SHORT, '--checkpoint_interval=3', '--gain=0.2')
    run(episodes, tmp_path / 'whole', *words)
    assert 'stopped at step 1' in run(episodes, tmp_path / 'old', *words, '--max_minutes=1e-6')
    make_old(tmp_path / 'old', times='uniform')
    said = run(episodes, tmp_path / 'old', *words, fails=True)
    assert "holds a run with other settings (times 'uniform' -> 'beta'): " in said
    make_old(tmp_path / 'old', times='beta', head_layers=2)
    assert '(head_layers 2 -> 1): ' in run(episodes, tmp_path / 'old', *words, fails=True)
    make_old(tmp_path / 'old', head_layers=1, threads=2)
    said = run(episodes, tmp_path / 'old', *words)
    assert 'going on with other settings: max_minutes 1e-06 -> 0.0, threads 2 -> 1' in said
    assert 'starting at step 1' in said and same(tmp_path / 'whole', tmp_path / 'old')
    run(episodes, tmp_path / 'old', *words, '--noise_samples=3', fails=True)


def test_weights_of_a_time_with_other_names_come_with_their_normaliser(whole, episodes, tmp_path):
    for name in ('model.safetensors', 'ema.safetensors', 'meta.json'):
        shutil.copy(whole[0] / name, tmp_path)
    meta = json.loads((tmp_path / 'meta.json').read_text())
    meta['processor']['compand'] = meta['processor'].pop('log_scale_m')
    (tmp_path / 'meta.json').write_text(json.dumps(meta))
    where = (f'--init_from={tmp_path}', '--max_steps=1', '--val_fraction=0')
    said = run(episodes, tmp_path / 'run', *where, '--log_scale_m=0.1', fails=True)
    assert '(log_scale_m 0.1 here, 0.004 there): ' in said
    assert 'starting' in run(episodes, tmp_path / 'run', *where)


@pytest.mark.mujoco
@pytest.mark.slow
def test_a_run_scores_itself_in_closed_loop(tmp_path):
    launch.run(
        'sim_rollout.py',
        'config/demo_collect.py',
        '--episodes=4',
        '--image_size=16',
        f'--record={tmp_path}/e',
    )
    said = run(
        tmp_path / 'e',
        tmp_path / 'run',
        '--cameras=overhead,left/wrist,right/wrist',
        '--max_steps=4',
        '--val_fraction=0',
        '--rollout_interval=2',
        '--rollout_episodes=2',
        '--state_slots=*',
        '--horizon=4',
        '--action_slots=*/tool_[xyz],*/tool_rz,*/gripper',
    )
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
    process.send_signal(signal.SIGTERM)  # all ranks leave after the same step
    process.communicate()
    run(episodes, tmp_path / 'cut', processes=2)
    assert identical(tmp_path / 'two', tmp_path / 'cut')


def test_settings_that_do_not_go_together_are_named():
    config = dict(train.config, batch_size=10, accumulate=3)
    with pytest.raises(ValueError, match='batch_size 10 does not divide by 2 processes x acc'):
        train.check_settings(config, 2)
    with pytest.raises(ValueError, match='cuda_graph=on is for one process, .* length_groups 2'):
        train.records(dict(train.config, cuda_graph='on', length_groups=2), 1, 'cuda:0')
    with pytest.raises(ValueError, match='offload=True is for fsdp=True, and AdamW only'):
        train.check_settings(dict(train.config, offload=True, fsdp=True), 1)
    with pytest.raises(ValueError, match="requeue_signal 'USR1' is no signal"):
        parallel.StopRequest('USR1')


def test_batches_are_cut_where_shapes_may_change_and_samples_are_many():
    config = dict(train.config, batch_size=128, accumulate=1)
    assert [train.count_groups(config, n, False) for n in (1, 2, 4, 16)] == [4, 4, 2, 1]
    assert train.count_groups(config, 2, True) == 1
    assert train.count_groups(config | {'length_groups': 8}, 2, True) == 8


def test_bfloat16_is_chosen_only_where_the_hardware_is_fast_at_it():
    amd = {'cpu_name': 'AMD EPYC', 'avx512_bf16': True, 'amx_bf16': False}
    assert layers.cpu_likes_bfloat16(amd)
    assert layers.cpu_likes_bfloat16(amd | {'cpu_name': 'Intel Xeon', 'amx_bf16': True})
    assert not layers.cpu_likes_bfloat16(amd | {'cpu_name': 'Intel Xeon'})
    assert not layers.cpu_likes_bfloat16({'cpu_name': 'Intel Xeon', 'avx512_f': True})
    fast = layers.cpu_likes_bfloat16(torch.cpu.get_capabilities())
    assert layers.autocast_for('cpu').fast_dtype == (torch.bfloat16 if fast else torch.float32)
    with layers.autocast_for('cpu', 'float32'):
        assert not torch.is_autocast_enabled('cpu')
    with pytest.raises(ValueError, match='float16'):
        layers.autocast_for('cpu', 'float16')


def test_a_run_says_what_becomes_of_float32_on_a_gpu():
    assert watch.products_text('cpu', torch.float32) == 'torch.float32 on cpu'
    assert watch.products_text('cuda:0', torch.float32).endswith(
        'on cuda:0, in convolutions too: no TF32'
    )
    assert watch.products_text('cuda:0', torch.bfloat16).endswith('stay float32 in TF32')


def test_a_lesson_in_seeing_says_which_lesson_in_acting_comes_next(monkeypatch):
    said = train.next_command('out/all_sight', None, sight_only=True)
    assert said == 'python train.py config/all.py config/all_start.py'
    monkeypatch.setattr(sys, 'argv', ['train.py', 'config/demo.py', '--sight_only=True'])
    said = train.next_command('out/x y', None, sight_only=True)
    assert said == (
        'python train.py config/demo.py --sight_only=True --sight_only=False '
        "'--init_from=out/x y' '--out_dir=out/x y_acting'"
    )
