"""Figures 4, 5 and 6: loss curves, and how virtual behaviours lie beside real ones and new users beside old ones."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mail_torchrec.reporting.comparison import Interval, seed_interval, table
from mail_torchrec.reporting.plots import draw_loss_curves
from mail_torchrec.reproduce.interests import Interests, interests_of
from mail_torchrec.reproduce.methods import METHODS
from mail_torchrec.reproduce.plots import Cloud, draw_clouds
from mail_torchrec.reproduce.runner import Run, by_method
from mail_torchrec.reproduce.sections import Section
from mail_torchrec.reproduce.similarity import (
    explainable_variance,
    explained_variance,
    mean_cosine,
    on_a_plane,
    two_sample_auc,
)
from mail_torchrec.utils.logging import bar_interval

NUM_USERS = 1000
_FEWEST = 10
_COLUMNS = {
    "told_apart": "told apart, AUC",
    "r2": "R²",
    "r2_scaled": "R², best scale",
    "cosine": "cosine",
}


@dataclass(frozen=True)
class Pair:
    """Two sets of vectors that the paper draws into one picture."""

    figure: str
    title: str
    labels: tuple[str, str]
    first_ND: NDArray[np.float64]
    second_MD: NDArray[np.float64]
    are_same_users: bool
    """Whether row n of both is of one user."""

    def numbers(self) -> dict[str, float]:
        """How alike they are, the keys of ``_COLUMNS``."""
        if not self.are_same_users:
            return {"told_apart": two_sample_auc(self.first_ND, self.second_MD)}
        real_UD, virtual_UD = self.first_ND, self.second_MD
        return {
            "told_apart": two_sample_auc(
                real_UD[::2], virtual_UD[1::2]
            ),  # of different users, or twins would give each other away
            "r2": explained_variance(real_UD, virtual_UD),
            "r2_scaled": explainable_variance(real_UD, virtual_UD),
            "cosine": mean_cosine(real_UD, virtual_UD),
        }


@dataclass(frozen=True)
class Alike:
    """What a pair of sets gave over the seeds."""

    method: str
    figure: str
    title: str
    users: tuple[int, int]
    numbers: dict[str, Interval]


def make_figures(runs: Sequence[Run], out: Path, num_users: int = NUM_USERS) -> Section:
    """Draws finished runs of methods with a zero-shot tower; pictures are written into ``out``.

    Raises:
        ValueError: a log is damaged, or no two sets of vectors have as many as 10 users.
    """
    of_method = by_method(runs)
    pictures: dict[str, str] = {}
    found: list[Alike] = []
    for method, seeds in of_method.items():
        curves = f"figure4-{METHODS[method].file_name}.png"
        draw_loss_curves([run.run_dir.log for run in seeds], out / curves)
        over = f"mean and range over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
        pictures[curves] = f"Figure 4: losses of {method} over the steps, {over}."
        bar = tqdm(seeds, desc="figures", unit="run", leave=False, mininterval=bar_interval())
        of_seed = [pairs_of(interests_of(run.run_dir, num_users)) for run in bar]
        if not of_seed[0]:
            raise ValueError(
                f"figures: {method} should have met {_FEWEST} new and as many old users in the "
                "test data; take more rows"
            )
        alike = [_alike(method, pairs) for pairs in zip(*of_seed, strict=True)]
        pictures |= _draw(method, of_seed[0], alike, out)
        found += alike
    verdicts = [_verdict(alike) for alike in found]
    text = _as_markdown(found, verdicts, len(runs) // len(of_method))
    content = {"users": num_users, "pairs": [asdict(alike) for alike in found]}
    return Section(
        "figures", "Figures 4 to 6: losses, virtual behaviours", text, verdicts, pictures, content
    )


def pairs_of(interests: Interests) -> list[Pair]:
    """Figure 5: real against virtual behaviours of old and of new users; Figure 6: new against old users. Those with enough users."""
    new, old = interests.take(interests.is_new_U), interests.take(~interests.is_new_U)
    known_new, known_old = new.take(new.has_real_U), old.take(old.has_real_U)
    kinds = ("real", "virtual")
    pairs = [
        Pair("5", "behaviours of old users", kinds, known_old.real_UD, known_old.virtual_UD, True),
        Pair("5", "behaviours of new users", kinds, known_new.real_UD, known_new.virtual_UD, True),
        Pair(
            "6",
            "pooled attributes h_a",
            ("old users", "new users"),
            old.attributes_UE,
            new.attributes_UE,
            False,
        ),
        Pair(
            "6",
            "virtual behaviours",
            ("old users", "new users"),
            old.virtual_UD,
            new.virtual_UD,
            False,
        ),
    ]
    fewest = {True: 2 * _FEWEST, False: _FEWEST}  # the first pairs are halved
    return [
        pair
        for pair in pairs
        if min(len(pair.first_ND), len(pair.second_MD)) >= fewest[pair.are_same_users]
    ]


def _alike(method: str, pairs: Sequence[Pair]) -> Alike:
    """One pair of sets over the seeds."""
    numbers = [pair.numbers() for pair in pairs]
    over_seeds = {
        name: seed_interval([of_seed[name] for of_seed in numbers]) for name in numbers[0]
    }
    first = pairs[0]
    users = (len(first.first_ND), len(first.second_MD))
    return Alike(
        method,
        first.figure,
        first.title,
        users,
        {name: interval for name, interval in over_seeds.items() if interval},
    )


def _draw(method: str, pairs: Sequence[Pair], alike: Sequence[Alike], out: Path) -> dict[str, str]:
    """The pictures of one seed: file -> caption."""
    pictures = {}
    for figure in ("5", "6"):
        clouds = []
        for pair, measured in zip(pairs, alike, strict=True):
            if pair.figure == figure:
                places = on_a_plane(pair.first_ND, pair.second_MD)
                told_apart = f"told apart with AUC {measured.numbers['told_apart'].mean:.2f}"
                clouds.append(Cloud(f"{pair.title}\n{told_apart}", pair.labels, *places))
        if clouds:
            file = f"figure{figure}-{METHODS[method].file_name}.png"
            draw_clouds(clouds, out / file)
            what = (
                "real and virtual behaviours, one point a user"
                if figure == "5"
                else "new and old users"
            )
            pictures[file] = f"Figure {figure}: {what}, t-SNE of {method}, seed 1."
    return pictures


def _verdict(alike: Alike) -> str:
    numbers = {name: interval.mean for name, interval in alike.numbers.items()}
    verdict = f"{alike.method}, Figure {alike.figure}, {alike.title}: "
    if alike.figure == "6":
        return (
            verdict
            + f"new and old users are told apart with AUC {numbers['told_apart']:.2f} (.50: not at all)."
        )
    return verdict + (
        f"real and virtual ones are told apart with AUC {numbers['told_apart']:.2f} (.50: not at "
        "all); R² of the virtual about the same "
        f"user's real ones {numbers['r2']:.3f}, at their best scale {numbers['r2_scaled']:.3f}."
    )


def _as_markdown(found: Sequence[Alike], verdicts: Sequence[str], num_seeds: int) -> str:
    header = ["sets of vectors", "users", *_COLUMNS.values()]
    cells = [
        [
            f"{alike.method}, Fig. {alike.figure}, {alike.title}",
            " + ".join(map(str, alike.users)),
            *_cells(alike.numbers),
        ]
        for alike in found
    ]
    over = (
        f"means over {num_seeds} seeds with Student's 95 % intervals"
        if num_seeds > 1
        else "of one seed"
    )
    return (
        "## Figures 4 to 6: losses, virtual behaviours\n\n"
        f"Numbers are {over}. Told apart: a cross-validated nearest-neighbour classifier's AUC, "
        ".5 where two sets are of one distribution. "
        "R² is of the virtual behaviours about the same user's real ones, sums over a sequence's "
        "positions as BaseDNN has them; below 0 "
        "the mean of all users is nearer. At the best scale: after the shift and the factor that "
        "suit best.\n\n"
        f"{table(header, cells)}\n" + "".join(f"- {verdict}\n" for verdict in verdicts)
    )


def _cells(numbers: Mapping[str, Interval]) -> list[str]:
    return [_cell(numbers[name]) if name in numbers else "-" for name in _COLUMNS]


def _cell(interval: Interval) -> str:
    half: Any = interval.half_width
    return (
        f"{interval.mean:.3f}"
        if half is None or math.isnan(half)
        else f"{interval.mean:.3f} ± {half:.3f}"
    )
