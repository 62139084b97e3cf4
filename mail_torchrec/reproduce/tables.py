"""Tables 2 and 3: methods by new and old users, what they win over their base, and in words which gains are real."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mail_torchrec.reporting.comparison import FIGURES, Interval, Row, table
from mail_torchrec.reporting.plots import draw_comparison
from mail_torchrec.reproduce.methods import METHODS
from mail_torchrec.reproduce.paper import paper_figures
from mail_torchrec.reproduce.runner import Run, by_method
from mail_torchrec.reproduce.sections import Section
from mail_torchrec.reproduce.statistics import (
    NUM_RESAMPLES,
    PARTS,
    Resampled,
    difference,
    headroom_recovered,
    relative_improvement,
    resample_files,
)

Intervals = dict[str, dict[str, Interval | None]]
"""Part (new, old) -> figure (auc, gauc) -> interval."""


@dataclass(frozen=True)
class TableSettings:
    """What a table of the paper holds."""

    title: str
    reference: str | None = None
    """The method that RI is relative to; None: each one's base."""
    order: tuple[tuple[str, str], ...] = ()
    """Claims of the paper: pairs of methods, the second one better for new users."""


TABLES = {
    "table2": TableSettings("Table 2: methods"),
    "table3": TableSettings(
        "Table 3: ablation of the zero-shot losses",
        reference="MAIL-BaseDNN",
        order=(
            ("MAIL-None", "BaseDNN"),
            ("MAIL-Single", "MAIL-Dual"),
            ("MAIL-Dual", "MAIL-BaseDNN"),
        ),
    ),
}


@dataclass(frozen=True)
class Line:
    """One method of a table."""

    name: str
    base: str | None
    """The method that ``differences`` are from; None where it is a base itself, or its base is not
    in the table."""
    run_dirs: list[str]
    figures: Intervals
    relative: dict[str, dict[str, float | None]]
    """RI in percent (Eq. 18)."""
    differences: Intervals
    headroom: Interval | None
    """Share of what the oracle wins over the base on new rows (AUC); None where that is not clear
    of 0."""
    verdict: str | None


@dataclass(frozen=True)
class Claim:
    """Whether one method is better than another for new users, as the paper has it."""

    lower: str
    higher: str
    difference: Interval | None
    verdict: str


def make_table(
    name: str,
    runs: Sequence[Run],
    out: Path,
    dataset: str | None = None,
    num_resamples: int = NUM_RESAMPLES,
) -> Section:
    """Makes a table of finished runs; its picture is written into ``out``.

    Args:
        name: ``table2`` or ``table3``.
        runs: of all methods, the same seeds of each.
        out: a folder.
        dataset: the paper's dataset (public, industrial) whose own figures are to be shown too;
            None shows none.
        num_resamples: of the bootstrap.

    Raises:
        ValueError: predictions are missing, or of other rows.
    """
    settings = TABLES[name]
    of_method = by_method(runs)
    resampled = resample_files(
        {method: [run.run_dir.predictions for run in seeds] for method, seeds in of_method.items()},
        num_resamples,
    )
    lines = [
        _line(method, [str(run.path) for run in seeds], resampled, settings)
        for method, seeds in of_method.items()
    ]
    claims = [
        _claim(lower, higher, resampled)
        for lower, higher in settings.order
        if {lower, higher} <= resampled.keys()
    ]
    figures = json.loads(runs[0].run_dir.metrics.read_text())
    test = {
        part: {"rows": int(figures[part]["rows"]), "users": int(figures[part]["users"])}
        for part in PARTS
    }
    num_seeds = len(next(iter(of_method.values())))
    over = f"users and {num_seeds} seeds" if num_seeds > 1 else "users, one seed"
    draw_comparison(
        [Row(line.name, line.run_dirs, line.figures) for line in lines],
        out / f"{name}.png",
        over=over,
    )
    content = {
        "table": name,
        "seeds": num_seeds,
        "resamples": num_resamples,
        "test": test,
        "methods": [asdict(line) for line in lines],
        "order": [asdict(claim) for claim in claims],
        "paper": {dataset: paper_figures(name, dataset)} if dataset else None,
    }
    text = as_markdown(settings.title, lines, claims, test, num_seeds, num_resamples)
    if dataset:
        text += beside_the_paper(name, dataset, lines, settings)
    verdicts = [line.verdict for line in lines if line.verdict] + [
        claim.verdict for claim in claims
    ]
    pictures = {
        f"{name}.png": f"{settings.title}. AUC of new and of old users, mean and 95 % interval over {over}."
    }
    return Section(name, settings.title, text, verdicts, pictures, content)


