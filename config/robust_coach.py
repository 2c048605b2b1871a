# The policy of the first lesson drives in rooms that differ, 3 steps late, and the expert says what
# it would do (DAgger): 2 CPU cores, 2 GB.
# python sim_rollout.py config/robust_coach.py
# Killed and typed again, it goes on where it was.
policy = 'out/robust_start'
randomise = 1.0  # the full range of every kind in sim/randomise.py
delay = 3  # steps by which a chunk comes late
seed0 = 300_000
episodes = 500  # seeds tried; only successes are written
record = 'episodes/robust_coached'
