"""Drive the world with a policy: record the expert, score a checkpoint, replay an episode, film any
of them.

python sim_rollout.py config/demo_collect.py             # record demonstrations; kill and repeat to
go on python sim_rollout.py config/demo_coach.py               # a checkpoint drives, the expert
labels: DAgger python sim_rollout.py --ckpt=out/demo --episodes=100     # score a checkpoint on the
held-out seeds python sim_rollout.py --ckpt=out/demo --episodes=100 --instruction=    # the same
with the instruction blanked python sim_rollout.py --ckpt=out/demo --episodes=20 --video=4
# film two successes, two failures python sim_rollout.py --task=join --episodes=1 --video=1 # watch
the expert python sim_rollout.py --task=join --viewer               # the same in MuJoCo's viewer
python sim_rollout.py --view=assets/scenes/bricks.xml --show_contacts    # any scene in the viewer
python sim_rollout.py --plan=assets/plans/arch.yaml --video=1  # build a structure of your own
python sim_rollout.py --plan=assets/plans                # a table of all plans in a folder
python sim_rollout.py --policy=episodes/demo             # replay a folder; exits with 1 unless
bit-equal 1 GPU, 8 GPU: the same commands: networks go to a GPU if there is one; --workers=16 gives
each core a world. 2 nodes: seeds are independent: an array job takes --seeds=0:1000,
--seeds=1000:2000, ... into one folder. Kill any of them and repeat to go on: a score keeps episodes
of the same settings, weights and code.
"""

import os

os.environ['OMP_NUM_THREADS'] = os.environ['MKL_NUM_THREADS'] = (
    '1'  # before numpy: one thread per worker
)
import contextlib
import inspect
import json
import math
import multiprocessing
import multiprocessing.connection
import re
import signal
import sys
import time
import traceback
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from PIL import Image
from tqdm import tqdm

from episode import read_episode, state_vector, write_atomic, write_episode
from sim import film, labels, plan_score, policies
from sim.expert import CLOSED_M
from sim.world import PHASES, RENDER_MODES, World

