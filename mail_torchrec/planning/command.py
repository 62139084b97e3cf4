"""``mail-torchrec plan``: estimates every scenario of a grid and writes the report."""

from pathlib import Path

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
        model = config.model_dump_json(include={"model", "schema_"}) + str(config.train.ema)
        if model not in costs:
            costs[model] = dense_cost(
                config, config_feature_tables(config), scenario.num_rows, scenario.vector_dims
            )
        estimate = estimate_scenario(scenario, costs[model])
        if not estimate.fits:
            estimate.suggestions = suggest(estimate)
        estimates.append(estimate)
    return estimates


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
