"""``config.pbtxt`` of a model in a Triton repository."""

from collections.abc import Sequence

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import (
    DataType,
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
)

from mail_torchrec.inference.datatypes import DATATYPES
from mail_torchrec.inference.raw_requests import RAW_INPUT
from mail_torchrec.inference.requests import InputSpec
from mail_torchrec.triton.names import MAX_CANDIDATES, Backend
from mail_torchrec.utils.output_spec import OutputSpec


def config_file(
    backend: Backend,
    inputs: Sequence[InputSpec],
    outputs: Sequence[OutputSpec],
    max_batch: int,
    max_candidates: int,
) -> str:
    """Builds the text of ``config.pbtxt``.

    Args:
        backend: Triton backend that runs the model.
        inputs: batch-first inputs; the Python backend takes raw requests in their place.
        outputs: outputs of candidates, ``[users, candidates]`` in Triton.
        max_batch: most users of one call.
        max_candidates: most candidates of a request; the Python backend refuses more.
    """
    config = ModelConfig(backend=backend, max_batch_size=max_batch)
    config.dynamic_batching.SetInParent()
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=1)
    if backend == "python":
        config.input.append(ModelInput(name=RAW_INPUT, data_type=DataType.TYPE_STRING, dims=[1]))
        config.parameters[MAX_CANDIDATES].string_value = str(max_candidates)
    else:
        config.input.extend(
            ModelInput(name=spec.name, data_type=_data_type(spec.dtype), dims=_dims(spec))
            for spec in inputs
        )
    config.output.extend(
        ModelOutput(name=spec.name, data_type=_data_type(spec.dtype), dims=[-1, *spec.size])
        for spec in outputs
    )
    return str(text_format.MessageToString(config))


def _data_type(dtype: str) -> int:
    return int(DataType.Value(f"TYPE_{DATATYPES[dtype]}"))


def _dims(spec: InputSpec) -> list[int]:
    """Lists the sizes behind the first axis, which Triton adds."""
    return [size if isinstance(size, int) else -1 for size in spec.shape[1:]]
