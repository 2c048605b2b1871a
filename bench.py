"""Measure world, pictures, loader, training and acting beside what the hardware gives.

Everything, as config/demo.py has it; training takes one process per GPU, or two on CPUs, acting
takes a GPU if there is one:
python bench.py

Some of the sections world, render, loader, train, act, wire; training in one process:
python bench.py --only=world,render
python bench.py --only=train --processes=1

With a trained checkpoint, and of the task for two arms:
python bench.py --only=loader,act --ckpt=out/demo
python bench.py --only=act --ckpt=out/demo --onnx=out/demo/chunk.onnx
python bench.py --train_config=config/join.py --collect_config=config/join_collect.py

One GPU, in six minutes: training, chunks, collection and the tests that need it; --device=cpu
rehearses it with tiny networks:
python bench.py --gpu

The clutch's table of forces, and nothing else:
python bench.py --clutch

Random actions in every task, to look for divergence (kill it and type it again: it goes on):
python bench.py --soak --episodes=10000

Ratios, and lines of one kind, are measured in turns, so that other load on the machine falls on all
of them alike.
"""

import os

# Before numpy is imported: one thread per process.
os.environ['OMP_NUM_THREADS'] = '1'
os.environ['MKL_NUM_THREADS'] = '1'
import argparse
import functools
import inspect
import itertools
import json
import multiprocessing
import platform
import runpy
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import torch

import data
import hub
import model
import wire
from episode import git_rev, write_synthetic_episodes
from sim import gl, ledger, rig, tasks
from sim.expert import Expert
from sim.gl import gl_backend, mujoco
from sim.workers import cores
from sim.world import World
from vla import layers, measure, optim, parallel, watch
from vla.policy import command_in_force
from vla.processor import Processor

# -----------------------------------------------------------------------------
# what is measured
only = ''  # sections, comma separated; '': all
seconds = 3.0  # >0..3600: per measurement
collect_config = 'config/demo_collect.py'  # the world that is measured
train_config = 'config/demo.py'  # the training that is measured, its loader and its model
train_steps = 40  # 1..: optimizer steps
processes = None  # 1..1024: of training; None: one per GPU or two on CPUs, as make demo has it
ckpt = ''  # The checkpoint of loader and act, a Hub id too; '': one is made, hardly trained
onnx = ''  # A file of sample.py --export, which act measures beside torch
# instead of all that
gpu = False  # Measure what one GPU reaches, each section in a process of its own
device = 'auto'  # The device of --gpu: 'cuda', or 'cpu' for a rehearsal with tiny networks
limit_s = 0.0  # 0..: of a section of gpu, after which it is ended; 0: as long as stands below
clutch = False  # print the table of forces
soak = False  # look for divergence
episodes = 10_000  # 1..: of soak, spread over the tasks
workers = 2  # 1..1024: of soak, processes
out = 'out/soak'  # The log of soak: <out>/<task>/rollouts.jsonl, one line per episode
exec((Path(__file__).parent / 'configurator.py').read_text())  # overrides by file or command line
# -----------------------------------------------------------------------------
CODE = Path(__file__).resolve().parent
# train.py is read like a config: its settings, and the small functions that make a model of them.
TRAIN = types.SimpleNamespace(**runpy.run_path(str(CODE / 'train.py')))
SECTIONS = ('world', 'render', 'loader', 'train', 'act', 'wire')
# Sections of --gpu, and the most seconds that each may take: six minutes. What one leaves goes to
# those after it.
GPU_SECTIONS = {
    'gpu_demo': 60,
    'gpu_base': 60,
    'gpu_large': 80,
    'gpu_act': 60,
    'gpu_collect': 35,
    'gpu_tests': 65,
}
# How a config is trained: with compiled blocks or not, as one CUDA graph or not; what tells most
# comes first, for want of time the last ones are left out.
GPU_WAYS = {
    'eager': (False, False),
    'CUDA graph': (False, True),
    'compiled blocks, CUDA graph': (True, True),
    'compiled blocks': (True, False),
}
# In which ways a chunk is made: with compiled blocks or not, as one CUDA graph or not.
GPU_CHUNKS = {
    'eager': (False, False),
    'CUDA graph': (False, True),
    'compiled blocks, CUDA graph': (True, True),
}
GPU_PART = 128  # samples of `large` that go forward and backward at a time
GPU_EPISODES = 24  # made up, of three cameras: 1,400 windows
DENOISING_STEPS = (1, 5, 10)
EPISODES = 4  # recorded where train_config's are missing: more windows than a batch has samples
# Seed 7 of join again: python sim_rollout.py --policy=random --task=join --seeds=7:8
SOAK_SEED0 = 1_000_000
SOAK_RANGE = 500  # seeds per command
TEXT_TOKENS = 8  # length of a decoded subtask; fixed, because an untrained model never stops
GEMM_SIZE = 1024  # rows and columns of the matrices that are multiplied


