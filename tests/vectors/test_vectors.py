"""A trained DMR's vectors and index agree with trainer, artefact and brute force."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.data.ids.hashing import hash64
from mail_torchrec.export.compact_tables import CompactTables
from mail_torchrec.export.finished_run import FinishedRun
from mail_torchrec.export.parity import golden_batch, trainer_scores
from mail_torchrec.inference.artifact_files import MANIFEST
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.vectors import command, index, recall
from mail_torchrec.vectors.embedder import Embedder
from tests.support.untrained_model import requests_of


@pytest.fixture(scope="module")
def root(exported: Path) -> Path:
    """The folder of the run `run` and its rows."""
    return exported.parent


@pytest.fixture(scope="module")
def model(exported: Path) -> Path:
    """The exported model of that run."""
    return exported / "first"


def changed(model: Path, folder: Path, change: Any) -> Path:
    shutil.copytree(model, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    ArtifactManifest.model_validate_json(json.dumps(manifest)).write(folder)
    return folder


def written(model: Path, out: Path, *options: str) -> str:
    done = CliRunner().invoke(
        main, ["vectors", "--model", str(model), "--out", str(out), "--threads", "1", *options]
    )
    assert done.exit_code == 0, done.output
    return done.output


def refused(model: Path, out: Path, *options: str) -> str:
    done = CliRunner().invoke(main, ["vectors", "--model", str(model), "--out", str(out), *options])
    assert done.exit_code == 1 and "Traceback" not in done.output and "Error: " in done.output, (
        done.output
    )
    assert not out.exists() and not list(out.parent.glob(f".{out.name}*"))
    return " ".join(done.output.split())


def matrix(file: Path) -> np.ndarray[Any, Any]:
    return np.array(pq.read_table(file)["vector"].to_pylist(), np.float32)


@pytest.fixture(scope="module")
def files(root: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors") / "files"
    written(
        model,
        folder,
        "--users",
        str(root / "test"),
        "--index",
        "IVF8,Flat",
        "--recall-at",
        "3,10",
    )
    return folder


def test_items_are_all_raw_ids_of_training_and_users_the_rows_of_the_file(
    root: Path, model: Path, files: Path
) -> None:
    rows = pq.read_table(root / "train" / "a.parquet").to_pylist()
    # Of a history only the newest 6 are kept.
    known = {row["item"] for row in rows} | {item for row in rows for item in row["history"][-6:]}
    items, users = (pq.read_table(files / name) for name in ("items.parquet", "users.parquet"))
    assert sorted(items["id"].to_pylist()) == sorted(known)
    assert users["id"].to_pylist() == pq.read_table(root / "test" / "c.parquet")["user"].to_pylist()
    for table in (items, users):
        assert table.column_names == ["id", "vector", "version"]
        assert table.schema.field("vector").type.equals(
            pa.list_(pa.field("element", pa.float32()), 8)
        )
        assert set(table["version"].to_pylist()) == {ArtifactManifest.read(model).version}


def test_products_are_the_artefacts_relevance_of_whole_requests(
    root: Path, model: Path, files: Path
) -> None:
    """Whole requests have context, tags and other candidates; new users are among them."""
    scorer = Scorer(model)
    requests = requests_of(root / "test" / "c.parquet", scorer.manifest.schema_, range(120))
    found = scorer.run(scorer.encode(requests), ["history.user", "history.item", "history.virtual"])
    row_of = {
        item: row
        for row, item in enumerate(pq.read_table(files / "items.parquet")["id"].to_pylist())
    }
    rows = [row_of[request.candidates[0]["item"]] for request in requests]
    products = (matrix(files / "users.parquet") * matrix(files / "items.parquet")[rows]).sum(1)
    assert (
        np.allclose(products, (found["history.user"] * found["history.item"]).sum(1), atol=1e-5)
        and products.std() > 0.01
    )
    new = np.array([not request.user["history"] for request in requests])
    assert 0 < new.sum() < 120 and (np.abs(found["history.virtual"][new]).max((1, 2)) > 0).all()
    assert (
        len(np.unique(matrix(files / "users.parquet")[new].round(5), axis=0)) > 3
    )  # by their attributes


def test_vectors_are_the_trainers(root: Path, model: Path, tmp_path: Path) -> None:
    """Users' against what the trainer's network gives out, items' against the stored table V'."""
    run, manifest = FinishedRun.open(RunDir(root / "run")), ArtifactManifest.read(model)
    requests = [request for request, _ in read_golden(model)]
    batch = golden_batch(
        requests, manifest.value_types, run.config, run.encoders, run.feature_tables, tmp_path
    )
    compact = CompactTables(run.config.schema_, run.feature_tables, run.encoders.num_rows, batch)
    run.write_tables(tmp_path / "tables", "float32", compact.copy_shard)
    seen: list[torch.Tensor] = []
    run.towers.ranking.user_to_item[0].register_forward_hook(
        lambda *arguments: seen.append(arguments[2][0])
    )
    trainer_scores(compact, run.towers)
    first_rows = np.cumsum([0, *(len(request.candidates) for request in requests)])[:-1]
    users = pa.Table.from_pylist([dict(request.user) for request in requests])
    embedder = Embedder(model)
    assert np.allclose(
        embedder.users(users, "golden"), torch.cat(seen).numpy()[first_rows], atol=1e-5
    )
    ids, rows_N = embedder.vocabulary()
    table = np.fromfile(model / "tables" / "item_output.float32", np.float32).reshape(-1, 8)
    values = pq.read_table(model / "vocabularies" / "item.parquet")["value"]
    assert ids.to_pylist() == values.to_pylist() and np.array_equal(
        embedder.items(rows_N), table[2:]
    )


def test_recall_is_that_of_brute_force_with_the_library_alone(files: Path) -> None:
    """Eight cells of 40 items, one looked into: far from exact."""
    report = json.loads((files / "vectors.json").read_text())["recall"]
    users, items = matrix(files / "users.parquet"), matrix(files / "items.parquet")
    _, found = faiss.read_index(str(files / "items.faiss")).search(users, 10)
    exact = np.argsort(-(users.astype(np.float64) @ items.T.astype(np.float64)), axis=1)
    for k in (3, 10):
        hits = [len(set(exact[user, :k]) & set(found[user, :k])) / k for user in range(len(users))]
        assert (
            report["recall"][str(k)] == pytest.approx(np.mean(hits)) and 0.1 < np.mean(hits) < 0.95
        )
    assert report["users"] == 120


def test_a_small_catalogue_is_searched_exactly_and_the_number_of_items_chooses(
    root: Path, model: Path, tmp_path: Path
) -> None:
    text = written(model, tmp_path / "out", "--users", str(root / "test"))
    assert (
        "index Flat: " in text
        and "100.0% of the 10 best, 100.0% of the 40 best, mean of 120 users" in text
    )
    chosen = {count: index.IndexSettings().resolve(count) for count in (1_999, 7_238, 10_000_000)}
    assert [(of.factory, of.parameters) for of in chosen.values()] == [
        ("Flat", ""),
        ("IVF128,Flat", "nprobe=16"),
        ("IVF8192,Flat", "nprobe=128"),
    ]


def test_pieces_make_no_difference(
    root: Path, model: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for where, name in (
        (command, "_ITEM_BATCH"),
        (command, "_USER_BATCH"),
        (index, "BATCH_SIZE"),
        (recall, "BATCH_SIZE"),
    ):
        monkeypatch.setattr(where, name, 7)
    options = ("--users", str(root / "test"), "--index", "IVF8,Flat", "--recall-at", "3,10")
    written(model, tmp_path / "out", *options)
    for name in ("items.parquet", "users.parquet"):
        assert np.allclose(matrix(tmp_path / "out" / name), matrix(files / name), atol=1e-6)
    recalls = [
        json.loads((folder / "vectors.json").read_text())["recall"]["recall"]
        for folder in (files, tmp_path / "out")
    ]
    assert recalls[0] == recalls[1]
    users_UD = matrix(files / "users.parquet")
    expected = np.argsort(-(users_UD @ matrix(files / "items.parquet").T), axis=1)[:, :5]
    assert np.array_equal(
        recall.exact_search(users_UD, tmp_path / "out" / "items.parquet", 5), expected
    )


def test_chosen_items_and_no_index(root: Path, model: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"item": [3, 1, 999, 3, None, 2]}), tmp_path / "items.parquet")
    text = written(
        model, tmp_path / "out", "--items", str(tmp_path / "items.parquet"), "--index", "none"
    )
    assert "items: 3 vectors" in text and "1 that the model does not know are left out" in text
    assert sorted(pq.read_table(tmp_path / "out" / "items.parquet")["id"].to_pylist()) == [1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "items.parquet",
        "vectors.json",
    ]


@pytest.mark.parametrize(
    ("option", "column", "values"),
    [
        ("--items", "item", pa.array(["3"])),
        ("--items", "item", pa.array([3.0])),
        ("--users", "user", pa.array(["3"])),
        ("--users", "age", pa.array(["3"]).cast(pa.string_view())),
    ],
    ids=str,
)
def test_ids_of_another_type_than_in_training_are_refused(
    option: str, column: str, values: pa.Array, root: Path, model: Path, tmp_path: Path
) -> None:
    table = pq.read_table(root / "test").slice(0, 1)
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, column, values), tmp_path / "a.parquet")
    message = refused(model, tmp_path / "out", option, str(tmp_path / "a.parquet"))
    assert f"a.parquet: column '{column}' should" in message
    assert "integer values" in message and f"found {values.type}" in message


def test_hashed_items_come_from_a_file(root: Path, model: Path, tmp_path: Path) -> None:
    """Of the same tables, looked up by a hash."""

    def by_hash(manifest: dict[str, Any]) -> None:
        manifest["schema"]["tables"]["item"] |= {"ids": "hash", "rows": 42}

    hashed = changed(model, tmp_path / "hashed", by_hash)
    assert "are hashed, so the model does not know them: name a file of them by --items" in refused(
        hashed, tmp_path / "out"
    )
    written(hashed, tmp_path / "out", "--items", str(root / "test"))
    items = pq.read_table(tmp_path / "out" / "items.parquet")["id"]
    assert sorted(items.to_pylist()) == sorted(
        set(pq.read_table(root / "test" / "c.parquet")["item"].to_pylist())
    )
    table = np.fromfile(model / "tables" / "item_output.float32", np.float32).reshape(-1, 8)
    rows = 2 + (hash64(items, "item") % np.uint64(40)).astype(np.int64)
    assert np.array_equal(matrix(tmp_path / "out" / "items.parquet"), table[rows])


def test_users_need_no_context_and_may_come_in_other_arrow_types(
    root: Path, model: Path, files: Path, tmp_path: Path
) -> None:
    table = pq.read_table(root / "test" / "c.parquet").select(
        ["user", "age", "city", "income", "history", "actions"]
    )
    table = table.set_column(4, "history", table["history"].cast(pa.large_list(pa.int32())))
    table = table.set_column(2, "city", table["city"].dictionary_encode())
    pq.write_table(table, tmp_path / "users.parquet")
    written(model, tmp_path / "out", "--users", str(tmp_path / "users.parquet"), "--index", "none")
    assert np.allclose(
        matrix(tmp_path / "out" / "users.parquet"), matrix(files / "users.parquet"), atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": None}, "column 'history' is missing"),
        ({"user": None}, "column 'user', whose row it is, is missing"),
        (
            {"city": [1, 2]},
            "column 'city' should be string values, found int64, as in training",
        ),
        ({"age": [0.5, 1.0]}, "column 'age' should be integer values"),
        (
            {"actions": [[1], [1, 2]]},
            "user 0: column 'actions' should be as long as 'history' in every row",
        ),
    ],
)
def test_bad_users_are_reported(
    root: Path, model: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    table = pq.read_table(root / "test" / "c.parquet")
    columns = (
        table.filter(pa.array(np.asarray(table["user"]) % 3 != 0)).slice(0, 2).to_pydict() | change
    )
    pq.write_table(
        pa.table({name: values for name, values in columns.items() if values is not None}),
        tmp_path / "users.parquet",
    )
    assert message in refused(
        model, tmp_path / "out", "--users", str(tmp_path / "users.parquet"), "--index", "none"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sequence", "actions"], "--sequence should be one of history, received 'actions'"),
        (["--index", "IVF4096"], "FAISS cannot make index 'IVF4096'"),
        (["--index", "Nonsense"], "FAISS cannot make index 'Nonsense'"),
        (
            ["--index", "HNSW8", "--parameters", "depth=3"],
            "FAISS cannot make index 'HNSW8' (depth=3)",
        ),
        (
            ["--recall-at", "ten"],
            "--recall-at should be numbers from 1 on, such as 10,100, received 'ten'",
        ),
        (
            ["--users", "nowhere"],
            "no data at 'nowhere': give --users a Parquet file or folder of users",
        ),
        (
            ["--items", "nowhere"],
            "no data at 'nowhere': give --items a Parquet file or folder of items",
        ),
    ],
)
def test_bad_arguments_are_reported(
    model: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in refused(model, tmp_path / "out", *options)


def test_models_without_such_vectors_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(manifest: dict[str, Any]) -> None:
        manifest["outputs"], manifest["tower"] = manifest["outputs"][:1], "din"

    def by_candidate(manifest: dict[str, Any]) -> None:
        [user] = [output for output in manifest["outputs"] if output["role"] == "user_vector"]
        user["axis"] = "candidates"

    assert "tower 'din' has no user and item vectors; 'dmr' has" in refused(
        changed(model, tmp_path / "a", without), tmp_path / "out"
    )
    assert "a new user's vector depends on the candidate" in refused(
        changed(model, tmp_path / "b", by_candidate), tmp_path / "out"
    )
    assert "should be what `mail-torchrec export` wrote" in refused(tmp_path, tmp_path / "out")
    run = Scorer.run
    monkeypatch.setattr(
        Scorer,
        "run",
        lambda *arguments: {name: 1.1 * values for name, values in run(*arguments).items()},
    )
    assert "its item vectors depend on more than the item's id" in refused(model, tmp_path / "out")


def test_without_the_library_there_are_vectors_and_no_index(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert (
        "pip install 'mail-torchrec[vectors]', or write vectors alone by --index none"
        in refused(model, tmp_path / "out")
    )
    written(model, tmp_path / "out", "--index", "none")
