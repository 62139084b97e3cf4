"""Compressed requests are answered as plain ones are; decompression is bounded."""

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from hypothesis import given
from hypothesis import strategies as st

from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.serve.content_encoding import content_codings, decompress
from tests.serve.test_protocol import INFER, body
from tools.served import Running, raw

LIMIT = 50_000
"""Of the server's ``--max-bytes``."""


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data, wbits=-zlib.MAX_WBITS)


FORMS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "plain": ("identity", bytes),
    "an empty header": ("", bytes),
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZip", gzip.compress),
    "gzip of several members": (
        "gzip",
        lambda data: b"".join(map(gzip.compress, (data, b"", b""))),
    ),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "both": ("gzip, deflate", lambda data: zlib.compress(gzip.compress(data))),
    "twice": ("identity,gzip,gzip", lambda data: gzip.compress(gzip.compress(data))),
}


@pytest.mark.parametrize(("header", "compress"), FORMS.values(), ids=FORMS)
def test_a_compressed_request_gets_the_golden_scores(
    server: Running, exported: Path, header: str, compress: Callable[[bytes], bytes]
) -> None:
    request, scores = read_golden(exported / "first")[2]
    data = compress(json.dumps(body(request)).encode())
    status, answer = server.ask(INFER, data, **{"Content-Encoding": header})
    assert status == 200
    assert np.abs(np.array(answer["outputs"][0]["data"]) - scores["pctr"]).max() <= 1e-5


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_s_compressed_binary_tensors_are_read(
    server: Running, exported: Path, algorithm: str
) -> None:
    request, scores = read_golden(exported / "first")[2]
    with tritonclient.http.InferenceServerClient(server.http) as client:
        inputs = raw(tritonclient.http, request)
        result = client.infer("ads", inputs, request_compression_algorithm=algorithm)
    assert np.abs(result.as_numpy("pctr") - scores["pctr"]).max() <= 1e-5


PAIRS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "deflate ": raw_deflate,
}


@pytest.mark.parametrize(("header", "compress"), PAIRS.items(), ids=PAIRS)
def test_data_that_is_damaged_cut_or_followed_by_more_is_refused(
    server: Running, header: str, compress: Callable[[bytes], bytes]
) -> None:
    good = compress(b"{" + bytes(range(200)) * 3)
    for data in (b"", good[:-1], good[: len(good) // 2], good + b"x", b"\xff" * 40):
        status, answer = server.ask(INFER, data, **{"Content-Encoding": header})
        assert status == 400 and f"Content-Encoding {header.strip()}: " in answer["error"]


@pytest.mark.parametrize("header", ["br", "zstd", "gzip, compress", "gzip,gzip,gzip", "x" * 9000])
def test_an_unknown_coding_is_refused_by_name(server: Running, header: str) -> None:
    status, answer = server.ask(INFER, b"{}", **{"Content-Encoding": header})
    assert status == 415 and answer["error"].startswith("Content-Encoding should")
    assert len(answer["error"]) < 3000
    assert server.ask("/v2", **{"Content-Encoding": header})[0] == 200  # nothing to decompress


@pytest.mark.parametrize(("header", "compress"), FORMS.values(), ids=FORMS)
def test_the_limit_counts_decompressed_bytes(
    server: Running, header: str, compress: Callable[[bytes], bytes]
) -> None:
    for size, expected in ((LIMIT, 400), (LIMIT + 1, 413)):
        data = compress(b" " * size)
        status, answer = server.ask(INFER, data, **{"Content-Encoding": header})
        assert status == expected
        assert (f"at most {LIMIT} bytes" in answer["error"]) == (expected == 413)


@pytest.mark.parametrize(
    ("codings", "bomb"),
    [
        (["gzip"], gzip.compress(b"0" * 2**25)),
        (["deflate"], raw_deflate(b"0" * 2**25)),
        (["gzip", "gzip"], gzip.compress(gzip.compress(b"0" * 2**25))),
        (["gzip"], gzip.compress(b"") * 2000 + gzip.compress(b"0" * 2**25)),
    ],
)
def test_a_bomb_is_refused_before_it_is_in_memory(codings: list[str], bomb: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(InvalidRequestError) as caught:
        decompress(bomb, codings, 2**16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.status == 413 and peak < 2**20


@given(st.binary(max_size=300), st.lists(st.sampled_from(["gzip", "deflate"]), max_size=2))
def test_what_was_compressed_is_found_again(data: bytes, codings: list[str]) -> None:
    compressed = data
    for coding in codings:
        compressed = gzip.compress(compressed) if coding == "gzip" else zlib.compress(compressed)
    assert decompress(compressed, content_codings([", ".join(codings)]), 1000) == data


@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate"]))
def test_no_bytes_are_a_fault_of_the_server(data: bytes, coding: str) -> None:
    try:
        decompress(data, [coding], 1000)
    except InvalidRequestError as error:
        assert error.status in (400, 413)
