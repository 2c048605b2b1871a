#!/bin/bash
# Do 2 nodes of 8 GPUs (or what --nodes and --gpus-per-node say) share one model, save it and go on with it?
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
set -- config/debug.py --fsdp=True --recompute=True --out_dir=out/smoke_8gpu "$@"
source slurm/train.sh
