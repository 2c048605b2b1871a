"""Protects what scenes ask for: bricks known by colour, goals that only words tell apart, refusals.

python -m pytest tests/test_tasks.py
"""

import dataclasses

import numpy as np
import pytest

import episode
import instructions
from episode import COLOURS
from instructions import ASK_BACK
from sim import labels, policies, tasks
from sim.bricks import Brick
from sim.expert import Expert
from sim.gl import mujoco
from sim.judge import STILL_S
from sim.tasks import RGBA, TASKS, Goal, Task
from sim.world import World

SCALES = (1.0, 2.0)


@pytest.fixture(scope='module')
def worlds():
    made = {}

    def get(task, **settings):
        key = (task, *settings.items())
        if key not in made:
            made[key] = World(task, cameras=(), **settings)
        return made[key]

    return get


def drawn(task, scale=2.0, seeds=20, more=()):
    """Poses and what is asked for in some scenes of a task."""
    for seed in range(seeds):
        yield tasks.vary(TASKS[task], np.random.default_rng(seed), scale, more)


def recorded(world, seed, policy=None):
    """Arrays and header of an episode as a file gets them."""
    obs, info = world.reset(seed)
    expert = Expert()
    rows = []
    while not (info['success'] or world.steps >= world.max_steps):
        action, said = (policy or expert.act)(world.truth())
        choice = dict(action=action, executed=action, kicked=False, subtask=said['subtask'])
        rows.append(labels.episode_row(world.truth(), obs, info, choice))
        obs, _, _, _, info = world.step(action)
        rows[-1]['joint_action'] = obs['joint_command']
    result = dict(seed=seed, success=info['success'], metrics=info['metrics'])
    return labels.pack_episode(world.truth(), world.metadata(), result, rows)


# ---- a brick is its colour


def test_the_grammar_and_the_scene_have_the_same_colours():
    assert instructions.COLOURS is COLOURS and sorted(RGBA) == sorted(COLOURS)
    assert len(set(RGBA.values())) == len(COLOURS)


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('scale', SCALES)
def test_a_brick_has_the_number_of_its_colour_in_every_task(task, scale):
    bricks = TASKS[task].bricks(scale)
    free = len(COLOURS) - len({brick.rgba for brick in bricks})
    loose = [b for b in (*bricks, *tasks.distractors(bricks, free)) if not b.fixed]
    numbers = [tasks.colour_number(brick) for brick in loose]
    assert len(set(numbers)) == len(numbers)
    for brick, number in zip(loose, numbers):
        assert brick.rgba == RGBA[COLOURS[number]]
        assert brick.name == ('plate' if brick.plate else COLOURS[number])


@pytest.mark.parametrize('task', TASKS)
def test_targets_have_a_place_for_every_colour_and_none_where_there_is_no_brick(worlds, task):
    world = worlds(task)
    world.reset(1)
    truth = world.truth()
    scene = labels.scene(truth)
    assert scene.shape == (3, len(COLOURS), 4) and scene.dtype == np.float32
    there = {truth.number(name): name for name in truth.movable}
    for number in range(len(COLOURS)):
        if number in there:
            at = truth.brick_pose(there[number])[0]
            assert np.allclose(scene[0, number, :3], at) and np.isfinite(scene[:, number]).all()
        else:
            assert np.isnan(scene[:, number]).all()
    for row, (plan, _) in zip(labels.referents(truth, labels.goals_at_work(truth)), truth.askable):
        assert there[int(row[HAND_COLUMN[plan.hand]])] == plan.upper
        fixed = plan.apart or truth.brick(plan.lower).fixed
        assert row[2] == (len(COLOURS) if fixed else truth.number(plan.lower))


HAND_COLUMN = {'left': 0, 'right': 1}


def test_two_loose_bricks_of_a_colour_are_refused():
    def bricks(scale):
        return (Brick('a', (2, 2), RGBA['red']), Brick('b', (2, 4), RGBA['red']))

    with pytest.raises(ValueError, match="'a' and 'b' are both red"):
        tasks.check_colours(bricks(2.0))
    with pytest.raises(ValueError, match="brick 'c'.*is no colour"):
        tasks.colour_number(Brick('c', (2, 2), '0.5 0.5 0.5 1'))


