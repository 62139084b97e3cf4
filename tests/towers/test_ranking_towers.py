"""Ranking towers equal their formulas; no score depends on padding or on the other rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mail_torchrec.towers.inputs import InputShapes, RankingInputs, RankingOutput, SequenceShape
from mail_torchrec.towers.registry import build_tower
from tests.support import reference
from tests.support.random_inputs import (
    numpy_row,
    random_inputs,
    ready,
    rows_of,
    shapes,
    with_padding,
)

TOWERS = ["emblr", "base_dnn", "wide_deep", "deepfm", "din", "dmr"]
OPTIONS: dict[str, dict[str, Any]] = {
    "emblr": {},
    "base_dnn": {"hidden_dims": [6, 5]},
    "wide_deep": {"hidden_dims": [6, 5]},
    "deepfm": {"hidden_dims": [6, 5]},
    "din": {"hidden_dims": [6, 5], "attention_dims": [7]},
    "dmr": {"hidden_dims": [8, 7, 6], "attention_dims": [5, 4], "embedding_dim": 3},
}


def shapes_for(name: str, **changes: Any) -> InputShapes:
    return shapes(dim=1 if name == "emblr" else 4, **changes)


def tower_of(name: str, shapes: InputShapes, **options: Any) -> nn.Module:
    return ready(build_tower(name, OPTIONS[name] | options, shapes))


def logits(tower: nn.Module, inputs: RankingInputs) -> Tensor:
    with torch.no_grad():
        return RankingOutput.wrap(tower(inputs)).logits_B


def expected_logits(
    name: str, tower: nn.Module, inputs: RankingInputs, has_match: bool
) -> list[float]:
    p = reference.parameters(tower)
    rows = [numpy_row(inputs, row) for row in range(len(inputs.numeric_BN))]
    if name == "dmr":
        return [reference.dmr(p, **row, has_match=has_match)[0] for row in rows]
    if name in ("wide_deep", "deepfm"):
        assert inputs.first_order_B is not None
        weights = inputs.first_order_B.tolist()
        return [
            getattr(reference, name)(p, **row, first_order=weight)
            for row, weight in zip(rows, weights, strict=True)
        ]
    return [getattr(reference, name)(p, **row) for row in rows]


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"num_context": 0, "context_dim": 0, "num_numeric": 0}, {"sequences": {}}],
    ids=str,
)
def test_scores_equal_the_formula(name: str, changes: dict[str, Any]) -> None:
    layout = shapes_for(name, **changes)
    tower, inputs = tower_of(name, layout), random_inputs(layout)
    np.testing.assert_allclose(
        logits(tower, inputs).numpy(),
        expected_logits(name, tower, inputs, has_match=True),
        rtol=1e-10,
    )


@pytest.mark.parametrize("name", ["base_dnn", "wide_deep", "din", "dmr"])
def test_groups_may_differ_in_dimension(name: str) -> None:
    sequences = {"long": SequenceShape(4, 6, 2, match_dim=3), "short": SequenceShape(2, 2, 0)}
    layout = shapes_for(name, attribute_dim=3, item_dim=5, sequences=sequences)
    tower, inputs = tower_of(name, layout), random_inputs(layout)
    np.testing.assert_allclose(
        logits(tower, inputs).numpy(),
        expected_logits(name, tower, inputs, has_match=True),
        rtol=1e-10,
    )


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("garbage", [0.0, 1e6, float("nan")])
def test_padding_never_changes_a_score(name: str, garbage: float) -> None:
    layout = shapes_for(name)
    tower, inputs = tower_of(name, layout), random_inputs(layout)
    torch.testing.assert_close(
        logits(tower, with_padding(inputs, extra=3, garbage=garbage)),
        logits(tower, inputs),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("name", TOWERS)
def test_rows_are_scored_one_by_one(name: str) -> None:
    layout = shapes_for(name)
    tower, inputs = tower_of(name, layout), random_inputs(layout)
    order = torch.tensor([4, 0, 6, 1])
    torch.testing.assert_close(
        logits(tower, rows_of(inputs, order)), logits(tower, inputs)[order], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", TOWERS)
def test_every_parameter_gets_a_finite_gradient_even_without_behaviours(name: str) -> None:
    layout = shapes_for(name)
    tower, inputs = tower_of(name, layout).train(), random_inputs(layout)
    for sequence in inputs.sequences.values():
        sequence.lengths_B = torch.zeros_like(sequence.lengths_B)
    output = RankingOutput.wrap(tower(inputs))
    loss = output.logits_B.sum() + sum(
        (losses_B * weights_B).sum() for losses_B, weights_B, _ in output.auxiliary.values()
    )
    loss.backward()
    for parameter, value in tower.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), parameter


@pytest.mark.parametrize("name", TOWERS)
def test_towers_compile_without_graph_breaks(name: str) -> None:
    layout = shapes_for(name)
    tower, inputs = tower_of(name, layout), random_inputs(layout)
    compiled = torch.compile(tower, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits(compiled, inputs), logits(tower, inputs))


def test_emblr_names_dimensions_that_are_not_1() -> None:
    with pytest.raises(
        ValueError,
        match=r"'emblr' needs tables of dimension 1, received .*'attributes': 4.*set schema.dim=1",
    ):
        build_tower("emblr", {}, shapes(dim=4))


def test_match_loss_equals_the_full_prefix_definition() -> None:
    layout = shapes()
    tower, inputs = tower_of("dmr", layout), random_inputs(layout, num_rows=12)
    losses_B, weights_B, weight = tower(inputs).auxiliary["match"]
    assert weight == 0.1
    p = reference.parameters(tower)
    for row in range(12):
        found = [
            loss
            for loss in reference.dmr(p, **numpy_row(inputs, row), has_match=True)[1]
            if loss is not None
        ]
        assert weights_B[row] == len(found)
        assert losses_B[row].item() == pytest.approx(np.mean(found) if found else 0.0, rel=1e-10)
    assert {0.0, 1.0, 2.0} == set(weights_B.tolist())


def test_short_and_virtual_rows_are_left_out_of_the_match_loss() -> None:
    layout = shapes(sequences={"history": SequenceShape(5, 4, 0)})
    tower, inputs = tower_of("dmr", layout), random_inputs(layout, num_rows=7)
    inputs.sequences["history"].lengths_B = torch.tensor([0, 1, 2, 3, 4, 5, 5])
    inputs.sequences["history"].is_virtual_B = torch.tensor([False] * 6 + [True])
    assert tower(inputs).auxiliary["match"][1].tolist() == [0, 0, 0, 1, 1, 1, 0]


def test_match_loss_is_zero_without_negatives() -> None:
    layout = shapes()
    tower, inputs = tower_of("dmr", layout), random_inputs(layout)
    for sequence in inputs.sequences.values():
        assert sequence.match is not None
        sequence.match = replace(
            sequence.match,
            negatives_KD=torch.zeros(0, 4, dtype=torch.float64),
            negative_ids_K=torch.zeros(0, dtype=torch.int64),
            negative_log_q_K=torch.zeros(0, dtype=torch.float64),
            last_log_q_U=torch.full((7,), -torch.inf, dtype=torch.float64),
        )
    assert tower(inputs).auxiliary["match"][0].tolist() == [0.0] * 7


def test_dmr_without_output_table_takes_the_target_itself() -> None:
    layout = shapes(has_match=False)
    tower, inputs = tower_of("dmr", layout, match_weight=0.0), random_inputs(layout)
    output = tower(inputs)
    assert output.auxiliary == {}
    np.testing.assert_allclose(
        output.logits_B.detach().numpy(),
        expected_logits("dmr", tower, inputs, has_match=False),
        rtol=1e-10,
    )


@pytest.mark.parametrize("name", ["base_dnn", "din", "dmr"])
@pytest.mark.parametrize("hidden_dims", [[8, 5], []])
def test_the_logit_is_linear_in_the_representation(name: str, hidden_dims: list[int]) -> None:
    """So a head on the representation starts from the inputs of the tower's own last layer."""
    layout = shapes_for(name)
    tower, inputs = (
        tower_of(name, layout, hidden_dims=hidden_dims),
        random_inputs(layout, num_rows=9),
    )
    output = tower(inputs)
    assert output.representation_BR.shape == (9, tower.representation_dim)
    assert hidden_dims == [] or tower.representation_dim == 5
    *_, last = [module for module in tower.modules() if isinstance(module, nn.Linear)]
    torch.testing.assert_close(last(output.representation_BR).squeeze(1), output.logits_B)


def test_bare_logits_are_wrapped() -> None:
    logits_B = torch.ones(3)
    output = RankingOutput.wrap(logits_B)
    assert output.logits_B is logits_B and output.auxiliary == {}
    assert RankingOutput.wrap(output) is output
