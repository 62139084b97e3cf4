"""Columns and tables bear any name that the schema allows, from training to scores."""

import json
import os
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from torch import nn

from mail_torchrec.checkpoint.inspection import checkpoint_summary
from mail_torchrec.cli import main
from mail_torchrec.config import Config
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.inference.datatypes import DATATYPES
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.requests import Request, candidate_columns, user_columns
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from mail_torchrec.triton.repository import RepositoryOptions, write_repository
from tests.support.named_columns import draw_by_place, named_tree, table_names, write_named_rows
from tests.support.processes import free_port
from tests.support.ranks import run_processes
from tests.support.uncompiled_package import without_compiling
from tools.served import as_json, running

NUM_NAMES = 22
RESERVED = sorted(dir(nn.ModuleDict()))  # the keys that an nn.ModuleDict refuses
TEXT = (
    'class|for|1st|42|a b| lead|trail |a-b|a_b|日本|é|e\u0301|"q"|it\'s|$HOME|%s|@x|#c|a:b|a=b'
    "|Item|item"
).split("|")
MARKS = [*r"\ a\b \n * ? [x] {y} {0} <b> `t` ; a,b &amp; ~ - --help null true !tag +".split()]
MARKS += ["a|b", r"$\frac$"]
OWN = (  # names that this project uses itself
    "request candidate users candidates value count scales score pctr pctcvr pcvr label user "
    "weight rows tables embeddings embedding_bags towers model optimizer first_order"
).split()
IN_GRAPHS = (  # names that the ONNX exporter gives to inner values
    "val_1 val_2 val_3 embedding embedding_1 embedding_5 arange unsqueeze lt mul_15 sum_1 clamp "
    "div div_1 mul_59 stack_1 zeros_like val_25 input output sigmoid s0"
).split()
TRAINED = {
    **{
        f"reserved{start}": [*RESERVED, *TEXT][start : start + NUM_NAMES]
        for start in range(0, len(RESERVED), NUM_NAMES)
    },
    "text": TEXT,
    "marks": MARKS,
    "own": OWN,
    "graphs": IN_GRAPHS,
}
MORE_RESERVED = [kind for kind in TRAINED if kind.startswith("reserved")][1:]
EXPORTED = [  # one of each kind that once failed in an exported model, and their like
    *"val_1 embedding mul_15 clamp items type to pctr weight first_order a-b a_b 日本".split(),
    *('"q"', "it's", "\\"),
]
ORDINARY = [f"column_{place}" for place in range(NUM_NAMES)]
SECTIONS: dict[str, dict[str, Any]] = {
    "train": {"batch_size": 32, "eval_batch_size": 64, "tables": {"name": "adagrad"}}
    | {"save_predictions": True}
}


def trained(folder: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> RunDir:
    draw_by_place(monkeypatch, names)
    write_named_rows(folder, names)
    run_dir = RunDir(folder / "run")
    train(Config.model_validate(named_tree(folder, names, **SECTIONS)), run_dir)
    return run_dir


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of the same rows under ordinary names."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return trained(tmp_path_factory.mktemp("ordinary"), ORDINARY, monkeypatch)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(names, id=kind, marks=[pytest.mark.long] if kind in MORE_RESERVED else [])
        for kind, names in TRAINED.items()
    ],
)
def test_a_run_has_the_figures_of_ordinary_names(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordinary: RunDir
) -> None:
    assert len(set(names)) == NUM_NAMES
    run_dir = trained(tmp_path, names, monkeypatch)
    expected = Predictions.load(ordinary.predictions)
    found = Predictions.load(run_dir.predictions)
    assert np.array_equal(found.scores_R, expected.scores_R)
    assert figures(run_dir, names) == figures(ordinary, ORDINARY)
    shown = checkpoint_summary(run_dir.path)
    assert all(f"\n{table} " in shown for table in table_names(names))


def figures(run_dir: RunDir, names: list[str]) -> list[dict[str, Any]]:
    """The logged losses and counts, columns by their places."""
    place = {name: str(place) for place, name in enumerate(names)}

    def by_place(counts: dict[str, int]) -> dict[tuple[str, str], int]:
        parts = {key: key.split("/", 1) for key in counts}
        return {(kind, place[name]): counts[key] for key, (kind, name) in parts.items()}

    records = [json.loads(line) for line in run_dir.log.read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if key.startswith("loss/")}
        | {"counts": by_place(record.get("counts", {}))}
        for record in records
    ]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_dir = trained(folder, EXPORTED, monkeypatch)
        without_compiling(monkeypatch)
        export(ExportOptions(run_dir, folder / "model", aoti=True))  # checks scores of both kinds
    return folder / "model"


