# Demonstrations of all tasks but `build`, DUPLO scale, with kicks, for config/all.py: 2 CPU cores,
# 13 min by estimate (21 with `build`), 9.4 GB: 1,591 of 1,600 episodes, 72 rows on average.
# python sim_rollout.py config/all_collect.py
# Killed and typed again, it goes on where it was.
policy = 'expert'
# Which of its three to six steps `build` is at cannot be told from its words alone (docs/log.md).
task = 'place,stack,handover,join,separate,unplug,bridge,mixed'
brick_scale = 2.0  # DUPLO: twice LEGO, and so is the tolerance of a press
kicks = 0.1  # disturbances to recover from; without them the first mistake is the last
seed0 = 0
episodes = 200  # seeds tried of each task; only successes are written
record = 'episodes/all'
