"""Protects assets/lint.py: what it calls an ERROR MuJoCo cannot load, and what MuJoCo loads it lets
pass.

python -m pytest tests/test_lint.py
"""

import pathlib
import struct
import subprocess
import sys

import pytest

from assets import lint
from sim.gl import mujoco

pytestmark = pytest.mark.assets
TETRAHEDRON = 'v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 2 3 4\nf 1 4 3\n'
BODY = '<worldbody><geom size="1"/></worldbody>'


@pytest.fixture
def at(tmp_path):
    """at(path, text): write a file below tmp_path -> its path; *.obj without text become a mesh."""

    def write(path, text=TETRAHEDRON):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    lint.load.cache_clear()
    lint.mesh_size.cache_clear()
    return write


def found(*paths, severity='ERROR'):
    """[(file name, line, text)] of the findings of one severity."""
    return [(f.file.name, f.line, f.text) for f in lint.lint(list(paths)) if f.severity == severity]


def loads(path):
    try:
        mujoco.MjModel.from_xml_path(str(path))
    except ValueError:
        return False
    return True


def mjcf(assets, compiler=''):
    return f'<mujoco>{compiler}<asset>{assets}</asset>{BODY}</mujoco>'


# compiler, mesh file; files there are a/m.obj, a/meshes/n.obj and main is a/main.xml
PATHS = {
    'beside': ('', 'm.obj', True),
    'missing': ('', 'nope.obj', False),
    'other case': ('', 'M.obj', False),
    'by a folder that is not there': ('', 'nope/../m.obj', True),
    'by a meshdir that is not there': ('meshdir="nope"', '../meshes/n.obj', True),
    'above what is there': ('meshdir="nope"', '../../m.obj', False),
    'entities': ('', '&#x6d;&#46;obj', True),
    'a name too long': ('', f'{"m" * 300}.obj', False),
    'by a folder with a name too long': ('', f'{"m" * 300}/../m.obj', True),
    'up and down': ('', '../a/meshes/n.obj', True),
    'backslashes': ('', r'meshes\n.obj', True),
    'meshdir': ('meshdir="meshes"', 'n.obj', True),
    'meshdir, file beside': ('meshdir="meshes"', 'm.obj', False),
    'meshdir with slash': ('meshdir="./meshes/"', 'n.obj', True),
    'assetdir': ('assetdir="meshes"', 'n.obj', True),
    'meshdir before assetdir': ('assetdir="nope" meshdir="meshes"', 'n.obj', True),
    'texturedir': ('texturedir="meshes"', 'n.obj', False),
    'strippath': ('strippath="true" meshdir="meshes"', 'some/where/n.obj', True),
    'strippath off': ('strippath="false" meshdir="meshes"', 'some/where/n.obj', False),
}


@pytest.mark.parametrize('compiler, file, there', PATHS.values(), ids=PATHS)
def test_files_are_looked_for_where_mujoco_looks(at, compiler, file, there):
    at('a/m.obj'), at('a/meshes/n.obj')
    main = at('a/main.xml', mjcf(f'\n<mesh file="{file}"/>', f'<compiler {compiler}/>'))
    assert loads(main) == there
    errors = found(main)
    assert [(name, line) for name, line, _ in errors] == ([] if there else [('main.xml', 2)])
    assert there or 'missing' in errors[0][2] and file in errors[0][2]


# These are main.xml, in a/; b/part.xml holds the mesh, written against these folders
INCLUDES = {
    'mesh beside main': ('<include file="../b/part.xml"/>', '<mesh file="m.obj"/>', True),
    'mesh beside part': ('<include file="../b/part.xml"/>', '<mesh file="p.obj"/>', True),
    'mesh nowhere': ('<include file="../b/part.xml"/>', '<mesh file="nope.obj"/>', False),
    'meshdir of main': (
        '<compiler meshdir="meshes"/><include file="../b/part.xml"/>',
        '<mesh file="n.obj"/>',
        True,
    ),
    'meshdir counts from main': (
        '<compiler meshdir="sub"/><include file="../b/part.xml"/>',
        '<mesh file="q.obj"/>',
        False,
    ),
    'part is nested': ('<include file="../b/outer.xml"/>', '<mesh file="p.obj"/>', True),
    'by a folder that is not there': (
        '<include file="nope/../../b/part.xml"/>',
        '<mesh file="p.obj"/>',
        True,
    ),
    'part twice': (
        '<include file="../b/part.xml"/><include file="../nope/../b/part.xml"/>',
        '<mesh file="p.obj"/>',
        False,
    ),
    'part twice by another': (
        '<include file="../b/outer.xml"/><include file="../b/part.xml"/>',
        '<mesh file="p.obj"/>',
        False,
    ),
    'nothing in it': ('<include file="../b/nothing.xml"/>', '', False),
    'neither MJCF nor URDF': ('<include file="../b/other.xml"/>', '<mesh file="m.obj"/>', True),
    'no such part': ('<include file="part.xml"/>', '<mesh file="p.obj"/>', False),
}


