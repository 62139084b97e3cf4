"""Every night: which day, from which run, what is done again; the commands are recorded, not run.

That such commands train a chain of days is shown by ``tests/daily/test_days.py``.
"""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.support.hosts import ROOT

SCRIPT = ROOT / "launch" / "nightly.sh"
STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$LOG"
[[ -n ${FAIL_WITH:-} && $* == *$FAIL_WITH* ]] && exit 1
for ((i = 1; i <= $#; i++)); do
  next=$((i + 1))
  [[ ${!i} == --run-dir && $* == *train* ]] && mkdir -p "${!next}" && touch "${!next}/metrics.json"
  [[ ${!i} == --out && $1 == export ]] && mkdir -p "${!next}"
done
exit 0
"""


class Nights:
    """A folder of nightly runs, whose commands are written down."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._log = folder, folder / "log"
        for name in ("mail-torchrec", "torchrun"):
            stub = folder / "bin" / name
            stub.parent.mkdir(exist_ok=True)
            stub.write_text(STUB)
            stub.chmod(0o755)

    def run(self, *day: str, **variables: str) -> list[str]:
        """Runs a night; returns the commands, with the folder left out."""
        self._log.write_text("")
        environment = {"PATH": f"{self.folder}/bin:/usr/bin:/bin", "LOG": str(self._log)}
        words = [str(SCRIPT), "mine.yaml", str(self.folder), *day]
        self.done = subprocess.run(
            words, env=environment | variables, capture_output=True, text=True, check=False
        )
        return self._log.read_text().replace(f"{self.folder}/", "").splitlines()


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path)


def days_ago(number: int) -> str:
    return str((datetime.now(UTC) - timedelta(days=number)).date())


def test_a_day_continues_the_newest_finished_one_before_it_and_is_done_once(
    nights: Nights,
) -> None:
    first = nights.run("2024-05-30")
    assert first == [
        "mail-torchrec train --config mine.yaml --run-dir runs/2024-05-30 --resume"
        " data.train=day=2024-05-30 data.test=day=2024-05-30",
        "mail-torchrec export --run-dir runs/2024-05-30 --out models/2024-05-30",
        "mail-torchrec days runs/2024-05-30 --out days",
    ]
    failed = nights.run("2024-05-31", FAIL_WITH="train")
    assert nights.done.returncode == 1 and len(failed) == 1
    (nights.folder / "runs" / "2024-05-31").mkdir()  # an unfinished one is nobody's parent
    second = nights.run("2024-06-01", RANKS="2", PUBLISH_TO="s3://bucket/ads")
    assert second[0].startswith("torchrun --nproc-per-node 2 --max-restarts 3 -m mail_torchrec")
    assert "--resume --continue runs/2024-05-30 data.train=day=2024-06-01" in second[0]
    assert second[2] == "mail-torchrec publish models/2024-06-01 --to s3://bucket/ads"
    assert nights.run("2024-06-01") == ["mail-torchrec days runs/2024-06-01 --out days"]


def test_deltas_are_exported_between_whole_models(nights: Nights) -> None:
    def exported(*day: str, **variables: str) -> list[str]:
        commands = nights.run(*day, FULL_ON="6", **variables)
        return [line.rpartition("models/")[2] for line in commands if " export " in line]

    assert exported("2024-05-30") == ["2024-05-30 --spare 0.3"]  # nothing to begin with
    assert exported("2024-05-31") == ["2024-05-30"]  # --delta-of
    assert exported("2024-06-01") == ["2024-06-01 --spare 0.3"]  # a Saturday
    refused = exported("2024-06-02", FAIL_WITH="delta-of")
    assert refused == ["2024-06-01", "2024-06-02 --spare 0.3"]
    assert "the whole model is exported" in nights.done.stderr


def test_nights_that_were_missed_are_made_up_for(nights: Nights) -> None:
    yesterday = nights.run()
    assert f"data.train=day={days_ago(1)}" in yesterday[0] and len(yesterday) == 3
    (nights.folder / "runs" / days_ago(1)).rename(nights.folder / "runs" / days_ago(3))
    commands = nights.run()
    trained = [line for line in commands if " train " in line]
    assert [line.rpartition("=")[2] for line in trained] == [days_ago(2), days_ago(1)]
    parents = [line.partition("--continue runs/")[2].split()[0] for line in trained]
    assert parents == [days_ago(3), days_ago(2)]


def test_wrong_words_are_refused(nights: Nights) -> None:
    assert nights.run("yesterday") == [] and nights.done.returncode == 2
    assert "should be one such as 2024-05-31, received 'yesterday'" in nights.done.stderr
    assert nights.run("2024-05-31", "more") == [] and "PUBLISH_TO" in nights.done.stderr


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_the_cron_job_follows_kubernetes_schema(version: str) -> None:
    manifest = yaml.safe_load((ROOT / "launch" / "kubernetes" / "nightly.yaml").read_text())
    kubernetes_validate.validate(manifest, version, strict=True)
    pod = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert int(variables["RANKS"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert container["command"] == ["/app/launch/nightly.sh"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