# -----------------------------------------------------------------------------
# How it is measured and printed


def show(section, what, value, unit, note=''):
    """Print one line of the table."""
    digits = 2
    if value >= 10:
        digits = 1
    if value >= 100:
        digits = 0
    print(f'{section:7} {what:46} {value:10.{digits}f} {unit:10} {note}', flush=True)


def alternate(seconds, **actions):
    """Run the actions in turns for so long, and each three times at least.

    Returns:
        The median time of one call in s, by name.
    """
    times = {name: [] for name in actions}
    end = time.perf_counter() + seconds
    for action in actions.values():  # the first call warms up and does not count
        action()
    n_rounds = 0
    while time.perf_counter() < end or n_rounds < 3:
        n_rounds += 1
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - began)
    return {name: float(np.median(t)) for name, t in times.items()}


def run(*words):
    """Run a command as a user would type it; its output is shown only where it fails."""
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{" ".join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}')


def find(config):
    """Find a config file: as it was typed, or else beside the code."""
    return config if Path(config).exists() else CODE / config


def settings_of(config, names):
    """Read those of the settings that a config file sets; it is assignments and nothing else."""
    assigned = runpy.run_path(str(find(config)))
    return {name: value for name, value in assigned.items() if name in names}


def make_world(**changes):
    """Make the world that collect_config records, but for the changes."""
    settings = settings_of(collect_config, inspect.signature(World).parameters)
    return World(**settings | changes)


def make_checkpoint(folder, steps, processes):
    """Train for so many steps by the commands of the README; return the checkpoint's folder."""
    source = settings_of(train_config, ['episodes'])['episodes']
    if not Path(source).exists():
        source = f'{folder}/episodes'
        run(
            sys.executable,
            CODE / 'sim_rollout.py',
            find(collect_config),
            f'--episodes={EPISODES}',
            f'--record={source}',
        )
    launcher = [sys.executable]
    if processes > 1:
        torchrun = Path(sys.executable).parent / 'torchrun'
        launcher = [torchrun, '--standalone', f'--nproc_per_node={processes}']
    run(
        *launcher,
        CODE / 'train.py',
        find(train_config),
        f'--episodes={source}',
        f'--out_dir={folder}/run',
        '--init_from=',
        f'--max_steps={steps}',
        f'--log_interval={max(1, steps // 4)}',
        '--val_fraction=0',  # Few episodes may leave none to hold out.
    )
    return f'{folder}/run'


# -----------------------------------------------------------------------------
# World


def steps_per_second(world, seconds):
    """Let the expert drive whole episodes; resets and the expert are not counted."""
    expert = Expert()
    n_steps = 0
    spent = 0.0
    seed = 0
    while spent < seconds:
        world.reset(seed)
        seed += 1
        stop = False
        while not stop:
            action, _ = expert.act(world.truth())
            began = time.perf_counter()
            _, _, terminated, truncated, _ = world.step(action)
            spent += time.perf_counter() - began
            n_steps += 1
            stop = terminated or truncated
    return n_steps / spent


def physics_share(world, seconds):
    """Divide the time of bare mj_step by the time of physics with clutch.

    Both start from the same states along an expert's episodes, in turns. Both times are one
    thread's own CPU time: what other processes take in between belongs to neither.
    """
    expert = Expert()
    n = round(1 / world.control_hz / world.model.opt.timestep)  # physics steps in one control step
    spent = {'bare': 0.0, 'clutch': 0.0}
    actions = {
        'bare': lambda: mujoco.mj_step(world.model, world.data, nstep=n),
        'clutch': lambda: world._physics(n),
    }
    seed = 0
    while sum(spent.values()) < seconds:
        world.reset(seed)
        seed += 1
        stop = False
        while not stop:
            state = world.state()
            names = list(actions)
            if world.steps % 2 == 0:  # neither profits from always coming second
                names.reverse()
            for name in names:
                began = time.thread_time()
                actions[name]()
                spent[name] += time.thread_time() - began
                world.set_state(state)
            action, _ = expert.act(world.truth())
            _, _, terminated, truncated, _ = world.step(action)
            stop = terminated or truncated
    return spent['bare'] / spent['clutch']


