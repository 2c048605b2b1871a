"""sample.py on a hardly trained checkpoint: the numbers it prints and the picture it draws.

    python -m pytest tests/test_sample.py
"""
import subprocess
import sys

import imageio.v2 as imageio
import numpy as np
import pytest

import data
import sample


def run(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """-> (checkpoint, episodes), made up without a simulator."""
    folder = tmp_path_factory.mktemp('sample')
    run('train.py', 'config/debug.py', '--max_steps=2', f'--out_dir={folder}/run',
        f'--episodes={folder}/episodes')
    return folder / 'run', folder / 'episodes'


def test_one_frame_is_compared_in_words_numbers_and_a_picture(trained):
    checkpoint, episodes = trained
    path = sorted(episodes.glob('*.safetensors'))[0]
    text = run('sample.py', f'--ckpt={checkpoint}', f'--episode={path}', '--step=3', '--samples=4')
    arrays, header = data.read_episode(path)
    assert f'instruction        {header["instruction"]}' in text
    assert 'subtask recorded' in text and 'subtask decoded' in text and '4 chunks from random noise' in text
    line = next(line for line in text.splitlines() if line.startswith('right/tool_x'))
    command, recorded, predicted, mean, most = map(float, line.split()[1:6])
    label = arrays['tool_action'][3, data.TOOL_ACTION_NAMES.index('right/tool_x')]
    assert line.endswith('mm') and abs(recorded - 1e3 * label) < 1e-3
    assert mean <= most + 1e-3 and abs(predicted - recorded) <= most + 2e-3
    picture = imageio.imread(checkpoint / 'sample.png')
    assert picture.shape[0] > 400 and picture[..., :3].std() > 20


def test_error_is_averaged_over_held_out_windows(trained, tmp_path):
    text = run('sample.py', f'--ckpt={trained[0]}', '--count=40', '--read_text=false',
               f'--out={tmp_path}/x.png')
    assert '40 held-out windows' in text and 'holding still' in text and (tmp_path / 'x.png').exists()


def test_masked_rows_do_not_count():
    recorded, predicted = np.zeros((2, 3, 15)), np.zeros((2, 3, 15))
    x = data.TOOL_ACTION_NAMES.index('left/tool_x')
    predicted[0, 2, x], predicted[1, 2, x] = 100, 0.5
    counted = np.array([[True, True, False], [True, True, True]])
    per_slot, distance = sample.mean_error(predicted, recorded, counted)
    assert per_slot[x] == 0.5 / 5 and distance[2].tolist() == [0.5, 0]
