"""How fast is it, and how far from what the hardware gives? Simulation, pictures, loader, training, acting.

python bench.py                                       # everything, 2 CPU cores: about 2 minutes
python bench.py --only=world,render                   # some sections of: world render loader train act
python bench.py --only=train --processes=2            # as config/demo.py is trained on 2 cores
python bench.py --only=act --ckpt=out/demo            # latency of a trained checkpoint, on a GPU if there is one
What is compared is measured in turns in the same run, so that other load on the machine falls on both.
"""
import os
os.environ['OMP_NUM_THREADS'] = os.environ['MKL_NUM_THREADS'] = '1'  # one thread per process
import json, multiprocessing, platform, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
import torch
from world import World, gl_backend  # before mujoco: world chooses the GL backend
import mujoco
from expert import Expert
import data
import model
# -----------------------------------------------------------------------------
only = ''                          # sections, comma separated; '': all
seconds = 3.0                      # per measurement
task = 'place'
brick_scale = 2.0
image_size = 96                    # px
episodes = 'episodes/demo'         # for loader and train; where it is missing, a few are recorded for the occasion
train_config = 'config/demo.py'    # what train measures, and what act builds when there is no ckpt
train_steps = 40
processes = 1                      # of training; 2 = torchrun --nproc_per_node=2
ckpt = ''                          # for act; '': the untrained model of train_config (the same cost)
exec(open('configurator.py').read())  # overrides from a config file or the command line
# -----------------------------------------------------------------------------
SECTIONS = ('world', 'render', 'loader', 'train', 'act')
TEXT_TOKENS = 8  # length of a decoded subtask; fixed, because an untrained model never stops


def show(section, what, value, unit, note=''):
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    print(f'{section:7} {what:46} {value:10.{digits}f} {unit:10} {note}', flush=True)


def alternate(seconds, **actions):
    """Run the actions in turns for so long -> {name: median seconds of one call}."""
    times, end = {name: [] for name in actions}, time.perf_counter() + seconds
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
        raise SystemExit(f'{" ".join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}')


def steps_per_second(world, seconds):
    """The expert drives whole episodes; resets are not counted."""
    expert, n, spent, seed = Expert(), 0, 0., 0
    while spent < seconds:
        world.reset(seed)
        seed, stop = seed + 1, False
        while not stop:
            action, _ = expert.act(world)
            began = time.perf_counter()
            _, _, terminated, truncated, _ = world.step(action)
            spent += time.perf_counter() - began
            n, stop = n + 1, terminated or truncated
    return n / spent


def physics_share(world, seconds):
    """Time of bare mj_step / time of physics with clutch, from the same states along an expert's episodes."""
    expert, spent, seed = Expert(), np.zeros(2), 0
    n = round(1 / world.control_hz / world.model.opt.timestep)  # physics steps in one control step
    bare, ours = (lambda: mujoco.mj_step(world.model, world.data, nstep=n)), (lambda: world._physics(n))
    while spent.sum() < seconds:
        world.reset(seed)
        seed, stop = seed + 1, False
        while not stop:
            state = world.state()
            for i in (0, 1) if world.steps % 2 else (1, 0):  # neither profits from always coming second
                began = time.perf_counter()
                (bare, ours)[i]()
                spent[i] += time.perf_counter() - began
                world.set_state(state)
            _, _, terminated, truncated, _ = world.step(expert.act(world)[0])
            stop = terminated or truncated
    return spent[0] / spent[1]


def gemm_rate(dtype, size=1024, seconds=1.0):
    """FLOP/s of square matrix products on one thread."""
    torch.set_num_threads(1)
    a = torch.randn(size, size).to(dtype)
    return 2 * size ** 3 / alternate(seconds, gemm=lambda: a @ a)['gemm']


def bench_world():
    blind, seeing = World(task, brick_scale, cameras=()), World(task, brick_scale, image_size=image_size)
    show('world', 'control steps, no camera', steps_per_second(blind, seconds), 'steps/s', 'expert, one process')
    n = f'{len(seeing.cameras)} cameras of {image_size} px'
    show('world', f'control steps, {n}', steps_per_second(seeing, seconds), 'steps/s', 'expert, one process')
    ratio = physics_share(blind, seconds)
    show('world', 'physics with clutch / bare mj_step', ratio, '', 'speeds on the same model from the same states')
    seeing.close()


def bench_render():
    world = World(task, brick_scale, image_size=image_size)
    world.reset(0)
    bare = mujoco.Renderer(world.model, image_size, image_size)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        bare.scene.flags[flag] = False

    def bare_loop():
        for camera in world.cameras:
            bare.update_scene(world.data, camera)
            bare.render()
    took = alternate(seconds, ours=lambda: [world.render(camera) for camera in world.cameras], bare=bare_loop)
    n = len(world.cameras)
    show('render', f'World.render, {image_size} px, {gl_backend()}', n / took['ours'], 'images/s', 'one process')
    show('render', 'bare mujoco.Renderer, same model and flags', n / took['bare'], 'images/s',
         f'World.render gives {took["bare"] / took["ours"]:.2f} of it')
    bare.close()
    world.close()


