"""Log filter that lets each message of a place in the code through once a minute."""

import logging
import time

from mail_torchrec.utils.logging import get_logger

FAULTS = get_logger("mail_torchrec.serve.faults")
"""Logger of errors in the answering of a request, which are the server's."""
_CAUSED_BY_CLIENTS = (
    "mail_torchrec.serve.connections",
    "asyncio",
    "uvicorn.error",
    "grpc._server",
    "grpc._common",
    "concurrent.futures",
)
_SECONDS = 60.0


class OncePerMinute(logging.Filter):
    """Lets a message through once a minute, and says how many were left out before it.

    Messages are the same if they come from one line of code, whatever values they quote: clients
    can cause them as often as they like.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Decides on a message, and adds to it the number of those left out."""
        place, now = (record.pathname, record.lineno), time.monotonic()
        since, left_out = self._seen.get(place, (-_SECONDS, 0))
        if now - since < _SECONDS:
            self._seen[place] = since, left_out + 1
            return False
        self._seen[place] = now, 0
        if left_out:
            record.msg = f"{record.getMessage()} (and {left_out} like it since the last one)"
            record.args = ()
        return True


def keep_log_short() -> None:
    """Applies the filter to the loggers whose messages clients can cause."""
    for name in (FAULTS.name, *_CAUSED_BY_CLIENTS):
        logging.getLogger(name).addFilter(OncePerMinute())
