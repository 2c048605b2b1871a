"""What an episode asks for, as data without words, and thousands of ways to say it.

    frame = {'task': 'place', 'upper': {'colour': 'red', 'by': ['colour']},
             'corner': 'near left', 'turn': 'lengthwise', 'hand': 'left'}
    draw(rng, frame)                   # 'Could you put the red block lengthwise on the near ...'
    plain('Put the RED 2 by 4 on it.') # 'put the red 2x4 on it': what the tokenizer reads
    impossible(rng, frame, colours)    # asks for what the scene has not: the hands stay still
    held_out(frame, 7)                 # people's wordings that the grammar cannot make

A *goal frame* is plain JSON. Worlds put one per askable goal into an episode's header. Training
draws the words anew whenever a sample is read; a rollout draws them once, from its seed. The keys:

    key      values                                              tasks
    task     place stack handover join separate unplug bridge build; impossible
    upper    BRICK that is moved                                 all but build, impossible
    lower    BRICK below it                                      stack join separate
    corner   'near left' 'near right' 'far left' 'far right'     place
    turn     'lengthwise' 'crosswise'                            place
    where    'lined up' 'across' 'near end' 'far end' 'middle'   stack
    half     'left' 'right' 'near' 'far', of hand's plate        handover
    end      'near' 'far' 'left' 'right', of the lower brick     join
    first    colour of the tower that the brick is pressed on    bridge
    second   colour of the tower that the holder steadies        bridge
    steps    [STEP], in the order of work                        build
    of       a frame of the scene that is not what is asked for  impossible
    colours  [colour] of all bricks that lie there               impossible
    scene    the world's task, 'mixed' where there are several   impossible
    hand     'left' 'right': presses or pulls                    all but build, impossible
    holder   the hand that holds lower, plate or second tower    join separate unplug bridge
    giver    the hand that fetches                               handover
    tell     optional list of what else tells two goals of the scene apart, and so is always said:
             'hands' (which hand holds or presses; said now and then without that), 'towers' (there
             are more than two of them: "both towers" is not said)

    BRICK    {'colour': 'red', 'by': ['colour', 'side'], 'side': 'left', 'studs': '2x4'}
             colour    red blue yellow white orange green black
             by        the properties of which each alone names the brick in this scene; always has
                       'colour'
             studs     optional: '2x4'; said beside the colour, and alone where it is in `by`
             length    optional: 'small' 'long', the same
             side      optional: 'left' 'right' 'middle', where the brick lies at the start
    STEP     {'upper': colour, 'on': PLACE, 'crosswise': bool}
    PLACE    {'plate': 'left' or 'right', 'half': 'left' 'right' 'near' or 'far'} or
             {'brick': colour}

Left, right, near and far are the robot's. The words are in assets/instructions_grammar.txt, which
says how its rules are read.
"""

import copy
import functools
import pathlib
import random
import re
import string
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from episode import COLOURS

Frame = dict[str, Any]
# Alternatives: each is a row of words, '{rules}' and further alternatives.
Options = tuple[tuple[Any, ...], ...]
Rules = dict[str, Options]

ASSETS = pathlib.Path(__file__).resolve().parent / 'assets'
ASK_BACK = 'ask: which brick?'  # said with still hands to what cannot be done; experts, policies
SIDES = ('left', 'right')
ENDS = ('near', 'far', 'left', 'right')
# People know these colours, too. No brick has them, so they name what is not there.
OTHER_COLOURS = ('purple', 'pink', 'brown', 'grey', 'turquoise')
SIZES = ('1x2', '1x4', '2x2', '2x3', '2x4', '2x6', '2x8', '2x10', '2x12')
KEYS = {  # Keys of each task's frame.
    'place': ('upper', 'corner', 'turn', 'hand'),
    'stack': ('upper', 'lower', 'where', 'hand'),
    'handover': ('upper', 'half', 'giver', 'hand'),
    'join': ('upper', 'lower', 'end', 'holder', 'hand'),
    'separate': ('upper', 'lower', 'holder', 'hand'),
    'unplug': ('upper', 'holder', 'hand'),
    'bridge': ('upper', 'first', 'second', 'holder', 'hand'),
    'build': ('steps',),
    'impossible': ('of', 'colours', 'scene'),
}
VALUES = {  # Values that a frame's keys may have.
    'corner': ('near left', 'near right', 'far left', 'far right'),
    'turn': ('lengthwise', 'crosswise'),
    'where': ('lined up', 'across', 'near end', 'far end', 'middle'),
    'half': ENDS,
    'end': ENDS,
    'hand': SIDES,
    'holder': SIDES,
    'giver': SIDES,
    'first': COLOURS + OTHER_COLOURS,
    'second': COLOURS + OTHER_COLOURS,
}
BRICK_VALUES = {
    'colour': COLOURS + OTHER_COLOURS,
    'studs': SIZES,
    'length': ('small', 'long'),
    'side': (*SIDES, 'middle'),
}
STEP_VALUES = {'upper': COLOURS + OTHER_COLOURS}
PLACE_VALUES = {'plate': SIDES, 'half': ENDS, 'brick': COLOURS + OTHER_COLOURS}
TELL = ('hands', 'towers')


