"""VLA-LEGO's tasks under LeRobot: lerobot-eval --env.type=vla_lego --env.task=place,join.

Written for lerobot 0.6. Observations are named observation.state and observation.images.<camera>,
actions are absolute tool commands (15,), and env.call('task_description') gives the instruction.
"""

import importlib.util
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[3]
if importlib.util.find_spec('vla_lego_gym') is None and (CHECKOUT / 'vla_lego_gym.py').exists():
    sys.path.append(str(CHECKOUT))
try:
    import gymnasium
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.envs.configs import EnvConfig
    from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
except ImportError as fault:
    raise ImportError(f'this plugin needs lerobot: pip install lerobot ({fault})') from None
try:
    import vla_lego_gym
except ImportError as fault:
    raise ImportError(
        f'this plugin needs the checkout of VLA-LEGO around it ({fault}): '
        'pip install -e plugins/lerobot_env_vla_lego'
    ) from None

ALL = 'all'


@EnvConfig.register_subclass('vla_lego')
@dataclass
class VlaLegoEnv(EnvConfig):
    """Settings of the environments; with several tasks each gets a vector environment."""

    task: str | None = 'place'  # names, comma separated, or 'all'
    fps: int = 10
    cameras: str = 'overhead,left/wrist,right/wrist'
    image_size: int = 96  # px
    brick_scale: float = 2.0  # 1 LEGO, 2 DUPLO
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Name what is observed and commanded."""
        n_state = len(vla_lego_gym.STATE_NAMES)
        n_action = len(vla_lego_gym.TOOL_LOW)
        self.features[ACTION] = PolicyFeature(FeatureType.ACTION, (n_action,))
        self.features['agent_pos'] = PolicyFeature(FeatureType.STATE, (n_state,))
        self.features_map |= {ACTION: ACTION, 'agent_pos': OBS_STATE}
        for name in self.cameras.split(','):
            key = name.replace('/', '_')
            shape = (self.image_size, self.image_size, 3)
            self.features[f'pixels/{key}'] = PolicyFeature(FeatureType.VISUAL, shape)
            self.features_map[f'pixels/{key}'] = f'{OBS_IMAGES}.{key}'

    @property
    def package_name(self) -> str:
        """The module that registers the ids."""
        return 'vla_lego_gym'

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments of an environment but for its task."""
        return {
            'cameras': tuple(self.cameras.split(',')),
            'image_size': self.image_size,
            'brick_scale': self.brick_scale,
            'control_hz': self.fps,
        }

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gymnasium.vector.VectorEnv]]:
        """Make {suite: {task number: vector environment}}; a number counts in vla_lego_gym.TASKS.

        Episodes end with AutoresetMode.SAME_STEP: without it lerobot scores each as a failure.
        """
        every = list(vla_lego_gym.TASKS)
        names = every if self.task == ALL else str(self.task).split(',')
        unknown = [name for name in names if name not in every]
        if unknown:
            raise ValueError(f'env.task={unknown[0]}: expected {ALL} or some of {",".join(every)}')
        options: dict[str, Any] = {'autoreset_mode': gymnasium.vector.AutoresetMode.SAME_STEP}
        kind: type = gymnasium.vector.SyncVectorEnv
        if use_async_envs and n_envs > 1:
            kind = gymnasium.vector.AsyncVectorEnv
            options['context'] = 'forkserver'  # torch's threads do not survive a fork
        envs = {}
        for name in names:
            # A worker process imports the module that the id names, and so needs no lerobot.
            an_id = f'{self.package_name}:vla_lego/{name}-v0'
            make = partial(gymnasium.make, an_id, disable_env_checker=True, **self.gym_kwargs)
            envs[every.index(name)] = kind([make] * n_envs, **options)
        return {self.type: envs}
