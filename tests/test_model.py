"""The model keeps its contract: flow time, who sees whom, caches that change nothing, exact save
and load.

python -m pytest tests/test_model.py
"""

import dataclasses
import functools
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import model
from model import VLA, VLAConfig
from vla import inline, layers, layout, optim, vision
from vla.folder import read_meta
from vla.optim import EMA

torch.set_num_threads(1)
PAD, IMAGE, STATE, GO = 0, 1, 2, 3  # token ids; GO is <|action_start|>
H, A, S = 4, 3, 5


def config(**changes):
    small = dict(
        vocab_size=40,
        state_dim=S,
        action_dim=A,
        horizon=H,
        image_pad_id=IMAGE,
        state_pad_id=STATE,
        action_start_id=GO,
        hidden_size=48,
        n_layers=2,
        n_heads=3,
        n_kv_heads=1,
        head_dim=16,
        intermediate_size=96,
        mrope_section=(2, 3, 3),
        image_size=32,
        n_cameras=2,
        tokens_per_camera=2,
        state_frequencies=0,
    )
    return VLAConfig(**{**small, **changes})


def network(seed=0, **changes):
    """A model whose every parameter matters: no zeros, no tiny initial values that would hide a
    leak."""
    torch.manual_seed(seed)
    net = VLA(config(**changes))
    for p in net.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.15)
        else:
            p.data.add_(0.1 * torch.randn_like(p))
    return net.eval()


def make_batch(B=3, K=2, seed=1, instruction=(3, 5, 4), answer=(3, 2, 4)):
    """Prefixes of different lengths: images, state, instruction | text, <|action_start|>,
    right-padded."""
    g = torch.Generator().manual_seed(seed)
    words = torch.randint(4, 40, (B, 12), generator=g).tolist()
    users = [[IMAGE] * 4 + [STATE] + words[b][: instruction[b % 3]] for b in range(B)]
    answers = [words[b][-answer[b % 3] : -1] + [GO] for b in range(B)]
    L = max(len(u) + len(a) for u, a in zip(users, answers)) + 1
    rows = [u + a + [PAD] * (L - len(u) - len(a)) for u, a in zip(users, answers)]
    labels = [[-100] * len(u) + a + [-100] * (L - len(u) - len(a)) for u, a in zip(users, answers)]
    return dict(
        images=torch.randint(0, 256, (B, 2, 32, 32, 3), generator=g, dtype=torch.uint8),
        state=torch.randn(B, S, generator=g),
        input_ids=torch.tensor(rows),
        labels=torch.tensor(labels),
        user_len=torch.tensor([len(u) for u in users]),
        total_len=torch.tensor([len(u) + len(a) for u, a in zip(users, answers)]),
        actions=torch.randn(B, H, A, generator=g),
        action_mask=torch.ones(B, H, dtype=torch.bool),
        noise=torch.randn(B, K, H, A, generator=g),
        time=torch.rand(B, K, generator=g) * 0.9 + 0.05,
        read_text=torch.arange(B * K).view(B, K) % 2 == 0,
    )


def one(batch, b):
    """Sample b alone, without its padding."""
    end = int(batch['total_len'][b])
    return {
        k: v[b : b + 1, :end] if k in ('input_ids', 'labels') else v[b : b + 1]
        for k, v in batch.items()
    }


def close(a, b, tolerance=1e-5):
    return (a - b).abs().max().item() <= tolerance


def test_fourier_features_tell_states_apart_that_bf16_does_not():
    """A hand 0.3 mm further (0.006 spreads of 50 mm): bf16 rounds both positions to the same
    number."""
    net = VLA(config(state_frequencies=6))
    near, far = (layers.fourier_features(torch.full((1, S), x), 6) for x in (1.500, 1.503))
    assert near.shape == (1, S * 13) and net.state_in.in_features == S * 13
    assert torch.equal(near[:, :S].bfloat16(), far[:, :S].bfloat16())
    assert (near.bfloat16() - far.bfloat16()).abs().max() > 0.03


# -----------------------------------------------------------------------------
# flow


@pytest.mark.parametrize('predict', ['action', 'velocity'])
def test_time_one_is_noise_and_time_zero_is_data(predict):
    net, batch = network(predict=predict), make_batch()
    other = dict(batch, actions=batch['actions'] + 1)
    at_one, at_zero = (dict(batch, time=torch.full((3, 2), t)) for t in (1.0, 0.0))
    assert torch.equal(net.predict(at_one)[0], net.predict(dict(other, time=at_one['time']))[0])
    other = dict(batch, noise=batch['noise'] + 1)
    assert torch.equal(net.predict(at_zero)[0], net.predict(dict(other, time=at_zero['time']))[0])


@pytest.mark.parametrize('predict', ['action', 'velocity'])
def test_a_perfect_head_carries_noise_to_the_action(predict):
    net, batch = network(predict=predict), make_batch()
    noise, actions = batch['noise'][:, 0], batch['actions']

    class Oracle(torch.nn.Module):
        def forward(self, hidden):
            return actions if predict == 'action' else noise - actions

    net.head.action_out = Oracle()
    for steps in (1, 2, 5):
        assert close(net.act(batch, steps, noise), actions)
    assert not close(net.act(batch, 5, noise + 1), noise)


@pytest.mark.parametrize(
    'predict, action_loss, half_off',
    [('action', 'mse', 0.25), ('velocity', 'mse', 0.25), ('action', 'l1', 0.5)],
)
def test_loss_is_zero_for_the_right_answer_only(predict, action_loss, half_off):
    net, batch = network(predict=predict, action_loss=action_loss), make_batch()
    target = (
        batch['actions'][:, None]
        if predict == 'action'
        else batch['noise'] - batch['actions'][:, None]
    )
    net.predict = lambda batch: (target.expand(3, 2, H, A), net.read(batch))
    assert net(batch)[1]['flow'] == 0
    net.predict = lambda batch: (target.expand(3, 2, H, A) + 0.5, net.read(batch))
    assert close(net(batch)[1]['flow'], torch.tensor(half_off))


