"""The reader alone: KuaiRand's columns, generated rows, nobody who trains."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools.benchmark.rows import RowSettings, write_rows
from tools.benchmark.setting import GROUPED, UNGROUPED, Setting
from tools.benchmark.sides import encoders_of, loaded

_EPOCHS = 5
KUAIRAND = Path(__file__).parents[2] / "launch/configs/kuairand.yaml"


def reader_rates(
    overrides: Sequence[str] = (), *, users: int = 65_536, workers: Sequence[int] = (0, 2)
) -> dict[str, float]:
    """Rows a second by order of the rows and number of reader processes, the median of epochs behind a first one.

    Then Parquet's files are in the page cache. The time runs from an epoch's first batch, when
    processes are up, to its last.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(KUAIRAND, (f"data.root={folder}", "train.batch_size=1024", *overrides))
        write_rows(
            Path(folder),
            setting.config().schema_,
            RowSettings(users=users, test_users=1, items=7_500),
        )
        encoders = encoders_of(setting.config())
        for variant in (UNGROUPED, GROUPED):
            for number in workers:
                data = loaded(
                    setting.config(variant.with_settings(f"data.num_workers={number}")),
                    encoders,
                    training=True,
                )
                rates = []
                for epoch in range(1 + _EPOCHS):
                    data.reader.set_epoch(epoch)
                    batches = iter(data.loader)
                    next(batches)
                    start = time.perf_counter()
                    rates.append(
                        sum(len(batch) for batch in batches) / (time.perf_counter() - start)
                    )
                found[f"{variant.name}, {number or 'no'} processes"] = statistics.median(rates[1:])
    return found
