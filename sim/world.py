"""The simulated work cell: Alex's upper body at a table with bricks that clutch; controller and
cameras.

    world = World('place', brick_scale=2.)          # 2 = DUPLO, 1 = LEGO
    obs, info = world.reset(seed=0)
    obs, reward, terminated, truncated, info = world.step(action)     # Gymnasium's signature

Frames: world = foot of the torso, x forward, y left, z up, z = 0 on the table top. The torso frame
turns with `spine_z`; tool poses and tool actions are given in it. The tool frame sits between the
fingertips, and equals the torso frame when the hand points straight down at rest; fingers close
along its y. SI units, rad, quaternions wxyz. One control step is 1/control_hz s: the tool action is
turned into joint targets by damped least squares once, the targets are interpolated at 50 Hz, and
physics runs at physics_dt_s with a clutch update every 8 ms.
"""

import functools
import hashlib
from pathlib import Path

import numpy as np

from episode import JOINT_ACTION_NAMES, JOINT_NAMES, TOOL_ACTION_NAMES
from sim import tasks
from sim.clutch import (
    BRICK_HEIGHT_M,
    STUD_HEIGHT_M,
    STUD_PITCH_M,
    Clutch,
    brick_xml,
    pool_xml,
    wrap,
)
from sim.gl import NOTHING_RENDERS, gl_backend, mujoco
from sim.kinematics import (
    ArmIK,
    rotvec_to_matrix,
    yaw_of,
)
from sim.plan_task import plan_task
from sim.tasks import HANDS, MIN_JOIN_HEIGHT_M, PUT_DOWN, TASKS, Goal

ASSETS = Path(__file__).parent.parent / 'assets'
CAMERAS = ('head', 'overhead', 'left/wrist', 'right/wrist', 'third_person')
TOOL = {'left': slice(1, 8), 'right': slice(8, 15)}  # a hand's slots in the tool action
# Commands outside these bounds are clipped: torso frame, m and rad. A negative opening squeezes
# harder (kp 1500 N/m per finger).
TOOL_LOW = np.array([-0.5236, *[0.15, -0.45, 0.002, -1.2, -1.2, -np.pi, -0.02] * 2])
TOOL_HIGH = np.array([0.5236, *[0.56, 0.45, 0.40, 1.2, 1.2, np.pi, 0.08] * 2])
PHASES = ('start', 'reach', 'lift', 'carry', 'align', 'press', 'release', 'success')
HOLD_S = 1.0  # success: the goal holds for this long
INTERPOLATION_HZ = 50
CLUTCH_PERIOD_S = 0.008
MAX_PENETRATION_M = 0.05
MAX_ENERGY_J = 1000.0
RENDER_MODES = ('rgb', 'depth', 'segmentation')


