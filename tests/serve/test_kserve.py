"""KServe's manifests follow Kubernetes' schema, and the command in the first one serves."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launch.test_kubernetes import VERSIONS, check
from tests.support.exported_models import version_in
from tests.support.kubernetes_manifest import resources
from tools.served import ROOT, running

OF_KSERVE = {"modelFormat", "protocolVersion", "runtime", "storageUri"}


def predictor(name: str) -> dict[str, Any]:
    """Reads a manifest's predictor; KServe has these keys beside those of a pod."""
    resource = yaml.safe_load((ROOT / "launch" / "kubernetes" / name).read_text())
    assert (resource["apiVersion"], resource["kind"], set(resource["spec"])) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
        {"predictor"},
    )
    found: dict[str, Any] = resource["spec"]["predictor"]
    assert found.pop("minReplicas") == 1
    return found


def pod_of(containers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "mail"},
        "spec": {"containers": containers},
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_the_containers_follow_the_schema(version: str) -> None:
    own, triton = predictor("serve.yaml"), predictor("triton.yaml")
    check(pod_of(own.pop("containers")), version)
    model = triton.pop("model")
    assert OF_KSERVE <= model.keys()
    check(
        pod_of(
            [
                {key: model[key] for key in model.keys() - OF_KSERVE}
                | {"name": "kserve-container", "image": "triton"}
            ]
        ),
        version,
    )
    assert not own and not triton


def test_both_mount_the_claim_that_the_training_writes_to() -> None:
    claim = resources()["PersistentVolumeClaim"]["metadata"]["name"]
    [container] = predictor("serve.yaml")["containers"]
    for uri in (container["env"][0]["value"], predictor("triton.yaml")["model"]["storageUri"]):
        assert uri.startswith(f"pvc://{claim}/")


def test_the_command_serves_where_the_probes_look(exported: Path, tmp_path: Path) -> None:
    [container] = predictor("serve.yaml")["containers"]
    [program], [command, *options] = container["command"], container["args"]
    assert (program, command) == ("mail-torchrec", "serve")
    assert (
        "--model=/mnt/models" in options and "--host=0.0.0.0" in options
    )  # where KServe mounts, and what its proxy reaches
    probes = [container[probe]["httpGet"] for probe in ("readinessProbe", "livenessProbe")]
    [port] = container["ports"]
    assert f"--http-port={port['containerPort']}" in options and {
        probe["port"] for probe in probes
    } == {port["containerPort"]}
    model = exported / "first"
    here = [f"--model={model}", "--host=127.0.0.1", "--http-port=0", "--grpc-port=0"]
    with running(model, tmp_path / "log", *options, *here) as server:
        assert [server.ask(probe["path"])[0] for probe in probes] == [200, 200]
        assert server.ask("/v2/models/mail")[1]["versions"] == [version_in(model)]
