# The brick of the named colour onto the named corner, turned as asked for, by either arm; DUPLO,
# from pixels: 99 of 100 held-out scenes, 98 in wordings that it never read, 2 with the instruction
# blanked; 125 min on two slow cores beside other work, commit be5e5a6.
# After the first lesson (config/demo_start.py), on 2 CPU cores:
# torchrun --standalone --nproc_per_node=2 train.py config/demo.py
out_dir = 'out/demo'
init_from = 'out/demo_start'
# The first are recorded by python sim_rollout.py config/demo_collect.py
# and the others by python sim_rollout.py config/demo_coach.py
episodes = 'episodes/demo,episodes/demo_coached'
# What is commanded, how far down a press has got, and the grip. The rest of the tracking error is
# left out on purpose: it shows which way the arm is moving, and a policy that sees it copies that
# instead of looking.
state_slots = ('command/*/tool_[xyz]', 'command/*/tool_rz', 'error/*/tool_z', '*/gripper')
# Hands stay top-down, the spine stays put.
action_slots = ('*/tool_[xyz]', '*/tool_rz', '*/gripper')
horizon = 4  # 0.4 s at 10 Hz; the first row is executed, then the policy looks again
row_decay = 0.5  # The first row counts most.
# The decoder reads poses of bricks, not pictures. The stem then learns from nothing but poses, and
# a brick in the hand is known to half a millimetre.
hide_pictures = True
noise_samples = 4  # (noise, time) pairs per reading of the images
read_text = 0.25  # This share of the noise samples sees the subtask text; the others must look.
reask_share = 0.15  # This share of the samples asks for another goal of the same scene.
batch_size = 128  # chunks per step
max_steps = 1_700  # 128 x 1,700 = 218k chunks
learning_rate = 1e-3
muon_learning_rate = 0.02
eval_interval = 400
checkpoint_interval = 200
