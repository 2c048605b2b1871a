"""The expert for plans: hands that place bricks between neighbours and mend what came loose.

As in expert.py, an answer is a function of the state alone. What is new here: a grip that
the planner chose (Goal.grip), a brick that has to lie one way round, a straight way down into a
gap, ways around what stands already, and fingers that open only as far as there is room.
"""

from collections.abc import Iterable

import numpy as np

from episode import ARM_TOOL
from sim.bricks import STUD_HEIGHT_M, STUD_PITCH_M
from sim.control import OPENING, POSE, SPINE, TOOL_HIGH, TOOL_LOW, XYZ, YAW
from sim.expert import SHARED_Y_M, SPINE_RAD, Expert, Move, narrate, other_hand
from sim.hand import (
    CLEAR_Y_M,
    CLEAR_Z_M,
    MAX_YAW_RAD,
    PEEL_RAD_S,
    PRESS_SPEED_M_S,
    SPEED_M_S,
    UPRIGHT,
    WINDUP_M,
    XY,
    Hand,
    Z,
    side_of,
)
from sim.kinematics import rot_z, rotvec_to_matrix, wrap
from sim.tasks import FINGERTIP_M, HANDS, Goal, Grip
from sim.truth import Truth

SLOW_SHARE = 0.25  # Share of the press speed; towers break at more.
# Per unit of scale, beside others, down to the studs; at 0.12 m/s the arm swings 2 mm to the side.
DESCENT_M_S = 0.025
TIGHT_DESCENT_M_S = 0.0125
HOVER_M = 0.004  # A hand waits so far above what could be in the way before it goes down.
RISE_M_S = 0.08  # Out from between others; at 0.3 m/s the arm swings 6 mm to the side.
SETTLE_M = 0.0025  # per unit of scale: so far above the studs the arm comes to rest, then presses
PRECISE_M = 0.0003  # per unit of scale: a brick is pressed on from that near to its place
# Shut fingers are commanded so far below what they touch for each stud that has to go in: at 4 mm
# they press with a few newtons, and a stud takes one.
PUSH_PER_STUD_M = 0.002
PUSH_M = (0.004, 0.015)  # the least and the most
GROUP_SHARE = 0.4  # Share of the usual speed with several bricks in the hand.
FEEDBACK = 0.3
MAX_PEEL_RAD = 0.4
# Per unit of scale: a brick is tilted off about a line so far below its edge; negative: above.
PIVOT_M = -0.03
FARTHEST_RAD = MAX_YAW_RAD + 0.3  # The wrist turns a brick that it holds so far.
# A brick so far beyond the middle is for the other hand to fetch. One that has fallen over takes a
# hand that leans, which reaches less far.
OTHER_SIDE_M = 0.11
FALLEN_OTHER_SIDE_M = 0.04
NEAR_M = 0.06  # A tool this near to a brick may hold it.
AROUND_M = 0.008  # sideways, of a tool whose fingers are around a brick
# Where a brick is handed over: its middle this far before the plate, at least so far from the robot
BEFORE_PLATE_M = 0.05
NEAREST_M = 0.19
HAND_ROOM_M = 0.075  # around the plate: what a hand with a brick takes up
OVER_M = 0.012  # On the way a hand stays so far above what stands.
FULL_ROOM_M = 0.016  # A finger opens this far with nothing beside the brick.
MISSED_M = 0.003  # per unit of scale: a brick this near to its place is on its studs
AT_SEAT_M = 0.03  # a brick this near to its place has neighbours


Zone = tuple[np.ndarray, np.ndarray]  # low and high corner (2,) m


