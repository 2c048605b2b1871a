# Demonstrations of `join` (joined in the air, then laid down), DUPLO scale, with kicks: 2 CPU
# cores.
# python sim_rollout.py config/join_collect.py
# Killed and typed again, it goes on where it was.
policy = 'expert'
task = 'join'
brick_scale = 2.0  # DUPLO: twice LEGO, and so is the tolerance of a press
kicks = 0.1  # disturbances to recover from; each arm gets its own
seed0 = 0
episodes = 1_500  # seeds tried; only successes are written
record = 'episodes/join'
