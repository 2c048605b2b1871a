"""A trained checkpoint as a policy: observations in, absolute commands out, a chunk at a time.

    start = policy.checkpoint('out/demo', world.metadata(), execute=1, steps=1)
    act = start(seed)                  # once per episode
    choice = act(obs)                  # a dict; sim/policies.py says what is in it

All it has to know of the world is data, World.metadata(). So no simulator is imported here, and
functools.partial(checkpoint, 'out/demo', ...) can be handed to a worker process.
"""

import concurrent.futures
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import model
from vla import graphs, layers, parallel
from vla.folder import check_taught
from vla.processor import Processor

Act = Callable[[dict[str, Any]], dict[str, Any]]

MAX_PROMPT = 1000  # characters, of what is asked over a wire
MAX_PREFIX = 100  # rows, which is the longest delay that train.py takes
MAX_PROMPTS = 1000  # Prompts of strangers that are kept with their tokens.


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


def _check_settings(predictor: 'Predictor', folder: str | Path, execute: int, delay: int) -> None:
    horizon = predictor.processor.horizon
    rows = execute if predictor.foresees else execute + delay
    if execute < 1 or delay < 0 or rows > horizon:
        raise ValueError(
            f'execute={execute}, delay={delay}: the chunks of {folder} have {horizon} rows'
        )


