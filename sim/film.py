"""What people look at: films with text in them, contact sheets, curves, depth and segmentation, the
viewer.

    frame = film_frame(world, obs, info, subtask)             # one picture of a film
    save_pictures(Path('out/x'), world, ('head',), ('depth',))     # out/x_head_depth.png,
    out/x_head.npz
    with viewer(model, data) as window: ...                   # needs a display

Pictures are (h, w, 3) uint8, row 0 on top.
"""

import contextlib
import functools
import os
import sys
import time
import warnings

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sim.gl import mujoco
from sim.judge import PHASES
from sim.world import RENDER_MODES

FILM_VIEWS = ('head', 'overhead', 'left/wrist', 'right/wrist')
# films: 2 FILM_PX wide, FILM_PX + BANNER_PX high; H.264 likes multiples of 16
FILM_PX = 480
BANNER_PX = 128
DEPTH_M = 1.5  # depth pictures are white here and beyond
DISPLAYS = 'DISPLAY', 'WAYLAND_DISPLAY'
HEADLESS = (
    'the viewer needs a display and none can be opened ({}). Make a film instead: '
    'python sim_rollout.py --video=1'
)


# -- films ---------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=64)
def fit(text, width, height, size):
    """-> text wrapped into so many px, the largest font up to `size` in which it gets in."""
    ruler = ImageDraw.Draw(Image.new('L', (1, 1)))
    for size in range(size, 7, -1):
        font = ImageFont.load_default(size)
        lines = ['']
        for word in text.split(' '):
            longer = f'{lines[-1]} {word}'.lstrip()
            fits = not lines[-1] or font.getlength(longer) <= width
            lines[-1:] = [longer] if fits else [lines[-1], word]
        right, bottom = ruler.textbbox((0, 0), wrapped := '\n'.join(lines), font)[2:]
        if right <= width and bottom <= height:
            break
    return wrapped, font


