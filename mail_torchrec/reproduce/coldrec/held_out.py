"""Held-out pairs of ColdRec's three settings, and what a method's scores are worth on them.

Shapes: ``U`` tested users, ``I`` items, ``B`` the data as it is, then the resamples.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mail_torchrec.reproduce.bootstrap import BootstrappedMetric
from mail_torchrec.reproduce.coldrec.click_log import ClickLog
from mail_torchrec.reproduce.coldrec.ranking_metrics import (
    RANKING_METRICS,
    Bools,
    Floats,
    ranking_metrics,
)
from mail_torchrec.reproduce.coldrec.split import ColdRecSplit, Ints
from mail_torchrec.reproduce.resampling import user_counts

SETTINGS = ("cold", "warm", "overall")
"""Ranked are the cold items, the warm ones, or all."""
RankingMetrics = dict[str, dict[str, Floats]]
"""Values of the users [U], by setting and metric."""


@dataclass(frozen=True)
class HeldOutPairs:
    """Items that each tested user chose in the held-out pairs, and those that are ranked."""

    positive_UI: dict[str, Bools]
    """By setting."""
    masked_UI: dict[str, Bools]
    """Items that are not ranked: those of the user's training pairs, and of the other settings."""

    @staticmethod
    def of(log: ClickLog, split: ColdRecSplit, users_U: Ints) -> "HeldOutPairs":
        """Finds the pairs of some users.

        Args:
            log: clicks.
            split: of the clicks.
            users_U: rows of the users.
        """
        is_cold_I = np.zeros(len(log.items), np.bool_)
        is_cold_I[cold_items(log, split)] = True
        trained_UI, cold_UI, warm_UI = (
            _chosen_UI(log, part, users_U)
            for part in (split.train, split.cold_test, split.warm_test)
        )
        return HeldOutPairs(
            {"cold": cold_UI, "warm": warm_UI, "overall": cold_UI | warm_UI},
            {
                "cold": trained_UI | ~is_cold_I,
                "warm": trained_UI | is_cold_I,
                "overall": trained_UI,
            },
        )

    def metrics(self, scores_UI: Floats, k: int) -> RankingMetrics:
        """Computes recall and NDCG of each user in each setting.

        Args:
            scores_UI: of each user and item.
            k: length of the rankings.
        """
        return {
            setting: ranking_metrics(
                scores_UI, self.positive_UI[setting], self.masked_UI[setting], k
            )
            for setting in SETTINGS
        }


def _chosen_UI(log: ClickLog, clicks_N: Ints, users_U: Ints) -> Bools:
    """Marks the items of some clicks, for some users of a log."""
    places = np.full(len(log.users), -1)
    places[users_U] = np.arange(len(users_U))
    places_N = places[log.users_N[clicks_N]]
    is_chosen_UI = np.zeros((len(users_U), len(log.items)), np.bool_)
    is_chosen_UI[places_N[places_N >= 0], log.items_N[clicks_N[places_N >= 0]]] = True
    return is_chosen_UI


def cold_items(log: ClickLog, split: ColdRecSplit) -> Ints:
    """Returns the rows of the cold items [items], in rising order."""
    cold = np.concatenate([split.cold_validation, split.cold_test])
    items: Ints = np.unique(log.items_N[cold])
    return items


def bootstrap_rankings(
    seeds: list[RankingMetrics], num_resamples: int
) -> dict[tuple[str, str], BootstrappedMetric]:
    """Bootstraps the means over the users of one method, by setting and metric.

    Args:
        seeds: values of the users for each seed; the same users for every method.
        num_resamples: number of times that users are drawn anew.
    """
    return {
        (setting, metric): BootstrappedMetric(
            np.stack([_resampled_means_B(seed[setting][metric], num_resamples) for seed in seeds])
        )
        for setting in SETTINGS
        for metric in RANKING_METRICS
    }


def _resampled_means_B(values_U: Floats, num_resamples: int) -> npt.NDArray[np.float64]:
    """Computes the mean over the users who have a value, for the data and each resample."""
    has_value_U = ~np.isnan(values_U)
    sums_U = np.where(has_value_U, values_U, 0.0)
    means = []
    for counts_UK in user_counts(len(values_U), num_resamples, at_a_time=100):
        with np.errstate(invalid="ignore"):
            means.append(sums_U @ counts_UK / (has_value_U @ counts_UK))
    return np.concatenate(means)
