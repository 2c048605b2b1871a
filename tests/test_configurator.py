"""
Protects the configurator's contract: what may override what, and how mistakes are reported.

python -m pytest tests/test_configurator.py
"""

import ast
import json
import os
import re
import subprocess
import sys

import pytest

SCRIPT = '''"""Does nothing well.

python script.py
"""
import json
from pathlib import Path

FACT = 3  # not a setting
# what
count = 3              # how many, and this says
# a second line about it
rate = (
    0.1  # 1/s
)
fast = False
# -----------------
# how
OTHER = 4  # nor is this
name = 'a'
words = ('x',  # first
         'y')  # and second
limit = None           # 0.0..: s
exec((Path(__file__).parent / 'configurator.py').read_text())  # overrides
if __name__ == '__main__':
    assert count == config['count'] and rate == config['rate'] and limit == config['limit']
    print(json.dumps({'config': config, 'globals': sorted(k for k in globals() if k[0] != '_')}))
'''


@pytest.fixture
def run(tmp_path):
    """Runs the script above with arguments -> exit code, what it printed as JSON or None, stdout,
    stderr."""
    script = write(tmp_path / 'script.py', SCRIPT)
    (tmp_path / 'configurator.py').symlink_to(os.path.abspath('configurator.py'))

    def go(*words, **kwargs):
        done = subprocess.run(
            [sys.executable, script, *map(str, words)], **kwargs, capture_output=True, text=True
        )
        last = done.stdout.strip().splitlines()[-1:]
        printed = json.loads(last[0]) if done.returncode == 0 and last[0][0] == '{' else None
        return done.returncode, printed, done.stdout, done.stderr

    return go


def write(path, text):
    path.write_text(text)
    return path


def test_defaults_are_in_config_and_facts_and_imports_are_not(run):
    code, out, *_ = run()
    assert out['config'] == {
        'count': 3,
        'rate': 0.1,
        'fast': False,
        'name': 'a',
        'words': ['x', 'y'],
        'limit': None,
    }
    assert out['globals'] == [  # nothing leaks
        'FACT',
        'OTHER',
        'Path',
        'config',
        'count',
        'fast',
        'json',
        'limit',
        'name',
        'rate',
        'words',
    ]


def test_both_spellings_of_the_command_line_and_values_with_equal_signs(run):
    _, out, *_ = run(
        '--count=5', '--name', 'b=c', '--rate=2', '--fast=true', '--words=p,q', '--limit=1.5'
    )
    assert out['config'] == {
        'count': 5,
        'rate': 2.0,
        'fast': True,
        'name': 'b=c',
        'words': ['p', 'q'],
        'limit': 1.5,
    }
    assert isinstance(out['config']['rate'], float)
    _, out, *_ = run(
        '--name=--x=1', '--fast', 'False', '--words=("p",)', '--limit=None', '--count', '-4'
    )
    assert [out['config'][key] for key in ('name', 'words', 'limit', 'count')] == [
        '--x=1',
        ['p'],
        None,
        -4,
    ]
    assert run('--name=')[1]['config']['name'] == ''
    assert run('--name=7')[1]['config']['name'] == '7'


def test_a_config_file_sees_the_settings_and_later_words_win(run, tmp_path):
    config = write(tmp_path / 'c.py', 'count = count * 2   # 6\nname = f"n{count}"\n')
    assert run(config)[1]['config']['name'] == 'n6'
    assert run(config, '--count=1')[1]['config']['count'] == 1
    assert run('--count=1', config)[1]['config']['count'] == 2


@pytest.mark.parametrize('word', ['--cuont=5', '--Count=5', '--json=1', '--FACT=1'])
def test_unknown_names_exit_with_the_nearest_match(run, word):
    code, _, _, err = run(word)
    assert code == 1 and f'unknown setting {word[2:].split("=")[0]!r}' in err
    if word == '--cuont=5':
        assert "did you mean 'count'" in err


@pytest.mark.parametrize(
    'name, text, value',
    [
        ('count', '1.5', '1.5'),
        ('count', 'many', "'many'"),
        ('fast', '1', '1'),
        ('rate', 'quick', "'quick'"),
        ('rate', 'true', 'True'),
        ('words', '3', '3'),
    ],
)
def test_wrong_types_exit_with_default_and_value(run, name, text, value):
    default = {'count': '3', 'rate': '0.1', 'fast': 'False', 'words': "('x', 'y')"}[name]
    code, _, _, err = run(f'--{name}={text}')
    assert code == 1 and f'{name} = {value}' in err and f'default {default}' in err


