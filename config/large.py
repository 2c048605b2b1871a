# 1.2 B parameters, for many tasks at once; 8 GPUs, 7 GB of each by estimate. Not trained yet, so
# there is no result to state.
# torchrun --standalone --nproc_per_node=8 train.py config/large.py
out_dir = 'out/large'
episodes = 'episodes/join'  # python sim_rollout.py config/join_collect.py
horizon = 16  # 1.6 s at 10 Hz
state_slots = ('command/*/tool_[xyz]', 'command/*/tool_rz', 'error/*/tool_z', '*/gripper')
action_slots = ('*/tool_[xyz]', '*/tool_rz', '*/gripper')
hidden_size = 2048
n_layers = 24
n_heads = 32
n_kv_heads = 32
intermediate_size = 5_376  # 21/8 of the width: SwiGLU has three matrices where others have two
mlp = 'swiglu'
recompute = True
fsdp = True  # one model over all GPUs; on one GPU 54 GB, 31 with --accumulate=8
batch_size = 1_024
max_steps = 50_000
learning_rate = 2e-4
muon_learning_rate = 0.01
eval_interval = 1_000
checkpoint_interval = 1_000  # 25 GB
