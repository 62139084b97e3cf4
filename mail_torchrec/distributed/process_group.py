"""Set-up and tear-down of the process group, and the choice of this process's device."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Timer

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.rendezvous import rendezvous

from mail_torchrec.distributed.device import device_among_ranks, own_device
from mail_torchrec.distributed.idle_watchdog import IdleWatchdog
from mail_torchrec.distributed.launcher import report_error_to_launcher
from mail_torchrec.distributed.parent import kill_with_launcher
from mail_torchrec.distributed.rendezvous import attempt_store
from mail_torchrec.distributed.watchdog import LostRankError, Watchdog
from mail_torchrec.utils.logging import get_logger, write_unlocked
from mail_torchrec.utils.spans import reset_spans

logger = get_logger(__name__)

_TIMEOUT = 600.0
# Seconds for the error of a failed rendezvous to be raised before the process is ended.
_GRACE = 30.0


@contextmanager
def process_group(device_name: str, timeout: float = _TIMEOUT) -> Iterator[torch.device]:
    """Joins the process group of torchrun's environment, or makes one of this process only.

    Args:
        device_name: ``auto``, ``cpu`` or ``cuda``.
        timeout: seconds that a collective waits for the other ranks.

    Yields:
        This process's device.

    Raises:
        ValueError: on every rank; CUDA was requested and is not available, or the ranks cannot
            have a device each, or see devices of different kinds.
        LostRankError: within seconds of another rank's end, or after the timeout; it names the rank
            and its span.
    """
    kill_with_launcher()
    reset_spans()
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        device = own_device(device_name)
        dist.init_process_group(_backend(device), store=dist.HashStore(), rank=0, world_size=1)
        idle_watchdog = IdleWatchdog(timeout, _end_process)
        idle_watchdog.start()
        with _destroying_group():
            try:
                yield device
            finally:
                idle_watchdog.stop()
        return
    device = _join_process_group(device_name, timeout)
    watchdog = Watchdog(
        _get_default_store(),
        dist.get_rank(),
        dist.get_world_size(),
        timeout,
        enforce_timeout=device.type == "cuda",
    )
    idle_watchdog = IdleWatchdog(timeout, watchdog.end_rank)
    watchdog.start()
    idle_watchdog.start()
    try:
        with _destroying_group():
            try:
                yield device
            except Exception as error:
                explained = watchdog.explain(error)
                if explained is error:
                    raise
                raise explained from None  # the transport's own error names a port at best
            finally:
                idle_watchdog.stop()
    finally:
        watchdog.stop()


@contextmanager
def _destroying_group() -> Iterator[None]:
    """Destroys the process group behind the block, whose error is the one that is raised."""
    try:
        yield
    except BaseException:
        try:
            dist.destroy_process_group()
        except Exception as error:  # after an error of CUDA each further call raises another
            logger.warning("the process group could not be left after an error: %s", error)
        raise
    dist.destroy_process_group()


def _join_process_group(device_name: str, timeout: float) -> torch.device:
    # NCCL's own watchdog aborts without telling the span, so it gets a longer timeout than ours.
    on_cuda = device_name != "cpu" and torch.cuda.is_available()
    store_timeout = timedelta(seconds=timeout + (60 if on_cuda else 0))
    address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    waited = (
        f"rank {os.environ['RANK']} waited {timeout:g} s (train.timeout) at {address} for "
        f"{os.environ['WORLD_SIZE']} ranks to join"
    )
    # Should the store die meanwhile, with its launcher, torch waits for it without end, whatever
    # the timeout (torch 2.13).
    guard = Timer(
        store_timeout.total_seconds() + _GRACE,
        _end_process,
        [f"{waited}: it has lost the store, with its launcher perhaps"],
    )
    guard.daemon = True
    guard.start()
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=store_timeout))
        store = attempt_store(store, rank, world_size, store_timeout)
        device = device_among_ranks(device_name, store, rank, world_size, store_timeout)
        dist.init_process_group(
            _backend(device), store=store, rank=rank, world_size=world_size, timeout=store_timeout
        )
    except RuntimeError as error:
        raise LostRankError(f"{waited}: {error}") from error
    finally:
        guard.cancel()
    return device


def _end_process(message: str) -> None:
    """Ends a process whose main thread is blocked for ever."""
    write_unlocked(f"Error: {message}")
    report_error_to_launcher(TimeoutError(message))
    os._exit(1)


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


def local_world_size() -> int:
    """Returns the number of ranks on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
