"""Plots methods side by side, and writes a comparison as Markdown, JSON and PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mail_torchrec.reporting.comparison import MethodResult, as_json
from mail_torchrec.reporting.figure_style import (
    NEW_USER_COLOUR,
    OLD_USER_COLOUR,
    TEXT_COLOUR,
    plain_text,
    save_figure,
    style_axes,
)
from mail_torchrec.reporting.intervals import Interval
from mail_torchrec.utils.local_path import make_output_dir
from mail_torchrec.utils.run_files import write_report_file

_COHORT_STYLES = (("new", NEW_USER_COLOUR, -0.13), ("old", OLD_USER_COLOUR, 0.13))
"""Cohort of users, its colour, and the vertical offset of its dots within a method's line."""


def draw_comparison(
    results: Sequence[MethodResult],
    out_png: Path,
    metric: str = "auc",
    over: str | None = None,
    cohorts_of: str = "users",
) -> None:
    """Draws the AUC of new and of old users (or items) of each method as dots with 95 % intervals.

    Args:
        results: methods, the first one at the top; a metric that is None is left out, an interval
            without ends is drawn as a dot.
        out_png: the file to write.
        metric: ``auc`` or ``gauc``.
        over: the x label's words for what means and intervals are taken over; by default the number
            of seeds of the methods.
        cohorts_of: users or items.

    Raises:
        ValueError: there are no methods, or none of them has the metric.
    """
    dots = {
        cohort: [
            (interval, line + offset)
            for line, result in enumerate(results)
            if (interval := result.metrics[cohort][metric])
        ]
        for cohort, _, offset in _COHORT_STYLES
    }
    if not any(dots.values()):
        raise ValueError(
            f"draw_comparison: at least one method should have the metric '{metric}', "
            f"received {[result.name for result in results]}"
        )
    figure = Figure(figsize=(7.2, 1.3 + 0.42 * len(results)), layout="constrained")
    panel = figure.subplots()
    for cohort, colour, _ in _COHORT_STYLES:
        _draw_dots(panel, dots[cohort], f"{cohort} {cohorts_of}", colour)
    panel.set_yticks(range(len(results)), [plain_text(result.title) for result in results])
    panel.set_ylim(len(results) - 0.5, -0.5)
    label = f"{metric.upper()} on the test rows{_over_text(results, over)}"
    panel.set_xlabel(label, color=TEXT_COLOUR, loc="right")  # may be wider than the panel
    _add_legend(panel)
    style_axes(panel, axis="x")
    save_figure(figure, out_png)


def write_comparison(results: Sequence[MethodResult], text: str, out: Path) -> list[Path]:
    """Writes ``comparison.md`` (the text), ``comparison.json`` and ``comparison.png``.

    Args:
        results: of :func:`~mail_torchrec.reporting.comparison.compare`.
        text: the same as Markdown.
        out: a folder, made where it is missing.

    Returns:
        The paths of the three files.
    """
    make_output_dir(out)
    paths = [out / f"comparison.{kind}" for kind in ("md", "json", "png")]
    write_report_file(paths[0], text)
    write_report_file(paths[1], as_json(results))
    draw_comparison(results, paths[2])
    return paths


def _draw_dots(panel: Any, dots: list[tuple[Interval, float]], label: str, colour: str) -> None:
    """Draws intervals at the given heights, each with its mean written beside it."""
    means_D = np.array([interval.mean for interval, _ in dots])
    ends_D2 = np.array([_ends(interval) for interval, _ in dots]).reshape(-1, 2)
    # Lengths to the left and to the right of the mean: those of a bootstrap interval differ.
    whiskers_2D = np.maximum([means_D - ends_D2[:, 0], ends_D2[:, 1] - means_D], 0)
    line_style = {"fmt": "o", "markersize": 6, "elinewidth": 1.6, "capsize": 0}
    heights = [height for _, height in dots]
    panel.errorbar(means_D, heights, xerr=whiskers_2D, color=colour, label=label, **line_style)
    for interval, height in dots:
        text, place = f"{interval.mean:.3f}", (_ends(interval)[1], height)
        offset = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        panel.annotate(text, place, fontsize=8, color=colour, **offset)


def _ends(interval: Interval) -> tuple[float, float]:
    if interval.low is None or interval.high is None:
        return interval.mean, interval.mean
    return interval.low, interval.high


def _add_legend(panel: Any) -> None:
    """Puts the legend above the panel."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    panel.legend(ncols=2, frameon=False, handletextpad=0.4, **place)


def _over_text(results: Sequence[MethodResult], over: str | None) -> str:
    if over is not None:
        return f", mean and 95 % interval over {over}"
    counts = sorted({len(result.run_dirs) for result in results})
    if counts == [1]:
        return ", one seed"
    numbers = "-".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    return f", mean and 95 % interval over {numbers} seeds"
