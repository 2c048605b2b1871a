# The policy of the first lesson drives, the expert says what it would do (DAgger), on all tasks:
# 2 CPU cores, about 10 min, 6 GB by estimate: 800 episodes at the 130 rows/s of
# config/demo_coach.py.
# python sim_rollout.py config/all_coach.py
# Killed and typed again, it goes on where it was.
policy = 'out/all_start'
seed0 = 100_000
episodes = 100  # seeds tried of each task; only successes are written
record = 'episodes/all_coached'
