#!/bin/bash
# Does the simulator run and render without a display here? Two episodes of the expert and a film,
# 2 minutes:
#   sbatch slurm/smoke_sim.sh
#SBATCH --job-name=vla-smoke-sim
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=00:10:00
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
source slurm/setup.sh

export MUJOCO_GL=egl # on the GPU or not at all: OSMesa would do it on the CPU, unnoticed
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer takes it from sbatch (SLURM 22.05)
exec srun "${inside[@]}" python sim_rollout.py --task=place --episodes=2 --video=1 \
  --out=out/smoke_sim "$@"
