"""A test rig for the clutch: bricks without a robot, pushed and pulled with known forces.

    rig = Rig([(2, 4)])                       # a fixed 8x8 plate and one 2x4 brick
    rig.on_studs('b0')
    rig.snap('b0')                            # pressed on
    force_n = 20 * rig.push('b0', 20., 2.)    # pulled up, ramped to 20 N in 2 s, until it let go

    for row in force_table(): ...             # what `python bench.py --clutch=True` prints

A test checks the force table. Frames and units as in bricks.py: SI, z up, a brick's origin is the
middle of its bottom face.
"""

from collections.abc import Iterator, Sequence
from typing import Any

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
AS_WORLD = dict(scale=2.0, period_s=0.008)  # World runs the clutch so: DUPLO, an update every 8 ms.


class Rig:
    """A fixed 8x8 'plate' and free bricks 'b0', 'b1', ... in a row beside it."""

    def __init__(
        self,
        studs: Sequence[tuple[int, int]] = ((2, 4),),
        scale: float = 1.0,
        dt: float = 0.002,
        n_slots: int = 8,
        period_s: float | None = None,
        **forces: float,
    ):
        """Set bricks up.

        Args:
            studs: (nx, ny) of each free brick.
            scale: 1 for LEGO, 2 for DUPLO.
            dt: Time step, s.
            n_slots: Links that can hold at a time.
            period_s: From one clutch update to the next; None: every step.
            **forces: Keyword arguments of Clutch.
        """
        self.bricks = [Brick('plate', (8, 8), '0 1 0 1', plate=True, fixed=True)]
        self.bricks += [Brick(f'b{i}', size, '1 0 0 1') for i, size in enumerate(studs)]
        bodies = brick_xml(self.bricks[0], scale)
        for i, brick in enumerate(self.bricks[1:]):
            bodies += brick_xml(brick, scale, (0.3 * (i + 2), 0, 0))
        dummies, excludes, welds = pool_xml(n_slots)
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

    def put(
        self, name: str, x: float = 0.0, y: float = 0.0, z: float = 0.0, yaw: float = 0.0
    ) -> None:
        """Place a brick at x, y, z (m), yaw (rad), at rest."""
        adr = self.model.jnt_qposadr[self.model.body_jntadr[self.model.body(name).id]]
        self.data.qpos[adr : adr + 7] = x, y, z, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
        self.data.qvel[:] = 0  # bricks that wait their turn fall beside the plate
        mujoco.mj_forward(self.model, self.data)

    def on_studs(self, name: str, x: float = 0.0, y: float = 0.0, yaw: float = 0.0) -> None:
        """Place a brick on top of the plate's studs, not yet pressed on."""
        self.put(name, x, y, self.scale * (PLATE_HEIGHT_M + STUD_HEIGHT_M), yaw)

    def attach(self, lower: str, upper: str) -> None:
        """Link two bricks that have been placed on each other's grid, without pressing."""
        self.clutch.attach(lower, upper)

    def step(self) -> None:
        """One physics step, and the clutch's update where it is due."""
        mujoco.mj_step(self.model, self.data)
        self.n_steps += 1
        if self.n_steps % self.every == 0:
            self.clutch.update()

    def push(
        self,
        name: str,
        fz: float,
        seconds: float,
        fx: float = 0.0,
        at: Sequence[float] = (0, 0, 0),
        hold: bool = False,
    ) -> float | None:
        """Push a brick with force (fx, 0, fz) N until an event happens.

        Args:
            name: The brick.
            fz: Upward force, N.
            seconds: The force is ramped from zero in this time.
            fx: Sideways force, N.
            at: Where it acts, (3,) m in the brick's frame.
            hold: The full force from the start, and it stays.

        Returns:
            The share of the force at which an event happened, or None.
        """
        body = self.model.body(name).id
        events = len(self.clutch.events)
        n = int(seconds / self.model.opt.timestep)
        for i in range(n):
            share = 1.0 if hold else (i + 1) / n
            self._apply(body, share * np.array([fx, 0, fz]), at)
            self.step()
            if len(self.clutch.events) > events:
                self.data.qfrc_applied[:] = 0
                return share
        if not hold:
            self.data.qfrc_applied[:] = 0
        return None

    def _apply(self, body: int, force: np.ndarray, at: Sequence[float]) -> None:
        """A force (3,) N, world frame, at a point (3,) m of the body's frame, and no other."""
        data = self.data
        point = data.xpos[body] + data.xmat[body].reshape(3, 3) @ at
        data.qfrc_applied[:] = 0
        mujoco.mj_applyFT(self.model, data, force, np.zeros(3), point, body, data.qfrc_applied)

    def share_of(self, name: str, fz: float, seconds: float, **how) -> float:
        """Like push, where an event has to happen."""
        share = self.push(name, fz, seconds, **how)
        assert share is not None, f'{name}: nothing happened at {fz} N'
        return share

    def wait(self, seconds: float) -> None:
        """Let time pass (s)."""
        for _ in range(int(seconds / self.model.opt.timestep)):
            self.step()

    def snap(self, name: str, at: Sequence[float] = (0, 0, 0)) -> None:
        """Press a brick down with up to 40 N at a point (m, its frame) and let it come to rest."""
        self.push(name, -40.0, 1.0, at=at)
        self.wait(0.3)


