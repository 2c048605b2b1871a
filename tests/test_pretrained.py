"""Qwen2.5-VL and EO-1 checkpoints compute here what they compute in the published code.

Oracles: in tests/fixtures/eo1 outputs of the public EO-1 model (transformers 4.56), tiny and
random; and the installed transformers, on tiny random models made here.

    python -m pytest tests/test_pretrained.py
"""

import dataclasses
import functools
import json
import re
import shutil

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

import model
from model import VLA
from vla import inline, layout, pretrained, vision
from vla.processor import Processor

torch.set_num_threads(1)
FOLDER = 'tests/fixtures/eo1'
GO = 607  # <|action_start|>: the tokenizer's to say, config.json does not
TOLERANCE = 2e-4  # asked for; 1e-5 is reached


def load(name):
    return [load_file(f'{FOLDER}/{name}.{part}.safetensors') for part in ('inputs', 'outputs')]


def as_batch(x):
    """The published model's inputs in our names."""
    total = x['attention_mask'].sum(1)
    batch = dict(
        input_ids=x['input_ids'],
        user_len=total,
        total_len=total,
        patches=x['pixel_values'],
        grids=x['image_grid_thw'].tolist(),
        state=x['states'],
    )
    if 'labels' in x:
        batch |= dict(
            labels=x['labels'],
            actions=x['actions'],
            noise=x['noise'],
            time=x['time'],
            action_mask=~x['action_is_pad'],
        )
    return batch


def split(batch):
    """vla_right_pad's two samples, two pictures each, without padding."""
    cut = sum(t * h * w for t, h, w in batch['grids'][:2])
    parts = []
    for i, rows in enumerate((slice(cut), slice(cut, None))):
        n = batch['total_len'][i]
        parts.append(
            {k: v[i : i + 1] for k, v in batch.items()}
            | dict(
                patches=batch['patches'][rows],
                grids=batch['grids'][2 * i : 2 * i + 2],
                **{k: batch[k][i : i + 1, :n] for k in ('input_ids', 'labels')},
            )
        )
    return parts


@pytest.fixture(scope='module')
def net():
    return VLA.from_pretrained(FOLDER, action_start_id=GO)


def distance(a, b):
    return (a - b).abs().max().item()


def hidden_states(net, batch):
    return net.decoder(net.embed_prefix(batch)[0], net.prefix_layout(batch))[0]


def hidden_inline(net, batch):
    """Hidden states of text with chunks inside, noised as EO-1 does it."""
    return net.decoder(inline.embed(net, batch, eo1_compat=True), inline.layout(net, batch))[0]


# -----------------------------------------------------------------------------
# EO-1


@pytest.mark.parametrize('name', ['vla_right_pad', 'interleaved_pass'])
def test_forward_matches_eo1(net, name):
    inputs, expected = load(name)
    batch, real = as_batch(inputs), inputs['attention_mask'].bool()
    position = inline.layout(net, batch).position
    assert torch.equal(position[:, real], expected['position_ids'][:, real])
    embedded = inline.embed(net, batch, eo1_compat=True)
    assert distance(embedded[real], expected['inputs_embeds'][real]) < TOLERANCE
    hidden = hidden_inline(net, batch)
    assert distance(hidden[real], expected['last_hidden_state'][real]) < TOLERANCE
    velocity = net.head.action_out(hidden[net.row_tokens(batch['input_ids'])])
    assert distance(velocity, expected['v_t']) < TOLERANCE


@pytest.mark.parametrize('name', ['vla_right_pad', 'interleaved_pass'])
def test_losses_and_gradients_match_eo1(net, name):
    inputs, expected = load(name)
    loss, parts = inline.loss(net, as_batch(inputs), eo1_compat=True)
    assert distance(parts['flow'], expected['fm_loss']) < TOLERANCE
    assert distance(parts['text'], expected['ar_loss']) < TOLERANCE
    assert distance(loss, expected['loss']) < TOLERANCE
    net.zero_grad()
    loss.backward()
    with open(f'{FOLDER}/{name}.gradnorm.json') as f:
        norms = {pretrained.hub_name(key): norm for key, norm in json.load(f).items()}
    grads, compared = {ours: p.grad for ours, p in net.named_parameters()}, 0
    for key, (ours, rows, _) in pretrained.hub_parts(net).items():
        if key in norms:
            assert abs(grads[ours][rows].norm().item() - norms[key]) < 1e-3 * norms[key] + 1e-6, key
            compared += 1
    assert compared > 90


def test_sampling_matches_eo1(net):
    inputs, expected = load('sample_b1_0')
    cut = inputs['input_ids'][0].tolist().index(GO) + 1
    batch = as_batch(inputs) | dict(
        input_ids=inputs['input_ids'][:, :cut], total_len=torch.tensor([cut])
    )
    actions = net.act(batch, 10, inputs['init_noise'])
    assert distance(actions, expected['actions']) < TOLERANCE


