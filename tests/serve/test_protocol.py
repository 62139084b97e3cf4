"""Golden requests by real clients get the golden scores; bad requests are refused."""

import json
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from hypothesis import given, settings
from hypothesis import strategies as st

from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.requests import Request
from mail_torchrec.inference.scorer import Scorer
from tests.support.exported_models import version_in
from tools.served import Running, as_json, raw, tensors

INFER = "/v2/models/ads/infer"
CLIENTS = [tritonclient.http, tritonclient.grpc]


def body(request: Request, **more: Any) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "request", "datatype": "BYTES", "shape": [1], "data": [as_json(request)]}
        ]
    } | more


def connect(client: Any, server: Running) -> Any:
    return client.InferenceServerClient(server.http if client is tritonclient.http else server.grpc)


@pytest.mark.parametrize("client", CLIENTS)
def test_raw_requests_get_the_golden_scores_from_tritonclient(
    server: Running, exported: Path, client: Any
) -> None:
    with connect(client, server) as to:
        for request, scores in read_golden(exported / "first"):
            result = to.infer("ads", raw(client, request))
            for name, expected in scores.items():
                assert np.abs(result.as_numpy(name) - expected).max() <= 1e-5


@pytest.mark.parametrize("client", CLIENTS)
def test_encoded_tensors_of_several_users_get_them_too_with_vectors_on_demand(
    server: Running, exported: Path, client: Any
) -> None:
    golden, scorer = read_golden(exported / "first"), Scorer(exported / "first")
    encoded = scorer.encode([request for request, _ in golden[:4]])
    names = ["pctcvr", "history.virtual"]
    with connect(client, server) as to:
        wishes = [client.InferRequestedOutput(name) for name in names]
        result = to.infer(
            "ads", tensors(client, encoded), outputs=wishes, model_version=scorer.manifest.version
        )
    assert (
        np.abs(
            result.as_numpy("pctcvr")
            - np.concatenate([scores["pctcvr"] for _, scores in golden[:4]])
        ).max()
        <= 1e-5
    )
    assert np.allclose(
        result.as_numpy("history.virtual"), scorer.run(encoded, names)["history.virtual"], atol=1e-5
    )


@pytest.mark.parametrize("client", CLIENTS)
def test_health_and_metadata_are_those_of_the_manifest(
    server: Running, exported: Path, client: Any
) -> None:
    with connect(client, server) as to:
        assert to.is_server_live() and to.is_server_ready() and to.is_model_ready("ads")
        metadata = to.get_model_metadata(
            "ads", **({} if client is tritonclient.http else {"as_json": True})
        )
    assert metadata["versions"] == [version_in(exported / "first")]
    assert [entry["name"] for entry in metadata["inputs"]] == [
        "request",
        *(spec.name for spec in Scorer(exported / "first").manifest.inputs),
    ]
    outputs = {
        entry["name"]: (entry["datatype"], [int(size) for size in entry["shape"]])
        for entry in metadata["outputs"]
    }
    assert outputs == {
        **dict.fromkeys(("pctr", "pcvr", "pctcvr"), ("FP32", [-1])),
        "history.virtual": ("FP32", [-1, 6, 8]),
        **dict.fromkeys(("history.user", "history.item"), ("FP32", [-1, 8])),
    }


def test_plain_json_gets_the_golden_scores_and_the_version(server: Running, exported: Path) -> None:
    request, scores = read_golden(exported / "first")[2]
    status, answer = server.ask(INFER, body(request, id="7", outputs=[{"name": "pcvr"}]))
    assert (
        status == 200
        and answer["id"] == "7"
        and answer["model_version"] == version_in(exported / "first")
    )
    [output] = answer["outputs"]
    assert (
        output["name"] == "pcvr" and np.abs(np.array(output["data"]) - scores["pcvr"]).max() <= 1e-5
    )


def changed(exported: Path, **arrays: Any) -> dict[str, Any]:
    """A call of encoded tensors as JSON, some of them changed."""
    scorer = Scorer(exported / "first")
    encoded = scorer.encode([read_golden(exported / "first")[0][0]]) | arrays
    names = {"int64": "INT64", "float32": "FP32", "bool": "BOOL"}
    inputs = [
        {
            "name": name,
            "datatype": names[str(array.dtype)],
            "shape": list(array.shape),
            "data": array.tolist(),
        }
        for name, array in encoded.items()
    ]
    return {"inputs": inputs}


