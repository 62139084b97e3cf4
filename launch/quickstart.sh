#!/usr/bin/env bash
# From nothing to a table: what MAIL does for new users, on a synthetic world.
set -euo pipefail

if [[ $# -gt 0 ]]; then
  cat <<'HELP'
Usage: launch/quickstart.sh

Installs into .venv (see launch/install.sh --help), makes a synthetic world in worlds/quickstart,
trains DMR and MAIL-DMR on it with two ranks each into runs/quickstart, evaluates both on the test
rows and prints AUC and GAUC of new, old and all users. Calling it again replaces worlds/quickstart
and runs/quickstart.

Environment: PYTHON, TORCH, TORCH_INDEX_URL as for launch/install.sh; OMP_NUM_THREADS, the threads
of a rank.
HELP
  [[ $1 == -h || $1 == --help ]] && exit
  exit 2
fi

cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
./launch/install.sh
export PATH=$PWD/.venv/bin:$PATH  # TorchX starts the torchrun that it finds
export LOGLEVEL=${LOGLEVEL:-WARNING}  # of TorchX itself, warnings are enough

# Two ranks share the machine's cores; a GPU each, or none.
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 1 ? cores / 2 : 1))}
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
device=$([[ $gpus -ge 2 ]] && echo cuda || echo cpu)

world=worlds/quickstart
runs=runs/quickstart
rm -rf "$world" "$runs"

train() {
  local name=$1
  shift
  printf '\n== Training %s on 2 ranks (%s)\n' "$name" "$device"
  torchx run --scheduler local_cwd components/mail.py:train \
    --config launch/configs/synthetic.yaml --run_dir "$runs/$name" \
    -- "name=$name" "data.root=$world" "train.device=$device" "$@"
}

echo "== Making a synthetic world in $world"
mail-torchrec synthesize --out "$world"

train DMR model.zero_shot=null
train MAIL-DMR

printf '\n== Evaluating the saved weights on %s/test\n' "$world"
for name in DMR MAIL-DMR; do
  mail-torchrec evaluate --run-dir "$runs/$name"
done

printf '\n'
mail-torchrec compare "$runs/DMR" "$runs/MAIL-DMR"
