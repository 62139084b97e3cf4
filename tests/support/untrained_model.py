"""Rows of a file as requests, and a trainer's model of random weights with its inference model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.embeddings.tables import build_tables
from mail_torchrec.export.inference_model import InferenceModel
from mail_torchrec.export.table_files import GatherTable, TableFile, TableFiles
from mail_torchrec.inference.request_encoder import RequestEncoder
from mail_torchrec.inference.requests import Request, input_specs, request_columns
from mail_torchrec.inference.values import value_types
from mail_torchrec.model.mail import Mail, Towers
from mail_torchrec.train.assembly import config_feature_tables
from tests.support.small_rows import config_tree


def requests_of(path: Path, schema: Schema, rows: Sequence[int]) -> list[Request]:
    """Converts each row to a request of its own, with one candidate."""
    users, candidates = request_columns(schema)
    return [
        Request(
            {column: row[column] for column in users},
            [{column: row[column] for column in candidates}],
        )
        for row in pq.read_table(path).take(list(rows)).to_pylist()
    ]


class UntrainedModel:
    """Trainer's model with unsharded tables, random weights and changed running statistics."""

    def __init__(self, root: Path, folder: Path, **sections: dict[str, Any]) -> None:
        self.config = Config.model_validate(config_tree(root, **sections))
        self.path, schema = root / "test" / "c.parquet", self.config.schema_
        self.encoders: Encoders = fit_encoders(
            Source(str(root / "train"), schema), schema, self.config.data.cold_start
        )
        self.config = self.config.with_dims(self.encoders.num_rows)
        schema = self.config.schema_
        self.feature_tables = config_feature_tables(self.config)
        torch.manual_seed(1)
        towers = Towers(
            self.config.model,
            schema,
            self.feature_tables,
            self.encoders.num_rows,
            negatives_kept=self.config.data.negatives_kept,
            vector_dims=self.encoders.vector_dims,
        )
        self.model = Mail(
            *build_tables(schema, self.feature_tables, self.encoders.num_rows, torch.device("cpu")),
            towers,
        ).eval()
        for name, value in self.model.state_dict().items():
            if value.is_floating_point() and "products" not in name:
                above_0 = any(part in name for part in ("running_var", "square", "counts"))
                positive = above_0 or value.dim() == 0
                value.uniform_(0.5, 1.0) if positive else value.normal_(
                    0, 0.7 if "tables" in name else 0.4
                )
        self.model.requires_grad_(False)
        self.types = value_types(Source(str(self.path), schema).types, schema)
        rule = self.config.data.new_items
        self.encode = RequestEncoder(schema, self.encoders, self.types, rule)
        self.files: dict[str, TableFile] = {}
        """File of each buffer of the inference model."""
        of_data = self.encoders.num_rows, self.encoders.vector_dims, rule
        self.inputs = input_specs(schema, *of_data)
        self.outputs = towers.output_specs()
        self.inference_model = InferenceModel(
            towers,
            self._tables(folder),
            self.inputs,
            schema,
            self.feature_tables,
            self.config.data.new_user_max_behaviours,
        )

    def trainer_scores(self, num_rows: int) -> dict[str, Tensor]:
        """Computes the probabilities of the file's first rows, read as the trainer reads them."""
        schema = self.config.schema_
        reader = Reader(
            Source(str(self.path), schema),
            schema,
            self.encoders,
            self.feature_tables,
            self.config.data,
            rank_info=RankInfo(),
            batch_size=10_000,
            shuffle=False,
            seed=0,
        )
        [batch] = list(reader)
        outputs = self.model(batch)[1]
        scores = outputs.layout.scores(outputs.logits_B, outputs.tasks)
        return {name: values_B[:num_rows] for name, values_B in scores.items()}

    def inference_outputs(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        """Computes the outputs of the inference model by name."""
        encoded = self.encode(requests)
        return self.inference_model.outputs(
            *(torch.from_numpy(np.asarray(encoded[spec.name])) for spec in self.inputs)
        )

    def _tables(self, folder: Path) -> dict[str, GatherTable]:
        tables = {}
        for collection in (self.model.pooled_tables, self.model.unpooled_tables):
            for key, value in collection.state_dict().items():
                file = TableFile(folder / f"{key}.float32", "float32", tuple(value.shape))
                file.create()
                file.write_shard(value, 0, 0)
                tables[key.split(".")[1]] = GatherTable(TableFiles(file))
                self.files[f"tables.{key.split('.')[1]}_.weight"] = file
        return tables
