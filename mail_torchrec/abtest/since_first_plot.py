"""Picture of the read-out by days since the first exposure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mail_torchrec.abtest.arms import ARMS
from mail_torchrec.abtest.estimates import Estimate
from mail_torchrec.abtest.since_first import DAYS, USERS, SinceFirst
from mail_torchrec.abtest.since_first_text import lifts_by_day
from mail_torchrec.reporting.figure_style import (
    NEW_USER_COLOUR,
    OLD_USER_COLOUR,
    TEXT_COLOUR,
    save_figure,
    style_axes,
)

_COLOURS = NEW_USER_COLOUR, OLD_USER_COLOUR


def draw_since_first(found: SinceFirst, out_png: Path) -> None:
    """Draws lifts by days, new users' AUC by arm, and the share of users who are still new."""
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    lifts, aucs, newness = figure.subplots(1, 3)
    _draw_lifts(lifts, found)
    for place, arm in zip((1, 0), ARMS, strict=True):
        days = {day: one.arms[arm].auc for day, one in found.days["new"].items()}
        _draw(aucs, days, place, arm)
        _draw_newness(newness, found.still_new[arm].shares, _COLOURS[place], arm)
    _label(lifts, "lift of the click rate, %", by_days=True)
    _label(aucs, "AUC, users new at first", by_days=True)
    _label(newness, "users still new, %", by_days=False)
    newness.set_ylim(0, 102)
    save_figure(figure, out_png)


def _draw_lifts(axes: Any, found: SinceFirst) -> None:
    axes.axhline(0, color=TEXT_COLOUR, linewidth=0.8)
    for place, users in enumerate(USERS):
        of_days = {
            day: lift and Estimate(lift.value * 100, lift.low * 100, lift.high * 100)
            for day, lift in lifts_by_day(found.days[users]).items()
        }
        _draw(axes, of_days, place, "new at first" if users == "new" else "others")


def _draw_newness(axes: Any, shares: list[float], colour: str, label: str) -> None:
    percents = [share * 100 for share in shares]
    axes.step(range(len(percents)), percents, where="post", color=colour, label=label)


def _label(axes: Any, title: str, *, by_days: bool) -> None:
    style_axes(axes)
    axes.set_title(title, color=TEXT_COLOUR, fontsize=10)
    axes.set_xlabel("days since the first exposure", color=TEXT_COLOUR)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    if by_days:
        axes.set_xticks(range(len(DAYS)), list(DAYS))
        axes.set_xlim(-0.5, len(DAYS) - 0.5)


def _draw(axes: Any, days: Mapping[str, Estimate | None], place: int, label: str) -> None:
    """Draws values with their intervals, those of two sets beside one another."""
    shown = {list(DAYS).index(day): value for day, value in days.items() if value is not None}
    places = [day + 0.14 * (2 * place - 1) for day in shown]
    for at, value in zip(places, shown.values(), strict=True):
        axes.plot([at, at], [value.low, value.high], color=_COLOURS[place], linewidth=2)
    values = [value.value for value in shown.values()]
    if values:
        axes.plot(places, values, "o", color=_COLOURS[place], markersize=5, label=label)
