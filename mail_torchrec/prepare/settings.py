"""Settings of the preparation of logs; importing them needs no engine to be installed."""

from collections.abc import Mapping
from datetime import date
from enum import StrEnum
from importlib.util import find_spec

from pydantic import Field, PositiveInt, ValidationError, field_validator

from mail_torchrec.settings import Settings


class EngineName(StrEnum):
    """Engine that runs the queries."""

    DUCKDB = "duckdb"
    PYSPARK = "pyspark"


class PrepareSettings(Settings):
    """Options of ``mail-torchrec prepare``.

    Those that change the rows must stay the same when an interrupted preparation goes on.
    """

    engine: EngineName = EngineName.DUCKDB
    """``duckdb``, in this process, or ``pyspark``."""
    history: PositiveInt = 100
    """Maximum length of a history: the newest so many events before an impression."""
    test_days: PositiveInt = 1
    """Days of test rows, the last ones of the log."""
    buckets: PositiveInt | None = None
    """Buckets of users, prepared one after the other; by default one for each 256 MB of files."""
    memory_limit: str = Field(default="8GB", pattern=r"^[0-9]+(\.[0-9]+)? ?[MG]B$")
    """Memory of the whole process (DuckDB) or of Spark's driver, in MB or GB."""
    threads: PositiveInt | None = None
    """Threads of the engine; by default one a CPU core."""
    max_malformed: float = Field(default=0.01, ge=0.0, le=1.0)
    """Maximum share of malformed lines in a file; more are an error."""
    time_range: tuple[date, date] | None = None
    """First and last day of plausible times, in the log's own time zone; by default those of the
    published log."""

    @field_validator("time_range", mode="before")
    @classmethod
    def _parse_time_range(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            first, last = (date.fromisoformat(day.strip()) for day in value.split(","))
        except ValueError:
            first, last = date.max, date.min
        if first > last:
            raise ValueError("should be two days FROM,TO in order, such as 2017-04-22,2017-05-13")
        return first, last

    @property
    def memory_mb(self) -> int:
        """``memory_limit`` in MB."""
        return int(float(self.memory_limit[:-2]) * {"MB": 1, "GB": 1000}[self.memory_limit[-2:]])

    def check_installed(self) -> None:
        """Checks that the packages of the engine are installed.

        Raises:
            ValueError: a package is not installed; says how to install it.
        """
        needed = (
            ("ibis", "duckdb")
            if self.engine is EngineName.DUCKDB
            else ("ibis", "pyspark", "pandas")
        )
        for package in needed:
            if find_spec(package) is None:
                extra = "prepare" if self.engine is EngineName.DUCKDB else "spark"
                raise ValueError(
                    f"preparing logs with engine '{self.engine}' needs the package '{package}', "
                    "which is not installed; "
                    f"install it: pip install 'mail-torchrec[{extra}]'"
                )


def prepare_settings(options: Mapping[str, object]) -> PrepareSettings:
    """Validates the command line's options, and checks that the engine is installed.

    Raises:
        ValueError: an option does not fit, with its name; a package is not installed.
    """
    try:
        settings = PrepareSettings.model_validate(options)
    except ValidationError as error:
        faults = (
            f"--{str(fault['loc'][0]).replace('_', '-')}: {fault['msg']}, received "
            f"{fault['input']!r}"
            for fault in error.errors()
        )
        raise ValueError("; ".join(faults)) from error
    settings.check_installed()
    return settings