# -----------------------------------------------------------------------------
# goal frames


def check(frame: Frame) -> None:
    """Says what is wrong with a goal frame.

    Raises:
        ValueError: a key is missing, or has a value that is not in the table on top of this file.
    """
    task = frame.get('task')
    if task not in KEYS:
        raise ValueError(f'goal frame: task {task!r}, expected one of {", ".join(KEYS)}')
    where = f'goal frame of {task}'
    missing = [key for key in KEYS[task] if key not in frame]
    if missing:
        raise ValueError(f'{where}: no {", ".join(missing)}; expected {", ".join(KEYS[task])}')
    if task == 'impossible':
        check(frame['of'])
        if frame['scene'] not in CANNOT:
            known = ', '.join(CANNOT)
            raise ValueError(f'{where}: scene {frame["scene"]!r}, expected one of {known}')
    _check_values(where, frame, VALUES)
    for value in frame.get('tell', ()):
        if value not in TELL:
            raise ValueError(f'{where}: tell has {value!r}, expected some of {", ".join(TELL)}')
    for key in ('upper', 'lower'):
        if key in frame:
            _check_brick(f'{where}, {key}', frame[key])
    for number, step in enumerate(frame.get('steps', ()), 1):
        _check_values(f'{where}, step {number}', step, STEP_VALUES)
        _check_values(f'{where}, step {number}', step['on'], PLACE_VALUES)


def _check_values(where: str, given: dict[str, Any], known: Mapping[str, Collection[str]]) -> None:
    """Raises ValueError where one of the known keys has another value."""
    for key, values in known.items():
        if key in given and given[key] not in values:
            raise ValueError(f'{where}: {key} {given[key]!r}, expected one of {", ".join(values)}')


def _check_brick(where: str, brick: dict[str, Any]) -> None:
    """Raises ValueError for a BRICK that cannot be named."""
    _check_values(where, brick, BRICK_VALUES)
    if 'colour' not in brick['by']:
        raise ValueError(f"{where}: by {brick['by']!r}, expected 'colour' to be among them")
    for key in brick['by']:
        if key not in brick:
            raise ValueError(f'{where}: by has {key!r}, but the brick gives no {key}')


# -----------------------------------------------------------------------------
# from rules to words


def _sections(name: str) -> dict[str, list[str]]:
    """A file of assets/ as the lines of its [sections]."""
    found: dict[str, list[str]] = {}
    for line in (ASSETS / name).read_text(encoding='utf-8').splitlines():
        line = line.strip()
        header = re.fullmatch(r'\[([^\]|]+)\]', line)
        if header:
            section = found.setdefault(header[1], [])
        elif line and not line.startswith('#'):
            section.append(line)
    return found


@functools.cache
def _texts() -> dict[str, str]:
    """The rules of the grammar, as they are written."""
    sections = _sections('instructions_grammar.txt')
    return {name: '|'.join(lines) for name, lines in sections.items()}


@functools.cache
def _grammar() -> Rules:
    """The rules of the grammar, ready to be drawn from; those of sizes are added."""
    rules = {name: _compiled(text) for name, text in _texts().items()}
    return rules | {size: _compiled(_size_words(size)) for size in SIZES}


@functools.cache
def _compiled(text: str) -> Options:
    """A rule's text as nested alternatives."""
    return _alternatives(iter(re.findall(r'\{[^}]*\}|\*\d+|[()\[\]|]|[^{}()\[\]|*]+', text)))


