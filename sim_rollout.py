"""Drive the world with a policy: record the expert, score a checkpoint, replay an episode, film it.

Record demonstrations (kill it and type it again: it goes on):
python sim_rollout.py config/demo_collect.py

A checkpoint drives and the expert labels (DAgger):
python sim_rollout.py config/demo_coach.py

Score a checkpoint on the held-out seeds, with and without being told what to do, and film it:
python sim_rollout.py --ckpt=out/demo --episodes=100 --blank
python sim_rollout.py --ckpt=out/demo --episodes=20 --video=4

What it loses where light, cameras, friction, ... differ, chunks come late, words are new: a table
python sim_rollout.py --ckpt=out/demo --robustness --episodes=40

Several tasks at once; a checkpoint that has learnt several is scored on all of them:
python sim_rollout.py --task=place,join --episodes=20 --record=episodes/both
python sim_rollout.py --task=all --episodes=2

Watch the expert on film, in MuJoCo's viewer, or any scene in the viewer:
python sim_rollout.py --task=join --episodes=1 --video=1
python sim_rollout.py --task=join --viewer
python sim_rollout.py --view=assets/scenes/bricks.xml --show_contacts

Build a structure of your own; a folder of plans gives a table of all of them:
python sim_rollout.py --plan=assets/plans/arch.yaml --video=1
python sim_rollout.py --plan=assets/plans

Drive with the keyboard and record that; sim/teleop.py says which keys do what:
python sim_rollout.py --task=place --viewer --teleop --record=episodes/mine

Serve a checkpoint to others, and let any server that speaks openpi's websocket protocol drive:
python sim_rollout.py --serve --ckpt=out/demo
python sim_rollout.py --policy=ws://127.0.0.1:8000

Replay a folder; this exits with 1 unless the physics is bit-equal:
python sim_rollout.py --policy=episodes/demo

On 1 or 8 GPUs these are the same commands: each core has a world, and one network on the first GPU
answers all of them; pictures are drawn by GPU or cores, by which is faster. As seeds are
independent, 2 nodes or 8 GPUs take shares into one folder (slurm/collect.sh is an array of such
jobs):
python sim_rollout.py config/demo_collect.py --seeds=0:450
python sim_rollout.py config/demo_collect.py --seeds=450:900

A score that was killed goes on as well: it keeps episodes of the same settings, weights and code.
"""

import os

# Before numpy is imported: one thread per worker.
os.environ['OMP_NUM_THREADS'] = '1'
os.environ['MKL_NUM_THREADS'] = '1'
os.environ['MPLBACKEND'] = 'Agg'  # pictures go to files, whatever a notebook has set
import functools
import hashlib
import inspect
import itertools
import json
import math
import multiprocessing
import queue
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import hub
import wire
from episode import write_atomic, write_episode
from instructions import plain, vocabulary
from sim import film, gl, labels, ledger, plan_score, policies
from sim import robustness as robust
from sim.judge import PHASES
from sim.tasks import TASKS
from sim.teleop import KEYS, keyboard
from sim.workers import Job, WorkerError, cores, dispatch, setup, start_workers, stop_workers
from sim.world import RENDER_MODES, World

# -----------------------------------------------------------------------------
# who drives
# expert, hold, zero, random; checkpoint folder; episode or folder to replay; ws://host:port;
# of the Hugging Face Hub user/name[@revision], or datasets/user/name to replay
policy = 'expert'
ckpt = ''  # --ckpt=out/demo is the same as --policy=out/demo
kicks = 0.0  # 0..1: expert: probability per step that a disturbance starts; the label stays clean
execute = 1  # 1..: checkpoint, server: rows of each chunk executed before the next one
steps = 1  # 1..1000: checkpoint: denoising steps per chunk
delay = 0  # 0..: checkpoint, server: steps by which a chunk comes late; rows before it go on
foresight = True  # checkpoint: late chunks begin where these rows lead, if it has learnt that
read_text = False  # checkpoint: decode the subtask text and act having read it
text_chunks = 1  # 1..: checkpoint: chunks that are made on one decoded text
compile_model = 'auto'  # 'auto' | 'on' | 'off': checkpoint: torch.compile, a CUDA graph on a GPU;
# auto: on a GPU without read_text
robustness = False  # score the policy in a clean world and in each that differs, on the same seeds
rows = ''  # Some rows of that table: clean,light,delay_3; '': all, see sim/robustness.py
instruction = None  # replaces the world's; empty blanks it
blank = False  # score everything a second time with the instruction blanked: are words needed?
device = None  # checkpoint: 'cpu', 'cuda'; None: cuda where there is one
dtype = 'float32'  # 'float32' | 'bfloat16': checkpoint; no faster: a chunk is calls
share_network = None  # True | False: checkpoint: one for all workers answers several at once;
# None: on a GPU, where each would else wait for the others'
# the world; None: as the checkpoint or the episode was made, else World's own default
task = None  # Names in tasks.TASKS: 'place', 'join', ...; several: place,join; or all
plan = None  # file that says what to build (sim/plan.py), in place of a task; a folder: all of them
initial_blocks = None  # True | False: the plan's bricks lie where its file says, not the seed
reverse = None  # True | False: the plan stands there and is taken apart
brick_scale = None  # 1.0..2.0: 1.0 LEGO, 2.0 DUPLO
cameras = None  # names, comma separated, see sim/world.py; --cameras= (empty) renders none
image_size = None  # 1..4096: px
control_hz = None  # 1..50: commands per second
robot = None  # assets/robots/<robot>/<robot>.xml
physics_dt_s = None  # 0.0005..0.02: 0.004 or 0.002
insertion_force_n = None  # 0.01..100: to press a brick on, N per stud
pull_force_n = None  # 0.01..100: to pull it off straight, N per stud
force_spread = None  # 0..0.99: share by which both vary from episode to episode
distractors = None  # 0..: bricks of other colours that lie about
pose_range = None  # 0.0..1.0: share of the range of spawn poses
target_range = None  # 0.0..1.0: share of the places on a plate or brick that are asked for
wording = None  # 'grammar', or 'held_out': words the grammar cannot make, for scoring only
impossible_share = None  # 0.0..1.0: of the episodes ask for what is not there: hands stay still
randomise = None  # 0.0..1.0: share of the full ranges of light, cameras, friction, ..., by the seed
randomise_only = None  # Some kinds of sim/randomise.py: light,camera; empty: all
# seeds: those of `seeds`, else `episodes` from seed0 on; of a replay those that are there
seeds = None  # one, or 'a:b', half open
seed0 = None  # 0..: None: 0 when recording, else 1_000_000: from there on seeds are for tests only
episodes = None  # 1..1_000_000: of each task; None: 10, of a replay all, for robustness 40
max_minutes = 0.0  # 0..: no new episode is begun after so long; 0: no limit
workers = 0  # 0..1024: processes, each with worlds of its own; 0: one per core
# output
record = ''  # folder for the successful episodes; what is there already is skipped
video = 0  # 0..: episodes of each task to film: half successes, half failures
video_speed = 1  # 1..100: how many times faster than the robot films run; long builds like 8
pictures = ()  # Its last moment beside each film: rgb,depth,segmentation as PNG and npz
out = ''  # Folder of log and films; '': record folder; scores have one per task and settings, in
# <checkpoint>/rollout or out/<policy>
reset_s = 10.0  # 0..: s: what laying out the next scene would take, for successes per hour
# How to look at it on a display; docs/viewer-checklist.md says what to look at.
viewer = False  # the episodes run in MuJoCo's viewer, in real time, none of them is recorded
teleop = False  # Keys drive there, and that is recorded: arrows, page up, enter, insert, ...
view = ''  # a scene instead of a task: --view=assets/scenes/bricks.xml
show_contacts = False  # points and forces of contact
show_joints = False  # axes of joints
# answer the observations of others instead, with a checkpoint
serve = False  # over openpi's websocket protocol, until it is interrupted
host = '127.0.0.1'  # address to listen at; beyond this machine anybody may ask
port = 8000  # 0..65535
DEFAULTS = dict(globals())  # tells which settings were changed
config: dict  # the next line makes it: all settings by name
exec((Path(__file__).parent / 'configurator.py').read_text())  # overrides by file or command line
# -----------------------------------------------------------------------------
CODE = Path(__file__).parent
TEST_SEED0 = 1_000_000
MOST_SEEDS = 1_000_000  # One command makes lists of them.
WORLD_KEYS = (
    'task',
    'plan',
    'initial_blocks',
    'reverse',
    'brick_scale',
    'cameras',
    'image_size',
    'control_hz',
    'robot',
    'physics_dt_s',
    'insertion_force_n',
    'pull_force_n',
    'force_spread',
    'distractors',
    'pose_range',
    'target_range',
    'wording',
    'impossible_share',
    'randomise',
    'randomise_only',
)
# settings that only a checkpoint has, arguments of vla.policy.checkpoint
CHECKPOINT_KEYS = (
    'execute',
    'steps',
    'delay',
    'foresight',
    'read_text',
    'text_chunks',
    'compile_model',
    'device',
    'dtype',
)
TEXTS = ('task', 'plan', 'robot', 'wording', 'device')  # An empty one names nothing.
# Some of these are the matter of who asks, where a checkpoint is served.
CLIENT_KEYS = ('execute', 'delay', 'text_chunks')
# -----------------------------------------------------------------------------
# The one stepping loop


