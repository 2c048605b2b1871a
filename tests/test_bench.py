"""bench.py prints its table.

    python -m pytest tests/test_bench.py
"""
import subprocess
import sys

import pytest

pytestmark = pytest.mark.mujoco


def bench(*arguments):
    command = [sys.executable, 'bench.py', '--seconds=0.3', *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_world_and_render_sections_print_rates():
    done = bench('--only=world,render')
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(('world ', 'render '))]
    assert len(rows) == 5 and 'cores' in done.stdout
    rates = [float(line[54:].split()[0]) for line in rows]
    assert rates[0] > rates[1] > 5 and 0.1 < rates[2] < 1.5


def test_unknown_section_is_named():
    done = bench('--only=wrld')
    assert done.returncode and 'no section wrld; there are world' in done.stderr
