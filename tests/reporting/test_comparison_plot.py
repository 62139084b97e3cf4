from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from mail_torchrec.reporting.comparison import MethodResult
from mail_torchrec.reporting.comparison_plot import draw_comparison
from mail_torchrec.reporting.intervals import Interval
from tests.support.plots import size_and_ink


def method(name: str, new: float | None, old: float, half: float | None) -> MethodResult:
    def interval(mean: float) -> Interval:
        return (
            Interval(mean, None, None, 1)
            if half is None
            else Interval(mean, mean - half, mean + half, 5)
        )

    metrics = {
        "new": {"auc": interval(new) if new else None, "gauc": None},
        "old": {"auc": interval(old), "gauc": None},
    }
    return MethodResult(name, ["run"] * (1 if half is None else 5), metrics)


def test_methods_are_drawn_with_and_without_intervals(tmp_path: Path) -> None:
    rows = [method("BaseDNN", 0.56, 0.72, 0.01), method("MAIL-BaseDNN", 0.61, 0.72, 0.01)]
    draw_comparison(rows, tmp_path / "two.png")
    draw_comparison([*rows, method("DMR", None, 0.7, None)], tmp_path / "three.png")
    assert size_and_ink(tmp_path / "two.png")[2] > 300
    assert size_and_ink(tmp_path / "three.png")[1] > size_and_ink(tmp_path / "two.png")[1]


def test_lopsided_intervals_are_drawn_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    errorbar = Axes.errorbar
    monkeypatch.setattr(
        Axes,
        "errorbar",
        lambda *arguments, **options: (
            drawn.append(options["xerr"]),
            errorbar(*arguments, **options),
        )[1],
    )
    metrics = {
        "new": {"auc": Interval(0.6, 0.5, 0.62, 5)},
        "old": {"auc": Interval(0.7, None, None, 1)},
    }
    draw_comparison(
        [MethodResult("a", ["run"], metrics)], tmp_path / "out.png", over="users and 5 seeds"
    )
    assert np.concatenate(drawn).ravel().tolist() == pytest.approx([0.1, 0.02, 0.0, 0.0])


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    for rows in ([], [method("BaseDNN", 0.56, 0.72, 0.01)]):
        with pytest.raises(ValueError, match=r"at least one method should have the metric 'gauc'"):
            draw_comparison(rows, tmp_path / "out.png", "gauc")
