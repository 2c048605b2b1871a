"""Answers are true in the world they were made in, and hold for the rows they say.

python -m pytest tests/test_questions.py
"""

import numpy as np
import pytest

import data
import episode
from sim import labels
from vla import questions
from vla.processor import Processor


def test_spans_hold_exactly_the_facts_of_every_row():
    rng = np.random.default_rng(0)
    rows = [
        [('where', x, str(rng.integers(2))) for x in 'ab' if rng.random() < 0.8] for _ in range(40)
    ]
    runs = labels.spans(rows)
    for t, found in enumerate(rows):
        assert sorted(tuple(run[:3]) for run in runs if run[3] <= t < run[4]) == sorted(found)
    assert len(runs) < sum(map(len, rows))  # runs, not one entry per row


def test_old_files_can_still_be_asked_what_they_tell():
    arrays, header = episode.synthetic_episode(3, ('overhead',), 16)
    header['qa'] = []
    last = len(arrays['time']) - 1
    for row, done in ((0, 'no'), (last, 'yes')):
        asked = questions.at(header, arrays, row, np.random.default_rng(0))
        assert {kind: answer for kind, _, answer in asked} == {
            'done': done,
            'now': header['subtasks'][arrays['subtask_id'][row]],
        }
        assert all(question.startswith(header['instruction']) for _, question, _ in asked)


def test_wordings_vary_and_name_their_subject():
    header = dict(qa=[['where', 'red', 'left hand', 0, 8]], subtasks=['x'], instruction='do it')
    arrays = dict(goal=np.zeros(9), subtask_id=np.zeros(9, int))
    texts = {questions.at(header, arrays, 4, np.random.default_rng(seed))[0] for seed in range(20)}
    assert len(texts) == len(questions.TEMPLATES['where'])
    assert all('red' in text and answer == 'left hand' for _, text, answer in texts)
    assert 'where' not in {
        kind for kind, *_ in questions.at(header, arrays, 8, np.random.default_rng(0))
    }


def test_scores_by_kind_beside_what_needs_no_eyes():
    asked = [
        ('hand', 'red ?', 'left'),
        ('hand', 'red ?', 'right'),
        ('hand', 'blue ?', 'left'),
        ('done', 'ok ?', 'no'),
    ]
    known = [
        ('hand', 'red ?', 'right'),
        ('hand', 'blue ?', 'left'),
        ('hand', 'blue ?', 'left'),
        ('done', 'ok ?', 'yes'),
    ]
    table = questions.scores(asked, {'model': ['left', 'right', 'right', 'no']}, known)
    assert table['hand'] == {
        'n': 3,
        'majority': 2 / 3,
        'majority per question': 2 / 3,
        'model': 2 / 3,
    }
    assert table['done'] == {'n': 1, 'majority': 0, 'majority per question': 0, 'model': 1}


@pytest.mark.mujoco
def test_facts_follow_the_expert_through_an_episode():
    """`place`: the brick lies on its side of the table, is in the hand, then sits on its corner."""
    from sim.expert import Expert
    from sim.world import World

    world, expert, rows = World('place', cameras=()), Expert(), []
    world.reset(2)
    goal, stop = world.truth().goal, False
    while not stop:
        rows.append(labels.facts(world.truth(), world.judge.metrics))
        _, _, terminated, truncated, info = world.step(expert.act(world.truth())[0])
        stop = terminated or truncated
    assert info['success']
    rows.append(labels.facts(world.truth(), world.judge.metrics))
    red, side = goal.upper, 'left' if world.truth().goal.hand == 'left' else 'right'
    truth = [{(kind, subject): answer for kind, subject, answer in found} for found in rows]
    places = list(dict.fromkeys(found['where', red] for found in truth))
    assert places[:2] == [f'table {side}', f'{goal.hand} hand'] and places[-1] == 'on plate'
    assert truth[0]['hand', red] == 'none' and truth[0]['joined', red] == 'nothing'
    assert truth[-1]['joined', red] == 'plate'
    assert [found['count', ''] for found in (truth[0], truth[-1])] == ['0', '1']
    assert ('cell', red) not in truth[0] and truth[-1]['cell', red] == goal.where
    assert {found['arm', ''] for found in truth} == {goal.hand}
    assert truth[0]['left', ''] != red if side == 'right' else truth[0]['left', ''] == red
    assert {found['wrong', ''] for found in truth} == {'nothing'}


@pytest.mark.mujoco
def test_every_goal_of_a_plan_is_asked_for_and_a_bridge_sits_on_both_towers():
    from sim.expert import Expert
    from sim.world import World

    world, expert, truth = World('bridge', cameras=()), Expert(), []
    world.reset(3)
    stop = False
    while not stop:
        found = labels.facts(world.truth(), world.judge.metrics)
        truth.append({(kind, subject): answer for kind, subject, answer in found})
        _, _, terminated, truncated, info = world.step(expert.act(world.truth())[0])
        stop = terminated or truncated
    assert info['success']
    long = world.plan.upper
    seen = [
        list(dict.fromkeys(found[key] for found in truth if key in found))
        for key in (('joined', long), ('part', long), ('count', ''))
    ]
    assert seen == [
        ['nothing', 'blue', 'blue and white'],
        ['blue tower', 'blue tower and white tower'],
        ['2', '3'],
    ]
    assert (
        len({found['arm', ''] for found in truth}) == 1 and truth[0]['joined', 'white'] == 'yellow'
    )
    assert {found['wrong', ''] for found in truth} == {'nothing'}


def test_a_dataset_asks_its_share_of_questions_and_nothing_else_changes(tmp_path):
    episode.write_synthetic_episodes(tmp_path, 6, ('overhead',), 16)
    with open('assets/tokenizer.json') as f:
        processor = Processor(
            ('overhead',), 16, ('*',), ('*',), 4, 10, f.read(), tokens_per_camera=2
        )
    plain, asking = (
        data.Dataset(tmp_path, processor, question_share=share) for share in (0.0, 0.5)
    )
    processor.fit(plain)
    end, go = processor.token_id['<|im_end|>'], processor.token_id['<|action_start|>']
    asked, answers = 0, []
    for step in range(4):
        a, b = plain.batch(step, 16), asking.batch(step, 16)
        quiz = (b['labels'] == end).any(1)
        assert ((b['labels'] == go).any(1) == ~quiz).all()
        assert (
            not b['action_mask'][quiz].any()
            and (b['action_mask'][~quiz] == a['action_mask'][~quiz]).all()
        )
        assert (b['referents'][quiz] == -1).all() and (b['referents'] == a['referents'])[
            ~quiz
        ].all()
        assert (a['referents'][:, 0] >= 0).all()
        for key in ('images', 'state', 'actions', 'noise', 'time', 'read_text'):
            assert (a[key] == b[key]).all()
        assert a['scene'].nan_to_num().equal(b['scene'].nan_to_num())
        asked += int(quiz.sum())
        texts = [processor.decode_text(row[row >= 0].tolist()) for row in b['labels'][quiz]]
        answers += texts
        said = {
            processor.decode_text(processor.prompt_ids('', text)[1])
            for texts in asking.subtasks
            for text in texts
        }
        assert set(texts) <= {'yes', 'no'} | said
    assert 20 < asked < 44
    # `done` and `now`, all that synthetic episodes can be asked, by their shares: 1 to 4
    assert 0.05 < np.mean([text in ('yes', 'no') for text in answers]) < 0.4
