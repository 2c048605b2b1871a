"""The stepping loop as users run it: recording survives kills, replay is bit-equal, refusals,
scores, films.

python -m pytest tests/test_rollout.py
"""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import imageio.v2 as imageio
import launch
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import sim_rollout
from episode import COLOURS, TOOL_ACTION_NAMES, check_episode, read_episode, write_episode
from sim import film, labels, ledger, policies, workers
from sim.judge import PHASES
from sim.world import World
from vla import policy

pytestmark = pytest.mark.mujoco


ROOT = pathlib.Path(__file__).resolve().parent.parent

rollout = functools.partial(launch.run, 'sim_rollout.py')


def log(folder):
    return [json.loads(line) for line in (folder / 'rollouts.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def blind_world():
    return World('place', cameras=())


def test_recorded_episodes_are_sound_and_named_by_task_and_seed(recorded):
    assert sorted(p.stem for p in recorded.glob('*.safetensors')) == [
        'place_0000000',
        'place_0000001',
    ]
    for path in recorded.glob('*.safetensors'):
        assert check_episode(path) == []
        arrays, header = read_episode(path)
        assert header['success'] and header['seed'] < 1_000_000
        assert len(arrays['time']) == header['metrics']['steps']
        changed = (arrays['tool_action'] != arrays['tool_executed']).any(1)
        # a kick moves the robot, not the label
        assert changed[arrays['kicked'] == 1].any()
        off = np.abs(arrays['tool_action'] - arrays['tool_executed'])[arrays['kicked'] == 0]
        still = [i for i, slot in enumerate(TOOL_ACTION_NAMES) if slot[-6:-1] != 'tool_']
        assert (
            off.max() < 0.01 and not off[:, still].any()
        )  # jitter: millimetres, nothing but position
    assert [row['success'] for row in log(recorded)] == [True, True]


def test_replay_is_bit_equal_also_with_other_cameras(recorded, tmp_path):
    folder = tmp_path / 'small'
    text = rollout(
        f'--policy={recorded}',
        '--image_size=32',
        '--cameras=head',
        f'--record={folder}',
        '--workers=1',
    )
    assert 'replay bit-equal in 2/2 episodes' in text
    small, header = read_episode(folder / 'place_0000001.safetensors')
    large, _ = read_episode(recorded / 'place_0000001.safetensors')
    assert small['image/head'].shape[1:] == (32, 32, 3) and list(header['cameras']) == ['head']
    for name in large.keys() & small.keys():
        floats = small[name].dtype.kind == 'f'  # nan: no brick of that colour
        assert np.array_equal(small[name], large[name], equal_nan=floats), name


def test_a_replay_takes_the_seeds_and_the_task_it_is_told_and_says_what_it_leaves_out(
    recorded, tmp_path
):
    folder = shutil.copytree(recorded, tmp_path / 'episodes')
    arrays, header = read_episode(recorded / 'place_0000001.safetensors')
    join = dict(header, task='join', seed=7, world=header['world'] | dict(task='join'))
    write_episode(folder / 'join_0000007.safetensors', arrays, join)
    end = ['--workers=1', f'--out={tmp_path}/out']
    text = rollout(f'--policy={folder}', '--task=place', '--episodes=1', '--seeds=1:3', *end)
    assert (
        '1 of 3 episodes are replayed; left out: 1 that --seeds' in text
        and '1 of other tasks (join)' in text
    )
    assert 'bit-equal in 1/1' in text and [row['seed'] for row in log(tmp_path / 'out')] == [1]
    for argument, said in (
        ('--seeds=5', 'none of its seeds (0-1) is among those'),
        ('--task=stack', 'task=stack: '),
        ('--brick_scale=1', 'was recorded with 2.0; leave'),
        ('--control_hz=5', 'was recorded with 10; leave --control_hz out'),
    ):
        text = rollout(f'--policy={recorded}', argument, *end, fails=True)
        assert said in text and 'Traceback' not in text, text
    # Files differ in the instruction.
    other = dict(header, seed=3, world=header['world'] | dict(brick_scale=1.0))
    write_episode(folder / 'place_0000003.safetensors', arrays, other)
    text = rollout(f'--policy={folder}', '--task=place', *end, fails=True)
    assert (
        'place_0000003.safetensors was recorded with brick_scale=1.0' in text
        and 'one by one' in text
    )


def test_a_replay_that_differs_fails(recorded, tmp_path):
    arrays, header = read_episode(recorded / 'place_0000001.safetensors')
    qpos = np.array(arrays['qpos'])
    qpos[7:, 3] += 1e-12
    write_episode(tmp_path / 'place_0000001.safetensors', dict(arrays, qpos=qpos), header)
    for _ in range(2):  # a replay is never taken from the log
        text = rollout(f'--policy={tmp_path}', '--workers=1', f'--out={tmp_path}/out', fails=True)
        assert 'bit-equal in 0/1' in text and 'seed 1 differs from step 7 on' in text
    assert len(log(tmp_path / 'out')) == 1


def test_replay_notices_the_first_step_that_differs(recorded, blind_world, tmp_path):
    arrays, header = read_episode(recorded / 'place_0000001.safetensors')
    qpos = np.array(arrays['qpos'])
    qpos[7:, 3] += 1e-12
    path = tmp_path / 'place_0000001.safetensors'
    write_episode(path, dict(arrays, qpos=qpos), header)
    policy = policies.replay(blind_world, {1: path})
    result, _ = sim_rollout.run_episode(blind_world, policy, seed=1)
    assert result['success'] and result['differs_at'] == 7 and 0 < result['max_difference'] < 1e-11


def test_a_killed_recording_goes_on_and_repeats_nothing(tmp_path):
    folder = tmp_path / 'episodes'
    arguments = [
        '--episodes=5',
        '--kicks=0.1',
        '--workers=1',
        '--image_size=32',
        f'--record={folder}',
    ]
    process = launch.Script('sim_rollout.py', *arguments)
    while len(list(folder.glob('*.safetensors'))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    # Its workers, too, have to close stdout: they finish what they have in hand
    process.communicate()
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob('*.safetensors')}
    with open(folder / 'rollouts.jsonl', 'a') as f:  # and a line that was cut off
        f.write('{"seed": 5, "succ')
    text = rollout(*arguments)
    assert f'{len(before)} seeds are done, {5 - len(before)} to go' in text and 'place 5/5' in text
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob('*.safetensors')}
    assert len(after) == 5 and all(after[name] == stamp for name, stamp in before.items())
    assert not list(folder.glob('*.tmp'))
    assert '5 seeds are done, 0 to go' in rollout(*arguments)


def test_words_refer_to_the_goal_at_work(tmp_path):
    """The rows of a plan in two steps: the long brick goes onto blue, then also onto white."""
    world = World('bridge', cameras=())
    result, rows = sim_rollout.run_episode(world, policies.expert(world, 0.0), seed=0, record=True)
    arrays, header = labels.pack_episode(world.truth(), world.metadata(), result, rows)
    assert result['success'] and 'referents' not in arrays
    (zero, first), (t, second) = header['referents']
    assert zero == 0 and 0 < t < len(rows) - 10
    assert [COLOURS[int(table[0][2])] for table in (first, second)] == ['blue', 'white']


def test_failed_seeds_are_remembered(tmp_path):
    made_with, path = dict(task='place', kicks=0.1), tmp_path / 'rollouts.jsonl'
    rows = [dict(seed=seed, success=False, made_with=made_with) for seed in (3, 4)]
    path.write_text('\n'.join(map(json.dumps, rows)))
    assert sorted(ledger.recorded(path, tmp_path, 'place', [2, 3, 4], made_with)) == [3, 4]
    with pytest.raises(ValueError, match='kicks was 0.1, is 0.2'):
        ledger.recorded(path, tmp_path, 'place', [3], dict(made_with, kicks=0.2))


def test_every_recorded_episode_has_one_line_whatever_was_killed(recorded, tmp_path):
    """Killed between writing a file and logging it, and in the middle of a line."""
    folder = shutil.copytree(recorded, tmp_path / 'episodes')
    lines = (folder / 'rollouts.jsonl').read_text().splitlines()
    before = json.loads(lines[1])
    (folder / 'rollouts.jsonl').write_text(lines[0] + '\n' + lines[1][:40])
    text = rollout('--episodes=3', '--kicks=0.1', f'--record={folder}', '--workers=1')
    assert '2 seeds are done, 1 to go' in text and 'place 3/3' in text
    rows = {row['seed']: row for row in log(folder)}
    assert (
        len(rows) == len(log(folder)) == 3 and lines[0] in (folder / 'rollouts.jsonl').read_text()
    )
    again, seed = rows[before['seed']], before['seed']
    assert again == dict(before, wall_s=None), f'seed {seed}, from its file'
    # a file of other settings is not taken for one of these
    (folder / 'rollouts.jsonl').unlink()
    said = rollout('--kicks=0.1', '--image_size=32', f'--record={folder}', fails=True)
    assert 'image_size was 96, is 32; take another folder' in said


def test_several_tasks_are_recorded_into_one_folder_and_go_on_after_time_is_up(tmp_path):
    folder = tmp_path / 'episodes'
    words = ['--task=place,stack', '--episodes=3', '--cameras=', '--workers=1', '--kicks=0.1']
    words.append(f'--record={folder}')
    said = rollout(*words, '--max_minutes=1e-9')
    assert 'place: no episode yet' in said and 'stopped after 1e-09 minutes, 6 episodes' in said
    said = rollout(*words)
    assert re.findall(r'^(\w+) (\d)/(\d) ', said, re.M) == [
        ('place', '3', '3'),
        ('stack', '3', '3'),
    ]
    # they take turns: whenever it is stopped, no task has had more than its share
    assert [row['made_with']['task'] for row in log(folder)] == ['place', 'stack'] * 3
    names = [f'{task}_000000{seed}' for task in ('place', 'stack') for seed in range(3)]
    assert sorted(p.stem for p in folder.glob('*.safetensors')) == names
    headers = [read_episode(folder / f'{name}.safetensors')[1] for name in names]
    assert [header['task'] for header in headers] == ['place'] * 3 + ['stack'] * 3
    (folder / 'stack_0000001.safetensors').unlink()
    said = rollout(*words)
    assert 'place: ' in said and '3 seeds are done, 0 to go' in said
    assert 'stack: ' in said and '2 seeds are done, 1 to go' in said and len(log(folder)) == 6
    said = rollout(*words[1:], '--task=place', '--brick_scale=1', fails=True)
    assert 'was made with other settings: brick_scale was 2.0, is 1' in said  # also of one task
    said = rollout(f'--policy={folder}', '--task=all', '--workers=1', f'--out={tmp_path}/replay')
    assert said.count('replay bit-equal in 3/3 episodes') == 2


def test_scores_have_a_folder_per_task_and_way_and_stand_in_one_table(tmp_path):
    words = ['--task=place,join', '--seeds=1000000:1000002', '--cameras=', '--workers=1']
    words += ['--policy=hold', f'--out={tmp_path}']
    said = rollout(*words, '--blank')
    rows = [line.split() for line in said.splitlines() if line.startswith(('place ', 'join '))]
    table = [row for row in rows if '%,' not in ' '.join(row)]
    assert table == [
        [task, '0/2', '0.0%', '0-66', '0/2', '0.0%', '0'] for task in ('place', 'join')
    ]
    folders = {p.parent.name for p in tmp_path.rglob('rollouts.jsonl')}
    ways = {f'{task}-{way}cameras=' for task in ('place', 'join') for way in ('', 'blanked-')}
    assert folders == ways
    assert {row['instruction'] for row in log(tmp_path / 'join-blanked-cameras=')} == {''}
    assert all(row['instruction'] for row in log(tmp_path / 'join-cameras='))
    scores = json.loads((tmp_path / 'scores.json').read_text())['tasks']
    assert scores['join']['blanked']['n'] == 2 and scores['place']['score']['k'] == 0
    assert scores['place']['score']['seconds_per_success'] is None
    before = {p: p.read_bytes() for p in tmp_path.rglob('rollouts.jsonl')}
    rollout(*words, '--pose_range=0.5')  # another way: what was there stays
    assert all(p.read_bytes() == text for p, text in before.items())
    assert len(log(tmp_path / 'place-cameras=-pose_range=0.5')) == 2


def test_successes_per_hour_count_failures_and_resets():
    results = [dict(steps=50, success=True), dict(steps=70, success=True)]
    results.append(dict(steps=150, success=False))
    score = sim_rollout.score_of(results, control_hz=10, reset_s=10.0)
    assert (score['k'], score['n'], score['seconds_per_success']) == (2, 3, 6.0)
    assert score['successes_per_hour'] == pytest.approx(3600 * 2 / (27 + 30))
    lines = sim_rollout.table({'place': {'score': score}, 'join': {'score': None}}, 10.0)
    assert lines[1].split() == ['place', '2/3', '66.7%', '21-94', '6.0', '126']
    assert lines[2].split() == ['join'] and lines[-1].split() == ['mean', '66.7%']


def test_names_of_score_folders_are_short_and_hold_no_slash():
    name = sim_rollout.folder_name('place', 'put it down', {'cameras': ['head', 'left/wrist']})
    assert name == 'place-told=put_it_down-cameras=head,left_wrist'
    long = sim_rollout.folder_name('place', 'word ' * 40, {})
    assert re.fullmatch(r'place-[0-9a-f]{8}', long)


def test_a_killed_score_goes_on_and_no_episode_counts_twice(tmp_path):
    out = tmp_path / 'out'
    arguments = [
        '--policy=hold',
        '--cameras=',
        '--seeds=1000000:1000004',
        '--workers=1',
        f'--out={out}',
    ]
    first = rollout(*arguments)
    whole = (out / 'rollouts.jsonl').read_text().splitlines()
    (out / 'rollouts.jsonl').write_text('\n'.join([*whole[:2], whole[2][:50]]))
    text = rollout(*arguments)
    assert '2 seeds are done, 2 to go; to run them anew delete that file' in text
    assert [line for line in text.splitlines() if 'CI' in line] == [
        line for line in first.splitlines() if 'CI' in line
    ]
    assert (out / 'rollouts.jsonl').read_text().splitlines()[:2] == whole[:2]
    assert sorted(row['seed'] for row in log(out)) == list(range(1_000_000, 1_000_004))
    # other settings: those seeds anew, the others stay
    arguments[2] = '--seeds=1000003'
    text = rollout(*arguments, '--pose_range=0.5')
    assert 'are done' not in text and 'lines of 1 episodes that are run again are replaced' in text
    rows = {row['seed']: row for row in log(out)}
    assert len(rows) == len(log(out)) == 4
    assert [rows[1_000_000 + i]['made_with']['pose_range'] for i in range(4)] == [1, 1, 1, 0.5]


def test_a_score_never_takes_over_results_of_other_weights(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / 'run', ignore=shutil.ignore_patterns('rollout'))
    arguments = [f'--ckpt={folder}', '--episodes=1', '--execute=8', '--workers=1']
    assert 'are done' not in rollout(*arguments)
    assert '1 seeds are done, 0 to go' in rollout(*arguments)
    weights = load_file(folder / 'model.safetensors')
    name = max(weights, key=lambda k: weights[k].numel())
    stamp = (folder / 'model.safetensors').stat()
    save_file(weights | {name: weights[name] * 1.01}, folder / 'model.safetensors')
    os.utime(folder / 'model.safetensors', ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (folder / 'model.safetensors').stat().st_size == stamp.st_size
    text = rollout(*arguments)
    assert 'are done' not in text and 'place ' in text
    assert len(log(folder / 'rollout' / 'place-execute=8')) == 1


def test_only_another_setting_weight_or_line_of_code_makes_a_score_old(tmp_path):
    path, made_with = tmp_path / 'rollouts.jsonl', dict(task='place', code='a')
    rows = {s: dict(seed=s, success=True, made_with=dict(made_with)) for s in range(3)}
    rows[1]['made_with']['code'] = 'b'
    for row in rows.values():
        ledger.append(path, row)
    assert ledger.scored(path, range(5), made_with) == {0: rows[0], 2: rows[2]}


def test_tidy_leaves_one_line_per_episode(tmp_path):
    path = tmp_path / 'rollouts.jsonl'
    rows = {s: dict(seed=s, success=True, made_with=dict(task='place')) for s in range(4)}
    for seed in (0, 1, 2):
        ledger.append(path, rows[seed])
    with open(path, 'a') as f:
        f.write('{"seed": 9, "succ')
    # asked for 1, 2 and 3: 1 is done, 2 is run again, of 3 only the file was there
    keys = [('place', seed) for seed in range(4)]
    done = {keys[1]: rows[1], keys[3]: rows[3]}
    assert ledger.tidy(path, set(keys[1:]), done) == 1
    assert [json.loads(line)['seed'] for line in path.read_text().splitlines()] == [0, 1, 3]
    before = path.read_bytes()
    done[keys[0]] = rows[0]
    assert ledger.tidy(path, {keys[0], keys[1], keys[3]}, done) == 0
    assert path.read_bytes() == before


def test_the_fingerprint_sees_code_of_both_wings_and_models(tmp_path):
    """A score of other code must not be taken over; words in papers and configs change nothing."""
    root = tmp_path / 'house'
    for pattern in ('*.py', 'sim/*.py', 'vla/*.py', 'assets/**/*.xml', 'config/*.py', '*.md'):
        for file in ROOT.glob(pattern):
            copy = root / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    seen = {ledger.fingerprint(ledger.code_files(root))}
    changed = ('model.py', 'sim/clutch.py', 'vla/layers.py', 'assets/robots/alex/alex.xml')
    for n, name in enumerate(changed, 2):
        with open(root / name, 'a') as f:
            f.write(' ')
        seen.add(ledger.fingerprint(ledger.code_files(root)))
        assert len(seen) == n, f'{name} was changed unseen'
    for name in ('README.md', 'config/demo.py'):
        with open(root / name, 'a') as f:
            f.write(' ')
    assert ledger.fingerprint(ledger.code_files(root)) in seen


def test_the_expert_runs_from_any_folder_and_without_torch(tmp_path):
    """Where torch cannot be imported, neither by the script nor by its worker."""
    (tmp_path / 'torch.py').write_text('raise ImportError("torch was imported")')
    script = ROOT / 'sim_rollout.py'
    command = [sys.executable, script, '--episodes=1', '--cameras=', '--workers=1', '--out=o']
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get('PYTHONPATH')]))
    where = dict(cwd=tmp_path, env=os.environ | {'PYTHONPATH': path})
    done = subprocess.run(command, capture_output=True, text=True, **where)
    assert done.returncode == 0, done.stderr
    assert 'place 1/1' in done.stdout and len(log(tmp_path / 'o')) == 1
    shown = subprocess.run([sys.executable, script, '--help'], capture_output=True, cwd='/')
    assert shown.returncode == 0 and b'--policy=' in shown.stdout


