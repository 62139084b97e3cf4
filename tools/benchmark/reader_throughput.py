"""Measures the reader alone: generated rows with KuaiRand's columns, without training."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mail_torchrec.data.encoders import Encoders
from tools.benchmark.random_rows import RowSettings, write_rows
from tools.benchmark.trainers import fit_training_encoders, load_data
from tools.benchmark.workload import GROUPED, UNGROUPED, Variant, Workload

_EPOCHS = 5
KUAIRAND = Path(__file__).parents[2] / "launch/configs/kuairand.yaml"


def measure_reader(
    overrides: Sequence[str] = (), *, users: int = 65_536, workers: Sequence[int] = (0, 2)
) -> dict[str, float]:
    """Measures rows a second by order of the rows and number of reader processes.

    Args:
        overrides: of the configuration.
        users: number of users in the generated rows.
        workers: numbers of reader processes.

    Returns:
        The median of epochs behind a first one, after which Parquet's files are in the page cache.
        An epoch's time runs from its first batch, when processes are up, to its last.
    """
    with tempfile.TemporaryDirectory() as folder:
        shared = (f"data.root={folder}", "train.batch_size=1024", *overrides)
        workload = Workload(KUAIRAND, shared)
        rows = RowSettings(users=users, test_users=1, items=7_500)
        write_rows(Path(folder), workload.config().schema_, rows)
        encoders = fit_training_encoders(workload.config())
        return {
            f"{variant.name}, {number or 'no'} processes": _rows_per_second(
                workload, variant, number, encoders
            )
            for variant in (UNGROUPED, GROUPED)
            for number in workers
        }


def _rows_per_second(
    workload: Workload, variant: Variant, num_workers: int, encoders: Encoders
) -> float:
    config = workload.config(variant.with_overrides(f"data.num_workers={num_workers}"))
    split = load_data(config, encoders, training=True)
    rates = []
    for epoch in range(1 + _EPOCHS):
        split.reader.set_epoch(epoch)
        batches = iter(split.loader)
        next(batches)
        start = time.perf_counter()
        rows = sum(len(batch) for batch in batches)
        rates.append(rows / (time.perf_counter() - start))
    return statistics.median(rates[1:])
