"""The ledger of a run: rollouts.jsonl holds one line per episode, its result and how it was made.

    done = ledger.scored(path, seeds, made_with)       # {seed: result} that need not be run again
    ledger.append(path, dict(result, made_with=made_with))

Episodes of several tasks may stand in one ledger: a line is known by its task and seed.

A run that was killed goes on by it: an episode is taken over from the ledger only where it was made
with the settings, the weights and the code of now. `made_with` is a flat dict of JSON values: the
settings of World, who drove and how, and fingerprints of weights and code.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from episode import is_whole, read_episode, write_atomic
from sim.judge import PHASES

Row = dict[str, Any]
Key = tuple[str, int]  # task and seed


def episode_file(folder: str | Path, task: str, seed: int) -> Path:
    """Where the recording of an episode stands."""
    return Path(folder) / f'{task}_{seed:07d}.safetensors'


# -----------------------------------------------------------------------------
# The log


def key_of(row: Row) -> Key:
    """Return the task and the seed of a result."""
    return row['made_with']['task'], row['seed']


def read_log(path: Path) -> dict[Key, Row]:
    """Read the results of a log, by task and seed.

    A line that cannot be read, or is no result, is one episode lost: a kill or a full disk has cut
    it off, and what another writer has put behind it is lost with it. Where several lines are about
    one seed the last one counts.
    """
    if not path.exists():
        return {}
    rows = {}
    for line in path.read_text('utf-8', errors='replace').splitlines():
        row = _parse(line)
        if row is not None:
            rows[key_of(row)] = row
    return rows


def _parse(line: str) -> Row | None:
    """The result that stands in a line, None where there is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    kinds = dict(seed=int, success=bool, made_with=dict)
    details = dict(steps=int, phase_id=int, metrics=dict, instruction=str, phase=str)
    if not isinstance(row, dict) or not row.keys() >= kinds.keys():
        return None
    fits = all(type(row[key]) is kind for key, kind in (kinds | details).items() if key in row)
    return row if fits and row.get('phase_id', 0) in range(len(PHASES)) else None


def append(path: Path, row: Row) -> None:
    """Write one line in a single call to the system: tasks of a job array write into one file.

    Behind a line that was cut off it begins a new one.
    """
    with open(path, 'a+b', buffering=0) as log:
        line = json.dumps(row) + '\n'
        if log.tell():
            log.seek(-1, os.SEEK_END)
            line = line if log.read(1) == b'\n' else f'\n{line}'
        log.write(line.encode())


def share(folder: str | Path, made_with: Row) -> IO[str]:
    """Take a folder that is recorded into; several processes share it where their settings agree.

    Who comes first removes what killed writers have left. The kernel gives the folder back when a
    process ends.

    Args:
        folder: Of the recordings.
        made_with: How this process records.

    Returns:
        The open file that holds the lock.

    Raises:
        ValueError: Another process records there with other settings.
    """
    path = Path(folder) / 'recording.lock'
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    f = open(number, 'r+', encoding='utf-8')  # noqa: SIM115 -- closing it would give the lock back
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in Path(folder).glob('*.tmp'):
            left.unlink()
        f.truncate(0)
        f.write(json.dumps(made_with))
        f.flush()
        fcntl.flock(f, fcntl.LOCK_SH)
        return f
    except BlockingIOError:
        fcntl.flock(f, fcntl.LOCK_SH)  # the one who came first has written its settings
    except OSError:  # a file system that cannot lock
        return f
    differences = _differences(json.loads(f.read() or '{}'), made_with)
    if differences:
        raise ValueError(
            f'another process records into {folder} with other settings: '
            f'{", ".join(differences)}; take another folder'
        )
    return f


def _differences(then: Row, now: Row) -> list[str]:
    """Settings that differ; one that has gone since then is None now."""
    return [
        f'{key} was {value}, is {now.get(key)}'
        for key, value in then.items()
        if now.get(key) != value
    ]


