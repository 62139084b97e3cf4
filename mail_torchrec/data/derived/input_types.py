"""Checks of the times that derived columns are made of: units of integers, zones of timestamps."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from mail_torchrec.data.parquet.logical_types import LogicalType, element_type
from mail_torchrec.data.parquet.parquet_file import ParquetFile
from mail_torchrec.data.schema.schema import Schema

_UTC = {None, "UTC", "utc", "Z", "GMT", "Etc/UTC", "Etc/GMT", "+00:00", "-00:00", "+0000"}


def check_time_inputs(
    files: Iterable[ParquetFile], schema: Schema, types: Mapping[str, LogicalType]
) -> None:
    """Checks the times of files that derived columns are made of.

    Args:
        files: with the schema's columns.
        schema: derived columns.
        types: logical types of the raw inputs, by ``NAME.INPUT``.

    Raises:
        ValueError: integers without a ``time_unit``, a unit where there are none, or a part of
            timestamps that have a zone of their own where the schema names none.
    """
    files = list(files)
    for name, inputs in schema.derived.items():
        column = schema.columns[name]
        if column.cross is not None or f"{name}.{inputs[0].column}" not in types:
            continue
        found = {one.column: types[f"{name}.{one.column}"] for one in inputs}
        integers = [source for source, kind in found.items() if kind is LogicalType.INTEGER]
        where = f"schema.columns.{name}"
        if integers and column.time_unit is None:
            raise ValueError(
                f"{where}: column '{integers[0]}' holds integers; set time_unit to second, "
                "millisecond, microsecond or day"
            )
        if column.time_unit is not None and set(found.values()) == {LogicalType.TIME}:
            raise ValueError(
                f"{where}: time_unit is for integers, {' and '.join(found)} hold timestamps or "
                "dates; drop it"
            )
        if column.part is not None and column.zone is None:
            _check_zone(files, where, inputs[0].column)


def _check_zone(files: Iterable[ParquetFile], where: str, source: str) -> None:
    for file in files:
        if (zone := _zone(file.schema.field(source).type)) not in _UTC:
            raise ValueError(
                f"{file.path}: column '{source}' holds times of the zone {zone}, and "
                f"{where} counts in UTC; set its zone to {zone} or to UTC"
            )


def _zone(kind: Any) -> str | None:
    """Returns the time zone of timestamps, or of lists of them."""
    if (element := element_type(kind)) is not None and not pa.types.is_null(kind):
        return _zone(element)
    if isinstance(kind, pa.BaseExtensionType):
        return _zone(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _zone(kind.value_type)
    return kind.tz if pa.types.is_timestamp(kind) else None
