"""Users who warm up: quality against the number of real behaviours, and from where virtual ones stop paying.

The paper has no such figure. Hidden users get their newest ``k`` behaviours back when a finished run is evaluated; nothing is trained
again. A method that makes virtual behaviours is asked twice: on the ``k`` real ones, and on virtual ones all the same, which do not depend
on ``k`` and are thus its figure without any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from mail_torchrec.reproduce.drawings import Curve, draw_warmup
from mail_torchrec.reproduce.methods import METHODS
from mail_torchrec.reproduce.runner import Evaluation, Run
from mail_torchrec.reproduce.sections import Section
from mail_torchrec.reproduce.statistics import NUM_RESAMPLES, Resampled, difference, resample
from mail_torchrec.reproduce.tables import gain_word, interval_text
from mail_torchrec.train.pictures import NEW, OLD
from mail_torchrec.train.predictions import Predictions
from mail_torchrec.train.report import Interval, table

KEPT = (0, 1, 2, 5, 10, 20)
_TITLE = "Warm-up: real behaviours against virtual ones"


@dataclass(frozen=True)
class Point:
    """A method with ``kept`` real behaviours; AUC and GAUC of new users."""

    method: str
    kept: int
    figures: dict[str, Interval | None]
    over_virtual: dict[str, Interval | None]
    """Minus the same method on virtual behaviours; empty for a method that makes none."""


def evaluations(runs: Sequence[Run]) -> list[Evaluation]:
    """What has to be evaluated beside what the trainings left, which is the figure without any real behaviour."""
    return [Evaluation(run, f"keep-{kept}", (f"data.cold_start.keep={kept}",)) for kept in KEPT[1:] for run in runs]


def make_warmup(runs: Sequence[Run], out: Path, num_resamples: int = NUM_RESAMPLES) -> Section:
    """Makes the sweep of finished runs and their :func:`evaluations`; the picture is written into ``out``.

    Raises:
        ValueError: predictions are missing, or of other rows.
    """
    of_point: dict[str, list[Path]] = {}
    for run in runs:
        of_point.setdefault(_name(run.method, 0), []).append(run.run_dir.predictions)
    for evaluation in evaluations(runs):
        of_point.setdefault(_name(evaluation.run.method, int(evaluation.name.removeprefix("keep-"))), []).append(evaluation.predictions)
    with tqdm(total=sum(map(len, of_point.values())), desc="resampling", unit="run", leave=False) as bar:

        def load(path: Path) -> Predictions:
            bar.update()
            return Predictions.load(path)

        resampled = resample({name: map(load, paths) for name, paths in of_point.items()}, num_resamples)
    methods = list(dict.fromkeys(run.method for run in runs))
    new = {name: parts["new"] for name, parts in resampled.items()}
    points = {method: [_point(method, kept, new) for kept in KEPT] for method in methods}
    verdicts = [sentence for method in methods if _base(method) for sentence in _verdicts(method, points, new)]
    drawn = [method for method in methods if method not in map(_base, methods)]  # a base is drawn with those that build on it
    draw_warmup([_panel(method, points) for method in drawn], KEPT, out / "warmup.png")
    num_seeds = len(runs) // len(methods)
    seeds = f"means over {num_seeds} seeds" if num_seeds > 1 else "of one seed"
    caption = f"AUC of new users by the number of their newest real behaviours; {seeds}, 95 % bands by the paired bootstrap."
    content = {
        "kept": KEPT,
        "seeds": num_seeds,
        "resamples": num_resamples,
        "points": [asdict(p) for each in points.values() for p in each],
    }
    return Section("warmup", _TITLE, _as_markdown(points, verdicts, seeds), verdicts, {"warmup.png": caption}, content)


def _name(method: str, kept: int) -> str:
    return f"{method}, {kept} kept"


def _base(method: str) -> str | None:
    """The plain tower, of a method that makes virtual behaviours."""
    return METHODS[method].base


def _point(method: str, kept: int, new: Mapping[str, Mapping[str, Resampled]]) -> Point:
    mine, virtual = new[_name(method, kept)], new[_name(method, 0)]
    over_virtual = {figure: difference(mine[figure], virtual[figure]) for figure in mine} if _base(method) and kept else {}
    return Point(method, kept, {figure: mine[figure].interval() for figure in mine}, over_virtual)


def _verdicts(method: str, points: Mapping[str, Sequence[Point]], new: Mapping[str, Mapping[str, Resampled]]) -> list[str]:
    """From which k on the method's own tower, and the plain one, are better on k real behaviours than the method on virtual ones."""
    real = [(point.kept, point.over_virtual["auc"]) for point in points[method] if point.kept]
    sentences = [f"{method}: {_where(real, 'its virtual behaviours stop paying', 'real')}"]
    if (base := _base(method)) in points:
        virtual = new[_name(method, 0)]["auc"]
        plain = [(kept, difference(new[_name(str(base), kept)]["auc"], virtual)) for kept in KEPT]
        sentences.append(f"{method} against {base}: {_where(plain, f'{base} passes it', f'{base} on real')}")
    return sentences


def _where(differences: Sequence[tuple[int, Interval | None]], what: str, better: str) -> str:
    for kept, found in differences:
        if gain_word(found) == "a gain":
            return f"{what} at {kept} real ones ({better} less virtual, new users' AUC {interval_text(found)})."
    kept, found = differences[-1]
    return f"{what} nowhere within the sweep (at {kept} real ones: {better} less virtual, new users' AUC {interval_text(found)})."


def _panel(method: str, points: Mapping[str, Sequence[Point]]) -> tuple[str, list[Curve]]:
    base = _base(method)
    curves = []
    plain = method if base is None else base
    if plain in points:
        curves.append(Curve(plain, OLD, False, [point.figures["auc"] for point in points[plain]]))
    if base is not None:
        own = points[method]
        curves.append(Curve(f"{method}, real ones", NEW, False, [None, *(point.figures["auc"] for point in own[1:])]))
        curves.append(Curve(f"{method}, virtual all the same", NEW, True, [own[0].figures["auc"]] * len(KEPT)))
    return method, curves


def _as_markdown(points: Mapping[str, Sequence[Point]], verdicts: Sequence[str], seeds: str) -> str:
    header = ["new users' AUC by real behaviours kept", *(str(kept) for kept in KEPT)]
    lines = []
    for method, of_method in points.items():
        makes = _base(method) is not None
        means = [point.figures["auc"] for point in of_method]
        if makes:
            lines.append([f"{method}, virtual", *[_mean(means[0])] * len(KEPT)])
        real = [_mean(mean) for mean in means]
        lines.append([f"{method}, real", "-", *real[1:]] if makes else [method, *real])
        if makes:
            lines.append([f"{method}, real - virtual", "-", *(interval_text(point.over_virtual["auc"]) for point in of_method[1:])])
    return (
        f"## {_TITLE}\n\n"
        "New users get their newest real behaviours back at evaluation, so many of each sequence as the column says; nothing is trained "
        "again. Virtual: the same users on virtual behaviours, whatever they have. "
        f"Figures are {seeds}; 95 % intervals by the paired bootstrap over users and seeds.\n\n"
        f"{table(header, lines)}\n" + "".join(f"- {verdict}\n" for verdict in verdicts)
    )


def _mean(interval: Interval | None) -> str:
    return interval_text(interval).partition(" ")[0].lstrip("+")
