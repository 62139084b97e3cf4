"""Checks the test or validation rows of a run before it trains."""

from collections.abc import Iterable

from mail_torchrec.data.checks.values import check_numbers, check_values, number_columns
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.utils.progress import progress_bar
from mail_torchrec.utils.spans import span

_MAX_GROUPS = 16
"""Row groups of which all columns are looked at, in their first rows."""


def check_evaluated_rows(
    sources: Iterable[Source | None], schema: Schema, encoders: Encoders
) -> None:
    """Checks the numbers of all rows, and of some rows all columns.

    Args:
        sources: validation and test files; None where there are none.
        schema: their columns.
        encoders: of the training rows.

    Raises:
        ValueError: a value that the evaluation would refuse; with file, row group, row and column.
    """
    with span("checking the evaluated rows", reads=True):
        for source in sources:
            if source is not None:
                _check(source, schema, encoders)


def _check(source: Source, schema: Schema, encoders: Encoders) -> None:
    groups, of_numbers = source.row_groups, map(schema.file_column, number_columns(schema))
    columns = sorted(set(of_numbers) - source.constants.keys())
    count = min(len(groups), _MAX_GROUPS)
    sampled = {groups[index * len(groups) // count] for index in range(count)}
    for group in progress_bar(groups, desc="evaluated rows", unit="row group"):
        where = source.file(group)
        try:
            check_numbers(source.with_constants(source.read(group, columns)), schema, where)
            if group in sampled:
                check_values(next(source.pieces(group)), schema, encoders, where)
        except ValueError:
            if source.is_filtered:  # with the row's number in the row group
                check_values(source.whole(group), schema, encoders, where)
            raise
