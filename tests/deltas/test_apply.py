"""Deltas make the version that a full export makes, or change nothing."""

import errno
import gc
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mail_torchrec.deltas import apply as apply_module
from mail_torchrec.deltas import table_writer
from mail_torchrec.deltas.apply import apply_delta
from mail_torchrec.deltas.delta_manifest import DeltaManifest
from mail_torchrec.deltas.version_store import VersionStore
from mail_torchrec.inference.artifact_files import checksums
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.serve.versions import ModelVersions
from tests.support.exported_models import version_in


@pytest.fixture
def models(days: Path, tmp_path: Path) -> Path:
    """A folder of versions with the first day."""
    shutil.copytree(days / "full" / "day1", tmp_path / "models" / "day1")
    return tmp_path / "models"


def state(models: Path) -> dict[str, Any]:
    """Names, versions and files of all that is to be seen in a folder of versions."""
    folders = [path for path in models.iterdir() if not path.name.startswith(".")]
    for folder in folders:
        ArtifactManifest.read(folder).check_files(folder)
    return {
        folder.name: {
            name: info for name, info in checksums(folder, skipped=["spare_tables"]).items()
        }
        for folder in folders
    }


def same_scores(one: Path, other: Path) -> bool:
    first, second = Scorer(one, threads=1), Scorer(other, threads=1)
    return all(
        np.array_equal(values, second.score(request)[name])
        for request, _ in read_golden(one)
        for name, values in first.score(request).items()
    )


