#!/usr/bin/env bash
# Trains Qwen2.5-3B-Instruct by self-play on one GPU of 80 GB, from nothing. On one of 40 GB the optimizer is offloaded.
#   [MODEL=folder] [CONFIG=file.toml] [RESUME=1] bash launch/single_a100.sh [--dry-run] [--section.key value ...]
# --dry-run checks and prints everything up to the first allocation; it needs no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
name=single_a100
config=${CONFIG:-launch/configs/single_a100.toml}
fewest_gpus=1
assumed_gpus="an A100 of 80 GB"
. launch/gpu_run.sh
read_words "$@"
prepare
plan_or_train
