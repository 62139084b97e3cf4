#!/usr/bin/env bash
# Makes .mlflow at the repository's root: a real MLflow tracking server, for the tests of the tracker,
# in an environment of its own (it wants an older pyarrow than ours). 60 MB are fetched for it.
# Start it by hand with
#   .mlflow/bin/mlflow server --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:///mlflow.db
set -euo pipefail

if [[ $# -gt 0 ]]; then
  echo "Usage: [PYTHON=python3.12] launch/mlflow/install.sh"
  [[ $1 == -h || $1 == --help ]] && exit
  exit 2
fi

cd -P "$(dirname "${BASH_SOURCE[0]}")/../.."
venv=$PWD/.mlflow
stamp=$(cat launch/lock/mlflow.txt launch/mlflow/install.sh | sha256sum | cut -c 1-16)
if [[ -x $venv/bin/mlflow && $(cat "$venv/installed" 2>/dev/null) == "$stamp $venv" ]]; then
  exit 0
fi

for base in "${PYTHON:-}" python3.11 python3.12 python3 ""; do
  if [[ -z $base ]]; then continue; fi
  if "$base" -c "import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then break; fi
done
if [[ -z $base ]]; then
  echo "mlflow: found no Python from 3.11 on with venv (Debian and Ubuntu: apt-get install python3.11-venv)" >&2
  exit 1
fi

rm -rf "$venv"
"$base" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --disable-pip-version-check --no-input)
if ! "${pip[@]}" --no-deps --no-compile -r launch/lock/mlflow.txt >"$venv/install.log" 2>&1; then
  tail -n 60 "$venv/install.log" >&2
  exit 1
fi
echo "$stamp $venv" >"$venv/installed"
