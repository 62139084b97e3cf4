"""Mean fill: cold rows get the average behaviours of warm rows."""

from typing import Any

import numpy as np
import torch

from mail_torchrec.baselines.mean_fill import MeanFill, MeanFillSettings
from mail_torchrec.towers.inputs import SequenceShape


def rows(num_rows: int, seed: int) -> dict[str, Any]:
    """Garbage stands behind the lengths."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(num_rows, T, d, generator=random) + 2,
            torch.randint(1, T + 1, (num_rows,), generator=random),
        )
        for name, (T, d) in {"long": (6, 3), "short": (2, 4)}.items()
    }


def observed(*batches: dict[str, Any]) -> MeanFill:
    model = MeanFill(
        MeanFillSettings(name="mean_fill"),
        {"long": SequenceShape(6, 3, 0), "short": SequenceShape(2, 4, 0)},
    )
    for batch in batches:
        num_rows = len(batch["long"][1])
        model.update(torch.zeros(num_rows, 2, 3), torch.zeros(num_rows, 1), batch)
    return model


def test_cold_rows_get_the_mean_sum_and_the_mean_number_of_warm_rows_behaviours() -> None:
    batch = rows(20, seed=0)
    made = observed(batch).virtual_behaviours(torch.zeros(3, 2, 3), torch.zeros(3, 1))
    for name, (values, lengths) in batch.items():
        sums = [values[n, : lengths[n]].double().sum(0).numpy() for n in range(20)]
        found, number = made[name]
        assert number.tolist() == [round(float(lengths.double().mean()))] * 3
        for n in range(3):
            np.testing.assert_allclose(
                found[n, : number[n]].double().sum(0).numpy(), np.mean(sums, axis=0), rtol=1e-5
            )
            assert not found[n, number[n] :].any()
            assert torch.equal(found[n, 0], found[n, number[n] - 1])


def test_the_mean_moves_with_the_batches_and_a_batch_without_warm_rows_leaves_it() -> None:
    first, second = rows(20, seed=0), rows(5, seed=1)
    none = {name: (values[:0], lengths[:0]) for name, (values, lengths) in first.items()}
    models = observed(first), observed(first, none), observed(first, none, second)
    one, same, both = (
        model.virtual_behaviours(torch.zeros(1, 2, 3), torch.zeros(1, 1))["long"][0].sum(1)
        for model in models
    )
    assert torch.equal(one, same)
    # Of the newest batch a tenth; before any the average was 0, which counts no more.
    sums = []
    for values, lengths in (first["long"], second["long"]):
        mask = torch.arange(6) < lengths[:, None]
        sums.append((values * mask[:, :, None]).sum((0, 1)) / len(lengths))
    torch.testing.assert_close(both[0], (0.09 * sums[0] + 0.1 * sums[1]) / 0.19)
