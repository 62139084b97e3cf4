#!/usr/bin/env bash
# Packs FBGEMM's CUDA build (of one GPU architecture), TorchRec and what they need into one archive,
# for a GPU machine with Python 3.12 and torch 2.11 (CUDA 13) that reaches no package registry, and
# says whether archive and project together are small enough to be sent there.
set -euo pipefail

usage() {
  cat <<'HELP'
Usage: tools/gpu/pack_stack.sh OUT_FOLDER [--sizes]

Leaves OUT_FOLDER/gpu-stack.tar.xz, about 54 MiB. Takes 5 minutes, 465 MB of downloads (kept in
OUT_FOLDER/wheels, so that a second call needs none) and 4 GB of disk. OUT_FOLDER should be one that
git ignores, or the archive counts twice.

  --sizes        packs nothing, and says both sizes

Environment:
  GPU_ARCH       the architecture whose kernels stay (default: 90, of H100 and H200)
  LIMIT_MIB      what archive and project may take together (default: 64)
HELP
}

if [[ $# -lt 1 || $1 == -* || (${2:-} != "" && ${2:-} != --sizes) ]]; then
  usage
  [[ ${1:-} == -h || ${1:-} == --help ]] && exit
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
archive=$out/gpu-stack.tar.xz
python=${PYTHON:-python3}

pack() {
  local work wheel unused platforms=() glibc
  work=$(mktemp -d "$out/work.XXXXXX")
  trap 'rm -rf "$work"' RETURN
  for glibc in _2_28 _2_27 _2_17 2014; do
    platforms+=(--platform "manylinux${glibc}_x86_64")
  done
  if [[ ! -e $out/wheels/complete ]]; then
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
      --implementation cp "${platforms[@]}" -d "$out/wheels" fbgemm-gpu==1.6.0 torchrec==1.6.1 \
      tensordict==0.12.1 pyvers orjson importlib_metadata zipp tabulate pydantic pydantic_core \
      annotated_types
    touch "$out/wheels/complete"
  fi
  mkdir "$work/site"
  for wheel in "$out"/wheels/*.whl; do unzip -q -o "$wheel" -d "$work/site"; done
  # Nothing imports the packages' own tests.
  find "$work/site" -depth -type d -name tests -exec rm -rf {} +
  # Global weight decay and variable batch sizes: nothing links to them, and the project uses neither.
  for unused in gwd vbe; do
    unused=fbgemm_gpu_tbe_training_backward_$unused
    rm "$work/site/fbgemm_gpu/$unused.so"
    sed -i "/\"$unused\",/d" "$work/site/fbgemm_gpu/__init__.py"
  done
  "$python" "$here/strip_fatbin.py" "$work/site" "${GPU_ARCH:-90}"
  tar cf - -C "$work/site" . |
    xz -T"${XZ_THREADS:-2}" -9 --lzma2=dict=192MiB,nice=273,lc=0,lp=4,pb=4 >"$work/packed"
  mv "$work/packed" "$archive"
}

# Size and name of what is sent beside the archive: what git tracks, or would if it were added. A
# file that was deleted and is tracked still is none.
tree_files() {
  git -C "$root" ls-files -z --cached --others --exclude-standard |
    (cd "$root" && xargs -0 stat --format='%s %n' 2>/dev/null || true)
}

mib() { awk -v bytes="$1" 'BEGIN {printf "%.1f MiB", bytes / 1048576}'; }

[[ ${2:-} == --sizes ]] || pack
packed=0
if [[ -e $archive ]]; then packed=$(stat --format=%s "$archive"); fi
tree=$(tree_files | awk '{sum += $1} END {print sum + 0}')
limit=$((${LIMIT_MIB:-64} * 1048576))
echo "archive $(mib "$packed"), project $(mib "$tree"), together $(mib $((packed + tree))) of $(mib "$limit")"
if ((packed == 0)); then echo "$archive is not there: pack it" >&2 && exit 1; fi
if ((packed + tree > limit)); then
  echo "too large to be sent together; the project's largest files:" >&2
  tree_files | sort -rn | awk 'NR <= 5' >&2
  exit 1
fi
