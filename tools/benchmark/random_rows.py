"""Writes random rows for any schema.

Users come several times with one history, as in KuaiRand, and clicks can be learned.

Shape letters: ``U`` users, ``R`` rows.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mail_torchrec.data.schema.schema import Group, Kind, Schema

_CLUSTERS = 20
_LEVELS = (3, 8, 2, 5, 12, 7, 4, 30, 6)
"""Numbers of values of the categorical columns beside the items, in turn."""
_ROW_GROUP = 8192
_USERS_AT_A_TIME = 64
"""Users whose rows are mixed: in a log the rows of a user lie near in time, so that ranks, which
read different parts, share few users."""
_FULL_HISTORY_SHARE = 0.5
"""Share of histories of length T; the others are of any length below. KuaiRand with T = 50 has .56,
and a mean length of 39."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RowSettings:
    """Numbers of users, rows and items."""

    users: int = 8_192
    rows_per_user: int = 4
    test_users: int = 2_048
    """Users who come back in the test rows, each as often as in training."""
    items: int = 50_000
    """Different items; the k-th appears in proportion to ``1 / k`` within its cluster."""
    seed: int = 0

    @staticmethod
    def of_batches(batch_size: int) -> "RowSettings":
        """Returns the settings of an epoch that has at least 32 batches of a size."""
        of_default = RowSettings()
        users = 32 * batch_size // of_default.rows_per_user
        return replace(of_default, users=max(of_default.users, users))


def write_rows(folder: Path, schema: Schema, settings: RowSettings) -> None:
    """Writes ``folder/train`` and ``folder/test``.

    Users and items belong to clusters; a user's attributes and history tell its cluster, and clicks
    are more frequent on items of that cluster.

    Args:
        folder: an existing folder.
        schema: columns of the rows.
        settings: sizes.
    """
    random = np.random.default_rng(settings.seed)
    clusters_U = random.integers(0, _CLUSTERS, settings.users)
    history = _histories(schema, clusters_U, settings, random)
    attributes = {
        name: _attribute(schema, name, number, clusters_U, random)
        for number, name in enumerate(schema.names(Group.ATTRIBUTE))
    }
    for part, num_users in (
        ("train", settings.users),
        ("test", min(settings.test_users, settings.users)),
    ):
        users_R = _visits(num_users, settings.rows_per_user, random)
        columns: dict[str, Any] = {
            name: values.take(users_R) for name, values in (attributes | history).items()
        }
        columns |= _row_columns(schema, users_R, clusters_U[users_R], settings, random)
        (folder / part).mkdir(parents=True)
        table = pa.table({schema.file_column(name): values for name, values in columns.items()})
        pq.write_table(table, folder / part / "rows.parquet", row_group_size=_ROW_GROUP)


def _visits(num_users: int, rows_per_user: int, random: np.random.Generator) -> Ints:
    """Samples the user of each row ``[R]``."""
    users = np.array_split(random.permutation(num_users), -(-num_users // _USERS_AT_A_TIME))
    return np.concatenate([random.permutation(np.repeat(some, rows_per_user)) for some in users])


def _histories(
    schema: Schema, clusters_U: Ints, settings: RowSettings, random: np.random.Generator
) -> dict[str, pa.Array]:
    """Samples each user's behaviours, and actions aligned with them."""
    made: dict[str, pa.Array] = {}
    for name in schema.sequences:
        longest = schema.columns[name].max_length
        short_U = random.integers(0, longest, len(clusters_U))
        lengths_U = np.where(random.random(len(clusters_U)) < _FULL_HISTORY_SHARE, longest, short_U)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths_U)]), pa.int32())
        items = _items(np.repeat(clusters_U, lengths_U), settings, random, own_share=0.8)
        made[name] = pa.ListArray.from_arrays(offsets, pa.array(items))
        if (action := schema.action_of(name)) is not None:
            made[action] = pa.ListArray.from_arrays(
                offsets, pa.array(random.integers(1, 4, len(items)))
            )
    return made


def _attribute(
    schema: Schema, name: str, number: int, clusters_U: Ints, random: np.random.Generator
) -> pa.Array:
    if schema.columns[name].kind is Kind.NUMERIC:
        return pa.array(random.normal(size=len(clusters_U)) + clusters_U / _CLUSTERS)
    levels = _LEVELS[number % len(_LEVELS)]
    tells_cluster_U = random.random(len(clusters_U)) < 0.7
    others_U = random.integers(0, _CLUSTERS, len(clusters_U))
    values_U = np.where(tells_cluster_U, clusters_U * (number + 1), others_U)
    return _listed(schema, name, values_U % levels, random)


def _row_columns(
    schema: Schema,
    users_R: Ints,
    clusters_R: Ints,
    settings: RowSettings,
    random: np.random.Generator,
) -> dict[str, Any]:
    """Samples the columns of rows that do not depend on the user alone."""
    items_R = _items(clusters_R, settings, random, own_share=0.3)
    chance_R = 0.25 + 0.4 * (items_R % _CLUSTERS == clusters_R)
    clicked_R = random.random(len(users_R)) < chance_R
    targets = {schema.target_of(name) for name in schema.sequences}
    columns: dict[str, Any] = {schema.group_key: users_R, schema.label: clicked_R.astype(np.int64)}
    if schema.conversion:
        converted_R = clicked_R & (random.random(len(users_R)) < 0.5)
        columns[schema.conversion] = converted_R.astype(np.int64)
    if schema.new_user:
        columns[schema.new_user] = np.zeros(len(users_R), dtype=np.int64)
    for number, name in enumerate(schema.names(Group.CONTEXT, Group.ITEM)):
        if name in targets:
            columns[name] = items_R
        elif schema.columns[name].kind is Kind.NUMERIC:
            columns[name] = random.exponential(60.0, len(users_R))
        else:
            is_item = schema.columns[name].group is Group.ITEM
            values_R = items_R if is_item else random.integers(0, 10**6, len(users_R))
            num_levels = 50 * _LEVELS[number % len(_LEVELS)]
            columns[name] = _listed(schema, name, values_R % num_levels, random)
    return columns


def _listed(schema: Schema, name: str, values_R: Ints, random: np.random.Generator) -> pa.Array:
    """Makes one value a row, or none, one or two where the column holds lists."""
    if schema.columns[name].kind is not Kind.LIST:
        return pa.array(values_R)
    lengths_R = random.integers(0, 3, len(values_R))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths_R)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(np.repeat(values_R, lengths_R)))


def _items(
    clusters: Ints, settings: RowSettings, random: np.random.Generator, own_share: float
) -> Ints:
    """Samples an item for each cluster number given.

    A share of the items is of that cluster, the others of any; ``item % clusters`` is an item's
    cluster.
    """
    num_a_cluster = max(settings.items // _CLUSTERS, 1)
    # Log-uniform: in proportion to 1 / k.
    places = (num_a_cluster + 1.0) ** random.random(len(clusters)) - 1
    is_own = random.random(len(clusters)) < own_share
    item_clusters = np.where(is_own, clusters, random.integers(0, _CLUSTERS, len(clusters)))
    numbers = np.minimum(places.astype(np.int64), num_a_cluster - 1)
    items: Ints = numbers * _CLUSTERS + item_clusters
    return items
