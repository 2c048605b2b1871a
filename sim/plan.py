"""Plans: which bricks make up a structure, read from a file and checked, and the judge of them.

    structure = read_plan('assets/plans/arch.yaml')
    structure.parts                  # bricks on a grid of studs and layers, named by colour, number
    structure.links                  # {(lower, upper): studs}; the lower of layer 0 is the plate
    score = judge(structure, built)    # block accuracy and success

Two forms are read, YAML or JSON. Ours counts studs and layers from a corner:

    bricks:
    - {type: 4x2, colour: red, at: [0, 0, 0]}    # 4 studs along x, 2 along y; low corner, layer
    - {type: 2x2, colour: blue, at: [1, 0, 1], turn: 90}

That of WorkBenchMark (arXiv 2606.19358) has poses of DUPLO bricks: `blocks` with `type` brick_4x2
or brick_2x2, `color`, `pos` of the middle in m (z is the vertical, a layer is 19.1 mm, a stud 16
mm) and `rotation` in degrees about x, y, z; `initial_blocks`, where there are some, says where they
lie at first.
"""

import json
import reprlib
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from episode import is_plain_name
from sim.tasks import RGBA

PLATE = 'plate'  # name of the base plate, what layer 0 sits on
BRICK_STUDS = (
    (1, 2),
    (1, 4),
    (2, 2),
    (2, 3),
    (2, 4),
    (2, 6),
    (2, 8),
)  # assets/lego has these bricks
BLOCK_STUD_M = 0.016
BLOCK_LAYER_M = 0.0191
GRID_TOLERANCE = 0.1  # Share of a stud or a layer; bricks further off the grid are refused.
TURN_TOLERANCE_DEG = 5.0
MAX_PARTS = 40
MAX_BYTES = 100_000  # The largest plan file.
MAX_BRACKETS = 1000  # YAML's reader takes seconds for thousands that are not closed.
MAX_AWAY = 1000  # studs or layers between two bricks
GREATEST = sys.float_info.max  # Python compares whole numbers of any length with it.
SHORT = reprlib.Repr()
SHORT.maxlevel = 2
FIELDS = {'type', 'colour', 'at', 'turn', 'name'}
BLOCK_FIELDS = {'name', 'type', 'color', 'pos', 'rotation'}


@dataclass(frozen=True)
class Part:
    """A brick of a plan on the grid.

    studs: (nx, ny) along its own axes, the longer side along y. corner: (x, y) of the lowest corner
    of its footprint in studs. turns: quarter turns of its axes, 0 or 1; 0 where it is square.
    """

    name: str
    studs: tuple[int, int]
    colour: str
    corner: tuple[int, int]
    layer: int
    turns: int

    @property
    def size(self) -> tuple[int, int]:
        """Studs along the plan's x and y."""
        return self.studs[::-1] if self.turns else self.studs

    @property
    def middle(self) -> np.ndarray:
        """Middle of the footprint (2,) in studs."""
        return np.array(self.corner) + np.array(self.size) / 2

    @property
    def cells(self) -> frozenset[tuple[int, int]]:
        """Studs of the plan's grid that the brick covers."""
        x, y = self.corner
        nx, ny = self.size
        return frozenset((x + i, y + j) for i in range(nx) for j in range(ny))

    @property
    def kind(self) -> tuple:
        """What makes two bricks interchangeable."""
        return self.studs, self.colour


@dataclass(frozen=True)
class Structure:
    """A checked plan.

    parts: in the order of the file. links: {(lower, upper): studs}. initial: where bricks lie at
    first, {name: (x, y, yaw)} in m and rad in the file's own frame, where the file says so.
    """

    name: str
    parts: tuple[Part, ...]
    links: dict[tuple[str, str], int]
    initial: dict[str, tuple[float, float, float]] | None = None

    def part(self, name: str) -> Part:
        """The part of that name."""
        return next(part for part in self.parts if part.name == name)


