"""In which order two arms can build a plan, and where a hand holds each brick for it.

    steps = order(structure, brick_scale=2.0)      # [Step], refuses with the reason and the brick
    steps = undo(structure, brick_scale=2.0)       # those that take it apart

Assembly by disassembly (Homem de Mello and Sanderson 1991): from the finished structure take off a
brick, or a group of bricks that hang together, that

- comes off upwards, with nothing above it,
- leaves what stands connected to the plate,
- leaves room for two fingers and the palm that held it,
- could be pressed on there without peeling off what is below (see `peel`),

and go on with the rest; the reverse is how it is built. A group is built beforehand, on the table,
from its one lowest brick up. Depth first with a memory of what leads nowhere.

Lengths are in studs of the plan's grid and layers unless a name says m.
"""

from dataclasses import dataclass, replace

import numpy as np

from sim.bricks import BRICK_HEIGHT_M, STUD_HEIGHT_M, STUD_PITCH_M, STUD_RADIUS_M
from sim.plan import PLATE, Part, Structure, connected
from sim.tasks import FINGERTIP_M, Grip, grasp_height

# The hand (assets/robots/alex): pads 10 mm wide, 8 mm thick, 80 mm long, that close along the
# tool's y; above them a palm of 56 x 90 mm.
PAD_WIDTH_M = 0.010
PAD_THICKNESS_M = 0.008
PAD_LENGTH_M = 0.080
PALM_M = (0.056, 0.090)
MAX_OPENING_M = 0.080
ALONG_MARGIN_M = 0.0025  # Room on either side of a pad.
MARGIN_M = 0.001  # Room around a finger, for what the arm misses by.
OPENED_MARGIN_M = 0.003  # A finger that opens needs it: at 1 mm it pushed a neighbour off.
# By how much each finger opens to let go, the first that fits. (At 3 mm a pad still rubs where the
# brick lies askew in the hand.)
RELEASES_M = (0.016, 0.012, 0.009, 0.007, 0.005, 0.0035)
BIAS_M = 0.0008  # per unit of scale: away from a neighbour on one side; the studs pull it back
TOUCH_COST = 0.03  # m of lever that a grip on one brick alone is worth
OVERSHOOT = 1.1  # a press ends at this share of the force that the studs ask for
# Of what the studs hold may be asked of a group held by one of its bricks: what breaks is between
# the hand and what it is pressed on, and is pressed together again.
MAX_SQUEEZE = 3.0
TIP_MARGIN = 0.25  # studs that the middle of mass stays within the foot of what lies on the table
MAX_GROUP = 5  # bricks that are joined beforehand and placed as a whole
MAX_TRIES = 4000  # bricks or groups looked at in one search


@dataclass(frozen=True)
class Step:
    """Place a part, with what is on it already, on what stands.

    `lowers`: by falling number of studs; the first is what the place is measured from.
    `group`: names of all that comes along. `table`: the lower brick lies on the table, where a
    group is made. `also`: links (lower, upper) of other bricks of
    the group that form at the same time.
    """

    part: Part
    lowers: tuple[str, ...]
    grip: Grip
    group: tuple[str, ...]
    table: bool = False
    also: tuple[tuple[str, str], ...] = ()


@dataclass
class _Search:
    """One search: the structure, what is known to lead nowhere, and why."""

    structure: Structure
    scale: float
    force_ratio: float  # Force that presses a stud on by the force that pulls it off.
    tries: int = 0

    def __post_init__(self):
        self.parts = {part.name: part for part in self.structure.parts}
        self.hopeless = set()
        self.hanging = []
        self.reasons = {}  # {number of bricks left: reason}, the first of each

    def reason(self) -> str:
        """Why there is no way: what stopped the search where it had come furthest."""
        return self.reasons[min(self.reasons)] if self.reasons else self.hanging[0]


def order(
    structure: Structure,
    brick_scale: float = 2.0,
    insertion_force_n: float = 1.0,
    pull_force_n: float = 2.0,
) -> list[Step]:
    """Steps that build the structure, first to last.

    Raises:
        ValueError: it cannot be built; says which brick stops it, and why.
    """
    search = _Search(structure, brick_scale, insertion_force_n / pull_force_n)
    steps = _take_apart(search, frozenset(search.parts), table=False)
    if steps is None:
        raise ValueError(f'{structure.name}: cannot be built: {search.reason()}')
    return [replace(step, grip=_with_late(search, steps, i)) for i, step in enumerate(steps)]