def run_episode(world, start, seed, instruction=None, record=False, reel=None, watched=None):
    """Run one episode: look, ask who drives, step.

    Args:
        world: A World.
        start: Who drives, see sim/policies.py.
        seed: Draws everything that differs from episode to episode.
        instruction: Replaces the world's.
        record: Keep what an episode file holds.
        reel: A film.Reel that is to show it.
        watched: Asked after every step whether to go on.

    Returns:
        The result, a dict that JSON can hold; the rows of the episode's file, if record.
    """
    began = time.perf_counter()
    obs, info = world.reset(seed)
    act = start(seed)
    words = world.instruction if instruction is None else instruction
    rows = []
    chunk_ms = []
    difference = []
    n_steps = 0
    go_on = True
    while go_on:
        obs['instruction'] = words
        choice = act(obs)
        if choice is None:
            break
        if record:
            rows.append(labels.episode_row(world.truth(), obs, info, choice))
        if reel:
            reel.look(obs, info, choice['subtask'])
        obs, _, terminated, truncated, info = world.step(choice['executed'])
        n_steps += 1
        if record:
            rows[-1]['joint_action'] = obs['joint_command']
        if 'chunk_ms' in choice:
            chunk_ms.append(round(choice['chunk_ms'], 2))
        if 'difference' in choice:
            difference.append(choice['difference'])
        go_on = not (terminated or truncated)
        if go_on and watched is not None:
            go_on = watched()
    own_words = bool(instruction)
    if reel:
        reel.end(obs | {'instruction': words}, info, judged=not own_words)
    result = dict(
        seed=seed,
        success=bool(info['success']),
        phase=PHASES[info['phase']],
        steps=n_steps,
        phase_id=info['phase'],
        fault=info['fault'],
        metrics=info['metrics'],
        instruction=words,
        wall_s=round(time.perf_counter() - began, 3),
    )
    if own_words:
        result['did'] = what_was_done(world)
    if chunk_ms:
        result['chunk_ms'] = chunk_ms
    if difference:
        result['differs_at'] = next((t for t, x in enumerate(difference) if x > 0), None)
        result['max_difference'] = max(difference)
    return result, rows


def what_was_done(world):
    """Say which goals hold that could have been asked for in this scene, else what is joined."""
    truth = world.truth()
    goals = [goal for goal, _ in world.askable if all(map(truth.joined, goal.chain))]
    done = [f'{goal.upper} on {goal.where or goal.lower}' for goal in goals]
    links = [f'{link["upper"]} on {link["lower"]}' for link in world.connections()]
    return ', '.join(dict.fromkeys(done or links)) or 'nothing is joined'


def save_episode(world, folder, result, rows):
    """Write the file of an episode that has just ended."""
    packed = labels.pack_episode(world.truth(), world.metadata(), result, rows)
    write_episode(ledger.episode_file(folder, world.task, result['seed']), *packed)


