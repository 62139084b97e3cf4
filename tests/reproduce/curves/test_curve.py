"""The curve: planned once a point, and made of finished runs with its controls."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.reproduce.curves.curve import make_curve
from mail_torchrec.reproduce.curves.plan import CurvePlan, plan_curve
from mail_torchrec.reproduce.curves.points import Axis, share_points
from mail_torchrec.reproduce.methods.definitions import METHODS
from mail_torchrec.reproduce.methods.selection import section_methods
from tests.reproduce.conftest import HIDING
from tests.support.saved_predictions import save_predictions

MEAN_FILL, ORACLE = "BaseDNN + mean fill", "BaseDNN oracle"
GAINS = {
    ("BaseDNN", 0.02): 0.2,
    ("BaseDNN", 0.4): 0.9,
    (MEAN_FILL, 0.02): 0.5,
    (MEAN_FILL, 0.4): 0.9,
    ("MAIL-BaseDNN", 0.02): 1.0,
    ("MAIL-BaseDNN", 0.4): 0.9,
    (ORACLE, None): 1.8,
}
"""How well new users' scores know the labels, by method and training share."""


@pytest.fixture
def plan(config: Path) -> CurvePlan:
    names = ["BaseDNN", MEAN_FILL, "MAIL-BaseDNN", ORACLE]
    points = share_points([0.4, 0.02])
    return plan_curve(Axis.SHARE, points, names, config, config.parent / "out", 2, ())


def auc(scores: Any, labels: Any) -> float:
    wins = scores[labels == 1][:, None] - scores[labels == 0]
    return float(((wins > 0) + 0.5 * (wins == 0)).mean())


def test_every_method_is_trained_at_every_point_and_an_oracle_once(plan: CurvePlan) -> None:
    found = {
        (job.method, job.seed, job.config.data.cold_start.train_share, job.path.parts[-6:-3])
        for job in plan.jobs
    }
    swept = ("BaseDNN", MEAN_FILL, "MAIL-BaseDNN")
    assert found == {
        *(
            (name, seed, share, ("out", "curve", f"share-{share}"))
            for name in swept
            for seed in (1, 2)
            for share in (0.02, 0.4)
        ),
        *((ORACLE, seed, None, ("out", "curve", "any-share")) for seed in (1, 2)),
    }
    assert len(found) == len(plan.jobs) and [job.seed for job in plan.jobs] == [1] * 7 + [2] * 7
    assert {job.config.data.cold_start.of_test.hide_share for job in plan.jobs} == {0.4}
    assert plan.jobs[0].title == "BaseDNN, 2 %, seed 1"


