# The policy of the first lesson drives, the expert says what it would do (DAgger): 2 CPU cores.
# python sim_rollout.py config/join_coach.py
# Killed and typed again, it goes on where it was.
policy = 'out/join_start'
seed0 = 100_000
episodes = 700  # seeds tried; only successes are written
record = 'episodes/join_coached'
