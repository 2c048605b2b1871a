"""Disturbances while demonstrating: the command executed is kicked, the expert's clean answer is
the label.

kicks = Kicks(seed, probability=.1) executed, kicked = kicks.apply(world, *Expert().act(world))
"""

import numpy as np

from sim.clutch import STUD_HEIGHT_M
from sim.expert import REACH_M, Hand
from sim.tasks import HANDS
from sim.world import TOOL, TOOL_HIGH, TOOL_LOW


class Kicks:
    """Sparse displacements of the executed command: the recording shows how to come back from where
    a learner will end up: off to the side, too low, off-centre in the grasp, brick let go before it
    snapped. `probability` per control step and hand; scales 6, 20 and 50 mm.
    """

    def __init__(self, seed, probability=0.1):
        self.rng = np.random.default_rng([7919, seed])
        self.probability = probability
        # what is left of a burst: (offset (6,) to add to the command in force, opening or None)
        self.queue = {h: [] for h in HANDS}
        # at most one off-centre grasp and one early release per hand and episode
        self.grasped = set()
        self.dropped = set()
        # In most episodes an idle hand sets out for a brick nobody asked for. Without these feints
        # the hand that moves, or is near its brick, always is the right one: a learner reads that
        # instead of the instruction (it then chose the hand by chance on the first step, and stayed
        # with it).
        self.feint_steps = (
            self.rng.integers(3, 13) if self.rng.random() < 0.6 and probability > 0 else 0
        )
        # Small errors all along (DART, Laskey et al. 2017). Without them a hand low over the place
        # is always just where the way the brick lies in it requires: a learner reads the one off
        # the other, does not look, and in the end centres the hand instead of the brick.
        self.jitter_m = self.rng.uniform(0, 0.0007) * (probability > 0)
        self.drift = np.zeros((2, 3))

    def apply(self, world, action, info):
        """Returns the action to execute (15,) float32 and whether it was replaced: then what comes
        after it answers another situation. Jitter alone does not count.
        """
        action = action.copy()
        kicked = False
        self.drift = 0.5 * self.drift + 0.87 * self.rng.normal(size=(2, 3))  # of unit spread
        # two hands that meet in the air both miss; a brick that is handed over is fetched and
        # carried twice
        smaller = world.goal.holder or world.goal.giver
        jitter_m = self.jitter_m * world.brick_scale * (0.6 if smaller else 1)
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
                kicked = True
                sl = TOOL[hand]
                offset, open_m = self.queue[hand].pop(0)
                action[sl] = world.tool_command[sl]
                action[sl][:6] += offset
                if open_m is not None:
                    action[sl][6] = open_m
        return np.clip(action, TOOL_LOW, TOOL_HIGH).astype(np.float32), kicked

    def _unasked(self, world, hand):
        """The nearest loose brick that is not part of the goal (for one on the other side the arms
        would entangle); the goal's own where there is no other.
        """
        asked = (world.goal.upper, world.goal.lower)
        names = [b.name for b in world.bricks if not b.fixed and b.name not in asked]
        tool = world.tool_pose(hand)[0]
        return min(
            names or [world.goal.upper], key=lambda n: np.linalg.norm(world.brick_pose(n)[0] - tool)
        )

    def _draw(self, world, hand, verb):
        rng = self.rng
        s = world.brick_scale
        command = world.tool_command[TOOL[hand]]
        is_open = command[6] > 0.6 * world.max_opening_m
        # an idle hand is pushed about as well: else which hand moves would tell a learner which
        # hand is meant
        chance = dict(reach=1, carry=1, align=1, wait=0.6, rest=0.5).get(verb, 0) * self.probability
        if world.goal.holder and verb == 'carry' and hand == world.goal.holder:
            chance *= 0.6
        if verb == 'reach' and world.steps == 0:
            chance = 0.5
        if verb == 'grasp' and is_open and hand not in self.grasped:
            chance = 0.3
        if verb == 'press' and not world.goal.holder and hand not in self.dropped:
            chance = 0.06
        if rng.random() >= chance:
            return
        held = verb in ('carry', 'align', 'wait')
        if verb == 'press':
            # let go before the brick has snapped, a little to the side, and rise:
            # it has to be picked up again
            self.dropped.add(hand)
            side = rng.normal(0, 0.0015 * s, 2)
            rise = rng.uniform(0.01, 0.03)
            first = np.array([*side, 0, 0, 0, rng.normal(0, 0.03)])
            up = np.array([0, 0, rise, 0, 0, 0])
            n = rng.integers(2, 4)
            open_m = world.max_opening_m
            self.queue[hand] = [(first, None), (np.zeros(6), open_m)] + [(up, open_m)] * n
            return
        if verb == 'grasp':  # off-centre along the brick
            self.grasped.add(hand)
            x = rng.uniform(-0.0055, 0.0055) * s
            yaw = command[5]
            self.queue[hand] = [(np.array([np.cos(yaw) * x, np.sin(yaw) * x, 0, 0, 0, 0]), None)]
            return
        u = rng.random()
        size, turn, n = (
            (0.006, 0.06, 2) if u < 0.4 else (0.02, 0.15, 2) if u < 0.75 else (0.05, 0.3, 3)
        )
        perched = verb == 'reach' and self._perched(world, hand)
        shrink = 0.2 if perched else 0.5 if world.goal.holder and held else 1.0
        offset = np.array([*rng.normal(0, size, 3), 0, 0, rng.normal(0, turn)]) * shrink
        low = world.grasp_height_m
        if held:  # never ram a held brick into what lies below it
            low += self._floor(world, hand) + STUD_HEIGHT_M * s + 0.004
        z = np.clip(command[2] + offset[2], low, 0.26)
        if verb == 'reach' and not perched and rng.random() < 0.3:
            z = max(low, rng.uniform(low, low + 0.05))
        offset[2] = z - command[2]
        # nor the arm to its end, where it flips over and comes to lie behind the other one
        offset[0] = min(offset[0], max(0, REACH_M - command[0]))
        self.queue[hand] = [(offset / n, None)] * n

    def _perched(self, world, hand):
        """True where the brick that `hand` reaches for lies on a loose one or is in the air: struck
        hard it comes to lie upside down, and no upright hand can mend that.
        """
        g = world.goal
        loose = g.lower in [b.name for b in world.bricks if not b.fixed]
        brick = g.lower if hand == g.holder else g.upper
        return (g.apart or loose and (g.steady or not g.holder)) and not world.lies(brick)

    def _floor(self, world, hand):
        """Height of what a brick held by `hand`, and what hangs on it, could hit, m."""
        if hand == world.goal.holder:
            return 0.02
        target = world.goal_pose()[0]
        xy = world.tool_command[TOOL[hand]][:2]
        # between towers, one hangs on the bridge: as high as the other, on which the bridge will
        # sit
        if not world.goal.holder or world.goal.steady or np.hypot(*(xy - target[:2])) < 0.1:
            return max(0.0, float(target[2]))
        return 0.02
