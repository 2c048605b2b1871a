"""Check MJCF and URDF files without loading them: are the files there, will they be on another
machine?

python assets/lint.py                      # the files beside this one
python assets/lint.py robots/ scene.xml    # folders (recursively: *.xml *.mjcf *.urdf) and files

One line per finding, `file:line: ERROR|WARNING: what`; exit status 1 if there is an ERROR, 2 for a
path that does not exist and for an unknown option. Needs only the standard library. In folders, XML
that is neither MJCF nor URDF is passed over.

ERROR: malformed XML; an absolute path; a missing file; a file included twice, or without an
element; a file named here that is neither MJCF nor URDF. WARNING: a file that is there, but not
where MuJoCo looks; duplicate names; a mesh scale or size out of proportion; a geom of the visual
group 2 with a mass of its own; a hinge or slide without limits.

How MuJoCo 4.0 finds files (tried out on it, main file by its absolute path; documented in
mujoco.readthedocs.io/en/stable/XMLreference.html#compiler):
- <include> puts the other file's elements in its own place before anything is read. It is looked
for beside
  the main file, then beside the file that includes. So one <compiler> counts for all; the last
  value wins.
- mesh, hfield, skin, flexcomp: <main folder>/<meshdir>/<file>, else beside the included file that
names it,
  without meshdir. texture: the same with texturedir. assetdir sets both, strippath keeps the last
  part only.
- ".." is taken out of a path before anything is opened: x/../m.obj needs no folder x.
- <model> (for <attach>): beside the main file, else beside the included file that names it; it is
then a
  main file itself, with a <compiler> of its own.
A file that another one includes is therefore checked as part of that one.
"""

import bisect
import functools
import math
import os
import re
import struct
import sys
from collections import namedtuple
from pathlib import Path

SUFFIXES = ('.xml', '.mjcf', '.urdf')
CUBE_FACES = ('fileright', 'fileleft', 'fileup', 'filedown', 'filefront', 'fileback')
DIRECTORIES = ('assetdir', 'meshdir', 'texturedir')
BODIES = (
    'worldbody',
    'body',
    'frame',
    'replicate',
)  # what a geom or joint of the kinematic tree stands in
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
NAMED_BY_FILE = ('mesh', 'texture', 'hfield')  # those without a name are called like their file
# every child of these sections is named in one space of names
SECTIONS = {'actuator': 'actuator', 'sensor': 'sensor', 'tendon': 'tendon', 'equality': 'equality'}
SCALE_RANGE = (
    1e-4,
    99.0,
)  # millimetres are .001, inches .0254; beyond this range a power of ten got lost
SIZE_RANGE_M = 1e-3, 100.0  # longest edge of a mesh's bounding box
VISUAL_GROUP = '2'

# file: where the element is written; folders: of the files that include each other down to it, main
# file first; ancestors, parent: tags around it once includes are resolved; classes: of the defaults
# around it
Element = namedtuple('Element', 'tag attributes line file children', defaults=((),))
Placed = namedtuple('Placed', 'tag attributes line file folders parent ancestors classes')
Finding = namedtuple('Finding', 'file line severity text')


# -- XML as MuJoCo reads it ----------------------------------------------------------------------------------
# MuJoCo's parser (tinyxml2) takes what the standard does not: "--" in comments, a bare & or <, any
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
DEEPEST = (
    498  # open elements inside each other; one more and MuJoCo says XML_ELEMENT_DEPTH_EXCEEDED
)


class Malformed(ValueError):
    """XML that MuJoCo's parser refuses. `line` counts from 1."""

    def __init__(self, text, line):
        super().__init__(text)
        self.line = line


def parse(text, file):
    """Text of an XML file -> root Element, None where there is none. Raises Malformed."""
    text = text.lstrip('\ufeff').split('\0')[0]
    starts = [0, *(m.end() for m in re.finditer('\n', text))]

    def line(offset):
        return bisect.bisect_right(starts, offset)

    stack = []
    top = []
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
            if not stack:  # MuJoCo reads no further
                break
            if token['end'] != stack[-1].tag:
                opened = f'<{stack[-1].tag}> of line {stack[-1].line}'
                raise Malformed(
                    f'</{token["end"]}> closes nothing: {opened} is still open', line(begin)
                )
            stack.pop()
        elif token['start']:
            element = Element(token['start'], {}, line(begin), file, [])
            while found := _ATTRIBUTE.match(text, at):
                name = found[1]
                at = found.end()
                if name in element.attributes:
                    raise Malformed(
                        f'{name} appears twice in <{element.tag}>', line(found.start(1))
                    )
                element.attributes[name] = _unescape(found[2][1:-1])
            close = _CLOSE.match(text, at)
            if close is None:
                where = f'{text[at : at + 30].strip().splitlines()[:1] or ["end of file"]}'
                raise Malformed(
                    f'in <{element.tag}>: expected name="value", > or />, got {where}', line(at)
                )
            at = close.end()
            (stack[-1].children if stack else top).append(element)
            if not close[1]:
                stack.append(element)
                if len(stack) > DEEPEST:
                    raise Malformed(f'more than {DEEPEST} elements inside each other', line(begin))
    if stack:
        raise Malformed(f'<{stack[-1].tag}> is never closed', stack[-1].line)
    return top[0] if top else None


