"""Checks the test or validation rows of a run before it trains."""

from collections.abc import Mapping, Sequence

from mail_torchrec.data.checks.values import check_numbers, check_values, number_columns
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import RowGroup, Source
from mail_torchrec.utils.progress import progress_bar

_MAX_GROUPS = 16
"""Row groups of which all columns are looked at, in their first rows."""


def check_evaluated_rows(
    source: Source,
    schema: Schema,
    vector_dims: Mapping[str, int],
    row_groups: Sequence[RowGroup],
    *,
    progress: bool = True,
) -> None:
    """Checks the numbers of all rows, and of some rows all columns.

    Args:
        source: validation or test files.
        schema: their columns.
        vector_dims: number of elements of every vector column in the training rows.
        row_groups: of the source, those that are to be checked here.
        progress: show a progress bar.

    Raises:
        ValueError: a value that the evaluation would refuse; with file, row group, row and column.
    """
    groups, of_numbers = source.row_groups, map(schema.file_column, number_columns(schema))
    columns = sorted(set(of_numbers) - source.constants.keys())
    count = min(len(groups), _MAX_GROUPS)
    sampled = {groups[index * len(groups) // count] for index in range(count)}
    bar = progress_bar(row_groups, desc="evaluated rows", unit="row group", disable=not progress)
    for group in bar:
        where = source.file(group)
        try:
            for table in source.pieces(group, columns):
                check_numbers(source.with_constants(table), schema, where)
            if group in sampled:
                check_values(next(source.pieces(group)), schema, vector_dims, where)
        except ValueError:
            if source.is_filtered or source.num_pieces(group) > 1:
                # With the row's number in the row group.
                check_values(source.whole(group), schema, vector_dims, where)
            raise