def _alternatives(tokens: Iterator[str]) -> Options:
    """Reads tokens up to the bracket that closes, or to the end."""
    found: list[tuple[Any, ...]] = []
    parts: list[Any] = []
    times = 1
    for token in tokens:
        if token in ')]':
            break
        if token == '|':
            found += [tuple(parts)] * times
            parts = []
            times = 1
        elif token == '(':
            parts.append(_alternatives(tokens))
        elif token == '[':
            parts.append(((_alternatives(tokens),), ()))
        elif token[0] == '*':
            times = int(token[1:])
        else:
            parts.append(token)
    found += [tuple(parts)] * times
    return tuple(found)


# These rules may give letters that mean nothing: the rest of the sentence still says what is asked.
FREE = ('{put}', '{take}', '{goes}', '{softly}', '{do}')
FREE_SHARE = 0.3


def _say(options: Options, rules: Rules, dice: random.Random, unknown: bool) -> str:
    """One of the alternatives, drawn all the way down to words."""
    said = []
    for part in options[int(dice.random() * len(options))]:
        if isinstance(part, tuple):
            said.append(_say(part, rules, dice, unknown))
        elif part[0] != '{':
            said.append(part)
        elif unknown and part in FREE and dice.random() < FREE_SHARE:
            said.append(_nonsense(dice))
        else:
            said.append(_say(rules[part[1:-1]], rules, dice, unknown))
    return ''.join(said)


def _nonsense(dice: random.Random) -> str:
    """Two to eight letters that are no word of the grammar."""
    while True:
        length = 2 + int(dice.random() * 7)
        word = ''.join(string.ascii_lowercase[int(dice.random() * 26)] for _ in range(length))
        if word not in vocabulary():
            return word


# -----------------------------------------------------------------------------
# from a frame to the rules that say its parts


def _rules(frame: Frame) -> Rules:
    """The grammar, with rules for the parts of a frame."""
    task = frame['task']
    grammar = _grammar()
    rules = dict(grammar)
    for key in ('upper', 'lower'):
        if key in frame:
            rules |= _brick_rules(key, frame[key])
    for key in ('hand', 'holder', 'giver', 'first', 'second', 'half', 'end', 'turn', 'where'):
        if key in frame:
            rules[key] = grammar[frame[key]]
    if task == 'place':
        row, column = frame['corner'].split()
        rules['row'] = grammar[row]
        rules['column'] = grammar[column]
        rules['nearest'] = grammar['near you' if row == 'near' else 'far from you']
    elif task == 'stack':
        kind = 'turned' if frame['where'] in ('lined up', 'across') else 'part'
        rules['below'] = grammar[f'below {kind}']
        rules['stack more'] = grammar[f'stack {kind}']
        if kind == 'part':
            rules['part of'] = grammar[f'part {frame["where"]}']
    elif task == 'bridge':
        pair_only = 'towers' in frame.get('tell', ())
        rules['towers'] = grammar['tower pair' if pair_only else 'two towers']
    return rules


def _brick_rules(key: str, brick: dict[str, Any]) -> Rules:
    """Rules for a BRICK and its properties. Half of its names or more go by the colour."""
    by = brick['by']
    with_colour = ['brick by colour']
    with_colour += [f'brick by colour and {part}' for part in ('studs', 'length') if part in brick]
    others = [f'brick by {part}' for part in ('studs', 'length') if part in by]
    if 'length' in by and brick['length'] == 'small' and brick.get('studs') == '2x2':
        others.append('brick by square')
    if 'side' in by:
        others.append('brick by middle' if brick['side'] == 'middle' else 'brick by side')
    by_colour = _either(with_colour)
    text = '|'.join([by_colour] * (1 + len(others)) + [_either([name]) for name in others])
    rules = {key: _compiled(text.replace('@', f'{key} '))}
    for part in BRICK_VALUES:
        if part in brick:
            rules[f'{key} {part}'] = _grammar()[brick[part]]
    return rules


def _either(names: list[str]) -> str:
    """A text for one of several rules."""
    return '(' + '|'.join(_texts()[name] for name in names) + ')'


def _size_words(size: str) -> str:
    """The rule for a size such as 2x4."""
    a, b = size.split('x')
    ways = [f'{size} *3', f'{a} x {b}', f'{a}-by-{b}', f'{a} by {b}']
    if a in NUMBER_WORDS and b in NUMBER_WORDS:
        ways.append(f'{NUMBER_WORDS[a]} by {NUMBER_WORDS[b]}')
    return '|'.join(ways)


