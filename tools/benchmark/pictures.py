"""Pictures of a run: rows a second, where a step's time goes, how its cost grows."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from mail_torchrec.reporting.plots import INK, NEW, OLD, save, tidy
from tools.benchmark.sides import REFERENCE
from tools.benchmark.split import PARTS

_COLOURS = dict(
    zip(PARTS, ("#8c8c8c", "#e0a458", NEW, OLD, "#7fb069", "#b07aa1", "#4d4d4d", "#d9d9d9"), strict=True)
)  # fmt: skip


def draw_rates(sides: dict[str, Any], out_png: Path) -> None:
    """Rows a second of each side, the range of the repeats as a line."""
    figure = Figure(figsize=(6.4, 0.9 + 0.5 * len(sides)), layout="constrained")
    panel = figure.subplots()
    for place, (name, rate) in enumerate(sides.items()):
        low, high = min(rate["rows_per_second"]), max(rate["rows_per_second"])
        panel.barh(place, rate["median"], height=0.55, color=NEW if name == REFERENCE else OLD)
        panel.plot([low, high], [place, place], color=INK, linewidth=1.2)
        panel.annotate(
            f"{rate['median']:,.0f}",
            (high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    panel.set_yticks(range(len(sides)), list(sides))
    panel.invert_yaxis()
    panel.set_xlabel("rows a second, median and range of the repeats", color=INK)
    tidy(panel, axis="x")
    panel.set_xlim(left=0)
    save(figure, out_png)


def draw_split(split: dict[str, dict[str, float]], out_png: Path) -> None:
    """A bar a side, its parts end to end."""
    figure = Figure(figsize=(7.6, 1.4 + 0.5 * len(split)), layout="constrained")
    panel = figure.subplots()
    for place, parts in enumerate(split.values()):
        left = 0.0
        for part in PARTS:
            panel.barh(
                place,
                1000 * parts[part],
                left=left,
                height=0.55,
                color=_COLOURS[part],
                label=part if place == 0 else None,
            )
            left += 1000 * parts[part]
    panel.set_yticks(range(len(split)), list(split))
    panel.invert_yaxis()
    panel.set_xlabel("milliseconds a step", color=INK)
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=9)
    tidy(panel, axis="x")
    panel.set_xlim(left=0)
    save(figure, out_png)


def draw_growth(growth: dict[str, list[dict[str, Any]]], out_png: Path) -> None:
    """A panel an axis: seconds a step over the value, both logarithmic, and peak memory written beside the points."""
    figure = Figure(figsize=(3.4 * len(growth), 3.2), layout="constrained")
    for panel, (axis, points) in zip(
        figure.subplots(1, len(growth), squeeze=False)[0], growth.items(), strict=True
    ):
        values, seconds = (
            [point["value"] for point in points],
            [point["seconds_per_step"] for point in points],
        )
        panel.loglog(values, seconds, color=OLD, marker="o", markersize=4, linewidth=1.8)
        for point in points:
            place = (point["value"], point["seconds_per_step"])
            text = f"{point['peak_bytes'] / 2**30:.1f} GiB"
            panel.annotate(
                text,
                place,
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=INK,
            )
        panel.set_xticks(values, [f"{value:,}" for value in values])
        panel.xaxis.set_minor_locator(NullLocator())
        for set_formatter in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            set_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.set_title(axis, loc="left", fontsize=10, color=INK)
        panel.set_ylim(min(seconds) / 2, max(seconds) * 2)
        tidy(panel)
        panel.margins(x=0.15)
    figure.supylabel("seconds a step", fontsize=10, color=INK)
    save(figure, out_png)
