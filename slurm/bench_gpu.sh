#!/bin/bash
# What does one GPU reach here? Training of demo, base and large, chunks, collection, pytest -m gpu;
# six minutes, nothing to prepare but slurm/setup.sh:
#   sbatch slurm/bench_gpu.sh
#SBATCH --job-name=vla-bench-gpu
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=00:15:00
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
source slurm/setup.sh

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer takes it from sbatch (SLURM 22.05)
exec srun "${inside[@]}" python bench.py --gpu "$@"
