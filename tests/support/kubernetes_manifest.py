"""Reads the resources of launch/kubernetes/train.yaml."""

from typing import Any

import yaml

from tests.support.hosts import ROOT

MANIFEST = ROOT / "launch" / "kubernetes" / "train.yaml"


def resources() -> dict[str, dict[str, Any]]:
    """Returns the resources of the manifest by kind."""
    return {resource["kind"]: resource for resource in yaml.safe_load_all(MANIFEST.read_text())}


def pod() -> dict[str, Any]:
    """Returns the specification of the job's pods."""
    spec: dict[str, Any] = resources()["Job"]["spec"]["template"]["spec"]
    return spec
