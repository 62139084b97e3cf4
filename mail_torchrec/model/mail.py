"""MAIL: tables, zero-shot tower, ranking tower and the wall between them (Feng et al., CIKM 2021).

One lookup serves both towers. Two detaches make the wall: the zero-shot tower gets detached
embeddings, so its loss never reaches a table; the ranking tower gets detached virtual behaviours,
so its loss never reaches the zero-shot tower. Hence one backward of ``L_rt + L_zst`` equals two
separate ones. Every line of the wall is marked WALL.

Shape letters as in ``towers/inputs.py``; ``F`` fields that the zero-shot tower reads, ``W`` warm
users (with usable behaviours), ``V`` users that get virtual behaviours.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.distributed.vector_exchange import wait_for_vectors
from mail_torchrec.model.builders import ModelSettings
from mail_torchrec.model.cold_rows import (
    ColdUsers,
    mixed_behaviours,
    with_virtual_behaviours,
    without_behaviours,
)
from mail_torchrec.model.dense_modules import DenseModules
from mail_torchrec.model.features import InputAssembler
from mail_torchrec.model.generator_losses import filler_terms, meta_emb_terms, virtual_ranking_terms
from mail_torchrec.model.lookup import feature_embeddings
from mail_torchrec.model.loss import LossTerm, cold_pass_terms, ranking_terms, reduce_terms
from mail_torchrec.model.step import (
    RankingResult,
    StepInputs,
    StepOutputs,
    WarmUsers,
    select_by_cold,
    step_inputs,
)
from mail_torchrec.model.virtual_items.generator import with_virtual_items
from mail_torchrec.model.virtual_items.terms import virtual_item_terms
from mail_torchrec.towers.inputs import RankingInputs
from mail_torchrec.towers.layers.behaviours import Behaviours
from mail_torchrec.towers.tasks.layout import task_targets
from mail_torchrec.towers.zero_shot.losses import ZeroShotLosses
from mail_torchrec.utils.spans import span


class Mail(nn.Module):
    """Tables below, towers above.

    Args:
        pooled_tables: columns that are pooled to one vector a row.
        unpooled_tables: columns that keep one vector an id.
        towers: the dense part.
    """

    def __init__(
        self,
        pooled_tables: EmbeddingBagCollection,
        unpooled_tables: EmbeddingCollection,
        towers: "Towers",
    ) -> None:
        super().__init__()
        self.pooled_tables = pooled_tables
        self.unpooled_tables = unpooled_tables
        self.towers = towers

    def forward(self, batch: Batch) -> tuple[Tensor, StepOutputs]:
        """Computes the loss of this rank's rows and the detached outputs.

        This is the contract of TorchRec's pipelines. Each collection is called once, on the batch
        as the reader made it, or the pipeline could not prefetch for it.
        """
        with span("lookup"):
            pooled = self.pooled_tables(batch.pooled)
            unpooled = self.unpooled_tables(batch.unpooled)
        with span("communication"):
            pooled, unpooled = wait_for_vectors(pooled), wait_for_vectors(unpooled)
        return self.towers(batch, pooled, unpooled)  # type: ignore[no-any-return]


class Towers(DenseModules):
    """Dense part of MAIL, replicated on every rank.

    Args:
        settings: the towers and their options.
        schema: columns and tables.
        feature_tables: feature keys of a batch and their tables.
        num_rows: table -> rows.
        precision: of the matrix products in training.
        negatives_kept: share of the unclicked rows in the training data.
        vector_dims: number of elements of each vector column; None where there is none.

    Raises:
        ValueError: a tower or its options do not fit (see ``towers/registry.py``), or the schema
            has no room for a part (see ``model/builders.py``).
    """

    def __init__(
        self,
        settings: ModelSettings,
        schema: Schema,
        feature_tables: FeatureTables,
        num_rows: dict[str, int],
        precision: torch.dtype = torch.float32,
        negatives_kept: float = 1.0,
        vector_dims: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(settings, schema, feature_tables, num_rows, negatives_kept, vector_dims)
        self.precision = precision
        self._feature_tables = feature_tables
        self._assembler = InputAssembler(schema, feature_tables, self.projections)

    def forward(
        self, batch: Batch, pooled: KeyedTensor, unpooled: dict[str, JaggedTensor]
    ) -> tuple[Tensor, StepOutputs]:
        """Computes the loss to minimise on this rank, a scalar, and the detached outputs.

        Args:
            batch: ids, labels and weights.
            pooled: looked-up vectors of the pooled columns.
            unpooled: looked-up vectors of the others.
        """
        lower = self.training and self.precision is not torch.float32
        with torch.autocast(
            batch.labels_B.device.type, self.precision if lower else None, enabled=lower
        ):
            step = self._step_inputs(batch, pooled, unpooled)
            return self._train(step, batch) if self.training else self._evaluate(step, batch)

    def _train(self, step: StepInputs, batch: Batch) -> tuple[Tensor, StepOutputs]:
        fields_UFD = self.zero_shot_fields(step.users)
        result = self._rank_step(step, step.with_dropped(self.settings.behaviour_dropout))
        with span("ranking"):
            targets = self._targets(batch)
            terms = ranking_terms(result, batch, self.settings, targets)
        terms |= self._cold_pass_terms(step, batch)
        with span("zero_shot"):
            terms |= self._generator_terms(step, batch, fields_UFD)
            zero_shot = self._zero_shot_losses(step, fields_UFD)
        losses, loss = reduce_terms(
            terms,
            zero_shot,
            self.settings.zero_shot,
            mmd_over_all_ranks=self.settings.mmd_over_all_ranks,
        )
        if self.filler is not None:
            with span("zero_shot"):
                self.filler.update(*self._warm_users(step, fields_UFD))
        return loss, StepOutputs.detached(result, losses, batch, targets)

    def _evaluate(self, step: StepInputs, batch: Batch) -> tuple[Tensor, StepOutputs]:
        result = self._rank_step(step, step.cold)
        if self.cold_ranking is not None:
            cold = self._rank_all_as_cold(step)
            result = select_by_cold(step.is_cold_U, batch.is_cold_B, cold, result)
        loss = result.output.logits_B.new_zeros(())
        return loss, StepOutputs.detached(result, {}, batch, self._targets(batch))

    def _targets(self, batch: Batch) -> dict[str, Tensor]:
        """Returns what the predictions of ``model.tasks`` are compared with, [B]."""
        return task_targets(self.settings.tasks, batch.labels_B, batch.task_labels)

    def zero_shot_fields(self, users: RankingInputs) -> Tensor:
        """Returns detached embeddings [U, F, D] of the fields that the zero-shot tower reads."""
        fields = users.attributes_BAD
        if self.fills_candidates:
            groups = (fields, users.context_BCD, users.items_BID)
            fields = torch.cat([group for group in groups if group.shape[1]], dim=1)
        return fields.detach()  # WALL: no gradient of the zero-shot tower reaches a table.

    def fill_cold_users(self, users: RankingInputs, cold: ColdUsers) -> RankingInputs:
        """Gives virtual behaviours to cold users (Feng et al. 2021, Eq. 10).

        Where the model makes none, cold users keep the few behaviours that they may have, as with
        an ordinary ranker, and users that are treated as cold lose theirs. MetaEmb generates the
        vector of their id instead.

        Args:
            users: one row a user.
            cold: users without usable behaviours, and those to be treated like them.
        """
        numeric_UM = self._assembler.numeric_attributes(users.numeric_BN)
        if self.meta_emb is not None:
            users = self.meta_emb.fill_ids(users, numeric_UM, cold.is_filled_U)
        if (source := self.virtual_source) is None:
            dropped_U = cold.dropped_U
            return users if dropped_U is None else without_behaviours(users, dropped_U)
        cold = replace(cold, known_V=cold.rows_V)  # found once
        read_V = cold.readable_V
        with torch.no_grad():  # WALL: virtual behaviours are constants to the ranking tower.
            fields_UFD = self.zero_shot_fields(users)
            virtual = source.virtual_behaviours(fields_UFD[read_V], numeric_UM[read_V])
        if (strength := self.settings.mixing_strength) is None:
            return with_virtual_behaviours(users, cold, virtual)
        mixed, num_real = mixed_behaviours(users, cold, virtual, strength)
        return with_virtual_behaviours(users, cold, mixed, num_real)

    @torch.no_grad()
    def user_inputs(
        self, batch: Batch, pooled: KeyedTensor, unpooled: dict[str, JaggedTensor]
    ) -> RankingInputs:
        """Assembles the inputs of every user, with the real behaviours.

        Args:
            batch: ids and lengths.
            pooled: looked-up vectors of the pooled columns.
            unpooled: looked-up vectors of the others.
        """
        return self._step_inputs(batch, pooled, unpooled).users

    @torch.no_grad()
    def virtual_behaviours(self, users: RankingInputs) -> dict[str, Behaviours]:
        """Computes virtual behaviours of every user, by the zero-shot tower or a filling baseline.

        Args:
            users: one row a user.
        """
        assert self.virtual_source is not None
        numeric_UM = self._assembler.numeric_attributes(users.numeric_BN)
        return self.virtual_source.virtual_behaviours(self.zero_shot_fields(users), numeric_UM)

    def _step_inputs(
        self, batch: Batch, pooled: KeyedTensor, unpooled: dict[str, JaggedTensor]
    ) -> StepInputs:
        with span("lookup"):
            embeddings = feature_embeddings(
                batch, pooled, unpooled, self._assembler.schema, self._feature_tables
            )
            embeddings.fields |= self.vector_fields(batch.vectors)
            embeddings, items = with_virtual_items(self.virtual_items, embeddings, batch)
            expand = self.fills_candidates
            step = step_inputs(batch, embeddings, self._assembler, expand_users=expand)
            return replace(step, items=items)

    def _rank_step(self, step: StepInputs, cold: ColdUsers) -> RankingResult:
        with span("zero_shot"):
            users = self.fill_cold_users(step.users, cold)
        with span("ranking"):
            return self.rank(step.candidates.join_users(users))

    def _rank_all_as_cold(self, step: StepInputs) -> RankingResult:
        """Ranks every row as if its user were cold, without auxiliary losses."""
        with span("zero_shot"):
            users = self.fill_cold_users(step.users, step.all_as_cold)
        with span("ranking"):
            candidates = step.candidates.without_negatives()
            result = self.rank(candidates.join_users(users), as_cold=True)
            return result._replace(output=replace(result.output, auxiliary={}))

    def _cold_pass_terms(self, step: StepInputs, batch: Batch) -> dict[str, LossTerm]:
        """Losses of rows ranked as cold: of all rows with a tower for cold users, else of warm."""
        if not self.settings.cold_loss_weight:
            return {}
        result = self._rank_all_as_cold(step)
        with span("ranking"):
            terms = ranking_terms(result, batch, self.settings, self._targets(batch))
            is_counted_B = ~batch.is_cold_B if self.cold_ranking is None else None
            return cold_pass_terms(terms, is_counted_B, self.settings.cold_loss_weight)

    def _generator_terms(
        self, step: StepInputs, batch: Batch, fields_UFD: Tensor
    ) -> dict[str, LossTerm]:
        """Losses of baselines' generators, and L_r, by which the ranking tower teaches them."""
        numeric_BM = self._assembler.numeric_attributes(batch.numeric_BN)
        numeric_UM = self._assembler.numeric_attributes(step.users.numeric_BN)
        meta_emb = meta_emb_terms(self, step, batch, numeric_BM)
        meta_emb |= filler_terms(self.filler, lambda: self._warm_users(step, fields_UFD))
        meta_emb |= virtual_item_terms(
            self, step, batch, self._assembler, lambda: self.fill_cold_users(step.users, step.cold)
        )
        return meta_emb | virtual_ranking_terms(self, step, batch, fields_UFD, numeric_UM)

    def _zero_shot_losses(self, step: StepInputs, fields_UFD: Tensor) -> ZeroShotLosses | None:
        """The zero-shot tower's losses of this rank's warm users, or of a sample of them."""
        if self.zero_shot is None or self.zero_shot.settings.variant == "none":
            return None
        share = self.zero_shot.settings.loss_sample_share
        return self.zero_shot.losses(*self._warm_users(step, fields_UFD, share))

    def _warm_users(self, step: StepInputs, fields_UFD: Tensor, share: float = 1.0) -> WarmUsers:
        """Detached features of a random share of this rank's warm users."""
        warm_W = step.sets.weighted
        if share < 1:
            order_W = torch.randperm(len(warm_W), device=warm_W.device)
            warm_W = warm_W[order_W[: math.ceil(share * len(warm_W))]]
        weights_W, warm_W = step.weights_of(warm_W), step.readable(warm_W)
        sequences = {
            # WALL: no gradient of the zero-shot tower reaches a table.
            name: (sequence.values_BTD.detach()[warm_W], sequence.lengths_B[warm_W])
            for name, sequence in step.users.sequences.items()
        }
        numeric_UM = self._assembler.numeric_attributes(step.users.numeric_BN)
        return WarmUsers(fields_UFD[warm_W], numeric_UM[warm_W], sequences, weights_W)
