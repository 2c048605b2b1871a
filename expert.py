"""The scripted expert: reads ground truth, returns the next tool action; and the kicks that make it show
recoveries.

The action is a function of the world's current state alone: which phase a hand is in is read off the state
(is the brick between my fingers? how far is it from its place? does the clutch hold it?), never off a clock
or a counter. So whatever knocks the arm about, the next answer is right for what is seen now, and a learner
sees everything the answer depends on. Heights follow funnels: the hand may be low only where it is also
laterally right.

All numbers are m, rad, s in the torso frame (spine at zero: the same as the world frame). Lengths that belong
to a brick scale with it.
"""
import numpy as np

from world import (BRICK_HEIGHT_M, HANDS, PLATE_HEIGHT_M, PUT_DOWN, STUD_HEIGHT_M, STUD_PITCH_M,
                   TOOL, TOOL_HIGH, TOOL_LOW, matrix_to_rotvec, rot_z, rotvec_to_matrix, wrap)

SPEED_M_S, PRESS_SPEED_M_S, TURN_RAD_S = .3, .04, 2.     # the press speed is per unit of brick scale
CLOSED_M = -.02              # commanded opening of a gripping hand: squeezes with the spring's full reach
WINDUP_M = .002              # while pressing the command may be this far ahead of the hand sideways
LEVEL_RAD, MAX_LEAN_RAD = .05, .6                # a brick that leans by this much is grasped so, and righted
MAX_YAW_RAD = 2.2                                # of a hand; the wrist's last joint ends at 2.6
MEETING_POINT_M = np.array([.34, 0, .13])        # where the holder keeps the lower brick's middle
WAITING_POINT_M = np.array([.37, .13, .19])      # where the other hand waits for it, on its own side
LOW_M = .014                                     # above its seat what comes in under the holder's palm stays
HANDOVER_POINT_M = np.array([.33, 0])            # on the table, where both arms reach
PULL_SPEED_M_S = .06                             # per unit of brick scale
PEEL_RAD_S = 1.
HAND_WIDTH_M = .09
FINGERTIP_M = .006                               # the tool is this far above the fingertips
SHARED_Y_M = .07                                 # a hand leaves bricks to the other one from here on
REACH_M = .46                                    # to x, what no place to go to exceeds
CLEAR_Y_M = .16                                  # an idle hand stays at least this far from the middle