def test_masked_rows_change_nothing_and_do_not_dilute_the_mean():
    net, batch = network(), make_batch()
    batch['action_mask'][0, 2:] = False
    spoilt = dict(batch, actions=batch['actions'].clone())
    spoilt['actions'][0, 2:] += 100
    # masked rows still enter as noisy inputs, so give both the same ones: t = 1 leaves no trace of
    # the action
    for b in (batch, spoilt):
        b['time'] = torch.ones(3, 2)
    assert torch.equal(net(batch)[0], net(spoilt)[0])
    error = (net.predict(batch)[0] - batch['actions'][:, None]).square().mean(-1)
    expected = error[batch['action_mask'][:, None].expand_as(error)].mean()
    assert close(net(batch)[1]['flow'], expected, 1e-6)


def grounded(**changes):
    """A network that looks and refers, and a batch for it."""
    g = torch.Generator().manual_seed(3)
    referents = torch.tensor(
        [
            [0.0, 0, 2, 0, 0.36, 0.05, 0.02, 0],
            [1, 0, 0, 1, 0, 0.1, 0.02, 0.3],
            [1, 1, 2, 1, 0.3, -0.05, 0.02, 0],
        ]
    )
    batch = make_batch() | dict(
        scene=0.1 * torch.randn(3, 2, 2, 4, generator=g),
        referents=referents,
        tool=0.1 * torch.randn(3, 2, 4, generator=g),
    )
    places = tuple(tuple(place) for place in referents[:, 4:].tolist())
    sizes = dict(scene_bricks=2, scene_places=places, scene_frames=(0, 1), state_frequencies=2)
    return network(**sizes, **changes), batch


def test_referents_are_read_off_the_words_before_anything_is_answered():
    net, batch = grounded()
    before = net(batch)[1]
    ids = batch['input_ids'].clone()
    for b in range(3):
        ids[b, batch['user_len'][b]] = 39
    after = net(dict(batch, input_ids=ids, noise=batch['noise'] + 1))[1]
    assert close(after['words'], before['words']) and not close(after['flow'], before['flow'])
    ids[:, 6] = 38  # a word of the instruction
    assert not close(net(dict(batch, input_ids=ids))[1]['words'], before['words'])


def test_the_scene_is_read_off_the_pictures_alone_and_reaches_the_actions():
    net, batch = grounded()
    before = net(batch)[1]
    ids = batch['input_ids'].clone()
    ids[:, 6] = 38  # a word of the instruction
    blind = net(dict(batch, state=batch['state'] + 1, input_ids=ids))[1]
    assert torch.equal(blind['scene'], before['scene']) and not close(blind['flow'], before['flow'])
    assert not close(net(dict(batch, images=255 - batch['images']))[1]['scene'], before['scene'])
    scene = batch['scene'].clone()
    scene[:, 1, :, 0] = 1.0  # out of the hand's range: then where it is does not matter
    assert torch.equal(
        net(dict(batch, scene=scene))[1]['scene'],
        net(dict(batch, scene=scene + 0.05 * (scene == 1)))[1]['scene'],
    )
    with torch.no_grad():
        net.scene_head.mlp['1'][2].bias += 1
    assert not close(net(batch)[1]['flow'], before['flow'])


def test_a_table_of_places_goes_through_json_and_is_checked():
    cfg = grounded()[0].cfg
    saved = json.loads(json.dumps(dataclasses.asdict(cfg)))
    assert VLAConfig.from_json(saved) == cfg and cfg.scene_places
    for places in ([[0, 0, 0]], [0, 0, 0, 0], [[0, 0, 0, 'x']], 'far'):
        with pytest.raises(ValueError, match='scene_places is .*, expected a list of places'):
            VLAConfig.from_json(dict(saved, scene_places=places))
    with pytest.raises(ValueError, match='scene_bricks without scene_places'):
        VLAConfig.from_json(dict(saved, scene_places=[]))


def test_rows_are_told_what_the_words_mean_while_they_learn():
    net, batch = grounded()
    other = batch['referents'].clone()
    other[0] = other[1]
    other = dict(batch, referents=other)
    assert torch.equal(net.predict(batch)[0], net.predict(other)[0])
    net.train()
    off = (net.predict(batch)[0] - net.predict(other)[0]).abs().amax((1, 2, 3))
    assert off[0] > 0 and not off[1:].any()


def test_rows_are_told_where_the_hands_are():
    net, batch = grounded()
    before = net.predict(batch)[0]
    assert (net.predict(dict(batch, tool=batch['tool'] + 0.01))[0] - before).abs().amin() > 0


def test_hidden_pictures_reach_rows_and_text_as_poses_only():
    net, batch = grounded()
    torch.manual_seed(0)
    hiding = VLA(dataclasses.replace(net.cfg, hide_pictures=True)).eval()
    hiding.load_state_dict(net.state_dict())
    with pytest.raises(ValueError, match='12 places for pictures, the batch brings 0'):
        hiding.check_batch(batch)
    batch = {k: v[:, 4:] if k in ('input_ids', 'labels') else v for k, v in batch.items()}
    batch |= {k: batch[k] - 4 for k in ('user_len', 'total_len')}
    hiding.check_batch(batch)
    other = dict(batch, images=255 - batch['images'])
    assert not close(hiding(batch)[1]['scene'], hiding(other)[1]['scene'])
    with torch.no_grad():
        for mlp in hiding.scene_head.mlp.values():
            mlp[2].weight.zero_()  # whatever the pictures show: the same poses
    assert torch.equal(hiding.predict(batch)[0], hiding.predict(other)[0])
    assert torch.equal(hiding(batch)[1]['text'], hiding(other)[1]['text'])
    hiding(batch)[0].backward()
    assert all(p.grad is not None for p in hiding.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match='hide_pictures=True leaves nothing'):
        config(hide_pictures=True)


