"""A tower with what a GPU's step should not have, to see that the tests would tell."""

from typing import Any

import torch
from torch import Tensor

from mail_torchrec.towers.inputs import InputShapes, RankingInputs
from tests.support.towers_of_users import MeanTower


class _ReadGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float(gradients[0].abs().max() > 0)


class WaitingTower(MeanTower):
    """``{fault: waits | host}``: reads values of the device, or adds a tensor of the host."""

    def __init__(self, options: dict[str, Any], shapes: InputShapes) -> None:
        super().__init__({}, shapes)
        self.fault = options["fault"]

    def forward(self, inputs: RankingInputs) -> Tensor:
        logits_B: Tensor = super().forward(inputs)
        if self.fault == "host":
            return logits_B + torch.zeros(len(logits_B))
        kept_N = logits_B[logits_B < 1e9]
        scale = 1 + 0 * logits_B.detach().max().item()
        return _ReadGradient.apply(logits_B * scale) + 0 * kept_N.sum()  # type: ignore[no-any-return, no-untyped-call]
