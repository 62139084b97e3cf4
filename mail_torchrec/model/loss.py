"""Loss terms of the model, reduced to this rank's share of the loss of the global batch.

Shape letters: ``B`` rows, ``W`` warm users, ``N`` rows of a term, ``H`` elements of a code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.distributed.collectives import (
    gather_rows,
    gather_rows_with_gradient,
    sum_over_ranks,
    world_size,
)
from mail_torchrec.losses.contrastive import contrastive_loss
from mail_torchrec.losses.mmd import mmd
from mail_torchrec.losses.paired_mse import paired_mse
from mail_torchrec.losses.ranking import ranking_loss
from mail_torchrec.losses.reduction import weighted_mean
from mail_torchrec.model.builders import ModelSettings
from mail_torchrec.model.step import RankingResult
from mail_torchrec.model.task_losses import task_losses
from mail_torchrec.towers.zero_shot.losses import ZeroShotLosses
from mail_torchrec.towers.zero_shot.settings import ZeroShotSettings
from mail_torchrec.utils.spans import span

RESERVED_LOSSES = (
    *("rt", "ctcvr", "a", "v", "d", "r", "meta", "new_rt", "new_ctcvr", "virtual_item"),
    *("item_contrast", "item_r", "item_ranking", "item_identity", "item_rating"),
)
"""Names of the model's own losses, which an auxiliary loss of a tower may not have."""


@dataclass(frozen=True)
class LossTerm:
    """One loss: ``scale`` times a weighted mean over rows, or times the raw sum over rows."""

    losses_N: Tensor
    """Loss of each row."""
    weights_N: Tensor
    """Weight of each row in the mean."""
    scale: float = 1.0
    """Weight of the term in the sum that is minimised."""
    raw_sum: bool = False
    """Sum over the rows instead of their mean."""


def ranking_terms(
    result: RankingResult,
    batch: Batch,
    settings: ModelSettings,
    targets: Mapping[str, Tensor],
) -> dict[str, LossTerm]:
    """Builds the terms of clicks, of further tasks and of the tower's auxiliary losses.

    Args:
        result: output of the ranking tower and its head.
        batch: labels and weights.
        settings: of the tasks.
        targets: of the predictions of ``model.tasks``, [B].

    Raises:
        ValueError: an auxiliary loss has the name of one of the model's own losses.
    """
    if clash := result.output.auxiliary.keys() & {*RESERVED_LOSSES, *settings.tasks}:
        raise ValueError(
            f"the ranking tower calls an auxiliary loss {sorted(clash)}, which is a name of "
            "MAIL's own losses; rename it"
        )
    click_weight = settings.click_weight
    click_losses_B = ranking_loss(result.output.logits_B, batch.labels_B)
    terms = {"L_rt": LossTerm(click_losses_B, batch.weights_B, click_weight)}
    if settings.multi_task is not None:
        ctcvr_losses_B = ranking_loss(result.tasks["ctcvr"], batch.conversions_B)
        terms["L_ctcvr"] = LossTerm(ctcvr_losses_B, batch.weights_B, 1 - click_weight)
    for name, (losses_B, is_counted_B) in task_losses(result, settings.tasks, targets).items():
        weights_B = batch.weights_B * is_counted_B
        terms[f"L_{name}"] = LossTerm(losses_B, weights_B, settings.tasks[name].weight)
    return terms | {
        f"L_{name}": LossTerm(losses_B, weights_B * batch.weights_B, scale)
        for name, (losses_B, weights_B, scale) in result.output.auxiliary.items()
    }


def cold_pass_terms(
    terms: dict[str, LossTerm], is_counted_B: Tensor | None, scale: float
) -> dict[str, LossTerm]:
    """Renames and scales ranking terms of rows that were ranked as cold ones.

    Args:
        terms: of :func:`ranking_terms`.
        is_counted_B: rows that count; None for all.
        scale: weight of these terms, ``model.cold_loss_weight``.
    """
    return {
        name.replace("L_", "L_new_", 1): replace(
            term,
            weights_N=term.weights_N if is_counted_B is None else term.weights_N * is_counted_B,
            scale=term.scale * scale,
        )
        for name, term in terms.items()
    }


def zero_shot_terms(
    losses: ZeroShotLosses, settings: ZeroShotSettings, *, all_ranks: bool
) -> dict[str, LossTerm]:
    """Builds the terms L_a, L_v and, where it is a mean over rows, L_d of the zero-shot tower.

    Args:
        losses: of the warm users.
        settings: of the tower.
        all_ranks: contrasts the codes of all ranks; else each rank its own alone.
    """
    assert losses.weights_N is not None
    row_losses, raw_sum = dict(losses.row_losses), settings.reduction == "sum"
    if settings.aligns_by("paired_mse"):
        assert losses.P_NH is not None and losses.Q_NH is not None
        row_losses["d"] = paired_mse(losses.P_NH, losses.Q_NH, settings.reduction)
    if settings.aligns_by("contrastive"):
        row_losses["d"] = contrastive_losses(losses, settings.temperature, all_ranks=all_ranks)
    scales = {"d": settings.alignment_weight}
    return {
        f"L_{name}": LossTerm(losses_N, losses.weights_N, scales.get(name, 1.0), raw_sum)
        for name, losses_N in row_losses.items()
    }


