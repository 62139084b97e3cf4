"""A manifest of another format is refused by every reader, with one line that names its format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.serve.versions import ModelVersions
from mail_torchrec.triton.repository import RepositoryOptions, write_repository
from mail_torchrec.vectors.embedder import Embedder

BEFORE = {"format": 1, "name": "old", "outputs": [{"name": "pctr", "shape": ["candidates"]}]}
READERS: dict[str, Callable[[Path], Any]] = {
    "manifest": ArtifactManifest.read,
    "scorer": Scorer,
    "serve": lambda folder: ModelVersions(folder, ServerMetrics()),
    "triton": lambda folder: write_repository(RepositoryOptions(folder, folder / "out", "python")),
    "vectors": Embedder,
}


def write_manifest(folder: Path, content: Any) -> Path:
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_an_artefact_of_another_format_is_refused_with_one_line(
    tmp_path: Path, reader: str
) -> None:
    with pytest.raises(ValueError) as caught:
        READERS[reader](write_manifest(tmp_path, BEFORE))
    message = str(caught.value)
    assert "manifest.json' should be of format 3, received format 1" in message
    assert "export the run anew" in message and len(message.splitlines()) == 1


@pytest.mark.parametrize("command", ["serve", "triton", "vectors"])
def test_the_commands_say_so_as_well(tmp_path: Path, command: str) -> None:
    out = [] if command == "serve" else ["--out", str(tmp_path / "out")]
    model = str(write_manifest(tmp_path, BEFORE))
    done = CliRunner().invoke(main, [command, "--model", model, *out])
    [line] = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert done.exit_code == 1 and "should be of format 3, received format 1" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "manifest.json' should be JSON"),
        ("[]", "should be of format 3, received format None"),
        ('{"name": "no format"}', "should be of format 3, received format None"),
        ('{"format": 3}', "is no manifest of format 3: name: Field required; export the run anew"),
    ],
)
def test_a_damaged_manifest_is_refused_with_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError) as caught:
        ArtifactManifest.read(tmp_path)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1