def test_rows_begin_where_the_hands_will_be_and_the_scene_is_learnt_as_it_was():
    net, batch = grounded()
    before = net(batch)[1]
    path = torch.stack([batch['tool'], batch['tool']], 1)  # (B, 2, 2, 4)
    stays = dict(batch, hand_path=path, shut=torch.zeros(3, 2, 2, dtype=torch.bool))
    assert torch.equal(net(stays)[0], net(batch)[0])
    path = torch.stack([batch['tool'] - 0.02, batch['tool']], 1)
    after = net(dict(stays, hand_path=path))[1]
    assert torch.equal(after['scene'], before['scene'])
    assert not close(after['flow'], before['flow'])


def test_a_flow_time_per_row_equals_one_per_noise_sample_when_constant():
    net, batch = network(), make_batch()
    rows = dict(batch, time=batch['time'][..., None].expand(3, 2, H))
    assert torch.equal(net(batch)[0], net(rows)[0])


def test_rows_at_time_zero_are_given_and_do_not_count():
    """Training for chunks that begin with rows already being executed."""
    net, batch = network(), make_batch()
    time = batch['time'][..., None].expand(3, 2, H).clone()
    time[:, 1, :2] = 0
    batch |= dict(time=time)
    error = (net.predict(batch)[0] - batch['actions'][:, None]).square().mean(-1)
    assert close(net(batch)[1]['flow'], error[time > 0].mean(), 1e-6)
    other = batch['noise'].clone()
    other[:, 1, :2] += 5  # their noise is nowhere
    assert torch.equal(net(dict(batch, noise=other))[0], net(batch)[0])


def test_parts_of_a_batch_add_up_when_told_the_global_counts():
    net, batch = network(), make_batch(B=4)
    batch['action_mask'][0, 1:] = False
    counts = dict(
        n_rows=batch['action_mask'].sum() / 2, n_tokens=(batch['labels'] != -100).sum() / 2
    )
    halves = [net({**{k: v[i : i + 2] for k, v in batch.items()}, **counts})[0] for i in (0, 2)]
    assert close(sum(halves) / 2, net(batch)[0], 1e-6)


# -----------------------------------------------------------------------------
# who sees whom


@pytest.mark.parametrize('chunk', ['bidirectional', 'causal'])
def test_noise_samples_do_not_see_each_other(chunk):
    net, batch = network(chunk_attention=chunk), make_batch(K=3)
    before = net.predict(batch)[0]
    batch['noise'][:, 1] += 1
    after = net.predict(batch)[0]
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert (before[:, 1] - after[:, 1]).abs().amin() > 0


def test_only_noise_samples_that_read_text_see_the_assistant_part():
    net, batch = network(), make_batch()
    before = net.predict(batch)[0]
    for b in range(3):
        at = batch['user_len'][b]
        batch['input_ids'][b, at] = (batch['input_ids'][b, at] + 7) % 30 + 4
    changed = (net.predict(batch)[0] - before).abs().amax((2, 3)) > 0
    assert torch.equal(changed, batch['read_text'])


@pytest.mark.parametrize('prefix', ['bidirectional', 'causal'])
def test_prefix_attention_does_what_it_says(prefix):
    net, batch = network(prefix_attention=prefix), make_batch()
    before = net.predict(batch, 0)[1].hidden
    last_user = batch['user_len'] - 1
    ids = batch['input_ids'].clone()
    ids[range(3), last_user] = (ids[range(3), last_user] + 7) % 30 + 4
    changed = (net.predict(dict(batch, input_ids=ids), 0)[1].hidden - before).abs().amax(-1) > 0
    for b in range(3):
        earlier = changed[b, : last_user[b]]
        assert earlier.all() if prefix == 'bidirectional' else not earlier.any()
        assert changed[b, last_user[b] : batch['total_len'][b]].all()


def test_assistant_part_is_causal_and_hidden_from_the_user_part():
    net, batch = network(), make_batch()
    before = net.predict(batch, 0)[1].hidden
    ids, at = batch['input_ids'].clone(), batch['user_len'] + 1
    ids[range(3), at] = (ids[range(3), at] + 7) % 30 + 4
    changed = (net.predict(dict(batch, input_ids=ids), 0)[1].hidden - before).abs().amax(-1) > 0
    for b in range(3):
        assert not changed[b, : at[b]].any() and changed[b, at[b] : batch['total_len'][b]].all()


@pytest.mark.parametrize('chunk', ['bidirectional', 'causal'])
def test_chunk_attention_does_what_it_says(chunk):
    net, batch = network(chunk_attention=chunk), make_batch()
    before = net.predict(batch)[0]
    batch['noise'][:, :, 2] += 1
    changed = (net.predict(batch)[0] - before).abs().amax((0, 1, 3)) > 0
    assert changed.tolist() == (
        [True] * H if chunk == 'bidirectional' else [False, False, True, True]
    )


def test_skipping_work_nobody_asks_for_changes_nothing():
    net, batch = network(), make_batch()
    (rows, all_), (fewer_rows, fewer) = net.predict(batch, 0), net.predict(batch, 5)
    assert close(rows, fewer_rows) and close(all_.hidden[:, 5:], fewer.hidden)


def test_padding_contents_do_not_matter():
    net, batch = network(), make_batch()
    ids = batch['input_ids'].clone()
    for b in range(3):
        ids[b, batch['total_len'][b] :] = 17
    assert torch.equal(net(batch)[0], net(dict(batch, input_ids=ids))[0])


