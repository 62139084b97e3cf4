"""Draws the plots of a bench: rows a second, parts of a step, and scaling."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from mail_torchrec.reporting.figure_style import (
    NEW_USER_COLOUR,
    OLD_USER_COLOUR,
    TEXT_COLOUR,
    save_figure,
    style_axes,
)
from tools.benchmark.step_breakdown import PARTS
from tools.benchmark.trainers import REFERENCE

_REFERENCE_COLOUR, _OWN_COLOUR = NEW_USER_COLOUR, OLD_USER_COLOUR
_PART_COLOURS = {
    "input": "#8c8c8c",
    "lookup": "#e0a458",
    "zero_shot": NEW_USER_COLOUR,
    "ranking": OLD_USER_COLOUR,
    "backward": "#7fb069",
    "optimizer": "#b07aa1",
    "communication": "#4d4d4d",
    "other": "#d9d9d9",
}


def draw_throughput(speeds: dict[str, Any], out_png: Path) -> None:
    """Draws rows a second of each trainer as a bar, the range of the repeats as a line."""
    figure = Figure(figsize=(6.4, 0.9 + 0.5 * len(speeds)), layout="constrained")
    panel = figure.subplots()
    for line, (name, speed) in enumerate(speeds.items()):
        low, high = min(speed["rows_per_second"]), max(speed["rows_per_second"])
        colour = _REFERENCE_COLOUR if name == REFERENCE else _OWN_COLOUR
        panel.barh(line, speed["median"], height=0.55, color=colour)
        panel.plot([low, high], [line, line], color=TEXT_COLOUR, linewidth=1.2)
        offset: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        text = f"{speed['median']:,.0f}"
        panel.annotate(text, (high, line), fontsize=9, color=TEXT_COLOUR, **offset)
    panel.set_xlabel("rows a second, median and range of the repeats", color=TEXT_COLOUR)
    _finish_bars(panel, list(speeds))
    save_figure(figure, out_png)


def draw_breakdown(breakdown: dict[str, dict[str, float]], out_png: Path) -> None:
    """Draws a bar for each trainer, its parts end to end."""
    figure = Figure(figsize=(7.6, 1.4 + 0.5 * len(breakdown)), layout="constrained")
    panel = figure.subplots()
    for line, parts in enumerate(breakdown.values()):
        left = 0.0
        for part in PARTS:
            width = 1000 * parts[part]
            label = part if line == 0 else None
            style: dict[str, Any] = {"height": 0.55, "color": _PART_COLOURS[part]}
            panel.barh(line, width, left=left, label=label, **style)
            left += width
    panel.set_xlabel("milliseconds a step", color=TEXT_COLOUR)
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=9)
    _finish_bars(panel, list(breakdown))
    save_figure(figure, out_png)


def _finish_bars(panel: Any, names: list[str]) -> None:
    """Names the bars, the first one at the top."""
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    style_axes(panel, axis="x")
    panel.set_xlim(left=0)


def draw_scaling(scaling: dict[str, list[dict[str, Any]]], out_png: Path) -> None:
    """Draws seconds a step over the value of each axis, a panel each, both logarithmic.

    Peak memory is written beside the points.
    """
    figure = Figure(figsize=(3.4 * len(scaling), 3.2), layout="constrained")
    panels = figure.subplots(1, len(scaling), squeeze=False)[0]
    for panel, (axis, points) in zip(panels, scaling.items(), strict=True):
        _draw_axis(panel, axis, points)
    figure.supylabel("seconds a step", fontsize=10, color=TEXT_COLOUR)
    save_figure(figure, out_png)


def _draw_axis(panel: Any, axis: str, points: list[dict[str, Any]]) -> None:
    values = [point["value"] for point in points]
    seconds = [point["seconds_per_step"] for point in points]
    panel.loglog(values, seconds, color=_OWN_COLOUR, marker="o", markersize=4, linewidth=1.8)
    offset: dict[str, Any] = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
    for place, point in zip(zip(values, seconds, strict=True), points, strict=True):
        text = f"{point['peak_bytes'] / 2**30:.1f} GiB"
        panel.annotate(text, place, fontsize=8, color=TEXT_COLOUR, **offset)
    panel.set_xticks(values, [f"{value:,}" for value in values])
    panel.xaxis.set_minor_locator(NullLocator())
    for set_formatter in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
        set_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_title(axis, loc="left", fontsize=10, color=TEXT_COLOUR)
    panel.set_ylim(min(seconds) / 2, max(seconds) * 2)
    style_axes(panel)
    panel.margins(x=0.15)
