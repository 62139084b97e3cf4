"""A model of Triton's Python backend: raw requests in, scores out. Triton's Python imports it, from a copy inside the repository.

Triton hands over all requests that wait. They are encoded together and scored by one call of ONNX
Runtime, whatever their numbers of candidates; where one is malformed, each is looked at alone, and
that one is refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as backend

from mail_torchrec.inference.errors import RefusedError
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Arrays, Scorer
from mail_torchrec.serve.raw_requests import RAW, raw_request
from mail_torchrec.triton.names import EXPORTED, MAX_CANDIDATES


class TritonPythonModel:
    """What the backend looks for in ``model/mail.py``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model.

        Raises:
            ValueError: it is damaged, or does not score its golden requests as the trainer did.
        """
        folder = Path(args["model_repository"]) / args["model_version"] / EXPORTED
        self.scorer = Scorer(folder)
        self.scorer.check_golden()
        self.max_candidates = int(
            json.loads(args["model_config"])["parameters"][MAX_CANDIDATES]["string_value"]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response a request, in their order."""
        read = [self._read(request) for request in requests]
        try:
            inputs = self._encode(read)
        except ValueError:  # of one of them
            read = [self._alone(each) for each in read]
            inputs = self._encode(read)
        good = _good(read)
        scores = self.scorer.run(inputs) if good else {}
        stops = np.cumsum([len(request.candidates) for request in good])
        parts = {name: iter(np.split(values, stops[:-1])) for name, values in scores.items()}
        return [
            _refusal(each) if isinstance(each, RefusedError) else _response(parts) for each in read
        ]

    def _read(self, request: Any) -> Request | RefusedError:
        try:
            raw = raw_request(backend.get_input_tensor_by_name(request, RAW).as_numpy())
        except RefusedError as error:
            return error
        if len(raw.candidates) > self.max_candidates:
            return RefusedError(
                f"at most {self.max_candidates} candidates a request, received "
                f"{len(raw.candidates)}"
            )
        return Request(raw.user, raw.candidates)

    def _alone(self, each: Request | RefusedError) -> Request | RefusedError:
        """The same, or why it cannot be encoded."""
        try:
            self._encode([each])
        except ValueError as error:
            return RefusedError(str(error))
        return each

    def _encode(self, read: Sequence[Request | RefusedError]) -> Arrays:
        good = _good(read)
        return self.scorer.encode(good) if good else {}


def _good(read: Sequence[Request | RefusedError]) -> list[Request]:
    return [each for each in read if isinstance(each, Request)]


def _refusal(error: RefusedError) -> Any:
    return backend.InferenceResponse(
        error=backend.TritonError(str(error), backend.TritonError.INVALID_ARG)
    )


def _response(parts: dict[str, Any]) -> Any:
    return backend.InferenceResponse(
        [backend.Tensor(name, next(scores)[None]) for name, scores in parts.items()]
    )
