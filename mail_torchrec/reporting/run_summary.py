"""Summary at the end of a training: metrics as a small table, and the files that were written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mail_torchrec.reporting.cohorts import COHORT_NAMES, COHORTS
from mail_torchrec.reporting.markdown import markdown_table

_METRICS = ("auc", "gauc", "log_loss", "calibration")
_FILES = ("metrics.json", "metrics_details.json", "metrics.jsonl", "loss_curves.png")
_MORE_FILES = ("calibration.png", "tensorboard", "checkpoints", "predictions", "profile")


def run_summary(metrics: Mapping[str, Mapping[str, Any]], run_dir: Path) -> str:
    """Formats the test metrics of a run by cohort, and names its files.

    Args:
        metrics: by cohort, as in ``metrics.json``.
        run_dir: directory of the run.
    """
    names = [name for name in _METRICS if name in metrics["all"]]
    words = {**COHORT_NAMES, **dict(zip(COHORTS, COHORTS, strict=True))}
    rows = [
        [
            words[cohort],
            f"{metrics[cohort]['rows']:,}",
            *(_number(metrics[cohort][name]) for name in names),
        ]
        for cohort in words
        if cohort in metrics
    ]
    table = markdown_table(["test rows of", "rows", *names], rows)
    written = [name for name in (*_FILES, *_MORE_FILES) if (run_dir / name).exists()]
    return f"{table}in {run_dir}: {', '.join(written)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