class Hand:
    """One hand's view of the world at this instant, and the command being composed for it."""

    def __init__(self, world, hand, brick, grip_point=(0, 0, 0)):
        s = world.brick_scale
        self.world, self.hand, self.scale = world, hand, s
        self.command = world.tool_command[TOOL[hand]].astype(float)
        self.new = self.command.copy()
        self.tool, R = world.tool_pose(hand)
        self.yaw = np.arctan2(R[1, 0], R[0, 0])
        self.brick, Rb = world.brick_pose(brick)
        self.brick_yaw, self.up = np.arctan2(Rb[1, 0], Rb[0, 0]), Rb[:, 2]
        self.grip = self.brick + Rb @ grip_point                       # bottom of where to hold it
        self.in_hand = rot_z(self.yaw).T @ (self.grip - self.tool)
        self.open_m, self.opening_m = world.max_opening_m, world.opening_m(hand)
        # 0 closed .. 1 open, as commanded
        self.stroke = (self.command[6] - CLOSED_M) / (self.open_m - CLOSED_M)
        width = 2 * s * STUD_PITCH_M
        self.height = world.grasp_height_m
        self.near = np.hypot(*self.in_hand[:2]) < .012 * s and abs(self.in_hand[2] + self.height) < .007 * s
        self.held = self.near and self.opening_m < width + .003
        self.closed = self.opening_m < width + .008 * s
        # fingers on the long sides, the turn nearest to rest
        self.grasp_yaw = wrap(self.brick_yaw - np.pi / 2, np.pi)
        self.dt = 1 / world.control_hz

    def go(self, xy, yaw, z, speed=SPEED_M_S, z_speed=SPEED_M_S):
        """Move the command towards a pose within the speeds, upright but for a brick that leans."""
        c, dt = self.command, self.dt
        d = np.asarray(xy) - c[:2]
        self.new[:2] = c[:2] + d * min(1, speed * dt / max(np.linalg.norm(d), 1e-9))
        self.new[2] = c[2] + np.clip(z - c[2], -z_speed * dt, z_speed * dt)
        self.new[3:5] = c[3:5] + np.clip(self.lean() - c[3:5], -TURN_RAD_S * dt, TURN_RAD_S * dt)
        # the way that stays within the wrist's range, not the shortest
        self.new[5] = c[5] + np.clip(yaw - c[5], -TURN_RAD_S * dt, TURN_RAD_S * dt)

    def turn(self, yaw):
        """Yaw to command so that the held brick gets to `yaw`, in which half a turn makes no difference."""
        turn = self.command[5] + wrap(yaw - self.brick_yaw, np.pi)
        return turn if abs(turn) < MAX_YAW_RAD else wrap(turn, np.pi)

    def lean(self):
        """Tilt to command, the first two numbers of a rotation vector: that of a brick which leans on
        something, to grasp it squarely, and what rights a brick in the hand. (Grasped by an upright hand it
        kept its tilt; tilted by more than the studs allow, it was pressed on for ever.)"""
        tilt = np.cross([0, 0, 1], self.up)
        angle = np.linalg.norm(tilt)
        if not self.held and (angle > MAX_LEAN_RAD or np.hypot(*(self.grip - self.tool)[:2]) > .05):
            return np.zeros(2)
        tilt *= max(0, 1 - LEVEL_RAD / max(angle, 1e-9))
        R = rotvec_to_matrix(self.command[3:6]) if self.held else rot_z(self.command[5])
        return matrix_to_rotvec(rotvec_to_matrix(-.5 * tilt if self.held else tilt) @ R)[:2]

    def gripper(self, shut):
        """All the way, whatever is commanded now (the fingers take a control period): where the answer was
        the present command and a bit more, a learner copied the command, and hovered half open."""
        self.new[6] = CLOSED_M if shut else self.open_m

    def pick(self):
        """Reach for the brick and close on it. Used whenever the brick is not in this hand."""
        s = self.scale
        # above the grip along the brick's own axis where it leans
        tilted = np.cos(MAX_LEAN_RAD) < self.up[2] < np.cos(LEVEL_RAD)
        goal = self.grip + self.height * (self.up if tilted else np.array([0, 0, 1]))
        error = np.hypot(*(goal - self.tool)[:2]) + .03 * abs(wrap(self.grasp_yaw - self.yaw))
        above = self.tool[2] - goal[2]
        in_place = self.near and error < .004 * s and abs(above) < .004 * s
        if in_place and (self.stroke < .9 or error < .0025 * s):
            self.go(goal[:2], self.grasp_yaw, goal[2], .05)
            self.gripper(shut=True)
            return 'grasp'
        z = goal[2] + np.clip(1.5 * (error - .004 * s), 0, .07)
        # closed fingers beside the brick: up first
        if self.closed and error < .03 * s and above < BRICK_HEIGHT_M * s:
            z = goal[2] + .05
        # low and off to the side: rise before moving on
        slow = 1. if error < .012 else np.clip(above / .025, .1, 1)
        self.go(goal[:2], self.grasp_yaw, z, SPEED_M_S * slow, .2 if error < .03 else SPEED_M_S)
        self.gripper(shut=False)
        return 'reach'

    def lifted_speed(self):
        """Lateral speed while the brick is still close to the table."""
        return SPEED_M_S * np.clip((self.tool[2] - self.height) / .03, 0, 1)

    def let_go(self, clear_z):
        """Open, rise, and shut again above the bricks. An open hand over a brick is about to fetch it, an
        empty shut one has finished: from above a learner cannot see the 2-3 mm by which a brick is pressed on
        or not, and with open fingers it went back and forth."""
        above = self.above()
        self.gripper(shut=above)
        if not above and self.opening_m < self.open_m - .016:
            self.new[:3] = self.tool                # take the press force off while the fingers open
            return 'release'
        self.go(self.command[:2], self.command[5], clear_z)
        return 'retreat'

    def above(self):
        """True where the fingers can shut without touching the goal's bricks."""
        world, goal = self.world, self.world.goal
        heights = {b.name: b.height_m(self.scale) for b in world.bricks}
        top = max(world.brick_pose(name)[0][2] + heights[name] for name in (goal.upper, goal.lower))
        return self.tool[2] > top + self.scale * STUD_HEIGHT_M + FINGERTIP_M + .004

    def gone(self):
        """True of an empty shut hand above a brick that looks as if it were pressed on: let_go ends so."""
        off_m = np.linalg.norm(self.world.goal_pose()[0] - self.brick)
        empty = self.opening_m < 1.2 * self.scale * STUD_PITCH_M
        return empty and off_m < .005 * self.scale and self.above()

    def keep_clear(self):
        """An idle hand near the middle moves to its own side; elsewhere it stays."""
        side = 1 if self.hand == 'left' else -1
        if side * self.command[1] < CLEAR_Y_M:
            self.go((self.command[0], side * (CLEAR_Y_M + .02)), self.command[5], max(self.command[2], .10))

    def hold_at(self, middle, yaw):
        """Keep the held brick's middle at a point and its yaw at `yaw`,
        following the measured pose in the hand."""
        offset = rot_z(self.yaw).T @ (self.brick - self.tool)
        turn = self.turn(yaw)
        target = middle - rot_z(turn) @ offset
        self.go(target[:2], turn, target[2], self.lifted_speed())
        self.gripper(shut=True)
        return 'hold' if np.linalg.norm(self.brick - middle) < .012 else 'carry'

    def lay_down(self, point, yaw):
        """Carry the held brick to a place (x, y) on the table and let go of it there."""
        s = self.scale
        e = point - self.brick[:2]
        turn = self.turn(yaw)
        error = np.hypot(*e) + .03 * abs(wrap(yaw - self.brick_yaw, np.pi))
        if error < .015 and self.brick[2] < .0015 * s:
            return self.let_go(.14)
        z = self.height + np.clip(1.5 * (error - .008), -.004, .06)      # in the end onto the table, softly
        offset = rot_z(self.yaw).T @ (self.brick - self.tool)
        self.go(point - (rot_z(turn) @ offset)[:2], turn, z,
                self.lifted_speed() if error > .02 else SPEED_M_S)
        self.gripper(shut=True)
        return 'lower' if error < .02 else 'carry'

    def wait(self):
        """Hold the brick beside where the other hand will be."""
        side = 1 if self.hand == 'left' else -1
        low = self.world.goal_pose()[0][2] + self.height + LOW_M
        z = low if self.world.goal.steady else WAITING_POINT_M[2]
        self.go(WAITING_POINT_M[:2] * [1, side], 0., z, self.lifted_speed())
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
        s, error = self.scale, np.hypot(*(self.grip - self.tool)[:2])
        touching = self.grip[2] + s * (PLATE_HEIGHT_M + STUD_HEIGHT_M) + FINGERTIP_M      # height of the tool
        closed = self.opening_m < .008
        self.gripper(shut=True)
        over = closed and (error < .01 or self.tool[2] < touching + .003 and error < .02)
        z = touching - .008 if over else touching + .02 + np.clip(1.5 * (error - .01), 0, .06)
        self.go(self.tool[:2] if over else self.grip[:2], 0., z, z_speed=.1 if error < .03 else SPEED_M_S)
        return 'hold' if over and self.tool[2] < touching + .001 else 'reach'

    def pull(self):
        """Up, rolling about the axis that the fingers hold best: peeled at one edge, four studs part at a
        tenth of the load that takes them off straight, and the other hand does not lose the lower brick."""
        self.go(self.tool[:2], self.command[5], self.command[2] + .1, z_speed=PULL_SPEED_M_S * self.scale)
        outer = 1 if self.hand == 'right' else -1       # the edge away from this hand's side comes off first
        self.new[3] = np.clip(self.command[3] + outer * PEEL_RAD_S * self.dt, -.35, .35)
        self.gripper(shut=True)
        return 'pull'

    def aside(self, gap_m):
        """Carry what was pulled off to this hand's own side, well above the brick it came from."""
        (x, y), yaw = put_down(self.hand)
        self.go((x, y), self.turn(yaw), self.tool[2] - gap_m + .03)
        self.gripper(shut=True)
        return 'carry'

    def leave(self):
        """Let go of a brick that lies where it should, rise, and get out of the way."""
        if self.tool[2] < .10:
            return self.let_go(.14)
        self.keep_clear()
        return 'rest'

    def bring(self):
        """Carry the held brick over its place, align, press."""
        s, world = self.scale, self.world
        target, target_yaw = world.goal_pose()
        e = (target - self.brick)[:2]
        turn = self.turn(target_yaw)
        error = np.hypot(*e) + .03 * abs(wrap(target_yaw - self.brick_yaw, np.pi))
        seat_z, stud = target[2] - self.in_hand[2], s * STUD_HEIGHT_M      # tool height with the brick seated
        phase = 'align' if error < .02 else 'carry'
        # Far away the command aims at the place itself, allowing for how the brick lies in the hand; close by
        # it moves by a share of the measured error, which also removes what is left of the tracking error.
        xy = self.command[:2] + .6 * e if error < .006 * s else target[:2] - (rot_z(turn) @ self.in_hand)[:2]
        above_studs, gently = self.tool[2] - seat_z - stud, len(world.plan.chain) > 1       # or towers break
        tolerance = (.0009 if above_studs > .003 else .0014) * s
        if error < tolerance and self.command[2] < seat_z + stud + .012 * s:
            phase = 'press'
            # A stuck brick must not wind the command up sideways without end; but held to the tool itself, it
            # would leave the tracking error of the arm, 0.5 mm and more, in the press.
            ahead = np.clip(self.command[:2] + .6 * e - self.tool[:2], -WINDUP_M, WINDUP_M)
            self.go(self.tool[:2] + ahead, turn, seat_z - .015, SPEED_M_S,
                    PRESS_SPEED_M_S * s * (.25 if gently else 1))
        else:
            z = seat_z + stud + .004 + np.clip(1.5 * (error - .003), 0, LOW_M if world.goal.steady else .05)
            self.go(xy, turn, z, self.lifted_speed() if error > .02 else SPEED_M_S)
        self.gripper(shut=True)
        return phase


