"""Rows of random logs against loops over all events; interruptions; both engines."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.prepare.events import pipeline
from tests.support import event_logs
from tools.shop import MAX_HISTORY, Shop
from tools.shop_log import write_shop


def prepare(config: Path, out: Path, *options: str) -> str:
    """Runs the command and returns its output; raises its error where it fails."""
    command = ["prepare", "events", "--config", str(config), "--out", str(out), "--threads", "1"]
    done = CliRunner().invoke(main, [*command, *options])
    if done.exit_code:
        raise ValueError(done.output)
    return done.output


def written_rows(out: Path) -> list[dict[str, Any]]:
    """Reads the rows, with times as seconds of the random world."""
    rows = []
    for path in sorted(out.glob("rows/day=*/*.parquet")):
        for row in pq.ParquetFile(path).read().to_pylist():
            assert path.parent.name == f"day={row['at'].date()}"
            row["at"] = seconds(row["at"])
            for name in ("all_time", "liked_at"):
                row[name] = [seconds(time) for time in row[name]]
            rows.append(row)
    return rows


def seconds(time: datetime) -> int:
    return (time - event_logs.START) // timedelta(seconds=1)


def text(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(str(sorted(row.items())) for row in rows)


SEEDS = [8, 11, 10, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 6, 17))]


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_are_those_of_loops_over_all_events(seed: int, tmp_path: Path) -> None:
    world = event_logs.random_world(seed)
    prepare(event_logs.write_world(world, tmp_path), tmp_path / "out", "--buckets", "2")
    found, expected = written_rows(tmp_path / "out"), event_logs.expected_rows(world)
    assert text(found) == text(expected)
    assert sum(row["bought"] for row in found) and len(found) > 60
    assert 1 < max(len(row["all_item"]) for row in found) <= world.length
    prepared = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert prepared["counts"] == {
        "without_user": sum(row["uid"] is None for row in expected),
        "not in catalogues.items": sum(not is_in_items(world, row) for row in expected),
        "not in catalogues.users": sum(row["age"] is None for row in expected),
        "empty histories.all": sum(not row["all_item"] for row in expected),
        "empty histories.liked": sum(not row["liked_item"] for row in expected),
        "positive labels.bought": sum(row["bought"] for row in expected),
        "incomplete labels.bought": sum(row["at"] + world.within > world.last for row in expected),
    }
    rows = [tuple(row.items()) for row in world.tables["clicks"]]
    assert prepared["tables"]["events.clicks"]["duplicates"] == len(rows) - len(set(rows)) >= 5


def is_in_items(world: event_logs.World, row: dict[str, Any]) -> bool:
    versions = [v | {"brand": "any"} for v in world.tables["items"]]
    tables = world.tables | {"items": versions}
    at_world = event_logs.World(tables, world.lags, 1, 1, "all")
    return event_logs.brand_at(at_world, row["item"], row["at"]) is not None


def test_a_killed_preparation_goes_on_and_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = event_logs.random_world(0)
    config, out, done = event_logs.write_world(world, tmp_path), tmp_path / "out", []
    rows, read = pipeline._write_rows, pipeline._read_table

    def counting(*arguments: Any) -> Any:
        folder = arguments[-1]
        done.append(folder.name)
        (folder / "half-written").write_text("left behind by a kill")
        if len(done) == 7:
            raise KeyboardInterrupt
        return (rows if folder.name.startswith("rows") else read)(*arguments)

    monkeypatch.setattr(pipeline, "_write_rows", counting)
    monkeypatch.setattr(pipeline, "_read_table", counting)
    with pytest.raises(ValueError):
        prepare(config, out, "--buckets", "3")  # Click reports the interruption
    assert done[5:] == ["rows-00000.half", "rows-00001.half"]
    with monkeypatch.context() as patch:  # killed once more, with some of the rows in place
        patch.setattr(pipeline, "write_atomically", lambda *_: 1 / 0)
        with pytest.raises(ValueError):
            prepare(config, out, "--buckets", "3")
    prepare(config, out, "--buckets", "3")
    assert done[7:] == ["rows-00001.half", "rows-00002.half"]
    assert text(written_rows(out)) == text(event_logs.expected_rows(world))
    names = {path.name for path in out.iterdir()}
    assert names == {".lock", "prepared.json", "rows"}
    (tmp_path / "clicks" / "2.csv").write_text("uid,at,item,kind\n")
    with pytest.raises(ValueError, match=r"begun with other settings or files: .*2.csv is new; ch"):
        prepare(config, out, "--buckets", "3")


@pytest.mark.slow
def test_pyspark_gives_the_rows_that_duckdb_gives(tmp_path: Path) -> None:
    pytest.importorskip(
        "pyspark",
        reason="the extra 'spark' is not installed, by choice: pip install -e '.[spark]'",
    )
    config = event_logs.write_world(event_logs.random_world(11), tmp_path)
    for engine in ("pyspark", "duckdb"):
        prepare(config, tmp_path / engine, "--buckets", "2", "--engine", engine)
    spark, duckdb = tmp_path / "pyspark", tmp_path / "duckdb"
    assert text(written_rows(spark)) == text(written_rows(duckdb))
    schemas = [pq.read_schema(next(out.glob("rows/day=*/*.parquet"))) for out in (spark, duckdb)]
    assert schemas[0].equals(schemas[1])
    records = [json.loads((out / "prepared.json").read_text()) for out in (spark, duckdb)]
    assert all(records[0][key] == records[1][key] for key in ("tables", "counts", "days"))


@pytest.mark.slow
def test_rows_of_the_invented_shop_are_those_that_it_writes_itself(tmp_path: Path) -> None:
    write_shop(Shop(rows=2_000, days=3, users=200, items=60, seed=3), tmp_path)
    validity = {"valid_from": "valid_from", "valid_until": "valid_until"}
    parts = {f"seen_{name}": name for name in ("brand", "action", "time")}
    parts |= {"seen_item": "item_id", "seen_category": "items.category"}
    settings = {
        "impressions": {"path": str(tmp_path / "impressions")},
        "events": {"shop": {"path": str(tmp_path / "events")}},
        "catalogues": {
            name: {"path": str(tmp_path / f"{name}.parquet"), "key": key} | validity
            for name, key in (("items", "item_id"), ("users", "user_id"))
        },
        "histories": {"seen": {"events": ["shop"], "max_length": MAX_HISTORY, "parts": parts}},
    }
    (tmp_path / "events.yaml").write_text(yaml.safe_dump(settings))
    prepare(tmp_path / "events.yaml", tmp_path / "out")
    found, expected = (
        [row for path in folder.glob("day=*/*") for row in pq.ParquetFile(path).read().to_pylist()]
        for folder in (tmp_path / "out" / "rows", tmp_path / "rows")
    )
    assert text(found) == text([{name: row[name] for name in found[0]} for row in expected])
