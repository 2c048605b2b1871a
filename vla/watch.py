"""What a run says of itself: log.jsonl and W&B, memory and the share of the peak that it uses,
pictures.
"""

import json
import os
import platform
import resource
import time

import numpy as np
import torch

from episode import write_atomic

# dense bfloat16 products in TFLOP/s, as in the makers' data sheets; the first name that fits counts
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


class Log:
    """One JSON object per line in <folder>/log.jsonl; the same to W&B where a project is named,
    under the id of the run that is gone on with. Lines after step `start` are of steps to be taken
    again: they go.
    """

    def __init__(self, folder, start, project='', run_id=None, **about):
        os.makedirs(folder, exist_ok=True)
        self.path = f'{folder}/log.jsonl'
        self.run = None
        kept = []
        if start and os.path.exists(self.path):
            with open(self.path) as f:
                kept = [
                    line for line in f if line.endswith('\n') and json.loads(line)['step'] <= start
                ]
        write_atomic(self.path, ''.join(kept).encode())
        if project:
            import wandb

            self.run = wandb.init(project=project, id=run_id, resume='allow', dir=folder, **about)
            self.run.define_metric('*', step_metric='step')  # W&B's own counter never goes back
        self.run_id = self.run.id if self.run else None

    def write(self, line, films=()):
        line = {
            k: v for k, v in line.items() if v == v
        }  # a mean of nothing is nan, which JSON has not
        with open(self.path, 'a') as f:
            f.write(json.dumps(line) + '\n')
        if self.run:
            import wandb

            self.run.log(
                line | ({'films': [wandb.Video(str(film)) for film in films]} if films else {})
            )

    def close(self, weights=''):
        """weights: a folder whose files go to W&B as the next version of the run's artifact."""
        if self.run and weights:
            import wandb

            artifact = wandb.Artifact(f'weights-{self.run_id}', 'model')
            for entry in os.scandir(weights):
                if entry.name.endswith(('.safetensors', 'meta.json')):
                    artifact.add_file(entry.path)
            self.run.log_artifact(artifact)
        if self.run:
            self.run.finish()


def memory_used_gb(device):
    """The most that this process has had so far, on its device."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if platform.system() == 'Darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def peak_flops(device, dtype, size=1024, seconds=0.2):
    """FLOP/s that one process reaches at most in products of `dtype`: a GPU's data sheet, for
    bfloat16; measured on a CPU and on unknown GPUs.
    """
    if torch.device(device).type == 'cuda' and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        known = [tflops for part, tflops in PEAK_TFLOPS.items() if part in name]
        if known:
            return known[0] * 1e12
    a = torch.randn(size, size, device=device).to(dtype)
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def odd_slots(processor, dataset, far):
    """What Processor.fit says of the data it is made of, for data that a normaliser comes to later:
    {slot: what is wrong with it}, with those that reach more than `far` of its spreads.
    """
    table = type(processor).from_dict(processor.to_dict() | {'stats': None}).fit(dataset)
    windows = dataset.windows[:: len(dataset.windows) // 200_000 + 1]
    reach = 0
    for rows in np.array_split(windows, len(windows) // 65_536 + 1):
        states = dataset.read('state', rows)
        chunks = processor.normalise_actions(dataset.chunk(rows), dataset.commands(rows, states))
        chunks *= dataset.chunk_mask(rows)[..., None]  # (B, H, A)
        state = np.abs(processor.normalise_state(states)).max(0)
        action = np.abs(chunks).max((0, 1))
        reach = np.maximum(
            reach,
            np.concatenate(
                [state[: len(processor.state_slots)], action[: len(processor.action_slots)]]
            ),
        )
    names = [*processor.state_slots, *(f'action {name}' for name in processor.action_slots)]
    return table | {
        name: f'reaches {r:.0f} spreads of the normaliser that is taken over'
        for name, r in zip(names, reach)
        if r > far
    }


def plot_losses(log_path, out):
    """Training and held-out curves of a log.jsonl as PNG."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    with open(log_path) as f:
        entries = [json.loads(line) for line in f]
    # a robot without tool poses has errors of joints
    tools = any('val_position_mm' in entry for entry in entries)
    panels = {
        'flow': 'flow loss',
        'text': 'text loss',
        'position_mm' if tools else 'joint_rad': 'error (mm)' if tools else 'error (rad)',
        'lr': 'AdamW rate',
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(18, 4), constrained_layout=True)
    for axis, (name, title) in zip(axes, panels.items()):
        for key, label in ((name, 'training'), (f'val_{name}', 'held out')):
            points = [(e['step'], e[key]) for e in entries if key in e]
            if points:
                axis.plot(*zip(*points), label=label)
        if name != 'lr':
            axis.set_yscale('log')
        axis.set(title=title, xlabel='step')
        if axis.lines:  # nothing may be held out
            axis.legend()
    figure.savefig(out, dpi=80)
    plt.close(figure)


def draw_batch(batch, texts, out, count=6):
    """The first samples of a batch as the model gets them: pictures (a column per camera), text,
    the chunk of actions over its rows. batch: after data.augment; texts: one per sample.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    images = batch['images'].float().clamp(0, 255).byte().cpu()
    actions = batch['actions'].float().cpu()
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
        left.imshow(torch.cat(list(images[i]), 1))
        left.set(xticks=[], yticks=[])
        left.set_title(texts[i], fontsize=8, wrap=True)
        right.plot(actions[i])
        right.set(
            xlabel='row',
            ylabel='normalised',
            title=f'{int(batch["action_mask"][i].sum())} rows count',
        )
    figure.savefig(out, dpi=70)
    plt.close(figure)
