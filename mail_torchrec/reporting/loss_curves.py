"""Plots losses and validation of one run, or of several seeds of one method, over the steps.

Shape letters: ``P`` logged points, ``S`` seeds.
"""

import math
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mail_torchrec.records.run_log import is_number, read_log
from mail_torchrec.reporting.figure_style import (
    NEW_USER_COLOUR,
    OLD_USER_COLOUR,
    TEXT_COLOUR,
    save_figure,
    style_axes,
)

_TITLES = {
    "loss/L_rt": "ranking, L_rt",
    "loss/L_ctcvr": "click and conversion, L_ctcvr",
    "loss/L_a": "reconstruction from attributes, L_a",
    "loss/L_v": "reconstruction from behaviours, L_v",
    "loss/L_d": "alignment of the codes, L_d",
    "loss/L_match": "next behaviour (DMR), L_match",
    "loss/L_meta": "generated ids (MetaEmb), L_meta",
    "loss/L_new_rt": "ranking of rows as new users', L_new_rt",
    "loss/L_new_ctcvr": "click and conversion of rows as new users', L_new_ctcvr",
}
_LOG_SCALE_RANGE = 8.0  # A loss that varies by more than this factor is drawn on a log scale.
_FEW_POINTS = 20
_VALIDATION = "validation, "
_LOG_LOSS, _METRICS = f"{_VALIDATION}log_loss", ("auc", "gauc", "log_loss")

LossCurve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps ``[P]`` and values ``[P]`` of one run, or ``[S, P]`` of several."""


def draw_loss_curves(logs: Sequence[Path], out_png: Path) -> None:
    """Draws every loss over the steps, a panel each.

    One run is drawn as its values (pale) and their moving average; several runs as the mean of
    their moving averages and the band between the lowest and the highest.

    AUC and GAUC of validation rows have panels too; their log loss is drawn beside the ranking loss
    of the training.

    Args:
        logs: ``metrics.jsonl`` of runs of one method, one JSON object a line, such as
            ``{"step": 12, "loss/L_rt": 0.69, ...}``; keys that begin with ``loss/`` are drawn, and
            of ``{"step": 20, "validation": {"all": {"auc": 0.6, ...}, ...}}`` the cohort ``all``.
        out_png: the file to write.

    Raises:
        ValueError: a file is missing, a line is no JSON object with a step, no line has a loss, or
            the runs differ in steps or losses.
    """
    curves = _stack_runs(logs, [_read_curves(log) for log in logs])
    log_loss = curves.pop(_LOG_LOSS, None)
    num_columns = min(2, len(curves))
    num_rows = math.ceil(len(curves) / num_columns)
    figure = Figure(figsize=(4.6 * num_columns, 2.6 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for panel, (name, (steps_P, values_SP)) in zip(panels, curves.items(), strict=False):
        _draw_panel(panel, name, steps_P, values_SP)
        if name == "loss/L_rt" and log_loss is not None:
            _draw_log_loss(panel, *log_loss)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(curves) - num_columns) : len(curves)]:
        panel.set_xlabel("step", color=TEXT_COLOUR)
    save_figure(figure, out_png)


def _read_curves(path: Path) -> dict[str, LossCurve]:
    """Reads the curve of each loss, the ranking loss first."""
    points: dict[str, list[tuple[float, float]]] = {}
    for record in read_log(path):
        for name, value in _drawn_values(record).items():
            if is_number(value):
                points.setdefault(name, []).append((float(record["step"]), float(value)))
    if not any(name.startswith("loss/") for name in points):
        raise ValueError(
            f"'{path}' should hold losses ('loss/...'), found none; has the run logged a step?"
        )
    known = [name for name in _TITLES if name in points]
    names = [*known, *sorted(set(points) - set(known))]
    arrays = {name: np.array(points[name], np.float64) for name in names}
    return {name: (array[:, 0], array[:, 1]) for name, array in arrays.items()}


def _drawn_values(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a record that are drawn, by the name of their curve."""
    validation = record.get("validation")
    cohort = validation.get("all") if isinstance(validation, dict) else None
    metrics = cohort if isinstance(cohort, dict) else {}
    return {name: value for name, value in record.items() if name.startswith("loss/")} | {
        f"{_VALIDATION}{name}": metrics[name] for name in _METRICS if name in metrics
    }


