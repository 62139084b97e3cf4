"""The read-out by days since the first exposure, against plain Python and against a bootstrap."""

import json
from collections import defaultdict
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from mail_torchrec.abtest.clustered_auc import clustered_auc
from mail_torchrec.abtest.estimates import Estimate
from mail_torchrec.abtest.impressions import Impressions
from mail_torchrec.abtest.newness import still_new
from mail_torchrec.abtest.since_first import read_since_first, settled_from
from mail_torchrec.abtest.since_first_text import sentences
from mail_torchrec.cli import main

DAY_NAMES = {0: "0", 1: "1", 2: "2"}
FIRST_DAY = date(2024, 4, 25)


def write_days(path: Path, num_users: int, seed: int, *, lift: float = 0.0) -> list[dict[str, Any]]:
    """Users of two arms over 12 days; those new at first are so for three days.

    The candidate's lift is that of users while they are new.
    """
    random = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        arm, first, was_new = "ab"[user % 2], random.integers(4), user % 3 > 0
        rate = random.beta(2, 6)
        days = [first, *sorted(random.integers(first, 12, random.poisson(4)))]
        for day in days:
            is_new = was_new and day < first + 3
            truth = min(rate * (1 + lift * is_new * (arm == "b")), 1)
            rows.append(
                {
                    "user": f"u{user}",
                    "model_version": arm,
                    "click": int(random.random() < truth),
                    "fresh": int(is_new),
                    "day": FIRST_DAY + timedelta(int(day)),
                    "pctr": float(np.clip(rate + random.normal(0, 0.2), 0.01, 0.99)),
                }
            )
    rows.append(rows[0] | {"model_version": "b"})  # a user who saw both arms
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
    return rows


def read_out(path: Path, out: Path, *more: str) -> tuple[dict[str, Any], str]:
    options = ["--candidate", "b", "--new-user", "fresh", "--day", "day", *more]
    done = CliRunner().invoke(main, ["abtest", str(path), *options, "--out", str(out)])
    assert done.exit_code == 0, done.output
    content: dict[str, Any] = json.loads((out / "report.json").read_text())["days"]
    return content, done.output


