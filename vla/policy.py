"""A trained checkpoint as a policy: observations in, absolute commands out, a chunk at a time.

    start = policy.checkpoint('out/demo', world.metadata(), execute=1, steps=1)
    act = start(seed)                  # once per episode
    choice = act(obs)                  # a dict; sim/policies.py says what is in it

All it has to know of the world is data, World.metadata(). So no simulator is imported here, and
functools.partial(checkpoint, 'out/demo', ...) can be handed to a worker process.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import model
from vla import layers
from vla.graphs import Graphed
from vla.processor import Processor

Act = Callable[[dict[str, Any]], dict[str, Any]]


def command_in_force(obs: dict[str, Any], action_space: str) -> np.ndarray:
    """Return the command that a chunk starts from.

    Args:
        obs: An observation, live or from a file.
        action_space: 'tool' (15 slots, poses of the tools) or 'joint' (17 slots, joint targets).
    """
    return obs[f'{action_space}_command']


def gripper_range_m(world: dict[str, Any]) -> tuple[float, float] | None:
    """Return the commanded openings of a closed and an open hand, m; None for another robot.

    Args:
        world: World.metadata(), or the `world` of an episode's header. Recordings made before it
            had an entry `gripper_m` are of hands that close with -20 mm and open with 32 mm and
            16 mm times the scale of the bricks.
    """
    if 'gripper_m' in world:
        openings = world['gripper_m']
        return None if openings is None else tuple(openings)
    if 'brick_scale' in world:
        return -0.02, 2 * (0.016 + 0.008 * world['brick_scale'])
    return None


def round_grippers(
    rows: np.ndarray, action_names: Sequence[str], gripper_m: tuple[float, float] | None
) -> np.ndarray:
    """Open hands altogether or shut them altogether, as in every demonstration.

    A half-open hand drags bricks along.

    Args:
        rows: Absolute actions, (..., A).
        action_names: Names of the A slots; those that end in 'gripper' are rounded.
        gripper_m: Commanded openings of a closed and an open hand, m; None: nothing is rounded.

    Returns:
        A copy of the rows, (..., A), of the same type.
    """
    rows = rows.copy()
    if gripper_m is None:
        return rows
    closed_m, open_m = gripper_m
    columns = [i for i, name in enumerate(action_names) if name.endswith('gripper')]
    is_open = rows[..., columns] > open_m / 2
    rows[..., columns] = np.where(is_open, open_m, closed_m)
    return rows


def _check_settings(
    folder: str | Path, horizon: int, execute: int, delay: int, compiles_with_text: bool
) -> None:
    if execute < 1 or delay < 0 or execute + delay > horizon:
        raise ValueError(
            f'execute={execute}, delay={delay}: the chunks of {folder} have {horizon} rows'
        )
    if compiles_with_text:
        raise ValueError(
            'compile_model and read_text: every other length of text would compile anew'
        )


def _as_graph(net: model.VLA) -> Callable[..., torch.Tensor]:
    """net.act as a CUDA graph for each number of steps and of rows that are given."""
    graphs: dict[int, Graphed] = {}

    def act(
        batch: dict[str, torch.Tensor], steps: int, action_prefix: torch.Tensor | None = None
    ) -> torch.Tensor:
        def run(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            rows = inputs['action_prefix'] if 'action_prefix' in inputs else None
            return net.act(inputs, steps, action_prefix=rows)

        graph = graphs.setdefault(steps, Graphed(run))
        given = {} if action_prefix is None else {'action_prefix': action_prefix}
        return graph(batch | given)

    return act


def checkpoint(
    folder: str | Path,
    world: dict[str, Any],
    execute: int = 1,
    steps: int = 1,
    delay: int = 0,
    read_text: bool = False,
    text_chunks: int = 1,
    compile_model: bool = False,
    device: str | None = None,
    dtype: str = 'float32',
) -> Callable[[int], Act]:
    """Load a trained model that predicts a chunk, executes a part of it and looks again.

    Args:
        folder: A checkpoint of train.py.
        world: World.metadata() of the world it is to act in.
        execute: Rows of a chunk that are executed before the next one is made.
        steps: Denoising steps per chunk.
        delay: Rows of the chunk in force that are still executed while the next one is made. They
            are the first rows of that next one, and the model gets them clean (training-time
            real-time chunking, Black et al. 2025). It has to know that from training:
            train.py --prefix_rows.
        read_text: Decode the subtask and act having read it.
        text_chunks: Chunks that are made on one decoded text.
        compile_model: torch.compile in one graph; on a GPU one CUDA graph, launched at once.
        device: 'cpu' or 'cuda'; None: cuda where there is one.
        dtype: 'float32' or 'bfloat16'.

    Returns:
        A function that begins an episode, given its seed, and returns `act`.

    Raises:
        ValueError: The world does not fit the checkpoint, or the settings do not fit each other.
    """
    torch.set_num_threads(1)
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(f'device={device}: torch sees no such GPU here; leave --device out')
    net, meta = model.VLA.load(str(folder))
    net = net.to(device).eval()
    autocast = layers.autocast_for(device, dtype)
    processor = Processor.of_checkpoint(str(folder), meta)
    processor.check_world(world)
    _check_settings(folder, processor.horizon, execute, delay, compile_model and read_text)
    act_once = net.act
    if compile_model and device.startswith('cuda'):
        act_once = _as_graph(net)
    elif compile_model:
        act_once = torch.compile(net.act, fullgraph=True, dynamic=False)
    action_names = world[f'{processor.action_space}_action_names']
    gripper_m = gripper_range_m(world)

    def start(seed: int) -> Act:
        pending: list[np.ndarray] = []  # absolute rows of the chunk in force, not yet executed
        tokens = None  # of the text that was decoded last
        n_chunks = 0

        def next_rows(obs: dict[str, Any]) -> np.ndarray:
            """Make a chunk, (H, A) absolute; its first rows are those that are pending."""
            nonlocal tokens, n_chunks
            encoded = processor.encode([obs])
            batch = {name: value.to(device) for name, value in encoded.items()}
            command = command_in_force(obs, processor.action_space)[None]  # (1, A)
            prefix = None
            if pending:
                rows = processor.normalise_actions(np.array([pending]), command)
                prefix = torch.from_numpy(rows).to(device)  # (1, delay, A)
            with torch.inference_mode(), autocast:
                if read_text:
                    texts = tokens if n_chunks % text_chunks else None  # None: decode anew
                    chunk, tokens = net.plan_and_act(
                        batch, steps, action_prefix=prefix, texts=texts
                    )
                else:
                    chunk = act_once(batch, steps, action_prefix=prefix)  # (1, H, A)
            n_chunks += 1
            absolute = processor.decode_actions(chunk.float().cpu().numpy(), command)[0]
            return round_grippers(absolute, action_names, gripper_m)

        def act(obs: dict[str, Any]) -> dict[str, Any]:
            """Answer an observation; `chunk_ms` is there where a chunk was made for it."""
            choice = {}
            if len(pending) <= delay:
                began = time.perf_counter()
                rows = next_rows(obs)
                pending.extend(rows[len(pending) : execute + delay])
                choice['chunk_ms'] = (time.perf_counter() - began) * 1e3
            action = pending.pop(0)
            subtask = processor.decode_text(tokens[0]) if tokens else ''
            return dict(choice, executed=action, action=action, kicked=False, subtask=subtask)

        return act

    return start
