"""Inputs for servers that join requests along the first axis: every tensor starts with users, candidates stand in a rectangle behind them.

Such a server (Triton) knows rows and nothing else, so no input may name another's row: who a
candidate belongs to is its place.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mail_torchrec.inference.requests import USER_OF_CANDIDATE, Input


def users_first_inputs(inputs: Sequence[Input]) -> list[Input]:
    """An exported model's inputs, ``[users, ...]``, ``[users, 1]`` for one value a user, ``[users, candidates, ...]``."""
    return [
        spec.model_copy(update={"shape": _shape(spec)})
        for spec in inputs
        if spec.name != USER_OF_CANDIDATE
    ]


def users_first(
    encoded: Mapping[str, npt.NDArray[Any]], inputs: Sequence[Input]
) -> dict[str, npt.NDArray[Any]]:
    """Encoded inputs in these shapes.

    Args:
        encoded: what :class:`~mail_torchrec.inference.requests.RequestEncoder` makes of one
            request, or of several with as many candidates each.
        inputs: the manifest's.

    Raises:
        ValueError: users with different numbers of candidates.
    """
    counts_U = np.bincount(encoded[USER_OF_CANDIDATE])
    users, candidates = len(counts_U), int(counts_U[0])
    if np.any(counts_U != candidates):
        raise ValueError(
            f"users should have as many candidates each, received {counts_U}: encode requests one "
            "by one, or fill them up"
        )
    found = {}
    for spec in users_first_inputs(inputs):
        array = encoded[spec.name]
        behind = array.shape[1:]
        found[spec.name] = (
            array.reshape(users, candidates, *behind)
            if "candidates" in spec.shape
            else array.reshape(users, *(behind or [1]))
        )
    return found


def _shape(spec: Input) -> tuple[int | str, ...]:
    rows, *rest = spec.shape
    return ("users", rows, *rest) if rows == "candidates" else (rows, *(rest or [1]))
