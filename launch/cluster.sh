#!/usr/bin/env bash
# The run of single_a100.sh on the GPUs of many machines that Ray joins: engines and learner ranks on a GPU each.
#   bash launch/cluster.sh head [ADDRESS]      starts the cluster on this machine, at this address of it
#   bash launch/cluster.sh join HOST:PORT      on every other machine
#   RAY_ADDRESS=HOST:PORT [MODEL=folder] [CONFIG=file.toml] [RESUME=1] bash launch/cluster.sh [--dry-run]
#       [--rollout.workers N] [--learner.ranks N] [--section.key value ...]
# The last trains, from any of the machines: the first learner rank, and the run's folder, are there. Every machine
# needs this checkout and the model at the same path. --dry-run checks and prints everything up to the first allocation.
set -euo pipefail
cd "$(dirname "$0")/.."
name=cluster
config=${CONFIG:-launch/configs/cluster.toml}
fewest_gpus=1
assumed_gpus="machines with A100 of 80 GB"
. launch/gpu_run.sh

# Whoever has Ray's token can have code run on every machine.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
# Ray would kill processes of the run at 95% of a machine's memory, all of which the memory plan gives away.
export RAY_memory_monitor_refresh_ms=0
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}

start_head() {
  local address=${1:-$(hostname -I | cut -d' ' -f1)}
  bash launch/setup.sh "${TARGET:-gpu}"
  if [ ! -f "$token" ]; then (umask 077 && .venv/bin/ray get-auth-token --generate >/dev/null 2>&1); fi
  .venv/bin/ray start --head --node-ip-address="$address" --port=6379 --include-dashboard=false >/dev/null
  say "a Ray cluster runs at $address:6379"
  say "on every other machine: put this machine's $token there, mode 600, and run" \
    "bash launch/cluster.sh join $address:6379"
  say "then train with: RAY_ADDRESS=$address:6379 bash launch/cluster.sh"
  say ".venv/bin/ray stop ends it (and whatever else Ray runs here for this user)"
}

join_cluster() {
  local host=${1%:*} port=${1##*:}
  [[ $1 =~ ^[A-Za-z0-9._-]+:[0-9]+$|^\[[0-9A-Fa-f:]+\]:[0-9]+$ ]] ||
    fail "join needs HOST:PORT, as the head says it, not '$1'"
  [ -f "$token" ] || fail "$token is missing: copy it from the machine that 'bash launch/cluster.sh head' was given on"
  host=${host#[} host=${host%]}
  timeout 10 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$host" "$port" 2>/dev/null ||
    fail "nobody answers at $1: is that what 'bash launch/cluster.sh head' says on the other machine, and does a firewall" \
      "let this one through?"
  bash launch/setup.sh "${TARGET:-gpu}"
  .venv/bin/ray start --address="$1" >/dev/null
  say "this machine is part of the Ray cluster at $1"
}

case ${1:-} in
  head) shift; start_head "$@"; exit 0 ;;
  join) join_cluster "${2:-}"; exit 0 ;;
esac
read_words "$@"
if [ -z "${RAY_ADDRESS:-}" ]; then
  [ -n "$dry_run" ] || fail "RAY_ADDRESS is not set: 'bash launch/cluster.sh head' starts a Ray cluster on this" \
    "machine and says what to give on the others; then RAY_ADDRESS=HOST:PORT bash launch/cluster.sh"
  say "RAY_ADDRESS is not set: a run needs the HOST:PORT of a Ray cluster that this machine is part of"
fi
address=${RAY_ADDRESS:-}
unset RAY_ADDRESS # Ray would read it, too
prepare
if [ -n "$address" ]; then plan_or_train --placement.ray_address "$address"; else plan_or_train; fi
