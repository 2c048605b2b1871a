"""Who drives: the expert, a checkpoint, both in turns, a recording, or nobody.

    start = policies.driver(world, 'expert', kicks=0.1)
    act = start(seed)                  # once per episode
    choice = act(obs)                  # None when there is nothing left to do, else a dict:

    executed     what the world gets: a tool action (15,) float32, or a joint action (17,) where a
                 checkpoint drives that was trained on those
    action       the label, of the same shape: the expert's clean answer
    kicked       bool: what is executed is another thing than the label
    subtask      str, in words
    chunk_ms     only of a checkpoint, where it made a chunk: how long that took
    difference   only of a replay: the largest |qpos - recorded qpos|

Actions are absolute commands; tool actions are in the torso frame (episode.TOOL_ACTION: m, rad).
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import wire
from episode import TOOL_ACTION_NAMES, demand, find_world_faults, read_episode, state_vector
from sim.builder import Builder
from sim.control import TOOL_HIGH, TOOL_LOW
from sim.expert import Expert
from sim.kicks import Kicks
from sim.world import World

Settings = dict[str, Any]
Headers = dict[Path, dict[str, Any]]  # episode file: its header
Choice = dict[str, Any]
Act = Callable[[dict[str, Any]], Choice | None]
Start = Callable[[int], Act]

CONSTANT = ('hold', 'zero', 'random')
# These are not taken over from what a checkpoint learnt.
ASKED_FOR_ONLY = {'wording', 'impossible_share'}
SERVERS = ('ws://', 'wss://')
CHANGES_NOTHING = {'cameras', 'image_size'}  # A replay goes on alike without these.


# -----------------------------------------------------------------------------
# Who is meant


def resolve(policy: str, default: Settings) -> tuple[str, Headers, Settings]:
    """Find out who drives.

    Args:
        policy: A name, a checkpoint folder, the address of a policy server, an episode file or a
            folder of them.
        default: All settings of the world.

    Returns:
        The kind ('expert', 'hold', 'zero', 'random', 'checkpoint', 'remote' or 'replay'), the
        headers of the episodes of a replay, and the world settings that a checkpoint was made with;
        its task is the names of all it was trained on, separated by commas.

    Raises:
        ValueError: The policy is none of these.
    """
    if policy == 'expert' or policy in CONSTANT:
        return policy, {}, {}
    if policy.startswith(SERVERS):
        return 'remote', {}, remote_world(policy, default)
    path = Path(policy)
    if (path / 'meta.json').exists():
        return 'checkpoint', {}, checkpoint_world(policy, default)
    headers = {}
    for file in [path] if path.is_file() else sorted(path.glob('*.safetensors')):
        try:
            arrays, headers[file] = read_episode(file)
            header = headers[file]
            demand('replay', file, arrays, header)
            if 'task' not in header['world']:
                raise ValueError('it was made up, not recorded')
        except (ValueError, OSError) as fault:
            raise ValueError(
                f'policy={policy}: {file} is no episode to replay, remove it or record it '
                f'again: {fault}'
            ) from None
    if not headers and not path.exists():
        raise ValueError(
            f'policy={policy}: there is no such folder; expected a checkpoint of train.py, '
            'expert, hold, zero, random, ws://host:port, or episodes to replay'
        )
    if not headers:
        raise ValueError(
            f'policy={policy}: neither expert, hold, zero or random, nor a checkpoint folder '
            '(meta.json), nor a server (ws://host:port), nor an episode (*.safetensors) or a '
            'folder of them'
        )
    return 'replay', headers, {}


def checkpoint_world(folder: str, default: Settings) -> Settings:
    """Read the settings of the world that a checkpoint was trained for."""
    try:
        meta = json.loads((Path(folder) / 'meta.json').read_text('utf-8'))
        processor = meta['processor']
        made = meta.get('world', {}) | processor
        faults = find_world_faults('world', made)
        if faults:
            raise ValueError('; '.join(faults))
    except (ValueError, KeyError, TypeError, OSError) as fault:
        raise ValueError(f'policy={folder}: its meta.json is none of train.py: {fault!r}') from None
    if 'task' not in made:  # it was trained on made-up episodes
        print(
            f'{folder} does not say which task it was trained on: '
            'the default, unless --task is given'
        )
    settings = {key: made[key] for key in default if key in made and key not in ASKED_FOR_ONLY}
    if 'task' in settings and 'tasks' in meta:  # earlier revisions named the first episode's only
        settings['task'] = ','.join(meta['tasks'])
    # Nobody asks for an action space: only a checkpoint may act in joints, all others use tools.
    if 'action_space' in processor and processor['action_space'] != 'tool':
        settings['action_space'] = processor['action_space']
    return settings


def remote_world(address: str, default: Settings) -> Settings:
    """Ask a policy server for the world that its policy was trained for.

    Servers other than ours do not say; the defaults, and what the user asks for, hold there.
    """
    with wire.Client(address) as client:
        told = client.metadata
    world = told.get('world', {})
    made = world | told if isinstance(world, dict) else world
    faults = find_world_faults('what it says of its world', made)
    if faults:
        raise ValueError(f'{address}: {"; ".join(faults)}')
    settings = {key: made[key] for key in default if key in made}
    if isinstance(settings.get('cameras'), list):
        settings['cameras'] = tuple(settings['cameras'])
    if 'action_space' in made and made['action_space'] != 'tool':
        settings['action_space'] = made['action_space']
    return settings


def choose_replay(
    policy: str,
    headers: Headers,
    asked: Settings,
    default: Settings,
    seeds: Sequence[int] = (),
) -> tuple[dict[int, Path], Settings]:
    """Choose the episodes to replay.

    Args:
        policy: File or folder as it was typed.
        headers: Headers of all episodes that are there.
        asked: Settings of the world, and seed0 and episodes; None where nothing is asked for.
        default: All settings of the world.
        seeds: Those to choose from; empty: all.

    Returns:
        The file of each seed, and the world settings that all of them were recorded with.

    Raises:
        ValueError: There is none, or they were recorded with other settings than those asked for,
            or than each other.
    """
    task = asked['task'] or next(iter(headers.values()))['task']
    of_task = {header['seed']: file for file, header in headers.items() if header['task'] == task}
    other_tasks = sorted({header['task'] for header in headers.values()} - {task})
    if not of_task:
        there = ', '.join(other_tasks)
        raise ValueError(f'task={task}: {policy} holds episodes of {there} only; leave --task out')
    first = asked['seed0'] or 0
    chosen = sorted(s for s in of_task if s >= first and (not seeds or s in seeds))
    chosen = chosen[: asked['episodes']]
    if not chosen:
        raise ValueError(
            f'policy={policy}: none of its seeds ({min(of_task)}-{max(of_task)}) is among those '
            'asked for; change --seeds or --seed0'
        )
    if len(chosen) < len(headers):
        print(
            f'{policy}: {len(chosen)} of {len(headers)} episodes are replayed; left out: '
            f'{len(of_task) - len(chosen)} that --seeds, --seed0, --episodes do not ask for, '
            f'{len(headers) - len(of_task)} of other tasks ({", ".join(other_tasks) or "none"})'
        )
    files = {seed: of_task[seed] for seed in chosen}
    return files, settings_of_all(policy, list(files.values()), headers, asked, default)


def settings_of_all(
    policy: str, files: list[Path], headers: Headers, asked: Settings, default: Settings
) -> Settings:
    """Return the world settings that all files were recorded with, as asked for, or refuse."""
    settings = [default | _known(headers[file]['world'], default) for file in files]
    made = settings[0]
    for file, then in zip(files, settings):
        for key in default.keys() - CHANGES_NOTHING:
            if asked[key] not in (None, then[key]):
                raise ValueError(
                    f'{key}={asked[key]}: {file} was recorded with {then[key]}; leave --{key} out'
                )
            if then[key] != made[key]:
                raise ValueError(
                    f'policy={policy}: {file} was recorded with {key}={then[key]}, {files[0]} with '
                    f'{made[key]}: replay them one by one'
                )
    return made


def _known(metadata: Settings, default: Settings) -> Settings:
    return {key: value for key, value in metadata.items() if key in default}


# -----------------------------------------------------------------------------
# Who drives


def driver(
    world: World,
    kind: str,
    kicks: float = 0.0,
    files: dict[str, dict[int, Path]] | None = None,
    checkpoint: Callable[[dict[str, Any]], Start] | None = None,
    server: Callable[[dict[str, Any]], Start] | None = None,
    network: Callable[..., Start] | None = None,
    infer: Callable | None = None,
) -> Start:
    """Make who drives in a world.

    Args:
        world: The world to be driven in.
        kind: What `resolve` says, or 'coached'.
        kicks: Of the expert: probability per step that a disturbance starts.
        files: Of a replay: by task, the file of each seed.
        checkpoint: Loads a trained model, given World.metadata(); functools.partial of
            vla.policy.checkpoint. It comes by argument because nothing in sim/ imports torch.
        server: Connects to a policy server, given World.metadata(); functools.partial of `remote`.
        network: In the place of `checkpoint` where one network answers several worlds, given
            World.metadata() and `infer`; functools.partial of `shared`.
        infer: Asks that network.
    """
    if kind == 'expert':
        return expert(world, kicks)
    if kind == 'replay':
        assert files is not None, 'a replay needs the files of its seeds'
        return replay(world, files[world.task])
    if kind in ('checkpoint', 'coached'):
        if network is not None:
            student = network(world.metadata(), infer=infer)
        else:
            assert checkpoint is not None, 'somebody has to load the checkpoint'
            student = checkpoint(world.metadata())
        return coached(world, student) if kind == 'coached' else student
    if kind == 'remote':
        assert server is not None, 'somebody has to know the address'
        return server(world.metadata())
    return constant(kind)


def constant(kind: str) -> Start:
    """Drive without looking.

    Args:
        kind: 'hold' repeats the command in force; 'zero' sets all slots to zero; 'random' makes a
            new command every 5 steps, anywhere within the bounds, with the hands more often low
            than high: they hit the table, the bricks and each other.
    """
    is_height = np.isin(TOOL_ACTION_NAMES, ('left/tool_z', 'right/tool_z'))

    def start(seed: int) -> Act:
        rng = np.random.default_rng(seed)
        n_steps = 0
        drawn = TOOL_LOW

        def act(obs: dict[str, Any]) -> Choice:
            nonlocal n_steps, drawn
            if n_steps % 5 == 0:
                share = rng.uniform(size=len(TOOL_LOW))
                share = np.where(is_height, share**3, share)
                drawn = TOOL_LOW + (TOOL_HIGH - TOOL_LOW) * share
            n_steps += 1
            command = drawn
            if kind == 'hold':
                command = obs['tool_command'].astype(float)
            elif kind == 'zero':
                command = np.zeros(len(TOOL_LOW))
            executed = command.astype(np.float32)
            return dict(executed=executed, action=command, kicked=False, subtask='')

        return act

    return start


def expert(world: World, probability: float) -> Start:
    """Let the scripted expert drive, disturbed with this probability per step."""

    def start(seed: int) -> Act:
        teacher = Builder() if world.plan_file else Expert()
        disturbance = Kicks(seed, probability=probability)

        def act(obs: dict[str, Any]) -> Choice:
            action, info = teacher.act(world.truth())
            executed, kicked = disturbance.apply(world.truth(), action, info)
            return dict(executed=executed, action=action, kicked=kicked, subtask=info['subtask'])

        return act

    return start


def replay(world: World, files: dict[int, Path]) -> Start:
    """Execute what the world got when an episode was recorded, and compare the physics with then.

    Args:
        world: Made with the settings of the recording, but for the cameras.
        files: The episode file of each seed.
    """

    def start(seed: int) -> Act:
        episode, header = read_episode(files[seed])
        row = 0

        def act(obs: dict[str, Any]) -> Choice | None:
            nonlocal row
            if row == len(episode['time']):
                return None
            off = np.abs(world.data.qpos - episode['qpos'][row])
            choice = dict(
                executed=episode['tool_executed'][row],
                action=episode['tool_action'][row],
                kicked=bool(episode['kicked'][row]),
                subtask=header['subtasks'][episode['subtask_id'][row]],
                difference=float(off.max()),
            )
            row += 1
            return choice

        return act

    return start


def coached(world: World, student: Start) -> Start:
    """Let a checkpoint drive and the expert say what it would do, which is the label.

    This is DAgger (Ross et al. 2011). The expert also takes the wheel now and then: else episodes
    do not get past where the student is stuck. Where the student has left a brick that is not
    pressed on, the label is to stay gone while the expert goes back: no picture from up there
    tells, and taught to go back a student did so after every success.
    """

    def start(seed: int) -> Act:
        rng = np.random.default_rng([104_729, seed])
        choose = student(seed)
        driving = True
        expert_of = Builder if world.plan_file else Expert
        teacher = expert_of(trusting=True)
        rescuer = expert_of()

        def act(obs: dict[str, Any]) -> Choice:
            nonlocal driving, choose
            change = 0.05 if driving else 0.12  # 20 steps of the student, 8 of the expert
            if rng.random() < change:
                driving = not driving
                choose = student(seed)  # rows of a chunk made before the expert took over are void
            action, info = teacher.act(world.truth())
            executed = action
            if driving:
                choice = choose(obs)
                assert choice is not None, 'a student always has an answer'
                executed = choice['executed']
            rescue, _ = rescuer.act(world.truth())
            left = not np.array_equal(rescue, action)
            if left:
                executed = rescue
            return dict(
                executed=executed,
                action=action,
                kicked=driving or left,
                subtask=info['subtask'],
            )

        return act

    return start


def remote(address: str, world: Settings, execute: int = 1, delay: int = 0) -> Start:
    """Ask a policy server for chunks of actions, execute a part of each and look again.

    A request holds state (S,), see episode.STATE, images {camera: (h, w, 3) uint8}, prompt, the
    commands in force tool_command (15,) and joint_command (17,), gripper_m (2,), which close and
    open a hand, and with a delay action_prefix (delay, A). vla.policy.answers is the other end.

    Args:
        address: 'ws://host:port'.
        world: World.metadata().
        execute: Rows of a chunk that are executed before the next one is asked for.
        delay: Rows of the chunk in force that are still executed while the next one is made. They
            take the place of that one's first rows, whether or not the server has been told so.
    """
    client = wire.Client(address)
    _check_server(address, client.metadata, world)
    return _ask_for_chunks(client.infer, address, world, execute, delay)


def shared(
    world: Settings,
    infer: Callable[[dict[str, Any]], dict[str, Any]],
    folder: str,
    execute: int = 1,
    delay: int = 0,
) -> Start:
    """Ask the one network of a checkpoint that answers the worlds of several processes.

    Args:
        world: World.metadata().
        infer: Gives the reply to a request, see workers.ask.
        folder: The checkpoint.
        execute: See `remote`, as for delay.
        delay: See `remote`.
    """
    unchecked = True

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal unchecked
        if unchecked:  # whether this world fits is looked at with the first request
            request = request | {'world': world}
            unchecked = False
        return infer(request)

    return _ask_for_chunks(ask, folder, world, execute, delay)


def _ask_for_chunks(
    infer: Callable[[dict[str, Any]], dict[str, Any]],
    whom: str,
    world: Settings,
    execute: int,
    delay: int,
) -> Start:
    """Ask somebody for chunks, see `remote`; `whom` is for messages."""
    gripper_m = np.array(world['gripper_m'])

    def start(seed: int) -> Act:
        pending: list[np.ndarray] = []  # absolute rows of the chunk in force, not yet executed
        subtask = ''

        def next_rows(obs: dict[str, Any]) -> np.ndarray:
            nonlocal subtask
            request = dict(
                state=state_vector(obs),
                images={
                    name.removeprefix('image/'): value
                    for name, value in obs.items()
                    if name.startswith('image/')
                },
                prompt=obs['instruction'],
                tool_command=obs['tool_command'],
                joint_command=obs['joint_command'],
                gripper_m=gripper_m,
            )
            if pending:
                request['action_prefix'] = np.array(pending)
            reply = infer(request)
            rows = reply['actions']
            if execute + len(pending) > len(rows):  # the first chunk has no rows before it
                raise ValueError(
                    f'execute={execute}, delay={delay}: the chunks of {whom} have {len(rows)} rows'
                )
            subtask = str(reply.get('subtask', ''))  # only our server says
            return rows[len(pending) : execute + delay]

        def act(obs: dict[str, Any]) -> Choice:
            choice: Choice = {}
            if len(pending) <= delay:
                began = time.perf_counter()
                pending.extend(next_rows(obs))
                choice['chunk_ms'] = (time.perf_counter() - began) * 1e3
            action = pending.pop(0)
            return dict(choice, executed=action, action=action, kicked=False, subtask=subtask)

        return act

    return start


def _check_server(address: str, told: Settings, world: Settings) -> None:
    """Raise ValueError where a server says that it expects another world."""
    space = world['action_space']
    here = {
        'control_hz': world['control_hz'],
        'action_space': space,
        'action_names': list(world[f'{space}_action_names']),
    }
    for name, value in here.items():
        if name in told and told[name] != value:
            raise ValueError(f'{name}: the policy at {address} has {told[name]}, the world {value}')
    missing = [name for name in told.get('cameras', ()) if name not in world['cameras']]
    if missing:
        raise ValueError(
            f'cameras: the policy at {address} needs {missing[0]}, the world has '
            f'{", ".join(world["cameras"]) or "none"}'
        )
