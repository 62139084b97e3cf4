"""Share of cold rows by day, and how long a user stays new.

Shapes: ``R`` rows, ``U`` users, ``D`` days since a user's first row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mail_torchrec.config import Config
from mail_torchrec.data.history import HistoryLimits
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.new_users import new_user_rows
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.data_check.scan import find_day, spread
from mail_torchrec.diagnose.item_rule import MAX_COUNTED_ROWS, NATURAL, ItemRule
from mail_torchrec.diagnose.sampled_rows import target_item
from mail_torchrec.utils.progress import progress_bar

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_MIN_USERS = 20
"""New users of whom something is said about how long they stay new, at least."""


@dataclass(frozen=True)
class LoggedRows:
    """Users, items and days of rows.

    Args:
        users_R: hash of the user.
        items_R: hash of the target item.
        is_new_R: rows of new users, by the rule of the configuration.
        days_R: day from 1970; None where no column holds it.
        num_rows: rows of the files, of which these are all or some.
        is_new_item_R: rows of new items by the rule; None without a rule.
    """

    users_R: npt.NDArray[np.uint64]
    items_R: npt.NDArray[np.uint64]
    is_new_R: Bools
    days_R: Ints | None
    num_rows: int
    is_new_item_R: Bools | None = None


@dataclass(frozen=True)
class ColdDay:
    """Cold rows of one day.

    Args:
        day: from 1970.
        num_rows: rows that were read.
        new_users: share of rows of new users.
        new_items: share of rows of new items by the rule; without one, of rows whose item is on no
            earlier day, None on the first day.
    """

    day: int
    num_rows: int
    new_users: float
    new_items: float | None


@dataclass(frozen=True)
class StayingNew:
    """Share of users who are still new by day (Kaplan and Meier; users seen no more are censored).

    Args:
        num_users: users whose first row is new.
        num_left: those of them who were seen with a history later.
        still_new_D: share of users still new so many days after their first row.
        rows_while_new: mean rows of a user while new.
    """

    num_users: int
    num_left: int
    still_new_D: list[float]
    rows_while_new: float

    @property
    def median_days(self) -> int | None:
        """Days after which at most half of the users are new; None where more stay new."""
        return next((day for day, share in enumerate(self.still_new_D) if share <= 0.5), None)


@dataclass(frozen=True)
class ColdRows:
    """Cold rows as they are in the files, without the simulated cold start.

    Args:
        train_new_users: share of training rows of new users.
        test_new_users: the same of test rows.
        test_unseen_users: share of test rows whose user is not in the training rows.
        test_new_items: share of test rows of new items by the rule; without one, of those whose
            item is not in the training rows.
        days: by day; empty where no column holds the day.
        staying: None without days, or with fewer than 20 users who are seen when new.
        is_whole: all rows of the files were read.
        item_rule: the rule for new items in words; None without one.
    """

    train_new_users: float
    test_new_users: float
    test_unseen_users: float
    test_new_items: float
    days: list[ColdDay]
    staying: StayingNew | None
    is_whole: bool
    item_rule: str | None = None


def count_cold_rows(config: Config, rule: ItemRule | None = None) -> ColdRows:
    """Reads users, items and days of up to five million rows of each part, and counts cold ones.

    Args:
        config: names the files, and what their columns are.
        rule: for new items; without one they are those that training, or earlier days, do not have.
    """
    schema, data = config.schema_, config.data
    source = Source(data.path(data.train), schema)
    train = _read(source, config, rule)
    test = _read(Source(data.path(data.test), schema, source.types), config, rule)
    both = (train, test)
    is_new_item_R = test.is_new_item_R
    if is_new_item_R is None:
        is_new_item_R = ~np.isin(test.items_R, train.items_R)
    return ColdRows(
        float(train.is_new_R.mean()),
        float(test.is_new_R.mean()),
        float(np.mean(~np.isin(test.users_R, train.users_R))),
        float(is_new_item_R.mean()),
        _by_day(both),
        staying_new(both),
        all(part.num_rows == len(part.is_new_R) for part in both),
        None if rule is None else rule.text,
    )


def _read(source: Source, config: Config, rule: ItemRule | None) -> LoggedRows:
    schema, day = config.schema_, find_day(source, config.schema_)
    item = target_item(schema) if rule is None else rule.cohorts.item
    names = [schema.group_key, *schema.sequences, item]
    names += [schema.new_user] if schema.new_user is not None else []
    of_rule = [] if rule is None else rule.columns
    columns = list(dict.fromkeys([*map(schema.file_column, names), *of_rule]))
    chosen = source.select(spread(source.row_groups, MAX_COUNTED_ROWS))
    users, items, new, days, new_items = [], [], [], [], []
    for group in progress_bar(chosen.row_groups, desc=f"cold rows of {source.path}", unit="group"):
        file = chosen.file(group)
        for table in chosen.pieces(group, columns):
            keys = _ids(table, schema, schema.group_key, file)
            limits = HistoryLimits.simulated(schema, keys, NATURAL)
            users.append(hash64(keys, "user"))
            new.append(new_user_rows(table, limits, config.data.new_user_max_behaviours, file))
            items.append(hash64(_ids(table, schema, item, file), "item"))
            if rule is not None:
                new_items.append(rule.is_new(table, file))
        if day is not None:
            stored = chosen.files[group.file].read([day.column], group.index)
            days.append(day.numbers(stored, chosen.types, file))
    return LoggedRows(
        np.concatenate(users),
        np.concatenate(items),
        np.concatenate(new),
        np.concatenate(days) if days else None,
        source.num_rows,
        np.concatenate(new_items) if new_items else None,
    )


def _ids(table: pa.Table, schema: Schema, name: str, file: str) -> pa.Array:
    column = schema.file_column(name)
    return plain_ids(table[column], file=file, name=column)


def _by_day(parts: tuple[LoggedRows, LoggedRows]) -> list[ColdDay]:
    if any(part.days_R is None for part in parts):
        return []
    days_R = np.concatenate([part.days_R for part in parts if part.days_R is not None])
    is_new_R = np.concatenate([part.is_new_R for part in parts])
    by_rule = [part.is_new_item_R for part in parts if part.is_new_item_R is not None]
    is_new_item_R = np.concatenate(by_rule) if by_rule else _on_no_earlier_day(parts, days_R)
    days, places_R = np.unique(days_R, return_inverse=True)
    counts, users, items = (
        np.bincount(places_R, weights_R).tolist() for weights_R in (None, is_new_R, is_new_item_R)
    )
    return [
        ColdDay(
            day, count, users[place] / count, items[place] / count if place or by_rule else None
        )
        for place, (day, count) in enumerate(zip(days.tolist(), counts, strict=True))
    ]


def _on_no_earlier_day(parts: tuple[LoggedRows, LoggedRows], days_R: Ints) -> Bools:
    """Finds the rows whose item is on no earlier day, [R]."""
    items_R = np.concatenate([part.items_R for part in parts])
    _, places_R = np.unique(items_R, return_inverse=True)
    first = np.full(places_R.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, places_R, days_R)
    is_new_R: Bools = first[places_R] == days_R
    return is_new_R


def staying_new(parts: tuple[LoggedRows, ...]) -> StayingNew | None:
    """Estimates how long users stay new; None without days or with too few of them.

    Args:
        parts: rows of training and of test.
    """
    if any(part.days_R is None for part in parts):
        return None
    spans = list(_spans(parts))
    if len(spans) < _MIN_USERS:
        return None
    days_U = np.array([days for days, _, _ in spans])
    left_U = np.array([left for _, left, _ in spans])
    still_new, share = [], 1.0
    for day in range(int(days_U.max()) + 1):
        at_risk = int(np.count_nonzero(days_U >= day))
        left = int(np.count_nonzero(left_U & (days_U == day)))
        share *= 1 - left / max(at_risk, 1)
        still_new.append(share)
    rows_while_new = float(np.mean([rows for _, _, rows in spans]))
    return StayingNew(len(spans), int(left_U.sum()), still_new, rows_while_new)


def _spans(parts: tuple[LoggedRows, ...]) -> Iterator[tuple[int, bool, int]]:
    """Yields days, whether the user left, and rows while new, of each user who begins as new."""
    users_R = np.concatenate([part.users_R for part in parts])
    days_R = np.concatenate([part.days_R for part in parts if part.days_R is not None])
    is_new_R = np.concatenate([part.is_new_R for part in parts])
    interesting = np.unique(users_R[is_new_R])
    chosen_R = np.flatnonzero(np.isin(users_R, interesting))
    # A day on which a user has a history and has none counts as one of a new user.
    order = chosen_R[np.lexsort((~is_new_R[chosen_R], days_R[chosen_R], users_R[chosen_R]))]
    starts = np.flatnonzero(np.diff(users_R[order], prepend=~users_R[order[:1]]))
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        new_R, day_R = is_new_R[order[start:stop]], days_R[order[start:stop]]
        if not new_R[0]:
            continue
        later = np.flatnonzero(~new_R)
        end = int(later[0]) if len(later) else len(new_R) - 1
        yield int(day_R[end] - day_R[0]), bool(len(later)), int(new_R[: end + 1].sum())
