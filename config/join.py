# Two bricks joined in the air (one hand holds, the other presses), then laid down; DUPLO scale,
# from pixels: 88 of 100 held-out scenes (85 with the instruction blanked: it has one goal), 36 min,
# commit 33a69ad. After the first lesson (config/join_start.py), on 2 CPU cores:
# torchrun --standalone --nproc_per_node=2 train.py config/join.py
out_dir = 'out/join'
init_from = 'out/join_start'
# The first are recorded by python sim_rollout.py config/join_collect.py
# and the others by python sim_rollout.py config/join_coach.py
episodes = 'episodes/join,episodes/join_coached'
# What is commanded, how far down a press has got, and the grip. The rest of the tracking error is
# left out on purpose: it shows which way the arm is moving, and a policy that sees it copies that
# instead of looking.
state_slots = ('command/*/tool_[xyz]', 'command/*/tool_rz', 'error/*/tool_z', '*/gripper')
# Hands stay top-down, the spine stays put.
action_slots = ('*/tool_[xyz]', '*/tool_rz', '*/gripper')
horizon = 4  # 0.4 s at 10 Hz; the first row is executed, then the policy looks again
row_decay = 0.5  # The first row counts most.
# The decoder reads poses of bricks, not pictures: the stem then learns from nothing but poses. See
# config/demo.py for what that gives; it has not been measured here.
hide_pictures = True
rows_after_success = 10  # all rows to the end: the shut hand must stay up there, see docs/log.md
noise_samples = 4  # (noise, time) pairs per reading of the images
read_text = 0.25  # This share of the noise samples sees the subtask text; the others must look.
reask_share = 0.0  # there is one goal only
batch_size = 128  # chunks per step
max_steps = 1_500  # 128 x 1,500 = 192k chunks
learning_rate = 1e-3
muon_learning_rate = 0.02
eval_interval = 400
checkpoint_interval = 200
