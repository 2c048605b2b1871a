"""Print how dense the code is: syntax nodes per code line, over the tree without its tests.

python tests/nodes.py

A node is whatever `ast.walk` yields. A code line is neither blank, nor a comment alone, nor part of
a docstring. nanoGPT has 9.4; above about 12 a line says more than one thing. `make lint` prints the
number as information; nothing fails because of it.
"""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ('.', 'sim', 'vla', 'assets', 'config')
SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstring_lines(tree: ast.Module) -> set[int]:
    """Numbers of the lines that docstrings cover."""
    lines: set[int] = set()
    for scope in ast.walk(tree):
        if isinstance(scope, SCOPES) and ast.get_docstring(scope) is not None:
            docstring = scope.body[0]
            lines.update(range(docstring.lineno, docstring.end_lineno + 1))
    return lines


def count(text: str) -> tuple[int, int]:
    """Syntax nodes and code lines of a file's text."""
    tree = ast.parse(text)
    nodes = sum(1 for _ in ast.walk(tree))
    skipped = docstring_lines(tree)
    code_lines = 0
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith('#') and number not in skipped:
            code_lines += 1
    return nodes, code_lines


if __name__ == '__main__':
    counts = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).glob('*.py')):
            nodes, code_lines = count(path.read_text())
            if code_lines:
                counts[str(path.relative_to(ROOT))] = (nodes, code_lines)
    all_nodes = sum(nodes for nodes, _ in counts.values())
    all_lines = sum(code_lines for _, code_lines in counts.values())
    densest = sorted(counts, key=lambda name: counts[name][0] / counts[name][1])[-3:]
    most = ', '.join(f'{name} {counts[name][0] / counts[name][1]:.1f}' for name in densest[::-1])
    print(
        f'{all_nodes / all_lines:.1f} syntax nodes per code line '
        f'({all_lines:,} code lines in {len(counts)} files; densest: {most})'
    )
