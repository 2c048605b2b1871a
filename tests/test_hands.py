"""Protects what tasks say of hands: where two are claimed, one does not do, however it tries.

python -m pytest tests/test_hands.py
"""

import numpy as np
import pytest
from test_expert import rollout

from episode import ARM_TOOL
from sim.expert import Expert
from sim.hand import Hand
from sim.tasks import TASKS
from sim.world import World


def only(hand):
    """The expert robbed of its other hand, which stays where it is."""

    def policy(w):
        action = w.tool_command.copy()
        action[ARM_TOOL[hand]] = Expert().act(w)[0][ARM_TOOL[hand]]
        return action

    return policy


def test_join_fails_with_one_hand():
    """Each hand alone with the expert's answers, and one that presses on the table instead of in
    the air."""
    world = World('join', cameras=())

    def on_the_table(w):
        action, h = w.tool_command.copy(), Hand(w, w.goal.hand, w.goal.upper)
        (h.let_go(0.14) if w.joined() else h.bring() if h.held else h.pick())
        action[ARM_TOOL[h.hand]] = h.new
        return action

    for policy in (only('left'), only('right'), on_the_table):
        assert not any(rollout(world, seed, policy)['success'] for seed in range(520_000, 520_004))
    assert 'air' in TASKS['join'].two_hands


def test_handover_fails_with_one_hand():
    """Each hand alone with the expert's answers, and each trying to do all of it: the one does not
    reach the brick, the other not the plate."""
    world = World('handover', cameras=())

    for policy in (only('left'), only('right'), alone('left'), alone('right')):
        assert not any(rollout(world, seed, policy)['success'] for seed in range(520_000, 520_003))
    assert 'reach' in TASKS['handover'].two_hands


@pytest.mark.parametrize('task', ['separate', 'unplug'])
def test_nothing_comes_apart_with_one_hand(task):
    """Each hand alone with the expert's answers; and the hand that reaches the upper brick pulls it
    off and lays it down by itself: the lower one comes along. (Rolled against the table a stack may
    part; that is not in the air.)"""
    world = World(task, cameras=())

    def pull_alone(w):
        hand = w.goal.holder if task == 'separate' else w.goal.hand
        action, h = w.tool_command.copy(), Hand(w, hand, w.goal.upper)
        if h.held:
            h.pull() if w.joined() else h.lay_down(np.array([0.34, 0.0]), np.pi / 2)
        else:
            h.leave() if w.lies(w.goal.upper) else h.pick()
        action[ARM_TOOL[h.hand]] = h.new
        return action

    for policy in (only('left'), only('right'), pull_alone):
        assert not any(rollout(world, seed, policy)['success'] for seed in range(520_000, 520_003))
        assert task == 'separate' or world.truth().joined()
    assert 'comes along' in TASKS[task].two_hands


def alone(hand):
    """One hand that fetches and presses whatever is at work, as the expert does, and waits for
    nobody."""

    def policy(w):
        action, h = w.tool_command.copy(), Hand(w, hand, w.goal.upper)
        (h.let_go(0.14) if w.joined() else h.bring() if h.held else h.pick())
        action[ARM_TOOL[hand]] = h.new
        return action

    return policy


def test_bridge_falls_over_with_one_hand():
    """Each hand alone with the expert's answers, and each pressing on both towers with nobody to
    steady."""
    world, got = World('bridge', cameras=()), []
    for policy in (only('left'), only('right'), alone('left'), alone('right')):
        for seed in range(520_000, 520_003):
            assert not rollout(world, seed, policy)['success']
            got.append(world.truth().joined(world.plan))
    assert any(got), 'one hand does for the blue tower'
    assert 'tips' in TASKS['bridge'].two_hands


def test_build_fails_with_one_hand():
    """Each hand alone with the expert's answers, and each trying to do all of it."""
    world = World('build', cameras=())
    world.time_limit_s = 50.0  # the expert takes 27 s
    for policy in (only('left'), only('right'), alone('left'), alone('right')):
        assert not any(rollout(world, seed, policy)['success'] for seed in range(520_000, 520_002))
    assert 'reaches' in TASKS['build'].two_hands
