"""Parts of a schema: columns, the groups they belong to, and embedding tables."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from mail_torchrec.data.ids.registry import ID_POLICIES, known_policy
from mail_torchrec.data.ids.settings import IdSettings
from mail_torchrec.data.schema.dims import Dim
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
    TASK_LABEL = "task_label"
    WEIGHT = "weight"
    POSITION = "position"
    GROUP_KEY = "group_key"
    NEW_USER = "new_user"
    NEW_ITEM = "new_item"
    DAY = "day"
    PASSTHROUGH = "passthrough"


PREDICTION_COLUMNS = frozenset(
    "filename file_row_number pctr pcvr pctcvr user label conversion is_new logit".split()
)
"""Columns of written predictions, which passthrough columns stand beside."""


class Kind(StrEnum):
    """Storage of a column: an id, a list of ids, a number, or a vector of numbers a row."""

    CATEGORICAL = "categorical"
    LIST = "list"
    NUMERIC = "numeric"
    VECTOR = "vector"
    WEIGHTS = "weights"

    @property
    def is_list(self) -> bool:
        """True where a row holds a list: of ids, of their weights, or of a vector's elements."""
        return self in (Kind.LIST, Kind.VECTOR, Kind.WEIGHTS)


class Actions(StrEnum):
    """Combination of action and item embeddings: product (the paper), concatenation, or none."""

    PRODUCT = "product"
    CONCAT = "concat"
    IGNORE = "ignore"


class Transform(StrEnum):
    """Transform of a number before it is standardised: none, or ``log(1 + x)``."""

    NONE = "none"
    LOG = "log"


class TimePart(StrEnum):
    """Part of a time in a calendar."""

    HOUR = "hour"
    WEEKDAY = "weekday"
    HOUR_OF_WEEK = "hour_of_week"
    DAY = "day"
    MONTH = "month"
    YEAR = "year"


def _is_none(value: object) -> bool:
    return value is None


class Column(Settings):
    """One input column; its name in the schema is used everywhere but in the files."""

    group: Group
    """Role of the column: `attribute`, `behaviour`, `context` or `item` (features), `label`
    (clicked or not), `conversion` (converted after the click), `task_label`
    (label of a task of `model.tasks`: 0 or 1, or with `kind: numeric` a number of 0 or more; null
    where it is unknown), `weight` (of the row in losses and
    metrics), `position` (where the item was shown: a feature of training alone), `group_key` (the
    user), `new_user` (flag of a new user's row), `new_item` (flag of a new item's row), `day`
    (of the row, for `data.cold_start.by`: a date, a timestamp or an integer such as 20240531) or
    `passthrough` (copied to predictions as stored, and otherwise not read)."""
    kind: Kind = Kind.CATEGORICAL
    """Storage: `categorical` (one id a row), `list` (a list of ids), `numeric` (one number) or
    `vector` (a list of numbers, equally long in all rows, such as a content vector) or `weights` (a
    list of numbers that weigh the entries of another list, which names it in its `weights`).
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
    weights: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """Column of kind `weights` and of the same group that weighs the entries of this pooled list,
    one number each: the list's vector is their weighted mean."""
    position_value: int | str | None = Field(default=None, exclude_if=lambda value: value is None)
    """Value that a `position` column has outside of training, such as 1; by default null, whose row
    is trained by the rows that `position_dropout` chooses."""
    position_dropout: float | None = Field(
        default=None, ge=0.0, lt=1.0, exclude_if=lambda value: value is None
    )
    """Share of the training rows whose position is taken for null, chosen by a hash of the row's
    ids. By default 0.1, and 0 with a `position_value`."""
    length: int | None = Field(default=None, ge=1, exclude_if=lambda length: length is None)
    """Number of elements of the vectors of a `vector` column; by default that of the training
    data's first vector. Vectors of another length are refused."""
    transform: Transform = Transform.NONE
    """Transform of a numeric column before it is standardised: `none`, or `log` for
    `log(1 + x)`."""
    cross: list[str] | None = Field(default=None, exclude_if=_is_none)
    """Columns of the files whose values together are the id, such as `[city, category]`: a hash of
    them, which the table encodes as any other id. Columns of the schema with a `part` may be named
    too. A null is a value of its own; where all are null, so is the cross."""
    part: TimePart | None = Field(default=None, exclude_if=_is_none)
    """Part of the time in `column` that is the value: `hour` (0 to 23), `weekday` (0 is Monday),
    `hour_of_week` (0 to 167), `day` (of the month), `month` or `year`."""
    zone: str | None = Field(default=None, exclude_if=_is_none)
    """Time zone of `part`, such as Europe/Berlin; by default UTC."""
    age_of: str | None = Field(default=None, exclude_if=_is_none)
    """Column of the files with a time whose age at the time in `column` is the value: the item was
    published so long before the impression. With kind `list`, a list of times, such as those of
    past clicks, whose ages are the gaps to the impression."""
    age_unit: Literal["second", "minute", "hour", "day"] = Field(
        default="second", exclude_if=lambda unit: unit == "second"
    )
    """Unit of the ages."""
    time_unit: Literal["second", "millisecond", "microsecond", "day"] | None = Field(
        default=None, exclude_if=_is_none
    )
    """Unit, from 1970 in UTC, of times that are integers, for `part` and `age_of`; timestamps and
    dates need none."""


class VectorFileSettings(Settings):
    """File of vectors by id, which an embedding table begins with."""

    path: str
    """Parquet file or folder below `data.root`, one row an id; its ids need not be all of the
    table's, nor all known to it."""
    id: str = "id"
    """Column of the ids, of the type that they have in the training data."""
    vector: str = "vector"
    """Column of the vectors, lists of as many numbers as the table has dimensions."""
    scale: float = Field(default=1.0, gt=0.0, exclude_if=lambda scale: scale == 1)
    """Factor of the vectors. Towers learn best from vectors of about the size of the others: where
    the numbers of the file deviate by 1 or more, 0.1 is a good begin."""


class EmbeddingTableSettings(IdSettings):
    """Settings of one embedding table: id policy, dimension and initial weights."""

    ids: IdPolicyName = "vocabulary"
    """Id policy, which turns raw ids into table rows: `vocabulary` (one row for each value of the
    training data, saved with the model), `managed` (a fixed number of rows that ids get and lose as
    runs continue; needs `rows`), `hash` (a fixed number of rows that all values share; needs
    `rows`) or `buckets` (numbers, one row for each interval; needs `buckets`)."""
    dim: Dim | None = None
    """Embedding dimension; by default `schema.dim`. `auto` chooses it as `schema.dim: auto` does,
    but no more than `schema.dim` where that is a number."""
    init_mean: float = 0.0
    """Centre of the uniform distribution of initial weights. 1 suits an action table whose vectors
    multiply item vectors."""
    init_range: float = Field(default=0.01, ge=0.0)
    """Initial weights lie between `init_mean - init_range` and `init_mean + init_range`."""
    init_from: VectorFileSettings | None = Field(default=None, exclude_if=lambda file: file is None)
    """File of vectors by id (a content vector for each item, say) that the rows of these ids begin
    with; the others begin at random. The output-side table of a match loss begins with them too."""
