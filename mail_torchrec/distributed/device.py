"""Choice of each rank's device, of which the ranks tell one another before they are connected.

Launchers differ: torchrun numbers the ranks of a host (``LOCAL_RANK``), srun does not, and Slurm
may show each task no GPU but its own. So each rank says where it is and which GPUs it sees, and all
of them draw the same conclusions, or raise the same error.
"""

import os
import socket
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel

# Settings of CUDA's allocator, which reads them as CUDA begins; the second is the newer name.
_ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class _Place(BaseModel):
    """Host and GPUs of a rank, as it tells the others."""

    host: str
    """Name of its host, and of its kernel's start: containers may share either."""
    local_rank: int | None
    """Number of the rank on its host; None where its launcher gave none."""
    kind: str = "cpu"
    gpus: list[str] = []
    """Names of the GPUs that it sees, by their numbers."""
    fault: str = ""
    """Reason why it has no device."""

    @property
    def host_name(self) -> str:
        """Name of the host alone."""
        return self.host.partition(" ")[0]


def own_device(name: str) -> torch.device:
    """Chooses the device of a process that trains alone.

    Args:
        name: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: CUDA was requested and is not available.
    """
    if (kind := _device_kind(name)) == "cpu":
        return _use(kind, 0)
    number = int(os.environ.get("LOCAL_RANK", "0"))
    return _use(kind, number if number < torch.cuda.device_count() else 0)


def device_among_ranks(
    name: str, store: Any, rank: int, world_size: int, timeout: timedelta
) -> torch.device:
    """Chooses the device of one of several ranks; every rank calls it.

    It sets ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE`` where the launcher did not.

    Args:
        name: ``auto``, ``cpu`` or ``cuda``.
        store: that the ranks have for themselves.
        rank: this process's rank.
        world_size: number of ranks.
        timeout: time to wait for the other ranks.

    Raises:
        ValueError: on every rank; one has no device, or no own one, or another kind than others.
        dist.DistStoreError: not all ranks came in time.
    """
    store.set(f"place/{rank}", _own_place(name).model_dump_json())
    names = [f"place/{number}" for number in range(world_size)]
    store.wait(names, timeout)
    places = [_Place.model_validate_json(text) for text in store.multi_get(names)]
    store.set(f"placed/{rank}", "")
    try:
        devices = _devices(places, name)
    except ValueError:
        if rank == 0:  # it may host the store, which the others read from
            with suppress(dist.DistError):
                store.wait([f"placed/{number}" for number in range(world_size)], timeout)
        raise
    here = _ranks_of_host(places, rank)
    os.environ.setdefault("LOCAL_RANK", str(here.index(rank)))
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(len(here)))
    return _use(places[rank].kind, devices[rank])


def _device_kind(name: str) -> str:
    """Returns ``cuda`` or ``cpu``; sets CUDA's allocator up before anything asks CUDA more."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "train.device is 'cuda' and torch sees no CUDA device; `mail-torchrec doctor` says "
            "why, train.device=cpu trains without"
        )
    if name == "cuda" and not any(variable in os.environ for variable in _ALLOCATOR_VARIABLES):
        # Numbers of users and behaviours differ from step to step, and so do the sizes of tensors:
        # segments that grow are not cut to pieces by them.
        os.environ[_ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"
    return name


def _own_place(name: str) -> _Place:
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
    number = os.environ.get("LOCAL_RANK")
    place = _Place(
        host=f"{socket.gethostname()} {boot}", local_rank=None if number is None else int(number)
    )
    try:
        place.kind = _device_kind(name)
    except ValueError as error:
        place.fault = str(error)
    if place.kind == "cuda":
        properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        place.gpus = [str(gpu.uuid) for gpu in properties]
    return place


def _ranks_of_host(places: list[_Place], rank: int) -> list[int]:
    return [number for number, place in enumerate(places) if place.host == places[rank].host]


def _devices(places: list[_Place], name: str) -> list[int]:
    """Returns the number of each rank's GPU, 0 on CPU."""
    for rank, place in enumerate(places):
        if place.fault:
            raise ValueError(f"rank {rank} on host {place.host_name}: {place.fault}")
        if place.kind != places[0].kind:
            raise ValueError(
                f"train.device={name}: rank 0 on host {places[0].host_name} would train on "
                f"{places[0].kind}, and rank {rank} on host {place.host_name} on {place.kind}; set "
                "train.device=cpu, or start no ranks on hosts without GPUs"
            )
    numbers = [_gpu_number(places, rank) if place.gpus else 0 for rank, place in enumerate(places)]
    users: dict[tuple[str, str], int] = {}
    for rank, (place, number) in enumerate(zip(places, numbers, strict=True)):
        if not place.gpus:
            continue
        gpu = place.gpus[number]
        if (other := users.setdefault((place.host, gpu), rank)) != rank:
            raise ValueError(
                f"ranks {other} and {rank} of host {place.host_name} would share its GPU {gpu}; "
                "start a rank a device, each with one of its own (torchrun --nproc-per-node, srun "
                "--gpus-per-task=1), or set train.device=cpu"
            )
    return numbers


def _gpu_number(places: list[_Place], rank: int) -> int:
    """Returns the number of a rank's GPU among those that it sees."""
    place, here = places[rank], _ranks_of_host(places, rank)
    local_rank = here.index(rank) if place.local_rank is None else place.local_rank
    if len(place.gpus) == 1:  # that of all, or one that Slurm shows to this task alone
        return 0
    if local_rank >= len(place.gpus):
        raise ValueError(
            f"host {place.host_name} runs {len(here)} ranks, and rank {rank} sees "
            f"{len(place.gpus)} CUDA devices; start a rank a device, or set train.device=cpu"
        )
    return local_rank


def _use(kind: str, number: int) -> torch.device:
    """Makes a device the one of this thread."""
    if kind == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", number)
    try:
        torch.cuda.set_device(device)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{device} of host {socket.gethostname()} cannot be used ({reason}); does another "
            "process have it for itself? `mail-torchrec doctor` tells more"
        ) from error
    return device
