"""Derived columns and buckets have the values that a plain reference computes row by row."""

import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.derived.derive import with_derived
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from tests.data.ids.test_hashing import mix, reference
from tests.support.derived_rows import DERIVED, derived_rows, write_derived_rows

Row = dict[str, Any]
ROWS = derived_rows(160)


def seconds(value: datetime | date) -> float:
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    return value.timestamp()


def cross(*values: Any) -> int | None:
    """The cross by the definition in ``data/ids/hashing.py``, as a signed integer."""
    if all(value is None for value in values):
        return None
    found = 0
    for value in values:
        found = mix(found ^ reference(value, "cross"))
    return found - 2**64 if found >= 2**63 else found


def local_hour(row: Row) -> int:
    return int(row["time"].astimezone(ZoneInfo("Europe/Berlin")).hour)


def item_age(row: Row) -> float | None:
    if row["published"] is None:
        return None
    return (row["time"].timestamp() - row["published"]) / 86_400


EXPECTED: dict[str, Callable[[Row], Any]] = {
    "gaps": lambda row: [
        None if time is None else (row["time"] - time).total_seconds() / 3600
        for time in row["times"]
    ],
    "local_hour": local_hour,
    "weekday": lambda row: row["time"].weekday(),
    "city_hour": lambda row: cross(row["city"], local_hour(row)),
    "city_item": lambda row: cross(row["city"], row["item"], row["flag"]),
    "item_age": item_age,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("rows")
    write_derived_rows(folder / "a.parquet", ROWS[:90])
    write_derived_rows(folder / "b.parquet", ROWS[90:], row_group_size=17)
    return Source(str(folder), Schema.model_validate(DERIVED))


@pytest.fixture(scope="module")
def encoders(source: Source) -> Encoders:
    return fit_encoders(source, Schema.model_validate(DERIVED), ColdStartSettings())


def test_derived_values_are_those_of_a_plain_reference(source: Source) -> None:
    table = pa.concat_tables([source.read(group) for group in source.row_groups])
    schema = Schema.model_validate(DERIVED)
    for name, expected in EXPECTED.items():
        found, wanted = table[schema.file_column(name)].to_pylist(), list(map(expected, ROWS))
        assert found == (pytest.approx(wanted) if name == "item_age" else wanted), name


def test_numbers_are_bucketed_and_standardised(source: Source, encoders: Encoders) -> None:
    schema = Schema.model_validate(DERIVED)
    encode = ChunkEncoder(schema, encoders, ColdStartSettings(), 0)
    chunk = Chunk.concatenate([encode(source.read(group), "rows") for group in source.row_groups])
    income = sorted(row["income"] for row in ROWS if row["income"] is not None)
    edges = sorted({income[i * len(income) // 4] for i in (1, 2, 3)})
    for name, edges_of, column in [
        ("income_bucket", edges, "income"),
        ("price_bucket", [5], "price"),
    ]:
        found = chunk.scalars_CR[schema.scalars.index(name)].tolist()
        expected = [
            1 if row[column] is None else 2 + sum(edge <= row[column] for edge in edges_of)
            for row in ROWS
        ]
        assert found == expected, name
        assert encoders.num_rows[name] == 3 + len(edges_of)
    gaps = [
        [1 if gap is None else 2 + sum(edge <= gap for edge in (1, 24, 168)) for gap in gaps[-6:]]
        for gaps in map(EXPECTED["gaps"], ROWS)
    ]
    assert chunk.lists["gaps"].values.tolist() == [row for rows in gaps for row in rows]
    numbers = {
        "item_age": [None if (age := item_age(row)) is None else math.log1p(age) for row in ROWS],
        "price": [None if row["price"] is None else float(row["price"]) for row in ROWS],
        "since": [None if row["since"] is None else seconds(row["since"]) for row in ROWS],
    }
    for name, values in numbers.items():
        known = np.array([value for value in values if value is not None])
        expected_R = [
            0.0 if value is None else (value - known.mean()) / known.std() for value in values
        ]
        found_R = chunk.numeric_RN[:, schema.numeric().index(name)]
        np.testing.assert_allclose(found_R, expected_R, rtol=1e-5, atol=1e-6, err_msg=name)


def test_buckets_do_not_depend_on_the_order_of_rows(tmp_path: Path, encoders: Encoders) -> None:
    schema = Schema.model_validate(DERIVED)
    write_derived_rows(tmp_path / "a.parquet", ROWS[::-1], row_group_size=7)
    again = fit_encoders(Source(str(tmp_path), schema), schema, ColdStartSettings())
    again.save(tmp_path / "run")
    loaded = Encoders.load(tmp_path / "run", schema)
    for name in ("income_bucket", "gaps", "price_bucket"):
        entries = [one.tables[name].manifest_entry("v", name) for one in (encoders, again, loaded)]
        assert entries[0] == entries[1] == entries[2]
        assert entries[0].edges is not None


def changed(**columns: Any) -> Schema:
    tree = {name: DERIVED["columns"].get(name, {}) | given for name, given in columns.items()}
    return Schema.model_validate(DERIVED | {"columns": DERIVED["columns"] | tree})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"weekday": {"zone": None}}, "holds times of the zone Asia/Tokyo, and .* counts in UTC"),
        ({"item_age": {"time_unit": None}}, "'published' holds integers; set time_unit"),
        ({"weekday": {"time_unit": "day"}}, "time_unit is for integers, time hold"),
        ({"weekday": {"column": "city"}}, "'city' should be a timestamp, a date or an integer"),
        ({"city_hour": {"cross": ["city", "income"]}}, "'income' should be an integer, string"),
    ],
)
def test_columns_that_cannot_be_derived_are_refused(
    source: Source, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Source(source.path, changed(**columns))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"weekday": {"zone": "Berlin"}}, "zone should be a time zone such as Europe/Berlin"),
        ({"weekday": {"cross": ["a", "b"]}}, "give one of cross, part and age_of"),
        ({"city_hour": {"cross": ["city"]}}, "cross should name two columns or more"),
        ({"city_hour": {"cross": ["city", "item"]}}, "'item' is a column of items"),
        ({"age": {"zone": "UTC"}}, "zone, time_unit and age_unit are for columns with"),
        (
            {"item_age": {"kind": "categorical"}},
            "an age is a number.*schema.tables.item_age: {ids: ",
        ),
        ({"clicked": {"part": "hour"}}, "part is for attributes, behaviours, context and items"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        changed(**columns)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "ids 'buckets' needs 'buckets'"),
        ({"buckets": [3, 3]}, "edges that rise"),
        ({"buckets": []}, "edges that rise"),
        ({"buckets": 0}, "should be a number of buckets from 2 to 65536, or a list of the edges"),
        ({"buckets": "4"}, "or a list of the edges between them, received '4'"),
        ({"buckets": 4, "rows": 9}, "rows and min_count are of other ids"),
    ],
)
def test_unusable_buckets_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schema.model_validate(
            DERIVED | {"tables": DERIVED["tables"] | {"gaps": {"ids": "buckets"} | settings}}
        )


def test_bad_numbers_and_times_are_told_with_their_row(tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS[:9]]
    rows[7]["income"] = math.nan
    write_derived_rows(tmp_path / "a.parquet", rows, row_group_size=5)
    schema = Schema.model_validate(DERIVED)
    source = Source(str(tmp_path), schema)
    with pytest.raises(
        ValueError, match=r"a\.parquet, row group 1: column 'income' should be finite, .* row 2 of"
    ):
        fit_encoders(source, schema, ColdStartSettings())
    table = pa.table({"published": [5, 2**60], "time": pa.array([0, 0], pa.timestamp("us"))})
    with pytest.raises(ValueError, match=r"'published' should hold times of .* in row 1"):
        with_derived(table, schema, "rows")
