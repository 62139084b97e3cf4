#!/usr/bin/env bash
# Format, lint, types, tests on all cores. Arguments go to pytest:
#   launch/test.sh -m 'not slow' -k doctor
# The tests that tests/README.md lists are left to CI; -m '' runs them too.
set -euo pipefail

cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
./launch/install.sh --dev
export PATH=$PWD/.venv/bin:$PATH

ruff format --check
ruff check
mypy
# A process a core and one more, for several tests wait for other processes; each with one thread.
# Files in the order of tests/conftest.py, the longest first. Left out: what CI runs (.ci/run).
workers=$(($(nproc) + 1))
OMP_NUM_THREADS=1 pytest -n $workers --dist loadfile --no-loadscope-reorder -m "not long" "$@"
