"""Drive the world with a policy: record the expert, score a checkpoint, replay an episode, film it.

Record demonstrations (kill it and type it again: it goes on):
python sim_rollout.py config/demo_collect.py

A checkpoint drives and the expert labels (DAgger):
python sim_rollout.py config/demo_coach.py

Score a checkpoint on the held-out seeds, the same without being told what to do, and film it:
python sim_rollout.py --ckpt=out/demo --episodes=100
python sim_rollout.py --ckpt=out/demo --episodes=100 --instruction= --out=out/demo/blank
python sim_rollout.py --ckpt=out/demo --episodes=20 --video=4

Watch the expert on film, in MuJoCo's viewer, or any scene in the viewer:
python sim_rollout.py --task=join --episodes=1 --video=1
python sim_rollout.py --task=join --viewer
python sim_rollout.py --view=assets/scenes/bricks.xml --show_contacts

Replay a folder; this exits with 1 unless the physics is bit-equal:
python sim_rollout.py --policy=episodes/demo

On 1 or 8 GPUs these are the same commands: networks go to a GPU if there is one, and --workers=16
gives each of 16 cores a world. On 2 nodes, as seeds are independent, each takes its share into one
folder (slurm/collect.sh is an array of such jobs):
python sim_rollout.py config/demo_collect.py --seeds=0:450
python sim_rollout.py config/demo_collect.py --seeds=450:900

A score that was killed goes on as well: it keeps episodes of the same settings, weights and code.
"""

import os

# Before numpy is imported: one thread per worker.
os.environ['OMP_NUM_THREADS'] = '1'
os.environ['MKL_NUM_THREADS'] = '1'
import functools
import inspect
import json
import math
import re
import signal
import sys
import time
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from PIL import Image
from tqdm import tqdm

from episode import write_episode
from sim import film, labels, ledger, policies
from sim.judge import PHASES
from sim.workers import WorkerError, dispatch, setup, start_workers, stop_workers
from sim.world import RENDER_MODES, World

# -----------------------------------------------------------------------------
# who drives
policy = 'expert'  # expert, hold, zero, random; checkpoint folder; episode or folder to replay
ckpt = ''  # --ckpt=out/demo is the same as --policy=out/demo
kicks = 0.0  # expert: probability per step that a disturbance starts; the label stays clean
execute = 1  # checkpoint: rows of each predicted chunk that are executed before it looks again
steps = 1  # checkpoint: denoising steps per chunk
delay = 0  # checkpoint: steps by which a chunk comes late, while the rows before it are executed
read_text = False  # checkpoint: decode the subtask text and act having read it
text_chunks = 1  # checkpoint: chunks that are made on one decoded text
compile_model = False  # checkpoint: torch.compile, CUDA graphs on a GPU; not with read_text
instruction = None  # replaces the world's; empty blanks it: does the policy use language?
device = None  # checkpoint: 'cpu', 'cuda'; None: cuda where there is one
dtype = 'float32'  # checkpoint: or 'bfloat16', no faster: a chunk is calls, not arithmetic
# the world; None: as the checkpoint or the episode was made, else World's own default
task = None  # one of tasks.TASKS: 'place', 'join', 'stack', ...
brick_scale = None  # 1.0 LEGO, 2.0 DUPLO
cameras = None  # names, comma separated, see sim/world.py; --cameras= (empty) renders none
image_size = None  # px
control_hz = None  # commands per second
robot = None  # assets/robots/<robot>/<robot>.xml
physics_dt_s = None  # 0.004 or 0.002
insertion_force_n = None  # to press a brick on, N per stud
pull_force_n = None  # to pull it off straight, N per stud
force_spread = None  # 0-1: share by which both vary from episode to episode
distractors = None  # bricks of other colours that lie about
pose_range = None  # 0-1: share of the range of spawn poses
target_range = None  # 0-1: share of the places on a plate or brick that are asked for
# seeds: those of `seeds`, else `episodes` from seed0 on; of a replay those that are there
seeds = None  # one, or 'a:b', half open
seed0 = None  # None: 0 when recording, else 1_000_000: from there on seeds are for testing only
episodes = None  # None: 10, of a replay all
workers = 2  # processes, each with a world of its own
# output
record = ''  # folder for the successful episodes; what is there already is skipped
video = 0  # episodes to film: half successes, half failures where there are enough
pictures = ()  # with each film, of its last moment: rgb,depth,segmentation as PNG and npz
out = ''  # for log and films; '': record folder, <checkpoint>/rollout or out/<policy>
# to look at it on a display; docs/viewer-checklist.md says at what
viewer = False  # the episodes run in MuJoCo's viewer, in real time, none is recorded
view = ''  # a scene instead of a task: --view=assets/scenes/bricks.xml
show_contacts = False  # points and forces of contact
show_joints = False  # axes of joints
DEFAULTS = dict(globals())  # tells which settings were changed
config: dict  # the next line makes it: all settings by name
exec((Path(__file__).parent / 'configurator.py').read_text())  # overrides by file or command line
# -----------------------------------------------------------------------------
CODE = Path(__file__).parent
TEST_SEED0 = 1_000_000
WORLD_KEYS = (
    'task',
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
)
# settings that only a checkpoint has, arguments of vla.policy.checkpoint
CHECKPOINT_KEYS = (
    'execute',
    'steps',
    'delay',
    'read_text',
    'text_chunks',
    'compile_model',
    'device',
    'dtype',
)
LIMITS = {  # type, lowest, highest
    'kicks': (float, 0, 1),
    'execute': (int, 1, math.inf),
    'steps': (int, 1, math.inf),
    'delay': (int, 0, math.inf),
    'text_chunks': (int, 1, math.inf),
    'brick_scale': (float, 1, 2),
    'image_size': (int, 1, 4096),
    'control_hz': (int, 1, 50),
    'physics_dt_s': (float, 0.0005, 0.02),
    'insertion_force_n': (float, 0.01, 100),
    'pull_force_n': (float, 0.01, 100),
    'force_spread': (float, 0, 0.99),
    'distractors': (int, 0, math.inf),
    'pose_range': (float, 0, 1),
    'target_range': (float, 0, 1),
    'seed0': (int, 0, math.inf),
    'episodes': (int, 1, math.inf),
    'workers': (int, 1, math.inf),
    'video': (int, 0, math.inf),
}
TEXTS = ('task', 'robot', 'instruction', 'device')
# -----------------------------------------------------------------------------
# The one stepping loop


