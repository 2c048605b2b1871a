"""Keys move the hands, and what they did is recorded as an ordinary episode."""

import os
import queue
import shutil
import subprocess
import sys
import threading
import time

import launch
import numpy as np
import pytest

from episode import ARM_TOOL, TOOL_ACTION_NAMES, check_episode, read_episode
from sim import teleop
from sim.expert import Expert
from sim.tasks import HANDS
from sim.world import World

OPEN_M = 0.064


def a_keyboard():
    command = np.zeros(len(TOOL_ACTION_NAMES), np.float32)
    for hand in HANDS:
        command[ARM_TOOL[hand]] = (0.3, 0, 0.1, 0, 0, 0, OPEN_M)
    return teleop.Keyboard(command, OPEN_M), command


@pytest.mark.parametrize('key', teleop.MOVES)
def test_a_key_moves_one_slot_of_the_chosen_hand(key):
    keys, command = a_keyboard()
    assert keys.press(key)
    slot, sign = teleop.MOVES[key]
    moved = np.flatnonzero(keys.target != command)
    arm = ARM_TOOL['right']
    assert moved.tolist() == [arm.start + slot]
    assert np.sign(keys.target - command)[moved] == sign


def test_hands_are_switched_and_closed():
    keys, command = a_keyboard()
    keys.press(teleop.ENTER)
    assert keys.target[ARM_TOOL['right']][teleop.OPENING] == teleop.CLOSED_M
    keys.press(teleop.INSERT)
    keys.press(teleop.ENTER)
    assert keys.target[ARM_TOOL['left']][teleop.OPENING] == teleop.CLOSED_M
    keys.press(teleop.ENTER)
    assert keys.target[ARM_TOOL['left']][teleop.OPENING] == OPEN_M
    assert not keys.press(ord('W'))


def test_a_long_way_is_gone_at_a_limited_speed_and_ends_where_it_was_sent():
    keys, command = a_keyboard()
    for _ in range(7):
        keys.press(teleop.UP)
        keys.press(teleop.HOME)
    n_steps = 0
    while not np.array_equal(command, keys.towards(command, 10)):
        after = keys.towards(command, 10)
        assert np.abs(after - command)[ARM_TOOL['right']][:3].max() <= teleop.SPEED_MPS / 10 + 1e-6
        command = after
        n_steps += 1
    assert 4 <= n_steps <= 8
    np.testing.assert_allclose(command, keys.target, atol=1e-6)


def by_keys(world, seed, record=False):
    """An episode that is driven by keys alone; whoever presses them looks at the expert."""
    import sim_rollout

    pressed = queue.SimpleQueue()
    made = []
    all_keys = []

    def person(standing=False):
        """Looks on, and where time stands still presses what brings the hands on."""
        if standing and not made:
            made.append(teleop.Keyboard(world.tool_command, world.max_opening_m))
            made[0].press(teleop.DELETE)
            all_keys.append([teleop.DELETE])
        elif standing:
            action, _ = Expert().act(world.truth())
            keys = presses_towards(made[0], action)
            all_keys.append(keys or [teleop.INSERT, teleop.INSERT])  # a moment passes
        if standing:
            for key in all_keys[-1]:
                pressed.put(key)
        return True

    start = teleop.keyboard(pressed, person, world.control_hz, world.max_opening_m, [].append)
    world.patience = 10
    result, rows = sim_rollout.run_episode(world, start, seed, record=record)
    return result, rows, all_keys


