"""Protects what is randomised: nothing at 0, by the seed alone, each kind by itself, replay.

python -m pytest tests/test_randomise.py
"""

import colorsys
import json

import launch
import numpy as np
import pytest

from sim import robustness
from sim.expert import Expert
from sim.randomise import KINDS, WRITTEN, amounts
from sim.tasks import RGBA
from sim.world import CAMERAS, World

pytestmark = pytest.mark.mujoco
# What a kind writes into the model; the rest acts elsewhere.
WRITES = dict(
    light={'light_pos', 'light_dir', 'light_diffuse'},
    surfaces={'geom_rgba', 'geom_matid'},
    bricks={'geom_rgba'},
    camera={'cam_pos', 'cam_quat', 'cam_pos0', 'cam_mat0'},
    lens={'cam_fovy'},
    picture=set(),
    friction={'geom_friction'},
    studs=set(),
    gripper={'actuator_gainprm', 'actuator_biasprm'},
    calibration=set(),
    latency=set(),
)
SEEN = ('light', 'surfaces', 'bricks', 'camera', 'lens', 'picture')  # only pictures change
SMALL = dict(cameras=('overhead', 'left/wrist'), image_size=48)


@pytest.fixture(scope='module')
def clean():
    world = World('place', **SMALL)
    yield world
    world.close()


@pytest.fixture(scope='module')
def wild():
    world = World('place', randomise=1.0, **SMALL)
    yield world
    world.close()


def run(world, seed, steps=6):
    """All observations of the expert's first steps, and where everything is in the end."""
    seen = [world.reset(seed)[0]]
    expert = Expert()
    for _ in range(steps):
        seen.append(world.step(expert.act(world.truth())[0])[0])
    return seen, world.data.qpos.copy()


def same(a, b):
    return all(np.array_equal(x[key], y[key]) for x, y in zip(a, b) for key in x)


def test_at_zero_nothing_is_written_and_the_model_is_the_same(clean):
    none = World('place', randomise=0.0, randomise_only='light', **SMALL)
    assert none.model_hash == clean.model_hash and amounts(0.0) == {}
    before = {name: getattr(none.model, name).copy() for name in WRITTEN}
    assert same(run(none, 3)[0], run(clean, 3)[0])
    for name, value in before.items():
        assert np.array_equal(getattr(none.model, name), value), name
    assert none.metadata()['randomised'] == {} and none.metadata()['randomise'] == 0
    none.close()


def test_a_world_renders_before_its_first_episode():
    world = World('place', randomise=1.0, **SMALL)
    assert world.render('overhead').shape == (48, 48, 3) and world.metadata()['randomised'] == {}
    world.close()


def test_scenes_and_words_are_those_of_the_clean_world(clean, wild):
    for seed in (3, 8):
        for world in (clean, wild):
            world.reset(seed)
        assert clean.askable == wild.askable and clean.instruction == wild.instruction
        assert np.array_equal(clean.tool_command, wild.tool_command)
        for brick in ('red', 'blue'):
            off = clean.truth().brick_pose(brick)[0] - wild.truth().brick_pose(brick)[0]
            assert np.abs(off).max() < 1e-4, 'friction alone moves what settles'


def test_an_episode_repeats_bit_for_bit_after_others_and_from_a_snapshot(wild):
    seen, end = run(wild, 5)
    drawn = json.dumps(wild.metadata()['randomised'])
    wild.reset(5)
    snapshot = wild.state()
    run(wild, 6, steps=1)
    assert json.dumps(wild.metadata()['randomised']) != drawn
    again, there = run(wild, 5)
    assert same(seen, again) and np.array_equal(end, there)
    wild.reset(6)
    wild.set_state(snapshot)
    assert json.dumps(wild.metadata()['randomised']) == drawn
    assert np.array_equal(wild.render('overhead'), seen[0]['image/overhead'])
    other = World('place', randomise=1.0, **SMALL)
    assert same(run(other, 5)[0], seen)
    other.close()


def test_a_recording_replays_bit_equal_and_holds_what_was_drawn(tmp_path):
    from episode import read_episode

    folder = tmp_path / 'wild'
    common = ('--episodes=1', '--image_size=48', '--workers=1')
    said = launch.run('sim_rollout.py', '--randomise=1', f'--record={folder}', *common)
    assert 'place 1/1' in said
    (file,) = folder.glob('*.safetensors')
    arrays, header = read_episode(file)
    assert (
        header['world']['randomise'] == 1 and header['world']['randomised'].keys() == KINDS.keys()
    )
    again = tmp_path / 'again'
    said = launch.run(
        'sim_rollout.py', f'--policy={folder}', f'--record={again}', f'--out={again}', '--workers=1'
    )
    assert 'replay bit-equal in 1/1' in said
    repeated, _ = read_episode(again / file.name)
    for name in ('qpos', 'state', 'image/overhead', 'image/left/wrist'):
        assert np.array_equal(arrays[name], repeated[name]), name
    refusal = launch.run(
        'sim_rollout.py', '--randomise=0.5', f'--record={folder}', *common, fails=True
    )
    assert 'was made with other settings: randomise was 1, is 0.5' in refusal


