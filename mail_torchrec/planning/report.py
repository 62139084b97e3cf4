"""Report of the estimates: a table for the terminal, Markdown, JSON, HTML and plan files."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mail_torchrec.embeddings.storage import format_bytes
from mail_torchrec.planning.estimate import PlanEstimate
from mail_torchrec.planning.plots import draw_memory, draw_placement, draw_steps
from mail_torchrec.planning.scenarios import ScenarioGrid
from mail_torchrec.reporting.html import markdown_to_html
from mail_torchrec.reporting.markdown import escape_markdown
from mail_torchrec.utils.local_path import make_output_dir
from mail_torchrec.utils.run_files import write_report_file

_GIB = 2**30
_LONGEST_NAME = 100
_HEADER = (
    "ranks x rows",
    "fits",
    "GiB a rank",
    "of",
    "lookup",
    "comms",
    "dense",
    "ms a step",
    "rows/s",
    "imbalance",
    "plan",
)
_IS_TEXT = tuple(title in ("ranks x rows", "plan") for title in _HEADER)


def summary_table(estimates: Sequence[PlanEstimate]) -> list[str]:
    """Returns the lines of a Markdown table, aligned for a terminal too, one scenario a line."""
    rows = [_HEADER, *(_summary_row(estimate) for estimate in estimates)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    rule = [
        "-" * (width - 1) + ("-" if is_text else ":")
        for width, is_text in zip(widths, _IS_TEXT, strict=True)
    ]
    return [_summary_line(row, widths) for row in (rows[0], rule, *rows[1:])]


def _summary_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.ljust(width) if is_text else cell.rjust(width)
        for cell, width, is_text in zip(cells, widths, _IS_TEXT, strict=True)
    )
    return "| " + " | ".join(padded) + " |"


def _summary_row(estimate: PlanEstimate) -> tuple[str, ...]:
    step = estimate.step_time
    times = (f"{ms:.1f}" for ms in (step.lookup, step.communication, step.dense, step.total))
    options = Counter(
        placement.option.describe() for placement in estimate.plan.placements.values()
    )
    return (
        estimate.scenario.name,
        "yes" if estimate.fits else "NO",
        f"{estimate.peak_memory / _GIB:.1f}",
        f"{estimate.capacity / _GIB:.1f}",
        *times,
        f"{estimate.rows_per_second:,.0f}",
        f"{estimate.imbalance['memory']:.2f}",
        " + ".join(f"{number} {option}" for option, number in options.most_common()),
    )


def findings(estimates: Sequence[PlanEstimate]) -> list[str]:
    """Returns shortages with their suggestions, and notes, as lines of Markdown."""
    lines: list[str] = []
    for estimate in estimates:
        name = estimate.scenario.name
        if not estimate.fits:
            lines += [f"**{name}** does not fit: it lacks {estimate.shortage}.", ""]
            lines += [f"- {suggestion.sentence()}" for suggestion in estimate.suggestions]
            lines.append("")
        for note in estimate.notes:
            lines += [f"{name}: {note}.", ""]
    return lines


def markdown(
    grid: ScenarioGrid, estimates: Sequence[PlanEstimate], command: str, plots: dict[str, str]
) -> str:
    """Composes the whole report.

    Args:
        grid: the scenarios.
        estimates: of every scenario.
        command: command line that made them.
        plots: captions by file name.
    """
    fitting = sum(estimate.fits for estimate in estimates)
    name = estimates[0].scenario.config.name
    lines = [
        f"# Sharding plan: {name} on {grid.hardware_name}",
        "",
        f"{fitting} of {len(estimates)} scenarios fit. Memory is that of the fullest rank; a "
        "step's parts do not overlap in this estimate.",
        "",
        *summary_table(estimates),
        "",
        *findings(estimates),
    ]
    for file, caption in plots.items():
        lines += [f"![{caption}]({file})", ""]
    sections = {
        "Memory of the fullest rank": _memory_table(estimates),
        "Tables": _placement_table(estimates),
        "Hardware": _hardware_table(grid),
        "Command": ["```", command, "```"],
    }
    for title, content in sections.items():
        lines += [f"## {title}", "", *content, ""]
    return "\n".join(lines)


def _hardware_table(grid: ScenarioGrid) -> list[str]:
    specs = grid.hardware.specs()
    rows = [f"| {name} | {value} |" for name, value in specs.items()]
    return ["| specification | value |", "| --- | ---: |", *rows]


def _memory_table(estimates: Sequence[PlanEstimate]) -> list[str]:
    """Returns the fullest rank's bytes by purpose, one scenario a line."""
    purposes = list(
        dict.fromkeys(
            purpose
            for estimate in estimates
            for purpose in (*estimate.table_memory_R, *estimate.dense_memory)
        )
    )
    lines = [
        f"| ranks x rows | {' | '.join(purposes)} | host |",
        "| --- |" + " ---: |" * (len(purposes) + 1),
    ]
    for estimate in estimates:
        fullest = int(estimate.plan.memory_R[estimate.main_memory].argmax())
        memory = {
            part: float(bytes_R[fullest]) for part, bytes_R in estimate.table_memory_R.items()
        }
        memory |= estimate.dense_memory
        cells = [format_bytes(memory[purpose]) if purpose in memory else "" for purpose in purposes]
        host = format_bytes(float(estimate.plan.memory_R["host"].max()))
        name = escape_markdown(estimate.scenario.name)
        lines.append(f"| {name} | {' | '.join(cells)} | {host} |")
    return lines


