"""The world as Gymnasium environments."""

import pickle

import launch
import numpy as np
import pytest

gymnasium = pytest.importorskip('gymnasium', reason='pip install "gymnasium>=1.1"')

import vla_lego_gym  # noqa: E402
from sim.tasks import TASKS  # noqa: E402
from sim.world import World  # noqa: E402

SMALL = dict(cameras=('overhead', 'left/wrist'), image_size=32)


def test_every_task_has_an_id():
    for task in TASKS:
        spec = gymnasium.spec(f'vla_lego/{task}-v0')
        assert spec.kwargs == {'task': task}


@pytest.mark.mujoco
@pytest.mark.parametrize('obs_type', vla_lego_gym.OBS_TYPES)
@pytest.mark.filterwarnings('ignore:.*Box observation space (minimum|maximum) value')
@pytest.mark.filterwarnings('ignore:.*not a normalized Box')
def test_gymnasiums_checker_finds_no_fault(obs_type):
    from gymnasium.utils.env_checker import check_env

    env = gymnasium.make('vla_lego/place-v0', obs_type=obs_type, render_size=64, **SMALL)
    check_env(env.unwrapped)
    env.close()


@pytest.mark.mujoco
def test_it_is_the_world_and_no_other():
    env = gymnasium.make('vla_lego/join-v0', **SMALL).unwrapped
    world = World('join', **SMALL)
    obs, info = env.reset(seed=3, options={'lerobot_new_rollout': True})
    theirs, _ = world.reset(3)
    assert info['instruction'] == env.task_description == world.instruction
    assert info['is_success'] is False
    assert env._max_episode_steps == world.max_steps
    for _ in range(3):
        np.testing.assert_array_equal(obs['pixels']['left_wrist'], theirs['image/left/wrist'])
        assert env.observation_space.contains(obs)
        action = env.expert_action()
        obs, *_ = env.step(action)
        theirs, *_ = world.step(action)
    np.testing.assert_array_equal(env.world.data.qpos, world.data.qpos)
    assert env.render().shape == (480, 480, 3)
    env.close()
    world.close()


def test_episodes_without_a_seed_follow_from_the_last_seed():
    env = gymnasium.make('vla_lego/place-v0', obs_type='state').unwrapped
    seeds = []
    for seed in (5, None, None, 5, None, None):
        env.reset(seed=seed)
        seeds.append(env.world.seed)
    assert seeds[:3] == seeds[3:]
    assert len(set(seeds)) == 3
    assert max(seeds) < vla_lego_gym.N_SEEDS


def test_the_expert_succeeds_through_the_interface_and_tells_so():
    env = gymnasium.make('vla_lego/place-v0', obs_type='state')
    env.reset(seed=0)
    over = False
    while not over:
        _, reward, terminated, truncated, info = env.step(env.unwrapped.expert_action())
        over = terminated or truncated
    assert terminated and info['is_success'] and reward == 1


def test_it_can_be_pickled():
    env = vla_lego_gym.LegoEnv('stack', obs_type='state', distractors=1)
    again = pickle.loads(pickle.dumps(env))
    assert again.observation_space == env.observation_space
    np.testing.assert_array_equal(again.reset(seed=1)[0], env.reset(seed=1)[0])


@pytest.mark.mujoco
@pytest.mark.parametrize('context', ['forkserver', 'spawn'])
def test_a_vector_of_processes_sees_what_one_sees(context):
    def make():
        return gymnasium.make('vla_lego_gym:vla_lego/place-v0', **SMALL)

    same_step = gymnasium.vector.AutoresetMode.SAME_STEP
    envs = gymnasium.vector.AsyncVectorEnv([make] * 2, context=context, autoreset_mode=same_step)
    obs, info = envs.reset(seed=[4, 5])
    assert list(info['is_success']) == [False, False]
    assert len(set(envs.call('task_description'))) >= 1
    assert envs.call('_max_episode_steps') == (150, 150)
    alone = make()
    one, _ = alone.reset(seed=5)
    np.testing.assert_array_equal(obs['agent_pos'][1], one['agent_pos'])
    np.testing.assert_array_equal(obs['pixels']['overhead'][1], one['pixels']['overhead'])
    actions = np.stack(envs.call('expert_action'))
    obs, *_ = envs.step(actions)
    one, *_ = alone.step(actions[1])
    np.testing.assert_array_equal(obs['agent_pos'][1], one['agent_pos'])
    envs.close()
    alone.close()


def two_forked():
    """In a new process: both pictures of two forked environments."""
    ids = dict(num_envs=2, vectorization_mode='async', vector_kwargs={'context': 'fork'})
    envs = gymnasium.make_vec('vla_lego/place-v0', **ids, **SMALL)
    obs, _ = envs.reset(seed=[0, 1])
    print('mean pixels', *obs['pixels']['overhead'].mean((1, 2, 3)).round())
    envs.close()


@pytest.mark.mujoco
def test_processes_that_are_forked_render():
    said = launch.run(two_forked).split('mean pixels')[1].split()
    assert all(float(mean) > 10 for mean in said[:2])


def test_what_can_be_observed_is_named():
    with pytest.raises(ValueError, match='pixels, pixels_agent_pos, state'):
        vla_lego_gym.LegoEnv(obs_type='touch')