def test_acting_on_a_row_that_still_holds_its_chunk_is_refused(net):
    batch = as_batch(load('sample_b1_0')[0])
    with pytest.raises(ValueError, match='6 places for rows of action chunks'):
        net.check_batch(batch)


def test_without_the_switch_the_mean_is_over_denoised_rows_and_clean_rows_have_time_zero(net):
    def flow(batch, eo1_compat):
        return inline.loss(net, batch, eo1_compat)[1]['flow']

    batch = as_batch(load('vla_right_pad')[0])
    # 2 of 12 rows are padding
    assert distance(flow(batch, False), flow(batch, True) * 12 / 10) < 1e-5
    batch = as_batch(load('interleaved_pass')[0])
    # other times of the two clean chunks
    others = batch | dict(time=torch.tensor([0.9, batch['time'][1], 0.7]))
    assert torch.equal(flow(batch, False), flow(others, False))
    assert not torch.equal(flow(batch, True), flow(others, True))


def test_padding_on_the_left_changes_nothing(net):
    inputs, expected = load('vla_right_pad')
    right, mask = as_batch(inputs), inputs['attention_mask']
    left, shift = dict(right), (mask == 0).sum(1).tolist()
    assert max(shift) > 0
    for key in ('input_ids', 'labels'):
        left[key] = torch.stack([row.roll(n) for row, n in zip(right[key], shift)])
    left['document'] = torch.stack([row.roll(n) for row, n in zip(mask.long(), shift)]) - 1
    a, b = hidden_inline(net, left), hidden_inline(net, right)
    assert distance(a[left['document'] == 0], b[mask.bool()]) < 1e-5
    assert distance(inline.loss(net, left, eo1_compat=True)[0], expected['loss']) < TOLERANCE
    # decoding and acting, from prompts that end with <|action_start|>
    parts = split(right)
    cuts = [part['input_ids'][0].tolist().index(GO) for part in parts]
    width, noise = max(cuts) + 1, torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    for key, pad in (('input_ids', 0), ('document', -1)):
        left[key] = torch.full((2, width), pad)
    for i, (part, cut) in enumerate(zip(parts, cuts)):
        part['input_ids'] = part['input_ids'][:, : cut + 1]
        left['input_ids'][i, width - cut - 1 :] = part['input_ids'][0]
        left['document'][i, width - cut - 1 :] = 0
        part |= dict(user_len=torch.tensor([cut]), total_len=torch.tensor([cut + 1]))
    left['user_len'] = torch.tensor(cuts)
    together = (
        net.act(left, 3, noise),
        net.act(left, 3, noise, read_text=False),
        net.generate(left, 6),
    )
    actions, texts = net.plan_and_act(left, 2, 4, noise)
    again, _ = net.plan_and_act(left, 2, noise=noise, texts=texts)
    assert distance(actions, again) < 1e-5
    for i, part in enumerate(parts):
        alone = (
            net.act(part, 3, noise[i : i + 1]),
            net.act(part, 3, noise[i : i + 1], read_text=False),
        )
        assert (
            distance(together[0][i], alone[0][0]) < 1e-5
            and distance(together[1][i], alone[1][0]) < 1e-5
        )
        assert together[2][i] == net.generate(part, 6)[0]
        assert distance(actions[i], net.plan_and_act(part, 2, 4, noise[i : i + 1])[0][0]) < 1e-5


def test_documents_packed_into_a_row_equal_separate_ones(net):
    """Attention is block-diagonal and causal, positions begin anew; the third document is text
    only."""
    parts = split(as_batch(load('vla_right_pad')[0]))
    words = torch.tensor([[601, 40, 41, 42, 43, 44, 602]])
    rows = [
        parts[0]['input_ids'],
        words,
        parts[1]['input_ids'],
        torch.zeros(1, 3, dtype=torch.int64),
    ]
    document = torch.cat([torch.full((row.shape[1],), i) for i, row in zip((0, 1, 2, -1), rows)])[
        None
    ]
    packed = {
        k: torch.cat([part[k] for part in parts])
        for k in ('patches', 'state', 'actions', 'noise', 'time', 'action_mask')
    }
    packed |= dict(
        input_ids=torch.cat(rows, 1),
        document=document,
        grids=parts[0]['grids'] + parts[1]['grids'],
        labels=torch.cat(
            [
                parts[0]['labels'],
                torch.full_like(words, -100),
                parts[1]['labels'],
                torch.full((1, 3), -100),
            ],
            1,
        ),
    )
    described = inline.layout(net, packed)
    hidden = hidden_inline(net, packed)
    text = dict(input_ids=words, user_len=torch.tensor([7]), total_len=torch.tensor([7]))
    for i, part, forward in (
        (0, parts[0], hidden_inline),
        (1, text, hidden_states),
        (2, parts[1], hidden_inline),
    ):
        at = document[0] == i
        assert torch.equal(described.position[:, :, at], net.prefix_layout(part).position)
        assert distance(hidden[:, at], forward(net, part)) < 1e-5
    seen = layout.attention_bias(described, described)[0, 0] == 0
    index = torch.arange(seen.shape[0])
    assert torch.equal(seen, (document[0] == document[0][:, None]) & (index <= index[:, None]))
    # The first word of a document is not asked of the last token of the one before it
    packed['labels'][0, :1], packed['labels'][0, rows[0].shape[1]] = 601, 601
    apart = as_batch(load('vla_right_pad')[0])
    assert distance(inline.loss(net, packed)[0], inline.loss(net, apart)[0]) < 1e-5


