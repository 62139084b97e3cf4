"""Golden behaviours of whatever makes virtual behaviours; what makes none, or one, is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mail_torchrec.config import Config
from mail_torchrec.data.source import Source
from mail_torchrec.drift.golden_behaviours import GoldenBehaviours
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.export.compact_tables import CompactTables, copied_to
from mail_torchrec.export.drift.collecting import check_drift
from mail_torchrec.export.drift.sampled_users import UserSampler
from mail_torchrec.export.finished_run import FinishedRun
from mail_torchrec.export.parity import golden_batch
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import SCHEMA, baseline_tree, config_tree, write_rows
from tests.support.untrained_model import UntrainedModel

NUM_USERS, LONG = 20, pytest.mark.long
PLAIN: dict[str, Any] = {"tower": "base_dnn", "tower_options": {"hidden_dims": [8]}}
MAIL = config_tree(Path())["model"]["zero_shot"]
SECTIONS: dict[str, dict[str, Any]] = {
    "llae": baseline_tree("llae"),
    "cvar": baseline_tree("cvar"),
    "mwuf": baseline_tree("mwuf"),
    "no reconstruction loss": {"model": PLAIN | {"zero_shot": MAIL | {"variant": "none"}}},
}


@pytest.mark.parametrize(
    "name", [name if name == "llae" else pytest.param(name, marks=LONG) for name in SECTIONS]
)
def test_virtual_and_real_behaviours_are_the_trainers(tmp_path: Path, name: str) -> None:
    for part, num_rows, seed in (("train", 200, 1), ("test", 400, 3)):
        write_rows(tmp_path / part / "c.parquet", num_rows, seed)
    tree = config_tree(tmp_path, **SECTIONS[name], train={"epochs": 2})
    train(Config.model_validate(tree), RunDir(tmp_path / "run"))
    manifest = export(ExportOptions(RunDir(tmp_path / "run"), tmp_path / "model", drift=NUM_USERS))
    assert manifest.drift is not None and manifest.drift.dim == SCHEMA["dim"]
    golden = GoldenBehaviours.read(tmp_path / "model", manifest.drift)
    run = FinishedRun.open(RunDir(tmp_path / "run"))
    data, schema = run.config.data, run.config.schema_
    source = Source(data.path(data.test), schema, run.types, "")
    users = UserSampler(schema, run.encoders, data.cold_start, 0)(source, NUM_USERS)
    batch = golden_batch(
        users.old, manifest.value_types, run.config, run.encoders, run.feature_tables, tmp_path
    )
    compact = CompactTables(schema, run.feature_tables, run.encoders.num_rows, batch)
    run.write_tables(tmp_path / "tables", "float32", copied_to([compact]))
    model, remapped = compact.model(run.towers)
    tables = model.pooled_tables(remapped.pooled), model.unpooled_tables(remapped.unpooled)
    inputs = model.towers.user_inputs(remapped, *tables)
    sequence = inputs.sequences["history"]
    for row, length in enumerate(sequence.lengths_B.tolist()):
        expected = sequence.values_BTD[row, :length].sum(0) / 6
        assert length and np.allclose(golden.old_real_MD[row], expected, atol=1e-6)
    values_UTD, lengths_U = model.towers.virtual_behaviours(inputs)["history"]
    for row, length in enumerate(lengths_U.tolist()):
        expected = values_UTD[row, :length].sum(0) / 6
        assert length and np.allclose(golden.old_virtual_MD[row], expected, atol=1e-6)
    assert golden.old_virtual_MD.std(0).max() > 1e-5  # users differ


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (baseline_tree("mean_fill"), "model.baseline mean_fill are the same for all users"),
        (baseline_tree("meta_emb"), "and the model makes none"),
        ({"model": PLAIN | {"zero_shot": None}}, "and the model makes none"),
        (
            {"model": {"zero_shot": MAIL | {"input_fields": "all_fields"}}},
            "input_fields=all_fields they depend on the candidate",
        ),
    ],
)
def test_models_without_virtual_behaviours_of_users_of_their_own_are_refused(
    tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    for part in ("train", "test"):
        write_rows(tmp_path / part / "c.parquet", 60, seed=1)
    towers = UntrainedModel(tmp_path, tmp_path, **sections).model.towers
    run: Any = SimpleNamespace(towers=towers)
    with pytest.raises(ValueError, match=message):
        check_drift(run, 20)
