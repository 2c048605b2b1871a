"""Protects the clutch: forces per stud, what snaps and what does not, snapshots.

python -m pytest tests/test_clutch.py
"""

import numpy as np
import pytest

from sim import rig, world
from sim.bricks import BRICK_HEIGHT_M, MASS_KG, PLATE_HEIGHT_M, STUD_HEIGHT_M, STUD_PITCH_M
from sim.clutch import Fit
from sim.gl import mujoco
from sim.rig import Rig


def test_force_table_meets_its_requirements():
    """Insertion, pull, peel, shear, acceptance, drift, load split, weakest link, cycles at 2 and 4
    ms."""
    rows = list(rig.force_table())
    assert len(rows) == 2 * (2 * 2 * 5 + 9) and {row['dt'] for row in rows} == {0.002, 0.004}
    missed = [row for row in rows if not row['ok']]
    assert not missed, missed
    assert sum(row['test'].endswith('as in World') for row in rows) == 2 * 2 * 5


def test_the_rig_runs_the_clutch_as_world_does():
    """What the rows `as in World` of the force table rest on."""
    here = world.World('place', cameras=())
    assert here.brick_scale == rig.AS_WORLD['scale']
    dt, updates = here.model.opt.timestep, []
    assert here._clutch_every * dt == pytest.approx(rig.AS_WORLD['period_s'])
    press = Rig(dt=dt, **rig.AS_WORLD)
    here.reset(0)
    for clutch in (press.clutch, here.clutch):
        updates.append(0)
        clutch.update = lambda i=len(updates) - 1: updates.__setitem__(i, updates[i] + 1)
    press.push('b0', -1.0, 0.2)
    press.wait(0.2)
    for _ in range(4):
        here.step(here.tool_command)
    assert updates == [50, 50]


def test_forces_follow_their_settings():
    insert, pull = rig.axial_forces(8, 0.004, insertion_force_n=2.0, pull_force_n=3.0)
    assert insert == pytest.approx(2.0, rel=0.05) and pull == pytest.approx(3.0, rel=0.05)
    assert rig.shear_force(0.004, shear_force_n=5.0) == pytest.approx(5.0, rel=0.05)
    assert rig.peel_force(0.004, pull_force_n=1.0)[0] < 0.5 * 8 * 1.0, (
        'peeling is easier than pulling straight'
    )


@pytest.mark.parametrize('dt', [0.002, 0.004])
@pytest.mark.parametrize('at_studs', [-1.0, 0.5, 2.5])
def test_a_bridge_pulled_off_its_middle_loads_its_towers_by_the_lever_rule(dt, at_studs):
    """3 N between the towers and beyond one of them: that presses the other one down."""
    loads, pull_n = rig.bridge_loads(dt, 3.0, at_studs), 3.0
    weight_n, span = MASS_KG[2, 6] * 9.81, 4 * STUD_PITCH_M
    assert loads[:, 2].sum() == pytest.approx(pull_n - weight_n, rel=0.01)
    share = 0.5 + at_studs / 4
    lever = pull_n * np.array([1 - share, share]) - weight_n / 2
    assert np.abs(loads[:, 2] - lever).max() < 0.03 * pull_n
    # exactly so where what little the links bend is counted: moments about the middle between the
    # towers
    arms = np.array([-0.5, 0.5]) * span
    assert (arms * loads[:, 2] + loads[:, 3]).sum() == pytest.approx(
        pull_n * at_studs * STUD_PITCH_M, rel=0.01
    )


def pair(dt):
    """A 2x4 turned by a quarter on the plate and a 2x2 on its end -> rig, {(lower, upper): where
    they meet, (3,) m in the lower one's frame}."""
    r = Rig([(2, 4), (2, 2)], dt=dt)
    r.on_studs('b0', yaw=np.pi / 2)
    r.snap('b0')
    r.put('b1', x=STUD_PITCH_M, z=PLATE_HEIGHT_M + BRICK_HEIGHT_M + STUD_HEIGHT_M)
    r.snap('b1')
    links = {(c['lower'], c['upper']): (c['cell'], c['turns'] % 4) for c in r.clutch.connections()}
    assert links == {('plate', 'b0'): ((0, 0), 1), ('b0', 'b1'): ((0, -1), 3)}
    return r, {
        ('plate', 'b0'): np.array([0, 0, PLATE_HEIGHT_M]),
        ('b0', 'b1'): np.array([0, -STUD_PITCH_M, BRICK_HEIGHT_M]),
    }


