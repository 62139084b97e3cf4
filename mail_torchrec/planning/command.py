"""``mail-torchrec plan``: estimates every scenario of a grid and writes the report."""

from pathlib import Path

from mail_torchrec.config import Config
from mail_torchrec.planning.estimate import PlanEstimate
from mail_torchrec.planning.estimator import estimate_scenario
from mail_torchrec.planning.report import findings, summary_table, write_report
from mail_torchrec.planning.scenarios import ScenarioGrid
from mail_torchrec.planning.suggestions import suggest
from mail_torchrec.train.assembly import config_feature_tables
from mail_torchrec.train.cost.dense_cost import DenseCost, dense_cost


def estimate_grid(grid: ScenarioGrid) -> list[PlanEstimate]:
    """Estimates every scenario, with suggestions for those that do not fit.

    Raises:
        ValueError: a configuration or constraint that cannot be met with any amount of memory.
    """
    estimates: list[PlanEstimate] = []
    costs: dict[str, DenseCost] = {}
    for scenario in grid.scenarios():
        config = scenario.config
        towers = _settings_of_towers(config)
        if towers not in costs:
            costs[towers] = dense_cost(
                config,
                config_feature_tables(config),
                scenario.num_rows,
                scenario.vector_dims,
                grid.hardware.device,
            )
        estimate = estimate_scenario(scenario, costs[towers])
        if not estimate.fits:
            estimate.suggestions = suggest(estimate)
        estimates.append(estimate)
    return estimates


def _settings_of_towers(config: Config) -> str:
    """Returns all settings that the towers' cost may depend on, as text."""
    text = config.model_dump_json(exclude={"sharding": True, "train": {"batch_size", "tables"}})
    return f"{text} {config.sharding.averages_in_bfloat16}"


def plan(grid: ScenarioGrid, out: Path | None, command: str) -> str:
    """Estimates a grid and writes the report.

    Args:
        grid: the scenarios.
        out: folder of the report; None writes none.
        command: command line, for the report.

    Returns:
        The text for the terminal.
    """
    estimates = estimate_grid(grid)
    lines = [*summary_table(estimates), "", *findings(estimates)]
    if out is not None:
        lines.append("  ".join(map(str, write_report(grid, estimates, command, out))))
    return "\n".join(lines).rstrip()