def undo(structure: Structure, brick_scale: float = 2.0) -> list[Step]:
    """Steps that take the finished structure apart brick by brick, first to last.

    Each time it is the highest brick that a hand can get hold of and that nothing else hangs on.

    Raises:
        ValueError: no hand gets at any of the bricks that are left; says which, and why.
    """
    search = _Search(structure, brick_scale, 0.0)  # nothing is pressed on
    standing = frozenset(search.parts)
    steps = []
    while standing:
        for group, root in _groups(search, standing, table=False):
            step = _step(search, group, root, standing - group, False) if len(group) == 1 else None
            if step is not None:
                steps.append(step)
                standing -= group
                break
        else:
            raise ValueError(f'{structure.name}: cannot be undone: {search.reason()}')
    return steps


def _take_apart(search, standing, table):
    """Steps that build `standing` (a frozenset of names), or None.

    table: it lies on the table, on its one lowest brick, which is there already.
    """
    if not standing or table and len(standing) == 1:
        return []
    key = standing, table
    if key in search.hopeless or search.tries > MAX_TRIES:
        return None
    for group, root in _groups(search, standing, table):
        search.tries += 1
        rest = standing - group
        step = _step(search, group, root, rest, table)
        if step is None:
            continue
        beforehand = _take_apart(search, group, table=True)
        if beforehand is None:
            continue
        if beforehand and (step.grip is None or not _stands([search.parts[n] for n in group])):
            beforehand, step = _held_on(search, beforehand, step, rest, table)
        if step is None:
            continue
        before = _take_apart(search, rest, table)
        if before is not None:
            return [*before, *beforehand, step]
    search.hopeless.add(key)
    return None


def _groups(search, standing, table):
    """(names, lowest brick) of what may be taken off.

    Single bricks come first, from the top down, and those between two neighbours last.
    """
    parts = [search.parts[name] for name in standing]
    lowest = min(part.layer for part in parts)
    found = []
    for part in parts:
        group = _above(search, standing, part.name)
        if len(group) > MAX_GROUP or table and part.layer == lowest:
            continue
        if len(group) > 1 and len(group) == len(standing):
            continue  # all of it at once: nothing would be left to put it on
        rest = [search.parts[name] for name in standing - group]
        sides = _neighbours([part], rest)
        between = sum(all(sides[axis]) for axis in (0, 1))
        touching = sum(map(sum, sides))
        rank = len(group) > 1, len(group), -part.layer, between, touching, part.name
        found.append((rank, group, part.name))
    return [(group, root) for _, group, root in sorted(found)]


def _above(search, standing, name):
    """The brick and all that stands on it, on that, and so on."""
    group = {name}
    new = {name}
    while new:
        on = {
            upper for lower, upper in search.structure.links if lower in new and upper in standing
        }
        new = on - group
        group |= new
    return frozenset(group)


def _step(search, group, root, rest, table):
    """The Step that adds the group to what stands, or None, with the reason noted."""
    structure = search.structure
    parts = search.parts

    def refuse(why):
        search.reasons.setdefault(len(rest), f'{root}: {why}')

    links = {
        pair: studs
        for pair, studs in structure.links.items()
        if pair[1] in group and (pair[0] in rest or pair[0] == PLATE and not table)
    }
    lowers = [pair[0] for pair in sorted(links, key=links.get, reverse=True) if pair[1] == root]
    if not lowers:
        hangs = [pair for pair in structure.links if pair[0] == root]
        below = 'only a brick above holds it' if hangs else 'nothing is below it'
        refuse(f'{below} when it is placed')
        return None
    moving = [parts[name] for name in group]
    fixed = [parts[name] for name in rest]
    for part in moving:
        for other in fixed:
            if other.layer > part.layer and part.cells & other.cells:
                refuse(f'{other.name} is above {part.name} and in its way')
                return None
    if table and not _stands(fixed):
        refuse('what it is joined on beforehand would tip over on the table')
        return None
    on_table = {min(rest, key=lambda name: parts[name].layer)} if table else set()
    held = {name for pair in structure.links for name in pair if name in rest}
    inner = structure.links if not table else {**structure.links, (PLATE, *on_table): 1}
    if connected(inner, rest) != set(rest) or not held <= rest:
        search.hanging.append(f'{root}: what is left would hang in the air without it')
        return None
    use = peel(search.structure, rest, links, search.force_ratio, search.scale, table)
    if use > 1:
        refuse(f'pressing it on would peel off what is below ({use:.1f} times what the studs hold)')
        return None
    grip = _grip(search, root, root, moving, fixed, [links])
    if grip is None and len(group) == 1:
        refuse('no room for the fingers beside it')
        return None
    also = tuple(sorted(pair for pair in links if pair[1] != root))
    return Step(parts[root], tuple(lowers), grip, tuple(sorted(group)), table, also)


