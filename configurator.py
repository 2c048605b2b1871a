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
# says, else beside the script.


def _configure(settings, doc, script, argv):
    """Return the settings as a new dict; each is checked against `settings`, the defaults.

    A mistake ends the program with one line that says what is wrong.
    """
    import ast
    import difflib
    import io
    import os
    import sys
    import textwrap
    import tokenize
    from pathlib import Path

    result = dict(settings)

    def assign(name, value, where):
        if name not in settings:
            near = difflib.get_close_matches(name, settings, 1, 0)
            sys.exit(
                f'{where}: unknown setting {name!r}; did you mean {near[0]!r}? '
                '(--help lists them all)'
            )
        default = settings[name]
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if default is not None and type(value) is not type(default):
            sys.exit(
                f'{where}: {name} = {value!r} is {type(value).__name__}, '
                f'expected {type(default).__name__} like the default {default!r}'
            )
        result[name] = value

    def parse(name, text):
        """Read a value from the command line; what is no Python literal stays text."""
        default = settings.get(name)
        if isinstance(default, str):
            return text
        if text.lower() in ('true', 'false'):
            return text.lower() == 'true'
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            if isinstance(default, tuple):
                return tuple(part for part in text.split(',') if part)
            return text

    def help_lines():
        """Yield the script's headings and settings in their order, with all of their comments."""
        source = Path(script).read_text()
        comments = {}  # number of a line -> its comment
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT and not token.string.startswith('# ---'):
                comments[token.start[0]] = token.string
        done = None  # the last line that is dealt with; None before the first setting
        for node in ast.parse(source).body:
            if 'configurator.py' in ast.unparse(node):
                break
            name = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ''
            if done is None and name not in settings:
                last_before = node.end_lineno
                continue
            done = last_before if done is None else done
            for number in range(done + 1, node.lineno):  # headings, and comments that go on
                if number in comments:
                    yield f'  {comments[number]}'
            done = node.end_lineno
            numbers = range(node.lineno, done + 1)
            own = [comments[n].lstrip('# ') for n in numbers if n in comments]
            if name in settings:
                comment = f'  # {" ".join(own)}' if own else ''
                yield f'  --{name}={settings[name]!r}{comment}'

    def find(word):
        for path in (Path(word), Path(script).parent / word):
            if path.is_file():
                return path
        sys.exit(f'{word}: no such config file (settings are given as --name=value)')

    if '--help' in argv or '-h' in argv:
        print(textwrap.dedent(doc or '').strip())
        print('\nsettings (a config file or --name=value):')
        print('\n'.join(help_lines()))
        sys.exit(0)
    words = list(argv)
    while words:
        word = words.pop(0)
        if word.startswith('--'):
            name, equals, text = word[2:].partition('=')
            if not equals and (not words or words[0].startswith('--')):
                if not isinstance(settings.get(name), bool):
                    sys.exit(f'command line: --{name} needs a value: --{name}=value')
                text = 'true'
            elif not equals:
                text = words.pop(0)
            assign(name, parse(name, text), 'command line')
            continue
        # A config file sees a copy of the settings and nothing else of the script. It is compiled
        # under its name, which tracebacks show.
        namespace = dict(result)
        exec(compile(find(word).read_text(), word, 'exec'), namespace)
        for name, value in namespace.items():
            is_new = name not in result or value is not result[name]
            if name != '__builtins__' and is_new:
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
