"""Check MJCF and URDF files without loading them: is every file there, and will it be elsewhere?

    python assets/lint.py                      # the files beside this one
    python assets/lint.py robots/ scene.xml    # folders (all *.xml *.mjcf *.urdf below) and files

It prints one line per finding, `file:line: ERROR|WARNING: what`. The exit status is 1 if there is
an ERROR, and 2 for a path that does not exist or an unknown option. It needs only the standard
library. In folders, XML that is neither MJCF nor URDF is passed over.

ERROR: malformed XML; an absolute path; a missing file; a file included twice, or without an
element; a file named here that is neither MJCF nor URDF; a negative mass, a range with its ends
reversed, a keyframe of another length than the model, a <replicate> that would not end.
WARNING: a file that is there, but not where MuJoCo looks; duplicate names; a mesh scale or size out
of proportion; a geom of the visual group 2 with a mass of its own; a hinge or slide without limits.

How MuJoCo 4.0 finds files (tried out with main files given by absolute paths; documented in
mujoco.readthedocs.io/en/stable/XMLreference.html#compiler):

- <include> puts the other file's elements in its own place before anything is read. The file is
  looked for beside the main file, then beside the file that includes it. So one <compiler> counts
  for all files; the last value wins.
- mesh, hfield, skin, flexcomp: <main folder>/<meshdir>/<file>, else beside the included file that
  names it, without meshdir. texture: the same with texturedir. assetdir sets both; strippath keeps
  the last part of a path only.
- ".." is taken out of a path before anything is opened: x/../m.obj needs no folder x.
- <model> (for <attach>): beside the main file, else beside the included file that names it. It is
  then a main file itself, with a <compiler> of its own.

A file that another one includes is therefore checked as part of that one.
"""

from __future__ import annotations

import bisect
import functools
import io
import math
import os
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SUFFIXES = ('.xml', '.mjcf', '.urdf')
CUBE_FACES = ('fileright', 'fileleft', 'fileup', 'filedown', 'filefront', 'fileback')
DIRECTORIES = ('assetdir', 'meshdir', 'texturedir')
# Elements that hold the geoms and joints of the kinematic tree.
BODIES = ('worldbody', 'body', 'frame', 'replicate')
NAMED = (
    'body',
    'geom',
    'joint',
    'site',
    'camera',
    'light',
    'mesh',
    'material',
    'texture',
    'hfield',
    'skin',
    'pair',
    'exclude',
    'key',
    'numeric',
    'text',
    'tuple',
)
NAMED_BY_FILE = ('mesh', 'texture', 'hfield')  # Those without a name are called like their file.
# All children of one of these sections share a space of names.
SECTIONS = ('actuator', 'sensor', 'tendon', 'equality')
# A mesh in millimetres has the scale .001, one in inches .0254; beyond this range a power of ten
# got lost.
SCALE_RANGE = (1e-4, 99.0)
SIZE_RANGE_M = (1e-3, 100.0)  # the longest edge of a mesh's bounding box
VISUAL_GROUP = '2'
# Attributes that are never below zero, by the elements that have them so.
POSITIVE = {
    'mass': ('geom', 'inertial'),
    'diaginertia': ('inertial',),
    'density': ('geom', 'mesh'),
    'damping': ('joint',),
    'armature': ('joint',),
    'frictionloss': ('joint',),
    'timestep': ('option',),
}
RANGES = ('range', 'ctrlrange', 'forcerange', 'actfrcrange', 'actrange')  # low end, high end
MOST_COPIES = 10_000  # One <replicate> may ask for so many: MuJoCo makes all before it says more.


class Element(NamedTuple):
    """An XML element as it is written in a file."""

    tag: str
    attributes: dict[str, str]
    line: int
    file: Path
    children: list[Element]


class Placed(NamedTuple):
    """An element in its model, once includes are resolved."""

    tag: str
    attributes: dict[str, str]
    line: int
    file: Path
    folders: tuple[Path, ...]  # Those of the files that include it, main file first.
    parent: str  # tag
    ancestors: tuple[str, ...]  # tags, outermost first
    classes: tuple[str, ...]  # Those of the defaults around it, outermost first.


