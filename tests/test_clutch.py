"""Protects the clutch: forces per stud, what snaps and what does not, snapshots.

    python -m pytest tests/test_clutch.py
"""
import numpy as np
import pytest

from world import mujoco  # world chooses the GL backend before mujoco is imported
from clutch import Brick, Clutch, brick_xml, pool_xml, PLATE_HEIGHT_M, STUD_HEIGHT_M, STUD_PITCH_M


class Bench:
    """A fixed 8x8 plate, one or more free bricks, no robot."""

    def __init__(self, studs=((2, 4),), scale=1., dt=.002, **forces):
        self.bricks = [Brick('plate', (8, 8), '0 1 0 1', plate=True, fixed=True),
                       *(Brick(f'b{i}', s, '1 0 0 1') for i, s in enumerate(studs))]
        dummies, excludes, welds = pool_xml(8)
        bodies = ''.join(brick_xml(b, scale, (0 if b.fixed else .3 * i, 0, 0))
                         for i, b in enumerate(self.bricks))
        self.model = mujoco.MjModel.from_xml_string(
            '<mujoco><compiler angle="radian" boundmass="0"/>'
            f'<option timestep="{dt}" cone="elliptic" impratio="20" integrator="implicitfast"/>'
            f'<worldbody>{bodies}{dummies}</worldbody>'
            f'<contact>{excludes}</contact><equality>{welds}</equality></mujoco>')
        self.data, self.scale = mujoco.MjData(self.model), scale
        self.clutch = Clutch(self.model, self.data, self.bricks, scale, **forces)
        mujoco.mj_forward(self.model, self.data)

    def put(self, name, x=0., y=0., z=0., yaw=0.):
        adr = self.model.jnt_qposadr[self.model.body_jntadr[self.model.body(name).id]]
        self.data.qpos[adr:adr + 7] = x, y, z, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
        self.data.qvel[:] = 0        # bricks that wait their turn fall beside the plate
        mujoco.mj_forward(self.model, self.data)

    def on_studs(self, name, x=0., y=0., yaw=0.):
        self.put(name, x, y, self.scale * (PLATE_HEIGHT_M + STUD_HEIGHT_M), yaw)

    def push(self, name, fz, seconds, fx=0., at=(0, 0, 0)):
        """Force (fx, 0, fz) N at point `at` in the brick's frame, ramped from zero; stops when an event
        happens. Returns the force share at that moment."""
        body, events = self.model.body(name).id, len(self.clutch.events)
        n = int(seconds / self.model.opt.timestep)
        for i in range(n):
            share = (i + 1) / n
            force, self.data.qfrc_applied[:] = share * np.array([fx, 0, fz]), 0
            R = self.data.xmat[body].reshape(3, 3)
            mujoco.mj_applyFT(self.model, self.data, force, np.zeros(3), self.data.xpos[body] + R @ at, body,
                              self.data.qfrc_applied)
            mujoco.mj_step(self.model, self.data)
            self.clutch.update()
            if len(self.clutch.events) > events:
                self.data.qfrc_applied[:] = 0
                return share
        self.data.qfrc_applied[:] = 0
        return None

    def wait(self, seconds):
        for _ in range(int(seconds / self.model.opt.timestep)):
            mujoco.mj_step(self.model, self.data)
            self.clutch.update()

    def snap(self, name, at=(0, 0, 0)):
        self.push(name, -40., 1., at=at)
        self.wait(.3)


@pytest.mark.parametrize('dt', [.002, .004])
@pytest.mark.parametrize('studs', [(1, 2), (2, 2), (2, 4), (2, 6)])
def test_insertion_and_pull_force_are_as_set_per_stud(studs, dt):
    bench = Bench([studs], dt=dt, insertion_force_n=1., pull_force_n=2.)
    n = studs[0] * studs[1]
    bench.on_studs('b0', *(STUD_PITCH_M / 2 * (s % 2) for s in studs))
    peak = 3 * n
    assert bench.push('b0', -peak, 3.) * peak == pytest.approx(1. * n, rel=.08)
    bench.wait(.3)
    assert bench.clutch.connections()[0]['studs'] == n
    peak = 4 * n
    assert bench.push('b0', peak, 3.) * peak == pytest.approx(2. * n, rel=.05)
    assert bench.clutch.events[-1][1] == 'break'


