"""Metrics by column of the files, tenths and constants: read by the numbers of the rows."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from mail_torchrec.config import Config
from mail_torchrec.data.items.candidate_item import candidate_item
from mail_torchrec.data.schema.columns import EmbeddingTableSettings
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import rank, world_size
from mail_torchrec.metrics.cohorts import EvaluatedRows
from mail_torchrec.metrics.details import DetailedMetrics, constants_line
from mail_torchrec.metrics.settings import MetricsSettings
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.processes import without_launcher
from tests.support.ranks import run_ranks
from tests.support.small_rows import config_tree, write_rows

SCHEMA = Schema.model_validate(
    {
        "columns": {
            "user": {"group": "group_key"},
            "clicked": {"group": "label"},
            "ad": {"group": "item", "column": "ad_id"},
            "place": {"group": "attribute"},
            "history": {"group": "behaviour", "kind": "list", "table": "ad"},
        }
    }
)


def write(path: Path, seed: int, num_rows: int = 90) -> pa.Table:
    """Rows in row groups of 20 with a column that the schema does not have."""
    rng = np.random.default_rng(seed)
    table = pa.table(
        {
            "user": rng.integers(20, size=num_rows),
            "clicked": (rng.random(num_rows) < 0.3).astype(np.int8),
            "ad_id": rng.integers(8, size=num_rows),
            "hour": pa.array([None, *rng.integers(3, size=num_rows - 1)], pa.int8()),
            "place": pa.array(rng.choice(["a", "b"], num_rows)).dictionary_encode(),
            "tags": pa.array([[1, 2]] * num_rows),
            "history": pa.array([[1, 2]] * num_rows),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=20)
    return table


def details(root: Path, by: tuple[str, ...] = ("hour", "place")) -> Any:
    """Cohorts and details of rank-dependent rows, in an order that is not that of the files."""
    table = pq.read_table(root / "test.parquet")
    numbers = [range(start, start + 5) for start in range(0, 90, 5)][rank() :: world_size()][::-1]
    own = np.concatenate([np.arange(each.start, each.stop) for each in numbers])
    source, training = (Source(str(root / f"{name}.parquet"), SCHEMA) for name in ("test", "train"))
    rows = EvaluatedRows(
        np.linspace(-3, 1, 90)[own],
        table["clicked"].to_numpy()[own],
        table["user"].to_numpy()[own],
        table["user"].to_numpy()[own] < 5,
    )
    settings = MetricsSettings(by=by)
    return DetailedMetrics(source, SCHEMA, settings, training).compute(rows, numbers)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "train.parquet", seed=1)
    write(tmp_path / "test.parquet", seed=2)
    return tmp_path


def test_constants_are_the_training_ctr_and_the_smoothed_ctr_of_the_item(root: Path) -> None:
    _, found = details(root)
    training, test = (pq.read_table(root / f"{name}.parquet") for name in ("train", "test"))
    labels, ads = (training[name].to_numpy() for name in ("clicked", "ad_id"))
    constants = found["constants"]
    assert constants["training_ctr"] == labels.mean()
    expected = log_loss(test["clicked"], np.full(90, labels.mean()))
    assert constants["constant"]["all"]["log_loss"] == pytest.approx(expected)
    assert constants["constant"]["all"]["auc"] == 0.5
    rates = [
        (labels[ads == ad].sum() + 20 * labels.mean()) / ((ads == ad).sum() + 20)
        for ad in test["ad_id"].to_pylist()
    ]
    popularity = constants["item_popularity"]["all"]
    assert constants["item"] == "ad"
    assert popularity["log_loss"] == pytest.approx(log_loss(test["clicked"], rates))
    assert popularity["auc"] == pytest.approx(roc_auc_score(test["clicked"], rates))


def test_columns_of_the_files_group_the_rows_whether_the_schema_has_them_or_not(
    root: Path,
) -> None:
    metrics, found = details(root, by=("hour", "place", "ad"))
    table = pq.read_table(root / "test.parquet")
    scores = np.linspace(-3, 1, 90)
    for name, column in (("hour", "hour"), ("place", "place"), ("ad", "ad_id")):
        texts = ["(missing)" if v is None else str(v) for v in table[column].to_pylist()]
        assert set(found["by"][name]) == set(texts)
        for text, group in found["by"][name].items():
            own = np.array(texts) == text
            labels = table["clicked"].to_numpy()[own]
            assert group["rows"] == own.sum()
            if 0 < labels.sum() < len(labels):
                assert group["auc"] == pytest.approx(roc_auc_score(labels, scores[own]))
    assert sum(tenth["rows"] for tenth in found["calibration"]["pctr"]["all"]) == 90
    line, is_worse = constants_line(metrics, found["constants"])
    assert is_worse and "\n" not in line
    assert "worse than a constant" in line and "item popularity (ad)" in line


@pytest.mark.distributed
def test_details_are_the_same_to_the_bit_on_three_ranks(root: Path, tmp_path: Path) -> None:
    """Items and groups of one rank's rows may be counted on another."""
    expected = json.dumps(details(root))
    assert list(map(json.dumps, run_ranks(3, details, tmp_path / "ranks", root))) == [expected] * 3


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("city", r"test.parquet: column 'city' is missing .*correct metrics.by"),
        ("tags", r"column 'tags' \(metrics.by\) should hold one value a row, found list<.*>"),
    ],
)
def test_a_column_that_cannot_group_rows_is_refused(by: str, message: str, root: Path) -> None:
    with pytest.raises(ValueError, match=message):
        details(root, by=(by,))


