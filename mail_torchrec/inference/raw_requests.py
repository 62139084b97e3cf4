"""Parsing of the JSON that clients send: one user and its candidates as raw values.

Servers of both kinds (``serve`` and Triton's Python backend) parse raw requests here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import FailFast, Field, ValidationError
from pydantic_core import from_json

from mail_torchrec.inference.datatypes import DATATYPES, Array
from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.settings import Settings

RAW_INPUT = "request"
"""Name of the input tensor that holds a raw request, in place of all inputs of the manifest."""
MAX_TEXT = 4096
"""Most characters of a string in a request, an id above all."""
MAX_CONTAINERS = 2**17
"""Most lists and objects of a request, by its brackets: each takes some 100 bytes and holds every
other thread up while it is made. 10,000 candidates of ten lists have 110,000."""
ParsedSettings = TypeVar("ParsedSettings", bound=Settings)


class RawRequest(Settings):
    """JSON content of the input tensor :data:`RAW_INPUT`."""

    user: dict[str, Any]
    """Attributes, histories (oldest first) and context by the files' column names; null where a
    value is missing."""
    candidates: Annotated[list[dict[str, Any]], FailFast()] = Field(min_length=1)
    """Item columns of each candidate."""


def parse_raw_request(tensor: Array) -> RawRequest:
    """Parses the tensor :data:`RAW_INPUT`.

    Args:
        tensor: BYTES of one element, [1] or [].

    Raises:
        InvalidRequestError: not one element, or not the JSON of a :class:`RawRequest`.
    """
    if tensor.dtype != object or tensor.size != 1:
        raise InvalidRequestError(
            f"input '{RAW_INPUT}' should be one element of BYTES, received "
            f"{DATATYPES.get(str(tensor.dtype))} {list(tensor.shape)}"
        )
    text: bytes | str = tensor.item()
    request = parse_json(RawRequest, text)
    for row_name, row in (("user", request.user), *(("candidate", c) for c in request.candidates)):
        _check_values(row_name, row)
    return request


def check_text(name: str, text: str) -> None:
    """Raises InvalidRequestError for a string longer than :data:`MAX_TEXT`.

    Args:
        name: what the string is, for the message.
        text: the string.
    """
    if len(text) > MAX_TEXT:
        raise InvalidRequestError(
            f"{name} should be a string of at most {MAX_TEXT} characters, received {len(text)}"
        )


def _check_values(row_name: str, row: Mapping[str, Any]) -> None:
    """Checks that values are scalars or lists of them: Arrow's work on objects is quadratic."""
    for column, value in row.items():
        for element in value if isinstance(value, list) else (value,):
            if isinstance(element, str):
                check_text(f"{row_name}: column '{column}'", element)
            elif isinstance(element, dict | list):
                raise InvalidRequestError(
                    f"{row_name}: column '{column}' should hold a value or a list of values, "
                    f"received {'an object' if isinstance(element, dict) else 'a list of lists'}"
                )


def parse_json(kind: type[ParsedSettings], text: bytes | str) -> ParsedSettings:
    """Parses JSON as a settings class.

    Raises:
        InvalidRequestError: not such JSON, or of too many lists and objects. NaN and infinity are
            not JSON numbers, and half a surrogate pair (an escape ``ud800`` alone) is no text.
    """
    brackets = (
        (text.count("["), text.count("{"))
        if isinstance(text, str)
        else (text.count(b"["), text.count(b"{"))
    )
    if (num_containers := sum(brackets)) > MAX_CONTAINERS:
        raise InvalidRequestError(
            f"a request should have at most {MAX_CONTAINERS} lists and objects, received "
            f"{num_containers} opening brackets; send fewer candidates at once"
        )
    try:
        return kind.model_validate(from_json(text, allow_inf_nan=False), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidRequestError(
            f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}, received "
            f"{type(first['input']).__name__}"
        ) from error
    except ValueError as error:
        raise InvalidRequestError(
            f"should be JSON in UTF-8 (null where a value is missing): {error}"
        ) from error
