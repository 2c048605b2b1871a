# Demonstrations of all tasks, DUPLO scale, with kicks, for config/all.py: 2 CPU cores, about 13
# min, 18 GB by estimate: 1,800 episodes of 93 rows on average (a mean over tasks, two episodes of
# each), 100 KB a row, at the 290 rows/s of two cores. Rehearsed with 2 episodes of each task; not
# run yet.
# python sim_rollout.py config/all_collect.py
# Killed and typed again, it goes on where it was.
policy = 'expert'
task = 'all'
brick_scale = 2.0  # DUPLO: twice LEGO, and so is the tolerance of a press
kicks = 0.1  # disturbances to recover from; without them the first mistake is the last
seed0 = 0
episodes = 200  # seeds tried of each task; only successes are written
record = 'episodes/all'
