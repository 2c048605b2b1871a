"""What a run leaves on disk so that it can be used, and be gone on with after any kill.

    out/<run>/model.safetensors, ema.safetensors, meta.json     the newest weights: model.VLA.load
    out/<run>/best/          the same three, of the lowest held-out loss
    out/<run>/step_<n>/      the same three, of the last few checkpoints
    out/<run>/state/<n>/     optimizer, weights and average as they are spread over the ranks, one
                             file per rank
    out/<run>/state.json     which of these is whole, and all else that going on takes

Everything is safetensors and JSON: reading it runs no code. state.json is replaced when all that it
names is on disk, so a kill at any moment leaves the old state or the new one. How a run starts,
afresh or from something on disk, is `find_start`.
"""

import dataclasses
import fcntl
import functools
import json
import math
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import IO, Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn

import model
from episode import slots, write_atomic
from vla import parallel, pretrained
from vla.folder import holds_no_model, read_meta, read_state
from vla.optim import EMA
from vla.processor import saved_names
from vla.tokenizer import load_tokenizer

# -----------------------------------------------------------------------------
# settings of earlier runs

# Settings and fields of a processor that had another name once: old name -> name.
RENAMED = {
    'draws': 'noise_samples',
    'tail': 'rows_after_success',
    'ask': 'reask_share',
    'questions': 'question_share',
    'keep': 'keep_checkpoints',
    'compand': 'log_scale_m',
    'ground': 'grounding',
}
# Settings that are none any more, with the value that is built in now. A run that had another one
# cannot be gone on with.
GONE = {
    'times': 'beta',
    'shift': 0,
    'state_noise': 0.0,
    'action_loss': 'mse',
    'beta1': 0.9,
    'grad_clip': 1.0,
    'threads': 1,
}
# The same, of settings that a published folder decides: they count where a run has none.
GONE_TO_THE_FOLDER = {
    'template': 'minimal',
    'pad_dims': 0,
    'norm': 'rms',
    'vision_width': 1280,
    'vision_layers': 32,
    'vision_heads': 16,
    'vision_intermediate': 3420,
    'vision_full_blocks': [7, 15, 23, 31],
    'vision_window': 112,
    'state_frequencies': 6,
    'prefix_attention': 'bidirectional',
    'chunk_attention': 'bidirectional',
    'head_layers': 1,
    'row_embedding': True,
    'time_period_min': 0.06,
    'rope_theta': 10_000.0,
    'tie_embeddings': False,
}


def rename(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give settings of an earlier run the names that they have now."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back: tuples are lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def settings_that_differ(
    old: Mapping[str, Any], new: Mapping[str, Any], may_change: Collection[str]
) -> tuple[str, str]:
    """Name the settings that differ from those of the run to go on with.

    Returns:
        Two texts: those that may change and those that may not, '' where there are none.
    """
    may: list[str] = []
    may_not: list[str] = []
    for name, value in new.items():
        if old[name] != value:
            kind = may if name in may_change else may_not
            kind.append(f'{name} {old[name]!r} -> {value!r}')
    return ', '.join(may), ', '.join(may_not)


