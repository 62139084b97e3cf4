"""Of a run whose second epoch overfits, every runtime and server has the best checkpoint: as it is,
and calibrated."""

import json
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mail_torchrec.config import load_config
from mail_torchrec.export.aoti import AotiModel
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.export.stored_weights import weights_folder
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.metrics.cohorts import CohortMetrics
from mail_torchrec.predict.evaluate import evaluate_run
from mail_torchrec.predict.opened_run import finished_config, open_run
from mail_torchrec.synthetic.settings import WorldSettings
from mail_torchrec.synthetic.writer import write_world
from mail_torchrec.train.evaluation import score_batches
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.state import load_model
from mail_torchrec.train.trainer import train
from tests.checkpoint.test_resume import log
from tests.support.triton_server import needs_triton
from tests.support.uncompiled_package import without_compiling
from tests.support.untrained_model import requests_of
from tests.support.ways_to_serve import (
    Ask,
    by_onnx_runtime,
    by_server,
    by_triton,
    differences,
    pctr_of_golden,
    tolerance,
)

WORLD = WorldSettings(users=1600, items=3000, click_scale=0.3, files=2)
CONFIG = Path("launch/configs/synthetic.yaml")
OVERRIDES = [
    "data.validation.share=0.2",
    "model.tower=base_dnn",
    "model.tower_options={hidden_dims: [32, 16], dropout: 0.0}",
    "model.zero_shot=null",
    "train.batch_size=128",
    "train.epochs=4",
    "train.learning_rate=0.01",
    "train.evaluate_every=0.5 epochs",
    "train.early_stopping={metric: log_loss, patience: 2}",
    "schema.dim=8",
]
NUM_REQUESTS = 40
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "platt": {"calibrate": "platt", "table_type": "float16", "aoti": True},
    "isotonic": {"calibrate": "isotonic", "table_type": "int8"},
}


@dataclass(frozen=True)
class Trained:
    """A finished run, and what it returned and told."""

    run_dir: RunDir
    metrics: dict[str, CohortMetrics]
    told: str

    @property
    def validation(self) -> dict[int, CohortMetrics]:
        """Step -> metrics of all validation rows."""
        lines = [line for line in log(self.run_dir.path) if "validation" in line]
        return {line["step"]: line["validation"]["all"] for line in lines}

    @property
    def best_step(self) -> int:
        """The step with the lowest log loss."""
        found = self.validation
        return min(found, key=lambda step: found[step]["log_loss"])

    def scores(self, step: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Computes the ``pctr`` of the test rows by the checkpoint of a step.

        Returns:
            Also where the history of a row is hidden, which a server would see.
        """
        with open_run(self.run_dir, None, finished_config(self.run_dir, [])) as run:
            load_model(run.assembled, self.run_dir.checkpoints.target(step))
            batches = list(score_batches(run.assembled, run.data.reader, run.data.loader))
        return (
            np.concatenate([batch.scores["pctr"] for batch in batches]),
            np.concatenate([batch.is_new_B for batch in batches]),
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("overfitting")
    write_world(WORLD, folder / "world")
    run_dir, told = RunDir(folder / "run"), folder / "told"
    with told.open("w") as file, redirect_stderr(file):
        metrics = train(load_config(CONFIG, [f"data.root={folder / 'world'}", *OVERRIDES]), run_dir)
    return Trained(run_dir, metrics, told.read_text())


def test_validation_stops_where_a_second_epoch_overfits(trained: Trained) -> None:
    """The training loss falls all the while; the validation gets worse than a constant."""
    run_dir, found, best = trained.run_dir, trained.validation, trained.best_step
    entropies = [metrics["normalised_entropy"] for metrics in found.values()]
    lines = log(run_dir.path)
    losses = [line["loss/L_rt"] for line in lines if "loss/L_rt" in line]
    steps = list(found)
    assert entropies[-1] > 1 > min(entropies)
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])
    assert steps[-3] == best and steps[-1] < 4 * steps[1]
    assert json.loads(run_dir.metrics.read_text())["checkpoint"] == {"step": best}
    assert weights_folder(run_dir).name == f"step-{best:08d}"
    assert evaluate_run(run_dir, None, []) == trained.metrics
    assert f"stopped early after step {steps[-1]}" in trained.told
    assert "more steps made the model worse: validation has log_loss" in trained.told


@dataclass(frozen=True)
class Served:
    """Exported models of the run, and requests with probabilities by the best checkpoint."""

    models: Path
    requests: list[Request]
    best_R: NDArray[Any]
    last_R: NDArray[Any]

    def expected(self, model: str) -> NDArray[Any]:
        """Returns the best checkpoint's probabilities, calibrated by the map in the manifest."""
        calibration = ArtifactManifest.read(self.models / model).calibration
        if calibration is None:
            return self.best_R
        logits_R = np.log(self.best_R.astype(np.float64)) - np.log1p(-self.best_R)
        knots, values = calibration.calibrator.logits, calibration.calibrator.calibrated
        below, above = calibration.calibrator.first_slope, calibration.calibrator.last_slope
        mapped_R = np.interp(logits_R, knots, values)
        mapped_R += below * np.minimum(logits_R - knots[0], 0)
        mapped_R += above * np.maximum(logits_R - knots[-1], 0)
        return 1 / (1 + np.exp(-mapped_R))

    def check(self, ways: dict[str, Ask]) -> None:
        """Checks scores of test rows and of golden requests, of each model by each way."""
        wrong = {}
        for path in sorted(self.models.iterdir()):
            rows = self.requests, self.expected(path.name)
            for kind, asked in (("rows", rows), ("golden", pctr_of_golden(path))):
                for way, far in differences(ways, path.name, *asked).items():
                    if far > tolerance(path):
                        wrong[path.name, kind, way] = far
        assert not wrong
        assert min(differences(ways, "plain", self.requests, self.last_R).values()) > 0.05


@pytest.fixture(scope="module")
def served(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Served:
    models, run_dir = tmp_path_factory.mktemp("served") / "models", trained.run_dir
    models.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        without_compiling(patch)
        for name, options in MODELS.items():
            export(ExportOptions(run_dir, models / name, **options))
    config = finished_config(run_dir, [])
    [test] = sorted(Path(config.data.path(config.data.test)).iterdir())
    best_R, is_hidden_R = trained.scores(trained.best_step)
    last_R, _ = trained.scores(max(trained.validation))
    rows = np.flatnonzero(~is_hidden_R)[:NUM_REQUESTS]
    requests = requests_of(test, config.schema_, rows.tolist())
    return Served(models, requests, best_R[rows], last_R[rows])


def test_onnx_runtime_scores_as_the_best_checkpoint(served: Served) -> None:
    served.check({"ONNX Runtime": by_onnx_runtime(served.models)})


def test_a_compiled_and_calibrated_package_does(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_compiling(monkeypatch)
    model = served.models / "platt"
    compiled = AotiModel(model, ArtifactManifest.read(model))
    inputs = Scorer(model).encode(served.requests)
    difference_R = compiled.run(inputs)["pctr"] - served.expected("platt")
    assert np.abs(difference_R).max() < tolerance(model)


def test_a_server_does_over_http_and_grpc(served: Served, tmp_path: Path) -> None:
    with by_server(served.models, tmp_path / "log") as ways:
        served.check(ways)


@needs_triton
def test_a_real_triton_does(served: Served, tmp_path: Path) -> None:
    with by_triton(served.models, tmp_path) as ways:
        served.check(ways)
