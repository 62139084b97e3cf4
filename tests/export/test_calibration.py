"""Exported probabilities are corrected for downsampled negatives, and calibrated on demand."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mail_torchrec.calibration.negatives import product_logits
from mail_torchrec.config import Config
from mail_torchrec.export.aoti import AotiModel
from mail_torchrec.export.calibration import fit_calibration
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import config_tree, write_rows
from tests.support.uncompiled_package import without_compiling

KEPT = 0.1
# A small graph, for its conversion takes most of the time.
MODEL = {"tower": "base_dnn", "tower_options": {"hidden_dims": [16, 8], "dropout": 0.0}}
MODEL |= {"multi_task": {}}
SETTINGS: dict[str, dict[str, Any]] = {
    "all": {},
    "sampled": {"negatives_kept": KEPT},
    "both": {"negatives_kept": KEPT, "test_negatives_kept": KEPT},
    "split": {"negatives_kept": KEPT, "validation": {"share": 0.5}},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the same rows and steps, and their models, which differ in one setting."""
    folder = tmp_path_factory.mktemp("kept")
    write_rows(folder / "train" / "a.parquet", 500, seed=1)
    write_rows(folder / "test" / "c.parquet", 200, seed=3)
    write_rows(folder / "more" / "d.parquet", 1200, seed=5, row_group_size=600)
    write_rows(folder / "few" / "d.parquet", 300, seed=7)
    for name, data in SETTINGS.items():
        learns = {"epochs": 8, "tables": {"name": "adagrad", "learning_rate": 0.2}}
        tree = config_tree(
            folder,
            data={"root": str(folder)} | data,
            model=MODEL,
            train=learns if name == "split" else {},
        )
        train(Config.model_validate(tree), RunDir(folder / name))
        if name in ("all", "sampled"):
            export(ExportOptions(RunDir(folder / name), folder / f"{name}-model"))
    return folder


def golden(folder: Path) -> dict[str, np.ndarray]:
    scores = [scores for _, scores in read_golden(folder)]
    return {name: np.concatenate([one[name] for one in scores]) for name in scores[0]}


def logit(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(p) - np.log1p(-p.astype(np.float64)))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))


def test_clicks_are_corrected_in_the_graph_and_conversions_of_clicks_are_not(root: Path) -> None:
    plain, corrected = golden(root / "all-model"), golden(root / "sampled-model")
    p = plain["pctr"]
    assert corrected["pctr"] == pytest.approx(p / (p + (1 - p) / KEPT), rel=1e-5)
    assert corrected["pcvr"].tolist() == plain["pcvr"].tolist()
    assert corrected["pctcvr"] == pytest.approx(corrected["pctr"] * plain["pcvr"], rel=1e-5)
    assert np.argsort(corrected["pctr"]).tolist() == np.argsort(p).tolist()
    scorer = Scorer(root / "sampled-model")
    assert scorer.max_difference() < 1e-6 and scorer.manifest.negatives_kept == KEPT


def test_other_outputs_are_those_of_the_run(root: Path) -> None:
    one, other = Scorer(root / "all-model"), Scorer(root / "sampled-model")
    names = [spec.name for spec in one.manifest.outputs if spec.role != "probability"]
    inputs = one.encode([read_golden(one.folder)[0][0]])
    for name, values in one.run(inputs, names).items():
        assert np.array_equal(values, other.run(inputs, names)[name]), name


def test_manifests_without_them_say_nothing_of_either(root: Path) -> None:
    text = (root / "all-model" / "manifest.json").read_text()
    assert '"negatives_kept"' not in text.replace("test_negatives_kept", "")
    assert '"calibration":' not in text.split('"metrics"')[0] + text.split('"inputs"')[1]


