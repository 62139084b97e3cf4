"""Pictures of a diagnosis: AUCs by model, cold rows by day, users who are still new."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mail_torchrec.data_check.scan import day_name
from mail_torchrec.diagnose.cold_rows import ColdDay, StayingNew
from mail_torchrec.reporting.figure_style import (
    NEW_USER_COLOUR,
    OLD_USER_COLOUR,
    TEXT_COLOUR,
    save_figure,
    style_axes,
)
from mail_torchrec.reporting.intervals import Interval


def draw_aucs(aucs: Mapping[str, Interval], out_png: Path) -> None:
    """Draws the AUC of each model with its interval, the first model on top.

    Args:
        aucs: by model.
        out_png: the file to write.
    """
    figure, axes = _figure(0.8 + 0.42 * len(aucs))
    for place, interval in enumerate(aucs.values()):
        low, high = interval.low or interval.mean, interval.high or interval.mean
        axes.plot([low, high], [place, place], color=OLD_USER_COLOUR, linewidth=1.6)
        axes.plot([interval.mean], [place], "o", color=OLD_USER_COLOUR, markersize=6)
        axes.annotate(
            f"{interval.mean:.4f}".removeprefix("0"),
            (interval.mean, place),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=TEXT_COLOUR,
        )
    axes.set_yticks(range(len(aucs)), list(aucs), color=TEXT_COLOUR)
    axes.set_ylim(len(aucs) - 0.5, -0.7)
    axes.set_xlabel("AUC, with 95 % intervals over users", color=TEXT_COLOUR)
    style_axes(axes, "x")
    save_figure(figure, out_png)


def draw_days(days: list[ColdDay], new_items: str, out_png: Path) -> None:
    """Draws the shares of rows of new users and of new items by day.

    Args:
        days: in order.
        new_items: name of the second line: what counts as a new item.
        out_png: the file to write.
    """
    figure, axes = _figure(3.2)
    names = [day_name(day.day) for day in days]
    users = [100 * day.new_users for day in days]
    axes.plot(names, users, "o-", color=NEW_USER_COLOUR, markersize=4, label="new users")
    items = [(name, 100 * day.new_items) for name, day in zip(names, days, strict=True)
             if day.new_items is not None]  # fmt: skip
    if items:
        axes.plot(*zip(*items, strict=True), "s-", color=OLD_USER_COLOUR, markersize=4,
                  label=new_items)  # fmt: skip
    axes.set_ylabel("% of the day's rows", color=TEXT_COLOUR)
    axes.set_ylim(bottom=0)
    shown = range(0, len(names), max(1, len(names) // 8))
    axes.set_xticks(list(shown), [names[place] for place in shown])
    axes.legend(frameon=False, fontsize=9)
    style_axes(axes)
    save_figure(figure, out_png)


def draw_staying(staying: StayingNew, out_png: Path) -> None:
    """Draws the share of users who are still new, by days since their first row."""
    figure, axes = _figure(3.2)
    share = [100 * value for value in staying.still_new_D]
    axes.step(range(len(share)), share, where="post", color=NEW_USER_COLOUR, linewidth=1.6)
    axes.set_xlabel("days since a user's first row", color=TEXT_COLOUR)
    axes.set_ylabel("% still new", color=TEXT_COLOUR)
    axes.set_ylim(0, 105)
    style_axes(axes)
    save_figure(figure, out_png)


def _figure(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.6, height), layout="constrained")
    return figure, figure.subplots()
