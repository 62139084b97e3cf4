"""Parts of a schema: columns, the groups they belong to, and embedding tables."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from mail_torchrec.data.ids.registry import ID_POLICIES, known_policy
from mail_torchrec.data.ids.settings import IdSettings
from mail_torchrec.settings import Settings

IdPolicyName = Annotated[
    str,
    AfterValidator(known_policy),
    WithJsonSchema({"type": "string", "enum": list(ID_POLICIES)}),
]
"""Name of an id policy in ``data/ids/registry.py``."""


class Group(StrEnum):
    """Role of a column: a feature group of the paper, a training column, or one to pass through."""

    ATTRIBUTE = "attribute"
    BEHAVIOUR = "behaviour"
    CONTEXT = "context"
    ITEM = "item"
    LABEL = "label"
    CONVERSION = "conversion"
    GROUP_KEY = "group_key"
    NEW_USER = "new_user"
    PASSTHROUGH = "passthrough"


PREDICTION_COLUMNS = frozenset(
    "filename file_row_number pctr pcvr pctcvr user label conversion is_new logit".split()
)
"""Columns of written predictions, which passthrough columns stand beside."""


class Kind(StrEnum):
    """Storage of a column: one id a row, a list of ids a row, or one number a row."""

    CATEGORICAL = "categorical"
    LIST = "list"
    NUMERIC = "numeric"


class Actions(StrEnum):
    """Combination of action and item embeddings: product (the paper), concatenation, or none."""

    PRODUCT = "product"
    CONCAT = "concat"
    IGNORE = "ignore"


class Transform(StrEnum):
    """Transform of a number before it is standardised: none, or ``log(1 + x)``."""

    NONE = "none"
    LOG = "log"


class Column(Settings):
    """One input column; its name in the schema is used everywhere but in the files."""

    group: Group
    """Role of the column: `attribute`, `behaviour`, `context` or `item` (features), `label`
    (clicked or not), `conversion` (converted after the click), `group_key` (the user), `new_user`
    (flag of a new user's row) or `passthrough` (copied to predictions as stored, and otherwise not
    read)."""
    kind: Kind = Kind.CATEGORICAL
    """Storage: `categorical` (one id a row), `list` (a list of ids) or `numeric` (one number).
    Behaviours are lists; labels, flags and keys need no kind."""
    column: str | None = None
    """Column of the files, where its name differs from the schema's. One file column can serve
    several schema columns."""
    table: str | None = None
    """Embedding table of the ids; by default one with the column's name. Columns that name the same
    table share it."""
    max_length: int = Field(default=50, ge=1, le=2**31 - 1)
    """Maximum length of a list column: only the newest entries are kept, and rows that were cut are
    counted. For behaviours the T of the paper."""
    padding: int | str | None = None
    """Value that fills up the lists of a list column to one length, such as 0, -1 or "". Its
    entries are dropped wherever lists are read, in files and requests, and with them the actions
    on them. By default every entry is an id."""
    action_of: str | None = None
    """Behaviour column of items whose actions (clicked, bought ...) this list holds, entry by
    entry."""
    transform: Transform = Transform.NONE
    """Transform of a numeric column before it is standardised: `none`, or `log` for
    `log(1 + x)`."""


class EmbeddingTableSettings(IdSettings):
    """Settings of one embedding table: id policy, dimension and initial weights."""

    ids: IdPolicyName = "vocabulary"
    """Id policy, which turns raw ids into table rows: `vocabulary` (one row for each value of the
    training data, saved with the model) or `hash` (a fixed number of rows that all values share;
    needs `rows`)."""
    dim: int | None = Field(default=None, ge=1)
    """Embedding dimension; by default `schema.dim`."""
    init_mean: float = 0.0
    """Centre of the uniform distribution of initial weights. 1 suits an action table whose vectors
    multiply item vectors."""
    init_range: float = Field(default=0.01, ge=0.0)
    """Initial weights lie between `init_mean - init_range` and `init_mean + init_range`."""
