"""MAIL: tables, zero-shot tower and ranking tower (Feng et al., CIKM 2021), and the wall between the two.

One lookup serves both towers. Two detaches make the wall: the zero-shot tower sees detached embeddings, so its loss never
reaches a table; the ranking tower sees detached virtual behaviours, so its loss never reaches the zero-shot tower. Hence one
backward of ``L_rt + L_zst`` equals two separate ones. Each line of the wall is marked WALL.

Shape letters as in ``towers/inputs.py``; ``O`` old rows, ``W`` new rows, ``F`` fields that the zero-shot tower sees.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from mail_torchrec.data.batch import Batch
from mail_torchrec.data.lookups import Lookups
from mail_torchrec.data.schema import Group, Schema
from mail_torchrec.fields import InputAssembler, filled, input_shapes
from mail_torchrec.losses.paired_mse import paired_mse
from mail_torchrec.losses.ranking import ranking_loss
from mail_torchrec.objective import Term, mmd_share, shares
from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import InputShapes, RankingInputs, RankingOutput
from mail_torchrec.towers.multi_task import MultiTaskHead, MultiTaskSettings
from mail_torchrec.towers.registry import build_tower
from mail_torchrec.towers.zero_shot import ZeroShotLosses, ZeroShotSettings, ZeroShotTower


class ModelSettings(Settings):
    """Which towers."""

    tower: str = "dmr"
    """The ranking tower: emblr, base_dnn, dmr, or the import path ``package.module:Class`` of your own."""
    tower_options: dict[str, Any] = {}
    """Options of that tower (its ``Settings``)."""
    zero_shot: ZeroShotSettings | None = ZeroShotSettings()
    """The zero-shot tower; null leaves new users without behaviours, as an ordinary ranker does."""
    multi_task: MultiTaskSettings | None = None
    """The head for conversions on the ranking tower; null predicts clicks alone."""
    mmd_over_all_ranks: bool = True
    """L_d over the old rows of all ranks, as one process would have it; false: each rank its own, for very many ranks."""


@dataclass
class Outputs:
    """What a step returns beside its loss; all detached."""

    logits_B: Tensor
    losses: dict[str, Tensor]
    """Loss name -> this rank's share; the mean over ranks is the loss of the global batch. Empty outside training."""
    batch: Batch
    tasks: dict[str, Tensor] = field(default_factory=dict)
    """Logits [B] beside those of the clicks: ``cvr`` and ``ctcvr`` where there is a multi-task head."""


class Mail(nn.Module):
    """Tables below, towers above.

    Args:
        pooled_tables: one vector a row and key.
        unpooled_tables: one vector an id.
        towers: the dense part.
    """

    def __init__(self, pooled_tables: EmbeddingBagCollection, unpooled_tables: EmbeddingCollection, towers: "Towers") -> None:
        super().__init__()
        self.pooled_tables, self.unpooled_tables, self.towers = pooled_tables, unpooled_tables, towers

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """The loss of this rank's rows and the detached outputs: the contract of TorchRec's pipelines.

        Each collection is called once, on the batch as the reader made it, or the pipeline could not prefetch for it.
        """
        return self.towers(batch, self.pooled_tables(batch.pooled), self.unpooled_tables(batch.unpooled))  # type: ignore[no-any-return]


