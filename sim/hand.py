"""What one hand does next: reach, grasp, carry, press, pull, let go, and set fallen bricks upright.

    hand = Hand(truth, 'left', 'red')
    verb = hand.pick()               # 'reach' or 'grasp'
    action[ARM_TOOL['left']] = hand.new

Each verb composes the hand's seven slots of the next tool action (see sim/control.py) from the
snapshot alone. Heights follow funnels: the hand may be low only where it is also laterally right.
sim/expert.py decides which hand does what.

All numbers are m, rad, s in the torso frame (spine at zero: the same as the world frame). Lengths
that belong to a brick scale with it.
"""

from typing import TypeVar

import numpy as np

from episode import ARM_TOOL
from sim.bricks import BRICK_HEIGHT_M, PLATE_HEIGHT_M, STUD_HEIGHT_M, STUD_PITCH_M
from sim.control import CLOSED_M, OPENING, ROTVEC, XYZ, YAW
from sim.kinematics import matrix_to_rotvec, rot_z, rotvec_to_matrix, wrap, yaw_of
from sim.tasks import FINGERTIP_M, PUT_DOWN
from sim.truth import Truth

Number = TypeVar('Number', float, np.ndarray)
XY = slice(0, 2)
X, Z = 0, 2
ROLL = 3  # slot of the rotation about x
TILT = slice(3, 5)  # slots of the rotation about x and y
SPEED_M_S = 0.3
FINE_SPEED_M_S = 0.05  # The fingers close meanwhile.
FINE_Z_SPEED_M_S = 0.2  # close to the brick
PRESS_SPEED_M_S = 0.04  # per unit of brick scale
PULL_SPEED_M_S = 0.06  # per unit of brick scale
TURN_RAD_S = 2.0
PEEL_RAD_S = 1.0
MAX_PEEL_RAD = 0.35
WINDUP_RAD = 0.15  # Righting a brick, the command may be this far ahead in turn.
WINDUP_M = 0.002  # A press may command this far ahead of the hand sideways.
LEVEL_RAD = 0.05  # a brick that leans by less is level
MAX_LEAN_RAD = 0.6  # a brick that leans by up to this is grasped so, and righted
UPRIGHT = np.cos(0.3)  # z of what stands or points up well enough
# How far a hand turns that rights a brick, about the jaw (fingers pointing away from the robot ..
# towards it) and about the arm.
PITCH_RAD = (-1.2, 0.55)
ROLL_RAD = (-0.8, 0.8)
# With a brick it has yet to grasp, which may lie anywhere, it turns less; beyond this reach it does
# not turn at all.
GRASP_PITCH_RAD = (-0.6, 0.55)
LEANING_REACH_M = 0.38
MAX_YAW_RAD = 2.2  # The wrist's last joint ends at 2.6.
M_PER_RAD = 0.03  # an error in yaw counts as much as one of 3 cm per rad in place
WAITING_POINT_M = np.array([0.37, 0.13, 0.19])  # A hand waits here for the other, on its own side.
WAITING_NEAR_X_M = 0.28  # It waits nearer where the place is before the other hand.
HOLD_WINDUP_M = 0.008  # The same for a hand that holds a plate down.
LOW_M = 0.014  # A brick that comes in under the holder's palm stays this far above its seat.
CLEAR_Z_M = 0.14  # A hand that has let go rises so high.
CLEAR_M = 0.09  # around a brick that is being righted
CLEAR_Y_M = 0.16  # an idle hand stays at least this far from the middle


def side_of(hand: str) -> int:
    """Sign of y on the hand's own side of the table."""
    return 1 if hand == 'left' else -1


