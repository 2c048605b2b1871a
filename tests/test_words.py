"""Words in training: drawn anew from goals, balanced over tasks, refused where they ask for nothing
that is there; a brick is its colour.

python -m pytest tests/test_words.py
"""

import json
import re

import launch
import numpy as np
import pytest
import torch

import data
import instructions
from episode import COLOURS, read_episode, synthetic_episode, write_episode
from vla import tokenizer, watch
from vla.processor import Processor
from vla.windows import SCENE_FRAMES

CAMERAS = ('overhead',)


def make_processor(**changes):
    with open('assets/tokenizer.json') as f:
        return Processor(
            CAMERAS, 16, ('command/*',), ('*/tool_[xyz]',), 4, 10, f.read(), 2, **changes
        )


def frames(colour):
    """Two goals of `place` that only words tell apart."""
    upper = {'colour': colour, 'by': ['colour']}
    return [
        dict(task='place', upper=upper, corner=corner, turn='lengthwise', hand='left')
        for corner in ('near left', 'far right')
    ]


def write(folder, task, seed, rows=12, by_colour=True):
    """An episode of red and blue as it is recorded now: scene by colour, goals as frames."""
    arrays, header = synthetic_episode(seed, CAMERAS, 16, kicks=0.0)
    arrays = {name: np.repeat(value[:1], rows, 0) for name, value in arrays.items()}
    arrays |= {'time': np.arange(rows) / 10, 'goal': np.zeros(rows, np.uint8)}
    scene = np.full((rows, SCENE_FRAMES, len(COLOURS) if by_colour else 2, 4), np.nan, np.float32)
    scene[:, :, :2] = 0.1
    arrays['scene'] = scene.reshape(rows, -1)
    goals = frames('red')
    texts = [instructions.draw(np.random.default_rng(seed), goal) for goal in goals]
    fixed = len(COLOURS) if by_colour else 2
    table = [[0, 0, fixed, 0, x, 0, 0, 0] for x in (0.3, 0.4)]
    header |= dict(task=task, seed=seed, instruction=texts[0], askable=texts)
    header |= dict(referents=[[0, table]], success=False)
    if by_colour:
        header['goals'] = goals
    path = folder / f'{task}_{seed:07d}.safetensors'
    write_episode(path, arrays, header)
    return path


@pytest.mark.parametrize('wordings', [0, 50])
def test_batches_have_one_shape_whatever_the_grammar_says(tmp_path, wordings):
    """Asked with noise a prompt may be twice as long as those that were recorded."""
    write(tmp_path, 'place', 0)
    words = dict(wording_noise=1.0, wordings=wordings, refuse_share=0.2)
    processor = make_processor()
    dataset = data.Dataset(tmp_path, processor, multiple=8, **words)
    processor.fit(dataset)
    assert dataset.user_tokens % 8 == 0
    shapes = {tuple(dataset.batch(step, 64)['input_ids'].shape) for step in range(20)}
    assert shapes == {(64, dataset.prompt_tokens)}
    free = data.Dataset(tmp_path, processor, **words)
    free.user_tokens = 1000  # nothing is too long
    assert max(int(free.batch(step, 64)['user_len'].max()) for step in range(20)) > max(
        int(dataset.batch(step, 64)['user_len'].max()) for step in range(20)
    )


def test_parts_of_like_length_hold_every_sample_once_and_are_no_wider_than_they_must(tmp_path):
    write(tmp_path, 'place', 0)
    processor = make_processor()
    dataset = data.Dataset(tmp_path, processor, wording_noise=1.0, noise_samples=2)
    processor.fit(dataset)
    batch = dataset.batch(3, 24)
    parts = data.by_length(batch, 4)
    assert [len(part['state']) for part in parts] == [6, 6, 6, 6]
    widths = [part['input_ids'].shape[1] for part in parts]
    assert widths == [int(part['total_len'].max()) for part in parts] == sorted(widths)
    assert widths[0] < batch['input_ids'].shape[1]
    together = torch.cat([part['noise'] for part in parts])
    order = batch['total_len'].argsort(stable=True)
    assert torch.equal(together, batch['noise'][order])
    assert sum(part['n_tokens'] for part in parts) == pytest.approx(float(batch['n_tokens']))
    assert data.by_length(batch, 1) == [batch] and len(data.by_length(batch, 5)) == 4


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('words')
    for seed in range(3):
        write(folder, 'place', seed, rows=12)
    write(folder, 'stack', 0, rows=90)
    return folder


def make_dataset(folder, **settings):
    dataset = data.Dataset(folder, make_processor(), **settings)
    dataset.processor.fit(dataset)
    return dataset


def texts_of(dataset, batch):
    """What each sample is told, and what it is to say."""
    decode = dataset.processor.decode_text
    read = []
    for ids, user, total in zip(batch['input_ids'], batch['user_len'], batch['total_len']):
        read.append((decode(ids[:user].tolist()), decode(ids[user:total].tolist())))
    return read


