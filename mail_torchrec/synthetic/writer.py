"""Writes a synthetic click log whose truth is known, with everything that real logs have: nulls, sentinels, lists, 64-bit ids.

What it is for: attributes decide interests through a non-linear map. Histories are long and reveal
interests; clicks are few and noisy. So the map is hard to learn from clicks and easy to learn from
the histories of old users, which is what a zero-shot tower does.
"""

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mail_torchrec.data.cold_start import ColdStartSettings, hidden_users
from mail_torchrec.metrics.auc import auc
from mail_torchrec.synthetic.world import (
    NUM_DEVICES,
    Floats,
    InterestMap,
    Ints,
    Items,
    WorldSettings,
    affinity,
    click_probability,
    context_effect,
    draw_attributes,
    draw_from_rows,
    draw_history,
    draw_interests,
    draw_items,
    draw_map,
    row_counts,
    stream,
)

__all__ = ["ATTRIBUTES", "WorldSettings", "world_truth", "write_world"]

# Name -> type and levels. None is a value like any other: that a user did not say decides interests
# too.
ATTRIBUTES: dict[str, tuple[pa.DataType, list[str | int | None]]] = {
    "attr_age": (pa.string(), ["12-17", "18-23", "24-30", "31-40", "41-49", "50+"]),
    "attr_gender": (pa.string(), ["f", "m", None]),
    "attr_city_level": (pa.int32(), [-1, 1, 2, 3, 4, 5]),
    "attr_phone": (pa.string(), ["A", "B", "C", "D", "E", "F", "other"]),
    "attr_activity": (pa.string(), ["full_active", "high_active", "middle_active", "low_active"]),
    "attr_tenure": (pa.int64(), [-124, 30, 90, 365, 730]),
    "attr_following": (pa.string(), ["0", "(0,10]", "(10,50]", "(50,100]", "100+", None]),
    "attr_channel": (pa.int8(), [-1, 0, 1, 2]),
}
DEVICES = ["phone", "tablet", "tv"]
NO_TAGS_SHARE, NO_PRICE_SHARE, NUM_TAGS = 0.1, 0.05, 30

_README = """A synthetic click log, written by `mail-torchrec synthesize` (mail_torchrec/synthetic/writer.py). No real person is in it.

train/*.parquet, test/*.parquet: one row an impression. The test is the day after the training days.
  user_id            int64
  attr_*             8 user attributes: strings with nulls, integers with negative sentinels; levels independent of each other
  item_id            int64
  category           int32, the item's cluster
  tags               list<string>, may be empty; the first one tells the category, the others nothing
  price              double with nulls; tells nothing
  hour, device       context; both change the probability of a click a little
  history            list<int64>, items seen before the training days, oldest first; the same in all rows of a user
  history_actions    list<int8>, aligned: 3 liked, 2 watched long, 1 otherwise
  is_click           int32, 0 or 1, drawn with ...
  click_probability  double, the truth: not for training
  day                int32
world.json: the settings, and the AUC of click_probability on the test rows: the best that any model can reach.

A user's interests are products of pairs of attributes, rotated, and a small personal part: no sum of functions of single attributes
explains any of it. Histories are drawn by interests (softmax), so they show them well; clicks are few and noisy.
"""


class _Files:
    """The Parquet files of one part: opened when first written to, each for consecutive chunks of users."""

    def __init__(
        self, folder: Path, num_files: int, num_chunks: int, row_group_rows: int, stack: ExitStack
    ) -> None:
        folder.mkdir(parents=True)
        self._folder, self._num_files, self._num_chunks = folder, num_files, num_chunks
        self._row_group_rows, self._stack = row_group_rows, stack
        self._writers: dict[int, pq.ParquetWriter] = {}

    def write(self, chunk: int, rows: pa.Table) -> None:
        """Append the rows of one chunk of users."""
        file = chunk * self._num_files // self._num_chunks
        if file not in self._writers:
            self._writers[file] = self._stack.enter_context(
                pq.ParquetWriter(self._folder / f"part-{file:05d}.parquet", rows.schema)
            )
        self._writers[file].write_table(rows, row_group_size=self._row_group_rows)


