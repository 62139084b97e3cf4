"""Tracing of the inference model into one graph with free numbers of users and candidates."""

import torch
import torch.fx.experimental._config as shape_config
from torch import Tensor
from torch.export import Dim, ExportedProgram

from mail_torchrec.export.exporter_logging import suppress_exporter_logs
from mail_torchrec.export.inference_model import InferenceModel
from mail_torchrec.inference.requests import InputSpec

_DTYPES = {"int64": torch.int64, "float32": torch.float32, "bool": torch.bool}
_EXAMPLE_SIZES = {"users": 3, "candidates": 5}
_EXAMPLE_WIDTH = 2  # of lists; torch.export takes sizes of 0 and 1 for constants


def export_program(model: InferenceModel, tower_name: str) -> ExportedProgram:
    """Traces the inference model.

    Args:
        model: its outputs are the graph's, in the order of their specs.
        tower_name: the ranking tower, for messages.

    Raises:
        ValueError: a tower computes what a graph cannot hold.
    """
    free_sizes: dict[str, Dim] = {}
    values = tuple(_example(spec) for spec in model.inputs)
    dynamic_shapes = {"values": tuple(_dynamic_shape(spec, free_sizes) for spec in model.inputs)}
    # Without `backed_size_oblivious` a graph traced with several rows may be compiled into one
    # that is wrong for a single row.
    with (
        torch.no_grad(),
        shape_config.patch(backed_size_oblivious=True),
        suppress_exporter_logs(),
    ):
        try:
            return torch.export.export(model, values, dynamic_shapes=dynamic_shapes, strict=False)
        except Exception as error:  # tracing runs a user's tower, which may raise anything
            raise ValueError(
                f"model.tower '{tower_name}' cannot be traced into one graph "
                f"({type(error).__name__}: {_first_line(error)}); it should compute with tensors "
                "alone, for any number of rows: no branches on values, no counts of rows as "
                "integers (shape[0], not len)"
            ) from error


def _example(spec: InputSpec) -> Tensor:
    sizes = [
        _EXAMPLE_SIZES.get(size, _EXAMPLE_WIDTH) if isinstance(size, str) else size
        for size in spec.shape
    ]
    return torch.zeros(sizes, dtype=_DTYPES[spec.dtype])


def _dynamic_shape(spec: InputSpec, free_sizes: dict[str, Dim]) -> dict[int, Dim]:
    """Finds the free axes of an input, and records new free sizes in ``free_sizes``."""
    for size in spec.shape:
        if isinstance(size, str) and size not in free_sizes:
            name = size if size in _EXAMPLE_SIZES else f"width_{len(free_sizes)}"
            free_sizes[size] = Dim(name, min=1)
    return {axis: free_sizes[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
