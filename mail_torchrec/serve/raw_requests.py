"""What a client sends as JSON, parsed: one user and its candidates as raw values, and the protocol's own bodies."""

import json
from typing import Any, NoReturn, TypeVar

from pydantic import Field, ValidationError

from mail_torchrec.inference.errors import RefusedError
from mail_torchrec.serve.tensors import DATATYPES, Array
from mail_torchrec.settings import Settings

RAW = "request"
"""The input that holds raw values, instead of all that the manifest lists."""
Parsed = TypeVar("Parsed", bound=Settings)


class RawRequest(Settings):
    """What the input ``request`` holds, as JSON."""

    user: dict[str, Any]
    """Attributes, histories (oldest first), context by the files' column names; null where a value
    is missing."""
    candidates: list[dict[str, Any]] = Field(min_length=1)
    """Item columns."""


def raw_request(tensor: Array) -> RawRequest:
    """The request in the tensor :data:`RAW`.

    Raises:
        RefusedError: it is not one element, or no such JSON.
    """
    if tensor.dtype != object or tensor.size != 1:
        raise RefusedError(
            f"input '{RAW}' should be one element of BYTES, received "
            f"{DATATYPES.get(str(tensor.dtype))} {list(tensor.shape)}"
        )
    text: bytes = tensor.item()
    return parse(RawRequest, text)


def parse(kind: type[Parsed], text: bytes) -> Parsed:
    """JSON as one of our models.

    Raises:
        RefusedError: it is not; NaN and infinity are no JSON.
    """
    try:
        return kind.model_validate(json.loads(text, parse_constant=_no_number), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RefusedError(
            f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}, received "
            f"{type(first['input']).__name__}"
        ) from error
    except RecursionError as error:
        raise RefusedError("JSON should not be nested so deep") from error
    except ValueError as error:
        raise RefusedError(f"should be JSON in UTF-8: {error}") from error


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number; send null where a value is missing")
