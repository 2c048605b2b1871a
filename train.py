r"""Train the VLA by behaviour cloning on a folder of episodes; killed, the same command goes on.

python train.py config/debug.py                                       # any machine, no simulator
python train.py config/demo.py config/demo_start.py                   # first lesson: 1 CPU or 1 GPU
torchrun --standalone --nproc_per_node=2 train.py config/demo.py      # second, 2 CPU cores
torchrun --standalone --nproc_per_node=8 train.py config/demo.py      # 8 GPUs
torchrun --standalone --nproc_per_node=8 train.py config/large.py --dry_run=True    # what it needs
# 2 nodes, on each of them; HEAD is the name of the first
torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=$HEAD:29500 \
    train.py config/demo.py
"""

import os

os.environ['MPLBACKEND'] = 'Agg'  # pictures go to files, whatever a notebook has set
import functools
import json
import math
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import data
import hub
import model
from episode import STATE_NAMES, git_rev, tables_of, write_synthetic_episodes
from model import VLAConfig
from vla import (
    checkpoint,
    frames,
    graphs,
    layers,
    measure,
    optim,
    parallel,
    pretrained,
    watch,
)
from vla.processor import FAR, Processor
from vla.tokenizer import read_text as read_text_of_tokenizer
from vla.vision import STEMS

HERE = Path(__file__).parent

# -----------------------------------------------------------------------------
# where and what
out_dir = 'out/run'  # checkpoint, log.jsonl, loss.png
episodes = 'episodes/demo'  # folder of episodes, or several: a,b; sim_rollout.py records them;
# like init_from also user/name[@revision] of the Hugging Face Hub
weights = ()  # 0..: shares of the samples that these folders give; (): as many as they have
task_shares = ('*=1',)  # shares of the samples by task: ('*=1', 'build=2'); (): as they have rows
synthetic = 0  # 0..100_000: episodes to make up where that folder is missing; 0: it has to exist
tokenizer = 'assets/tokenizer.json'  # looked for in this folder, then beside train.py
init_from = ''  # starting point: a checkpoint folder, with its normaliser and sizes; or a folder
# of Qwen2.5-VL or EO-1, with its tokenizer, prompt and sizes
resume = 'auto'  # 'auto' | 'never': auto: go on when out_dir holds a run; never: start over
seed = 1337  # 0..4_294_967_295

# data
cameras = ('overhead', 'left/wrist', 'right/wrist')
image_size = 96  # 16..4096: pixels, square
control_hz = 10  # 1..1000: rows per second of the episodes
horizon = 8  # 1..1000: H, actions per chunk; 8 rows at 10 Hz = 0.8 s
state_slots = ('*',)  # names or patterns: python data.py stats FOLDER lists them
action_space = 'tool'  # 'tool' | 'joint': the array that is learnt; tool: poses
action_slots = ('*',)  # Columns of that array; the command in force is held in the others
rows_after_success = 3  # 0..: rows after the goal is reached for good that still start a window
val_fraction = 0.05  # 0..<1: of the episodes, chosen by hash of task and seed
noise_samples = 4  # 1..1000: K, (noise, time) pairs per chunk that share one reading of the images
pure_noise = 0.5  # 0..1: share of them at t = 1, the only time that acting in one step needs; the
# others have times from Beta(1.5, 1), as in pi0 and EO-1
read_text = 0.5  # 0..1: probability that a noise sample sees the subtask text
gain = 0.1  # 0..1: augmentation: spread of the colour gain, per channel
brightness = 6.0  # 0..255: spread of the brightness offset, out of 255
crop = 0.0  # 0..<1: up to this share of a picture's side is cut off
reask_share = 0.3  # 0..1: share of samples that ask for another goal of the scene: where is it?
prefix_rows = 0  # 0..1000: up to so many rows are given clean, as when they are being executed;
# without grounding: with it, foresight (delay) is better by far (docs/results.md, Late actions)
question_share = 0.0  # 0..1: share of samples that are questions about the scene, and answers
refuse_share = 0.0  # 0..1: share of samples that ask for what is not there: hands still, ask back
wording_noise = 1.0  # 0..1: share of drawn instructions that may lose words or have unknown ones
delay = 0  # 0..100: steps that chunks come late, up to so many: the hands are foreseen
wordings = 0  # 0..: of each goal that samples take theirs from; 0: drawn anew for each, 0.1 ms
log_scale_m = 0.004  # 0..1: m: smaller moves count by their size, larger by its logarithm

