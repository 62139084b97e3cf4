"""The MLflow tracker against a real tracking server, on this machine's loopback."""

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mail_torchrec.trackers.run_trackers import RunTrackers
from mail_torchrec.trackers.settings import TrackerSettings
from mail_torchrec.trackers.tracker import RunDescription
from tests.support.hosts import wait_for
from tests.support.preloaded import ROOT
from tests.support.processes import free_port
from tests.support.small_rows import config_tree, write_rows

_COMMAND = ROOT / ".mlflow/bin/mlflow"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not _COMMAND.exists(), reason="no MLflow server: launch/mlflow/install.sh"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real MLflow server."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    words = [
        *(str(_COMMAND), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/runs.db"),
        *("--artifacts-destination", str(folder / "files")),
    ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _is_healthy(uri), "the MLflow server", seconds=120)
        yield uri
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def _is_healthy(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _only_run(client: Any, experiment: str) -> Any:
    [run] = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


def test_a_run_arrives_whole_and_goes_on_as_itself(server: str, tmp_path: Path) -> None:
    tracked = {"uri": server, "experiment": "whole", "tags": {"team": "ads"}}
    settings = [TrackerSettings(name="mlflow", options=tracked)]
    run = RunDescription(
        "DMR | 日本", tmp_path, {f"a.{i}": "x" * i for i in range(150)}, {"torch": "2.13"}
    )
    (tmp_path / "config.yaml").write_text("name: DMR\n")
    with pytest.raises(SystemExit), RunTrackers(settings, run, [], goes_on=False) as trackers:
        for step in range(1, 1501):
            trackers.log({"loss/ranking": 1 / step}, step)
        raise SystemExit(143)
    client = _client(server)
    assert _only_run(client, "whole").info.status == "KILLED"
    with RunTrackers(settings, run, ["config.yaml"], goes_on=True) as trackers:
        trackers.log({"loss/ranking": 0.25, "loss/a|b$": 2.0}, 1501)
    found = _only_run(client, "whole")
    assert (found.info.status, found.info.run_name) == ("FINISHED", "DMR | 日本")
    assert found.data.params == {f"a.{i}": "x" * i for i in range(150)}
    assert found.data.metrics == {"loss/ranking": 0.25, "loss/a_b_": 2.0}
    assert found.data.tags["team"] == "ads" and found.data.tags["version.torch"] == "2.13"
    history = client.get_metric_history(found.info.run_id, "loss/ranking")
    assert [(one.step, one.value) for one in history] == [
        *((step, 1 / step) for step in range(1, 1501)),
        (1501, 0.25),
    ]
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["config.yaml"]


def test_a_server_that_lost_the_run_gets_a_new_one(server: str, tmp_path: Path) -> None:
    settings = [TrackerSettings(name="mlflow", options={"uri": server, "experiment": "lost"})]
    (tmp_path / "trackers.json").write_text(f'{{"mlflow": "{"0" * 32}"}}')
    run = RunDescription("DMR", tmp_path, {"a": "1"}, {})
    with RunTrackers(settings, run, [], goes_on=True) as trackers:
        trackers.log({"loss": 0.5}, 3)
    assert _only_run(_client(server), "lost").data.metrics == {"loss": 0.5}


def test_a_training_is_found_on_the_server(server: str, tmp_path: Path) -> None:
    from mail_torchrec.config import Config
    from mail_torchrec.train.run_dir import RunDir
    from mail_torchrec.train.trainer import train

    write_rows(tmp_path / "train" / "a.parquet", 250, seed=1)
    write_rows(tmp_path / "test" / "c.parquet", 120, seed=3)
    tracked = {"name": "mlflow", "options": {"uri": server, "experiment": "training"}}
    tree = config_tree(tmp_path) | {"trackers": [tracked]}
    metrics = train(Config.model_validate(tree), RunDir(tmp_path / "run"))
    found = _only_run(_client(server), "training")
    assert found.info.status == "FINISHED"
    assert found.data.metrics["test/all/auc"] == metrics["all"]["auc"]
    assert found.data.params["model.tower"] == tree["model"]["tower"]
    files = {file.path for file in _client(server).list_artifacts(found.info.run_id)}
    assert {"config.yaml", "metrics.json", "loss_curves.png", "plan.json"} <= files
