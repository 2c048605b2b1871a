# A lesson in seeing, before config/all_start.py: where bricks are, from the demonstrations and from
# the demo's weights. The decoder does not run: 400 samples a second where all of it does 70. Loss
# on held-out episodes 0.445 after 10.8 min on 2 slow CPU cores, commit e111069, with episodes of
# `build` among the demonstrations.
# torchrun --standalone --nproc_per_node=2 train.py config/all.py config/all_sight.py
out_dir = 'out/all_sight'
init_from = 'out/demo'
episodes = 'episodes/all'  # python sim_rollout.py config/all_collect.py
sight_only = True
max_steps = 2_000  # 128 x 2,000 = 256k samples
learning_rate = 2e-3
muon_learning_rate = 0.0
