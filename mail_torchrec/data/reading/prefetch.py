"""Prefetching of items in a thread while their predecessors are in use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


class Prefetcher(Iterator[Made], Generic[Item, Made]):
    """Iterates over ``make(item)`` of each item, in order, and makes one of them in advance.

    A thread makes the next one while its predecessor is in use, and none beyond. It begins with the
    first item at once. An exception of ``make`` is raised where its item would have come.

    Args:
        make: called in the thread.
        items: what to call it with.
    """

    def __init__(self, make: Callable[[Item], Made], items: Iterable[Item]) -> None:
        self._make, self._items = make, iter(items)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._pending: deque[Future[Made]] = deque()
        self._submit_next()

    def __next__(self) -> Made:
        if not self._pending:
            self.close()
            raise StopIteration
        self._submit_next()
        return self._pending.popleft().result()

    def close(self) -> None:
        """Drops items that were not iterated over, once the thread has made the current one."""
        self._thread.shutdown(cancel_futures=True)

    def _submit_next(self) -> None:
        for item in self._items:
            self._pending.append(self._thread.submit(self._make, item))
            return
