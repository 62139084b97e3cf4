"""Importance of features as Markdown, JSON and a picture."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mail_torchrec.predict.importance import COHORTS, METRICS, ImportanceReport
from mail_torchrec.reporting.figure_style import (
    NEW_USER_COLOUR,
    OLD_USER_COLOUR,
    TEXT_COLOUR,
    plain_text,
    save_figure,
    style_axes,
)
from mail_torchrec.reporting.intervals import Interval
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.utils.local_path import make_output_dir
from mail_torchrec.utils.run_files import write_report_file


def importance_markdown(report: ImportanceReport) -> str:
    """Formats a table of the features, the most important one first."""
    header = [
        "permuted",
        *(f"{metric.upper()} {cohort}" for metric in METRICS for cohort in COHORTS),
    ]
    rows = [
        [
            " + ".join(feature.columns),
            *(_text(feature.losses[cohort][metric]) for metric in METRICS for cohort in COHORTS),
        ]
        for feature in report.features
    ]
    return (
        f"Loss of AUC and GAUC of {report.run} when a feature is permuted among the rows of a "
        f"cohort, mean of {report.num_repeats} permutations with 95 % intervals over tenths of the "
        f"users; test rows: {report.metrics['all']['rows']:,}.\n\n" + markdown_table(header, rows)
    )


def write_importance(report: ImportanceReport, out: Path) -> list[Path]:
    """Writes ``importance.md``, ``importance.json`` and ``importance.png`` to a folder.

    Returns:
        The paths of the three files.
    """
    make_output_dir(out)
    markdown, data, picture = (out / f"importance.{kind}" for kind in ("md", "json", "png"))
    write_report_file(markdown, importance_markdown(report))
    write_report_file(data, json.dumps(asdict(report), indent=2) + "\n")
    draw_importance(report, picture)
    return [markdown, data, picture]


def draw_importance(report: ImportanceReport, out_png: Path) -> None:
    """Draws the loss of AUC of new and old users for each feature, with 95 % intervals."""
    num_features = len(report.features)
    figure = Figure(figsize=(7.2, 1.3 + 0.42 * num_features), layout="constrained")
    panel = figure.subplots()
    for cohort, colour, offset in (("new", NEW_USER_COLOUR, -0.13), ("old", OLD_USER_COLOUR, 0.13)):
        dots = [
            (loss, line + offset)
            for line, feature in enumerate(report.features)
            if (loss := feature.losses[cohort]["auc"]) is not None
        ]
        means = [loss.mean for loss, _ in dots]
        halves = [loss.half_width or 0.0 for loss, _ in dots]
        heights = [height for _, height in dots]
        style: dict[str, Any] = {"fmt": "o", "markersize": 5, "elinewidth": 1.6, "color": colour}
        panel.errorbar(means, heights, xerr=halves, label=f"{cohort} users", **style)
    panel.axvline(0, color=TEXT_COLOUR, linewidth=0.8)
    names = [plain_text(" + ".join(feature.columns)) for feature in report.features]
    panel.set_yticks(range(num_features), names)
    panel.set_ylim(num_features - 0.5, -0.5)
    panel.set_xlabel("loss of AUC when permuted", color=TEXT_COLOUR)
    panel.legend(ncols=2, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    style_axes(panel, axis="x")
    save_figure(figure, out_png)


def _text(loss: Interval | None) -> str:
    if loss is None:
        return "-"
    half = "" if loss.half_width is None else f" ± {loss.half_width:.4f}"
    return f"{loss.mean:.4f}{half}"