def _stack_runs(logs: Sequence[Path], runs: Sequence[dict[str, LossCurve]]) -> dict[str, LossCurve]:
    """Stacks the values of all runs by loss, after checking that their steps are the same.

    Runs with validation rows may stop early; they are stacked over the steps that all of them had.
    """
    if all(any(name.startswith(_VALIDATION) for name in run) for run in runs):
        runs = _common_steps(runs)
    first = runs[0]
    for log, run in zip(logs, runs, strict=True):
        if run.keys() != first.keys() or any(
            not np.array_equal(steps_P, first[name][0]) for name, (steps_P, _) in run.items()
        ):
            raise ValueError(
                f"'{log}' should have the steps and losses of '{logs[0]}'; are these runs of one "
                "method?"
            )
    return {
        name: (steps_P, np.stack([run[name][1] for run in runs]))
        for name, (steps_P, _) in first.items()
    }


def _common_steps(runs: Sequence[dict[str, LossCurve]]) -> list[dict[str, LossCurve]]:
    """Leaves out the points of each curve that another run does not have."""
    cut: list[dict[str, LossCurve]] = [{} for _ in runs]
    for name in runs[0]:
        curves = [run[name] for run in runs if name in run]
        common_P = reduce(np.intersect1d, (steps_P for steps_P, _ in curves))
        for run, (steps_P, values_P) in zip(cut, curves, strict=False):
            run[name] = common_P, values_P[np.isin(steps_P, common_P)]
    return cut


def _draw_panel(
    panel: Any, name: str, steps_P: NDArray[np.float64], values_SP: NDArray[np.float64]
) -> None:
    if _needs_log_scale(values_SP):
        panel.set_yscale("log")
    few = len(steps_P) < _FEW_POINTS
    width = 1 if few else max(3, len(steps_P) // 15)
    smooth_SP = np.stack([_smooth(values_P, width) for values_P in values_SP])
    if len(values_SP) > 1:
        low_P, high_P = smooth_SP.min(0), smooth_SP.max(0)
        panel.fill_between(steps_P, low_P, high_P, color=OLD_USER_COLOUR, alpha=0.2, linewidth=0)
    elif not few:
        panel.plot(steps_P, values_SP[0], color=OLD_USER_COLOUR, alpha=0.3, linewidth=0.8)
    style = {"color": OLD_USER_COLOUR, "linewidth": 1.8, "marker": "o" if few else None}
    panel.plot(steps_P, smooth_SP.mean(0), markersize=3, **style)
    title = _TITLES.get(name, name.removeprefix("loss/"))
    panel.set_title(title, loc="left", fontsize=10, color=TEXT_COLOUR)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    style_axes(panel)


def _draw_log_loss(
    panel: Any, steps_P: NDArray[np.float64], values_SP: NDArray[np.float64]
) -> None:
    """Draws the log loss of validation rows into the panel of the training's."""
    style = {"color": NEW_USER_COLOUR, "linewidth": 1.8, "marker": "o", "markersize": 3}
    panel.plot(steps_P, values_SP.mean(0), label="validation, log loss", **style)
    panel.legend(fontsize=8, frameon=False)


def _needs_log_scale(values_SP: NDArray[np.float64]) -> bool:
    positive = values_SP[np.isfinite(values_SP) & (values_SP > 0)]
    all_positive = len(positive) == values_SP.size
    return all_positive and bool(positive.max() > _LOG_SCALE_RANGE * positive.min())


def _smooth(values_P: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Computes a centred moving average whose width shrinks at the ends."""
    kernel = np.ones(min(width, len(values_P)))
    sums_P = np.convolve(values_P, kernel, mode="same")
    return np.asarray(sums_P / np.convolve(np.ones(len(values_P)), kernel, mode="same"))
