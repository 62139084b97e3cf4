"""A real Triton serves the repository of the Python backend, and survives bad requests."""

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.requests import Request
from mail_torchrec.triton.repository import RepositoryOptions, write_repository
from tests.serve.test_protocol import as_json
from tests.support.triton_server import CLIENTS, Triton, needs_triton, running_triton
from tools.served import wait_for

pytestmark = needs_triton


@pytest.fixture(scope="module")
def triton(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """Version 2 of `ads` serves, which `second` is; away from all that it was made of."""
    folder = tmp_path_factory.mktemp("triton")
    for version, name in enumerate(["first", "second"], start=1):
        write_repository(
            RepositoryOptions(
                exported / name, folder / "here", "python", "ads", version, max_candidates=40
            )
        )
    shutil.copytree(folder / "here", folder / "repository")
    shutil.rmtree(folder / "here")
    with running_triton(folder / "repository", folder / "log") as found:
        yield found


@pytest.mark.parametrize("client", CLIENTS)
def test_raw_requests_get_the_golden_scores_of_the_greatest_version(
    triton: Triton, exported: Path, client: Any
) -> None:
    for request, scores in read_golden(exported / "second"):
        result = triton.ask(client, as_json(request))
        for name, expected in scores.items():
            assert np.abs(result.as_numpy(name) - [expected]).max() <= 1e-5
    response = result.get_response()
    assert (
        response["model_version"] if client is tritonclient.http else response.model_version
    ) == "2"


BAD = {
    "no JSON": ("{", "should be JSON in UTF-8"),
    "no candidates": (
        '{"user": {}, "candidates": []}',
        "candidates: List should have at least 1 item",
    ),
    "a column that is missing": (
        '{"user": {}, "candidates": [{}]}',
        "user 0 should have a value of column 'age', or null",
    ),
    "too many": (
        json.dumps({"user": {}, "candidates": [{}] * 41}),
        "at most 40 candidates a request, received 41",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("client", CLIENTS)
def test_an_error_is_reported_and_the_next_request_is_served(
    triton: Triton, exported: Path, client: Any, case: str
) -> None:
    text, message = BAD[case]
    with pytest.raises(InferenceServerException) as caught:
        triton.ask(client, text)
    assert caught.value.status() == (
        "400" if client is tritonclient.http else "StatusCode.INVALID_ARGUMENT"
    )
    assert message in caught.value.message()
    request, scores = read_golden(exported / "second")[0]
    assert (
        np.abs(triton.ask(client, as_json(request)).as_numpy("pctr") - [scores["pctr"]]).max()
        <= 1e-5
    )


def test_two_rows_in_one_request_are_refused(triton: Triton, exported: Path) -> None:
    request, _ = read_golden(exported / "second")[0]
    with pytest.raises(InferenceServerException, match="should be one element of BYTES"):
        triton.ask(tritonclient.http, as_json(request), shape=(2, 1))


def test_requests_that_wait_are_joined_and_a_bad_one_among_them_harms_nobody(
    triton: Triton, exported: Path
) -> None:
    golden = read_golden(exported / "second")
    first, _ = golden[0]
    bad = as_json(Request(dict(first.user) | {"city": 3}, first.candidates))
    local = threading.local()

    def ask(i: int) -> float:
        """Computes the difference from the golden scores; 0 for a refused request."""
        if not hasattr(local, "to"):
            local.to = tritonclient.grpc.InferenceServerClient(triton.addresses[tritonclient.grpc])
        request, scores = golden[i % len(golden)]
        tensor = tritonclient.grpc.InferInput("request", [1, 1], "BYTES")
        tensor.set_data_from_numpy(
            np.array([[bad if i % 5 == 4 else as_json(request)]], dtype=object)
        )
        try:
            found = local.to.infer("ads", [tensor])
        except InferenceServerException as error:
            assert i % 5 == 4 and "column 'city' should hold one string or null" in error.message()
            return 0.0
        assert i % 5 != 4
        return max(
            float(np.abs(found.as_numpy(name) - [expected]).max())
            for name, expected in scores.items()
        )

    def all_as_expected_and_some_joined() -> bool:
        assert max(pool.map(ask, range(60))) <= 1e-5
        with tritonclient.grpc.InferenceServerClient(triton.addresses[tritonclient.grpc]) as to:
            [stats] = to.get_inference_statistics("ads").model_stats
        return any(batch.batch_size > 1 for batch in stats.batch_stats)

    with ThreadPoolExecutor(12) as pool:
        wait_for(all_as_expected_and_some_joined)