def run_episode(world, start, seed, instruction=None, record=False, filmed=False, watched=None):
    """Run one episode: look, ask who drives, step.

    Args:
        world: A World.
        start: Who drives, see sim/policies.py.
        seed: Draws everything that differs from episode to episode.
        instruction: Replaces the world's.
        record: Keep what an episode file holds.
        filmed: Keep pictures of a film.
        watched: Asked after every step whether to go on.

    Returns:
        The result, a dict that JSON can hold; the rows of the episode's file, if record; the frames
        of its film, if filmed.
    """
    began = time.perf_counter()
    obs, info = world.reset(seed)
    act = start(seed)
    words = world.instruction if instruction is None else instruction
    rows = []
    frames = []
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
        if filmed:
            frames.append(film.film_frame(world, obs, info, choice['subtask']))
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
    if filmed:  # the last picture is held for a second, with the verdict
        obs['instruction'] = words
        verdict = 'SUCCESS' if info['success'] else 'FAILED'
        frames += [film.film_frame(world, obs, info, verdict)] * world.control_hz
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
    if chunk_ms:
        result['chunk_ms'] = chunk_ms
    if difference:
        result['differs_at'] = next((t for t, x in enumerate(difference) if x > 0), None)
        result['max_difference'] = max(difference)
    return result, rows, frames


def run_job(world, start, job, instruction, record, pictures):
    """Do one job in a worker process: run an episode, write its file or film, return the result.

    Args:
        world: A World.
        start: Who drives.
        job: The seed, and the path of a film without its ending or None.
        instruction: Replaces the world's.
        record: Folder for a successful episode's file; '': none is written.
        pictures: Kinds of pictures to save of a film's last moment.
    """
    seed, path = job
    recording = bool(record) and path is None  # a film repeats an episode that was recorded before
    filmed = path is not None
    result, rows, frames = run_episode(world, start, seed, instruction, recording, filmed)
    if recording and result['success']:
        packed = labels.pack_episode(world.truth(), world.metadata(), result, rows)
        write_episode(ledger.episode_file(record, world.task, seed), *packed)
    if filmed:
        outcome = 'success' if result['success'] else 'failure'
        path = path.with_name(f'{path.name}_{outcome}.mp4')
        # imageio's default is H.264 in yuv420p, which plays everywhere
        imageio.mimwrite(path, frames, fps=world.control_hz, quality=7)
        result |= dict(film=str(path), thumbnails=film.thumbnails(frames))
        if pictures:
            film.save_pictures(path.with_suffix(''), world, film.FILM_VIEWS, pictures, film.FILM_PX)
    return result


