"""Decompression of request bodies (header ``Content-Encoding``, RFC 9110), bounded in its work."""

import zlib
from collections.abc import Sequence

from mail_torchrec.inference.errors import InvalidRequestError

CODINGS = ("gzip", "deflate")
"""Content codings that a body may have."""
_MAX_CODINGS = 2
_PIECE = 4096
"""Bytes decompressed at once: zlib copies the rest of a piece for each member of a gzip file."""
_RAW, _ZLIB, _GZIP = -zlib.MAX_WBITS, zlib.MAX_WBITS, 16 + zlib.MAX_WBITS
"""Forms of compressed data, as zlib's ``wbits``."""


def content_codings(headers: Sequence[str]) -> list[str]:
    """Parses the codings of a body, in the order in which they were applied.

    Args:
        headers: values of all headers ``Content-Encoding``; none for a plain body.

    Raises:
        InvalidRequestError: a coding that is none of :data:`CODINGS`, or too many.
    """
    names = [part.strip().lower() for header in headers for part in header.split(",")]
    codings = [name.removeprefix("x-") for name in names if name not in ("", "identity")]
    if unknown := [name for name in codings if name not in CODINGS]:
        raise InvalidRequestError(
            f"Content-Encoding should be {' or '.join(CODINGS)}, received '{unknown[0]}'", 415
        )
    if len(codings) > _MAX_CODINGS:
        raise InvalidRequestError(
            f"Content-Encoding should name at most {_MAX_CODINGS} codings, received {len(codings)}",
            415,
        )
    return codings


def decompress(body: bytes, codings: Sequence[str], max_bytes: int) -> bytes:
    """Decompresses a body; no step yields more than the limit.

    Args:
        body: body as received.
        codings: result of :func:`content_codings`.
        max_bytes: most bytes of the decompressed body.

    Raises:
        InvalidRequestError: damaged or cut data, bytes behind it, or too many.
    """
    for coding in reversed(codings):
        form = _GZIP if coding == "gzip" else _deflate_form(body)
        try:
            body = _inflate(body, form, max_bytes)
        except zlib.error as error:
            raise InvalidRequestError(
                f"Content-Encoding {coding}: the body should be such data, and is not: {error}"
            ) from error
    return body


def _deflate_form(body: bytes) -> int:
    """Tells zlib data, which the RFC calls deflate, from the raw deflate that clients also send."""
    is_zlib = len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return _ZLIB if is_zlib else _RAW


def _inflate(body: bytes, form: int, max_bytes: int) -> bytes:
    inflater, found = zlib.decompressobj(form), bytearray()
    for begin in range(0, len(body), _PIECE):
        piece = body[begin : begin + _PIECE]
        while piece:
            if inflater.eof:
                if form != _GZIP:
                    raise zlib.error("there are bytes behind its end")
                inflater = zlib.decompressobj(form)  # a gzip file may have several members
            found += inflater.decompress(piece, max_bytes + 1 - len(found))
            if len(found) > max_bytes:
                raise InvalidRequestError(
                    f"a request should be at most {max_bytes} bytes, decompressed", 413
                )
            piece = inflater.unused_data
    if not inflater.eof:
        raise zlib.error("it ends too early")
    return bytes(found)
