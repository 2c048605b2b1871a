"""What a checkpoint says on recorded frames: text and action chunk beside the recorded ones, in mm and rad.

python sample.py --ckpt=out/demo                                # one held-out frame -> out/demo/sample.png
python sample.py --ckpt=out/demo --episode=episodes/demo/place_0000003.safetensors --step=20
python sample.py --ckpt=out/demo --samples=20                   # spread over the noise the flow starts from
python sample.py --ckpt=out/demo --count=200                    # mean error over held-out windows
Everything runs on one CPU core or one GPU in seconds; no simulation is involved.
"""
from pathlib import Path
import matplotlib
matplotlib.use('Agg')  # pictures go to files
import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm
import data
import model
# -----------------------------------------------------------------------------
ckpt = 'out/demo'    # folder written by train.py
# which frames
episode = ''         # one episode file; '': a held-out window of `episodes`
step = 0             # row of that episode
episodes = ''        # folder; '': the one the checkpoint was trained on
count = 0            # held-out windows to average the error over
seed = 0             # which held-out windows, which noise
# how to ask
samples = 0          # chunks drawn from random noise, beside the one that starts from zero noise
steps = 5            # denoising steps
read_text = True     # act having read the text that was decoded, as sim_rollout.py --read_text=True does
instruction = None   # instead of the recorded one; --instruction= blanks it
device = None        # 'cpu', 'cuda'; None: cuda where there is one
dtype = 'float32'    # or 'bfloat16', as in sim_rollout.py
# output
out = ''             # picture; '': <ckpt>/sample.png
exec(open('configurator.py').read())  # overrides from a config file or the command line
# -----------------------------------------------------------------------------
ARMS = ('left', 'right')
SHOWN = {'m': ('mm', 1e3), 'rad': ('rad', 1.0)}  # unit in the file -> unit printed, factor
XYZ = np.array([[data.TOOL_ACTION_NAMES.index(f'{arm}/tool_{a}') for a in 'xyz'] for arm in ARMS])  # (2, 3)
GRIPPER = [data.TOOL_ACTION_NAMES.index(f'{arm}/gripper') for arm in ARMS]


def ask(net, autocast, processor, observations, steps, read_text, noise=None):
    """Observations of B frames -> absolute chunks (B, H, 15), decoded texts (B)."""
    device = next(net.parameters()).device
    batch = {k: v.to(device) for k, v in processor.encode(observations).items()}
    with torch.inference_mode(), autocast:
        if read_text:
            chunk, tokens = net.plan_and_act(batch, steps=steps, noise=noise)             # (B, H, A)
        else:
            chunk, tokens = net.act(batch, steps=steps, noise=noise), net.generate(batch)
    commands = np.stack([obs['tool_command'] for obs in observations])  # (B, 15)
    chunk = processor.decode_actions(chunk.float().cpu().numpy(), commands)
    return chunk, [processor.decode_text(t) for t in tokens]


def mean_error(predicted, recorded, mask):
    """(B, H, 15) twice, (B, H) -> mean |error| per slot (15,), mean tool distance (H, 2 arms) in m."""
    weight = mask / np.maximum(mask.sum(0), 1)                                        # (B, H)
    distance = np.linalg.norm((predicted - recorded)[..., XYZ], axis=-1)              # (B, H, 2)
    per_slot = (np.abs(predicted - recorded) * mask[..., None]).sum((0, 1)) / max(mask.sum(), 1)
    return per_slot, (distance * weight[..., None]).sum(0)


def print_slots(processor, columns):
    """One line per action slot; columns {title: (15,) values in the slot's unit}."""
    print(f'{"slot":18}' + ''.join(f'{title:>16}' for title in columns))
    for i in processor.action_index:
        unit, factor = SHOWN[data.TOOL_ACTION[i].unit]
        numbers = ''.join(f'{values[i] * factor:16.3f}' for values in columns.values())
        print(f'{data.TOOL_ACTION[i].name:18}{numbers} {unit}')


def as_decoded(processor, text):
    """A recorded text the way the tokenizer gives it back."""
    return processor.decode_text(processor.prompt_ids('', text)[1])


