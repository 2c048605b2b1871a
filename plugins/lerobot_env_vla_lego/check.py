"""Shows that the plugin works with the lerobot that is installed here.

    python plugins/lerobot_env_vla_lego/check.py           # a few minutes on two cores
    python plugins/lerobot_env_vla_lego/check.py out/act   # writes an untrained ACT policy there

The scripted expert does every task through lerobot's own evaluation, which has to count its
successes; then `lerobot-eval` runs an untrained ACT policy of lerobot's, from a folder, on every
task. Exits with an error where the expert succeeds at none of a task, or a task is left out.
"""

import json
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
from lerobot_env_vla_lego import vla_lego_gym

TASKS = list(vla_lego_gym.TASKS)
SEEDS = (0, 1)  # The expert has these episodes of each task.


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


def expert_successes(task, use_async):
    """Successes of the expert as lerobot's rollout counts them, {task: how many of SEEDS}."""
    config = make_env_config('vla_lego', task=task)
    before, after = make_env_pre_post_processors(config, None)
    same = PolicyProcessorPipeline(steps=[], name='same')
    unchanged = PolicyProcessorPipeline(
        steps=[], to_transition=lambda x: x, to_output=lambda x: x, name='unchanged'
    )
    successes = {}
    for number, envs in make_env(config, len(SEEDS), use_async)['vla_lego'].items():
        expert = Expert(envs)
        done = rollout(envs, expert, before, after, same, unchanged, seeds=list(SEEDS))
        successes[TASKS[number]] = int(done['success'].any(1).sum())
        envs.close()
    return successes


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


def evaluate(policy, out):
    """Let lerobot-eval run a policy for one episode of each task.

    Args:
        policy: Its folder.
        out: Folder for lerobot's results.

    Returns:
        {task: whether that episode succeeded}
    """
    command = [
        str(Path(sys.executable).with_name('lerobot-eval')),
        f'--policy.path={policy}',
        '--policy.device=cpu',
        '--env.type=vla_lego',
        '--env.task=all',
        '--eval.n_episodes=1',
        f'--output_dir={out}',
    ]
    subprocess.run(command, check=True)
    found = json.loads(Path(out, 'eval_info.json').read_text(encoding='utf-8'))
    return {TASKS[row['task_id']]: row['metrics']['successes'] for row in found['per_task']}


if __name__ == '__main__':
    if len(sys.argv) > 1:
        save_untrained_act(sys.argv[1])
        raise SystemExit(0)
    for use_async, tasks in ((False, 'all'), (True, 'place')):
        where = 'in processes' if use_async else 'in one process'
        for task, n in expert_successes(tasks, use_async).items():
            print(f'expert {where}: {task} {n}/{len(SEEDS)}', flush=True)
            assert n > 0, f'lerobot counted no success of the expert at {task}'
    with tempfile.TemporaryDirectory() as folder:
        save_untrained_act(folder)
        done = evaluate(folder, f'{folder}/eval')
    assert list(done) == TASKS and all(len(episodes) == 1 for episodes in done.values()), done
    for task, (success,) in done.items():
        print(f'untrained ACT through lerobot-eval, to the end: {task} {int(success)}/1')
