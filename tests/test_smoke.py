"""Does everything stand up? Every scene and task, 10 s of random actions at 2 and 4 ms. Pictures, a
film and the facts of the machine stay in out/smoke.

    python -m pytest -m smoke
"""

import json
import os
import pathlib
import platform
import subprocess
import sys

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from episode import git_rev
from sim import film, policies
from sim.gl import mujoco
from sim.tasks import TASKS
from sim.world import CAMERAS, MAX_ENERGY_J, MAX_PENETRATION_M, World

pytestmark = [pytest.mark.smoke, pytest.mark.mujoco]
SCENES = sorted(pathlib.Path('assets/scenes').glob('*.xml'))
SECONDS = 10
OUT = pathlib.Path('out/smoke')
facts = {}  # goes into out/smoke/metadata.json


@pytest.fixture(scope='module', autouse=True)
def artifacts():
    """Folder for pictures; afterwards the facts are written beside them."""
    OUT.mkdir(parents=True, exist_ok=True)
    yield OUT
    facts.update(
        git_rev=git_rev(),
        python=platform.python_version(),
        numpy=np.__version__,
        mujoco=mujoco.__version__,
        torch=torch.__version__,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )
    (OUT / 'metadata.json').write_text(json.dumps(facts, indent=1))


@pytest.mark.parametrize('dt', [0.002, 0.004])
@pytest.mark.parametrize('path', SCENES, ids=lambda p: p.stem)
def test_scene_runs_and_is_seen_by_every_camera(path, dt, artifacts):
    model = mujoco.MjModel.from_xml_path(str(path))
    model.opt.enableflags |= mujoco.mjtEnableBit.mjENBL_ENERGY
    model.opt.timestep = dt
    data, rng, most, deepest = mujoco.MjData(model), np.random.default_rng(0), 0.0, 0.0
    if model.nkey:
        mujoco.mj_resetDataKeyframe(model, data, 0)
    for _ in range(SECONDS * 50):
        if model.nu:
            data.ctrl += rng.normal(0, 0.02, model.nu)
        mujoco.mj_step(model, data, nstep=round(0.02 / dt))
        most = max(most, data.energy[1])
        deepest = max(deepest, -data.contact.dist.min() if data.ncon else 0.0)
    assert data.time == pytest.approx(SECONDS)
    assert np.isfinite(data.qpos).all() and most < MAX_ENERGY_J and deepest < MAX_PENETRATION_M
    assert not any(warning.number for warning in data.warning)
    facts[f'{path.stem} {dt}'] = dict(penetration_mm=float(1e3 * deepest), energy_j=float(most))
    assert model.ncam, 'a scene has a camera to look through'
    with mujoco.Renderer(model, 240, 320) as renderer:
        for i in range(model.ncam):
            renderer.update_scene(data, i)
            picture = renderer.render()
            assert picture.std() > 5, f'{model.camera(i).name} shows nothing'
            imageio.imwrite(
                artifacts / f'{path.stem}_{model.camera(i).name.replace("/", "_")}.png', picture
            )


def random_run(world, seed, frames=None):
    """10 s of the random policy from a seed -> (qpos at the end, contact depths robot-brick in
    mm)."""
    bricks = {
        world.model.geom(f'{b.name}/{part}').id for b in world.bricks for part in ('box', 'slab')
    }
    robot = {
        i
        for i in range(world.model.ngeom)
        if world.model.geom(i).name.startswith(('left/', 'right/'))
    }
    obs, info = world.reset(seed)
    act, depths = policies.constant('random')(seed), []
    for _ in range(SECONDS * world.control_hz):
        if frames is not None:
            frames.append(film.film_frame(world, obs, info, 'random actions'))
        obs, _, terminated, _, info = world.step(act(obs)['executed'])
        assert not terminated, info['fault']
        for distance, geoms in zip(world.data.contact.dist, world.data.contact.geom.tolist()):
            if bricks & set(geoms) and robot & set(geoms):
                depths.append(-1e3 * distance)
    return world.data.qpos.copy(), depths


@pytest.mark.parametrize('dt', [0.002, 0.004])
@pytest.mark.parametrize('task', TASKS)
def test_task_survives_random_actions(task, dt):
    world = World(task, cameras=(), physics_dt_s=dt)
    qpos, depths = random_run(world, seed=1_000_000)
    again, _ = random_run(world, seed=1_000_000)
    assert np.isfinite(qpos).all() and np.array_equal(qpos, again), 'the same seed, the same bits'
    metrics = world.info()['metrics']
    assert (
        metrics['penetration_mm'] < 1e3 * MAX_PENETRATION_M and metrics['energy_j'] < MAX_ENERGY_J
    )
    for seed in range(1_000_001, 1_000_005):  # in one run they touch twice, or rest on each other
        depths += random_run(world, seed)[1]
    typical = float(np.median(depths)) if depths else 0.0
    assert typical < 2.0, 'robot and bricks typically overlap by less than 2 mm'
    facts[f'{task} {dt}'] = dict(
        penetration_mm=metrics['penetration_mm'],
        energy_j=metrics['energy_j'],
        robot_brick_typical_mm=typical,
        world=world.metadata(),
    )
    print(
        f'{task} at {1e3 * dt:g} ms: deepest contact {metrics["penetration_mm"]:.2f} mm, '
        f'robot-brick {typical:.2f} mm (median of {len(depths)}), '
        f'kinetic energy up to {metrics["energy_j"]:.1f} J'
    )


def test_a_world_renders_where_mujoco_was_imported_first():
    """MuJoCo chooses its backend on import; ours is chosen after that, and holds."""
    code = """
import mujoco
from sim.world import World
obs, _ = World('place', image_size=32).reset(0)
assert obs['image/overhead'].shape == (32, 32, 3)
assert all(obs[key].std() > 10 for key in obs if key.startswith('image/'))
"""
    environment = {key: value for key, value in os.environ.items() if key != 'MUJOCO_GL'}
    run = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize('task', TASKS)
def test_task_is_seen_by_every_camera(task, artifacts):
    world, other = (World(task, cameras=CAMERAS, image_size=96) for _ in range(2))
    for w in (world, other):
        w.reset(1_000_000)
    for camera in CAMERAS:
        picture, twin = world.render(camera), other.render(camera)
        assert picture.std() > 10, f'{camera} shows nothing'
        assert np.abs(picture.astype(int) - twin).max() <= 1, 'the same state, the same picture'
        imageio.imwrite(
            artifacts / f'{task}_{camera.replace("/", "_")}.png', world.render(camera, 240)
        )
    for w in (world, other):
        w.close()


def test_a_film_is_left_to_look_at(artifacts):
    world, frames = World('join', cameras=()), []
    random_run(world, 1_000_000, frames)
    imageio.mimwrite(artifacts / 'join_random.mp4', frames, fps=world.control_hz, quality=7)
    world.close()
    moved = np.abs(frames[0].astype(int) - frames[-1])
    assert moved.max() > 50 and (artifacts / 'join_random.mp4').stat().st_size > 20_000