def grip_of(truth: Truth, hand: str, goal: Goal) -> Grip:
    """How a hand holds the upper brick of a goal: as planned, or as there is room for by now.

    A brick that has come off after others were placed beside it goes between these.
    """
    grip = goal.grip
    assert grip is not None, f'{goal.upper} on {goal.lower}: not the goal of a plan'
    placed = {link.upper for link in truth.links}
    if grip.late is None or placed.isdisjoint(grip.after):
        return grip
    if goal.upper not in placed:
        return grip.late
    middle, R = truth.brick_pose(goal.upper)
    tool = truth.tool_pose(hand)[0]
    ways = (grip, grip.late)  # It is placed: it was held by the one that the hand is nearer to.
    return min(ways, key=lambda way: np.linalg.norm(middle + R @ [*way.at_m, way.up_m] - tool))


class Fitter(Hand):
    """A hand that holds the goal's upper brick as goal.grip says."""

    def __init__(self, truth: Truth, hand: str, goal: Goal):
        """Look at the upper brick of a goal of a plan with a hand."""
        grip = grip_of(truth, hand, goal)
        super().__init__(truth, hand, goal.upper, np.array([*grip.at_m, grip.up_m]))
        self.goal = goal
        self.hold = grip
        self.target, self.target_yaw = truth.seat(goal)
        self.at_seat = np.linalg.norm(self.target - self.brick) < AT_SEAT_M
        # A part of the studs will do.
        others = [one for one in truth.plan.chain if one.upper == goal.upper and one != goal]
        self.seated = any(truth.joined(one, loose=True) for one in others)
        self.top_m, self.zone = standing(truth, self.tower)
        self.grasp_yaw = self._nearest_grasp()
        self._look_at_fingers()

    def _nearest_grasp(self) -> float:
        """Yaw to grasp the brick with: of the two ways that from which the wrist turns least.

        Of two that are as good as each other it is the one that the hand is nearer to: with no
        choice between them it turned to and fro for ever.
        """
        straight = self.brick_yaw - (np.pi / 2 if self.hold.along == 1 else 0)
        left = wrap(self.target_yaw - self.brick_yaw)

        def turning(yaw: float) -> float:
            most = max(abs(yaw), abs(yaw + left))
            return most + 0.1 * abs(yaw - self.command[YAW])

        return min(wrap(straight), wrap(straight + np.pi), key=turning)

    def _look_at_fingers(self) -> None:
        """Tell whether the fingers are shut on the brick, around it, or closed."""
        self.width_m = self.hold.width_m
        wide_m = min(self.width_m + 2 * FULL_ROOM_M, TOOL_HIGH[OPENING])
        self.open_m = self.hold.open_m if self.at_seat else wide_m
        more_m = self.opening_m - self.width_m
        self.held = self.near and -0.006 < more_m < 0.003 and not self.tipped
        # Open fingers that a brick pushes together by 3 mm are not closed.
        room_m = self.open_m - self.width_m
        self.closed = more_m < min(0.004 * self.scale, 0.4 * room_m)
        # The fingers, shut or not, are on either side of the brick.
        tips_m = self.tool[2] - FINGERTIP_M - self.grip[2]
        brick = self.truth.brick(self.goal.upper)
        top_m = brick.height_m(self.scale) + self.scale * STUD_HEIGHT_M
        beside = np.linalg.norm((self.grip - self.tool)[:2]) < AROUND_M
        self.around = beside and 0 < tips_m < top_m and more_m > -0.006

    def turn(self, yaw: float) -> float:
        """Yaw to command so that the held brick gets to `yaw`, this way round."""
        turn = self.command[YAW] + wrap(yaw - self.brick_yaw)
        return turn if abs(turn) < FARTHEST_RAD else wrap(turn)

    def is_wrong_way_round(self) -> bool:
        """True where the wrist cannot turn the held brick to how it has to lie."""
        return abs(wrap(self.turn(self.target_yaw))) > FARTHEST_RAD

    def turn_round(self) -> str:
        """Lay the held brick down so that it can be grasped the other way round.

        Where it lies a quarter turn from straight ahead, the other way is a quarter turn to the
        other side.
        """
        quarter = np.copysign(np.pi / 2, self.command[YAW])
        yaw = self.brick_yaw + quarter - self.command[YAW]
        return self.lay_down(self.clear_spot(self.brick), yaw)

    def go(
        self,
        xy: np.ndarray,
        turn: float | np.ndarray,
        z: float,
        speed: float = SPEED_M_S,
        z_speed: float = SPEED_M_S,
    ) -> None:
        """As Hand.go, but over what stands: up before it goes sideways across the plate."""
        away = np.linalg.norm(np.asarray(xy) - self.tool[:2])
        if away > 0.02 and crosses(self.zone, self.tool[:2], np.asarray(xy)):
            depth = -self.in_hand[2] if self.held else FINGERTIP_M
            floor = self.top_m + depth + OVER_M
            z = max(z, floor)
            speed *= float(np.clip((self.tool[2] - floor + 0.02) / 0.015, 0.02, 1))
        super().go(xy, turn, z, speed, z_speed)

    def pick(self) -> str:
        """As Hand.pick, but straight down where something stands on the brick or beside it."""
        heights = {b.name: b.height_m(self.scale) for b in self.truth.bricks}
        top = max(self.truth.brick_pose(name)[0][2] + heights[name] for name in self.tower)
        if self.at_seat:
            top = max(top, self.target[2] + self.hold.clear_m)
        high = top + self.scale * STUD_HEIGHT_M + FINGERTIP_M + 0.005
        at = self.grasp_place()[:2]
        error = np.hypot(*(at - self.tool[:2]))
        turn = abs(wrap(self.grasp_yaw - self.yaw))
        around = len(self.tower) > 1 or self.at_seat
        if self.tipped:
            return super().pick()
        if self.near and self.opening_m < self.width_m - 0.006:
            if self.hangs_askew():
                self.new[XYZ] = self.tool
                self.gripper(shut=False)
                return 'release'
            # The fingers have shut on nothing.
            self.go(self.command[XY], self.command[YAW], high + 0.03)
            self.gripper(shut=True)
            return 'reach'
        if not around:
            return super().pick()
        limit = (0.001 + 0.0012 * begun(high - self.tool[2])) * self.scale
        if error + 0.03 * turn < limit:
            verb = super().pick()
            self.new[Z] = max(self.new[Z], self.command[Z] - DESCENT_M_S * self.scale * self.dt)
            self.new[XY] = at + 0.6 * (at - self.tool[:2])
            return verb
        z = max(high, self.command[Z] - 0.02)
        if self.tool[2] > high - 0.004:
            self.go(at, self.grasp_yaw, z)
            self.gripper(shut=False)
        else:
            # The fingers may be around what they have just joined on: opened any wider there, they
            # tore it off.
            self.go(self.command[XY], self.command[YAW], z)
        return 'reach'

    def hangs_askew(self) -> bool:
        """True where the brick is neither placed nor on the table: it may hang by a corner.

        Fingers that are shut around less than its width had risen with it to their limit, for ever.
        """
        brick = self.goal.upper
        placed = any(link.upper == brick for link in self.truth.links)
        return not placed and not self.truth.lies(brick)

    def let_go(self, clear_z: float = CLEAR_Z_M) -> str:
        """Open as far as there is room, rise straight up, shut again above."""
        clear_z = max(clear_z, self.top_m + FINGERTIP_M + 0.03, self.grip[2] + self.height + 0.045)
        above = self.above()
        empty = self.opening_m < self.width_m - 0.004
        self.gripper(shut=above or empty)
        opened = self.width_m + 0.6 * (self.open_m - self.width_m)
        if not above and not empty and self.opening_m < opened:
            self.new[XYZ] = self.tool
            return 'release'
        beside = self.open_m < self.width_m + 2 * FULL_ROOM_M
        low = self.tool[2] < self.grip[2] + self.height + self.hold.clear_m
        z_speed = RISE_M_S if beside and low else SPEED_M_S
        Hand.go(self, self.command[XY], self.command[YAW], clear_z, SPEED_M_S, z_speed)
        return 'retreat'

    def bring(self) -> str:
        """Carry the held brick over its place, go straight down where it is clear, press."""
        s = self.scale
        grip = self.hold
        turn = self.turn(self.target_yaw)
        seat_z = self.target[2] - self.in_hand[2]
        stud = s * STUD_HEIGHT_M
        gap = self.tool[2] - seat_z - stud  # the brick's bottom above the studs
        # Away from a neighbour until the brick is beside it. Snapped from there, 1.6 mm aside,
        # links to several bricks below pulled at each other with 75 times what they hold.
        shift = np.array([*grip.shift_m, 0]) * np.clip((gap - 0.002 * s) / (0.004 * s), 0, 1)
        aim = self.target + rot_z(self.target_yaw) @ shift
        e = (aim - self.brick)[:2]
        error = np.hypot(*e) + 0.03 * abs(wrap(self.target_yaw - self.brick_yaw))
        self.gripper(shut=True)
        # The command goes where the hand has to be, with a share of what is still missing. Adding
        # that up from step to step, as Hand.bring does, swung by 2 mm: the arm lags by half a step.
        xy = aim[:2] - (rot_z(turn) @ self.in_hand)[:2] + FEEDBACK * e * (error < 0.006 * s)
        press = PRESS_SPEED_M_S * s * SLOW_SHARE
        if self.seated:  # only further down: what it sits on already holds it in its place
            super().go(self.tool[:2], turn, seat_z - 0.015, SPEED_M_S, press)
            return 'press'
        if error > (0.0005 + 0.0009 * begun(grip.clear_m + HOVER_M - gap)) * s:
            return self.hover(xy, turn, seat_z + stud + grip.clear_m + HOVER_M, error)
        settle = SETTLE_M * s
        precise = PRECISE_M * s
        if gap > settle + 0.001 or gap > 0.6 * settle and error > precise:
            fastest = s * (TIGHT_DESCENT_M_S if grip.tight else DESCENT_M_S)
            z = max(seat_z + stud + settle, self.command[Z] - fastest * self.dt)
            super().go(xy, turn, z, 0.05, fastest)
            return 'align'
        ahead = np.clip(xy - self.tool[:2], -WINDUP_M, WINDUP_M)
        super().go(self.tool[:2] + ahead, turn, seat_z - 0.015, SPEED_M_S, press)
        return 'press'

    def hover(self, xy: np.ndarray, turn: float, z: float, error: float) -> str:
        """Carry the held brick to above its place, and wait there until it is right above it."""
        z += np.clip(1.5 * (error - 0.003), 0, 0.05)
        self.go(xy, turn, z, self.lifted_speed() if error > 0.02 else SPEED_M_S)
        if len(self.tower) > 1:  # jerked, what was joined comes apart
            self.new[POSE] = self.command[POSE] + GROUP_SHARE * (self.new - self.command)[POSE]
        return 'align' if error < 0.02 else 'carry'

    def peel(self) -> str:
        """Tilt the brick about a line above its edge until its studs are out, then lift.

        Pulled straight up, or tilted about the fingers, it brings along what is below, which studs
        hold no better. About a line above it the hand also pushes against the tilt, and the load
        falls off towards the foot of a tower.
        """
        side = side_of(self.hand)
        yaw = self.yaw + wrap(self.target_yaw - self.brick_yaw)
        upright = rot_z(yaw)
        rolled = upright.T @ self.R
        roll = np.arctan2(rolled[2, 1], rolled[2, 2])
        lean = np.clip(roll - side * PEEL_RAD_S * self.dt, -MAX_PEEL_RAD, MAX_PEEL_RAD)
        tilted = upright @ rotvec_to_matrix(np.array([lean, 0, 0]))
        rest = self.target + rot_z(self.target_yaw) @ np.array([*self.hold.at_m, self.height])
        edge = upright @ np.array([0, side * self.width_m / 2, -self.height - PIVOT_M * self.scale])
        at = rest + edge + tilted @ upright.T @ -edge
        self.gripper(shut=True)
        rise = 0.002 if abs(roll) < 0.8 * MAX_PEEL_RAD else 0.05
        super().go(at[:2], tilted, at[2] + rise, SPEED_M_S, SPEED_M_S)
        return 'pull'

    def push_down(self) -> str:
        """Press with shut fingers on top of where the goal's studs have come loose."""
        at, top, n_studs = over_link(self.truth, self.goal)
        error = np.hypot(*(at - self.tool[:2]))
        touching = top + self.scale * STUD_HEIGHT_M + FINGERTIP_M
        shut = self.opening_m < 0.008
        self.gripper(shut=True)
        over = shut and (error < 0.003 or self.tool[2] < touching + 0.003 and error < 0.006)
        if over:
            push_m = np.clip(PUSH_PER_STUD_M * n_studs, *PUSH_M)
            super().go(at, self.command[YAW], touching - push_m, 0.05, 0.02)
            return 'press'
        z = touching + 0.02 + np.clip(1.5 * (error - 0.01), 0, 0.05)
        if not shut and self.tool[2] < touching + 0.01:
            super().go(self.command[XY], self.command[YAW], touching + 0.03)
        else:
            self.go(at, 0.0, z)
        return 'reach'


