"""Rows of new items: by a rule, by a column, or because the simulated cold start withholds the id.

Shapes: ``R`` rows of a table, ``N`` ids, ``V`` rows of the items' embedding table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from mail_torchrec.data.ids.policy import MISSING_ROW, UNKNOWN_ROW, IdEncoder
from mail_torchrec.data.items.candidate_item import item_column
from mail_torchrec.data.items.hidden_items import hidden_items, withheld_columns
from mail_torchrec.data.items.settings import HiddenItemSettings, NewItemSettings
from mail_torchrec.data.parquet.arrow import Bools, Floats, Ints, binary, finite_numbers
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.schema.schema import Schema


@dataclass(frozen=True)
class ItemFlags:
    """Flags of the rows' candidate items."""

    is_new_R: Bools
    """Rows reported as new items': by the rule, or hidden. The oracle reports them too."""
    is_cold_R: Bools
    """Rows whose item's vector the model should not rely on: new by the rule, or withheld."""
    frequency_R: Floats | None = None
    """Count of each row's item in the training data over the mean count of the known items
    (float32); None where ids are not counted."""

    def take(self, rows: Ints | slice) -> "ItemFlags":
        """Returns the flags of some rows.

        Args:
            rows: their indices [rows], or a slice.
        """
        frequency_R = None if self.frequency_R is None else self.frequency_R[rows]
        return ItemFlags(self.is_new_R[rows], self.is_cold_R[rows], frequency_R)

    @staticmethod
    def concatenate(parts: "list[ItemFlags]") -> "ItemFlags":
        """Appends the flags of several tables to one another."""
        frequencies = [part.frequency_R for part in parts if part.frequency_R is not None]
        return ItemFlags(
            np.concatenate([part.is_new_R for part in parts]),
            np.concatenate([part.is_cold_R for part in parts]),
            np.concatenate(frequencies) if frequencies else None,
        )


@dataclass(frozen=True)
class ItemCohorts:
    """Tells new items' rows from others, and withholds the ids of hidden items.

    Args:
        schema: columns and tables.
        item: column of the candidate item.
        rule: of new items; None where a column says it, or only hidden items are new.
        hidden: of rows of one kind, trained on or evaluated; None hides no item.
        encoder: of the items' ids.
    """

    schema: Schema
    item: str
    rule: NewItemSettings | None
    hidden: HiddenItemSettings | None
    encoder: IdEncoder

    @staticmethod
    def of(
        schema: Schema,
        encoders: Mapping[str, IdEncoder],
        rule: NewItemSettings | None,
        hidden: HiddenItemSettings | None,
    ) -> "ItemCohorts | None":
        """Returns the cohorts of a configuration; None where nothing says which items are new.

        Args:
            schema: columns and tables.
            encoders: of ids, by table.
            rule: section ``data.new_items``.
            hidden: section ``data.cold_start.items``, of rows of one kind.
        """
        if not has_new_items(schema, rule, hidden):
            return None
        item = item_column(schema, rule, hidden)
        return ItemCohorts(schema, item, rule, hidden, encoders[schema.table_of(item)])

    def withhold(self, name: str, ids: pa.Array, rows_N: Ints) -> Ints:
        """Makes the ids of hidden items unknown ones, unless the oracle shows them.

        Args:
            name: column of the schema.
            ids: its ids [N].
            rows_N: their table rows.

        Returns:
            Table rows [N].
        """
        hidden = self.hidden
        if hidden is None or not hidden.withholds or name not in self._withheld:
            return rows_N
        return np.where(hidden_items(ids, hidden), UNKNOWN_ROW, rows_N)

    def flags(self, table: pa.Table, rows_R: Ints, file: str) -> ItemFlags:
        """Finds the rows of new items.

        Args:
            table: R rows with the files' columns.
            rows_R: table row of each candidate item, after :meth:`withhold`.
            file: for messages.

        Raises:
            ValueError: a flag that is neither 0 nor 1, or an age that is not finite.
        """
        is_cold_R = self.is_new_by_rule(table, rows_R, file)
        frequency_R = None if self._frequency_V is None else self._frequency_V[rows_R]
        if self.hidden is None:
            return ItemFlags(is_cold_R, is_cold_R, frequency_R)
        column = self.schema.file_column(self.item)
        is_hidden_R = hidden_items(plain_ids(table[column], file=file, name=column), self.hidden)
        if not self.hidden.oracle:
            is_cold_R = is_cold_R | is_hidden_R
        return ItemFlags(is_cold_R | is_hidden_R, is_cold_R, frequency_R)

    def is_new_by_rule(self, table: pa.Table, rows_R: Ints, file: str) -> Bools:
        """Finds the rows of items that are new by the rule or the column, [R]; see :meth:`flags`.

        Args:
            table: R rows with the files' columns.
            rows_R: table row of each candidate item.
            file: for messages.
        """
        if self.schema.new_item is not None:
            name = self.schema.file_column(self.schema.new_item)
            return binary(table[name], file=file, name=name)
        if self.rule is None or not self.rule.has_rule:
            return np.zeros(len(rows_R), np.bool_)
        if self.rule.age is not None:
            assert self.rule.max_age is not None
            name = self.schema.file_column(self.rule.age)
            ages_R = finite_numbers(table[name], file=file, name=name)
            return ages_R <= self.rule.max_age  # False for NaN, an unknown age
        is_new_R: Bools = self._is_rare_V[rows_R]
        return is_new_R

    @cached_property
    def _withheld(self) -> frozenset[str]:
        return withheld_columns(self.schema, self.item)

    @cached_property
    def _is_rare_V(self) -> Bools:
        """Table rows of items that the training data holds at most ``max_count`` times.

        A null is no item, so its row is no new one's.
        """
        assert self.rule is not None and self.rule.max_count is not None
        counts_V = self.encoder.counts_V
        assert counts_V is not None, "check_new_items refuses ids that are not counted"
        is_rare_V = np.ones(self.encoder.num_rows, np.bool_)
        is_rare_V[self.encoder.rows_V] = counts_V <= self.rule.max_count
        is_rare_V[MISSING_ROW] = False
        return is_rare_V

    @cached_property
    def _frequency_V(self) -> Floats | None:
        """Count of each table row's item over the mean of the known items; 0 without an item."""
        counts_V = self.encoder.counts_V
        if counts_V is None:
            return None
        frequency_V = np.zeros(self.encoder.num_rows, np.float32)
        if len(counts_V) and (mean := counts_V.mean()):
            frequency_V[self.encoder.rows_V] = counts_V / mean
        return frequency_V


def has_new_items(
    schema: Schema, rule: NewItemSettings | None, hidden: HiddenItemSettings | None
) -> bool:
    """Returns whether a configuration says which items are new.

    Args:
        schema: its columns.
        rule: section ``data.new_items``.
        hidden: section ``data.cold_start.items``.
    """
    return schema.new_item is not None or rule is not None or hidden is not None
