"""Networks of the tasks on a ranking tower's last hidden layer, or on experts above it.

Shape letters: ``B`` rows, ``O`` outputs of a task's network.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from mail_torchrec.towers.inputs import RankingOutput
from mail_torchrec.towers.layers.mlp import dense_layers, last_dim
from mail_torchrec.towers.multi_task import checked_representation, representation_dim
from mail_torchrec.towers.outputs import CLICK_TASK
from mail_torchrec.towers.tasks.experts import build_experts
from mail_torchrec.towers.tasks.layout import DEVIATION, TaskLayout, task_specs
from mail_torchrec.towers.tasks.settings import (
    CLICK,
    ExpertsSettings,
    TaskSettings,
    conditional_name,
    further_tasks,
)
from mail_torchrec.utils.output_spec import OutputSpec

_LEAST_DEVIATION = 1e-3
"""Of a log-normal distribution, so that its density stays finite."""


class TaskHeads(nn.Module):
    """Predicts all tasks from a tower's representation.

    Without experts the representation is the bottom that the tasks share (Caruana 1997), and the
    click is the tower's own prediction. With experts each task has its mixture of them, the click
    too, whose network then adds to the tower's logit: so the first-order and factorised terms that
    a tower has beside its representation stay.

    Args:
        tasks: settings by the tasks' names.
        experts: settings of the experts; None without any.
        tower: the ranking tower that returns the representation.
        tower_name: its name, for messages.

    Raises:
        ValueError: the tower gives no representation.
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskSettings],
        experts: ExpertsSettings | None,
        tower: nn.Module,
        tower_name: str,
    ) -> None:
        super().__init__()
        self._tower_name, self._tasks = tower_name, further_tasks(tasks)
        self._dim = representation_dim(
            tower, f"model.tasks: tower '{tower_name}'", "model.tasks={} and model.experts=null"
        )
        self._layout = TaskLayout.of(self._tasks)
        networks = dict(self._tasks)
        self.experts, in_dim = None, self._dim
        if experts is not None:
            networks = {CLICK: tasks.get(CLICK, TaskSettings(label=""))} | networks
            self.experts = build_experts(experts, self._dim, len(networks))
            in_dim = self.experts.out_dim
        # Names of modules must not be those of ModuleDict's own attributes.
        self.networks = nn.ModuleDict(
            {f"of_{name}": _network(in_dim, task) for name, task in networks.items()}
        )

    def forward(self, ranked: RankingOutput) -> dict[str, Tensor]:
        """Computes the predictions [B] by name; with experts the click's logits ``ctr`` first.

        Args:
            ranked: output of the ranking tower.

        Raises:
            ValueError: the representation is missing or of another width.
        """
        x_BR = checked_representation(ranked, self._dim, self._tower_name)
        inputs = [x_BR] * len(self.networks) if self.experts is None else self.experts(x_BR)
        raw = {
            name.removeprefix("of_"): _at_least_float32(network(input_BR))
            for (name, network), input_BR in zip(self.networks.items(), inputs, strict=True)
        }
        logits_B, found = ranked.logits_B, {}
        if CLICK in raw:
            logits_B = logits_B + raw[CLICK].squeeze(1)
            found[CLICK_TASK] = logits_B
        for name, task in self._tasks.items():
            found |= _predictions(name, task, raw[name])
        return found | self._layout.with_products(logits_B, found)

    def output_specs(self) -> list[OutputSpec]:
        """Declares the outputs of the tasks, in the order of :meth:`forward`."""
        return task_specs(self._tasks)


def _network(in_dim: int, task: TaskSettings) -> nn.Sequential:
    layers = dense_layers(in_dim, task.hidden_dims, lambda _: nn.LeakyReLU())
    num_outputs = 2 if task.type == "log_normal" else 1
    return nn.Sequential(*layers, nn.Linear(last_dim(in_dim, task.hidden_dims), num_outputs))


def _predictions(name: str, task: TaskSettings, raw_BO: Tensor) -> dict[str, Tensor]:
    """Returns the predictions of a task's network; a product's place is held by its factor."""
    if task.type == "binary":
        logits_B = raw_BO.squeeze(1)
        if task.after is None:
            return {name: logits_B}
        return {conditional_name(name, task): logits_B, name: logits_B}
    if task.type == "weighted_logistic":
        return {name: raw_BO.squeeze(1) + math.log(task.scale)}
    mu_B, raw_B = raw_BO.unbind(1)
    deviations_B = functional.softplus(raw_B) + _LEAST_DEVIATION
    return {
        name: mu_B + deviations_B.square() / 2 + math.log(task.scale),
        f"{name}{DEVIATION}": deviations_B,
    }


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
