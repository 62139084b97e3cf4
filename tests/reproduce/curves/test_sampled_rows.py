"""Samples of the training rows: whole users, nested, kept, and refused where they mislead."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mail_torchrec.config import load_config
from mail_torchrec.reproduce.curves.sampled_rows import sample_training_rows
from tests.support.small_rows import write_rows


def users_of(folder: Path) -> list[int]:
    return [user for file in folder.iterdir() for user in pq.read_table(file)["user"].to_pylist()]


def test_a_sample_has_whole_users_and_lies_in_a_larger_one(config: Path, tmp_path: Path) -> None:
    of_all = pq.read_table(tmp_path / "rows/train")
    chosen = {}
    for wanted in (40, 80):
        folder, num_rows = sample_training_rows(
            load_config(config, []), wanted, tmp_path / str(wanted)
        )
        found = users_of(folder)
        assert len(found) == num_rows and 0 < num_rows < len(of_all)
        chosen[wanted] = set(found)
        kept = [user for user in of_all["user"].to_pylist() if user in chosen[wanted]]
        assert sorted(found) == sorted(kept)
    assert chosen[40] < chosen[80]


def test_a_sample_is_kept_and_one_of_other_files_is_refused(config: Path, tmp_path: Path) -> None:
    def sample() -> tuple[Path, int]:
        return sample_training_rows(load_config(config, []), 60, tmp_path / "sample")

    folder, num_rows = sample()
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert sample() == (folder, num_rows)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    (tmp_path / "sample/origin.json").unlink()  # an interrupted command
    assert sample() == (folder, num_rows)
    write_rows(tmp_path / "rows/train/a.parquet", 150, seed=3)
    with pytest.raises(ValueError, match=r"is a sample of other training files or columns; choose"):
        sample()


def test_a_sample_without_a_user_is_refused(config: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows/train/a.parquet", 2, seed=1)  # one user
    with pytest.raises(ValueError, match=r"--rows 1 leaves no user of .*, which has 2 rows"):
        sample_training_rows(load_config(config, []), 1, tmp_path / "sample")
