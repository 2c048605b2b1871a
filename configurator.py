# ruff: noqa: D100 -- a docstring here would replace the __doc__ of the script that runs this file.
#
# Overrides the settings of that script, from config files and the command line, in order:
#
# python train.py config/demo.py --batch_size=32 --out_dir out/small    # --key=value, --key value
# python bench.py --clutch                       # --key alone sets a bool to True
# python train.py --help                         # the settings, with their comments
#
# A script runs this line right below its settings:
#
#     exec((Path(__file__).parent / 'configurator.py').read_text())
#
# Settings are the script's lowercase globals of type bool, int, float, str, tuple or None; imports,
# functions and UPPERCASE facts are not. Afterwards the globals hold the new values, and `config`
# holds all settings as a dict, for log and checkpoint. A config file is looked for where its name
# says, else beside the script. `~` is the home directory, whether the shell has expanded it or not.
#
# A setting's comment may begin with its range, which is checked and which --help shows; of a tuple
# each entry has to be in it, and None fits where it is the default:
#
#     steps = 1  # 1..: denoising steps
#     ema = 0.995  # 0..<1: decay of the average; less than 1
#     image_size = None  # >0..4096: px; more than 0
#     kicks = None  # 0.0..1.0: with a point more than whole numbers fit (None says no type)
#     dtype = 'auto'  # 'auto' | 'float32': one of these
#     reverse = None  # True | False: one of these
#     device = None  # where to compute; without a range a setting that is None by default is text


