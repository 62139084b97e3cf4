"""Heads of several tasks equal formulas of their papers, written row by row and expert by expert.

The formulas are in torch, so that their gradients are compared too.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mail_torchrec.model.builders import ModelSettings
from mail_torchrec.towers.inputs import RankingOutput
from mail_torchrec.towers.tasks.heads import TaskHeads
from tests.support.random_inputs import ready
from tests.support.task_rows import MMOE, PLE, TASKS

DIM = 6
NAMES = ["click", *(name for name in TASKS if name != "click")]


class Tower(nn.Module):
    representation_dim = DIM


def heads(experts: dict[str, Any] | None) -> TaskHeads:
    settings = ModelSettings.model_validate({"tasks": TASKS, "experts": experts})
    module = TaskHeads(settings.tasks, settings.experts, Tower(), "some")
    return ready(module)  # type: ignore[return-value]


def dense(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return p[f"{name}.weight"] @ x + p.get(f"{name}.bias", torch.tensor(0.0))


def mlp(p: dict[str, Tensor], name: str, x: Tensor, slope: float, *, ends_linear: bool) -> Tensor:
    layers = sorted({int(key.split(".")[-2]) for key in p if key.startswith(f"{name}.")})
    for layer in layers:
        x = dense(p, f"{name}.{layer}", x)
        if not (ends_linear and layer == layers[-1]):
            x = torch.where(x > 0, x, slope * x)
    return x


def expert(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return mlp(p, name, x, 0.0, ends_linear=False)


def mixed(p: dict[str, Tensor], gate: str, x: Tensor, outputs: list[Tensor]) -> Tensor:
    scores = [(row * x).sum() for row in p[f"{gate}.linear.weight"]]
    total = sum(torch.exp(score) for score in scores)
    parts = [torch.exp(s) / total * output for s, output in zip(scores, outputs, strict=True)]
    return torch.stack(parts).sum(0)


def task_inputs(p: dict[str, Tensor], x: Tensor, experts: dict[str, Any] | None) -> list[Tensor]:
    if experts is None:
        return [x] * len(NAMES)
    if experts is MMOE:  # Ma et al. 2018, Eqs. 6 and 7
        outputs = [expert(p, f"experts.experts.{i}", x) for i in range(3)]
        return [mixed(p, f"experts.gates.{k}", x, outputs) for k in range(len(NAMES))]
    own, shared = [x] * len(NAMES), x  # Tang et al. 2020, Eqs. 1 to 7: one own expert, two shared
    for level in range(2):
        name = f"experts.levels.{level}"
        of_tasks = [expert(p, f"{name}.own.{k}.0", own[k]) for k in range(len(NAMES))]
        of_all = [expert(p, f"{name}.shared.{i}", shared) for i in range(2)]
        if level == 0:
            next_shared = mixed(p, f"{name}.shared_gate", shared, [*of_tasks, *of_all])
        own = [
            mixed(p, f"{name}.gates.{k}", own[k], [of_tasks[k], *of_all]) for k in range(len(NAMES))
        ]
        shared = next_shared
    return own


def formula(
    p: dict[str, Tensor], logit: Tensor, x: Tensor, experts: dict[str, Any] | None
) -> dict[str, Tensor]:
    """Probabilities and expected values of one row, and the deviation of the log-normal one."""
    inputs = dict(zip(NAMES, task_inputs(p, x, experts), strict=True))
    raw = {
        name: mlp(p, f"networks.of_{name}", value, 0.01, ends_linear=True)
        for name, value in inputs.items()
        if name != "click" or experts is not None
    }
    click = torch.sigmoid(logit + (raw["click"][0] if "click" in raw else 0))
    buy_given, pay_given = torch.sigmoid(raw["buy"][0]), torch.sigmoid(raw["pay"][0])
    deviation = torch.log1p(torch.exp(raw["stay"][1])) + 1e-3
    odds = torch.sigmoid(raw["watch"][0]) / (1 - torch.sigmoid(raw["watch"][0]))
    return {
        "pctr": click,
        "pbuy_given_click": buy_given,
        "pbuy": click * buy_given,
        "ppay_given_buy": pay_given,
        "ppay": click * buy_given * pay_given,
        "plike": torch.sigmoid(raw["like"][0]),
        "watch": 5 * odds,
        "stay": 5 * torch.exp(raw["stay"][0] + deviation**2 / 2),
        "stay.deviation": deviation,
    }


@pytest.mark.parametrize("experts", [None, MMOE, PLE], ids=["shared_bottom", "mmoe", "ple"])
def test_predictions_and_gradients_equal_the_formula(experts: dict[str, Any] | None) -> None:
    module, generator = heads(experts), torch.Generator().manual_seed(4)
    logits_B, x_BR = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4,), (4, DIM))
    )
    leaves = [logits_B.requires_grad_(), x_BR.requires_grad_(), *module.parameters()]
    tasks = module(RankingOutput(logits_B, representation_BR=x_BR))
    deviations = {"stay.deviation": tasks["stay.deviation"]}
    found = module._layout.scores(tasks.pop("ctr", logits_B), tasks) | deviations
    rows = [
        formula(dict(module.named_parameters()), logits_B[row], x_BR[row], experts)
        for row in range(4)
    ]
    expected = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    assert list(found) == list(expected)
    assert [spec.name for spec in module.output_specs()] == list(found)[1:-1]
    weights = dict(zip(found, torch.rand(len(found), 4, generator=generator), strict=True))
    for name, values_B in expected.items():
        torch.testing.assert_close(found[name], values_B, rtol=1e-10, atol=0)
    losses = [
        torch.stack([(weights[k] * torch.log(v)).sum() for k, v in each.items()]).sum()
        for each in (found, expected)
    ]
    gradients = [torch.autograd.grad(loss, leaves) for loss in losses]
    for own, wanted in zip(*gradients, strict=True):
        assert wanted.abs().sum() > 0 and math.isfinite(wanted.sum())
        torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-12)
