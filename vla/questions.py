"""Questions with checkable answers: the words, for facts that the simulator has recorded
(sim/labels.py).

    for kind, text, answer in questions.at(header, arrays, row, rng): ...
Files recorded before hold no spans; of them the kinds `done` and `now` can still be asked.
"""

import numpy as np

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
# How often each kind is asked in training, where it can be: more what is hard to tell or can seldom
# be asked. All alike, 166,000 questions left `cell` at 45 % right and `now` at 88 %, five other
# kinds at 99 %.
SHARES = dict.fromkeys(TEMPLATES, 1) | {'cell': 8, 'part': 8, 'now': 4, 'near': 2}
NEEDS_TASK = ('arm', 'done', 'now')  # of the instruction: it comes before the question


def at(header, arrays, row, rng):
    """All that can be asked in a row: [(kind, question, answer)], each in one of its wordings."""
    found = [tuple(fact) for *fact, first, end in header['qa'] if first <= row < end]
    found.append(('done', '', 'yes' if arrays['goal'][row] else 'no'))
    found.append(('now', '', header['subtasks'][arrays['subtask_id'][row]]))
    asked = []
    for kind, subject, answer in found:
        words = TEMPLATES[kind][rng.integers(len(TEMPLATES[kind]))].format(x=subject)
        asked.append(
            (kind, f'{header["instruction"]} : {words}' if kind in NEEDS_TASK else words, answer)
        )
    return asked


def scores(asked, said, known):
    """Share of right answers by kind. asked: [(kind, question, answer)]; said: {name: answers to
    them}; known: other questions with answers, of which the majority is taken, of a kind, and of a
    question where it is among them.
    -> {kind: {'n', 'majority', 'majority per question', and every name of said}}
    """

    def majority(pairs):
        counts = {}
        for key, answer in pairs:
            counts.setdefault(key, {}).setdefault(answer, []).append(1)
        return {
            key: max(sorted(answers), key=lambda a: len(answers[a]))
            for key, answers in counts.items()
        }

    of_kind = majority((kind, answer) for kind, _, answer in known)
    of_question = majority((question, answer) for _, question, answer in known)
    guesses = {
        'majority': [of_kind.get(kind) for kind, _, _ in asked],
        'majority per question': [
            of_question[q] if q in of_question else of_kind.get(kind) for kind, q, _ in asked
        ],
    }
    table = {}
    for kind in sorted({kind for kind, _, _ in asked}):
        mine = [i for i, (k, _, _) in enumerate(asked) if k == kind]
        table[kind] = {
            'n': len(mine),
            **{
                name: float(np.mean([answers[i] == asked[i][2] for i in mine]))
                for name, answers in {**guesses, **said}.items()
            },
        }
    return table
