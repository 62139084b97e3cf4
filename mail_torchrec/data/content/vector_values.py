"""Columns of vectors: lists of numbers of one length, checked row by row.

Shapes: ``R`` rows, ``E`` elements of a vector, ``G`` rows that are not null.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mail_torchrec.data.parquet.arrow import one_chunk
from mail_torchrec.data.parquet.logical_types import plain_vectors

LARGEST = float(np.finfo(np.float32).max)
"""Largest element of a vector."""
_NULLS = "write null for a vector that is unknown (nulls become the training mean)"

Vectors = npt.NDArray[np.float64]
"""Vectors [R, E] in full precision, before they are standardised."""


def vector_values(
    column: pa.ChunkedArray,
    length: int | None,
    *,
    file: str,
    name: str,
    rows: str = "",
    first_row: int = 0,
) -> Vectors:
    """Converts a column of vectors to an array [R, E]; a null becomes NaN in every element.

    Args:
        column: lists of numbers, [R], of any Arrow type of lists.
        length: E; None takes that of the first vector, and 0 where all rows are null.
        file: for messages.
        name: of the column, for messages.
        rows: where the rows of messages are counted, such as ``of its row group``.
        first_row: number of the column's first row there.

    Raises:
        ValueError: vectors of another length, or an element that is null, NaN, infinite or beyond
            the range of float32; with file, column, row and value.
    """
    vectors = one_chunk(pa.chunked_array([plain_vectors(column)]))
    is_null_R = pc.is_null(vectors).to_numpy(zero_copy_only=False)
    rows_G = np.flatnonzero(~is_null_R)
    lengths_G = np.diff(vectors.offsets.to_numpy())[rows_G]
    if length is None:
        length = max(int(lengths_G[0]), 1) if len(rows_G) else 0
    where = f"{file}: column '{name}' should hold"
    if len(wrong := np.flatnonzero(lengths_G != length)):
        raise ValueError(
            f"{where} vectors of {length} numbers, received {lengths_G[wrong[0]]} in row "
            f"{first_row + rows_G[wrong[0]]}{rows and ' '}{rows}; give all rows vectors of one "
            f"length, and {_NULLS}"
        )
    elements = vectors.flatten()  # without those of null rows
    values_GE: Vectors = elements.to_numpy(zero_copy_only=False).reshape(len(rows_G), length)
    is_number_GE = np.abs(values_GE) <= LARGEST
    if not is_number_GE.all():
        place, element = (int(index) for index in np.argwhere(~is_number_GE)[0])
        found = elements[place * length + element]
        raise ValueError(
            f"{where} finite numbers of 32 bits, received "
            f"{found.as_py() if found.is_valid else 'null'} in element {element} of row "
            f"{first_row + rows_G[place]}{rows and ' '}{rows}; {_NULLS}"
        )
    if len(rows_G) == len(is_null_R):
        return values_GE
    values_RE = np.full((len(is_null_R), length), np.nan)
    values_RE[rows_G] = values_GE
    return values_RE
