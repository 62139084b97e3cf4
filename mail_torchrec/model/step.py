"""Inputs and outputs of one step of the model.

Shape letters as in ``towers/inputs.py``; ``F`` fields that the zero-shot tower reads, ``M`` numeric
attributes, ``W`` warm users (with usable behaviours), ``T`` positions of a behaviour sequence.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mail_torchrec.data.reading.batch import Batch, RowSets, map_tensors
from mail_torchrec.data.reading.shape_buckets import ShapeBuckets
from mail_torchrec.model.cold_rows import ColdUsers
from mail_torchrec.model.features import FeatureEmbeddings, InputAssembler
from mail_torchrec.model.virtual_items.generator import VirtualItemInputs
from mail_torchrec.towers.inputs import CandidateInputs, RankingInputs, RankingOutput
from mail_torchrec.towers.layers.behaviours import Behaviours
from mail_torchrec.towers.tasks.layout import TaskLayout


@dataclass
class StepInputs:
    """Tower inputs of a batch: users, and rows (candidates) that share them."""

    users: RankingInputs
    candidates: CandidateInputs
    is_cold_U: Tensor
    """Users without usable behaviours (bool)."""
    weights_U: Tensor
    """The weight of each user's rows together."""
    sets: RowSets
    """Indices of cold and warm users."""
    num_cold_rows: int
    """Rows of the cold users, or an upper bound."""
    buckets: ShapeBuckets | None = None
    """Sizes of ``sets``; None where they are not filled up."""
    num_surplus: int = 0
    """Users without rows, who only fill up."""
    items: VirtualItemInputs | None = None
    """Inputs of the losses of the generator of new items' vectors; None without one."""

    @property
    def cold(self) -> ColdUsers:
        """Users without usable behaviours."""
        of_sets = self.sets.cold, self.num_cold_rows, self.buckets
        return ColdUsers(self.is_cold_U, None, *of_sets)

    @property
    def all_as_cold(self) -> ColdUsers:
        """All users, to be treated as cold ones."""
        num_users, device = len(self.is_cold_U), self.is_cold_U.device
        all_U = torch.arange(num_users, device=device)
        num_rows = len(self.candidates.numeric_BN)
        return ColdUsers(self.is_cold_U, torch.ones_like(self.is_cold_U), all_U, num_rows)

    def readable(self, users_N: Tensor) -> Tensor:
        """Indices of users, that of the last one in place of surplus ones (int64)."""
        return users_N if self.buckets is None else users_N.clamp(max=len(self.weights_U) - 1)

    def weights_of(self, users_N: Tensor) -> Tensor:
        """Weights of users by their indices, 0 for surplus ones, [N]."""
        weights_U = self.weights_U
        if self.buckets is not None:
            weights_U = nn.functional.pad(weights_U, (0, 1))
        return weights_U[users_N]

    def with_dropped(self, share: float) -> ColdUsers:
        """Draws a share of the warm users, who are treated as cold ones in this step."""
        num_rows = len(self.candidates.numeric_BN)
        of_users = self.sets.warm, share, num_rows, self.num_surplus
        return self.cold.with_dropped(*of_users) if share else self.cold


def step_inputs(
    batch: Batch, embeddings: FeatureEmbeddings, assembler: InputAssembler, *, expand_users: bool
) -> StepInputs:
    """Assembles the tower inputs of a batch.

    Args:
        batch: labels, weights and numeric features.
        embeddings: the looked-up vectors of the batch.
        assembler: puts them together.
        expand_users: makes every row a user of its own, also where rows share users.
    """
    numeric_UM = batch.per_user(assembler.numeric_attributes(batch.numeric_BN))
    users = assembler.user_inputs(embeddings, numeric_UM)
    inverse_indices_B = batch.dedup.inverse_indices_B if batch.dedup is not None else None
    candidates = assembler.candidate_inputs(embeddings, batch.numeric_BN, inverse_indices_B)
    if expand_users:
        users, candidates = candidates.expand_users(users)
        is_cold_U, weights_U, sets = batch.is_cold_B, batch.weights_B, batch.sets
    else:
        is_cold_U, weights_U, sets = batch.is_cold_U, batch.weights_U, batch.sets_U
    num_surplus = 0 if expand_users else batch.num_surplus
    of_sets = sets, len(batch.sets.cold), batch.buckets, num_surplus
    return StepInputs(users, candidates, is_cold_U, weights_U, *of_sets)


