# two bricks joined in the air: one hand holds, the other presses; DUPLO scale, from pixels
# torchrun --standalone --nproc_per_node=2 train.py config/join.py      # 2 CPU cores
out_dir = 'out/join'
episodes = 'episodes/join'      # python sim_rollout.py config/join_collect.py
horizon = 8                     # 0.8 s at 10 Hz; two rows are executed before the policy looks again
# What is commanded, how far down a press has got, and the grip. The rest of the tracking error is left out
# on purpose: it shows which way the arm is moving, and a policy that sees it copies that instead of looking.
state_slots = ('command/*/tool_[xyz]', 'command/*/tool_rz', 'error/*/tool_z', '*/gripper')
read_text = 0.25                # of the draws see the subtask text; the others have to look and read
action_slots = ('*/tool_[xyz]', '*/tool_rz', '*/gripper')      # hands stay top-down, the spine stays put
draws = 2                       # of (noise, time) per reading of the images
batch_size = 128                # 128 chunks x 0.8 s = 102 s of motion per step
max_steps = 7_800               # 1M chunks: the joint needs millimetres of two moving bricks
eval_interval = 400
checkpoint_interval = 200