# ---- words are needed


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('scale', SCALES)
def test_every_scene_has_goals_that_only_words_tell_apart(task, scale):
    asked_first = set()
    for _, askable in drawn(task, scale):
        frames = [frame for _, frame in askable]
        assert len(askable) >= 2
        assert len({str(sorted(frame.items())) for frame in frames}) == len(frames)
        for goal, frame in askable:
            instructions.check(frame)
            if 'upper' in frame:
                assert frame['upper']['colour'] == goal.upper and frame['hand'] == goal.hand
            if 'holder' in frame:
                holding = [g.holder for g in goal.chain if g.holder]
                assert holding == [frame['holder']]
        asked_first.add(str(sorted(frames[0].items())))
    assert len(asked_first) >= 4


def test_mixed_asks_for_four_tasks_alike():
    first = []
    for _, askable in drawn('mixed', seeds=200):
        frames = [frame['task'] for _, frame in askable]
        assert set(frames) == {'place', 'stack', 'join', 'unplug'}
        first.append(frames[0])
    for task in ('place', 'stack', 'join', 'unplug'):
        assert 30 <= first.count(task) <= 75


@pytest.mark.parametrize('task', TASKS)
def test_a_property_that_names_a_brick_names_no_other(task):
    bricks = TASKS[task].bricks(2.0)
    more = tasks.distractors(bricks, len(COLOURS) - len({b.rgba for b in bricks}))
    for poses, _ in drawn(task, more=more, seeds=5):
        described = tasks.describe([*bricks, *more], poses)
        for name, words in described.items():
            for key in words['by']:
                same = [other for other, its in described.items() if its.get(key) == words[key]]
                assert same == [name]


def test_words_are_drawn_by_the_seed_and_do_not_change_the_scene(worlds):
    plain, held_out = worlds('stack'), worlds('stack', wording='held_out')
    texts = {}
    for seed in (3, 4, 3):
        for world in (plain, held_out):
            world.reset(seed)
            texts.setdefault((world.wording, seed), world.instruction)
            assert texts[world.wording, seed] == world.instruction == world.askable[0][1]
            assert world.instruction == instructions.plain(world.instruction)
        assert plain.frames == held_out.frames
        assert np.array_equal(plain.data.qpos, held_out.data.qpos)
    assert len(set(texts.values())) == 4
    known = instructions.vocabulary()
    assert set(texts['grammar', 3].split()) <= known
    assert set(texts['held_out', 3].split()) - known
    assert plain.metadata()['wording'] == 'grammar'
    with pytest.raises(ValueError, match="wording='templates'"):
        World('stack', cameras=(), wording='templates')


@pytest.mark.parametrize('task', ['place', 'stack', 'join', 'unplug', 'separate'])
def test_who_does_the_other_goal_as_well_has_not_understood(worlds, task):
    """The goal holds and nothing is in a hand; once another brick is done too, it is no success."""
    world = worlds(task)
    world.reset(4)
    expert = Expert()
    while not world.judge.success:
        assert world.steps < world.max_steps
        world.step(expert.act(world.truth())[0])
    truth = world.truth()
    assert world.judge.reached(truth)
    other = next(plan for plan, _ in world.askable if plan.upper != world.plan.upper)
    if other.apart:
        links = tuple(link for link in truth.links if link.upper != other.upper)
        assert len(links) == len(truth.links) - 1
        truth = dataclasses.replace(truth, links=links)
    else:
        world._put_on(other)
        mujoco.mj_forward(world.model, world.data)
        truth = world.truth()
    assert not world.judge.reached(truth)


# ---- what cannot be done


