"""Who drives: the expert, the expert and a checkpoint (vla/policy.py), a recording, or nobody.

    start = policies.expert(world, probability=.1)
    act = start(seed)                  # once per episode
    choice = act(obs)                  # None when there is nothing left to do, else a dict of
        executed (15,) float32, what the world gets; action (15,) float32, the label: the expert's
        clean
        answer; kicked, bool; subtask, str; of a new chunk: chunk_ms; of a replay: difference, the
        largest
        |qpos - recorded qpos|
Actions are absolute tool actions in the torso frame (episode.TOOL_ACTION: m, rad).
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from episode import TOOL_ACTION_NAMES, read_episode
from sim.builder import Builder
from sim.expert import Expert
from sim.kicks import Kicks
from sim.world import TOOL_HIGH, TOOL_LOW


# -- who is meant --------------------------------------------------------------------------------------------
def resolve(policy, default):
    """-> kind, {file: header} of a replay, world settings that a checkpoint was made with; default:
    all settings of the world.
    """
    if policy in ('expert', 'hold', 'zero', 'random'):
        return policy, {}, {}
    path = Path(policy)
    headers = {}
    if (path / 'meta.json').exists():
        try:
            meta = json.loads((path / 'meta.json').read_text())
            made = meta.get('world', {}) | meta['processor']
        except (ValueError, KeyError, TypeError) as fault:
            raise ValueError(
                f'policy={policy}: its meta.json is none of train.py: {fault!r}'
            ) from None
        if 'task' not in made:  # trained on made-up episodes
            print(
                f'{policy} does not say which task it was trained on: the default, unless --task is given'
            )
        return 'checkpoint', {}, {k: made[k] for k in default if k in made}
    for file in [path] if path.is_file() else sorted(path.glob('*.safetensors')):
        try:
            headers[file] = header = read_episode(file)[1]
            if 'task' not in header['world']:
                raise ValueError('it was made up, not recorded')
        except (ValueError, OSError) as fault:
            raise ValueError(
                f'policy={policy}: {file} is no episode to replay, remove it or record it '
                f'again: {fault}'
            ) from None
    if not headers:
        raise ValueError(
            f'policy={policy}: neither expert, hold, zero or random, nor a checkpoint folder '
            '(meta.json), nor an episode (*.safetensors) or a folder of them'
        )
    return 'replay', headers, {}


def choose_replay(policy, headers, c, default, seeds=None):
    """-> {seed: file} of the episodes to replay, the world settings that all of them were recorded
    with.

    headers   {file: header} of all that are there
    c         settings as asked for, None where nothing is: of the world, and task, seed0, episodes
    seeds     to choose from; None: all
    """
    task = c['task'] or next(iter(headers.values()))['task']
    of_task = {h['seed']: file for file, h in headers.items() if h['task'] == task}
    if not of_task:
        there = ', '.join(sorted({h['task'] for h in headers.values()}))
        raise ValueError(f'task={task}: {policy} holds episodes of {there} only; leave --task out')
    chosen = sorted(
        seed for seed in of_task if seed >= (c['seed0'] or 0) and (seeds is None or seed in seeds)
    )[: c['episodes']]
    if not chosen:
        raise ValueError(
            f'policy={policy}: none of its seeds ({min(of_task)}-{max(of_task)}) is among those '
            'asked for; change --seeds or --seed0'
        )
    if len(chosen) < len(headers):
        others = sorted({h['task'] for h in headers.values()} - {task})
        print(
            f'{policy}: {len(chosen)} of {len(headers)} episodes are replayed; left out: '
            f'{len(of_task) - len(chosen)} that --seeds, --seed0, --episodes do not ask for, '
            f'{len(headers) - len(of_task)} of other tasks ({", ".join(others) or "none"})'
        )
    made = {}
    first = of_task[chosen[0]]
    for file in map(of_task.get, chosen):
        then = default | {k: v for k, v in headers[file]['world'].items() if k in default}
        made = made or then
        for key in default.keys() - {'cameras', 'image_size'}:  # which do not change what happens
            if c[key] not in (None, then[key]):
                raise ValueError(
                    f'{key}={c[key]}: {file} was recorded with {then[key]}; leave --{key} out'
                )
            if then[key] != made[key]:
                raise ValueError(
                    f'policy={policy}: {file} was recorded with {key}={then[key]}, {first} with '
                    f'{made[key]}: replay them one by one'
                )
    return {seed: of_task[seed] for seed in chosen}, made


def fingerprint(files):
    """Text that changes with what is in the files."""
    digests = hashlib.sha256()
    for file in sorted(map(str, files)):
        with open(file, 'rb') as f:
            digests.update(hashlib.file_digest(f, 'sha256').digest())
    return digests.hexdigest()[:16]


# -- who drives ----------------------------------------------------------------------------------------------
def constant(kind):
    """hold: the command in force; zero: all slots zero; random: every 5 steps a new command,
    anywhere within the bounds, the hands more often low than high: they hit the table, the bricks
    and each other.
    """
    low = np.isin(TOOL_ACTION_NAMES, ('left/tool_z', 'right/tool_z'))

    def start(seed):
        rng = np.random.default_rng(seed)
        t = 0
        drawn = None

        def act(obs):
            nonlocal t, drawn
            if t % 5 == 0:
                share = rng.uniform(size=15)
                drawn = TOOL_LOW + (TOOL_HIGH - TOOL_LOW) * np.where(low, share**3, share)
            t += 1
            command = dict(hold=obs['tool_command'].astype(float), zero=np.zeros(15), random=drawn)[
                kind
            ]
            return dict(
                executed=command.astype(np.float32), action=command, kicked=False, subtask=''
            )

        return act

    return start


def expert(world, probability):
    """The scripted teacher; probability per step that a disturbance starts."""

    def start(seed):
        teacher = Builder() if world.plan_file else Expert()
        disturbance = Kicks(seed, probability=probability)

        def act(obs):
            action, info = teacher.act(world)
            executed, kicked = disturbance.apply(world, action, info)
            return dict(executed=executed, action=action, kicked=kicked, subtask=info['subtask'])

        return act

    return start


def replay(world, files):
    """Executes what the world got when the episode was recorded, and compares the physics with
    then. files: {seed: path}.
    """

    def start(seed):
        episode, header = read_episode(files[seed])
        rows = iter(range(len(episode['time'])))
        texts = header['subtasks']

        def act(obs):
            if (t := next(rows, None)) is None:
                return None
            return dict(
                executed=episode['tool_executed'][t],
                action=episode['tool_action'][t],
                kicked=bool(episode['kicked'][t]),
                subtask=texts[episode['subtask_id'][t]],
                difference=float(np.abs(world.data.qpos - episode['qpos'][t]).max()),
            )

        return act

    return start


def coached(world, student):
    """DAgger (Ross et al. 2011): a checkpoint drives, the expert says what it would do, which is
    the label. The expert also takes the wheel now and then: else episodes do not get past where the
    student is stuck. Where the student has left a brick that is not pressed on, the label is to
    stay gone while the expert goes back: no picture from up there tells, and taught to go back a
    student did so after every success.
    """

    def start(seed):
        rng = np.random.default_rng([104_729, seed])
        choose = student(seed)
        driving = True
        teacher = Expert(trusting=True)
        rescuer = Expert()

        def act(obs):
            nonlocal driving
            driving ^= rng.random() < (
                0.05 if driving else 0.12
            )  # 20 steps of the student, 8 of the expert
            action, info = teacher.act(world)
            executed = choose(obs)['executed'] if driving else action
            rescue = rescuer.act(world)[0]
            left = not np.array_equal(rescue, action)
            return dict(
                executed=rescue if left else executed,
                action=action,
                kicked=driving or left,
                subtask=info['subtask'],
            )

        return act

    return start