def bench_loader(episodes, batch_size=128):
    processor = data.Processor(('overhead', 'left/wrist', 'right/wrist'), image_size, ('*',), ('*',), 8, 10,
                               Path('assets/tokenizer.json').read_text())
    dataset = data.Dataset(episodes, processor, draws=2, gain=0.1, brightness=6.0)
    processor.fit(dataset)
    steps = iter(range(10 ** 9))
    took = alternate(seconds, batch=lambda: dataset.batch(next(steps), batch_size))['batch']
    show('loader', f'Dataset.batch of {batch_size}, augmented', batch_size / took, 'samples/s',
         f'{len(dataset)} windows of {len(dataset.paths)} episodes, one thread')


def bench_train(episodes, out_dir):
    torchrun = [Path(sys.executable).parent / 'torchrun', '--standalone', f'--nproc_per_node={processes}']
    run(*(torchrun if processes > 1 else [sys.executable]), 'train.py', train_config, f'--episodes={episodes}',
        f'--out_dir={out_dir}', f'--max_steps={train_steps}', '--log_interval=10', '--val_fraction=0')
    lines = [json.loads(line) for line in (Path(out_dir) / 'log.jsonl').read_text().splitlines()]
    rate, flops, wait = (np.median([x[k] for x in lines[1:]]) for k in ('samples_per_s', 'gflops', 'data_wait'))
    show('train', f'train.py {train_config}', rate, 'samples/s', f'{processes} process(es), waits {wait:.0%} for data')
    show('train', 'arithmetic done', flops, 'GFLOP/s')
    if torch.cuda.is_available():
        return  # a GPU's peak stands in its data sheet
    for dtype in (torch.float32, torch.bfloat16):
        with multiprocessing.get_context('spawn').Pool(processes) as pool:  # as many at a time as train.py runs
            gemm = sum(pool.map(gemm_rate, [dtype] * processes)) / 1e9
        show('train', f'matrix product, 1024 x 1024, {str(dtype)[6:]}', gemm, 'GFLOP/s',
             f'{processes} process(es); train.py reaches {flops / gemm:.0%} of it')


def bench_act(ckpt):
    torch.set_num_threads(1)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    net, meta = model.VLA.load(ckpt)
    net, processor = net.to(device).eval(), data.Processor.from_dict(meta['processor'])
    world = World(task, brick_scale, processor.cameras, processor.image_size, processor.control_hz)
    obs, _ = world.reset(0)

    def act(steps, text):
        batch = {k: v.to(device) for k, v in processor.encode([obs]).items()}
        with torch.inference_mode():
            chunk = net.plan_and_act(batch, steps, TEXT_TOKENS)[0] if text else net.act(batch, steps)
        return processor.decode_actions(chunk.float().cpu().numpy(), obs['tool_command'][None])
    took = alternate(seconds, **{f'{steps} step(s){text}': lambda steps=steps, text=text: act(steps, text)
                                 for steps in (1, 5) for text in ('', f', after {TEXT_TOKENS} decoded words')})
    for name, value in took.items():
        note = f'{net.n_parameters / 1e6:.2f} M parameters, {device}, one thread'
        show('act', f'chunk, {name}', value * 1e3, 'ms', note)
    world.close()


if __name__ == '__main__':
    chosen = only.split(',') if only else SECTIONS
    if unknown := [name for name in chosen if name not in SECTIONS]:
        raise SystemExit(f'only={only}: no section {unknown[0]}; there are {", ".join(SECTIONS)}')
    cpu = [line.split(':')[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')] \
        if Path('/proc/cpuinfo').exists() else [platform.processor()]
    gpu = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    git = subprocess.run(['git', 'describe', '--always', '--dirty=+'], capture_output=True, text=True)
    print(f'{cpu[0]}, {os.cpu_count()} cores{gpu}; mujoco {mujoco.__version__}, torch {torch.__version__}, '
          f'rev {git.stdout.strip()}; load {os.getloadavg()[0]:.1f} before the start')
    print(f'python {" ".join(sys.argv)}\n')
    with tempfile.TemporaryDirectory() as temporary:
        if {'loader', 'train', 'act'} & set(chosen) and not Path(episodes).exists():
            episodes = f'{temporary}/episodes'
            run(sys.executable, 'sim_rollout.py', f'--task={task}', f'--brick_scale={brick_scale}',
                '--episodes=8', f'--record={episodes}')
        for section in chosen:
            if section == 'world':
                bench_world()
            elif section == 'render':
                bench_render()
            elif section == 'loader':
                bench_loader(episodes)
            elif section == 'train':
                bench_train(episodes, f'{temporary}/run')
            elif section == 'act':
                if not ckpt:
                    run(sys.executable, 'train.py', train_config, f'--episodes={episodes}',
                        f'--out_dir={temporary}/act', '--max_steps=1', '--val_fraction=0')
                bench_act(ckpt or f'{temporary}/act')
