"""Bytes of embedding tables and of their optimizer state."""

import math
from typing import Literal

from mail_torchrec.embeddings.settings import OptimizerName

MemoryKind = Literal["hbm", "host"]
MEMORY_KINDS: tuple[MemoryKind, ...] = ("hbm", "host")

_FLOAT_BYTES = 4
_STATE_VALUES: dict[OptimizerName, tuple[int, int]] = {
    "sgd": (0, 0),
    "rowwise_adagrad": (0, 1),
    "adagrad": (1, 0),
    "partial_rowwise_adam": (1, 1),
    "adam": (2, 0),
}
"""Float32 values of each optimizer's state: for each weight, and for each row."""


def optimizer_state_bytes(optimizer: OptimizerName, rows: int, columns: int) -> int:
    """Returns the bytes of a fused optimizer's state for ``rows x columns`` weights."""
    per_weight, per_row = _STATE_VALUES[optimizer]
    return _FLOAT_BYTES * rows * (per_weight * columns + per_row)


def weight_bytes(rows: int, columns: int) -> int:
    """Returns the bytes of ``rows x columns`` float32 weights."""
    return _FLOAT_BYTES * rows * columns


def format_bytes(total: float) -> str:
    """Formats a number of bytes with a binary unit, such as ``71.2 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(total) < 1024 or unit == "TiB":
            whole = unit == "B" or abs(total) >= 100
            return f"{total:.0f} {unit}" if whole else f"{total:.1f} {unit}"
        total /= 1024
    raise AssertionError(math.inf)
