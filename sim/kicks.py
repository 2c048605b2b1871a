"""Disturbances while demonstrating: what is executed is kicked, the label stays clean.

kicks = Kicks(seed, probability=.1)
action, info = Expert().act(truth)
executed, kicked = kicks.apply(truth, action, info)
"""

import numpy as np

from episode import ARM_TOOL
from sim.bricks import STUD_HEIGHT_M
from sim.builder import Zone, standing, within
from sim.control import OPENING, POSE, TOOL_HIGH, TOOL_LOW, XYZ, YAW
from sim.hand import Hand
from sim.tasks import FINGERTIP_M, HANDS
from sim.truth import Truth

REACH_M = 0.46  # No place to go to has a larger x.
HIGHEST_M = 0.26  # no kick takes a tool higher
# Per control step and hand, chances in units of `probability`. An idle hand is pushed about as
# well: else which hand moves would tell a learner which hand is meant.
CHANCE = dict(reach=1, carry=1, align=1, wait=0.6, rest=0.5)
# (share of kicks that are at most of this size; spread m; spread of the turn rad; control steps)
SIZES = ((0.4, 0.006, 0.06, 2), (0.75, 0.02, 0.15, 2), (1.0, 0.05, 0.3, 3))
MARGIN_M = 0.004  # A kick leaves so much between a hand and what stands below it.
DEEP_SHARE = 0.1  # Share of a kick that a hand gets which is down between the bricks of a plan.
HELD = ('carry', 'align', 'wait')  # verbs of a hand with a brick in it
NOWHERE = np.zeros(6)

Push = tuple[np.ndarray, float | None]  # (6,) to add to the pose in force, opening or None


