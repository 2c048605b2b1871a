# EO-1 from its own starting point: Qwen2.5-VL-3B and a new action head, 3.77 B parameters; 8 GPUs,
# 28 GB of each by estimate. Not run yet: only the sizes are tested. First
# hf download Qwen/Qwen2.5-VL-3B-Instruct --local-dir=out/Qwen2.5-VL-3B-Instruct
# torchrun --standalone --nproc_per_node=8 train.py config/eo1_3b.py
out_dir = 'out/eo1_3b'
init_from = 'out/Qwen2.5-VL-3B-Instruct'
episodes = 'episodes/join'  # recorded with --image_size=224
template = 'qwen'
pad_dims = 32
horizon = 16
image_size = 224
tokens_per_camera = 64  # (224 / 28) ** 2
noise_samples = 1
read_text = 1.0
log_scale_m = 0.0
reask_share = 0.0
grounding = False
state_frequencies = 0
# Qwen2.5-VL-3B, whose vision tower train.py has as default
vision = 'qwen'
hidden_size = 2048
n_layers = 36
n_heads = 16
n_kv_heads = 2
head_dim = 128
intermediate_size = 11_008
mrope_section = (16, 24, 24)
rope_theta = 1_000_000.0
mlp = 'swiglu'
tie_embeddings = True
# EO-1
prefix_attention = 'causal'
chunk_attention = 'causal'
predict = 'velocity'
head_layers = 2
row_embedding = False
time_period_min = 4e-3
text_weight = 1.0
# its recipe
batch_size = 512
max_steps = 10_000
learning_rate = 1e-4
muon_learning_rate = 0.0
weight_decay = 0.1
beta2 = 0.999
ema = 0.0
recompute = True
fsdp = True  # one model over all GPUs
eval_interval = 500
checkpoint_interval = 500  # 60 GB
