"""Golden behaviours of an export, against tables read by hand and against the trainer's model."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.data.source import Source
from mail_torchrec.drift.golden_behaviours import GOLDEN_BEHAVIOURS, GoldenBehaviours
from mail_torchrec.drift.two_sample import two_sample_auc
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.export.compact_tables import CompactTables, copied_to
from mail_torchrec.export.drift.collecting import without_behaviours
from mail_torchrec.export.drift.sampled_users import SampledUsers, UserSampler
from mail_torchrec.export.finished_run import FinishedRun
from mail_torchrec.export.parity import golden_batch
from mail_torchrec.inference.artifact_files import MANIFEST
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import length_input
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.towers.layers.behaviours import mean_over_positions
from mail_torchrec.train.run_dir import RunDir
from tests.support.drift_models import NUM_USERS
from tests.support.small_rows import write_rows


@pytest.fixture(scope="module")
def sampled(with_drift: Path) -> SampledUsers:
    run = FinishedRun.open(RunDir(with_drift / "run"))
    data = run.config.data
    source = Source(data.path(data.test), run.config.schema_, run.types, "")
    rule = data.cold_start.of_test, data.new_user_max_behaviours
    return UserSampler(run.config.schema_, run.encoders, *rule)(source, NUM_USERS)


@pytest.fixture(scope="module")
def golden(with_drift: Path) -> GoldenBehaviours:
    info = ArtifactManifest.read(with_drift / "model").drift
    assert info is not None
    return GoldenBehaviours.read(with_drift / "model", info)


def test_users_are_distinct_rows_of_the_files_new_ones_without_history(
    with_drift: Path, sampled: SampledUsers
) -> None:
    rows = pq.read_table(with_drift / "test" / "c.parquet").to_pylist()
    keys = [request.user["user"] for request in (*sampled.new, *sampled.old)]
    assert len(sampled.new) == len(sampled.old) == NUM_USERS == len(set(keys)) / 2
    for request in sampled.new:
        assert request.user["history"] == [] and len(request.candidates) == 1
    for request in sampled.old:
        assert request.user["history"] in [r["history"] for r in rows if r["user"] in keys]
        assert request.user["history"]
    assert keys[:NUM_USERS] != sorted(keys[:NUM_USERS])  # not the first rows of the file


def test_real_behaviours_are_those_of_the_tables_files(
    with_drift: Path, sampled: SampledUsers, golden: GoldenBehaviours
) -> None:
    """A behaviour is the product of its item's and its action's vectors."""
    scorer, vectors = Scorer(with_drift / "model"), {}
    for name, column in (("item", "history"), ("actions", "actions")):
        table = scorer.manifest.tables[name]
        file = with_drift / "model" / table.files["weight"]
        vectors[column] = np.fromfile(file, np.float32).reshape(table.rows, table.dim)
    inputs = scorer.encode(sampled.old)
    products = vectors["history"][inputs["history"]] * vectors["actions"][inputs["actions"]]
    lengths = inputs[length_input("history")]
    expected = [one[:length].sum(0) / 6 for one, length in zip(products, lengths, strict=True)]
    assert np.allclose(golden.old_real_MD, expected, atol=1e-6)


def test_virtual_behaviours_are_the_trainers(
    with_drift: Path, sampled: SampledUsers, golden: GoldenBehaviours, tmp_path: Path
) -> None:
    """New users as they are; old ones by the trainer's tower, whatever their histories."""
    run = FinishedRun.open(RunDir(with_drift / "run"))
    types = ArtifactManifest.read(with_drift / "model").value_types
    found = {}
    for name, requests in (("new", sampled.new), ("old", sampled.old)):
        batch = golden_batch(
            requests, types, run.config, run.encoders, run.feature_tables, tmp_path
        )
        compact = CompactTables(
            run.config.schema_, run.feature_tables, run.encoders.num_rows, batch
        )
        run.write_tables(tmp_path / name, "float32", copied_to([compact]))
        model, remapped = compact.model(run.towers)
        tables = model.pooled_tables(remapped.pooled), model.unpooled_tables(remapped.unpooled)
        virtual = model.towers.virtual_behaviours(model.towers.user_inputs(remapped, *tables))
        found[name] = mean_over_positions(list(virtual.values())).flatten(1).numpy()
    assert np.allclose(golden.new_virtual_ND, found["new"], atol=1e-6)
    assert np.allclose(golden.old_virtual_MD, found["old"], atol=1e-6)
    assert found["old"].std(0).max() > 1e-3  # users differ