def begun(down_m: float) -> float:
    """How much of the wider limit counts for a hand that has gone down by `down_m`, 0 to 1.

    Going down moves the arm up to a millimetre to the side. With the limit for starting all the
    way, or a sudden change to the wider one, hands rose again and began anew for ever.
    """
    return float(np.clip(down_m / 0.002, 0, 1))


def standing(truth: Truth, held: Iterable[str]) -> tuple[float, Zone]:
    """Height m of what stands on the plate or beside it, and the zone where a hand could hit it.

    The zone is the plate's box ((2,) low, (2,) high) m with room for a hand around. held: names
    that do not count.
    """
    plate = next(b for b in truth.bricks if b.fixed)
    s = truth.brick_scale
    half = np.array(plate.studs) / 2 * s * STUD_PITCH_M
    middle = np.array(plate.at_m)
    top = plate.height_m(s)
    for brick in truth.bricks:
        at = truth.brick_pose(brick.name)[0]
        inside = (np.abs(at[:2] - middle) < half + 0.05).all()
        if inside and brick.name not in held and not brick.fixed:
            top = max(top, at[2] + brick.height_m(s))
    return top + s * STUD_HEIGHT_M, (middle - half - HAND_ROOM_M, middle + half + HAND_ROOM_M)


def crosses(zone: Zone, start: np.ndarray, end: np.ndarray) -> bool:
    """True where the way from start to end (2,) m leads through the zone."""
    low, high = zone
    ways = start + np.linspace(0, 1, 9)[:, None] * (end - start)
    return bool(((ways > low) & (ways < high)).all(1).any())


