"""Rows a second of several variants in turns, and their peak memory.

Every trainer is a process of its own. Batches that its readers hold in readiness are trained before
a turn counts, or readers that are too slow would not show.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field

from tools.benchmark.subprocess_trainer import SubprocessTrainer
from tools.benchmark.throughput import Turn
from tools.benchmark.trainers import workload_encoders
from tools.benchmark.workload import DMR, GROUPED, UNGROUPED, Variant, Workload
from tools.gpu.rows import large_workload
from tools.gpu.stage import StageRun

_READERS, _READERS_SMALL = 8, 1
_REPEATS = 3
_SMALL = ("float32", "grouped bf16")
_WARM_UP, _DRAINED, _STEPS = 4, 32, 64
"""Steps: before all turns; before each turn, as many as eight readers hold; of a turn."""


def variants(readers: int) -> dict[str, Variant]:
    """Returns the variants by name."""
    several = f"data.num_workers={readers}"
    float32, tf32, bfloat16 = (
        f"train.precision={name}" for name in ("float32", "tf32", "bfloat16")
    )
    none = "data.num_workers=0"
    return {
        "float32": UNGROUPED.with_overrides(float32, several),
        "tf32": UNGROUPED.with_overrides(tf32, several),
        "bf16": UNGROUPED.with_overrides(bfloat16, several),
        "bf16, 0 readers": UNGROUPED.with_overrides(bfloat16, none),
        "grouped bf16": GROUPED.with_overrides(bfloat16, several),
        "grouped bf16, 0 readers": GROUPED.with_overrides(bfloat16, none),
        "DMR alone bf16": DMR.with_overrides(bfloat16, several),
    }


def reader_processes(run: StageRun) -> int:
    """Returns the reader processes of the variants that have some."""
    return _READERS_SMALL if run.small else _READERS


@dataclass
class MeasuredVariant:
    """A variant's process and its turns until now."""

    trainer: SubprocessTrainer
    turns: list[Turn] = field(default_factory=list)


def check(run: StageRun) -> None:
    """Records each variant's median after each of its turns, in rows a second."""
    workload, chosen = large_workload(run), variants(reader_processes(run))
    if run.device == "cpu":
        chosen.pop("tf32")
    if run.small:
        chosen = {name: chosen[name] for name in _SMALL}
    run.record("table rows", workload_encoders(workload).num_rows)
    with ExitStack() as processes:
        measured = {
            name: MeasuredVariant(processes.enter_context(start_trainer(run, workload, variant)))
            for name, variant in chosen.items()
        }
        for repeat in range(1 + (1 if run.small else _REPEATS)):
            for name in list(measured):
                if not take_turn(run, name, measured[name], is_warm_up=not repeat):
                    del measured[name]


def start_trainer(run: StageRun, workload: Workload, variant: Variant) -> SubprocessTrainer:
    """Starts the process of a variant."""
    return SubprocessTrainer(workload, variant, run.device, threads=1 if run.small else 4)


def take_turn(
    run: StageRun, name: str, measured: MeasuredVariant, *, is_warm_up: bool = False
) -> bool:
    """Measures a turn and records the variant's median; returns False where it failed."""
    drained, steps = (1, 2) if run.small else (_DRAINED, _STEPS)
    try:
        if is_warm_up:
            measured.trainer.turn(1 if run.small else _WARM_UP)
            return True
        measured.trainer.turn(drained)
        measured.turns.append(measured.trainer.turn(steps))
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        print(error)
        run.record(name, None, ok=False, text=last)
        return False
    _record(run, name, measured.turns, steps)
    return True


def _record(run: StageRun, name: str, turns: list[Turn], steps: int) -> None:
    """Records the median turn; a later record of a name stands for the earlier ones."""
    middle = sorted(turns, key=lambda turn: turn.rows / turn.seconds)[len(turns) // 2]
    rate = middle.rows / middle.seconds
    value = {
        "rows_per_second": rate,
        "all": [turn.rows / turn.seconds for turn in turns],
        "seconds_per_step": middle.seconds / steps,
        "input_share": middle.input_seconds / middle.seconds,
        "peak_bytes": max(turn.peak_bytes for turn in turns),
    }
    run.record(name, value, text=f"{name} {_short(rate)}")


def _short(rate: float) -> str:
    return f"{rate / 1e6:.2f} M rows/s" if rate >= 1e5 else f"{rate:,.0f} rows/s"
