"""Encoders that were saved and loaded."""

from pathlib import Path

import pytest
from hypothesis import given

from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.ids.hash import HashedIds
from mail_torchrec.data.ids.vocabulary import Vocabulary
from mail_torchrec.data.schema.schema import Schema
from tests.data.test_fitting import files, fit
from tests.support import plain
from tests.support.plain import any_rows, row, write


@files
@given(any_rows())
def test_saved_and_loaded_encoders_are_equal(tmp_path: Path, rows: list[plain.Row]) -> None:
    schema = Schema.model_validate(plain.TREE | {"tables": {"hour": {"ids": "hash", "rows": 9}}})
    write(tmp_path / "data" / "a.parquet", rows)
    encoders = fit(tmp_path / "data", schema)
    encoders.save(tmp_path / "saved")
    loaded = Encoders.load(tmp_path / "saved", schema)
    assert loaded.scales == encoders.scales
    assert loaded.num_rows == encoders.num_rows
    assert isinstance(loaded.tables["hour"], HashedIds)
    for name, table in encoders.tables.items():
        if isinstance(table, Vocabulary):
            again = loaded.tables[name]
            assert isinstance(again, Vocabulary)
            assert again.values.equals(table.values)
            assert again.counts_V.tolist() == table.counts_V.tolist()


@pytest.mark.parametrize("name", ["scales.json", "item.parquet"])
def test_a_run_directory_copied_in_part_is_named(tmp_path: Path, schema: Schema, name: str) -> None:
    write(tmp_path / "data" / "a.parquet", [row()])
    fit(tmp_path / "data", schema).save(tmp_path / "saved")
    (tmp_path / "saved" / name).unlink()
    with pytest.raises(
        ValueError, match=rf"{tmp_path}/saved should hold the vocabularies of a run: .*{name}"
    ):
        Encoders.load(tmp_path / "saved", schema)
