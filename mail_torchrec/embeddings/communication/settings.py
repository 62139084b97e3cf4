"""Settings of what the ranks exchange in a step."""

from typing import Any, Literal

from pydantic import field_validator

from mail_torchrec.settings import Settings

CommunicationPrecision = Literal["fp32", "fp16", "bf16"]

_REFUSED = {
    "int8": "fails for row-wise shards and for narrow vectors",
    "fp8": "fails on CPU and was not run on CUDA",
    "mx4": "was not run",
}
"""Codecs that TorchRec names, and why they are refused."""


class CommunicationSettings(Settings):
    """Number formats in which ranks exchange vectors and gradients; they compute in float32.

    fp16 and bf16 halve the bytes. On one rank nothing is exchanged, nor rounded.
    """

    forward: CommunicationPrecision = "fp32"
    """Format of looked-up vectors on their way to the rank of their row: fp16 rounds by 1/2,048 and
    holds values up to 65,504, bf16 rounds by 1/256 and holds all. Evaluation exchanges them
    likewise."""
    backward: CommunicationPrecision = "fp32"
    """Format of the gradients of looked-up vectors on their way back. In fp16 they are multiplied
    by the batch size meanwhile, since the gradients of a mean are too small for it."""
    dense_gradients: Literal["fp32", "bf16"] = "fp32"
    """Format in which the gradients of the towers are averaged over the ranks."""

    @field_validator("forward", "backward", mode="before")
    @classmethod
    def _refuse_by_name(cls, value: Any) -> Any:
        reason = _REFUSED.get(value.lower()) if isinstance(value, str) else None
        if reason is not None:
            raise ValueError(
                f"should be fp32, fp16 or bf16, received {value}: TorchRec's {value} codec {reason}"
            )
        return value
