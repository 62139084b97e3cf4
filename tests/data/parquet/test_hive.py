"""Columns in the names of folders."""

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from mail_torchrec.data.parquet.files import parquet_files


def write(path: Path, **columns: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    ("names", "kind", "values"),
    [
        (["3", "07", "-1"], pa.int64(), [3, 7, -1]),
        ([str(2**63 - 1), str(-(2**63))], pa.int64(), [2**63 - 1, -(2**63)]),
        (["1", str(2**63)], pa.large_string(), ["1", str(2**63)]),
        (["3", "__HIVE_DEFAULT_PARTITION__"], pa.int64(), [3, None]),
        (["__HIVE_DEFAULT_PARTITION__"], pa.null(), [None]),
        (["3", "b"], pa.large_string(), ["3", "b"]),
        (["3", "+4", "1_0", "٣"], pa.large_string(), ["3", "+4", "1_0", "٣"]),
        (["a%2Fb%3D%25", "é"], pa.large_string(), ["a/b=%", "é"]),
        (["2024-01-02", "x=y", ""], pa.large_string(), ["2024-01-02", "x=y", ""]),
    ],
)
def test_one_type_fits_the_values_of_all_files(
    names: list[str], kind: pa.DataType, values: list[object], tmp_path: Path
) -> None:
    for name in names:
        write(tmp_path / f"the%20key={name}" / "a.parquet", x=[1, 2])
    files = parquet_files(str(tmp_path), "")
    assert {file.schema.field("the key").type for file in files} == {kind}
    found = {file.read(["the key", "x"]).to_pylist()[1]["the key"] for file in files}
    assert found == set(values)
    assert all(
        batch.column_names == ["x", "the key"] and batch["the key"].type == kind
        for file in files
        for batch in file.batches(["x", "the key"], 1)
    )


def test_what_arrow_writes_in_folders_is_read_back(tmp_path: Path) -> None:
    table = pa.table({"hour": [1, 1, 2], "city": ["a b", "c/d", "é%"], "x": [1, 2, 3]})
    partitions = pads.partitioning(table.schema.remove(2), flavor="hive")
    pads.write_dataset(table, tmp_path, format="parquet", partitioning=partitions)
    rows = [
        row
        for file in parquet_files(str(tmp_path), "")
        for row in file.read(["hour", "city", "x"]).to_pylist()
    ]
    assert sorted(rows, key=lambda row: row["x"]) == table.to_pylist()


def test_a_column_of_the_file_counts_over_the_folders(tmp_path: Path) -> None:
    write(tmp_path / "hour=3" / "a.parquet", hour=[8, 9])
    (file,) = parquet_files(str(tmp_path), "")
    assert file.read(["hour"])["hour"].to_pylist() == [8, 9]
    assert file.schema.names == ["hour"]


def test_partitions_that_begin_with_an_underscore_are_data(tmp_path: Path) -> None:
    write(tmp_path / "_c0=1" / "a.parquet", x=[1])
    for hidden in ("_tmp/a.parquet", ".x/a.parquet", "_metadata", ".a.parquet", "day/_x.parquet"):
        write(tmp_path / hidden, x=[1])
    assert [file.path for file in parquet_files(str(tmp_path), "")] == [
        f"{tmp_path}/_c0=1/a.parquet"
    ]


@pytest.mark.parametrize("named", ["train/hour%3A=3", "train/hour%3A=3/a.parquet"])
def test_a_column_above_the_named_path_is_missing_with_the_remedy(
    named: str, tmp_path: Path
) -> None:
    write(tmp_path / "train" / "hour%3A=3" / "a.parquet", x=[1])
    (file,) = parquet_files(f"{tmp_path}/{named}", "")
    with pytest.raises(
        ValueError,
        match=rf"hour%3A=3/a\.parquet: column 'hour:' is missing \(the file has x\); it stands in "
        rf"the name of the folder 'hour%3A=3', .* name '{tmp_path}/train'$",
    ):
        file.check_columns(["hour:"])


def test_a_column_twice_in_one_path_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "hour=3" / "hour=4" / "a.parquet", x=[1])
    with pytest.raises(ValueError, match="column 'hour' stands twice in the names of its folders"):
        parquet_files(str(tmp_path), "")


def test_a_name_that_is_no_utf_8_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "city=%ff" / "a.parquet", x=[1])
    with pytest.raises(ValueError, match="'city=%ff' should be UTF-8, percent-encoded"):
        parquet_files(str(tmp_path), "")
