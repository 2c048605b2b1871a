"""Protects instructions: each wording says its goal and no other, and the held-out ones are new.

python -m pytest tests/test_instructions.py
"""

import copy
import functools
import json
import random
import re
import string

import numpy as np
import pytest

import instructions
from instructions import (
    absent,
    check,
    draw,
    held_out,
    held_out_lines,
    impossible,
    plain,
    vocabulary,
)

DRAWS = 2000
PLAN_DRAWS = 500  # a plan has far more wordings and far more neighbours
RED = {'colour': 'red', 'by': ['colour', 'side'], 'studs': '2x4', 'side': 'left'}
BLUE = {'colour': 'blue', 'by': ['colour', 'side'], 'studs': '2x4', 'side': 'right'}
MIDDLE = BLUE | {'side': 'middle'}
SMALL = {
    'colour': 'white',
    'by': ['colour', 'studs', 'length', 'side'],
    'studs': '2x2',
    'length': 'small',
    'side': 'right',
}
LONG = {'colour': 'red', 'by': ['colour', 'length'], 'studs': '2x8', 'length': 'long'}
ORANGE = {'colour': 'orange', 'by': ['colour'], 'studs': '2x8', 'length': 'long'}
ONE_OF_TWO = {'colour': 'blue', 'by': ['colour'], 'studs': '2x2', 'length': 'small'}
OTHER_OF_TWO = ONE_OF_TWO | {'colour': 'white'}


def step(upper, on, half=None, crosswise=False):
    place = {'plate': on, 'half': half} if half else {'brick': on}
    return {'upper': upper, 'on': place, 'crosswise': crosswise}


STEPS = [
    step('red', 'left', 'near'),
    step('blue', 'red', crosswise=True),
    step('yellow', 'right', 'left'),
    step('black', 'blue'),
    step('white', 'black'),
]
LEFT_HOLDS = {'holder': 'left', 'hand': 'right'}
FRAMES = {
    'place': {'upper': RED, 'corner': 'near right', 'turn': 'lengthwise', 'hand': 'left'},
    'stack': {'upper': RED, 'lower': MIDDLE, 'where': 'across', 'hand': 'left'},
    'stack small': {'upper': SMALL, 'lower': MIDDLE, 'where': 'near end', 'hand': 'right'},
    'handover': {'upper': RED, 'half': 'far', 'giver': 'left', 'hand': 'right'},
    'join': {'upper': ONE_OF_TWO, 'lower': LONG, 'end': 'near'} | LEFT_HOLDS,
    'separate': {'upper': ONE_OF_TWO, 'lower': LONG} | LEFT_HOLDS,
    'unplug': {'upper': RED, 'holder': 'right', 'hand': 'left'},
    'bridge': {'upper': LONG, 'first': 'blue', 'second': 'white'} | LEFT_HOLDS,
    'build': {'steps': STEPS},
}
FRAMES = {name: {'task': name.split()[0]} | frame for name, frame in FRAMES.items()}
OTHER_BRICKS = {  # the other one that could be asked for in the scene
    'place': BLUE,
    'stack': SMALL,
    'stack small': RED,
    'handover': BLUE,
    'join': OTHER_OF_TWO,
    'separate': OTHER_OF_TWO,
    'unplug': BLUE,
    'bridge': ORANGE,
}
SCENE_COLOURS = ('red', 'blue', 'white', 'orange', 'yellow', 'black')
each_frame = pytest.mark.parametrize('name', FRAMES)


def texts(frame, noise=False, n=None):
    """Plain texts of many draws; of those with noise the words that the grammar knows."""
    if n is None:
        n = PLAN_DRAWS if frame['task'] == 'build' else DRAWS
    return _texts(json.dumps(frame), noise, n)


@functools.cache
def _texts(frame, noise, n):
    rng = np.random.default_rng(0)
    frame = json.loads(frame)
    drawn = {plain(draw(rng, frame, noise)) for _ in range(n)}
    if not noise:
        return drawn
    known = vocabulary()
    return {' '.join(word for word in text.split() if word in known) for text in drawn}


