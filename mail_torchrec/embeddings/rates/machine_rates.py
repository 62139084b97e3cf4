"""Rates of a machine as measured: collectives by bytes, lookups by ids, steps by operators."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from mail_torchrec.settings import Settings

NotNegative = Annotated[float, Field(ge=0)]
_MILLION = 1e6
# Rows below which a search for one costs the same, however many there are.
_CROWD = 4096


class CollectiveRate(Settings):
    """Time of one collective: a latency, and a time by its bytes."""

    latency_ms: NotNegative
    """Milliseconds of a collective without data, of ranks that begin together."""
    ms_a_mb: NotNegative
    """Milliseconds for each million bytes."""
    measured: list[tuple[int, float]] = []
    """Bytes and milliseconds that the two were fitted to."""

    def ms(self, num_bytes: float, calls: int = 1) -> float:
        """Returns the milliseconds of some calls that move so many bytes together."""
        return calls * self.latency_ms + self.ms_a_mb * num_bytes / _MILLION


def distinct_rows(ids: float, rows: float) -> float:
    """Returns the mean number of different rows among so many ids, each any row with equal odds."""
    return rows * -math.expm1(ids * math.log1p(-1 / rows)) if rows > 1 else min(ids, rows)


def lookup_terms(ids: float, columns: float, bags: float, rows: float) -> dict[str, float]:
    """Returns the quantities, in millions, by the :class:`LookupRate`'s names of their rates.

    Args:
        ids: that are looked up.
        columns: of each row.
        bags: lists of ids, each of one feature of one row of the batch.
        rows: of the table or shard, over which the ids spread evenly.
    """
    distinct = distinct_rows(ids, rows)
    crowded = distinct * math.log2(1 + distinct / _CROWD)
    counts = {
        "ids": ids,
        "values": ids * columns,
        "bags": bags,
        "bag_values": bags * columns,
        "rows": distinct,
        "row_values": distinct * columns,
        "crowded_rows": crowded,
    }
    return {f"ms_a_million_{name}": count / _MILLION for name, count in counts.items()}


class LookupRate(Settings):
    """Time of a table's kernels in one step, forward and backward, with the fused optimizer."""

    fixed_ms: NotNegative
    """Milliseconds of a lookup of few ids, whatever the tables in it."""
    ms_a_million_ids: NotNegative
    """Milliseconds for a million ids, whatever the columns."""
    ms_a_million_values: NotNegative
    """Milliseconds for a million values of looked-up rows (ids x columns)."""
    ms_a_million_bags: NotNegative
    """Milliseconds for a million bags: lists of ids, each of one feature of one row."""
    ms_a_million_bag_values: NotNegative
    """Milliseconds for a million values of bags (bags x columns)."""
    ms_a_million_rows: NotNegative
    """Milliseconds for a million different rows, each of which is found and updated once."""
    ms_a_million_row_values: NotNegative
    """Milliseconds for a million values of different rows (rows x columns)."""
    ms_a_million_crowded_rows: NotNegative
    """Milliseconds for a million different rows times log2(1 + rows / 4,096): what finding a row
    takes more where there are more of them than a cache holds."""
    measured: list[tuple[int, int, int, int, float]] = []
    """Ids, columns, bags, rows of the table and milliseconds that the rates were fitted to."""

    def ms(self, ids: float, columns: float, bags: float, rows: float) -> float:
        """Returns the milliseconds of a shard without the fixed part.

        Args:
            ids: that all ranks look up in it.
            columns: of the shard.
            bags: that they lie in.
            rows: of the shard, over which the ids spread evenly.
        """
        terms = lookup_terms(ids, columns, bags, rows)
        ms: float = sum(getattr(self, name) * millions for name, millions in terms.items())
        return ms


class LookupRates(Settings):
    """Rates of both collections of tables with one optimizer."""

    pooled: LookupRate
    unpooled: LookupRate


class StepRates(Settings):
    """Time of a step beside table kernels, bytes on the way and the towers' products."""

    fixed_ms: NotNegative = 0.0
    """Milliseconds of any step: the pipeline, the optimizers, ranks that wait for each other."""
    ms_a_group: NotNegative = 0.0
    """Milliseconds for each group of tables (one collection, one sharding type) beside the latency
    of its collectives: what prepares them, and what ranks wait in them."""
    ms_a_thousand_operators: NotNegative = 0.0
    """Milliseconds for a thousand operators of the towers, whatever their sizes."""
    ms_a_mb: NotNegative = 0.0
    """Milliseconds for each million bytes that the towers' operators write."""
    measured: list[tuple[int, int, float, float]] = []
    """Groups that are exchanged, operators, written bytes and milliseconds that the rates were
    fitted to."""

    def towers_ms(self, operators: float, num_bytes: float) -> float:
        """Returns the milliseconds of a step's fixed part and of the towers' operators."""
        of_operators = self.ms_a_thousand_operators * operators / 1e3
        return self.fixed_ms + of_operators + self.ms_a_mb * num_bytes / _MILLION


class MachineRates(Settings):
    """Rates that all ranks reached at the same time."""

    world_size: int = Field(ge=1)
    """Ranks that measured together."""
    device: Literal["cpu", "cuda"]
    copy_gb_s: float = Field(gt=0)
    """Copies within a device's memory, GB/s."""
    host_copy_gb_s: float = Field(gt=0)
    """Copies within a rank's share of the host's memory, GB/s."""
    all_to_all: CollectiveRate
    """By the bytes that each rank sends to others."""
    all_reduce: CollectiveRate
    """By the bytes of the tensor."""
    reduce_scatter: CollectiveRate
    """By the bytes that each rank sends to others; its latency is that of ``all_to_all``."""
    lookups: dict[str, LookupRates] = Field(min_length=1)
    """By table optimizer."""
    tower_tflops: float = Field(gt=0)
    """TFLOP/s that a step of the towers reached, forward and backward."""
    steps: StepRates = StepRates()
    """Of whole steps; nothing where none was measured."""

    def lookups_of(self, optimizer: str) -> LookupRates:
        """Returns the rates with an optimizer; of the slowest one if it was not measured."""
        slowest = max(self.lookups.values(), key=lambda rates: rates.pooled.ms(1e5, 32, 1e4, 1e6))
        return self.lookups.get(optimizer, slowest)


def specs(rates: MachineRates) -> Mapping[str, object]:
    """Returns the rates for reports, without the points that they were fitted to."""
    points = {"measured": True}
    of_lookups = {name: {"pooled": points, "unpooled": points} for name in rates.lookups}
    of_links = {"all_to_all": points, "all_reduce": points, "reduce_scatter": points}
    return rates.model_dump(exclude={**of_links, "lookups": of_lookups, "steps": points})