def by_hand(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Rows by users, days since the first exposure, and version."""
    first: dict[str, date] = {}
    for row in rows:
        first[row["user"]] = min(first.get(row["user"], row["day"]), row["day"])
    new = {row["user"] for row in rows if row["day"] == first[row["user"]] and row["fresh"]}
    groups = defaultdict(list)
    for row in rows:
        if row["user"] == "u0":
            continue
        since = (row["day"] - first[row["user"]]).days
        name = DAY_NAMES.get(since, "3-6" if since < 7 else "7+")
        groups["new" if row["user"] in new else "other", name, row["model_version"]].append(row)
    return groups


def test_every_cell_is_that_of_plain_python(tmp_path: Path) -> None:
    rows = write_days(tmp_path / "log.parquet", 400, seed=1)
    found, text = read_out(tmp_path / "log.parquet", tmp_path / "out", "--score", "pctr")
    groups = by_hand(rows)
    assert {(users, day) for users, day, _ in groups} == {
        (users, day) for users, days in found["days"].items() for day in days
    }
    for (users, day, version), mine in groups.items():
        arm = {"a": "base", "b": "candidate"}[version]
        cell = found["days"][users][day]["arms"][arm]
        clicks, scores = [row["click"] for row in mine], [row["pctr"] for row in mine]
        ids = {row["user"] for row in mine}
        assert (cell["users"], cell["impressions"]) == (len(ids), len(mine))
        old = {row["user"] for row in mine if not row["fresh"]}
        assert cell["still_new"] == pytest.approx(1 - len(old) / len(ids))
        assert cell["auc"]["value"] == pytest.approx(roc_auc_score(clicks, scores))
        assert cell["calibration"]["value"] == pytest.approx(sum(scores) / sum(clicks))
        rate = found["days"][users][day]["clicks"][arm]["value"]
        assert rate == pytest.approx(sum(clicks) / len(clicks))
    assert "Users who were new at first:" in text and "0, candidate" in text
    for name in ("days.png", "report.html", "report.md"):
        assert (tmp_path / "out" / name).stat().st_size > 500
    assert "days.png" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("kind", ["integers", "written integers", "times", "texts"])
def test_days_may_be_written_in_other_ways(tmp_path: Path, kind: str) -> None:
    write_days(tmp_path / "log.parquet", 200, seed=2)
    expected, _ = read_out(tmp_path / "log.parquet", tmp_path / "dates")
    log = pq.read_table(tmp_path / "log.parquet")
    days = log["day"].combine_chunks()
    hours = pa.array(np.random.default_rng(0).integers(0, 86_400, len(log)), pa.duration("s"))
    other = {
        "integers": days.cast(pa.int32()),
        "written integers": pa.array([int(f"{day:%Y%m%d}") for day in days.to_pylist()]),
        "times": pa.compute.add(days.cast(pa.timestamp("s")), hours),
        "texts": days.cast(pa.string()),
    }[kind]
    place = log.schema.get_field_index("day")
    pq.write_table(log.set_column(place, "day", other), tmp_path / "other.parquet")
    found, _ = read_out(tmp_path / "other.parquet", tmp_path / "out")
    assert found == expected and "auc" in found["days"]["new"]["0"]["arms"]["base"]


def test_a_lift_of_new_users_ends_where_they_are_new_no_more(tmp_path: Path) -> None:
    write_days(tmp_path / "log.parquet", 6000, seed=3, lift=1.0)
    found, text = read_out(tmp_path / "log.parquet", tmp_path / "out")
    lifts = {day: one["clicks"]["lift"] for day, one in found["days"]["new"].items()}
    assert all(lifts[day]["low"] > 0.3 and lifts[day]["high"] < 2 for day in ("0", "1", "2"))
    assert found["settled_from"]["CTR"] == "3-6"
    assert "no difference is clear of chance from day 3-6 on (on day 0, 1, 2 it is)" in text
    for other in found["days"]["other"].values():
        lift = other["clicks"]["lift"]
        assert lift["low"] - 0.1 < 0 < lift["high"] + 0.1


def test_settled_from_is_the_first_of_the_last_days_without_a_difference() -> None:
    none, gain, loss = Estimate(0.1, -1, 1), Estimate(1, 0.5, 2), Estimate(-1, -2, -0.1)
    assert settled_from({"0": gain, "1": none, "2": none}) == "1"
    assert settled_from({"0": none, "1": loss, "2": none}) == "2"
    assert settled_from({"0": none, "1": None, "2": none}) == "0"
    assert settled_from({"0": none, "1": gain}) is None
    assert settled_from({"0": None}) is None


def impressions(users: Any, days: Any, is_new: Any) -> Impressions:
    users_R = np.asarray(users, np.int32)
    zeros_R = np.zeros(len(users_R), np.int8)
    flags_R = np.asarray(is_new, np.bool_)
    return Impressions(users_R, zeros_R, np.asarray(days, np.int32), flags_R, zeros_R, None)


def test_the_share_of_users_who_are_still_new_by_hand() -> None:
    """Five users: two stop on day 1, one on day 3; one is last seen on day 0, one on day 2."""
    users = [0, 0, 1, 1, 1, 2, 2, 3, 4, 4]
    days = [0, 1, 0, 1, 2, 0, 3, 0, 0, 2]
    is_new = [1, 0, 1, 0, 0, 1, 0, 1, 1, 1]
    log = impressions(users, days, is_new)
    found = still_new(log, log.days_R, np.ones(len(users), np.bool_))
    assert (found.users, found.stopped) == (5, 3)
    # Day 0: none of 5; day 1: 2 of 4; day 2: none of 2; day 3: 1 of 1.
    assert found.shares == pytest.approx([1, 0.5, 0.5, 0]) and found.half_day == 1


@pytest.mark.parametrize(
    ("until", "said"), [(3, "half of them by day 3"), (100, "fewer than half of them by day 59")]
)
def test_it_is_said_until_which_day_users_are_followed(until: int, said: str) -> None:
    """One impression a day and user, over more days than the curve has."""
    users, days = np.repeat(np.arange(4), 80), np.tile(np.arange(80), 4)
    log = impressions(users, days, days < until)
    log = replace(log, arms_R=(users % 2).astype(np.int8), clicks_R=(days % 2).astype(np.int8))
    sentence = sentences(read_since_first(log))[0]
    assert sentence.count(said) == 2 and sentence.count("fewer") == 2 * (until > 59)


def test_a_user_is_new_at_first_by_any_impression_of_the_first_day() -> None:
    log = impressions([0, 0, 0, 1, 1, 2], [5, 5, 6, 4, 5, 9], [1, 0, 0, 0, 1, 1])
    newness = read_since_first(log).still_new["base"]
    assert (newness.users, newness.stopped) == (2, 1)


def clustered(random: np.random.Generator, num_users: int) -> tuple[NDArray[Any], ...]:
    """Users whose scores and clicks have a common part, with 1 to 12 rows each."""
    users = np.repeat(np.arange(num_users), random.integers(1, 13, num_users))
    common = random.normal(size=num_users)[users]
    scores = np.round(common + random.normal(size=len(users)), 1)
    labels = random.random(len(users)) < 1 / (1 + np.exp(1 - common))
    return scores, labels.astype(int), users


def test_the_auc_and_its_variance_are_those_of_a_bootstrap_of_users() -> None:
    random = np.random.default_rng(4)
    scores, labels, users = clustered(random, 300)
    found = clustered_auc(scores, labels, users)
    assert found.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    rows = [np.flatnonzero(users == user) for user in range(300)]
    drawn = []
    for _ in range(600):
        sample = np.concatenate([rows[user] for user in random.integers(300, size=300)])
        drawn.append(roc_auc_score(labels[sample], scores[sample]))
    assert np.sqrt(found.variance) == pytest.approx(np.std(drawn), rel=0.1)
    by_rows = clustered_auc(scores, labels, np.arange(len(users)))  # as if rows were independent
    assert by_rows.value == found.value and by_rows.variance < 0.75 * found.variance


def test_95_of_100_intervals_of_the_auc_hold_the_truth() -> None:
    random = np.random.default_rng(5)
    scores, labels, _ = clustered(random, 60_000)
    truth, held = roc_auc_score(labels, scores), 0
    for _ in range(300):
        found = clustered_auc(*clustered(random, 300))
        held += abs(found.value - truth) < 1.96 * np.sqrt(found.variance)
    assert 0.91 < held / 300 < 0.99  # 3.2 standard errors


def test_an_auc_of_one_class_or_user_has_no_interval() -> None:
    ones = np.ones(4)
    assert np.isnan(clustered_auc(ones, ones, ones).value)
    found = clustered_auc(np.array([0.2, 0.7]), np.array([0, 1]), np.array([3, 3]))
    assert found.value == 1 and np.isnan(found.variance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--day", "day"), "--day follows the users who were new at first; name by --new-user"),
        (("--score", "pctr"), "--score is of the read-out by days; name by --day"),
        (("--day", "pctr", "--new-user", "fresh"), "column 'pctr' should hold days"),
        (("--day", "model_version", "--new-user", "fresh"), "should hold days"),
        (
            ("--day", "day", "--new-user", "fresh", "--score", "bad"),
            "column 'bad' should hold probabilities",
        ),
        (("--day", "seconds", "--new-user", "fresh"), "counted day by day or as 20240501"),
        (("--day", "nulls", "--new-user", "fresh"), "should say the day of every row"),
        (("--day", "day", "--new-user", "fresh", "--impressions", "n"), "rows are sums"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    write_days(tmp_path / "log.parquet", 40, seed=2)
    log = pq.read_table(tmp_path / "log.parquet")
    for name, column in (
        ("bad", np.full(len(log), 1.5)),
        ("n", np.ones(len(log), np.int64)),
        ("seconds", np.full(len(log), 1_714_521_600)),
        ("nulls", pa.nulls(len(log), pa.int32())),
    ):
        log = log.append_column(name, pa.array(column))
    pq.write_table(log, tmp_path / "log.parquet")
    arguments = ["abtest", str(tmp_path / "log.parquet"), "--candidate", "b", *options]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1 and "Traceback" not in done.output, done.output
    assert done.output.startswith("Error: ") and message in done.output