# -----------------------------------------------------------------------------
# plans

# What stands before the first step of a plan, before the others, before the last; # is the number.
# Semicolons and new lines divide steps also in what the tokenizer reads.
JOINTS = (
    ('', ', ', ', '),
    ('', ', ', ' and '),
    ('', '; ', '; '),
    ('', '; ', '; '),
    ('', '\n', '\n'),
    ('', '. ', '. '),
    ('', ', then ', ', then '),
    ('', '; then ', '; finally '),
    ('', '. then ', '. finally '),
    ('', ' and then ', ' and then '),
    ('', '. next ', '. last '),
    ('', '. after that ', '. after that '),
    ('first ', ', then ', ', then '),
    ('first ', ', then ', ' and finally '),
    ('first ', '. next ', '. finally '),
    ('first ', '; then ', '; last '),
    ('#. ', ' #. ', ' #. '),
    ('#. ', '\n#. ', '\n#. '),
    ('#) ', '; #) ', '; #) '),
    ('#: ', ', #: ', ', #: '),
    ('step #: ', '; step #: ', '; step #: '),
    ('step # ', '. step # ', '. step # '),
)


def _plan(frame: Frame, dice: random.Random, unknown: bool) -> str:
    """A `build` frame as one text: its steps in their order, in one style."""
    grammar = _grammar()
    joints = JOINTS[int(dice.random() * len(JOINTS))]
    style = ('step named', 'step put', 'step goes')[int(dice.random() * 3)]
    name = 'step brick terse' if dice.random() < 0.5 else 'step brick'
    text = _say(_before_plan(joints[0], style, dice), grammar, dice, unknown) + ' '
    last = len(frame['steps'])
    previous = None
    for number, step in enumerate(frame['steps'], 1):
        if number == 1:
            joint = joints[0]
        else:
            joint = joints[2] if number == last else joints[1]
        form = style
        if style == 'step put' and number > 1 and dice.random() < 0.4:
            form = 'step named'
        rules = grammar | _step_rules(step, name, previous, dice)
        text += joint.replace('#', str(number)) + _say(rules[form], rules, dice, unknown)
        previous = step['upper']
    return text


def _before_plan(joint: str, style: str, dice: random.Random) -> Options:
    """What comes before the steps."""
    kind = dice.random()
    if kind < 0.3:
        return _compiled('')
    if '#' in joint or kind < 0.6:
        return _compiled('{plan}')
    if style == 'step put':
        return _compiled('{do}')
    if style == 'step named' and not joint:
        return _compiled('{plan named}')
    return _compiled('{plan}')


def _step_rules(
    step: dict[str, Any], name: str, previous: str | None, dice: random.Random
) -> Rules:
    """Rules for the parts of one step.

    Args:
        step: STEP.
        name: the rule by which the plan calls its bricks.
        previous: colour of the brick that was laid last.
        dice: draws whether the brick below is called "it".
    """
    grammar = _grammar()
    on = step['on']
    rules = {'upper': _compiled(_texts()[name].replace('@colour', step['upper']))}
    if 'plate' in on:
        rules['step place'] = grammar['step on plate']
        rules['side'] = grammar[on['plate']]
        rules['half'] = grammar[on['half']]
    elif on['brick'] == previous and dice.random() < 0.2:
        rules['step place'] = grammar['step on it']
    else:
        rules['step place'] = grammar['step on brick']
        rules['lower'] = _compiled(_texts()[name].replace('@colour', on['brick']))
    rules['step'] = rules['step place']
    if step['crosswise']:
        rules['step'] = grammar['step turned']
    elif 'brick' in on and dice.random() < 0.1:
        rules['step'] = grammar['step straight']
    return rules


# -----------------------------------------------------------------------------
# drawing

HANDS_SHARE = 0.25  # So many instructions say the hands where they need not.
TERSE_SHARE = 0.15  # So many have no "the".
ENDING_SHARE = 0.08  # So many end in "please" or the like.
UNKNOWN_SHARE = 0.35  # So many of those for training have letters that mean nothing.
DROP_SHARE = 0.3  # So many of those for training lose small words.
QUESTION = re.compile(r'(hey |robot, |ok, |okay, |so |alex, )*(can|could|would|will) you ')


