"""Scored rows as metrics take them.

Shape: ``B`` rows of a batch.
"""

from typing import Any

from numpy.typing import NDArray

from mail_torchrec.calibration.negatives import logits_of_sample, product_logits
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.metrics.cohorts import ConversionScores, EvaluatedRows, TaskScores
from mail_torchrec.predictions.scored_batch import ScoredBatch
from mail_torchrec.towers.outputs import CLICK_TASK
from mail_torchrec.towers.tasks.layout import TaskLayout

Columns = dict[str, NDArray[Any]]
"""Columns [rows] by name; predictions of tasks begin with ``task/``, their targets ``target/``."""


def metric_columns(batch: ScoredBatch) -> Columns:
    """Returns the columns [B] that metrics need."""
    columns: Columns = {
        CLICK_TASK: batch.logits_B,
        "labels": batch.labels_B,
        "users": batch.users_B,
        "is_new": batch.is_new_B,
        "weights": batch.weights_B,
        "conversions": batch.conversions_B,
    }
    if batch.is_new_item_B is not None:
        columns["is_new_item"] = batch.is_new_item_B
    columns |= {f"task/{name}": logits_B for name, logits_B in batch.task_logits.items()}
    return columns | {f"target/{name}": labels_B for name, labels_B in batch.task_targets.items()}


def evaluated_rows(own: Columns, layout: TaskLayout, reader: Reader) -> EvaluatedRows:
    """Names this rank's columns [rows] of :func:`metric_columns`.

    Where the rows are downsampled, the logits are of such rows, which their labels follow.

    Args:
        own: columns of all batches.
        layout: meaning of the predictions.
        reader: of the rows.
    """
    found = {name.removeprefix("task/"): values for name, values in own.items()}
    if (kept := reader.negatives_kept) != 1:
        found[CLICK_TASK] = logits_of_sample(own[CLICK_TASK], kept)
        for product in layout.products:
            found[product.name] = product_logits(found[product.before], found[product.given])
    has_conversions = "task/ctcvr" in own
    return EvaluatedRows(
        found[CLICK_TASK],
        own["labels"],
        own["users"],
        own["is_new"],
        ConversionScores(own["conversions"], found["cvr"], found["ctcvr"])
        if has_conversions
        else None,
        own["weights"] if reader.has_weights else None,
        training_shift=reader.training_shift,
        tasks=[
            TaskScores(name, found[name], own[f"target/{name}"], name in layout.values)
            for name in found
            if f"target/{name}" in own
        ],
        is_new_item_R=own.get("is_new_item"),
    )
