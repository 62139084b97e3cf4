#!/usr/bin/env bash
# Makes .venv at the repository's root and installs exactly what launch/lock/ lists.
# Called by quickstart.sh and test.sh; calling it again is free while the lock is unchanged.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: launch/install.sh [--dev]

Makes .venv and installs the locked versions: torch, FBGEMM (the CUDA build where there is an NVIDIA
driver, else the CPU build), TorchRec, the rest, this project. Does nothing where that is already
installed.

  --dev            also what launch/test.sh needs

Environment:
  PYTHON           the Python 3.11 or 3.12 to use (default: the first of python3.11, python3.12,
                   python3 that works)
  TORCH            2.13 (default), 2.14 or 2.11: which triple of launch/lock/torch-*.txt
  DEVICE           cuda or cpu: which build of FBGEMM (default: cuda where there is an NVIDIA
                   driver); for an image that is built on another machine than it runs on
                   (a .venv that was made with TORCH or DEVICE keeps them until they are set again)
  TORCH_INDEX_URL  a package index that has the build of torch that you want, such as a small CPU
                   build; asked for torch only
HELP
}

die() {
  printf 'install: %s\n' "$@" >&2
  exit 1
}

# Tells whether a command is a Python that can make our environment; a pyenv shim may exist and
# fail.
suits() {
  local check='import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])'
  "$1" -c "import ensurepip, venv; $check" >/dev/null 2>&1
}

find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    suits "$PYTHON" ||
      die "PYTHON=$PYTHON is no working Python 3.11 or 3.12 with venv and ensurepip"
    echo "$PYTHON"
    return
  fi
  local pyenv=${PYENV_ROOT:-$HOME/.pyenv}
  for candidate in python3.11 python3.12 python3 "$pyenv"/versions/3.1[12].*/bin/python3; do
    if suits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "found no working Python 3.11 or 3.12 with venv and ensurepip" \
    "(tried python3.11, python3.12, python3, pyenv's)" \
    "install one (Debian and Ubuntu: apt-get install python3.11-venv or python3.12-venv)," \
    "or name one: PYTHON=/path/to/python3.12 $0"
}

has_driver() {
  nvidia-smi -L >/dev/null 2>&1 || [[ -e /proc/driver/nvidia/version && -e /dev/nvidiactl ]]
}

# The version that the triple's lock gives a package.
locked() { sed -n "s/^$1==//p" "$triple"; }

step() { printf '[%d/6] %s\n' "$((++steps))" "$*"; }

# Runs pip quietly, and shows its output where it failed.
quiet_pip() {
  if ! "$python" -m pip install --disable-pip-version-check --no-input "$@" >"$log" 2>&1; then
    grep -Ev '^(WARNING: Location|Requirement already satisfied)' "$log" | tail -n 60 >&2 || true
    die "pip failed (its output is above); nothing is marked as installed:" \
      "calling $0 again goes on from here"
  fi
}

dev=
case "${1:-}" in
  --dev) dev=dev ;;
  -h | --help) usage && exit ;;
  "") ;;
  *) die "should be called with --dev or nothing, received '$1'; --help explains" ;;
esac

cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$PWD/.venv
python=$venv/bin/python
log=$venv/install.log
# What was chosen for this .venv holds in later calls, such as launch/test.sh's.
chosen=$venv/chosen
if [[ -f $chosen ]]; then
  TORCH=${TORCH:-$(sed -n 's/^TORCH=//p' "$chosen")}
  DEVICE=${DEVICE:-$(sed -n 's/^DEVICE=//p' "$chosen")}
fi
named="TORCH=${TORCH:-}"$'\n'"DEVICE=${DEVICE:-}"
triple=launch/lock/torch-${TORCH:=2.13}.txt
[[ -f $triple ]] || die "TORCH should be 2.14, 2.13 or 2.11, received '$TORCH'"
here=$(has_driver && echo cuda || echo cpu)
case ${DEVICE:=$here} in
  cpu) fbgemm=fbgemm-gpu-cpu other_fbgemm=fbgemm-gpu ;;
  cuda) fbgemm=fbgemm-gpu other_fbgemm=fbgemm-gpu-cpu ;;
  *) die "DEVICE should be cuda, cpu or unset, received '$DEVICE'" ;;
esac

# A line of .venv/installed for each thing that was installed whole.
stamp() {
  local files=("$triple" launch/lock/common.txt "$@" pyproject.toml launch/install.sh)
  echo "$fbgemm $(cat "${files[@]}" | sha256sum | cut -c 1-16)"
}
locks=(launch/lock/common.txt)
stamps=("$(stamp)")
if [[ -n $dev ]]; then
  locks+=(launch/lock/dev.txt)
  stamps+=("$(stamp launch/lock/dev.txt)")
fi
if suits "$python" && grep -qxF "${stamps[-1]}" "$venv/installed" 2>/dev/null &&
  grep -qF "$venv" "$venv/bin/activate"; then
  exit 0
fi

steps=0
if ! "$python" -V >/dev/null 2>&1; then
  base=$(find_python)
  step "making .venv with $("$base" -V 2>&1)"
  "$base" -m venv "$venv"
elif ! suits "$python" || ! grep -qF "$venv" "$venv/bin/activate"; then
  die ".venv holds $("$python" -V 2>&1)," \
    "and was made elsewhere or is no complete Python 3.11 or 3.12" \
    "remove it (rm -r .venv) and call $0 again"
else
  step "using .venv with $("$python" -V 2>&1)"
fi
rm -f "$venv/installed"
printf '%s\n' "$named" >"$chosen"

step "$(cat "${locks[@]}" | grep -c ==) locked packages"
quiet_pip --no-deps --constraint "$triple" setuptools "${locks[@]/#/--requirement=}"

# torch's own needs are installed by now, but for the libraries of a CUDA build: those come with it.
# Another index has the versions that it has, so there the constraints do not hold.
step "torch $(locked torch)${TORCH_INDEX_URL:+ from $TORCH_INDEX_URL}"
if [[ -n ${TORCH_INDEX_URL:-} ]]; then
  quiet_pip --index-url "$TORCH_INDEX_URL" "torch==$(locked torch)"
else
  quiet_pip --constraint "$triple" "torch==$(locked torch)"
fi

# TorchRec requires fbgemm-gpu, the CUDA wheel, which would land over fbgemm-gpu-cpu: so without
# dependencies.
step "$fbgemm $(locked "$fbgemm"), torchrec $(locked torchrec)"
if "$python" -m pip show --quiet "$other_fbgemm" >/dev/null 2>&1; then
  "$python" -m pip uninstall --quiet --yes fbgemm-gpu fbgemm-gpu-cpu
fi
quiet_pip --no-deps --constraint "$triple" "$fbgemm" torchrec

step "mail-torchrec, editable"
quiet_pip --no-deps --no-build-isolation --editable .

if [[ $DEVICE == "$here" ]]; then
  step "check"
  "$python" -m mail_torchrec.doctor
else
  step "no check: this is for a machine $([[ $DEVICE == cuda ]] && echo with || echo without) an" \
    "NVIDIA driver; call mail-torchrec doctor there"
fi
printf '%s\n' "${stamps[@]}" >"$venv/installed"
