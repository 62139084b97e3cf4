"""Engines that run the queries: DuckDB in this process, or Spark.

Both read lines of text, write Parquet, and run the SQL that Ibis compiles.
"""

import glob
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import Table

from mail_torchrec.prepare.settings import EngineName, PrepareSettings
from mail_torchrec.prepare.text_lines import read_lines

ROW_GROUP_ROWS = 65_536


class QueryEngine(Protocol):
    """Runs the SQL of Ibis expressions."""

    version: str

    def lines(self, path: Path) -> Table:
        """Opens all lines of a Latin-1 file as a column ``line``, for one query."""

    def arrow(self, batches: pa.RecordBatchReader, columns: dict[str, str], scratch: Path) -> Table:
        """Opens Arrow batches for one query.

        Args:
            batches: read once.
            columns: Ibis type of each column.
            scratch: file that may be written for the time of the query.
        """

    def stored(self, path: Path, columns: dict[str, str]) -> Table:
        """Opens Parquet of :meth:`write`.

        Args:
            path: the path that was written.
            columns: Ibis type of each column.
        """

    def write(self, table: Table, path: Path, by: str | None = None) -> None:
        """Runs a query into Parquet.

        Args:
            table: the query.
            path: file or folder to write.
            by: a column; each of its values gets a folder of its own below ``path``.
        """

    def rows(self, table: Table) -> list[tuple[Any, ...]]:
        """Runs a query and returns its rows, which should be few."""

    def progress(self) -> float:
        """Returns the progress of the running query in percent, less than 0 where unknown."""

    def close(self) -> None:
        """Closes the connection or session."""


def open_engine(settings: PrepareSettings, spill: Path) -> QueryEngine:
    """Opens the engine of the settings; data beyond its memory limit is written to ``spill``."""
    settings.check_installed()
    if settings.engine is EngineName.DUCKDB:
        return DuckDBEngine(settings, spill)
    return SparkEngine(settings, spill)


class DuckDBEngine:
    """Runs queries in DuckDB, in this process.

    Args:
        settings: memory limit and threads.
        spill: folder for data beyond the memory limit.
    """

    def __init__(self, settings: PrepareSettings, spill: Path) -> None:
        duckdb = import_module("duckdb")
        self.version = f"duckdb {duckdb.__version__}, ibis {ibis.__version__}"
        self._error, self._views = duckdb.Error, 0
        # The limit leaves out Python and a part of what DuckDB allocates: it gets two thirds.
        options: dict[str, Any] = {
            "memory_limit": f"{settings.memory_mb * 2 // 3}MB",
            "temp_directory": str(spill),
        }
        if settings.threads is not None:
            options["threads"] = settings.threads
        self._connection = duckdb.connect(config=options)
        self._connection.execute("SET enable_progress_bar = false")

    def lines(self, path: Path) -> Table:
        """See :class:`QueryEngine`."""
        return self.arrow(read_lines(path), {"line": "string"}, path)

    def arrow(self, batches: pa.RecordBatchReader, columns: dict[str, str], scratch: Path) -> Table:
        """See :class:`QueryEngine`."""
        del scratch
        self._views += 1
        name = f"v{self._views}"
        self._connection.register(name, batches)
        return ibis.table(columns, name=name)

    def stored(self, path: Path, columns: dict[str, str]) -> Table:
        """See :class:`QueryEngine`."""
        found = Path(glob.escape(str(path.absolute())))  # DuckDB takes it for a pattern
        files = _quoted(found / "*" / "*.parquet") if path.is_dir() else _quoted(found)
        return self._view(f"read_parquet({files}, hive_partitioning = {path.is_dir()})", columns)

    def write(self, table: Table, path: Path, by: str | None = None) -> None:
        """See :class:`QueryEngine`."""
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
        """See :class:`QueryEngine`."""
        found: list[tuple[Any, ...]] = self._run(
            str(ibis.to_sql(table, dialect="duckdb"))
        ).fetchall()
        return found

    def progress(self) -> float:
        """See :class:`QueryEngine`."""
        return float(self._connection.query_progress())

    def close(self) -> None:
        """See :class:`QueryEngine`."""
        self._connection.close()

    def _run(self, sql: str) -> Any:
        try:
            return self._connection.execute(sql)
        except self._error as error:
            raise _query_error("DuckDB", error) from error

    def _view(self, source: str, columns: dict[str, str]) -> Table:
        self._views += 1
        self._run(f"CREATE VIEW v{self._views} AS SELECT * FROM {source}")
        return ibis.table(columns, name=f"v{self._views}")


