#!/usr/bin/env bash
# The run of single_a100.sh on two GPUs or more: the engine on the first, a learner rank on each of the others.
#   [MODEL=folder] [CONFIG=file.toml] [RESUME=1] bash launch/second_gpu.sh [--dry-run] [--section.key value ...]
# --dry-run checks and prints everything up to the first allocation; it needs no GPU.
# With --rollout.workers N give --learner.ranks too: together they are the GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
name=second_gpu
config=${CONFIG:-launch/configs/second_gpu.toml}
fewest_gpus=2
assumed_gpus="two A100 of 80 GB"
too_few="one for the engine, the others for the learner. With one, use launch/single_a100.sh"
. launch/gpu_run.sh
read_words "$@"
prepare
if [ "$gpus" -gt 2 ]; then plan_or_train --learner.ranks $((gpus - 1)); else plan_or_train; fi
