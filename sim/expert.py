"""The scripted expert: reads ground truth, returns the next tool action.

The action is a function of the world's current state alone: which phase a hand is in is read off
the state (is the brick between my fingers? how far is it from its place? does the clutch hold it?),
never off a clock or a counter. So whatever knocks the arm about, the next answer is right for what
is seen now, and a learner sees everything the answer depends on. Heights follow funnels: the hand
may be low only where it is also laterally right.

All numbers are m, rad, s in the torso frame (spine at zero: the same as the world frame). Lengths
that belong to a brick scale with it.
"""

import numpy as np

from sim.clutch import BRICK_HEIGHT_M, PLATE_HEIGHT_M, STUD_HEIGHT_M, STUD_PITCH_M, wrap
from sim.kinematics import matrix_to_rotvec, rot_z, rotvec_to_matrix
from sim.tasks import HANDS, PUT_DOWN
from sim.world import TOOL, TOOL_HIGH, TOOL_LOW

# the press speed is per unit of brick scale
SPEED_M_S = 0.3
PRESS_SPEED_M_S = 0.04
TURN_RAD_S = 2.0
CLOSED_M = -0.02  # commanded opening of a gripping hand: squeezes with the spring's full reach
WINDUP_M = 0.002  # while pressing the command may be this far ahead of the hand sideways
# a brick that leans by this much is grasped so, and righted
LEVEL_RAD = 0.05
MAX_LEAN_RAD = 0.6
# How far a hand turns that rights a brick, about the jaw (fingers pointing away from the robot ..
# towards it) and about the arm; with a brick it has yet to grasp, which may lie anywhere, less; and
# where it can at all.
PITCH_RAD = (-1.2, 0.55)
ROLL_RAD = (-0.8, 0.8)
GRASP_PITCH_RAD = (-0.6, 0.55)
LEANING_REACH_M = 0.38
MAX_YAW_RAD = 2.2  # of a hand; the wrist's last joint ends at 2.6
MEETING_POINT_M = np.array([0.34, 0, 0.13])  # where the holder keeps the lower brick's middle
WAITING_POINT_M = np.array([0.37, 0.13, 0.19])  # where the other hand waits for it, on its own side
LOW_M = 0.014  # above its seat what comes in under the holder's palm stays
HANDOVER_POINT_M = np.array([0.33, 0])  # on the table, where both arms reach
PULL_SPEED_M_S = 0.06  # per unit of brick scale
PEEL_RAD_S = 1.0
HAND_WIDTH_M = 0.09
FINGERTIP_M = 0.006  # the tool is this far above the fingertips
SHARED_Y_M = 0.07  # a hand leaves bricks to the other one from here on
REACH_M = 0.46  # to x, what no place to go to exceeds
CLEAR_M = 0.09  # around a brick that is being righted
CLEAR_Y_M = 0.16  # an idle hand stays at least this far from the middle


