import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from mail_torchrec.reporting.comparison import as_json, as_markdown, compare
from mail_torchrec.utils.formats import write_run_format
from tests.support.hostile import recorded_anew


def write_run(
    path: Path,
    name: str,
    seed: int,
    new: float | None,
    old: float = 0.75,
    rows: str = "120-rows",
    num_new: int = 9,
    train_rows: str = "250-rows",
    ranks: int = 1,
    **config: Any,
) -> Path:
    path.mkdir(parents=True)
    write_run_format(path, "0.1")
    part = {"gauc": 0.5, "rows": 9, "users": 3}
    of_new = part | {"auc": new, "rows": num_new}
    (path / "metrics.json").write_text(
        json.dumps({"new": of_new, "old": {"auc": old, **part}, "all": {"auc": 0.6, **part}})
    )
    (path / "data.json").write_text(
        json.dumps(
            {
                "train": {"rows": 250, "fingerprint": train_rows},
                "test": {"rows": 120, "fingerprint": "f"},
                "test_rows": rows,
                "test_labels": rows,
                "ranks": ranks,
            }
        )
    )
    train = {"seed": seed, "batch_size": 32} | config.pop("train", {})
    tree = {"name": name, "data": {"root": "rows"}, "train": train} | config
    (path / "config.yaml").write_text(yaml.safe_dump(tree))
    return recorded_anew(path)


def test_mean_and_interval_over_seeds(tmp_path: Path) -> None:
    values = [0.70, 0.72, 0.71, 0.69, 0.73]
    (row,) = compare(
        [write_run(tmp_path / str(seed), "DMR", seed, value) for seed, value in enumerate(values)]
    )
    interval = row.metrics["new"]["auc"]
    assert interval is not None and interval.low is not None and interval.high is not None
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert interval.num_seeds == 5
    assert [interval.mean, interval.low, interval.high] == pytest.approx([0.71, low, high])
    assert row.differences == {}


def test_differences_are_paired_by_seed_whatever_the_order(tmp_path: Path) -> None:
    base = [write_run(tmp_path / f"b{seed}", "DMR", seed, 0.6 + 0.02 * seed) for seed in range(3)]
    mail = [
        write_run(tmp_path / f"m{seed}", "MAIL-DMR", seed, 0.61 + 0.02 * seed + 0.001 * seed)
        for seed in (2, 0, 1)
    ]
    first, second = compare([*mail, *base], base="DMR")
    assert (first.name, first.base, second.base) == ("MAIL-DMR", "DMR", None)
    difference = first.differences["new"]["auc"]
    assert difference is not None and difference.high is not None
    assert difference.mean == pytest.approx(0.011)
    assert difference.high == pytest.approx(0.011 + stats.t.ppf(0.975, 2) * 0.001 / np.sqrt(3))


def test_no_differences_without_equal_seeds(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", "DMR", 0, 0.6), write_run(tmp_path / "b", "MAIL-DMR", 1, 0.7)]
    assert [row.differences for row in compare(runs, base="DMR")] == [{}, {}]


def test_the_table_reads_well_and_is_markdown(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{name}{seed}", name, seed, new + 0.02 * seed)
        for name, new in (("DMR", 0.6), ("MAIL", 0.7))
        for seed in (0, 1)
    ]
    half = stats.t.ppf(0.975, 1) * 0.01
    table, differences = as_markdown(compare(runs, base="DMR")).split("\n\n")
    lines = table.splitlines()
    header = "| method | seeds | new AUC | new GAUC | old AUC | old GAUC | all AUC | all GAUC |"
    assert lines[0].split() == header.split()
    assert set(lines[1]) <= set("|-: ")
    assert lines[2].split(" | ")[2].strip() == f"0.6100 ± {half:.4f}"
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in differences.splitlines()[2].split("|")[1:4]] == [
        "MAIL - DMR",
        "2",
        "+0.1000 ± 0.0000",
    ]