def read_plan(path: str | Path) -> Structure:
    """Read and check a plan.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one line that names file, brick and field, and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'plan={path}: no such file; see assets/plans for some')
    if not is_plain_name(path.stem):
        raise ValueError(
            f'plan={path}: its name without the ending names what is recorded and scored: expected '
            'letters, digits and -_.,:+'
        )
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f'{path} has {path.stat().st_size} bytes, at most {MAX_BYTES} are read')
    try:
        text = path.read_text('utf-8')
        if text.count('[') + text.count('{') > MAX_BRACKETS:
            raise ValueError(f'more than {MAX_BRACKETS} brackets')
        data = json.loads(text) if path.suffix == '.json' else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as fault:
        reason = ' '.join(str(fault).split())
        raise ValueError(f'{path}: neither YAML nor JSON: {reason}') from None
    if not isinstance(data, dict) or not {'bricks', 'blocks'} & data.keys():
        raise ValueError(f'{path}: expected a list `bricks` (ours) or `blocks` (WorkBenchMark)')
    ours = 'bricks' in data
    rows = data['bricks'] if ours else data['blocks']
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_PARTS:
        raise ValueError(f'{path}: expected a list of 1 to {MAX_PARTS} bricks')
    read = _read_brick if ours else _read_block
    drawn = [read(_Row(path, i, row)) for i, row in enumerate(rows)]
    parts = _named(_on_grid(path, drawn))
    structure = Structure(path.stem, parts, _links(parts), _initial(path, data, rows, parts))
    _check(path, structure)
    return structure


class _Row:
    """One brick of a file, which knows how to complain."""

    def __init__(self, path, index, row):
        self.path = path
        self.row = row
        self.label = f'brick {index + 1}'
        if not isinstance(row, dict):
            raise self.error('', 'a mapping with type, colour and pose')
        if 'name' in row:
            if not isinstance(row['name'], str):
                raise self.error('name', 'text')
            self.label += f' ({row["name"]})'

    def error(self, field, expected):
        # A text that a file repeats by reference a billion times is cut before it is written out.
        got = f' {field}={SHORT.repr(self.row.get(field))}:' if field else ''
        return ValueError(f'{self.path}: {self.label}:{got} expected {expected}')

    def only(self, fields):
        for field in self.row:
            if field not in fields:
                raise self.error(field, f'one of the fields {", ".join(sorted(fields))}')

    def numbers(self, field, n):
        value = self.row.get(field)
        right = isinstance(value, list) and len(value) == n
        if not right or not all(type(x) in (int, float) and abs(x) <= GREATEST for x in value):
            raise self.error(field, f'{n} numbers')
        return [float(x) for x in value]

    def studs(self):
        """Studs along x and y before any turn."""
        text = self.row.get('type')
        if not isinstance(text, str):
            raise self.error('type', 'text, as 2x4')
        if text.startswith(('plate', 'baseplate')):
            raise self.error('type', 'a brick: a plate is too thin for the fingers to hold')
        sides = text.removeprefix('brick_').split('x')
        size = tuple(int(side) for side in sides if side.isascii() and side.isdigit())
        if len(sides) != 2 or tuple(sorted(size)) not in BRICK_STUDS:
            have = ', '.join(f'{a}x{b}' for a, b in BRICK_STUDS)
            raise self.error('type', f'brick_AxB or AxB, one of {have}, either way round')
        return size

    def colour(self, field):
        if not isinstance(self.row.get(field), str) or self.row[field] not in RGBA:
            raise self.error(field, f'one of {", ".join(RGBA)}')
        return self.row[field]

    def quarter_turns(self, degrees, field):
        turns = round(degrees / 90) if np.isfinite(degrees) else 0
        if not abs(degrees - 90 * turns) <= TURN_TOLERANCE_DEG:
            raise self.error(field, f'a multiple of 90 degrees within {TURN_TOLERANCE_DEG:g}')
        return turns % 2


def _read_brick(row):
    """-> row, size at rest, colour, quarter turns, corner (3,) in studs and layers."""
    row.only(FIELDS)
    size = row.studs()
    degrees = row.row.get('turn', 0)
    if type(degrees) not in (int, float):
        raise row.error('turn', 'degrees')
    turns = row.quarter_turns(degrees, 'turn')
    return row, size, row.colour('colour'), turns, np.array(row.numbers('at', 3)), 'at'


def _read_block(row):
    row.only(BLOCK_FIELDS)
    size = row.studs()
    pos = np.array(row.numbers('pos', 3)) / [BLOCK_STUD_M, BLOCK_STUD_M, BLOCK_LAYER_M]
    tilt_x, tilt_y, yaw = row.numbers('rotation', 3)
    if max(abs(tilt_x), abs(tilt_y)) > TURN_TOLERANCE_DEG:
        raise row.error('rotation', 'a turn about the vertical only, the third number')
    turns = row.quarter_turns(yaw, 'rotation')
    turned = size[::-1] if turns else size
    corner = pos - [turned[0] / 2, turned[1] / 2, 0]
    return row, size, row.colour('color'), turns, corner, 'pos'


def _on_grid(path, drawn):
    """Rows -> parts without names on whole studs and layers, the lowest corner at zero."""
    first = drawn[0][4]
    corners = []
    for row, *_, corner, field in drawn:
        steps = corner - first
        if np.abs(steps).max() > MAX_AWAY:
            raise row.error(field, f'a place within {MAX_AWAY} studs of the first brick')
        off = np.abs(steps - np.round(steps))
        if off.max() > GRID_TOLERANCE:
            raise row.error(
                field,
                f'a place on the grid of the first brick within {GRID_TOLERANCE:g} of a stud or '
                f'layer, it is {off.max():.2f} off',
            )
        corners.append(np.round(steps).astype(int))
    corners = np.array(corners) - np.min(corners, axis=0)
    parts = []
    for (_, size, colour, turns, _, _), (x, y, layer) in zip(drawn, corners.tolist()):
        lengthwise = turns + (size[0] > size[1])  # the longer side is a brick's own y
        square = size[0] == size[1]
        studs = tuple(sorted(size))
        parts.append(Part('', studs, colour, (x, y), layer, 0 if square else lengthwise % 2))
    return parts


def _named(parts):
    """Name the parts: a colour, with a number where there are several of it."""
    total = Counter(part.colour for part in parts)
    seen = Counter()
    named = []
    for part in parts:
        seen[part.colour] += 1
        several = total[part.colour] > 1
        name = f'{part.colour} {seen[part.colour]}' if several else part.colour
        named.append(Part(name, part.studs, part.colour, part.corner, part.layer, part.turns))
    return tuple(named)


def _links(parts):
    links = {}
    for upper in parts:
        if upper.layer == 0:
            links[PLATE, upper.name] = len(upper.cells)
        for lower in parts:
            studs = len(upper.cells & lower.cells)
            if studs and lower.layer == upper.layer - 1:
                links[lower.name, upper.name] = studs
    return links


def _initial(path, data, rows, parts):
    """{part: (x, y, yaw)} of `initial_blocks`, which go by the names of `blocks`."""
    if 'initial_blocks' not in data:
        return None
    names = {row.get('name'): part for row, part in zip(rows, parts)}
    initial = {}
    if not isinstance(data['initial_blocks'], list):
        raise ValueError(f'{path}: initial_blocks: expected a list')
    for i, block in enumerate(data['initial_blocks']):
        row = _Row(path, i, block)
        if block.get('name') not in names:
            raise row.error('name', 'the name of one of the blocks')
        part = names[block['name']]
        x, y, _ = row.numbers('pos', 3)
        yaw = np.radians(row.numbers('rotation', 3)[2])
        a, b = row.studs()
        initial[part.name] = (x, y, float(yaw + (np.pi / 2 if a > b else 0)))
    if len(initial) < len(parts):
        raise ValueError(f'{path}: initial_blocks: expected one for each of the blocks')
    return initial


def _check(path, structure):
    taken = {}
    for part in structure.parts:
        for cell in part.cells:
            other = taken.setdefault((*cell, part.layer), part.name)
            if other != part.name:
                raise ValueError(
                    f'{path}: {part.name} overlaps {other} at stud {cell}, layer {part.layer}: '
                    'expected one brick in a place'
                )
    standing = connected(structure.links, {part.name for part in structure.parts})
    for part in structure.parts:
        if part.name not in standing:
            touches = any(part.name in pair for pair in structure.links)
            what = 'is not connected to the base' if touches else 'floats: no stud holds it'
            raise ValueError(
                f'{path}: {part.name} (layer {part.layer}) {what}: expected studs below or above '
                'that lead to layer 0'
            )


def connected(links: Iterable[tuple[str, str]], names: Iterable[str]) -> set[str]:
    """Those of `names` that hang together with the plate by links (lower, upper) among them."""
    names = {*names, PLATE}
    beside: dict[str, set[str]] = {name: set() for name in names}
    for lower, upper in links:
        if lower in names and upper in names:
            beside[lower].add(upper)
            beside[upper].add(lower)
    found = {PLATE}
    new = {PLATE}
    while new:
        new = set().union(*(beside[name] for name in new)) - found
        found |= new
    return found - {PLATE}


# -- the judge ----------------------------------------
def built_parts(structure: Structure, connections: list[dict]) -> list[Part]:
    """Where the bricks are that hang together with the plate, on the plate's own grid.

    connections: those of Clutch.connections, with `lower`, `upper`, `cell` and `turns`. What was
    built is read from the studs that are in, not from where bricks happen to lie.
    """
    poses = {PLATE: (np.zeros(2), 0, -1)}  # middle in studs, quarter turns, layer
    around = [*connections]
    while True:
        new = {}
        for link in around:
            lower, upper, turns = link['lower'], link['upper'], link['turns']
            cell = np.array(link['cell'])
            if lower in poses and upper not in poses:
                at, turned, layer = poses[lower]
                new[upper] = at + _quarter(turned) @ cell, turned + turns, layer + 1
            elif upper in poses and lower not in poses:
                at, turned, layer = poses[upper]
                turned = turned - turns
                new[lower] = at - _quarter(turned) @ cell, turned, layer - 1
        if not new:
            break
        poses |= new
    parts = []
    origin = None  # the middle of the plate may be between two studs
    for part in structure.parts:
        if part.name in poses:
            at, turned, layer = poses[part.name]
            square = part.studs[0] == part.studs[1]
            turned = 0 if square else int(turned) % 2
            low = at - np.array(part.studs[::-1] if turned else part.studs) / 2
            origin = low if origin is None else origin
            corner = tuple(np.round(low - origin).astype(int).tolist())
            parts.append(Part(part.name, part.studs, part.colour, corner, layer, turned))
    return parts


def _quarter(turns):
    c = (1, 0, -1, 0)[turns % 4]
    s = (0, 1, 0, -1)[turns % 4]
    return np.array([[c, -s], [s, c]])


def judge(structure: Structure, built: list[Part]) -> tuple[float, bool]:
    """Block accuracy and task success as WorkBenchMark defines them.

    Returns:
        Share of the plan's bricks that are found in the connected structure with the same type,
        colour, position and orientation, for the best placement of the whole (a shift and a quarter
        turn do not count as errors; bricks of one type and colour are interchangeable), and whether
        it is all of them and nothing else.
    """
    best = 0
    wanted = {(p.kind, p.corner, p.layer, p.turns) for p in structure.parts}
    for turns in range(4):
        turned = [_turned(p, turns) for p in built]
        shifts = {
            (w.corner[0] - b.corner[0], w.corner[1] - b.corner[1], w.layer - b.layer)
            for w in structure.parts
            for b in turned
            if w.kind == b.kind
        }
        for dx, dy, dz in shifts:
            placed = {
                (b.kind, (b.corner[0] + dx, b.corner[1] + dy), b.layer + dz, b.turns)
                for b in turned
            }
            best = max(best, len(wanted & placed))
    n = len(structure.parts)
    return best / n, best == n == len(built)


def _turned(part, turns):
    """The part after the whole has been turned by quarter turns about the origin."""
    middle = _quarter(turns) @ part.middle
    square = part.studs[0] == part.studs[1]
    own = 0 if square else (part.turns + turns) % 2
    size = np.array(part.studs[::-1] if own else part.studs)
    corner = tuple(np.round(middle - size / 2).astype(int).tolist())
    return Part(part.name, part.studs, part.colour, corner, part.layer, own)