def _held_on(search, beforehand, step, rest, table):
    """The same steps, with the brick that was joined on last in the hand all the way.

    So goes a group that would tip over if the hand let go of it on the table, or whose lowest brick
    no fingers reach where it goes. -> steps on the table, the Step that places the group or None
    """
    parts = search.parts
    last = beforehand[-1]
    group = frozenset(step.group)
    links = {
        pair: studs
        for pair, studs in search.structure.links.items()
        if pair[1] in group and pair[0] not in group and (pair[0] in rest or not table)
    }
    moving = [parts[name] for name in group]
    fixed = [parts[name] for name in rest]
    grip = None
    # The hand cannot change over from the brick that it holds such a group by to another one.
    free = last.grip.by is None
    if free and _pull_in_hand(search, group, links, last.part) <= MAX_SQUEEZE:
        joint = [(lower, last.part.name) for lower in last.lowers]
        grip = _grip(search, last.part.name, step.part.name, moving, fixed, [joint, links])
    if grip is None:
        why = f'{step.part.name}: no hold for what is joined beforehand and would tip over'
        search.reasons.setdefault(len(rest), why)
        return beforehand, None
    turned = step.part.turns != last.part.turns
    off = last.part.middle - step.part.middle
    off_m = _into(step.part, off * search.scale * STUD_PITCH_M)
    at = np.array(grip.at_m) - off_m
    if turned:
        at = np.array([at[1], -at[0]]) if last.part.turns else np.array([-at[1], at[0]])
    own = replace(
        last.grip,
        at_m=tuple(at.tolist()),
        along=1 - grip.along if turned else grip.along,
        width_m=grip.width_m,
        open_m=grip.open_m,
    )
    return [*beforehand[:-1], replace(last, grip=own)], replace(step, grip=grip)


def _pull_in_hand(search, group, links, held):
    """Largest share of what its studs hold that a group held by one of its bricks takes up.

    It is the press on `links` that bends it, as in `peel`.
    """
    parts = search.parts
    worst = 0.0
    for cut in range(min(parts[name].layer for name in group) + 1, held.layer + 1):
        above = {name for name in group if parts[name].layer >= cut}
        piece = next(p for p in _pieces(search.structure, above) if held.name in p)
        beyond = [pair for pair in links if pair[1] not in piece]
        load = np.array([cell for pair in beyond for cell in _engaged(search, *pair)])
        if len(load):
            use = _bolts(search.structure, parts, piece, load, cut, search.scale, False, group)
            worst = max(worst, use)
    return worst * search.force_ratio * OVERSHOOT


# -- statics ----------------------------------------
def peel(
    structure: Structure,
    rest: frozenset[str],
    links: dict[tuple[str, str], int],
    force_ratio: float,
    scale: float,
    table: bool,
) -> float:
    """Largest share of what the studs below hold that a press takes up; more than 1 peels.

    links: {(lower, upper): studs} that are pressed on.
    Cut through all that stands below at each layer: the bricks above the cut that hang together are
    one stiff piece, pressed on at the middle of its new studs, and the studs through the cut are a
    group of bolts (as in Clutch: four friction points to a stud). On the table nothing pulls.
    """
    parts = {part.name: part for part in structure.parts}
    pressed: dict[str, list] = {}
    for lower, upper in links:
        if lower != PLATE:
            studs = parts[lower].cells & parts[upper].cells
            pressed.setdefault(lower, []).extend(studs)
    worst = 0.0
    if not pressed:
        return worst
    bottom = min(parts[name].layer for name in rest)
    for cut in range(max(parts[name].layer for name in pressed), bottom - 1, -1):
        above = {name for name in rest if parts[name].layer >= cut}
        for piece in _pieces(structure, above):
            load = np.array([stud for name in pressed if name in piece for stud in pressed[name]])
            if len(load):
                worst = max(worst, _bolts(structure, parts, piece, load, cut, scale, table, rest))
    return worst * force_ratio * OVERSHOOT


def _stands(parts):
    """True where the parts, on their one lowest brick on the table, do not tip over."""
    foot = min(parts, key=lambda part: part.layer)
    studs = [len(part.cells) for part in parts]  # a brick weighs as much as it has studs
    middle = np.average([part.middle for part in parts], axis=0, weights=studs)
    inside = np.array(foot.size) / 2 - TIP_MARGIN
    return bool((np.abs(middle - foot.middle) <= inside).all())


