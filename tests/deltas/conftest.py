"""Three days of one model, each trained on from the one before: full exports, and deltas."""

import shutil
from pathlib import Path

import pytest

from tests.support.made_once import made_once
from tests.support.small_rows import SCHEMA, config_tree, write_rows

TABLES = SCHEMA["tables"] | {
    "tags": {"ids": "hash", "rows": 40},
    "item": {"ids": "managed", "rows": 40, "fallback_rows": 4, "init_range": 0.3},
}


@pytest.fixture(scope="session")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `full/day1` and `day3` (with spare rows), and `delta/day2`, `day3`.

    The second day's delta is of an artefact, the third's of a delta, which has no tables.
    """
    return made_once(tmp_path_factory, "days_of_deltas", _make)


def _make(root: Path) -> None:
    from mail_torchrec.config import Config
    from mail_torchrec.export.command import ExportOptions, export
    from mail_torchrec.export.delta import DeltaBase, write_delta
    from mail_torchrec.train.continuation import ParentRun
    from mail_torchrec.train.run_dir import RunDir
    from mail_torchrec.train.trainer import train

    write_rows(root / "test" / "c.parquet", 60, seed=9)
    for day, num_rows in ((1, 200), (2, 12), (3, 12)):
        write_rows(root / f"log/day={day}" / "a.parquet", num_rows, seed=day)
        tree = config_tree(root, schema={"tables": TABLES}, model={"zero_shot": None})
        tree["data"] |= {"train": f"log/day={day}"}
        tree["train"] |= {"tables": {"name": "adagrad", "learning_rate": 0.2}}
        parent = None if day == 1 else ParentRun(root / f"run{day - 1}")
        train(Config.model_validate(tree), RunDir(root / f"run{day}"), parent=parent)
    first, second, last = (RunDir(root / f"run{day}") for day in (1, 2, 3))
    export(ExportOptions(first, root / "full/day1", spare=0.2))
    export(ExportOptions(second, root / "delta/day2", delta_of=root / "full/day1"))
    manifest = export(ExportOptions(last, root / "full/day3", spare=0.2))
    # As the command does, of the artefact that is there already.
    shutil.copytree(root / "full/day3", root / "whole")
    base, delta = DeltaBase.open(root / "delta/day2"), root / "delta/day3"
    delta.mkdir()
    write_delta(base, root / "whole", manifest, last.path, delta)
