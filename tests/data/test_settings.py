"""Paths of the data settings."""

import pytest

from mail_torchrec.data.settings import DataSettings


@pytest.mark.parametrize(
    ("root", "path"),
    [("", "train"), ("x", "x/train"), ("x/", "x/train"), ("s3://b/c", "s3://b/c/train")],
)
def test_paths_below_the_root(root: str, path: str) -> None:
    assert DataSettings(root=root).path("train") == path
