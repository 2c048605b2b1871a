"""What people look at: films with text in them, scores, depth and segmentation, the viewer.

    reel = Reel(Path('out/x'), world)                               # a film of an episode
    save_pictures(Path('out/x'), world, ('head',), ('depth',))      # out/x_head_depth.png, .npz
    with viewer(model, data) as draw:                               # needs a display
        while draw(): ...

Pictures are (h, w, 3) uint8, row 0 on top.
"""

import contextlib
import functools
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sim.gl import mujoco
from sim.judge import PHASES
from sim.scene import choose_dense
from sim.world import INTERPOLATION_HZ, RENDER_MODES, World

Result = dict[str, Any]  # a line of rollouts.jsonl
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FILM_VIEWS = ('head', 'overhead', 'left/wrist', 'right/wrist')
FILM_FPS = 25
TICKS_PER_FRAME = INTERPOLATION_HZ // FILM_FPS
# A film is a banner as high as its text; below it what a person would see, 3 to 2, and beside that
# what the robot sees, two by two.
FILM_PX = 480
PERSON_PX = 720
SHEET_COLUMNS = 3  # Moments in a row; a sheet of 1440 px is read well at 1000.
SHEET_MOMENTS = 6
SHEET_PX = (480, 320)  # Width and height of a moment.
CAPTION_PX = 30
MOVED = 0.6  # Moments that differ by less of 255 on average are one.
VERDICT_S = 1.5  # the last picture is held so long
SMALLEST_FONT_PX = 8
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)
BACKGROUND = (24, 24, 28)
YELLOW = (255, 210, 90)
BLUE = (150, 200, 255)
NOT_JUDGED = 'NOT JUDGED', (120, 180, 255)
VERDICTS = {True: ('SUCCESS', (110, 230, 120)), False: ('FAILED', (255, 110, 100))}
DEPTH_M = 1.5  # depth pictures are white here and beyond
MOST_COPIES = 10_000  # A scene may ask for so many by <replicate>.
# Where the viewer opens: on hands and bricks, a person opposite the robot or looking over its
# shoulder. lookat in m; azimuth is where the camera looks, 180 degrees is towards the robot.
FRONT = dict(lookat=(0.3, 0.0, 0.15), distance=0.85, azimuth=180.0, elevation=-23.0)
BEHIND = dict(lookat=(0.36, 0.0, 0.1), distance=0.8, azimuth=0.0, elevation=-38.0)
HIDDEN_GROUP = 5  # A group of geoms and joints with nothing else in it.
CLOSING_S = 10.0  # A window that is closed is waited for so long.
JOINT_M = (0.14, 0.008)  # length and width of a joint's arrow: it stands out of the link
VIEWER_KEYS = (
    'in the window: left drag turns, right drag moves, wheel zooms, Ctrl + right drag pulls; F '
    'contact forces, C contacts, J joints, T transparent, 3 collision shapes, Tab and Shift+Tab '
    'panels, F1 help'
)
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


def banner_layout(instruction: str) -> tuple[str, Font, int, int]:
    """Lay the banner of a film out.

    Args:
        instruction: It may take three lines, as the longest of `build` do.

    Returns:
        The instruction with line breaks, its font, where the second row of text begins, and how
        high the banner is, px.
    """
    wrapped, font = fit(instruction or '(no instruction)', FILM_PX + PERSON_PX - 20, 84, 22)
    ruler = ImageDraw.Draw(Image.new('L', (1, 1)))
    row = 10 + int(ruler.textbbox((0, 0), wrapped, font)[3])
    return wrapped, font, row, (row + 28) // 2 * 2  # H.264 takes even numbers


def robot_views(world: World) -> np.ndarray:
    """What the robot's four cameras see, (FILM_PX, FILM_PX, 3) uint8, two by two, with names."""
    half = FILM_PX // 2
    head, overhead, left, right = [world.render(name, half) for name in FILM_VIEWS]
    image = Image.fromarray(np.vstack([np.hstack([head, overhead]), np.hstack([left, right])]))
    draw = ImageDraw.Draw(image)
    label = ImageFont.load_default(14)
    for i, name in enumerate(FILM_VIEWS):
        row, column = divmod(i, 2)
        at = (half * column + 6, half * row + 4)
        draw.text(at, name, WHITE, label, stroke_width=1, stroke_fill=BLACK)
    return np.asarray(image)


