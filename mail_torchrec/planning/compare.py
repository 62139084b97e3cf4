"""``mail-torchrec plan --compare``: what a finished run took, beside what its plan would have been estimated to take."""

import json
from statistics import median
from typing import Any

from mail_torchrec.config import load_config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.embeddings.hardware import hardware
from mail_torchrec.embeddings.plan_file import made_for, read_plan
from mail_torchrec.embeddings.sharding_options import num_bytes
from mail_torchrec.planning.estimate import TABLE_PARTS, Answer, answer_of_plan
from mail_torchrec.planning.scenarios import Case
from mail_torchrec.train.run_dir import RunDir


def compare(run_dir: RunDir, hardware_name: str | None, figures: tuple[str, ...]) -> str:
    """Estimate and measurement side by side, as a Markdown table.

    Args:
        run_dir: a finished run over sharded tables.
        hardware_name: the preset it ran on; None stands for ``cpu`` where it ran there.
        figures: overrides of the hardware's.

    Raises:
        ValueError: no such run, one without a plan or without measurements, or hardware of another
            kind.
    """
    run_dir.check()
    tree = read_plan(run_dir.plan)
    job = made_for(tree)
    if hardware_name is None and job.device == "cuda":
        raise ValueError(f"{run_dir.path} ran on CUDA: say on which, --hardware h100 for example")
    machine = hardware(hardware_name or "cpu", (f"ranks_a_host={job.ranks_a_host}", *figures))
    if machine.device != job.device:
        raise ValueError(
            f"{run_dir.path} ran on {job.device}, and --hardware {hardware_name} is "
            f"{machine.device}"
        )
    config = load_config(run_dir.config, [])
    num_rows = Encoders.load(run_dir.vocabularies, config.schema_).num_rows
    estimate = answer_of_plan(Case(config, num_rows, machine, job.world_size, ()), tree)
    return "\n".join(_table(estimate, *_measured(run_dir)))


def _measured(run_dir: RunDir) -> tuple[dict[str, Any], float]:
    """The run's usage, and its median of rows a second; its first report is left out where there are more, for it has the warm-up."""
    records = [json.loads(line) for line in run_dir.log.read_text().splitlines()]
    usages = [record["usage"] for record in records if "usage" in record]
    speeds = [record["rows_per_second"] for record in records if "rows_per_second" in record]
    if not usages or not speeds:
        raise ValueError(
            f"{run_dir.log} has no line of 'usage' and speed; was the run trained to its end by "
            "this version?"
        )
    return usages[-1], median(speeds[1:] or speeds)


def _table(estimate: Answer, usage: dict[str, Any], rows_per_second: float) -> list[str]:
    step_ms = 1000 * estimate.case.ranks * estimate.case.config.train.batch_size / rows_per_second
    peak_of = "CUDA's allocator" if usage["device"] == "cuda" else "the whole process"
    rows: list[tuple[str, str, str]] = []
    for part, key in zip(TABLE_PARTS, ("table_weights", "optimizer_state"), strict=False):
        rows.append(
            (
                f"{part}, fullest rank",
                num_bytes(float(estimate.table_memory_R[part].max())),
                num_bytes(max(usage[key])),
            )
        )
    rows += [
        (
            f"peak memory, fullest rank ({peak_of})",
            num_bytes(estimate.peak_memory),
            num_bytes(max(usage["peak"])),
        ),
        ("ms a step", f"{estimate.step.total:.2f}", f"{step_ms:.2f}"),
        ("rows/s", f"{estimate.rows_per_second:,.0f}", f"{rows_per_second:,.0f}"),
    ]
    return [
        "| | estimate | measured |",
        "| --- | ---: | ---: |",
        *(f"| {what} | {mine} | {its} |" for what, mine, its in rows),
    ]
