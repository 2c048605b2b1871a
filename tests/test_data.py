"""
Protects the way from a recorded frame to model input, and back from a chunk to commands.

python -m pytest tests/test_data.py
"""
import json
import os

import numpy as np
import pytest
import safetensors.numpy
import torch

import data
import episode
import questions
import tasks

CAMERAS = ('overhead', 'right/wrist')
STATE = ('command/*/tool_[xyz]', 'command/*/tool_rz', 'error/*/tool_[xyz]', '*/gripper')
ACTION = ('*/tool_[xyz]', '*/tool_rz', '*/gripper')
AUGMENTED = dict(draws=3, gain=0.1, brightness=6.0, shift=2, state_noise=0.05)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('episodes')
    data.write_synthetic_episodes(folder, 12, CAMERAS, 16, kicks=0.3)
    return folder


def make_processor(state=STATE, action=ACTION, horizon=8):
    with open('assets/tokenizer.json') as f:
        return data.Processor(CAMERAS, 16, state, action, horizon, 10, f.read(), tokens_per_camera=2)


@pytest.fixture(scope='module')
def dataset(folder):
    dataset = data.Dataset(folder, make_processor(), **AUGMENTED)
    dataset.processor.fit(dataset)
    return dataset


def random_actions(rng, *shape):
    actions = rng.uniform(-0.4, 0.4, (*shape, 15))
    for columns in data.ROTVEC:
        axis = rng.normal(size=(*shape, 3))
        axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
        actions[..., columns] = axis * rng.uniform(0, 3.1, (*shape, 1))
    return actions


# ---- anchoring

def test_unanchor_is_the_exact_inverse_of_anchor():
    rng = np.random.default_rng(1)
    actions, command = random_actions(rng, 500, 8), random_actions(rng, 500)
    assert np.abs(data.unanchor(data.anchor(actions, command), command) - actions).max() < 1e-9


def test_anchored_actions_do_not_depend_on_where_and_which_way_the_hand_points():
    """Moving command and actions together, by any rotation and shift, leaves the relative action as it is."""
    rng = np.random.default_rng(2)
    actions, command = random_actions(rng, 50, 4), random_actions(rng, 50)
    turn, shift = data.quat_from_rotvec(np.array([0.3, -0.5, 1.1])), np.array([0.1, -0.2, 0.3])
    moved = []
    for x in (actions, command):
        y = x.copy()
        for p, r in zip(data.POSITION, data.ROTVEC):
            y[..., p] = data.quat_rotate(turn, x[..., p]) + shift
            y[..., r] = data.rotvec_from_quat(data.quat_mul(turn, data.quat_from_rotvec(x[..., r])))
        moved.append(y)
    assert np.abs(data.anchor(*moved) - data.anchor(actions, command)).max() < 1e-9


def test_a_turned_hand_sees_forward_motion_in_its_own_frame():
    command, action = np.zeros(15), np.zeros((1, 15))
    command[data.TOOL_ACTION_NAMES.index('left/tool_rz')] = np.pi / 2     # its own x now points left (y)
    action[0] = command
    action[0, data.TOOL_ACTION_NAMES.index('left/tool_y')] = 0.1
    moved = dict(zip(data.TOOL_ACTION_NAMES, data.anchor(action, command)[0]))
    assert moved.pop('left/tool_x') == pytest.approx(0.1) and max(map(abs, moved.values())) < 1e-12


