"""Parity between an exported model's scores and the trainer's.

``B`` candidates of the golden requests.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mail_torchrec.calibration.calibrator import Calibrator
from mail_torchrec.calibration.negatives import product_logits
from mail_torchrec.config import Config
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.data.source import Source
from mail_torchrec.export.compact_tables import CompactTables
from mail_torchrec.export.table_files import TableType
from mail_torchrec.inference.golden import write_rows
from mail_torchrec.inference.manifest import ParityInfo
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Arrays, Scorer, max_difference
from mail_torchrec.inference.values import ValueType
from mail_torchrec.model.mail import Towers
from mail_torchrec.towers.outputs import CLICK_TASK
from mail_torchrec.towers.tasks.layout import TaskLayout

TOLERANCES: dict[TableType, float] = {"float32": 1e-5, "float16": 1e-3, "int8": 2e-2}
"""Largest difference of a score from the trainer's, by the type of the tables."""

Scores = dict[str, npt.NDArray[Any]]
"""Probabilities and expected values [B] by output name."""


def golden_batch(
    requests: Sequence[Request],
    types: dict[str, ValueType],
    config: Config,
    encoders: Encoders,
    feature_tables: FeatureTables,
    folder: Path,
) -> Batch:
    """Reads the requests' candidates, one a row, as the trainer reads rows of a file.

    Args:
        requests: golden requests.
        types: value type of each raw column.
        config: configuration of the run.
        encoders: fitted encoders of the run.
        feature_tables: feature keys of a batch and their tables.
        folder: place for the file.
    """
    path = folder / "golden.parquet"
    write_rows(requests, config.schema_, types, path)
    unread = config.schema_.names(Group.WEIGHT, Group.DAY)
    source = Source(str(path), config.schema_, {}, unread=unread)
    # The requests come without hidden behaviours, so none are to be hidden again; and this process
    # reads them, whoever read the training data.
    unhidden = {"cold_start": ColdStartSettings(), "num_workers": 0}
    data = config.data.model_copy(update=unhidden)
    reader = Reader(
        source,
        config.schema_,
        encoders,
        feature_tables,
        data,
        rank_info=RankInfo(),
        batch_size=source.num_rows,
        shuffle=False,
        seed=0,
    )
    [batch] = list(reader)
    return batch


@torch.no_grad()
def trainer_scores(
    compact: CompactTables, towers: Towers, calibrator: Calibrator | None = None
) -> Scores:
    """Computes the scores that the trainer's model gives the rows of a batch.

    A calibration is computed on its logits in float64, by other code than the graph's.

    Args:
        compact: the batch, and the table rows that it looks up.
        towers: trained.
        calibrator: of the clicks; None for none.
    """
    model, batch = compact.model(towers)
    outputs = model(batch)[1]
    layout, logits_B, tasks = outputs.layout, outputs.logits_B, outputs.tasks
    if calibrator is not None:
        values = {CLICK_TASK: logits_B, **tasks}
        calibrated = _calibrated(
            {k: v.double().numpy() for k, v in values.items()}, layout, calibrator
        )
        logits_B, *_ = tensors = [torch.from_numpy(values_B) for values_B in calibrated.values()]
        tasks = dict(zip(tasks, tensors[1:], strict=True))
    scores = layout.scores(logits_B, tasks)
    return {name: values_B.numpy().astype(np.float32) for name, values_B in scores.items()}


def _calibrated(values: Scores, layout: TaskLayout, calibrator: Calibrator) -> Scores:
    """Calibrates the clicks among the predictions [B], and what follows them."""
    values = values | {CLICK_TASK: calibrator(values[CLICK_TASK])}
    for product in layout.products:
        values[product.name] = product_logits(values[product.before], values[product.given])
    return values


def check_parity(
    folder: Path,
    table_type: TableType,
    compiled: Callable[[Arrays], Arrays] | None = None,
) -> dict[str, ParityInfo]:
    """Compares every format's scores of the golden requests with the trainer's.

    Args:
        folder: folder of the exported model.
        table_type: type of its tables.
        compiled: the compiled model, from inputs to outputs by name; None where there is none.

    Returns:
        The differences by format, ``onnx`` and ``aoti``.

    Raises:
        ValueError: scores differ by more than the tolerance.
    """
    scorer, tolerance = Scorer(folder, verify=False), TOLERANCES[table_type]
    differences = {"onnx": scorer.max_difference()}
    if compiled is not None:
        differences["aoti"] = max_difference(folder, scorer.encode, compiled)
    for name, difference in differences.items():
        if difference > tolerance:
            remedy = (
                "does its tower score a row otherwise in another batch?"
                if table_type == "float32"
                else "export wider tables"
            )
            raise ValueError(
                f"the scores of the {name} model differ by {difference:.2g} from the "
                f"trainer's, and with {table_type} tables by at most {tolerance:g}; nothing was "
                f"written: {remedy}"
            )
    return {
        name: ParityInfo(tolerance=tolerance, max_difference=difference)
        for name, difference in differences.items()
    }
