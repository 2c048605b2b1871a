"""Folders of the Hugging Face Hub in the place of paths, and the cards that folders carry there.

    folder = fetch('ckpt', 'user/demo@v1', 'model')     # a local path is returned as it is
    write_card('out/demo')                              # README.md of a checkpoint or of episodes

A name is looked for on this machine first. What is not there and reads user/name[@revision], or
datasets/user/name[@revision] where a model would be meant, is fetched into the cache of
huggingface_hub (HF_HOME; with HF_HUB_OFFLINE=1 what is in it counts, and nobody is asked). Only
the kinds of files that our readers open are fetched: safetensors, JSON and text; none is run.
"""

import json
import os
import re
from collections import defaultdict
from typing import Any

from episode import ACTIONS, Header, episode_paths, read_episode, slot_tables, write_atomic

_ID = re.compile(r'(datasets/)?[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?')
OURS = ('out', 'episodes')  # folders that a run makes: what is missing there was never made
# By kind of repository what is fetched: of a checkpoint or a published model nothing below the
# root, where optimizers and other programs' formats lie.
FILES = {
    'model': ['*.safetensors', '*.json', 'merges.txt', '*.jinja', '*.md', 'LICENSE*'],
    'dataset': ['*.safetensors', '*.md', 'meta/info.json'],
    'lerobot': ['*.md', 'meta/*.json', 'meta/*.parquet', 'data/*.parquet', 'videos/*.mp4'],
}
DATASETS = 'datasets/'
MARK = '<!-- Written by VLA-LEGO, anew after each run; without this line it stays as it is. -->'


def is_id(name: str) -> bool:
    """Whether a name means a repository of the Hub: there is nothing like it on this machine."""
    first = name.partition('/')[0]
    is_here = os.path.exists(name) or os.path.isdir(first) or first in OURS
    return bool(_ID.fullmatch(name)) and not is_here


def fetch(setting: str, name: str, kind: str, quiet: bool = False) -> str:
    """The local folder that a name means.

    Args:
        setting: What the user calls it, for messages.
        name: A path, or user/name[@revision] of the Hub.
        kind: 'model', 'dataset' or 'lerobot', a data set of LeRobot's, see FILES.
        quiet: The other processes of a run do not say it again.

    Returns:
        The name itself where it is no id of the Hub.

    Raises:
        ValueError: It cannot be had.
    """
    if not is_id(name):
        return name
    from huggingface_hub import constants, snapshot_download  # here, because it takes a second

    if name.startswith(DATASETS):
        kind = 'dataset'
    repository, _, revision = name.removeprefix(DATASETS).partition('@')
    try:
        folder = snapshot_download(
            repository,
            repo_type='model' if kind == 'model' else 'dataset',
            revision=revision or None,
            allow_patterns=FILES[kind],
            ignore_patterns=['*/*'] if kind == 'model' else None,
        )
    except (OSError, ValueError) as fault:  # huggingface_hub raises these.
        said = f'{type(fault).__name__}: {str(fault).strip().partition(chr(10))[0]}'
        raise ValueError(
            f'{setting}={name}: there is no such folder, and {constants.ENDPOINT} gives none '
            f'(cache: {constants.HF_HUB_CACHE}): {said}'
        ) from None
    if not quiet:
        print(f'{setting}={name}: {folder}')
    if kind == 'dataset' and os.path.exists(f'{folder}/meta/info.json'):
        to = f'episodes/{repository.rpartition("/")[2]}'
        raise ValueError(
            f'{setting}={name} is a data set of LeRobot: python data.py from_lerobot {name} {to}'
        )
    return folder


def fetch_all(setting: str, names: str, quiet: bool = False) -> str:
    """Folders of episodes, several separated by commas, see `fetch`."""
    return ','.join(fetch(setting, name, 'dataset', quiet) for name in names.split(','))


def home(name: str) -> str:
    """Where results about a folder go: into it, and for one of the Hub into out/<user>--<name>."""
    return f'out/{name.replace("/", "--")}' if is_id(name) else name


# -----------------------------------------------------------------------------
# cards


def upload_line(folder: str, kind: str) -> str:
    """The command that brings a folder to the Hub, without what only this machine needs.

    Args:
        folder: A checkpoint or episodes.
        kind: 'model' or 'dataset'.
    """
    name = os.path.basename(os.path.abspath(folder))
    of_kind = ' --type dataset' if kind == 'dataset' else ''
    return f'hf upload <you>/{name} {folder} .{of_kind} --exclude "*/*"'


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [head, ['---'] * len(head), *rows]
    return ['| ' + ' | '.join(map(str, line)) + ' |' for line in lines]


def _front(kind: str, tags: list[str]) -> list[str]:
    """The lines that the Hub reads."""
    lines = ['---', f'tags: [{", ".join(tags)}]']
    lines += ['library_name: vla-lego', 'pipeline_tag: robotics'] if kind == 'model' else []
    lines += ['task_categories: [robotics]'] if kind == 'dataset' else []
    return [*lines, '---', MARK]