def write_world(settings: WorldSettings, out: Path) -> None:
    """Write ``out/train/*.parquet``, ``out/test/*.parquet``, ``out/README.txt`` and, last, ``out/world.json``.

    Args:
        settings: sizes, noise and seed; the same settings give the same bits.
        out: the folder, made where it is missing.

    Raises:
        ValueError: ``out`` already has a train or test folder.
    """
    for part in ("train", "test"):
        if (out / part).exists():
            raise ValueError(
                f"'{out / part}' exists already; choose another folder, or move or delete it, so "
                "that no two worlds mix"
            )
    items, interest_map = world_truth(settings)
    item_table = _item_table(settings, items)
    chunks = _chunks(settings)
    truth = []
    with ExitStack() as stack:
        train = _Files(out / "train", settings.files, len(chunks), settings.row_group_rows, stack)
        test = _Files(
            out / "test", max(1, settings.files // 2), len(chunks), settings.row_group_rows, stack
        )
        for chunk, users in enumerate(chunks):
            user_table, affinity_UN = _draw_users(settings, items, interest_map, chunk, users)
            train.write(
                chunk,
                _draw_rows(settings, items, item_table, user_table, affinity_UN, "train", chunk),
            )
            rows = _draw_rows(settings, items, item_table, user_table, affinity_UN, "test", chunk)
            test.write(chunk, rows)
            truth.append(rows.select(["user_id", "is_click", "click_probability"]))
    (out / "README.txt").write_text(_README, encoding="utf-8")
    summary = {
        "settings": settings.model_dump(),
        "best_test_auc": _best_auc(settings, pa.concat_tables(truth)),
    }
    (out / "world.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def world_truth(settings: WorldSettings) -> tuple[Items, InterestMap]:
    """The items and the map from attributes (level numbers, in the order of :data:`ATTRIBUTES`) to interests."""
    return draw_items(settings), draw_map(settings, _shares())


def _shares() -> list[Floats]:
    """The share of users at each level of each attribute: the first levels are up to twice as frequent as the last ones."""
    return [
        np.linspace(2, 1, len(levels)) / np.linspace(2, 1, len(levels)).sum()
        for _, levels in ATTRIBUTES.values()
    ]


def _chunks(settings: WorldSettings) -> list[Ints]:
    """User numbers in chunks that bound the memory, at least one chunk a file."""
    size = max(
        1, min(settings.chunk_values // settings.items, -(-settings.users // settings.files))
    )
    users = np.arange(settings.users)
    return np.split(users, np.arange(size, settings.users, size))


def _scattered(numbers: Ints, start: int) -> Ints:
    """Different numbers -> different ids all over 0 .. 2^62 - 1: an odd factor is a bijection modulo a power of two."""
    words = (numbers + start).astype(np.uint64) * np.uint64(0x2545F4914F6CDD1D)
    return (words & np.uint64(2**62 - 1)).astype(np.int64)


def _item_table(settings: WorldSettings, items: Items) -> pa.Table:
    """One row an item: id, category, tags, price."""
    rng = stream(settings, "item_columns")
    num_tags = np.where(
        rng.random(settings.items) < NO_TAGS_SHARE, 0, rng.integers(1, 4, size=settings.items)
    )
    starts = np.cumsum(num_tags) - num_tags
    tags = np.array([f"tag-{tag}" for tag in range(NUM_TAGS)])[
        rng.integers(NUM_TAGS, size=num_tags.sum())
    ].astype(object)
    some = num_tags > 0
    tags[starts[some]] = np.array([f"about-{category}" for category in range(settings.categories)])[
        items.category_N[some]
    ]
    price = np.round(np.exp(rng.normal(3, 1, size=settings.items)), 2)
    return pa.table(
        {
            "item_id": _scattered(np.arange(settings.items), 1),
            "category": pa.array(items.category_N, pa.int32()),
            "tags": pa.ListArray.from_arrays(
                pa.array(np.append(starts, num_tags.sum()), pa.int32()), pa.array(tags, pa.string())
            ),
            "price": pa.array(price, mask=rng.random(settings.items) < NO_PRICE_SHARE),
        }
    )


def _draw_users(
    settings: WorldSettings, items: Items, interest_map: InterestMap, chunk: int, users: Ints
) -> tuple[pa.Table, Floats]:
    """One row a user of a chunk (id, attributes, history), and the users' affinity to every item ``[U, N]``."""
    rng = stream(settings, "users", chunk)
    attributes_UA = draw_attributes(_shares(), rng, len(users))
    affinity_UN = affinity(
        draw_interests(settings, interest_map, attributes_UA, rng), items.vectors_NK
    )
    lengths, seen, actions = draw_history(
        settings, items, affinity_UN, stream(settings, "histories", chunk)
    )
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    columns = {"user_id": pa.array(_scattered(users, 10**9))}
    for (name, (kind, levels)), level_U in zip(ATTRIBUTES.items(), attributes_UA.T, strict=True):
        columns[name] = pa.array(levels, kind).take(pa.array(level_U))
    columns["history"] = pa.ListArray.from_arrays(offsets, pa.array(_scattered(seen, 1)))
    columns["history_actions"] = pa.ListArray.from_arrays(offsets, pa.array(actions, pa.int8()))
    return pa.table(columns), affinity_UN


def _draw_rows(
    settings: WorldSettings,
    items: Items,
    item_table: pa.Table,
    user_table: pa.Table,
    affinity_UN: Floats,
    part: str,
    chunk: int,
) -> pa.Table:
    """The impressions of a chunk of users, in random order."""
    rng = stream(settings, part, chunk)
    user = rng.permutation(
        np.repeat(np.arange(len(user_table)), _impressions(settings, part, len(user_table), rng))
    )
    _, item = draw_from_rows(items.popularity_N[None], np.array([len(user)]), rng)
    hour, device = rng.integers(24, size=len(user)), rng.integers(NUM_DEVICES, size=len(user))
    probability = click_probability(settings, affinity_UN[user, item], context_effect(hour, device))
    first_day, num_days = (0, settings.train_days) if part == "train" else (settings.train_days, 1)
    rows = {
        name: column
        for table, index in ((user_table, user), (item_table, item))
        for name, column in _taken(table, index).items()
    }
    rows |= {
        "hour": pa.array(hour, pa.int32()),
        "device": pa.array(DEVICES).take(pa.array(device)),
        "is_click": pa.array(rng.random(len(user)) < probability).cast(pa.int32()),
        "click_probability": pa.array(probability),
        "day": pa.array(first_day + rng.integers(num_days, size=len(user)), pa.int32()),
    }
    return pa.table(rows)


def _taken(table: pa.Table, index: Ints) -> dict[str, pa.ChunkedArray]:
    taken = table.take(pa.array(index))
    return dict(zip(taken.column_names, taken.columns, strict=True))


def _impressions(
    settings: WorldSettings, part: str, num_users: int, rng: np.random.Generator
) -> Ints:
    """Impressions of each user: everybody comes in training, a share of the users comes back."""
    if part == "train":
        return row_counts(rng, num_users, settings.train_rows_per_user)
    return row_counts(rng, num_users, settings.test_rows_per_user) * (
        rng.random(num_users) < settings.test_users
    )


def _best_auc(settings: WorldSettings, truth: pa.Table) -> dict[str, float | None]:
    """The AUC of the true probability, for all rows and by the simulated cold start."""
    probability, clicks = truth["click_probability"].to_numpy(), truth["is_click"].to_numpy()
    is_new = hidden_users(truth["user_id"], ColdStartSettings(hide_share=settings.hide_share))
    parts = {"new": is_new, "old": ~is_new, "all": np.ones_like(is_new)}
    figures = {name: auc(probability[rows], clicks[rows]) for name, rows in parts.items()}
    return {name: None if np.isnan(figure) else figure for name, figure in figures.items()}