def presses_towards(twin, action):
    """Presses that send the twin, and so the keyboard, about where an action says."""
    keys = []

    def press(key):
        twin.press(key)
        keys.append(key)

    for hand in HANDS:
        asked = action[ARM_TOOL[hand]]
        sent = twin.target[ARM_TOOL[hand]].copy()
        wanted = []
        for key, (slot, sign) in teleop.MOVES.items():
            stride = 0.02 if slot == teleop.YAW else 0.002
            wanted += [key] * max(0, round(sign * (asked[slot] - sent[slot]) / stride))
        is_open = sent[teleop.OPENING] > twin.open_m / 2
        if is_open != (asked[teleop.OPENING] > twin.open_m / 2):
            wanted.append(teleop.ENTER)
        if wanted and twin.hand != hand:
            press(teleop.INSERT)
        for key in wanted:
            press(key)
    return keys


@pytest.mark.mujoco
def test_keys_alone_build_and_the_episode_is_an_ordinary_one(tmp_path):
    import sim_rollout

    world = World('place', cameras=('overhead',), image_size=32)
    result, rows, _ = by_keys(world, 0, record=True)
    assert result['success']
    sim_rollout.save_episode(world, tmp_path, result, rows)
    (path,) = tmp_path.glob('*.safetensors')
    assert check_episode(path) == []
    arrays, header = read_episode(path)
    assert {'scene', 'qpos', 'connections', 'image/overhead'} <= set(arrays)  # CORE and TRUTH
    assert header['success'] and header['instruction'] == world.instruction
    again = launch.run('sim_rollout.py', f'--policy={path}', '--workers=1', f'--out={tmp_path}/r')
    assert 'replay bit-equal in 1/1' in again
    world.close()


def test_keys_need_a_window():
    said = launch.run('sim_rollout.py', '--teleop', fails=True)
    assert said.splitlines()[-1].startswith('teleop: ')


NAMES = {  # X11's
    teleop.ENTER: 'Return',
    teleop.INSERT: 'Insert',
    teleop.DELETE: 'Delete',
    teleop.RIGHT: 'Right',
    teleop.LEFT: 'Left',
    teleop.DOWN: 'Down',
    teleop.UP: 'Up',
    teleop.PAGE_UP: 'Prior',
    teleop.PAGE_DOWN: 'Next',
    teleop.HOME: 'Home',
    teleop.END: 'End',
}


@pytest.mark.slow
@pytest.mark.viewer
@pytest.mark.skipif(not shutil.which('xdotool'), reason='apt-get install xdotool')
def test_real_keys_in_the_viewer_record_an_episode(tmp_path):
    """Keys that were planned beforehand are pressed in the window, as by a person who looks."""
    world = World('place', cameras=())
    _, _, all_keys = by_keys(world, 0)
    words = ('--task=place', '--viewer', '--teleop', '--seeds=0', '--cameras=', '--workers=1')
    command = [sys.executable, 'sim_rollout.py', *words, f'--record={tmp_path}']
    script = subprocess.Popen(  # not forked: the window's OpenGL is loaded anew
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    watchdog = threading.Timer(900, script.kill)  # a window may stay for ever
    watchdog.daemon = True
    watchdog.start()
    said = ''

    def listen_for(words):
        nonlocal said
        while words not in said:
            line = script.stdout.readline()
            assert line, said
            said += line

    listen_for('mm a press')  # then the window is there
    found = subprocess.run(['xdotool', 'search', '--name', 'MuJoCo'], capture_output=True)
    window = found.stdout.split()[-1].decode()
    subprocess.run(['xdotool', 'windowfocus', window], check=True)
    for keys in all_keys:
        names = [NAMES[key] for key in keys]
        subprocess.run(['xdotool', 'key', '--delay', '5', *names], check=True)
        busy = max(1, os.getloadavg()[0] / os.cpu_count())
        time.sleep(4 * busy)  # longer than the motion and the rest after it
    listen_for('the last picture stays')
    subprocess.run(['xdotool', 'key', 'ctrl+q'], check=True)  # closes the window
    said += script.communicate(timeout=60)[0]
    watchdog.cancel()
    assert script.returncode == 0 and 'seed 0: success' in said and 'recorded: ' in said, said
    (path,) = tmp_path.glob('*.safetensors')
    assert check_episode(path) == []
