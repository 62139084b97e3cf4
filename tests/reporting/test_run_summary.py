"""The small table at the end of a training."""

from pathlib import Path

from mail_torchrec.reporting.run_summary import run_summary


def test_it_shows_each_cohort_and_names_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").touch()
    (tmp_path / "checkpoints").mkdir()
    one = {"auc": 0.51236, "gauc": None, "rows": 1234, "users": 7, "calibration": 1.25}
    text = run_summary({"new": one, "old": one, "all": one}, tmp_path)
    lines = text.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        *("test rows of", "rows", "auc", "gauc", "calibration")
    ]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("new", "1,234", "0.5124", "-", "1.2500")
    ]
    assert lines[-1] == f"in {tmp_path}: metrics.json, checkpoints"


def test_metrics_of_an_earlier_version_are_shown_too(tmp_path: Path) -> None:
    one = {"auc": 0.5, "gauc": 0.5, "rows": 1, "users": 1}
    assert "| old" in run_summary({"new": one, "old": one, "all": one}, tmp_path)