def run_job(world, start, job, record, pictures, speed):
    """Do one job in a worker process: run an episode, write its file or film.

    Args:
        world: A World of the job's task.
        start: Who drives.
        job: A workers.Job.
        record: Folder for a successful episode's file; '': none is written.
        pictures: Kinds of pictures to save of a film's last moment.
        speed: How many times faster than the robot a film runs.

    Returns:
        The job and the result.
    """
    if job.film is None:
        result, rows = run_episode(world, start, job.seed, job.instruction, bool(record))
        if record and result['success']:
            save_episode(world, record, result, rows)
        return job, result
    # A film repeats an episode that was run, and recorded, before.
    reel = film.Reel(job.film, world, speed)
    world.observer = reel.tick
    try:
        result, _ = run_episode(world, start, job.seed, job.instruction, reel=reel)
    except BaseException:
        reel.discard()
        raise
    finally:
        world.observer = None
    result |= dict(film=str(reel.path), thumbnails=reel.thumbnails(), key=reel.key, task=job.task)
    if pictures:
        stem = reel.path.with_suffix('')
        film.save_pictures(stem, world, film.FILM_VIEWS, pictures, film.FILM_PX)
    return job, result


def build_plan(job):
    """Build one plan of a folder in a worker process.

    Args:
        job: Plan file, seed, instruction or None, settings of the world, and who drives.

    Returns:
        Its row of the table, see plan_score.row.
    """
    file, seed, words, world_settings, driver = job
    try:
        world, start = setup(world_settings | {'plan': str(file)}, driver)
        try:
            result, _ = run_episode(world, start, seed, words)
            return plan_score.row(world, file, seed, result)
        finally:
            world.close()
    except ValueError as refusal:
        return plan_score.refused(file, seed, str(refusal))


def score_plans(folder, seeds, root, words, world_settings, driver, made_with):
    """Build every plan of a folder once per seed, print the table.

    A line in plans.jsonl for each; those made in the same way that are there already are kept.

    Args:
        folder: Where the plans lie.
        seeds: One episode of each plan for each.
        root: Folder of plans.jsonl.
        words: The instruction in place of the world's, or None.
        world_settings: Arguments of World but for the plan.
        driver: Who drives, see workers.setup.
        made_with: Settings and code, by which a line is known again.

    Raises:
        ValueError: There is no plan in the folder.
    """
    files = plan_score.plan_files(folder)
    log = root / 'plans.jsonl'
    made_of = {
        str(file): made_with | {'instruction': words, 'plan_text': ledger.fingerprint([file])}
        for file in files
    }
    done = plan_score.read_rows(log, made_of)
    asked = [(file, seed) for file in files for seed in seeds]
    rows = [done[str(file), seed] for file, seed in asked if (str(file), seed) in done]
    todo = [(file, seed) for file, seed in asked if (str(file), seed) not in done]
    if rows:
        print(f'{log}: {len(rows)} plans are done, {len(todo)} to go')
    if todo:
        jobs = [(*pair, words, world_settings, driver) for pair in todo]
        n = count_workers(workers, len(jobs))
        spawned = multiprocessing.get_context('spawn')
        # Ctrl-C is for this process, which ends the others.
        with spawned.Pool(n, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            for row in tqdm(pool.imap(build_plan, jobs), total=len(jobs), unit='plan'):
                ledger.append(log, dict(row, made_with=made_of[row['file']]))
                rows.append(row)
    print('\n'.join(plan_score.table(rows)))
    for row in [row for row in rows if row['refused']][:5]:
        print(f'  {row["refused"]}')
    print(f'  rows: {log}')


def count_workers(asked, jobs):
    """Return how many processes share so many jobs; asked 0: one per core, if there is work."""
    return min(asked or cores(), jobs)


def hold(draw):
    """Keep the last picture of a viewer until its window is closed."""
    if draw(standing=True):
        print('done; the last picture stays until you close the window', flush=True)
    while draw(standing=True):
        time.sleep(0.05)


def score_condition(folder, settings):
    """Score one condition of the robustness table: this very script, with its settings.

    Args:
        folder: Where its log stands; what is done there already is not run again.
        settings: All that differ from the defaults.

    Returns:
        What it refuses, '' where it was scored.
    """
    words = [f'--{name}={value}' for name, value in settings.items()]
    command = [sys.executable, __file__, *words, f'--out={folder}']
    said = ''
    make_folder('out', folder)
    with open(folder / 'said.txt', 'w', encoding='utf-8') as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.PIPE, text=True)
        try:
            for said in process.stderr:  # progress, and at last the reason of a refusal
                print(f'  {folder.name}: {said}', end='', file=sys.stderr, flush=True)
            process.wait()
        finally:
            process.terminate()
            process.wait()
    return said.strip() if process.returncode else ''


def score_conditions(conditions, settings, tasks, seeds, root):
    """Score all conditions, print and draw the table of them, write it as JSON after each.

    Args:
        conditions: {name: settings}, the clean one first, see robustness.conditions.
        settings: Those that hold in all of them.
        tasks: Names of the tasks that are scored; others may have been, in the same folder.
        seeds: Of every condition.
        root: Folder of the table, and of a folder for each condition.
    """
    done = []
    clean = {}
    print(robust.HEAD)
    for name, how in conditions.items():
        folder = root / name
        refusal = score_condition(folder, settings | how)
        if refusal and not done:
            raise ValueError(f'robustness: {refusal}')
        if refusal:
            done.append(robust.refused(name, how, refusal))
        else:
            logs = [ledger.read_log(log) for log in folder.rglob('rollouts.jsonl')]
            results = [
                row
                for log in logs
                for row in log.values()
                if row['made_with']['task'] in tasks and row['seed'] in seeds
            ]
            clean = clean or robust.outcomes(results)
            done.append(robust.compare(name, how, results, clean))
        print(robust.line(done[-1]), flush=True)
        about = dict(settings=settings, seeds=[min(seeds), max(seeds)], rows=done)
        write_atomic(root / 'robustness.json', json.dumps(about, indent=1).encode())
    minutes = sum(row['minutes'] for row in done if not row['refused'])
    robust.draw(root / 'robustness.png', f'{settings["policy"]}, {len(seeds)} seeds', done)
    print(f'{minutes:.0f} minutes of all workers together')
    print(f'  rows: {root / "robustness.json"}\n  chart: {root / "robustness.png"}')


# -----------------------------------------------------------------------------
# What is asked for


