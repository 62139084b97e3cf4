"""Memory and arithmetic of the towers, measured on a small batch of random rows.

The planner needs them beside the workload of the tables.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.config import Config
from mail_torchrec.data.reading.batch import Batch, map_tensors
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.distributed.collectives import single_rank
from mail_torchrec.embeddings.tables import build_tables, table_sizes
from mail_torchrec.embeddings.workload import Workload, pooling_factors
from mail_torchrec.losses.mmd import GPU_BLOCK
from mail_torchrec.model.mail import Mail, Towers
from mail_torchrec.train.cost.operator_count import OperatorCounter
from mail_torchrec.train.cost.random_batches import RandomIds, num_negatives, random_batch

ALIGNMENT = "L_d over all ranks"
"""Purpose of the memory in which L_d compares a rank's rows with those of all ranks."""
_FLOAT_BYTES = 4
# Sizes of the two measured batches, whose difference is the cost of a row.
_ROWS = (4, 12)
# One is trained on while the next one waits.
_BATCHES = 2
# The four kernel matrices of the MMD, each kept twice for the backward pass: squared distances and
# kernel values.
_MMD_MATRICES = 8
# The contrastive loss keeps its similarities, on any device.
_CONTRAST_MATRICES = 1
# That of items keeps exponentials, and which pairs are of one item.
_ITEM_PAIR_BYTES = 5
# Rows of every measured table.
_NUM_IDS = 3


@dataclass(frozen=True)
class DenseCost:
    """Cost of the towers on one rank."""

    parameters: int
    """Number of trainable values of the towers."""
    bytes_per_row: float
    """Bytes kept for the backward pass for each row, embeddings included."""
    bytes_fixed: float
    """Bytes kept for the backward pass whatever the batch size."""
    flops_per_row: float
    """Floating point operations of a step for each row, forward and backward."""
    code_dim: int
    """Width of the codes that L_d compares over all ranks; 0 where it does not."""
    batch_per_row: float = 0.0
    """Bytes of a batch's tensors for each row."""
    batch_fixed: float = 0.0
    """Bytes of a batch's tensors whatever its size, such as sampled negatives."""
    has_averages: bool = False
    """Averages of the weights are kept beside them (``train.ema``)."""
    gradient_value_bytes: int = _FLOAT_BYTES
    """Bytes of a gradient's value on its way between ranks."""
    operators: int = 0
    """Operators of a step, forward and backward; views do not count."""
    written_per_row: float = 0.0
    """Bytes that the operators of a step write for each row."""
    written_fixed: float = 0.0
    """Bytes that the operators of a step write whatever the batch size."""
    contrasts: bool = False
    """L_d compares the codes by the contrastive loss, and not by the MMD."""
    item_dim: int = 0
    """Width of the vectors that ``model.virtual_items.contrast`` compares over all ranks, or 0."""

    def memory(self, batch_size: int, world_size: int, device: str = "cpu") -> dict[str, float]:
        """Estimates bytes by purpose; the tables have to leave their sum free.

        Args:
            batch_size: rows of each rank.
            world_size: number of ranks.
            device: of the ranks, ``cpu`` or ``cuda``, where the MMD keeps no matrix.
        """
        weights = float(_FLOAT_BYTES * self.parameters)
        memory = {"weights": weights, "gradients": weights, "adam": 2 * weights}
        if self.has_averages:
            memory["ema"] = weights
        if world_size > 1:
            memory["all-reduce buckets"] = weights
        memory["activations"] = self.bytes_fixed + self.bytes_per_row * batch_size
        memory["batches"] = _BATCHES * (self.batch_fixed + self.batch_per_row * batch_size)
        others = batch_size * (world_size - 1)
        if others and self.item_dim:
            of_others = _FLOAT_BYTES * others * self.item_dim
            memory["item contrast"] = _ITEM_PAIR_BYTES * batch_size * others + of_others
        if others and self.code_dim:
            matrices = _CONTRAST_MATRICES if self.contrasts else _MMD_MATRICES
            kept = matrices * batch_size * others
            if device == "cuda" and not self.contrasts:
                kept = min(GPU_BLOCK, 4 * batch_size * (batch_size + others))
            memory[ALIGNMENT] = _FLOAT_BYTES * (kept + 2 * others * self.code_dim)
        return memory

    def flops(self, batch_size: int, world_size: int) -> float:
        """Estimates the floating point operations of a step."""
        matrices = 1 if self.contrasts else 4
        pairs = batch_size * batch_size * (world_size - 1)
        aligned = 3 * matrices * 2 * pairs * self.code_dim + 2 * 2 * pairs * self.item_dim
        return self.flops_per_row * batch_size + aligned

    def alignment_bytes(self, batch_size: int, world_size: int) -> float:
        """Estimates the bytes that a rank receives for L_d over all ranks.

        The MMD gathers two codes of each row; the contrastive loss sums one over ranks, and its
        gradient, and a ring sends a sum twice.
        """
        vectors = 4 if self.contrasts else 2
        return float(_FLOAT_BYTES * vectors * batch_size * (world_size - 1) * self.code_dim)

    def written_bytes(self, batch_size: int) -> float:
        """Estimates the bytes that the operators of a step write."""
        return self.written_fixed + self.written_per_row * batch_size

    def gradient_bytes(self) -> float:
        """Returns the bytes that the ranks all-reduce in a step."""
        return float(self.gradient_value_bytes * self.parameters)