def over_link(truth: Truth, goal: Goal) -> tuple[np.ndarray, float, int]:
    """Place (2,) m over the middle of the goal's studs, top of what is there, m, and how many."""
    s = truth.brick_scale
    link = truth.link(goal.lower, goal.upper, loose=True)
    cell, turns = (link.cell, link.turns) if link else (np.array(goal.cell), goal.turns)
    lower = truth.brick(goal.lower)
    upper = truth.brick(goal.upper)
    size = np.array(upper.studs[::-1] if turns % 2 else upper.studs)
    low = np.maximum(-np.array(lower.studs) / 2, cell - size / 2)
    high = np.minimum(np.array(lower.studs) / 2, cell + size / 2)
    aside_m = ((low + high) / 2 - cell) * s * STUD_PITCH_M  # along the lower brick's axes
    up, R = truth.brick_pose(goal.upper)
    at = (up + R @ rot_z(-turns * np.pi / 2) @ np.array([*aside_m, 0]))[:2]
    top = up[2]
    for brick in truth.bricks:
        there, Rb = truth.brick_pose(brick.name)
        local = Rb.T @ np.array([*(at - there[:2]), 0])
        half = np.array(brick.studs) / 2 * s * STUD_PITCH_M
        if (np.abs(local[:2]) < half + 0.002).all():
            top = max(top, there[2] + brick.height_m(s))
    return at, top, int(np.prod(np.round(high - low)))


