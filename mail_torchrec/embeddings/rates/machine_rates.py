"""Rates of a machine as measured: collectives by bytes, table lookups by ids, towers by FLOPs."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from mail_torchrec.settings import Settings

NotNegative = Annotated[float, Field(ge=0)]
_MB = 1e6


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
        return calls * self.latency_ms + self.ms_a_mb * num_bytes / _MB


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
    measured: list[tuple[int, int, int, float]] = []
    """Ids, columns, bags and milliseconds that the rates were fitted to."""

    def ms(self, ids: float, columns: float, bags: float) -> float:
        """Returns the milliseconds of a shard without the fixed part.

        Args:
            ids: that all ranks look up in it.
            columns: of the shard.
            bags: that they lie in.
        """
        of_ids = self.ms_a_million_ids * ids + self.ms_a_million_values * ids * columns
        of_bags = self.ms_a_million_bags * bags + self.ms_a_million_bag_values * bags * columns
        return (of_ids + of_bags) / 1e6


class LookupRates(Settings):
    """Rates of both collections of tables with one optimizer."""

    pooled: LookupRate
    unpooled: LookupRate


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

    def lookups_of(self, optimizer: str) -> LookupRates:
        """Returns the rates with an optimizer; of the slowest one if it was not measured."""
        slowest = max(self.lookups.values(), key=lambda rates: rates.pooled.ms_a_million_values)
        return self.lookups.get(optimizer, slowest)


def specs(rates: MachineRates) -> Mapping[str, object]:
    """Returns the rates for reports, without the points that they were fitted to."""
    points = {"measured": True}
    of_lookups = {name: {"pooled": points, "unpooled": points} for name in rates.lookups}
    of_links = {"all_to_all": points, "all_reduce": points, "reduce_scatter": points}
    return rates.model_dump(exclude={**of_links, "lookups": of_lookups})
