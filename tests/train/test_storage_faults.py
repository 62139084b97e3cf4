"""A run directory that another job holds, and a disk that fills up."""

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mail_torchrec.config import Config
from mail_torchrec.metrics.cohorts import CohortMetrics
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from mail_torchrec.utils.file_lock import lock_folder
from tests.support.small_rows import config_tree, write_rows


def run(
    root: Path, run_dir: Path, *, resume: bool = False, **sections: Any
) -> dict[str, CohortMetrics]:
    data = {"root": str(root), "test": "train"}
    return train(
        Config.model_validate(config_tree(root, data=data, **sections)),
        RunDir(run_dir),
        resume=resume,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train" / "a.parquet", 160, seed=1)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_directory_in_use_is_refused(root: Path, tmp_path: Path, resume: bool) -> None:
    with (
        lock_folder(tmp_path / "run"),
        pytest.raises(
            ValueError, match=r"run' is in use by another job \(host .*, pid \d+, since 20"
        ),
    ):
        run(root, tmp_path / "run", resume=resume)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_run_directory_is_its_user_s_alone_unless_it_exists(
    root: Path, tmp_path: Path, umask: int
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    before = os.umask(umask)
    try:
        for name, mode in (("new", 0o700), ("shared", 0o755)):
            with RunDir(tmp_path / name).lock(resume=False):
                assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    finally:
        os.umask(before)


def test_damaged_metrics_are_told_and_the_run_is_evaluated_anew(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = run(root, tmp_path / "run")
    (tmp_path / "run/metrics.json").write_text("")
    assert run(root, tmp_path / "run", resume=True) == metrics
    told = capsys.readouterr().err
    assert "run' is damaged, and is evaluated anew: " in told
    assert "metrics.json should have the SHA-256" in told


def test_a_full_disk_leaves_the_last_checkpoint_whole_and_the_run_goes_on_once_there_is_room(
    root: Path, tmp_path: Path, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sections = {"train": {"batch_size": 16}, "checkpoint": {"every": 2, "keep": 50}}
    with pytest.raises(
        OSError,
        match=(
            r"step 10 could not be written below .*MiB free "
            r"there.*remains the newest"
        ),
    ):
        run(root, small_disk / "run", **sections)
    assert (
        "WARNING: the checkpoint of step" in capfd.readouterr().err
    )  # those before were not fatal
    folders = sorted((small_disk / "run/checkpoints").iterdir())
    assert folders and all(
        folder.name.startswith("step-") for folder in folders
    )  # nothing half written is left
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folders[-1], check=True)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    metrics = run(root, small_disk / "run", resume=True, **sections)
    assert (
        f"going on after step {int(folders[-1].name.removeprefix('step-'))}"
        in capfd.readouterr().err
    )
    assert metrics == run(root, tmp_path / "calm", **sections)
