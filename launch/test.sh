#!/usr/bin/env bash
# Format, lint, types, tests. Arguments go to pytest: launch/test.sh -m 'not slow' -k doctor
set -euo pipefail

cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
./launch/install.sh --dev
export PATH=$PWD/.venv/bin:$PATH

ruff format --check
ruff check
mypy
pytest "$@"
