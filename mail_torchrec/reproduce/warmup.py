"""Users who warm up: quality against the number of real behaviours, and from where virtual ones stop paying.

The paper has no such figure. Hidden users get their newest ``k`` behaviours back when a finished
run is evaluated; nothing is trained again. A method that makes virtual behaviours is asked twice:
on the ``k`` real ones, and on virtual ones all the same, which do not depend on ``k`` and are thus
its figure without any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mail_torchrec.data.reading.reader import DataSettings
from mail_torchrec.reporting.comparison import FIGURES, Interval, table
from mail_torchrec.reporting.plots import NEW, OLD
from mail_torchrec.reproduce.methods import METHODS
from mail_torchrec.reproduce.plots import Curve, WarmupPanel, draw_warmup
from mail_torchrec.reproduce.runner import Evaluation, Run, by_method
from mail_torchrec.reproduce.sections import Section
from mail_torchrec.reproduce.statistics import NUM_RESAMPLES, Resampled, difference, resample_files
from mail_torchrec.reproduce.tables import gain_word, interval_text, mean_text

KEPT = (0, 1, 2, 5, 10, 20)
_TITLE = "Warm-up: real behaviours against virtual ones"


@dataclass(frozen=True)
class Sweep:
    """A method that makes virtual behaviours and its base, or one of them alone, over ``KEPT``."""

    method: str | None
    base: str | None
    figures: dict[str, dict[str, list[Interval | None]]]
    """Figure of new users (auc, gauc) -> line -> its values over ``KEPT``.

    Lines are ``plain`` (the base on its real behaviours), ``virtual`` and ``real`` (the method on
    the one and the other; without any real ones it has virtual ones), ``real - virtual`` and
    ``plain - virtual``; those that there can be.
    """


def check_sweepable(data: DataSettings) -> None:
    """Looks whether the sweep will say what it claims, before anything is trained for it.

    Raises:
        ValueError: new users already keep some behaviours, or would be filled in spite of the few
            that the sweep gives them.
    """
    if data.cold_start.keep:
        raise ValueError(
            "warmup sweeps data.cold_start.keep itself, from 0 on; leave it out of the "
            "configuration"
        )
    if data.new_user_max_behaviours:
        raise ValueError(
            "warmup compares real behaviours with virtual ones, and "
            f"data.new_user_max_behaviours={data.new_user_max_behaviours} gives "
            "users with so many virtual ones; set it 0, warmup says what it should be"
        )


def evaluations(runs: Sequence[Run]) -> list[Evaluation]:
    """What has to be evaluated beside what the trainings left, which is the figure without any real behaviour."""
    return [_evaluation(run, kept) for kept in KEPT[1:] for run in runs]


def make_warmup(runs: Sequence[Run], out: Path, num_resamples: int = NUM_RESAMPLES) -> Section:
    """Makes the sweep of finished runs and their :func:`evaluations`; the picture is written into ``out``.

    Raises:
        ValueError: predictions are missing, or of other rows.
    """
    new = _resampled(runs, num_resamples)
    methods = list(dict.fromkeys(run.method for run in runs))
    swept = [_sweep(method, new) for method in methods if METHODS[method].base]
    swept += [
        _sweep(method, new)
        for method in methods
        if method not in [base for sweep in swept for base in (sweep.method, sweep.base)]
    ]
    verdicts = [sentence for sweep in swept for sentence in _verdicts(sweep)]
    draw_warmup([_panel(sweep) for sweep in swept], KEPT, out / "warmup.png")
    num_seeds = len(runs) // len(methods)
    seeds = f"means over {num_seeds} seeds" if num_seeds > 1 else "of one seed"
    caption = (
        "AUC of new users by the number of their newest real behaviours, and its difference from "
        f"virtual behaviours; {seeds}, "
        "95 % bands by the paired bootstrap."
    )
    content = {
        "kept": KEPT,
        "seeds": num_seeds,
        "resamples": num_resamples,
        "sweeps": [asdict(sweep) for sweep in swept],
    }
    return Section(
        "warmup",
        _TITLE,
        _as_markdown(swept, verdicts, seeds),
        verdicts,
        {"warmup.png": caption},
        content,
    )


def _evaluation(run: Run, kept: int) -> Evaluation:
    return Evaluation(run, f"keep-{kept}", (f"data.cold_start.keep={kept}",))


def _resampled(
    runs: Sequence[Run], num_resamples: int
) -> dict[tuple[str, int], dict[str, Resampled]]:
    """(Method, kept) -> figure of new users."""
    of_method = by_method(runs)
    points = {f"{method}, {kept} kept": (method, kept) for method in of_method for kept in KEPT}
    files = {
        name: [_predictions(run, kept) for run in of_method[method]]
        for name, (method, kept) in points.items()
    }
    return {
        points[name]: parts["new"] for name, parts in resample_files(files, num_resamples).items()
    }


def _predictions(run: Run, kept: int) -> Path:
    return _evaluation(run, kept).predictions if kept else run.run_dir.predictions


def _sweep(method: str, new: Mapping[tuple[str, int], Mapping[str, Resampled]]) -> Sweep:
    """Of a method that makes virtual behaviours and, if it is there, its base; or of a base alone."""
    base = METHODS[method].base
    plain = base or method
    figures: dict[str, dict[str, list[Interval | None]]] = {}
    for figure in FIGURES:
        lines = figures.setdefault(figure, {})
        if (plain, 0) in new:
            lines["plain"] = [new[plain, kept][figure].interval() for kept in KEPT]
        if base is not None:
            virtual = new[method, 0][figure]
            lines["virtual"] = [virtual.interval()] * len(KEPT)
            lines["real"] = [None, *(new[method, kept][figure].interval() for kept in KEPT[1:])]
            lines["real - virtual"] = [
                None,
                *(difference(new[method, kept][figure], virtual) for kept in KEPT[1:]),
            ]
            if (base, 0) in new:
                lines["plain - virtual"] = [
                    difference(new[base, kept][figure], virtual) for kept in KEPT
                ]
    return Sweep(method if base else None, plain if (plain, 0) in new else None, figures)


def _verdicts(sweep: Sweep) -> list[str]:
    """From which k on the method's own tower, and the plain one, are better on k real behaviours than the method on virtual ones."""
    lines, sentences = sweep.figures["auc"], []
    if "real - virtual" in lines:
        kept, numbers = _first_gain(lines["real - virtual"])
        stop = (
            "do not stop paying within the sweep"
            if kept is None
            else f"stop paying at {kept} real ones"
        )
        sentences.append(f"{sweep.method}: virtual behaviours {stop} ({numbers}).")
    if "plain - virtual" in lines:
        kept, numbers = _first_gain(lines["plain - virtual"])
        passes = "does not pass within the sweep" if kept is None else f"passes at {kept} real ones"
        sentences.append(
            f"{sweep.method} on virtual behaviours: {sweep.base} {passes} ({numbers})."
        )
    return sentences


