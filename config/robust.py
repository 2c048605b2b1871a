# The demo's policy for rooms that differ and actions that come late: after `make demo`, 2 CPU
# cores.
# torchrun --standalone --nproc_per_node=2 train.py config/demo.py config/robust.py
out_dir = 'out/robust'
init_from = 'out/demo'
# The first two are those of the demo; the others are recorded by
# python sim_rollout.py config/robust_collect.py
# python sim_rollout.py config/robust_coach.py
episodes = 'episodes/demo,episodes/demo_coached,episodes/robust,episodes/robust_coached'
delay = 3  # steps, drawn per sample: chunks begin where commands under way lead the hands
row_decay = 0.8  # two or four rows are executed before the next look
max_steps = 2_000
