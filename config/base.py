# 27 M parameters for all tasks at once; 1 GPU, 4 GB by estimate. Not trained yet, so there is no
# result to state.
# python train.py config/base.py
out_dir = 'out/base'
episodes = 'episodes/join'  # python sim_rollout.py config/join_collect.py
horizon = 16  # 1.6 s at 10 Hz
state_slots = ('command/*/tool_[xyz]', 'command/*/tool_rz', 'error/*/tool_z', '*/gripper')
action_slots = ('*/tool_[xyz]', '*/tool_rz', '*/gripper')
hidden_size = 512
n_layers = 6
n_heads = 8
n_kv_heads = 8
intermediate_size = 4 * hidden_size
mlp = 'gelu'
batch_size = 256
max_steps = 20_000
learning_rate = 1e-3
muon_learning_rate = 0.02
