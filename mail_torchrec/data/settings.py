"""Settings of the section ``data``: where the rows are and how they are read."""

import math
from datetime import date
from typing import Literal, Self, overload

from pydantic import Field

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.items.settings import NewItemSettings
from mail_torchrec.data.parquet.selection import DataPart, at_root, paths_of
from mail_torchrec.data.validation_split import ValidationSettings
from mail_torchrec.settings import Settings
from mail_torchrec.utils.uris import without_credentials

# Of a rank on a GPU by default: each process holds two chunks of shuffled rows.
_MOST_WORKERS = 8


class DataSettings(Settings):
    """Locates the data and configures its reading."""

    root: str = ""
    """Folder or URI (`s3://`, `gs://`, `hdfs://` ...) that `train` and `test` lie below. Options
    of a URI (`?region=...`) stay at its end; its credentials are never stored or shown."""
    train: DataPart = "train"
    """Training data below `root`: a Parquet file, a folder of them, a glob such as
    `log/day=2024-05-0*`, days of Hive partitions `{path: log, days: [2024-05-01, 2024-05-07]}`, or
    a list of these."""
    test: DataPart = "test"
    """Evaluation data, as `train`."""
    validation: ValidationSettings | None = None
    """Rows that measure the model while it trains and choose its best checkpoint; null: none, and
    the last checkpoint is the model."""
    day: date | None = Field(default=None, exclude_if=lambda day: day is None)
    """Day of the training data, by which managed ids expire and their counts decay; by default the
    newest day in the names of the files' folders (`day=2024-05-31/`), or else in UTC of the times
    that columns have a `part` or `age_of` of."""
    negatives_kept: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the unclicked rows that `train` still has, 0.1 where negatives were downsampled 1 to
    10. The reported and exported probabilities of a click, and of what follows it, are corrected
    for it (He et al. 2014). Refused beside a column of group `weight`, which says it by rows."""
    test_negatives_kept: float = Field(default=1.0, gt=0.0, le=1.0)
    """The same of `test`, of `validation.path` and of `evaluate --data`: 1 where these are all
    rows, as they should be. Metrics compare the rows with the probabilities that they have in such
    a sample; predictions are of all rows. Refused beside a column of group `weight`."""
    cold_start: ColdStartSettings = ColdStartSettings()
    """Simulated cold start of a share of the users."""
    new_user_max_behaviours: int = Field(default=0, ge=0)
    """A row is reported as a new user's where all its behaviour sequences together hold at most so
    many behaviours (unless the schema has a `new_user` column)."""
    new_items: NewItemSettings | None = Field(default=None, exclude_if=lambda rule: rule is None)
    """Rule for new items, whose rows have metrics of their own; null: none, unless the schema has a
    `new_item` column."""
    shuffle_buffer_size: int = Field(default=65_536, ge=1)
    """Number of training rows that are shuffled together; the order of the row groups is shuffled
    as well."""
    group_by_user: bool = False
    """Keep rows of one user together when shuffling (the order of the users and of each user's rows
    is random) and deduplicate the user-side features of each batch: rows that agree in them share
    one lookup and one pass of the towers (RecD, Zhao et al. 2023)."""
    shape_buckets: Literal[1, 2, 4, 8, 16, 32] | None = None
    """Round the numbers of warm users, of cold users, of users and of attended behaviours of each
    batch up to a ladder of sizes, so many from a power of two to the next: 8 adds at most an
    eighth. Steps then have few shapes, for each of which `train.compile` compiles the towers. What
    fills up counts in no loss. null: numbers are as the rows have them."""
    num_workers: int = Field(default=0, ge=0)
    """Reader processes of each rank; 0 reads in the training process. Where it is not set, a run on
    GPUs has one for each processor core but one, at most 8: a rank that reads launches nothing."""

    @property
    def training_shift(self) -> float:
        """Difference of the logits of a test row and of a training row that are alike."""
        return math.log(self.negatives_kept) - math.log(self.test_negatives_kept)

    def on_device(self, device: str, num_cores: int) -> Self:
        """Returns the settings with the defaults of a device, ``cpu`` or ``cuda``.

        Args:
            device: of the ranks.
            num_cores: processor cores that each rank may use for itself.
        """
        if device != "cuda" or "num_workers" in self.model_fields_set:
            return self
        return self.model_copy(update={"num_workers": min(max(num_cores - 1, 1), _MOST_WORKERS)})

    @overload
    def path(self, part: str) -> str: ...

    @overload
    def path(self, part: DataPart) -> DataPart: ...

    def path(self, part: DataPart) -> DataPart:
        """Returns ``part`` (``train`` or ``test``) with its paths below ``root``."""
        return at_root(self.root, part)

    def check_no_credentials(self) -> None:
        """Checks that processes of their own can read the data by a saved configuration.

        Raises:
            ValueError: a URI has credentials, which are never saved.
        """
        validation = self.validation.path if self.validation is not None else None
        parts = [self.train, self.test, *([] if validation is None else [validation])]
        for path in (path for part in parts for path in paths_of(self.path(part))):
            if without_credentials(path) != path:
                raise ValueError(
                    f"'{without_credentials(path)}' was given with credentials, but each run is a "
                    "process that reads a saved configuration, which holds none; give them by the "
                    "environment (for s3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
                )
