"""Protects the way from an observation to model input, and back from a chunk to commands.

python -m pytest tests/test_processor.py
"""

import json

import launch
import numpy as np
import pytest
import torch
from test_data import CAMERAS, dataset, folder, make_processor, spoil_pictures  # noqa: F401

import data
import episode
from episode import COMMAND, POSITION, ROTVEC
from instructions import plain, vocabulary
from vla import browse, questions
from vla.processor import Processor, anchor, anchors_of, fit_picture, unanchor
from vla.tokenizer import VOCABULARY_SIZE, make_tokenizer

ALEX = anchors_of(episode.TOOL_ACTION)


def random_actions(rng, *shape):
    actions = rng.uniform(-0.4, 0.4, (*shape, 15))
    for columns in ROTVEC:
        axis = rng.normal(size=(*shape, 3))
        axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
        actions[..., columns] = axis * rng.uniform(0, 3.1, (*shape, 1))
    return actions


# ---- anchoring


def test_unanchor_is_the_exact_inverse_of_anchor():
    rng = np.random.default_rng(1)
    actions, command = random_actions(rng, 500, 8), random_actions(rng, 500)
    assert np.abs(unanchor(anchor(actions, command, ALEX), command, ALEX) - actions).max() < 1e-9


def test_anchored_actions_do_not_depend_on_where_and_which_way_the_hand_points():
    """Moving command and actions together, by any rotation and shift, leaves the relative action as
    it is."""
    rng = np.random.default_rng(2)
    actions, command = random_actions(rng, 50, 4), random_actions(rng, 50)
    turn, shift = episode.quat_from_rotvec(np.array([0.3, -0.5, 1.1])), np.array([0.1, -0.2, 0.3])
    moved = []
    for x in (actions, command):
        y = x.copy()
        for p, r in zip(POSITION, ROTVEC):
            y[..., p] = episode.quat_rotate(turn, x[..., p]) + shift
            y[..., r] = episode.rotvec_from_quat(
                episode.quat_mul(turn, episode.quat_from_rotvec(x[..., r]))
            )
        moved.append(y)
    assert np.abs(anchor(*moved, ALEX) - anchor(actions, command, ALEX)).max() < 1e-9


def test_a_turned_hand_sees_forward_motion_in_its_own_frame():
    command, action = np.zeros(15), np.zeros((1, 15))
    command[episode.TOOL_ACTION_NAMES.index('left/tool_rz')] = (
        np.pi / 2
    )  # its own x now points left (y)
    action[0] = command
    action[0, episode.TOOL_ACTION_NAMES.index('left/tool_y')] = 0.1
    moved = dict(zip(episode.TOOL_ACTION_NAMES, anchor(action, command, ALEX)[0]))
    assert moved.pop('left/tool_x') == pytest.approx(0.1) and max(map(abs, moved.values())) < 1e-12


def test_decoded_actions_equal_the_recorded_ones_and_hold_what_is_not_predicted(dataset):
    rows = dataset.windows[:64]
    commands = dataset.read('state', rows)[:, COMMAND]
    chunk = dataset.processor.normalise_actions(dataset.chunk(rows), commands)
    assert (
        np.abs(dataset.processor.decode_actions(chunk, commands) - dataset.chunk(rows)).max() < 1e-6
    )
    assert max(dataset.action_error(rows, chunk).values()) < 1e-3  # mm and rad
    late = chunk.copy()
    late[:, 4:] = 0  # rows 5 to 8
    errors = dataset.action_error(rows, late)
    assert max(errors[f'position_mm@{n}'] for n in (1, 2, 4)) < 1e-3
    assert 1e-3 < errors['position_mm'] < errors['position_mm@8']
    stats = {
        **dataset.processor.stats,
        'action_mean': np.zeros((8, 1)),
        'action_std': np.ones((8, 1)),
    }
    only_right = Processor.from_dict(
        {
            **dataset.processor.to_dict(),
            'action_slots': ['right/tool_x'],
            'stats': stats,
            'stats_of': None,
        }
    )
    command = random_actions(np.random.default_rng(0), 5).astype(np.float32)
    decoded = only_right.decode_actions(np.full((5, 8, 1), 0.05), command)
    still = [i for i, n in enumerate(episode.TOOL_ACTION_NAMES) if not n.startswith('right/tool_')]
    assert (decoded[..., still] == command[:, None, still]).all()
    moved = np.linalg.norm((decoded - command[:, None])[..., POSITION[1]], axis=-1)
    assert moved == pytest.approx(0.05, abs=1e-6)


