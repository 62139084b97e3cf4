"""Picture of measured plans: measured over estimated time of a step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mail_torchrec.planning.measured.measurements import MeasuredPlan, spearman
from mail_torchrec.reporting.figure_style import (
    TEXT_COLOUR,
    plain_text,
    save_figure,
    style_axes,
)

_COLOURS = ("#2f6690", "#c8553d", "#e0a458", "#81a4cd", "#8f2d56", "#4a7c59")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def draw_measured(plans: Sequence[MeasuredPlan], out_png: Path) -> None:
    """Draws a dot a plan, a colour a scenario; by published figures on the left, if compared."""
    draw_steps_measured(
        [
            (
                plan.group,
                None if plan.published is None else plan.published.total,
                plan.estimate.step_time.total,
                plan.step_ms,
            )
            for plan in plans
        ],
        out_png,
    )


def draw_steps_measured(
    steps: Sequence[tuple[str, float | None, float, float]], out_png: Path
) -> None:
    """Draws measured over estimated milliseconds a step.

    Args:
        steps: of each plan its group, the estimate by published figures if there is one, the
            estimate, and the measurement.
        out_png: the file to write.
    """
    compares = bool(steps) and all(step[1] is not None for step in steps)
    figure = Figure(figsize=(8.4 if compares else 4.8, 4.0), layout="constrained")
    panels = figure.subplots(1, 2 if compares else 1, squeeze=False)[0]
    if compares:
        before = [(group, known or 0.0, found) for group, known, _, found in steps]
        _draw_panel(panels[0], before, "by published figures")
    title = "by measured rates" if compares else "estimated and measured"
    _draw_panel(panels[-1], [(group, ms, found) for group, _, ms, found in steps], title)
    handles, labels = panels[-1].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5
        )
    save_figure(figure, out_png)


def _draw_panel(panel: Any, steps: Sequence[tuple[str, float, float]], title: str) -> None:
    """Draws group, estimate and measurement of each plan, and their rank correlation."""
    for number, group in enumerate(dict.fromkeys(step[0] for step in steps)):
        dots = [step[1:] for step in steps if step[0] == group]
        panel.plot(
            *zip(*dots, strict=True),
            linestyle="none",
            marker=_MARKERS[number % len(_MARKERS)],
            color=_COLOURS[number % len(_COLOURS)],
            label=plain_text(group),
        )
    if steps:
        ends = [ms for step in steps for ms in step[1:]]
        line = [min(ends), max(ends)]
        panel.plot(line, line, color=TEXT_COLOUR, linewidth=0.8, linestyle=":")
        panel.set_xscale("log")
        panel.set_yscale("log")
    correlation = spearman([step[1] for step in steps], [step[2] for step in steps])
    suffix = "" if correlation is None else f": Spearman {correlation:.2f}"
    panel.set_title(title + suffix, loc="left", fontsize=10, color=TEXT_COLOUR)
    panel.set_xlabel("estimated ms a step", color=TEXT_COLOUR)
    panel.set_ylabel("measured ms a step", color=TEXT_COLOUR)
    style_axes(panel)