# model: these are fields of model.VLAConfig, explained there and with its defaults
hidden_size = VLAConfig.hidden_size  # 8..65_536
n_layers = VLAConfig.n_layers  # 1..1000
n_heads = VLAConfig.n_heads  # 1..1000
n_kv_heads = VLAConfig.n_kv_heads  # 1..1000
head_dim = VLAConfig.head_dim  # 2..1024
intermediate_size = VLAConfig.intermediate_size  # 1..1_000_000
mrope_section = VLAConfig.mrope_section  # 0..512
mlp = VLAConfig.mlp  # 'relu2' | 'gelu' | 'swiglu'
vision = VLAConfig.vision  # pictures to tokens: a stem by its name in STEMS of vla/vision.py
tokens_per_camera = VLAConfig.tokens_per_camera  # 1..4096
predict = VLAConfig.predict  # 'action' | 'velocity': what the head gives; action: a clean chunk
row_decay = VLAConfig.row_decay  # 0..10: weight of a chunk's row against that of the row before
text_weight = VLAConfig.text_weight  # 0..1000: of the text loss
recompute = VLAConfig.recompute  # activation checkpointing: less memory, a third more work
hide_pictures = VLAConfig.hide_pictures  # With grounding: the decoder reads poses of bricks only
sight_only = VLAConfig.sight_only  # With grounding: learn to see, nothing else; much faster
grounding = True  # Learn apart what words name and where pictures show it (grounding.py)

# optimizer
batch_size = 128  # 1..1_000_000: chunks per step, of all processes and accumulation steps together
accumulate = 1  # 1..1_000_000: backward passes per step
max_steps = 2_600  # 1..
learning_rate = 2e-3  # 0..: AdamW, peak
muon_learning_rate = 0.04  # 0..10: Muon on matrices of the decoder, peak; 0: AdamW for everything
rates = ()  # Parts of the model have their own: ('vision.*=0.1', 'decoder.*=0'); 0 freezes
weight_decay = 0.01  # 0..10
beta2 = 0.95  # 0..<1: of AdamW
warmup_steps = 100  # 0..
final_lr = 0.02  # 0..1: the cosine ends at this fraction of the peak
ema = 0.995  # 0..<1: decay of the averaged weights, which are the ones that act; 0: none

# running
device = 'auto'  # 'auto' | 'cpu' | 'cuda'
dtype = 'auto'  # 'auto' | 'float32' | 'bfloat16': auto: bfloat16 (autocast) where it is fast
compile_model = 'auto'  # 'auto' | 'on' | 'off': torch.compile of the blocks; auto: on a GPU
cuda_graph = 'auto'  # 'auto' | 'on' | 'off': forward and backward are launched as one; auto: on a
# GPU, where one process does it and nothing is accumulated
frames_on_device = 'auto'  # 'auto' | 'on' | 'off': pictures live on the GPU; auto: if they fit
length_groups = 0  # 0..1000: parts of like length that a batch is cut into; 0: up to 4 on CPUs
loader_threads = 0  # 0..256: threads that make batches; 0: one, or one for each process that does
loader_processes = 0  # 0..256: processes that make them instead, forked; 0: up to 8 with a GPU and
# without loader_threads, none on CPUs
fsdp = False  # several processes hold one model between them, not a copy each
offload = False  # Parameters and optimizer in main memory, with fsdp; slow, if nothing else fits
log_interval = 20  # 1..: steps
eval_interval = 200  # 1..: steps
eval_batches = 2  # 1..100_000: batches of held-out windows per evaluation
checkpoint_interval = 200  # 1..: steps
checkpoint_minutes = 10.0  # 0..1e6: a checkpoint is due after so long, too; 0: by steps alone
keep_checkpoints = 0  # 0..10_000: so many of these stay as out_dir/step_<n>; best/ is the best one
rollout_interval = 0  # 0..: steps between scores in closed loop (one process only); 0: none
rollout_episodes = 20  # 1..10_000: of each score, held-out seeds
replay_batch = ''  # a bad_batch.safetensors: what out_dir's weights make of it, nothing else
max_minutes = 0.0  # 0..1e6: stop and save after so long; 0: no limit
timeout_minutes = 10.0  # >0..1e6: a process that the others wait for so long ends the run: it hangs
requeue_signal = 'SIGUSR1'  # save, leave, ask slurm/train.sh to queue the job; SIGTERM: no asking
wandb_project = ''  # log to W&B as well; WANDB_MODE=offline is honoured
tracker = 'wandb'  # 'wandb' | 'trackio' | 'none': where that project is; trackio: no account
wandb_artifacts = False  # Leave the newest weights there when the run ends
dry_run = False  # print sizes, memory and how a batch is shared out, draw the first batch, stop
DEFAULTS = dict(globals())  # Runs had these before a setting was there.
config: dict  # all settings by name, which the next line fills in
exec((HERE / 'configurator.py').read_text())  # overrides from a config file or the command line
# -----------------------------------------------------------------------------

