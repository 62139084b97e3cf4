"""One stage of a GPU check, as a process: ``python -m tools.gpu.stage NAME SECONDS ...``."""

import importlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mail_torchrec.cli.options import LOCAL_PATH
from tools.gpu.record import Fact, Record


@dataclass(frozen=True)
class StageRun:
    """What a stage is told, and where its results go."""

    stage: str
    device: str
    """``cuda`` or ``cpu``."""
    small: bool
    """Whether sizes are tiny, to check that everything runs; results mean nothing."""
    scratch: Path
    """Folder that the stages of one check share, deleted at its end."""
    out: Path
    """Folder of what is kept."""
    results: Record
    deadline: float
    """End of the stage, on the clock of ``time.monotonic``."""

    @property
    def seconds_left(self) -> float:
        """Seconds until the stage is ended."""
        return self.deadline - time.monotonic()

    def record(self, name: str, value: Any, *, ok: bool | None = None, text: str = "") -> None:
        """Records and prints a fact; see :class:`Fact`."""
        print(f"{name}: {value} {text}")
        self.results.add(Fact(self.stage, name, value, ok, text))


@click.command()
@click.argument("name")
@click.argument("seconds", type=float)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), required=True)
@click.option("--small", is_flag=True)
@click.option("--scratch", type=LOCAL_PATH, required=True)
@click.option("--out", type=LOCAL_PATH, required=True)
@click.option("--record", type=LOCAL_PATH, required=True)
def main(
    name: str, seconds: float, device: str, small: bool, scratch: Path, out: Path, record: Path
) -> None:
    """Run one stage."""
    deadline = time.monotonic() + seconds
    run = StageRun(name, device, small, scratch, out, Record(record), deadline)
    importlib.import_module(f"tools.gpu.checks.{name}").check(run)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
