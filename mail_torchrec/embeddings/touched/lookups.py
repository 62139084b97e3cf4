"""Recording of the rows that training steps look up, behind the exchange of ids between ranks.

A hook in front of each FBGEMM kernel sees the ids of the rows that its rank owns, whatever the
sharding; each unsharded table has a hook of its own.

Shapes: ``F`` features of a kernel; ``R`` rows of a table, or of this rank's part of one.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import (
    Shard,
    ShardedTensor,
    ShardedTensorMetadata,
    TensorProperties,
)
from torch.distributed._shard.sharding_spec import ShardMetadata
from torchrec.distributed.batched_embedding_kernel import (
    BaseBatchedEmbedding,
    BaseBatchedEmbeddingBag,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.embeddings.communication.replicas import replica_group
from mail_torchrec.embeddings.tables import table_of_key
from mail_torchrec.embeddings.touched.rows import TOUCHED, TouchedRows


def record_lookups(
    model: nn.Module, table_names: Mapping[str, str], device: torch.device
) -> TouchedRows:
    """Begins to record which rows the training steps of a model look up.

    Lookups of evaluations and of frozen tables are not recorded.

    Args:
        model: sharded or not.
        table_names: by state-dict key.
        device: of the tables.
    """
    owned: dict[_Part, Tensor] = {}
    for recorder in _hook_kernels(model, device):
        owned = recorder.flags | owned
    tables = {key: value for key, value in model.state_dict().items() if key in table_names}
    return TouchedRows(
        {
            TOUCHED + table_names[key]: (
                _sharded_flags(table_names[key], value, owned)
                if isinstance(value, ShardedTensor)
                else _hook_table(model.get_submodule(key.removesuffix(".weight")))
            )
            for key, value in tables.items()
        },
        table_names,
        replica_group(model),
    )


class _Part(NamedTuple):
    """Consecutive rows of a table on one rank, whose column shards there all have the same."""

    table: str
    first_row: int
    num_rows: int


class _KernelRecorder:
    """Flags of the rows that a kernel looks up in training.

    Args:
        collection: in training mode where lookups are to be recorded.
        parts_F: part of a table that each feature of the kernel looks up, in the kernel's order.
        device: of the tables.
    """

    def __init__(
        self, collection: nn.Module, parts_F: Sequence[_Part], device: torch.device
    ) -> None:
        self._collection, parts = collection, list(dict.fromkeys(parts_F))
        ends = list(accumulate(part.num_rows for part in parts))
        starts = {part: end - part.num_rows for part, end in zip(parts, ends, strict=True)}
        self._starts_F = torch.tensor([starts[part] for part in parts_F], device=device)
        self._flags = torch.zeros(ends[-1], dtype=torch.bool, device=device)
        self.flags = {
            part: self._flags[starts[part] : end] for part, end in zip(parts, ends, strict=True)
        }
        """Flags [R] of each part."""

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Records the ids of the kernel's input, without waiting for a GPU."""
        features: KeyedJaggedTensor = inputs[0]
        ids = features.values()
        if not self._collection.training or not len(ids):
            return
        assert not features.variable_stride_per_key(), "features should have equally many rows"
        lengths_F = features.offsets()[:: features.stride()].diff()
        starts = self._starts_F.repeat_interleave(lengths_F, output_size=len(ids))
        self._flags.index_fill_(0, starts + ids, True)


def _hook_kernels(model: nn.Module, device: torch.device) -> Iterator[_KernelRecorder]:
    """Hooks a recorder to each kernel of sharded tables; to a frozen one it makes no difference.

    TorchRec registers its lookups, which hold the kernels, nowhere as modules of the model.
    """
    for collection in model.modules():
        for lookup in getattr(collection, "_lookups", ()):
            for kernel in lookup.modules():
                if not isinstance(kernel, BaseBatchedEmbedding | BaseBatchedEmbeddingBag):
                    continue
                recorder = _KernelRecorder(collection, _parts_of(kernel), device)
                if any(part.requires_grad for part in kernel.emb_module.parameters()):
                    kernel.register_forward_pre_hook(recorder)
                yield recorder


def _parts_of(kernel: BaseBatchedEmbedding | BaseBatchedEmbeddingBag) -> list[_Part]:
    """Lists the part of a table that each feature of a kernel looks up."""
    parts = []
    for table in kernel._config.embedding_tables:
        assert table.local_metadata is not None, "data-parallel tables are not planned"
        first_row = table.local_metadata.shard_offsets[0]
        part = _Part(table_of_key(table.name), first_row, table.local_rows)
        parts += [part] * table.num_features()
    return parts


def _sharded_flags(
    table: str, weights: ShardedTensor, owned: Mapping[_Part, Tensor]
) -> ShardedTensor:
    """Makes the flags of a sharded table: of each row, those where its first column lies.

    Args:
        table: its name.
        weights: the table ``[rows, columns]``.
        owned: flags of this rank's parts of all tables.
    """
    metadata = weights.metadata()
    shards = {
        shard.shard_offsets[0]: ShardMetadata(
            shard.shard_offsets[:1], shard.shard_sizes[:1], shard.placement
        )
        for shard in metadata.shards_metadata
        if shard.shard_offsets[1] == 0
    }
    local = [shard.metadata for shard in weights.local_shards()]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        [
            Shard(
                owned[_Part(table, *shard.shard_offsets[:1], *shard.shard_sizes[:1])],
                shards[shard.shard_offsets[0]],
            )
            for shard in local
            if shard.shard_offsets[1] == 0
        ],
        ShardedTensorMetadata(
            list(shards.values()), metadata.size[:1], TensorProperties(dtype=torch.bool)
        ),
        process_group=weights._process_group,
    )


def _hook_table(module: nn.Module) -> Tensor:
    """Makes the flags [R] of an unsharded table, and hooks their recording to its module."""
    weight = module.get_parameter("weight")
    flags_R = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)

    def record(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        if module.training:
            flags_R.index_fill_(0, options["input"] if "input" in options else inputs[0], True)

    if weight.requires_grad:
        module.register_forward_pre_hook(record, with_kwargs=True)
    return flags_R