# A resumed run may change these, because no weight depends on them but by the order of sums.
MAY_CHANGE = """
    out_dir resume device threads compile_model cuda_graph frames_on_device length_groups
    loader_threads loader_processes fsdp offload recompute accumulate log_interval eval_interval
    eval_batches checkpoint_interval checkpoint_minutes keep_checkpoints rollout_interval
    rollout_episodes replay_batch max_minutes timeout_minutes requeue_signal wandb_project tracker
    wandb_artifacts dry_run
""".split()
# Settings of the processor; of all reading of episodes; and of the samples that training draws.
PROCESSING = (
    'cameras image_size control_hz horizon state_slots action_space action_slots log_scale_m '
    'hide_pictures'
).split()
READING = 'val_fraction rows_after_success noise_samples read_text task_shares'.split()
SAMPLING = (
    'gain brightness crop weights pure_noise reask_share question_share prefix_rows refuse_share '
    'wording_noise wordings delay'
).split()
# Rates of a lesson in seeing: all else keeps its weights.
SIGHT_RATES = ('*=0', 'vision.*=1', 'image*=1', 'scene_head.*=1')
BETA1 = 0.9  # AdamW's, for the mean.
GRAD_CLIP = 1.0  # largest norm of a step's gradient
LOST = 10  # Steps in a row without a finite gradient that end a run.
LOOK_EVERY = 10  # Steps between looks at the clock: is a checkpoint due by minutes?


def or_exit(action, *args, mistakes=(ValueError, OSError), **kwargs):
    """Call something; a mistake of the user's ends the script with the one line that says it."""
    try:
        return action(*args, **kwargs)
    except mistakes as mistake:
        parallel.exit_with(str(mistake), int(os.environ.get('RANK', 0)))


def pick(config, names):
    """Return some of the settings."""
    return {name: config[name] for name in names}


def check_settings(config, world_size):
    """Raise ValueError where settings do not go together."""
    if not config['cameras']:
        raise ValueError('cameras is empty: name those that the policy looks through')
    parts = world_size * config['accumulate']
    if config['batch_size'] % parts:
        raise ValueError(
            f'batch_size {config["batch_size"]} does not divide by '
            f'{world_size} processes x accumulate {config["accumulate"]}'
        )
    if config['prefix_rows'] > config['horizon']:
        raise ValueError(
            f'prefix_rows {config["prefix_rows"]}: a chunk has horizon {config["horizon"]} rows'
        )
    if config['delay'] and not config['grounding']:
        raise ValueError(
            f'delay {config["delay"]}: what will be seen is foreseen from where bricks are: '
            '--grounding=True, or --prefix_rows, which needs no such thing'
        )
    if config['sight_only'] and not config['grounding']:
        raise ValueError('sight_only=True: without --grounding=True there is nothing to see')
    if config['weights'] and not any(config['weights']):
        raise ValueError(f'weights {config["weights"]}: one folder at least has to have a share')
    if config['rollout_interval'] and world_size > 1:
        raise ValueError(
            f'rollout_interval {config["rollout_interval"]}: {world_size} processes would wait for '
            'one simulator; score in another job: '
            f'python sim_rollout.py --ckpt={config["out_dir"]}'
        )
    if config['offload'] and (config['muon_learning_rate'] or not config['fsdp']):
        raise ValueError('offload=True is for fsdp=True, and AdamW only: --muon_learning_rate=0')


def records(config, world_size, device):
    """Return whether forward and backward are recorded as one CUDA graph.

    Raises:
        ValueError: They cannot be, and are asked to be.
    """
    one_shape = config['length_groups'] <= 1
    alone = world_size * config['accumulate'] == 1 and one_shape
    can = graphs.can_record(device)
    wanted = parallel.decide('cuda_graph', config['cuda_graph'], can and alone)
    if wanted and not can:
        raise ValueError(f'cuda_graph=on needs a GPU, device is {device}: leave it out')
    if wanted and not alone:
        raise ValueError(
            'cuda_graph=on is for one process, accumulate=1 and length_groups=1; here are '
            f'{world_size} processes x accumulate {config["accumulate"]}, '
            f'length_groups {config["length_groups"]}'
        )
    return wanted