class Hand:
    """One hand's view of the world at this instant, and the command being composed for it."""

    def __init__(self, world, hand, brick, grip_point=None):
        s = world.brick_scale
        self.world = world
        self.hand = hand
        self.scale = s
        self.command = world.tool_command[TOOL[hand]].astype(float)
        self.new = self.command.copy()
        self.tool, R = world.tool_pose(hand)
        self.R = R
        self.yaw = np.arctan2(R[1, 0], R[0, 0])
        self.brick, Rb = world.brick_pose(brick)
        self.brick_yaw = np.arctan2(Rb[1, 0], Rb[0, 0])
        self.up = Rb[:, 2]
        self.stack = stack(world, brick)
        top, Rtop = world.brick_pose(self.stack[-1] if grip_point is None else brick)
        self.grip = (
            top if grip_point is None else top + Rtop @ grip_point
        )  # bottom of where to hold it
        self.in_hand, grip = (
            rot_z(self.yaw).T @ (at - self.tool) for at in (self.brick, self.grip)
        )
        self.open_m = world.max_opening_m
        self.opening_m = world.opening_m(hand)
        # 0 closed .. 1 open, as commanded
        self.stroke = (self.command[6] - CLOSED_M) / (self.open_m - CLOSED_M)
        width = 2 * s * STUD_PITCH_M
        self.height = world.grasp_height_m
        self.near = np.hypot(*grip[:2]) < 0.012 * s and abs(grip[2] + self.height) < 0.007 * s
        self.held = self.near and self.opening_m < width + 0.003
        self.closed = self.opening_m < width + 0.008 * s
        # fingers on the long sides, the turn nearest to rest
        self.grasp_yaw = wrap(np.arctan2(Rtop[1, 0], Rtop[0, 0]) - np.pi / 2, np.pi)
        self.dt = 1 / world.control_hz
        self.tipped = None  # most bricks stand upright
        if min(self.up[2], R[2, 2]) < np.cos(0.3) and (tipped := Tipped(self, brick)).true:
            self.tipped = tipped
            self.held = False

    def go(self, xy, turn, z, speed=SPEED_M_S, z_speed=SPEED_M_S):
        """Move the command towards a pose within the speeds. turn: a rotation (3, 3), or the yaw of
        a hand that is upright but for a brick that leans.
        """
        c = self.command
        dt = self.dt
        d = np.asarray(xy) - c[:2]
        self.new[:2] = c[:2] + d * min(1, speed * dt / max(np.linalg.norm(d), 1e-9))
        self.new[2] = c[2] + np.clip(z - c[2], -z_speed * dt, z_speed * dt)
        # the way that stays within the wrist's range, not the shortest
        v = np.array([*self.lean(), turn]) if np.ndim(turn) == 0 else matrix_to_rotvec(turn)
        self.new[3:6] = c[3:6] + np.clip(v - c[3:6], -TURN_RAD_S * dt, TURN_RAD_S * dt)

    def turn(self, yaw):
        """Yaw to command so that the held brick gets to `yaw`, in which half a turn makes no
        difference.
        """
        turn = self.command[5] + wrap(yaw - self.brick_yaw, np.pi)
        return turn if abs(turn) < MAX_YAW_RAD else wrap(turn, np.pi)

    def lean(self):
        """Tilt to command, the first two numbers of a rotation vector: that of a brick which leans
        on something, to grasp it squarely, and what rights a brick in the hand. (Grasped by an
        upright hand it kept its tilt; tilted by more than the studs allow, it was pressed on for
        ever.)
        """
        tilt = np.cross([0, 0, 1], self.up)
        angle = np.linalg.norm(tilt)
        if not self.held and (
            angle > MAX_LEAN_RAD or np.hypot(*(self.grip - self.tool)[:2]) > 0.05
        ):
            return np.zeros(2)
        tilt *= max(0, 1 - LEVEL_RAD / max(angle, 1e-9))
        R = rotvec_to_matrix(self.command[3:6]) if self.held else rot_z(self.command[5])
        return matrix_to_rotvec(rotvec_to_matrix(-0.5 * tilt if self.held else tilt) @ R)[:2]

    def gripper(self, shut):
        """All the way, whatever is commanded now (the fingers take a control period): where the
        answer was the present command and a bit more, a learner copied the command, and hovered
        half open.
        """
        self.new[6] = CLOSED_M if shut else self.open_m

    def pick(self):
        """Reach for the brick and close on it. Used whenever it is not in this hand, or not
        upright.
        """
        s = self.scale
        if self.tipped:
            return self.right()
        # above the grip along the brick's own axis where it leans
        tilted = np.cos(MAX_LEAN_RAD) < self.up[2] < np.cos(LEVEL_RAD)
        goal = self.grip + self.height * (self.up if tilted else np.array([0, 0, 1]))
        turn = abs(wrap(self.grasp_yaw - self.yaw)) + np.linalg.norm(
            self.lean() - self.command[3:5]
        )
        error = np.hypot(*(goal - self.tool)[:2]) + 0.03 * turn
        above = self.tool[2] - goal[2]
        in_place = self.near and error < 0.004 * s and abs(above) < 0.004 * s
        if in_place and (self.stroke < 0.9 or error < 0.0025 * s):
            self.go(goal[:2], self.grasp_yaw, goal[2], 0.05)
            self.gripper(shut=True)
            return 'grasp'
        z = goal[2] + np.clip(1.5 * (error - 0.004 * s), 0, 0.07)
        # closed fingers beside the brick: up first
        if self.closed and error < 0.03 * s and above < BRICK_HEIGHT_M * s:
            z = goal[2] + 0.05
        # low and off to the side: rise before moving on
        slow = 1.0 if error < 0.012 else np.clip(above / 0.025, 0.1, 1)
        self.go(goal[:2], self.grasp_yaw, z, SPEED_M_S * slow, 0.2 if error < 0.03 else SPEED_M_S)
        self.gripper(shut=False)
        return 'reach'

    def right(self):
        """Set a brick upright that has tipped over: grasp it leaning along as far as the arm can,
        lift, lean the other way, let go on a clear spot. What lies on its side or stands on its end
        then falls on its feet. What is upside down has to turn by more than the arm does, and comes
        to stand on its end.
        """
        t = self.tipped
        s = self.scale
        if t.gripped:
            turned = t.turned()
            spot = t.clear_spot()
            left = np.linalg.norm(matrix_to_rotvec(turned @ t.command.T))
            to_spot = spot - (t.middle - self.tool)[:2]
            self.gripper(shut=True)
            if left > 0.2 or np.hypot(*(spot - t.middle[:2])) > 0.03:
                z = self.tool[2] - t.lowest_m + 0.06
                self.go(to_spot, turned if t.lowest_m > 0.02 else t.R, z, self.lifted_speed())
                return 'turn'
            if t.lowest_m > 0.006:
                self.go(
                    to_spot,
                    turned,
                    self.command[2] - t.lowest_m + 0.001,
                    z_speed=np.clip(3 * t.lowest_m, 0.05, SPEED_M_S),
                )
                return 'lower'
            self.new[:3] = self.tool  # pressed on the table the fingers would not open
            self.gripper(shut=False)
            return 'release'
        grasp = t.grasp()
        goal = t.middle.copy()
        goal[2] = max(goal[2], FINGERTIP_M + 0.005)
        turn = np.linalg.norm(matrix_to_rotvec(grasp @ t.R.T))
        error = np.hypot(*(goal - self.tool)[:2]) + 0.03 * turn
        above = self.tool[2] - goal[2]
        in_place = error < 0.004 * s and abs(above) < 0.004 * s
        self.gripper(shut=in_place)
        if in_place:
            self.go(goal[:2], grasp, goal[2], 0.05)
            return 'grasp'
        if above < 0.05 and (turn > 0.3 or self.opening_m < self.open_m - 0.016):
            # turned down there the fingers would strike the brick, and drawn out sideways drag it
            # along
            away = self.tool + 0.05 * t.most_upright(t.R[:, 1])
            self.go(away[:2], t.R, away[2])
        else:
            z = goal[2] + np.clip(5 * (error - 0.004 * s), 0, goal[2] - t.lowest_m + 0.04)
            self.go(goal[:2], grasp, z, z_speed=0.2 if error < 0.03 else SPEED_M_S)
        return 'reach'

    def lifted_speed(self):
        """Lateral speed while the brick is still close to the table."""
        return SPEED_M_S * np.clip(self.brick[2] / 0.03, 0, 1)

    def let_go(self, clear_z):
        """Open, rise, and shut again above the bricks. An open hand over a brick is about to fetch
        it, an empty shut one has finished: from above a learner cannot see the 2-3 mm by which a
        brick is pressed on or not, and with open fingers it went back and forth.
        """
        above = self.above()
        self.gripper(shut=above)
        if not above and self.opening_m < self.open_m - 0.016:
            self.new[:3] = self.tool  # take the press force off while the fingers open
            return 'release'
        self.go(self.command[:2], self.command[5], clear_z)
        return 'retreat'

    def above(self):
        """True where the fingers can shut without touching the goal's bricks."""
        world = self.world
        goal = self.world.goal
        heights = {b.name: b.height_m(self.scale) for b in world.bricks}
        top = max(
            world.brick_pose(name)[0][2] + heights[name] for name in (*self.stack, goal.lower)
        )
        return self.tool[2] > top + self.scale * STUD_HEIGHT_M + FINGERTIP_M + 0.004

    def gone(self):
        """True of an empty shut hand above a brick that looks as if it were pressed on: let_go ends
        so.
        """
        off_m = np.linalg.norm(self.world.goal_pose()[0] - self.brick)
        empty = self.opening_m < 1.2 * self.scale * STUD_PITCH_M
        return empty and off_m < 0.005 * self.scale and self.above()

    def keep_clear(self):
        """An idle hand near the middle moves to its own side; elsewhere it stays."""
        side = 1 if self.hand == 'left' else -1
        if side * self.command[1] < CLEAR_Y_M:
            self.go(
                (self.command[0], side * (CLEAR_Y_M + 0.02)),
                self.command[5],
                max(self.command[2], 0.10),
            )

    def hold_at(self, middle, yaw):
        """Keep the held brick's middle at a point and its yaw at `yaw`,
        following the measured pose in the hand.
        """
        turn = self.turn(yaw)
        target = middle - rot_z(turn) @ self.in_hand
        self.go(target[:2], turn, target[2], self.lifted_speed())
        self.gripper(shut=True)
        return 'hold' if np.linalg.norm(self.brick - middle) < 0.012 else 'carry'

    def lay_down(self, point, yaw):
        """Carry the held brick to a place (x, y) on the table and let go of it there."""
        s = self.scale
        e = point - self.brick[:2]
        turn = self.turn(yaw)
        error = np.hypot(*e) + 0.03 * abs(wrap(yaw - self.brick_yaw, np.pi))
        if error < 0.015 and self.brick[2] < 0.0015 * s:
            return self.let_go(0.14)
        # in the end onto the table, softly
        z = np.clip(1.5 * (error - 0.008), -0.004, 0.06) - self.in_hand[2]
        self.go(
            point - (rot_z(turn) @ self.in_hand)[:2],
            turn,
            z,
            self.lifted_speed() if error > 0.02 else SPEED_M_S,
        )
        self.gripper(shut=True)
        return 'lower' if error < 0.02 else 'carry'

    def wait(self):
        """Hold the brick beside where the other hand will be."""
        side = 1 if self.hand == 'left' else -1
        low = self.world.goal_pose()[0][2] + self.height + LOW_M
        z = low if self.world.goal.steady else WAITING_POINT_M[2]
        self.go(WAITING_POINT_M[:2] * [1, side], 0.0, z, self.lifted_speed())
        self.gripper(shut=True)
        return 'wait'

    def stay(self):
        """Hold on until the other hand is ready."""
        self.gripper(shut=True)
        return 'wait'

    def steady(self):
        """Keep the held brick where it stands, and down."""
        self.gripper(shut=True)
        return 'hold'

    def hold_down(self):
        """Press on the studs of a plate with closed fingers."""
        s = self.scale
        error = np.hypot(*(self.grip - self.tool)[:2])
        touching = (
            self.grip[2] + s * (PLATE_HEIGHT_M + STUD_HEIGHT_M) + FINGERTIP_M
        )  # height of the tool
        closed = self.opening_m < 0.008
        self.gripper(shut=True)
        over = closed and (error < 0.01 or self.tool[2] < touching + 0.003 and error < 0.02)
        z = touching - 0.008 if over else touching + 0.02 + np.clip(1.5 * (error - 0.01), 0, 0.06)
        self.go(
            self.tool[:2] if over else self.grip[:2],
            0.0,
            z,
            z_speed=0.1 if error < 0.03 else SPEED_M_S,
        )
        return 'hold' if over and self.tool[2] < touching + 0.001 else 'reach'

    def pull(self):
        """Up, rolling about the axis that the fingers hold best: peeled at one edge, four studs
        part at a tenth of the load that takes them off straight, and the other hand does not lose
        the lower brick.
        """
        self.go(
            self.tool[:2],
            self.command[5],
            self.command[2] + 0.1,
            z_speed=PULL_SPEED_M_S * self.scale,
        )
        outer = (
            1 if self.hand == 'right' else -1
        )  # the edge away from this hand's side comes off first
        self.new[3] = np.clip(self.command[3] + outer * PEEL_RAD_S * self.dt, -0.35, 0.35)
        self.gripper(shut=True)
        return 'pull'

    def aside(self, gap_m):
        """Carry what was pulled off to this hand's own side, well above the brick it came from."""
        (x, y), yaw = put_down(self.hand)
        self.go((x, y), self.turn(yaw), self.tool[2] - gap_m + 0.03)
        self.gripper(shut=True)
        return 'carry'

    def leave(self):
        """Let go of a brick that lies where it should, rise, and get out of the way."""
        if self.tool[2] < 0.10:
            return self.let_go(0.14)
        self.keep_clear()
        return 'rest'

    def bring(self):
        """Carry the held brick over its place, align, press."""
        s = self.scale
        world = self.world
        target, target_yaw = world.goal_pose()
        e = (target - self.brick)[:2]
        turn = self.turn(target_yaw)
        error = np.hypot(*e) + 0.03 * abs(wrap(target_yaw - self.brick_yaw, np.pi))
        # tool height with the brick seated
        seat_z = target[2] - self.in_hand[2]
        stud = s * STUD_HEIGHT_M
        phase = 'align' if error < 0.02 else 'carry'
        # Far away the command aims at the place itself, allowing for how the brick lies in the
        # hand; close by it moves by a share of the measured error, which also removes what is left
        # of the tracking error.
        xy = (
            self.command[:2] + 0.6 * e
            if error < 0.006 * s
            else target[:2] - (rot_z(turn) @ self.in_hand)[:2]
        )
        # or towers break
        above_studs = self.tool[2] - seat_z - stud
        gently = len(world.plan.chain) > 1
        tolerance = (0.0009 if above_studs > 0.003 else 0.0014) * s
        if error < tolerance and self.command[2] < seat_z + stud + 0.012 * s:
            phase = 'press'
            # A stuck brick must not wind the command up sideways without end; but held to the tool
            # itself, it would leave the tracking error of the arm, 0.5 mm and more, in the press.
            ahead = np.clip(self.command[:2] + 0.6 * e - self.tool[:2], -WINDUP_M, WINDUP_M)
            self.go(
                self.tool[:2] + ahead,
                turn,
                seat_z - 0.015,
                SPEED_M_S,
                PRESS_SPEED_M_S * s * (0.25 if gently else 1),
            )
        else:
            z = (
                seat_z
                + stud
                + 0.004
                + np.clip(1.5 * (error - 0.003), 0, LOW_M if world.goal.steady else 0.05)
            )
            self.go(xy, turn, z, self.lifted_speed() if error > 0.02 else SPEED_M_S)
        self.gripper(shut=True)
        return phase