@pytest.mark.parametrize('main, assets, there', INCLUDES.values(), ids=INCLUDES)
def test_included_files_are_part_of_the_main_file(at, main, assets, there):
    for path in ('a/m.obj', 'a/meshes/n.obj', 'b/p.obj', 'b/sub/q.obj'):
        at(path)
    at('b/part.xml', f'<mujoco><asset>{assets}</asset></mujoco>')
    at('b/outer.xml', '<mujocoinclude><include file="part.xml"/></mujocoinclude>')
    at('b/nothing.xml', '<mujocoinclude><!-- nothing --></mujocoinclude>')
    at('b/other.xml', '<other><include file="part.xml"/></other>')
    path = at('a/main.xml', f'<mujoco>{main}{BODY}</mujoco>')
    folder = path.parent.parent
    assert loads(path) == there and bool(found(path.parent)) != there and bool(found(path)) != there
    # a part named by itself is read as part of the main files near it
    if there:
        assert found(folder) == found(folder / 'b' / 'part.xml') == []


def test_a_part_says_its_compiler_for_everybody(at):
    at('assets/m.obj')
    at(
        'robot.xml',
        '<mujoco><compiler meshdir="assets"/><asset><mesh file="m.obj"/></asset></mujoco>',
    )
    scene = at(
        'scene.xml',
        f'<mujoco><include file="robot.xml"/>'
        f'<asset><mesh name="again" file="m.obj"/></asset>{BODY}</mujoco>',
    )
    assert loads(scene) and found(scene.parent) == []
    # a robot that is right by itself, from another folder: MuJoCo does not find the mesh, but it is
    # there
    other = at('else/scene.xml', f'<mujoco><include file="../robot.xml"/>{BODY}</mujoco>')
    assert not loads(other) and found(scene.parent) == []
    assert 'where MuJoCo does not look' in found(scene.parent, severity='WARNING')[0][2]


def test_an_attached_model_keeps_its_own_compiler(at):
    at('b/assets/m.obj')
    robot = (
        '<mujoco model="r"><compiler meshdir="assets"/><asset><mesh name="m" file="{}"/></asset>'
        '<worldbody><body name="x"><geom type="mesh" mesh="m"/></body></worldbody></mujoco>'
    )
    at('b/robot.xml', robot.format('m.obj'))
    main = (
        '<mujoco><compiler meshdir="nope"/><asset><model name="r" file="{}"/></asset>'
        '<worldbody><attach model="r" body="x" prefix="left/"/></worldbody></mujoco>'
    )
    scene = at('a/scene.xml', main.format('../b/robot.xml'))
    assert loads(scene) and found(scene.parent.parent) == []
    at('b/robot.xml', robot.format('nope.obj'))
    lint.load.cache_clear()
    assert not loads(scene) and [f[0] for f in found(scene.parent.parent)] == ['robot.xml']
    scene = at('a/scene.xml', main.format('robot.xml'))
    lint.load.cache_clear()
    assert not loads(scene) and [f[:2] for f in found(scene)] == [('scene.xml', 1)]


