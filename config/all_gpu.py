# One policy for all tasks, told by words: the plain EO-1 shape, 27 M parameters, no grounding, no
# coach, within 9 min on one H100 and 16 cores (`make all_gpu`): 2 min of demonstrations, 4 min of
# training, 1.5 min for 20 scenes of each task, and what starting takes. Ended by time, the same
# command goes on. At 6,000 samples/s, what config/base.py did there beside two other trainings, 4
# min are 1.4 M chunks, 160,000 of each task; `place` alone took 1.1 M for 56 of 60. Rehearsed on
# two CPU cores with 2 episodes of each task and 3 steps; not run on a GPU yet, so there is no
# result to state.
# python train.py config/all_gpu.py
out_dir = 'out/all_gpu'
episodes = 'episodes/all_gpu'  # python sim_rollout.py config/all_gpu_collect.py
grounding = False
state_slots = ('command/*/tool_[xyz]', 'command/*/tool_rz', 'error/*/tool_z', '*/gripper')
action_slots = ('*/tool_[xyz]', '*/tool_rz', '*/gripper')
horizon = 8  # 0.8 s at 10 Hz
rows_after_success = 10  # all rows to the end: a shut hand must stay up there, as for `join`
reask_share = 0.0  # without grounding another goal's words teach nothing
refuse_share = 0.05  # This share asks for what is not there: hands still, and ask back.
wordings = 256  # Each goal has so many: a new one per sample would take half of a step's 62 ms.
hidden_size = 512
n_layers = 6
n_heads = 8
n_kv_heads = 8
intermediate_size = 4 * hidden_size
mlp = 'gelu'
batch_size = 512  # chunks per step
max_steps = 2_800  # 512 x 2,800 = 1.4 M chunks
learning_rate = 1e-3
muon_learning_rate = 0.02
max_minutes = 4.0
eval_interval = 700
checkpoint_interval = 700
