"""ONNX form of the exported program; the initialisers of tables name their raw files."""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import onnx_ir
import torch
from torch.export import ExportedProgram

from mail_torchrec.export.exporter_logging import suppress_exporter_logs
from mail_torchrec.export.table_files import TableFile
from mail_torchrec.inference.artifact_files import DENSE_WEIGHTS
from mail_torchrec.inference.batch_first_graph import separate_names

OPSET = 20
_DTYPES = {
    "float32": onnx_ir.DataType.FLOAT,
    "float16": onnx_ir.DataType.FLOAT16,
    "uint8": onnx_ir.DataType.UINT8,
    "int32": onnx_ir.DataType.INT32,
    "int64": onnx_ir.DataType.INT64,
}
_ALIGNMENT = 64
_SMALL = 1024  # bytes; smaller constants stay in the graph


def write_onnx(
    program: ExportedProgram,
    inputs: list[str],
    outputs: list[str],
    tables: Mapping[str, TableFile],
    path: Path,
) -> None:
    """Writes the model, and the dense weights beside it.

    Args:
        program: the traced inference model.
        inputs: names of its inputs, in order.
        outputs: names of its outputs, in order.
        tables: by the graph's name of a buffer, its file below the folder of ``path``.
        path: file of the model.
    """
    model = _convert(program, inputs, outputs)
    initializers = model.graph.initializers
    _check_looked_up(tables, initializers)
    with (path.parent / DENSE_WEIGHTS).open("wb") as dense:
        for name, value in initializers.items():
            assert value.const_value is not None
            if name in tables:
                value.const_value = _table_tensor(name, tables[name], path.parent)
            elif value.const_value.nbytes > _SMALL:
                value.const_value = _dense_tensor(name, value.const_value, dense, path.parent)
    for node in model.graph.all_nodes():  # drops the source lines and paths of this machine
        node.metadata_props.clear()
        node.doc_string = None
    onnx_ir.save(model, path)


def _convert(program: ExportedProgram, inputs: list[str], outputs: list[str]) -> onnx_ir.Model:
    with suppress_exporter_logs():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[f"input.{place}" for place in range(len(inputs))],
            output_names=[f"output.{place}" for place in range(len(outputs))],
            optimize=True,
            verbose=False,
        )
    assert exported is not None
    graph = exported.model.graph
    # Only now, for the exporter would not keep a column's name apart from those of its own values.
    for value, name in zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True):
        value.name = name
    separate_names(graph)
    return exported.model


def _check_looked_up(
    tables: Mapping[str, TableFile], initializers: Mapping[str, onnx_ir.Value]
) -> None:
    """Asserts that the graph looks every table up, or another constant of the same bytes.

    The exporter merges small constants that are equal, such as first-order weights that are all 0.
    """
    constants = [value.const_value for value in initializers.values()]
    small = {one.tobytes() for one in constants if one is not None and one.nbytes <= _SMALL}
    unused = [
        name
        for name in sorted(tables.keys() - initializers.keys())
        if tables[name].num_bytes > _SMALL or tables[name].path.read_bytes() not in small
    ]
    assert not unused, f"tables that the graph does not look up: {unused}"


def _table_tensor(name: str, file: TableFile, folder: Path) -> onnx_ir.ExternalTensor:
    return onnx_ir.ExternalTensor(
        str(file.path.relative_to(folder)),
        0,
        file.num_bytes,
        _DTYPES[file.dtype],
        shape=onnx_ir.Shape(file.shape),
        name=name,
        base_dir=folder,
    )


def _dense_tensor(
    name: str, tensor: onnx_ir.TensorProtocol, dense: BinaryIO, folder: Path
) -> onnx_ir.ExternalTensor:
    """Appends a constant to the dense weights, aligned."""
    dense.write(bytes(-dense.tell() % _ALIGNMENT))
    start, data = dense.tell(), tensor.tobytes()
    dense.write(data)
    return onnx_ir.ExternalTensor(
        DENSE_WEIGHTS,
        start,
        len(data),
        tensor.dtype,
        shape=tensor.shape,
        name=name,
        base_dir=folder,
    )
