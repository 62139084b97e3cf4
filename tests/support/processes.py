"""Commands of the package on several ranks, each a real process: alone as under srun, or under torchrun."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Ended:
    """A rank that has ended."""

    code: int
    output: str
    """Standard output and error."""


def without_launcher(world_size: int, *arguments: str, timeout: float = 120) -> list[Ended]:
    """``mail-torchrec`` on ranks that nobody looks after; their ends in the order of the ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size),
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    command = [sys.executable, "-m", "mail_torchrec", *arguments]
    ranks = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank)},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [Ended(rank.returncode, output) for rank, output in zip(ranks, outputs, strict=True)]


def under_torchrun(
    world_size: int, *arguments: str, options: tuple[str, ...] = (), timeout: float = 180
) -> Ended:
    """``mail-torchrec`` under a real torchrun on this host."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(world_size),
        *options,
    ]
    done = subprocess.run(
        [*launcher, "-m", "mail_torchrec", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout)
