"""Predictions that join: any rows without labels, on any number of ranks and reader processes."""

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.config import Config
from mail_torchrec.data.schema.columns import PREDICTION_COLUMNS
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.predict.predict import predict
from mail_torchrec.predictions import writer
from mail_torchrec.predictions.scored_batch import ScoredBatch
from mail_torchrec.predictions.writer import PredictionWriter
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.processes import without_launcher
from tests.support.small_rows import SCHEMA, config_tree, write_rows

NUM_ROWS = 90
UNREAD = ["clicked", "bought", "user"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train/a.parquet", 160, seed=1)
    write_rows(folder / "test/b.parquet", NUM_ROWS, seed=2)
    return folder


@pytest.fixture(scope="module")
def run_dir(root: Path) -> RunDir:
    columns = SCHEMA["columns"] | {"when": {"group": "passthrough", "column": "time"}}
    tree = config_tree(
        root,
        schema={"columns": columns},
        model={"multi_task": {"hidden_dims": [4]}},
        data={"cold_start": {"hide_share": 0.5}},
    )
    run = RunDir(root / "run")
    train(Config.model_validate(tree), run)
    return run


@pytest.fixture(scope="module")
def unlabelled(root: Path) -> Path:
    """The test rows in two files without labels and users, with columns to keep."""
    rows = pq.read_table(root / "test/b.parquet")
    rows = rows.append_column("time", [[datetime(2024, 5, 1, 0, i % 60) for i in range(NUM_ROWS)]])
    rows = rows.append_column("price", [[Decimal(i) / 4 for i in range(NUM_ROWS)]])
    names = pa.array([f"n{i % 7}" for i in range(NUM_ROWS)]).dictionary_encode()
    rows = rows.append_column("name", names).append_column("id", [list(range(NUM_ROWS))])
    folder = root / "unlabelled"
    folder.mkdir()
    for name, part in (("a", rows.slice(0, 37)), ("b", rows.slice(37))):
        pq.write_table(part.drop(UNREAD), folder / f"{name}.parquet", row_group_size=20)
    return folder


def read(folder: Path) -> pa.Table:
    """All rows, the files in the order of their names."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.iterdir())])


@pytest.fixture(scope="module")
def predicted(run_dir: RunDir, unlabelled: Path, root: Path) -> pa.Table:
    keep = ["price", "name", "id"]
    assert predict(run_dir, str(unlabelled), root / "scores", [], keep) == NUM_ROWS
    return read(root / "scores")


def test_each_row_has_its_file_its_number_and_the_columns_that_are_kept(
    predicted: pa.Table, unlabelled: Path
) -> None:
    files = sorted(unlabelled.iterdir())
    rows = pa.concat_tables([pq.read_table(path) for path in files])
    assert predicted.column_names == [
        *("filename", "file_row_number", "when", "price", "name", "id", "pctr", "pcvr", "pctcvr")
    ]
    assert predicted["filename"].to_pylist() == [str(files[0])] * 37 + [str(files[1])] * 53
    assert predicted["file_row_number"].to_pylist() == [*range(37), *range(53)]
    for name, column in {"when": "time", "price": "price", "name": "name", "id": "id"}.items():
        assert predicted[name].type == rows[column].type
        assert predicted[name].to_pylist() == rows[column].to_pylist()
    origin = json.loads(predicted.schema.metadata[b"mail_torchrec"])
    assert origin["run"] == "small" and origin["checkpoint"]


def test_probabilities_are_those_of_an_evaluation_that_hides_nobody(
    predicted: pa.Table, run_dir: RunDir, tmp_path: Path, root: Path
) -> None:
    for share, is_equal in ((0, True), (0.5, False)):
        overrides = [f"data.cold_start.hide_share={share}", "schema.columns.when=null"]
        overrides += ["sharding.replicas=2"]  # of a run on GPUs: one copy scores the rows
        metrics = evaluate_run(run_dir, None, overrides, tmp_path / str(share))
        rows = read(tmp_path / str(share))
        assert set(rows.column_names) <= PREDICTION_COLUMNS
        for name in ("pctr", "pcvr", "pctcvr"):
            found = np.allclose(rows[name].to_numpy(), predicted[name].to_numpy(), atol=1e-6)
            assert found is is_equal
        assert metrics["new"]["rows"] == rows["is_new"].to_numpy().sum()
    stored = pq.read_table(root / "test/b.parquet")
    assert rows["label"].to_pylist() == stored["clicked"].to_pylist()
    assert rows["user"].to_pylist() == stored["user"].to_pylist()
    both = stored["clicked"].to_numpy() & stored["bought"].to_numpy()
    assert rows["conversion"].to_pylist() == both.tolist()
    expected = 1 / (1 + np.exp(-rows["logit"].to_numpy().astype(float)))
    assert np.allclose(rows["pctr"].to_numpy(), expected, atol=1e-6)


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "workers"), [(3, 0), (2, 2)])
def test_any_number_of_ranks_and_reader_processes_writes_the_same_rows(
    predicted: pa.Table,
    run_dir: RunDir,
    unlabelled: Path,
    tmp_path: Path,
    ranks: int,
    workers: int,
) -> None:
    words = ["predict", "--run-dir", str(run_dir.path), "--data", str(unlabelled)]
    words += ["--out", str(tmp_path / "scores"), "--keep", "price,name", "--keep", "id"]
    words += [f"data.num_workers={workers}", "train.eval_batch_size=7"]
    first, *_ = without_launcher(ranks, *words)
    assert first.code == 0, first.output
    assert f"{NUM_ROWS} rows in {tmp_path / 'scores'}" in first.output
    found = read(tmp_path / "scores")
    assert len(list((tmp_path / "scores").iterdir())) == ranks * max(workers, 1)
    for name in found.column_names:
        if name.startswith("p") and name != "price":
            assert np.allclose(found[name].to_numpy(), predicted[name].to_numpy(), atol=1e-6)
        else:
            assert found[name].to_pylist() == predicted[name].to_pylist()


def test_a_folder_appears_whole_and_is_replaced_where_that_is_asked(
    run_dir: RunDir, unlabelled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    predict(run_dir, str(unlabelled), out, [])
    with pytest.raises(ValueError, match=r"exists already; .* or replace it with --overwrite"):
        predict(run_dir, str(unlabelled), out, [])
    before = read(out)
    failing = patch.object(PredictionWriter, "_table", side_effect=OSError(28, "No space left"))
    with failing, pytest.raises(OSError, match="No space left"):
        predict(run_dir, str(unlabelled), out, [], overwrite=True)
    assert read(out) == before and list(tmp_path.iterdir()) == [out]
    predict(run_dir, str(unlabelled / "a.parquet"), out, [], overwrite=True)
    assert len(read(out)) == 37 and list(tmp_path.iterdir()) == [out]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    with pytest.raises(ValueError, match=r"should hold predictions alone .* found notes.txt"):
        predict(run_dir, str(unlabelled), tmp_path / "other", [], overwrite=True)


def test_a_disk_that_fails_leaves_nothing_and_names_the_file(
    run_dir: RunDir, unlabelled: Path, tmp_path: Path
) -> None:
    failing = patch.object(writer.os, "fsync", side_effect=OSError(5, "Input/output error"))
    with failing, pytest.raises(OSError, match=r"part-0+\.parquet"):
        predict(run_dir, str(unlabelled), tmp_path / "scores", [])
    assert not list(tmp_path.iterdir())


def test_rows_are_written_as_they_are_scored(
    run_dir: RunDir, unlabelled: Path, tmp_path: Path
) -> None:
    """However many rows there are, one row group of them waits in memory."""
    waiting: list[int] = []
    write = PredictionWriter.write

    def watched(self: PredictionWriter, batch: ScoredBatch) -> None:
        write(self, batch)
        waiting.extend(sum(map(len, part._waiting)) for part in self._parts.values())

    with (
        patch.object(PredictionWriter, "write", watched),
        patch.object(writer, "_ROW_GROUP_ROWS", 16),
    ):
        predict(run_dir, str(unlabelled), tmp_path / "scores", ["train.eval_batch_size=5"])
    assert len(waiting) == 18 and max(waiting) < 16
    [path] = (tmp_path / "scores").iterdir()
    groups = pq.ParquetFile(path).metadata
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert max(sizes) <= 16 + 5 and sum(sizes) == NUM_ROWS


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["nothing"], r"column 'nothing' is missing .*or do not keep it"),
        (["pctr"], r"column 'pctr' of their own"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_rows_are_scored(
    run_dir: RunDir, unlabelled: Path, tmp_path: Path, keep: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predict(run_dir, str(unlabelled), tmp_path / "scores", [], keep)
    assert not list(tmp_path.iterdir())


def test_a_feature_that_is_missing_is_refused(
    run_dir: RunDir, unlabelled: Path, tmp_path: Path
) -> None:
    table: Any = pq.read_table(unlabelled / "a.parquet").drop(["age"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: column 'age' is missing"):
        predict(run_dir, str(tmp_path), tmp_path / "scores", [])
