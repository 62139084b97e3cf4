"""What a run's arithmetic is done in, and whether this machine has units for it."""

import sys

import torch
from tqdm import tqdm

from mail_torchrec.distributed.collectives import rank
from mail_torchrec.train.settings import TrainSettings


def tower_dtype(settings: TrainSettings, device: torch.device) -> torch.dtype:
    """The type of the towers' matrix products in training; with ``tf32`` PyTorch is told to use it for float32.

    Raises:
        ValueError: tf32 on a CPU.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if settings.precision == "tf32" else "highest")
    elif settings.precision == "tf32":
        raise ValueError(
            "train.precision: tf32 is a precision of GPUs, and this run is on a CPU; choose "
            "float32, or bfloat16 with AMX"
        )
    if settings.precision != "bfloat16":
        return torch.float32
    if not has_bfloat16(device) and rank() == 0:
        tqdm.write(
            f"WARNING: train.precision=bfloat16, and this {device.type} has no units for it: it "
            "is emulated, far slower than float32",
            file=sys.stderr,
        )
    return torch.bfloat16


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device) >= (8, 0))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
