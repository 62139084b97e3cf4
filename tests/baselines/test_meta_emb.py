"""MetaEmb: its two-phase loss and gradient, pairs of rows, and the inputs of the ranking tower."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mail_torchrec.baselines.meta_emb import MetaEmb, MetaEmbSettings, pair_rows
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.model.builders import user_id_field
from mail_torchrec.towers.inputs import InputShapes, RankingInputs
from mail_torchrec.towers.registry import build_tower
from tests.support.random_inputs import random_inputs, ready, shapes
from tests.support.small_rows import SCHEMA

ID = {"group": "attribute", "column": "user"}
FIELD, DIM, NUM_NUMERIC = 1, 4, 1
LAYOUT: InputShapes = shapes(dim=DIM)
USERS = torch.tensor([5, 3, 5, 3, 9, 5, 7])
OLD = torch.tensor([True, True, True, True, True, True, False])


class SmoothTower(nn.Module):
    """A logit that bends in the id's vector and the other fields."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(-1, 1, 3 * DIM, dtype=torch.float64))

    def forward(self, inputs: RankingInputs) -> Tensor:
        return (inputs.attributes_BAD.flatten(1) * self.weights).sum(
            1
        ).sin() * 2 + inputs.items_BID.sum((1, 2)) * 0.1


def meta_emb(**options: Any) -> MetaEmb:
    settings = MetaEmbSettings.model_validate(
        {"name": "meta_emb", "alpha": 0.3, "step_size": 0.7, "scale": 0.8} | options
    )
    module = MetaEmb(settings, FIELD, LAYOUT.num_attributes, DIM, NUM_NUMERIC)
    return ready(module).train()  # type: ignore[return-value]


def reference_loss(
    p: dict[str, Any],
    inputs: RankingInputs,
    labels: Any,
    alpha: float,
    step_size: float,
    scale: float,
) -> float:
    """Row by row in NumPy, the inner gradient by central differences; the mean over paired rows."""
    weights, generator = np.linspace(-1, 1, 3 * DIM), p["layers.0.weight"]
    attributes, items = inputs.attributes_BAD.numpy(), inputs.items_BID.numpy()

    def phi(row: int) -> Any:
        others = np.concatenate(
            [attributes[row, 0], attributes[row, 2], inputs.numeric_BN[row, :NUM_NUMERIC].numpy()]
        )
        return scale * np.tanh(generator @ others)

    def loss(row: int, vector: Any) -> float:
        z = np.concatenate([attributes[row, 0], vector, attributes[row, 2]])
        logit = 2 * np.sin(z @ weights) + 0.1 * items[row].sum()
        probability = 1 / (1 + np.exp(-logit))
        return float(-np.log(probability if labels[row] else 1 - probability))

    def slope(row: int, vector: Any) -> Any:
        eps, found = 1e-5, np.zeros(DIM)
        for d in range(DIM):
            step = np.zeros(DIM)
            step[d] = eps
            found[d] = (loss(row, vector + step) - loss(row, vector - step)) / (2 * eps)
        return found

    total, num = 0.0, 0
    for user in (3, 5):
        rows = [row for row in range(len(USERS)) if USERS[row] == user and OLD[row]]
        for a, b in zip(rows, rows[1:] + rows[:1], strict=True):
            adapted = phi(a) - step_size * slope(a, phi(a))
            total, num = total + alpha * loss(a, phi(a)) + (1 - alpha) * loss(b, adapted), num + 1
    return total / num


def mean_loss(model: MetaEmb, tower: nn.Module, inputs: RankingInputs, labels: Tensor) -> Tensor:
    previous_B, paired_B = pair_rows(USERS, OLD)
    losses_B = model.losses(tower, inputs, inputs.numeric_BN[:, :NUM_NUMERIC], labels, previous_B)
    return losses_B[paired_B].mean()


def test_the_loss_and_its_gradient_equal_the_reference() -> None:
    model, inputs, labels = (
        meta_emb(),
        random_inputs(LAYOUT),
        torch.tensor([1.0, 0, 0, 1, 1, 0, 1], dtype=torch.float64),
    )
    options = {"alpha": 0.3, "step_size": 0.7, "scale": 0.8}
    loss = mean_loss(model, SmoothTower(), inputs, labels)
    loss.backward()
    p = {name: value.detach().double().numpy().copy() for name, value in model.state_dict().items()}
    assert loss.item() == pytest.approx(reference_loss(p, inputs, labels, **options), rel=1e-8)
    weight = model.layers[0].weight
    assert isinstance(weight, Tensor) and weight.grad is not None
    for place in [(0, 0), (1, 3), (2, 7), (3, 8)]:
        ends = []
        for step in (1e-4, -1e-4):
            moved = {"layers.0.weight": p["layers.0.weight"].copy()}
            moved["layers.0.weight"][place] += step
            ends.append(reference_loss(moved, inputs, labels, **options))
        assert float(weight.grad[place]) == pytest.approx(
            (ends[0] - ends[1]) / 2e-4, rel=1e-4, abs=1e-7
        )


