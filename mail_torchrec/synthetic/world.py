"""Samples a synthetic world: attributes decide interests, interests decide histories and clicks.

Shape letters: ``U`` users (of a chunk or all), ``N`` items, ``R`` rows, ``K`` interest dimensions,
``A`` attributes, ``L`` levels of an attribute, ``E`` history events of all users. Everything is
sampled from numbered random streams of one seed, so that a chunk of users is the same whatever else
is sampled.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mail_torchrec.settings import Settings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NUM_DEVICES = 3
_STREAMS = ("items", "item_columns", "map", "users", "histories", "train", "test")


class WorldSettings(Settings):
    """Settings of a synthetic click log.

    The defaults give about 60,000 training and 20,000 test rows.
    """

    seed: int = Field(default=0, ge=0)
    """Another seed is another world; the same seed gives the same bits."""
    users: int = Field(default=15_000, ge=1)
    """Number of users; all of them have training rows."""
    items: int = Field(default=400, ge=2)
    """Number of items."""
    categories: int = Field(default=10, ge=1)
    """Number of item clusters; an item's vector is its category's plus a part of its own."""
    interest_dim: int = Field(default=6, ge=1)
    """Dimension of interests and of item vectors; as many pairs of attributes decide them."""
    personal_share: float = Field(default=0.15, ge=0.0, le=1.0)
    """Share of the variance of interests that the attributes do not decide."""
    own_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the variance of item vectors that the category does not decide."""
    popularity_exponent: float = Field(default=0.6, ge=0.0)
    """Exponent of Zipf's law: the k-th item is shown in proportion to ``k ** -exponent``."""
    max_history: int = Field(default=50, ge=1)
    """Longest history; lengths are uniform from ``min_history`` to ``max_history``."""
    min_history: int = Field(default=20, ge=0)
    """Shortest history."""
    history_sharpness: float = Field(default=3.0, ge=0.0)
    """Factor of the affinity in the softmax of histories; 0 makes histories ignore interests."""
    train_rows_per_user: float = Field(default=4.0, ge=1.0)
    """Mean training impressions a user: one plus a Poisson number."""
    test_users: float = Field(default=1 / 3, gt=0.0, le=1.0)
    """Share of users who come back on the test day."""
    test_rows_per_user: float = Field(default=4.0, ge=1.0)
    """Mean test impressions of a user who comes back."""
    click_bias: float = -0.45
    """Logit of a click at affinity 0 and neutral context."""
    click_scale: float = Field(default=1.25, ge=0.0)
    """Factor of the affinity (mean 0, variance 1) in the logit of a click."""
    context_scale: float = Field(default=0.3, ge=0.0)
    """Factor of the effect of hour and device (mean 0, variance 1) in the logit of a click."""
    train_days: int = Field(default=7, ge=1)
    """Days of training rows; the test day follows them."""
    files: int = Field(default=4, ge=1)
    """Parquet files of the training rows; the test rows have half as many."""
    row_group_rows: int = Field(default=4096, ge=1)
    """Rows a Parquet row group."""
    chunk_values: int = Field(default=2_000_000, ge=1)
    """User-item pairs that are sampled at a time, which bounds the memory."""
    hide_share: float = Field(default=0.4, ge=0.0, le=1.0)
    """Share of users hidden by the simulated cold start, for ``world.json``'s best AUC alone."""


def random_stream(settings: WorldSettings, name: str, index: int = 0) -> np.random.Generator:
    """Opens the random stream of one part of the world; ``index`` is the chunk of users."""
    return np.random.default_rng([settings.seed, _STREAMS.index(name), index])


@dataclass(frozen=True)
class Items:
    """The catalogue of items."""

    vectors_NK: Floats
    category_N: Ints
    popularity_N: Floats
    """Probability that an item is shown; sums to 1."""


@dataclass(frozen=True)
class InterestMap:
    """Maps attributes to interests by a fixed random network of products of two attributes.

    Its k-th hidden unit is ``left_k[x_a] * right_k[x_b]`` for one pair ``(a, b)`` of attributes,
    and a random rotation mixes the units. The traits ``left_k`` and ``right_k`` have mean 0 over
    users and attributes are independent, so the best prediction of interests from any single
    attribute is constant, and so is that of every sum of functions of single attributes: an
    additive model explains nothing.
    """

    pairs_K2: Ints
    traits_K2: list[tuple[Floats, Floats]]
    rotation_KK: Floats

    def __call__(self, attributes_UA: Ints) -> Floats:
        """Computes interests ``[U, K]``: uncorrelated, each of mean 0 and variance 1 over users."""
        paired = zip(self.pairs_K2, self.traits_K2, strict=True)
        units = [
            left[attributes_UA[:, a]] * right[attributes_UA[:, b]]
            for (a, b), (left, right) in paired
        ]
        return np.stack(units, axis=1) @ self.rotation_KK


def sample_items(settings: WorldSettings) -> Items:
    """Samples items around the centres of their categories, with Zipf-like popularity."""
    rng = random_stream(settings, "items")
    centres = rng.standard_normal((settings.categories, settings.interest_dim))
    category = rng.integers(settings.categories, size=settings.items)
    own = rng.standard_normal((settings.items, settings.interest_dim))
    vectors = (
        np.sqrt(1 - settings.own_share) * centres[category] + np.sqrt(settings.own_share) * own
    )
    popularity = rng.permutation(np.arange(1, settings.items + 1) ** -settings.popularity_exponent)
    popularity /= popularity.sum()
    vectors -= popularity @ vectors
    vectors /= np.sqrt(popularity @ vectors**2)
    return Items(vectors, category, popularity)