def check(settings, kind):
    """Raise ValueError for the first setting that has no sense, or none for who drives."""
    for name in TEXTS:
        if settings[name] == '':
            raise ValueError(f'{name}= is empty: name one, or leave --{name} out')
    if '<|' in (settings['instruction'] or ''):
        raise ValueError(f'instruction={settings["instruction"]}: "<|" would forge a special token')
    if settings['record'] and settings['wording'] == 'held_out':
        raise ValueError('wording=held_out is for scoring only, it is never recorded')
    if settings['teleop'] and (settings['ckpt'] or settings['policy'] != 'expert'):
        raise ValueError('teleop: the keys drive, leave --policy and --ckpt out')
    unknown = sorted(set(settings['pictures']) - set(RENDER_MODES))
    if unknown:
        raise ValueError(
            f'pictures: no kind {unknown[0]!r}; expected some of {",".join(RENDER_MODES)}'
        )
    asks_checkpoint = kind in ('checkpoint', 'coached')
    asks_chunks = asks_checkpoint or kind == 'remote'
    # setting: whether it is used, and where it would be
    used = dict.fromkeys(CHECKPOINT_KEYS, (asks_checkpoint, 'a checkpoint drives: --ckpt=out/demo'))
    for name in ('execute', 'delay'):
        used[name] = (asks_chunks, used[name][1])
    used['kicks'] = (kind == 'expert', 'the expert drives: leave --policy and --ckpt out')
    for name in ('pictures', 'video_speed'):
        used[name] = (settings['video'], 'films are made: --video=1')
    for name in ('host', 'port'):
        used[name] = (settings['serve'], 'a checkpoint is served: --serve')
    for name in ('show_contacts', 'show_joints'):
        used[name] = (settings['viewer'], 'there is a window: --viewer')
    for name in ('initial_blocks', 'reverse'):
        used[name] = (settings['plan'] or kind == 'replay', 'a plan is built: --plan=FILE')
    for name in ('wording', 'impossible_share'):
        used[name] = (not settings['plan'], 'a task has words: leave --plan out')
    if settings['viewer']:
        used['video'] = (False, 'there is no window: films are made without --viewer')
        used['record'] = (settings['teleop'], 'the keys drive there, too: --viewer --teleop')
    used['rows'] = (settings['robustness'], 'conditions are compared: --robustness')
    told = settings['instruction'] is None
    used['share_network'] = used['steps']
    used['blank'] = (told and not settings['record'], 'a score has its own instructions')
    if asks_checkpoint:
        used['text_chunks'] = (settings['read_text'], 'text is read: --read_text')
        alone = settings['text_chunks'] == 1
        used['share_network'] = (alone, 'each chunk has a text of its own: --text_chunks=1')
    driver = settings['ckpt'] or settings['policy']
    for name, (is_used, where) in used.items():
        if not is_used and settings[name] != DEFAULTS[name]:
            raise ValueError(
                f'{name}={settings[name]} changes nothing here, where the policy is {driver}: '
                f'it is for where {where}'
            )


def seed_range(seeds):
    """Turn '7' or '0:10', half open, into a range."""
    found = re.fullmatch(r'(\d+)(?::(\d+))?', seeds.replace('_', ''))
    numbers = range(0)
    if found:
        first = int(found[1])
        end = int(found[2] or first + 1)
        numbers = range(first, end)
    if not 0 < numbers.stop - numbers.start <= MOST_SEEDS:
        raise ValueError(
            f'seeds={seeds}: expected one seed, or the first and the one after the last: '
            f'--seeds=7, --seeds=0:10, at most {MOST_SEEDS} of them'
        )
    return numbers


def chosen_tasks(text):
    """Turn 'place', 'place,join' or 'all' into names of tasks, each once."""
    names = list(TASKS) if text == 'all' else list(dict.fromkeys(text.split(',')))
    for name in names:
        if name not in TASKS:
            raise ValueError(
                f'task={text}: no task {name!r}; expected all, or of {", ".join(TASKS)}'
            )
    return names


def folder_name(task, words, changed):
    """Name the folder of a score by its task and by what was asked for otherwise than usual.

    Args:
        task: Name of the task.
        words: The instruction in place of the world's; '' blanks it, None: the world's.
        changed: Settings of the world and of who drives that are not what they usually are.
    """
    said = [task]
    if words is not None:
        said.append(f'told={words}' if words else 'blanked')
    for name, value in changed.items():
        text = ','.join(value) if isinstance(value, list) else value
        said.append(f'{name}={text}')
    text = re.sub(r'[^\w=.,-]+', '_', '-'.join(said))
    if len(text) > 100:  # file systems take 255 at most
        text = f'{task}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'
    return text


