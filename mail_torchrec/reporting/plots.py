"""Figures as PNG: the losses of a run, and methods side by side."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mail_torchrec.reporting.comparison import Interval, Row, as_json

_TITLES = {
    "loss/L_rt": "ranking, L_rt",
    "loss/L_ctcvr": "click and conversion, L_ctcvr",
    "loss/L_a": "rebuilt from attributes, L_a",
    "loss/L_v": "rebuilt from behaviours, L_v",
    "loss/L_d": "codes apart, L_d",
    "loss/L_match": "the next behaviour, L_match",
    "loss/L_meta": "generated ids, L_meta",
    "loss/L_new_rt": "ranking as of new users, L_new_rt",
    "loss/L_new_ctcvr": "click and conversion as of new users, L_new_ctcvr",
}
NEW, OLD, INK = "#c8553d", "#2f6690", "#333333"
"""Colours of new users, old users and text."""
_GRID = "#e4e4e4"
_LOG_SPAN = 8.0  # a loss that spans more than this factor is drawn on a log scale

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and values."""


def draw_loss_curves(logs: Sequence[Path], out_png: Path) -> None:
    """Draw every loss over the steps, a panel each.

    Of one run each value (pale) and their moving average, of several the mean of their moving
    averages and the band that holds them all.

    Args:
        logs: of runs of one method, one JSON object a line, ``{"step": 12, "loss/L_rt": 0.69,
            ...}``; keys that begin with ``loss/`` are drawn.
        out_png: the picture to write.

    Raises:
        ValueError: a file is missing, a line is no JSON object with a step, no line has a loss, or
            the runs differ in steps or losses.
    """
    curves = _together(logs, [_read_curves(log) for log in logs])
    columns = min(2, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(4.6 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (name, (steps_P, values_SP)) in zip(panels, curves.items(), strict=False):
        _draw_curve(panel, name, steps_P, values_SP)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(curves) - columns) : len(curves)]:
        panel.set_xlabel("step", color=INK)
    save(figure, out_png)


def _read_curves(path: Path) -> dict[str, Curve]:
    """Loss name -> steps and values, the ranking loss first."""
    if not path.exists():
        raise ValueError(f"'{path}' does not exist; has the run logged a step?")
    points: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        record = _record(path, number, line)
        for name, value in record.items():
            if name.startswith("loss/") and value is not None:
                points.setdefault(name, []).append((float(record["step"]), float(value)))
    if not points:
        raise ValueError(
            f"'{path}' should hold losses ('loss/...'), found none; has the run logged a step?"
        )
    known = [name for name in _TITLES if name in points]
    names = [*known, *sorted(set(points) - set(known))]
    arrays = {name: np.array(points[name], np.float64) for name in names}
    return {name: (array[:, 0], array[:, 1]) for name, array in arrays.items()}


def _together(logs: Sequence[Path], runs: Sequence[dict[str, Curve]]) -> dict[str, Curve]:
    """Loss name -> the steps, and the values of all runs [S, P]."""
    for log, run in zip(logs, runs, strict=True):
        if run.keys() != runs[0].keys() or any(
            not np.array_equal(run[name][0], runs[0][name][0]) for name in run
        ):
            raise ValueError(
                f"'{log}' should have the steps and losses of '{logs[0]}'; are these runs of one "
                "method?"
            )
    return {
        name: (steps_P, np.stack([run[name][1] for run in runs]))
        for name, (steps_P, _) in runs[0].items()
    }


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"'{path}', line {number}, is not JSON: {error}; was the run stopped while writing?"
        ) from error
    if not isinstance(record, dict) or "step" not in record:
        raise ValueError(
            f"'{path}', line {number}, should be an object with a 'step', received {line[:80]!r}"
        )
    return record


