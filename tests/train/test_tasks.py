"""Whole runs with several tasks: trained, validated, evaluated, predicted, exported, served."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.config import Config
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.metrics.cohorts import CohortMetrics
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.predict.predict import predict
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from mail_torchrec.triton.repository import RepositoryOptions, write_repository
from tests.support.small_rows import config_tree
from tests.support.task_rows import MMOE, TASK_SCHEMA, TASKS, write_task_rows
from tests.support.untrained_model import requests_of
from tools.served import running

SCORES = ["pctr", "pbuy_given_click", "pbuy", "ppay_given_buy", "ppay", "plike", "watch", "stay"]


def tree(root: Path, **sections: Any) -> dict[str, Any]:
    train_settings = {"epochs": 3, "learning_rate": 0.01, "tables": {"learning_rate": 0.1}}
    sections = {"schema": TASK_SCHEMA, "train": train_settings} | sections
    found = config_tree(root, **sections)
    found["model"] |= {"tasks": TASKS, "experts": MMOE} | sections.get("model", {})
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_task_rows(folder / "train" / "a.parquet", 600, seed=1)
    write_task_rows(folder / "test" / "b.parquet", 200, seed=2)
    return folder


@pytest.fixture(scope="module")
def metrics(root: Path) -> dict[str, CohortMetrics]:
    stopping = {"metric": "watch/mae"}
    sections = tree(root)
    sections["train"] |= {"early_stopping": stopping, "evaluate_every": "1 epoch"}
    sections["data"] |= {"validation": {"share": 0.2}, "group_by_user": True}
    return train(Config.model_validate(sections), RunDir(root / "run"))


def test_every_task_is_learnt_judged_and_chosen_by(
    root: Path, metrics: dict[str, CohortMetrics]
) -> None:
    lines = [json.loads(line) for line in (root / "run/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss/L_rt" in line]
    for name in ("buy", "pay", "like", "watch", "stay"):
        losses = [line[f"loss/L_{name}"] for line in logged]
        assert np.mean(losses[-8:]) < np.mean(losses[:8]), name
    found: dict[str, Any] = dict(metrics["all"])
    table = pq.read_table(root / "test/b.parquet")
    clicked = table["clicked"].to_numpy() == 1
    is_known = table["seconds"].is_valid().to_numpy()
    assert found["watch/rows"] == is_known.sum() < 200
    assert found["watch/mean"] == pytest.approx(np.nanmean(table["seconds"].to_numpy()), rel=1e-6)
    seconds = np.nan_to_num(table["seconds"].to_numpy())
    assert found["stay/rows"] == (is_known & clicked & (seconds > 0)).sum()
    assert found["buy_given_click/rows"] == clicked.sum() < found["buy/rows"] == 200
    assert found["watch/gini"] > 0.3 and 0.5 < found["watch/calibration"] < 2
    assert found["like/auc"] > 0.6 and {"buy/gauc", "stay/rmse"} < found.keys()
    assert metrics == evaluate_run(RunDir(root / "run"), None, [])
    details = json.loads((root / "run/metrics_details.json").read_text())
    assert {"pctr", "pbuy", "plike"} < details["calibration"].keys()
    validations = [line["validation"]["all"]["watch/mae"] for line in lines if "validation" in line]
    [best] = [line["best"]["best"] for line in lines if "best" in line]
    assert best == min(validations) and len(validations) == 3


@pytest.mark.parametrize("table_type", ["float32", pytest.param("int8", marks=pytest.mark.long)])
def test_predictions_and_an_exported_model_have_all_tasks_on_their_own_scale(
    root: Path, metrics: dict[str, CohortMetrics], tmp_path: Path, table_type: Any
) -> None:
    del metrics
    export(ExportOptions(RunDir(root / "run"), tmp_path / "model", table_type=table_type))
    scorer = Scorer(tmp_path / "model")
    assert scorer.scores == SCORES
    scorer.check_golden()
    requests = requests_of(root / "test/b.parquet", scorer.manifest.schema_, range(200))
    found = scorer.run(scorer.encode(requests))
    unlabelled = pq.read_table(root / "test/b.parquet").drop_columns(
        ["clicked", "bought", "paid", "seconds"]
    )
    pq.write_table(unlabelled, tmp_path / "rows.parquet")
    predict(RunDir(root / "run"), str(tmp_path / "rows.parquet"), tmp_path / "scores", [])
    rows = pq.read_table(tmp_path / "scores")
    assert rows.column_names == ["filename", "file_row_number", *SCORES]
    tolerance = {"float32": 1e-5, "int8": 2e-2}[table_type]
    for name in SCORES:
        values = rows[name].to_numpy()
        np.testing.assert_allclose(found[name], values, rtol=tolerance, atol=tolerance)
    product = found["pctr"] * found["pbuy_given_click"] * found["ppay_given_buy"]
    np.testing.assert_allclose(found["ppay"], product, rtol=1e-4)
    assert found["watch"].mean() > 3 and found["stay"].mean() > 3
    if table_type == "float32":
        check_served(tmp_path, requests[0], {name: found[name][0] for name in SCORES})


def check_served(folder: Path, request: Request, expected: dict[str, float]) -> None:
    """The server, its description and Triton's configuration have all tasks by themselves."""
    text = json.dumps({"user": request.user, "candidates": request.candidates})
    tensor = {"name": "request", "datatype": "BYTES", "shape": [1], "data": [text]}
    with running(folder / "model", folder / "log", "--name", "ads", "--threads", "1") as server:
        status, answer = server.ask("/v2/models/ads/infer", {"inputs": [tensor]})
        described = json.dumps(server.ask("/openapi.json")[1])
    assert status == 200, answer
    served = {output["name"]: output["data"][0] for output in answer["outputs"]}
    assert list(served) == SCORES
    assert served == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}
    assert "watch: expected value of watch, in the unit of its label" in described
    options = RepositoryOptions(folder / "model", folder / "triton", "onnxruntime", name="ads")
    write_repository(options)
    config = (folder / "triton" / "ads" / "config.pbtxt").read_text()
    assert all(f'name: "{name}"' in config for name in SCORES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"paid": [2]},
            r"column 'paid' \(a task's label\) should be 0, 1 or null, received 2 ",
        ),
        ({"seconds": [-1.5]}, r"'seconds' \(a task's label\) should be null or .*received -1.5 in"),
        (
            {"seconds": [np.inf]},
            r"column 'seconds' \(a task.*finite number .*received inf in row 3",
        ),
    ],
    ids=str,
)
def test_a_label_that_is_none_is_named_with_its_row(
    tmp_path: Path, changes: dict[str, list[float]], message: str
) -> None:
    path = tmp_path / "train" / "a.parquet"
    write_task_rows(path, 60, seed=1)
    table = pq.read_table(path)
    [(name, bad)] = changes.items()
    values = [None if value is None else value + 0 for value in table[name].to_pylist()]
    values[3:4] = bad
    table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)
    write_task_rows(tmp_path / "test" / "b.parquet", 60, seed=1)
    sections = tree(tmp_path)
    sections["model"] |= {"zero_shot": None}
    with pytest.raises(ValueError, match=message):
        train(Config.model_validate(sections), RunDir(tmp_path / "run"))


