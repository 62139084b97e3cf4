"""Standardisation of vectors, element by element, by mean and deviation of the training data.

Shapes: ``R`` rows, ``E`` elements of a vector.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, FiniteFloat, TypeAdapter, model_validator

from mail_torchrec.data.content.vector_values import Vectors
from mail_torchrec.data.parquet.arrow import Floats
from mail_torchrec.settings import Settings
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.safe_paths import read_document

VECTOR_SCALES = "vector_scales.json"
"""File of the scales, beside the vocabularies."""


@dataclass(frozen=True)
class VectorScale:
    """Mean and standard deviation of each element of a column's vectors."""

    mean_E: npt.NDArray[np.float64]
    deviation_E: npt.NDArray[np.float64]

    @property
    def dim(self) -> int:
        """Number of elements, E."""
        return len(self.mean_E)

    def apply(self, values_RE: Vectors) -> Floats:
        """Standardises vectors, clipped to the range of float32; NaN becomes 0, the mean.

        Args:
            values_RE: of ``vector_values``.
        """
        largest = float(np.finfo(np.float32).max)
        standardised_RE = np.nan_to_num((values_RE - self.mean_E) / self.deviation_E, nan=0.0)
        return standardised_RE.clip(-largest, largest).astype(np.float32)


@dataclass
class VectorMoments:
    """Count, mean and sum of squared deviations, by element, of the vectors added so far."""

    dim: int | None = None
    """Number of elements; None until the first vector is known."""
    count: int = 0
    mean_E: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    squares_E: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @staticmethod
    def of(values_RE: Vectors) -> "VectorMoments":
        """Returns the moments of some vectors, those of NaN left out.

        Args:
            values_RE: of ``vector_values``.
        """
        values = values_RE[~np.isnan(values_RE).any(axis=1)]
        if not len(values):
            return VectorMoments()
        mean_E = values.mean(axis=0)
        squares_E = ((values - mean_E) ** 2).sum(axis=0)
        return VectorMoments(values.shape[1], len(values), mean_E, squares_E)

    def add(self, values_RE: Vectors) -> None:
        """Adds vectors, those of NaN left out.

        Args:
            values_RE: of ``vector_values``.
        """
        self.merge(VectorMoments.of(values_RE))

    def merge(self, part: "VectorMoments") -> None:
        """Adds the moments of other vectors (Chan, Golub and LeVeque 1979)."""
        if not part.count:
            return
        if not self.count:
            self.dim = len(part.mean_E)
            self.mean_E, self.squares_E = np.zeros(self.dim), np.zeros(self.dim)
        count, mean_E = self.count + part.count, part.mean_E
        between_E = (mean_E - self.mean_E) ** 2 * (self.count * part.count / count)
        self.squares_E = self.squares_E + part.squares_E + between_E
        self.mean_E = self.mean_E + (mean_E - self.mean_E) * (part.count / count)
        self.count = count

    def scale(self) -> VectorScale:
        """Returns means and deviations; a deviation that is mere rounding, or 0, becomes 1."""
        assert self.count, "no vector was added"
        deviation_E = np.sqrt(self.squares_E / self.count)
        least_E = np.maximum(1e-12 * np.abs(self.mean_E), float(np.finfo(np.float32).tiny))
        return VectorScale(self.mean_E, np.where(deviation_E > least_E, deviation_E, 1.0))


class _StoredVectorScale(Settings):
    """Scale of a column of vectors in its file."""

    mean: list[FiniteFloat] = Field(min_length=1)
    deviation: list[FiniteFloat]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.mean) != len(self.deviation) or min(self.deviation) <= 0:
            raise ValueError("should have a deviation above 0 for each mean")
        return self


_STORED = TypeAdapter(dict[str, _StoredVectorScale])


def save_vector_scales(scales: Mapping[str, VectorScale], folder: Path) -> None:
    """Writes the scales of all columns; no file where there are none."""
    if scales:
        content = {
            name: {"mean": scale.mean_E.tolist(), "deviation": scale.deviation_E.tolist()}
            for name, scale in scales.items()
        }
        write_file(folder / VECTOR_SCALES, json.dumps(content, indent=2) + "\n")


def load_vector_scales(folder: Path, names: list[str]) -> dict[str, VectorScale]:
    """Reads the scales of these columns; no file is read where there are none.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, or has not these columns.
    """
    if not names:
        return {}
    path = folder / VECTOR_SCALES
    stored = _STORED.validate_json(read_document(path, follow_link=True))
    if sorted(stored) != sorted(names):
        raise ValueError(f"'{path}' should hold {sorted(names)}, found {sorted(stored)}")
    return {
        name: VectorScale(np.asarray(stored[name].mean), np.asarray(stored[name].deviation))
        for name in names
    }
