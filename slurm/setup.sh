#!/bin/bash
# Install everything on scratch, once, on a node that reaches PyPI (often the login node).
# From the repository root:
#   export VLA_SCRATCH_ROOT=/path/on/your/scratch; bash slurm/setup.sh
# The other scripts read this file, too, for the same folders; they install nothing, and jobs reach
# nothing. Settings may stand in .env (see .env.example). Clusters with environment modules want
# MODULES='python/3.11 cuda/12'
[ ! -f .env ] || { set -a; source .env; set +a; }
if [ -n "${MODULES:-}" ]; then
  strict=$- # `module` uses variables that are not set, which `set -u` of the caller forbids
  set +u
  module load $MODULES
  case $strict in *u*) set -u ;; esac
fi
root=${VLA_SCRATCH_ROOT:-$PWD}
export VENV=${VENV:-$root/.venv} HF_HOME=${HF_HOME:-$root/huggingface}
for folder in out episodes; do # what runs write lies on scratch, too
  if [ "$root" != "$PWD" ] && [ ! -e "$folder" ]; then
    mkdir -p "$root/$folder"
    ln -s "$root/$folder" "$folder"
  fi
done
inside=(${VLA_IMAGE:+apptainer exec --nv --bind "$PWD,$root" --pwd "$PWD" "$VLA_IMAGE"})
if [ -n "${SLURM_JOB_ID:-}" ]; then
  export HF_HUB_OFFLINE=1 WANDB_MODE=${WANDB_MODE:-offline}
fi
if [ -z "${VLA_IMAGE:-}" ]; then
  if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    make setup VENV="$VENV" TORCH="${TORCH:-cuda}" # this node may have no GPU where the jobs will
  else
    source "$VENV/bin/activate"
  fi
fi
