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

from mail_torchrec.train.report import Interval, Row, as_json

_TITLES = {
    "loss/L_rt": "ranking, L_rt",
    "loss/L_ctcvr": "click and conversion, L_ctcvr",
    "loss/L_a": "rebuilt from attributes, L_a",
    "loss/L_v": "rebuilt from behaviours, L_v",
    "loss/L_d": "codes apart, L_d",
}
_NEW, _OLD, _INK, _GRID = "#c8553d", "#2f6690", "#333333", "#e4e4e4"
_LOG_SPAN = 8.0  # a loss that spans more than this factor is drawn on a log scale


def draw_loss_curves(metrics_jsonl: Path, out_png: Path) -> None:
    """Draw every loss of a run over the steps, a panel each: each value (pale) and their moving average.

    Args:
        metrics_jsonl: one JSON object a line, ``{"step": 12, "loss/L_rt": 0.69, ...}``; only keys that begin with ``loss/`` are drawn.
        out_png: the picture to write.

    Raises:
        ValueError: the file is missing, a line is no JSON object with a step, or no line has a loss.
    """
    curves = _read_curves(metrics_jsonl)
    columns = min(2, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(4.6 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (name, (steps, values)) in zip(panels, curves.items(), strict=False):
        _draw_curve(panel, name, steps, values)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(curves) - columns) : len(curves)]:
        panel.set_xlabel("step", color=_INK)
    _save(figure, out_png)


def _read_curves(path: Path) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
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
        raise ValueError(f"'{path}' should hold losses ('loss/...'), found none; has the run logged a step?")
    known = [name for name in _TITLES if name in points]
    names = [*known, *sorted(set(points) - set(known))]
    arrays = {name: np.array(points[name], np.float64) for name in names}
    return {name: (array[:, 0], array[:, 1]) for name, array in arrays.items()}


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}', line {number}, is not JSON: {error}; was the run stopped while writing?") from error
    if not isinstance(record, dict) or "step" not in record:
        raise ValueError(f"'{path}', line {number}, should be an object with a 'step', received {line[:80]!r}")
    return record


def _draw_curve(panel: Any, name: str, steps: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive) == len(values) and positive.max() > _LOG_SPAN * positive.min():
        panel.set_yscale("log")
    few = len(values) < 20
    panel.plot(
        steps, values, color=_OLD, alpha=1.0 if few else 0.3, linewidth=1.6 if few else 0.8, marker="o" if few else None, markersize=3
    )
    if not few:
        panel.plot(steps, _smooth(values, max(3, len(values) // 15)), color=_OLD, linewidth=1.8)
    panel.set_title(_TITLES.get(name, name.removeprefix("loss/")), loc="left", fontsize=10, color=_INK)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    _tidy(panel)


def _smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """A centred moving average whose window shrinks at the ends."""
    kernel = np.ones(min(width, len(values)))
    return np.asarray(np.convolve(values, kernel, mode="same") / np.convolve(np.ones(len(values)), kernel, mode="same"))


def draw_comparison(results: Sequence[Row], out_png: Path, figure_name: str = "auc") -> None:
    """Draw methods on the y axis, first on top, with the AUC of new and of old users as dots with 95 % intervals.

    Args:
        results: rows of :func:`mail_torchrec.train.report.compare`; a figure that is None is left out, one seed has no interval.
        out_png: the picture to write.
        figure_name: ``auc`` or ``gauc``.

    Raises:
        ValueError: no rows, or none of them has the figure.
    """
    parts = (("new", "new users", _NEW, -0.13), ("old", "old users", _OLD, 0.13))
    drawn = [(row.figures[part][figure_name], index + shift, part) for index, row in enumerate(results) for part, _, _, shift in parts]
    if not any(interval for interval, _, _ in drawn):
        raise ValueError(
            f"draw_comparison: at least one method should have the figure '{figure_name}', received {[row.name for row in results]}"
        )
    figure = Figure(figsize=(7.2, 1.3 + 0.42 * len(results)), layout="constrained")
    panel = figure.subplots()
    for part, label, colour, _ in parts:
        _draw_dots(panel, [(interval, height) for interval, height, of in drawn if of == part and interval], label, colour)
    panel.set_yticks(range(len(results)), [row.name for row in results])
    panel.set_ylim(len(results) - 0.5, -0.5)
    panel.set_xlabel(f"{figure_name.upper()} on the test rows{_seeds(results)}", color=_INK)
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2, handletextpad=0.4)
    _tidy(panel, axis="x")
    _save(figure, out_png)


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
    whiskers = [interval.half_width or 0.0 for interval, _ in dots]
    panel.errorbar(means, heights, xerr=whiskers, fmt="o", color=colour, markersize=6, elinewidth=1.6, capsize=0, label=label)
    for (interval, height), whisker in zip(dots, whiskers, strict=True):
        place = (interval.mean + whisker, height)
        panel.annotate(f"{interval.mean:.3f}", place, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, color=colour)


def _seeds(results: Sequence[Row]) -> str:
    counts = sorted({len(row.run_dirs) for row in results})
    if counts == [1]:
        return ", one seed"
    return f", mean and 95 % interval over {'-'.join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))} seeds"


def _tidy(panel: Any, axis: str = "y") -> None:
    """Only what is read: a pale grid, no box, dark grey text."""
    panel.grid(axis=axis, color=_GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left" if axis == "x" else "top"):
        panel.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        panel.spines[side].set_color("#999999")
    panel.tick_params(colors=_INK, labelsize=9, length=0)
    panel.margins(x=0.12 if axis == "x" else 0.02)


def _save(figure: Figure, out_png: Path) -> None:
    """Without pyplot there is no global list of figures: this one is freed with its last reference."""
    FigureCanvasAgg(figure)
    figure.savefig(out_png, dpi=150, facecolor="white")
