"""MAIL: tables, zero-shot tower and ranking tower (Feng et al., CIKM 2021), and the wall between the two.

One lookup serves both towers. Two detaches make the wall: the zero-shot tower sees detached
embeddings, so its loss never reaches a table; the ranking tower sees detached virtual behaviours,
so its loss never reaches the zero-shot tower. Hence one backward of ``L_rt + L_zst`` equals two
separate ones. Each line of the wall is marked WALL.

Shape letters as in ``towers/inputs.py``; ``U`` users that the rows of a batch share (each row its
own unless the reader groups them), of them ``O`` old and ``W`` new ones; ``F`` fields that the
zero-shot tower sees.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from mail_torchrec.baselines.meta_emb import pairs
from mail_torchrec.baselines.registry import build_filler
from mail_torchrec.data.reading.batch import Batch, map_parts
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.losses.paired_mse import paired_mse
from mail_torchrec.model.builders import (
    ModelSettings,
    build_meta_emb,
    build_multi_task,
    build_zero_shot,
)
from mail_torchrec.model.features import (
    InputAssembler,
    emptied,
    filled,
    input_shapes,
    without_negatives,
)
from mail_torchrec.model.lookup import looked_up
from mail_torchrec.model.loss import Term, mmd_share, ranking_terms, shares
from mail_torchrec.towers.inputs import RankingInputs, RankingOutput, Rows
from mail_torchrec.towers.layers.behaviours import Behaviours
from mail_torchrec.towers.registry import build_tower
from mail_torchrec.towers.zero_shot import ZeroShotLosses


@dataclass
class Outputs:
    """What a step returns beside its loss; all detached."""

    logits_B: Tensor
    losses: dict[str, Tensor]
    """Loss name -> this rank's share; the mean over ranks is the loss of the global batch. Empty
    outside training."""
    batch: Batch
    tasks: dict[str, Tensor] = field(default_factory=dict)
    """Logits [B] beside those of the clicks: ``cvr`` and ``ctcvr`` where there is a multi-task
    head."""


@dataclass
class _Step:
    """The inputs of a step: users, and rows that share them."""

    users: RankingInputs
    rows: Rows
    is_cold_U: Tensor
    weights_U: Tensor
    """The weight of each user's rows together."""


Ranked = tuple[RankingOutput, dict[str, Tensor]]
"""What a ranking tower returned, and the logits [B] of the head on it, which there may be none
of."""


class Mail(nn.Module):
    """Tables below, towers above.

    Args:
        pooled_tables: one vector a row and key.
        unpooled_tables: one vector an id.
        towers: the dense part.
    """

    def __init__(
        self,
        pooled_tables: EmbeddingBagCollection,
        unpooled_tables: EmbeddingCollection,
        towers: "Towers",
    ) -> None:
        super().__init__()
        self.pooled_tables, self.unpooled_tables, self.towers = (
            pooled_tables,
            unpooled_tables,
            towers,
        )

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """The loss of this rank's rows and the detached outputs: the contract of TorchRec's pipelines.

        Each collection is called once, on the batch as the reader made it, or the pipeline could
        not prefetch for it.
        """
        pooled, unpooled = self.pooled_tables(batch.pooled), self.unpooled_tables(batch.unpooled)
        return self.towers(batch, pooled, unpooled)  # type: ignore[no-any-return]


