"""Finished runs are exported: sharded ones, in every table type, scored without torch."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torch.distributed.checkpoint import load

from mail_torchrec.cli import main
from mail_torchrec.config import Config
from mail_torchrec.export.aoti import AotiModel
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.export.exported_program import export_program
from mail_torchrec.export.finished_run import FinishedRun
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.predict.predict import predict
from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.hostile import recorded_anew
from tests.support.processes import free_port
from tests.support.ranks import run_processes
from tests.support.small_rows import config_tree, write_rows
from tests.support.towers_of_users import MeanTower
from tests.support.uncompiled_package import without_compiling
from tests.support.untrained_model import UntrainedModel, requests_of

MODEL = config_tree(Path())["model"]
PLANS = {
    "item": {"sharding_types": ["row_wise"]},
    "item_output": {"sharding_types": ["column_wise"]},
    "city": {"sharding_types": ["row_wise"]},
    "hour": {"sharding_types": ["table_wise"]},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train" / "a.parquet", 250, seed=1)
    write_rows(folder / "test" / "c.parquet", 120, seed=3)
    return folder


def train_rank(rank: int, port: int, root: Path, run_dir: Path, sections: dict[str, Any]) -> None:
    """One of two ranks, as torchrun would start it."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    train(Config.model_validate(config_tree(root, **sections)), RunDir(run_dir))


