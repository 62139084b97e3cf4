"""The read-out by new and old users and items is that of these impressions alone."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mail_torchrec.abtest.arms import CLICKS, IMPRESSIONS, ArmAssignment, assign_arms
from mail_torchrec.abtest.exposures import LogColumns, read_exposures
from mail_torchrec.cli import main
from tests.support.abtest_logs import write_log


def test_each_cohort_counts_its_impressions(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.parquet", 300, seed=1)
    new_item = pa.array(np.random.default_rng(2).random(len(log)) < 0.3)
    log = log.append_column("fresh_item", new_item)
    pq.write_table(log, tmp_path / "log.parquet")
    columns = LogColumns(is_new="fresh", is_new_item="fresh_item")
    arms = assign_arms(
        read_exposures([str(tmp_path / "log.parquet")], columns), ArmAssignment(("b",))
    )
    rows = log.to_pylist()
    flags = {"new": {True}, "old": {False}, "all": {True, False}}
    for user in flags:
        for item in ("new", "old", "all"):
            name = {"all": user}.get(item, f"{user}_users_{item}_items")
            name = f"{item}_items" if user == "all" and item != "all" else name
            mine = [
                row
                for row in rows
                if row["model_version"] == "b"
                and row["fresh"] in flags[user]
                and row["fresh_item"] in flags[item]
            ]
            found = arms.sums_U3[name]["candidate"].sum(0)
            assert found[IMPRESSIONS] == len(mine) > 0, name
            assert found[CLICKS] == sum(row["click"] for row in mine)
    assert len(arms.sums_U3) == 9


@pytest.mark.parametrize("options", [(), ("--new-user", "fresh")])
def test_the_command_names_the_cohorts(tmp_path: Path, options: tuple[str, ...]) -> None:
    log = write_log(tmp_path / "log.parquet", 300, seed=1)
    log = log.append_column("fresh_item", pa.array(np.arange(len(log)) % 3 == 0))
    pq.write_table(log, tmp_path / "log.parquet")
    arguments = ["abtest", str(tmp_path / "log.parquet"), "--candidate", "b"]
    done = CliRunner().invoke(main, [*arguments, "--new-item", "fresh_item", *options])
    assert done.exit_code == 0, done.output
    assert "CTR, new items" in done.output
    assert ("CTR, old users, new items" in done.output) == bool(options)


@pytest.mark.parametrize("options", [(), ("--bootstrap", "20")])
def test_a_cohort_that_an_arm_lacks_is_said_and_has_no_interval(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    log = write_log(tmp_path / "log.parquet", 300, seed=1)
    only_base = pa.array(np.array(log["model_version"].to_pylist()) == "a")
    pq.write_table(log.append_column("fresh_item", only_base), tmp_path / "log.parquet")
    arguments = ["abtest", str(tmp_path / "log.parquet"), "--candidate", "b", *options]
    arguments += ["--new-item", "fresh_item", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out/report.json").read_text())["cohorts"]
    assert found["new_items"]["counts"]["candidate"]["users"] == 0
    ctr = found["new_items"]["metrics"]["CTR"]
    assert ctr["base"] and ctr["candidate"] is None and ctr["lift"] is None
    assert "CTR of new items: only 0 users of the candidate had an event" in done.output
