"""Golden behaviours of a version that a delta makes: its own, or none, which is said."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from mail_torchrec.config import Config
from mail_torchrec.deltas.apply import apply_delta
from mail_torchrec.drift.golden_behaviours import GoldenBehaviours
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.export.delta import DeltaBase, write_delta
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.serve.drift.monitor import DriftMonitor
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.serve.versions import ModelVersions
from mail_torchrec.train.continuation import ParentRun
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.exported_models import version_in
from tests.support.small_rows import config_tree, write_rows

NUM_USERS = 20
BASE_DNN = {"tower": "base_dnn", "tower_options": {"hidden_dims": [8]}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two days, its delta `day2`, and `models` that it is applied to.

    Versions `day1` and `day2` have golden behaviours.
    """
    root = tmp_path_factory.mktemp("golden_days")
    write_rows(root / "test" / "c.parquet", 300, seed=3)
    for day, num_rows in ((1, 150), (2, 40)):
        write_rows(root / "train" / "a.parquet", num_rows, seed=day)
        parent = None if day == 1 else ParentRun(root / "run1")
        config = Config.model_validate(config_tree(root, model=BASE_DNN))
        train(config, RunDir(root / f"run{day}"), parent=parent)
    base = root / "models/day1"
    export(ExportOptions(RunDir(root / "run1"), base, spare=0.5, drift=NUM_USERS))
    export(ExportOptions(RunDir(root / "run2"), root / "day2", delta_of=base, drift=NUM_USERS))
    apply_delta(root / "day2", root / "models")
    return root


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The package's warnings."""
    logger = logging.getLogger("mail_torchrec")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def golden_of(folder: Path) -> GoldenBehaviours:
    info = ArtifactManifest.read(folder).drift
    assert info is not None
    return GoldenBehaviours.read(folder, info)


def test_a_delta_brings_golden_behaviours_of_the_tables_that_it_makes(exported: Path) -> None:
    models = exported / "models"
    before, after = golden_of(models / "day1"), golden_of(models / "day2")
    assert np.abs(after.old_real_MD - before.old_real_MD).max() > 1e-4  # of the same users
    registry = CollectorRegistry()
    DriftMonitor(ModelVersions(models, ServerMetrics(), threads=1), registry, 60)
    for folder in (models / "day1", models / "day2"):
        labels = {"version": version_in(folder), "pair": "old_virtual_old_real"}
        info = ArtifactManifest.read(folder).drift
        assert info is not None
        assert registry.get_sample_value("mail_golden_mmd", labels) == info.virtual_and_real.mmd


@pytest.mark.long
def test_they_are_those_of_a_full_export_to_the_byte(exported: Path, tmp_path: Path) -> None:
    export(ExportOptions(RunDir(exported / "run2"), tmp_path / "full", spare=0.5, drift=NUM_USERS))
    made = exported / "models/day2"
    assert version_in(made) == version_in(tmp_path / "full")
    found, expected = golden_of(made), golden_of(tmp_path / "full")
    assert np.array_equal(found.old_real_MD, expected.old_real_MD)
    assert np.array_equal(found.new_virtual_ND, expected.new_virtual_ND)


def test_a_delta_without_them_is_named_when_it_is_written_and_when_it_is_served(
    exported: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    base, whole = DeltaBase.open(exported / "models/day1"), tmp_path / "whole"
    shutil.copytree(exported / "models/day2", whole)
    manifest = ArtifactManifest.read(whole)
    assert manifest.drift is not None
    files = {name: info for name, info in manifest.files.items() if name != manifest.drift.file}
    plain = manifest.model_copy(update={"drift": None, "files": files}).write(whole)
    (tmp_path / "day2").mkdir()
    write_delta(base, whole, plain, exported / "run2", tmp_path / "day2")
    assert "has golden behaviours, and the delta has none: servers" in log.text
    assert "give --drift to go on" in log.text and "calibration" not in log.text
    models = tmp_path / "models"
    shutil.copytree(exported / "models/day1", models / "day1")
    made = apply_delta(tmp_path / "day2", models)
    registry = CollectorRegistry()
    monitor = DriftMonitor(ModelVersions(models, ServerMetrics(), threads=1), registry, 60)
    monitor.update()  # says it once
    said = f"version {version_in(made)} has no golden behaviours"
    assert log.text.count(said) == 1 == log.text.count("has no golden behaviours")
