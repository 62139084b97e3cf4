"""Nulls, distinct values and coverage of each column, in training and in test.

Shapes: ``R`` rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.history import HistoryLimits
from mail_torchrec.data.parquet.arrow import Bools
from mail_torchrec.data.schema.schema import Group, Kind, Schema
from mail_torchrec.data_check.check_report import CheckReport, FoundTable
from mail_torchrec.data_check.column_profile import ColumnProfile
from mail_torchrec.data_check.scan import Part, ScannedRows
from mail_torchrec.data_check.target_means import number_codes, target_mean_auc

_AUC_ROWS = 50_000
"""Training rows that single columns are judged on as predictors of the label."""
_SUSPICIOUS_AUC, _LEAKING_AUC = 0.85, 0.99
_MAX_UNKNOWN, _MAX_NULL_GAP = 0.5, 0.2
FEATURES = (Group.ATTRIBUTE, Group.BEHAVIOUR, Group.CONTEXT, Group.POSITION, Group.ITEM)


@dataclass
class ColumnCounts:
    """Counts of the columns of the rows that were looked at.

    Args:
        part: training or test.
        schema: columns.
        encoders: fitted on the training rows that were looked at; None to count no unknown ids.
    """

    part: Part
    schema: Schema
    encoders: Encoders | None = None
    num_rows: int = 0
    nulls: dict[str, int] = field(default_factory=dict)
    values: dict[str, pa.Array] = field(default_factory=dict)
    """At most two distinct values of each column of one value a row."""
    ids: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    sample: list[pa.Table] = field(default_factory=list)
    clicked: list[Bools] = field(default_factory=list)
    """Labels of the sample, [R] of each of its tables."""

    @property
    def names(self) -> list[str]:
        """Columns of features that these files hold."""
        names = self.schema.names(*FEATURES)
        if self.part.name == "test":  # positions are of training alone
            names = [name for name in names if name not in self.schema.names(Group.POSITION)]
        return names

    def add(self, rows: ScannedRows) -> None:
        """Counts rows."""
        if self.num_rows < _AUC_ROWS and self.part.name == "training":
            share = max(1, _AUC_ROWS // len(self.part.source.row_groups))
            self.sample.append(rows.table.slice(0, share))
            self.clicked.append(rows.clicked_R[:share])
        self.num_rows += len(rows.table)
        for name in self.names:
            column = rows.table[self.schema.file_column(name)]
            self.nulls[name] = self.nulls.get(name, 0) + column.null_count
            if not self.schema.columns[name].kind.is_list and len(self.values.get(name, [])) < 2:
                known = self.values.get(name, pa.array([], column.type))
                found = pa.chunked_array([known, *column.chunks], column.type)
                self.values[name] = pc.unique(found)[:2]
        if self.encoders is not None:
            self._add_unknown(rows, self.encoders)

    def _add_unknown(self, rows: ScannedRows, encoders: Encoders) -> None:
        limits = HistoryLimits.served(self.schema, len(rows.table))
        for name in self.schema.id_columns:
            if name in self.names:
                ids = limits.shown_ids(rows.table, name, rows.where)[0]
                encoder = encoders.tables[self.schema.table_of(name)]
                unknown = int(np.count_nonzero(encoder.is_unknown(encoder.encode(ids))))
                self.ids[name] = self.ids.get(name, 0) + len(ids)
                self.unknown[name] = self.unknown.get(name, 0) + unknown

    def null_share(self, name: str) -> float:
        """Returns the share of rows in which a column is null."""
        return self.nulls.get(name, 0) / max(1, self.num_rows)

    def unknown_share(self, name: str) -> float:
        """Returns the share of a column's ids that training does not have."""
        return self.unknown.get(name, 0) / max(1, self.ids.get(name, 0))

    def own_aucs(self) -> dict[str, float]:
        """Returns the AUC of each column alone on the label, without histories and vectors."""
        if not self.sample:
            return {}
        table, clicked_R = pa.concat_tables(self.sample), np.concatenate(self.clicked)
        aucs = {}
        for name in self.names:
            column = self.schema.columns[name]
            if column.group is Group.BEHAVIOUR or column.kind in (Kind.VECTOR, Kind.WEIGHTS):
                continue
            stored = table[self.schema.file_column(name)]
            profile = ColumnProfile(name, stored, stored.type)
            is_number = column.kind is Kind.NUMERIC or name in self.schema.bucketed
            if is_number and not profile.is_list:
                codes_R = number_codes(profile.numbers)
            else:
                codes_R = profile.codes(len(table))
            aucs[name] = target_mean_auc(codes_R, clicked_R)
        return aucs