def _first_gain(differences: Sequence[Interval | None]) -> tuple[int | None, str]:
    """The fewest real behaviours that are clearly better than virtual ones, None if none are; and the numbers there, or at the end."""
    kept = next(
        (
            kept
            for kept, found in zip(KEPT, differences, strict=True)
            if gain_word(found) == "a gain"
        ),
        None,
    )
    shown = KEPT[-1] if kept is None else kept
    return (
        kept,
        f"{shown} real less virtual, new users' AUC "
        f"{interval_text(differences[KEPT.index(shown)])}",
    )


def _panel(sweep: Sweep) -> WarmupPanel:
    lines = sweep.figures["auc"]
    looks = {
        "plain": (str(sweep.base), OLD, False),
        "real": (f"{sweep.method}, real ones", NEW, False),
        "virtual": (f"{sweep.method}, virtual all the same", NEW, True),
    }
    curves = [Curve(*look, lines[name]) for name, look in looks.items() if name in lines]
    over = [
        Curve(*look, lines[f"{name} - virtual"])
        for name, look in looks.items()
        if f"{name} - virtual" in lines
    ]
    return WarmupPanel(str(sweep.method or sweep.base), curves, over)


def _as_markdown(swept: Sequence[Sweep], verdicts: Sequence[str], seeds: str) -> str:
    header = ["new users' AUC by real behaviours kept", *(str(kept) for kept in KEPT)]
    cells = []
    for sweep in swept:
        titles = {
            "plain": sweep.base,
            "virtual": f"{sweep.method}, virtual",
            "real": f"{sweep.method}, real",
        }
        titles |= {
            "real - virtual": f"{sweep.method}, real - virtual",
            "plain - virtual": f"{sweep.base} - {sweep.method}, virtual",
        }
        for name, values in sweep.figures["auc"].items():
            cells.append(
                [
                    str(titles[name]),
                    *(
                        interval_text(value) if "-" in name else mean_text(value)
                        for value in values
                    ),
                ]
            )
    return (
        f"## {_TITLE}\n\n"
        "New users get their newest real behaviours back at evaluation, so many of each sequence "
        "as the column says; nothing is trained "
        "again. Virtual: the same users on virtual behaviours, whatever they have. "
        f"Figures are {seeds}; 95 % intervals by the paired bootstrap over users and seeds.\n\n"
        f"{table(header, cells)}\n" + "".join(f"- {verdict}\n" for verdict in verdicts)
    )
