"""What people look at: films with text in them, scores, depth and segmentation, the viewer.

    frame = film_frame(world, obs, info, subtask)                   # one picture of a film
    save_pictures(Path('out/x'), world, ('head',), ('depth',))      # out/x_head_depth.png, .npz
    with viewer(model, data) as draw:                               # needs a display
        while draw(): ...

Pictures are (h, w, 3) uint8, row 0 on top.
"""

import contextlib
import functools
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sim.gl import mujoco
from sim.judge import PHASES
from sim.world import RENDER_MODES, World

Result = dict[str, Any]  # a line of rollouts.jsonl
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FILM_VIEWS = ('head', 'overhead', 'left/wrist', 'right/wrist')
# A film is 2 FILM_PX wide and FILM_PX + BANNER_PX high: H.264 likes multiples of 16.
FILM_PX = 480
BANNER_PX = 128
SMALLEST_FONT_PX = 8
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)
BACKGROUND = (24, 24, 28)
YELLOW = (255, 210, 90)
BLUE = (150, 200, 255)
DEPTH_M = 1.5  # depth pictures are white here and beyond
MOST_COPIES = 10_000  # that a scene may ask for by <replicate>
DISPLAYS = ('DISPLAY', 'WAYLAND_DISPLAY')
HEADLESS = (
    'the viewer needs a display and none can be opened ({}). Make a film instead: '
    'python sim_rollout.py --video=1'
)

# -----------------------------------------------------------------------------
# Films


@functools.lru_cache(maxsize=64)
def fit(text: str, width: int, height: int, size: int) -> tuple[str, Font]:
    """Wrap text so that it gets into a box, in the largest font that lets it.

    Args:
        text: One line.
        width: Of the box, px.
        height: Of the box, px.
        size: Largest font size, px.

    Returns:
        The text with line breaks, and the font. In the smallest font it may still be too long.
    """
    ruler = ImageDraw.Draw(Image.new('L', (1, 1)))
    for font_px in range(size, SMALLEST_FONT_PX - 1, -1):
        font = ImageFont.load_default(font_px)
        wrapped = _wrap(text, width, font)
        _, _, right, bottom = ruler.textbbox((0, 0), wrapped, font)
        if right <= width and bottom <= height:
            break
    return wrapped, font


def _wrap(text: str, width: int, font: Font) -> str:
    lines = ['']
    for word in text.split(' '):
        longer = f'{lines[-1]} {word}'.lstrip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return '\n'.join(lines)


def film_frame(world: World, obs: dict[str, Any], info: dict[str, Any], subtask: str) -> np.ndarray:
    """Draw one picture of a film: text above, third person on the left, robot cameras on the right.

    Args:
        world: In the state that is shown.
        obs: Its observation, of which the instruction and the time are written.
        info: Its info, of which the phase is written.
        subtask: What is being done, in words.

    Returns:
        (FILM_PX + BANNER_PX, 2 FILM_PX, 3) uint8.
    """
    half = FILM_PX // 2
    head, overhead, left, right = [world.render(name, half) for name in FILM_VIEWS]
    robot = np.vstack([np.hstack([head, overhead]), np.hstack([left, right])])
    views = np.hstack([world.render('third_person', FILM_PX), robot])
    image = Image.new('RGB', (2 * FILM_PX, FILM_PX + BANNER_PX), BACKGROUND)
    image.paste(Image.fromarray(views), (0, BANNER_PX))
    draw = ImageDraw.Draw(image)
    instruction = obs['instruction'] or '(no instruction)'
    state = f'{obs["time"]:.1f} s   {PHASES[info["phase"]]}'
    links = ',  '.join(
        f'{link["upper"]} on {link["lower"]}: {link["studs"]} studs' for link in world.connections()
    )
    # The longest instructions of `build` take three lines, its five connections one.
    for x, y, width, height, text, colour, font_px in (
        (10, 4, 940, 68, instruction, WHITE, 22),
        (10, 76, 780, 24, subtask, YELLOW, 18),
        (800, 76, 150, 24, state, BLUE, 18),
        (10, 102, 940, 24, links, BLUE, 16),
    ):
        wrapped, font = fit(text, width, height, font_px)
        draw.text((x, y), wrapped, colour, font)
    label = ImageFont.load_default(14)
    for i, name in enumerate(FILM_VIEWS):
        row, column = divmod(i, 2)
        at = (FILM_PX + half * column + 6, BANNER_PX + half * row + 4)
        draw.text(at, name, WHITE, label, stroke_width=1, stroke_fill=BLACK)
    return np.asarray(image)