def test_conversions_have_tables_where_all_runs_predict_them(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{name}{seed}", name, seed, 0.6)
        for name in ("DMR", "ESMM")
        for seed in (0, 1)
    ]
    for i, run in enumerate(runs):
        metrics = json.loads((run / "metrics.json").read_text())
        for part in metrics.values():
            part |= {
                "cvr_auc": 0.51 + 0.1 * (i > 1),
                "cvr_gauc": None,
                "ctcvr_auc": 0.7,
                "ctcvr_gauc": 0.65,
            }
        (run / "metrics.json").write_text(json.dumps(metrics))
        recorded_anew(run)
    rows = compare(runs, base="DMR")
    tables = as_markdown(rows).split("\n\n")
    titles = [table.split("|")[1].strip() for table in tables]
    assert titles == [
        f"{kind}{what}"
        for what in ("", ", pCVR of clicked rows", ", pCTCVR")
        for kind in ("method", "difference, paired by seed")
    ]
    assert [cell.strip() for cell in tables[2].splitlines()[3].split("|")[1:5]] == [
        "ESMM",
        "2",
        "0.6100 ± 0.0000",
        "-",
    ]
    assert tables[3].splitlines()[2].split("|")[3].strip() == "+0.1000 ± 0.0000"
    without = compare([*runs, write_run(tmp_path / "clicks", "clicks alone", 0, 0.6)])
    assert list(without[0].metrics["new"]) == ["auc", "gauc"] and "pCVR" not in as_markdown(without)


def test_one_seed_has_no_interval_and_an_undefined_metric_is_a_dash(tmp_path: Path) -> None:
    rows = compare([write_run(tmp_path / "a", "DMR", 0, None)])
    assert [cell.strip() for cell in as_markdown(rows).splitlines()[2].split("|")[1:5]] == [
        "DMR",
        "1",
        "-",
        "0.5000",
    ]
    content = json.loads(as_json(rows))
    assert content[0]["metrics"]["new"]["auc"] is None
    assert content[0]["metrics"]["old"]["auc"] == {
        "mean": 0.75,
        "low": None,
        "high": None,
        "num_seeds": 1,
    }


