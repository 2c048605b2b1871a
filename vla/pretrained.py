"""Folders of Qwen2.5-VL and EO-1 on disk: names and settings, shards, action tokens, chat prompts.

    cfg = VLAConfig(**pretrained.read_config(folder))    # what VLA.from_pretrained does
    pretrained.fill(model, folder)
    tokenizer = pretrained.add_action_tokens(tokenizers.Tokenizer.from_file(path))
    batch = pretrained.Chat(folder).encode([image], 'Which brick is on top?')
A name here is a published one ("model.layers.0.mlp.up_proj.weight") unless it is called ours.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from episode import write_atomic
from vla import vision
from vla.folder import check_sizes, holds_no_model, is_whole, read_json
from vla.layout import Batch
from vla.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from model import VLA, VLAConfig

# VLAConfig field -> Qwen2.5-VL's vision_config
HUB_CONFIG = {
    'vision_width': 'hidden_size',
    'vision_layers': 'depth',
    'vision_heads': 'num_heads',
    'vision_intermediate': 'intermediate_size',
    'vision_window': 'window_size',
    'patch_size': 'patch_size',
    'merge_size': 'spatial_merge_size',
    'patch_frames': 'temporal_patch_size',
    'tokens_per_second': 'tokens_per_second',
}
# The order in which EO-1 adds its tokens to Qwen's, whose last one is 151664. The released weights
# follow the later one; read with the other, the state would go to a token that means its end.
ACTION_TOKENS = {
    '2025-09': (
        '<|action_start|>',
        '<|action_pad|>',
        '<|action_pass|>',
        '<|action_end|>',
        '<|state_start|>',
        '<|state_pad|>',
        '<|state_end|>',
        '<|vla|>',
    ),
    '2025-12': (
        '<|action_start|>',
        '<|action_pad|>',
        '<|action_end|>',
        '<|state_start|>',
        '<|state_pad|>',
        '<|state_end|>',
        '<|vla|>',
        '<|action_pass|>',
    ),
}
# VLAConfig field -> its token
TOKEN_OF = {
    'image_pad_id': '<|image_pad|>',
    'video_pad_id': '<|video_pad|>',
    'state_pad_id': '<|state_pad|>',
    'action_start_id': '<|action_start|>',
    'action_pad_id': '<|action_pad|>',
    'action_pass_id': '<|action_pass|>',
}
HEAD = ('state_proj.', 'action_')  # names begin so that EO-1 has and Qwen2.5-VL has not


# -----------------------------------------------------------------------------
# names


class Part(NamedTuple):
    """Where a published tensor goes: into rows of one of our parameters."""

    ours: str
    rows: slice
    shape: tuple[int, ...]  # Shape of the published tensor.


class Found(NamedTuple):
    """Where a published tensor lies: a file of the folder, under which key."""

    file: str
    key: str
    shape: tuple[int, ...]


def hub_name(key: str) -> str:
    """Any generation's name of a tensor -> the one in the published Qwen2.5-VL files.

    The head keeps EO-1's. Generations: vlm_backbone.model.* (EO-1), model.language_model.*
    (transformers 5), model.vlm_backbone.* (LeRobot).
    """
    for pattern, start in (
        (r'.*\bvisual\.', 'visual.'),
        (r'.*\blanguage_model\.', 'model.'),
        (r'.*\bvlm_backbone\.', ''),
        (r'.*\b(?=state_proj|action_)', ''),
    ):
        key, found = re.subn('^' + pattern, start, key)
        if found:
            break
    return key


def hub_names(cfg: 'VLAConfig') -> dict[str, list[str]]:
    """Our parameter -> the tensors it is made of, stacked along the first axis."""
    modules = {
        'embed_tokens': 'model.embed_tokens',
        'decoder.norm': 'model.norm',
        'lm_head': 'lm_head',
        'state_in': 'state_proj',
        'head.action_in': 'action_in_proj',
        'head.time_mlp_in': 'action_time_mlp_in',
        'head.time_mlp_out': 'action_time_mlp_out',
        'head.action_out.0': 'action_out_proj.0',
        'head.action_out.2': 'action_out_proj.2',
        'vision.patch': 'visual.patch_embed.proj',
        'vision.norm': 'visual.merger.ln_q',
        'vision.merge_in': 'visual.merger.mlp.0',
        'vision.merge_out': 'visual.merger.mlp.2',
    }
    gated = {'up': 'mlp.gate_proj mlp.up_proj', 'down': 'mlp.down_proj'}
    decoder = {
        'norm1': 'input_layernorm',
        'qkv': 'self_attn.q_proj self_attn.k_proj self_attn.v_proj',
        'out': 'self_attn.o_proj',
        'norm2': 'post_attention_layernorm',
        **gated,
    }
    tower = {'norm1': 'norm1', 'qkv': 'attn.qkv', 'proj': 'attn.proj', 'norm2': 'norm2', **gated}
    for ours, theirs, n, block in (
        ('decoder.blocks', 'model.layers', cfg.n_layers, decoder),
        ('vision.blocks', 'visual.blocks', cfg.vision_layers, tower),
    ):
        for i in range(n):
            for module, parts in block.items():
                named = [f'{theirs}.{i}.{part}' for part in parts.split()]
                modules[f'{ours}.{i}.{module}'] = ' '.join(named)
    names = {}
    for module, parts in modules.items():
        for kind in ('weight', 'bias'):
            names[f'{module}.{kind}'] = [f'{part}.{kind}' for part in parts.split()]
    return names


def hub_parts(model: 'VLA') -> dict[str, Part]:
    """Published tensor -> the rows of our parameter that it fills."""
    cfg = model.cfg
    parts = {}
    qkv = [n * cfg.head_dim for n in (cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads)]
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for ours, names in hub_names(cfg).items():
        if ours not in shapes:  # a bias that we have not, or a tied table
            continue
        sizes = [shapes[ours][0] // len(names)] * len(names)
        if len(names) == 3:
            sizes = qkv
        start = 0
        for name, size in zip(names, sizes):
            shape = (size, *shapes[ours][1:])
            if ours == 'vision.patch.weight':  # theirs is a convolution
                shape = (size, 3, cfg.patch_frames, cfg.patch_size, cfg.patch_size)
            parts[name] = Part(ours, slice(start, start + size), shape)
            start += size
    return parts


# -----------------------------------------------------------------------------
# settings


# What config.json of Qwen2.5-VL-3B-Instruct says of sizes, for estimates where the folder is not
# there yet. Ids of tokens stand in it as well and are not needed for that.
QWEN_3B: dict[str, Any] = dict(
    vocab_size=151_936,
    hidden_size=2048,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    intermediate_size=11_008,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    rope_scaling=dict(mrope_section=[16, 24, 24]),
    tie_word_embeddings=True,
    image_token_id=151_655,
    video_token_id=151_656,
    vision_config=dict(
        depth=32,
        hidden_size=1280,
        num_heads=16,
        intermediate_size=3420,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=2,
        window_size=112,
        fullatt_block_indexes=[7, 15, 23, 31],
        tokens_per_second=2,
    ),
)


def config_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    """Fields of VLAConfig from the config.json of Qwen2.5-VL (flat or nested) or EO-1.

    Without an action head in it these are the sizes EO-1 starts from.

    Raises:
        ValueError: an action head that is not EO-1's.
    """
    text = hf['text_config'] if 'text_config' in hf else hf
    tower = hf['vision_config']
    rope = text['rope_parameters'] if 'rope_parameters' in text else text['rope_scaling'] | text
    cfg = dict(
        vocab_size=text['vocab_size'],
        hidden_size=text['hidden_size'],
        n_layers=text['num_hidden_layers'],
        n_heads=text['num_attention_heads'],
        n_kv_heads=text['num_key_value_heads'],
        head_dim=text['hidden_size'] // text['num_attention_heads'],
        intermediate_size=text['intermediate_size'],
        mlp='swiglu',
        norm_eps=text['rms_norm_eps'],
        rope_theta=rope['rope_theta'],
        mrope_section=tuple(rope['mrope_section']),
        tie_embeddings=(hf if 'tie_word_embeddings' in hf else text)['tie_word_embeddings'],
        vision='qwen',
        image_pad_id=hf['image_token_id'],
        video_pad_id=hf['video_token_id'],
        **{ours: tower[theirs] for ours, theirs in HUB_CONFIG.items()},
        vision_full_blocks=tuple(tower['fullatt_block_indexes']),
        prefix_attention='causal',
        chunk_attention='causal',
        predict='velocity',
        row_embedding=False,
        state_frequencies=0,
        head_layers=2,
        time_period_min=4e-3,
        time_period_max=4.0,
        text_weight=1.0,
        horizon=16,
        state_dim=32,
        action_dim=32,
    )
    if 'action_chunk_size' in hf:
        if hf['action_act'] != 'linear' or hf['num_action_layers'] != 2:
            raise ValueError(
                f'action head of {hf["num_action_layers"]} layers with {hf["action_act"]!r} '
                "between them, expected 2 with 'linear', as EO-1 has it"
            )
        cfg |= dict(
            horizon=hf['action_chunk_size'],
            state_dim=hf['max_action_dim'],
            action_dim=hf['max_action_dim'],
            state_pad_id=hf['state_token_id'],
            action_pad_id=hf['action_token_id'],
            action_pass_id=hf['action_pass_id'],
        )
    return cfg


def config_to_hf(cfg: 'VLAConfig', model_type: str = 'qwen2_5_vl') -> dict[str, Any]:
    """The other way: a config.json.

    Raises:
        ValueError: that layout cannot say what this model is.
    """
    needed = dict(vision='qwen', mlp='swiglu', head_layers=2, row_embedding=False)
    differ = [f'{k}={getattr(cfg, k)!r}' for k, v in needed.items() if getattr(cfg, k) != v]
    if differ:
        raise ValueError(
            "only a model of Qwen2.5-VL's architecture with EO-1's head can be written in its "
            f'layout, not one with {", ".join(differ)}'
        )
    rope = dict(
        rope_type='default',
        type='default',
        mrope_section=list(cfg.mrope_section),
        rope_theta=cfg.rope_theta,
    )
    text = dict(
        model_type='qwen2_5_vl_text',
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.hidden_size,
        intermediate_size=cfg.intermediate_size,
        num_hidden_layers=cfg.n_layers,
        hidden_act='silu',
        num_attention_heads=cfg.n_heads,
        num_key_value_heads=cfg.n_kv_heads,
        rms_norm_eps=cfg.norm_eps,
        rope_scaling=rope,
        rope_theta=cfg.rope_theta,
        tie_word_embeddings=cfg.tie_embeddings,
        use_sliding_window=False,
    )
    tower = dict(
        model_type='qwen2_5_vl',
        hidden_act='silu',
        in_channels=3,
        **{theirs: getattr(cfg, ours) for ours, theirs in HUB_CONFIG.items()},
        fullatt_block_indexes=list(cfg.vision_full_blocks),
        out_hidden_size=cfg.hidden_size,
    )
    return dict(
        architectures=['Qwen2_5_VLForConditionalGeneration'],
        model_type=model_type,
        text_config=text,
        vision_config=tower,
        image_token_id=cfg.image_pad_id,
        video_token_id=cfg.video_pad_id,
        tie_word_embeddings=cfg.tie_embeddings,
        action_chunk_size=cfg.horizon,
        max_action_dim=cfg.action_dim,
        state_token_id=cfg.state_pad_id,
        action_token_id=cfg.action_pad_id,
        action_pass_id=cfg.action_pass_id,
        num_action_layers=2,
        action_act='linear',
    )


def read_config(folder: str) -> dict[str, Any]:
    """Fields of VLAConfig from a folder's config.json and tokenizer.json.

    Ids of tokens come from tokenizer.json where there is one; the two files have to agree. A
    tokenizer without action tokens is taken to get them as EO-1 adds them.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it is another model's, or the two files differ.
    """
    path = f'{folder}/config.json'
    if not os.path.exists(path):
        raise FileNotFoundError(holds_no_model(folder))
    hf = read_json(path)
    try:
        fields = config_from_hf(hf)
    except KeyError as missing:
        raise ValueError(
            f'{path} lacks {missing}: it is no config.json of Qwen2.5-VL or EO-1'
        ) from None
    except (ValueError, TypeError, ZeroDivisionError) as fault:
        raise ValueError(f'{path}: {fault}') from None
    _check_fields_of(path, fields)
    if os.path.exists(f'{folder}/tokenizer.json'):
        tokenizer = add_action_tokens(load_tokenizer(f'{folder}/tokenizer.json'))
        ids = {field: tokenizer.token_to_id(token) for field, token in TOKEN_OF.items()}
        faults = id_faults(ids, fields)
        if faults:
            raise ValueError(f'{folder}: ' + '; '.join(faults))
        fields |= ids
    return fields


def _check_fields_of(path: str, fields: dict[str, Any]) -> None:
    """Raise ValueError where a config.json gives a size that is none."""
    texts = {'mlp', 'vision', 'prefix_attention', 'chunk_attention', 'predict'}
    hints = dict.fromkeys(fields, 'int') | dict.fromkeys(texts, 'str')
    numbers = 'norm_eps rope_theta time_period_min time_period_max text_weight tokens_per_second'
    hints |= dict.fromkeys(numbers.split(), 'float')
    hints |= dict.fromkeys(('tie_embeddings', 'row_embedding'), 'bool')
    hints |= dict.fromkeys(('mrope_section', 'vision_full_blocks'), 'tuple')
    try:
        check_sizes(fields, hints)
    except ValueError as fault:
        raise ValueError(f'{path}: {fault}') from None


def id_faults(ids: dict[str, int | None], fields: dict[str, Any]) -> list[str]:
    """What is wrong with the ids of tokenizer.json beside the fields of config.json."""
    faults = []
    for field, i in ids.items():
        token = TOKEN_OF[field]
        if field in fields and fields[field] != i:
            faults.append(f'{token} is {i} in tokenizer.json, {fields[field]} in config.json')
        if i is not None and i >= fields['vocab_size']:
            faults.append(f'{token} is {i}, the table has {fields["vocab_size"]} rows')
    return faults


# -----------------------------------------------------------------------------
# weights


def find_tensors(folder: str) -> dict[str, Found]:
    """Published name -> where the tensor lies, in one file or in shards; reads headers only.

    Raises:
        FileNotFoundError: a file is missing.
    """
    files = ['model.safetensors']
    index = f'{folder}/model.safetensors.index.json'
    if os.path.exists(index):
        files = _files_of_index(index)
    found = {}
    for file in files:
        with open_tensors(f'{folder}/{file}') as tensors:
            for key in tensors.keys():
                part = tensors.get_slice(key)
                if part.get_dtype() not in FLOATS:
                    raise ValueError(
                        f'{folder}/{file}: {key} is {part.get_dtype()}, expected one of '
                        f'{", ".join(FLOATS)}'
                    )
                found[hub_name(key)] = Found(file, key, tuple(part.get_shape()))
    return found


def _files_of_index(index: str) -> list[str]:
    """The shards that an index names, all of them beside it."""
    names = read_json(index).get('weight_map')
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: 'weight_map' does not say which file each tensor lies in")
    for key, file in names.items():
        if not isinstance(file, str) or file != os.path.basename(file) or file in ('', '.', '..'):
            raise ValueError(f'{index}: {key} lies in {file!r}, expected a file beside the index')
    return sorted(set(names.values()))


FLOATS = ('F64', 'F32', 'F16', 'BF16')


@contextlib.contextmanager
def open_tensors(path: str) -> Iterator[Any]:
    """Open a safetensors file, of which somebody else may have made a mess.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is none, or cannot be read; the text names the file.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f'{path} is missing: the folder is not complete')
    if not os.path.isfile(path):
        raise ValueError(f'{path} is no regular file')  # a pipe would be waited for
    if not os.access(path, os.R_OK):
        raise ValueError(f'{path} cannot be read by this user: its owner has to allow it')
    try:
        with safe_open(path, 'pt') as tensors:
            yield tensors
    except SafetensorError as fault:
        raise ValueError(f'{path} is cut off or damaged: {fault}') from None


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite; it is looked at in parts, to save memory."""
    return all(bool(torch.isfinite(part).all()) for part in tensor.flatten().split(2**20))


def read_weights(path: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read weights that fit a network: names, shapes, finite numbers.

    Names and shapes are compared before a tensor is read.

    Args:
        path: A safetensors file of ours.
        shapes: Of all tensors of the network.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It does not fit, or is damaged; the text names file and tensor.
    """
    with open_tensors(path) as tensors:
        there = {}
        for name in tensors.keys():
            part = tensors.get_slice(name)
            # Numbers by themselves were saved without an axis by early revisions.
            there[name] = tuple(part.get_shape()) or (1,)
            if part.get_dtype() not in FLOATS:
                raise ValueError(f'{path}: {name} is {part.get_dtype()}, expected floating point')
        faults = misfits(there, shapes)
        if faults:
            raise ValueError(f'{path} does not fit the sizes in meta.json: {"; ".join(faults)}')
        weights = {name: tensors.get_tensor(name).view(shapes[name]) for name in there}
    for name, tensor in weights.items():
        if not is_finite(tensor):
            raise ValueError(f'{path}: {name} is not finite: the run has diverged or it is damaged')
    return weights


