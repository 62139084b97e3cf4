"""Host memory of plans: copies for checkpoints, page-locked where the tables lie on a GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mail_torchrec.embeddings.settings import TableOptimizerSettings
from mail_torchrec.embeddings.sharding import build_sharders
from mail_torchrec.planning.command import estimate_grid
from mail_torchrec.planning.estimate import PlanEstimate
from mail_torchrec.planning.scenarios import parse_grid
from tests.support.small_rows import config_tree

ROWS = {"age": 5, "city": 100, "hour": 24, "item": 4_000_000, "actions": 9, "tags": 50_000}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "small.yaml"
    path.write_text(yaml.safe_dump(config_tree(Path("nowhere"))))
    return path


def estimate(config: Path, hardware: str, mode: str, *of_hardware: str) -> PlanEstimate:
    [found] = estimate_grid(
        parse_grid(
            config,
            (f"checkpoint.mode={mode}",),
            hardware_name=hardware,
            hardware_overrides=of_hardware,
            ranks="2",
            batch_sizes=None,
            vary=(),
            rows=tuple(f"{table}={rows}" for table, rows in ROWS.items()),
        )
    )
    return found


@pytest.mark.parametrize("hardware", ["h100", "cpu"])
def test_copies_for_checkpoints_are_as_large_as_weights_and_state(
    config: Path, hardware: str
) -> None:
    copied, written = (estimate(config, hardware, mode) for mode in ("async", "sync"))
    weights_R, state_R = np.zeros(2), np.zeros(2)
    for option, ranks_S in copied.plan.placements.values():
        for rank, (rows, columns) in zip(ranks_S, option.sizes_S2.tolist(), strict=True):
            weights_R[rank] += 4.0 * rows * columns
            state_R[rank] += 4.0 * rows * columns  # Adagrad's
    more_R = copied.plan.memory_R["host"] - written.plan.memory_R["host"]
    assert more_R.tolist() == (weights_R + state_R).tolist()
    assert copied.plan.memory_R["hbm"].tolist() == written.plan.memory_R["hbm"].tolist()
    parts = copied.table_memory_R
    assert sum(parts.values()).tolist() == copied.plan.memory_R[copied.main_memory].tolist()  # type: ignore[union-attr]
    assert parts["copies for checkpoints"].any() == (hardware == "cpu")


def test_a_host_that_is_too_small_for_the_copies_is_told_to_do_without(config: Path) -> None:
    missed = estimate(config, "h100", "async", "host_gib=0.1")
    assert not missed.fits and "host memory" in missed.shortage
    helping = {found.change for found in missed.suggestions if found.estimate.fits}
    assert "checkpoint.mode=sync" in helping
    assert estimate(config, "h100", "sync", "host_gib=0.1").fits


def test_tables_in_host_memory_are_mapped_pages_of_it() -> None:
    settings = TableOptimizerSettings(name="rowwise_adagrad")
    for device, expected in (("cuda", True), ("cpu", None)):
        for sharder in build_sharders(settings, (0.9, 0.999), torch.device(device)):
            assert (sharder.fused_params or {}).get("uvm_host_mapped") is expected  # type: ignore[attr-defined]
