"""Properties of candidate plans for any tables.

Shape letters: ``R`` ranks, ``S`` shards of one table.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail_torchrec.embeddings.partitioner import (
    CandidatePlan,
    Placement,
    fastest_fitting_plan,
    least_excess_plan,
    propose_plans,
)
from mail_torchrec.embeddings.sharding_options import ShardingOption
from mail_torchrec.embeddings.storage import MEMORY_KINDS, MemoryKind

RANKS, LOCAL_RANKS = 8, 4
SHARDING_TYPES = ["table_wise", "row_wise", "column_wise", "table_row_wise", "grid_shard"]


def option(
    table: str, kind: str, rows: int, columns: int, kernel: str, time: float
) -> ShardingOption:
    """A table cut as its sharding type says, memory and time spread evenly over the shards."""
    parts = {
        "table_wise": (1, 1),
        "row_wise": (RANKS, 1),
        "column_wise": (1, 2),
        "table_row_wise": (LOCAL_RANKS, 1),
        "grid_shard": (LOCAL_RANKS, 2),
    }
    high, wide = parts[kind]
    corners = [(i * rows // high, j * columns // wide) for j in range(wide) for i in range(high)]
    sizes = np.array([(rows // high, columns // wide)] * len(corners))
    area_S = 4.0 * sizes.prod(axis=1)
    units = {"row_wise": "uniform", "table_row_wise": "host", "grid_shard": "multi_host"}
    partition_by = units.get(kind, "device")
    memory = {
        "hbm": area_S if kernel == "fused" else area_S / 10,
        "host": area_S * (kernel != "fused"),
    }
    time_S = np.full(len(corners), time / len(corners) * (1 if kernel == "fused" else 30))
    offsets = np.array(corners)
    return ShardingOption(
        table, "m", kind, kernel, partition_by, sizes, offsets, memory, time_S, time_S / 2
    )


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[ShardingOption]]:
    made = {}
    for number in range(draw(st.integers(1, 8))):
        rows, columns = 8 * draw(st.integers(1, 10_000)), 8 * draw(st.integers(1, 16))
        kinds = draw(
            st.lists(
                st.sampled_from(SHARDING_TYPES),
                min_size=1,
                unique=True,
            )
        )
        kernels = draw(st.sampled_from([["fused"], ["fused", "fused_uvm_caching"]]))
        time = draw(st.floats(0.01, 10))
        name = f"t{number}"
        made[name] = [
            option(name, kind, rows, columns, kernel, time) for kind in kinds for kernel in kernels
        ]
    return made


def capacity(hbm: float) -> dict[MemoryKind, float]:
    return {"hbm": hbm, "host": float("inf")}


@settings(max_examples=12, deadline=None)
@given(tables())
def test_every_cell_of_every_table_lies_on_one_rank_and_the_loads_add_up(
    options: dict[str, list[ShardingOption]],
) -> None:
    plans = propose_plans(options, RANKS, LOCAL_RANKS)
    assert [plan.step_ms for plan in plans] == sorted(plan.step_ms for plan in plans)
    for plan in plans:
        assert plan.placements.keys() == options.keys()
        expected_R = np.zeros(RANKS)
        for table, (found, ranks) in plan.placements.items():
            assert len(ranks) == len(found.sizes_S2) and ranks.min() >= 0 and ranks.max() < RANKS
            check_cover(options[table][0], found)
            for rank, memory in zip(ranks, found.memory_S["hbm"], strict=True):
                expected_R[rank] += memory
            if found.partition_by in (
                "host",
                "multi_host",
            ):  # the rows of a group lie on one host, a rank each
                groups = ranks.reshape(-1, LOCAL_RANKS)
                assert (groups // LOCAL_RANKS == groups[:, :1] // LOCAL_RANKS).all() and (
                    groups % LOCAL_RANKS == np.arange(LOCAL_RANKS)
                ).all()
            if found.partition_by == "uniform":
                assert ranks.tolist() == list(range(RANKS))
        np.testing.assert_allclose(plan.memory_R["hbm"], expected_R)


def check_cover(first: ShardingOption, found: ShardingOption) -> None:
    rows, columns = (first.offsets_S2 + first.sizes_S2).max(axis=0)
    cells = np.zeros((RANKS, columns), int)  # an eighth of the rows by one column
    for (row, column), (height, width) in zip(found.offsets_S2, found.sizes_S2, strict=True):
        cells[row * RANKS // rows : (row + height) * RANKS // rows, column : column + width] += 1
    assert (cells == 1).all()


@settings(max_examples=12, deadline=None)
@given(tables(), st.floats(1e3, 1e8), st.floats(1, 10))
def test_more_memory_never_makes_a_fitting_plan_not_fit_nor_slower(
    options: dict[str, list[ShardingOption]], hbm: float, more: float
) -> None:
    plans = propose_plans(options, RANKS, LOCAL_RANKS)
    small, large = (fastest_fitting_plan(plans, capacity(size)) for size in (hbm, hbm * more))
    if small is not None:
        assert large is not None and large.step_ms <= small.step_ms


def test_what_is_lacking_would_be_enough() -> None:
    plans = propose_plans(
        {"t": [option("t", "row_wise", 8000, 64, "fused", 1.0)]}, RANKS, LOCAL_RANKS
    )
    lacking = least_excess_plan(plans, capacity(100_000)).excess(capacity(100_000))
    assert lacking == {"hbm": 4 * 1000 * 64 - 100_000}
    assert fastest_fitting_plan(plans, capacity(100_000 + lacking["hbm"])) is not None


def test_equal_tables_are_spread_evenly() -> None:
    options = {
        f"t{i}": [option(f"t{i}", "table_wise", 8000, 64, "fused", 1.0)] for i in range(2 * RANKS)
    }
    best: CandidatePlan = propose_plans(options, RANKS, LOCAL_RANKS)[0]
    assert set(best.memory_R["hbm"]) == {2 * 4.0 * 8000 * 64} and best.step_ms == pytest.approx(3.0)
    assert best.memory_R.keys() == set(MEMORY_KINDS)


def test_plans_of_each_kind_are_proposed_and_equal_layouts_recognised() -> None:
    kinds = ("table_wise", "row_wise")
    modules = {"a": "pooled", "b": "pooled", "c": "unpooled"}
    made = {
        name: [
            replace(option(name, kind, 80, 8, "fused", time), module_path=module)
            for kind, time in zip(kinds, (4.0, 8.0), strict=True)
        ]
        for name, module in modules.items()
    }
    usual = propose_plans(made, RANKS, LOCAL_RANKS)
    every = propose_plans(made, RANKS, LOCAL_RANKS, of_each_kind=True)

    def cuts(plan: CandidatePlan) -> tuple[str, ...]:
        return tuple(plan.placements[name].option.sharding_type for name in "abc")

    assert {(one, one, other) for one in kinds for other in kinds} <= set(map(cuts, every))
    assert set(map(cuts, usual)) < set(map(cuts, every))
    [plan] = {cuts(plan): plan for plan in every if set(cuts(plan)) == {"table_wise"}}.values()
    turned = {
        name: Placement(one, (ranks + 3) % RANKS) for name, (one, ranks) in plan.placements.items()
    }
    swapped = turned | {"a": Placement(turned["a"].option, turned["b"].ranks_S)}
    swapped["b"] = Placement(turned["b"].option, turned["a"].ranks_S)
    together = turned | {"b": Placement(turned["b"].option, turned["a"].ranks_S)}
    layouts = [
        CandidatePlan.from_placements(placements, RANKS).layout
        for placements in (turned, swapped, together)
    ]
    assert layouts[0] == layouts[1] == plan.layout != layouts[2]