def tidy(path: Path, asked: set[Key], done: dict[Key, Row]) -> int:
    """Bring the log to one line per episode, before the episodes that are missing are run.

    The lines of episodes that are run again go, and so do lines that were cut off by a kill.
    Episodes whose file was there without a line get one.

    Args:
        path: The log.
        asked: All episodes of this run.
        done: Results of these that are taken over.

    Returns:
        The number of whole lines that were dropped because their episodes are run again.
    """
    rows = read_log(path)
    text = path.read_text('utf-8', errors='replace') if path.exists() else ''
    kept = {}
    for key, row in rows.items():
        if key not in asked or done.get(key) == row:
            kept[key] = row
    ends_in_the_middle = text != '' and not text.endswith('\n')
    if len(kept) < len(text.splitlines()) or ends_in_the_middle:
        lines = [json.dumps(row) + '\n' for row in kept.values()]
        write_atomic(path, ''.join(lines).encode())
    for key in sorted(done.keys() - kept.keys()):
        append(path, done[key])
    return len(rows.keys() - kept.keys())


# -----------------------------------------------------------------------------
# What need not be run again


def scored(path: Path, seeds: Iterable[int], made_with: Row) -> dict[int, Row]:
    """Find the episodes of a score that were run in exactly this way, by seed."""
    rows = read_log(path)
    task = made_with['task']
    found = {seed: rows[task, seed] for seed in seeds if (task, seed) in rows}
    return {seed: row for seed, row in found.items() if row['made_with'] == made_with}


def with_larger(path: Path, made_with: Row, scores: dict[str, Row]) -> dict[str, Row]:
    """Scores by task, and those of a file that the same weights got on more episodes or tasks.

    A look at a few episodes does not take the place of a score.
    """
    try:
        before = json.loads(path.read_text('utf-8'))
        same = before['made_with'].get('weights') == made_with.get('weights')
        kept = {
            task: score
            for task, score in before['tasks'].items()
            if same and (task not in scores or score['score']['n'] > scores[task]['score']['n'])
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        kept = {}  # There is none, or not one of ours.
    return scores | kept


def recorded(
    path: Path, record: str | Path, task: str, seeds: Iterable[int], made_with: Row
) -> dict[int, Row]:
    """Find the episodes of an earlier recording into the same folder, by seed.

    Args:
        path: The log.
        record: Folder of the episode files.
        task: Name of the task.
        seeds: Those that are to be recorded.
        made_with: How they are to be recorded.

    Returns:
        Results of the seeds that are done: failures, and successes whose file is there. A success
        whose file was deleted is recorded again.

    Raises:
        ValueError: The folder holds episodes, of this task or another, that were made with other
            settings.
    """
    rows = read_log(path)
    known = {}
    for seed in seeds:
        file = episode_file(record, task, seed)
        key = (task, seed)
        logged = key in rows and rows[key]['success']
        there = is_whole(file)  # one that was emptied or cut off is recorded again
        if there and not logged:  # it was killed between writing the file and logging it
            rows[key] = row_of_file(file, seed, made_with)
        if key in rows and rows[key]['success'] == there:
            known[seed] = rows[key]
    for row in rows.values():
        then = {name: value for name, value in row['made_with'].items() if name != 'task'}
        differences = _differences(then, made_with)
        if differences:
            raise ValueError(
                f'{record} was made with other settings: {", ".join(differences)}; '
                'take another folder'
            )
    return known


def row_of_file(file: Path, seed: int, made_with: Row) -> Row:
    """Make the line of a recorded success from its file; the time it took is not known any more."""
    _, header = read_episode(file)
    world = {key: value for key, value in header['world'].items() if key in made_with}
    return dict(
        seed=seed,
        success=True,
        phase=PHASES[-1],
        steps=header['metrics']['steps'],
        phase_id=len(PHASES) - 1,
        fault=None,
        metrics=header['metrics'],
        instruction=header['instruction'],
        wall_s=None,
        made_with=made_with | world,
    )


# -----------------------------------------------------------------------------
# Fingerprints


def code_files(root: Path) -> list[Path]:
    """List the files of this repository that a score depends on: code of both wings, and models."""
    patterns = ('*.py', 'sim/*.py', 'vla/*.py', 'assets/**/*.xml')
    return [file for pattern in patterns for file in root.glob(pattern)]


def weight_files(folder: str | Path) -> list[Path]:
    """List the files of a checkpoint that decide how it acts."""
    return [Path(folder) / 'meta.json', *Path(folder).glob('*.safetensors')]


def fingerprint(files: Iterable[Path]) -> str:
    """Make a short text that changes with the content of the files."""
    digests = hashlib.sha256()
    for file in sorted(map(str, files)):
        with open(file, 'rb') as f:
            digests.update(hashlib.file_digest(f, 'sha256').digest())
    return digests.hexdigest()[:16]