def beside_the_paper(
    name: str, dataset: str, lines: Sequence[Line], settings: TableSettings
) -> str:
    """Ours and the paper's own figures, and RI of both, a table for new users and one for old ones."""
    paper = paper_figures(name, dataset)
    text = f"\nThe paper's own figures ({dataset} dataset) beside ours:\n\n"
    for part in PARTS:
        kinds = list(paper["BaseDNN"][part])
        header = [
            f"{part} users",
            *(
                word
                for kind in kinds
                for word in (kind.upper(), "the paper's", "RI", "the paper's")
            ),
        ]
        cells = []
        for line in (line for line in lines if line.name in paper):
            base = paper[settings.reference or METHODS[line.name].tower]
            cells.append([line.name])
            for kind in kinds:
                theirs = paper[line.name][part][kind]
                relative = relative_improvement(theirs, base[part][kind])
                ours = mean_text(line.figures[part][kind]), _signed(line.relative[part][kind])
                cells[-1] += [ours[0], _number(theirs), ours[1], _signed(relative)]
        text += table(header, cells) + "\n"
    return text


def _line(
    name: str, run_dirs: list[str], resampled: Mapping[str, Any], settings: TableSettings
) -> Line:
    method, mine = METHODS[name], resampled[name]
    figures = {
        part: {figure: mine[part][figure].interval() for figure in FIGURES} for part in PARTS
    }
    reference = resampled.get(settings.reference or method.tower)
    relative = {
        part: {figure: _relative(mine[part][figure], reference, part, figure) for figure in FIGURES}
        for part in PARTS
    }
    base = resampled.get(method.tower)
    if base is None or method.base is None:
        return Line(name, None, run_dirs, figures, relative, {}, None, None)
    differences = {
        part: {figure: difference(mine[part][figure], base[part][figure]) for figure in FIGURES}
        for part in PARTS
    }
    headroom = None
    if method.oracle in resampled and name != method.oracle:
        headroom = headroom_recovered(
            *(resampled[one]["new"]["auc"] for one in (name, method.base, method.oracle))
        )
    verdict = _verdict(name, method.base, differences, headroom)
    return Line(name, method.base, run_dirs, figures, relative, differences, headroom, verdict)


def _relative(
    mine: Resampled, reference: Mapping[str, Any] | None, part: str, figure: str
) -> float | None:
    value, base = mine.interval(), reference[part][figure].interval() if reference else None
    return relative_improvement(value.mean, base.mean) if value and base else None


def _verdict(name: str, base: str, differences: Intervals, headroom: Interval | None) -> str:
    parts = [
        f"{part} users {interval_text(differences[part]['auc'])}, "
        f"{gain_word(differences[part]['auc'])}"
        for part in PARTS
    ]
    text = f"{name} against {base}, AUC: {'; '.join(parts)}."
    if headroom is not None:
        text += f" It recovers {percent(headroom)} of the headroom."
    return text


def gain_word(interval: Interval | None) -> str:
    """What a difference is: "a gain" or "a loss" where the interval is clear of 0, else "none"."""
    if interval is None or interval.low is None or interval.high is None:
        return "unknown"
    return "a gain" if interval.low > 0 else "a loss" if interval.high < 0 else "none"


