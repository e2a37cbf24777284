#!/usr/bin/env bash
# Trains the tiny model by self-play on two CPU cores and shows what it learned.
#   bash launch/cpu_demo.sh [--seed N] [--section.key value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
seed=0
overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    --seed)
      [ -n "${2:-}" ] || { echo "cpu_demo: --seed needs a number" >&2; exit 2; }
      seed=$2; shift 2 ;;
    --seed=*) seed=${1#--seed=}; shift ;;
    *) overrides+=("$1"); shift ;;
  esac
done
bash launch/setup.sh cpu

config=launch/configs/cpu_demo.toml
model=models/tiny-$seed
.venv/bin/python -m launch.model_recipe "$model" --run.seed "$seed"
exec .venv/bin/primezero train --config "$config" --model.path "$model" --run.seed "$seed" \
  --run.overwrite true ${overrides[@]+"${overrides[@]}"}
