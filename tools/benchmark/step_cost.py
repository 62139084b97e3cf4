"""Computes arithmetic and bytes of a step by formula: each row by itself, nothing shared.

A dense layer from ``n`` to ``m`` costs ``2 n m`` forward, as much for its weights' gradient and,
where its input has one, for that. A trainer that needs less than this, because rows of one user
share work, is that much faster; the fraction of the machine's limit is of this arithmetic, so that
trainers compare. Only products of matrices count: ``FlopCounterMode`` counts the same, which a test
asserts.
"""

from dataclasses import dataclass
from itertools import pairwise

from mail_torchrec.config import Config
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.towers.dmr import DMRSettings
from mail_torchrec.towers.registry import tower_settings

_FLOAT = 4


@dataclass(frozen=True)
class StepCost:
    """Arithmetic and memory traffic of one step."""

    flops: dict[str, float]
    """Floating point operations of each part of the model, forward and backward."""
    lookup_bytes: float
    """Bytes of lookups: ids and table rows read, vectors written; gradients read, rows and their
    optimizer's state read and written."""

    @property
    def total_flops(self) -> float:
        """The operations of all parts."""
        return sum(self.flops.values())


def step_cost(config: Config, *, num_old: int, num_new: int, mean_length: float) -> StepCost:
    """Computes the cost of a training step of MAIL-DMR with one sequence.

    Args:
        config: gives the widths; without a zero-shot tower its parts are 0.
        num_old: number of old rows.
        num_new: number of new rows.
        mean_length: mean number of real behaviours of a row, for the bytes.
    """
    rows = num_old + num_new
    flops = _zero_shot(config, num_old, num_new) | _dmr(config, rows)
    schema = config.schema_
    ids = rows * (len(schema.scalars) + 2 * mean_length + 2) + _dmr_settings(config).num_negatives
    # Forward: a vector is read and written. Backward: its gradient is read, its row and state are
    # read and written.
    return StepCost(flops, ids * (8 + 7 * _FLOAT * schema.dim))


def _zero_shot(config: Config, num_old: int, num_new: int) -> dict[str, float]:
    schema, settings = config.schema_, config.model.zero_shot
    if settings is None:
        return {}
    length, dim = schema.columns[schema.sequences[0]].max_length, schema.dim
    num_fields = len(schema.fields(Group.ATTRIBUTE))
    code, width = settings.encoder_dims[-1], settings.attention_dim
    # Detached vectors have no gradient.
    pooling = (num_fields + length) * (2 * 2 * dim * width + 3 * 2 * width)
    in_dims = dim + len(schema.numeric(Group.ATTRIBUTE)), dim
    encoders = sum(_stack(in_dim, settings.encoder_dims) for in_dim in in_dims)
    out_dims = num_fields * dim, length * dim
    decoders = sum(_stack(code, (*settings.decoder_dims, out_dim)) for out_dim in out_dims)
    return {
        "zero-shot losses": (num_old + num_new) * (pooling + 3 * (encoders + 2 * decoders)),
        "L_d": 3 * 2 * num_old**2 * code * 3,
    }


def _stack(in_dim: int, dims: tuple[int, ...]) -> int:
    """Counts the forward operations of a row; each layer takes the input again."""
    widths = [in_dim, *(dim + in_dim for dim in dims[:-1])]
    return sum(2 * width * dim for width, dim in zip(widths, dims, strict=True))


def _dmr(config: Config, rows: int) -> dict[str, float]:
    schema, settings = config.schema_, _dmr_settings(config)
    length, dim = schema.columns[schema.sequences[0]].max_length, schema.dim
    attention = _layers([4 * dim, *settings.attention_dims, 1])
    own = 2 * settings.embedding_dim
    groups = (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)
    num_fields = sum(len(schema.fields(group)) for group in groups)
    in_dim = num_fields * dim + len(schema.numeric()) + 3 * dim + 2
    parts = {
        "user-to-item": length * (2 * own * dim + attention) + 2 * 2 * dim * dim,
        "item-to-item": length * (2 * (own + dim) * dim + attention),
        "MLP": _layers([in_dim, *settings.hidden_dims, 1]),
        "L_match": 2 * dim * settings.num_negatives if settings.needs_match else 0,
    }
    return {name: 3.0 * rows * forward for name, forward in parts.items()}


def _layers(dims: list[int]) -> int:
    """Counts the forward operations of dense layers, a row."""
    return sum(2 * n * m for n, m in pairwise(dims))


def _dmr_settings(config: Config) -> DMRSettings:
    settings = tower_settings(config.model.tower, config.model.tower_options)
    assert isinstance(settings, DMRSettings)
    return settings
