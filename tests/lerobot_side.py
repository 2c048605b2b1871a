"""What the real lerobot does in its own environment, for tests/test_lerobot.py.

python tests/lerobot_side.py open FOLDER OUT.npz      # what LeRobotDataset gives of some frames
python tests/lerobot_side.py record FOLDER            # two episodes by LeRobot's own recorder
"""

import sys

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

FRAMES = (0, 1, 7, -1)


def open_dataset(folder, out):
    """Open a data set as a training does, with chunks of four actions, and keep what comes."""
    whole = LeRobotDataset('ours/demo', root=folder)
    assert whole.meta.total_episodes == whole.num_episodes
    delta = {'action': [i / whole.fps for i in range(4)]}
    data = LeRobotDataset('ours/demo', root=folder, delta_timestamps=delta)
    kept = {'frames': len(data), 'fps': data.fps, 'tasks': list(data.meta.tasks.index)}
    kept['cameras'] = data.meta.camera_keys
    for number in range(data.num_episodes):
        episode = data.meta.episodes[number]
        for at in FRAMES:
            index = episode['dataset_from_index'] + at % episode['length']
            item = data[index]
            for key, value in item.items():
                if key == 'language_persistent':
                    rows = [row for row in value if row['timestamp'] <= item['timestamp'] + 1e-6]
                    value = rows[-1]['content']
                kept[f'{number}/{at}/{key}'] = np.asarray(value)
    for key, stats in data.meta.stats.items():
        kept |= {f'stats/{key}/{name}': value for name, value in stats.items()}
    np.savez(out, **kept)


def record(folder):
    """Record two episodes of an arm with six joints and a gripper, and a camera as video."""
    names = [f'joint_{i}.pos' for i in range(6)] + ['gripper.pos']
    vector = {'dtype': 'float32', 'shape': (7,), 'names': names}
    camera = {'dtype': 'video', 'shape': (64, 96, 3), 'names': ['height', 'width', 'channels']}
    features = {'observation.state': vector, 'action': vector, 'observation.images.front': camera}
    data = LeRobotDataset.create('theirs/arm', 30, features, root=folder, robot_type='so101')
    rng = np.random.default_rng(0)
    for episode in range(2):
        for t in range(20):
            frame = np.full((64, 96, 3), 40, np.uint8)
            frame[20:40, 10 + 3 * t : 30 + 3 * t] = 200, 60, 40
            state = np.linspace(0, 1, 7, dtype=np.float32) * t
            data.add_frame(
                {
                    'observation.state': state,
                    'action': state + rng.normal(size=7).astype(np.float32),
                    'observation.images.front': frame,
                    'task': f'push the block {episode}',
                }
            )
        data.save_episode()
    data.finalize()


if __name__ == '__main__':
    {'open': open_dataset, 'record': record}[sys.argv[1]](*sys.argv[2:])