def contrastive_losses(losses: ZeroShotLosses, temperature: float, *, all_ranks: bool) -> Tensor:
    """Computes InfoNCE of each warm user's two codes, with the other warm users as negatives, [W].

    Over all ranks, the codes of the attributes are gathered with their gradient: a rank's codes are
    the negatives of the other ranks' users.

    Args:
        losses: codes and weights of this rank's warm users.
        temperature: divides the cosines of the codes.
        all_ranks: the negatives are the users of all ranks; else each rank's own.
    """
    P_WH, Q_WH, weights_W = losses.P_NH, losses.Q_NH, losses.weights_N
    assert P_WH is not None and Q_WH is not None and weights_W is not None
    if not all_ranks:
        return contrastive_loss(Q_WH, P_WH, temperature, weights_W)
    P_MH, first = gather_rows_with_gradient(P_WH.to(torch.promote_types(P_WH.dtype, torch.float32)))
    return contrastive_loss(Q_WH, P_MH, temperature, gather_rows(weights_W), first)


def reduce_terms(
    terms: dict[str, LossTerm],
    zero_shot: ZeroShotLosses | None,
    settings: ZeroShotSettings | None,
    *,
    mmd_over_all_ranks: bool,
) -> tuple[dict[str, Tensor], Tensor]:
    """Reduces all losses to this rank's shares; a collective call of all ranks.

    Args:
        terms: the terms of ranking.
        zero_shot: row losses and codes of the zero-shot tower; None without any.
        settings: of the zero-shot tower; None without one.
        mmd_over_all_ranks: aligns the codes of all ranks, see :func:`mmd_share`.

    Returns:
        The shares by name, and the sum to minimise, all scalars.
    """
    if zero_shot is not None and settings is not None:
        terms = terms | zero_shot_terms(zero_shot, settings, all_ranks=mmd_over_all_ranks)
    with span("ranking"):
        losses = loss_shares(terms)
        loss = torch.stack([term.scale * losses[name] for name, term in terms.items()]).sum()
    if zero_shot is not None and settings is not None and settings.aligns_by("mmd"):
        with span("zero_shot"):
            losses["L_d"] = mmd_share(zero_shot, settings.sigma, all_ranks=mmd_over_all_ranks)
        loss = loss + settings.alignment_weight * losses["L_d"]
    return losses, loss


def loss_shares(terms: dict[str, LossTerm]) -> dict[str, Tensor]:
    """Reduces each term to this rank's share; a collective call of all ranks.

    DistributedDataParallel and the sharded tables average gradients over ranks. So that the average
    is the gradient of the loss over all ranks' rows, however unevenly they lie, a share is ``ranks
    * own sum / weight of all rows``. A term without any row anywhere is 0.
    """
    totals = sum_over_ranks(torch.stack([term.weights_N.sum() for term in terms.values()]))
    return {name: _share(term, totals[i]) for i, (name, term) in enumerate(terms.items())}


def _share(term: LossTerm, total: Tensor) -> Tensor:
    return world_size() * weighted_mean(
        term.losses_N, term.weights_N, torch.ones_like(total) if term.raw_sum else total
    )


def mmd_share(losses: ZeroShotLosses, sigma: float, *, all_ranks: bool) -> Tensor:
    """Reduces the MMD between the codes of warm users to this rank's share, a scalar.

    Over all ranks each rank needs every code: ``O(rank rows * all rows)`` time and ``O(all rows)``
    memory.

    Args:
        losses: codes and weights of this rank's warm users.
        sigma: bandwidth of the kernel.
        all_ranks: compares the codes of all ranks; else each rank its own alone.
    """
    P_WH, Q_WH, weights_W = losses.P_NH, losses.Q_NH, losses.weights_N
    assert P_WH is not None and Q_WH is not None and weights_W is not None
    if world_size() == 1 or not all_ranks:
        return mmd(P_WH, Q_WH, sigma, weights_N=weights_W)
    gathered = gather_rows(torch.cat([P_WH, Q_WH, weights_W.to(P_WH.dtype).unsqueeze(1)], dim=1))
    all_P, all_Q = gathered[:, :-1].chunk(2, dim=1)
    return world_size() * mmd(P_WH, Q_WH, sigma, all_P, all_Q, weights_W, gathered[:, -1])
