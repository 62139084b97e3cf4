"""Encoded inputs against the manifest: ONNX Runtime wraps a negative id round and stops at no NaN, so nothing reaches it unchecked."""

from collections.abc import Mapping

import numpy as np

from mail_torchrec.inference.errors import RefusedError
from mail_torchrec.inference.manifest import Manifest
from mail_torchrec.inference.requests import USER_OF_CANDIDATE, Input
from mail_torchrec.serve.tensors import DATATYPES, Array


def check_inputs(given: Mapping[str, Array], manifest: Manifest) -> None:
    """Checks names, types, sizes and values.

    Raises:
        RefusedError: the model cannot take them; the message names the input.
    """
    expected = {spec.name: spec for spec in manifest.inputs}
    if given.keys() != expected.keys():
        missing, unknown = (
            sorted(expected.keys() - given.keys()),
            sorted(given.keys() - expected.keys()),
        )
        raise RefusedError(
            "inputs should be 'request' alone (raw values as JSON) or all of "
            f"{', '.join(expected)}; missing: {missing}, unknown: {unknown}"
        )
    sizes: dict[str, int] = {}
    for name, spec in expected.items():
        _check_shape(given[name], spec, sizes)
        _check_values(given[name], spec)
    for name in expected:
        if name.endswith(".length"):
            width = given[name.removesuffix(".length")].shape[1]
            if given[name].max(initial=0) > width:
                raise RefusedError(
                    f"input '{name}' should be at most {width}, the width of its list, received "
                    f"{given[name].max()}"
                )
    if given[USER_OF_CANDIDATE].max(initial=0) >= sizes["users"]:
        raise RefusedError(
            f"input '{USER_OF_CANDIDATE}' should be below {sizes['users']}, the number of users"
        )


def _check_shape(array: Array, spec: Input, sizes: dict[str, int]) -> None:
    """Also notes the free sizes, which all inputs share."""
    if DATATYPES[spec.dtype] != DATATYPES.get(str(array.dtype)):
        raise RefusedError(
            f"input '{spec.name}' should be {DATATYPES[spec.dtype]}, received "
            f"{DATATYPES.get(str(array.dtype))}"
        )
    if array.ndim != len(spec.shape):
        raise RefusedError(
            f"input '{spec.name}' should have the shape {list(spec.shape)}, received "
            f"{list(array.shape)}"
        )
    for free, size in zip(spec.shape, array.shape, strict=True):
        wanted = free if isinstance(free, int) else sizes.setdefault(free, size)
        if size != wanted or size == 0:
            raise RefusedError(
                f"input '{spec.name}' should have the shape {list(spec.shape)} with {free} = "
                f"{wanted or 'at least 1'}, "
                f"received {list(array.shape)}"
            )


def _check_values(array: Array, spec: Input) -> None:
    if spec.dtype == "float32" and not np.isfinite(array).all():
        raise RefusedError(f"input '{spec.name}' should be finite, received NaN or infinity")
    if spec.low is not None and array.min() < spec.low:
        raise RefusedError(
            f"input '{spec.name}' should be at least {spec.low}, received {array.min()}"
        )
    if spec.high is not None and array.max() > spec.high:
        raise RefusedError(
            f"input '{spec.name}' should be at most {spec.high}, received {array.max()}"
        )
