"""Session of the subgraph that computes one output of an exported model.

ONNX Runtime computes the whole graph of a session whatever outputs are asked for; the subgraph
computes nothing but what its output needs, and needs no other inputs.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir
import onnxruntime
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mail_torchrec.inference.artifact_files import ONNX_MODEL
from mail_torchrec.inference.scorer import Arrays

_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


class Subgraph:
    """Computes one output of an exported model.

    Args:
        folder: folder that ``mail-torchrec export`` wrote.
        output: name of an output in its manifest.
        threads: number of ONNX Runtime's threads; None leaves it to the runtime.
    """

    def __init__(self, folder: Path, output: str, threads: int | None) -> None:
        model = onnx_ir.load(folder / ONNX_MODEL)
        model.graph.outputs[:] = [value for value in model.graph.outputs if value.name == output]
        RemoveUnusedNodesPass()(model)
        model.graph.inputs[:] = [value for value in model.graph.inputs if value.uses()]
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(_EXTERNAL_FOLDER, str(folder.absolute()))
        if threads is not None:
            options.intra_op_num_threads = threads
        text = onnx_ir.to_proto(model).SerializeToString()
        self._session = onnxruntime.InferenceSession(
            text, options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [value.name for value in self._session.get_inputs()]

    def __call__(self, inputs: Arrays) -> npt.NDArray[np.float32]:
        """Computes the output; inputs that it does not depend on are ignored.

        Args:
            inputs: arrays by input name, [users, ...] or [candidates, ...] as the manifest says.
        """
        used = {name: inputs[name] for name in self._inputs}
        [found] = self._session.run(None, used)
        output: npt.NDArray[np.float32] = found
        return output
