"""Who says how far an episode has got: phases, metrics, success, and which goal is at work.

    judge = Judge(truth)                 # at the reset
    judge.update(world.truth())          # after every control step
    judge.success, judge.phase, judge.metrics

It sees the true state alone, so that every policy is measured alike.
"""

import dataclasses

import numpy as np

from sim.bricks import STUD_PITCH_M
from sim.tasks import HANDS, MIN_JOIN_HEIGHT_M, Goal
from sim.truth import Truth

PHASES = ('start', 'reach', 'lift', 'carry', 'align', 'press', 'release', 'success')
HOLD_S = 1.0  # success: the goal holds for this long
STILL_S = 5.0  # success where nothing can be done: nothing is touched for this long
HANDS_OFF_M = 0.05  # Hands off are this far from where they would grip any brick.
MOVED_M = 0.005


# -- which goal of a plan is at work ---------------------------------------------------------------
def goal_at_work(truth: Truth, plan: Goal) -> Goal:
    """The goal of a plan (a Goal and what comes after it) that is at work in this state.

    It is the first whose studs are not in, or the one before it while that one's hand is still busy
    (see _busy). A press may break links below, which hold again once the hand lets go; so a broken
    link counts only once all studs are in, or, in a plan from a file, with no brick in a hand. Then
    the first broken link is at work, else the last goal of a hand that has not let go, else the
    last goal.
    """
    goals = plan.chain
    if len(goals) == 1:
        return plan
    if plan.apart:
        return next((goal for goal in goals if not truth.taken_off(goal)), goals[-1])
    for i, goal in enumerate(goals):
        if not truth.joined(goal, loose=True):
            if i > 0 and _busy(truth, goals[i - 1], goal):
                return goals[i - 1]
            return _to_mend(truth, goals[:i], goal) or goal
    broken = [goal for goal in goals if not truth.joined(goal)]
    if broken:
        return broken[0]
    last_of_hand = {goal.hand: goal for goal in goals}
    holding_on = [goal for goal in last_of_hand.values() if not _left(truth, goal)]
    return holding_on[0] if holding_on else goals[-1]


def _to_mend(truth: Truth, done: tuple[Goal, ...], following: Goal) -> Goal | None:
    """A goal of a plan from a file whose link is broken, before the next brick is fetched; or None.

    On what has come loose nothing can be pressed: it gives way, and takes along what is beside it.
    """
    in_hand = following.grip and following.grip.by
    fetched = not truth.lies(following.upper) or truth.held_by(following.upper) or in_hand
    broken = (goal for goal in done if goal.grip and not truth.joined(goal))
    return None if fetched else next(broken, None)


def _busy(truth: Truth, last: Goal, following: Goal) -> bool:
    """True while the hand of the last goal has not let go and left.

    Unless it carries or is nearer to the next brick, goes on with the same one, or has dropped the
    next one on top.
    """
    if following.grip and following.grip.by == last.upper:
        return False  # it goes on with what it holds
    at = truth.brick_pose(last.upper)[0]
    top = truth.brick_pose(following.upper)[0]
    tool = truth.tool_pose(last.hand)[0]
    to_next = np.linalg.norm((tool - top)[:2])
    to_last = np.linalg.norm((tool - at)[:2])
    fetches_next = last.hand in (following.giver, following.hand)
    nearer = fetches_next and to_next < to_last
    if last.grip and following.upper in truth.below(last.upper):  # it fetches from below
        nearer = truth.opening_m(last.hand) > last.grip.width_m + 0.004
    dropped = np.linalg.norm((top - at)[:2]) < 0.03 and top[2] > at[2] + 0.005
    return not (
        _left(truth, last)
        or nearer
        or dropped
        or following.upper == last.upper
        or truth.held_by(following.upper) == last.hand
    )


def _left(truth: Truth, goal: Goal) -> bool:
    """True where a goal's hand is above or beside what it has pressed on, or has shut its fingers.

    A hand of a plan shuts them above its brick, and presses with them on what came loose nearby.
    """
    shut = truth.opening_m(goal.hand) < STUD_PITCH_M * truth.brick_scale
    if goal.grip and shut:
        return True
    beside = truth.tool_pose(goal.hand)[0] - truth.brick_pose(goal.upper)[0]
    return bool(np.hypot(*beside[:2]) > 0.07) or truth.released(goal.hand, goal.upper)


