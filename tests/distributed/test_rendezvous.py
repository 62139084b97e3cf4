"""Ranks meet those of their own attempt."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from mail_torchrec.distributed.rendezvous import attempt_store

SOON, LATER = timedelta(seconds=0.3), timedelta(seconds=20)


def attempt(store: dist.Store, ranks: list[int], timeout: timedelta) -> list[object]:
    with ThreadPoolExecutor(len(ranks)) as threads:
        coming = [threads.submit(attempt_store, store, rank, 3, timeout) for rank in ranks]
        return [future.exception() or future.result() for future in coming]


@pytest.mark.parametrize("came_before", [[0], [1], [2, 1], [0, 2], [0, 1, 2]])
def test_nobody_meets_the_ranks_of_an_attempt_that_was_killed(came_before: list[int]) -> None:
    store = dist.HashStore()
    before = attempt(store, came_before, LATER if len(came_before) == 3 else SOON)
    for part in before:
        if isinstance(part, dist.Store):
            part.set("address", "of the dead")
    now = attempt(store, [2, 1, 0], LATER)
    assert not now[1].check(["address"])  # type: ignore[attr-defined]
    now[0].set("address", "of the living")  # type: ignore[attr-defined]
    addresses = [part.get("address") for part in now]  # type: ignore[attr-defined]
    assert addresses == [b"of the living"] * 3


def test_who_does_not_come_is_named() -> None:
    [error] = attempt(dist.HashStore(), [0], SOON)
    assert "ranks [1, 2] did not come" in str(error)
