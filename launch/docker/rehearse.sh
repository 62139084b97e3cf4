#!/usr/bin/env bash
# Builds the image where there is no registry of images, then trains, exports and serves in it.
# A Debian 12 made by debootstrap stands for the base image; buildah reads the Dockerfile. As root,
# on Debian or Ubuntu (apt-get install --no-install-recommends buildah debootstrap).
set -euo pipefail

if [[ $# -ne 1 || $1 == -* ]]; then
  cat <<'HELP'
Usage: launch/docker/rehearse.sh FOLDER

FOLDER takes 8 GB: the base image, what is built, what is trained (FOLDER/log has each step's
output). Called again it goes on from what is there; rm -r FOLDER removes all of it.

Environment: DEVICE (default cpu), TORCH, TORCH_INDEX_URL as in the Dockerfile; MIRROR, a mirror of
Debian; MOUNTS, what pip needs of this machine while it builds (SOURCE:TARGET ...), such as
/etc/pip.conf:/etc/pip.conf /opt/wheels:/opt/wheels.
HELP
  [[ ${1:-} == -h || ${1:-} == --help ]] && exit
  exit 2
fi

die() {
  printf 'rehearse: %s\n' "$@" >&2
  exit 1
}

[[ $EUID -eq 0 ]] || die "should be called as root: debootstrap and buildah make roots"
for program in buildah debootstrap; do
  command -v "$program" >/dev/null ||
    die "found no $program; install it: apt-get install --no-install-recommends buildah debootstrap"
done
mkdir -p "$1/log" "$1/data"
folder=$(cd -P "$1" && pwd)
cd -P "$(dirname "${BASH_SOURCE[0]}")/../.."
buildah=(buildah --root "$folder/storage" --runroot "$folder/run")
export BUILDAH_ISOLATION=chroot

# Runs a step with its output in a file of the log, and shows its end where it failed.
step() {
  local name=$1 start=$SECONDS
  shift
  "$@" >"$folder/log/$name" 2>&1 & # beside this shell, so that a failing command ends the step
  if ! wait $!; then
    tail -n 40 "$folder/log/$name" >&2
    die "$name failed; its output is above, and whole in $folder/log/$name"
  fi
  printf '%-10s %4d s\n' "$name" $((SECONDS - start))
}

base_image() {
  local root container
  root=$(mktemp -d "$folder/root.XXXX")
  debootstrap --variant=minbase bookworm "$root" "${MIRROR:-http://deb.debian.org/debian}"
  container=$("${buildah[@]}" from scratch)
  "${buildah[@]}" add --quiet "$container" "$root" /
  "${buildah[@]}" commit --quiet --rm "$container" localhost/debian:12-slim
  rm -rf --one-file-system "$root"
}

build() {
  local mount options=()
  for mount in ${MOUNTS:-}; do options+=(--volume "$mount:ro"); done
  "${buildah[@]}" bud --layers --file launch/docker/Dockerfile --tag mail-torchrec:rehearsed \
    --build-arg BASE=localhost/debian:12-slim --build-arg "DEVICE=${DEVICE:-cpu}" \
    --build-arg "TORCH=${TORCH:-}" --build-arg "TORCH_INDEX_URL=${TORCH_INDEX_URL:-}" \
    "${options[@]}" .
}

inside() { "${buildah[@]}" run --volume "$folder/data:/mnt" "$container" -- "$@"; }

identity() {
  inside sh -c '! touch /app/written && ! touch /app/.venv/written && touch /home/trainer/written'
  [[ $(inside id -u) == 10001 ]]
}

train() {
  if [[ ! -d $folder/data/world ]]; then inside mail-torchrec synthesize --out /mnt/world; fi
  # Engines that run containers let them resolve their own name; buildah does not.
  inside torchrun --nproc-per-node 2 --local-addr 127.0.0.1 -m mail_torchrec train \
    --config /app/launch/configs/synthetic.yaml --run-dir /mnt/run --resume \
    data.root=/mnt/world train.epochs=1
  if [[ ! -d $folder/data/model ]]; then
    inside mail-torchrec export --run-dir /mnt/run --out /mnt/model
  fi
}

# A request of the model's own golden ones, sent from inside; then the server is told to end.
serve() {
  inside bash -c '
    mail-torchrec serve --model /mnt/model --name ads --http-port 18080 --grpc-port 18081 &
    server=$!
    python - <<"PYTHON"
import json, time, urllib.error, urllib.request

golden = json.load(open("/mnt/model/golden.json"))[0]
request = json.dumps({"user": golden["user"], "candidates": golden["candidates"]})
tensor = {"name": "request", "datatype": "BYTES", "shape": [1], "data": [request]}
body = json.dumps({"inputs": [tensor]}).encode()
for attempt in range(60):
    try:
        url = "http://localhost:18080/v2/models/ads/infer"
        print(urllib.request.urlopen(url, body).read().decode())
        break
    except urllib.error.URLError:
        time.sleep(1)
else:
    raise SystemExit("no answer within a minute")
PYTHON
    answered=$?
    kill -TERM $server
    wait $server && exit $answered'
}

"${buildah[@]}" inspect localhost/debian:12-slim >/dev/null 2>&1 || step base base_image
step build build
container=$("${buildah[@]}" from localhost/mail-torchrec:rehearsed)
trap '"${buildah[@]}" rm "$container" >/dev/null' EXIT
chown 10001:10001 "$folder/data"
step user identity
step doctor inside mail-torchrec doctor
step train train
step serve serve
echo "the image mail-torchrec:rehearsed was built, trained and served from ($folder/log)"
