"""Each rank finds a device of its own, whatever its launcher tells it; errors are the same for all.

GPUs are made up: ``torch.cuda`` says of each rank what its task would see.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mail_torchrec.distributed import device, process_group
from mail_torchrec.distributed.device import _Place, device_among_ranks, own_device

SOON = timedelta(seconds=10)


def place(host: str, *gpus: str, number: int | None = None, fault: str = "") -> _Place:
    kind = "cuda" if gpus else "cpu"
    return _Place(host=f"{host} boot", local_rank=number, kind=kind, gpus=list(gpus), fault=fault)


ALL = ("g0", "g1")
RANKS: dict[str, tuple[list[_Place], list[int]]] = {
    "torchrun": ([place("a", *ALL, number=0), place("a", *ALL, number=1)], [0, 1]),
    "srun without LOCAL_RANK": ([place("a", *ALL), place("b", *ALL), place("a", *ALL)], [0, 0, 1]),
    "Slurm's one GPU a task": ([place("a", f"g{n}", number=n) for n in range(4)], [0, 0, 0, 0]),
    "the same without LOCAL_RANK": ([place("a", "g0"), place("a", "g1")], [0, 0]),
    "no GPUs": ([place("a"), place("b"), place("a", number=1)], [0, 0, 0]),
}
FAULTS: dict[str, tuple[list[_Place], str]] = {
    "one GPU for two": ([place("a", "g0"), place("a", "g0")], "ranks 0 and 1 of host a .* GPU g0"),
    "too few": ([place("a", *ALL) for _ in range(3)], "host a runs 3 ranks, and rank 2 sees 2"),
    "another kind": ([place("a", "g0"), place("b")], "rank 0 on host a .* cuda, and rank 1 on"),
    "none": ([place("a", "g0"), place("b", fault="no CUDA")], "rank 1 on host b: no CUDA"),
}  # fmt: skip


@pytest.fixture
def local_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsets what launchers tell, and puts it back after the test."""
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
        del os.environ[name]


def meet(places: list[_Place], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The devices of all ranks, or their errors; in threads, each of which tells its place."""
    monkeypatch.setattr(device, "_own_place", lambda name: places[int(name)])
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    store, world_size = dist.HashStore(), len(places)
    with ThreadPoolExecutor(world_size) as threads:
        coming = [
            threads.submit(device_among_ranks, str(rank), store, rank, world_size, SOON)
            for rank in range(world_size)
        ]
        return [future.exception() or future.result() for future in coming]


@pytest.mark.parametrize("kind", RANKS)
def test_each_rank_has_a_device_of_its_own(
    kind: str, monkeypatch: pytest.MonkeyPatch, local_variables: None
) -> None:
    places, numbers = RANKS[kind]
    devices = meet(places, monkeypatch)
    assert [found.index or 0 for found in devices] == numbers
    assert {found.type for found in devices} == {places[0].kind}


@pytest.mark.parametrize("kind", FAULTS)
def test_every_rank_raises_the_same_error(
    kind: str, monkeypatch: pytest.MonkeyPatch, local_variables: None
) -> None:
    places, message = FAULTS[kind]
    for error in meet(places, monkeypatch):
        with pytest.raises(ValueError, match=message):
            raise error


def test_what_the_launcher_did_not_tell_is_set(
    monkeypatch: pytest.MonkeyPatch, local_variables: None
) -> None:
    store = dist.HashStore()
    for rank, host in ((0, "a"), (2, "b")):
        store.set(f"place/{rank}", place(host).model_dump_json())
    monkeypatch.setattr(device, "_own_place", lambda _: place("b"))
    assert device_among_ranks("cpu", store, 1, 3, SOON) == torch.device("cpu")
    assert (os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]) == ("0", "2")


def test_a_rank_tells_its_host_and_gpus(
    monkeypatch: pytest.MonkeyPatch, local_variables: None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu: Callable[[int], Any] = lambda number: SimpleNamespace(uuid=f"g{number}")  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpu)
    found = device._own_place("auto")
    assert (found.kind, found.gpus, found.local_rank) == ("cuda", ["g0", "g1"], None)
    assert found.host_name == os.uname().nodename


def test_a_gpu_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, local_variables: None
) -> None:
    def refuse(_: torch.device) -> None:
        raise RuntimeError("CUDA error: device is busy\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    with pytest.raises(ValueError, match=r"cuda:0 of host .* \(CUDA error: device is busy\); does"):
        own_device("cuda")


def test_an_error_is_not_hidden_by_that_of_the_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered, once more")

    monkeypatch.setattr(dist, "destroy_process_group", fail)
    with (
        pytest.raises(RuntimeError, match=r"^index out of range$"),
        process_group._destroying_group(),
    ):
        raise RuntimeError("index out of range")
    with pytest.raises(RuntimeError, match="once more"), process_group._destroying_group():
        pass