def _slot_lines(name: str, names: list[str], units: list[str]) -> list[str]:
    shown = [f'`{slot}` {unit}'.strip() for slot, unit in zip(names, units)]
    return [f'**{name}**, {len(names)} slots: {", ".join(shown)}', '']


def checkpoint_card(folder: str, command: str = '') -> str:
    """The text of a checkpoint's card, from the files of its folder.

    Args:
        folder: Written by train.py; scores of sim_rollout.py are taken from its rollout/.
        command: That has made it; '': as it says itself.
    """
    with open(f'{folder}/meta.json', encoding='utf-8') as f:
        meta = json.load(f)
    made = meta['processor']
    settings = meta['settings']
    name = os.path.basename(os.path.abspath(folder))
    tasks = meta['tasks'] if 'tasks' in meta else []
    lines = [*_front('model', ['robotics', 'vla-lego']), f'# {name}', '']
    lines += [f'A vision-language-action policy of VLA-LEGO for: {", ".join(tasks) or "?"}.', '']
    lines += ['```bash', f'python sim_rollout.py --ckpt=<you>/{name} --episodes=20', '```', '']
    lines += _score_lines(f'{folder}/rollout/scores.json')
    lines += [
        f'Trained for {meta["step"]} steps by code {meta["git_rev"]} on `{settings["episodes"]}`:'
    ]
    lines += ['```bash', command or meta.get('command', 'python train.py'), '```', '']
    size = made['image_size']
    lines += [f'**Cameras**: {", ".join(made["cameras"])}, {size} x {size} px', '']
    lines += [f'**Rate**: {made["control_hz"]} Hz, chunks of {made["horizon"]} actions', '']
    for key in ('state', 'action'):
        table = made[f'{key}_table'] if f'{key}_table' in made else None
        units = dict(zip(table['names'], table['units'])) if table else {}
        slots = made[f'{key}_slots']
        lines += _slot_lines(key.title(), slots, [units.get(slot, '') for slot in slots])
    return '\n'.join(lines)


def _score_lines(path: str) -> list[str]:
    """The table of the last score, [] where there is none."""
    if not os.path.exists(path):
        return ['Not scored yet.', '']
    with open(path, encoding='utf-8') as f:
        scores = json.load(f)

    def cell(score: dict[str, Any] | None) -> str:
        if not score:
            return ''
        low, high = round(100 * score['low']), round(100 * score['high'])
        return f'{score["k"]}/{score["n"]} ({100 * score["success"]:.0f} %, 95 % CI {low}-{high})'

    rows = [
        [task, cell(both.get('score')), cell(both.get('blanked'))]
        for task, both in scores['tasks'].items()
    ]
    return [*_table(['task', 'success', 'instruction blanked'], rows), '']


def episodes_card(folder: str, command: str = '') -> str:
    """The text of the card of a folder of episodes, from their headers.

    Args:
        folder: Of episode files.
        command: That has made it; '': it is not known.
    """
    paths = episode_paths(folder)
    rows: dict[str, int] = defaultdict(int)
    episodes: dict[str, list[Header]] = defaultdict(list)
    for path in paths:
        arrays, header = read_episode(path)
        rows[header['task']] += len(arrays['time'])
        episodes[header['task']].append(header)
    name = os.path.basename(os.path.abspath(folder))
    lines = [*_front('dataset', ['robotics', 'vla-lego']), f'# {name}', '']
    lines += ['Episodes of VLA-LEGO: one safetensors file each, see its episode.py.', '']
    lines += ['```bash', f'python data.py stats <you>/{name}', '```', '']
    counted = [
        [task, len(headers), rows[task], sum(header['success'] for header in headers)]
        for task, headers in episodes.items()
    ]
    lines += [*_table(['task', 'episodes', 'rows', 'successful'], counted), '']
    revisions = sorted({h['git_rev'] for of in episodes.values() for h in of if 'git_rev' in h})
    if command:
        lines += ['Made with:', '```bash', command, '```', '']
    if revisions:
        lines += [f'Code: {", ".join(revisions)}', '']
    shown = ', '.join(
        f'{camera} {size["width"]} x {size["height"]} px'
        for camera, size in header['cameras'].items()
    )
    lines += [f'**Cameras**: {shown or "none"}', '', f'**Rate**: {header["control_hz"]:g} Hz', '']
    for key, table in slot_tables(header).items():
        if key == 'state' or key in ACTIONS and key in arrays:
            lines += _slot_lines(key, [s.name for s in table], [s.unit for s in table])
    return '\n'.join(lines)


def write_card(folder: str, kind: str, command: str = '') -> None:
    """Write README.md of a folder, unless somebody else has written one.

    Args:
        folder: A checkpoint, or episodes.
        kind: 'model' or 'dataset'.
        command: That has made it.
    """
    path = f'{folder}/README.md'
    if os.path.exists(path):
        with open(path, encoding='utf-8') as f:
            if MARK not in f.read():
                return
    card = checkpoint_card if kind == 'model' else episodes_card
    write_atomic(path, card(folder, command).encode())