def sample_interest_map(settings: WorldSettings, shares: list[Floats]) -> InterestMap:
    """Samples an interest map; ``shares`` holds the users' share ``[L]`` of each level."""
    rng = random_stream(settings, "map")
    pairs = rng.permutation(list(combinations(range(len(shares)), 2)))
    pairs = pairs[np.arange(settings.interest_dim) % len(pairs)]
    traits = [(_trait(rng, shares[a]), _trait(rng, shares[b])) for a, b in pairs]
    rotation, _ = np.linalg.qr(rng.standard_normal((settings.interest_dim, settings.interest_dim)))
    return InterestMap(pairs, traits, rotation)


def _trait(rng: np.random.Generator, share_L: Floats) -> Floats:
    """Samples one number a level ``[L]``, of mean 0 and variance 1 over users."""
    trait_L = rng.standard_normal(len(share_L))
    trait_L -= share_L @ trait_L
    return np.asarray(trait_L / np.sqrt(share_L @ trait_L**2))


def sample_attributes(shares: list[Floats], rng: np.random.Generator, num_users: int) -> Ints:
    """Samples independent attributes.

    Args:
        shares: the users' share [L] of each level, for each attribute.
        rng: random stream of the users.
        num_users: U.

    Returns:
        Level numbers ``[U, A]``.
    """
    return np.stack([rng.choice(len(share), size=num_users, p=share) for share in shares], axis=1)


def sample_interests(
    settings: WorldSettings,
    interest_map: InterestMap,
    attributes_UA: Ints,
    rng: np.random.Generator,
) -> Floats:
    """Samples interests ``[U, K]``: the part that attributes decide, and a personal part."""
    decided = interest_map(attributes_UA)
    interests: Floats = np.sqrt(1 - settings.personal_share) * decided + np.sqrt(
        settings.personal_share
    ) * rng.standard_normal(decided.shape)
    return interests


def compute_affinity(interests_UK: Floats, vectors_NK: Floats) -> Floats:
    """Computes the affinity ``[U, N]`` of users to items, of variance about 1."""
    affinity_UN: Floats = interests_UK @ vectors_NK.T / np.sqrt(vectors_NK.shape[1])
    return affinity_UN


def sample_columns(
    weights_UN: Floats, counts_U: Ints, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Samples ``counts_U[u]`` columns in proportion to row ``u``, with replacement.

    Inverts the cumulative distribution of each row.

    Returns:
        Row and column of each sample, row by row.
    """
    cumulative = np.cumsum(weights_UN, axis=1)
    cumulative /= cumulative[:, -1:]
    rows = np.repeat(np.arange(len(counts_U)), counts_U)
    # Shifting row u by u makes one increasing array of all rows, and one bisection serves every
    # sample.
    shifted = (cumulative + np.arange(len(counts_U))[:, None]).ravel()
    flat = np.searchsorted(shifted, rows + rng.random(len(rows)), side="right")
    return rows, np.minimum(flat - rows * weights_UN.shape[1], weights_UN.shape[1] - 1)


def sample_histories(
    settings: WorldSettings, items: Items, affinity_UN: Floats, rng: np.random.Generator
) -> tuple[Ints, Ints, Ints]:
    """Samples histories, oldest first, and actions: 3 liked, 2 watched long, 1 otherwise.

    Returns:
        Lengths ``[U]``; items and actions ``[E]`` of all users, end to end.
    """
    shortest, longest = settings.min_history, settings.max_history
    lengths_U = rng.integers(shortest, longest, size=len(affinity_UN), endpoint=True)
    logits_UN = settings.history_sharpness * affinity_UN
    weights_UN = items.popularity_N * np.exp(logits_UN - logits_UN.max(axis=1, keepdims=True))
    users_E, items_E = sample_columns(weights_UN, lengths_U, rng)
    satisfaction_E = affinity_UN[users_E, items_E] + rng.standard_normal(len(users_E))
    actions_E = 1 + (satisfaction_E > 1.0).astype(np.int64) + (satisfaction_E > 2.5)
    return lengths_U, items_E, actions_E


def context_effect(hour_R: Ints, device_R: Ints) -> Floats:
    """Computes the effect ``[R]`` of the context on the logit of a click, of mean 0 and variance 1.

    Clicks are more frequent in the evening and on tablets.
    """
    effect = np.sin((hour_R - 14) * np.pi / 12) + np.array([-1.0, 0.0, 1.0])[device_R]
    return np.asarray(effect / np.sqrt(0.5 + 2 / 3))


def click_probability(settings: WorldSettings, affinity_R: Floats, context_R: Floats) -> Floats:
    """Computes the true probability ``[R]`` of a click."""
    logits_R = (
        settings.click_bias + settings.click_scale * affinity_R + settings.context_scale * context_R
    )
    return np.asarray(1 / (1 + np.exp(-logits_R)))


def sample_impression_counts(rng: np.random.Generator, num_users: int, mean: float) -> Ints:
    """Samples the impressions ``[U]`` of users: one plus a Poisson number each."""
    return 1 + rng.poisson(mean - 1, size=num_users)
