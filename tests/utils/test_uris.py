"""URIs of data, and their credentials."""

import pytest

from mail_torchrec.utils.uris import join_path, redact, without_credentials


@pytest.mark.parametrize(
    ("root", "joined"),
    [
        ("", "train"),
        ("x", "x/train"),
        ("x/", "x/train"),
        ("/x?y#z", "/x?y#z/train"),  # a folder of that name
        ("s3://b/c", "s3://b/c/train"),
        ("s3://b/c?region=r&scheme=http", "s3://b/c/train?region=r&scheme=http"),
        ("s3://k:s@b/c/?endpoint_override=h:1/", "s3://k:s@b/c/train?endpoint_override=h:1/"),
        ("s3://b?region=r", "s3://b/train?region=r"),
        ("s3://b/c#part", "s3://b/c/train#part"),
        ("file:///c?x=1#y", "file:///c/train?x=1#y"),
    ],
)
def test_a_part_goes_in_front_of_the_options(root: str, joined: str) -> None:
    assert join_path(root, "train") == joined


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://key:SECRET@b/c?region=r", "s3://b/c?region=r"),
        ("s3://SECRET@b/c", "s3://b/c"),
        ("s3://key:SEC/RET+x@b/c?region=r", "s3://b/c?region=r"),  # not percent-encoded
        ("s3://key:SE?C#RET@b/c", "s3://b/c"),
        ("s3://key:SEC@RET@b/c", "s3://b/c"),
        ("s3://b/c?secret_key=SECRET&region=r&session_token=SECRET", "s3://b/c?region=r"),
        ("s3://b/c?X-Amz-Signature=SECRET&X-Amz-Credential=SECRET", "s3://b/c"),
        ("s3://b/c?region=r&password=SECRET#SECRET", "s3://b/c?region=r"),
        ("s3://b/c?proxy=http%3A%2F%2Fme%3ASECRET%40h&region=r", "s3://b/c?region=r"),
        ("https://a.blob/c?sv=1&sig=SECRET", "https://a.blob/c?sv=1"),
        ("gs://anonymous@b/c?project_id=p", "gs://anonymous@b/c?project_id=p"),
        ("abfss://c:SECRET@a.dfs.net/p?client_secret=SECRET", "abfss://c@a.dfs.net/p"),
        ("abfs://c@a.net/p?credential_kind=cli", "abfs://c@a.net/p?credential_kind=cli"),
        ("hdfs://me@h:8020/p", "hdfs://me@h:8020/p"),
        ("fsspec+sftp://me:SECRET@h/p", "fsspec+sftp://me@h/p"),
        ("fsspec+github://org:SECRET@repo/p", "fsspec+github://repo/p"),
        ("s3://b:9000/a:b@c", "s3://b:9000/a:b@c"),
        ("http://[::1]:80/p", "http://[::1]:80/p"),
        ("/data/a:b@c?key=1", "/data/a:b@c?key=1"),
    ],
)
def test_only_credentials_are_taken_out(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown
    text = "no data at '{0}': set 'data.root={0}', {0}"
    assert redact(text.format(uri)) == text.format(shown)


def test_a_uri_that_a_message_cut_shows_nothing_of_its_secret() -> None:
    assert redact("input_value='s3://key:SECR...region=r', type") == "input_value='s3://***', type"


def test_a_quote_in_a_secret_does_not_end_its_uri() -> None:
    assert redact("at 's3://key:SEC'RET@b/c': x") == "at 's3://b/c': x"