def overruled(settings: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
    """Name the settings in whose place a run takes those of another run's processor.

    Args:
        settings: As JSON has them, but for the tokenizer: its text.
        processor: As meta.json has it.

    Returns:
        Each such setting with its value in the processor.
    """
    ours = {k: settings[k] for k in settings if k in processor}
    state_names, action_names = saved_names(dict(processor))
    ours['state_slots'] = list(slots(ours['state_slots'], state_names))
    # Names differ from space to space.
    if ours.get('action_space') == processor.get('action_space'):
        ours['action_slots'] = list(slots(ours['action_slots'], action_names))
    differ = {k: processor[k] for k in ours if ours[k] != processor[k]}
    if 'tokenizer' in differ:
        differ['tokenizer'] = 'its own'
    return differ


# -----------------------------------------------------------------------------
# where a run starts

# Fields of VLAConfig that the data and the processor give, whatever the weights come from; and
# those that say how it is trained and are the run's own.
GIVEN_BY_DATA = {
    'state_dim',
    'action_dim',
    'horizon',
    'image_size',
    'n_cameras',
    'tokens_per_camera',
    'scene_bricks',
    'scene_places',
    'scene_frames',
    'image_pad_id',
    'state_pad_id',
    'action_start_id',
}
TRAINING = {'action_loss', 'row_decay', 'text_weight', 'recompute', 'sight_only'}


@dataclasses.dataclass
class Start:
    """Where a run's weights, normaliser and sizes come from.

    Attributes:
        kind: 'fresh'; 'resumed': gone on with; 'finished': there is nothing left to do;
            'inherited': from the weights of another run; 'published': from a folder of Qwen2.5-VL
            or EO-1.
        folder: That the first weights are read from; '' for the other kinds.
        state: What state.json holds, of a run that is gone on with.
        processor: Of whom this run goes on from, as meta.json has it; None: make a new one.
        prompt: Arguments of a new Processor that belong together with the weights: tokenizer,
            template, tokens_per_camera, pad_dims.
        fields: Those of VLAConfig that the folder decides.
        overruled: Settings in whose place those of the folder are taken, with its values.
        note: To be printed; '' where there is nothing to say.
    """

    kind: str
    folder: str = ''
    state: dict[str, Any] | None = None
    processor: dict[str, Any] | None = None
    prompt: dict[str, Any] = dataclasses.field(default_factory=dict)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    overruled: dict[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ''

    @property
    def step(self) -> int:
        """Steps that have been taken."""
        return self.state['step'] if self.state else 0

    @property
    def best(self) -> float:
        """Lowest held-out loss so far."""
        return self.state['best'] if self.state else math.inf

    @property
    def wandb_id(self) -> str | None:
        """Id of the run at W&B."""
        return self.state['wandb_id'] if self.state else None

    def unlogged(self) -> tuple[dict[str, float], int]:
        """Return this process's sums since the last log line, and over how many steps they go."""
        if self.state is None:
            return {}, 0
        return parallel.own(self.state['sums']), self.state['summed']

    def first_model(self, cfg: model.VLAConfig) -> Callable[[], model.VLA] | None:
        """Return what makes the model with its first weights; None where a state is loaded."""
        if self.state:
            return None
        return functools.partial(_first_model, self, cfg)


def _first_model(start: Start, cfg: model.VLAConfig) -> model.VLA:
    if start.kind == 'published':
        fields = dataclasses.asdict(cfg)
        return model.VLA.from_pretrained(start.folder, torch.float32, **fields)
    net = model.VLA(cfg)
    if start.kind == 'inherited':
        theirs = model.VLA.load(start.folder)[0]
        weights = theirs.state_dict()
        if net.grounding is not None and theirs.grounding is not None:
            grounding = net.grounding.inherited(theirs.grounding)
            weights |= {f'grounding.{name}': tensor for name, tensor in grounding.items()}
        net.load_state_dict(weights)
    return net


def find_start(
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    may_change: Collection[str],
    world_size: int,
    tokenizer: str,
    init_folder: str = '',
) -> Start:
    """Find out where a run starts: afresh, where it stopped, or from the weights of a folder.

    Args:
        settings: Of the run, as JSON has them.
        defaults: Of the script, as JSON has them: what runs had before a setting was there. A
            setting with its default value counts as one that was not given.
        may_change: Settings that a resumed run may change.
        world_size: Number of processes.
        tokenizer: JSON text of the tokenizer that a fresh run uses.
        init_folder: Where init_from is on this machine; '': where it says itself.

    Raises:
        ValueError: The run cannot start like this; the text says what to do instead.
    """
    if settings['resume'] not in ('auto', 'never'):
        raise ValueError(f"resume {settings['resume']!r}, expected 'auto' or 'never'")
    out_dir = settings['out_dir']
    folder = init_folder or settings['init_from']
    check_folder(out_dir)
    state = read_state(out_dir) if settings['resume'] == 'auto' else None
    if state and state['step'] < settings['max_steps']:
        start = Start('resumed', state=state, processor=rename(state['processor']))
    elif state:
        start = Start('finished', state=state, processor=rename(state['processor']))
    else:
        start = Start('fresh')
    meta = read_meta(folder) if folder else None
    is_published = bool(folder) and meta is None
    if state:
        start.note = _going_on(settings, defaults, state, may_change, world_size, is_published)
    if start.kind == 'finished':
        return start
    if is_published and not os.path.exists(f'{folder}/config.json'):
        raise ValueError(
            f'init_from={holds_no_model(folder)}; train it first (README, First run), or '
            '--init_from= starts from scratch'
        )
    start.prompt = {
        'tokenizer': tokenizer,
        'template': 'minimal',
        'tokens_per_camera': settings['tokens_per_camera'],
        'pad_dims': 0,
    }
    fields: Mapping[str, Any] = {}
    if is_published:
        fields = pretrained.read_config(folder)
        start.prompt = _published_prompt(folder, fields, settings['image_size'])
    elif meta:
        fields = meta['model']
    not_decided = GIVEN_BY_DATA | TRAINING
    if not is_published:
        not_decided.add('vocab_size')  # a published table has more rows than there are words
    known = {field.name for field in dataclasses.fields(model.VLAConfig)}
    for name, value in fields.items():
        if name in known - not_decided:
            start.fields[name] = tuple(value) if isinstance(value, list) else value
    if folder and not state:
        start.kind = 'published' if is_published else 'inherited'
        start.folder = folder
        start.processor = rename(meta['processor']) if meta else None
    _overrule(start, settings, defaults, folder)
    return start


def _published_prompt(folder: str, fields: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Return how a published model is spoken to: EO-1's prompt, state and actions padded."""
    side = fields['patch_size'] * fields['merge_size']  # pixels of a token
    if image_size % side:
        raise ValueError(f'image_size {image_size}: {folder} takes multiples of {side} pixels')
    read = load_tokenizer(f'{folder}/tokenizer.json')
    return {
        'tokenizer': pretrained.add_action_tokens(read).to_str(),
        'template': 'qwen',
        'tokens_per_camera': (image_size // side) ** 2,
        'pad_dims': fields['state_dim'],
    }


def _going_on(
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    state: Mapping[str, Any],
    may_change: Collection[str],
    world_size: int,
    is_published: bool,
) -> str:
    """Return what a resumed run does otherwise; raise where it would not be the same run."""
    out_dir = settings['out_dir']
    gone = GONE if is_published else GONE | GONE_TO_THE_FOLDER
    old = dict(defaults) | gone | rename(state['settings'])
    may, may_not = settings_that_differ(old, dict(settings) | gone, may_change)
    if may_not:
        raise ValueError(
            f'{out_dir} holds a run with other settings ({may_not}): --resume=never starts over, '
            f'another --out_dir keeps both, --init_from={out_dir} starts from its weights'
        )
    changes = [may] if may else []
    if state['world_size'] != world_size:
        changes.append(f'processes {state["world_size"]} -> {world_size}: the same batches')
    return f'going on with other settings: {", ".join(changes)}' if changes else ''


def _overrule(
    start: Start, settings: Mapping[str, Any], defaults: Mapping[str, Any], folder: str
) -> None:
    """Let the folder's settings count, unless others were given, which is refused."""
    theirs = {k: v for k, v in as_json(start.fields).items() if k in settings}
    differ = {k: v for k, v in theirs.items() if settings[k] != v}
    if start.processor:
        texts = dict(settings) | {'tokenizer': start.prompt['tokenizer']}
        differ |= overruled(texts, start.processor)
    elif start.prompt['tokens_per_camera'] != settings['tokens_per_camera']:
        differ['tokens_per_camera'] = start.prompt['tokens_per_camera']
    start.overruled = differ
    if start.state or not differ:
        return
    said = '; '.join(f'{k} {settings[k]!r} here, {its!r} there' for k, its in differ.items())
    if any(settings[k] != defaults[k] for k in differ):
        raise ValueError(
            f'{folder} was trained with other settings, on which its weights depend ({said}): '
            f'give these as there, or not at all; --init_from= starts from scratch'
        )
    start.note = f'not the defaults but the settings of {folder} are used: {said}'


def check_data(start: Start, settings: Mapping[str, Any], fingerprint: str) -> None:
    """Raise ValueError where a run would go on with other episodes than it was started with."""
    out_dir = settings['out_dir']
    if start.state and start.state['fingerprint'] != fingerprint:
        raise ValueError(
            f'{settings["episodes"]} has changed since {out_dir} was started, going on would not '
            f'be the same run: --resume=never starts over, --init_from={out_dir} starts from its '
            'weights'
        )


# -----------------------------------------------------------------------------
# state to go on from


def tensors_of(
    net: nn.Module, optimizers: Sequence[torch.optim.Optimizer], average_weights: EMA | None
) -> dict[str, torch.Tensor]:
    """Return all that training changes by name, by reference: loading writes into these."""
    names = {p: name for name, p in net.named_parameters()}
    tensors = {f'model/{name}': p.detach() for p, name in names.items()}
    for optimizer in optimizers:
        p: Any
        for p, values in optimizer.state.items():
            for key, value in values.items():
                tensors[f'optimizer/{names[p]}/{key}'] = value
    if average_weights is not None:
        for name, value in average_weights.state_dict(net).items():
            tensors[f'average/{name}'] = value
    return tensors


def _quietly(action: Callable, *args: Any, **kwargs: Any) -> None:
    with warnings.catch_warnings():  # one process is what is meant where there is one
        warnings.filterwarnings('ignore', message='torch.distributed is disabled')
        action(*args, **kwargs)


def first_rank() -> bool:
    """Tell whether this process is the one that writes and speaks."""
    return parallel.rank_and_size()[0] == 0


def save_state(folder: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> int:
    """Write what going on takes; called by all ranks.

    Args:
        folder: Of the run.
        tensors: See tensors_of.
        facts: A dict for JSON, with the step.

    Returns:
        Bytes written by all ranks; 0 on ranks but the first.
    """
    step = f'{facts["step"]:09d}'
    path = f'{folder}/state/{step}'
    if first_rank():
        shutil.rmtree(path, ignore_errors=True)  # A run that was killed while it wrote has left it.
        os.makedirs(path)
    parallel.wait_for_all()
    writer = dcp.HuggingFaceStorageWriter(path, save_distributed=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    _quietly(dcp.save, contiguous, storage_writer=writer)
    if not first_rank():
        return 0
    size = sum(entry.stat().st_size for entry in os.scandir(path))
    text = json.dumps(dict(facts) | {'folder': step}, indent=1)
    write_atomic(f'{folder}/state.json', text.encode())
    for other in os.listdir(f'{folder}/state'):
        if other != step:
            shutil.rmtree(f'{folder}/state/{other}')
    return size


def _instead(folder: str) -> str:
    """What to do where the state of a run is lost."""
    return f'--init_from={folder} --out_dir=OTHER starts from its weights, --resume=never over'


def _check_shards(path: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError where files of a state are not there or damaged, or lack tensors."""
    if not os.path.isdir(path):
        raise ValueError(f'{path} is missing, which state.json names')
    there: set[str] = set()
    for entry in sorted(os.listdir(path)):
        if entry.endswith('.safetensors'):
            with pretrained.open_tensors(f'{path}/{entry}') as shard:
                there |= set(shard.keys())
    missing = [name for name in tensors if name not in there]
    if missing:
        more = f' and {len(missing) - 3} more' if len(missing) > 3 else ''
        raise ValueError(f'{path} lacks {", ".join(missing[:3])}{more}')


def load_state(
    folder: str,
    facts: Mapping[str, Any],
    net: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average_weights: EMA | None,
) -> None:
    """Read the state into a model, its optimizers and its average; called by all ranks.

    It is spread over however many ranks there are now.

    Raises:
        ValueError: A file is damaged, does not fit, or holds numbers that are not finite.
    """
    path = f'{folder}/state/{facts["folder"]}'
    # A step makes what an optimizer keeps. It also changes weights, which are loaded next.
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group['params']:
                if p.requires_grad:
                    p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    reader = dcp.HuggingFaceStorageReader(path)
    tensors = tensors_of(net, optimizers, average_weights)
    _check_shards(path, tensors)
    try:
        _quietly(dcp.load, tensors, storage_reader=reader)
    except (RuntimeError, ValueError, KeyError, dcp.api.CheckpointException) as fault:
        said = str(fault).strip().splitlines()[-1]
        raise ValueError(f'{path} is damaged: {said}; {_instead(folder)}') from None
    for name, tensor in tensors.items():
        if not parallel.all_finite([tensor]):
            raise ValueError(f'{path}: {name} is not finite; {_instead(folder)}')
    if average_weights is not None:
        average_weights.step = facts['average_step']


def save(
    folder: str,
    net: model.VLA,
    optimizers: Sequence[torch.optim.Optimizer],
    average_weights: EMA | None,
    meta: Mapping[str, Any],
    facts: Mapping[str, Any],
    keep_checkpoints: int = 0,
) -> int:
    """Write the weights that act, then the state to go on from; called by all ranks.

    After a kill between the two the step is taken and saved again.

    Args:
        folder: Of the run.
        net: Whole or sharded.
        optimizers: Of the run.
        average_weights: Of the run, None where it has none.
        meta: What model.VLA.save writes beside the weights.
        facts: What else going on takes, see save_state.
        keep_checkpoints: So many of the newest weights stay.

    Returns:
        Bytes of the state, written by all ranks.
    """
    save_weights(folder, net, meta, average_weights)
    if first_rank() and keep_checkpoints:
        keep_last(folder, facts['step'], keep_checkpoints)
    average_step = average_weights.step if average_weights else 0
    facts = dict(facts) | {'average_step': average_step}
    return save_state(folder, tensors_of(net, optimizers, average_weights), facts)


def not_finite(folder: str, step: int, what: str) -> str:
    """Return what a run says that ends because its numbers are not finite.

    Args:
        folder: Of the run.
        step: At which it ends.
        what: What is not finite, in words.
    """
    facts = read_state(folder)
    kept = f'there is no checkpoint in {folder} yet'
    if facts:
        kept = f'the checkpoint of step {facts["step"]} in {folder} holds finite numbers'
    return f'step {step}: {what}; nothing more is saved: {kept}'


def keep_batch(folder: str, batch: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> str:
    """Write a batch that a step was not taken on, for train.py --replay_batch; return its path."""
    path = f'{folder}/bad_batch.safetensors'
    tensors = {name: value.contiguous() for name, value in batch.items()}
    text = {name: str(value) for name, value in about.items()}
    save_file(tensors, f'{path}.tmp', text)
    os.replace(f'{path}.tmp', path)
    return path


# -----------------------------------------------------------------------------
# a run's folder is its own


def check_folder(folder: str) -> None:
    """Raise ValueError where writing a run would write, move or remove what lies elsewhere."""
    if not folder:
        raise ValueError('out_dir is empty: name a folder')
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise ValueError(f'out_dir {folder} is no folder')
    for name in _names(folder):
        ours = name in ('state', 'best', 'log.jsonl', *WEIGHT_FILES) or name.startswith('step_')
        if os.path.islink(f'{folder}/{name}') and (ours or name.endswith('.tmp')):
            raise ValueError(
                f'{folder}/{name} is a link to {os.readlink(f"{folder}/{name}")}, which the run '
                'would write to or empty: remove the link'
            )


def lock(folder: str) -> IO[str]:
    """Take a run's folder for this process; the kernel gives it back when the process ends.

    Returns:
        The open file that holds the lock.

    Raises:
        ValueError: Another process writes a run there, or nobody can.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        number = os.open(f'{folder}/run.lock', flags, 0o666)
    except OSError as fault:
        raise ValueError(f'out_dir {folder} cannot be written to: {fault.strerror}') from None
    f = open(number, 'r+', encoding='utf-8')  # noqa: SIM115 -- closing it would give the lock back
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f'a run is under way in {folder} ({f.read().strip()}): wait for it, end it, or take '
            'another --out_dir'
        ) from None
    except OSError:  # a file system that cannot lock: as before
        return f
    for name in _names(folder):  # nobody else writes here: these were left by a kill
        if name.endswith('.tmp') and os.path.isfile(f'{folder}/{name}'):
            os.remove(f'{folder}/{name}')
    f.truncate(0)
    f.write(f'process {os.getpid()} on {platform.node()}')
    f.flush()
    return f


# -----------------------------------------------------------------------------
# weights that act

WEIGHT_FILES = ('model.safetensors', 'ema.safetensors', 'meta.json')


def clear(folder: str) -> None:
    """Remove, before a run starts over, what could be taken for its own.

    The weights in the folder itself stay until the first checkpoint replaces them, but for an
    average, which this run may not have.
    """
    left_by_a_kill = [name for name in _names(folder) if name.endswith('.tmp')]
    old = ['state.json', 'state', 'best', 'ema.safetensors', *_steps(folder), *left_by_a_kill]
    for name in old:
        if os.path.isdir(f'{folder}/{name}'):
            shutil.rmtree(f'{folder}/{name}')
        elif os.path.exists(f'{folder}/{name}'):
            os.remove(f'{folder}/{name}')


def _names(folder: str) -> list[str]:
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def _steps(folder: str) -> list[str]:
    return [name for name in _names(folder) if name.startswith('step_')]


def size_of(folder: str) -> int:
    """Return the bytes of the weights in a folder: those that act and the others beside them."""
    return sum(
        entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith('.safetensors')
    )


def save_weights(
    folder: str, net: model.VLA, meta: Mapping[str, Any], average_weights: EMA | None
) -> None:
    """Write the three files that act, by model.VLA.save; called by all ranks.

    They are written elsewhere and put in place together: a kill leaves the old ones or the new
    ones. Between two renames it leaves them without meta.json, from which nothing loads; never new
    weights under an old description.
    """
    new = f'{folder}/new.tmp'
    old = f'{folder}/meta.json'
    if first_rank():
        shutil.rmtree(new, ignore_errors=True)  # A run that was killed while it wrote has left it.
    net.save(new, meta, average_weights, parallel.gather)
    if first_rank():
        if os.path.exists(old):
            os.remove(old)
        for name in WEIGHT_FILES:  # the description comes last
            if os.path.exists(f'{new}/{name}'):
                os.replace(f'{new}/{name}', f'{folder}/{name}')
        os.rmdir(new)


def link(folder: str, to: str) -> None:
    """Give the three files that act another name: hard links, which take no room twice."""
    os.makedirs(to)
    for name in WEIGHT_FILES:
        if os.path.exists(f'{folder}/{name}'):
            os.link(f'{folder}/{name}', f'{to}/{name}')


def keep_last(folder: str, step: int, count: int) -> None:
    """Keep the newest weights as <folder>/step_<n>, and `count` of these folders.

    A folder of that name is whole: it comes and goes by one rename.
    """
    new = f'{folder}/step.tmp'
    old = f'{folder}/old.tmp'
    to = f'{folder}/step_{step:09d}'

    def discard(path: str) -> None:
        os.replace(path, old)
        shutil.rmtree(old)

    for left_by_a_kill in (new, old):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    link(folder, new)
    if os.path.exists(to):  # the same step again, after a kill
        discard(to)
    os.replace(new, to)
    for name in _steps(folder)[:-count]:
        discard(f'{folder}/{name}')
