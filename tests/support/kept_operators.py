"""The ONNX exporter's table of operators, kept: each export would build it anew, for 0.7 s."""

from functools import cache
from typing import Any

import pytest
import torch


def keep_operators(patch: pytest.MonkeyPatch) -> None:
    """Lets ``torch.onnx.export`` build the table of an operator set once in this process.

    Nothing is imported for it before the first export.
    """
    really_export, is_kept = torch.onnx.export, False

    def export(*arguments: Any, **options: Any) -> Any:
        nonlocal is_kept
        if not is_kept:
            _keep(patch)
            is_kept = True
        return really_export(*arguments, **options)

    patch.setattr(torch.onnx, "export", export)


def _keep(patch: pytest.MonkeyPatch) -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    kept = staticmethod(cache(ONNXRegistry.from_torchlib))
    patch.setattr(ONNXRegistry, "from_torchlib", kept)
