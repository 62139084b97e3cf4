"""Whole runs on a small data set."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner

from mail_torchrec.checkpoint.storage import read_tensor_metadata, read_tensors
from mail_torchrec.cli import main
from mail_torchrec.config import Config, load_config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.metrics.cohorts import CohortMetrics, compute_metrics
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.predictions.row_keys import RowKeyStream
from mail_torchrec.predictions.writer import check_predictions_folder
from mail_torchrec.towers.inputs import RankingInputs
from mail_torchrec.train.assembly import assemble
from mail_torchrec.train.metrics_writer import MetricsWriter, NonFiniteLossError
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import SCHEMA, config_tree, write_rows
from tests.support.towers_of_users import MeanTower


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train" / "a.parquet", 160, seed=1)
    write_rows(folder / "train" / "b.parquet", 90, seed=2)
    write_rows(folder / "test" / "c.parquet", 120, seed=3)
    return folder


def run(root: Path, run_dir: Path, **sections: dict[str, Any]) -> dict[str, CohortMetrics]:
    return train(Config.model_validate(config_tree(root, **sections)), RunDir(run_dir))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    folder = RunDir(run_dir).checkpoints.published()[-1]
    state = {
        key: torch.empty(item.size, dtype=item.properties.dtype)
        for key, item in read_tensor_metadata(folder).items()
        if key.startswith("model.")
    }
    read_tensors(state, folder)
    return {key.removeprefix("model."): value for key, value in state.items()}


@pytest.mark.usefixtures("drawn_loss_curves")
def test_a_run_directory_holds_what_evaluate_needs(root: Path, tmp_path: Path) -> None:
    metrics = run(root, tmp_path / "run", train={"epochs": 2})
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == metrics
    assert metrics["all"]["rows"] == 120 == metrics["new"]["rows"] + metrics["old"]["rows"]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "step" in line]
    assert set(losses[0]) == {
        "step",
        "rows_per_second",
        "input_wait",
        "loss/L_rt",
        "loss/L_match",
        "loss/L_a",
        "loss/L_v",
        "loss/L_d",
        "lr/ranking",
        "lr/zero_shot",
        "lr/tables",
    }
    assert losses[-1]["step"] == 2 * 8  # 250 rows in batches of at most 32
    for name in ("loss_curves.png", "plan.json", "vocabularies/item.parquet"):
        assert (tmp_path / "run" / name).stat().st_size
    assert list((tmp_path / "run/tensorboard").iterdir())
    assert load_config(tmp_path / "run/config.yaml", []).name == "small"
    again = evaluate_run(RunDir(tmp_path / "run"), None, [])
    assert again == metrics
    elsewhere = evaluate_run(
        RunDir(tmp_path / "run"), str(root / "train"), ["train.eval_batch_size=7"]
    )
    assert elsewhere["all"]["rows"] == 250


def test_predictions_are_saved_where_asked_and_give_the_metrics(root: Path, tmp_path: Path) -> None:
    metrics = run(root, tmp_path / "run", train={"save_predictions": True})
    rows = Predictions.load(tmp_path / "run/predictions")
    assert compute_metrics(rows.scores_R, rows.labels_R, rows.users_R, rows.is_new_R) == metrics
    assert (
        rows.labels_R.tolist() == pq.read_table(root / "test" / "c.parquet")["clicked"].to_pylist()
    )
    assert len(rows.cohort(is_new=True).scores_R) == metrics["new"]["rows"]
    run(root, tmp_path / "other")
    with pytest.raises(
        ValueError,
        match=(
            r"predictions' should hold an evaluation's predictions .* "
            r"train.save_predictions=true, or .* evaluate --predictions"
        ),
    ):
        Predictions.load(tmp_path / "other/predictions")


@pytest.mark.parametrize("kind", [pa.int32(), pa.string()], ids=str)
def test_predictions_have_the_files_rows_and_users(
    root: Path, tmp_path: Path, kind: pa.DataType
) -> None:
    for folder, source, cuts in (
        ("train", "train/a", [160]),
        ("test", "test/c", [120]),
        ("parts", "test/c", [7, 50, 120]),
    ):
        table = pq.read_table(root / f"{source}.parquet")
        place = table.schema.get_field_index("user")
        table = table.set_column(place, "user", table["user"].cast(kind))
        (tmp_path / folder).mkdir()
        for start, stop in pairwise([0, *cuts]):
            part = table.slice(start, stop - start)
            pq.write_table(part, tmp_path / folder / f"{stop:03}.parquet", row_group_size=30)
    run(tmp_path, tmp_path / "run")
    written = []
    for folder, *overrides in (("test",), ("parts", "train.eval_batch_size=9")):
        path = tmp_path / f"{folder}-scores"
        evaluate_run(RunDir(tmp_path / "run"), str(tmp_path / folder), overrides, path)
        written.append(Predictions.load(path))
    for rows in written:
        assert rows.labels_R.tolist() == table["clicked"].to_pylist()
        assert rows.users_R.tolist() == table["user"].to_pylist()
        new = rows.cohort(is_new=True).scores_R
        assert new.tolist() == rows.scores_R[np.flatnonzero(rows.is_new_R)].tolist()
        assert np.allclose(rows.scores_R, written[0].scores_R, atol=1e-6)


def test_files_that_change_while_they_are_scored_give_no_predictions(
    root: Path, tmp_path: Path
) -> None:
    run(root, tmp_path / "run")
    take = RowKeyStream.take

    def others(stream: RowKeyStream, num_rows: int) -> pa.Table:
        keys = take(stream, num_rows)
        place = keys.column_names.index("user")
        return keys.set_column(place, "user", pa.array(range(num_rows)))

    with (
        patch.object(RowKeyStream, "take", others),
        pytest.raises(ValueError, match=r"test' was rewritten while its rows were scored"),
    ):
        evaluate_run(RunDir(tmp_path / "run"), None, [], tmp_path / "scores")
    assert not list(tmp_path.glob("*scores*"))


def test_a_damaged_file_of_predictions_is_named(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions/part-0.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(ValueError, match=r"predictions' should hold an evaluation's predictions"):
        Predictions.load(tmp_path / "predictions")


def test_predictions_of_an_earlier_version_are_named(tmp_path: Path) -> None:
    (tmp_path / "predictions.npz").touch()
    with pytest.raises(ValueError, match=r"earlier version; write them anew .* evaluate --run-dir"):
        Predictions.load(tmp_path / "predictions")
    with pytest.raises(ValueError, match="should be a folder of Parquet files, received"):
        check_predictions_folder(tmp_path / "scores.npz", overwrite=False)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(root: Path, tmp_path: Path) -> None:
    model = config_tree(root)["model"] | {
        "zero_shot": config_tree(root)["model"]["zero_shot"] | {"dropout": 0.5}
    }
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        run(root, tmp_path / name, train={"seed": seed}, model=model)
    first, second, third = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], third[key]) for key in first)


def test_weights_are_saved_before_the_test_data_can_go_wrong(root: Path, tmp_path: Path) -> None:
    gone = patch("mail_torchrec.train.trainer._evaluate_job", side_effect=OSError("gone"))
    with gone, pytest.raises(OSError, match="gone"):
        run(root, tmp_path / "run")
    metrics = evaluate_run(RunDir(tmp_path / "run"), str(root / "test"), [])
    assert metrics["all"]["rows"] == 120


def test_a_run_directory_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(
        ValueError,
        match=(
            r"already holds a run \(unfinished\); add --resume to go on with it, choose "
            r"another --run-dir, or train anew with --from-scratch"
        ),
    ):
        run(root, tmp_path)


def test_evaluating_an_unfinished_run_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"should be the directory of a trained run, but 'config.yaml' is missing"
    ):
        evaluate_run(RunDir(tmp_path), None, [])


def test_other_data_that_is_not_there_is_asked_for_by_its_option(
    root: Path, tmp_path: Path
) -> None:
    run(root, tmp_path / "run")
    with pytest.raises(ValueError, match=r"no data at 'nowhere': give --data a Parquet file or fo"):
        evaluate_run(RunDir(tmp_path / "run"), "nowhere", [])


def test_other_data_holds_ids_of_the_types_of_training(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "run")
    [path] = (root / "test").iterdir()
    table = pq.read_table(path)
    text = table["user"].cast(pa.string())
    pq.write_table(table.set_column(table.column_names.index("user"), "user", text), tmp_path / "b")
    with pytest.raises(
        ValueError, match=r"b: column 'user' should hold integer values, as in .*train.*, found str"
    ):
        evaluate_run(RunDir(tmp_path / "run"), str(tmp_path / "b"), [])


def test_fused_adam_on_cpu_is_refused_with_the_choices(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"no fused 'adam' on CPU; choose one of sgd, adagrad, "
            r"rowwise_adagrad.*sharding.enabled=false"
        ),
    ):
        run(root, tmp_path / "run", train={"tables": {"name": "adam"}})


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_whole_tables_train_with_any_optimizer(root: Path, tmp_path: Path, optimizer: str) -> None:
    metrics = run(
        root, tmp_path / "run", sharding={"enabled": False}, train={"tables": {"name": optimizer}}
    )
    assert evaluate_run(RunDir(tmp_path / "run"), None, []) == metrics


def test_whole_and_sharded_tables_agree(root: Path, tmp_path: Path) -> None:
    for name, enabled in (("whole", False), ("sharded", True)):
        run(
            root,
            tmp_path / name,
            sharding={"enabled": enabled},
            train={"eps": 0.1, "tables": {"name": "adagrad", "eps": 0.1}},
        )
    whole, sharded = weights(tmp_path / "whole"), weights(tmp_path / "sharded")
    assert whole.keys() == sharded.keys()
    for key, value in whole.items():
        torch.testing.assert_close(
            sharded[key], value, rtol=1e-4, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteLossError,
        match=r"loss L_rt is (nan|inf).*between steps \d+ and \d+.*Lower train.learning_rate",
    ):
        run(root, tmp_path / "run", train={"learning_rate": 1e30})
    assert not RunDir(tmp_path / "run").checkpoints.published()


def test_only_the_loss_at_fault_is_blamed(tmp_path: Path) -> None:
    fine, infinite = torch.tensor(0.5), torch.tensor(float("inf"))
    with MetricsWriter(RunDir(tmp_path), num_steps=4, every=2) as writer:
        writer.record_step({"L_rt": fine, "L_d": infinite}, 8)
        with pytest.raises(
            NonFiniteLossError,
            match=r"loss L_d is inf between steps 1 and 2 \(the others: L_rt 0.5000\)",
        ):
            writer.record_step({"L_rt": fine, "L_d": fine}, 8)


# Those of the last one by themselves are in test_one_row.py.
SWITCHES: list[dict[str, Any]] = [
    {"variant": "none"},
    {"variant": "single"},
    {"variant": "dual"},
    {"fill": "infer_only"},
    {"padding": "masked"},
    {"virtual_length": "predicted"},
    {"learning_rate_scale": 0.5},
    {
        "input_fields": "all_fields",
        "decoders": "per_group",
        "alignment": "paired_mse",
        "reduction": "sum",
    },
]


@pytest.mark.parametrize(
    "switch",
    SWITCHES,
    ids=lambda switch: "-".join(
        switch.values() if "learning_rate_scale" not in switch else ["scale"]
    ),
)
def test_every_switch_of_the_zero_shot_tower_trains(
    root: Path, tmp_path: Path, switch: dict[str, Any]
) -> None:
    model = config_tree(root)["model"] | {
        "zero_shot": config_tree(root)["model"]["zero_shot"] | switch
    }
    metrics = run(root, tmp_path / "run", model=model)
    losses = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    expected = {"none": set(), "single": {"L_a"}, "dual": {"L_a", "L_v"}}.get(
        switch.get("variant", "full"), {"L_a", "L_v", "L_d"}
    )
    named = {key.removeprefix("loss/") for key in losses if key.startswith("loss/")}
    assert named == {"L_rt", "L_match"} | expected
    assert evaluate_run(RunDir(tmp_path / "run"), None, []) == metrics


def test_the_zero_shot_learning_rate_is_scaled(root: Path) -> None:
    model = config_tree(root)["model"] | {
        "zero_shot": config_tree(root)["model"]["zero_shot"] | {"learning_rate_scale": 0.5}
    }
    config = Config.model_validate(config_tree(root, model=model, train={"learning_rate": 0.008}))
    encoders = fit_encoders(
        Source(str(root / "train"), config.schema_), config.schema_, config.data.cold_start
    )
    with process_group("cpu"):
        groups = assemble(config, encoders, torch.device("cpu")).optimizer.groups
    rates = {name: group.optimizer.param_groups[0]["lr"] for name, group in groups.items()}
    assert {name: rates[name] for name in ("ranking", "zero_shot")} == {
        "ranking": 0.008,
        "zero_shot": 0.004,
    }


def test_infer_only_fills_new_rows_in_evaluation_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bool, list[int]] = {True: [], False: []}

    def spy(tower: MeanTower, inputs: RankingInputs) -> torch.Tensor:
        seen[tower.training].append(int(inputs.sequences["history"].is_virtual_B.sum()))
        return forward(tower, inputs)

    forward = MeanTower.forward
    monkeypatch.setattr(MeanTower, "forward", spy)
    zero_shot = config_tree(root)["model"]["zero_shot"] | {"fill": "infer_only"}
    metrics = run(
        root,
        tmp_path / "run",
        model={
            "tower": "tests.support.towers_of_users:MeanTower",
            "tower_options": {},
            "zero_shot": zero_shot,
        },
    )
    assert sum(seen[True]) == 0 and len(seen[True]) == 8
    assert sum(seen[False]) == metrics["new"]["rows"] > 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_row_is_one_message_from_reader_processes_too(
    root: Path, tmp_path: Path, num_workers: int
) -> None:
    write_rows(tmp_path / "rows/train/a.parquet", 60, seed=1)
    table = pq.read_table(tmp_path / "rows/train/a.parquet")
    column = table.schema.get_field_index("clicked")
    pq.write_table(
        table.set_column(column, "clicked", pa.array([2] * 60)), tmp_path / "rows/train/a.parquet"
    )
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump(
            config_tree(tmp_path / "rows", data={"root": str(tmp_path / "rows"), "test": "train"})
        )
    )
    arguments = [
        "train",
        "--config",
        str(tmp_path / "c.yaml"),
        "--run-dir",
        str(tmp_path / "run"),
        f"data.num_workers={num_workers}",
    ]
    output = CliRunner().invoke(main, arguments).output
    assert (
        "Error: "
        + str(tmp_path / "rows/train/a.parquet")
        + ", row group 0: column 'clicked' should be 0 or 1, received 2 in row 0"
        in output
    )
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("tower", "schema", "options"),
    [
        ("emblr", {"dim": 1}, {}),
        ("base_dnn", {}, {"hidden_dims": [8]}),
        ("dmr", {"actions": "ignore"}, {"match_weight": 0.0}),
        ("wide_deep", {"actions": "concat"}, {"hidden_dims": [8]}),
        ("dmr", {"actions": "concat", "tables": {"actions": {"dim": 3}}}, {"num_negatives": 5}),
        ("deepfm", {"dim": 5}, {"hidden_dims": [8]}),
        ("din", {"actions": "concat"}, {"hidden_dims": [8]}),
        ("tests.support.towers_of_users:MeanTower", {}, {}),
    ],
)
def test_every_tower_trains_with_and_without_the_zero_shot_tower(
    root: Path, tmp_path: Path, tower: str, schema: dict[str, Any], options: dict[str, Any]
) -> None:
    for name, zero_shot in (("mail", config_tree(root)["model"]["zero_shot"]), ("alone", None)):
        model = {"tower": tower, "tower_options": options, "zero_shot": zero_shot}
        metrics = run(root, tmp_path / name, schema=SCHEMA | schema, model=model)
        assert metrics["all"]["auc"] is not None
        if zero_shot:
            assert evaluate_run(RunDir(tmp_path / name), None, []) == metrics


def test_a_tower_that_does_not_import_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"tower 'no_such_package:Tower': cannot import 'no_such_package'"
    ):
        run(root, tmp_path / "run", model={"tower": "no_such_package:Tower"})


def test_hidden_users_count_as_new_and_the_oracle_gives_their_behaviours_back(
    root: Path, tmp_path: Path
) -> None:
    plain = run(root, tmp_path / "plain")
    hidden = run(
        root, tmp_path / "hidden", data={"root": str(root), "cold_start": {"hide_share": 0.5}}
    )
    oracle = run(
        root,
        tmp_path / "oracle",
        data={"root": str(root), "cold_start": {"hide_share": 0.5, "oracle": True}},
    )
    assert plain["new"]["rows"] < hidden["new"]["rows"] == oracle["new"]["rows"]
    assert hidden["new"]["auc"] != oracle["new"]["auc"]
    everyone = {
        name: part["rows"]
        for name, part in evaluate_run(
            RunDir(tmp_path / "hidden"), None, ["data.cold_start.hide_share=1"]
        ).items()
    }
    assert everyone == {"new": 120, "old": 0, "all": 120}


def test_a_share_of_training_and_one_of_test_are_those_of_two_runs(
    root: Path, tmp_path: Path
) -> None:
    def hiding(**shares: float) -> dict[str, Any]:
        return {"root": str(root), "cold_start": shares}

    both = run(root, tmp_path / "both", data=hiding(hide_share=1, train_share=0, test_share=0.5))
    plain = run(root, tmp_path / "plain")
    assert plain != both
    overrides = ["data.cold_start.hide_share=0.5"]
    assert evaluate_run(RunDir(tmp_path / "plain"), None, overrides) == both
    assert evaluate_run(RunDir(tmp_path / "both"), None, []) == both
    unhidden = ["data.cold_start.test_share=0"]
    assert evaluate_run(RunDir(tmp_path / "both"), None, unhidden) == plain
    with pytest.raises(ValueError, match=r"hide_share changes nothing here: .*test_share=0.5;"):
        evaluate_run(RunDir(tmp_path / "both"), None, overrides)


def test_unknown_ids_and_cut_lists_are_counted(root: Path, tmp_path: Path) -> None:
    run(
        root,
        tmp_path / "run",
        schema=SCHEMA
        | {"tables": SCHEMA["tables"] | {"item": {"min_count": 30, "init_range": 0.3}}},
    )
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    [epoch] = [line["counts"] for line in lines if "epoch" in line]
    assert epoch["unknown/item"] > 0 and epoch["unknown/history"] > 0 and epoch["cut/history"] > 0
    assert "unknown/age" not in epoch


def test_the_plan_is_written_down(root: Path, tmp_path: Path) -> None:
    constraints = {"age": {"sharding_types": ["table_wise"]}}
    sharding = {"sharding_types": ["row_wise"], "constraints": constraints}
    run(root, tmp_path / "run", sharding=sharding)
    plan = json.loads((tmp_path / "run/plan.json").read_text())["tables"]
    assert plan["age"]["sharding_type"] == "table_wise"
    assert plan["item"]["sharding_type"] == "row_wise"
    assert plan["item"]["shards"] == [[0, 0, 0, 1024, 8]]
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["sharding"]
    assert written["constraints"]["age"]["sharding_types"] == ["table_wise"]


def test_a_constraint_on_an_unknown_table_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no table is called \['itme'\]; the tables are age, city"
    ):
        constraints = {"itme": {"sharding_types": ["row_wise"]}}
        run(root, tmp_path / "run", sharding={"constraints": constraints})
