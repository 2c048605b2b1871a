"""Shows that the plugin works with the lerobot that is installed here.

    python plugins/lerobot_env_vla_lego/check.py           # a few minutes on two cores

The scripted expert drives through lerobot's own evaluation, which has to count its successes; then
`lerobot-eval` runs an untrained ACT policy of lerobot's, from a folder, on two tasks.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from lerobot.configs import FeatureType
from lerobot.envs import make_env, make_env_config, make_env_pre_post_processors
from lerobot.envs.utils import env_to_policy_features
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.import_utils import register_third_party_plugins


class Expert(torch.nn.Module):
    """A policy to lerobot; it asks the environments what the scripted teacher would do."""

    def __init__(self, envs):
        super().__init__()
        self.envs = envs

    def reset(self):
        """Nothing is remembered."""

    def select_action(self, batch):
        """(B, 15) commands; the batch has to hold what lerobot's policies are promised."""
        n = self.envs.num_envs
        assert batch['observation.state'].shape[0] == n
        assert batch['observation.images.left_wrist'].shape[1] == 3
        assert len(batch['task']) == n and all(batch['task'])
        return torch.tensor([list(map(float, row)) for row in self.envs.call('expert_action')])


def expert_successes(task, n_envs, use_async):
    """Successes of the expert as lerobot's rollout counts them."""
    config = make_env_config('vla_lego', task=task)
    envs = next(iter(make_env(config, n_envs, use_async)['vla_lego'].values()))
    before, after = make_env_pre_post_processors(config, None)
    same = PolicyProcessorPipeline(steps=[], name='same')
    unchanged = PolicyProcessorPipeline(
        steps=[], to_transition=lambda x: x, to_output=lambda x: x, name='unchanged'
    )
    done = rollout(envs, Expert(envs), before, after, same, unchanged, seeds=list(range(n_envs)))
    envs.close()
    return int(done['success'].any(1).sum())


def save_untrained_act(folder):
    """An ACT policy whose inputs and outputs are those of our environments."""
    features = env_to_policy_features(make_env_config('vla_lego'))
    outputs = {k: v for k, v in features.items() if v.type is FeatureType.ACTION}
    config = ACTConfig(
        input_features={k: v for k, v in features.items() if k not in outputs},
        output_features=outputs,
        device='cpu',
        pretrained_backbone_weights=None,
        dim_model=64,
        n_heads=4,
        dim_feedforward=128,
        push_to_hub=False,
    )
    ACTPolicy(config).save_pretrained(folder)
    stats = {}
    for name, feature in features.items():
        shape = (3, 1, 1) if feature.type is FeatureType.VISUAL else feature.shape
        stats[name] = {'mean': torch.zeros(shape), 'std': torch.ones(shape)}
    for part in make_pre_post_processors(config, dataset_stats=stats):
        part.save_pretrained(folder)


if __name__ == '__main__':
    register_third_party_plugins()
    for use_async in (False, True):
        n = expert_successes('place', 2, use_async)
        print(f'expert through lerobot, {"processes" if use_async else "one process"}: {n}/2')
        assert n > 0, 'lerobot counted no success of the expert'
    with tempfile.TemporaryDirectory() as folder:
        save_untrained_act(folder)
        command = [
            str(Path(sys.executable).with_name('lerobot-eval')),
            f'--policy.path={folder}',
            '--policy.device=cpu',
            '--env.type=vla_lego',
            '--env.task=place,unplug',
            '--eval.n_episodes=2',
            '--eval.batch_size=2',
            f'--output_dir={folder}/eval',
        ]
        subprocess.run(command, check=True)
        print(Path(folder, 'eval', 'eval_info.json').read_text(encoding='utf-8'))
