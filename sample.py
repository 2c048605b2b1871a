"""What a checkpoint says on recorded frames: text and action chunk beside the recorded ones.

python sample.py --ckpt=out/demo                      # one held-out frame -> out/demo/sample.png
python sample.py --ckpt=out/demo --episode=episodes/demo/place_0000003.safetensors --step=20
python sample.py --ckpt=out/demo --samples=20         # spread over the noise the flow starts from
python sample.py --ckpt=out/demo --count=200          # mean error over held-out windows
python sample.py --ckpt=out/demo --ask="where is the red brick ?"       # an answer about the frame
python sample.py --ckpt=out/demo --eval_qa=1000       # right answers by kind of question, held out
python sample.py --ckpt=out/demo --export=out/demo/chunk.onnx        # what acts, as an ONNX file
python sample.py --ckpt=out/Qwen2.5-VL-3B-Instruct --picture=docs/place.png --ask="What is there?"

It acts as sim_rollout.py does: one denoising step, no text read, grippers rounded. Everything runs
on one CPU core or one GPU in seconds; no simulation is involved.
"""

import os

os.environ['MPLBACKEND'] = 'Agg'  # pictures go to files, whatever a notebook has set
import shlex
import signal
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import data
import hub
import model
from episode import STATE_NAMES, episode_paths, pose_columns, read_episode
from vla import layers, policy, pretrained, questions
from vla.folder import check_taught, holds_no_model, read_meta
from vla.processor import Processor

# -----------------------------------------------------------------------------
ckpt = 'out/demo'  # folder written by train.py, or user/name[@revision] of the Hugging Face Hub
# The frames that it looks at.
episode = ''  # one episode file; '': a held-out window of `episodes`
step = 0  # 0..: row of that episode
episodes = ''  # folder, or of the Hub; '': the one the checkpoint was trained on
count = 0  # 0..: held-out windows to average the error over
seed = 0  # 0..4_294_967_295: which held-out windows, which noise
eval_qa = 0  # 0..: questions about held-out frames to score
# how to ask
ask = ''  # a question; a folder of Qwen2.5-VL or EO-1 takes nothing else
picture = ''  # file to ask about, with such a folder; '': the cameras of the frame
max_words = 64  # 1..100_000: tokens of an answer
temperature = 0.0  # 0..1000: of an answer: 0 takes the likeliest word every time
top_p = 1.0  # >0..1: share of the probability that words are drawn from
samples = 0  # 0..10_000: chunks drawn from random noise, beside the one that starts from zero noise
steps = 1  # 1..1000: denoising steps, as in sim_rollout.py
read_text = False  # act having read the text that was decoded, as sim_rollout.py --read_text=True
instruction = None  # instead of the recorded one; --instruction= blanks it
device = None  # 'cpu', 'cuda'; None: cuda where there is one
dtype = 'float32'  # 'float32' | 'bfloat16': as in sim_rollout.py
# output
export = ''  # ONNX file of a chunk with so many steps, and nothing else; vla/export.py runs it
export_tokens = 64  # 8..8192: of an exported chunk: longest prompt, shorter ones are padded
out = ''  # picture; '': <ckpt>/sample.png
# overrides from a config file or the command line
exec((Path(__file__).parent / 'configurator.py').read_text())
# -----------------------------------------------------------------------------
SHOWN = {'m': ('mm', 1e3)}  # unit in the file -> unit shown, factor
STYLES = (('recorded', '-o'), ('predicted', '--x'))


def or_exit(action, *args, **kwargs):
    """Call something; a mistake of the user's ends the script with the one line that says it."""
    try:
        return action(*args, **kwargs)
    except (ValueError, OSError) as mistake:
        raise SystemExit(str(mistake)) from None


# -----------------------------------------------------------------------------
# asking the model


