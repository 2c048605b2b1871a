#!/bin/bash
# Score a checkpoint in closed loop. From the repository root:
#   sbatch slurm/eval.sh --ckpt=out/demo --episodes=100 --seed0=1000000
#   sbatch --dependency=afterok:1234567 slurm/eval.sh --ckpt=out/demo     # once that job has run
# Partition and account: export SBATCH_PARTITION=... SBATCH_ACCOUNT=...
#SBATCH --job-name=vla-eval
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=01:00:00
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
source slurm/setup.sh

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer takes it from sbatch (SLURM 22.05)
exec srun "${inside[@]}" python sim_rollout.py "$@" --workers="$SLURM_CPUS_PER_TASK"
