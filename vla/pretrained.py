"""Folders of Qwen2.5-VL and EO-1 on disk: names and settings, shards, action tokens, chat prompts.

    cfg = VLAConfig(**pretrained.read_config(folder))    # what VLA.from_pretrained does
    pretrained.fill(model, folder)
    tokenizer = pretrained.add_action_tokens(tokenizers.Tokenizer.from_file(path))
    batch = pretrained.Chat(folder).encode([image], 'Which brick is on top?')
A name here is a published one ("model.layers.0.mlp.up_proj.weight") unless it is called ours.
"""

import json
import os
import re

import tokenizers
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from episode import write_atomic
from vla import vision

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
HEAD = ('state_proj.', 'action_')  # what EO-1 has and Qwen2.5-VL has not


# -----------------------------------------------------------------------------
# names


def hub_name(key):
    """Any generation's name of a tensor -> the one in the published Qwen2.5-VL files; the head
    keeps EO-1's. vlm_backbone.model.* (EO-1), model.language_model.* (transformers 5),
    model.vlm_backbone.* (LeRobot).
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


def hub_names(cfg):
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
        modules |= {
            f'{ours}.{i}.{a}': ' '.join(f'{theirs}.{i}.{part}' for part in b.split())
            for i in range(n)
            for a, b in block.items()
        }
    return {
        f'{ours}.{kind}': [f'{part}.{kind}' for part in theirs.split()]
        for ours, theirs in modules.items()
        for kind in ('weight', 'bias')
    }


def hub_parts(model):
    """Name -> (our parameter's name, its rows that the tensor fills, the tensor's shape)."""
    cfg = model.cfg
    parts = {}
    qkv = [n * cfg.head_dim for n in (cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads)]
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for ours, names in hub_names(cfg).items():
        if ours in shapes:
            sizes = qkv if len(names) == 3 else [shapes[ours][0] // len(names)] * len(names)
            start = 0
            for name, size in zip(names, sizes):
                shape = (size, *shapes[ours][1:])
                if ours == 'vision.patch.weight':  # theirs is a convolution
                    shape = (size, 3, cfg.patch_frames, cfg.patch_size, cfg.patch_size)
                parts[name] = ours, slice(start, start + size), shape
                start += size
    return parts


# -----------------------------------------------------------------------------
# settings


def config_from_hf(hf):
    """config.json of Qwen2.5-VL (flat or nested) or EO-1 -> fields of VLAConfig. Without an action
    head in it these are the sizes EO-1 starts from.
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
        norm='rms',
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
                f'action head {hf["action_act"]!r} x {hf["num_action_layers"]}: '
                'only two linear layers'
            )
        cfg |= dict(
            horizon=hf['action_chunk_size'],
            state_dim=hf['max_action_dim'],
            action_dim=hf['max_action_dim'],
            state_pad_id=hf['state_token_id'],
            action_pad_id=hf['action_token_id'],
            action_pass_id=hf['action_pass_id'],
            eo1_compat=True,
        )
    return cfg


def config_to_hf(cfg, model_type='qwen2_5_vl'):
    """The other way; only for what that layout can say."""
    ours = (cfg.vision, cfg.mlp, cfg.norm, cfg.head_layers, bool(cfg.row_embedding))
    if ours != ('qwen', 'swiglu', 'rms', 2, False):
        raise ValueError("only a model of Qwen2.5-VL's architecture can be written in its layout")
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


def read_config(folder):
    """Fields of VLAConfig from config.json, and ids of tokens from tokenizer.json where there is
    one; the two have to agree. A tokenizer without action tokens is taken to get them as EO-1 adds
    them.
    """
    with open(f'{folder}/config.json') as f:
        fields = config_from_hf(json.load(f))
    if os.path.exists(f'{folder}/tokenizer.json'):
        tokenizer = add_action_tokens(tokenizers.Tokenizer.from_file(f'{folder}/tokenizer.json'))
        ids = {field: tokenizer.token_to_id(token) for field, token in TOKEN_OF.items()}
        differ = [
            f'{TOKEN_OF[k]} is {ids[k]} in tokenizer.json, {fields[k]} in config.json'
            for k in ids
            if fields.get(k, ids[k]) != ids[k]
        ]
        differ += [
            f'{TOKEN_OF[k]} is {i}, the table has {fields["vocab_size"]} rows'
            for k, i in ids.items()
            if i is not None and i >= fields['vocab_size']
        ]
        if differ:
            raise ValueError(f'{folder}: ' + '; '.join(differ))
        fields |= ids
    return fields


# -----------------------------------------------------------------------------
# weights


def find_tensors(folder):
    """Name -> (file, key in it, shape) of a folder's tensors, in one file or shards; reads headers
    only.
    """
    files = ['model.safetensors']
    index = f'{folder}/model.safetensors.index.json'
    if os.path.exists(index):
        with open(index) as f:
            files = sorted(set(json.load(f)['weight_map'].values()))
    found = {}
    for file in files:
        if not os.path.exists(f'{folder}/{file}'):
            raise FileNotFoundError(f'{folder}/{file} is missing: the download is not complete')
        with safe_open(f'{folder}/{file}', 'pt') as tensors:
            found |= {
                hub_name(key): (file, key, tuple(tensors.get_slice(key).get_shape()))
                for key in tensors.keys()
            }
    return found