def bench_world():
    """Measure control steps with and without cameras, and what the clutch costs."""
    blind = make_world(cameras=())
    kind = f'{blind.task}, scale {blind.brick_scale:g}, one process'
    show('world', 'control steps, no camera', steps_per_second(blind, seconds), 'steps/s', kind)
    for changes in ({}, {'image_size': 112}):
        seeing = make_world(**changes)
        what = f'control steps, {len(seeing.cameras)} cameras of {seeing.image_size} px'
        show('world', what, steps_per_second(seeing, seconds), 'steps/s', kind)
        seeing.close()
    note = 'speeds on the same model from the same states'
    for task in dict.fromkeys((blind.task, 'build')):  # build has the most bricks
        share = physics_share(make_world(cameras=(), task=task), seconds)
        show('world', f'physics with clutch / bare mj_step, {task}', share, '', note)


# -----------------------------------------------------------------------------
# Pictures


def bench_render():
    """Measure pictures of all cameras beside those of MuJoCo's own renderer."""
    world = make_world()
    world.reset(0)
    size = world.image_size
    n = len(world.cameras)
    renderer = mujoco.Renderer(world.model, size, size)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = False

    def ours():
        for camera in world.cameras:
            world.render(camera)

    def bare():
        for camera in world.cameras:
            renderer.update_scene(world.data, camera)
            renderer.render()

    took = alternate(seconds, ours=ours, bare=bare)
    what = f'World.render, {size} px, {gl_backend()}'
    show('render', what, n / took['ours'], 'images/s', 'one process')
    what = 'bare mujoco.Renderer, same model and flags'
    note = f'World.render gives {took["bare"] / took["ours"]:.2f} of it'
    show('render', what, n / took['bare'], 'images/s', note)
    renderer.close()
    world.close()


# -----------------------------------------------------------------------------
# Loader


def batches(dataset, batch_size):
    """Return a function that makes one batch after the other."""
    steps = itertools.count()
    return lambda: dataset.batch(next(steps), batch_size)


def bench_loader(ckpt):
    """Measure batches with the settings and the normaliser the checkpoint was trained with."""
    meta = json.loads((Path(ckpt) / 'meta.json').read_text('utf-8'))
    settings = meta['settings']
    processor = Processor.from_dict(meta['processor'])
    parameters = inspect.signature(data.Dataset).parameters
    how = {name: settings[name] for name in parameters if name in settings}
    dataset = data.Dataset(settings['episodes'], processor, 'train', **how)
    n = settings['batch_size']
    batch = batches(dataset, n)
    took = alternate(seconds, plain=batch, augmented=lambda: data.augment(batch()))
    note = f'{len(dataset)} windows of {len(dataset.paths)} episodes, one thread'
    show('loader', f'Dataset.batch of {n}', n / took['plain'], 'samples/s', note)
    what = f'Dataset.batch of {n}, then data.augment'
    show('loader', what, n / took['augmented'], 'samples/s', note)


def bench_frames(folder):
    """Measure what a loader thread gets through by size and kind of pictures, in the page cache."""
    cameras = ('overhead', 'left/wrist', 'right/wrist')
    tokenizer = (CODE / 'assets/tokenizer.json').read_text('utf-8')
    for size, quality in ((96, 0), (224, 0), (96, 90)):
        source = f'{folder}/frames_{size}_{quality}'
        write_synthetic_episodes(source, 8, cameras, size, jpeg=quality)
        processor = Processor(cameras, size, ('command/*',), ('*/tool_[xyz]',), 16, 10, tokenizer)
        dataset = data.Dataset(source, processor)
        processor.fit(dataset)
        took = alternate(seconds, plain=batches(dataset, 256))
        kind = f'jpeg {quality}' if quality else 'raw'
        what = f'Dataset.batch of 256, 3 x {size} px {kind}'
        note = 'synthetic, chunks of 16, one thread'
        show('loader', what, 256 / took['plain'], 'samples/s', note)


# -----------------------------------------------------------------------------
# Training


def gemm_rate(dtype, size=GEMM_SIZE, seconds=1.0):
    """Measure square matrix products on one thread, in FLOP/s."""
    torch.set_num_threads(1)
    a = torch.randn(size, size).to(dtype)
    took = alternate(seconds, gemm=lambda: a @ a)
    return 2 * size**3 / took['gemm']