# -----------------------------------------------------------------------------
# What is asked for


def check(settings, kind):
    """Raise ValueError for the first setting that has no sense, or none for who drives."""
    for name, (number, low, high) in LIMITS.items():
        check_number(name, settings[name], number, low, high)
    for name in TEXTS:
        if type(settings[name]) not in (str, type(None)):
            raise ValueError(f'{name}={settings[name]!r}: expected text')
    names = settings['cameras']
    if type(names) not in (str, tuple, type(None)):
        raise ValueError(f'cameras={names!r}: expected names, --cameras=head,overhead')
    unknown = sorted(set(settings['pictures']) - set(RENDER_MODES))
    if unknown:
        raise ValueError(
            f'pictures: no kind {unknown[0]!r}; expected some of {",".join(RENDER_MODES)}'
        )
    asks_checkpoint = kind in ('checkpoint', 'coached')
    # setting: whether it is used, and where it would be
    used = dict.fromkeys(CHECKPOINT_KEYS, (asks_checkpoint, 'a checkpoint drives: --ckpt=out/demo'))
    used['kicks'] = (kind == 'expert', 'the expert drives: leave --policy and --ckpt out')
    used['pictures'] = (settings['video'], 'films are made: --video=1')
    if asks_checkpoint:
        used['text_chunks'] = (settings['read_text'], 'text is read: --read_text')
    driver = settings['ckpt'] or settings['policy']
    for name, (is_used, where) in used.items():
        if not is_used and settings[name] != DEFAULTS[name]:
            raise ValueError(
                f'{name}={settings[name]} changes nothing here, where the policy is {driver}: '
                f'it is for where {where}'
            )


def check_number(name, value, number, low, high):
    """Raise ValueError unless value is None, or of type `number` and from low to high."""
    if value is None:
        return
    fits = type(value) is number or (number is float and type(value) is int)
    if not (fits and low <= value <= high):
        kind = 'a whole number' if number is int else 'a number'
        limits = f'at least {low}' if high == math.inf else f'from {low} to {high}'
        raise ValueError(f'{name}={value}: expected {kind}, {limits}')


def seed_range(seeds):
    """Turn '7' or '0:10', half open, into a range."""
    found = re.fullmatch(r'(\d+)(?::(\d+))?', str(seeds).replace('_', ''))
    numbers = range(0)
    if found:
        first = int(found[1])
        end = int(found[2] or first + 1)
        numbers = range(first, end)
    if not numbers:
        raise ValueError(
            f'seeds={seeds}: expected one seed, or the first and the one after the last: '
            '--seeds=7, --seeds=0:10'
        )
    return numbers


