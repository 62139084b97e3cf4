"""What runs the queries: DuckDB in this process, or Spark. Both read lines, keep Parquet, and run the SQL that Ibis compiles."""

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import ibis
from ibis.expr.types import Table

from mail_torchrec.prepare.settings import EngineName, PrepareSettings

ROW_GROUP_ROWS = 65_536
_NO_SEPARATOR = "\x01\x02\x03"  # a line is one field: this is in no log


class Engine(Protocol):
    """What the steps need of an engine."""

    version: str

    def lines(self, path: Path, *, header: bool) -> Table:
        """The lines of a text file as column ``line``; blank ones may be null or missing."""

    def stored(self, path: Path, columns: dict[str, str]) -> Table:
        """What :meth:`write` wrote, with these columns (name -> Ibis type)."""

    def write(self, table: Table, path: Path, by: str | None = None) -> None:
        """Runs a query into Parquet: at ``path``, or below it in one folder for each value of column ``by``."""

    def rows(self, table: Table) -> list[tuple[Any, ...]]:
        """Runs a query with a small answer."""

    def progress(self) -> float:
        """How far the running query is, 0 to 100; less than 0 where nobody knows."""

    def close(self) -> None:
        """Gives everything back."""


def open_engine(settings: PrepareSettings, spill: Path) -> Engine:
    """The engine of the settings; what does not fit into its memory goes to ``spill``."""
    settings.check_installed()
    return (
        DuckDB(settings, spill) if settings.engine is EngineName.DUCKDB else Spark(settings, spill)
    )


class DuckDB:
    """DuckDB, in memory.

    Args:
        settings: memory limit and threads.
        spill: folder for what does not fit into the memory.
    """

    def __init__(self, settings: PrepareSettings, spill: Path) -> None:
        duckdb = import_module("duckdb")
        self.version = f"duckdb {duckdb.__version__}, ibis {ibis.__version__}"
        self._error, self._views = duckdb.Error, 0
        # The limit counts the larger part of what DuckDB takes from the system, and not Python: so
        # two thirds.
        options: dict[str, Any] = {
            "memory_limit": f"{settings.memory_mb * 2 // 3}MB",
            "temp_directory": str(spill),
        }
        if settings.threads is not None:
            options["threads"] = settings.threads
        self._connection = duckdb.connect(config=options)
        self._connection.execute("SET enable_progress_bar = false")

    def lines(self, path: Path, *, header: bool) -> Table:
        """See :class:`Engine`."""
        options = f"delim = '{_NO_SEPARATOR}', quote = '', escape = '', encoding = 'latin-1', strict_mode = false, auto_detect = false"
        return self._view(
            f"read_csv({_quoted(path)}, header = {header}, columns = {{'line': 'VARCHAR'}}, "
            f"{options})",
            {"line": "string"},
        )

    def stored(self, path: Path, columns: dict[str, str]) -> Table:
        """See :class:`Engine`."""
        files = _quoted(path / "*" / "*.parquet") if path.is_dir() else _quoted(path)
        return self._view(f"read_parquet({files}, hive_partitioning = {path.is_dir()})", columns)

    def write(self, table: Table, path: Path, by: str | None = None) -> None:
        """See :class:`Engine`."""
        options = (
            f"PARTITION_BY ({by})" if by else f"COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS}"
        )
        # Parts of a split have no order to keep; keeping it would hold rows back in memory.
        self._run(f"SET preserve_insertion_order = {'false' if by else 'true'}")
        self._run(
            f"COPY ({ibis.to_sql(table, dialect='duckdb')}) TO {_quoted(path)} (FORMAT parquet, "
            f"{options})"
        )

    def rows(self, table: Table) -> list[tuple[Any, ...]]:
        """See :class:`Engine`."""
        found: list[tuple[Any, ...]] = self._run(
            str(ibis.to_sql(table, dialect="duckdb"))
        ).fetchall()
        return found

    def progress(self) -> float:
        """See :class:`Engine`."""
        return float(self._connection.query_progress())

    def close(self) -> None:
        """See :class:`Engine`."""
        self._connection.close()

    def _run(self, sql: str) -> Any:
        try:
            return self._connection.execute(sql)
        except self._error as error:
            raise _stopped("DuckDB", error) from error

    def _view(self, source: str, columns: dict[str, str]) -> Table:
        self._views += 1
        self._run(f"CREATE VIEW v{self._views} AS SELECT * FROM {source}")
        return ibis.table(columns, name=f"v{self._views}")


