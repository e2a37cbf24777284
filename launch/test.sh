#!/usr/bin/env bash
# Lint, types, and every test that needs no GPU and is not marked slow. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh cpu
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest -m "not gpu and not slow" "$@"
