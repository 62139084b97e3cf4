#!/usr/bin/env bash
# Three hosts out of one: a command runs on "head", beside "n1" and "n2", each with a name, an
# address and a network card of its own.
set -euo pipefail

if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
  cat <<'HELP'
Usage: launch/hosts.sh COMMAND...

Runs COMMAND on "head" (192.0.2.254), joined by a switch with "n1" (192.0.2.1) and "n2" (192.0.2.2):
Linux namespaces, so as root on Linux (unshare and nsenter of util-linux, ip of iproute2). All of
them see this machine's files, but for a /run and an /etc/hosts of their own, and no other network.
Whatever was started on them ends with COMMAND, or when this script is killed.

  nsenter --net=/run/netns/n1 --uts=/run/uts/n1 torchrun ...   runs a command on n1
  on n1 torchrun ...           the same, in a shell that COMMAND started
  ip link set n1 down          on head: n1 is cut off, until "up"
HELP
  [[ $# -gt 0 ]] && exit
  exit 2
fi

if [[ $1 != --inside ]]; then
  if [[ $EUID -ne 0 ]]; then
    echo "hosts: should be run by root, who alone may make network namespaces;" \
      "received uid $EUID" >&2
    exit 1
  fi
  # The head is the first process of a PID namespace: when it ends, the kernel ends all others in
  # there.
  exec unshare --pid --fork --kill-child=KILL --mount --mount-proc --net --uts --ipc \
    "${BASH_SOURCE[0]}" --inside "$@"
fi
shift

on() { nsenter "--net=/run/netns/$1" "--uts=/run/uts/$1" "${@:2}"; }
export -f on

mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/netns /run/uts
printf '%s\n' '127.0.0.1 localhost' '192.0.2.254 head' '192.0.2.1 n1' '192.0.2.2 n2' >/run/hosts
mount --bind /run/hosts /etc/hosts

hostname head
ip link set lo up
ip link add switch type bridge
ip address add 192.0.2.254/24 dev switch
ip link set switch up
for number in 1 2; do
  host=n$number
  touch "/run/netns/$host" "/run/uts/$host"
  unshare "--net=/run/netns/$host" "--uts=/run/uts/$host" hostname "$host"
  ip link add "$host" type veth peer name eth0 netns "$host"
  ip link set "$host" master switch up
  ip -netns "$host" link set lo up
  ip -netns "$host" address add "192.0.2.$number/24" dev eth0
  ip -netns "$host" link set eth0 up
done
"$@"