def _unescape(value):
    named = {'lt': '<', 'gt': '>', 'quot': '"', 'apos': "'", 'amp': '&'}
    return _ENTITY.sub(
        lambda m: named[m[1]] if m[1] else chr(int(m[2], 16) if m[2] else int(m[3])), value
    )


def read(file):
    """(text, None) of a file, or ('', why it cannot be read). Other encodings keep their bytes in
    names."""
    try:
        return file.read_bytes().decode('utf-8', errors='surrogateescape'), None
    except OSError as error:
        return '', error.strerror


@functools.cache
def load(file):
    """(root Element or None, Finding or None) of a file; read once."""
    text, why = read(file)
    if why:
        return None, Finding(file, 1, 'ERROR', f'cannot be read: {why}')
    try:
        root = parse(text, file)
    except Malformed as error:
        return None, Finding(file, error.line, 'ERROR', f'malformed XML: {error}')
    return root, None if root else Finding(file, 1, 'ERROR', 'malformed XML: no element in it')


def kind(root):
    """'model', 'part' (a fragment that only makes sense included), 'urdf', or None for other
    XML."""
    kinds = {'mujoco': 'model', 'mujocoinclude': 'part', 'robot': 'urdf'}
    return kinds.get(root.tag.lower()) if root else None


# -- paths ---------------------------------------------------------------------------------------------------
def is_absolute(path):
    return bool(re.match(r'[/\\]|[A-Za-z]:[/\\]|file:', path))


def is_checkable(path):
    """False for a resource provider's address (scheme:...) and for a template some program fills
    in."""
    return not re.match(r'[A-Za-z][\w+.-]+:', path) and not re.search(r'[{}$<>]|%[sd(]', path)


def first_file(folders, *parts):
    """The first folder/parts that is a file, or None. MuJoCo takes both kinds of slashes, and takes
    ".." out without looking whether the folder before it exists."""
    for folder in folders:
        path = os.path.normpath(os.path.join(folder, *(part.replace('\\', '/') for part in parts)))
        if os.path.isfile(path):
            return Path(path)
    return None


def included_files(file):
    """Elements <include> of one file."""
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


