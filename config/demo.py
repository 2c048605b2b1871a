# the brick of the named colour pressed onto the named corner by either arm; DUPLO scale, from pixels
# torchrun --standalone --nproc_per_node=2 train.py config/demo.py      # 2 CPU cores
out_dir = 'out/demo'
episodes = 'episodes/demo'      # python sim_rollout.py config/demo_collect.py
horizon = 8                     # 0.8 s at 10 Hz; two rows are executed before the policy looks again
# what makes the observation Markovian: the command in force, how far the hand is from it, and the grip
state_slots = ('command/*/tool_[xyz]', 'command/*/tool_rz', 'error/*/tool_[xyz]', 'error/*/tool_rz',
               '*/gripper')
action_slots = ('*/tool_[xyz]', '*/tool_rz', '*/gripper')      # hands stay top-down, the spine stays put
draws = 2                       # of (noise, time) per reading of the images
batch_size = 128                # 128 chunks x 0.8 s = 102 s of motion per step
max_steps = 2_600               # 128 x 2,600 = 333k chunks, about 10 epochs of 900 episodes
eval_interval = 400
checkpoint_interval = 200