def other_steps():
    """Plans that differ from STEPS in one thing."""
    plans = [STEPS[:-1], [*STEPS[:2], *STEPS[3:]]]
    for i, a in enumerate(STEPS):
        others = [{**a, 'crosswise': not a['crosswise']}]
        if 'plate' in a['on']:
            others += [a | step(a['upper'], a['on']['plate'], h) for h in ('far', 'right')]
            side = 'left' if a['on']['plate'] == 'right' else 'right'
            others.append(step(a['upper'], side, a['on']['half']))
        else:
            others.append({**a, 'on': {'brick': 'yellow'}})
        plans += [[*STEPS[:i], other, *STEPS[i + 1 :]] for other in others]
    moved = copy.deepcopy(STEPS)  # the quarter turn comes a step later
    moved[1]['crosswise'] = False
    moved[3]['crosswise'] = True
    swapped = [STEPS[0], STEPS[2], STEPS[1], *STEPS[3:]]
    return [*plans, moved, swapped]


def neighbours(name):
    """Goals of the same scene that differ from a frame's in one thing that is said."""
    frame = FRAMES[name]
    if frame['task'] == 'build':
        return [frame | {'steps': steps} for steps in other_steps()]
    others = [frame | {'upper': OTHER_BRICKS[name]}]
    if name == 'stack':
        others.append(frame | {'upper': frame['lower'], 'lower': frame['upper']})
    kinds = {'stack': ('lined up', 'across'), 'stack small': ('near end', 'far end', 'middle')}
    for key in ('corner', 'turn', 'where', 'half', 'end'):
        if key in frame:
            values = kinds[name] if key == 'where' else instructions.VALUES[key]
            others += [frame | {key: value} for value in values if value != frame[key]]
    return others


# ---- goal frames


@each_frame
def test_frames_are_accepted_and_what_they_lack_is_named(name):
    check(FRAMES[name])
    for key in instructions.KEYS[FRAMES[name]['task']]:
        frame = {k: v for k, v in FRAMES[name].items() if k != key}
        with pytest.raises(ValueError, match=f'no {key}'):
            check(frame)


