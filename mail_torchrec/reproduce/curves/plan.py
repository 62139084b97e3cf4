"""Plans the trainings of a curve: every method at every point, for every seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mail_torchrec.reproduce.curves.points import Axis, CurvePoint
from mail_torchrec.reproduce.jobs import TrainingJob, group_by_method, plan_trainings
from mail_torchrec.reproduce.methods.definitions import METHODS

_OWN_SHARE = "data.cold_start.train_share=null"


@dataclass(frozen=True)
class CurvePlan:
    """Trainings of a curve."""

    axis: Axis
    points: Sequence[CurvePoint]
    methods: Sequence[str]
    trainings: Mapping[tuple[str, str], Sequence[TrainingJob]]
    """Seeds by names of point and method. Of the training shares an oracle has one training for
    all: nothing is hidden from it."""

    @property
    def jobs(self) -> list[TrainingJob]:
        """All trainings, each once, seed by seed."""
        by_path = {job.path: job for seeds in self.trainings.values() for job in seeds}
        return sorted(by_path.values(), key=lambda job: job.seed)


def plan_curve(
    axis: Axis,
    points: Sequence[CurvePoint],
    methods: Sequence[str],
    config_path: Path,
    out: Path,
    num_seeds: int,
    overrides: tuple[str, ...],
) -> CurvePlan:
    """Plans every training; each configuration is validated.

    Args:
        axis: of the curve.
        points: of the axis.
        methods: their names.
        config_path: the user's configuration.
        out: folder of the reproduction; runs are in ``curve/POINT/runs`` below it.
        num_seeds: seeds of each method at each point.
        overrides: of the command line.

    Raises:
        ValueError: as :func:`~mail_torchrec.reproduce.jobs.plan_trainings`.
    """

    def plan(name: str, title: str, names: list[str], own: tuple[str, ...]) -> list[TrainingJob]:
        folder = out / "curve" / name
        return plan_trainings(
            config_path, folder, names, num_seeds, (*overrides, *own), point=title
        )

    is_shared = {name: METHODS[name].is_oracle and axis is Axis.SHARE for name in methods}
    shared: dict[str, list[TrainingJob]] = {}
    if oracles := [name for name in methods if is_shared[name]]:
        shared = group_by_method(plan("any-share", "any share", oracles, (_OWN_SHARE,)))
    trainings: dict[tuple[str, str], list[TrainingJob]] = {}
    for point in points:
        swept = [name for name in methods if not is_shared[name]]
        of_point = group_by_method(plan(point.name, point.title, swept, point.overrides)) | shared
        trainings |= {(point.name, name): of_point[name] for name in methods}
    return CurvePlan(axis, points, methods, trainings)
