# EO-1 from its own starting point: Qwen2.5-VL-3B and a new action head, 3.77 B parameters; 8 GPUs,
# 28 GB of each by estimate. Not run yet: what is tested are the sizes and a tiny model's start.
# hf download Qwen/Qwen2.5-VL-3B-Instruct --local-dir=out/Qwen2.5-VL-3B-Instruct
# torchrun --standalone --nproc_per_node=8 train.py config/eo1_3b.py
out_dir = 'out/eo1_3b'
# This folder decides the sizes of the model, its tokenizer and prompt, and with them EO-1's head:
# causal rows, velocities, states and actions filled up to 32 numbers.
init_from = 'out/Qwen2.5-VL-3B-Instruct'
episodes = 'episodes/join'  # recorded with --image_size=224
image_size = 224  # 64 tokens per camera
horizon = 16  # 1.6 s at 10 Hz
state_slots = ('command/*/tool_[xyz]', 'command/*/tool_rz', 'error/*/tool_z', '*/gripper')
action_slots = ('*/tool_[xyz]', '*/tool_rz', '*/gripper')
# What this code does beside EO-1 is left out: grounding, other goals of the same scene, moves on a
# logarithmic scale, several noise samples per reading of the images, some of them pure noise.
grounding = False
reask_share = 0.0
log_scale_m = 0.0
noise_samples = 1
pure_noise = 0.0
read_text = 1.0
text_weight = 1.0  # the losses of text and flow are added as they are
crop = 0.025  # EO-1 crops to 95-100 % of a picture's area, so to 97.5-100 % of its side
# EO-1's recipe for fine-tuning: AdamW, a cosine to 0 after 3 % of warm-up, no average of the
# weights, and the vision tower, but for the layers that merge its patches, at a fifth of the rate.
batch_size = 512
max_steps = 10_000
learning_rate = 1e-4
muon_learning_rate = 0.0
rates = ('vision.*=0.2', 'vision.norm.*=1', 'vision.merge_*=1')
warmup_steps = 3 * max_steps // 100
final_lr = 0.0
weight_decay = 0.1
beta2 = 0.999
ema = 0.0
recompute = True
fsdp = True  # one model over all GPUs
eval_interval = 500
checkpoint_interval = 500  # 60 GB
