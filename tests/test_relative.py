"""Whether a trained policy corrects by what it sees of brick and place, or by dead reckoning.

make demo && python -m pytest --slow -s tests/test_relative.py
It prints, for a brick that hangs over its place, how far the next command goes for each millimetre
that the brick has slipped in the hand, and that the camera of that hand has been displaced. A
policy that sees takes the slip back (-1) and does not mind the camera (0); one that takes a pose in
the camera's frame for one in the hand's follows the camera.
"""

import pathlib

import numpy as np
import pytest

from episode import ARMS, POSITION
from sim.expert import Expert
from sim.world import World
from vla import policy

CHECKPOINT = pathlib.Path('out/demo')
SEEDS = range(2_000_000, 2_000_004)
MOVE_M = 0.002  # as far as a press may be off
SIDEWAYS = np.eye(3)[:2]  # world axes x and y

pytestmark = [
    pytest.mark.slow,
    pytest.mark.mujoco,
    pytest.mark.skipif(not CHECKPOINT.exists(), reason='no out/demo: make demo'),
]


def hang_over_the_place(world, seed):
    """Let the expert drive until it begins to press; returns the number of the hand."""
    expert = Expert()
    world.reset(seed)
    action, info = expert.act(world.truth())
    while 'press' not in info['phase']:
        world.step(action)
        action, info = expert.act(world.truth())
    return ARMS.index(world.truth().goal.hand)


def next_command(world, start, seed, hand):
    """Where the policy sends the hand next, (3,) m."""
    obs = world.observe() | {'instruction': world.instruction}
    return start(seed)(obs)['executed'][POSITION[hand]].astype(float)


def slipped(world, hand, way):
    """Move the brick that the hand holds, in the world frame."""
    body = world.model.body(world.truth().goal.upper)
    first = world.model.jnt_qposadr[body.jntadr[0]]
    world.data.qpos[first : first + 3] += way


def displaced(world, hand, way):
    """Move the camera that the hand carries, in the world frame."""
    camera = world.model.camera(f'{ARMS[hand]}/wrist')
    turn = world.data.xmat[camera.bodyid[0]].reshape(3, 3)
    camera.pos[:] += turn.T @ way


def answers(world, start, change):
    """Metres of command for each metre of a change, over seeds and directions."""
    slopes = []
    for seed in SEEDS:
        hand = hang_over_the_place(world, seed)
        before = next_command(world, start, seed, hand)
        state, cameras = world.state(), world.model.cam_pos.copy()
        for way in MOVE_M * SIDEWAYS:
            change(world, hand, way)
            world._refresh()
            moved = next_command(world, start, seed, hand) - before
            slopes.append(moved @ way / MOVE_M**2)
            world.model.cam_pos[:] = cameras
            world.set_state(state)
    return np.array(slopes)


def test_a_brick_that_slips_in_the_hand_is_brought_back_to_its_place():
    world = World('place')
    start = policy.checkpoint(CHECKPOINT, world.metadata(), device='cpu')
    brick = answers(world, start, slipped)
    camera = answers(world, start, displaced)
    for what, slopes in (('brick', brick), ('camera', camera)):
        print(f'\n{what}: {slopes.mean():+.2f} mm of command per mm, each {slopes.round(2)}')
    assert -1.6 < brick.mean() < -0.4
    world.close()
