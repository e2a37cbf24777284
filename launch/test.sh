#!/usr/bin/env bash
# Lint, types, and tests. Arguments go to pytest.
#   bash launch/test.sh            every test that needs no GPU and not minutes by itself
#   bash launch/test.sh --quick    those that start neither an engine nor several processes
#   bash launch/test.sh --all      the slow ones, too
set -euo pipefail
cd "$(dirname "$0")/.."
tests="not gpu and not slow"
case ${1:-} in
  --quick) tests="not gpu and not slow and not integration"; shift ;;
  --all) tests="not gpu"; shift ;;
esac
bash launch/setup.sh cpu
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two files at a time, each on a core: most of what they wait for is one process that starts.
export OMP_NUM_THREADS=1
.venv/bin/python -m pytest -m "$tests" -n 2 --dist loadfile --no-loadscope-reorder \
  --hypothesis-profile same --durations 20 "$@"
