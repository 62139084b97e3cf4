import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from mail_torchrec.reporting.comparison import as_json, as_markdown, compare
from mail_torchrec.utils.formats import write_run_format


def write_run(path: Path, name: str, seed: int, new: float | None, old: float = 0.75) -> Path:
    path.mkdir(parents=True)
    write_run_format(path, "0.1")
    part = {"gauc": 0.5, "rows": 9, "users": 3}
    (path / "metrics.json").write_text(
        json.dumps(
            {"new": {"auc": new, **part}, "old": {"auc": old, **part}, "all": {"auc": 0.6, **part}}
        )
    )
    (path / "config.yaml").write_text(yaml.safe_dump({"name": name, "train": {"seed": seed}}))
    return path


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
        ("metrics.json", "[]", r"should hold a mapping, received list"),
        (
            "metrics.json",
            '{"new": {"auc": 0.5}, "old": {}}',
            r"missing or incomplete: \['new', 'old', 'all'\]",
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
    with pytest.raises(ValueError, match=message):
        compare([run])
