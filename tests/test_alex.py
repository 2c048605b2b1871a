"""Protects assets/robots/alex/alex.xml: home pose, symmetry, limits, who collides with whom; other
robots.

python -m pytest tests/test_alex.py
"""

import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from sim import control, scene, tasks, world
from sim.gl import mujoco

ALEX = 'assets/robots/alex/alex.xml'
ARM = ('shoulder_y', 'shoulder_x', 'shoulder_z', 'elbow_y', 'wrist_z', 'wrist_x', 'gripper_z')
# Mirrored, a joint about y keeps its sign, one about x or z changes it
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
        np.testing.assert_allclose(tool.xpos, [0.34, sign * 0.18, 0.12], atol=5e-4)
        np.testing.assert_allclose(tool.xmat.reshape(3, 3), np.eye(3), atol=1e-3)
    assert state.ncon == 0


def test_home_is_held(alex):
    state = at_home(alex)
    for _ in range(500):  # 1 s
        mujoco.mj_step(alex, state)
    np.testing.assert_allclose(
        state.qpos, alex.key('home').qpos, atol=1e-6
    )  # gravity is compensated


def test_every_joint_has_an_actuator_of_its_name_and_range(alex):
    for name in ['spine_z'] + [f'{side}/{joint}' for side in ('left', 'right') for joint in ARM]:
        assert alex.actuator(name).trnid[0] == alex.joint(name).id
        np.testing.assert_allclose(alex.actuator(name).ctrlrange, alex.joint(name).range)
    for side in ('left', 'right'):
        assert alex.actuator(f'{side}/gripper').trnid[0] == alex.tendon(f'{side}/gripper').id


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
            if body != 'finger_1':  # the mirror of finger_1 is finger_2
                a, b = state.body(f'left/{body}'), state.body(f'right/{body}')
                np.testing.assert_allclose(b.xipos, flip @ a.xipos, atol=1e-9)
                mirrored = flip @ a.xmat.reshape(3, 3) @ flip
                np.testing.assert_allclose(b.xmat.reshape(3, 3), mirrored, atol=1e-6)


def mirror(element):
    """The other arm's version of a body's XML: y -> -y, sides swapped, deep copy."""
    twin = ET.Element(
        element.tag, {k: v.replace('left', 'right') for k, v in element.attrib.items()}
    )
    signs = dict(pos=(1, -1, 1), fromto=(1, -1, 1, 1, -1, 1), quat=(1, -1, 1, -1))
    if element.get('type') == 'cylinder':  # looks the same from both ends
        del signs['quat']
    for key in signs.keys() & twin.attrib.keys():
        numbers = [sign * float(x) + 0.0 for sign, x in zip(signs[key], twin.get(key).split())]
        twin.set(key, ' '.join(f'{x:g}' for x in numbers))
    if element.tag == 'joint' and f'{element.get("class")}_right' in ALEX_CLASSES:
        twin.set('class', f'{element.get("class")}_right')
    twin.extend(mirror(child) for child in element)
    return twin


def normal(element):
    """The same text for the same body, however its numbers are written."""
    out = []
    for e in element.iter():
        values = {
            k: ' '.join(
                f'{float(x) + 0.0:g}' if x.strip('-.0123456789e') == '' else x for x in v.split()
            )
            for k, v in e.attrib.items()
        }
        out.append((e.tag, sorted(values.items())))
    return out


ALEX_CLASSES = {e.get('class') for e in ET.parse(ALEX).iter('default')}


def test_right_arm_is_the_left_ones_mirror_image_element_by_element():
    bodies = {b.get('name'): b for b in ET.parse(ALEX).iter('body')}
    palm = bodies['left/palm']
    # the hand is symmetric: its fingers, named 1 and 2, tool and camera are the same on both sides
    left = ET.fromstring(ET.tostring(bodies['left/shoulder_y']))
    twin = mirror(left)
    for parent in list(twin.iter()):
        for child in list(parent):
            if child.get('name') == 'right/palm':
                parent.remove(child)
                parent.append(ET.fromstring(ET.tostring(palm).decode().replace('left', 'right')))
    assert normal(twin) == normal(bodies['right/shoulder_y'])


