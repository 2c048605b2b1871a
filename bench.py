"""How fast is it, and how far from what the hardware gives? Simulation, pictures, loader, training,
acting.

python bench.py                                # everything as config/demo.py has it
python bench.py --only=world,render            # some sections of: world render loader train act;
seconds each python bench.py --only=train --processes=1     # one process; else as make demo: two on
CPUs, one per GPU python bench.py --only=loader,act --ckpt=out/demo    # of a trained checkpoint, on
a GPU if there is one python bench.py --clutch                       # the clutch's force table,
nothing else python bench.py --soak --episodes=10000        # random actions in every task; kill and
repeat to go on python bench.py --train_config=config/join.py
--collect_config=config/join_collect.py    # the two-arm task Ratios, and lines of one kind, are
measured in turns, so that other load on the machine falls on all of them.
"""

import os

os.environ['OMP_NUM_THREADS'] = os.environ['MKL_NUM_THREADS'] = '1'  # one thread per process
import functools
import inspect
import json
import multiprocessing
import platform
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import data
import model
from episode import git_rev, write_synthetic_episodes
from sim import rig, tasks
from sim.expert import Expert
from sim.gl import gl_backend, mujoco
from sim.world import World
from vla import layers
from vla.processor import Processor

# -----------------------------------------------------------------------------
only = ''  # sections, comma separated; '': all
seconds = 3.0  # per measurement
collect_config = 'config/demo_collect.py'  # the world that is measured
train_config = 'config/demo.py'  # the training that is measured, its loader and its model
train_steps = 40
processes = None  # of training; None: as make demo, one per GPU or two on CPUs
ckpt = ''  # for loader and act; '': one made for the occasion, hardly trained
clutch = False  # print the force table and nothing else
soak = False  # look for divergence and nothing else
episodes = 10_000  # of soak, spread over the tasks
workers = 2  # of soak, processes
out = 'out/soak'  # of soak: <out>/<task>/rollouts.jsonl, one line per episode
exec(open('configurator.py').read())  # overrides from a config file or the command line
# -----------------------------------------------------------------------------
SECTIONS = ('world', 'render', 'loader', 'train', 'act')
EPISODES = 4  # recorded where train_config's are missing: more windows than a batch has samples
SOAK_SEED0 = (
    1_000_000  # seed 7 of join again: python sim_rollout.py --policy=random --task=join --seeds=7:8
)
TEXT_TOKENS = 8  # length of a decoded subtask; fixed, because an untrained model never stops


def show(section, what, value, unit, note=''):
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    print(f'{section:7} {what:46} {value:10.{digits}f} {unit:10} {note}', flush=True)


def alternate(seconds, **actions):
    """Run the actions in turns for so long -> {name: median seconds of one call}."""
    times = {name: [] for name in actions}
    end = time.perf_counter() + seconds
    for action in actions.values():  # warm up
        action()
    while time.perf_counter() < end or min(map(len, times.values())) < 3:
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - began)
    return {name: float(np.median(t)) for name, t in times.items()}


