"""Triton's repository: config.pbtxt follows the manifest, joined requests stay apart."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from mail_torchrec.inference.batch_first import batch_first
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.triton.repository import RepositoryOptions, write_repository
from tools.served import write_manifest

SCORES = ["pctr", "pcvr", "pctcvr"]
TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32", "bool": "TYPE_BOOL"}


def parsed(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())


def described(tensors: Any) -> dict[str, tuple[str, list[int]]]:
    return {tensor.name: (DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in tensors}


@pytest.fixture(scope="module")
def repository_model(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model `ads` of the ONNX Runtime backend, moved away from its export."""
    folder = tmp_path_factory.mktemp("triton")
    shutil.copytree(exported / "first", folder / "model")
    write_repository(RepositoryOptions(folder / "model", folder / "here", "onnxruntime", "ads"))
    shutil.copytree(folder / "here", folder / "there")
    shutil.rmtree(folder / "here")
    shutil.rmtree(folder / "model")
    return folder / "there" / "ads"


@pytest.fixture(scope="module")
def session(repository_model: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(repository_model / "1" / "model.onnx")


def test_the_config_of_the_onnx_runtime_backend_is_the_manifest_s(
    repository_model: Path, session: onnxruntime.InferenceSession
) -> None:
    config, manifest = (
        parsed(repository_model),
        json.loads((repository_model / "1" / "manifest.json").read_text()),
    )
    assert (
        config.backend == "onnxruntime"
        and config.max_batch_size == 64
        and config.HasField("dynamic_batching")
    )
    expected = {}
    for spec in manifest["inputs"]:
        sizes = [size if isinstance(size, int) else -1 for size in spec["shape"]]
        dims = sizes if spec["shape"][0] == "candidates" else sizes[1:] or [1]
        expected[spec["name"]] = (TYPES[spec["dtype"]], dims)
    del expected["candidate.user"]
    assert described(config.input) == expected
    assert described(config.output) == {name: ("TYPE_FP32", [-1]) for name in SCORES}
    of_graph = {
        node.name: [size if isinstance(size, int) else -1 for size in node.shape]
        for node in session.get_inputs()
    }
    assert of_graph == {
        name: [-1, *dims] for name, (_, dims) in expected.items()
    }  # Triton compares them when it loads the model
    assert [(node.name, node.shape) for node in session.get_outputs()] == [
        (name, ["users", "candidates"]) for name in SCORES
    ]


def test_the_config_of_the_python_backend_takes_raw_requests(
    exported: Path, tmp_path: Path
) -> None:
    write_repository(
        RepositoryOptions(
            exported / "first", tmp_path, "python", "ads", max_batch=7, max_candidates=40
        )
    )
    config = parsed(tmp_path / "ads")
    assert (
        config.backend == "python"
        and config.max_batch_size == 7
        and config.HasField("dynamic_batching")
    )
    assert described(config.input) == {"request": ("TYPE_STRING", [1])}
    assert described(config.output) == {name: ("TYPE_FP32", [-1]) for name in SCORES}
    assert config.parameters["max_candidates"].string_value == "40"


def joined(exported: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Golden users, each with the candidates of one of them, and their pctr [U, N]."""
    scorer, golden = (
        Scorer(exported / "first"),
        [request for request, _ in read_golden(exported / "first")],
    )
    requests = [Request(request.user, golden[2].candidates) for request in golden]
    expected = np.stack([scorer.score(request)["pctr"] for request in requests])
    return batch_first(scorer.encode(requests), scorer.manifest.inputs), expected


def test_a_graph_that_was_copied_gives_the_golden_scores(
    session: onnxruntime.InferenceSession, exported: Path
) -> None:
    scorer = Scorer(exported / "first")
    for request, expected in read_golden(exported / "first"):
        for name, scores in zip(
            SCORES,
            session.run(SCORES, batch_first(scorer.encode([request]), scorer.manifest.inputs)),
            strict=True,
        ):
            assert (
                scores.shape == (1, len(request.candidates))
                and np.abs(scores[0] - expected[name]).max() <= 1e-5
            )


def test_joined_requests_get_the_scores_that_they_get_alone(
    session: onnxruntime.InferenceSession, exported: Path
) -> None:
    scorer = Scorer(exported / "first")
    inputs, expected = joined(exported)
    requests = [
        Request(request.user, read_golden(exported / "first")[2][0].candidates)
        for request, _ in read_golden(exported / "first")
    ]
    alone = [batch_first(scorer.encode([request]), scorer.manifest.inputs) for request in requests]
    by_triton = {
        name: np.concatenate([part[name] for part in alone]) for name in inputs
    }  # what it does with requests of one shape
    assert all(np.array_equal(by_triton[name], inputs[name]) for name in inputs)
    [pctr] = session.run(["pctr"], by_triton)
    assert len(pctr) > 5 and np.abs(pctr - expected).max() <= 1e-6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("city", 99),
        ("city", -1),
        ("item", 2**40),
        ("history", -7),
        ("history.length", 7),
        ("tags", 99),
        ("tags.length", 4),
        ("income", np.nan),
        ("income", np.inf),
    ],
)
def test_a_bad_value_costs_its_own_user_the_scores_and_nobody_else(
    session: onnxruntime.InferenceSession, exported: Path, name: str, value: float
) -> None:
    inputs, expected = joined(exported)
    bad = inputs[name].copy()
    bad[(1, *[-1] * (bad.ndim - 1))] = value
    scores = np.stack(session.run(SCORES, inputs | {name: bad}))
    assert np.isnan(scores[:, 1]).all()
    others = np.arange(len(expected)) != 1
    assert np.abs(scores[0, others] - expected[others]).max() <= 1e-6


def test_users_with_other_numbers_of_candidates_are_no_rectangle(exported: Path) -> None:
    scorer = Scorer(exported / "first")
    encoded = scorer.encode([request for request, _ in read_golden(exported / "first")[:3]])
    with pytest.raises(ValueError, match=r"as many candidates each, received \[ 1  2 17\]"):
        batch_first(encoded, scorer.manifest.inputs)


def test_versions_are_added_and_files_are_linked(exported: Path, tmp_path: Path) -> None:
    assert (
        write_repository(RepositoryOptions(exported / "first", tmp_path, "python"))
        == tmp_path / "small" / "1"
    )
    write_repository(RepositoryOptions(exported / "second", tmp_path, "python", version=2))
    assert {
        path.name for path in tmp_path.rglob("*") if path.parent in (tmp_path, tmp_path / "small")
    } == {
        "small",
        "config.pbtxt",
        "1",
        "2",
    }
    for version, folder in (("1", "first"), ("2", "second")):
        table = Path("tables") / "item.float32"
        assert os.path.samefile(
            tmp_path / "small" / version / "exported" / table, exported / folder / table
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "1' exists already; choose another --version"),
        (
            {"version": 2, "max_batch": 8},
            "has another config.pbtxt: its versions have other inputs or settings",
        ),
        ({"name": "../ads"}, "a model's name should be letters, digits"),
    ],
)
def test_what_cannot_be_added_is_refused_and_changes_nothing(
    exported: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    order = {"model": exported / "first", "out": tmp_path / "out", "backend": "onnxruntime"}
    write_repository(RepositoryOptions(**order))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        write_repository(RepositoryOptions(**order | changes))
    assert sorted(tmp_path.rglob("*")) == before


def as_links(source: Path, target: Path) -> None:
    """Each file a link into another folder, as DVC and content caches lay them."""
    for path in source.rglob("*"):
        if path.is_file():
            link = target / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


def as_config_map(source: Path, target: Path) -> None:
    """Relative links through a hidden one, as Kubernetes mounts a ConfigMap."""
    shutil.copytree(source, target / "..1")
    (target / "..data").symlink_to("..1")
    for path in source.iterdir():
        (target / path.name).symlink_to(f"..data/{path.name}")


def with_linked_tables(source: Path, target: Path) -> None:
    """Tables on another disk."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("tables"))
    (target / "tables").symlink_to(source / "tables")


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
@pytest.mark.parametrize(
    "lay",
    [
        lambda source, target: target.symlink_to(source),
        as_links,
        as_config_map,
        with_linked_tables,
    ],
    ids=["the folder", "every file", "a ConfigMap", "the tables"],
)
def test_an_export_of_links_becomes_a_repository_of_files(
    exported: Path, tmp_path: Path, lay: Any, backend: Any
) -> None:
    lay(exported / "first", tmp_path / "model")
    version = write_repository(
        RepositoryOptions(tmp_path / "model", tmp_path / "out", backend, "ads")
    )
    assert not [path for path in version.rglob("*") if path.is_symlink()]
    assert sorted(path.name for path in version.iterdir()) == (
        ["dense.bin", "manifest.json", "model.onnx", "tables"]
        if backend == "onnxruntime"
        else ["exported", "mail_torchrec", "model.py"]
    )
    if backend == "python":
        Scorer(version / "exported").check_golden()


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_a_version_that_takes_other_requests_is_refused_unless_it_is_allowed(
    exported: Path, tmp_path: Path, backend: Any
) -> None:
    shutil.copytree(exported / "first", tmp_path / "model")
    manifest = ArtifactManifest.read(tmp_path / "model")
    columns = manifest.schema_.columns | {
        "hour": manifest.schema_.columns["hour"].model_copy(update={"column": "time"})
    }
    (tmp_path / "model" / "golden.json").write_text(
        (exported / "first" / "golden.json").read_text().replace('"hour":', '"time":')
    )
    write_manifest(
        tmp_path / "model",
        schema_=manifest.schema_.model_copy(update={"columns": columns}),
        value_types=manifest.value_types | {"time": "integer"},
    )
    write_repository(RepositoryOptions(exported / "first", tmp_path / "out", backend, "ads"))
    order = RepositoryOptions(tmp_path / "model", tmp_path / "out", backend, "ads", version=2)
    with pytest.raises(ValueError, match=r"'hour': integer here, none there.*'time': none here"):
        write_repository(order)
    assert write_repository(replace(order, allow_schema_change=True)).name == "2"


def test_a_damaged_export_is_refused(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "first", tmp_path / "model")
    (tmp_path / "model" / "dense.bin").write_bytes(b"half")
    with pytest.raises(ValueError, match="is not the file that was exported"):
        write_repository(RepositoryOptions(tmp_path / "model", tmp_path / "out", "python"))
    assert not (tmp_path / "out").exists()
