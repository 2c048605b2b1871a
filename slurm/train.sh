#!/bin/bash
# Train on any number of nodes. From the repository root, after slurm/setup.sh:
#   sbatch slurm/train.sh config/demo.py
#   sbatch --nodes=2 --gpus-per-node=8 slurm/train.sh config/large.py
# Partition and account come from sbatch's own variables: export SBATCH_PARTITION=... SBATCH_ACCOUNT=...
# Everything after the script's name goes to train.py unchanged; nothing is set here but resources and rendezvous.
# Before its time limit the job saves and queues itself again; preempted, SLURM does that (--requeue). scancel is final.
#SBATCH --job-name=vla-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
source slurm/setup.sh

gpus=${SLURM_GPUS_ON_NODE:-0}
ranks=$((gpus > 0 ? gpus : ${RANKS:-1})) # processes per node: one a GPU; RANKS on a CPU node
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((20000 + SLURM_JOB_ID % 20000))   # jobs that share a node do not meet
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / ranks > 0 ? SLURM_CPUS_PER_TASK / ranks : 1))

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer takes it from sbatch (SLURM 22.05)
said=$(mktemp)
trap : TERM USR1                         # the step acts on signals; this shell lives on to hear what it says
failed=0
# torchrun hands signals on and gives its workers all the time there is to save; one node that fails ends the others
srun --kill-on-bad-exit=1 "${inside[@]}" torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="$ranks" \
  --rdzv_id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" --rdzv_backend=c10d --rdzv_endpoint="$head:$port" \
  --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout=280 \
  train.py "$@" | tee "$said" || failed=$?
if grep -q '^requeue: ' "$said"; then    # torchrun calls any signal a failure
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
! grep -qE '^(stopped at step|next:) ' "$said" || exit 0  # saved, or done when the signal came
exit "$failed"
