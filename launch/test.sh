#!/usr/bin/env bash
# Lint, types, and every test that needs no GPU and is not marked slow. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh cpu
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two files at a time: most of what they wait for is one process that starts.
.venv/bin/python -m pytest -m "not gpu and not slow" -n 2 --dist loadfile --no-loadscope-reorder \
  --hypothesis-profile same "$@"
