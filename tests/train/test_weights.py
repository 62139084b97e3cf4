"""A run with weights and positions: metrics, validation, predictions, export and requests."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.ids.policy import MISSING_ROW
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.schema.feature_tables import build_feature_tables
from mail_torchrec.data.source import Source
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.export.table_files import TableType
from mail_torchrec.inference.requests import Request, candidate_columns, user_columns
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.predict.predict import predict
from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import config_tree
from tests.support.ways_to_serve import by_server, pctr_of_golden, tolerance
from tests.support.weighted_rows import WEIGHTED, write_weighted_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on weighted rows with validations, and data without labels, weights and positions."""
    root = tmp_path_factory.mktemp("weighted")
    write_weighted_rows(root / "train" / "a.parquet", 320, seed=1)
    rows = write_weighted_rows(root / "test" / "b.parquet", 150, seed=2)
    (root / "bare").mkdir()
    bare = rows.drop_columns(["weight", "place"])
    pq.write_table(bare, root / "bare" / "b.parquet")
    pq.write_table(bare.drop_columns(["clicked", "bought"]), root / "unlabelled.parquet")
    tree = config_tree(
        root,
        schema=WEIGHTED,
        data={"root": str(root), "validation": {"share": 0.3}},
        train={"epochs": 3, "evaluate_every": "1 epoch", "save_predictions": True},
    )
    train(Config.model_validate(tree), RunDir(root / "run"))
    return root


def metrics_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run" / "metrics.json").read_text())
    return found


def test_metrics_stand_with_and_without_the_weights(run: Path) -> None:
    predictions, metrics = Predictions.load(run / "run" / "predictions"), metrics_of(run)["all"]
    weights = pq.read_table(run / "test" / "b.parquet")["weight"].to_numpy()
    assert (weights == 0).any()
    probabilities = 1 / (1 + np.exp(-predictions.scores_R.astype(np.float64)))
    for found, of_rows in ((metrics, None), (metrics["weighted"], weights)):
        labels = predictions.labels_R
        auc = roc_auc_score(labels, predictions.scores_R, sample_weight=of_rows)
        loss = log_loss(labels, probabilities, sample_weight=of_rows)
        assert found["auc"] == pytest.approx(auc, abs=1e-9)
        assert found["log_loss"] == pytest.approx(loss, abs=1e-7)


