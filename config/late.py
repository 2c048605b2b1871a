# A policy whose chunks may come up to 3 steps (300 ms) late: after `make demo`, 2 CPU cores.
# torchrun --standalone --nproc_per_node=2 train.py config/demo.py config/late.py
# python sim_rollout.py --ckpt=out/late --delay=3
# It has not been run with these files; what a trial on an earlier state of the code gave is in
# docs/results.md, Late actions.
out_dir = 'out/late'
init_from = 'out/demo'
delay = 3  # steps, drawn per sample: chunks begin where commands under way lead the hands
row_decay = 0.8  # two or four rows are executed before the next look
max_steps = 1_000