def test_equal_positions_on_three_axes_are_plain_rotary_positions():
    place = torch.randint(0, 50, (2, 7))
    angle = place[..., None] * 1e4 ** -(torch.arange(8) / 8)
    cos, sin = layout.rotary_tables(place.expand(3, -1, -1), 16, 1e4, (2, 3, 3), torch.float32)
    assert close(cos[:, :, 0, :8], angle.cos()) and close(cos[:, :, 0, 8:], angle.cos())
    assert close(sin[:, :, 0, :8], -angle.sin()) and close(sin[:, :, 0, 8:], angle.sin())
    moved, _ = layout.rotary_tables(
        torch.stack([place, place + 1, place]), 16, 1e4, (2, 3, 3), torch.float32
    )
    differs = (moved != cos)[..., :8].flatten(0, 2).any(0)
    assert differs.tolist() == [False] * 2 + [True] * 3 + [False] * 3


# -----------------------------------------------------------------------------
# inference


@pytest.mark.parametrize('attention', ['bidirectional', 'causal'])
def test_a_padded_batch_equals_one_by_one(attention):
    net, batch = network(prefix_attention=attention, chunk_attention=attention), make_batch()
    together = [
        net.predict(batch)[0],
        net.act(batch, 3),
        net.act(batch, 3, read_text=False),
        net.plan_and_act(batch, 3, 5),
    ]
    for b in range(3):
        single = one(batch, b)
        assert close(together[0][b], net.predict(single)[0][0])
        assert close(together[1][b], net.act(single, 3)[0])
        assert close(together[2][b], net.act(single, 3, read_text=False)[0])
        actions, texts = net.plan_and_act(single, 3, 5)
        assert close(together[3][0][b], actions[0]) and together[3][1][b] == texts[0]


@pytest.mark.parametrize('predict', ['action', 'velocity'])
@pytest.mark.parametrize('read', [True, False])
def test_cached_act_equals_the_training_forward(predict, read):
    net, batch = network(predict=predict), make_batch(K=1)
    batch['read_text'] = torch.full((3, 1), read)
    x = noise = batch['noise'][:, 0]
    for i in range(4):
        t = 1 - i / 4
        # noise and action are chosen so that x_t is x at any time
        there = dict(batch, noise=x[:, None], actions=x, time=torch.full((3, 1), t))
        out = net.predict(there)[0][:, 0]
        x = x - ((x - out) / t if predict == 'action' else out) / 4
    assert close(net.act(batch, 4, noise, read_text=read), x)


def test_generate_equals_recomputing_the_whole_row_per_token():
    net, batch = network(), make_batch()
    texts = net.generate(batch, 6)
    assert len({tuple(t) for t in texts}) == 3  # else the test would show little
    for b in range(3):
        ids, expected = one(batch, b)['input_ids'][:, : batch['user_len'][b]], []
        for _ in range(6):
            row = dict(one(batch, b), input_ids=ids, total_len=torch.tensor([ids.shape[1]]))
            layout = net.prefix_layout(row)
            token = net.logits(net.decoder(net.embed_prefix(row)[0], layout)[0])[0, -1].argmax()
            if token == GO:
                break
            expected.append(int(token))
            ids = torch.cat([ids, token.view(1, 1)], 1)
        assert texts[b] == expected


def test_plan_and_act_acts_as_if_its_text_had_been_given():
    net, batch = network(), make_batch()
    actions, texts = net.plan_and_act(batch, 2, 4, noise=batch['noise'][:, 0])
    for b in range(3):
        user = one(batch, b)['input_ids'][:, : batch['user_len'][b]]
        ids = torch.cat([user, torch.tensor([texts[b] + [GO]])], 1)
        given = dict(one(batch, b), input_ids=ids, total_len=torch.tensor([ids.shape[1]]))
        assert close(net.act(given, 2, batch['noise'][b : b + 1, 0])[0], actions[b])


def test_a_text_is_decoded_once_and_read_for_several_chunks():
    net, batch = network(), make_batch()
    actions, texts = net.plan_and_act(batch, 2, 4)
    calls = []
    net.decoder.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[1]))
    again, same = net.plan_and_act(batch, 2, texts=texts)
    assert same == texts and close(again, actions)
    assert len(calls) == 3 and calls[1:] == [H, H]  # one prefix pass, two steps, no word by word
    moved = dict(batch, state=batch['state'] + 1)  # what it sees is new all the same
    assert not close(net.plan_and_act(moved, 2, texts=texts)[0], actions)


def test_words_are_drawn_from_the_smallest_set_that_holds_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(4000, 1)[:, [2, 0, 3, 1]]
    draw = functools.partial(model.pick_token, logits, generator=torch.Generator().manual_seed(0))

    def shares(tokens):
        return tokens.bincount(minlength=4) / 4000

    assert (draw() == 1).all()
    assert close(shares(draw(1.0)), torch.tensor([0.15, 0.5, 0.05, 0.3]), 0.03)
    assert close(shares(draw(1.0, 0.6)), torch.tensor([0, 0.625, 0, 0.375]), 0.03)
    assert close(shares(draw(0.5)), torch.tensor([0.0225, 0.25, 0.0025, 0.09]) / 0.365, 0.03)
    assert (draw(1.0, 1e-6) == 1).all()
    net, batch = network(), make_batch()
    texts = [
        net.generate(
            batch, 6, temperature=3.0, top_p=0.9, generator=torch.Generator().manual_seed(s)
        )
        for s in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2] and net.generate(batch, 6) == net.generate(
        batch, 6, top_p=0.5
    )