# -- the judge -------------------------------------------------------------------------------------
def _no_metrics() -> dict:
    return dict(
        peak_force_n=0.0,
        drops=0,
        done=0,  # goals of the plan that hold
        press_error_mm=None,
        press_yaw_deg=None,
        penetration_mm=0.0,  # largest so far
        energy_j=0.0,  # largest so far
    )


@dataclasses.dataclass
class Judge:
    """What has to be remembered of an episode to judge it. A copy of it is part of a snapshot."""

    goal: Goal  # The goal that was at work after the last update.
    was_joined: bool = False  # the goal's connection, or with `apart` its absence, held then
    joined_in_air: bool = False  # the last time that it came about, the lower brick was in the air
    carried: bool = False  # a hand has the upper brick in the air
    held_steps: int = 0  # control steps in a row in which the goal has been reached
    phase: int = 0  # furthest so far, index into PHASES
    success: bool = False
    # Only where the instruction cannot be followed: where bricks lie at the start, and whether a
    # hand has come near one or something has changed.
    lay: dict | None = None
    touched: bool = False
    metrics: dict = dataclasses.field(default_factory=_no_metrics)

    def copy(self) -> 'Judge':
        """A judge that has seen the same and goes on by itself."""
        return dataclasses.replace(self, metrics=dict(self.metrics))

    def update(self, truth: Truth) -> None:
        """Take note of the state after a control step.

        A plan of several goals is not further than `align` before the last of them.
        """
        if truth.impossible is not None:
            self._update_still(truth)
            return
        goal = self.goal
        error, yaw_error = truth.goal_error(goal)
        off_m = np.hypot(*error[:2])
        joined = truth.joined(goal) != goal.apart
        if joined and not self.was_joined:
            self._note_press(truth, goal)
        self.was_joined = joined
        self._note_drop(truth, goal, dropped=off_m > 0.02 if goal.apart else not joined)
        self.goal = truth.goal
        if self.goal != goal:
            self.carried = False
            self.was_joined = truth.joined()
        reached = self.reached(truth)
        phase = _phase_in_hand(truth, goal, off_m)
        if joined and goal.then is None:
            phase = PHASES.index('release' if reached else 'press')
        self.held_steps = self.held_steps + 1 if reached else 0
        self.success = self.held_steps >= HOLD_S * truth.control_hz
        self.phase = max(self.phase, PHASES.index('success') if self.success else phase)
        self._measure(truth, goal)
        self.metrics.update(
            done=int(joined if goal.apart else sum(map(truth.joined, truth.plan.chain))),
            xy_error_mm=float(1e3 * off_m),
            z_error_mm=float(1e3 * error[2]),
            yaw_error_deg=float(np.degrees(yaw_error)),
        )

    def reached(self, truth: Truth) -> bool:
        """The goal's conditions at this instant; success needs them for HOLD_S."""
        goal = truth.goal
        if goal.apart and goal.grip:  # a structure that is taken apart
            return all(map(truth.taken_off, truth.plan.chain)) and truth.released(goal.hand)
        if goal.apart:
            assert goal.holder is not None, 'to take bricks apart, somebody holds the lower one'
            pair = ((goal.hand, goal.upper), (goal.holder, goal.lower))
            down = all(truth.lies(brick) and truth.released(hand, brick) for hand, brick in pair)
            off = not truth.joined() and down and (self.joined_in_air or not truth.lifts())
            return off and not _unasked_done(truth)
        if goal.then is not None:
            return False
        if not all(map(truth.joined, truth.plan.chain)) or not truth.released(goal.hand):
            return False
        if _unasked_done(truth):
            return False
        if goal.holder is None:
            return True
        let_go = truth.released(goal.holder, goal.lower)
        if goal.steady:  # the bridge stands by itself
            above = {link.upper for link in truth.links if not link.loose}
            feet = [name for name in truth.movable if name not in above]
            return let_go and all(map(truth.lies, feet))
        return self.joined_in_air and truth.lies(goal.lower) and let_go

    def _update_still(self, truth: Truth) -> None:
        """Nothing can be done: success is to keep the hands off everything."""
        assert self.lay is not None, 'where bricks lay is noted at the start of such an episode'
        near = [
            hand
            for hand in HANDS
            for name in truth.movable
            if np.linalg.norm(truth.grip_offset(hand, name)) < HANDS_OFF_M
        ]
        moved = [
            name
            for name in truth.movable
            if np.linalg.norm(truth.brick_pose(name)[0] - self.lay[name][0]) > MOVED_M
        ]
        self.touched |= bool(near or moved or truth.events)
        self.success = not self.touched and truth.steps >= STILL_S * truth.control_hz
        if self.success:
            self.phase = PHASES.index('success')
        self._measure(truth, self.goal)

    # -- parts of an update ------------------------------------------------------------------------
    def _note_press(self, truth: Truth, goal: Goal) -> None:
        """The goal's connection has just come about, or with `apart` it has just gone."""
        link = truth.link(goal.lower, goal.upper)
        if link is not None:
            self.metrics['press_error_mm'] = 1e3 * link.offset_m
            self.metrics['press_yaw_deg'] = float(np.degrees(link.yaw_error))
        self.joined_in_air = bool(truth.brick_pose(goal.lower)[0][2] > MIN_JOIN_HEIGHT_M)

    def _note_drop(self, truth: Truth, goal: Goal, dropped: bool) -> None:
        """Count a brick that is no longer in the hand that had it in the air.

        Args:
            truth: The state.
            goal: Whose upper brick it is.
            dropped: Whether it counts as dropped, not as put where it has to go.
        """
        near = truth.near(goal.hand, goal.upper)
        if near and _lifted(truth, goal.upper):
            self.carried = True
        elif self.carried and not near and dropped:
            self.carried = False
            self.metrics['drops'] += 1

    def _measure(self, truth: Truth, goal: Goal) -> None:
        """Metrics that do not depend on the phase."""
        # What has to break.
        undone = {(one.lower, one.upper) for one in truth.plan.chain if one.apart}
        breaks = [event[2:] for event in truth.events if event[1] == 'break']
        metrics = self.metrics
        metrics['steps'] = truth.steps
        metrics['peak_force_n'] = truth.peak_force_n
        metrics['penetration_mm'] = max(metrics['penetration_mm'], 1e3 * truth.penetration_m)
        metrics['energy_j'] = max(metrics['energy_j'], truth.energy_j)
        metrics['broken'] = sum(pair not in undone for pair in breaks)


