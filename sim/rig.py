"""A test rig for the clutch: bricks without a robot, pushed and pulled with known forces; the force
table.

    rig = Rig([(2, 4)])                       # a fixed 8x8 plate and one 2x4 brick
    rig.on_studs('b0')
    rig.snap('b0')                            # pressed on
    force_n = 20 * rig.push('b0', 20., 2.)    # pulled up, ramped to 20 N in 2 s: the force at which
    it let go

    for row in force_table(): ...             # what `python bench.py --clutch=True` prints and a
    test checks

Frames and units as in clutch.py: SI, z up, a brick's origin is the middle of its bottom face.
"""

import numpy as np

from sim.bricks import (
    BRICK_HEIGHT_M,
    MASS_KG,
    PLATE_HEIGHT_M,
    STUD_HEIGHT_M,
    STUD_PITCH_M,
    STUD_RADIUS_M,
    Brick,
    brick_xml,
)
from sim.clutch import Clutch, pool_xml
from sim.gl import mujoco

TABLE_STUDS = {1: (1, 1), 2: (1, 2), 4: (2, 2), 8: (2, 4), 12: (2, 6)}  # number of studs: brick
TOWER = 20
AS_WORLD = dict(scale=2.0, period_s=0.008)  # how World runs the clutch: DUPLO, an update every 8 ms


class Rig:
    """A fixed 8x8 'plate' and free bricks 'b0', 'b1', ... of the given studs (nx, ny), in a row
    beside it. scale 1 LEGO, 2 DUPLO; dt: time step in s; period_s: from one clutch update to the
    next, None: every step; forces: keyword arguments of Clutch.
    """

    def __init__(self, studs=((2, 4),), scale=1.0, dt=0.002, n_slots=8, period_s=None, **forces):
        self.bricks = [
            Brick('plate', (8, 8), '0 1 0 1', plate=True, fixed=True),
            *(Brick(f'b{i}', s, '1 0 0 1') for i, s in enumerate(studs)),
        ]
        dummies, excludes, welds = pool_xml(n_slots)
        bodies = ''.join(
            brick_xml(b, scale, (0 if b.fixed else 0.3 * (i + 1), 0, 0))
            for i, b in enumerate(self.bricks)
        )
        self.model = mujoco.MjModel.from_xml_string(
            '<mujoco><compiler angle="radian" boundmass="0"/>'
            f'<option timestep="{dt}" cone="elliptic" impratio="20" integrator="implicitfast"/>'
            f'<worldbody>{bodies}{dummies}</worldbody>'
            f'<contact>{excludes}</contact><equality>{welds}</equality></mujoco>'
        )
        self.data = mujoco.MjData(self.model)
        self.scale = scale
        self.every = round(period_s / dt) if period_s else 1
        self.n_steps = 0
        self.clutch = Clutch(self.model, self.data, self.bricks, scale, **forces)
        mujoco.mj_forward(self.model, self.data)

    def put(self, name, x=0.0, y=0.0, z=0.0, yaw=0.0):
        """Place a brick at x, y, z (m), yaw (rad), at rest."""
        adr = self.model.jnt_qposadr[self.model.body_jntadr[self.model.body(name).id]]
        self.data.qpos[adr : adr + 7] = x, y, z, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
        self.data.qvel[:] = 0  # bricks that wait their turn fall beside the plate
        mujoco.mj_forward(self.model, self.data)

    def on_studs(self, name, x=0.0, y=0.0, yaw=0.0):
        """Place a brick on top of the plate's studs, not yet pressed on."""
        self.put(name, x, y, self.scale * (PLATE_HEIGHT_M + STUD_HEIGHT_M), yaw)

    def attach(self, lower, upper):
        """Link two bricks that have been placed on each other's grid, without pressing."""
        self.clutch.attach(lower, upper)

    def step(self):
        """One physics step, and the clutch's update where it is due."""
        mujoco.mj_step(self.model, self.data)
        self.n_steps += 1
        if self.n_steps % self.every == 0:
            self.clutch.update()

    def push(self, name, fz, seconds, fx=0.0, at=(0, 0, 0), hold=False):
        """Force (fx, 0, fz) N at point `at` (m) in the brick's frame, ramped from zero; stops when
        an event happens. hold: goes on with the full force. Returns the share of the force at that
        moment, or None.
        """
        body = self.model.body(name).id
        events = len(self.clutch.events)
        n = int(seconds / self.model.opt.timestep)
        for i in range(n):
            share = 1.0 if hold else (i + 1) / n
            force = share * np.array([fx, 0, fz])
            self.data.qfrc_applied[:] = 0
            R = self.data.xmat[body].reshape(3, 3)
            mujoco.mj_applyFT(
                self.model,
                self.data,
                force,
                np.zeros(3),
                self.data.xpos[body] + R @ at,
                body,
                self.data.qfrc_applied,
            )
            self.step()
            if len(self.clutch.events) > events:
                self.data.qfrc_applied[:] = 0
                return share
        if not hold:
            self.data.qfrc_applied[:] = 0
        return None

    def wait(self, seconds):
        """Let time pass (s)."""
        for _ in range(int(seconds / self.model.opt.timestep)):
            self.step()

    def snap(self, name, at=(0, 0, 0)):
        """Press a brick down with up to 40 N at a point (m, its frame) and let it come to rest."""
        self.push(name, -40.0, 1.0, at=at)
        self.wait(0.3)