class Finding(NamedTuple):
    """What is wrong, and where."""

    file: Path
    line: int
    severity: str  # ERROR or WARNING
    text: str


# -----------------------------------------------------------------------------
# XML as MuJoCo reads it
# MuJoCo's parser (tinyxml2) takes what the standard forbids: "--" in comments, a bare & or <, any
# encoding. A strict parser would condemn models that load.
_NAME = r'[A-Za-z_:\x80-\U0010ffff][\w:.\-\x80-\U0010ffff]*'
_TOKEN = re.compile(
    rf'<!--(?P<comment>.*?)-->|<!\[CDATA\[(?P<cdata>.*?)\]\]>|<\?(?P<declaration>.*?)\?>'
    rf'|<!(?P<unknown>[^-\[][^>]*)>|<\s*/\s*(?P<end>{_NAME})\s*>'
    rf'|<\s*(?P<start>{_NAME})',
    re.S,
)
_ATTRIBUTE = re.compile(rf'\s*({_NAME})\s*=\s*("[^"]*"|\'[^\']*\')')
_CLOSE = re.compile(r'\s*(/?)>')
_ENTITY = re.compile(r'&(?:(lt|gt|quot|apos|amp)|#x0*([0-9A-Fa-f]{1,5})|#0*([0-9]{1,6}));')
# Open elements inside each other; with one more MuJoCo says XML_ELEMENT_DEPTH_EXCEEDED.
DEEPEST = 498


class Malformed(ValueError):
    """XML that MuJoCo's parser refuses. `line` counts from 1."""

    def __init__(self, text: str, line: int):
        super().__init__(text)
        self.line = line


def parse(text: str, file: Path) -> Element | None:
    """Return the root element of an XML file's text, None where there is none.

    Raises:
        Malformed: MuJoCo's parser would refuse the text.
    """
    text = text.lstrip('\ufeff').split('\0')[0]
    starts = [0, *(m.end() for m in re.finditer('\n', text))]

    def line(offset: int) -> int:
        return bisect.bisect_right(starts, offset)

    stack: list[Element] = []
    top: list[Element] = []
    at = 0
    seen = False
    while (at := text.find('<', at)) >= 0:
        token = _TOKEN.match(text, at)
        if token is None:
            what = 'a comment that never ends' if text.startswith('<!--', at) else 'not a tag'
            raise Malformed(f'{what}: {text[at : at + 30].splitlines()[0]!r}', line(at))
        begin = at
        at = token.end()
        if token['declaration'] is not None and seen:
            raise Malformed('a <?...?> declaration after the beginning of the file', line(begin))
        seen = seen or token['declaration'] is None
        if token['end']:
            if not stack:  # MuJoCo reads no further.
                break
            if token['end'] != stack[-1].tag:
                opened = f'<{stack[-1].tag}> of line {stack[-1].line}'
                problem = f'</{token["end"]}> closes nothing: {opened} is still open'
                raise Malformed(problem, line(begin))
            stack.pop()
        elif token['start']:
            element = Element(token['start'], {}, line(begin), file, [])
            at, is_open = _parse_attributes(text, at, element, line)
            siblings = stack[-1].children if stack else top
            siblings.append(element)
            if is_open:
                stack.append(element)
                if len(stack) > DEEPEST:
                    raise Malformed(f'more than {DEEPEST} elements inside each other', line(begin))
    if stack:
        raise Malformed(f'<{stack[-1].tag}> is never closed', stack[-1].line)
    return top[0] if top else None


def _parse_attributes(
    text: str, at: int, element: Element, line: Callable[[int], int]
) -> tuple[int, bool]:
    """Fill in an element's attributes from offset `at` on.

    Returns:
        The offset behind the tag, and whether children or an end tag follow.
    """
    while found := _ATTRIBUTE.match(text, at):
        name = found[1]
        at = found.end()
        if name in element.attributes:
            raise Malformed(f'{name} appears twice in <{element.tag}>', line(found.start(1)))
        element.attributes[name] = _unescape(found[2][1:-1])
    close = _CLOSE.match(text, at)
    if close is None:
        where = text[at : at + 30].strip().splitlines()[:1] or ['end of file']
        problem = f'in <{element.tag}>: expected name="value", > or />, got {where}'
        raise Malformed(problem, line(at))
    return close.end(), not close[1]


