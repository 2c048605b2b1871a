"""What a checkpoint says on recorded frames: text and action chunk beside the recorded ones, in mm
and rad.

python sample.py --ckpt=out/demo                                # one held-out frame ->
out/demo/sample.png python sample.py --ckpt=out/demo
--episode=episodes/demo/place_0000003.safetensors --step=20 python sample.py --ckpt=out/demo
--samples=20                   # spread over the noise the flow starts from python sample.py
--ckpt=out/demo --count=200                    # mean error over held-out windows python sample.py
--ckpt=out/demo --ask="where is the red brick ?"       # an answer about the frame python sample.py
--ckpt=out/demo --eval_qa=1000                 # right answers by kind of question, held out python
sample.py --ckpt=out/Qwen2.5-VL-3B-Instruct --picture=docs/place.png --ask="What is on the table?"
Everything runs on one CPU core or one GPU in seconds; no simulation is involved.
"""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')  # pictures go to files
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import data
import model
from episode import SPINE, TOOL_ACTION, TOOL_ACTION_NAMES, episode_paths, read_episode
from vla import layers, pretrained, questions
from vla.processor import Processor

# -----------------------------------------------------------------------------
ckpt = 'out/demo'  # folder written by train.py
# which frames
episode = ''  # one episode file; '': a held-out window of `episodes`
step = 0  # row of that episode
episodes = ''  # folder; '': the one the checkpoint was trained on
count = 0  # held-out windows to average the error over
seed = 0  # which held-out windows, which noise
eval_qa = 0  # questions about held-out frames to score
# how to ask
ask = ''  # a question; a folder of Qwen2.5-VL or EO-1 takes nothing else
picture = ''  # file to ask about, with such a folder; '': the cameras of the frame
max_words = 64  # tokens of an answer
temperature = 0.0  # of an answer: 0 takes the likeliest word every time
top_p = 1.0  # share of the probability that words are drawn from
samples = 0  # chunks drawn from random noise, beside the one that starts from zero noise
steps = 5  # denoising steps
read_text = (
    True  # act having read the text that was decoded, as sim_rollout.py --read_text=True does
)
instruction = None  # instead of the recorded one; --instruction= blanks it
device = None  # 'cpu', 'cuda'; None: cuda where there is one
dtype = 'float32'  # or 'bfloat16', as in sim_rollout.py
# output
out = ''  # picture; '': <ckpt>/sample.png
exec(open('configurator.py').read())  # overrides from a config file or the command line
# -----------------------------------------------------------------------------
ARMS = ('left', 'right')
COLOURS = ('tab:blue', 'tab:red')
SHOWN = {'m': ('mm', 1e3), 'rad': ('rad', 1.0)}  # unit in the file -> unit printed, factor
XYZ = np.array(
    [[TOOL_ACTION_NAMES.index(f'{arm}/tool_{a}') for a in 'xyz'] for arm in ARMS]
)  # (2, 3)
GRIPPER = [TOOL_ACTION_NAMES.index(f'{arm}/gripper') for arm in ARMS]


def predict(net, autocast, processor, observations, steps, read_text, noise=None):
    """Observations of B frames -> absolute chunks (B, H, 15), decoded texts (B)."""
    device = next(net.parameters()).device
    batch = {k: v.to(device) for k, v in processor.encode(observations).items()}
    with torch.inference_mode(), autocast:
        if read_text:
            chunk, tokens = net.plan_and_act(batch, steps=steps, noise=noise)  # (B, H, A)
        else:
            chunk = net.act(batch, steps=steps, noise=noise)
            tokens = net.generate(batch)
    commands = np.stack([obs['tool_command'] for obs in observations])  # (B, 15)
    chunk = processor.decode_actions(chunk.float().cpu().numpy(), commands)
    return chunk, [processor.decode_text(t) for t in tokens]


def answer(net, autocast, processor, observations, questions, blind=False, **how):
    """Answers (B) to questions about B frames. blind: the pictures are grey and the state is its
    mean.
    """
    device = next(net.parameters()).device
    batch = {
        k: v.to(device) for k, v in processor.encode(observations, questions=questions).items()
    }
    if blind:
        batch |= dict(
            images=torch.full_like(batch['images'], 128), state=torch.zeros_like(batch['state'])
        )
    with torch.inference_mode(), autocast:
        tokens = net.generate(batch, stop=[processor.token_id['<|im_end|>']], **how)
    return [processor.decode_text(t) for t in tokens]


