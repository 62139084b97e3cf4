"""The process group and the device of this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

# A collective that waits longer than this has lost a rank.
_TIMEOUT = timedelta(minutes=10)


@contextmanager
def process_group(device_name: str) -> Iterator[torch.device]:
    """Joins the process group that torchrun's environment describes, or makes one of this process alone.

    Args:
        device_name: auto, cpu or cuda.

    Yields:
        This process's device.

    Raises:
        ValueError: CUDA was asked for and is not there.
    """
    device = _device(device_name)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=_TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def local_world_size() -> int:
    """Ranks on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            "train.device is 'cuda' and torch sees no CUDA device; `mail-torchrec doctor` says why, train.device=cpu trains without"
        )
    local_rank, num_devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= num_devices:
        raise ValueError(
            f"this host runs {local_world_size()} ranks and has {num_devices} CUDA devices; start a rank a device, or train.device=cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