# -----------------------------------------------------------------------------
# policy
policy = 'expert'  # expert, hold, zero, random; checkpoint folder; replay: episode file or folder of them
ckpt = ''  # --ckpt=out/demo is the same as --policy=out/demo
kicks = (
    0.0  # expert: probability per step that a disturbance starts; the recorded label stays clean
)
execute = 1  # checkpoint: rows of each predicted chunk that are executed before it looks again
steps = 1  # checkpoint: denoising steps per chunk
delay = 0  # checkpoint: steps by which a chunk comes late, while the rows before it are executed
read_text = False  # checkpoint: decode the subtask text and act having read it
text_chunks = 1  # checkpoint: chunks that are made on one decoded text
compile_model = (
    False  # checkpoint: torch.compile, with CUDA graphs on a GPU; not together with read_text
)
instruction = (
    None  # replaces the world's; --instruction= (empty) blanks it: does the policy use language?
)
device = None  # checkpoint: 'cpu', 'cuda'; None: cuda where there is one
dtype = 'float32'  # checkpoint: or 'bfloat16', which makes one chunk no faster: it is calls, not arithmetic
# world; None: what the checkpoint or the episode was made with, else the defaults of World
task = None  # one of tasks.TASKS: 'place', 'join', 'stack', ...
plan = None  # file that says what to build (sim/plan.py), in place of a task; a folder: the table of all of them
initial_blocks = None  # True: the plan's bricks lie where its file says, not where the seed does
reverse = None  # True: the plan stands there and is taken apart
brick_scale = None  # 1.0 LEGO, 2.0 DUPLO
cameras = None  # names, comma separated, see world.py; --cameras= (empty) renders none
image_size = None  # px
control_hz = None
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
out = ''  # for rollouts.jsonl and films; '': record folder, <checkpoint>/rollout or out/<policy>
# to look at it on a display, docs/viewer-checklist.md says what
viewer = False  # the episodes run in MuJoCo's viewer, in real time, none is recorded
view = ''  # a scene instead of a task: --view=assets/scenes/bricks.xml
show_contacts = False
show_joints = False
DEFAULTS = dict(globals())  # to know what was changed
exec(open('configurator.py').read())  # overrides from a config file or the command line
# -----------------------------------------------------------------------------
TEST_SEED0 = 1_000_000
CODE = Path(__file__).parent
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
)
HOW_KEYS = (
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
TEXTS = ('task', 'plan', 'robot', 'instruction', 'device')
# -----------------------------------------------------------------------------
# The one stepping loop


def run_episode(world, start, seed, instruction=None, record=False, filmed=False, watched=None):
    """One episode -> (result dict, rows of its file if record, frames if filmed). watched: asked
    after every step whether to go on.
    """
    began = time.perf_counter()
    obs, info = world.reset(seed)
    act = start(seed)
    rows = []
    frames = []
    chunk_ms = []
    difference = []
    n_steps = 0
    stop = False
    while not stop:
        if instruction is not None:
            obs['instruction'] = instruction
        choice = act(obs)
        if choice is None:
            break
        if record:
            rows.append(record_row(world, obs, info, choice))
        if filmed:
            frames.append(film.film_frame(world, obs, info, choice['subtask']))
        obs, _, terminated, truncated, info = world.step(choice['executed'])
        if record:
            rows[-1]['joint_action'] = obs['joint_command']
        chunk_ms += [choice['chunk_ms']] if 'chunk_ms' in choice else []
        difference += [choice['difference']] if 'difference' in choice else []
        n_steps += 1
        stop = terminated or truncated or watched is not None and not watched()
    instruction = world.instruction if instruction is None else instruction
    if filmed:  # hold the last picture for a second, with the verdict
        obs['instruction'] = instruction
        verdict = film.film_frame(world, obs, info, 'SUCCESS' if info['success'] else 'FAILED')
        frames += [verdict] * world.control_hz
    result = dict(
        seed=seed,
        success=bool(info['success']),
        phase=PHASES[info['phase']],
        steps=n_steps,
        phase_id=info['phase'],
        fault=info['fault'],
        metrics=info['metrics'],
        instruction=instruction,
        wall_s=round(time.perf_counter() - began, 3),
    )
    if chunk_ms:
        result['chunk_ms'] = [round(x, 2) for x in chunk_ms]
    if difference:
        result['differs_at'] = next((t for t, x in enumerate(difference) if x > 0), None)
        result['max_difference'] = max(difference)
    return result, rows, frames


def record_row(world, obs, info, choice):
    """What an episode file keeps of one step, taken before the step; the loop adds joint_action
    after it.
    """
    return dict(
        time=obs['time'],
        state=state_vector(obs),
        tool_action=choice['action'],
        tool_executed=choice['executed'],
        kicked=choice['kicked'],
        subtask=choice['subtask'],
        qpos=world.data.qpos.copy(),
        qvel=world.data.qvel.copy(),
        ctrl=world.data.ctrl.copy(),
        connections=len(world.connections()),
        phase=info['phase'],
        goal=info['goal'],
        scene=world.scene().ravel(),
        facts=labels.facts(world),
        referents=(world.goals_at_work(), world.referents()),
        **{k: v for k, v in obs.items() if k.startswith('image/')},
    )


# -----------------------------------------------------------------------------
# Processes. A job is (seed, path of its film or None). Everything a worker needs comes by argument,
# because a spawned process imports this script with its default settings.


def setup(world_settings, kind, path, files, kicks, how):
    """-> world, start; called once per process. how: the settings of vla.policy.checkpoint."""
    world = World(**world_settings)
    if kind in ('checkpoint', 'coached'):
        from vla import policy  # here: recording does without torch

        student = policy.checkpoint(path, world, CLOSED_M, **how)
        return world, student if kind == 'checkpoint' else policies.coached(world, student)
    if kind == 'replay':
        return world, policies.replay(world, files)
    return world, policies.expert(world, kicks) if kind == 'expert' else policies.constant(kind)


def run_job(world, start, job, instruction, record, pictures):
    """Run, write what is to be written, return the result for the parent."""
    seed, path = job
    recording = bool(record) and not path  # a film repeats an episode that was recorded before
    result, rows, frames = run_episode(world, start, seed, instruction, recording, bool(path))
    if recording and result['success']:
        write_episode(episode_file(record, world.task, seed), *pack(world, result, rows))
    if path:
        path = path.with_name(f'{path.name}_{"success" if result["success"] else "failure"}.mp4')
        imageio.mimwrite(
            path, frames, fps=world.control_hz, quality=7
        )  # H.264, yuv420p: plays everywhere
        result |= dict(film=str(path), thumbnails=film.thumbnails(frames))
        if pictures:
            film.save_pictures(path.with_suffix(''), world, film.FILM_VIEWS, pictures, film.FILM_PX)
    return result


def build_plan(job):
    """(plan file, seed, kicks, arguments of setup) -> row of the table (plan_score.row)."""
    file, seed, instruction, (world_settings, *rest) = job
    try:
        world, start = setup(dict(world_settings, plan=str(file)), *rest)
        try:
            result, _, _ = run_episode(world, start, seed, instruction)
        finally:
            world.close()
    except ValueError as refusal:
        return plan_score.refused(file, seed, str(refusal))
    return plan_score.row(world, file, seed, result)


def score_plans(folder, asked, out, instruction, setup_args):
    """Build every plan of a folder once per seed, print the table, write plans.json."""
    jobs = [
        (file, seed, instruction, setup_args)
        for file in plan_score.plan_files(folder)
        for seed in asked
    ]
    rows = []
    with multiprocessing.get_context('spawn').Pool(min(workers, len(jobs))) as pool:
        for row in tqdm(pool.imap(build_plan, jobs), total=len(jobs), unit='plan'):
            rows.append(row)
    print('\n'.join(plan_score.table(rows)))
    for row in [row for row in rows if row['refused']][:5]:
        print(f'  {row["refused"]}')
    write_atomic(out / 'plans.json', json.dumps(rows, indent=1).encode())
    print(f'  rows: {out / "plans.json"}')


def pack(world, result, rows):
    """Rows of one episode -> (arrays, header) of its file."""
    subtasks = sorted({row['subtask'] for row in rows})
    arrays = {
        k: np.stack([row[k] for row in rows])
        for k in rows[0]
        if k not in ('subtask', 'facts', 'referents')
    }
    arrays['subtask_id'] = np.array([subtasks.index(row['subtask']) for row in rows])
    # what words refer to changes where a plan goes on to its next goal
    goals, tables = zip(*(row['referents'] for row in rows))
    referents = [
        [t, tables[t].tolist()] for t in range(len(rows)) if t == 0 or goals[t] != goals[t - 1]
    ]
    askable = [text for _, text in world.askable]
    qa = labels.spans([row['facts'] for row in rows])
    kept = {k: result[k] for k in ('seed', 'success', 'metrics')} | dict(qa=qa, subtasks=subtasks)
    return arrays, dict(
        kept,
        task=world.task,
        instruction=world.instruction,
        askable=askable,
        referents=referents,
        control_hz=world.control_hz,
        world=world.metadata(),
    )


def attempt(action, *args):
    """-> the action's result, or a RuntimeError (which gets through a pipe): what it refuses, and
    where.
    """
    try:
        return action(*args)
    except (ValueError, RuntimeError, OSError) as refusal:
        at = traceback.extract_tb(refusal.__traceback__)[-1]
        said = str(refusal) or type(refusal).__name__
        return RuntimeError(f'{said} ({Path(at.filename).name}:{at.lineno})')


def work(pipe, setup_args, instruction, record, pictures):
    """A worker's life: set up, say so, answer jobs until the pipe breaks (closed, or the parent is
    gone).
    """
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent decides
    made = attempt(setup, *setup_args)
    refused = isinstance(made, RuntimeError)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send(made if refused else 'ready')
        while not refused:
            pipe.send(attempt(run_job, *made, pipe.recv(), instruction, record, pictures))
    if not refused:
        made[0].close()


def start_workers(n, *args):
    """-> {our end of the pipe: process}, all ready for jobs."""
    context = multiprocessing.get_context('spawn')
    pool = {}
    for _ in range(n):
        ours, theirs = context.Pipe()
        pool[ours] = context.Process(target=work, args=(theirs, *args), daemon=True)
        pool[ours].start()
        theirs.close()
    for pipe in pool:
        receive(pipe, 'setting up')
    return pool


def receive(pipe, doing):
    try:
        answer = pipe.recv()
    except EOFError:
        raise SystemExit(f'a worker died {doing}: the reason is above, or memory ran out') from None
    if isinstance(answer, RuntimeError):
        raise SystemExit(f'{doing}: {answer}')
    return answer


def stop_workers(pool):
    """Closing the pipes ends them once the episode in hand is over and written."""
    for pipe in pool:
        pipe.close()
    for process in pool.values():
        process.join(timeout=20)


def dispatch(pool, jobs):
    """Hand jobs out one at a time and yield results as they come: no worker waits for a slower
    one.
    """
    jobs = iter(jobs)
    idle = list(pool)
    busy = {}
    while True:
        for pipe, job in zip(idle, jobs):  # takes a job only for a pipe that is there
            pipe.send(job)
            busy[pipe] = job
        if not busy:
            return
        idle = multiprocessing.connection.wait(list(busy))
        for pipe in idle:
            yield receive(pipe, f'running seed {busy.pop(pipe)[0]}')


# -----------------------------------------------------------------------------
# Files, numbers, words


def episode_file(folder, task, seed):
    return Path(folder) / f'{task}_{seed:07d}.safetensors'


def check(c, kind):
    """Raise ValueError for the first of the settings c that has no sense, or none for who
    drives.
    """
    for name, (number, low, high) in LIMITS.items():
        fits = type(c[name]) is number or type(c[name]) is int and number is float
        if c[name] is not None and not (fits and low <= c[name] <= high):
            most = f'at least {low}' if high == math.inf else f'from {low} to {high}'
            raise ValueError(
                f'{name}={c[name]}: expected a {"whole " * (number is int)}number, {most}'
            )
    for name in TEXTS:
        if type(c[name]) not in (str, type(None)):
            raise ValueError(f'{name}={c[name]!r}: expected text')
    if type(c['cameras']) not in (str, tuple, type(None)):
        raise ValueError(f'cameras={c["cameras"]!r}: expected names, --cameras=head,overhead')
    if unknown := sorted(set(c['pictures']) - set(RENDER_MODES)):
        raise ValueError(
            f'pictures: no kind {unknown[0]!r}; expected some of {",".join(RENDER_MODES)}'
        )
    asked = kind in ('checkpoint', 'coached')
    needs = dict.fromkeys(HOW_KEYS, (asked, 'a checkpoint drives: --ckpt=out/demo'))
    needs |= dict(
        kicks=(kind == 'expert', 'the expert drives: leave --policy and --ckpt out'),
        pictures=(c['video'], 'films are made: --video=1'),
    )
    if asked:
        needs['text_chunks'] = c['read_text'], 'text is read: --read_text'
    for name, (used, where) in needs.items():
        if not used and c[name] != DEFAULTS[name]:
            raise ValueError(
                f'{name}={c[name]} changes nothing here, where the policy is '
                f'{c["ckpt"] or c["policy"]}: it is for where {where}'
            )


def seed_range(seeds):
    """'7' or '0:10', half open -> range."""
    found = re.fullmatch(r'(\d+)(?::(\d+))?', str(seeds).replace('_', ''))
    first = int(found[1]) if found else 0
    if not found or not (numbers := range(first, int(found[2] or first + 1))):
        raise ValueError(
            f'seeds={seeds}: expected one seed, or the first and the one after the last: '
            '--seeds=7, --seeds=0:10'
        )
    return numbers


def read_log(path):
    """{seed: result}; a line that was cut off by a kill is none."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row['seed']: row for row in (json.loads(line) for line in lines if line.endswith('}}'))}


def append(path, row):
    with open(path, 'ab', buffering=0) as log:  # at once: array tasks write into one file
        log.write((json.dumps(row) + '\n').encode())


def tidy(path, asked, done):
    """One line per episode: those of seeds to be run again go, and what a kill cut off; those of
    episodes of which only the file was there come.
    """
    rows = read_log(path)
    text = path.read_text() if path.exists() else ''
    kept = {seed: row for seed, row in rows.items() if seed not in asked or done.get(seed) == row}
    if len(kept) < len(text.splitlines()) or text[-1:] not in ('', '\n'):
        write_atomic(path, ''.join(json.dumps(row) + '\n' for row in kept.values()).encode())
    if again := len(rows.keys() - kept.keys()):
        print(f'{path}: the lines of {again} episodes that are run again are replaced')
    for seed in done.keys() - kept.keys():
        append(path, done[seed])


def scored(path, seeds, made_with):
    """{seed: result} of episodes that were run in exactly this way."""
    rows = read_log(path)
    return {
        seed: rows[seed] for seed in seeds if seed in rows and rows[seed]['made_with'] == made_with
    }


def recorded(path, record, task, seeds, made_with):
    """{seed: result} of an earlier recording into this folder, which must have been made in the
    same way.
    """
    rows = read_log(path)
    known = {}
    for seed in seeds:
        file = episode_file(record, task, seed)
        if file.exists() and not (seed in rows and rows[seed]['success']):
            header = read_episode(file)[1]  # killed between writing the file and logging it
            then = made_with | {k: v for k, v in header['world'].items() if k in WORLD_KEYS}
            rows[seed] = dict(
                seed=seed,
                success=True,
                phase=PHASES[-1],
                steps=header['metrics']['steps'],
                phase_id=len(PHASES) - 1,
                fault=None,
                metrics=header['metrics'],
                instruction=header['instruction'],
                wall_s=None,
                made_with=then,
            )
        if seed in rows and rows[seed]['success'] == file.exists():
            known[seed] = rows[seed]  # a success whose file was deleted is recorded again
    for then in (row['made_with'] for row in rows.values()):
        now = {k: made_with.get(k) for k in then}
        if other := ', '.join(f'{k} was {then[k]}, is {now[k]}' for k in then if then[k] != now[k]):
            raise SystemExit(f'{record} was made with other settings: {other}; take another folder')
    return known


def lesson(record):
    """Arguments for train.py that learn from a recording: the first lesson's, unless it was
    coached.
    """
    name = Path(record).name
    whole = Path(f'config/{name.removesuffix("_coached")}.py')
    start = whole.with_name(f'{whole.stem}_start.py')
    if not whole.exists():
        return f'--episodes={record}'
    return f'{whole} {start}' if start.exists() and whole.stem == name else f'{whole}'


def watch(results, total):
    """Pass results through and show progress: a bar on a terminal, else a line every 10 s."""
    bar = tqdm(total=total, unit='ep', disable=not sys.stderr.isatty())
    k = 0
    began = said = time.time()
    for n, result in enumerate(results, 1):
        k += result['success']
        bar.update()
        bar.set_postfix_str(f'{k} ok')
        if bar.disable and time.time() - said > 10:
            said = time.time()
            rate = n / (said - began)
            print(
                f'{n}/{total} episodes, {k} ok, {60 * rate:.0f}/min, {(total - n) / rate:.0f} s left',
                file=sys.stderr,
            )
        yield result
    bar.close()


def summary(task, results, new, wall_s):
    """Lines for the end of a run; results: those of all seeds asked for, new: those of this run."""
    k = sum(r['success'] for r in results)
    n = len(results)
    numbers = [r['seed'] for r in results]
    low, high = film.wilson(k, n)
    yield (
        f'{task} {k}/{n} ({100 * k / n:.0f}%, 95% CI {100 * low:.0f}-{100 * high:.0f}) '
        f'seeds {min(numbers)}-{max(numbers)}'
    )
    yield '  got as far as: ' + ', '.join(
        f'{phase} {count}' for phase, count in film.funnel(results).items()
    )
    if k:
        yield f'  mean steps of a success: {np.mean([r["steps"] for r in results if r["success"]]):.1f}'
    if new:
        rate = sum(r['steps'] for r in new) / wall_s
        yield f'  {rate:.0f} control steps/s, {60 * len(new) / wall_s:.0f} episodes/min'
    if latency := [x for r in new for x in r.get('chunk_ms', ())]:
        yield f'  chunk latency {np.median(latency):.1f} ms median, {np.percentile(latency, 95):.1f} ms p95'
    if replayed := [r for r in new if 'differs_at' in r]:
        off = [r for r in replayed if r['differs_at'] is not None]
        yield f'  replay bit-equal in {len(replayed) - len(off)}/{len(replayed)} episodes'
        yield from (
            f'  seed {r["seed"]} differs from step {r["differs_at"]} on, by {r["max_difference"]:.2g}'
            for r in off[:5]
        )
    yield from (
        f'  seed {r["seed"]} fault: {r["fault"]}' for r in [r for r in results if r['fault']][:5]
    )


if __name__ == '__main__':
    if view:
        try:
            film.view_scene(view, show_contacts, show_joints)
        except (FileNotFoundError, ValueError, RuntimeError) as refusal:
            raise SystemExit(str(refusal)) from None
        raise SystemExit(0)
    # ---- who drives what, from where
    policy = ckpt or policy
    default = {
        k: v.default for k, v in inspect.signature(World).parameters.items() if k in WORLD_KEYS
    }
    try:
        kind, headers, made = policies.resolve(policy, default)
        kind = 'coached' if record and kind == 'checkpoint' else kind
        files = {}
        check(config, kind)
        asked = seeds if seeds is None else seed_range(seeds)
        if kind == 'replay':
            files, made = policies.choose_replay(policy, headers, config, default, asked)
    except ValueError as refusal:
        raise SystemExit(str(refusal)) from None
    config['cameras'] = (
        tuple(filter(None, cameras.split(','))) if isinstance(cameras, str) else cameras
    )
    world_settings = default | made | {k: config[k] for k in WORLD_KEYS if config[k] is not None}
    plan = world_settings['plan']
    task = Path(plan).stem if plan else world_settings['task']
    several = bool(plan) and Path(plan).is_dir()
    if several and (record or viewer or video):
        raise SystemExit(f'plan={plan}: a folder is scored; to record, film or view name one file')
    episodes = episodes or (1 if several else None)
    seed0 = seed0 if seed0 is not None else 0 if record else TEST_SEED0
    asked = list(files or asked or range(seed0, seed0 + (episodes or 10)))
    if record and kind not in ('expert', 'replay', 'coached'):
        raise SystemExit(
            f'record={record}: only the expert gives labels worth learning, policy is {policy}'
        )
    if record and max(asked) >= TEST_SEED0:
        raise SystemExit(
            f'record={record}: seeds from {TEST_SEED0} on are for testing, never recorded'
        )
    out = Path(
        out or record or (Path(policy) / 'rollout' if kind == 'checkpoint' else Path('out') / kind)
    )
    for name, folder in [('record', record)] * bool(record) + [('out', out)]:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise SystemExit(
                f'{name}={folder}: cannot be made a folder: {fault.strerror}'
            ) from None
    # ---- what is there already
    how = {k: config[k] for k in HOW_KEYS}
    made_with = dict(world_settings, policy=policy, kicks=kicks, instruction=instruction)
    if kind in ('checkpoint', 'coached'):
        weights = f'{policy}/meta.json', *Path(policy).glob('*.safetensors')
        made_with |= how | dict(weights=policies.fingerprint(weights))
    if not record:  # of a recording, which is a matter of hours, a later revision goes on
        code = (
            *CODE.glob('*.py'),
            *CODE.glob('sim/*.py'),
            *CODE.glob('vla/*.py'),
            *CODE.glob('assets/**/*.xml'),
        )
        made_with['code'] = policies.fingerprint(code)
    made_with = json.loads(json.dumps(made_with))  # tuples to lists, as they come back from the log
    path = out / 'rollouts.jsonl'
    done = {}
    if record:
        done = recorded(path, record, task, asked, made_with)
    elif not viewer and kind != 'replay':  # which is a test of this machine
        done = scored(path, asked, made_with)
    todo = [seed for seed in asked if seed not in done]
    if done:
        print(
            f'{record or path}: {len(done)} seeds are done, {len(todo)} to go'
            + (
                ''
                if record
                else '; to run them anew delete that file or name another folder: --out=...'
            )
        )
    setup_args = world_settings, kind, policy, files, kicks, how
    if several:
        try:
            score_plans(plan, asked, out, instruction, setup_args)
        except ValueError as refusal:
            raise SystemExit(str(refusal)) from None
        raise SystemExit(0)
    # ---- watch
    if viewer:
        try:
            world, start = setup(*setup_args)
            with film.viewer(world.model, world.data, show_contacts, show_joints) as draw:
                world.observer = draw
                for seed in todo:
                    if draw():
                        result, _, _ = run_episode(world, start, seed, instruction, watched=draw)
                        print(
                            f'seed {seed}: {result["phase"]} after {result["steps"]} steps, '
                            f'{result["instruction"]}'
                        )
        except (ValueError, FileNotFoundError, RuntimeError) as refusal:
            raise SystemExit(str(refusal)) from None
        raise SystemExit(0)
    # ---- run
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # kill and SLURM's time limit: like Ctrl-C
    results = list(done.values())
    films = []
    pool = {}
    try:
        if todo or video:
            pool = start_workers(
                min(workers, max(len(todo), video)), setup_args, instruction, record, pictures
            )
        began = time.time()
        tidy(path, set(asked), done)
        for result in watch(dispatch(pool, [(seed, None) for seed in todo]), len(todo)):
            results.append(result)
            append(path, dict(result, made_with=made_with))
        lines = list(summary(task, results, results[len(done) :], time.time() - began))
        print('\n'.join(lines), flush=True)
        if not record:
            film.draw_success(out / 'success.png', lines[0], results, world_settings['control_hz'])
            print(f'  success over time: {out / "success.png"}', flush=True)
        success = {r['seed']: r['success'] for r in results}
        jobs = [(seed, out / f'{task}_{seed:07d}') for seed in film.choose_films(results, video)]
        for reel in dispatch(pool, jobs):
            films.append(reel)
            print(f'  film: {reel["film"]}', flush=True)
            if reel['success'] != success[reel['seed']]:
                print(
                    f'  seed {reel["seed"]} ended differently this time: something is not deterministic'
                )
    except KeyboardInterrupt:
        again = (
            ''
            if kind == 'replay' and not record
            else f'; the same command goes on: python {" ".join(sys.argv)}'
        )
        raise SystemExit(f'\nstopped, {len(results)} episodes are safe{again}') from None
    finally:
        stop_workers(pool)
    # ---- what there is to see, and what to type next
    if films:
        films.sort(key=lambda reel: (reel['success'], reel['seed']))
        Image.fromarray(np.vstack([reel['thumbnails'] for reel in films])).save(out / 'sheet.png')
        print(f'  contact sheet: {out / "sheet.png"}')
    if record:
        print(f'next: python data.py check {record} && python train.py {lesson(record)}')
    elif not video:
        print(f'next: see it: python {" ".join(sys.argv)} --video=4')
    if any(r.get('differs_at') is not None for r in results):
        raise SystemExit(1)
