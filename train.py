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

import functools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

import data
import model
from episode import git_rev, tables_of, write_synthetic_episodes
from model import VLAConfig
from vla import checkpoint, layers, optim, parallel, watch
from vla.processor import FAR, Processor

HERE = Path(__file__).parent

# -----------------------------------------------------------------------------
# where and what
out_dir = 'out/run'  # checkpoint, log.jsonl, loss.png
episodes = 'episodes/demo'  # folder of episodes, or several: a,b; sim_rollout.py records them
weights = ()  # shares of the samples that these folders give; (): as many as they have
synthetic = 0  # episodes to make up when that folder is missing; 0: the folder has to exist
tokenizer = 'assets/tokenizer.json'  # looked for in this folder, then beside train.py
init_from = ''  # starting point: a checkpoint folder, with its normaliser and sizes; or a folder
# of Qwen2.5-VL or EO-1, with its tokenizer, prompt and sizes
resume = 'auto'  # 'auto': go on when out_dir holds a run; 'never': start over
seed = 1337

# data
cameras = ('overhead', 'left/wrist', 'right/wrist')
image_size = 96  # pixels, square
control_hz = 10  # rows per second of the episodes
horizon = 8  # H, actions per chunk; 8 rows at 10 Hz = 0.8 s
state_slots = ('*',)  # names or patterns: python data.py stats FOLDER lists them
action_space = 'tool'  # the array that is learnt: 'tool' (poses) or 'joint'
action_slots = ('*',)  # of that array; the command in force is held in the others
rows_after_success = 3  # rows after the goal is reached for good that still start a window
val_fraction = 0.05  # of the episodes, chosen by hash of task and seed
noise_samples = 4  # K, (noise, time) pairs per chunk that share one reading of the images
pure_noise = 0.5  # share of them at t = 1, the only time that acting in one step needs; the
# others have times from Beta(1.5, 1), as in pi0 and EO-1
read_text = 0.5  # probability that a noise sample sees the subtask text
gain = 0.1  # augmentation: spread of the colour gain, per channel
brightness = 6.0  # spread of the brightness offset, out of 255
crop = 0.0  # up to this share of a picture's side is cut off
reask_share = 0.3  # share of samples that ask for another goal in the same scene: where is that?
prefix_rows = 0  # up to so many rows of a chunk are given clean, as when they are being executed
question_share = 0.0  # share of samples that are questions about the scene and their answers
log_scale_m = 0.004  # m: smaller moves count in the loss by their size, larger by its logarithm

# model: these are fields of model.VLAConfig, explained there and with its defaults
hidden_size = VLAConfig.hidden_size
n_layers = VLAConfig.n_layers
n_heads = VLAConfig.n_heads
n_kv_heads = VLAConfig.n_kv_heads
head_dim = VLAConfig.head_dim
intermediate_size = VLAConfig.intermediate_size
mrope_section = VLAConfig.mrope_section
mlp = VLAConfig.mlp
tokens_per_camera = VLAConfig.tokens_per_camera
predict = VLAConfig.predict  # the head gives the clean chunk ('action') or the 'velocity'
row_decay = VLAConfig.row_decay  # weight of a chunk's row against that of the row before
text_weight = VLAConfig.text_weight  # of the text loss
recompute = VLAConfig.recompute  # activation checkpointing: less memory, a third more work
grounding = True  # what words name and where pictures show it are learnt apart, see grounding.py

# optimizer
batch_size = 128  # chunks per step, over all processes and accumulation steps together
accumulate = 1  # backward passes per step
max_steps = 2_600
learning_rate = 2e-3  # AdamW, peak
muon_learning_rate = 0.04  # Muon on the matrices of the decoder, peak; 0: AdamW for everything
rates = ()  # of parts of the model: ('vision.*=0.1', 'decoder.*=0'); 0 freezes
weight_decay = 0.01
beta2 = 0.95  # of AdamW
warmup_steps = 100
final_lr = 0.02  # the cosine ends at this fraction of the peak
ema = 0.995  # decay of the averaged weights, which are the ones that act; 0: none