def make_folder(name, folder):
    """Make the folder that a setting names, or end the script."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise SystemExit(f'{name}={folder}: cannot be made a folder: {fault.strerror}') from None


# -----------------------------------------------------------------------------
# What is said


def lesson(record):
    """Say the arguments for train.py that learn from a recording.

    They are those of the first lesson where there is one, unless the recording was coached.
    """
    name = Path(record).name
    stem = name.removesuffix('_coached')
    whole = f'config/{stem}.py'
    start = f'config/{stem}_start.py'
    if not (CODE / whole).exists():
        return f'--episodes={record}'
    folders = record if stem == name else f'{record.rstrip("/").removesuffix("_coached")},{record}'
    elsewhere = '' if Path(record) == Path('episodes') / name else f' --episodes={folders}'
    if stem == name and (CODE / start).exists():
        return f'{whole} {start}{elsewhere}'
    return whole + elsewhere


def show_progress(results, total):
    """Pass results through and show progress: a bar on a terminal, else a line every 10 s."""
    bar = tqdm(total=total, unit='ep', disable=not sys.stderr.isatty())
    n_ok = 0
    began = time.time()
    said = began
    for n, result in enumerate(results, 1):
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
        yield result
    bar.close()


def summary(task, results, new, wall_s):
    """Say how it went, in lines for the end of a run.

    Args:
        task: Name of the task.
        results: Of all seeds that were asked for.
        new: Of those that were run now.
        wall_s: Time that took, s.
    """
    n = len(results)
    seeds = [result['seed'] for result in results]
    steps_of_success = [result['steps'] for result in results if result['success']]
    k = len(steps_of_success)
    low, high = film.wilson(k, n)
    reached = [f'{phase} {count}' for phase, count in film.funnel(results).items()]
    lines = [
        f'{task} {k}/{n} ({100 * k / n:.0f}%, 95% CI {100 * low:.0f}-{100 * high:.0f}) '
        f'seeds {min(seeds)}-{max(seeds)}',
        f'  got as far as: {", ".join(reached)}',
    ]
    if k:
        lines.append(f'  mean steps of a success: {np.mean(steps_of_success):.1f}')
    if new:
        rate = sum(result['steps'] for result in new) / wall_s
        per_minute = 60 * len(new) / wall_s
        lines.append(f'  {rate:.0f} control steps/s, {per_minute:.0f} episodes/min')
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


if __name__ == '__main__':
    # -----------------------------------------------------------------------------
    # a scene in the viewer, and nothing else
    if view:
        try:
            film.view_scene(view, show_contacts, show_joints)
        except (FileNotFoundError, ValueError, RuntimeError) as refusal:
            raise SystemExit(str(refusal)) from None
        raise SystemExit(0)
    # -----------------------------------------------------------------------------
    # who drives, in which world, on which seeds
    policy = ckpt or policy
    parameters = inspect.signature(World).parameters
    default = {key: parameters[key].default for key in WORLD_KEYS}
    try:
        kind, headers, made = policies.resolve(policy, default)
        if record and kind == 'checkpoint':
            kind = 'coached'
        check(config, kind)
        asked_seeds: list[int] = []
        if seeds is not None:
            asked_seeds = list(seed_range(seeds))
        files: dict[int, Path] = {}
        if kind == 'replay':
            files, made = policies.choose_replay(policy, headers, config, default, asked_seeds)
    except ValueError as refusal:
        raise SystemExit(str(refusal)) from None
    if isinstance(cameras, str):
        config['cameras'] = tuple(name for name in cameras.split(',') if name)
    asked = {key: config[key] for key in WORLD_KEYS if config[key] is not None}
    world_settings = default | made | asked
    task = world_settings['task']
    if kind == 'replay':
        asked_seeds = list(files)
    elif not asked_seeds:
        first = 0 if record else TEST_SEED0
        if seed0 is not None:
            first = seed0
        asked_seeds = list(range(first, first + (episodes or 10)))
    if record and kind not in ('expert', 'replay', 'coached'):
        raise SystemExit(
            f'record={record}: only the expert gives labels worth learning, policy is {policy}'
        )
    if record and max(asked_seeds) >= TEST_SEED0:
        raise SystemExit(
            f'record={record}: seeds from {TEST_SEED0} on are for testing, never recorded'
        )
    if record and 'action_space' in made and made['action_space'] != 'tool':
        raise SystemExit(
            f'record={record}: {policy} acts in {made["action_space"]} actions, the expert that '
            'coaches in tool actions'
        )
    # -----------------------------------------------------------------------------
    # where to
    if record:
        make_folder('record', record)
    folder = Path('out') / kind
    if kind == 'checkpoint':
        folder = Path(policy) / 'rollout'
    folder = Path(out or record or folder)
    make_folder('out', folder)
    log = folder / 'rollouts.jsonl'
    # -----------------------------------------------------------------------------
    # what is there already
    how = {key: config[key] for key in CHECKPOINT_KEYS}
    asks_checkpoint = kind in ('checkpoint', 'coached')
    made_with = dict(world_settings, policy=policy, kicks=kicks, instruction=instruction)
    if asks_checkpoint:
        weights = ledger.fingerprint(ledger.weight_files(policy))
        made_with |= dict(how, weights=weights)
    if not record:  # a recording is a matter of hours, and a later revision may go on with it
        made_with['code'] = ledger.fingerprint(ledger.code_files(CODE))
    made_with = json.loads(json.dumps(made_with))  # tuples become lists, as they do in the log
    done = {}
    try:
        if record:
            done = ledger.recorded(log, record, task, asked_seeds, made_with)
        elif not viewer and kind != 'replay':  # a replay is a test of this machine
            done = ledger.scored(log, asked_seeds, made_with)
    except ValueError as refusal:
        raise SystemExit(str(refusal)) from None
    todo = [seed for seed in asked_seeds if seed not in done]
    if done:
        said = f'{record or log}: {len(done)} seeds are done, {len(todo)} to go'
        if not record:
            said += '; to run them anew delete that file or name another folder: --out=...'
        print(said)
    # -----------------------------------------------------------------------------
    # set up
    load = None
    if asks_checkpoint:
        from vla.policy import checkpoint  # here, because recording the expert does without torch

        load = functools.partial(checkpoint, policy, **how)
    driver = functools.partial(
        policies.driver, kind=kind, kicks=kicks, files=files, checkpoint=load
    )
    # -----------------------------------------------------------------------------
    # watch, and nothing else
    if viewer:
        try:
            world, start = setup(world_settings, driver)
            with film.viewer(world.model, world.data, show_contacts, show_joints) as draw:
                world.observer = draw
                for seed in todo:
                    if not draw():
                        break
                    result, _, _ = run_episode(world, start, seed, instruction, watched=draw)
                    print(
                        f'seed {seed}: {result["phase"]} after {result["steps"]} steps, '
                        f'{result["instruction"]}'
                    )
        except (ValueError, FileNotFoundError, RuntimeError) as refusal:
            raise SystemExit(str(refusal)) from None
        raise SystemExit(0)
    # -----------------------------------------------------------------------------
    # run
    # `kill` and SLURM's time limit end it like Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run = functools.partial(run_job, instruction=instruction, record=record, pictures=pictures)
    n_workers = min(workers, max(len(todo), video))
    results = list(done.values())
    films = []
    pool = {}
    try:
        pool = start_workers(n_workers, world_settings, driver, run)
        n_replaced = ledger.tidy(log, set(asked_seeds), done)
        if n_replaced:
            print(f'{log}: the lines of {n_replaced} episodes that are run again are replaced')
        began = time.time()
        jobs = [(seed, None) for seed in todo]
        for result in show_progress(dispatch(pool, jobs), len(jobs)):
            results.append(result)
            ledger.append(log, dict(result, made_with=made_with))
        lines = summary(task, results, results[len(done) :], time.time() - began)
        print('\n'.join(lines), flush=True)
        if not record:
            picture = folder / 'success.png'
            film.draw_success(picture, lines[0], results, world_settings['control_hz'])
            print(f'  success over time: {picture}', flush=True)
        # -----------------------------------------------------------------------------
        # film: these episodes are run once more
        success = {result['seed']: result['success'] for result in results}
        chosen = film.choose_films(results, video)
        for reel in dispatch(pool, [(seed, folder / f'{task}_{seed:07d}') for seed in chosen]):
            films.append(reel)
            print(f'  film: {reel["film"]}', flush=True)
            if reel['success'] != success[reel['seed']]:
                print(
                    f'  seed {reel["seed"]} ended differently this time: '
                    'something is not deterministic'
                )
    except WorkerError as refusal:
        raise SystemExit(str(refusal)) from None
    except KeyboardInterrupt:
        said = f'\nstopped, {len(results)} episodes are safe'
        if kind != 'replay' or record:
            said += f'; the same command goes on: python {" ".join(sys.argv)}'
        raise SystemExit(said) from None
    finally:
        stop_workers(pool)
    # -----------------------------------------------------------------------------
    # what there is to see, and what to type next
    if films:
        films.sort(key=lambda reel: (reel['success'], reel['seed']))
        sheet = np.vstack([reel['thumbnails'] for reel in films])
        Image.fromarray(sheet).save(folder / 'sheet.png')
        print(f'  contact sheet: {folder / "sheet.png"}')
    if record:
        print(f'next: python data.py check {record} && python train.py {lesson(record)}')
    elif not video:
        print(f'next: see it: python {" ".join(sys.argv)} --video=4')
    if any(r.get('differs_at') is not None for r in results):
        raise SystemExit(1)