def _unasked_done(truth: Truth) -> bool:
    """True where a brick that nobody asked for is where other words would have had it.

    Else who does all that could be asked for, one after the other, would not need the words.
    """
    asked = {goal.upper for goal in truth.plan.chain}
    for plan, _ in truth.askable:
        single = plan.then is None and plan.upper not in asked
        if single and truth.joined(plan, loose=plan.apart) != plan.apart:
            return True
    return False


def _lifted(truth: Truth, brick: str) -> bool:
    return bool(truth.brick_pose(brick)[0][2] > 0.012 * truth.brick_scale)


def _phase_in_hand(truth: Truth, goal: Goal, off_m: float) -> int:
    """Phase up to `align`, of all bricks that the goal wants lifted.

    Args:
        truth: The state.
        goal: The goal that is judged.
        off_m: How far its upper brick is from its place sideways.
    """
    bricks = [(goal.hand, goal.upper)]
    if goal.holder is not None and truth.lifts(goal):
        bricks.append((goal.holder, goal.lower))
    if all(_lifted(truth, brick) for _, brick in bricks):
        if off_m < 0.0015 * truth.brick_scale:
            return PHASES.index('align')
        return PHASES.index('carry' if off_m < 0.02 else 'lift')
    near = all(truth.near(hand, brick) for hand, brick in bricks)
    return PHASES.index('reach' if near else 'start')
