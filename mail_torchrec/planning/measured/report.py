"""Report of measured plans: a table, rank correlations, the plans to use, and a picture."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mail_torchrec.embeddings.storage import format_bytes
from mail_torchrec.planning.estimate import StepTime
from mail_torchrec.planning.measured.measurements import (
    Agreement,
    MeasuredPlan,
    agreements,
    fastest,
)
from mail_torchrec.planning.measured.plots import draw_measured
from mail_torchrec.reporting.html import markdown_to_html
from mail_torchrec.reporting.markdown import escape_markdown, markdown_table
from mail_torchrec.utils.run_files import write_report_file

_HEADER = ("plan", "tables", "ms a step", "lookup", "comms", "passes", "tables' memory", "peak")


def terminal_text(plans: Sequence[MeasuredPlan], files: dict[str, str]) -> str:
    """Returns the tables and sentences for the terminal.

    Args:
        plans: all that were to be measured.
        files: plan file of each plan's name.
    """
    blocks = [measured_table(plans), *_agreement_lines(agreements(plans))]
    blocks += [
        f"{plan.group}: use {plan.name}, {plan.step_ms:.1f} ms a step: "
        f"train --plan {files[plan.name]}"
        for plan in fastest(plans)
    ]
    blocks += [
        f"{plan.name} is also the plan of {'; '.join(plan.also)}, which were not measured again"
        for plan in plans
        if plan.also
    ]
    blocks += [f"{plan.name} could not be measured: {plan.failure}" for plan in _failed(plans)]
    return "\n\n".join(blocks)


def _failed(plans: Sequence[MeasuredPlan]) -> list[MeasuredPlan]:
    return [plan for plan in plans if plan.failure]


def measured_table(plans: Sequence[MeasuredPlan]) -> str:
    """Returns a Markdown table: ``estimated / measured`` in each cell, one plan a line."""
    compares = any(plan.published is not None for plan in plans)
    header = [*_HEADER[:3], *(["published"] if compares else []), *_HEADER[3:]]
    rows = [_row(plan, compares) for plan in plans if plan.passes]
    return markdown_table(header, rows).rstrip()


def _row(plan: MeasuredPlan, compares: bool) -> list[str]:
    step = plan.estimate.step_time
    published = f"{plan.published.total:.2f}" if plan.published is not None else ""
    return [
        escape_markdown(plan.name),
        _types(plan),
        f"{step.total:.1f} / {plan.step_ms:.1f}",
        *([published] if compares else []),
        f"{step.lookup:.1f} / {plan.part('lookup_ms'):.1f}",
        f"{step.communication:.1f} / {plan.part('communication_ms'):.1f}",
        f"{plan.spread:.2f}",
        f"{format_bytes(plan.estimated_tables)} / {format_bytes(plan.tables)}",
        f"{format_bytes(plan.estimate.peak_memory)} / {format_bytes(plan.peak)}",
    ]


def _types(plan: MeasuredPlan) -> str:
    """Describes how many tables of each collection are cut in which way."""
    placements = plan.estimate.plan.placements.values()
    found: dict[str, Counter[str]] = {}
    for option, _ in placements:
        kind = option.module_path.removesuffix("_tables")
        found.setdefault(kind, Counter())[option.describe()] += 1
    return "; ".join(
        f"{kind}: {' + '.join(f'{number} {option}' for option, number in options.most_common())}"
        for kind, options in sorted(found.items())
    )


def _agreement_lines(found: Sequence[Agreement]) -> list[str]:
    return [
        f"{one.group}: Spearman's rank correlation of estimated and measured ms a step over "
        f"{one.num_plans} plans is {_number(one.estimate)}"
        + (f" ({_number(one.published)} by published figures)" if one.published is not None else "")
        for one in found
    ]


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"


def write_measured(
    plans: Sequence[MeasuredPlan], files: dict[str, str], command: str, hardware: str, out: Path
) -> list[Path]:
    """Writes the report as HTML, Markdown and JSON, and its picture.

    Args:
        plans: all that were to be measured.
        files: plan file of each plan's name.
        command: that made them.
        hardware: its name and source.
        out: folder to write into.

    Returns:
        The written files except the picture.
    """
    found = [plan for plan in plans if plan.passes]
    draw_measured(found, out / "measured.png")
    text = "\n\n".join(
        [
            "# Plans measured",
            f"```\n{command}\n```",
            f"Hardware of the estimates: {escape_markdown(hardware)}.",
            "Cells are estimated / measured. Parts of a measured step overlap, and are not all of "
            "it; `passes` is the slowest pass over the fastest.",
            terminal_text(plans, files),
            "![Measured over estimated milliseconds a step](measured.png)",
        ]
    )
    content = {
        "command": command,
        "hardware": hardware,
        "agreement": [vars(one) for one in agreements(plans)],
        "use": {plan.group: plan.name for plan in fastest(plans)},
        "plans": [_json(plan, files) for plan in plans],
    }
    documents = {
        "measured.html": markdown_to_html(text + "\n", out),
        "measured.md": text + "\n",
        "measured.json": json.dumps(content, indent=1, allow_nan=False) + "\n",
    }
    for name, body in documents.items():
        write_report_file(out / name, body)
    return [out / name for name in documents]


def _json(plan: MeasuredPlan, files: dict[str, str]) -> dict[str, Any]:
    estimate = plan.estimate
    record: dict[str, Any] = {
        "name": plan.name,
        "group": plan.group,
        "also": plan.also,
        "tables": _types(plan),
        "plan": files[plan.name],
        "failure": plan.failure,
        "estimate_ms": _parts(estimate.step_time),
        "published_ms": None if plan.published is None else _parts(plan.published),
        "estimated_table_bytes": plan.estimated_tables,
        "estimated_peak_bytes": estimate.peak_memory,
        "passes": plan.passes,
    }
    if plan.passes:
        record |= {"step_ms": plan.step_ms, "table_bytes": plan.tables, "peak_bytes": plan.peak}
    return record


def _parts(step: StepTime) -> dict[str, float]:
    return {
        "step": step.total,
        "lookup": step.lookup,
        "communication": step.communication,
        "dense": step.dense,
    }
