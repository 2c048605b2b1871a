#!/bin/bash
# Do 2 nodes of 8 GPUs (or what --nodes and --gpus-per-node say) share one model, save it and go on
# with it? The first run stops after a step, the second says `starting at step 1` and does the other
# 99:
#   sbatch slurm/smoke_8gpu.sh
#SBATCH --job-name=vla-smoke-8gpu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=00:10:00
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
unset VLA_EVAL # there is nothing to score
set -- config/debug.py --device=cuda --fsdp=True --recompute=True --out_dir=out/smoke_8gpu "$@"
# The exit in train.sh ends these brackets only.
(set -- "$@" --resume=never --max_minutes=1e-6; source slurm/train.sh)
source slurm/train.sh
