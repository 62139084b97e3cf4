"""Runs a function on gloo ranks, each a process of its own."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mail_torchrec.utils.logging import quiet_third_parties


def run_ranks(world_size: int, function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """``function(*args)`` on every rank of a process group.

    Args:
        world_size: ranks.
        function: importable by name; its result must be picklable by ``torch.save``.
        folder: empty, for the rendezvous and the results.
        args: handed over.

    Returns:
        The results in the order of the ranks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(
        _rank, (world_size, function, str(folder), args), nprocs=world_size, start_method="spawn"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(
    rank: int, world_size: int, function: Callable[..., Any], folder: str, args: tuple[Any, ...]
) -> None:
    quiet_third_parties()
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": str(world_size)}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    try:
        torch.save(function(*args), f"{folder}/{rank}.pt")
    except Exception:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()