class Expert:
    """Ground-truth policy for every task. trusting: a hand that has gone has pressed its brick on."""

    def __init__(self, trusting=False):
        self.trusting = trusting

    def act(self, world):
        """Returns the next tool action (15,) float32 and info: `phase` (left, right) verbs, `subtask`
        narration."""
        action, verbs = world.tool_command.astype(float), dict.fromkeys(HANDS, 'rest')
        action[0] -= np.clip(action[0], -.05, .05)      # all of this assumes a spine that looks ahead
        goal = world.goal
        plan = hand_over if goal.giver else take_apart if goal.apart else assemble
        moves = plan(world, goal, self.trusting)
        for h, verb, _, _ in moves:
            verbs[h.hand], action[TOOL[h.hand]] = verb, h.new
        action = np.clip(action, TOOL_LOW, TOOL_HIGH).astype(np.float32)
        return action, dict(phase=tuple(verbs[k] for k in HANDS), subtask=narrate(moves))


# Plans: what each hand does about a goal in the present state. Each returns [(Hand, verb, brick it is about,
# words for where that goes or None)].
def assemble(world, goal, trusting):
    """Fetch the upper brick and press it on; where there is a holder, it brings the lower brick first."""
    moves, holder_ready = [], True
    if goal.holder:
        # a tower is held by its foot and all above: gripped higher up it comes apart
        foot = goal.steady * np.array([0, 0, world.brick_scale * BRICK_HEIGHT_M])
        h = Hand(world, goal.holder, goal.lower, far_end(world, goal) - foot)
        if goal.steady and world.joined():
            verb = h.let_go(.14)
        elif h.held:
            verb = h.steady() if goal.steady else h.hold_at(MEETING_POINT_M, np.pi / 2)
        else:
            verb = h.pick()
        moves.append((h, verb, goal.lower, None))
        holder_ready = verb == 'hold'
    else:
        moves.append(idle(world, other_hand(goal.hand), goal.upper))
    h = Hand(world, goal.hand, goal.upper)
    if world.joined() or trusting and h.gone():
        verb = h.let_go(.26 if goal.holder else .14)
    elif not h.held:
        verb = h.pick()
    elif holder_ready:
        verb = h.bring()
    else:
        verb = h.wait()
    return [*moves, (h, verb, goal.upper, goal.where)]


