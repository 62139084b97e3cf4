"""DeepFM, Wide & Deep and DIN: their own parts and options."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mail_torchrec.towers.deepfm import second_order
from mail_torchrec.towers.inputs import RankingInputs, SequenceShape
from mail_torchrec.towers.layers.mlp import Dice
from mail_torchrec.towers.registry import build_tower
from tests.support import reference
from tests.support.random_inputs import numpy_row, random_inputs, ready, shapes

SMALL: dict[str, Any] = {"hidden_dims": [6, 5], "attention_dims": [7]}


def logits(tower: torch.nn.Module, inputs: RankingInputs) -> Tensor:
    with torch.no_grad():
        return tower(inputs).logits_B  # type: ignore[no-any-return]


@given(num_fields=st.integers(1, 6), dim=st.integers(1, 5), seed=st.integers(0, 1000))
def test_second_order_is_the_sum_over_pairs_in_any_order_of_fields(
    num_fields: int, dim: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    fields_BFD = torch.randn(3, num_fields, dim, generator=generator, dtype=torch.float64)
    pairs = [(i, j) for i in range(num_fields) for j in range(num_fields) if i < j]
    expected = [sum((float(row[i] @ row[j]) for i, j in pairs), 0.0) for row in fields_BFD.numpy()]
    np.testing.assert_allclose(second_order(fields_BFD).numpy(), expected, atol=1e-12)
    order = torch.randperm(num_fields, generator=generator)
    torch.testing.assert_close(
        second_order(fields_BFD[:, order]), second_order(fields_BFD), rtol=1e-12, atol=1e-12
    )


def test_one_field_has_no_second_order() -> None:
    fields_BFD = torch.randint(-9, 9, (4, 1, 3)).double()
    assert second_order(fields_BFD).eq(0).all()


@pytest.mark.parametrize(
    "change",
    [{"attribute_dim": 3}, {"sequences": {"items": SequenceShape(5, 6, 3)}}],
    ids=["group", "concat"],
)
def test_deepfm_projects_narrower_fields_to_the_widest(change: dict[str, Any]) -> None:
    layout = shapes(dim=4, **change)
    tower, inputs = ready(build_tower("deepfm", {}, layout)), random_inputs(layout)
    narrow = [layer for layer in tower.projections if isinstance(layer, nn.Linear)]  # type: ignore[union-attr]
    assert {layer.out_features for layer in narrow} == {max(layout.dims.values())}
    assert logits(tower, inputs).isfinite().all()
    equal = ready(build_tower("deepfm", {}, shapes(dim=4)))
    assert not any("projections" in name for name in equal.state_dict())


def test_the_dimension_of_a_group_without_fields_does_not_count() -> None:
    layout = shapes(num_context=0, context_dim=0)
    assert logits(ready(build_tower("deepfm", {}, layout)), random_inputs(layout)).isfinite().all()


@pytest.mark.parametrize("name", ["wide_deep", "deepfm"])
def test_a_first_order_weight_moves_the_logit_by_itself(name: str) -> None:
    tower, inputs = ready(build_tower(name, {}, shapes())), random_inputs(shapes())
    assert inputs.first_order_B is not None
    moved = replace(inputs, first_order_B=inputs.first_order_B + 0.75)
    torch.testing.assert_close(
        logits(tower, moved), logits(tower, inputs) + 0.75, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("hidden_dims", [[6, 5], []])
def test_wide_and_deep_add_up_to_the_logit(hidden_dims: list[int]) -> None:
    tower, inputs = (
        ready(build_tower("wide_deep", {"hidden_dims": hidden_dims}, shapes())),
        random_inputs(shapes()),
    )
    output = tower(inputs)
    assert output.representation_BR.shape == (7, tower.representation_dim)
    torch.testing.assert_close(
        output.logits_B, tower.wide(inputs) + tower.logit(output.representation_BR).squeeze(1)
    )


@pytest.mark.parametrize("normalise", ["none", "softmax"])
@pytest.mark.parametrize("activation", ["dice", "prelu"])
def test_din_equals_the_formula_with_every_option(normalise: str, activation: str) -> None:
    options = SMALL | {"normalise": normalise, "activation": activation}
    tower, inputs = ready(build_tower("din", options, shapes())), random_inputs(shapes())
    p = reference.parameters(tower)
    expected = [
        reference.din(p, **numpy_row(inputs, row), normalise=normalise, activation=activation)
        for row in range(7)
    ]
    np.testing.assert_allclose(logits(tower, inputs).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("normalise", ["none", "softmax"])
def test_the_order_of_behaviours_does_not_matter_to_din(normalise: str) -> None:
    tower, inputs = (
        ready(build_tower("din", SMALL | {"normalise": normalise}, shapes())),
        random_inputs(shapes()),
    )
    history = inputs.sequences["history"]
    turned_BTD = history.values_BTD.clone()
    for row, length in enumerate(history.lengths_B.tolist()):
        turned_BTD[row, :length] = history.values_BTD[row, :length].flip(0)
    assert not turned_BTD.equal(history.values_BTD)
    turned = replace(
        inputs, sequences=inputs.sequences | {"history": replace(history, values_BTD=turned_BTD)}
    )
    torch.testing.assert_close(logits(tower, turned), logits(tower, inputs), rtol=1e-12, atol=1e-12)


def test_raw_weights_tell_how_often_a_behaviour_was_seen_and_softmax_does_not() -> None:
    layout = shapes(sequences={"history": SequenceShape(5, 4, 0)})
    inputs = random_inputs(layout)
    history = inputs.sequences["history"]
    once, thrice = (
        replace(
            inputs,
            sequences={
                "history": replace(
                    history,
                    values_BTD=history.values_BTD[1:2, :1].expand(7, 5, 4),
                    lengths_B=torch.full((7,), length),
                )
            },
        )
        for length in (1, 3)
    )
    raw, softmax = (
        ready(build_tower("din", SMALL | {"normalise": normalise}, layout))
        for normalise in ("none", "softmax")
    )
    torch.testing.assert_close(
        logits(softmax, once), logits(softmax, thrice), rtol=1e-12, atol=1e-12
    )
    assert not torch.isclose(logits(raw, once), logits(raw, thrice)).any()


def test_dice_uses_the_statistics_of_its_batch() -> None:
    dice, x_BC = Dice(3).double().train(), torch.randn(8, 3, dtype=torch.float64)
    dice.slope.data = torch.tensor([0.25, -1.0, 0.0], dtype=torch.float64)
    x = x_BC.numpy()
    chance = reference.sigmoid((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-8))
    np.testing.assert_allclose(
        dice(x_BC).detach().numpy(),
        chance * x + (1 - chance) * dice.slope.detach().numpy() * x,
        rtol=1e-10,
    )


@pytest.mark.parametrize("name", ["wide_deep", "deepfm", "din"])
def test_a_sequence_of_one_position_is_enough(name: str) -> None:
    layout = shapes(sequences={"history": SequenceShape(1, 4, 0)})
    tower = build_tower(name, {}, layout).double().train()
    loss = tower(random_inputs(layout)).logits_B.sum()
    loss.backward()
    assert loss.isfinite() and all(
        p.grad is not None and p.grad.isfinite().all() for p in tower.parameters()
    )


@pytest.mark.parametrize(("option", "value"), [("normalise", "sum"), ("activation", "relu")])
def test_din_refuses_unknown_choices(option: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"tower 'din': option '{option}': .*received '{value}'"):
        build_tower("din", {option: value}, shapes())