@pytest.mark.parametrize(
    'changes',
    [
        {},
        'grounded',
        dict(
            vision='qwen',
            image_size=56,
            vision_width=32,
            vision_layers=2,
            vision_heads=2,
            vision_intermediate=32,
            vision_full_blocks=(1,),
            tokens_per_camera=4,
            predict='velocity',
        ),
    ],
)
def test_acting_compiles_into_one_graph(changes):
    """fullgraph=True raises at the first thing a compiler cannot follow."""
    if changes == 'grounded':
        net, batch = grounded()
    else:
        net, batch = network(**changes), make_batch(1 if changes else 2)
    if 'vision' in changes:
        batch |= dict(images=torch.randint(0, 256, (1, 1, 56, 56, 3), dtype=torch.uint8))
    act = torch.compile(net.act, fullgraph=True, backend='eager', dynamic=False)
    noise, prefix = batch['noise'][:, 0], batch['actions'][:, :2]
    expected = net.act(batch, 3, noise, action_prefix=prefix)
    assert close(act(batch, 3, noise, action_prefix=prefix), expected)


@pytest.mark.parametrize('attention', ['bidirectional', 'causal'])
def test_padding_may_as_well_be_on_the_left(attention):
    net, right = grounded(prefix_attention=attention, chunk_attention=attention)
    width, total = right['input_ids'].shape[1], right['total_len'].tolist()
    left = {k: v for k, v in right.items() if k != 'total_len'}
    for key in ('input_ids', 'labels'):
        left[key] = torch.stack([row.roll(width - n) for row, n in zip(right[key], total)])
    left['document'] = torch.stack(
        [torch.where(torch.arange(width) < width - n, -1, 0) for n in total]
    )
    assert len(set(total)) > 1 and close(net.predict(left)[0], net.predict(right)[0])
    ours, theirs = net(left), net(right)
    assert close(ours[0], theirs[0]) and all(close(ours[1][k], theirs[1][k]) for k in theirs[1])
    assert close(net.act(left, 2), net.act(right, 2))
    assert close(net.act(left, 2, read_text=False), net.act(right, 2, read_text=False))
    actions, texts = net.plan_and_act(left, 2, 5)
    assert texts == net.plan_and_act(right, 2, 5)[1] and close(
        actions, net.plan_and_act(right, 2, 5)[0]
    )
    assert close(net.plan_and_act(left, 2, texts=texts)[0], actions)


def test_a_prompt_that_cannot_be_acted_on_is_refused_by_name():
    net, batch = network(action_pad_id=38, action_pass_id=39), make_batch()
    batch['input_ids'] = batch['input_ids'].clamp(max=37)
    net.check_batch(batch)  # act itself asks the device nothing
    ways = (
        net.check_batch,
        lambda batch: net.plan_and_act(batch, 1, 2),
        lambda batch: net.plan_and_act(batch, 1, texts=[[5], [6], [7]]),
        net.generate,
    )
    for place in (38, 39):  # rows that stand inside the text, noisy or clean
        ids = batch['input_ids'].clone()
        ids[:, 5] = place  # in the user part
        for way in ways:
            with pytest.raises(ValueError, match='3 places for rows of action chunks'):
                way(dict(batch, input_ids=ids))
    for names in (['user_len'], ['total_len'], ['user_len', 'total_len']):
        without = {k: v for k, v in batch.items() if k not in names}
        for way in ways:
            with pytest.raises(ValueError, match=f'the batch lacks {" and ".join(names)}'):
                way(without)
    for name, what in (('images', '12 places for pictures'), ('state', '3 places for a state')):
        with pytest.raises(ValueError, match=f'{what}, the batch brings 0'):
            net.check_batch({k: v for k, v in batch.items() if k != name})


def test_acting_leaves_the_noise_alone():
    net, batch = network(), make_batch()
    noise = batch['noise'][:, 0].clone()
    net.act(batch, 2, noise)
    assert torch.equal(noise, batch['noise'][:, 0])


# -----------------------------------------------------------------------------
# training


@pytest.mark.parametrize(
    'changes',
    [
        {},
        dict(mlp='gelu', predict='velocity', row_embedding=False),
        dict(mlp='swiglu', tie_embeddings=True),
    ],
)
def test_gradient_reaches_every_parameter(changes):
    net, batch = grounded(**changes)
    net(batch)[0].backward()
    silent = [
        name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert not silent


@pytest.mark.parametrize(
    'share, changes',
    [  # of the memory; the stem is not recomputed, the tower is
        (0.9, {}),
        (
            0.5,
            dict(
                vision='qwen',
                vision_width=32,
                vision_heads=2,
                image_size=28,
                vision_layers=3,
                vision_intermediate=64,
                tokens_per_camera=1,
            ),
        ),
    ],
)
def test_recomputing_activations_saves_memory_and_changes_nothing(share, changes):
    batch, results = make_batch(), []
    if changes:
        batch |= dict(images=torch.randint(0, 256, (3, 4, 28, 28, 3), dtype=torch.uint8))
    for recompute in (False, True):
        net, kept = network(recompute=recompute, n_layers=4, **changes), []

        def keep(tensor):
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = net(batch)[0]
            forward = sum(kept)
        loss.backward()
        results.append((forward, [p.grad for p in net.parameters()]))
    assert results[1][0] < share * results[0][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_a_batch_of_words_alone_has_a_text_loss_alone():
    net, batch = network(action_pad_id=38, action_pass_id=39), make_batch()
    text = {k: batch[k] for k in ('input_ids', 'labels', 'user_len', 'total_len')}
    text['input_ids'] = text['input_ids'].clamp(GO, 37)  # no place for a picture, a state, a row
    text['labels'] = text['labels'].clamp(max=37)
    none = dict(
        actions=torch.empty(0, H, A),
        noise=torch.empty(0, H, A),
        time=torch.empty(0),
        action_mask=torch.empty(0, H, dtype=torch.bool),
    )
    loss, parts = inline.loss(net, text | none)
    logits = net.logits(net.decoder(net.embed_prefix(text)[0], net.prefix_layout(text))[0][:, :-1])
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), text['labels'][:, 1:].flatten()
    )
    assert parts['flow'] == 0 and close(parts['text'], expected) and close(loss, 0.1 * expected)


