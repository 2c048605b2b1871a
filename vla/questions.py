"""Questions with checkable answers, in words, about facts that the simulator has recorded.

    for kind, text, answer in questions.at(header, arrays, row, rng): ...
sim/labels.py records the facts, as spans of rows in which an answer holds. Of files that hold no
spans the kinds `done` and `now` can still be asked.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from episode import Arrays, Header

TEMPLATES = {  # several wordings each; {x} is the subject
    'where': ('where is the {x} brick ?', 'where is {x} ?', 'in which place is the {x} brick ?'),
    'cell': ('on which corner is the {x} brick ?', 'which corner is {x} pressed onto ?'),
    'part': ('on which part of the brick below is {x} ?', 'how does {x} sit on the brick below ?'),
    'left': ('which brick is further left ?', 'what lies on the left ?'),
    'near': ('which brick is nearer ?', 'what lies in front ?'),
    'hand': ('which hand holds the {x} brick ?', 'in which hand is {x} ?'),
    'arm': ('which hand has to press ?', 'which hand is it for ?'),
    'joined': ('what is the {x} brick joined to ?', 'what does {x} sit on ?'),
    'count': ('how many bricks are pressed on ?', 'how many bricks sit on something ?'),
    'wrong': ('what went wrong ?', 'did something go wrong ?'),
    'done': ('is it done ?', 'is the task finished ?'),
    'now': ('what now ?', 'what is to be done now ?', 'next ?'),
}
# Kinds are asked in training in these shares, where they can be asked: what is hard to tell or can
# seldom be asked gets more. All alike, 166,000 questions left `cell` at 45 % right and `now` at
# 88 %, five other kinds at 99 %.
SHARES = dict.fromkeys(TEMPLATES, 1) | {'cell': 8, 'part': 8, 'now': 4, 'near': 2}
# The answer depends on the instruction, which therefore comes before the question. A semicolon
# divides them, because that is the one mark that instructions.plain leaves.
NEEDS_TASK = ('arm', 'done', 'now')

Asked = tuple[str, str, str]  # kind, question, answer


def at(header: Header, arrays: Arrays, row: int, rng: np.random.Generator) -> list[Asked]:
    """All that can be asked in a row: [(kind, question, answer)], each in one of its wordings.

    Args:
        header: Of the episode: its qa, subtasks and instruction.
        arrays: Of the episode: goal and subtask_id, a value per row.
        row: Counts from the episode's first.
        rng: Chooses the wordings.
    """
    found = [tuple(fact) for *fact, first, end in header['qa'] if first <= row < end]
    found.append(('done', '', 'yes' if arrays['goal'][row] else 'no'))
    found.append(('now', '', header['subtasks'][arrays['subtask_id'][row]]))
    asked = []
    for kind, subject, answer in found:
        wordings = TEMPLATES[kind]
        question = wordings[rng.integers(len(wordings))].format(x=subject)
        if kind in NEEDS_TASK:
            question = f'{header["instruction"]} ; {question}'
        asked.append((kind, question, answer))
    return asked


def scores(
    asked: Sequence[Asked], said: dict[str, Sequence[str]], known: Iterable[Asked]
) -> dict[str, dict[str, Any]]:
    """Shares of right answers by kind, beside those of guessing without eyes.

    Args:
        asked: Questions with the right answers.
        said: {name: answers to them}.
        known: Other questions with answers: the majority of them is what a guess says, of a kind,
            and of the very question where it is among them.

    Returns:
        {kind: {'n', 'majority', 'majority per question', and every name of said}}.
    """
    known = list(known)
    of_kind = _majority((kind, answer) for kind, _, answer in known)
    of_question = _majority((question, answer) for _, question, answer in known)
    guesses: dict[str, list[str | None]] = {'majority': [], 'majority per question': []}
    for kind, question, _ in asked:
        guess = of_kind.get(kind)
        guesses['majority'].append(guess)
        guesses['majority per question'].append(of_question.get(question, guess))
    table: dict[str, dict[str, Any]] = {}
    for kind in sorted({kind for kind, _, _ in asked}):
        mine = [i for i, (its_kind, _, _) in enumerate(asked) if its_kind == kind]
        table[kind] = {'n': len(mine)}
        for name, answers in {**guesses, **said}.items():
            hits = [answers[i] == asked[i][2] for i in mine]
            table[kind][name] = float(np.mean(hits))
    return table


def _majority(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """[(key, answer)] -> {key: its most frequent answer}; of equals the first by alphabet."""
    counts: dict[str, dict[str, int]] = {}
    for key, answer in pairs:
        of_key = counts.setdefault(key, {})
        of_key[answer] = of_key.get(answer, 0) + 1
    return {key: max(sorted(of_key), key=of_key.__getitem__) for key, of_key in counts.items()}
