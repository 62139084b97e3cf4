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

from mail_torchrec.synthetic.settings import GroundTruthSettings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NUM_DEVICES = 3
_STREAMS = (
    *("items", "item_columns", "map", "users", "histories", "train", "test"),
    *("day_items", "day_users", "day_rows"),
)


def random_stream(
    settings: GroundTruthSettings, name: str, index: int = 0, *more: int
) -> np.random.Generator:
    """Opens the random stream of one part of the world.

    Args:
        settings: with the seed.
        name: of the part.
        index: chunk of users, or day.
        more: numbers that tell further streams of the part apart.
    """
    return np.random.default_rng([settings.seed, _STREAMS.index(name), index, *more])


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


def sample_items(settings: GroundTruthSettings) -> Items:
    """Samples items around the centres of their categories, with Zipf-like popularity."""
    rng = random_stream(settings, "items")
    centres = rng.standard_normal((settings.categories, settings.interest_dim))
    category = rng.integers(settings.categories, size=settings.items)
    own = rng.standard_normal((settings.items, settings.interest_dim))
    popularity = rng.permutation(np.arange(1, settings.items + 1) ** -settings.popularity_exponent)
    popularity /= popularity.sum()
    vectors = item_vectors(settings, centres[category], own, popularity)
    return Items(vectors, category, popularity)


def item_vectors(
    settings: GroundTruthSettings, centre_NK: Floats, own_NK: Floats, popularity_N: Floats
) -> Floats:
    """Computes item vectors ``[N, K]``, of mean 0 and variance 1 over what is shown.

    Args:
        settings: with the share of the own part.
        centre_NK: the centre of each item's category.
        own_NK: each item's own part.
        popularity_N: probability that an item is shown.
    """
    share = settings.own_share
    vectors_NK = np.sqrt(1 - share) * centre_NK + np.sqrt(share) * own_NK
    vectors_NK -= popularity_N @ vectors_NK
    return np.asarray(vectors_NK / np.sqrt(popularity_N @ vectors_NK**2))


def sample_interest_map(settings: GroundTruthSettings, shares: list[Floats]) -> InterestMap:
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
    settings: GroundTruthSettings,
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
    settings: GroundTruthSettings, items: Items, affinity_UN: Floats, rng: np.random.Generator
) -> tuple[Ints, Ints, Ints]:
    """Samples histories, oldest first, and their actions.

    Returns:
        Lengths ``[U]``; items and actions ``[E]`` of all users, end to end.
    """
    shortest, longest = settings.min_history, settings.max_history
    lengths_U = rng.integers(shortest, longest, size=len(affinity_UN), endpoint=True)
    return lengths_U, *sample_events(settings, items, affinity_UN, lengths_U, rng)


def sample_events(
    settings: GroundTruthSettings,
    items: Items,
    affinity_UN: Floats,
    lengths_U: Ints,
    rng: np.random.Generator,
) -> tuple[Ints, Ints]:
    """Samples events of users, and actions: 3 liked, 2 watched long, 1 otherwise.

    Args:
        settings: with the sharpness of histories.
        items: the catalogue.
        affinity_UN: affinity of these users to every item.
        lengths_U: number of each user's events.
        rng: random stream of the events.

    Returns:
        Items and actions ``[E]`` of all users, end to end.
    """
    logits_UN = settings.history_sharpness * affinity_UN
    weights_UN = items.popularity_N * np.exp(logits_UN - logits_UN.max(axis=1, keepdims=True))
    users_E, items_E = sample_columns(weights_UN, lengths_U, rng)
    satisfaction_E = affinity_UN[users_E, items_E] + rng.standard_normal(len(users_E))
    actions_E = 1 + (satisfaction_E > 1.0).astype(np.int64) + (satisfaction_E > 2.5)
    return items_E, actions_E


def context_effect(hour_R: Ints, device_R: Ints) -> Floats:
    """Computes the effect ``[R]`` of the context on the logit of a click, of mean 0 and variance 1.

    Clicks are more frequent in the evening and on tablets.
    """
    effect = np.sin((hour_R - 14) * np.pi / 12) + np.array([-1.0, 0.0, 1.0])[device_R]
    return np.asarray(effect / np.sqrt(0.5 + 2 / 3))


def click_probability(
    settings: GroundTruthSettings, affinity_R: Floats, context_R: Floats
) -> Floats:
    """Computes the true probability ``[R]`` of a click."""
    logits_R = (
        settings.click_bias + settings.click_scale * affinity_R + settings.context_scale * context_R
    )
    return np.asarray(1 / (1 + np.exp(-logits_R)))


def sample_impression_counts(rng: np.random.Generator, num_users: int, mean: float) -> Ints:
    """Samples the impressions ``[U]`` of users: one plus a Poisson number each."""
    return 1 + rng.poisson(mean - 1, size=num_users)


def user_chunks(settings: GroundTruthSettings, users: Ints) -> list[Ints]:
    """Splits users into chunks that bound the memory, at least one chunk a file.

    Args:
        settings: bounds of a chunk, and the number of files.
        users: [U].
    """
    by_memory = settings.chunk_values // settings.items
    size = max(1, min(by_memory, -(-len(users) // settings.files)))
    return np.split(users, np.arange(size, len(users), size))
