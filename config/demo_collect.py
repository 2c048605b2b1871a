# Demonstrations of `place`, DUPLO scale, with kicks: 2 CPU cores, 3 min, 900 episodes, 4.0 GB.
# python sim_rollout.py config/demo_collect.py
# Killed and typed again, it goes on where it was.
policy = 'expert'
task = 'place'
brick_scale = 2.0  # DUPLO: twice LEGO, and so is the tolerance of a press
kicks = 0.1  # disturbances to recover from; without them the first mistake is the last
seed0 = 0
episodes = 900  # seeds tried; only successes are written
record = 'episodes/demo'