class WarmUsers(NamedTuple):
    """Detached features of warm users: what the zero-shot tower and the baselines learn from."""

    fields_WFD: Tensor
    """Embeddings of the fields that the zero-shot tower reads."""
    numeric_WM: Tensor
    """Numeric attributes."""
    sequences: dict[str, Behaviours]
    """Sequence -> real behaviours [W, T, D] and their number [W]."""
    weights_W: Tensor
    """The weight of each user's rows together."""


class RankingResult(NamedTuple):
    """Output of a ranking tower and of the head of further tasks on it."""

    output: RankingOutput
    tasks: dict[str, Tensor]
    """Prediction of the head -> logits, or logs of expected values, [B]; empty without a head."""
    layout: TaskLayout = TaskLayout()
    """Meaning of the predictions."""

    def with_click_logits(self, logits_B: Tensor) -> "RankingResult":
        """Returns the result with other logits of a click, and so of what follows a click.

        A conversion given a click is a question of clicked rows alone, whatever share of the others
        there is.

        Args:
            logits_B: of a click.
        """
        tasks = self.layout.with_products(logits_B, self.tasks)
        return self._replace(output=replace(self.output, logits_B=logits_B), tasks=tasks)


def select_by_cold(
    is_cold_U: Tensor, is_cold_B: Tensor, cold: RankingResult, warm: RankingResult
) -> RankingResult:
    """Selects the cold users' values from one tower's result and the others' from another's.

    Args:
        is_cold_U: cold users (bool).
        is_cold_B: rows of cold users (bool).
        cold: result of the tower for cold users; its auxiliary losses are dropped.
        warm: result of the tower for warm users.
    """
    tasks = {
        name: torch.where(is_cold_B, cold.tasks[name], logits_B)
        for name, logits_B in warm.tasks.items()
    }
    vectors = {
        name: (
            torch.where(is_cold_U.unsqueeze(1), cold.output.vectors[name][0], user_UD),
            torch.where(is_cold_B.unsqueeze(1), cold.output.vectors[name][1], item_BD),
        )
        for name, (user_UD, item_BD) in warm.output.vectors.items()
    }
    logits_B = torch.where(is_cold_B, cold.output.logits_B, warm.output.logits_B)
    output = replace(warm.output, logits_B=logits_B, vectors=vectors)
    return warm._replace(output=output, tasks=tasks)


@dataclass
class StepOutputs:
    """Detached outputs of a step, returned beside its loss."""

    logits_B: Tensor
    """Logits of the click probability."""
    losses: dict[str, Tensor]
    """Loss name -> this rank's share, []; the mean over ranks is the loss of the global batch.
    Empty outside training."""
    batch: Batch
    """The batch itself, for labels and weights."""
    tasks: dict[str, Tensor] = field(default_factory=dict)
    """Predictions [B] of further tasks, as :attr:`RankingResult.tasks` has them."""
    layout: TaskLayout = field(default_factory=TaskLayout)
    """Meaning of the predictions."""
    targets: dict[str, Tensor] = field(default_factory=dict)
    """What the predictions of ``model.tasks`` are compared with, [B], NaN where a row does not
    count."""

    @staticmethod
    def detached(
        result: RankingResult,
        losses: dict[str, Tensor],
        batch: Batch,
        targets: dict[str, Tensor],
    ) -> "StepOutputs":
        """Detaches the outputs of a step.

        Args:
            result: output of the ranking tower and its head.
            losses: loss name -> this rank's share, [].
            batch: the batch of the step.
            targets: of the predictions of ``model.tasks``, [B].
        """
        return StepOutputs(
            result.output.logits_B.detach(),
            map_tensors(losses, Tensor.detach),
            batch,
            map_tensors(result.tasks, Tensor.detach),
            result.layout,
            targets,
        )
