"""Work done ahead of need."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


class Prefetcher(Iterator[Made], Generic[Item, Made]):
    """``make`` of each item, in order; a thread makes the next one while its predecessor is in use, and none beyond.

    It begins with the first one at once. What ``make`` raises is raised where its item would have
    come.
    """

    def __init__(self, make: Callable[[Item], Made], items: Iterable[Item]) -> None:
        self._make, self._items = make, iter(items)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="one-ahead")
        self._coming: deque[Future[Made]] = deque()
        self._begin_next()

    def __next__(self) -> Made:
        if not self._coming:
            self.close()
            raise StopIteration
        self._begin_next()
        return self._coming.popleft().result()

    def close(self) -> None:
        """Gives up what nobody will ask for, once the thread is done with what it makes."""
        self._thread.shutdown(cancel_futures=True)

    def _begin_next(self) -> None:
        for item in self._items:
            self._coming.append(self._thread.submit(self._make, item))
            return