# -- one model: the main file with everything it includes ----------------------------------------------------
class Model:
    """The elements of a main file and of what it includes, and what is wrong with them
    (`findings`). is_part: it only makes sense inside another file that is not known: what it names
    may be elsewhere."""

    def __init__(self, main):
        self.main = main
        self.findings = []
        self._unsure = []
        self._paths = {os.path.normpath(main)}
        self._files = {main.resolve()}
        root, _ = load(main)
        self.is_part = kind(root) == 'part'
        self.elements = list(self._place(root.children))
        self.defaults = self._read_defaults()
        self.compiler = {}
        self.own_compiler = {}
        for e in self.elements:
            if e.tag == 'compiler':
                for settings in (self.compiler, self.own_compiler.setdefault(e.file, {})):
                    settings.update(_compiler_settings(e))

    def _say(self, element, severity, text):
        self.findings.append(Finding(element.file, element.line, severity, text))

    def _place(self, elements):
        """Elements in document order with includes resolved; not recursive: files inside files get
        deep."""
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
        """(elements to put in the place of <include>, folders they count from)."""
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
        error = 'WARNING' if self.is_part else 'ERROR'  # another main file may find another one
        target = first_file((folders[0], folders[-1]), name)
        if target is None:
            if not is_absolute(name):
                self._missing(e, 'include', name, [Path(folders[0], name), Path(folders[-1], name)])
            return nothing
        if (
            target.resolve() in self._files
        ):  # MuJoCo goes by the path: it loads a second one by a link
            self._say(
                e,
                error if str(target) in self._paths else 'WARNING',
                f'{name} is included twice; MuJoCo takes a file once per model',
            )
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

    def check(self):
        """All findings."""
        for e in self.elements:
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
        """directory: the compiler's attribute that says where such files are, None: they ignore
        it."""
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
            return  # the first is a finding of its own
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
        longest, (low, high) = max(abs(s * x) for s, x in zip(scale, size)), SIZE_RANGE_M
        if not low < longest < high:
            self._say(
                e,
                'WARNING',
                f'mesh {e.attributes["file"]} is {longest:.3g} m long: is scale right? '
                '(.001 for a mesh in millimetres)',
            )

    # -- names
    def _check_names(self):
        first = {}
        for e in self.elements:
            if 'default' in e.ancestors and e.tag != 'default':
                continue
            space = SECTIONS.get(e.parent) or {'freejoint': 'joint', 'worldbody': ''}.get(
                e.tag, e.tag
            )
            name = e.attributes.get('class' if e.tag == 'default' else 'name', '')
            if not name and e.tag in NAMED_BY_FILE:
                name = Path(e.attributes.get('file', '').replace('\\', '/')).stem
            if not name or not (space in NAMED or e.parent in SECTIONS or e.tag == 'default'):
                continue
            if e.tag == 'joint' and e.parent not in BODIES:  # of a tendon or of an equality
                continue
            key = space, name
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
            a = self._with_defaults(e)
            label = f'{e.tag} "{a["name"]}"' if a.get('name') else e.tag
            if e.tag == 'joint':
                limited = a.get('limited', 'auto')
                free = (
                    limited == 'false'
                    or limited == 'auto'
                    and not ('range' in a and limited_by_range)
                )
                if free and a.get('type', 'hinge') in ('hinge', 'slide'):
                    self._say(e, 'WARNING', f'{label} has no limits: give it a range')
            elif a.get('group') == VISUAL_GROUP:
                heavy = [
                    n for n in ('mass', 'density') if any(x > 0 for x in numbers(a.get(n, '0')))
                ]
                if heavy and not (heavy == ['density'] and 'mass' in a):
                    self._say(
                        e,
                        'WARNING',
                        f'{label} is in the visual group {VISUAL_GROUP} and has '
                        f'{heavy[0]}="{a[heavy[0]]}": a picture weighs nothing (mass="0")',
                    )

    def _with_defaults(self, e):
        """Attributes of an element, those of its class where it has none of its own."""
        own = e.attributes.get('class') or (e.classes[-1] if e.classes else 'main')
        return {**self.defaults.get(own, self.defaults['main']).get(e.tag, {}), **e.attributes}

    def _read_defaults(self):
        """{class: {'geom': attributes, 'joint': .., 'mesh': ..}} with what nested classes
        inherit."""
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
    """What one <compiler> element changes; assetdir stands for meshdir and texturedir that are not
    given."""
    found = {k: v for k, v in e.attributes.items() if k in ('strippath', 'autolimits')}
    for name in ('meshdir', 'texturedir'):
        if name in e.attributes or 'assetdir' in e.attributes:
            found[name] = e.attributes.get(name, e.attributes.get('assetdir'))
    return found


def numbers(text):
    """Floats of an attribute; () where some word is not a number."""
    try:
        return tuple(float(word) for word in text.split())
    except ValueError:
        return ()


