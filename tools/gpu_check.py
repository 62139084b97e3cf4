r"""Checks this project on a GPU, in one call of at most nine minutes.

    python tools/gpu_check.py --out runs/gpu                        # on a machine with a GPU
    python tools/gpu_check.py --device cpu --small --out runs/gpu   # that it all runs, without one

Each stage is a process of its own under a time limit; what no longer fits is skipped. Results are
written as soon as they are known: ``results.jsonl``, ``verdict.txt`` (ten lines), ``log.txt``, and
the profile's ``trace-rank-0.json.gz``.
"""

import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tools.gpu`

from mail_torchrec.cli.options import OUTPUT_DIR
from tools.gpu.record import Record, StageEnd
from tools.gpu.runner import STAGES, Runner
from tools.gpu.verdict import is_passed, verdict_lines

_SIGTERM_STATUS = 128 + signal.SIGTERM
_NAMES = [stage.name for stage in STAGES]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="Tiny sizes, to check that all runs.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=530.0,
    show_default=True,
    help="For all stages together.",
)
@click.option(
    "--stage",
    "chosen",
    multiple=True,
    type=click.Choice(_NAMES),
    help="Only this stage.  [default: all]",
)
@click.option(
    "--out",
    type=OUTPUT_DIR,
    default=Path("runs/gpu"),
    show_default=True,
    help="Folder of the results; those of an earlier check are replaced.",
)
def main(device: str, small: bool, seconds: float, chosen: tuple[str, ...], out: Path) -> None:
    """Check this project on a GPU, within a time."""
    started = time.monotonic()
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for path in (results := out / "results.jsonl", log := out / "log.txt", out / "verdict.txt"):
        path.unlink(missing_ok=True)
    record = Record(results)
    stages = [stage for stage in STAGES if not chosen or stage.name in chosen]
    names = [stage.name for stage in stages]

    def on_end(end: StageEnd) -> None:
        lines = verdict_lines(record.results(), names)
        (out / "verdict.txt").write_text("\n".join(lines) + "\n")
        click.echo(f"{end.stage}: {end.outcome}, {end.seconds:.0f} s {end.text}", err=True)

    with _exit_on_sigterm(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        arguments = ["--device", device, "--scratch", scratch, "--out", str(out)]
        arguments += ["--record", str(results), *(["--small"] if small else [])]
        # A rehearsal measures nothing, and may share its machine.
        patience = 4.0 if small else 1.0
        Runner(record, log, tuple(arguments), seconds, started, patience).run(stages, on_end)
    found = record.results()
    click.echo("\n".join(verdict_lines(found, names)))
    sys.exit(0 if all(is_passed(found, name) for name in names) else 1)


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM an exit of this process, so that it ends its stage first."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(_SIGTERM_STATUS))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
