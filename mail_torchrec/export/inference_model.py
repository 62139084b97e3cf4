"""The plain twin of a trained model: padded ids in, probabilities out; the trainer's towers on tables that are gathered from.

Shape letters as in ``towers/inputs.py``; ``U`` users of a request, ``B`` candidates. What depends
on a user alone (its feature_tables, virtual behaviours, and what a tower computes from
:attr:`BehaviourSequence.users`) is computed once a user.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from mail_torchrec.data.schema.feature_tables import FeatureTables, output_table
from mail_torchrec.data.schema.schema import Group, Kind, Schema
from mail_torchrec.export.table_files import Table
from mail_torchrec.inference.requests import (
    USER_OF_CANDIDATE,
    Input,
    candidate_columns,
    user_columns,
)
from mail_torchrec.model.features import InputAssembler, StoredSequence
from mail_torchrec.model.mail import Towers, chosen
from mail_torchrec.towers.inputs import Match, RankingInputs, Rows, position_mask

PROBABILITIES = {"click": "pctr", "cvr": "pcvr", "ctcvr": "pctcvr"}
"""Task -> the name of its output."""

Vectors = dict[str, tuple[Tensor, Tensor]]


class Twin(nn.Module):
    """Scores candidates, [B], by one user's request or by several.

    Args:
        towers: the trained dense part, in evaluation mode.
        tables: table -> where to look it up.
        inputs: of :meth:`forward`, in order.
        schema: columns and tables.
        feature_tables: which columns look up which tables.
        new_user_max_behaviours: users with at most so many are new, where the schema has no column
            that says so.
    """

    def __init__(
        self,
        towers: Towers,
        tables: Mapping[str, Table],
        inputs: list[Input],
        schema: Schema,
        feature_tables: FeatureTables,
        new_user_max_behaviours: int,
    ) -> None:
        super().__init__()
        self.towers, self.inputs, self.schema, self.feature_tables = (
            towers,
            inputs,
            schema,
            feature_tables,
        )
        self.new_user_max_behaviours = new_user_max_behaviours
        self.tables = nn.ModuleDict(
            {f"{name}_": table for name, table in tables.items()}
        )  # so no name is one of ModuleDict's own
        self._assemble = InputAssembler(schema, feature_tables)
        zero_shot = towers.zero_shot
        self._has_virtual = zero_shot is not None or towers.filler is not None
        self.fills_rows = zero_shot is not None and zero_shot.settings.input_fields == "all_fields"

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The values of :meth:`outputs`."""
        return tuple(self.outputs(*values).values())

    def outputs(self, *values: Tensor) -> dict[str, Tensor]:
        """By name: probabilities [B] first, then what is there on demand.

        ``NAME.virtual`` [U, T, d], the virtual behaviours of a sequence, zeros for old users; where
        the tower has such vectors, ``NAME.user`` [U, D] and ``NAME.item`` [B, D], whose product is
        its idea of the user's liking.
        """
        given = {spec.name: value for spec, value in zip(self.inputs, values, strict=True)}
        users, inverse_indices_B = self._users(given), given[USER_OF_CANDIDATE]
        is_cold_U, rows = self._is_cold(given, users), self._rows(users, inverse_indices_B, given)
        if (
            self.fills_rows
        ):  # each candidate with a user of its own, since its virtual behaviours are its own
            (users, rows), is_cold_U = (
                rows.apart(users),
                is_cold_U.index_select(0, inverse_indices_B),
            )
            inverse_indices_B = torch.arange(
                inverse_indices_B.shape[0], device=inverse_indices_B.device
            )
        filled = self.towers.filled(users, is_cold_U)
        ranked, tasks = self.towers.ranked(rows.of(filled))
        if self.towers.ranking_of_new is not None:
            is_cold_B = is_cold_U.index_select(0, inverse_indices_B)
            as_new = self.towers.filled(users, is_cold_U, torch.ones_like(is_cold_U))
            of_new = self.towers.ranked(rows.of(as_new), as_new=True)
            vectors = _chosen_vectors(is_cold_U, is_cold_B, of_new[0].vectors, ranked.vectors)
            ranked, tasks = chosen(is_cold_B, of_new, (ranked, tasks))
            ranked = replace(ranked, vectors=vectors)
        outputs = {
            PROBABILITIES[task]: torch.sigmoid(logits_B)
            for task, logits_B in ({"click": ranked.logits_B} | tasks).items()
        }
        for name, sequence in filled.sequences.items() if self._has_virtual else ():
            outputs[f"{name}.virtual"] = sequence.values_BTD * sequence.is_virtual_B[:, None, None]
        for name, (user_UD, item_BD) in ranked.vectors.items():
            outputs |= {f"{name}.user": user_UD, f"{name}.item": item_BD}
        return outputs

    def _users(self, given: dict[str, Tensor]) -> RankingInputs:
        """The users' side, one row a user; no items."""
        fields = self._fields(given, user_columns(self.schema))
        one = next(iter(fields.values()))
        num_users, none_U = one.shape[0], one[:, :0]
        names = self.schema.numeric(Group.ATTRIBUTE, Group.CONTEXT)
        return RankingInputs(
            self._assemble.group(Group.ATTRIBUTE, fields, num_users),
            self._assemble.group(Group.CONTEXT, fields, num_users),
            none_U.unsqueeze(2),
            torch.stack([given[name] for name in names], dim=1) if names else none_U,
            {
                name: self._assemble.sequence(name, self._sequence(name, given), none_U)
                for name in self.schema.sequences
            },
            self._assemble.first_order(fields, Group.ATTRIBUTE, Group.CONTEXT),
        )

    def _is_cold(self, given: dict[str, Tensor], users: RankingInputs) -> Tensor:
        if self.schema.new_user is not None:
            return given[self.schema.new_user]
        return (
            torch.stack([sequence.lengths_B for sequence in users.sequences.values()]).sum(0)
            <= self.new_user_max_behaviours
        )

    def _rows(
        self, users: RankingInputs, inverse_indices_B: Tensor, given: dict[str, Tensor]
    ) -> Rows:
        """What the candidates have beside their users."""
        fields = self._fields(given, candidate_columns(self.schema))
        numeric = [
            users.numeric_BN.index_select(0, inverse_indices_B),
            *(given[name].unsqueeze(1) for name in self.schema.numeric(Group.ITEM)),
        ]
        matches = {name: self._match(name, given) for name in self.feature_tables.match}
        return Rows(
            None,
            self._assemble.group(Group.ITEM, fields, inverse_indices_B.shape[0]),
            torch.cat(numeric, dim=1),
            {name: self._assemble.target(name, fields) for name in users.sequences},
            matches,
            self._assemble.first_order(fields, Group.ITEM),
            inverse_indices_B,
        )

    def _match(self, name: str, given: dict[str, Tensor]) -> Match:
        """The output-side vectors of the targets; without negatives, as there is no match loss to compute."""
        ids_B = given[self.schema.target_of(name)]
        target_BD = self._look_up(output_table(self.schema.table_of(name)), ids_B)[
            :, : self.schema.table_dim(name)
        ]
        none_B = torch.zeros_like(target_BD[:, 0])
        return Match(
            target_BD,
            torch.zeros_like(target_BD),
            target_BD[:0],
            ids_B,
            ids_B[:0],
            none_B,
            none_B[:0],
        )

    def _fields(self, given: dict[str, Tensor], columns: list[str]) -> dict[str, Tensor]:
        """One stored vector a row of each field: an id's own, or the mean of a list's, zeros where it is empty."""
        fields = {}
        for name in columns:
            column = self.schema.columns[name]
            if name not in self.schema.id_columns or column.group is Group.BEHAVIOUR:
                continue
            stored = self._look_up(self.schema.table_of(name), given[name])
            if column.kind is Kind.LIST:
                lengths_R = given[f"{name}.length"]
                mask_RL = position_mask(lengths_R, stored.shape[1])
                stored = (stored * mask_RL.unsqueeze(2)).sum(1) / lengths_R.clamp(min=1).unsqueeze(
                    1
                )
            fields[name] = stored
        return fields

    def _sequence(self, name: str, given: dict[str, Tensor]) -> StoredSequence:
        lengths_U = given[f"{name}.length"]
        mask_UT = position_mask(lengths_U, self.schema.columns[name].max_length)
        values_UTS = self._look_up(self.schema.table_of(name), given[name]) * mask_UT.unsqueeze(2)
        if (action := self.schema.action_of(name)) is None:
            return StoredSequence(values_UTS, lengths_U)
        actions_UTS = self._look_up(
            self.schema.table_of(action), given[action]
        ) * mask_UT.unsqueeze(2)
        return StoredSequence(values_UTS, lengths_U, given[action] * mask_UT, actions_UTS)

    def _look_up(self, table: str, ids: Tensor) -> Tensor:
        vectors: Tensor = self.tables[f"{table}_"](ids)
        return vectors


def _chosen_vectors(
    is_cold_U: Tensor, is_cold_B: Tensor, of_new: Vectors, of_old: Vectors
) -> Vectors:
    return {
        name: (
            torch.where(is_cold_U.unsqueeze(1), of_new[name][0], user_UD),
            torch.where(is_cold_B.unsqueeze(1), of_new[name][1], item_BD),
        )
        for name, (user_UD, item_BD) in of_old.items()
    }
