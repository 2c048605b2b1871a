# the brick of the named colour pressed onto the named corner by either arm; DUPLO scale, from pixels:
# 17 of 60 unseen scenes after 22 min of training (docs/log.md, run 6); the goal of 90 % is not reached yet
# torchrun --standalone --nproc_per_node=2 train.py config/demo.py      # 2 CPU cores
out_dir = 'out/demo'
episodes = 'episodes/demo'      # python sim_rollout.py config/demo_collect.py
horizon = 4                     # 0.4 s at 10 Hz; the first row is executed, then the policy looks again
row_decay = 0.5                 # so the first row counts most
# What is commanded, how far down a press has got, and the grip. The rest of the tracking error is left out
# on purpose: it shows which way the arm is moving, and a policy that sees it copies that instead of looking.
state_slots = ('command/*/tool_[xyz]', 'command/*/tool_rz', 'error/*/tool_z', '*/gripper')
read_text = 0.25                # of the draws see the subtask text; the others have to look and read
action_slots = ('*/tool_[xyz]', '*/tool_rz', '*/gripper')      # hands stay top-down, the spine stays put
ask = 0.15                      # of the samples ask for another goal of the same scene
draws = 4                       # of (noise, time) per reading of the images
batch_size = 128                # 128 chunks per step
max_steps = 3_000               # 128 x 3,000 = 384k chunks
eval_interval = 400
checkpoint_interval = 200
