# Demonstrations of `place` in rooms that differ: light, colours, textures, cameras, lenses, studs,
# grippers and calibration are drawn anew for every episode; DUPLO scale, with kicks, 2 CPU cores,
# 900 episodes, 4 GB.
# python sim_rollout.py config/robust_collect.py
# Killed and typed again, it goes on where it was.
policy = 'expert'
task = 'place'
brick_scale = 2.0  # DUPLO
kicks = 0.1  # disturbances to recover from
randomise = 1.0  # the full range of every kind in sim/randomise.py
seed0 = 200_000
episodes = 900  # seeds tried; only successes are written
record = 'episodes/robust'
