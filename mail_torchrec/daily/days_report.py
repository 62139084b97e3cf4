"""Report of chains of runs: metrics by day as tables, JSON, HTML and a picture."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mail_torchrec.continuation.progressive_record import COHORTS, Metrics
from mail_torchrec.daily.chain import Chain, ChainedRun, TableFullness
from mail_torchrec.daily.days_plot import draw_days
from mail_torchrec.reporting.html import markdown_to_html
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.utils.local_path import make_output_dir
from mail_torchrec.utils.run_files import write_report_file

METRICS = {
    "auc": "AUC",
    "gauc": "GAUC",
    "normalised_entropy": "normalised entropy",
    "calibration": "calibration",
}
"""Metrics of the tables, and their titles."""
_SHOWN_COHORTS = ("all", "new_users", "old_users", "new_items")
_NAME = "days"
_LEGEND = (
    "Each day is scored by the model of the days before it, before it is trained on. *Seconds* are "
    "those of the training steps; *rows used* are rows of managed tables that an id owns."
)

_Day = tuple[str, ChainedRun, Metrics, bool]
"""Label of a day, its run, the metrics of the parent, and whether it is the run's last day."""


def days_of(chain: Chain) -> Iterator[_Day]:
    """Yields the days of a chain; a run that was trained on several days has one row for each."""
    for run in chain.runs:
        record = run.progressive
        label = run.day or run.path.name
        days: dict[str, Metrics] = {} if record is None else {label: record.metrics}
        if record is not None and len(record.by_day) > 1:
            days = record.by_day
        days = days or {label: {}}
        for number, (day, metrics) in enumerate(days.items(), start=1):
            yield day, run, metrics, number == len(days)


def days_table(chain: Chain) -> str:
    """Formats the chain as one table: what it was trained on, and the metrics of each day."""
    header = ["day", "run", "rows", "seconds", "rows used"]
    header += [f"AUC {_words(cohort)}" for cohort in _SHOWN_COHORTS]
    header += [title for name, title in METRICS.items() if name != "auc"]
    lines = []
    for day, run, metrics, is_last in days_of(chain):
        costs = (
            [_count(run.rows), _seconds(run.seconds), _used(run.tables)] if is_last else [""] * 3
        )
        aucs = [_number(metrics, cohort, "auc") for cohort in _SHOWN_COHORTS]
        others = [_number(metrics, "all", name) for name in METRICS if name != "auc"]
        lines.append([day, run.path.name, *costs, *aucs, *others])
    return markdown_table(header, lines)


def as_markdown(chains: Sequence[Chain]) -> str:
    """Formats one table a chain."""
    titles = [f"**{chain.title}**\n\n" if len(chains) > 1 else "" for chain in chains]
    tables = [title + days_table(chain) for title, chain in zip(titles, chains, strict=True)]
    return "\n".join(tables)


def as_json(chains: Sequence[Chain]) -> str:
    """Formats all that is known of the days of each chain."""
    found = [
        {
            "chain": chain.title,
            "days": [_record(*day) for day in days_of(chain)],
        }
        for chain in chains
    ]
    return json.dumps({"chains": found}, indent=2) + "\n"


def write_days(chains: Sequence[Chain], out: Path) -> list[Path]:
    """Writes ``days.md``, ``.json``, ``.png`` and ``.html``.

    Args:
        chains: with at least one run each.
        out: a folder, made where it is missing.

    Returns:
        The paths of the files.
    """
    make_output_dir(out)
    picture = out / f"{_NAME}.png"
    draw_days({chain.title: _series(chain) for chain in chains}, METRICS, picture)
    text = "\n".join(_blocks(chains, picture.name))
    paths = [out / f"{_NAME}.{kind}" for kind in ("md", "json", "html")]
    write_report_file(paths[0], text)
    write_report_file(paths[1], as_json(chains))
    write_report_file(paths[2], markdown_to_html(text, out))
    return [*paths, picture]


def _blocks(chains: Sequence[Chain], picture: str) -> Iterator[str]:
    yield f"# Days\n\n{_LEGEND}\n"
    yield f"![Metrics of each day before it is trained on, by cohort.]({picture})\n"
    yield as_markdown(chains)
    for chain in chains:
        name = f" of {chain.title}" if len(chains) > 1 else ""
        for metric, title in METRICS.items():
            yield f"## {title}{name}\n\n{_metric_table(chain, metric)}"
        if any(run.tables for run in chain.runs):
            yield f"## Managed tables{name}\n\n{_fullness_table(chain)}"


def _metric_table(chain: Chain, metric: str) -> str:
    lines = [
        [day, *(_number(metrics, cohort, metric) for cohort in COHORTS)]
        for day, _, metrics, _ in days_of(chain)
    ]
    return markdown_table(["day", *map(_words, COHORTS)], lines)


def _fullness_table(chain: Chain) -> str:
    header = ["table", "day", "owned", "of", "share", "admitted", "left", "refused"]
    lines = [
        [
            name,
            day,
            *(f"{of.owned:,}", f"{of.rows:,}", _share(of)),
            *(f"{count:,}" for count in (of.admitted, of.left, of.refused)),
        ]
        for day, run, _, is_last in days_of(chain)
        for name, of in (run.tables or {}).items()
        if is_last
    ]
    return markdown_table(header, sorted(lines, key=lambda line: line[0]))


def _series(chain: Chain) -> list[tuple[str, Metrics]]:
    return [(day, metrics) for day, _, metrics, _ in days_of(chain)]


def _record(day: str, run: ChainedRun, metrics: Metrics, is_last: bool) -> dict[str, Any]:
    tables = {name: used._asdict() for name, used in (run.tables or {}).items()}
    costs = {"rows": run.rows, "seconds": run.seconds, "tables": tables} if is_last else {}
    known = {"day": day, "run": str(run.path), "name": run.name, "is_there": run.is_there}
    return known | costs | {"metrics": metrics}


def _words(cohort: str) -> str:
    return cohort.replace("_", " ")


def _number(metrics: Metrics, cohort: str, name: str) -> str:
    value = metrics.get(cohort, {}).get(name)
    is_known = isinstance(value, int | float) and math.isfinite(value)
    return f"{value:.4f}" if is_known else "-"


def _count(rows: int | None) -> str:
    return "-" if rows is None else f"{rows:,}"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.1f}"


def _share(of: TableFullness) -> str:
    return f"{of.owned / of.rows:.0%}"


def _used(tables: dict[str, TableFullness] | None) -> str:
    """Names the fullest managed table."""
    if not tables:
        return "-"
    name, fullest = max(tables.items(), key=lambda item: item[1].owned / item[1].rows)
    return f"{name} {_share(fullest)}"
