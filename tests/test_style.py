"""Keeps the house style: who may import whom, and that every command we print can be typed.

python -m pytest tests/test_style.py
"""

import ast
import functools
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT_NAMES = ('train', 'sample', 'sim_rollout', 'bench')
TOP = sorted(ROOT.glob('*.py'))
WINGS = sorted([*ROOT.glob('sim/*.py'), *ROOT.glob('vla/*.py')])
PYTHON = [*TOP, *WINGS]
SCRIPTS = [p for p in TOP if p.stem in SCRIPT_NAMES]
NOUNS = [p for p in PYTHON if p not in SCRIPTS and p.stem != 'configurator']
CONFIGS = sorted(ROOT.glob('config/*.py'))
SHELL = sorted([*ROOT.glob('slurm/*.sh'), ROOT / '.ci' / 'run'])
ids = dict(ids=lambda p: str(p.relative_to(ROOT)) if isinstance(p, pathlib.Path) else None)


@functools.cache
def tree(path):
    return ast.parse(path.read_text(), str(path))


def module(path):
    """Dotted name of one of our files: sim/world.py -> sim.world."""
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


def imports(path, everywhere=True):
    """Dotted names of what a file imports, also inside functions where `everywhere`."""
    names = set()
    for node in ast.walk(tree(path)) if everywhere else tree(path).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path.name}:{node.lineno}: a relative import'
            names |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
    return names


def is_main_guard(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def settings(path):
    """Names of a script's settings: lowercase assignments before
    exec(open('configurator.py').read())."""
    names = set()
    for node in tree(path).body:
        if isinstance(node, ast.Expr) and 'configurator.py' in ast.unparse(node):
            return names
        if isinstance(node, ast.Assign):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name) and t.id.islower()}
    return None  # takes subcommands, not settings


# -----------------------------------------------------------------------------
# files


def test_imports_form_no_circle():
    ours = {module(p): p for p in PYTHON}
    graph = {name: imports(p, everywhere=False) & ours.keys() - {name} for name, p in ours.items()}
    while graph:
        free = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert free, f'these import each other in a circle: {sorted(graph)}'
        for name in free:
            del graph[name]


@pytest.mark.parametrize('path', NOUNS, **ids)
def test_nouns_import_no_script(path):
    scripts = imports(path) & {*SCRIPT_NAMES, 'configurator'}
    assert not scripts, f'{path.name} imports the script {sorted(scripts)}'


@pytest.mark.parametrize(
    'wing, never',
    [('sim', 'torch'), ('vla', 'mujoco'), ('episode', 'torch'), ('episode', 'mujoco')],
)
def test_a_wing_does_not_load_what_the_other_needs(wing, never):
    """Whatever it imports may not import it either: each module is loaded by a fresh Python."""
    names = [module(p) for p in PYTHON if module(p).split('.')[0] == wing]
    code = f'import {", ".join(names)}; import sys; raise SystemExit({never!r} in sys.modules)'
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, f'{wing}: {never} was imported. {run.stderr}'


@pytest.mark.parametrize('path', SCRIPTS, **ids)
def test_scripts_import_no_script_and_hold_no_class(path):
    scripts = imports(path) & ({*SCRIPT_NAMES, 'configurator'} - {path.stem})
    assert not scripts, f'{path.name} imports {sorted(scripts)}: move what they share into a noun'
    classes = [n.name for n in ast.walk(tree(path)) if isinstance(n, ast.ClassDef)]
    assert not classes, f'{path.name} holds {classes}: classes belong in nouns'


@pytest.mark.parametrize('path', NOUNS, **ids)
def test_nouns_read_no_argv_and_no_environment(path):
    # gl chooses MuJoCo's backend, which is only to be had through the environment
    forbidden = ['sys.argv', 'argparse', 'os.getcwd', 'Path.cwd']
    if path.stem not in ('gl', 'film'):  # film asks whether there is a display
        forbidden += ['os.environ', 'os.getenv']
    for node in tree(path).body:
        if not is_main_guard(node):
            found = [word for word in forbidden if word in ast.unparse(node)]
            assert not found, (
                f'{path.name}:{node.lineno}: {found}; a noun gets everything by argument'
            )


IMPORT_EACH = """
import importlib, sys
nouns, sys.argv[1:] = sys.argv[1:], ['--surprise=1']
for name in nouns: # each by itself: the others are forgotten
    for other in nouns:
        sys.modules.pop(other, None)
    print(name, flush=True)
    print(name, file=sys.stderr, flush=True)
    importlib.import_module(name)
"""


def test_nouns_print_nothing_when_imported():
    names = sorted(map(module, NOUNS))
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', IMPORT_EACH, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    expected = ''.join(f'{name}\n' for name in names)
    assert (run.returncode, run.stdout, run.stderr) == (0, expected, expected)


