"""Train the VLA by behaviour cloning on a folder of episodes; killed, the same command goes on
where it stopped.

python train.py config/debug.py                                       # any machine, seconds, no
simulator python train.py config/demo.py config/demo_start.py                   # first lesson: 1
CPU process or 1 GPU torchrun --standalone --nproc_per_node=2 train.py config/demo.py      # second,
2 CPU cores: one thread each torchrun --standalone --nproc_per_node=8 train.py config/demo.py      #
8 GPUs torchrun --standalone --nproc_per_node=8 train.py config/large.py --dry_run=True    # what
does each need? # 2 nodes, on each: HEAD is the name of the first
torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=$HEAD:29500 train.py
config/demo.py
"""

import contextlib
import dataclasses
import datetime
import glob
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import tokenizers
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import data
import model
from episode import git_rev, tables_of, write_synthetic_episodes
from vla import checkpoint, layers, optim, parallel, pretrained, watch
from vla.processor import FAR, Processor

# -----------------------------------------------------------------------------
# where and what
out_dir = 'out/run'  # checkpoint, log.jsonl, loss.png
episodes = 'episodes/demo'  # folder of episodes, or several: a,b; sim_rollout.py records them
weights = ()  # shares of the samples that these folders give; (): as many as they have
synthetic = 0  # episodes to make up when that folder is missing; 0: the folder has to exist
tokenizer = 'assets/tokenizer.json'
init_from = ''  # checkpoint folder whose weights and normaliser are the starting point, or one
# of Qwen2.5-VL or EO-1, with its tokenizer and sizes (vision='qwen')
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
pure_noise = 0.5  # share of them at t = 1, the only time that acting in one step asks for
times = 'beta'  # of the others: 'beta', 'uniform', 'shifted' towards noise
read_text = 0.5  # probability that a draw sees the subtask text
gain = 0.1  # augmentation: spread of the colour gain, per channel
brightness = 6.0  # spread of the brightness offset, out of 255
shift = 0  # largest image shift, pixels
crop = 0.0  # up to this share of a picture's side is cut off
reask_share = 0.3  # share of samples that ask for another goal in the same scene: where is that?
prefix_rows = 0  # up to so many rows of a chunk are given clean, as when they are being executed
question_share = 0.0  # share of samples that are questions about the scene and their answers
state_noise = 0.0  # in normalised units: 0.05 are 3 mm of a hand's position
template = 'minimal'  # 'qwen': EO-1's prompt
pad_dims = 0  # state and action are filled up with zeros to so many; EO-1: 32
log_scale_m = (
    0.004  # m: smaller moves count in the loss by their size, larger ones by its logarithm
)
# model: each of these is a field of model.VLAConfig, explained there
hidden_size = 192
n_layers = 4
n_heads = 3
n_kv_heads = 3
head_dim = 64
intermediate_size = 768
mrope_section = (8, 12, 12)
mlp = 'relu2'
norm = 'rms'
vision = 'conv'
vision_width = 1280  # these six: Qwen2.5-VL's tower
vision_layers = 32
vision_heads = 16
vision_intermediate = 3420
vision_full_blocks = (7, 15, 23, 31)
vision_window = 112  # pixels
tokens_per_camera = 4
state_frequencies = 6
prefix_attention = 'bidirectional'
chunk_attention = 'bidirectional'
head_layers = 1
row_embedding = True
time_period_min = 0.06
rope_theta = 10_000.0
recompute = False  # activation checkpointing: less memory, a third more work
predict = 'action'  # the head gives the clean chunk ('action') or the velocity
action_loss = 'mse'  # or 'l1'; with pure_noise=1 either is plain regression
row_decay = 1.0  # weight of a chunk's row in the loss against that of the row before
text_weight = 0.1  # of the text loss
grounding = True  # what words name and where pictures show it are learnt apart, see grounding.py
tie_embeddings = False  # one table for reading and writing words (True: as Qwen2.5-VL-3B)
# optimizer
batch_size = 128  # chunks per step, over all processes and accumulation steps together
accumulate = 1  # backward passes per step
max_steps = 2_600
learning_rate = 2e-3  # AdamW, peak
muon_learning_rate = 0.04  # Muon on the matrices of the decoder, peak; 0: AdamW for everything
rates = ()  # of parts of the model: ('vision.*=0.1', 'decoder.*=0'); 0 freezes
weight_decay = 0.01
beta1 = 0.9
beta2 = 0.95
grad_clip = 1.0
warmup_steps = 100
final_lr = 0.02  # the cosine ends at this fraction of the peak
ema = 0.995  # decay of the averaged weights, which are the ones that act; 0: none
# running
device = 'auto'  # 'cpu', 'cuda'
dtype = 'auto'  # 'float32', 'bfloat16' (autocast); auto: bfloat16 where hardware is fast at it
threads = 1  # CPU threads per process; two one-thread processes beat one two-thread process
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
requeue_signal = (
    'SIGUSR1'  # save, leave, ask slurm/train.sh to queue the job again; SIGTERM: no asking
)
wandb_project = ''  # log to W&B as well; WANDB_MODE=offline is honoured
wandb_artifacts = False  # and leave the newest weights there when the run ends
dry_run = False  # print sizes, memory and how a batch is shared out, draw the first batch, stop
DEFAULTS = dict(globals())  # what runs had before a setting was there
exec(open('configurator.py').read())  # overrides from a config file or the command line
# -----------------------------------------------------------------------------
# settings a resumed run may change, because no weight depends on them but by the order of sums
MAY_CHANGE = {
    'out_dir',
    'resume',
    'device',
    'threads',
    'compile_model',
    'fsdp',
    'offload',
    'recompute',
    'accumulate',
    'log_interval',
    'eval_interval',
    'eval_batches',
    'checkpoint_interval',
    'keep_checkpoints',
    'rollout_interval',
    'rollout_episodes',
    'max_minutes',
    'timeout_minutes',
    'requeue_signal',
    'wandb_project',
    'wandb_artifacts',
    'dry_run',
}
# why a run stops early; of several ranks' reasons the highest counts
LEAVE = 1
REQUEUE = 2