def _claim(lower: str, higher: str, resampled: Mapping[str, Any]) -> Claim:
    found = difference(resampled[higher]["new"]["auc"], resampled[lower]["new"]["auc"])
    words = {
        "a gain": "so it is",
        "a loss": "it is the other way round",
        "none": "cannot be told",
        "unknown": "cannot be told",
    }
    return Claim(
        lower,
        higher,
        found,
        f"{lower} < {higher} for new users, AUC {interval_text(found)}: {words[gain_word(found)]}.",
    )


def as_markdown(
    title: str,
    lines: Sequence[Line],
    claims: Sequence[Claim],
    test: Mapping[str, Mapping[str, int]],
    num_seeds: int,
    num_resamples: int,
) -> str:
    """The table, the differences from each method's base, and the verdicts, to be read as text or rendered."""
    columns = [(part, figure) for part in PARTS for figure in FIGURES]
    header = [
        "method",
        *(text for part, figure in columns for text in (f"{part} {figure.upper()}", "RI")),
    ]
    cells = [
        [
            line.name,
            *(
                text
                for part, figure in columns
                for text in (
                    mean_text(line.figures[part][figure]),
                    _signed(line.relative[part][figure]),
                )
            ),
        ]
        for line in lines
    ]
    text = f"## {title}\n\n{caption(test, num_seeds, num_resamples)}\n\n{table(header, cells)}\n"
    if compared := [line for line in lines if line.base]:
        header = [
            "difference",
            *(f"{part} {figure.upper()}" for part, figure in columns),
            "headroom recovered",
        ]
        cells = [
            [
                f"{line.name} - {line.base}",
                *(interval_text(line.differences[part][figure]) for part, figure in columns),
                percent(line.headroom),
            ]
            for line in compared
        ]
        text += table(header, cells) + "\n" + "".join(f"- {line.verdict}\n" for line in compared)
    if claims:
        text += "\nThe paper's order:\n\n" + "".join(f"- {claim.verdict}\n" for claim in claims)
    return text


def caption(test: Mapping[str, Mapping[str, int]], num_seeds: int, num_resamples: int) -> str:
    """What the figures are of, and what the intervals mean."""
    rows = ", ".join(
        f"{counts['rows']:,} rows of {counts['users']:,} {part} users"
        for part, counts in test.items()
    )
    seeds = (
        f"Means over {num_seeds} seeds"
        if num_seeds > 1
        else "One seed, so that intervals hold what users vary and not what seeds do"
    )
    return (
        f"Test: {rows}. {seeds}; 95 % intervals in brackets, by a paired bootstrap over users and "
        f"seeds ({num_resamples} resamples). "
        'A difference whose interval holds 0 is called "none".'
    )


def interval_text(interval: Interval | None) -> str:
    """A difference as ``+.0012 [+.0003, +.0021]``."""
    if interval is None:
        return "-"
    if interval.low is None or interval.high is None:
        return _number(interval.mean, "+")
    return (
        f"{_number(interval.mean, '+')} [{_number(interval.low, '+')}, "
        f"{_number(interval.high, '+')}]"
    )


def percent(interval: Interval | None) -> str:
    """A share as ``12 % [3 %, 21 %]``."""
    if interval is None:
        return "-"
    if interval.low is None or interval.high is None:
        return f"{interval.mean * 100:.0f} %"
    return f"{interval.mean * 100:.0f} % [{interval.low * 100:.0f} %, {interval.high * 100:.0f} %]"


def mean_text(interval: Interval | None) -> str:
    """A figure as ``.7128``."""
    return _number(interval.mean) if interval else "-"


def _signed(relative: float | None) -> str:
    return "-" if relative is None else f"{relative:+.2f} %"


def _number(value: float, sign: str = "") -> str:
    """Four digits, without the zero in front."""
    return f"{value:{sign}.4f}".replace("0.", ".", 1)