def test_the_manifest_says_how_the_sets_compare(with_drift: Path, golden: GoldenBehaviours) -> None:
    info = ArtifactManifest.read(with_drift / "model").drift
    assert info is not None and (info.new_users, info.old_users) == (NUM_USERS, NUM_USERS)
    assert info.dim == 8 and info.file == GOLDEN_BEHAVIOURS
    assert info.new_and_old.rows == (60, 60) and info.virtual_and_real.rows == (30, 30)
    halves = golden.old_virtual_MD[::2], golden.old_real_MD[1::2]
    assert info.virtual_and_real.auc == two_sample_auc(*halves) > 0.6
    assert info.virtual_and_real.mmd > info.virtual_and_real.mmd_noise
    assert info.new_and_old.auc == two_sample_auc(golden.new_virtual_ND, golden.old_virtual_MD)


def test_an_old_user_as_a_new_one_keeps_everything_else(
    with_drift: Path, sampled: SampledUsers
) -> None:
    schema = ArtifactManifest.read(with_drift / "model").schema_
    request = sampled.old[0]
    found = without_behaviours(request, schema)
    assert found.user == dict(request.user) | {"history": [], "actions": []}
    assert found.candidates == request.candidates


def test_the_command_reports_it_and_without_the_option_nothing_changes(
    with_drift: Path, tmp_path: Path
) -> None:
    arguments = ["export", "--run-dir", str(with_drift / "run"), "--out"]
    done = CliRunner().invoke(main, [*arguments, str(tmp_path / "with"), "--drift", "30"])
    assert done.exit_code == 0, done.output
    assert "old users, virtual against real: two-sample AUC" in done.output
    assert "virtual, new users against old: two-sample AUC" in done.output
    assert "30 and 30 users" in done.output
    assert CliRunner().invoke(main, [*arguments, str(tmp_path / "plain")]).exit_code == 0
    assert "drift" not in json.loads((tmp_path / "plain" / MANIFEST).read_text())
    assert not (tmp_path / "plain" / GOLDEN_BEHAVIOURS).exists()
    with_, plain = (ArtifactManifest.read(tmp_path / name) for name in ("with", "plain"))
    assert plain.files == {k: v for k, v in with_.files.items() if k != GOLDEN_BEHAVIOURS}


def test_damaged_golden_behaviours_are_refused(with_drift: Path, tmp_path: Path) -> None:
    info = ArtifactManifest.read(with_drift / "model").drift
    assert info is not None
    for size in (info.num_bytes - 4, info.num_bytes + 4):
        (tmp_path / GOLDEN_BEHAVIOURS).write_bytes(bytes(size))
        with pytest.raises(ValueError, match=f"should have {info.num_bytes:,} bytes"):
            GoldenBehaviours.read(tmp_path, info)


def test_a_manifest_whose_sizes_do_not_fit_is_refused(with_drift: Path, tmp_path: Path) -> None:
    manifest = ArtifactManifest.read(with_drift / "model")
    assert manifest.drift is not None
    for changes, message in (
        ({"dim": 9}, "drift.dim should be 8"),
        ({"old_users": 10**9}, "less than or equal to 5000"),
        ({"file": "../golden"}, "plain path"),
        ({"file": "other"}, "files should have other"),
    ):
        drift = manifest.drift.model_copy(update=changes)
        manifest.model_copy(update={"drift": drift}).write(tmp_path)
        with pytest.raises(ValueError, match=message):
            ArtifactManifest.read(tmp_path)


def test_models_and_rows_that_have_no_such_behaviours_are_refused(
    with_drift: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.parquet"
    write_rows(few, 30, seed=3)
    run_dir = RunDir(with_drift / "run")
    with pytest.raises(ValueError, match=r"needs 20 new and 20 old users, and '.*few\.parquet'"):
        export(ExportOptions(run_dir, tmp_path / "out", data=str(few), drift=20))
    with pytest.raises(ValueError, match="should be 20 to 5000 users, received 5"):
        export(ExportOptions(run_dir, tmp_path / "out", drift=5))
    assert not (tmp_path / "out").exists()
