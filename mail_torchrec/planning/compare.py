"""``mail-torchrec plan --compare``: memory and speed of a finished run beside their estimate."""

from statistics import median
from typing import Any

from pydantic import Field, ValidationError

from mail_torchrec.config import load_run_config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.embeddings.communication.replicas import sharding_group
from mail_torchrec.embeddings.hardware import Hardware, hardware_preset
from mail_torchrec.embeddings.plan_file import PlanContext, plan_context, read_plan
from mail_torchrec.embeddings.storage import format_bytes
from mail_torchrec.planning.estimate import TABLE_PARTS, PlanEstimate
from mail_torchrec.planning.estimator import estimate_saved_plan
from mail_torchrec.planning.scenarios import Scenario
from mail_torchrec.records.run_log import is_number, read_log
from mail_torchrec.records.run_record import check_recorded
from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.train.run_dir import RunDir


class _Usage(Settings):
    """Memory that the ranks of a run took, see ``train/cost/memory_usage.py``."""

    device: str
    table_weights: list[int] = Field(min_length=1)
    optimizer_state: list[int] = Field(min_length=1)
    peak: list[int] = Field(min_length=1)


def compare_run(
    run_dir: RunDir, hardware_name: str | None, hardware_overrides: tuple[str, ...]
) -> str:
    """Compares estimate and measurement of a run, as a Markdown table.

    Args:
        run_dir: a finished run with sharded tables.
        hardware_name: the preset it ran on; None stands for ``cpu`` if it ran there.
        hardware_overrides: ``key=value`` of the hardware.

    Raises:
        ValueError: no such run, a run without a plan or without measurements, or hardware of
            another kind.
    """
    run_dir.check_trained()
    parts = (run_dir.plan, run_dir.log, run_dir.vocabularies)
    check_recorded(run_dir.path, *(path.name for path in parts))
    tree = read_plan(run_dir.plan)
    config = load_run_config(run_dir.path)
    context = plan_context(tree)
    replicas = config.sharding.replicas or 1
    hardware = _hardware_of(run_dir, context, replicas, hardware_name, hardware_overrides)
    world_size = context.world_size * replicas
    encoders = Encoders.load(run_dir.vocabularies, config.schema_)
    sizes = encoders.num_rows, encoders.vector_dims
    config = config.with_dims(encoders.num_rows)
    scenario = Scenario(config, sizes[0], hardware, world_size, (), sizes[1])
    return "\n".join(_table(estimate_saved_plan(scenario, tree), *_measured(run_dir)))


def _hardware_of(
    run_dir: RunDir,
    context: PlanContext,
    replicas: int,
    name: str | None,
    overrides: tuple[str, ...],
) -> Hardware:
    if name is None and context.device == "cuda":
        raise ValueError(
            f"{run_dir.path} ran on CUDA: give its hardware, --hardware h100 for example"
        )
    hardware = hardware_preset(name or "cpu", hosts_of_run(context, replicas, overrides))
    if hardware.device != context.device:
        raise ValueError(
            f"{run_dir.path} ran on {context.device}, and --hardware {name} is {hardware.device}"
        )
    if replicas > 1:
        check_hosts(context, replicas, hardware)
    return hardware


def hosts_of_run(
    context: PlanContext, replicas: int, overrides: tuple[str, ...]
) -> tuple[str, ...]:
    """Puts the ranks of a host, as far as a run's plan tells them, before the overrides.

    Args:
        context: of the plan, whose ranks are those of one copy of the tables.
        replicas: copies of the tables.
        overrides: ``key=value`` of the hardware.

    Raises:
        ValueError: a host has one rank of each copy, or none of some, and nobody says which.
    """
    is_given = any(text.partition("=")[0] == "local_world_size" for text in overrides)
    if replicas > 1 and context.local_world_size == 1 and not is_given:
        raise ValueError(
            f"the ranks of a host should be given: with sharding.replicas={replicas} and at most "
            "one rank of each copy on a host, the plan does not tell them; add --set "
            "local_world_size=8, for example"
        )
    return f"local_world_size={context.local_world_size * replicas}", *overrides


def check_hosts(context: PlanContext, replicas: int, hardware: Hardware) -> None:
    """Checks that hosts of so many ranks give the copies of the tables that a plan was made for.

    Args:
        context: of the plan.
        replicas: copies of the tables.
        hardware: with the ranks of a host.

    Raises:
        ValueError: they do not.
    """
    of_host, world_size = hardware.local_world_size, context.world_size * replicas
    group = sharding_group(replicas, world_size, of_host, hardware.device)
    if group.local_world_size != context.local_world_size:
        raise ValueError(
            f"the plan has {context.local_world_size} ranks of each copy on a host, and "
            f"local_world_size={of_host} with sharding.replicas={replicas} gives "
            f"{group.local_world_size}; change --set local_world_size"
        )


def _measured(run_dir: RunDir) -> tuple[dict[str, Any], float]:
    """Reads the memory usage of a run and its median of rows a second.

    The first speed includes the warm-up and is left out if there are more.
    """
    records = read_log(run_dir.log)
    stored = [record["usage"] for record in records if "usage" in record]
    try:
        usages = [_Usage.model_validate(usage).model_dump() for usage in stored]
    except ValidationError as error:
        raise ValueError(f"{run_dir.log} is damaged: usage: {first_fault(error)}") from error
    found = [record.get("rows_per_second") for record in records]
    speeds = [float(speed) for speed in found if is_number(speed)]
    if not usages or not speeds:
        raise ValueError(
            f"{run_dir.log} has no line of 'usage' and speed; was the run trained to its end by "
            "this version?"
        )
    return usages[-1], median(speeds[1:] or speeds)


def _table(estimate: PlanEstimate, usage: dict[str, Any], rows_per_second: float) -> list[str]:
    rows = _memory_rows(estimate, usage) + _speed_rows(estimate, rows_per_second)
    return [
        "| | estimate | measured |",
        "| --- | ---: | ---: |",
        *(f"| {quantity} | {estimated} | {found} |" for quantity, estimated, found in rows),
    ]


def _speed_rows(estimate: PlanEstimate, rows_per_second: float) -> list[tuple[str, str, str]]:
    scenario = estimate.scenario
    rows_a_step = scenario.world_size * scenario.config.train.batch_size
    step_ms = 1000 * rows_a_step / rows_per_second
    return [
        ("ms a step", f"{estimate.step_time.total:.2f}", f"{step_ms:.2f}"),
        ("rows/s", f"{estimate.rows_per_second:,.0f}", f"{rows_per_second:,.0f}"),
    ]


def _memory_rows(estimate: PlanEstimate, usage: dict[str, Any]) -> list[tuple[str, str, str]]:
    measured_by = "CUDA's allocator" if usage["device"] == "cuda" else "the whole process"
    rows = [
        (
            f"{part}, fullest rank",
            format_bytes(float(estimate.table_memory_R[part].max())),
            format_bytes(max(usage[key])),
        )
        for part, key in zip(TABLE_PARTS, ("table_weights", "optimizer_state"), strict=False)
    ]
    peak = format_bytes(estimate.peak_memory), format_bytes(max(usage["peak"]))
    return [*rows, (f"peak memory, fullest rank ({measured_by})", *peak)]
