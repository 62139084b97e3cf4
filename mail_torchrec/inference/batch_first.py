"""Batch-first inputs for servers that concatenate requests along the first axis.

Every input is ``[users, ...]``; candidates stand in a rectangle behind their user, ``[users,
candidates, ...]``. Such a server (Triton) knows batch rows and nothing else, so no input may hold
another row's index: a candidate belongs to a user by its position.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mail_torchrec.inference.datatypes import Array
from mail_torchrec.inference.requests import USER_OF_CANDIDATE, InputSpec


def batch_first_inputs(inputs: Sequence[InputSpec]) -> list[InputSpec]:
    """Describes an exported model's inputs in batch-first form.

    Inputs of users are ``[users, ...]``, or ``[users, 1]`` for one value a user; inputs of
    candidates are ``[users, candidates, ...]``.
    """
    return [
        spec.model_copy(update={"shape": _shape(spec)})
        for spec in inputs
        if spec.name != USER_OF_CANDIDATE
    ]


def batch_first(encoded: Mapping[str, Array], inputs: Sequence[InputSpec]) -> dict[str, Array]:
    """Reshapes encoded inputs to batch-first form.

    Args:
        encoded: encoding of one request, or of several with as many candidates each, [users, ...]
            or [candidates, ...] as ``inputs`` says.
        inputs: input descriptions of the manifest.

    Raises:
        ValueError: users have different numbers of candidates.
    """
    counts_U = np.bincount(encoded[USER_OF_CANDIDATE])
    users, candidates = len(counts_U), int(counts_U[0])
    if np.any(counts_U != candidates):
        raise ValueError(
            f"users should have as many candidates each, received {counts_U}: encode requests one "
            "by one, or fill them up"
        )
    reshaped = {}
    for spec in batch_first_inputs(inputs):
        array = encoded[spec.name]
        rest = array.shape[1:]
        if "candidates" in spec.shape:
            reshaped[spec.name] = array.reshape(users, candidates, *rest)
        else:
            reshaped[spec.name] = array.reshape(users, *(rest or [1]))
    return reshaped


def _shape(spec: InputSpec) -> tuple[int | str, ...]:
    axis, *rest = spec.shape
    return ("users", axis, *rest) if axis == "candidates" else (axis, *(rest or [1]))