class World:
    """One robot, one table, one task. Not shared between processes; call `close()` when done.

    brick_scale 1 (LEGO) or 2 (DUPLO): dimensions and snap tolerance scale, forces per stud do not.
    cameras: those rendered into observations; () renders nothing. image_size in pixels (square).
    plan: a file that says what to build (see plan.py), in place of a task; initial_blocks: its bricks
    lie where it says; reverse: it stands there and is taken apart. How hard: distractors is the number of bricks that nobody asks for, pose_range and target_range
    0..1, see tasks.vary. Forces are N per stud; force_spread 0..1: from episode to episode each
    varies by up to this share.
    """

    def __init__(
        self,
        task='place',
        brick_scale=2.0,
        cameras=('overhead', 'left/wrist', 'right/wrist'),
        image_size=96,
        control_hz=10,
        physics_dt_s=0.004,
        robot='alex',
        insertion_force_n=1.0,
        pull_force_n=2.0,
        force_spread=0.0,
        distractors=0,
        pose_range=1.0,
        target_range=1.0,
        plan='',
        initial_blocks=False,
        reverse=False,
    ):
        if not plan and task not in TASKS:
            raise ValueError(f'task={task!r}: expected one of {sorted(TASKS)}')
        for name in cameras:
            if name not in CAMERAS:
                raise ValueError(f'camera {name!r}: expected some of {CAMERAS}')
        if not 1 <= brick_scale <= 2:
            raise ValueError(f'brick_scale={brick_scale}: expected 1 (LEGO) to 2 (DUPLO)')
        forces = dict(insertion_force_n=insertion_force_n, pull_force_n=pull_force_n)
        if min(forces.values()) <= 0 or not 0 <= force_spread < 1:
            raise ValueError(
                f'{forces}, force_spread={force_spread}: expected forces > 0, a spread in 0..1'
            )
        self.forces = dict(forces, force_spread=force_spread)
        self.brick_scale = float(brick_scale)
        self.plan_file = str(plan)
        self.plan_options = dict(initial_blocks=bool(initial_blocks), reverse=bool(reverse))
        if plan:
            self.task = Path(plan).stem
            self.spec = plan_task(plan, self.brick_scale, **forces, **self.plan_options)
        else:
            self.task = task
            self.spec = TASKS[task]
        self.cameras = tuple(cameras)
        self.image_size = image_size
        self.control_hz = control_hz
        self.robot = robot
        self.bricks = self.spec.bricks(self.brick_scale)
        self.curriculum = dict(
            distractors=distractors, pose_range=pose_range, target_range=target_range
        )
        more = tasks.distractors(self.bricks, distractors)
        self.bricks += more
        self.sample = functools.partial(
            tasks.vary,
            self.spec,
            scale=self.brick_scale,
            more=more,
            pose_range=pose_range,
            target_range=target_range,
        )
        self.max_steps = round(self.spec.time_limit_s * control_hz)
        slots = 3 * len(self.bricks) if plan else 16
        self.model, robot_model = build_model(
            self.bricks, self.brick_scale, robot, physics_dt_s, slots
        )
        self.data = mujoco.MjData(self.model)
        self.clutch = Clutch(
            self.model, self.data, self.bricks, self.brick_scale, insertion_force_n, pull_force_n
        )
        self.ik = {h: ArmIK(robot_model, h) for h in HANDS}
        m = self.model
        joints = [m.joint(n) for n in JOINT_NAMES]
        self._joint_qadr = [j.qposadr[0] for j in joints]
        self._joint_vadr = [j.dofadr[0] for j in joints]
        # rad/s per joint, from its `user` attribute in the robot's file; where it says none: no
        # limit
        stated = m.jnt_user[[j.id for j in joints], 0] if m.nuser_jnt else np.zeros(len(joints))
        self.max_joint_speed = np.where(stated > 0, stated, np.inf)
        self._finger_qadr = [m.joint(f'{h}/finger_1').qposadr[0] for h in HANDS]
        self._joint_act_id = [m.actuator(n).id for n in JOINT_ACTION_NAMES]
        self._site_id = [m.site(f'{h}/tool').id for h in HANDS]
        self._torso_id = m.body('torso').id
        self._body_id = {b.name: m.body(b.name).id for b in self.bricks}
        self._camera_id = {c: m.camera(c).id for c in CAMERAS}
        self._robot_home = robot_model.key('home').qpos
        self._robot_joints = [
            (robot_model.joint(i).qposadr[0], m.joint(robot_model.joint(i).name).qposadr[0])
            for i in range(robot_model.njnt)
        ]
        self._clutch_every = max(1, round(CLUTCH_PERIOD_S / physics_dt_s))
        self._substeps = round(1 / INTERPOLATION_HZ / physics_dt_s)
        if (
            INTERPOLATION_HZ % control_hz
            or abs(self._substeps * physics_dt_s * INTERPOLATION_HZ - 1) > 1e-6
        ):
            raise ValueError(
                f'control_hz={control_hz} must divide {INTERPOLATION_HZ} (the rate of joint targets), and '
                f'physics_dt_s={physics_dt_s} must divide {1 / INTERPOLATION_HZ} s'
            )
        self._clutch_phase = 0
        self._renderers = {}
        self.observer = (
            None  # called with no arguments, at 50 Hz, while a step runs: a viewer's turn
        )
        buffer = np.zeros(mujoco.mj_sizeModel(m), np.uint8)
        mujoco.mj_saveModel(m, None, buffer)
        # as compiled: the clutch writes to the model later
        self.model_hash = hashlib.sha256(buffer.tobytes()).hexdigest()[:16]
        self.max_opening_m = 2 * (0.016 + 0.008 * self.brick_scale)  # what a released hand opens to
        # Tool above the held brick's bottom face. The fingertips reach 6 mm below the tool and must
        # clear the studs beside it.
        self.grasp_height_m = max(
            0.8 * self.brick_scale * BRICK_HEIGHT_M, 0.0075 + self.brick_scale * STUD_HEIGHT_M
        )

    # -- reset, step -----------------------------------------------------------------------------------------
    def reset(self, seed):
        """Draw the episode of `seed`. Returns obs, info (see observe, info)."""
        rng = np.random.default_rng(seed)
        m = self.model
        d = self.data
        self.seed = int(seed)
        mujoco.mj_resetData(m, d)
        self.clutch.reset()
        spread = self.forces['force_spread'] * np.random.default_rng([31_337, seed]).uniform(
            -1, 1, 2
        )
        self.clutch.insertion_force_n = self.forces['insertion_force_n'] * (1 + spread[0])
        self.clutch.pull_force_n = self.forces['pull_force_n'] * (1 + spread[1])
        poses, self.askable = self.sample(rng)
        self.plan, self.instruction = self.askable[0]
        for name, pose in poses.items():
            if isinstance(pose, Goal):
                self._put_on(pose)
                continue
            x, y, yaw = pose
            adr = m.jnt_qposadr[m.body_jntadr[self._body_id[name]]]
            d.qpos[adr : adr + 7] = x, y, 1e-4, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
        for source, target in self._robot_joints:
            d.qpos[target] = self._robot_home[source]
        command = np.zeros(15)
        # random starts around home: part of what makes demonstrations cover the state space
        for hand in HANDS:
            pos, R = self.ik[hand].forward(self.ik[hand].home)
            start = rng.uniform(-1, 1, 4) * [0.03, 0.03, 0.03, 0.2]
            command[TOOL[hand]] = [*pos + start[:3], 0, 0, start[3], self.max_opening_m]
        self.tool_command = command.astype(np.float32)
        self.joint_command = np.zeros(17)
        for i, hand in enumerate(HANDS):
            c = command[TOOL[hand]]
            q = self.ik[hand].solve(
                self.ik[hand].home, c[:3], rotvec_to_matrix(c[3:6]), iterations=60
            )
            self.joint_command[1 + 7 * i : 8 + 7 * i] = q
            self.joint_command[15 + i] = c[6]
            for j in (1, 2):
                d.qpos[m.joint(f'{hand}/finger_{j}').qposadr[0]] = c[6] / 2
        d.qpos[self._joint_qadr] = self.joint_command[:15]
        self._send(self.joint_command)
        mujoco.mj_forward(m, d)
        self._clutch_phase = 0
        self._physics(10 * self._substeps)  # bricks settle
        self._refresh()
        self._clutch_phase = 0
        d.time = 0.0
        self.goal = self.current(self.plan)
        self.steps = 0
        self.phase = 0
        self._held_steps = 0
        self._carried = False
        self.fault = None
        self._was_joined = False
        self._joined_in_air = False
        self._metrics = dict(
            peak_force_n=0.0,
            drops=0,
            done=0,
            press_error_mm=None,
            press_yaw_deg=None,
            penetration_mm=0.0,
            energy_j=0.0,
        )  # the largest of each
        self.clutch.events.clear()
        self.clutch.pending[:] = 0
        self.clutch.changed()
        return self.observe(), self.info()

    def _put_on(self, goal):
        """Start with the goal's upper brick on the lower one."""
        m = self.model
        d = self.data
        names = self.clutch.names
        mujoco.mj_kinematics(m, d)
        (x, y, z), yaw = self.seat(goal)
        adr = m.jnt_qposadr[m.body_jntadr[self._body_id[goal.upper]]]
        d.qpos[adr : adr + 7] = x, y, z, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
        mujoco.mj_kinematics(m, d)
        for link in goal.chain:  # a brick may sit on several
            a = names.index(link.lower)
            b = names.index(link.upper)
            fit = self.clutch.nearest_cell(a, b, *self.clutch.relative_pose(a, b))
            self.clutch.connect(a, b, fit)

    def step(self, action):
        """action: tool action (15,), cast to float32 (so that a recorded action replays bit-equal)
        and clipped to bounds.
        """
        action = np.asarray(action, np.float32)
        if action.shape != (15,) or not np.isfinite(action).all():
            raise ValueError(
                f'action: expected 15 finite numbers {TOOL_ACTION_NAMES}, '
                f'got shape {action.shape}: {action}'
            )
        new = np.clip(action, TOOL_LOW, TOOL_HIGH).astype(np.float32)
        before = self.joint_command.copy()
        target = self.joint_command.copy()
        target[0] = new[0]
        for i, hand in enumerate(HANDS):
            arm = slice(1 + 7 * i, 8 + 7 * i)
            c = new[TOOL[hand]].astype(float)
            if not np.array_equal(new[TOOL[hand]][:6], self.tool_command[TOOL[hand]][:6]):
                target[arm] = self.ik[hand].solve(before[arm], c[:3], rotvec_to_matrix(c[3:6]))
            target[15 + i] = c[6]
        reach = self.max_joint_speed / self.control_hz  # the robot's velocity limits
        target[:15] = np.clip(target[:15], before[:15] - reach, before[:15] + reach)
        n = round(INTERPOLATION_HZ / self.control_hz)
        for k in range(1, n + 1):
            self._send(before + (target - before) * k / n)
            self._physics(self._substeps)
            if self.observer:
                self.observer()
        self.clutch.measure()
        self._refresh()
        self.tool_command = new
        self.joint_command = target
        self.steps += 1
        self._check_physics()
        self._track_progress()
        info = self.info()
        return (
            self.observe(),
            float(info['success']),
            info['success'] or self.fault is not None,
            self.steps >= self.max_steps,
            info,
        )

    def _send(self, joint_command):
        self.data.ctrl[self._joint_act_id[:15]] = joint_command[:15]
        # a gripper's actuator drives each finger by half the opening
        self.data.ctrl[self._joint_act_id[15:]] = joint_command[15:] / 2

    def _physics(self, n):
        done = 0
        while done < n:
            k = min(n - done, self._clutch_every - self._clutch_phase)
            mujoco.mj_step(self.model, self.data, nstep=k)
            done += k
            self._clutch_phase = (self._clutch_phase + k) % self._clutch_every
            if self._clutch_phase == 0:
                self.clutch.update()

    def _refresh(self):
        """Poses and velocities of *this* instant: mj_step leaves those of the moment before its
        last integration.
        """
        for compute in (
            mujoco.mj_kinematics,
            mujoco.mj_comPos,
            mujoco.mj_camlight,
            mujoco.mj_comVel,
        ):
            compute(self.model, self.data)

    def _check_physics(self):
        """Divergence ends the episode with a named reason."""
        # MuJoCo starts d.time anew when it diverges
        d = self.data
        t = self.steps / self.control_hz
        counts = [d.warning[i].number for i in range(int(mujoco.mjtWarning.mjNWARNING))]
        bad = [mujoco.mjtWarning(i).name for i, n in enumerate(counts) if n]
        depth = -d.contact.dist.min() if d.ncon else 0.0
        energy = self.energy_j()
        self._metrics['penetration_mm'] = max(self._metrics['penetration_mm'], float(1e3 * depth))
        self._metrics['energy_j'] = max(self._metrics['energy_j'], energy)
        if bad:
            self.fault = f'MuJoCo warning {bad[0]} at t={t:.1f} s'
        elif not np.isfinite(d.qpos).all():
            self.fault = f'non-finite positions at t={t:.1f} s'
        elif depth > MAX_PENETRATION_M:
            self.fault = f'penetration {1e3 * depth:.0f} mm at t={t:.1f} s'
        elif energy > MAX_ENERGY_J:
            self.fault = f'energy {energy:.0f} J at t={t:.1f} s'

    def energy_j(self):
        """Kinetic energy of everything, J: what a simulation that blows up has too much of.
        (Potential energy is left out: gravity does no work on the compensated robot.)
        """
        mujoco.mj_energyVel(self.model, self.data)
        return float(self.data.energy[1])

    # -- what is where ---------------------------------------------------------------------------------------
    def brick_pose(self, name):
        """Position of the brick's bottom centre (3,) m and rotation (3, 3), world frame."""
        b = self._body_id[name]
        return self.data.xpos[b].copy(), self.data.xmat[b].reshape(3, 3).copy()

    def tool_pose(self, hand):
        """Tool position (3,) m and rotation (3, 3), torso frame."""
        d = self.data
        i = self._site_id[HANDS.index(hand)]
        Rt = d.xmat[self._torso_id].reshape(3, 3)
        return Rt.T @ (d.site_xpos[i] - d.xpos[self._torso_id]), Rt.T @ d.site_xmat[i].reshape(3, 3)

    def opening_m(self, hand):
        """Measured distance between the fingers, m."""
        return 2 * self.data.qpos[self._finger_qadr[HANDS.index(hand)]]

    def current(self, plan):
        """The goal of a plan (a Goal and what comes after it) that is at work in this state: the
        first whose studs are not in; the one before it while its hand has not let go and left,
        unless that hand carries or is nearer to the next brick, goes on with the same one, or has
        dropped the next one on top. (A press may break links below, which hold again once the hand
        lets go.) With all studs in, the first link that is broken, else the last goal of a hand
        that has not let go, else the last.
        """
        goals = plan.chain
        if not goals[1:]:
            return plan
        if plan.apart:
            return next((g for g in goals if not self.taken_off(g)), goals[-1])
        done = next((i for i, g in enumerate(goals) if not self.joined(g, loose=True)), None)
        if done is None:
            at_work = [g for g in goals if not self.joined(g)] or [
                g for g in {g.hand: g for g in goals}.values() if not self._left(g)
            ]
            return at_work[0] if at_work else goals[-1]
        if done:
            last = goals[done - 1]
            upper = goals[done].upper
            at = self.brick_pose(last.upper)[0]
            top = self.brick_pose(upper)[0]
            tool = self.tool_pose(last.hand)[0]
            fetch = (goals[done].giver, goals[done].hand)
            to_next, to_last = (np.linalg.norm((tool - there)[:2]) for there in (top, at))
            nearer = last.hand in fetch and to_next < to_last
            if last.grip and upper in self.below(
                last.upper
            ):  # which the hand fetches from below it
                nearer = self.opening_m(last.hand) > self.grip_width_m(last) + 0.004
            dropped = np.linalg.norm((top - at)[:2]) < 0.03 and top[2] > at[2] + 0.005
            if not (
                self._left(last)
                or nearer
                or dropped
                or upper == last.upper
                or self.held_by(upper) == last.hand
            ):
                done -= 1
        return goals[done]

    def taken_off(self, goal):
        """True where the goal's upper brick lies on the table by itself, and no hand has it."""
        linked = any(goal.upper in (c['upper'], c['lower']) for c in self.connections(loose=True))
        return not linked and self.lies(goal.upper) and self.held_by(goal.upper) is None

    def below(self, brick):
        """Names of the loose bricks that a brick stands on, and of those that they stand on."""
        fixed = {b.name for b in self.bricks if b.fixed}
        found = {brick}
        new = {brick}
        while new:
            under = {c['lower'] for c in self.connections() if c['upper'] in new}
            new = under - found - fixed
            found |= new
        return found - {brick}

    def grip_width_m(self, goal):
        """Distance between the fingers on the goal's upper brick, m."""
        studs = next(b.studs for b in self.bricks if b.name == goal.upper)
        return studs[1 - goal.grip.along] * self.brick_scale * STUD_PITCH_M

    def _left(self, goal):
        """True where a goal's hand is above or beside what it has pressed on."""
        beside = self.tool_pose(goal.hand)[0] - self.brick_pose(goal.upper)[0]
        return np.hypot(*beside[:2]) > 0.07 or self.released(goal.hand, goal.upper)

    def goal_pose(self, goal=None):
        """Where the upper brick of the episode's goal (or of another one) has to be now: position
        (3,) m, yaw rad (modulo pi), world frame. Its seat on the lower brick, with which it moves;
        the place on the table before the hand that pulls where the goal is to take them apart.
        """
        goal = goal or self.goal
        if goal.apart and goal.grip:
            return np.array([*goal.grip.via, 0.0]), np.pi / 2
        if goal.apart:
            x, y, yaw = PUT_DOWN[goal.hand]
            return np.array([x, y, 0.0]), yaw
        return self.seat(goal)

    def seat(self, goal):
        """Pose of the upper brick when it sits on the lower one as the goal says: position (3,) m,
        yaw.
        """
        pos, R = self.brick_pose(goal.lower)
        lower = next(b for b in self.bricks if b.name == goal.lower)
        offset = np.array(
            [
                *np.array(goal.cell) * self.brick_scale * STUD_PITCH_M,
                lower.height_m(self.brick_scale),
            ]
        )
        return pos + R @ offset, yaw_of(R) + goal.turns * np.pi / 2

    def goal_error(self, goal=None):
        """Upper brick's position error (3,) m in the world frame and yaw error in rad."""
        goal = goal or self.goal
        target, yaw = self.goal_pose(goal)
        pos, R = self.brick_pose(goal.upper)
        return pos - target, wrap(yaw_of(R) - yaw, np.pi)

    def joined(self, goal=None, loose=False):
        """True while the connection of the episode's goal (or of another one) holds; loose: also
        while it is broken and the studs have not come out.
        """
        g = goal or self.goal
        link = self.clutch.link(g.lower, g.upper, loose)
        if link is None:
            return False
        if g.grip:  # of a plan: just as it says
            return np.allclose(link['cell'], g.cell) and (link['turns'] - g.turns) % 4 == 0
        nx, ny = next(b.studs for b in self.bricks if b.name == g.upper)
        # a loose lower brick looks the same turned by 180 degrees, a tower of two does not
        cells = [g.cell] if g.holder is None or g.steady else [g.cell, tuple(-c for c in g.cell)]
        return (
            any(np.allclose(link['cell'], c) for c in cells)
            and (link['turns'] - g.turns) % (1 if nx == ny else 2) == 0
        )

    def released(self, hand, brick=None):
        """True when the hand's tool is 3 cm above where it would hold the brick (the goal's upper
        one).
        """
        top = self.brick_pose(brick or self.goal.upper)[0][2] + self.grasp_height_m
        return self.tool_pose(hand)[0][2] > top + 0.03

    def held_by(self, brick):
        """The hand that has the brick between its closed fingers; None if neither has."""
        s = self.brick_scale
        for hand in HANDS:
            closed = self.opening_m(hand) < (2 * STUD_PITCH_M + 0.008) * s
            if closed and np.linalg.norm(self._offset_along(hand, brick)) < 0.012 * s:
                return hand
        return None

    def lies(self, brick):
        """True when the brick lies on the table, the right way up."""
        pos, R = self.brick_pose(brick)
        return pos[2] < 0.0015 * self.brick_scale and R[2, 2] > 0.99

    def lifts(self):
        """True where the goal's holder has to lift the lower brick: it holds plates down, steadies
        towers.
        """
        g = self.goal
        plate = next(b for b in self.bricks if b.name == g.lower).plate
        return g.holder is not None and not plate and not g.steady

    def goal_reached(self):
        """The goal's conditions at this instant; success needs them for HOLD_S."""
        if self.goal.apart and self.goal.grip:
            return all(map(self.taken_off, self.plan.chain)) and self.released(self.goal.hand)
        if self.goal.apart:
            pair = (self.goal.hand, self.goal.upper), (self.goal.holder, self.goal.lower)
            return (
                not self.joined()
                and all(self.lies(b) and self.released(h, b) for h, b in pair)
                and (self._joined_in_air or not self.lifts())
            )
        g = self.goal
        if g.then or not (all(map(self.joined, self.plan.chain)) and self.released(g.hand)):
            return False
        if g.steady:  # it stands by itself
            above = {link['upper'] for link in self.connections()}
            feet = [b.name for b in self.bricks if not b.fixed and b.name not in above]
            return self.released(g.holder, g.lower) and all(map(self.lies, feet))
        return g.holder is None or (
            self._joined_in_air and self.lies(g.lower) and self.released(g.holder, g.lower)
        )

    def success(self):
        return self._held_steps >= HOLD_S * self.control_hz

    def scene(self):
        """What pictures alone tell, as a training target: the pose of every loose brick in the
        frame of what carries a camera, (3, n, 4) float32 for the torso, the left and the right
        tool: position (3,) m, and the yaw in rad, modulo pi, by which that frame has to turn for a
        hand to grasp the brick.
        """
        frames = [(np.zeros(3), np.eye(3)), *map(self.tool_pose, HANDS)]
        poses = [self.brick_pose(b.name) for b in self.bricks if not b.fixed]
        return np.array(
            [
                [
                    [*(Rf.T @ (pos - at)), wrap(yaw_of(R) - np.pi / 2 - yaw_of(Rf), np.pi)]
                    for pos, R in poses
                ]
                for at, Rf in frames
            ],
            np.float32,
        )

    def goals_at_work(self):
        """Of each plan that could be asked for."""
        return [self.current(plan) for plan, _ in self.askable]

    def referents(self):
        """What the words of each goal that could be asked for (`askable`) refer to now, float32 (G,
        8): loose bricks, by number, that the left and the right hand have to fetch (an idle hand:
        the other's); the one that brick goes on, n where it is fixed; the hand that presses, 0
        left; the place: pose (x, y, z, yaw) of the upper brick, m and rad, in the frame of the
        lower one, of the torso where that is fixed. To take bricks apart, each hand fetches one,
        and the upper one goes on the table, which is fixed.
        """
        loose = [b.name for b in self.bricks if not b.fixed]
        rows = []
        for g in self.goals_at_work():
            place, yaw = self.goal_pose(g)
            on_loose = g.lower in loose and not g.apart
            base = loose.index(g.lower) if on_loose else len(loose)
            if on_loose:
                pos, R = self.brick_pose(g.lower)
                place = R.T @ (place - pos)
                yaw = yaw - yaw_of(R)
            fetch = [loose.index(g.lower if hand == g.holder else g.upper) for hand in HANDS]
            rows.append([*fetch, base, HANDS.index(g.hand), *place, wrap(yaw, np.pi)])
        return np.array(rows, np.float32)

    def connections(self, loose=False):
        return self.clutch.connections(loose)

    def _track_progress(self):
        """Furthest phase and metrics, from the state alone, so that every policy is measured alike.
        A plan of several goals is not further than `align` before the last of them.
        """
        g = self.goal
        s = self.brick_scale
        error, yaw_error = self.goal_error()
        xy = np.hypot(*error[:2])
        bricks = [(g.hand, g.upper)] + ([(g.holder, g.lower)] if self.lifts() else [])
        lifted = [self.brick_pose(b)[0][2] > 0.012 * s for _, b in bricks]
        near = [np.linalg.norm(self._offset_along(h, b)) < 0.012 * s for h, b in bricks]
        phase = 1 if all(near) else 0
        if all(lifted):
            phase = 4 if xy < 0.0015 * s else 3 if xy < 0.02 else 2
        joined = self.joined() != g.apart
        if joined and not self._was_joined:
            link = self.clutch.link(g.lower, g.upper)
            if link is not None:
                self._metrics.update(
                    press_error_mm=float(1e3 * link['offset']),
                    press_yaw_deg=float(np.degrees(link['turn'])),
                )
            self._joined_in_air = self.brick_pose(g.lower)[0][2] > MIN_JOIN_HEIGHT_M
        self._was_joined = joined
        if lifted[0] and near[0]:
            self._carried = True
        elif self._carried and not near[0] and (xy > 0.02 if g.apart else not joined):
            self._carried = False
            self._metrics['drops'] += 1
        self.goal = self.current(self.plan)
        if self.goal != g:
            self._carried, self._was_joined = False, self.joined()
        reached = self.goal_reached()
        if joined and not g.then:
            phase = 6 if reached else 5
        self._held_steps = self._held_steps + 1 if reached else 0
        self.phase = max(self.phase, 7 if self.success() else phase)
        self._metrics.update(
            steps=self.steps,
            peak_force_n=float(self.clutch.peak_force_n),
            done=int(
                joined if g.apart else sum(map(self.joined, self.plan.chain))
            ),  # goals of the plan
            xy_error_mm=float(1e3 * xy),
            z_error_mm=float(1e3 * error[2]),
            yaw_error_deg=float(np.degrees(yaw_error)),
            broken=sum(
                e[1] == 'break' and not (g.apart and e[2:] == (g.lower, g.upper))
                for e in self.clutch.events
            ),
        )

    def _offset_along(self, hand, brick):
        """Vector from where the hand grips best to the tool, world frame;
        long bricks may be held anywhere along their length.
        """
        pos, R = self.brick_pose(brick)
        spec = next(b for b in self.bricks if b.name == brick)
        v = R.T @ (self.tool_pose(hand)[0] - pos) - [0, 0, self.grasp_height_m]
        half = (max(spec.studs) - 2) / 2 * self.brick_scale * STUD_PITCH_M
        axis = int(spec.studs[1] >= spec.studs[0])
        v[axis] -= np.clip(v[axis], -half, half)
        return v

    # -- observations ----------------------------------------------------------------------------------------
    def observe(self):
        """Dict of measured quantities, order left, right, torso frame: time s; joint_pos (15,) rad;
        joint_vel (15,) rad/s; gripper (2,) m; tool_pos (2, 3) m; tool_quat (2, 4) wxyz; tool_vel
        (2, 3) m/s; tool_command (15,) and joint_command (17,), the commands in force;
        image/<camera> (h, w, 3) uint8; instruction.
        """
        d = self.data
        vel6 = np.zeros(6)
        Rt = d.xmat[self._torso_id].reshape(3, 3)
        poses = []
        quats = []
        vels = []
        for hand, site in zip(HANDS, self._site_id):
            pos, R = self.tool_pose(hand)
            quat = np.zeros(4)
            mujoco.mju_mat2Quat(quat, np.ascontiguousarray(R).ravel())
            mujoco.mj_objectVelocity(self.model, d, mujoco.mjtObj.mjOBJ_SITE, site, vel6, 0)
            poses.append(pos)
            quats.append(quat if quat[0] >= 0 else -quat)
            vels.append(Rt.T @ vel6[3:])
        obs = dict(
            time=d.time,
            joint_pos=d.qpos[self._joint_qadr],
            joint_vel=d.qvel[self._joint_vadr],
            gripper=2 * d.qpos[self._finger_qadr],
            tool_pos=np.array(poses),
            tool_quat=np.array(quats),
            tool_vel=np.array(vels),
            tool_command=self.tool_command.copy(),
            joint_command=self.joint_command.astype(np.float32),
            instruction=self.instruction,
        )
        for name in self.cameras:
            obs[f'image/{name}'] = self.render(name)
        return obs

    def info(self):
        """Dict: success (goal held 1 s), goal (conditions true now), phase (furthest, index into
        PHASES), metrics, fault.
        """
        return dict(
            success=self.success(),
            goal=self._held_steps > 0,
            phase=self.phase,
            metrics=dict(self._metrics),
            fault=self.fault,
        )

    def render(self, camera, size=None, shadows=False, mode='rgb'):
        """Picture of a named camera; size int or (height, width), default image_size. mode: 'rgb'
        (h, w, 3) uint8; 'depth' (h, w) float32, m along the optical axis; 'segmentation' (h, w)
        int32, the body's id (names: model.body(i).name; 0 is the world: table, floor), -1 where
        nothing is.
        """
        if mode not in RENDER_MODES:
            raise ValueError(f'mode={mode!r}: expected one of {RENDER_MODES}')
        h, w = (size, size) if isinstance(size, int) else size or (self.image_size, self.image_size)
        if gl_backend() == 'disable':
            raise RuntimeError(NOTHING_RENDERS)
        key = h, w, shadows
        if key not in self._renderers:
            # an offscreen buffer larger than the picture is cleared and resolved with it:
            # 2.2 against 1.3 ms at 96 px
            self.model.vis.global_.offwidth = w
            self.model.vis.global_.offheight = h
            r = self._renderers[key] = mujoco.Renderer(self.model, h, w)
            r.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = (
                shadows  # shadows cost 3-4 times the picture
            )
            r.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        r = self._renderers[key]
        r.update_scene(self.data, self._camera_id[camera])
        if mode == 'rgb':
            return r.render().copy()
        if mode == 'depth':
            r.enable_depth_rendering()
            picture = r.render().astype(np.float32)
            r.disable_depth_rendering()
            return picture
        r.enable_segmentation_rendering()
        ids, kinds = np.moveaxis(r.render(), -1, 0)  # of geoms
        r.disable_segmentation_rendering()
        return np.where(kinds == mujoco.mjtObj.mjOBJ_GEOM, self.model.geom_bodyid[ids], -1).astype(
            np.int32
        )

    # -- snapshots, facts ------------------------------------------------------------------------------------
    def state(self):
        """Snapshot that set_state restores exactly: full physics, the clutch's table and the model
        arrays it edits.
        """
        m = self.model
        d = self.data
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.zeros(mujoco.mj_stateSize(m, kind))
        mujoco.mj_getState(m, d, physics, kind)
        return dict(
            physics=physics,
            links=self.clutch.links.copy(),
            pending=self.clutch.pending.copy(),
            events=list(self.clutch.events),
            peak_force_n=self.clutch.peak_force_n,
            forces=(self.clutch.insertion_force_n, self.clutch.pull_force_n),
            eq_obj1id=m.eq_obj1id.copy(),
            eq_obj2id=m.eq_obj2id.copy(),
            eq_data=m.eq_data.copy(),
            eq_active=d.eq_active.copy(),
            exclude=m.exclude_signature.copy(),
            memory=dict(
                seed=self.seed,
                plan=self.plan,
                goal=self.goal,
                instruction=self.instruction,
                askable=list(self.askable),
                steps=self.steps,
                phase=self.phase,
                fault=self.fault,
                tool_command=self.tool_command.copy(),
                joint_command=self.joint_command.copy(),
                _held_steps=self._held_steps,
                _carried=self._carried,
                _was_joined=self._was_joined,
                _joined_in_air=self._joined_in_air,
                _metrics=dict(self._metrics),
                _clutch_phase=self._clutch_phase,
            ),
        )

    def set_state(self, state):
        """Restore a snapshot of state() of a world built with the same arguments."""
        m = self.model
        d = self.data
        m.eq_obj1id[:] = state['eq_obj1id']
        m.eq_obj2id[:] = state['eq_obj2id']
        m.eq_data[:] = state['eq_data']
        m.exclude_signature[:] = state['exclude']
        mujoco.mj_setState(m, d, state['physics'], mujoco.mjtState.mjSTATE_INTEGRATION)
        d.eq_active[:] = state['eq_active']
        self._refresh()
        for warning in d.warning:  # of the run that is being left
            warning.number = 0
        self.clutch.links[:] = state['links']
        self.clutch.pending[:] = state['pending']
        self.clutch.events[:] = state['events']
        self.clutch.peak_force_n = state['peak_force_n']
        self.clutch.insertion_force_n, self.clutch.pull_force_n = state['forces']
        self.clutch.changed()
        for key, value in state['memory'].items():
            setattr(self, key, value.copy() if hasattr(value, 'copy') else value)

    def metadata(self):
        """JSON-able facts a recording or checkpoint has to agree on."""
        return dict(
            task=self.task,
            plan=self.plan_file,
            **self.plan_options,
            brick_scale=self.brick_scale,
            **self.curriculum,
            cameras=list(self.cameras),
            image_size=self.image_size,
            control_hz=self.control_hz,
            physics_dt_s=self.model.opt.timestep,
            robot=self.robot,
            **self.forces,
            tool_action_names=list(TOOL_ACTION_NAMES),
            joint_action_names=list(JOINT_ACTION_NAMES),
            camera_fovy_deg={c: float(self.model.cam_fovy[i]) for c, i in self._camera_id.items()},
            camera_pose=self.camera_poses(),
            model_hash=self.model_hash,
            mujoco=mujoco.__version__,
            gl=gl_backend(),
        )

    def camera_poses(self):
        """{camera that stands still: position (3,) m and rotation (9,), row by row, world frame}; a
        camera looks along its -z, x to the right, y up.
        """
        m = self.model
        return {
            c: [*m.cam_pos0[i].tolist(), *m.cam_mat0[i].ravel().tolist()]
            for c, i in self._camera_id.items()
            if m.body_weldid[m.cam_bodyid[i]] == 0
        }

    def close(self):
        for r in self._renderers.values():
            r.close()
        self._renderers = {}