def test_a_chain_of_deltas_scores_exactly_as_full_exports(days: Path, models: Path) -> None:
    live = Scorer(models / "day1", threads=1)
    before = [live.score(request) for request, _ in read_golden(live.folder)]
    for day in ("day2", "day3"):
        folder = apply_delta(days / "delta" / day, models)
        assert folder == models / day and version_in(folder) == version_in(days / "delta" / day)
        changed = DeltaManifest.read(days / "delta" / day).tables
        num_rows = ArtifactManifest.read(folder).tables["item"].rows
        assert 0 < changed["item"].num_changed < num_rows
        assert (folder / "spare_tables/item.float32").samefile(
            models / "day1/spare_tables/item.float32"
        )
    assert version_in(folder) == version_in(days / "full" / "day3")
    assert same_scores(days / "full" / "day3", folder)
    after = [live.score(request) for request, _ in read_golden(live.folder)]
    for one, other in zip(before, after, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert len(state(models)) == 3  # each with the rows that its manifest says


def test_a_server_takes_deltas_and_keeps_the_versions_that_it_has(days: Path, models: Path) -> None:
    versions = ModelVersions(models, ServerMetrics(), threads=1)
    for loaded, day in ((2, "day2"), (3, "day3")):
        apply_delta(days / "delta" / day, models)
        assert not versions.refresh()
        assert versions.serving.manifest.version == version_in(days / "delta" / day)
        count = versions.metrics.registry.get_sample_value
        found = count("mail_version_loads_total", {"result": "loaded"})
        assert found == loaded  # the others were not loaded anew, nor unloaded
        assert count("mail_version_loads_total", {"result": "changed"}) is None


def test_old_versions_are_taken_away_and_their_rows_stay_while_they_are_read(
    days: Path, models: Path
) -> None:
    live = Scorer(models / "day1", threads=1)
    golden = read_golden(models / "day1")
    apply_delta(days / "delta" / "day2", models, keep=1)
    assert sorted(state(models)) == ["day2"]
    apply_delta(days / "delta" / "day3", models, keep=1)
    assert sorted(state(models)) == ["day3"]
    store = VersionStore(models)  # day2 had no reader
    assert {one.manifest.version for one in store.versions} == {
        version_in(models / "day3"),
        live.manifest.version,
    }
    for request, scores in golden:
        found = live.score(request)
        assert all(np.allclose(found[name], scores[name], atol=1e-5) for name in scores)
    [newest] = store.listed
    rows = newest.manifest.tables["item"].rows
    used = store.used_rows(newest, "item")
    assert used is not None and used[:rows].all() and used.sum() > rows
    del live, store
    gc.collect()
    used = VersionStore(models).used_rows(newest, "item")
    assert used is not None and used.sum() == rows
    assert not list(models.glob(".retired-*"))


def test_a_version_that_a_link_names_is_kept(days: Path, models: Path) -> None:
    (models / "current").symlink_to("day1")
    apply_delta(days / "delta" / "day2", models, keep=1)
    assert sorted(path.name for path in models.glob("[!.]*")) == ["current", "day1", "day2"]


def _damage(name: str) -> Callable[[Path, Path], None]:
    def damage(delta: Path, models: Path) -> None:
        content = bytearray((delta / name).read_bytes())
        content[len(content) // 2] ^= 1
        (delta / name).write_bytes(content)

    return damage


def _first(delta: Path, models: Path) -> None:
    apply_delta(delta, models, name="first")


def _two_later(delta: Path, models: Path) -> None:
    apply_delta(delta, models)
    apply_delta(delta.with_name("day3"), models, keep=1)


def _third_in_place(delta: Path, models: Path) -> None:
    shutil.rmtree(delta)
    shutil.copytree(delta.with_name("day3"), delta)


def _other_base(delta: Path, models: Path) -> None:
    shutil.rmtree(models / "day1")
    shutil.copytree(delta.parent.parent / "day3", models / "other")


def _without_file(delta: Path, models: Path) -> None:
    (delta / "dense.bin").unlink()


def _same_name(delta: Path, models: Path) -> None:
    (models / "day2").mkdir()


def _is_version(delta: Path, models: Path) -> None:
    shutil.copy(models / "day1/manifest.json", models)


REFUSED: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "applied twice": (_first, "applied before"),
    "older than what is there": (_two_later, "which is older than"),
    "out of order": (_third_in_place, "out of order"),
    "of another base": (_other_base, "it is of another base"),
    "a damaged description": (_damage("delta.json"), "damaged"),
    "damaged rows": (_damage("rows/item.weight"), "checksum differs"),
    "damaged row numbers": (_damage("rows/item.int64"), "checksum differs"),
    "a damaged manifest": (_damage("manifest.json"), "checksum differs"),
    "a file is missing": (_without_file, "'dense.bin': it is missing"),
    "a name in use": (_same_name, "exists already"),
    "the folder is a version": (_is_version, "should be a folder of versions"),
}


@pytest.mark.parametrize(("prepare", "message"), REFUSED.values(), ids=REFUSED)
def test_a_delta_that_does_not_fit_is_refused_and_changes_nothing(
    days: Path, models: Path, tmp_path: Path, prepare: Callable[[Path, Path], None], message: str
) -> None:
    shutil.copytree(days / "delta", tmp_path / "delta")
    shutil.copytree(days / "full" / "day3", tmp_path / "day3")
    prepare(tmp_path / "delta" / "day2", models)
    before = checksums(models, skipped=[".lock"])
    with pytest.raises(ValueError, match=message):
        apply_delta(tmp_path / "delta" / "day2", models)
    assert checksums(models, skipped=[".lock"]) == before


def test_a_base_without_its_rows_is_found_by_its_checksums(days: Path, models: Path) -> None:
    path = models / "day1/spare_tables/item.float32"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(ValueError, match=r"item\.float32' is not the file that was exported"):
        apply_delta(days / "delta" / "day2", models)
    assert [path.name for path in models.iterdir() if path.name != ".lock"] == ["day1"]


def test_used_up_spare_rows_ask_for_a_full_export_of_a_large_table_and_rewrite_a_small_one(
    days: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_module, "unused_places", lambda used_P, num_rows: None)
    before = checksums(models)
    with monkeypatch.context() as patch:
        patch.setattr(apply_module, "SMALL_TABLE_BYTES", 0)
        with pytest.raises(ValueError, match="a full export is due"):
            apply_delta(days / "delta" / "day2", models)
    assert checksums(models, skipped=[".lock"]) == before
    folder = apply_delta(days / "delta" / "day2", models)
    assert version_in(folder) == version_in(days / "delta" / "day2")
    assert (folder / "spare_tables/item.float32").stat().st_nlink == 1


def test_files_with_links_elsewhere_are_not_written_to(
    days: Path, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.link(models / "day1/spare_tables/item.float32", tmp_path / "linked")
    before = (tmp_path / "linked").read_bytes()
    folder = apply_delta(days / "delta" / "day2", models)
    assert version_in(folder) == version_in(days / "delta" / "day2")
    assert (tmp_path / "linked").read_bytes() == before


def test_a_full_disk_changes_nothing_and_a_retry_works(
    days: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(models)
    written = []

    def pwrite(descriptor: int, content: Any, offset: int) -> int:
        written.append(offset)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content, offset)

    write = os.pwrite
    monkeypatch.setattr(table_writer.os, "pwrite", pwrite)
    with pytest.raises(OSError, match=r"No space left.*spare_tables"):
        apply_delta(days / "delta" / "day2", models)
    monkeypatch.undo()
    assert state(models) == before and not list(models.glob(".apply-*"))
    assert apply_delta(days / "delta" / "day2", models) == models / "day2"


def _apply_until(event: int, delta: Path, models: Path) -> bool:
    """Applies a delta in a process that is killed at its n-th change of the file system.

    Returns:
        True where it was killed before the end.
    """
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    left = event

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("pwrite", "fsync", "link", "rename", "mkdir", "rmdir", "unlink"):
        call = getattr(os, name)
        setattr(os, name, lambda *args, _call=call, **rest: (count(), _call(*args, **rest))[1])
    try:
        apply_delta(delta, models)
        os._exit(0)
    except BaseException:
        os._exit(1)


def check_kills(days: Path, models: Path, step: int) -> None:
    before, event = state(models), 0
    while _apply_until(event, days / "delta" / "day2", models):
        found = state(models)  # every version that is to be seen has all its rows
        assert found["day1"] == before["day1"] and found.keys() <= {"day1", "day2"}
        if "day2" in found:
            shutil.rmtree(models / "day2")
        event += step
    assert event > 60
    assert version_in(models / "day2") == version_in(days / "delta" / "day2")
    assert not list(models.glob(".apply-*"))


def test_a_kill_at_any_moment_leaves_the_live_version_and_a_retry_works(
    days: Path, models: Path
) -> None:
    check_kills(days, models, 9)


@pytest.mark.long
def test_a_kill_at_every_moment(days: Path, models: Path) -> None:
    check_kills(days, models, 1)


def test_a_delta_names_its_ancestors_and_its_digest_covers_every_file(days: Path) -> None:
    second, third = (DeltaManifest.read(days / "delta" / day) for day in ("day2", "day3"))
    assert third.base == second.version and third.ancestors == [second.base]
    found = checksums(days / "delta" / "day3")
    assert found.keys() - {"delta.json"} == third.files.keys()
    content = json.loads((days / "delta" / "day3" / "delta.json").read_text())
    assert content["digest"] == third.content_digest()


def test_ids_that_lost_their_rows_have_tombstones(days: Path) -> None:
    """A managed table of 34 ids, of which the days see 40."""
    known: list[set[int]] = []
    for folder in (days / "full" / "day1", days / "delta" / "day2", days / "full" / "day3"):
        owners = pq.read_table(folder / "vocabularies" / "item.parquet")["value"].drop_null()
        known.append(set(owners.to_pylist()))
    for day, before, after in (("day2", *known[:2]), ("day3", *known[1:])):
        delta = days / "delta" / day
        gone = pq.read_table(delta / "tombstones" / "item.parquet")["value"].to_pylist()
        assert gone and set(gone) == before - after
        assert len(gone) == DeltaManifest.read(delta).tables["item"].num_gone
