"""Workloads of the plans that are measured: each plan cuts the tables in another way."""

from pathlib import Path

import pytest
import yaml

from mail_torchrec.planning.scenarios import parse_grid
from tools.bench_plans import report_text, workloads


@pytest.mark.parametrize("name", list(workloads()))
def test_a_workload_s_cuts_are_different_constraints_of_all_its_tables(
    name: str, tmp_path: Path
) -> None:
    workload, path = workloads()[name], tmp_path / "workload.yaml"
    path.write_text(yaml.safe_dump(workload.tree(name, 0.1)))
    grid = parse_grid(
        path,
        (),
        hardware_name="cpu",
        hardware_overrides=(),
        ranks="2",
        batch_sizes=None,
        vary=(workload.vary(),),
        rows=tuple(f"{table}={rows}" for table, rows in workload.rows().items()),
    )
    cuts = []
    for scenario in grid.scenarios():
        sharding = scenario.config.sharding
        assert set(sharding.constraints) == set(scenario.num_rows)
        cuts.append(tuple(sharding.sharding_types_of(table)[0] for table in scenario.num_rows))
    assert len(set(cuts)) == len(cuts) == len(workload.cuts) >= 4


def test_the_report_shows_the_picture_that_lies_beside_it() -> None:
    plans = [
        {
            "group": "lists",
            "tables": f"plan {number}",
            "published_ms": {"step": number},
            "estimate_ms": {"step": -number, "lookup": 1.0, "communication": 2.0},
            "step_ms": 10.0 * number,
            "passes": [{"lookup_ms": 3.0, "communication_ms": 4.0}],
        }
        for number in (1, 2, 3)
    ]
    text = report_text(plans, "Calibrated.\n\nMore.", "mine.png")
    assert "](mine.png)" in text and text.endswith("\nCalibrated.\n")
    assert "| lists | 3 | 1.00 | -1.00 |" in text and "| all | 3 | 1.00 | -1.00 |" in text