def test_mistakes_in_a_config_file_name_the_file(run, tmp_path):
    code, _, _, err = run(write(tmp_path / 'typo.py', 'cont = 3\n'))
    assert code == 1 and 'typo.py' in err and "did you mean 'count'" in err
    code, _, _, err = run(write(tmp_path / 'type.py', 'count = "3"\n'))
    assert code == 1 and 'type.py' in err and "'3'" in err and 'int' in err
    code, _, _, err = run(write(tmp_path / 'crash.py', 'count = 3\nrate = 1 / 0\n'))
    assert code == 1 and err.strip().endswith('crash.py:2: ZeroDivisionError: division by zero')
    code, _, _, err = run(write(tmp_path / 'half.py', 'count = 3\nrate = (\n'))
    assert code == 1 and len(err.splitlines()) == 1 and "half.py:2: '(' was never closed" in err
    (tmp_path / 'latin.py').write_bytes('name = "\xe9"\n'.encode('latin-1'))
    code, _, _, err = run(tmp_path / 'latin.py')
    assert code == 1 and len(err.splitlines()) == 1 and 'latin.py: ' in err and 'UTF-8' in err
    code, _, _, err = run(write(tmp_path / 'imports.py', 'import math\nrate = math.pi\n'))
    assert code == 1 and 'imports.py: math is no setting: a config file assigns' in err


def test_short_names_and_config_with_equals_are_understood_and_corrected(run):
    for word, meant in (('--wd=5', 'words'), ('--n=5', 'name'), ('--speed_limit=1', 'limit')):
        assert f'did you mean {meant!r}' in run(word)[3], word
    assert 'by its name alone, without --config: a.py' in run('--config=a.py')[3]


RANGES = """from pathlib import Path
batch_size = 8  # 1..: chunks
learning_rate = 0.1  # >0..10: per step
ema = 0.5  # 0..<1
scale = None  # 1.0..2.0: of bricks
size = None  # 1..4096: px
weights = ()  # 0..: shares
dtype = 'auto'  # 'auto' | 'float32': of products
out = 'x'  # a folder
exec((Path(__file__).parent / 'configurator.py').read_text())
print(repr(config))
"""


@pytest.mark.parametrize(
    'word, said',
    [
        ('--batch_size=0', 'batch_size=0: expected a whole number, at least 1'),
        ('--learning_rate=0', 'learning_rate=0.0: expected a number, more than 0 and at most 10'),
        ('--learning_rate=1e999', 'learning_rate=inf: expected a number'),
        ('--ema=1', 'ema=1.0: expected a number, at least 0 and less than 1'),
        ('--scale=3', 'scale=3: expected a number, from 1.0 to 2.0'),
        ('--size=1.5', 'size=1.5: expected a whole number, from 1 to 4096'),
        ('--size=True', 'size=True: expected a whole number'),
        ('--size=big', 'size=big: expected a whole number'),
        ('--weights=1,-1', 'weights=(1, -1): expected a number, at least 0'),
        ('--weights=1,x', "weights=('1', 'x'): expected a number, at least 0"),
        ('--dtype=int8', "dtype=int8: expected 'auto' or 'float32'"),
        ('--lr=1', "did you mean 'learning_rate'"),
        ('--bs=1', "did you mean 'batch_size'"),
    ],
)
def test_a_value_out_of_the_range_that_the_comment_states_is_refused(tmp_path, word, said):
    script = write(tmp_path / 'script.py', RANGES)
    (tmp_path / 'configurator.py').symlink_to(os.path.abspath('configurator.py'))
    done = subprocess.run([sys.executable, script, word], capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1
    env = {**os.environ, 'RANK': '1'}  # of several processes the first one says it
    done = subprocess.run([sys.executable, script, word], capture_output=True, text=True, env=env)
    assert done.returncode == 1 and done.stderr == ''


def test_values_at_the_ends_of_a_range_and_paths_from_home_are_taken(tmp_path):
    script = write(tmp_path / 'script.py', RANGES)
    (tmp_path / 'configurator.py').symlink_to(os.path.abspath('configurator.py'))
    words = ['--learning_rate=10', '--ema=0', '--scale=2', '--weights=0,0.5', '--out=~/a,~/b']
    env = {**os.environ, 'HOME': '/home/me'}
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, env=env)
    settings = ast.literal_eval(done.stdout.splitlines()[-1])
    assert settings['learning_rate'] == 10 and settings['scale'] == 2 and settings['ema'] == 0
    assert settings['weights'] == (0, 0.5) and settings['out'] == '/home/me/a,/home/me/b'


