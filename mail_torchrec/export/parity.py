"""Whether an artefact scores as the trainer does."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.parquet.source import Source
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.reader import Reader, Share
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.export.compact_tables import CompactTables
from mail_torchrec.export.inference_model import PROBABILITIES
from mail_torchrec.export.table_files import TableType
from mail_torchrec.inference.golden import write_rows
from mail_torchrec.inference.requests import Request, ValueType
from mail_torchrec.model.mail import Towers

BOUNDS: dict[TableType, float] = {"float32": 1e-5, "float16": 1e-3, "int8": 2e-2}
"""The most that a probability may differ from the trainer's."""

Scores = dict[str, npt.NDArray[np.float32]]


def golden_batch(
    requests: Sequence[Request],
    types: dict[str, ValueType],
    config: Config,
    encoders: Encoders,
    feature_tables: FeatureTables,
    folder: Path,
) -> Batch:
    """The requests' candidates, one a row, as the trainer reads them from a file."""
    path = folder / "golden.parquet"
    write_rows(requests, config.schema_, types, path)
    source = Source(str(path), config.schema_)
    data = config.data.model_copy(
        update={"cold_start": ColdStartSettings()}
    )  # hidden behaviours are not in the requests
    reader = Reader(
        source, config.schema_, encoders, feature_tables, data, share=Share(), batch_size=source.num_rows, shuffle=False, seed=0
    )  # fmt: skip
    [batch] = list(reader)
    return batch


@torch.no_grad()
def trainer_scores(compact: CompactTables, towers: Towers) -> Scores:
    """The probabilities that the trainer's model gives the rows of a batch, by output name."""
    model, batch = compact.model(towers)
    outputs = model(batch)[1]
    logits = {"click": outputs.logits_B} | outputs.tasks
    return {
        PROBABILITIES[task]: torch.sigmoid(logits_B).numpy() for task, logits_B in logits.items()
    }
