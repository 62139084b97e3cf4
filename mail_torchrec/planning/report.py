"""The answers as a terminal table, Markdown, JSON and one HTML page."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mail_torchrec.embeddings.hardware import figures
from mail_torchrec.embeddings.sharding_options import describe, num_bytes
from mail_torchrec.planning.estimate import Answer
from mail_torchrec.planning.plots import draw_memory, draw_placement, draw_steps
from mail_torchrec.planning.scenarios import Question
from mail_torchrec.reporting.html import as_html

_GIB = 2**30
_HEADS = (
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


def table(answers: Sequence[Answer]) -> list[str]:
    """The points as a Markdown table whose columns are aligned for a terminal too."""
    rows = [_HEADS, *(_row(found) for found in answers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    texts = (0, len(_HEADS) - 1)  # the columns that are not numbers

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if i in texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join(cells) + " |"

    rule = line(
        ["-" * width if i in texts else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    )
    return [line(rows[0]), rule, *map(line, rows[1:])]


def _row(found: Answer) -> tuple[str, ...]:
    step = found.step
    times = (f"{value:.1f}" for value in (step.lookup, step.communication, step.dense, step.total))
    memory = f"{found.peak_memory / _GIB:.1f}", f"{found.capacity / _GIB:.1f}"
    shape = Counter(describe(choice) for choice, _ in found.layout.chosen.values())
    return (
        found.case.name, "yes" if found.fits else "NO", *memory, *times, f"{found.rows_per_second:,.0f}",
        f"{found.imbalance['memory']:.2f}", " + ".join(f"{number} {kind}" for kind, number in shape.most_common()),
    )  # fmt: skip


def verdicts(answers: Sequence[Answer]) -> list[str]:
    """What the answers say, point by point where there is something to say, as Markdown."""
    lines: list[str] = []
    for found in answers:
        if not found.fits:
            lines += [f"**{found.case.name}** does not fit: it lacks {found.lacks}.", ""]
            lines += [f"- {remedy.sentence()}" for remedy in found.remedies] + [""]
        lines += [part for note in found.notes for part in (f"{found.case.name}: {note}.", "")]
    return lines


def markdown(
    question: Question, answers: Sequence[Answer], command: str, pictures: dict[str, str]
) -> str:
    """The whole report."""
    fitting = sum(found.fits for found in answers)
    lines = [f"# Sharding plan: {answers[0].case.config.name} on {question.hardware_name}", ""]
    lines += [
        f"{fitting} of {len(answers)} points fit. Memory is that of the fullest rank; a step's "
        "parts do not overlap in this estimate.",
        "",
    ]
    lines += [*table(answers), "", *verdicts(answers)]
    for file, caption in pictures.items():
        lines += [f"![{caption}]({file})", ""]
    lines += [
        "## Memory of the fullest rank",
        "",
        *_memory_table(answers),
        "",
        "## Tables",
        "",
        *_tables(answers),
        "",
        "## Hardware",
        "",
    ]
    lines += ["| figure | value |", "| --- | ---: |"]
    lines += [f"| {name} | {value} |" for name, value in figures(question.machine).items()]
    return "\n".join([*lines, "", "## Command", "", "```", command, "```", ""])


def _memory_table(answers: Sequence[Answer]) -> list[str]:
    heads = list(
        dict.fromkeys(
            part for found in answers for part in (*found.table_memory_R, *found.dense_memory)
        )
    )
    lines = [
        f"| ranks x rows | {' | '.join(heads)} | host |",
        "| --- |" + " ---: |" * (len(heads) + 1),
    ]
    for found in answers:
        fullest = int(found.layout.memory_R[found.main_memory].argmax())
        parts = {
            part: float(bytes_R[fullest]) for part, bytes_R in found.table_memory_R.items()
        } | found.dense_memory
        cells = [num_bytes(parts[part]) if part in parts else "" for part in heads]
        lines.append(
            f"| {found.case.name} | {' | '.join(cells)} | "
            f"{num_bytes(float(found.layout.memory_R['host'].max()))} |"
        )
    return lines


def _tables(answers: Sequence[Answer]) -> list[str]:
    """Every table of every plan; shards of one size are counted."""
    lines = [
        "| point | table | rows | columns | sharding | shards | largest shard |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for found in answers:
        for name, (choice, ranks) in found.layout.chosen.items():
            rows, columns = found.workload.sizes[name]
            largest = num_bytes(4.0 * float(choice.sizes_S2.prod(axis=1).max()))
            lines.append(
                f"| {found.case.name} | {name} | {rows:,} | {columns} | {describe(choice)} | "
                f"{len(ranks)} | {largest} |"
            )
    return lines


def write_report(
    question: Question, answers: Sequence[Answer], command: str, out: Path
) -> list[Path]:
    """Writes ``report.html``, ``report.md``, ``report.json``, pictures, and a plan file for each point that fits.

    Pictures of memory and placement are of the first and the last point that fit (of the first
    point where none does).
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    shown = [found for found in answers if found.fits] or list(answers[:1])
    pictures = {"steps.png": "What a step is made of, for every point."}
    draw_steps(answers, out / "steps.png")
    for found in dict.fromkeys((shown[0], shown[-1])):
        name = file_name(found)
        draw_memory(found, out / f"memory-{name}.png")
        draw_placement(found, out / f"tables-{name}.png")
        pictures[f"memory-{name}.png"] = f"Memory of every rank, {found.case.name}."
        pictures[f"tables-{name}.png"] = f"Where tables lie, {found.case.name}."
    text = markdown(question, answers, command, pictures)
    content = {
        "command": command, "hardware": question.hardware_name, "figures": figures(question.machine),
        "points": [found.content() for found in answers],
    }  # fmt: skip
    for file, body in (
        ("report.html", as_html(text, out)), ("report.md", text), ("report.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    ):  # fmt: skip
        (out / file).write_text(body, encoding="utf-8")
        written.append(out / file)
    for found in answers:
        if found.fits:
            path = out / ("plan.json" if len(answers) == 1 else f"plan-{file_name(found)}.json")
            path.write_text(found.plan_text())
            written.append(path)
    return written


def file_name(found: Answer) -> str:
    """A point's name as a part of file names."""
    text = found.case.name.replace(" x ", "x")
    return "".join(letter if letter.isalnum() or letter in ".-_" else "-" for letter in text).strip(
        "-"
    )