@pytest.mark.parametrize(
    'element',
    [
        '<texture name="t" type="2d" file="no.png"/>',
        '<texture name="t" type="cube" fileup="no.png"/>',
        '<hfield name="h" size="1 1 1 1" file="no.png"/>',
        '<skin name="s" file="no.skn"/>',
        '<mesh name="m" file="no.stl" content_type="model/stl"/>',
    ],
)
def test_every_kind_of_file_is_looked_for(at, element):
    main = at('main.xml', mjcf(element))
    assert not loads(main) and len(found(main)) == 1
    # A missing one that MuJoCo does not read is none.
    main = at(
        'main.xml',
        mjcf(
            '<texture name="t" type="2d" builtin="flat" width="8" height="8"'
            ' file="no.png"/>'
            '<mesh name="q" file="" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/>'
        ),
    )
    lint.load.cache_clear()
    assert loads(main) and found(main) == []


def test_flexcomp_reads_a_file_only_for_some_types(at):
    flex = (
        '<mujoco><worldbody><flexcomp name="f" mass="1" type="{}" count="3 3 1" spacing=".1 .1 .1" '
        'file="no.obj"/></worldbody></mujoco>'
    )
    grid, mesh = at('grid.xml', flex.format('grid')), at('mesh.xml', flex.format('mesh'))
    assert loads(grid) and not loads(mesh) and [f[0] for f in found(grid, mesh)] == ['mesh.xml']


def test_absolute_paths_are_errors_even_where_the_file_exists(at):
    mesh = at('m.obj')
    for text in (
        mjcf(f'<mesh file="{mesh}"/>'),
        mjcf('<mesh file="m.obj"/>', f'<compiler meshdir="{mesh.parent}"/>'),
        f'<mujoco><include file="{at("part.xml", mjcf(""))}"/></mujoco>',
        mjcf(r'<mesh file="C:\models\m.obj"/>'),
    ):
        lint.load.cache_clear()
        errors = found(at('main.xml', text))
        assert len(errors) == 1 and 'absolute path' in errors[0][2], text
    lint.load.cache_clear()
    stripped = at(
        'main.xml', mjcf('<mesh file="/some/where/m.obj"/>', '<compiler strippath="true"/>')
    )
    assert loads(stripped) and found(stripped) == []
    assert 'absolute' in found(stripped, severity='WARNING')[0][2]


def test_addresses_and_templates_are_not_files(at):
    main = at(
        'main.xml',
        mjcf(
            '<mesh name="a" file="store:m.obj"/><mesh name="b" file="{folder}/m.obj"/>'
            '<mesh name="c" file="$(find robot)/m.obj"/>'
        ),
    )
    assert found(main) == []


XML = {
    'plain': '<mujoco/>',
    'comment with dashes': '<mujoco><!-- a -- b ---></mujoco>',
    'bare &': '<mujoco model="a & b"/>',
    '< in a value': '<mujoco model="a < b"/>',
    'latin-1': '<mujoco model="\xe9"/>'.encode('latin-1'),
    'byte order mark': '\ufeff<mujoco/>',
    'doctype': '<!DOCTYPE mujoco><mujoco/>',
    'space in the end tag': '<mujoco model="a"></mujoco >',
    'cdata': '<mujoco><![CDATA[ <a> ]]></mujoco>',
    'two roots': '<mujoco/><other/>',
    'quotes': "<mujoco model='a\"b'/>",
    'closes too much': '<mujoco></mujoco></worldbody>',
    'declaration': '<?xml version="1.0"?>\n<!-- x -->\n<mujoco/>',
    'mismatch': '<mujoco>\n<worldbody>\n</mujoco>',
    'unclosed': '<mujoco><worldbody>',
    'case': '<mujoco></Mujoco>',
    'unquoted': '<mujoco model=a/>',
    'no value': '<mujoco model/>',
    'twice': '<mujoco model="a" model="b"/>',
    'comment without end': '<mujoco/><!-- a',
    'unclosed tag': '<mujoco',
    'bare < in text': '<mujoco> a < 1 </mujoco>',
    'declaration in the middle': '<!-- x --><?xml version="1.0"?><mujoco/>',
    'empty': '',
    'only a comment': '<!-- a -->',
}


@pytest.mark.parametrize('text', XML.values(), ids=XML)
def test_xml_is_malformed_where_mujoco_says_so(at, text):
    main = at('main.xml', text)
    errors = found(main)
    assert loads(main) == (not errors), errors
    assert all('malformed XML' in text for _, _, text in errors) and len(errors) <= 1


