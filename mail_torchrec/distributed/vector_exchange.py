"""Wait for looked-up vectors that travel between ranks."""

from typing import Any

from torchrec.distributed.types import LazyAwaitable


def wait_for_vectors(looked_up: Any) -> Any:
    """Returns the vectors of a collection; sharded tables return a promise of them.

    TorchRec would wait as soon as they are used, which follows at once; waiting here tells the time
    of the exchange from that of the lookup.
    """
    return LazyAwaitable._wait_async(looked_up)  # which keeps the result for later calls
