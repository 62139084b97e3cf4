"""Exposure logs with a known lift."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mail_torchrec.inference.traffic_split import TrafficSplit


def write_log(
    path: Path,
    num_users: int,
    seed: int,
    *,
    lift: float = 0.0,
    share: float = 0.5,
    spread: float = 20.0,
) -> pa.Table:
    """Writes a log of users who differ in visits and click rates, so impressions are clustered.

    Version ``b`` serves a share of the users by the server's own rule, and they click ``1 + lift``
    times as often.
    """
    random = np.random.default_rng(seed)
    users = np.arange(num_users) + num_users * seed
    in_b = TrafficSplit("b", share).assigned_mask(pa.array(users))
    rates = random.beta(0.1 * spread, 0.9 * spread, num_users) * np.where(in_b, 1 + lift, 1)
    user_of_R: NDArray[np.int64] = np.repeat(np.arange(num_users), 1 + random.poisson(rates * 40))
    clicked = random.random(len(user_of_R)) < rates[user_of_R]
    bought = random.random(len(user_of_R)) < 0.3
    columns = {
        "user": users[user_of_R],
        "model_version": np.where(in_b, "b", "a")[user_of_R],
        "click": clicked.astype(np.int8),
        "bought": bought,
    }
    table = pa.table(columns | {"fresh": user_of_R % 3 == 0})
    pq.write_table(table, path, row_group_size=1000)
    return table
