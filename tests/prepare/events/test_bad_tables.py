"""Bad files and settings: one line with file, row or value, column and remedy."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.prepare.events.test_rows import prepare

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
TABLES: dict[str, dict[str, Any]] = {
    "shown": {"user_id": [1, 2], "time": [NOON, NOON], "item_id": [1, 2]},
    "clicks": {"user_id": [1, 2], "time": [NOON, NOON], "item_id": [1, 2]},
    "items": {"item_id": [1, 2], "brand": ["a", "b"], "since": [NOON, NOON]},
}
SETTINGS: dict[str, Any] = {
    "impressions": {"path": "shown.parquet"},
    "events": {"clicks": {"path": "clicks.parquet"}},
    "catalogues": {"items": {"path": "items.parquet", "key": "item_id", "valid_from": "since"}},
    "histories": {"seen": {"events": ["clicks"], "parts": {"seen_item": "item_id"}}},
    "labels": {"clicked": {"events": ["clicks"], "within": "1h", "by": ["item_id"]}},
}
HEAD = "events.yaml does not fit:\n"
MILLISECONDS = int(NOON.timestamp()) * 1000


def faults() -> Iterator[tuple[str, dict[str, Any], dict[str, Any], str]]:
    """Yields what is wrong, columns of tables, settings, and the message."""
    yield (
        "an unknown column",
        {},
        {"histories": {"seen": {"events": ["clicks"], "parts": {"a": "itemid"}}}},
        r"clicks.parquet: column 'itemid' \(histories.seen.parts.a\) should be in the file; it has "
        r"user_id, time, item_id; name the right one, perhaps 'item_id'",
    )
    yield (
        "keys of two types",
        {"items": {"item_id": ["1", "2"]}},
        {},
        r"items.parquet: column 'item_id' should be int64, as 'item_id' in shown.parquet, received "
        r"string; write both as one type",
    )
    yield (
        "a key that nulls made a float",
        {"clicks": {"user_id": [1.0, None]}},
        {},
        r"clicks.parquet: column 'user_id' \(events.clicks.user\) should be an integer .* received "
        r"double: nulls make floats of integers in pandas; write it as one of these",
    )
    yield (
        "a null key of a catalogue",
        {"items": {"item_id": [1, None]}},
        {},
        r"items.parquet: column 'item_id' \(catalogues.items.key\) should be set in all rows, "
        r"received null in row 1; leave such rows out",
    )
    yield (
        "two rows of a catalogue for one key and time",
        {"items": {"item_id": [2, 2]}},
        {},
        r"items.parquet row 0 and items.parquet row 1: column 'item_id' \(catalogues.items.key\) "
        r"should have one row at a time from 'since' on, received two for 2; leave one out",
    )
    yield (
        "two rows of a catalogue without times",
        {"items": {"item_id": [2, 2]}},
        {"catalogues": {"items": {"path": "items.parquet", "key": "item_id"}}},
        r"\(it has no valid_from\), received two for 2; leave one out",
    )
    yield (
        "a version that goes on after the next one begins",
        {
            "items": {
                "item_id": [2, 2],
                "since": [NOON, NOON.replace(hour=14)],
                "until": [NOON.replace(hour=15), None],
            }
        },
        {"catalogues": {"items": SETTINGS["catalogues"]["items"] | {"valid_until": "until"}}},
        r"row 0 and items.parquet row 1: column 'item_id' .* received two for 2; leave one out",
    )
    yield (
        "events without a user",
        {"clicks": {"user_id": pa.array([1, None])}},
        {},
        r"events.clicks: 1 of 2 rows have no user or no plausible time \(50.00%, the limit is "
        r"1.00%\), such as clicks.parquet: row 1 has no user; correct",
    )
    yield (
        "milliseconds taken for seconds",
        {"clicks": {"time": [MILLISECONDS] * 2}},
        {"unit": "s"},
        rf"clicks.parquet: column 'time' \(events.clicks.time\) should be a time between "
        rf"1990-01-01 and 2099-12-31, received {MILLISECONDS} \(unit: s; as ms it would be "
        r"2024-05-01: then write unit: ms\) in row 0",
    )
    yield (
        "a number without a unit",
        {"clicks": {"time": [MILLISECONDS] * 2}},
        {},
        r"clicks.parquet: column 'time' \(events.clicks.time\) is a number \(int64\), and should "
        r"have a unit; add unit: s, ms, us or ns",
    )
    yield (
        "a day as an instant",
        {"clicks": {"time": [date(2024, 5, 1)] * 2}},
        {},
        r"clicks.parquet: column 'time' .* should be an instant, received days .* write timestamps",
    )
    yield (
        "text as a time",
        {"shown": {"time": ["2024-05-01", "noon"]}},
        {},
        r"shown.parquet: column 'time' \(impressions.time\) should be a timestamp, or a number "
        r"with its unit, received string; write timestamps",
    )
    yield (
        "one name twice",
        {"items": {"time": [1, 2]}},
        {},
        r"column 'time' should come from one place, received it from impressions and catalogues."
        r"items; name others under 'columns'",
    )
    yield (
        "an unknown log",
        {},
        {"labels": {"clicked": {"events": ["buys"], "within": "1h"}}},
        r"labels.clicked: 'buys' should be one of the logs under events, which are clicks",
    )
    yield (
        "a span of time without a unit",
        {},
        {"events": {"clicks": SETTINGS["events"]["clicks"] | {"lag": 30}}},
        r"clicks.lag: should be a whole number and its unit \(ms, s, m, h or d\), .*, received 30",
    )
    for lag in ("36526d", "9" * 5000 + "s"):
        yield (
            f"a lag of centuries, {lag[:6]}",
            {},
            {"events": {"clicks": SETTINGS["events"]["clicks"] | {"lag": lag}}},
            rf"clicks.lag: should be a whole number and its unit .* at most 36525d, .*{lag[:5]}",
        )
    yield (
        "a history without an end",
        {},
        {"histories": {"seen": SETTINGS["histories"]["seen"] | {"max_length": 2**31}}},
        r"histories.seen.max_length: .*less than or equal to 2147483647",
    )
    yield (
        "a range of times that ends before it begins",
        {},
        {"time_range": ["2025-01-01", "2024-01-01"]},
        "time_range should begin before it ends, received 2025-01-01, 2024-01-01",
    )
    yield (
        "the unit of a timestamp",
        {},
        {"events": {"clicks": SETTINGS["events"]["clicks"] | {"unit": "s"}}},
        r"events.clicks.unit: 's' should be the unit of a time that is a number, and 'time' is "
        r"timestamp\[us, tz=UTC\] in clicks.parquet; leave unit out",
    )
    yield (
        "the unit of a catalogue without numbers",
        {},
        {"catalogues": {"items": SETTINGS["catalogues"]["items"] | {"unit": "s"}}},
        r"catalogues.items.unit: 's' should be .* and 'since' is timestamp.* leave unit out",
    )
    yield (
        "a URI",
        {},
        {"impressions": {"path": "s3://key:secret@bucket/shown"}},
        r"impressions.path should be a path on this machine or on storage mounted here, received a "
        r"URI \(s3:...\); give a local path",
    )
    yield (
        "values of another type in a filter",
        {},
        {"histories": {"seen": SETTINGS["histories"]["seen"] | {"where": {"item_id": ["1"]}}}},
        r"histories.seen.where.item_id: values should be of the type of column 'item_id' in "
        r"clicks.parquet \(int64\), received \['1'\]",
    )


@pytest.mark.parametrize(
    ("tables", "settings", "message"),
    [pytest.param(*fault, id=name) for name, *fault in faults()],
)
def test_a_fault_is_told_with_its_place_and_remedy(
    tables: dict[str, Any],
    settings: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, columns in TABLES.items():
        pq.write_table(pa.table(columns | tables.get(name, {})), f"{name}.parquet")
    Path("events.yaml").write_text(yaml.safe_dump(SETTINGS | settings))
    with pytest.raises(ValueError, match=message) as error:
        prepare(Path("events.yaml"), Path("out"), "--buckets", "2")
    [line] = str(error.value).strip().partition("Error: ")[2].removeprefix(HEAD).splitlines()
    assert line


def test_a_bad_line_of_a_csv_file_is_told_with_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shown", "items"):
        pq.write_table(pa.table(TABLES[name]), f"{name}.parquet")
    lines = ["user_id,time,item_id", *["1,2024-05-01T12:00:00Z,7"] * 400_000, "x,2024-05-01,8", ""]
    Path("clicks.csv").write_text("\n".join(lines))
    settings = SETTINGS | {"events": {"clicks": {"path": "clicks.csv"}}}
    Path("events.yaml").write_text(yaml.safe_dump(settings))
    message = (
        r"clicks.csv: In CSV column #0: Row #400002: CSV conversion error to int64: invalid value "
        r"'x'; correct the line, or give the column's type under events.clicks.types"
    )
    with pytest.raises(ValueError, match=message):
        prepare(Path("events.yaml"), Path("out"))


def test_types_of_columns_that_a_csv_file_lacks_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shown.csv").write_text("user_id,time,item_id\n1,2024-05-01T12:00:00Z,7\n")
    shown = {"path": "shown.csv", "types": {"item": "string"}}
    Path("events.yaml").write_text(yaml.safe_dump({"impressions": shown}))
    message = r"column 'item' \(impressions.types\) should be in the file; .*, perhaps 'item_id'"
    with pytest.raises(ValueError, match=message):
        prepare(Path("events.yaml"), Path("out"))


def test_the_name_of_the_output_folder_is_no_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, columns in TABLES.items():
        pq.write_table(pa.table(columns), f"{name}.parquet")
    Path("events.yaml").write_text(yaml.safe_dump(SETTINGS))
    for out in ("o[1]*?'", "plain"):
        prepare(Path("events.yaml"), Path(out))
    first, second = (
        [path.read_bytes() for path in sorted(Path(out).rglob("rows/*/*.parquet"))]
        for out in ("o[1]*?'", "plain")
    )
    assert first == second and first