def run(*command):
    """A command as a user would type it; its output is shown only where it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f'{" ".join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}'
        )


def settings_of(config, names):
    """Those of the names that a config file sets. A config file is assignments and nothing else."""
    return {k: v for k, v in runpy.run_path(config).items() if k in names}


def make_world(**changes):
    """The world that collect_config records, but for the changes."""
    return World(**settings_of(collect_config, inspect.signature(World).parameters) | changes)


def make_checkpoint(folder, steps, processes):
    """Train for so many steps by the commands of the README -> checkpoint folder."""
    episodes = settings_of(train_config, ['episodes'])['episodes']
    if not Path(episodes).exists():
        few = f'--episodes={EPISODES}'
        episodes = f'{folder}/episodes'
        run(sys.executable, 'sim_rollout.py', collect_config, few, f'--record={episodes}')
    torchrun = [
        Path(sys.executable).parent / 'torchrun',
        '--standalone',
        f'--nproc_per_node={processes}',
    ]
    run(
        *(torchrun if processes > 1 else [sys.executable]),
        'train.py',
        train_config,
        f'--episodes={episodes}',
        f'--out_dir={folder}/run',
        '--init_from=',
        f'--max_steps={steps}',
        f'--log_interval={max(1, steps // 4)}',
        '--val_fraction=0',
    )  # few episodes: maybe none to hold out
    return f'{folder}/run'


def steps_per_second(world, seconds):
    """The expert drives whole episodes; resets and the expert are not counted."""
    expert = Expert()
    n = 0
    spent = 0.0
    seed = 0
    while spent < seconds:
        world.reset(seed)
        seed = seed + 1
        stop = False
        while not stop:
            action, _ = expert.act(world.truth())
            began = time.perf_counter()
            _, _, terminated, truncated, _ = world.step(action)
            spent += time.perf_counter() - began
            n = n + 1
            stop = terminated or truncated
    return n / spent


def physics_share(world, seconds):
    """Time of bare mj_step / time of physics with clutch, from the same states along an expert's
    episodes, in turns. Both are one thread's own CPU time: what other processes take in between
    belongs to neither.
    """
    expert = Expert()
    spent = np.zeros(2)
    seed = 0
    n = round(1 / world.control_hz / world.model.opt.timestep)  # physics steps in one control step

    def bare():
        mujoco.mj_step(world.model, world.data, nstep=n)

    def ours():
        world._physics(n)

    while spent.sum() < seconds:
        world.reset(seed)
        seed = seed + 1
        stop = False
        while not stop:
            state = world.state()
            for i in (
                (0, 1) if world.steps % 2 else (1, 0)
            ):  # neither profits from always coming second
                began = time.thread_time()
                (bare, ours)[i]()
                spent[i] += time.thread_time() - began
                world.set_state(state)
            _, _, terminated, truncated, _ = world.step(expert.act(world.truth())[0])
            stop = terminated or truncated
    return spent[0] / spent[1]


def gemm_rate(dtype, size=1024, seconds=1.0):
    """FLOP/s of square matrix products on one thread."""
    torch.set_num_threads(1)
    a = torch.randn(size, size).to(dtype)
    return 2 * size**3 / alternate(seconds, gemm=lambda: a @ a)['gemm']


def bench_world():
    blind = make_world(cameras=())
    kind = f'{blind.task}, scale {blind.brick_scale:g}, one process'
    show('world', 'control steps, no camera', steps_per_second(blind, seconds), 'steps/s', kind)
    for changes in ({}, {'image_size': 112}):
        seeing = make_world(**changes)
        what = f'control steps, {len(seeing.cameras)} cameras of {seeing.image_size} px'
        show('world', what, steps_per_second(seeing, seconds), 'steps/s', kind)
        seeing.close()
    for task in dict.fromkeys((blind.task, 'build')):  # of which build has the most bricks
        show(
            'world',
            f'physics with clutch / bare mj_step, {task}',
            physics_share(make_world(cameras=(), task=task), seconds),
            '',
            'speeds on the same model from the same states',
        )


def bench_render():
    world = make_world()
    world.reset(0)
    size = world.image_size
    n = len(world.cameras)
    bare = mujoco.Renderer(world.model, size, size)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        bare.scene.flags[flag] = False

    def bare_loop():
        for camera in world.cameras:
            bare.update_scene(world.data, camera)
            bare.render()

    took = alternate(
        seconds, ours=lambda: [world.render(camera) for camera in world.cameras], bare=bare_loop
    )
    show(
        'render',
        f'World.render, {size} px, {gl_backend()}',
        n / took['ours'],
        'images/s',
        'one process',
    )
    show(
        'render',
        'bare mujoco.Renderer, same model and flags',
        n / took['bare'],
        'images/s',
        f'World.render gives {took["bare"] / took["ours"]:.2f} of it',
    )
    bare.close()
    world.close()


def print_forces():
    """The force table, row by row -> number of rows that miss their requirement."""
    title = 'clutch set to press 1, pull 2, shear 10 N per stud'
    print(f'{title:52} {"step":>4} {"measured":>10} {"expected":>10}')
    bad = 0
    for row in rig.force_table():
        measured, expected = (
            x if isinstance(x, str) else f'{x:.3g}' for x in (row['measured'], row['expected'])
        )
        print(
            f'{row["test"]:52} {1e3 * row["dt"]:.0f} ms {measured:>10} {expected:>10} {row["unit"]:8}'
            f'{"" if row["ok"] else "MISSED"}',
            flush=True,
        )
        bad += not row['ok']
    return bad


def soaked(folder):
    """{seed: result} of the episodes that are done; a line cut off by a kill is none."""
    log = Path(folder) / 'rollouts.jsonl'
    rows = (
        [json.loads(line) for line in log.read_text().splitlines() if line.endswith('}}')]
        if log.exists()
        else []
    )
    return {row['seed']: row for row in rows}


def missing_ranges(seeds, done, longest=500):
    """[(first, end)] half open, that together hold the seeds not in `done`, each no longer than
    asked.
    """
    ranges = []
    for seed in (s for s in seeds if s not in done):
        if ranges and ranges[-1][1] == seed and seed - ranges[-1][0] < longest:
            ranges[-1][1] = seed + 1
        else:
            ranges.append([seed, seed + 1])
    return ranges


def run_soak(episodes, workers, out):
    """Random actions until the time limit, by the one stepping loop -> 1 if anything diverged."""
    # quick ones first
    names = sorted(tasks.TASKS, key=lambda name: tasks.TASKS[name].time_limit_s)
    bad = []
    worst = {}
    for i, task in enumerate(names):
        seeds = range(SOAK_SEED0, SOAK_SEED0 + len(range(i, episodes, len(names))))
        folder = f'{out}/{task}'
        done = soaked(f'{out}/{task}')
        for first, end in missing_ranges(seeds, done):
            print(f'{task}: {sum(s in done for s in seeds)} of {len(seeds)} done', flush=True)
            command = [
                sys.executable,
                'sim_rollout.py',
                '--policy=random',
                f'--task={task}',
                '--cameras=',
                f'--seeds={first}:{end}',
                f'--workers={workers}',
                f'--out={folder}',
            ]
            if subprocess.run(
                command, stdout=subprocess.DEVNULL
            ).returncode:  # its progress is seen
                raise SystemExit(f'{" ".join(command)} failed, for the reason above')
            done = soaked(folder)
        rows = [done[s] for s in seeds]
        bad += [(task, row) for row in rows if row['fault']]
        for key in ('penetration_mm', 'energy_j'):
            worst[task, key] = max(
                ((row['metrics'][key], row['seed']) for row in rows), default=(0.0, None)
            )
        (depth, a), (energy, b) = worst[task, 'penetration_mm'], worst[task, 'energy_j']
        print(
            f'{task}: {len(rows)} episodes, deepest contact {depth:.1f} mm (seed {a}), '
            f'most energy {energy:.1f} J (seed {b})',
            flush=True,
        )
    for task, row in bad:
        print(f'{task} seed {row["seed"]} after {row["steps"]} steps: {row["fault"]}')
    print(f'{len(bad)} of {episodes} episodes diverged')
    return int(bool(bad))


def bench_loader(ckpt):
    """Batches with the settings and the normaliser the checkpoint was trained with."""
    meta = json.loads((Path(ckpt) / 'meta.json').read_text())
    settings = meta['settings']
    names = inspect.signature(data.Dataset).parameters
    dataset = data.Dataset(
        settings['episodes'],
        Processor.from_dict(meta['processor']),
        'train',
        **{k: settings[k] for k in names if k in settings},
    )
    steps = iter(range(10**9))
    n = settings['batch_size']
    took = alternate(
        seconds,
        plain=lambda: dataset.batch(next(steps), n),
        augmented=lambda: data.augment(dataset.batch(next(steps), n)),
    )
    note = f'{len(dataset)} windows of {len(dataset.paths)} episodes, one thread'
    show('loader', f'Dataset.batch of {n}', n / took['plain'], 'samples/s', note)
    show(
        'loader',
        f'Dataset.batch of {n}, then data.augment',
        n / took['augmented'],
        'samples/s',
        note,
    )


def bench_frames(folder):
    """What a loader thread gets through by the size and kind of the pictures, in the page cache."""
    cameras = ('overhead', 'left/wrist', 'right/wrist')
    with open('assets/tokenizer.json') as f:
        words = f.read()
    for size, quality in ((96, 0), (224, 0), (96, 90)):
        episodes = f'{folder}/frames_{size}_{quality}'
        write_synthetic_episodes(episodes, 8, cameras, size, jpeg=quality)
        processor = Processor(cameras, size, ('command/*',), ('*/tool_[xyz]',), 16, 10, words)
        dataset = data.Dataset(episodes, processor)
        processor.fit(dataset)
        steps = iter(range(10**9))
        took = alternate(seconds, plain=lambda: dataset.batch(next(steps), 256))
        kind = f'jpeg {quality}' if quality else 'raw'
        show(
            'loader',
            f'Dataset.batch of 256, 3 x {size} px {kind}',
            256 / took['plain'],
            'samples/s',
            'synthetic, chunks of 16, one thread',
        )


def bench_train(folder, processes):
    """What make_checkpoint wrote into its log, and the share of what matrix products alone would
    reach.
    """
    lines = [json.loads(line) for line in (Path(folder) / 'log.jsonl').read_text().splitlines()][1:]
    settings = json.loads((Path(folder) / 'meta.json').read_text())['settings']
    rate, flops, wait = (
        np.median([x[k] for x in lines]) for k in ('samples_per_s', 'gflops', 'data_wait')
    )
    note = f'{processes} process(es), waits {wait:.0%} for data'
    show('train', f'train.py {train_config}', rate, 'samples/s', note)
    show('train', 'arithmetic done', flops, 'GFLOP/s')
    if torch.cuda.is_available():
        return  # a GPU's peak stands in its data sheet
    dtype = layers.autocast_for('cpu', settings['dtype']).fast_dtype
    with multiprocessing.get_context('spawn').Pool(
        processes
    ) as pool:  # as many at a time as train.py runs
        gemm = sum(pool.map(gemm_rate, [dtype] * processes)) / 1e9
    show(
        'train',
        f'matrix product, 1024 x 1024, {str(dtype)[6:]}',
        gemm,
        'GFLOP/s',
        f'{processes} process(es); train.py reaches {flops / gemm:.0%} of it',
    )


def bench_act(ckpt):
    """From observation to commands as sim_rollout.py does it, in each --dtype that makes sense
    here.
    """
    torch.set_num_threads(1)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    net, meta = model.VLA.load(ckpt)
    net = net.to(device).eval()
    processor = Processor.from_dict(meta['processor'])
    made = {k: v for k, v in meta['world'].items() if k in ('task', 'brick_scale')}
    world = make_world(
        **made,
        cameras=processor.cameras,
        image_size=processor.image_size,
        control_hz=processor.control_hz,
    )
    obs, _ = world.reset(0)
    fast = layers.autocast_for(device).fast_dtype == torch.bfloat16

    def act(steps, words, autocast):
        batch = {k: v.to(device) for k, v in processor.encode([obs]).items()}
        with torch.inference_mode(), autocast:
            chunk = net.plan_and_act(batch, steps, words)[0] if words else net.act(batch, steps)
        return processor.decode_actions(chunk.float().cpu().numpy(), obs['tool_command'][None])

    actions = {}
    for dtype in ('float32', 'bfloat16') if fast else ('float32',):
        for words in (0, TEXT_TOKENS):
            for steps in (1, 5, 10):
                name = f'{steps} step(s), {f"after {words} words, " if words else ""}{dtype}'
                actions[name] = functools.partial(
                    act, steps, words, layers.autocast_for(device, dtype)
                )
    for name, value in alternate(seconds, **actions).items():
        note = f'{net.n_parameters / 1e6:.2f} M parameters, {device}, one thread'
        show('act', f'chunk, {name}', value * 1e3, 'ms', note)
    world.close()


if __name__ == '__main__':
    if clutch:
        raise SystemExit(print_forces())
    if soak:
        raise SystemExit(run_soak(episodes, workers, out))
    chosen = only.split(',') if only else SECTIONS
    if unknown := [name for name in chosen if name not in SECTIONS]:
        raise SystemExit(f'only={only}: no section {unknown[0]}; there are {", ".join(SECTIONS)}')
    cpu = (
        [
            line.split(':')[1].strip()
            for line in open('/proc/cpuinfo')
            if line.startswith('model name')
        ]
        if Path('/proc/cpuinfo').exists()
        else [platform.processor()]
    )
    gpu = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    print(
        f'{cpu[0]}, {os.cpu_count()} cores{gpu}; mujoco {mujoco.__version__}, torch {torch.__version__}, '
        f'rev {git_rev()}; load {os.getloadavg()[0]:.1f} before the start'
    )
    print(f'python {" ".join(sys.argv)}\n')
    processes = processes or torch.cuda.device_count() or min(2, os.cpu_count())
    with tempfile.TemporaryDirectory() as temporary:
        trained = ''
        for section in chosen:
            if not trained and (section == 'train' or section in ('loader', 'act') and not ckpt):
                steps, n = (train_steps, processes) if 'train' in chosen else (1, 1)
                trained = make_checkpoint(temporary, steps, n)
            if section == 'world':
                bench_world()
            elif section == 'render':
                bench_render()
            elif section == 'loader':
                bench_loader(ckpt or trained)
                bench_frames(temporary)
            elif section == 'train':
                bench_train(trained, processes)
            elif section == 'act':
                bench_act(ckpt or trained)
