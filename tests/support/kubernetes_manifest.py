"""What launch/kubernetes/train.yaml asks of a cluster."""

from typing import Any

import yaml

from tests.support.hosts import ROOT

MANIFEST = ROOT / "launch" / "kubernetes" / "train.yaml"


def resources() -> dict[str, dict[str, Any]]:
    """The resources of the manifest by kind."""
    return {resource["kind"]: resource for resource in yaml.safe_load_all(MANIFEST.read_text())}


def pod() -> dict[str, Any]:
    """The specification of the job's pods."""
    spec: dict[str, Any] = resources()["Job"]["spec"]["template"]["spec"]
    return spec
