"""Which choice for which table, on which ranks.

The search never looks at capacities. It makes a family of layouts, from the fastest to the leanest,
and whoever asks takes the fastest that fits: so a rank with more memory can never be told that less
would have done. Each layout is made greedily, heaviest table first; a table takes the choice and
the ranks that raise ``slowest rank / average + leanness * fullest rank / average`` least.

Shape letters: ``R`` ranks, ``H`` hosts, ``L`` ranks a host, ``S`` shards of one choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.embeddings.sharding_options import MEMORIES, Choice, Floats, Memory

Ranks = NDArray[np.int64]

_LEANNESS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e3, 1e4, 1e6)
_PRICE: dict[Memory, float] = {"hbm": 1.0, "host": 0.05, "ssd": 0.01}
"""What a byte of each memory counts beside one of the GPU's: those that there is more of are to be
filled evenly too."""
# Total work and total memory count a little too, or a table below the peak would not care what it
# costs.
_TOTAL = 0.1


@dataclass(eq=False)
class Layout:
    """A choice and ranks for every table, and what each rank then carries."""

    chosen: dict[str, tuple[Choice, Ranks]]
    memory_R: dict[Memory, Floats]
    lookup_R: Floats
    comms_R: Floats

    @property
    def step_ms(self) -> float:
        """Milliseconds of the tables' part of a step: collectives end with the slowest rank, so the slowest of each counts."""
        return float(self.lookup_R.max() + self.comms_R.max())

    def excess(self, capacity: dict[Memory, float]) -> dict[Memory, float]:
        """Bytes that the fullest rank lacks, of each memory that is too small."""
        over = {kind: float(self.memory_R[kind].max()) - capacity[kind] for kind in MEMORIES}
        return {kind: lacking for kind, lacking in over.items() if lacking > 0}


def family(choices: dict[str, list[Choice]], world_size: int, ranks_a_host: int) -> list[Layout]:
    """Layouts from the fastest to the leanest.

    Args:
        choices: of every table.
        world_size: R.
        ranks_a_host: L; it divides R.
    """
    layouts = []
    for by_time, leanness in product((True, False), _LEANNESS):
        greedy = _Greedy(choices, world_size, ranks_a_host, leanness)
        for table in greedy.heaviest_first(by_time):
            greedy.add(table)
        layouts.append(layout_of(greedy.chosen, world_size))
    return sorted(layouts, key=lambda layout: layout.step_ms)


def fastest_that_fits(layouts: Sequence[Layout], capacity: dict[Memory, float]) -> Layout | None:
    """The first of the layouts, fastest first, that no rank is too small for."""
    return next((layout for layout in layouts if not layout.excess(capacity)), None)


def nearest_miss(layouts: Sequence[Layout], capacity: dict[Memory, float]) -> Layout:
    """The layout that lacks least."""
    return min(layouts, key=lambda layout: sum(layout.excess(capacity).values()))


@dataclass
class _Greedy:
    choices: dict[str, list[Choice]]
    world_size: int
    ranks_a_host: int
    leanness: float
    chosen: dict[str, tuple[Choice, Ranks]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.time_R, self.full_R = np.zeros(self.world_size), np.zeros(self.world_size)
        self.mean_time = (
            sum(self._least_time(table) for table in self.choices) / self.world_size + 1e-12
        )
        self.mean_full = (
            sum(self._least_memory(table) for table in self.choices) / self.world_size + 1e-12
        )

    def _least_time(self, table: str) -> float:
        return min(float(choice.time_S.sum()) for choice in self.choices[table])

    def _least_memory(self, table: str) -> float:
        return min(float(_priced(choice).sum()) for choice in self.choices[table])

    def heaviest_first(self, by_time: bool) -> list[str]:
        """The order in which tables are placed: large parts first pack best."""
        return sorted(
            self.choices, key=self._least_time if by_time else self._least_memory, reverse=True
        )

    def add(self, table: str) -> None:
        """Places a table by the choice that raises the objective least."""
        best: tuple[float, Choice, Ranks] | None = None
        for choice in self.choices[table]:
            ranks = self._ranks(choice)
            objective = self._objective(choice, ranks)
            if best is None or objective < best[0]:
                best = objective, choice, ranks
        assert best is not None
        _, choice, ranks = best
        self.chosen[table] = choice, ranks
        np.add.at(self.time_R, ranks, choice.time_S)
        np.add.at(self.full_R, ranks, _priced(choice))

    def _objective(self, choice: Choice, ranks: Ranks) -> float:
        """Of the layout with this table; where there are more shards than ranks, the peak sees one of each rank's."""
        time_S, full_S = choice.time_S, _priced(choice)
        slowest = max(self.time_R.max(), (self.time_R[ranks] + time_S).max())
        fullest = max(self.full_R.max(), (self.full_R[ranks] + full_S).max())
        time = (slowest + _TOTAL * time_S.sum()) / self.mean_time
        return float(time + self.leanness * (fullest + _TOTAL * full_S.sum()) / self.mean_full)

    def _load_R(self) -> Floats:
        load_R: Floats = self.time_R / self.mean_time + self.leanness * self.full_R / self.mean_full
        return load_R

    def _ranks(self, choice: Choice) -> Ranks:
        """The least loaded ranks for a choice's shards."""
        num_shards, load_R = len(choice.sizes_S2), self._load_R()
        if choice.placed == "uniform":
            return np.arange(self.world_size)
        if choice.placed == "device":
            order = np.argsort(load_R, kind="stable")
            return np.resize(order, num_shards)
        load_HL = load_R.reshape(-1, self.ranks_a_host)
        hosts = np.argsort(load_HL.max(axis=1), kind="stable")
        if choice.placed == "multi_host":  # one group of L row shards for each group of columns
            groups = np.resize(hosts, num_shards // self.ranks_a_host)
            together: Ranks = (
                groups[:, None] * self.ranks_a_host + np.arange(self.ranks_a_host)
            ).ravel()
            return together
        if num_shards == self.ranks_a_host:  # rows over the ranks of a host, in their order
            local = np.arange(self.ranks_a_host)
        else:
            local = np.resize(np.argsort(load_HL[hosts[0]], kind="stable"), num_shards)
        on_host: Ranks = hosts[0] * self.ranks_a_host + local
        return on_host


def layout_of(chosen: dict[str, tuple[Choice, Ranks]], world_size: int) -> Layout:
    """Choices and ranks, with what each rank then carries."""
    memory_R: dict[Memory, Floats] = {kind: np.zeros(world_size) for kind in MEMORIES}
    lookup_R, comms_R = np.zeros(world_size), np.zeros(world_size)
    for choice, ranks in chosen.values():
        np.add.at(lookup_R, ranks, choice.lookup_S)
        np.add.at(comms_R, ranks, choice.comms_S)
        for kind in MEMORIES:
            np.add.at(memory_R[kind], ranks, choice.memory_S[kind])
    return Layout(chosen, memory_R, lookup_R, comms_R)


def _priced(choice: Choice) -> Floats:
    """Each shard's memory as one figure."""
    priced_S: Floats = np.sum([_PRICE[kind] * choice.memory_S[kind] for kind in MEMORIES], axis=0)
    return priced_S
