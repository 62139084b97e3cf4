"""Products of attributes and items equal their definitions, in every tower."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mail_torchrec.model.builders import ModelSettings
from mail_torchrec.towers.attribute_crosses import AttributeCrosses, AttributeCrossesSettings
from mail_torchrec.towers.inputs import InputShapes, RankingInputs, RankingOutput
from mail_torchrec.towers.registry import TOWERS, build_tower
from tests.support import reference
from tests.support.random_inputs import numpy_row, random_inputs, ready, shapes
from tests.towers.test_ranking_towers import OPTIONS, expected_logits

CROSSED = [name for name in OPTIONS if name != "emblr"]
FORMS: dict[str, dict[str, Any]] = {"bilinear": {"rank": 3}, "fm": {}}
# Numbers of the user, of the context and of the items: 2, 1 and 1.
NUMBERS = {"num_numeric": 4, "num_numeric_attributes": 2, "num_numeric_items": 1}
SIZES: dict[str, dict[str, Any]] = {
    "numbers": NUMBERS,
    "other dims": NUMBERS | {"attribute_dim": 3, "item_dim": 5},
    "no numbers": {"num_numeric": 0},
    "numbers alone": NUMBERS | {"num_attributes": 0, "attribute_dim": 0},
}


def settings(form: str) -> AttributeCrossesSettings:
    return AttributeCrossesSettings.model_validate({"form": form} | FORMS[form])


def expected_products(
    form: str, p: reference.Parameters, layout: InputShapes, row: dict[str, Any]
) -> list[float]:
    """Every product by its definition: a sum over all pairs of an attribute and an item field."""
    attributes, _, items = row["groups"]
    numbers = row["numeric"]
    x = numbers[: layout.num_numeric_attributes]
    y = numbers[len(numbers) - layout.num_numeric_items :]
    if form == "bilinear":
        a, t = [*attributes.ravel(), *x], [*items.ravel(), *y]
        P, Q = p["attributes.layer.weight"], p["items.layer.weight"]
        return [
            sum(P[k, i] * a[i] * Q[k, j] * t[j] for i in range(len(a)) for j in range(len(t)))
            for k in range(len(P))
        ]
    users = vectors_of(p, "attributes", list(attributes), list(x))
    targets = vectors_of(p, "items", list(items), list(y))
    return list(sum(a * t for a in users for t in targets))


def vectors_of(p: reference.Parameters, side: str, fields: list[Any], numbers: list[float]) -> Any:
    if f"{side}.fields.weight" in p:
        fields = [p[f"{side}.fields.weight"] @ field for field in fields]
    return fields + [x * p[f"{side}.numeric.weight"][:, m] for m, x in enumerate(numbers)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_products_are_sums_over_all_pairs_of_an_attribute_and_an_item_field(
    form: str, size: str
) -> None:
    layout = shapes(**SIZES[size])
    crosses, inputs = ready(AttributeCrosses(settings(form), layout)), random_inputs(layout)
    found_BK = crosses(inputs).detach().numpy()
    p = reference.parameters(crosses)
    for row in range(7):
        expected = expected_products(form, p, layout, numpy_row(inputs, row))
        np.testing.assert_allclose(found_BK[row], expected, rtol=1e-10, atol=1e-12)
    if (form, size) == ("fm", "no numbers"):
        assert not p, "a factorization machine on the tables' own vectors"
        pairs_B = torch.einsum("bad,bid->b", inputs.attributes_BAD, inputs.items_BID)
        np.testing.assert_allclose(found_BK.sum(1), pairs_B, rtol=1e-10)


@pytest.mark.parametrize("name", CROSSED)
def test_every_tower_reads_the_normalised_products_and_adds_them_to_its_logit(name: str) -> None:
    layout = shapes(**NUMBERS)
    tower = ready(build_tower(name, OPTIONS[name], layout, settings("bilinear")))
    inputs = random_inputs(layout)
    output = RankingOutput.wrap(tower(inputs))
    p, whole = reference.parameters(tower.crosses), reference.parameters(tower)
    z_BK = np.array(
        [
            reference.batch_norm(
                whole,
                "norm",
                np.array(expected_products("bilinear", p, layout, numpy_row(inputs, row))),
            )
            for row in range(7)
        ]
    )
    wider = torch.cat([inputs.numeric_BN, torch.from_numpy(z_BK)], dim=1)
    alone = expected_logits(name, tower.tower, replace(inputs, numeric_BN=wider), has_match=True)
    expected = alone + z_BK @ whole["logit.weight"][0]
    np.testing.assert_allclose(output.logits_B.detach().numpy(), expected, rtol=1e-10)
    assert output.representation_BR is not None
    assert output.representation_BR.shape == (7, tower.representation_dim)
    assert tower.output_specs() == getattr(tower.tower, "output_specs", list)()
    assert set(output.vectors) == (set(layout.sequences) if name == "dmr" else set())


@pytest.mark.parametrize("form", FORMS)
def test_towers_with_products_train_and_compile(form: str) -> None:
    layout = shapes(**NUMBERS | {"item_dim": 5})
    tower = ready(build_tower("base_dnn", OPTIONS["base_dnn"], layout, settings(form)))
    inputs = random_inputs(layout)
    compiled = torch.compile(tower, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(inputs).logits_B, tower(inputs).logits_B)
    tower.train()(inputs).logits_B.sum().backward()
    for parameter, value in tower.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), parameter
        assert value.grad.abs().sum() > 0 or "tower.layers" in parameter, parameter


def test_a_tower_of_a_users_own_reads_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = shapes(**NUMBERS)

    class Sum(torch.nn.Module):
        def __init__(self, options: dict[str, Any], given: InputShapes) -> None:
            super().__init__()
            assert given.num_numeric == layout.num_numeric + 4
            # The last features are still the items', the products behind their own.
            assert given.num_numeric_items == layout.num_numeric_items + 4

        def forward(self, inputs: RankingInputs) -> torch.Tensor:
            return inputs.numeric_BN.sum(1)

    monkeypatch.setitem(TOWERS, "sum", Sum)
    tower = build_tower("sum", {}, layout, settings("fm")).double()
    inputs = random_inputs(layout)
    tower.eval()
    products_BK = tower.norm(tower.crosses(inputs))
    expected_B = inputs.numeric_BN.sum(1) + products_BK.sum(1)  # the logit's weights begin at 0
    torch.testing.assert_close(tower(inputs).logits_B, expected_B)
    assert not hasattr(tower, "representation_dim"), "so heads of further tasks are refused"


@pytest.mark.parametrize(
    ("group", "size"),
    [
        ("attribute", {"num_attributes": 0, "attribute_dim": 0}),
        ("item", {"num_items": 0, "item_dim": 0}),
    ],
)
def test_products_need_attributes_and_item_fields(group: str, size: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match=rf"model.attribute_crosses .* no column has group '{group}'; add one .*"
    ):
        build_tower("base_dnn", {}, shapes(**size), settings("bilinear"))


def test_one_weight_an_id_has_no_products() -> None:
    with pytest.raises(ValidationError, match=r"attribute_crosses .*'emblr' has one weight an id"):
        ModelSettings(tower="emblr", attribute_crosses=AttributeCrossesSettings())


def test_configurations_without_products_are_written_as_ever() -> None:
    assert "attribute_crosses" not in ModelSettings().model_dump()
