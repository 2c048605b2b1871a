# First lesson: a policy that is good enough to be coached, from demonstrations alone; 50 min on 2
# slow CPU cores beside other work: 205k chunks at 30 to 86 a second. It starts from a lesson in
# seeing (config/all_sight.py) and keeps what that has learnt as it is.
# torchrun --standalone --nproc_per_node=2 train.py config/all.py config/all_start.py
out_dir = 'out/all_start'
init_from = 'out/all_sight'
episodes = 'episodes/all'  # python sim_rollout.py config/all_collect.py
rates = ('vision.*=0', 'image*=0', 'scene_head.*=0')
max_steps = 1_600  # 128 x 1,600 = 205k chunks, 26,000 of each of eight tasks
learning_rate = 2e-3
muon_learning_rate = 0.04
