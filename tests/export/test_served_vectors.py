"""Vectors in requests: every way to ask the server scores as the trainer, and refuses bad ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mail_torchrec.config import Config
from mail_torchrec.data.content.vector_values import LARGEST
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.serve.openapi_schemas import raw_request_schemas
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import config_tree, write_rows
from tests.support.uncompiled_package import without_compiling
from tests.support.vector_rows import VECTOR_DIMS, VECTORED, with_vectors
from tests.support.ways_to_serve import (
    by_onnx_runtime,
    by_server,
    differences,
    pctr_of_golden,
    tolerance,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with float32 tables and an AOTInductor package, and one with int8 tables."""
    root = tmp_path_factory.mktemp("vectors")
    for part, seed in (("train/a", 1), ("test/c", 3)):
        path = root / f"{part}.parquet"
        write_rows(path, 150, seed=seed)
        pq.write_table(with_vectors(pq.read_table(path), seed), path)
    data = {"root": str(root), "group_by_user": True}
    tower = {"tower": "base_dnn", "tower_options": {"hidden_dims": [16, 8], "dropout": 0.0}}
    tree = config_tree(root, schema=VECTORED, data=data, model=tower)
    train(Config.model_validate(tree), RunDir(root / "run"))
    with pytest.MonkeyPatch.context() as patch:
        without_compiling(patch)
        export(ExportOptions(RunDir(root / "run"), root / "models" / "plain", aoti=True))
    export(ExportOptions(RunDir(root / "run"), root / "models" / "int8", table_type="int8"))
    return root / "models"


def test_every_way_to_serve_scores_as_the_trainer(models: Path, tmp_path: Path) -> None:
    manifest = ArtifactManifest.read(models / "plain")
    assert {name: found.dim for name, found in manifest.vectors.items()} == VECTOR_DIMS
    assert manifest.parity["aoti"].max_difference <= 1e-5
    with by_server(models, tmp_path / "log") as ways:
        for model in ("plain", "int8"):
            requests, expected = pctr_of_golden(models / model)
            found = differences(
                ways | {"ONNX Runtime": by_onnx_runtime(models)}, model, requests, expected
            )
            assert max(found.values()) <= tolerance(models / model), found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1.0] * 4, "candidate: column 'content' should hold vectors of 5 numbers, received 4"),
        ([1.0, None, 1.0, 1.0, 1.0], "received null in element 1 of row 0"),
        ([1e39] * 5, "finite numbers of 32 bits, received 1e.39 in element 0 of row 0"),
        (["a"] * 5, "candidate: column 'content' should hold a list of number values or null"),
        (3.0, "candidate: column 'content' should hold a list of number values or null"),
    ],
)
def test_a_bad_vector_in_a_request_is_refused(models: Path, content: Any, message: str) -> None:
    scorer = Scorer(models / "plain")
    [request, *_], _ = pctr_of_golden(models / "plain")
    bad = [dict(candidate) | {"content": content} for candidate in request.candidates]
    with pytest.raises(ValueError, match=message):
        scorer.score(Request(request.user, bad))


def test_an_unknown_vector_is_the_mean_and_openapi_knows_the_length(models: Path) -> None:
    scorer = Scorer(models / "plain")
    [request, *_], _ = pctr_of_golden(models / "plain")
    unknown = [dict(candidate) | {"content": None} for candidate in request.candidates]
    means = scorer.encode.encoders.vectors["content"].mean_E.tolist()
    mean = [candidate | {"content": means} for candidate in unknown]
    scores = [scorer.score(Request(request.user, rows))["pctr"] for rows in (unknown, mean)]
    np.testing.assert_allclose(*scores, atol=1e-7)
    schemas = raw_request_schemas(scorer.manifest, 9)
    [values, null] = schemas["Candidate"]["properties"]["content"]["anyOf"]
    element = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
    assert values == {"type": "array", "items": element, "minItems": 5, "maxItems": 5}
    assert null == {"type": "null"}
