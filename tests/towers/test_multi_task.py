"""Multi-task head: the product and loss of ESMM, also where float32 rounds to 0 and 1."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mail_torchrec.losses.ranking import ranking_loss
from mail_torchrec.towers.emblr import EmbLR
from mail_torchrec.towers.inputs import RankingOutput
from mail_torchrec.towers.multi_task import MultiTaskHead, MultiTaskSettings, product_logits
from mail_torchrec.towers.registry import build_tower
from tests.support import reference
from tests.support.random_inputs import ready, shapes

DIM = 6


class Tower(nn.Module):
    representation_dim = DIM


def head(**options: Any) -> MultiTaskHead:
    module = MultiTaskHead(MultiTaskSettings(**options), Tower(), "some")
    return ready(module)  # type: ignore[return-value]


def ranked(num_rows: int) -> RankingOutput:
    generator = torch.Generator().manual_seed(4)
    logits_B, representation_BR = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((num_rows,), (num_rows, DIM))
    )
    return RankingOutput(logits_B, representation_BR=representation_BR)


LABELS = torch.tensor(
    [[0, 0], [1, 0], [1, 1], [0, 1], [1, 1]], dtype=torch.float64
)  # click, conversion


def loss(tasks: dict[str, Tensor], output: RankingOutput, click_weight: float) -> Tensor:
    clicks_B, both_B = LABELS[:, 0], LABELS.prod(1)
    return click_weight * ranking_loss(output.logits_B, clicks_B) + (
        1 - click_weight
    ) * ranking_loss(tasks["ctcvr"], both_B)


@pytest.mark.parametrize("hidden_dims", [(5, 4), ()])
def test_product_and_loss_equal_the_formula(hidden_dims: tuple[int, ...]) -> None:
    module, output = head(hidden_dims=hidden_dims), ranked(5)
    tasks = module(output)
    losses_B = loss(tasks, output, 0.7)
    assert output.representation_BR is not None
    for row in range(5):
        click, conversion = LABELS[row].int().tolist()
        representation = output.representation_BR[row].numpy()
        expected = reference.esmm(
            reference.parameters(module),
            output.logits_B[row].item(),
            representation,
            click,
            conversion,
            0.7,
        )
        found = (
            tasks["cvr"][row].sigmoid().item(),
            tasks["ctcvr"][row].sigmoid().item(),
            losses_B[row].item(),
        )
        assert found == pytest.approx(expected, rel=1e-12)


def test_gradients_equal_finite_differences_of_the_formula() -> None:
    """Of the loss in the click logit, the representation and every parameter of the head."""
    module, output = head(hidden_dims=(5, 4)), ranked(5)
    assert output.representation_BR is not None
    leaves = [
        output.logits_B.requires_grad_(),
        output.representation_BR.requires_grad_(),
        *module.parameters(),
    ]
    gradients = torch.autograd.grad(loss(module(output), output, 0.6).sum(), leaves)

    def formula() -> float:
        p, total = reference.parameters(module), 0.0
        for row in range(5):
            logit, representation = (
                output.logits_B[row].item(),
                output.representation_BR[row].detach().numpy(),
            )  # type: ignore[index]
            click, conversion = LABELS[row].int().tolist()
            total += reference.esmm(p, logit, representation, click, conversion, 0.6)[2]
        return total

    step = 1e-6
    for leaf, gradient in zip(leaves, gradients, strict=True):
        values = leaf.detach().view(-1)
        for i in range(len(values)):
            kept = values[i].item()
            sides = []
            for value in (kept + step, kept - step):
                values[i] = value
                sides.append(formula())
            values[i] = kept
            assert gradient.reshape(-1)[i].item() == pytest.approx(
                (sides[0] - sides[1]) / (2 * step), rel=1e-5, abs=1e-8
            )


def exact_loss(x: float, y: float, both: int) -> tuple[float, float]:
    """BCE of sigmoid(x) sigmoid(y) and its derivative in x, in float64 without cancellation."""
    x, y = np.float64(x), np.float64(y)
    odds_against = np.exp(-x) + np.exp(-y) + np.exp(-x - y)  # (1 - p) / p
    p, by_x = 1 / (1 + odds_against), np.exp(-x) + np.exp(-x - y)  # by_x is -d odds_against / dx
    return (
        (np.log1p(odds_against), -by_x * p)
        if both
        else (np.log1p(1 / odds_against), by_x * p / odds_against)
    )


@pytest.mark.parametrize("both", [0, 1])
@pytest.mark.parametrize("x", [-50.0, -20.0, -1.0, 0.0, 3.0, 20.0, 50.0])
@pytest.mark.parametrize("y", [-50.0, -20.0, -1.0, 0.0, 3.0, 20.0, 50.0])
def test_float32_equals_float64_where_probabilities_round_to_0_and_1(
    x: float, y: float, both: int
) -> None:
    logits = torch.tensor([x, y], requires_grad=True)
    value = ranking_loss(product_logits(logits[:1], logits[1:]), torch.tensor([both]))
    value.sum().backward()
    assert logits.grad is not None
    for of_x, (own, other) in zip(logits.grad.tolist(), ((x, y), (y, x)), strict=True):
        expected, gradient = exact_loss(own, other, both)
        assert value.item() == pytest.approx(expected, rel=1e-6, abs=4e-6)
        assert of_x == pytest.approx(gradient, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("x", [-1e4, 1e4, 1e30])
def test_absurd_logits_have_finite_gradients(x: float) -> None:
    for y in (-1e4, 0.0, 1e4):
        logits = torch.tensor([x, y], requires_grad=True)
        for both in (0, 1):
            value = ranking_loss(product_logits(logits[:1], logits[1:]), torch.tensor([both])).sum()
            assert value.isfinite() and torch.autograd.grad(value, logits)[0].isfinite().all()


def test_a_product_of_probabilities_is_below_both() -> None:
    output = ranked(5)
    tasks = head()(output)
    assert (tasks["ctcvr"] < torch.minimum(output.logits_B, tasks["cvr"])).all()


def test_a_tower_without_representation_is_refused() -> None:
    emblr = build_tower("emblr", {}, shapes(dim=1))
    assert isinstance(emblr, EmbLR)
    message = (
        r"model.multi_task: tower 'emblr' gives no representation .*representation_dim.*"
        r"choose another tower, or model.multi_task=null"
    )
    with pytest.raises(ValueError, match=message):
        MultiTaskHead(MultiTaskSettings(), emblr, "emblr")


@pytest.mark.parametrize(
    ("representation_BR", "received"), [(None, "none"), (torch.zeros(3, DIM + 1), r"\(3, 7\)")]
)
def test_a_tower_without_its_declared_representation_is_named(
    representation_BR: Tensor | None, received: str
) -> None:
    output = RankingOutput(torch.zeros(3), representation_BR=representation_BR)
    with pytest.raises(
        ValueError,
        match=(
            r"tower 'some' should return .*representation_BR of shape \(3, 6\), "
            rf".*received {received}"
        ),
    ):
        MultiTaskHead(MultiTaskSettings(), Tower(), "some")(output)


@pytest.mark.parametrize(
    "option", [{"click_weight": 0.0}, {"click_weight": 1.0}, {"hidden_dims": [0]}]
)
def test_settings_refuse_weights_that_train_one_task_alone(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        MultiTaskSettings(**option)
