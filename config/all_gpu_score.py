# How `make all_gpu` scores, beside what the Makefile asks for: 20 scenes of each task and no films.
# python sim_rollout.py --ckpt=out/all_gpu config/all_gpu_score.py
episodes = 20
blank = False
video = 0
max_minutes = 1.5
