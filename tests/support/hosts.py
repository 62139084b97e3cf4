"""Hosts made of namespaces (launch/hosts.sh, launch/slurm/local_cluster.sh), driven from a test."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SLURM = ["slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd", "mariadb-install-db"]

SMALL = ["model.zero_shot=null", "train.batch_size=64", "train.log_every=1"]
"""Overrides of launch/configs/synthetic.yaml: a step is quick, and recorded."""


def _lacks(programs: list[str]) -> str:
    """Returns the reason that hosts cannot be made here; empty where they can."""
    if os.geteuid() != 0:
        return "namespaces want root"
    missing = [
        program
        for program in ["unshare", "nsenter", "ip", *programs]
        if shutil.which(program) is None
    ]
    return f"not installed: {', '.join(missing)}" if missing else ""


needs_hosts = pytest.mark.skipif(bool(_lacks([])), reason=_lacks([]))
needs_slurm = pytest.mark.skipif(
    bool(_lacks(_SLURM)), reason=f"{_lacks(_SLURM)}; launch/slurm/install_debian.sh installs Slurm"
)


def environment() -> dict[str, str]:
    """Returns this environment, with this checkout and the programs beside this Python first."""
    first = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(ROOT)}
    return (
        os.environ
        | {name: f"{path}:{os.environ.get(name, '')}" for name, path in first.items()}
        | {"OMP_NUM_THREADS": "1"}
    )


@dataclass
class Hosts:
    """A head and the hosts n1 and n2, for as long as a process lives.

    Args:
        init: the first process of the head, as seen from here.
        folder: where commands run.
    """

    init: int
    folder: Path

    def start(
        self, host: str, *command: str, log: Path, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Starts a command on a host, with further environment variables; logs its output."""
        words = [*self._enter(host), *command]
        with log.open("ab") as file:
            return subprocess.Popen(
                words, cwd=self.folder, env=environment() | variables, stdout=file, stderr=file
            )

    def run(self, host: str, *command: str, timeout: float = 120) -> str:
        """Runs a command on a host and returns its standard output; fails with all output."""
        words = [*self._enter(host), *command]
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, (
            f"{command} on {host}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    def _enter(self, host: str) -> list[str]:
        head = [
            "nsenter",
            f"--target={self.init}",
            "--pid",
            "--mount",
            "--net",
            "--uts",
            "--ipc",
            f"--wd={self.folder}",
            "--",
        ]
        return (
            head
            if host == "head"
            else [*head, "nsenter", f"--net=/run/netns/{host}", f"--uts=/run/uts/{host}", "--"]
        )


@contextmanager
def hosts(script: str, folder: Path) -> Iterator[Hosts]:
    """Makes hosts by a script of launch/.

    They end with this process even where it is killed: their command reads its pipe.
    """
    command = [str(ROOT / "launch" / script), "sh", "-c", "echo ready; exec cat"]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        try:
            assert process.stdout.readline() == "ready\n", f"{script} did not start"
            [init] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield Hosts(int(init), folder)
        finally:
            process.kill()


def wait_for(
    condition: Callable[[], object],
    what: str,
    *,
    seconds: float = 300,
    also: Callable[[], str] = str,
) -> None:
    """Waits until a condition holds; fails with ``what`` and the text of ``also`` otherwise."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{also()}"
        time.sleep(0.2)


def ranks_of_plan(run: Path) -> set[int]:
    """Returns the ranks that hold a part of a table of the run."""
    tables = json.loads((run / "plan.json").read_text())["tables"].values()
    return {shard[0] for table in tables for shard in table["shards"]}
