"""bench.py prints its table.

python -m pytest tests/test_bench.py
"""

import json
import re
import subprocess
import sys
import time

import launch
import numpy as np
import pytest
import torch

import bench as bench_script
import model
from sim.gl import mujoco
from sim.world import World
from vla import measure

pytestmark = pytest.mark.mujoco


def bench(*arguments):
    command = [sys.executable, 'bench.py', '--seconds=0.3', *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def tiny(folder):
    """config/demo.py with a small model and no episodes of its own -> path."""
    path = folder / 'tiny.py'
    small = f'n_layers = 2\nbatch_size = 24\nepisodes = {str(folder / "none")!r}\n'
    path.write_text(open('config/demo.py').read() + small)
    return path


def test_world_and_render_sections_print_rates():
    done = bench('--only=world,render')
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(('world ', 'render '))]
    assert len(rows) == 7 and 'cores' in done.stdout
    rates = [float(line[54:].split()[0]) for line in rows]
    assert rates[0] > max(rates[1:3]) and min(rates[1:3]) > 5
    assert [line[8:54].split()[-1] for line in rows[3:5]] == ['place', 'build']
    assert all(0.1 < rate < 1.5 for rate in rates[3:5])


def test_the_wire_section_prints_a_round_trip():
    done = bench('--only=wire')
    assert done.returncode == 0, done.stderr
    found = re.search(
        r'^wire +round trip .* ([\d.]+) ms +3 x 224 px, (\d+) times', done.stdout, re.M
    )
    assert 0.05 < float(found[1]) < 1000 and int(found[2]) >= 100


def test_the_clutch_costs_less_than_the_physics_it_guards():
    """build: two plates and six bricks, first loose on the table, then all in their towers. 7 and
    16 % of the physics steps between two updates were measured."""
    world = World('build', cameras=())
    seed = next(seed for seed in range(50) if world.reset(seed) and len(world.plan.chain) == 6)
    for built in (False, True):
        world.reset(seed)
        for goal in world.plan.chain if built else ():
            world._put_on(goal)
        world._refresh()
        times = []
        for _ in range(200):
            began = time.thread_time()  # this thread's own: other processes' share is in neither
            mujoco.mj_step(world.model, world.data, nstep=world._clutch_every)
            stepped = time.thread_time()
            world.clutch.update()
            times.append((stepped - began, time.thread_time() - stepped))
        assert len(world.connections()) == 6 * built
        step, update = np.median(times, axis=0)
        assert 0 < update < 0.5 * step, (
            f'{1e6 * update:.0f} us of clutch, {1e6 * step:.0f} us of physics'
        )


def test_training_loader_and_latency_are_those_of_the_config(tmp_path):
    """One run of train.py serves all three; its settings reach the loader."""
    config = tiny(tmp_path)
    done = bench(
        '--only=train,loader,act', '--train_steps=4', '--processes=1', f'--train_config={config}'
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(
        r'^(?:train|loader|act) +(.*?) +([0-9.]+) (?:samples/s|GFLOP/s|ms)', done.stdout, re.M
    )
    rate = {name: float(value) for name, value in rows}
    assert 'Dataset.batch of 24, then data.augment' in rate
    assert rate['Dataset.batch of 24'] > rate['Dataset.batch of 24, then data.augment'] > 0
    assert rate[f'train.py {config}'] > 0 and rate['arithmetic done'] > 0
    assert 0 < rate['chunk, 1 step(s), float32'] < rate['chunk, 5 step(s), after 8 words, float32']


def test_an_exported_chunk_is_timed_in_turns_with_torchs(checkpoint, tmp_path):
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package, reason='pip install onnx onnxscript onnxruntime')
    file = tmp_path / 'chunk.onnx'
    launch.run('sample.py', f'--ckpt={checkpoint}', f'--export={file}')
    done = bench('--only=act', f'--ckpt={checkpoint}', f'--onnx={file}')
    assert done.returncode == 0, done.stderr
    rows = re.findall(r'^act +chunk, (.*?) +([0-9.]+) ms', done.stdout, re.M)
    ms = {name: float(value) for name, value in rows}
    assert 0.05 < ms['ONNX file on the CPU'] < 20 * ms['1 step(s), float32']


def test_force_table_is_printed_row_by_row():
    command = [sys.executable, 'bench.py', '--clutch']
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        'MISSED' not in done.stdout
        and done.stdout.count(' 2 ms ') == done.stdout.count(' 4 ms ') == 29
    )
    pull = re.search(r'straight pull, 12 studs +4 ms +([0-9.]+) +2 N/stud', done.stdout)
    assert 1.9 < float(pull[1]) < 2.1 and re.search(
        'insertion, 1 studs, as in World +4 ms', done.stdout
    )