def draw(obs, recorded, predicted, spread, mask, title, path):
    """Camera images above; below, per arm the way of the tool from above, then heights and grippers."""
    pictures = [(name[6:], image) for name, image in obs.items() if name.startswith('image/')]
    fig = plt.figure(figsize=(15, 8), layout='constrained')
    top, bottom = fig.subfigures(2, 1, height_ratios=(1, 1.15))
    for axis, (name, image) in zip(top.subplots(1, len(pictures), squeeze=False)[0], pictures):
        axis.imshow(image)
        axis.set_title(name)
        axis.axis('off')
    axes, rows = bottom.subplots(1, 4), np.arange(len(recorded))
    for arm in range(2):
        x, y, z = XYZ[arm]
        colour = ('tab:blue', 'tab:red')[arm]
        for chunk in spread:
            axes[arm].plot(-chunk[:, y] * 1e3, chunk[:, x] * 1e3, color='0.8', lw=0.8)
            axes[2].plot(rows, chunk[:, z] * 1e3, color='0.8', lw=0.8)
        for chunk, style, label in ((recorded, '-o', 'recorded'), (predicted, '--x', 'predicted')):
            axes[arm].plot(-chunk[:, y] * 1e3, chunk[:, x] * 1e3, style, color=colour, label=label)
            axes[2].plot(rows, chunk[:, z] * 1e3, style, color=colour, label=f'{ARMS[arm]} {label}')
            axes[3].plot(rows, chunk[:, GRIPPER[arm]] * 1e3, style, color=colour)
        here = np.array([-obs['tool_command'][y], obs['tool_command'][x]]) * 1e3
        axes[arm].plot(*here, 'k*', ms=12, label='command in force')
        axes[arm].plot(here[0] + [-10, 10], here[1] + [-10, 10], alpha=0)  # never shows less than 20 mm
        axes[arm].set(title=f'{ARMS[arm]} tool from above', xlabel='to the right, mm', ylabel='forward, mm')
        axes[arm].set_aspect('equal', adjustable='datalim')
        axes[arm].legend(fontsize=8)
    if not mask.all():
        for axis in axes[2:]:
            axis.axvspan(np.argmin(mask) - 0.5, len(mask) - 0.5, color='0.93', label='after a kick')
    axes[2].set(title='tool height', xlabel='row of the chunk', ylabel='mm')
    axes[2].legend(fontsize=8)
    axes[3].set(title='gripper opening', xlabel='row of the chunk', ylabel='mm')
    fig.suptitle(title)
    fig.savefig(path, dpi=80)
    plt.close(fig)


if __name__ == '__main__':
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    net, meta = model.VLA.load(ckpt)
    net, autocast = net.to(device).eval(), model.autocast_for(device, dtype)
    processor = data.Processor.from_dict(meta['processor'])
    H, A = processor.horizon, len(processor.action_slots)
    rng, noise_rng = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    if episode:
        dataset = data.Dataset(episode, processor)
        if not 0 <= step < len(dataset.time):
            raise SystemExit(f'step={step}: {episode} has rows 0 to {len(dataset.time) - 1}')
        row = step
    else:
        folder, fraction = episodes or meta['settings']['episodes'], meta['settings']['val_fraction']
        dataset = data.Dataset(folder, processor, split='val', val_fraction=fraction)
        row = int(rng.choice(dataset.windows))
    # ---- one frame
    at = int(row - dataset.start[dataset.episode[row]])
    obs, mask = dataset.row(row), dataset.chunk_mask(np.array([row]))[0]              # mask (H,)
    if instruction is not None:
        obs['instruction'] = instruction
    recorded = dataset.chunk(np.array([row]))[0]                                      # (H, 15)
    (predicted,), (text,) = ask(net, autocast, processor, [obs], steps, read_text)
    print(f'{dataset.paths[dataset.episode[row]]} row {at}, {ckpt} at step {meta["step"]}')
    print(f'instruction        {obs["instruction"]}')
    print(f'subtask recorded   {as_decoded(processor, dataset.subtask(row))}')
    print(f'subtask decoded    {text}')
    error = np.abs(predicted - recorded)[mask]                                        # (valid rows, 15)
    columns = {'command': obs['tool_command'], 'recorded row 0': recorded[0], 'predicted row 0': predicted[0]}
    print_slots(processor, columns | {'mean |error|': error.mean(0), 'max |error|': error.max(0)})
    spread = np.empty((0, H, 15))
    if samples:
        noise = torch.randn(samples, H, A, generator=noise_rng).to(device)
        spread, texts = ask(net, autocast, processor, [obs] * samples, steps, read_text, noise)
        print(f'\n{samples} chunks from random noise: standard deviation in the first and in the last row')
        print_slots(processor, {'row 0': spread[:, 0].std(0), f'row {H - 1}': spread[:, -1].std(0)})
    # ---- many frames
    if count:
        windows = rng.choice(dataset.windows, min(count, len(dataset.windows)), replace=False)
        chunks, hits = [], 0
        for start in tqdm(range(0, len(windows), 32), disable=None):
            part = windows[start:start + 32]
            observations = [dataset.row(r) for r in part]
            chunk, texts = ask(net, autocast, processor, observations, steps, read_text)
            chunks.append(chunk)
            hits += sum(t == as_decoded(processor, dataset.subtask(r)) for t, r in zip(texts, part))
        truth, masks = dataset.chunk(windows), dataset.chunk_mask(windows)
        commands = np.stack([dataset.row(r)['tool_command'] for r in windows])
        slot_error, tool_error = mean_error(np.concatenate(chunks), truth, masks)
        hold_error, hold_tool = mean_error(np.repeat(commands[:, None], H, 1), truth, masks)
        what = 'of this episode' if episode else 'held-out'
        print(f'\n{len(windows)} {what} windows: mean |error|; text all right in {hits / len(windows):.0%}')
        print_slots(processor, {'predicted': slot_error, 'holding still': hold_error})
        for arm in range(2):
            print(f'{ARMS[arm]} tool, mm from the label in rows 0, 1, ...: '
                  + ' '.join(f'{x * 1e3:.1f}' for x in tool_error[:, arm])
                  + '   holding still: ' + ' '.join(f'{x * 1e3:.1f}' for x in hold_tool[:, arm]))
    # ---- picture
    path = Path(out or Path(ckpt) / 'sample.png')
    title = f'{obs["instruction"]}\nrecorded: {dataset.subtask(row)}   decoded: {text}'
    draw(obs, recorded, predicted, spread, mask, title, path)
    print(f'picture: {path}\nnext: python sim_rollout.py --ckpt={ckpt} --video=4')
