"""Losses that compare rows in pairs: L_d of the zero-shot tower, and the contrast of items.

Their cost grows with the pairs of a rank's rows and the rows that they are compared with, own ones
included. Each loss is measured alone, on few rows.

Shape letters: ``N`` rows of this rank, ``M`` rows that they are compared with, ``H`` elements of a
vector.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mail_torchrec.config import Config
from mail_torchrec.losses.contrastive import contrastive_loss
from mail_torchrec.losses.info_nce import cosine_logits, info_nce, negative_sums
from mail_torchrec.losses.mmd import GPU_BLOCK, mmd
from mail_torchrec.model.mail import Towers
from mail_torchrec.train.cost.step_cost import StepCost, measure_cost

ALIGNMENT = "pairs of L_d"
"""Purpose of the memory in which L_d compares codes."""
ITEM_CONTRAST = "pairs of items"
"""Purpose of the memory in which ``model.virtual_items.contrast`` compares items."""
_FLOAT_BYTES, _ID_BYTES, _BOOL_BYTES = 4, 8, 1
# Numbers of own and of all rows of the measurements, whose differences are the cost of a pair.
_OWN, _ALL = (4, 8), (8, 16)


@dataclass(frozen=True)
class PairCost:
    """Cost of comparing some rows with some rows: linear in either number."""

    fixed: StepCost
    per_own: StepCost
    """For each own row."""
    per_compared: StepCost
    """For each row that own rows are compared with."""
    per_pair: StepCost

    @staticmethod
    def measure(
        make_inputs: Callable[[int, int], tuple[Tensor, ...]], loss: Callable[..., Tensor]
    ) -> "PairCost":
        """Measures a loss for two numbers of rows of either kind.

        Args:
            make_inputs: takes the numbers of own rows, and of those that they are compared with;
                returns tensors [...], which do not count.
            loss: takes these and returns a scalar.
        """

        def measured(own: int, compared: int) -> StepCost:
            inputs = make_inputs(own, compared)
            return measure_cost(partial(loss, *inputs), inputs)[0]

        (few, wide), (tall, both) = ([measured(own, number) for number in _ALL] for own in _OWN)
        own_step, all_step, zero = _OWN[1] - _OWN[0], _ALL[1] - _ALL[0], StepCost()
        bend = both.plus(tall, -1).plus(wide, -1).plus(few)
        per_pair = zero.plus(bend, 1 / (own_step * all_step))
        per_own = zero.plus(tall.plus(few, -1), 1 / own_step).plus(per_pair, -_ALL[0])
        per_compared = zero.plus(wide.plus(few, -1), 1 / all_step).plus(per_pair, -_OWN[0])
        fixed = few.plus(per_own, -_OWN[0]).plus(per_compared, -_ALL[0])
        return PairCost(fixed.plus(per_pair, -_OWN[0] * _ALL[0]), per_own, per_compared, per_pair)

    def at(self, own: int, compared: int) -> StepCost:
        """Returns the cost of so many own rows and rows that they are compared with."""
        linear = self.fixed.plus(self.per_own, own).plus(self.per_compared, compared)
        return linear.plus(self.per_pair, own * compared)


@dataclass(frozen=True)
class PairLoss:
    """A loss of pairs in a job."""

    purpose: str
    """Purpose of its memory."""
    cost: PairCost
    measured: PairCost
    """The same as a step on a CPU in float32 has it, where the towers are measured."""
    gathered_bytes: float
    """Bytes that a rank keeps of each gathered row, its own among them."""
    received_bytes: float
    """Bytes that a rank receives for each row of another rank."""
    over_all_ranks: bool
    """Compares with the rows of all ranks; else with the rank's own."""
    share: float = 1.0
    """Share of a rank's rows that are compared."""
    block_bytes: float = 0.0
    """Largest block of a matrix of pairs that is made and not kept, in bytes."""

    def num_rows(self, batch_size: int, world_size: int) -> tuple[int, int]:
        """Returns the numbers of own rows and of rows that they are compared with."""
        own = math.ceil(self.share * batch_size)
        return own, own * (world_size if self.over_all_ranks else 1)

    def at(self, batch_size: int, world_size: int) -> StepCost:
        """Returns the cost in a job of some ranks, each of some rows."""
        return self.cost.at(*self.num_rows(batch_size, world_size))

    def memory(self, batch_size: int, world_size: int) -> float:
        """Estimates the bytes of a rank."""
        own, compared = self.num_rows(batch_size, world_size)
        # The matrix holds both kinds of codes on either side.
        block = min(self.block_bytes, 4 * _FLOAT_BYTES * own * compared)
        gathered = self.gathered_bytes * compared if compared > own else 0.0
        return self.cost.at(own, compared).kept_bytes + block + gathered

    def received(self, batch_size: int, world_size: int) -> float:
        """Estimates the bytes that a rank receives."""
        own, compared = self.num_rows(batch_size, world_size)
        return self.received_bytes * (compared - own)


