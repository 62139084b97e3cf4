"""Admission of requests: bytes and requests in the server, and those computed at once."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from mail_torchrec.inference.errors import InvalidRequestError

RETRY_AFTER = 1
"""Seconds after which a client should send a refused request again."""
Result = TypeVar("Result")


class Admission:
    """Requests of both protocols that are in the server, from their first byte to their answer.

    A request beyond a limit is refused at once (429). Memory is bounded by it: the bytes that have
    arrived, and what ``workers`` requests take while they are computed.

    Args:
        max_bytes: most bytes of all requests in the server, as they arrive.
        max_requests: most requests in the server.
        workers: requests decoded and scored at once, in threads of their own; others wait.
    """

    def __init__(self, max_bytes: int, max_requests: int, workers: int) -> None:
        self.max_bytes, self.max_requests = max_bytes, max_requests
        self._lock = threading.Lock()
        self._bytes = self._requests = 0
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="worker")

    @contextmanager
    def admit(self) -> Iterator["AdmittedRequest"]:
        """Admits a request for the length of a ``with`` block.

        Raises:
            InvalidRequestError: there are too many.
        """
        request = AdmittedRequest(self)
        self._add(requests=1)
        try:
            yield request
        finally:
            self._add(requests=-1, count=-request.bytes)

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Has a worker do the work of an admitted request."""
        return self._workers.submit(work)

    def close(self) -> None:
        """Gives up the work that no worker has begun."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _add(self, *, requests: int = 0, count: int = 0) -> None:
        with self._lock:
            if requests > 0 and self._requests + requests > self.max_requests:
                raise _refusal(f"{self.max_requests} requests")
            if count > 0 and self._bytes + count > self.max_bytes:
                raise _refusal(f"requests of {self.max_bytes} bytes")
            self._requests += requests
            self._bytes += count


class AdmittedRequest:
    """Request in the server, and the number of its bytes that have arrived.

    Args:
        admission: limits that it counts towards.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission, self.bytes = admission, 0

    def add(self, count: int) -> None:
        """Counts bytes that have arrived.

        Raises:
            InvalidRequestError: there are too many in the server.
        """
        self._admission._add(count=count)
        self.bytes += count


def _refusal(limit: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the server is working on {limit}, its limit; send the request again in {RETRY_AFTER} s",
        429,
    )