# -- measurements --------------------------------------------------------------------------------------------
def axial_forces(n_studs, dt, insertion_force_n=1.0, pull_force_n=2.0, **how):
    """(insertion, straight pull) in N per stud of a brick on n_studs studs, forces as set in N per
    stud; how: scale and period_s of the rig.
    """
    studs = TABLE_STUDS[n_studs]
    rig = Rig([studs], dt=dt, insertion_force_n=insertion_force_n, pull_force_n=pull_force_n, **how)
    rig.on_studs('b0', *(rig.scale * STUD_PITCH_M / 2 * (s % 2) for s in studs))
    insert = rig.push('b0', -2 * n_studs * insertion_force_n, 4.0) * 2 * insertion_force_n
    rig.wait(0.3)
    linked = rig.clutch.connections()[0]['studs']
    assert linked == n_studs, f'{linked} studs are linked, expected {n_studs}'
    return insert, rig.push('b0', 2 * n_studs * pull_force_n, 3.0) * 2 * pull_force_n


def peel_force(dt, pull_force_n=2.0):
    """(measured, expected) N to peel a 2x4 off by pulling up at the middle of its short edge.
    Expected: the bolt group of clutch.py with four friction points per stud, by hand.
    """
    rig = Rig(dt=dt, pull_force_n=pull_force_n)
    rig.on_studs('b0')
    rig.snap('b0')
    lever = 2 * STUD_PITCH_M
    n = 8
    r = STUD_RADIUS_M
    p = STUD_PITCH_M
    points = [y * p + dy for y in (-1.5, -0.5, 0.5, 1.5) for dy in (0, 0, r, -r) for _ in range(2)]
    # of the outermost point, per N pulled
    tension = 1 / (4 * n) + lever * max(points) / sum(y * y for y in points)
    expected = pull_force_n / 4 / tension
    return rig.push('b0', 2 * expected, 4.0, at=(0, lever, 0)) * 2 * expected, expected


def shear_force(dt, shear_force_n=10.0):
    """N per stud that push a seated 2x4 sideways off its studs; the force acts in the plane of the
    joint.
    """
    rig = Rig(dt=dt, shear_force_n=shear_force_n)
    rig.on_studs('b0')
    rig.snap('b0')
    return rig.push('b0', 0.0, 4.0, fx=2 * 8 * shear_force_n) * 2 * shear_force_n


def acceptance(kind, dt, scale=1.0):
    """Largest 'offset' (m) or 'yaw' (rad) from the grid at which a pressed 2x4 still snaps on."""
    low, high = (0.0, 3e-3 * scale) if kind == 'offset' else (0.0, np.radians(10))
    for _ in range(7):
        middle = (low + high) / 2
        rig = Rig(dt=dt, scale=scale)
        rig.on_studs('b0', **({'x': middle} if kind == 'offset' else {'yaw': middle}))
        rig.push('b0', -20.0, 0.5)
        low, high = (middle, high) if rig.clutch.connections() else (low, middle)
    return low


def tower_drift(dt, seconds=10.0):
    """Largest movement (m) of any brick of a tower of 20 within so many seconds, on a table that is
    off level by 3 degrees: upright, nothing would pull at it sideways and drift would be zero for
    free.
    """
    rig = Rig([(2, 4)] * TOWER, dt=dt, n_slots=TOWER + 2)
    rig.model.opt.gravity[:] = 9.81 * np.array([0.04, 0.035, -1.0])
    for i in range(TOWER):
        rig.put(f'b{i}', z=PLATE_HEIGHT_M + i * BRICK_HEIGHT_M)
    for i in range(TOWER):
        rig.attach('plate' if i == 0 else f'b{i - 1}', f'b{i}')
    rig.wait(0.5)  # it bends under its weight
    start = rig.data.xpos[rig.clutch.body_id].copy()
    rig.wait(seconds)
    assert len(rig.clutch.connections()) == TOWER, rig.clutch.events
    return float(np.linalg.norm(rig.data.xpos[rig.clutch.body_id] - start, axis=1).max())


def bridge_loads(dt, force_n=3.0, at_studs=0.0):
    """Loads (6,), N and N m, on the two links of a 2x6 that lies on two 2x2 towers, 2 studs to
    either side of its middle, and is pulled up at_studs from it towards the second. All three are
    pressed on, out of place by up to 1 mm.
    """
    rig = Rig([(2, 2), (2, 2), (2, 6)], dt=dt)
    for name, x, y in (('b0', 1e-3, -2), ('b1', -5e-4, 2)):
        rig.on_studs(name, x=x, y=y * STUD_PITCH_M + 3e-4)
        rig.snap(name)
    rig.put('b2', x=7e-4, z=PLATE_HEIGHT_M + BRICK_HEIGHT_M + STUD_HEIGHT_M)
    rig.snap('b2')
    at = 0, at_studs * STUD_PITCH_M, 0
    rig.push('b2', force_n, 0.3, at=at)
    rig.push('b2', force_n, 0.5, at=at, hold=True)
    rig.clutch.measure()
    loads = {c['lower']: c['load'] for c in rig.clutch.connections() if c['upper'] == 'b2'}
    return np.array([loads['b0'], loads['b1']])


