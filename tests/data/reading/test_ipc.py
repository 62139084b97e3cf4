"""Batches on their way from a reader process."""

import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mail_torchrec.data.reading.batch import Batch, map_tensors
from mail_torchrec.data.reading.ipc import rebuild_tensor, reduce_tensor
from tests.data.reading.test_reader import Readers, write_files
from tests.support.plain import some_rows

EDGES = [
    edge for bits in (7, 15, 31) for edge in (2**bits - 1, 2**bits, -(2**bits), -(2**bits) - 1)
]


def tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(
        batch,
        lambda part: found.extend(
            [part] if isinstance(part, Tensor) else [part.values(), part.lengths()]
        ),
    )
    return found


@pytest.mark.parametrize("group_by_user", [False, True])
def test_a_batch_arrives_as_it_was_sent(tmp_path: Path, group_by_user: bool) -> None:
    write_files(tmp_path, some_rows(60), [[25], [35]])
    readers = Readers(tmp_path, needs_match=True, group_by_user=group_by_user)
    for sent in readers.reader(batch_size=7, shuffle=True, negatives=True):
        received = pickle.loads(ForkingPickler.dumps(sent))
        pairs = list(zip(tensors(received), tensors(sent), strict=True))
        assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)
        assert [received.pooled.keys(), received.unpooled.keys()] == [
            sent.pooled.keys(),
            sent.unpooled.keys(),
        ]
        assert (received.dedup is None) == (not group_by_user)
        assert received.unpooled.length_per_key_or_none() is not None, "a GPU is not asked for it"
        assert received.num_behaviours("history") == sent.num_behaviours("history")


@pytest.mark.parametrize("group_by_user", [False, True])
def test_the_reader_finds_cold_and_warm_rows_and_counts_behaviours(
    tmp_path: Path, group_by_user: bool
) -> None:
    write_files(tmp_path, some_rows(60), [[25], [35]])
    readers = Readers(tmp_path, needs_match=True, group_by_user=group_by_user)
    for batch in readers.reader(batch_size=7, shuffle=True):
        is_cold_B, has_weight_B = batch.is_cold_B.numpy(), batch.weights_B.numpy() > 0
        assert batch.sets.cold.tolist() == np.flatnonzero(is_cold_B).tolist()
        assert batch.sets.warm.tolist() == np.flatnonzero(~is_cold_B).tolist()
        assert batch.sets.weighted.tolist() == np.flatnonzero(~is_cold_B & has_weight_B).tolist()
        users_B = np.arange(len(batch))
        if batch.dedup is not None:
            users_B = batch.dedup.inverse_indices_B.numpy()
        of_cold, of_weighted = set(users_B[is_cold_B]), set(users_B[~is_cold_B & has_weight_B])
        assert set(batch.sets_U.cold.tolist()) == of_cold
        assert set(batch.sets_U.warm.tolist()) == set(users_B) - of_cold
        assert batch.sets_U.weighted.tolist() == sorted(of_weighted)
        lengths_U = batch.per_user(batch.unpooled["history"].lengths()).numpy()
        of_both = int(lengths_U.sum()), int(lengths_U[users_B].sum())
        assert batch.num_behaviours("history") == of_both


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5)
    | st.sampled_from([[edge] for edge in EDGES])
)
def test_integers_arrive_whole(values: list[int]) -> None:
    received: Any = rebuild_tensor(reduce_tensor(torch.tensor(values, dtype=torch.int64)))
    assert (received.dtype, received.tolist()) == (torch.int64, values)


def test_small_integers_travel_as_few_bytes() -> None:
    assert len(ForkingPickler.dumps(reduce_tensor(torch.zeros(10_000, dtype=torch.int64)))) < 11_000
