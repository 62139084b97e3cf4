"""Validation of encoded inputs against the manifest.

ONNX Runtime wraps a negative id around and accepts NaN, so no input reaches it unchecked.
"""

from collections.abc import Mapping

import numpy as np

from mail_torchrec.inference.datatypes import DATATYPES, Array
from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import USER_OF_CANDIDATE, InputSpec


def check_inputs(given: Mapping[str, Array], manifest: ArtifactManifest) -> int:
    """Checks names, types, shapes and values of encoded inputs.

    Args:
        given: arrays by input name, of any shape, [...].
        manifest: manifest of the model that is to score them.

    Returns:
        The number of users.

    Raises:
        InvalidRequestError: the model cannot score them; the message names the input.
    """
    _check_names(given, manifest)
    sizes: dict[str, int] = {}
    for spec in manifest.inputs:
        _check_dtype(given[spec.name], spec)
        _check_shape(given[spec.name], spec, sizes)
        _check_values(given[spec.name], spec)
    for spec in manifest.inputs:
        if spec.length_of is not None:
            _check_lengths(given[spec.name], given[spec.length_of], spec)
    if given[USER_OF_CANDIDATE].max(initial=0) >= sizes["users"]:
        raise InvalidRequestError(
            f"input '{USER_OF_CANDIDATE}' should be below {sizes['users']}, the number of users"
        )
    return sizes["users"]


def _check_names(given: Mapping[str, Array], manifest: ArtifactManifest) -> None:
    expected = {spec.name: spec for spec in manifest.inputs}
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected)
    if missing or unknown:
        raise InvalidRequestError(
            "inputs should be 'request' alone (raw values as JSON) or all of "
            f"{', '.join(expected)}; missing: {missing}, unknown: {unknown}"
        )


def _check_dtype(array: Array, spec: InputSpec) -> None:
    expected, received = DATATYPES[spec.dtype], DATATYPES.get(str(array.dtype))
    if received != expected:
        raise InvalidRequestError(f"input '{spec.name}' should be {expected}, received {received}")


def _check_shape(array: Array, spec: InputSpec, sizes: dict[str, int]) -> None:
    """Checks a shape, and records the free sizes that all inputs share in ``sizes``."""
    if array.ndim != len(spec.shape):
        raise InvalidRequestError(
            f"input '{spec.name}' should have the shape {list(spec.shape)}, received "
            f"{list(array.shape)}"
        )
    for axis, size in zip(spec.shape, array.shape, strict=True):
        expected = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
        if size != expected or size == 0:
            raise InvalidRequestError(
                f"input '{spec.name}' should have the shape {list(spec.shape)} with {axis} = "
                f"{expected or 'at least 1'}, received {list(array.shape)}"
            )


def _check_values(array: Array, spec: InputSpec) -> None:
    if spec.dtype == "float32" and not np.isfinite(array).all():
        raise InvalidRequestError(f"input '{spec.name}' should be finite, received NaN or infinity")
    if spec.low is not None and array.min() < spec.low:
        raise InvalidRequestError(
            f"input '{spec.name}' should be at least {spec.low}, received {array.min()}"
        )
    if spec.high is not None and array.max() > spec.high:
        raise InvalidRequestError(
            f"input '{spec.name}' should be at most {spec.high}, received {array.max()}"
        )


def _check_lengths(lengths_R: Array, ids_RL: Array, spec: InputSpec) -> None:
    width = ids_RL.shape[1]
    if lengths_R.max(initial=0) > width:
        raise InvalidRequestError(
            f"input '{spec.name}' should be at most {width}, the width of its list, received "
            f"{lengths_R.max()}"
        )