def draw(rng: np.random.Generator, frame: Frame, noise: bool = False) -> str:
    """One of thousands of ways to ask for a frame's goal.

    Args:
        rng: one number is taken from it.
        frame: the table on top of this file has the keys.
        noise: for training. About half of the texts then lose small words (articles, "please") or
            have letters that mean nothing put in, some of them in place of a verb, so that a word
            which the policy has never met changes little. They come as `plain` would leave them.
    """
    seed = int(rng.integers(1 << 62))
    task = frame['task']
    if task == 'impossible':
        own = np.random.default_rng(seed)
        return impossible(own, frame['of'], frame['colours'], noise, frame['scene'])
    dice = random.Random(seed)
    unknown = noise and dice.random() < UNKNOWN_SHARE
    if task == 'build':
        text = _plan(frame, dice, unknown)
    else:
        hands = 'hands' in frame.get('tell', ()) or dice.random() < HANDS_SHARE
        rules = _rules(frame)
        text = _say(rules[f'{task} hands' if hands else task], rules, dice, unknown)
    if dice.random() < ENDING_SHARE:
        text += ' ' + _say(_grammar()['ending'], _grammar(), dice, False)
    if noise:
        return _disturbed(text, unknown, dice)
    return _dressed(text, dice)


def _dressed(text: str, dice: random.Random) -> str:
    """Spaces put right, and what people do with articles, capitals and full stops."""
    text = re.sub(r'[^\S\n]+', ' ', text).strip()
    text = re.sub(r' +([,.;:])', r'\1', text)
    text = re.sub(r'([,.;:])( ?[,;:])+', r'\1', text)
    text = re.sub(r' ?\n ?', '\n', text)
    if dice.random() < TERSE_SHARE:
        text = re.sub(r'\bthe ', '', text)
    if QUESTION.match(text) and '. ' not in text:
        text += ('?', '?', '?', '')[int(dice.random() * 4)]
    else:
        text += ('', '', '.', '.', '.', '!')[int(dice.random() * 6)]
    capitals = dice.random()
    if capitals < 0.03:
        return text.upper()
    if capitals < 0.5:
        return text
    text = re.sub(r'\bi\b', 'I', text)
    return re.sub(r'(^|[.?!] |\n)([a-z])', lambda found: found[0].upper(), text)


# Without these a sentence still says what it said.
SMALL_WORDS = frozenset('the a it of to please you your is and now so'.split())


def _disturbed(text: str, unknown: bool, dice: random.Random) -> str:
    """A text for training: plain, with small words dropped and letters that mean nothing put in."""
    words = plain(text).split()
    if dice.random() < DROP_SHARE:
        words = [word for word in words if word not in SMALL_WORDS or dice.random() < 0.6]
    if unknown:
        for _ in range(1 + int(dice.random() * 3)):
            words.insert(int(dice.random() * (len(words) + 1)), _nonsense(dice))
    return ' '.join(words)


# -----------------------------------------------------------------------------
# what the tokenizer reads

NUMBER_WORDS = {
    '2': 'two',
    '3': 'three',
    '4': 'four',
    '6': 'six',
    '8': 'eight',
    '10': 'ten',
    '12': 'twelve',
}
DIGITS = {word: digits for digits, word in NUMBER_WORDS.items()}
_NUMBER = '|'.join([r'\d+', *DIGITS])
SIZE = re.compile(rf'\b({_NUMBER}) ?(?:x|×|[- ]by[- ]) ?({_NUMBER})\b')


def plain(text: str) -> str:
    """The text that the tokenizer reads: spelling that means nothing is gone.

    Lower case, one space between words, no punctuation, and one form for sizes: 2x4, 2 x 4, 2-by-4
    and two by four are the same. A semicolon or a new line inside the text stays, as ' ; ': it
    divides the steps of a plan.
    """
    text = re.sub("['’`]", '', text.lower())
    text = SIZE.sub(_size_in_digits, text)
    words = re.findall(r'[^\W_]+|[;\n]', text)
    line = ' '.join(words).replace('\n', ';')
    return re.sub(r';( ;)+', ';', line).strip(' ;')


def _size_in_digits(found: re.Match) -> str:
    """2x4, whatever the spelling."""
    return 'x'.join(DIGITS.get(number, number) for number in found.groups())


