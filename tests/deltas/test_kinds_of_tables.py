"""Deltas of tables with scales, with first-order weights, with an output table, and in half."""

from pathlib import Path
from typing import Any

import pytest

from mail_torchrec.config import Config
from mail_torchrec.deltas.apply import apply_delta
from mail_torchrec.deltas.delta_manifest import DeltaManifest
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.export.finished_run import TableType
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.train.continuation import ParentRun
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.deltas.conftest import TABLES
from tests.deltas.test_apply import same_scores
from tests.support.exported_models import version_in
from tests.support.small_rows import config_tree, write_rows

DEEP_FM = {"tower": "deepfm", "tower_options": {"hidden_dims": [16, 8]}, "zero_shot": None}


def train_two_days(root: Path, model: dict[str, Any]) -> None:
    """Runs `1` and `2`, the second continued from the first."""
    write_rows(root / "test" / "c.parquet", 60, seed=9)
    for day, num_rows in ((1, 200), (2, 12)):
        write_rows(root / f"log/day={day}" / "a.parquet", num_rows, seed=day)
        tree = config_tree(root, schema={"tables": TABLES}, model=model)
        tree["data"] |= {"train": f"log/day={day}"}
        tree["train"] |= {"tables": {"name": "rowwise_adagrad", "learning_rate": 0.2}}
        parent = None if day == 1 else ParentRun(root / "1")
        train(Config.model_validate(tree), RunDir(root / str(day)), parent=parent)


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "table_type", "part"),
    [({}, "float16", "weight"), (DEEP_FM, "int8", "first_order")],
    ids=["dmr and its zero-shot tower, float16", "deepfm, int8"],
)
def test_a_delta_makes_what_a_full_export_makes(
    tmp_path: Path, model: dict[str, Any], table_type: TableType, part: str
) -> None:
    train_two_days(tmp_path, model)
    first, second = RunDir(tmp_path / "1"), RunDir(tmp_path / "2")
    base, full = tmp_path / "models/1", tmp_path / "full"
    export(ExportOptions(first, base, spare=0.5, table_type=table_type))
    export(ExportOptions(second, full, spare=0.5, table_type=table_type))
    export(ExportOptions(second, tmp_path / "delta", delta_of=base))
    made = apply_delta(tmp_path / "delta", tmp_path / "models", name="2")
    assert version_in(made) == version_in(full) != version_in(base)
    assert same_scores(made, full)
    tables = ArtifactManifest.read(made).tables
    assert part in {name for table in tables.values() for name in table.files}
    changed = DeltaManifest.read(tmp_path / "delta").tables
    assert 0 < changed["item"].num_changed < tables["item"].rows
