"""Versions of packages, installed or not."""

import tomllib
from importlib.metadata import PackageNotFoundError

import pytest
import torch

import mail_torchrec
from mail_torchrec.utils import formats
from tests.support.preloaded import ROOT


def test_the_version_of_the_sources_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert mail_torchrec.__version__ == project["version"]
    assert formats.package_version("mail-torchrec") == project["version"]


def test_a_tree_of_sources_alone_has_versions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(formats, "version", missing)
    assert formats.package_version("mail-torchrec") == mail_torchrec.__version__
    assert formats.package_version("torch") == torch.__version__
    assert formats.package_version("string") == "unknown"
