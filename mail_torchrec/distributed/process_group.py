"""The process group and the device of this process."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Timer

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.rendezvous import rendezvous

from mail_torchrec.distributed.rendezvous import meet
from mail_torchrec.distributed.watchdog import LostRankError, Watch
from mail_torchrec.utils.spans import reset_spans

_TIMEOUT = 600.0
# Seconds for an error of joining to be raised before the process is ended.
_GRACE = 30.0


@contextmanager
def process_group(device_name: str, timeout: float = _TIMEOUT) -> Iterator[torch.device]:
    """Joins the process group that torchrun's environment describes, or makes one of this process alone.

    Args:
        device_name: auto, cpu or cuda.
        timeout: seconds that a collective waits for the other ranks.

    Yields:
        This process's device.

    Raises:
        ValueError: CUDA was asked for and is not there.
        LostRankError: within seconds of another rank's end, or after the timeout; it names rank and
            phase.
    """
    device = _device(device_name)
    reset_spans()
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        dist.init_process_group(_backend(device), store=dist.HashStore(), rank=0, world_size=1)
        try:
            yield device
        finally:
            dist.destroy_process_group()
        return
    _join(device, timeout)
    watch = Watch(
        _get_default_store(),
        dist.get_rank(),
        dist.get_world_size(),
        timeout,
        judges=device.type == "cuda",
    )
    watch.start()
    try:
        yield device
    except Exception as error:
        explained = watch.explain(error)
        if explained is error:
            raise
        raise explained from None  # the transport's own error names a port at best
    finally:
        dist.destroy_process_group()
        watch.stop()


def _join(device: torch.device, timeout: float) -> None:
    # NCCL's own watchdog, which aborts without a word on the phase, comes after ours.
    waits = timedelta(seconds=timeout + (60 if device.type == "cuda" else 0))
    where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    waited = f"rank {os.environ['RANK']} waited {timeout:g} s (train.timeout) at {where} for {os.environ['WORLD_SIZE']} ranks to join"
    # A store that dies meanwhile, with its launcher, is waited for without end, whatever the
    # timeout says (torch 2.13).
    guard = Timer(
        waits.total_seconds() + _GRACE,
        _end,
        [f"{waited}: it has lost the store, with its launcher perhaps"],
    )
    guard.daemon = True
    guard.start()
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=waits))
        store = meet(store, rank, world_size, waits)
        dist.init_process_group(
            _backend(device), store=store, rank=rank, world_size=world_size, timeout=waits
        )
    except RuntimeError as error:
        raise LostRankError(f"{waited}: {error}") from error
    finally:
        guard.cancel()


def _end(message: str) -> None:
    """Ends a process whose main thread does not come back."""
    print(f"Error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


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
            "train.device is 'cuda' and torch sees no CUDA device; `mail-torchrec doctor` says "
            "why, train.device=cpu trains without"
        )
    local_rank, num_devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= num_devices:
        raise ValueError(
            f"this host runs {local_world_size()} ranks and has {num_devices} CUDA devices; start "
            "a rank a device, or train.device=cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
