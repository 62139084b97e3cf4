"""A real server with drift on: its gauges are those of the users that it has served."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from numpy.typing import NDArray

from mail_torchrec.drift.golden_behaviours import GOLDEN_SETS, GoldenBehaviours
from mail_torchrec.drift.mmd import mean_discrepancy
from mail_torchrec.drift.two_sample import two_sample_auc
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.serve.drift.monitor import DriftMonitor
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.serve.ranker import InferenceCall, Ranker
from mail_torchrec.serve.versions import ModelVersions
from tools.served import raw as raw_tensors
from tools.served import running, tensors, wait_for

NUM_SERVED = 50  # as many as a window needs


def new_users(seed: int, **values: Any) -> list[Request]:
    random = np.random.default_rng(seed)
    return [
        Request(
            {
                "user": 10_000 + number,
                "age": int(random.integers(5)),
                "city": f"city{random.integers(4)}",
                "income": float(random.normal()),
                "history": [],
                "actions": [],
                "hour": int(random.integers(24)),
            }
            | values,
            [{"item": 3, "tags": [1]}, {"item": 5, "tags": []}],
        )
        for number in range(NUM_SERVED)
    ]


def virtual(folder: Path, requests: list[Request]) -> NDArray[np.float32]:
    """Their virtual behaviours, by a scorer outside of the server."""
    scorer = Scorer(folder)
    found = scorer.run(scorer.encode(requests), ["history.virtual"])["history.virtual"]
    vectors: NDArray[np.float32] = found.sum(1) / 6
    return vectors


@pytest.mark.parametrize("client", ["raw", "encoded"])
def test_the_gauges_are_those_of_the_users_that_were_served(
    with_drift: Path, tmp_path: Path, client: str
) -> None:
    folder = with_drift / "model"
    manifest = ArtifactManifest.read(folder)
    info, version = manifest.drift, manifest.version
    assert info is not None
    golden = GoldenBehaviours.read(folder, info)
    requests = new_users(5, income=1.5)
    old = Request(
        requests[0].user | {"history": [3, 4], "actions": [1, 1]}, [{"item": 3, "tags": []}]
    )
    options = ("--name", "ads", "--threads", "1", "--drift", "0.2")
    with running(folder, tmp_path / "log", *options) as server:
        before = server.metrics()
        to = tritonclient.http.InferenceServerClient(server.http)
        to.infer("ads", raw_tensors(tritonclient.http, old))
        if client == "raw":
            for request in requests:
                answer = to.infer("ads", raw_tensors(tritonclient.http, request))
                assert answer.get_output("history.virtual") is None  # nobody asked for it
        else:
            encoded = Scorer(folder).encode(requests)
            to.infer("ads", tensors(tritonclient.http, encoded))
        served = f'mail_drift_users{{version="{version}"}}'
        assert served not in before
        wait_for(lambda: server.metrics().get(served) == NUM_SERVED)
        found = server.metrics()
        assert "requests go on" not in (tmp_path / "log").read_text()
        to.close()
    vectors = virtual(folder, requests)
    sets = golden.new_virtual_ND, golden.old_virtual_MD, golden.old_real_MD
    for name, vectors_of_set in zip(GOLDEN_SETS, sets, strict=True):
        label = f'{{golden="{name}",version="{version}"}}'
        expected = two_sample_auc(vectors, vectors_of_set)
        assert found[f"mail_drift_auc{label}"] == pytest.approx(expected, abs=0.02)
        bandwidth = info.real_bandwidth if name == "old_real" else info.bandwidth
        squared = mean_discrepancy(vectors, vectors_of_set, bandwidth).squared
        assert found[f"mail_drift_mmd{label}"] == pytest.approx(squared, abs=1e-5)
        assert found[f"mail_drift_mmd_noise{label}"] > 0
        assert found[f"mail_golden_users{label}"] == 60
    for pair, of_export in (
        ("old_virtual_old_real", info.virtual_and_real),
        ("new_virtual_old_virtual", info.new_and_old),
    ):
        label = f'{{pair="{pair}",version="{version}"}}'
        assert before[f"mail_golden_auc{label}"] == pytest.approx(of_export.auc)
        assert before[f"mail_golden_mmd{label}"] == pytest.approx(of_export.mmd)


class Served:
    """A ranker with a monitor, in this process."""

    def __init__(self, root: Path, seconds: float = 0.0) -> None:
        self.metrics = ServerMetrics()
        self.versions = ModelVersions(root, self.metrics, threads=1)
        self.monitor = DriftMonitor(self.versions, self.metrics.registry, seconds)
        self.ranker = Ranker("ads", self.versions, self.metrics, 100, self.monitor)

    def ask(self, requests: list[Request], outputs: tuple[str, ...] = ()) -> dict[str, Any]:
        inputs = self.versions.serving.encode(requests)
        return dict(self.ranker.infer(InferenceCall(inputs, outputs)).outputs)

    def value(self, name: str, **labels: str) -> float | None:
        version = self.versions.serving.manifest.version
        found: float | None = self.metrics.registry.get_sample_value(
            name, {"version": version, **labels}
        )
        return found


def test_users_of_other_attributes_drift_and_the_golden_ones_do_not(with_drift: Path) -> None:
    served = Served(with_drift / "model")
    found = {}
    for name, requests in {
        "alike": new_users(5),
        "richer": new_users(5, income=4.0),
    }.items():
        served.ask(requests)
        served.monitor.update()
        label = {"golden": "new_virtual"}
        found[name] = [
            served.value(f"mail_drift_{n}", **label) for n in ("auc", "mmd", "mmd_noise")
        ]
    auc, mmd, noise = found["alike"]
    assert auc is not None and mmd is not None and noise is not None
    assert auc < 0.65 and mmd < 3 * noise
    auc, mmd, noise = found["richer"]
    assert auc is not None and mmd is not None and noise is not None
    assert auc > 0.9 and mmd > 10 * noise


def test_answers_are_the_same_with_and_without(with_drift: Path) -> None:
    served, requests = Served(with_drift / "model"), new_users(6)
    plain = Ranker("ads", served.versions, served.metrics, 100)
    inputs = served.versions.serving.encode(requests[:20])
    for outputs in ((), ("pctr", "history.virtual"), ("history.virtual",)):
        call = InferenceCall(inputs, outputs)
        expected, found = plain.infer(call).outputs, served.ranker.infer(call).outputs
        assert list(found) == list(expected)
        for name, array in expected.items():
            assert np.array_equal(found[name], array)


def test_too_few_users_are_not_compared_and_a_fault_fails_no_request(
    with_drift: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(with_drift / "model")
    served.ask(new_users(6)[:49])
    served.monitor.update()
    assert served.value("mail_drift_users") is None

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    for name in ("cold_users", "behaviour_vectors"):
        with monkeypatch.context() as patched:
            patched.setattr(f"mail_torchrec.serve.drift.monitor.{name}", fail)
            assert list(served.ask(new_users(6)[:3])) == ["pctr"]
    served.ask(new_users(6)[:8])
    served.monitor.update()
    assert served.value("mail_drift_users") == 57  # those whose vectors were lost are left out


def test_versions_come_and_go(with_drift: Path, tmp_path: Path) -> None:
    shutil.copytree(with_drift / "model", tmp_path / "models" / "one")
    served = Served(tmp_path / "models")
    served.ask(new_users(6))
    served.monitor.update()
    assert served.value("mail_drift_users") == NUM_SERVED
    served.versions.served.by_name.clear()  # type: ignore[attr-defined]
    served.monitor.update()
    assert served.value("mail_drift_users") is None
    assert served.value("mail_golden_users", golden="old_real") is None