@pytest.mark.parametrize('bidirectional', [False, True])
def test_an_action_prefix_stays_and_is_seen_clean(net, bidirectional):
    """Rows already being executed: unchanged, at time zero, and the rest goes on from them."""
    cfg = dict(chunk_attention='bidirectional') if bidirectional else {}
    other = VLA.from_pretrained(FOLDER, action_start_id=GO, **cfg)
    inputs, _ = load('sample_b1_0')
    cut = inputs['input_ids'][0].tolist().index(GO) + 1
    batch = as_batch(inputs) | dict(
        input_ids=inputs['input_ids'][:, :cut], total_len=torch.tensor([cut])
    )
    noise, prefix = (
        inputs['init_noise'],
        torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(1)),
    )
    chunk = other.act(batch, 3, noise, action_prefix=prefix)
    assert torch.equal(chunk[:, :2], prefix)
    assert distance(chunk[:, 2:], other.act(batch, 3, noise)[:, 2:]) > 1e-3
    elsewhere = noise.clone().index_fill(1, torch.tensor([0, 1]), 7.0)
    assert torch.equal(chunk, other.act(batch, 3, elsewhere, action_prefix=prefix))
    # one Euler step by way of the training forward, which takes a flow time per row
    time = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]).view(1, 1, 6)
    actions = torch.cat([prefix, torch.zeros(1, 4, 16)], 1)
    velocity, _ = other.predict(
        batch
        | dict(
            actions=actions,
            noise=noise[:, None],
            time=time,
            read_text=torch.ones(1, 1, dtype=torch.bool),
        )
    )
    assert (
        distance(
            other.act(batch, 1, noise, action_prefix=prefix)[:, 2:], (noise - velocity[:, 0])[:, 2:]
        )
        < 1e-5
    )


# -----------------------------------------------------------------------------
# folders


@pytest.mark.parametrize('prefix', ['vlm_backbone.', '', 'model.vlm_backbone.'])
def test_every_generation_of_names_loads_from_shards(net, tmp_path, prefix):
    shutil.copy(f'{FOLDER}/config.json', tmp_path)
    tensors = {}
    for key, tensor in load_file(f'{FOLDER}/model.safetensors').items():
        key = pretrained.hub_name(key)
        head = key.startswith(('state_proj', 'action_'))
        if prefix.startswith('model.'):  # LeRobot: the names transformers 5 has in memory
            inner = (
                'model.' + key
                if key.startswith('visual.')
                else key.replace('model.', 'model.language_model.', 1)
            )
            key = 'model.' + key if head else prefix + inner
        else:
            key = key if head else prefix + key
        tensors[key] = tensor
    half = dict(list(tensors.items())[::2])
    save_file(half, tmp_path / 'a.safetensors')
    save_file({k: v for k, v in tensors.items() if k not in half}, tmp_path / 'b.safetensors')
    weight_map = {k: 'a.safetensors' if k in half else 'b.safetensors' for k in tensors}
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    again = VLA.from_pretrained(str(tmp_path), action_start_id=GO)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    (tmp_path / 'b.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='b.safetensors'):
        VLA.from_pretrained(str(tmp_path), action_start_id=GO)


def test_a_checkpoint_of_ours_is_read_by_the_same_call(net, tmp_path):
    net.save(str(tmp_path), {})
    for dtype in (None, torch.bfloat16):
        again = VLA.from_pretrained(str(tmp_path), dtype)
        assert again.cfg == net.cfg and again.embed_tokens.weight.dtype == (dtype or torch.float32)
        assert all(
            torch.equal(a.to(dtype), b) for a, b in zip(net.parameters(), again.parameters())
        )


def test_somebody_elses_meta_json_does_not_hide_a_published_folder(net, tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / 'meta.json').write_text('{"model": "EO-1", "licence": "MIT"}')
    again = VLA.from_pretrained(str(tmp_path), action_start_id=GO)
    assert again.cfg == net.cfg
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    (tmp_path / 'config.json').write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match='config.json lacks .*: it is no config.json of Qwen2.5'):
        VLA.from_pretrained(str(tmp_path), action_start_id=GO)