def answer_published(folder, pictures, question, device, dtype, max_words, **how):
    """What a folder of Qwen2.5-VL or EO-1 answers to a question about pictures, (h, w, 3) uint8
    each.
    """
    net = model.VLA.from_pretrained(folder, getattr(torch, dtype)).to(device)
    chat = pretrained.Chat(folder)
    batch = chat.encode(pictures, question)
    batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
    with torch.inference_mode():
        tokens = net.generate(batch, max_words, stop=[chat.end], **how)[0]
    return chat.tokenizer.decode(tokens).strip()


def project(points, pose, fovy_deg, size):
    """Points (..., 3) m in the world frame -> (..., 2) pixels, right and down, in a square picture
    of a camera whose pose is position (3,) m and rotation (9,): it looks along its -z, x to the
    right, y up.
    """
    position = np.array(pose[:3])
    rotation = np.reshape(pose[3:], (3, 3))
    x, y, z = np.moveaxis((np.asarray(points) - position) @ rotation, -1, 0)
    focal = size / 2 / np.tan(np.radians(fovy_deg) / 2)
    return (
        size / 2 + focal * np.stack([x / -z, y / z], -1) - 0.5
    )  # centres of pixels are whole numbers


def score_questions(net, autocast, processor, dataset, rows, known, rng):
    """Answers to one question of every kind about each row -> table of questions.scores. known:
    questions and answers of other episodes. The best that can be done without eyes is the majority
    answer to the very question; `blind` is this model with its eyes shut.
    """
    asked = [
        (row, *pair)
        for row in rows
        for pair in one_of_each_kind(dataset.questions_at(row, rng), rng)
    ]
    said = {'model': [], 'blind': []}
    for start in tqdm(range(0, len(asked), 64), disable=None):
        part = asked[start : start + 64]
        for name, answers in said.items():
            answers += answer(
                net,
                autocast,
                processor,
                [dataset.row(row) for row, *_ in part],
                [question for _, _, question, _ in part],
                blind=name == 'blind',
            )
    asked, known = (
        [(kind, question, as_decoded(processor, right)) for *_, kind, question, right in part]
        for part in (asked, known)
    )
    return questions.scores(asked, said, known)


def one_of_each_kind(pairs, rng):
    kinds = sorted({kind for kind, *_ in pairs})
    same = [[pair for pair in pairs if pair[0] == kind] for kind in kinds]
    return [group[rng.integers(len(group))] for group in same]


def mean_error(predicted, recorded, mask):
    """(B, H, 15) twice, (B, H) -> mean |error| per slot (15,), mean tool distance (H, 2 arms) in
    m.
    """
    weight = mask / np.maximum(mask.sum(0), 1)  # (B, H)
    distance = np.linalg.norm((predicted - recorded)[..., XYZ], axis=-1)  # (B, H, 2)
    per_slot = (np.abs(predicted - recorded) * mask[..., None]).sum((0, 1)) / max(mask.sum(), 1)
    return per_slot, (distance * weight[..., None]).sum(0)


def print_slots(processor, columns):
    """One line per action slot; columns {title: (15,) values in the slot's unit}."""
    print(f'{"slot":18}' + ''.join(f'{title:>16}' for title in columns))
    for i in processor.action_index:
        unit, factor = SHOWN[TOOL_ACTION[i].unit]
        numbers = ''.join(f'{values[i] * factor:16.3f}' for values in columns.values())
        print(f'{TOOL_ACTION[i].name:18}{numbers} {unit}')


def as_decoded(processor, text):
    """A recorded text the way the tokenizer gives it back."""
    return processor.decode_text(processor.prompt_ids('', text)[1])


def draw_paths(axis, chunks, view, size):
    """Ways of the tools in a camera's picture. chunks: [(chunk (H, 15), style)]; view: (pose,
    fovy_deg).
    """
    for chunk, style in chunks:
        # the torso's frame turns with the spine, the camera does not
        cos = np.cos(chunk[:, SPINE])
        sin = np.sin(chunk[:, SPINE])
        for arm, colour in enumerate(COLOURS):
            x, y, z = chunk[:, XYZ[arm]].T
            points = np.stack([cos * x - sin * y, sin * x + cos * y, z], -1)  # (H, 3)
            axis.plot(*project(points, *view, size).T, style, color=colour, ms=3, lw=1)
    axis.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))