def build_model(bricks, scale, robot, physics_dt_s, n_slots=16):
    """Compile the scene with robot and bricks, and the robot alone (for inverse kinematics).
    Returns both MjModels.
    """
    path = ASSETS / 'robots' / robot / f'{robot}.xml'
    if not path.exists():
        have = sorted(p.parent.name for p in ASSETS.glob('robots/*/*.xml'))
        raise FileNotFoundError(f'{path}: no such robot; have {have}; put your MJCF there')
    try:
        robot_model = mujoco.MjModel.from_xml_path(str(path))
    except (
        ValueError
    ) as error:  # MuJoCo's own message names no file; UnicodeDecodeError is one as well
        raise ValueError(f'{path}: {error}') from error
    needed = dict(
        joint=(*JOINT_NAMES, *(f'{h}/finger_{i}' for h in HANDS for i in (1, 2))),
        actuator=JOINT_ACTION_NAMES,
        site=tuple(f'{h}/tool' for h in HANDS),
        camera=('head', *(f'{h}/wrist' for h in HANDS)),
        body=('torso',),
        key=('home',),
    )
    kinds = {kind: getattr(mujoco.mjtObj, f'mjOBJ_{kind.upper()}') for kind in needed}
    missing = [
        f'{kind} {name}'
        for kind, names in needed.items()
        for name in names
        if mujoco.mj_name2id(robot_model, kinds[kind], name) < 0
    ]
    if missing:
        raise ValueError(
            f'{path}: missing: {", ".join(missing)}; what they are is said in '
            f'{ASSETS / "robots" / "alex" / "README.md"}'
        )
    bodies, excludes, welds = pool_xml(n_slots)
    start = {
        b.name: (*b.at_m, 0) if b.fixed else (0.3, 0.3 - 0.12 * i, 0) for i, b in enumerate(bricks)
    }
    brick_bodies = ''.join(brick_xml(b, scale, start[b.name]) for b in bricks)
    parts = (
        f'<mujoco><worldbody>{brick_bodies}{bodies}</worldbody>'
        f'<contact>{excludes}</contact><equality>{welds}</equality></mujoco>'
    )
    # These files exist in memory only, as if beside the robot's: its meshes and textures count from
    # there.
    folder = path.parent.resolve()
    main = ''.join(
        f'<include file="{f}"/>' for f in ('vla-lego/table.xml', path.name, 'vla-lego/bricks.xml')
    )
    files = {
        'vla-lego.xml': f'<mujoco model="vla-lego">{main}</mujoco>'.encode(),
        'vla-lego/table.xml': (ASSETS / 'scenes' / 'table.xml').read_bytes(),
        'vla-lego/bricks.xml': parts.encode(),
    }
    files = {f'{folder}/{name}': text for name, text in files.items()}
    try:
        scene = mujoco.MjSpec.from_file(f'{folder}/vla-lego.xml', include=files)
        scene.option.timestep = physics_dt_s
        # MuJoCo 4.0.0 chooses a sparse Jacobian from 60 degrees of freedom on, and factors its Newton
        # Hessian wrongly then: bricks at rest gain speed until the simulation diverges.
        scene.option.jacobian = mujoco.mjtJacobian.mjJAC_DENSE
        model = scene.compile()
    except ValueError as error:
        raise ValueError(
            f'{path}: does not join table and bricks: {error}; names that are taken are listed '
            f'in {ASSETS / "robots" / "alex" / "README.md"}'
        ) from error
    if model.opt.cone != mujoco.mjtCone.mjCONE_ELLIPTIC:
        raise ValueError(f'{path}: option cone="pyramidal": expected elliptic, the clutch reads it')
    return model, robot_model