# facts of the V2 URDF: effort N m, velocity rad/s
LIMITS = dict(
    shoulder_y=(150, 9),
    shoulder_x=(150, 9),
    shoulder_z=(80, 11.5),
    elbow_y=(71.28, 4.47),
    wrist_z=(20.86, 17.3),
    wrist_x=(20.86, 17.3),
    gripper_z=(20.86, 17.3),
)


def test_efforts_and_velocities_are_those_published(alex):
    for side in ('left', 'right'):
        for joint, (effort, speed) in LIMITS.items():
            np.testing.assert_allclose(
                alex.actuator(f'{side}/{joint}').forcerange, [-effort, effort]
            )
            assert alex.jnt_user[alex.joint(f'{side}/{joint}').id, 0] == speed
    np.testing.assert_allclose(alex.actuator('spine_z').forcerange, [-150, 150])


def test_wild_commands_stay_within_effort_and_velocity_limits():
    cell = world.World('place', cameras=())
    cell.reset(0)
    rng, limit = np.random.default_rng(0), np.array([*[v for _, v in LIMITS.values()] * 2])
    most = np.zeros(14)
    for _ in range(20):
        before = cell.joint_command.copy()
        cell.step(rng.uniform(control.TOOL_LOW, control.TOOL_HIGH))
        moved = np.abs(cell.joint_command - before)[1:15] * cell.control_hz
        assert (moved <= limit * (1 + 1e-9)).all()
        most = np.maximum(most, moved / limit)
        efforts = np.abs(cell.data.actuator_force[cell._joint_act_id[:15]])
        assert (efforts <= cell.model.actuator_forcerange[cell._joint_act_id[:15], 1] + 1e-9).all()
    assert most.max() > 0.999, 'some command was held back'


def test_arms_meet_the_scene_torso_head_and_each_other(alex):
    def meet(a, b):
        return bool(
            alex.geom(a).contype[0] & alex.geom(b).conaffinity[0]
            or alex.geom(b).contype[0] & alex.geom(a).conaffinity[0]
        )

    def meets_scene(name):
        return bool(alex.geom(name).contype[0] & 1 or alex.geom(name).conaffinity[0] & 1)

    for side, other in (('left', 'right'), ('right', 'left')):
        arm = [f'{side}/{n}' for n in ('upper_arm', 'forearm', 'palm', 'finger_1', 'finger_2')]
        for name in (*arm, f'{side}/wrist'):
            assert meets_scene(name) and meet(name, 'torso') and meet(name, 'head'), name
            assert not any(meet(name, own) for own in (*arm, f'{side}/wrist')), name
        for name in arm:
            assert all(
                meet(name, f'{other}/{part}')
                for part in ('upper_arm', 'forearm', 'palm', 'finger_2')
            )
            assert not meet(name, f'{other}/wrist')
    assert not meets_scene('torso') and not meet('torso', 'head')


def test_collision_shapes_are_group_3_and_weigh_nothing(alex):
    touching = (alex.geom_contype != 0) | (alex.geom_conaffinity != 0)
    assert (alex.geom_group[touching] == 3).all() and touching.sum() == 2 + 2 * 6


def test_pictures_weigh_nothing_and_touch_nothing(alex):
    visual = alex.geom_group == 2
    assert visual.sum() > 30
    assert not alex.geom_contype[visual].any() and not alex.geom_conaffinity[visual].any()
    assert alex.body_mass.sum() == pytest.approx(38.9, abs=0.1)


@pytest.fixture
def robots(tmp_path, monkeypatch):
    """A copy of the assets in which robots can be put."""
    shutil.copytree('assets/scenes', tmp_path / 'scenes')
    monkeypatch.setattr(scene, 'ASSETS', tmp_path)

    def put(name, text):
        path = tmp_path / 'robots' / name / f'{name}.xml'
        path.parent.mkdir(parents=True)
        path.write_text(text)
        return path

    return put


