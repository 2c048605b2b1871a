"""MuJoCo with a rendering backend that works here; every module of sim/ takes mujoco from this one.

    from sim.gl import gl_backend, mujoco

MuJoCo chooses how to render when it is imported, by MUJOCO_GL. Where the user has not set that
variable, the first of EGL and OSMesa that renders a picture in a subprocess is chosen; where none
does, physics still runs.
"""

import importlib
import os
import subprocess
import sys

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


gl_backend()
import mujoco  # noqa: E402, F401

# Whoever imported mujoco before us has it without the variable: its choice is made once more.
if sys.platform == 'linux' and gl_backend() != 'disable':
    from mujoco.rendering.classic import gl_context

    chosen = gl_context._MUJOCO_GL
    if chosen != gl_backend():
        importlib.reload(gl_context)
