"""Finished runs side by side: method by new / old / all, mean and 95 % interval over seeds, difference from a base.

A run directory holds ``metrics.json`` and ``config.yaml``; runs whose configurations have one
``name`` are seeds of one method.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

PARTS = ("new", "old", "all")
FIGURES = ("auc", "gauc")
CONVERSION_FIGURES = {
    "pCVR of clicked rows": ("cvr_auc", "cvr_gauc"),
    "pCTCVR": ("ctcvr_auc", "ctcvr_gauc"),
}
"""What they are of -> figures of runs that predict conversions; shown where all runs do."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its two-sided 95 % interval, Student's t where nothing else is said; one seed has no t-interval: None."""

    mean: float
    low: float | None
    high: float | None
    num_seeds: int

    @property
    def half_width(self) -> float | None:
        """Half the length of the interval, None where there is none."""
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True)
class Row:
    """One method. Keys are part (new, old, all), then figure (auc, gauc, ...); None is a figure that a run could not give."""

    name: str
    run_dirs: list[str]
    figures: dict[str, dict[str, Interval | None]]
    base: str | None = None
    """The method that ``differences`` are from."""
    differences: dict[str, dict[str, Interval | None]] = field(default_factory=dict)
    """Mean and interval of this method minus the base, paired by seed; empty where the two do not
    have the same seeds."""


@dataclass(frozen=True)
class _Run:
    path: Path
    name: str
    seed: int | None
    metrics: dict[str, dict[str, float | None]]


def compare(run_dirs: Iterable[Path], base: str | None = None) -> list[Row]:
    """Read finished runs and gather the seeds of each method.

    Args:
        run_dirs: directories of finished runs.
        base: the method from which the others' differences are taken, paired by ``train.seed``;
            none by default.

    Returns:
        One row a method, in the order in which the methods came.

    Raises:
        ValueError: no runs, an unfinished or damaged one, two runs of one method and seed, or no
            run called ``base``.
    """
    methods: dict[str, list[_Run]] = {}
    for run_dir in run_dirs:
        run = _read(Path(run_dir))
        methods.setdefault(run.name, []).append(run)
    if not methods:
        raise ValueError("compare: there should be at least one run directory, received none")
    if base is not None and base not in methods:
        raise ValueError(
            f"compare: base should be one of the methods {list(methods)}, received '{base}'"
        )
    for name, runs in methods.items():
        _check_seeds(name, runs)
    names = _figures([run for runs in methods.values() for run in runs])
    return [
        _row(name, runs, names, base, methods[base] if base is not None and base != name else [])
        for name, runs in methods.items()
    ]


def _figures(runs: list[_Run]) -> list[str]:
    """The figures that all runs have."""
    of_conversions = [figure for pair in CONVERSION_FIGURES.values() for figure in pair]
    return [
        *FIGURES,
        *(
            figure
            for figure in of_conversions
            if all(figure in run.metrics[part] for run in runs for part in PARTS)
        ),
    ]


def _read(run_dir: Path) -> _Run:
    config = _load(run_dir, "config.yaml", "is this a run directory?")
    metrics = _load(
        run_dir, "metrics.json", "the run has not finished, or was stopped; train it again"
    )
    if missing := [
        part
        for part in PARTS
        if not isinstance(metrics.get(part), dict) or not set(FIGURES) <= set(metrics[part])
    ]:
        raise ValueError(
            f"'{run_dir / 'metrics.json'}' should hold auc and gauc of new, old and all rows, "
            f"missing or incomplete: {missing}"
        )
    name, train = config.get("name"), config.get("train")
    if not isinstance(name, str):
        raise ValueError(
            f"'{run_dir / 'config.yaml'}' should have a text as its 'name', received {name!r}"
        )
    return _Run(run_dir, name, train.get("seed") if isinstance(train, dict) else None, metrics)