def hand_over(world, goal, trusting):
    """One hand lays the brick down where the other reaches it, and gets out of the way. Whose turn it is
    follows from who holds the brick, else from where it lies."""
    g, h = Hand(world, goal.giver, goal.upper), Hand(world, goal.hand, goal.upper)
    side = 1 if goal.giver == 'left' else -1
    within_reach = side * g.brick[1] < SHARED_Y_M
    if world.joined() or trusting and h.gone():
        return [idle(world, goal.giver, goal.upper), (h, h.let_go(.14), goal.upper, goal.where)]
    if h.held or within_reach and not g.held:
        give = g, g.leave(), goal.upper, None
        if h.held:
            return [give, (h, h.bring(), goal.upper, goal.where)]
        if side * g.tool[1] < CLEAR_Y_M - .04:
            return [give, idle(world, goal.hand, goal.upper)]
        return [give, (h, h.pick(), goal.upper, None)]
    verb = g.lay_down(HANDOVER_POINT_M, np.pi / 2) if g.held else g.pick()
    return [(g, verb, goal.upper, 'middle'), idle(world, goal.hand, goal.upper)]


def take_apart(world, goal, _):
    """Lift the stack by its lower brick, grasp the upper one in the air, pull, lay both down. A plate is held
    down where it lies."""
    grip = far_end(world, goal) * [world.lifts(), 1, 1]
    h0, h = Hand(world, goal.holder, goal.lower, grip), Hand(world, goal.hand, goal.upper)
    joined, gap = world.joined(), h.brick - world.seat(goal)[0]
    # the upper brick off the lower one and beside it: only then may either go down
    beside = abs(gap[1]) > HAND_WIDTH_M or world.lies(goal.upper)
    parted = not joined and beside
    if not world.lifts():
        verb0 = h0.leave() if parted else h0.hold_down()
    elif h0.held:
        verb0 = h0.lay_down(*put_down(goal.holder)) if parted else h0.hold_at(MEETING_POINT_M, np.pi / 2)
    else:
        verb0 = h0.leave() if parted and world.lies(goal.lower) else h0.pick()
    ready = verb0 == 'hold'
    if h.held and joined:
        verb = h.pull() if ready else h.stay()
    elif h.held:
        off = gap[2] > (STUD_HEIGHT_M + .003) * world.brick_scale
        verb = h.lay_down(*put_down(goal.hand)) if parted else h.aside(gap[2]) if off else h.pull()
    elif parted and world.lies(goal.upper):
        verb = h.leave()
    elif ready or not joined:
        verb = h.pick()
    else:
        return [(h0, verb0, goal.lower, None), idle(world, goal.hand, goal.upper)]
    return [(h0, verb0, goal.lower, 'table' if parted else None), (h, verb, goal.upper, 'table')]