def thumbnails(frames: Sequence[np.ndarray], n: int = 6, width: int = 480) -> np.ndarray:
    """Put n moments of a film side by side, for the contact sheet.

    Args:
        frames: Pictures of one size.
        n: Number of moments, evenly spread from the first to the last.
        width: Of one moment, px.

    Returns:
        (h, n * width, 3) uint8.
    """
    moments = np.linspace(0, len(frames) - 1, n).round().astype(int)
    small = []
    for i in moments:
        image = Image.fromarray(frames[i])
        size = (width, width * image.height // image.width)
        small.append(np.asarray(image.resize(size, Image.Resampling.LANCZOS)))
    return np.hstack(small)


def choose_films(results: Sequence[Result], count: int) -> list[int]:
    """Choose seeds to film: half failures, half successes, more of one where the other runs out."""
    good = [result['seed'] for result in results if result['success']]
    bad = [result['seed'] for result in results if not result['success']]
    n_bad = min(len(bad), max(count // 2, count - len(good)))
    return good[: count - n_bad] + bad[:n_bad]


# -----------------------------------------------------------------------------
# Scores


def wilson(k: Any, n: int, z: float = 1.96) -> tuple[Any, Any]:
    """Return the confidence interval of a rate (Wilson 1927); it is honest for few trials as well.

    Args:
        k: Successes, a number or an array.
        n: Trials.
        z: 1.96 gives the interval of 95 %.
    """
    centre = k + z * z / 2
    half = z * np.sqrt(k * (n - k) / n + z * z / 4)
    return (centre - half) / (n + z * z), (centre + half) / (n + z * z)


def funnel(results: Sequence[Result]) -> dict[str, int]:
    """Count the episodes that got at least as far, by phase; `start`, which all do, is left out."""
    reached = [result['phase_id'] for result in results]
    return {
        phase: sum(furthest >= i for furthest in reached) for i, phase in enumerate(PHASES) if i
    }


def success_curve(results: Sequence[Result], control_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """Count who has succeeded by when.

    Returns:
        Times of successes, s, with 0 before and the end of the longest episode after them; the
        number of episodes that have succeeded by then.
    """
    ends = np.sort([result['steps'] for result in results if result['success']])
    longest = max(result['steps'] for result in results)
    at = np.unique([0, *ends, longest])
    return at / control_hz, np.searchsorted(ends, at, side='right')


def draw_success(path: str | Path, title: str, results: Sequence[Result], control_hz: int) -> None:
    """Draw the share of episodes that have succeeded by then, and how far episodes got."""
    from matplotlib.figure import Figure  # here, because recording does without it

    n = len(results)
    time_s, k = success_curve(results, control_hz)
    low, high = wilson(k, n)
    figure = Figure(figsize=(12, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    left.fill_between(time_s, low, high, step='post', alpha=0.2)
    left.step(time_s, k / n, where='post')
    left.set_xlabel('time (s)')
    left.set_ylabel('have succeeded, with 95% interval')
    left.set_xlim(0, time_s[-1])
    left.set_ylim(0, 1)
    reached = funnel(results)
    bars = right.bar(list(reached), list(reached.values()))
    right.bar_label(bars)
    right.set_ylabel('episodes that got at least as far')
    right.set_ylim(0, 1.1 * n)
    figure.suptitle(title)
    figure.savefig(path, dpi=80)


# -----------------------------------------------------------------------------
# Depth and segmentation


def body_colours(n: int) -> np.ndarray:
    """Choose a colour for each of n bodies, the same ones in every run.

    Returns:
        (n + 1, 3) uint8. The first is the grey of the table; the last is black, for no body (-1).
    """
    colours = np.random.default_rng(3).integers(40, 256, (n + 1, 3)).astype(np.uint8)
    colours[0] = (90, 90, 90)
    colours[n] = 0
    return colours


def save_pictures(
    stem: str | Path,
    world: World,
    cameras: Sequence[str],
    modes: Sequence[str],
    size: int | tuple[int, int] | None = None,
) -> list[str]:
    """Save what cameras see now, as files whose names begin with `stem`.

    <stem>_<camera>_<mode>.png is to be looked at: in depth pictures near is dark, and DEPTH_M is
    white; in segmentations every body has a colour. <stem>_<camera>.npz holds the numbers, one
    array per mode (see World.render), and body_names (n,).

    Args:
        stem: Path that the names begin with.
        world: In the state that is shown.
        cameras: Their names.
        modes: Some of RENDER_MODES.
        size: Height and width, px, or one number for both; None: the world's.

    Returns:
        The paths.
    """
    unknown = [mode for mode in modes if mode not in RENDER_MODES]
    if unknown:
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
        contents: dict[str, Any] = dict(arrays, body_names=np.array(names))
        np.savez_compressed(paths[-1], **contents)
    return paths


# -----------------------------------------------------------------------------
# The viewer


def has_display() -> bool:
    """Say whether a window can be opened.

    On Linux none can where there is neither X11 nor Wayland, or where DISPLAY names one that is
    gone, as over ssh.
    """
    if not sys.platform.startswith('linux'):
        return True
    if not any(os.environ.get(name) for name in DISPLAYS):
        return False
    import glfw  # here, because it comes with mujoco.viewer, which asks it the same

    with warnings.catch_warnings():  # glfw warns of the reason why it cannot
        warnings.simplefilter('ignore')
        return bool(glfw.init())


@contextlib.contextmanager
def viewer(
    model: Any,
    data: Any,
    show_contacts: bool = False,
    show_joints: bool = False,
    keys: Callable[[int], object] | None = None,
) -> Iterator[Callable[..., bool]]:
    """Open MuJoCo's passive viewer.

    Args:
        model: An MjModel.
        data: Its MjData, of which the viewer shows the present state.
        show_contacts: Show points and forces of contact.
        show_joints: Show the axes of joints.
        keys: Called with the code of each key that is pressed, in the viewer's thread.

    Yields:
        A function `draw(standing=False) -> bool`. It shows the present state, waits until the wall
        clock has caught up with the simulated time, and is False once the window is closed. With
        `standing` simulated time stands still meanwhile and is not made up for.

    Raises:
        RuntimeError: There is no display.
    """
    if not has_display():
        there = [f'{name}={os.environ.get(name, "")!r}' for name in DISPLAYS]
        raise RuntimeError(HEADLESS.format(', '.join(there)))
    import mujoco.viewer  # here and nowhere else: it opens a connection to the display

    with mujoco.viewer.launch_passive(model, data, key_callback=keys) as window:
        flags = mujoco.mjtVisFlag
        window.opt.flags[flags.mjVIS_CONTACTPOINT] = show_contacts
        window.opt.flags[flags.mjVIS_CONTACTFORCE] = show_contacts
        window.opt.flags[flags.mjVIS_JOINT] = show_joints
        began = None  # wall time of simulated time 0
        last = 0.0  # simulated time of the last call

        def draw(standing: bool = False) -> bool:
            nonlocal began, last
            window.sync()
            if began is None or standing or data.time < last:  # also where an episode begins
                began = time.time() - data.time
            last = data.time
            time.sleep(max(0.0, began + data.time - time.time()))
            return window.is_running()

        yield draw


def view_scene(path: str | Path, show_contacts: bool = False, show_joints: bool = False) -> None:
    """Open any MJCF file and let it run in real time until the window is closed.

    It starts from the file's first keyframe.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: MuJoCo cannot load it.
        RuntimeError: There is no display.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'view={path}: no such file; scenes are in assets/scenes')
    with open(path, encoding='utf-8', errors='replace') as f:
        counts = re.findall(r'<replicate[^>]*\bcount\s*=\s*["\'](\d+)', f.read())
    if any(int(count) > MOST_COPIES for count in counts):
        raise ValueError(f'view={path}: replicate count {max(map(int, counts))} would never end')
    try:
        model = mujoco.MjModel.from_xml_path(str(path))
        data = mujoco.MjData(model)
    except (ValueError, mujoco.FatalError) as fault:
        said = ' '.join(str(fault).split())
        raise ValueError(f'view={path}: MuJoCo cannot load it: {said}') from None
    if model.nkey:
        mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    steps = max(1, round(0.02 / model.opt.timestep))  # the window is drawn 50 times a second
    with viewer(model, data, show_contacts, show_joints) as draw:
        while draw():
            mujoco.mj_step(model, data, nstep=steps)
