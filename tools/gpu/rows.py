"""Random rows and configurations of the stages, written once for all stages of a check."""

import shutil
from dataclasses import replace
from pathlib import Path

from tools.benchmark.random_rows import RowSettings, write_rows
from tools.benchmark.trainers import fit_training_encoders
from tools.benchmark.workload import SMALL, Workload, base_config_tree
from tools.gpu.stage import StageRun

BATCH_SIZE = 8192
_COPIES = 8
"""Files of the large rows, all alike: an epoch of 256 batches, eight times what reader processes
hold in readiness, that takes seconds to write and to fit."""


def large_workload(run: StageRun) -> Workload:
    """Returns MAIL-DMR in the paper's setting at a GPU's batch size; tiny where sizes are."""
    if run.small:
        return small_workload(run)
    rows = replace(RowSettings.of_batches(BATCH_SIZE), test_users=1_024)
    overrides = (f"train.batch_size={BATCH_SIZE}",)
    return _workload(run.scratch / "large", rows, overrides, max_length=100, copies=_COPIES)


def small_workload(run: StageRun) -> Workload:
    """Returns a tiny MAIL-DMR, for what is counted and not timed."""
    rows = RowSettings(users=128, test_users=64, items=200)
    return _workload(run.scratch / "small", rows, SMALL, max_length=8)


def _workload(
    folder: Path,
    rows: RowSettings,
    overrides: tuple[str, ...],
    *,
    max_length: int,
    copies: int = 1,
) -> Workload:
    """Writes rows and vocabularies, unless an earlier stage did."""
    complete = folder / "complete"
    if not complete.exists() and folder.exists():
        shutil.rmtree(folder)  # of a stage that was ended
    folder.mkdir(exist_ok=True)
    tree = base_config_tree(max_length=max_length)
    workload = Workload.write(folder, tree, *overrides)
    vocabularies = folder / "vocabularies"
    if not complete.exists():
        config = workload.config()
        write_rows(folder, config.schema_, rows)
        fit_training_encoders(config).save(vocabularies)
        for number in range(1, copies):
            of_train = folder / "train"
            shutil.copyfile(of_train / "rows.parquet", of_train / f"rows-{number}.parquet")
        complete.touch()
    return replace(workload, vocabularies=vocabularies)
