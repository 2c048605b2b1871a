"""Protects the expert: it solves every task, recovers, depends on the state alone.

python -m pytest tests/test_expert.py
"""

import numpy as np
import pytest

from episode import ARM_TOOL
from sim.bricks import BRICK_HEIGHT_M, STUD_HEIGHT_M
from sim.control import CLOSED_M
from sim.expert import Expert
from sim.gl import mujoco
from sim.hand import LEVEL_RAD, MAX_YAW_RAD, Hand
from sim.judge import PHASES
from sim.kicks import Kicks
from sim.kinematics import rot_z, rotvec_to_matrix, wrap
from sim.tasks import HANDS, TASKS
from sim.world import World


def rollout(world, seed, policy):
    world.reset(seed)
    while True:
        *_, terminated, truncated, info = world.step(policy(world.truth()))
        if terminated or truncated:
            return info


@pytest.mark.parametrize('scale', [1.0, 2.0])
@pytest.mark.parametrize('task', TASKS)
def test_expert_succeeds(task, scale):
    world, expert = World(task, scale, cameras=()), Expert()
    results = [rollout(world, seed, lambda w: expert.act(w)[0]) for seed in range(500_000, 500_006)]
    assert all(r['success'] for r in results)
    assert max(r['metrics']['steps'] for r in results) <= world.max_steps / 2
    assert all(PHASES[r['phase']] == 'success' for r in results)


@pytest.mark.parametrize('task', TASKS)
def test_expert_recovers_from_kicks(task):
    world, expert, kicked_share = World(task, cameras=()), Expert(), []

    def policy(w):
        action, info = expert.act(w)
        executed, kicked = kicks.apply(w, action, info)
        assert kicked or np.abs(executed - action).max() < 0.02  # jitter
        kicked_share.append(kicked)
        return executed

    ok = 0
    for seed in range(510_000, 510_012):
        kicks = Kicks(seed, 0.1)
        ok += rollout(world, seed, policy)['success']
    assert ok >= 11 and 0.08 < np.mean(kicked_share) < 0.4


@pytest.fixture(scope='module', params=TASKS)
def episode(request):
    """One undisturbed episode of each task, for all that can be read off it -> dict: world, at its
    end; command (T + 1, 15); tool_m (T + 1, 2, 3); said: what one expert answered at each step
    (action, info); states: {step: snapshot before it}, of every third."""
    world, expert, states, said = World(request.param, cameras=()), Expert(), {}, []
    obs, _ = world.reset(4)
    command, tool_m = [obs['tool_command']], [obs['tool_pos']]
    while not world.judge.success and world.steps < world.max_steps:
        if world.steps % 3 == 0:
            states[world.steps] = world.state()
        said.append(expert.act(world.truth()))
        obs, *_ = world.step(said[-1][0])
        command.append(obs['tool_command'])
        tool_m.append(obs['tool_pos'])
    assert world.judge.success
    return dict(
        world=world, command=np.array(command), tool_m=np.array(tool_m), said=said, states=states
    )


def test_expert_is_a_function_of_the_state_alone(episode):
    """Another expert in another world, shown single moments in reverse order, answers the same."""
    world = World(episode['world'].task, cameras=())
    world.reset(0)
    for step in sorted(episode['states'], reverse=True):
        world.set_state(episode['states'][step])
        action, info = Expert().act(world.truth())
        assert (
            np.array_equal(action, episode['said'][step][0]) and info == episode['said'][step][1]
        ), step
        assert len(info['subtask'].split()) <= 14


def test_speeds_stay_within_limits(episode):
    d = np.abs(np.diff(episode['command'], axis=0))
    for hand in HANDS:
        xyz, turn = d[:, ARM_TOOL[hand]][:, :3], d[:, ARM_TOOL[hand]][:, 3:6]
        assert (
            np.hypot(*xyz.T[:2]).max() <= 0.0301
            and xyz[:, 2].max() <= 0.0301
            and turn.max() <= 0.201
        )


