"""Row losses -> the loss of the global batch, as this rank's share of it."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.distributed.collectives import gather_rows, world_size
from mail_torchrec.losses.mmd import mmd
from mail_torchrec.losses.ranking import ranking_loss
from mail_torchrec.losses.reduction import weighted_mean
from mail_torchrec.towers.inputs import RankingOutput
from mail_torchrec.towers.multi_task import MultiTaskSettings


@dataclass(frozen=True)
class Term:
    """One loss: ``weight * mean over rows``, the mean weighted by row, or the raw sum over rows."""

    rows: Tensor
    """Loss of each row, [n]."""
    row_weights: Tensor
    """Weight of each row in the mean, [n]."""
    weight: float = 1.0
    raw_sum: bool = False


def ranking_terms(
    ranked: RankingOutput,
    tasks: dict[str, Tensor],
    batch: Batch,
    multi_task: MultiTaskSettings | None,
) -> dict[str, Term]:
    """The ranking loss, that of conversions where they are predicted, and the tower's auxiliary ones.

    Raises:
        ValueError: the tower gave a loss a name that MAIL has itself.
    """
    if clash := ranked.auxiliary.keys() & {
        "rt",
        "ctcvr",
        "a",
        "v",
        "d",
        "meta",
        "new_rt",
        "new_ctcvr",
    }:
        raise ValueError(
            f"the ranking tower calls an auxiliary loss {sorted(clash)}, which is a name of "
            "MAIL's own losses; rename it"
        )
    click_weight = multi_task.click_weight if multi_task else 1.0
    terms = {
        "L_rt": Term(ranking_loss(ranked.logits_B, batch.labels_B), batch.weights_B, click_weight)
    }
    if multi_task:
        terms["L_ctcvr"] = Term(
            ranking_loss(tasks["ctcvr"], batch.conversions_B), batch.weights_B, 1 - click_weight
        )
    return terms | {
        f"L_{name}": Term(rows_B, weights_B * batch.weights_B, weight)
        for name, (rows_B, weights_B, weight) in ranked.auxiliary.items()
    }


def shares(terms: dict[str, Term]) -> dict[str, Tensor]:
    """Each term's share on this rank.

    DistributedDataParallel and the sharded tables average gradients over ranks. So that the average
    is the gradient of the loss over all ranks' rows, however unevenly they lie, a share is ``ranks
    * own sum / weight of all rows``. A term without any row anywhere is 0.
    """
    own = torch.stack([term.row_weights.sum() for term in terms.values()])
    totals = own.clone()
    if world_size() > 1:
        dist.all_reduce(totals)
    return {name: _share(term, totals[i]) for i, (name, term) in enumerate(terms.items())}


def _share(term: Term, total: Tensor) -> Tensor:
    return world_size() * weighted_mean(
        term.rows, term.row_weights, torch.ones_like(total) if term.raw_sum else total
    )


def mmd_share(
    P_OH: Tensor, Q_OH: Tensor, weights_O: Tensor, sigma: float, *, all_ranks: bool
) -> Tensor:
    """This rank's share of the MMD between the codes of all ranks' old users, or of its own alone, each counted by its rows.

    Over all ranks each rank needs every code: ``O(rank rows * all rows)`` time and ``O(all rows)``
    memory.
    """
    if world_size() == 1 or not all_ranks:
        return mmd(P_OH, Q_OH, sigma, weights_N=weights_O)
    gathered = gather_rows(torch.cat([P_OH, Q_OH, weights_O.to(P_OH.dtype).unsqueeze(1)], dim=1))
    all_P, all_Q = gathered[:, :-1].chunk(2, dim=1)
    return world_size() * mmd(P_OH, Q_OH, sigma, all_P, all_Q, weights_O, gathered[:, -1])
