#!/usr/bin/env bash
# A real Slurm on one machine: controller, accounting and two nodes, for as long as a command runs.
set -euo pipefail

if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
  cat <<'HELP'
Usage: launch/slurm/local_cluster.sh COMMAND...

Runs COMMAND on the head of a Slurm cluster with the nodes n1 and n2, and ends the cluster and its
jobs with it. As root, on Linux, with Debian's or Ubuntu's packages
(launch/slurm/install_debian.sh). The hosts are launch/hosts.sh's, so nothing of it can be seen from
outside and this machine's own Slurm, munge or MariaDB is left alone. The daemons log to /run/slurm,
which is the cluster's own:

  launch/slurm/local_cluster.sh bash
HELP
  [[ $# -gt 0 ]] && exit
  exit 2
fi

cd -P "$(dirname "${BASH_SOURCE[0]}")"
if [[ $1 != --inside ]]; then
  missing=()
  for program in munged mariadbd mariadb-install-db slurmdbd slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
  if [[ ${#missing[@]} -gt 0 ]]; then
    echo "local_cluster: missing: ${missing[*]};" \
      "launch/slurm/install_debian.sh installs them" >&2
    exit 1
  fi
  exec ../hosts.sh env --chdir="$OLDPWD" "$PWD/local_cluster.sh" --inside "$OLDPWD" "$@"
fi
home=$2
shift 2

# Waits until a command succeeds; shows the daemons' logs where it does not.
until_ready() {
  local deadline=$((SECONDS + 60))
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS > deadline)); then
      tail -n 20 /run/slurm/*.log >&2
      echo "local_cluster: '$*' failed for 60 seconds; the daemons' logs are above" >&2
      exit 1
    fi
    sleep 0.1
  done
}

is_up() { [[ $(sinfo --noheader --format %t) == idle && $(sinfo --noheader --format %D) == 2 ]]; }

mount -t tmpfs tmpfs /etc/slurm
# slurmdbd refuses a configuration that others can read.
install -m 600 slurm.conf slurmdbd.conf /etc/slurm
mkdir -p /run/slurm /run/mysqld
mkdir -m 711 /run/munge

head -c 128 /dev/urandom | install -m 600 /dev/stdin /run/munge/key
munged --key-file=/run/munge/key --log-file=/run/slurm/munged.log --pid-file=/run/munge/pid \
  --seed-file=/run/munge/seed

database=(--no-defaults --user=root --datadir=/run/mysqld/data)
mariadb-install-db "${database[@]}" --auth-root-authentication-method=socket --skip-test-db \
  >/run/slurm/database.log 2>&1
mariadbd "${database[@]}" --socket=/run/mysqld/mysqld.sock --skip-networking \
  --innodb-lock-wait-timeout=900 >>/run/slurm/database.log 2>&1 &
until_ready test -S /run/mysqld/mysqld.sock

slurmdbd
until_ready sacctmgr --noheader show cluster
slurmctld
for node in n1 n2; do on "$node" slurmd -N "$node"; done
until_ready is_up

cd "$home"
"$@"
