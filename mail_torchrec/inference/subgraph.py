"""The part of an exported graph that one output is made of, as a session of its own: nothing else is computed, nothing else asked for.

ONNX Runtime computes all of a session's graph, whatever outputs it is asked for.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir
import onnxruntime
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mail_torchrec.inference.manifest import ONNX_MODEL
from mail_torchrec.inference.scorer import Arrays

_FOLDER = "session.model_external_initializers_file_folder_path"


class PartOfGraph:
    """Computes one output.

    Args:
        folder: what ``mail-torchrec export`` wrote.
        output: of its manifest.
        threads: of ONNX Runtime; None leaves it to the runtime.
    """

    def __init__(self, folder: Path, output: str, threads: int | None) -> None:
        model = onnx_ir.load(folder / ONNX_MODEL)
        model.graph.outputs[:] = [value for value in model.graph.outputs if value.name == output]
        RemoveUnusedNodesPass()(model)
        model.graph.inputs[:] = [value for value in model.graph.inputs if value.uses()]
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(_FOLDER, str(folder.absolute()))
        if threads is not None:
            options.intra_op_num_threads = threads
        text = onnx_ir.to_proto(model).SerializeToString()
        self._session = onnxruntime.InferenceSession(
            text, options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [value.name for value in self._session.get_inputs()]

    def __call__(self, inputs: Arrays) -> npt.NDArray[np.float32]:
        """The output; inputs that have no part in it are left aside."""
        found: npt.NDArray[np.float32] = self._session.run(
            None, {name: inputs[name] for name in self._inputs}
        )[0]
        return found
