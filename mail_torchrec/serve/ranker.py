"""Scoring of protocol-independent calls: the version that serves, its inputs, its outputs."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mail_torchrec.inference.datatypes import DATATYPES, Array
from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.raw_requests import (
    RAW_INPUT,
    RawRequest,
    check_text,
    parse_raw_request,
)
from mail_torchrec.inference.requests import USER_OF_CANDIDATE, Request
from mail_torchrec.inference.scorer import Arrays, Scorer
from mail_torchrec.serve.drift.monitor import DriftMonitor
from mail_torchrec.serve.input_checks import check_inputs
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.serve.versions import ModelVersions

PLATFORM = "onnx_onnxv1"


@dataclass(frozen=True)
class InferenceCall:
    """One call of a client, decoded from either protocol."""

    inputs: Mapping[str, Array]
    """Tensors by name, of the shapes that the client sent, [...]."""
    outputs: tuple[str, ...] = ()
    """Names of the outputs asked for; empty for the probabilities."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the protocol; ``user`` names the user of a traffic split."""
    version: str = ""
    """Version asked for; empty for the one that serves the user."""


@dataclass(frozen=True)
class InferenceResult:
    """Outputs of a call and the version that computed them."""

    version: str
    outputs: Mapping[str, Array]
    """Arrays by name, [users, ...] or [candidates, ...] as the output specs say."""


class Ranker:
    """Scores calls with the loaded versions of one model.

    Args:
        name: name of the model for clients.
        versions: loaded versions.
        metrics: counts every scored call.
        max_candidates: most candidates of a call.
        drift: samples the virtual behaviours of new users; None for none.
    """

    def __init__(
        self,
        name: str,
        versions: ModelVersions,
        metrics: ServerMetrics,
        max_candidates: int,
        drift: DriftMonitor | None = None,
    ) -> None:
        self.name, self.versions, self.metrics = name, versions, metrics
        self.max_candidates, self.drift = max_candidates, drift

    def infer(self, call: InferenceCall) -> InferenceResult:
        """Computes the outputs of a call.

        Raises:
            InvalidRequestError: the client has to change the call.
        """
        start = time.perf_counter()
        is_raw = call.inputs.keys() == {RAW_INPUT}
        raw = parse_raw_request(call.inputs[RAW_INPUT]) if is_raw else None
        scorer = self.versions.choose(call.version, self._user(call, raw))
        manifest = scorer.manifest
        if raw is None:
            inputs = self._check_encoded(call.inputs, manifest)
        else:
            inputs = self._encode(raw, scorer)
        _check_outputs(call.outputs, manifest)
        outputs = self._run(scorer, inputs, call.outputs or tuple(scorer.scores))
        _check_finite(outputs)
        self.metrics.count(inputs, manifest)
        self.metrics.seconds.labels(manifest.version).observe(time.perf_counter() - start)
        return InferenceResult(manifest.version, outputs)

    def metadata(self, version: str) -> dict[str, Any]:
        """Describes the model in the protocol's terms; -1 stands for free sizes.

        Raises:
            InvalidRequestError: unknown version.
        """
        chosen = self.versions.choose(version, None) if version else self.versions.serving
        manifest = chosen.manifest
        raw = {"name": RAW_INPUT, "datatype": "BYTES", "shape": [1]}
        return {
            "name": self.name,
            "versions": [scorer.manifest.version for scorer in self.versions.all],
            "platform": PLATFORM,
            "inputs": [
                raw,
                *(_tensor(spec.name, spec.dtype, spec.shape) for spec in manifest.inputs),
            ],
            "outputs": [
                _tensor(spec.name, spec.dtype, (spec.axis, *spec.size)) for spec in manifest.outputs
            ],
        }

    def check_name(self, name: str) -> None:
        """Raises InvalidRequestError for the name of another model."""
        if name != self.name:
            raise InvalidRequestError(f"model '{name}' should be '{self.name}'", 404)

    def _run(self, scorer: Scorer, inputs: Arrays, names: tuple[str, ...]) -> Arrays:
        """Computes outputs, and beside them virtual behaviours where users are sampled."""
        sampled = None if self.drift is None else self.drift.offer(inputs, scorer.manifest)
        if self.drift is None or sampled is None:
            return scorer.run(inputs, names)
        found = scorer.run(inputs, tuple(dict.fromkeys((*names, *sampled.outputs))))
        self.drift.keep(sampled, found)
        return {name: found[name] for name in names}

    def _user(self, call: InferenceCall, raw: RawRequest | None) -> str | None:
        """Finds the user id that a traffic split hashes."""
        if (user := call.parameters.get("user")) is None and raw is not None:
            schema = self.versions.serving.manifest.schema_
            user = raw.user.get(schema.file_column(schema.group_key))
        if user is not None and not isinstance(user, int | str):
            raise InvalidRequestError(
                f"the user's id should be an integer or a string, received {user!r:.100}"
            )
        if isinstance(user, str):
            check_text("the user's id", user)
        return None if user is None else str(user)

    def _encode(self, raw: RawRequest, scorer: Scorer) -> dict[str, Array]:
        self._check_candidates(len(raw.candidates))
        try:
            return scorer.encode([Request(raw.user, raw.candidates)])
        except ValueError as error:
            raise InvalidRequestError(str(error)) from error

    def _check_encoded(
        self, inputs: Mapping[str, Array], manifest: ArtifactManifest
    ) -> dict[str, Array]:
        num_users = check_inputs(inputs, manifest)
        self._check_candidates(num_users, "users")
        self._check_candidates(len(inputs[USER_OF_CANDIDATE]))
        return dict(inputs)

    def _check_candidates(self, count: int, name: str = "candidates") -> None:
        if count > self.max_candidates:
            raise InvalidRequestError(
                f"at most {self.max_candidates} {name} a request, received {count}", 413
            )


def _check_outputs(names: tuple[str, ...], manifest: ArtifactManifest) -> None:
    known = [spec.name for spec in manifest.outputs]
    if len(names) > len(set(names)):  # each would be computed and answered
        raise InvalidRequestError("an output should be asked for once")
    if unknown := [name for name in names if name not in known]:
        raise InvalidRequestError(f"output '{unknown[0]}' should be one of {', '.join(known)}")


def _check_finite(outputs: Mapping[str, Array]) -> None:
    """Refuses a request whose numbers are so large that they overflow inside the model."""
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            raise InvalidRequestError(
                f"output '{name}' should be finite, and is not: numbers of the request are too "
                "large for the model"
            )


def _tensor(name: str, dtype: str, shape: tuple[int | str, ...]) -> dict[str, Any]:
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    return {"name": name, "datatype": DATATYPES[dtype], "shape": sizes}
