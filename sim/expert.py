"""The scripted expert: reads ground truth, returns the next tool action.

    action, info = Expert().act(world.truth())

The action is a function of the snapshot alone: which phase a hand is in is read off the state (is
the brick between my fingers? how far is it from its place? does the clutch hold it?), never off a
clock or a counter. So whatever knocks the arm about, the next answer is right for what is seen now,
and a learner sees everything the answer depends on. sim/hand.py has the verbs that the plans below
put together. Units and frames are those of that file.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from episode import ARM_TOOL
from instructions import ASK_BACK
from sim.bricks import BRICK_HEIGHT_M, STUD_HEIGHT_M, STUD_PITCH_M
from sim.control import SPINE, TOOL_HIGH, TOOL_LOW
from sim.hand import CLEAR_Y_M, Hand, put_down, side_of
from sim.tasks import HANDS, Goal
from sim.truth import Truth

MEETING_POINT_M = np.array([0.34, 0, 0.13])  # The holder keeps the lower brick's middle here.
HANDOVER_POINT_M = np.array([0.33, 0])  # Both arms reach this place on the table.
AHEAD_RAD = np.pi / 2  # yaw of a brick whose long side points away from the robot
TURNED_RAD = 0.5  # A brick pressed on at its near end is held turned by this.
SPINE_RAD = 0.05  # per control step, on the way back to looking ahead
CLEAR_ABOVE_Z_M = 0.26  # A hand rises so high from what another one holds.
HAND_WIDTH_M = 0.09
HOLD_ROW_STUDS = 2  # The holder presses a plate down so far from its middle.
SHARED_Y_M = 0.07  # a hand leaves bricks to the other one from here on


class Move(NamedTuple):
    """What one hand does."""

    hand: Hand
    verb: str
    brick: str  # the one that it is about
    where: str | None = None  # words for where that goes


class Expert:
    """Ground-truth policy for every task."""

    def __init__(self, trusting: bool = False):
        """Make an expert.

        Args:
            trusting: Whether a hand that has gone counts as having pressed its brick on.
        """
        self.trusting = trusting

    def act(self, truth: Truth) -> tuple[np.ndarray, dict]:
        """Answer a state.

        Returns:
            The next tool action (15,) float32, and info: `phase`, the verbs of the left and the
            right hand, and `subtask`, what they do in one line.
        """
        action = truth.tool_command.astype(float)
        # All of this assumes a spine that looks ahead.
        action[SPINE] -= np.clip(action[SPINE], -SPINE_RAD, SPINE_RAD)
        goal = truth.goal
        if truth.impossible is not None:
            return truth.tool_command.copy(), dict(phase=('rest', 'rest'), subtask=ASK_BACK)
        if goal.giver:
            moves = hand_over(truth, goal, goal.giver, self.trusting)
        elif goal.apart:
            moves = take_apart(truth, goal)
        else:
            moves = assemble(truth, goal, self.trusting)
        verbs = dict.fromkeys(HANDS, 'rest')
        for move in moves:
            verbs[move.hand.hand] = move.verb
            action[ARM_TOOL[move.hand.hand]] = move.hand.new
        action = np.clip(action, TOOL_LOW, TOOL_HIGH).astype(np.float32)
        return action, dict(phase=tuple(verbs[hand] for hand in HANDS), subtask=narrate(moves))


# -- plans: what each hand does about a goal in the present state ----------------------------------
def assemble(truth: Truth, goal: Goal, trusting: bool) -> list[Move]:
    """Fetch the upper brick and press it on.

    Where there is a holder, it brings the lower brick first. One that has lifted it lays both down
    once the other hand has left.
    """
    hand = Hand(truth, goal.hand, goal.upper)
    pressed = truth.joined() or (trusting and hand.gone())
    if goal.holder:
        other = _hold(truth, goal, goal.holder, pressed)
        ready = other.verb == 'hold'
    else:
        other = idle(truth, other_hand(goal.hand), goal.upper)
        ready = True
    if pressed:
        verb = hand.let_go(CLEAR_ABOVE_Z_M) if goal.holder else hand.let_go()
    elif not hand.held:
        verb = hand.pick()
    elif ready:
        verb = hand.bring()
    else:
        verb = hand.wait()
    return [other, Move(hand, verb, goal.upper, goal.where)]


def _hold(truth: Truth, goal: Goal, hand: str, pressed: bool) -> Move:
    """What the holder does: lift the lower brick, or steady its tower, and in the end lay it down.

    Args:
        truth: The state.
        goal: A goal with a holder.
        hand: The holder.
        pressed: Whether the upper brick counts as pressed on.
    """
    # A tower is held by its foot and all above: gripped higher up it comes apart.
    foot = goal.steady * np.array([0, 0, truth.brick_scale * BRICK_HEIGHT_M])
    holder = Hand(truth, hand, goal.lower, far_end(truth, goal) - foot)
    down = pressed and not goal.steady and truth.released(goal.hand)
    if goal.steady and truth.joined():
        verb = holder.let_go()
    elif down and truth.lies(goal.lower) and not holder.held:
        verb = holder.leave()
    elif not holder.held:
        verb = holder.pick()
    elif down:
        verb = holder.lay_down(*put_down(hand))
    elif goal.steady:
        verb = holder.steady()
    else:
        verb = holder.hold_at(MEETING_POINT_M, _meeting_yaw(goal))
    return Move(holder, verb, goal.lower, 'table' if down else None)


def _meeting_yaw(goal: Goal) -> float:
    """Yaw, rad, in which the lower brick is held in the air.

    The holder's wrist leans to the near side. Where the place is on that end, it is turned towards
    the hand that presses: straight ahead, LEGO's hands met (9 of 20 failed).
    """
    near = goal.cell[1] > 0
    return AHEAD_RAD - near * side_of(goal.hand) * TURNED_RAD


def hand_over(truth: Truth, goal: Goal, from_hand: str, trusting: bool) -> list[Move]:
    """The giver lays the brick down where the other reaches it, and gets out of the way.

    Whose turn it is follows from who holds the brick, else from where it lies.
    """
    giver = Hand(truth, from_hand, goal.upper)
    hand = Hand(truth, goal.hand, goal.upper)
    side = side_of(from_hand)
    if truth.joined() or (trusting and hand.gone()):
        giving = idle(truth, from_hand, goal.upper)
        return [giving, Move(hand, hand.let_go(), goal.upper, goal.where)]
    within_reach = side * giver.brick[1] < SHARED_Y_M
    if not hand.held and (giver.held or not within_reach):
        verb = giver.lay_down(HANDOVER_POINT_M, AHEAD_RAD) if giver.held else giver.pick()
        giving = Move(giver, verb, goal.upper, 'middle')
        return [giving, idle(truth, goal.hand, goal.upper)]
    giving = Move(giver, giver.leave(), goal.upper)
    if hand.held:
        return [giving, Move(hand, hand.bring(), goal.upper, goal.where)]
    if side * giver.tool[1] < CLEAR_Y_M - 0.04:
        return [giving, idle(truth, goal.hand, goal.upper)]
    return [giving, Move(hand, hand.pick(), goal.upper)]


def take_apart(truth: Truth, goal: Goal) -> list[Move]:
    """Lift the stack by its lower brick, grasp the upper one in the air, pull, lay both down.

    A plate is held down where it lies.
    """
    assert goal.holder is not None, 'to take bricks apart, somebody holds the lower one'
    grip = far_end(truth, goal) if truth.lifts() else _free_spot(truth, goal)
    holder = Hand(truth, goal.holder, goal.lower, grip)
    hand = Hand(truth, goal.hand, goal.upper)
    joined = truth.joined()
    gap = hand.brick - truth.seat(goal)[0]
    # Only with the upper brick off the lower one and beside it may either go down. (A plate may
    # have been pushed to where a hand lays bricks down on the other side of it.)
    off_m = abs(gap[1]) if truth.lifts() else np.hypot(gap[0], gap[1])
    there = hand.misplaced(*put_down(goal.hand)) < 0.02
    beside = off_m > HAND_WIDTH_M or truth.lies(goal.upper) or (there and not truth.lifts())
    parted = not joined and beside
    holding = _hold_apart(truth, goal, holder, parted)
    ready = holding.verb == 'hold'
    if hand.held and joined:
        verb = hand.pull() if ready else hand.stay()
    elif hand.held and parted:
        verb = hand.lay_down(*put_down(goal.hand))
    elif hand.held:
        off = gap[2] > (STUD_HEIGHT_M + 0.003) * truth.brick_scale
        verb = hand.aside(gap[2]) if off else hand.pull()
    elif parted and truth.lies(goal.upper):
        verb = hand.leave()
    elif ready or not joined:
        verb = hand.pick()
    else:
        return [holding, idle(truth, goal.hand, goal.upper)]
    return [holding, Move(hand, verb, goal.upper, 'table')]


def _hold_apart(truth: Truth, goal: Goal, holder: Hand, parted: bool) -> Move:
    """What the holder does while the other hand pulls: lift the lower brick or hold it down."""
    if not truth.lifts():
        verb = holder.leave() if parted else holder.hold_down()
    elif holder.held and parted:
        verb = holder.lay_down(*put_down(holder.hand))
    elif holder.held:
        verb = holder.hold_at(MEETING_POINT_M, AHEAD_RAD)
    elif parted and truth.lies(goal.lower):
        verb = holder.leave()
    else:
        verb = holder.pick()
    return Move(holder, verb, goal.lower, 'table' if parted else None)


# -- parts of plans --------------------------------------------------------------------------------
def far_end(truth: Truth, goal: Goal) -> np.ndarray:
    """Where the holder grips: the end of the lower brick away from the upper one.

    Returns:
        (3,) m in the lower brick's frame.
    """
    half = (np.array(truth.brick(goal.lower).studs) - 2) / 2
    studs = -np.clip(goal.cell, -half, half)
    return np.array([*studs * truth.brick_scale * STUD_PITCH_M, 0])


def _free_spot(truth: Truth, goal: Goal) -> np.ndarray:
    """Where the holder presses a plate down: at its far end, a palm's length from the other hand.

    Palms are 56 by 90 mm, and plates lie turned: in the same row as the brick, or in the middle,
    they may meet.

    Returns:
        (3,) m in the plate's frame.
    """
    spot = far_end(truth, goal)
    across = int(np.argmin(np.abs(goal.cell)))  # the axis of the row, the other one is to the edge
    row = -np.sign(goal.cell[across]) * HOLD_ROW_STUDS
    spot[across] = row * truth.brick_scale * STUD_PITCH_M
    return spot


def other_hand(hand: str) -> str:
    """'left' of 'right', and the other way round."""
    return HANDS[1 - HANDS.index(hand)]


def idle(truth: Truth, hand: str, brick: str) -> Move:
    """The move of a hand that keeps out of the way."""
    idler = Hand(truth, hand, brick)
    return Move(idler, idler.keep_clear(), brick)


def narrate(moves: Sequence[Move]) -> str:
    """One line on what the hands do: 'left: hold red; right: press blue to far left'."""
    lines = {}
    for move in moves:
        if move.verb == 'rest':
            continue
        goes = move.where and move.verb in ('carry', 'align', 'press', 'lower')
        to = f' to {move.where}' if goes else ''
        lines[move.hand.hand] = f'{move.hand.hand}: {move.verb} {move.brick}{to}'
    return '; '.join(lines[hand] for hand in HANDS if hand in lines)