def build(truth: Truth, goal: Goal, trusting: bool) -> list[Move]:
    """Moves for a goal of a plan: fetch the brick, put it where it goes, press.

    What has come loose is pushed down on. A hand that has a brick of the structure between its
    fingers lets go of it first.
    """
    other = other_hand(goal.hand)
    h = Fitter(truth, goal.hand, goal)
    joined = truth.joined()
    giver = goal.giver or (other if beyond(truth, goal.upper, goal.hand) else None)
    if giver and not joined and not h.held:
        moves = give(truth, goal, h)
        if moves:
            return moves
    beside = aside(truth, other, goal)
    # Studs that did not catch beside others that did are pushed down on, as are those come loose.
    missed = h.seated and not h.held and np.linalg.norm(h.target - h.brick) < MISSED_M * h.scale
    loose = not joined and (truth.joined(goal, loose=True) or missed)
    busy = joined or h.held and not loose
    fetched = () if loose else (*h.tower, h.hold.by)
    stuck = None if busy else holding(truth, goal.hand, fetched)
    if not joined and not within(h.zone, h.tool) and within(h.zone, beside.hand.tool):
        there = h.target if h.held else h.brick
        if within(h.zone, there):  # two palms do not fit over the plate
            h.new[:] = h.command
            return [beside, Move(h, 'wait', goal.upper, goal.where)]
    if joined or trusting and h.gone():
        verb = h.let_go()
    elif stuck:
        h = Fitter(truth, goal.hand, stuck)
        verb = h.let_go()
    elif loose:
        verb = h.push_down()
    elif not h.held:
        verb = h.pick()
    elif h.is_wrong_way_round() and not h.seated:
        verb = h.turn_round()
    else:
        verb = h.bring()
    return [beside, Move(h, verb, h.goal.upper, h.goal.where)]


