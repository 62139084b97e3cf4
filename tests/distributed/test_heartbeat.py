"""Rank 0 may work for hours while the others wait for it; standing still ends them by name."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from mail_torchrec.distributed import heartbeat
from mail_torchrec.distributed.collectives import broadcast_from_rank_0, results_of_ranks
from mail_torchrec.distributed.heartbeat import Heartbeat
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.distributed.watchdog import LostRankError
from mail_torchrec.utils.spans import span
from tests.support.preloaded import PreloadedProcess
from tests.support.processes import free_port

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
TIMEOUT = 1.5
_SECONDS = 60


def fit(kind: str, heard: Path) -> str:
    """What rank 0 does while the others wait."""
    with span("fitting"):
        if kind == "stopped":
            while not heard.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == "hung":
            time.sleep(_SECONDS)
        else:
            end = time.monotonic() + 4 * TIMEOUT
            while time.monotonic() < end:
                sum(range(10_000))
    return "fitted"


def read(rank: int, heard: Path) -> None:
    """What all ranks do at once; rank 0 is done at once."""
    with span("reading"):
        while rank and not heard.exists():
            time.sleep(0.01)
        if rank:
            os.kill(os.getpid(), signal.SIGSTOP)


def wait_for_rank_0(rank: int, port: int, kind: str, folder: str) -> None:
    """One of two ranks without a launcher: rank 0 hosts the store, which stops with it."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    heartbeat._MARGIN, heard = 0.5, Path(folder, "heard")
    original = Heartbeat.exchange

    def exchange(self: Heartbeat, store: Any) -> None:
        original(self, store)
        of_rank_1 = self._heard.get(1, b"")
        if (
            b"fitting" in self._heard.get(0, b"")
            or (kind == "rank 1 late" and of_rank_1)
            or b"rank 1, reading" in of_rank_1
        ):
            heard.touch()

    Heartbeat.exchange = exchange  # type: ignore[method-assign]
    log = os.open(f"{folder}/{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 2)
    try:
        with process_group("cpu", timeout=TIMEOUT):
            if kind == "stopped outside":
                dist.barrier()
                if rank == 0:
                    os.kill(os.getpid(), signal.SIGSTOP)
                dist.barrier()
            if kind == "rank 1 late" and rank == 1:
                while not heard.exists():
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGSTOP)
            if kind == "rank 1 stops reading":
                results_of_ranks(lambda: read(rank, heard))
            os.write(2, broadcast_from_rank_0(lambda: fit(kind, heard)).encode())
    except LostRankError as error:
        os.write(2, str(error).encode())


def said(tmp_path: Path, kind: str, rank: int = 1) -> str:
    """What a rank says in the end."""
    words = (free_port(), kind, str(tmp_path))
    ranks = [PreloadedProcess(wait_for_rank_0, (number, *words)) for number in range(2)]
    try:
        for process in ranks:
            process.start()
        ranks[rank].join(_SECONDS)
        assert ranks[rank].exitcode is not None
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return (tmp_path / str(rank)).read_text()


def test_work_that_takes_longer_than_the_timeout_is_waited_for(tmp_path: Path) -> None:
    assert said(tmp_path, "works") == "fitted"


@pytest.mark.parametrize("kind", ["stopped", "hung"])
def test_the_others_end_with_what_rank_0_did_last(tmp_path: Path, kind: str) -> None:
    assert re.search(
        r"Error: .*rank 0 has not worked for 1.5 s \(train.timeout\), and was last in "
        r"'as rank 0, fitting' at .*\.py:\d+: it is stopped \(SIGSTOP\), hangs, or",
        said(tmp_path, kind),
    )


def test_rank_0_does_not_wait_for_ever_for_one_that_never_comes_either(tmp_path: Path) -> None:
    assert "Error: rank 0 failed" in (text := said(tmp_path, "rank 1 late", rank=0)), text
    assert "rank 1 has not worked for 1.5 s (train.timeout), and was last in 'no span' at" in text


def test_a_store_that_is_stopped_with_rank_0_holds_nobody(tmp_path: Path) -> None:
    assert "rank 0 or its launcher is gone" in said(tmp_path, "stopped outside")


def test_rank_0_does_not_wait_for_ever_for_one_that_stops_within_work_of_all(
    tmp_path: Path,
) -> None:
    assert re.search(
        r"rank 1 has not worked for 1.5 s \(train.timeout\), and was last in 'as rank 1, reading'",
        said(tmp_path, "rank 1 stops reading", rank=0),
    )