def _configure(settings, doc, script, argv):
    """Return the settings as a new dict; each is checked against `settings`, the defaults.

    A mistake ends the program with one line that says what is wrong.
    """
    import ast
    import difflib
    import io
    import math
    import os
    import re
    import sys
    import textwrap
    import tokenize
    from pathlib import Path

    number = r'\d[\d_]*(?:\.\d+)?(?:e-?\d+)?'
    interval = re.compile(rf'(>?)({number})\.\.(<?)({number})?(?=:|$)')
    word = r"(?:'[^']*'|True|False)"
    choice = re.compile(rf'{word}(?: \| {word})+(?=:|$)')
    result = dict(settings)

    def stop(message):
        """End the program; of several processes the first one says why."""
        sys.exit(message if os.environ.get('RANK', '0') == '0' else 1)

    # -------------------------------------------------------------------------
    # what stands in the script

    def read_comments():
        """Return {setting: its comment}, and the lines of --help: headings and settings."""
        source = Path(script).read_text(encoding='utf-8')
        comments = {}  # number of a line -> its comment
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT and not token.string.startswith('# ---'):
                comments[token.start[0]] = token.string
        about = {}
        lines = []
        done = None  # the last line that is dealt with; None before the first setting
        for node in ast.parse(source).body:
            if 'configurator.py' in ast.unparse(node):
                break
            name = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ''
            if done is None and name not in settings:
                last_before = node.end_lineno
                continue
            done = last_before if done is None else done
            for n in range(done + 1, node.lineno):  # headings, and comments that go on
                if n in comments:
                    lines.append(f'  {comments[n]}')
            done = node.end_lineno
            own = [comments[n].lstrip('# ') for n in range(node.lineno, done + 1) if n in comments]
            if name in settings:
                about[name] = ' '.join(own)
                comment = f'  # {about[name]}' if own else ''
                lines.append(f'  --{name}={settings[name]!r}{comment}')
        return about, lines

    about, help_lines = read_comments()

    def range_fault(name, value):
        """Return what the range of a setting asks for, '' where the value is in it."""
        if value is None:
            return ''
        if isinstance(value, tuple):
            return next((fault for fault in (range_fault(name, v) for v in value) if fault), '')
        chosen = choice.match(about[name])
        if chosen:
            allowed = [ast.literal_eval(word) for word in chosen[0].split(' | ')]
            return '' if value in allowed else ' or '.join(map(repr, allowed))
        found = interval.match(about[name])
        if not found:
            return ''
        above, low, below, high = found.groups()
        lowest = float(low)
        highest = float(high) if high else math.inf
        default = settings[name]
        is_whole = type(default) is int or (default is None and '.' not in f'{low}{high}')
        fits = type(value) is int or (type(value) is float and not is_whole)
        fits = fits and -math.inf < value < math.inf
        fits = fits and (lowest < value if above else lowest <= value)
        fits = fits and (value < highest if below else value <= highest)
        kind = 'a whole number' if is_whole else 'a number'
        words = f'more than {low}' if above else f'at least {low}'
        if high and (above or below):
            words += f' and {"less than" if below else "at most"} {high}'
        elif high:
            words = f'from {low} to {high}'
        return '' if fits else f'{kind}, {words}'

    def is_text(name):
        """Tell whether a setting is text: so is its default, or it is None and has no range."""
        default = settings[name]
        said = about[name]
        unbound = default is None and not interval.match(said) and not choice.match(said)
        return unbound or isinstance(default, str)

    # -------------------------------------------------------------------------
    # what is asked for

    def nearest(name):
        """Return the setting that was meant: `lr` is short for learning_rate, `cuont` a slip."""

        def likeness(known):
            initials = ''.join(word[0] for word in known.split('_'))
            shared = set(known.split('_')) & set(name.split('_'))
            slip = difflib.SequenceMatcher(None, name.lower(), known).ratio()
            return 2 * (name == initials) + 0.3 * bool(shared) + slip

        return max(settings, key=likeness)

    def refuse_name(name, value, where):
        if name == 'config':
            stop(f'{where}: a config file is given by its name alone, without --config: {value}')
        if isinstance(value, type(sys)) or callable(value):
            stop(f'{where}: {name} is no setting: a config file assigns numbers and texts only')
        stop(
            f'{where}: unknown setting {name!r}; did you mean {nearest(name)!r}? '
            '(--help lists them all)'
        )

    def assign(name, value, where):
        if name not in settings:
            refuse_name(name, value, where)
        default = settings[name]
        if isinstance(default, float) and type(value) is int and abs(value) < 1e300:
            value = float(value)
        if default is not None and type(value) is not type(default):
            stop(
                f'{where}: {name} = {value!r} is {type(value).__name__}, '
                f'expected {type(default).__name__} like the default {default!r}'
            )
        if default is None and is_text(name) and type(value) not in (str, type(None)):
            stop(f'{where}: {name} = {value!r} is {type(value).__name__}, expected text')
        fault = range_fault(name, value)
        if isinstance(value, tuple) and not interval.match(about[name]):
            kind = type(default[0]) if default else str
            if any(type(part) is not kind for part in value):
                fault = f'entries of type {kind.__name__}'
        if fault:
            stop(f'{where}: {name}={value}: expected {fault}')
        if isinstance(value, str) and '\0' in value:
            stop(f'{where}: {name}={value!r}: expected text without NUL')
        if isinstance(value, str) and value.startswith('~'):
            value = ','.join(map(os.path.expanduser, value.split(',')))
        result[name] = value

    def parse(name, text):
        """Read a value from the command line; what is no Python literal stays text."""
        if name not in settings:
            return text
        default = settings[name]
        if default is None and text == 'None':
            return None
        if is_text(name):
            return text
        if text.lower() in ('true', 'false'):
            return text.lower() == 'true'
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            if isinstance(default, tuple):
                return tuple(part for part in text.split(',') if part)
            return text

    def find(word):
        places = (Path(word).expanduser(), Path(script).parent / word)
        there = [path for path in places if path.is_file()]
        if not there:
            hint = 'settings are given as --name=value'
            if word.partition('=')[0] in settings:
                hint = f'a setting has two dashes: --{word}'
            elif Path(script).parent.joinpath('config', f'{word}.py').is_file():
                hint = f'did you mean config/{word}.py?'
            stop(f'{word}: no such config file ({hint})')
        return there[0]

    def refuse_config_of_another_script(word, assigned):
        """Stop where settings do not fit and the file's comments type it for other scripts only."""
        fits = all(name in settings for name in assigned) and all(
            settings[name] is None or type(value) is type(settings[name])
            for name, value in assigned.items()
        )
        source = find(word).read_text(encoding='utf-8')
        scripts = re.findall(rf'(\w+\.py) .*\b{re.escape(Path(word).name)}', source)
        if scripts and not fits and Path(script).name not in scripts:
            stop(f'{word} is a config of {" and ".join(dict.fromkeys(scripts))}')

    def run_config(word):
        """Return the names that a config file leaves.

        It sees a copy of the settings and nothing else of the script.
        """
        namespace = dict(result)
        try:
            exec(compile(find(word).read_text(encoding='utf-8'), word, 'exec'), namespace)
        except SyntaxError as fault:
            stop(f'{word}:{fault.lineno}: {fault.msg}: {(fault.text or "").strip()}')
        except UnicodeDecodeError as fault:
            stop(f'{word}: byte {fault.start} is no UTF-8: save the file in that encoding')
        except (ValueError, OSError) as fault:
            stop(f'{word}: {fault}')
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            ImportError,
            LookupError,
            NameError,
            RecursionError,
            TypeError,
        ) as fault:
            at = fault.__traceback__
            while at.tb_next:
                at = at.tb_next
            stop(f'{word}:{at.tb_lineno}: {type(fault).__name__}: {fault}')
        return namespace

    if '--help' in argv or '-h' in argv:
        said = [textwrap.dedent(doc or '').strip(), '\nsettings (a config file or --name=value):']
        try:
            print('\n'.join([*said, *help_lines]), flush=True)
        except BrokenPipeError:  # `--help | head` has read enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    words = list(argv)
    while words:
        word = words.pop(0)
        if word.startswith('--'):
            name, equals, text = word[2:].partition('=')
            if not equals and (not words or words[0].startswith('--')):
                if name not in settings:
                    refuse_name(name, None, 'command line')
                if not isinstance(settings[name], bool):
                    stop(f'command line: --{name} needs a value: --{name}=value')
                text = 'true'
            elif not equals:
                text = words.pop(0)
            assign(name, parse(name, text), 'command line')
            continue
        assigned = {
            name: value
            for name, value in run_config(word).items()
            if name != '__builtins__' and (name not in result or value is not result[name])
        }
        refuse_config_of_another_script(word, assigned)
        for name, value in assigned.items():
            assign(name, value, word)
    if os.environ.get('RANK', '0') == '0':
        changed = [f'{k}={v!r}' for k, v in result.items() if v != settings[k]]
        text = 'settings that were changed: ' + (', '.join(changed) or 'none')
        print(textwrap.fill(text, 110, subsequent_indent='  ', break_long_words=False))
    return result


config = {
    _k: _v
    for _k, _v in globals().items()
    if _k.islower() and _k[0] != '_' and isinstance(_v, (bool, int, float, str, tuple, type(None)))
}
if __name__ == '__main__':
    import sys as _sys

    config = _configure(config, __doc__, __file__, _sys.argv[1:])
    globals().update(config)
    del _sys
del _configure