def test_decoded_actions_equal_the_recorded_ones_and_hold_what_is_not_predicted(dataset):
    rows = dataset.windows[:64]
    commands = dataset.read('state', rows)[:, data.COMMAND]
    chunk = dataset.processor.normalise_actions(dataset.chunk(rows), commands)
    assert np.abs(dataset.processor.decode_actions(chunk, commands) - dataset.chunk(rows)).max() < 1e-6
    assert max(dataset.action_error(rows, chunk).values()) < 1e-3      # mm and rad
    late = chunk.copy()
    late[:, 4:] = 0      # rows 5 to 8
    errors = dataset.action_error(rows, late)
    assert max(errors[f'position_mm@{n}'] for n in (1, 2, 4)) < 1e-3
    assert 1e-3 < errors['position_mm'] < errors['position_mm@8']
    stats = {**dataset.processor.stats, 'action_mean': np.zeros((8, 1)), 'action_std': np.ones((8, 1))}
    only_right = data.Processor.from_dict(
        {**dataset.processor.to_dict(), 'action_slots': ['right/tool_x'], 'stats': stats, 'stats_of': None})
    command = random_actions(np.random.default_rng(0), 5).astype(np.float32)
    decoded = only_right.decode_actions(np.full((5, 8, 1), 0.05), command)
    still = [i for i, n in enumerate(data.TOOL_ACTION_NAMES) if not n.startswith('right/tool_')]
    assert (decoded[..., still] == command[:, None, still]).all()
    moved = np.linalg.norm((decoded - command[:, None])[..., data.POSITION[1]], axis=-1)
    assert moved == pytest.approx(0.05, abs=1e-6)


def test_companded_moves_decode_to_the_same_and_small_ones_weigh_more(dataset):
    plain, rows = dataset.processor, dataset.windows[:64]
    companded = data.Processor.from_dict({**plain.to_dict(), 'compand': 0.004, 'stats': None})
    dataset.processor = companded
    try:
        companded.fit(dataset)
    finally:
        dataset.processor = plain
    commands = dataset.read('state', rows)[:, data.COMMAND]
    chunk = companded.normalise_actions(dataset.chunk(rows), commands)
    assert np.abs(companded.decode_actions(chunk, commands) - dataset.chunk(rows)).max() < 1e-6
    # 1 mm more at rest and 1 mm more on a move of 40 mm: asinh is ten times as steep at rest
    x = data.TOOL_ACTION_NAMES.index('right/tool_x')
    action = np.repeat(commands[:4, None].astype(np.float64), 8, 1)
    action[..., x] += np.array([0, .001, .040, .041])[:, None]
    command = commands[[0]].repeat(4, 0) * 0
    moved = companded.relative_actions(action - commands[:4, None], command)
    step = moved[..., companded.action_slots.index('right/tool_x')][:, 0]
    assert (step[1] - step[0]) / (step[3] - step[2]) == pytest.approx(10, rel=.1)


# ---- windows and normaliser

def hand_made(tmp_path, kicked, goal, success, name='e'):
    arrays, header = episode.synthetic_episode(5, CAMERAS, 16, kicks=0.0)
    arrays = {k: np.repeat(v[:1], len(kicked), 0) for k, v in arrays.items()}
    T = len(kicked)
    arrays |= {'time': np.arange(T) / 10, 'kicked': np.array(kicked), 'goal': np.array(goal)}
    arrays['tool_action'][:, 8] = 0.3 + 0.01 * np.arange(T)
    arrays['tool_executed'] = arrays['tool_action']
    data.write_episode(tmp_path / f'{name}.safetensors', arrays, header | {'success': success})


