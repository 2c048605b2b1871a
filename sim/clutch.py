"""The clutch that holds bricks together: welds that form and break by force.

Dry stud friction cannot be had from rigid contacts at a useful time step (it creeps, or it needs
~100 contact rows per brick), so a brick is one box plus one thin slab that stands for its studs,
and a *pool* of inactive welds is compiled into the model. When an upper brick is pressed onto
aligned studs hard enough, a weld from the pool is pointed at the pair and pulls it into the grid;
when the load on it exceeds what the studs can hold, it lets go again.

Indices: a = lower brick, b = upper brick. Frames and units as in sim/bricks.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.bricks import BOTTOM_GAP_M, STUD_HEIGHT_M, STUD_PITCH_M, STUD_RADIUS_M, Brick
from sim.gl import mujoco
from sim.kinematics import rot_z

WELD_ROWS = np.arange(6)  # solver rows of one weld: force 3, moment 3
# Pads model.exclude_signature; larger than any real signature, it keeps the array sorted.
NO_BODY = (1 << 31) - 1
TOLERANCE_RAD = math.radians(5)  # out of line by more, in yaw or tilt, a brick does not snap on
# One row per weld of the pool.
LINK_DTYPE = [
    ('used', '?'),
    ('loose', '?'),  # broken, and the studs have not come out yet
    ('seated', '?'),  # the snap is over
    ('a', 'i4'),
    ('b', 'i4'),
    ('studs', 'i4'),
    ('over', 'i4'),  # updates in a row in which it was loaded too much
    ('cell', 'f8', 2),
    ('turns', 'i4'),
    ('half', 'f8', 2),  # Middle of the studs to the outermost axes, m.
    ('inertia', 'f8', 2),  # second moments of the friction points, m^2
    ('time', 'f8'),  # s, of the link's own snap or break
    ('rung', 'f8'),  # s, of the last snap in its tower
    ('pos0', 'f8', 3),  # the weld's target when the snap began
    ('quat0', 'f8', 4),
    ('pos1', 'f8', 3),  # The weld's target once it sits on the grid.
    ('quat1', 'f8', 4),
    ('load', 'f8', 6),
    ('use', 'f8'),  # utilisation: 1 breaks
    ('offset', 'f8'),  # m off the grid when it was pressed on
    ('turn', 'f8'),  # rad, likewise
    # Upper bounds of the utilisation per N of pull, per N and per N m in any direction.
    ('per_pull', 'f8'),
    ('per_shear', 'f8'),
    ('per_moment', 'f8'),
]


@dataclass(frozen=True)
class Link:
    """Two bricks whose studs are in, as plain data."""

    lower: str
    upper: str
    studs: int
    cell: tuple[float, float]  # Upper's centre from lower's centre, in studs.
    turns: int  # quarter turns of upper against lower
    loose: bool  # broken; the studs have not come out yet
    offset_m: float  # Distance off the grid when it was pressed on.
    yaw_error: float  # rad, likewise


@dataclass(frozen=True)
class Fit:
    """Where an upper brick would sit on a lower one, in the lower one's frame."""

    cell: np.ndarray  # (2,) studs, of the upper centre from the lower one
    turns: int  # quarter turns
    lo: np.ndarray  # (2,) studs, a corner of where they overlap
    hi: np.ndarray  # (2,) studs, the opposite corner
    error_m: float = 0.0  # sideways, of where it is now
    yaw_error: float = 0.0  # rad
    tilt: float = 0.0  # rad

    @property
    def studs(self) -> int:
        """How many studs are in."""
        nx, ny = np.round(self.hi - self.lo)
        return int(nx * ny)


def pool_xml(n_slots: int) -> tuple[str, str, str]:
    """MJCF of the weld pool: (bodies, excludes, equalities).

    It holds n_slots inactive welds, and twice as many excludes, between dummy bodies.
    """
    pair = 'body1="clutch/dummy_{}" body2="clutch/dummy_{}"'
    bodies = ''
    for i in range(4 * n_slots):
        bodies += f'<body name="clutch/dummy_{i}" pos="0 0 -2"/>'
    excludes = ''
    for k in range(2 * n_slots):
        excludes += f'<exclude {pair.format(2 * k, 2 * k + 1)}/>'
    welds = ''
    for k in range(n_slots):
        welds += (
            f'<weld name="clutch/weld_{k}" {pair.format(2 * k, 2 * k + 1)} active="false"'
            f' solref="0.004 1" solimp="0.9995 0.9999 0.0001 0.5 2"/>'
        )
    return bodies, excludes, welds


