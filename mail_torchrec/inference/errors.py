"""Errors of clients, with the HTTP status that a server answers."""

from typing import Literal

HttpStatus = Literal[400, 404, 413, 415, 429]
MAX_MESSAGE = 2000
"""Most characters of a message, which may quote what the client sent."""


class InvalidRequestError(ValueError):
    """A request that the client has to change.

    Args:
        message: the expected and the received value.
        status: 400 for an invalid value, 404 for an unknown model or version, 413 for a request
            above a limit, 415 for a compression that the server does not know, 429 for a request
            that is to be sent again a little later.
    """

    def __init__(self, message: str, status: HttpStatus = 400) -> None:
        text = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}..."
        # Half a surrogate pair cannot be answered in UTF-8.
        super().__init__(text.encode("utf-8", "backslashreplace").decode())
        self.status = status