@pytest.mark.parametrize('layout', ['hf', 'eo1'])
def test_export_comes_back(net, tmp_path, layout):
    net.save_pretrained(str(tmp_path), layout)
    again = VLA.from_pretrained(str(tmp_path), action_start_id=GO)
    assert again.cfg == net.cfg
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    if layout == 'eo1':  # the very names and shapes of the reference's file
        theirs = load_file(f'{FOLDER}/model.safetensors')
        ours = load_file(tmp_path / 'model.safetensors')
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_one_error_lists_everything_that_is_wrong_with_a_folder(net, tmp_path):
    net.save_pretrained(str(tmp_path))
    tensors = load_file(tmp_path / 'model.safetensors')
    tensors['model.norm.bias'] = tensors.pop('model.norm.weight')
    del tensors['visual.blocks.2.attn.qkv.bias'], tensors['action_in_proj.bias']
    tensors['model.layers.1.self_attn.k_proj.weight'] = torch.zeros(65, 128)
    save_file(tensors, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError) as error:
        VLA.from_pretrained(str(tmp_path), action_start_id=GO)
    missing, extra, shape = re.search(
        'missing: (.*); not in the model: (.*); other shape: (.*)', str(error.value)
    ).groups()
    assert set(missing.split(', ')) == {
        'model.norm.weight',
        'visual.blocks.2.attn.qkv.bias',
        'action_in_proj.bias',
    }
    assert extra == 'model.norm.bias'
    assert shape == 'model.layers.1.self_attn.k_proj.weight (65, 128) for (64, 128)'


def test_weights_can_be_had_in_half_precision_and_the_head_stays_whole(net, tmp_path):
    half = VLA.from_pretrained(FOLDER, torch.bfloat16, action_start_id=GO)
    kinds = {name: p.dtype for name, p in half.named_parameters()}
    for name, kind in kinds.items():
        assert kind == (
            torch.float32 if name.startswith(('head.', 'state_in.')) else torch.bfloat16
        ), name
    inputs, expected = load('sample_b1_0')
    cut = inputs['input_ids'][0].tolist().index(GO) + 1
    batch = as_batch(inputs) | dict(
        input_ids=inputs['input_ids'][:, :cut], total_len=torch.tensor([cut])
    )
    assert distance(half.act(batch, 10, inputs['init_noise']), expected['actions']) < 0.2
    half.save_pretrained(str(tmp_path))  # and as they are in a file they come back
    again = VLA.from_pretrained(str(tmp_path), action_start_id=GO)
    assert {name: p.dtype for name, p in again.named_parameters()} == kinds


def test_loading_needs_the_weights_and_no_second_copy(tmp_path):
    """Memory in MB at its height: 128 of weights in 4 shards of 32; a second copy would make it
    256."""
    try:
        with open('/proc/self/clear_refs', 'w') as f:
            f.write('5')
    except OSError:
        pytest.skip("the peak of a process's memory cannot be reset here")

    def memory(what):
        with open('/proc/self/status') as f:
            return int(re.search(what + r':\s+(\d+)', f.read())[1]) / 1024

    hf = json.load(open(f'{FOLDER}/config.json'))
    hf['text_config'] |= dict(
        vocab_size=4096,
        hidden_size=1024,
        num_hidden_layers=1,
        num_attention_heads=8,
        intermediate_size=8192,
        rope_scaling=dict(type='mrope', mrope_section=[16, 24, 24]),
    )
    (tmp_path / 'config.json').write_text(json.dumps(hf))
    with torch.device('meta'):
        empty = VLA(
            model.VLAConfig(**pretrained.read_config(str(tmp_path)) | dict(action_start_id=GO))
        )
    weight_map = {}
    shards = [{} for _ in range(4)]
    for name, (_, _, shape) in pretrained.hub_parts(empty).items():
        shard = min(range(4), key=lambda i: sum(t.numel() for t in shards[i].values()))
        shards[shard][name] = torch.ones(shape)
        weight_map[name] = f'{shard}.safetensors'
    for i, shard in enumerate(shards):
        save_file(shard, tmp_path / f'{i}.safetensors')
    largest = max(sum(t.numel() for t in shard.values()) for shard in shards) * 4 / 2**20
    shards.clear()
    shard = None
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    with open('/proc/self/clear_refs', 'w') as f:
        f.write('5')
    before = memory('VmRSS')
    loaded = VLA.from_pretrained(str(tmp_path), action_start_id=GO)
    weights = sum(p.numel() for p in loaded.parameters()) * 4 / 2**20
    assert weights > 120 and memory('VmHWM') - before < weights + largest + 10
    assert all((p == 1).all() for p in loaded.parameters())


# -----------------------------------------------------------------------------
# tokens


def write_qwen_tokenizer(folder, added=()):
    """A tokenizer with Qwen's chat and picture tokens; the next free id is 276 minus what is
    added."""
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}, []
        )
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            '<|endoftext|>',
            '<|im_start|>',
            '<|im_end|>',
            '<|vision_start|>',
            '<|vision_end|>',
            '<|image_pad|>',
            '<|video_pad|>',
            *added,
        ]
    )
    tokenizer.save(f'{folder}/tokenizer.json')
    return tokenizer


