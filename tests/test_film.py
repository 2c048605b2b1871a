"""Protects what people look at: depth and segmentation tell the truth, films show all their words,
the viewer.

python -m pytest tests/test_film.py
"""

import pathlib
import subprocess
import sys

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import ImageDraw

from sim import film
from sim.gl import mujoco
from sim.judge import PHASES
from sim.tasks import HANDS, TASKS
from sim.world import CAMERAS, World

pytestmark = pytest.mark.mujoco


@pytest.fixture(scope='module')
def world():
    made = World('place', cameras=(), image_size=96)
    made.reset(1_000_000)
    yield made
    made.close()


def test_a_film_shows_the_whole_text_of_the_longest_plan(world, monkeypatch):
    build, drawn, draw_text = World('build', cameras=()), [], ImageDraw.ImageDraw.text
    said = []
    for seed in range(50):
        build.reset(seed)
        said.append(build.instruction)
    instruction = max(said, key=film.ImageFont.load_default(22).getlength)
    links = [
        dict(upper=upper, lower='white', studs=12)
        for upper in ('orange', 'white', 'yellow', 'orange', 'yellow')
    ]
    monkeypatch.setattr(world, 'connections', lambda: links)

    def record(draw, at, text, fill, font, anchor=None, **how):
        drawn.append((text, draw.textbbox(at, text, font, anchor)))
        draw_text(draw, at, text, fill, font, anchor, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, 'text', record)
    subtask = 'left: reach yellow for handover; right: steady orange tower'
    info = dict(phase=PHASES.index('success'))
    frame = film.film_frame(world, dict(instruction=instruction, time=88.8), info, subtask)
    height = film.banner_layout(instruction)[-1]
    assert frame.shape == (height + 480, 1200, 3)
    words, boxes = zip(*[d for d in drawn if d[0] not in film.FILM_VIEWS])
    expected = f'{instruction} {subtask} 88.8 s success ' + ' '.join(
        f'{c["upper"]} on {c["lower"]}: 12 studs,' for c in links
    )
    assert ' '.join(words).split() == expected.rstrip(',').split()
    *banner, below = boxes
    assert all(left >= 0 and right <= 1200 for left, _, right, _ in boxes)
    assert height - 12 <= max(bottom for *_, bottom in banner) <= height, 'as high as its text'
    assert height < below[1] and below[3] <= height + 480 and below[2] <= 720
    for i, a in enumerate(boxes):
        assert not any(
            a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:i]
        ), words[i]


def test_depth_is_the_distance_along_the_optical_axis(world):
    depth = world.render('overhead', mode='depth')
    assert depth.shape == (96, 96) and depth.dtype == np.float32
    # the camera hangs 0.6 m above the table and looks straight down
    assert np.median(depth) == pytest.approx(0.6, abs=2e-3) and depth.min() < 0.55, (
        'hands are nearer'
    )
    plate = depth[world.render('overhead', mode='segmentation') == world.model.body('plate').id]
    top = 0.6 - 2 * 0.0032  # of the plate; its studs are 3.4 mm higher
    assert plate.min() > top - 0.004 and np.median(plate) == pytest.approx(top, abs=2e-3)


def test_segmentation_names_bodies_where_they_are(world):
    ids = world.render('overhead', mode='segmentation')
    assert ids.dtype == np.int32 and ids.min() >= -1
    v, u = np.nonzero(ids == world.model.body('plate').id)
    # pinhole: 96 px for 56 degrees, row 0 on the far side (+x), column 0 on the left (+y)
    f = 48 / np.tan(np.radians(56 / 2))
    x, y = 0.36 + 0.6 * (47.5 - v.mean()) / f, 0.6 * (47.5 - u.mean()) / f
    assert (
        np.allclose((x, y), world.truth().brick_pose('plate')[0][:2], atol=0.008) and len(u) > 200
    )
    assert 0 in ids, 'the table belongs to the world'
    # the hands hide bricks from above, not from the head
    ids, rgb = (world.render('head', mode=mode) for mode in ('segmentation', 'rgb'))
    assert -1 in ids, 'the sky is nothing'
    for name, channel in (('red', 0), ('blue', 2), ('plate', 1)):
        pixels = rgb[ids == world.model.body(name).id].astype(int)
        assert len(pixels) > 8 and (pixels.argmax(1) == channel).mean() > 0.9, name


def test_modes_do_not_disturb_each_other_and_pictures_repeat(world):
    first = {camera: world.render(camera) for camera in CAMERAS}
    before = world.data.qpos.copy()
    for camera in CAMERAS:
        world.render(camera, mode='depth')
        world.render(camera, mode='segmentation')
        again = world.render(camera)
        assert np.abs(first[camera].astype(int) - again).max() <= 1
    assert np.array_equal(before, world.data.qpos)
    with pytest.raises(ValueError, match="mode='normals': expected one of"):
        world.render('head', mode='normals')


def test_pictures_are_saved_to_look_at_and_to_use(world, tmp_path):
    modes = 'rgb', 'depth', 'segmentation'
    paths = film.save_pictures(tmp_path / 'x', world, ('head', 'left/wrist'), modes, 64)
    assert (
        sorted(p.name for p in tmp_path.iterdir())
        == sorted(
            f'x_{camera}{end}'
            for camera in ('head', 'left_wrist')
            for end in ('_rgb.png', '_depth.png', '_segmentation.png', '.npz')
        )
        and len(paths) == 8
    )
    with np.load(tmp_path / 'x_head.npz') as numbers:
        assert np.array_equal(numbers['depth'], world.render('head', 64, mode='depth'))
        seen = {numbers['body_names'][i] for i in np.unique(numbers['segmentation']) if i >= 0}
        assert {'red', 'blue', 'plate', 'left/palm'} < seen
        colours = imageio.imread(tmp_path / 'x_head_segmentation.png').reshape(-1, 3)
        assert len(np.unique(colours, axis=0)) == len(np.unique(numbers['segmentation']))
    with pytest.raises(ValueError, match="no mode 'flow'"):
        film.save_pictures(tmp_path / 'y', world, ('head',), ('flow',))


