"""What a client did wrong, with the HTTP status that says so."""

from typing import Literal

Status = Literal[400, 404, 413]


class RefusedError(ValueError):
    """A request that is not answered.

    Args:
        message: what was expected, what was received.
        status: 400 for a bad value, 404 for a model or version that is not there, 413 for too much.
    """

    def __init__(self, message: str, status: Status = 400) -> None:
        super().__init__(message)
        self.status = status