class Tipped:
    """How a brick lies that leans too far to be grasped and carried as it is: on its side, on its
    end, upside down; or that is held by a hand which leans too far to press it on. `true`: it does,
    or is.
    """

    def __init__(self, hand, brick):
        world = hand.world
        s = hand.scale
        self.world = world
        self.hand = hand
        spec = next(b for b in world.bricks if b.name == brick)
        at, Rb = world.brick_pose(brick)
        self.up = Rb[:, 2]
        self.R = hand.R
        self.command = rotvec_to_matrix(hand.command[3:6])
        half = np.array([*(s * STUD_PITCH_M * np.array(spec.studs)), spec.height_m(s)]) / 2
        self.middle = at + Rb @ [0, 0, half[2]]
        self.lowest_m = (
            self.middle[2] - np.abs(Rb[2]) @ half - max(0, -Rb[2, 2]) * s * STUD_HEIGHT_M
        )
        # What is, or will be, between the fingers: the short side, the long one where that points
        # up and they open so far, else bottom and top.
        short = int(np.argmin(half[:2]))
        in_hand = self.R.T @ (self.middle - hand.tool)
        axes = [i for i in (short, 1 - short, 2) if i == 2 or 2 * half[i] < hand.open_m - 0.008]
        axis = max(axes, key=lambda i: abs(Rb[:, i] @ self.R[:, 1]))
        gap = 2 * half[axis] + (axis == 2) * s * STUD_HEIGHT_M
        off = np.hypot(in_hand[0], in_hand[2]) / 2, abs(in_hand[1])
        self.gripped = hand.opening_m < gap + 0.003 and max(off) < 0.006 * s
        if not self.gripped:
            axis = next((i for i in axes if abs(Rb[2, i]) < 0.72), 2)
        self.on_side = axis == 2
        self.jaw = Rb[:, axis] * (1 if Rb[1, axis] > 0 else -1)
        # with the brick upright the hand would lean: then it cannot press
        axis = np.cross(self.up, [0, 0, 1])
        leans = np.arctan2(np.linalg.norm(axis), self.up[2])
        axis *= leans / max(np.linalg.norm(axis), 1e-9)
        awry = self.gripped and (rotvec_to_matrix(axis) @ self.R)[2, 2] < np.cos(0.3)
        self.true = leans > MAX_LEAN_RAD or awry

    def most_upright(self, jaw):
        """The direction (3,) nearest to up that turning about the jaw's axis (3,) gives."""
        up = np.array([0, 0, 1]) - jaw[2] * jaw
        return up / np.linalg.norm(up)

    def lean(self, jaw):
        """How far the brick leans about the jaw's axis, rad."""
        up = self.most_upright(jaw)
        lean = np.arctan2(self.up @ np.cross(jaw, up), self.up @ up)
        return abs(lean) if abs(lean) > 2.6 else lean  # upside down: one way round, not to and fro

    def grasp(self):
        """Tool rotation (3, 3) to grasp it in."""
        up = self.most_upright(self.jaw)
        near = not self.on_side and self.middle[0] < LEANING_REACH_M
        pitch = np.clip(self.lean(self.jaw), *GRASP_PITCH_RAD) if near else 0.0
        z = np.cos(pitch) * up + np.sin(pitch) * np.cross(self.jaw, up)
        return np.column_stack([np.cross(self.jaw, z), self.jaw, z])

    def turned(self):
        """Tool rotation (3, 3) that rights the brick in the hand as far as the arm can."""
        if self.on_side:
            tilt = np.sign(self.up @ self.R[:, 1]) * np.arccos(np.clip(self.up[2], -1, 1))
            roll = np.arctan2(self.R[2, 1], self.R[2, 2]) + tilt
            return rotvec_to_matrix(np.array([np.clip(roll, *ROLL_RAD), 0, 0]))
        pitch = np.arcsin(-self.R[2, 0]) - self.lean(self.R[:, 1])
        return rotvec_to_matrix(np.array([0, np.clip(pitch, *PITCH_RAD), 0]))

    def clear_spot(self):
        """The nearest place on the table, on the hand's own side, that is clear of other bricks:
        (2,) m.
        """
        side = 1 if self.hand.hand == 'left' else -1
        spots = np.array(
            [(x, side * y) for x in (0.26, 0.30, 0.34) for y in (0.14, 0.18, 0.22, 0.26, 0.30)]
        )
        others = np.array(
            [
                self.world.brick_pose(b.name)[0][:2]
                for b in self.world.bricks
                if b.name not in self.hand.stack
            ]
        )
        gaps = np.linalg.norm(spots[:, None] - others, axis=2).min(1)
        far = np.linalg.norm(spots - self.middle[:2], axis=1)
        return spots[np.argmax(np.minimum(gaps, CLEAR_M) - 0.1 * far)]


