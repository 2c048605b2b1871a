"""Rotations, and inverse kinematics of one arm. SI units, rad, quaternions wxyz.

ik = ArmIK(robot_model, 'left')
q = ik.solve(ik.home, pos, R)                  # joints (7,) rad that bring the tool there
"""

import numpy as np

from episode import ARM_JOINTS, JOINT_NAMES
from sim.gl import mujoco

STUCK_M = 0.03  # an arm that misses a reachable pose by this much goes there by way of home
HARD_STOP_RAD = 0.02  # joints stay this far off their hard stops
M_PER_RAD = 0.3  # weighs rotation against position
DAMPING = 0.03
MAX_ERROR_M = 0.1  # The largest error that one iteration looks at.
MAX_ERROR_RAD = 1.0
MAX_MOVE_RAD = 0.3  # A joint's largest move in one iteration.
NULL_GAIN = 0.05
TOLERANCE_M = 1e-4
TOLERANCE_RAD = 1e-3


# -- rotations -------------------------------------------------------------------------------------
def rotvec_to_matrix(v: np.ndarray) -> np.ndarray:
    """Rotation vector (3,) rad -> matrix (3, 3)."""
    quat = np.zeros(4)
    R = np.zeros(9)
    angle = np.linalg.norm(v)
    axis = v / angle if angle > 1e-12 else np.array([0.0, 0, 1])
    mujoco.mju_axisAngle2Quat(quat, axis, angle)
    mujoco.mju_quat2Mat(R, quat)
    return R.reshape(3, 3)


def matrix_to_rotvec(R: np.ndarray) -> np.ndarray:
    """Matrix (3, 3) -> rotation vector (3,) rad, angle in [0, pi]."""
    quat = np.zeros(4)
    v = np.zeros(3)
    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(R).ravel())
    mujoco.mju_quat2Vel(v, quat, 1.0)
    return v


def rot_z(angle: float) -> np.ndarray:
    """Rotation (3, 3) about z by an angle in rad."""
    c = np.cos(angle)
    s = np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def yaw_of(R: np.ndarray) -> float:
    """How far a rotation matrix (3, 3) turns the x axis about z, rad."""
    return np.arctan2(R[1, 0], R[0, 0])


def wrap(angle: float, period: float = 2 * np.pi) -> float:
    """Angle in rad (or an array of them) brought into [-period/2, period/2)."""
    return (angle + period / 2) % period - period / 2


# -- one arm ---------------------------------------------------------------------------------------
class ArmIK:
    """Damped least squares for one arm, in the torso frame (spine at zero).

    It works on a model of the robot alone. The damping grows with the error; the null space pulls
    towards home, which keeps the elbow out.
    """

    def __init__(self, model: mujoco.MjModel, hand: str):
        """Take the arm of a hand ('left' or 'right') from a model of the robot alone."""
        self.model = model
        self.data = mujoco.MjData(model)
        self.site = model.site(f'{hand}/tool').id
        joints = [model.joint(name) for name in JOINT_NAMES[ARM_JOINTS[hand]]]
        self.qadr = [joint.qposadr[0] for joint in joints]
        self.vadr = [joint.dofadr[0] for joint in joints]
        low, high = np.array([joint.range for joint in joints]).T
        self.low = low + HARD_STOP_RAD
        self.high = high - HARD_STOP_RAD
        self.home = model.key('home').qpos[self.qadr]
        self.jac = np.zeros((6, model.nv))

    def forward(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Arm joints (7,) rad -> tool position (3,) m, rotation (3, 3)."""
        data = self.data
        data.qpos[self.qadr] = q
        mujoco.mj_kinematics(self.model, data)
        R = data.site_xmat[self.site].reshape(3, 3)
        return data.site_xpos[self.site].copy(), R.copy()

    def solve(
        self, q: np.ndarray, pos: np.ndarray, R: np.ndarray, iterations: int = 20
    ) -> np.ndarray:
        """Joints that bring the tool to a pose.

        Args:
            q: Joints (7,) rad to start from. Where a twisted arm does not get there from them, it
                starts from home.
            pos: Tool position (3,) m.
            R: Tool rotation (3, 3).
            iterations: At most so many of each descent.

        Returns:
            Joints (7,) rad; the best found where the pose is out of reach.
        """
        best, off_m = self._descend(q, pos, R, iterations)
        if off_m > STUCK_M:
            other, off_m = self._descend(self.home, pos, R, iterations)
            best = other if off_m < STUCK_M / 4 else best
        return best

    def _descend(
        self, q: np.ndarray, pos: np.ndarray, R: np.ndarray, iterations: int
    ) -> tuple[np.ndarray, float]:
        """Joints (7,) after so many iterations, and how far they leave the tool off, m."""
        model = self.model
        data = self.data
        eye = np.eye(len(self.qadr))
        weight = np.array([1, 1, 1, M_PER_RAD, M_PER_RAD, M_PER_RAD])[:, None]
        q = np.clip(q, self.low, self.high)
        for _ in range(iterations):
            p, Rc = self.forward(q)
            e_pos = pos - p
            e_rot = matrix_to_rotvec(R @ Rc.T)
            if e_pos @ e_pos < TOLERANCE_M**2 and e_rot @ e_rot < TOLERANCE_RAD**2:
                break
            mujoco.mj_comPos(model, data)
            mujoco.mj_jacSite(model, data, self.jac[:3], self.jac[3:], self.site)
            J = self.jac[:, self.vadr] * weight
            step = np.clip(e_pos, -MAX_ERROR_M, MAX_ERROR_M)
            turn = M_PER_RAD * np.clip(e_rot, -MAX_ERROR_RAD, MAX_ERROR_RAD)
            e = np.concatenate([step, turn])
            size = float(np.linalg.norm(e))
            damping = DAMPING**2 * min(1, 10 * size + 1e-3)
            pinv = J.T @ np.linalg.inv(J @ J.T + damping * np.eye(6))
            null_space = NULL_GAIN * min(1, 20 * size) * (eye - pinv @ J)
            dq = pinv @ e + null_space @ (self.home - q)
            dq = np.clip(dq, -MAX_MOVE_RAD, MAX_MOVE_RAD)
            q = np.clip(q + dq, self.low, self.high)
        return q, float(np.linalg.norm(pos - self.forward(q)[0]))
