"""Silence while torch's exporters work."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """They tell their own developers what they did."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx", "torch.fx", "torch._inductor", "onnx_ir", "onnxscript")
    ]
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
