"""Mapping from numpy dtypes to the datatypes of the Open Inference Protocol v2."""

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
DATATYPES = {"int64": "INT64", "float32": "FP32", "bool": "BOOL", "object": "BYTES"}
"""Name of a numpy dtype to the protocol's datatype; elements of BYTES are ``bytes``.

The only place that knows the protocol's names: REST, gRPC, OpenAPI and Triton read it.
"""