def broken_link(dt, weak=4, height=8):
    """(lower, upper) of the link that breaks when a tower with one 2-stud link is pulled at its
    top.
    """
    rig = Rig([(2, 4)] * height, dt=dt, n_slots=height + 2)
    y = 0.0
    for i in range(height):
        y += (
            3 * STUD_PITCH_M if i == weak else 0.0
        )  # from here on shifted: one row of two studs overlaps
        rig.put(f'b{i}', y=y, z=PLATE_HEIGHT_M + i * BRICK_HEIGHT_M)
        rig.attach('plate' if i == 0 else f'b{i - 1}', f'b{i}')
    rig.wait(0.4)
    rig.push(f'b{height - 1}', 8.0, 2.0, at=(0, -1.5 * STUD_PITCH_M, 0))
    return next((e[2:] for e in rig.clutch.events if e[1] == 'break'), None)


def cycles(dt, n=10):
    """How many of n insertions and removals of one brick went as they should, all numbers staying
    finite.
    """
    rig = Rig([(2, 2)], dt=dt)
    good = 0
    for _ in range(n):
        rig.on_studs('b0')
        rig.snap('b0')
        on = len(rig.clutch.connections()) == 1
        rig.push('b0', 20.0, 1.0)
        off = not rig.clutch.connections()
        rig.put('b0', z=0.05)  # away at once: left where it is, it would hold again
        rig.wait(0.02)
        good += (
            on
            and off
            and not rig.clutch.links['used'].any()
            and bool(np.isfinite(rig.data.qpos).all())
        )
    return good


def force_table(timesteps=(0.002, 0.004)):
    """Rows dict(test, dt, measured, expected, unit, ok) of everything above, one after the other.
    `ok` is the requirement: axial forces, peel and shear within 5 % of the setting, acceptance
    within 5 % of the tolerance, drift below 0.2 mm, a bridge's loads equal, and pulled off its
    middle those of a lever, within 3 %. Axial forces are measured twice: with an update of the
    clutch every step, and as World runs it.
    """

    def row(test, dt, measured, expected, unit, ok):
        return dict(test=test, dt=dt, measured=measured, expected=expected, unit=unit, ok=bool(ok))

    def near(measured, expected, tolerance=0.05):
        return abs(measured / expected - 1) <= tolerance

    for dt in timesteps:
        for how, said in (({}, ''), (AS_WORLD, ', as in World')):
            for n in TABLE_STUDS:
                forces = zip(('insertion', 'straight pull'), axial_forces(n, dt, **how), (1.0, 2.0))
                for what, value, setting in forces:
                    yield row(
                        f'{what}, {n} studs{said}',
                        dt,
                        value,
                        setting,
                        'N/stud',
                        near(value, setting),
                    )
        peel, by_hand = peel_force(dt)
        yield row('peel a 2x4 at its short edge', dt, peel, by_hand, 'N', near(peel, by_hand))
        shear = shear_force(dt)
        yield row('lateral shear of a 2x4', dt, shear, 10.0, 'N/stud', near(shear, 10.0))
        offset = 1e3 * acceptance('offset', dt)
        yaw = np.degrees(acceptance('yaw', dt))
        yield row('offset that still snaps', dt, offset, 1.5, 'mm', near(offset, 1.5))
        yield row('yaw that still snaps', dt, yaw, 5.0, 'degrees', near(yaw, 5.0))
        drift = 1e3 * tower_drift(dt)
        yield row(f'drift of a {TOWER}-brick tower in 10 s', dt, drift, '< 0.2', 'mm', drift < 0.2)
        loads = bridge_loads(dt)[:, 2]
        unequal = 100 * (max(loads) / (sum(loads) / 2) - 1)
        yield row('bridge: heavier end above the mean', dt, unequal, '< 3', '%', unequal < 3)
        lighter, heavier = bridge_loads(dt, at_studs=1.0)[:, 2]
        lever = 0.75 * 3.0 - MASS_KG[2, 6] * 9.81 / 2  # of 3 N a quarter of the span off its middle
        yield row(
            'bridge pulled a stud off its middle: heavier end',
            dt,
            heavier,
            lever,
            'N',
            near(heavier, lever, 0.03) and lighter < heavier,
        )
        link = broken_link(dt)
        yield row(
            'weakest link of a tower breaks first',
            dt,
            ' on '.join(link[::-1]),
            'b4 on b3',
            '',
            link == ('b3', 'b4'),
        )
        good = cycles(dt)
        yield row('insert and remove, 10 times', dt, good, 10, 'times', good == 10)