def test_the_best_step_is_that_of_the_weighted_metric(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    values = [line["validation"]["all"] for line in lines if "validation" in line]
    [best] = [line["best"] for line in lines if "best" in line]
    assert len(values) == 3
    assert best["best"] == max(value["weighted"]["auc"] for value in values)
    assert best["best"] not in [value["auc"] for value in values]


def test_rows_are_scored_without_weights_and_positions(run: Path, tmp_path: Path) -> None:
    metrics, run_dir = metrics_of(run), RunDir(run / "run")
    bare = evaluate_run(run_dir, str(run / "bare"), [])
    for cohort in ("new", "old", "all"):
        assert metrics[cohort].pop("weighted")
        assert bare[cohort] == metrics[cohort]
    assert predict(run_dir, str(run / "unlabelled.parquet"), tmp_path / "scores", []) == 150
    found = pq.read_table(tmp_path / "scores")["pctr"].to_numpy()
    expected = Predictions.load(run / "run" / "predictions").scores_R
    assert found == pytest.approx(1 / (1 + np.exp(-expected)), abs=1e-6)


def test_positions_are_seen_in_training_alone(run: Path) -> None:
    config = Config.model_validate(
        config_tree(run, schema=WEIGHTED, train={"batch_size": 320, "eval_batch_size": 320})
    )
    schema = config.schema_
    source = Source(config.data.path("train"), schema)
    encoders = Encoders.load(run / "run" / "vocabularies", schema)
    rows = {}
    for is_training in (True, False):
        reader = Reader(
            source, schema, encoders, build_feature_tables(schema, needs_match=False), config.data,
            rank_info=RankInfo(), batch_size=320, shuffle=is_training, seed=0,
        )  # fmt: skip
        [batch] = reader
        rows[is_training] = batch.pooled["position"].values().numpy()
    places = pq.read_table(run / "train" / "a.parquet")["place"]
    expected = encoders.tables["position"].encode(places.combine_chunks())
    assert len(set(expected)) == 8
    seen, hidden = Counter(rows[True].tolist()), Counter(expected.tolist())
    hidden.subtract(seen)  # what is missing is hidden
    num_hidden = seen[MISSING_ROW] - expected.tolist().count(MISSING_ROW)
    assert all(count >= 0 for row, count in hidden.items() if row != MISSING_ROW)
    assert 0.05 * len(expected) < num_hidden < 0.15 * len(expected)
    assert set(rows[False]) == {MISSING_ROW}

    changed = evaluate_run(RunDir(run / "run"), None, ["schema.columns.position.position_value=3"])
    assert changed["all"]["log_loss"] != metrics_of(run)["all"]["log_loss"]
    for value, message in (
        (99, "in the training data, received 99"),
        ("first", "in the training data, received 'first'"),
    ):
        overrides = [f"schema.columns.position.position_value={value}"]
        with pytest.raises(ValueError, match=message):
            evaluate_run(RunDir(run / "run"), None, overrides)


def test_a_position_that_training_has_not_is_told_before_the_training(
    run: Path, tmp_path: Path
) -> None:
    position = WEIGHTED["columns"]["position"] | {"position_value": 99}
    schema = WEIGHTED | {"columns": WEIGHTED["columns"] | {"position": position}}
    config = Config.model_validate(config_tree(run, schema=schema, data={"root": str(run)}))
    with pytest.raises(ValueError, match="in the training data, received 99; correct it"):
        train(config, RunDir(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize(
    "table_type",
    [
        "float32",
        pytest.param("float16", marks=pytest.mark.long),
        pytest.param("int8", marks=pytest.mark.long),
    ],
)
def test_an_exported_model_scores_requests_with_weights_and_without_positions(
    run: Path, tmp_path: Path, table_type: TableType
) -> None:
    model = tmp_path / "models" / "model"
    export(ExportOptions(RunDir(run / "run"), model, table_type))  # which checks the parity
    scorer = Scorer(tmp_path / "models" / "model")
    [row] = pq.read_table(run / "test" / "b.parquet").slice(3, 1).to_pylist()
    schema = scorer.manifest.schema_
    user = {
        schema.file_column(name): row[schema.file_column(name)] for name in user_columns(schema)
    }
    item = {name: row[name] for name in candidate_columns(schema)}

    def candidate(tags: list[int], relevance: list[float] | None) -> dict[str, Any]:
        return item | {"tags": tags, "relevance": relevance}

    candidates = [
        candidate([0, 1], [1, 3]),
        candidate([0, 1], [1e30, 3e30]),
        candidate([1], [5]),
        candidate([0, 1], [0, 2]),
        candidate([], None),
        candidate([0, 1], [0, 0]),
    ]
    scores = scorer.score(Request(user, candidates))["pctr"]
    assert scores[::2] == pytest.approx(scores[1::2], abs=1e-6)
    assert len({round(float(score), 6) for score in scores}) == 3
    for bad, message in (
        (candidate([0, 1], [1]), "received 1 weights on 2 entries in row 0"),
        (candidate([0, 1], [1, -2]), "received -2 in row 0"),
    ):
        with pytest.raises(ValueError, match=f"candidate: column 'relevance' .*{message}"):
            scorer.score(Request(user, [bad]))
    with pytest.raises(ValueError, match="column 'place' is none of this model's"):
        scorer.score(Request(user | {"place": 1}, candidates))
    if table_type != "float16":
        return
    golden, expected = pctr_of_golden(model)
    with by_server(model.parent, tmp_path / "log") as ways:
        for way, ask in ways.items():
            found = ask(model.name, golden)
            assert np.abs(found - expected).max() < tolerance(model), way