@pytest.mark.parametrize('dt', [0.002, 0.004])
def test_connections_tell_force_and_moment_on_the_upper_brick_in_the_lower_ones_frame(dt):
    """All six loads of both links under a known force or torque along each axis, against
    statics."""
    r, meets = pair(dt)
    body, g = r.model.body('b1').id, np.array([0, 0, -9.81])
    wrenches = [
        np.zeros(6),
        *np.diag([0.5, 0.5, 3.0, 0.01, 0.01, 0.1]),
        *-np.diag([0.5, 0.5, 3.0, 0.01, 0.01, 0.1]),
    ]
    for wrench in wrenches:
        r.data.xfrc_applied[body] = wrench  # at the brick's centre of mass
        r.wait(0.3)
        r.clutch.measure()
        for link in r.clutch.connections():
            lower, force, torque = (
                r.model.body(link['lower']).id,
                wrench[:3].copy(),
                wrench[3:].copy(),
            )
            frame = r.data.xmat[lower].reshape(3, 3)
            at = r.data.xpos[lower] + frame @ meets[link['lower'], link['upper']]
            torque += np.cross(r.data.xipos[body] - at, wrench[:3])
            carried = ('b0', 'b1') if link['lower'] == 'plate' else ('b1',)
            for i in (
                r.model.body(f'{name}{part}').id for name in carried for part in ('', '/slab')
            ):
                force += r.model.body_mass[i] * g
                torque += np.cross(r.data.xipos[i] - at, r.model.body_mass[i] * g)
            expected = np.concatenate([force @ frame, torque @ frame])
            if not wrench.any():
                assert link['load'][2] == pytest.approx(expected[2], rel=0.01)
                assert -0.05 < link['load'][2] < -0.01, 'the weight of the bricks'
            off = np.abs(link['load'] - expected)
            assert off[:3].max() < 0.01 * max(np.linalg.norm(expected[:3]), 0.03), (
                wrench,
                link,
                expected,
            )
            assert off[3:].max() < 0.01 * max(np.linalg.norm(expected[3:]), 0.01), (
                wrench,
                link,
                expected,
            )
            assert 0 <= link['utilisation'] < 1
        assert len(r.clutch.connections()) == 2


def test_a_held_brick_hangs_by_its_weight():
    """The upper brick is kept in the air; the lower one pulls at the studs."""
    r = Rig([(2, 4), (2, 2)], scale=2.0)
    r.put('b0', z=0.3)
    r.put('b1', z=0.3 + r.scale * BRICK_HEIGHT_M)
    r.attach('b0', 'b1')
    mass = {name: r.model.body_subtreemass[r.model.body(name).id] for name in ('b0', 'b1')}
    r.data.xfrc_applied[r.model.body('b1').id, 2] = 9.81 * sum(mass.values())
    r.wait(0.2)
    r.clutch.measure()
    (link,) = r.clutch.connections()
    assert link['load'][2] == pytest.approx(9.81 * mass['b0'], rel=0.01)
    assert link['utilisation'] == pytest.approx(9.81 * mass['b0'] / (4 * 2.0), rel=0.1)


@pytest.mark.parametrize('dt', [0.002, 0.004])
@pytest.mark.parametrize('sign', [1, -1])
def test_a_twist_breaks_a_link_at_what_its_studs_hold(dt, sign):
    """Eight studs of 10 N, four of the radius as lever: 0.768 N m."""
    r = Rig(dt=dt)
    r.on_studs('b0')
    r.snap('b0')
    limit, body, torque = 8 * 10.0 * 4 * 0.0024, r.model.body('b0').id, 0.0
    while r.clutch.connections() and torque < 2 * limit:
        torque += 0.25 * limit * dt
        r.data.xfrc_applied[body, 5] = sign * torque
        r.step()
    assert torque == pytest.approx(limit, rel=0.02)