def test_hands_move_smoothly(episode):
    """A tool's velocity changes by at most 0.34 m/s in a control step of 0.1 s (320 episodes; there
    and back at full speed would be 0.6). The arms take a step to follow and would hide a command
    that goes to and fro: it turns round, by more than 1 cm on both sides, in at most 5 % of the
    steps (96 episodes)."""
    velocity = np.diff(episode['tool_m'], axis=0) * episode['world'].control_hz
    change = np.linalg.norm(np.diff(velocity, axis=0), axis=2)
    assert 0.05 < change.max() < 0.4
    for hand in HANDS:
        move = np.diff(episode['command'][:, ARM_TOOL[hand]][:, :3], axis=0)
        assert np.mean((move[1:] * move[:-1]).sum(1) < -(0.01**2)) < 0.1


def test_metrics_of_an_undisturbed_episode(episode):
    world, metrics = episode['world'], episode['world'].info()['metrics']
    apart = [(g.lower, g.upper) for g in world.plan.chain if g.apart]
    breaks = [e[2:] for e in world.clutch.events if e[1] == 'break']
    assert metrics['drops'] == 0 and set(apart) <= set(breaks)
    assert metrics['broken'] == len([b for b in breaks if b not in apart])
    if apart:  # nothing has been pressed on
        assert metrics['press_error_mm'] is metrics['press_yaw_deg'] is None
    else:
        assert (
            0 < metrics['press_error_mm'] < 1.5 * world.brick_scale
            and abs(metrics['press_yaw_deg']) < 5
        )
        assert metrics['peak_force_n'] > 1.0, 'it was pressed on'


@pytest.mark.parametrize('task, times', [('place', 2), ('join', 2), ('separate', 1)])
def test_a_hand_that_opens_in_the_air_drops_a_brick(task, times):
    world, expert = World(task, cameras=()), Expert()
    world.reset(2)
    goal = world.truth().goal
    side = ARM_TOOL[goal.hand]

    def carried():
        """In the air; one that has been pulled off neither over the other brick nor where it is
        laid down."""
        truth = world.truth()
        at = truth.brick_pose(goal.upper)[0]
        there = (truth.seat(goal)[0], truth.goal_pose()[0]) if goal.apart else ()
        return (
            at[2] > 0.05
            and truth.held_by(goal.upper) == goal.hand
            and not truth.joined()
            and all(np.hypot(*(at - place)[:2]) > 0.04 for place in there)
        )

    for drops in range(1, times + 1):
        while not carried():
            assert world.steps < 150
            world.step(expert.act(world.truth())[0])
        assert world.info()['metrics']['drops'] == drops - 1
        for _ in range(5):
            action = world.tool_command.copy()
            action[side][6] = world.max_opening_m
            world.step(action)
        assert world.truth().held_by(goal.upper) is None
        assert world.info()['metrics']['drops'] == drops
    while not world.judge.success and world.steps < world.max_steps:
        world.step(expert.act(world.truth())[0])
    assert (
        world.judge.success and world.info()['metrics']['drops'] == times
    )  # laid down is not dropped


