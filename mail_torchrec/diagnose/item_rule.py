"""The configured rule for new items, for rows as they are read.

Shape: ``R`` rows.
"""

from dataclasses import dataclass

import pyarrow as pa

from mail_torchrec.config import Config
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.history import HistoryLimits, column_ids
from mail_torchrec.data.ids.counts import IdCounts
from mail_torchrec.data.ids.policy import IdEncoder
from mail_torchrec.data.items.candidate_item import item_column
from mail_torchrec.data.items.new_items import ItemCohorts
from mail_torchrec.data.parquet.arrow import Bools
from mail_torchrec.data.parquet.logical_types import plain_ids
from mail_torchrec.data.source import Source
from mail_torchrec.data_check.scan import spread
from mail_torchrec.utils.progress import progress_bar

NATURAL = ColdStartSettings()
"""No simulated cold start: new users and items are those of the data."""
MAX_COUNTED_ROWS = 5_000_000
"""Rows of training, and of test, in which cold rows and ids of items are counted, at most."""


@dataclass(frozen=True)
class ItemRule:
    """Rows of new items by ``data.new_items``, or by the column of group ``new_item``.

    Args:
        cohorts: the rule, and counts of the items' ids in training.
        columns: columns of the files that the rule reads.
        text: the rule in words.
    """

    cohorts: ItemCohorts
    columns: list[str]
    text: str

    def is_new(self, table: pa.Table, file: str) -> Bools:
        """Finds the rows of new items, [R].

        Args:
            table: R rows with the files' columns.
            file: for messages.

        Raises:
            ValueError: a flag that is neither 0 nor 1, or an age that is not finite.
        """
        cohorts = self.cohorts
        ids = column_ids(table, cohorts.schema, cohorts.item, file)
        return cohorts.is_new_by_rule(table, cohorts.encoder.encode(ids), file)


def read_item_rule(config: Config) -> ItemRule | None:
    """Reads what the rule for new items needs; None where the configuration has no rule.

    Args:
        config: with the sections ``schema`` and ``data.new_items``.
    """
    schema, rule = config.schema_, config.data.new_items
    if schema.new_item is None and (rule is None or not rule.has_rule):
        return None
    item = item_column(schema, rule, config.data.cold_start.items)
    read, text = item, ""
    if schema.new_item is not None:
        read, text = schema.new_item, f"column '{schema.new_item}' is 1"
    elif rule is not None and rule.age is not None:
        read, text = rule.age, f"'{rule.age}' is at most {rule.max_age:g}"
    elif rule is not None:
        text = f"training has '{item}' at most {rule.max_count} times"
    table = schema.table_of(item)
    names = [name for name in schema.id_columns if schema.table_of(name) == table]
    encoder = _count_items(config, table, names if read == item else [item])
    columns = [schema.file_column(name) for name in dict.fromkeys([item, read])]
    return ItemRule(ItemCohorts(schema, item, rule, None, encoder), columns, text)


def _count_items(config: Config, table_name: str, names: list[str]) -> IdEncoder:
    """Counts the ids of some columns in training, and makes the encoder of their table."""
    schema, counts = config.schema_, IdCounts()
    source = Source(config.data.path(config.data.train), schema)
    chosen = source.select(spread(source.row_groups, MAX_COUNTED_ROWS))
    key = schema.file_column(schema.group_key)
    columns = list(dict.fromkeys([key, *map(schema.file_column, names)]))
    for group in progress_bar(chosen.row_groups, desc="counts of items", unit="row group"):
        file = chosen.file(group)
        for table in chosen.pieces(group, columns):
            keys = plain_ids(table[key], file=file, name=key)
            limits = HistoryLimits.simulated(schema, keys, NATURAL)
            for name in names:
                counts.add(limits.shown_ids(table, name, file)[0])
    return schema.id_policy(table_name).fit(counts, None)
