"""Where the hands will be when a chunk that is asked for now comes to be executed.

    foresight.fit(dataset)                          # a minute of any robot's log will do
    states = foresight.states(state, commands)      # (B, 1 + T, C): now and after each command

A chunk takes time to make, and meanwhile commands that were sent before it are executed. A policy
that answers what it has seen is late by that; one that answers what will be there when the chunk
begins is not. The commands under way are known, and what hands make of them is learnt here from
recorded states: a hand lags behind what it is told by millimetres, and its fingers shut on a brick
within one step. What stays where it is, and what hands carry along, is geometry
(grounding.SceneHead.foresee).

Source: O. J. M. Smith, Closer control of loops with dead time, 1957 (the Smith predictor).
"""

# B batch, T commands under way, C columns of a state or of an action
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from episode import ARMS, quat_from_rotvec, quat_mul

# What is measured of a hand, in units of about the size it has: tracking error m and rad, velocity
# of the tool m/s, opening m.
UNITS = (0.003, 0.003, 0.003, 0.02, 0.02, 0.02, 0.05, 0.05, 0.05, 0.03)
MOVE_UNITS = (0.01, 0.01, 0.01, 0.06, 0.06, 0.06)  # Units of a command against the one before it.
OPENING_M = 0.03
PLACE_M = 0.1
LOW_M = (0.05, 0.01)  # near the table a centimetre matters: middle and unit of a height
SHUT_M = 0.01  # fingers that are told to open by less are shut: no brick is as narrow
INPUTS = len(UNITS) + len(MOVE_UNITS) + 2 + 3 + 1 + len(ARMS)
WIDTH = 64
STEPS_AHEAD = 3  # The fit looks so far: errors of one step are inputs of the next.
PASSES = 20  # over the recorded rows
MOST_STEPS = 1500  # The optimizer takes 25 s for them on one busy core.
BATCH = 512
FIT_ROWS = 200_000  # More are thinned out: MOST_STEPS batches would see each of them once or less.
LEARNING_RATE = 3e-3
AXES = ('x', 'y', 'z')


class Columns(NamedTuple):
    """Where it stands in a state, arm by arm.

    error        (arms, 6) measured minus commanded pose
    velocity     (arms, 3) of the tool
    opening      (arms, 1)
    position     (arms, 3) of the tool, measured
    quaternion   (arms, 4) likewise
    command      (arms, 7) pose and opening in force
    """

    error: np.ndarray
    velocity: np.ndarray
    opening: np.ndarray
    position: np.ndarray
    quaternion: np.ndarray
    command: np.ndarray


def columns_of(state_names: Sequence[str]) -> Columns | None:
    """The columns of a state by their names; None for a robot that measures or reports less."""
    pose = [f'tool_{axis}' for axis in AXES] + [f'tool_r{axis}' for axis in AXES]
    wanted = dict(
        error=[[f'error/{arm}/{slot}' for slot in pose] for arm in ARMS],
        velocity=[[f'{arm}/tool_v{axis}' for axis in AXES] for arm in ARMS],
        opening=[[f'{arm}/gripper'] for arm in ARMS],
        position=[[f'{arm}/tool_{axis}' for axis in AXES] for arm in ARMS],
        quaternion=[[f'{arm}/tool_q{axis}' for axis in ('w', *AXES)] for arm in ARMS],
        command=[[f'command/{arm}/{slot}' for slot in (*pose, 'gripper')] for arm in ARMS],
    )
    at = {name: i for i, name in enumerate(state_names)}
    if not all(name in at for names in wanted.values() for row in names for name in row):
        return None
    place = np.vectorize(at.__getitem__)
    return Columns(**{part: place(names) for part, names in wanted.items()})


