# Does everything run? 1 CPU core, about 20 s; it makes up its own episodes and needs no simulator.
# python train.py config/debug.py
out_dir = 'out/debug'
episodes = 'episodes/debug'
synthetic = 40  # episodes of about 9 rows: reach the named square, close the hand
image_size = 32
val_fraction = 0.2  # 8 of 40
state_slots = ('command/right/*', 'right/gripper')
action_slots = ('right/tool_[xyz]', 'right/gripper')
hidden_size = 64
n_layers = 2
n_heads = 2
n_kv_heads = 2
head_dim = 32
mrope_section = (4, 6, 6)
intermediate_size = 256
noise_samples = 2
dtype = 'float32'  # the same numbers on any machine
batch_size = 32
max_steps = 100
warmup_steps = 10
ema = 0.95  # 100 steps are soon over
log_interval = 10
eval_interval = 50
checkpoint_interval = 50