# running
device = 'auto'  # 'cpu', 'cuda'
dtype = 'auto'  # 'float32', 'bfloat16' (autocast); auto: bfloat16 where hardware is fast at it
compile_model = False  # torch.compile: +20 % on CPU after 77 s of compiling
fsdp = False  # several processes hold one model between them, not a copy each
offload = False  # with fsdp: parameters and optimizer in main memory; slow, for what fits no GPU
log_interval = 20  # steps
eval_interval = 200  # steps
eval_batches = 2  # batches of held-out windows per evaluation
checkpoint_interval = 200  # steps
keep_checkpoints = (
    0  # of these, so many stay as out_dir/step_<n>; the best held-out one is in best/
)
rollout_interval = 0  # steps between scores in closed loop (one process only); 0: none
rollout_episodes = 20  # of each score, held-out seeds
max_minutes = 0.0  # stop and save after so long; 0: no limit
timeout_minutes = 10.0  # a process that the others wait for so long ends the run: it hangs
requeue_signal = 'SIGUSR1'  # save, leave, ask slurm/train.sh to queue the job; SIGTERM: no asking
wandb_project = ''  # log to W&B as well; WANDB_MODE=offline is honoured
tracker = 'wandb'  # where that project is: or 'trackio', without an account; 'none'
wandb_artifacts = False  # and leave the newest weights there when the run ends
dry_run = False  # print sizes, memory and how a batch is shared out, draw the first batch, stop
DEFAULTS = dict(globals())  # what runs had before a setting was there
config: dict  # all settings by name, which the next line fills in
exec((HERE / 'configurator.py').read_text())  # overrides from a config file or the command line
# -----------------------------------------------------------------------------

# A resumed run may change these, because no weight depends on them but by the order of sums.
MAY_CHANGE = """
    out_dir resume device threads compile_model fsdp offload recompute accumulate log_interval
    eval_interval eval_batches checkpoint_interval keep_checkpoints rollout_interval
    rollout_episodes max_minutes timeout_minutes requeue_signal wandb_project wandb_artifacts
    tracker
    dry_run
""".split()
# Settings of the processor; of all reading of episodes; and of the samples that training draws.
PROCESSING = (
    'cameras image_size control_hz horizon state_slots action_space action_slots log_scale_m'
).split()
READING = 'val_fraction rows_after_success noise_samples read_text'.split()
SAMPLING = 'gain brightness crop weights pure_noise reask_share question_share prefix_rows'.split()
BETA1 = 0.9  # of AdamW
GRAD_CLIP = 1.0  # largest norm of a step's gradient


def or_exit(action, *args, **kwargs):
    """Call something; a mistake of the user's ends the script with the one line that says it."""
    try:
        return action(*args, **kwargs)
    except (ValueError, FileNotFoundError) as mistake:
        sys.exit(str(mistake))


def pick(config, names):
    """Return some of the settings."""
    return {name: config[name] for name in names}


def check_settings(config, world_size):
    """Raise ValueError where settings do not go together."""
    parts = world_size * config['accumulate']
    if config['batch_size'] % parts:
        raise ValueError(
            f'batch_size {config["batch_size"]} does not divide by '
            f'{world_size} processes x accumulate {config["accumulate"]}'
        )
    if config['rollout_interval'] and world_size > 1:
        raise ValueError(
            f'rollout_interval {config["rollout_interval"]}: {world_size} processes would wait for '
            'one simulator; score in another job: '
            f'python sim_rollout.py --ckpt={config["out_dir"]}'
        )
    if config['offload'] and (config['muon_learning_rate'] or not config['fsdp']):
        raise ValueError('offload=True is for fsdp=True, and AdamW only: --muon_learning_rate=0')