def far_end(world, goal):
    """Where the holder grips: the end of the lower brick away from the upper one, (3,) m in its frame."""
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
    """One line on what the hands do: 'left: carry red to near left', 'left: hold red; right: press blue'."""
    lines = {}
    for h, verb, brick, where in moves:
        if verb != 'rest':
            to = f' to {where}' if where and verb in ('carry', 'align', 'press', 'lower') else ''
            lines[h.hand] = f'{h.hand}: {verb} {brick}{to}'
    return '; '.join(lines[hand] for hand in HANDS if hand in lines)


class Kicks:
    """Sparse displacements of the executed command while demonstrating. The expert's clean answer stays the
    label, so the recording shows how to come back from where a learner will end up: off to the side, too low,
    off-centre in the grasp, brick let go before it snapped. `probability` per control step and hand; scales
    6, 20 and 50 mm."""

    def __init__(self, seed, probability=.1):
        self.rng = np.random.default_rng([7919, seed])
        self.probability = probability
        # what is left of a burst: (offset (6,) to add to the command in force, opening or None)
        self.queue = {h: [] for h in HANDS}
        # at most one off-centre grasp and one early release per hand and episode
        self.grasped, self.dropped = set(), set()
        # In most episodes an idle hand sets out for a brick nobody asked for. Without these feints the hand
        # that moves, or is near its brick, always is the right one: a learner reads that instead of the
        # instruction (it then chose the hand by chance on the first step, and stayed with it).
        self.feint_steps = self.rng.integers(3, 13) if self.rng.random() < .6 and probability > 0 else 0
        # Small errors all along (DART, Laskey et al. 2017). Without them a hand low over the place is always
        # just where the way the brick lies in it requires: a learner reads the one off the other, does not
        # look, and in the end centres the hand instead of the brick.
        self.jitter_m, self.drift = self.rng.uniform(0, .0007) * (probability > 0), np.zeros((2, 3))

    def apply(self, world, action, info):
        """Returns the action to execute (15,) float32 and whether it was replaced: then what comes after it
        answers another situation. Jitter alone does not count."""
        action, kicked = action.copy(), False
        self.drift = .5 * self.drift + .87 * self.rng.normal(size=(2, 3))      # of unit spread
        # two hands that meet in the air both miss; a brick that is handed over is fetched and carried twice
        smaller = world.goal.holder or world.goal.giver
        jitter_m = self.jitter_m * world.brick_scale * (.6 if smaller else 1)
        for hand, verb, drift in zip(HANDS, info['phase'], self.drift):
            if verb != 'rest':
                action[TOOL[hand]][:3] += jitter_m * drift
            if verb == 'rest' and world.steps < self.feint_steps:
                other = Hand(world, hand, self._unasked(world, hand))
                other.pick()
                action[TOOL[hand]][:6] = other.new[:6]
                kicked = True
                continue
            if not self.queue[hand] and self.probability > 0:
                self._draw(world, hand, verb)
            if self.queue[hand]:
                kicked, sl = True, TOOL[hand]
                offset, open_m = self.queue[hand].pop(0)
                action[sl] = world.tool_command[sl]
                action[sl][:6] += offset
                if open_m is not None:
                    action[sl][6] = open_m
        return np.clip(action, TOOL_LOW, TOOL_HIGH).astype(np.float32), kicked

    def _unasked(self, world, hand):
        """The nearest loose brick that is not part of the goal (for one on the other side the arms would
        entangle); the goal's own where there is no other."""
        asked = (world.goal.upper, world.goal.lower)
        names = [b.name for b in world.bricks if not b.fixed and b.name not in asked]
        tool = world.tool_pose(hand)[0]
        return min(names or [world.goal.upper], key=lambda n: np.linalg.norm(world.brick_pose(n)[0] - tool))

    def _draw(self, world, hand, verb):
        rng, s, command = self.rng, world.brick_scale, world.tool_command[TOOL[hand]]
        is_open = command[6] > .6 * world.max_opening_m
        # an idle hand is pushed about as well: else which hand moves would tell a learner which hand is meant
        chance = dict(reach=1, carry=1, align=1, wait=.6, rest=.5).get(verb, 0) * self.probability
        if world.goal.holder and verb == 'carry' and hand == world.goal.holder:
            chance *= .6
        if verb == 'reach' and world.steps == 0:
            chance = .5
        if verb == 'grasp' and is_open and hand not in self.grasped:
            chance = .3
        if verb == 'press' and not world.goal.holder and hand not in self.dropped:
            chance = .06
        if rng.random() >= chance:
            return
        held = verb in ('carry', 'align', 'wait')
        if verb == 'press':
            # let go before the brick has snapped, a little to the side, and rise:
            # it has to be picked up again
            self.dropped.add(hand)
            side, rise = rng.normal(0, .0015 * s, 2), rng.uniform(.01, .03)
            first = np.array([*side, 0, 0, 0, rng.normal(0, .03)])
            up = np.array([0, 0, rise, 0, 0, 0])
            n = rng.integers(2, 4)
            open_m = world.max_opening_m
            self.queue[hand] = [(first, None), (np.zeros(6), open_m)] + [(up, open_m)] * n
            return
        if verb == 'grasp':      # off-centre along the brick
            self.grasped.add(hand)
            x = rng.uniform(-.0055, .0055) * s
            yaw = command[5]
            self.queue[hand] = [(np.array([np.cos(yaw) * x, np.sin(yaw) * x, 0, 0, 0, 0]), None)]
            return
        u = rng.random()
        size, turn, n = ((.006, .06, 2) if u < .4 else (.02, .15, 2) if u < .75 else (.05, .3, 3))
        perched = verb == 'reach' and self._perched(world, hand)
        shrink = .2 if perched else .5 if world.goal.holder and held else 1.
        offset = np.array([*rng.normal(0, size, 3), 0, 0, rng.normal(0, turn)]) * shrink
        low = world.grasp_height_m
        if held:                 # never ram a held brick into what lies below it
            low += (self._floor(world, hand) + STUD_HEIGHT_M * s + .004)
        z = np.clip(command[2] + offset[2], low, .26)
        if verb == 'reach' and not perched and rng.random() < .3:
            z = max(low, rng.uniform(low, low + .05))
        offset[2] = z - command[2]
        # nor the arm to its end, where it flips over and comes to lie behind the other one
        offset[0] = min(offset[0], max(0, REACH_M - command[0]))
        self.queue[hand] = [(offset / n, None)] * n

    def _perched(self, world, hand):
        """True where the brick that `hand` reaches for lies on a loose one or is in the air: struck hard it
        comes to lie upside down, and no upright hand can mend that."""
        g = world.goal
        loose = g.lower in [b.name for b in world.bricks if not b.fixed]
        brick = g.lower if hand == g.holder else g.upper
        return (g.apart or loose and (g.steady or not g.holder)) and not world.lies(brick)

    def _floor(self, world, hand):
        """Height of what a brick held by `hand`, and what hangs on it, could hit, m."""
        if hand == world.goal.holder:
            return .02
        target = world.goal_pose()[0]
        xy = world.tool_command[TOOL[hand]][:2]
        # between towers, one hangs on the bridge: as high as the other, on which the bridge will sit
        if not world.goal.holder or world.goal.steady or np.hypot(*(xy - target[:2])) < .1:
            return max(0., float(target[2]))
        return .02