def with_data(exported: Path, name: str, data: list[Any]) -> dict[str, Any]:
    """A call of encoded tensors, the JSON of one changed."""
    call = changed(exported)
    return {
        "inputs": [
            entry | ({"data": data} if entry["name"] == name else {}) for entry in call["inputs"]
        ]
    }


def with_user(exported: Path, **values: Any) -> dict[str, Any]:
    request = read_golden(exported / "first")[0][0]
    return body(Request(dict(request.user) | values, request.candidates))


def raw_text(text: str) -> dict[str, Any]:
    return {"inputs": [{"name": "request", "datatype": "BYTES", "shape": [1], "data": [text]}]}


BAD: dict[str, tuple[Callable[[Path], Any], int, str]] = {
    "no JSON": (lambda _: b"{", 400, "should be JSON in UTF-8"),
    "no UTF-8": (lambda _: b"\xff\xfe\x00", 400, "should be JSON in UTF-8"),
    "nested": (lambda _: b"[" * 40_000, 400, "recursion limit exceeded"),
    "no inputs": (lambda _: {}, 400, "inputs: Field required"),
    "a NaN": (
        lambda _: b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [NaN]}]}',
        400,
        "should be JSON in UTF-8 (null where a value is missing)",
    ),
    "beyond float32": (
        lambda e: with_data(e, "income", [1e39]),
        400,
        "input 'income' should be finite",
    ),
    "strings for numbers": (
        lambda e: with_data(e, "city", ["1"]),
        400,
        "input 'city': 'data' should be INT64, received other values",
    ),
    "an unknown key": (lambda e: changed(e) | {"x": 1}, 400, "x: Extra inputs"),
    "a negative id": (
        lambda e: changed(e, city=np.array([-1])),
        400,
        "input 'city' should be at least 0, received -1",
    ),
    "an id too large": (
        lambda e: changed(e, city=np.array([99])),
        400,
        "input 'city' should be at most 5, received 99",
    ),
    "another type": (
        lambda e: changed(e, city=np.array([1.0], np.float32)),
        400,
        "input 'city' should be INT64, received FP32",
    ),
    "another shape": (
        lambda e: changed(e, city=np.array([[1]])),
        400,
        "input 'city' should have the shape ['users'], received [1, 1]",
    ),
    "two sizes": (lambda e: changed(e, city=np.array([1, 1])), 400, "with users = 1, received [2]"),
    "nobody's candidate": (
        lambda e: changed(e, **{"candidate.user": np.array([1])}),
        400,
        "'candidate.user' should be below 1",
    ),
    "an unknown input": (lambda e: changed(e, shoe=np.array([1])), 400, "unknown: ['shoe']"),
    "raw: a wrong type": (
        lambda e: with_user(e, city=3),
        400,
        "user: column 'city' should hold one string or null",
    ),
    "raw: an unknown column": (
        lambda e: with_user(e, shoe=3),
        400,
        "column 'shoe' is none of this model's",
    ),
    "raw: a NaN": (
        lambda _: raw_text('{"user": {"income": NaN}, "candidates": [{}]}'),
        400,
        "should be JSON in UTF-8 (null where a value is missing)",
    ),
    "raw: a number that overflows": (
        lambda e: with_user(e, income=-1.6e283),
        400,
        "should be finite, and is not: numbers of the request are too large",
    ),
    "raw: no candidates": (
        lambda _: raw_text('{"user": {}, "candidates": []}'),
        400,
        "candidates: List should have at least 1 item",
    ),
    "too many candidates": (
        lambda _: raw_text(json.dumps({"user": {}, "candidates": [{}] * 41})),
        413,
        "at most 40 candidates",
    ),
    "too many bytes": (lambda _: b" " * 50_001, 413, "at most 50000 bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_with_the_reason(
    server: Running, exported: Path, case: str
) -> None:
    make, expected, message = BAD[case]
    status, answer = server.ask(INFER, make(exported))
    assert status == expected and message in answer["error"], answer
    request, _ = read_golden(exported / "first")[0]
    assert server.ask(INFER, body(request))[0] == 200