# -- measurements ----------------------------------------------------------------------------------
def axial_forces(
    n_studs: int,
    dt: float,
    insertion_force_n: float = 1.0,
    pull_force_n: float = 2.0,
    **how: Any,
) -> tuple[float, float]:
    """(insertion, straight pull) in N per stud of a brick on n_studs studs.

    Args:
        n_studs: A key of TABLE_STUDS.
        dt: Time step, s.
        insertion_force_n: As set, N per stud.
        pull_force_n: As set, N per stud.
        **how: scale and period_s of the rig.
    """
    studs = TABLE_STUDS[n_studs]
    rig = Rig([studs], dt=dt, insertion_force_n=insertion_force_n, pull_force_n=pull_force_n, **how)
    x, y = (rig.scale * STUD_PITCH_M / 2 * (n % 2) for n in studs)
    rig.on_studs('b0', x, y)
    press = rig.share_of('b0', -2 * n_studs * insertion_force_n, 4.0)
    rig.wait(0.3)
    linked = rig.clutch.connections()[0]['studs']
    assert linked == n_studs, f'{linked} studs are linked, expected {n_studs}'
    pull = rig.share_of('b0', 2 * n_studs * pull_force_n, 3.0)
    return press * 2 * insertion_force_n, pull * 2 * pull_force_n


def peel_force(dt: float, pull_force_n: float = 2.0) -> tuple[float, float]:
    """(measured, expected) N to peel a 2x4 off by pulling up at the middle of its short edge.

    Expected is the bolt group of clutch.py with four friction points per stud, by hand.
    """
    rig = Rig(dt=dt, pull_force_n=pull_force_n)
    rig.on_studs('b0')
    rig.snap('b0')
    lever = 2 * STUD_PITCH_M
    n = 8
    points = []  # y of all friction points, m
    for stud in (-1.5, -0.5, 0.5, 1.5):
        for off_m in (0, 0, STUD_RADIUS_M, -STUD_RADIUS_M):
            points += [stud * STUD_PITCH_M + off_m] * 2
    # Of the outermost point, per N pulled.
    tension = 1 / (4 * n) + lever * max(points) / sum(y * y for y in points)
    expected = pull_force_n / 4 / tension
    share = rig.share_of('b0', 2 * expected, 4.0, at=(0, lever, 0))
    return share * 2 * expected, expected


def shear_force(dt: float, shear_force_n: float = 10.0) -> float:
    """N per stud that push a seated 2x4 sideways off its studs.

    The force acts in the plane of the joint.
    """
    rig = Rig(dt=dt, shear_force_n=shear_force_n)
    rig.on_studs('b0')
    rig.snap('b0')
    return rig.share_of('b0', 0.0, 4.0, fx=2 * 8 * shear_force_n) * 2 * shear_force_n


def acceptance(kind: str, dt: float, scale: float = 1.0) -> float:
    """Largest 'offset' (m) or 'yaw' (rad) from the grid at which a pressed 2x4 still snaps on."""
    low = 0.0
    high = 3e-3 * scale if kind == 'offset' else np.radians(10)
    for _ in range(7):
        middle = (low + high) / 2
        rig = Rig(dt=dt, scale=scale)
        if kind == 'offset':
            rig.on_studs('b0', x=middle)
        else:
            rig.on_studs('b0', yaw=middle)
        rig.push('b0', -20.0, 0.5)
        if rig.clutch.connections():
            low = middle
        else:
            high = middle
    return low


def tower_drift(dt: float, seconds: float = 10.0) -> float:
    """Largest movement (m) of any brick of a tower of 20 within so many seconds.

    The table is off level by 3 degrees: upright, nothing would pull at the tower sideways and drift
    would be zero for free.
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


def bridge_loads(dt: float, force_n: float = 3.0, at_studs: float = 0.0) -> np.ndarray:
    """Loads on the two links of a 2x6 that lies on two 2x2 towers.

    The towers are 2 studs to either side of its middle. All three are pressed on, out of place by
    up to 1 mm.

    Args:
        dt: Time step, s.
        force_n: It is pulled up with this force,
        at_studs: so many studs from its middle towards the second tower.

    Returns:
        (2, 6), N and N m, in the towers' frames.
    """
    rig = Rig([(2, 2), (2, 2), (2, 6)], dt=dt)
    for name, x, y in (('b0', 1e-3, -2), ('b1', -5e-4, 2)):
        rig.on_studs(name, x=x, y=y * STUD_PITCH_M + 3e-4)
        rig.snap(name)
    rig.put('b2', x=7e-4, z=PLATE_HEIGHT_M + BRICK_HEIGHT_M + STUD_HEIGHT_M)
    rig.snap('b2')
    at = (0, at_studs * STUD_PITCH_M, 0)
    rig.push('b2', force_n, 0.3, at=at)
    rig.push('b2', force_n, 0.5, at=at, hold=True)
    rig.clutch.measure()
    loads = {c['lower']: c['load'] for c in rig.clutch.connections() if c['upper'] == 'b2'}
    return np.array([loads['b0'], loads['b1']])


def broken_link(dt: float, weak: int = 4, height: int = 8) -> tuple[str, str] | None:
    """(lower, upper) of the link that breaks when a tower is pulled at its top.

    Args:
        dt: Time step, s.
        weak: The brick that sits on two studs only.
        height: Number of bricks.
    """
    rig = Rig([(2, 4)] * height, dt=dt, n_slots=height + 2)
    y = 0.0
    for i in range(height):
        if i == weak:
            y += 3 * STUD_PITCH_M  # The next ones are shifted: one row of two studs overlaps.
        rig.put(f'b{i}', y=y, z=PLATE_HEIGHT_M + i * BRICK_HEIGHT_M)
        rig.attach('plate' if i == 0 else f'b{i - 1}', f'b{i}')
    rig.wait(0.4)
    rig.push(f'b{height - 1}', 8.0, 2.0, at=(0, -1.5 * STUD_PITCH_M, 0))
    for _, event, lower, upper in rig.clutch.events:
        if event == 'break':
            return lower, upper
    return None


def cycles(dt: float, n: int = 10) -> int:
    """How many of n insertions and removals of one brick went as they should.

    All numbers have to stay finite.
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
        forgotten = not rig.clutch.links['used'].any()
        good += on and off and forgotten and bool(np.isfinite(rig.data.qpos).all())
    return good