def test_malformed_xml_is_found_with_its_line_also_where_it_is_included(at):
    at('part.xml', '<mujoco>\n<asset>\n</mujoco>')
    main = at('main.xml', f'<mujoco><include file="part.xml"/>{BODY}</mujoco>')
    assert [f[:2] for f in found(main.parent)] == [f[:2] for f in found(main)] == [('part.xml', 3)]


def test_other_xml_and_lone_parts_are_left_alone(at):
    at('package.xml', '<package><mesh file="no.obj"/></package>')
    at('broken.launch.xml', '<launch><a></launch>')
    part = at(
        'part.xml', '<mujocoinclude><mesh file="x/no.obj"/><mesh file="x/no2.obj"/></mujocoinclude>'
    )
    assert found(part.parent) == []
    warnings = found(part.parent, severity='WARNING')
    assert [w[:2] for w in warnings] == [('part.xml', 1)] and '2 such' in warnings[0][2]


def test_files_that_include_each_other_end(at):
    a = at('a.xml', '<mujoco><include file="b.xml"/></mujoco>')
    at('b.xml', '<mujoco><include file="a.xml"/></mujoco>')
    assert not loads(a) and [f[:2] for f in found(a.parent)] == [('a.xml', 1), ('b.xml', 1)]
    assert all('twice' in text for _, _, text in found(a.parent))


def test_a_second_name_of_a_file_is_another_file(at):
    part = at('part.xml', '<mujoco><option timestep=".001"/></mujoco>')
    part.with_name('link.xml').symlink_to('part.xml')
    main = at('main.xml', '<mujoco><include file="part.xml"/><include file="link.xml"/></mujoco>')
    assert loads(main) and found(main) == []


def test_a_broken_scene_nearby_does_not_spoil_a_model_that_is_right(at):
    robot = at(
        'robot/robot.xml',
        f'<mujoco><include file="dirs.xml"/><asset><mesh file="m.obj"/></asset>{BODY}</mujoco>',
    )
    at('robot/dirs.xml', '<mujoco><compiler meshdir="assets"/></mujoco>')
    at('robot/assets/m.obj')
    scene = at('scene.xml', '<mujoco><include file="robot/robot.xml"/></mujoco>')
    assert loads(robot) and found(robot) == []
    assert not loads(scene) and len(found(scene)) == len(found(scene.parent)) == 1


@pytest.mark.parametrize('deep', (498, 499))
def test_depth_ends_where_mujoco_ends(at, deep):
    def nest(n, inside=''):
        return '<body>' * n + inside + '</body>' * n

    main = at('main.xml', f'<mujoco><worldbody>{nest(deep - 2)}</worldbody></mujoco>')
    assert loads(main) == (deep == 498) == (found(main) == [])
    include = '<include file="part.xml"/>'  # each file counts by itself
    at('main.xml', f'<mujoco><worldbody>{nest(400, include)}</worldbody></mujoco>')
    at('part.xml', f'<mujoco>{nest(400)}</mujoco>')
    at('deeper.xml', f'<mujoco>{nest(5000)}</mujoco>')
    lint.load.cache_clear()
    assert loads(main) and found(main) == []
    assert [f[:2] for f in found(main.parent)] == [('deeper.xml', 1)]


def test_a_file_that_cannot_be_read_is_a_finding(at, monkeypatch):
    main = at('main.xml', f'<mujoco><include file="part.xml"/>{BODY}</mujoco>')
    part = at('part.xml', mjcf(''))

    def read_bytes(path, read=pathlib.Path.read_bytes):
        if path == part:
            raise PermissionError(13, 'Permission denied')
        return read(path)

    monkeypatch.setattr(pathlib.Path, 'read_bytes', read_bytes)
    for asked in (main, part, main.parent):
        assert found(asked) == [('part.xml', 1, 'cannot be read: Permission denied')]


def test_a_named_file_that_is_no_model_is_an_error(at):
    other = [
        at('README.md', 'Use `<a>` & <b>'),
        at('hostname', 'x\n'),
        at('bytes', bytes(range(256))),
        at('package.xml', '<package><mesh file="no.obj"/></package>'),
        at('empty.md', ''),
    ]
    assert found(other[0].parent) == []
    for file in other:
        assert found(file) == [(file.name, 1, 'not MJCF or URDF')]
    part = at('other.xml', '<other><option timestep=".001"/></other>')
    at('main.xml', '<mujoco><include file="other.xml"/></mujoco>')
    assert found(part) == []  # MuJoCo does not look at the root of what it includes


