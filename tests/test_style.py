"""Protects the house style: who may import whom, hints on what is public, commands that exist.

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
# test_gym.py loads the one that needs a package beyond requirements.txt.
NOT_LOADED = ('configurator', 'vla_lego_gym')
NOUNS = [p for p in PYTHON if p not in SCRIPTS and p.stem not in NOT_LOADED]
CONFIGS = sorted(ROOT.glob('config/*.py'))
ASSETS = sorted(ROOT.glob('assets/*.py'))
SHELL = sorted([*ROOT.glob('slurm/*.sh'), ROOT / '.ci' / 'run'])
README = ROOT / 'README.md'
DOCS = sorted(ROOT.glob('docs/*.md'))
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


IMPORT_EACH = """
import importlib, sys
names = sys.argv[1:]
sys.argv[1:] = ['--surprise=1']
for name in names:  # each by itself: the others are forgotten
    for other in names:
        sys.modules.pop(other, None)
    importlib.import_module(name)
print(*sorted({'torch', 'mujoco'} & sys.modules.keys()))
"""
# Each group of modules is loaded by a fresh Python, with what else they load.
LOADS = {
    'doors': ([ROOT / f'{name}.py' for name in ('episode', 'instructions', 'hub', 'wire')], set()),
    'sim': (sorted(ROOT.glob('sim/*.py')), {'mujoco'}),
    'vla': ([ROOT / 'data.py', ROOT / 'model.py', *sorted(ROOT.glob('vla/*.py'))], {'torch'}),
}


@pytest.mark.parametrize('paths, expected', LOADS.values(), ids=LOADS)
def test_a_wing_loads_only_what_it_may_and_prints_nothing(paths, expected):
    """Nor does it load the other wing's package by way of a module that it imports."""
    names = [module(path) for path in paths]
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', IMPORT_EACH, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stderr) == (0, '')
    *said, loaded = run.stdout.splitlines()
    assert said == [], f'importing prints {said}'
    assert set(loaded.split()) == expected


def test_every_noun_is_in_one_of_these_groups():
    assert sorted(NOUNS) == sorted(path for paths, _ in LOADS.values() for path in paths)


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


def public_functions(path):
    """(name, node) of every function and method that others may call."""
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith('_'):
                    yield f'{node.name}.{method.name}', method


def without_hint(function):
    """Names of the arguments of a function that have no type hint, and 'return'."""
    signature = function.args
    arguments = [*signature.posonlyargs, *signature.args, *signature.kwonlyargs]
    missing = [a.arg for a in arguments if a.annotation is None and a.arg not in ('self', 'cls')]
    if function.returns is None:
        missing.append('return')
    return missing


@pytest.mark.parametrize('path', [*NOUNS, *ASSETS], **ids)
def test_public_functions_have_type_hints(path):
    missing = {name: without_hint(node) for name, node in public_functions(path)}
    missing = {name: arguments for name, arguments in missing.items() if arguments}
    assert not missing, f'{path.name}: no type hints on {missing}'


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
    README,
    ROOT / 'Makefile',
    *DOCS,
    *SHELL,
    *PYTHON,
    *ASSETS,
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
    for path in [*SHELL, README, *DOCS]:
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


def test_make_targets_in_the_papers_exist():
    makefile = (ROOT / 'Makefile').read_text()
    targets = set(re.search(r'^\.PHONY: ([^$]*)', makefile, re.M)[1].split())
    runs = {path.stem.removesuffix('_collect') for path in ROOT.glob('config/*_collect.py')}
    coached = {path.stem.removesuffix('_coach') for path in ROOT.glob('config/*_coach.py')}
    assert coached >= {'demo', 'join', 'all'} and runs - coached == {'all_gpu'}
    for run in runs | coached:  # the Makefile composes these names
        parts = ('', '_collect', '_start', '_coach') if run in coached else ('', '_collect')
        for name in (f'config/{run}{part}.py' for part in parts):
            assert (ROOT / name).exists(), f'make {run} needs {name}'
    for path in (README, *DOCS):
        said = set(re.findall(r'(?:^|`)make ([\w-]+)', path.read_text(), re.M))
        unknown = said - targets - runs - {'ends'}  # the new task of README
        assert not unknown, (
            f'{path.name} names {sorted(unknown)}; the Makefile has {targets | runs}'
        )
    helped = set(re.findall(r'^# make ([\w-]+) ', makefile, re.M))
    assert helped - runs == targets, 'make help prints the lines on top of the Makefile'


# -----------------------------------------------------------------------------
# the papers of the house


def test_readme_is_at_most_150_lines_of_120_columns():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    wide = [number for number, line in enumerate(lines, 1) if len(line) > 120]
    assert not wide, f'lines {wide} are wider than 120 columns'


@pytest.mark.parametrize('path', [*DOCS, *sorted(ROOT.glob('assets/**/*.md'))], **ids)
def test_prose_keeps_to_120_columns(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        in_table = line.startswith('|')  # a row cannot be wrapped
        assert in_table or len(line) <= 120, f'{path.name}:{number} is {len(line)} columns wide'


def test_links_in_the_papers_lead_somewhere():
    for path in (README, *DOCS):
        for target in re.findall(r'\]\(([^)#]+)[^)]*\)', path.read_text()):
            there = target.startswith('https://') or (path.parent / target).exists()
            assert there, f'{path.name} links to {target}, which does not exist'


def test_file_tree_in_the_readme_is_complete():
    tree_text = re.search(r'## Files\n+```\n(.*?)```', README.read_text(), re.S)[1]
    listed = set()
    for line in tree_text.splitlines():
        names, _, reason = line.partition('  ')
        assert reason.strip(), f'README lists {names} without saying what it is for'
        folder = names.split()[0].rpartition('/')[0]
        for name in names.split():
            path = pathlib.Path(name if '/' in name or not folder else f'{folder}/{name}')
            assert (ROOT / path).exists(), f'README lists {path}, which does not exist'
            listed.add(str(path))
    missing = {str(p.relative_to(ROOT)) for p in PYTHON if p.stem != '__init__'} - listed
    assert not missing, f'README does not say what {sorted(missing)} are for'
