#!/usr/bin/env bash
# Makes .triton at the repository's root: a real Triton (the one inside NVIDIA's pytriton wheel; its
# Python backend alone, no GPU needed), and in an environment of its own what the Python backend's
# models need. launch/triton/server.sh starts it. 55 MB are fetched for it, on Linux, x86-64.
set -euo pipefail

if [[ $# -gt 0 ]]; then
  echo "Usage: [PYTHON=python3.12] launch/triton/install.sh"
  [[ $1 == -h || $1 == --help ]] && exit
  exit 2
fi

cd -P "$(dirname "${BASH_SOURCE[0]}")/../.."
venv=$PWD/.triton

# As launch/install.sh has them, but for numpy and what is built on it: this Triton (2.51) hands
# over arrays of numpy 1.
packages=(nvidia-pytriton==0.7.0 numpy==1.26.4 pyarrow==21.0.0)
locked=(
  annotated-types flatbuffers onnxruntime protobuf pydantic pydantic-core tqdm typing-extensions
  typing-inspection
)
for name in "${locked[@]}"; do
  packages+=("$(grep "^$name==" launch/lock/common.txt)")
done
stamp=$(echo "${packages[@]}" | cat - launch/triton/install.sh | sha256sum | cut -c 1-16)
if [[ -x $venv/bin/python && $(cat "$venv/installed" 2>/dev/null) == "$stamp $venv" ]]; then
  exit 0
fi

# The backend runs Python as a library, which some builds do not have.
has_library='
import os, sys, sysconfig, ensurepip, venv
library = os.path.join(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"))
fits = sys.version_info[:2] in [(3, 11), (3, 12)] and library.endswith(".so.1.0")
sys.exit(not fits or not os.path.exists(library))'
for base in "${PYTHON:-}" python3.11 python3.12 /usr/bin/python3.11 /usr/bin/python3.12 ""; do
  if [[ -z $base ]]; then continue; fi
  if "$base" -c "$has_library" >/dev/null 2>&1; then break; fi
done
if [[ -z $base ]]; then
  echo "triton: found no Python 3.11 or 3.12 with venv and libpython3.1X.so" \
    "(Debian and Ubuntu: apt-get install python3.11-venv libpython3.11)" >&2
  exit 1
fi

rm -rf "$venv"
"$base" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --disable-pip-version-check --no-input)
if ! "${pip[@]}" --no-deps --no-compile "${packages[@]}" >"$venv/install.log" 2>&1; then
  tail -n 60 "$venv/install.log" >&2
  exit 1
fi

# The server looks for the backend and, in the same folder, for the program that runs it with this
# version of Python.
triton=$(echo "$venv"/lib/python*/site-packages/pytriton/tritonserver)
version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ln -s "../../python_backend_stubs/$version/triton_python_backend_stub" "$triton/backends/python/"
echo "$stamp $venv" >"$venv/installed"