def take_off(truth: Truth, goal: Goal) -> list[Move]:
    """Moves for a brick that has to come off the structure: grasp it, peel it off, lay it down."""
    links = truth.links
    linked = any(link.upper == goal.upper for link in links)
    comes_along = any(link.lower == goal.upper for link in links)
    assert goal.grip and goal.grip.via, f'{goal.upper}: there is no place to lay it down'
    spot = np.array(goal.grip.via)
    hand = goal.hand
    if not linked and beyond(truth, goal.upper, hand):
        hand = other_hand(hand)  # It has fallen down there, where this arm would be in the way.
        spot[1] *= -1
    h = Fitter(truth, hand, goal)
    beside = aside(truth, other_hand(hand), goal)
    if not h.held and not linked and truth.lies(goal.upper) and not comes_along:
        verb = h.let_go()
    elif not h.held:
        verb = h.pick()
    elif linked or np.linalg.norm((h.brick - h.target)[:2]) < 0.02 and h.brick[2] < h.top_m:
        verb = h.peel()
    else:
        ways = (np.pi / 2, -np.pi / 2)  # It may lie either way round.
        verb = h.lay_down(spot, min(ways, key=lambda yaw: abs(h.turn(yaw))))
    return [beside, Move(h, verb, goal.upper, 'table')]