class SparkEngine:
    """Runs queries in Spark: in the running session (as under spark-submit), or a local one.

    Args:
        settings: memory limit and threads, of a local session.
        spill: folder for what a local session shuffles.
    """

    def __init__(self, settings: PrepareSettings, spill: Path) -> None:
        pyspark = import_module("pyspark")
        _ = ibis.pyspark  # This attribute's import makes Ibis know Spark's options.
        self.version, self._views = f"pyspark {pyspark.__version__}, ibis {ibis.__version__}", 0
        self._errors = (
            import_module("pyspark.errors").PySparkException,
            import_module("py4j.protocol").Py4JError,
        )
        self._session = _spark_session(pyspark, settings, spill)

    def lines(self, path: Path) -> Table:
        """See :class:`QueryEngine`."""
        # Spark takes text for UTF-8, and leaves the bytes of other text as they are.
        lines = self._session.read.text(str(path.absolute()), lineSep="\n")
        latin = lines.selectExpr("decode(cast(value AS binary), 'ISO-8859-1') AS line")
        return self._view(latin, {"line": "string"})

    def arrow(self, batches: pa.RecordBatchReader, columns: dict[str, str], scratch: Path) -> Table:
        """See :class:`QueryEngine`."""
        with pq.ParquetWriter(scratch, batches.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return self.stored(scratch, columns)

    def stored(self, path: Path, columns: dict[str, str]) -> Table:
        """See :class:`QueryEngine`."""
        return self._view(self._session.read.parquet(str(path.absolute())), columns)

    def write(self, table: Table, path: Path, by: str | None = None) -> None:
        """See :class:`QueryEngine`."""
        try:
            writer = self._query(table).write.option("compression", "zstd")
            # Spark has no rows a row group to set: a file of that many rows has one group.
            writer = writer.option("maxRecordsPerFile", ROW_GROUP_ROWS)
            (writer.partitionBy(by) if by else writer).parquet(str(path.absolute()))
        except self._errors as error:
            raise _query_error("Spark", error) from error

    def rows(self, table: Table) -> list[tuple[Any, ...]]:
        """See :class:`QueryEngine`."""
        return [tuple(row) for row in self._query(table).collect()]

    def progress(self) -> float:
        """See :class:`QueryEngine`."""
        return -1.0

    def close(self) -> None:
        """See :class:`QueryEngine`."""
        self._session.stop()

    def _query(self, table: Table) -> Any:
        return self._session.sql(str(ibis.to_sql(table, dialect="pyspark")))

    def _view(self, frame: Any, columns: dict[str, str]) -> Table:
        self._views += 1
        frame.createOrReplaceTempView(f"v{self._views}")
        return ibis.table(columns, name=f"v{self._views}")


def _spark_session(pyspark: Any, settings: PrepareSettings, spill: Path) -> Any:
    """Opens a Spark session; a local one where no master is configured."""
    builder = import_module("pyspark.sql").SparkSession.builder.appName("mail-torchrec prepare")
    if not pyspark.SparkConf().contains("spark.master"):
        builder = builder.master(f"local[{settings.threads or '*'}]")
        for key, value in _local_options(settings, spill).items():
            builder = builder.config(key, value)
    session = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    # A malformed line's missing field is null, as in DuckDB.
    session.conf.set("spark.sql.ansi.enabled", "false")
    return session


def _local_options(settings: PrepareSettings, spill: Path) -> dict[str, str]:
    return {
        "spark.driver.memory": f"{settings.memory_mb}m",
        "spark.local.dir": str(spill),
        "spark.ui.enabled": "false",
        # The default, 200, is for clusters.
        "spark.sql.shuffle.partitions": "16",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
    }


def _query_error(engine: str, error: Exception) -> ValueError:
    """Shortens an engine's error, which may quote lines of any length."""
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
