"""Figures with honest intervals: a paired bootstrap over users and seeds.

A figure of one method varies with the users who happened to be tested and with the seeds that
happened to be drawn. A resample draws both anew: users with replacement, all rows of a user
together, the same users for every method and seed; and seeds by normal multipliers, the same for
every method. Differences are taken inside a resample, so what two methods share cancels.

Drawing a handful of seeds with replacement would make intervals too narrow (five seeds: about 83 %
instead of 95 %). The multipliers are scaled so that, where users do not matter, the interval is
Student's t-interval over the seeds.

Shape letters: ``R`` rows, ``U`` users, ``S`` seeds, ``B`` the data as it is, then the resamples;
``K`` a few of these.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mail_torchrec.metrics.auc import wins_by_user
from mail_torchrec.metrics.predictions import Predictions
from mail_torchrec.reporting.comparison import FIGURES, Interval, t_quantile
from mail_torchrec.utils.logging import bar_interval

NUM_RESAMPLES = 1000
PARTS = {"new": True, "old": False}
"""Part of the rows -> whether its users are new."""
_NORMAL_QUANTILE = 1.959963984540054
_STREAM_OF_USERS, _STREAM_OF_SEEDS = 1, 2
_CELLS = 4_000_000  # rows times resamples worked on at a time: some 100 MB

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Resampled:
    """A figure of one method: its value for each seed, on the data (first column) and on each resample of the users."""

    values_SB: Floats

    @property
    def seeds(self) -> list[float]:
        """The value of each seed on the data."""
        return [float(value) for value in self.values_SB[:, 0]]

    def over_seeds_B(self) -> Floats:
        """The mean over seeds of the data, then over each resample's seeds."""
        num_seeds, num_columns = self.values_SB.shape
        result: Floats = np.einsum(
            "sb,sb->b", seed_weights_SB(num_seeds, num_columns - 1), self.values_SB
        )
        return result

    def interval(self) -> Interval | None:
        """The mean and its 95 % interval; None where the figure is undefined."""
        return _interval(self.over_seeds_B(), len(self.values_SB))


def resample(
    runs: Mapping[str, Iterable[Predictions]], num_resamples: int = NUM_RESAMPLES
) -> dict[str, dict[str, dict[str, Resampled]]]:
    """Resamples the figures of all methods.

    Args:
        runs: method -> its predictions, a seed each, in the same order of seeds for every method.
            Read one at a time.
        num_resamples: how often users and seeds are drawn anew.

    Returns:
        method -> part (new, old) -> figure (auc, gauc) -> :class:`Resampled`.

    Raises:
        ValueError: runs of other rows than the first, or not one run a seed for every method.
    """
    first: tuple[str, Predictions] | None = None
    resampled: dict[str, dict[str, dict[str, Resampled]]] = {}
    num_seeds: dict[str, int] = {}
    for name, of_method in runs.items():
        columns: dict[tuple[str, str], list[Floats]] = {}
        for run in of_method:
            first = first or (name, run)
            _check_same_rows(name, run, *first)
            for part, is_new in PARTS.items():
                for figure, values_B in figures_B(run.part(is_new=is_new), num_resamples).items():
                    columns.setdefault((part, figure), []).append(values_B)
            num_seeds[name] = num_seeds.get(name, 0) + 1
        resampled[name] = {
            part: {figure: Resampled(np.stack(columns[part, figure])) for figure in FIGURES}
            for part in PARTS
        }
    if len(set(num_seeds.values())) > 1:
        raise ValueError(
            f"each method should have the same seeds, received so many runs: {num_seeds}"
        )
    return resampled


def resample_files(
    files: Mapping[str, Sequence[Path]], num_resamples: int = NUM_RESAMPLES
) -> dict[str, dict[str, dict[str, Resampled]]]:
    """:func:`resample` of predictions in files, a seed each, read one at a time, with a progress bar."""
    with tqdm(
        total=sum(map(len, files.values())),
        desc="resampling",
        unit="run",
        leave=False,
        mininterval=bar_interval(),
    ) as bar:

        def load(path: Path) -> Predictions:
            bar.update()
            return Predictions.load(path)

        return resample({name: map(load, paths) for name, paths in files.items()}, num_resamples)


def difference(method: Resampled, base: Resampled) -> Interval | None:
    """Method minus base, users and seeds paired; None where a figure is undefined."""
    return Resampled(method.values_SB - base.values_SB).interval()


def headroom_recovered(method: Resampled, base: Resampled, oracle: Resampled) -> Interval | None:
    """(method - base) / (oracle - base), a ratio of means over seeds.

    Returns:
        None where the oracle is not clearly above the base: there is nothing to recover, and the
        ratio would be noise.
    """
    room = difference(oracle, base)
    if room is None or not (room.low if room.low is not None else room.mean) > 0:
        return None
    gain_B = Resampled(method.values_SB - base.values_SB).over_seeds_B()
    return _interval(
        gain_B / Resampled(oracle.values_SB - base.values_SB).over_seeds_B(), len(method.values_SB)
    )


def relative_improvement(method: float, base: float) -> float:
    """RI of Eq. 18, in percent."""
    return (method - base) / base * 100


