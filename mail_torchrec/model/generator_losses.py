"""Losses by which the ranking tower teaches generators, itself a constant to them.

They stand behind the wall: their gradient reaches a baseline's generator or the zero-shot tower
alone.

Shape letters as in ``towers/inputs.py``; ``F`` fields that the zero-shot tower reads, ``M`` numeric
user attributes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mail_torchrec.baselines.filler import BehaviourFiller
from mail_torchrec.baselines.meta_emb import pair_rows
from mail_torchrec.data.reading.batch import Batch, map_tensors
from mail_torchrec.losses.ranking import ranking_loss
from mail_torchrec.model.cold_rows import with_virtual_behaviours, without_behaviours
from mail_torchrec.model.constant_towers import by_constant_towers
from mail_torchrec.model.dense_modules import DenseModules
from mail_torchrec.model.loss import LossTerm
from mail_torchrec.model.step import StepInputs, WarmUsers
from mail_torchrec.towers.zero_shot.tower import ZeroShotTower


def meta_emb_terms(
    dense: DenseModules, step: StepInputs, batch: Batch, numeric_BM: Tensor
) -> dict[str, LossTerm]:
    """Builds MetaEmb's loss of warm rows in pairs of one user, by the tower of cold users.

    Args:
        dense: the towers.
        step: inputs of the step.
        batch: labels and weights.
        numeric_BM: numeric attributes of each row.
    """
    if dense.meta_emb is None:
        return {}
    tower = dense.ranking if dense.cold_ranking is None else dense.cold_ranking
    users = without_behaviours(step.users, torch.ones_like(step.is_cold_U))
    inputs = step.candidates.without_negatives().join_users(users)
    # WALL: tables are constants to MetaEmb's generator.
    constant = map_tensors(inputs, Tensor.detach)
    is_warm_B = ~batch.is_cold_B & (batch.weights_B > 0)
    previous_B, is_paired_B = pair_rows(batch.users_B, is_warm_B)
    losses_B = dense.meta_emb.losses(tower, constant, numeric_BM, batch.labels_B, previous_B)
    return {"L_meta": LossTerm(losses_B, is_paired_B * batch.weights_B)}


def virtual_ranking_terms(
    dense: DenseModules, step: StepInputs, batch: Batch, fields_UFD: Tensor, numeric_UM: Tensor
) -> dict[str, LossTerm]:
    """Builds L_r, the ranking loss of all rows scored on virtual behaviours.

    Args:
        dense: the towers.
        step: inputs of the step.
        batch: labels and weights.
        fields_UFD: detached fields that the zero-shot tower reads.
        numeric_UM: numeric attributes of each user.
    """
    source, weight = _taught_source(dense)
    if source is None or not weight:
        return {}
    # WALL: tables are constants to this loss, and below so is the tower that scores cold users.
    users = map_tensors(step.users, Tensor.detach)
    candidates = map_tensors(step.candidates.without_negatives(), Tensor.detach)
    virtual = source.virtual_behaviours(fields_UFD, numeric_UM)
    filled = with_virtual_behaviours(users, step.all_as_cold, virtual)
    inputs = candidates.join_users(filled)
    result = by_constant_towers(dense, lambda: dense.rank(inputs, as_cold=True))
    losses_B = ranking_loss(result.output.logits_B, batch.labels_B)
    return {"L_r": LossTerm(losses_B, batch.weights_B, weight)}


def filler_terms(
    filler: BehaviourFiller | None, warm: Callable[[], WarmUsers]
) -> dict[str, LossTerm]:
    """Builds the losses of a baseline with parameters that makes virtual behaviours, of warm users.

    Args:
        filler: the baseline; None without one.
        warm: returns their detached features and weights.
    """
    if filler is None or not filler.is_trained:
        return {}
    fields_WFD, numeric_WM, sequences, weights_W = warm()
    losses = filler.losses(fields_WFD, numeric_WM, sequences)
    return {
        f"L_{name}": LossTerm(losses_W, weights_W, weight)
        for name, (losses_W, weight) in losses.items()
    }


def _taught_source(dense: DenseModules) -> tuple[ZeroShotTower | BehaviourFiller | None, float]:
    """The module that makes virtual behaviours, and the weight of L_r, which trains it."""
    if dense.zero_shot is not None:
        return dense.zero_shot, dense.zero_shot.settings.ranking_weight
    return dense.filler, 0.0 if dense.filler is None else dense.filler.ranking_weight
