"""A trained checkpoint as a policy: observations in, absolute commands out, a chunk at a time.

start = policy.checkpoint('out/demo', world, closed_m=-.02, execute=1, steps=1)
act = start(seed)                  # once per episode
choice = act(obs)                  # see sim/policies.py
"""

import time
from collections.abc import Sequence

import numpy as np
import torch

import model
from episode import TOOL_ACTION_NAMES
from vla import layers
from vla.processor import Processor

GRIPPERS = [i for i, name in enumerate(TOOL_ACTION_NAMES) if name.endswith('gripper')]


def round_grippers(
    rows: np.ndarray, names: Sequence[str], gripper_m: tuple[float, float] | None
) -> np.ndarray:
    """Grippers all open or all shut, as in every demonstration: half-open ones drag bricks along.

    Args:
        rows: (..., C) absolute actions.
        names: Their slots; those that end with 'gripper' are meant.
        gripper_m: Opening when closed and when open, m; None: nothing is rounded.

    Returns:
        A copy; what is more than half open is open.
    """
    rows = rows.copy()
    if gripper_m is None:
        return rows
    closed_m, open_m = gripper_m
    columns = [i for i, name in enumerate(names) if name.endswith('gripper')]
    wide = rows[..., columns] > open_m / 2
    rows[..., columns] = np.where(wide, open_m, closed_m)
    return rows


def checkpoint(
    folder,
    world,
    closed_m,
    execute=1,
    steps=1,
    delay=0,
    read_text=False,
    text_chunks=1,
    compile_model=False,
    device=None,
    dtype='float32',
):
    """A trained model: predicts a chunk in `steps` denoising steps, executes `execute` rows, looks
    again.

    delay         rows of the chunk in force that are still executed while the next is made. They
                  are its
                  first rows, given to the model clean (training-time real-time chunking, Black et
                  al. 2025),
                  which it has to know from training: train.py --prefix_rows
    read_text     decode the subtask and act having read it; a text serves for text_chunks chunks
    compile_model torch.compile in one graph; on a GPU that graph is a CUDA graph, launched at once
    """
    torch.set_num_threads(1)
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(f'device={device}: torch sees no such GPU here; leave --device out')
    net, meta = model.VLA.load(folder)
    net = net.to(device).eval()
    autocast = layers.autocast_for(device, dtype)
    processor = Processor.from_dict(meta['processor'])
    processor.check_world(world.metadata())
    in_force = f'{processor.action_space}_command'
    if execute < 1 or delay < 0 or execute + delay > processor.horizon:
        raise ValueError(
            f'execute={execute}, delay={delay}: the chunks of {folder} have '
            f'{processor.horizon} rows'
        )
    if compile_model and read_text:
        raise ValueError(
            'compile_model and read_text: every other length of text would compile anew'
        )
    act_once = net.act
    if compile_model:
        act_once = torch.compile(net.act, mode='reduce-overhead', fullgraph=True, dynamic=False)

    def start(seed):
        pending = []
        tokens = None
        age = 0

        def next_rows(obs):
            """-> (H, 15), of which the first are those that are pending."""
            nonlocal tokens, age
            batch = {k: v.to(device) for k, v in processor.encode([obs]).items()}
            prefix = None
            if pending:
                prefix = processor.normalise_actions(np.array([pending]), obs[in_force][None])
                prefix = torch.from_numpy(prefix).to(device)  # (1, delay, A)
            with torch.inference_mode(), autocast:
                if read_text:
                    known = tokens if age % text_chunks else None
                    chunk, tokens = net.plan_and_act(
                        batch, steps, action_prefix=prefix, texts=known
                    )
                    age += 1
                else:
                    chunk = act_once(batch, steps, action_prefix=prefix)  # (1, H, A)
            rows = processor.decode_actions(chunk.float().cpu().numpy(), obs[in_force][None])[0]
            return round_grippers(rows, processor.action_names, (closed_m, world.max_opening_m))

        def act(obs):
            choice = {}
            if len(pending) <= delay:
                began = time.perf_counter()
                pending.extend(next_rows(obs)[len(pending) : execute + delay])
                choice['chunk_ms'] = (time.perf_counter() - began) * 1e3
            action = pending.pop(0)
            subtask = processor.decode_text(tokens[0]) if tokens else ''
            return dict(choice, executed=action, action=action, kicked=False, subtask=subtask)

        return act

    return start
