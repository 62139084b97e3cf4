"""A server that follows what is published, in an S3 server too; faults change nothing it serves."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.publishing.command import publish
from mail_torchrec.publishing.follower import CURRENT, Follower
from mail_torchrec.publishing.store import Store
from mail_torchrec.serve import command
from mail_torchrec.serve.versions import LOG, ModelVersions
from tests.serve.test_rollout import count, served
from tests.support.exported_models import version_in
from tests.support.object_store import object_store
from tools.served import Running, as_json, make_bad_version, running, wait_for

URL = "/v2/models/ads/infer"
COUNTER = 'mail_version_loads_total{result="not_fetched"}'


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    LOG.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    yield caplog
    LOG.removeHandler(caplog.handler)


def follow(place: Path, root: Path) -> tuple[ModelVersions, Follower, Callable[[], None]]:
    """Versions that follow a place, and one poll of theirs."""
    root.mkdir()
    follower = Follower(Store.open(str(place), "--model"), root)
    follower.update()
    versions = served(follower.current)
    return versions, follower, lambda: command._scan(versions, follower)


def serving(versions: ModelVersions) -> str:
    return versions.choose("", None).manifest.version


def infer(server: Running, folder: Path) -> tuple[str, list[float]]:
    """Scores a golden request; returns the version and the probabilities."""
    request, scores = read_golden(folder)[0]
    tensor = {"name": "request", "datatype": "BYTES", "shape": [1], "data": [as_json(request)]}
    status, answer = server.ask(URL, {"inputs": [tensor]})
    assert status == 200, answer
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    return answer["model_version"], outputs[next(iter(scores))]


@pytest.mark.slow
def test_a_server_follows_an_object_store_and_survives_it(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--name", "ads", "--threads", "1", "--poll", "0.2", "--cache", str(tmp_path / "c"))
    log = tmp_path / "log"
    with object_store() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        place = store.uri("ads", user="")
        publish(exported / "first", place)
        with running(place, log, *options) as server:
            for folder in (exported / "first", exported / "second", exported / "first"):
                publish(folder, place)
                wait_for(lambda folder=folder: infer(server, folder)[0] == version_in(folder))
                scores = next(iter(read_golden(folder)[0][1].values()))
                assert infer(server, folder)[1] == pytest.approx(scores, abs=1e-5)
            first = version_in(exported / "first")
            wait_for(lambda: {CURRENT, first} == visible(tmp_path / "c/versions"))
            assert COUNTER not in server.metrics()
    with running(place, log, *options) as server:  # the store is down
        assert infer(server, exported / "first")[0] == first
        wait_for(lambda: server.metrics().get(COUNTER) == 1)
    assert log.read_text().count("'s3://clicks/ads/current.json' cannot be read") == 2
    assert store.secret not in log.read_text()


def visible(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if not path.name.startswith(".")}


def test_what_cannot_be_fetched_is_told_once_until_it_can(
    exported: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "published"
    publish(exported / "first", str(place))
    versions, _, poll = follow(place, tmp_path / "cache")
    for outage in (1, 2):
        (place / "current.json").rename(tmp_path / "aside")
        for _ in range(3):
            poll()
        assert count(versions, "not_fetched") == outage
        (tmp_path / "aside").rename(place / "current.json")
        poll()
    version = version_in(exported / "first")
    assert f"publish a full export there; version {version} goes on serving" in log.text
    assert serving(versions) == version


def test_a_bad_version_that_was_published_is_refused_and_the_next_one_serves(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, bad = tmp_path / "published", tmp_path / "bad"
    make_bad_version(exported / "first", bad, created="2997-01-01T00:00:00+00:00")
    publish(exported / "first", str(place))
    versions, follower, poll = follow(place, tmp_path / "cache")
    first, second = version_in(exported / "first"), version_in(exported / "second")
    with pytest.raises(ValueError, match=r"differ by 0\.05 .*; no server would take it"):
        publish(bad, str(place))
    monkeypatch.setattr(Scorer, "check_golden", lambda _: None)
    publish(bad, str(place))
    monkeypatch.undo()
    poll()
    poll()
    assert serving(versions) == first and count(versions, "refused") == 1
    publish(exported / "second", str(place))
    poll()
    poll()
    assert serving(versions) == second
    assert visible(follower.root) == {CURRENT, second}


def test_a_folder_is_deleted_when_the_last_request_of_its_version_has_ended(
    exported: Path, tmp_path: Path
) -> None:
    place = tmp_path / "published"
    publish(exported / "first", str(place))
    versions, follower, poll = follow(place, tmp_path / "cache")
    request = versions.choose("", None)  # begun, and not ended
    publish(exported / "second", str(place))
    for _ in range(3):
        poll()
    first, second = version_in(exported / "first"), version_in(exported / "second")
    assert serving(versions) == second and visible(follower.root) == {CURRENT, first, second}
    request.check_golden()
    del request
    poll()
    assert visible(follower.root) == {CURRENT, second}


def test_a_link_to_a_version_that_was_never_good_chooses_nothing(
    exported: Path, tmp_path: Path
) -> None:
    make_bad_version(exported / "first", tmp_path / "bad", created="2999-01-01T00:00:00+00:00")
    (tmp_path / "good").symlink_to(exported / "first")
    (tmp_path / CURRENT).symlink_to("bad")
    assert serving(served(tmp_path)) == version_in(exported / "first")


def test_a_long_download_is_not_a_stalled_scan(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "published"
    publish(exported / "first", str(place))
    versions, follower, _ = follow(place, tmp_path / "cache")
    ended, goes_on = threading.Event(), threading.Event()

    def download(in_use: object) -> None:
        goes_on.set()
        while not ended.wait(0.005):
            follower.num_bytes += 1 if goes_on.is_set() else 0

    monkeypatch.setattr(follower, "update", download)
    monkeypatch.setattr(command, "_STALLED_SECONDS", 0.2)
    stop = command._start_watcher(versions, 0.05, follower)
    assert goes_on.wait(30)
    assert not ended.wait(0.7) and count(versions, "stalled") == 0
    goes_on.clear()
    wait_for(lambda: count(versions, "stalled") > 0)
    stop.set()
    ended.set()
