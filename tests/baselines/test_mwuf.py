"""MWUF: scaled and shifted mean behaviours in NumPy; it begins as mean fill."""

from typing import Any

import numpy as np
import torch

from mail_torchrec.baselines.mean_fill import MeanFill, MeanFillSettings
from mail_torchrec.baselines.mwuf import MWUF, MWUFSettings
from tests.baselines.test_cvar import (
    NUM_ROWS,
    SEQUENCES,
    D,
    F,
    M,
    Reference,
    warm,
    with_random_parameters,
)


def mwuf(**options: Any) -> MWUF:
    return MWUF(MWUFSettings.model_validate({"name": "mwuf"} | options), SEQUENCES, F * D + M)


def test_virtual_behaviours_equal_the_reference() -> None:
    model: Any = with_random_parameters(mwuf(hidden_dims=[6])).train()
    weights = torch.linspace(0.5, 2, NUM_ROWS, dtype=torch.float64)
    model.update(*warm(), weights)
    reference = Reference(model, weights.numpy())

    def network(name: str, x: Any) -> Any:
        first = reference.p[f"{name}.0.weight"] @ x + reference.p[f"{name}.0.bias"]
        return (
            reference.p[f"{name}.2.weight"] @ np.maximum(first, 0) + reference.p[f"{name}.2.bias"]
        )

    fields, numeric, _ = warm()
    made = model.eval().virtual_behaviours(fields, numeric)
    pooled = [values.detach().numpy().sum(1) / values.shape[1] for values, _ in made.values()]
    mean = reference.weights @ reference.pooled
    deviation = np.sqrt(reference.weights @ (reference.pooled - mean) ** 2)
    for n in range(NUM_ROWS):
        read = reference.standardised(reference.attributes[n], reference.attributes)
        scale, shift = 1 + network("scaling", read), network("shifting", mean / deviation)
        expected = scale * mean + shift * deviation
        np.testing.assert_allclose(
            np.concatenate([part[n] for part in pooled]), expected, rtol=1e-9
        )
    assert not np.allclose(pooled[0][0], pooled[0][1])


def test_it_begins_as_mean_fill_to_the_bit() -> None:
    begun: Any = mwuf()
    filled: Any = MeanFill(MeanFillSettings(name="mean_fill"), SEQUENCES)
    fields, numeric, sequences = warm()
    arguments = (fields.float(), numeric.float())
    for model in (begun, filled):
        model.update(*arguments, {n: (v.float(), k) for n, (v, k) in sequences.items()})
    made, expected = (model.virtual_behaviours(*arguments) for model in (begun, filled))
    for name, (values, lengths) in expected.items():
        assert torch.equal(made[name][0], values) and torch.equal(made[name][1], lengths)


def test_it_has_no_losses_of_its_own_and_the_shift_is_common_to_all() -> None:
    model: Any = with_random_parameters(mwuf()).train()
    model.update(*warm(), torch.ones(NUM_ROWS))
    assert model.losses(*warm()) == {}
    for parameter in model.scaling.parameters():
        torch.nn.init.zeros_(parameter)
    fields, numeric, _ = warm()
    values = model.virtual_behaviours(fields, numeric)["long"][0]
    assert torch.equal(values, values[:1].expand_as(values))