def test_one_batch_is_learnt_by_heart():
    torch.manual_seed(0)
    net, batch = VLA(config(text_weight=1.0)), make_batch(B=2, K=4)
    optimizers, ema = optim.configure_optimizers(net, 3e-3, 0.02), EMA(net, 0.9)
    for step in range(120):  # the same two samples, new noise each time
        fresh = dict(batch, noise=torch.randn(2, 4, H, A), time=1 - 0.999 * torch.rand(2, 4) ** 1.5)
        loss, parts = net(fresh)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        ema.update(net)
        if step == 90:  # close in
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group['lr'] = 0.1 * group['peak_lr']
    assert parts['flow'] < 0.05 and parts['text'] < 0.05 and parts['text_acc'] == 1
    ema.swap(net)
    answers = [[t for t in row if t not in (-100, GO)] for row in batch['labels'].tolist()]
    actions, texts = net.plan_and_act(batch, 5)
    assert texts == answers
    assert (actions - batch['actions']).abs().mean() < 0.2
    assert (net.act(batch, 5, read_text=False) - batch['actions']).abs().mean() < 0.2


class LinearPatches(vision.Stem):
    """The four quarters of a picture, a linear map of each: a third stem."""

    def __init__(self, cfg):
        super().__init__(cfg, n_places=4 * cfg.n_cameras)
        self.half = cfg.image_size // 2
        self.proj = torch.nn.Linear(3 * self.half**2, cfg.hidden_size)

    def forward(self, batch):
        x = batch['images'].flatten(0, 1).float() / 255  # (M, s, s, 3)
        x = x.unflatten(2, (2, self.half)).unflatten(1, (2, self.half)).transpose(2, 3)
        return self.proj(x.flatten(3).flatten(0, 2))  # (M * 4, D)

    @staticmethod
    def tokens_per_picture(cfg):
        return 4

    @staticmethod
    def cost(cfg):
        return 3 * cfg.image_size**2 * cfg.hidden_size


def test_another_vision_stem_is_one_class_and_one_line(monkeypatch):
    monkeypatch.setitem(vision.STEMS, 'linear', LinearPatches)
    torch.manual_seed(0)
    net, batch = VLA(config(vision='linear')), make_batch(B=2)
    words, n = batch['input_ids'], 2 * 4
    batch['input_ids'] = torch.cat([torch.full((2, n - 4), IMAGE), words], 1)
    batch['labels'] = torch.cat([torch.full((2, n - 4), -100), batch['labels']], 1)
    batch |= dict(user_len=batch['user_len'] + 4, total_len=batch['total_len'] + 4)
    losses = []
    for _ in range(2):
        loss, _ = net(batch)
        net.zero_grad()
        loss.backward()
        assert net.vision.proj.weight.grad.abs().sum() > 0
        for optimizer in optim.configure_optimizers(net, 1e-3, 0.002):
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0] and model.flops_per_sample(net.cfg, 20, 2) > 0
    other = net.act(batch | dict(images=255 - batch['images']), 2)
    assert not close(net.act(batch, 2), other, 1e-6)


