"""A model with new items, exported: its requests say which are new, and the server counts them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mail_torchrec.config import Config
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.inference.requests import NEW_ITEM_OF_CANDIDATE, Request
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import config_tree, write_rows

LOSSES = {"contrast": {"steps": 2}, "distillation": {}, "ranking_weight": 1.0}


@pytest.mark.long
@pytest.mark.parametrize("losses", [{}, LOSSES], ids=["mse", "all losses"])
def test_requests_say_which_items_are_new_and_the_server_counts_them(
    tmp_path: Path, losses: dict[str, Any]
) -> None:
    for part, seed in (("train", 1), ("test", 2)):
        write_rows(tmp_path / part / "a.parquet", 160, seed)
    tree = config_tree(tmp_path, data={"new_items": {"max_count": 0}})
    tree["model"] = tree["model"] | {"virtual_items": {"dropout": 0.1} | losses}
    train(Config.model_validate(tree), RunDir(tmp_path / "run"))
    aoti = bool(losses)
    manifest = export(ExportOptions(RunDir(tmp_path / "run"), tmp_path / "model", aoti=aoti))
    assert not aoti or manifest.parity["aoti"].max_difference < 1e-5
    assert manifest.new_item_input == NEW_ITEM_OF_CANDIDATE
    assert manifest.parity["onnx"].max_difference <= manifest.parity["onnx"].tolerance
    scorer = Scorer(tmp_path / "model")
    user = {"age": 1, "city": "city1", "income": 0.3, "history": [3], "actions": [1], "hour": 4}
    candidates = [{"item": item, "tags": [1]} for item in (3, 5, 987, 988, None)]
    old, new = Request(user, candidates), Request(user | {"history": [], "actions": []}, candidates)
    inputs = scorer.encode([old, new])
    assert inputs[NEW_ITEM_OF_CANDIDATE].tolist() == [False, False, True, True, False] * 2
    scores = scorer.run(inputs)["pctr"]
    assert scores[2] == pytest.approx(scores[3]) and len(np.unique(scores[:5])) == 4
    metrics = ServerMetrics()
    metrics.count(inputs, scorer.manifest)
    for user_kind in ("new", "old"):
        for item_kind, expected in (("new", 2), ("old", 3)):
            labels = {"version": manifest.version, "user": user_kind, "item": item_kind}
            name = "mail_candidates_by_cohort_total"
            assert metrics.registry.get_sample_value(name, labels) == expected