class Spark:
    """Spark: the session that there is (as under spark-submit), or a local one.

    Args:
        settings: memory limit and threads, of a local session.
        spill: folder for what a local session shuffles.
    """

    def __init__(self, settings: PrepareSettings, spill: Path) -> None:
        pyspark, sql, _ = (
            import_module("pyspark"),
            import_module("pyspark.sql"),
            ibis.pyspark,
        )  # which makes Ibis know Spark's options
        self.version, self._views = f"pyspark {pyspark.__version__}, ibis {ibis.__version__}", 0
        self._errors = (
            import_module("pyspark.errors").PySparkException,
            import_module("py4j.protocol").Py4JError,
        )
        builder = sql.SparkSession.builder.appName("mail-torchrec prepare")
        if not pyspark.SparkConf().contains("spark.master"):
            builder = builder.master(f"local[{settings.threads or '*'}]").config(
                "spark.driver.memory", f"{settings.memory_mb}m"
            )
            builder = builder.config("spark.local.dir", str(spill)).config(
                "spark.ui.enabled", "false"
            )
            builder = builder.config(
                "spark.sql.shuffle.partitions", "16"
            )  # the default, 200, is for clusters
            builder = builder.config("spark.driver.bindAddress", "127.0.0.1").config(
                "spark.driver.host", "127.0.0.1"
            )
        self._session = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
        self._session.sparkContext.setLogLevel("ERROR")
        self._session.conf.set(
            "spark.sql.ansi.enabled", "false"
        )  # a malformed line's missing field is null, as in DuckDB

    def lines(self, path: Path, *, header: bool) -> Table:
        """See :class:`Engine`."""
        reader = self._session.read.schema("line STRING").options(
            sep=_NO_SEPARATOR, quote="", escape="", encoding="ISO-8859-1"
        )
        return self._view(reader.csv(str(path.absolute()), header=header), {"line": "string"})

    def stored(self, path: Path, columns: dict[str, str]) -> Table:
        """See :class:`Engine`."""
        return self._view(self._session.read.parquet(str(path.absolute())), columns)

    def write(self, table: Table, path: Path, by: str | None = None) -> None:
        """See :class:`Engine`."""
        try:
            writer = (
                self._query(table)
                .write.option("compression", "zstd")
                .option("maxRecordsPerFile", ROW_GROUP_ROWS)
            )  # so, of a row group
            (writer.partitionBy(by) if by else writer).parquet(str(path.absolute()))
        except self._errors as error:
            raise _stopped("Spark", error) from error

    def rows(self, table: Table) -> list[tuple[Any, ...]]:
        """See :class:`Engine`."""
        return [tuple(row) for row in self._query(table).collect()]

    def progress(self) -> float:
        """See :class:`Engine`."""
        return -1.0

    def close(self) -> None:
        """See :class:`Engine`."""
        self._session.stop()

    def _query(self, table: Table) -> Any:
        return self._session.sql(str(ibis.to_sql(table, dialect="pyspark")))

    def _view(self, frame: Any, columns: dict[str, str]) -> Table:
        self._views += 1
        frame.createOrReplaceTempView(f"v{self._views}")
        return ibis.table(columns, name=f"v{self._views}")


def _stopped(engine: str, error: Exception) -> ValueError:
    """An engine's error, which may quote lines of any length."""
    lines = [line[:200] for line in str(error).splitlines() if line.strip()][:8]
    return ValueError(
        "\n".join(
            [
                f"{engine} could not go on; what is finished is kept, so the same command goes "
                "on from here:",
                *lines,
            ]
        )
    )


def _quoted(path: Path) -> str:
    return "'" + str(path.absolute()).replace("'", "''") + "'"
