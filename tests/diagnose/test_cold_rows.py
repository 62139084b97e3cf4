"""How long users stay new, against Kaplan and Meier's estimate by hand; rates out of fold."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mail_torchrec.config import load_config
from mail_torchrec.diagnose.cold_rows import (
    ColdDay,
    ColdRows,
    LoggedRows,
    count_cold_rows,
    staying_new,
)
from mail_torchrec.diagnose.new_items import NewItemValue
from mail_torchrec.diagnose.new_users import NewUserValue
from mail_torchrec.diagnose.report import Diagnosis
from mail_torchrec.diagnose.sampled_rows import row_quotas
from mail_torchrec.diagnose.verdict import Verdict
from tests.diagnose.conftest import planted_log, write_log


def logged(rows: list[tuple[int, int, bool]]) -> LoggedRows:
    users, days, new = zip(*rows, strict=True)
    count = len(rows)
    return LoggedRows(
        np.array(users, np.uint64),
        np.zeros(count, np.uint64),
        np.array(new),
        np.array(days, np.int64),
        count,
    )


def test_users_still_new_are_kaplan_and_meiers_estimate() -> None:
    rows: list[tuple[int, int, bool]] = []
    for user in range(10):  # leave after two days, with three rows while new
        rows += [(user, 0, True), (user, 1, True), (user, 1, True), (user, 2, False)]
    for user in range(10, 20):  # seen for one day more, then no more
        rows += [(user, 3, True), (user, 4, True)]
    for user in range(20, 25):  # leave after four days
        rows += [(user, 5, True), (user, 9, False)]
    rows += [(99, 1, False), (99, 2, True)]  # does not begin as new
    found = staying_new((logged(rows[::-1]), logged(rows[:0] or [(99, 3, False)])))
    assert found is not None
    assert (found.num_users, found.num_left) == (25, 15)
    # At risk on day 2: the 15 who were not lost on day 1, of whom 10 leave; on day 4: 5 of 5.
    assert found.still_new_D == pytest.approx([1, 1, 1 / 3, 1 / 3, 0])
    assert found.median_days == 2
    assert found.rows_while_new == pytest.approx((10 * 3 + 10 * 2 + 5) / 25)


def test_the_shares_of_each_day_are_those_of_its_rows(tmp_path: Path) -> None:
    config = load_config(write_log(tmp_path, planted_log()), [])
    parts = [pq.read_table(tmp_path / f"{part}.parquet").to_pylist() for part in ("train", "test")]
    rows = sorted((row for part in parts for row in part), key=lambda row: row["day"])
    first: dict[int, str] = {}
    by_day: dict[str, list[tuple[bool, bool]]] = {}
    for row in rows:
        since = first.setdefault(row["item"], row["day"])
        by_day.setdefault(row["day"], []).append((not row["seen"], since == row["day"]))
    found = count_cold_rows(config).days
    assert [str(np.datetime64(day.day, "D")) for day in found] == list(by_day)
    for place, (day, flags) in enumerate(zip(found, by_day.values(), strict=True)):
        users, items = np.mean(flags, axis=0)
        assert day.num_rows == len(flags) and day.new_users == pytest.approx(users)
        assert day.new_items == (pytest.approx(items) if place else None)


def test_nothing_is_said_of_few_users_or_without_days() -> None:
    few = logged([(user, 0, True) for user in range(5)])
    assert staying_new((few,)) is None
    many = logged([(user, 0, True) for user in range(50)])
    assert staying_new((many,)) is not None
    without_days = LoggedRows(many.users_R, many.items_R, many.is_new_R, None, 50)
    assert staying_new((without_days,)) is None


@pytest.mark.parametrize("num_days", [40, 55])
def test_the_table_of_days_says_that_there_are_more(num_days: int) -> None:
    days = [ColdDay(19_000 + day, 100, 0.1, 0.2) for day in range(num_days)]
    cold = ColdRows(0.1, 0.1, 0.1, 0.3, days, None, True)
    users, items = NewUserValue(why_none="-"), NewItemValue(why_none="-")
    found = Diagnosis("", cold, users, items, Verdict([], [], []))
    text = found.text()
    assert text.count("| 20") == 40 and len(found.numbers()["cold"]["days"]) == num_days
    said = (
        "The table has the last 40 of 55 days; diagnosis.json has all of them, from 2022-01-08 on."
    )
    assert (said in text) == (num_days > 40) == ("The table has" in text)


def test_rows_that_small_row_groups_leave_over_are_the_others() -> None:
    assert row_quotas([10, 100, 3, 100], 100) == [10, 43, 3, 44]
    assert row_quotas([5, 5], 100) == [5, 5]
    assert row_quotas([9, 9, 9], 2) == [1, 1, 1]  # each has at least one
