"""Requests in the server are bounded in bytes and number; logs are bounded in lines."""

import logging
import threading

import pytest

from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.serve.limits.admission import Admission
from mail_torchrec.serve.limits.quiet_log import OncePerMinute


def test_bytes_count_as_they_arrive_and_until_the_answer() -> None:
    admission = Admission(max_bytes=100, max_requests=9, workers=1)
    with admission.admit() as one:
        one.add(60)
        with admission.admit() as other:
            other.add(40)
            with pytest.raises(InvalidRequestError, match="its limit; send the request") as caught:
                other.add(1)
        assert caught.value.status == 429
        with admission.admit() as other:
            other.add(40)
    with admission.admit() as one:
        one.add(100)


def test_requests_count_too() -> None:
    admission = Admission(max_bytes=100, max_requests=1, workers=1)
    with (
        admission.admit(),
        pytest.raises(InvalidRequestError, match="working on 1 requests"),
        admission.admit(),
    ):
        pass
    with admission.admit():
        pass


def test_no_more_requests_are_computed_at_once_than_there_are_workers() -> None:
    admission, go, at_work = Admission(1, 9, workers=2), threading.Event(), []

    def work() -> int:
        at_work.append(1)
        assert go.wait(30)
        return len(at_work)

    futures = [admission.submit(work) for _ in range(6)]
    while len(at_work) < 2:
        pass
    assert len(at_work) == 2
    go.set()
    assert max(future.result(30) for future in futures) == 6


def test_a_line_of_log_that_clients_can_cause_comes_once_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("mail_torchrec.serve.limits.quiet_log.time.monotonic", lambda: now)
    logger, lines = logging.Logger("one"), list[str]()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(record.getMessage()))
    logger.addHandler(handler)
    logger.addFilter(OncePerMinute())
    for now in (1000.0, 1001.0, 1059.0, 1061.0):
        logger.error("no file for %d", now)
    logger.error("another line")
    assert lines == [
        "no file for 1000",
        "no file for 1061 (and 2 like it since the last one)",
        "another line",
    ]