def test_a_light_touch_does_not_snap():
    press = Rig()
    press.on_studs('b0')
    assert press.push('b0', -0.8 * 8, 1.0) is None and not press.clutch.connections()


@pytest.mark.parametrize('scale', [1.0, 2.0])
def test_snaps_within_tolerance_and_not_beyond(scale):
    for offset, ok in ((1.3e-3, True), (1.8e-3, False)):
        press = Rig(scale=scale)
        press.on_studs('b0', x=offset * scale)
        press.snap('b0')
        assert bool(press.clutch.connections()) == ok, offset
    for yaw, ok in ((4.0, True), (7.0, False)):
        press = Rig(scale=scale)
        press.on_studs('b0', yaw=np.radians(yaw))
        press.snap('b0')
        assert bool(press.clutch.connections()) == ok, yaw


def test_seated_brick_sits_on_the_grid_and_stays():
    press = Rig()
    press.on_studs('b0', x=STUD_PITCH_M + 1e-3, yaw=np.pi / 2 + 0.03)
    press.snap('b0')
    press.wait(2.0)
    pos, R = press.clutch.relative_pose(0, 1)
    assert np.abs(pos - [STUD_PITCH_M, 0, PLATE_HEIGHT_M]).max() < 2e-5
    assert abs(np.arctan2(R[1, 0], R[0, 0]) - np.pi / 2) < 1e-3
    link = press.clutch.connections()[0]
    assert link['cell'] == (1.0, 0.0) and link['turns'] == 1 and link['studs'] == 8


def test_a_brick_across_two_bricks_links_to_both():
    press = Rig([(2, 2), (2, 2), (2, 6)])
    for name, y in (('b0', -2), ('b1', 2)):
        press.on_studs(name, y=y * STUD_PITCH_M)
        press.snap(name)
    press.put('b2', z=PLATE_HEIGHT_M + 0.0096 + STUD_HEIGHT_M)
    press.snap('b2')
    assert sum(c['upper'] == 'b2' for c in press.clutch.connections()) == 2


def test_height_over_the_studs_is_that_of_the_end_that_is_pressed_on():
    """A brick of 12 studs over the edge of the plate, tilted by 2 degrees: its middle is 1.4 mm
    higher."""
    r, tilt = Rig([(2, 12)]), np.radians(2)
    r.put(
        'b0', y=8 * STUD_PITCH_M, z=PLATE_HEIGHT_M + STUD_HEIGHT_M + 5 * STUD_PITCH_M * np.sin(tilt)
    )
    adr = r.model.jnt_qposadr[r.model.body_jntadr[r.model.body('b0').id]]
    r.data.qpos[adr + 3 : adr + 7] = np.cos(tilt / 2), np.sin(tilt / 2), 0, 0
    mujoco.mj_forward(r.model, r.data)
    pos, R = r.clutch.relative_pose(0, 1)
    gap_m = r.clutch._gap(0, r.clutch.nearest_cell(0, 1, pos, R), pos, R)
    assert gap_m == pytest.approx(STUD_HEIGHT_M, abs=1e-4) and pos[2] - PLATE_HEIGHT_M > 3e-3


def test_running_out_of_welds_says_so():
    press = Rig()
    press.clutch.links['used'] = True
    with pytest.raises(RuntimeError, match='8 clutch welds'):
        press.clutch.connect(0, 1, Fit(cell=np.zeros(2), turns=0, lo=-np.ones(2), hi=np.ones(2)))


def test_a_broken_link_holds_again_where_its_studs_have_not_come_out():
    here = Rig([(2, 2)])
    here.on_studs('b0')
    here.snap('b0')
    assert here.push('b0', 20.0, 1.0) is not None and not here.clutch.connections()
    here.wait(0.2)  # nobody presses
    assert [e[1] for e in here.clutch.events][-1] == 'reseat' and len(
        here.clutch.connections()
    ) == 1
    assert here.push('b0', 20.0, 1.0) is not None  # and can be broken again


