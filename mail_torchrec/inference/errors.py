"""Errors of clients, with the HTTP status that a server answers."""

from typing import Literal

HttpStatus = Literal[400, 404, 413, 415]
MAX_MESSAGE = 2000
"""Most characters of a message, which may quote what the client sent."""


class InvalidRequestError(ValueError):
    """A request that the client has to change.

    Args:
        message: the expected and the received value.
        status: 400 for an invalid value, 404 for an unknown model or version, 413 for a request
            above a limit, 415 for a compression that the server does not know.
    """

    def __init__(self, message: str, status: HttpStatus = 400) -> None:
        super().__init__(message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}...")
        self.status = status
