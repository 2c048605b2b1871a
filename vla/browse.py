"""What is in a folder of episodes: counts and spreads, contact sheets; links and packed copies.

These are the commands of data.py. They ask files for nothing but CORE (see episode.py).
"""

import collections
import filecmp
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from episode import (
    ACTIONS,
    Arrays,
    Header,
    Slot,
    Table,
    read_episode,
    slot_tables,
    tables_of,
    write_episode,
)

# -----------------------------------------------------------------------------
# folders
MOST_TEXTS = 10  # Instructions that are listed, the commonest ones.


def link_episodes(parts: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Give episodes a second name in folders, after that of their own folder; or none of them.

    The same seed may be in several folders. Names are hard links, copies across file systems. What
    is there already with the same content stays, so that the command can be repeated.

    Args:
        parts: By folder the episodes that go there.

    Returns:
        By folder how many they are.

    Raises:
        ValueError: A folder holds other episodes, or a name is taken; nothing is linked.
    """
    names = {folder: _names_in(folder, paths) for folder, paths in parts.items()}
    for folder, targets in names.items():
        os.makedirs(folder, exist_ok=True)
        for to, path in targets.items():
            if os.path.lexists(to):
                continue
            tmp = f'{to}.{os.getpid()}.tmp'  # a kill leaves no half copy under a name that counts
            try:
                os.link(os.path.realpath(path), tmp)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, tmp)
            os.replace(tmp, to)
    return {folder: len(targets) for folder, targets in names.items()}


def _names_in(folder: str, paths: Iterable[str]) -> dict[str, str]:
    """{name in the folder: the episode that gets it}; ValueError where one cannot."""
    targets: dict[str, str] = {}
    for path in paths:
        at, name = os.path.split(os.path.abspath(path))
        to = f'{folder}/{os.path.basename(at)}_{name}'
        if to in targets:
            raise ValueError(f'{path} and {targets[to]} would both be {to}: rename one folder')
        if os.path.lexists(to) and not _same(path, to):
            raise ValueError(f'{to} is there already and is not {path}: take another folder')
        targets[to] = path
    there = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    for name in there:
        if name.endswith('.safetensors') and f'{folder}/{name}' not in targets:
            raise ValueError(
                f'{folder} holds {name}, which is none of these episodes: remove the folder, or '
                'write to one that is not there yet (merge names it first)'
            )
    return targets


def _same(a: str, b: str) -> bool:
    """Whether two files are one, or hold the same bytes."""
    if not os.path.isfile(b):
        return False
    return os.path.samefile(a, b) or filecmp.cmp(a, b, shallow=False)


def pack_episodes(paths: Iterable[str], folder: str, quality: int) -> tuple[int, int]:
    """Copies with jpeg pictures of a quality from 1 to 95.

    Returns:
        Bytes before and after.
    """
    before = 0
    after = 0
    for path in paths:
        to = f'{folder}/{os.path.basename(path)}'
        write_episode(to, *read_episode(path), jpeg=quality)
        before += os.path.getsize(path)
        after += os.path.getsize(to)
    return before, after


# -----------------------------------------------------------------------------
# for eyes


def print_stats(paths: Sequence[str]) -> None:
    """Print counts, instructions, and a line per slot: mean, spread and range over all rows.

    Files are looked at one by one: a mapped file is an open file, and many systems allow 1,024.
    """
    rows = 0
    kicked = 0
    successes = 0
    texts: collections.Counter = collections.Counter()
    tables = tables_of(paths)
    sums: dict[str, list] = {}
    for path in paths:
        arrays, header = read_episode(path)
        if slot_tables(header) != tables:
            raise ValueError(f'{path} has other slots than {paths[0]}: look at them one by one')
        rows += len(arrays['time'])
        successes += bool(header['success'])
        texts[header['instruction']] += 1
        if 'kicked' in arrays:
            kicked += int(arrays['kicked'].sum(dtype=int))
        for name in tables.keys() & arrays.keys():
            v = arrays[name].astype(np.float64)
            sums.setdefault(name, []).append((v.sum(0), (v**2).sum(0), v.min(0), v.max(0)))
    print(
        f'{len(paths)} episodes, {successes} successful, {rows} rows, '
        f'{rows / len(paths):.1f} per episode, {kicked} kicked, '
        f'{sum(map(os.path.getsize, paths)) / 1e9:.2f} GB'
    )
    commonest = sorted(sorted(texts), key=texts.__getitem__, reverse=True)
    print(*(f'{texts[text]:6d} x {text}' for text in commonest[:MOST_TEXTS]), sep='\n')
    if len(texts) > MOST_TEXTS:
        print(f'{"":6}   and {len(texts) - MOST_TEXTS} other instructions')
    for name, table in tables.items():
        if name in sums:
            _print_slots(name, table, sums[name], rows)


def _print_slots(name: str, table: Table, sums: list, rows: int) -> None:
    """sums: by episode the sum, the sum of squares, the least and the most of each slot."""
    total, square, low, high = (np.stack(part) for part in zip(*sums))  # (episodes, slots)
    mean = total.sum(0) / rows
    std = np.sqrt(np.maximum(square.sum(0) / rows - mean**2, 0))
    print(f'\n{name:32s}{"unit":>6s}{"mean":>10s}{"std":>10s}{"min":>10s}{"max":>10s}')
    for slot, *numbers in zip(table, mean, std, low.min(0), high.max(0)):
        dead = '  below its floor' if numbers[1] < slot.floor else ''
        print(f'{slot.name:32s}{slot.unit:>6s}' + ''.join(f'{x:10.4f}' for x in numbers) + dead)


def draw_episode(path: str, out: str) -> None:
    """Contact sheet (a row per camera, 12 moments) over plots of labels and commands in force."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    arrays, header = read_episode(path)
    time = arrays['time']
    cameras = list(header['cameras'])
    name = next(name for name in ACTIONS if name in arrays)
    groups = slot_groups(slot_tables(header)[name])
    n = len(cameras)
    height = 1.6 * n + 2.25 * len(groups)
    figure, axes = plt.subplots(
        n + len(groups), 1, figsize=(18, height), constrained_layout=True, squeeze=False
    )
    axes = axes[:, 0]
    for axis, camera in zip(axes, cameras):
        moments = np.linspace(0, len(time) - 1, 12).astype(int)
        axis.imshow(np.concatenate([arrays[f'image/{camera}'][t] for t in moments], 1))
        axis.set(ylabel=camera, xticks=[], yticks=[])
    for axis, (title, columns) in zip(axes[n:], groups.items()):
        _draw_slots(axis, arrays, header, name, columns)
        axis.set_ylabel(title)
        axis.legend(loc='upper right', ncols=4, fontsize=7)
    if 'subtask_id' in arrays:
        for t in np.flatnonzero(np.diff(arrays['subtask_id'], prepend=-1)):
            words = header['subtasks'][arrays['subtask_id'][t]]
            at = (time[t], axes[n].get_ylim()[0])
            axes[n].annotate(words, at, rotation=90, fontsize=7, va='bottom')
    axes[-1].set_xlabel(f'time (s). Lines: {name}; dotted: command in force; grey: kicked')
    outcome = 'success' if header['success'] else 'failure'
    figure.suptitle(
        f'{path}\n{header["task"]} seed {header["seed"]}: {header["instruction"]} ({outcome})'
    )
    figure.savefig(out, dpi=70)
    plt.close(figure)


def slot_groups(table: Sequence[Slot]) -> dict[str, list[int]]:
    """Columns of the slots that belong on one plot: of one kind and one unit."""
    groups: dict[str, list[int]] = {}
    for i, slot in enumerate(table):
        title = f'{slot.kind} ({slot.unit})' if slot.unit else slot.kind
        groups.setdefault(title, []).append(i)
    return groups


def _draw_slots(axis: Any, arrays: Arrays, header: Header, name: str, columns: list[int]) -> None:
    """Curves of some slots of an action, and of the commands in force where the state has them."""
    time = arrays['time']
    state_names = header['state_slots']
    for i in columns:
        slot = header[f'{name}_slots'][i]
        (line,) = axis.plot(time, arrays[name][:, i], label=slot)
        if f'command/{slot}' in state_names:
            in_force = arrays['state'][:, state_names.index(f'command/{slot}')]
            axis.plot(time, in_force, ':', color=line.get_color())
    if 'kicked' in arrays:
        for t in np.flatnonzero(arrays['kicked']):
            axis.axvline(time[t], color='0.8', zorder=0)
