"""The direct reference: MAIL-DMR in plain PyTorch, as one writes it down from the papers.

It has nn.Embedding, padded rows, float32 and dense Adam, and nothing is clever here. This project's
training speed is measured against it, so it shares no code with the towers; ``tests/tools``
compares its losses and gradients with theirs. Every row goes through the whole zero-shot tower,
once: its loss counts where the row is old, its virtual behaviours are used where the row is cold.
Of DMR's softmaxes over prefixes only the two that are used are computed.

Shape letters: ``B`` rows, ``T`` positions, ``A``, ``C``, ``I`` fields of attributes, context and
item, ``F`` fields of a group, ``D`` the dimension of a vector, ``M`` numeric attributes, ``K``
negatives, ``X`` all fields of a row.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mail_torchrec.config import Config
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.towers.dmr import DMRSettings
from mail_torchrec.towers.registry import tower_settings
from mail_torchrec.utils.spans import span
from tools.benchmark.reference.padded_batch import PaddedBatch
from tools.benchmark.reference.requirements import sequence_and_action
from tools.benchmark.reference.towers import DMR, ZeroShot

_MIN_MATCH_LENGTH = 3
"""Behaviours that a row needs to count in the match loss."""


class Reference(nn.Module):
    """Tables, zero-shot tower and DMR.

    Args:
        config: columns and widths; one sequence with actions, joined by product, DMR with its match
            loss. ``model.zero_shot`` may be null.
        num_rows: rows of each table.

    Raises:
        ValueError: another schema or tower.
    """

    def __init__(self, config: Config, num_rows: dict[str, int]) -> None:
        super().__init__()
        self.schema = schema = config.schema_
        self.sequence, self.action = sequence_and_action(config)
        self.target = schema.target_of(self.sequence)
        settings = tower_settings("dmr", config.model.tower_options)
        assert isinstance(settings, DMRSettings)
        self.match_weight = settings.match_weight
        tables = {
            f"table_{name}": nn.Embedding(num_rows[name], schema.dim) for name in schema.table_names
        }
        self.tables = nn.ModuleDict(tables)
        self.output_table = nn.Embedding(num_rows[schema.table_of(self.sequence)], schema.dim)
        for name in schema.table_names:
            self._initialise(self.table(name), name)
        self._initialise(self.output_table, schema.table_of(self.sequence))
        self.dmr = DMR(config, num_rows[schema.table_of(self.action)])
        self.zero_shot = ZeroShot(config) if config.model.zero_shot is not None else None

    def _initialise(self, table: nn.Embedding, name: str) -> None:
        settings = self.schema.table(name)
        mean, width = settings.init_mean, settings.init_range
        nn.init.uniform_(table.weight, mean - width, mean + width)

    def table(self, name: str) -> nn.Embedding:
        """Returns the table of that name."""
        found = self.tables[f"table_{name}"]
        assert isinstance(found, nn.Embedding)
        return found

    def forward(self, rows: PaddedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the logits [B], and in training the losses by name."""
        with span("lookup"):
            attributes_BAD, context_BCD, items_BID = (
                self.fields(rows, group) for group in (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)
            )
            mask_BT, v_BTD = self.behaviours(rows)
            target_BD = self.output_table(rows.ids[self.target])
        lengths_B, actions_BT = rows.lengths[self.sequence], rows.ids[self.action]
        losses: dict[str, Tensor] = {}
        cold_B = rows.is_cold_B
        if self.zero_shot is not None:
            num_numeric = len(self.schema.numeric(Group.ATTRIBUTE))
            with span("zero_shot"):
                virtual_BTD, losses = self.zero_shot(
                    attributes_BAD.detach(),
                    rows.numeric_BN[:, :num_numeric],
                    v_BTD.detach(),
                    mask_BT,
                    ~cold_B,
                )
            losses = losses if self.training else {}
            v_BTD = torch.where(cold_B[:, None, None], virtual_BTD.detach(), v_BTD)
            lengths_B = torch.where(cold_B, v_BTD.shape[1], lengths_B)
            actions_BT = actions_BT.masked_fill(cold_B[:, None], 0)
        groups = [part.flatten(1) for part in (attributes_BAD, items_BID, context_BCD)]
        fields_BX = torch.cat([*groups, rows.numeric_BN], dim=1)
        with span("ranking"):
            logits_B, before_BD = self.dmr(
                fields_BX, v_BTD, lengths_B, actions_BT, items_BID[:, 0], target_BD
            )
            if self.training:
                counts_B = lengths_B >= _MIN_MATCH_LENGTH
                if self.zero_shot is not None:
                    counts_B = counts_B & ~cold_B
                losses |= self._ranking_losses(logits_B, before_BD, rows, counts_B)
        return logits_B, losses

    def total_loss(self, losses: dict[str, Tensor]) -> Tensor:
        """Computes the weighted sum of the losses."""
        weighted = [
            self.match_weight * loss if name == "L_match" else loss for name, loss in losses.items()
        ]
        return torch.stack(weighted).sum()

    def vectors(self, column: str, rows: PaddedBatch) -> Tensor:
        """Looks up a column's ids: [B, D], or [B, T, D] for a list."""
        found: Tensor = self.table(self.schema.table_of(column))(rows.ids[column])
        return found

    def behaviours(self, rows: PaddedBatch) -> tuple[Tensor, Tensor]:
        """Looks up behaviours times actions: the mask [B, T] of real positions, vectors [B, T, D].

        Vectors of padding are zeros.
        """
        num_positions = rows.ids[self.sequence].shape[1]
        order_T = torch.arange(num_positions, device=rows.labels_B.device)
        mask_BT = order_T < rows.lengths[self.sequence][:, None]
        joined_BTD = self.vectors(self.sequence, rows) * self.vectors(self.action, rows)
        return mask_BT, joined_BTD * mask_BT[:, :, None]

    def fields(self, rows: PaddedBatch, group: Group) -> Tensor:
        """Looks up the fields [B, F, D] of a group; a list's is the mean of its vectors."""
        found = []
        for name in self.schema.fields(group):
            vectors = self.vectors(name, rows)
            if name in rows.lengths:
                lengths_B1 = rows.lengths[name][:, None]
                real_BT = torch.arange(vectors.shape[1], device=vectors.device) < lengths_B1
                vectors = (vectors * real_BT[:, :, None]).sum(1) / lengths_B1.clamp(min=1)
            found.append(vectors)
        if not found:  # a schema may have no context
            return self.output_table.weight.new_zeros(len(rows.labels_B), 0, self.schema.dim)
        return torch.stack(found, dim=1)

    def match_loss(self, before_BD: Tensor, rows: PaddedBatch, counts_B: Tensor) -> Tensor:
        """Computes the sampled softmax over the newest behaviour and the negatives.

        It has the log-frequency correction; rows without ``counts_B`` are left out of the mean.
        """
        match = rows.match
        true_B1 = (before_BD * self.output_table(match.last_U)).sum(1, keepdim=True)
        true_B1 = true_B1 - match.last_log_q_U[:, None]
        others_BK = before_BD @ self.output_table(match.negatives_K).T - match.negatives_log_q_K
        others_BK = others_BK.masked_fill(match.last_U[:, None] == match.negatives_K, -torch.inf)
        classes_B = torch.zeros_like(match.last_U)
        scores = torch.cat([true_B1, others_BK], dim=1)
        losses_B = functional.cross_entropy(scores, classes_B, reduction="none")
        return (losses_B * counts_B).sum() / counts_B.sum().clamp(min=1)

    def _ranking_losses(
        self, logits_B: Tensor, before_BD: Tensor, rows: PaddedBatch, counts_B: Tensor
    ) -> dict[str, Tensor]:
        return {
            "L_rt": functional.binary_cross_entropy_with_logits(logits_B, rows.labels_B),
            "L_match": self.match_loss(before_BD, rows, counts_B),
        }
