"""Measures ``prepare events``: rows a second and peak memory, on random logs of any size.

    python tools/bench_events.py --events 20_000_000 --out FOLDER

An event names a user, an item, an action and a time of three weeks; one impression stands for ten
events, in the last week; a fifth of the items change once. Activity is spread over two orders of
magnitude. The values mean nothing.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mail_torchrec.cli.options import OUTPUT_DIR
from tools.tool_command import ToolCommand

CHUNK_ROWS = 1_000_000
EVENTS_PER_USER, EVENTS_PER_IMPRESSION, NUM_ITEMS = 600, 10, 200_000
START, DAY = 1_714_521_600, 86_400
ACTIONS, SHARES = ["view", "cart", "purchase"], [0.95, 0.03, 0.02]
SETTINGS = """\
impressions: {{path: {logs}/impressions.parquet}}
events:
  shop: {{path: {logs}/events, lag: 1m}}
catalogues:
  items: {{path: {logs}/items.parquet, key: item_id, valid_from: valid_from}}
  users: {{path: {logs}/users.parquet, key: user_id}}
histories:
  seen:
    events: [shop]
    max_length: 50
    parts: {{seen_item: item_id, seen_category: items.category, seen_action: action,
            seen_time: event.time}}
labels:
  bought: {{events: [shop], where: {{action: [purchase]}}, within: 1d, by: [item_id]}}
"""


def write_logs(num_events: int, folder: Path, seed: int = 0) -> None:
    """Writes impressions, events, items and users, unless they are there.

    Args:
        num_events: rows of the event log.
        folder: the folder to write.
        seed: of the random values.
    """
    if (folder / "users.parquet").exists():  # written last
        return
    (folder / "events").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    num_users = max(2, num_events // EVENTS_PER_USER)
    activity = np.exp(random.normal(0, 1.2, num_users)).cumsum()
    for number, rows in enumerate(_chunks(num_events)):
        table = _log(random, rows, activity, 0)
        action = pa.array(ACTIONS).take(pa.array(random.choice(3, rows, p=SHARES)))
        pq.write_table(
            table.append_column("action", action), folder / f"events/{number:03}.parquet"
        )
    num_impressions = num_events // EVENTS_PER_IMPRESSION
    clicked = pa.array(random.random(num_impressions) < 0.05).cast(pa.int8())
    shown = _log(random, num_impressions, activity, 14).append_column("clicked", clicked)
    pq.write_table(shown, folder / "impressions.parquet")
    item = np.arange(NUM_ITEMS)
    changed = random.choice(item, NUM_ITEMS // 5, replace=False)
    since = np.append(
        np.full(NUM_ITEMS, START - DAY), START + random.integers(0, 21 * DAY, len(changed))
    )
    versions = {
        "item_id": np.append(item, changed),
        "valid_from": pa.array(since, pa.timestamp("s")),
    }
    versions |= {
        "category": random.integers(1, 10_000, len(since)),
        "price": random.random(len(since)),
    }
    pq.write_table(pa.table(versions), folder / "items.parquet")
    users = {"user_id": np.arange(num_users), "age": random.integers(0, 7, num_users)}
    pq.write_table(pa.table(users), folder / "users.parquet")


def _chunks(rows: int) -> Iterator[int]:
    for start in range(0, rows, CHUNK_ROWS):
        yield min(CHUNK_ROWS, rows - start)


def _log(random: np.random.Generator, rows: int, activity: np.ndarray, first_day: int) -> pa.Table:
    user = np.searchsorted(activity, random.random(rows) * activity[-1])
    time = START + random.integers(first_day * DAY, 21 * DAY, rows)
    item = (random.random(rows) ** 2 * NUM_ITEMS).astype(np.int64)
    return pa.table({"user_id": user, "time": pa.array(time, pa.timestamp("s")), "item_id": item})


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--events", type=click.IntRange(1_000), default=20_000_000, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--memory-limit", default="4GB", show_default=True)
@click.option("--engine", type=click.Choice(["duckdb", "pyspark"]), default="duckdb")
@click.option("--out", type=OUTPUT_DIR, required=True, help="Folder for logs and rows.")
def main(events: int, threads: int, memory_limit: str, engine: str, out: Path) -> None:
    """Measure rows a second and peak memory of `prepare events` on random logs.

    Killed, the same command goes on where it stopped.
    """
    logs, rows = out / f"logs-{events}", out / f"rows-{events}-{engine}"
    write_logs(events, logs)
    config = out / f"events-{events}.yaml"
    config.write_text(SETTINGS.format(logs=logs))
    command = ["prepare", "events", "--config", str(config), "--out", str(rows)]
    command += ["--threads", str(threads), "--memory-limit", memory_limit, "--engine", engine]
    start = perf_counter()
    subprocess.run([sys.executable, "-m", "mail_torchrec", *command], check=True)
    seconds = perf_counter() - start
    prepared = json.loads((rows / "prepared.json").read_text())
    read = sum(table["rows"] for table in prepared["tables"].values())
    click.echo(
        f"{prepared['engine']}: {events:,} events, {prepared['rows']:,} rows in "
        f"{prepared['inputs']['buckets']} buckets; {prepared['seconds']:,} s of steps "
        f"({seconds:,.1f} s of this call), {read / prepared['seconds']:,.0f} rows read/s, peak "
        f"{prepared['peak_rss_bytes'] / 1e9:.2f} GB, {threads} threads, limit {memory_limit}"
    )


if __name__ == "__main__":
    main()
