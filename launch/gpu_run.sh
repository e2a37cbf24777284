# Sourced by single_a100.sh, second_gpu.sh and cluster.sh: what a training run on GPUs does before it starts.
# Expects `name` (of the script), `config`, `fewest_gpus` (that this machine needs) and `assumed_gpus` (of a dry run
# without them, in words). After `read_words "$@"`: `dry_run`, `overrides`. After `prepare`: `gpus`, how many there are.
set -euo pipefail
hub_model=Qwen/Qwen2.5-3B-Instruct
model=${MODEL:-models/Qwen2.5-3B-Instruct}
dry_run=
overrides=()

say() { echo "$name: $*"; }
fail() { echo "$name: $*" >&2; exit 1; }

read_words() {
  local word before=
  for word in "$@"; do
    case $word in
      --dry-run) dry_run=1 ;;
      --*.*) overrides+=("$word") ;;
      *) # before a model of 6 GB is fetched, not after
        [[ $word != --* && $before == --*.* && $before != *=* ]] ||
          fail "'$word' is not understood: there are --dry-run and --section.key VALUE; RESUME=1 stands before the command"
        overrides+=("$word") ;;
    esac
    before=$word
  done
}

# A line for each GPU that CUDA is to see, by number or UUID, as launch/plan/devices.py has them: index, UUID, whether it
# is in slices, name, driver, memory. nvidia-smi itself tells of the others, too.
visible_gpus() {
  nvidia-smi --query-gpu=index,uuid,mig.mode.current,name,driver_version,memory.total --format=csv,noheader 2>/dev/null |
    awk -F ', *' -v seen="${CUDA_VISIBLE_DEVICES-all}" 'BEGIN { count = split(seen, names, " *, *") }
      { for (i = 1; i <= count; i++)
          if (seen == "all" || names[i] == $1 || (names[i] ~ /^GPU-/ && index($2, names[i]) == 1)) { print; break } }'
}

check_gpus() {
  local found
  found=$(visible_gpus) || found=
  if [[ ${CUDA_VISIBLE_DEVICES-} == *MIG* ]] || grep -q '^[^,]*,[^,]*, Enabled,' <<<"$found"; then
    local slices="a GPU is in slices here (MIG), which a run cannot use: give it whole ones (nvidia-smi -mig 0, or others in"
    slices+=" CUDA_VISIBLE_DEVICES)"
    [ -n "$dry_run" ] || fail "$slices"
    say "$slices; the plan below is for $assumed_gpus"
    gpus=0
    return
  fi
  found=$(cut -d, -f4- <<<"$found" | sed 's/^ *//')
  gpus=$(printf '%s' "$found" | grep -c . || true)
  if [ -n "$found" ]; then printf '%s\n' "$found" | sed "s/^/$name: GPU: /"; fi
  if [ "$gpus" -ge "$fewest_gpus" ]; then return; fi
  if [ "$gpus" -eq 0 ]; then
    [ -n "$dry_run" ] ||
      fail "no GPU was found: nvidia-smi tells of none. Is the driver installed? (--dry-run needs none)"
    say "no GPU was found; the plan below is for $assumed_gpus"
    return
  fi
  [ -n "$dry_run" ] || fail "$gpus GPU was found, and $fewest_gpus are needed: $too_few"
  say "$gpus GPU was found, and $fewest_gpus are needed; the plan below is for $assumed_gpus"
}

set_up() {
  if [ -n "$dry_run" ] && [ -x .venv/bin/primezero ]; then return; fi
  if [ -n "$dry_run" ] && [ "$gpus" -eq 0 ]; then bash launch/setup.sh cpu; else bash launch/setup.sh gpu; fi
}

check_driver() {
  if [ "$gpus" -eq 0 ]; then return; fi
  .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    fail "PyTorch cannot use the GPU: the driver is older than its CUDA, or this is not the gpu environment" \
      "(bash launch/setup.sh gpu makes it)"
}

