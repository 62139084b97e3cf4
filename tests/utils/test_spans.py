"""Spans: words of the watchdog, ranges of the profiler, seconds of the collector."""

import subprocess
import sys
import time
from threading import Thread

import pytest
import torch

from mail_torchrec.utils.spans import collect_spans, current_span, reset_spans, span


def test_nested_names_are_told_and_an_error_keeps_its_own() -> None:
    reset_spans()
    with span("training"):
        with span("step 1"), span("input", patient=True):
            assert current_span().name == "training, step 1, input" and current_span().patient
        assert current_span().name == "training" and not current_span().patient
        with pytest.raises(KeyError), span("step 2"):
            raise KeyError
        assert current_span().name == "training, step 2"
    reset_spans()


def test_other_threads_do_not_change_the_main_threads_span() -> None:
    seen: list[str] = []

    def work() -> None:
        with span("writing"):
            seen.append(current_span().name)

    with span("training"):
        thread = Thread(target=work)
        thread.start()
        thread.join()
        assert seen == ["training"] == [current_span().name]
    reset_spans()


def test_a_running_profiler_shows_each_span_by_its_own_name() -> None:
    with torch.profiler.profile() as profile:
        with span("step 1"), span("backward"):
            torch.ones(3) + 1
        with pytest.raises(ValueError, match="x"), span("optimizer"):
            raise ValueError("x")
    reset_spans()
    assert {"step 1", "backward", "optimizer"} <= {event.key for event in profile.key_averages()}


def test_the_collector_sums_self_time_by_name() -> None:
    with span("outside"), collect_spans(torch.device("cpu")) as seconds:
        for _ in range(2):
            with span("ranking"):
                time.sleep(0.05)
                with span("communication"):
                    time.sleep(0.1)
        with pytest.raises(KeyError), span("backward"):
            raise KeyError
        reset_spans()
    with span("lookup"):
        pass
    assert seconds.keys() == {"ranking", "communication", "backward"}
    assert 0.1 <= seconds["ranking"] < 0.2 <= seconds["communication"]
    reset_spans()


def test_spans_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from mail_torchrec.utils.spans import collect_spans, span\n"
        "with collect_spans() as seconds, span('input'): pass\n"
        "assert 'torch' not in sys.modules and seconds['input'] >= 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
