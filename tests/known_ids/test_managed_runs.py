"""Two days of training with managed ids: rows, export, requests, vectors, `ids show` and `diff`."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.ids.managed import ManagedIds
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.planning.scenarios import table_rows
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.train.continuation import ParentRun
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from mail_torchrec.vectors.embedder import Embedder
from tests.support.made_once import made_once
from tests.support.small_rows import SCHEMA, config_tree, write_rows
from tests.support.untrained_model import requests_of

ROWS, FALLBACK = 44, 4
FIRST_OWN = 2 + FALLBACK
MANAGED = {"ids": "managed", "rows": ROWS, "fallback_rows": FALLBACK, "admit": 2, "ttl_days": 9}
DAYS = ("2024-05-01", "2024-05-02")


def tree_of(root: Path, day: str) -> dict[str, Any]:
    tables = SCHEMA["tables"] | {"item": SCHEMA["tables"]["item"] | MANAGED}
    data = {"train": f"log/day={day}", "test": "test"}
    schema = SCHEMA | {"tables": tables}
    return config_tree(root, data=data, schema=schema, model={"zero_shot": None})


def make(root: Path) -> None:
    """Two days whose items differ by 25, the runs of both and the exported second one."""
    for number, day in enumerate(DAYS):
        path = root / "log" / f"day={day}" / "a.parquet"
        write_rows(path, 120, seed=number)
        rows = pq.read_table(path)
        for name, column in (("item", rows["item"]), ("history", rows["history"])):
            items = pc.list_flatten(column) if name == "history" else column
            items = pa.chunked_array([pc.add(items.combine_chunks(), 25 * number)])
            if name == "history":
                offsets = column.combine_chunks().offsets
                items = pa.ListArray.from_arrays(offsets, items.combine_chunks())
            rows = rows.set_column(rows.column_names.index(name), name, items)
        pq.write_table(rows, path, row_group_size=50)
    write_rows(root / "test" / "c.parquet", 60, seed=3)
    first, second = RunDir(root / "day1"), RunDir(root / "day2")
    train(Config.model_validate(tree_of(root, DAYS[0])), first)
    train(Config.model_validate(tree_of(root, DAYS[1])), second, parent=ParentRun(first.path))
    export(ExportOptions(second, root / "model"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "managed-runs", make)


def items_of(root: Path, name: str, day: str) -> ManagedIds:
    config = Config.model_validate(tree_of(root, day))
    found = Encoders.load(root / name / "vocabularies", config.schema_).tables["item"]
    assert isinstance(found, ManagedIds)
    return found


@pytest.fixture(scope="module")
def days(root: Path) -> tuple[ManagedIds, ManagedIds]:
    return items_of(root, "day1", DAYS[0]), items_of(root, "day2", DAYS[1])


def test_the_second_day_takes_rows_of_ids_that_it_does_not_have(
    days: tuple[ManagedIds, ManagedIds],
) -> None:
    first, second = days
    assert first.num_rows == second.num_rows == ROWS
    assert first.last_update.day == date(2024, 5, 1)
    assert second.last_update.day == date(2024, 5, 2)
    assert second.last_update.evicted and max(second.values.to_pylist()) > 39
    stayed = sorted({*first.values.to_pylist()} & {*second.values.to_pylist()})
    assert stayed and len(stayed) < len(second.values)
    ids = pa.array(stayed)
    assert first.encode(ids).tolist() == second.encode(ids).tolist()


def ids(*arguments: str) -> Any:
    done = CliRunner().invoke(main, ["ids", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def test_show_says_how_full_tables_are_and_who_is_in(
    root: Path, days: tuple[ManagedIds, ManagedIds]
) -> None:
    """The same of the run and of what was exported of it."""
    found = ids("show", str(root / "day2"), "--json")
    assert found == ids("show", str(root / "model"), "--json")
    item, update = found["item"], days[1].last_update
    assert (item["ids"], item["rows"], item["rows_of_ids"]) == ("managed", ROWS, ROWS - FIRST_OWN)
    assert item["owned"] == len(days[1].values) and item["full"] == item["owned"] / 38
    assert {name: item[name] for name in ("evicted", "refused", "rare")} == update.model_dump(
        include={"evicted", "refused", "rare"}
    )
    listed = ids("show", str(root / "day2"), "--table", "item", "--limit", "99", "--json")
    assert {one["value"]: one["row"] for one in listed} == dict(
        zip(days[1].values.to_pylist(), days[1].rows_V.tolist(), strict=True)
    )
    assert [one["count"] for one in listed] == sorted(
        (one["count"] for one in listed), reverse=True
    )
    assert "| item " in ids("show", str(root / "day1"))
    assert "last_seen" in ids("show", str(root / "day2"), "--table", "item")


def test_diff_says_who_came_and_who_left(root: Path, days: tuple[ManagedIds, ManagedIds]) -> None:
    paths = str(root / "day1"), str(root / "model")
    before, after = ({*day.values.to_pylist()} for day in days)
    found = ids("diff", *paths, "--json")["item"]
    assert found == {
        "ids": "managed",
        "before": len(before),
        "after": len(after),
        "stayed": len(before & after),
        "joined": len(after - before),
        "left": len(before - after),
        "other_row": 0,
    }
    listed = ids("diff", *paths, "--table", "item", "--limit", "99", "--json")
    assert {one["value"] for one in listed["joined"]} == after - before
    assert {one["value"] for one in listed["left"]} == before - after
    assert "joined:" in ids("diff", *paths, "--table", "item")
    assert "| item " in ids("diff", *paths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "nowhere"), "nowhere"),
        (("show", "day2", "--table", "items"), "--table should be one of"),
    ],
)
def test_what_cannot_be_shown_is_told(
    root: Path, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    done = CliRunner().invoke(main, ["ids", *arguments])
    assert done.exit_code == 1 and message in done.output and "Traceback" not in done.output


def test_the_manifest_tells_clients_how_ids_become_rows(
    root: Path, days: tuple[ManagedIds, ManagedIds]
) -> None:
    manifest = ArtifactManifest.read(root / "model")
    table = manifest.tables["item"]
    assert (table.ids, table.salt, table.fallback_rows) == ("managed", "item", FALLBACK)
    assert table.rows == ROWS and table.vocabulary == "vocabularies/item.parquet"
    stored = pq.read_table(root / "model" / table.vocabulary).to_pylist()
    rows = {one["value"]: one["row"] for one in stored if one["value"] is not None}
    for value in (26, 64, 10**12):
        word = int(hash64(pa.array([value]), table.salt)[0])
        row = rows.get(value, manifest.first_row + word % table.fallback_rows)
        assert days[1].encode(pa.array([value])).tolist() == [row]
    assert "fallback_rows" not in manifest.tables["city"].model_dump()


def test_requests_of_unknown_ids_are_scored_by_the_fallback_rows_and_counted(root: Path) -> None:
    scorer = Scorer(root / "model")
    [request] = requests_of(root / "test" / "c.parquet", scorer.manifest.schema_, [0])
    candidates = [request.candidates[0] | {"item": item} for item in (30, 10**12, 10**12 + 1, None)]
    encoded = scorer.encode([Request(request.user, candidates)])
    known, *unknown, missing = encoded["item"].tolist()
    assert known >= FIRST_OWN and missing == 1
    assert all(2 <= row < FIRST_OWN for row in unknown)
    scores = scorer.run(encoded, ["pctr"])["pctr"]
    assert len(scores) == 4 and np.isfinite(scores).all()
    metrics = ServerMetrics()
    metrics.count(encoded, scorer.manifest)
    labels = {"version": scorer.manifest.version, "column": "item"}
    assert metrics.registry.get_sample_value("mail_unknown_ids_total", labels) == 2


def test_vectors_are_of_the_ids_that_own_a_row(
    root: Path, days: tuple[ManagedIds, ManagedIds]
) -> None:
    embedder = Embedder(root / "model")
    found, rows = embedder.vocabulary()
    assert found.to_pylist() == days[1].values.to_pylist()
    assert rows.tolist() == days[1].rows_V.tolist()
    assert len(embedder.items(rows)) == len(found)
    known, _ = embedder.known_items(pa.array([10**12, 30]))
    assert known.to_pylist() == [30]


def test_the_planner_takes_the_rows_of_the_settings(root: Path) -> None:
    config = Config.model_validate(tree_of(root, DAYS[0]))
    others = dict.fromkeys({*config.schema_.table_names} - {"item"}, 10)
    assert table_rows(config.schema_, others)["item"] == ROWS
