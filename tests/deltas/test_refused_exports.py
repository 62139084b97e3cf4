"""Deltas that cannot be made are refused before anything is written."""

import logging
import shutil
from pathlib import Path

import pytest

from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.export.delta import DeltaBase, touched_since, write_delta
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.train.run_dir import RunDir


def test_options_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    for options, message in (
        (ExportOptions(run, tmp_path / "out", spare=0.2, aoti=True), "--aoti"),
        (ExportOptions(run, tmp_path / "out", delta_of=tmp_path, aoti=True), "--aoti"),
        (ExportOptions(run, tmp_path / "out", spare=0.2, delta_of=tmp_path), "--spare"),
    ):
        with pytest.raises(ValueError, match=message):
            export(options)


def test_a_base_without_spare_rows_is_refused(days: Path, tmp_path: Path) -> None:
    base = shutil.copytree(days / "full" / "day1", tmp_path / "base")
    manifest = ArtifactManifest.read(base)
    tables = {
        name: table.model_copy(update={"spare": None}) for name, table in manifest.tables.items()
    }
    manifest.model_copy(update={"tables": tables}).write(base)
    with pytest.raises(ValueError, match=r"no spare rows.*--spare 0\.2"):
        DeltaBase.open(base)


def test_a_calibration_that_the_delta_lacks_is_named(
    days: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("mail_torchrec"), "propagate", True)
    base, full = DeltaBase.open(days / "full" / "day1"), days / "full" / "day3"
    calibrated = base.manifest.model_copy(update={"calibration": "one"})
    for number, manifest in enumerate((base.manifest, calibrated)):
        whole, out = shutil.copytree(full, tmp_path / f"whole{number}"), tmp_path / f"{number}"
        out.mkdir()
        given = DeltaBase(base.folder, manifest)
        write_delta(given, whole, ArtifactManifest.read(full), days / "run3", out)
        assert ("has a calibration, and the delta has none" in caplog.text) == bool(number)
    assert "give --calibrate to go on" in caplog.text


def test_a_version_has_no_delta_to_itself_or_to_other_tables(days: Path, tmp_path: Path) -> None:
    base = DeltaBase.open(days / "full" / "day1")
    with pytest.raises(ValueError, match="nothing has changed since"):
        write_delta(base, base.folder, base.manifest, days / "run1", tmp_path)
    manifest = ArtifactManifest.read(days / "full" / "day3")
    item = manifest.tables["item"].model_copy(update={"rows": 39})
    other = manifest.model_copy(update={"tables": manifest.tables | {"item": item}})
    with pytest.raises(ValueError, match=r"tables item have other rows.*a full export is due"):
        write_delta(base, days / "full" / "day3", other, days / "run3", tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_tables_the_run_has_to_continue_the_base_s(days: Path) -> None:
    base = DeltaBase.open(days / "delta" / "day2")
    assert touched_since(base, days / "run3")["item"].any()
    with pytest.raises(ValueError, match=r"does not continue the run|does not say which rows"):
        touched_since(base, days / "run1")
