"""Rows as requests, and a whole model of random weights with its plain twin."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders, fit_encoders
from mail_torchrec.data.parquet.source import Source
from mail_torchrec.data.reading.reader import Reader, Share
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.embeddings.tables import build_tables
from mail_torchrec.export.inference_model import Twin
from mail_torchrec.export.table_files import RawFile, Table, TableFiles
from mail_torchrec.inference.requests import (
    Request,
    RequestEncoder,
    candidate_columns,
    model_inputs,
    user_columns,
    value_types,
)
from mail_torchrec.model.mail import Mail, Towers
from mail_torchrec.train.assembly import feature_tables_of
from tests.support.small_rows import config_tree


def requests_of(path: Path, schema: Schema, rows: Sequence[int]) -> list[Request]:
    """Each row as a request of its own, with one candidate."""
    users, candidates = (
        [schema.file_column(name) for name in names]
        for names in (user_columns(schema), candidate_columns(schema))
    )
    return [
        Request(
            {column: row[column] for column in users},
            [{column: row[column] for column in candidates}],
        )
        for row in pq.read_table(path).take(list(rows)).to_pylist()
    ]


class Whole:
    """The trainer's model with unsharded tables, its weights random, its running statistics not those that it began with."""

    def __init__(self, root: Path, folder: Path, **sections: dict[str, Any]) -> None:
        self.config = Config.model_validate(config_tree(root, **sections))
        self.path, schema = root / "test" / "c.parquet", self.config.schema_
        self.encoders: Encoders = fit_encoders(
            Source(str(root / "train"), schema), schema, self.config.data.cold_start
        )
        self.feature_tables = feature_tables_of(self.config)
        torch.manual_seed(1)
        towers = Towers(self.config.model, schema, self.feature_tables, self.encoders.num_rows)
        self.model = Mail(
            *build_tables(schema, self.feature_tables, self.encoders.num_rows, torch.device("cpu")),
            towers,
        ).eval()
        for name, value in self.model.state_dict().items():
            if value.is_floating_point() and "products" not in name:
                positive = "running_var" in name or "square" in name or value.dim() == 0
                value.uniform_(0.5, 1.0) if positive else value.normal_(
                    0, 0.7 if "tables" in name else 0.4
                )
        self.model.requires_grad_(False)
        self.types = value_types(pq.read_table(self.path), schema)
        self.encode = RequestEncoder(schema, self.encoders, self.types)
        self.files: dict[str, RawFile] = {}  # buffer of the twin -> where it lies
        self.inputs = model_inputs(schema, self.encoders.num_rows)
        self.twin = Twin(
            towers,
            self._tables(folder),
            self.inputs,
            schema,
            self.feature_tables,
            self.config.data.new_user_max_behaviours,
        )

    def trained(self, num_rows: int) -> dict[str, Tensor]:
        """The model's probabilities of the file's first rows, read as the trainer reads them."""
        reader = Reader(
            Source(str(self.path), self.config.schema_), self.config.schema_, self.encoders, self.feature_tables, self.config.data,
            share=Share(), batch_size=10_000, shuffle=False, seed=0,
        )  # fmt: skip
        [batch] = list(reader)
        outputs = self.model(batch)[1]
        logits = {"pctr": outputs.logits_B} | {
            f"p{name}": logits_B for name, logits_B in outputs.tasks.items()
        }
        return {name: torch.sigmoid(logits_B)[:num_rows] for name, logits_B in logits.items()}

    def by_twin(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        encoded = self.encode(requests)
        return self.twin.outputs(
            *(torch.from_numpy(np.asarray(encoded[spec.name])) for spec in self.inputs)
        )

    def _tables(self, folder: Path) -> dict[str, Table]:
        tables = {}
        for collection in (self.model.pooled_tables, self.model.unpooled_tables):
            for key, value in collection.state_dict().items():
                file = RawFile(folder / f"{key}.float32", "float32", tuple(value.shape))
                file.create()
                file.write(value, 0, 0)
                tables[key.split(".")[1]] = Table(TableFiles(file))
                self.files[f"tables.{key.split('.')[1]}_.weight"] = file
        return tables
