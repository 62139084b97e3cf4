"""Times by measured rates, against sums written out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mail_torchrec.embeddings.hardware import detect_hardware, hardware_preset
from mail_torchrec.embeddings.rates.hardware_file import HardwareFile
from mail_torchrec.embeddings.rates.machine_rates import (
    CollectiveRate,
    LookupRate,
    LookupRates,
    MachineRates,
    StepRates,
    distinct_rows,
)
from mail_torchrec.embeddings.rates.shard_times import LookedUp, PlanLatency, shard_times

RATES = MachineRates(
    world_size=2,
    device="cpu",
    copy_gb_s=8,
    host_copy_gb_s=8,
    all_to_all=CollectiveRate(latency_ms=0.5, ms_a_mb=2),
    all_reduce=CollectiveRate(latency_ms=0.25, ms_a_mb=1),
    reduce_scatter=CollectiveRate(latency_ms=0.5, ms_a_mb=3),
    lookups={
        "adagrad": LookupRates(
            pooled=LookupRate(
                fixed_ms=0.1,
                ms_a_million_ids=100,
                ms_a_million_values=10,
                ms_a_million_bags=7,
                ms_a_million_bag_values=1,
                ms_a_million_rows=900,
                ms_a_million_row_values=3,
                ms_a_million_crowded_rows=50,
            ),
            unpooled=LookupRate(
                fixed_ms=0.2,
                ms_a_million_ids=200,
                ms_a_million_values=20,
                ms_a_million_bags=0,
                ms_a_million_bag_values=0,
                ms_a_million_rows=0,
                ms_a_million_row_values=0,
                ms_a_million_crowded_rows=0,
            ),
        )
    },
    tower_tflops=0.1,
    steps=StepRates(fixed_ms=2, ms_a_group=1.5, ms_a_thousand_operators=8, ms_a_mb=0.25),
)
FILE = HardwareFile(
    measured_on="a test", preset="cpu", local_world_size=2, hbm_gib=0, host_gib=4, rates=RATES
)
LOOKED_UP = LookedUp("pooled_tables", ids_a_row=3.0, num_features=1, num_rows=2000, batch_size=500)


def times(looked_up: LookedUp, sharding_type: str, sizes: list[tuple[int, int]]):
    return shard_times(RATES, "adagrad", looked_up, sharding_type, np.array(sizes), 2)


def kernels(ids: float, rows: int, columns: int) -> float:
    """Milliseconds of the pooled kernels, written out."""
    bags, distinct = 1000, rows * (1 - (1 - 1 / rows) ** ids)
    of_ids = 100 * ids + 10 * ids * columns + 7 * bags + 1 * bags * columns
    of_rows = 900 + 3 * columns + 50 * np.log2(1 + distinct / 4096)
    return (of_ids + of_rows * distinct) / 1e6


def test_a_whole_table_looks_up_all_ids_and_sends_half_of_its_vectors() -> None:
    [lookup], [comms] = times(LOOKED_UP, "table_wise", [(2000, 16)])
    ids, bags = 3 * 500 * 2, 500 * 2
    assert lookup == pytest.approx(kernels(ids, 2000, 16))
    vectors = bags * 16 * (4 + 4) / 2
    assert comms == pytest.approx((2 * vectors + 2 * (ids + bags) * 8 / 2) / 1e6)


def test_rows_share_the_ids_and_columns_repeat_them() -> None:
    (first, second), (sent, _) = times(LOOKED_UP, "row_wise", [(1500, 16), (500, 16)])
    assert first == pytest.approx(kernels(2250, 1500, 16))
    assert second == pytest.approx(kernels(750, 500, 16))
    ids, bags = 3000 * 0.75, 1000
    assert sent == pytest.approx((3 * bags * 16 * 8 / 2 + 2 * (ids + bags) * 8 / 2) / 1e6)
    narrow, _ = times(LOOKED_UP, "column_wise", [(2000, 8), (2000, 8)])
    assert narrow == pytest.approx(kernels(3000, 2000, 8))


def test_different_rows_are_counted_as_drawn() -> None:
    random = np.random.default_rng(3)
    for ids, rows in ((50, 40), (3000, 2000), (3000, 1_000_000), (7, 1)):
        drawn = np.mean([len(np.unique(random.integers(0, rows, ids))) for _ in range(200)])
        assert distinct_rows(ids, rows) == pytest.approx(drawn, rel=0.02)


def test_unpooled_tables_send_a_vector_an_id_and_half_floats_half_of_it() -> None:
    unpooled = replace(LOOKED_UP, module_path="unpooled_tables")
    _, [full] = times(unpooled, "table_wise", [(2000, 16)])
    inputs = 2 * (3000 + 1000) * 8 / 2 / 1e6
    assert full == pytest.approx(inputs + 2 * 3000 * 16 * 8 / 2 / 1e6)
    halved = replace(unpooled, forward_bytes=2, backward_bytes=2)
    _, [half] = times(halved, "table_wise", [(2000, 16)])
    assert half - inputs == pytest.approx((full - inputs) / 2)


def test_each_group_of_tables_costs_a_plan_its_latencies() -> None:
    lookup_R, comms_R = np.zeros(2), np.zeros(2)
    groups = {("pooled_tables", "table_wise"): {1}, ("unpooled_tables", "row_wise"): {0, 1}}
    PlanLatency(RATES, "adagrad").add(groups, lookup_R, comms_R)
    assert lookup_R == pytest.approx([0.2, 0.3])
    assert comms_R == pytest.approx([9 * 0.5 + 2 * 1.5] * 2)


def test_a_hardware_file_stands_for_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "hardware.json"
    FILE.save(path)
    found = hardware_preset(str(path), ["host_gib=9"])
    assert found.rates == RATES and found.host_gib == 9 and found.intra_gb_s == 0.5
    assert found.efficiency == 1 and "measured on a test" in found.source
    assert detect_hardware(torch.device("cpu"), 2, str(path)).rates == RATES
    assert "rates" not in hardware_preset("cpu").specs()


@pytest.mark.parametrize(("change", "message"), [
    ({"version": 1}, "should be a hardware file of version 2"),
    ({"rates": None}, "rates: Input should be an object"),
    ({"preset": "h100"}, "no preset of cpu is called 'h100'"),
    (None, "no hardware file at"),
])  # fmt: skip
def test_a_hardware_file_that_is_none_is_refused(
    tmp_path: Path, change: dict[str, object] | None, message: str
) -> None:
    path = tmp_path / "hardware.json"
    if change is not None:
        path.write_text(json.dumps(json.loads(FILE.model_dump_json()) | change))
    with pytest.raises(ValueError, match=message):
        hardware_preset(str(path))
