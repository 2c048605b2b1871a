"""JSON files of checkpoints and published models, said without torch: what they hold, and what not.

    meta = read_meta('out/demo')       # None: no checkpoint of ours
    state = read_object('out/demo/state.json', STATE)

Whoever reads a file that somebody else may have written gets one ValueError that names the file and
the field.
"""

import itertools
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any

# By field: whether it has to be there, a test, and in words what its value has to be.
Rule = tuple[bool, Callable[[Any], bool], str]
Rules = Mapping[str, Rule]

LARGEST = 200_000_000  # bytes of a JSON file; Qwen's tokenizer has 11 million


def is_whole(value: Any, low: int = 0, high: float = 2**63) -> bool:
    """Whether it is a whole number in a range."""
    return type(value) is int and low <= value <= high


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return type(value) in (int, float) and -math.inf < value < math.inf


def is_text(value: Any) -> bool:
    """Whether it is text."""
    return isinstance(value, str)


def is_object(value: Any) -> bool:
    """Whether it is a JSON object."""
    return isinstance(value, dict)


def are_texts(value: Any) -> bool:
    """Whether it is a list of texts."""
    return isinstance(value, list) and all(map(is_text, value))


def _is_table(value: Any) -> bool:
    """Whether it is names, units and kinds of as many slots."""
    keys = ('names', 'units', 'kinds')
    if not is_object(value) or not all(are_texts(value.get(key)) for key in keys):
        return False
    return len({len(value[key]) for key in keys}) == 1


def _are_weights(value: Any) -> bool:
    if value is None:
        return True
    return is_object(value) and all(isinstance(rows, list) for rows in value.values())


def _are_sums(value: Any) -> bool:
    return isinstance(value, list) and all(
        is_object(sums) and all(type(x) in (int, float) for x in sums.values()) for sums in value
    )


def _size(low: int, high: int) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: is_whole(value, low, high), f'a whole number from {low} to {high}')


_SLOTS = (lambda value: are_texts(value) and len(value) > 0, 'a list of names')
_TABLE = (_is_table, 'names, units and kinds, as many of each')
_OBJECT = (is_object, 'a JSON object')
_TEXT = (is_text, 'text')

# What Processor.to_dict writes; earlier revisions lack some of it.
PROCESSOR: Rules = {
    'cameras': (True, *_SLOTS),
    'image_size': (True, *_size(1, 16_384)),
    'state_slots': (True, *_SLOTS),
    'action_slots': (True, *_SLOTS),
    'horizon': (True, *_size(1, 10_000)),
    'control_hz': (True, lambda value: is_number(value) and value > 0, 'a number above 0'),
    'tokenizer': (True, *_TEXT),
    'tokens_per_camera': (False, *_size(1, 100_000)),
    'hide_pictures': (False, lambda value: type(value) is bool, 'true or false'),
    'action_space': (False, lambda value: value in ('tool', 'joint'), "'tool' or 'joint'"),
    'template': (False, lambda value: value in ('minimal', 'qwen'), "'minimal' or 'qwen'"),
    'log_scale_m': (False, lambda value: is_number(value) and value >= 0, 'a number, at least 0'),
    'compand': (False, lambda value: is_number(value) and value >= 0, 'a number, at least 0'),
    'pad_dims': (False, *_size(0, 100_000)),
    'plain_words': (False, lambda value: type(value) is bool, 'true or false'),
    'user_tokens': (False, *_size(0, 1_000_000)),
    'stats': (False, lambda value: value is None or is_object(value), 'an object or null'),
    'foresight': (False, _are_weights, 'lists of numbers by name, or null'),
    'stats_of': (False, lambda value: value is None or is_text(value), 'text or null'),
    'state_table': (False, *_TABLE),
    'action_table': (False, *_TABLE),
    'state_units': (False, lambda value: True, 'anything: it is not read any more'),
    'action_units': (False, lambda value: True, 'anything: it is not read any more'),
}
META: Rules = {
    'model': (True, *_OBJECT),
    'processor': (True, *_OBJECT),
    'settings': (False, *_OBJECT),
    'world': (False, *_OBJECT),
    'step': (False, *_size(0, 2**62)),
    'git_rev': (False, *_TEXT),
    'fingerprint': (False, *_TEXT),
}
STATE: Rules = {
    'step': (True, *_size(0, 2**62)),
    'folder': (True, lambda value: is_text(value) and value.isdecimal(), 'digits'),
    'settings': (True, *_OBJECT),
    'processor': (True, *_OBJECT),
    'world_size': (True, *_size(1, 1_000_000)),
    'fingerprint': (True, *_TEXT),
    'best': (True, lambda value: type(value) in (int, float) and value == value, 'a number'),
    'wandb_id': (True, lambda value: value is None or is_text(value), 'text or null'),
    'average_step': (True, *_size(0, 2**62)),
    'summed': (False, *_size(0, 2**62)),
    'sums': (False, _are_sums, 'numbers by name, of each process'),
}


