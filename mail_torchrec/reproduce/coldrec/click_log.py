"""Clicks of a log, and rows of them: each beside an item that its user did not choose.

Shapes: ``N`` pairs of a user and an item.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mail_torchrec.config import Config
from mail_torchrec.data.items.candidate_item import candidate_item
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.data.source import Source
from mail_torchrec.reproduce.coldrec.split import ColdRecSplit, Ints

USER_GROUPS = (Group.GROUP_KEY, Group.ATTRIBUTE, Group.BEHAVIOUR)


@dataclass(frozen=True)
class ClickLog:
    """Distinct clicks of a log, with the columns of its users and items."""

    schema: Schema
    users: pa.Table
    """One row a user: the values of the user's first row."""
    items: pa.Table
    """One row an item, likewise."""
    users_N: Ints
    """Row of each click's user, in the order of the log."""
    items_N: Ints
    """Row of each click's item."""

    @staticmethod
    def read(config: Config) -> "ClickLog":
        """Reads the clicks of the training and test rows of a configuration."""
        schema, clicks = config.schema_, _clicks(config)
        tables, indices = [], []
        for key, groups in ((_user(schema), USER_GROUPS), (item_column(schema), (Group.ITEM,))):
            values = clicks[key].combine_chunks().dictionary_encode()
            codes = values.indices.to_numpy(zero_copy_only=False).astype(np.int64)
            _, first = np.unique(codes, return_index=True)
            columns = [name for name in clicks.column_names if name in _raw(schema, groups)]
            tables.append(clicks.select(columns).take(pa.array(first)).combine_chunks())
            indices.append(codes)
        users_N, items_N = indices
        _, distinct = np.unique(users_N * len(tables[1]) + items_N, return_index=True)
        distinct.sort()
        users, items = tables
        return ClickLog(schema, users, items, users_N[distinct], items_N[distinct])

    def counts(self) -> str:
        """Returns the numbers of clicks, users and items, in words."""
        of = f"{len(self.users):,} users and {len(self.items):,} items"
        return f"{len(self.users_N):,} clicks of {of}"

    def without(self, items: Ints) -> "ClickLog":
        """Returns the log with these items taken out of all histories.

        Args:
            items: rows of the items [items].
        """
        item = item_column(self.schema)
        hidden = set(self.items[item].take(pa.array(items)).to_pylist())
        users = self.users
        for name in self.schema.sequences:
            histories = users[self.schema.file_column(name)].to_pylist()
            kept = [
                [place for place, one in enumerate(history or []) if one not in hidden]
                for history in histories
            ]
            parts = {name, *self.schema.joined_parts(name)}
            if (action := self.schema.action_of(name)) is not None:
                parts.add(action)
            for column in {self.schema.file_column(part) for part in parts}:
                lists = users[column].to_pylist()
                shown = [[one[i] for i in of] for one, of in zip(lists, kept, strict=True)]
                array = pa.array(shown, users[column].type)
                users = users.set_column(users.column_names.index(column), column, array)
        return ClickLog(self.schema, users, self.items, self.users_N, self.items_N)

    def write(self, path: Path, clicks: Ints, choices: Ints, seed: int) -> None:
        """Writes clicks, and as many rows of the same users with items drawn from others.

        Args:
            path: file to write.
            clicks: indices of the clicks [clicks].
            choices: rows of the items that are drawn from [choices].
            seed: of the draws.
        """
        users = self.users_N[clicks]
        drawn = self._other_items(users, choices, np.random.default_rng(seed))
        items = np.concatenate([self.items_N[clicks], drawn])
        table = self.users.take(pa.array(np.concatenate([users, users])))
        for name in self.items.column_names:
            if name not in table.column_names:
                table = table.append_column(name, self.items[name].take(pa.array(items)))
        labels = np.repeat([1, 0], len(clicks))
        label = self.schema.file_column(self.schema.label)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.append_column(label, pa.array(labels)), path, row_group_size=4096)

    def _other_items(self, users_N: Ints, choices: Ints, random: np.random.Generator) -> Ints:
        """Draws an item for each user that the user clicked nowhere."""
        known = self.users_N * len(self.items) + self.items_N
        drawn = random.choice(choices, len(users_N))
        for _ in range(100):
            is_known = np.isin(users_N * len(self.items) + drawn, known)
            if not is_known.any():
                break
            drawn[is_known] = random.choice(choices, int(is_known.sum()))
        return drawn


def write_rows(log: ClickLog, split: ColdRecSplit, folder: Path, seed: int) -> None:
    """Writes the training rows, and the validation rows as test rows.

    Args:
        log: in whose histories no cold item is.
        split: of its clicks.
        folder: gets ``train`` and ``test``.
        seed: of the items that stand beside the clicks.
    """
    warm = np.unique(log.items_N[split.train])
    log.write(folder / "train" / "rows.parquet", split.train, warm, seed)
    held = np.concatenate([split.warm_validation, split.cold_validation])
    log.write(folder / "test" / "rows.parquet", held, np.unique(log.items_N), seed)


def _clicks(config: Config) -> pa.Table:
    """Reads the clicked rows of the training and test data."""
    schema, data = config.schema_, config.data
    train = Source(data.path(data.train), schema)
    sources = train, Source(data.path(data.test), schema, train.types)
    table = pa.concat_tables(one.read(group) for one in sources for group in one.row_groups)
    return table.filter(pc.equal(table[schema.file_column(schema.label)], 1))


def unread_columns(schema: Schema) -> Sequence[str]:
    """Lists the columns that ColdRec's pairs do not have: context, and labels behind the click."""
    groups = (Group.CONTEXT, Group.CONVERSION, Group.TASK_LABEL)
    return [name for name, column in schema.columns.items() if column.group in groups]


def item_column(schema: Schema) -> str:
    """Returns the files' column of the item's id.

    Raises:
        ValueError: the schema has none.
    """
    item = candidate_item(schema)
    if item is None:
        raise ValueError(
            "coldrec ranks items, and the schema has no column of group 'item' with one id a row; "
            "add the column of the item's id"
        )
    return schema.file_column(item)


def _user(schema: Schema) -> str:
    [key] = [n for n, column in schema.columns.items() if column.group is Group.GROUP_KEY]
    return schema.file_column(key)


def _raw(schema: Schema, groups: Sequence[Group]) -> set[str]:
    names = [name for name, column in schema.columns.items() if column.group in groups]
    return {schema.file_column(name) for name in names}