def film_frame(
    world: World,
    obs: dict[str, Any],
    info: dict[str, Any],
    subtask: str,
    robot: np.ndarray | None = None,
    colour: tuple[int, int, int] = YELLOW,
) -> np.ndarray:
    """Draw one picture of a film: text above, third person on the left, robot cameras on the right.

    Args:
        world: In the state that is shown.
        obs: Its last observation, of which the instruction and the time are written.
        info: Its last info, of which the phase is written.
        subtask: What is being done, in words.
        robot: Of robot_views, as they were when the policy looked; None: as they are now.
        colour: Of the subtask.

    Returns:
        (height, PERSON_PX + FILM_PX, 3) uint8.
    """
    wrapped, font, row, height = banner_layout(obs['instruction'])
    person = world.render('third_person', (FILM_PX, PERSON_PX), shadows=True)
    robot = robot_views(world) if robot is None else robot
    image = Image.new('RGB', (PERSON_PX + FILM_PX, height + FILM_PX), BACKGROUND)
    image.paste(Image.fromarray(person), (0, height))
    image.paste(Image.fromarray(robot), (PERSON_PX, height))
    draw = ImageDraw.Draw(image)
    draw.text((10, 4), wrapped, WHITE, font)
    state = f'{obs["time"]:.1f} s   {PHASES[info["phase"]]}'
    right = PERSON_PX + FILM_PX - 10
    for x, width, text, shade, anchor in (
        (10, 980, subtask, colour, 'la'),
        (right, 180, state, BLUE, 'ra'),
    ):
        line, font = fit(text, width, 22, 18)
        draw.text((x, row), line, shade, font, anchor=anchor)
    links = ',  '.join(
        f'{link["upper"]} on {link["lower"]}: {link["studs"]} studs' for link in world.connections()
    )
    wrapped, font = fit(links, PERSON_PX - 20, 72, 20)
    bottom = draw.textbbox((0, 0), wrapped, font)[3]
    at = (10, height + FILM_PX - 8 - bottom)
    draw.text(at, wrapped, BLUE, font, stroke_width=1, stroke_fill=BLACK)
    return np.asarray(image)


class Reel:
    """A film that is written while an episode runs, and its part of the contact sheet.

    `look` is told what the policy saw and does; `tick`, called at 50 Hz between two control steps,
    renders every second time, or less often for a fast film; `end` adds the verdict. What the robot
    sees changes as often as the policy looks, what a person sees at FILM_FPS.
    """

    def __init__(self, path: Path, world: World, speed: int = 1):
        """Film a world.

        Args:
            path: Of the film, without the ending.
            world: One that may be reset until the first look.
            speed: How many times faster than the robot the film runs.
        """
        self.path = path
        self.world = world
        self.ticks_per_frame = TICKS_PER_FRAME * speed
        self.ticks_per_moment = INTERPOLATION_HZ * speed
        self._part = path.with_name(f'{path.name}.part.mp4')
        # imageio's default is H.264 in yuv420p, which plays everywhere
        self._writer = imageio.get_writer(
            self._part, fps=FILM_FPS, quality=7, macro_block_size=2, format='FFMPEG'
        )
        self._ticks = 0
        self._now: tuple = ()
        self._moments: list[tuple[str, np.ndarray]] = []  # caption, picture
        self._links: list[dict] = []  # They held in the picture before.
        # The moment when studs last snapped or came off.
        self.key: tuple[str, np.ndarray] | None = None

    def look(self, obs: dict[str, Any], info: dict[str, Any], subtask: str) -> None:
        """Say what the policy saw and what it does, for the pictures that follow."""
        # In a fast film most of what the robot sees would never be shown.
        is_fast = self.ticks_per_frame * self.world.control_hz > INTERPOLATION_HZ
        self._now = (obs, info, subtask, None if is_fast else robot_views(self.world))
        if not self._ticks:
            self._links = self.world.connections()
            self._shoot()

    def tick(self) -> None:
        """Let 20 ms go by."""
        self._ticks += 1
        if self._ticks % self.ticks_per_frame == 0:
            self._shoot()

    def _shoot(self) -> None:
        frame = film_frame(self.world, *self._now)
        self._writer.append_data(frame)
        if self._ticks % self.ticks_per_moment == 0:  # a moment a second of the film
            self._keep(frame)
        links = self.world.connections()
        if [link['upper'] for link in links] != [link['upper'] for link in self._links]:
            self._keep(frame)
            self.key = self._moments[-1]
        self._links = links

    def _keep(self, frame: np.ndarray, caption: str | None = None) -> None:
        obs, _, subtask, _ = self._now
        said = f'{obs["time"]:.0f} s  {subtask}' if caption is None else caption
        person = Image.fromarray(frame[-FILM_PX:, :PERSON_PX])
        small = np.asarray(person.resize(SHEET_PX, Image.Resampling.LANCZOS))
        if self._moments:
            before = self._moments[-1][1]
            if np.abs(before.astype(int) - small).mean() < MOVED:
                return
        self._moments.append((said, small))

    def end(self, obs: dict[str, Any], info: dict[str, Any], judged: bool = True) -> None:
        """Hold the last picture, with the verdict in its colour, and give the film its name.

        Words of the user's are not judged: the verdict is on the scene's own goal.
        """
        success = bool(info['success'])
        verdict, colour = VERDICTS[success] if judged else NOT_JUDGED
        frame = film_frame(self.world, obs, info, verdict, colour=colour)
        self._now = (obs, info, verdict, frame)
        self._keep(frame, f'{obs["time"]:.0f} s  {verdict}')
        for _ in range(round(VERDICT_S * FILM_FPS)):
            self._writer.append_data(frame)
        self._writer.close()
        outcome = ('success' if success else 'failure') if judged else 'told'
        self.path = self.path.with_name(f'{self.path.name}_{outcome}.mp4')
        os.replace(self._part, self.path)
        self._title = (obs['instruction'] or '(no instruction)', verdict, colour)

    def discard(self) -> None:
        """Remove what was written of a film that did not come to its end."""
        self._writer.close()
        self._part.unlink(missing_ok=True)

    def thumbnails(self) -> np.ndarray:
        """The episode's part of a contact sheet: its words and verdict, and its moments.

        Returns:
            (h, SHEET_COLUMNS * width of a moment, 3) uint8.
        """
        words, verdict, colour = self._title
        return sheet(choose_moments(self._moments), words, verdict, colour)