def test_what_makes_no_sense_is_refused_by_name(tmp_path):
    assert 'never recorded' in rollout('--seeds=999999:1000001', f'--record={tmp_path}', fails=True)
    assert 'only the expert' in rollout('--policy=random', f'--record={tmp_path}', fails=True)
    assert 'policy=exprt: there is no such folder; expected a checkpoint' in rollout(
        '--policy=exprt', fails=True
    )
    assert not list(tmp_path.glob('*.safetensors'))


@pytest.mark.parametrize(
    'argument, said',
    [
        ('--seeds=a:b', 'seeds=a:b: expected one seed, or'),
        ('--seeds=5:3', 'seeds=5:3: expected'),
        ('--seeds=5:5', 'seeds=5:5: expected'),
        ('--seeds=-2:0', 'seeds=-2:0: expected'),
        ('--seed0=-1', 'seed0=-1: expected a whole number, at least 0'),
        ('--episodes=0', 'episodes=0: expected a whole number, from 1 to 1_000_000'),
        ('--episodes=many', 'episodes=many: expected a whole number'),
        ('--workers=-1', 'workers=-1: expected a whole number, from 0 to 1024'),
        ('--max_minutes=-1', 'max_minutes=-1.0: expected a number, at least 0'),
        ('--task=place,jion', "task=place,jion: no task 'jion'; expected all, or of place, "),
        ('--blank --instruction=x', 'blank=True changes nothing here'),
        ('--video=-1', 'video=-1: expected a whole number, at least 0'),
        ('--ckpt=out/none', 'policy=out/none: there is no such folder; expected a checkpoint of '),
        ('--policy=README.md', 'README.md is no episode to replay, remove it or record it again: '),
        ('--distractors=1.5', 'distractors=1.5: expected a whole number'),
        ('--image_size=0', 'image_size=0: expected a whole number, from 1 to 4096'),
        ('--image_size=big', 'image_size=big: expected a whole number'),
        ('--pose_range=2', 'pose_range=2: expected a number, from 0.0 to 1.0'),
        ('--physics_dt_s=0', 'physics_dt_s=0: expected a number, from 0.0005'),
        ('--task=5', "task=5: no task '5'; expected all, or of place, "),
        ('--cameras=5', "camera '5': expected some of "),
        ('--out=README.md', 'out=README.md: cannot be made a folder: File exists'),
        (
            '--record=README.md/episodes',
            'record=README.md/episodes: cannot be made a folder: Not a directory',
        ),
        ('--kicks=2', 'kicks=2.0: expected a number, from 0 to 1'),
        (
            '--execute=5',
            'execute=5 changes nothing here, where the policy is expert: it is for where',
        ),
        ('--read_text=True', 'read_text=True changes nothing here'),
        ('--plan=x.yaml --wording=held_out', 'wording=held_out changes nothing here'),
        ('--seeds=0:99999999999', 'seeds=0:99999999999: expected one seed'),
        ('--wording=held_out --record=x', 'wording=held_out is for scoring only'),
        ('--instruction=<|vla|>', 'would forge a special token'),
        ('--impossible_share=1.5', 'impossible_share=1.5: expected a number, from 0.0 to 1.0'),
        ('--port=9000', 'port=9000 changes nothing here'),
        ('--viewer --video=1', 'video=1 changes nothing here'),
        ('--viewer --record=x', 'record=x changes nothing here'),
        ('--show_joints', 'show_joints=True changes nothing here'),
        ('--reverse=True', 'reverse=True changes nothing here'),
        ('--reverse=yes', 'reverse=yes: expected True or False'),
        ('--task=', 'task= is empty: name one, or leave --task out'),
        ('--teleop --viewer --ckpt=x', 'teleop: the keys drive, leave --policy and --ckpt out'),
        ('--policy=ws://localhost:x', 'ws://localhost:x: no policy server answers there'),
        (
            '--policy=hold --kicks=0.1',
            'kicks=0.1 changes nothing here, where the policy is hold: it is for where the',
        ),
        ('--pictures=rgb', "pictures=('rgb',) changes nothing here"),
        (
            '--video=1 --pictures=flow',
            "pictures: no kind 'flow'; expected some of rgb,depth,segmentation",
        ),
    ],
)
def test_a_setting_without_sense_gets_one_line_that_names_it(argument, said):
    text = rollout(*argument.split(), fails=True)
    last = text.splitlines()[-1]
    assert said in last and 'Traceback' not in text and len(text.splitlines()) < 20, text