@functools.cache
def vocabulary() -> frozenset[str]:
    """Every word that the grammar can say, as `plain` spells it. A size such as 2x4 is one."""
    texts = [*_texts().values(), *(text for joints in JOINTS for text in joints)]
    words = {*SIZES, *(str(number) for number in range(1, 10)), ';'}
    for text in texts:
        for piece in re.split(r'\{[^}]*\}|\*\d+|[()\[\]|]', text):
            words.update(plain(piece).split())
    return frozenset(words)


# -----------------------------------------------------------------------------
# what cannot be done in a scene

# Tasks whose goals cannot be had in the scenes of another, whatever the colours.
CANNOT = {
    'place': ('unplug', 'separate', 'bridge'),
    'stack': ('place', 'unplug', 'separate', 'bridge', 'handover'),
    'handover': ('unplug', 'separate', 'bridge'),
    'join': ('place', 'unplug', 'separate', 'bridge', 'handover'),
    'separate': ('place', 'unplug', 'bridge', 'handover'),
    'unplug': ('separate', 'bridge', 'handover'),
    'bridge': ('place', 'unplug', 'handover'),
    'build': ('unplug', 'separate', 'bridge'),
    'mixed': ('separate', 'bridge', 'handover'),
}


def impossible(
    rng: np.random.Generator,
    frame: Frame,
    scene_colours: Collection[str],
    noise: bool = False,
    scene: str | None = None,
) -> str:
    """An instruction that cannot be followed in a scene: the hands have to stay still.

    Six in ten ask for a brick of a colour that does not lie there, three for what another task asks
    for (unplugging where nothing is plugged, a bridge where there are no towers), one for nothing.

    Args:
        rng: draws all of it.
        frame: a goal of the scene.
        scene_colours: colours of all bricks that lie there.
        noise: as for `draw`.
        scene: the scene's task where it is not the frame's: 'mixed'.
    """
    kind = rng.random()
    if kind < 0.6:
        return draw(rng, absent(rng, frame, scene_colours), noise)
    if kind < 0.9:
        tasks = CANNOT[scene or frame['task']]
        return draw(rng, _sketch(rng, tasks[rng.integers(len(tasks))], scene_colours), noise)
    dice = random.Random(int(rng.integers(1 << 62)))
    text = _say(_grammar()['rest'], _grammar(), dice, False)
    return _disturbed(text, False, dice) if noise else _dressed(text, dice)


def absent(rng: np.random.Generator, frame: Frame, scene_colours: Collection[str]) -> Frame:
    """A frame like this one that names a brick of a colour that does not lie in the scene.

    Args:
        rng: draws which brick and which colour.
        frame: a goal of the scene. Of a plan it is the first step that names what is not there.
        scene_colours: colours of all bricks that lie there, those that nobody asks for included.
    """
    others = [colour for colour in COLOURS + OTHER_COLOURS if colour not in scene_colours]
    colour = others[rng.integers(len(others))]
    frame = copy.deepcopy(frame)
    if frame['task'] == 'build':
        steps = frame['steps']
        old = steps[0]['upper']
        steps[0]['upper'] = colour
        for step in steps:
            if step['on'].get('brick') == old:
                step['on']['brick'] = colour
        return frame
    # The lower brick is not said in every sentence of `separate`.
    keys = ['upper', 'lower'] if frame['task'] in ('stack', 'join') else ['upper']
    key = keys[rng.integers(len(keys))]
    kept = {part: frame[key][part] for part in ('studs', 'length') if part in frame[key]}
    frame[key] = kept | {'colour': colour, 'by': ['colour']}
    return frame


def _sketch(rng: np.random.Generator, task: str, colours: Collection[str]) -> Frame:
    """A frame of another task, with colours of the scene as far as they go."""
    names = [str(name) for name in rng.permutation(sorted({*colours, 'red', 'blue', 'white'}))]
    hand, other = (str(side) for side in rng.permutation(SIDES))
    frame: Frame = {'task': task}
    for key in KEYS[task]:
        if key in ('upper', 'lower'):
            frame[key] = {'colour': names.pop(), 'by': ['colour']}
        elif key in ('first', 'second'):
            frame[key] = names.pop()
        else:
            frame[key] = VALUES[key][rng.integers(len(VALUES[key]))]
    frame['hand'] = hand
    for key in ('holder', 'giver'):
        if key in frame:
            frame[key] = other
    return frame