@pytest.mark.parametrize('order', ['2025-09', '2025-12'])
def test_token_ids_come_from_the_tokenizer_and_must_agree_with_the_config(net, tmp_path, order):
    """Either published order of EO-1's tokens, as it is in the folder; the ids are nowhere in the
    code."""
    tokenizer = write_qwen_tokenizer(tmp_path, pretrained.ACTION_TOKENS[order])
    ids = {field: tokenizer.token_to_id(token) for field, token in pretrained.TOKEN_OF.items()}
    assert ids['action_pad_id'] == ids['action_start_id'] + 1
    assert (ids['action_pass_id'] == ids['action_pad_id'] + 1) == (order == '2025-09')
    hf = json.load(open(f'{FOLDER}/config.json')) | dict(
        image_token_id=ids['image_pad_id'],
        video_token_id=ids['video_pad_id'],
        state_token_id=ids['state_pad_id'],
        action_token_id=ids['action_pad_id'],
        action_pass_id=ids['action_pass_id'],
    )
    (tmp_path / 'config.json').write_text(json.dumps(hf))
    shutil.copy(f'{FOLDER}/model.safetensors', tmp_path)
    cfg = VLA.from_pretrained(str(tmp_path)).cfg
    assert {field: getattr(cfg, field) for field in ids} == ids
    wrong = hf | dict(state_token_id=ids['state_pad_id'] + 1)
    (tmp_path / 'config.json').write_text(json.dumps(wrong))
    with pytest.raises(
        ValueError,
        match=f'state_pad.* is {ids["state_pad_id"]} in tokenizer.json, '
        f'{ids["state_pad_id"] + 1} in config.json',
    ):
        VLA.from_pretrained(str(tmp_path))


def test_tokens_are_added_to_qwen_as_eo1_adds_them(tmp_path):
    plain = write_qwen_tokenizer(tmp_path)
    fresh, last = lambda: tokenizers.Tokenizer.from_str(plain.to_str()), plain.get_vocab_size() - 1
    for order, names in pretrained.ACTION_TOKENS.items():
        tokenizer = pretrained.add_action_tokens(fresh(), order)
        assert [tokenizer.token_to_id(name) for name in names] == list(range(last + 1, last + 9))
        text = 'go<|state_start|><|state_pad|><|state_end|><|vla|><|action_start|>'
        tokens = [tokenizer.id_to_token(i) for i in tokenizer.encode(text).ids]
        assert tokens == ['g', 'o', *re.findall(r'<.*?>', text)]
        before = tokenizer.to_str()
        assert pretrained.add_action_tokens(tokenizer).to_str() == before  # once is enough
    # Beside Qwen2.5-VL's 151665 tokens these are the published ids
    offset = 151665 - (last + 1)
    published = {
        '2025-12': dict(action_pad=151666, state_pad=151669, vla=151671, action_pass=151672),
        '2025-09': dict(action_pad=151666, state_pad=151670, vla=151672, action_pass=151667),
    }
    for order, ids in published.items():
        tokenizer = pretrained.add_action_tokens(fresh(), order)
        assert {name: tokenizer.token_to_id(f'<|{name}|>') + offset for name in ids} == ids


@pytest.mark.parametrize('bricks', [0, 2])
def test_a_vision_language_model_gets_a_new_head_and_learns_from_noise_samples(
    net, tmp_path, bricks
):
    """No action tensors in the folder, pictures of one size as bytes, K noise samples."""
    net.save_pretrained(str(tmp_path))
    tensors = load_file(tmp_path / 'model.safetensors')
    save_file(
        {k: v for k, v in tensors.items() if not k.startswith(('state_', 'action_'))},
        tmp_path / 'model.safetensors',
    )
    fresh = VLA.from_pretrained(
        str(tmp_path),
        action_start_id=GO,
        state_dim=5,
        action_dim=3,
        horizon=4,
        image_size=56,
        scene_bricks=bricks,
        scene_places=((0.0, 0.0, 0.0, 0.0),),
        scene_frames=(0, 1),
        n_cameras=2,
        tokens_per_camera=4,
        head_layers=1,
        row_embedding=True,
        predict='action',
    )
    assert fresh.cfg.state_frequencies == 0
    ids = torch.tensor([[603] + [605] * 4 + [604, 603] + [605] * 4 + [604, 612, 40, 41, GO]] * 2)
    batch = dict(
        input_ids=ids,
        images=torch.randint(0, 256, (2, 2, 56, 56, 3), dtype=torch.uint8),
        state=torch.randn(2, 5),
        user_len=torch.tensor([15, 15]),
        total_len=torch.tensor([16, 16]),
        labels=torch.where(ids == GO, GO, -100),
        actions=torch.randn(2, 4, 3),
        noise=torch.randn(2, 2, 4, 3),
        time=torch.rand(2, 2),
        action_mask=torch.ones(2, 4, dtype=torch.bool),
        read_text=torch.tensor([[True, False]] * 2),
        tool=torch.randn(2, 2, 4),
        scene=torch.randn(2, 2, 2, 4),
        referents=torch.tensor([[0.0, 1, 2, 1, 0, 0, 0, 0]] * 2),
    )
    fresh(batch)[0].backward()
    assert all(p.grad is not None for p in fresh.parameters())
    half = VLA.from_pretrained(str(tmp_path), torch.bfloat16, **dataclasses.asdict(fresh.cfg))
    assert half.act(batch, 2).isfinite().all() and half(batch)[0].isfinite()
    x = noise = batch['noise'][:, 0]
    for t in (1.0, 0.5):
        out = fresh.predict(
            dict(
                batch,
                noise=x[:, None],
                actions=x,
                time=torch.full((2, 1), t),
                read_text=torch.ones(2, 1, dtype=torch.bool),
            )
        )[0][:, 0]
        x = x - 0.5 * (x - out) / t
    assert distance(fresh.act(batch, 2, noise), x) < 1e-5


