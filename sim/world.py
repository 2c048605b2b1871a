"""The simulated work cell: Alex's upper body at a table with bricks that clutch.

    world = World('place', brick_scale=2.)          # 2 = DUPLO, 1 = LEGO
    obs, info = world.reset(seed=0)
    obs, reward, terminated, truncated, info = world.step(action)     # Gymnasium's signature
    truth = world.truth()                           # what pictures do not tell, see sim/truth.py

Frames: world = foot of the torso, x forward, y left, z up, z = 0 on the table top. The torso frame
turns with `spine_z`; tool poses and tool actions are given in it. The tool frame sits between the
fingertips, and equals the torso frame when the hand points straight down at rest; fingers close
along its y. SI units, rad, quaternions wxyz. One control step is 1/control_hz s: the action is
turned into joint targets once (sim/control.py), the targets are interpolated at 50 Hz, and physics
runs at physics_dt_s with a clutch update every 8 ms.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from episode import (
    ARM_JOINTS,
    ARM_TOOL,
    COLOURS,
    JOINT_ACTION_NAMES,
    JOINT_NAMES,
    TOOL_ACTION_NAMES,
)
from instructions import Frame, draw, held_out, plain
from sim import tasks
from sim.clutch import Clutch
from sim.control import ACTION_NAMES, CLOSED_M, N_JOINTS, TOOL_HIGH, TOOL_LOW, Controller
from sim.gl import NOTHING_RENDERS, gl_backend, mujoco
from sim.judge import STILL_S, Judge, goal_at_work
from sim.plan_task import plan_task
from sim.randomise import Randomiser, amounts
from sim.scene import build_model
from sim.tasks import HANDS, TASKS, Goal, grasp_height
from sim.truth import Pose, Truth, seat

CAMERAS = ('head', 'overhead', 'left/wrist', 'right/wrist', 'third_person')
RENDER_MODES = ('rgb', 'depth', 'segmentation')
INTERPOLATION_HZ = 50
CLUTCH_PERIOD_S = 0.008
WORDINGS = ('grammar', 'held_out')
MAX_PENETRATION_M = 0.05
MAX_ENERGY_J = 1000.0
TALLEST_PX = 8_192  # All cameras are drawn into one buffer; drivers take 16,384.


class World:
    """One robot, one table, one task.

    A world is not shared between processes. Call `close()` when done.
    """

    def __init__(
        self,
        task: str = 'place',
        brick_scale: float = 2.0,
        cameras: Sequence[str] = ('overhead', 'left/wrist', 'right/wrist'),
        image_size: int = 96,
        control_hz: int = 10,
        physics_dt_s: float = 0.004,
        robot: str = 'alex',
        insertion_force_n: float = 1.0,
        pull_force_n: float = 2.0,
        force_spread: float = 0.0,
        distractors: int = 0,
        pose_range: float = 1.0,
        target_range: float = 1.0,
        wording: str = 'grammar',
        impossible_share: float = 0.0,
        randomise: float = 0.0,
        randomise_only: str = '',
        action_space: str = 'tool',
        plan: str = '',
        initial_blocks: bool = False,
        reverse: bool = False,
    ):
        """Build the scene of a task; `reset` draws an episode of it.

        Args:
            task: One of tasks.TASKS.
            brick_scale: 1 (LEGO) to 2 (DUPLO). Dimensions and snap tolerance scale, forces per stud
                do not.
            cameras: Those rendered into observations; () renders nothing.
            image_size: px, square.
            control_hz: Control steps per second.
            physics_dt_s: Time step of physics.
            robot: Name of a folder in assets/robots.
            insertion_force_n: To press a brick on, N per stud.
            pull_force_n: To pull it off straight, N per stud.
            force_spread: From episode to episode both forces vary by up to this share, 0 to 1.
            distractors: Number of bricks that nobody asks for.
            pose_range: Share of the range of spawn poses, 0 to 1, see tasks.vary.
            target_range: Share of the places that are asked for, 0 to 1, see tasks.vary.
            wording: 'grammar', or 'held_out': people's words that the grammar cannot make, for
                scoring only; see instructions.py.
            impossible_share: This share of the episodes, 0 to 1, has an instruction that cannot be
                followed: success is to keep the hands still.
            randomise: Share of the full ranges of what differs between robots and rooms, 0 to 1,
                see randomise.KINDS.
            randomise_only: Names of those kinds, separated by commas; '' randomises all of them.
            action_space: 'tool' or 'joint': which action `step` takes, see sim/control.py.
            plan: A file that says what to build, see sim/plan.py, in place of a task.
            initial_blocks: The plan's bricks lie where its file says, not where the seed does.
            reverse: The plan stands there and is taken apart.
        """
        forces = dict(insertion_force_n=insertion_force_n, pull_force_n=pull_force_n)
        _check_arguments(
            Path(plan).stem if plan else task,
            bool(plan),
            cameras,
            brick_scale,
            action_space,
            forces,
            force_spread,
        )
        _check_words(wording, impossible_share)
        drawn = amounts(randomise, randomise_only)
        self.task = Path(plan).stem if plan else task
        self.plan_file = plan
        self.plan_options = dict(initial_blocks=initial_blocks, reverse=reverse)
        self.robot = robot
        self.action_space = action_space
        self.brick_scale = float(brick_scale)
        self.cameras = tuple(cameras)
        self.image_size = image_size
        self.control_hz = control_hz
        self.wording = wording
        self.impossible_share = impossible_share
        self.forces = dict(forces, force_spread=force_spread)
        self.curriculum = dict(
            distractors=distractors, pose_range=pose_range, target_range=target_range
        )
        if plan:
            spec = plan_task(
                plan,
                self.brick_scale,
                insertion_force_n,
                pull_force_n,
                **self.plan_options,
            )
        else:
            spec = TASKS[task]
        asked_for = spec.bricks(self.brick_scale)
        more = tasks.distractors(asked_for, distractors)
        self.bricks = (*asked_for, *more)
        if not plan:  # Plans may have several bricks of a colour.
            tasks.check_colours(self.bricks)
        self.sample = functools.partial(
            tasks.vary,
            spec,
            scale=self.brick_scale,
            more=more,
            pose_range=pose_range,
            target_range=target_range,
        )
        self.time_limit_s = spec.time_limit_s
        self.patience = 1  # times a task's time limit; a person takes longer than a script
        # The time limit of the episode at hand.
        self.max_steps = round(spec.time_limit_s * control_hz)
        # A released hand opens to this.
        self.max_opening_m = 2 * (0.016 + 0.008 * self.brick_scale)
        self.grasp_height_m = grasp_height(self.brick_scale)
        self._set_rates(physics_dt_s)
        n_slots = 3 * len(self.bricks) if plan else 16
        self.model, robot_model = build_model(
            self.bricks, self.brick_scale, robot, physics_dt_s, n_slots, drawn.get('surfaces', 0.0)
        )
        self.data = mujoco.MjData(self.model)
        self.clutch = Clutch(
            self.model, self.data, self.bricks, self.brick_scale, insertion_force_n, pull_force_n
        )
        self.controller = Controller(self.model, robot_model, control_hz)
        self._resolve_names(robot_model)
        buffer = np.zeros(mujoco.mj_sizeModel(self.model), np.uint8)
        mujoco.mj_saveModel(self.model, None, buffer)
        # The hash is of the model as compiled: the clutch writes to it later.
        self.model_hash = hashlib.sha256(buffer.tobytes()).hexdigest()[:16]
        # Called at 50 Hz while a step runs: a viewer's turn.
        self.observer: Callable[[], object] | None = None
        self.randomised = dict(randomise=randomise, randomise_only=randomise_only)
        self.chance = Randomiser(self.model, self.bricks, CAMERAS, drawn)
        self.seed = 0  # `reset` says which episode is at hand.
        self.steps = 0
        self._renderers: dict = {}
        self._truth: Truth | None = None
        self._truth_of = b''

    def _set_rates(self, physics_dt_s: float) -> None:
        self._substeps = round(1 / INTERPOLATION_HZ / physics_dt_s)
        fits = abs(self._substeps * physics_dt_s * INTERPOLATION_HZ - 1) <= 1e-6
        if INTERPOLATION_HZ % self.control_hz or not fits:
            raise ValueError(
                f'control_hz={self.control_hz} must divide {INTERPOLATION_HZ} (the rate of joint '
                f'targets), and physics_dt_s={physics_dt_s} must divide {1 / INTERPOLATION_HZ} s'
            )
        self._clutch_every = max(1, round(CLUTCH_PERIOD_S / physics_dt_s))
        self._clutch_phase = 0

    def _resolve_names(self, robot_model: mujoco.MjModel) -> None:
        """Look ids and addresses up once; a joint's id is not its address in qpos."""
        m = self.model
        self._joint_qadr = [m.joint(name).qposadr[0] for name in JOINT_NAMES]
        self._joint_vadr = [m.joint(name).dofadr[0] for name in JOINT_NAMES]
        self._joint_act_id = [m.actuator(name).id for name in JOINT_ACTION_NAMES]
        fingers = [[m.joint(f'{hand}/finger_{i}').qposadr[0] for i in (1, 2)] for hand in HANDS]
        self._finger_qadr = np.array(fingers)  # (2 hands, 2 fingers)
        self._site_id = [m.site(f'{hand}/tool').id for hand in HANDS]
        self._torso_id = m.body('torso').id
        self._body_id = {b.name: m.body(b.name).id for b in self.bricks}
        self._posed = np.array([self._torso_id, *self._body_id.values()])  # bodies truth looks at
        self._camera_id = {name: m.camera(name).id for name in CAMERAS}
        self.trunk = self._bodies_above_elbows()
        self._robot_home = robot_model.key('home').qpos
        joints = [robot_model.joint(i) for i in range(robot_model.njnt)]
        # Addresses of every joint of the robot, in its own model and in the scene.
        self._robot_joints = [(j.qposadr[0], m.joint(j.name).qposadr[0]) for j in joints]

    def _bodies_above_elbows(self) -> set[int]:
        """Ids of the robot's bodies that are no part of a forearm or hand."""
        m = self.model
        forearms = {m.jnt_bodyid[m.joint(f'{hand}/elbow_y').id] for hand in HANDS}
        trunk = set()
        for body in np.flatnonzero(m.body_rootid == m.body_rootid[self._torso_id]).tolist():
            if m.body_parentid[body] in forearms:  # a parent comes before its children
                forearms.add(body)
            elif body not in forearms:
                trunk.add(body)
        return trunk

    # -- reset, step -------------------------------------------------------------------------------
    def reset(self, seed: int) -> tuple[dict, dict]:
        """Draw the episode of `seed`. Returns obs, info (see observe, info)."""
        rng = np.random.default_rng(seed)
        d = self.data
        self.seed = int(seed)
        mujoco.mj_resetData(self.model, d)
        self.clutch.reset()
        self.chance.draw(self.seed)
        self._draw_forces(seed)
        poses, asked = self.sample(rng)
        self._put_into_words(seed, asked)
        for name, pose in poses.items():
            if isinstance(pose, Goal):
                self._put_on(pose)
            else:
                x, y, yaw = pose
                self._put(name, (x, y, 1e-4), yaw)
        for source, target in self._robot_joints:
            d.qpos[target] = self._robot_home[source]
        command = self._draw_start(rng)
        self.tool_command = command.astype(np.float32)
        self.joint_command = self.controller.start(command)
        d.qpos[self._joint_qadr] = self._true_joints(self.joint_command)
        d.qpos[self._finger_qadr] = self.joint_command[N_JOINTS:, None] / 2
        self._send(self.joint_command)
        mujoco.mj_forward(self.model, d)
        self._clutch_phase = 0
        self._physics(10 * self._substeps)  # bricks settle
        self._refresh()
        self._clutch_phase = 0
        d.time = 0.0
        self.clutch.forget()
        self.steps = 0
        self.fault: str | None = None
        self._truth = None
        truth = self.truth()
        lay = truth.brick_poses if self.impossible else None
        self.judge = Judge(goal_at_work(truth, self.plan), lay=lay)
        return self.observe(), self.info()

    def _put_into_words(self, seed: int, asked: tasks.Askable) -> None:
        """Draw the words of every goal of the scene, and whether they can be followed.

        Words have a generator of their own: other words, the same scene.
        """
        rng = np.random.default_rng([42_043, seed])
        unfeasible = rng.random() < self.impossible_share
        self.plan = asked[0][0]
        self.frames: list[Frame | None] = []
        self.askable: list[tuple[Goal, str]] = []
        for goal, words in asked:
            frame = None if isinstance(words, str) else words
            self.frames.append(frame)
            self.askable.append((goal, words if isinstance(words, str) else self._say(rng, words)))
        self.instruction = self.askable[0][1]
        self.impossible: Frame | None = None
        time_limit_s = self.time_limit_s
        if unfeasible:
            self.impossible = self._impossible()
            self.instruction = self._say(rng, self.impossible)
            time_limit_s = STILL_S
        self.max_steps = self.patience * round(time_limit_s * self.control_hz)

    def _say(self, rng: np.random.Generator, frame: Frame) -> str:
        """Words for a goal frame, as the tokenizer reads them."""
        if self.wording == 'grammar':
            return plain(draw(rng, frame))
        return plain(held_out(frame, int(rng.integers(1 << 30))))

    def _impossible(self) -> Frame:
        """The frame of an instruction that cannot be followed in this scene."""
        of = self.frames[0]
        if of is None:
            raise ValueError(
                f'impossible_share={self.impossible_share}: task {self.task!r} gives texts, no '
                'goal frames; what cannot be done in its scenes is not known'
            )
        there = {brick.rgba for brick in self.bricks}
        colours = [colour for colour in COLOURS if tasks.RGBA[colour] in there]
        return dict(task='impossible', of=of, colours=colours, scene=self.task)

    def _draw_forces(self, seed: int) -> None:
        """Clutch forces of this episode; they have a generator of their own."""
        share = np.random.default_rng([31_337, seed]).uniform(-1, 1, 2)
        factor = 1 + self.forces['force_spread'] * share
        factor *= [self.chance.force_factor(name) for name in ('insertion', 'pull')]
        self.clutch.insertion_force_n = self.forces['insertion_force_n'] * factor[0]
        self.clutch.pull_force_n = self.forces['pull_force_n'] * factor[1]

    def _draw_start(self, rng: np.random.Generator) -> np.ndarray:
        """First tool command (15,): random starts around home, open hands.

        They are part of what makes demonstrations cover the state space.
        """
        command = np.zeros(len(TOOL_ACTION_NAMES))
        for hand in HANDS:
            ik = self.controller.ik[hand]
            pos, _ = ik.forward(ik.home)
            start = rng.uniform(-1, 1, 4) * [0.03, 0.03, 0.03, 0.2]
            command[ARM_TOOL[hand]] = [*pos + start[:3], 0, 0, start[3], self.max_opening_m]
        return command

    def _put(self, name: str, pos: np.ndarray | Sequence[float], yaw: float) -> None:
        """Set a brick's pose: position (3,) m, world frame."""
        m = self.model
        adr = m.jnt_qposadr[m.body_jntadr[self._body_id[name]]]
        self.data.qpos[adr : adr + 7] = *pos, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)

    def _put_on(self, goal: Goal) -> None:
        """Start with the goal's upper brick on the lower one."""
        d = self.data
        mujoco.mj_kinematics(self.model, d)
        body = self._body_id[goal.lower]
        pose = d.xpos[body].copy(), d.xmat[body].reshape(3, 3).copy()
        lower = next(brick for brick in self.bricks if brick.name == goal.lower)
        pos, yaw = seat(goal, lower, pose, self.brick_scale)
        self._put(goal.upper, pos, yaw)
        mujoco.mj_kinematics(self.model, d)
        for link in goal.chain:  # a brick of a plan may sit on several
            if link.upper == goal.upper:
                self.clutch.attach(link.lower, link.upper)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Execute one action for one control interval.

        Args:
            action: With action_space 'tool' (15,), cast to float32 (so that a recorded action
                replays bit-equal) and clipped to bounds. With 'joint' (17,): absolute joint
                position targets at the end of the interval, rad, and gripper openings, m.

        Returns:
            obs, reward (1 for success), terminated, truncated, info.
        """
        action = self._checked(action)
        before = self.joint_command
        if self.action_space == 'tool':
            command = np.clip(action, TOOL_LOW, TOOL_HIGH).astype(np.float32)
            target = self.controller.follow_tool(command, self.tool_command, before)
        else:
            target = self.controller.follow_joints(action, before)
            command = self.controller.tool_command(target)
        n = round(INTERPOLATION_HZ / self.control_hz)
        late = self.chance.late_ticks(self.seed, self.steps, n, 1 / INTERPOLATION_HZ)
        for k in range(1, n + 1):
            self._send(before + (target - before) * max(0, k - late) / (n - late))
            self._physics(self._substeps)
            if self.observer:
                self.observer()
        self.clutch.measure()
        self._refresh()
        self.tool_command = command
        self.joint_command = target
        self.steps += 1
        self._truth = None
        self._check_physics()
        self.judge.update(self.truth())
        info = self.info()
        terminated = info['success'] or self.fault is not None
        truncated = self.steps >= self.max_steps
        return self.observe(), float(info['success']), terminated, truncated, info

    def _checked(self, action: np.ndarray) -> np.ndarray:
        names = ACTION_NAMES[self.action_space]
        # A joint action keeps its 64 bits: the joint commands of a tool run then repeat it exactly.
        action = np.asarray(action, np.float32 if self.action_space == 'tool' else np.float64)
        if action.shape != (len(names),) or not np.isfinite(action).all():
            raise ValueError(
                f'action: expected {len(names)} finite numbers {names}, '
                f'got shape {action.shape}: {action}'
            )
        return action

    def _send(self, joint_command: np.ndarray) -> None:
        self.data.ctrl[self._joint_act_id[:N_JOINTS]] = self._true_joints(joint_command)
        # A gripper's actuator drives each finger by half the opening.
        self.data.ctrl[self._joint_act_id[N_JOINTS:]] = joint_command[N_JOINTS:] / 2

    def _true_joints(self, joint_command: np.ndarray) -> np.ndarray:
        """Where joints (15,) rad go that are sent a command (17,): their zeros may be off."""
        joints = joint_command[:N_JOINTS]
        offset_rad = self.chance.joint_offset_rad
        return joints if offset_rad is None else joints + offset_rad

    def _measured(self, truth: Truth) -> tuple[np.ndarray, dict[str, Pose]]:
        """What the robot takes for its joints (15,) rad and its tools' poses, torso frame."""
        joints = self.data.qpos[self._joint_qadr]
        offset_rad = self.chance.joint_offset_rad
        if offset_rad is None:
            return joints, truth.tool_poses
        joints = joints - offset_rad
        ik = self.controller.ik
        return joints, {hand: ik[hand].forward(joints[ARM_JOINTS[hand]]) for hand in HANDS}

    def _physics(self, n: int) -> None:
        """Take n physics steps, with the clutch's updates where they are due."""
        done = 0
        while done < n:
            k = min(n - done, self._clutch_every - self._clutch_phase)
            mujoco.mj_step(self.model, self.data, nstep=k)
            done += k
            self._clutch_phase = (self._clutch_phase + k) % self._clutch_every
            if self._clutch_phase == 0:
                self.clutch.update()

    def _refresh(self) -> None:
        """Compute poses and velocities of *this* instant.

        mj_step leaves those of the moment before its last integration.
        """
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        mujoco.mj_comVel(self.model, self.data)

    def _check_physics(self) -> None:
        """Divergence ends the episode with a named reason."""
        d = self.data
        truth = self.truth()
        t = self.steps / self.control_hz  # MuJoCo starts d.time anew when it diverges
        counts = [d.warning[i].number for i in range(int(mujoco.mjtWarning.mjNWARNING))]
        bad = [mujoco.mjtWarning(i).name for i, n in enumerate(counts) if n]
        if bad:
            self.fault = f'MuJoCo warning {bad[0]} at t={t:.1f} s'
        elif not np.isfinite(truth.qpos).all():
            self.fault = f'non-finite positions at t={t:.1f} s'
        elif truth.penetration_m > MAX_PENETRATION_M:
            self.fault = f'penetration {1e3 * truth.penetration_m:.0f} mm at t={t:.1f} s'
        elif truth.energy_j > MAX_ENERGY_J:
            self.fault = f'energy {truth.energy_j:.0f} J at t={t:.1f} s'

    def energy_j(self) -> float:
        """Kinetic energy of everything, J: what a simulation that blows up has too much of.

        Potential energy is left out: gravity does no work on the compensated robot.
        """
        mujoco.mj_energyVel(self.model, self.data)
        return float(self.data.energy[1])

    # -- truth -------------------------------------------------------------------------------------
    def truth(self) -> Truth:
        """What is true at this instant, one frozen snapshot per state.

        Asked again before anything has changed, also by a hand that writes into `data`, it gives
        the same object.
        """
        d = self.data
        raw = (
            d.qpos,
            d.qvel,
            d.xpos[self._posed],
            d.xmat[self._posed],
            d.site_xpos[self._site_id],
            d.site_xmat[self._site_id],
        )
        state = b''.join([array.tobytes() for array in raw])
        links = self.clutch.snapshot()
        if self._truth is None or state != self._truth_of or links is not self._truth.links:
            truth = self._look(*raw[2:])
            if self.plan.then is not None:
                truth = dataclasses.replace(truth, goal=goal_at_work(truth, self.plan))
            self._truth = truth
            self._truth_of = state
        return self._truth

    def _look(
        self, body_pos: np.ndarray, body_mat: np.ndarray, site_pos: np.ndarray, site_mat: np.ndarray
    ) -> Truth:
        """A snapshot of poses: of the torso and all bricks, and of both tools, world frame."""
        d = self.data
        body_mat = body_mat.reshape(-1, 3, 3)
        site_mat = site_mat.reshape(-1, 3, 3)
        to_torso = body_mat[0].T
        tool_poses = {}
        for i, hand in enumerate(HANDS):
            tool_poses[hand] = (to_torso @ (site_pos[i] - body_pos[0]), to_torso @ site_mat[i])
        openings = 2 * d.qpos[self._finger_qadr[:, 0]]
        arrays = dict(
            tool_command=self.tool_command.copy(),
            joint_command=self.joint_command.copy(),
            qpos=d.qpos.copy(),
            qvel=d.qvel.copy(),
            ctrl=d.ctrl.copy(),
        )
        for array in (*arrays.values(), body_pos, body_mat, *sum(tool_poses.values(), ())):
            array.setflags(write=False)
        return Truth(
            task=self.task,
            instruction=self.instruction,
            askable=self.askable,
            frames=self.frames,
            impossible=self.impossible,
            plan=self.plan,
            goal=self.plan,
            bricks=self.bricks,
            brick_scale=self.brick_scale,
            control_hz=self.control_hz,
            max_opening_m=self.max_opening_m,
            grasp_height_m=self.grasp_height_m,
            steps=self.steps,
            brick_poses=dict(zip(self._body_id, zip(body_pos[1:], body_mat[1:]))),
            tool_poses=tool_poses,
            openings_m=dict(zip(HANDS, openings)),
            links=self.clutch.snapshot(),
            events=tuple(self.clutch.events),
            peak_force_n=float(self.clutch.peak_force_n),
            penetration_m=-d.contact.dist.min() if d.ncon else 0.0,
            energy_j=self.energy_j(),
            **arrays,
        )

    def connections(self) -> list[dict]:
        """Who holds whom, with how many studs, at what load and utilisation, see Clutch."""
        return self.clutch.connections()

    # -- observations ------------------------------------------------------------------------------
    def observe(self) -> dict:
        """Measured quantities, order left, right, torso frame.

        Returns:
            time s; joint_pos (15,) rad; joint_vel (15,) rad/s; gripper (2,) m; tool_pos (2, 3) m;
            tool_quat (2, 4) wxyz; tool_vel (2, 3) m/s; tool_command (15,) and joint_command (17,),
            the commands in force; image/<camera> (h, w, 3) uint8; instruction.
        """
        d = self.data
        truth = self.truth()
        to_torso = d.xmat[self._torso_id].reshape(3, 3).T
        velocity = np.zeros(6)  # rotation, then translation
        quats = []
        velocities = []
        joint_pos, tool_poses = self._measured(truth)
        for hand, site in zip(HANDS, self._site_id):
            _, R = tool_poses[hand]
            quat = np.zeros(4)
            mujoco.mju_mat2Quat(quat, np.ascontiguousarray(R).ravel())
            mujoco.mj_objectVelocity(self.model, d, mujoco.mjtObj.mjOBJ_SITE, site, velocity, 0)
            quats.append(quat if quat[0] >= 0 else -quat)
            velocities.append(to_torso @ velocity[3:])
        obs = dict(
            time=d.time,
            joint_pos=joint_pos,
            joint_vel=d.qvel[self._joint_vadr],
            gripper=2 * d.qpos[self._finger_qadr[:, 0]],
            tool_pos=np.array([tool_poses[hand][0] for hand in HANDS]),
            tool_quat=np.array(quats),
            tool_vel=np.array(velocities),
            tool_command=self.tool_command.copy(),
            joint_command=self.joint_command.astype(np.float32),
            instruction=self.instruction,
        )
        for name, picture in self._pictures().items():
            obs[f'image/{name}'] = picture
        return obs

    def _pictures(self) -> dict[str, np.ndarray]:
        """Pictures of all cameras, (h, w, 3) uint8 each, drawn one below the other and read once.

        Whoever reads a picture waits until it is drawn, which is what takes time on a GPU.
        """
        if not self.cameras:
            return {}
        size = self.image_size
        height = len(self.cameras) * size
        if height > TALLEST_PX:
            return {name: self.render(name) for name in self.cameras}
        renderer = self._renderer(height, size, shadows=False)
        context = renderer._mjr_context  # mujoco.Renderer itself draws one picture at a time
        if renderer._gl_context:
            renderer._gl_context.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        for i, name in enumerate(self.cameras):
            self._aim(renderer, name)
            place = mujoco.MjrRect(0, i * size, size, size)
            mujoco.mjr_render(place, renderer.scene, context)
        pixels = np.empty((height, size, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, mujoco.MjrRect(0, 0, size, height), context)
        upright = pixels.reshape(-1, size, size, 3)[:, ::-1]  # OpenGL's lines begin at the bottom
        return {
            name: self.chance.develop(picture.copy(), name, self.seed, self.steps)
            for name, picture in zip(self.cameras, upright)
        }

    def info(self) -> dict:
        """What is known of the episode so far.

        Returns:
            success (goal held 1 s); goal (its conditions are true now); phase (furthest, index into
            judge.PHASES); metrics; fault (None, or why physics ended the episode).
        """
        return dict(
            success=self.judge.success,
            goal=self.judge.held_steps > 0,
            phase=self.judge.phase,
            metrics=dict(self.judge.metrics),
            fault=self.fault,
        )

    def render(
        self,
        camera: str,
        size: int | tuple[int, int] | None = None,
        shadows: bool = False,
        mode: str = 'rgb',
    ) -> np.ndarray:
        """Picture of a named camera.

        Args:
            camera: One of CAMERAS. `third_person` stands behind the robot, whose trunk and
                shoulders are left out of its pictures: they would hide the hands.
            size: px, an int or (height, width); None: image_size.
            shadows: They cost 3-4 times the picture.
            mode: See Returns.

        Returns:
            'rgb': (h, w, 3) uint8. 'depth': (h, w) float32, m along the optical axis.
            'segmentation': (h, w) int32, the body's id (its name is model.body(i).name; 0 is the
            world: table, floor), -1 where nothing is.
        """
        if mode not in RENDER_MODES:
            raise ValueError(f'mode={mode!r}: expected one of {RENDER_MODES}')
        size = size or self.image_size
        h, w = (size, size) if isinstance(size, int) else size
        renderer = self._renderer(h, w, shadows)
        self._aim(renderer, camera)
        if mode == 'rgb':
            return self.chance.develop(renderer.render().copy(), camera, self.seed, self.steps)
        if mode == 'depth':
            renderer.enable_depth_rendering()
            picture = renderer.render().astype(np.float32)
            renderer.disable_depth_rendering()
            return picture
        renderer.enable_segmentation_rendering()
        geoms, kinds = np.moveaxis(renderer.render(), -1, 0)
        renderer.disable_segmentation_rendering()
        is_geom = kinds == mujoco.mjtObj.mjOBJ_GEOM
        return np.where(is_geom, self.model.geom_bodyid[geoms], -1).astype(np.int32)

    def _aim(self, renderer: mujoco.Renderer, camera: str) -> None:
        """Put what a camera sees into a renderer's scene."""
        renderer.update_scene(self.data, self._camera_id[camera])
        if camera == 'third_person':
            self._leave_out_trunk(renderer.scene)

    def _renderer(self, height: int, width: int, shadows: bool) -> mujoco.Renderer:
        """A renderer is made once for each size."""
        if gl_backend() == 'disable':
            raise RuntimeError(NOTHING_RENDERS)
        key = height, width, shadows
        if key not in self._renderers:
            # An offscreen buffer larger than the picture is cleared and resolved with it: 2.2
            # against 1.3 ms at 96 px.
            self.model.vis.global_.offwidth = width
            self.model.vis.global_.offheight = height
            renderer = mujoco.Renderer(self.model, height, width)
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
            if self.chance.has_walls:
                renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = False
            self._renderers[key] = renderer
        return self._renderers[key]

    def _leave_out_trunk(self, scene: mujoco.MjvScene) -> None:
        """Move what lies between the torso and the elbows out of a scene, below the floor."""
        for geom in scene.geoms[: scene.ngeom]:
            is_geom = geom.objtype == mujoco.mjtObj.mjOBJ_GEOM
            if is_geom and self.model.geom_bodyid[geom.objid] in self.trunk:
                geom.pos[2] = -100

    # -- snapshots, facts --------------------------------------------------------------------------
    def state(self) -> dict:
        """Snapshot that set_state restores exactly.

        It holds full physics, the clutch's table, the model arrays that the clutch edits, and what
        the world and its judge remember.
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
                instruction=self.instruction,
                askable=list(self.askable),
                frames=list(self.frames),
                impossible=self.impossible,
                max_steps=self.max_steps,
                steps=self.steps,
                fault=self.fault,
                judge=self.judge.copy(),
                tool_command=self.tool_command.copy(),
                joint_command=self.joint_command.copy(),
                _clutch_phase=self._clutch_phase,
            ),
        )

    def set_state(self, state: dict) -> None:
        """Restore a snapshot of state() of a world built with the same arguments."""
        m = self.model
        d = self.data
        m.eq_obj1id[:] = state['eq_obj1id']
        m.eq_obj2id[:] = state['eq_obj2id']
        m.eq_data[:] = state['eq_data']
        m.exclude_signature[:] = state['exclude']
        self.chance.draw(state['memory']['seed'])
        mujoco.mj_setState(m, d, state['physics'], mujoco.mjtState.mjSTATE_INTEGRATION)
        d.eq_active[:] = state['eq_active']
        self._refresh()
        for warning in d.warning:  # they belong to the run that is being left
            warning.number = 0
        self.clutch.links[:] = state['links']
        self.clutch.pending[:] = state['pending']
        self.clutch.events[:] = state['events']
        self.clutch.peak_force_n = state['peak_force_n']
        self.clutch.insertion_force_n, self.clutch.pull_force_n = state['forces']
        self.clutch.changed()
        for key, value in state['memory'].items():
            setattr(self, key, value.copy() if hasattr(value, 'copy') else value)
        self._truth = None

    def metadata(self) -> dict:
        """JSON-able facts a recording or checkpoint has to agree on."""
        fovy = self.model.cam_fovy
        return dict(
            task=self.task,
            plan=self.plan_file,
            **self.plan_options,
            brick_scale=self.brick_scale,
            **self.curriculum,
            wording=self.wording,
            impossible_share=self.impossible_share,
            **self.randomised,
            randomised=self.chance.drawn,
            cameras=list(self.cameras),
            image_size=self.image_size,
            control_hz=self.control_hz,
            physics_dt_s=self.model.opt.timestep,
            robot=self.robot,
            **self.forces,
            action_space=self.action_space,
            gripper_m=[CLOSED_M, self.max_opening_m],  # commands that close and open a hand
            tool_action_names=list(TOOL_ACTION_NAMES),
            joint_action_names=list(JOINT_ACTION_NAMES),
            camera_fovy_deg={name: float(fovy[i]) for name, i in self._camera_id.items()},
            camera_pose=self.camera_poses(),
            model_hash=self.model_hash,
            mujoco=mujoco.__version__,
            gl=gl_backend(),
        )

    def camera_poses(self) -> dict[str, list[float]]:
        """Where the cameras that stand still are.

        Returns:
            {camera: position (3,) m, then rotation (9,), row by row, world frame}. A camera looks
            along its -z, x to the right, y up.
        """
        m = self.model
        poses = {}
        for name, i in self._camera_id.items():
            if m.body_weldid[m.cam_bodyid[i]] == 0:
                poses[name] = [*m.cam_pos0[i].tolist(), *m.cam_mat0[i].ravel().tolist()]
        return poses

    def close(self) -> None:
        """Free what renders; a world can still be stepped, and renders again if asked to."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}


def _check_words(wording: str, impossible_share: float) -> None:
    """Raise ValueError where these arguments of World have no sense."""
    if wording not in WORDINGS:
        raise ValueError(f'wording={wording!r}: expected one of {WORDINGS}')
    if not 0 <= impossible_share <= 1:
        raise ValueError(f'impossible_share={impossible_share}: expected 0 to 1')


def _check_arguments(
    task: str,
    planned: bool,
    cameras: Sequence[str],
    brick_scale: float,
    action_space: str,
    forces: dict[str, float],
    force_spread: float,
) -> None:
    """Raise ValueError for the first argument of World that has no sense."""
    if not planned and task not in TASKS:
        raise ValueError(f'task={task!r}: expected one of {sorted(TASKS)}')
    for name in cameras:
        if name not in CAMERAS:
            raise ValueError(f'camera {name!r}: expected some of {CAMERAS}')
    if not 1 <= brick_scale <= 2:
        raise ValueError(f'brick_scale={brick_scale}: expected 1 (LEGO) to 2 (DUPLO)')
    if action_space not in ACTION_NAMES:
        raise ValueError(f'action_space={action_space!r}: expected one of {sorted(ACTION_NAMES)}')
    if min(forces.values()) <= 0 or not 0 <= force_spread < 1:
        raise ValueError(
            f'{forces}, force_spread={force_spread}: expected forces > 0, a spread in 0..1'
        )