def _pieces(structure, names):
    """The names in sets of those that hang together by studs."""
    left = set(names)
    pieces = []
    while left:
        new = {min(left)}
        found = set(new)
        while new:
            near = {
                other
                for a, b in structure.links
                for one, other in ((a, b), (b, a))
                if one in new and other in left
            }
            new = near - found
            found |= new
        left -= found
        pieces.append(found)
    return pieces


def _bolts(structure, parts, piece, load, cut, scale, table, rest):
    """Tension at the worst friction point per newton of one stud's pull.

    Every stud of `load` is pressed on with one newton.
    """
    studs = []
    for lower, upper in structure.links:
        if upper in piece and parts[upper].layer == cut and (lower == PLATE or lower in rest):
            cells = parts[upper].cells
            studs += cells if lower == PLATE else cells & parts[lower].cells
    at = load.mean(0)
    if table and cut == min(parts[name].layer for name in rest):
        footprint = np.array(
            [cell for name in piece if parts[name].layer == cut for cell in parts[name].cells]
        )
        inside = (at >= footprint.min(0)).all() and (at <= footprint.max(0)).all()
        return 0.0 if inside else np.inf
    if not studs:
        return np.inf
    pitch = scale * STUD_PITCH_M
    radius = scale * STUD_RADIUS_M
    points = np.array(studs) * pitch
    middle = points.mean(0)
    n = len(points)
    moment = len(load) * (at * pitch - middle)  # N m, about y and x
    inertia = 4 * ((points - middle) ** 2).sum(0) + 2 * n * radius**2
    slope = moment / inertia
    lever = np.abs(points - middle).max(0) + radius
    tension = (np.abs(slope) * lever).sum() - len(load) / (4 * n)
    return max(0.0, tension * 4)


# -- the hand ----------------------------------------
def _neighbours(moving, fixed):
    """((below, above) along x, the same along y): does a brick touch the moving ones from there?"""
    sides = [[False, False], [False, False]]
    for part in moving:
        for other in fixed:
            if other.layer < part.layer:
                continue
            for axis in (0, 1):
                across = 1 - axis
                low = max(part.corner[across], other.corner[across])
                end = part.corner[across] + part.size[across]
                high = min(end, other.corner[across] + other.size[across])
                if high <= low:
                    continue
                sides[axis][0] |= other.corner[axis] + other.size[axis] == part.corner[axis]
                sides[axis][1] |= part.corner[axis] + part.size[axis] == other.corner[axis]
    return sides


def _into(part, xy):
    """A vector (2,) from the plan's axes to the part's own."""
    return np.array([xy[1], -xy[0]]) if part.turns else np.array(xy)


def _grip(search, name, root, moving, fixed, presses):
    """Where to hold a brick while its group is pressed on, or None where fingers do not fit.

    name: of the brick between the fingers. root: the lowest of the group, in whose frame it is.
    presses: links (lower, upper) that each of its presses forms.
    """
    part = search.parts[name]
    pitch = search.scale * STUD_PITCH_M
    wanted = []  # places (2,) m from the middle, along the plan's axes
    for links in presses:
        studs = [cell for pair in links for cell in _engaged(search, *pair)]
        wanted.append((np.mean(studs, axis=0) + 0.5 - part.middle) * pitch)
    others = [other for other in (*moving, *fixed) if other.name != name]
    boxes = _boxes(others, part, pitch, search.scale)
    holds = [hold for along in (0, 1) for hold in _holds(search, part, along, boxes, wanted)]
    if not holds:
        return None
    _, at, along, width_m, room = min(holds, key=lambda hold: hold[0])
    sides = _neighbours(moving, fixed)
    shift = np.array([BIAS_M * search.scale * (low - high) for low, high in sides])
    frame = search.parts[root]
    at = _into(frame, at + (part.middle - frame.middle) * pitch)
    top = max((other.layer + 1 for other in fixed), default=0)
    lowest = min(p.layer for p in moving)
    return Grip(
        at_m=tuple(at.tolist()),
        up_m=(part.layer - frame.layer) * search.scale * BRICK_HEIGHT_M,
        by=name if name != root else None,
        width_m=float(width_m),
        along=1 - along if frame.turns else along,
        open_m=float(min(width_m + 2 * room, MAX_OPENING_M)),
        shift_m=tuple(_into(frame, shift).tolist()),
        clear_m=max(0, top - lowest) * search.scale * BRICK_HEIGHT_M,
        tight=any(map(all, sides)),
    )


