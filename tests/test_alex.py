"""Protects assets/robots/alex/alex.xml: home pose, left-right symmetry, who collides with whom.

    python -m pytest tests/test_alex.py
"""
import numpy as np
import pytest

import world # chooses the GL backend; before mujoco
import mujoco

ALEX = 'assets/robots/alex/alex.xml'
ARM = ('shoulder_y', 'shoulder_x', 'shoulder_z', 'elbow_y', 'wrist_z', 'wrist_x', 'gripper_z')
# in the mirror a joint about y keeps its sign, one about x or z changes it
MIRROR = np.array([1, -1, -1, 1, -1, -1, -1])

@pytest.fixture(scope='module')
def alex():
    return mujoco.MjModel.from_xml_path(ALEX)

def at_home(model):
    state = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, state, model.key('home').id)
    mujoco.mj_forward(model, state)
    return state

def test_home_has_both_tools_pointing_down_with_the_torso_axes(alex):
    state = at_home(alex)
    for side, sign in (('left', 1), ('right', -1)):
        tool = state.site(f'{side}/tool')
        np.testing.assert_allclose(tool.xpos, [.34, sign * .18, .12], atol=5e-4)
        np.testing.assert_allclose(tool.xmat.reshape(3, 3), np.eye(3), atol=1e-3)
    assert state.ncon == 0

def test_home_is_held(alex):
    state = at_home(alex)
    for _ in range(500): # 1 s
        mujoco.mj_step(alex, state)
    np.testing.assert_allclose(state.qpos, alex.key('home').qpos, atol=1e-6) # gravity is compensated

def test_every_joint_has_an_actuator_of_its_name_and_range(alex):
    for name in ['spine_z'] + [f'{side}/{joint}' for side in ('left', 'right') for joint in ARM]:
        assert alex.actuator(name).trnid[0] == alex.joint(name).id
        np.testing.assert_allclose(alex.actuator(name).ctrlrange, alex.joint(name).range)
    for side in ('left', 'right'):
        assert alex.actuator(f'{side}/gripper').trnid[0] == alex.joint(f'{side}/finger_1').id

def test_right_arm_mirrors_the_left(alex):
    state, rng = mujoco.MjData(alex), np.random.default_rng(0)
    flip = np.diag([1, -1, 1])
    for _ in range(10):
        for i, joint in enumerate(ARM):
            low, high = alex.joint(f'left/{joint}').range
            right = sorted(MIRROR[i] * alex.joint(f'left/{joint}').range)
            np.testing.assert_allclose(alex.joint(f'right/{joint}').range, right)
            state.joint(f'left/{joint}').qpos = angle = rng.uniform(low, high)
            state.joint(f'right/{joint}').qpos = MIRROR[i] * angle
        mujoco.mj_forward(alex, state)
        for body in [*ARM, 'palm', 'finger_1']:
            left, right = alex.body(f'left/{body}'), alex.body(f'right/{body}')
            np.testing.assert_allclose(right.mass, left.mass)
            np.testing.assert_allclose(right.inertia, left.inertia)
            if body != 'finger_1': # the mirror of finger_1 is finger_2
                a, b = state.body(f'left/{body}'), state.body(f'right/{body}')
                np.testing.assert_allclose(b.xipos, flip @ a.xipos, atol=1e-9)
                mirrored = flip @ a.xmat.reshape(3, 3) @ flip
                np.testing.assert_allclose(b.xmat.reshape(3, 3), mirrored, atol=1e-6)

def test_hands_meet_the_scene_and_the_other_arm_only(alex):
    def collide(a, b):
        return bool(a[0] & b[1] or b[0] & a[1])

    def bits(name):
        return int(alex.geom(name).contype[0]), int(alex.geom(name).conaffinity[0])

    scene = (1, 1)
    for side, other in (('left', 'right'), ('right', 'left')):
        hand = [f'{side}/{n}' for n in ('palm', 'finger_1', 'finger_2')]
        link = [f'{side}/{n}' for n in ('upper_arm', 'forearm')]
        for name in hand:
            assert collide(bits(name), scene)
            assert collide(bits(name), bits('torso'))
            assert collide(bits(name), bits(f'{other}/finger_2'))
            assert collide(bits(name), bits(f'{other}/forearm'))
            assert not any(collide(bits(name), bits(own)) for own in hand + link)
        for name in link:
            assert not collide(bits(name), scene)
            assert collide(bits(name), bits(f'{other}/upper_arm'))

def test_pictures_weigh_nothing_and_touch_nothing(alex):
    visual = alex.geom_group == 2
    assert visual.sum() > 30
    assert not alex.geom_contype[visual].any() and not alex.geom_conaffinity[visual].any()
    assert alex.body_mass.sum() == pytest.approx(38.9, abs=.1)