@pytest.mark.parametrize(
    'change, named',
    [
        ({'task': 'juggle'}, "'juggle'"),
        ({'corner': 'top left'}, "corner 'top left'"),
        ({'tell': ['colour']}, "tell has 'colour'"),
        ({'upper': RED | {'colour': 'mauve'}}, "upper: colour 'mauve'"),
        ({'upper': RED | {'by': ['side']}}, "expected 'colour'"),
        ({'upper': {'colour': 'red', 'by': ['colour', 'studs']}}, 'gives no studs'),
    ],
)
def test_wrong_values_of_a_frame_are_named(change, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        check(FRAMES['place'] | change)


def test_wrong_values_of_a_plan_are_named():
    with pytest.raises(ValueError, match="step 2: brick 'mauve'"):
        check({'task': 'build', 'steps': [STEPS[0], step('red', 'mauve')]})


# ---- the grammar


def test_every_rule_that_a_rule_names_is_there():
    """What is no rule of the file is a part of a frame."""
    rules = instructions._texts()
    parts = set('upper lower hand holder giver half end turn where row column nearest'.split())
    parts |= {'below', 'stack more', 'part of', 'towers', 'first', 'second'}
    parts |= {'side', 'step', 'step place'}
    named = set(re.findall(r'\{([^}@]+)\}', ' '.join(rules.values())))
    assert named - rules.keys() == parts
    made = [instructions._rules(frame) for frame in FRAMES.values()]
    made.append(instructions._step_rules(STEPS[1], 'step brick', None, random.Random(0)))
    made.append(instructions._step_rules(STEPS[0], 'step brick', None, random.Random(0)))
    assert parts <= {name for rules in made for name in rules}


def test_every_word_of_the_file_is_said_sooner_or_later():
    """A rule that nothing leads to would be found here."""
    rng = np.random.default_rng(6)
    said = set()
    for name, frame in FRAMES.items():
        for other in (frame, *neighbours(name)):
            said.update(*(text.split() for text in texts(other)))
        for _ in range(DRAWS // 2):
            said.update(plain(impossible(rng, frame, ())).split())
    numbers = {str(n) for n in range(10)}
    assert vocabulary() - said - {*instructions.SIZES} <= numbers


def test_the_vocabulary_is_small_and_has_every_word_of_the_draws():
    known = vocabulary()
    assert len(known) <= 550  # bytes and special tokens have to fit beside it into 1,024
    for frame in FRAMES.values():
        told = frame | {'tell': ['hands', 'towers']}
        for text in texts(frame) | texts(told):
            assert set(text.split()) <= known, text


@each_frame
def test_there_are_thousands_of_wordings(name):
    """In 2,000 draws hardly one comes twice."""
    assert len(texts(FRAMES[name], n=DRAWS)) > 0.9 * DRAWS


@each_frame
def test_the_same_seed_says_the_same_and_takes_one_number(name):
    first, second = (np.random.default_rng(5) for _ in range(2))
    assert [draw(first, FRAMES[name]) for _ in range(20)] == [
        draw(second, FRAMES[name]) for _ in range(20)
    ]
    third = np.random.default_rng(5)
    third.integers(1 << 62, size=20)
    assert first.integers(1 << 62) == third.integers(1 << 62)


@each_frame
def test_no_wording_looks_like_a_template(name):
    rng = np.random.default_rng(1)
    for _ in range(DRAWS):
        text = draw(rng, FRAMES[name])
        assert text == text.strip() and not re.search(
            r'  | \n|\n | [,.;:?!]|[{}(\[\]|*@#]|[,;:][,;:.]', text
        )


# ---- each wording says its goal


@each_frame
@pytest.mark.parametrize('noise', [False, True])
def test_no_wording_fits_another_goal_of_the_scene(name, noise):
    mine = texts(FRAMES[name], noise)
    for other in neighbours(name):
        check(other)
        shared = mine & texts(other, noise)
        assert not shared, f'{min(shared)!r} may mean {FRAMES[name]} and {other}'


@pytest.mark.parametrize('name', [n for n in FRAMES if 'holder' in FRAMES[n]])
def test_hands_are_told_where_they_tell_goals_apart(name):
    one = FRAMES[name] | {'tell': ['hands']}
    other = one | {'holder': one['hand'], 'hand': one['holder']}
    assert not texts(one) & texts(other)
    assert not {plain(held_out(one, i)) for i in range(300)} & {
        plain(held_out(other, i)) for i in range(300)
    }
    assert texts(FRAMES[name]) & texts(
        FRAMES[name] | {'holder': one['hand'], 'hand': one['holder']}
    )


def test_towers_are_told_where_there_are_more_than_two():
    one = FRAMES['bridge'] | {'tell': ['towers']}
    other = one | {'second': 'yellow'}
    assert not texts(one) & texts(other)
    assert any('two towers' in text for text in texts(FRAMES['bridge']))


def test_the_words_choose_the_task_in_a_scene_of_several():
    """A long red brick, small ones, a plate with a brick on it: all of these could be asked for."""
    both = {'upper': ONE_OF_TWO, 'lower': LONG}
    frames = [
        {
            'task': 'place',
            'upper': ONE_OF_TWO,
            'corner': 'near left',
            'turn': 'crosswise',
            'hand': 'left',
        },
        {'task': 'stack', 'where': 'near end', 'hand': 'left'} | both,
        {'task': 'join', 'end': 'near'} | both | LEFT_HOLDS,
        {'task': 'separate'} | both | LEFT_HOLDS,
        {'task': 'unplug', 'upper': ONE_OF_TWO} | LEFT_HOLDS,
    ]
    drawn = [texts(frame) for frame in frames]
    for i, some in enumerate(drawn):
        for others in drawn[:i]:
            assert not some & others


# ---- what the tokenizer reads


@pytest.mark.parametrize(
    'text, read',
    [
        ('Put the RED brick , on it .', 'put the red brick on it'),
        ("let's put the 2-by-4 on it!", 'lets put the 2x4 on it'),
        ('the 2 x 4, the 2x4, the two by four; the 2 by 10', 'the 2x4 the 2x4 the 2x4 ; the 2x10'),
        ('red on blue\n\nyellow on red;', 'red on blue ; yellow on red'),
        ('1. red 2) blue', '1 red 2 blue'),
        ('ÖFFNE die_Hand <|vla|>', 'öffne die hand vla'),
        ('', ''),
    ],
)
def test_spelling_that_means_nothing_is_dropped(text, read):
    assert plain(text) == read
    assert plain(read) == read


@each_frame
def test_capitals_and_full_stops_change_nothing(name):
    for i in range(50):
        text = draw(np.random.default_rng(i), FRAMES[name])
        bare = text.rstrip('.!?')
        for other in (bare, bare + '.', bare + ' .', text.upper(), text.lower(), f' {text}\n'):
            assert plain(other) == plain(text)


# ---- training


@each_frame
def test_noise_keeps_what_is_asked_for(name):
    """Half of the texts are whole; others lose small words or have letters put in."""
    rng = np.random.default_rng(2)
    drawn = [draw(rng, FRAMES[name], noise=True) for _ in range(DRAWS)]
    assert all(text == plain(text) for text in drawn)
    strange = [text for text in drawn if set(text.split()) - vocabulary()]
    assert 0.3 < len(strange) / DRAWS < 0.4
    for text in strange:
        for word in set(text.split()) - vocabulary():
            assert set(word) <= set(string.ascii_lowercase)
    if name in ('place', 'unplug'):
        named = [re.search(r'\b(red|scarlet|left)\b', text) for text in drawn]
        assert all(named)


# ---- what cannot be done


@each_frame
def test_what_is_not_there_is_asked_for_in_no_goal_of_the_scene(name):
    rng = np.random.default_rng(3)
    asked = {plain(impossible(rng, FRAMES[name], SCENE_COLOURS)) for _ in range(DRAWS)}
    assert len(asked) > 0.8 * DRAWS
    for goal in (FRAMES[name], *neighbours(name)):
        assert not asked & texts(goal)


@each_frame
def test_an_absent_brick_has_a_colour_that_does_not_lie_there(name):
    rng = np.random.default_rng(4)
    before = copy.deepcopy(FRAMES[name])
    for _ in range(50):
        frame = absent(rng, FRAMES[name], SCENE_COLOURS)
        check(frame)
        text = repr(frame)
        strange = {*instructions.COLOURS, *instructions.OTHER_COLOURS} - {*SCENE_COLOURS}
        assert sum(colour in text for colour in strange) == 1
    assert FRAMES[name] == before


@pytest.mark.parametrize('scene', instructions.CANNOT)
def test_goals_of_other_tasks_are_well_formed(scene):
    rng = np.random.default_rng(5)
    frame = FRAMES['place' if scene == 'mixed' else scene]
    for noise in (False, True):
        for _ in range(200):
            assert impossible(rng, frame, SCENE_COLOURS, noise, scene)
    for task in instructions.CANNOT[scene]:
        assert task != scene
        check(instructions._sketch(rng, task, SCENE_COLOURS))


# ---- held-out wordings

NEEDED = {  # slots without which a line does not say its goal
    'place': [{'upper'}, {'corner', 'row'}, {'turn'}],
    'stack': [{'upper'}, {'lower'}, {'where'}],
    'handover': [{'upper'}, {'half'}, {'hand'}],
    'join': [{'upper'}, {'lower'}, {'end'}],
    'separate': [{'upper'}],
    'unplug': [{'upper'}],
    'bridge': [{'upper'}, {'towers', 'first'}],
    'build': [{'steps'}],
}


@pytest.mark.parametrize('task', NEEDED)
def test_held_out_wordings_cannot_be_made_by_the_grammar(task):
    """Each has a word, outside its slots, that is not in the grammar's vocabulary, and every word
    that the grammar says is in it (the test above)."""
    lines = held_out_lines()[task]
    assert len(lines) >= 30
    assert len({plain(line) for line in lines}) == len(lines)
    known = vocabulary()
    for line in lines:
        words = plain(re.sub(r'\{\w+\}', ' ', line)).split()
        assert set(words) - known, f'the grammar knows all words of {line!r}'


@pytest.mark.parametrize('task', NEEDED)
def test_held_out_wordings_say_their_goal(task):
    for line in held_out_lines()[task]:
        slots = set(re.findall(r'\{(\w+)\}', line))
        for some in NEEDED[task]:
            assert slots & some, f'{line!r} lacks {some}'
        if task == 'unplug':
            assert 'plate' in line or 'unplug' in line


@each_frame
def test_a_held_out_wording_fits_no_other_goal_of_the_scene(name):
    n = 3 * len(held_out_lines()[FRAMES[name]['task']])
    mine = {plain(held_out(FRAMES[name], i)) for i in range(n)}
    assert len(mine) == n
    assert not any('{' in text for text in mine)
    for other in neighbours(name):
        assert not mine & {plain(held_out(other, i)) for i in range(n)}