def test_faults_are_named(tmp_path: Path) -> None:
    done = write_run(tmp_path / "done", "DMR", 0, 0.6)
    with pytest.raises(ValueError, match=r"at least one run directory"):
        compare([])
    with pytest.raises(ValueError, match=r"nowhere' has no config.yaml; is this a run directory\?"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(
        ValueError, match=r"base should be one of the methods \['DMR'\], received 'BaseDNN'"
    ):
        compare([done], base="BaseDNN")
    with pytest.raises(ValueError, match=r"again' and '.*done' are both method 'DMR', seed 0"):
        compare([done, write_run(tmp_path / "again", "DMR", 0, 0.6)])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.json", None, r"has no metrics.json; the run has not finished"),
        ("metrics.json", '{"new": {', r"metrics.json' cannot be read"),
        ("data.json", None, r"has no data.json; what it was tested on is unknown; train it again"),
        (
            "data.json",
            '{"ranks": 1}',
            r"data.json' is incomplete, missing or wrong: \['train', 'test_rows'\]",
        ),
        ("metrics.json", "[]", r"should hold a mapping, received list"),
        (
            "metrics.json",
            '{"new": {"auc": 0.5}, "old": {}}',
            r"missing, incomplete or no numbers: \['new', 'old', 'all'\]",
        ),
        ("config.yaml", "train: {seed: 1}", r"should have a text as its 'name', received None"),
    ],
)
def test_damaged_runs_are_refused(
    tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    run = write_run(tmp_path / "run", "DMR", 0, 0.6)
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
        with pytest.raises(ValueError, match=r"should have the SHA-256 .*; a run's files stay as"):
            compare([run])
        recorded_anew(run)
    with pytest.raises(ValueError, match=message):
        compare([run])


def test_seeds_may_differ_in_what_cannot_change_their_metrics(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", "DMR", 0, 0.6, data={"root": "rows", "num_workers": 0}),
        write_run(
            tmp_path / "b",
            "DMR",
            1,
            0.7,
            ranks=4,
            data={"root": "s3://rows", "num_workers": 2, "cold_start": None},
            train={"batch_size": 8, "log_every": 5, "device": "cuda"},
            checkpoint={"every": 10},
            sharding={"enabled": False},
        ),
    ]
    [result] = compare(runs)
    assert len(result.run_dirs) == 2 and result.other_data == []


OTHER_METHOD: dict[str, tuple[dict[str, Any], str]] = {
    "tower": ({"model": {"tower": "din"}}, r"model\.tower: None and din"),
    "learning rate": ({"train": {"learning_rate": 0.1}}, r"train\.learning_rate: None and 0\.1"),
    "batch size": ({"train": {"batch_size": 64}}, r"train\.batch_size x ranks: 32 x 1 and 64 x 1"),
    "ranks": ({"ranks": 4}, r"train\.batch_size x ranks: 32 x 1 and 32 x 4"),
    "epochs": ({"train": {"epochs": 2}}, r"train\.epochs: None and 2"),
    "precision": ({"train": {"precision": "bfloat16"}}, r"train\.precision: None and bfloat16"),
    "preset": ({"model": {"zero_shot": {"dropout": 0}}}, r"model\.zero_shot\.dropout: None and 0"),
    "schema": ({"schema": {"dim": 8}}, r"schema\.dim: None and 8"),
    "hidden users": (
        {"data": {"root": "rows", "cold_start": {"salt": "b"}}},
        r"data\.cold_start\.salt: None and b",
    ),
    "optimizer state": (
        {"checkpoint": {"restart_state": ["item"]}},
        r"checkpoint\.restart_state: None and \['item'\]",
    ),
}


@pytest.mark.parametrize("change", OTHER_METHOD)
def test_runs_of_one_name_that_differ_in_more_than_the_seed_are_refused(
    tmp_path: Path, change: str
) -> None:
    settings, message = OTHER_METHOD[change]
    first = write_run(tmp_path / "a", "DMR", 0, 0.6)
    second = write_run(tmp_path / "b", "DMR", 1, 0.7, **settings)
    for allow in (False, True):
        with pytest.raises(
            ValueError,
            match=rf"a' and '.*b' are both method 'DMR', and differ in more than the seed, (.|\n)*"
            rf"another name \(--name '.*b=NAME'\)(.|\n)*\n  {message}$",
        ):
            compare([first, second], allow_different_data=allow)
    assert [row.name for row in compare([first, second], names={second: "b"})] == ["DMR", "b"]
    with pytest.raises(ValueError, match=r"--name should name one of the run .*received '.*/c'"):
        compare([first], names={tmp_path / "c": "b"})


def cold(**settings: Any) -> dict[str, Any]:
    return {"data": {"root": "rows", "cold_start": {"hide_share": 0.4, "keep": 0} | settings}}


OTHER_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "other rows": ({"rows": "130-rows"}, r"test rows: as many, with other users, labels or new"),
    "other numbers": ({"rows": "x", "num_new": 7}, r"new rows: 9 of 3 users and 7 of 3 users"),
    "hidden share": (
        {"rows": "x", "num_new": 7} | cold(hide_share=0.2),
        r"data\.cold_start\.hide_share: 0\.4 and 0\.2",
    ),
    "salt": ({"rows": "x"} | cold(salt="b"), r"data\.cold_start\.salt: None and b"),
    "kept behaviours": (cold(keep=5), r"data\.cold_start\.keep: 0 and 5"),
    "rule": (
        {"rows": "x", "data": cold()["data"] | {"new_user_max_behaviours": 2}},
        r"data\.new_user_max_behaviours: None and 2",
    ),
}


