"""Measurements of plans beside their estimates, and how well the two agree.

Shape letters: ``M`` measured plans.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.planning.estimate import TABLE_PARTS, PlanEstimate, StepTime

# Settings that say no more of a step than the plan itself.
_CHOICES = {
    *("sharding_types", "compute_kernels", "constraints"),
    *("min_partition", "hardware"),
}

FloatArray = NDArray[np.float64]


@dataclass
class MeasuredPlan:
    """One plan of one scenario: its estimates and what the ranks measured."""

    name: str
    group: str
    """Scenario; plans of one group differ in nothing but where tables lie."""
    estimate: PlanEstimate
    published: StepTime | None = None
    """Estimate by published figures, where the other one is by measured rates."""
    passes: list[dict[str, Any]] = field(default_factory=list)
    """What each pass over the plan measured."""
    failure: str = ""
    """Why it could not be measured."""
    also: list[str] = field(default_factory=list)
    """Other names that led to the same plan."""

    @property
    def step_ms(self) -> float:
        """Median milliseconds of a step, of the fastest pass: others had to share the machine."""
        return float(min(median(one["step_ms"]) for one in self.passes))

    @property
    def spread(self) -> float:
        """Ratio of the slowest to the fastest pass; 1 where the machine was quiet."""
        medians = [median(one["step_ms"]) for one in self.passes]
        return float(max(medians) / min(medians))

    def part(self, key: str) -> float:
        """Returns the mean of ``lookup_ms`` or ``communication_ms`` over passes."""
        return float(mean(one[key] for one in self.passes))

    @property
    def peak(self) -> int:
        """Bytes of the fullest rank at its peak, beyond what it took before."""
        return int(max(max(one["peak"]) for one in self.passes))

    @property
    def tables(self) -> int:
        """Bytes of weights and optimizer state of the fullest rank."""
        first = self.passes[0]
        ranks = zip(first["table_weights"], first["optimizer_state"], strict=True)
        return max(map(sum, ranks))

    @property
    def estimated_tables(self) -> float:
        """Estimated bytes of weights and optimizer state of the fullest rank."""
        weights_R, state_R = (self.estimate.table_memory_R[part] for part in TABLE_PARTS[:2])
        return float((weights_R + state_R).max())


def distinct(plans: Sequence[MeasuredPlan]) -> list[MeasuredPlan]:
    """Leaves out plans that are another one of their group but for names, which it is told."""
    found: dict[tuple[object, ...], MeasuredPlan] = {}
    for plan in plans:
        sharding = plan.estimate.scenario.config.sharding.model_dump_json(exclude=_CHOICES)
        key = plan.group, sharding, plan.estimate.plan.layout
        if found.setdefault(key, plan) is not plan:
            found[key].also.append(plan.name)
    return list(found.values())


def spearman(first_M: Sequence[float], second_M: Sequence[float]) -> float | None:
    """Returns Spearman's rank correlation, ties with mean ranks; None where one is constant.

    Args:
        first_M: [M].
        second_M: [M].
    """
    ranks = [_mean_ranks(np.asarray(values, np.float64)) for values in (first_M, second_M)]
    centred = [of_values - of_values.mean() for of_values in ranks]
    norm = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / norm if norm else None


def _mean_ranks(values_M: FloatArray) -> FloatArray:
    less_MM = values_M[:, None] > values_M[None]
    equal_MM = values_M[:, None] == values_M[None]
    ranks_M: FloatArray = less_MM.sum(axis=1) + (equal_MM.sum(axis=1) + 1) / 2
    return ranks_M


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of estimated and measured milliseconds a step."""

    group: str
    num_plans: int
    estimate: float | None
    published: float | None
    """By published figures; None where these were not compared, or order nothing."""


def agreements(plans: Sequence[MeasuredPlan]) -> list[Agreement]:
    """Correlates the plans of each group with three or more, and all plans together."""
    found = [plan for plan in plans if plan.passes]
    groups = list(dict.fromkeys(plan.group for plan in found))
    of_groups = [(name, [plan for plan in found if plan.group == name]) for name in groups]
    chosen = [(name, members) for name, members in of_groups if len(members) > 2]
    if len(groups) > 1 and len(found) > 2:
        chosen.append(("all", found))
    return [_agreement(name, members) for name, members in chosen]


def _agreement(group: str, plans: Sequence[MeasuredPlan]) -> Agreement:
    measured = [plan.step_ms for plan in plans]
    published = [plan.published.total for plan in plans if plan.published is not None]
    return Agreement(
        group,
        len(plans),
        spearman([plan.estimate.step_time.total for plan in plans], measured),
        spearman(published, measured) if len(published) == len(plans) else None,
    )


def fastest(plans: Sequence[MeasuredPlan]) -> list[MeasuredPlan]:
    """Returns the plan to use of each group: the one that was measured fastest."""
    best: dict[str, MeasuredPlan] = {}
    for plan in plans:
        if plan.passes and (plan.group not in best or plan.step_ms < best[plan.group].step_ms):
            best[plan.group] = plan
    return list(best.values())