def _as_graph(net: model.VLA, steps: int, most: int) -> Callable[..., torch.Tensor]:
    """net.act in so many steps as a CUDA graph for each number of rows that are given.

    Fewer samples than `most` are filled up with copies of the first one.
    """

    def run(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = inputs['action_prefix'] if 'action_prefix' in inputs else None
        return net.act(inputs, steps, action_prefix=rows)

    graph = graphs.Graphed(run)

    def act(
        batch: dict[str, torch.Tensor], steps: int, action_prefix: torch.Tensor | None = None
    ) -> torch.Tensor:
        given = {} if action_prefix is None else {'action_prefix': action_prefix}
        samples = len(batch['state'])
        return graph(filled_up(batch | given, most))[:samples]

    return act


def filled_up(batch: dict[str, torch.Tensor], samples: int) -> dict[str, torch.Tensor]:
    """A batch of so many samples at least: what it lacks of them are copies of its first one."""
    lacking = samples - len(batch['state'])
    if lacking <= 0:
        return batch
    return {name: torch.cat([x, x[:1].expand(lacking, *x.shape[1:])]) for name, x in batch.items()}


class Predictor(NamedTuple):
    """A trained model that makes chunks.

    predict: takes observations, for each the commanded openings of a closed and an open hand (see
        gripper_range_m), the absolute rows that are executed before anything new, as many for each,
        and the tokens of texts to act on, None to decode them where texts are read. It returns rows
        (B, P + H, C) or, of a model that gets these P rows as the first ones of its chunks,
        (B, H, C), absolute, float32, which begin with them; and the tokens of their texts, None
        where no text is read.
    processor: what stands between an observation and the model.
    net: the model itself.
    meta: the checkpoint's meta.json.
    foresees: whether chunks begin behind the rows under way, as vla/foresight.py says.
    """

    predict: Callable[..., tuple[np.ndarray, list[list[int]] | None]]
    processor: Processor
    net: model.VLA
    meta: dict[str, Any]
    foresees: bool


def load_predictor(
    folder: str | Path,
    steps: int = 1,
    read_text: bool = False,
    compile_model: str | bool = 'auto',
    device: str | None = None,
    dtype: str = 'float32',
    foresight: bool = True,
    most: int = 1,
) -> Predictor:
    """Load a trained model; `checkpoint` says what the arguments are.

    With `most` it answers up to so many worlds at a time. A CUDA graph then is of that many: with
    one for each number of worlds it would be recorded again and again.
    """
    torch.set_num_threads(1)
    device = layers.choose_device(device)
    records = graphs.can_record(device)
    compiles = parallel.decide('compile_model', compile_model, records and not read_text)
    if compiles and read_text:
        raise ValueError(
            'compile_model and read_text: every other length of text would compile anew'
        )
    if device.startswith('cuda:'):
        torch.cuda.set_device(device)  # streams and graphs are those of the current one
    net, meta = model.VLA.load(str(folder))
    if read_text:
        check_taught(str(folder), meta, 'text')
    net = net.to(device).eval()
    autocast = layers.autocast_for(device, dtype)
    processor = Processor.of_checkpoint(str(folder), meta)
    if device == 'cpu' and not compiles:
        processor.user_tokens = 0  # one shape for all prompts is padding, which costs a CPU time
    act_once = net.act
    if compiles and records:
        act_once = _as_graph(net, steps, most)
    elif compiles:
        act_once = torch.compile(net.act, fullgraph=True, dynamic=False)

    foresees = foresight and processor.foresight is not None and net.scene_head is not None

    def predict(
        observations: Sequence[dict[str, Any]],
        gripper_m: Sequence[tuple[float, float] | None],
        begins_with: Sequence[Sequence[np.ndarray] | np.ndarray],
        texts: list[list[int]] | None = None,
    ) -> tuple[np.ndarray, list[list[int]] | None]:
        under_way = np.array(begins_with, np.float32)  # (B, P, C)
        commands = np.stack([command_in_force(o, processor.action_space) for o in observations])
        comes_late = len(begins_with[0]) > 0
        prefix = None
        if comes_late and foresees:
            encoded = processor.encode(observations, under_way=under_way)
            commands = under_way[:, -1]
        else:
            encoded = processor.encode(observations)
        batch = {name: value.to(device) for name, value in encoded.items()}
        if comes_late and not foresees:
            rows = processor.normalise_actions(under_way, commands)
            prefix = torch.from_numpy(rows).to(device)  # (B, P, A)
        tokens = None
        with torch.inference_mode(), autocast:
            if read_text:
                chunk, tokens = net.plan_and_act(batch, steps, action_prefix=prefix, texts=texts)
            else:
                chunk = act_once(batch, steps, action_prefix=prefix)  # (B, H, A)
        absolute = processor.decode_actions(chunk.float().cpu().numpy(), commands)
        names = processor.action_names
        rounded = np.stack([round_grippers(rows, names, m) for rows, m in zip(absolute, gripper_m)])
        if comes_late and foresees:
            rounded = np.concatenate([under_way, rounded], 1)
        return rounded, tokens

    return Predictor(predict, processor, net, meta, foresees)


def checkpoint(
    folder: str | Path,
    world: dict[str, Any],
    execute: int = 1,
    steps: int = 1,
    delay: int = 0,
    read_text: bool = False,
    text_chunks: int = 1,
    compile_model: str | bool = 'auto',
    device: str | None = None,
    dtype: str = 'float32',
    foresight: bool = True,
) -> Callable[[int], Act]:
    """Load a trained model that predicts a chunk, executes a part of it and looks again.

    Args:
        folder: A checkpoint of train.py.
        world: World.metadata() of the world it is to act in.
        execute: Rows of a chunk that are executed before the next one is made.
        steps: Denoising steps per chunk.
        delay: Rows of the chunk in force that are still executed while the next one is made.
        read_text: Decode the subtask and act having read it.
        text_chunks: Chunks that are made on one decoded text.
        compile_model: 'on': torch.compile in one graph; on a GPU one CUDA graph, launched at once.
            'auto': on a GPU, where no text is read.
        device: 'cpu' or 'cuda'; None: cuda where there is one.
        dtype: 'float32' or 'bfloat16'.
        foresight: With a delay, the next chunk begins behind the rows of the one in force, from
            where these will have brought the hands (vla/foresight.py), if the checkpoint has learnt
            that: train.py --delay. False, and where it has not: these rows are the first ones of
            the next chunk, and the model gets them clean (training-time real-time chunking, Black
            et al. 2025), which it should know from training: train.py --prefix_rows.

    Returns:
        A function that begins an episode, given its seed, and returns `act`.

    Raises:
        ValueError: The world does not fit the checkpoint, or the settings do not fit each other.
    """
    predictor = load_predictor(folder, steps, read_text, compile_model, device, dtype, foresight)
    processor = predictor.processor
    processor.check_world(world)
    _check_settings(predictor, folder, execute, delay)
    gripper_m = gripper_range_m(world)

    def start(seed: int) -> Act:
        pending: list[np.ndarray] = []  # absolute rows of the chunk in force, not yet executed
        tokens = None  # Tokens of the text that was decoded last.
        n_chunks = 0

        def next_rows(obs: dict[str, Any]) -> np.ndarray:
            """Make a chunk, absolute; its first rows are those that are pending."""
            nonlocal tokens, n_chunks
            texts = tokens if n_chunks % text_chunks else None  # None: decode anew
            rows, tokens = predictor.predict([obs], [gripper_m], [pending], texts)
            n_chunks += 1
            return rows[0]

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


# -----------------------------------------------------------------------------
# Answering over a wire


def answers(folder: str | Path, **how: Any) -> tuple[Callable, dict[str, Any]]:
    """Let a trained model answer the observations of others, for wire.serve.

    A request holds:
        state (C,)              all slots of the checkpoint's state, see `state_names`
        images                  {camera: (h, w, 3) or (3, h, w) uint8}: those it learnt from
        prompt                  the instruction
        tool_command (15,)      the command in force, or joint_command (17,) where the policy acts
                                in joints; it may be left out where the state holds it
        action_prefix (P, A)    may be left out: absolute rows that are executed while the chunk is
                                made; it begins with them, P < H unless it foresees
        gripper_m (2,)          may be left out: commands that close and open a hand, where they are
                                others than in the world that it was trained for
    The reply holds `actions`, absolute commands, (H, A) or, of a policy that foresees, (P + H, A)
    with the prefix before its own; and `subtask`, the text that was read.

    Args:
        folder: A checkpoint of train.py.
        how: Settings of `load_predictor`.

    Returns:
        A function from requests to replies, which raises ValueError for a request that does not
        fit; and what a client has to know.
    """
    predictor = load_predictor(folder, **how)
    processor = predictor.processor
    processor.forget_prompts_after(MAX_PROMPTS)
    world = predictor.meta.get('world', {})  # Another robot's logs say nothing of one.
    gripper_m = gripper_range_m(world)

    def infer(request: dict[str, Any]) -> dict[str, Any]:
        reply = _answer(predictor, gripper_m, [request])[0]
        if isinstance(reply, ValueError):
            raise reply
        return reply

    metadata = dict(
        policy=str(folder),
        step=predictor.meta['step'],
        cameras=list(processor.cameras),
        image_size=processor.image_size,
        control_hz=processor.control_hz,
        horizon=processor.horizon,
        action_space=processor.action_space,
        action_names=list(processor.action_names),
        state_names=list(processor.state_names),
        world=world,
    )
    return infer, metadata


def answers_of_many(
    folder: str | Path, execute: int = 1, delay: int = 0, **how: Any
) -> Callable[[list[dict[str, Any]]], list[dict[str, Any] | ValueError]]:
    """Let one network answer the worlds of many processes, several at a time.

    Args:
        folder: A checkpoint of train.py.
        execute: See `checkpoint`, as for delay.
        delay: See `checkpoint`.
        how: Settings of `load_predictor`.

    Returns:
        A function from requests, see `answers`, to a reply for each, or to what is wrong with it.
        A request may hold `world`, World.metadata() of a world that has to fit.
    """
    predictor = load_predictor(folder, **how)
    _check_settings(predictor, folder, execute, delay)
    return functools.partial(_answer, predictor, None, checks_world=True)


def answers_by_devices(
    folder: str | Path, devices: Sequence[str], most: int = 1, **how: Any
) -> Callable[[list[dict[str, Any]]], list[dict[str, Any] | ValueError]]:
    """`answers_of_many` by a network on each of these devices, which share the requests out.

    Each lives in a thread of its own, as the GPU in use is a matter of the thread.

    Args:
        folder: A checkpoint of train.py.
        devices: 'cpu' or 'cuda:<i>' each.
        most: So many requests come at a time.
        how: Other arguments of `answers_of_many`.
    """
    n = len(devices)
    how['most'] = -(-most // n)
    if n == 1:
        return answers_of_many(folder, device=devices[0], **how)
    threads = [concurrent.futures.ThreadPoolExecutor(1) for _ in devices]
    load = functools.partial(answers_of_many, folder, **how)
    made = [thread.submit(load, device=device) for thread, device in zip(threads, devices)]
    networks = [network.result() for network in made]

    def answer(requests: list[dict[str, Any]]) -> list[dict[str, Any] | ValueError]:
        shares = [requests[i::n] for i in range(min(n, len(requests)))]
        asked = [
            thread.submit(network, share)
            for thread, network, share in zip(threads, networks, shares)
        ]
        replies: list[Any] = [None] * len(requests)
        for i, replied in enumerate(asked):
            replies[i::n] = replied.result()
        return replies

    return answer


def _answer(
    predictor: Predictor,
    gripper_m: tuple[float, float] | None,
    requests: list[dict[str, Any]],
    checks_world: bool = False,
) -> list[dict[str, Any] | ValueError]:
    """Reply to requests; those whose chunks have to begin with as many rows go together.

    Args:
        predictor: The model.
        gripper_m: See gripper_range_m, for requests that do not say.
        requests: See `answers`.
        checks_world: They come from worlds of ours, whose metadata may be with them.
    """
    processor = predictor.processor
    replies: list[Any] = [None] * len(requests)
    together: dict[int, list[tuple]] = {}  # rows that are given: the requests
    for i, request in enumerate(requests):
        try:
            if checks_world and 'world' in request:
                processor.check_world(request['world'])
            obs, prefix = read_request(request, processor, predictor.foresees)
            openings = gripper_m
            if 'gripper_m' in request:
                openings = tuple(_numbers(request, 'gripper_m', (2,)).tolist())
            together.setdefault(len(prefix), []).append((i, obs, openings, prefix))
        except ValueError as fault:
            replies[i] = fault
    for members in together.values():
        numbers, observations, openings_of_each, prefixes = zip(*members)
        rows, tokens = predictor.predict(observations, openings_of_each, prefixes)
        for i, chunk, text in zip(numbers, rows, tokens or [[]] * len(members)):
            replies[i] = dict(actions=chunk, subtask=processor.decode_text(text) if text else '')
            if not np.isfinite(chunk).all():
                replies[i] = ValueError('the policy has no finite answer to this state')
    return replies


def read_request(
    request: dict[str, Any], processor: Processor, foresees: bool = False
) -> tuple[dict[str, Any], np.ndarray]:
    """Check a request, see `answers`.

    Args:
        request: From anybody.
        processor: Of the policy that answers.
        foresees: Whether its chunks begin behind the prefix, not with it.

    Returns:
        The observation, and the rows (P, C) that are executed before anything new.

    Raises:
        ValueError: It lacks something, or something in it has no sense.
    """
    missing = [name for name in ('state', 'images', 'prompt') if name not in request]
    if missing:
        raise ValueError(f'the request has no {missing[0]!r}; it needs state, images and prompt')
    prompt = request['prompt']
    if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT:
        raise ValueError(f'prompt: expected text of at most {MAX_PROMPT} characters')
    state = _numbers(request, 'state', (len(processor.state_names),))
    space = processor.action_space
    n_slots = len(processor.action_names)
    name = f'{space}_command'
    if name in request:
        command = _numbers(request, name, (n_slots,))
    elif processor.command_index is not None:
        command = state[processor.command_index]
    else:
        raise ValueError(f'the request has no {name!r}, and the state does not hold it')
    prefix = np.zeros((0, n_slots), np.float32)
    if 'action_prefix' in request:
        prefix = _numbers(request, 'action_prefix', (None, n_slots))
        if len(prefix) >= processor.horizon and not foresees:
            raise ValueError(
                f'action_prefix: {len(prefix)} rows, a chunk has {processor.horizon} altogether'
            )
        if len(prefix) > MAX_PREFIX:
            raise ValueError(f'action_prefix: {len(prefix)} rows, expected at most {MAX_PREFIX}')
    obs = {'state': state, 'instruction': prompt, name: command}
    images = request['images']
    if not isinstance(images, dict):
        raise ValueError(f'images: {type(images).__name__}, expected a map by camera')
    for camera in processor.cameras:
        if camera not in images:
            raise ValueError(f'images: no {camera!r}; expected {", ".join(processor.cameras)}')
        obs[f'image/{camera}'] = _picture(camera, images[camera])
    return obs, prefix


def _numbers(request: dict[str, Any], name: str, expected: tuple[int | None, ...]) -> np.ndarray:
    """Take an array of finite float32 out of a request; None in its shape is any length."""
    value = request[name]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in 'fiu':
        raise ValueError(f'{name}: {type(value).__name__}, expected an array of numbers')
    fits = value.ndim == len(expected) and all(
        want in (None, got) for got, want in zip(value.shape, expected)
    )
    if not fits:
        raise ValueError(f'{name}: shape {value.shape}, expected {expected}')
    with np.errstate(over='ignore'):  # Numbers too large for float32 become infinite.
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise ValueError(f'{name}: not all numbers are finite')
    return value


def _picture(camera: str, value: Any) -> np.ndarray:
    """Take a picture out of a request, (h, w, 3) uint8; ALOHA clients of openpi send (3, h, w)."""
    is_picture = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3
    if not is_picture or 3 not in (value.shape[0], value.shape[2]) or 0 in value.shape:
        got = getattr(value, 'shape', type(value).__name__)
        raise ValueError(f'images/{camera}: {got}, expected (h, w, 3) or (3, h, w) of uint8')
    return value if value.shape[2] == 3 else value.transpose(1, 2, 0)