def test_the_gradient_goes_through_the_gradient_step() -> None:
    """With the step as a constant the gradient is another one: both phases count."""
    inputs, labels = (
        random_inputs(LAYOUT),
        torch.tensor([1.0, 0, 0, 1, 1, 0, 1], dtype=torch.float64),
    )
    found = []
    for options in ({}, {"step_size": 1e-12}, {"alpha": 1.0}):
        model = meta_emb(**options)
        mean_loss(model, SmoothTower(), inputs, labels).backward()
        found.append(model.layers[0].weight.grad)
    assert not torch.allclose(found[0], found[1], rtol=1e-2) and not torch.allclose(
        found[0], found[2], rtol=1e-2
    )


@pytest.mark.parametrize("name", ["base_dnn", "dmr"])
def test_nothing_but_the_generator_gets_a_gradient_and_the_tower_stays_as_it_is(name: str) -> None:
    tower = ready(build_tower(name, {"hidden_dims": [6, 5]}, LAYOUT)).train()
    inputs, model = random_inputs(LAYOUT), meta_emb(hidden_dims=[5])
    inputs.attributes_BAD.requires_grad_()
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    mean_loss(model, tower, inputs, torch.ones(7, dtype=torch.float64)).backward()
    assert tower.training and all(
        torch.equal(value, before[key]) for key, value in tower.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in tower.parameters())
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in model.parameters()
    )


def test_an_error_in_the_tower_leaves_it_in_training() -> None:
    class Broken(nn.Module):
        def forward(self, inputs: RankingInputs) -> Tensor:
            raise RuntimeError("broken")

    tower = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        mean_loss(meta_emb(), tower, random_inputs(LAYOUT), torch.ones(7, dtype=torch.float64))
    assert tower.training


def test_cold_rows_get_generated_vectors_and_warm_ones_keep_their_own() -> None:
    model, inputs = meta_emb(), random_inputs(LAYOUT)
    inputs.attributes_BAD.requires_grad_()
    new_B, numeric_BM = ~OLD, inputs.numeric_BN[:, :NUM_NUMERIC]
    filled = model.fill_ids(inputs, numeric_BM, new_B)
    assert torch.equal(filled.attributes_BAD[OLD], inputs.attributes_BAD[OLD])
    torch.testing.assert_close(
        filled.attributes_BAD[new_B, FIELD], model(inputs.attributes_BAD, numeric_BM)[new_B]
    )
    assert torch.equal(
        filled.attributes_BAD[new_B][:, [0, 2]], inputs.attributes_BAD[new_B][:, [0, 2]]
    )
    filled.attributes_BAD.square().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    grad = inputs.attributes_BAD.grad
    assert (
        grad is not None
        and grad[new_B, FIELD].abs().max() == 0
        and grad[OLD, FIELD].abs().min() > 0
    )
    assert model(inputs.attributes_BAD, numeric_BM).abs().max() < 0.8


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_pairs_are_different_rows_of_one_user_and_each_row_that_counts_is_in_two(
    rows: list[tuple[int, bool]],
) -> None:
    users, counts = [user for user, _ in rows], [count for _, count in rows]
    earlier, paired = (
        part.tolist() for part in pair_rows(torch.tensor(users), torch.tensor(counts))
    )
    together = Counter(user for user, count in rows if count)
    assert paired == [count and together[user] > 1 for user, count in rows]
    assert sorted(earlier) == list(range(len(rows)))
    for row in range(len(rows)):
        if paired[row]:
            assert (
                earlier[row] != row and users[earlier[row]] == users[row] and counts[earlier[row]]
            )
            walk = [row]
            while earlier[walk[-1]] != row:
                walk.append(earlier[walk[-1]])
            assert len(walk) == together[users[row]], "one round through all rows of the user"
        else:
            assert earlier[row] == row


def schema(**columns: Any) -> Schema:
    return Schema.model_validate(SCHEMA | {"columns": SCHEMA["columns"] | columns})


def test_the_id_is_found_by_the_group_keys_column_or_by_name() -> None:
    with_id = schema(uid=ID)
    assert user_id_field(with_id, None) == user_id_field(with_id, "uid") == 2  # behind age and city
    assert user_id_field(with_id, "city") == 1


@pytest.mark.parametrize(("columns", "name", "message"), [
    (
        {},
        None,
        r"and no column of that group reads 'user' as the group key does; "
        r"add schema\.columns\.user",
    ),
    ({"a": ID, "b": ID}, None, r"and \['a', 'b'\] of that group reads 'user'"),
    ({}, "hour", r"field should name an attribute column of one id \(age, city\), received 'hour'"),
    (
        {},
        "income",
        r"field should name an attribute column of one id \(age, city\), received 'income'",
    ),
    (
        {"city": {"group": "context"}, "income": {"group": "context", "kind": "numeric"}},
        "age",
        "'age' is the only one; add others",
    ),
])  # fmt: skip
def test_a_schema_without_a_fitting_id_is_refused(
    columns: dict[str, Any], name: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        user_id_field(schema(**columns), name)
