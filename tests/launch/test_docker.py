"""The image's Dockerfile is linted, installs the locks, and fits the manifests that name it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.hosts import ROOT

FOLDER = ROOT / "launch" / "docker"
DOCKERFILE = FOLDER / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Returns the Dockerfile's instructions in order, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def lint(path: Path) -> str:
    """Returns what hadolint finds in a Dockerfile."""
    hadolint = Path(sys.executable).parent / "hadolint"
    return subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True).stdout


def containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yields each container of the manifests that has our image, with its file's name and pod."""

    def pods(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict) and "containers" in value:
            yield value
        for child in value.values() if isinstance(value, dict) else ():
            yield from pods(child)

    for file in sorted((ROOT / "launch" / "kubernetes").glob("*.yaml")):
        for resource in yaml.safe_load_all(file.read_text()):
            for pod in pods(resource):
                yield from ((file.name, pod, container) for container in pod["containers"])


def test_the_linter_finds_nothing(tmp_path: Path) -> None:
    assert lint(DOCKERFILE) == ""
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /app && sudo apt-get install g++\n")
    assert {"DL3003", "DL3004", "DL3006"} <= set(re.findall(r"DL\d+", lint(bad)))


def test_what_is_copied_is_there_and_not_ignored() -> None:
    let_in = re.findall(r"^!(.+)$", (FOLDER / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    copied = [
        source
        for name, words in instructions()
        if name == "COPY" and "--from" not in words
        for source in words.split()[:-1]
    ]
    assert copied and {source.split("/")[0] for source in copied} == set(let_in)
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_the_manifests_fit_the_image() -> None:
    steps = instructions()
    [user] = [words for name, words in steps if name == "USER"]
    uid, gid = map(int, user.split(":"))
    assert any(name == "RUN" and f"--uid {uid} " in words for name, words in steps)
    assert ("ENV", "PATH=/app/.venv/bin:$PATH") in [(n, w.split()[0]) for n, w in steps]
    shown = re.findall(r"-t (mail-torchrec:\w+)", DOCKERFILE.read_text())
    found = list(containers())
    assert [file for file, _, _ in found] == ["nightly.yaml", "serve.yaml", "train.yaml"]
    for file, pod, container in found:
        assert container["image"] in shown, file
        security = pod.get("securityContext", {}) | container.get("securityContext", {})
        assert security["runAsNonRoot"] and security.get("fsGroup", gid) == gid, file
        [program] = container["command"]
        if program.startswith("/app/"):
            assert (ROOT / program.removeprefix("/app/")).exists(), file
        else:
            assert (Path(sys.executable).parent / program).exists(), file


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TORCH": "2.12"}, "TORCH should be 2.14, 2.13 or 2.11, received '2.12'"),
        ({"DEVICE": "gpu"}, "DEVICE should be cuda, cpu or unset, received 'gpu'"),
    ],
)
def test_the_installer_refuses_other_builds(variables: dict[str, str], message: str) -> None:
    done = subprocess.run(
        [ROOT / "launch" / "install.sh"], env=variables, capture_output=True, text=True
    )
    assert (done.returncode, message in done.stderr) == (1, True), done.stderr


def test_the_installer_keeps_what_was_chosen_for_an_environment(tmp_path: Path) -> None:
    script = tmp_path / "launch" / "install.sh"
    script.parent.mkdir()
    script.write_bytes((ROOT / "launch" / "install.sh").read_bytes())
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "chosen").write_text("TORCH=2.99\nDEVICE=\n")
    done = subprocess.run(["bash", script], env={}, capture_output=True, text=True)
    assert "received '2.99'" in done.stderr, done.stderr
    (tmp_path / ".venv" / "chosen").write_text("TORCH=\nDEVICE=tpu\n")
    (script.parent / "lock").mkdir()
    (script.parent / "lock" / "torch-2.13.txt").touch()
    done = subprocess.run(["bash", script], env={}, capture_output=True, text=True)
    assert "received 'tpu'" in done.stderr, done.stderr


def test_every_triple_is_locked_as_doctor_wants_it() -> None:
    names = sorted(path.name for path in (ROOT / "launch" / "lock").glob("torch-*.txt"))
    assert names == ["torch-2.11.txt", "torch-2.13.txt", "torch-2.14.txt"]
    for name in names:
        text = (ROOT / "launch" / "lock" / name).read_text()
        version = dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE))
        minor = int(version["torch"].split(".")[1])
        assert name == f"torch-2.{minor}.txt"
        for package in ("fbgemm-gpu", "fbgemm-gpu-cpu", "torchrec"):
            assert version[package].startswith(f"1.{minor - 5}."), (name, package)