class Expert:
    """Ground-truth policy for every task. trusting: a hand that has gone has pressed its brick
    on.
    """

    def __init__(self, trusting=False):
        self.trusting = trusting

    def act(self, world):
        """Returns the next tool action (15,) float32 and info: `phase` (left, right) verbs,
        `subtask` narration.
        """
        action = world.tool_command.astype(float)
        verbs = dict.fromkeys(HANDS, 'rest')
        action[0] -= np.clip(action[0], -0.05, 0.05)  # all of this assumes a spine that looks ahead
        goal = world.goal
        plan = hand_over if goal.giver else take_apart if goal.apart else assemble
        moves = plan(world, goal, self.trusting)
        for h, verb, _, _ in moves:
            verbs[h.hand] = verb
            action[TOOL[h.hand]] = h.new
        action = np.clip(action, TOOL_LOW, TOOL_HIGH).astype(np.float32)
        return action, dict(phase=tuple(verbs[k] for k in HANDS), subtask=narrate(moves))


# Plans: what each hand does about a goal in the present state. Each returns [(Hand, verb, brick it
# is about, words for where that goes or None)].
def assemble(world, goal, trusting):
    """Fetch the upper brick and press it on; where there is a holder, it brings the lower brick
    first. One that has lifted it lays both down once the other hand has left.
    """
    moves = []
    holder_ready = True
    h = Hand(world, goal.hand, goal.upper)
    pressed = world.joined() or trusting and h.gone()
    if goal.holder:
        # a tower is held by its foot and all above: gripped higher up it comes apart
        foot = goal.steady * np.array([0, 0, world.brick_scale * BRICK_HEIGHT_M])
        h0 = Hand(world, goal.holder, goal.lower, far_end(world, goal) - foot)
        down = pressed and not goal.steady and world.released(goal.hand)
        if goal.steady and world.joined():
            verb = h0.let_go(0.14)
        elif down and world.lies(goal.lower) and not h0.held:
            verb = h0.leave()
        elif not h0.held:
            verb = h0.pick()
        elif down:
            verb = h0.lay_down(*put_down(goal.holder))
        else:
            verb = h0.steady() if goal.steady else h0.hold_at(MEETING_POINT_M, np.pi / 2)
        moves.append((h0, verb, goal.lower, 'table' if down else None))
        holder_ready = verb == 'hold'
    else:
        moves.append(idle(world, other_hand(goal.hand), goal.upper))
    if pressed:
        verb = h.let_go(0.26 if goal.holder else 0.14)
    elif not h.held:
        verb = h.pick()
    elif holder_ready:
        verb = h.bring()
    else:
        verb = h.wait()
    return [*moves, (h, verb, goal.upper, goal.where)]


