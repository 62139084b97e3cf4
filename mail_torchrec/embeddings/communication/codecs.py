"""Codecs of looked-up vectors and of their gradients, for TorchRec's sharders."""

import math
from typing import Any

from fbgemm_gpu.quantize_comm import QuantizedCommCodec as FbgemmCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor
from torchrec.distributed.types import CommOp, QuantizedCommCodecs

from mail_torchrec.embeddings.communication.settings import (
    CommunicationPrecision,
    CommunicationSettings,
)

_FORMATS: dict[CommunicationPrecision, SparseType] = {
    "fp32": SparseType.FP32,
    "fp16": SparseType.FP16,
    "bf16": SparseType.BF16,
}
# Everything that the sharding types exchange of vectors.
_EXCHANGES = (
    CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL,
    CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER,
    CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL,
)


class _ScaledCodec(FbgemmCodec):
    """Codec that multiplies what it encodes by a number, and divides by it after decoding.

    FBGEMM's own ``loss_scale`` divides before it decodes, within fp16, where small gradients are
    rounded to 0 after all.
    """

    def __init__(self, precision: SparseType, scale: float) -> None:
        super().__init__(precision, is_fwd=False)
        self._scale = scale

    def encode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        """Encodes gradients [...]."""
        return super().encode(input_tensor * self._scale, ctx)

    def decode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        """Decodes gradients [...] to float32."""
        return super().decode(input_tensor, ctx) / self._scale


def build_codecs(
    settings: CommunicationSettings | None, batch_size: int
) -> dict[str, QuantizedCommCodecs] | None:
    """Builds the codecs of every exchange, by TorchRec's name of it; None for float32.

    TorchRec's own builder silently takes fp16 for bf16 on CPU, where both work.

    Args:
        settings: None for float32.
        batch_size: rows of a rank, by which fp16 gradients are multiplied.
    """
    if settings is None or settings.forward == settings.backward == "fp32":
        return None
    codecs = QuantizedCommCodecs(
        forward=FbgemmCodec(_FORMATS[settings.forward], is_fwd=True),
        backward=_backward_codec(settings.backward, batch_size),
    )
    return {exchange.name: codecs for exchange in _EXCHANGES}


def _backward_codec(precision: CommunicationPrecision, batch_size: int) -> FbgemmCodec:
    if precision != "fp16":
        return FbgemmCodec(_FORMATS[precision], is_fwd=False)
    # A power of two changes no digit.
    return _ScaledCodec(SparseType.FP16, 2.0 ** math.floor(math.log2(batch_size)))