def test_companded_moves_decode_to_the_same_and_small_ones_weigh_more(dataset):
    plain, rows = dataset.processor, dataset.windows[:64]
    companded = Processor.from_dict({**plain.to_dict(), 'log_scale_m': 0.004, 'stats': None})
    dataset.processor = companded
    try:
        companded.fit(dataset)
    finally:
        dataset.processor = plain
    commands = dataset.read('state', rows)[:, COMMAND]
    chunk = companded.normalise_actions(dataset.chunk(rows), commands)
    assert np.abs(companded.decode_actions(chunk, commands) - dataset.chunk(rows)).max() < 1e-6
    # 1 mm more at rest and 1 mm more on a move of 40 mm: asinh is ten times as steep at rest
    x = episode.TOOL_ACTION_NAMES.index('right/tool_x')
    action = np.repeat(commands[:4, None].astype(np.float64), 8, 1)
    action[..., x] += np.array([0, 0.001, 0.040, 0.041])[:, None]
    command = commands[[0]].repeat(4, 0) * 0
    moved = companded.relative_actions(action - commands[:4, None], command)
    step = moved[..., companded.action_slots.index('right/tool_x')][:, 0]
    assert (step[1] - step[0]) / (step[3] - step[2]) == pytest.approx(10, rel=0.1)


def test_normaliser_uses_what_the_loss_sees_and_never_divides_by_less_than_the_floor(dataset):
    processor, rows = dataset.processor, dataset.windows
    chunk = processor.normalise_actions(
        dataset.chunk(rows), dataset.read('state', rows)[:, COMMAND]
    )
    mask = dataset.chunk_mask(rows)
    floor = np.array([episode.TOOL_ACTION[i].floor for i in processor.action_index])
    assert (processor.stats['action_std'] >= floor).all() and mask.mean() < 0.95
    for h in range(8):
        alive = processor.stats['action_std'][h] > floor
        assert alive.any() and np.abs(chunk[mask[:, h], h].mean(0)).max() < 1e-4
        assert np.abs(chunk[mask[:, h], h][:, alive].std(0) - 1).max() < 1e-3
    odd = make_processor().fit(dataset)  # the left hand never moves
    assert 'does not move' in odd['action left/tool_x'] and 'command/right/tool_x' not in odd


def test_a_normaliser_for_other_numbers_is_refused(dataset):
    made = dataset.processor.to_dict()
    for change in (
        {'log_scale_m': 0.002},
        {'control_hz': 20},
        {'action_slots': made['action_slots'][::-1]},
    ):
        with pytest.raises(ValueError, match='other numbers'):
            Processor.from_dict(made | change)


def test_a_slot_that_reaches_far_is_named(folder):
    processor = make_processor(('command/right/*', 'velocity/spine_z'))
    far = data.Dataset(episode.episode_paths(folder) * 20, processor)
    i = episode.STATE_NAMES.index('velocity/spine_z')
    state = far.files['state'][0]
    moved = np.where(np.arange(79) == i, np.eye(len(state), 1) * 90, state)
    far.files['state'][0] = moved.astype(np.float32)
    assert 'reaches' in processor.fit(far)['velocity/spine_z']


