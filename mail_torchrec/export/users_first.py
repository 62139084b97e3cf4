"""Inputs for servers that join requests along the first axis: every tensor starts with users, candidates stand in a rectangle behind them.

Such a server (Triton) knows rows and nothing else, so no input may name another's row: who a candidate belongs to is its place.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mail_torchrec.data.requests import USER_OF_CANDIDATE, Input


def users_first_inputs(inputs: Sequence[Input]) -> list[Input]:
    """An exported model's inputs, ``[users, ...]``, ``[users, 1]`` for one value a user, ``[users, candidates, ...]``."""
    return [spec.model_copy(update={"shape": _shape(spec)}) for spec in inputs if spec.name != USER_OF_CANDIDATE]


def users_first(encoded: Mapping[str, npt.NDArray[Any]], inputs: Sequence[Input]) -> dict[str, npt.NDArray[Any]]:
    """One request's encoded inputs in these shapes, with ``users = 1``.

    Args:
        encoded: what :class:`~mail_torchrec.data.requests.RequestEncoder` makes of one request.
        inputs: the manifest's.

    Raises:
        ValueError: candidates of several users.
    """
    if np.any(encoded[USER_OF_CANDIDATE] != 0):
        raise ValueError(
            f"should be the inputs of one request, received {encoded[USER_OF_CANDIDATE].max() + 1} users: encode one at a time"
        )
    return {
        spec.name: encoded[spec.name][None] if "candidates" in spec.shape else encoded[spec.name].reshape(1, -1)
        for spec in users_first_inputs(inputs)
    }


def _shape(spec: Input) -> tuple[int | str, ...]:
    rows, *rest = spec.shape
    return ("users", rows, *rest) if rows == "candidates" else (rows, *(rest or [1]))