def predict(net, autocast, processor, observations, steps, read_text, gripper_m, noise=None):
    """Observations of B frames -> absolute chunks (B, H, C) as they are executed, texts (B)."""
    device = next(net.parameters()).device
    batch = {k: v.to(device) for k, v in processor.encode(observations).items()}
    with torch.inference_mode(), autocast:
        if read_text:
            chunk, tokens = net.plan_and_act(batch, steps=steps, noise=noise)  # (B, H, A)
        else:
            chunk = net.act(batch, steps=steps, noise=noise)
            tokens = net.generate(batch)
    commands = np.stack([obs[f'{processor.action_space}_command'] for obs in observations])
    chunk = processor.decode_actions(chunk.float().cpu().numpy(), commands)
    chunk = policy.round_grippers(chunk, processor.action_names, gripper_m)
    return chunk, [processor.decode_text(t) for t in tokens]


def gripper_openings(dataset):
    """(closed, open) in m where the recorded gripper commands are no others, as the expert's.

    None elsewhere: another robot's grippers may stop anywhere.
    """
    names = dataset.processor.action_names
    columns = [i for i, name in enumerate(names) if name.endswith('gripper')]
    found = np.unique(dataset.action[:, columns])
    return tuple(found.tolist()) if len(found) == 2 else None


def answer(net, autocast, processor, observations, questions, blind=False, **how):
    """Answers (B) to questions about B frames. blind: grey pictures, and the mean state."""
    device = next(net.parameters()).device
    batch = processor.encode(observations, questions=questions)
    batch = {k: v.to(device) for k, v in batch.items()}
    if blind:
        batch['images'] = torch.full_like(batch['images'], 128)
        batch['state'] = torch.zeros_like(batch['state'])
    with torch.inference_mode(), autocast:
        tokens = net.generate(batch, stop=[processor.token_id['<|im_end|>']], **how)
    return [processor.decode_text(t) for t in tokens]


def answer_published(folder, pictures, question, device, dtype, max_words, **how):
    """What a folder of Qwen2.5-VL or EO-1 answers about pictures, (h, w, 3) uint8 each."""
    net = model.VLA.from_pretrained(folder, getattr(torch, dtype)).to(device)
    chat = pretrained.Chat(folder)
    batch = chat.encode(pictures, question)
    batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
    with torch.inference_mode():
        tokens = net.generate(batch, max_words, stop=[chat.end], **how)[0]
    return chat.tokenizer.decode(tokens).strip()


def score_questions(net, autocast, processor, dataset, rows, known, rng):
    """Answers to one question of every kind about each row -> table of questions.scores.

    known: questions and answers of other episodes. The best that can be done without eyes is the
    majority answer to the very question; `blind` is this model with its eyes shut.
    """
    asked = []
    for row in rows:
        for pair in one_of_each_kind(dataset.questions_at(row, rng), rng):
            asked.append((row, *pair))
    said = {'model': [], 'blind': []}
    for start in tqdm(range(0, len(asked), 64), disable=None):
        part = asked[start : start + 64]
        frames = [dataset.row(row) for row, *_ in part]
        texts = [question for _, _, question, _ in part]
        for name, answers in said.items():
            answers += answer(net, autocast, processor, frames, texts, blind=name == 'blind')
    asked = [(kind, text, as_decoded(processor, right)) for _, kind, text, right in asked]
    known = [(kind, text, as_decoded(processor, right)) for kind, text, right in known]
    return questions.scores(asked, said, known)


def one_of_each_kind(pairs, rng):
    """One of the questions of each kind, drawn at random."""
    chosen = []
    for kind in sorted({kind for kind, *_ in pairs}):
        group = [pair for pair in pairs if pair[0] == kind]
        chosen.append(group[rng.integers(len(group))])
    return chosen


def as_decoded(processor, text):
    """A recorded text the way the tokenizer gives it back."""
    return processor.decode_text(processor.prompt_ids('', text)[1])


# -----------------------------------------------------------------------------
# numbers


