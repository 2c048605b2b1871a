# Overrides the settings of the script that runs it, from config files and the command line, in order:
#
# python train.py config/demo.py --batch_size=32 --out_dir out/small       # --key=value and --key value
# python bench.py --clutch                                                 # --key alone sets a bool to True
# python train.py --help                                                   # the settings, with their comments
#
# A script calls `exec(open('configurator.py').read())` right below its settings. Settings are its lowercase
# globals of type bool, int, float, str, tuple or None; imports, functions and UPPERCASE facts are not.
# Afterwards the globals hold the new values, and `config` holds all settings as a dict, for log and
# checkpoint. (Comments, because a docstring here would replace the __doc__ of the script.)


def _configure(settings, doc, script, argv):
    """-> settings as a new dict. Each is checked against `settings`, the defaults; mistakes exit."""
    import ast
    import difflib
    import os
    import re
    import sys
    import textwrap

    result = dict(settings)

    def assign(name, value, where):
        if name not in settings:
            near = difflib.get_close_matches(name, settings, 1, 0)
            sys.exit(
                f'{where}: unknown setting {name!r}; did you mean {near[0]!r}? (--help lists them all)'
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
        """Text of the command line -> value. What is no Python literal stays text, for the type check."""
        default = settings.get(name)
        if isinstance(default, str):
            return text
        if text.lower() in ('true', 'false'):
            return text.lower() == 'true'
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return (
                tuple(part for part in text.split(',') if part)
                if isinstance(default, tuple)
                else text
            )

    if '--help' in argv or '-h' in argv:
        print(textwrap.dedent(doc or '').strip() + '\n\nsettings (a config file or --name=value):')
        for line in open(script).read().split('exec(open(')[0].splitlines():
            found = re.match(r'(\w+) *= *(.*)', line)
            if found and found[1] in settings:
                print(f'  --{found[1]}={found[2]}')
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
        if not os.path.isfile(word):
            sys.exit(f'{word}: no such config file (settings are given as --name=value)')
        namespace = dict(
            result
        )  # a copy: a config file sees the settings and nothing else of the script
        with open(word) as f:
            exec(
                compile(f.read(), word, 'exec'), namespace
            )  # compiled with its name: tracebacks show it
        for name, value in namespace.items():
            if name != '__builtins__' and not (name in result and value is result[name]):
                assign(name, value, word)
    if os.environ.get('RANK', '0') == '0':
        pairs = [f'{k}={v!r}' + ('' if v == settings[k] else '*') for k, v in result.items()]
        text = 'settings (* changed): ' + ', '.join(pairs)
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
