# How `make all` scores and films, beside what the Makefile asks for: fewer films of each task.
# python sim_rollout.py --ckpt=out/all config/all_score.py
episodes = 100
blank = True
video = 2