def film_frame(world, obs, info, subtask):
    """(FILM_PX + BANNER_PX, 2 FILM_PX, 3) u8: text, third person on the left, robot cameras on the
    right.
    """
    half = FILM_PX // 2
    font = ImageFont.load_default
    head, overhead, left, right = (world.render(name, half) for name in FILM_VIEWS)
    robot = np.vstack([np.hstack([head, overhead]), np.hstack([left, right])])
    image = Image.new('RGB', (2 * FILM_PX, FILM_PX + BANNER_PX), (24, 24, 28))
    image.paste(
        Image.fromarray(np.hstack([world.render('third_person', FILM_PX), robot])), (0, BANNER_PX)
    )
    draw = ImageDraw.Draw(image)

    def write(x, y, width, height, text, colour, size):
        text, fitting = fit(text, width, height, size)
        draw.text((x, y), text, colour, fitting)

    # the longest instructions of `build` take three lines, its five connections one
    links = ',  '.join(
        f'{c["upper"]} on {c["lower"]}: {c["studs"]} studs' for c in world.connections()
    )
    write(10, 4, 940, 68, obs['instruction'] or '(no instruction)', (255, 255, 255), 22)
    write(10, 76, 780, 24, subtask, (255, 210, 90), 18)
    write(800, 76, 150, 24, f'{obs["time"]:.1f} s   {PHASES[info["phase"]]}', (150, 200, 255), 18)
    write(10, 102, 940, 24, links, (150, 200, 255), 16)
    for i, name in enumerate(FILM_VIEWS):
        at = FILM_PX + half * (i % 2) + 6, BANNER_PX + half * (i // 2) + 4
        draw.text(at, name, (255, 255, 255), font(14), stroke_width=1, stroke_fill=(0, 0, 0))
    return np.asarray(image)


def thumbnails(frames, n=6, width=480):
    """n moments of a film side by side, for the contact sheet."""
    moments = [
        Image.fromarray(frames[i]) for i in np.linspace(0, len(frames) - 1, n).round().astype(int)
    ]
    size = width, width * moments[0].height // moments[0].width
    return np.hstack([np.asarray(moment.resize(size, Image.LANCZOS)) for moment in moments])


def choose_films(results, count):
    """Seeds to film: half failures, half successes, more of one where the other runs out."""
    good, bad = ([r['seed'] for r in results if r['success'] == kind] for kind in (True, False))
    n_bad = min(len(bad), max(count // 2, count - len(good)))
    return good[: count - n_bad] + bad[:n_bad]


# -- scores --------------------------------------------------------------------------------------------------
def wilson(k, n, z=1.96):
    """95 % confidence interval of a rate: honest for few trials, and near 0 and 1."""
    centre = k + z * z / 2
    half = z * np.sqrt(k * (n - k) / n + z * z / 4)
    return (centre - half) / (n + z * z), (centre + half) / (n + z * z)


def funnel(results):
    """{phase: episodes that got at least as far}."""
    return {phase: sum(r['phase_id'] >= i for r in results) for i, phase in enumerate(PHASES) if i}


def success_curve(results, control_hz):
    """-> times (s) of successes, between 0 and the end of the longest episode; number of them until
    then.
    """
    ends = np.sort([r['steps'] for r in results if r['success']])
    at = np.unique([0, *ends, max(r['steps'] for r in results)])
    return at / control_hz, np.searchsorted(ends, at, side='right')


def draw_success(path, title, results, control_hz):
    """Left: share of episodes that have succeeded by then. Right: how far they got."""
    from matplotlib.figure import Figure  # here: recording does without it

    (time_s, k), n = success_curve(results, control_hz), len(results)
    figure = Figure(figsize=(12, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    left.fill_between(time_s, *wilson(k, n), step='post', alpha=0.2)
    left.step(time_s, k / n, where='post')
    left.set(
        xlabel='time (s)',
        ylabel='have succeeded, with 95% interval',
        xlim=(0, time_s[-1]),
        ylim=(0, 1),
    )
    right.bar_label(right.bar(*zip(*funnel(results).items())))
    right.set(ylabel='episodes that got at least as far', ylim=(0, 1.1 * n))
    figure.suptitle(title)
    figure.savefig(path, dpi=80)


# -- depth and segmentation ----------------------------------------------------------------------------------
def body_colours(n):
    """(n + 1, 3) uint8: a colour per body id, black (the last) for none; the same in every run."""
    colours = np.random.default_rng(3).integers(40, 256, (n + 1, 3)).astype(np.uint8)
    colours[0] = (90, 90, 90)
    colours[n] = 0
    return colours


def save_pictures(stem, world, cameras, modes, size=None):
    """What cameras see now, as files that begin with `stem`: <stem>_<camera>_<mode>.png to look at
    (depth: near is dark, white at DEPTH_M; segmentation: a colour per body) and <stem>_<camera>.npz
    with the numbers, one array per mode (see World.render) and body_names (n,). Returns the
    paths.
    """
    if unknown := [mode for mode in modes if mode not in RENDER_MODES]:
        raise ValueError(f'pictures: no mode {unknown[0]!r}; there are {", ".join(RENDER_MODES)}')
    paths = []
    names = [world.model.body(i).name for i in range(world.model.nbody)]
    for camera in cameras:
        arrays = {mode: world.render(camera, size, mode=mode) for mode in modes}
        base = f'{stem}_{camera.replace("/", "_")}'
        for mode, picture in arrays.items():
            if mode == 'depth':
                picture = (255 * np.clip(picture / DEPTH_M, 0, 1)).astype(np.uint8)
            elif mode == 'segmentation':
                picture = body_colours(len(names))[picture]
            paths.append(f'{base}_{mode}.png')
            Image.fromarray(picture).save(paths[-1])
        paths.append(f'{base}.npz')
        np.savez_compressed(paths[-1], body_names=np.array(names), **arrays)
    return paths


# -- the viewer ----------------------------------------------------------------------------------------------
def has_display():
    """False on a Linux machine where no window can be opened: there is neither X11 nor Wayland, or
    DISPLAY names one that is gone (over ssh).
    """
    if not sys.platform.startswith('linux'):
        return True
    if not any(map(os.environ.get, DISPLAYS)):
        return False
    import glfw  # here: it comes with mujoco.viewer, which asks it the same

    with warnings.catch_warnings():  # in which it says why not
        warnings.simplefilter('ignore')
        return bool(glfw.init())


@contextlib.contextmanager
def viewer(model, data, show_contacts=False, show_joints=False):
    """MuJoCo's passive viewer as `draw() -> bool`: shows the present state, waits until the wall
    clock has caught up with the simulated time, is False once the window is closed. RuntimeError
    without a display.
    """
    if not has_display():
        raise RuntimeError(
            HEADLESS.format(', '.join(f'{name}={os.environ.get(name, "")!r}' for name in DISPLAYS))
        )
    import mujoco.viewer  # here and nowhere else: it opens a connection to the display

    with mujoco.viewer.launch_passive(model, data) as window:
        flags = mujoco.mjtVisFlag
        for flag in (flags.mjVIS_CONTACTPOINT, flags.mjVIS_CONTACTFORCE):
            window.opt.flags[flag] = show_contacts
        window.opt.flags[flags.mjVIS_JOINT] = show_joints
        # wall time of simulated time 0, and the simulated time of the last call
        began = None
        last = 0.0

        def draw():
            nonlocal began, last
            window.sync()
            if began is None or data.time < last:  # an episode begins
                began = time.time() - data.time
            last = data.time
            time.sleep(max(0.0, began + data.time - time.time()))
            return window.is_running()

        yield draw


def view_scene(path, show_contacts=False, show_joints=False):
    """Open any MJCF file and let it run in real time until the window is closed, from its first
    keyframe on. Raises FileNotFoundError, ValueError (what MuJoCo says of the file) or RuntimeError
    (no display).
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'view={path}: no such file; scenes are in assets/scenes')
    model = mujoco.MjModel.from_xml_path(str(path))
    data = mujoco.MjData(model)
    if model.nkey:
        mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    steps = max(1, round(0.02 / model.opt.timestep))
    with viewer(model, data, show_contacts, show_joints) as draw:
        while draw():
            mujoco.mj_step(model, data, nstep=steps)
