"""Protects the truth: one frozen snapshot per state, plain data, which nobody has to ask the world
about again.

python -m pytest tests/test_truth.py
"""

import dataclasses
import pathlib
import pickle

import numpy as np
import pytest

from sim import expert, hand, judge, kicks, labels, truth
from sim.expert import Expert
from sim.gl import mujoco
from sim.kicks import Kicks
from sim.tasks import TASKS
from sim.world import World


def test_a_snapshot_is_frozen_and_stays_what_it_was():
    world = World('place', cameras=())
    world.reset(0)
    before = world.truth()
    pos = before.brick_pose('red')[0]
    command = before.tool_command.copy()
    for change in (
        lambda: setattr(before, 'steps', 7),
        lambda: pos.__setitem__(0, 1.0),
        lambda: before.qpos.__setitem__(0, 1.0),
        lambda: before.tool_pose('left')[0].__setitem__(0, 1.0),
    ):
        with pytest.raises((dataclasses.FrozenInstanceError, ValueError)):
            change()
    saved = pickle.dumps(before)
    for _ in range(20):
        world.step(Expert().act(world.truth())[0])
    assert pickle.dumps(before) == saved
    assert before.steps == 0 and np.array_equal(before.tool_command, command)
    assert world.truth().steps == 20 and not np.array_equal(world.truth().qpos, before.qpos)


def test_there_is_one_snapshot_per_state_and_none_is_stale():
    world = World('join', cameras=())
    world.reset(0)
    start = world.truth()
    assert world.truth() is start
    world.observe()
    assert world.truth() is start, 'looking changes nothing'
    state = world.state()
    world.step(world.tool_command)
    assert world.truth() is world.truth() is not start
    world.set_state(state)
    assert world.truth().steps == 0 and np.array_equal(world.truth().qpos, start.qpos)
    # a hand that writes into the world
    upper = world.plan.upper
    adr = world.model.jnt_qposadr[world.model.body(upper).jntadr[0]]
    world.data.qpos[adr + 2] += 0.1
    mujoco.mj_forward(world.model, world.data)
    assert world.truth().brick_pose(upper)[0][2] == pytest.approx(0.1, abs=1e-3)
    world.data.qvel[adr] += 1.0
    assert world.truth().qvel[adr] == pytest.approx(start.qvel[adr] + 1.0)
    assert not world.truth().joined()
    world._put_on(world.plan)
    assert world.truth().joined()
    world.reset(1)
    assert not world.truth().joined() and world.truth().instruction == world.instruction


@pytest.mark.parametrize('task', TASKS)
def test_all_that_is_said_of_a_state_follows_from_its_snapshot(task):
    """A snapshot that has been to a file and back gives the same answers, with no world about."""
    world, teacher, disturbance = World(task, cameras=()), Expert(), Kicks(5, 0.3)
    obs, info = world.reset(5)
    twin = Kicks(5, 0.3)
    referee = world.judge.copy()
    for _ in range(40):
        seen = world.truth()
        copy = pickle.loads(pickle.dumps(seen))
        action, said = teacher.act(seen)
        again, said_again = Expert().act(copy)
        assert np.array_equal(action, again) and said == said_again
        executed, kicked = disturbance.apply(seen, action, said)
        assert np.array_equal(twin.apply(copy, action, said)[0], executed)
        choice = dict(action=action, executed=executed, kicked=kicked, subtask=said['subtask'])
        row, row_again = (labels.episode_row(each, obs, info, choice) for each in (seen, copy))
        for key, value in row.items():
            if key == 'referents':
                assert value[0] == row_again[key][0]
                assert np.array_equal(value[1], row_again[key][1])
            else:
                floats = isinstance(value, np.ndarray) and value.dtype.kind == 'f'
                assert np.array_equal(value, row_again[key], equal_nan=floats), key
        obs, *_, info = world.step(executed)
        referee.update(pickle.loads(pickle.dumps(world.truth())))
    assert referee == world.judge
    assert referee.metrics == info['metrics'] and referee.metrics['steps'] == 40


@pytest.mark.parametrize('module', [truth, judge, labels, hand, expert, kicks])
def test_who_reads_the_truth_does_not_know_the_world(module):
    source = pathlib.Path(module.__file__).read_text()
    assert 'sim.world' not in source and 'import world' not in source


def test_success_takes_a_second_of_the_goal():
    world = World('place', cameras=())
    world.reset(2)
    reached = []
    while not world.judge.success and world.steps < world.max_steps:
        world.step(Expert().act(world.truth())[0])
        reached.append(world.judge.reached(world.truth()))
    assert world.judge.success and sum(reached) == world.control_hz and all(reached[-10:])
    moved = dataclasses.replace(world.truth(), links=())
    assert not world.judge.reached(moved)
    world.judge.update(moved)
    assert not world.judge.success and judge.PHASES[world.judge.phase] == 'success', 'the furthest'