def _placement_table(estimates: Sequence[PlanEstimate]) -> list[str]:
    """Returns every table of every plan with its sharding option and its largest shard."""
    lines = [
        "| scenario | table | rows | columns | sharding | shards | largest shard |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for estimate in estimates:
        name = escape_markdown(estimate.scenario.name)
        for table, (option, ranks_S) in estimate.plan.placements.items():
            rows, columns = estimate.workload.sizes[table]
            largest = format_bytes(4.0 * float(option.sizes_S2.prod(axis=1).max()))
            lines.append(
                f"| {name} | {escape_markdown(table)} | {rows:,} | {columns} | "
                f"{option.describe()} | {len(ranks_S)} | {largest} |"
            )
    return lines


def write_report(
    grid: ScenarioGrid, estimates: Sequence[PlanEstimate], command: str, out: Path
) -> list[Path]:
    """Writes the report as HTML, Markdown and JSON, its plots, and a plan file for each fit.

    Args:
        grid: the scenarios.
        estimates: of every scenario.
        command: command line that made them.
        out: folder to write into.

    Returns:
        The written files except the plots.
    """
    make_output_dir(out)
    text = markdown(grid, estimates, command, _draw_plots(estimates, out))
    content = {
        "command": command,
        "hardware": grid.hardware_name,
        "hardware_specs": grid.hardware.specs(),
        "scenarios": [estimate.as_json() for estimate in estimates],
    }
    files = {
        "report.html": markdown_to_html(text, out),
        "report.md": text,
        "report.json": json.dumps(content, indent=1, allow_nan=False) + "\n",
    }
    for estimate in estimates:
        if estimate.fits:
            name = "plan.json" if len(estimates) == 1 else f"plan-{file_name(estimate)}.json"
            files[name] = estimate.plan_text()
    for name, body in files.items():
        write_report_file(out / name, body)
    return [out / name for name in files]


def _draw_plots(estimates: Sequence[PlanEstimate], out: Path) -> dict[str, str]:
    """Draws the plots and returns their captions by file name.

    Memory and placement are drawn for the first and the last scenario that fit, or for the first
    scenario if none fits.
    """
    plots = {"steps.png": "Parts of a step of every scenario."}
    draw_steps(estimates, out / "steps.png")
    shown = [estimate for estimate in estimates if estimate.fits] or list(estimates[:1])
    for estimate in dict.fromkeys((shown[0], shown[-1])):
        memory_png = f"memory-{file_name(estimate)}.png"
        placement_png = f"tables-{file_name(estimate)}.png"
        draw_memory(estimate, out / memory_png)
        draw_placement(estimate, out / placement_png)
        plots[memory_png] = f"Memory of every rank, {estimate.scenario.name}."
        plots[placement_png] = f"Placement of the tables, {estimate.scenario.name}."
    return plots


def file_name(estimate: PlanEstimate) -> str:
    """Returns a name for files: the scenario's, of a long one its beginning and a hash."""
    name = estimate.scenario.name
    text = name.replace(" x ", "x")
    letters = (letter if letter.isalnum() or letter in ".-_" else "-" for letter in text)
    found = "".join(letters).strip("-")
    if len(found) <= _LONGEST_NAME:
        return found
    return f"{found[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
