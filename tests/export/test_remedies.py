"""Remedies with parameters of their own, exported: both formats score as the trainer does."""

from pathlib import Path
from typing import Any

import pytest

from mail_torchrec.config import Config
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import baseline_tree, config_tree, write_rows
from tests.support.uncompiled_package import without_compiling

MAIL = config_tree(Path())["model"]
SECTIONS: dict[str, dict[str, Any]] = {
    "cvar": baseline_tree("cvar", hidden_dims=[6]),
    "mwuf": baseline_tree("mwuf"),
    "contrastive": {
        "model": MAIL | {"zero_shot": MAIL["zero_shot"] | {"alignment": "contrastive"}}
    },
}


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        *((name, False) for name in SECTIONS),
        # The contrastive loss is in no graph: MAIL's is compiled elsewhere.
        *(pytest.param(name, True, marks=pytest.mark.long) for name in ("cvar", "mwuf")),
    ],
)
def test_onnx_and_aotinductor_score_as_the_trainer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, compiled: bool
) -> None:
    for part, seed in (("train", 1), ("test", 2)):
        write_rows(tmp_path / part / "a.parquet", 160, seed)
    if not compiled:
        without_compiling(monkeypatch)
    tree = config_tree(tmp_path, **SECTIONS[name], train={"epochs": 3})
    train(Config.model_validate(tree), RunDir(tmp_path / "run"))
    manifest = export(ExportOptions(RunDir(tmp_path / "run"), tmp_path / "model", aoti=True))
    for kind in ("onnx", "aoti"):
        parity = manifest.parity[kind]
        assert parity.max_difference <= parity.tolerance <= 1e-4, kind
    # What a user without behaviours gets is made of the attributes.
    scorer = Scorer(tmp_path / "model")
    user = {"city": "city1", "income": 0.3, "history": [], "actions": [], "hour": 4}
    candidates = [{"item": 3, "tags": [1]}]
    requests = [Request(user | {"age": age}, candidates) for age in (1, 2)]
    [output] = [spec.name for spec in manifest.outputs if spec.role == "virtual_behaviours"]
    virtual = scorer.run(scorer.encode(requests), [output])[output]
    assert virtual[0].any() and (virtual[0] != virtual[1]).any()
