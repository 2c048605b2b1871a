"""What a run says of itself: first lines, a line per interval, log.jsonl and W&B, pictures."""

import contextlib
import importlib
import json
import math
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from data import Dataset, augment
from episode import write_atomic
from model import VLA, flops_per_sample
from vla import optim, parallel
from vla.checkpoint import size_of
from vla.processor import Processor

# Dense bfloat16 products in TFLOP/s, by the makers' data sheets; the first name that fits counts.
PEAK_TFLOPS = {
    'B200': 2250,
    'H200': 989,
    'H100 PCIe': 756,
    'H100': 989,
    'A100': 312,
    'L40S': 362,
    'L40': 181,
    '4090': 165,
}

# -----------------------------------------------------------------------------
# before the first step


def odd_slots(processor: Processor, dataset: Dataset, far: float) -> dict[str, str]:
    """Name the slots in which data do not fit a normaliser that was made of other data.

    Args:
        processor: With the normaliser.
        dataset: The data it is to be used with.
        far: Reaching more than so many of its spreads is odd.

    Returns:
        {slot: what is wrong with it}: all that Processor.fit says of these data by themselves, and
        what reaches too far.
    """
    table = type(processor).from_dict(processor.to_dict() | {'stats': None}).fit(dataset)
    windows = dataset.windows[:: len(dataset.windows) // 200_000 + 1]
    n_state = len(processor.state_slots)
    n_action = len(processor.action_slots)
    reach = np.zeros(n_state + n_action)
    for rows in np.array_split(windows, len(windows) // 65_536 + 1):
        states = dataset.read('state', rows)
        chunks = processor.normalise_actions(dataset.chunk(rows), dataset.commands(rows, states))
        chunks *= dataset.chunk_mask(rows)[..., None]  # (B, H, A)
        state = np.abs(processor.normalise_state(states)).max(0)
        action = np.abs(chunks).max((0, 1))
        reach = np.maximum(reach, np.concatenate([state[:n_state], action[:n_action]]))
    names = [*processor.state_slots, *(f'action {name}' for name in processor.action_slots)]
    for name, spreads in zip(names, reach):
        if spreads > far:
            table[name] = f'reaches {spreads:.0f} spreads of the normaliser that is taken over'
    return table


def describe_model(
    net: VLA,
    config: Mapping[str, Any],
    first: Mapping[str, torch.Tensor],
    rev: str,
    device: str,
    dtype: torch.dtype,
    groups: int = 1,
) -> str:
    """Return the first lines on the model: revision, size, shares of a batch, memory.

    Args:
        net: Whole or sharded.
        config: Settings of train.py.
        first: This process's part of the first batch.
        rev: Git revision of the code.
        device: Of this process.
        dtype: That products are done in.
        groups: Parts that are worked through one after the other, see data.by_length.
    """
    line = f'rev {rev}, {net.n_parameters / 1e6:.2f} M parameters'
    mine = sum(optim.local(p).numel() for p in net.parameters())
    if mine < net.n_parameters:
        line += f', {mine / 1e6:.2f} M of them per process'
    lines = [f'{line}, {products_text(device, dtype)}']
    _, world_size = parallel.rank_and_size()
    accumulate = config['accumulate']
    batch_size = config['batch_size']
    samples = config['noise_samples']
    part = batch_size // world_size // accumulate
    tokens = first['input_ids'].shape[1] + samples * net.cfg.horizon
    lines.append(
        f'{world_size} processes x {part} x {accumulate} accumulated = {batch_size} chunks per '
        f'step, {samples} noise samples of each; {batch_size * tokens} tokens'
    )
    network = batch_size * flops_per_sample(net.cfg, first['input_ids'].shape[1], samples)
    text = f'{network / 1e12:.2g} TFLOP a step by count'
    if config['muon_learning_rate']:
        shapes = [p.shape for p in net.decoder.blocks.parameters() if p.ndim == 2]
        muon = optim.orthogonalising_flops(shapes)
        text += f', and {muon / 1e12:.2g} of Muon, {muon / (network + muon):.1%} of both'
    lines.append(text)
    at_a_time = max(1, part // groups)
    memory = parallel.memory_gb(
        net, device, config['ema'], at_a_time, tokens, dtype, config['offload']
    )
    for where, parts in memory.items():
        terms = ' + '.join(f'{gb:.2f} {kind}' for kind, gb in parts.items() if gb > 0.005)
        total = sum(parts.values())
        lines.append(f'{where} per process, estimated: {total:.2f} GB = {terms}')
    if config['dry_run'] and world_size == 1:
        lines += _on_gpus(net, config, tokens)
    return '\n'.join(lines)


def products_text(device: str, dtype: torch.dtype) -> str:
    """Say in which numbers products are done, and where: see layers.autocast_for."""
    text = f'{dtype} on {device}'
    if torch.device(device).type != 'cuda':
        return text
    if dtype == torch.float32:
        return f'{text}, in convolutions too: no TF32'
    return f'{text}, convolutions that stay float32 in TF32'


def _on_gpus(net: VLA, config: Mapping[str, Any], tokens: int) -> list[str]:
    """Say what GPUs would need of memory, one or eight of them, whatever machine this is."""
    lines = []
    for n in (1, 8):
        part = config['batch_size'] // n // config['accumulate']
        if not part:
            continue
        parts = n if config['fsdp'] else 1
        how = (config['ema'], part, tokens, torch.bfloat16, config['offload'], parts)
        found = parallel.memory_gb(net, 'cuda', *how)
        total = sum(found['memory'].values())
        lines.append(f'on {n} GPU{"s" * (n > 1)} in bfloat16, estimated: {total:.2f} GB of each')
    return lines


def describe_data(
    processor: Processor,
    train_data: Dataset,
    val_data: Dataset | None,
    config: Mapping[str, Any],
    odd: Mapping[str, str],
) -> str:
    """Return the first lines on the data: episodes, epochs, slots and what is odd about them.

    Args:
        processor: Of the run.
        train_data: Trained on.
        val_data: Held out, if any are.
        config: Settings of train.py.
        odd: See odd_slots and Processor.fit.
    """
    held_out = len(val_data.paths) if val_data else 0
    chunks = config['max_steps'] * config['batch_size']
    lines = [
        f'{len(train_data.paths)} episodes, {len(train_data)} windows, '
        f'{chunks / len(train_data):.1f} epochs; {held_out} episodes held out',
        f'slots: {len(processor.state_slots)} state, {len(processor.action_slots)} action',
    ]
    for task, (episodes, windows, share) in train_data.by_task().items():
        lines.append(
            f'  {task}: {episodes} episodes, {windows} windows '
            f'({windows / len(train_data):.0%}), {share:.0%} of the samples'
        )
    lines += [f'  {name:32} {fault}' for name, fault in odd.items()]
    return '\n'.join(lines)


def draw_batch(
    batch: Mapping[str, torch.Tensor], processor: Processor, out: str, count: int = 6
) -> None:
    """Draw the first samples of a batch as the model gets them, as PNG.

    A sample is its pictures (a column per camera), its text and its chunk of actions over the rows.

    Args:
        batch: After data.augment.
        processor: That made it.
        out: Path of the picture.
        count: Samples at most.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    images = batch['images'].float().clamp(0, 255).byte().cpu()
    actions = batch['actions'].float().cpu()
    image_pad = processor.token_id['<|image_pad|>']
    count = min(count, len(images))
    figure, axes = plt.subplots(
        count,
        2,
        figsize=(16, 2.6 * count),
        constrained_layout=True,
        squeeze=False,
        width_ratios=(images.shape[1], 2),
    )
    for i, (left, right) in enumerate(axes):
        ids = [token for token in batch['input_ids'][i].tolist() if token != image_pad]
        text = processor.tokenizer.decode(ids, skip_special_tokens=False)
        rows = int(batch['action_mask'][i].sum())
        left.imshow(torch.cat(list(images[i]), 1))
        left.set(xticks=[], yticks=[])
        left.set_title(text, fontsize=8, wrap=True)
        right.plot(actions[i])
        right.set(xlabel='row', ylabel='normalised', title=f'{rows} rows count')
    figure.savefig(out, dpi=70)
    plt.close(figure)


# -----------------------------------------------------------------------------
# while it runs


class Meter:
    """Sums since the last log line, and the time that these steps took.

    Some of the steps may lie before a restart: their losses count in the line's means, and the
    clock does not know them.
    """

    def __init__(self, sums: Mapping[str, float], steps: int):
        """Go on from sums over so many steps that were taken before a restart."""
        self.sums: dict[str, Any] = dict(sums)
        self.steps = steps
        self.step_sums: dict[str, Any] = {}  # Sums of the step that is being taken.
        self.last_step: dict[str, Any] = {}  # Sums of the step before.
        self._restart_clock()

    def _restart_clock(self) -> None:
        self.timed_steps = 0
        self.waited_s = 0.0  # Time spent waiting for data.
        self.since = time.perf_counter()

    def add(self, values: Mapping[str, Any], parts: int = 1) -> None:
        """Add the numbers of one of so many parts of a step."""
        for name, value in values.items():
            self.step_sums[name] = self.step_sums.get(name, 0) + value / parts

    def end_step(self, values: Mapping[str, Any], sound: torch.Tensor) -> None:
        """Count a step, and add the numbers that belong to the whole of it.

        Args:
            values: These numbers.
            sound: Whether the step was taken, a bool on the device: one that was not is counted as
                `skipped`, and its numbers are in no mean.
        """
        self.add(values)
        for name, value in self.step_sums.items():
            self.sums[name] = self.sums.get(name, 0) + torch.where(sound, value, 0)
        self.sums['skipped'] = self.sums.get('skipped', 0) + (~sound).float()
        self.last_step = self.step_sums
        self.step_sums = {}
        self.steps += 1
        self.timed_steps += 1

    def own_means(self) -> dict[str, Any]:
        """Return the means over steps, in this process alone, and how many were not taken."""
        taken = self.steps - self.sums['skipped']
        means = {name: value / taken for name, value in self.sums.items()}
        return means | {'skipped': self.sums['skipped']}

    def speed(
        self, batch_size: int, flops_per_sample: float, peak_flops: float
    ) -> dict[str, float]:
        """Return the numbers of a log line that depend on the clock.

        Args:
            batch_size: Samples in a step.
            flops_per_sample: That a sample takes by count.
            peak_flops: Per second that all processes reach at most.

        Returns:
            samples_per_s; gflops per second; mfu, the share of the peak; data_wait, the share of
            the time spent waiting for data.
        """
        seconds = time.perf_counter() - self.since
        rate = self.timed_steps * batch_size / seconds
        flops = rate * flops_per_sample
        return {
            'samples_per_s': rate,
            'gflops': flops / 1e9,
            'mfu': flops / peak_flops,
            'data_wait': self.waited_s / seconds,
        }

    def share_of_steps(self, part_ms: float) -> float:
        """Return the share of a step that something of so many milliseconds has."""
        return self.timed_steps * part_ms / (1e3 * (time.perf_counter() - self.since))

    def clear(self) -> None:
        """Start anew, after a line."""
        self.sums = {}
        self.steps = 0
        self._restart_clock()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside a `with` block as waiting for data."""
        began = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside a `with` block."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began


class Unsound:
    """Steps that were not taken because their gradient was not finite.

    All of it is counted on the device, and nobody waits: `report` reads it when something is due.
    """

    def __init__(self, names: Sequence[str], device: str):
        """Count from now on.

        Args:
            names: Of the parameters that have a gradient, see optim.with_gradient.
            device: Where gradients are.
        """
        self.names = list(names)
        self.parts: list[str] = []
        self.device = device
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._forget()

    def _forget(self) -> None:
        self.count = torch.zeros_like(self.in_a_row)
        self.most_in_a_row = self.in_a_row.clone()
        self.first = torch.full_like(self.in_a_row, -1)  # step
        self.bad_params = torch.zeros(len(self.names), dtype=torch.bool, device=self.device)
        self.bad_parts: torch.Tensor | None = None

    def note(
        self, step: int, sound: torch.Tensor, parts: Mapping[str, Any], norms: torch.Tensor
    ) -> None:
        """Take note of a step.

        Args:
            step: Number of the batch.
            sound: Whether it was taken, a bool on the device.
            parts: Of its loss.
            norms: Of its gradients, by parameter.
        """
        self.parts = list(parts)
        bad_parts = ~torch.stack([torch.as_tensor(value) for value in parts.values()]).isfinite()
        if self.bad_parts is None:
            self.bad_parts = torch.zeros_like(bad_parts)
        is_first = ~sound & (self.first < 0)
        self.count += ~sound
        self.in_a_row = (self.in_a_row + 1) * ~sound
        self.most_in_a_row = torch.maximum(self.most_in_a_row, self.in_a_row)
        self.first = torch.where(is_first, step, self.first)
        self.bad_params = torch.where(is_first, ~norms.isfinite(), self.bad_params)
        self.bad_parts = torch.where(is_first, bad_parts, self.bad_parts)

    def report(self) -> dict[str, Any] | None:
        """Return what has happened since the last report, None where all steps were taken.

        Returns:
            count: steps not taken. in_a_row: the most in a row. ended: how many of them are the
            last ones. step: number of the first one's batch. what: its part of the loss, or its
            parameter, in words.
        """
        if not int(self.count):
            return None
        report = {
            'count': int(self.count),
            'in_a_row': int(self.most_in_a_row),
            'ended': int(self.in_a_row),
            'step': int(self.first),
            'what': self._what(),
        }
        self._forget()
        return report

    def _what(self) -> str:
        assert self.bad_parts is not None, 'a step was noted'
        parts = [name for name, bad in zip(self.parts, self.bad_parts.tolist()) if bad]
        bad = [name for name, is_bad in zip(self.names, self.bad_params.tolist()) if is_bad]
        loss = f'not finite in the loss: {", ".join(parts)}' if parts else 'the loss is finite'
        if not bad:
            return f'{loss}; each gradient by itself is finite here, their norm is not'
        # Backward goes from the last layers to the first: what comes last met it first.
        return f'{loss}; not finite are {len(bad)} of {len(self.names)} gradients, first {bad[-1]}'


def unsound_text(report: Mapping[str, Any], path: str) -> str:
    """Return what `Unsound.report` found, as it is printed.

    Args:
        report: Of steps that were not taken.
        path: Where the batch of the first of them is kept.
    """
    return (
        f'{report["count"]} steps were not taken: the gradient was not finite, first on the batch '
        f'of step {report["step"]} ({report["what"]}); it is kept: --replay_batch={path}'
    )


def replay(net: VLA, batch: Mapping[str, torch.Tensor], autocast: torch.autocast) -> list[str]:
    """Take a batch through forward and backward and say, in lines, where numbers stop being finite.

    Args:
        net: With the weights to try.
        batch: As Dataset.batch gives it.
        autocast: Context of the forward.
    """
    found: list[str] = []

    def look(name: str) -> Callable:
        def hook(module: torch.nn.Module, args: Any, out: Any) -> None:
            tensors = out if isinstance(out, tuple) else (out,)
            for tensor in tensors:
                if torch.is_tensor(tensor) and not bool(tensor.isfinite().all()):
                    found.append(name)

        return hook

    hooks = [m.register_forward_hook(look(name)) for name, m in net.named_modules() if name]
    net.train()
    with autocast:
        loss, parts = net(augment(dict(batch)))
    for hook in hooks:
        hook.remove()
    loss.backward()
    lines = [f'loss {loss.item():.6g}: ' + ', '.join(f'{k} {v:.6g}' for k, v in parts.items())]
    lines.append(f'forward: not finite first in {found[0]}' if found else 'forward: all is finite')
    names = [name for name, p in net.named_parameters() if p.grad is not None]
    norms = [float(p.grad.norm()) for p in net.parameters() if p.grad is not None]
    for name, norm in sorted(zip(names, norms), key=lambda pair: math.isfinite(pair[1])):
        lines.append(f'  gradient {norm:12.4g}  {name}')
    return lines


def step_text(line: Mapping[str, Any], max_steps: int, batch_size: int) -> str:
    """Return a line of the log as it is printed, with the time that is left."""
    eta_s = (max_steps - line['step']) * batch_size / line['samples_per_s']
    mapped = ''
    if line.get('mapped_gb', 0) >= 0.05:  # lines of earlier logs have none
        mapped = f' ({line["mapped_gb"]:.1f} of it mapped files)'
    parts = [f'{name} {line[name]:.4f}' for name in ('flow', 'text') if name in line]
    losses = '  '.join([f'loss {line["loss"]:.4f}', *parts])
    muon = ''
    if line.get('muon_share'):  # lines of earlier logs have none
        muon = f'  Muon {100 * line["muon_share"]:4.1f}%'
    return (
        f'step {line["step"]:6d}/{max_steps}  {losses}  '
        f'lr {line["lr"]:.2e}  grad {line["grad_norm"]:5.2f}  '
        f'{line["samples_per_s"]:5.0f} samples/s  MFU {100 * line["mfu"]:4.1f}%  '
        f'data {100 * line["data_wait"]:4.1f}%{muon}  {line["memory_gb"]:5.2f} GB{mapped}  '
        f'eta {eta_s / 60:5.1f} min'
    )


def scores_text(scores: Mapping[str, float], step: int) -> str:
    """Return held-out scores as they are printed; those of single rows are left to the log.

    Of the scores of a task ('val_position_mm/join') the first kind is shown, in a line of its own.
    """
    shown = {k.removeprefix('val_'): f'{v:.4g}' for k, v in scores.items() if '@' not in k}
    of_all = [f'{name} {value}' for name, value in shown.items() if '/' not in name]
    text = f'held out at {step}:  ' + '  '.join(of_all)
    by_task = [name.split('/') for name in shown if '/' in name]
    if by_task:
        kind = by_task[0][0]
        words = [f'{task} {shown[f"{kind}/{task}"]}' for name, task in by_task if name == kind]
        text += f'\n  {kind} by task:  ' + '  '.join(words)
    return text


def saved_text(folder: str, state_bytes: int, began: float) -> str:
    """Return what a checkpoint takes, and how long since `began` it took, as it is printed."""
    act_mb = size_of(folder) / 1e6
    seconds = time.perf_counter() - began
    return (
        f'checkpoint: {act_mb:.0f} MB to act, {state_bytes / 1e6:.0f} MB to go on, {seconds:.1f} s'
    )


def read_log(path: str) -> list[dict[str, Any]]:
    """Entries of a log.jsonl; lines that a kill or a full disk has damaged are left out."""
    entries = []
    with open(path, encoding='utf-8', errors='replace') as f:
        for line in f:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and type(entry.get('step')) is int:
                entries.append(entry)
    return entries


TRACKERS = ('wandb', 'trackio', 'none')


def _import_tracker(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f'tracker={name} is not installed: pip install {name}') from None


class Log:
    """One JSON object per line in <folder>/log.jsonl, and the same to a tracker of a project.

    Lines after step `start` are of steps that will be taken again: they go. W&B goes on under the
    id of the run that is gone on with, Trackio under its name.
    """

    def __init__(
        self,
        folder: str,
        start: int,
        project: str,
        run_id: str | None,
        config: Mapping[str, Any],
        job: str = '',
        array_job: str = '',
        tracker: str = 'wandb',
    ):
        """Open the log.

        Args:
            folder: Of the run; its name is the run's name at the tracker.
            start: Steps that have been taken.
            project: At the tracker; '': none.
            run_id: Of the run at W&B that is gone on with.
            config: What the tracker is told of the run.
            job: Id of the SLURM job, for the name.
            array_job: Id of the SLURM array, which groups runs.
            tracker: One of TRACKERS. 'trackio' needs no account and keeps all on this machine.

        Raises:
            ValueError: There is no such tracker, it is not installed, or it does not take the run.
        """
        if tracker not in TRACKERS:
            raise ValueError(f'tracker={tracker}: expected one of {", ".join(TRACKERS)}')
        os.makedirs(folder, exist_ok=True)
        self.path = f'{folder}/log.jsonl'
        self.run: Any = None
        self.tracker: Any = None  # its module: what is used of Trackio's is called as at W&B
        kept = []
        if start and os.path.exists(self.path):
            entries = [entry for entry in read_log(self.path) if entry['step'] <= start]
            kept = [json.dumps(entry) + '\n' for entry in entries]
        write_atomic(self.path, ''.join(kept).encode())
        if project and tracker != 'none':
            self.tracker = _import_tracker(tracker)
            own = getattr(self.tracker, 'Error', OSError)
            self.faults = (OSError, RuntimeError, ValueError, own)
            name = os.path.basename(folder)
            told: dict[str, Any] = dict(project=project, resume='allow', config=dict(config))
            told['group'] = array_job or name
            if tracker == 'wandb':
                told |= dict(id=run_id, dir=folder, name=f'{name}-{job}' if job else name)
            else:
                told |= dict(name=name)
            try:
                self.run = self.tracker.init(**told)
            except self.faults as fault:
                said = ' '.join(str(fault).split())
                raise ValueError(
                    f'wandb_project={project}: {tracker} does not take the run: {said} To go on '
                    'without an account: WANDB_MODE=offline, or --tracker=trackio'
                ) from None
            if tracker == 'wandb':  # W&B's own counter never goes back.
                self.run.define_metric('*', step_metric='step')
        self.run_id = self.run.id if self.run else None

    def write(self, line: Mapping[str, Any], films: Sequence[str] = ()) -> None:
        """Append a line; the films go to W&B beside it."""
        line = {k: v for k, v in line.items() if v == v}  # JSON has no nan, the mean of nothing
        with open(self.path, 'a', encoding='utf-8') as f:
            f.write(json.dumps(line) + '\n')
        if self.run:
            try:  # a tracker is for looking at: it never costs the run
                if films:
                    line['films'] = [self.tracker.Video(str(film)) for film in films]
                if self.tracker.__name__ == 'trackio':
                    self.run.log({k: v for k, v in line.items() if k != 'step'}, step=line['step'])
                else:
                    self.run.log(line)
            except self.faults as fault:
                print(f'not at the tracker, but in {self.path}: {fault}', flush=True)

    def close(self, weights: str = '') -> None:
        """End the run at the tracker.

        Args:
            weights: A folder whose files go there as the next version of the run's artifact.
        """
        if self.run and weights:
            artifact = self.tracker.Artifact(f'weights-{self.run_id}', 'model')
            for entry in os.scandir(weights):
                if entry.name.endswith(('.safetensors', 'meta.json')):
                    artifact.add_file(entry.path)
            self.run.log_artifact(artifact)
        if self.run:
            self.run.finish()


def memory_used_gb(device: str) -> float:
    """Return the most memory that this process has had so far, on its device."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if platform.system() == 'Darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def mapped_gb(device: str) -> float:
    """Return how much of this process's main memory now holds pages of files, as of episodes.

    The kernel takes those back when others need memory. On a GPU it is 0: `memory_used_gb` is of
    the GPU there.
    """
    if torch.device(device).type == 'cuda' or not os.path.exists('/proc/self/statm'):
        return 0.0
    with open('/proc/self/statm', encoding='ascii') as f:
        shared = int(f.read().split()[2])
    return shared * resource.getpagesize() / 1e9


def peak_flops(device: str, dtype: torch.dtype, size: int = 1024, seconds: float = 0.2) -> float:
    """Return the FLOP/s that one process reaches at most in products of `dtype`.

    For bfloat16 on a known GPU that is its data sheet's; on a CPU and on unknown GPUs products of
    size x size matrices are timed for so many seconds.
    """
    if torch.device(device).type == 'cuda' and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        known = [tflops for part, tflops in PEAK_TFLOPS.items() if part in name]
        if known:
            return known[0] * 1e12
    a = torch.randn(size, size, device=device).to(dtype)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def plot_losses(log_path: str, out: str) -> str:
    """Draw training and held-out curves of a log.jsonl as PNG.

    Returns:
        Where they are, in words; or why there are none, which costs a run nothing.
    """
    try:
        _plot_losses(log_path, out)
    except (ImportError, OSError, RuntimeError, ValueError) as fault:
        return f'no curves: {fault}'
    return f'curves: {out}'


def _plot_losses(log_path: str, out: str) -> None:
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    entries = read_log(log_path)
    error = {'joint_rad': 'error (rad)'}
    if any('val_position_mm' in entry for entry in entries):
        error = {'position_mm': 'error (mm)'}  # a robot with tool poses
    panels = {'flow': 'flow loss', 'text': 'text loss', **error, 'lr': 'AdamW rate'}
    if all('flow' not in entry for entry in entries):
        panels = {'scene': 'scene loss', 'lr': 'AdamW rate'}
    figure, axes = plt.subplots(1, len(panels), figsize=(18, 4), constrained_layout=True)
    for axis, (name, title) in zip(axes, panels.items()):
        for key, label in ((name, 'training'), (f'val_{name}', 'held out')):
            points = [(e['step'], e[key]) for e in entries if key in e]
            if points:
                axis.plot(*zip(*points), label=label, marker='o' if len(points) <= 20 else None)
        drawn = [y for line in axis.lines for y in line.get_ydata() if y > 0]
        # Within a decade a logarithmic axis has hardly a number on it.
        if name != 'lr' and drawn and max(drawn) > 10 * min(drawn):
            axis.set_yscale('log')
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(title=title, xlabel='step')
        if axis.lines:  # nothing may be held out
            axis.legend()
    figure.savefig(out, dpi=80)
    plt.close(figure)