def choose_moments(moments: Sequence[Any], n: int = SHEET_MOMENTS) -> list:
    """Choose n moments, evenly spread from the first to the last, none of them twice."""
    chosen = np.unique(np.linspace(0, len(moments) - 1, n).round().astype(int))
    return [moments[i] for i in chosen]


def sheet(
    moments: Sequence[tuple[str, np.ndarray]],
    title: str,
    verdict: str = '',
    colour: tuple[int, int, int] = WHITE,
) -> np.ndarray:
    """Lay moments out in rows of SHEET_COLUMNS, each with its caption, under a title.

    Args:
        moments: Caption and picture, SHEET_PX large, of each.
        title: Above all.
        verdict: To the right of it.
        colour: Of the verdict.

    Returns:
        (h, SHEET_COLUMNS * width of a moment, 3) uint8.
    """
    width, height = SHEET_PX
    rows = -(-len(moments) // SHEET_COLUMNS)
    top = CAPTION_PX + 8
    size = (SHEET_COLUMNS * width, top + rows * (height + CAPTION_PX))
    image = Image.new('RGB', size, BACKGROUND)
    draw = ImageDraw.Draw(image)
    wrapped, font = fit(title, size[0] - 160, top, 26)
    draw.text((10, 4), wrapped, WHITE, font)
    draw.text((size[0] - 10, 4), verdict, colour, ImageFont.load_default(26), anchor='ra')
    for i, (caption, picture) in enumerate(moments):
        row, column = divmod(i, SHEET_COLUMNS)
        x = column * width
        y = top + row * (height + CAPTION_PX)
        image.paste(Image.fromarray(picture), (x, y))
        wrapped, font = fit(caption, width - 12, CAPTION_PX, 22)
        draw.text((x + 6, y + height + 1), wrapped, YELLOW, font)
    return np.asarray(image)


def save_gif(
    films: Sequence[str | Path], path: str | Path, fps: int = 10, seconds: float = 9.0
) -> None:
    """Show what a person sees in some films, one after the other, as a GIF of at most 4 MB or so.

    Args:
        films: Paths of films of this module.
        path: Of the GIF.
        fps: Of the GIF.
        seconds: No film takes longer; those that do are sped up.

    Raises:
        RuntimeError: ffmpeg, which comes with imageio, cannot do it.
    """
    from imageio_ffmpeg import count_frames_and_secs, get_ffmpeg_exe

    inputs: list[str] = []
    parts = []
    for i, film in enumerate(films):
        inputs += ['-i', str(film)]
        _, length_s = count_frames_and_secs(str(film))
        speed = max(1.0, length_s / seconds)
        cut = f'crop={PERSON_PX}:{FILM_PX}:0:ih-{FILM_PX}'
        parts.append(f'[{i}]{cut},setpts=PTS/{speed},fps={fps},scale=480:-1:flags=lanczos[v{i}];')
    joined = ''.join(f'[v{i}]' for i in range(len(parts)))
    palette = 'split[a][b];[a]palettegen=max_colors=128[p];[b][p]paletteuse='
    graph = f'{"".join(parts)}{joined}concat=n={len(parts)},{palette}dither=none'
    command = [get_ffmpeg_exe(), '-v', 'error', '-y', *inputs, '-filter_complex', graph, str(path)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f'{path}: no GIF: {run.stderr.strip()}')


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
    figure = Figure(figsize=(12, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    # A last success at the very end would else be a line on the frame.
    time_s = np.append(time_s, 1.05 * max(time_s[-1], 1 / control_hz))
    k = np.append(k, k[-1])
    low, high = wilson(k, n)
    left.fill_between(time_s, low, high, step='post', alpha=0.2)
    left.step(time_s, k / n, where='post', marker='o' if n <= 20 else None, markevery=slice(0, -1))
    left.set_xlabel('time (s)')
    left.set_ylabel('have succeeded, with 95% interval')
    left.set_xlim(0, time_s[-1])
    left.set_ylim(-0.02, 1.02)
    reached = funnel(results)
    bars = right.bar(list(reached), list(reached.values()))
    right.bar_label(bars)
    right.set_ylabel('episodes that got at least as far')
    right.set_ylim(0, 1.1 * n)
    right.yaxis.get_major_locator().set_params(integer=True)  # half an episode there is not
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
def _end_of_new_threads() -> Iterator[None]:
    """Wait at the end for threads that have begun meanwhile.

    MuJoCo's window has one that the interpreter does not wait for. OpenGL would be taken away under
    it when the process ends, which is a segmentation fault.
    """
    others = set(threading.enumerate())
    try:
        yield
    finally:
        for thread in set(threading.enumerate()) - others:
            thread.join(CLOSING_S)


@contextlib.contextmanager
def viewer(
    model: Any,
    data: Any,
    show_contacts: bool = False,
    show_joints: bool = False,
    keys: Callable[[int], object] | None = None,
    trunk: Iterable[int] = (),
) -> Iterator[Callable[..., bool]]:
    """Open MuJoCo's passive viewer, on hands and bricks where the scene is the work cell.

    Args:
        model: An MjModel.
        data: Its MjData, of which the viewer shows the present state.
        show_contacts: Show points and forces of contact.
        show_joints: Show the axes of joints.
        keys: Called with the code of each key that is pressed, in the viewer's thread.
        trunk: Ids of bodies that are hidden while one looks over the robot's shoulder; none: one
            looks at it from the front.

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

    scale = model.vis.scale
    scale.jointlength, scale.jointwidth = np.array(JOINT_M) / model.stat.meansize
    model.geom_group[np.isin(model.geom_bodyid, list(trunk))] = HIDDEN_GROUP
    # The six degrees of freedom of a brick would be drawn as a box larger than the brick.
    model.jnt_group[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE] = HIDDEN_GROUP
    closed = dict(show_left_ui=False, show_right_ui=False)  # panels
    with (
        _end_of_new_threads(),
        mujoco.viewer.launch_passive(model, data, key_callback=keys, **closed) as window,
    ):
        flags = mujoco.mjtVisFlag
        window.opt.flags[flags.mjVIS_CONTACTPOINT] = show_contacts
        window.opt.flags[flags.mjVIS_CONTACTFORCE] = show_contacts
        window.opt.flags[flags.mjVIS_JOINT] = show_joints
        window.opt.flags[flags.mjVIS_TRANSPARENT] = show_joints  # they are inside the links
        window.opt.geomgroup[HIDDEN_GROUP] = 0
        window.opt.jointgroup[HIDDEN_GROUP] = 0
        if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, 'third_person') >= 0:
            for name, value in (BEHIND if trunk else FRONT).items():
                setattr(window.cam, name, value)
        began = None  # wall time of simulated time 0
        last = 0.0  # simulated time of the last call

        def draw(standing: bool = False) -> bool:
            nonlocal began, last
            window.sync()
            if began is None or standing or data.time < last:  # An episode may have begun.
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
    if choose_dense(model):
        print(
            f'{path}: {model.nv} degrees of freedom: simulated with a dense Jacobian; the sparse '
            'one is wrong in MuJoCo 4.0.0. In the file: <option jacobian="dense"/>'
        )
    if model.nkey:
        mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    steps = max(1, round(0.02 / model.opt.timestep))  # the window is drawn 50 times a second
    with viewer(model, data, show_contacts, show_joints) as draw:
        while draw():
            mujoco.mj_step(model, data, nstep=steps)