def sideways_m(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of two points (2,) or (3,) m in the horizontal plane."""
    x, y = a[:2] - b[:2]
    return np.hypot(x, y)


def stepped(now: Number, to: Number, limit: float) -> Number:
    """`now`, moved towards `to` by at most `limit`, each number of an array by itself."""
    return now + np.clip(to - now, -limit, limit)


def put_down(hand: str) -> tuple[np.ndarray, float]:
    """Place on the table (2,) m and yaw rad where a hand lays what it has taken off."""
    x, y, yaw = PUT_DOWN[hand]
    return np.array([x, y]), yaw


class Hand:
    """One hand's view of the state, and the command being composed for it."""

    def __init__(self, truth: Truth, hand: str, brick: str, grip_point: np.ndarray | None = None):
        """Look at a brick with a hand.

        Args:
            truth: The state.
            hand: 'left' or 'right'.
            brick: The brick it is about.
            grip_point: Where to grip it, (3,) m in the brick's frame; None: in the middle of the
                top of its tower.
        """
        s = truth.brick_scale
        self.truth = truth
        self.hand = hand
        self.scale = s
        self.dt = 1 / truth.control_hz
        self.command = truth.tool_command[ARM_TOOL[hand]].astype(float)
        self.new = self.command.copy()
        self.tool, self.R = truth.tool_pose(hand)
        self.yaw = yaw_of(self.R)
        self.brick, R_brick = truth.brick_pose(brick)
        self.brick_yaw = yaw_of(R_brick)
        self.up = R_brick[:, 2]
        self.tower = [brick, *truth.above(brick)]  # Several may stand side by side on it.
        # The bottom of where to hold it.
        top, R_top = truth.brick_pose(self.tower[-1] if grip_point is None else brick)
        self.grip = top if grip_point is None else top + R_top @ grip_point
        to_hand = rot_z(self.yaw).T
        self.in_hand = to_hand @ (self.brick - self.tool)
        grip = to_hand @ (self.grip - self.tool)
        self.open_m = truth.max_opening_m
        self.opening_m = truth.opening_m(hand)
        # As commanded, 0 is closed and 1 is open.
        self.stroke = (self.command[OPENING] - CLOSED_M) / (self.open_m - CLOSED_M)
        self.height = truth.grasp_height_m
        width = 2 * s * STUD_PITCH_M
        beside = np.hypot(grip[0], grip[1])
        above = grip[2] + self.height
        self.near = beside < 0.012 * s and abs(above) < 0.007 * s
        self.held = self.near and self.opening_m < width + 0.003
        self.closed = self.opening_m < width + 0.008 * s
        # Fingers on the long sides, the turn nearest to rest.
        self.grasp_yaw = wrap(yaw_of(R_top) - np.pi / 2, np.pi)
        self.tipped: Tipped | None = None  # most bricks stand upright
        if min(self.up[2], self.R[2, 2]) < UPRIGHT:
            tipped = Tipped(self, brick)
            if tipped.true:
                self.tipped = tipped
                self.held = False

    # -- composing the command ---------------------------------------------------------------------
    def go(
        self,
        xy: np.ndarray,
        turn: float | np.ndarray,
        z: float,
        speed: float = SPEED_M_S,
        z_speed: float = SPEED_M_S,
    ) -> None:
        """Move the command towards a pose within the speeds.

        Args:
            xy: Place (2,) m.
            turn: A rotation (3, 3), or the yaw of a hand that is upright but for a brick that
                leans.
            z: Height of the tool, m.
            speed: Sideways, m/s.
            z_speed: Up and down, m/s.
        """
        c = self.command
        dt = self.dt
        way = np.asarray(xy) - c[XY]
        length = max(float(np.linalg.norm(way)), 1e-9)
        self.new[XY] = c[XY] + way * min(1, speed * dt / length)
        self.new[Z] = stepped(c[Z], z, z_speed * dt)
        # The way that stays within the wrist's range, not the shortest.
        if isinstance(turn, np.ndarray):
            v = matrix_to_rotvec(turn)
        else:
            v = np.array([*self.lean(), turn])
        self.new[ROTVEC] = stepped(c[ROTVEC], v, TURN_RAD_S * dt)

    def turn(self, yaw: float) -> float:
        """Yaw to command so that the held brick gets to `yaw` (modulo half a turn)."""
        turn = self.command[YAW] + wrap(yaw - self.brick_yaw, np.pi)
        return turn if abs(turn) < MAX_YAW_RAD else wrap(turn, np.pi)

    def misplaced(self, place: np.ndarray, yaw: float) -> float:
        """How far the brick is from a place sideways, m, its error in yaw counted in."""
        turned = wrap(yaw - self.brick_yaw, np.pi)
        return sideways_m(place, self.brick) + M_PER_RAD * abs(turned)

    def lean(self) -> np.ndarray:
        """Tilt to command, the first two numbers of a rotation vector.

        It is that of a brick which leans on something, to grasp it squarely, and what rights a
        brick in the hand. (Grasped by an upright hand it kept its tilt; tilted by more than the
        studs allow, it was pressed on for ever.)
        """
        tilt = np.cross([0, 0, 1], self.up)
        angle = float(np.linalg.norm(tilt))
        far = sideways_m(self.grip, self.tool) > 0.05
        if not self.held and (angle > MAX_LEAN_RAD or far):
            return np.zeros(2)
        tilt *= max(0, 1 - LEVEL_RAD / max(angle, 1e-9))
        if not self.held:
            R = rotvec_to_matrix(tilt) @ rot_z(self.command[YAW])
            return matrix_to_rotvec(R)[:2]
        # What the other hand presses down at its end leans however far this one turns: the command
        # neither runs ahead of the hand without end nor leaves the arm's range. (It once did, and
        # the arm ended in a shape from which it did not come back.)
        now = rotvec_to_matrix(self.command[ROTVEC])
        if np.linalg.norm(matrix_to_rotvec(now @ self.R.T)) > WINDUP_RAD:
            now = self.R
        roll, pitch, _ = matrix_to_rotvec(rotvec_to_matrix(-0.5 * tilt) @ now)
        return np.array([np.clip(roll, *ROLL_RAD), np.clip(pitch, *GRASP_PITCH_RAD)])

    def gripper(self, shut: bool) -> None:
        """Command the fingers all the way, whatever is commanded now (they take a control period).

        Where the answer was the present command and a bit more, a learner copied the command, and
        hovered half open.
        """
        self.new[OPENING] = CLOSED_M if shut else self.open_m

    def lifted_speed(self) -> float:
        """Lateral speed while the brick is still close to the table, m/s."""
        return SPEED_M_S * np.clip(self.brick[2] / 0.03, 0, 1)

    # -- fetching ----------------------------------------------------------------------------------
    def grasp_place(self) -> np.ndarray:
        """Where the tool (3,) m grasps: above the grip, along the brick's own axis if it leans."""
        tilted = np.cos(MAX_LEAN_RAD) < self.up[2] < np.cos(LEVEL_RAD)
        axis = self.up if tilted else np.array([0, 0, 1])
        return self.grip + self.height * axis

    def pick(self) -> str:
        """Reach for the brick and close on it.

        It is used whenever the brick is not in this hand, or not upright.
        """
        s = self.scale
        if self.tipped:
            return self.right()
        goal = self.grasp_place()
        lean = np.linalg.norm(self.lean() - self.command[TILT])
        turn = abs(wrap(self.grasp_yaw - self.yaw)) + lean
        error = sideways_m(goal, self.tool) + M_PER_RAD * turn
        above = self.tool[2] - goal[2]
        in_place = self.near and error < 0.004 * s and abs(above) < 0.004 * s
        if in_place and (self.stroke < 0.9 or error < 0.0025 * s):
            self.go(goal[:2], self.grasp_yaw, goal[2], FINE_SPEED_M_S)
            self.gripper(shut=True)
            return 'grasp'
        z = goal[2] + np.clip(1.5 * (error - 0.004 * s), 0, 0.07)
        # Closed fingers beside the brick go up first.
        if self.closed and error < 0.03 * s and above < BRICK_HEIGHT_M * s:
            z = goal[2] + 0.05
        # A hand that is low and off to the side rises before it moves on.
        slow = 1.0 if error < 0.012 else np.clip(above / 0.025, 0.1, 1)
        z_speed = FINE_Z_SPEED_M_S if error < 0.03 else SPEED_M_S
        self.go(goal[:2], self.grasp_yaw, z, SPEED_M_S * slow, z_speed)
        self.gripper(shut=False)
        return 'reach'

    def right(self) -> str:
        """Set a brick upright that has tipped over.

        The hand grasps it leaning along as far as the arm can, lifts it, leans the other way and
        lets go on a clear spot. What lies on its side or stands on its end then falls on its feet.
        What is upside down has to turn by more than the arm does, and comes to stand on its end.
        """
        t = self._fallen()
        return self._turn_over(t) if t.gripped else self._grasp_fallen(t)

    def _fallen(self) -> 'Tipped':
        assert self.tipped is not None, f'{self.hand} hand: there is no fallen brick to right'
        return self.tipped

    def _turn_over(self, t: 'Tipped') -> str:
        """Lift the fallen brick, turn it, carry it to a clear spot, and let go of it there."""
        turned = t.turned()
        spot = self.clear_spot(t.middle)
        left = np.linalg.norm(matrix_to_rotvec(turned @ t.command.T))
        to_spot = spot - (t.middle - self.tool)[:2]
        self.gripper(shut=True)
        if left > 0.2 or sideways_m(spot, t.middle) > 0.03:
            z = self.tool[2] - t.lowest_m + 0.06
            turn = turned if t.lowest_m > 0.02 else t.R
            self.go(to_spot, turn, z, self.lifted_speed())
            return 'turn'
        if t.lowest_m > 0.006:
            z_speed = np.clip(3 * t.lowest_m, 0.05, SPEED_M_S)
            self.go(to_spot, turned, self.command[Z] - t.lowest_m + 0.001, z_speed=z_speed)
            return 'lower'
        self.new[XYZ] = self.tool  # pressed on the table the fingers would not open
        self.gripper(shut=False)
        return 'release'

    def _grasp_fallen(self, t: 'Tipped') -> str:
        s = self.scale
        grasp = t.grasp()
        goal = t.middle.copy()
        goal[2] = max(goal[2], FINGERTIP_M + 0.005)
        turn = np.linalg.norm(matrix_to_rotvec(grasp @ t.R.T))
        error = sideways_m(goal, self.tool) + M_PER_RAD * turn
        above = self.tool[2] - goal[2]
        in_place = error < 0.004 * s and abs(above) < 0.004 * s
        self.gripper(shut=bool(in_place))
        if in_place:
            self.go(goal[:2], grasp, goal[2], FINE_SPEED_M_S)
            return 'grasp'
        if above < 0.05 and (turn > 0.3 or self.opening_m < self.open_m - 0.016):
            # Turned down there the fingers would strike the brick, and drawn out sideways drag it
            # along.
            away = self.tool + 0.05 * t.most_upright(t.R[:, 1])
            self.go(away[:2], t.R, away[2])
            return 'reach'
        z = goal[2] + np.clip(5 * (error - 0.004 * s), 0, goal[2] - t.lowest_m + 0.04)
        z_speed = FINE_Z_SPEED_M_S if error < 0.03 else SPEED_M_S
        self.go(goal[:2], grasp, z, z_speed=z_speed)
        return 'reach'

    def clear_spot(self, middle: np.ndarray) -> np.ndarray:
        """The place (2,) m on the hand's own side, clear of other bricks, that is nearest.

        Args:
            middle: Where the brick is now, (3,) m.
        """
        side = side_of(self.hand)
        ys = (0.14, 0.18, 0.22, 0.26, 0.30)
        spots = np.array([(x, side * y) for x in (0.26, 0.30, 0.34) for y in ys])
        names = [brick.name for brick in self.truth.bricks if brick.name not in self.tower]
        others = np.array([self.truth.brick_pose(name)[0][:2] for name in names])
        gaps = np.linalg.norm(spots[:, None] - others, axis=2).min(1)
        far = np.linalg.norm(spots - middle[:2], axis=1)
        return spots[np.argmax(np.minimum(gaps, CLEAR_M) - 0.1 * far)]

    # -- letting go --------------------------------------------------------------------------------
    def let_go(self, clear_z: float = CLEAR_Z_M) -> str:
        """Open, rise to clear_z (m), and shut again above the bricks.

        An open hand over a brick is about to fetch it, an empty shut one has finished: from above a
        learner cannot see the 2-3 mm by which a brick is pressed on or not, and with open fingers
        it went back and forth.
        """
        above = self.above()
        self.gripper(shut=above)
        if not above and self.opening_m < self.open_m - 0.016:
            self.new[XYZ] = self.tool  # take the press force off while the fingers open
            return 'release'
        self.go(self.command[XY], self.command[YAW], clear_z)
        return 'retreat'

    def above(self) -> bool:
        """True where the fingers can shut without touching the goal's bricks."""
        truth = self.truth
        tops = []
        for name in (*self.tower, truth.goal.lower):
            bottom = truth.brick_pose(name)[0][2]
            tops.append(bottom + truth.brick(name).height_m(self.scale))
        studs = self.scale * STUD_HEIGHT_M
        return bool(self.tool[2] > max(tops) + studs + FINGERTIP_M + 0.004)

    def gone(self) -> bool:
        """True of an empty shut hand above a brick that looks as if it were pressed on.

        let_go ends so.
        """
        off_m = np.linalg.norm(self.truth.goal_pose()[0] - self.brick)
        empty = self.opening_m < 1.2 * self.scale * STUD_PITCH_M
        return bool(empty and off_m < 0.005 * self.scale and self.above())

    def leave(self) -> str:
        """Let go of a brick that lies where it should, rise, and get out of the way."""
        if self.tool[2] < 0.10:
            return self.let_go()
        return self.keep_clear()

    def keep_clear(self) -> str:
        """An idle hand near the middle moves to its own side; elsewhere it stays."""
        side = side_of(self.hand)
        if side * self.command[1] < CLEAR_Y_M:
            aside = np.array([self.command[X], side * (CLEAR_Y_M + 0.02)])
            self.go(aside, self.command[YAW], max(self.command[Z], 0.10))
        return 'rest'

    # -- holding and carrying ----------------------------------------------------------------------
    def hold_at(self, middle: np.ndarray, yaw: float) -> str:
        """Keep the held brick's middle at a point (3,) m and its yaw at `yaw`.

        The command follows the measured pose in the hand.
        """
        turn = self.turn(yaw)
        target = middle - rot_z(turn) @ self.in_hand
        self.go(target[:2], turn, target[2], self.lifted_speed())
        self.gripper(shut=True)
        return 'hold' if np.linalg.norm(self.brick - middle) < 0.012 else 'carry'

    def lay_down(self, point: np.ndarray, yaw: float) -> str:
        """Carry the held brick to a place (2,) m on the table and let go of it there."""
        s = self.scale
        turn = self.turn(yaw)
        error = self.misplaced(point, yaw)
        if error < 0.015 and self.brick[2] < 0.0015 * s:
            return self.let_go()
        # In the end it goes onto the table, softly.
        z = np.clip(1.5 * (error - 0.008), -0.004, 0.06) - self.in_hand[2]
        xy = point - (rot_z(turn) @ self.in_hand)[:2]
        self.go(xy, turn, z, self.lifted_speed() if error > 0.02 else SPEED_M_S)
        self.gripper(shut=True)
        return 'lower' if error < 0.02 else 'carry'

    def wait(self) -> str:
        """Hold the brick beside where the other hand will be."""
        low = self.truth.goal_pose()[0][2] + self.height + LOW_M
        z = low if self.truth.goal.steady else WAITING_POINT_M[2]
        xy = WAITING_POINT_M[:2] * [1, side_of(self.hand)]
        if self._beside_holder() and self.truth.goal.cell[1] > 0:
            xy[X] = WAITING_NEAR_X_M
        self.go(xy, 0.0, z, self.lifted_speed())
        self.gripper(shut=True)
        return 'wait'

    def _beside_holder(self) -> bool:
        """True where the brick goes on what the other hand holds in the air."""
        return self.truth.lifts() and not self.truth.goal.apart

    def stay(self) -> str:
        """Hold on until the other hand is ready."""
        self.gripper(shut=True)
        return 'wait'

    def steady(self) -> str:
        """Keep the held brick where it stands, and down."""
        self.gripper(shut=True)
        return 'hold'

    def hold_down(self) -> str:
        """Press on the studs of a plate with closed fingers."""
        error = sideways_m(self.grip, self.tool)
        # Height of the tool when the fingertips touch the studs.
        touching = self.grip[2] + self.scale * (PLATE_HEIGHT_M + STUD_HEIGHT_M) + FINGERTIP_M
        closed = self.opening_m < 0.008
        down = self.tool[2] < touching + 0.003
        self.gripper(shut=True)
        over = closed and (error < 0.01 or (down and error < 0.02))
        z_speed = 0.1 if error < 0.03 else SPEED_M_S
        if over:
            # The command stays where it is: following the hand, which gives under the press, it
            # crept, and pushed the plate 5 cm ahead.
            ahead = np.clip(self.command[XY] - self.tool[XY], -HOLD_WINDUP_M, HOLD_WINDUP_M)
            self.go(self.tool[:2] + ahead, 0.0, touching - 0.008, z_speed=z_speed)
        else:
            z = touching + 0.02 + np.clip(1.5 * (error - 0.01), 0, 0.06)
            self.go(self.grip[:2], 0.0, z, z_speed=z_speed)
        return 'hold' if over and self.tool[2] < touching + 0.001 else 'reach'

    # -- pulling off and pressing on ---------------------------------------------------------------
    def pull(self) -> str:
        """Pull the held brick off, rolling about the axis that the fingers hold best.

        Peeled at one edge, four studs part at a tenth of the load that takes them off straight, and
        the other hand does not lose the lower brick.
        """
        z_speed = PULL_SPEED_M_S * self.scale
        up = self.command[Z] + 0.1
        self.go(self.tool[:2], self.command[YAW], up, z_speed=z_speed)
        outer = -side_of(self.hand)  # the edge away from this hand's side comes off first
        roll = self.command[ROLL] + outer * PEEL_RAD_S * self.dt
        self.new[ROLL] = np.clip(roll, -MAX_PEEL_RAD, MAX_PEEL_RAD)
        self.gripper(shut=True)
        return 'pull'

    def aside(self, gap_m: float) -> str:
        """Carry what was pulled off to this hand's own side, well above the brick it came from.

        Args:
            gap_m: How far it is above its seat on that brick.
        """
        xy, yaw = put_down(self.hand)
        self.go(xy, self.turn(yaw), self.tool[2] - gap_m + 0.03)
        self.gripper(shut=True)
        return 'carry'

    def bring(self) -> str:
        """Carry the held brick over its place, align, press."""
        s = self.scale
        truth = self.truth
        target, target_yaw = truth.goal_pose()
        way = (target - self.brick)[:2]
        turn = self.turn(target_yaw)
        error = self.misplaced(target, target_yaw)
        seat_z = target[2] - self.in_hand[2]  # Height of the tool with the brick seated.
        stud = s * STUD_HEIGHT_M
        above_studs = self.tool[2] - seat_z - stud
        tolerance = (0.0009 if above_studs > 0.003 else 0.0014) * s
        self.gripper(shut=True)
        if error < tolerance and self.command[Z] < seat_z + stud + 0.012 * s:
            # A stuck brick must not wind the command up sideways without end; but held to the tool
            # itself, it would leave the tracking error of the arm, 0.5 mm and more, in the press.
            aim = self.command[XY] + 0.6 * way
            ahead = np.clip(aim - self.tool[:2], -WINDUP_M, WINDUP_M)
            # Pressed on any faster, towers break.
            gently = 0.25 if len(truth.plan.chain) > 1 else 1
            z_speed = PRESS_SPEED_M_S * s * gently
            self.go(self.tool[:2] + ahead, turn, seat_z - 0.015, SPEED_M_S, z_speed)
            return 'press'
        # Far away the command aims at the place itself, allowing for how the brick lies in the
        # hand; close by it moves by a share of the measured error, which also removes what is left
        # of the tracking error.
        if error < 0.006 * s:
            xy = self.command[XY] + 0.6 * way
        else:
            xy = target[:2] - (rot_z(turn) @ self.in_hand)[:2]
            if self._beside_holder():
                # Palms are wider than what is between them: the hand comes from its own side.
                off_x = abs(xy[X] - self.tool[X])
                xy[1] += side_of(self.hand) * np.clip(4 * (off_x - 0.008), 0, WAITING_POINT_M[1])
        highest = LOW_M if truth.goal.steady else 0.05
        z = seat_z + stud + 0.004 + np.clip(1.5 * (error - 0.003), 0, highest)
        self.go(xy, turn, z, self.lifted_speed() if error > 0.02 else SPEED_M_S)
        return 'align' if error < 0.02 else 'carry'


class Tipped:
    """How a brick lies that leans too far to be grasped and carried as it is.

    It lies on its side, on its end or upside down, or it is held by a hand which leans too far to
    press it on. `true` says that one of these is so.
    """

    def __init__(self, hand: Hand, brick: str):
        truth = hand.truth
        s = hand.scale
        self.truth = truth
        self.hand = hand
        spec = truth.brick(brick)
        at, R_brick = truth.brick_pose(brick)
        self.up = R_brick[:, 2]
        self.R = hand.R
        self.command = rotvec_to_matrix(hand.command[ROTVEC])
        nx, ny = s * STUD_PITCH_M * np.array(spec.studs)
        half = np.array([nx, ny, spec.height_m(s)]) / 2
        self.middle = at + R_brick @ [0, 0, half[2]]
        studs_below = max(0, -R_brick[2, 2]) * s * STUD_HEIGHT_M
        self.lowest_m = self.middle[2] - np.abs(R_brick[2]) @ half - studs_below
        # What is, or will be, between the fingers: the short side, the long one where that points
        # up and they open so far, else bottom and top.
        short = int(np.argmin(half[:2]))
        widest = hand.open_m - 0.008
        axes = [i for i in (short, 1 - short, 2) if i == 2 or 2 * half[i] < widest]
        along_jaw = np.abs([R_brick[:, i] @ self.R[:, 1] for i in range(3)])
        axis = max(axes, key=along_jaw.__getitem__)
        gap = 2 * half[axis] + (axis == 2) * s * STUD_HEIGHT_M
        in_hand = self.R.T @ (self.middle - hand.tool)
        off_m = max(np.hypot(in_hand[0], in_hand[2]) / 2, abs(in_hand[1]))
        self.gripped = hand.opening_m < gap + 0.003 and off_m < 0.006 * s
        if not self.gripped:
            level = [i for i in axes if abs(R_brick[2, i]) < 0.72]
            axis = level[0] if level else 2
        self.on_side = axis == 2
        jaw = R_brick[:, axis]
        self.jaw = jaw if jaw[1] > 0 else -jaw
        # Held so that with the brick upright the hand would lean, it cannot press.
        leaning = np.cross(self.up, [0, 0, 1])
        leans = np.arctan2(np.linalg.norm(leaning), self.up[2])
        leaning *= leans / max(np.linalg.norm(leaning), 1e-9)
        awry = self.gripped and (rotvec_to_matrix(leaning) @ self.R)[2, 2] < UPRIGHT
        self.true = leans > MAX_LEAN_RAD or awry

    def most_upright(self, jaw: np.ndarray) -> np.ndarray:
        """The direction (3,) nearest to up that turning about the jaw's axis (3,) gives."""
        up = np.array([0, 0, 1]) - jaw[2] * jaw
        return up / np.linalg.norm(up)

    def lean(self, jaw: np.ndarray) -> float:
        """How far the brick leans about the jaw's axis (3,), rad."""
        up = self.most_upright(jaw)
        lean = np.arctan2(self.up @ np.cross(jaw, up), self.up @ up)
        return abs(lean) if abs(lean) > 2.6 else lean  # upside down: one way round, not to and fro

    def grasp(self) -> np.ndarray:
        """Tool rotation (3, 3) to grasp it in."""
        up = self.most_upright(self.jaw)
        near = not self.on_side and self.middle[0] < LEANING_REACH_M
        pitch = np.clip(self.lean(self.jaw), *GRASP_PITCH_RAD) if near else 0.0
        z = np.cos(pitch) * up + np.sin(pitch) * np.cross(self.jaw, up)
        return np.column_stack([np.cross(self.jaw, z), self.jaw, z])

    def turned(self) -> np.ndarray:
        """Tool rotation (3, 3) that rights the brick in the hand as far as the arm can."""
        if self.on_side:
            leans = np.arccos(np.clip(self.up[2], -1, 1))
            tilt = np.sign(self.up @ self.R[:, 1]) * leans
            roll = np.arctan2(self.R[2, 1], self.R[2, 2]) + tilt
            roll = np.clip(roll, *ROLL_RAD)
            return rotvec_to_matrix(np.array([roll, 0, 0]))
        pitch = np.arcsin(-self.R[2, 0]) - self.lean(self.R[:, 1])
        pitch = np.clip(pitch, *PITCH_RAD)
        return rotvec_to_matrix(np.array([0, pitch, 0]))
