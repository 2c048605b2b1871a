#!/bin/bash
# Run any command in the image; this folder and $VLA_SCRATCH_ROOT are bound in.
# From the repository root:
#   VLA_IMAGE=vla-lego.sif bash slurm/run.sh python train.py config/debug.py    # apptainer.def
#   VLA_IMAGE=vla-lego bash slurm/run.sh python train.py config/debug.py        # Dockerfile
# Without VLA_IMAGE it runs in the folder that slurm/setup.sh has made. Jobs go into a .sif by
# themselves.
set -euo pipefail
source slurm/setup.sh
case ${VLA_IMAGE:-} in
  '' | *.sif | *://*) exec "${inside[@]}" "$@" ;;
esac
gpus=()
if command -v nvidia-smi > /dev/null; then gpus=(--gpus=all); fi
folders=(--volume="$PWD:$PWD")
if [ "$root" != "$PWD" ]; then folders+=(--volume="$root:$root"); fi # docker takes none twice
# The caller's files stay the caller's; /tmp is the home of whoever has none in the image.
exec docker run --rm --ipc=host "${gpus[@]}" "${folders[@]}" --workdir="$PWD" \
  --user="$(id -u):$(id -g)" --env=HOME=/tmp --env=USER --env=HF_HOME --env=WANDB_MODE \
  --env=WANDB_API_KEY "$VLA_IMAGE" "$@"
