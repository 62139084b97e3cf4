"""Losses of the tasks of ``model.tasks``, row by row.

Shape: ``B`` rows.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mail_torchrec.losses.ranking import ranking_loss
from mail_torchrec.losses.regression import log_normal_loss, weighted_logistic_loss
from mail_torchrec.model.step import RankingResult
from mail_torchrec.towers.tasks.layout import DEVIATION
from mail_torchrec.towers.tasks.settings import TaskSettings, further_tasks


def task_losses(
    result: RankingResult, tasks: Mapping[str, TaskSettings], targets: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Computes each task's loss of every row [B], and which rows count (bool) [B].

    Args:
        result: output of the ranking tower and its head.
        tasks: settings of the tasks.
        targets: prediction -> what it is compared with, [B], NaN where a row does not count.
    """
    losses = {}
    for name, task in further_tasks(tasks).items():
        is_counted_B = ~torch.isnan(targets[name])
        # A value that every loss is finite at, so that rows that do not count add 0 times that.
        target_B = torch.where(is_counted_B, targets[name], torch.ones_like(targets[name]))
        losses[name] = _losses(name, task, result.tasks, target_B), is_counted_B
    return losses


def _losses(
    name: str, task: TaskSettings, predictions: Mapping[str, Tensor], target_B: Tensor
) -> Tensor:
    predicted_B = predictions[name]
    if task.type == "binary":
        return ranking_loss(predicted_B, target_B)
    log_values_B = predicted_B - math.log(task.scale)
    target_B = target_B.to(predicted_B.dtype) / task.scale
    if task.type == "weighted_logistic":
        return weighted_logistic_loss(log_values_B, target_B)
    return log_normal_loss(log_values_B, predictions[f"{name}{DEVIATION}"], target_B)