class Clutch:
    """The weld pool at work.

    Call `update()` every few physics steps (4-8 ms). `links` is a numpy record array with one row
    per weld of the pool. A snapshot is `links`, `pending`, `events`, `peak_force_n` and the model's
    eq_* and exclude_signature arrays (World.state).
    """

    DWELL = 2  # consecutive updates a condition must hold: rides over single-step contact spikes
    SNAP_TIME_S = 0.04  # the weld's target moves from the pose found to the grid pose in this time
    # A link does not break so soon after a snap: the pull into the grid rings in arms and tower.
    GRACE_S = 0.2
    # But at this utilisation (the ringing reaches 12) it breaks at once, however young.
    OVERLOAD = 30.0
    # Of bricks. A fall off the table ends at 4 m/s; what is squeezed out from under a palm leaves
    # at a hundred, and is deep inside the floor one step later.
    MAX_SPEED_M_S = 8.0
    MAX_SPIN_RAD_S = 60.0  # Welds at 4 ms wind up what turns faster, until it diverges.
    RESEAT_AFTER_S = 0.05
    PRESSED_GAP_M = 0.0006  # A brick so far above the stud tops touches them.
    IN_SEAT_GAP_M = 5e-5  # A brick that another link holds is at most so far above its seat.
    RESEAT_GAP_M = 3e-4  # So far above its seat a brick's studs have not come out.

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        bricks: Sequence[Brick],
        scale: float = 1.0,
        insertion_force_n: float = 1.0,
        pull_force_n: float = 2.0,
        shear_force_n: float = 10.0,
        tolerance_xy_m: float = 0.0015,
        tolerance_rad: float = TOLERANCE_RAD,
    ):
        """Take over the weld pool of a model.

        Args:
            model: Compiled from brick_xml of the bricks and pool_xml.
            data: Its state.
            bricks: All bricks of the model.
            scale: 1 for LEGO, 2 for DUPLO.
            insertion_force_n: Axial force per stud to seat (StableLego reports 0.98 N of friction
                per knob, hobbyists 2-5 N).
            pull_force_n: Axial force per stud to pull off.
            shear_force_n: Sideways force per stud to push off.
            tolerance_xy_m: How far off the grid a brick still snaps on; scales with the bricks.
            tolerance_rad: Likewise, in yaw and tilt.
        """
        if model.opt.cone != mujoco.mjtCone.mjCONE_ELLIPTIC:
            raise ValueError(
                'the clutch reads contact forces of elliptic cones: set option cone="elliptic"'
            )
        self.model = model
        self.data = data
        self.names = [brick.name for brick in bricks]
        # (N, 3): nx, ny, height in m
        self.dims = np.array([[*brick.studs, brick.height_m(scale)] for brick in bricks])
        self.body_id = np.array([model.body(name).id for name in self.names])
        self.slab_id = np.array([model.body(f'{name}/slab').id for name in self.names])
        self.brick_of_geom = {}
        for i, name in enumerate(self.names):
            for part in ('box', 'slab'):
                self.brick_of_geom[model.geom(f'{name}/{part}').id] = i
        welds = [e for e in range(model.neq) if model.equality(e).name.startswith('clutch/weld_')]
        self.slot_eq_id = np.array(welds)
        first = model.body_dofadr[self.body_id]  # -1: a plate that is fixed
        self._vadr = (first[first >= 0][:, None] + np.arange(6)).ravel()
        self.pitch_m = scale * STUD_PITCH_M
        self.radius_m = scale * STUD_RADIUS_M
        self.stud_height_m = scale * STUD_HEIGHT_M
        self.insertion_force_n = insertion_force_n
        self.pull_force_n = pull_force_n
        self.shear_force_n = shear_force_n
        self.tolerance_xy_m = tolerance_xy_m * scale
        self.tolerance_rad = tolerance_rad
        self.links = np.zeros(len(self.slot_eq_id), dtype=LINK_DTYPE)
        # For each brick, updates in a row that it was pressed hard enough onto what is below it.
        self.pending = np.zeros(len(bricks), int)
        self.peak_force_n = 0.0  # largest force a seated link has carried
        # (time s, 'form' | 'break' | 'reseat' | 'part', lower, upper)
        self.events: list[tuple[float, str, str, str]] = []
        self._kept = self._own_excludes()
        self._snapshot: tuple[Link, ...] | None = None
        self._write_excludes()
        self.changed()

    def _own_excludes(self) -> np.ndarray:
        """Signatures of the excludes that the robot brings; those of the pool are of dummies."""
        model = self.model
        bodies = [model.body(i) for i in range(model.nbody)]
        dummies = [body.id for body in bodies if body.name.startswith('clutch/')]
        signature = model.exclude_signature
        lower = signature >> 16
        return signature[~np.isin(lower, dummies) & (signature < NO_BODY)]

    def reset(self) -> None:
        """Undo all links and forget what has happened."""
        self.links[:] = 0
        self.pending[:] = 0
        self.events.clear()
        self.peak_force_n = 0.0
        self.data.eq_active[self.slot_eq_id] = 0
        self._write_excludes()
        self.changed()

    def forget(self) -> None:
        """Forget what has happened so far; links stay."""
        self.events.clear()
        self.pending[:] = 0
        self.changed()

    # -- queries -----------------------------------------------------------------------------------
    def snapshot(self) -> tuple[Link, ...]:
        """All live links, also loose ones; the same object until one of them changes."""
        if self._snapshot is None:
            self._snapshot = tuple(map(self._as_link, self.links[self.links['used']]))
        return self._snapshot

    def _as_link(self, row: np.void) -> Link:
        x, y = row['cell'].tolist()
        return Link(
            lower=self.names[row['a']],
            upper=self.names[row['b']],
            studs=int(row['studs']),
            cell=(x, y),
            turns=int(row['turns']),
            loose=bool(row['loose']),
            offset_m=float(row['offset']),
            yaw_error=float(row['turn']),
        )

    def connections(self) -> list[dict]:
        """All links that hold, with their loads.

        Returns:
            One dict per link: lower, upper, studs, cell (upper's centre in studs from lower's
            centre), turns (quarter turns), and as of the last `measure` load (Fx Fy Fz Mx My Mz on
            the upper brick in the lower one's frame, N and N m) and utilisation (1 = breaks).
        """
        found = []
        for row in self.links[self.links['used'] & ~self.links['loose']]:
            connection = dict(
                lower=self.names[row['a']],
                upper=self.names[row['b']],
                studs=int(row['studs']),
                cell=tuple(row['cell'].tolist()),
                turns=int(row['turns']),
                load=tuple(row['load'].tolist()),
                utilisation=float(row['use']),
            )
            found.append(connection)
        return found

    def relative_pose(self, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        """Pose of brick b in brick a's frame: position (3,) m, rotation matrix (3, 3)."""
        at_a = self.data.xpos[self.body_id[a]]
        at_b = self.data.xpos[self.body_id[b]]
        Ra = self.data.xmat[self.body_id[a]].reshape(3, 3)
        Rb = self.data.xmat[self.body_id[b]].reshape(3, 3)
        return Ra.T @ (at_b - at_a), Ra.T @ Rb

    def _gap(self, a: int, fit: Fit, pos: np.ndarray, R: np.ndarray) -> float:
        """How far brick b's bottom is above brick a's top, m, where they overlap.

        In the middle of a long brick that is pressed on at its end, a degree of tilt is 1.4 mm:
        measured there it never snapped.
        """
        lever = ((fit.lo + fit.hi) / 2 - fit.cell) * self.pitch_m  # along a's axes
        x, y, z = R[:, 2]  # normal of a plane through pos
        lowered = (x * lever[0] + y * lever[1]) / z
        return pos[2] - lowered - self.dims[a, 2]

    def nearest_cell(self, a: int, b: int, pos: np.ndarray, R: np.ndarray) -> Fit | None:
        """Where b would sit on a; None if no stud overlaps.

        Args:
            a: The lower brick.
            b: The upper brick.
            pos: Position of b in a's frame, (3,) m.
            R: Rotation of b in a's frame, (3, 3).
        """
        yaw = math.atan2(R[1, 0], R[0, 0])
        turns = round(yaw / (math.pi / 2))
        sizes_a = self.dims[a].tolist()
        sizes_b = self.dims[b, :2].tolist()
        if turns % 2:
            sizes_b.reverse()
        cell = []
        lo = []
        hi = []
        off_m = []
        for at, na, nb in zip(pos[:2].tolist(), sizes_a, sizes_b):
            parity = ((na - nb) / 2) % 1.0
            middle = round(at / self.pitch_m - parity) + parity
            low = max(-na / 2, middle - nb / 2)
            high = min(na / 2, middle + nb / 2)
            if high - low < 0.5:
                return None
            cell.append(middle)
            lo.append(low)
            hi.append(high)
            off_m.append(at - middle * self.pitch_m)
        return Fit(
            cell=np.array(cell),
            turns=turns,
            lo=np.array(lo),
            hi=np.array(hi),
            error_m=math.hypot(*off_m),
            yaw_error=yaw - turns * math.pi / 2,
            tilt=math.acos(min(max(R[2, 2], -1.0), 1.0)),
        )

    # -- one update --------------------------------------------------------------------------------
    def update(self) -> None:
        """Form, load, break and re-seat links from the state after a physics step."""
        if self._ramping:
            self._ramp()
        if len(self._seated):
            self._break()
        self._brake()
        forces = self._contact_forces()
        if self._n_loose:
            self._settle_loose(forces)
        if forces or self._n_pending:
            self._form(forces)

    def changed(self) -> None:
        """Take note that `links` or `pending` have been written.

        It refreshes what `update` looks at every time, a hundred times per simulated second:
        `update` may not even count array elements.
        """
        links = self.links
        held = links['used'] & ~links['loose']
        self._snapshot = None
        self._seated = np.flatnonzero(held & links['seated'])
        self._seated_eq = self.slot_eq_id[self._seated]
        seated = links[self._seated]
        keys = ('rung', 'per_pull', 'per_shear', 'per_moment')
        columns = [self.body_id[seated['a']].tolist(), *(seated[key].tolist() for key in keys)]
        self._bound = list(zip(*columns))
        self._rows: list[int] = []
        self._ramping = bool((held & ~links['seated']).any())
        self._n_loose = int(links['loose'].sum())
        self._n_pending = int((self.pending > 0).sum())
        self._over = bool(links['over'].any())
        self._linked = {(int(row['a']), int(row['b'])) for row in links[links['used']]}

    def _contact_forces(self) -> dict[tuple[int, int], np.ndarray]:
        """{(i, j): (3,) N} summed normal contact force between bricks i < j, world frame."""
        data = self.data
        of = self.brick_of_geom
        forces: dict[tuple[int, int], np.ndarray] = {}
        if data.ncon == 0:
            return forces
        contact = data.contact
        for c, (g, h) in enumerate(contact.geom.tolist()):  # a dozen contacts: quicker than numpy
            if g in of and h in of and contact.efc_address[c] >= 0:
                key = (min(of[g], of[h]), max(of[g], of[h]))
                force = data.efc_force[contact.efc_address[c]] * contact.frame[c, :3]
                forces[key] = forces.get(key, 0) + force
        return forces

    def _axial(self, force: np.ndarray, a: int) -> float:
        return abs(force @ self.data.xmat[self.body_id[a]].reshape(3, 3)[:, 2])

    def _fits(self, fit: Fit) -> bool:
        return (
            fit.error_m <= self.tolerance_xy_m
            and abs(fit.yaw_error) <= self.tolerance_rad
            and fit.tilt <= self.tolerance_rad
        )

    # -- forming -----------------------------------------------------------------------------------
    def _form(self, forces: dict) -> None:
        """Link bricks that have been pressed onto studs hard enough for DWELL updates."""
        by_upper: dict[int, list[tuple[int, float, Fit]]] = {}
        for pair, force in forces.items():
            if pair in self._linked or pair[::-1] in self._linked:
                continue
            for a, b in (pair, pair[::-1]):
                fit = self._touching(a, b)
                if fit is not None:
                    by_upper.setdefault(b, []).append((a, self._axial(force, a), fit))
        for b in np.flatnonzero(self.pending):
            if b not in by_upper:
                self.pending[b] = 0
        for b, lowers in by_upper.items():
            studs = sum(fit.studs for _, _, fit in lowers)
            pressed_n = sum(force for _, force, _ in lowers)
            enough = pressed_n >= self.insertion_force_n * studs
            self.pending[b] = self.pending[b] + 1 if enough else 0
            if self.pending[b] >= self.DWELL:
                self.pending[b] = 0
                for a, _, fit in lowers:
                    self.connect(a, b, fit)
        self._n_pending = int((self.pending > 0).sum())

    def _touching(self, a: int, b: int) -> Fit | None:
        """Where b sits on the studs of a, aligned with them; None where it does not."""
        pos, R = self.relative_pose(a, b)
        fit = self.nearest_cell(a, b, pos, R)
        if fit is None or not self._fits(fit):
            return None
        above_studs = self._gap(a, fit, pos, R) + BOTTOM_GAP_M - self.stud_height_m
        return fit if -self.stud_height_m < above_studs < self.PRESSED_GAP_M else None

    def attach(self, lower: str, upper: str) -> None:
        """Link two bricks that have been placed on each other's grid, without pressing."""
        a = self.names.index(lower)
        b = self.names.index(upper)
        fit = self.nearest_cell(a, b, *self.relative_pose(a, b))
        assert fit is not None, f'{upper} is not on the studs of {lower}'
        self.connect(a, b, fit)

    def connect(self, a: int, b: int, fit: Fit) -> None:
        """Point a free weld at bricks a (lower) and b (upper), with the grid pose of `fit`."""
        free = np.flatnonzero(~self.links['used'])
        if not len(free):
            raise RuntimeError(
                f'all {len(self.links)} clutch welds are in use; raise n_slots in scene.build_model'
            )
        slot = free[0]
        # The anchor is the middle of the studs, on the lower brick's top; in a's frame.
        middle = (fit.lo + fit.hi) / 2 * self.pitch_m
        anchor = np.array([*middle, self.dims[a, 2]])
        yaw = fit.turns * np.pi / 2
        origin_b = [*fit.cell * self.pitch_m, self.dims[a, 2]]
        eq = self.slot_eq_id[slot]
        model = self.model
        model.eq_obj1id[eq] = self.body_id[a]
        model.eq_obj2id[eq] = self.body_id[b]
        model.eq_data[eq] = 0
        model.eq_data[eq, :3] = rot_z(yaw).T @ (anchor - origin_b)
        model.eq_data[eq, 10] = 1.0
        row = self.links[slot]
        row['used'] = True
        row['loose'] = False
        row['a'] = a
        row['b'] = b
        row['cell'] = fit.cell
        row['turns'] = fit.turns
        row['over'] = 0
        row['load'] = 0
        row['use'] = 0
        row['offset'] = fit.error_m
        row['turn'] = fit.yaw_error
        row['pos1'] = anchor
        row['quat1'] = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        self._set_strength(row, *np.round(fit.hi - fit.lo))
        self._start(slot, 'form')

    def _set_strength(self, row: np.void, nx: float, ny: float) -> None:
        """Write what nx by ny studs hold.

        They are a bolt group: four friction points per stud, a stud radius from its axis along x
        and y. Second moments of n studs in a row of pitch p about the middle: n (n^2 - 1) p^2 / 12.
        """
        n = nx * ny
        p = self.pitch_m
        r = self.radius_m
        sum_xx = 4 * ny * nx * (nx**2 - 1) * p**2 / 12 + 2 * n * r**2
        sum_yy = 4 * nx * ny * (ny**2 - 1) * p**2 / 12 + 2 * n * r**2
        half_x = (nx - 1) * p / 2
        half_y = (ny - 1) * p / 2
        row['studs'] = n
        row['half'] = [half_x, half_y]
        row['inertia'] = [sum_xx, sum_yy]
        row['per_pull'] = 1 / (n * self.pull_force_n)
        row['per_shear'] = 1 / (n * self.shear_force_n)
        lever = (half_x + r) / sum_xx + (half_y + r) / sum_yy
        row['per_moment'] = lever * 4 / self.pull_force_n + 1 / (n * self.shear_force_n * 4 * r)

    def _start(self, slot: int, event: str) -> None:
        """Begin to pull a link's bricks into the grid, from where they are."""
        row = self.links[slot]
        eq = self.slot_eq_id[slot]
        pos, R = self.relative_pose(row['a'], row['b'])
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, R.ravel())
        row['quat0'] = quat if quat @ row['quat1'] >= 0 else -quat
        row['pos0'] = pos + R @ self.model.eq_data[eq, :3]
        row['time'] = self.data.time
        row['seated'] = False
        in_tower = np.isin(self.links['a'], self._tower_of(row)) & self.links['used']
        self.links['rung'][in_tower] = self.data.time
        self.data.eq_active[eq] = 1
        self._note(event, row)
        self._write_excludes()
        self.changed()
        self._ramp()

    def _tower_of(self, row: np.void) -> list[int]:
        """All bricks that hang together with a link's: all of them ring when it snaps."""
        tower = {row['a'], row['b']}
        size = 0
        while len(tower) > size:
            size = len(tower)
            for link in self.links[self.links['used']]:
                if link['a'] in tower or link['b'] in tower:
                    tower |= {link['a'], link['b']}
        return list(tower)

    def _note(self, event: str, row: np.void) -> None:
        names = self.names[row['a']], self.names[row['b']]
        self.events.append((float(self.data.time), event, *names))

    def _ramp(self) -> None:
        """Move the targets of snapping welds on towards the grid."""
        links = self.links
        for slot in np.flatnonzero(links['used'] & ~links['seated'] & ~links['loose']):
            row = links[slot]
            eq = self.slot_eq_id[slot]
            s = min(1.0, (self.data.time - row['time']) / self.SNAP_TIME_S)
            self.model.eq_data[eq, 3:6] = (1 - s) * row['pos0'] + s * row['pos1']
            quat = (1 - s) * row['quat0'] + s * row['quat1']
            self.model.eq_data[eq, 6:10] = quat / np.linalg.norm(quat)
            row['seated'] = s >= 1
            if s >= 1:
                self.changed()

    # -- loads and breaking ------------------------------------------------------------------------
    def _locate(self) -> bool:
        """Find the solver's rows of the seated links, mostly where they were.

        Returns:
            False if one of them is not there.
        """
        ids = self.data.efc_id
        ne = self.data.ne
        seated = self._seated_eq
        rows = self._rows
        if rows and rows[-1] < ne and all(ids[row] == eq for row, eq in zip(rows, seated)):
            return True
        self._rows = np.searchsorted(ids[:ne], seated).tolist()  # rows are ordered by equality id
        if not self._rows or self._rows[-1] >= ne:
            return False
        return bool((ids[self._rows] == seated).all())

    def measure(self) -> tuple[np.ndarray, np.ndarray]:
        """Write load and utilisation of every seated link into `links`.

        Returns:
            Their slots (n,) and utilisations (n,).
        """
        data = self.data
        slots = self._seated
        if not self._locate():
            return slots[:0], np.zeros(0)
        efc = data.efc_force[np.array(self._rows)[:, None] + WELD_ROWS]  # (n, 6) equality forces
        link = self.links[slots]
        Ra = data.xmat[self.body_id[link['a']]].reshape(-1, 3, 3)
        Rb = data.xmat[self.body_id[link['b']]].reshape(-1, 3, 3)
        F = np.einsum('nji,nj->ni', Ra, efc[:, :3])  # Forces in the lower frame.
        # A weld's rotational rows act on half the quaternion difference in the second body's frame.
        M = np.einsum('nji,njk,nk->ni', Ra, Rb, 0.5 * efc[:, 3:])
        n = link['studs']
        # Axial force of friction point (x, y): F_z/4n + x cx + y cy with cx = -My/sum x^2, cy =
        # Mx/sum y^2; the largest is at a corner stud, on its radius.
        cx = np.abs(M[:, 1]) / link['inertia'][:, 0]
        cy = np.abs(M[:, 0]) / link['inertia'][:, 1]
        tension = (
            F[:, 2] / (4 * n)
            + cx * link['half'][:, 0]
            + cy * link['half'][:, 1]
            + self.radius_m * np.maximum(cx, cy)
        )
        use = (
            np.maximum(tension, 0) / (self.pull_force_n / 4)
            + np.hypot(F[:, 0], F[:, 1]) / (n * self.shear_force_n)
            + np.abs(M[:, 2]) / (n * self.shear_force_n * 4 * self.radius_m)
        )
        self.links['load'][slots] = np.concatenate([F, M], 1)
        self.links['use'][slots] = use
        return slots, use

    def _break(self) -> None:
        """Let links go that have been loaded too much for DWELL updates."""
        if not self._locate() or not self._close_to_breaking():
            return
        slots, use = self.measure()
        late = self.data.time - self.links['rung'][slots] > self.GRACE_S
        over = np.where((use > 1) & late, self.links['over'][slots] + 1, 0)
        over[use > self.OVERLOAD] = self.DWELL
        self.links['over'][slots] = over
        self._over = bool(over.any())
        broken = slots[over >= self.DWELL]
        for slot in broken:
            row = self.links[slot]
            row['loose'] = True
            row['time'] = self.data.time
            self.data.eq_active[self.slot_eq_id[slot]] = 0
            self._note('break', row)
        if len(broken):
            self._write_excludes()
            self.changed()

    def _close_to_breaking(self) -> bool:
        """Whether a bound of the utilisation says that some link might break.

        Nearly always nothing is close to breaking, and norms tell. A few links are quicker than
        numpy in plain Python: 1 us each, where the same in arrays takes 11.
        """
        efc = self.data.efc_force
        xmat = self.data.xmat
        now = self.data.time
        close = self._over
        for row, (lower, rung, per_pull, per_shear, per_moment) in zip(self._rows, self._bound):
            fx, fy, fz, *m = efc[row : row + 6].tolist()
            force = math.hypot(fx, fy, fz)
            moment = 0.5 * math.hypot(*m)
            self.peak_force_n = max(self.peak_force_n, force)
            limit = 1.0 if now - rung > self.GRACE_S else self.OVERLOAD
            if not close and force * (per_pull + per_shear) + moment * per_moment > limit:
                zx, zy, zz = xmat[lower, 2::3].tolist()  # a press pulls at nothing
                pull = max(0.0, fx * zx + fy * zy + fz * zz)
                close = pull * per_pull + force * per_shear + moment * per_moment > limit
        return close

    def _brake(self) -> None:
        """No brick moves faster than the time step can follow."""
        v = self.data.qvel[self._vadr]
        if v.dot(v) > self.MAX_SPEED_M_S**2:  # half a microsecond, nearly always all there is to do
            v = v.reshape(-1, 2, 3)
            speed = np.linalg.norm(v, axis=2, keepdims=True)
            limit = np.array([[self.MAX_SPEED_M_S], [self.MAX_SPIN_RAD_S]])
            self.data.qvel[self._vadr] = (v * (limit / np.maximum(speed, limit))).ravel()

    def _settle_loose(self, forces: dict) -> None:
        """Let broken links hold again, or part for good.

        A broken link keeps its exclude (the studs are still inside) until the bricks have parted.
        Where they have not moved, the studs have not come out: it holds again once they rest on
        each other. (Asking for the force of an insertion left bricks that look joined and are not.)
        """
        parted = False
        for slot in np.flatnonzero(self.links['loose']).tolist():
            row = self.links[slot]
            a = int(row['a'])
            b = int(row['b'])
            pos, R = self.relative_pose(a, b)
            fit = self.nearest_cell(a, b, pos, R)
            gap_m = np.inf if fit is None else self._gap(a, fit, pos, R)
            if fit is None or gap_m > 0.95 * self.stud_height_m or (fit.cell != row['cell']).any():
                row['used'] = False
                row['loose'] = False
                parted = True
                self._note('part', row)
                continue
            # Held in its seat by another link, a brick does not touch this one.
            in_seat = gap_m < self.IN_SEAT_GAP_M and (self.links['b'][self._seated] == b).any()
            resting = in_seat or (min(a, b), max(a, b)) in forces
            late = self.data.time - row['time'] > self.RESEAT_AFTER_S
            same_turn = (fit.turns - row['turns']) % 4 == 0
            in_place = gap_m < self.RESEAT_GAP_M and self._fits(fit) and same_turn
            if in_place and late and resting:
                row['loose'] = False
                row['over'] = 0
                self._start(slot, 'reseat')
        if parted:
            self._write_excludes()
            self.changed()

    def _write_excludes(self) -> None:
        """Switch contact off between bricks that are linked.

        The lower brick's stud slab is inside the upper brick's box while linked: that body pair is
        excluded. While the weld holds, the two boxes are as well: contact and weld of a pair that
        spins, at 50 rad/s already, fight until the simulation diverges.
        """
        rows = self.links[self.links['used']]
        held = rows[~rows['loose']]
        i = np.concatenate([self.slab_id[rows['a']], self.body_id[held['a']]])
        j = np.concatenate([self.body_id[rows['b']], self.body_id[held['b']]])
        pairs = (np.minimum(i, j) << 16) + np.maximum(i, j)
        signature = np.sort(np.concatenate([self._kept, pairs]))  # MuJoCo searches by bisection
        self.model.exclude_signature[:] = NO_BODY
        self.model.exclude_signature[: len(signature)] = signature
