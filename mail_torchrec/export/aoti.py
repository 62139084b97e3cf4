"""Compiled form of the exported program (AOTInductor), with its weights outside.

Loading it needs torch and nothing else. The machine code is of the instruction set of the CPU
that compiled it.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from mail_torchrec.export.exporter_logging import suppress_exporter_logs
from mail_torchrec.export.inference_model import buffer_name
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Arrays

MODEL, DENSE = "model.pt2", "dense.pt"
_DTYPES = {".float16": torch.float16, ".uint8": torch.uint8}  # other files hold float32


def check_compiler() -> None:
    """Checks that a C++ compiler is installed.

    Raises:
        ValueError: none is.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"--aoti compiles C++, and there is no '{compiler}'; install g++, or name a compiler "
            "in CXX"
        )


def write_aoti(program: ExportedProgram, tables: Mapping[str, object], folder: Path) -> None:
    """Writes the compiled package and the dense weights.

    Args:
        program: the traced inference model.
        tables: the graph's names of the buffers that have files of their own.
        folder: folder of the artefact.
    """
    with suppress_exporter_logs():
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(folder / MODEL),
            inductor_configs={"aot_inductor.package_constants_in_so": False},
        )
    dense = {name: value for name, value in program.state_dict.items() if name not in tables}
    torch.save(dense, folder / DENSE)


class AotiModel:
    """Loaded compiled model.

    Args:
        folder: folder that ``mail-torchrec export --aoti`` wrote; read its manifest and check its
            files before.
        manifest: manifest of the folder.
    """

    def __init__(self, folder: Path, manifest: ArtifactManifest) -> None:
        self._manifest = manifest
        self._model = torch._inductor.aoti_load_package(str(folder / MODEL))
        weights: dict[str, Tensor] = torch.load(folder / DENSE, weights_only=True)
        for table, info in manifest.tables.items():
            for part, file in info.files.items():
                weights[buffer_name(table, part)] = _mapped(folder / file, info.rows)
        # The model does not keep its weights alive.
        self._weights = {name: weights[name] for name in self._model.get_constant_fqns()}
        self._model.load_constants(self._weights, check_full_update=True, user_managed=True)

    def run(self, inputs: Arrays) -> Arrays:
        """Computes all outputs by name.

        Args:
            inputs: arrays by input name, [users, ...] or [candidates, ...] as the manifest says.
        """
        values = (
            torch.from_numpy(np.ascontiguousarray(inputs[spec.name]))
            for spec in self._manifest.inputs
        )
        names = [spec.name for spec in self._manifest.outputs]
        return dict(zip(names, (value.numpy() for value in self._model(*values)), strict=True))


def _mapped(path: Path, rows: int) -> Tensor:
    dtype = _DTYPES.get(path.suffix, torch.float32)
    size = path.stat().st_size // dtype.itemsize
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(rows, -1)