@functools.cache
def mesh_size(file):
    """Edges (m, unscaled) of the bounding box of a binary STL file; None for other files."""
    if file.suffix.lower() != '.stl' or file.stat().st_size < 84 or not os.access(file, os.R_OK):
        return None
    with open(file, 'rb') as f:
        n = struct.unpack('<80xI', f.read(84))[0]
        if n == 0 or file.stat().st_size != 84 + 50 * n:
            return None  # ASCII, or a pointer to a file stored elsewhere
        step = max(1, n // 2000)  # a sample of the triangles shows the order of magnitude
        low = [math.inf] * 3
        high = [-math.inf] * 3
        content = f.read()
    for i in range(0, n, step):
        corners = struct.unpack_from('<9f', content, 50 * i + 12)
        for axis in range(3):
            low[axis] = min(low[axis], *corners[axis::3])
            high[axis] = max(high[axis], *corners[axis::3])
    return tuple(b - a for a, b in zip(low, high))


# -- URDF ----------------------------------------------------------------------------------------------------
def check_urdf(file):
    """Findings of a URDF file. A mesh that is not found is only a warning: every program has its
    own way to look for packages, and MuJoCo throws visual meshes away."""
    root = load(file)[0]
    findings = []
    meshdir = ''

    def walk(element):
        nonlocal meshdir
        if element.tag == 'compiler':
            meshdir = element.attributes.get('meshdir', element.attributes.get('assetdir', meshdir))
        if element.tag == 'mesh' and 'filename' in element.attributes:
            severity, text = _urdf_mesh(file, element.attributes['filename'], meshdir)
            if severity:
                findings.append(Finding(file, element.line, severity, text))
        for child in element.children:
            walk(child)

    if not any(name.startswith('xmlns:xacro') for name in root.attributes):  # a template for xacro
        walk(root)
    return findings


def _urdf_mesh(file, name, meshdir):
    if is_absolute(name):
        return 'ERROR', f'absolute path: filename="{name}"; write it relative to the file'
    if package := re.match(r'(?:package|model)://([^/]+)/(.*)', name):
        roots = [
            p
            for p in (
                folder if folder.name == package[1] else folder / package[1]
                for folder in file.resolve().parents
            )
            if os.path.isdir(p)
        ]
        if not roots:
            return None, ''  # a package that is not here: nothing to be said
        name = package[2]
        places = roots
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


# -- many files ----------------------------------------------------------------------------------------------
def collect(paths):
    """Files to check: those named, and those in the folders named."""
    for path in paths:
        if os.path.isdir(path):
            yield from sorted(
                p for p in path.rglob('*') if p.suffix.lower() in SUFFIXES and os.path.isfile(p)
            )
        else:
            yield path


def neighbours(file):
    """MJCF files that may include one named by itself: in its folder, the one above, that one's
    folders."""
    around = file.absolute().parent.parent
    for pattern in ('*.xml', '*/*.xml'):
        yield from (p for p in around.glob(pattern) if os.path.isfile(p))


def lint(paths):
    """Findings (file, line, severity, text) of files and folders, sorted by file and line.
    Raises FileNotFoundError for a path that does not exist."""
    for path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(f'{path}: no such file or folder')
    asked = list(dict.fromkeys(collect(paths)))
    named = {p for p in paths if not os.path.isdir(p)}
    models = {f.resolve(): f for f in asked if kind(load(f)[0]) in ('model', 'part')}
    around = dict(models)
    for path in named:
        if load(path)[0] and kind(load(path)[0]) != 'urdf':
            for file in neighbours(path):
                if kind(load(file)[0]) in ('model', 'part'):
                    around.setdefault(file.resolve(), file)
    includers = _includers(around)
    findings = set()
    for file in asked:
        root, broken = load(file)
        if broken and _might_be_a_model(file):
            findings.add(broken)
        elif kind(root) == 'urdf':
            findings |= set(check_urdf(file))
        elif kind(root) is None and file in named and file.resolve() not in includers:
            findings.add(Finding(file, 1, 'ERROR', 'not MJCF or URDF'))
    check = functools.cache(lambda main: Model(around[main]).check())
    for main, parts in _mains(models, includers, check).items():
        findings |= {
            f._replace(file=models.get(f.file.resolve(), f.file))
            for f in check(main)
            if f.file.resolve() in parts or main in models
        }
    return sorted(findings, key=lambda f: (str(f.file), f.line, f.severity, f.text))


def _might_be_a_model(file):
    """False for broken XML that is something else altogether."""
    text, why = read(file)
    first = re.search(
        r'<\s*([A-Za-z_:][\w:.-]*)', re.sub(r'<!--.*?-->|<[?!].*?>', '', text, flags=re.S)
    )
    if why or first is None:
        return bool(why) or file.suffix.lower() in SUFFIXES
    return first[1].lower() in ('mujoco', 'mujocoinclude', 'robot')


def _includers(files):
    """{file: files that include it}, all resolved; a file is looked for as from every main file
    above it."""
    includers = {}
    for main in files:
        todo = [(main, main.parent)]
        seen = set()
        while todo:
            file, folder = todo.pop()
            for e in included_files(file):
                target = first_file((main.parent, folder), e.attributes.get('file', ''))
                if target and (target := target.resolve()) not in seen and target != main:
                    seen.add(target)
                    includers.setdefault(target, set()).add(main)
                    todo.append((target, target.parent))
    return includers


def _mains(models, includers, check):
    """{main file: those of `models` to check as parts of it}: every model they are part of. Where
    none of these was asked about, the one in which the file fares best, be it the file by
    itself."""
    mains = {}
    for file, path in models.items():
        above = sorted(f for f in includers.get(file, ()) if not includers.get(f)) or [file]
        alone = [file] if kind(load(path)[0]) == 'model' else []
        asked = [main for main in above if main in models] or [
            min(
                above + alone,
                key=lambda main: sum(
                    f.severity == 'ERROR' and f.file.resolve() == file for f in check(main)
                ),
            )
        ]
        for main in asked:
            mains.setdefault(main, set()).add(file)
    return mains


if __name__ == '__main__':
    words = sys.argv[1:]
    if '--help' in words or '-h' in words:
        print(__doc__.strip())
        sys.exit()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')  # names of files need not be UTF-8
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
