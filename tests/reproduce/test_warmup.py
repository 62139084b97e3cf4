"""The warm-up sweep: its evaluations, and the verdicts on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import Config
from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.reproduce.jobs import TrainingJob, plan_trainings
from mail_torchrec.reproduce.warmup import KEPT, make_warmup, plan_evaluations
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.saved_predictions import save_predictions

REAL = {0: 0.1, 1: 0.1, 2: 0.4, 5: 1.5, 10: 1.6, 20: 1.7}
"""How well scores know the labels with so many behaviours (with 2 the second seed much more);
virtual ones are worth 0.5."""


def swept(
    config: Path, methods: list[str], gains: dict[int, float], seeds: int = 2
) -> list[TrainingJob]:
    """Finished runs whose scores know the labels as well as ``gains`` says."""
    runs = plan_trainings(config, config.parent / "out", methods, seeds, ())
    data = np.random.default_rng(0)
    labels, users = data.integers(2, size=2000), data.integers(600, size=2000)
    paths = [(run, 0, run.run_dir.predictions) for run in runs]
    paths += [
        (each.training, kept, each.predictions)
        for each, kept in zip(plan_evaluations(runs), np.repeat(KEPT[1:], len(runs)), strict=True)
    ]
    for run, kept, path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng([run.seed, 7]).normal(size=2000)
        gain = (
            0.5
            if run.method.startswith("MAIL") and kept == 0
            else gains[int(kept)] + 0.3 * (kept == 2) * (run.seed - 1)
        )
        rows = Predictions.from_columns(noise + gain * labels, labels, users, users % 2 == 0)
        save_predictions(rows, path)
    return runs


def test_every_run_is_evaluated_with_each_number_of_behaviours(config: Path) -> None:
    runs = plan_trainings(config, config.parent / "out", ["BaseDNN", "MAIL-BaseDNN"], 2, ())
    asked = {
        (each.training.title, each.arguments()[-1], each.predictions.name)
        for each in plan_evaluations(runs)
    }
    assert asked == {
        (run.title, f"data.cold_start.keep={kept}", f"keep-{kept}")
        for run in runs
        for kept in (1, 2, 5, 10, 20)
    }


@pytest.mark.parametrize(("override", "message"), [
    ("data.cold_start.keep=1", "sweeps data.cold_start.keep itself, from 0 on; leave it out"),
    ("data.cold_start.hide_share=0", "data.cold_start.hide_share=0 hides none; set it above 0"),
    ("data.new_user_max_behaviours=2",
     "data.new_user_max_behaviours=2 gives users with so many virtual ones; set it 0"),
])  # fmt: skip
def test_what_the_sweep_cannot_measure_is_refused_before_any_run(
    config: Path, tmp_path: Path, override: str, message: str
) -> None:
    done = CliRunner().invoke(
        main,
        ["reproduce", "warmup", "--config", str(config), "--out", str(tmp_path / "out"), override],
    )
    assert done.exit_code == 1 and message in done.output and not (tmp_path / "out").exists()


def test_the_point_where_virtual_behaviours_stop_paying_is_named(
    config: Path, tmp_path: Path
) -> None:
    section = make_warmup(
        swept(config, ["BaseDNN", "MAIL-BaseDNN"], REAL), tmp_path / "out", num_resamples=100
    )
    stop, passes = section.verdicts
    assert stop.startswith(
        "MAIL-BaseDNN: virtual behaviours stop paying at 5 real ones (5 real less virtual, new "
        "users' AUC +."
    )
    assert passes.startswith(
        "MAIL-BaseDNN on virtual behaviours: BaseDNN passes at 5 real ones (5 real less virtual"
    )
    [sweep] = section.content["sweeps"]
    lines = sweep["metrics"]["auc"]
    assert (
        lines["plain"][2:] != lines["real"][:-2]
        and lines["plain"][1:] == lines["real"][1:]
        and lines["real"][0] is None
    )
    means = [lines[name][3]["mean"] for name in ("real", "virtual", "real - virtual")]
    assert means[0] - means[1] == pytest.approx(means[2])
    assert len({value["mean"] for value in lines["virtual"]}) == 1
    assert (
        lines["real - virtual"][2]["mean"] > 0 > lines["real - virtual"][2]["low"]
    )  # better at 2, but not clearly
    assert (tmp_path / "out/warmup.png").stat().st_size and "| MAIL-BaseDNN, real " in section.text


def test_virtual_behaviours_that_always_pay_are_said_to(config: Path, tmp_path: Path) -> None:
    section = make_warmup(
        swept(config, ["MAIL-DMR", "DMR"], dict.fromkeys(KEPT, 0.1)),
        tmp_path / "out",
        num_resamples=100,
    )
    assert section.verdicts[0].startswith(
        "MAIL-DMR: virtual behaviours do not stop paying within the sweep (20 real less virtual"
    )
    assert "DMR does not pass within the sweep (20 real" in section.verdicts[1]


def test_a_method_or_a_base_alone_is_swept(config: Path, tmp_path: Path) -> None:
    section = make_warmup(
        swept(config, ["DMR", "MAIL-BaseDNN"], REAL, seeds=1), tmp_path / "out", num_resamples=20
    )
    assert [
        (sweep["method"], sweep["base"], len(sweep["metrics"]["auc"]))
        for sweep in section.content["sweeps"]
    ] == [("MAIL-BaseDNN", None, 3), (None, "DMR", 1)]
    assert len(section.verdicts) == 1


def test_kept_behaviours_count_and_filling_all_the_same_is_as_having_none(
    config: Path, tmp_path: Path
) -> None:
    tree = yaml.safe_load(config.read_text()) | {"name": "MAIL"}
    train(Config.model_validate(tree), RunDir(tmp_path / "run"))

    def scores(*overrides: str) -> Predictions:
        arguments = [
            "evaluate",
            "--run-dir",
            str(tmp_path / "run"),
            "--predictions",
            str(tmp_path / "some"),
            "--overwrite",
            *overrides,
        ]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        return Predictions.load(tmp_path / "some")

    def alike(one: Any, other: Any) -> bool:
        """But for rounding: products over other numbers of positions may add in another order."""
        return np.allclose(one, other, rtol=0, atol=1e-6)

    without, real, oracle = (
        scores(),
        scores("data.cold_start.keep=3"),
        scores("data.cold_start.oracle=true"),
    )
    filled, everything = (
        scores("data.cold_start.keep=3", "data.new_user_max_behaviours=3"),
        scores("data.cold_start.keep=99"),
    )
    new = without.is_new_R
    assert 0 < new.sum() < len(new)
    for other in (real, oracle, everything):
        assert np.array_equal(other.is_new_R, new) and alike(
            other.scores_R[~new], without.scores_R[~new]
        )
    assert not alike(real.scores_R[new], without.scores_R[new]) and not alike(
        real.scores_R, oracle.scores_R
    )
    assert alike(filled.scores_R[new], without.scores_R[new])
    assert alike(everything.scores_R, oracle.scores_R)