def beyond(truth: Truth, brick: str, hand: str) -> bool:
    """True where a brick lies where only the other hand should fetch it."""
    at, R = truth.brick_pose(brick)
    far_m = OTHER_SIDE_M if R[2, 2] > UPRIGHT else FALLEN_OTHER_SIDE_M
    return side_of(hand) * at[1] < -far_m


def within(zone: Zone, at: np.ndarray) -> bool:
    """True where a place (2,) or (3,) m is in the zone of `standing`."""
    low, high = zone
    return bool((at[:2] > low).all() and (at[:2] < high).all())


def holding(truth: Truth, hand: str, tower: Iterable[str | None] = ()) -> Goal | None:
    """The goal whose brick, part of the structure, is between the hand's fingers; or None.

    tower: names of bricks that open fingers may be around, on their way to what is below.
    """
    tool = truth.tool_pose(hand)[0]
    placed = {link.upper for link in truth.links}
    for goal in truth.plan.chain:
        off = truth.brick_pose(goal.upper)[0] - tool
        near = np.linalg.norm(off) < NEAR_M
        if near and goal.upper in placed and not goal.apart:
            fitter = Fitter(truth, hand, goal)
            if fitter.held or fitter.around and goal.upper not in tower:
                return goal
    return None


def aside(truth: Truth, hand: str, goal: Goal) -> Move:
    """The move of the hand that has nothing to do: lets go, rises, keeps clear."""
    stuck = holding(truth, hand)
    if stuck:
        busy = Fitter(truth, hand, stuck)
        return Move(busy, busy.let_go(), stuck.upper)
    idler = Hand(truth, hand, goal.upper)
    top, zone = standing(truth, ())
    if within(zone, idler.tool) and idler.tool[2] < top + FINGERTIP_M + 0.02:
        grips = idler.opening_m > 0.01 and idler.tool[2] < top
        if grips and idler.command[OPENING] < idler.opening_m:  # something that stands askew
            idler.new[OPENING] = idler.opening_m + 0.01
        else:
            idler.go(idler.command[XY], idler.command[YAW], top + FINGERTIP_M + 0.04)
    else:
        idler.keep_clear()
    return Move(idler, 'rest', goal.upper)


def give(truth: Truth, goal: Goal, h: Hand) -> list[Move] | None:
    """The giver brings the brick to where the other hand reaches it; None once it is there."""
    giver = other_hand(goal.hand)
    g = Hand(truth, giver, goal.upper)
    side = side_of(giver)
    if side * g.brick[1] < SHARED_Y_M and not g.held:
        if side * g.tool[1] >= CLEAR_Y_M - 0.04:
            return None
        return [Move(g, g.leave(), goal.upper, None), aside(truth, goal.hand, goal)]
    plate = next(b for b in truth.bricks if b.fixed)
    near = plate.at_m[0] - plate.studs[0] / 2 * truth.brick_scale * STUD_PITCH_M
    spot = np.array([max(near - BEFORE_PLATE_M, NEAREST_M), 0.0])
    verb = g.lay_down(spot, np.pi / 2) if g.held else g.pick()
    return [Move(g, verb, goal.upper, 'middle'), aside(truth, goal.hand, goal)]


class Builder(Expert):
    """Ground-truth policy for plans."""

    def act(self, truth: Truth) -> tuple[np.ndarray, dict]:
        """Answer a state, as Expert.act does."""
        action = truth.tool_command.astype(float)
        verbs = dict.fromkeys(HANDS, 'rest')
        action[SPINE] -= np.clip(action[SPINE], -SPINE_RAD, SPINE_RAD)
        goal = truth.goal
        moves = take_off(truth, goal) if goal.apart else build(truth, goal, self.trusting)
        for move in moves:
            verbs[move.hand.hand] = move.verb
            action[ARM_TOOL[move.hand.hand]] = move.hand.new
        action = np.clip(action, TOOL_LOW, TOOL_HIGH).astype(np.float32)
        return action, dict(phase=tuple(verbs[hand] for hand in HANDS), subtask=narrate(moves))