def test_statistics_touch_no_picture(folder, tmp_path):
    browse.pack_episodes(episode.episode_paths(folder), tmp_path, 90)
    whole, blind = (data.Dataset(tmp_path, make_processor()) for _ in range(2))
    for path in episode.episode_paths(tmp_path):
        spoil_pictures(path)
    spoilt = data.Dataset(tmp_path, make_processor())
    with pytest.raises(OSError, match='no jpeg'):
        spoilt.gather_images(np.arange(4))
    for camera in CAMERAS:
        del blind.files[f'image/{camera}']
    expected = data.Dataset(folder, make_processor())
    for dataset in (expected, whole, blind, spoilt):
        dataset.processor.fit(dataset)
        stats, same = dataset.processor.stats, expected.processor.stats
        assert all(np.array_equal(stats[name], same[name]) for name in same)


def test_slots_that_lie_dead_or_reach_far_are_printed_before_training(folder, tmp_path):
    paths = episode.episode_paths(folder)
    for path in paths:
        arrays, header = episode.read_episode(path)
        state, at = np.array(arrays['state']), episode.STATE_NAMES.index('velocity/spine_z')
        state[0, at] = 90 * (path == paths[0])
        episode.write_episode(
            tmp_path / 'e' / path.split('/')[-1], dict(arrays, state=state), header
        )
    said = launch.run(
        'train.py',
        f'--episodes={tmp_path}/e',
        f'--out_dir={tmp_path}/run',
        '--dry_run=True',
        f'--cameras={CAMERAS}',
        '--image_size=16',
        '--val_fraction=0',
        '--batch_size=8',
    )
    table = {name: ' '.join(words) for name, *words in map(str.split, said.splitlines()) if words}
    assert table['velocity/spine_z'].startswith('reaches 90 from the middle')
    assert table['velocity/left/wrist_z'] == 'does not move: spread 0 is below its floor 0.05'
    assert 'does not move' in said.split('action left/tool_x')[1].split('\n')[0]
    assert 'command/right/tool_x' not in table and 'slots: 79 state, 15 action' in said


# ---- model input


def test_a_live_observation_and_its_recorded_row_give_identical_model_input(tmp_path):
    rng = np.random.default_rng(0)
    arrays, header = episode.synthetic_episode(5, CAMERAS, 16, kicks=0.0)
    obs = {
        'time': 0.0,
        'joint_pos': rng.normal(size=15),
        'joint_vel': rng.normal(size=15),
        'gripper': rng.random(2) * 0.1,
        'tool_pos': rng.random((2, 3)),
        'tool_quat': episode.quat_from_rotvec(rng.normal(size=(2, 3))),
        'tool_vel': rng.normal(size=(2, 3)),
        'tool_command': (rng.random(15) * 0.1).astype(np.float32),
        'instruction': header['instruction'],
        **{f'image/{c}': arrays[f'image/{c}'][0] for c in CAMERAS},
    }
    arrays['state'][0] = episode.state_vector(obs)
    episode.write_episode(tmp_path / 'e.safetensors', arrays, header)
    dataset = data.Dataset(tmp_path, make_processor(state=('*',)))
    dataset.processor.fit(dataset)
    live, recorded = dataset.processor.encode([obs]), dataset.processor.encode([dataset.row(0)])
    assert live.keys() == recorded.keys() and all(torch.equal(live[k], recorded[k]) for k in live)
    step = next(s for s in range(99) if dataset.sample_rows(s, 1, 0)[0] == 0)
    batch = dataset.batch(step, 1)  # and so does a training batch, when nothing is augmented
    told = dataset.processor.encode([obs], [dataset.subtask(0)])
    assert all(torch.equal(told[k], batch[k]) for k in told)