def test_one_seed_is_a_range_of_one():
    assert sim_rollout.seed_range('5') == range(5, 6)
    assert sim_rollout.seed_range('1_000_000:1_000_020') == range(1_000_000, 1_000_020)


def test_what_a_worker_meets_reaches_the_user_in_one_line(monkeypatch, tmp_path):
    """Without a renderer; in a process of its own, as MUJOCO_GL counts when mujoco is imported."""
    monkeypatch.setenv('MUJOCO_GL', 'disable')
    command = [sys.executable, 'sim_rollout.py', '--episodes=2', f'--out={tmp_path}']
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and 'running seed 100000' in run.stderr, run.stderr
    assert 'apt-get install libegl1' in run.stderr and len(run.stderr.splitlines()) == 1


def test_a_plan_that_does_not_fit_its_range_is_said_not_traced():
    def refuse(seed):
        raise RuntimeError('no place for white')

    answer = workers.attempt(refuse, 3)
    assert re.fullmatch(r'no place for white \(test_rollout.py:\d+\)', str(answer))
    assert workers.attempt(sorted, [2, 1]) == [1, 2]


def test_an_episode_that_was_cut_off_is_named(recorded, tmp_path):
    folder = shutil.copytree(recorded, tmp_path / 'episodes')
    path = folder / 'place_0000001.safetensors'
    path.write_bytes(path.read_bytes()[:5000])
    for policy in (folder, path):
        text = rollout(f'--policy={policy}', fails=True)
        assert f'{path} is no episode to replay, remove it' in text and 'Traceback' not in text


