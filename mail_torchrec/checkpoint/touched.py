"""Touched rows in checkpoints: read into a run that is resumed, and without one.

Shape: ``R`` rows of a table.
"""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from mail_torchrec.checkpoint.storage import read_tensor_metadata, read_tensors
from mail_torchrec.embeddings.touched.rows import TOUCHED, TouchedRows
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)


def load_touched(touched: TouchedRows, folder: Path) -> None:
    """Reads which rows a run had touched when it saved a checkpoint; every rank calls it.

    All rows of a table count as touched where the checkpoint does not say.

    Raises:
        ValueError: on every rank; the checkpoint cannot be read.
    """
    saved = read_tensor_metadata(folder)
    missing = [key.removeprefix(TOUCHED) for key in touched.state if key not in saved]
    for table in missing:
        touched.mark_all(table)
    if missing:
        logger.warning(
            "'%s' does not say which rows of %s were touched: from here on all of them count as "
            "touched",
            folder,
            ", ".join(missing),
        )
    state = {key: value for key, value in touched.state.items() if key in saved}
    read_tensors(state, folder, dist.group.WORLD)


def read_touched(folder: Path) -> dict[str, NDArray[np.bool_]]:
    """Reads which rows a run has touched since it began, without a process group.

    Those are at least all rows whose weights or optimizer state differ from those that the run
    began with.

    Args:
        folder: a checkpoint.

    Returns:
        Table -> flags [R] of its stored rows, output tables included.

    Raises:
        ValueError: the checkpoint is damaged, or its run recorded none.
    """
    state = {
        key: torch.zeros(tensor.size, dtype=torch.bool)
        for key, tensor in read_tensor_metadata(folder).items()
        if key.startswith(TOUCHED)
    }
    if not state:
        raise ValueError(
            f"'{folder}' does not say which rows its run touched; train it as a continued run, or "
            "with checkpoint.touched_rows=true"
        )
    read_tensors(state, folder)
    return {key.removeprefix(TOUCHED): flags_R.numpy() for key, flags_R in state.items()}
