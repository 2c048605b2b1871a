# Your own robot's episodes (docs/own_episodes.md tells how to write them): joint actions, no
# grounding. Settings to begin with, not a result: 50 steps of a small network halve the loss on six
# made-up episodes of an arm and of an ALOHA-like pair (tests/test_own_episodes.py)
# python train.py config/own.py --episodes=episodes/arm --control_hz=20 --cameras=front,
out_dir = 'out/own'
episodes = 'episodes/own'
cameras = ('front',)  # names of yours, in the order in which the model is to see them
control_hz = 20  # The files say the same.
grounding = False  # it learns where bricks are from our simulator's truth
action_space = 'joint'  # the array joint_action; 'tool': the array tool_action
reask_share = 0.0  # our simulator's scenes can be asked for more than one goal
log_scale_m = 0.0  # every size of motion counts alike: no studs to be hit
horizon = 16  # rows of a chunk
noise_samples = 4
pure_noise = 0.5
val_fraction = 0.1  # Chosen by hash: with few episodes it may be none, and an error says so.