@pytest.mark.parametrize(
    ("model", "early_stopping", "message"),
    [
        (
            {"tasks": {"buy": {"label": "price"}}},
            {},
            r"tasks.buy.label should be a column of group",
        ),
        ({"tasks": {"buy": {"label": "seconds"}}}, {}, "needs a label of kind 'categorical', and"),
        (
            {"tasks": {"watch": {"label": "paid", "type": "log_normal"}}},
            {},
            "needs a label of kind 'numeric', and 'paid' has kind 'categorical'",
        ),
        (
            {"tasks": {"click": {"label": "paid"}, "buy": {"label": "paid"}}},
            {},
            "tasks.click.label should be the column of group 'label', 'clicked'",
        ),
        (
            {"tower": "tests.support.towers_of_users:MeanTower", "tower_options": {}},
            {},
            "model.tasks: tower '.*MeanTower' gives no representation .*model.tasks={}",
        ),
        ({}, {"metric": "wait/mae"}, "names the task 'wait', and model.tasks predicts buy_given_"),
        ({}, {"metric": "buy/mae"}, "'buy' is a probability; set one of its metrics, auc, gauc"),
        ({}, {"metric": "watch/auc"}, "'watch' is a number; set one of its metrics, mae, rmse"),
    ],
    ids=str,
)
def test_tasks_that_do_not_fit_the_rest_are_refused(
    root: Path, tmp_path: Path, model: dict[str, Any], early_stopping: Any, message: str
) -> None:
    sections = tree(root)
    sections["model"] |= model | {"experts": None}
    sections["train"] |= {"early_stopping": early_stopping}
    sections["data"] |= {"validation": {"share": 0.2}}
    with pytest.raises(ValueError, match=message):
        train(Config.model_validate(sections), RunDir(tmp_path / "run"))
