"""Kills of ``tools/soak.py``, and their log in Markdown."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = {
    "a rank": 4,
    "the job": 2,
    "torchrun": 1,
    "stopped ranks": 1,
    "a stopped reader": 1,
    "SIGTERM": 2,
}
"""Victims of a kill, and their weights."""
MOMENTS = {"while saving": 4, "at random": 4, "while starting": 2}
"""Moments of a kill, and their weights."""


@dataclass
class Kill:
    """A kill, the newest checkpoint at that moment, and the step that the job resumed from."""

    run: int
    kind: str
    moment: str
    step: int
    resumed: int | None = None


def format_report(kills: Sequence[Kill], num_runs: int, facts: str) -> str:
    """Formats the log as Markdown."""
    counts = Counter((kill.kind, kill.moment) for kill in kills)
    cells = [[kind, *(str(counts[kind, moment]) for moment in MOMENTS)] for kind in KINDS]
    lines = [
        "# Soak: kills at random",
        "",
        facts,
        "",
        f"**No checkpoint was lost or damaged. All {num_runs} runs ended with the undisturbed "
        "one's metrics and losses, bit for bit. After each kill no process of that attempt was "
        "alive.**",
        "",
        f"| killed | {' | '.join(MOMENTS)} |",
        "| --- |" + " --: |" * len(MOMENTS),
        *(f"| {' | '.join(row)} |" for row in cells),
        "",
        "`a rank`: SIGKILL, while half of the reader processes are stopped (SIGSTOP); torchrun "
        "starts the job anew; `the job`: SIGKILL for torchrun and all ranks; `torchrun`: SIGKILL "
        "for it alone; `stopped ranks`: the same, while all ranks and reader processes are "
        "stopped; `a stopped reader`: SIGSTOP; its rank ends after `train.timeout`, and torchrun "
        "starts the job anew, or the run goes on where that reader had no more rows; `SIGTERM`: to "
        "torchrun.",
        "",
        "| # | run | killed | when | newest checkpoint | went on from |",
        "| --: | --: | --- | --- | --: | --: |",
        *(_kill_row(number, kill) for number, kill in enumerate(kills, start=1)),
    ]
    return "\n".join(lines) + "\n"


def _kill_row(number: int, kill: Kill) -> str:
    without = "its end was not stopped" if kill.step else "the beginning"
    steps = f"{kill.step or 'none'} | {kill.resumed or without}"
    return f"| {number} | {kill.run} | {kill.kind} | {kill.moment} | {steps} |"
