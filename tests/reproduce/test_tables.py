"""The tables: made of finished runs, with verdicts that say what the intervals say."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.reporting.intervals import Interval
from mail_torchrec.reproduce.jobs import TrainingJob, plan_trainings
from mail_torchrec.reproduce.methods.definitions import TABLE_2
from mail_torchrec.reproduce.methods.selection import section_methods
from mail_torchrec.reproduce.table_text import (
    classify_difference,
    format_difference,
    format_share,
)
from mail_torchrec.reproduce.tables import make_table
from tests.support.saved_predictions import save_predictions

HIDING = ColdStartSettings(hide_share=0.4)
GAINS = {
    "BaseDNN": 0.2,
    "MAIL-BaseDNN": 1.0,
    "BaseDNN oracle": 1.8,
    "DMR": 0.2,
    "MAIL-None": 0.2,
    "MAIL-Single": 2.0,
    "MAIL-Dual": 0.5,
}


def finished(config: Path, methods: list[str], seeds: int) -> list[TrainingJob]:
    """Runs whose scores know the labels as well as GAINS says."""
    runs = plan_trainings(config, config.parent / "out", methods, seeds, ())
    data = np.random.default_rng(0)
    labels, users = data.integers(2, size=1000), data.integers(300, size=1000)
    for run in runs:
        run.path.mkdir(parents=True)
        noise = np.random.default_rng([run.seed, 7]).normal(size=1000)
        gain = np.where(users % 2 == 0, GAINS[run.method], 0.2) + 0.01 * run.seed
        rows = Predictions.from_columns(noise + gain * labels, labels, users, users % 2 == 0)
        save_predictions(rows, run.run_dir.predictions)
        run.run_dir.metrics.write_text(
            json.dumps({part: {"rows": 500, "users": 150} for part in ("new", "old", "all")})
        )
    return runs


def made(
    name: str,
    runs: list[TrainingJob],
    out: Path,
    dataset: str | None = None,
    num_resamples: int = 20,
) -> str:
    section = make_table(name, runs, out, dataset, num_resamples)
    section.save(out, "mail-torchrec reproduce", "name: small")
    return section.text


def test_a_table_says_which_gains_are_real(config: Path, tmp_path: Path) -> None:
    runs = finished(config, ["BaseDNN", "MAIL-BaseDNN", "DMR", "BaseDNN oracle"], seeds=3)
    text = made("table2", runs, tmp_path / "out", num_resamples=100)
    assert text == (tmp_path / "out/table2.md").read_text()
    table = json.loads((tmp_path / "out/table2.json").read_text())
    base, mail, dmr, oracle = table["methods"]
    assert (table["seeds"], table["resamples"], table["test"]["new"]) == (
        3,
        100,
        {"rows": 500, "users": 150},
    )
    assert [line["name"] for line in table["methods"]] == [
        "BaseDNN",
        "MAIL-BaseDNN",
        "DMR",
        "BaseDNN oracle",
    ]
    assert (
        base["verdict"] is None
        and base["differences"] == {}
        and base["relative"]["new"]["auc"] == 0
        and dmr["base"] is None
    )
    assert (
        "new users +" in mail["verdict"]
        and "], a gain; old users +.0000 [+.0000, +.0000], none. It recovers " in mail["verdict"]
    )
    assert mail["verdict"] in text and "- DMR" not in text
    new = {line["name"]: line["metrics"]["new"]["auc"]["mean"] for line in table["methods"]}
    assert mail["differences"]["new"]["auc"]["mean"] == pytest.approx(
        new["MAIL-BaseDNN"] - new["BaseDNN"]
    )
    assert mail["relative"]["new"]["auc"] == pytest.approx(
        100 * (new["MAIL-BaseDNN"] / new["BaseDNN"] - 1)
    )
    room = new["BaseDNN oracle"] - new["BaseDNN"]
    assert mail["headroom"]["mean"] == pytest.approx((new["MAIL-BaseDNN"] - new["BaseDNN"]) / room)
    assert oracle["headroom"] is None and "headroom of" not in oracle["verdict"]


def test_a_method_without_its_base_in_the_table_has_no_difference(
    config: Path, tmp_path: Path
) -> None:
    made("table2", finished(config, ["MAIL-BaseDNN"], seeds=1), tmp_path / "out", num_resamples=20)
    [line] = json.loads((tmp_path / "out/table2.json").read_text())["methods"]
    assert (
        line["base"] is None and line["relative"]["new"]["auc"] is None and line["verdict"] is None
    )


def test_one_seed_is_told_of(config: Path, tmp_path: Path) -> None:
    text = made(
        "table2", finished(config, ["BaseDNN"], seeds=1), tmp_path / "out", num_resamples=20
    )
    assert "One seed, so that intervals hold what users vary and not what seeds do" in text


def test_table_3_checks_the_papers_order_and_is_relative_to_mail(
    config: Path, tmp_path: Path
) -> None:
    runs = finished(
        config,
        section_methods(
            "table3", ["BaseDNN", "MAIL-None", "MAIL-Single", "MAIL-Dual", "MAIL-BaseDNN"], HIDING
        ),
        seeds=2,
    )
    made("table3", runs, tmp_path / "out", num_resamples=100)
    table = json.loads((tmp_path / "out/table3.json").read_text())
    assert [
        (claim["lower"], claim["higher"], claim["verdict"].rpartition(": ")[2])
        for claim in table["order"]
    ] == [
        ("MAIL-None", "BaseDNN", "cannot be told."),
        ("MAIL-Single", "MAIL-Dual", "it is the other way round."),
        ("MAIL-Dual", "MAIL-BaseDNN", "so it is."),
    ]
    assert [line["relative"]["new"]["auc"] < 0 for line in table["methods"]] == [
        True,
        True,
        False,
        True,
        False,
    ]


def test_the_papers_metrics_stand_beside_ours(config: Path, tmp_path: Path) -> None:
    text = made(
        "table2",
        finished(config, ["BaseDNN", "MAIL-BaseDNN", "BaseDNN oracle"], seeds=2),
        tmp_path / "out",
        "public",
    )
    _, beside = text.split("The paper's own metrics (public dataset) beside ours:")
    line = next(line for line in beside.splitlines() if line.startswith("| MAIL-BaseDNN"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert (cells[2], cells[4], cells[6], cells[8]) == (
        ".5934",
        "+1.23 %",
        ".5710",
        "+0.92 %",
    ) and "oracle" not in beside
    mail = json.loads((tmp_path / "out/table2.json").read_text())["methods"][1]
    assert cells[1] == f"{mail['metrics']['new']['auc']['mean']:.4f}"[1:]
    assert (tmp_path / "out/table2.png").stat().st_size


def test_numbers_are_short() -> None:
    assert format_difference(Interval(0.0012, -0.0003, 0.00271, 5)) == "+.0012 [-.0003, +.0027]"
    assert (
        format_difference(Interval(-0.0012, None, None, 1)) == "-.0012"
        and format_difference(None) == "-"
    )
    assert (
        format_share(Interval(0.123, -0.05, 1.2, 5)) == "12 % [-5 %, 120 %]"
        and format_share(None) == "-"
    )


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        (Interval(0.2, 0.1, 0.3, 5), "a gain"),
        (Interval(-0.2, -0.3, -0.1, 5), "a loss"),
        (Interval(0.1, -0.1, 0.3, 5), "none"),
        (Interval(-0.1, -0.3, 0.1, 5), "none"),
        (Interval(0.1, 0.0, 0.2, 5), "none"),
        (None, "unknown"),
    ],
)
def test_a_difference_whose_interval_holds_0_is_none(interval: Interval | None, word: str) -> None:
    assert classify_difference(interval) == word


def test_a_method_that_the_table_does_not_have_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"table3 has no method \['MetaEmb'\]; it has: BaseDNN, MAIL-None"
    ):
        section_methods("table3", ["BaseDNN", "MetaEmb"], HIDING)


def test_oracles_are_left_out_where_nothing_is_hidden_unless_they_were_chosen(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = ColdStartSettings()
    assert section_methods("table2", [], HIDING) == TABLE_2
    plain = [name for name in TABLE_2 if not name.endswith(" oracle")]
    assert section_methods("table2", [], nothing) == plain
    assert "left out: Emblr oracle, BaseDNN oracle, DMR oracle" in capsys.readouterr().err
    assert section_methods("table2", ["DMR oracle"], nothing) == ["DMR oracle"]
    overrides = ("data.cold_start.hide_share=0",)
    with pytest.raises(ValueError, match=r"DMR oracle: (.|\n)*hide_share 0 hides none"):
        plan_trainings(config, config.parent / "out", ["DMR", "DMR oracle"], 1, overrides)


@pytest.mark.slow
@pytest.mark.usefixtures("preloaded_runs")
def test_tables_are_trained_resumed_and_share_their_runs(config: Path, tmp_path: Path) -> None:
    arguments = [
        "--config",
        str(config),
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "2",
        "--method",
        "BaseDNN",
        "--method",
        "MAIL-BaseDNN",
    ]
    first = CliRunner().invoke(main, ["reproduce", "table2", *arguments])
    assert first.exit_code == 0, first.output
    assert (
        "| MAIL-BaseDNN - BaseDNN |" in first.stdout
        and str(tmp_path / "out/table2.json") in first.stdout
    )
    for method in json.loads((tmp_path / "out/table2.json").read_text())["methods"]:
        metrics = [
            json.loads(Path(run_dir, "metrics.json").read_text()) for run_dir in method["run_dirs"]
        ]
        for part in ("new", "old"):
            for figure in ("auc", "gauc"):
                assert method["metrics"][part][figure]["mean"] == pytest.approx(
                    np.mean([run[part][figure] for run in metrics]), abs=1e-9
                )
    written = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out/runs").rglob("metrics.json")
    }
    assert len(written) == 4
    assert CliRunner().invoke(main, ["reproduce", "table2", *arguments]).stdout == first.stdout
    assert CliRunner().invoke(main, ["reproduce", "table3", *arguments]).exit_code == 0
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out/runs").rglob("metrics.json")
    } == written
    other = CliRunner().invoke(main, ["reproduce", "table2", *arguments, "train.epochs=2"])
    assert (
        other.exit_code == 1
        and "was trained with another configuration or on other data; choose another --out"
        in other.stderr
    )