@pytest.mark.parametrize('path', PYTHON, **ids)
def test_no_error_is_swallowed(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else 'everything'
            too_much = caught in ('everything', 'Exception', 'BaseException')
            assert not too_much, f'{path.name}:{node.lineno} catches {caught}'


@pytest.mark.parametrize('path', SHELL, **ids)
def test_shell_scripts_parse(path):
    run = subprocess.run(['bash', '-n', path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    text = path.read_text()
    assert text.startswith('#!/bin/bash\n')
    homes = re.findall(r'(?:/home|/scratch|/data|/root)/\w+', text)
    assert not homes, f"{path.name} holds somebody's paths: {homes}"


def test_requirements_are_pinned_with_a_reason():
    for line in (ROOT / 'requirements.txt').read_text().splitlines():
        if line and not line.startswith('#'):
            pinned = re.fullmatch(r'[\w-]+(\[\w+\])?==[\w.]+ +# .+', line)
            assert pinned, f'want name==version  # reason: {line}'


# -----------------------------------------------------------------------------
# commands: whatever we tell people to type exists

COMMAND = r'(?:\bpython3?|\btorchrun|\$\((?:PY|TRAIN)\))\s+([^`|;&>#)]*)'


def commands(path):
    """(line number, script, arguments) of every `python x.py ...` or `torchrun ... x.py ...` in a
    file."""
    text = re.sub(r'\\\n', ' \x00', path.read_text())  # join continued lines, keep the count
    for number, line in enumerate(text.split('\n'), 1):
        number += text[: text.find(line)].count('\x00')
        for match in re.finditer(COMMAND, line.replace('\x00', '')):
            words = match[1].split()
            at = next((i for i, w in enumerate(words) if re.fullmatch(r'[\w/]+\.py', w)), None)
            if at is not None:
                yield number, words[at], words[at + 1 :]


SPEAKERS = [
    ROOT / 'README.md',
    ROOT / 'Makefile',
    *SHELL,
    *PYTHON,
    *CONFIGS,
    *sorted(ROOT.glob('assets/**/*.md')),
]


@pytest.mark.parametrize('path', SPEAKERS, **ids)
def test_every_command_names_files_and_settings_that_exist(path):
    for number, script, words in commands(path):
        where = f'{path.relative_to(ROOT)}:{number}: {script}'
        assert (ROOT / script).exists(), f'{where} does not exist'
        known = settings(ROOT / script)
        for word in words:
            word = word.strip('"\',.')
            if re.fullmatch(r'config/\w+\.py', word):
                assert (ROOT / word).exists(), f'{where}: {word} does not exist'
            key = re.match(r'--(\w+)', word)
            if key and known is not None and key[1] != 'help':
                assert key[1] in known, (
                    f'{where}: no setting {key[1]}; it has {", ".join(sorted(known))}'
                )


def test_slurm_scripts_say_commands_that_exist():
    """`sbatch slurm/x.sh arguments` hands its arguments to the one script in x.sh."""
    for path in [*SHELL, ROOT / 'README.md']:
        for line in path.read_text().splitlines():
            match = re.search(r'sbatch\b.*?(slurm/\w+\.sh)([^`]*)', line)
            if match is None:
                continue
            assert (ROOT / match[1]).exists(), f'{path.name}: {match[1]} does not exist'
            via = re.search(r'^source (slurm/train.sh)', (ROOT / match[1]).read_text(), re.M)
            scripts = {script for _, script, _ in commands(ROOT / (via or match)[1])}
            assert len(scripts) == 1, f'{match[1]} runs {sorted(scripts)}'
            known = settings(ROOT / scripts.pop())
            for word in match[2].split():
                if word.endswith('.py'):
                    assert (ROOT / word).exists(), f'{path.name}: {word} does not exist'
                elif word.startswith('--'):
                    assert word[2:].split('=')[0] in known, f'{path.name}: no setting {word}'


@pytest.mark.parametrize('path', CONFIGS, **ids)
def test_configs_set_only_what_their_script_has(path):
    text = path.read_text()
    head = text[
        : re.search(r'^[^#\n]', text, re.M).start()
    ]  # on top: purpose, command, expected result
    own = [script for _, script, words in commands(path) if str(path.relative_to(ROOT)) in words]
    assert own and own[0] in head, f'{path.name}: say the command that uses it in a comment on top'
    known = settings(ROOT / own[0])
    for node in tree(path).body:
        assert isinstance(node, ast.Assign), (
            f'{path.name}:{node.lineno}: a config holds assignments only'
        )
        for target in node.targets:
            assert target.id in known, (
                f'{path.name}:{node.lineno}: {own[0]} has no setting {target.id}'
            )


def test_make_targets_in_the_readme_exist():
    targets = set(re.search(r'^\.PHONY: (.*)', (ROOT / 'Makefile').read_text(), re.M)[1].split())
    said = set(re.findall(r'(?:^|`)make ([\w-]+)', (ROOT / 'README.md').read_text(), re.M))
    unknown = sorted(said - targets)
    assert said and not unknown, f'README names {unknown}; the Makefile has {sorted(targets)}'
    for run in ('demo', 'join'):  # the Makefile composes these names
        for name in (f'config/{run}{part}.py' for part in ('', '_collect', '_start', '_coach')):
            assert (ROOT / name).exists(), f'make {run} needs {name}'


def test_file_tree_in_the_readme_exists():
    tree_text = re.search(r'## Files\n+```\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)[1]
    for line in tree_text.splitlines():
        name = line.split()[0]
        assert (ROOT / name).exists(), f'README lists {name}, which does not exist'
    listed = {line.split()[0] for line in tree_text.splitlines()}
    missing = {str(p.relative_to(ROOT)) for p in PYTHON if p.stem != '__init__'} - listed
    assert not missing, f'README does not say what {sorted(missing)} are for'
