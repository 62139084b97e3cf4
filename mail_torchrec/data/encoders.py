"""Encoders fitted on the training data: one of ids a table, a scale a column of numbers or vectors.

They are fitted once (``data/fitting.py``), saved with the model, and loaded by all that score.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from mail_torchrec.data.content.vector_scales import (
    VectorScale,
    load_vector_scales,
    save_vector_scales,
)
from mail_torchrec.data.ids.policy import IdEncoder
from mail_torchrec.data.numeric import NumericScale
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.safe_paths import read_document

_SCALES = "scales.json"


class _StoredScale(Settings):
    """Scale of a numeric column in its file."""

    mean: float
    deviation: float = Field(gt=0)


_STORED_SCALES = TypeAdapter(dict[str, _StoredScale])


@dataclass(frozen=True)
class Encoders:
    """Id encoders by table, scales by numeric column, and scales by vector column."""

    tables: dict[str, IdEncoder]
    scales: dict[str, NumericScale]
    vectors: dict[str, VectorScale] = field(default_factory=dict)

    @property
    def num_rows(self) -> dict[str, int]:
        """Number of rows of every table."""
        return {name: encoder.num_rows for name, encoder in self.tables.items()}

    @property
    def vector_dims(self) -> dict[str, int]:
        """Number of elements of every vector column."""
        return {name: scale.dim for name, scale in self.vectors.items()}

    def save(self, folder: Path) -> None:
        """Writes the state of every id encoder, and JSON files of the scales."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, encoder in self.tables.items():
            encoder.save(folder, name)
        scales = {
            name: {"mean": scale.mean, "deviation": scale.deviation}
            for name, scale in self.scales.items()
        }
        write_file(folder / _SCALES, json.dumps(scales, indent=2) + "\n")
        save_vector_scales(self.vectors, folder)

    @staticmethod
    def load(folder: Path, schema: Schema) -> "Encoders":
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: a file is missing, damaged, or no regular file.
        """
        path = folder / _SCALES
        try:
            stored = _STORED_SCALES.validate_json(read_document(path, follow_link=True))
            tables = {name: schema.id_policy(name).load(folder) for name in schema.table_names}
            vectors = load_vector_scales(folder, schema.vectors())
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder} should hold the vocabularies of a run: {error}; was the run directory "
                "copied whole?"
            ) from error
        except ValidationError as error:
            raise ValueError(f"'{path}' is damaged: {first_fault(error)}") from error
        return Encoders(
            tables,
            {name: NumericScale(scale.mean, scale.deviation) for name, scale in stored.items()},
            vectors,
        )
