#!/usr/bin/env bash
# Trains Qwen2.5-3B-Instruct by self-play on one GPU of 80 GB, from nothing. On one of 40 GB the optimizer is offloaded.
#   [MODEL=folder] [CONFIG=file.toml] [RESUME=1] bash launch/single_a100.sh [--dry-run] [--section.key value ...]
# --dry-run checks and prints everything up to the first allocation; it needs no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
config=${CONFIG:-launch/configs/single_a100.toml}
hub_model=Qwen/Qwen2.5-3B-Instruct
model=${MODEL:-models/Qwen2.5-3B-Instruct}
dry_run=
overrides=()
for word in "$@"; do
  if [ "$word" = --dry-run ]; then dry_run=1; else overrides+=("$word"); fi
done

say() { echo "single_a100: $*"; }
fail() { echo "single_a100: $*" >&2; exit 1; }

check_gpu() {
  if gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -n 1) &&
    [ -n "$gpu" ]; then
    say "GPU: $gpu"
    return
  fi
  gpu=
  [ -n "$dry_run" ] || fail "no GPU was found: nvidia-smi tells of none. Is the driver installed? (--dry-run needs none)"
  say "no GPU was found; the plan below is for an A100 of 80 GB"
}

set_up() {
  if [ -n "$dry_run" ] && [ -x .venv/bin/primezero ]; then return; fi
  if [ -n "$dry_run" ] && [ -z "$gpu" ]; then bash launch/setup.sh cpu; else bash launch/setup.sh gpu; fi
}

check_driver() {
  if [ -z "$gpu" ]; then return; fi
  .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    fail "PyTorch cannot use the GPU: the driver is older than its CUDA, or this is not the gpu environment" \
      "(remove .venv and run bash launch/setup.sh gpu)"
}

# The model's folder, or nothing where the dry run has to do with the shape of the model.
find_model() {
  if [ -f "$model/config.json" ]; then return; fi
  if [ -n "${MODEL:-}" ]; then fail "MODEL=$MODEL is no model folder: config.json is missing"; fi
  if [ -n "$dry_run" ]; then
    say "$model is not there: a run downloads $hub_model into it; the plan below is for its shape, qwen2.5-3b"
    return
  fi
  say "downloading $hub_model into $model (6 GB)"
  .venv/bin/hf download "$hub_model" --local-dir "$model" --exclude "*.bin" "*.pth" >/dev/null ||
    fail "$hub_model cannot be downloaded here. Put its files (config.json, *.safetensors, tokenizer*.json," \
      "generation_config.json) into $PWD/$model, or name a folder that has them with MODEL=folder"
}

show_plan() {
  local shown=$model device=()
  [ -f "$model/config.json" ] || shown=qwen2.5-3b
  [ -n "$gpu" ] || device=(--device a100-80gb)
  primezero plan --model "$shown" ${device[@]+"${device[@]}"} --config "$config" ${overrides[@]+"${overrides[@]}"}
}

[ -f "$config" ] || fail "CONFIG=$config does not exist"
check_gpu
set_up
# For ninja too, which compiles an offloaded optimizer.
export PATH="$PWD/.venv/bin:$PATH"
# Memory that PyTorch expands cannot be shared with the engine.
unset PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF
check_driver
say "disk: $(df -h --output=avail . | tail -n 1 | tr -d ' ') free here (a run with Qwen2.5-3B takes about 130 GB)"
say "memory: $(free -h | awk '/^Mem:/ {print $7}') available"
find_model
if [ -n "$dry_run" ]; then
  show_plan
  say "dry run: nothing was started"
  exit 0
fi
resume=()
[ -z "${RESUME:-}" ] || resume=(--resume)
exec primezero train --config "$config" --model.path "$model" ${resume[@]+"${resume[@]}"} \
  ${overrides[@]+"${overrides[@]}"}
