# One policy for all tasks but `build`, told by words; grounded network and coach, DUPLO, from
# pixels, for two CPU cores. Not run to its end yet, so there is no result to state: its second
# lesson and its score have not. At 70 samples a second, what two slow cores do, `make all` takes
# 3.5 hours after `make demo`: 13 min of demonstrations, 11 min a lesson in seeing, 50 min first
# lesson, 20 min coach, 1 h second lesson, 50 min for 100 scenes of each task with and without the
# instruction.
# torchrun --standalone --nproc_per_node=2 train.py config/all.py
out_dir = 'out/all'
init_from = 'out/all_start'
# The first are recorded by python sim_rollout.py config/all_collect.py
# and the others by python sim_rollout.py config/all_coach.py
episodes = 'episodes/all,episodes/all_coached'
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
rows_after_success = 10  # all rows to the end: a shut hand must stay up there, as for `join`
noise_samples = 4  # (noise, time) pairs per reading of the images
read_text = 0.25  # This share of the noise samples sees the subtask text; the others must look.
reask_share = 0.15  # This share of the samples asks for another goal of the same scene.
refuse_share = 0.05  # This share asks for what is not there: hands still, and ask back.
batch_size = 128  # chunks per step
max_steps = 2_000  # 128 x 2,000 = 256k chunks, 32,000 of each of eight tasks
learning_rate = 1e-3
muon_learning_rate = 0.02
eval_interval = 400
eval_batches = 4
checkpoint_interval = 200
