#!/bin/bash
# Install into .venv, once, on a node that reaches PyPI (often the login node):
#   bash slurm/setup.sh
# Clusters with environment modules: MODULES='python/3.11 cuda/12' bash slurm/setup.sh
set -euo pipefail
cd "$(dirname "$0")/.."
[ -z "${MODULES:-}" ] || module load $MODULES
make setup
