"""Builds the Arrow tables of a synthetic world: items, users with histories, and impressions.

Shape letters: ``U`` users of a chunk, ``N`` items, ``R`` rows, ``A`` attributes.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mail_torchrec.synthetic.settings import GroundTruthSettings, WorldSettings
from mail_torchrec.synthetic.world import (
    NUM_DEVICES,
    Floats,
    InterestMap,
    Ints,
    Items,
    click_probability,
    compute_affinity,
    context_effect,
    random_stream,
    sample_attributes,
    sample_columns,
    sample_histories,
    sample_impression_counts,
    sample_interest_map,
    sample_interests,
    sample_items,
)

ATTRIBUTES: dict[str, tuple[pa.DataType, list[str | int | None]]] = {
    "attr_age": (pa.string(), ["12-17", "18-23", "24-30", "31-40", "41-49", "50+"]),
    "attr_gender": (pa.string(), ["f", "m", None]),
    "attr_city_level": (pa.int32(), [-1, 1, 2, 3, 4, 5]),
    "attr_phone": (pa.string(), ["A", "B", "C", "D", "E", "F", "other"]),
    "attr_activity": (pa.string(), ["full_active", "high_active", "middle_active", "low_active"]),
    "attr_tenure": (pa.int64(), [-124, 30, 90, 365, 730]),
    "attr_following": (pa.string(), ["0", "(0,10]", "(10,50]", "(50,100]", "100+", None]),
    "attr_channel": (pa.int8(), [-1, 0, 1, 2]),
}
"""Type and levels of each attribute. None is a level like any other: that a user did not state an
attribute decides interests too."""
DEVICES = ["phone", "tablet", "tv"]
_NO_TAGS_SHARE, _NO_PRICE_SHARE, _NUM_TAGS = 0.1, 0.05, 30
_FIRST_ITEM_NUMBER, _FIRST_USER_NUMBER = 1, 10**9


@dataclass(frozen=True)
class World:
    """The ground truth of a world, and its items as a table."""

    settings: WorldSettings
    items: Items
    interest_map: InterestMap
    item_table: pa.Table

    @staticmethod
    def sample(settings: WorldSettings) -> "World":
        """Samples the ground truth of these settings."""
        items, interest_map = ground_truth(settings)
        rng = random_stream(settings, "item_columns")
        table = item_table(settings, np.arange(settings.items), items.category_N, rng)
        return World(settings, items, interest_map, table)


def ground_truth(settings: GroundTruthSettings) -> tuple[Items, InterestMap]:
    """Samples the items, and the map from attributes to interests.

    The map takes level numbers of the attributes in the order of :data:`ATTRIBUTES`.
    """
    return sample_items(settings), sample_interest_map(settings, level_shares())


def sample_users(world: World, chunk: int, users: Ints) -> tuple[pa.Table, Floats]:
    """Samples the users of a chunk.

    Args:
        world: the ground truth.
        chunk: number of the chunk.
        users: numbers of its users ``[U]``.

    Returns:
        One row a user (id, attributes, history), and the affinity ``[U, N]`` to every item.
    """
    settings = world.settings
    rng = random_stream(settings, "users", chunk)
    attributes_UA = sample_attributes(level_shares(), rng, len(users))
    interests_UK = sample_interests(settings, world.interest_map, attributes_UA, rng)
    affinity_UN = compute_affinity(interests_UK, world.items.vectors_NK)
    rng = random_stream(settings, "histories", chunk)
    history = sample_histories(settings, world.items, affinity_UN, rng)
    return user_table(users, attributes_UA, *history), affinity_UN


def user_table(
    users: Ints, attributes_UA: Ints, lengths_U: Ints, items_E: Ints, actions_E: Ints
) -> pa.Table:
    """Builds one row a user: id, attributes, history.

    Args:
        users: numbers of the users ``[U]``.
        attributes_UA: level numbers of their attributes.
        lengths_U: lengths of their histories.
        items_E: numbers of the items of all histories ``[E]``, end to end.
        actions_E: the action at each of these.
    """
    columns = {"user_id": pa.array(_scramble_ids(users, _FIRST_USER_NUMBER))}
    for (name, (kind, levels)), level_U in zip(ATTRIBUTES.items(), attributes_UA.T, strict=True):
        columns[name] = pa.array(levels, kind).take(pa.array(level_U))
    offsets = pa.array(np.append(0, np.cumsum(lengths_U)), pa.int32())
    ids = pa.array(_scramble_ids(items_E, _FIRST_ITEM_NUMBER))
    columns["history"] = pa.ListArray.from_arrays(offsets, ids)
    columns["history_actions"] = pa.ListArray.from_arrays(offsets, pa.array(actions_E, pa.int8()))
    return pa.table(columns)


def sample_impressions(
    world: World, user_table: pa.Table, affinity_UN: Floats, part: str, chunk: int
) -> pa.Table:
    """Samples the impressions of a chunk of users, in random order.

    Args:
        world: the ground truth.
        user_table: one row a user, of :func:`sample_users`.
        affinity_UN: affinity of these users to every item.
        part: ``train`` or ``test``.
        chunk: number of the chunk.
    """
    settings = world.settings
    rng = random_stream(settings, part, chunk)
    counts_U = _impression_counts(settings, part, len(user_table), rng)
    user_R = rng.permutation(np.repeat(np.arange(len(user_table)), counts_U))
    shown = Shown(world.items, world.item_table)
    rows = impression_columns(settings, shown, user_table, affinity_UN, user_R, rng)
    rows["day"] = pa.array(_sample_days(settings, part, len(user_R), rng), pa.int32())
    return pa.table(rows)


@dataclass(frozen=True)
class Shown:
    """Items that are shown: their truth, and one row an item."""

    items: Items
    table: pa.Table


def impression_columns(
    settings: GroundTruthSettings,
    shown: Shown,
    user_table: pa.Table,
    affinity_UN: Floats,
    user_R: Ints,
    rng: np.random.Generator,
) -> dict[str, pa.Array | pa.ChunkedArray]:
    """Samples items, context and clicks of impressions, and returns all their columns.

    Args:
        settings: of the click probability.
        shown: the items.
        user_table: one row a user.
        affinity_UN: affinity of these users to every item.
        user_R: the user of each impression, as a row of the table.
        rng: random stream of the impressions.
    """
    popularity_1N = shown.items.popularity_N[None]
    _, item_R = sample_columns(popularity_1N, np.array([len(user_R)]), rng)
    hour_R = rng.integers(24, size=len(user_R))
    device_R = rng.integers(NUM_DEVICES, size=len(user_R))
    context_R = context_effect(hour_R, device_R)
    probability_R = click_probability(settings, affinity_UN[user_R, item_R], context_R)
    return (
        _take(user_table, user_R)
        | _take(shown.table, item_R)
        | {
            "hour": pa.array(hour_R, pa.int32()),
            "device": pa.array(DEVICES).take(pa.array(device_R)),
            "is_click": pa.array(rng.random(len(user_R)) < probability_R).cast(pa.int32()),
            "click_probability": pa.array(probability_R),
        }
    )


def level_shares() -> list[Floats]:
    """Computes the share of users at each level of each attribute.

    The first level of an attribute is twice as frequent as the last one.
    """
    weights = [np.linspace(2, 1, len(levels)) for _, levels in ATTRIBUTES.values()]
    return [of_levels / of_levels.sum() for of_levels in weights]


def _scramble_ids(numbers: Ints, start: int) -> Ints:
    """Maps different numbers to different ids spread over 0 .. 2^62 - 1.

    An odd factor is a bijection modulo a power of two.
    """
    words = (numbers + start).astype(np.uint64) * np.uint64(0x2545F4914F6CDD1D)
    return (words & np.uint64(2**62 - 1)).astype(np.int64)


def item_table(
    settings: GroundTruthSettings, numbers: Ints, category_N: Ints, rng: np.random.Generator
) -> pa.Table:
    """Builds one row an item: id, category, tags, price.

    Args:
        settings: with the number of categories.
        numbers: numbers of the items ``[N]``.
        category_N: their categories.
        rng: random stream of their columns.
    """
    tags = _sample_tags(settings, category_N, rng)
    price = np.round(np.exp(rng.normal(3, 1, size=len(numbers))), 2)
    return pa.table(
        {
            "item_id": _scramble_ids(numbers, _FIRST_ITEM_NUMBER),
            "category": pa.array(category_N, pa.int32()),
            "tags": tags,
            "price": pa.array(price, mask=rng.random(len(numbers)) < _NO_PRICE_SHARE),
        }
    )


def _sample_tags(
    settings: GroundTruthSettings, category_N: Ints, rng: np.random.Generator
) -> pa.Array:
    """Samples up to three tags an item; the first names the category, the others mean nothing."""
    has_none = rng.random(len(category_N)) < _NO_TAGS_SHARE
    num_tags = np.where(has_none, 0, rng.integers(1, 4, size=len(category_N)))
    starts = np.cumsum(num_tags) - num_tags
    names = np.array([f"tag-{tag}" for tag in range(_NUM_TAGS)])
    tags = names[rng.integers(_NUM_TAGS, size=num_tags.sum())].astype(object)
    categories = np.array([f"about-{category}" for category in range(settings.categories)])
    has_some = num_tags > 0
    tags[starts[has_some]] = categories[category_N[has_some]]
    offsets = pa.array(np.append(starts, num_tags.sum()), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(tags, pa.string()))


def _take(table: pa.Table, rows_R: Ints) -> dict[str, pa.ChunkedArray]:
    taken = table.take(pa.array(rows_R))
    return dict(zip(taken.column_names, taken.columns, strict=True))


def _sample_days(
    settings: WorldSettings, part: str, num_rows: int, rng: np.random.Generator
) -> Ints:
    if part == "train":
        return rng.integers(settings.train_days, size=num_rows)
    return settings.train_days + rng.integers(1, size=num_rows)


def _impression_counts(
    settings: WorldSettings, part: str, num_users: int, rng: np.random.Generator
) -> Ints:
    """Samples each user's impressions ``[U]``: all users train, a share comes back for the test."""
    if part == "train":
        return sample_impression_counts(rng, num_users, settings.train_rows_per_user)
    counts_U = sample_impression_counts(rng, num_users, settings.test_rows_per_user)
    return counts_U * (rng.random(num_users) < settings.test_users)