class HandModel(nn.Module):
    """What is measured of a hand one control step later: both arms share one small network."""

    units: Tensor
    move_units: Tensor
    arm: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net: nn.Module = nn.Sequential(
            nn.Linear(INPUTS, WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.SiLU(),
            nn.Linear(WIDTH, len(UNITS)),
        )
        self.register_buffer('units', torch.tensor(UNITS), persistent=False)
        self.register_buffer('move_units', torch.tensor(MOVE_UNITS), persistent=False)
        self.register_buffer('arm', torch.eye(len(ARMS)), persistent=False)

    def forward(self, measured: Tensor, before: Tensor, command: Tensor) -> Tensor:
        """Measured then (B, arms, 10), in UNITS, of what is measured now.

        Args:
            measured: (B, arms, 10), in UNITS: error 6, velocity 3, opening 1.
            before: (B, arms, 7), the command in force, m and rad.
            command: (B, arms, 7), the one that is executed until then.
        """
        place = before[..., :3] + measured[..., :3] * self.units[:3]
        low, unit = LOW_M
        known = [
            measured,
            (command - before)[..., :6] / self.move_units,
            before[..., 6:] / OPENING_M,
            command[..., 6:] / OPENING_M,
            place / PLACE_M,
            (place[..., 2:] - low) / unit,
            self.arm.expand(*measured.shape[:-1], -1),
        ]
        return self.net(torch.cat(known, -1))


class Foresight:
    """States that are to come, for a robot that measures its hands and reports its commands.

    Args:
        columns: Of its state.
        command_index: Where the command in force stands in its state, (C,).
        weights: Of the HandModel, by name; None: not fitted yet, and hands are taken to go on with
            the tracking error that they have.

    Raises:
        ValueError, RuntimeError or TypeError: These are no weights of a HandModel.
    """

    def __init__(
        self,
        columns: Columns,
        command_index: np.ndarray,
        weights: dict[str, Any] | None = None,
    ):
        self.columns = columns
        self.command_index = command_index
        self.model: HandModel | None = None
        if weights is not None:
            self.model = HandModel()
            tensors = {name: torch.tensor(values) for name, values in weights.items()}
            self.model.load_state_dict(tensors)
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise ValueError('not all numbers are finite')

    def weights(self) -> dict[str, Any] | None:
        """What `__init__` takes, for JSON; nine digits are all that float32 has."""
        if self.model is None:
            return None
        found = {}
        for name, tensor in self.model.state_dict().items():
            rounded = np.vectorize(lambda x: float(f'{x:.9g}'))(tensor.double().numpy())
            found[name] = rounded.tolist()
        return found

    def measured(self, states: np.ndarray) -> Tensor:
        """What is measured of the hands in states (..., C): (..., arms, 10), in UNITS."""
        columns = self.columns
        every = np.concatenate([columns.error, columns.velocity, columns.opening], 1)
        return torch.from_numpy(states[..., every].astype(np.float32)) / torch.tensor(UNITS)

    def states(self, state: np.ndarray, commands: np.ndarray) -> np.ndarray:
        """States now and after each of the commands that are under way.

        Commands in force, tools, tracking errors and openings are moved on; joints and their
        velocities are not.

        Args:
            state: (B, C) float32.
            commands: (B, T, C) absolute actions, in the order in which they are executed.

        Returns:
            (B, 1 + T, C) float32.
        """
        states = [state]
        for command in commands.swapaxes(0, 1):
            states.append(self._after(states[-1], command))
        return np.stack(states, 1)

    def _after(self, state: np.ndarray, command: np.ndarray) -> np.ndarray:
        """The state (B, C) one control step later, after a command (B, C)."""
        columns = self.columns
        after = state.copy()
        after[:, self.command_index] = command
        told = after[:, columns.command]  # (B, arms, 7)
        measured = self.measured(state)
        if self.model is not None:
            before = torch.from_numpy(state[:, columns.command])
            with torch.no_grad():
                measured = self.model(measured, before, torch.from_numpy(told))
        numbers = (measured * torch.tensor(UNITS)).numpy()  # (B, arms, 10)
        error = numbers[..., :6]
        turn = quat_mul(quat_from_rotvec(error[..., 3:]), quat_from_rotvec(told[..., 3:6]))
        after[:, columns.error] = error
        after[:, columns.position] = told[..., :3] + error[..., :3]
        after[:, columns.quaternion] = turn
        after[:, columns.velocity] = numbers[..., 6:9]
        after[:, columns.opening] = numbers[..., 9:]
        return after

    def shut(self, states: np.ndarray) -> np.ndarray:
        """Whether hands are commanded to be shut in states (..., C): bool (..., arms)."""
        return states[..., self.columns.command[:, 6]] < SHUT_M

    def off_m(self, episodes: Sequence[np.ndarray], steps: int) -> float:
        """How far tools are from where they are foreseen so many steps ahead, mean per axis, m.

        Raises:
            ValueError: No episode has so many rows.
        """
        if not any(len(states) > steps for states in episodes):
            raise ValueError(
                f'delay={steps}: none of the held-out episodes has more rows than that'
            )
        errors = []
        for states in episodes:
            n = max(0, len(states) - steps)
            ahead = np.arange(n)[:, None] + 1 + np.arange(steps)
            commands = states[ahead][..., self.command_index]
            foreseen = self.states(states[:n], commands)[:, -1]
            off = foreseen - states[len(states) - n :]
            errors.append(np.abs(off[:, self.columns.position]).ravel())
        return float(np.concatenate(errors).mean())

    def fit(self, episodes: Sequence[np.ndarray], seed: int = 0) -> None:
        """Learn what hands make of commands.

        What was executed counts, not what was labelled: the commands in force are in the states.

        Args:
            episodes: States (T, C) of each.
            seed: Of first weights and order of samples.

        Raises:
            ValueError: No episode is as long as the fit looks ahead.
        """
        windows = []
        every = -(-sum(map(len, episodes)) // FIT_ROWS)
        for states in episodes:
            first = np.arange(0, len(states) - STEPS_AHEAD, every)[:, None]
            windows.append(np.asarray(states)[first + np.arange(STEPS_AHEAD + 1)])
        if not sum(map(len, windows)):
            raise ValueError(f'no episode has more than {STEPS_AHEAD} rows to learn the hands from')
        states = np.concatenate(windows)  # (n, 1 + STEPS_AHEAD, C)
        measured = self.measured(states)
        commands = torch.from_numpy(states[..., self.columns.command].astype(np.float32))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = HandModel()
            steps = min(MOST_STEPS, 1 + PASSES * len(states) // BATCH)
            optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=1e-4)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, LEARNING_RATE, total_steps=steps + 1
            )
            for _ in range(steps):
                rows = torch.randint(len(states), (BATCH,))
                loss = self._loss(measured[rows], commands[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    def _loss(self, measured: Tensor, commands: Tensor) -> Tensor:
        """Error of STEPS_AHEAD steps, each of which goes on from the one before it."""
        assert self.model is not None, 'fit makes it'
        now = measured[:, 0]
        loss = now.new_zeros(())
        for t in range(STEPS_AHEAD):
            now = self.model(now, commands[:, t], commands[:, t + 1])
            loss = loss + F.smooth_l1_loss(now, measured[:, t + 1], beta=0.1)
        return loss
