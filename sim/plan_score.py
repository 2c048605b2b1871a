r"""Scores of many plans: a table per folder with intervals, as WorkBenchMark's tiers are reported.

rows = [plan_score.row(world, file, seed, result), ...]
print('\n'.join(plan_score.table(rows)))
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sim.film import wilson
from sim.plan import built_parts, judge, read_plan
from sim.world import World

SECONDS_PER_HOUR = 3600


def plan_files(folder: str | Path) -> list[Path]:
    """The plans in a folder and below it, sorted.

    Raises:
        ValueError: there is none.
    """
    kinds = '.yaml', '.yml', '.json'
    files = sorted(path for path in Path(folder).rglob('*') if path.suffix in kinds)
    if not files:
        raise ValueError(f'plan={folder}: expected plans (*.yaml, *.json) in it or below it')
    return files


def refused(file: Path, seed: int, reason: str) -> dict:
    """The row of a plan that no one tried to build, and why."""
    return dict(_start(file, seed), refused=reason)


def row(world: World, file: Path, seed: int, result: dict) -> dict:
    """The row of an episode that has just ended in `world`.

    result: what sim_rollout.run_episode returns. Block accuracy and success follow the judge of
    plan.py; of a structure that is taken apart they are the share of its bricks that lie on the
    table by themselves, and whether all do. `held` is the world's own, stricter verdict: every
    planned link holds for a second, or none is left, and the hand has left.
    """
    structure = read_plan(file)
    accuracy, success = judge(structure, built_parts(structure, world.connections()))
    truth = world.truth()
    if truth.plan.apart:
        taken_off = {goal.upper: truth.taken_off(goal) for goal in truth.plan.chain}
        accuracy = sum(taken_off.values()) / len(taken_off)
        success = all(taken_off.values())
    metrics = result['metrics']
    return dict(
        _start(file, seed),
        bricks=len(structure.parts),
        success=success,
        held=result['success'],
        block_accuracy=accuracy,
        robot_s=result['steps'] / world.control_hz,
        broken=metrics['broken'],
        drops=metrics['drops'],
        fault=result['fault'],
        wall_s=result['wall_s'],
    )


def read_rows(path: Path, made_of: dict[str, dict]) -> dict[tuple[str, int], dict]:
    """The rows of a log by file and seed, of those that were made as `made_of` has it by file.

    A line that a kill has cut off is one plan to build again.
    """
    rows: dict[tuple[str, int], dict] = {}
    if not path.exists():
        return rows
    for line in path.read_text('utf-8', errors='replace').splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if one['made_with'] == made_of.get(one['file']):
            rows[one['file'], one['seed']] = one
    return rows


def _start(file, seed):
    return dict(
        file=str(file), tier=file.parent.name, seed=seed, refused=None, bricks=None, success=False,
        held=False, block_accuracy=0.0, robot_s=None, broken=0, drops=0, fault=None, wall_s=None,
    )  # fmt: skip


def table(rows: Iterable[dict]) -> list[str]:
    """Lines: a header, and one for each folder (tier) of the plans."""
    tiers: dict[str, list[dict]] = {}
    for one in rows:
        tiers.setdefault(one['tier'], []).append(one)
    lines = [
        'tier            built                         block acc.  s/task  tasks/h  broken  refused'
    ]
    for tier, of_tier in sorted(tiers.items()):
        n = len(of_tier)
        built = [r for r in of_tier if r['success']]
        low, high = wilson(len(built), n)
        accuracy = np.mean([r['block_accuracy'] for r in of_tier])
        seconds = np.mean([r['robot_s'] for r in built]) if built else float('nan')
        interval = f'95% CI {100 * low:.0f}-{100 * high:.0f}'
        share = f'{len(built)}/{n} ({100 * len(built) / n:.0f}%, {interval})'
        broken = sum(r['broken'] for r in of_tier)
        declined = sum(r['refused'] is not None for r in of_tier)
        lines.append(
            f'{tier:<15s} {share:<29s} {accuracy:>10.3f} {seconds:>7.1f} '
            f'{SECONDS_PER_HOUR / seconds:>8.0f} {broken:>7d} {declined:>8d}'
        )
    return lines
