#!/usr/bin/env bash
# Format, lint, types, tests on all cores. Arguments go to pytest: launch/test.sh -m 'not slow' -k doctor
set -euo pipefail

cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
./launch/install.sh --dev
export PATH=$PWD/.venv/bin:$PATH

ruff format --check
ruff check
mypy
# A process a core, each with one thread, and files in the order of their names: tests that wait for other processes run beside such as compute.
OMP_NUM_THREADS=1 pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
