#!/bin/bash
# Train on any number of nodes. From the repository root, after slurm/setup.sh:
#   sbatch slurm/train.sh config/demo.py
#   sbatch --nodes=2 --gpus-per-node=8 slurm/train.sh config/join.py --batch_size=512
# Partition and account come from sbatch's own variables: export SBATCH_PARTITION=... SBATCH_ACCOUNT=...
# Everything after the script's name goes to train.py unchanged; nothing is set here but resources and rendezvous.
#SBATCH --job-name=vla-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
[ -z "${MODULES:-}" ] || module load $MODULES
source .venv/bin/activate

gpus=${SLURM_GPUS_ON_NODE:-0}
ranks=$((gpus > 0 ? gpus : 1))           # processes per node: one a GPU; one on a CPU node
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((20000 + SLURM_JOB_ID % 20000))   # jobs that share a node do not meet
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / ranks > 0 ? SLURM_CPUS_PER_TASK / ranks : 1))

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer takes it from sbatch (SLURM 22.05)
# exec: the step, not this shell, receives the signal 120 s before the time limit
exec srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="$ranks" \
  --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$head:$port" \
  train.py "$@"