def hand_over(world, goal, trusting):
    """One hand lays the brick down where the other reaches it, and gets out of the way. Whose turn
    it is follows from who holds the brick, else from where it lies.
    """
    g = Hand(world, goal.giver, goal.upper)
    h = Hand(world, goal.hand, goal.upper)
    side = 1 if goal.giver == 'left' else -1
    within_reach = side * g.brick[1] < SHARED_Y_M
    if world.joined() or trusting and h.gone():
        return [idle(world, goal.giver, goal.upper), (h, h.let_go(0.14), goal.upper, goal.where)]
    if h.held or within_reach and not g.held:
        give = g, g.leave(), goal.upper, None
        if h.held:
            return [give, (h, h.bring(), goal.upper, goal.where)]
        if side * g.tool[1] < CLEAR_Y_M - 0.04:
            return [give, idle(world, goal.hand, goal.upper)]
        return [give, (h, h.pick(), goal.upper, None)]
    verb = g.lay_down(HANDOVER_POINT_M, np.pi / 2) if g.held else g.pick()
    return [(g, verb, goal.upper, 'middle'), idle(world, goal.hand, goal.upper)]


def take_apart(world, goal, _):
    """Lift the stack by its lower brick, grasp the upper one in the air, pull, lay both down. A
    plate is held down where it lies.
    """
    grip = far_end(world, goal) * [world.lifts(), 1, 1]
    h0 = Hand(world, goal.holder, goal.lower, grip)
    h = Hand(world, goal.hand, goal.upper)
    joined = world.joined()
    gap = h.brick - world.seat(goal)[0]
    # the upper brick off the lower one and beside it: only then may either go down
    beside = abs(gap[1]) > HAND_WIDTH_M or world.lies(goal.upper)
    parted = not joined and beside
    if not world.lifts():
        verb0 = h0.leave() if parted else h0.hold_down()
    elif h0.held:
        verb0 = (
            h0.lay_down(*put_down(goal.holder))
            if parted
            else h0.hold_at(MEETING_POINT_M, np.pi / 2)
        )
    else:
        verb0 = h0.leave() if parted and world.lies(goal.lower) else h0.pick()
    ready = verb0 == 'hold'
    if h.held and joined:
        verb = h.pull() if ready else h.stay()
    elif h.held:
        off = gap[2] > (STUD_HEIGHT_M + 0.003) * world.brick_scale
        verb = h.lay_down(*put_down(goal.hand)) if parted else h.aside(gap[2]) if off else h.pull()
    elif parted and world.lies(goal.upper):
        verb = h.leave()
    elif ready or not joined:
        verb = h.pick()
    else:
        return [(h0, verb0, goal.lower, None), idle(world, goal.hand, goal.upper)]
    return [(h0, verb0, goal.lower, 'table' if parted else None), (h, verb, goal.upper, 'table')]