def test_a_robot_of_the_users_own_comes_with_its_meshes_and_included_files(robots):
    text = open(ALEX).read()
    shell = '<geom class="shell" type="box" size=".085 .105 .115" pos="-.01 0 .265"/>'
    assert shell in text
    text = text.replace(shell, '<geom class="shell" type="mesh" mesh="chest"/>')
    text = text.replace('<compiler ', '<compiler meshdir="parts" ')
    text = text.replace(
        '<asset>', '<asset><mesh name="chest" file="chest.obj"/><include file="more.xml"/>'
    )
    path = robots('mine', text)
    (path.parent / 'parts').mkdir()
    (path.parent / 'parts' / 'chest.obj').write_text(
        'v 0 0 0\nv .1 0 0\nv 0 .1 0\nv 0 0 .1\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 1 4 3\n'
    )
    (path.parent / 'more.xml').write_text('<mujocoinclude><material name="more"/></mujocoinclude>')
    mine = world.World('place', robot='mine', cameras=())
    assert mine.model.mesh('chest').id == 0 and mine.model.material('more')
    assert mine.metadata()['robot'] == 'mine'
    obs, _ = mine.reset(0)
    obs, *_ = mine.step(obs['tool_command'])
    assert np.isfinite(obs['joint_pos']).all()


def test_what_a_robot_lacks_is_named(robots):
    text = open(ALEX).read()
    robots(
        'lame',
        text.replace('"left/wrist_x"', '"left/wrist_w"').replace(
            'site name="right/tool"', 'site name="right/tip"'
        ),
    )
    with pytest.raises(
        ValueError,
        match='lame.xml: missing: joint left/wrist_x, actuator left/wrist_x, site right/tool;',
    ):
        world.World('place', robot='lame')
    with pytest.raises(FileNotFoundError, match=r"atlas.xml: no such robot; have \['lame'\]"):
        world.World('place', robot='atlas')


def test_every_name_that_scene_and_bricks_take_is_in_the_readme():
    said, kinds = (
        open('assets/robots/alex/README.md').read(),
        ('body', 'geom', 'cam', 'light', 'tex', 'eq'),
    )
    table = {
        line.split('|')[1].strip(): line
        for line in said.split('Names that are taken')[1].splitlines()
        if line.startswith('| ')
    }
    row = dict(zip(kinds, ('bodies', 'geoms', *['cameras, light, texture'] * 3, 'equalities')))
    taken = 0
    for task in tasks.TASKS:
        cell = world.World(task, cameras=(), distractors=0 if task == 'build' else 1)
        bricks = {b.name for b in cell.bricks}
        assert all(f'`{name}`' in table['bodies'] for name in bricks)
        robot = mujoco.MjSpec.from_file(ALEX).compile()
        for kind in kinds:
            names = [
                {m.names[i:].split(b'\0')[0].decode() for i in getattr(m, f'name_{kind}adr')}
                for m in (cell.model, robot)
            ]
            for name in names[0] - names[1] - {''}:
                brick, part = name.rsplit('/', 1) if '/' in name else (name, '')
                said = name if not part else f'/{part}' if brick in bricks else f'{brick}/...'
                assert f'`{said}`' in table[row[kind]], f'{kind} {name}'
                taken += 1
    assert taken > 100


MESH = '<asset><mesh name="m" file="m/nope.obj"/>'


@pytest.mark.parametrize(
    'old, new, said',
    [
        ('</worldbody>', '', 'XML'),
        ('<asset>', MESH, 'nope.obj'),
        (open(ALEX).read(), '\udcff\udcfe\0', 'utf-8|XML'),
        (
            '<worldbody>',
            '<worldbody><geom name="floor" size=".1"/>',
            "repeated name 'floor'.*alex/README.md",
        ),
        ('<worldbody>', '<worldbody><camera name="overhead"/>', "repeated name 'overhead'"),
        ('<worldbody>', '<option cone="pyramidal"/><worldbody>', 'expected elliptic'),
    ],
)
def test_an_error_in_a_robot_names_its_file(robots, old, new, said):
    text = open(ALEX).read()
    assert old in text
    path = robots('mine', '')
    path.write_bytes(text.replace(old, new, 1).encode(errors='surrogateescape'))
    with pytest.raises(ValueError, match=f'(?s)^{path}: .*({said})'):
        world.World('place', robot='mine', cameras=())
