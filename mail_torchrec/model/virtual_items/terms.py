"""Loss terms that teach the generator of new items' vectors, behind the wall.

Shape letters as in ``model/virtual_items/generator.py``; ``A`` rows of all ranks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.distributed.collectives import (
    counts_of_ranks,
    gather_rows,
    rank,
    sum_over_ranks,
)
from mail_torchrec.losses.distillation import (
    identification,
    identification_alignment,
    ranking_alignment,
    rating_alignment,
    teacher_weights,
)
from mail_torchrec.losses.info_nce import cosine_logits, info_nce, negative_sums
from mail_torchrec.losses.ranking import ranking_loss
from mail_torchrec.model.dense_modules import DenseModules
from mail_torchrec.model.features import InputAssembler
from mail_torchrec.model.loss import LossTerm
from mail_torchrec.model.step import StepInputs
from mail_torchrec.model.virtual_items.generator import VirtualItemInputs, VirtualItems
from mail_torchrec.model.virtual_items.item_ranker import ItemRanker
from mail_torchrec.model.virtual_items.settings import (
    ItemContrastSettings,
    ItemDistillationSettings,
)
from mail_torchrec.towers.inputs import RankingInputs


def virtual_item_terms(
    dense: DenseModules,
    step: StepInputs,
    batch: Batch,
    assembler: InputAssembler,
    filled_users: Callable[[], RankingInputs],
) -> dict[str, LossTerm]:
    """Builds the terms of the generator of new items' vectors; a collective call of all ranks.

    Args:
        dense: the towers.
        step: inputs of the step.
        batch: labels, weights, and which items are warm.
        assembler: puts tower inputs together.
        filled_users: makes the users' inputs, cold ones filled.
    """
    items, given = dense.virtual_items, step.items
    if items is None or given is None:
        return {}
    assert batch.is_cold_item_B is not None
    settings = items.settings
    is_warm_B = ~batch.is_cold_item_B
    weights_B = batch.weights_B * is_warm_B
    terms = {}
    if settings.mse_weight:
        errors_B = (given.generated_BG.float() - given.real_BG.float()).square().mean(1)
        terms["L_virtual_item"] = LossTerm(errors_B, weights_B, settings.mse_weight)
    if (contrast := settings.contrast) is not None:
        losses_B = contrast_losses(given, weights_B > 0, contrast)
        terms["L_item_contrast"] = LossTerm(losses_B, weights_B, contrast.weight)
    if not settings.ranking_weight and settings.distillation is None:
        return terms
    ranker = ItemRanker(dense, step, assembler, filled_users())
    student_B = ranker.logits(virtual=True)
    if settings.ranking_weight:
        losses_B = ranking_loss(student_B, batch.labels_B)
        terms["L_item_r"] = LossTerm(losses_B, batch.weights_B, settings.ranking_weight)
    if settings.distillation is not None:
        terms |= distillation_terms(ranker, student_B, given, batch, settings.distillation)
    return _in_phases(items, terms)


def _in_phases(items: VirtualItems, terms: dict[str, LossTerm]) -> dict[str, LossTerm]:
    """Lets the contrast count in the first steps alone, and the ranking loss behind them."""
    contrast = items.settings.contrast
    if contrast is None or contrast.steps is None:
        return terms
    is_first = items.num_steps < contrast.steps
    if items.training:  # a frozen generator stays in its phase
        items.num_steps += 1
    counts = {"L_item_contrast": is_first, "L_item_r": ~is_first}
    return {
        name: LossTerm(term.losses_N * counts[name], term.weights_N, term.scale)
        if name in counts
        else term
        for name, term in terms.items()
    }


def contrast_losses(
    given: VirtualItemInputs, is_counted_B: Tensor, settings: ItemContrastSettings
) -> Tensor:
    """Computes InfoNCE of each row, [B]; a collective call of all ranks.

    The id's vector is the anchor, the generated vectors of all ranks' rows are the candidates. Each
    rank scores its own rows' generated vectors against all anchors, and the ranks add their sums.

    Args:
        given: inputs of the step.
        is_counted_B: rows that are anchors and negatives, those of warm items (bool).
        settings: of the contrast.
    """
    with torch.autocast(given.ids_B.device.type, enabled=False):
        generated_BG, real_BG = given.generated_BG.float(), given.real_BG.float()
        own_AB = cosine_logits(gather_rows(real_BG), generated_BG, settings.temperature)
        ids = gather_rows(given.ids_B), given.ids_B
        is_counted = gather_rows(is_counted_B), is_counted_B
        sums_A = sum_over_ranks(negative_sums(own_AB, ids, is_counted))
        number = len(given.ids_B)
        first = sum(counts_of_ranks(number, given.ids_B.device)[: rank()])
        positive_B = own_AB[first : first + number].diagonal()
        return info_nce(positive_B, sums_A[first : first + number])


def distillation_terms(
    ranker: ItemRanker,
    student_B: Tensor,
    given: VirtualItemInputs,
    batch: Batch,
    settings: ItemDistillationSettings,
) -> dict[str, LossTerm]:
    """Builds the aligning losses of ALDI over clicked rows of warm items.

    The negative item of a row is that of another row of this rank, drawn anew each step; a row that
    meets its own item does not count.

    Args:
        ranker: scores rows.
        student_B: scores of the rows' own items on generated vectors.
        given: inputs of the step.
        batch: labels, weights, and which items are warm.
        settings: of the distillation.
    """
    assert batch.is_cold_item_B is not None
    rows_B = torch.randperm(len(student_B), device=student_B.device)
    with torch.no_grad():  # WALL: the teachers are constants.
        teacher_B2 = torch.stack(
            [ranker.logits(virtual=False), ranker.logits(virtual=False, rows_B=rows_B)], dim=1
        ).float()
    negative_B = ranker.logits(virtual=True, rows_B=rows_B)
    student_B2 = torch.stack([student_B, negative_B], dim=1).float()
    is_warm_B = ~batch.is_cold_item_B
    is_other_B = given.ids_B != given.ids_B[rows_B]
    weights_B = batch.weights_B * batch.labels_B * is_warm_B * is_warm_B[rows_B] * is_other_B
    frequency_B, cap = batch.item_frequency_B, settings.frequency_cap
    if frequency_B is None:
        assert cap is None, "check_virtual_items refuses ids that are not counted"
        frequency_B = torch.ones_like(weights_B)
    trust_B = teacher_weights(frequency_B, cap)
    rankings_B = trust_B * ranking_alignment(teacher_B2, student_B2)
    identities_B = trust_B * identification_losses(given, rows_B, weights_B)
    ratings_B = rating_alignment(teacher_B2, student_B2)
    return {
        "L_item_ranking": LossTerm(rankings_B, weights_B, settings.ranking_weight),
        "L_item_identity": LossTerm(identities_B, weights_B, settings.identification_weight),
        "L_item_rating": LossTerm(ratings_B, weights_B, settings.rating_weight),
    }


def identification_losses(given: VirtualItemInputs, rows_B: Tensor, weights_B: Tensor) -> Tensor:
    """Computes the alignment of identification of each row, [B]; a collective call of all ranks.

    Args:
        given: inputs of the step.
        rows_B: row of each row's negative item (int64).
        weights_B: weight of each row; the negatives of all ranks' rows above 0 make the mean.
    """
    is_counted_B1 = (weights_B > 0).float().unsqueeze(1)
    generated_BG, real_BG = given.generated_BG.float(), given.real_BG.float()
    both_B = torch.cat([generated_BG[rows_B], real_BG[rows_B]], dim=1) * is_counted_B1
    sums = sum_over_ranks(torch.cat([both_B.sum(0), is_counted_B1.sum(0)]))
    student_G, teacher_G = (sums[:-1] / sums[-1:].clamp(min=1)).chunk(2)
    return identification_alignment(
        identification(real_BG, teacher_G), identification(generated_BG, student_G)
    )