class Towers(nn.Module):
    """The dense part of MAIL, replicated on every rank.

    Args:
        settings: which towers.
        schema: columns and tables.
        feature_tables: the keys of a batch.
        num_rows: table -> rows.
        precision: of the matrix products in training.

    Raises:
        ValueError: a tower or its options do not fit (see ``towers/registry.py``), or the schema
            has no room for a part (``model/builders.py``).
    """

    def __init__(
        self,
        settings: ModelSettings,
        schema: Schema,
        feature_tables: FeatureTables,
        num_rows: dict[str, int],
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.precision = precision
        shapes = input_shapes(schema, num_rows, has_match=bool(feature_tables.match))
        self.settings = settings
        self._assemble = InputAssembler(schema, feature_tables)
        self.ranking = build_tower(settings.tower, settings.tower_options, shapes)
        self.zero_shot = build_zero_shot(settings.zero_shot, schema, shapes)
        self.filler = build_filler(settings.baseline, shapes, len(schema.numeric(Group.ATTRIBUTE)))
        self.meta_emb = build_meta_emb(
            settings.baseline, schema, shapes, has_first_order=bool(feature_tables.first_order)
        )
        self.multi_task = build_multi_task(
            settings.multi_task, schema, self.ranking, settings.tower
        )
        own = settings.new_user_tower == "own"
        self.ranking_of_new = (
            build_tower(settings.tower, settings.tower_options, shapes) if own else None
        )
        self.multi_task_of_new = build_multi_task(
            settings.multi_task, schema, self.ranking_of_new, settings.tower
        )

    def forward(
        self, batch: Batch, pooled: KeyedTensor, unpooled: dict[str, JaggedTensor]
    ) -> tuple[Tensor, Outputs]:
        """Embeddings -> the loss to minimise on this rank, and the outputs."""
        lower = self.training and self.precision is not torch.float32
        with torch.autocast(
            batch.labels_B.device.type, self.precision if lower else None, enabled=lower
        ):
            return self._forward(batch, pooled, unpooled)

    def _forward(
        self, batch: Batch, pooled: KeyedTensor, unpooled: dict[str, JaggedTensor]
    ) -> tuple[Tensor, Outputs]:
        step = self._step(batch, pooled, unpooled)
        seen_UFD = self._seen(step.users)
        ranked, tasks = self.ranked(
            step.rows.of(self.filled(step.users, step.is_cold_U, self._dropped(step)))
        )
        losses: dict[str, Tensor] = {}
        loss = ranked.logits_B.new_zeros(())
        if self.training:
            terms = ranking_terms(
                ranked, tasks, batch, self.settings.multi_task
            ) | self._as_new_terms(step, batch)
            terms |= self._meta_terms(step, batch)
            losses, loss = self._losses(terms, self._zero_shot_losses(step, seen_UFD))
            if self.filler is not None:
                self.filler.observe(*self._old_users(step, seen_UFD))
        elif self.ranking_of_new is not None:
            ranked, tasks = chosen(batch.is_cold_B, self._ranked_as_new(step), (ranked, tasks))
        return loss, Outputs(
            ranked.logits_B.detach(),
            map_parts(losses, Tensor.detach),
            batch,
            map_parts(tasks, Tensor.detach),
        )

    def compile_parts(self) -> None:
        """Has torch.compile make kernels of the towers' arithmetic; numbers of rows and users stay free."""
        for tower in (self.ranking, self.ranking_of_new):
            if tower is not None:
                tower.compile(dynamic=True)
        if self.zero_shot is not None:
            for method in ("losses", "virtual"):
                setattr(
                    self.zero_shot,
                    method,
                    torch.compile(getattr(self.zero_shot, method), dynamic=True),
                )

    @torch.no_grad()
    def interests(
        self, batch: Batch, pooled: KeyedTensor, unpooled: dict[str, JaggedTensor]
    ) -> tuple[dict[str, Behaviours], dict[str, Behaviours], Tensor]:
        """Real and virtual behaviours of every user, and its pooled attributes h_a [U, E]: what the zero-shot tower sees and makes."""
        assert self.zero_shot is not None
        users = self._step(batch, pooled, unpooled).users
        seen_UFD = self._seen(users)
        behaviours = {
            name: (sequence.values_BTD, sequence.lengths_B)
            for name, sequence in users.sequences.items()
        }
        virtual = self.zero_shot.virtual(
            seen_UFD, self._assemble.numeric_attributes(users.numeric_BN)
        )
        return behaviours, virtual, self.zero_shot.pooled_fields(seen_UFD)

    def _step(
        self, batch: Batch, pooled: KeyedTensor, unpooled: dict[str, JaggedTensor]
    ) -> "_Step":
        found = looked_up(
            batch, pooled, unpooled, self._assemble.schema, self._assemble.feature_tables
        )
        users = self._assemble.users(
            found, batch.of_users(self._assemble.numeric_attributes(batch.numeric_BN))
        )
        rows = self._assemble.rows(
            found,
            batch.numeric_BN,
            batch.dedup.inverse_indices_B if batch.dedup is not None else None,
        )
        if self.zero_shot is None or self.zero_shot.settings.input_fields == "user_attributes":
            return _Step(users, rows, batch.is_cold_U, batch.weights_U)
        return _Step(*rows.apart(users), batch.is_cold_B, batch.weights_B)

    def _seen(self, users: RankingInputs) -> Tensor:
        """The fields that the zero-shot tower sees."""
        fields = users.attributes_BAD
        if self.zero_shot is not None and self.zero_shot.settings.input_fields == "all_fields":
            fields = torch.cat(
                [group for group in (fields, users.context_BCD, users.items_BID) if group.shape[1]],
                dim=1,
            )
        return fields.detach()  # WALL: nothing behind this line reaches a table

    def _dropped(self, step: "_Step") -> Tensor | None:
        """The old users that the ranking tower meets as new ones in this step [U]."""
        if not self.training or not self.settings.behaviour_dropout:
            return None
        return ~step.is_cold_U & (torch.rand_like(step.weights_U) < self.settings.behaviour_dropout)

    def filled(
        self, users: RankingInputs, is_cold_U: Tensor, as_new_U: Tensor | None = None
    ) -> RankingInputs:
        """New users, and old ones that are to be met as new, get virtual behaviours (Eq. 10).

        Where nothing makes any, new ones keep the few that they may have, as with an ordinary
        ranker, and the others lose theirs. MetaEmb makes their id's vector.
        """
        met_as_new_U = is_cold_U if as_new_U is None else is_cold_U | as_new_U
        if self.meta_emb is not None:
            users = self.meta_emb.filled(
                users, self._assemble.numeric_attributes(users.numeric_BN), met_as_new_U
            )
        maker = self.zero_shot if self.zero_shot is not None else self.filler
        if maker is None or (
            self.training
            and self.zero_shot is not None
            and self.zero_shot.settings.fill == "infer_only"
        ):
            return users if as_new_U is None else emptied(users, as_new_U & ~is_cold_U)
        new_W = torch.nonzero(met_as_new_U).squeeze(1)
        with torch.no_grad():  # WALL: virtual behaviours are data to the ranking tower
            virtual = maker.virtual(
                self._seen(users)[new_W], self._assemble.numeric_attributes(users.numeric_BN)[new_W]
            )
        return replace(
            users,
            sequences={
                name: filled(sequence, new_W, *virtual[name])
                for name, sequence in users.sequences.items()
            },
        )

    def ranked(self, inputs: RankingInputs, *, as_new: bool = False) -> Ranked:
        """Inputs with behaviours -> logits, of clicks and beside them; as new ones by the tower of these, where they have their own."""
        own = as_new and self.ranking_of_new is not None
        tower, head = (
            (self.ranking_of_new, self.multi_task_of_new)
            if own
            else (self.ranking, self.multi_task)
        )
        assert tower is not None
        ranked = RankingOutput.of(tower(inputs))
        return ranked, head(ranked) if head is not None else {}

    def _ranked_as_new(self, step: "_Step") -> Ranked:
        """Every row ranked as a new one; without auxiliary losses."""
        users = self.filled(step.users, step.is_cold_U, torch.ones_like(step.is_cold_U))
        ranked, tasks = self.ranked(without_negatives(step.rows).of(users), as_new=True)
        return replace(ranked, auxiliary={}), tasks

    def _as_new_terms(self, step: "_Step", batch: Batch) -> dict[str, Term]:
        """The loss of rows ranked as new ones: of all rows where new ones have a tower of their own, else of the old ones."""
        if not self.settings.cold_loss_weight:
            return {}
        terms = ranking_terms(*self._ranked_as_new(step), batch, self.settings.multi_task)
        counted_B = (
            batch.weights_B
            if self.ranking_of_new is not None
            else batch.weights_B * ~batch.is_cold_B
        )
        return {
            name.replace("L_", "L_new_"): replace(
                term, row_weights=counted_B, weight=term.weight * self.settings.cold_loss_weight
            )
            for name, term in terms.items()
        }

    def _meta_terms(self, step: "_Step", batch: Batch) -> dict[str, Term]:
        """MetaEmb's loss of this rank's old rows in pairs of one user, met as new ones by the tower that scores those."""
        if self.meta_emb is None:
            return {}
        tower = self.ranking if self.ranking_of_new is None else self.ranking_of_new
        inputs = without_negatives(step.rows).of(
            emptied(step.users, torch.ones_like(step.is_cold_U))
        )
        constant = map_parts(inputs, Tensor.detach)  # WALL: tables are constants to the generator
        earlier_B, paired_B = pairs(batch.users_B, ~batch.is_cold_B & (batch.weights_B > 0))
        numeric_BM = self._assemble.numeric_attributes(batch.numeric_BN)
        losses_B = self.meta_emb.losses(tower, constant, numeric_BM, batch.labels_B, earlier_B)
        return {"L_meta": Term(losses_B, paired_B.to(losses_B.dtype))}

    def _zero_shot_losses(self, step: "_Step", seen_UFD: Tensor) -> ZeroShotLosses | None:
        """The zero-shot tower's losses of this rank's old users, or of a sample of them, each counted by its rows."""
        if self.zero_shot is None or self.zero_shot.settings.variant == "none":
            return None
        return self.zero_shot.losses(
            *self._old_users(step, seen_UFD, self.zero_shot.settings.loss_sample_share)
        )

    def _old_users(
        self, step: "_Step", seen_UFD: Tensor, share: float = 1.0
    ) -> tuple[Tensor, Tensor, dict[str, Behaviours], Tensor]:
        """Fields, numeric attributes and behaviours of that share of this rank's old users, and how many rows each has."""
        old_O = torch.nonzero(~step.is_cold_U & (step.weights_U > 0)).squeeze(1)
        if share < 1:
            old_O = old_O[
                torch.randperm(len(old_O), device=old_O.device)[: math.ceil(share * len(old_O))]
            ]
        behaviours = {
            name: (sequence.values_BTD.detach()[old_O], sequence.lengths_B[old_O])  # WALL: as above
            for name, sequence in step.users.sequences.items()
        }
        return (
            seen_UFD[old_O],
            self._assemble.numeric_attributes(step.users.numeric_BN)[old_O],
            behaviours,
            step.weights_U[old_O],
        )

    def _losses(
        self, terms: dict[str, Term], zero_shot: ZeroShotLosses | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """This rank's shares by name, and the sum to minimise."""
        if zero_shot is not None:
            terms = terms | self._zero_shot_terms(zero_shot)
        losses = shares(terms)
        loss = torch.stack([term.weight * losses[name] for name, term in terms.items()]).sum()
        if zero_shot is not None and self._aligned_by("mmd"):
            assert (
                self.zero_shot is not None
                and zero_shot.P_NH is not None
                and zero_shot.Q_NH is not None
                and zero_shot.weights_N is not None
            )
            losses["L_d"] = mmd_share(
                *(zero_shot.P_NH, zero_shot.Q_NH, zero_shot.weights_N),
                self.zero_shot.settings.sigma,
                all_ranks=self.settings.mmd_over_all_ranks,
            )
            loss = loss + losses["L_d"]
        return losses, loss

    def _zero_shot_terms(self, zero_shot: ZeroShotLosses) -> dict[str, Term]:
        assert self.zero_shot is not None and zero_shot.weights_N is not None
        settings, weights_N = self.zero_shot.settings, zero_shot.weights_N
        rows = dict(zero_shot.rows)
        if self._aligned_by("paired_mse"):
            assert zero_shot.P_NH is not None and zero_shot.Q_NH is not None
            rows["d"] = paired_mse(zero_shot.P_NH, zero_shot.Q_NH, settings.reduction)
        return {
            f"L_{name}": Term(losses, weights_N, raw_sum=settings.reduction == "sum")
            for name, losses in rows.items()
        }

    def _aligned_by(self, alignment: str) -> bool:
        return (
            self.zero_shot is not None
            and self.zero_shot.settings.variant == "full"
            and self.zero_shot.settings.alignment == alignment
        )


def chosen(is_cold_B: Tensor, of_new: Ranked, of_old: Ranked) -> Ranked:
    """The logits of new rows from one tower, those of the others from the other."""
    (new, new_tasks), (old, old_tasks) = of_new, of_old
    tasks = {
        name: torch.where(is_cold_B, new_tasks[name], logits_B)
        for name, logits_B in old_tasks.items()
    }
    return replace(old, logits_B=torch.where(is_cold_B, new.logits_B, old.logits_B)), tasks