# Whether the model's folder is whole: while files are fetched into it, and where that was cut short, it has a mark.
model_is_there() { [ -f "$model/config.json" ] && [ ! -e "$model/.incomplete" ]; }

# Whether this user can write in the folder, or make it.
can_write() {
  local at=$1
  until [ -e "$at" ]; do at=$(dirname "$at"); done
  [ -d "$at" ] && [ -w "$at" ] && [ -x "$at" ]
}

check_folders() {
  local folder wanted=() unwritable
  if ! model_is_there && [ -z "${MODEL:-}" ]; then wanted+=("$model"); fi
  if [[ " ${overrides[*]-}" != *" --run.folder"* ]] && ! grep -Eq '^folder *=' "$config"; then wanted+=(runs); fi
  for folder in ${wanted[@]+"${wanted[@]}"}; do
    if can_write "$folder"; then continue; fi
    unwritable="$PWD/$folder cannot be written by this user, number $(id -u): make that folder, and everything in it, its"
    unwritable+=" own (chown -R $(id -u)); where it is mounted into a container, on the machine outside"
    [ -n "$dry_run" ] || fail "$unwritable"
    say "$unwritable"
  done
}

# The model's folder, or nothing where the dry run has to do with the shape of the model.
find_model() {
  if model_is_there; then return; fi
  if [ -n "${MODEL:-}" ]; then fail "MODEL=$MODEL is no model folder: config.json is missing, or a download into it has not ended"; fi
  if [ -n "$dry_run" ]; then
    say "$model is not there, or not whole: a run downloads $hub_model into it; the plan below is for its shape, qwen2.5-3b"
    return
  fi
  say "downloading $hub_model into $model (6 GB)"
  mkdir -p "$model"
  touch "$model/.incomplete"
  if .venv/bin/hf download "$hub_model" --local-dir "$model" --exclude "*.bin" --exclude "*.pth" >/dev/null; then
    rm "$model/.incomplete"
    return
  fi
  local remove="and remove $model/.incomplete, "
  if [ ! -f "$model/config.json" ]; then rm "$model/.incomplete" && remove=; fi
  fail "$hub_model cannot be downloaded here; the same command goes on with what has come. Or put its files (config.json," \
    "*.safetensors, tokenizer*.json, generation_config.json) into $PWD/$model, ${remove}or name a folder that has them" \
    "with MODEL=folder"
}

# Everything that is checked and set up before a run, or before the plan of a dry run.
prepare() {
  [ -f "$config" ] || fail "CONFIG=$config does not exist"
  check_gpus
  check_folders
  set_up
  # For ninja too, which compiles an offloaded optimizer.
  export PATH="$PWD/.venv/bin:$PATH"
  # Memory that PyTorch expands cannot be shared with the engine.
  unset PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF
  check_driver
  say "disk: $(df -h --output=avail . | tail -n 1 | tr -d ' ') free here (a run with Qwen2.5-3B takes about 140 GB)"
  say "memory: $(free -h | awk '/^Mem:/ {print $7}') available"
  find_model
}

# Trains or, in a dry run, shows the plan; words are overrides that come before the user's own.
plan_or_train() {
  local words=("$@" ${overrides[@]+"${overrides[@]}"}) resume=()
  if [ -n "$dry_run" ]; then
    local shown=$model device=()
    model_is_there || shown=qwen2.5-3b
    [ "$gpus" -gt 0 ] || device=(--device a100-80gb)
    primezero plan --model "$shown" ${device[@]+"${device[@]}"} --config "$config" ${words[@]+"${words[@]}"}
    say "dry run: nothing was started"
    exit 0
  fi
  [ -z "${RESUME:-}" ] || resume=(--resume)
  exec primezero train --config "$config" --model.path "$model" ${resume[@]+"${resume[@]}"} ${words[@]+"${words[@]}"}
}
