"""Reading of the training rows by all ranks, from which the encoders are fitted."""

from collections.abc import Sequence

import pyarrow as pa

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.fitting import EncoderFitter, FittedPart, RowObserver
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import (
    broadcast_from_rank_0,
    rank,
    results_of_ranks,
    world_size,
)
from mail_torchrec.utils.spans import span
from mail_torchrec.vocabularies.exchange import gather_counts
from mail_torchrec.vocabularies.shares import row_shares


def read_over_ranks(
    source: Source,
    schema: Schema,
    cold_start: ColdStartSettings,
    observers: Sequence[RowObserver] = (),
) -> EncoderFitter:
    """Counts ids, and sums numbers and vectors, of all training rows; every rank calls it.

    Each rank reads its share of the rows. Counts of ids are sums, and the other sums are added up
    in the order of the files, so that the result is that of one rank, to the bit.

    Args:
        source: training files.
        schema: their columns, and the id policies of the tables.
        cold_start: settings of the simulation.
        observers: get every row group too.

    Returns:
        On rank 0, what all ranks have read, observers included.

    Raises:
        ValueError: on every rank; a bad value in a column of numbers or vectors, of several the
            first one.
    """
    fitter = EncoderFitter(schema, cold_start, observers)
    parts = row_shares(source, world_size())[rank()]

    def read() -> FittedPart:
        with span("reading", reads=True):
            fitter.read(source, parts, progress=not rank())
        return fitter.part

    found = results_of_ranks(read)
    if world_size() == 1:
        return fitter

    def keep(table: str, counted: pa.Table) -> pa.Table:
        return fitter.policies[table].keep_counted(counted)

    with span("sharing the counts"):
        fitter.counts |= gather_counts(fitter.counts, keep)

    def merge() -> None:
        for part in found[1:]:
            fitter.merge(part)

    broadcast_from_rank_0(merge)
    return fitter
