#!/bin/bash
# Train on any number of nodes. From the repository root, after slurm/setup.sh:
#   sbatch slurm/train.sh config/demo.py
#   sbatch --nodes=2 --gpus-per-node=8 slurm/train.sh config/large.py
# Partition and account: export SBATCH_PARTITION=... SBATCH_ACCOUNT=...
# What follows the script's name goes to train.py unchanged; nothing is set here but resources and
# rendezvous. Before its time limit the job saves and queues itself again, and so it does when it is
# preempted with a GraceTime; without one SLURM puts it back (--requeue). scancel is final. These
# two leave the cluster's KillWait to save in, mostly 30 s; `scancel --signal=TERM`, final as well,
# leaves as long as it takes. VLA_EVAL=100 queues slurm/eval.sh as well: 100 held-out episodes, in a
# job that waits until this one is done.
#SBATCH --job-name=vla-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
# USR1 is train.py's requeue_signal and stands in this file three times.
#SBATCH --signal=USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
source slurm/setup.sh

# Queued again, a job keeps its id and whoever depends on it waits: once is enough.
if [ -n "${VLA_EVAL:-}" ] && [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
  # out_dir is read by running all of train.py but its main body.
  script="exec(open('train.py').read().split('if __name__ ==')[0])"
  ckpt=$("${inside[@]}" python -c "__file__ = 'train.py'; $script; print(out_dir)" "$@" | tail -n 1)
  # sbatch would hand this job's memory on to the steps of the other job.
  (unset "${!SLURM_MEM@}"
   sbatch --dependency="afterok:$SLURM_JOB_ID" --kill-on-invalid-dep=yes \
     slurm/eval.sh --ckpt="$ckpt" --episodes="$VLA_EVAL")
fi

gpus=${SLURM_GPUS_ON_NODE:-0}
ranks=$((gpus > 0 ? gpus : ${RANKS:-1})) # processes per node: one a GPU; RANKS on a CPU node
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a node do not meet

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer takes it from sbatch (SLURM 22.05)
said=$(mktemp)
trap : TERM USR1 # the step acts on signals; this shell lives on to hear what it says
failed=0
# torchrun hands signals on and leaves its workers all the time there is to save; one that fails
# ends the rest.
srun --kill-on-bad-exit=1 "${inside[@]}" torchrun \
  --nnodes="$SLURM_NNODES" --nproc_per_node="$ranks" \
  --rdzv_id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
  --rdzv_backend=c10d --rdzv_endpoint="$head:$port" \
  --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout=280 \
  train.py "$@" | tee "$said" || failed=$?

job() { scontrol show job "$SLURM_JOB_ID" | tr ' ' '\n' | sed -n "s/^$1=//p"; }
# In its GraceTime a preempted job is still RUNNING; one that was cancelled, or put back by SLURM,
# is not, and to requeue a cancelled one would bring it back.
preempted() { [ "$(job JobState)" = RUNNING ] && ! [[ "$(job PreemptTime)" =~ ^(None)?$ ]]; }
if grep -q '^requeue: ' "$said" || { grep -q '^stopped at step ' "$said" && preempted; }; then
  # Where this fails SLURM may have been faster.
  scontrol requeue "$SLURM_JOB_ID" || [[ "$(job JobState)" =~ ^(PENDING|COMPLETING)$ ]]
  exit 0
fi
# The run has saved, or was done when the signal came; torchrun calls any signal a failure.
! grep -qE '^(stopped at step|next:) ' "$said" || exit 0
exit "$failed"
