"""Rows of new users in the data itself, and the warning where there are none.

Shape: ``R`` rows of a table.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from mail_torchrec.data.history import HistoryLimits
from mail_torchrec.data.parquet.arrow import Bools, binary
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.settings import DataSettings


def new_user_rows(
    table: pa.Table, limits: HistoryLimits, new_user_max_behaviours: int, file: str
) -> Bools:
    """Finds the rows that are new users' in the data itself, hidden behaviours included, [R].

    Args:
        table: R rows with the files' columns.
        limits: of the rows.
        new_user_max_behaviours: rows with at most so many behaviours are new users', unless the
            schema has a column that flags them.
        file: for messages.

    Raises:
        ValueError: a flag that is neither 0 nor 1.
    """
    schema = limits.schema
    if schema.new_user is not None:
        name = schema.file_column(schema.new_user)
        return binary(table[name], file=file, name=name)
    is_new_R: Bools = limits.num_behaviours(table, hidden=True) <= new_user_max_behaviours
    return is_new_R


class NewUserCounter:
    """Counts the rows that are reported as new users', those of hidden users included.

    Args:
        settings: rule for new users.
    """

    def __init__(self, settings: DataSettings) -> None:
        self._max_behaviours = settings.new_user_max_behaviours
        self.num_new = self.num_rows = 0

    def add(self, table: pa.Table, limits: HistoryLimits, file: str) -> None:
        """Adds the rows of one row group; arguments are those of :func:`new_user_rows`."""
        is_new_R = new_user_rows(table, limits, self._max_behaviours, file) | limits.is_hidden_R
        self.num_new += int(np.count_nonzero(is_new_R))
        self.num_rows += len(table)

    def merge(self, other: "NewUserCounter") -> None:
        """Adds the counts of rows that follow."""
        self.num_new += other.num_new
        self.num_rows += other.num_rows


def no_new_rows(path: str, num_rows: int, schema: Schema, settings: DataSettings) -> str:
    """Words the warning about data without a new user's row: the rule, and likely causes.

    Args:
        path: of the data.
        num_rows: rows of the data.
        schema: columns.
        settings: rule for new users, and the simulated cold start.
    """
    shares, most = settings.cold_start.shares_given(), settings.new_user_max_behaviours
    if schema.new_user is not None:
        rule = f"column '{schema.file_column(schema.new_user)}' is 1"
        remedies = ["correct that column"]
    else:
        rule = f"all its behaviour sequences together hold at most {most} behaviours"
        lists = ", ".join(f"'{name}'" for name in _unpadded(schema))
        padded = [f"set 'padding' where lists are filled up to one length ({lists})"]
        remedies = [*(padded if lists else []), "raise data.new_user_max_behaviours"]
    names = " or ".join(settings.cold_start.deciding_shares())
    remedies.append(f"raise data.cold_start.{names}, the share of users who are made new ones")
    return (
        f"'{path}': none of the {num_rows} rows is a new user's, so nothing is learnt or measured "
        f"about new users here. A row is a new user's where {rule}, or where the simulated cold "
        f"start hides its user ({shares}). If there should be new users, {'; or '.join(remedies)}"
    )


def _unpadded(schema: Schema) -> list[str]:
    columns: Mapping[str, object] = {name: schema.columns[name].padding for name in schema.lists}
    return [name for name in schema.sequences if columns[name] is None]
