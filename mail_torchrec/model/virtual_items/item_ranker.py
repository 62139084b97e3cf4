"""Scores of a step's rows with other item vectors, all else constant: what teaches the generator.

Shape letters as in ``model/virtual_items/generator.py``.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mail_torchrec.data.reading.batch import map_tensors
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.model.constant_towers import by_constant_towers
from mail_torchrec.model.dense_modules import DenseModules
from mail_torchrec.model.features import FeatureEmbeddings, InputAssembler
from mail_torchrec.model.step import StepInputs
from mail_torchrec.model.virtual_items.generator import VirtualItemInputs
from mail_torchrec.towers.inputs import CandidateInputs, RankingInputs


@dataclass(frozen=True)
class ItemRanker:
    """Ranks rows by the ranking tower, itself a constant, with generated or real item vectors.

    Args:
        dense: the towers.
        step: inputs of the step.
        assembler: puts tower inputs together.
        users: the users' inputs, cold ones filled.
    """

    dense: DenseModules
    step: StepInputs
    assembler: InputAssembler
    users: RankingInputs

    @property
    def _inputs(self) -> VirtualItemInputs:
        assert self.step.items is not None
        return self.step.items

    def logits(self, *, virtual: bool, rows_B: Tensor | None = None) -> Tensor:
        """Computes logits [B] of the rows' users, with a gradient to the generator alone.

        Args:
            virtual: score all items on generated vectors; else on those of their ids, for which
                there is no gradient.
            rows_B: row whose item each user is shown (int64); None for their own.
        """
        return by_constant_towers(self.dense, lambda: self._logits(virtual, rows_B))

    def _logits(self, virtual: bool, rows_B: Tensor | None) -> Tensor:
        given, items = self._inputs, self.dense.virtual_items
        assert items is not None
        # WALL: tables are constants to these losses.
        embeddings: FeatureEmbeddings = map_tensors(given.embeddings, Tensor.detach)
        if virtual:
            is_put_B = torch.ones(len(given.ids_B), dtype=torch.bool, device=given.ids_B.device)
            embeddings = items.put(embeddings, given.generated_BG, is_put_B)
        numeric_BN = given.numeric_BN
        if rows_B is not None:
            schema = self.assembler.schema
            embeddings = items_of_rows(embeddings, schema, rows_B)
            numeric_BN = item_numbers_of_rows(numeric_BN, schema, rows_B)
        candidates = self._candidates(embeddings, numeric_BN)
        users = map_tensors(self.users, Tensor.detach)
        return self.dense.rank(candidates.join_users(users)).output.logits_B

    def _candidates(self, embeddings: FeatureEmbeddings, numeric_BN: Tensor) -> CandidateInputs:
        """The step's candidates, with the items of other embeddings."""
        own: CandidateInputs = map_tensors(self.step.candidates.without_negatives(), Tensor.detach)
        other = self.assembler.candidate_inputs(embeddings, numeric_BN, None)
        matches = {
            name: replace(match, target_BD=other.matches[name].target_BD)
            for name, match in own.matches.items()
        }
        return replace(
            own,
            items_BID=other.items_BID,
            numeric_BN=numeric_BN,
            targets=other.targets,
            matches=matches,
            first_order_B=other.first_order_B,
        )


def items_of_rows(
    embeddings: FeatureEmbeddings, schema: Schema, rows_B: Tensor
) -> FeatureEmbeddings:
    """Gives each row the item of another row: its id, other columns and content vectors.

    Users and context stay.

    Args:
        embeddings: looked-up vectors.
        schema: says which columns are the items'.
        rows_B: row whose item each row gets (int64).
    """
    names = {*schema.fields(Group.ITEM), *schema.vectors(Group.ITEM)}
    fields = {
        name: value.index_select(0, rows_B) if name in names else value
        for name, value in embeddings.fields.items()
    }
    match = {
        name: replace(found, target_BD=found.target_BD.index_select(0, rows_B))
        for name, found in embeddings.match.items()
    }
    return FeatureEmbeddings(fields, embeddings.sequences, match)


def item_numbers_of_rows(numeric_BN: Tensor, schema: Schema, rows_B: Tensor) -> Tensor:
    """Gives each row the numeric item features of another row, which come last, [B, N].

    Args:
        numeric_BN: all numeric features.
        schema: says how many are the items'.
        rows_B: row whose item each row gets (int64).
    """
    first = numeric_BN.shape[1] - len(schema.numeric(Group.ITEM))
    return torch.cat([numeric_BN[:, :first], numeric_BN[rows_B, first:]], dim=1)