def stand_ins(config):
    """Return what a dry run takes for episodes and weights that are not there.

    Returns:
        Settings that change; fields of VLAConfig, and arguments of the processor, that a published
        folder would have decided; and what to say.
    """
    changes = {}
    fields = {}
    prompt = {}
    said = []
    missing = [name for name in config['episodes'].split(',') if not os.path.exists(name)]
    if missing and not config['synthetic']:
        port = os.environ.get('MASTER_PORT')  # ranks of one launcher have the same
        whose = f'{os.getuid()}_{port or os.getpid()}'
        changes['episodes'] = f'{tempfile.gettempdir()}/vla_lego_dry_run_{whose}'
        # These have words without a grammar.
        changes |= dict(synthetic=4, weights=(), task_shares=(), val_fraction=0.0, refuse_share=0.0)
        said.append(f'{", ".join(missing)}: not there, four made-up episodes stand in')
    folder = config['init_from']
    files = (f'{folder}/meta.json', f'{folder}/config.json')
    if folder and not any(map(os.path.exists, files)):
        changes['init_from'] = ''
        what = 'fresh weights stand in'
        if os.path.basename(folder.rstrip('/')) == 'Qwen2.5-VL-3B-Instruct':
            decided = checkpoint.GIVEN_BY_DATA | checkpoint.TRAINING | {'video_pad_id'}
            sizes = pretrained.config_from_hf(pretrained.QWEN_3B)
            fields = {name: value for name, value in sizes.items() if name not in decided}
            prompt = dict(tokens_per_camera=(config['image_size'] // 28) ** 2, pad_dims=32)
            what = 'its sizes are known'
        said.append(f'{folder}: not there, {what}')
    return changes, fields, prompt, said


def get_lr(step, max_steps, warmup_steps, final_lr):
    """Return the fraction of the peak rate: linear warm-up times a cosine from 1 to final_lr."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max_steps)))
    return min(1.0, (step + 1) / max(1, warmup_steps)) * (final_lr + (1 - final_lr) * cosine)


def next_command(out_dir, processor, sight_only=False):
    """Return what to type after a run: after a first lesson there is somebody to coach."""
    if sight_only:
        run = os.path.basename(out_dir).removesuffix('_sight')
        words = [f'config/{run}.py', f'config/{run}_start.py']  # a lesson in acting
        if not all((HERE / word).exists() for word in words):
            words = [*sys.argv[1:], '--sight_only=False', f'--init_from={out_dir}']
            words.append(f'--out_dir={out_dir}_acting')
        return shlex.join(['python', 'train.py', *words])
    if processor.state_names != STATE_NAMES:  # our own robot can be driven, no other
        return f'python sample.py --ckpt={out_dir}'
    coach = f'config/{os.path.basename(out_dir).removesuffix("_start")}_coach.py'
    if out_dir.endswith('_start') and (HERE / coach).exists():
        return f'python sim_rollout.py {coach}'
    return shlex.join(['python', 'sim_rollout.py', f'--ckpt={out_dir}'])


def model_config(config, start, processor, dataset):
    """Return the model's sizes: by the settings, the data, and the folder the weights come from."""
    settings = {k: v for k, v in config.items() if k in VLAConfig.__dataclass_fields__}
    given = dict(
        vocab_size=processor.tokenizer.get_vocab_size(),
        state_dim=processor.state_dim,
        action_dim=processor.action_dim,
        horizon=processor.horizon,
        image_size=processor.image_size,
        scene_bricks=dataset.n_bricks if config['grounding'] else 0,
        scene_places=dataset.places() if config['grounding'] else (),
        scene_frames=processor.frames,
        n_cameras=len(processor.cameras),
        tokens_per_camera=processor.tokens_per_camera,
        hide_pictures=processor.hide_pictures,
        image_pad_id=processor.token_id['<|image_pad|>'],
        state_pad_id=processor.token_id['<|state_pad|>'],
        action_start_id=processor.token_id['<|action_start|>'],
    )
    cfg = VLAConfig(**settings | given | start.fields)
    tokens = STEMS[cfg.vision].tokens_per_picture(cfg)
    if tokens != cfg.tokens_per_camera:
        raise ValueError(
            f'tokens_per_camera {cfg.tokens_per_camera}: the stem {cfg.vision!r} makes {tokens} of '
            f'a picture of image_size {cfg.image_size}'
        )
    return cfg


def score(out_dir, step, episodes):
    """Score the weights in out_dir in closed loop, by the one stepping loop.

    Returns:
        The share of successes, None where there is no score, and paths of films.
    """
    out = Path(out_dir) / 'rollout' / str(step)
    shutil.rmtree(out, ignore_errors=True)  # A run that was killed after this step has left it.
    command = [sys.executable, HERE / 'sim_rollout.py', f'--ckpt={out_dir}', '--video=2']
    command += [f'--episodes={episodes}', f'--out={out}']
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        print(f'no score at {step}, the reason is above; the run goes on', flush=True)
        return None, []
    logs = out.rglob('rollouts.jsonl')  # one per task
    rows = [json.loads(line) for log in logs for line in log.read_text('utf-8').splitlines()]
    return sum(row['success'] for row in rows) / len(rows), sorted(map(str, out.rglob('*.mp4')))


def replay(out_dir, path, autocast):
    """Return, in lines, what the weights of out_dir make of a batch that was kept."""
    net, meta = model.VLA.load(out_dir, ema=False)
    with pretrained.open_tensors(path) as kept:
        batch = {name: kept.get_tensor(name) for name in kept.keys()}
        about = kept.metadata() or {}
    if not about.keys() >= {'step', 'what'}:
        raise ValueError(f'{path} is no batch that a run has kept: it does not say of which step')
    said = f'batch of step {about["step"]}: {about["what"]}'
    return [
        f'{path}: {said}',
        f'weights of step {meta["step"]}',
        *watch.replay(net, batch, autocast),
    ]


def micro_batches(dataset, config, rank, world_size, step):
    """Return this process's share of a step's batch, in as many parts as are accumulated."""
    n = config['accumulate']
    return [
        dataset.batch(step, config['batch_size'], rank * n + i, world_size * n, config['seed'])
        for i in range(n)
    ]


def count_groups(config, world_size, shapes_stay):
    """Return into how many parts of like length this process's share of a batch is cut.

    Shapes that change would be compiled, and recorded on a GPU, anew. With fewer than 16 samples
    calls cost what padding did: 8 parts of 8 took as long as 64, 4 of 16 took 10 % less.
    """
    share = config['batch_size'] // (world_size * config['accumulate'])
    automatic = 1 if shapes_stay else max(1, min(4, share // 16))
    return config['length_groups'] or automatic


def grouped(make, groups, step):
    """Return what micro_batches makes of a step in parts of like length, see data.by_length."""
    return [part for batch in make(step) for part in data.by_length(batch, groups)]


def send(batches, device):
    """Send batches to the device, without waiting for them to arrive."""
    return [{k: v.to(device, non_blocking=True) for k, v in batch.items()} for batch in batches]


@torch.no_grad()
def evaluate(net, dataset, batches, batch_size, device, autocast):
    """Return the losses on held-out windows and the acted chunk's error.

    Rows, noise and times are the same every time. Called by all processes.
    """
    net.eval()
    rank, world_size = parallel.rank_and_size()
    mine = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
    acts = not net.cfg.sight_only
    by_task = acts and len(dataset.tasks) > 1
    sums = {}
    of_tasks = {}  # {(task, error): sum over samples}, where there are several tasks
    samples = dict.fromkeys(dataset.tasks if by_task else (), 0)
    for i in range(batches):
        batch = dataset.batch(i, batch_size, rank, world_size, seed=0)
        batch = data.augment({k: v.to(device) for k, v in batch.items()})
        rows = dataset.sample_rows(i, batch_size, seed=0)[mine]
        errors = {}
        with autocast:
            loss, parts = net(batch)
            if acts:
                chunk = net.act(batch, read_text=False)  # (B, H, A)
                chunk = chunk.float().cpu().numpy()
                errors = dataset.action_error(rows, chunk)
        for task in samples:
            of_task = dataset.rows_of(task, rows)
            counted = dataset.chunk_mask(rows[of_task]).sum()
            samples[task] += int(counted)
            for name, value in dataset.action_error(rows[of_task], chunk[of_task]).items():
                if '@' not in name:
                    key = f'{name}/{task}'
                    of_tasks[key] = of_tasks.get(key, 0) + (counted * value if counted else 0)
        for name, value in {'loss': loss, **parts, **errors}.items():
            sums[name] = sums.get(name, 0) + torch.as_tensor(value).float().cpu() / batches
    net.train()
    parallel.reshard(net)
    scores = parallel.average(sums)
    samples = parallel.average(samples)
    for key, value in parallel.average(of_tasks).items():
        rows_of_task = samples[key.partition('/')[2]]
        if rows_of_task:
            scores[key] = value / rows_of_task
    return {f'val_{k}': v for k, v in scores.items()}


if __name__ == '__main__':
    # -----------------------------------------------------------------------------
    # set up: processes, device, signals
    rank = int(os.environ.get('RANK', 0))
    local_rank = int(os.environ.get('LOCAL_RANK', 0))
    world_size = int(os.environ.get('WORLD_SIZE', 1))
    local_world_size = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    job = os.environ.get('SLURM_JOB_ID', '')
    array_job = os.environ.get('SLURM_ARRAY_JOB_ID', '')
    master = rank == 0
    sharded = fsdp and world_size > 1
    or_exit(check_settings, config, world_size)
    if sight_only:
        rates = (*SIGHT_RATES, *rates)
    stop_request = or_exit(parallel.StopRequest, requeue_signal, launched=world_size > 1)
    if world_size > local_world_size and 'GLOO_SOCKET_IFNAME' not in os.environ:
        interface = parallel.network_interface(os.environ['MASTER_ADDR'])
        os.environ.update({'GLOO_SOCKET_IFNAME': interface} if interface else {})
    device = or_exit(layers.choose_device, device, os.environ)
    device = or_exit(parallel.join, device, local_rank, world_size, timeout_minutes)
    torch.set_num_threads(1)  # two one-thread processes beat one two-thread process
    torch.manual_seed(seed)
    parallel.keep_freed_memory()
    autocast = or_exit(layers.autocast_for, device, dtype)
    compiles = or_exit(
        parallel.decide, 'compile_model', compile_model, parallel.can_compile(device)
    )
    graphs_steps = or_exit(records, config, world_size, device)
    on_gpu = device.startswith('cuda')
    groups = count_groups(config, world_size, on_gpu or compiles)

    if replay_batch:
        cpu = or_exit(layers.autocast_for, 'cpu', dtype)
        print('\n'.join(or_exit(replay, out_dir, replay_batch, cpu)))
        sys.exit(0)

    # -----------------------------------------------------------------------------
    # where to start from: nothing, this run's last checkpoint, another run, a published model
    if master and not dry_run:
        or_exit(checkpoint.check_folder, out_dir)
        locked = or_exit(checkpoint.lock, out_dir)  # It is held as long as this process lives.
    fields = {}
    prompt = {}
    if dry_run:
        changes, fields, prompt, said = stand_ins(config)
        config |= changes
        globals().update(changes)  # settings are read by their names below, too
        for line in said if master else ():
            print(line)
    settings = checkpoint.as_json(config)
    defaults = checkpoint.as_json(DEFAULTS)
    path = tokenizer if os.path.exists(tokenizer) else HERE / tokenizer
    words = or_exit(read_text_of_tokenizer, path)
    init_folder = or_exit(hub.fetch, 'init_from', init_from, 'model', quiet=not master)
    known = (settings, defaults, MAY_CHANGE, world_size, words, init_folder)
    start = or_exit(checkpoint.find_start, *known)
    start.fields |= fields
    start.prompt |= prompt
    if master and start.note:
        print(start.note)
    if start.kind == 'finished':
        if master:
            print(f'{out_dir} is finished at step {start.step}; --resume=never starts over')
            processor = or_exit(Processor.from_dict, start.processor)
            print(f'next: {next_command(out_dir, processor, sight_only)}')
        sys.exit(0)

    # -----------------------------------------------------------------------------
    # data
    if (master or dry_run and local_rank == 0) and synthetic and not os.path.isdir(episodes):
        write_synthetic_episodes(episodes + '.tmp', synthetic, cameras, image_size, control_hz)
        os.replace(episodes + '.tmp', episodes)
    parallel.wait_for_all()  # the others do not look: they would see it before or after
    sources = or_exit(hub.fetch_all, 'episodes', episodes, quiet=not master)
    if start.processor:
        whose = f'{start.folder}/meta.json' if start.folder else f'{out_dir}/state.json'
        processor = or_exit(Processor.from_dict, start.processor, whose)
    else:
        tables = or_exit(tables_of, sources)
        shape = pick(config, PROCESSING) | start.prompt
        processor = or_exit(Processor, **shape, tables=tables)
    decoders = max(1, (os.cpu_count() or 1) // local_world_size)  # threads that decode jpeg
    load = functools.partial(or_exit, data.Dataset, sources, processor, workers=decoders)
    load = functools.partial(load, multiple=8 if on_gpu else 1)
    train_data = load('train', **pick(config, READING + SAMPLING))
    val_data = load('val', **pick(config, READING)) if val_fraction else None
    odd = {}  # slots whose numbers do not suit the normaliser
    if start.kind == 'inherited':
        odd = watch.odd_slots(processor, train_data, FAR)
    elif start.kind != 'resumed':
        odd = processor.fit(train_data)
    if delay and start.kind != 'resumed':
        or_exit(processor.learn_hands, train_data)
        unseen = (val_data or train_data).files['state']
        if master:
            off_mm = 1e3 * or_exit(processor.foresight.off_m, unseen, delay)
            print(f'hands: foreseen {delay} steps ahead to {off_mm:.2f} mm per axis')
    processor.user_tokens = max(processor.user_tokens, train_data.user_tokens)
    fingerprint = train_data.fingerprint()
    or_exit(checkpoint.check_data, start, settings, fingerprint)

    # -----------------------------------------------------------------------------
    # model
    cfg = or_exit(model_config, config, start, processor, train_data)
    fast = autocast.fast_dtype
    build = functools.partial(or_exit, parallel.build, cfg, start.first_model(cfg), device, fast)
    net = build(rates, sharded, offload, compiles, allocate=not dry_run)

    # -----------------------------------------------------------------------------
    # introduce
    rev = git_rev()
    if master:
        first = train_data.batch(start.step, batch_size, 0, world_size * accumulate, seed)
        or_exit(net.check_batch, first)
        print(watch.describe_model(net, config, first, rev, device, fast, groups))
        print(watch.describe_data(processor, train_data, val_data, config, odd))
    if master and dry_run:
        os.makedirs(out_dir, exist_ok=True)
        watch.draw_batch(data.augment(first), processor, f'{out_dir}/batch.png')
        print(f'first batch: {out_dir}/batch.png')
    if dry_run:
        parallel.wait_for_all()
        if local_rank == 0 and 'episodes' in changes:
            shutil.rmtree(episodes)
        sys.exit(0)

    # -----------------------------------------------------------------------------
    # optimizers, state, log; whatever may refuse does so before the last run's state is cleared
    fit = frames.fit(train_data, device)
    keeps_frames = or_exit(parallel.decide, 'frames_on_device', frames_on_device, fit)
    optimizers = optim.configure_optimizers(
        net, learning_rate, muon_learning_rate, weight_decay, (BETA1, beta2), rates
    )
    average_weights = optim.EMA(net, ema) if ema else None
    if start.state:
        or_exit(checkpoint.load_state, out_dir, start.state, net, optimizers, average_weights)
    forward = parallel.wrap(net, local_rank, device)
    muon_ms = measure.muon_ms(optimizers, device)
    peak = watch.peak_flops(device, fast)
    known = {'fingerprint': fingerprint, 'processor': processor.to_dict()}
    facts = known | {'settings': settings, 'world_size': world_size}  # Going on takes these.
    meta = known | {'settings': settings | start.overruled, 'git_rev': rev}  # Acting takes these.
    meta['tasks'] = train_data.tasks
    meta['command'] = shlex.join(['python', 'train.py', *sys.argv[1:]])
    meta['world'] = train_data.header(0).get('world', {})  # nothing of another robot's
    run_id = None  # W&B's name for this run.
    if master:
        if not start.state:
            checkpoint.clear(out_dir)
        about = meta['settings'] | {'git_rev': rev}
        told = (wandb_project, start.wandb_id, about, job, array_job, tracker)
        log = or_exit(watch.Log, out_dir, start.step, *told)
        run_id = log.run_id
        if muon_ms:
            print(f'Muon: {muon_ms:.3g} ms a step, measured by itself')
        print(f'starting at step {start.step}' if start.step else 'starting', flush=True)

    # -----------------------------------------------------------------------------
    # loop
    step = start.step
    best = start.best
    stop = 0
    saved = False
    began = time.perf_counter()
    # Sums since the last log line; some of these steps may lie before a restart.
    meter = watch.Meter(*start.unlogged())
    unsound = None  # steps that were not taken
    saved_at = began
    make = functools.partial(micro_batches, train_data, config, rank, world_size)

    def loss_of(batch):
        """Return the loss of a batch on the device, and its parts."""
        with autocast:
            return forward(data.augment(batch, train_data.frames))

    graphed = graphs.GraphedBackward(net, loss_of) if graphs_steps else None
    if keeps_frames:
        or_exit(train_data.keep_frames, device, mistakes=OSError)
    make = functools.partial(grouped, make, groups)
    processes = loader_processes
    if on_gpu and not (loader_processes or loader_threads):
        processes = data.count_forks(local_world_size)
    forks = data.ForkedMaker(make, processes) if processes else None
    threads = loader_threads or processes or 1
    batches = data.prefetch(forks or make, range(step, max_steps), pin=on_gpu, threads=threads)
    # Files may be damaged under a run: that is said in one line. Other errors are faults of ours.
    unless_damaged = functools.partial(or_exit, mistakes=OSError)
    upcoming = send(unless_damaged(next, batches), device)
    while step < max_steps:
        fraction = get_lr(step, max_steps, warmup_steps, final_lr)
        optim.set_rates(optimizers, fraction)
        n = len(upcoming)
        tokens = sum(batch['input_ids'].shape[1] for batch in upcoming) / n
        for i, batch in enumerate(upcoming):
            if graphed:
                meter.add(graphed(batch))
                continue
            with parallel.accumulating(forward, i == n - 1):
                loss, parts = loss_of(batch)
                (loss / n).backward()
            meter.add({'loss': loss.detach(), **parts}, n)
        norm, norms = optim.clip(net, GRAD_CLIP)
        norm = parallel.whole(norm).to(device)
        sound = norm.isfinite()  # It stays on the device, and is the same on all of them.
        if unsound is None:
            unsound = watch.Unsound(optim.with_gradient(net), device)
        optim.step_if(optimizers, sound)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        if average_weights:
            average_weights.update(net)
        step += 1
        meter.end_step({'grad_norm': norm}, sound)
        unsound.note(step - 1, sound, meter.last_step, norms.to(device))
        with meter.waiting():
            # A GPU is still busy with this step.
            upcoming = send(unless_damaged(next, batches, ()), device)
        if max_minutes and time.perf_counter() - began > 60 * max_minutes:
            stop_request.set(parallel.LEAVE)
        stop = stop_request.agreed()  # all processes stop after the same step

        # What is due after this step.
        is_last = step == max_steps
        logs = is_last or step % log_interval == 0
        evaluates = val_data and (is_last or step % eval_interval == 0)
        looks = step % LOOK_EVERY == 0
        late = (
            looks
            and checkpoint_minutes
            and time.perf_counter() - saved_at > 60 * checkpoint_minutes
        )
        saves = stop or is_last or step % checkpoint_interval == 0
        saves = saves or (looks and parallel.highest(int(late)))
        plays = rollout_interval and step % rollout_interval == 0
        line = {'step': step}
        films = []
        if logs or evaluates or saves or plays:  # A GPU is asked for numbers only now.
            report = unsound.report()
            if report and master:
                bad = train_data.batch(report['step'], batch_size, 0, 1, seed)
                path = checkpoint.keep_batch(out_dir, bad, report | {'git_rev': rev})
                print(watch.unsound_text(report, path), flush=True)
            if report and report['in_a_row'] >= LOST:
                what = f'{report["in_a_row"]} steps in a row without a finite gradient'
                sys.exit(checkpoint.not_finite(out_dir, step, what))
            if report and report['ended'] and not (stop or is_last):
                saves = False  # These weights may not do: save after the next sound step.
            means = meter.own_means()
            if not parallel.all_finite(net.parameters()):
                sys.exit(checkpoint.not_finite(out_dir, step, 'weights are not finite'))
        if logs:
            flops = model.flops_per_sample(cfg, tokens, noise_samples)
            line |= parallel.average(means) | {'lr': learning_rate * fraction}
            line |= meter.speed(batch_size, flops, peak * world_size)
            line['muon_share'] = meter.share_of_steps(muon_ms)
            line['memory_gb'] = watch.memory_used_gb(device)
            line['mapped_gb'] = watch.mapped_gb(device)
            meter.clear()
            if master:
                print(watch.step_text(line, max_steps, batch_size), flush=True)
        with meter.paused():
            if evaluates:
                with optim.averaged(net, average_weights):
                    how = (eval_batches, batch_size, device, autocast)
                    scores = unless_damaged(evaluate, net, val_data, *how)
                line |= scores
                if master:
                    print(watch.scores_text(scores, step), flush=True)
                if scores['val_loss'] < best:
                    best = scores['val_loss']
                    about = meta | {'step': step, 'val_loss': best}
                    checkpoint.save_weights(f'{out_dir}/best', net, about, average_weights)
            if plays:
                checkpoint.save_weights(out_dir, net, meta | {'step': step}, average_weights)
                success, films = score(out_dir, step, rollout_episodes)
                if success is not None:
                    line['success'] = success
                    said = f'{success:.0%} of {rollout_episodes}'
                    print(f'closed loop at {step}:  {said}', flush=True)
            if master and len(line) > 1:
                log.write(line, films)
            if saves:
                saving = time.perf_counter()
                about = meta | {'step': step}
                state = facts | {'step': step, 'best': best, 'wandb_id': run_id}
                state |= {'summed': meter.steps, 'sums': parallel.of_each(meter.sums)}
                size = checkpoint.save(
                    out_dir, net, optimizers, average_weights, about, state, keep_checkpoints
                )
                saved_at = time.perf_counter()
                if master and not saved:
                    print(watch.saved_text(out_dir, size, saving), flush=True)
                saved = True
        if stop:
            break

    # -----------------------------------------------------------------------------
    # leave
    batches.close()
    if forks:
        forks.close()
    if master:
        log.close(out_dir if wandb_artifacts else '')
        hub.write_card(out_dir, 'model')
        if step < max_steps:  # slurm/train.sh looks for the first word
            prefix = 'requeue: ' if stop == parallel.REQUEUE else ''
            print(f'{prefix}stopped at step {step}, saved; the same command goes on from here')
        else:
            curves = watch.plot_losses(log.path, f'{out_dir}/loss.png')
            minutes = (time.perf_counter() - began) / 60
            print(f'{step - start.step} steps in {minutes:.1f} min; {curves}')
            print(f'share: {hub.upload_line(out_dir, "model")}')
            print(f'next: {next_command(out_dir, processor, sight_only)}')
    parallel.leave()
