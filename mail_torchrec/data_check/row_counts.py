"""Rows and clicks by file and by day, new users, and the days of training beside those of test."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc

from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data_check.check_report import CheckReport, FoundTable
from mail_torchrec.data_check.scan import Part, ScannedRows, day_name

_MIN_ROWS = 1_000
"""Rows of a file or day from which on its rate of clicks is compared with that of all."""
_MAX_FACTOR = 3.0


@dataclass
class _Counts:
    rows: int = 0
    clicks: int = 0

    @property
    def rate(self) -> float:
        return self.clicks / max(1, self.rows)


@dataclass
class RowCounts:
    """Counts of the rows that were looked at.

    Args:
        part: training or test.
        schema: its user and label.
    """

    part: Part
    schema: Schema
    total: _Counts = field(default_factory=_Counts)
    by_file: dict[str, _Counts] = field(default_factory=dict)
    by_day: dict[int, _Counts] = field(default_factory=dict)
    users: dict[Hashable, int] = field(default_factory=dict)
    """Rows of each user."""

    def add(self, rows: ScannedRows) -> None:
        """Counts rows."""
        clicks = int(rows.clicked_R.sum())
        for counts in (self.total, self.by_file.setdefault(rows.file, _Counts())):
            counts.rows += len(rows.table)
            counts.clicks += clicks
        for day in [] if rows.days_R is None else np.unique(rows.days_R).tolist():
            is_day_R = rows.days_R == day
            counts = self.by_day.setdefault(day, _Counts())
            counts.rows += int(is_day_R.sum())
            counts.clicks += int(rows.clicked_R[is_day_R].sum())
        found = pc.value_counts(rows.table[self.schema.file_column(self.schema.group_key)])
        values, numbers = found.field("values").to_pylist(), found.field("counts").to_pylist()
        for user, count in zip(values, numbers, strict=True):
            self.users[user] = self.users.get(user, 0) + count

    def add_to(self, report: CheckReport) -> None:
        """Adds tables and findings."""
        name = self.part.name
        by_day = {day_name(day): counts for day, counts in sorted(self.by_day.items())}
        for title, groups in (("file", self.by_file), ("day", by_day)):
            if groups:
                report.tables.append(_table(f"Rows of {name} by {title}", title, groups))
            self._check_rates(title, groups, report)
        if not self.total.clicks or self.total.clicks == self.total.rows:
            report.error(
                "label",
                f"{name}: all of the {self.total.rows:,} labels are "
                f"{int(self.total.clicks > 0)}, so nothing can be learnt or measured; is "
                f"'{self.schema.file_column(self.schema.label)}' the label?",
            )
        if None in self.users:
            report.warn(
                "user",
                f"{name}: {self.users[None]:,} rows have no user (null in "
                f"'{self.schema.file_column(self.schema.group_key)}') and count as one",
            )

    def _check_rates(self, title: str, groups: dict[str, _Counts], report: CheckReport) -> None:
        """Warns of files and days whose rate of clicks is far from that of all."""
        rate = self.total.rate
        odd = [
            f"'{name}' {counts.rate:.4f}"
            for name, counts in groups.items()
            if counts.rows >= _MIN_ROWS
            and not rate / _MAX_FACTOR <= counts.rate <= rate * _MAX_FACTOR
        ]
        if odd:
            report.warn(
                "label",
                f"{self.part.name}: the rate of clicks is {rate:.4f} in all rows, and far from it "
                f"by {title}: {', '.join(odd[:5])}; was something logged or sampled otherwise?",
            )


def compare_parts(train: RowCounts, test: RowCounts, report: CheckReport) -> None:
    """Adds the shares of new users, and findings on the days and the rates of both parts.

    Args:
        train: of training.
        test: of test.
        report: gets tables and findings.
    """
    new = {user: rows for user, rows in test.users.items() if user not in train.users}
    share, users = sum(new.values()) / max(1, test.total.rows), len(new) / max(1, len(test.users))
    header = ["", "rows", "label rate", "users"]
    rows = [
        [
            counts.part.name,
            f"{counts.total.rows:,}",
            f"{counts.total.rate:.4f}",
            f"{len(counts.users):,}",
        ]
        for counts in (train, test)
    ]
    rows.append(["test: users not in training", f"{share:.1%}", "", f"{users:.1%}"])
    report.tables.insert(0, FoundTable("Training and test", header, rows))
    if shared := sorted({*train.by_file} & {*test.by_file}):
        report.error(
            "split",
            f"training and test both read '{shared[0]}' ({len(shared)} files): metrics would be of "
            "rows that were trained on; set data.test to other files",
        )
    elif train.by_day and test.by_day and min(test.by_day) <= max(train.by_day):
        report.warn(
            "split",
            f"test begins on {day_name(min(test.by_day))}, and training goes on until "
            f"{day_name(max(train.by_day))}: test rows should be later than all training rows, as "
            "those that the model will serve are",
        )
    low, high = sorted([train.total.rate, test.total.rate])
    if low and high / low > 1.5:
        report.warn(
            "label",
            f"the rate of clicks is {train.total.rate:.4f} in training and {test.total.rate:.4f} "
            "in test; if negatives were sampled, set data.negatives_kept or a column of group "
            "'weight'",
        )


def _table(title: str, first: str, groups: dict[str, _Counts]) -> FoundTable:
    rows = [[name, f"{counts.rows:,}", f"{counts.rate:.4f}"] for name, counts in groups.items()]
    return FoundTable(title, [first, "rows", "label rate"], rows)