def fill(model, folder, dtype=None):
    """Give a model whose Qwen2.5-VL part is on the meta device the weights of a folder. Beside the
    weights one tensor at a time is in memory. dtype: of that part; None: as in the files. The
    action head stays float32, as EO-1 keeps it; where the folder has none, the model's own stays as
    it is.
    """
    found = find_tensors(folder)
    wanted = hub_parts(model)
    if model.cfg.tie_embeddings:
        found.pop('lm_head.weight', None)  # a copy that some files hold
    if not any(name.startswith(HEAD) for name in found):
        wanted = {name: part for name, part in wanted.items() if not name.startswith(HEAD)}
    faults = {
        'missing': [name for name in wanted if name not in found],
        'not in the model': [name for name in found if name not in wanted],
        'other shape': [
            f'{name} {found[name][2]} for {shape}'
            for name, (_, _, shape) in wanted.items()
            if name in found and found[name][2] != shape
        ],
    }
    if any(faults.values()):
        raise ValueError(
            f'{folder} does not fit its config.json: '
            + '; '.join(f'{what}: {", ".join(names)}' for what, names in faults.items() if names)
        )
    ours = {}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for file in dict.fromkeys(file for file, _, _ in found.values()):
        with safe_open(f'{folder}/{file}', 'pt') as tensors:
            for name in (name for name in wanted if found[name][0] == file):
                target, rows, _ = wanted[name]
                tensor = tensors.get_tensor(found[name][1])
                if target not in ours:
                    kind = torch.float32 if name.startswith(HEAD) else dtype or tensor.dtype
                    ours[target] = torch.empty(shapes[target], dtype=kind)
                ours[target][rows] = tensor.view(-1, *shapes[target][1:])
    model.load_state_dict(ours, strict=False, assign=True)


def save(model, folder, layout='hf'):
    """Write model.safetensors and config.json. 'hf': as transformers' Qwen2.5-VL reads them, the
    action head beside it under EO-1's names, which transformers calls unexpected; 'eo1': all under
    EO-1's names.
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


def write_tensors(path, tensors, metadata=None):
    tensors = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    write_atomic(path, lambda tmp: save_file(tensors, tmp, metadata))


def write_json(path, value):
    write_atomic(path, json.dumps(value, indent=1).encode())


# -----------------------------------------------------------------------------
# text


def add_action_tokens(tokenizer, order='2025-12'):
    """EO-1's tokens behind the last one of a Qwen tokenizer: they use spare rows of its table. A
    tokenizer that has them, in whatever order, is left as it is.
    """
    if tokenizer.token_to_id('<|action_start|>') is None:
        tokenizer.add_special_tokens(list(ACTION_TOKENS[order]))
    return tokenizer


class Chat:
    """Prompts of a Qwen2.5-VL or EO-1 folder: text, pictures and state to the batch that VLA
    reads.
    """

    def __init__(self, folder):
        self.tokenizer = add_action_tokens(
            tokenizers.Tokenizer.from_file(f'{folder}/tokenizer.json')
        )
        name = next(
            (
                name
                for name in ('preprocessor_config.json', 'processor_config.json')
                if os.path.exists(f'{folder}/{name}')
            ),
            None,
        )
        if name is None:
            raise FileNotFoundError(
                f'{folder} holds no preprocessor_config.json: how large are pictures?'
            )
        with open(f'{folder}/{name}') as f:
            settings = json.load(f)
        settings = settings['image_processor'] if 'image_processor' in settings else settings
        size = settings['size'] if 'size' in settings else {}
        self.pixels = [
            settings[a] if a in settings else size[b]
            for a, b in (('min_pixels', 'shortest_edge'), ('max_pixels', 'longest_edge'))
        ]
        self.sizes = [
            settings[name] for name in ('patch_size', 'merge_size', 'temporal_patch_size')
        ]
        self.end = self.tokenizer.token_to_id('<|im_end|>')  # of an answer

    def prompt(self, text, image_tokens=(), state=False, system='You are a helpful assistant.'):
        """Everything up to where the answer begins. image_tokens: how many tokens each picture has.
        EO-1 was trained with system='You are a helpful physical assistant.' and ends a task with
        <|vla|>.
        """
        pictures = ''.join(
            f'<|vision_start|>{"<|image_pad|>" * n}<|vision_end|>' for n in image_tokens
        )
        state = '<|state_start|><|state_pad|><|state_end|>' if state else ''
        return (
            f'<|im_start|>system\n{system}<|im_end|>\n'
            f'<|im_start|>user\n{pictures}{state}{text}<|im_end|>\n<|im_start|>assistant\n'
        )

    def encode(self, pictures, text, state=None, **how):
        """pictures: (h, w, 3) uint8 of any sizes; state (S,) or None -> batch of one sample."""
        patches, grids = vision.preprocess(pictures, *self.pixels, *self.sizes)
        cell = self.sizes[1] ** 2
        prompt = self.prompt(
            text, [t * h * w // cell for t, h, w in grids], state is not None, **how
        )
        ids = torch.tensor([self.tokenizer.encode(prompt, add_special_tokens=False).ids])
        length = torch.tensor([ids.shape[1]])
        batch = dict(input_ids=ids, user_len=length, total_len=length)
        batch |= dict(patches=patches, grids=grids) if grids else {}
        return batch | (dict(state=torch.as_tensor(state)[None]) if state is not None else {})
