#!/bin/bash
# Collect demonstrations on many CPU nodes: array task i takes seeds i*SEEDS .. (i+1)*SEEDS-1.
# From the repository root:
#   sbatch slurm/collect.sh config/demo_collect.py
#   SEEDS=500 sbatch --array=0-63 slurm/collect.sh config/join_collect.py
# Partition and account: export SBATCH_PARTITION=... SBATCH_ACCOUNT=...
# Episodes that exist are skipped, so a task that was killed can simply be submitted again.
#SBATCH --job-name=vla-collect
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%x-%A-%a.out
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
source slurm/setup.sh

seeds=${SEEDS:-250}
first=$((SLURM_ARRAY_TASK_ID * seeds))
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer takes it from sbatch (SLURM 22.05)
exec srun "${inside[@]}" python sim_rollout.py "$@" --seeds="$first:$((first + seeds))" \
  --workers="$SLURM_CPUS_PER_TASK"
