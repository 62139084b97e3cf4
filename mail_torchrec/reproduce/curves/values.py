"""Values of a curve: each method at each point, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mail_torchrec.reporting.comparison import MetricIntervals
from mail_torchrec.reporting.intervals import Interval


@dataclass(frozen=True)
class CurveValue:
    """One method at one point."""

    point: str
    method: str
    metrics: MetricIntervals
    differences: Mapping[str, MetricIntervals]
    """From the method's base and from its controls, by their names."""
    headroom: Interval | None
    """Share of the oracle's gain over the base on new rows (AUC); None where that gain is not clear
    of 0."""


@dataclass(frozen=True)
class CurveContent:
    """A curve: its points and methods in their order, and the values."""

    title: str
    over: str
    """Words for the axis."""
    points: Mapping[str, str]
    """Title of each point by its name, in their order."""
    methods: Sequence[str]
    values: Mapping[tuple[str, str], CurveValue]
    """By point and method."""
    num_seeds: int
    num_resamples: int

    @property
    def caption(self) -> str:
        """The words for what the plots show."""
        seeds = f"means over {self.num_seeds} seeds" if self.num_seeds > 1 else "one seed"
        return (
            f"headroom recovered and AUC of new users, and old users' difference from the plain "
            f"tower, over the {self.over}; {seeds}, 95 % bands by the paired bootstrap."
        )

    def along(self, method: str) -> list[CurveValue]:
        """Returns a method's values in the order of the points."""
        return [self.values[point, method] for point in self.points]

    def references_of(self, method: str) -> list[str]:
        """Returns what a method is compared with, its base first."""
        return list(self.along(method)[0].differences)

    @property
    def references(self) -> list[str]:
        """Returns all that methods are compared with."""
        return list(dict.fromkeys(name for of in self.methods for name in self.references_of(of)))