@pytest.mark.parametrize('task', TASKS)
def test_where_nothing_can_be_done_hands_that_stay_still_succeed(worlds, task):
    world = worlds(task, impossible_share=1.0)
    arrays, header = recorded(world, seed=5)
    assert header['success'] and len(arrays['time']) == STILL_S * world.control_hz
    assert header['subtasks'] == [ASK_BACK]
    start = arrays['tool_action'][0]
    assert (arrays['tool_action'] == start).all()
    assert header['instruction'] == header['askable'][0]
    assert header['goals'][0]['task'] == 'impossible'
    (first, table), *later = header['referents']
    assert first == 0 and not later
    assert table[0] == [labels.UNKNOWN] * 8 and min(table[1][:4]) >= 0
    assert len(table) == len(header['askable']) == len(header['goals'])
    rng = np.random.default_rng(0)
    goals = {instructions.plain(instructions.draw(rng, f)) for f in header['goals'][1:]}
    assert header['instruction'] not in goals
    instructions.check(header['goals'][0])
    assert instructions.draw(rng, header['goals'][0]) and instructions.held_out(
        header['goals'][0], 7
    )


def test_where_nothing_can_be_done_a_hand_that_fetches_fails(worlds):
    world = worlds('place', impossible_share=1.0)
    world.reset(6)
    fetching = worlds('place')
    fetching.reset(6)
    while world.steps < world.max_steps:
        action = Expert().act(fetching.truth())[0]
        fetching.step(action)
        world.step(action)
    assert world.judge.touched and not world.judge.success
    assert world.max_steps == STILL_S * world.control_hz < fetching.max_steps


def test_a_share_of_the_episodes_cannot_be_done():
    world = World('join', cameras=(), impossible_share=0.3)
    impossible = []
    for seed in range(60):
        world.reset(seed)
        impossible.append(world.impossible is not None)
        assert (world.instruction == world.askable[0][1]) == (not impossible[-1])
    assert 8 <= sum(impossible) <= 28
    state = world.state()
    world.reset(impossible.index(True))
    world.set_state(state)
    assert (world.impossible is not None) == impossible[-1]
    with pytest.raises(ValueError, match='impossible_share=2'):
        World('join', cameras=(), impossible_share=2)


def test_a_checkpoint_is_not_scored_on_what_cannot_be_done_unless_asked(tmp_path):
    made = dict(task='join', impossible_share=0.2, wording='held_out', brick_scale=1.0)
    (tmp_path / 'meta.json').write_text(episode.json.dumps(dict(world=made, processor={})))
    default = dict(task='place', impossible_share=0.0, wording='grammar', brick_scale=2.0)
    settings = policies.checkpoint_world(tmp_path, default)
    assert settings == dict(task='join', brick_scale=1.0)


# ---- episode files


@pytest.mark.parametrize('task', ['place', 'mixed'])
def test_a_recorded_episode_has_a_goal_frame_for_every_text(worlds, task, tmp_path):
    arrays, header = recorded(worlds(task), seed=7)
    path = tmp_path / 'e.safetensors'
    episode.write_episode(path, arrays, header)
    read, header = episode.read_episode(path)
    assert episode.check_episode(path) == []
    assert read['scene'].shape[1] == 3 * len(COLOURS) * 4
    assert len(header['goals']) == len(header['askable'])
    for frame in header['goals']:
        instructions.check(frame)
    missing = dict(header, goals=header['goals'][1:])
    assert 'goals, expected one for each' in episode.find_faults(read, missing)[0]


def test_a_task_may_give_texts_of_its_own_in_place_of_frames(tmp_path):
    """There is no grammar then: the text is the instruction, word for word."""

    def bricks(scale):
        return tuple(Brick(c, (2, 4), RGBA[c]) for c in ('red', 'blue'))

    def sample(rng, scale):
        poses = {'red': (0.32, 0.2, np.pi / 2), 'blue': (0.32, 0.0, np.pi / 2)}
        goal = Goal('red', 'blue', (0, 0), 0, 'left', where='top')
        return poses, [(goal, 'Red on Blue , please')]

    TASKS['own'] = Task(bricks, sample, 15.0, 'one hand does')
    try:
        world = World('own', cameras=())
        arrays, header = recorded(world, seed=0)
        refusing = World('own', cameras=(), impossible_share=1.0)
        with pytest.raises(ValueError, match="task 'own' gives texts, no goal frames"):
            refusing.reset(0)
    finally:
        del TASKS['own']
    assert header['success'] and header['instruction'] == 'Red on Blue , please'
    assert header['goals'] == [None]
    episode.write_episode(tmp_path / 'e.safetensors', arrays, header)
