"""Optimizer groups of a run: named sets of parameters, each with its optimizer.

The method has two optimizers: G_A trains the zero-shot tower, G_B trains the ranking tower and the
tables. Groups are the one list that a training step, checkpoints, schedules, gradient clipping and
freezing go over.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from mail_torchrec.optim.accumulation import average_gradients, without_gradient_exchange
from mail_torchrec.optim.assignment import TABLE_GROUPS
from mail_torchrec.optim.clipping import clip_gradients
from mail_torchrec.optim.ema import AveragedWeights
from mail_torchrec.optim.schedules import learning_rate_factor
from mail_torchrec.optim.settings import OptimizerSettings


@dataclass(frozen=True)
class OptimizerGroup:
    """Parameters that one optimizer trains."""

    name: str
    """``fused``, ``tables``, ``ranking`` or ``zero_shot``; part of the keys of checkpoints."""
    optimizer: KeyedOptimizer
    is_fused: bool = False
    """True where the backward pass updates the parameters, and they have no gradients."""

    @property
    def is_dense(self) -> bool:
        """True for towers, False for tables."""
        return self.name not in TABLE_GROUPS

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """Parameter name -> parameter of any shape, a ``ShardedTensor`` in a fused group."""
        return dict(self.optimizer.params)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Parameter name -> parameter of any shape; those of a dense group that are not frozen."""
        return {
            name: value
            for name, value in self.optimizer.params.items()
            if isinstance(value, nn.Parameter) and value.requires_grad
        }

    @property
    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Parameter name -> name of the state -> tensor of any shape."""
        found: dict[str, dict[str, torch.Tensor]] = self.optimizer.state_dict()["state"]
        return {
            parameter: {name: value for name, value in state.items() if value is not None}
            for parameter, state in found.items()
        }

    def learning_rate(self) -> float:
        """Returns the learning rate of the step; 0 where all of the group is frozen."""
        if not self.is_fused and not self.trained:
            return 0.0
        return max((float(part["lr"]) for part in self.optimizer.param_groups), default=0.0)

    def scale_learning_rate(self, factor: float) -> None:
        """Sets the learning rate to the configured one times a factor.

        FBGEMM's fused optimizers read it when they zero gradients, which they do not have.
        """
        for part in self.optimizer.param_groups:
            part["lr"] = part.setdefault("initial_lr", part["lr"]) * factor


class OptimizerGroups(CombinedOptimizer):
    """All optimizer groups of a run, stepped together.

    :meth:`begin_step` and :meth:`finish_step` stand around the forward and backward pass of a
    batch.

    Args:
        groups: in the order in which they step; names are unique.
        settings: schedules, clipping, accumulation.
        averages: of the dense weights; None without any.
    """

    def __init__(
        self,
        groups: list[OptimizerGroup],
        settings: OptimizerSettings,
        averages: AveragedWeights | None = None,
    ) -> None:
        super().__init__([(group.name, group.optimizer) for group in groups])
        self.groups = {group.name: group for group in groups}
        self.averages = averages
        self.num_done = 0
        """Steps done."""
        self._settings, self._num_steps = settings, None
        self._norms: dict[str, Tensor] = {}

    _num_steps: int | None

    def __iter__(self) -> Iterator[OptimizerGroup]:
        return iter(self.groups.values())

    def plan(self, num_steps: int) -> None:
        """Tells the schedules the steps of the whole run.

        Raises:
            ValueError: the run is too short for a warm-up or for accumulation.
        """
        if 0 < num_steps < self._settings.accumulate:
            raise ValueError(
                f"train.accumulate should be at most the steps of the run, {num_steps}, received "
                f"{self._settings.accumulate}: the towers would never be trained"
            )
        self._num_steps = num_steps
        self._schedule()

    def begin_step(self) -> None:
        """Sets the learning rates of the step, and zeroes gradients that are not accumulated."""
        self._schedule()
        for group in self:
            if not group.is_dense or self.num_done % self._settings.accumulate == 0:
                group.optimizer.zero_grad()

    def gradient_exchange(self, model: nn.Module) -> AbstractContextManager[None]:
        """Returns the context of forward and backward pass: ranks wait with dense gradients.

        They exchange them in the steps that update the dense parameters.
        """
        return nullcontext() if self._is_update() else without_gradient_exchange(model)

    def finish_step(self) -> None:
        """Updates the parameters by their gradients, and then the averages."""
        is_update = self._is_update()
        self.num_done += 1
        for group in self:
            if group.is_dense and is_update:
                self._prepare_gradients(group)
            if not group.is_dense or is_update:
                group.optimizer.step()
        if is_update and self.averages is not None:
            self.averages.update(self.num_done // self._settings.accumulate)

    def record(self) -> dict[str, float]:
        """Returns what a report shows: learning rates and, with clipping, gradient norms.

        Rates are those of the last step; norms are of the last update, before clipping.
        """
        rates = {
            f"lr/{group.name if group.is_dense else 'tables'}": group.learning_rate()
            for group in self
        }
        return rates | {f"gradient_norm/{name}": float(norm) for name, norm in self._norms.items()}

    def accumulated_gradients(self) -> dict[str, Tensor]:
        """Returns this rank's gradients that wait for their update, any shape, by parameter."""
        if self.num_done % self._settings.accumulate == 0:
            return {}
        return {
            name: parameter.grad
            for group in self
            if group.is_dense
            for name, parameter in group.trained.items()
            if parameter.grad is not None
        }

    def load_accumulated_gradients(self, gradients: dict[str, Tensor]) -> None:
        """Sets gradients that wait for their update.

        Args:
            gradients: parameter -> gradient of its shape [...]; the others have none.
        """
        for group in self:
            if group.is_dense:
                for name, parameter in group.trained.items():
                    parameter.grad = gradients.get(name)

    def _is_update(self) -> bool:
        """Returns whether the step that runs is one that updates the dense parameters."""
        return (self.num_done + 1) % self._settings.accumulate == 0

    def _schedule(self) -> None:
        for group in self:
            settings = self._settings if group.is_dense else self._settings.tables
            factor = learning_rate_factor(settings.schedule, self.num_done, self._num_steps)
            group.scale_learning_rate(factor)

    def _prepare_gradients(self, group: OptimizerGroup) -> None:
        """Averages gradients over accumulated steps, then clips them."""
        parameters = list(group.trained.values())
        if self._settings.accumulate > 1:
            average_gradients(parameters, self._settings.accumulate)
        if self._settings.clip_norm is not None and parameters:
            self._norms[group.name] = clip_gradients(parameters, self._settings.clip_norm)
