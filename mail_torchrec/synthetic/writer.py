"""Writes a synthetic click log whose ground truth is known.

It has all that real logs have: nulls, sentinels, lists, 64-bit ids. Attributes decide interests
through a non-linear map. Histories are long and reveal interests; clicks are few and noisy. So the
map is hard to learn from clicks and easy to learn from the histories of old users, which is what a
zero-shot tower does.
"""

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mail_torchrec.data.cold_start import ColdStartSettings, hidden_users
from mail_torchrec.metrics.auc import auc
from mail_torchrec.synthetic.rows import World, sample_impressions, sample_users
from mail_torchrec.synthetic.settings import WorldSettings
from mail_torchrec.synthetic.world import user_chunks
from mail_torchrec.utils.local_path import make_output_dir

__all__ = ["WorldSettings", "write_world"]

_TRUTH_COLUMNS = ["user_id", "is_click", "click_probability"]
_README = """A synthetic click log, written by `mail-torchrec synthesize`. No real person is in it.

train/*.parquet, test/*.parquet: one row an impression. The test is the day after the training days.
  user_id            int64
  attr_*             8 user attributes: strings with nulls, integers with negative sentinels;
                     levels are independent of each other
  item_id            int64
  category           int32, the item's cluster
  tags               list<string>, may be empty; the first one names the category, the others
                     mean nothing
  price              double with nulls; means nothing
  hour, device       context; both change the probability of a click a little
  history            list<int64>, items seen before the training days, oldest first; the same in all
                     rows of a user
  history_actions    list<int8>, aligned: 3 liked, 2 watched long, 1 otherwise
  is_click           int32, 0 or 1, sampled with ...
  click_probability  double, the ground truth: not for training
  day                int32
world.json: the settings, and the AUC of click_probability on the test rows, the best that any model
can reach.

A user's interests are products of pairs of attributes, rotated, and a small personal part: no sum
of functions of single attributes explains any of it. Histories are sampled by interests (softmax),
so they show them well; clicks are few and noisy.
"""


class PartFiles:
    """Parquet files of a folder, each of consecutive chunks of users.

    Args:
        folder: the folder, which is made.
        num_files: number of files.
        num_chunks: number of chunks that will be written.
        row_group_rows: rows a row group.
        stack: closes the files.
    """

    def __init__(
        self, folder: Path, num_files: int, num_chunks: int, row_group_rows: int, stack: ExitStack
    ) -> None:
        make_output_dir(folder)
        self._folder, self._num_files, self._num_chunks = folder, num_files, num_chunks
        self._row_group_rows, self._stack = row_group_rows, stack
        self._writers: dict[int, pq.ParquetWriter] = {}

    def write(self, chunk: int, rows: pa.Table) -> None:
        """Appends the rows of one chunk of users; its file is opened when first written to."""
        file = chunk * self._num_files // self._num_chunks
        if file not in self._writers:
            path = self._folder / f"part-{file:05d}.parquet"
            writer = self._stack.enter_context(pq.ParquetWriter(path, rows.schema))
            self._writers[file] = writer
        self._writers[file].write_table(rows, row_group_size=self._row_group_rows)


def write_world(settings: WorldSettings, out: Path) -> None:
    """Writes training and test rows, ``README.txt`` and, last, ``world.json``.

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
    truth = _write_rows(settings, out)
    (out / "README.txt").write_text(_README, encoding="utf-8")
    best_auc = _best_auc(settings, truth)
    summary = {"settings": settings.model_dump(), "best_test_auc": best_auc}
    (out / "world.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _write_rows(settings: WorldSettings, out: Path) -> pa.Table:
    """Writes ``train/`` and ``test/``; returns users, clicks and probabilities of the test rows."""
    world = World.sample(settings)
    chunks = user_chunks(settings, np.arange(settings.users))
    num_files = {"train": settings.files, "test": max(1, settings.files // 2)}
    truth = []
    with ExitStack() as stack:
        files = {
            part: PartFiles(out / part, number, len(chunks), settings.row_group_rows, stack)
            for part, number in num_files.items()
        }
        for chunk, users in enumerate(chunks):
            user_table, affinity_UN = sample_users(world, chunk, users)
            for part in files:
                rows = sample_impressions(world, user_table, affinity_UN, part, chunk)
                files[part].write(chunk, rows)
            truth.append(rows.select(_TRUTH_COLUMNS))
    return pa.concat_tables(truth)


def _best_auc(settings: WorldSettings, truth: pa.Table) -> dict[str, float | None]:
    """Computes the AUC of the true probability, for all rows and by the simulated cold start."""
    probability, clicks = truth["click_probability"].to_numpy(), truth["is_click"].to_numpy()
    is_new = hidden_users(truth["user_id"], ColdStartSettings(hide_share=settings.hide_share))
    cohorts = {"new": is_new, "old": ~is_new, "all": np.ones_like(is_new)}
    aucs = {name: auc(probability[rows], clicks[rows]) for name, rows in cohorts.items()}
    return {name: None if np.isnan(value) else value for name, value in aucs.items()}