def mean_error(predicted, recorded, mask, tools):
    """Mean |error| per slot (C,), and mean distance (H, tools) of the tools in m.

    predicted and recorded (B, H, C), mask (B, H); tools (tools, 6): columns of their poses.
    """
    error = np.abs(predicted - recorded) * mask[..., None]
    per_slot = error.sum((0, 1)) / max(mask.sum(), 1)
    weight = mask / np.maximum(mask.sum(0), 1)  # (B, H)
    distance = np.linalg.norm((predicted - recorded)[..., tools[:, :3]], axis=-1)  # (B, H, tools)
    return per_slot, (distance * weight[..., None]).sum(0)


def print_slots(processor, columns):
    """One line per action slot; columns {title: (C,) values in the slot's unit}."""
    print(f'{"slot":18}' + ''.join(f'{title:>16}' for title in columns))
    for i in processor.action_index:
        slot = processor.action_table[i]
        unit, factor = SHOWN.get(slot.unit, (slot.unit, 1))
        numbers = ''.join(f'{values[i] * factor:16.3f}' for values in columns.values())
        print(f'{slot.name:18}{numbers} {unit}')


def print_distances(processor, tools, predicted, held):
    """One line per tool: its mean distance from the label, (H, tools) in m, row by row."""
    for i, columns in enumerate(tools):
        name = tool_name(processor.action_table, columns)
        said = ' '.join(f'{x * 1e3:.1f}' for x in predicted[:, i])
        still = ' '.join(f'{x * 1e3:.1f}' for x in held[:, i])
        print(f'{name}, mm from the label in rows 0, 1, ...: {said}   holding still: {still}')


def tool_name(table, columns):
    """Name of the tool whose pose stands in these columns: 'left/tool_x' -> 'left tool'."""
    prefix, _, _ = table[columns[0]].name.rpartition('/')
    return f'{prefix} tool' if prefix else 'tool'


# -----------------------------------------------------------------------------
# pictures


def project(points, pose, fovy_deg, size):
    """Points (..., 3) m in the world frame -> (..., 2) pixels, right and down, in a square picture.

    pose is that of the camera, position (3,) m and rotation (9,): it looks along its -z, x to the
    right, y up.
    """
    position = np.array(pose[:3])
    rotation = np.reshape(pose[3:], (3, 3))
    x, y, z = np.moveaxis((np.asarray(points) - position) @ rotation, -1, 0)
    focal = size / 2 / np.tan(np.radians(fovy_deg) / 2)
    # Centres of pixels are whole numbers.
    return size / 2 + focal * np.stack([x / -z, y / z], -1) - 0.5


def draw_paths(axis, table, tools, chunks, view, size):
    """Ways of the tools in a camera's picture. chunks: [(chunk (H, C), style)].

    view: (pose, fovy_deg) of a camera that stands still: the torso's frame turns with the spine,
    the camera does not.
    """
    spine = [slot.name for slot in table].index('spine_z')
    for chunk, style in chunks:
        cos = np.cos(chunk[:, spine])
        sin = np.sin(chunk[:, spine])
        for i, columns in enumerate(tools):
            x, y, z = chunk[:, columns[:3]].T
            points = np.stack([cos * x - sin * y, sin * x + cos * y, z], -1)  # (H, 3)
            axis.plot(*project(points, *view, size).T, style, color=f'C{i}', ms=3, lw=1)
    axis.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))


def draw_from_above(axis, name, columns, command, chunks, spread):
    """The way of one tool, x forward and y to the left; never less than 20 mm are shown."""
    x, y, _ = columns[:3]
    for chunk in spread:
        axis.plot(-chunk[:, y] * 1e3, chunk[:, x] * 1e3, color='0.8', lw=0.8)
    for (label, style), chunk in zip(STYLES, chunks):
        axis.plot(-chunk[:, y] * 1e3, chunk[:, x] * 1e3, style, label=label)
    right = -command[y] * 1e3
    forward = command[x] * 1e3
    axis.plot(right, forward, 'k*', ms=12, label='command in force')
    axis.plot([right - 10, right + 10], [forward - 10, forward + 10], alpha=0)
    axis.set(title=f'{name} from above', xlabel='to the right, mm', ylabel='forward, mm')
    axis.set_aspect('equal', adjustable='datalim')
    axis.legend(fontsize=8)


