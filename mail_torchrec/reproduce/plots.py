"""Pictures of a reproduction: clouds of users, and quality while users warm up."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mail_torchrec.reporting.comparison import Interval
from mail_torchrec.reporting.plots import INK, NEW, OLD, save, tidy

_COLOURS = {"real": OLD, "virtual": NEW, "old users": OLD, "new users": NEW}


@dataclass(frozen=True)
class Cloud:
    """Two sets of points on one plane."""

    title: str
    labels: tuple[str, str]
    first_N2: NDArray[np.float64]
    second_M2: NDArray[np.float64]


def draw_clouds(clouds: Sequence[Cloud], out_png: Path) -> None:
    """Draws a panel each, points half transparent; t-SNE's axes mean nothing and are left out."""
    figure = Figure(figsize=(4.6 * len(clouds), 4.6), layout="constrained")
    for panel, cloud in zip(figure.subplots(1, len(clouds), squeeze=False)[0], clouds, strict=True):
        # One call for both sets, the points mixed, so that none covers the other.
        places_P2 = np.concatenate([cloud.first_N2, cloud.second_M2])
        colours = np.repeat(
            [_COLOURS[label] for label in cloud.labels], [len(cloud.first_N2), len(cloud.second_M2)]
        )
        order = np.random.default_rng(0).permutation(len(places_P2))
        panel.scatter(*places_P2[order].T, c=colours[order], s=9, alpha=0.5, linewidths=0)
        for label in cloud.labels:
            panel.scatter([], [], c=_COLOURS[label], s=20, label=label)
        panel.set_title(cloud.title, loc="left", fontsize=10, color=INK)
        panel.legend(
            loc="best",
            frameon=True,
            edgecolor="none",
            framealpha=0.8,
            fontsize=9,
            handletextpad=0.2,
        )
        panel.set_xticks([])
        panel.set_yticks([])
        for side in panel.spines.values():
            side.set_color("#e4e4e4")
    save(figure, out_png)


@dataclass(frozen=True)
class Curve:
    """A figure of new users for each number of real behaviours; None where there is none."""

    label: str
    colour: str
    dashed: bool
    intervals: list[Interval | None]


@dataclass(frozen=True)
class WarmupPanel:
    """A method's curves, and those of the differences from virtual behaviours (there may be none)."""

    title: str
    curves: list[Curve]
    over_virtual: list[Curve]


def draw_warmup(panels: Sequence[WarmupPanel], kept: Sequence[int], out_png: Path) -> None:
    """Draws new users' AUC over the number of real behaviours that they have (evenly spaced), with 95 % bands.

    Below it stand the differences from virtual behaviours, whose bands are narrower: what the users
    share cancels.
    """
    figure = Figure(figsize=(5.2 * len(panels), 6.0), layout="constrained")
    for (above, below), panel in zip(
        figure.subplots(2, len(panels), squeeze=False, sharex=True).T, panels, strict=True
    ):
        for axes, curves in ((above, panel.curves), (below, panel.over_virtual)):
            for curve in curves:
                _draw_curve(axes, curve)
            tidy(axes)
            axes.margins(x=0.04)
        above.set_title(panel.title, loc="left", fontsize=10, color=INK)
        above.set_ylabel("AUC of new users", color=INK)
        above.legend(loc="best", frameon=False, fontsize=9)
        below.axhline(0, color=NEW, linestyle="--", linewidth=1.8)
        below.set_ylabel("AUC less that on virtual ones", color=INK)
        below.set_xlabel("newest real behaviours that new users have", color=INK)
        below.set_xticks(range(len(kept)), [str(number) for number in kept])
    save(figure, out_png)


def _draw_curve(panel: Any, curve: Curve) -> None:
    points = [(place, interval) for place, interval in enumerate(curve.intervals) if interval]
    places = [place for place, _ in points]
    style = {"linestyle": "--"} if curve.dashed else {"marker": "o", "markersize": 4}
    panel.plot(
        places,
        [interval.mean for _, interval in points],
        color=curve.colour,
        linewidth=1.8,
        label=curve.label,
        **style,
    )
    banded = [
        (place, interval.low, interval.high)
        for place, interval in points
        if interval.low is not None
    ]
    if banded:
        panel.fill_between(*zip(*banded, strict=True), color=curve.colour, alpha=0.15, linewidth=0)
