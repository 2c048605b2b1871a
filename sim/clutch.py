"""LEGO bricks and the clutch that holds them: geometry, MJCF text, and welds that form and break by
force.

Dry stud friction cannot be had from rigid contacts at a useful time step (it creeps, or it needs
~100 contact rows per brick), so a brick is one box plus one thin slab that stands for its studs,
and a *pool* of inactive welds is compiled into the model. When an upper brick is pressed onto
aligned studs hard enough, a weld from the pool is pointed at the pair and pulls it into the grid;
when the load on it exceeds what the studs can hold, it lets go again.

Frames: a brick's origin is the middle of its bottom face, z up along the studs. Indices a = lower
brick, b = upper brick. SI units throughout. Dimensions of the LEGO system: pitch 8 mm, stud 4.8 x
1.7 mm, brick height 9.6 mm, plate 3.2 mm; DUPLO is the same system at twice the size.
"""

import math
from dataclasses import dataclass

import numpy as np

from sim.gl import mujoco

STUD_PITCH_M = 0.008
STUD_HEIGHT_M = 0.0017
STUD_RADIUS_M = 0.0024
BRICK_HEIGHT_M = 0.0096
PLATE_HEIGHT_M = 0.0032
# The collision box is smaller by SIDE_GAP_M per side, so that neighbours on the grid do not touch,
# and starts BOTTOM_GAP_M above the bottom face: a seated brick carries load by its weld, not by
# contact.
SIDE_GAP_M = 3e-4
BOTTOM_GAP_M = 1e-4
# weighed LEGO bricks; others from their stud count
MASS_KG = {(2, 2): 0.00115, (2, 4): 0.00216, (2, 6): 0.00323}
MASS_PER_STUD_KG = 0.0003
DUPLO_MASS_EXPONENT = (
    2.5  # a 2x4 DUPLO brick weighs ~12 g against 2.2 g: walls do not thicken with size
)
CONTACT = 'solref="0.004 1" solimp="0.98 0.995 0.0005 0.5 2" friction="0.6 0.002 0.0001" condim="4"'
# pads model.exclude_signature; larger than any real signature, keeps the array sorted
WELD_ROWS = np.arange(6)  # solver rows of one weld: force 3, moment 3
NO_BODY = (1 << 31) - 1


@dataclass(frozen=True)
class Brick:
    """A brick type instance: `studs` (nx, ny) along its own x and y, plate or brick height, RGBA
    text; `at_m`: where it is screwed to the table if it is fixed.
    """

    name: str
    studs: tuple
    rgba: str
    plate: bool = False
    fixed: bool = False
    at_m: tuple = (0.34, 0)

    def height_m(self, scale):
        return scale * (PLATE_HEIGHT_M if self.plate else BRICK_HEIGHT_M)


def brick_xml(brick, scale, pos=(0, 0, 0)):
    """MJCF body of a brick. The stud slab sits in a child body because excludes work between
    bodies, not geoms.
    """
    (nx, ny), name, h, pitch = brick.studs, brick.name, brick.height_m(scale), scale * STUD_PITCH_M
    mass = (
        MASS_KG.get(tuple(sorted(brick.studs)), MASS_PER_STUD_KG * nx * ny)
        * scale**DUPLO_MASS_EXPONENT
    )
    mass *= 0.45 if brick.plate else 1
    box = f'{nx * pitch / 2 - SIDE_GAP_M:.6g} {ny * pitch / 2 - SIDE_GAP_M:.6g} {(h - BOTTOM_GAP_M) / 2:.6g}'
    r = scale * STUD_RADIUS_M
    sh = scale * STUD_HEIGHT_M
    slab = f'{(nx - 1) * pitch / 2 + r:.6g} {(ny - 1) * pitch / 2 + r:.6g} {sh / 2:.6g}'
    studs = ''.join(
        f'<geom type="cylinder" size="{r:.6g} {sh / 2:.6g}" rgba="{brick.rgba}" mass="0" contype="0"'
        f' conaffinity="0" group="2"'
        f' pos="{(i - (nx - 1) / 2) * pitch:.6g} {(j - (ny - 1) / 2) * pitch:.6g} {h + sh / 2:.6g}"/>'
        for i in range(nx)
        for j in range(ny)
    )
    joint = '' if brick.fixed else '<freejoint/>'
    return (
        f'<body name="{name}" pos="{pos[0]} {pos[1]} {pos[2]}">{joint}'
        f'<geom name="{name}/box" type="box" size="{box}" pos="0 0 {(h + BOTTOM_GAP_M) / 2:.6g}"'
        f' rgba="{brick.rgba}" mass="{0.9 * mass:.6g}" {CONTACT}/>{studs}'
        f'<body name="{name}/slab">'
        f'<geom name="{name}/slab" type="box" size="{slab}" pos="0 0 {h + sh / 2:.6g}"'
        f' mass="{0.1 * mass:.6g}" group="3" rgba="0 1 0 .3" {CONTACT}/></body></body>'
    )