def get_lr(step, max_steps, warmup_steps, final_lr):
    """Return the fraction of the peak rate: linear warm-up times a cosine from 1 to final_lr."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max_steps)))
    return min(1.0, (step + 1) / max(1, warmup_steps)) * (final_lr + (1 - final_lr) * cosine)


def next_command(out_dir):
    """Return what to type after a run: after a first lesson there is somebody to coach."""
    coach = f'config/{os.path.basename(out_dir).removesuffix("_start")}_coach.py'
    if out_dir.endswith('_start') and (HERE / coach).exists():
        return f'python sim_rollout.py {coach}'
    return f'python sim_rollout.py --ckpt={out_dir}'


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
        scene_frames=processor.frames,
        n_cameras=len(processor.cameras),
        tokens_per_camera=processor.tokens_per_camera,
        image_pad_id=processor.token_id['<|image_pad|>'],
        state_pad_id=processor.token_id['<|state_pad|>'],
        action_start_id=processor.token_id['<|action_start|>'],
    )
    return VLAConfig(**settings | given | start.fields)


def score(out_dir, step, episodes):
    """Score the weights in out_dir in closed loop, by the one stepping loop.

    Returns:
        The share of successes, and paths of films.
    """
    out = Path(out_dir) / 'rollout' / str(step)
    shutil.rmtree(out, ignore_errors=True)  # of a run that was killed after this step
    command = [sys.executable, HERE / 'sim_rollout.py', f'--ckpt={out_dir}', '--video=2']
    command += [f'--episodes={episodes}', f'--out={out}']
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (out / 'rollouts.jsonl').read_text().splitlines()]
    return sum(row['success'] for row in rows) / len(rows), sorted(map(str, out.glob('*.mp4')))


def micro_batches(dataset, config, rank, world_size, step):
    """Return this process's share of a step's batch, in as many parts as are accumulated."""
    n = config['accumulate']
    return [
        dataset.batch(step, config['batch_size'], rank * n + i, world_size * n, config['seed'])
        for i in range(n)
    ]


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
    sums = {}
    for i in range(batches):
        batch = dataset.batch(i, batch_size, rank, world_size, seed=0)
        batch = data.augment({k: v.to(device) for k, v in batch.items()})
        with autocast:
            loss, parts = net(batch)
            chunk = net.act(batch, read_text=False)  # (B, H, A)
        rows = dataset.sample_rows(i, batch_size, seed=0)[mine]
        errors = dataset.action_error(rows, chunk.float().cpu().numpy())
        for name, value in {'loss': loss, **parts, **errors}.items():
            sums[name] = sums.get(name, 0) + torch.as_tensor(value).float().cpu() / batches
    net.train()
    parallel.reshard(net)
    return {f'val_{k}': v for k, v in parallel.average(sums).items()}


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
    stop_request = or_exit(parallel.StopRequest, requeue_signal)
    device = parallel.join(device, local_rank, world_size, timeout_minutes)
    torch.set_num_threads(1)  # two one-thread processes beat one two-thread process
    torch.manual_seed(seed)
    parallel.keep_freed_memory()
    autocast = or_exit(layers.autocast_for, device, dtype)

    # -----------------------------------------------------------------------------
    # where to start from: nothing, this run's last checkpoint, another run, a published model
    settings = checkpoint.as_json(config)
    defaults = checkpoint.as_json(DEFAULTS)
    words = Path(tokenizer) if os.path.exists(tokenizer) else HERE / tokenizer
    start = or_exit(
        checkpoint.find_start, settings, defaults, MAY_CHANGE, world_size, words.read_text()
    )
    if master and start.note:
        print(start.note)
    if start.kind == 'finished':
        if master:
            print(f'{out_dir} is finished at step {start.step}; --resume=never starts over')
            print(f'next: {next_command(out_dir)}')
        sys.exit(0)

    # -----------------------------------------------------------------------------
    # data
    if master and synthetic and not os.path.isdir(episodes):
        write_synthetic_episodes(episodes + '.tmp', synthetic, cameras, image_size, control_hz)
        os.replace(episodes + '.tmp', episodes)
    parallel.wait_for_all()  # the others do not look: they would see it before or after
    if start.processor:
        processor = or_exit(Processor.from_dict, start.processor)
    else:
        tables = or_exit(tables_of, episodes)
        shape = pick(config, PROCESSING) | start.prompt
        processor = or_exit(Processor, **shape, tables=tables)
    decoders = max(1, (os.cpu_count() or 1) // local_world_size)  # threads that decode jpeg
    load = functools.partial(or_exit, data.Dataset, episodes, processor, workers=decoders)
    train_data = load('train', **pick(config, READING + SAMPLING))
    val_data = load('val', **pick(config, READING)) if val_fraction else None
    odd = {}  # slots whose numbers do not suit the normaliser
    if start.kind == 'inherited':
        odd = watch.odd_slots(processor, train_data, FAR)
    elif start.kind != 'resumed':
        odd = processor.fit(train_data)
    fingerprint = train_data.fingerprint()
    or_exit(checkpoint.check_data, start, settings, fingerprint)

    # -----------------------------------------------------------------------------
    # model
    cfg = or_exit(model_config, config, start, processor, train_data)
    fast = autocast.fast_dtype
    build = functools.partial(or_exit, parallel.build, cfg, start.first_model(cfg), device, fast)
    net = build(rates, sharded, offload, compile_model, allocate=not dry_run)

    # -----------------------------------------------------------------------------
    # introduce
    rev = git_rev()
    if master:
        first = micro_batches(train_data, config, rank, world_size, start.step)[0]
        print(watch.describe_model(net, config, first, rev, device, fast))
        print(watch.describe_data(processor, train_data, val_data, config, odd))
    if master and dry_run:
        os.makedirs(out_dir, exist_ok=True)
        watch.draw_batch(data.augment(first), processor, f'{out_dir}/batch.png')
        print(f'first batch: {out_dir}/batch.png')
    if dry_run:
        sys.exit(0)

    # -----------------------------------------------------------------------------
    # optimizers, state, log
    optimizers = optim.configure_optimizers(
        net, learning_rate, muon_learning_rate, weight_decay, (BETA1, beta2), rates
    )
    average_weights = optim.EMA(net, ema) if ema else None
    if start.state:
        checkpoint.load_state(out_dir, start.state, net, optimizers, average_weights)
    forward = parallel.wrap(net, local_rank, device, compile_model)
    peak = watch.peak_flops(device, fast)
    known = {'fingerprint': fingerprint, 'processor': processor.to_dict()}
    facts = known | {'settings': settings, 'world_size': world_size}  # what going on takes
    meta = known | {'settings': settings | start.overruled, 'git_rev': rev}  # what acting takes
    meta['world'] = train_data.header(0).get('world', {})  # nothing of another robot's
    run_id = None  # at W&B
    if master:
        if not start.state:
            checkpoint.clear(out_dir)
        about = meta['settings'] | {'git_rev': rev}
        told = (wandb_project, start.wandb_id, about, job, array_job, tracker)
        log = watch.Log(out_dir, start.step, *told)
        run_id = log.run_id
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
    make = functools.partial(micro_batches, train_data, config, rank, world_size)
    batches = data.prefetch(make, range(step, max_steps), pin=device.startswith('cuda'))
    upcoming = send(next(batches), device)
    while step < max_steps:
        fraction = get_lr(step, max_steps, warmup_steps, final_lr)
        optim.set_rates(optimizers, fraction)
        for i, batch in enumerate(upcoming):
            with parallel.accumulating(forward, i == accumulate - 1):
                with autocast:
                    loss, parts = forward(data.augment(batch))
                (loss / accumulate).backward()
            meter.add({'loss': loss.detach(), **parts}, accumulate)
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), GRAD_CLIP)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if average_weights:
            average_weights.update(net)
        step += 1
        meter.end_step({'grad_norm': parallel.whole(norm)})
        with meter.waiting():
            upcoming = send(next(batches, ()), device)  # while a GPU is busy with this step
        if max_minutes and time.perf_counter() - began > 60 * max_minutes:
            stop_request.set(parallel.LEAVE)
        stop = stop_request.agreed()  # all processes stop after the same step

        # What is due after this step, all of it only while the numbers are sound.
        is_last = step == max_steps
        logs = is_last or step % log_interval == 0
        evaluates = val_data and (is_last or step % eval_interval == 0)
        saves = stop or is_last or step % checkpoint_interval == 0
        plays = rollout_interval and step % rollout_interval == 0
        line = {'step': step}
        films = []
        if logs or evaluates or saves or plays:
            means = meter.own_means()
            if not parallel.all_finite([means['loss'], means['grad_norm'], *net.parameters()]):
                sys.exit(checkpoint.not_finite(out_dir, step, means))
        if logs:
            flops = model.flops_per_sample(cfg, batch['input_ids'].shape[1], noise_samples)
            line |= parallel.average(means) | {'lr': learning_rate * fraction}
            line |= meter.speed(batch_size, flops, peak * world_size)
            line['memory_gb'] = watch.memory_used_gb(device)
            meter.clear()
            if master:
                print(watch.step_text(line, max_steps, batch_size), flush=True)
        with meter.paused():
            if evaluates:
                with optim.averaged(net, average_weights):
                    scores = evaluate(net, val_data, eval_batches, batch_size, device, autocast)
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
                line['success'] = success
                print(f'closed loop at {step}:  {success:.0%} of {rollout_episodes}', flush=True)
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
                if master and not saved:
                    print(watch.saved_text(out_dir, size, saving), flush=True)
                saved = True
        if stop:
            break

    # -----------------------------------------------------------------------------
    # leave
    if master:
        log.close(out_dir if wandb_artifacts else '')
        if step < max_steps:  # slurm/train.sh looks for the first word
            prefix = 'requeue: ' if stop == parallel.REQUEUE else ''
            print(f'{prefix}stopped at step {step}, saved; the same command goes on from here')
        else:
            watch.plot_losses(log.path, f'{out_dir}/loss.png')
            minutes = (time.perf_counter() - began) / 60
            print(f'{step - start.step} steps in {minutes:.1f} min; curves: {out_dir}/loss.png')
            print(f'next: {next_command(out_dir)}')
    parallel.leave()