def figures_B(rows: Predictions, num_resamples: int) -> dict[str, Floats]:
    """AUC and GAUC of one run's part: on the data, then on each resample of its users; nan where undefined."""
    users_U, user_of_R = np.unique(rows.users_R, return_inverse=True)
    ranked = Ranked(rows.scores_R, rows.labels_R, user_of_R)
    twice_wins_U, positives_U, negatives_U = wins_by_user(
        rows.scores_R, rows.labels_R, rows.users_R
    )
    pairs_U = positives_U * negatives_U
    rows_U = np.where(pairs_U > 0, positives_U + negatives_U, 0)
    auc_U = twice_wins_U / np.maximum(2 * pairs_U, 1)
    auc, gauc = [], []
    for counts_UK in user_draws(
        len(users_U), num_resamples, max(1, _CELLS // max(len(rows.scores_R), 1))
    ):
        auc.append(ranked.auc_K(counts_UK))
        gauc.append(_ratio((rows_U * auc_U) @ counts_UK, rows_U @ counts_UK))
    return {"auc": np.concatenate(auc), "gauc": np.concatenate(gauc)}


class Ranked:
    """Rows sorted by score once, for the weighted AUC under many weights of their users.

    Args:
        scores_R: any monotone function of the predicted probability.
        labels_R: 0 or 1.
        user_of_R: the number 0 .. U - 1 of each row's user.
    """

    def __init__(
        self, scores_R: NDArray[Any], labels_R: NDArray[Any], user_of_R: NDArray[np.int64]
    ) -> None:
        positive, negative = np.flatnonzero(labels_R == 1), np.flatnonzero(labels_R == 0)
        negative = negative[np.argsort(scores_R[negative], kind="stable")]
        self._positive_users, self._negative_users = user_of_R[positive], user_of_R[negative]
        sides = (
            np.searchsorted(scores_R[negative], scores_R[positive], side)
            for side in ("left", "right")
        )
        self._below, self._not_above = (
            sides  # negatives that score less, and at most as much: a tie is half a win
        )

    def auc_K(self, weights_UK: Floats) -> Floats:
        """The share of the weight of (positive, negative) pairs in the right order, for each column of user weights; nan without pairs."""
        positives_PK = weights_UK[self._positive_users]
        up_to_NK = np.zeros((len(self._negative_users) + 1, weights_UK.shape[1]))
        np.cumsum(weights_UK[self._negative_users], axis=0, out=up_to_NK[1:])
        twice_wins_K = np.einsum(
            "pk,pk->k", positives_PK, up_to_NK[self._below] + up_to_NK[self._not_above]
        )
        return _ratio(twice_wins_K, 2 * positives_PK.sum(0) * up_to_NK[-1])


def user_draws(num_users: int, num_resamples: int, at_a_time: int) -> Iterator[Floats]:
    """How often each user is drawn, ``[U, K]`` a piece: once in the first column of all, then at random, the same in every call."""
    for start in range(0, num_resamples + 1, at_a_time):
        yield np.stack(
            [
                _draw(num_users, column)
                for column in range(start, min(start + at_a_time, num_resamples + 1))
            ],
            axis=1,
            dtype=np.float64,
        )


def seed_weights_SB(num_seeds: int, num_resamples: int) -> Floats:
    """What each seed counts in the mean: equally in the first column, then spread so that the mean varies as Student's t says."""
    weights_SB = np.full((num_seeds, num_resamples + 1), 1 / num_seeds)
    if num_seeds > 1:
        normal_SB = (
            np.random.default_rng([_STREAM_OF_SEEDS, num_seeds])
            .standard_normal((num_resamples, num_seeds))
            .T
        )
        spread = t_quantile(num_seeds - 1) / _NORMAL_QUANTILE / np.sqrt(num_seeds * (num_seeds - 1))
        weights_SB[:, 1:] += spread * (normal_SB - normal_SB.mean(0))
    return weights_SB


def _draw(num_users: int, column: int) -> NDArray[np.int64]:
    if column == 0 or num_users == 0:
        return np.ones(num_users, np.int64)
    random = np.random.default_rng([_STREAM_OF_USERS, column])
    return np.bincount(random.integers(num_users, size=num_users), minlength=num_users)


def _interval(values_B: Floats, num_seeds: int) -> Interval | None:
    if np.isnan(values_B[0]):
        return None
    # A resample may lack one class where users are very few.
    low, high = np.nanquantile(values_B[1:], [0.025, 0.975]) if len(values_B) > 1 else (None, None)
    return Interval(
        float(values_B[0]),
        low if low is None else float(low),
        high if high is None else float(high),
        num_seeds,
    )


def _ratio(above: Floats, below: Floats) -> Floats:
    result: Floats = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return result


def _check_same_rows(name: str, run: Predictions, first_name: str, first: Predictions) -> None:
    for what in ("labels_R", "users_R", "is_new_R"):
        if not np.array_equal(getattr(run, what), getattr(first, what)):
            raise ValueError(
                f"'{name}' was evaluated on other rows than '{first_name}' ({what[:-2]} differ); "
                "the test data changed between runs"
            )
