import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from mail_torchrec.reporting.loss_curves import _smooth, draw_loss_curves
from tests.support.plots import size_and_ink


def write_log(
    path: Path,
    num_lines: int,
    names: tuple[str, ...] = ("loss/L_rt", "loss/L_a", "loss/L_v", "loss/L_d"),
) -> Path:
    lines = [
        {
            "step": 20 * i,
            "rows": i,
            **{name: 0.7 * 0.9 ** (i * k) for k, name in enumerate(names)},
            "rows_per_second": 9.0,
        }
        for i in range(num_lines)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_panel_for_each_loss(tmp_path: Path) -> None:
    shapes = []
    for names in (
        ("loss/L_rt",),
        ("loss/L_rt", "loss/L_a"),
        ("loss/L_rt", "loss/L_a", "loss/L_v", "loss/L_d", "loss/match"),
    ):
        draw_loss_curves([write_log(tmp_path / "log.jsonl", 50, names)], tmp_path / "out.png")
        width, height, coloured = size_and_ink(tmp_path / "out.png")
        shapes.append((width, height))
        assert coloured > 1000
    assert [width / shapes[0][0] for width, _ in shapes] == [1, 2, 2]
    assert [round(height / shapes[0][1]) for _, height in shapes] == [1, 1, 3]


def test_seeds_share_a_curve_and_differ_in_its_band(tmp_path: Path) -> None:
    logs = [write_log(tmp_path / f"{seed}.jsonl", 50, ("loss/L_rt",)) for seed in range(3)]
    draw_loss_curves(logs, tmp_path / "equal.png")
    logs[1].write_text(logs[1].read_text().replace('"loss/L_rt": 0.', '"loss/L_rt": 0.9'))
    draw_loss_curves(logs, tmp_path / "band.png")
    without, band = (
        matplotlib.image.imread(tmp_path / name)[..., :3] for name in ("equal.png", "band.png")
    )
    pale = [
        int(((np.ptp(picture, axis=2) > 0.05) & (picture.min(axis=2) > 0.7)).sum())
        for picture in (without, band)
    ]
    assert pale[1] > pale[0] + 1000


def test_runs_of_different_lengths_are_refused(tmp_path: Path) -> None:
    logs = [write_log(tmp_path / "a.jsonl", 50), write_log(tmp_path / "b.jsonl", 40)]
    with pytest.raises(
        ValueError,
        match=r"b.jsonl' should have the steps and losses of '.*a.jsonl'; are these runs of one "
        r"method\?",
    ):
        draw_loss_curves(logs, tmp_path / "out.png")


def test_one_point_and_missing_values_are_drawn(tmp_path: Path) -> None:
    draw_loss_curves([write_log(tmp_path / "log.jsonl", 1)], tmp_path / "out.png")
    assert size_and_ink(tmp_path / "out.png")[2] > 100
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "loss/L_rt": 0.7, "loss/L_a": null}\n'
        '{"step": 2, "loss/L_rt": 0.6, "loss/L_a": 0.0}\n'
    )
    draw_loss_curves([tmp_path / "log.jsonl"], tmp_path / "out.png")


def test_no_figure_stays_open(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    draw_loss_curves([write_log(tmp_path / "log.jsonl", 30)], tmp_path / "out.png")
    assert plt.get_fignums() == []


def test_smoothing_keeps_a_constant_and_shrinks_at_the_ends() -> None:
    assert _smooth(np.full(10, 3.0), 5) == pytest.approx(np.full(10, 3.0))
    assert _smooth(np.arange(5.0), 3) == pytest.approx([0.5, 1, 2, 3, 3.5])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"does not exist"),
        ("", r"should hold losses"),
        ('{"step": 1, "rows": 2}\n', r"should hold losses"),
        ('{"step": 1, "loss/L_rt": 0.5}\n{"st', r"line 2, is not JSON.*stopped while writing"),
        ('{"loss/L_rt": 0.5}\n', r"line 1, should be an object with a 'step'"),
    ],
)
def test_a_damaged_log_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        draw_loss_curves([tmp_path / "log.jsonl"], tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_validation_is_drawn_in_the_same_picture(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", 50, ("loss/L_rt",))
    draw_loss_curves([log], tmp_path / "without.png")
    metrics = {"auc": 0.6, "gauc": None, "log_loss": 0.65, "rows": 9}
    line = json.dumps({"step": 500, "validation": {"all": metrics}}) + "\n"
    log.write_text(log.read_text() + line + line.replace("500", "900").replace("0.65", "0.7"))
    draw_loss_curves([log], tmp_path / "with.png")
    without, drawn = (
        matplotlib.image.imread(tmp_path / name)[..., :3] for name in ("without.png", "with.png")
    )
    assert drawn.shape[1] == 2 * without.shape[1]  # a panel for the AUC
    panel = drawn[:, : without.shape[1]]
    red = [(part[..., 0] - part[..., 2] > 0.3).sum() for part in (without, panel)]
    assert red[0] == 0 < red[1]  # the log loss, in the panel of the ranking loss
