"""Jobs for Kubernetes follow its schemas and fit together; jobs for AWS Batch ask as told."""

import re
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.hosts import ROOT, environment
from tests.support.kubernetes_manifest import pod, resources
from tests.support.pages import commands

VERSIONS = ["1.31", "1.37"]


def check(resource: dict[str, Any], version: str) -> None:
    """Raises where the schema of that version of Kubernetes lacks a key or wants another value."""
    kubernetes_validate.validate(resource, version, strict=True)


def requested(scheduler: str) -> dict[str, Any]:
    """Runs the README's dry run of a scheduler, and returns the request it would submit."""
    [words] = commands(f'torchx run --dryrun --workspace "" -s {scheduler}')
    done = subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    request: dict[str, Any] = yaml.safe_load(done.stdout.partition("=== SCHEDULER REQUEST ===")[2])
    return request


@pytest.fixture(scope="module")
def volcano_job() -> dict[str, Any]:
    """The job that TorchX makes."""
    return requested("kubernetes")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "Service", "Job"])
def test_the_manifest_follows_the_schema(kind: str, version: str) -> None:
    check(resources()[kind], version)


def test_the_check_sees_a_misspelt_key() -> None:
    job = resources()["Job"]
    job["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolice"):
        check(job, VERSIONS[-1])


def test_the_parts_of_the_manifest_fit_together() -> None:
    parts, [container] = resources(), pod()["containers"]
    job, service = parts["Job"], parts["Service"]
    name = job["metadata"]["name"]
    options = dict(re.findall(r"^--([a-z-]+)=(.*)$", "\n".join(container["args"]), re.MULTILINE))
    assert int(options["nnodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(options["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod()["subdomain"] == service["metadata"]["name"]
    port = service["spec"]["ports"][0]["port"]
    assert options["rdzv-endpoint"] == f"{name}-0.{pod()['subdomain']}:{port}"
    assert container["ports"][0]["containerPort"] == port
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod()["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert claims == [parts["PersistentVolumeClaim"]["metadata"]["name"]]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod()["volumes"]
    }
    [mounted] = [
        mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "mail"
    ]
    assert all(options[option].startswith(f"{mounted}/") for option in ("config", "run-dir"))
    assert "--resume" in container["args"]


@pytest.mark.parametrize("version", VERSIONS)
def test_torchx_s_job_has_pods_that_follow_the_schema(
    volcano_job: dict[str, Any], version: str
) -> None:
    job = volcano_job
    assert (job["apiVersion"], job["kind"], len(job["spec"]["tasks"])) == (
        "batch.volcano.sh/v1alpha1",
        "Job",
        2,
    )
    for task in job["spec"]["tasks"]:
        check(
            {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": {"name": task["name"]},
                "template": task["template"],
            },
            version,
        )


def test_torchx_s_job_asks_for_what_the_command_says(volcano_job: dict[str, Any]) -> None:
    assert volcano_job["spec"]["maxRetry"] == 3
    for task in volcano_job["spec"]["tasks"]:
        pod = task["template"]["spec"]
        [container] = pod["containers"]
        assert container["resources"]["limits"] == {
            "cpu": "64000m",
            "memory": "500000M",
            "nvidia.com/gpu": "8",
        }
        assert (
            "train --config /mnt/my.yaml --run-dir /mnt/runs/a --resume data.root=/mnt/data"
            in container["command"][-1]
        )
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "emptyDir" not in volume
        }
        mounts = {
            mount["name"]: mount["mountPath"]
            for mount in container["volumeMounts"]
            if mount["name"] in claims
        }
        assert list(claims.values()) == ["mail"] and list(mounts.values()) == ["/mnt"]


def test_aws_batch_is_asked_for_what_the_command_says() -> None:
    definition = requested("aws_batch")["job_def"]
    assert (definition["nodeProperties"]["numNodes"], definition["retryStrategy"]["attempts"]) == (
        2,
        3,
    )
    [group] = definition["nodeProperties"]["nodeRangeProperties"]
    container = group["container"]
    needed = {need["type"]: need["value"] for need in container["resourceRequirements"]}
    assert needed == {"VCPU": "64", "MEMORY": "500000", "GPU": "8"}
    assert "--nnodes 2 --nproc_per_node 8" in container["command"][-1]
    assert (
        "train --config /mnt/my.yaml --run-dir /mnt/runs/a --resume data.root=s3://BUCKET/data"
        in container["command"][-1]
    )
