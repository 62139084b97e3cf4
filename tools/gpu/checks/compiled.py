"""Rows a second of the compiled variants, and how long they compile.

A stage of its own: where compiling takes longer than there is time, nothing else is lost.
"""

import time

from tools.benchmark.workload import Variant
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
_COMPILED = {
    f"compiled {_PLAIN}": ("train.compile=true",),
    f"CUDA graphs {_PLAIN}": (
        "train.compile=true",
        "train.compile_mode=reduce-overhead",
        "data.shape_buckets=8",
    ),
}


def check(run: StageRun) -> None:
    """Measures the grouped variant in bfloat16: compiled once, then as CUDA graphs of buckets."""
    if run.device == "cpu":
        run.record("compiled", None, text="left out on a CPU, which compiles for minutes")
        return
    plain = variants(reader_processes(run))[_PLAIN]
    for name, overrides in _COMPILED.items():
        _measure(run, name, plain.with_overrides(*overrides))


def _measure(run: StageRun, name: str, variant: Variant) -> None:
    """Measures a variant, and how long it takes until its first steps are done."""
    with start_trainer(run, large_workload(run), variant) as trainer:
        measured, start = MeasuredVariant(trainer), time.monotonic()
        if take_turn(run, name, measured, is_warm_up=True):
            seconds = time.monotonic() - start
            told = f"{name} started in {seconds:.0f} s"
            run.record(f"seconds to start and compile: {name}", seconds, text=told)
            take_turn(run, name, measured)
