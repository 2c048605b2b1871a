"""What a policy loses where the world is another one: a table of scores on the same seeds.

    for name, settings in conditions(chunks=True).items(): ...     # settings of sim_rollout.py
    row = compare('light', results, clean)                         # paired with the clean score
    for row in rows: print(line(row))                              # under HEAD
    draw(Path('out/x/robustness.png'), 'out/x', rows)

The first condition, 'clean', is the world without randomisation; every other one changes one thing
of it, but for 'all', which draws every kind of sim/randomise.py at its full range.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sim.film import wilson
from sim.randomise import KINDS

Settings = dict[str, Any]
Result = dict[str, Any]  # a line of rollouts.jsonl
Outcomes = dict[tuple[str, int], bool]  # Whether episodes succeeded, by task and seed.
Row = dict[str, Any]

CLEAN = 'clean'
DELAYS = (1, 2, 3, 4, 5)  # control steps
EXECUTED = (2, 4)  # rows of a chunk; one row is clean
HEAD = (
    f'{"condition":14}{"success":>14}{"95% CI":>9}{"points off clean":>24}'
    f'{"lost":>6}{"gained":>8}{"minutes":>9}'
)


def conditions(chunks: bool) -> dict[str, Settings]:
    """All conditions, in the order of the table, by name: settings of sim_rollout.py.

    Args:
        chunks: Whether the policy answers with chunks, which may come late or be executed in part.
    """
    named: dict[str, Settings] = {CLEAN: {}}
    for kind in KINDS:
        named[kind] = dict(randomise=1.0, randomise_only=kind)
    named['all'] = dict(randomise=1.0)
    if chunks:
        named |= {f'delay_{steps}': dict(delay=steps) for steps in DELAYS}
        named |= {f'execute_{rows}': dict(execute=rows) for rows in EXECUTED}
    named['distractors_2'] = dict(distractors=2)
    named['held_out'] = dict(wording='held_out')
    usual = dict(randomise=0.0, randomise_only='')
    return {name: usual | settings for name, settings in named.items()}


def chosen(names: str, chunks: bool) -> dict[str, Settings]:
    """The conditions of these names, separated by commas, and 'clean'; of '' all of them.

    Raises:
        ValueError: There is no condition of such a name.
    """
    known = conditions(chunks)
    asked = names.split(',') if names else list(known)
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(f'rows={names}: no row {unknown[0]!r}; expected some of {",".join(known)}')
    return {name: how for name, how in known.items() if name in asked or name == CLEAN}


def outcomes(results: Sequence[Result]) -> Outcomes:
    """Who has succeeded, by task and seed."""
    return {(row['made_with']['task'], row['seed']): row['success'] for row in results}


def difference(now: Outcomes, clean: Outcomes) -> dict[str, Any]:
    """How much less often it succeeds than clean on the seeds that both have.

    Returns:
        points: Difference of the rates, in points. low, high: Its interval of 95 % for paired
        samples (Agresti and Min 2005: Wald's, with half a pair added to each cell). lost, gained:
        Number of seeds that succeed clean only, and now only.
    """
    shared = now.keys() & clean.keys()
    lost = sum(clean[key] and not now[key] for key in shared)
    gained = sum(now[key] and not clean[key] for key in shared)
    n = len(shared)
    middle = (gained - lost) / (n + 2)
    spread = np.sqrt((gained + lost + 1) / (n + 2) - middle**2) / np.sqrt(n + 2)
    return dict(
        points=100 * (gained - lost) / n,
        low=100 * max(-1.0, middle - 1.96 * spread),
        high=100 * min(1.0, middle + 1.96 * spread),
        lost=lost,
        gained=gained,
    )


def compare(name: str, settings: Settings, results: Sequence[Result], clean: Outcomes) -> Row:
    """A row of the table.

    Args:
        name: Of the condition.
        settings: What it sets.
        results: Of its episodes.
        clean: Outcomes of the clean ones.
    """
    now = outcomes(results)
    k = sum(now.values())
    n = len(now)
    low, high = wilson(k, n)
    return dict(
        condition=name,
        settings=settings,
        k=k,
        n=n,
        success=k / n,
        low=float(low),
        high=float(high),
        off_clean=difference(now, clean),
        # Minutes of all workers: their sum stays right where a score was interrupted.
        minutes=sum(row['wall_s'] for row in results) / 60,
        refused='',
    )


def refused(name: str, settings: Settings, why: str) -> Row:
    """The row of a condition that this policy or task does not know."""
    return dict(condition=name, settings=settings, refused=why)


def line(row: Row) -> str:
    """A row in words, under HEAD."""
    if row['refused']:
        return f'{row["condition"]:14}  {row["refused"]}'
    score = f'{row["k"]}/{row["n"]} {100 * row["success"]:5.1f}%'
    interval = f'{100 * row["low"]:.0f}-{100 * row["high"]:.0f}'
    off = row['off_clean']
    points = ''
    pairs = f'{"":>6}{"":>8}'
    if row['condition'] != CLEAN:
        points = f'{off["points"]:+.1f} ({off["low"]:+.0f} to {off["high"]:+.0f})'
        pairs = f'{off["lost"]:>6}{off["gained"]:>8}'
    return f'{row["condition"]:14}{score:>14}{interval:>9}{points:>24}{pairs}{row["minutes"]:>9.1f}'


def draw(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Draw the success of every condition as a bar with its interval."""
    from matplotlib.figure import Figure  # here, because recording does without it

    shown = [row for row in rows if not row['refused']]
    names = [row['condition'] for row in shown]
    success = np.array([row['success'] for row in shown])
    whiskers = [success - [row['low'] for row in shown], [row['high'] for row in shown] - success]
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(shown)), layout='constrained')
    axes = figure.subplots()
    axes.barh(names, success, xerr=np.maximum(whiskers, 0), ecolor='grey', capsize=2)
    axes.axvline(success[0], color='black', linewidth=0.8, linestyle='--')
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel('success, with 95% interval; dashed: clean')
    axes.set_title(title)
    figure.savefig(path, dpi=100)
