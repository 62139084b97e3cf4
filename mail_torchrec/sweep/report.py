"""Report of a sweep: the trials, the winner, and its test metrics apart from its validation."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mail_torchrec.reporting.cohorts import COHORTS
from mail_torchrec.reporting.html import markdown_to_html
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.sweep.plots import draw_history, draw_settings
from mail_torchrec.sweep.runner import OVERRIDES, REASON, STEP, VALUE, SweepPlan, best_number
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.run_files import write_file

if TYPE_CHECKING:
    from optuna import Study

_STATES = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "unfinished"}


def write_report(plan: SweepPlan, study: "Study", command: str) -> str:
    """Writes ``report.md``, ``.html``, ``sweep.json`` and two pictures; returns the Markdown.

    Args:
        plan: of the sweep.
        study: with its trials.
        command: that made it.
    """
    trials = [_record(trial) for trial in study.trials]
    number = best_number(study)
    best = None if number is None else _best_record(plan, trials[number])
    found = {"metric": plan.metric, "cohort": plan.cohort, "best": best, "trials": trials}
    write_file(plan.folder / "sweep.json", json.dumps(found, indent=2) + "\n")
    pictures = []
    if best is not None:
        draw_history(trials, plan.metric, plan.cohort, plan.folder / "history.png")
        draw_settings(trials, plan.metric, plan.folder / "settings.png")
        pictures = [
            "![Validation of each trial in their order; the line is the best so far.](history.png)",
            "![Validation by setting: filled dots finished, hollow ones were stopped "
            "early.](settings.png)",
        ]
    text = "\n\n".join([*_head(plan, best, command), *pictures, _trials_table(plan, trials)]) + "\n"
    write_file(plan.folder / "report.md", text)
    write_file(plan.folder / "report.html", markdown_to_html(text, plan.folder))
    return text


def _record(trial: Any) -> dict[str, Any]:
    """Returns what a report knows of a trial, ready for JSON."""
    settings = dict(one.split("=", 1) for one in trial.user_attrs.get(OVERRIDES, []))
    return {
        "number": trial.number,
        "state": _STATES.get(trial.state.name, trial.state.name.lower()),
        "settings": {key: json.loads(value) for key, value in settings.items()},
        "validation": trial.user_attrs.get(VALUE),
        "step": trial.user_attrs.get(STEP),
        "evaluations": len(trial.intermediate_values),
        "reason": trial.user_attrs.get(REASON),
    }


def _best_record(plan: SweepPlan, trial: dict[str, Any]) -> dict[str, Any]:
    run_dir = RunDir(plan.files(trial["number"]).run_dir)
    metrics = json.loads(run_dir.metrics.read_text())
    return trial | {"run_dir": str(run_dir.path), "test": metrics}


def _head(plan: SweepPlan, best: dict[str, Any] | None, command: str) -> list[str]:
    blocks = ["# Sweep", f"```\n{command}\n```"]
    if best is None:
        return [*blocks, "No trial has finished yet."]
    settings = "\n".join(f"{key}={json.dumps(value)}" for key, value in best["settings"].items())
    test = best["test"]
    names = [name for name in ("auc", "gauc", "log_loss") if name in test["all"]]
    rows = [
        [cohort, *(_number(test[cohort][name]) for name in names), f"{test[cohort]['rows']:,}"]
        for cohort in COHORTS
    ]
    return [
        *blocks,
        "## The winner",
        f"Trial {best['number']}, step {best['step']}: {plan.metric} {best['validation']:.5f} of "
        f"{plan.cohort} validation rows, by which it was chosen. That makes it look better than it "
        "is. The test rows played no part in the choice:",
        markdown_table(["test rows of", *names, "rows"], rows).rstrip(),
        f"Its settings, as overrides of `{plan.config.name}`; its run is `{best['run_dir']}`:",
        f"```\n{settings}\n```",
    ]


def _trials_table(plan: SweepPlan, trials: list[dict[str, Any]]) -> str:
    keys = list(plan.space.space)
    header = ["trial", "state", f"{plan.metric} ({plan.cohort})", "step", "evaluations", *keys]
    rows = [
        [
            str(trial["number"]),
            trial["state"],
            _number(trial["validation"]),
            "" if trial["step"] is None else str(trial["step"]),
            str(trial["evaluations"]),
            *(_setting(trial["settings"].get(key)) for key in keys),
        ]
        for trial in trials
    ]
    reasons = [
        f"- Trial {trial['number']}: {trial['reason'][:200]}" for trial in trials if trial["reason"]
    ]
    failed = ["These failed; `train.log` in the trial's folder has more:", "\n".join(reasons)]
    table = markdown_table(header, rows).rstrip()
    return "\n\n".join(["## The trials", table, *(failed if reasons else [])])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _setting(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def report_files(folder: Path) -> list[Path]:
    """Lists the files of a report that are there."""
    names = ("report.html", "report.md", "sweep.json", "history.png", "settings.png")
    return [folder / name for name in names if (folder / name).exists()]
