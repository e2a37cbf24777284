#!/usr/bin/env bash
# Runs what is missing of the experiments behind docs/learning.md, one run after the other; start it again to go on.
#   bash launch/experiments/run.sh [--only NAME,...] [--seeds N,...] [--out FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
bash launch/setup.sh cpu
exec .venv/bin/python -m launch.experiments run "$@"