def test_an_exported_model_scores_rows_as_the_run_did(exported: Path) -> None:
    schema = Scorer(exported).manifest.schema_
    assert list(schema.columns) == EXPORTED
    rows = pq.read_table(exported.parent / "test" / "a.parquet").to_pylist()
    users, items = user_columns(schema), candidate_columns(schema)
    scorer = Scorer(exported)
    predicted = Predictions.load(RunDir(exported.parent / "run").predictions)
    for row, logit in list(zip(rows, predicted.scores_R, strict=True))[:20]:
        request = Request(
            {name: row[name] for name in users}, [{name: row[name] for name in items}]
        )
        assert np.allclose(scorer.score(request)["pctr"], 1 / (1 + np.exp(-logit)), atol=1e-5)


def test_servers_and_clients_take_the_names(exported: Path, tmp_path: Path) -> None:
    request, expected = read_golden(exported)[0]
    encoded = Scorer(exported).encode([request])
    tensors = [
        {
            "name": name,
            "datatype": DATATYPES[str(array.dtype)],
            "shape": list(array.shape),
            "data": array.ravel().tolist(),
        }
        for name, array in encoded.items()
    ]
    text = {"name": "request", "datatype": "BYTES", "shape": [1], "data": [as_json(request)]}
    with running(exported, tmp_path / "log", "--name", "ads", "--threads", "1") as server:
        for inputs in ([text], tensors):
            status, answer = server.ask("/v2/models/ads/infer", {"inputs": inputs})
            assert status == 200, answer
            found = {output["name"]: output["data"] for output in answer["outputs"]}
            assert np.allclose(found["pctr"], expected["pctr"], atol=1e-5)
        described = server.ask("/openapi.json")[1]["components"]["schemas"]
    user = described["ScoringRequest"]["properties"]["user"]["properties"]
    assert user.keys() | described["Candidate"]["properties"].keys() == {EXPORTED[0], *EXPORTED[3:]}


def test_triton_takes_the_names_unless_an_output_bears_one_in_its_graph(
    exported: Path, tmp_path: Path
) -> None:
    options = RepositoryOptions(exported, tmp_path, "python", "ads")
    assert (write_repository(options) / "model.py").exists()
    with pytest.raises(ValueError, match=r"\['pctr'\] are both; take --backend python"):
        write_repository(replace(options, backend="onnxruntime", name="graph"))


def rank(rank: int, port: int, root: Path, ranks: int, resume: bool) -> None:
    """One of some ranks; their number decides how tables are cut."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    names = RESERVED[-NUM_NAMES:]
    cut = {"sharding_types": ["row_wise" if ranks > 1 else "table_wise"]}
    sections = {
        "sharding": {"constraints": dict.fromkeys(table_names(names), cut)},
        "train": SECTIONS["train"] | {"epochs": 2 if resume else 1},
    }
    tree = named_tree(root, names, **sections)
    train(Config.model_validate(tree), RunDir(root / "run"), resume=resume)


@pytest.mark.distributed
def test_two_ranks_train_and_one_resumes_with_other_sharding(tmp_path: Path) -> None:
    write_named_rows(tmp_path, RESERVED[-NUM_NAMES:])
    run_processes(2, tmp_path, rank, free_port(), tmp_path, 2, False)
    placed = json.loads((tmp_path / "run" / "plan.json").read_text())["tables"]
    assert {entry["sharding_type"] for entry in placed.values()} == {"row_wise"}
    run_processes(1, tmp_path, rank, free_port(), tmp_path, 1, True)
    placed = json.loads((tmp_path / "run" / "plan.json").read_text())["tables"]
    assert {entry["sharding_type"] for entry in placed.values()} == {"table_wise"}
    assert set(placed) == set(table_names(RESERVED[-NUM_NAMES:]))


@pytest.mark.parametrize("names", [RESERVED[-NUM_NAMES:], MARKS], ids=["reserved", "marks"])
def test_the_planner_takes_the_names_and_its_report_shows_them(
    names: list[str], tmp_path: Path
) -> None:
    config, tables = tmp_path / "config.yaml", table_names(names)
    config.write_text(yaml.safe_dump(named_tree(tmp_path, names)))
    rows = [part for table in tables[:-1] for part in ("--rows", f"{table}=2_000")]
    cut = [f"sharding.constraints.{table}.sharding_types=[column_wise]" for table in tables[:3]]
    arguments = ["plan", "--config", str(config), "--hardware", "h100", "--ranks", "2", *rows]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "plan"), "--", *cut])
    assert done.exit_code == 0, done.output
    placed = json.loads((tmp_path / "plan" / "plan.json").read_text())["tables"]
    assert {placed[table]["sharding_type"] for table in tables[:3]} == {"column_wise"}
    assert set(placed) == set(tables)
    page = (tmp_path / "plan" / "report.html").read_text()
    assert all(f"<td>{escape(table)}</td>" in page for table in tables)
