"""What is true at one instant: a frozen snapshot of the work cell, made once per control step.

    truth = world.truth()
    pos, R = truth.brick_pose('red')
    if truth.joined(): ...

Judge, labels, expert and kicks are functions of it; none of them asks the world. It holds copies of
plain data, so it stays what it was when the world goes on. Its methods are geometry: where a brick
has to go, whether it sits there, who holds it.

Frames as in world.py: bricks in the world frame, tools in the torso frame, SI units, rad. A brick's
origin is the middle of its bottom face. `R` is a rotation matrix (3, 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from instructions import Frame
from sim.bricks import STUD_PITCH_M, Brick
from sim.clutch import Link
from sim.control import TOOL_HIGH
from sim.kinematics import wrap, yaw_of
from sim.tasks import HANDS, PUT_DOWN, Goal, colour_number

WIDEST_M = TOOL_HIGH[7]  # between fingers that are open as far as they go
Pose = tuple[np.ndarray, np.ndarray]  # position (3,) m, rotation (3, 3)


def seat(goal: Goal, lower: Brick, pose: Pose, scale: float) -> tuple[np.ndarray, float]:
    """Where the upper brick of a goal sits on the lower one.

    Args:
        goal: Which cell and how many quarter turns.
        lower: The lower brick.
        pose: Position and rotation of the lower brick.
        scale: 1 for LEGO, 2 for DUPLO.

    Returns:
        Position (3,) m and yaw, in the frame that the lower brick's pose is given in.
    """
    pos, R = pose
    cell_m = np.array(goal.cell) * scale * STUD_PITCH_M
    offset = np.array([*cell_m, lower.height_m(scale)])
    return pos + R @ offset, yaw_of(R) + goal.turns * np.pi / 2


@dataclass(frozen=True, eq=False)
class Truth:
    """One instant of an episode. Arrays are read-only copies."""

    # What is asked for.
    task: str
    instruction: str
    askable: Sequence[tuple[Goal, str]]  # all plans the scene affords, in words; the first is asked
    frames: Sequence[Frame | None]  # A goal frame for each; None for a task with texts.
    # The frame of an instruction that cannot be followed here: then no plan is, hands stay still.
    impossible: Frame | None
    plan: Goal
    goal: Goal  # the goal of the plan that is at work now, see judge.goal_at_work
    # What there is.
    bricks: tuple[Brick, ...]
    brick_scale: float
    control_hz: int
    max_opening_m: float  # A released hand opens to this.
    grasp_height_m: float  # Height of the tool above the bottom of the brick it holds.
    # Where it is.
    steps: int  # control steps since the reset
    brick_poses: dict[str, Pose]  # world frame
    tool_poses: dict[str, Pose]  # torso frame
    openings_m: dict[str, float]  # measured distance between the fingers
    links: tuple[Link, ...]  # pairs of bricks whose studs are in
    # The commands in force.
    tool_command: np.ndarray  # (15,) float32, see episode.TOOL_ACTION
    joint_command: np.ndarray  # (17,) float64, see episode.JOINT_ACTION
    # Physics.
    qpos: np.ndarray
    qvel: np.ndarray
    ctrl: np.ndarray
    events: tuple  # The clutch's since the reset: (time s, what, lower, upper).
    peak_force_n: float  # largest force that a seated link has carried since the reset
    penetration_m: float  # Depth of the deepest contact.
    energy_j: float  # kinetic energy of everything

    # -- lookups -----------------------------------------------------------------------------------
    def brick(self, name: str) -> Brick:
        """The brick of that name."""
        return next(brick for brick in self.bricks if brick.name == name)

    @property
    def movable(self) -> list[str]:
        """Names of the bricks that are not screwed to the table, in the order of `bricks`."""
        return [brick.name for brick in self.bricks if not brick.fixed]

    def number(self, name: str) -> int:
        """The number by which targets and referents know a loose brick: its colour's."""
        return colour_number(self.brick(name))

    def brick_pose(self, name: str) -> Pose:
        """Position (3,) m of the brick's bottom centre and rotation (3, 3), world frame."""
        return self.brick_poses[name]

    def tool_pose(self, hand: str) -> Pose:
        """Tool position (3,) m and rotation (3, 3), torso frame."""
        return self.tool_poses[hand]

    def opening_m(self, hand: str) -> float:
        """Measured distance between the fingers, m."""
        return self.openings_m[hand]

    def link(self, lower: str, upper: str, loose: bool = False) -> Link | None:
        """The link between two bricks; None where there is none.

        Args:
            lower: The brick whose studs are in.
            upper: The brick that sits on them.
            loose: Whether a link counts that is broken and whose studs have not come out.
        """
        for link in self.links:
            if link.lower == lower and link.upper == upper and (loose or not link.loose):
                return link
        return None

    # -- the goal ----------------------------------------------------------------------------------
    def seat(self, goal: Goal) -> tuple[np.ndarray, float]:
        """Pose of the upper brick when it sits on the lower one: position (3,) m, yaw rad."""
        lower = self.brick(goal.lower)
        return seat(goal, lower, self.brick_pose(goal.lower), self.brick_scale)

    def goal_pose(self, goal: Goal | None = None) -> tuple[np.ndarray, float]:
        """Where the upper brick of the goal at work (or of another goal) has to be now.

        That is its seat on the lower brick, with which it moves. Where the goal is to take them
        apart, it is the place on the table before the hand that pulls.

        Returns:
            Position (3,) m and yaw rad (modulo pi), world frame.
        """
        goal = goal or self.goal
        if goal.grip and goal.grip.via:
            return np.array([*goal.grip.via, 0.0]), np.pi / 2
        if goal.apart:
            x, y, yaw = PUT_DOWN[goal.hand]
            return np.array([x, y, 0.0]), yaw
        return self.seat(goal)

    def goal_error(self, goal: Goal | None = None) -> tuple[np.ndarray, float]:
        """How far the upper brick is from its goal_pose: (3,) m in the world frame, yaw rad."""
        goal = goal or self.goal
        target, yaw = self.goal_pose(goal)
        pos, R = self.brick_pose(goal.upper)
        return pos - target, wrap(yaw_of(R) - yaw, np.pi)

    def joined(self, goal: Goal | None = None, loose: bool = False) -> bool:
        """True while the connection of the goal at work (or of another goal) holds.

        Args:
            goal: Another goal than the one at work.
            loose: Whether it counts while it is broken and its studs have not come out.
        """
        goal = goal or self.goal
        link = self.link(goal.lower, goal.upper, loose)
        if link is None:
            return False
        nx, ny = self.brick(goal.upper).studs
        symmetry = 1 if nx == ny else 2
        if goal.grip:  # A plan from a file says just how.
            symmetry = 4
        return link.cell == goal.cell and (link.turns - goal.turns) % symmetry == 0

    def taken_off(self, goal: Goal) -> bool:
        """True where the goal's upper brick lies on the table by itself, and no hand has it."""
        linked = any(goal.upper in (link.upper, link.lower) for link in self.links)
        return not linked and self.lies(goal.upper) and self.held_by(goal.upper) is None

    def below(self, brick: str) -> set[str]:
        """Names of the loose bricks that a brick stands on, and of those that they stand on."""
        loose = set(self.movable)
        found: set[str] = set()
        new = {brick}
        while new:
            under = {link.lower for link in self.links if link.upper in new and not link.loose}
            new = (under & loose) - found
            found |= new
        return found

    def above(self, brick: str) -> list[str]:
        """Names of the bricks that stand on a brick, and of those that stand on them, from below.

        Gripped by its foot a tower is in the way of the palm, so it is fetched by its top.
        """
        found: list[str] = []
        layer = [brick]
        while layer:
            on_it = [link.upper for link in self.links if link.lower in layer]
            layer = [name for name in dict.fromkeys(on_it) if name not in found]
            found += layer
        return found

    # -- hands and bricks --------------------------------------------------------------------------
    def released(self, hand: str, brick: str | None = None) -> bool:
        """True when the tool is 3 cm above where it would hold the brick (the goal's upper one)."""
        top = self.brick_pose(brick or self.goal.upper)[0][2] + self.grasp_height_m
        return bool(self.tool_pose(hand)[0][2] > top + 0.03)

    def grip_offset(self, hand: str, brick: str) -> np.ndarray:
        """From where the hand grips the brick best to its tool, (3,) m in the brick's frame.

        Long bricks may be held anywhere along their length.
        """
        pos, R = self.brick_pose(brick)
        studs = self.brick(brick).studs
        offset = R.T @ (self.tool_pose(hand)[0] - pos) - [0, 0, self.grasp_height_m]
        half = (max(studs) - 2) / 2 * self.brick_scale * STUD_PITCH_M
        along = int(studs[1] >= studs[0])
        offset[along] -= np.clip(offset[along], -half, half)
        return offset

    def near(self, hand: str, brick: str) -> bool:
        """True where the hand's tool is within 12 mm (times the scale) of where it would grip."""
        offset = self.grip_offset(hand, brick)
        return bool(np.linalg.norm(offset) < 0.012 * self.brick_scale)

    def held_by(self, brick: str) -> str | None:
        """The hand that has the brick between its closed fingers; None if neither has.

        Fingers may be on its long sides or on its ends.
        """
        studs = self.brick(brick).studs
        axes = self.brick_pose(brick)[1][:, :2]
        for hand in HANDS:
            closes = self.tool_pose(hand)[1][:, 1]  # The fingers close along the tool's y.
            side = int(np.abs(closes @ axes).argmax())
            width_m = studs[side] * STUD_PITCH_M * self.brick_scale
            room_m = min(0.008 * self.brick_scale, 0.4 * (WIDEST_M - width_m))
            closed = room_m > 0 and self.opening_m(hand) < width_m + room_m
            if closed and self.near(hand, brick):
                return hand
        return None

    def lies(self, brick: str) -> bool:
        """True when the brick lies on the table, the right way up."""
        pos, R = self.brick_pose(brick)
        return bool(pos[2] < 0.0015 * self.brick_scale and R[2, 2] > 0.99)

    def lifts(self, goal: Goal | None = None) -> bool:
        """True where the holder of the goal at work (or of another goal) has to lift `lower`.

        Otherwise there is no holder, or it holds a plate down or steadies a tower.
        """
        goal = goal or self.goal
        plate = self.brick(goal.lower).plate
        return goal.holder is not None and not plate and not goal.steady
