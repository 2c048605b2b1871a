# Demonstrations of all tasks, DUPLO scale, with kicks, for config/all_gpu.py: 16 cores and a GPU
# that renders, at most 2 min, 17 GB: at the 1,450 rows/s that 14 workers did on such a machine
# about 208 episodes of each task. Rehearsed on two CPU cores with 2 of each; not run on a GPU
# yet.
# python sim_rollout.py config/all_gpu_collect.py
# Tasks take turns: whenever time is up, all have had their share. Typed again, it goes on.
policy = 'expert'
task = 'all'
brick_scale = 2.0  # DUPLO: twice LEGO, and so is the tolerance of a press
kicks = 0.1  # disturbances to recover from; without them the first mistake is the last
seed0 = 0
episodes = 600  # seeds tried of each task, if there is time
max_minutes = 2.0
record = 'episodes/all_gpu'
