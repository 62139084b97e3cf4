"""Work done ahead of need."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """``make`` of each item, in order; a thread makes the next one while its predecessor is in use, and none beyond.

    What ``make`` raises is raised where its item would have come.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="one-ahead")
    try:
        coming: deque[Future[Made]] = deque()
        for item in items:
            coming.append(thread.submit(make, item))
            if len(coming) == 2:
                yield coming.popleft().result()
        if coming:
            yield coming.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
