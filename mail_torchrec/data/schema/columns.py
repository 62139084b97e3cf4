"""What a schema is made of: columns, the groups they belong to, and tables."""

from enum import StrEnum

from pydantic import Field

from mail_torchrec.settings import Settings


class Group(StrEnum):
    """What a column is for: the paper's four feature groups, and what training needs beside them."""

    ATTRIBUTE = "attribute"
    BEHAVIOUR = "behaviour"
    CONTEXT = "context"
    ITEM = "item"
    LABEL = "label"
    CONVERSION = "conversion"
    GROUP_KEY = "group_key"
    NEW_USER = "new_user"


class Kind(StrEnum):
    """How a column is stored: one id a row, a list of ids a row, or one number a row."""

    CATEGORICAL = "categorical"
    LIST = "list"
    NUMERIC = "numeric"


class Ids(StrEnum):
    """How raw values become table rows: a vocabulary built from the training data, or a hash."""

    VOCABULARY = "vocabulary"
    HASH = "hash"


class Actions(StrEnum):
    """How the embedding of an action joins that of its item: elementwise product (the paper), behind it, or not at all."""

    PRODUCT = "product"
    CONCAT = "concat"
    IGNORE = "ignore"


class Transform(StrEnum):
    """What is done to a number before it is standardised: nothing, or ``log(1 + x)``."""

    NONE = "none"
    LOG = "log"


class Column(Settings):
    """One input column. Its name in the schema is its name everywhere but in the files, where ``column`` may differ."""

    group: Group
    """The group: attribute, behaviour, context, item, label, conversion, group_key or new_user."""
    kind: Kind = Kind.CATEGORICAL
    """categorical (one id), list (ids) or numeric (one number). Behaviours are lists; labels and
    keys need no kind."""
    column: str | None = None
    """The column in the files, where it is not the schema's name (one file column can serve two
    schema columns)."""
    table: str | None = None
    """The table looked up; by default the column's own. Columns that name the same table share
    it."""
    max_length: int = Field(default=50, ge=1)
    """List columns: only the newest ``max_length`` entries are kept (the rest is counted).
    Behaviours: the T of the paper."""
    action_of: str | None = None
    """Behaviours: this list holds the actions on the items of that other list, entry by entry."""
    transform: Transform = Transform.NONE
    """Numeric columns: applied before standardising."""


class Table(Settings):
    """One embedding table."""

    ids: Ids = Ids.VOCABULARY
    """vocabulary (built from the training data, saved with the model) or hash."""
    rows: int | None = Field(default=None, ge=3)
    """Hash tables: the number of rows. Vocabulary tables: at most so many, of the most frequent
    values. Unknown and null ids take two."""
    min_count: int = Field(default=1, ge=1)
    """Vocabulary tables: values seen less often than this in training share row 0, as do values
    never seen."""
    dim: int | None = Field(default=None, ge=1)
    """The embedding dimension; by default the schema's."""
    init_mean: float = 0.0
    """Initial weights are uniform around this value. 1 suits an action table that multiplies item
    vectors."""
    init_range: float = Field(default=0.01, ge=0.0)
    """... from ``init_mean - init_range`` to ``init_mean + init_range``."""