def _draw_curve(
    panel: Any, name: str, steps_P: NDArray[np.float64], values_SP: NDArray[np.float64]
) -> None:
    positive = values_SP[np.isfinite(values_SP) & (values_SP > 0)]
    if len(positive) == values_SP.size and positive.max() > _LOG_SPAN * positive.min():
        panel.set_yscale("log")
    few = len(steps_P) < 20
    smooth_SP = (
        values_SP
        if few
        else np.stack([_smooth(values, max(3, len(values) // 15)) for values in values_SP])
    )
    if len(values_SP) > 1:
        panel.fill_between(
            steps_P, smooth_SP.min(0), smooth_SP.max(0), color=OLD, alpha=0.2, linewidth=0
        )
    elif not few:
        panel.plot(steps_P, values_SP[0], color=OLD, alpha=0.3, linewidth=0.8)
    panel.plot(
        steps_P,
        smooth_SP.mean(0),
        color=OLD,
        linewidth=1.8,
        marker="o" if few else None,
        markersize=3,
    )
    panel.set_title(
        _TITLES.get(name, name.removeprefix("loss/")), loc="left", fontsize=10, color=INK
    )
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    tidy(panel)


def _smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """A centred moving average whose window shrinks at the ends."""
    kernel = np.ones(min(width, len(values)))
    return np.asarray(
        np.convolve(values, kernel, mode="same")
        / np.convolve(np.ones(len(values)), kernel, mode="same")
    )


def draw_comparison(
    results: Sequence[Row], out_png: Path, figure_name: str = "auc", over: str | None = None
) -> None:
    """Draw methods on the y axis, first on top, with the AUC of new and of old users as dots with 95 % intervals.

    Args:
        results: methods; a figure that is None is left out, an interval without ends is a dot.
        out_png: the picture to write.
        figure_name: ``auc`` or ``gauc``.
        over: what means and intervals are over; by default so many seeds as the methods have runs.

    Raises:
        ValueError: no rows, or none of them has the figure.
    """
    parts = (("new", "new users", NEW, -0.13), ("old", "old users", OLD, 0.13))
    drawn = [
        (row.figures[part][figure_name], index + shift, part)
        for index, row in enumerate(results)
        for part, _, _, shift in parts
    ]
    if not any(interval for interval, _, _ in drawn):
        raise ValueError(
            f"draw_comparison: at least one method should have the figure '{figure_name}', "
            f"received {[row.name for row in results]}"
        )
    figure = Figure(figsize=(7.2, 1.3 + 0.42 * len(results)), layout="constrained")
    panel = figure.subplots()
    for part, label, colour, _ in parts:
        _draw_dots(
            panel,
            [(interval, height) for interval, height, of in drawn if of == part and interval],
            label,
            colour,
        )
    panel.set_yticks(range(len(results)), [row.name for row in results])
    panel.set_ylim(len(results) - 0.5, -0.5)
    panel.set_xlabel(f"{figure_name.upper()} on the test rows{_over(results, over)}", color=INK)
    panel.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        borderaxespad=0.2,
        handletextpad=0.4,
    )
    tidy(panel, axis="x")
    save(figure, out_png)


def write_comparison(results: Sequence[Row], text: str, out: Path) -> list[Path]:
    """Write ``comparison.md`` (the text), ``comparison.json`` and ``comparison.png`` into a folder, and return their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"comparison.{kind}" for kind in ("md", "json", "png")]
    paths[0].write_text(text)
    paths[1].write_text(as_json(results))
    draw_comparison(results, paths[2])
    return paths


def _draw_dots(panel: Any, dots: list[tuple[Interval, float]], label: str, colour: str) -> None:
    means, heights = [interval.mean for interval, _ in dots], [height for _, height in dots]
    ends = [
        (interval.mean, interval.mean) if interval.low is None else (interval.low, interval.high)
        for interval, _ in dots
    ]
    ends_D2 = np.array(ends).reshape(-1, 2)
    whiskers = np.maximum(
        [means - ends_D2[:, 0], ends_D2[:, 1] - means], 0
    )  # to the left, to the right: a bootstrap's differ
    panel.errorbar(
        means,
        heights,
        xerr=whiskers,
        fmt="o",
        color=colour,
        markersize=6,
        elinewidth=1.6,
        capsize=0,
        label=label,
    )
    for (interval, height), (_, end) in zip(dots, ends, strict=True):
        place = (end, height)
        panel.annotate(
            f"{interval.mean:.3f}",
            place,
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
        )


def _over(results: Sequence[Row], over: str | None) -> str:
    if over is not None:
        return f", mean and 95 % interval over {over}"
    counts = sorted({len(row.run_dirs) for row in results})
    if counts == [1]:
        return ", one seed"
    return (
        ", mean and 95 % interval over "
        f"{'-'.join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))} seeds"
    )


def tidy(panel: Any, axis: str = "y") -> None:
    """Only what is read: a pale grid, no box, dark grey text."""
    panel.grid(axis=axis, color=_GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left" if axis == "x" else "top"):
        panel.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        panel.spines[side].set_color("#999999")
    panel.tick_params(colors=INK, labelsize=9, length=0)
    panel.margins(x=0.12 if axis == "x" else 0.02)


def save(figure: Figure, out_png: Path) -> None:
    """Writes a picture.

    Without pyplot there is no global list of figures: this one is freed with its last reference.
    """
    FigureCanvasAgg(figure)
    figure.savefig(out_png, dpi=150, facecolor="white")
