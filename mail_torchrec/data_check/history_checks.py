"""Histories: their lengths, padding, and impressions that stand in their own history (leakage).

Shapes: ``R`` rows, ``V`` behaviours of all rows end to end.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.history import HistoryLimits
from mail_torchrec.data.list_shapes import ListShapes
from mail_torchrec.data.parquet.arrow import Bools, list_lengths, one_chunk
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data_check.check_report import CheckReport, FoundTable
from mail_torchrec.data_check.scan import Part, ScannedRows

_MIN_ROWS = 50
_FACTOR = 5.0
_MIN_CLICKED, _MIN_ALL = 0.1, 0.3


@dataclass
class _Lengths:
    rows: int = 0
    total: int = 0
    longest: int = 0
    empty: int = 0
    cut: int = 0


@dataclass
class _Targets:
    """Rows with a history, clicked or not, and those of them that hold their target item."""

    rows: int = 0
    newest: int = 0
    anywhere: int = 0

    @property
    def newest_share(self) -> float:
        return self.newest / max(1, self.rows)

    @property
    def anywhere_share(self) -> float:
        return self.anywhere / max(1, self.rows)


@dataclass
class HistoryCounts:
    """Counts of the lists of the rows that were looked at.

    Args:
        part: training or test.
        schema: columns.
    """

    part: Part
    schema: Schema
    lengths: dict[str, _Lengths] = field(default_factory=dict)
    targets: dict[str, dict[bool, _Targets]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._shapes = ListShapes(self.schema)

    def add(self, rows: ScannedRows) -> None:
        """Counts rows."""
        limits = HistoryLimits.served(self.schema, len(rows.table))
        self._shapes.add(rows.table, limits, rows.where)
        for name in self.schema.lists:
            if self.schema.columns[name].action_of is not None:
                continue
            lengths_R = list_lengths(rows.table[self.schema.file_column(name)])
            counts = self.lengths.setdefault(name, _Lengths())
            counts.rows += len(lengths_R)
            counts.total += int(lengths_R.sum())
            counts.longest = max(counts.longest, int(lengths_R.max(initial=0)))
            counts.empty += int(np.count_nonzero(lengths_R == 0))
            counts.cut += int(limits.is_cut(rows.table, name).sum())
        for sequence in self.schema.sequences:
            self._add_targets(rows, sequence)

    def _add_targets(self, rows: ScannedRows, sequence: str) -> None:
        """Counts the rows whose history holds the item that they show."""
        target = self.schema.file_column(self.schema.target_of(sequence))
        column = rows.table[self.schema.file_column(sequence)]
        newest_R, anywhere_R = _holds(column, rows.table[target])
        has_history_R = list_lengths(column) > 0
        counts = self.targets.setdefault(sequence, {True: _Targets(), False: _Targets()})
        for clicked, found in counts.items():
            chosen_R = has_history_R & (rows.clicked_R == clicked)
            found.rows += int(chosen_R.sum())
            found.newest += int(newest_R[chosen_R].sum())
            found.anywhere += int(anywhere_R[chosen_R].sum())

    def add_to(self, report: CheckReport) -> None:
        """Adds tables and findings."""
        name = self.part.name
        if self.lengths:
            header = ["list", "mean length", "longest", "empty", "cut to max_length"]
            rows = [
                [
                    column,
                    f"{counts.total / max(1, counts.rows):.1f}",
                    str(counts.longest),
                    f"{counts.empty / max(1, counts.rows):.1%}",
                    f"{counts.cut / max(1, counts.rows):.1%}",
                ]
                for column, counts in self.lengths.items()
            ]
            report.tables.append(FoundTable(f"Lists of {name}", header, rows))
        for warning in self._shapes.warnings():
            report.warn("padding", f"{name}: {warning}")
        self._check_empty(report)
        if self.targets:
            header = [
                "history",
                "newest, clicked",
                "newest, others",
                "anywhere, clicked",
                "anywhere, others",
            ]
            rows = [
                [sequence]
                + [f"{found[clicked].newest_share:.1%}" for clicked in (True, False)]
                + [f"{found[clicked].anywhere_share:.1%}" for clicked in (True, False)]
                for sequence, found in self.targets.items()
            ]
            title = f"Histories of {name} that hold their own target item"
            report.tables.append(FoundTable(title, header, rows))
        for sequence, found in self.targets.items():
            self._check_leakage(sequence, found, report)

    def _check_empty(self, report: CheckReport) -> None:
        for sequence in self.schema.sequences:
            counts = self.lengths.get(sequence)
            if counts is not None and counts.rows and counts.empty == counts.rows:
                report.warn(
                    "history",
                    f"{self.part.name}: '{self.schema.file_column(sequence)}' is empty in all rows "
                    "that were looked at; is it the history?",
                )

    def _check_leakage(
        self, sequence: str, found: dict[bool, _Targets], report: CheckReport
    ) -> None:
        """Reports histories that know the click, or that hold the impression itself."""
        clicked, others = found[True], found[False]
        if min(clicked.rows, others.rows) < _MIN_ROWS:
            return
        column, part = self.schema.file_column(sequence), self.part.name
        for share, other, place in (
            (clicked.newest_share, others.newest_share, "newest entry of"),
            (clicked.anywhere_share, others.anywhere_share, "in"),
        ):
            if share >= _MIN_CLICKED and share >= _FACTOR * other:
                report.error(
                    "leakage",
                    f"{part}: the target item is {place} '{column}' in {share:.1%} of the clicked "
                    f"rows and in {other:.1%} of the others, so the history holds the click that "
                    "it should predict; build histories of what was before the impression "
                    "(mail-torchrec prepare events does)",
                )
                return
        rows = clicked.rows + others.rows
        if (share := (clicked.newest + others.newest) / rows) >= _MIN_ALL:
            report.warn(
                "leakage",
                f"{part}: the target item is the newest entry of '{column}' in {share:.1%} of the "
                "rows; does the history hold the impression itself?",
            )


def _holds(column: pa.ChunkedArray, targets: pa.ChunkedArray) -> tuple[Bools, Bools]:
    """Returns the rows whose newest entry is their target, and those with it anywhere, [R] each."""
    lengths_R = list_lengths(column)
    rows_V = np.repeat(np.arange(len(lengths_R)), lengths_R)
    items = one_chunk(pc.list_flatten(column))
    own = one_chunk(targets).take(pa.array(rows_V)).cast(items.type)
    is_own = pc.fill_null(pc.equal(items, own), False)
    is_own_V = is_own.to_numpy(zero_copy_only=False).astype(np.bool_)
    anywhere_R = np.bincount(rows_V[is_own_V], minlength=len(lengths_R)) > 0
    newest_R = np.zeros(len(lengths_R), np.bool_)
    has_any_R = lengths_R > 0
    newest_R[has_any_R] = is_own_V[np.cumsum(lengths_R)[has_any_R] - 1]
    return newest_R, anywhere_R
