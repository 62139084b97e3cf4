"""Suppression of what torch's exporters log for their own developers."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("torch.onnx", "torch.fx", "torch._inductor", "onnx_ir", "onnxscript")


@contextmanager
def suppress_exporter_logs() -> Iterator[None]:
    """Drops warnings, and logs below errors, of torch's exporters inside the block."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
