# First lesson: a policy that is good enough to be coached, from demonstrations alone; 2 CPU cores,
# about 95 min by estimate: 1.6 M chunks at the 285 a second that config/demo_start.py does.
# torchrun --standalone --nproc_per_node=2 train.py config/all.py config/all_start.py
out_dir = 'out/all_start'
init_from = ''
episodes = 'episodes/all'  # python sim_rollout.py config/all_collect.py
max_steps = 12_500  # 128 x 12,500 = 1.6 M chunks
learning_rate = 2e-3
muon_learning_rate = 0.04