@pytest.fixture(scope="module")
def on_two_ranks(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of DMR with both towers and all tasks, its tables sharded in every way."""
    folder = tmp_path_factory.mktemp("two")
    sections = {
        "data": {"root": str(root), "cold_start": {"hide_share": 0.2}},
        "model": MODEL | {"multi_task": {}},
        "schema": config_tree(root)["schema"] | {"dim": 12},
        "sharding": {"constraints": PLANS, "min_partition": 4},
        "train": {
            "epochs": 3,
            "save_predictions": True,
            "tables": {"name": "adagrad", "learning_rate": 0.2},
        },
    }
    run_processes(2, folder, train_rank, free_port(), root, folder / "run", sections)
    return folder / "run"


@pytest.fixture(scope="module")
def exported(on_two_ranks: Path) -> Path:
    export(ExportOptions(RunDir(on_two_ranks), on_two_ranks.parent / "model"))
    return on_two_ranks.parent / "model"


@pytest.mark.distributed
def test_every_table_comes_whole_from_two_ranks(on_two_ranks: Path, exported: Path) -> None:
    run, manifest = FinishedRun.open(RunDir(on_two_ranks)), ArtifactManifest.read(exported)
    kinds = {
        name: entry["sharding_type"]
        for name, entry in json.loads((on_two_ranks / "plan.json").read_text())["tables"].items()
    }
    assert {kinds[name] for name in PLANS} == {"row_wise", "column_wise", "table_wise"}
    from torch.distributed.checkpoint import FileSystemReader

    folder = RunDir(on_two_ranks).checkpoints.published()[-1]
    for name, info in manifest.tables.items():
        [key] = [
            key
            for key in FileSystemReader(folder).read_metadata().state_dict_metadata
            if f".{name}.weight" in key and "model." in key
        ]
        state = {key: torch.empty(run.stored.size(key))}
        load(state, checkpoint_id=folder, no_dist=True)
        found = np.fromfile(exported / info.files["weight"], np.float32).reshape(
            info.rows, info.dim
        )
        assert np.array_equal(found, state[key][: info.rows, : info.dim].numpy())


@pytest.mark.distributed
def test_the_artefact_scores_the_test_rows_as_the_two_ranks_did(
    root: Path, on_two_ranks: Path, exported: Path
) -> None:
    scorer = Scorer(exported)
    assert scorer.scores == ["pctr", "pcvr", "pctcvr"]
    requests = requests_of(root / "test" / "c.parquet", scorer.manifest.schema_, range(120))
    rows = Predictions.load(on_two_ranks / "predictions")
    labels = pq.read_table(root / "test" / "c.parquet")["clicked"].to_numpy()
    assert np.array_equal(rows.labels_R, labels)
    natively_new = np.array([not request.user["history"] for request in requests])
    seen = (
        ~rows.is_new_R | natively_new
    )  # of the hidden ones the trainer did not see what the file has
    found = scorer.run(scorer.encode(requests))
    expected = 1 / (1 + np.exp(-rows.scores_R.astype(np.float64)))
    assert 0 < (~seen).sum() < 60 and expected.std() > 0.02
    assert np.abs(found["pctr"] - expected)[seen].max() < 1e-5
    assert np.allclose(found["pctcvr"], found["pctr"] * found["pcvr"], atol=1e-6)


@pytest.mark.distributed
def test_predictions_are_what_a_server_of_the_artefact_answers(
    root: Path, on_two_ranks: Path, exported: Path, tmp_path: Path
) -> None:
    """For hidden users too: predictions hide nobody."""
    scorer = Scorer(exported)
    requests = requests_of(root / "test" / "c.parquet", scorer.manifest.schema_, range(120))
    found = scorer.run(scorer.encode(requests))
    predict(RunDir(on_two_ranks), str(root / "test"), tmp_path / "scores", [])
    rows = pq.read_table(tmp_path / "scores")
    assert rows.column_names == ["filename", "file_row_number", *scorer.scores]
    for name in scorer.scores:
        assert np.abs(rows[name].to_numpy() - found[name]).max() < 1e-5


@pytest.mark.distributed
def test_a_process_without_torch_gives_the_golden_scores(exported: Path) -> None:
    code = f"""
import sys
from pathlib import Path
for name in ("torch", "torchrec", "fbgemm_gpu", "onnx", "onnxscript"):
    sys.modules[name] = None
from mail_torchrec.inference.scorer import Scorer
scorer = Scorer(Path({str(exported)!r}))
print(scorer.max_difference())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


@pytest.mark.distributed
def test_golden_requests_cover_what_goes_wrong(exported: Path) -> None:
    golden = read_golden(exported)
    encode = Scorer(exported, verify=False).encode
    users = [request.user for request, _ in golden]
    assert any(not user["history"] for user in users) and any(
        len(user["history"] or []) > 6 for user in users
    )
    assert any(user["city"] is None and user["income"] is None for user in users)
    unknown = encode([golden[-1][0]])
    assert (
        unknown["city"] == 0
        and (unknown["history"] == 0).all()
        and unknown["history.length"] == 6
        and unknown["item"][-1] == 0
    )
    assert {len(request.candidates) for request, _ in golden} >= {1, 2, 17}
    assert all(len(scores["pctr"]) == len(request.candidates) for request, scores in golden)
    assert np.ptp([score for _, scores in golden for score in scores["pctr"]]) > 0.1


@pytest.mark.distributed
def test_only_requested_outputs_come_back_and_specs_describe_the_vectors(exported: Path) -> None:
    scorer = Scorer(exported, threads=1)
    [request, *_] = [request for request, _ in read_golden(exported) if not request.user["history"]]
    outputs = {output.name: output for output in scorer.manifest.outputs}
    assert set(outputs) == {
        "pctr",
        "pcvr",
        "pctcvr",
        "history.virtual",
        "history.user",
        "history.item",
    }
    found = scorer.run(
        scorer.encode([request]), ["history.virtual", "history.user", "history.item"]
    )
    assert (
        found["history.virtual"].shape == (1, 6, 12) and np.abs(found["history.virtual"]).max() > 0
    )
    assert found["history.user"].shape == (1, 12) and found["history.item"].shape == (
        len(request.candidates),
        12,
    )
    assert (outputs["history.item"].axis, outputs["history.item"].size) == ("candidates", (12,))


@pytest.mark.distributed
def test_the_manifest_lists_inputs_limits_and_metrics(on_two_ranks: Path, exported: Path) -> None:
    manifest = ArtifactManifest.read(exported)
    assert manifest.metrics == json.loads((on_two_ranks / "metrics.json").read_text())
    inputs = {spec.name: spec for spec in manifest.inputs}
    assert list(inputs) == [
        "age",
        "city",
        "income",
        "history",
        "history.length",
        "actions",
        "hour",
        "item",
        "tags",
        "tags.length",
        "candidate.user",
    ]
    assert inputs["history"].shape == ("users", 6) and inputs["history.length"].high == 6
    assert (
        inputs["tags"].shape == ("candidates", "tags.width") and inputs["income"].dtype == "float32"
    )
    assert inputs["item"].high == manifest.tables["item"].rows - 1
    assert manifest.new_user_max_behaviours == 0 and manifest.new_user_input is None
    assert manifest.value_types["city"] == "string"


@pytest.mark.distributed
def test_a_damaged_artefact_is_refused(exported: Path) -> None:
    file = exported / "tables" / "city.float32"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(
            ValueError, match=r"tables/city.float32' is not the file that was exported"
        ):
            Scorer(exported)
        file.unlink()
        with pytest.raises(ValueError, match=r"should hold 'tables/city.float32': it is missing"):
            Scorer(exported)
    finally:
        file.write_bytes(whole)
    with pytest.raises(ValueError, match="should be what `mail-torchrec export` wrote"):
        Scorer(exported.parent)


@pytest.fixture(scope="module")
def small(root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of a linear tower with first-order weights in its tables."""
    folder = tmp_path_factory.mktemp("small")
    model = {"tower": "deepfm", "tower_options": {"hidden_dims": [8]}, "zero_shot": None}
    tables = {"name": "adagrad", "learning_rate": 0.3}
    train(
        Config.model_validate(config_tree(root, model=MODEL | model, train={"tables": tables})),
        RunDir(folder / "run"),
    )
    return RunDir(folder / "run")


@pytest.mark.parametrize("table_type", [pytest.param("float16", marks=pytest.mark.long), "int8"])
def test_smaller_tables_stay_within_their_bounds(
    small: RunDir, tmp_path: Path, table_type: str
) -> None:
    done = CliRunner().invoke(
        main,
        [
            "export",
            "--run-dir",
            str(small.path),
            "--out",
            str(tmp_path / "out"),
            "--tables",
            table_type,
        ],
    )
    assert done.exit_code == 0, done.output
    manifest = ArtifactManifest.read(tmp_path / "out")
    agreement = manifest.parity["onnx"]
    assert (
        1e-6
        < agreement.max_difference
        < agreement.tolerance
        == {"float16": 1e-3, "int8": 2e-2}[table_type]
    )
    assert f"version {manifest.version}" in done.output
    item = manifest.tables["item"]
    assert set(item.files) == (
        {"weight"} if table_type == "float16" else {"weight", "scale", "offset", "first_order"}
    )
    per_row = {"float16": 2 * 9, "int8": 8 + 3 * 4}[table_type]
    assert (
        sum((tmp_path / "out" / name).stat().st_size for name in item.files.values())
        == item.rows * per_row
    )
    assert Scorer(tmp_path / "out").max_difference() == pytest.approx(agreement.max_difference)


def test_a_compiled_package_scores_alike(
    small: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_compiling(monkeypatch)
    manifest = export(ExportOptions(small, tmp_path / "out", aoti=True))
    assert manifest.parity["aoti"].max_difference < 1e-5
    assert (tmp_path / "out" / "model.pt2").stat().st_size < 8 * 2**20
    compiled, scorer = AotiModel(tmp_path / "out", manifest), Scorer(tmp_path / "out")
    for request, scores in read_golden(tmp_path / "out")[:3]:
        assert np.abs(compiled.run(scorer.encode([request]))["pctr"] - scores["pctr"]).max() < 1e-5


def test_without_a_compiler_there_is_no_package(
    small: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "--aoti compiles C++, and there is no 'no-such-compiler'" in refused(
        small.path, tmp_path / "out", "--aoti"
    )


def test_scores_that_differ_are_refused_and_leave_nothing(
    small: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scorer, "max_difference", lambda _: 0.5)
    with pytest.raises(
        ValueError,
        match=r"differ by 0.5 from the trainer's, and with float32 tables by at most 1e-05; noth",
    ):
        export(ExportOptions(small, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


class Branching(MeanTower):
    """Tower that branches on a value."""

    def forward(self, inputs: Any) -> Any:
        return super().forward(inputs) * (2 if inputs.numeric_BN.sum() > 0 else 1)


def refused(run_dir: Path, out: Path, *options: str) -> str:
    done = CliRunner().invoke(
        main, ["export", "--run-dir", str(run_dir), "--out", str(out), *options]
    )
    assert done.exit_code != 0 and "Traceback" not in done.output
    return done.output


def copy_of(small: RunDir, folder: Path) -> Path:
    shutil.copytree(small.path, folder / "run")
    return folder / "run"


def test_bad_input_is_reported(small: RunDir, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert "'there' exists already".replace("there", str(tmp_path / "there")) in refused(
        small.path, tmp_path / "there"
    )
    assert "'float64' is not one of 'float32', 'float16', 'int8'" in refused(
        small.path, tmp_path / "out", "--tables", "float64"
    )
    assert "should be the directory of a trained run" in refused(tmp_path, tmp_path / "out")
    message = refused(small.path, tmp_path / "out", "--data", str(tmp_path / "nowhere"))
    assert "golden requests are taken from --data: no data at" in message
    assert "give --data a Parquet file or folder" in message and "data.root" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_an_unfinished_run_is_refused(small: RunDir, tmp_path: Path) -> None:
    run = copy_of(small, tmp_path)
    (run / "metrics.json").unlink()
    assert (
        "should be a finished run, but 'metrics.json' is missing; let the training end first"
        in refused(run, tmp_path / "out")
    )


def test_a_damaged_checkpoint_is_refused(small: RunDir, tmp_path: Path) -> None:
    run = copy_of(small, tmp_path)
    [file] = RunDir(run).checkpoints.published()[-1].glob("__0_*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert re.search(
        r"step-\d+' is damaged, copy it anew or train --resume", refused(run, tmp_path / "out")
    )


def test_another_models_weights_are_refused(small: RunDir, tmp_path: Path) -> None:
    run = copy_of(small, tmp_path)
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("tower: deepfm", "tower: wide_deep")
    )
    assert "config.yaml should have the SHA-256" in refused(run, tmp_path / "out")
    recorded_anew(run)
    assert "is of another model than the configuration beside it" in refused(run, tmp_path / "out")


def test_a_rule_that_cut_lists_cannot_tell_is_refused(small: RunDir, tmp_path: Path) -> None:
    run = copy_of(small, tmp_path)
    (run / "config.yaml").write_text(
        re.sub(
            r"new_user_max_behaviours: 0",
            "new_user_max_behaviours: 6",
            (run / "config.yaml").read_text(),
        )
    )
    recorded_anew(run)
    assert "new_user_max_behaviours is 6, and a sequence is cut to 6" in refused(
        run, tmp_path / "out"
    )


def test_a_tower_that_cannot_be_traced_is_refused(root: Path, tmp_path: Path) -> None:
    whole = UntrainedModel(
        root,
        tmp_path,
        model=MODEL
        | {"tower": "tests.export.test_export:Branching", "tower_options": {}, "zero_shot": None},
    )
    with pytest.raises(
        ValueError,
        match=r"model.tower 'mine' cannot be traced into one graph \(.*no branches on values",
    ):
        export_program(whole.inference_model, "mine")
