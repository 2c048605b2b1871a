#!/bin/bash
# Does one GPU train here? A minute, episodes made up, nothing to prepare but slurm/setup.sh:
#   sbatch slurm/smoke_1gpu.sh
#SBATCH --job-name=vla-smoke-1gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=00:10:00
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
source slurm/setup.sh

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer takes it from sbatch (SLURM 22.05)
exec srun "${inside[@]}" python train.py config/debug.py --device=cuda --resume=never \
  --out_dir=out/smoke_1gpu "$@"
