"""Versions come, go and share users while requests go on, in a real server."""

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.traffic_split import TrafficSplit
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.serve.versions import ModelVersions
from tests.serve.test_protocol import INFER, body
from tests.support.exported_models import version_in
from tools.served import Running, make_bad_version, make_version, publish, raw, running, wait_for

Ask = Callable[[Any], tuple[str, Any]]
"""A request -> the version that answered, and ``pctr``."""


def over_rest(server: Running) -> Ask:
    def ask(request: Any) -> tuple[str, Any]:
        status, answer = server.ask(INFER, body(request, outputs=[{"name": "pctr"}]))
        assert status == 200
        return answer["model_version"], np.array(answer["outputs"][0]["data"])

    return ask


def over_grpc(server: Running) -> Ask:
    client = tritonclient.grpc.InferenceServerClient(server.grpc)

    def ask(request: Any) -> tuple[str, Any]:
        result = client.infer("ads", raw(tritonclient.grpc, request))
        return result.get_response().model_version, result.as_numpy("pctr")

    return ask


class Load(threading.Thread):
    """Asks for the golden requests again and again, and notes what is not as it should be."""

    def __init__(self, ask: Ask, scores: dict[str, list[list[float]]], requests: list[Any]) -> None:
        super().__init__(daemon=True)
        self.ask, self.scores, self.requests = ask, scores, requests
        self.stopping, self.answered, self.failures = threading.Event(), Counter[str](), list[Any]()

    def run(self) -> None:
        while not self.stopping.is_set():
            for i, request in enumerate(self.requests):
                try:
                    version, found = self.ask(request)
                    difference = np.abs(found - self.scores[version][i]).max()
                    self.answered[version] += 1
                    if not difference <= 1e-5:
                        self.failures.append((version, difference))
                except Exception as error:
                    self.failures.append(error)

    def __enter__(self) -> "Load":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.join(30)


def pctr(folder: Path) -> list[list[float]]:
    return [scores["pctr"] for _, scores in read_golden(folder)]


def test_versions_are_switched_under_load_and_bad_ones_refused_without_a_failed_request(
    exported: Path, tmp_path: Path
) -> None:
    root, first, second = (
        tmp_path / "root",
        version_in(exported / "first"),
        version_in(exported / "second"),
    )
    root.mkdir()
    publish(exported / "first", root / "a")
    make_version(
        exported / "first", tmp_path / "third", created="2999-01-01T00:00:00+00:00", factor=0.5
    )
    scores = {
        version_in(folder): pctr(folder)
        for folder in (exported / "first", exported / "second", tmp_path / "third")
    }
    assert np.abs(np.concatenate(scores[first]) - np.concatenate(scores[second])).max() > 1e-3

    def fewest(version: str) -> int:
        return min(rest.answered[version], of_grpc.answered[version])

    with running(
        root, tmp_path / "log", "--name", "ads", "--threads", "1", "--poll", "0.2"
    ) as server:
        requests = [request for request, _ in read_golden(exported / "first")]
        with (
            Load(over_rest(server), scores, requests) as rest,
            Load(over_grpc(server), scores, requests) as of_grpc,
        ):
            wait_for(lambda: fewest(first) > 3)

            shutil.copytree(
                exported / "second", root / "damaged"
            )  # its tables are not those of the manifest
            (root / "damaged" / "tables" / "city.float32").write_bytes(b"half")
            make_bad_version(
                exported / "second", root / ".bad", created="3000-01-01T00:00:00+00:00"
            )
            (root / ".bad").rename(root / "bad")
            wait_for(lambda: "differ by 0.05 from the trainer's" in server.log.read_text())
            wait_for(
                lambda: "city.float32' is not the file that was exported" in server.log.read_text()
            )
            assert server.ask("/v2/models/ads")[1]["versions"] == [first]

            publish(exported / "second", root / "b")
            wait_for(lambda: fewest(second) > 3)
            publish(tmp_path / "third", root / "c")
            wait_for(lambda: fewest(version_in(tmp_path / "third")) > 3)
            shutil.rmtree(root / "c")  # back
            before = rest.answered[second], of_grpc.answered[second]
            wait_for(
                lambda: (
                    rest.answered[second] > before[0] + 3
                    and of_grpc.answered[second] > before[1] + 3
                )
            )
            assert server.ask(f"/v2/models/ads/versions/{first}")[0] == 200  # side by side
        assert (
            not rest.failures
            and not of_grpc.failures
            and not rest.is_alive()
            and not of_grpc.is_alive()
        )


