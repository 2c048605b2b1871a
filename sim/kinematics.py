"""Rotations, and inverse kinematics of one arm. SI units, rad, quaternions wxyz.

ik = ArmIK(robot_model, 'left')
q = ik.solve(ik.home, pos, R)                  # joints (7,) rad that bring the tool there
"""

import numpy as np

from sim.gl import mujoco

ARM_JOINTS = (
    'shoulder_y',
    'shoulder_x',
    'shoulder_z',
    'elbow_y',
    'wrist_z',
    'wrist_x',
    'gripper_z',
)
STUCK_M = 0.03  # an arm that misses a reachable pose by this much goes there by way of home


# -- rotations -----------------------------------------------------------------------------------------------
def rotvec_to_matrix(v):
    """Rotation vector (3,) rad -> matrix (3, 3)."""
    quat = np.zeros(4)
    R = np.zeros(9)
    angle = np.linalg.norm(v)
    mujoco.mju_axisAngle2Quat(quat, v / angle if angle > 1e-12 else np.array([0.0, 0, 1]), angle)
    mujoco.mju_quat2Mat(R, quat)
    return R.reshape(3, 3)


def matrix_to_rotvec(R):
    """Matrix (3, 3) -> rotation vector (3,) rad, angle in [0, pi]."""
    quat = np.zeros(4)
    v = np.zeros(3)
    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(R).ravel())
    mujoco.mju_quat2Vel(v, quat, 1.0)
    return v


def wrap(angle, period=2 * np.pi):
    """Angle(s) in rad brought into [-period/2, period/2)."""
    return (angle + period / 2) % period - period / 2


def rot_z(angle):
    c = np.cos(angle)
    s = np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def yaw_of(R):
    """How far a rotation matrix turns the x axis about z, rad."""
    return np.arctan2(R[1, 0], R[0, 0])


class ArmIK:
    """Damped least squares for one arm on a model of the robot alone, in the torso frame (spine at
    zero). Damping 0.03 grows with the error; the null space pulls towards home, which keeps the
    elbow out.
    """

    def __init__(self, model, hand):
        self.model = model
        self.data = mujoco.MjData(model)
        self.site = model.site(f'{hand}/tool').id
        joints = [model.joint(f'{hand}/{j}') for j in ARM_JOINTS]
        self.qadr = [j.qposadr[0] for j in joints]
        self.vadr = [j.dofadr[0] for j in joints]
        # stay off the hard stops
        self.low, self.high = np.array([j.range for j in joints]).T + [[0.02], [-0.02]]
        self.home = model.key('home').qpos[self.qadr]
        self.jac = np.zeros((6, model.nv))

    def forward(self, q):
        """Arm joints (7,) rad -> tool position (3,), matrix (3, 3)."""
        self.data.qpos[self.qadr] = q
        mujoco.mj_kinematics(self.model, self.data)
        return self.data.site_xpos[self.site].copy(), self.data.site_xmat[self.site].reshape(
            3, 3
        ).copy()

    def solve(self, q, pos, R, iterations=20):
        """Joints (7,) rad that bring the tool to pos, R, starting from q, or from home where a
        twisted arm does not get there; the best found where it is out of reach.
        """
        best, off_m = self._descend(q, pos, R, iterations)
        if off_m > STUCK_M:
            other, off_m = self._descend(self.home, pos, R, iterations)
            best = other if off_m < STUCK_M / 4 else best
        return best

    def _descend(self, q, pos, R, iterations, null_gain=0.05, tol_m=1e-4, tol_rad=1e-3):
        model = self.model
        data = self.data
        eye = np.eye(7)
        q = np.clip(q, self.low, self.high)
        for _ in range(iterations):
            p, Rc = self.forward(q)
            e_pos = pos - p
            e_rot = matrix_to_rotvec(R @ Rc.T)
            if e_pos @ e_pos < tol_m**2 and e_rot @ e_rot < tol_rad**2:
                break
            mujoco.mj_comPos(model, data)
            mujoco.mj_jacSite(model, data, self.jac[:3], self.jac[3:], self.site)
            # 0.3 m/rad weighs rotation against position
            J = self.jac[:, self.vadr] * [[1], [1], [1], [0.3], [0.3], [0.3]]
            e = np.concatenate([np.clip(e_pos, -0.1, 0.1), 0.3 * np.clip(e_rot, -1, 1)])
            size = np.linalg.norm(e)
            pinv = J.T @ np.linalg.inv(J @ J.T + 0.03**2 * min(1, 10 * size + 1e-3) * np.eye(6))
            dq = pinv @ e + null_gain * min(1, 20 * size) * (eye - pinv @ J) @ (self.home - q)
            q = np.clip(q + np.clip(dq, -0.3, 0.3), self.low, self.high)
        return q, np.linalg.norm(pos - self.forward(q)[0])