@pytest.mark.parametrize('scale', [1.0, 2.0])
def test_metrics_tell_how_a_brick_was_pressed_on_and_what_it_carried(scale):
    """No hands: the brick is set on its studs, off by a known share of what snaps, and forces are
    known."""
    world = World('place', scale, cameras=())
    for off_mm, yaw_deg in (((0, 0), 0), ((0.8, -0.6), 0), ((0, 0), 3), ((-0.9, 0.3), -4)):
        obs, info = world.reset(0)
        goal, off_m = world.truth().goal, 1e-3 * scale * np.array([*off_mm, 0])
        body = world.model.body(goal.upper).id
        seat, yaw = world.truth().seat(goal)
        yaw += np.radians(yaw_deg)
        at = world.model.joint(world.model.body_jntadr[body]).qposadr[0]
        world.data.qpos[at : at + 3] = seat + off_m + [0, 0, scale * STUD_HEIGHT_M]
        world.data.qpos[at + 3 : at + 7] = np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
        mujoco.mj_forward(world.model, world.data)

        def load(force_n):
            world.data.xfrc_applied[body, 2] = force_n
            return world.step(obs['tool_command'])[-1]['metrics']

        load(press := 0.0)  # the last 0.1 mm
        while not world.truth().joined():
            assert info['metrics']['press_error_mm'] is None and press > -12
            metrics = load(press := press - 1)
        assert metrics['press_error_mm'] == pytest.approx(
            1e3 * np.linalg.norm(off_m), rel=0.01, abs=0.01
        )
        assert metrics['press_yaw_deg'] == pytest.approx(yaw_deg, rel=0.01, abs=0.01)
        assert metrics['peak_force_n'] < 10 and metrics['broken'] == 0
        weight_n = 9.81 * world.model.body_subtreemass[body]
        for pull in np.arange(0, 15.5, 0.5):
            metrics = load(pull)
        assert metrics['peak_force_n'] == pytest.approx(15 - weight_n, rel=0.01)
        assert metrics['broken'] == 0 and metrics['done'] == 1
        for pull in np.arange(15, 18, 0.5):  # 8 studs of 2 N
            metrics = load(pull)
        assert metrics['broken'] == 1 and metrics['done'] == 0
        assert metrics['peak_force_n'] == pytest.approx(16, rel=0.05)
        assert metrics['press_error_mm'] == pytest.approx(
            1e3 * np.linalg.norm(off_m), rel=0.01, abs=0.01
        )


def leave_before_the_press(world):
    """Drive to where the hand is up and shut again, the brick on its place, not pressed on. ->
    hand's slots"""
    expert, side = Expert(), ARM_TOOL[world.truth().goal.hand]
    while True:  # Just before the press the hand lets go and rises.
        action, info = expert.act(world.truth())
        if 'press' in info['phase']:
            break
        world.step(action)
    for _ in range(4):
        action = world.tool_command.copy()
        action[side][6], action[side][2] = world.max_opening_m, action[side][2] + 0.015
        world.step(action)
    for _ in range(4):
        action[side][6], action[side][2] = CLOSED_M, action[side][2] + 0.02
        world.step(action)
    assert not world.truth().joined()
    return side


def test_dropped_brick_is_picked_up_again():
    world, expert = World('place', cameras=()), Expert()
    world.reset(2)
    side = leave_before_the_press(world)
    # The coach answers alike: nobody sees from up there that the brick is not on
    left, told = Expert(trusting=True).act(world.truth()), expert.act(world.truth())
    assert 'retreat' in left[1]['phase'] and left[0][side][6] == np.float32(CLOSED_M)
    assert 'reach' in told[1]['phase'] and told[0][side][6] == np.float32(world.max_opening_m)
    while not world.judge.success and world.steps < world.max_steps:
        world.step(expert.act(world.truth())[0])
    assert world.judge.success


@pytest.mark.parametrize('tilt', [(0.3, 0, 0), (0, -0.25, 0), (0.2, 0.2, 0)])
def test_a_brick_that_leans_is_grasped_squarely(tilt):
    world, expert = World('place', cameras=()), Expert()
    world.reset(2)
    hand, red = world.truth().goal.hand, world.truth().goal.upper
    while Hand(world.truth(), hand, red).tool[2] > 0.09:
        world.step(expert.act(world.truth())[0])
    body = world.model.body(red)
    leaning = rotvec_to_matrix(np.array(tilt)) @ world.truth().brick_pose(red)[1]
    world.data.xmat[body.id] = leaning.ravel()
    lean = Hand(world.truth(), hand, red).lean()
    palm = rotvec_to_matrix(np.array([*lean, world.tool_command[ARM_TOOL[hand]][5]]))
    assert np.arccos(palm[:, 2] @ world.truth().brick_pose(red)[1][:, 2]) == pytest.approx(
        LEVEL_RAD, abs=0.02
    )
    flat = rot_z(0.4)  # One that lies flat is grasped upright, too.
    world.data.xmat[body.id] = flat.ravel()
    assert np.allclose(Hand(world.truth(), hand, red).lean(), 0)