def pool_xml(n_slots):
    """(bodies, excludes, equalities) MJCF of the weld pool:
    n_slots inactive welds, and twice as many excludes, between dummy bodies.
    """
    bodies = ''.join(f'<body name="clutch/dummy_{i}" pos="0 0 -2"/>' for i in range(4 * n_slots))
    pair = 'body1="clutch/dummy_{}" body2="clutch/dummy_{}"'
    excludes = ''.join(f'<exclude {pair.format(2 * k, 2 * k + 1)}/>' for k in range(2 * n_slots))
    welds = ''.join(
        f'<weld name="clutch/weld_{k}" {pair.format(2 * k, 2 * k + 1)} active="false"'
        f' solref="0.004 1" solimp="0.9995 0.9999 0.0001 0.5 2"/>'
        for k in range(n_slots)
    )
    return bodies, excludes, welds


def wrap(angle, period=2 * np.pi):
    """Angle(s) in rad brought into [-period/2, period/2)."""
    return (angle + period / 2) % period - period / 2


class Clutch:
    """The weld pool at work. Call `update()` every few physics steps (4-8 ms); `links` is a numpy
    record array with one row per pool slot. A snapshot is `links`, `pending`, `events`,
    `peak_force_n` and the model's eq_* and exclude_signature arrays (World.state).

    insertion_force_n, pull_force_n: axial force per stud to seat and to pull off (StableLego
    reports 0.98 N of friction per knob, hobbyists 2-5 N). shear_force_n: per stud. tolerance_xy_m
    scales with the bricks.
    """

    DWELL = 2  # consecutive updates a condition must hold: rides over single-step contact spikes
    SNAP_TIME_S = (
        0.04  # the weld's target moves from the pose found to the grid pose over this time
    )
    GRACE_S = (
        0.2  # no breaking so soon after a snap: the pull into the grid rings in arms and tower
    )
    OVERLOAD = (
        30.0  # but at this utilisation (the ringing reaches 12) it breaks at once, however young
    )
    # Of bricks. A fall off the table ends at 4 m/s; what is squeezed out from under a palm leaves
    # at a hundred, and is deep inside the floor one step later.
    MAX_SPEED_M_S = 8.0
    MAX_SPIN_RAD_S = 60.0  # at 4 ms welds wind up what turns faster, until it diverges
    RESEAT_AFTER_S = 0.05

    def __init__(
        self,
        model,
        data,
        bricks,
        scale=1.0,
        insertion_force_n=1.0,
        pull_force_n=2.0,
        shear_force_n=10.0,
        tolerance_xy_m=0.0015,
        tolerance_rad=np.radians(5),
    ):
        if model.opt.cone != mujoco.mjtCone.mjCONE_ELLIPTIC:
            raise ValueError(
                'the clutch reads contact forces of elliptic cones: set option cone="elliptic"'
            )
        self.model = model
        self.data = data
        self.names = [b.name for b in bricks]
        self.dims = np.array(
            [[*b.studs, b.height_m(scale)] for b in bricks]
        )  # (N, 3): nx, ny, height in m
        self.body_id = np.array([model.body(n).id for n in self.names])
        self.slab_id = np.array([model.body(n + '/slab').id for n in self.names])
        self.brick_of_geom = {
            model.geom(f'{n}/{part}').id: i
            for i, n in enumerate(self.names)
            for part in ('box', 'slab')
        }
        self.slot_eq_id = np.array(
            [e for e in range(model.neq) if model.equality(e).name.startswith('clutch/weld_')]
        )
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
        self.links = np.zeros(
            len(self.slot_eq_id),
            dtype=[
                ('used', '?'),
                ('loose', '?'),
                ('seated', '?'),
                ('a', 'i4'),
                ('b', 'i4'),
                ('studs', 'i4'),
                ('over', 'i4'),
                ('cell', 'f8', 2),
                ('turns', 'i4'),
                ('half', 'f8', 2),
                ('inertia', 'f8', 2),
                ('time', 'f8'),
                ('rung', 'f8'),  # of the link's own snap, of the last one in its tower
                ('pos0', 'f8', 3),
                ('quat0', 'f8', 4),
                ('pos1', 'f8', 3),
                ('quat1', 'f8', 4),
                ('load', 'f8', 6),
                ('use', 'f8'),
                ('offset', 'f8'),
                ('turn', 'f8'),
                ('per_pull', 'f8'),
                ('per_shear', 'f8'),
                ('per_moment', 'f8'),
            ],
        )
        self.pending = np.zeros(
            len(bricks), int
        )  # updates in a row that upper b was pressed hard enough
        self.peak_force_n = 0.0  # largest force a seated link has carried
        self.events = []  # (time s, 'form' | 'break' | 'reseat' | 'part', lower, upper)
        # the robot's own; those of the pool are between dummies
        dummies = [
            model.body(i).id for i in range(model.nbody) if model.body(i).name.startswith('clutch/')
        ]
        lower = model.exclude_signature >> 16
        self._kept = model.exclude_signature[
            ~np.isin(lower, dummies) & (model.exclude_signature < NO_BODY)
        ]
        self._write_excludes()
        self.changed()

    def reset(self):
        self.links[:] = 0
        self.pending[:] = 0
        self.events.clear()
        self.peak_force_n = 0.0
        self.data.eq_active[self.slot_eq_id] = 0
        self._write_excludes()
        self.changed()

    # -- queries ---------------------------------------------------------------------------------------------
    def connections(self, loose=False):
        """List of dicts, one per live link: lower, upper, studs, cell (upper's centre in studs from
        lower's centre), turns (quarter turns), and as of the last `measure`: load (Fx Fy Fz Mx My
        Mz on it in the lower brick's frame, N and N m) and utilisation (1 = breaks). loose: also
        links that are broken, their studs still in.
        """
        return [
            dict(
                lower=self.names[r['a']],
                upper=self.names[r['b']],
                studs=int(r['studs']),
                cell=tuple(float(c) for c in r['cell']),
                turns=int(r['turns']),
                load=tuple(float(x) for x in r['load']),
                utilisation=float(r['use']),
            )
            for r in self.links[self.links['used'] & (loose | ~self.links['loose'])]
        ]

    def link(self, lower, upper, loose=False):
        """The live link's record, or None; loose: also one that is broken, its studs still in."""
        a = self.names.index(lower)
        b = self.names.index(upper)
        if (a, b) not in self._linked:
            return None
        for r in self.links:
            if r['used'] and (loose or not r['loose']) and r['a'] == a and r['b'] == b:
                return r
        return None

    def relative_pose(self, a, b):
        """Pose of brick b in brick a's frame: position (3,) m, rotation matrix (3, 3)."""
        Ra, Rb = (self.data.xmat[self.body_id[i]].reshape(3, 3) for i in (a, b))
        return Ra.T @ (self.data.xpos[self.body_id[b]] - self.data.xpos[self.body_id[a]]), Ra.T @ Rb

    def _gap(self, a, fit, pos, R):
        """How far brick b's bottom is above brick a's top, m, where they overlap. (In the middle of
        a long brick that is pressed on at its end, a degree of tilt is 1.4 mm: measured there it
        never snapped.)
        """
        lever = ((fit['lo'] + fit['hi']) / 2 - fit['cell']) * self.pitch_m  # along a's axes
        # a plane through pos with normal R z
        return pos[2] - (R[0, 2] * lever[0] + R[1, 2] * lever[1]) / R[2, 2] - self.dims[a, 2]

    def nearest_cell(self, a, b, pos, R):
        """Where b would sit on a: dict(cell studs, turns, error_m, yaw_error, tilt, lo, hi studs)
        or None if no stud overlaps.
        """
        yaw = math.atan2(R[1, 0], R[0, 0])
        cell = []
        lo = []
        hi = []
        off = []
        turns = round(yaw / (math.pi / 2))
        for at, na, nb in zip(
            pos[:2].tolist(),
            self.dims[a].tolist(),
            self.dims[b, :2].tolist()[:: -1 if turns % 2 else 1],
        ):
            parity = ((na - nb) / 2) % 1.0
            cell.append(round(at / self.pitch_m - parity) + parity)
            lo.append(max(-na / 2, cell[-1] - nb / 2))
            hi.append(min(na / 2, cell[-1] + nb / 2))
            off.append(at - cell[-1] * self.pitch_m)
            if hi[-1] - lo[-1] < 0.5:
                return None
        return dict(
            cell=np.array(cell),
            turns=turns,
            lo=np.array(lo),
            hi=np.array(hi),
            error_m=math.hypot(*off),
            yaw_error=yaw - turns * math.pi / 2,
            tilt=math.acos(min(max(R[2, 2], -1.0), 1.0)),
        )

    # -- one update ------------------------------------------------------------------------------------------
    def update(self):
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

    def changed(self):
        """To be called whenever `links` or `pending` have been written: refreshes what `update`
        looks at every time, a hundred times per simulated second: it may not even count array
        elements.
        """
        seated = self.links['used'] & self.links['seated'] & ~self.links['loose']
        self._seated = np.flatnonzero(seated)
        self._seated_eq = self.slot_eq_id[self._seated]
        links = self.links[self._seated]
        self._bound = [
            *zip(
                self.body_id[links['a']].tolist(),
                *(links[key].tolist() for key in ('rung', 'per_pull', 'per_shear', 'per_moment')),
            )
        ]
        self._rows = []
        self._ramping = bool(
            (self.links['used'] & ~self.links['seated'] & ~self.links['loose']).any()
        )
        self._n_loose = int(self.links['loose'].sum())
        self._n_pending = int((self.pending > 0).sum())
        self._over = bool(self.links['over'].any())
        self._linked = {(int(r['a']), int(r['b'])) for r in self.links[self.links['used']]}

    def _contact_forces(self):
        """{(i, j): (3,) N} summed normal contact force between bricks i < j, world frame."""
        data = self.data
        of = self.brick_of_geom
        forces = {}
        if data.ncon == 0:
            return forces
        contact = data.contact
        for c, (g, h) in enumerate(contact.geom.tolist()):  # a dozen contacts: quicker than numpy
            if g in of and h in of and contact.efc_address[c] >= 0:
                key = (min(of[g], of[h]), max(of[g], of[h]))
                force = data.efc_force[contact.efc_address[c]] * contact.frame[c, :3]
                forces[key] = forces.get(key, 0) + force
        return forces

    def _axial(self, force, a):
        return abs(force @ self.data.xmat[self.body_id[a]].reshape(3, 3)[:, 2])

    def _fits(self, fit):
        return (
            fit['error_m'] <= self.tolerance_xy_m
            and abs(fit['yaw_error']) <= self.tolerance_rad
            and fit['tilt'] <= self.tolerance_rad
        )

    def _form(self, forces):
        by_upper = {}
        for (i, j), force in forces.items():
            for a, b in ((i, j), (j, i)):
                if (a, b) in self._linked or (b, a) in self._linked:
                    continue
                pos, R = self.relative_pose(a, b)
                fit = self.nearest_cell(a, b, pos, R)
                if fit is None or not self._fits(fit):
                    continue
                # 0 when resting on the stud tops
                gap_m = self._gap(a, fit, pos, R) + BOTTOM_GAP_M - self.stud_height_m
                if -self.stud_height_m < gap_m < 0.0006:
                    by_upper.setdefault(b, []).append((a, self._axial(force, a), fit))
        for b in np.flatnonzero(self.pending):
            if b not in by_upper:
                self.pending[b] = 0
        for b, lowers in by_upper.items():
            studs = sum(int(np.prod(np.round(f['hi'] - f['lo']))) for _, _, f in lowers)
            enough = sum(f for _, f, _ in lowers) >= self.insertion_force_n * studs
            self.pending[b] = self.pending[b] + 1 if enough else 0
            if self.pending[b] >= self.DWELL:
                self.pending[b] = 0
                for a, _, fit in lowers:
                    self.connect(a, b, fit)
        self._n_pending = int((self.pending > 0).sum())

    def connect(self, a, b, fit):
        """Point a free weld at bricks a (lower) and b (upper)
        with the grid pose of `fit` (from nearest_cell).
        """
        free = np.flatnonzero(~self.links['used'])
        if not len(free):
            raise RuntimeError(
                f'all {len(self.links)} clutch welds are in use; raise n_slots in world.build_model'
            )
        slot = free[0]
        model = self.model
        nx, ny = np.round(fit['hi'] - fit['lo'])
        # anchor, in a's frame
        centre = np.array([*(fit['lo'] + fit['hi']) / 2 * self.pitch_m, self.dims[a, 2]])
        yaw = fit['turns'] * np.pi / 2
        Rz = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        anchor_b = Rz.T @ (centre - [*fit['cell'] * self.pitch_m, self.dims[a, 2]])
        # Bolt group: four friction points per stud, a stud radius from its axis along x and y.
        # Second moments of n studs in a row of pitch p about the middle: n (n^2 - 1) p^2 / 12.
        n = nx * ny
        p = self.pitch_m
        r = self.radius_m
        inertia = [
            4 * ny * nx * (nx**2 - 1) * p**2 / 12 + 2 * n * r**2,  # sum x^2
            4 * nx * ny * (ny**2 - 1) * p**2 / 12 + 2 * n * r**2,
        ]  # sum y^2
        eq = self.slot_eq_id[slot]
        model.eq_obj1id[eq] = self.body_id[a]
        model.eq_obj2id[eq] = self.body_id[b]
        model.eq_data[eq] = 0
        model.eq_data[eq, :3] = anchor_b
        model.eq_data[eq, 10] = 1.0
        row = self.links[slot]
        row['used'] = True
        row['loose'] = False
        row['a'] = a
        row['b'] = b
        row['studs'] = n
        row['cell'] = fit['cell']
        row['turns'] = fit['turns']
        row['over'] = 0
        row['load'] = 0
        row['use'] = 0
        row['half'] = [(nx - 1) * p / 2, (ny - 1) * p / 2]
        row['inertia'] = inertia
        # as it was pressed
        row['offset'] = fit['error_m']
        row['turn'] = fit['yaw_error']
        # upper bounds of the utilisation per N of pull, per N and per N m in any direction (see
        # measure)
        row['per_pull'] = 1 / (n * self.pull_force_n)
        row['per_shear'] = 1 / (n * self.shear_force_n)
        lever = (row['half'][0] + r) / inertia[0] + (row['half'][1] + r) / inertia[1]
        row['per_moment'] = lever * 4 / self.pull_force_n + 1 / (n * self.shear_force_n * 4 * r)
        row['pos1'], row['quat1'] = centre, [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        self._start(slot, 'form')

    def _start(self, slot, event):
        row = self.links[slot]
        eq = self.slot_eq_id[slot]
        pos, R = self.relative_pose(row['a'], row['b'])
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, R.ravel())
        row['quat0'] = quat if quat @ row['quat1'] >= 0 else -quat
        row['pos0'] = pos + R @ self.model.eq_data[eq, :3]
        row['time'], row['seated'], tower, size = self.data.time, False, {row['a'], row['b']}, 0
        while len(tower) > size:  # all that hangs together rings
            size = len(tower)
            for link in self.links[self.links['used']]:
                if {link['a'], link['b']} & tower:
                    tower |= {link['a'], link['b']}
        self.links['rung'][np.isin(self.links['a'], list(tower)) & self.links['used']] = (
            self.data.time
        )
        self.data.eq_active[eq] = 1
        self.events.append(
            (float(self.data.time), event, self.names[row['a']], self.names[row['b']])
        )
        self._write_excludes()
        self.changed()
        self._ramp()

    def _ramp(self):
        for slot in np.flatnonzero(
            self.links['used'] & ~self.links['seated'] & ~self.links['loose']
        ):
            row = self.links[slot]
            eq = self.slot_eq_id[slot]
            s = min(1.0, (self.data.time - row['time']) / self.SNAP_TIME_S)
            self.model.eq_data[eq, 3:6] = (1 - s) * row['pos0'] + s * row['pos1']
            quat = (1 - s) * row['quat0'] + s * row['quat1']
            self.model.eq_data[eq, 6:10] = quat / np.linalg.norm(quat)
            row['seated'] = s >= 1
            if s >= 1:
                self.changed()

    def _locate(self):
        """Find the solver's rows of the seated links, mostly where they were; False if one is not
        there.
        """
        ids = self.data.efc_id
        ne = self.data.ne
        seated = self._seated_eq
        rows = self._rows
        if rows and rows[-1] < ne and all(ids[r] == e for r, e in zip(rows, seated)):
            return True
        self._rows = np.searchsorted(ids[:ne], seated).tolist()  # rows are ordered by equality id
        return bool(self._rows) and self._rows[-1] < ne and (ids[self._rows] == seated).all()

    def measure(self):
        """Write load and utilisation of every seated link into `links`; returns (slots,
        utilisation).
        """
        data = self.data
        slots = self._seated
        if not self._locate():
            return slots[:0], np.zeros(0)
        efc = data.efc_force[np.array(self._rows)[:, None] + WELD_ROWS]  # (n, 6) equality forces
        link = self.links[slots]
        Ra = data.xmat[self.body_id[link['a']]].reshape(-1, 3, 3)
        Rb = data.xmat[self.body_id[link['b']]].reshape(-1, 3, 3)
        F = np.einsum('nji,nj->ni', Ra, efc[:, :3])  # in the lower frame
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

    def _break(self):
        if not self._locate():
            return
        # Nearly always nothing is close to breaking: bound the utilisation by norms first. A few
        # links are quicker than numpy in plain Python: 1 us each, where the same in arrays takes
        # 11.
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
        if not close:
            return
        slots, use = self.measure()
        late = self.data.time - self.links['rung'][slots] > self.GRACE_S
        over = np.where((use > 1) & late, self.links['over'][slots] + 1, 0)
        over[use > self.OVERLOAD] = self.DWELL
        self.links['over'][slots], self._over = over, bool(over.any())
        broken = slots[over >= self.DWELL]
        for slot in broken:
            row = self.links[slot]
            row['loose'] = True
            row['time'] = self.data.time
            self.data.eq_active[self.slot_eq_id[slot]] = 0
            self.events.append(
                (float(self.data.time), 'break', self.names[row['a']], self.names[row['b']])
            )
        if len(broken):
            self._write_excludes()
            self.changed()

    def _brake(self):
        """No brick moves faster than the time step can follow."""
        v = self.data.qvel[self._vadr]
        if v.dot(v) > self.MAX_SPEED_M_S**2:  # half a microsecond, nearly always all there is to do
            v = v.reshape(-1, 2, 3)
            speed = np.linalg.norm(v, axis=2, keepdims=True)
            limit = np.array([[self.MAX_SPEED_M_S], [self.MAX_SPIN_RAD_S]])
            self.data.qvel[self._vadr] = (v * (limit / np.maximum(speed, limit))).ravel()

    def _settle_loose(self, forces):
        """A broken link keeps its exclude (the studs are still inside) until the bricks have
        parted. Where they have not moved, the studs have not come out: it holds again once they
        rest on each other. (Asking for the force of an insertion left bricks that look joined and
        are not.)
        """
        parted = False
        for slot in np.flatnonzero(self.links['loose']):
            row = self.links[slot]
            a = int(row['a'])
            b = int(row['b'])
            pos, R = self.relative_pose(a, b)
            fit = self.nearest_cell(a, b, pos, R)
            gap_m = np.inf if fit is None else self._gap(a, fit, pos, R)
            if gap_m > 0.95 * self.stud_height_m or (fit['cell'] != row['cell']).any():
                row['used'] = row['loose'] = False
                parted = True
                self.events.append((float(self.data.time), 'part', self.names[a], self.names[b]))
            elif (
                gap_m < 3e-4
                and self._fits(fit)
                and (fit['turns'] - row['turns']) % 4 == 0
                and self.data.time - row['time'] > self.RESEAT_AFTER_S
            ):
                # held in its seat by another link, a brick does not touch this one
                in_seat = gap_m < 5e-5 and (self.links['b'][self._seated] == b).any()
                if in_seat or (min(a, b), max(a, b)) in forces:
                    row['loose'] = False
                    row['over'] = 0
                    self._start(slot, 'reseat')
        if parted:
            self._write_excludes()
            self.changed()

    def _write_excludes(self):
        """The lower brick's stud slab is inside the upper brick's box while linked: exclude that
        body pair. While the weld holds, the two boxes as well: contact and weld of a pair that
        spins, at 50 rad/s already, fight until the simulation diverges.
        """
        rows = self.links[self.links['used']]
        held = rows[~rows['loose']]
        i = np.concatenate([self.slab_id[rows['a']], self.body_id[held['a']]])
        j = np.concatenate([self.body_id[rows['b']], self.body_id[held['b']]])
        # MuJoCo searches this array by bisection
        signature = np.sort(
            np.concatenate([self._kept, (np.minimum(i, j) << 16) + np.maximum(i, j)])
        )
        self.model.exclude_signature[:] = NO_BODY
        self.model.exclude_signature[: len(signature)] = signature