def test_words_are_drawn_anew_whenever_a_sample_is_read(folder):
    dataset = make_dataset(folder, wording_noise=1.0)
    first, again, next_step = (dataset.batch(step, 64, seed=3) for step in (5, 5, 6))
    assert all(torch.equal(first[k].nan_to_num(9), again[k].nan_to_num(9)) for k in first)
    told = {text for text, _ in texts_of(dataset, first) + texts_of(dataset, next_step)}
    assert len(told) > 120  # of 128; the files hold four
    parts = [dataset.batch(5, 64, rank, 2, seed=3)['input_ids'] for rank in range(2)]
    assert torch.equal(torch.cat(parts), first['input_ids'])
    assert not told & {text for texts in dataset.askable for text in texts}


def test_a_few_wordings_of_a_goal_are_shared_by_its_samples(folder):
    dataset = make_dataset(folder, wordings=3)
    told = {text for step in range(4) for text, _ in texts_of(dataset, dataset.batch(step, 64))}
    assert len(told) == 3
    other = make_dataset(folder, wordings=3)
    assert {text for text, _ in texts_of(other, other.batch(9, 64))} == told  # of any run


def test_words_without_a_goal_frame_stay_as_they_are_recorded(folder, tmp_path):
    arrays, header = read_episode(folder / 'place_0000000.safetensors')
    words = ['Reach the red brick.', 'Reach the blue brick.']
    header |= dict(instruction=words[0], askable=words, goals=[None, None])
    write_episode(tmp_path / 'e.safetensors', arrays, header)
    dataset = make_dataset(tmp_path, wording_noise=1.0, reask_share=0.5)
    told = {text for text, _ in texts_of(dataset, dataset.batch(0, 32))}
    assert told == {'reach the red brick', 'reach the blue brick'}  # and spelt plainly
    with pytest.raises(ValueError, match='has no goals.*--refuse_share=0'):
        data.Dataset(tmp_path, make_processor(), refuse_share=0.1)


def test_what_cannot_be_done_is_answered_with_still_hands_and_a_question(folder):
    plain, refusing = (make_dataset(folder, refuse_share=share) for share in (0.0, 0.3))
    a, b = plain.batch(2, 128), refusing.batch(2, 128)
    said = [text for _, text in texts_of(refusing, b)]
    refused = torch.tensor([text == 'ask: which brick?' for text in said])
    assert 20 < refused.sum() < 60
    assert (b['referents'][refused] == -1).all() and b['action_mask'][refused].all()
    assert torch.equal(a['referents'][~refused], b['referents'][~refused])
    assert torch.equal(a['actions'][~refused], b['actions'][~refused])
    rows = refusing.sample_rows(2, 128, 0)
    commands = refusing.commands(rows)
    still = refusing.processor.decode_actions(b['actions'].numpy(), commands)
    assert np.allclose(still[refused], commands[refused][:, None], atol=1e-6)
    assert b['n_rows'] == b['action_mask'].sum()
    known = [instructions.plain(f'{colour}') for colour in COLOURS[2:]]
    told = [text for (text, _), no in zip(texts_of(refusing, b), refused) if no]
    assert any(word in text.split() for word in known for text in told)  # what is not there


def test_colours_of_a_scene_are_those_of_its_loose_bricks(folder):
    assert make_dataset(folder).colours_at(0) == {'red', 'blue'}


def test_tasks_have_equal_shares_of_the_samples_however_long_they_take(folder):
    dataset = make_dataset(folder)
    table = dataset.by_task()
    assert {task: row[:2] for task, row in table.items()} == {'place': (3, 36), 'stack': (1, 90)}
    assert [row[2] for row in table.values()] == [0.5, 0.5]
    of_stack = [dataset.rows_of('stack', dataset.sample_rows(i, 8, 0)).sum() for i in range(9)]
    assert of_stack == [4] * 9
    by_rows = make_dataset(folder, task_shares=())
    assert by_rows.by_task()['stack'][2] == pytest.approx(90 / 126)
    shares = make_dataset(folder, task_shares=('*=1', 'st*=3')).by_task()
    assert shares['stack'][2] == 0.75
    assert make_dataset(folder, task_shares=('stack=0',)).by_task()['place'][2] == 1
    for wrong, said in ((('jion=1',), 'fits no task; there are place, stack'), (('*=x',), 'share')):
        with pytest.raises(ValueError, match=said):
            make_dataset(folder, task_shares=wrong)


