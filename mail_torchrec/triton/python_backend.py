"""Model of Triton's Python backend: raw requests to scores.

Triton's Python imports it from a copy inside the repository (:mod:`.module_copy`), so it and all
that it imports need no torch.

Triton passes all requests that wait. They are encoded together and scored by one call of ONNX
Runtime, whatever their numbers of candidates; where one is malformed, each is encoded alone, and
only the malformed ones are refused.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as backend

from mail_torchrec.inference.datatypes import Array
from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.inference.raw_requests import RAW_INPUT, parse_raw_request
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Arrays, Scorer
from mail_torchrec.triton.names import EXPORTED, MAX_CANDIDATES

ParsedRequest = Request | InvalidRequestError


class TritonPythonModel:
    """Class that Triton's Python backend looks for in ``model.py``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the exported model of the version's folder.

        Raises:
            ValueError: it is damaged, or does not score its golden requests as the trainer did.
        """
        folder = Path(args["model_repository"]) / args["model_version"] / EXPORTED
        self.scorer = Scorer(folder)
        self.scorer.check_golden()
        parameters = json.loads(args["model_config"])["parameters"]
        self.max_candidates = int(parameters[MAX_CANDIDATES]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers Triton's requests with one response each, in their order."""
        parsed = [self._parse(request) for request in requests]
        try:
            inputs = self._encode(parsed)
        except ValueError:  # at least one request is malformed
            parsed = [self._check_alone(request) for request in parsed]
            inputs = self._encode(parsed)
        valid = _valid(parsed)
        scores = self.scorer.run(inputs) if valid else {}
        stops = np.cumsum([len(request.candidates) for request in valid])
        parts = {name: iter(np.split(values, stops[:-1])) for name, values in scores.items()}
        return [
            _error(request) if isinstance(request, InvalidRequestError) else _response(parts)
            for request in parsed
        ]

    def _parse(self, request: Any) -> ParsedRequest:
        try:
            tensor = backend.get_input_tensor_by_name(request, RAW_INPUT)
            raw = parse_raw_request(tensor.as_numpy())
        except InvalidRequestError as error:
            return error
        if len(raw.candidates) > self.max_candidates:
            return InvalidRequestError(
                f"at most {self.max_candidates} candidates a request, received "
                f"{len(raw.candidates)}"
            )
        return Request(raw.user, raw.candidates)

    def _check_alone(self, request: ParsedRequest) -> ParsedRequest:
        """Replaces a request that cannot be encoded by its error."""
        try:
            self._encode([request])
        except ValueError as error:
            return InvalidRequestError(str(error))
        return request

    def _encode(self, requests: Sequence[ParsedRequest]) -> Arrays:
        valid = _valid(requests)
        return self.scorer.encode(valid) if valid else {}


def _valid(requests: Sequence[ParsedRequest]) -> list[Request]:
    return [request for request in requests if isinstance(request, Request)]


def _error(error: InvalidRequestError) -> Any:
    return backend.InferenceResponse(
        error=backend.TritonError(str(error), backend.TritonError.INVALID_ARG)
    )


def _response(parts: dict[str, Iterator[Array]]) -> Any:
    """Takes the next request's scores of each output, [1, candidates]."""
    return backend.InferenceResponse(
        [backend.Tensor(name, next(scores)[None]) for name, scores in parts.items()]
    )
