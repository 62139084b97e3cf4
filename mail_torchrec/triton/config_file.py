"""``config.pbtxt``: what Triton is told of a model."""

from collections.abc import Sequence

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import (
    DataType,
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
)

from mail_torchrec.inference.requests import Input
from mail_torchrec.serve.raw_requests import RAW
from mail_torchrec.serve.tensors import DATATYPES
from mail_torchrec.triton.names import MAX_CANDIDATES, Backend


def config_file(
    backend: Backend,
    inputs: Sequence[Input],
    outputs: Sequence[str],
    max_batch: int,
    max_candidates: int,
) -> str:
    """Its text.

    Args:
        backend: of Triton.
        inputs: with the users first; the Python backend takes raw requests instead.
        outputs: scores by name, ``[users, candidates]``.
        max_batch: users in one call.
        max_candidates: of a request; the Python backend refuses more.
    """
    config = ModelConfig(backend=backend, max_batch_size=max_batch)
    config.dynamic_batching.SetInParent()
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=1)
    if backend == "python":
        config.input.append(ModelInput(name=RAW, data_type=DataType.TYPE_STRING, dims=[1]))
        config.parameters[MAX_CANDIDATES].string_value = str(max_candidates)
    else:
        config.input.extend(
            ModelInput(name=spec.name, data_type=_type(spec), dims=_dims(spec)) for spec in inputs
        )
    config.output.extend(
        ModelOutput(name=name, data_type=DataType.TYPE_FP32, dims=[-1]) for name in outputs
    )
    return str(text_format.MessageToString(config))


def _type(spec: Input) -> int:
    return int(DataType.Value(f"TYPE_{DATATYPES[spec.dtype]}"))


def _dims(spec: Input) -> list[int]:
    """Without the first axis, which Triton adds."""
    return [size if isinstance(size, int) else -1 for size in spec.shape[1:]]
