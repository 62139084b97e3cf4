"""Writes the log of an invented shop: rows to train on, and the raw logs that they are made of.

    python tools/shop_log.py --out FOLDER

The README of this folder lists the files and columns. Shapes: ``N`` impressions, ``E`` events,
``V`` versions of a catalogue.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tools.shop import (
    ACTIONS,
    AGES,
    CITIES,
    DAY,
    DAYS_BEFORE,
    FIRST_DAY,
    NUM_CATEGORIES,
    VECTOR_DIM,
    Array,
    Catalogue,
    Shop,
    first_versions,
)
from tools.tool_command import ToolCommand


def _seconds(values: Any) -> pa.Array:
    return pa.array(values).cast(pa.timestamp("s")).cast(pa.timestamp("ms", "UTC"))


def _user_ids(numbers: Array) -> pa.Array:
    return pa.array([f"u{number:06d}" for number in numbers])


def _item_columns(shop: Shop, item: Array, time: Array) -> dict[str, Any]:
    version = shop.items.at(item, time)
    category = pa.array([f"c{number:02d}" for number in range(NUM_CATEGORIES)])
    return {
        "item_id": 100_000 + item,
        "category": category.take(pa.array(shop.items.columns["category"][version])),
        "brand": 1 + shop.items.columns["brand"][version],
    }


def _event_columns(shop: Shop, events: Array) -> dict[str, Any]:
    """Returns the columns of events without their user, [E]."""
    item, time = shop.events["item"][events], shop.events["time"][events]
    action = pa.array(ACTIONS).take(pa.array(shop.events["action"][events]))
    return _item_columns(shop, item, time) | {"action": action, "time": _seconds(time)}


def _user_columns(versions: Array, shop: Shop) -> dict[str, Any]:
    columns = {name: values[versions] for name, values in shop.users.columns.items()}
    unknown = shop.users.key_V[versions] % 7 == 0  # some have not told their city
    return {
        "age": pa.array(AGES).take(pa.array(columns["age"])),
        "city": pa.array(CITIES).take(pa.array(columns["city"], mask=unknown)),
        "plus": columns["plus"],
    }


def _vectors(shop: Shop, item: Array) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(shop.vector_IE[item].ravel()), VECTOR_DIM)


def _rows(shop: Shop, rows: dict[str, Array]) -> pa.Table:
    """Makes rows to train on of impressions."""
    offsets, events = shop.histories(rows["user"], rows["time"])
    lists = {
        f"seen_{name.removesuffix('_id')}": pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), pa.array(values)
        )
        for name, values in _event_columns(shop, events).items()
    }
    versions = shop.users.at(rows["user"], rows["time"])
    first = shop.items.from_V[first_versions(shop.items.key_V)]
    columns = {"user_id": _user_ids(rows["user"]), "clicked": rows["clicked"].astype(np.int8)}
    columns |= {"bought": rows["bought"].astype(np.int8), "spent": rows["spent"]}
    columns |= {"weight": rows["weight"], "time": _seconds(rows["time"])}
    columns |= {"hour": (rows["time"] // 3600 % 24).astype(np.int8), "position": rows["position"]}
    columns |= _user_columns(versions, shop) | lists
    columns |= _item_columns(shop, rows["item"], rows["time"]) | {"price": rows["price"]}
    return pa.table(
        columns | {"listed": _seconds(first[rows["item"]]), "content": _vectors(shop, rows["item"])}
    )


def _of_day(columns: dict[str, Array], day: int) -> Array:
    return np.flatnonzero((columns["time"] - FIRST_DAY) // DAY == day)


def _write(table: pa.Table, folder: Path, name: str = "part-0.parquet") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name, row_group_size=5_000 if len(table) < 500_000 else 100_000)


def write_shop(shop: Shop, out: Path) -> None:
    """Writes ``rows/``, ``impressions/``, ``events/`` by day, ``items.parquet``, ``users.parquet``.

    Args:
        shop: what to write.
        out: folder for it.
    """
    for day in range(-DAYS_BEFORE, shop.days + 1):
        name = f"day={np.datetime64('2024-05-01') + day}"
        events = _of_day(shop.events, day)
        users = {"user_id": _user_ids(shop.events["user"][events])}
        _write(pa.table(users | _event_columns(shop, events)), out / "events" / name)
        if not 0 <= day < shop.days:
            continue
        chosen = _of_day(shop.impressions, day)
        rows = {key: values[chosen] for key, values in shop.impressions.items()}
        _write(_rows(shop, rows), out / "rows" / name)
        raw = {"user_id": _user_ids(rows["user"]), "item_id": 100_000 + rows["item"]}
        raw |= {"time": _seconds(rows["time"]), "position": rows["position"]}
        raw |= {name: rows[name].astype(np.int8) for name in ("clicked", "bought")}
        raw |= {name: rows[name] for name in ("spent", "weight")}
        _write(pa.table(raw), out / "impressions" / name)
    _write_catalogues(shop, out)


def _write_catalogues(shop: Shop, out: Path) -> None:
    items, users = shop.items, shop.users
    columns = _item_columns(shop, items.key_V, items.from_V) | {"price": items.columns["price"]}
    columns |= {"content": _vectors(shop, items.key_V)}
    columns |= {"listed": _seconds(items.from_V[first_versions(items.key_V)][items.key_V])}
    _write(pa.table(columns | _validity(items)), out, "items.parquet")
    columns = {"user_id": _user_ids(users.key_V)}
    columns |= _user_columns(np.arange(len(users.key_V)), shop) | _validity(users)
    _write(pa.table(columns), out, "users.parquet")


def _validity(catalogue: Catalogue) -> dict[str, pa.Array]:
    return {
        "valid_from": _seconds(catalogue.from_V),
        "valid_until": _seconds(catalogue.until()),
    }


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rows", type=click.IntRange(100), default=20_000, show_default=True)
@click.option("--days", type=click.IntRange(2), default=7, show_default=True)
@click.option("--users", type=click.IntRange(10), default=2_000, show_default=True)
@click.option("--items", type=click.IntRange(10), default=600, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--out", type=Path, required=True)
def main(rows: int, days: int, users: int, items: int, seed: int, out: Path) -> None:
    """Write the log of an invented shop, and rows to train on made of it."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out} should be a new or empty folder; it holds files")
    write_shop(Shop(rows, days, users, items, seed), out)
    click.echo(f"{rows} impressions of {days} days, {users} users, {items} items: {out}")


if __name__ == "__main__":
    main()
