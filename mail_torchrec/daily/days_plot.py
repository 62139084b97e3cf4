"""Picture of chains of runs: metrics of each day before it is trained on, by cohort."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mail_torchrec.continuation.progressive_record import (
    ALL,
    NEW_ITEMS,
    NEW_USERS,
    OLD_USERS,
    Metrics,
)
from mail_torchrec.reporting.figure_style import (
    NEW_USER_COLOUR,
    OLD_USER_COLOUR,
    TEXT_COLOUR,
    plain_text,
    save_figure,
    style_axes,
)

_COHORTS = {
    ALL: ("all rows", TEXT_COLOUR),
    NEW_USERS: ("new users", NEW_USER_COLOUR),
    OLD_USERS: ("old users", OLD_USER_COLOUR),
    NEW_ITEMS: ("new items", "#8a9a5b"),
}
_LINE_STYLES = ("-", "--", ":", "-.")
_MAX_LABELS = 8


def draw_days(
    chains: Mapping[str, Sequence[tuple[str, Metrics]]], metrics: Mapping[str, str], out_png: Path
) -> None:
    """Draws a panel for each metric: a line a cohort, and a line style a chain.

    Args:
        chains: title -> days in their order, each with its metrics by cohort; those of a day that
            nobody scored are empty.
        metrics: name -> title of the panel.
        out_png: the file to write.
    """
    days = list(dict.fromkeys(day for chain in chains.values() for day, _ in chain))
    figure = Figure(figsize=(9.0, 6.2), layout="constrained")
    panels = figure.subplots(math.ceil(len(metrics) / 2), 2, sharex=True, squeeze=False).ravel()
    for panel, (metric, title) in zip(panels, metrics.items(), strict=True):
        for number, chain in enumerate(chains.values()):
            style = _LINE_STYLES[number % len(_LINE_STYLES)]
            _draw_chain(panel, chain, metric, days, style)
        panel.set_title(title, loc="left", fontsize=10, color=TEXT_COLOUR)
        shown = range(0, len(days), max(1, math.ceil(len(days) / _MAX_LABELS)))
        panel.set_xticks(list(shown), [plain_text(days[i]) for i in shown])
        panel.tick_params(axis="x", rotation=30)
        style_axes(panel)
        panel.set_xlim(-0.5, len(days) - 0.5)
    figure.legend(handles=_legend(list(chains)), loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, out_png)


def _draw_chain(
    panel: Any, chain: Sequence[tuple[str, Metrics]], metric: str, days: list[str], style: str
) -> None:
    for cohort, (_, colour) in _COHORTS.items():
        values = [(days.index(day), of.get(cohort, {}).get(metric)) for day, of in chain]
        known = [(x, y) for x, y in values if y is not None]
        if known:
            xs, ys = zip(*known, strict=True)
            panel.plot(xs, ys, style, marker="o", markersize=4, color=colour, linewidth=1.5)


def _legend(titles: Sequence[str]) -> list[Line2D]:
    cohorts = [Line2D([], [], color=colour, label=name) for name, colour in _COHORTS.values()]
    if len(titles) == 1:
        return cohorts
    styles = (_LINE_STYLES[i % len(_LINE_STYLES)] for i in range(len(titles)))
    named = zip(styles, titles, strict=True)
    return cohorts + [
        Line2D([], [], color=TEXT_COLOUR, linestyle=style, label=plain_text(title))
        for style, title in named
    ]