def get_lr(step, max_steps, warmup_steps, final_lr):
    """Fraction of the peak rate: linear warm-up times a cosine from 1 to final_lr."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max_steps)))
    return min(1.0, (step + 1) / max(1, warmup_steps)) * (final_lr + (1 - final_lr) * cosine)


def next_command(out_dir):
    """What to type after a run: after a first lesson there is somebody to coach."""
    coach = f'config/{os.path.basename(out_dir).removesuffix("_start")}_coach.py'
    if out_dir.endswith('_start') and os.path.exists(coach):
        return f'python sim_rollout.py {coach}'
    return f'python sim_rollout.py --ckpt={out_dir}'


def score(out_dir, step, episodes):
    """Success in closed loop of the weights in out_dir, by the one stepping loop -> share, paths of
    films.
    """
    out = f'{out_dir}/rollout/{step}'
    shutil.rmtree(out, ignore_errors=True)  # of a run that was killed after this step
    subprocess.run(
        [
            sys.executable,
            'sim_rollout.py',
            f'--ckpt={out_dir}',
            f'--episodes={episodes}',
            f'--out={out}',
            '--video=2',
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with open(f'{out}/rollouts.jsonl') as f:
        rows = [json.loads(line) for line in f]
    return sum(row['success'] for row in rows) / len(rows), glob.glob(f'{out}/*.mp4')


@torch.no_grad()
def evaluate(net, dataset, batches, batch_size, rank, world_size, device, autocast):
    """Losses on held-out windows, the same rows, noise and times every time, and the acted chunk's
    error.
    """
    net.eval()
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
    # processes, device, signals
    rank, local_rank, world_size = (
        int(os.environ.get(k, d)) for k, d in (('RANK', 0), ('LOCAL_RANK', 0), ('WORLD_SIZE', 1))
    )
    master = rank == 0
    stop_request = 0

    def ask_to_stop(number, frame):
        global stop_request  # finish the step, save, leave
        stop_request = max(
            stop_request, REQUEUE if number == signal.Signals[requeue_signal] else LEAVE
        )

    for name in {'SIGTERM', requeue_signal}:
        signal.signal(signal.Signals[name], ask_to_stop)
    if batch_size % (world_size * accumulate):
        sys.exit(
            f'batch_size {batch_size} does not divide by '
            f'{world_size} processes x accumulate {accumulate}'
        )
    sharded = fsdp and world_size > 1
    if rollout_interval and world_size > 1:
        sys.exit(
            f'rollout_interval {rollout_interval}: {world_size} processes would wait for one simulator; '
            f'score in another job: python sim_rollout.py --ckpt={out_dir}'
        )
    if offload and (muon_learning_rate or not fsdp):
        sys.exit('offload=True is for fsdp=True, and AdamW only: --muon_learning_rate=0')
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if device == 'cuda':
        device = f'cuda:{local_rank}'
        torch.cuda.set_device(device)
    if (
        world_size > 1
    ):  # gloo for what is in main memory: flags, averages for the log, offloaded parts
        dist.init_process_group(
            'cpu:gloo,cuda:nccl' if device.startswith('cuda') else 'gloo',
            timeout=datetime.timedelta(minutes=timeout_minutes),
        )
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    parallel.keep_freed_memory()
    autocast = layers.autocast_for(device, dtype)

    # -----------------------------------------------------------------------------
    # a run to go on with?
    settings = checkpoint.as_json(config)
    if resume not in ('auto', 'never'):
        sys.exit(f"resume {resume!r}, expected 'auto' or 'never'")
    state = checkpoint.read_facts(out_dir) if resume == 'auto' else None
    if state:
        old = checkpoint.as_json(DEFAULTS) | state['settings']
        may, may_not = checkpoint.settings_that_differ(old, settings, MAY_CHANGE)
        if may_not:
            sys.exit(
                f'{out_dir} holds a run with other settings ({may_not}): --resume=never starts over, '
                f'another --out_dir keeps both, --init_from={out_dir} starts from its weights'
            )
        if state['step'] >= max_steps:
            if master:
                print(
                    f'{out_dir} is finished at step {state["step"]}; --resume=never starts over\n'
                    f'next: {next_command(out_dir)}'
                )
            sys.exit(0)
        if state['world_size'] != world_size:
            may += f'{", " if may else ""}processes {state["world_size"]} -> {world_size}: the same batches'
        if may and master:
            print(f'going on with other settings: {may}')

    # -----------------------------------------------------------------------------
    # data
    if master and synthetic and not os.path.isdir(episodes):
        write_synthetic_episodes(episodes + '.tmp', synthetic, cameras, image_size, control_hz)
        os.replace(episodes + '.tmp', episodes)
    checkpoint.wait_for_all()  # the others do not look: they would see it before or after
    published = init_from and not os.path.exists(f'{init_from}/meta.json')  # of Qwen2.5-VL or EO-1
    if published and not os.path.exists(f'{init_from}/config.json'):
        sys.exit(
            f'init_from {init_from!r} holds neither a checkpoint (meta.json) nor a published model '
            f'(config.json): train it first (README, First run), or --init_from= starts from scratch'
        )
    known = state  # whose normaliser is to be used
    if init_from and not published and not state:
        with open(f'{init_from}/meta.json') as f:
            known = json.load(f)
    with open(f'{init_from}/tokenizer.json' if published else tokenizer) as f:
        words = f.read()
    if template == 'qwen':
        words = pretrained.add_action_tokens(tokenizers.Tokenizer.from_str(words)).to_str()
    inherited = {}
    if known:
        processor = Processor.from_dict(known['processor'])
        inherited = checkpoint.overruled(settings | {'tokenizer': words}, known['processor'])
        said = '; '.join(f'{k} {settings[k]!r} here, {its!r} there' for k, its in inherited.items())
        if not state and any(config[k] != DEFAULTS[k] for k in inherited):
            sys.exit(
                f'{init_from} was trained with other settings, on which its weights depend ({said}): '
                f'give these as there, or not at all; --init_from= starts from scratch'
            )
        if said and master and not state:
            print(f'not the defaults but the settings of {init_from} are used: {said}')
    else:
        processor = Processor(
            cameras,
            image_size,
            state_slots,
            action_slots,
            horizon,
            control_hz,
            words,
            tokens_per_camera,
            action_space,
            template=template,
            log_scale_m=log_scale_m,
            pad_dims=pad_dims,
            tables=tables_of(episodes),
        )
    decoders = max(1, os.cpu_count() // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))  # of jpeg
    train_data = data.Dataset(
        episodes,
        processor,
        'train',
        val_fraction,
        rows_after_success,
        noise_samples,
        read_text,
        gain,
        brightness,
        shift,
        state_noise,
        reask_share,
        pure_noise,
        question_share,
        prefix_rows,
        times,
        weights,
        crop,
        decoders,
    )
    val_data = (
        data.Dataset(
            episodes,
            processor,
            'val',
            val_fraction,
            rows_after_success,
            noise_samples,
            read_text,
            workers=decoders,
        )
        if val_fraction
        else None
    )
    odd = (
        {}
        if state
        else watch.odd_slots(processor, train_data, FAR)
        if processor.stats
        else processor.fit(train_data)
    )
    fingerprint = train_data.fingerprint()
    if state and state['fingerprint'] != fingerprint:
        sys.exit(
            f'{episodes} has changed since {out_dir} was started, going on would not be the same run: '
            f'--resume=never starts over, --init_from={out_dir} starts from its weights'
        )

    # -----------------------------------------------------------------------------
    # model
    given = dict(  # by the data
        vocab_size=processor.tokenizer.get_vocab_size(),
        state_dim=processor.state_dim,
        action_dim=processor.action_dim,
        horizon=processor.horizon,
        image_size=processor.image_size,
        scene_bricks=train_data.n_bricks if grounding else 0,
        scene_frames=processor.frames,
        n_cameras=len(processor.cameras),
        tokens_per_camera=processor.tokens_per_camera,
        image_pad_id=processor.token_id['<|image_pad|>'],
        state_pad_id=processor.token_id['<|state_pad|>'],
        action_start_id=processor.token_id['<|action_start|>'],
    )
    fields = {f.name for f in dataclasses.fields(model.VLAConfig)}
    given = {**{k: v for k, v in config.items() if k in fields}, **given}
    if published:
        del given['vocab_size']  # the table has spare rows
    cfg = model.VLAConfig(**(pretrained.read_config(init_from) if published else {}) | given)
    fresh = not state and not dry_run
    net = None
    if fresh and (master or not sharded):  # the other ranks of a sharded model are sent their parts
        net = (
            model.VLA.from_pretrained(init_from, torch.float32, **given)
            if published
            else model.VLA(cfg)
        )
        if known:
            net.load_state_dict(model.VLA.load(init_from)[0].state_dict())
    weights = net.state_dict() if net else None
    if sharded or not fresh:
        with torch.device('meta'):
            net = model.VLA(cfg)
    if compile_model:  # a block runs in eight ways: on prefix or rows, last or not, to learn or not
        torch._dynamo.config.recompile_limit = 32
    optim.freeze(net, rates)  # before gradients are gathered: they have to know what has none
    if sharded:
        for block in parallel.blocks_of(net) if compile_model else ():
            block.compile()
        net = parallel.shard(net, device, autocast.fast_dtype, offload)
    if not dry_run and (sharded or state):
        parallel.materialise(net, device, offload)
    if sharded and fresh:
        parallel.fill(net, weights)
    elif not sharded and not dry_run:
        net = net.to(device)
    net.train()
    del weights

    # -----------------------------------------------------------------------------
    # what there is to do
    rev = git_rev()
    part = batch_size // world_size // accumulate
    start = state['step'] if state else 0

    def make_batches(step):
        return [
            train_data.batch(step, batch_size, rank * accumulate + i, world_size * accumulate, seed)
            for i in range(accumulate)
        ]

    if master:
        first = make_batches(start)[0]
        tokens = first['input_ids'].shape[1] + noise_samples * processor.horizon
        memory = parallel.memory_gb(net, device, ema, part, tokens, autocast.fast_dtype, offload)
        mine = sum(parallel.local(p).numel() for p in net.parameters())
        print(
            f'rev {rev}, {net.n_parameters / 1e6:.2f} M parameters'
            + (f', {mine / 1e6:.2f} M of them per process' if sharded else '')
            + f', {autocast.fast_dtype} on {device}'
        )
        print(
            f'{world_size} processes x {part} x {accumulate} accumulated = {batch_size} chunks per step, '
            f'{noise_samples} noise samples of each; {batch_size * tokens} tokens'
        )
        for where, parts in memory.items():
            print(
                f'{where} per process, estimated: {sum(parts.values()):.2f} GB = '
                + ' + '.join(f'{v:.2f} {k}' for k, v in parts.items() if v > 0.005)
            )
        print(
            f'{len(train_data.paths)} episodes, {len(train_data)} windows, '
            f'{max_steps * batch_size / len(train_data):.1f} epochs; '
            f'{len(val_data.paths) if val_data else 0} episodes held out'
        )
        print(
            f'slots: {len(processor.state_slots)} state, {len(processor.action_slots)} action'
            + ''.join(f'\n  {name:32} {fault}' for name, fault in odd.items())
        )
        if dry_run:
            os.makedirs(out_dir, exist_ok=True)
            texts = [
                processor.tokenizer.decode(
                    [i for i in ids.tolist() if i != cfg.image_pad_id], False
                )
                for ids in first['input_ids']
            ]
            watch.draw_batch(data.augment(first), texts, f'{out_dir}/batch.png')
            print(f'first batch: {out_dir}/batch.png')
    if dry_run:
        sys.exit(0)

    # -----------------------------------------------------------------------------
    # optimizers, state, log
    optimizers = optim.configure_optimizers(
        net, learning_rate, muon_learning_rate, weight_decay, (beta1, beta2), rates
    )
    average_weights = optim.EMA(net, ema) if ema else None
    if state:
        checkpoint.load_state(out_dir, state, net, optimizers, average_weights)
    forward = torch.compile(net) if compile_model and not sharded else net
    if world_size > 1 and not sharded:
        device_ids = [local_rank] if device.startswith('cuda') else None
        forward = DistributedDataParallel(forward, device_ids, gradient_as_bucket_view=True)
    peak = watch.peak_flops(device, autocast.fast_dtype)
    if master:
        if not state:
            checkpoint.clear(out_dir)
        job = os.environ.get('SLURM_JOB_ID')
        log = watch.Log(
            out_dir,
            start,
            wandb_project,
            state and state['wandb_id'],
            config=settings | inherited | {'git_rev': rev},
            name=os.path.basename(out_dir) + (f'-{job}' if job else ''),
            group=os.environ.get('SLURM_ARRAY_JOB_ID', os.path.basename(out_dir)),
        )
        print(f'starting at step {start}' if start else 'starting', flush=True)

    # -----------------------------------------------------------------------------
    # loop
    meta = {
        'settings': settings | inherited,
        'fingerprint': fingerprint,
        'processor': processor.to_dict(),
        'git_rev': rev,
        'world': train_data.header(0).get('world', {}),  # nothing of another robot's
    }
    best = state['best'] if state else math.inf
    began = since = time.perf_counter()
    waited = 0.0
    step = start
    stop = 0
    saved = False
    # of what the log will have the mean of, over so many steps, some of them taken before a stop
    sums, summed = (parallel.own(state['sums']), state['summed']) if state else ({}, 0)
    batches = data.prefetch(make_batches, range(start, max_steps), pin=device.startswith('cuda'))

    def fetch():
        """The next step's batches, on their way to the device; () after the last."""
        return [
            {k: v.to(device, non_blocking=True) for k, v in batch.items()}
            for batch in next(batches, ())
        ]

    upcoming = fetch()
    while step < max_steps:
        micro_batches = upcoming
        fraction = get_lr(step, max_steps, warmup_steps, final_lr)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group['lr'] = group['peak_lr'] * fraction
        for i, batch in enumerate(micro_batches):
            last = i == accumulate - 1
            with (
                contextlib.nullcontext()
                if last or sharded or world_size == 1
                else forward.no_sync()
            ):
                with autocast:
                    loss, parts = forward(data.augment(batch))
                (loss / accumulate).backward()
            for name, value in {'loss': loss.detach(), **parts}.items():
                sums[name] = sums.get(name, 0) + value / accumulate
        norm_before = parallel.whole(torch.nn.utils.clip_grad_norm_(net.parameters(), grad_clip))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if average_weights:
            average_weights.update(net)
        step = step + 1
        summed = summed + 1
        sums['grad_norm'] = sums.get('grad_norm', 0) + norm_before
        asked = time.perf_counter()
        upcoming = fetch()  # while a GPU is busy with this step
        waited += time.perf_counter() - asked
        if max_minutes and time.perf_counter() - began > 60 * max_minutes:
            stop_request = max(stop_request, LEAVE)
        stop = parallel.highest(
            stop_request
        )  # all stop after the same step; wishes may come at any moment

        line = {}
        logs, evaluates, saves = (
            step == max_steps or step % interval == 0
            for interval in (log_interval, eval_interval, checkpoint_interval)
        )
        saves = saves or stop
        plays = rollout_interval and step % rollout_interval == 0
        if logs or evaluates or saves or plays:  # what is written is sound
            means = {k: sums[k] / summed for k in ('loss', 'grad_norm')}
            if not parallel.all_finite([*means.values(), *net.parameters()]):
                kept = checkpoint.read_facts(out_dir)
                sys.exit(
                    f'step {step}: loss {means["loss"]:.4g}, gradient norm {means["grad_norm"]:.4g}; '
                    'they or weights are not finite and not saved: '
                    + (
                        f'the checkpoint of step {kept["step"]} in {out_dir} is sound'
                        if kept
                        else f'there is no checkpoint in {out_dir} yet'
                    )
                )
        if logs:
            now = time.perf_counter()
            rate = min(summed, step - start) * batch_size / (now - since)
            flops = rate * model.flops_per_sample(cfg, batch['input_ids'].shape[1], noise_samples)
            line = {
                'step': step,
                **{k: v / summed for k, v in parallel.average(sums).items()},
                'lr': learning_rate * fraction,
                'samples_per_s': rate,
                'gflops': flops / 1e9,
                'mfu': flops / peak / world_size,
                'data_wait': waited / (now - since),
                'memory_gb': watch.memory_used_gb(device),
            }
            if master:
                eta = (max_steps - step) * batch_size / rate
                print(
                    f'step {step:6d}/{max_steps}  loss {line["loss"]:.4f}  flow {line["flow"]:.4f}  '
                    f'text {line["text"]:.4f}  lr {line["lr"]:.2e}  grad {line["grad_norm"]:5.2f}  '
                    f'{rate:5.0f} samples/s  MFU {100 * line["mfu"]:4.1f}%  '
                    f'data {100 * line["data_wait"]:4.1f}%  {line["memory_gb"]:5.2f} GB  '
                    f'eta {eta / 60:5.1f} min',
                    flush=True,
                )
            since = now
            waited = 0.0
            sums = {}
            summed = 0
        paused = time.perf_counter()
        films = ()
        if val_data and evaluates:
            if average_weights:
                average_weights.swap(net)
            scores = evaluate(
                net, val_data, eval_batches, batch_size, rank, world_size, device, autocast
            )
            if average_weights:
                average_weights.swap(net)
            line = {'step': step, **line, **scores}
            if master:
                print(
                    f'held out at {step}:  '
                    + '  '.join(f'{k[4:]} {v:.4g}' for k, v in scores.items() if '@' not in k),
                    flush=True,
                )
            if scores['val_loss'] < best:
                best = scores['val_loss']
                checkpoint.save_weights(
                    f'{out_dir}/best',
                    net,
                    meta | {'step': step, 'val_loss': best},
                    average_weights,
                    parallel.gather,
                )
        if plays:
            checkpoint.save_weights(
                out_dir, net, meta | {'step': step}, average_weights, parallel.gather
            )
            success, films = score(out_dir, step, rollout_episodes)
            line = {'step': step, **line, 'success': success}
            print(f'closed loop at {step}:  {success:.0%} of {rollout_episodes}', flush=True)
        if master and line:
            log.write(line, films)
        if saves:
            saving = time.perf_counter()
            facts = {
                'settings': settings,
                'fingerprint': fingerprint,
                'processor': meta['processor'],
                'step': step,
                'world_size': world_size,
                'best': best,
                'summed': summed,
                'sums': parallel.of_each(sums),
                'wandb_id': master and log.run_id,
            }
            size = checkpoint.save(
                out_dir,
                net,
                optimizers,
                average_weights,
                meta | {'step': step},
                facts,
                parallel.gather,
                keep_checkpoints,
            )
            if master and not saved:
                saved = True
                print(
                    f'checkpoint: {checkpoint.size_of(out_dir) / 1e6:.0f} MB to act, {size / 1e6:.0f} MB '
                    f'to go on, {time.perf_counter() - saving:.1f} s',
                    flush=True,
                )
        since += time.perf_counter() - paused
        if stop:
            break

    # -----------------------------------------------------------------------------
    # leave
    if master:
        log.close(out_dir if wandb_artifacts else '')
        if step < max_steps:  # the job script looks for the first word
            print(
                f'{"requeue: " if stop == REQUEUE else ""}stopped at step {step}, saved; '
                'the same command goes on from here'
            )
        else:
            watch.plot_losses(log.path, f'{out_dir}/loss.png')
            print(
                f'{step - start} steps in {(time.perf_counter() - began) / 60:.1f} min; curves: '
                f'{out_dir}/loss.png\nnext: {next_command(out_dir)}'
            )
    if world_size > 1:
        dist.destroy_process_group()
