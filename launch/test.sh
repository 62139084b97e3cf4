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
# mypy works on one core, so the tests run beside it. What it finds is told at once and at the end.
found=$(mktemp)
mypy >"$found" 2>&1 || { cat "$found" && false; } &
types=$!
trap 'kill "$types" 2>/dev/null || true; rm -f "$found"' EXIT
# A process a core and one more, for several tests wait for other processes; each with one thread.
# Files in the order of tests/conftest.py, the longest first. Left out: what CI runs (.ci/run).
workers=$(($(nproc) + 1))
# g++ takes a fifth less for a compiled export if it leaves the code around the kernels as it is.
export AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL=O0
tests=0
OMP_NUM_THREADS=1 pytest -n $workers --dist loadfile --no-loadscope-reorder -m "not long" "$@" ||
  tests=$?
wait "$types" || tests=$((tests ? tests : 1))
cat "$found"
exit "$tests"