def draw_curves(axis, title, table, columns, chunks, spread, mask):
    """Some slots over the rows of the chunk; grey where rows do not count."""
    unit, factor = SHOWN.get(table[columns[0]].unit, (table[columns[0]].unit, 1))
    for i, column in enumerate(columns):
        for chunk in spread:
            axis.plot(chunk[:, column] * factor, color='0.8', lw=0.8)
        for (label, style), chunk in zip(STYLES, chunks):
            words = f'{table[column].name} {label}'
            axis.plot(chunk[:, column] * factor, style, color=f'C{i}', ms=4, label=words)
    if not mask.all():
        axis.axvspan(np.argmin(mask) - 0.5, len(mask) - 0.5, color='0.93', label='after a kick')
    axis.set(title=title, xlabel='row of the chunk', ylabel=unit)
    axis.legend(fontsize=6)


def curve_groups(processor):
    """{(title, unit): columns} of the slots that share a panel: heights, joints, grippers."""
    table = processor.action_table
    heights = pose_columns(table)[:, 2].tolist()
    groups = {('tool height', 'm'): heights} if heights else {}
    for i in sorted(processor.action_index):
        slot = table[i]
        if slot.kind == 'pose':
            continue
        prefix, _, name = slot.name.rpartition('/')
        title = 'gripper' if name.endswith('gripper') else slot.kind
        if slot.kind == 'joint':
            title = f'{prefix} joints'.strip()
        groups.setdefault((title, slot.unit), []).append(i)
    return groups