def test_soak_goes_on_where_it_was_and_names_what_diverged(tmp_path):
    soak = [sys.executable, 'bench.py', '--soak', '--workers=1', f'--out={tmp_path}']
    tasks = ['place', 'stack', 'join', 'unplug']  # the quick ones, of which each gets one episode
    (tmp_path / 'place').mkdir()
    row = dict(
        seed=1_000_000,
        success=False,
        fault='energy 2000 J at t=1.00 s',
        steps=9,
        metrics=dict(penetration_mm=7.0, energy_j=2000.0),
        made_with={'task': 'place'},
    )
    log = tmp_path / 'place' / 'rollouts.jsonl'
    log.write_text(json.dumps(row) + '\n{"seed": 1000001, "fau')
    done = subprocess.run([*soak, '--episodes=4'], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'place seed 1000000 after 9 steps: energy 2000 J' in done.stdout
    assert '1 of 4 episodes diverged' in done.stdout
    for task in tasks:
        lines = (tmp_path / task / 'rollouts.jsonl').read_text().splitlines()
        assert [json.loads(line)['seed'] for line in lines if line.endswith('}}')] == [1_000_000]
    # all is there: nothing is run again
    before = log.read_bytes()
    again = subprocess.run([*soak, '--episodes=4'], capture_output=True, text=True, timeout=300)
    assert (
        again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1] and log.read_bytes() == before
    )


def test_missing_seeds_are_run_in_ranges():
    done = dict.fromkeys([3, 4, 8])
    ranges = bench_script.missing_ranges(range(10), done, longest=2)
    assert ranges == [[0, 2], [2, 3], [5, 7], [7, 8], [9, 10]]
    assert bench_script.missing_ranges(range(3, 5), done) == []


def rehearse(section, capfd):
    """Run a section of --gpu here, tiny; return its JSON lines and all that it printed."""
    assert bench_script.run_gpu_section(section, 'cpu', time.perf_counter() + 100) == 0
    said = capfd.readouterr().out
    return [json.loads(line) for line in said.splitlines() if line.startswith('{')], said


@pytest.mark.parametrize('name', ['demo', 'base', 'large'])
def test_training_on_a_gpu_can_be_rehearsed_on_a_cpu(name, monkeypatch, capfd):
    """The way through the code is that of a GPU."""
    monkeypatch.setattr(bench_script, 'seconds', 0.05)
    (line,), said = rehearse(f'gpu_{name}', capfd)
    parts = line['parts_ms']
    assert list(parts) == [part for part in (*measure.PARTS, 'other') if part != 'graph']
    assert parts['backward'] > parts['EMA'] > 0 and parts['Meter, Unsound'] > 0
    assert line['samples_per_s'] > 0 and line['how'] == 'eager'
    assert line['first_step_s'] > line['compile_s']
    assert ('accumulated 8 times' in said) == (name == 'large')


def test_chunks_on_a_gpu_can_be_rehearsed_on_a_cpu(monkeypatch, capfd):
    monkeypatch.setattr(bench_script, 'seconds', 0.05)
    lines, _ = rehearse('gpu_act', capfd)
    assert [(row['network'], row['steps']) for row in lines] == [
        (name, steps) for name in ('demo', 'base', 'EO-1-3B') for steps in (1, 5, 10)
    ]
    assert all(row['chunk_ms'] > row['floor_ms'] > 0 for row in lines)


def test_collection_is_measured_with_the_cameras_of_its_config(monkeypatch, capfd):
    def steps_per_second(variables, world_settings, processes):
        assert len(world_settings['cameras']) == 3 and world_settings['brick_scale'] == 2.0
        return 150.0 * processes

    monkeypatch.setattr(bench_script.gl, 'steps_per_second', steps_per_second)
    (line,), _ = rehearse('gpu_collect', capfd)
    assert line['workers'] == 1 and line['steps_per_s'] == 150


def test_made_up_episodes_for_a_gpu_have_words_of_the_grammar(tmp_path):
    settings = bench_script.settings_for_gpu('demo', tiny=True)
    dataset = bench_script.make_gpu_data(settings, f'{tmp_path}/episodes')
    drawn = {dataset.words(0, 0, np.random.default_rng(seed)) for seed in range(9)}
    assert len(drawn) == 9


def test_a_section_that_fails_takes_no_other_along(monkeypatch, capfd):
    monkeypatch.setattr(bench_script, 'GPU_SECTIONS', {'gpu_nothing': 60, 'gpu_less': 60})
    assert bench_script.run_gpu(['gpu_nothing', 'gpu_less'], 'cpu') == 2
    said = capfd.readouterr().out
    assert 'gpu_nothing FAILED: 1' in said and 'gpu_less FAILED: 1' in said


def test_sizes_of_eo1_are_those_of_its_network():
    with torch.device('meta'):
        net = model.VLA(bench_script.eo1_config(tiny=False))
    assert net.n_parameters == pytest.approx(3.77e9, rel=0.01)


def test_unknown_section_is_named():
    done = bench('--only=wrld')
    assert done.returncode and 'no section wrld; there are world' in done.stderr