def read_json(path: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no JSON object; the text names the file.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f'{path} is no regular file')  # a pipe would be waited for
    if found.st_size > LARGEST:
        raise ValueError(f'{path} has {found.st_size} bytes, at most {LARGEST} are read')
    try:
        with open(path, encoding='utf-8') as f:
            value = json.load(f)
    except PermissionError:
        raise ValueError(f'{path} cannot be read by this user: its owner has to allow it') from None
    except (ValueError, RecursionError) as fault:
        raise ValueError(f'{path} is no JSON, or cut off: {fault}') from None
    if not isinstance(value, dict):
        raise ValueError(f'{path} holds {type(value).__name__}, expected a JSON object')
    return value


def check_fields(where: str, values: Mapping[str, Any], rules: Rules) -> None:
    """Raise one ValueError for all fields that are missing or hold what they cannot.

    Args:
        where: File and field that the values stand in.
        values: By field.
        rules: See `Rules`.
    """
    faults = []
    for field, (needed, fits, words) in rules.items():
        if field not in values:
            faults += [f'no {field!r}'] if needed else []
        elif not fits(values[field]):
            shown = repr(values[field])
            shown = shown if len(shown) < 60 else f'{shown[:50]}...'
            faults.append(f'{field!r} is {shown}, expected {words}')
    if faults:
        raise ValueError(f'{where}: {"; ".join(faults)}')


def check_processor(where: str, made: Mapping[str, Any]) -> None:
    """Raise ValueError where these are not the arguments of a Processor."""
    check_fields(where, made, PROCESSOR)
    of_slots = ('state_table', 'action_table', 'action_space')
    missing = [name for name in of_slots if name not in made]
    if missing and ('state_table' in made or 'action_table' in made):
        raise ValueError(f'{where}: no {missing[0]!r}, which goes with the tables of slots')
    unknown = sorted(made.keys() - PROCESSOR.keys())
    if unknown:
        raise ValueError(f'{where}: this code knows no {", ".join(unknown)}')


# Sizes of a network that may be 0, and the largest that some of them may have: nothing is made
# before it is clear that the weights fit, but a model of a million blocks is long in coming.
MAY_BE_ZERO = ('state_frequencies', 'scene_bricks', 'vision_layers', 'state_dim')
GREATEST = {'n_layers': 1000, 'vision_layers': 1000}
GREATEST_SIZE = 10_000_000


