#!/usr/bin/env bash
# Installs what launch/slurm/local_cluster.sh needs, on Debian or Ubuntu, as root. No daemon is left
# running.
set -euo pipefail

if [[ $# -gt 0 ]]; then
  echo "Usage: launch/slurm/install_debian.sh"
  [[ $1 == -h || $1 == --help ]] && exit
  exit 2
fi

packages=(slurm-wlm munge slurmdbd mariadb-server-core mariadb-client-core iproute2)
programs=(slurmctld slurmd slurmdbd sbatch munged mariadbd mariadb-install-db ip)
if type -P "${programs[@]}" >/dev/null; then exit 0; fi

# The packages start their daemons, but for the answer 101 of this hook.
hook=/usr/sbin/policy-rc.d
if [[ ! -e $hook ]]; then
  trap 'rm -f "$hook"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$hook"
  chmod 755 "$hook"
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
apt-get install --quiet=2 --yes --no-install-recommends "${packages[@]}"
