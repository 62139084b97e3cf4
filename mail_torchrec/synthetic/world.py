"""The mathematics of the synthetic world: attributes decide interests, interests decide histories and clicks.

Shape letters: ``U`` users (of a chunk or all), ``N`` items, ``R`` rows, ``T`` history positions,
``K`` interest dimensions. Everything is drawn from numbered streams of one seed, so that a chunk of
users is the same whatever else is drawn.
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
    """A synthetic click log whose truth is known. The defaults give about 60,000 training and 20,000 test rows."""

    seed: int = Field(default=0, ge=0)
    """Another seed is another world; the same seed gives the same bits."""
    users: int = Field(default=15_000, ge=1)
    items: int = Field(default=400, ge=2)
    categories: int = Field(default=10, ge=1)
    """Item clusters; an item's vector is its category's plus its own part."""
    interest_dim: int = Field(default=6, ge=1)
    """Dimensions of interests and of item vectors; as many pairs of attributes decide them."""
    personal_share: float = Field(default=0.15, ge=0.0, le=1.0)
    """The share of the variance of interests that the attributes do not decide."""
    own_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """The share of the variance of item vectors that the category does not decide."""
    popularity_exponent: float = Field(default=0.6, ge=0.0)
    """Zipf: the k-th item is shown (and was seen) in proportion to ``k ** -exponent``."""
    max_history: int = Field(default=50, ge=1)
    min_history: int = Field(default=20, ge=0)
    """History lengths are uniform from ``min_history`` to ``max_history``."""
    history_sharpness: float = Field(default=3.0, ge=0.0)
    """How strictly a history follows interests: the factor of the affinity in the softmax that
    draws it."""
    train_rows_per_user: float = Field(default=4.0, ge=1.0)
    """Mean impressions a user in training: one plus a Poisson number."""
    test_users: float = Field(default=1 / 3, gt=0.0, le=1.0)
    """The share of users who come back on the test day."""
    test_rows_per_user: float = Field(default=4.0, ge=1.0)
    click_bias: float = -0.45
    """The logit of a click at no affinity and neutral context."""
    click_scale: float = Field(default=1.25, ge=0.0)
    """The factor of the affinity (mean 0, variance 1) in the logit of a click."""
    context_scale: float = Field(default=0.3, ge=0.0)
    """The factor of the effect of hour and device (mean 0, variance 1)."""
    train_days: int = Field(default=7, ge=1)
    files: int = Field(default=4, ge=1)
    """Parquet files for training; the test has half as many."""
    row_group_rows: int = Field(default=4096, ge=1)
    chunk_values: int = Field(default=2_000_000, ge=1)
    """Users are drawn in chunks of at most so many user-item pairs: the bound of the memory."""
    hide_share: float = Field(default=0.4, ge=0.0, le=1.0)
    """Only for ``world.json``: the best AUC is also given for this simulated cold start (with its
    default salt)."""


def stream(settings: WorldSettings, name: str, index: int = 0) -> np.random.Generator:
    """The random stream of one part of the world."""
    return np.random.default_rng([settings.seed, _STREAMS.index(name), index])


@dataclass(frozen=True)
class Items:
    """What there is to see."""

    vectors_NK: Floats
    category_N: Ints
    popularity_N: Floats
    """Probabilities."""


@dataclass(frozen=True)
class InterestMap:
    """Attributes -> interests: a fixed random network of products of two attributes.

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
        """Interests ``[U, K]``, each of mean 0 and variance 1 over users, uncorrelated."""
        paired = zip(self.pairs_K2, self.traits_K2, strict=True)
        units = [
            left[attributes_UA[:, a]] * right[attributes_UA[:, b]]
            for (a, b), (left, right) in paired
        ]
        return np.stack(units, axis=1) @ self.rotation_KK


def draw_items(settings: WorldSettings) -> Items:
    """Items by category, Zipf-like popularity in random order."""
    rng = stream(settings, "items")
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