def test_other_models_versions_outputs_paths_and_methods_are_refused(
    server: Running, exported: Path
) -> None:
    good = body(read_golden(exported / "first")[0][0])
    assert server.ask("/v2/models/other/infer", good)[0] == 404
    assert (
        server.ask("/v2/models/ads/versions/9/infer", good)[0]
        == 404
        == server.ask("/v2/models/ads/versions/9")[0]
    )
    assert server.ask("/nowhere")[0] == 404 and server.ask(INFER)[0] == 405
    status, answer = server.ask(INFER, good | {"outputs": [{"name": "pay"}]})
    assert status == 400 and "output 'pay' should be one of pctr, pcvr, pctcvr" in answer["error"]


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("ads", "{", "INVALID_ARGUMENT"),
        ("other", "{}", "NOT_FOUND"),
        ("ads", " " * 50_001, "RESOURCE_EXHAUSTED"),
    ],
)
def test_grpc_has_a_status_for_each(server: Running, name: str, text: str, code: str) -> None:
    client = tritonclient.grpc
    with (
        connect(client, server) as to,
        pytest.raises(tritonclient.grpc.InferenceServerException) as caught,
    ):
        to.infer(name, tensors(client, {"request": np.array([text], dtype=object)}))
    assert caught.value.status() == f"StatusCode.{code}"


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["BYTES", "INT64", "FP32", "BOOL"])
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["request", "city", "x"]),
        "shape": st.lists(st.integers(), max_size=3) | VALUES,
        "datatype": LEAVES,
    },
    optional={"data": VALUES, "parameters": st.dictionaries(st.just("binary_data_size"), LEAVES)},
)
BODIES = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=2)},
    optional={"outputs": VALUES, "parameters": VALUES, "id": LEAVES},
)


@settings(max_examples=150)
@given(BODIES | VALUES, st.none() | st.integers(0, 200) | st.text("0123456789-x²", max_size=4))
def test_no_body_is_a_fault_of_the_server(
    server: Running, content: Any, json_length: int | str | None
) -> None:
    headers = (
        {}
        if json_length is None
        else {
            "Inference-Header-Content-Length": str(json_length)
            .encode("latin-1", "ignore")
            .decode("latin-1")
        }
    )
    status, answer = server.ask(INFER, json.dumps(content).encode(), **headers)
    assert status in (400, 413) and answer["error"]


def test_the_description_lists_what_there_is(server: Running) -> None:
    status, described = server.ask("/openapi.json")
    assert status == 200 and described["openapi"].startswith("3.")
    for path, item in described["paths"].items():
        if "get" in item and "{" not in path:
            assert server.ask(path)[0] == 200, path
    assert {"inputs", "outputs"} <= described["components"]["schemas"]["InferenceRequest"][
        "properties"
    ].keys()


def test_metrics_count_new_users_unknown_ids_and_refusals(server: Running, exported: Path) -> None:
    golden, version = read_golden(exported / "first"), version_in(exported / "first")
    before = server.metrics()
    new = next(request for request, _ in golden if not request.user["history"])
    unseen = golden[-1][0]
    for request in (new, new, unseen):
        assert server.ask(INFER, body(request))[0] == 200
    assert server.ask(INFER, {})[0] == 400
    after = server.metrics()

    def more(key: str) -> float:
        return after[key] - before.get(key, 0)

    assert more(f'mail_users_total{{kind="new",version="{version}"}}') == 2
    assert more(f'mail_users_total{{kind="old",version="{version}"}}') == 1
    assert more(f'mail_candidates_total{{version="{version}"}}') == 2 * len(new.candidates) + len(
        unseen.candidates
    )
    assert (
        more(f'mail_ids_total{{column="history",version="{version}"}}')
        == more(f'mail_unknown_ids_total{{column="history",version="{version}"}}')
        == 6
    )
    assert more(f'mail_unknown_ids_total{{column="city",version="{version}"}}') == 1
    assert more(f'mail_request_seconds_count{{version="{version}"}}') == 3
    assert more('mail_refused_total{status="400"}') == 1


def test_an_idle_connection_is_kept(server: Running) -> None:
    """Load balancers keep connections for minutes; requests into a closing one are lost."""
    connection = HTTPConnection(server.http)
    for pause in (6, 0):
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().read() and connection.sock is not None
        connection.auto_open = 0  # no second connection
        time.sleep(pause)
