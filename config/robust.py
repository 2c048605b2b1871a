# The demo's task where rooms differ and actions come up to 3 steps (300 ms) late. After `make demo`
# and a first lesson (config/robust_start.py), on 2 CPU cores:
# torchrun --standalone --nproc_per_node=2 train.py config/robust.py
# python sim_rollout.py --ckpt=out/robust --robustness
# It does not give a good policy yet: after the first lesson 13 of 20 clean and 8 of 20 in other
# rooms, after this one 3 of 40 clean. 33 of 40 got as far as pressing; the one that was watched
# never opened the hand. What is known stands in docs/log.md.
out_dir = 'out/robust'
init_from = 'out/robust_start'
# The first two are the demo's, by config/demo_collect.py and config/demo_coach.py; the others are
# recorded by python sim_rollout.py config/robust_collect.py
# and by python sim_rollout.py config/robust_coach.py
episodes = 'episodes/demo,episodes/demo_coached,episodes/robust,episodes/robust_coached'
delay = 3  # steps, drawn per sample: chunks begin where commands under way lead the hands
row_decay = 0.8  # Two or four rows are executed before the next look.
# The others are the demo's: config/demo.py gives the reasons.
state_slots = ('command/*/tool_[xyz]', 'command/*/tool_rz', 'error/*/tool_z', '*/gripper')
action_slots = ('*/tool_[xyz]', '*/tool_rz', '*/gripper')
horizon = 4
hide_pictures = True
noise_samples = 4
read_text = 0.25
reask_share = 0.15
batch_size = 128  # chunks per step
max_steps = 1_000  # 128 x 1,000 = 128k chunks
learning_rate = 1e-3
muon_learning_rate = 0.02
eval_interval = 400
checkpoint_interval = 200
