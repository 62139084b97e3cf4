"""Predictions of all tasks: their names, outputs and targets, and products of probabilities.

A prediction is a tensor [B]: the logit of a probability, or the log of an expected value. Shape:
``B`` rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mail_torchrec.towers.multi_task import product_logits
from mail_torchrec.towers.outputs import CLICK_TASK, probability_name, probability_spec
from mail_torchrec.towers.tasks.settings import (
    CLICK,
    TaskSettings,
    conditional_name,
    further_tasks,
)
from mail_torchrec.utils.output_spec import OutputSpec

DEVIATION = ".deviation"
"""End of the name of a log-normal task's deviation, which is no output."""
_MAX_LOG = 80.0
"""Largest log of an expected value: float32 holds its exponential."""


class TaskProduct(NamedTuple):
    """Probability that is the product of two others."""

    name: str
    before: str
    given: str


@dataclass(frozen=True)
class TaskLayout:
    """Kinds of the predictions beside the click, and the products among them."""

    products: tuple[TaskProduct, ...] = ()
    """Products in an order in which each comes behind its factors."""
    values: frozenset[str] = frozenset()
    """Predictions that are logs of expected values; the others are logits."""

    @staticmethod
    def of(tasks: Mapping[str, TaskSettings]) -> "TaskLayout":
        """Lays out the predictions of tasks."""
        return TaskLayout(
            tuple(
                TaskProduct(name, prediction_name(task.after), conditional_name(name, task))
                for name, task in further_tasks(tasks).items()
                if task.type == "binary" and task.after is not None
            ),
            frozenset(name for name, task in tasks.items() if task.type != "binary"),
        )

    def with_products(
        self, click_logits_B: Tensor, tasks: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Computes the products anew for other logits of a click.

        Args:
            click_logits_B: of a click.
            tasks: prediction -> [B].
        """
        found = {CLICK_TASK: click_logits_B, **tasks}
        for product in self.products:
            found[product.name] = product_logits(found[product.before], found[product.given])
        return {name: found[name] for name in tasks}

    def scores(self, click_logits_B: Tensor, tasks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the probabilities and expected values [B] by the name of their output.

        Args:
            click_logits_B: of a click.
            tasks: prediction -> [B].
        """
        return {
            self.output_name(name): self.score(name, values_B)
            for name, values_B in {CLICK_TASK: click_logits_B, **tasks}.items()
            if not name.endswith(DEVIATION)
        }

    def output_name(self, name: str) -> str:
        """Returns the name of a prediction's output."""
        return name if name in self.values else probability_name(name)

    def score(self, name: str, values_B: Tensor) -> Tensor:
        """Returns a prediction as a probability or an expected value, [B].

        Args:
            name: of the prediction.
            values_B: its logits, or logs.
        """
        if name in self.values:
            return torch.exp(values_B.clamp(max=_MAX_LOG))
        return torch.sigmoid(values_B)


ESMM_LAYOUT = TaskLayout((TaskProduct("ctcvr", CLICK_TASK, "cvr"),))
"""Layout of ``model.multi_task``."""


def prediction_name(task: str) -> str:
    """Returns the name of a task's prediction: its own, but ``ctr`` of the click."""
    return CLICK_TASK if task == CLICK else task


def task_names(tasks: Mapping[str, TaskSettings]) -> list[str]:
    """Lists the predictions of tasks that metrics are computed of."""
    names = []
    for name, task in further_tasks(tasks).items():
        if task.type == "binary" and task.after is not None:
            names.append(conditional_name(name, task))
        names.append(name)
    return names


def task_specs(tasks: Mapping[str, TaskSettings]) -> list[OutputSpec]:
    """Declares the outputs of all tasks beside the click, in the order of the predictions."""
    specs = []
    for name, task in further_tasks(tasks).items():
        if task.type != "binary":
            given = f", given {task.after}" if task.after else ""
            meaning = f"expected value of {name}{given}, in the unit of its label"
            specs.append(
                OutputSpec(name=name, axis="candidates", role="expected_value", meaning=meaning)
            )
        elif task.after is None:
            specs.append(probability_spec(name, f"probability of {name}"))
        else:
            given = f"probability of {name}, given {task.after}"
            both = f"probability of {name}, and so of {task.after}"
            specs.append(probability_spec(conditional_name(name, task), given))
            specs.append(probability_spec(name, both))
    return specs


def task_targets(
    tasks: Mapping[str, TaskSettings], clicks_B: Tensor, labels: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Computes what each prediction is compared with, [B]; NaN where the row does not count.

    A task that follows another is 0 where that one is 0, whatever its own label says.

    Args:
        tasks: settings of the tasks.
        clicks_B: 0 or 1.
        labels: column -> labels [B], NaN where they are null.
    """
    targets = {CLICK_TASK: clicks_B}
    for name, task in further_tasks(tasks).items():
        own_B = labels[task.label].to(clicks_B.dtype)
        unknown_B = torch.full_like(own_B, torch.nan)
        if task.type == "log_normal":
            own_B = torch.where(own_B > 0, own_B, unknown_B)
        if task.after is None:
            targets[name] = own_B
            continue
        before_B = targets[prediction_name(task.after)]
        given_B = torch.where(before_B == 1, own_B, unknown_B)
        if task.type != "binary":
            targets[name] = given_B
            continue
        targets[conditional_name(name, task)] = given_B
        is_zero_B = (before_B == 0) | (own_B == 0)
        targets[name] = torch.where(is_zero_B, torch.zeros_like(own_B), given_B)
    del targets[CLICK_TASK]
    return targets
