"""Stores plain rows as other writers do: other containers, files, partitions, padding.

Everything here keeps the values; only what holds them is chosen at random.
"""

import decimal
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.plain import TREE, TYPES, Row, row

PADDINGS: dict[str, tuple[int | str, str | None]] = {
    "history": (-77, "actions"),
    "tags": ("<pad>", None),
}
"""Padding of each padded list, and the actions that are padded along with it."""
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_INTEGERS = [
    *(pa.int64(), pa.int8(), pa.int32(), pa.uint16(), pa.uint64()),
    *(pa.decimal128(22, 0), pa.decimal256(60, 2), pa.dictionary(pa.int32(), pa.int64())),
]
_TEXTS = [
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()),
    pa.dictionary(pa.int8(), pa.string()),
]
_NOTHING = [pa.null(), pa.float64(), pa.int64(), pa.string()]


def tree_with_padding(columns: Sequence[str]) -> dict[str, Any]:
    """The schema of ``tests/support/plain.py`` with the padding of some columns."""
    padded = {
        name: {**TREE["columns"][name], "padding": PADDINGS[name][0]}
        for name in TREE["columns"]
        if name in columns
    }
    return {**TREE, "columns": {**TREE["columns"], **padded}}


def random_rows(random: Random, max_size: int = 12) -> list[Row]:
    """Rows as :func:`tests.support.plain.any_rows` draws them, twenty times as fast."""
    ids = [None, *range(-3, 6), -124, 2**62, -(2**62)]
    texts = [None, "", "x", "日本", "z" * 40, "7"]

    def some(values: list[Any], longest: int) -> list[Any]:
        return random.choices(values, k=random.choice([0, random.randint(1, longest)]))

    rows = []
    for number in range(random.randint(1, max_size)):
        history = some(ids, 7)
        values = {
            "history": random.choice([history, history, None]),
            "tags": random.choice([some(texts, 5), some(texts, 5), None]),
            "income": random.choice([None, random.uniform(-9, 9)]),
            "hour": random.choice([None, random.randint(0, 23)]),
        }
        values["actions"] = None if values["history"] is None else [2] * len(history)
        ints = {"user": random.randint(0, 4), "item": random.choice(ids)}
        rows.append(row(number, **values, **ints, city=random.choice(texts)))
    if random.random() < 0.2:  # a column without values
        name = random.choice(["city", "item", "hour", "income", "tags"])
        rows = [one | {name: None} for one in rows]
    return rows


def padded_rows(rows: Sequence[Row], columns: Sequence[str], random: Random) -> list[Row]:
    """Pads lists before and behind, some to one length."""
    longest = 8
    padded = []
    for one in rows:
        changed = dict(one)
        for name in columns:
            padding, actions = PADDINGS[name]
            values = list(one[name] or [])
            before = random.randint(0, longest - len(values)) if random.random() < 0.5 else 0
            behind = longest - len(values) - before if random.random() < 0.8 else 0
            changed[name] = [padding] * before + values + [padding] * behind
            if actions is not None:
                changed[actions] = [0] * before + list(one[actions] or []) + [0] * behind
        padded.append(changed)
    return padded


def store(folder: Path, rows: Sequence[Row], random: Random) -> None:
    """Writes rows below a folder: split, partitioned, in any containers and row groups."""
    partition = random.choice([None, None, "hour", "city"])
    if partition == "city" and {"", "7"} & {one["city"] for one in rows}:
        partition = None  # a folder's name holds no empty text, and 7 is an integer there
    groups: dict[str, list[Row]] = defaultdict(list)
    for one in rows:
        groups[_folder_name(partition, one)].append(one)
    number = 0
    for name, part in groups.items():
        random.shuffle(part)
        cuts = sorted(random.randint(0, len(part)) for _ in range(random.randint(0, 2)))
        for start, stop in zip([0, *cuts], [*cuts, len(part)], strict=True):
            number += 1
            path = folder / name / f"{number}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, stored_table(part[start:stop], partition, random), random)


def stored_table(rows: Sequence[Row], partition: str | None, random: Random) -> pa.Table:
    """Stores rows as a table whose columns are of random containers, but for one column."""
    columns = {
        field.name: stored_column([row[field.name] for row in rows], field.type, random)
        for field in TYPES
        if field.name != partition
    }
    names = list(columns)
    random.shuffle(names)
    return pa.table({name: columns[name] for name in names})


def stored_column(values: list[Any], kind: pa.DataType, random: Random) -> pa.Array:
    """Stores the values of a column in a container of their type."""
    if pa.types.is_list(kind):
        return _stored_lists(values, kind.value_type, random)
    if all(value is None for value in values):
        return pa.nulls(len(values), random.choice(_NOTHING))
    if pa.types.is_floating(kind):
        return pa.array(values, kind)
    if set(values) <= {0, 1} and random.random() < 0.1:
        return pa.array(values, pa.int8())
    kinds = _TEXTS if pa.types.is_string(kind) else _INTEGERS
    for candidate in random.sample(kinds, len(kinds)):
        try:
            return _stored_values(values, candidate)
        except (pa.ArrowInvalid, OverflowError):  # too wide for it
            continue
    raise AssertionError(f"no container for {values}")


def _stored_values(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_decimal(kind):
        return pa.array([None if v is None else decimal.Decimal(v) for v in values], kind)
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    if kind in (pa.binary(), pa.binary_view(), pa.string_view()):
        return pa.array(values, pa.string()).cast(kind)
    return pa.array(values, kind)


def _stored_lists(rows: list[Any], element: pa.DataType, random: Random) -> pa.Array:
    values = [value for row in rows for value in row or []]
    if not values and all(row is None for row in rows) and random.random() < 0.5:
        return pa.nulls(len(rows))
    stored = stored_column(values, element, random) if values else pa.nulls(0, element)
    if all(value is None for value in values) and random.random() < 0.5:
        stored = pa.nulls(len(values))
    lengths = [len(row or []) for row in rows]
    starts = [sum(lengths[:index]) for index in range(len(rows))]
    mask = pa.array([row is None for row in rows], pa.bool_())
    if rows and len(set(lengths)) == 1 and lengths[0] and random.random() < 0.5:
        return pa.FixedSizeListArray.from_arrays(stored, lengths[0])
    kind: Callable[..., pa.Array]
    kind, width, is_view = random.choice(
        [
            (pa.ListArray, pa.int32(), False),
            (pa.LargeListArray, pa.int64(), False),
            (pa.ListViewArray, pa.int32(), True),
            (pa.LargeListViewArray, pa.int64(), True),
        ]
    )
    if is_view:
        sizes = pa.array(lengths, width)
        return kind.from_arrays(pa.array(starts, width), sizes, stored, mask=mask)  # type: ignore
    return kind.from_arrays(pa.array([*starts, len(values)], width), stored, mask=mask)  # type: ignore


def _folder_name(partition: str | None, row: Row) -> str:
    if partition is None:
        return ""
    value = row[partition]
    return f"{partition}={_NULL_PARTITION if value is None else quote(str(value), safe='')}"


def _write(path: Path, table: pa.Table, random: Random) -> None:
    start = 0
    with pq.ParquetWriter(
        path,
        table.schema,
        use_dictionary=random.random() < 0.5,
        data_page_version=random.choice(["1.0", "2.0"]),
        compression=random.choice(["snappy", "none", "zstd"]),
        store_schema=True,
    ) as writer:
        while start < len(table):
            size = random.randint(1, len(table))
            writer.write_table(table.slice(start, size))
            start += size