def test_urdf_meshes_are_found_by_package_and_by_folder(at):
    robot = (
        '<robot name="r"><link name="a">\n'
        '<{0}><geometry><mesh filename="{1}"/></geometry></{0}></link></robot>'
    )
    at('pkg/meshes/m.stl', b''), at('pkg/urdf/meshes/n.stl', b'')
    for name in (
        'package://pkg/meshes/m.stl',
        '../meshes/m.stl',
        'meshes/n.stl',
        'package://other/m.stl',
    ):
        lint.load.cache_clear()
        assert found(at('pkg/urdf/r.urdf', robot.format('collision', name))) == [], name
    for name, severity in (
        ('package://pkg/meshes/no.stl', 'WARNING'),
        ('no.stl', 'WARNING'),
        ('/abs/m.stl', 'ERROR'),
        ('file:///abs/m.stl', 'ERROR'),
    ):
        lint.load.cache_clear()
        findings = lint.lint([at('pkg/urdf/r.urdf', robot.format('collision', name))])
        assert [(f.line, f.severity) for f in findings] == [(2, severity)], name


def test_warnings_name_the_line(at):
    stl = struct.pack('<80xI', 1) + struct.pack('<12f2x', 0, 0, 1, 0, 0, 0, 500, 0, 0, 0, 300, 0)
    at('mm.stl', stl)
    main = at(
        'main.xml',
        """<mujoco>
  <default><geom density="0"/><joint damping="1"/>
    <default class="visual"><geom group="2" contype="0" conaffinity="0"/></default>
    <default class="limited"><joint range="-1 1"/></default></default>
  <asset><mesh name="a" file="mm.stl" scale=".001 .001 .001"/>
    <mesh name="b" file="mm.stl"/>
    <mesh name="c" file="mm.stl" scale="1000 1000 1000"/>
    <mesh name="d" file="mm.stl" scale=".001 .001 1"/></asset>
  <worldbody>
    <body name="x"><geom name="g" size="1" mass="1"/><joint name="free"/></body>
 <body name="y" childclass="limited"><joint name="j"/><joint name="s" type="slide"/><geom size="1"/>
      <geom class="visual" size="1"/>
      <geom class="visual" size="1" mass=".1"/></body>
    <body name="x"><freejoint/><geom size="1"/><joint type="ball"/></body>
  </worldbody>
  <tendon><fixed name="j"><joint joint="j" coef="1"/></fixed></tendon>
</mujoco>""",
    )
    said = [(line, text) for _, line, text in found(main, severity='WARNING')]
    assert [line for line, _ in said] == [6, 7, 7, 8, 10, 13, 14], said
    for (_, text), word in zip(
        said,
        (
            'm long',
            'long',
            'mesh scale',
            'very different',
            '"free" has no',
            'visual group',
            'duplicate name: body "x"',
        ),
    ):
        assert word in text
    assert found(main) == []


def test_a_mesh_is_scaled_by_its_defaults(at):
    at(
        'mm.stl',
        struct.pack('<80xI', 1) + struct.pack('<12f2x', 0, 0, 1, 0, 0, 0, 500, 0, 0, 0, 300, 0),
    )
    main = at(
        'main.xml',
        """<mujoco>
  <asset><mesh name="a" file="mm.stl"/>
    <mesh name="b" class="inch" file="mm.stl"/>
    <mesh name="c" class="inside" file="mm.stl"/>
    <mesh name="d" class="metre" file="mm.stl"/>
    <mesh name="e" class="metre" file="mm.stl" scale=".001 .001 .001"/></asset>
  <default><mesh scale=".001 .001 .001"/>
    <default class="inch"><mesh scale=".0254 .0254 .0254"/><default class="inside"/></default>
    <default class="metre"><mesh scale="1 1 1"/></default></default>
</mujoco>""",
    )
    assert [f[1] for f in found(main, severity='WARNING')] == [5]