def build_workload(
    config: Config, feature_tables: FeatureTables, num_rows: dict[str, int]
) -> Workload:
    """Describes the tables and their lookups in a step for the planner.

    Args:
        config: of the run.
        feature_tables: tables by feature key.
        num_rows: table -> rows.
    """
    batch_size = config.train.batch_size
    factors = pooling_factors(
        config.schema_,
        feature_tables,
        config.sharding.pooling_factors,
        batch_size=batch_size,
        num_negatives=num_negatives(config),
    )
    sizes = table_sizes(config.schema_, feature_tables, num_rows)
    stages = config.checkpoint.mode == "async"
    return Workload(sizes, factors, batch_size, config.train.tables.name, stages)


def dense_cost(
    config: Config,
    feature_tables: FeatureTables,
    num_rows: dict[str, int],
    vector_dims: Mapping[str, int] | None = None,
) -> DenseCost:
    """Measures the towers by steps on random rows of small tables.

    The state of the random generators is left unchanged.

    Args:
        config: model and schema.
        feature_tables: tables by feature key.
        num_rows: table -> rows; tables of that size are not built.
        vector_dims: number of elements of each vector column; None where there is none.
    """
    dims = vector_dims or {}
    with torch.random.fork_rng(devices=[]), single_rank():
        towers = Towers(config.model, config.schema_, feature_tables, num_rows, vector_dims=dims)
        tables = build_tables(
            config.schema_,
            feature_tables,
            dict.fromkeys(num_rows, _NUM_IDS),
            torch.device("cpu"),
        )
        model = Mail(*tables, towers).train()
        ids = RandomIds(dict.fromkeys(num_rows, _NUM_IDS))
        batches = [random_batch(config, feature_tables, rows, ids, dims) for rows in _ROWS]
        first, second = (_measure_step(model, batch) for batch in batches)
    more_rows = _ROWS[1] - _ROWS[0]
    bytes_per_row = max(0.0, (second.kept_bytes - first.kept_bytes) / more_rows)
    written_per_row = (second.written_bytes - first.written_bytes) / more_rows
    smaller, larger = map(batch_bytes, batches)
    batch_per_row = (larger - smaller) / more_rows
    zero_shot = config.model.zero_shot
    parameters = (value for value in towers.parameters() if value.requires_grad)
    return DenseCost(
        parameters=sum(parameter.numel() for parameter in parameters),
        bytes_per_row=bytes_per_row,
        bytes_fixed=max(0.0, first.kept_bytes - bytes_per_row * _ROWS[0]),
        flops_per_row=(second.flops - first.flops) / more_rows,
        code_dim=_compared_code_dim(config),
        contrasts=zero_shot is not None and zero_shot.aligns_by("contrastive"),
        item_dim=_contrasted_item_dim(towers),
        batch_per_row=batch_per_row,
        batch_fixed=smaller - batch_per_row * _ROWS[0],
        has_averages=config.train.ema is not None,
        gradient_value_bytes=2 if config.sharding.averages_in_bfloat16 else _FLOAT_BYTES,
        operators=first.operators,
        written_per_row=written_per_row,
        written_fixed=max(0.0, first.written_bytes - written_per_row * _ROWS[0]),
    )


def _compared_code_dim(config: Config) -> int:
    """Returns the width of the codes that L_d compares over all ranks, or 0."""
    zero_shot = config.model.zero_shot
    if zero_shot is None or not config.model.mmd_over_all_ranks:
        return 0
    compares_all = zero_shot.aligns_by("mmd") or zero_shot.aligns_by("contrastive")
    return zero_shot.encoder_dims[-1] if compares_all else 0


def _contrasted_item_dim(towers: Towers) -> int:
    """Returns the width of the item vectors that are contrasted over all ranks, or 0."""
    items = towers.virtual_items
    if items is None or items.settings.contrast is None:
        return 0
    width: int = items.layers[-1].out_features
    return width


def batch_bytes(batch: Batch) -> int:
    """Returns the bytes of a batch's tensors."""
    found: list[Tensor] = []

    def note(part: Any) -> Any:
        jagged = isinstance(part, KeyedJaggedTensor)
        parts = (part.values(), part.weights_or_none(), part.lengths()) if jagged else (part,)
        found.extend(value for value in parts if value is not None)
        return part

    map_tensors(batch, note)
    return sum(value.nbytes for value in found)


@contextmanager
def bytes_kept(constant: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Notes what forward passes keep for the backward pass.

    Args:
        constant: tensors [...] that are there anyway, such as weights, and do not count.

    Yields:
        Address of a storage -> its bytes.
    """
    weights = {value.untyped_storage().data_ptr() for value in constant}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        yield kept


class _MeasuredStep(NamedTuple):
    """Cost of one step."""

    kept_bytes: float
    """Bytes kept for the backward pass."""
    flops: float
    operators: int
    written_bytes: float


def _measure_step(model: Mail, batch: Batch) -> _MeasuredStep:
    """Counts the bytes kept for the backward pass, and what the step computes."""
    counter: Any = FlopCounterMode(display=False)
    with OperatorCounter() as operators, counter:
        with bytes_kept(model.parameters()) as kept:
            loss, _ = model(batch)
        loss.backward()
    model.zero_grad()  # the next step adds to no gradient
    return _MeasuredStep(
        float(sum(kept.values())),
        float(counter.get_total_flops()),
        operators.operators,
        float(operators.written_bytes),
    )
