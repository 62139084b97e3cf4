"""Probabilities of a click of the same requests, by each runtime and server of exported models."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray

from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.triton.repository import RepositoryOptions, write_repository
from tests.support.triton_server import Triton, running_triton
from tools.served import Running, as_json, raw, running, tensors

Ask = Callable[[str, Sequence[Request]], NDArray[Any]]
"""Name of a model and requests -> their ``pctr``, one after another."""
TOLERANCES = {"float32": 1e-5, "float16": 1e-3, "int8": 2e-2}
"""Type of the tables -> difference that an export allows."""


def pctr_of_golden(model: Path) -> tuple[list[Request], NDArray[Any]]:
    """Returns the golden requests, and the trainer's probabilities."""
    golden = read_golden(model)
    return [one for one, _ in golden], np.concatenate([scores["pctr"] for _, scores in golden])


def tolerance(model: Path) -> float:
    """Returns the difference that the export of a model allows."""
    return TOLERANCES[ArtifactManifest.read(model).table_type]


def by_onnx_runtime(models: Path) -> Ask:
    """Asks ONNX Runtime in this process."""

    def ask(model: str, requests: Sequence[Request]) -> NDArray[Any]:
        scorer = Scorer(models / model)
        return scorer.run(scorer.encode(requests))["pctr"]

    return ask


@contextmanager
def by_server(models: Path, log: Path) -> Iterator[dict[str, Ask]]:
    """Runs ``mail-torchrec serve`` with the models as its versions; yields each way to ask it."""

    def as_text(model: str, requests: Sequence[Request]) -> NDArray[Any]:
        return np.concatenate([_infer_as_text(server, model, one) for one in requests])

    def raw_by(client: ModuleType) -> Ask:
        return lambda model, requests: np.concatenate(
            [_infer(client, server, model, raw(client, one)) for one in requests]
        )

    def encoded_by(client: ModuleType) -> Ask:
        return lambda model, requests: _infer(
            client, server, model, tensors(client, Scorer(models / model).encode(requests))
        )

    options = ("--name", "ads", "--threads", "1", "--max-candidates", "5000")
    with running(models, log, *options) as server:
        yield {
            "HTTP, JSON": as_text,
            "HTTP, binary": raw_by(tritonclient.http),
            "gRPC": raw_by(tritonclient.grpc),
            "HTTP, encoded": encoded_by(tritonclient.http),
            "gRPC, encoded": encoded_by(tritonclient.grpc),
        }


@contextmanager
def by_triton(models: Path, folder: Path) -> Iterator[dict[str, Ask]]:
    """Runs a real Triton with the Python backend, a model each; yields each way to ask it."""
    repository = folder / "repository"
    for model in sorted(models.iterdir()):
        write_repository(RepositoryOptions(model, repository, "python", model.name))
    with running_triton(repository, folder / "log") as triton:
        yield {
            "Triton, HTTP": _triton_by(triton, tritonclient.http),
            "Triton, gRPC": _triton_by(triton, tritonclient.grpc),
        }


def _triton_by(triton: Triton, client: ModuleType) -> Ask:
    def ask(model: str, requests: Sequence[Request]) -> NDArray[Any]:
        answers = [triton.ask(client, as_json(one), model=model) for one in requests]
        return np.concatenate([answer.as_numpy("pctr").ravel() for answer in answers])

    return ask


def _infer_as_text(server: Running, model: str, request: Request) -> NDArray[Any]:
    tensor = {"name": "request", "datatype": "BYTES", "shape": [1], "data": [as_json(request)]}
    path = f"/v2/models/ads/versions/{model}/infer"
    status, answer = server.ask(path, {"inputs": [tensor]})
    assert status == 200, answer
    [output] = [one for one in answer["outputs"] if one["name"] == "pctr"]
    return np.array(output["data"])


def _infer(client: Any, server: Running, model: str, inputs: list[Any]) -> NDArray[Any]:
    address = server.http if client is tritonclient.http else server.grpc
    with client.InferenceServerClient(address) as to:
        answer = to.infer("ads", inputs, model_version=model)
    return np.asarray(answer.as_numpy("pctr"))


def differences(
    ways: Mapping[str, Ask], model: str, requests: Sequence[Request], expected_R: NDArray[Any]
) -> dict[str, float]:
    """Returns the greatest difference by each way."""
    found = {way: ask(model, requests) for way, ask in ways.items()}
    assert all(scores_R.shape == expected_R.shape for scores_R in found.values()), json.dumps(
        {way: scores_R.shape for way, scores_R in found.items()}
    )
    return {way: float(np.abs(scores_R - expected_R).max()) for way, scores_R in found.items()}
