"""Rows of tables that a continued run gives to new ids: fresh weights, no optimizer state."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mail_torchrec.config import Config
from mail_torchrec.data.content.table_vectors import open_table_vectors
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.ids.policy import NewOwners
from mail_torchrec.data.schema.feature_tables import output_table
from mail_torchrec.embeddings.initial_weights import (
    local_shards,
    overwrite_rows,
    redraw_rows,
)
from mail_torchrec.optim.assignment import TABLE_GROUPS
from mail_torchrec.train.assembly import AssembledModel, table_keys


def reset_rows(
    assembled: AssembledModel,
    config: Config,
    encoders: Encoders,
    owners: Mapping[str, NewOwners],
) -> None:
    """Gives rows of new owners the weights and the optimizer state that they have in a new run.

    Where a table begins with vectors of a file (`init_from`), they begin with theirs.

    The rows of the output tables (V') are theirs too. All other rows stay as they are, to the bit.
    Numbers that an optimizer keeps of a whole table, such as Adam's steps, stay too.

    Args:
        assembled: with the weights and the optimizer state of the run that is continued.
        config: of the continued run.
        encoders: of the continued run.
        owners: rows with new owners, by table of the schema.
    """
    owners = {table: found for table, found in owners.items() if len(found.rows_N)}
    keys = table_keys(config, assembled.feature_tables, encoders)
    schema = config.with_dims(encoders.num_rows).schema_
    redraw_rows(assembled.model, keys, owners, schema, config.train.seed)
    of_ids = {table: encoders.tables[table] for table in owners}
    given = open_table_vectors(schema, of_ids, config.data.path)
    overwrite_rows(assembled.model, keys, given, owners)
    of_keys = {
        key: owners[table]
        for key, name in keys.items()
        for table in owners
        if name in (table, output_table(table))
    }
    if assembled.touched is not None:
        for key, found in of_keys.items():
            assembled.touched.mark(keys[key], found.rows_N)
    weights = assembled.model.state_dict()
    for group in assembled.optimizer:
        if group.name in TABLE_GROUPS:
            for key, state in group.state.items():
                if key in of_keys:
                    for value in state.values():
                        _zero_state(value, weights[key], of_keys[key])


@torch.no_grad()
def _zero_state(state: Tensor, weights: Tensor, owners: NewOwners) -> None:
    """Zeroes this rank's optimizer state of some rows.

    Args:
        state: one number an element or a row of the table; a number for the whole table is left.
        weights: ``[rows, columns]``, sharded as the state is. The parts of both come in one order;
            row-wise state of column shards is numbered otherwise.
        owners: the rows.
    """
    parts = zip(local_shards(state), local_shards(weights), strict=True)
    for (part, _), (shard, (first_row, _)) in parts:
        if part.dim() and part.shape[0] == shard.shape[0]:
            places_N = torch.from_numpy(owners.rows_N) - first_row
            inside_N = (places_N >= 0) & (places_N < shard.shape[0])
            part[places_N[inside_N].to(part.device)] = 0
