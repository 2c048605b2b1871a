# First lesson: a policy that is good enough to be coached, from demonstrations alone; 2 CPU cores.
# torchrun --standalone --nproc_per_node=2 train.py config/join.py config/join_start.py
out_dir = 'out/join_start'
init_from = ''
episodes = 'episodes/join'  # python sim_rollout.py config/join_collect.py
max_steps = 1_600  # 128 x 1,600 = 205k chunks
learning_rate = 2e-3
muon_learning_rate = 0.04