LIES = dict(upside_down=(0, np.pi, 0), on_its_side=(0, np.pi / 2, 0), on_its_end=(np.pi / 2, 0, 0))


def tip_over(world, name, lie):
    """Lay a brick of 2x4 down where it stands."""
    pos, R = world.truth().brick_pose(name)
    R = R @ rotvec_to_matrix(np.array(LIES[lie]))
    half = world.brick_scale * np.array([0.008, 0.016, BRICK_HEIGHT_M / 2])
    middle = np.array([*pos[:2], np.abs(R[2]) @ half + 0.004])
    joint = world.model.joint(world.model.body(name).jntadr[0])
    world.data.qpos[joint.qposadr[0] :][:3] = middle - R @ [0, 0, half[2]]
    mujoco.mju_mat2Quat(world.data.qpos[joint.qposadr[0] :][3:7], R.ravel())
    mujoco.mj_forward(world.model, world.data)


@pytest.mark.parametrize('scale', [1.0, 2.0])
@pytest.mark.parametrize('lie', LIES)
def test_a_brick_that_tipped_over_is_set_upright(lie, scale):
    world, expert, verbs = World('build', scale, cameras=()), Expert(), set()
    for seed in range(600_020, 600_023):
        world.reset(seed)
        first = world.truth().goal
        tip_over(world, first.upper, lie)
        assert world.truth().brick_pose(first.upper)[1][2, 2] < 0.1
        while not world.truth().joined(first) and world.steps < 400:
            action, info = expert.act(world.truth())
            verbs |= set(info['phase'])
            world.step(action)
        truth = world.truth()
        assert truth.joined(first) and truth.brick_pose(first.upper)[1][2, 2] > 0.99
    assert 'turn' in verbs


def test_a_tower_that_came_off_is_fetched_by_its_top():
    world, expert = World('build', cameras=()), Expert()
    world.reset(600_000)
    first, second = (
        world.plan.chain[0],
        next(g for g in world.plan.chain if g.lower == world.truth().goal.upper),
    )
    world._put_on(second)  # on its brick, which still lies on the table
    mujoco.mj_forward(world.model, world.data)
    while not world.truth().joined(first, loose=True) and world.steps < 100:
        assert world.truth().joined(second, loose=True), 'it came apart'
        world.step(expert.act(world.truth())[0])
    grips = world.truth().tool_pose(first.hand)[0] - world.truth().brick_pose(second.upper)[0]
    assert np.linalg.norm(grips - [0, 0, world.grasp_height_m]) < 0.012, 'not by its top'
    while not (world.truth().joined(first) and world.truth().joined(second)) and world.steps < 200:
        world.step(
            expert.act(world.truth())[0]
        )  # (pressing may break the upper link, which is pressed on again)
    assert world.truth().joined(first) and world.truth().joined(second)


@pytest.mark.parametrize('hand', HANDS)
def test_turns_stay_within_the_wrists_range(hand):
    world = World('place', cameras=())
    world.reset(2)
    for commanded in np.linspace(-MAX_YAW_RAD, MAX_YAW_RAD, 9):
        h = Hand(world.truth(), hand, world.truth().goal.upper)
        h.command[5] = commanded
        for yaw in np.linspace(-np.pi, np.pi, 13):
            turn = h.turn(yaw)
            assert abs(turn) <= MAX_YAW_RAD + 1e-9
            assert wrap(h.brick_yaw + turn - commanded - yaw, np.pi) == pytest.approx(0, abs=1e-9)


def test_a_plate_that_leans_is_no_reason_to_stop():
    """It is too wide to be righted; a kick on its edge may tilt it by more than a hand leans."""
    world, expert = World('unplug', cameras=()), Expert()
    world.reset(0)
    body = world.model.body('plate')
    for tilt in np.linspace(0, np.pi, 13):
        world.data.xmat[body.id] = rotvec_to_matrix(np.array([tilt, 0, 0])).ravel()
        action, _ = expert.act(world.truth())
        assert np.isfinite(action).all()