def test_one_task_is_sampled_in_the_order_it_always_was(folder):
    paths = [path for path in make_dataset(folder).paths if 'place' in path]
    dataset = make_dataset(paths)
    n = len(dataset)
    order = np.random.default_rng([4, 0]).permutation(n)
    rows = np.concatenate([dataset.sample_rows(step, 6, 4) for step in range(n // 6)])
    assert rows.tolist() == dataset.windows[order].tolist()


def test_every_split_has_the_bricks_of_all(tmp_path):
    """Also where the held-out part has fewer: it ended a run at its first evaluation."""
    for seed in range(6):
        write(tmp_path, 'place', seed, by_colour=False)
    arrays, header = read_episode(tmp_path / 'place_0000000.safetensors')
    scene = np.zeros((len(arrays['time']), SCENE_FRAMES * 3 * 4), np.float32)
    write_episode(tmp_path / 'place_0000000.safetensors', dict(arrays, scene=scene), header)
    splits = [data.Dataset(tmp_path, make_processor(), split, 0.4) for split in ('train', 'val')]
    assert [split.n_bricks for split in splits] == [3, 3]
    assert all(split.scene(split.windows[:2]).shape[2] == 3 for split in splits)


def test_bricks_by_colour_and_by_place_are_not_mixed(folder, tmp_path):
    old = write(tmp_path, 'place', 7, by_colour=False)
    assert data.Dataset(folder, make_processor()).n_bricks == len(COLOURS)
    mixed = data.Dataset([str(folder), str(old)], make_processor())
    with pytest.raises(ValueError, match='numbers its bricks by their place in its task'):
        mixed.demand('grounding')
    mixed.processor.fit(mixed)
    assert 'scene' not in mixed.batch(0, 4)  # all else can be learnt


def test_words_are_spelt_plainly_but_for_checkpoints_that_never_were():
    processor = make_processor()
    ids = processor.prompt_ids('Put the RED 2 by 4 on it, please!', 'right hand: press it')
    assert ids == processor.prompt_ids('put the red 2x4 on it please', 'right hand: press it')
    assert processor.decode_text(ids[1]) == 'right hand: press it'
    kept = processor.to_dict()
    assert Processor.from_dict(kept).plain_words
    del kept['plain_words']  # of an earlier revision
    old = Processor.from_dict(kept)
    assert old.prompt_ids('Put it, please') != old.prompt_ids('put it please')
    assert Processor.from_dict(old.to_dict()).plain_words is False


def test_no_word_of_grammar_questions_or_narration_is_split():
    processor = make_processor()
    encode = processor.tokenizer.encode
    split = [word for word in sorted(tokenizer.known_words()) if len(encode(word).ids) > 1]
    assert split == [] and len(instructions.vocabulary()) > 300
    for text in ('right hand: press the blue brick onto the red 2x6', instructions.ASK_BACK):
        ids = encode(text).ids
        assert len(ids) == len(tokenizer.PIECE.findall(text))
        assert processor.decode_text(ids) == text


def test_questions_come_with_the_words_that_were_drawn(folder):
    dataset = make_dataset(folder, question_share=1.0)
    for told, answer in texts_of(dataset, dataset.batch(0, 32)):
        if answer in ('yes', 'no'):  # whether it is done depends on what was asked for
            assert ';' in told and told.partition(' ; ')[0] not in dataset.askable[0]


def test_a_batch_of_questions_alone_has_a_loss(folder):
    batch = make_dataset(folder, question_share=1.0).batch(0, 4)
    assert not batch['action_mask'].any() and batch['n_rows'] == 1
    silent = make_dataset(folder, reask_share=1.0).batch(0, 4)
    assert (silent['labels'] == -100).all() and silent['n_tokens'] == 1


def test_held_out_scores_of_tasks_have_a_line_of_their_own():
    scores = {'val_loss': 1.25, 'val_position_mm': 3.0, 'val_position_mm@2': 4.0}
    scores |= {
        'val_position_mm/join': 2.5,
        'val_gripper_mm/join': 1.0,
        'val_position_mm/place': 3.5,
    }
    assert watch.scores_text(scores, 7) == (
        'held out at 7:  loss 1.25  position_mm 3\n  position_mm by task:  join 2.5  place 3.5'
    )


def test_a_run_of_several_tasks_says_their_rows_and_scores_each_on_held_out_episodes(
    folder, tmp_path
):
    words = ['config/debug.py', f'--episodes={folder}', f'--out_dir={tmp_path}', '--n_layers=1']
    words += ['--image_size=16', '--cameras=overhead,', '--tokens_per_camera=2', '--batch_size=8']
    words += ['--max_steps=2', '--eval_interval=2', '--eval_batches=1', '--val_fraction=0.6']
    said = launch.run('train.py', *words, '--horizon=4', '--refuse_share=0.2')
    rows = re.findall(
        r'^  (\w+): (\d) episodes, (\d+) windows .*, (\d+)% of the samples', said, re.M
    )
    meta = json.loads((tmp_path / 'meta.json').read_text())
    assert meta['tasks'] == [task for task, *_ in rows] and sum(int(row[3]) for row in rows) == 100
    line = json.loads((tmp_path / 'log.jsonl').read_text().splitlines()[-1])
    held_out = data.Dataset(folder, make_processor(), 'val', 0.6).tasks
    errors = {key.partition('/')[2] for key in line if key.startswith('val_position_mm/')}
    assert errors == (set(held_out) if len(held_out) > 1 else set())
