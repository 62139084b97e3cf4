"""Weights of rows and of list entries, in every stored form, against float64; bad ones by place."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.source import Source
from mail_torchrec.data.weights.weight_sum import WeightSum
from mail_torchrec.train.assembly import assemble
from tests.support.small_rows import SCHEMA, config_tree
from tests.support.weighted_rows import WEIGHTED, write_weighted_rows

ROWS = 60


def with_column(rows: pa.Table, name: str, values: Any) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, values)


def decimals(values: pa.Array) -> pa.Array:
    return pa.array([Decimal(str(value)) for value in values.to_pylist()], pa.decimal128(9, 3))


def dictionaries(values: pa.Array) -> pa.Array:
    return values.cast(pa.float64()).dictionary_encode()


FORMS: dict[str, Any] = {
    "float32": lambda values: values.cast(pa.float32()),
    "decimal": decimals,
    "integer": lambda values: pa.array(np.ceil(values.to_numpy()).astype(np.int16)),
    "dictionary": dictionaries,
}


@pytest.fixture
def rows(tmp_path: Path) -> pa.Table:
    (tmp_path / "train").mkdir()
    return write_weighted_rows(tmp_path / "rows.parquet", ROWS, seed=3)


def source_of(root: Path, rows: pa.Table, schema: dict[str, Any]) -> tuple[Config, Source]:
    pq.write_table(rows, root / "train" / "a.parquet", row_group_size=40)
    sections = {"schema": schema, "sharding": {"enabled": False}}
    config = Config.model_validate(config_tree(root, **sections))
    return config, Source(config.data.path("train"), config.schema_)


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize("form", FORMS)
def test_batches_have_the_weights_and_lists_their_weighted_means(
    tmp_path: Path, rows: pa.Table, form: str
) -> None:
    convert = FORMS[form]
    rows = with_column(rows, "weight", convert(rows["weight"].combine_chunks()))
    for name in ("relevance", "shares"):
        lists = rows[name].combine_chunks()
        lists = pa.ListArray.from_arrays(lists.offsets, convert(lists.values))
        rows = with_column(rows, name, lists)
    config, source = source_of(tmp_path, rows, WEIGHTED)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, torch.device("cpu"))
    reader = Reader(
        source, config.schema_, encoders, assembled.feature_tables, config.data,
        rank_info=RankInfo(), batch_size=ROWS, shuffle=False, seed=0,
    )  # fmt: skip
    [batch] = reader
    assert batch.weights_B.tolist() == [float(weight) for weight in rows["weight"].to_pylist()]
    with torch.no_grad():
        pooled = assembled.model.pooled_tables(batch.pooled).to_dict()
    tables = dict(assembled.model.pooled_tables.named_parameters())
    for name, weights in (("tags", "relevance"), ("cities", "shares")):
        vectors = tables[f"embedding_bags.{name}.weight"].double().detach().numpy()
        ids = batch.pooled[name].to_dense()
        limit = config.schema_.columns[name].max_length
        for row, given in enumerate(rows[weights].to_pylist()):
            of_row = np.array([float(weight) for weight in given[-limit:]])
            expected = of_row @ vectors[ids[row].numpy()] / max(of_row.sum(), 1e-99)
            assert pooled[name][row].numpy() == pytest.approx(expected, abs=1e-6)


def test_padding_takes_its_weights_with_it(tmp_path: Path, rows: pa.Table) -> None:
    padded = [[1, 0, 0], [2, 3, 0], [0, 0, 0]] * 20
    rows = with_column(rows, "tags", pa.array(padded))
    rows = with_column(
        rows, "relevance", pa.array([[1.0, 9.0, 9.0], [1.0, 3.0, 9.0], [9.0] * 3] * 20)
    )
    columns = WEIGHTED["columns"]
    tags = {"tags": columns["tags"] | {"padding": 0}}
    _, source = source_of(tmp_path, rows, WEIGHTED | {"columns": columns | tags})
    table = source.read(source.row_groups[0])
    assert table["relevance"].to_pylist()[:3] == [[1.0], [1.0, 3.0], []]


BAD: dict[str, tuple[str, Any, str]] = {
    "negative": ("weight", -0.5, "received -0.5 in row 3 of its row group"),
    "nan": ("weight", float("nan"), "received nan in row 3"),
    "infinite": ("weight", float("inf"), "received inf in row 3"),
    "beyond float32": ("weight", 1e39, r"received 1e\+39 in row 3"),
    "null": ("weight", None, "received null in row 3"),
    "negative entry": ("relevance", [-1.0] * 2, "received -1 in row 3"),
    "null entry": ("relevance", [1.0, None], "received null in row 3"),
    "too few": ("relevance", [1.0], "received 1 weights on 2 entries in row 3"),
    "null list": ("relevance", None, "received 0 weights on 2 entries in row 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_weight_is_refused_with_its_place(tmp_path: Path, rows: pa.Table, case: str) -> None:
    name, value, message = BAD[case]
    rows = with_column(rows, "tags", pa.array([[1, 2]] * ROWS))
    good = [1.0] * ROWS if name == "weight" else [[1.0, 2.0]] * ROWS
    values = pa.array([*good[:43], value, *good[44:]])
    rows = with_column(with_column(rows, "relevance", pa.array([[1.0, 2.0]] * ROWS)), name, values)
    config, source = source_of(tmp_path, rows, WEIGHTED)
    with pytest.raises(
        ValueError, match=f"a.parquet, row group 1: column '{name}' .*{message}.*; "
    ):
        observers = [WeightSum(config.schema_)]
        fit_encoders(source, config.schema_, config.data.cold_start, observers=observers)


@pytest.mark.parametrize("kind", [pa.null(), pa.float64()])
def test_rows_without_any_weight_are_refused(
    tmp_path: Path, rows: pa.Table, kind: pa.DataType
) -> None:
    nothing = pa.nulls(ROWS) if pa.types.is_null(kind) else pa.array([0.0] * ROWS)
    config, source = source_of(tmp_path, with_column(rows, "weight", nothing), WEIGHTED)
    weights = WeightSum(config.schema_)
    with pytest.raises(ValueError, match=r"received null in row 0|all its weights are 0"):
        fit_encoders(source, config.schema_, config.data.cold_start, observers=[weights])
        weights.check("train")


COLUMNS = {name: dict(column) for name, column in WEIGHTED["columns"].items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"other": {"group": "weight"}}, "at most one column may have group 'weight'"),
        ({"weight": {"group": "weight", "kind": "numeric"}}, "takes no setting but 'column'"),
        ({"relevance": {"group": "context", "kind": "weights"}}, "of kind 'weights' and group"),
        ({"tags": {"group": "item", "kind": "list"}}, "one list should name it in 'weights'"),
        ({"hour": {"group": "context", "weights": "age"}}, "weights are for lists of groups"),
        ({"position": {"group": "position", "kind": "list"}}, "should be of kind 'categorical'"),
        ({"hour": {"group": "context", "position_value": 1}}, "is for group 'position'"),
    ],
)
def test_a_schema_that_misuses_weights_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schema.model_validate(WEIGHTED | {"columns": COLUMNS | changes})


def test_weights_and_downsampling_are_not_both_corrected(tmp_path: Path) -> None:
    data = {"root": "", "negatives_kept": 0.1}
    with pytest.raises(ValueError, match=r"1 / negatives_kept .*; give one of the two"):
        Config.model_validate(config_tree(tmp_path, schema=WEIGHTED, data=data))


def test_schemas_without_weights_are_stored_as_before() -> None:
    stored = Schema.model_validate(SCHEMA).model_dump(mode="json")["columns"]
    assert not any({"weights", "position_value"} & column.keys() for column in stored.values())
