"""Draws calibration: observed rates against mean predictions, by tenth of the rows.

Shape: ``T`` tenths that have rows.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mail_torchrec.reporting.figure_style import (
    NEW_USER_COLOUR,
    OLD_USER_COLOUR,
    TEXT_COLOUR,
    save_figure,
    style_axes,
)

_COHORT_COLOURS = {"new": NEW_USER_COLOUR, "old": OLD_USER_COLOUR, "all": TEXT_COLOUR}
_MAX_ERRORS = 1.96

Tenths = Sequence[Mapping[str, Any]]
"""``rows``, ``predicted`` and ``observed`` of each tenth."""


def draw_calibration(predictions: Mapping[str, Mapping[str, Tenths]], out_png: Path) -> None:
    """Draws a panel for each prediction, a line for each cohort, with 95 % intervals.

    On the diagonal the observed rate is the predicted one. Both axes are logarithmic.

    Args:
        predictions: name of the probability -> cohort -> its tenths.
        out_png: the file to write.
    """
    size = (4.6 * len(predictions), 4.2)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(predictions), squeeze=False).ravel()
    for panel, (name, cohorts) in zip(panels, predictions.items(), strict=True):
        panel.set_title(f"{name}, by tenth of the rows", loc="left", fontsize=10, color=TEXT_COLOUR)
        _draw_panel(panel, cohorts)
    save_figure(figure, out_png)


def _draw_panel(panel: Any, cohorts: Mapping[str, Tenths]) -> None:
    bounds: list[float] = []
    for cohort, tenths in cohorts.items():
        if cohort not in _COHORT_COLOURS:  # items' cohorts: the panel would be full
            continue
        points = [
            (tenth["predicted"], tenth["observed"], tenth["rows"])
            for tenth in tenths
            if tenth["rows"] and tenth["observed"]  # a rate of 0 has no place on the axis
        ]
        if not points:
            continue
        predicted_T, observed_T, rows_T = np.array(points).T
        errors_T = _MAX_ERRORS * np.sqrt(observed_T * (1 - observed_T) / rows_T)
        panel.errorbar(
            predicted_T,
            observed_T,
            yerr=np.minimum(errors_T, 0.9 * observed_T),
            color=_COHORT_COLOURS[cohort],
            marker="o",
            markersize=4,
            linewidth=1.4,
            elinewidth=0.8,
            label=f"{cohort} rows",
        )
        bounds += [*predicted_T, *observed_T]
    if bounds:
        ends = min(bounds) / 1.3, max(bounds) * 1.3
        panel.plot(ends, ends, color=TEXT_COLOUR, linewidth=0.8, linestyle=":")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.legend(frameon=False, fontsize=9)
    panel.set_xlabel("mean prediction", color=TEXT_COLOUR)
    panel.set_ylabel("observed rate", color=TEXT_COLOUR)
    style_axes(panel)