def misfits(
    there: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What is missing, too many or misshapen among tensors, in words; of each kind a few names."""
    missing = [name for name in wanted if name not in there]
    extra = [name for name in there if name not in wanted]
    other_shape = [
        f'{name} {there[name]} for {shape}'
        for name, shape in wanted.items()
        if name in there and there[name] != shape
    ]
    faults = []
    kinds = {'missing': missing, 'not in the model': extra, 'other shape': other_shape}
    for what, names in kinds.items():
        if names:
            more = f' and {len(names) - 5} more' if len(names) > 5 else ''
            faults.append(f'{what}: {", ".join(names[:5])}{more}')
    return faults


def check_fit(folder: str, found: dict[str, Found], wanted: dict[str, Part]) -> None:
    """Raise one ValueError that names all tensors that are missing, too many or misshapen."""
    there = {name: place.shape for name, place in found.items()}
    faults = misfits(there, {name: part.shape for name, part in wanted.items()})
    if faults:
        raise ValueError(
            f'the tensors in {folder} do not fit its config.json: ' + '; '.join(faults)
        )


def fill(model: 'VLA', folder: str, dtype: torch.dtype | None = None) -> None:
    """Give a model whose Qwen2.5-VL part is on the meta device the weights of a folder.

    Beside the weights one tensor at a time is in memory. The action head stays float32, as EO-1
    keeps it; where the folder has none, the model's own stays as it is.

    Args:
        model: it is changed.
        folder: published, see find_tensors.
        dtype: of all but the action head; None: as in the files.
    """
    found = find_tensors(folder)
    wanted = hub_parts(model)
    if model.cfg.tie_embeddings:
        found.pop('lm_head.weight', None)  # a copy that some files hold
    if not any(name.startswith(HEAD) for name in found):
        wanted = {name: part for name, part in wanted.items() if not name.startswith(HEAD)}
    check_fit(folder, found, wanted)
    ours: dict[str, Tensor] = {}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for file in dict.fromkeys(place.file for place in found.values()):
        with open_tensors(f'{folder}/{file}') as tensors:
            for name, part in wanted.items():
                if found[name].file != file:
                    continue
                tensor = tensors.get_tensor(found[name].key)
                if not is_finite(tensor):
                    raise ValueError(f'{folder}/{file}: {found[name].key} is not finite')
                if part.ours not in ours:
                    kind = dtype or tensor.dtype
                    if name.startswith(HEAD):
                        kind = torch.float32
                    ours[part.ours] = torch.empty(shapes[part.ours], dtype=kind)
                ours[part.ours][part.rows] = tensor.view(-1, *shapes[part.ours][1:])
    model.load_state_dict(ours, strict=False, assign=True)


def save(model: 'VLA', folder: str, layout: str = 'hf') -> None:
    """Write model.safetensors and config.json.

    Args:
        model: of Qwen2.5-VL's architecture.
        folder: made where it is missing.
        layout: 'hf': as transformers' Qwen2.5-VL reads them, the action head beside it under EO-1's
            names, which transformers calls unexpected; 'eo1': all under EO-1's names.

    Raises:
        ValueError: another layout, or a model that it cannot say.
    """
    if layout not in ('hf', 'eo1'):
        raise ValueError(f"layout {layout!r}, expected 'hf' or 'eo1'")
    hf = config_to_hf(model.cfg, 'eo1' if layout == 'eo1' else 'qwen2_5_vl')
    os.makedirs(folder, exist_ok=True)
    state = model.state_dict()
    tensors = {}
    for name, (ours, rows, shape) in hub_parts(model).items():
        prefix = 'vlm_backbone.' if layout == 'eo1' and not name.startswith(HEAD) else ''
        tensors[prefix + name] = state[ours][rows].view(shape)
    write_tensors(f'{folder}/model.safetensors', tensors, {'format': 'pt'})
    write_json(f'{folder}/config.json', hf)


def write_tensors(
    path: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all."""
    tensors = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    write_atomic(path, lambda tmp: save_file(tensors, tmp, metadata))


def write_json(path: str, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_atomic(path, json.dumps(value, indent=1).encode())


# -----------------------------------------------------------------------------
# text


def add_action_tokens(
    tokenizer: tokenizers.Tokenizer, order: str = '2025-12'
) -> tokenizers.Tokenizer:
    """Put EO-1's tokens behind the last one of a Qwen tokenizer, which is changed and returned.

    They use spare rows of its table. A tokenizer that has them, in whatever order, is left as it
    is.
    """
    if tokenizer.token_to_id('<|action_start|>') is None:
        tokenizer.add_special_tokens(list(ACTION_TOKENS[order]))
    return tokenizer


class Chat:
    """Prompts of a Qwen2.5-VL or EO-1 folder: text, pictures and state to a batch for VLA."""

    def __init__(self, folder: str):
        self.tokenizer = add_action_tokens(load_tokenizer(f'{folder}/tokenizer.json'))
        path, settings = read_picture_settings(folder)
        size = settings['size'] if isinstance(settings.get('size'), dict) else {}
        names = (('min_pixels', 'shortest_edge'), ('max_pixels', 'longest_edge'))
        self.pixels: list[Any] = [settings[a] if a in settings else size.get(b) for a, b in names]
        sizes = ('patch_size', 'merge_size', 'temporal_patch_size')
        self.sizes: list[Any] = [settings.get(name) for name in sizes]
        known = {pair[0]: value for pair, value in zip(names, self.pixels)}
        for name, value in (known | dict(zip(sizes, self.sizes))).items():
            if not is_whole(value, 1, 100_000_000):
                raise ValueError(f'{path}: {name} is {value!r}, expected a whole number above 0')
        self.end = self.tokenizer.token_to_id('<|im_end|>')  # closes an answer

    def prompt(
        self,
        text: str,
        image_tokens: Sequence[int] = (),
        state: bool = False,
        system: str = 'You are a helpful assistant.',
    ) -> str:
        """Everything up to where the answer begins.

        Args:
            text: EO-1 ends a task with <|vla|>.
            image_tokens: how many tokens each picture has.
            state: whether there is a place for the state.
            system: EO-1 was trained with 'You are a helpful physical assistant.'
        """
        pictures = ''
        for n in image_tokens:
            pictures += f'<|vision_start|>{"<|image_pad|>" * n}<|vision_end|>'
        state_text = '<|state_start|><|state_pad|><|state_end|>' if state else ''
        return (
            f'<|im_start|>system\n{system}<|im_end|>\n'
            f'<|im_start|>user\n{pictures}{state_text}{text}<|im_end|>\n<|im_start|>assistant\n'
        )

    def encode(self, pictures: Sequence, text: str, state: Any = None, **how: str) -> Batch:
        """A batch of one prompt.

        Args:
            pictures: (h, w, 3) uint8 of any sizes.
            text: see prompt.
            state: (S,), or None.
            how: further arguments of prompt.
        """
        patches, grids = vision.preprocess(pictures, *self.pixels, *self.sizes)
        cell = self.sizes[1] ** 2
        image_tokens = [t * h * w // cell for t, h, w in grids]
        prompt = self.prompt(text, image_tokens, state is not None, **how)
        ids = torch.tensor([self.tokenizer.encode(prompt, add_special_tokens=False).ids])
        length = torch.tensor([ids.shape[1]])
        batch: Batch = dict(input_ids=ids, user_len=length, total_len=length)
        if grids:
            batch |= dict(patches=patches, grids=grids)
        if state is not None:
            batch['state'] = torch.as_tensor(state)[None]
        return batch


def read_picture_settings(folder: str) -> tuple[str, dict[str, Any]]:
    """How a folder's processor prepares pictures: the file that says it, and its settings.

    Raises:
        FileNotFoundError: the folder does not say.
        ValueError: the file is damaged.
    """
    for name in ('preprocessor_config.json', 'processor_config.json'):
        path = f'{folder}/{name}'
        if os.path.exists(path):
            settings = read_json(path)
            inner = settings.get('image_processor')
            return path, inner if isinstance(inner, dict) else settings
    raise FileNotFoundError(f'{folder} holds no preprocessor_config.json: how large are pictures?')