def pair_losses(config: Config, towers: Towers, device: str) -> tuple[PairLoss, ...]:
    """Finds and measures the losses of pairs that a model has.

    Args:
        config: of the run.
        towers: of the model.
        device: of the ranks, ``cpu`` or ``cuda``.
    """
    zero_shot, items, losses = config.model.zero_shot, towers.virtual_items, []
    if zero_shot is not None and zero_shot.aligns_by("mmd"):
        losses.append(_of_mmd(config, zero_shot.encoder_dims[-1], device))
    if zero_shot is not None and zero_shot.aligns_by("contrastive"):
        losses.append(_of_contrastive_loss(config, zero_shot.encoder_dims[-1]))
    if items is not None and items.settings.contrast is not None:
        losses.append(_of_item_contrast(items.layers[-1].out_features))
    return tuple(losses)


def _of_mmd(config: Config, dim: int, device: str) -> PairLoss:
    def inputs(own: int, compared: int) -> tuple[Tensor, ...]:
        codes = (torch.rand(own, dim, requires_grad=True) for _ in range(2))
        return *codes, *torch.rand(2, compared, dim), torch.ones(own), torch.ones(compared)

    def measured(*, blocked: bool) -> PairCost:
        def loss(P_NH: Tensor, Q_NH: Tensor, *others: Tensor) -> Tensor:
            return mmd(P_NH, Q_NH, 1.0, *others, blocked=blocked)

        return PairCost.measure(inputs, loss)

    whole = measured(blocked=False)
    is_blocked = device == "cuda" or config.train.precision == "bfloat16"
    gathered = _FLOAT_BYTES * (2 * dim + 1)  # two codes and a weight
    return PairLoss(
        ALIGNMENT,
        measured(blocked=True) if is_blocked else whole,
        whole,
        gathered_bytes=gathered,
        received_bytes=gathered,
        over_all_ranks=config.model.mmd_over_all_ranks,
        share=_loss_sample_share(config),
        block_bytes=_FLOAT_BYTES * GPU_BLOCK if device == "cuda" else 0.0,
    )


def _of_contrastive_loss(config: Config, dim: int) -> PairLoss:
    def inputs(own: int, compared: int) -> tuple[Tensor, ...]:
        anchors_NH, candidates_MH = (
            torch.rand(number, dim, requires_grad=True) for number in (own, compared)
        )
        return anchors_NH, candidates_MH, torch.ones(compared)

    def loss(anchors_NH: Tensor, candidates_MH: Tensor, weights_M: Tensor) -> Tensor:
        return contrastive_loss(anchors_NH, candidates_MH, 1.0, weights_M).sum()

    cost = PairCost.measure(inputs, loss)
    return PairLoss(
        ALIGNMENT,
        cost,
        cost,
        gathered_bytes=_FLOAT_BYTES * (dim + 1),
        # The codes are summed over ranks, and so are their gradients; a ring sends a sum twice.
        received_bytes=_FLOAT_BYTES * (4 * dim + 1),
        over_all_ranks=config.model.mmd_over_all_ranks,
        share=_loss_sample_share(config),
    )


def _of_item_contrast(dim: int) -> PairLoss:
    """As ``contrast_losses`` of ``model/virtual_items/terms.py``: a rank's own rows are columns."""

    def inputs(own: int, compared: int) -> tuple[Tensor, ...]:
        generated_NH, real_MH = torch.rand(own, dim, requires_grad=True), torch.rand(compared, dim)
        return generated_NH, real_MH, torch.arange(compared), torch.ones(compared, dtype=torch.bool)

    def loss(generated_NH: Tensor, real_MH: Tensor, ids_M: Tensor, is_counted_M: Tensor) -> Tensor:
        own = len(generated_NH)
        logits_MN = cosine_logits(real_MH, generated_NH, 1.0)
        both = (ids_M, ids_M[:own]), (is_counted_M, is_counted_M[:own])
        sums_M = negative_sums(logits_MN, *both)
        return info_nce(logits_MN[:own].diagonal(), sums_M[:own]).sum()

    cost = PairCost.measure(inputs, loss)
    gathered = _FLOAT_BYTES * dim + _ID_BYTES + _BOOL_BYTES
    return PairLoss(
        ITEM_CONTRAST,
        cost,
        cost,
        gathered_bytes=0.0,  # none is kept
        # The anchors' sums are added over ranks, and so are their gradients.
        received_bytes=gathered + 4 * _FLOAT_BYTES,
        over_all_ranks=True,
    )


def _loss_sample_share(config: Config) -> float:
    zero_shot = config.model.zero_shot
    return 1.0 if zero_shot is None else zero_shot.loss_sample_share
