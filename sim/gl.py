"""MuJoCo with a rendering backend that works here; every module of sim/ takes mujoco from this one.

    from sim.gl import gl_backend, mujoco

MuJoCo chooses how to render when it is imported, by MUJOCO_GL. Where the user has not set that
variable, the first of EGL and OSMesa that renders a picture in a subprocess is chosen; where none
does, physics still runs.

On a machine with an NVIDIA GPU it depends on the number of processes whether that or the cores draw
faster: with fourteen of them each made 100 control steps/s, because they waited for each other's
pictures, where one core that draws by itself makes 145. So `use_fastest` tries both.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CODE = Path(__file__).resolve().parent.parent
OFF = ('disable', 'disabled', 'off', 'false', '0')  # MuJoCo's words for "do not render"
NAMES = ('enable', 'enabled', 'on', 'true', '1', 'glfw')
OF_PLATFORM = {'linux': ('glx', 'egl', 'osmesa'), 'win32': ('wgl',), 'darwin': ('cgl',)}
NOTHING_RENDERS = (
    'no headless OpenGL found, cannot render: on Debian/Ubuntu run '
    '"apt-get install libegl1 libgl1 libgl1-mesa-dri libopengl0" (or libosmesa6), '
    'or set MUJOCO_GL; cameras=() runs without pictures'
)
_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(data)
raise SystemExit(0 if renderer.render().any() else 1)
"""

# Variables that let EGL draw on the GPU, as it does by itself, and on the cores, by Mesa.
MESA = Path('/usr/share/glvnd/egl_vendor.d/50_mesa.json')
RENDERERS: dict[str, dict[str, str]] = {
    'GPU': {},
    'cores': {'__EGL_VENDOR_LIBRARY_FILENAMES': str(MESA), 'LIBGL_ALWAYS_SOFTWARE': '1'},
}
TRIAL_S = 1.0  # Length of each trial, after the first pictures.
_TRIAL = """
import json, sys, time
from sim.world import World
settings, trial_s = json.loads(sys.stdin.readline())
settings['cameras'] = tuple(settings['cameras'])
world = World(**settings)
obs, _ = world.reset(0)
print('ready', flush=True)
sys.stdin.readline()
end = time.perf_counter() + trial_s
steps = 0
while time.perf_counter() < end:
    obs, *_ = world.step(obs[f'{world.action_space}_command'])
    steps += 1
print(steps, flush=True)
"""


def _renders(backend: str) -> bool:
    environment = os.environ | {'MUJOCO_GL': backend}
    probe = [sys.executable, '-c', _PROBE]
    return subprocess.run(probe, capture_output=True, env=environment).returncode == 0


def gl_backend() -> str:
    """Name of the rendering backend, or 'disable' where nothing renders.

    It sets MUJOCO_GL, which child processes inherit, so that the probe runs once per command.

    Returns:
        'egl', 'osmesa', 'glfw', 'disable', ..., or 'default' where MuJoCo chooses by itself.
    """
    asked = os.environ.get('MUJOCO_GL', '').lower().strip()
    if asked in OFF:
        return 'disable'
    names = (*NAMES, *OF_PLATFORM.get(sys.platform, ()))
    if asked not in ('', *names):
        known = ', '.join((*names, *OFF))
        raise SystemExit(f'MUJOCO_GL={asked}: MuJoCo knows {known}; unset, one that works is found')
    if not asked and sys.platform == 'linux':
        found = next((name for name in ('egl', 'osmesa') if _renders(name)), 'disable')
        asked = os.environ['MUJOCO_GL'] = found
    return asked or 'default'


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is here; nothing in sim/ may ask torch."""
    return Path('/dev/nvidiactl').exists()


def steps_per_second(
    variables: Mapping[str, str], world_settings: dict[str, Any], processes: int
) -> float:
    """Control steps with pictures per second of so many processes at a time; 0: nothing renders.

    Args:
        variables: Of the environment, in which they render.
        world_settings: Arguments of World.
        processes: How many.
    """
    command = [sys.executable, '-c', _TRIAL]
    pipes: dict[str, Any] = {
        'stdin': subprocess.PIPE,
        'stdout': subprocess.PIPE,
        'stderr': subprocess.DEVNULL,
    }
    running: list[Any] = [
        subprocess.Popen(command, text=True, env={**os.environ, **variables}, cwd=CODE, **pipes)
        for _ in range(processes)
    ]
    for process in running:
        process.stdin.write(json.dumps([world_settings, TRIAL_S]) + '\n')
        process.stdin.flush()
    ready = [process.stdout.readline() == 'ready\n' for process in running]
    for process in running if all(ready) else ():  # all at a time
        process.stdin.write('go\n')
        process.stdin.flush()
    said = [process.communicate()[0] for process in running]
    if not all(ready) or any(process.returncode for process in running):
        return 0.0
    return sum(map(int, said)) / TRIAL_S


def use_fastest(world_settings: dict[str, Any], processes: int) -> str:
    """Choose what the processes that are started from now on render with, where there is a choice.

    Args:
        world_settings: Arguments of World.
        processes: That will render at a time.

    Returns:
        What was measured and chosen, in words; '' where there was nothing to choose.
    """
    chosen_by_user = [name for name in RENDERERS['cores'] if name in os.environ]
    choice = has_gpu() and gl_backend() == 'egl' and MESA.exists() and world_settings['cameras']
    if not choice or chosen_by_user:
        return ''
    rates = {
        name: steps_per_second(variables, world_settings, processes)
        for name, variables in RENDERERS.items()
    }
    best = max(rates, key=rates.__getitem__)
    os.environ.update(RENDERERS[best])
    said = ', '.join(f'{name} {rate:.0f}' for name, rate in rates.items())
    return f'control steps/s of {processes} processes that render: {said}; the {best} it is'


gl_backend()
import mujoco  # noqa: E402, F401

# Whoever imported mujoco before us has it without the variable: its choice is made once more.
if sys.platform == 'linux' and gl_backend() != 'disable':
    from mujoco.rendering.classic import gl_context

    chosen = gl_context._MUJOCO_GL
    if chosen != gl_backend():
        importlib.reload(gl_context)
