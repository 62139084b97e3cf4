"""Rows a second of the compiled variant, and how long it compiles.

A stage of its own: where compiling takes longer than there is time, nothing else is lost.
"""

import time

from tools.gpu.checks.speed import (
    MeasuredVariant,
    reader_processes,
    start_trainer,
    take_turn,
    variants,
)
from tools.gpu.rows import large_workload
from tools.gpu.stage import StageRun

_PLAIN = "grouped bf16"


def check(run: StageRun) -> None:
    """Measures the grouped variant in bfloat16, compiled."""
    if run.device == "cpu":
        run.record("compiled", None, text="left out on a CPU, which compiles for minutes")
        return
    variant = variants(reader_processes(run))[_PLAIN].with_overrides("train.compile=true")
    with start_trainer(run, large_workload(run), variant) as trainer:
        measured, start = MeasuredVariant(trainer), time.monotonic()
        name = f"compiled {_PLAIN}"
        if take_turn(run, name, measured, is_warm_up=True):
            seconds = time.monotonic() - start
            run.record("seconds to start and compile", seconds, text=f"compiled in {seconds:.0f} s")
            take_turn(run, name, measured)
