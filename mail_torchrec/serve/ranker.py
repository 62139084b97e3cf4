"""A call, of either protocol -> the version that answers, its inputs, its scores."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mail_torchrec.inference.errors import RefusedError
from mail_torchrec.inference.manifest import Manifest
from mail_torchrec.inference.requests import USER_OF_CANDIDATE, Request
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.serve.input_checks import check_inputs
from mail_torchrec.serve.prometheus import Metrics
from mail_torchrec.serve.raw_requests import RAW, RawRequest, raw_request
from mail_torchrec.serve.tensors import DATATYPES, Array
from mail_torchrec.serve.versions import Versions

PLATFORM = "onnx_onnxv1"


@dataclass(frozen=True)
class Call:
    """What a client asks."""

    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] = ()
    """Empty: the probabilities."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    """Empty: what serves the user."""


@dataclass(frozen=True)
class Answer:
    """Outputs by name, and the version that made them."""

    version: str
    outputs: Mapping[str, Array]


class Ranker:
    """Answers calls.

    Args:
        name: the model's, as clients know it.
        versions: that serve.
        metrics: told of each answer.
        max_candidates: of a call.
    """

    def __init__(
        self, name: str, versions: Versions, metrics: Metrics, max_candidates: int
    ) -> None:
        self.name, self.versions, self.metrics, self.max_candidates = (
            name,
            versions,
            metrics,
            max_candidates,
        )

    def answer(self, call: Call) -> Answer:
        """The scores of a call.

        Raises:
            RefusedError: the client is to change something.
        """
        start = time.perf_counter()
        raw = raw_request(call.inputs[RAW]) if call.inputs.keys() == {RAW} else None
        scorer = self.versions.choose(call.version, self._user(call, raw))
        manifest = scorer.manifest
        inputs = dict(call.inputs) if raw is None else self._encode(raw, scorer)
        if raw is None:
            check_inputs(inputs, manifest)
            self._check_candidates(len(inputs[USER_OF_CANDIDATE]))
        known = [output.name for output in manifest.outputs]
        if unknown := [name for name in call.outputs if name not in known]:
            raise RefusedError(f"output '{unknown[0]}' should be one of {', '.join(known)}")
        outputs = scorer.run(inputs, call.outputs or None)
        self.metrics.count(inputs, manifest)
        self.metrics.seconds.labels(manifest.version).observe(time.perf_counter() - start)
        return Answer(manifest.version, outputs)

    def metadata(self, version: str) -> dict[str, Any]:
        """The model's metadata, as the protocol words it; -1 stands for free sizes.

        Raises:
            RefusedError: no such version.
        """
        manifest = (
            self.versions.choose(version, None) if version else self.versions.all[-1]
        ).manifest
        return {
            "name": self.name,
            "versions": [scorer.manifest.version for scorer in self.versions.all],
            "platform": PLATFORM,
            "inputs": [{"name": RAW, "datatype": "BYTES", "shape": [1]}, *_described(manifest)],
            "outputs": [
                {"name": output.name, "datatype": "FP32", "shape": _sizes(output.shape)}
                for output in manifest.outputs
            ],
        }

    def check_name(self, name: str) -> None:
        """Raises RefusedError where it is another model's."""
        if name != self.name:
            raise RefusedError(f"model '{name}' should be '{self.name}'", 404)

    def _user(self, call: Call, raw: RawRequest | None) -> str | None:
        """The user that a split goes by."""
        if (user := call.parameters.get("user")) is None and raw is not None:
            schema = self.versions.all[-1].manifest.schema_
            user = raw.user.get(schema.file_column(schema.group_key))
        if user is not None and not isinstance(user, int | str):
            raise RefusedError(
                f"the user's id should be an integer or a string, received {user!r:.100}"
            )
        return None if user is None else str(user)

    def _encode(self, raw: RawRequest, scorer: Scorer) -> dict[str, Array]:
        self._check_candidates(len(raw.candidates))
        try:
            return scorer.encode([Request(raw.user, raw.candidates)])
        except ValueError as error:
            raise RefusedError(str(error)) from error

    def _check_candidates(self, count: int) -> None:
        if count > self.max_candidates:
            raise RefusedError(
                f"at most {self.max_candidates} candidates a request, received {count}", 413
            )


def _described(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": _sizes(spec.shape)}
        for spec in manifest.inputs
    ]


def _sizes(shape: tuple[int | str, ...]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in shape]