def fit(steps):
    """Loss and its parts after so many steps on one batch with the same noise and times."""
    torch.manual_seed(0)
    net, batch = VLA(config(text_weight=1.0, n_layers=1)), make_batch(B=2, K=2)
    optimizers = optim.configure_optimizers(net, 1e-2, 0.02, weight_decay=0.0)
    for step in range(steps):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group['lr'] = group['peak_lr'] * (1 - step / steps)
        loss, parts = net(batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return loss, parts


def test_noise_samples_that_stay_the_same_are_fitted_to_a_thousandth():
    assert fit(150)[0] < 1e-3


def test_training_twice_gives_the_same_bits():
    assert torch.equal(fit(5)[0], fit(5)[0])


def test_every_parameter_is_optimized_once_and_vectors_do_not_decay():
    net = network()
    groups = [g for o in optim.configure_optimizers(net) for g in o.param_groups]
    ours = [id(p) for g in groups for p in g['params']]
    assert sorted(ours) == sorted(id(p) for p in net.parameters())
    assert all(p.ndim > 1 for g in groups if g['weight_decay'] for p in g['params'])
    matrices = {id(p) for b in net.decoder.blocks for p in b.parameters() if p.ndim == 2}
    assert matrices == {id(p) for p in groups[-1]['params']}


def test_parts_learn_at_their_own_rates_or_not_at_all():
    net, batch = network(), make_batch()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    rates = ('vision.*=0', 'decoder.*=0.1', 'decoder.blocks.1.*=0')
    optimizers = optim.configure_optimizers(net, 1e-3, 0.02, rates=rates)
    rate = {id(p): g['peak_lr'] for o in optimizers for g in o.param_groups for p in g['params']}
    net(batch)[0].backward()
    for optimizer in optimizers:
        optimizer.step()
    for name, p in net.named_parameters():
        frozen = name.startswith(('vision.', 'decoder.blocks.1.'))
        assert torch.equal(p, before[name]) == frozen, name
        peak = 0.02 if p.ndim == 2 and name.startswith('decoder.blocks') else 1e-3
        expected = None if frozen else peak * (0.1 if name.startswith('decoder') else 1)
        assert rate.get(id(p)) == (None if frozen else pytest.approx(expected)), name
    with pytest.raises(ValueError, match="rates 'visoin.\\*=0' fits no parameter; .* vision"):
        optim.freeze(net, ('visoin.*=0',))


@pytest.mark.parametrize('nesterov', [True, False])
def test_matrices_in_a_stack_change_as_by_the_librarys_muon(nesterov):
    shapes = [(24, 8), (8, 8), (8, 24), (24, 8), (8, 8), (8, 24), (5, 7)]
    results = []
    for muon in (torch.optim.Muon, optim.Muon):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        params[1].requires_grad_(False)  # one without a gradient
        rates = [dict(params=params[:4], lr=0.1), dict(params=params[4:], weight_decay=0.1)]
        optimizer = muon(rates, lr=0.02, momentum=0.9, nesterov=nesterov)
        for seed in range(3):
            g = torch.Generator().manual_seed(seed)
            for p in params:
                grad = torch.randn(p.shape, generator=g)
                p.grad = grad if p.requires_grad else None
            optimizer.step()
        momenta = [optimizer.state[p].get('momentum_buffer') for p in params if p.requires_grad]
        results.append([p.detach() for p in params] + momenta)
    # bfloat16 sums of a stack may come in another order
    assert all(close(a, b, 2e-3) for a, b in zip(*results, strict=True))


def test_each_rank_orthogonalises_its_share_and_gets_the_others(monkeypatch):
    """Three ranks and four matrices of a shape, so that two ranks have less to do than one."""
    group = dict(ns_coefficients=(3.4445, -4.775, 2.0315), ns_steps=5, eps=1e-7)
    updates = list(torch.randn(4, 12, 8, generator=torch.Generator().manual_seed(0)))
    alone = optim.orthogonalise_between_ranks(updates, group)
    sent = {}
    here = {'rank': 0}
    monkeypatch.setattr(optim.dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(optim.dist, 'get_world_size', lambda: 3)
    monkeypatch.setattr(optim.dist, 'get_rank', lambda: here['rank'])

    def gather(shares, share):
        sent[here['rank']] = share.clone()
        for number, there in sent.items():
            shares[number].copy_(there)

    monkeypatch.setattr(optim.dist, 'all_gather', gather)
    for rank in range(3):
        here['rank'] = rank
        together = optim.orthogonalise_between_ranks(updates, group)
    assert [len(share) for share in sent.values()] == [2, 2, 2]
    assert not sent[1][1].any() and not sent[2][1].any()  # zeros that nobody asked for
    assert all(close(a, b, 1e-2) for a, b in zip(alone, together, strict=True))


def test_orthogonal_matrices_are_what_comes_out():
    g = torch.Generator().manual_seed(0)
    for shape in ((3, 16, 16), (2, 8, 32), (2, 32, 8)):
        out = optim.orthogonalise(
            torch.randn(shape, generator=g), (3.4445, -4.775, 2.0315), 5, 1e-7
        )
        sizes = torch.linalg.svdvals(out.float())
        assert out.shape == shape and sizes.max() < 1.3
        assert sizes.median() > 0.6


def test_rows_embedded_with_all_times_at_once_are_those_of_one_time():
    net = network(head_layers=2)
    rows = torch.randn(3, H, A)
    times = torch.tensor([1.0, 0.5, 0.25]).view(-1, 1, 1).expand(3, 3, H)
    goal = torch.randn(3, net.cfg.hidden_size)
    embed = net.head.embed_at(times)
    with_goal = net.head.embed_at(times, goal)
    for i in range(3):
        expected = net.head.embed(rows, times[i])
        assert close(embed(i, rows), expected)
        assert close(with_goal(i, rows), expected + goal[:, None])


def test_newton_schulz_is_counted_as_it_is_computed():
    """By torch's own counter; of config/large.py it is a fifteenth of a step of 1,024 chunks."""
    shapes = [(24, 16), (16, 24), (16, 16)]
    with FlopCounterMode(display=False) as counter:
        for shape in shapes:
            optim.orthogonalise(torch.randn(1, *shape), (3.4445, -4.775, 2.0315), 5, 1e-7)
    assert counter.get_total_flops() == optim.orthogonalising_flops(shapes)
    large = [(6144, 2048), (2048, 2048), (2 * 5376, 2048), (2048, 5376)]
    assert 24 * optim.orthogonalising_flops(large) == pytest.approx(57e12, rel=0.01)


def test_average_warms_up_then_follows_its_decay():
    net = network()
    ema = EMA(net, 0.5)
    first = [p.detach().clone() for p in net.parameters()]
    with torch.no_grad():
        for p in net.parameters():
            p += 1
    ema.update(net)  # decay min(0.5, 1 / 10): the average is nearly the new weights
    assert all(close(a, p + 0.9) for a, p in zip(ema.weights, first))
    ema.swap(net)
    assert all(close(q, p + 0.9) for q, p in zip(net.parameters(), first))
    ema.swap(net)
    assert all(close(q, p + 1) for q, p in zip(net.parameters(), first))


def test_fast_rms_norm_equals_the_library():
    torch.manual_seed(0)
    results, x = [], torch.randn(5, 7, 24)
    for norm in (layers.RMSNorm(24, eps=1e-6), torch.nn.RMSNorm(24, eps=1e-6)):
        norm.weight.data = torch.linspace(-1, 2, 24)
        y = x.clone().requires_grad_()
        out = norm(y)
        out.backward(torch.sin(torch.arange(out.numel()).view(out.shape)))
        results.append([out, y.grad, norm.weight.grad])
    assert all(close(a, b) for a, b in zip(*results))


@pytest.mark.filterwarnings('ignore:CUDA is not available')
def test_float32_on_a_gpu_is_not_rounded_to_tf32():
    before = torch.backends.cudnn.allow_tf32
    try:
        layers.autocast_for('cuda', 'float32')
        assert torch.backends.cudnn.allow_tf32 is False
        layers.autocast_for('cpu', 'bfloat16')  # says nothing about a GPU
        assert torch.backends.cudnn.allow_tf32 is False
        layers.autocast_for('cuda', 'bfloat16')
        assert torch.backends.cudnn.allow_tf32 is True
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_bias_of_either_type_hides_what_a_boolean_mask_hides(dtype, tolerance):
    """Also where a row is padding, which sees nothing but padding."""
    net, batch = network(), make_batch()
    described = net.prefix_layout(batch)
    rows = net.chunk_layout(described, batch['read_text'])
    seen = described.join(rows)
    bias = layout.attention_bias(rows, seen, dtype)
    assert bias.dtype == dtype and (bias == 0).any(-1).all()
    g = torch.Generator().manual_seed(0)
    q = torch.randn(3, 2, rows.kind.shape[1], 8, generator=g).to(dtype)
    k = torch.randn(3, 2, seen.kind.shape[1], 8, generator=g).to(dtype)
    v = torch.randn(3, 2, seen.kind.shape[1], 8, generator=g).to(dtype)
    attention = torch.nn.functional.scaled_dot_product_attention
    with torch.no_grad():
        ours = layers.attend(q, k, v, bias)
        assert close(ours, attention(q, k, v, attn_mask=bias == 0), tolerance)
    written_out = layers.attend(q.float(), k.float(), v.float(), bias.float())
    assert close(ours, written_out, max(tolerance, 1e-5))


@pytest.mark.parametrize('skip', [0, 3])
def test_heads_that_share_keys_attend_as_if_each_had_its_own(skip):
    """And a mask is laid out in memory as CUDA's kernels read it, so that none copies it."""
    net, batch = network(), make_batch()
    described = net.prefix_layout(batch)
    bias = layout.attention_bias(described, described, groups=3)
    assert all(n % layout.ALIGNED == 0 for n in bias.stride()[:-1]) and bias.stride(-1) == 1
    assert torch.equal(bias[:, 0], bias[:, 2])
    bias = bias[:, :, skip:]
    g = torch.Generator().manual_seed(0)
    B, T = described.kind.shape
    q = torch.randn(B, 6, T - skip, 8, generator=g)
    k, v = torch.randn(2, B, 2, T, 8, generator=g)
    attention = torch.nn.functional.scaled_dot_product_attention
    expected = attention(q, k, v, attn_mask=bias[:, :1] == 0, enable_gqa=True)
    assert close(layers.attend(q, k, v, bias), expected, 1e-5)
    with torch.no_grad():
        assert close(layers.attend(q, k, v, bias), expected, 1e-5)


# -----------------------------------------------------------------------------
# disk


def test_a_saved_model_comes_back_the_same(tmp_path):
    net, batch, folder = (
        network(tie_embeddings=True, mlp='swiglu'),
        make_batch(),
        str(tmp_path / 'run'),
    )
    net.save(folder, {'step': 7})
    back, meta = VLA.load(folder)
    assert back.cfg == net.cfg and meta['step'] == 7 and not back.training
    assert torch.equal(back(batch)[0], net(batch)[0])
    ema = EMA(net)
    for average in ema.weights:
        average.mul_(0.5)
    net.save(folder, {'step': 8}, ema)
    average, meta = VLA.load(folder)
    written = json.load(open(f'{folder}/meta.json'))['model']
    assert meta['step'] == 8 and written == json.loads(json.dumps(dataclasses.asdict(net.cfg)))
    assert all(torch.equal(a, p / 2) for a, p in zip(average.parameters(), net.parameters()))
    assert torch.equal(VLA.load(folder, ema=False)[0](batch)[0], net(batch)[0])
    files = sorted(p.name for p in (tmp_path / 'run').iterdir())
    assert files == ['ema.safetensors', 'meta.json', 'model.safetensors']
    early = json.loads(json.dumps(meta)) | {'git_rev': 'abc1234'}
    early['model'] |= dict(norm='rms', eo1_compat=False)  # fields of early revisions
    (tmp_path / 'run' / 'meta.json').write_text(json.dumps(early))
    assert torch.equal(VLA.load(folder, ema=False)[0](batch)[0], net(batch)[0])
    early['model']['norm'] = 'layer'
    (tmp_path / 'run' / 'meta.json').write_text(json.dumps(early))
    with pytest.raises(ValueError, match="run/meta.json: .* no norm='layer' any more; .* abc1234"):
        VLA.load(folder)
    meta['model']['geometry_dim'], meta['git_rev'] = 7, 'abc1234'
    (tmp_path / 'run' / 'meta.json').write_text(json.dumps(meta))
    with pytest.raises(ValueError, match='knows no geometry_dim; .* made by revision abc1234'):
        VLA.load(folder)


def test_wrong_settings_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="predict = 'noise'"):
        config(predict='noise')
    with pytest.raises(ValueError, match='mrope_section'):
        config(mrope_section=(1, 1, 1))
    with pytest.raises(ValueError, match='image_size 40'):
        config(image_size=40)
    with pytest.raises(FileNotFoundError, match='meta.json'):
        VLA.load(str(tmp_path))
    with pytest.raises(FileNotFoundError, match='neither a checkpoint .* nor a published model'):
        VLA.from_pretrained(str(tmp_path))


def test_somebody_elses_meta_json_is_no_checkpoint(tmp_path):
    (tmp_path / 'config.json').write_text('{}')  # a published folder
    for other in ('{"name": "a model card"}', '[1, 2]', '{"model": "vit"}', 'not JSON'):
        (tmp_path / 'meta.json').write_text(other)
        assert read_meta(str(tmp_path)) is None
        with pytest.raises(FileNotFoundError, match='no meta.json that train.py has written'):
            VLA.load(str(tmp_path))
    network().save(str(tmp_path), {'step': 3})
    assert read_meta(str(tmp_path))['step'] == 3


def test_flops_agree_with_the_profiler():
    from torch.utils.flop_counter import FlopCounterMode

    net, batch = network(n_kv_heads=3), make_batch(B=2)
    with FlopCounterMode(display=False) as counter:
        net(batch)[0].backward()
    ours = 2 * model.flops_per_sample(net.cfg, batch['input_ids'].shape[1], 2)
    assert abs(counter.get_total_flops() / ours - 1) < 0.1