@pytest.mark.parametrize('kind', KINDS)
def test_a_kind_alone_changes_what_it_says_and_nothing_else(clean, wild, kind):
    world = World('place', randomise=1.0, randomise_only=kind, **SMALL)
    seen, end = run(world, 4)
    changed = set()
    for name in WRITTEN:
        own = world.chance._usual[name]
        if not np.array_equal(getattr(world.model, name), own):
            changed.add(name)
    assert changed == WRITES[kind]
    plain, plain_end = run(clean, 4)
    if kind in ('calibration', 'latency', 'gripper'):
        assert not np.array_equal(end, plain_end)
    if kind in SEEN:
        assert np.array_equal(end, plain_end), 'physics is the same, bit for bit'
        assert not np.array_equal(seen[0]['image/overhead'], plain[0]['image/overhead'])
    wild.reset(4)
    drawn = world.metadata()['randomised']
    assert drawn == {kind: wild.metadata()['randomised'][kind]}, 'the same alone as among others'
    factor = world.clutch.insertion_force_n / world.forces['insertion_force_n']
    assert (factor != 1) == (kind == 'studs') and 0.8 <= factor <= 1.2
    factor = world.clutch.pull_force_n / world.forces['pull_force_n']
    assert (factor != 1) == (kind == 'studs') and 0.8 <= factor <= 1.2
    ambient = world.model.vis.headlight.ambient
    assert np.allclose(ambient, clean.model.vis.headlight.ambient) == (kind != 'light')
    grey = np.full((48, 48, 3), 128, np.uint8)
    first, later, again = (world.chance.develop(grey, 'overhead', 4, t) for t in (0, 1, 0))
    assert np.array_equal(first, again)
    assert np.array_equal(first, later) == (kind != 'picture'), 'the noise is of the step'
    world.close()


def test_a_smaller_number_scales_the_ranges():
    drawn = {}
    for amount in (0.5, 1.0):
        world = World('place', cameras=(), randomise=amount, randomise_only='camera,lens,friction')
        world.reset(2)
        drawn[amount] = world.metadata()['randomised']
    for name in CAMERAS:
        half, full = (np.array(drawn[amount]['camera'][name]) for amount in (0.5, 1.0))
        assert np.allclose(2 * half, full) and np.abs(full[:3]).max() <= 2 * 0.005
        assert 2 * drawn[0.5]['lens'][name] == pytest.approx(drawn[1.0]['lens'][name])
    assert 2 * (drawn[0.5]['friction']['table'] - 1) == pytest.approx(
        drawn[1.0]['friction']['table'] - 1
    )
    # the header says where cameras are, not where they should be
    pose = np.array(world.metadata()['camera_pose']['overhead'])
    camera = world.model.camera('overhead').id
    assert np.allclose(pose, [*world.data.cam_xpos[camera], *world.data.cam_xmat[camera]])


def test_a_brick_keeps_its_colours_name():
    world = World('place', cameras=(), randomise=1.0, randomise_only='bricks', distractors=4)
    named = {name: np.array(rgba.split()[:3], float) for name, rgba in RGBA.items()}
    for seed in range(20):
        world.reset(seed)
        for brick, rgb in world.metadata()['randomised']['bricks'].items():
            hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
            if saturation < 0.1:
                assert brick == ('white' if value > 0.5 else 'black')
                continue
            off = {}
            for name, usual in named.items():
                usual_hue, usual_saturation, _ = colorsys.rgb_to_hsv(*usual)
                if usual_saturation > 0.1:
                    off[name] = abs((hue - usual_hue + 0.5) % 1 - 0.5)
            assert min(off, key=off.__getitem__) == brick
    world.close()


def test_pictures_are_neither_black_nor_blown_out_and_bricks_stand_out():
    world = World('place', cameras=(), randomise=1.0)
    for seed in range(5):
        world.reset(seed)
        picture = world.render('overhead', 128).astype(int)
        body = world.render('overhead', 128, mode='segmentation')
        assert 15 < picture.mean() < 225
        assert (picture.min(-1) > 250).mean() < 0.2
        for brick in ('red', 'blue'):
            seen = picture[body == world.model.body(brick).id]
            if len(seen) >= 8:  # a hand may be above it
                red, _, blue = np.median(seen, axis=0)
                assert (red > blue + 25) if brick == 'red' else (blue > red + 25)
    world.close()


