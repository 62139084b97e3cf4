"""Settings of the section ``data``: where the rows are and how they are read."""

from pydantic import Field

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.settings import Settings
from mail_torchrec.utils.uris import join_path


class DataSettings(Settings):
    """Locates the data and configures its reading."""

    root: str = ""
    """Folder or URI (`s3://`, `gs://`, `hdfs://` ...) that `train` and `test` lie below. Options
    of a URI (`?region=...`) stay at its end; its credentials are never stored or shown."""
    train: str = "train"
    """Training data: a Parquet file, or a folder of Parquet files, below `root`."""
    test: str = "test"
    """Evaluation data, as `train`."""
    cold_start: ColdStartSettings = ColdStartSettings()
    """Simulated cold start of a share of the users."""
    new_user_max_behaviours: int = Field(default=0, ge=0)
    """A row is reported as a new user's where all its behaviour sequences together hold at most so
    many behaviours (unless the schema has a `new_user` column)."""
    shuffle_buffer_size: int = Field(default=65_536, ge=1)
    """Number of training rows that are shuffled together; the order of the row groups is shuffled
    as well."""
    group_by_user: bool = False
    """Keep rows of one user together when shuffling (the order of the users and of each user's rows
    is random) and deduplicate the user-side features of each batch: rows that agree in them share
    one lookup and one pass of the towers (RecD, Zhao et al. 2023)."""
    num_workers: int = Field(default=0, ge=0)
    """Reader processes of each rank; 0 reads in the training process."""

    def path(self, part: str) -> str:
        """Returns the path of ``part`` (``train`` or ``test``) below ``root``."""
        return join_path(self.root, part)
