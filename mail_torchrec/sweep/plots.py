"""Pictures of a sweep: validation by trial, and by setting."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mail_torchrec.reporting.figure_style import (
    NEW_USER_COLOUR,
    OLD_USER_COLOUR,
    TEXT_COLOUR,
    plain_text,
    save_figure,
    style_axes,
)
from mail_torchrec.sweep.study import direction, objective

_NUM_COLUMNS = 3
_Trial = dict[str, Any]


def draw_history(trials: Sequence[_Trial], metric: str, cohort: str, out_png: Path) -> None:
    """Draws the validation of each trial in their order, and the best so far.

    Args:
        trials: as in ``sweep.json``.
        metric: of the sweep.
        cohort: of the metric.
        out_png: the file to write.
    """
    shown = [trial for trial in trials if trial["validation"] is not None]
    figure = Figure(figsize=(7, 3), layout="constrained")
    panel = figure.subplots()
    _draw_dots(panel, shown, [trial["number"] for trial in shown])
    finished = [trial for trial in shown if trial["state"] == "finished"]
    numbers, values = zip(*_best_so_far(finished, metric), strict=True)
    panel.step(numbers, values, where="post", color=NEW_USER_COLOUR, linewidth=1.5)
    panel.set_title(f"{metric} of {cohort} validation rows", loc="left", fontsize=10)
    panel.set_xlabel("trial", color=TEXT_COLOUR)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(panel)
    save_figure(figure, out_png)


def draw_settings(trials: Sequence[_Trial], metric: str, out_png: Path) -> None:
    """Draws the validation over the values of each setting, a panel each.

    Args:
        trials: as in ``sweep.json``.
        metric: of the sweep.
        out_png: the file to write.
    """
    shown = [trial for trial in trials if trial["validation"] is not None]
    keys = list(shown[0]["settings"])
    num_columns = min(_NUM_COLUMNS, len(keys))
    num_rows = math.ceil(len(keys) / num_columns)
    figure = Figure(figsize=(3.4 * num_columns, 2.6 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True).ravel()
    for panel, key in zip(panels, keys, strict=False):
        _draw_setting(panel, key, shown)
    for panel in panels[len(keys) :]:
        panel.set_axis_off()
    figure.supylabel(metric, fontsize=9, color=TEXT_COLOUR)
    save_figure(figure, out_png)


def _draw_setting(panel: Any, key: str, trials: Sequence[_Trial]) -> None:
    values = [trial["settings"][key] for trial in trials]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        if min(values) > 0 and max(values) > 8 * min(values):
            panel.set_xscale("log")
        _draw_dots(panel, trials, values)
    else:
        names = sorted({json.dumps(value) for value in values})
        _draw_dots(panel, trials, [names.index(json.dumps(value)) for value in values])
        panel.set_xticks(range(len(names)), [plain_text(name[:24]) for name in names])
    panel.set_title(plain_text(key), loc="left", fontsize=9, color=TEXT_COLOUR)
    style_axes(panel)


def _draw_dots(panel: Any, trials: Sequence[_Trial], places: Sequence[float]) -> None:
    """Draws finished trials as filled dots, stopped ones as hollow dots."""
    for trial, place in zip(trials, places, strict=True):
        face = OLD_USER_COLOUR if trial["state"] == "finished" else "none"
        panel.plot(
            place,
            trial["validation"],
            marker="o",
            markersize=5,
            markerfacecolor=face,
            markeredgecolor=OLD_USER_COLOUR,
        )


def _best_so_far(trials: Sequence[_Trial], metric: str) -> list[tuple[int, float]]:
    found: list[tuple[int, float]] = []
    sign = 1 if direction(metric) == "maximize" else -1
    for trial in trials:
        value = trial["validation"]
        if found and sign * objective(metric, found[-1][1]) > sign * objective(metric, value):
            value = found[-1][1]
        found.append((trial["number"], value))
    return found