def test_without_an_item_column_or_labels_of_both_kinds_the_line_says_so(root: Path) -> None:
    metrics, found = details(root)
    found["constants"]["item_popularity"] = None
    assert "no item column" in constants_line(metrics, found["constants"])[0]
    assert "all training labels are equal" in constants_line(metrics, None)[0]
    columns = {name: SCHEMA.columns[name] for name in ("user", "clicked")}
    assert candidate_item(Schema.model_construct(columns=columns)) is None
    price: dict[str, Any] = {"columns": columns | {"ad": SCHEMA.columns["ad"]}}
    buckets = {"ad": EmbeddingTableSettings(ids="buckets", buckets=[5])}
    assert candidate_item(Schema.model_construct(**price)) == "ad"
    assert candidate_item(Schema.model_construct(**price, tables=buckets)) is None


@pytest.mark.distributed
def test_a_run_reports_by_column_with_any_ranks_and_workers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And writes the details into its directory; refuses an unknown column before it trains."""
    write_rows(tmp_path / "train" / "a.parquet", 120, seed=1)
    write_rows(tmp_path / "test" / "b.parquet", 70, seed=2)
    tree = config_tree(tmp_path)
    unknown = Config.model_validate(tree | {"metrics": {"by": ["nothing"]}})
    with pytest.raises(ValueError, match="'nothing' is missing"):
        train(unknown, RunDir(tmp_path / "refused"))
    with caplog.at_level(logging.INFO):
        config = Config.model_validate(tree | {"metrics": {"by": ["hour"]}})
        metrics = train(config, RunDir(tmp_path / "run"))
    assert [record for record in caplog.messages if record.startswith("test: log loss")]
    written = json.loads((tmp_path / "run/metrics_details.json").read_text())
    assert (tmp_path / "run/calibration.png").exists()
    assert sum(of["rows"] for of in written["by"]["hour"].values()) == 70
    expected = metrics | {"by": written["by"]}
    run = RunDir(tmp_path / "run")
    assert evaluate_run(run, None, ["data.num_workers=2"]) == expected
    evaluate = ("evaluate", "--run-dir", str(tmp_path / "run"))
    output = without_launcher(2, *evaluate)[0].output
    found = json.loads(output[output.index("{\n") :])
    assert list(found["by"]["hour"]) == list(expected["by"]["hour"])
    assert found["all"]["log_loss"] == pytest.approx(metrics["all"]["log_loss"], rel=1e-5)
