"""Registry of id policies: one entry makes a policy known to schema, fitting and planning."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.ids.counts import IdCounts
from mail_torchrec.data.ids.policy import IdEncoder, IdManifestEntry, IdPolicy, fill_missing_rows
from mail_torchrec.data.ids.registry import ID_POLICIES
from mail_torchrec.data.negatives import NegativeDistribution, NegativeSampler
from mail_torchrec.data.parquet.arrow import Ints
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.planning.scenarios import table_rows
from tests.support import plain
from tests.support.plain import row, write


class Modulo(IdEncoder):
    """Encodes integers by their remainder, for the test."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    @property
    def num_rows(self) -> int:
        return self._rows

    @property
    def values(self) -> None:
        return None

    @property
    def counts_V(self) -> None:
        return None

    def encode(self, ids: pa.Array) -> Ints:
        values_N = ids.fill_null(0).to_numpy()
        return fill_missing_rows(2 + values_N % (self._rows - 2), ids)

    def save(self, folder: Path, table: str) -> None:
        (folder / f"{table}.rows").write_text(str(self._rows))

    def manifest_entry(self, folder: str, table: str) -> IdManifestEntry:
        return IdManifestEntry("modulo")


class ModuloPolicy(IdPolicy):
    """Takes as many rows as there are distinct ids."""

    name = "modulo"
    needs_counts = True

    def check_settings(self) -> None:
        if self.settings.min_count > 1:
            raise ValueError("ids 'modulo' have no min_count; drop it")

    @property
    def rows_without_data(self) -> None:
        return None

    def fit(self, counts: IdCounts, day: date | None = None) -> Modulo:
        return Modulo(2 + len(counts.table))

    def load(self, folder: Path) -> Modulo:
        return Modulo(int((folder / f"{self.table}.rows").read_text()))


def schema_of(**hour: Any) -> Schema:
    return Schema.model_validate(plain.TREE | {"tables": {"hour": hour}})


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ID_POLICIES, "modulo", ModuloPolicy)


@pytest.mark.usefixtures("registered")
def test_a_registered_policy_is_fitted_saved_and_loaded(tmp_path: Path) -> None:
    schema = schema_of(ids="modulo")
    write(tmp_path / "a.parquet", [row(hour=hour) for hour in (3, 4, 5, 4)])
    fit_encoders(Source(str(tmp_path), schema), schema, ColdStartSettings()).save(tmp_path / "run")
    encoders = Encoders.load(tmp_path / "run", schema)
    assert encoders.num_rows["hour"] == 5
    assert encoders.tables["hour"].encode(pa.array([3, None, 4])).tolist() == [2, 1, 3]


@pytest.mark.usefixtures("registered")
def test_a_registered_policy_checks_its_settings() -> None:
    with pytest.raises(
        ValidationError, match=r"schema\.tables\.hour: ids 'modulo' have no min_count; drop it"
    ):
        schema_of(ids="modulo", min_count=2)


@pytest.mark.usefixtures("registered")
def test_planning_asks_the_policy_for_its_rows() -> None:
    schema = schema_of(ids="modulo")
    given = dict.fromkeys(schema.table_names, 10)
    assert table_rows(schema, given) == given
    del given["hour"]
    with pytest.raises(ValueError, match="hour"):
        table_rows(schema, given)


def test_negatives_ask_the_encoder_for_its_counts() -> None:
    with pytest.raises(ValueError, match="need frequencies, which the ids of table 'hour' lack"):
        NegativeSampler(NegativeDistribution.UNIGRAM, 4, Modulo(9), "hour")
    rows = NegativeSampler(NegativeDistribution.UNIFORM, 100, Modulo(4), "hour").sample(
        np.random.default_rng(1)
    )
    assert set(rows.tolist()) == {2, 3}


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(
        ValidationError, match="should be one of vocabulary, managed, hash, buckets, received 'md5'"
    ):
        schema_of(ids="md5")
