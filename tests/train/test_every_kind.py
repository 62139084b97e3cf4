"""One model with every kind of column, table, sequence and task: through all that runs go through.

Each kind has tests of its own; these are about their combination.
"""

import json
from collections import Counter
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import Config
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.inference.batch_first import batch_first
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.planning.compare import compare_run
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.predict.importance import importance
from mail_torchrec.predict.predict import predict
from mail_torchrec.serve.openapi_schemas import raw_request_schemas
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from mail_torchrec.triton.repository import RepositoryOptions, write_repository
from tests.support.every_kind import every_kind, write_data
from tests.support.made_once import made_once
from tests.support.triton_server import needs_triton
from tests.support.uncompiled_package import without_compiling
from tests.support.untrained_model import requests_of
from tests.support.ways_to_serve import (
    by_onnx_runtime,
    by_server,
    by_triton,
    differences,
    pctr_of_golden,
    tolerance,
)

TYPES = ("float32", "float16", "int8")
BY = ("weekday", "item_age", "price_bucket", "hour")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on users' groups of rows."""

    def make(root: Path) -> None:
        write_data(root)
        train(Config.model_validate(every_kind(root, metrics={"by": BY})), RunDir(root / "run"))

    return made_once(tmp_path_factory, "every_kind", make)


@pytest.fixture(scope="module")
def models(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's model in each type of tables."""
    return made_once(tmp_path_factory, "every_kind_models", lambda root: _export(run, root))


def _export(run: Path, root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        without_compiling(patch)
        for kind in TYPES:
            aoti = kind != "float16"
            export(ExportOptions(RunDir(run / "run"), root / kind, table_type=kind, aoti=aoti))


@pytest.mark.long
def test_every_type_of_tables_scores_as_the_trainer(models: Path, tmp_path: Path) -> None:
    with by_server(models, tmp_path / "log") as ways:
        for kind in TYPES:
            model = models / kind
            parity = ArtifactManifest.read(model).parity
            assert ("aoti" in parity) == (kind != "float16")
            assert max(each.max_difference for each in parity.values()) <= tolerance(model)
            requests, expected = pctr_of_golden(model)
            some = {way: ways[way] for way in ("HTTP, JSON", "HTTP, encoded")}
            every = (ways if kind == "float32" else some) | {"here": by_onnx_runtime(models)}
            found = differences(every, kind, requests, expected)
            assert max(found.values()) <= tolerance(model), (kind, found)


@pytest.mark.long
def test_requests_score_as_predictions(run: Path, models: Path, tmp_path: Path) -> None:
    test = run / "test/b.parquet"
    predict(RunDir(run / "run"), str(test), tmp_path / "scores", [])
    rows = pq.read_table(tmp_path / "scores")
    scorer = Scorer(models / "float32")
    requests = requests_of(test, scorer.manifest.schema_, range(len(rows)))
    found = scorer.run(scorer.encode(requests))
    for name in scorer.scores:
        np.testing.assert_allclose(found[name], rows[name], rtol=1e-5, atol=1e-5)


def test_evaluation_gives_the_metrics_of_the_run_by_derived_columns_too(run: Path) -> None:
    saved = json.loads((run / "run/metrics.json").read_text())
    details = json.loads((run / "run/metrics_details.json").read_text())
    assert set(details["by"]) == set(BY)
    times = pq.read_table(run / "test/b.parquet")["time"].to_pylist()
    days = Counter(str(time.weekday()) for time in times)
    assert {day: found["rows"] for day, found in details["by"]["weekday"].items()} == days
    evaluated = evaluate_run(RunDir(run / "run"), None, [])
    assert {name: evaluated[name] for name in saved} == saved
    assert evaluated["by"] == details["by"]


@pytest.mark.long
def test_the_description_and_the_batch_first_graph_have_every_kind(
    models: Path, tmp_path: Path
) -> None:
    scorer = Scorer(models / "float32")
    requests, expected = pctr_of_golden(models / "float32")
    schemas = raw_request_schemas(scorer.manifest, 99)
    text = json.dumps(schemas).replace("#/components/schemas/", "#/$defs/")
    described = {"$defs": json.loads(text), "$ref": "#/$defs/ScoringRequest"}
    for request in requests:
        body = {"user": request.user, "candidates": request.candidates}
        jsonschema.validate(json.loads(json.dumps(body)), described)
    options = RepositoryOptions(models / "float32", tmp_path / "triton", "onnxruntime", "ads")
    write_repository(options)
    [graph] = (tmp_path / "triton/ads").rglob("model.onnx")
    runtime = onnxruntime.InferenceSession(graph)
    inputs = scorer.manifest.inputs
    names = {each.name for each in runtime.get_inputs()}
    start = 0
    for request in requests:
        arrays = batch_first(scorer.encode([request]), inputs)
        [found] = runtime.run(["pctr"], {n: v for n, v in arrays.items() if n in names})
        count = len(request.candidates)
        np.testing.assert_allclose(found.ravel(), expected[start : start + count], atol=1e-5)
        start += count


def test_importance_and_the_plan_have_every_kind(run: Path) -> None:
    found = importance(RunDir(run / "run"), None, [], 1)
    names = {each.name for each in found.features}
    assert {"past", "content", "city_item", "item_age", "price_bucket", "cities"} <= names
    assert "weight" not in names and "seconds" not in names
    assert "|" in compare_run(RunDir(run / "run"), None, ())


@pytest.mark.long
def test_vectors_are_of_the_matched_part(run: Path, models: Path, tmp_path: Path) -> None:
    options = ["--users", str(run / "test"), "--threads", "1", "--index", "Flat"]
    command = ["vectors", "--model", str(models / "float32"), "--out", str(tmp_path / "v")]
    done = CliRunner().invoke(main, [*command, *options])
    assert done.exit_code == 0, done.output
    items = pq.read_table(tmp_path / "v/items.parquet")
    assert len(items) == 40 and len(items["vector"][0]) == 4


@needs_triton
@pytest.mark.long
def test_triton_scores_as_the_trainer(models: Path, tmp_path: Path) -> None:
    with by_triton(models, tmp_path) as ways:
        for kind in TYPES:
            requests, expected = pctr_of_golden(models / kind)
            found = differences(ways, kind, requests, expected)
            assert max(found.values()) <= tolerance(models / kind), (kind, found)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("city_item", "metrics.by: column 'city_item' is a cross, whose values are hashes; name"),
        ("past_hour", r"column 'times' \(metrics.by\) should hold one value a row"),
        ("content", r"column 'content' \(metrics.by\) should hold one value a row"),
    ],
)
def test_metrics_by_refuses_what_has_no_one_value_to_show(run: Path, by: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_run(RunDir(run / "run"), None, [f"metrics.by=[{by}]"])
