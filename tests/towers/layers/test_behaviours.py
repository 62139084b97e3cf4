"""Sequences as decoder targets and decoded vectors as sequences; running moments."""

import numpy as np
import pytest
import torch

from mail_torchrec.towers.layers.behaviours import (
    concat_sequences,
    mean_over_positions,
    repeat_over_positions,
    split_positions,
)
from mail_torchrec.towers.layers.standardisation import RunningMoments, Standardiser


def sequences(num_rows: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for length in (5, 3):
        values = torch.randn(num_rows, length, 2, generator=generator, dtype=torch.float64)
        made.append((values, torch.randint(length + 1, (num_rows,), generator=generator)))
    return made


def test_the_mean_over_positions_sums_real_behaviours_over_t_whatever_stands_on_padding() -> None:
    found = mean_over_positions(sequences()).numpy()
    for index, (values, lengths) in enumerate(sequences()):
        for row, length in enumerate(lengths.tolist()):
            expected = (
                sum((values[row, t].numpy() for t in range(length)), np.zeros(2)) / values.shape[1]
            )
            np.testing.assert_allclose(found[row, index], expected)


def test_concatenated_sequences_lie_end_to_end_with_zeros_on_padding() -> None:
    values, mask = concat_sequences(sequences())
    for row in range(4):
        expected = [
            (v[row, t].tolist() if t < n[row] else [0.0, 0.0])
            for v, n in sequences()
            for t in range(v.shape[1])
        ]
        assert values[row].tolist() == expected
        assert mask[row].tolist() == [t < n[row] for v, n in sequences() for t in range(v.shape[1])]


@pytest.mark.parametrize(
    "relative",
    [None, torch.tensor([[0.4, 1.0], [-3.0, 0.5], [9.0, 0.0], [1.0, 0.7]], dtype=torch.float64)],
)
def test_repeated_behaviours_are_equal_and_pool_to_what_was_decoded(
    relative: torch.Tensor | None,
) -> None:
    decoded = torch.randn(4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    made = repeat_over_positions(decoded, [5, 3], relative)
    torch.testing.assert_close(mean_over_positions(made), decoded)
    for index, (values, lengths) in enumerate(made):
        for row, length in enumerate(lengths.tolist()):
            wanted = (
                values.shape[1]
                if relative is None
                else min(
                    max(round(float(relative[row, index]) * values.shape[1]), 1), values.shape[1]
                )
            )
            assert length == wanted
            assert (
                values[row, length:].eq(0).all() and values[row, :length].eq(values[row, 0]).all()
            )


def test_splitting_undoes_concatenation() -> None:
    values, _ = concat_sequences(sequences())
    for (found, lengths), (expected, _) in zip(
        split_positions(values, [5, 3], None), sequences(), strict=True
    ):
        assert lengths.tolist() == [expected.shape[1]] * 4
        assert found.shape == expected.shape
    torch.testing.assert_close(
        torch.cat([found for found, _ in split_positions(values, [5, 3], None)], dim=1), values
    )


def test_running_moments_of_equal_batches_are_their_moments_and_weight_0_leaves_a_row_out() -> None:
    rows = torch.randn(50, 3, dtype=torch.float64) * 4 + 7
    moments = RunningMoments(3).double()
    for _ in range(5):
        moments.update(torch.cat([rows, rows * 100]), torch.tensor([1.0] * 50 + [0.0] * 50))
        np.testing.assert_allclose(moments.mean_D.numpy(), rows.numpy().mean(0))
        np.testing.assert_allclose(moments.deviation_D.numpy(), rows.numpy().std(0))


def test_running_moments_forget_what_is_old() -> None:
    moments = RunningMoments(1, momentum=0.5).double()
    for value in (0.0, 10.0, 10.0, 10.0):
        moments.update(torch.full((4, 1), value, dtype=torch.float64), torch.ones(4))
    weights = np.array([0.5**4, 0.5**3, 0.5**2, 0.5])
    np.testing.assert_allclose(moments.mean_D.numpy(), [(weights[1:] * 10).sum() / weights.sum()])


def test_no_row_changes_nothing_and_before_any_row_vectors_stay_as_they_are() -> None:
    scale = Standardiser(2)
    scale.update(torch.zeros(0, 2), torch.zeros(0))
    scale.update(torch.ones(3, 2), torch.zeros(3))
    x = torch.tensor([[3.0, -4.0]])
    assert torch.equal(scale(x), x) and torch.equal(scale.inverse(x), x)


def test_standardised_rows_have_mean_0_and_deviation_1_and_the_inverse_brings_them_back() -> None:
    rows = torch.randn(200, 2, dtype=torch.float64) * torch.tensor([1e-3, 50.0]) + torch.tensor(
        [0.01, -9.0]
    )
    scale = Standardiser(2).double()
    scale.update(rows, torch.ones(200))
    np.testing.assert_allclose(scale(rows).numpy().mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(scale(rows).numpy().std(0), 1, rtol=1e-6)
    torch.testing.assert_close(scale.inverse(scale(rows)), rows)
