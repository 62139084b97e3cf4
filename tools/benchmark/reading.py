"""The reader alone: KuaiRand's columns, generated rows, nobody who trains."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools.benchmark.rows import RowSettings, write_rows
from tools.benchmark.setting import GROUPED, UNGROUPED, Setting
from tools.benchmark.sides import encoders_of, loaded

KUAIRAND = Path(__file__).parents[2] / "launch/configs/kuairand.yaml"


def reader_rates(overrides: Sequence[str] = (), *, users: int = 65_536, workers: Sequence[int] = (0, 2)) -> dict[str, float]:
    """Rows a second by order of the rows and number of reader processes.

    The time runs from the first batch of the second epoch, when processes are up and Parquet's files in the page cache, to its last.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(KUAIRAND, (f"data.root={folder}", "train.batch_size=1024", *overrides))
        write_rows(Path(folder), setting.config().schema_, RowSettings(users=users, test_users=1, items=7_500))
        encoders = encoders_of(setting.config())
        for variant in (UNGROUPED, GROUPED):
            for number in workers:
                data = loaded(setting.config(variant.with_settings(f"data.num_workers={number}")), encoders, training=True)
                for epoch in range(2):
                    data.reader.set_epoch(epoch)
                    batches = iter(data.loader)
                    next(batches)
                    start = time.perf_counter()
                    rows = sum(len(batch) for batch in batches)
                found[f"{variant.name}, {number or 'no'} processes"] = rows / (time.perf_counter() - start)
    return found
