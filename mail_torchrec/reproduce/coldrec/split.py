"""Split of ColdRec (YuanchenBei/ColdRec): warm and cold items, training, validation, test.

With the same order of pairs and the same seed it draws what the benchmark's script draws. Shapes:
``N`` pairs of a user and an item.
"""

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ColdRecSplit:
    """Indices of the pairs of each part; each pair is in one of them."""

    train: Ints
    """Pairs of warm items [pairs]."""
    warm_validation: Ints
    """Pairs whose user and item are both in ``train`` [pairs]."""
    warm_test: Ints
    """Likewise [pairs]."""
    cold_validation: Ints
    """Pairs of half of the cold items [pairs]."""
    cold_test: Ints
    """Pairs of the other half [pairs]."""


def split_pairs(
    users_N: Ints,
    items_N: Ints,
    *,
    seed: int = 42,
    warm_share: float = 0.8,
    validation_share: float = 0.1,
    test_share: float = 0.1,
) -> ColdRecSplit:
    """Splits distinct pairs by item into warm and cold, and the warm ones at random.

    Args:
        users_N: user of each pair.
        items_N: item of each pair.
        seed: of all draws.
        warm_share: of the items.
        validation_share: of the warm pairs.
        test_share: likewise.
    """
    legacy = np.random.RandomState(seed)  # the benchmark's generator
    pairs_of_items = _pairs_by_item(items_N)
    random.Random(seed).shuffle(pairs_of_items)
    num_warm = int(warm_share * len(pairs_of_items))
    warm = np.concatenate(pairs_of_items[:num_warm])
    cold = np.sort(np.concatenate(pairs_of_items[num_warm:]))
    legacy.shuffle(warm)
    num_validation, num_test = (int(s * len(warm)) for s in (validation_share, test_share))
    num_train = len(warm) - num_validation - num_test
    train = warm[:num_train]
    validation = warm[num_train : num_train + num_validation]
    train, validation = _known_only(train, validation, users_N, items_N)
    train, test = _known_only(train, warm[len(warm) - num_test :], users_N, items_N)
    groups = [cold[part] for part in _pairs_by_item(items_N[cold])]
    order = np.arange(len(groups))
    legacy.shuffle(order)
    half = len(groups) // 2
    of_validation, of_test = (
        np.concatenate([groups[i] for i in part]) for part in (order[:half], order[half:])
    )
    return ColdRecSplit(train, validation, test, of_validation, of_test)


def _pairs_by_item(items_N: Ints) -> list[Ints]:
    """Indices of the pairs of each item, in rising order of items."""
    order = np.argsort(items_N, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(items_N[order])) + 1)


def _known_only(train: Ints, held: Ints, users_N: Ints, items_N: Ints) -> tuple[Ints, Ints]:
    """Moves held-out pairs of users, then items, that training lacks into the training pairs."""
    for values_N in (users_N, items_N):
        is_known = np.isin(values_N[held], values_N[train])
        train, held = np.concatenate([train, held[~is_known]]), held[is_known]
    return train, held
