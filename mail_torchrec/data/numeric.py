"""Numeric columns: transformed, and standardised by mean and deviation of the training data.

Shapes: ``R`` rows.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mail_torchrec.data.parquet.arrow import Floats, finite_numbers
from mail_torchrec.data.schema.columns import Transform


def numeric_values(
    column: pa.ChunkedArray, transform: Transform, *, file: str, name: str
) -> npt.NDArray[np.float64]:
    """Converts and transforms a numeric column, [R]; a null becomes NaN.

    Raises:
        ValueError: NaN or infinity in the file, or a negative number under ``log``; with file,
            column, row and value.
    """
    values_R = finite_numbers(column, file=file, name=name)
    if transform is Transform.NONE:
        return values_R
    negative = np.flatnonzero(values_R < 0)
    if len(negative):
        raise ValueError(
            f"{file}: column '{name}' should be >= 0 for transform 'log', received "
            f"{values_R[negative[0]]:g} in row {negative[0]} "
            "of its row group; use transform 'none' or null"
        )
    return np.log1p(values_R)


@dataclass(frozen=True)
class NumericScale:
    """Mean and standard deviation that standardise a numeric column."""

    mean: float
    deviation: float

    def apply(self, values_R: npt.NDArray[np.float64]) -> Floats:
        """Standardises values, [R], clipped to the range of float32; NaN becomes 0, the mean."""
        largest = float(np.finfo(np.float32).max)
        standardised_R = np.nan_to_num((values_R - self.mean) / self.deviation, nan=0.0)
        return standardised_R.clip(-largest, largest).astype(np.float32)


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of the numbers added so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @staticmethod
    def of(values_R: npt.NDArray[np.float64]) -> "Moments":
        """Returns the moments of some numbers, [R], NaN left out."""
        values = values_R[~np.isnan(values_R)]
        if not len(values):
            return Moments()
        mean = float(values.mean())
        values -= mean
        return Moments(len(values), mean, float(np.square(values, out=values).sum()))

    def add(self, values_R: npt.NDArray[np.float64]) -> None:
        """Adds numbers, [R], NaN left out."""
        self.merge(Moments.of(values_R))

    def merge(self, part: "Moments") -> None:
        """Adds the moments of other numbers (Chan, Golub and LeVeque 1979).

        The pairwise update subtracts no large sums from each other. The order of the parts decides
        how it rounds.
        """
        if not part.count:
            return
        count = self.count + part.count
        between = (part.mean - self.mean) ** 2 * self.count * part.count / count
        self.squares += part.squares + between
        self.mean += (part.mean - self.mean) * part.count / count
        self.count = count

    def scale(self) -> NumericScale:
        """Returns mean and deviation; a deviation that is mere rounding, or 0, becomes 1."""
        deviation = math.sqrt(self.squares / max(self.count, 1))
        least = max(1e-12 * abs(self.mean), float(np.finfo(np.float32).tiny))
        return NumericScale(self.mean, deviation if deviation > least else 1.0)
