"""``mail-torchrec plan --measure``: trains some steps by many plans, and reports."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mail_torchrec.config import dump_config
from mail_torchrec.embeddings.hardware import PRESETS
from mail_torchrec.embeddings.plan_file import plan_context, read_plan
from mail_torchrec.planning.estimate import PlanEstimate, StepTime
from mail_torchrec.planning.estimator import estimate_best_plans, estimate_saved_plan
from mail_torchrec.planning.measured.job import PlanToMeasure, RankJob, read_results
from mail_torchrec.planning.measured.launchers import RankLauncher, check_not_a_rank, launcher_of
from mail_torchrec.planning.measured.measurements import MeasuredPlan, distinct
from mail_torchrec.planning.measured.report import terminal_text, write_measured
from mail_torchrec.planning.report import file_name
from mail_torchrec.planning.scenarios import Scenario, ScenarioGrid
from mail_torchrec.train.assembly import config_feature_tables
from mail_torchrec.train.cost.dense_cost import dense_cost
from mail_torchrec.utils.local_path import make_output_dir
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.run_files import write_file

logger = get_logger(__name__)

_MOST_FIRST_FAILURES = 2


@dataclass(frozen=True)
class MeasureOptions:
    """Options of ``plan --measure``."""

    steps: int
    """Steps that are timed of each plan in each pass."""
    best: int
    """Plans of each scenario that the planner thinks fastest."""
    saved: tuple[Path, ...]
    """Plan files to measure too, in every scenario that they fit."""
    out: Path
    scheduler: str | None = None
    """Scheduler of TorchX; None starts the ranks by torchrun on this machine."""
    job_arguments: dict[str, str] = field(default_factory=dict)
    """Arguments of the TorchX component."""


def measure(grid: ScenarioGrid, options: MeasureOptions, command: str) -> str:
    """Measures plans of every scenario on the ranks there are, and writes the report.

    Args:
        grid: the scenarios.
        options: of the command.
        command: command line, for the report.

    Returns:
        The text for the terminal.

    Raises:
        ValueError: a scenario without a plan that fits, or no plan could be measured.
    """
    check_not_a_rank()
    launcher = launcher_of(options.scheduler, options.job_arguments)
    if len(grid.world_sizes) != 1:
        raise ValueError(
            f"--ranks should be one number for --measure, received {len(grid.world_sizes)}; the "
            "ranks there are measure every plan"
        )
    scenarios = list(grid.scenarios())
    scenarios[0].config.data.check_no_credentials()
    plans = distinct([plan for scenario in scenarios for plan in _plans_of(scenario, options)])
    make_output_dir(options.out)
    files, to_measure = _write_plans(plans, options.out)
    job = RankJob(
        device=grid.hardware.device,
        timeout=scenarios[0].config.train.timeout,
        steps=options.steps,
        # The other way round in the second pass: so a machine that slows down favours no plan.
        plans=[*to_measure, *reversed(to_measure)],
    )
    _run(job, plans, options.out, launcher, grid.world_sizes[0])
    if not any(plan.passes for plan in plans):
        reasons = [plan.failure for plan in plans if plan.failure]
        raise ValueError(f"no plan could be measured: {reasons[0]}")
    hardware = f"{grid.hardware_name} ({grid.hardware.source})"
    written = write_measured(plans, files, command, hardware, options.out)
    return terminal_text(plans, files) + "\n\n" + "  ".join(map(str, written))


def _plans_of(scenario: Scenario, options: MeasureOptions) -> list[MeasuredPlan]:
    """Estimates a scenario's best plans, and the saved ones.

    Raises:
        ValueError: no plan fits, or a saved one was made for another job.
    """
    config = scenario.config
    tables, dims = config_feature_tables(config), scenario.vector_dims
    cost = dense_cost(config, tables, scenario.num_rows, dims, scenario.hardware.device)
    best = estimate_best_plans(scenario, cost, options.best)
    if not best:
        raise ValueError(
            f"{scenario.name}: no plan fits {scenario.world_size} ranks; `mail-torchrec plan` "
            "without --measure says what is short and what helps"
        )
    found = {f"{scenario.name} #{number}": plan for number, plan in enumerate(best, start=1)}
    job = plan_context(json.loads(best[0].plan_text()))
    for path in options.saved:
        tree = read_plan(path)
        if differences := plan_context(tree).differences(job):
            raise ValueError(
                f"--plan {path} was made for {'; '.join(differences)}; leave it out, or make it "
                "anew"
            )
        found[f"{scenario.name} {path.stem}"] = estimate_saved_plan(scenario, tree, cost)
    return [
        MeasuredPlan(name, _group(scenario), estimate, _published(estimate))
        for name, estimate in found.items()
    ]


def _group(scenario: Scenario) -> str:
    """Names the scenario without its sharding settings, which leave the towers' work alone."""
    varied = tuple(text for text in scenario.varied if not text.startswith("sharding."))
    return replace(scenario, varied=varied).name


def _published(estimate: PlanEstimate) -> StepTime | None:
    """Estimates the same plan by published figures, where it was estimated by measured ones."""
    scenario = estimate.scenario
    if scenario.hardware.rates is None:
        return None
    known = scenario.hardware
    published = replace(
        PRESETS[known.preset],
        local_world_size=known.local_world_size,
        hbm_gib=known.hbm_gib,
        host_gib=known.host_gib,
    )
    tree = json.loads(estimate.plan_text())
    known_cost = estimate.dense_cost
    return estimate_saved_plan(replace(scenario, hardware=published), tree, known_cost).step_time


def _write_plans(
    plans: Sequence[MeasuredPlan], out: Path
) -> tuple[dict[str, str], list[PlanToMeasure]]:
    """Writes plan files and configurations; returns the files by name, and what ranks read."""
    files: dict[str, str] = {}
    found = []
    for number, plan in enumerate(plans):
        scenario = plan.estimate.scenario
        config, stored = f"config-{number}.yaml", f"plan-{number}-{file_name(plan.estimate)}.json"
        write_file(out / config, dump_config(scenario.config))
        write_file(out / stored, plan.estimate.plan_text())
        files[plan.name] = str(out / stored)
        rows, dims = scenario.num_rows, scenario.vector_dims
        found.append(
            PlanToMeasure(
                name=plan.name, config=config, plan=stored, num_rows=rows, vector_dims=dims
            )
        )
    return files, found


def _run(
    job: RankJob, plans: Sequence[MeasuredPlan], out: Path, launcher: RankLauncher, world_size: int
) -> None:
    """Runs the job; where a plan ends it, runs what comes behind that plan as another job."""
    by_name = {plan.name: plan for plan in plans}
    left, num_failed = list(job.plans), 0
    while left:
        job.model_copy(update={"plans": left}).save(out)
        failure = launcher.run(out, world_size)
        results = read_results(out)
        for result in results:
            by_name[result["name"]].passes.append(result)
        left = left[len(results) :]
        if left:
            failed, num_failed = by_name[left[0].name], num_failed + 1
            failed.failure = failure or "the ranks ended without a result of it"
            logger.warning("%s could not be measured: %s", failed.name, failed.failure)
            left = [plan for plan in left if plan.name != failed.name]
            if num_failed == _MOST_FIRST_FAILURES and not any(plan.passes for plan in plans):
                return  # it is not the plans' fault