def bench_train(folder, processes):
    """Show what make_checkpoint logged, and the share of what matrix products alone would reach."""
    log = (Path(folder) / 'log.jsonl').read_text('utf-8').splitlines()
    lines = [json.loads(line) for line in log][1:]  # the first one holds the start
    settings = json.loads((Path(folder) / 'meta.json').read_text('utf-8'))['settings']
    rate = np.median([line['samples_per_s'] for line in lines])
    gflops = np.median([line['gflops'] for line in lines])
    wait = np.median([line['data_wait'] for line in lines])
    note = f'{processes} process(es), waits {wait:.0%} for data'
    show('train', f'train.py {train_config}', rate, 'samples/s', note)
    show('train', 'arithmetic done', gflops, 'GFLOP/s')
    if torch.cuda.is_available():
        return  # a GPU's peak stands in its data sheet
    dtype = layers.autocast_for('cpu', settings['dtype']).fast_dtype
    with multiprocessing.get_context('spawn').Pool(processes) as pool:  # all at a time
        gemm = sum(pool.map(gemm_rate, [dtype] * processes)) / 1e9
    what = f'matrix product, {GEMM_SIZE} x {GEMM_SIZE}, {str(dtype).removeprefix("torch.")}'
    note = f'{processes} process(es); train.py reaches {gflops / gemm:.0%} of it'
    show('train', what, gemm, 'GFLOP/s', note)


# -----------------------------------------------------------------------------
# Acting


def bench_act(ckpt, onnx=''):
    """Measure from observation to commands as sim_rollout.py does it, in each sensible --dtype."""
    torch.set_num_threads(1)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    net, meta = model.VLA.load(ckpt)
    net = net.to(device).eval()
    processor = Processor.from_dict(meta['processor'])
    made = {key: meta['world'][key] for key in ('task', 'brick_scale') if key in meta['world']}
    world = make_world(
        **made,
        cameras=processor.cameras,
        image_size=processor.image_size,
        control_hz=processor.control_hz,
    )
    obs, _ = world.reset(0)
    command = command_in_force(obs, processor.action_space)[None]

    def act(steps, words, autocast):
        batch = {name: value.to(device) for name, value in processor.encode([obs]).items()}
        with torch.inference_mode(), autocast:
            if words:
                chunk, _ = net.plan_and_act(batch, steps, words)
            else:
                chunk = net.act(batch, steps)
        return processor.decode_actions(chunk.float().cpu().numpy(), command)

    dtypes = ['float32']
    if layers.autocast_for(device).fast_dtype == torch.bfloat16:
        dtypes.append('bfloat16')
    actions = {}
    for dtype, words, steps in itertools.product(dtypes, (0, TEXT_TOKENS), (1, 5, 10)):
        after = f'after {words} words, ' if words else ''
        autocast = layers.autocast_for(device, dtype)
        actions[f'{steps} step(s), {after}{dtype}'] = functools.partial(act, steps, words, autocast)
    if onnx:
        from vla.export import load_chunk  # here, because it needs onnxruntime

        actions['ONNX file on the CPU'] = functools.partial(load_chunk(onnx), obs)
    note = f'{net.n_parameters / 1e6:.2f} M parameters, {device}, one thread'
    for name, time_s in alternate(seconds, **actions).items():
        show('act', f'chunk, {name}', time_s * 1e3, 'ms', note)
    world.close()


def answer_at_once(started):
    """Serve a policy that takes no time, in a process of its own; `started` gets the port."""
    chunk = np.zeros((8, 15), np.float32)
    wire.serve(lambda request: {'actions': chunk}, {}, '127.0.0.1', 0, started.put)


def bench_wire():
    """Measure a round trip of openpi's protocol on this machine, but for the model."""
    context = multiprocessing.get_context('spawn')
    started = context.Queue()
    server = context.Process(target=answer_at_once, args=(started,), daemon=True)
    server.start()
    rng = np.random.default_rng(0)
    request = {
        f'image/{name}': rng.integers(0, 256, (224, 224, 3), np.uint8)
        for name in ('overhead', 'left', 'right')
    }
    request['state'] = np.zeros(79, np.float32)
    with wire.Client(f'ws://127.0.0.1:{started.get(timeout=300)}') as client:
        client.infer(request)
        times = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 100:
            began = time.perf_counter()
            client.infer(request)
            times.append(1e3 * (time.perf_counter() - began))
    server.terminate()
    low, median, high = np.percentile(times, (5, 50, 95))
    note = f'3 x 224 px, {len(times)} times; p5 {low:.2f}, p95 {high:.2f} ms'
    show('wire', 'round trip without the model, median', median, 'ms', note)


# -----------------------------------------------------------------------------
# One GPU


def run_gpu(sections, device):
    """Run sections one after the other, each in a process: what fails takes no other along."""
    failed = []
    end = time.perf_counter()
    for name in sections:
        end += GPU_SECTIONS[name] * (10 if device == 'cpu' else 1)
        limit_s = end - time.perf_counter()
        command = [sys.executable, str(CODE / 'bench.py'), f'--only={name}', f'--device={device}']
        command += [f'--seconds={seconds}', f'--limit_s={limit_s:.0f}']
        try:
            code = subprocess.run(command, timeout=limit_s).returncode
        except subprocess.TimeoutExpired:
            code = f'ended after {limit_s:.0f} s'
        if code:
            print(f'{name} FAILED: {code}', flush=True)
            failed.append(name)
    return len(failed)


