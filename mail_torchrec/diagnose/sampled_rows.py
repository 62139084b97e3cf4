"""Samples of the training and test rows, encoded, with the simulated cold start left out.

Shapes: ``R`` rows.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.history import column_ids
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.data.ids.policy import UNKNOWN_ROW
from mail_torchrec.data.items.candidate_item import item_column
from mail_torchrec.data.parquet.arrow import Bools
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import PIECE_ROWS, Source
from mail_torchrec.data_check.scan import spread
from mail_torchrec.diagnose.item_rule import NATURAL, ItemRule
from mail_torchrec.utils.progress import progress_bar

MIN_CLICKED = 50
"""Rows of either label that an AUC is computed from, at least."""


@dataclass(frozen=True)
class SampledRows:
    """Rows that the trees are fitted on and measured on.

    Args:
        schema: columns.
        train: training rows.
        test: test rows.
        num_rows: rows of the training files, and of the test files.
        item_rule: the rule for new items in words; None without one.
        item: column of the candidate item, whose ids are new or not; None for the target of the
            first behaviour sequence.
        is_new_item_R: test rows of new items by the rule; None without one.
    """

    schema: Schema
    train: Chunk
    test: Chunk
    num_rows: tuple[int, int]
    item_rule: str | None = None
    item: str | None = None
    is_new_item_R: Bools | None = None

    @property
    def is_whole(self) -> bool:
        """True where all rows of the files were read."""
        return self.num_rows == (len(self.train), len(self.test))


def read_sample(config: Config, max_rows: int, rule: ItemRule | None = None) -> SampledRows:
    """Reads rows of training and of test, from row groups spread evenly over all files.

    Args:
        config: names the files, and what their columns are.
        max_rows: rows of each part, at most.
        rule: for new items. Its test rows keep the ids that training has not apart, below 0.

    Raises:
        ValueError: files or values that training could not read either, or labels that are all one.
    """
    schema, data = config.schema_, config.data
    source = Source(data.path(data.train), schema)
    test_source = Source(data.path(data.test), schema, source.types)
    chosen = source.select(spread(source.row_groups, max_rows))
    encoders = fit_encoders(chosen, schema, NATURAL)
    train, _ = _read(chosen, config, encoders, max_rows, rule)
    chosen = test_source.select(spread(test_source.row_groups, max_rows))
    test, is_new_item_R = _read(chosen, config, encoders, max_rows, rule)
    for name, rows in (("training", train), ("test", test)):
        check_labels(rows.labels_R, f"the {len(rows):,} {name} rows that were read", schema)
    num_rows = source.num_rows, test_source.num_rows
    if rule is None:
        hidden = data.cold_start.items
        item = None if hidden is None else item_column(schema, None, hidden)
        return SampledRows(schema, train, test, num_rows, item=item)
    return SampledRows(schema, train, test, num_rows, rule.text, rule.cohorts.item, is_new_item_R)


def check_labels(labels_R: Bools, rows: str, schema: Schema) -> None:
    """Checks that rows have both labels, often enough for an AUC.

    Raises:
        ValueError: fewer than 50 rows of a label.
    """
    for label in (False, True):
        if (count := int(np.count_nonzero(labels_R == label))) < MIN_CLICKED:
            raise ValueError(
                f"column '{schema.file_column(schema.label)}' should be {int(label)} in at least "
                f"{MIN_CLICKED} of {rows}, received {count}; name the label, or give more rows "
                "(--rows, data.train, data.test)"
            )


def _read(
    source: Source, config: Config, encoders: Encoders, max_rows: int, rule: ItemRule | None
) -> tuple[Chunk, Bools]:
    """Reads rows of each row group, of a large one pieces spread evenly; and tells new items'."""
    encode = ChunkEncoder(config.schema_, encoders, NATURAL, config.data.new_user_max_behaviours)
    quotas = row_quotas([group.num_rows for group in source.row_groups], max_rows)
    chunks: list[Chunk] = []
    is_new = [np.zeros(0, np.bool_)]
    for group, quota in zip(
        progress_bar(source.row_groups, desc=source.path, unit="row group"), quotas, strict=True
    ):
        num_pieces, wanted = source.num_pieces(group), quota
        num_read = -(-quota // PIECE_ROWS)
        for number, piece in enumerate(source.pieces(group)):
            is_chosen = (number + 1) * num_read // num_pieces > number * num_read // num_pieces
            if is_chosen and wanted > 0:
                table, file = piece.slice(0, wanted), source.file(group)
                chunks.append(encode(table, file))
                wanted -= len(chunks[-1])
                if rule is not None:
                    is_new.append(rule.is_new(table, file))
                    _number_unknown(chunks[-1], table, rule, file)
    return Chunk.concatenate(chunks), np.concatenate(is_new)


def row_quotas(sizes: list[int], max_rows: int) -> list[int]:
    """Shares out rows among row groups alike; what small ones leave over goes to the others.

    Args:
        sizes: rows of each row group.
        max_rows: rows to share out; each row group has at least one.
    """
    quotas, left = [0] * len(sizes), max_rows
    by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
    for number, place in enumerate(by_size):
        quotas[place] = max(1, min(sizes[place], left // (len(sizes) - number)))
        left -= quotas[place]
    return quotas


def _number_unknown(chunk: Chunk, table: pa.Table, rule: ItemRule, file: str) -> None:
    """Gives items that training has not ids of their own, below 0; they share one row else."""
    schema, item = rule.cohorts.schema, rule.cohorts.item
    ids_R = chunk.scalars_CR[schema.scalars.index(item)]
    hashes_R = hash64(column_ids(table, schema, item, file), "item")
    own_R = -1 - (hashes_R >> np.uint64(1)).astype(np.int64)
    np.copyto(ids_R, own_R, where=ids_R == UNKNOWN_ROW)


def target_item(schema: Schema) -> str:
    """Returns the column of the target item's id: that of the first behaviour sequence."""
    return schema.target_of(schema.sequences[0])
