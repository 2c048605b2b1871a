"""Keys move the hands: a person drives, in MuJoCo's viewer.

    pressed = queue.SimpleQueue()
    with film.viewer(world.model, world.data, keys=pressed.put) as draw:
        start = teleop.keyboard(pressed, draw)        # who drives, see sim/policies.py

    arrows            the chosen hand forward, back, left, right (torso frame)
    page up, down     up, down
    home, end         turn it left, right about the vertical
    enter             close or open it
    insert            choose the other hand
    delete            change how far a press of a key goes

MuJoCo's viewer tells presses of keys, neither repeats nor releases, so each press goes so far. It
has uses of its own for letters and digits, which is why these keys are others. Time stands still
while nothing is asked for, so that recordings hold no waiting.
"""

import queue
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from episode import ARM_TOOL
from sim.control import CLOSED_M, OPENING, TOOL_HIGH, TOOL_LOW, XYZ, YAW
from sim.policies import Act, Choice, Start
from sim.tasks import HANDS

# Codes of GLFW: https://www.glfw.org/docs/latest/group__keys.html
ENTER, INSERT, DELETE = 257, 260, 261
RIGHT, LEFT, DOWN, UP, PAGE_UP, PAGE_DOWN, HOME, END = range(262, 270)
MOVES = {  # slot of an arm, sign
    UP: (0, 1),
    DOWN: (0, -1),
    LEFT: (1, 1),
    RIGHT: (1, -1),
    PAGE_UP: (2, 1),
    PAGE_DOWN: (2, -1),
    HOME: (YAW, 1),
    END: (YAW, -1),
}
KEYS = (
    'arrows move a hand ahead, back, left, right, page up and down move it up and down, home and '
    'end turn it, enter opens or closes it, insert takes the other hand, delete changes the stride'
)
STRIDES_M = (0.01, 0.002, 0.05)
RAD_PER_M = 10.0  # a press that moves 10 mm turns 0.1 rad
SPEED_MPS = 0.15
SPEED_RADPS = 1.5
REST_S = 1.4  # time goes on so long after the last motion: success is a goal that held for 1 s
WAITING_S = 0.02  # between two looks at the keys while time stands still


class Keyboard:
    """Where the keys have sent both hands."""

    def __init__(self, tool_command: np.ndarray, open_m: float):
        """Start from a command.

        Args:
            tool_command: (15,), in force.
            open_m: Commanded opening of an open hand.
        """
        self.target = tool_command.astype(float)
        self.open_m = open_m
        self.hand = HANDS[-1]
        self.stride = 0

    def press(self, key: int) -> bool:
        """Take a press of a key; False where it is none of ours."""
        arm = self.target[ARM_TOOL[self.hand]]  # a view
        if key in MOVES:
            slot, sign = MOVES[key]
            far = STRIDES_M[self.stride]
            arm[slot] += sign * far * (RAD_PER_M if slot == YAW else 1)
        elif key == ENTER:
            is_open = arm[OPENING] > self.open_m / 2
            arm[OPENING] = CLOSED_M if is_open else self.open_m
        elif key == INSERT:
            self.hand = HANDS[1 - HANDS.index(self.hand)]
        elif key == DELETE:
            self.stride = (self.stride + 1) % len(STRIDES_M)
        else:
            return False
        self.target = np.clip(self.target, TOOL_LOW, TOOL_HIGH)
        return True

    def towards(self, tool_command: np.ndarray, control_hz: int) -> np.ndarray:
        """The next command (15,) on the way from the one in force to the target."""
        command = tool_command.astype(float)
        for hand in HANDS:
            arm = command[ARM_TOOL[hand]]
            goal = self.target[ARM_TOOL[hand]]
            way = goal[XYZ] - arm[XYZ]
            far = float(np.linalg.norm(way))
            reach = SPEED_MPS / control_hz
            arm[XYZ] += way if far <= reach else way * (reach / far)
            turn = SPEED_RADPS / control_hz
            arm[YAW] += np.clip(goal[YAW] - arm[YAW], -turn, turn)
            arm[OPENING] = goal[OPENING]
        return command.astype(np.float32)

    def said(self) -> str:
        """What the next press does."""
        return f'{self.hand} hand, {STRIDES_M[self.stride] * 1e3:.0f} mm a press'


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def keyboard(
    pressed: 'queue.SimpleQueue[int]',
    draw: Callable[..., bool],
    control_hz: int,
    open_m: float,
    tell: Callable[[str], object] = say,
) -> Start:
    """Let the keys drive.

    Args:
        pressed: Codes of keys in the order in which they were pressed.
        draw: Draws the viewer's window, False once it is closed; see film.viewer.
        control_hz: Of the world.
        open_m: Commanded opening of an open hand.
        tell: Gets the instruction, and what the next press does where that changes.
    """

    def start(seed: int) -> Act:
        keys: Keyboard | None = None
        rested = float('inf')  # control steps since the last motion

        def take_presses(keys: Keyboard) -> bool:
            taken = False
            before = keys.said()
            while not pressed.empty():
                taken |= keys.press(pressed.get())
            if keys.said() != before:
                tell(keys.said())
            return taken

        def act(obs: dict[str, Any]) -> Choice | None:
            nonlocal keys, rested
            if keys is None:
                keys = Keyboard(obs['tool_command'], open_m)
                tell(f'{obs["instruction"]} ({keys.said()})')
            if take_presses(keys):
                rested = 0
            while rested > REST_S * control_hz:
                if not draw(standing=True):
                    return None
                time.sleep(WAITING_S)
                if take_presses(keys):
                    rested = 0
            command = keys.towards(obs['tool_command'], control_hz)
            moves = not np.array_equal(command, obs['tool_command'])
            rested = 0 if moves else rested + 1
            return dict(executed=command, action=command, kicked=False, subtask='')

        return act

    return start