def test_a_robot_that_is_out_of_calibration_does_not_know(clean):
    world = World('place', cameras=(), randomise=1.0, randomise_only='calibration')
    _, info = clean.reset(4)
    obs, _ = world.reset(4)
    for _ in range(3):
        obs, *_ = world.step(obs['tool_command'])
        known, *_ = clean.step(clean.tool_command)
    assert np.allclose(obs['joint_pos'], known['joint_pos'], atol=2e-3)
    assert np.allclose(obs['tool_pos'], known['tool_pos'], atol=1e-3)
    offset = np.array(list(world.metadata()['randomised']['calibration'].values()))
    assert np.allclose(world.data.qpos[world._joint_qadr] - obs['joint_pos'], offset)
    off_m = np.linalg.norm(world.truth().tool_pose('left')[0] - obs['tool_pos'][0])
    assert 2e-4 < off_m < 0.01


def test_a_late_command_is_in_force_at_the_end_of_its_step():
    world = World('place', cameras=(), randomise=1.0, randomise_only='latency')
    world.reset(0)
    late = [world.chance.late_ticks(0, step, 5, 0.02) for step in range(60)]
    assert set(late) == {0, 1, 2}
    assert world.chance.late_ticks(0, late.index(2), 1, 0.02) == 0, 'one tick is always left'
    expert = Expert()
    for _ in range(4):
        world.step(expert.act(world.truth())[0])
        assert np.array_equal(world.data.ctrl[world._joint_act_id[:15]], world.joint_command[:15])


@pytest.mark.parametrize(
    'arguments, said',
    [
        (['--randomise=2'], 'randomise=2: expected a number, from 0.0 to 1.0'),
        (['--randomise=1', '--randomise_only=lamp'], "no kind 'lamp'; expected some of light,"),
        (['--randomise_only=light'], 'randomise_only=light changes nothing: add --randomise=1'),
        (['--robustness', '--rows=dark'], "rows=dark: no row 'dark'; expected some of clean,light"),
        (['--robustness', '--record=x'], 'robustness: expected a score'),
        (['--robustness', '--randomise=1'], 'robustness: each row randomises what it says'),
        (['--rows=light'], 'rows=light changes nothing here'),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments, said, tmp_path):
    out = launch.run('sim_rollout.py', *arguments, f'--out={tmp_path}', '--cameras=', fails=True)
    assert said in out


# -----------------------------------------------------------------------------
# the table


def test_the_difference_is_paired():
    clean = {('place', seed): seed < 8 for seed in range(10)}
    now = {('place', seed): 2 <= seed < 9 for seed in range(1, 10)}  # one seed has not been run
    off = robustness.difference(now, clean)
    assert (off['lost'], off['gained']) == (1, 1) and off['points'] == 0
    assert off['low'] == pytest.approx(-off['high'])
    now = dict.fromkeys(clean, False)
    off = robustness.difference(now, clean)
    assert off['points'] == -80 and -100 <= off['low'] < -80 < off['high'] < 0


def test_every_kind_has_a_row_and_clean_comes_first():
    named = robustness.conditions(chunks=True)
    assert list(named)[0] == 'clean' and KINDS.keys() < named.keys()
    assert named['light'] == dict(randomise=1.0, randomise_only='light')
    assert named['delay_3'] == dict(randomise=0.0, randomise_only='', delay=3)
    assert 'delay_3' not in robustness.conditions(chunks=False)


def test_a_policy_is_scored_under_conditions_and_what_is_done_is_kept(tmp_path):
    arguments = (
        'sim_rollout.py',
        '--policy=hold',
        '--robustness',
        '--rows=light,distractors_2',
        '--episodes=2',
        '--cameras=',
        '--workers=1',
        f'--out={tmp_path}',
    )
    said = launch.run(*arguments)
    root = tmp_path / 'robustness'
    table = json.loads((root / 'robustness.json').read_text())
    assert [row['condition'] for row in table['rows']] == ['clean', 'light', 'distractors_2']
    assert all((row['k'], row['n']) == (0, 2) for row in table['rows'])
    assert (root / 'robustness.png').stat().st_size > 1000
    assert str(root / 'robustness.json') in said and 'minutes of all workers' in said
    logs = {path: path.read_text() for path in root.rglob('rollouts.jsonl')}
    assert len(logs) == 3
    made = {
        path.parent.name: json.loads(text.splitlines()[0])['made_with']
        for path, text in logs.items()
    }
    assert (made['light']['randomise'], made['light']['randomise_only']) == (1.0, 'light')
    assert made['clean']['randomise'] == 0 and made['distractors_2']['distractors'] == 2
    launch.run(*arguments)
    assert {path: path.read_text() for path in root.rglob('rollouts.jsonl')} == logs
    # another task in the same folder is another table
    launch.run(*arguments, '--task=join', '--rows=clean')
    table = json.loads((root / 'robustness.json').read_text())
    assert [row['n'] for row in table['rows']] == [2]
    said = launch.run(*arguments, '--max_minutes=1', fails=True)
    assert 'robustness: rows are compared on the same seeds; leave --max_minutes out' in said
