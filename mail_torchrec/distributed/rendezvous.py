"""Where the ranks of one attempt meet, apart from those that a launcher killed before.

torchrun keeps one store over all restarts of a job (torch 2.11 to 2.13), so that a rank may read
there the address of one that is dead, and wait for it. No environment variable tells the attempts
apart: each host counts its own restarts. So the ranks agree on a name that no attempt has had,
below which all else is stored.
"""

import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch.distributed as dist

_LOOK_EVERY = 0.02


def meet(store: Any, rank: int, world_size: int, timeout: timedelta) -> Any:
    """A part of the store that this attempt has for itself; every rank calls it.

    Each rank calls out a name that it has just made up, and rank 0 answers each call that it hears
    with the attempt's name, until all ranks have confirmed *that*: an answer to a call of the dead
    is read by nobody, and their confirmations bear other names.

    Raises:
        dist.DistStoreError: not all ranks came in time.
    """
    if rank != 0:
        call = uuid4().hex
        store.set(f"call/{rank}", call)
        store.wait([f"answer/{call}"], timeout)
        attempt = store.get(f"answer/{call}").decode()
        store.set(f"here/{attempt}/{rank}", "")
        return dist.PrefixStore(attempt, store)
    attempt, missing, until = (
        uuid4().hex,
        set(range(1, world_size)),
        time.monotonic() + timeout.total_seconds(),
    )
    while missing := {other for other in missing if not store.check([f"here/{attempt}/{other}"])}:
        for other in missing:
            if store.check([f"call/{other}"]):
                store.set(f"answer/{store.get(f'call/{other}').decode()}", attempt)
        if time.monotonic() > until:
            raise dist.DistStoreError(f"ranks {sorted(missing)} did not come")
        time.sleep(_LOOK_EVERY)
    return dist.PrefixStore(attempt, store)
