"""Logs to reports, by the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mail_torchrec.abtest import exposures
from mail_torchrec.abtest.exposures import LogColumns, read_exposures
from mail_torchrec.cli import main
from tests.support.abtest_logs import write_log

ALL = ("--split", "b=0.5", "--conversion", "bought", "--new-user", "fresh")


def abtest(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["abtest", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["abtest", *arguments])
    assert (
        done.exit_code == 1 and "Traceback" not in done.output and done.output.startswith("Error: ")
    ), done.output
    return done.output


def content(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def test_counts_and_lifts_are_those_of_plain_python(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.parquet", 2000, seed=1, lift=0.3)
    text = abtest(str(tmp_path / "log.parquet"), *ALL, "--out", str(tmp_path / "out"))
    found = content(tmp_path / "out")
    assert found["versions"] == {"base": ["a"], "candidate": ["b"]} and not found["warnings"]
    rows = log.to_pylist()
    for cohort, in_cohort in {"all": {True, False}, "new": {True}, "old": {False}}.items():
        for arm, version in (("base", "a"), ("candidate", "b")):
            mine = [
                row for row in rows if row["model_version"] == version and row["fresh"] in in_cohort
            ]
            clicks, bought = (
                sum(row["click"] for row in mine),
                sum(row["click"] and row["bought"] for row in mine),
            )
            counts = {
                "users": len({row["user"] for row in mine}),
                "impressions": len(mine),
                "clicks": clicks,
                "conversions": bought,
            }
            assert found["cohorts"][cohort]["counts"][arm] == counts
            metrics = found["cohorts"][cohort]["metrics"]
            rates = {"CTR": clicks / len(mine), "CVR": bought / clicks, "CTCVR": bought / len(mine)}
            assert {name: metrics[name][arm]["value"] for name in rates} == pytest.approx(rates)
    ctr = found["cohorts"]["all"]["metrics"]["CTR"]
    assert ctr["lift"]["value"] == pytest.approx(
        ctr["candidate"]["value"] / ctr["base"]["value"] - 1
    )
    assert ctr["lift"]["low"] < 0.3 < ctr["lift"]["high"] and ctr["lift"]["low"] > 0.1
    assert (
        "CTR, all users: the candidate gains, +" in text
        and "no difference is clear of chance" in text
    )
    assert "Every user saw the version that the split gives them." in text
    assert found["conversions_without_click"] == sum(
        row["bought"] and not row["click"] for row in rows
    )
    for name in ("report.html", "report.md", "lifts.png"):
        assert (tmp_path / "out" / name).stat().st_size > 500


def test_many_files_and_batches_and_a_log_of_sums_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write_log(tmp_path / "log.parquet", 500, seed=2)
    abtest(str(tmp_path / "log.parquet"), *ALL, "--out", str(tmp_path / "one"))
    (tmp_path / "parts").mkdir()
    shuffled = log.take(np.random.default_rng(0).permutation(len(log)))
    for i, start in enumerate(range(0, len(log), 700)):
        pq.write_table(shuffled.slice(start, 700), tmp_path / "parts" / f"{i}.parquet")
    monkeypatch.setattr(exposures, "_BATCH", 64)
    abtest(str(tmp_path / "parts"), *ALL, "--out", str(tmp_path / "many"))
    assert content(tmp_path / "many") == content(tmp_path / "one")
    bought = pa.array(np.asarray(log["bought"]) & np.asarray(log["click"], bool))
    sums = log.set_column(3, "bought", bought.cast(pa.int64())).append_column(
        "n", pa.array(np.ones(len(log), np.int64))
    )
    sums = sums.group_by(["user", "model_version", "fresh"]).aggregate(
        [(name, "sum") for name in ("n", "click", "bought")]
    )
    pq.write_table(sums, tmp_path / "sums.parquet")
    names = (
        "--impressions",
        "n_sum",
        "--click",
        "click_sum",
        "--conversion",
        "bought_sum",
        "--new-user",
        "fresh",
    )
    abtest(
        str(tmp_path / "sums.parquet"), "--split", "b=0.5", *names, "--out", str(tmp_path / "sums")
    )
    assert content(tmp_path / "sums") == content(tmp_path / "one") | {
        "conversions_without_click": 0
    }


def test_other_containers_say_the_same(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.parquet", 300, seed=2)
    abtest(str(tmp_path / "log.parquet"), *ALL, "--out", str(tmp_path / "one"))
    other = pa.table(
        {
            "user": log["user"].cast(pa.decimal128(20, 0)),
            "model_version": log["model_version"].cast(pa.string_view()),
            "click": log["click"].cast(pa.decimal128(20, 0)),
            "bought": log["bought"].cast(pa.float32()),
            "fresh": log["fresh"].cast(pa.uint8()).dictionary_encode(),
        }
    )
    (tmp_path / "parts").mkdir()
    pq.write_table(other.slice(0, 99), tmp_path / "parts" / "a.parquet")
    pq.write_table(log.slice(99), tmp_path / "parts" / "b.parquet")
    pq.write_table(pa.table({"user": pa.array([], pa.string())}), tmp_path / "parts" / "c.parquet")
    abtest(str(tmp_path / "parts"), *ALL, "--out", str(tmp_path / "other"))
    assert content(tmp_path / "other") == content(tmp_path / "one")


def test_users_of_two_types_are_refused_with_both_files(tmp_path: Path) -> None:
    log = write_log(tmp_path / "a.parquet", 30, seed=2)
    text = log["user"].cast(pa.string())
    pq.write_table(log.set_column(0, "user", text), tmp_path / "b.parquet")
    message = refused(str(tmp_path), *ALL)
    assert "b.parquet: column 'user' should be int64 as in" in message
    assert "a.parquet, found large_string" in message


def test_a_lost_part_of_the_log_is_a_sample_ratio_mismatch(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.parquet", 4000, seed=3)
    assert "WARNING" not in abtest(
        str(tmp_path / "log.parquet"), "--candidate", "b", "--share", "0.5"
    )
    lost = pa.compute.and_(
        pa.compute.equal(log["model_version"], "b"), pa.array(np.asarray(log["user"]) % 6 == 0)
    )
    pq.write_table(log.filter(pa.compute.invert(lost)), tmp_path / "lost.parquet")
    text = abtest(
        str(tmp_path / "lost.parquet"),
        "--candidate",
        "b",
        "--share",
        "0.5",
        "--out",
        str(tmp_path / "out"),
    )
    assert "WARNING: sample ratio mismatch: 4" in text and "50.000 % should have" in text
    found = content(tmp_path / "out")
    users = {arm: counts["users"] for arm, counts in found["cohorts"]["all"]["counts"].items()}
    from scipy.stats import chisquare

    half = sum(users.values()) / 2
    assert found["checks"]["sample_ratio"]["p"] == pytest.approx(
        chisquare(list(users.values()), [half, half]).pvalue
    )
    assert "were not checked" in abtest(str(tmp_path / "lost.parquet"), "--candidate", "b")


def test_users_of_both_arms_are_left_out_and_misassigned_ones_are_reported(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.parquet", 1000, seed=4)
    users = sorted(set(log["user"].to_pylist()))
    both, swapped = users[:30], users[30:50]
    other = {"a": "b", "b": "a"}
    rows = log.to_pylist()
    rows += [
        row | {"model_version": other[row["model_version"]]} for row in rows if row["user"] in both
    ]
    rows = [
        row | {"model_version": other[row["model_version"]]} if row["user"] in swapped else row
        for row in rows
    ]
    rows += [row | {"model_version": "older"} for row in rows[:7]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mixed.parquet")
    text = abtest(
        str(tmp_path / "mixed.parquet"), *ALL, "--base", "a", "--out", str(tmp_path / "out")
    )
    assert (
        "30 users (3.00 %) saw both arms; they are left out; so many that the test itself is "
        "doubtful" in text
    )
    assert "20 users saw the version that the split does not give them" in text
    assert "Left out: 7 impressions of version older." in text
    found = content(tmp_path / "out")
    assert sum(counts["users"] for counts in found["cohorts"]["all"]["counts"].values()) == 970
    assert found["cohorts"]["all"]["counts"]["base"]["impressions"] == sum(
        row["model_version"] == "a" and row["user"] not in both for row in rows
    )


def test_an_arm_may_be_several_versions_and_users_strings(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.parquet", 600, seed=5)
    text_users = log.set_column(0, "user", log["user"].cast(pa.string()))
    late = pa.array(np.where(np.arange(len(log)) % 2 == 0, "b", "b2"))
    versions = pa.compute.if_else(
        pa.compute.equal(log["model_version"], "b"), late, log["model_version"]
    )
    pq.write_table(
        text_users.set_column(1, "model_version", versions), tmp_path / "renewed.parquet"
    )
    abtest(str(tmp_path / "log.parquet"), *ALL, "--out", str(tmp_path / "one"))
    abtest(
        str(tmp_path / "renewed.parquet"),
        *ALL,
        "--candidate",
        "b",
        "--candidate",
        "b2",
        "--out",
        str(tmp_path / "two"),
    )
    assert content(tmp_path / "two") == content(tmp_path / "one") | {
        "versions": {"base": ["a"], "candidate": ["b", "b2"]}
    }


def test_few_events_are_reported(tmp_path: Path) -> None:
    write_log(tmp_path / "log.parquet", 60, seed=6)
    assert "users of the candidate had an event, too few for its interval" in abtest(
        str(tmp_path / "log.parquet"), *ALL
    )


def test_memory_holds_a_line_a_user_and_version(tmp_path: Path) -> None:
    write_log(tmp_path / "log.parquet", 50, seed=7)
    log = read_exposures([str(tmp_path / "log.parquet")] * 3, LogColumns())
    assert len(log.users) == 50 and log.is_new_L is None and log.conversions_L is None


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, ["--split", "c=0.5"], "version 'c' should be one that the log has (a, b)"),
        ({}, ["--split", "b=5"], "--split should be VERSION=SHARE with a share from 0 to 1"),
        ({}, [], "which version is on trial? name it by --candidate"),
        (
            {},
            ["--candidate", "b", "--base", "b"],
            "version 'b' should be base or candidate, not both",
        ),
        ({}, ["--split", "b=0.5", "--share", "0.5"], "--split says the share already"),
        (
            {},
            ["--candidate", "b", "--click", "clicks"],
            "column 'clicks' is missing (the file has user, model_version, click)",
        ),
        (
            {"click": [0, 1, 2]},
            ["--candidate", "b"],
            "column 'click' should be 0 or 1, received 2 in row 2",
        ),
        (
            {"user": [1, None, 2]},
            ["--candidate", "b"],
            "column 'user' should say it of every row, received 1 nulls",
        ),
        (
            {"model_version": ["a", None, "b"]},
            ["--candidate", "b"],
            "column 'model_version' should say it of every row, received 1 nulls",
        ),
        (
            {"user": [1.0, 2.0, 3.0]},
            ["--candidate", "b"],
            "column 'user' should hold ids (integers, strings or booleans), found double",
        ),
        (
            {"model_version": ["b", "b", "b"]},
            ["--candidate", "b"],
            "the log has 1 versions (b): say by --base",
        ),
        (
            {"model_version": ["a", "b", "c"]},
            ["--candidate", "b"],
            "the log has 3 versions (a, b, c): say by --base",
        ),
        (
            {"user": [1, 1, 1]},
            ["--candidate", "b"],
            "should have users of its own: all of them saw the other arm too",
        ),
        (
            {"n": [1, -1, 1]},
            ["--candidate", "b", "--impressions", "n"],
            "should hold counts, integers from 0 on",
        ),
        (
            {"n": [1, 0, 1], "click": [1, 1, 0]},
            ["--candidate", "b", "--impressions", "n"],
            "received 1 clicks on 0 impressions",
        ),
    ],
)
def test_bad_logs_and_arguments_are_reported(
    tmp_path: Path, change: dict[str, Any], arguments: list[str], message: str
) -> None:
    columns: dict[str, Any] = {
        "user": [1, 2, 3],
        "model_version": ["a", "b", "a"],
        "click": [0, 1, 1],
    }
    pq.write_table(pa.table(columns | change), tmp_path / "log.parquet")
    assert message in " ".join(refused(str(tmp_path / "log.parquet"), *arguments).split())


def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    assert "no data at" in refused(str(tmp_path / "nowhere"), "--candidate", "b")
    (tmp_path / "log.parquet").write_text("user,version,click")
    assert "cannot be read as Parquet" in refused(str(tmp_path / "log.parquet"), "--candidate", "b")
    pq.write_table(
        pa.table({"user": pa.array([], pa.int64()), "model_version": [], "click": []}),
        tmp_path / "empty.parquet",
    )
    assert "the log should hold impressions, received no rows" in refused(
        str(tmp_path / "empty.parquet"), "--candidate", "b"
    )
    one = pa.table({"user": [1], "model_version": ["a"], "click": [0]})
    pq.write_table(one, tmp_path / "one.parquet")
    pq.write_table(one.set_column(0, "user", pa.array(["2"])), tmp_path / "two.parquet")
    message = refused(
        str(tmp_path / "one.parquet"), str(tmp_path / "two.parquet"), "--candidate", "b"
    )
    assert "column 'user' should be int64 as in" in message