def _unescape(value: str) -> str:
    named = {'lt': '<', 'gt': '>', 'quot': '"', 'apos': "'", 'amp': '&'}

    def character(entity: re.Match[str]) -> str:
        if entity[1]:
            return named[entity[1]]
        return chr(int(entity[2], 16) if entity[2] else int(entity[3]))

    return _ENTITY.sub(character, value)


def read(file: Path) -> tuple[str, str | None]:
    """Return (text, None) of a file, or ('', the reason why it cannot be read).

    Bytes that are not UTF-8 are kept as surrogates, so that names in other encodings stay apart.
    """
    try:
        return file.read_bytes().decode('utf-8', errors='surrogateescape'), None
    except OSError as error:
        return '', error.strerror


@functools.cache
def load(file: Path) -> tuple[Element | None, Finding | None]:
    """Return a file's root element and what makes it unreadable; one of them may be None.

    A file is read once.
    """
    text, why = read(file)
    if why:
        return None, Finding(file, 1, 'ERROR', f'cannot be read: {why}')
    try:
        root = parse(text, file)
    except Malformed as error:
        return None, Finding(file, error.line, 'ERROR', f'malformed XML: {error}')
    if root is None:
        return None, Finding(file, 1, 'ERROR', 'malformed XML: no element in it')
    return root, None


def kind(root: Element | None) -> str | None:
    """Return 'model', 'part', 'urdf', or None for other XML.

    A part is a fragment that makes sense only where another file includes it.
    """
    kinds = {'mujoco': 'model', 'mujocoinclude': 'part', 'robot': 'urdf'}
    return kinds.get(root.tag.lower()) if root else None


# -----------------------------------------------------------------------------
# paths
def is_absolute(path: str) -> bool:
    """Tell whether a path counts from the root of a file system, on Linux or on Windows."""
    return bool(re.match(r'[/\\]|[A-Za-z]:[/\\]|file:', path))


def is_checkable(path: str) -> bool:
    """Tell whether a path can be looked up.

    A resource provider's address (scheme:...) cannot, nor a template that some program fills in.
    """
    is_address = re.match(r'[A-Za-z][\w+.-]+:', path)
    is_template = re.search(r'[{}$<>]|%[sd(]', path)
    return not is_address and not is_template


def first_file(folders: Iterable[Path], name: str) -> Path | None:
    """Return the first folder/name that is a file.

    MuJoCo takes both kinds of slashes, and takes ".." out without looking whether the folder before
    it exists.
    """
    for folder in folders:
        path = os.path.normpath(os.path.join(folder, name.replace('\\', '/')))
        if os.path.isfile(path):
            return Path(path)
    return None


def included_files(file: Path) -> list[Element]:
    """Return the <include> elements of one file, in the order of the document."""
    root, _ = load(file)
    found = []
    todo = list(reversed(root.children)) if root else []
    while todo:
        e = todo.pop()
        if e.tag.lower() == 'include':
            found.append(e)
        else:
            todo.extend(reversed(e.children))
    return found


