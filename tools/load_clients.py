"""Clients of load_serving.py and bench_deltas.py: processes that check every score they get."""

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer
from tools.served import raw, tensors

NAME = "load"
"""Name of the served model."""
PROTOCOLS = {"REST": tritonclient.http, "gRPC": tritonclient.grpc}
NUM_CANDIDATES = (1, 20, 100, 500)
TOLERANCE = 1e-5
Expected = dict[str, list[Any]]
"""By version, the probabilities of each case, one array [candidates] for each output."""


@dataclass(frozen=True)
class Case:
    """One call: a request sent raw, or several requests encoded."""

    requests: list[Request]
    is_encoded: bool = False

    @property
    def num_candidates(self) -> int:
        """Number of candidates of all users."""
        return sum(len(request.candidates) for request in self.requests)


@dataclass
class ClientReport:
    """Results of one client."""

    protocol: str
    seconds: list[float] = field(default_factory=list)
    """Latency of each response."""
    ends: list[float] = field(default_factory=list)
    """Time of each response, on the clock of ``time.perf_counter``, which all processes share."""
    max_difference: float = 0.0
    """Largest difference of a score from the one that was expected."""
    candidates: int = 0
    """Candidates sent."""
    responses: Counter[str] = field(default_factory=Counter)
    """Responses of each version."""
    failures: list[str] = field(default_factory=list)


def make_cases(folder: Path) -> list[Case]:
    """Mixes golden requests, their users with more candidates, and several users at once."""
    requests = [request for request, _ in read_golden(folder)]
    pool = [candidate for request in requests for candidate in request.candidates]
    cases = [Case([request]) for request in requests]
    for i, request in enumerate(requests):
        count = NUM_CANDIDATES[i % len(NUM_CANDIDATES)]
        candidates = [pool[(i + j) % len(pool)] for j in range(count)]
        cases.append(Case([Request(request.user, candidates)]))
    return [*cases, Case(requests[:2], is_encoded=True), Case(requests, is_encoded=True)]


def expected_scores(folder: Path, cases: list[Case]) -> list[Any]:
    """Lists the scores of each case by a version.

    Those of golden requests are the trainer's, the others ONNX Runtime's in this process.
    """
    scorer = Scorer(folder, threads=1)
    if (difference := scorer.max_difference()) > TOLERANCE:
        raise ValueError(
            f"'{folder}' should have its golden scores, they differ by {difference:.2g}"
        )
    golden = [[np.array(values) for values in scores.values()] for _, scores in read_golden(folder)]
    others = [
        list(scorer.run(scorer.encode(case.requests)).values()) for case in cases[len(golden) :]
    ]
    return golden + others


def run_client(
    address: str,
    report: ClientReport,
    model: Path,
    cases: list[Case],
    expected: Expected,
    stop: Any,
    count: Any,
    results: Any,
) -> None:
    """Sends one call after another until it is stopped; the main function of a process.

    Args:
        address: address of the server.
        report: report to fill in.
        model: folder of an exported model, which encodes.
        cases: calls to choose from.
        expected: scores of each version.
        stop: event that ends the client.
        count: shared counter of calls.
        results: queue for the report.
    """
    library, scorer = PROTOCOLS[report.protocol], Scorer(model, threads=1, verify=False)
    random = np.random.default_rng(os.getpid())
    with library.InferenceServerClient(address) as to:
        while not stop.is_set():
            i = int(random.integers(len(cases)))
            if cases[i].is_encoded:
                inputs = tensors(library, scorer.encode(cases[i].requests))
            else:
                inputs = raw(library, cases[i].requests[0])
            _send(to, inputs, i, report, expected, scorer.scores)
            report.candidates += cases[i].num_candidates
            with count.get_lock():
                count.value += 1
    results.put(report)


def _send(
    to: Any,
    inputs: list[Any],
    case: int,
    report: ClientReport,
    expected: Expected,
    names: list[str],
) -> None:
    """Sends one call, takes its time, compares its scores."""
    start = time.perf_counter()
    try:
        result = to.infer(NAME, inputs)
        end = time.perf_counter()
        report.seconds.append(end - start)
        report.ends.append(end)
        response = result.get_response()
        is_json = isinstance(response, dict)
        version = response["model_version"] if is_json else response.model_version
        difference = max(
            float(np.abs(result.as_numpy(name) - scores).max())
            for name, scores in zip(names, expected[version][case], strict=True)
        )
    except Exception as error:  # every error is a failure of the server
        report.failures.append(f"{report.protocol}, case {case}: {type(error).__name__}: {error}")
        return
    report.responses[version] += 1
    report.max_difference = max(report.max_difference, difference)
    if not difference <= TOLERANCE:
        report.failures.append(
            f"{report.protocol}, case {case}: version {version} is {difference:.2g} away from its "
            "scores"
        )