def test_the_token_sequence_is_images_state_instruction_then_supervised_text(dataset):
    processor = dataset.processor
    user, assistant = processor.prompt_ids(
        'put the red brick on the near left corner', 'right: reach red'
    )
    words = [processor.tokenizer.decode([i], skip_special_tokens=False) for i in user + assistant]
    assert [w.strip() for w in words] == [
        *['<|image_pad|>'] * 4,
        '<|state_pad|>',
        *'put the red brick on the near left corner'.split(),
        '<|vla|>',
        'right',
        ':',
        'reach',
        'red',
        '<|action_start|>',
    ]
    assert processor.decode_text(assistant) == 'right: reach red'
    batch = processor.pad([(user, assistant), (user[:-3], ())])
    n = len(user)
    assert batch['user_len'].tolist() == [n, n - 3] and batch['total_len'].tolist() == [
        n + 5,
        n - 3,
    ]
    assert (
        batch['labels'][0, n:].tolist() == list(assistant)
        and (batch['labels'][0, :n] == -100).all()
    )
    assert (batch['labels'][1] == -100).all()
    assert (batch['input_ids'][1, n - 3 :] == processor.token_id['<|pad|>']).all()
    with pytest.raises(ValueError, match='forge'):
        processor.prompt('put <|vla|>')


def test_the_tokenizer_keeps_our_words_whole_and_any_text_intact(tmp_path):
    tokenizer, split = make_tokenizer(['Zzyzx road'], tmp_path / 't.json')
    assert split == [] and tokenizer.get_vocab_size() <= VOCABULARY_SIZE
    make_tokenizer([], tmp_path / 'again.json')  # python data.py tokenizer
    assert (tmp_path / 'again.json').read_text() == open('assets/tokenizer.json').read()
    said = vocabulary()
    said |= {
        plain(text.format(x='red')) for texts in questions.TEMPLATES.values() for text in texts
    }
    words = {word for text in said for word in text.split()}
    assert (
        len(words) > 100 and [word for word in words if len(tokenizer.encode(word).ids) > 1] == []
    )
    for text in ('left: carry red to near left; right: hold', 'grüße, 日本!', '2x4 at 1.5'):
        assert tokenizer.decode(tokenizer.encode(text).ids).strip() == text


def test_processor_survives_json_and_refuses_a_world_that_differs(dataset):
    processor = dataset.processor
    again = Processor.from_dict(json.loads(json.dumps(processor.to_dict())))
    assert again.to_dict() == processor.to_dict()
    # float64 from the start: a resumed run reads them as such, and must round like the run it
    # continues
    assert all(v.dtype == np.float64 for v in processor.stats.values())
    rows = [dataset.row(i) for i in (0, 5)]
    a, b = processor.encode(rows), again.encode(rows)
    assert all(torch.equal(a[k], b[k]) for k in a)
    world = {
        'cameras': [*CAMERAS, 'head'],
        'image_size': 16,
        'control_hz': 10,
        'tool_action_names': episode.TOOL_ACTION_NAMES,
    }
    processor.check_world(world)
    for change, words in (
        ({'cameras': ['head', 'overhead']}, "no camera 'right/wrist'"),
        ({'image_size': 32}, '32x32'),
        ({'control_hz': 20}, '20 Hz'),
        ({'tool_action_names': ['x']}, 'action slots x'),
    ):
        with pytest.raises(ValueError, match=words):
            processor.check_world(world | change)


# ---- pictures, action spaces


def test_pictures_of_any_size_become_squares_and_those_of_the_size_stay_untouched():
    rng = np.random.default_rng(0)
    square = rng.integers(0, 255, (16, 16, 3), np.uint8)
    assert fit_picture(square, 16) is square
    wide = np.full((24, 48, 3), 200, np.uint8)
    wide[:, 24:] = 100
    fitted = fit_picture(wide, 16)  # 8 lines of it, black above and below
    assert fitted.shape == (16, 16, 3) and fitted.dtype == np.uint8
    assert not fitted[:4].any() and not fitted[12:].any()
    assert (fitted[4:12, :7] == 200).all() and (fitted[4:12, 9:] == 100).all()
    assert np.array_equal(fit_picture(wide.transpose(1, 0, 2), 16), fitted.transpose(1, 0, 2))
    for wrong in (square[..., 0], square.astype(np.float32), np.zeros((16, 16, 4), np.uint8)):
        with pytest.raises(ValueError, match='expected a picture .height, width, 3. of uint8'):
            fit_picture(wrong, 16)


