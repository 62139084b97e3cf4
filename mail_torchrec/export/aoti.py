"""The graph compiled by AOTInductor, its weights left where they lie: what loads it needs torch and nothing else.

The machine code is of the instruction set of the CPU that compiled it.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from mail_torchrec.export.quiet_exporter import quiet_exporter
from mail_torchrec.inference.manifest import Manifest
from mail_torchrec.inference.scorer import Arrays

MODEL, DENSE = "model.pt2", "dense.pt"
_DTYPES = {".float16": torch.float16, ".uint8": torch.uint8}  # other files hold float32


def check_compiler() -> None:
    """Whether anything can compile.

    Raises:
        ValueError: nothing can.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"--aoti compiles C++, and there is no '{compiler}'; install g++, or name a compiler "
            "in CXX"
        )


def write_aoti(program: ExportedProgram, tables: Mapping[str, object], folder: Path) -> None:
    """Writes the package and the dense weights.

    Args:
        program: the captured graph.
        tables: the graph's names of the buffers that have files of their own.
        folder: of the artefact.
    """
    with quiet_exporter():
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(folder / MODEL),
            inductor_configs={"aot_inductor.package_constants_in_so": False},
        )
    torch.save(
        {name: value for name, value in program.state_dict.items() if name not in tables},
        folder / DENSE,
    )


class AotiModel:
    """A compiled model, loaded.

    Args:
        folder: what ``mail-torchrec export --aoti`` wrote; read the manifest and check its files
            before.
        manifest: of the folder.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._manifest = manifest
        self._model = torch._inductor.aoti_load_package(str(folder / MODEL))
        weights: dict[str, Tensor] = torch.load(folder / DENSE, weights_only=True)
        for table, info in manifest.tables.items():
            weights |= {
                f"tables.{table}_.{part}": _mapped(folder / file, info.rows)
                for part, file in info.files.items()
            }
        self._weights = {
            name: weights[name] for name in self._model.get_constant_fqns()
        }  # the model does not keep them alive
        self._model.load_constants(self._weights, check_full_update=True, user_managed=True)

    def run(self, inputs: Arrays) -> Arrays:
        """All outputs by name."""
        values = (
            torch.from_numpy(np.ascontiguousarray(inputs[spec.name]))
            for spec in self._manifest.inputs
        )
        outputs = (value.numpy() for value in self._model(*values))
        return dict(zip((output.name for output in self._manifest.outputs), outputs, strict=True))


def _mapped(path: Path, rows: int) -> Tensor:
    dtype = _DTYPES.get(path.suffix, torch.float32)
    return torch.from_file(
        str(path), shared=False, size=path.stat().st_size // dtype.itemsize, dtype=dtype
    ).view(rows, -1)
