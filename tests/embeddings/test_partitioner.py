"""What every layout must be, whatever the tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mail_torchrec.embeddings.partitioner import Layout, family, fastest_that_fits, nearest_miss
from mail_torchrec.embeddings.sharding_options import MEMORIES, Choice

RANKS, A_HOST = 8, 4
KINDS = ["table_wise", "row_wise", "column_wise", "table_row_wise", "grid_shard"]


def choice(table: str, kind: str, rows: int, columns: int, kernel: str, time: float) -> Choice:
    """A table cut as its kind says; memory and time are shared out evenly."""
    parts = {
        "table_wise": (1, 1),
        "row_wise": (RANKS, 1),
        "column_wise": (1, 2),
        "table_row_wise": (A_HOST, 1),
        "grid_shard": (A_HOST, 2),
    }
    high, wide = parts[kind]
    corners = [(i * rows // high, j * columns // wide) for j in range(wide) for i in range(high)]
    sizes = np.array([(rows // high, columns // wide)] * len(corners))
    area_S = 4.0 * sizes.prod(axis=1)
    placed = {"row_wise": "uniform", "table_row_wise": "host", "grid_shard": "multi_host"}.get(
        kind, "device"
    )
    memory = {
        "hbm": area_S if kernel == "fused" else area_S / 10,
        "host": area_S * (kernel != "fused"),
        "ssd": 0 * area_S,
    }
    time_S = np.full(len(corners), time / len(corners) * (1 if kernel == "fused" else 30))
    return Choice(
        table, "m", kind, kernel, placed, sizes, np.array(corners), memory, time_S, time_S / 2
    )  # type: ignore[arg-type]


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[Choice]]:
    made = {}
    for number in range(draw(st.integers(1, 8))):
        rows, columns = 8 * draw(st.integers(1, 10_000)), 8 * draw(st.integers(1, 16))
        kinds = draw(
            st.lists(
                st.sampled_from(
                    ["table_wise", "row_wise", "column_wise", "table_row_wise", "grid_shard"]
                ),
                min_size=1,
                unique=True,
            )
        )
        kernels = draw(st.sampled_from([["fused"], ["fused", "fused_uvm_caching"]]))
        time = draw(st.floats(0.01, 10))
        name = f"t{number}"
        made[name] = [
            choice(name, kind, rows, columns, kernel, time) for kind in kinds for kernel in kernels
        ]
    return made


def capacity(hbm: float) -> dict[str, float]:
    return {"hbm": hbm, "host": float("inf"), "ssd": float("inf")}


@settings(max_examples=12, deadline=None)
@given(tables())
def test_every_cell_of_every_table_lies_on_one_rank_and_the_loads_add_up(
    choices: dict[str, list[Choice]],
) -> None:
    layouts = family(choices, RANKS, A_HOST)
    assert [layout.step_ms for layout in layouts] == sorted(layout.step_ms for layout in layouts)
    for layout in layouts:
        assert layout.chosen.keys() == choices.keys()
        expected_R = np.zeros(RANKS)
        for table, (found, ranks) in layout.chosen.items():
            assert len(ranks) == len(found.sizes_S2) and ranks.min() >= 0 and ranks.max() < RANKS
            check_cover(choices[table][0], found)
            for rank, memory in zip(ranks, found.memory_S["hbm"], strict=True):
                expected_R[rank] += memory
            if found.placed in (
                "host",
                "multi_host",
            ):  # the rows of a group lie on one host, a rank each
                groups = ranks.reshape(-1, A_HOST)
                assert (groups // A_HOST == groups[:, :1] // A_HOST).all() and (
                    groups % A_HOST == np.arange(A_HOST)
                ).all()
            if found.placed == "uniform":
                assert ranks.tolist() == list(range(RANKS))
        np.testing.assert_allclose(layout.memory_R["hbm"], expected_R)


def check_cover(first: Choice, found: Choice) -> None:
    rows, columns = (first.offsets_S2 + first.sizes_S2).max(axis=0)
    cells = np.zeros((RANKS, columns), int)  # an eighth of the rows by one column
    for (row, column), (height, width) in zip(found.offsets_S2, found.sizes_S2, strict=True):
        cells[row * RANKS // rows : (row + height) * RANKS // rows, column : column + width] += 1
    assert (cells == 1).all()


@settings(max_examples=12, deadline=None)
@given(tables(), st.floats(1e3, 1e8), st.floats(1, 10))
def test_more_memory_never_makes_a_fitting_point_not_fit_nor_slower(
    choices: dict[str, list[Choice]], hbm: float, more: float
) -> None:
    layouts = family(choices, RANKS, A_HOST)
    small, large = (fastest_that_fits(layouts, capacity(size)) for size in (hbm, hbm * more))  # type: ignore[arg-type]
    if small is not None:
        assert large is not None and large.step_ms <= small.step_ms


def test_what_is_lacking_would_be_enough() -> None:
    layouts = family({"t": [choice("t", "row_wise", 8000, 64, "fused", 1.0)]}, RANKS, A_HOST)
    lacking = nearest_miss(layouts, capacity(100_000)).excess(capacity(100_000))  # type: ignore[arg-type]
    assert lacking == {"hbm": 4 * 1000 * 64 - 100_000}
    assert fastest_that_fits(layouts, capacity(100_000 + lacking["hbm"])) is not None  # type: ignore[arg-type]


def test_equal_tables_are_dealt_evenly() -> None:
    choices = {
        f"t{i}": [choice(f"t{i}", "table_wise", 8000, 64, "fused", 1.0)] for i in range(2 * RANKS)
    }
    best: Layout = family(choices, RANKS, A_HOST)[0]
    assert set(best.memory_R["hbm"]) == {2 * 4.0 * 8000 * 64} and best.step_ms == pytest.approx(3.0)
    assert best.memory_R.keys() == set(MEMORIES)
