# The policy of the first lesson drives, the expert says what it would do (DAgger), on all tasks:
# 2 slow CPU cores, 18 min beside other work: 480 seeds at 27 a minute.
# python sim_rollout.py config/all_coach.py
# Killed and typed again, it goes on where it was.
policy = 'out/all_start'
seed0 = 100_000
episodes = 60  # seeds tried of each task; only successes are written
record = 'episodes/all_coached'
