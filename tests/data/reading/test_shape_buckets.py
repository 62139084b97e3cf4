"""Counts are rounded up to a ladder of sizes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mail_torchrec.data.reading.batch import DedupIndices, MatchIds, RowSets
from mail_torchrec.data.reading.shape_buckets import ShapeBuckets

LADDER = [16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128]


@pytest.mark.parametrize("count", range(129))
def test_a_count_is_rounded_up_to_the_next_size(count: int) -> None:
    assert ShapeBuckets(4).size(count) == min(size for size in LADDER if size >= count)


@given(st.integers(16, 2**31), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_at_most_one_part_is_added(count: int, steps: int) -> None:
    size = ShapeBuckets(steps).size(count)
    assert count <= size < count * (1 + 1 / steps) + 1
    assert ShapeBuckets(steps).size(count + 1) >= size


def test_without_a_number_of_steps_there_is_no_ladder() -> None:
    assert ShapeBuckets.of(None) is None and ShapeBuckets.of(8) == ShapeBuckets(8)


def test_surplus_users_have_no_rows_and_stand_in_no_set() -> None:
    first, inverse = torch.tensor([0, 2, 5]), torch.tensor([0, 0, 1, 1, 1, 2])
    sets = RowSets(torch.tensor([1]), torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64))
    filled = DedupIndices(first, inverse, sets, {"seen": 7}).filled_up(ShapeBuckets(4))
    assert filled.first_rows_U.tolist() == [0, 2, 5] + [0] * 13
    assert filled.num_surplus == 13
    assert torch.equal(filled.inverse_indices_B, inverse)
    assert filled.sets.cold.tolist() == [1] + [16] * 15, "16 is the index of no user"
    assert filled.sets.warm.tolist() == [0, 2] + [16] * 14
    assert filled.sets.weighted.tolist() == [16] * 16
    match = MatchIds(first, first, torch.ones(3), torch.ones(3)).filled_up(ShapeBuckets(4))
    assert match.last_U.tolist() == [0, 2, 5] + [0] * 13
    assert match.last_log_q_U.tolist() == [1.0] * 3 + [0.0] * 13
    assert match.negatives_K is first