# -- the force table -------------------------------------------------------------------------------
def _row(test: str, dt: float, measured: object, expected: object, unit: str, ok: bool) -> dict:
    return dict(test=test, dt=dt, measured=measured, expected=expected, unit=unit, ok=bool(ok))


def _near(measured: float, expected: float, tolerance: float = 0.05) -> bool:
    return abs(measured / expected - 1) <= tolerance


def force_table(timesteps: Sequence[float] = (0.002, 0.004)) -> Iterator[dict]:
    """Rows of everything above, one after the other.

    Axial forces are measured twice: with an update of the clutch every step, and as World runs it.

    Yields:
        dict(test, dt, measured, expected, unit, ok). `ok` is the requirement: axial forces, peel
        and shear within 5 % of the setting, acceptance within 5 % of the tolerance, drift below
        0.2 mm, a bridge's loads equal, and pulled off its middle those of a lever, within 3 %.
    """
    for dt in timesteps:
        yield from _axial_rows(dt, '', {})
        yield from _axial_rows(dt, ', as in World', AS_WORLD)
        yield from _joint_rows(dt)
        yield from _structure_rows(dt)


def _axial_rows(dt: float, said: str, how: dict[str, float]) -> Iterator[dict]:
    for n in TABLE_STUDS:
        push, pull = axial_forces(n, dt, **how)
        for what, value, setting in (('insertion', push, 1.0), ('straight pull', pull, 2.0)):
            test = f'{what}, {n} studs{said}'
            yield _row(test, dt, value, setting, 'N/stud', _near(value, setting))


def _joint_rows(dt: float) -> Iterator[dict]:
    """One joint: peel, shear, and how far off it still snaps."""
    peel, by_hand = peel_force(dt)
    yield _row('peel a 2x4 at its short edge', dt, peel, by_hand, 'N', _near(peel, by_hand))
    shear = shear_force(dt)
    yield _row('lateral shear of a 2x4', dt, shear, 10.0, 'N/stud', _near(shear, 10.0))
    offset = 1e3 * acceptance('offset', dt)
    yield _row('offset that still snaps', dt, offset, 1.5, 'mm', _near(offset, 1.5))
    yaw = np.degrees(acceptance('yaw', dt))
    yield _row('yaw that still snaps', dt, yaw, 5.0, 'degrees', _near(yaw, 5.0))


def _structure_rows(dt: float) -> Iterator[dict]:
    """Several joints: a tower, a bridge, the weakest link, and ten times the same one."""
    drift = 1e3 * tower_drift(dt)
    yield _row(f'drift of a {TOWER}-brick tower in 10 s', dt, drift, '< 0.2', 'mm', drift < 0.2)
    loads = bridge_loads(dt)[:, 2]
    unequal = 100 * (max(loads) / (sum(loads) / 2) - 1)
    yield _row('bridge: heavier end above the mean', dt, unequal, '< 3', '%', unequal < 3)
    lighter, heavier = bridge_loads(dt, at_studs=1.0)[:, 2]
    # The pull is 3 N, a quarter of the span off its middle.
    lever = 0.75 * 3.0 - MASS_KG[2, 6] * 9.81 / 2
    test = 'bridge pulled a stud off its middle: heavier end'
    ok = _near(heavier, lever, 0.03) and lighter < heavier
    yield _row(test, dt, heavier, lever, 'N', ok)
    link = broken_link(dt)
    found = 'none' if link is None else f'{link[1]} on {link[0]}'
    test = 'weakest link of a tower breaks first'
    yield _row(test, dt, found, 'b4 on b3', '', link == ('b3', 'b4'))
    good = cycles(dt)
    yield _row('insert and remove, 10 times', dt, good, 10, 'times', good == 10)