def test_users_are_split_and_the_answer_says_which_version(exported: Path, tmp_path: Path) -> None:
    request, _ = read_golden(exported / "first")[3]
    split = TrafficSplit("first", 0.5)
    with running(
        exported, tmp_path / "log", "--name", "ads", "--threads", "1", "--split", "first=0.5"
    ) as server:
        for user in range(12):
            status, answer = server.ask(INFER, body(request, parameters={"user": user}))
            expected = exported / ("first" if split.is_assigned(str(user)) else "second")
            assert status == 200 and answer["model_version"] == version_in(expected)
            assert np.allclose(answer["outputs"][0]["data"], pctr(expected)[3], atol=1e-5)
        status, answer = server.ask(INFER, body(request))  # by the group key among the raw values
        assert answer["model_version"] == version_in(
            exported / ("first" if split.is_assigned(str(request.user["user"])) else "second")
        )
        status, answer = server.ask(
            INFER,
            body(
                type(request)(
                    {k: v for k, v in request.user.items() if k != "user"}, request.candidates
                )
            ),
        )
        assert status == 400 and "a request should name its user" in answer["error"]


def test_a_split_has_its_share_and_another_salt_deals_anew() -> None:
    users = [str(i) for i in range(2000)]
    one, other = (
        [TrafficSplit("b", 0.1, salt).is_assigned(user) for user in users]
        for salt in ("one", "other")
    )
    assert (
        abs(sum(one) - 200) < 60 and 5 < sum(a and b for a, b in zip(one, other, strict=True)) < 45
    )  # 4.5 and 3.5 deviations
    assert all(TrafficSplit("b", 1.0).is_assigned(user) for user in users[:50]) and not any(
        TrafficSplit("b", 0.0).is_assigned(user) for user in users[:50]
    )


def test_a_half_copied_version_is_taken_in_when_it_is_whole_and_the_last_is_never_given_up(
    exported: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    publish(exported / "first", root / "a")
    versions = ModelVersions(root, ServerMetrics(), threads=1)
    shutil.copytree(exported / "second", root / "b", ignore=shutil.ignore_patterns("model.onnx"))
    [problem] = versions.refresh()
    assert (
        "should hold 'model.onnx': it is missing" in problem and not versions.refresh()
    )  # said once
    shutil.copy(exported / "second" / "model.onnx", root / "b")
    assert not versions.refresh() and versions.choose("", None).folder == root / "b"
    shutil.rmtree(root / "a")
    shutil.rmtree(root / "b")
    versions.refresh()
    shutil.rmtree(root)
    assert "No such file" in versions.refresh()[0] and len(versions.all) == 1
    [last] = versions.all
    request, scores = read_golden(exported / {"a": "first", "b": "second"}[last.folder.name])[0]
    assert np.abs(last.score(request)["pctr"] - scores["pctr"]).max() <= 1e-5
    with pytest.raises(InvalidRequestError, match="version 'a' should be one of"):
        ModelVersions(exported, ServerMetrics(), threads=1).choose("a", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere"], "none is good"),
        (
            ["--model", "MODELS", "--split", "0.5"],
            "--split should be VERSION=SHARE with a share from 0 to 1, received '0.5'",
        ),
        (["--model", "MODELS", "--split", "first=2"], "a share from 0 to 1, received 'first=2'"),
        (
            ["--model", "MODELS", "--split", "third=0.5"],
            "--split: version 'third' should be one of",
        ),
        (["--model", "MODELS", "--host", "256.0.0.1"], "cannot listen on 256.0.0.1:8080"),
    ],
)
def test_a_server_that_cannot_serve_says_why(
    exported: Path, options: list[str], message: str
) -> None:
    done = CliRunner().invoke(
        main, ["serve", *(str(exported) if option == "MODELS" else option for option in options)]
    )
    assert done.exit_code == 1 and message in done.output and "Traceback" not in done.output