class Towers(nn.Module):
    """The dense part of MAIL, replicated on every rank.

    Args:
        settings: which towers.
        schema: columns and tables.
        lookups: the keys of a batch.
        num_rows: table -> rows.

    Raises:
        ValueError: a tower or its options do not fit (see ``towers/registry.py``), or the multi-task head lacks its column.
    """

    def __init__(self, settings: ModelSettings, schema: Schema, lookups: Lookups, num_rows: dict[str, int]) -> None:
        super().__init__()
        shapes = input_shapes(schema, num_rows, has_match=bool(lookups.match))
        self.settings = settings
        self._assemble = InputAssembler(schema, lookups)
        self.ranking = build_tower(settings.tower, settings.tower_options, shapes)
        self.zero_shot = _build_zero_shot(settings.zero_shot, schema, shapes) if settings.zero_shot else None
        self.multi_task = _build_multi_task(settings.multi_task, schema, self.ranking, settings.tower) if settings.multi_task else None

    def forward(self, batch: Batch, pooled: KeyedTensor, unpooled: dict[str, JaggedTensor]) -> tuple[Tensor, Outputs]:
        """Embeddings -> the loss to minimise on this rank, and the outputs."""
        real = self._assemble(batch, pooled, unpooled)
        seen_BFD = self._seen(real)
        ranked = RankingOutput.of(self.ranking(self._fill(real, seen_BFD, batch.is_new_B)))
        tasks = self.multi_task(ranked) if self.multi_task is not None else {}
        losses: dict[str, Tensor] = {}
        loss = ranked.logits_B.new_zeros(())
        if self.training:
            losses, loss = self._losses(ranked, tasks, batch, self._zero_shot_losses(real, seen_BFD, batch))
        return loss, Outputs(ranked.logits_B.detach(), _detached(losses), batch, _detached(tasks))

    def _seen(self, inputs: RankingInputs) -> Tensor:
        """The fields that the zero-shot tower sees."""
        fields = inputs.attributes_BAD
        if self.zero_shot is not None and self.zero_shot.settings.sees == "all_fields":
            fields = torch.cat([group for group in (fields, inputs.context_BCD, inputs.items_BID) if group.shape[1]], dim=1)
        return fields.detach()  # WALL: nothing behind this line reaches a table

    def _fill(self, real: RankingInputs, seen_BFD: Tensor, is_new_B: Tensor) -> RankingInputs:
        """New rows get virtual behaviours (Eq. 10)."""
        if self.zero_shot is None or (self.training and self.zero_shot.settings.fill == "infer_only"):
            return real
        new_W = torch.nonzero(is_new_B).squeeze(1)
        with torch.no_grad():  # WALL: virtual behaviours are data to the ranking tower
            virtual = self.zero_shot.virtual(seen_BFD[new_W], self._assemble.numeric_attributes(real)[new_W])
        return replace(real, sequences={name: filled(sequence, new_W, *virtual[name]) for name, sequence in real.sequences.items()})

    def _zero_shot_losses(self, real: RankingInputs, seen_BFD: Tensor, batch: Batch) -> ZeroShotLosses | None:
        """The zero-shot tower's losses on this rank's old rows."""
        if self.zero_shot is None or self.zero_shot.settings.variant == "none":
            return None
        old_O = torch.nonzero(~batch.is_new_B & (batch.weights_B > 0)).squeeze(1)
        behaviours = {
            name: (sequence.values_BTD.detach()[old_O], sequence.lengths_B[old_O])  # WALL: as above
            for name, sequence in real.sequences.items()
        }
        return self.zero_shot.losses(seen_BFD[old_O], self._assemble.numeric_attributes(real)[old_O], behaviours)

    def _losses(
        self, ranked: RankingOutput, tasks: dict[str, Tensor], batch: Batch, zero_shot: ZeroShotLosses | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """This rank's shares by name, and the sum to minimise."""
        terms = _ranking_terms(ranked, tasks, batch, self.settings.multi_task)
        if zero_shot is not None:
            terms |= self._zero_shot_terms(zero_shot)
        losses = shares(terms) if terms else {}
        loss = ranked.logits_B.new_zeros(())
        for name, term in terms.items():
            loss = loss + term.weight * losses[name]
        if zero_shot is not None and self._aligned_by("mmd"):
            assert zero_shot.P_NH is not None and zero_shot.Q_NH is not None and self.zero_shot is not None
            losses["L_d"] = mmd_share(
                zero_shot.P_NH, zero_shot.Q_NH, self.zero_shot.settings.sigma, all_ranks=self.settings.mmd_over_all_ranks
            )
            loss = loss + losses["L_d"]
        return losses, loss

    def _zero_shot_terms(self, zero_shot: ZeroShotLosses) -> dict[str, Term]:
        assert self.zero_shot is not None
        settings = self.zero_shot.settings
        rows = dict(zero_shot.rows)
        if self._aligned_by("paired_mse"):
            assert zero_shot.P_NH is not None and zero_shot.Q_NH is not None
            rows["d"] = paired_mse(zero_shot.P_NH, zero_shot.Q_NH, settings.reduction)
        return {f"L_{name}": Term(losses, torch.ones_like(losses), raw_sum=settings.reduction == "sum") for name, losses in rows.items()}

    def _aligned_by(self, alignment: str) -> bool:
        return self.zero_shot is not None and self.zero_shot.settings.variant == "full" and self.zero_shot.settings.alignment == alignment


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in tensors.items()}


def _ranking_terms(ranked: RankingOutput, tasks: dict[str, Tensor], batch: Batch, multi_task: MultiTaskSettings | None) -> dict[str, Term]:
    if clash := ranked.auxiliary.keys() & {"rt", "ctcvr", "a", "v", "d"}:
        raise ValueError(f"the ranking tower calls an auxiliary loss {sorted(clash)}, which is a name of MAIL's own losses; rename it")
    click_weight = multi_task.click_weight if multi_task else 1.0
    terms = {"L_rt": Term(ranking_loss(ranked.logits_B, batch.labels_B), batch.weights_B, click_weight)}
    if multi_task:
        terms["L_ctcvr"] = Term(ranking_loss(tasks["ctcvr"], batch.conversions_B), batch.weights_B, 1 - click_weight)
    return terms | {
        f"L_{name}": Term(rows_B, weights_B * batch.weights_B, weight) for name, (rows_B, weights_B, weight) in ranked.auxiliary.items()
    }


def _build_multi_task(settings: MultiTaskSettings, schema: Schema, tower: nn.Module, tower_name: str) -> MultiTaskHead:
    if schema.conversion is None:
        raise ValueError(
            "model.multi_task needs a column of group 'conversion' in schema.columns (0 or 1: what followed the click), found none; "
            "add it, or model.multi_task=null"
        )
    return MultiTaskHead(settings, tower, tower_name)


def _build_zero_shot(settings: ZeroShotSettings, schema: Schema, shapes: InputShapes) -> ZeroShotTower:
    groups = {"attributes": (shapes.num_attributes, shapes.attribute_dim)}
    if settings.sees == "all_fields":
        groups |= {"context": (shapes.num_context, shapes.context_dim), "items": (shapes.num_items, shapes.item_dim)}
    groups = {name: group for name, group in groups.items() if group[0]}
    if len(dims := {dim for _, dim in groups.values()}) != 1:
        raise ValueError(
            f"model.zero_shot.sees=all_fields needs one dimension in all groups, received {groups} (fields, dimension); set schema.dim"
        )
    return ZeroShotTower(
        settings,
        group_fields={name: num for name, (num, _) in groups.items()},
        field_dim=dims.pop(),
        num_numeric=len(schema.numeric(Group.ATTRIBUTE)),
        sequences=shapes.sequences,
    )