@pytest.mark.parametrize('script', ['train.py', 'sample.py', 'sim_rollout.py', 'bench.py'])
def test_every_number_of_a_script_states_its_range(script):
    done = subprocess.run([sys.executable, script, '--help'], capture_output=True, text=True)
    numbers = re.findall(r'^  --(\w+)=(?:VLAConfig\.\w+|-?[\d.e-]+)(.*)$', done.stdout, re.M)
    assert len(numbers) > 3
    for name, comment in numbers:
        assert re.match(r'  # >?[\d._]+\.\.', comment), f'{name} states no range'


def test_a_bool_alone_is_set(run):
    assert (
        run('--fast')[1]['config']['fast'] and run('--fast', '--count=5')[1]['config']['count'] == 5
    )
    assert run('--count', '5', '--fast')[1]['config']['fast']


def test_missing_values_and_files_exit(run):
    assert '--count needs a value' in run('--count')[3]
    assert '--count needs a value' in run('--count', '--rate=1')[3]
    assert 'no such config file' in run('config/none.py')[3]


def test_a_file_that_is_none_gets_the_word_that_was_meant(run, tmp_path):
    (tmp_path / 'config').mkdir()
    write(tmp_path / 'config' / 'mine.py', 'count = 5\n')
    assert 'a setting has two dashes: --count=3' in run('count=3')[3]
    assert 'did you mean config/mine.py?' in run('mine')[3]


@pytest.mark.parametrize('setting', ['strange = 1', "count = 'a,b'"])
def test_a_config_of_another_script_is_told_from_a_mistake_in_ones_own(run, tmp_path, setting):
    theirs = write(tmp_path / 'theirs.py', f'# python other.py theirs.py\n{setting}\n')
    ours = write(tmp_path / 'ours.py', f'# python script.py ours.py\n{setting}\n')
    nobodys = write(tmp_path / 'nobodys.py', f'{setting}\n')
    assert run(theirs)[3].strip() == f'{theirs} is a config of other.py'
    for path in (ours, nobodys):
        said = run(path)[3]
        assert 'unknown setting' in said or 'expected int' in said
    fits = write(tmp_path / 'fits.py', '# python other.py fits.py\ncount = 5\n')
    assert run(fits)[1]['config']['count'] == 5


def test_help_prints_the_docstring_and_the_settings_under_their_headings_with_whole_comments(run):
    code, _, out, _ = run('--help')
    assert code == 0 and out.startswith('Does nothing well.\n\npython script.py\n\nsettings ')
    assert out.splitlines()[5:] == [
        '  # what',
        '  --count=3  # how many, and this says',
        '  # a second line about it',
        '  --rate=0.1  # 1/s',
        '  --fast=False',
        '  # how',
        "  --name='a'",
        "  --words=('x', 'y')  # first and second",
        '  --limit=None  # 0.0..: s',
    ]


def test_rank_zero_prints_the_settings_that_were_changed_and_no_others(run):
    line = "settings that were changed: count=4, words=('q',)"
    assert run('--count=4', '--words=q,', '--fast=False')[2].splitlines()[0] == line
    assert run('--count=3')[2].splitlines()[0] == 'settings that were changed: none'
    assert 'settings' not in run('--count=4', env={**os.environ, 'RANK': '1'})[2]


def test_a_config_file_is_found_as_given_else_beside_the_script(run, tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    for folder, count in ((tmp_path / 'config', 5), (elsewhere / 'config', 6)):
        folder.mkdir(parents=True)
        write(folder / 'both.py', f'count = {count}\n')
    write(tmp_path / 'config' / 'ours.py', 'count = 7\n')
    found = [run(f'config/{name}.py', cwd=elsewhere)[1] for name in ('both', 'ours')]
    assert [out['config']['count'] for out in found] == [6, 7]
    assert 'no such config file' in run('config/none.py', cwd=elsewhere)[3]


def test_an_importing_program_keeps_its_arguments(tmp_path):
    write(tmp_path / 'script.py', SCRIPT)
    (tmp_path / 'configurator.py').symlink_to(os.path.abspath('configurator.py'))
    code = (
        f'import sys; sys.path.insert(0, {str(tmp_path)!r}); import script; '
        'print(script.count, script.config["count"])'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, '--count=9', '--strange'], capture_output=True, text=True
    )
    assert done.stdout.split() == ['3', '3'], done.stderr
