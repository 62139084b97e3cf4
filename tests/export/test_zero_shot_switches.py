"""The newer switches of the zero-shot tower and of crosses, exported: scores are the trainer's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mail_torchrec.config import Config
from mail_torchrec.export.aoti import AotiModel
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.predictions.predictions import Predictions
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import config_tree, write_rows
from tests.support.untrained_model import requests_of

MODEL = config_tree(Path())["model"] | {"tower_options": {"hidden_dims": [16, 8]}}
MIXTURE = {
    "reconstruction_target": "mixture",
    "num_prototypes": 3,
    "virtual_length": "predicted",
    "ranking_weight": 1.0,
    "input_fields": "all_fields",
}
MODELS: dict[str, dict[str, Any]] = {
    # Each switch of its own is a part of this; users with one behaviour get virtual ones behind it.
    "mixture-bilinear": MODEL
    | {
        "tower": "din",
        "zero_shot": MODEL["zero_shot"] | MIXTURE,
        "virtual_flag": True,
        "mixing_strength": 2.0,
        "attribute_crosses": {"form": "bilinear", "rank": 3},
    },
    "fm": MODEL | {"tower": "base_dnn", "zero_shot": None, "attribute_crosses": {"form": "fm"}},
}
NUM_ROWS = 120


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", MODELS)
def test_onnx_and_aotinductor_score_as_the_trainer_does(
    tmp_path: Path, name: str, compiled: bool
) -> None:
    write_rows(tmp_path / "train" / "a.parquet", 160, seed=1)
    write_rows(tmp_path / "test" / "c.parquet", NUM_ROWS, seed=2)
    learning_rate = {"learning_rate": 0.02, "tables": {"name": "adagrad", "learning_rate": 0.2}}
    tree = config_tree(
        tmp_path,
        data={"new_user_max_behaviours": 1},
        model=MODELS[name],
        train={"epochs": 3, "save_predictions": True} | learning_rate,
    )
    run = RunDir(tmp_path / "run")
    train(Config.model_validate(tree), run)
    manifest = export(ExportOptions(run, tmp_path / "model", aoti=compiled))
    scorer = Scorer(tmp_path / "model")
    inputs = scorer.encode(
        requests_of(tmp_path / "test" / "c.parquet", manifest.schema_, range(NUM_ROWS))
    )
    rows = Predictions.load(run.path / "predictions")
    expected = 1 / (1 + np.exp(-rows.scores_R.astype(np.float64)))
    assert 0 < rows.is_new_R.sum() < NUM_ROWS and expected[rows.is_new_R].std() > 0.01
    virtual = [spec.name for spec in manifest.outputs if spec.role == "virtual_behaviours"]
    found = {"onnx": scorer.run(inputs, ["pctr", *virtual])}
    if compiled:
        found["aoti"] = AotiModel(tmp_path / "model", manifest).run(inputs)
    for kind, outputs in found.items():
        assert manifest.parity[kind].max_difference <= manifest.parity[kind].tolerance <= 1e-5
        np.testing.assert_allclose(outputs["pctr"], expected, rtol=0, atol=1e-5, err_msg=kind)
    assert len(virtual) == (MODELS[name]["zero_shot"] is not None)
    for output in virtual:
        made = found["onnx"][output]
        for outputs in found.values():
            np.testing.assert_allclose(outputs[output], made, rtol=0, atol=1e-5)
        assert (np.abs(made).sum((1, 2)) > 0).tolist() == rows.is_new_R.tolist()