def test_what_has_no_name_is_called_like_its_file(at):
    at('m.v2.obj'), at('x/m.v2.obj')
    for second, twice in (
        ('<mesh file="x/m.v2.obj"/>', True),
        ('<mesh name="m.v2" file="x/m.v2.obj"/>', True),
        ('<mesh name="m" file="x/m.v2.obj"/>', False),
        (r'<mesh name="" file="x\m.v2.obj"/>', True),
    ):
        main = at('main.xml', mjcf(f'<mesh file="m.v2.obj"/>{second}'))
        lint.load.cache_clear()
        assert loads(main) != twice and found(main) == []
        warnings = found(main, severity='WARNING')
        assert [w[2][:27] for w in warnings] == twice * ['duplicate name: mesh "m.v2"'], second


def test_command_prints_one_line_per_finding_and_exits_with_1_on_errors(at):
    main = at('main.xml', mjcf('\n\n<mesh file="no.obj"/>'))
    command = [sys.executable, 'assets/lint.py']
    bad = subprocess.run([*command, main.parent], capture_output=True, text=True)
    assert bad.returncode == 1 and bad.stdout.startswith(f'{main}:3: ERROR: missing file')
    assert bad.stdout.count('\n') == 1 and bad.stderr == '1 errors, 0 warnings\n'
    ours = subprocess.run(command, capture_output=True, text=True)
    assert ours.returncode == 0 and ours.stdout == '' and ours.stderr == '0 errors, 0 warnings\n'
    lost = subprocess.run([*command, 'nowhere'], capture_output=True, text=True)
    assert lost.returncode == 2 and 'nowhere: no such file' in lost.stderr
    usage = subprocess.run([*command, '--help'], capture_output=True, text=True)
    assert usage.returncode == 0 and usage.stdout.strip() == lint.__doc__.strip()
    for words in (['--strict'], [main, '-v'], ['n' * 300]):
        refused = subprocess.run([*command, *words], capture_output=True, text=True)
        assert (
            refused.returncode == 2
            and refused.stderr.startswith(str(words[-1]))
            and not refused.stdout
        )
    at('caf\udce9.xml', '<mujoco>')  # a name that is not UTF-8
    odd = subprocess.run([*command, main.parent], capture_output=True, text=True)
    assert odd.returncode == 1 and r'caf\udce9.xml:1: ERROR: malformed' in odd.stdout


@pytest.mark.parametrize(
    'body, words',
    [
        ('<geom size="1" mass="-1"/>', 'geom mass="-1" is negative'),
        ('<inertial mass="-1" pos="0 0 0" diaginertia="1 1 1"/>', 'inertial mass="-1" is negative'),
        (
            '<geom size="1"/><joint range="1 -1" limited="true"/>',
            'range="1 -1": low end above high',
        ),
        ('<geom size="1"/><joint range="-1 1" damping="-2"/>', 'joint damping="-2" is negative'),
        ('<replicate count="100000000"><geom size="1"/></replicate>', 'expected 1 to 10000'),
    ],
)
def test_numbers_that_cannot_be_simulated_are_errors(tmp_path, body, words):
    path = tmp_path / 'm.xml'
    path.write_text(f'<mujoco>\n<worldbody><body>{body}</body></worldbody>\n</mujoco>')
    (finding,) = [f for f in lint.lint([path]) if f.severity == 'ERROR']
    assert words in finding.text and finding.line == 2


def test_a_keyframe_has_the_length_of_the_model(tmp_path):
    path = tmp_path / 'm.xml'
    model = (
        '<mujoco><worldbody><body><freejoint/><geom size="1"/><body><joint range="-1 1"/>'
        '<geom size="1"/></body></body></worldbody><actuator><motor joint="a"/></actuator>\n'
        '<keyframe><key {}/></keyframe></mujoco>'
    )
    for key, words in (
        ('qpos="0 0 0 1 0 0 0 0.5" qvel="0 0 0 0 0 0 0" ctrl="1"', None),
        ('qpos="0 0 0 1 0 0 0"', 'key qpos has 7 numbers, expected 8'),
        ('qvel="0"', 'key qvel has 1 numbers, expected 7'),
        ('ctrl="0 0"', 'key ctrl has 2 numbers, expected 1'),
    ):
        path.write_text(model.format(key))
        lint.load.cache_clear()
        said = [f.text for f in lint.lint([path]) if f.severity == 'ERROR']
        assert said == ([words] if words else [])