@pytest.mark.parametrize('yaw', [-0.005, 0.0, 0.005])
def test_turned_by_half_it_holds_again_whichever_way_round_it_is_measured(yaw):
    here = Rig([(2, 4)])
    here.put('b0', z=PLATE_HEIGHT_M + STUD_HEIGHT_M, yaw=np.pi - 0.001)
    here.snap('b0')
    assert here.push('b0', 40.0, 1.0) is not None and not here.clutch.connections()
    pos = here.data.body('b0').xpos.copy()
    here.put('b0', *pos[:2], PLATE_HEIGHT_M, yaw=np.pi + yaw)
    here.wait(0.2)
    assert [e[1] for e in here.clutch.events] == ['form', 'break', 'reseat']


@pytest.mark.parametrize('dt', [0.002, 0.004])
def test_linked_bricks_that_tumble_do_not_wind_themselves_up(dt):
    """A pair knocked into the air: 50 rad/s was enough for weld and contact to fight until NaN."""
    for spin in (50.0, 150.0):
        air = Rig([(2, 10), (2, 2)], dt=dt)
        air.put('b0', z=1.0)
        air.put('b1', y=-4 * STUD_PITCH_M, z=1.0 + 0.0096)
        air.attach('b0', 'b1')
        v = spin * np.array([0.7, 0.5, 0.5])
        for name, start in (('b0', [0, 0, 0]), ('b1', np.cross(v, [0, -4 * STUD_PITCH_M, 0.0096]))):
            adr = air.model.body(name).dofadr[0]
            air.data.qvel[adr : adr + 6] = *start, *v
        energy = []
        for _ in range(round(0.3 / dt / 2)):
            mujoco.mj_step(air.model, air.data, nstep=2)
            air.clutch.update()
            mujoco.mj_energyVel(air.model, air.data)
            energy.append(air.data.energy[1])
        assert not any(w.number for w in air.data.warning) and np.isfinite(air.data.qpos).all()
        fall = 0.5 * sum(air.model.body_mass) * (9.81 * 0.3) ** 2
        assert max(energy) < 3 * energy[0] + fall


def test_a_brick_that_was_shot_out_does_not_end_up_inside_the_floor():
    """Squeezed under a palm it left at 100 m/s, was 40 cm inside the floor a step later, and came
    back with thousands of joules. What falls stays untouched."""
    shot = Rig([(2, 4)], dt=0.004)
    shot.put('b0', z=0.5)
    adr, deepest = shot.model.body('b0').dofadr[0], 0.0
    shot.data.qvel[adr : adr + 6] = 3, 0, -100, 0, 200, 0
    for _ in range(100):
        mujoco.mj_step(shot.model, shot.data)
        shot.clutch.update()
        velocity = shot.data.qvel[adr : adr + 6]
        assert np.linalg.norm(velocity[:3]) < 8.1 and np.linalg.norm(velocity[3:]) < 60.1
        if shot.data.ncon:
            deepest = max(deepest, -shot.data.contact.dist.min())
    assert 0 < deepest < 0.05
    free, braked = Rig([(2, 4)], dt=0.004), Rig([(2, 4)], dt=0.004)
    for each in (free, braked):
        each.put('b0', z=0.7)
        each.data.qvel[adr : adr + 6] = 1, 2, -0.5, 3, 1, 2
    for _ in range(80):
        mujoco.mj_step(free.model, free.data)
        mujoco.mj_step(braked.model, braked.data)
        braked.clutch.update()
    assert np.array_equal(free.data.qpos, braked.data.qpos)


def test_excludes_that_a_robot_brings_stay():
    r = Rig(studs=((2, 4), (2, 2), (2, 2)))
    own = (r.model.body('b1').id << 16) + r.model.body('b2').id
    r.model.exclude_signature[0] = own
    r.clutch = type(r.clutch)(r.model, r.data, r.bricks)
    assert own in r.model.exclude_signature
    r.on_studs('b0')
    r.snap('b0')
    signature = r.model.exclude_signature
    assert r.clutch.connections() and own in signature and (np.diff(signature) >= 0).all()
    assert (signature < 1 << 30).sum() == 3  # and two of the pair that is linked
