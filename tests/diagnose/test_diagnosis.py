"""What is planted in a log is found, what is not there is not, and bad data is told."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from mail_torchrec.cli import main
from mail_torchrec.config import load_config
from mail_torchrec.diagnose.diagnosis import diagnose
from mail_torchrec.diagnose.trees import MeasuredScores
from mail_torchrec.diagnose.verdict import Remedy, is_gain
from tests.diagnose.conftest import planted_log, write_log


def run(config: Path, out: Path, *options: str) -> str:
    """Runs the command, which has to end well; returns what it printed."""
    command = ["diagnose", "--config", str(config), "--out", str(out), *options]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    return result.output


def test_what_is_planted_is_found_and_written_as_text_numbers_and_one_page(tmp_path: Path) -> None:
    text = run(write_log(tmp_path, planted_log()), tmp_path / "out")
    found = json.loads((tmp_path / "out/diagnosis.json").read_text())
    users, items, cold = found["new_users"], found["new_items"], found["cold"]
    gains = {
        name: users[name]["low"] for name in ("histories", "attributes", "crosses", "predicted")
    }
    gains["content"] = items["content"]["low"]
    assert min(gains.values()) > 0, gains
    first, *others = found["verdict"]["new_users"]
    # Whether it has to be taught to do without histories is not planted.
    assert first in ("MAIL", "MAIL's tuned preset")
    assert others == ["a tower with attribute crosses"]
    # Trees that are used to histories gain by predicted ones what the mean of all cannot tell.
    assert users["virtual"]["low"] > 0 and users["mean_fill"]["mean"] < users["virtual"]["mean"]
    assert found["verdict"]["new_items"] == ["content vectors"]
    assert "try MAIL" in text and "and a tower with attribute crosses, for" in text
    assert "use content vectors" in text
    assert 0.05 < cold["test_new_users"] < 0.15  # a tenth of the users
    assert [day["day"] for day in cold["days"]] == ["2024-05-01", "2024-05-02", "2024-05-03"]
    page = (tmp_path / "out/diagnosis.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "http" not in page.replace(
        "http-equiv", ""
    )


@pytest.mark.long
def test_nothing_helps_where_clicks_are_drawn_by_lot(tmp_path: Path) -> None:
    tables = planted_log()
    for part, table in tables.items():
        lot = pa.array(np.random.default_rng(5).permutation(table["clicked"].to_numpy()))
        tables[part] = table.set_column(table.column_names.index("clicked"), "clicked", lot)
    verdict = diagnose(load_config(write_log(tmp_path, tables), []), 10_000).verdict
    assert verdict.new_users == verdict.new_items == [Remedy.NOTHING]
    assert verdict.sentences[0].startswith("New users: nothing will help.")


def test_what_the_data_lacks_is_said(
    tmp_path: Path,
) -> None:
    tables = {
        part: table.drop_columns("day").set_column(3, "city", table["user"])
        for part, table in planted_log().items()
    }
    text = run(write_log(tmp_path, tables, "age", "content"), tmp_path / "out")
    assert "By day: no column of the files holds the day of a row." in text
    assert "Left out, for they name users: city." in text
    assert "there is no attribute to predict them from" in text
    assert "and there are no content vectors" in text


@pytest.mark.parametrize(("part", "rows"), [("train", "training"), ("test", "test")])
def test_labels_that_are_all_one_are_refused(tmp_path: Path, part: str, rows: str) -> None:
    tables = planted_log()
    ones = pa.array(np.ones(len(tables[part]), np.int64))
    tables[part] = tables[part].set_column(1, "clicked", ones)
    config = load_config(write_log(tmp_path, tables), [])
    with pytest.raises(ValueError, match=rf"'clicked' should be 0 in .* {rows} rows .* received 0"):
        diagnose(config, 10_000)


def test_a_log_too_small_to_tell_anything_is_refused(tmp_path: Path) -> None:
    tables = {part: table.slice(0, 150) for part, table in planted_log().items()}
    config = load_config(write_log(tmp_path, tables), [])
    with pytest.raises(ValueError, match=r"should be . in at least 50 of .* give more rows"):
        diagnose(config, 10_000)


def test_an_auc_is_scikit_learns_and_one_user_s_resamples_change_all_models_alike() -> None:
    rng = np.random.default_rng(0)
    labels, users = rng.random(400) < 0.3, rng.integers(40, size=400)
    scores = np.round(rng.random(400) + 0.3 * labels, 1)
    measured = MeasuredScores(labels, users)
    measured.add("a", scores)
    measured.add("same order", 2 * scores + 1)
    measured.add("noise", rng.random(400))
    assert measured.auc("a").mean == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    gain = measured.gain("same order", "a")
    assert gain.mean == gain.low == gain.high == 0
    assert measured.gain("a", "noise").mean > 0 and not is_gain(measured.gain("noise", "a"))
