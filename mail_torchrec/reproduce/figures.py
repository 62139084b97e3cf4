"""Makes Figures 4, 5 and 6 of the paper from finished runs.

Figure 4 has loss curves, Figure 5 virtual beside real behaviours, Figure 6 new beside old users.

Shape letters: ``N``, ``M`` vectors of two sets, ``D`` elements.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.drift.two_sample import two_sample_auc
from mail_torchrec.reporting.intervals import Interval, seed_interval
from mail_torchrec.reporting.loss_curves import draw_loss_curves
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.reproduce.jobs import TrainingJob, group_by_method
from mail_torchrec.reproduce.methods.definitions import METHODS
from mail_torchrec.reproduce.plots import ScatterPanel, draw_scatter
from mail_torchrec.reproduce.sections import ReportSection
from mail_torchrec.reproduce.similarity import (
    explained_variance,
    mean_cosine,
    rescaled_explained_variance,
    tsne_embedding,
)
from mail_torchrec.reproduce.user_vectors import UserVectors, collect_user_vectors
from mail_torchrec.utils.progress import progress_bar

NUM_USERS = 1000
_MIN_USERS = 10
_TITLE = "Figures 4 to 6: losses, virtual behaviours"
_COLUMNS = {
    "two_sample_auc": "two-sample AUC",
    "r2": "R²",
    "rescaled_r2": "R², best scale",
    "cosine": "cosine",
}


@dataclass(frozen=True)
class VectorPair:
    """Two sets of vectors that the paper draws into one plot."""

    figure: str
    title: str
    labels: tuple[str, str]
    first_ND: NDArray[np.float64]
    second_MD: NDArray[np.float64]
    are_same_users: bool
    """Whether row n of both is of one user."""

    def similarity_metrics(self) -> dict[str, float]:
        """Computes the similarity of both sets, the keys of ``_COLUMNS``."""
        if not self.are_same_users:
            return {"two_sample_auc": two_sample_auc(self.first_ND, self.second_MD)}
        real_UD, virtual_UD = self.first_ND, self.second_MD
        return {
            # Of different users: real and virtual vectors of one user would reveal each other.
            "two_sample_auc": two_sample_auc(real_UD[::2], virtual_UD[1::2]),
            "r2": explained_variance(real_UD, virtual_UD),
            "rescaled_r2": rescaled_explained_variance(real_UD, virtual_UD),
            "cosine": mean_cosine(real_UD, virtual_UD),
        }


@dataclass(frozen=True)
class PairSimilarity:
    """Similarity metrics of a pair of sets over the seeds."""

    method: str
    figure: str
    title: str
    users: tuple[int, int]
    metrics: dict[str, Interval]


def make_figures(
    jobs: Sequence[TrainingJob], out: Path, num_users: int = NUM_USERS
) -> ReportSection:
    """Draws finished runs of methods with a zero-shot tower; plots are written into ``out``.

    Raises:
        ValueError: a log is damaged, or no two sets of vectors have as many as 10 users.
    """
    by_method = group_by_method(jobs)
    plots: dict[str, str] = {}
    found: list[PairSimilarity] = []
    for method, seeds in by_method.items():
        plots |= _draw_losses(method, seeds, out)
        of_seed = _pairs_of_seeds(method, seeds, num_users)
        similarities = [_over_seeds(method, pairs) for pairs in zip(*of_seed, strict=True)]
        plots |= _draw_pairs(method, of_seed[0], similarities, out)
        found += similarities
    verdicts = [_verdict(similarity) for similarity in found]
    text = _as_markdown(found, verdicts, len(jobs) // len(by_method))
    content = {"users": num_users, "pairs": [asdict(similarity) for similarity in found]}
    return ReportSection("figures", _TITLE, text, verdicts, plots, content)


def vector_pairs(vectors: UserVectors) -> list[VectorPair]:
    """Pairs the sets of vectors of Figures 5 and 6; sets of too few users are left out.

    Figure 5 has real against virtual behaviours of old and of new users, Figure 6 new against old
    users.
    """
    new, old = vectors.take(vectors.is_new_U), vectors.take(~vectors.is_new_U)
    pairs = [
        _real_and_virtual("behaviours of old users", old),
        _real_and_virtual("behaviours of new users", new),
        _old_and_new("pooled attributes h_a", old.attributes_UE, new.attributes_UE),
        _old_and_new("virtual behaviours", old.virtual_UD, new.virtual_UD),
    ]
    # Pairs of the same users are halved for the two-sample AUC.
    fewest = {True: 2 * _MIN_USERS, False: _MIN_USERS}
    return [
        pair
        for pair in pairs
        if min(len(pair.first_ND), len(pair.second_MD)) >= fewest[pair.are_same_users]
    ]


def _real_and_virtual(title: str, users: UserVectors) -> VectorPair:
    known = users.take(users.has_real_U)
    return VectorPair("5", title, ("real", "virtual"), known.real_UD, known.virtual_UD, True)


def _old_and_new(
    title: str, old_ND: NDArray[np.float64], new_MD: NDArray[np.float64]
) -> VectorPair:
    return VectorPair("6", title, ("old users", "new users"), old_ND, new_MD, False)


def _draw_losses(method: str, seeds: Sequence[TrainingJob], out: Path) -> dict[str, str]:
    """Draws Figure 4 of a method; returns the file and its caption."""
    file = f"figure4-{METHODS[method].file_name}.png"
    draw_loss_curves([job.run_dir.log for job in seeds], out / file)
    over = f"mean and range over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return {file: f"Figure 4: losses of {method} over the steps, {over}."}


def _pairs_of_seeds(
    method: str, seeds: Sequence[TrainingJob], num_users: int
) -> list[list[VectorPair]]:
    bar = progress_bar(seeds, desc="figures", unit="run")
    of_seed = [vector_pairs(collect_user_vectors(job.run_dir, num_users)) for job in bar]
    if not of_seed[0]:
        raise ValueError(
            f"figures: {method} should have met {_MIN_USERS} new and as many old users in the "
            "test data; take more rows"
        )
    return of_seed


def _over_seeds(method: str, pairs: Sequence[VectorPair]) -> PairSimilarity:
    """Averages the metrics of one pair of sets over the seeds."""
    of_seed = [pair.similarity_metrics() for pair in pairs]
    means = {name: seed_interval([metrics[name] for metrics in of_seed]) for name in of_seed[0]}
    known = {name: interval for name, interval in means.items() if interval}
    first = pairs[0]
    users = (len(first.first_ND), len(first.second_MD))
    return PairSimilarity(method, first.figure, first.title, users, known)


def _draw_pairs(
    method: str, pairs: Sequence[VectorPair], similarities: Sequence[PairSimilarity], out: Path
) -> dict[str, str]:
    """Draws Figures 5 and 6 of one seed; returns the files and their captions."""
    subjects = {
        "5": "real and virtual behaviours, one point a user",
        "6": "new and old users",
    }
    plots = {}
    for figure, subject in subjects.items():
        panels = [
            _scatter_panel(pair, similarity)
            for pair, similarity in zip(pairs, similarities, strict=True)
            if pair.figure == figure
        ]
        if panels:
            file = f"figure{figure}-{METHODS[method].file_name}.png"
            draw_scatter(panels, out / file)
            plots[file] = f"Figure {figure}: {subject}, t-SNE of {method}, seed 1."
    return plots


def _scatter_panel(pair: VectorPair, similarity: PairSimilarity) -> ScatterPanel:
    auc = similarity.metrics["two_sample_auc"].mean
    title = f"{pair.title}\ntwo-sample AUC {auc:.2f}"
    return ScatterPanel(title, pair.labels, *tsne_embedding(pair.first_ND, pair.second_MD))


def _verdict(similarity: PairSimilarity) -> str:
    means = {name: interval.mean for name, interval in similarity.metrics.items()}
    subject = f"{similarity.method}, Figure {similarity.figure}, {similarity.title}: "
    auc = f"with AUC {means['two_sample_auc']:.2f} (.50: not at all)"
    if similarity.figure == "6":
        return f"{subject}new and old users are told apart {auc}."
    return (
        f"{subject}real and virtual ones are told apart {auc}; R² of the virtual about the same "
        f"user's real ones {means['r2']:.3f}, at their best scale {means['rescaled_r2']:.3f}."
    )


def _as_markdown(found: Sequence[PairSimilarity], verdicts: Sequence[str], num_seeds: int) -> str:
    header = ["sets of vectors", "users", *_COLUMNS.values()]
    rows = [
        [
            f"{similarity.method}, Fig. {similarity.figure}, {similarity.title}",
            " + ".join(map(str, similarity.users)),
            *_cells(similarity.metrics),
        ]
        for similarity in found
    ]
    return f"## {_TITLE}\n\n{_caption(num_seeds)}\n\n{markdown_table(header, rows)}\n" + "".join(
        f"- {verdict}\n" for verdict in verdicts
    )


def _caption(num_seeds: int) -> str:
    several = f"means over {num_seeds} seeds with Student's 95 % intervals"
    over = several if num_seeds > 1 else "of one seed"
    return (
        f"Metrics are {over}. Two-sample AUC: of a cross-validated nearest-neighbour classifier "
        "that tells two sets apart, .5 where they are of one distribution. R² is of the virtual "
        "behaviours about the same user's real ones, sums over a sequence's positions as BaseDNN "
        "has them; below 0 the mean of all users is nearer. At the best scale: after the best "
        "shift and factor."
    )


def _cells(metrics: Mapping[str, Interval]) -> list[str]:
    return [_cell(metrics[name]) if name in metrics else "-" for name in _COLUMNS]


def _cell(interval: Interval) -> str:
    half: Any = interval.half_width
    if half is None or math.isnan(half):
        return f"{interval.mean:.3f}"
    return f"{interval.mean:.3f} ± {half:.3f}"