def stack(world, brick):
    """The brick and what has been pressed on it, and on that, [names]: gripped by its foot a tower
    is in the way of the palm, so it is fetched and pressed on by its top.
    """
    names = [brick]
    while above := [c['upper'] for c in world.connections(loose=True) if c['lower'] == names[-1]]:
        names.append(above[0])
    return names


def far_end(world, goal):
    """Where the holder grips: the end of the lower brick away from the upper one, (3,) m in its
    frame.
    """
    half = (np.array(next(b for b in world.bricks if b.name == goal.lower).studs) - 2) / 2
    return np.array([*-np.clip(goal.cell, -half, half) * world.brick_scale * STUD_PITCH_M, 0])


def put_down(hand):
    """Place on the table (2,) m and yaw rad where a hand lays what it has taken off."""
    x, y, yaw = PUT_DOWN[hand]
    return np.array([x, y]), yaw


def other_hand(hand):
    return HANDS[1 - HANDS.index(hand)]


def idle(world, hand, brick):
    """The move of a hand that keeps out of the way."""
    h = Hand(world, hand, brick)
    h.keep_clear()
    return h, 'rest', brick, None


def narrate(moves):
    """One line on what the hands do: 'left: carry red to near left', 'left: hold red; right: press
    blue'.
    """
    lines = {}
    for h, verb, brick, where in moves:
        if verb != 'rest':
            to = f' to {where}' if where and verb in ('carry', 'align', 'press', 'lower') else ''
            lines[h.hand] = f'{h.hand}: {verb} {brick}{to}'
    return '; '.join(lines[hand] for hand in HANDS if hand in lines)