def test_metrics_are_of_true_probabilities_or_of_those_in_the_sample(root: Path) -> None:
    found = {name: evaluate_run(RunDir(root / name), None, [])["all"] for name in SETTINGS}
    whole, corrected, both = (found[name] for name in ("all", "sampled", "both"))
    # Scores that hardly differ may be rounded to one: a pair of rows counts a half then.
    of_pair = {"auc": 2e-4, "gauc": 2e-4}
    for name in ("auc", "gauc", "cvr_auc", "cvr_log_loss"):
        assert corrected[name] == pytest.approx(whole[name], rel=1e-6, abs=of_pair.get(name, 0))
    assert corrected["calibration"] < 0.6 * whole["calibration"]
    # Rows that are sampled as the training rows are follow the probabilities before correction.
    for name, value in whole.items():
        if isinstance(value, float):
            assert both[name] == pytest.approx(value, rel=1e-5, abs=of_pair.get(name, 0)), name


def test_a_calibration_is_part_of_the_graph_and_of_the_golden_requests(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    without_compiling(monkeypatch)
    monkeypatch.setattr("mail_torchrec.calibration.fitting.MIN_OF_CLASS", {"isotonic": 100})
    with caplog.at_level(logging.INFO, "mail_torchrec"):
        manifest = export(
            ExportOptions(
                RunDir(root / "both"),
                tmp_path / "out",
                calibrate="isotonic",
                calibration_data=str(root / "more"),
                aoti=True,
            )
        )
    found = ArtifactManifest.read(tmp_path / "out").calibration
    assert found == manifest.calibration and found is not None and found.rows == 1200
    assert "isotonic calibration on 1200 rows" in caplog.text
    assert f"{found.before.calibration:.4f} before" in caplog.text
    labels = pq.read_table(root / "more")["clicked"].to_numpy()
    assert found.clicks == labels.sum()
    assert found.after.calibration == pytest.approx(1, abs=0.1)
    plain, scores = golden(root / "all-model"), golden(tmp_path / "out")
    click_logits = found.calibrator(logit(plain["pctr"]) + np.log(KEPT))
    assert np.abs(scores["pctr"] - sigmoid(click_logits)).max() < 1e-6
    assert scores["pcvr"] == pytest.approx(plain["pcvr"], abs=1e-7)
    joint = product_logits(click_logits, logit(plain["pcvr"]))
    assert np.abs(scores["pctcvr"] - sigmoid(joint)).max() < 1e-6
    assert Scorer(tmp_path / "out").max_difference() < 1e-5
    compiled, scorer = AotiModel(tmp_path / "out", manifest), Scorer(tmp_path / "out")
    request, expected = read_golden(tmp_path / "out")[0]
    assert compiled.run(scorer.encode([request]))["pctr"] == pytest.approx(
        expected["pctr"], abs=1e-5
    )


def test_the_runs_validation_rows_are_taken_with_the_share_that_training_rows_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail_torchrec.calibration.fitting.MIN_OF_CLASS", {"platt": 40})
    found = fit_calibration(RunDir(root / "split"), "platt", None)
    assert 100 < found.rows < 400
    # The rows' own click rate stands for that of rows of which a tenth of the negatives is kept.
    rate = found.clicks / found.rows
    at_rate = sigmoid(found.calibrator(np.array([logit(np.array(rate)) + np.log(KEPT)])))
    assert at_rate[0] < 0.3 and rate > 0.3
    assert found.after.calibration == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "needs rows that the run was neither trained nor tested on"),
        ("train", "holds train rows of the run"),
        ("test", "holds test rows of the run"),
        ("few", "should have at least 400 clicked rows and 400 others"),
    ],
)
def test_rows_that_cannot_calibrate_are_refused(
    root: Path, tmp_path: Path, data: str | None, message: str
) -> None:
    options = ExportOptions(
        RunDir(root / "all"),
        tmp_path / "out",
        calibrate="isotonic",
        calibration_data=None if data is None else str(root / data),
    )
    with pytest.raises(ValueError, match=message):
        export(options)
    assert not (tmp_path / "out").exists()


def test_rows_without_a_calibration_are_refused(root: Path, tmp_path: Path) -> None:
    options = ExportOptions(RunDir(root / "all"), tmp_path / "out", calibration_data="rows")
    with pytest.raises(ValueError, match="--calibration-data is of --calibrate"):
        export(options)
