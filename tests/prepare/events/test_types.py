"""Columns of every type, name and format come out as they went in."""

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import yaml

from tests.prepare.events.test_rows import prepare

NOON = datetime(2024, 5, 1, 12, 0, 0, 123_000)
COLUMNS: dict[str, pa.Array] = {
    "small": pa.array([-7, None], pa.int8()),
    "hash": pa.array([2**64 - 1, None], pa.uint64()),
    "half": pa.array([0.5, None], pa.float32()),
    "truth": pa.array([True, None]),
    "coded": pa.array(["a", None]).dictionary_encode(),
    "large": pa.array(["b", None], pa.large_string()),
    "nothing": pa.nulls(2),
    "day": pa.array([date(2024, 5, 1), None]),
    "zoned": pa.array([NOON, None], pa.timestamp("ms", "Europe/Berlin")),
    "nano": pa.array([NOON, None], pa.timestamp("ns")),
    "cents": pa.array([Decimal("1.25"), None], pa.decimal128(9, 2)),
    "vector": pa.array([[1.5, 2.5], None], pa.list_(pa.float32(), 2)),
    "ids": pa.array([[1, None], []], pa.list_(pa.int32())),
    "words": pa.array([["x"], None], pa.list_(pa.string())),
    "instants": pa.array([[NOON], None], pa.list_(pa.timestamp("us", "UTC"))),
    'a"b; DROP TABLE v1 --': pa.array([1, 2]),
    "Small": pa.array([8, 9]),
    "key": pa.array([1, 2]),
    "täglich.mal": pa.array([3, None]),
}
LISTED = [name for name, values in COLUMNS.items() if not pa.types.is_nested(values.type)]
PLAIN = {"coded": pa.string(), "large": pa.string(), "nothing": pa.string()}


def test_columns_of_every_type_come_out_as_they_went_in(tmp_path: Path) -> None:
    start = {"user_id": [1, 2], "time": pa.array([NOON] * 2, pa.timestamp("us"))}
    pq.write_table(pa.table(start | COLUMNS), tmp_path / "shown.parquet")
    earlier = pa.array([NOON.replace(hour=11)] * 2, pa.timestamp("us"))
    pq.write_table(pa.table(start | COLUMNS | {"time": earlier}), tmp_path / "events.parquet")
    settings = {
        "impressions": {"path": str(tmp_path / "shown.parquet")},
        "events": {"log": {"path": str(tmp_path / "events.parquet")}},
        "histories": {"h": {"events": ["log"], "parts": {f"h {name}": name for name in LISTED}}},
    }
    (tmp_path / "events.yaml").write_text(yaml.safe_dump(settings))
    prepare(tmp_path / "events.yaml", tmp_path / "out")
    [path] = tmp_path.glob("out/rows/day=*/*.parquet")
    found = pq.ParquetFile(path).read()
    for name, values in COLUMNS.items():
        kind = PLAIN.get(name, values.type)
        assert found.schema.field(name).type.equals(kind, check_metadata=False), name
        assert found[name].to_pylist() == values.to_pylist()
        if name in LISTED:
            assert found.schema.field(f"h {name}").type.value_type == kind
            assert found[f"h {name}"].to_pylist() == [[value] for value in values.to_pylist()]


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_csv_gives_the_rows_that_parquet_gives(ending: str, tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": ["01", "01", None],
            "time": pa.array([NOON.replace(tzinfo=UTC)] * 3, pa.timestamp("ms", "UTC")),
            "price": [1.5, None, 3.0],
            "country": ["NA", None, "DE"],
        }
    )
    pq.write_table(table, tmp_path / "shown.parquet")
    with pa.output_stream(tmp_path / f"shown.{ending}", compression="detect") as file:
        pacsv.write_csv(table, file)
    rows: list[list[dict[str, Any]]] = []
    for name in ("shown.parquet", f"shown.{ending}"):
        shown: dict[str, Any] = {"path": str(tmp_path / name)}
        if name != "shown.parquet":
            shown["types"] = {"user_id": "string"}
        config, out = tmp_path / f"{name}.yaml", tmp_path / f"{name}-out"
        config.write_text(yaml.safe_dump({"impressions": shown}))
        prepare(config, out)
        [path] = out.glob("rows/day=*/*.parquet")
        rows.append(pq.ParquetFile(path).read().to_pylist())
    assert rows[0] == rows[1] and len(rows[0]) == 3
    assert {row["country"] for row in rows[0]} == {"NA", None, "DE"}


@pytest.mark.parametrize(
    ("unit", "kind", "value"),
    [
        ("s", pa.int32(), 1_714_564_800),
        ("s", pa.float64(), 1_714_564_800.123),
        ("ms", pa.int64(), 1_714_564_800_123),
        ("us", pa.int64(), 1_714_564_800_123_000),
        ("ns", pa.int64(), 1_714_564_800_123_000_000),
    ],
)
def test_a_number_is_the_instant_of_its_unit(
    unit: str, kind: pa.DataType, value: float, tmp_path: Path
) -> None:
    shown = {"user_id": [1], "time": pa.array([NOON], pa.timestamp("us"))}
    # Of two events one is at the impression's second or later, the other a second before.
    ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    events = {"user_id": [1, 1], "time": pa.array([value, value - ticks], kind), "n": [1, 2]}
    pq.write_table(pa.table(shown), tmp_path / "shown.parquet")
    pq.write_table(pa.table(events), tmp_path / "log.parquet")
    settings = {
        "impressions": {"path": str(tmp_path / "shown.parquet")},
        "events": {"log": {"path": str(tmp_path / "log.parquet"), "unit": unit}},
        "histories": {"h": {"events": ["log"], "parts": {"n": "n", "at": "event.time"}}},
    }
    (tmp_path / "events.yaml").write_text(yaml.safe_dump(settings))
    prepare(tmp_path / "events.yaml", tmp_path / "out")
    [path] = tmp_path.glob("out/rows/day=*/*.parquet")
    [row] = pq.ParquetFile(path).read(["n", "at"]).to_pylist()
    whole_second = kind == pa.int32()
    assert row["n"] == ([2, 1] if whole_second else [2])
    microsecond = 0 if whole_second else 123_000
    before = NOON.replace(hour=11, minute=59, second=59, microsecond=microsecond, tzinfo=UTC)
    assert row["at"][0] == before
