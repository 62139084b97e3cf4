"""The twin as one graph whose numbers of users and candidates are free."""

import torch
import torch.fx.experimental._config as shape_config
from torch import Tensor
from torch.export import Dim, ExportedProgram

from mail_torchrec.export.inference_model import Twin
from mail_torchrec.export.quiet_exporter import quiet_exporter
from mail_torchrec.inference.requests import Input

_DTYPES = {"int64": torch.int64, "float32": torch.float32, "bool": torch.bool}
_SIZES = {"users": 3, "candidates": 5}
_WIDTH = 2  # of lists; sizes of 0 and 1 would be taken for constants


def capture(twin: Twin, tower_name: str) -> tuple[ExportedProgram, dict[str, tuple[int, ...]]]:
    """The graph, and its outputs: name -> size behind the free first one.

    Raises:
        ValueError: a tower does what a graph cannot hold.
    """
    free: dict[str, Dim] = {}
    values = tuple(_example(spec) for spec in twin.inputs)
    sizes = tuple(_sizes(spec, free) for spec in twin.inputs)
    with torch.no_grad():
        outputs = {name: tuple(value.shape[1:]) for name, value in twin.outputs(*values).items()}
        # Without it a graph captured with several rows may be compiled into one that is wrong for a
        # single one.
        with shape_config.patch(backed_size_oblivious=True), quiet_exporter():
            program = _traced(twin, values, sizes, tower_name)
    return program, outputs


def _traced(
    twin: Twin, values: tuple[Tensor, ...], sizes: tuple[dict[int, Dim], ...], tower_name: str
) -> ExportedProgram:
    try:
        return torch.export.export(twin, values, dynamic_shapes={"values": sizes}, strict=False)
    except Exception as error:  # tracing runs a user's tower, which may raise anything
        raise ValueError(
            f"model.tower '{tower_name}' cannot be traced into one graph ({type(error).__name__}: "
            f"{_short(error)}); it should compute "
            "with tensors alone, for any number of rows: no branches on values, no counts of rows "
            "as integers (shape[0], not len)"
        ) from error


def _example(spec: Input) -> Tensor:
    return torch.zeros(
        [_SIZES.get(size, _WIDTH) if isinstance(size, str) else size for size in spec.shape],
        dtype=_DTYPES[spec.dtype],
    )


def _sizes(spec: Input, free: dict[str, Dim]) -> dict[int, Dim]:
    for size in spec.shape:
        if isinstance(size, str) and size not in free:
            free[size] = Dim(size if size in _SIZES else f"width_{len(free)}", min=1)
    return {axis: free[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)}


def _short(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
