"""Rendezvous of the ranks of one launch attempt, separated from ranks of killed attempts.

torchrun keeps one store over all restarts of a job (torch 2.11 to 2.13), so that a rank may read
the address of a dead rank there, and wait for it. No environment variable tells the attempts apart:
each host counts its own restarts. So the ranks agree on a random name for the attempt, and use it
as the prefix of all further keys.
"""

import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch.distributed as dist

_POLL_SECONDS = 0.02


def attempt_store(store: Any, rank: int, world_size: int, timeout: timedelta) -> Any:
    """Returns a view of the store that this attempt's ranks have for themselves.

    Every rank calls it. Each rank other than 0 stores a random token and waits for the attempt's
    name under that token; rank 0 answers every token it finds until all ranks have confirmed the
    name. Tokens of dead ranks are answered too, and nobody reads those answers; confirmations of
    dead ranks bear another attempt's name.

    Args:
        store: the launcher's store.
        rank: this process's rank.
        world_size: number of ranks.
        timeout: time to wait for the other ranks.

    Raises:
        dist.DistStoreError: not all ranks came in time.
    """
    if rank == 0:
        attempt = _announce_attempt(store, world_size, timeout)
    else:
        token = uuid4().hex
        store.set(f"token/{rank}", token)
        store.wait([f"attempt_of/{token}"], timeout)
        attempt = store.get(f"attempt_of/{token}").decode()
        store.set(f"joined/{attempt}/{rank}", "")
    return dist.PrefixStore(attempt, store)


def _announce_attempt(store: Any, world_size: int, timeout: timedelta) -> str:
    """Names the attempt on rank 0, and answers tokens until every rank has joined it."""
    attempt, missing = uuid4().hex, set(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing := {rank for rank in missing if not store.check([f"joined/{attempt}/{rank}"])}:
        for rank in missing:
            if store.check([f"token/{rank}"]):
                store.set(f"attempt_of/{store.get(f'token/{rank}').decode()}", attempt)
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"ranks {sorted(missing)} did not come")
        time.sleep(_POLL_SECONDS)
    return attempt
