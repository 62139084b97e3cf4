"""Inference model: the trained towers on tables that rows are gathered from, without TorchRec.

It takes padded ids and returns the outputs that the towers declare. Whatever depends on a user
alone (its fields, virtual behaviours, and what a tower computes from
:attr:`BehaviourSequence.users`) is computed once a user.

Shape letters as in ``towers/inputs.py``; ``U`` users of a request, ``B`` candidates, ``R`` rows of
either, ``S`` columns of a table.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mail_torchrec.calibration.calibrator import Calibrator
from mail_torchrec.data.schema.feature_tables import FeatureTables, output_table
from mail_torchrec.data.schema.schema import Group, Kind, Schema
from mail_torchrec.export.calibrated_clicks import CalibratedClicks
from mail_torchrec.export.table_files import GatherTable
from mail_torchrec.inference.requests import (
    NEW_ITEM_OF_CANDIDATE,
    USER_OF_CANDIDATE,
    InputSpec,
    candidate_columns,
    length_input,
    user_columns,
)
from mail_torchrec.model.cold_rows import ColdUsers
from mail_torchrec.model.features import FeatureEmbeddings, InputAssembler, SequenceEmbeddings
from mail_torchrec.model.mail import Towers
from mail_torchrec.model.step import select_by_cold
from mail_torchrec.model.vector_fields import module_key
from mail_torchrec.towers.inputs import CandidateInputs, RankingInputs
from mail_torchrec.towers.layers.sequences import MatchInputs, position_mask

_TINY = torch.finfo(torch.float32).tiny


class InferenceModel(nn.Module):
    """Scores the candidates of one user's request, or of several.

    Args:
        towers: trained dense part, in evaluation mode.
        tables: gather table of each embedding table.
        inputs: inputs of :meth:`forward`, in order.
        schema: columns and tables.
        feature_tables: columns and the tables that they look up.
        new_user_max_behaviours: users with at most so many behaviours are cold, where the schema
            has no column that says so.
        calibrator: of the clicks; None leaves them as the towers compute them.
        positions: row of the table by position column, the same for all candidates.
    """

    def __init__(
        self,
        towers: Towers,
        tables: Mapping[str, GatherTable],
        inputs: list[InputSpec],
        schema: Schema,
        feature_tables: FeatureTables,
        new_user_max_behaviours: int,
        calibrator: Calibrator | None = None,
        positions: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.towers, self.inputs, self.schema = towers, inputs, schema
        self.feature_tables = feature_tables
        self.new_user_max_behaviours = new_user_max_behaviours
        self.positions = dict(positions or {})
        self.tables = nn.ModuleDict({module_key(name): table for name, table in tables.items()})
        self._assembler = InputAssembler(schema, feature_tables, towers.projections)
        self.calibration = None if calibrator is None else CalibratedClicks(calibrator)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Computes the outputs, in the order of the towers' output specs.

        Args:
            values: the inputs, each shaped as its spec says.
        """
        return tuple(self.outputs(*values).values())

    def outputs(self, *values: Tensor) -> dict[str, Tensor]:
        """Computes the outputs by name, in the order of the towers' output specs.

        Args:
            values: the inputs, each shaped as its spec says.
        """
        given = {spec.name: value for spec, value in zip(self.inputs, values, strict=True)}
        users, inverse_indices_B = self._users(given), given[USER_OF_CANDIDATE]
        is_cold_U = self._is_cold(given, users)
        is_cold_B = is_cold_U.index_select(0, inverse_indices_B)
        candidates = self._candidates(users, inverse_indices_B, given)
        if self.towers.fills_candidates:  # every candidate becomes a user of its own
            users, candidates = candidates.expand_users(users)
            is_cold_U = is_cold_B
        filled = self.towers.fill_cold_users(users, ColdUsers(is_cold_U))
        result = self.towers.rank(candidates.join_users(filled))
        if self.towers.cold_ranking is not None:
            all_U = ColdUsers(is_cold_U, torch.ones_like(is_cold_U))
            as_cold = self.towers.fill_cold_users(users, all_U)
            cold = self.towers.rank(candidates.join_users(as_cold), as_cold=True)
            result = select_by_cold(is_cold_U, is_cold_B, cold, result)
        if self.calibration is not None:
            result = result.with_click_logits(self.calibration(result.output.logits_B))
        return self.towers.output_values(result, filled)

    def _users(self, given: dict[str, Tensor]) -> RankingInputs:
        """Assembles the users' inputs, one row a user; no items."""
        fields = self._fields(given, user_columns(self.schema))
        any_field = next(iter(fields.values()))
        num_users, empty_U0 = any_field.shape[0], any_field[:, :0]
        lengths_U = given[length_input(self.schema.sequences[0])]
        for name, row in self.positions.items():
            # As many ids as users: the exporter would fold the lookup of one constant id.
            ids_U = torch.full_like(lengths_U, row)
            fields[name] = self._gather(self.schema.table_of(name), ids_U)
        names = self.schema.numeric(Group.ATTRIBUTE, Group.CONTEXT)
        numeric_UN = torch.stack([given[name] for name in names], dim=1) if names else empty_U0
        sequences = {
            name: self._assembler.behaviour_sequence(name, self._sequence(name, given), empty_U0)
            for name in self.schema.sequences
        }
        return RankingInputs(
            self._assembler.stack_fields(Group.ATTRIBUTE, fields, num_users),
            self._assembler.stack_fields(Group.CONTEXT, fields, num_users),
            empty_U0.unsqueeze(2),
            numeric_UN,
            sequences,
            self._assembler.first_order_sum(fields, Group.ATTRIBUTE, Group.CONTEXT),
        )

    def _is_cold(self, given: dict[str, Tensor], users: RankingInputs) -> Tensor:
        """Tells which users [U] the model scores without their behaviours."""
        if self.schema.new_user is not None:
            return given[self.schema.new_user]
        lengths = [sequence.lengths_B for sequence in users.sequences.values()]
        return torch.stack(lengths).sum(0) <= self.new_user_max_behaviours

    def _candidates(
        self, users: RankingInputs, inverse_indices_B: Tensor, given: dict[str, Tensor]
    ) -> CandidateInputs:
        """Assembles what the candidates have beside their users."""
        embeddings = self._item_embeddings(given)
        fields = embeddings.fields
        numeric = [
            users.numeric_BN.index_select(0, inverse_indices_B),
            *(given[name].unsqueeze(1) for name in self.schema.numeric(Group.ITEM)),
        ]
        return CandidateInputs(
            None,
            self._assembler.stack_fields(Group.ITEM, fields, inverse_indices_B.shape[0]),
            torch.cat(numeric, dim=1),
            {name: self._assembler.target_embedding(name, fields) for name in users.sequences},
            embeddings.match,
            self._assembler.first_order_sum(fields, Group.ITEM),
            inverse_indices_B,
        )

    def _item_embeddings(self, given: dict[str, Tensor]) -> FeatureEmbeddings:
        """Gathers the vectors of the candidates, and makes those of new items."""
        match = {name: self._match(name, given) for name in self.feature_tables.match}
        fields = self._fields(given, candidate_columns(self.schema))
        embeddings = FeatureEmbeddings(fields, {}, match)
        if (items := self.towers.virtual_items) is None:
            return embeddings
        numbers = [given[name].unsqueeze(1) for name in self.schema.numeric(Group.ITEM)]
        inverse_indices_B = given[USER_OF_CANDIDATE]
        numeric_BN = (
            torch.cat(numbers, dim=1) if numbers else inverse_indices_B.unsqueeze(1)[:, :0].float()
        )
        is_new_B = given[self.schema.new_item or NEW_ITEM_OF_CANDIDATE]
        return items.fill(embeddings, items(embeddings, given, numeric_BN), is_new_B)

    def _match(self, name: str, given: dict[str, Tensor]) -> MatchInputs:
        """Gathers the output-side vectors of the targets.

        There are no negatives, as no match loss is computed.
        """
        column = self.schema.match_column(name)
        ids_B = given[self.schema.target_of(column)]
        stored_BS = self._gather(output_table(self.schema.table_of(column)), ids_B)
        target_BD = stored_BS[:, : self.schema.table_dim(column)]
        zeros_B = torch.zeros_like(target_BD[:, 0])
        return MatchInputs(
            target_BD,
            torch.zeros_like(target_BD),
            target_BD[:0],
            ids_B,
            ids_B[:0],
            zeros_B,
            zeros_B[:0],
        )

    def _fields(self, given: dict[str, Tensor], columns: list[str]) -> dict[str, Tensor]:
        """Gathers one stored vector [R, S] a row of each field.

        It is an id's own vector, or the mean of a list's, zeros for an empty list. Vector columns
        are projected, [R, D].
        """
        vectors = {name: given[name] for name in columns if name in self.schema.vectors()}
        fields: dict[str, Tensor] = self.towers.vector_fields(vectors)
        for name in columns:
            column = self.schema.columns[name]
            if name not in self.schema.id_columns or column.group is Group.BEHAVIOUR:
                continue
            stored = self._gather(self.schema.table_of(name), given[name])
            if column.kind is Kind.LIST:
                weights = given.get(self.schema.list_weights.get(name, ""))
                stored = _masked_mean(stored, given[length_input(name)], weights)
            fields[name] = stored
        return fields

    def _sequence(self, name: str, given: dict[str, Tensor]) -> SequenceEmbeddings:
        """Gathers the stored vectors [U, T, S] of the parts of a behaviour sequence."""
        lengths_U = given[length_input(name)]
        mask_UT = position_mask(lengths_U, self.schema.columns[name].max_length)
        mask_UT1 = mask_UT.unsqueeze(2)
        parts = {
            part: self._gather(self.schema.table_of(part), given[part]) * mask_UT1
            for part in self.schema.joined_parts(name)
        }
        if (action := self.schema.action_of(name)) is None:
            return SequenceEmbeddings(parts, lengths_U)
        return SequenceEmbeddings(parts, lengths_U, given[action] * mask_UT)

    def _gather(self, table: str, ids: Tensor) -> Tensor:
        """Gathers the rows [..., S] of ids [...]."""
        vectors: Tensor = self.tables[module_key(table)](ids)
        return vectors


def buffer_name(table: str, part: str) -> str:
    """Returns the name of a part of a table (``weight``, ``scale``, ...) in the traced graph."""
    return f"tables.{module_key(table)}.{part}"


def _masked_mean(stored_RLS: Tensor, lengths_R: Tensor, weights_RL: Tensor | None) -> Tensor:
    """Means the first ``lengths_R`` vectors of each row, by their weights if there are any, [R, S].

    It is zeros where all weights are 0.
    """
    mask_RL = position_mask(lengths_R, stored_RLS.shape[1])
    if weights_RL is not None:
        shares_RL = weights_RL * mask_RL
        shares_RL = shares_RL / shares_RL.amax(1, keepdim=True).clamp(min=_TINY)
        shares_RL = shares_RL / shares_RL.sum(1, keepdim=True).clamp(min=_TINY)
        return (stored_RLS * shares_RL.unsqueeze(2)).sum(1)
    sums_RS = (stored_RLS * mask_RL.unsqueeze(2)).sum(1)
    return sums_RS / lengths_R.clamp(min=1).unsqueeze(1)