def _load(run_dir: Path, name: str, hint: str) -> dict[str, Any]:
    """A JSON or YAML mapping (every JSON text is YAML, too)."""
    try:
        content = yaml.safe_load((run_dir / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"'{run_dir}' has no {name}; {hint}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"'{run_dir / name}' cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"'{run_dir / name}' should hold a mapping, received {type(content).__name__}"
        )
    return content


def _check_seeds(name: str, runs: list[_Run]) -> None:
    first: dict[int | None, Path] = {}
    for run in runs:
        if run.seed in first:
            raise ValueError(
                f"'{run.path}' and '{first[run.seed]}' are both method '{name}', seed {run.seed}; "
                "give another method another name=..., another seed another train.seed=..., or "
                "pass one of the two"
            )
        first[run.seed] = run.path


def _row(
    name: str, runs: list[_Run], names: list[str], base: str | None, base_runs: list[_Run]
) -> Row:
    figures = {
        part: {
            figure: seed_interval([run.metrics[part][figure] for run in runs]) for figure in names
        }
        for part in PARTS
    }
    paired = {run.seed: run for run in base_runs}
    differences = {}
    if base_runs and {run.seed for run in runs} == set(paired):
        differences = {
            part: {
                figure: seed_interval(
                    [
                        _minus(run.metrics[part][figure], paired[run.seed].metrics[part][figure])
                        for run in runs
                    ]
                )
                for figure in names
            }
            for part in PARTS
        }
    return Row(
        name, [str(run.path) for run in runs], figures, base if differences else None, differences
    )


def _minus(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def seed_interval(values: Sequence[float | None]) -> Interval | None:
    """Mean and Student's 95 % interval of one value a seed; None where a seed has none."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    count = len(known)
    mean = math.fsum(known) / count
    if count == 1:
        return Interval(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (count - 1))
    half = t_quantile(count - 1) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def t_quantile(degrees: int, level: float = 0.95) -> float:
    """The two-sided quantile q of Student's t: ``P(|T| < q) = level``.

    The distribution is a finite sum for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and
    26.7.4), and bisection inverts it.

    Raises:
        ValueError: ``degrees`` below 1, or ``level`` not between 0 and 1.
    """
    if degrees < 1 or not 0 < level < 1:
        raise ValueError(
            f"t_quantile: degrees should be >= 1 and level in (0, 1), received {degrees} and "
            f"{level}"
        )
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _t_probability(angle: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def as_markdown(rows: Sequence[Row]) -> str:
    """The figures as a Markdown table that also reads well as plain text, and a second table of differences where there are any.

    A cell is ``mean`` for one seed, ``mean ± half width of the 95 % interval`` for several, ``-``
    where a figure is undefined. Where all runs predict conversions, the same tables follow for
    these.
    """
    of_what = {"": FIGURES} | {
        f", {what}": pair
        for what, pair in CONVERSION_FIGURES.items()
        if set(pair) <= rows[0].figures["all"].keys()
    }
    return "\n".join(each for what, pair in of_what.items() for each in _tables(rows, what, pair))


def _tables(rows: Sequence[Row], what: str, pair: tuple[str, ...]) -> list[str]:
    """The figures of one prediction, and their differences where there are any."""
    header = ["seeds", *(f"{part} {figure.upper()}" for part in PARTS for figure in FIGURES)]
    lines = [[row.name, str(len(row.run_dirs)), *_cells(row.figures, pair, "")] for row in rows]
    tables = [table([f"method{what}", *header], lines)]
    if compared := [row for row in rows if row.differences]:
        lines = [
            [
                f"{row.name} - {row.base}",
                str(len(row.run_dirs)),
                *_cells(row.differences, pair, "+"),
            ]
            for row in compared
        ]
        tables.append(table([f"difference, paired by seed{what}", *header], lines))
    return tables


def _cells(
    figures: dict[str, dict[str, Interval | None]], pair: tuple[str, ...], sign: str
) -> list[str]:
    return [_cell(figures[part][figure], sign) for part in PARTS for figure in pair]


def _cell(interval: Interval | None, sign: str) -> str:
    if interval is None:
        return "-"
    mean = f"{interval.mean:{sign}.4f}"
    return mean if interval.half_width is None else f"{mean} ± {interval.half_width:.4f}"


def table(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table padded to read well as plain text, numbers to the right."""
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        for line in (header, *lines)
    ]
    return "".join("| " + " | ".join(line) + " |\n" for line in (padded[0], rule, *padded[1:]))


def as_json(rows: Sequence[Row]) -> str:
    """The rows as JSON: a list of methods with ``figures`` and ``differences``, None where undefined."""
    return json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False) + "\n"
