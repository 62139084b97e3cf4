"""The shop's log: what its files promise holds in them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tools.shop_log import main

COMMAND = ["--rows", "900", "--days", "3", "--users", "120", "--items", "50"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    done = CliRunner().invoke(main, [*COMMAND, "--out", str(folder)])
    assert done.exit_code == 0, done.output
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pads.dataset(folder, partitioning="hive").to_table().to_pylist()
    return found


def test_a_history_is_the_newest_events_strictly_before_its_impression(folder: Path) -> None:
    events: dict[str, list[dict[str, Any]]] = {}
    for event in sorted(rows(folder / "events"), key=lambda event: event["time"]):
        events.setdefault(event["user_id"], []).append(event)
    same_second = 0
    for row in rows(folder / "rows"):
        of_user = events.get(row["user_id"], [])
        same_second += any(event["time"] == row["time"] for event in of_user)
        before = [event for event in of_user if event["time"] < row["time"]][-30:]
        assert row["seen_time"] == [event["time"] for event in before]
        found = {*zip(row["seen_item"], row["seen_action"], row["seen_brand"], strict=True)}
        assert found <= {(one["item_id"], one["action"], one["brand"]) for one in of_user}
    assert same_second


def test_rows_are_the_raw_impressions_with_the_catalogues_of_their_time(folder: Path) -> None:
    made, raw = rows(folder / "rows"), rows(folder / "impressions")
    shared = ["user_id", "item_id", "time", "position", "clicked", "bought", "spent", "weight"]
    assert [[row[name] for name in shared] for row in made] == [
        [row[name] for name in shared] for row in raw
    ]
    for file, key, names in (
        ("items.parquet", "item_id", ["category", "brand", "price", "content", "listed"]),
        ("users.parquet", "user_id", ["age", "city", "plus"]),
    ):
        versions: dict[Any, list[dict[str, Any]]] = {}
        for version in pq.ParquetFile(folder / file).read().to_pylist():
            versions.setdefault(version[key], []).append(version)
        assert max(map(len, versions.values())) == 2
        for row in made:
            [valid] = [
                version
                for version in versions[row[key]]
                if version["valid_from"] <= row["time"]
                and (version["valid_until"] is None or row["time"] < version["valid_until"])
            ]
            assert [row[name] for name in names] == [valid[name] for name in names]


def test_every_day_has_new_users_and_items_and_as_many_rows_as_asked_for(folder: Path) -> None:
    made = rows(folder / "rows")
    assert len(made) == 900
    for key in ("user_id", "item_id"):
        last = {row[key] for row in made if str(row["day"]) == "2024-05-03"}
        older = {row[key] for row in made if str(row["day"]) < "2024-05-03"}
        assert last - older
    weights = {row["weight"] for row in made if row["clicked"]}
    assert weights == {1.0} and min(row["weight"] for row in made if not row["clicked"]) > 1


def test_a_seed_gives_the_same_log_and_another_one_another(folder: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        out = tmp_path / str(seed)
        CliRunner().invoke(main, [*COMMAND, "--seed", str(seed), "--out", str(out)])
    prices = [
        pq.ParquetFile(place / "items.parquet").read()["price"].to_numpy()
        for place in (folder, tmp_path / "1", tmp_path / "2")
    ]
    assert np.array_equal(prices[0], prices[1])
    assert len(prices[2]) != len(prices[0]) or not np.array_equal(prices[2], prices[0])
