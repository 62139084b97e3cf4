"""Writes a synthetic click log day by day, a folder each, whose ground truth is known.

Shape letters: ``U`` users of a chunk, ``R`` rows of a day.
"""

import json
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.metrics.auc import auc
from mail_torchrec.synthetic.daily_world import DailyWorld
from mail_torchrec.synthetic.rows import Shown, impression_columns, user_table
from mail_torchrec.synthetic.settings import DailyWorldSettings
from mail_torchrec.synthetic.world import (
    Ints,
    random_stream,
    sample_events,
    sample_impression_counts,
    user_chunks,
)
from mail_torchrec.synthetic.writer import PartFiles
from mail_torchrec.utils.local_path import make_output_dir

__all__ = ["DailyWorldSettings", "write_days"]

_TRUTH_COLUMNS = ["user_id", "item_id", "history", "is_click", "click_probability"]
_README = """A synthetic click log of several days, written by `mail-torchrec synthesize --days N`.
No real person is in it.

day=YYYY-MM-DD/*.parquet: one row an impression, in no order within a day.
  user_id            int64; users leave, and as many new ones come
  attr_*             8 user attributes: strings with nulls, integers with negative sentinels;
                     levels are independent of each other
  item_id            int64; items leave, and as many new ones take their places
  category           int32, the item's cluster
  tags               list<string>, may be empty; the first one names the category, the others
                     mean nothing
  price              double with nulls; means nothing
  hour, device       context; both change the probability of a click a little
  history            list<int64>, items seen before this day, oldest first; the same in all rows
                     that a user has on a day, and empty on a new user's first one
  history_actions    list<int8>, aligned: 3 liked, 2 watched long, 1 otherwise
  is_click           int32, 0 or 1, sampled with ...
  click_probability  double, the ground truth: not for training
world.json: the settings, and of each day the rows, users and items, how many users had no history,
how many items were shown on no earlier day, and the AUC of click_probability, the best that any
model can reach.

A user's interests are products of pairs of attributes, rotated, and a small personal part. The
vectors of the categories and the personal parts drift: each day a share of their variance is new.
"""


def write_days(settings: DailyWorldSettings, out: Path) -> None:
    """Writes a folder of each day, ``README.txt`` and, last, ``world.json``.

    Args:
        settings: sizes, noise and seed; the same settings give the same bits, and a world of more
            days begins with the same ones.
        out: the folder, made where it is missing.

    Raises:
        ValueError: ``out`` already has days, or another world.
    """
    if there := [path for path in (*out.glob("day=*"), *out.glob("world.json"))]:
        raise ValueError(
            f"'{there[0]}' exists already; choose another folder, or move or delete it, so that no "
            "two worlds mix"
        )
    world, known_items, days = DailyWorld(settings), np.empty(0, np.int64), []
    for _ in range(settings.days):
        day = str(settings.start + timedelta(days=world.day))
        truth = _write_day(world, out / f"day={day}")
        days.append({"day": day, **_summary(truth, known_items)})
        known_items = np.union1d(known_items, truth["item_id"].to_numpy())
        world.advance()
    (out / "README.txt").write_text(_README, encoding="utf-8")
    summary = {"settings": settings.model_dump(mode="json"), "days": days}
    (out / "world.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _write_day(world: DailyWorld, folder: Path) -> pa.Table:
    """Writes the rows of a day; returns users, items, clicks and probabilities."""
    make_output_dir(folder)
    settings, shown, truth = world.settings, world.items.shown(world.settings), []
    chunks = user_chunks(settings, world.comers(random_stream(settings, "day_rows", world.day, 0)))
    with ExitStack() as stack:
        files = PartFiles(folder, settings.files, len(chunks), settings.row_group_rows, stack)
        for chunk, users in enumerate(chunks):
            rng = random_stream(settings, "day_rows", world.day, 1, chunk)
            rows = _sample_rows(world, shown, users, rng)
            files.write(chunk, rows)
            truth.append(rows.select(_TRUTH_COLUMNS))
    return pa.concat_tables(truth)


def _sample_rows(
    world: DailyWorld, shown: Shown, users: Ints, rng: np.random.Generator
) -> pa.Table:
    """Samples the impressions of a chunk of users, and lets their histories grow after them."""
    settings = world.settings
    affinity_UN = world.affinity(users, shown.items)
    table = user_table(
        world.users.numbers_U[users],
        world.users.attributes_UA[users],
        *world.users.histories(users),
    )
    counts_U = sample_impression_counts(rng, len(users), settings.rows_per_user)
    user_R = rng.permutation(np.repeat(np.arange(len(users)), counts_U))
    rows = pa.table(impression_columns(settings, shown, table, affinity_UN, user_R, rng))
    lengths_U = rng.poisson(settings.events_per_user, size=len(users))
    events = sample_events(settings, shown.items, affinity_UN, lengths_U, rng)
    world.users.add_events(users, lengths_U, world.items.numbers_N[events[0]], events[1])
    return rows


def _summary(truth: pa.Table, known_items: Ints) -> dict[str, Any]:
    """Counts the rows of a day, and computes the best AUC by new and old users and items.

    Args:
        truth: of the day, of :func:`_write_day`.
        known_items: ids of the items that earlier days showed.
    """
    click_R, probability_R = (truth[name].to_numpy() for name in _TRUTH_COLUMNS[-2:])
    is_new_user_R = pc.equal(pc.list_value_length(truth["history"]), 0).to_numpy()
    is_new_item_R = ~np.isin(truth["item_id"].to_numpy(), known_items)
    counts, cohorts = {"rows": len(truth)}, {"all": np.ones(len(truth), bool)}
    kinds = (("users", "user_id", is_new_user_R), ("items", "item_id", is_new_item_R))
    for kind, column, is_new_R in kinds:
        id_R = truth[column].to_numpy()
        counts |= {kind: len(np.unique(id_R)), f"new_{kind}": len(np.unique(id_R[is_new_R]))}
        cohorts |= {f"new_{kind}": is_new_R, f"old_{kind}": ~is_new_R}
    aucs = {name: auc(probability_R[rows], click_R[rows]) for name, rows in cohorts.items()}
    best = {name: None if np.isnan(value) else value for name, value in aucs.items()}
    return counts | {"best_auc": best}