def draw(obs, recorded, predicted, spread, mask, views, title, path):
    """Camera images above, with the ways of the tools in those that stand still (views: {camera:
    (pose, fovy_deg)}); below, per arm the way of the tool from above, then heights and grippers.
    """
    pictures = [(name[6:], image) for name, image in obs.items() if name.startswith('image/')]
    fig = plt.figure(figsize=(15, 8), layout='constrained')
    top, bottom = fig.subfigures(2, 1, height_ratios=(1, 1.15))
    for axis, (name, image) in zip(top.subplots(1, len(pictures), squeeze=False)[0], pictures):
        axis.imshow(image)
        axis.set_title(name)
        if name in views:
            chunks = [(chunk, '-') for chunk in spread] + [(recorded, '-o'), (predicted, '--x')]
            draw_paths(axis, chunks, views[name], len(image))
        axis.axis('off')
    axes = bottom.subplots(1, 4)
    rows = np.arange(len(recorded))
    for arm in range(2):
        x, y, z = XYZ[arm]
        colour = COLOURS[arm]
        for chunk in spread:
            axes[arm].plot(-chunk[:, y] * 1e3, chunk[:, x] * 1e3, color='0.8', lw=0.8)
            axes[2].plot(rows, chunk[:, z] * 1e3, color='0.8', lw=0.8)
        for chunk, style, label in ((recorded, '-o', 'recorded'), (predicted, '--x', 'predicted')):
            axes[arm].plot(-chunk[:, y] * 1e3, chunk[:, x] * 1e3, style, color=colour, label=label)
            axes[2].plot(rows, chunk[:, z] * 1e3, style, color=colour, label=f'{ARMS[arm]} {label}')
            axes[3].plot(rows, chunk[:, GRIPPER[arm]] * 1e3, style, color=colour)
        here = np.array([-obs['tool_command'][y], obs['tool_command'][x]]) * 1e3
        axes[arm].plot(*here, 'k*', ms=12, label='command in force')
        axes[arm].plot(
            here[0] + [-10, 10], here[1] + [-10, 10], alpha=0
        )  # never shows less than 20 mm
        axes[arm].set(
            title=f'{ARMS[arm]} tool from above', xlabel='to the right, mm', ylabel='forward, mm'
        )
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
    how = dict(
        temperature=temperature, top_p=top_p, generator=torch.Generator(device).manual_seed(seed)
    )
    if not (
        Path(ckpt) / 'meta.json'
    ).exists():  # of Qwen2.5-VL or EO-1: it has no normaliser for actions
        if not ask:
            raise SystemExit(f'{ckpt} is not written by train.py: give it a question, --ask="..."')
        if picture:
            pictures = [np.asarray(Image.open(picture).convert('RGB'))]
        else:
            arrays, header = read_episode(episode_paths(episode or episodes or 'episodes/demo')[0])
            pictures = [arrays[f'image/{camera}'][step] for camera in header['cameras']]
        print(answer_published(ckpt, pictures, ask, device, dtype, max_words, **how))
        raise SystemExit(0)
    net, meta = model.VLA.load(ckpt)
    net = net.to(device).eval()
    autocast = layers.autocast_for(device, dtype)
    processor = Processor.from_dict(meta['processor'])
    H = processor.horizon
    A = processor.action_dim
    rng = np.random.default_rng(seed)
    noise_rng = torch.Generator().manual_seed(seed)
    if episode:
        dataset = train_data = data.Dataset(episode, processor)
        if not 0 <= step < len(dataset.last):
            raise SystemExit(f'step={step}: {episode} has rows 0 to {len(dataset.last) - 1}')
        row = step
    else:
        folder = episodes or meta['settings']['episodes']
        fraction = meta['settings']['val_fraction']
        dataset = data.Dataset(folder, processor, split='val', val_fraction=fraction)
        row = int(rng.choice(dataset.windows))
        if eval_qa:
            train_data = data.Dataset(folder, processor, split='train', val_fraction=fraction)
    # ---- one frame
    at = int(row - dataset.start[dataset.episode[row]])
    # mask (H,)
    obs = dataset.row(row)
    mask = dataset.chunk_mask(np.array([row]))[0]
    if instruction is not None:
        obs['instruction'] = instruction
    recorded = dataset.chunk(np.array([row]))[0]  # (H, 15)
    (predicted,), (text,) = predict(net, autocast, processor, [obs], steps, read_text)
    print(f'{dataset.paths[dataset.episode[row]]} row {at}, {ckpt} at step {meta["step"]}')
    print(f'instruction        {obs["instruction"]}')
    print(f'subtask recorded   {as_decoded(processor, dataset.subtask(row))}')
    print(f'subtask decoded    {text}')
    error = np.abs(predicted - recorded)[mask]  # (valid rows, 15)
    columns = {
        'command': obs['tool_command'],
        'recorded row 0': recorded[0],
        'predicted row 0': predicted[0],
    }
    print_slots(processor, columns | {'mean |error|': error.mean(0), 'max |error|': error.max(0)})
    spread = np.empty((0, H, 15))
    if samples:
        noise = torch.randn(samples, H, A, generator=noise_rng).to(device)
        spread, texts = predict(net, autocast, processor, [obs] * samples, steps, read_text, noise)
        print(
            f'\n{samples} chunks from random noise: standard deviation in the first and in the last row'
        )
        print_slots(processor, {'row 0': spread[:, 0].std(0), f'row {H - 1}': spread[:, -1].std(0)})
    if ask:
        said = answer(net, autocast, processor, [obs], [ask], max_new_tokens=max_words, **how)[0]
        print(f'\nasked              {ask}\nanswered           {said}')
    # ---- many frames
    if eval_qa:
        at_rows = rng.choice(dataset.windows, eval_qa)
        known = rng.choice(train_data.windows, 2_000)
        known = [pair for r in known for pair in train_data.questions_at(r, rng)]
        table = score_questions(net, autocast, processor, dataset, at_rows, known, rng)
        columns = ('n', 'model', 'blind', 'majority', 'majority per question')
        print(f'\n{"right answers":14}' + ''.join(f'{name:>23}' for name in columns))
        for kind, line in table.items():
            print(
                f'{kind:14}{line["n"]:23d}' + ''.join(f'{line[name]:23.1%}' for name in columns[1:])
            )
    if count:
        windows = rng.choice(dataset.windows, min(count, len(dataset.windows)), replace=False)
        chunks = []
        hits = 0
        for start in tqdm(range(0, len(windows), 32), disable=None):
            part = windows[start : start + 32]
            observations = [dataset.row(r) for r in part]
            chunk, texts = predict(net, autocast, processor, observations, steps, read_text)
            chunks.append(chunk)
            hits += sum(t == as_decoded(processor, dataset.subtask(r)) for t, r in zip(texts, part))
        truth = dataset.chunk(windows)
        masks = dataset.chunk_mask(windows)
        commands = np.stack([dataset.row(r)['tool_command'] for r in windows])
        slot_error, tool_error = mean_error(np.concatenate(chunks), truth, masks)
        hold_error, hold_tool = mean_error(np.repeat(commands[:, None], H, 1), truth, masks)
        what = 'of this episode' if episode else 'held-out'
        print(
            f'\n{len(windows)} {what} windows: mean |error|; text all right in {hits / len(windows):.0%}'
        )
        print_slots(processor, {'predicted': slot_error, 'holding still': hold_error})
        for arm in range(2):
            print(
                f'{ARMS[arm]} tool, mm from the label in rows 0, 1, ...: '
                + ' '.join(f'{x * 1e3:.1f}' for x in tool_error[:, arm])
                + '   holding still: '
                + ' '.join(f'{x * 1e3:.1f}' for x in hold_tool[:, arm])
            )
    # ---- picture
    path = Path(out or Path(ckpt) / 'sample.png')
    title = f'{obs["instruction"]}\nrecorded: {dataset.subtask(row)}   decoded: {text}'
    world = dataset.header(dataset.episode[row])['world']
    poses = world['camera_pose'] if 'camera_pose' in world else {}  # older files do not say
    views = {name: (pose, world['camera_fovy_deg'][name]) for name, pose in poses.items()}
    draw(obs, recorded, predicted, spread, mask, views, title, path)
    print(f'picture: {path}\nnext: python sim_rollout.py --ckpt={ckpt} --video=4')