def test_a_curve_says_where_gains_over_the_base_and_over_mean_fill_are_real(
    plan: CurvePlan, tmp_path: Path
) -> None:
    data = np.random.default_rng(0)
    labels, users = data.integers(2, size=1000), data.integers(300, size=1000)
    is_new = users % 2 == 0
    expected: dict[tuple[str, float | None], list[float]] = {}
    for job in plan.jobs:
        noise = np.random.default_rng([job.seed, 7]).normal(size=1000)
        place = (job.method, job.config.data.cold_start.train_share)
        scores = noise + np.where(is_new, GAINS[place], 0.2) * labels
        expected.setdefault(place, []).append(auc(scores[is_new], labels[is_new]))
        job.path.mkdir(parents=True)
        save_predictions(
            Predictions.from_columns(scores, labels, users, is_new), job.run_dir.predictions
        )
    section = make_curve(plan, tmp_path / "out", num_resamples=100)
    section.save(tmp_path / "out", "mail-torchrec reproduce curve", "name: small")
    alone, fill, mail = section.verdicts
    assert alone.startswith("BaseDNN alone: new users' AUC .")
    assert fill.startswith(
        f"{MEAN_FILL}: gains of new users are real over BaseDNN at 2 %; over BaseDNN at its best "
        "share at no point; old users lose, against BaseDNN, at no point. Most of the headroom at "
    )
    assert mail.startswith(
        f"MAIL-BaseDNN: gains of new users are real over BaseDNN at 2 %; over {MEAN_FILL} at 2 %; "
    )
    record = json.loads((tmp_path / "out/curve.json").read_text())
    values = {(value["method"], value["point"]): value for value in record["values"]}
    base, own, oracle = (
        np.mean(expected[place])
        for place in (("BaseDNN", 0.02), ("MAIL-BaseDNN", 0.02), (ORACLE, None))
    )
    found = values["MAIL-BaseDNN", "share-0.02"]
    assert found["metrics"]["new"]["auc"]["mean"] == pytest.approx(own)
    assert found["headroom"]["mean"] == pytest.approx((own - base) / (oracle - base))
    best = found["differences"]["BaseDNN at its best share"]["new"]["auc"]["mean"]
    assert best == pytest.approx(own - np.mean(expected["BaseDNN", 0.4]))
    assert values[ORACLE, "share-0.02"]["headroom"] is None
    assert values[ORACLE, "share-0.02"]["metrics"] == values[ORACLE, "share-0.4"]["metrics"]
    assert list(section.plots) == ["curve-BaseDNN.png"]
    assert (tmp_path / "out/curve-BaseDNN.png").stat().st_size
    head = next(line for line in section.text.splitlines() if line.startswith("| headroom"))
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["headroom recovered", "2 %", "40 %"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.cold_start.train_share=0.1"], "sweeps data.cold_start.train_share itself"),
        (["data.cold_start.hide_share=0"], "hidden users of the test data, and there are none"),
        (["data.cold_start.keep=2"], "data.cold_start.keep=2 leaves hidden users some behaviours"),
        (["--share", "0.1", "--rows", "50"], "--share and --rows are two curves; give one"),
        (["--rows", "120"], "below the 120 training rows of"),
        (["--share", "1.5"], "1.5 is not in the range 0<=x<=1"),
        (["--paper", "public"], "curve does not have --paper; leave it out"),
        (["--method", "Nobody"], "curve has no method ['Nobody']; it has: Emblr"),
    ],
)
def test_what_the_curve_cannot_measure_is_refused_before_any_run(
    config: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    command = ["reproduce", "curve", "--config", str(config), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*command, *arguments])
    assert done.exit_code != 0 and message in done.output
    assert not list(tmp_path.glob("out/**/seed-*"))


def test_points_of_the_curve_are_of_the_curve_alone(config: Path, tmp_path: Path) -> None:
    command = ["reproduce", "table2", "--config", str(config), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*command, "--share", "0.1"])
    assert done.exit_code == 2 and "table2 does not have --share" in done.output


def test_a_remedy_is_measured_against_mean_fill_and_a_control_is_not() -> None:
    assert METHODS["MAIL-DMR"].controls[0] == "DMR + mean fill"
    assert MEAN_FILL not in METHODS[MEAN_FILL].controls
    assert not METHODS[ORACLE].controls and not METHODS["BaseDNN"].controls
    assert MEAN_FILL in section_methods("curve", [], HIDING)


@pytest.mark.long
@pytest.mark.usefixtures("preloaded_runs")
def test_a_curve_over_rows_trains_its_samples_and_is_kept(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        *("reproduce", "curve", "--config", str(config), "--out", str(out), "--seeds", "1"),
        *("--method", "BaseDNN", "--method", MEAN_FILL, "--rows", "60"),
    ]
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    record = json.loads((out / "curve-rows.json").read_text())
    assert list(record["points"]) == ["rows-60", "rows-all"]
    trained = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.json")}
    rows = json.loads((out / "curve/rows-60/runs/BaseDNN/seed-1/data.json").read_text())
    assert f"{rows['train']['rows']:,} rows" == record["points"]["rows-60"]
    assert len(trained) == 4
    again = CliRunner().invoke(main, command)
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("metrics.json")} == trained
    assert "by the number of training rows" in (out / "report.md").read_text()
