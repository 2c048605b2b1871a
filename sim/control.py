"""From commands to joint targets: the bounds of both kinds of action, and the controller.

    controller = Controller(model, robot_model, control_hz=10)
    target = controller.follow_tool(command, command_before, joints_before)

A tool action (15,) says where the tools have to be, a joint action (17,) where the joints have to
be, at the end of the control interval; episode.TOOL_ACTION and JOINT_ACTION name their slots. The
controller turns the one into the other by damped least squares, and back by forward kinematics. It
keeps joints within their ranges and velocity limits.
"""

import numpy as np

from episode import (
    ARM_JOINTS,
    ARM_TOOL,
    JOINT_ACTION_NAMES,
    JOINT_GRIPPER,
    JOINT_NAMES,
    TOOL_ACTION_NAMES,
)
from sim.gl import mujoco
from sim.kinematics import ArmIK, matrix_to_rotvec, rotvec_to_matrix
from sim.tasks import HANDS

ACTION_NAMES = {'tool': TOOL_ACTION_NAMES, 'joint': JOINT_ACTION_NAMES}  # Names by action space.
# An arm's slots in a tool action, counted from its first one.
XYZ = slice(0, 3)
ROTVEC = slice(3, 6)
POSE = slice(0, 6)
YAW = 5
OPENING = 6
# Commands outside these bounds are clipped: torso frame, m and rad. A negative opening squeezes
# harder (kp 1500 N/m per finger).
SPINE_LIMIT_RAD = 0.5236
ARM_LOW = (0.15, -0.45, 0.002, -1.2, -1.2, -np.pi, -0.02)
ARM_HIGH = (0.56, 0.45, 0.40, 1.2, 1.2, np.pi, 0.08)
TOOL_LOW = np.array([-SPINE_LIMIT_RAD, *ARM_LOW, *ARM_LOW])
TOOL_HIGH = np.array([SPINE_LIMIT_RAD, *ARM_HIGH, *ARM_HIGH])
CLOSED_M = -0.02  # commanded opening of a gripping hand: squeezes with the spring's full reach
SPINE = 0  # the first slot of both kinds of action
N_JOINTS = len(JOINT_NAMES)  # Openings come after them in a joint action.


class Controller:
    """Joint targets of one robot at one control rate."""

    def __init__(self, model: mujoco.MjModel, robot_model: mujoco.MjModel, control_hz: int):
        self.ik = {hand: ArmIK(robot_model, hand) for hand in HANDS}
        ids = [model.joint(name).id for name in JOINT_NAMES]
        # rad/s per joint, from its `user` attribute in the robot's file; no limit where it has none
        stated = model.jnt_user[ids, 0] if model.nuser_jnt else np.zeros(len(ids))
        speed = np.where(stated > 0, stated, np.inf)
        self.reach_rad = speed / control_hz  # The most in one control interval.
        limited = model.jnt_limited[ids].astype(bool)
        low = np.where(limited, model.jnt_range[ids, 0], -np.inf)
        high = np.where(limited, model.jnt_range[ids, 1], np.inf)
        self.joint_low = np.array([*low, ARM_LOW[OPENING], ARM_LOW[OPENING]])
        self.joint_high = np.array([*high, ARM_HIGH[OPENING], ARM_HIGH[OPENING]])

    def start(self, tool_command: np.ndarray) -> np.ndarray:
        """Joints (17,) rad and m for the first tool command (15,) of an episode, from home."""
        joints = np.zeros(len(JOINT_ACTION_NAMES))
        for hand in HANDS:
            arm = tool_command[ARM_TOOL[hand]]
            ik = self.ik[hand]
            R = rotvec_to_matrix(arm[ROTVEC])
            joints[ARM_JOINTS[hand]] = ik.solve(ik.home, arm[XYZ], R, iterations=60)
            joints[JOINT_GRIPPER[hand]] = arm[OPENING]
        return joints

    def follow_tool(
        self, command: np.ndarray, command_before: np.ndarray, before: np.ndarray
    ) -> np.ndarray:
        """Joint targets that bring the tools where they are asked to be.

        Args:
            command: Tool action (15,), within bounds.
            command_before: The tool command in force. An arm whose pose is asked for again keeps
                its joints.
            before: The joint command in force (17,).

        Returns:
            Joint targets (17,) within the velocity limits.
        """
        target = before.copy()
        target[SPINE] = command[SPINE]
        for hand in HANDS:
            asked = command[ARM_TOOL[hand]]
            in_force = command_before[ARM_TOOL[hand]]
            arm = asked.astype(float)
            if not np.array_equal(asked[POSE], in_force[POSE]):
                joints = before[ARM_JOINTS[hand]]
                R = rotvec_to_matrix(arm[ROTVEC])
                target[ARM_JOINTS[hand]] = self.ik[hand].solve(joints, arm[XYZ], R)
            target[JOINT_GRIPPER[hand]] = arm[OPENING]
        return self._slowed(target, before)

    def follow_joints(self, command: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Joint targets (17,) for a joint action: within ranges and velocity limits."""
        return self._slowed(np.clip(command, self.joint_low, self.joint_high), before)

    def tool_command(self, joints: np.ndarray) -> np.ndarray:
        """The tool command (15,) float32 that joint targets (17,) amount to."""
        command = np.zeros(len(TOOL_ACTION_NAMES))
        command[SPINE] = joints[SPINE]
        for hand in HANDS:
            pos, R = self.ik[hand].forward(joints[ARM_JOINTS[hand]])
            arm = command[ARM_TOOL[hand]]
            arm[XYZ] = pos
            arm[ROTVEC] = matrix_to_rotvec(R)
            arm[OPENING] = joints[JOINT_GRIPPER[hand]]
        return command.astype(np.float32)

    def _slowed(self, target: np.ndarray, before: np.ndarray) -> np.ndarray:
        """The target as far as the robot's velocity limits let it get in a control interval."""
        joints = before[:N_JOINTS]
        slowed = np.clip(target[:N_JOINTS], joints - self.reach_rad, joints + self.reach_rad)
        return np.concatenate([slowed, target[N_JOINTS:]])
