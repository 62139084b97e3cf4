"""What the towers cost a rank beside the tables: memory and arithmetic, measured on a small batch of random rows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.config import Config
from mail_torchrec.data.reading.batch import Batch, MatchIds
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.distributed.collectives import alone
from mail_torchrec.embeddings.tables import build_tables
from mail_torchrec.model.mail import Mail, Towers
from mail_torchrec.towers.registry import tower_settings

_FLOAT = 4
_ROWS = (4, 12)
# The four kernel matrices of the MMD, each kept twice for the backward pass: squared distances and
# kernel values.
_MMD_MATRICES = 8


@dataclass(frozen=True)
class DenseCost:
    """The towers' cost; all figures are of one rank."""

    parameters: int
    """Trainable values of the towers."""
    bytes_a_row: float
    """Kept for the backward pass, looked-up vectors included."""
    bytes_fixed: float
    flops_a_row: float
    """Of a step, forward and backward."""
    code_dim: int
    """Width of the codes that the MMD compares over all ranks; 0 where it does not."""

    def memory(self, batch_size: int, world_size: int) -> dict[str, float]:
        """Bytes by purpose; their sum is what the tables have to leave free."""
        weights = float(_FLOAT * self.parameters)
        memory = {"weights": weights, "gradients": weights, "adam": 2 * weights}
        if world_size > 1:
            memory["all-reduce buckets"] = weights
        memory["activations"] = self.bytes_fixed + self.bytes_a_row * batch_size
        if world_size > 1 and self.code_dim:
            others = batch_size * (world_size - 1)
            memory["mmd over all ranks"] = _FLOAT * (
                _MMD_MATRICES * batch_size * others + 2 * others * self.code_dim
            )
        return memory

    def flops(self, batch_size: int, world_size: int) -> float:
        """Of a step."""
        mmd = 3 * 4 * 2 * batch_size * batch_size * (world_size - 1) * self.code_dim
        return self.flops_a_row * batch_size + mmd

    def gradient_bytes(self) -> float:
        """What the ranks all-reduce in a step."""
        return float(_FLOAT * self.parameters)


def num_negatives(config: Config) -> int:
    """Negatives of the match loss, drawn once a batch; 0 without one."""
    return int(
        getattr(tower_settings(config.model.tower, config.model.tower_options), "num_negatives", 0)
    )


def dense_cost(
    config: Config, feature_tables: FeatureTables, num_rows: dict[str, int]
) -> DenseCost:
    """Builds the towers, runs a step on random rows of small tables, and counts; the random state is left as it was.

    Args:
        config: model and schema.
        feature_tables: keys.
        num_rows: table -> rows; the tables themselves are not built.
    """
    with torch.random.fork_rng(devices=[]), alone():
        towers = Towers(config.model, config.schema_, feature_tables, num_rows)
        small = dict.fromkeys(num_rows, 3)
        model = Mail(
            *build_tables(config.schema_, feature_tables, small, torch.device("cpu")), towers
        ).train()
        (first, first_flops), (second, second_flops) = (
            _measured(model, _random_batch(config, feature_tables, rows)) for rows in _ROWS
        )
    a_row = max(0.0, (second - first) / (_ROWS[1] - _ROWS[0]))
    zero_shot = config.model.zero_shot
    compares = (
        zero_shot is not None
        and zero_shot.variant == "full"
        and zero_shot.alignment == "mmd"
        and config.model.mmd_over_all_ranks
    )
    return DenseCost(
        parameters=sum(
            parameter.numel() for parameter in towers.parameters() if parameter.requires_grad
        ),
        bytes_a_row=a_row,
        bytes_fixed=max(0.0, first - a_row * _ROWS[0]),
        flops_a_row=(second_flops - first_flops) / (_ROWS[1] - _ROWS[0]),
        code_dim=zero_shot.encoder_dims[-1] if zero_shot is not None and compares else 0,
    )


def _measured(model: Mail, batch: Batch) -> tuple[float, float]:
    """Bytes kept for the backward pass, and the step's floating point operations."""
    constant = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in constant:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    counter: Any = FlopCounterMode(display=False)
    with counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            loss, _ = model(batch)
        loss.backward()
    return float(sum(kept.values())), float(counter.get_total_flops())


def _random_batch(config: Config, feature_tables: FeatureTables, num_rows: int) -> Batch:
    """Old rows with full lists; ids from 0 to 2, since the values do not matter."""
    schema = config.schema_
    drawn = num_negatives(config)
    negatives = {keys.negatives for keys in feature_tables.match.values()}

    def jagged(keys: dict[str, str]) -> KeyedJaggedTensor:
        lengths = [
            torch.full((num_rows,), schema.columns[key].max_length if key in schema.lists else 1) if key not in negatives
            else torch.tensor([drawn // num_rows + (row < drawn % num_rows) for row in range(num_rows)])
            for key in keys
        ]  # fmt: skip
        all_lengths = torch.cat(lengths)
        return KeyedJaggedTensor(
            keys=list(keys),
            values=torch.randint(0, 3, (int(all_lengths.sum()),)),
            lengths=all_lengths,
        )

    ones, none = torch.ones(num_rows), torch.zeros(num_rows, dtype=torch.bool)
    ids = MatchIds(
        torch.ones(num_rows, dtype=torch.int64),
        torch.ones(drawn, dtype=torch.int64),
        -ones,
        -torch.ones(drawn),
    )
    return Batch(
        pooled=jagged(feature_tables.pooled),
        unpooled=jagged(feature_tables.unpooled),
        numeric_BN=torch.randn(num_rows, len(schema.numeric())),
        labels_B=(torch.arange(num_rows) % 2).float(),
        conversions_B=torch.zeros(num_rows),
        weights_B=ones,
        users_B=torch.arange(num_rows) // 2,
        is_cold_B=none,
        is_new_B=none,
        match=dict.fromkeys(feature_tables.match, ids),
        counts=torch.zeros(1, dtype=torch.int64),
    )
