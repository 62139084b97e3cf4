"""Measures users who warm up: AUC by the number of their real behaviours, against virtual ones.

The paper has no such section. Hidden users get their newest ``k`` behaviours back when a finished
run is evaluated; nothing is trained again. A method that makes virtual behaviours is evaluated
twice: on the ``k`` real ones, and on virtual ones all the same, which do not depend on ``k`` and
are thus its metric without any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mail_torchrec.data.settings import DataSettings
from mail_torchrec.reporting.compared_runs import METRICS
from mail_torchrec.reporting.figure_style import NEW_USER_COLOUR, OLD_USER_COLOUR
from mail_torchrec.reporting.intervals import Interval
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.reproduce.bootstrap import (
    NUM_RESAMPLES,
    BootstrappedMetric,
    bootstrap_files,
    paired_difference,
)
from mail_torchrec.reproduce.jobs import EvaluationJob, TrainingJob, group_by_method
from mail_torchrec.reproduce.methods.definitions import METHODS
from mail_torchrec.reproduce.plots import MetricCurve, WarmupPanel, draw_warmup
from mail_torchrec.reproduce.sections import ReportSection
from mail_torchrec.reproduce.table_text import classify_difference, format_difference, format_mean

KEPT = (0, 1, 2, 5, 10, 20)
"""Numbers of real behaviours that new users keep."""
_TITLE = "Warm-up: real behaviours against virtual ones"

NewUserMetrics = Mapping[tuple[str, int], Mapping[str, BootstrappedMetric]]
"""Metrics of new users, by method and number of behaviours kept."""
SweepCurves = dict[str, list[Interval | None]]
"""Values over ``KEPT`` of each curve; see :class:`WarmupSweep`."""


@dataclass(frozen=True)
class WarmupSweep:
    """A method that makes virtual behaviours and its base, or one of them alone, over ``KEPT``."""

    method: str | None
    base: str | None
    metrics: dict[str, SweepCurves]
    """Curves by metric of new users (auc, gauc).

    Curves are ``plain`` (the base on its real behaviours), ``virtual`` and ``real`` (the method on
    the one and the other; without any real ones it has virtual ones), ``real - virtual`` and
    ``plain - virtual``; those whose methods were trained.
    """


def check_sweepable(data: DataSettings) -> None:
    """Checks that the sweep can measure what it says, before anything is trained for it.

    Raises:
        ValueError: nothing is hidden, new users already keep some behaviours, or would get virtual
            behaviours in spite of the few that the sweep gives them.
    """
    if data.cold_start.keep:
        raise ValueError(
            "warmup sweeps data.cold_start.keep itself, from 0 on; leave it out of the "
            "configuration"
        )
    if not data.cold_start.of_test.hide_share:
        raise ValueError(
            "warmup gives hidden behaviours back to new users, and data.cold_start.hide_share=0 "
            "hides none; set it above 0, to 0.4 for example"
        )
    if data.new_user_max_behaviours:
        raise ValueError(
            "warmup compares real behaviours with virtual ones, and "
            f"data.new_user_max_behaviours={data.new_user_max_behaviours} gives "
            "users with so many virtual ones; set it 0, warmup says what it should be"
        )


def plan_evaluations(jobs: Sequence[TrainingJob]) -> list[EvaluationJob]:
    """Plans the evaluations with 1, 2, 5, ... behaviours; trainings themselves evaluate with 0."""
    return [_evaluation(job, kept) for kept in KEPT[1:] for job in jobs]


def make_warmup(
    jobs: Sequence[TrainingJob], out: Path, num_resamples: int = NUM_RESAMPLES
) -> ReportSection:
    """Makes the sweep of finished trainings and evaluations; its plot is written into ``out``.

    Raises:
        ValueError: predictions are missing, or of other rows.
    """
    methods = list(dict.fromkeys(job.method for job in jobs))
    sweeps = _sweep_all(methods, _bootstrap_new_users(jobs, num_resamples))
    draw_warmup([_panel(sweep) for sweep in sweeps], KEPT, out / "warmup.png")
    num_seeds = len(jobs) // len(methods)
    seeds = f"means over {num_seeds} seeds" if num_seeds > 1 else "of one seed"
    caption = (
        "AUC of new users by the number of their newest real behaviours, and its difference from "
        f"virtual behaviours; {seeds}, 95 % bands by the paired bootstrap."
    )
    content = {
        "kept": KEPT,
        "seeds": num_seeds,
        "resamples": num_resamples,
        "sweeps": [asdict(sweep) for sweep in sweeps],
    }
    verdicts = [sentence for sweep in sweeps for sentence in _verdicts(sweep)]
    text = _as_markdown(sweeps, verdicts, seeds)
    return ReportSection("warmup", _TITLE, text, verdicts, {"warmup.png": caption}, content)


def _evaluation(job: TrainingJob, kept: int) -> EvaluationJob:
    return EvaluationJob(job, f"keep-{kept}", (f"data.cold_start.keep={kept}",))


def _predictions(job: TrainingJob, kept: int) -> Path:
    return _evaluation(job, kept).predictions if kept else job.run_dir.predictions


def _bootstrap_new_users(jobs: Sequence[TrainingJob], num_resamples: int) -> NewUserMetrics:
    by_method = group_by_method(jobs)
    points = {f"{method}, {kept} kept": (method, kept) for method in by_method for kept in KEPT}
    files = {
        name: [_predictions(job, kept) for job in by_method[method]]
        for name, (method, kept) in points.items()
    }
    bootstrapped = bootstrap_files(files, num_resamples)
    return {points[name]: cohorts["new"] for name, cohorts in bootstrapped.items()}


def _sweep_all(methods: Sequence[str], new: NewUserMetrics) -> list[WarmupSweep]:
    """Makes a sweep of each method with virtual behaviours, then of bases without such a method."""
    sweeps = [_sweep(method, new) for method in methods if METHODS[method].base]
    swept = {name for sweep in sweeps for name in (sweep.method, sweep.base)}
    return sweeps + [_sweep(method, new) for method in methods if method not in swept]


def _sweep(method: str, new: NewUserMetrics) -> WarmupSweep:
    """Sweeps a method that makes virtual behaviours and its base if it was trained, or a base."""
    base = METHODS[method].base
    plain = base or method
    metrics = {metric: _curves(method, base, metric, new) for metric in METRICS}
    return WarmupSweep(method if base else None, plain if (plain, 0) in new else None, metrics)


def _curves(method: str, base: str | None, metric: str, new: NewUserMetrics) -> SweepCurves:
    curves: SweepCurves = {}
    plain = base or method
    if (plain, 0) in new:
        curves["plain"] = [new[plain, kept][metric].interval() for kept in KEPT]
    if base is None:
        return curves
    virtual = new[method, 0][metric]
    real = [new[method, kept][metric] for kept in KEPT[1:]]
    curves["virtual"] = [virtual.interval()] * len(KEPT)
    curves["real"] = [None, *(each.interval() for each in real)]
    curves["real - virtual"] = [None, *(paired_difference(each, virtual) for each in real)]
    if (base, 0) in new:
        curves["plain - virtual"] = [
            paired_difference(new[base, kept][metric], virtual) for kept in KEPT
        ]
    return curves


def _verdicts(sweep: WarmupSweep) -> list[str]:
    """Says from how many real behaviours on they are worth more than virtual ones.

    The first sentence is of the method's own tower on real behaviours, the second of the base.
    """
    curves, sentences = sweep.metrics["auc"], []
    if "real - virtual" in curves:
        kept, numbers = _first_gain(curves["real - virtual"])
        never = "do not stop paying within the sweep"
        stop = never if kept is None else f"stop paying at {kept} real ones"
        sentences.append(f"{sweep.method}: virtual behaviours {stop} ({numbers}).")
    if "plain - virtual" in curves:
        kept, numbers = _first_gain(curves["plain - virtual"])
        passes = "does not pass within the sweep" if kept is None else f"passes at {kept} real ones"
        subject = f"{sweep.method} on virtual behaviours"
        sentences.append(f"{subject}: {sweep.base} {passes} ({numbers}).")
    return sentences


def _first_gain(differences: Sequence[Interval | None]) -> tuple[int | None, str]:
    """Finds the fewest real behaviours that are clearly better than virtual ones.

    Returns:
        Their number, None if there are none; and the difference there, or at the end of the sweep.
    """
    gains = [
        kept
        for kept, difference in zip(KEPT, differences, strict=True)
        if classify_difference(difference) == "a gain"
    ]
    first = gains[0] if gains else None
    shown = KEPT[-1] if first is None else first
    difference = format_difference(differences[KEPT.index(shown)])
    return first, f"{shown} real less virtual, new users' AUC {difference}"


def _panel(sweep: WarmupSweep) -> WarmupPanel:
    curves = sweep.metrics["auc"]
    styles = {
        "plain": (str(sweep.base), OLD_USER_COLOUR, False),
        "real": (f"{sweep.method}, real ones", NEW_USER_COLOUR, False),
        "virtual": (f"{sweep.method}, virtual all the same", NEW_USER_COLOUR, True),
    }
    absolute = [
        MetricCurve(*style, curves[name]) for name, style in styles.items() if name in curves
    ]
    over = [
        MetricCurve(*style, curves[f"{name} - virtual"])
        for name, style in styles.items()
        if f"{name} - virtual" in curves
    ]
    return WarmupPanel(str(sweep.method or sweep.base), absolute, over)


def _as_markdown(sweeps: Sequence[WarmupSweep], verdicts: Sequence[str], seeds: str) -> str:
    header = ["new users' AUC by real behaviours kept", *(str(kept) for kept in KEPT)]
    rows = [row for sweep in sweeps for row in _table_rows(sweep)]
    return (
        f"## {_TITLE}\n\n"
        "New users get their newest real behaviours back at evaluation, so many of each sequence "
        "as the column says; nothing is trained again. Virtual: the same users on virtual "
        "behaviours, whatever they have. "
        f"Metrics are {seeds}; 95 % intervals by the paired bootstrap over users and seeds.\n\n"
        f"{markdown_table(header, rows)}\n" + "".join(f"- {verdict}\n" for verdict in verdicts)
    )


def _table_rows(sweep: WarmupSweep) -> list[list[str]]:
    titles = {
        "plain": str(sweep.base),
        "virtual": f"{sweep.method}, virtual",
        "real": f"{sweep.method}, real",
        "real - virtual": f"{sweep.method}, real - virtual",
        "plain - virtual": f"{sweep.base} - {sweep.method}, virtual",
    }
    return [
        [titles[name], *map(format_difference if "-" in name else format_mean, values)]
        for name, values in sweep.metrics["auc"].items()
    ]
