"""Random event logs of a few users and instants, and their rows by plain loops over all events."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import yaml

START = datetime(2024, 5, 1, 23, 59, 30, tzinfo=UTC)
"""Half a minute before midnight, so that the rows of a minute lie in two days."""
Row = dict[str, Any]


@dataclass
class World:
    """Tables of a random world, and how they are joined.

    Args:
        tables: rows of each table.
        lags: seconds by log or catalogue.
        length: most entries of a history.
        within: seconds of the label's window.
        attribution: of the label, ``last`` or ``all``.
        drops: whether impressions are left out whose window ends after the last purchase.
    """

    tables: dict[str, list[Row]]
    lags: dict[str, int]
    length: int
    within: int
    attribution: str
    drops: bool = False

    @property
    def last(self) -> int:
        """Second of the last purchase."""
        return max(event["at"] for event in self.tables["buys"])


def random_world(seed: int) -> World:
    """Draws few users, items and instants, so that ties and repeated events abound."""
    random = np.random.default_rng(seed)

    def pick(*values: Any) -> Any:
        return values[random.integers(len(values))]

    def pick_times() -> list[int]:
        return sorted(int(time) - 10 for time in random.permutation(70)[:3])

    def event(count: int, **more: list[Any]) -> list[Row]:
        return [
            {"uid": f"u{random.integers(5)}", "at": int(random.integers(60)), "item": pick(1, 2, 3)}
            | {name: pick(*values) for name, values in more.items()}
            for _ in range(count)
        ]

    impressions = event(120, clicked=[0, 1])
    for row in impressions[::9]:
        row["uid"] = None
    items = [{"item": key, "since": t} for key in (1, 2) for t in pick_times()]
    for row in items:
        row |= {"until": pick(None, row["since"] + 500), "brand": pick("a", "b", None)}
    for row, after in pairwise(items):  # the newest version of each key is last
        row["until"] = None if after["item"] == row["item"] else row["since"] + pick(5, 20)
    users = [{"uid": f"u{number}", "age": int(random.integers(9))} for number in range(4)]
    tables = {"impressions": impressions, "items": items, "users": users}
    tables |= {"clicks": event(90, kind=["view", "like"]), "buys": event(40, kind=["buy"])}
    tables["clicks"] += tables["clicks"][:5]
    lags = {name: int(random.integers(3)) * 4 for name in ("clicks", "buys", "items")}
    return World(
        tables, lags, int(pick(1, 3, 50)), int(pick(1, 10)), pick("last", "all"), seed % 2 == 0
    )


def write_world(world: World, folder: Path) -> Path:
    """Writes the tables (clicks as CSV in two files) and their settings; returns these."""
    for name, rows in world.tables.items():
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        for key in {"at", "since", "until"} & set(columns):
            times = [None if t is None else START + timedelta(seconds=int(t)) for t in columns[key]]
            columns[key] = pa.array(times, pa.timestamp("us", "UTC"))
        if name == "buys":  # whole milliseconds, as a number
            columns["at"] = columns["at"].cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
        _write(pa.table(columns), folder / name, is_csv=name == "clicks")
    path = folder / "events.yaml"
    path.write_text(yaml.safe_dump(_settings(world, folder), sort_keys=False))
    return path


def _write(table: pa.Table, folder: Path, is_csv: bool) -> None:
    folder.mkdir(parents=True)
    half = table.num_rows // 2
    for number, part in enumerate((table.slice(0, half), table.slice(half))):
        if is_csv:
            pacsv.write_csv(part, folder / f"{number}.csv")
        else:
            pq.write_table(part, folder / f"{number}.parquet")


def _settings(world: World, folder: Path) -> dict[str, Any]:
    lags = {name: f"{seconds}s" for name, seconds in world.lags.items()}
    parts = {"item": "item", "brand": "items.brand", "kind": "kind", "log": "event.log"}
    parts |= {"time": "event.time"}
    own_brand = {"columns": {"brand": "brand"}}
    validity = {"valid_from": "since", "valid_until": "until", "lag": lags["items"]}
    window = {"within": f"{world.within}s", "by": ["item"], "attribution": world.attribution}
    window |= {"drop_incomplete": world.drops}
    return {
        "user": "uid",
        "time": "at",
        "unit": "ms",
        "impressions": {"path": str(folder / "impressions")},
        "events": {
            name: {"path": str(folder / name), "lag": lags[name]} for name in ("clicks", "buys")
        },
        "catalogues": {
            "items": {"path": str(folder / "items"), "key": "item"} | validity | own_brand,
            "users": {"path": str(folder / "users"), "key": "uid"},
        },
        "histories": {
            "all": {
                "events": ["clicks", "buys"],
                "max_length": world.length,
                "parts": {f"all_{part}": source for part, source in parts.items()},
            },
            "liked": {
                "events": ["clicks"],
                "where": {"kind": ["like"]},
                "max_length": world.length,
                "parts": {"liked_item": "item", "liked_at": "at"},
            },
        },
        "labels": {"bought": {"events": ["buys"]} | window},
    }


def expected_rows(world: World) -> list[Row]:
    """Builds the rows by loops over all events, versions and impressions."""
    rows = []
    for shown in world.tables["impressions"]:
        if world.drops and shown["at"] + world.within > world.last:
            continue
        row = shown | {"brand": brand_at(world, shown["item"], shown["at"])}
        ages = [u["age"] for u in world.tables["users"] if u["uid"] == shown["uid"]]
        row["age"] = ages[0] if ages else None
        both = known_before(world, shown, ["clicks", "buys"])
        row |= {f"all_{part}": [e[part] for e in both] for part in ("item", "brand", "kind")}
        row |= {"all_log": [e["log"] for e in both], "all_time": [e["at"] for e in both]}
        liked = known_before(world, shown, ["clicks"], "like")
        row |= {"liked_item": [e["item"] for e in liked], "liked_at": [e["at"] for e in liked]}
        rows.append(
            row | {"bought": int(any(follows(world, b, shown) for b in world.tables["buys"]))}
        )
    return rows


def follows(world: World, event: Row, shown: Row) -> bool:
    """Returns true where an event makes an impression positive."""

    def may(impression: Row) -> bool:
        same = event["uid"] == impression["uid"] and event["item"] == impression["item"]
        return same and event["at"] >= impression["at"]

    if not may(shown) or event["at"] - shown["at"] >= world.within:
        return False
    before = [i["at"] for i in world.tables["impressions"] if may(i)]
    return world.attribution == "all" or shown["at"] == max(before)


def brand_at(world: World, item: int, at: int) -> str | None:
    """Returns the brand of the version that was valid and known."""
    lag = world.lags["items"]
    versions = [v for v in world.tables["items"] if v["item"] == item and v["since"] + lag <= at]
    if not versions:
        return None
    newest = max(versions, key=lambda version: version["since"])
    ended = newest["until"] is not None and newest["until"] + lag <= at
    return None if ended else newest["brand"]


def known_before(world: World, shown: Row, logs: list[str], kind: str | None = None) -> list[Row]:
    """Lists the newest events that were known before an impression, oldest first.

    Events that became known in one instant stand in the order of their parts, nulls last.
    """
    known = [
        event | {"log": log, "brand": brand_at(world, event["item"], event["at"])}
        for log in logs
        for event in world.tables[log]
        if event["uid"] == shown["uid"]
        and event["at"] + world.lags[log] < shown["at"]
        and kind in (None, event["kind"])
    ]

    def order(event: Row) -> tuple[Any, ...]:
        parts = [event["item"], event["brand"], event["kind"], event["log"], event["at"]]
        ranks = [(part is None, "" if part is None else part) for part in parts]
        return event["at"] + world.lags[event["log"]], ranks

    return sorted(known, key=order)[-world.length :]