def check_sizes(sizes: Mapping[str, Any], hints: Mapping[str, str]) -> None:
    """Raise ValueError where fields of a VLAConfig hold what they cannot.

    Args:
        sizes: By field.
        hints: By field its type as the dataclass writes it.
    """
    for name, value in sizes.items():
        hint = hints[name]
        if value is None and 'None' in hint:
            continue
        if hint.startswith('int'):
            low = 0 if name.endswith('_id') or name in MAY_BE_ZERO else 1
            fits, words = _size(low, GREATEST.get(name, GREATEST_SIZE))
        elif hint.startswith('float'):
            fits, words = is_number, 'a number'
        elif hint.startswith('bool'):
            fits, words = (lambda value: isinstance(value, bool)), 'true or false'
        elif hint.startswith('str'):
            fits, words = _TEXT
        elif name == 'scene_places':
            fits, words = _are_places, 'a list of places: x, y, z (m), yaw (rad)'
        else:
            fits, words = _are_whole, 'a list of whole numbers'
        if not fits(value):
            raise ValueError(f'{name} is {value!r}, expected {words}')


def _are_whole(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(is_whole, value))


def _are_places(value: Any) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    rows = [place for place in value if isinstance(place, (list, tuple)) and len(place) == 4]
    return len(rows) == len(value) and all(map(is_number, itertools.chain(*rows)))


def holds_no_model(folder: str) -> str:
    """Say why nothing can be loaded from a folder that has neither meta.json nor config.json."""
    if not os.path.isdir(folder):
        return f'{folder}: there is no such folder'
    return (
        f'{folder} holds neither a checkpoint of train.py (meta.json) nor a published model '
        '(config.json)'
    )


def read_meta(folder: str) -> dict[str, Any] | None:
    """meta.json of a checkpoint that train.py has written; None where there is no such checkpoint.

    Other programs write a meta.json, too: ours names the sizes of the network under 'model', as
    model.VLA.save puts them there. A folder with a config.json is somebody else's where its
    meta.json is none of ours.

    Raises:
        ValueError: It is ours and damaged; the text names file and field.
    """
    path = f'{folder}/meta.json'
    if not os.path.exists(path):
        return None
    is_published = os.path.exists(f'{folder}/config.json')
    try:
        meta = read_json(path)
    except ValueError:
        if is_published:
            return None
        raise
    sizes = meta.get('model')
    if not isinstance(sizes, dict) or 'action_start_id' not in sizes:
        if 'processor' in meta and not is_published:
            raise ValueError(f"{path}: 'model' does not hold the sizes of a network")
        return None
    if 'processor' in meta:
        check_fields(path, meta, META)
        check_processor(f'{path}: processor', meta['processor'])
    return meta


def read_state(folder: str) -> dict[str, Any] | None:
    """state.json of a run that can be gone on with; None where there is none.

    Raises:
        ValueError: It is damaged; the text names file and field.
    """
    path = f'{folder}/state.json'
    if not os.path.exists(path):
        return None
    # Early runs did not keep the sums since the last log line.
    state: dict[str, Any] = {'sums': [{}], 'summed': 0} | read_json(path)
    check_fields(path, state, STATE)
    check_processor(f'{path}: processor', state['processor'])
    return state


def check_taught(folder: str, meta: Mapping[str, Any], what: str) -> None:
    """Raise ValueError where a checkpoint never learnt what is asked of it.

    What its settings do not say, as those of early revisions, is not held against it.

    Args:
        folder: Of the checkpoint.
        meta: Its meta.json.
        what: 'questions' that it is to answer, or 'text' that it is to act on.
    """
    settings = meta.get('settings', {})
    if what == 'questions':
        share = settings.get('question_share', settings.get('questions', 1))
        is_published = meta.get('processor', {}).get('template') == 'qwen'  # it could answer before
        if share == 0 and not is_published:
            raise ValueError(
                f'{folder} was never asked questions (question_share 0), its answers would mean '
                'nothing: python train.py config/demo.py config/qa.py teaches a checkpoint to '
                'answer, then --ckpt=out/qa'
            )
    elif 0 in (settings.get('read_text', 1), settings.get('text_weight', 1)):
        raise ValueError(
            f'read_text: {folder} never learnt to act on text that it has read (its read_text or '
            'text_weight was 0): leave --read_text out, or train with --read_text=0.5'
        )
