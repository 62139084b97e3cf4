"""Draws a curve: headroom and AUC of new users, and old users' difference from the plain tower."""

from pathlib import Path

from matplotlib.figure import Figure

from mail_torchrec.reporting.figure_style import TEXT_COLOUR, plain_text, save_figure
from mail_torchrec.reporting.intervals import Interval
from mail_torchrec.reproduce.curves.values import CurveContent
from mail_torchrec.reproduce.methods.definitions import METHODS
from mail_torchrec.reproduce.plots import MetricCurve, draw_curves

_PLAIN_COLOUR, _ORACLE_COLOUR = "#333333", "#999999"
_COLOURS = (
    "#c8553d", "#2f6690", "#3a7d44", "#8d5a97", "#d18f1f", "#17a2a2", "#7a4a2b", "#e07a9b",
)  # fmt: skip


def draw_curve(content: CurveContent, tower: str, out_png: Path) -> bool:
    """Draws the methods of one tower over the points (evenly spaced), with 95 % bands.

    Args:
        content: of the curve.
        tower: title of the ranking tower.
        out_png: file.

    Returns:
        False where the tower has a single method, which has nothing to be compared with.
    """
    methods = [name for name in content.methods if tower in (name, METHODS[name].tower)]
    if len(methods) < 2:
        return False
    remedies = [name for name in methods if name != tower and not METHODS[name].is_oracle]
    colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(remedies)}
    colours |= {tower: _PLAIN_COLOUR, f"{tower} oracle": _ORACLE_COLOUR}

    def curve(name: str, intervals: list[Interval | None]) -> MetricCurve:
        is_bound = name not in remedies
        return MetricCurve(plain_text(name), colours[name], is_bound, intervals)

    panels = {
        "headroom recovered, new users": [
            curve(name, [value.headroom for value in content.along(name)]) for name in remedies
        ],
        "AUC of new users": [
            curve(name, [value.metrics["new"]["auc"] for value in content.along(name)])
            for name in methods
        ],
        f"AUC of old users less {tower}": [
            curve(
                name,
                [value.differences[tower]["old"]["auc"] for value in content.along(name)],
            )
            for name in remedies
            if tower in content.references_of(name)
        ],
    }
    figure = Figure(figsize=(15.6, 4.8), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        draw_curves(axes, curves)
        axes.set_title(plain_text(title), loc="left", fontsize=10, color=TEXT_COLOUR)
        axes.set_xlabel(content.over, color=TEXT_COLOUR)
        axes.set_xticks(range(len(content.points)), list(content.points.values()))
        if "AUC of new users" not in title:
            axes.axhline(0, color=_ORACLE_COLOUR, linewidth=0.8)
        if any(curves):
            axes.legend(loc="best", frameon=False, fontsize=8)
    save_figure(figure, out_png)
    return True
