"""Samples of the training and test rows, encoded, with the simulated cold start left out.

Shapes: ``R`` rows.
"""

from dataclasses import dataclass

import numpy as np

from mail_torchrec.config import Config
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.parquet.arrow import Bools
from mail_torchrec.data.reading.chunk import Chunk, ChunkEncoder
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import PIECE_ROWS, Source
from mail_torchrec.data_check.scan import spread
from mail_torchrec.utils.progress import progress_bar

NATURAL = ColdStartSettings()
"""No simulated cold start: new users are those of the data."""
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
    """

    schema: Schema
    train: Chunk
    test: Chunk
    num_rows: tuple[int, int]

    @property
    def is_whole(self) -> bool:
        """True where all rows of the files were read."""
        return self.num_rows == (len(self.train), len(self.test))


def read_sample(config: Config, max_rows: int) -> SampledRows:
    """Reads rows of training and of test, from row groups spread evenly over all files.

    Args:
        config: names the files, and what their columns are.
        max_rows: rows of each part, at most.

    Raises:
        ValueError: files or values that training could not read either, or labels that are all one.
    """
    schema, data = config.schema_, config.data
    source = Source(data.path(data.train), schema)
    test_source = Source(data.path(data.test), schema, source.types)
    chosen = source.select(spread(source.row_groups, max_rows))
    encoders = fit_encoders(chosen, schema, NATURAL)
    train = _read(chosen, config, encoders, max_rows)
    chosen = test_source.select(spread(test_source.row_groups, max_rows))
    test = _read(chosen, config, encoders, max_rows)
    for name, rows in (("training", train), ("test", test)):
        check_labels(rows.labels_R, f"the {len(rows):,} {name} rows that were read", schema)
    return SampledRows(schema, train, test, (source.num_rows, test_source.num_rows))


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


def _read(source: Source, config: Config, encoders: Encoders, max_rows: int) -> Chunk:
    """Reads as many rows of each row group, of a large one pieces spread evenly."""
    encode = ChunkEncoder(config.schema_, encoders, NATURAL, config.data.new_user_max_behaviours)
    quota = max(1, max_rows // len(source.row_groups))
    chunks: list[Chunk] = []
    for group in progress_bar(source.row_groups, desc=source.path, unit="row group"):
        num_pieces, wanted = source.num_pieces(group), quota
        num_read = -(-quota // PIECE_ROWS)
        for number, piece in enumerate(source.pieces(group)):
            is_chosen = (number + 1) * num_read // num_pieces > number * num_read // num_pieces
            if is_chosen and wanted > 0:
                chunks.append(encode(piece.slice(0, wanted), source.file(group)))
                wanted -= len(chunks[-1])
    return Chunk.concatenate(chunks)


def target_item(schema: Schema) -> str:
    """Returns the column of the target item's id: that of the first behaviour sequence."""
    return schema.target_of(schema.sequences[0])