@pytest.mark.parametrize("change", OTHER_ROWS)
def test_methods_on_other_rows_are_refused_or_marked(tmp_path: Path, change: str) -> None:
    settings, message = OTHER_ROWS[change]
    runs = [
        write_run(tmp_path / "a", "DMR", 0, 0.6, **cold()),
        write_run(tmp_path / "b", "MAIL", 0, 0.7, **cold() | settings),
    ]
    with pytest.raises(
        ValueError,
        match=rf"a' \(DMR\) and '.*b' \(MAIL\) have other rows, (.|\n)*"
        rf"--allow-different-data, which marks the table:\n(.|\n)*{message}",
    ):
        compare(runs)
    results = compare(runs, base="DMR", allow_different_data=True)
    assert [result.title for result in results] == ["DMR", "MAIL *"]
    text = as_markdown(results)
    assert "| MAIL * " in text and "| MAIL * - DMR " in text
    assert f"* Other rows than those of {runs[0]}: not comparable." in text
    assert re.search(message, text) and json.loads(as_json(results))[1]["other_data"]


def test_seeds_on_other_rows_are_refused_or_marked(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", "DMR", 0, 0.6)
    for name, settings in (("test", {"rows": "x"}), ("train", {"train_rows": "x"})):
        second = write_run(tmp_path / name, "DMR", 1, 0.7, **settings)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"have other rows, so their metrics cannot"):
            compare([first, second])
        [result] = compare([first, second], allow_different_data=True)
        assert result.title == "DMR *" and str(second) in result.other_data[0]
    other_method = write_run(tmp_path / "b", "more days", 0, 0.7, train_rows="x")
    assert [result.other_data for result in compare([first, other_method])] == [[], []]


def test_an_oracle_is_compared_whatever_the_others_keep(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", "DMR", 0, 0.6, **cold(keep=5)),
        write_run(tmp_path / "b", "DMR oracle", 0, 0.7, **cold(oracle=True)),
    ]
    assert [result.other_data for result in compare(runs)] == [[], []]


def test_no_new_users_row_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a", "DMR", 0, None, num_new=0)
    compare([run])
    assert "WARNING: no test row of these runs is a new user's" in capsys.readouterr().err
    compare([write_run(tmp_path / "b", "DMR", 0, 0.6)])
    assert not capsys.readouterr().err


def test_probabilities_and_tasks_have_tables_where_all_runs_have_their_metrics(
    tmp_path: Path,
) -> None:
    """A run of an older version has none, and is compared all the same."""
    runs = [write_run(tmp_path / f"DMR{seed}", "DMR", seed, 0.6) for seed in (0, 1)]
    for run in runs:
        metrics = json.loads((run / "metrics.json").read_text())
        for part in metrics.values():
            part |= {"log_loss": 0.4, "normalised_entropy": 0.9, "calibration": None}
            part |= {"watch/rows": 7, "watch/mae": 3.5, "watch/gini": 0.25}
        (run / "metrics.json").write_text(json.dumps(metrics))
        recorded_anew(run)
    [_, table, of_task] = as_markdown(compare(runs)).split("\n\n")
    assert [cell.strip() for cell in of_task.split("|")][1:5] == [
        *("method, task watch", "seeds", "new mae", "new gini")
    ]
    assert "| 3.5000 ± 0.0000 | 0.2500 ± 0.0000 |" in of_task
    header, _, cells = ([cell.strip() for cell in line.split("|")] for line in table.splitlines())
    assert header[1:6] == [
        *("method, probabilities", "seeds"),
        *("new log loss", "new normalised entropy", "new calibration"),
    ]
    assert cells[1:6] == ["DMR", "2", "0.4000 ± 0.0000", "0.9000 ± 0.0000", "-"]
    older = compare([*runs, write_run(tmp_path / "older", "older", 0, 0.6)])
    assert not {"probabilities", "task"} & set(as_markdown(older).split())
