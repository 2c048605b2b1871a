# First lesson of config/robust.py: other rooms and late actions, from the demo's weights and from
# demonstrations alone.
# torchrun --standalone --nproc_per_node=2 train.py config/robust.py config/robust_start.py
out_dir = 'out/robust_start'
init_from = 'out/demo'
episodes = 'episodes/demo,episodes/robust'  # the demo's, and config/robust_collect.py's
max_steps = 1_200
