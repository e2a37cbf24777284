#!/usr/bin/env bash
# Trains the tiny model by self-play on two CPU cores and shows what it learned.
#   bash launch/cpu_demo.sh [--seed N] [--section.key value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
seed=0
if [ "${1:-}" = --seed ]; then
  seed=${2:?--seed needs a number}
  shift 2
fi
bash launch/setup.sh cpu
model=models/tiny-$seed
config=launch/configs/cpu_demo.toml
if [ ! -f "$model/config.json" ]; then
  .venv/bin/primezero init-model "$model" --config "$config" --run.seed "$seed"
fi
exec .venv/bin/primezero train --config "$config" --model.path "$model" --run.seed "$seed" "$@"