def draw_map(settings: WorldSettings, shares: list[Floats]) -> InterestMap:
    """A random interest map for attributes whose levels have these shares of the users."""
    rng = stream(settings, "map")
    pairs = rng.permutation(list(combinations(range(len(shares)), 2)))
    pairs = pairs[np.arange(settings.interest_dim) % len(pairs)]
    traits = [(_trait(rng, shares[a]), _trait(rng, shares[b])) for a, b in pairs]
    rotation, _ = np.linalg.qr(rng.standard_normal((settings.interest_dim, settings.interest_dim)))
    return InterestMap(pairs, traits, rotation)


def _trait(rng: np.random.Generator, share: Floats) -> Floats:
    """One number a level, mean 0 and variance 1 over users."""
    trait = rng.standard_normal(len(share))
    trait -= share @ trait
    return np.asarray(trait / np.sqrt(share @ trait**2))


def draw_attributes(shares: list[Floats], rng: np.random.Generator, num_users: int) -> Ints:
    """Independent attributes, as level numbers ``[U, A]``."""
    return np.stack([rng.choice(len(share), size=num_users, p=share) for share in shares], axis=1)


def draw_interests(
    settings: WorldSettings,
    interest_map: InterestMap,
    attributes_UA: Ints,
    rng: np.random.Generator,
) -> Floats:
    """Interests: what the attributes say, and a personal part, ``[U, K]``."""
    said = interest_map(attributes_UA)
    interests: Floats = np.sqrt(1 - settings.personal_share) * said + np.sqrt(
        settings.personal_share
    ) * rng.standard_normal(said.shape)
    return interests


def affinity(interests_UK: Floats, vectors_NK: Floats) -> Floats:
    """How well items suit users, of variance about 1: ``[U, N]``."""
    suits: Floats = interests_UK @ vectors_NK.T / np.sqrt(vectors_NK.shape[1])
    return suits


def draw_from_rows(
    weights_UN: Floats, counts_U: Ints, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Draw ``counts_U[u]`` columns in proportion to row ``u``, with replacement, by the inverse of the distribution function.

    Returns:
        Row and column of each draw, row by row.
    """
    cumulative = np.cumsum(weights_UN, axis=1)
    cumulative /= cumulative[:, -1:]
    rows = np.repeat(np.arange(len(counts_U)), counts_U)
    # Shifting row u by u makes one increasing array of all rows, and one bisection serves every
    # draw.
    shifted = (cumulative + np.arange(len(counts_U))[:, None]).ravel()
    flat = np.searchsorted(shifted, rows + rng.random(len(rows)), side="right")
    return rows, np.minimum(flat - rows * weights_UN.shape[1], weights_UN.shape[1] - 1)


def draw_history(
    settings: WorldSettings, items: Items, affinity_UN: Floats, rng: np.random.Generator
) -> tuple[Ints, Ints, Ints]:
    """Histories, oldest first, and what was done: 3 liked, 2 watched long, 1 otherwise.

    Returns:
        Lengths ``[U]``; items and actions of all users, end to end.
    """
    lengths = rng.integers(
        settings.min_history, settings.max_history, size=len(affinity_UN), endpoint=True
    )
    logits = settings.history_sharpness * affinity_UN
    rows, seen = draw_from_rows(
        items.popularity_N * np.exp(logits - logits.max(axis=1, keepdims=True)), lengths, rng
    )
    pleasure = affinity_UN[rows, seen] + rng.standard_normal(len(rows))
    return lengths, seen, 1 + (pleasure > 1.0).astype(np.int64) + (pleasure > 2.5)


def context_effect(hour_R: Ints, device_R: Ints) -> Floats:
    """The effect of the context on the logit of a click, mean 0 and variance 1: evenings and tablets click more."""
    effect = np.sin((hour_R - 14) * np.pi / 12) + np.array([-1.0, 0.0, 1.0])[device_R]
    return np.asarray(effect / np.sqrt(0.5 + 2 / 3))


def click_probability(settings: WorldSettings, affinity_R: Floats, context_R: Floats) -> Floats:
    """The true probability of a click."""
    return np.asarray(
        1
        / (
            1
            + np.exp(
                -(
                    settings.click_bias
                    + settings.click_scale * affinity_R
                    + settings.context_scale * context_R
                )
            )
        )
    )


def row_counts(rng: np.random.Generator, num_users: int, mean: float) -> Ints:
    """Impressions a user: one plus a Poisson number."""
    return 1 + rng.poisson(mean - 1, size=num_users)