def draw(processor, obs, recorded, predicted, spread, mask, views, title, path):
    """Camera pictures above; below, each tool from above, and a panel of curves per slot group.

    views: {camera that stands still: (pose, fovy_deg)}; the ways of the tools are drawn into those.
    """
    table = processor.action_table
    tools = pose_columns(table)
    command = obs[f'{processor.action_space}_command']
    chunks = (recorded, predicted)
    groups = curve_groups(processor)
    fig = plt.figure(figsize=(15, 8), layout='constrained')
    top, bottom = fig.subfigures(2, 1, height_ratios=(1, 1.15))
    axes = top.subplots(1, len(processor.cameras), squeeze=False)[0]
    for axis, name in zip(axes, processor.cameras):
        image = obs[f'image/{name}']
        axis.imshow(image)
        axis.set_title(name)
        if name in views:
            drawn = [(chunk, '-') for chunk in spread]
            drawn += [(chunk, style) for (_, style), chunk in zip(STYLES, chunks)]
            draw_paths(axis, table, tools, drawn, views[name], len(image))
        axis.axis('off')
    axes = bottom.subplots(1, len(tools) + len(groups), squeeze=False)[0]
    for axis, columns in zip(axes, tools):
        draw_from_above(axis, tool_name(table, columns), columns, command, chunks, spread)
    for axis, ((name, _), columns) in zip(axes[len(tools) :], groups.items()):
        draw_curves(axis, name, table, columns, chunks, spread, mask)
    fig.suptitle(title)
    fig.savefig(path, dpi=80)
    plt.close(fig)


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C loses nothing: it ends without a word
    device = or_exit(layers.choose_device, device, os.environ)
    out = out or f'{hub.home(ckpt)}/sample.png'
    ckpt = or_exit(hub.fetch, 'ckpt', ckpt, 'model')
    episodes = or_exit(hub.fetch_all, 'episodes', episodes) if episodes else ''
    how = dict(
        temperature=temperature, top_p=top_p, generator=torch.Generator(device).manual_seed(seed)
    )
    # -----------------------------------------------------------------------------
    # a folder of Qwen2.5-VL or EO-1 has no normaliser for actions: it answers
    if or_exit(read_meta, ckpt) is None:
        if not Path(ckpt, 'config.json').exists():
            raise SystemExit(f'ckpt={holds_no_model(ckpt)}')
        if not ask:
            raise SystemExit(f'{ckpt} is not written by train.py: give it a question, --ask="..."')
        if picture:
            pictures = [np.asarray(or_exit(Image.open, picture).convert('RGB'))]
        else:
            paths = or_exit(episode_paths, episode or episodes or 'episodes/demo')
            arrays, header = or_exit(read_episode, paths[0])
            if step >= len(arrays['time']):
                raise SystemExit(f'step={step}: {paths[0]} has {len(arrays["time"])} rows')
            pictures = [arrays[f'image/{camera}'][step] for camera in header['cameras']]
        asked = (ckpt, pictures, ask, device, dtype, max_words)
        print(or_exit(answer_published, *asked, **how))
        raise SystemExit(0)

    # -----------------------------------------------------------------------------
    # an ONNX file, and nothing else
    if export:
        from vla.export import export_chunk  # here, because it needs packages of its own

        try:
            off = export_chunk(ckpt, export, steps, export_tokens)
        except (ValueError, OSError, ImportError) as refusal:
            raise SystemExit(str(refusal)) from None
        print(f'{export}: {Path(export).stat().st_size / 1e6:.1f} MB, within {off:.1g} of torch')
        print(f'next: python bench.py --only=act --ckpt={ckpt} --onnx={export}')
        raise SystemExit(0)

    # -----------------------------------------------------------------------------
    # model and frames
    if picture:
        raise SystemExit(f'picture: {ckpt} is of train.py and looks through the cameras it learnt')
    path = Path(out)
    or_exit(path.parent.mkdir, parents=True, exist_ok=True)
    net, meta = or_exit(model.VLA.load, ckpt)
    if ask or eval_qa:
        or_exit(check_taught, ckpt, meta, 'questions')
    if read_text:
        or_exit(check_taught, ckpt, meta, 'text')
    net = net.to(device).eval()
    autocast = or_exit(layers.autocast_for, device, dtype)
    processor = or_exit(Processor.of_checkpoint, ckpt, meta)
    H = processor.horizon
    rng = np.random.default_rng(seed)
    if episode:
        dataset = train_data = or_exit(data.Dataset, episode, processor)
        if not 0 <= step < len(dataset.last):
            raise SystemExit(f'step={step}: {episode} has rows 0 to {len(dataset.last) - 1}')
        row = step
    else:
        settings = meta.get('settings', {})
        if not {'episodes', 'val_fraction'} <= settings.keys():
            raise SystemExit(
                f'{ckpt}/meta.json: settings do not say which episodes: --episode=FILE'
            )
        folder = episodes or or_exit(hub.fetch_all, 'episodes', settings['episodes'])
        fraction = settings['val_fraction']
        held_out = 'val' if fraction else None
        dataset = or_exit(data.Dataset, folder, processor, split=held_out, val_fraction=fraction)
        row = int(rng.choice(dataset.windows))
        if eval_qa:
            train_data = or_exit(
                data.Dataset, folder, processor, split='train', val_fraction=fraction
            )
    gripper_m = gripper_openings(dataset)
    tools = pose_columns(processor.action_table)

    # -----------------------------------------------------------------------------
    # one frame
    obs = or_exit(dataset.row, row)
    command = obs[f'{processor.action_space}_command']
    mask = dataset.chunk_mask(np.array([row]))[0]  # (H,)
    recorded = dataset.chunk(np.array([row]))[0]  # (H, C)
    if instruction is not None:
        obs['instruction'] = instruction
    asked = (net, autocast, processor, [obs], steps, read_text, gripper_m)
    (predicted,), (text,) = or_exit(predict, *asked)
    at = int(row - dataset.start[dataset.episode[row]])
    print(f'{dataset.paths[dataset.episode[row]]} row {at}, {ckpt} at step {meta["step"]}')
    print(f'instruction        {obs["instruction"]}')
    print(f'subtask recorded   {as_decoded(processor, dataset.subtask(row))}')
    print(f'subtask decoded    {text}')
    error = np.abs(predicted - recorded)[mask]  # (rows that count, C)
    columns = {
        'command': command,
        'recorded row 0': recorded[0],
        'predicted row 0': predicted[0],
        'mean |error|': error.mean(0),
        'max |error|': error.max(0),
    }
    print_slots(processor, columns)
    spread = np.empty((0, *recorded.shape))
    if samples:
        noise_rng = torch.Generator().manual_seed(seed)
        noise = torch.randn(samples, H, processor.action_dim, generator=noise_rng).to(device)
        frames = [obs] * samples
        spread, _ = predict(
            net, autocast, processor, frames, steps, read_text, gripper_m, noise=noise
        )
        print(f'\n{samples} chunks from random noise: standard deviation in first and last row')
        print_slots(processor, {'row 0': spread[:, 0].std(0), f'row {H - 1}': spread[:, -1].std(0)})
    if ask:
        asked = (net, autocast, processor, [obs], [ask])
        said = or_exit(answer, *asked, max_new_tokens=max_words, **how)[0]
        print(f'\nasked              {ask}\nanswered           {said}')

    # -----------------------------------------------------------------------------
    # many frames
    if eval_qa:
        at_rows = rng.choice(dataset.windows, eval_qa)
        known = []
        for r in rng.choice(train_data.windows, 2_000):
            known += train_data.questions_at(r, rng)
        table = score_questions(net, autocast, processor, dataset, at_rows, known, rng)
        names = ('model', 'blind', 'majority', 'majority per question')
        print(f'\n{"right answers":14}' + ''.join(f'{name:>23}' for name in ('n', *names)))
        for kind, line in table.items():
            shares = ''.join(f'{line[name]:23.1%}' for name in names)
            print(f'{kind:14}{line["n"]:23d}{shares}')
    if count:
        windows = rng.choice(dataset.windows, min(count, len(dataset.windows)), replace=False)
        chunks = []
        hits = 0
        for start in tqdm(range(0, len(windows), 32), disable=None):
            part = windows[start : start + 32]
            frames = [dataset.row(r) for r in part]
            chunk, texts = predict(net, autocast, processor, frames, steps, read_text, gripper_m)
            chunks.append(chunk)
            for said, r in zip(texts, part):
                hits += said == as_decoded(processor, dataset.subtask(r))
        labels = dataset.chunk(windows)
        masks = dataset.chunk_mask(windows)
        hold = np.repeat(dataset.commands(windows)[:, None], H, 1)
        slot_error, tool_error = mean_error(np.concatenate(chunks), labels, masks, tools)
        hold_error, hold_tool = mean_error(hold, labels, masks, tools)
        what = 'of this episode' if episode else 'held-out' if fraction else 'recorded'
        right = hits / len(windows)
        print(f'\n{len(windows)} {what} windows: mean |error|; text all right in {right:.0%}')
        print_slots(processor, {'predicted': slot_error, 'holding still': hold_error})
        print_distances(processor, tools, tool_error, hold_tool)

    # -----------------------------------------------------------------------------
    # picture
    shown = ''.join(c for c in text if c.isprintable())  # fonts lack the others
    title = f'{obs["instruction"]}\nrecorded: {dataset.subtask(row)}   decoded: {shown}'
    world = dataset.header(dataset.episode[row]).get('world', {})  # only our simulator says
    poses = world['camera_pose'] if 'camera_pose' in world else {}  # older files do not say
    views = {name: (pose, world['camera_fovy_deg'][name]) for name, pose in poses.items()}
    or_exit(draw, processor, obs, recorded, predicted, spread, mask, views, title, path)
    print(f'picture: {path}')
    if processor.state_names == STATE_NAMES:  # our own robot can be driven
        command = ['python', 'sim_rollout.py', f'--ckpt={ckpt}', '--video=4']
        print(f'next: {shlex.join(command)}')
