"""Plot of the lifts of an A/B test."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from mail_torchrec.abtest.estimates import Estimate
from mail_torchrec.reporting.figure_style import (
    NEW_USER_COLOUR,
    OLD_USER_COLOUR,
    TEXT_COLOUR,
    save_figure,
    style_axes,
)


def draw_lifts(lifts: Mapping[str, Estimate | None], out_png: Path) -> None:
    """Draws each lift as a point with its interval, from top to bottom; None leaves a gap."""
    figure = Figure(figsize=(7.2, 1.1 + 0.36 * len(lifts)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=TEXT_COLOUR, linewidth=0.8)
    for place, lift in enumerate(lifts.values()):
        if lift is None:
            continue
        is_significant = not lift.low <= 0 <= lift.high
        colour = NEW_USER_COLOUR if is_significant else OLD_USER_COLOUR
        interval = [lift.low * 100, lift.high * 100]
        axes.plot(interval, [place, place], color=colour, linewidth=2.2)
        axes.plot(lift.value * 100, place, "o", color=colour, markersize=6)
    style_axes(axes)
    axes.set_yticks(range(len(lifts)), list(lifts))
    axes.set_ylim(len(lifts) - 0.5, -0.5)
    axes.set_xlabel(
        "lift of the candidate over the base, %, 95 % intervals (red: clear of 0)",
        color=TEXT_COLOUR,
    )
    save_figure(figure, out_png)
