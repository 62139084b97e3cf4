"""The graph as ONNX, its tables left where they lie: each initialiser of a table names a raw file."""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir
import torch
from torch.export import ExportedProgram

from mail_torchrec.export.quiet_exporter import quiet_exporter
from mail_torchrec.export.table_files import RawFile

OPSET = 20
DENSE = "dense.bin"
_DTYPES = {
    "float32": onnx_ir.DataType.FLOAT,
    "float16": onnx_ir.DataType.FLOAT16,
    "uint8": onnx_ir.DataType.UINT8,
}
_ALIGNMENT = 64
_SMALL = 1024  # bytes; smaller constants stay in the graph


def write_onnx(
    program: ExportedProgram,
    inputs: list[str],
    outputs: list[str],
    tables: Mapping[str, RawFile],
    path: Path,
) -> None:
    """Writes ``path`` and, beside it, the dense weights.

    Args:
        program: the captured graph.
        inputs: names, in order.
        outputs: names, in order.
        tables: the graph's name of a buffer -> its file, below the folder of ``path``.
        path: of the model.
    """
    with quiet_exporter():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            optimize=True,
            verbose=False,
        )
    assert exported is not None
    model = exported.model
    initializers = model.graph.initializers
    assert tables.keys() <= initializers.keys(), (
        f"tables that the graph does not look up: {sorted(tables.keys() - initializers.keys())}"
    )
    with (path.parent / DENSE).open("wb") as dense:
        for name, value in initializers.items():
            assert value.const_value is not None
            if name in tables:
                value.const_value = _external(name, tables[name], path.parent)
            elif value.const_value.nbytes > _SMALL:
                dense.write(bytes(-dense.tell() % _ALIGNMENT))
                start, data, tensor = dense.tell(), value.const_value.tobytes(), value.const_value
                dense.write(data)
                value.const_value = onnx_ir.ExternalTensor(
                    DENSE,
                    start,
                    len(data),
                    tensor.dtype,
                    shape=tensor.shape,
                    name=name,
                    base_dir=path.parent,
                )
    for node in model.graph.all_nodes():  # which line of which file on this machine it came from
        node.metadata_props.clear()
        node.doc_string = None
    onnx_ir.save(model, path)


def _external(name: str, file: RawFile, folder: Path) -> onnx_ir.ExternalTensor:
    location = file.path.relative_to(folder)
    return onnx_ir.ExternalTensor(
        str(location),
        0,
        file.num_bytes,
        _DTYPES[file.dtype],
        shape=onnx_ir.Shape(file.shape),
        name=name,
        base_dir=folder,
    )
