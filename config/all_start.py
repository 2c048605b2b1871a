# First lesson: a policy that is good enough to be coached, from demonstrations alone, and from the
# demo's weights, which know how bricks look and how to go where they are; 2 CPU cores, about 1.7
# hours by estimate: 0.3 M chunks at 50 a second.
# torchrun --standalone --nproc_per_node=2 train.py config/all.py config/all_start.py
out_dir = 'out/all_start'
init_from = 'out/demo'
episodes = 'episodes/all'  # python sim_rollout.py config/all_collect.py
max_steps = 2_400  # 128 x 2,400 = 0.3 M chunks
learning_rate = 2e-3
muon_learning_rate = 0.04
