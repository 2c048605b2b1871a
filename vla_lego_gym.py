"""The world as Gymnasium environments, one per task: vla_lego/place-v0, vla_lego/join-v0, ...

    import gymnasium
    import vla_lego_gym  # registers the ids
    env = gymnasium.make('vla_lego/join-v0', obs_type='pixels_agent_pos')
    obs, info = env.reset(seed=0)
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())

An action is World.step's tool action (15,): an absolute command within its bounds, see
sim/control.py. gymnasium.wrappers.RescaleAction brings it to [-1, 1]. obs_type says what is seen:
    pixels              {camera: (h, w, 3) uint8}
    pixels_agent_pos    {'pixels': those, 'agent_pos': (S,) float32, see episode.STATE}
    state               (S + n,) float32: agent_pos, poses of all bricks, and the place asked for
The instruction, which every task needs, is in info['instruction'] and in `task_description`.

In a process that has not imported this module, 'vla_lego_gym:vla_lego/join-v0' does. Pictures are
rendered where the first one is asked for, so that processes of a vector environment may be forked.
"""

from typing import Any

import numpy as np

from episode import STATE_NAMES, state_vector
from sim import labels
from sim.control import TOOL_HIGH, TOOL_LOW
from sim.expert import Expert
from sim.tasks import TASKS
from sim.world import World

try:
    import gymnasium
except ImportError:
    raise ImportError('environments need gymnasium: pip install "gymnasium>=1.1"') from None

OBS_TYPES = ('pixels', 'pixels_agent_pos', 'state')
N_SEEDS = 1_000_000  # those from here on are for testing only


class LegoEnv(gymnasium.Env, gymnasium.utils.EzPickle):
    """A World with spaces; `is_success` in info says whether the goal has been held for 1 s."""

    metadata = {'render_modes': ['rgb_array'], 'render_fps': 10}

    def __init__(
        self,
        task: str = 'place',
        obs_type: str = 'pixels_agent_pos',
        render_mode: str | None = 'rgb_array',
        render_size: int = 480,
        **world: Any,
    ):
        """Build the scene of a task.

        Args:
            task: One of sim.tasks.TASKS.
            obs_type: One of OBS_TYPES.
            render_mode: 'rgb_array' or None.
            render_size: Of what `render` returns, px.
            world: Other arguments of World: cameras, image_size, brick_scale, ...
        """
        gymnasium.utils.EzPickle.__init__(self, task, obs_type, render_mode, render_size, **world)
        if obs_type not in OBS_TYPES:
            raise ValueError(f'obs_type={obs_type!r}: expected one of {", ".join(OBS_TYPES)}')
        if obs_type == 'state':
            world['cameras'] = ()
        self.task = task
        self.obs_type = obs_type
        self.render_mode = render_mode
        self.render_size = render_size
        self.world = World(task, **world)
        self.metadata = self.metadata | {'render_fps': self.world.control_hz}
        self._max_episode_steps = self.world.max_steps  # the name that lerobot asks for
        low = TOOL_LOW.astype(np.float32)
        high = TOOL_HIGH.astype(np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = self._space()

    def _space(self) -> gymnasium.Space:
        box = gymnasium.spaces.Box
        if self.obs_type == 'state':
            obs, _ = self.world.reset(0)
            return box(-np.inf, np.inf, self._observation(obs).shape, np.float32)
        size = self.world.image_size
        names = [name.replace('/', '_') for name in self.world.cameras]
        pixels = gymnasium.spaces.Dict(
            {name: box(0, 255, (size, size, 3), np.uint8) for name in names}
        )
        if self.obs_type == 'pixels':
            return pixels
        agent_pos = box(-np.inf, np.inf, (len(STATE_NAMES),), np.float32)
        return gymnasium.spaces.Dict({'pixels': pixels, 'agent_pos': agent_pos})

    def _observation(self, obs: dict[str, Any]) -> Any:
        agent_pos = state_vector(obs).astype(np.float32)
        if self.obs_type == 'state':
            truth = self.world.truth()
            bricks = np.nan_to_num(labels.scene(truth)[0]).ravel()  # Poses are in the torso frame.
            place = labels.referents(truth, [truth.goal])[0]
            return np.concatenate([agent_pos, bricks, place]).astype(np.float32)
        pixels = {
            name.removeprefix('image/').replace('/', '_'): picture
            for name, picture in obs.items()
            if name.startswith('image/')
        }
        return pixels if self.obs_type == 'pixels' else {'pixels': pixels, 'agent_pos': agent_pos}

    def _info(self, info: dict[str, Any]) -> dict[str, Any]:
        return info | {'is_success': info['success'], 'instruction': self.world.instruction}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Draw an episode: that of the seed, or the next of those that the last seed leads to.

        Args:
            seed: As in World.reset: scores are of seeds from 1,000,000 on.
            options: Not used; others pass some.
        """
        super().reset(seed=seed)
        episode = int(self.np_random.integers(N_SEEDS)) if seed is None else seed
        obs, info = self.world.reset(episode)
        self._teacher = Expert()
        return self._observation(obs), self._info(info)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See World.step; the reward is 1 for success."""
        obs, reward, terminated, truncated, info = self.world.step(action)
        return self._observation(obs), reward, terminated, truncated, self._info(info)

    def expert_action(self) -> np.ndarray:
        """What the scripted teacher would do now, (15,) float32, a label to imitate."""
        return self._teacher.act(self.world.truth())[0]

    @property
    def task_description(self) -> str:
        """The instruction of the episode."""
        return self.world.instruction

    def render(self) -> np.ndarray | None:
        """Picture of the scene, (render_size, render_size, 3) uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        return self.world.render('third_person', self.render_size)

    def close(self) -> None:
        """Free what renders."""
        self.world.close()


for _task in TASKS:
    gymnasium.register(f'vla_lego/{_task}-v0', 'vla_lego_gym:LegoEnv', kwargs={'task': _task})