def test_rows_after_a_kick_do_not_count_and_rows_past_the_end_hold_after_success_only(tmp_path):
    kicked = [0, 0, 1, 0, 0, 0]
    hand_made(tmp_path, kicked, [0] * 6, True, 'a')
    hand_made(tmp_path, kicked, [0] * 6, False, 'b')
    dataset = data.Dataset(tmp_path, make_processor(horizon=4))
    mask = dataset.chunk_mask(np.arange(12)).astype(int).tolist()
    assert mask[:6] == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert mask[6:] == mask[:3] + [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    x = dataset.chunk(np.arange(12))[:, :, 8]
    assert x[4].tolist() == pytest.approx([0.34, 0.35, 0.35, 0.35])     # held; not the next episode's row
    assert x[6].tolist() == pytest.approx([0.30, 0.31, 0.32, 0.33])


def test_windows_stop_a_few_rows_after_the_goal_is_reached_for_good(tmp_path):
    hand_made(tmp_path, [0] * 10, [0, 0, 1, 0, 1, 1, 1, 1, 1, 1], True, 'a')
    hand_made(tmp_path, [0] * 10, [0] * 10, False, 'b')
    assert data.Dataset(tmp_path, make_processor(), tail=3).windows.tolist() == [*range(8), *range(10, 20)]
    assert data.Dataset(tmp_path, make_processor(), tail=0).windows.tolist() == [*range(5), *range(10, 20)]


def test_normaliser_uses_what_the_loss_sees_and_never_divides_by_less_than_the_floor(dataset):
    processor, rows = dataset.processor, dataset.windows
    chunk = processor.normalise_actions(dataset.chunk(rows), dataset.read('state', rows)[:, data.COMMAND])
    mask = dataset.chunk_mask(rows)
    floor = np.array([data.TOOL_ACTION[i].floor for i in processor.action_index])
    assert (processor.stats['action_std'] >= floor).all() and mask.mean() < 0.95
    for h in range(8):
        alive = processor.stats['action_std'][h] > floor
        assert alive.any() and np.abs(chunk[mask[:, h], h].mean(0)).max() < 1e-4
        assert np.abs(chunk[mask[:, h], h][:, alive].std(0) - 1).max() < 1e-3
    odd = make_processor().fit(dataset)      # the left hand never moves
    assert 'does not move' in odd['action left/tool_x'] and 'command/right/tool_x' not in odd


def test_tasks_with_fewer_bricks_go_into_the_same_batches(folder, tmp_path):
    paths = data.episode_paths(folder)
    for i, n in enumerate((2, 1)):      # the second episode loses its second brick
        arrays, header = data.read_episode(paths[i])
        scene = np.array(arrays['scene']).reshape(-1, 3, 2, 4)[:, :, :n]
        # on none of them; from row 5 on another goal of the plan is at work
        referents = [[0, [[0, 0, n, 1, 0, 0, 0, 0]]], [5, [[0, 0, n, 0, 0.3, 0, 0, 0]]]]
        data.write_episode(tmp_path / f'{i}.safetensors', dict(arrays, scene=scene.reshape(len(scene), -1)),
                           dict(header, seed=i, referents=referents))
    dataset = data.Dataset(tmp_path, make_processor(), None)
    short = dataset.episode == 1
    scene = dataset.scene(np.arange(len(short)))
    assert scene.shape[2] == 2 and np.isfinite(scene[~short]).all()
    assert np.isfinite(scene[short][:, :, 0]).all() and np.isnan(scene[short][:, :, 1]).all()
    assert dataset.referents[:, 0, 2].tolist() == [2] * 4
    dataset.processor.fit(dataset)
    assert np.array_equal(dataset.spans, [0, 5, dataset.start[1], dataset.start[1] + 5])
    for step in range(4):
        rows, batch = dataset.sample_rows(step, 8, 0), dataset.batch(step, 8)
        late = rows - dataset.start[dataset.episode[rows]] >= 5
        assert np.array_equal(batch['referents'][:, 3], ~late)
    del arrays['scene'], header['referents']      # as older code recorded
    safetensors.numpy.save_file(arrays, tmp_path / 'old', {'header': json.dumps(header)})
    with pytest.raises(ValueError, match='has no scene, referents: record it anew'):
        data.Dataset([tmp_path / 'old'], make_processor(), None)
    arrays, header = data.read_episode(paths[0])
    header = dict(header, referents=[[0, 0, 2, 1, 0, 0, 0, 0]])
    safetensors.numpy.save_file(arrays, tmp_path / '2.safetensors', {'header': json.dumps(header)})
    with pytest.raises(ValueError, match='has no referents by row: record it anew'):
        data.Dataset(tmp_path / '2.safetensors', make_processor(), None)
    assert data.check_episode(tmp_path / '2.safetensors') == [
        'referents are not by row, as an older version wrote them: record it anew']


def test_held_out_episodes_stay_held_out_when_more_are_recorded(folder):
    processor = make_processor()
    train, val = (data.Dataset(folder, processor, split, 0.3) for split in ('train', 'val'))
    assert sorted(train.paths + val.paths) == data.episode_paths(folder) and len(val.paths) > 0
    assert data.Dataset(data.episode_paths(folder)[:-2], processor, 'val', 0.3).paths == [
        p for p in val.paths if p in data.episode_paths(folder)[:-2]]


def test_a_normaliser_for_other_numbers_is_refused(dataset):
    made = dataset.processor.to_dict()
    for change in ({'compand': 0.002}, {'control_hz': 20}, {'action_slots': made['action_slots'][::-1]}):
        with pytest.raises(ValueError, match='other numbers'):
            data.Processor.from_dict(made | change)


def test_a_slot_that_reaches_far_is_named(folder):
    processor = make_processor(('command/right/*', 'velocity/spine_z'))
    far = data.Dataset(data.episode_paths(folder) * 20, processor)
    i, episode = data.STATE_NAMES.index('velocity/spine_z'), far.files['state'][0]
    moved = np.where(np.arange(79) == i, np.eye(len(episode), 1) * 90, episode)
    far.files['state'][0] = moved.astype(np.float32)
    assert 'reaches' in processor.fit(far)['velocity/spine_z']


# ---- model input

def test_a_live_observation_and_its_recorded_row_give_identical_model_input(tmp_path):
    rng = np.random.default_rng(0)
    arrays, header = episode.synthetic_episode(5, CAMERAS, 16, kicks=0.0)
    obs = {'time': 0.0, 'joint_pos': rng.normal(size=15), 'joint_vel': rng.normal(size=15),
           'gripper': rng.random(2) * 0.1, 'tool_pos': rng.random((2, 3)),
           'tool_quat': data.quat_from_rotvec(rng.normal(size=(2, 3))), 'tool_vel': rng.normal(size=(2, 3)),
           'tool_command': (rng.random(15) * 0.1).astype(np.float32), 'instruction': header['instruction'],
           **{f'image/{c}': arrays[f'image/{c}'][0] for c in CAMERAS}}
    arrays['state'][0] = data.state_vector(obs)
    data.write_episode(tmp_path / 'e.safetensors', arrays, header)
    dataset = data.Dataset(tmp_path, make_processor(state=('*',)))
    dataset.processor.fit(dataset)
    live, recorded = dataset.processor.encode([obs]), dataset.processor.encode([dataset.row(0)])
    assert live.keys() == recorded.keys() and all(torch.equal(live[k], recorded[k]) for k in live)
    step = next(s for s in range(99) if dataset.sample_rows(s, 1, 0)[0] == 0)
    batch = dataset.batch(step, 1)      # and so does a training batch, when nothing is augmented
    told = dataset.processor.encode([obs], [dataset.subtask(0)])
    assert all(torch.equal(told[k], batch[k]) for k in told)


def test_the_token_sequence_is_images_state_instruction_then_supervised_text(dataset):
    processor = dataset.processor
    user, assistant = processor.prompt_ids('put the red brick on the near left corner', 'right: reach red')
    words = [processor.tokenizer.decode([i], skip_special_tokens=False) for i in user + assistant]
    assert [w.strip() for w in words] == [
        *['<|image_pad|>'] * 4, '<|state_pad|>', *'put the red brick on the near left corner'.split(),
        '<|vla|>', 'right', ':', 'reach', 'red', '<|action_start|>']
    assert processor.decode_text(assistant) == 'right: reach red'
    batch = processor.pad([(user, assistant), (user[:-3], ())])
    n = len(user)
    assert batch['user_len'].tolist() == [n, n - 3] and batch['total_len'].tolist() == [n + 5, n - 3]
    assert batch['labels'][0, n:].tolist() == list(assistant) and (batch['labels'][0, :n] == -100).all()
    assert (batch['labels'][1] == -100).all()
    assert (batch['input_ids'][1, n - 3:] == processor.token_id['<|pad|>']).all()
    with pytest.raises(ValueError, match='forge'):
        processor.prompt('put <|vla|>')


def test_the_tokenizer_keeps_our_words_whole_and_any_text_intact(tmp_path):
    tokenizer, split = data.make_tokenizer(['Zzyzx road'], tmp_path / 't.json')
    assert split == [] and tokenizer.get_vocab_size() <= data.VOCABULARY_SIZE
    data.make_tokenizer([], tmp_path / 'again.json')      # python data.py tokenizer
    assert (tmp_path / 'again.json').read_text() == open('assets/tokenizer.json').read()
    said = {text for task in tasks.TASKS.values() for seed in range(100)
            for _, text in task.sample(np.random.default_rng(seed), 2.)[1]}
    said |= {text.format(x='red') for texts in questions.TEMPLATES.values() for text in texts}
    words = {word for text in said for word in text.split()}
    assert len(words) > 100 and [word for word in words if len(tokenizer.encode(word).ids) > 1] == []
    for text in ('left: carry red to near left; right: hold', 'grüße, 日本!', '2x4 at 1.5'):
        assert tokenizer.decode(tokenizer.encode(text).ids).strip() == text


def test_processor_survives_json_and_refuses_a_world_that_differs(dataset):
    processor = dataset.processor
    again = data.Processor.from_dict(json.loads(json.dumps(processor.to_dict())))
    assert again.to_dict() == processor.to_dict()
    # float64 from the start: a resumed run reads them as such, and must round like the run it continues
    assert all(v.dtype == np.float64 for v in processor.stats.values())
    rows = [dataset.row(i) for i in (0, 5)]
    a, b = processor.encode(rows), again.encode(rows)
    assert all(torch.equal(a[k], b[k]) for k in a)
    world = {'cameras': [*CAMERAS, 'head'], 'image_size': 16, 'control_hz': 10,
             'tool_action_names': data.TOOL_ACTION_NAMES}
    processor.check_world(world)
    for change, words in (({'cameras': ['head', 'overhead']}, "no camera 'right/wrist'"),
                          ({'image_size': 32}, '32x32'), ({'control_hz': 20}, '20 Hz'),
                          ({'tool_action_names': ['x']}, 'action slots x')):
        with pytest.raises(ValueError, match=words):
            processor.check_world(world | change)


# ---- batches

def test_a_batch_is_a_pure_function_of_seed_and_step(dataset, folder):
    again = data.Dataset(folder, dataset.processor, **AUGMENTED)
    dataset.batch(7, 32, seed=1)      # what was asked before must not matter, nor may the global generators
    torch.manual_seed(0), np.random.seed(0)
    a = dataset.batch(3, 32, seed=1)
    torch.manual_seed(1), np.random.seed(1)
    b = again.batch(3, 32, seed=1)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    for other in (dataset.batch(4, 32, seed=1), dataset.batch(3, 32, seed=2)):
        assert not torch.equal(a['noise'], other['noise']) and not torch.equal(a['state'], other['state'])


@pytest.mark.parametrize('world_size', [2, 4])
def test_ranks_share_out_exactly_the_batch_of_one_process(dataset, world_size):
    whole = dataset.batch(3, 32, seed=1)
    parts = [dataset.batch(3, 32, rank, world_size, seed=1) for rank in range(world_size)]
    for name, value in whole.items():
        if name in ('n_rows', 'n_tokens'):
            assert all(part[name] * world_size == value for part in parts)
        else:
            assert torch.equal(torch.cat([part[name] for part in parts]), value), name
    assert whole['n_rows'] == whole['action_mask'].sum()
    assert whole['n_tokens'] == (whole['labels'] != -100).sum()
    with pytest.raises(ValueError, match='does not divide'):
        dataset.batch(0, 32, 0, 3)


def test_an_epoch_visits_every_window_once_also_across_batch_borders(dataset):
    n = len(dataset)
    rows = np.concatenate([dataset.sample_rows(step, 7, seed=5) for step in range(3 * n // 7 + 1)])
    for epoch in range(3):
        assert sorted(rows[epoch * n:(epoch + 1) * n]) == dataset.windows.tolist()
    assert rows[:n].tolist() != rows[n:2 * n].tolist()


def test_folders_take_turns_by_their_weights_and_none_of_their_windows_is_left_out(folder, tmp_path, dataset):
    data.write_synthetic_episodes(tmp_path / 'more', 3, CAMERAS, 16, seed0=100)
    both = [folder, tmp_path / 'more']
    mixed = data.Dataset(both, dataset.processor, weights=(1, 3))
    windows = [mixed.windows[(mixed.episode[mixed.windows] >= 12) == more] for more in (False, True)]
    rows = np.concatenate([mixed.sample_rows(step, 8, seed=2) for step in range(len(windows[0]))])
    of_more = mixed.episode[rows] >= 12
    assert (of_more.reshape(-1, 8).sum(1) == 6).all()      # of every batch
    for more in (False, True):      # an epoch of each folder, whatever the other one does
        n = len(windows[more])
        assert sorted(rows[of_more == more][:n]) == windows[more].tolist()
        assert rows[of_more == more][:n].tolist() != rows[of_more == more][n:2 * n].tolist()
    a, b = mixed.sample_rows(7, 8, 2), np.concatenate([mixed.sample_rows(step, 4, 2) for step in (14, 15)])
    assert a.tolist() == b.tolist()      # the order knows nothing of batches
    with pytest.raises(ValueError, match='3 weights for 2 folders'):
        data.Dataset(both, dataset.processor, weights=(1, 3, 1))
    (tmp_path / 'one').mkdir()
    os.link(data.episode_paths(folder)[0], tmp_path / 'one' / 'e.safetensors')
    with pytest.raises(ValueError, match='no windows'):      # it is held out, or everything else is
        for split in ('train', 'val'):
            data.Dataset([folder, tmp_path / 'one'], dataset.processor, split, 0.3, weights=(1, 1))


def test_given_rows_have_time_zero_and_are_not_counted(folder, dataset):
    giving = data.Dataset(folder, dataset.processor, draws=2, prefix_rows=2)
    plain = data.Dataset(folder, dataset.processor, draws=2)
    a, b = plain.batch(3, 32), giving.batch(3, 32)
    given = (b['time'] == 0).sum(-1)
    assert sorted(given.unique().tolist()) == [0, 1, 2] and not b['time'][..., 2:].eq(0).any()
    assert torch.equal(b['time'][..., -1], a['time'])      # the rest is as it was
    counted = (b['action_mask'][:, None] & (b['time'] > 0)).sum() / 2
    assert b['n_rows'] == counted < a['n_rows']


@pytest.mark.parametrize('times, mean', [
    ('beta', 0.6), ('uniform', 0.5), ('shifted', 1.5 - 0.75 * np.log(3))])
def test_times_are_distributed_as_asked(folder, dataset, times, mean):
    t = data.Dataset(folder, dataset.processor, draws=3, times=times).batch(0, 4096)['time'].double()
    assert t.min() > 0.001 and t.max() <= 1 and t.mean() == pytest.approx(0.001 + 0.999 * mean, abs=0.01)
    with pytest.raises(ValueError, match="times 'normal', expected one of beta"):
        data.Dataset(folder, dataset.processor, times='normal')


def test_draws_follow_their_distributions(dataset):
    batch = dataset.batch(0, 4096)
    t, noise = batch['time'].double(), batch['noise'].double()
    assert t.min() > 0.001 and t.max() <= 1
    assert t.mean() == pytest.approx(0.001 + 0.999 * 0.6, abs=0.01)      # Beta(1.5, 1)
    assert abs(noise.mean()) < 0.01 and noise.std() == pytest.approx(1, abs=0.01)
    assert batch['read_text'].float().mean() == pytest.approx(0.5, abs=0.02)


def test_augmentation_shifts_by_whole_pixels_and_scales_colours():
    images = torch.arange(2 * 1 * 4 * 4 * 3, dtype=torch.uint8).view(2, 1, 4, 4, 3)
    still = {'images': images, 'gain': torch.ones(2, 1, 1, 1, 3), 'offset': torch.zeros(2, 1, 1, 1, 1),
             'shift': torch.zeros(2, 1, 2, dtype=torch.int64)}
    assert data.augment(still)['images'] is images and data.augment(still).keys() == {'images'}
    moved = data.augment(still | {'shift': torch.tensor([[[1, 0]], [[0, -2]]])})['images']
    assert torch.equal(moved[0, 0, :3], images[0, 0, 1:]) and torch.equal(moved[0, 0, 3], images[0, 0, 3])
    assert torch.equal(moved[1, 0, :, 2:], images[1, 0, :, :2])
    assert torch.equal(moved[1, 0, :, 0], images[1, 0, :, 0])
    bright = data.augment(still | {'offset': torch.tensor([0.0, 5.0]).view(2, 1, 1, 1, 1)})['images']
    assert bright.dtype == torch.float32
    assert torch.equal(bright[0], images[0].float()) and torch.equal(bright[1], images[1] + 5.0)
    red = still['gain'] * torch.tensor([2.0, 1.0, 1.0])
    assert torch.equal(data.augment(still | {'gain': red})['images'][..., 0], images[..., 0] * 2.0)


def test_prefetching_changes_neither_order_nor_numbers(dataset):
    ahead = list(data.prefetch(lambda step: dataset.batch(step, 8), range(3, 9)))
    assert len(ahead) == 6
    for step, batch in zip(range(3, 9), ahead):
        assert torch.equal(batch['noise'], dataset.batch(step, 8)['noise'])
    with pytest.raises(ZeroDivisionError):
        list(data.prefetch(lambda step: 1 / (step - 2), range(5)))


def test_folders_are_merged_and_split_by_links(folder, tmp_path, capsys):
    data.write_synthetic_episodes(tmp_path / 'more', 3, CAMERAS, 16)      # the same seeds
    assert data.main(['merge', str(tmp_path / 'all'), str(folder), str(tmp_path / 'more')]) == 0
    merged = data.episode_paths(tmp_path / 'all')
    assert len(merged) == 15 and f'{tmp_path}/all: 15 episodes' in capsys.readouterr().out
    assert os.path.samefile(merged[-1], data.episode_paths(tmp_path / 'more')[-1])
    assert data.main(['split', str(tmp_path / 'all'), '0.3']) == 0
    held, rest = (data.Dataset(f'{tmp_path}/all_{name}', make_processor()) for name in ('held', 'rest'))
    train = data.Dataset(tmp_path / 'all', make_processor(), 'train', 0.3)
    assert [n.split()[-1] for n in rest.names] == [n.split()[-1] for n in train.names]
    assert len(held.paths) == 15 - len(rest.paths) > 0


def test_thousands_of_episodes_open_no_files_and_take_little_memory(folder):
    """Per row and episode, so that it need not be tried on ten thousand: those were 116 MB, docs/log.md."""
    before = len(os.listdir('/proc/self/fd'))
    dataset = data.Dataset([*data.episode_paths(folder)] * 20, make_processor())
    assert len(os.listdir('/proc/self/fd')) == before and len(dataset.paths) == 240
    held = sum(v.nbytes for v in vars(dataset).values() if isinstance(v, np.ndarray))
    assert held / len(dataset.last) < 150      # bytes per row: no state, no pictures
