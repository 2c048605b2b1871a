# First lesson: a policy that is good enough to be coached, from the expert alone; 9 min on
# 2 CPU cores.
# torchrun --standalone --nproc_per_node=2 train.py config/demo.py config/demo_start.py
out_dir = 'out/demo_start'
init_from = ''
episodes = 'episodes/demo'  # python sim_rollout.py config/demo_collect.py
max_steps = 1_600  # 128 x 1,600 = 205k chunks
learning_rate = 2e-3
muon_learning_rate = 0.04