# -----------------------------------------------------------------------------
# one model: the main file with everything it includes
class Model:
    """The elements of a main file and of the files it includes, and what is wrong with them.

    Args:
        main: The file. It has a root element. Where that makes it a part (`is_part`), the file that
            includes it is not known, so that what it names may lie elsewhere.
    """

    def __init__(self, main: Path):
        self.main = main
        self.findings: list[Finding] = []
        self._unsure: list[tuple[Placed, str]] = []
        self._paths = {os.path.normpath(main)}
        self._files = {main.resolve()}
        root, _ = load(main)
        assert root is not None, f'{main}: the caller has to load it and look at its kind'
        self.is_part = kind(root) == 'part'
        self.elements = list(self._place(root.children))
        self.defaults = self._read_defaults()
        self.compiler: dict[str, str] = {}
        self.own_compiler: dict[Path, dict[str, str]] = {}
        for e in self.elements:
            if e.tag == 'compiler':
                for settings in (self.compiler, self.own_compiler.setdefault(e.file, {})):
                    settings.update(_compiler_settings(e))

    def _say(self, element, severity, text):
        self.findings.append(Finding(element.file, element.line, severity, text))

    def _place(self, elements):
        """Yield the elements in document order with includes resolved.

        This is a loop and not a recursion because files inside files get deep.
        """
        todo = [(e, (self.main.parent,), ('mujoco',), ()) for e in reversed(elements)]
        while todo:
            e, folders, ancestors, classes = todo.pop()
            tag = e.tag.lower()
            if tag == 'include':
                children, folders = self._include(e, folders)
            else:
                yield Placed(
                    tag, e.attributes, e.line, e.file, folders, ancestors[-1], ancestors, classes
                )
                children = e.children
                ancestors = (*ancestors, tag)
                if tag == 'default':
                    classes = (*classes, e.attributes.get('class', 'main' if not classes else ''))
                elif 'childclass' in e.attributes:
                    classes = (e.attributes['childclass'],)
            todo.extend((child, folders, ancestors, classes) for child in reversed(children))

    def _include(self, e, folders):
        """Return what to put in the place of an <include>, and the folders that it counts from."""
        name = e.attributes.get('file', '')
        nothing = ((), folders)
        if is_absolute(name):
            self._say(
                e,
                'ERROR',
                f'absolute path in <include>: {name}; write it relative to the main file',
            )
        elif not is_checkable(name):
            return nothing
        # Another main file may find another file under the name that a part gives.
        error = 'WARNING' if self.is_part else 'ERROR'
        target = first_file((folders[0], folders[-1]), name)
        if target is None:
            if not is_absolute(name):
                self._missing(e, 'include', name, [Path(folders[0], name), Path(folders[-1], name)])
            return nothing
        if target.resolve() in self._files:
            # MuJoCo goes by the path: it loads a file a second time by way of a link.
            severity = error if str(target) in self._paths else 'WARNING'
            self._say(e, severity, f'{name} is included twice; MuJoCo takes a file once per model')
            return nothing
        self._paths.add(str(target))
        self._files.add(target.resolve())
        root, broken = load(target)
        if broken:
            self.findings.append(broken)
        elif not root.children:
            self._say(
                e, error, f'{name} has no element inside <{root.tag}>: MuJoCo refuses an empty file'
            )
        return root.children if root else (), (*folders, target.parent)

    def _missing(self, e, attribute, name, places):
        looked = ', '.join(dict.fromkeys(map(str, places)))
        if self.is_part:
            self._unsure.append((e, name))
        else:
            self._say(e, 'ERROR', f'missing file: {attribute}="{name}" is not at {looked}')

    def check(self) -> list[Finding]:
        """Return all findings."""
        for e in self.elements:
            self._check_numbers(e)
            if 'default' not in e.ancestors:
                self._check_files(e)
            if e.tag == 'compiler':
                for name in DIRECTORIES:
                    if is_absolute(e.attributes.get(name, '')):
                        self._say(
                            e,
                            'ERROR',
                            f'absolute path: {name}="{e.attributes[name]}"; '
                            'write it relative to the main file',
                        )
            if e.tag == 'mesh' and 'scale' in e.attributes:
                self._check_scale(e)
        if self._unsure:
            e, name = self._unsure[0]
            self._say(
                e,
                'WARNING',
                f'cannot tell whether "{name}" exists ({len(self._unsure)} such here): '
                'paths count from the file that includes this one, and none was found that does',
            )
        self._check_keyframes()
        self._check_names()
        self._check_defaults()
        return self.findings

    # -- files
    def _check_files(self, e):
        a = e.attributes
        if e.tag == 'model':
            self._check_file(e, 'file', None)
        elif (
            e.tag in ('mesh', 'hfield', 'skin')
            or e.tag == 'flexcomp'
            and a.get('type') in ('mesh', 'gmsh')
        ):
            self._check_file(e, 'file', 'meshdir')
        elif e.tag == 'texture' and a.get('builtin', 'none') == 'none':
            for attribute in ('file',) if a.get('file') else CUBE_FACES:
                self._check_file(e, attribute, 'texturedir')

    def _check_file(self, e, attribute, directory):
        """Check that the file an attribute names is where MuJoCo looks.

        `directory` is the attribute of <compiler> that says where such files are; None where there
        is none for them.
        """
        name = e.attributes.get(attribute, '')
        if not name:
            return
        strip = directory and self.compiler.get('strippath') == 'true'
        if is_absolute(name) and strip:
            self._say(e, 'WARNING', f'absolute path: {attribute}="{name}"; only strippath saves it')
        elif is_absolute(name):
            self._say(
                e,
                'ERROR',
                f'absolute path: {attribute}="{name}"; write it relative to the main file',
            )
            return
        elif not is_checkable(name):
            return
        asked = re.split(r'[/\\]', name)[-1] if strip else name
        where = self.compiler.get(directory, '')
        if is_absolute(where) or not is_checkable(where):
            return  # An absolute one is a finding of its own.
        places = [Path(e.folders[0], where.replace('\\', '/')), *e.folders[1:][-1:]]
        found = first_file(places, asked)
        if found is None:
            own = Path(e.folders[-1], self.own_compiler.get(e.file, {}).get(directory, ''))
            if len(e.folders) > 1 and (found := first_file([own], name)):
                self._say(
                    e,
                    'WARNING',
                    f'{attribute}="{name}" is at {found}, where MuJoCo does not look: '
                    f'one <compiler> counts for all files, relative to {self.main}',
                )
            else:
                self._missing(e, attribute, name, [place / asked for place in places])
        elif e.tag == 'mesh' and (size := mesh_size(found)):
            self._check_size(e, numbers(self._with_defaults(e).get('scale', '1 1 1')), size)

    # -- proportions
    def _check_scale(self, e):
        scale = [abs(x) for x in numbers(e.attributes['scale'])]
        low, high = SCALE_RANGE
        if scale and (min(scale) < low or max(scale) > high):
            self._say(
                e,
                'WARNING',
                f'mesh scale {e.attributes["scale"]}: expected {low:g} to {high:g} '
                '(.001 for a mesh in millimetres)',
            )
        elif scale and max(scale) > 10 * min(scale):
            self._say(
                e, 'WARNING', f'mesh scale {e.attributes["scale"]}: very different along the axes'
            )

    def _check_size(self, e, scale, size):
        if len(scale) != 3:
            return
        longest = max(abs(s * x) for s, x in zip(scale, size))
        low, high = SIZE_RANGE_M
        if not low < longest < high:
            self._say(
                e,
                'WARNING',
                f'mesh {e.attributes["file"]} is {longest:.3g} m long: is scale right? '
                '(.001 for a mesh in millimetres)',
            )

    # -- numbers
    def _check_numbers(self, e):
        """Numbers that MuJoCo refuses, or takes and cannot simulate."""
        for name in POSITIVE:
            if any(x < 0 for x in numbers(e.attributes.get(name, ''))) and e.tag in POSITIVE[name]:
                self._say(e, 'ERROR', f'{e.tag} {name}="{e.attributes[name]}" is negative')
        for name in RANGES:
            ends = numbers(e.attributes.get(name, ''))
            if len(ends) == 2 and ends[0] > ends[1]:
                self._say(e, 'ERROR', f'{e.tag} {name}="{e.attributes[name]}": low end above high')
        if e.tag == 'replicate':
            self._check_copies(e)

    def _check_copies(self, e):
        """That a <replicate> ends: MuJoCo takes any count, and never comes back from 10^8."""
        count = numbers(e.attributes.get('count', '1'))
        if len(count) == 1 and not 0 < count[0] <= MOST_COPIES:
            text = f'replicate count="{e.attributes["count"]}": expected 1 to {MOST_COPIES}'
            self._say(e, 'ERROR', text)

    def _check_keyframes(self):
        """Lengths of qpos, qvel and ctrl in keyframes, where no body is copied or attached."""
        tags = {e.tag for e in self.elements}
        if self.is_part or tags & {'replicate', 'attach', 'composite', 'flexcomp', 'plugin'}:
            return
        joints = [e for e in self.elements if e.parent in BODIES and 'default' not in e.ancestors]
        n_qpos = 0
        n_qvel = 0
        for e in joints:
            kind = self._with_defaults(e).get('type', 'hinge') if e.tag == 'joint' else ''
            kind = 'free' if e.tag == 'freejoint' else kind
            n_qpos += {'free': 7, 'ball': 4, 'hinge': 1, 'slide': 1}.get(kind, 0)
            n_qvel += {'free': 6, 'ball': 3, 'hinge': 1, 'slide': 1}.get(kind, 0)
        n_ctrl = sum(e.parent == 'actuator' for e in self.elements)
        for e in self.elements:
            if e.tag != 'key' or e.parent != 'keyframe':
                continue
            for name, expected in (('qpos', n_qpos), ('qvel', n_qvel), ('ctrl', n_ctrl)):
                there = len(e.attributes.get(name, '').split())
                if there not in (0, expected):
                    self._say(e, 'ERROR', f'key {name} has {there} numbers, expected {expected}')

    # -- names
    def _check_names(self):
        first = {}
        for e in self.elements:
            if 'default' in e.ancestors and e.tag != 'default':
                continue
            own_space = {'freejoint': 'joint', 'worldbody': ''}.get(e.tag, e.tag)
            space = e.parent if e.parent in SECTIONS else own_space
            name = e.attributes.get('class' if e.tag == 'default' else 'name', '')
            if not name and e.tag in NAMED_BY_FILE:
                name = Path(e.attributes.get('file', '').replace('\\', '/')).stem
            if not name or not (space in NAMED or e.parent in SECTIONS or e.tag == 'default'):
                continue
            if e.tag == 'joint' and e.parent not in BODIES:
                continue  # A tendon or an equality refers to a joint.
            key = (space, name)
            if key in first:
                other = first[key]
                at = f'line {other.line}' if other.file == e.file else f'{other.file}:{other.line}'
                self._say(e, 'WARNING', f'duplicate name: {space} "{name}" is also at {at}')
            first.setdefault(key, e)

    # -- what defaults decide
    def _check_defaults(self):
        limited_by_range = self.compiler.get('autolimits', 'true') == 'true'
        for e in self.elements:
            if e.parent not in BODIES or e.tag not in ('geom', 'joint'):
                continue
            attributes = self._with_defaults(e)
            name = attributes.get('name')
            label = f'{e.tag} "{name}"' if name else e.tag
            if e.tag == 'joint':
                limited = attributes.get('limited', 'auto')
                if limited == 'auto':
                    limited = 'true' if 'range' in attributes and limited_by_range else 'false'
                if limited == 'false' and attributes.get('type', 'hinge') in ('hinge', 'slide'):
                    self._say(e, 'WARNING', f'{label} has no limits: give it a range')
            elif attributes.get('group') == VISUAL_GROUP:
                self._check_weight(e, attributes, label)

    def _check_weight(self, e, attributes, label):
        heavy = []
        for key in ('mass', 'density'):
            if any(x > 0 for x in numbers(attributes.get(key, '0'))):
                heavy.append(key)
        density_is_overruled = heavy == ['density'] and 'mass' in attributes
        if heavy and not density_is_overruled:
            self._say(
                e,
                'WARNING',
                f'{label} is in the visual group {VISUAL_GROUP} and has '
                f'{heavy[0]}="{attributes[heavy[0]]}": a picture weighs nothing (mass="0")',
            )

    def _with_defaults(self, e):
        """Return an element's attributes; those it does not set come from its class."""
        own = e.attributes.get('class') or (e.classes[-1] if e.classes else 'main')
        return {**self.defaults.get(own, self.defaults['main']).get(e.tag, {}), **e.attributes}

    def _read_defaults(self):
        """Return {class: {'geom': attributes, 'joint': .., 'mesh': ..}}, inherited ones too."""
        made = {'main': {}}
        for e in self.elements:
            if e.tag == 'default':
                parent = made.get(e.classes[-1], {}) if e.classes else {}
                name = e.attributes.get('class', 'main' if not e.classes else '')
                if e.classes or name not in made:
                    made[name] = {tag: dict(values) for tag, values in parent.items()}
            elif e.parent == 'default' and e.tag in ('geom', 'joint', 'mesh'):
                made[e.classes[-1]].setdefault(e.tag, {}).update(e.attributes)
        return made


