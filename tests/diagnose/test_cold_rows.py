"""How long users stay new, against Kaplan and Meier's estimate by hand; rates out of fold."""

import numpy as np
import pytest

from mail_torchrec.diagnose.cold_rows import LoggedRows, staying_new


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


def test_nothing_is_said_of_few_users_or_without_days() -> None:
    few = logged([(user, 0, True) for user in range(5)])
    assert staying_new((few,)) is None
    many = logged([(user, 0, True) for user in range(50)])
    assert staying_new((many,)) is not None
    without_days = LoggedRows(many.users_R, many.items_R, many.is_new_R, None, 50)
    assert staying_new((without_days,)) is None
