"""The ``mail-torchrec check`` command: looks at the data of a configuration without training."""

from collections import deque
from pathlib import Path

from mail_torchrec.config import Config
from mail_torchrec.data.content.table_vectors import open_table_vectors
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.weights.positions import position_rows
from mail_torchrec.data_check.check_report import CheckReport
from mail_torchrec.data_check.column_counts import ColumnCounts, report_columns
from mail_torchrec.data_check.history_checks import HistoryCounts
from mail_torchrec.data_check.row_counts import RowCounts, compare_parts
from mail_torchrec.data_check.scan import Part, open_part
from mail_torchrec.model.unused_settings import unused_settings


def check_data(config: Config, max_rows: int) -> CheckReport:
    """Looks at the rows of training, of validation where they have files of their own, and of test.

    Args:
        config: names the files, and what their columns are.
        max_rows: rows of each part to look at, whole row groups evenly over all files.
    """
    report, schema, data = CheckReport(), config.schema_, config.data
    train = open_part("training", data.path(data.train), schema, None, max_rows, report)
    types = None if train is None else train.types
    test = open_part("test", data.path(data.test), schema, types or {}, max_rows, report)
    validation = None
    if data.validation is not None and data.validation.path is not None:
        path = data.path(data.validation.path)
        validation = open_part("validation", path, schema, types or {}, max_rows, report)
    report.head = "\n".join(_head(part) for part in (train, validation, test) if part is not None)
    for unused in unused_settings(config.model, schema, data):
        report.warn("unused", unused)
    if train is None:
        return report
    encoders = _encoders(train, config, report)
    if encoders is not None:
        _check_ids_of_settings(train, config, encoders, report)
    counts = _scan(train, config, None, report)
    if validation is not None:
        _scan(validation, config, encoders, report)
    of_test = None if test is None else _scan(test, config, encoders, report)
    if of_test is not None:
        compare_parts(counts[0], of_test[0], report)
        _add_new_items(of_test[1], report)
    counts[1].encoders = encoders
    report_columns(counts[1], None if of_test is None else of_test[1], report)
    return report


def check_report_name(out: Path) -> None:
    """Checks the name of a report's file, before the data is read.

    Raises:
        ValueError: it ends in neither ``.json`` nor ``.md``.
    """
    if out.suffix not in (".json", ".md"):
        raise ValueError(f"--out {out} should end in .json or .md")


def write_report(report: CheckReport, out: Path) -> None:
    """Writes a report as JSON or Markdown, by the name of the file."""
    check_report_name(out)
    text = report.json() if out.suffix == ".json" else report.markdown()
    out.write_text(text, encoding="utf-8")


def _head(part: Part) -> str:
    looked_at = "all" if part.is_whole else f"{part.num_read:,}"
    more = "" if part.is_whole else "; shares of new users and unknown ids are upper bounds"
    return f"{part.name}: {part.num_rows:,} rows in {part.source.path}, looked at {looked_at}{more}"


def _encoders(train: Part, config: Config, report: CheckReport) -> Encoders | None:
    """Fits the encoders as training does, on the rows that are looked at."""
    try:
        return fit_encoders(train.source, config.schema_, config.data.cold_start)
    except ValueError as error:
        report.error("values", str(error))
        return None


def _check_ids_of_settings(
    train: Part, config: Config, encoders: Encoders, report: CheckReport
) -> None:
    """Checks constant positions, and vectors that tables begin with, against the ids."""
    schema = config.with_dims(encoders.num_rows).schema_
    try:
        position_rows(schema, encoders)
        for vectors in open_table_vectors(schema, encoders.tables, config.data.path).values():
            deque(vectors, maxlen=0)  # reads all
    except ValueError as error:
        add = report.error if train.is_whole else report.warn  # other rows may have the id
        add("settings", str(error))


def _add_new_items(test: ColumnCounts, report: CheckReport) -> None:
    """Adds the share of the test rows whose target item training does not have."""
    schema = test.schema
    targets = list(dict.fromkeys(schema.target_of(sequence) for sequence in schema.sequences))
    for name in targets if test.encoders is not None else []:
        row = [f"test: {name} not in training", f"{test.unknown_share(name):.1%}", "", ""]
        report.tables[0].rows.append(row)


def _scan(
    part: Part, config: Config, encoders: Encoders | None, report: CheckReport
) -> tuple[RowCounts, ColumnCounts]:
    """Counts the rows of a part, and adds its own tables and findings."""
    schema = config.schema_
    rows, columns = RowCounts(part, schema), ColumnCounts(part, schema, encoders)
    histories = HistoryCounts(part, schema)
    for found in part.rows(schema, encoders, report):
        for counts in (rows, columns, histories):
            counts.add(found)
    if rows.total.rows:
        rows.add_to(report)
        histories.add_to(report)
    return rows, columns
