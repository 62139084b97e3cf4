#!/usr/bin/env bash
# One night of a model that is trained every day: trains on a day's rows, exports and publishes.
#
#   launch/nightly.sh CONFIG FOLDER [DAY]      # DAY: 2024-05-31
#
# Without DAY it does yesterday (UTC), and first the days before it that are not finished, from the
# newest finished one on. FOLDER/runs/DAY is the run: it continues the newest finished run of an
# earlier day, or begins where there is none. FOLDER/models/DAY is its export, FOLDER/days the table
# and picture of all days so far. Called again it goes on where it was stopped; nothing is done twice.
#
#   RANKS=8                      trains on so many ranks of this host
#   PUBLISH_TO=s3://bucket/ads   publishes the export where servers follow it
#   FULL_ON=1                    exports what changed since the day before (a delta), and the whole
#                                model on this day of the week alone (1: Monday, to 7)
set -euo pipefail

if [[ $# -lt 2 || $# -gt 3 ]]; then
  sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
config=$1 folder=$2
if [[ -n ${3:-} && ! $3 =~ ^[0-9]{4}-[0-9]{2}-[0-9]{2}$ ]]; then
  echo "nightly.sh: the day should be one such as 2024-05-31, received '$3'" >&2
  exit 2
fi

newest_before() { # the newest finished run of a day before $1, or nothing
  local found='' run
  for run in "$folder"/runs/????-??-??; do # in the order of the days
    if [[ $(basename "$run") < $1 && -f $run/metrics.json ]]; then found=$run; fi
  done
  echo "$found"
}

train_day() {
  local day=$1 run=$folder/runs/$1 model=$folder/models/$1 parent
  parent=$(newest_before "$day")
  if [[ ! -f $run/metrics.json ]]; then
    local train=(mail-torchrec train)
    if [[ ${RANKS:-1} -gt 1 ]]; then
      train=(torchrun --nproc-per-node "$RANKS" --max-restarts 3 -m mail_torchrec train)
    fi
    # Tomorrow's rows are not there yet: the test metrics are of this day, which the model was
    # trained on. The honest measure is what the model of the day before made of it.
    "${train[@]}" --config "$config" --run-dir "$run" --resume ${parent:+--continue "$parent"} \
      "data.train=day=$day" "data.test=day=$day"
  fi
  if [[ ! -d $model ]]; then export_day "$day" "$parent"; fi
  if [[ -n ${PUBLISH_TO:-} ]]; then mail-torchrec publish "$model" --to "$PUBLISH_TO"; fi
  mail-torchrec days "$run" --out "$folder/days"
}

export_day() { # $1: the day, $2: the run that it continues
  local words=(mail-torchrec export --run-dir "$folder/runs/$1" --out "$folder/models/$1")
  local base=$folder/models/${2:+$(basename "$2")}
  if [[ -z ${FULL_ON:-} ]]; then
    "${words[@]}"
  elif [[ -z $2 || ! -d $base || $(date --utc --date "$1" +%u) == "$FULL_ON" ]]; then
    "${words[@]}" --spare 0.3
  elif ! "${words[@]}" --delta-of "$base"; then
    echo "nightly.sh: there is no delta of $base (see above); the whole model is exported" >&2
    "${words[@]}" --spare 0.3
  fi
}

day_after() { date --utc --date "$1 + 1 day" +%F; }

yesterday=$(date --utc --date yesterday +%F)
if [[ -n ${3:-} ]]; then
  train_day "$3"
else
  newest=$(newest_before "$(day_after "$yesterday")")
  day=$(basename "${newest:-$yesterday}")
  until [[ $day > $yesterday ]]; do
    train_day "$day"
    day=$(day_after "$day")
  done
fi