def test_energy_and_penetration_are_watched(world):
    obs, _ = world.reset(3)
    *_, info = world.step(obs['tool_command'])
    assert 0 < info['metrics']['energy_j'] < 50 and info['metrics']['penetration_mm'] < 5
    state = world.state()
    world.data.qvel[world._joint_vadr[0]] = 60.0  # the torso spins: 0.5 I w^2, I around 1 kg m^2
    assert world.energy_j() > 1000
    world._check_physics()
    assert 'energy' in world.fault
    world.set_state(state)


@pytest.mark.parametrize('display', ['', ':99'])
@pytest.mark.parametrize('arguments', [['--viewer'], ['--view=assets/scenes/table.xml']])
def test_without_a_display_the_viewer_says_what_to_do(arguments, display, monkeypatch):
    """:99 is what ssh leaves behind: a display that is named and not there."""
    if not sys.platform.startswith('linux'):
        pytest.skip('other systems always have a display')
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    monkeypatch.setenv('DISPLAY', display)
    command = [sys.executable, 'sim_rollout.py', '--cameras=', *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (
        run.returncode == 1
        and 'the viewer needs a display' in run.stderr
        and '--video=1' in run.stderr
    )
    assert f"DISPLAY='{display}'" in run.stderr and len(run.stderr.splitlines()) == 1, run.stderr


def test_a_scene_that_is_not_there_or_wrong_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='view=nowhere.xml: no such file'):
        film.view_scene('nowhere.xml')
    (tmp_path / 'bad.xml').write_text('<mujoco><worldbody><geom/></worldbody></mujoco>')
    with pytest.raises(ValueError, match='size'):
        film.view_scene(tmp_path / 'bad.xml')


class Window:
    """Stands in for the viewer's handle: closes after so many draws."""

    def __init__(self, draws):
        self.draws, self.opt, self.cam = draws, mujoco.MjvOption(), mujoco.MjvCamera()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True

    def sync(self):
        self.draws -= 1

    def is_running(self):
        return self.draws > 0


def test_the_viewer_shows_the_running_task_in_real_time_until_it_is_closed(world, monkeypatch):
    import time

    import mujoco.viewer

    import sim_rollout
    from sim import policies

    window = Window(draws=25)
    monkeypatch.setattr(film, 'has_display', lambda: True)
    monkeypatch.setattr(
        mujoco.viewer, 'launch_passive', lambda model, data, key_callback=None, **panels: window
    )
    with film.viewer(world.model, world.data, show_contacts=True, show_joints=True) as draw:
        world.observer, began = draw, time.time()
        result, _ = sim_rollout.run_episode(world, policies.constant('hold'), 5, watched=draw)
        world.observer = None
    # 6 draws per step: 5 while it runs and 1 after it; the window closes within the fifth
    assert result['steps'] == 5 and window.closed
    assert time.time() - began > 0.38, 'real time'
    for flag in (mujoco.mjtVisFlag.mjVIS_CONTACTPOINT, mujoco.mjtVisFlag.mjVIS_JOINT):
        assert window.opt.flags[flag]
    assert window.cam.azimuth == 180 and window.cam.distance < 1, 'from the front, near the hands'


def test_the_last_picture_stays_until_the_window_is_closed(monkeypatch, capsys):
    import sim_rollout

    window = Window(draws=4)
    monkeypatch.setattr(sim_rollout.time, 'sleep', lambda seconds: None)

    def draw(standing=False):
        window.sync()
        return window.is_running()

    sim_rollout.hold(draw)
    assert window.draws == 0 and 'until you close the window' in capsys.readouterr().out


def test_a_person_sees_the_left_hand_on_the_left_and_no_trunk(world):
    ids = world.render('third_person', 240, mode='segmentation')
    columns = {hand: np.nonzero(ids == world.model.body(f'{hand}/palm').id)[1] for hand in HANDS}
    assert all(len(found) > 200 for found in columns.values()), 'close to the hands'
    assert columns['left'].max() < columns['right'].min()
    torso = world.model.body('torso').id
    assert torso in world.trunk and torso not in ids


def test_a_sheet_repeats_no_moment():
    assert film.choose_moments(list(range(100))) == [0, 20, 40, 59, 79, 99]
    assert film.choose_moments([1, 2, 3]) == [1, 2, 3]
    picture = np.zeros((320, 480, 3), np.uint8)
    sheet = film.sheet([('a caption', picture)] * 4, 'words', *film.VERDICTS[True])
    assert sheet.shape == (38 + 2 * 350, 1440, 3)
    assert (sheet[:38] == film.VERDICTS[True][1]).all(-1).any(), 'the verdict in its colour'


def test_the_viewer_checklist_has_a_row_for_every_task_and_scene():
    text = pathlib.Path('docs/viewer-checklist.md').read_text()
    for name in TASKS:
        assert f'`python sim_rollout.py --task={name} --viewer' in text, name
    for path in pathlib.Path('assets/scenes').glob('*.xml'):
        assert f'--view={path}' in text, path
