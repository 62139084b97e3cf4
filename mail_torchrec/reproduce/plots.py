"""Draws the plots of a reproduction: scatter plots of users, and AUC while users warm up.

Shape letters: ``N``, ``M`` points of two sets, ``P`` points of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mail_torchrec.reporting.figure_style import (
    NEW_USER_COLOUR,
    OLD_USER_COLOUR,
    TEXT_COLOUR,
    save_figure,
    style_axes,
)
from mail_torchrec.reporting.intervals import Interval

_COLOURS = {
    "real": OLD_USER_COLOUR,
    "virtual": NEW_USER_COLOUR,
    "old users": OLD_USER_COLOUR,
    "new users": NEW_USER_COLOUR,
}
_SPINE_COLOUR = "#e4e4e4"


@dataclass(frozen=True)
class ScatterPanel:
    """Two sets of points on one plane."""

    title: str
    labels: tuple[str, str]
    first_N2: NDArray[np.float64]
    second_M2: NDArray[np.float64]


def draw_scatter(panels: Sequence[ScatterPanel], out_png: Path) -> None:
    """Draws points half transparent, a panel a pair; t-SNE's axes mean nothing and are left out."""
    figure = Figure(figsize=(4.6 * len(panels), 4.6), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_points(axes, panel)
        axes.set_title(panel.title, loc="left", fontsize=10, color=TEXT_COLOUR)
        frame = {"frameon": True, "edgecolor": "none", "framealpha": 0.8}
        axes.legend(loc="best", fontsize=9, handletextpad=0.2, **frame)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(_SPINE_COLOUR)
    save_figure(figure, out_png)


def _draw_points(axes: Any, panel: ScatterPanel) -> None:
    """Draws both sets in one call and in mixed order, so that none covers the other."""
    points_P2 = np.concatenate([panel.first_N2, panel.second_M2])
    sizes = [len(panel.first_N2), len(panel.second_M2)]
    colours_P = np.repeat([_COLOURS[label] for label in panel.labels], sizes)
    order_P = np.random.default_rng(0).permutation(len(points_P2))
    axes.scatter(*points_P2[order_P].T, c=colours_P[order_P], s=9, alpha=0.5, linewidths=0)
    for label in panel.labels:
        axes.scatter([], [], c=_COLOURS[label], s=20, label=label)


@dataclass(frozen=True)
class MetricCurve:
    """A metric at each place of the axis; None where there is none."""

    label: str
    colour: str
    dashed: bool
    intervals: list[Interval | None]


@dataclass(frozen=True)
class WarmupPanel:
    """A method's curves, and those of the differences from virtual behaviours (possibly none)."""

    title: str
    curves: list[MetricCurve]
    over_virtual: list[MetricCurve]


def draw_warmup(panels: Sequence[WarmupPanel], kept: Sequence[int], out_png: Path) -> None:
    """Draws new users' AUC over their number of real behaviours (evenly spaced), with 95 % bands.

    Below it stand the differences from virtual behaviours, whose bands are narrower: what the users
    share cancels.
    """
    figure = Figure(figsize=(5.2 * len(panels), 6.0), layout="constrained")
    columns = figure.subplots(2, len(panels), squeeze=False, sharex=True).T
    for (above, below), panel in zip(columns, panels, strict=True):
        draw_curves(above, panel.curves)
        draw_curves(below, panel.over_virtual)
        above.set_title(panel.title, loc="left", fontsize=10, color=TEXT_COLOUR)
        above.set_ylabel("AUC of new users", color=TEXT_COLOUR)
        above.legend(loc="best", frameon=False, fontsize=9)
        below.axhline(0, color=NEW_USER_COLOUR, linestyle="--", linewidth=1.8)
        below.set_ylabel("AUC less that on virtual ones", color=TEXT_COLOUR)
        below.set_xlabel("newest real behaviours that new users have", color=TEXT_COLOUR)
        below.set_xticks(range(len(kept)), [str(number) for number in kept])
    save_figure(figure, out_png)


def draw_curves(axes: Any, curves: Sequence[MetricCurve]) -> None:
    """Draws curves with 95 % bands at the places 0, 1, 2, ... of a panel.

    Args:
        axes: a Matplotlib ``Axes``.
        curves: of it.
    """
    for curve in curves:
        _draw_curve(axes, curve)
    style_axes(axes)
    axes.margins(x=0.04)


def _draw_curve(axes: Any, curve: MetricCurve) -> None:
    points = [(place, interval) for place, interval in enumerate(curve.intervals) if interval]
    places = [place for place, _ in points]
    means = [interval.mean for _, interval in points]
    style = {"linestyle": "--"} if curve.dashed else {"marker": "o", "markersize": 4}
    axes.plot(places, means, color=curve.colour, linewidth=1.8, label=curve.label, **style)
    banded = [
        (place, interval.low, interval.high)
        for place, interval in points
        if interval.low is not None
    ]
    if banded:
        axes.fill_between(*zip(*banded, strict=True), color=curve.colour, alpha=0.15, linewidth=0)