def test_checkpoint_is_scored_on_test_seeds_with_its_own_cameras(checkpoint):
    text = rollout(
        f'--ckpt={checkpoint}',
        '--episodes=2',
        '--execute=4',
        '--read_text=True',
        '--instruction=',
        '--workers=1',
    )
    assert 'words that the grammar' not in text
    assert '0/2 (0%, 95% CI 0-66) seeds 1000000-1000001' in text
    assert 'chunk latency' in text and 'got as far as: reach ' in text
    folder = checkpoint / 'rollout' / 'place-blanked-execute=4-read_text=True'
    rows = log(folder)
    assert sorted(row['seed'] for row in rows) == [1_000_000, 1_000_001]
    assert all(row['instruction'] == '' and row['made_with']['image_size'] == 96 for row in rows)
    assert all(
        row['made_with']['execute'] == 4 and -(-row['steps'] // 4) == len(row['chunk_ms'])
        for row in rows
    )
    picture = folder / 'success.png'
    assert f'success over time: {picture}' in text
    image = imageio.imread(picture)[..., :3]
    assert image.shape == (320, 960, 3) and image.std() > 20


def test_no_number_of_workers_is_one_per_core_as_far_as_there_is_work():
    assert sim_rollout.count_workers(0, 1000) == workers.cores() >= 1
    assert sim_rollout.count_workers(0, 1) == sim_rollout.count_workers(3, 1) == 1
    assert sim_rollout.count_workers(3, 1000) == 3 and sim_rollout.count_workers(0, 0) == 0


def test_workers_share_one_network(checkpoint, tmp_path):
    """And what it refuses ends the score in one line."""
    words = (f'--ckpt={checkpoint}', '--share_network=True', '--execute=8', '--workers=2')
    own = '--instruction=Whack the crimson brick onto near left'
    text = rollout(*words, '--episodes=1', f'--out={tmp_path}/own', own)
    assert 'words that the grammar of instructions does not have: whack, crimson\n' in text
    text = rollout(*words, '--episodes=2', f'--out={tmp_path}')
    assert '/2 (' in text and 'chunk latency' in text
    assert sorted(row['seed'] for row in log(tmp_path)) == [1_000_000, 1_000_001]
    text = rollout(*words, '--seeds=0:2', f'--record={tmp_path}/coached')
    assert len(log(tmp_path / 'coached')) == 2
    assert re.search(r'next: .* python train\.py .*coached', text)
    assert '--cameras' not in text  # They are the usual ones.
    recorded = list((tmp_path / 'coached').rglob('*.safetensors'))
    assert recorded and all(read_episode(path)[0]['kicked'].any() for path in recorded)
    text = rollout(*words, '--image_size=64', '--episodes=2', f'--out={tmp_path}/other', fails=True)
    assert '64x64' in text and 'Traceback' not in text


def test_checkpoint_refuses_a_world_that_does_not_fit(checkpoint):
    assert '64x64' in rollout(f'--ckpt={checkpoint}', '--image_size=64', '--workers=1', fails=True)
    load = functools.partial(policy.checkpoint, checkpoint, device='cpu')
    for world, said in ((dict(control_hz=5), '5 Hz'), (dict(cameras=('overhead',)), 'wrist')):
        with pytest.raises(ValueError, match=said):
            load(World(**world).metadata())


def test_film_shows_something_that_moves(tmp_path):
    text = rollout('--episodes=1', '--video=1', '--workers=1', f'--out={tmp_path}')
    assert 'place_1000000_success.mp4' in text
    with imageio.get_reader(tmp_path / 'place_1000000_success.mp4') as reader:
        frames = list(iter(reader))  # the length it gives itself is unbounded
    steps = log(tmp_path)[0]['steps']
    n_of_steps = steps * 25 // 10
    assert len(frames) == 1 + n_of_steps + round(1.5 * 25), '25 a second, and the verdict held'
    height = len(frames[0]) - 480
    assert frames[0].shape == (height + 480, 1200, 3) and height < 100
    views = {
        'text': np.s_[:height, :720],
        'third_person': np.s_[height:, :720],
        'wrist': np.s_[-240:, 720:960],
    }
    for name, view in views.items():
        assert frames[0][view].std() > 10, f'{name} is empty'
        moved = np.abs(frames[0][view].astype(int) - frames[n_of_steps // 2][view])
        assert moved.max() > 50, f'{name} stands still'
    person = [frame[views['third_person']].astype(int) for frame in frames[20:30]]
    moved = [np.abs(a - b).max() for a, b in zip(person, person[1:])]
    assert min(moved) > 20, 'it moves between control steps, too'
    assert imageio.imread(tmp_path / 'sheet.png').shape == (38 + 2 * 350, 1440, 3)
    assert not list(tmp_path.glob('*.part.mp4'))


@pytest.mark.parametrize(
    'record, tasks, said',
    [
        ('episodes/demo', ['place'], 'config/demo.py config/demo_start.py'),
        ('episodes/demo_coached', ['place'], 'config/demo.py'),
        ('/x/demo_coached', ['place'], 'config/demo.py --episodes=/x/demo,/x/demo_coached'),
        (
            'episodes/mine',  # no config is called so, and the slots of none have taught no policy
            ['join'],
            'config/join.py config/join_start.py --episodes=episodes/mine --out_dir=out/mine',
        ),
        (
            '/a b/x',
            ['place', 'join'],
            "config/all.py config/all_start.py '--episodes=/a b/x' --out_dir=out/x",
        ),
    ],
)
def test_a_recording_names_the_config_that_learns_from_it(record, tasks, said):
    assert sim_rollout.lesson(record, tasks) == said
    assert sim_rollout.lesson(record, tasks, ['--image_size=64']) == f'{said} --image_size=64'


def test_films_are_half_failures_where_there_are_enough():
    results = [dict(seed=i, success=i % 5 > 0) for i in range(20)]  # fails: 0 5 10 15
    assert film.choose_films(results, 4) == [1, 2, 0, 5]
    assert film.choose_films(results[:5], 4) == [1, 2, 3, 0]
    assert film.choose_films(results[:2], 4) == [1, 0]
    assert film.choose_films(results, 0) == []


def test_success_curve_counts_who_has_finished_by_then():
    ends = [(30, True), (50, False), (20, True), (30, True), (40, False)]
    results = [dict(steps=steps, success=success) for steps, success in ends]
    time_s, count = film.success_curve(results, control_hz=10)
    assert time_s.tolist() == [0, 2, 3, 5] and count.tolist() == [0, 1, 3, 3]
    time_s, count = film.success_curve(results[1:2], control_hz=10)
    assert time_s.tolist() == [0, 5] and count.tolist() == [0, 0]


def test_funnel_counts_who_got_at_least_as_far():
    results = [dict(phase_id=i) for i in (0, 1, 1, 3, len(PHASES) - 1)]
    counts = film.funnel(results)
    assert list(counts) == list(PHASES[1:]) and list(counts.values())[:4] == [
        4,
        2,
        2,
        1,
    ]


def test_wilson_interval_is_the_textbook_one():
    assert np.allclose(film.wilson(37, 50), (0.6045, 0.8413), atol=5e-5)
    assert np.allclose(film.wilson(0, 10), (0, 0.2775), atol=5e-5)
    assert np.allclose(film.wilson(200, 200), (0.9812, 1), atol=5e-5)


def test_a_recording_that_runs_keeps_its_folder(tmp_path):
    """Until it ends nobody may record other settings there."""
    words = ('sim_rollout.py', '--task=build', '--seeds=0:200', '--cameras=', '--workers=1')
    process = launch.Script(*words, f'--record={tmp_path}')
    while not list(tmp_path.glob('build_*.safetensors')):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    with pytest.raises(ValueError, match='another process'):
        ledger.share(tmp_path, dict(task='build', kicks=0.2))
    process.send_signal(signal.SIGINT)
    process.communicate()


def test_a_plan_that_was_edited_is_built_anew(tmp_path):
    brick = '- {{type: 2x4, colour: {}, at: [0, 0, {}]}}\n'
    plans = tmp_path / 'plans'
    plans.mkdir()
    for name in ('kept', 'edited'):
        (plans / f'{name}.yaml').write_text('bricks:\n' + brick.format('red', 0))
    words = ('sim_rollout.py', f'--plan={plans}', '--cameras=', '--episodes=1', '--workers=1')
    launch.run(*words, f'--out={tmp_path}/out')
    (plans / 'edited.yaml').write_text(
        'bricks:\n' + brick.format('red', 0) + brick.format('blue', 1)
    )
    said = launch.run(*words, f'--out={tmp_path}/out')
    assert '1 plans are done, 1 to go' in said


def test_the_moment_of_a_film_is_of_its_own_episode(tmp_path):
    """A scene may start with bricks that hold each other, and the last episode may have, too."""
    world = World('separate', cameras=(), image_size=64)
    reel = film.Reel(tmp_path / 'film', world)
    world.max_steps = 5
    sim_rollout.run_episode(world, policies.constant('hold'), 3, reel=reel)
    assert reel.key is None
    world.close()


def test_a_look_does_not_take_the_place_of_a_score(tmp_path):
    path = tmp_path / 'scores.json'
    made = {'weights': 'abc'}
    score = {'place': {'score': {'k': 99, 'n': 100}}}
    path.write_text(json.dumps({'made_with': made, 'tasks': score}))
    look = {'place': {'score': {'k': 1, 'n': 1}}, 'join': {'score': {'k': 0, 'n': 1}}}
    assert ledger.with_larger(path, made, look) == look | score
    assert ledger.with_larger(path, {'weights': 'other'}, look) == look
    assert ledger.with_larger(tmp_path / 'none.json', made, look) == look


def test_own_words_are_not_judged_and_what_was_done_is_said(tmp_path):
    words = ['--task=place', '--seeds=1000000', '--cameras=', '--workers=1', f'--out={tmp_path}']
    said = rollout(*words, '--instruction=do as you please')
    assert '1 episodes, not judged: the words are your own; what was done:' in said
    (row,) = log(tmp_path)
    assert f'seed 1000000: {row["did"]}' in said and ' on ' in row['did']
    assert not (tmp_path / 'scores.json').exists()