def _compiler_settings(e):
    """Return what one <compiler> element sets.

    assetdir stands for meshdir and texturedir where these are not given.
    """
    found = {k: v for k, v in e.attributes.items() if k in ('strippath', 'autolimits')}
    for name in ('meshdir', 'texturedir'):
        if name in e.attributes or 'assetdir' in e.attributes:
            found[name] = e.attributes.get(name, e.attributes.get('assetdir'))
    return found


def numbers(text: str) -> tuple[float, ...]:
    """Return the floats of an attribute, none of them where some word is not a number."""
    try:
        return tuple(float(word) for word in text.split())
    except ValueError:
        return ()


@functools.cache
def mesh_size(file: Path) -> tuple[float, ...] | None:
    """Return the edges (m, unscaled) of the bounding box of a binary STL file, None for others."""
    if file.suffix.lower() != '.stl' or file.stat().st_size < 84 or not os.access(file, os.R_OK):
        return None
    with open(file, 'rb') as f:
        n = struct.unpack('<80xI', f.read(84))[0]
        if n == 0 or file.stat().st_size != 84 + 50 * n:
            return None  # It is ASCII, or a pointer to a file stored elsewhere.
        step = max(1, n // 2000)  # A sample of the triangles shows the order of magnitude.
        low = [math.inf] * 3
        high = [-math.inf] * 3
        content = f.read()
    for i in range(0, n, step):
        corners = struct.unpack_from('<9f', content, 50 * i + 12)
        for axis in range(3):
            low[axis] = min(low[axis], *corners[axis::3])
            high[axis] = max(high[axis], *corners[axis::3])
    return tuple(b - a for a, b in zip(low, high))


# -----------------------------------------------------------------------------
# URDF
def check_urdf(file: Path) -> list[Finding]:
    """Return the findings of a URDF file.

    A mesh that is not found is only a warning: every program looks for packages in its own way, and
    MuJoCo throws visual meshes away.
    """
    root, _ = load(file)
    assert root is not None, f'{file}: the caller has to load it and look at its kind'
    findings: list[Finding] = []
    if any(name.startswith('xmlns:xacro') for name in root.attributes):
        return findings  # It is a template for xacro.
    meshdir = ''
    todo = [root]
    while todo:
        element = todo.pop()
        if element.tag == 'compiler':
            meshdir = element.attributes.get('meshdir', element.attributes.get('assetdir', meshdir))
        if element.tag == 'mesh' and 'filename' in element.attributes:
            severity, text = _urdf_mesh(file, element.attributes['filename'], meshdir)
            if severity:
                findings.append(Finding(file, element.line, severity, text))
        todo.extend(reversed(element.children))
    return findings


def _urdf_mesh(file, name, meshdir):
    """Return (severity, text) of what is wrong with a mesh, (None, '') where nothing is."""
    if is_absolute(name):
        return 'ERROR', f'absolute path: filename="{name}"; write it relative to the file'
    package = re.match(r'(?:package|model)://([^/]+)/(.*)', name)
    if package:
        places = _package_folders(file, package[1])
        if not places:
            return None, ''  # Nothing can be said of a package that is not here.
        name = package[2]
    elif not is_checkable(name):
        return None, ''
    else:
        places = [file.parent]
    last = name.split('/')[-1]
    if (
        first_file([*places, file.parent], name)
        or first_file([file.parent / meshdir, file.parent], last)
        or first_file([file.parent / meshdir], name)
    ):
        return None, ''
    return 'WARNING', f'missing file: filename="{name}" is not in {places[0]}'


def _package_folders(file, package):
    """Return the folders above a file that are this ROS package, or hold it."""
    found = []
    for folder in file.resolve().parents:
        place = folder if folder.name == package else folder / package
        if os.path.isdir(place):
            found.append(place)
    return found


# -----------------------------------------------------------------------------
# many files
def collect(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files to check: those named, and those in the folders named."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for file in sorted(path.rglob('*')):
            if file.suffix.lower() in SUFFIXES and os.path.isfile(file):
                yield file


def neighbours(file: Path) -> Iterator[Path]:
    """Yield the files that may include one named by itself.

    They lie in its folder, in the one above, and in the other folders of that one.
    """
    around = file.absolute().parent.parent
    for pattern in ('*.xml', '*/*.xml'):
        yield from (p for p in around.glob(pattern) if os.path.isfile(p))


def lint(paths: list[Path]) -> list[Finding]:
    """Return the findings of files and folders, sorted by file and line.

    Raises:
        FileNotFoundError: A path does not exist.
    """
    for path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(f'{path}: no such file or folder')
    asked = list(dict.fromkeys(collect(paths)))
    named = {p for p in paths if not os.path.isdir(p)}
    models = {f.resolve(): f for f in asked if _is_mjcf(f)}
    around = dict(models)
    for path in named:
        root, _ = load(path)
        if root and kind(root) != 'urdf':
            for file in neighbours(path):
                if _is_mjcf(file):
                    around.setdefault(file.resolve(), file)
    includers = _includers(around)
    findings: set[Finding] = set()
    for file in asked:
        root, broken = load(file)
        if broken and _might_be_a_model(file):
            findings.add(broken)
        elif kind(root) == 'urdf':
            findings |= set(check_urdf(file))
        elif kind(root) is None and file in named and file.resolve() not in includers:
            findings.add(Finding(file, 1, 'ERROR', 'not MJCF or URDF'))

    @functools.cache
    def check(main: Path) -> list[Finding]:
        return Model(around[main]).check()

    for main, parts in _mains(models, includers, check).items():
        for finding in check(main):
            file = finding.file.resolve()
            if file in parts or main in models:
                findings.add(finding._replace(file=models.get(file, finding.file)))
    return sorted(findings, key=lambda f: (str(f.file), f.line, f.severity, f.text))


def _is_mjcf(file):
    return kind(load(file)[0]) in ('model', 'part')


def _might_be_a_model(file):
    """Tell whether broken XML may be meant as a model; it may be something else altogether."""
    text, why = read(file)
    if why:
        return True
    text = re.sub(r'<!--.*?-->|<[?!].*?>', '', text, flags=re.S)
    first = re.search(r'<\s*([A-Za-z_:][\w:.-]*)', text)
    if first is None:
        return file.suffix.lower() in SUFFIXES
    return first[1].lower() in ('mujoco', 'mujocoinclude', 'robot')


def _includers(files):
    """Return {file: main files above it}, all resolved.

    An included file is looked for from every main file, as MuJoCo does.
    """
    includers = {}
    for main in files:
        todo = [(main, main.parent)]
        seen = set()
        while todo:
            file, folder = todo.pop()
            for e in included_files(file):
                target = first_file((main.parent, folder), e.attributes.get('file', ''))
                if target is None:
                    continue
                target = target.resolve()
                if target not in seen and target != main:
                    seen.add(target)
                    includers.setdefault(target, set()).add(main)
                    todo.append((target, target.parent))
    return includers


def _mains(models, includers, check):
    """Return {main file: those of `models` to check as parts of it}.

    A file is checked in every model it is part of. Where none of these was asked about, it is
    checked in the one in which it fares best, which may be the file by itself.
    """
    mains = {}
    for file, path in models.items():
        above = sorted(f for f in includers.get(file, ()) if not includers.get(f)) or [file]
        asked = [main for main in above if main in models]
        if not asked:
            alone = [file] if kind(load(path)[0]) == 'model' else []
            asked = [min(above + alone, key=functools.partial(_count_errors, check, file))]
        for main in asked:
            mains.setdefault(main, set()).add(file)
    return mains


def _count_errors(check, file, main):
    return sum(f.severity == 'ERROR' and f.file.resolve() == file for f in check(main))


if __name__ == '__main__':
    words = sys.argv[1:]
    if '--help' in words or '-h' in words:
        print(__doc__.strip())
        sys.exit()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')  # Names of files need not be UTF-8.
    try:
        for word in words:
            if word.startswith('-'):
                raise FileNotFoundError(
                    f'{word}: unknown option; expected files, folders or --help'
                )
        found = lint([Path(word) for word in words] or [Path(__file__).parent])
    except FileNotFoundError as missing:
        print(missing, file=sys.stderr)
        sys.exit(2)
    for f in found:
        print(f'{f.file}:{f.line}: {f.severity}: {f.text}')
    errors = sum(f.severity == 'ERROR' for f in found)
    print(f'{errors} errors, {len(found) - errors} warnings', file=sys.stderr)
    sys.exit(1 if errors else 0)