def test_a_light_touch_does_not_snap():
    bench = Bench()
    bench.on_studs('b0')
    assert bench.push('b0', -.8 * 8, 1.) is None and not bench.clutch.connections()


@pytest.mark.parametrize('scale', [1., 2.])
def test_snaps_within_tolerance_and_not_beyond(scale):
    for offset, ok in ((1.3e-3, True), (1.8e-3, False)):
        bench = Bench(scale=scale)
        bench.on_studs('b0', x=offset * scale)
        bench.snap('b0')
        assert bool(bench.clutch.connections()) == ok, offset
    for yaw, ok in ((4., True), (7., False)):
        bench = Bench(scale=scale)
        bench.on_studs('b0', yaw=np.radians(yaw))
        bench.snap('b0')
        assert bool(bench.clutch.connections()) == ok, yaw


def test_seated_brick_sits_on_the_grid_and_stays():
    bench = Bench()
    bench.on_studs('b0', x=STUD_PITCH_M + 1e-3, yaw=np.pi / 2 + .03)
    bench.snap('b0')
    bench.wait(2.)
    pos, R = bench.clutch.relative_pose(0, 1)
    assert np.abs(pos - [STUD_PITCH_M, 0, PLATE_HEIGHT_M]).max() < 2e-5
    assert abs(np.arctan2(R[1, 0], R[0, 0]) - np.pi / 2) < 1e-3
    link = bench.clutch.connections()[0]
    assert link['cell'] == (1., 0.) and link['turns'] == 1 and link['studs'] == 8


def test_peeling_at_the_edge_takes_less_than_pulling_straight():
    bench = Bench(pull_force_n=1.)
    bench.on_studs('b0')
    bench.snap('b0')
    edge = bench.push('b0', 8., 3., at=(0, 2 * STUD_PITCH_M, 0)) * 8.
    assert edge < .5 * 8.


def test_the_weaker_of_two_links_breaks_first():
    bench = Bench([(2, 4), (2, 4)])
    bench.on_studs('b0')
    bench.snap('b0')
    # overlaps by one row of two studs
    bench.put('b1', y=3 * STUD_PITCH_M, z=PLATE_HEIGHT_M + .0096 + STUD_HEIGHT_M)
    bench.snap('b1', at=(0, -1.5 * STUD_PITCH_M, 0))
    assert [c['studs'] for c in bench.clutch.connections()] == [8, 2]
    bench.push('b1', 10., 2., at=(0, -1.5 * STUD_PITCH_M, 0))
    assert bench.clutch.events[-1][1:] == ('break', 'b0', 'b1')


def test_a_brick_across_two_bricks_links_to_both():
    bench = Bench([(2, 2), (2, 2), (2, 6)])
    for name, y in (('b0', -2), ('b1', 2)):
        bench.on_studs(name, y=y * STUD_PITCH_M)
        bench.snap(name)
    bench.put('b2', z=PLATE_HEIGHT_M + .0096 + STUD_HEIGHT_M)
    bench.snap('b2')
    assert sum(c['upper'] == 'b2' for c in bench.clutch.connections()) == 2


def test_ten_insertions_and_removals():
    bench = Bench([(2, 2)])
    for _ in range(10):
        bench.on_studs('b0')
        bench.snap('b0')
        assert len(bench.clutch.connections()) == 1
        bench.push('b0', 20., 1.)
        assert not bench.clutch.connections()
        bench.wait(.1)
        bench.put('b0', z=.05)
        bench.wait(.02)
    assert not bench.clutch.links['used'].any() and np.isfinite(bench.data.qpos).all()


def test_running_out_of_welds_says_so():
    bench = Bench()
    bench.clutch.links['used'] = True
    with pytest.raises(RuntimeError, match='8 clutch welds'):
        bench.clutch.connect(0, 1, dict(cell=np.zeros(2), turns=0, lo=-np.ones(2), hi=np.ones(2)))