def as_json(section, **numbers):
    """Print the numbers of a section as one JSON line, for a program to read."""
    print(json.dumps({'section': section, **numbers}), flush=True)


def settings_for_gpu(name, tiny):
    """The settings of train.py with config/<name>.py, for a first lesson on made-up episodes."""
    settings = dict(TRAIN.config)
    first = f'config/{name}_start.py'
    for path in (f'config/{name}.py', *([first] if (CODE / first).exists() else [])):
        settings |= settings_of(path, settings)
    settings |= {'init_from': '', 'reask_share': 0.0}
    if tiny:  # the same shape, so that a rehearsal takes the same way through the code
        small = dict(hidden_size=64, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=32)
        small |= dict(mrope_section=(4, 6, 6), intermediate_size=128, image_size=32)
        settings |= small | dict(batch_size=settings['batch_size'] // 32)
    part = GPU_PART // 32 if tiny else GPU_PART
    if name == 'large':  # One GPU accumulates what eight would share.
        settings['accumulate'] = settings['batch_size'] // part
    return settings


def make_gpu_data(settings, folder):
    """Write made-up episodes; return a data set of them with a fitted processor.

    Their words come from the grammar, as those of recorded ones do: most of a batch's time.
    """
    cameras = settings['cameras']
    count = GPU_EPISODES if settings['image_size'] > 32 else 6
    shape = (cameras, settings['image_size'], settings['control_hz'])
    write_synthetic_episodes(folder, count, *shape, grammar=True)
    prompt = {
        'tokenizer': (CODE / 'assets/tokenizer.json').read_text(),
        'tokens_per_camera': settings['tokens_per_camera'],
    }
    processor = Processor(**TRAIN.pick(settings, TRAIN.PROCESSING) | prompt)
    how = TRAIN.pick(settings, TRAIN.READING + TRAIN.SAMPLING) | {'val_fraction': 0.0}
    dataset = data.Dataset(folder, processor, 'train', multiple=8, **how)
    processor.fit(dataset)
    processor.user_tokens = dataset.user_tokens
    return dataset


def make_gpu_model(settings, dataset, device, compiled):
    """Make the network that a config asks for, where it is trained."""
    start = argparse.Namespace(fields={})
    cfg = TRAIN.model_config(settings, start, dataset.processor, dataset)
    with torch.device(device):
        torch.manual_seed(0)
        net = model.VLA(cfg)
    net = net.to(device).train()
    if compiled:
        parallel.compile_blocks(net)
    return net


def bench_gpu_training(name, device, folder, end):
    """Measure the training of one config in each of GPU_WAYS, as far as there is time.

    Args:
        name: Of the config.
        device: 'cpu' or 'cuda:0'.
        folder: For made-up episodes.
        end: By time.perf_counter().
    """
    tiny = device == 'cpu'
    section = f'gpu_{name}'
    settings = settings_for_gpu(name, tiny)
    dataset = make_gpu_data(settings, f'{folder}/episodes')
    dataset.keep_frames(device)
    autocast = layers.autocast_for(device, settings['dtype'])
    fast = autocast.fast_dtype
    peak = watch.peak_flops(device, fast)
    took_s = 0.0  # the last one
    ways = list(GPU_WAYS.items())
    if name == 'large':  # This one keeps a GPU busy: compiling is asked of it first.
        ways.reverse()
    for how, (compiled, graphed) in ways:
        began = time.perf_counter()
        if took_s and began + took_s > end:
            print(f'{section}: {how} is left out, {end - began:.0f} s are left', flush=True)
            continue
        if graphed and (device == 'cpu' or name == 'large'):  # large is not short of launches
            continue
        if compiled and not parallel.can_compile(device):
            print(f'{section}: {how} takes a GPU and a C compiler', flush=True)
            continue
        net = make_gpu_model(settings, dataset, device, compiled)
        optimizers = optim.configure_optimizers(
            net, settings['learning_rate'], settings['muon_learning_rate']
        )
        average_weights = optim.EMA(net, settings['ema'])
        found = measure.training(
            net,
            dataset,
            settings['batch_size'],
            device,
            autocast,
            optimizers,
            average_weights,
            min(2.0, seconds),
            processes=data.count_forks(1),
            graphed=graphed,
            accumulate=settings['accumulate'],
        )
        tokens = dataset.batch(0, 2)['input_ids'].shape[1]
        flops = model.flops_per_sample(net.cfg, tokens, settings['noise_samples'])
        found['mfu'] = found['samples_per_s'] * flops / peak
        note = f'{settings["batch_size"]} samples a step, {net.n_parameters / 1e6:.1f} M, {fast}'
        if settings['accumulate'] > 1:
            note += f', accumulated {settings["accumulate"]} times'
        show(section, f'training, {how}', found['samples_per_s'], 'samples/s', note)
        show(section, f'MFU, {how}', 100 * found['mfu'], '%')
        show(section, f'peak memory, {how}', found['memory_gb'], 'GB')
        show(section, f'first step, {how}', found['first_step_s'], 's')
        show(section, f'compiling, {how}', found['compile_s'], 's', 'first step - median step')
        for part, spent_ms in found['parts_ms'].items():
            share = spent_ms / sum(found['parts_ms'].values())
            show(section, f'  {part}, {how}', spent_ms, 'ms', f'{share:.0%} of a step')
        as_json(section, how=how, batch_size=settings['batch_size'], **found)
        del net, optimizers, average_weights
        if device != 'cpu':
            torch.cuda.empty_cache()
        took_s = time.perf_counter() - began


def eo1_config(tiny):
    """Sizes of EO-1-3B, which are those of Qwen2.5-VL-3B with two cameras of 224 px."""
    sizes = dict(
        vocab_size=151_936,
        hidden_size=2048,
        n_layers=36,
        n_heads=16,
        n_kv_heads=2,
        head_dim=128,
        intermediate_size=11_008,
        mrope_section=(16, 24, 24),
        image_size=224,
    )
    if tiny:
        sizes |= dict(vocab_size=64, hidden_size=64, n_layers=2, n_heads=4, n_kv_heads=2)
        sizes |= dict(head_dim=16, mrope_section=(2, 3, 3), intermediate_size=96, image_size=56)
        sizes |= dict(vision_width=32, vision_layers=2, vision_heads=2, vision_intermediate=48)
        sizes |= dict(vision_full_blocks=(1,))
    return model.VLAConfig(
        **sizes,
        state_dim=32,
        action_dim=32,
        horizon=16,
        image_pad_id=1,
        state_pad_id=2,
        action_start_id=3,
        mlp='swiglu',
        rope_theta=1e6,
        tie_embeddings=True,
        vision='qwen',
        n_cameras=2,
        state_frequencies=0,
        prefix_attention='causal',
        chunk_attention='causal',
        predict='velocity',
        head_layers=2,
        row_embedding=False,
    )


def make_eo1(device, tiny):
    """EO-1-3B with random bfloat16 weights and a float32 head, and one prompt of 169 tokens."""
    cfg = eo1_config(tiny)
    dtype = torch.float32 if tiny else torch.bfloat16
    torch.set_default_dtype(dtype)
    with torch.device(device):
        torch.manual_seed(0)
        net = model.VLA(cfg)
    torch.set_default_dtype(torch.float32)
    net = net.to(device).eval()
    net.head.float()
    pictures = cfg.n_cameras * net.vision.tokens_per_picture(cfg)
    words = 40
    ids = [cfg.image_pad_id] * pictures + [cfg.state_pad_id] + [5] * words
    length = torch.tensor([len(ids)], device=device)
    size = (1, cfg.n_cameras, cfg.image_size, cfg.image_size, 3)
    batch = {
        'images': torch.randint(0, 256, size, dtype=torch.uint8, device=device),
        'state': torch.randn(1, cfg.state_dim, device=device),
        'input_ids': torch.tensor([ids], device=device),
        'user_len': length,
        'total_len': length,
    }
    net.check_batch(batch)
    return net, batch


def bench_gpu_act(device, folder, end):
    """Measure chunks of demo, base and EO-1-3B beside what reading their weights takes.

    Args:
        device: 'cpu' or 'cuda:0'.
        folder: For made-up episodes.
        end: By time.perf_counter(): compiling is not begun later.
    """
    tiny = device == 'cpu'
    bytes_per_s = measure.copy_bytes_per_s(device, 1 << (20 if tiny else 30))
    show('gpu_act', 'copy within memory, read + write', bytes_per_s / 1e12, 'TB/s')
    autocast = layers.autocast_for(device)
    wide = autocast.fast_dtype.itemsize
    for name in ('demo', 'base', 'EO-1-3B'):
        if name == 'EO-1-3B':
            net, batch = make_eo1(device, tiny)
        else:
            settings = settings_for_gpu(name, tiny)
            dataset = make_gpu_data(settings, f'{folder}/{name}')
            net = make_gpu_model(settings, dataset, device, compiled=False).eval()
            encoded = dataset.processor.encode([dataset.row(0)])
            batch = {key: value.to(device) for key, value in encoded.items()}
        for how, (compiled, graphed) in GPU_CHUNKS.items():
            if (graphed or compiled) and device == 'cpu':
                continue
            if compiled and not (parallel.can_compile(device) and time.perf_counter() < end):
                print(f'gpu_act: {name}, {how}: no C compiler, or no time left', flush=True)
                continue
            if compiled:
                parallel.compile_blocks(net)
            for steps in DENOISING_STEPS:
                spent = (device, autocast, min(0.5, seconds))
                chunk_ms = measure.chunk_ms(net, batch, steps, *spent, graphed)
                floor_ms = measure.chunk_floor_ms(net, steps, bytes_per_s, wide)
                note = f'{net.n_parameters / 1e6:.0f} M, weights alone {floor_ms:.2f} ms'
                show('gpu_act', f'{name}, {steps} step(s), {how}', chunk_ms, 'ms', note)
                numbers = dict(chunk_ms=chunk_ms, floor_ms=floor_ms)
                as_json('gpu_act', network=name, how=how, steps=steps, **numbers)
        del net


def bench_gpu_collect(device):
    """Measure how control steps with pictures grow with the number of workers, and what draws.

    All workers are set up before the first one steps, so that their rates are of the same seconds.
    """
    parameters = inspect.signature(World).parameters
    world_settings = {'cameras': parameters['cameras'].default}
    world_settings |= settings_of(collect_config, parameters)
    n_cores = cores()
    counts = [1] if device == 'cpu' else sorted({1, max(1, n_cores // 2), n_cores})
    drawn_by = {'GPU': counts}
    if device != 'cpu' and gl.MESA.exists():
        drawn_by['cores'] = [n_cores]
    for name, counts_of_it in drawn_by.items():
        for n in counts_of_it:
            rate = gl.steps_per_second(gl.RENDERERS[name], world_settings, n)
            note = f'{rate / n:.0f} per worker, {gl_backend()} draws on {name}'
            show('gpu_collect', f'control steps with pictures, {n} workers', rate, 'steps/s', note)
            as_json('gpu_collect', workers=n, steps_per_s=rate, drawn_by=name)


def run_gpu_tests():
    """Run the tests that need a GPU; the exit code is pytest's."""
    command = [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', str(CODE / 'tests/test_gpu.py')]
    return subprocess.run(command, cwd=CODE).returncode


def run_gpu_section(name, device, end):
    """Run one section of --gpu in this process, until about `end`; return an exit code."""
    if name == 'gpu_tests':
        return run_gpu_tests()
    if name == 'gpu_collect':
        bench_gpu_collect(device)
        return 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if name == 'gpu_act':
            bench_gpu_act(device, folder, end - 15)
        else:
            bench_gpu_training(name.removeprefix('gpu_'), device, folder, end)
    return 0


# -----------------------------------------------------------------------------
# Forces of the clutch


def print_forces():
    """Print the table of forces, row by row; return the number of rows that miss their mark."""
    title = 'clutch set to press 1, pull 2, shear 10 N per stud'
    print(f'{title:52} {"step":>4} {"measured":>10} {"expected":>10}')
    n_missed = 0
    for row in rig.force_table():
        measured = number(row['measured'])
        expected = number(row['expected'])
        verdict = '' if row['ok'] else 'MISSED'
        print(
            f'{row["test"]:52} {1e3 * row["dt"]:.0f} ms {measured:>10} {expected:>10} '
            f'{row["unit"]:8}{verdict}',
            flush=True,
        )
        n_missed += not row['ok']
    return n_missed


def number(value):
    """Write three digits of a number; leave text as it is."""
    return value if isinstance(value, str) else f'{value:.3g}'


# -----------------------------------------------------------------------------
# Soak


def missing_ranges(seeds, done, longest=SOAK_RANGE):
    """Cut the seeds that are not done into ranges [first, end], half open, of limited length."""
    ranges = []
    for seed in seeds:
        if seed in done:
            continue
        if ranges and ranges[-1][1] == seed and seed - ranges[-1][0] < longest:
            ranges[-1][1] = seed + 1
        else:
            ranges.append([seed, seed + 1])
    return ranges


def soak_task(task, seeds, workers, out):
    """Run the seeds of one task that are not done; return the results of all of them."""
    folder = f'{out}/{task}'
    log = Path(folder) / 'rollouts.jsonl'

    def read_done():
        """Return the results that are there, by seed."""
        return {seed: row for (name, seed), row in ledger.read_log(log).items() if name == task}

    done = read_done()
    for first, end in missing_ranges(seeds, done):
        print(f'{task}: {sum(s in done for s in seeds)} of {len(seeds)} done', flush=True)
        command = [
            sys.executable,
            str(CODE / 'sim_rollout.py'),
            '--policy=random',
            f'--task={task}',
            '--cameras=',
            f'--seeds={first}:{end}',
            f'--workers={workers}',
            f'--out={folder}',
        ]
        ended = subprocess.run(command, stdout=subprocess.DEVNULL)  # its progress goes to stderr
        if ended.returncode:
            raise SystemExit(f'{" ".join(command)} failed, for the reason above')
        done = read_done()
    return [done[seed] for seed in seeds]


def run_soak(episodes, workers, out):
    """Act at random until the time limit, by the one stepping loop; return 1 if it diverged."""
    # Quick ones come first.
    names = sorted(tasks.TASKS, key=lambda name: tasks.TASKS[name].time_limit_s)
    faults = []
    for i, task in enumerate(names):
        n_episodes = len(range(i, episodes, len(names)))  # they are dealt out like cards
        rows = soak_task(task, range(SOAK_SEED0, SOAK_SEED0 + n_episodes), workers, out)
        faults += [(task, row) for row in rows if row['fault']]
        depth_mm, depth_seed = worst(rows, 'penetration_mm')
        energy_j, energy_seed = worst(rows, 'energy_j')
        print(
            f'{task}: {len(rows)} episodes, deepest contact {depth_mm:.1f} mm (seed {depth_seed}), '
            f'most energy {energy_j:.1f} J (seed {energy_seed})',
            flush=True,
        )
    for task, row in faults:
        print(f'{task} seed {row["seed"]} after {row["steps"]} steps: {row["fault"]}')
    print(f'{len(faults)} of {episodes} episodes diverged')
    return int(bool(faults))


def worst(rows, metric):
    """Return the largest value of a metric and its seed; (0, None) where there are no rows."""
    return max(((row['metrics'][metric], row['seed']) for row in rows), default=(0.0, None))


# -----------------------------------------------------------------------------
# The machine


def processor_name():
    """Name the CPU as Linux does, or as Python does elsewhere."""
    path = Path('/proc/cpuinfo')
    if path.exists():
        for line in path.read_text('utf-8').splitlines():
            if line.startswith('model name'):
                return line.split(':')[1].strip()
    return platform.processor()


if __name__ == '__main__':
    # -----------------------------------------------------------------------------
    # forces or soak, and nothing else
    if clutch:
        raise SystemExit(print_forces())
    if soak:
        raise SystemExit(run_soak(episodes, workers, out))
    # -----------------------------------------------------------------------------
    # what is measured, and on what
    if device == 'auto':
        device = 'cuda:0' if torch.cuda.is_available() else 'cpu'
    if only in GPU_SECTIONS:
        end = time.perf_counter() + (limit_s or GPU_SECTIONS[only])
        raise SystemExit(run_gpu_section(only, device, end))
    sections = only.split(',') if only else SECTIONS
    if gpu:
        sections = only.split(',') if only else tuple(GPU_SECTIONS)
    unknown = [name for name in sections if name not in (GPU_SECTIONS if gpu else SECTIONS)]
    if unknown:
        there = ', '.join((*SECTIONS, *GPU_SECTIONS))
        raise SystemExit(f'only={only}: no section {unknown[0]}; there are {there}')
    n_cores = os.cpu_count() or 1
    load, _, _ = os.getloadavg()
    gpu_name = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    print(
        f'{processor_name()}, {n_cores} cores{gpu_name}; mujoco {mujoco.__version__}, '
        f'torch {torch.__version__}, rev {git_rev()}; load {load:.1f} before the start'
    )
    print(f'python {" ".join(sys.argv)}\n')
    if gpu:
        raise SystemExit(run_gpu(sections, device))
    processes = processes or torch.cuda.device_count() or min(2, n_cores)
    if 'train' not in sections:  # any checkpoint will do
        train_steps = 1
        processes = 1
    # -----------------------------------------------------------------------------
    # section by section
    try:
        ckpt = hub.fetch('ckpt', ckpt, 'model')
    except ValueError as refusal:
        raise SystemExit(str(refusal)) from None
    with tempfile.TemporaryDirectory() as temporary:
        trained = ''
        for section in sections:
            needs_one = section == 'train' or (section in ('loader', 'act') and not ckpt)
            if needs_one and not trained:
                trained = make_checkpoint(temporary, train_steps, processes)
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
                bench_act(ckpt or trained, onnx)
            elif section == 'wire':
                bench_wire()
