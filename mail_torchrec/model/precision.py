"""Number formats of the towers' matrix products in training."""

import torch

from mail_torchrec.towers.layers.cpu_bfloat16 import has_bfloat16_units
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)


def tower_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Returns the type that the towers' matrix products are computed in during training.

    Changes no state; see :func:`set_matmul_precision` for ``tf32``, which is a mode of float32.

    Raises:
        ValueError: tf32 on a CPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(
            "train.precision: tf32 is a precision of GPUs, and this run is on a CPU; choose "
            "float32, or bfloat16 with AMX"
        )
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def set_matmul_precision(precision: str, device: torch.device) -> None:
    """Switches TF32 for float32 matrix products on or off, for the whole process.

    Warns where bfloat16 was chosen and the device only emulates it.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if precision == "bfloat16" and not has_native_bfloat16(device):
        logger.warning(
            "train.precision=bfloat16, and this %s has no units for it: it is emulated, far "
            "slower than float32",
            device.type,
        )


def has_native_bfloat16(device: torch.device) -> bool:
    """Returns whether the device multiplies bfloat16 matrices faster than float32 matrices."""
    if device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device) >= (8, 0))
    return has_bfloat16_units()
