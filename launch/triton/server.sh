#!/usr/bin/env bash
# The Triton that launch/triton/install.sh installed, on this machine alone.
set -euo pipefail

if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
  cat <<'HELP'
Usage: launch/triton/server.sh REPOSITORY [OPTION...]

Serves a model repository (mail-torchrec triton --backend python) until a signal ends it: HTTP on
127.0.0.1:8000, gRPC on 127.0.0.1:8001, no metrics. Options go to tritonserver:

  launch/triton/server.sh repository --http-port=9000 --grpc-port=9001
HELP
  [[ $# -gt 0 ]] && exit
  exit 2
fi

venv=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.triton
if [[ ! -f $venv/installed ]]; then
  echo "server: not installed; launch/triton/install.sh does it" >&2
  exit 1
fi
packages=$(echo "$venv"/lib/python*/site-packages)
library=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
export PATH=$venv/bin:$PATH LD_LIBRARY_PATH=$packages/nvidia_pytriton.libs:$library
server=$packages/pytriton/tritonserver
exec "$server/bin/tritonserver" --backend-directory="$server/backends" \
  --http-address=127.0.0.1 --grpc-address=127.0.0.1 --allow-metrics=false \
  --model-repository="$1" "${@:2}"