# -----------------------------------------------------------------------------
# transformers, on tiny random models of several shapes

IMAGE, VIDEO, BEGIN, END = 90, 91, 92, 93  # token ids
SHAPES = {  # heads, key/value heads, head dim, tied, vision depth, heads, full blocks, window
    'grouped': (4, 2, 16, True, 2, 2, (1,), 56),
    'one key': (6, 1, 8, False, 3, 4, (0, 2), 112),
    'full heads': (2, 2, 32, True, 2, 1, (), 28),
}


@functools.cache
def reference(shape):
    """transformers' Qwen2.5-VL with weights of unit gain, so that nothing hides in small
    numbers."""
    transformers = pytest.importorskip('transformers')
    heads, kv, dim, tied, depth, vision_heads, full, window = SHAPES[shape]
    sections = {16: [2, 3, 3], 8: [1, 1, 2], 32: [4, 6, 6]}[dim]
    config = transformers.Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=100,
            hidden_size=heads * dim,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            tie_word_embeddings=tied,
            rope_scaling=dict(type='mrope', mrope_section=sections),
            rope_theta=1e4,
        ),
        vision_config=dict(
            depth=depth,
            hidden_size=16 * vision_heads,
            num_heads=vision_heads,
            intermediate_size=40,
            out_hidden_size=heads * dim,
            window_size=window,
            fullatt_block_indexes=list(full),
            patch_size=14,
            tokens_per_second=2,
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=BEGIN,
        vision_end_token_id=END,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(len(shape))
    theirs = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    for p in theirs.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
        else:
            p.data.add_(0.2 * torch.randn_like(p))
    return theirs


def prompt(grids, seed=0, video=()):
    """Words around pictures of these grids; those numbered in `video` are videos -> ids (1, L)."""
    words = iter(
        torch.randint(0, 80, (99,), generator=torch.Generator().manual_seed(seed)).tolist()
    )
    ids = [next(words), next(words)]
    for i, (t, h, w) in enumerate(grids):
        ids += [BEGIN] + [VIDEO if i in video else IMAGE] * (t * h * w // 4) + [END, next(words)]
    return torch.tensor([ids + [next(words) for _ in range(4)]])


def logits_of(ours, batch):
    return ours.logits(hidden_states(ours, batch))


@pytest.fixture(params=SHAPES)
def pair(request, tmp_path):
    """transformers' model, and ours read from what it saved, in shards."""
    theirs = reference(request.param)
    theirs.save_pretrained(tmp_path / 'theirs', max_shard_size='60KB')
    assert (tmp_path / 'theirs' / 'model.safetensors.index.json').exists()
    return theirs, VLA.from_pretrained(
        str(tmp_path / 'theirs'), action_start_id=99, state_pad_id=98
    )


@pytest.mark.parametrize(
    'grids', [[], [(1, 4, 6)], [(1, 10, 4), (1, 2, 2)]], ids=['text', 'image', 'two']
)
@torch.no_grad()
def test_logits_and_greedy_text_equal_transformers(pair, grids):
    theirs, ours = pair
    ids = prompt(grids)
    n = torch.tensor([ids.shape[1]])
    batch, inputs = dict(input_ids=ids, user_len=n, total_len=n), dict(input_ids=ids)
    if grids:
        patches = torch.randn(sum(t * h * w for t, h, w in grids), 1176)
        batch |= dict(patches=patches, grids=grids)
        inputs |= dict(
            pixel_values=patches,
            image_grid_thw=torch.tensor(grids),
            mm_token_type_ids=(ids == IMAGE).int(),
        )
    expected = theirs(**inputs).logits
    assert expected.std() > 0.3 and distance(logits_of(ours, batch), expected) < TOLERANCE
    text = theirs.generate(
        **inputs, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )
    assert ours.generate(batch, 8, stop=[])[0] == text[0, ids.shape[1] :].tolist()


@torch.no_grad()
def test_a_left_padded_batch_generates_as_transformers_does(pair):
    theirs, ours = pair
    rows = [prompt([(1, 4, 4)], 1)[0], prompt([], 2)[0], prompt([(1, 2, 6), (1, 4, 4)], 3)[0]]
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    grids = [(1, 4, 4), (1, 2, 6), (1, 4, 4)]
    patches = torch.randn(44, 1176)
    batch = dict(input_ids=ids, document=mask - 1, patches=patches, grids=grids)
    inputs = dict(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=patches,
        image_grid_thw=torch.tensor(grids),
        mm_token_type_ids=(ids == IMAGE).int(),
    )
    real = mask.bool()
    assert distance(logits_of(ours, batch)[real], theirs(**inputs).logits[real]) < TOLERANCE
    text = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert ours.generate(batch, 6, stop=[]) == text[:, width:].tolist()


@torch.no_grad()
def test_after_a_video_text_goes_on_behind_the_largest_position(pair):
    """An image, a video of 3 rows of time 2.5 s apart, an image. transformers 5 counts on by the
    sides of the frames only; given the positions of EO-1's rule, worked out here token by token, it
    agrees."""
    theirs, ours = pair
    grids, seconds = [(1, 4, 4), (3, 2, 4), (1, 2, 2)], [1.0, 2.5, 1.0]
    ids = prompt(grids, 4, video=(1,))
    place, at, now, left = (
        torch.zeros(3, 1, ids.shape[1], dtype=torch.int64),
        0,
        0,
        list(zip(grids, seconds)),
    )
    while at < ids.shape[1]:
        if ids[0, at] not in (IMAGE, VIDEO):
            place[:, 0, at] = now
            now, at = now + 1, at + 1
            continue
        (t, h, w), pause = left.pop(0)
        first = now
        for frame in range(t):
            for row in range(h // 2):
                for column in range(w // 2):
                    cell = torch.tensor([int(frame * pause * 2), row, column]) + first
                    place[:, 0, at], now, at = cell, max(now, int(cell.max()) + 1), at + 1
    assert now - ids.shape[1] > 0  # the video takes more positions than tokens
    patches = torch.randn(44, 1176)
    n = torch.tensor([ids.shape[1]])
    batch = dict(
        input_ids=ids, user_len=n, total_len=n, patches=patches, grids=grids, grid_seconds=seconds
    )
    assert torch.equal(ours.prefix_layout(batch).position, place)
    expected = theirs(
        input_ids=ids,
        position_ids=place,
        pixel_values=torch.cat([patches[:16], patches[40:]]),
        image_grid_thw=torch.tensor([grids[0], grids[2]]),
        pixel_values_videos=patches[16:40],
        video_grid_thw=torch.tensor(grids[1:2]),
    ).logits
    assert distance(logits_of(ours, batch), expected) < TOLERANCE


@torch.no_grad()
def test_what_we_save_opens_in_transformers(pair, tmp_path):
    theirs, ours = pair
    ours.save_pretrained(str(tmp_path / 'ours'))
    again = type(theirs).from_pretrained(str(tmp_path / 'ours'), dtype=torch.float32).eval()
    state, expected = again.state_dict(), theirs.state_dict()
    assert state.keys() == expected.keys() and all(
        torch.equal(state[k], expected[k]) for k in state
    )
    ids = prompt([(1, 4, 6)])
    inputs = dict(
        input_ids=ids,
        pixel_values=torch.randn(24, 1176),
        image_grid_thw=torch.tensor([[1, 4, 6]]),
        mm_token_type_ids=(ids == IMAGE).int(),
    )
    assert torch.equal(again(**inputs).logits, theirs(**inputs).logits)


@pytest.mark.parametrize('size', [(56, 84), (50, 99), (300, 200), (30, 400), (13, 17), (97, 640)])
def test_pictures_are_prepared_as_the_published_processor_does(size):
    """Sizes that stay, shrink and grow. A resized byte that lies on .5 may be rounded either
    way."""
    transformers = pytest.importorskip('transformers')
    bounds = dict(min_pixels=4 * 784, max_pixels=40 * 784)
    processor = transformers.models.qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(
        **bounds
    )
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = processor(images=[image], return_tensors='pt')
    patches, grids = vision.preprocess([image], **bounds)
    assert [list(grid) for grid in grids] == theirs['image_grid_thw'].tolist()
    levels = (patches - theirs['pixel_values']).abs() * 255 * min(vision.PIXEL_STD)
    assert levels.max() < 1.01 and (levels > 0.5).float().mean() < 1e-3


def test_a_prompt_is_the_chat_template_of_qwen(tmp_path):
    tokenizer = write_qwen_tokenizer(tmp_path)
    (tmp_path / 'preprocessor_config.json').write_text(
        json.dumps(
            dict(
                min_pixels=3136,
                max_pixels=50_000,
                patch_size=14,
                merge_size=2,
                temporal_patch_size=2,
            )
        )
    )
    chat = pretrained.Chat(str(tmp_path))
    batch = chat.encode([torch.zeros(60, 90, 3, dtype=torch.uint8)], 'what?')
    assert batch['grids'] == [(1, 4, 6)] and batch['patches'].shape == (24, 1176)
    assert tokenizer.decode(batch['input_ids'][0].tolist(), skip_special_tokens=False) == (
        '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
        '<|im_start|>user\n<|vision_start|>'
        + '<|image_pad|>' * 6
        + '<|vision_end|>what?<|im_end|>\n<|im_start|>assistant\n'
    )
    batch = chat.encode(
        [], 'go<|vla|>', state=torch.zeros(3), system='You are a helpful physical assistant.'
    )
    assert 'patches' not in batch and batch['state'].shape == (1, 3)
    vla = [
        chat.tokenizer.token_to_id(t) for t in ('<|state_start|>', '<|state_pad|>', '<|state_end|>')
    ]
    row = batch['input_ids'][0].tolist()
    assert row[row.index(vla[0]) :][:3] == vla


# -----------------------------------------------------------------------------


def test_flops_of_the_tower_agree_with_the_profiler():
    from torch.utils.flop_counter import FlopCounterMode

    cfg = model.VLAConfig(
        vocab_size=4,
        state_dim=1,
        action_dim=1,
        horizon=1,
        image_pad_id=1,
        state_pad_id=2,
        action_start_id=3,
        hidden_size=24,
        vision='qwen',
        n_cameras=2,
        image_size=112,
        vision_width=48,
        vision_layers=3,
        vision_heads=2,
        vision_intermediate=96,
        vision_full_blocks=(1,),
        vision_window=56,
    )
    tower = vision.QwenStem(cfg)
    with FlopCounterMode(display=False) as counter:
        tokens = tower(dict(images=torch.rand(1, 2, 112, 112, 3) * 255))
    attention = 2 * 64 * 48 * (16 + 64 + 16)  # fused on CPU, where the profiler does not see it
    assert len(tokens) == 2 * tower.tokens_per_picture(cfg) == 32
    assert counter.get_total_flops() == 2 * 2 * (tower.cost(cfg) - attention)


# -----------------------------------------------------------------------------
# sizes


def configured(path, **known_by_data):
    """A model of the size train.py makes by a config file, on the meta device."""
    settings = {'__file__': 'train.py'}
    with open('train.py') as f:
        exec(f.read().split("exec((HERE / 'configurator.py')")[0], settings)
    with open(path) as f:
        exec(f.read(), settings)
    with open(settings['tokenizer']) as f:
        words = f.read()
    processor = Processor(
        *(
            settings[k]
            for k in (
                'cameras',
                'image_size',
                'state_slots',
                'action_slots',
                'horizon',
                'control_hz',
            )
        ),
        words,
    )
    sizes = (
        dict(
            state_dim=len(processor.state_slots),
            action_dim=len(processor.action_slots),
            vocab_size=processor.tokenizer.get_vocab_size(),
            image_pad_id=1,
            state_pad_id=2,
            action_start_id=3,
            n_cameras=len(settings['cameras']),
        )
        | known_by_data
    )
    fields = {f.name for f in dataclasses.fields(model.VLAConfig)}
    with torch.device('meta'):
        return VLA(
            model.VLAConfig(**{**{k: v for k, v in settings.items() if k in fields}, **sizes})
        )


@pytest.mark.parametrize('name, millions, tolerance', [('base', 25, 0.1), ('large', 1200, 0.05)])
def test_named_sizes_are_what_they_are_called(name, millions, tolerance):
    assert (
        abs(configured(f'config/{name}.py').n_parameters / 1e6 - millions) <= tolerance * millions
    )


QWEN_3B = dict(  # what Qwen2.5-VL-3B-Instruct's config.json says
    hidden_size=2048,
    intermediate_size=11_008,
    num_attention_heads=16,
    num_hidden_layers=36,
    num_key_value_heads=2,
    rms_norm_eps=1e-6,
    rope_theta=1_000_000.0,
    rope_scaling=dict(type='mrope', mrope_section=[16, 24, 24]),
    tie_word_embeddings=True,
    vocab_size=151_936,
    image_token_id=151_655,
    video_token_id=151_656,
    vision_config=dict(
        depth=32,
        fullatt_block_indexes=[7, 15, 23, 31],
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        out_hidden_size=2048,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
        tokens_per_second=2,
        window_size=112,
    ),
)


def test_the_largest_config_is_eo1_3b_to_the_parameter():
    net = configured('config/eo1_3b.py', **pretrained.config_from_hf(QWEN_3B))
    assert net.n_parameters == 3_771_607_072
    with open(
        'tests/fixtures/eo1_3b_keys.json'
    ) as f:  # the reference's: how many of a name, their shape
        published = json.load(f)
    ours = {}
    for name, (_, _, shape) in pretrained.hub_parts(net).items():
        name = name if name.startswith(pretrained.HEAD) else 'vlm_backbone.' + name
        name = re.sub(r'(blocks|layers)\.\d+\.', r'\1.*.', name)
        ours[name] = [ours[name][0] + 1 if name in ours else 1, list(shape)]
    del published['vlm_backbone.lm_head.weight']  # the table of words again: not on disk
    assert ours == published
