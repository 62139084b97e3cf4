"""Experts that tasks share: MMoE (Ma et al., KDD 2018) and PLE (Tang et al., RecSys 2020).

Shape letters: ``B`` rows, ``R`` elements of the tower's representation, ``E`` experts, ``H``
elements of an expert's output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mail_torchrec.towers.layers.mlp import dense_layers, last_dim
from mail_torchrec.towers.tasks.settings import ExpertsSettings, MMoESettings, PLESettings


class Gate(nn.Module):
    """Weighted sum of experts, with weights by a softmax over a linear map of an input.

    Args:
        in_dim: width of the input.
        num_experts: number of experts.
    """

    def __init__(self, in_dim: int, num_experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, num_experts, bias=False)

    def forward(self, x_BR: Tensor, experts: Sequence[Tensor]) -> Tensor:
        """Mixes the experts, [B, H].

        Args:
            x_BR: input of the gate.
            experts: output [B, H] of each expert.
        """
        weights_BE = torch.softmax(self.linear(x_BR), dim=1)
        return (weights_BE.unsqueeze(2) * torch.stack(list(experts), dim=1)).sum(1)


class MMoE(nn.Module):
    """Multi-gate mixture of experts.

    Args:
        settings: number and widths of the experts.
        in_dim: width of the representation.
        num_tasks: number of tasks.
    """

    def __init__(self, settings: MMoESettings, in_dim: int, num_tasks: int) -> None:
        super().__init__()
        self.experts = _experts(settings.num_experts, in_dim, settings.hidden_dims)
        self.gates = nn.ModuleList(Gate(in_dim, settings.num_experts) for _ in range(num_tasks))
        self.out_dim = last_dim(in_dim, settings.hidden_dims)

    def forward(self, x_BR: Tensor) -> list[Tensor]:
        """Computes the input of each task's own network, [B, H] each.

        Args:
            x_BR: the tower's representation.
        """
        experts = [expert(x_BR) for expert in self.experts]
        return [gate(x_BR, experts) for gate in self.gates]


class PLELevel(nn.Module):
    """One level of PLE: each task mixes its own experts and the shared ones.

    Args:
        settings: numbers and widths of the experts.
        in_dim: width of the inputs.
        num_tasks: number of tasks.
        is_last: the shared experts are mixed for no further level.
    """

    def __init__(
        self, settings: PLESettings, in_dim: int, num_tasks: int, *, is_last: bool
    ) -> None:
        super().__init__()
        num_own, num_shared, dims = settings.num_own, settings.num_shared, settings.hidden_dims
        self.own = nn.ModuleList(_experts(num_own, in_dim, dims) for _ in range(num_tasks))
        self.shared = _experts(num_shared, in_dim, dims)
        self.gates = nn.ModuleList(Gate(in_dim, num_own + num_shared) for _ in range(num_tasks))
        num_all = num_tasks * num_own + num_shared
        self.shared_gate = None if is_last else Gate(in_dim, num_all)

    def forward(self, inputs: Sequence[Tensor], shared_BR: Tensor) -> tuple[list[Tensor], Tensor]:
        """Computes each task's mixture and the shared one, [B, H] each.

        Args:
            inputs: input [B, R] of each task.
            shared_BR: input of the shared experts; returned as it is by the last level.
        """
        shared = [expert(shared_BR) for expert in self.shared]
        own = [
            [expert(x_BR) for expert in experts]
            for experts, x_BR in zip(self.own, inputs, strict=True)
        ]
        mixed = [
            gate(x_BR, [*of_task, *shared])
            for gate, x_BR, of_task in zip(self.gates, inputs, own, strict=True)
        ]
        if self.shared_gate is None:
            return mixed, shared_BR
        every = [expert_BH for of_task in own for expert_BH in of_task]
        return mixed, self.shared_gate(shared_BR, [*every, *shared])


class PLE(nn.Module):
    """Progressive layered extraction: levels of experts of one task and of all.

    Args:
        settings: numbers and widths of the experts.
        in_dim: width of the representation.
        num_tasks: number of tasks.
    """

    def __init__(self, settings: PLESettings, in_dim: int, num_tasks: int) -> None:
        super().__init__()
        self.out_dim = last_dim(in_dim, settings.hidden_dims)
        last = settings.num_levels - 1
        self.levels = nn.ModuleList(
            PLELevel(settings, self.out_dim if i else in_dim, num_tasks, is_last=i == last)
            for i in range(settings.num_levels)
        )
        self._num_tasks = num_tasks

    def forward(self, x_BR: Tensor) -> list[Tensor]:
        """Computes the input of each task's own network, [B, H] each.

        Args:
            x_BR: the tower's representation.
        """
        inputs, shared_BR = [x_BR] * self._num_tasks, x_BR
        for level in self.levels:
            inputs, shared_BR = level(inputs, shared_BR)
        return inputs


def build_experts(settings: ExpertsSettings, in_dim: int, num_tasks: int) -> MMoE | PLE:
    """Builds the experts for a number of tasks."""
    if isinstance(settings, MMoESettings):
        return MMoE(settings, in_dim, num_tasks)
    return PLE(settings, in_dim, num_tasks)


def _experts(num: int, in_dim: int, dims: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(*dense_layers(in_dim, dims, lambda _: nn.ReLU())) for _ in range(num)
    )