class Kicks:
    """Sparse displacements of the executed command, small errors all along, and feints.

    The recording shows how to come back from where a learner will end up: off to the side, too low,
    off-centre in the grasp, brick let go before it snapped.
    """

    def __init__(self, seed: int, probability: float = 0.1):
        """Draw what holds for a whole episode.

        Args:
            seed: Of the episode.
            probability: That a kick starts, per control step and hand. Kicks have scales of 6, 20
                and 50 mm. 0: nothing is changed at all.
        """
        self.rng = np.random.default_rng([7919, seed])
        self.probability = probability
        # Pushes that are left of a kick.
        self.queue: dict[str, list[Push]] = {hand: [] for hand in HANDS}
        # At most one off-centre grasp and one early release per hand and episode.
        self.grasped: set[str] = set()
        self.dropped: set[str] = set()
        # In most episodes an idle hand sets out for a brick nobody asked for. Without these feints
        # the hand that moves, or is near its brick, always is the right one: a learner reads that
        # instead of the instruction (it then chose the hand by chance on the first step, and stayed
        # with it).
        feints = self.rng.random() < 0.6 and probability > 0
        self.feint_steps = self.rng.integers(3, 13) if feints else 0
        # Small errors all along (DART, Laskey et al. 2017). Without them a hand low over the place
        # is always just where the way the brick lies in it requires: a learner reads the one off
        # the other, does not look, and in the end centres the hand instead of the brick.
        self.jitter_m = self.rng.uniform(0, 0.0007) * (probability > 0)
        self.drift = np.zeros((len(HANDS), 3))

    def apply(self, truth: Truth, action: np.ndarray, info: dict) -> tuple[np.ndarray, bool]:
        """Disturb an action.

        Args:
            truth: The state that the expert answered.
            action: Its tool action (15,).
            info: What it says of it, see Expert.act.

        Returns:
            The action to execute (15,) float32, and whether it was replaced: then what comes after
            it answers another situation. Jitter alone does not count.
        """
        action = action.copy()
        if truth.impossible is not None:  # Nothing is kicked where nothing may be touched.
            return action, False
        kicked = False
        shape = self.drift.shape
        self.drift = 0.5 * self.drift + 0.87 * self.rng.normal(size=shape)  # Its spread stays 1.
        # Two hands that meet in the air both miss; a brick that is handed over is fetched and
        # carried twice.
        twice = truth.goal.holder or truth.goal.giver
        jitter_m = self.jitter_m * truth.brick_scale * (0.6 if twice else 1)
        for hand, verb, drift in zip(HANDS, info['phase'], self.drift):
            arm = action[ARM_TOOL[hand]]
            if verb != 'rest':
                arm[XYZ] += jitter_m * drift
            if verb == 'rest' and truth.steps < self.feint_steps:
                feint = Hand(truth, hand, self._unasked(truth, hand))
                feint.pick()
                arm[POSE] = feint.new[POSE]
                kicked = True
                continue
            if not self.queue[hand] and self.probability > 0:
                self.queue[hand] = self._draw(truth, hand, verb)
            if self.queue[hand]:
                kicked = True
                offset, open_m = self.queue[hand].pop(0)
                arm[:] = truth.tool_command[ARM_TOOL[hand]]
                arm[POSE] += offset
                if open_m is not None:
                    arm[OPENING] = open_m
        return np.clip(action, TOOL_LOW, TOOL_HIGH).astype(np.float32), kicked

    def _unasked(self, truth: Truth, hand: str) -> str:
        """The nearest movable brick that is not part of the goal; the goal's own if there is none.

        With a brick on the other side the arms would entangle.
        """
        goal = truth.goal
        others = [name for name in truth.movable if name not in (goal.upper, goal.lower)]
        names = [name for name in others if not truth.brick(name).plate]  # no hand grasps a plate
        tool = truth.tool_pose(hand)[0]
        distance_m = {name: np.linalg.norm(truth.brick_pose(name)[0] - tool) for name in names}
        return min(distance_m, key=distance_m.__getitem__) if names else goal.upper

    # -- drawing kicks -----------------------------------------------------------------------------
    def _draw(self, truth: Truth, hand: str, verb: str) -> list[Push]:
        """The pushes of a kick that starts now, one per control step; mostly none."""
        if self.rng.random() >= self._chance(truth, hand, verb):
            return []
        if verb == 'press':
            self.dropped.add(hand)
            return self._early_release(truth)
        if verb == 'grasp':
            self.grasped.add(hand)
            return self._off_centre(truth, hand)
        return self._displacement(truth, hand, verb)

    def _chance(self, truth: Truth, hand: str, verb: str) -> float:
        goal = truth.goal
        command = truth.tool_command[ARM_TOOL[hand]]
        is_open = command[OPENING] > 0.6 * truth.max_opening_m
        chance = CHANCE.get(verb, 0) * self.probability
        if goal.holder and verb == 'carry' and hand == goal.holder:
            chance *= 0.6
        if verb == 'reach' and truth.steps == 0:
            chance = 0.5
        if verb == 'grasp' and is_open and hand not in self.grasped:
            chance = 0.3
        if verb == 'press' and not goal.holder and hand not in self.dropped:
            chance = 0.06
        return chance

    def _early_release(self, truth: Truth) -> list[Push]:
        """Let go before the brick has snapped, a little to the side, and rise.

        It has to be picked up again.
        """
        rng = self.rng
        side = rng.normal(0, 0.0015 * truth.brick_scale, 2)
        rise = rng.uniform(0.01, 0.03)
        first = np.array([*side, 0, 0, 0, rng.normal(0, 0.03)])
        up = np.array([0, 0, rise, 0, 0, 0])
        n = rng.integers(2, 4)
        open_m = truth.goal.grip.open_m if truth.goal.grip else truth.max_opening_m
        pushes: list[Push] = [(first, None), (NOWHERE, open_m)]
        return pushes + [(up, open_m)] * n

    def _off_centre(self, truth: Truth, hand: str) -> list[Push]:
        """Grasp off-centre along the brick."""
        along_m = self.rng.uniform(-0.0055, 0.0055) * truth.brick_scale
        yaw = truth.tool_command[ARM_TOOL[hand]][YAW]
        x = np.cos(yaw) * along_m
        y = np.sin(yaw) * along_m
        return [(np.array([x, y, 0, 0, 0, 0]), None)]

    def _displacement(self, truth: Truth, hand: str, verb: str) -> list[Push]:
        """Push the hand aside, over two or three control steps."""
        rng = self.rng
        goal = truth.goal
        held = verb in HELD
        u = rng.random()
        size, turn, n = next(kick for share, *kick in SIZES if u < share)
        perched = verb == 'reach' and self._perched(truth, hand)
        if perched:
            shrink = 0.2
        elif goal.holder and held:
            shrink = 0.5
        else:
            shrink = 1.0
        x, _, z = at = truth.tool_command[ARM_TOOL[hand]][XYZ]
        aside = rng.normal(0, size, 3)
        offset = np.array([*aside, 0, 0, rng.normal(0, turn)]) * shrink
        low = self._lowest(truth, hand, held, at)
        if self._between(truth, held, at):
            # Down there a shove would tear what stands off the plate.
            offset[:2] *= DEEP_SHARE
            low = max(low, z)
        to_z = np.clip(z + offset[2], low, HIGHEST_M)
        if verb == 'reach' and not perched and rng.random() < 0.3:
            to_z = max(low, rng.uniform(low, low + 0.05))
        offset[2] = to_z - z
        # Nor is the arm pushed to its end, where it flips over and comes to lie behind the other.
        offset[0] = min(offset[0], max(0, REACH_M - x))
        push: Push = (offset / n, None)
        return [push] * int(n)

    def _perched(self, truth: Truth, hand: str) -> bool:
        """True where the brick that `hand` reaches for lies on a movable one or is in the air.

        Struck hard it comes to lie upside down, and no upright hand can mend that.
        """
        goal = truth.goal
        on_movable = goal.lower in truth.movable and (goal.steady or not goal.holder)
        brick = goal.lower if hand == goal.holder else goal.upper
        return (goal.apart or on_movable) and not truth.lies(brick)

    def _lowest(self, truth: Truth, hand: str, held: bool, at: np.ndarray) -> float:
        """Height m down to which a kick may take a tool whose command is at (3,) m.

        A held brick is never rammed into what lies below it, and nothing into what stands of a
        plan.
        """
        low = truth.grasp_height_m
        if held:
            studs = STUD_HEIGHT_M * truth.brick_scale
            low += self._floor(truth, hand) + studs + MARGIN_M
        if truth.goal.grip:
            over, zone = self._over_plan(truth, held)
            if within(zone, at) and at[2] > over:
                low = max(low, over)
        return low

    def _between(self, truth: Truth, held: bool, at: np.ndarray) -> bool:
        """True where a tool whose command is at (3,) m is down between the bricks of a plan."""
        if not truth.goal.grip:
            return False
        over, zone = self._over_plan(truth, held)
        return within(zone, at) and at[2] <= over

    def _over_plan(self, truth: Truth, held: bool) -> tuple[float, Zone]:
        """Height m of a tool that is clear of what stands of a plan, and where that counts."""
        top, zone = standing(truth, (truth.goal.upper,))
        reaches_down_m = truth.grasp_height_m if held else FINGERTIP_M
        return top + MARGIN_M + reaches_down_m, zone

    def _floor(self, truth: Truth, hand: str) -> float:
        """Height of what a brick held by `hand`, and what hangs on it, could hit, m."""
        goal = truth.goal
        in_the_air = 0.02
        if hand == goal.holder:
            return in_the_air
        target = truth.goal_pose()[0]
        to_target = truth.tool_command[ARM_TOOL[hand]][:2] - target[:2]
        # Between towers, one hangs on the bridge: as high as the other, on which the bridge will
        # sit.
        if not goal.holder or goal.steady or np.hypot(*to_target) < 0.1:
            return max(0.0, float(target[2]))
        return in_the_air