# -----------------------------------------------------------------------------
# wordings that the grammar cannot make, for scoring only

# What stands in the slots of held-out lines for values of a frame: words that the grammar has, too.
HELD_OUT_WORDS = {
    'lengthwise': ('lengthwise', 'pointing away from you', 'lengthways'),
    'crosswise': ('crosswise', 'sideways', 'crossways'),
    'lined up': ('lined up with it', 'edges flush', 'aligned'),
    'across': ('crosswise', 'turned a quarter', 'at right angles'),
    'near end': ('at the near end', 'at the end close to you', 'on its near end'),
    'far end': ('at the far end', 'at the end away from you', 'on its far end'),
    'middle': ('in the middle', 'at its centre', 'halfway along it'),
}
HELD_OUT_JOINTS = (', ', '; ', ', then ', '. ')
SAYS_HANDS = re.compile(r'\{(hand|holder|giver)\}')
SAYS_TOWERS = re.compile(r'\{(towers|first)\}')


@functools.cache
def held_out_lines() -> dict[str, list[str]]:
    """Lines of the file of held-out wordings by section: tasks, '... hands', 'build step'."""
    return _sections('instructions_held_out.txt')


def held_out(frame: Frame, number: int) -> str:
    """A wording of a frame's goal that the grammar cannot make.

    Args:
        frame: what is asked for.
        number: which wording. After the last line of the task comes the first again, with other
            words for the frame's parts.
    """
    task = frame['task']
    if task == 'impossible':
        return held_out(_unlike(frame, number), number)
    tell = frame.get('tell', ())
    lines = held_out_lines()[task]
    if 'towers' in tell:
        lines = [line for line in lines if SAYS_TOWERS.search(line)]
    lap, index = divmod(number, len(lines))
    line = lines[index]
    variant = index + lap
    if 'hands' in tell and not SAYS_HANDS.search(line):
        clauses = held_out_lines()[f'{task} hands']
        line = f'{line.rstrip(".!?")}, {clauses[variant % len(clauses)]}'
    return line.format_map(_held_out_slots(frame, variant))


def _unlike(frame: Frame, number: int) -> Frame:
    """A goal that cannot be had where an `impossible` frame is: a brick or a task is not there."""
    rng = np.random.default_rng(number)
    if number % 3 == 0:
        tasks = CANNOT[frame['scene']]
        return _sketch(rng, tasks[rng.integers(len(tasks))], frame['colours'])
    return absent(rng, frame['of'], frame['colours'])


def _held_out_slots(frame: Frame, variant: int) -> dict[str, str]:
    """The words for the slots of a held-out line."""
    said: dict[str, str] = {}
    for key, value in frame.items():
        if key in ('upper', 'lower'):
            said[key] = _held_out_brick(value, variant)
        elif key == 'steps':
            said[key] = _held_out_steps(value, variant)
        elif key in ('turn', 'where'):
            words = HELD_OUT_WORDS[value]
            said[key] = words[variant % len(words)]
        elif key in ('first', 'second'):
            said[key] = f'{value} tower'
        elif key in VALUES:
            said[key] = value
    if 'corner' in frame:
        said['row'], said['column'] = frame['corner'].split()
    if 'second' in frame:
        said['towers'] = f'the {said["first"]} and the {said["second"]}'
    return said


def _held_out_brick(brick: dict[str, Any], variant: int) -> str:
    """A brick by one of its names, without an article."""
    colour = brick['colour']
    names = [f'{colour} brick', f'{colour} one', f'{colour} block']
    for part in ('length', 'side'):
        if part in brick['by']:
            names.append(f'{brick[part]} brick')
    return names[variant % len(names)]


def _held_out_steps(steps: list[dict[str, Any]], variant: int) -> str:
    """The steps of a plan, in one of the held-out forms."""
    forms = held_out_lines()['build step']
    form = forms[variant % len(forms)]
    said = []
    for step in steps:
        on = step['on']
        if 'plate' in on:
            place = f'the {on["half"]} half of the {on["plate"]} plate'
        else:
            place = f'the {on["brick"]} one'
        if step['crosswise']:
            place += ', crosswise'
        said.append(form.format(upper=step['upper'], lower=place))
    return HELD_OUT_JOINTS[variant // len(forms) % len(HELD_OUT_JOINTS)].join(said)