def _with_late(search, steps, i):
    """The grip of a step, and the one for its brick alone among all that does not stand on it."""
    step = steps[i]
    part = step.part
    on_it = _above(search, frozenset(search.parts), part.name)
    fixed = [other for name, other in search.parts.items() if name not in on_it]
    links = [pair for pair in search.structure.links if pair[1] == part.name]
    late = _grip(search, part.name, part.name, [part], fixed, [links])
    later = [name for one in steps[i + 1 :] for name in one.group if name not in step.group]
    return replace(step.grip, late=late, after=tuple(dict.fromkeys(later)))


def _holds(search, part, along, boxes, wanted):
    """Where fingers fit on a brick: [(cost, place (2,) m, along, width m, room for a finger m)].

    along: the plan's axis along which the hand may move on the brick; the fingers close along the
    other one. wanted: places (2,) m where the hand would best be.
    """
    pitch = search.scale * STUD_PITCH_M
    half_m = part.size[along] * pitch / 2 - PAD_WIDTH_M / 2 - MARGIN_M
    width_m = part.size[1 - along] * pitch
    found = []
    if width_m + 2 * RELEASES_M[-1] > MAX_OPENING_M or 2 * half_m < -PAD_WIDTH_M / 2:
        return found
    n = max(0, int(half_m / (pitch / 2)))
    for k in range(-n, n + 1):
        at = np.zeros(2)
        at[along] = k * pitch / 2
        room = _room(at, along, width_m, boxes, search.scale)
        touching = _touches(at, along, width_m, boxes, search.scale)
        # A pad that also touches what stands on the brick, flush with it, pushes that off; two
        # hold both.
        if room is None or touching == 1:
            continue
        # Fingers on the long sides hold best. A hand far from where it presses tilts the brick.
        turned = along != int(part.size[1] >= part.size[0])
        lever = np.abs(at - np.array(wanted)).max()
        cost = lever + 0.02 * turned + 0.5 * (RELEASES_M[0] - room) + 1e-4 * abs(k)
        cost += TOUCH_COST * (touching > 0)
        found.append((cost, at, along, width_m, room))
    return found


def _engaged(search, lower, upper):
    cells = search.parts[upper].cells
    return cells if lower == PLATE else cells & search.parts[lower].cells


def _boxes(others, part, pitch, scale):
    """Bricks around as (low x, low y, high x, high y, top), m from the middle of part's bottom."""
    boxes = []
    for other in others:
        low = (np.array(other.corner) - part.middle) * pitch
        high = low + np.array(other.size) * pitch
        top = (other.layer + 1 - part.layer) * scale * BRICK_HEIGHT_M + scale * STUD_HEIGHT_M
        boxes.append((*low, *high, top))
    return np.array(boxes).reshape(-1, 5)


def _room(at, along, width_m, boxes, scale):
    """How far each finger can open, m, or None.

    at: tool above the brick's middle. along: the axis that the pads are 10 mm wide on.
    """
    tip = grasp_height(scale) - FINGERTIP_M
    if _hits(at, np.array(PALM_M)[[along, 1 - along]] / 2, boxes, tip + PAD_LENGTH_M):
        return None
    for room in RELEASES_M:
        if width_m + 2 * room > MAX_OPENING_M:
            continue
        size = np.zeros(2)
        size[along] = PAD_WIDTH_M / 2 + ALONG_MARGIN_M
        margin = OPENED_MARGIN_M if room > RELEASES_M[-1] else MARGIN_M
        size[1 - along] = (PAD_THICKNESS_M + room + margin) / 2
        free = True
        for side in (-1, 1):
            middle = np.array(at)
            middle[1 - along] += side * (width_m / 2 + size[1 - along])
            free &= not _hits(middle, size - 1e-6, boxes, tip)  # flush above the brick is free
        if free:
            return room
    return None


def _touches(at, along, width_m, boxes, scale):
    """On how many sides a pad is on the face of another brick as well."""
    size = np.zeros(2)
    size[along] = PAD_WIDTH_M / 2
    size[1 - along] = MARGIN_M
    count = 0
    for side in (-1, 1):
        face = np.array(at)
        face[1 - along] += side * width_m / 2
        count += _hits(face, size, boxes, grasp_height(scale) - FINGERTIP_M)
    return count


def _hits(middle, half, boxes, bottom):
    low = middle - half
    high = middle + half
    return bool(
        ((boxes[:, :2] < high).all(1) & (boxes[:, 2:4] > low).all(1) & (boxes[:, 4] > bottom)).any()
    )