def test_a_live_picture_is_fitted_like_a_recorded_one_and_a_wrong_one_is_named(tmp_path):
    arrays, header = episode.synthetic_episode(5, CAMERAS, 24, kicks=0.0)
    arrays['image/overhead'] = arrays['image/overhead'][:, :18]
    episode.write_episode(tmp_path / 'e.safetensors', arrays, header)
    dataset = data.Dataset(tmp_path, make_processor())
    dataset.processor.fit(dataset)
    live = dataset.row(3) | {f'image/{c}': arrays[f'image/{c}'][3] for c in CAMERAS}
    seen = dataset.processor.encode([live])['images'].numpy()
    assert np.array_equal(seen, dataset.gather_images(np.array([3])))
    with pytest.raises(ValueError, match='image/overhead is .18, 24., expected a picture'):
        dataset.processor.encode([live | {'image/overhead': live['image/overhead'][..., 0]}])


def joint_processor(*patterns):
    with open('assets/tokenizer.json') as f:
        return Processor(CAMERAS, 16, ['*'], patterns, 4, 10, f.read(), 2, action_space='joint')


def test_joint_actions_are_learnt_as_differences_to_the_joint_command_in_force(folder):
    processor = joint_processor('left/shoulder_y', 'right/gripper')
    dataset = data.Dataset(folder, processor)
    dataset.action += np.random.default_rng(0).normal(size=dataset.action.shape)  # of a zero robot
    processor.fit(dataset)
    rows = dataset.windows[dataset.windows > dataset.start[dataset.episode[dataset.windows]]][:9]
    shoulder, gripper = processor.action_index
    relative = processor.relative_actions(dataset.chunk(rows), dataset.commands(rows))
    ahead = dataset.chunk(rows)[..., shoulder] - dataset.action[rows - 1, shoulder][:, None]
    assert np.allclose(relative[..., 0], ahead, atol=1e-6)
    assert np.array_equal(relative[..., 1], dataset.chunk(rows)[..., gripper])
    normal = processor.normalise_actions(dataset.chunk(rows), dataset.commands(rows))
    decoded = processor.decode_actions(normal, dataset.commands(rows))
    assert np.abs(decoded - dataset.chunk(rows))[..., processor.action_index].max() < 1e-5
    others = np.setdiff1d(np.arange(len(processor.action_names)), processor.action_index)
    assert (decoded[..., others] == dataset.commands(rows)[:, None, others]).all()
    again = Processor.from_dict(json.loads(json.dumps(processor.to_dict())))
    assert again.to_dict() == processor.to_dict() and again.action_names[-1] == 'right/gripper'


def test_slots_of_the_other_action_space_are_named_with_the_setting():
    with pytest.raises(ValueError, match="'left/shoulder_y'.* --action_space=joint"):
        make_processor(action=('left/shoulder_y',))
    with pytest.raises(ValueError, match="'left/tool_x'.* --action_space=tool"):
        joint_processor('left/tool_x')
    with pytest.raises(ValueError, match="no slot matches 'nowhere'") as error:
        joint_processor('nowhere')
    assert '--action_space' not in str(error.value)


def test_a_world_has_to_take_the_actions_that_are_given():
    world = {
        'cameras': CAMERAS,
        'image_size': 16,
        'control_hz': 10,
        'tool_action_names': episode.TOOL_ACTION_NAMES,
        'joint_action_names': episode.JOINT_ACTION_NAMES,
    }
    joint_processor('*').check_world(world | {'action_space': 'joint'})
    make_processor().check_world(world | {'action_space': 'tool'})
    with pytest.raises(ValueError, match='takes tool actions, the policy gives joint actions'):
        joint_processor('*').check_world(world)
    with pytest.raises(ValueError, match='takes joint actions, the policy gives tool actions'):
        make_processor().check_world(world | {'action_space': 'joint'})
