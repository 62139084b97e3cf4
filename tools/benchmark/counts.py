"""Arithmetic and bytes of a step by formula, as the method has them: each row for itself, nothing shared, nothing left out.

A dense layer from ``n`` to ``m`` costs ``2 n m`` forward, as much for its weights' gradient and,
where its input has one, for that. A trainer that needs less than this, because rows of one user
share work, is that much faster; the fraction of the machine's limit is of this arithmetic, so that
it compares over sides. Only products of matrices count: ``FlopCounterMode`` counts the same, which
a test asserts.
"""

from dataclasses import dataclass
from itertools import pairwise

from mail_torchrec.config import Config
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.towers.dmr import DMRSettings
from mail_torchrec.towers.registry import tower_settings

_FLOAT = 4


@dataclass(frozen=True)
class Counts:
    """Of one step."""

    flops: dict[str, float]
    """Part of the model -> floating point operations, forward and backward."""
    bytes_looked_up: float
    """Ids and table rows read, vectors written; gradients read, rows and their optimizer's state
    read and written."""

    @property
    def total_flops(self) -> float:
        """Of all parts."""
        return sum(self.flops.values())


def step_counts(config: Config, *, num_old: int, num_new: int, mean_length: float) -> Counts:
    """Counts a training step of MAIL-DMR with one sequence.

    Args:
        config: widths; without a zero-shot tower its parts are 0.
        num_old: old rows.
        num_new: new rows.
        mean_length: real behaviours of a row, for the bytes.
    """
    rows = num_old + num_new
    flops = _zero_shot(config, num_old, num_new) | _dmr(config, rows)
    schema = config.schema_
    ids = rows * (len(schema.scalars) + 2 * mean_length + 2) + _dmr_settings(config).num_negatives
    # Forward: read and written. Backward: gradient read, row read and written, state read and
    # written.
    return Counts(flops, ids * (8 + 7 * _FLOAT * schema.dim))


def _zero_shot(config: Config, num_old: int, num_new: int) -> dict[str, float]:
    schema, settings = config.schema_, config.model.zero_shot
    if settings is None:
        return {}
    length, dim, fields = (
        schema.columns[schema.sequences[0]].max_length,
        schema.dim,
        len(schema.fields(Group.ATTRIBUTE)),
    )
    code, width = settings.encoder_dims[-1], settings.attention_dim
    pool = 2 * dim * width  # detached vectors have no gradient
    encoders = [
        _stack(dim + len(schema.numeric(Group.ATTRIBUTE)), settings.encoder_dims),
        _stack(dim, settings.encoder_dims),
    ]
    d1, d2 = (_stack(code, (*settings.decoder_dims, out)) for out in (fields * dim, length * dim))
    pooling = (fields + length) * (2 * pool + 3 * 2 * width)
    return {
        "zero-shot losses": (num_old + num_new) * (pooling + 3 * (sum(encoders) + 2 * (d1 + d2))),
        "L_d": 3 * 2 * num_old**2 * code * 3,
    }


def _stack(in_dim: int, dims: tuple[int, ...]) -> int:
    """Forward, a row; each layer sees the input again."""
    widths = [in_dim, *(dim + in_dim for dim in dims[:-1])]
    return sum(2 * width * dim for width, dim in zip(widths, dims, strict=True))


def _dmr(config: Config, rows: int) -> dict[str, float]:
    schema, settings = config.schema_, _dmr_settings(config)
    length, dim = schema.columns[schema.sequences[0]].max_length, schema.dim
    attention = sum(2 * n * m for n, m in pairwise([4 * dim, *settings.attention_dims, 1]))
    own = 2 * settings.embedding_dim
    user_to_item, item_to_item = (
        length * (2 * own * dim + attention),
        length * (2 * (own + dim) * dim + attention),
    )
    fields = sum(
        len(schema.fields(group)) for group in (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)
    )
    in_dim = fields * dim + len(schema.numeric()) + 3 * dim + 2
    mlp = sum(2 * n * m for n, m in pairwise([in_dim, *settings.hidden_dims, 1]))
    match = 2 * dim * settings.num_negatives if settings.needs_match else 0
    parts = {
        "user-to-item": user_to_item + 2 * 2 * dim * dim,
        "item-to-item": item_to_item,
        "MLP": mlp,
        "L_match": match,
    }
    return {name: 3.0 * rows * forward for name, forward in parts.items()}


def _dmr_settings(config: Config) -> DMRSettings:
    settings = tower_settings(config.model.tower, config.model.tower_options)
    assert isinstance(settings, DMRSettings)
    return settings