def make_folder(name, folder):
    """Make the folder that a setting names, or end the script."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise SystemExit(f'{name}={folder}: cannot be made a folder: {fault.strerror}') from None


def load_network(folder, how, most):
    """Load the network that all workers share, one per GPU, or end the script with one line.

    Args:
        folder: The checkpoint.
        how: Settings of the checkpoint.
        most: Workers that may ask at a time.
    """
    # They are imported here, because recording the expert does without torch.
    from vla.layers import all_devices
    from vla.policy import answers_by_devices

    others = {k: v for k, v in how.items() if k not in ('text_chunks', 'device')}
    try:
        return answers_by_devices(folder, all_devices(how['device']), most, **others)
    except (ValueError, OSError) as refusal:
        raise SystemExit(str(refusal)) from None


def answer_others(folder, how, host, port):
    """Serve a checkpoint until the script is interrupted, or end the script with one line."""
    # It is imported here, because recording the expert does without torch.
    from vla.policy import answers

    def started(taken):
        print(f'{folder} answers at ws://{host}:{taken}; Ctrl-C ends it', flush=True)
        if not wire.is_loopback(host):
            print(f'host={host}: whoever reaches this machine may ask, there is no password')
        print(f'next: python sim_rollout.py --policy=ws://{host}:{taken}', flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends it like Ctrl-C does
    try:
        infer, metadata = answers(folder, **how)
        metadata['weights'] = ledger.fingerprint(ledger.weight_files(folder))
        wire.serve(infer, metadata, host, port, started)
    except (ValueError, OSError, ImportError) as refusal:
        raise SystemExit(str(refusal)) from None


# -----------------------------------------------------------------------------
# What is said


def lesson(record, tasks, pictures=()):
    """Say the arguments for train.py that learn from a recording.

    Args:
        record: Folder of the recording.
        tasks: Their names.
        pictures: Settings of its pictures that are not the usual ones, as arguments.

    They are those of the first lesson where there is one, unless the recording was coached. For a
    folder that no config names they are those of a config for its tasks: the slots that train.py
    takes where nothing is said have taught no policy yet.
    """
    name = Path(record).name
    stem = name.removesuffix('_coached')
    asked = [f'--episodes={record}']
    if Path(record) == Path('episodes') / name and (CODE / f'config/{stem}.py').exists():
        asked = []
    elif (CODE / f'config/{stem}.py').exists():
        folders = f'{record.rstrip("/").removesuffix("_coached")},{record}'
        asked = [f'--episodes={record if stem == name else folders}']
    else:
        asked.append(f'--out_dir=out/{name}')
        stem = {('place',): 'demo', ('join',): 'join'}.get(tuple(tasks), 'all')
        name = stem
    configs = [f'config/{stem}.py']
    if stem == name and (CODE / f'config/{stem}_start.py').exists():
        configs.append(f'config/{stem}_start.py')
    return shlex.join([*configs, *asked, *pictures])


def show_progress(answers, total):
    """Pass answers through and show progress: a bar on a terminal, else a line every 10 s."""
    bar = tqdm(total=total, unit='ep', disable=not sys.stderr.isatty())
    n_ok = 0
    began = time.time()
    said = began
    for n, (job, result) in enumerate(answers, 1):
        n_ok += result['success']
        bar.update()
        bar.set_postfix_str(f'{n_ok} ok')
        if bar.disable and time.time() - said > 10:
            said = time.time()
            rate = n / (said - began)
            left_s = (total - n) / rate
            print(
                f'{n}/{total} episodes, {n_ok} ok, {60 * rate:.0f}/min, {left_s:.0f} s left',
                file=sys.stderr,
            )
        yield job, result
    bar.close()


def in_turn(todo, max_minutes):
    """Yield jobs, of each task in turn, until time is up: then every task has had its share.

    Args:
        todo: {(task, instruction): seeds that are to be run}.
        max_minutes: No job is begun after so long; 0: no limit.
    """
    end = time.time() + 60 * max_minutes if max_minutes else math.inf
    jobs = [[Job(task, seed, words) for seed in seeds] for (task, words), seeds in todo.items()]
    for job in itertools.chain(*itertools.zip_longest(*jobs)):
        if job is not None and time.time() < end:
            yield job


def summary(title, results, new):
    """Say how it went with one task, in lines for the end of a run.

    Args:
        title: Name of the task, and how it was run.
        results: Of all its seeds that have been run.
        new: Of those that were run now.
    """
    n = len(results)
    seeds = [result['seed'] for result in results]
    steps_of_success = [result['steps'] for result in results if result['success']]
    k = len(steps_of_success)
    low, high = film.wilson(k, n)
    reached = [f'{phase} {count}' for phase, count in film.funnel(results).items()]
    did = [result for result in results if 'did' in result]
    if did:  # The scene's own goal says nothing about words of the user's.
        lines = [f'{title} {n} episodes, not judged: the words are your own; what was done:']
        return lines + [f'  seed {result["seed"]}: {result["did"]}' for result in did[:10]]
    lines = [
        f'{title} {k}/{n} ({100 * k / n:.0f}%, 95% CI {100 * low:.0f}-{100 * high:.0f}) '
        f'seeds {min(seeds)}-{max(seeds)}',
        f'  got as far as: {", ".join(reached)}',
    ]
    if k:
        lines.append(f'  mean steps of a success: {np.mean(steps_of_success):.1f}')
    latency = [x for result in new if 'chunk_ms' in result for x in result['chunk_ms']]
    if latency:
        median, p95 = np.percentile(latency, (50, 95))
        lines.append(f'  chunk latency {median:.1f} ms median, {p95:.1f} ms p95')
    replayed = [result for result in new if 'differs_at' in result]
    off = [result for result in replayed if result['differs_at'] is not None]
    if replayed:
        equal = len(replayed) - len(off)
        lines.append(f'  replay bit-equal in {equal}/{len(replayed)} episodes')
    for result in off[:5]:
        lines.append(
            f'  seed {result["seed"]} differs from step {result["differs_at"]} on, '
            f'by {result["max_difference"]:.2g}'
        )
    faults = [result for result in results if result['fault']]
    for result in faults[:5]:
        lines.append(f'  seed {result["seed"]} fault: {result["fault"]}')
    return lines


def speed(new, wall_s):
    """Say how fast the episodes of this run went by."""
    rate = sum(result['steps'] for result in new) / wall_s
    return f'  {rate:.0f} control steps/s, {60 * len(new) / wall_s:.0f} episodes/min'


def score_of(results, control_hz, reset_s):
    """Return the numbers of a score; times are robot time.

    Args:
        results: Of one task, as it was run in one way.
        control_hz: Control steps per second.
        reset_s: Laying out the next scene, s.
    """
    n = len(results)
    times_s = [result['steps'] / control_hz for result in results]
    of_success = [t for t, result in zip(times_s, results) if result['success']]
    k = len(of_success)
    low, high = film.wilson(k, n)
    return dict(
        k=k,
        n=n,
        success=k / n,
        low=float(low),
        high=float(high),
        seconds_per_success=sum(of_success) / k if k else None,
        successes_per_hour=3600 * k / (sum(times_s) + n * reset_s),
    )


def scores_of(parts, control_hz, reset_s):
    """Return {task: its score, and under `blanked` that without the instruction}."""
    scores = {}
    for part in parts:
        score = score_of(part['results'], control_hz, reset_s) if part['results'] else None
        name = 'score' if part['words'] != '' else 'blanked'
        scores.setdefault(part['task'], {})[name] = score
    return scores


def table(scores, reset_s):
    """Show scores of several tasks, in lines; `scores` as scores_of gives them."""
    lines = [
        f'{"task":12}{"success":>16}{"95% CI":>9}{"blanked":>16}{"s/success":>11}{"per hour":>10}'
        f'   (robot time, {reset_s:g} s per reset)'
    ]
    means = {}
    for task, both in scores.items():
        cells = {'score': '', 'blanked': ''}
        for name, score in both.items():
            if score:
                cells[name] = f'{score["k"]}/{score["n"]} {100 * score["success"]:5.1f}%'
                means.setdefault(name, []).append(score['success'])
        line = f'{task:12}{cells["score"]:>16}'
        score = both['score'] if 'score' in both else None
        interval = ''
        took = ''
        per_hour = ''
        if score:
            interval = f'{100 * score["low"]:.0f}-{100 * score["high"]:.0f}'
            per_hour = f'{score["successes_per_hour"]:.0f}'
            if score['k']:
                took = f'{score["seconds_per_success"]:.1f}'
        lines.append(f'{line}{interval:>9}{cells["blanked"]:>16}{took:>11}{per_hour:>10}')
    said = {name: f'{100 * np.mean(values):.1f}%' for name, values in means.items()}
    mean = f'{"mean":12}{said.get("score", ""):>16}{"":9}{said.get("blanked", ""):>16}'
    return [*lines, mean.rstrip()]


if __name__ == '__main__':
    # -----------------------------------------------------------------------------
    # a scene in the viewer, and nothing else
    if view:
        if Path(view).is_file() and film.has_display():
            print(film.VIEWER_KEYS, flush=True)
        try:
            film.view_scene(view, show_contacts, show_joints)
        except (FileNotFoundError, ValueError, RuntimeError) as refusal:
            raise SystemExit(str(refusal)) from None
        raise SystemExit(0)
    # -----------------------------------------------------------------------------
    # who drives, in which world, on which seeds
    named = ckpt or ('teleop' if teleop else policy)
    parameters = inspect.signature(World).parameters
    default = {key: parameters[key].default for key in WORLD_KEYS}
    files = {}  # Files of a replay: {task: {seed: path}}.
    asked_seeds = []
    try:
        policy = hub.fetch('ckpt' if ckpt else 'policy', named, 'model')
        kind, headers, made = 'teleop', {}, {}
        if not teleop:
            kind, headers, made = policies.resolve(policy, default)
        elif not viewer:
            raise ValueError('teleop: the keys are those of a window: --viewer --teleop')
        if record and kind == 'checkpoint':
            kind = 'coached'
        check(config, kind)
        if seeds is not None:
            asked_seeds = list(seed_range(seeds))
        if kind == 'replay':
            names = [task]
            if task == 'all':
                names = sorted({header['task'] for header in headers.values()})
            elif task is not None:
                names = chosen_tasks(task)
            for name in names:
                chosen, made = policies.choose_replay(
                    policy, headers, config | {'task': name}, default, asked_seeds
                )
                files[made['task']] = chosen
            tasks = list(files)
        elif plan or made.get('plan'):
            tasks = [Path(plan or made['plan']).stem]
        else:
            tasks = chosen_tasks(task or (default | made)['task'])
    except (ValueError, ConnectionError, ImportError) as refusal:
        raise SystemExit(str(refusal)) from None
    if serve:
        if kind != 'checkpoint':
            raise SystemExit(f'serve: policy is {policy}, expected a checkpoint: --ckpt=out/demo')
        keys = [key for key in CHECKPOINT_KEYS if key not in CLIENT_KEYS]
        for key in config.keys() - {'policy', 'ckpt', 'serve', 'host', 'port', *keys}:
            if config[key] != DEFAULTS[key]:
                raise SystemExit(f'serve: {key}={config[key]} is for where chunks are executed')
        answer_others(policy, {key: config[key] for key in keys}, host, port)
        raise SystemExit(0)
    if cameras is not None:
        config['cameras'] = tuple(name for name in cameras.split(',') if name)
    asked = {key: config[key] for key in WORLD_KEYS if config[key] is not None}
    world_settings = default | made | asked | {'task': tasks[0]}
    if randomise_only and not world_settings['randomise']:
        raise SystemExit(f'randomise_only={randomise_only} changes nothing: add --randomise=1')
    several = bool(plan) and Path(plan).is_dir()
    if several and (record or viewer or video):
        raise SystemExit(f'plan={plan}: a folder is scored; to record, film or view name one file')
    if not asked_seeds:
        first = 0 if record else TEST_SEED0
        if seed0 is not None:
            first = seed0
        usual_number = 1 if several else 40 if robustness else 10
        asked_seeds = list(range(first, first + (episodes or usual_number)))
    seeds_of = {name: list(files[name]) if files else asked_seeds for name in tasks}
    if record and kind not in ('expert', 'replay', 'coached', 'teleop'):
        raise SystemExit(
            f'record={record}: only the expert gives labels worth learning, policy is {policy}'
        )
    if record and max(map(max, seeds_of.values())) >= TEST_SEED0:
        raise SystemExit(
            f'record={record}: seeds from {TEST_SEED0} on are for testing, never recorded'
        )
    if record and 'action_space' in made and made['action_space'] != 'tool':
        raise SystemExit(
            f'record={record}: {policy} acts in {made["action_space"]} actions, the expert that '
            'coaches in tool actions'
        )
    is_score = not record and not viewer and kind != 'replay'
    if robustness and (not is_score or several or blank or video):
        raise SystemExit('robustness: expected a score without --blank, --video, --viewer')
    if robustness and max_minutes:
        raise SystemExit('robustness: rows are compared on the same seeds; leave --max_minutes out')
    if robustness and (randomise is not None or randomise_only is not None):
        raise SystemExit('robustness: each row randomises what it says; leave --randomise out')
    # -----------------------------------------------------------------------------
    # where to
    if record:
        make_folder('record', record)
    learnt = set(made['task'].split(',')) if 'task' in made else set(tasks)
    unknown = [name for name in tasks if name not in learnt]
    if unknown and kind in ('checkpoint', 'coached'):
        print(f'{named} has learnt {", ".join(sorted(learnt))}, and not {", ".join(unknown)}')
    strange = [word for word in plain(instruction or '').split() if word not in vocabulary()]
    if strange and kind == 'checkpoint':
        print(f'words that the grammar of instructions does not have: {", ".join(strange)}')
    root = Path('out') / kind
    if kind == 'checkpoint':
        root = Path(hub.home(named)) / 'rollout'
    root = Path(out or record or root)
    make_folder('out', root)
    # -----------------------------------------------------------------------------
    # the same score under many conditions, and nothing else
    if robustness:
        # Each condition says for itself what is randomised, and where its results go.
        its_own = ('robustness', 'rows', 'out', 'ckpt', 'episodes', 'seeds', 'seed0')
        common = {k: v for k, v in config.items() if v != DEFAULTS[k] and k not in its_own}
        if 'cameras' in common:
            common['cameras'] = ','.join(common['cameras'])
        common |= dict(policy=policy, seeds=f'{asked_seeds[0]}:{asked_seeds[-1] + 1}')
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            asked_for = robust.chosen(rows, kind in ('checkpoint', 'remote'))
            score_conditions(asked_for, common, tasks, asked_seeds, root / 'robustness')
        except ValueError as refusal:
            raise SystemExit(str(refusal)) from None
        except KeyboardInterrupt:
            again = shlex.join(['python', *sys.argv])
            raise SystemExit(f'\nstopped; the same command goes on: {again}') from None
        raise SystemExit(0)
    # -----------------------------------------------------------------------------
    # a part is one task as it is run in one way: what is asked of it, and what is there already
    how = {key: config[key] for key in CHECKPOINT_KEYS}
    asks_checkpoint = kind in ('checkpoint', 'coached')
    made_with = dict(world_settings, policy=named, kicks=kicks)
    if asks_checkpoint:
        weights = ledger.fingerprint(ledger.weight_files(policy))
        made_with |= dict(how, weights=weights)
    if world_settings['plan'] and Path(world_settings['plan']).is_file():
        made_with['plan_text'] = ledger.fingerprint([Path(world_settings['plan'])])
    if kind == 'remote':
        made_with |= dict(execute=execute, delay=delay)
    if not record:  # a recording is a matter of hours, and a later revision may go on with it
        made_with['code'] = ledger.fingerprint(ledger.code_files(CODE))
    usual = default | made | {key: DEFAULTS[key] for key in (*how, 'kicks')}
    usual = json.loads(json.dumps(usual))  # tuples become lists, as they do in the log
    now = json.loads(json.dumps(made_with))
    changed = {k: v for k, v in now.items() if k in usual and k != 'task' and v != usual[k]}
    ways = [instruction, ''] if blank else [instruction]
    if record:
        try:
            lock = ledger.share(record, now)  # noqa: F841 -- held as long as this process lives
        except (ValueError, OSError) as refusal:
            raise SystemExit(str(refusal)) from None
    parts = []
    for name, words in itertools.product(tasks, ways):
        folder = root
        if is_score and (not out or len(tasks) * len(ways) > 1):
            folder = root / folder_name(name, words, changed)
            make_folder('out', folder)
        log = folder / 'rollouts.jsonl'
        how_made = dict(now, task=name, instruction=words)
        done = {}
        try:
            if record:
                done = ledger.recorded(log, record, name, seeds_of[name], how_made)
            # A replay is a test of this machine, and a server may have got other weights by now.
            elif is_score and kind != 'remote':
                done = ledger.scored(log, seeds_of[name], how_made)
        except (ValueError, OSError) as refusal:
            raise SystemExit(str(refusal)) from None
        todo = [seed for seed in seeds_of[name] if seed not in done]
        title = f'{name}, instruction blanked' if words == '' else name
        parts.append(
            dict(
                task=name,
                words=words,
                title=title,
                folder=folder,
                log=log,
                made_with=how_made,
                done=done,
                todo=todo,
                results=list(done.values()),
                new=[],
                reels=[],
            )
        )
        if done:
            said = f'{title}: {record or log}: {len(done)} seeds are done, {len(todo)} to go'
            if not record:
                said += '; to run them anew delete that file or name another folder: --out=...'
            print(said)
    part_of = {(part['task'], part['words']): part for part in parts}
    # -----------------------------------------------------------------------------
    # set up
    load = None
    if asks_checkpoint:
        # They are imported here, because recording the expert does without torch.
        from vla.layers import choose_device
        from vla.policy import checkpoint

        try:
            on_gpu = choose_device(device, os.environ).startswith('cuda')
        except ValueError as refusal:
            raise SystemExit(str(refusal)) from None
        load = functools.partial(checkpoint, policy, **how)
        if share_network is None:
            share_network = text_chunks == 1 and on_gpu
    shared = functools.partial(policies.shared, folder=policy, execute=execute, delay=delay)
    ask = functools.partial(policies.remote, policy, execute=execute, delay=delay)
    driver = functools.partial(
        policies.driver, kind=kind, kicks=kicks, files=files, checkpoint=load, server=ask
    )
    network = None
    # `kill` and SLURM's time limit end it like Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # -----------------------------------------------------------------------------
    # all plans of a folder, and nothing else
    if several:
        try:
            score_plans(plan, asked_seeds, root, instruction, world_settings, driver, now)
        except ValueError as refusal:
            raise SystemExit(str(refusal)) from None
        except KeyboardInterrupt:
            again = shlex.join(['python', *sys.argv])
            raise SystemExit(f'\nstopped; the same command goes on: {again}') from None
        raise SystemExit(0)
    # -----------------------------------------------------------------------------
    # watch, and nothing else
    if viewer:
        try:
            for part in parts:
                world, start = setup(world_settings | {'task': part['task']}, driver)
                pressed = queue.SimpleQueue()
                shown = (world.model, world.data, show_contacts, show_joints, pressed.put)
                recording = teleop and bool(record)
                if film.has_display():
                    print(film.VIEWER_KEYS + (f'; {KEYS}' if teleop else ''), flush=True)
                # Who drives wants the left hand on the left.
                with film.viewer(*shown, trunk=world.trunk if teleop else ()) as draw:
                    world.observer = draw
                    if teleop:
                        start = keyboard(pressed, draw, world.control_hz, world.max_opening_m)
                        world.patience = 10
                    for seed in part['todo']:
                        if not draw():
                            break
                        result, rows = run_episode(
                            world, start, seed, part['words'], recording, watched=draw
                        )
                        print(
                            f'seed {seed}: {result["phase"]} after {result["steps"]} steps, '
                            f'{result["instruction"]}',
                            flush=True,
                        )
                        if recording and result['success']:
                            save_episode(world, record, result, rows)
                            ledger.append(part['log'], dict(result, made_with=part['made_with']))
                            path = ledger.episode_file(record, part['task'], seed)
                            print(f'recorded: {path}')
                    hold(draw)
        except (ValueError, FileNotFoundError, RuntimeError) as refusal:
            raise SystemExit(str(refusal)) from None
        raise SystemExit(0)
    # -----------------------------------------------------------------------------
    # run
    run = functools.partial(run_job, record=record, pictures=pictures, speed=video_speed)
    todo = {key: part['todo'] for key, part in part_of.items()}
    n_todo = sum(map(len, todo.values()))
    n_workers = count_workers(workers, max(n_todo, video * len(parts)))
    pool = {}
    try:
        if share_network and n_workers:
            driver = functools.partial(driver, checkpoint=None, network=shared)
            network = load_network(policy, how, n_workers)
        drawing = gl.use_fastest(world_settings, n_workers) if n_todo >= n_workers > 1 else ''
        if drawing:
            print(drawing, flush=True)
        pool = start_workers(n_workers, world_settings, driver, run, network is not None)
        for log in {part['log'] for part in parts}:
            mine = [part for part in parts if part['log'] == log]
            is_asked = {(part['task'], seed) for part in mine for seed in seeds_of[part['task']]}
            is_done = {(part['task'], s): row for part in mine for s, row in part['done'].items()}
            n_replaced = ledger.tidy(log, is_asked, is_done)
            if n_replaced:
                print(f'{log}: the lines of {n_replaced} episodes that are run again are replaced')
        began = time.time()
        for job, result in show_progress(
            dispatch(pool, in_turn(todo, max_minutes), network), n_todo
        ):
            part = part_of[job.task, job.instruction]
            part['results'].append(result)
            part['new'].append(result)
            ledger.append(part['log'], dict(result, made_with=part['made_with']))
        wall_s = time.time() - began
        for part in parts:
            if not part['results']:
                print(f'{part["title"]}: no episode yet')
                continue
            lines = summary(part['title'], part['results'], part['new'])
            print('\n'.join(lines), flush=True)
            if not record and not instruction:
                picture = part['folder'] / 'success.png'
                try:  # a picture never costs a run
                    hz = world_settings['control_hz']
                    film.draw_success(picture, lines[0], part['results'], hz)
                    print(f'  success over time: {picture}', flush=True)
                except (ImportError, OSError, RuntimeError, ValueError) as fault:
                    print(f'  no picture of success over time: {fault}', flush=True)
        new = [result for part in parts for result in part['new']]
        if new:
            print(speed(new, wall_s))
        # -----------------------------------------------------------------------------
        # film: these episodes are run once more
        jobs = []
        for part in parts:
            for seed in film.choose_films(part['results'], video):
                path = part['folder'] / f'{part["task"]}_{seed:07d}'
                jobs.append(Job(part['task'], seed, part['words'], path))
        try:
            for job, reel in dispatch(pool, jobs, network):
                part = part_of[job.task, job.instruction]
                part['reels'].append(reel)
                print(f'  film: {reel["film"]}', flush=True)
                before = next(r['success'] for r in part['results'] if r['seed'] == job.seed)
                if reel['success'] != before:
                    print(
                        f'  seed {job.seed} of {job.task} ended differently this time: '
                        'something is not deterministic'
                    )
        except WorkerError as refusal:  # the episodes are safe
            print(f'  no more films: {refusal}', flush=True)
    except WorkerError as refusal:
        raise SystemExit(str(refusal)) from None
    except KeyboardInterrupt:
        n_safe = sum(len(part['results']) for part in parts)
        said = f'\nstopped, {n_safe} episodes are safe'
        if kind != 'replay' or record:
            said += f'; the same command goes on: {shlex.join(["python", *sys.argv])}'
        raise SystemExit(said) from None
    finally:
        stop_workers(pool)
    # -----------------------------------------------------------------------------
    # what there is to see, and what to type next
    for part in parts:
        if part['reels']:
            part['reels'].sort(key=lambda reel: (reel['success'], reel['seed']))
            sheet = np.vstack([reel['thumbnails'] for reel in part['reels']])
            Image.fromarray(sheet).save(part['folder'] / 'sheet.png')
            print(f'  contact sheet: {part["folder"] / "sheet.png"}')
    told = [part for part in parts if part['words'] != '']
    moments = [(reel['task'], reel['key']) for part in told for reel in part['reels'][-1:]]
    moments = [(name, key[1]) for name, key in moments if key]
    if len(moments) > 1:
        title = 'each task when studs last snapped or came off'
        Image.fromarray(film.sheet(moments, title)).save(root / 'tasks.png')
        print(f'  all tasks: {root / "tasks.png"}')
    if is_score and not instruction:
        scores = scores_of(parts, world_settings['control_hz'], reset_s)
        about = {'reset_s': reset_s, 'made_with': now, 'tasks': scores}
        # A card shows the score of what was learnt, with nothing asked for otherwise.
        usually = not changed and not out and learnt.issuperset(tasks)
        scored = (root if usually or out else parts[0]['folder']) / 'scores.json'
        if usually:
            about['tasks'] = ledger.with_larger(scored, now, scores)
        write_atomic(scored, json.dumps(about, indent=1).encode())
        if len(parts) > 1:
            print('\n'.join(table(scores, reset_s)))
        print(f'  scores: {scored}')
        if kind == 'checkpoint' and policy == named and usually:
            hub.write_card(policy, 'model')
            print(f'share: {hub.upload_line(policy, "model")}')
    left = n_todo - len(new)
    if left:
        print(
            f'stopped after {max_minutes:g} minutes, {left} episodes to go; '
            f'the same command goes on: {shlex.join(["python", *sys.argv])}'
        )
    if record:
        if any(result['success'] for part in parts for result in part['results']):
            hub.write_card(record, 'dataset', shlex.join(['python', *sys.argv]))
            print(f'share: {hub.upload_line(record, "dataset")}')
        look = shlex.join(['python', 'data.py', 'check', record])
        pictures = []
        if list(world_settings['cameras']) != list(default['cameras']):  # JSON has no tuples
            pictures.append(f'--cameras={",".join(world_settings["cameras"])},')
        if world_settings['image_size'] != default['image_size']:
            pictures.append(f'--image_size={world_settings["image_size"]}')
        print(f'next: {look} && python train.py {lesson(record, tasks, pictures)}')
    elif not video:
        print(f'next: see it: {shlex.join(["python", *sys.argv, "--video=4"])}')
    if any(r.get('differs_at') is not None for part in parts for r in part['results']):
        raise SystemExit(1)