def report_columns(train: ColumnCounts, test: ColumnCounts | None, report: CheckReport) -> None:
    """Adds the table of columns, and its findings.

    Args:
        train: of training.
        test: of test; None where it could not be read.
        report: gets table and findings.
    """
    aucs = train.own_aucs()
    rows = []
    for name in train.names:
        has_rows = train.encoders is not None and name in train.schema.id_columns
        table = train.schema.table_of(name)
        num_rows = train.encoders.num_rows[table] if has_rows and train.encoders else None
        in_test = test is not None and name in test.names
        rows.append(
            [
                name,
                str(train.schema.columns[name].group),
                f"{train.null_share(name):.1%}",
                f"{test.null_share(name):.1%}" if test is not None and in_test else "",
                "" if num_rows is None else f"{num_rows:,}",
                f"{test.unknown_share(name):.1%}"
                if test is not None and in_test and name in test.ids
                else "",
                f"{aucs[name]:.3f}" if name in aucs else "",
            ]
        )
    header = [
        "column",
        "group",
        "null",
        "null in test",
        "table rows",
        "unknown in test",
        "AUC alone",
    ]
    report.tables.append(FoundTable("Columns", header, rows))
    _check_alone(train.schema, aucs, report)
    _check_constant(train, report)
    if test is not None:
        _check_test(train, test, report)


def _check_alone(schema: Schema, aucs: Mapping[str, float], report: CheckReport) -> None:
    for name, auc in aucs.items():
        words = f"column '{schema.file_column(name)}' predicts the label alone (AUC {auc:.3f})"
        if auc >= _LEAKING_AUC:
            report.error(
                "leakage",
                f"{words}: it is the label, or follows from it; take it out of the schema",
            )
        elif auc >= _SUSPICIOUS_AUC:
            report.warn(
                "leakage",
                f"{words}: is it known before the item is shown? If it is only after, take it out",
            )


def _check_constant(train: ColumnCounts, report: CheckReport) -> None:
    for name, values in train.values.items():
        if len(values) < 2:
            value = values[0].as_py() if len(values) else None
            report.warn(
                "constant",
                f"column '{train.schema.file_column(name)}' is {value!r} in all training rows that "
                "were looked at, so nothing is learnt from it; take it out of the schema",
            )


def _check_test(train: ColumnCounts, test: ColumnCounts, report: CheckReport) -> None:
    keys = {name for name in test.names if test.schema.columns[name].group is Group.ITEM}
    for name in test.names:
        share, column = test.unknown_share(name), test.schema.file_column(name)
        if share >= _MAX_UNKNOWN:
            about = ", whose items are new: content helps them" if name in keys else ""
            report.warn(
                "coverage",
                f"column '{column}': {share:.1%} of the ids in test are not in the training rows "
                f"that were looked at{about}; ids of requests or days, such as a weekday of which "
                "training has none, teach nothing",
            )
        gap = test.null_share(name) - train.null_share(name)
        if abs(gap) >= _MAX_NULL_GAP:
            report.warn(
                "nulls",
                f"column '{column}' is null in {train.null_share(name):.1%} of the training rows "
                f"and in {test.null_share(name):.1%} of the test rows; was it written otherwise?",
            )
