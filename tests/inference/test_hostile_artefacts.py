"""A hostile exported model scores as before or is refused, and nothing is written outside."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mail_torchrec.inference.artifact_files import GOLDEN, MANIFEST
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.triton.repository import RepositoryOptions, write_repository
from tests.support.hostile import add_file, mutate_file


def scores(folder: Path) -> Any:
    scorer = Scorer(folder, threads=1)
    scorer.check_golden()
    found = scorer.run(scorer.encode([request for request, _ in read_golden(folder)]))
    return scorer.manifest.version, np.concatenate(list(found.values()))


def scores_or_refusal(folder: Path) -> Any:
    """The version and its scores; None where it is refused, in one line."""
    try:
        return scores(folder)
    except (ValueError, OSError) as error:
        assert len(str(error).splitlines()) == 1, error
        return None


def in_copy(source: Path, tmp_path: Path, change: Callable[[Path], object]) -> Any:
    """Scores by a changed copy, whose tables are hard links where they may be."""
    folder = Path(shutil.copytree(source, tmp_path / "case"))
    (tmp_path / "outside").mkdir(exist_ok=True)
    change(folder)
    before = sorted(tmp_path.iterdir())
    found = scores_or_refusal(folder)
    assert sorted(tmp_path.iterdir()) == before
    shutil.rmtree(folder)
    return found


def many_harms(source: Path, tmp_path: Path, count: int) -> None:
    version, expected = scores(source)
    refused = 0
    for seed in range(count):
        random_ = random.Random(seed)

        def harm(folder: Path, random_: random.Random = random_) -> None:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            path = random_.choice([folder / MANIFEST, *files])
            if random_.random() < 0.1:
                add_file(path.parent, random_)
            else:
                mutate_file(path, tmp_path / "outside", random_)

        found = in_copy(source, tmp_path, harm)
        assert found is None or (found[0] == version and np.array_equal(found[1], expected)), seed
        refused += found is None
    assert refused > 0.5 * count


def many_manifests(source: Path, tmp_path: Path, count: int) -> None:
    """One value of the manifest changed: it is refused, or it says nothing about the scores."""
    version, expected = scores(source)
    for seed in range(count):
        random_ = random.Random(seed)
        found = in_copy(
            source, tmp_path, lambda folder, random_=random_: spoil_manifest(folder, random_)
        )
        assert found is None or (found[0] == version and np.array_equal(found[1], expected)), seed


def spoil_manifest(folder: Path, random_: random.Random) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node.keys() if isinstance(node, dict) else range(len(node))):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(content)
    node, key = random_.choice(places)
    if random_.random() < 0.3:
        del node[key]
    else:
        node[key] = random_.choice(["../x", "/etc/passwd", "", 0, -1, 2**70, None, [], {}, True])
    (folder / MANIFEST).write_text(json.dumps(content))


def test_a_changed_file_is_refused_or_not_needed(exported: Path, tmp_path: Path) -> None:
    many_harms(exported / "first", tmp_path, 60)


def test_a_changed_manifest_is_refused_or_says_the_same(exported: Path, tmp_path: Path) -> None:
    many_manifests(exported / "first", tmp_path, 60)


@pytest.mark.long
def test_a_thousand_hostile_artefacts(exported: Path, tmp_path: Path) -> None:
    many_harms(exported / "first", tmp_path, 500)
    many_manifests(exported / "first", tmp_path, 500)


OUTSIDE = ["../moved", "../../moved", "/tmp/moved", "tables/../../moved", ""]


def of_version(content: Any) -> Any:
    """The manifest with the version that its content has, as whoever changes it can write."""
    rest = {key: value for key, value in content.items() if key not in ("version", "created")}
    text = json.dumps(rest, sort_keys=True)
    return content | {"version": hashlib.sha256(text.encode()).hexdigest()[:12]}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_triton_writes_nothing_outside_of_its_folder(
    exported: Path, tmp_path: Path, name: str, backend: Any
) -> None:
    """A manifest that names a file outside made a module there, first on Triton's path."""
    folder = Path(shutil.copytree(exported / "first", tmp_path / "deep/case"))
    (folder.parent / "moved").write_text("code")
    content = json.loads((folder / MANIFEST).read_text())
    [table, *_] = content["tables"].values()
    for change in (
        lambda: content["files"].update({name: content["files"][GOLDEN]}),
        lambda: table["files"].update(weight=name),
        lambda: table.update(vocabulary=name),
    ):
        change()
        (folder / MANIFEST).write_text(json.dumps(of_version(content)))
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match="plain path inside its folder"):
            write_repository(RepositoryOptions(folder, tmp_path / "deep/out/ads", backend))
        assert sorted(tmp_path.rglob("*")) == before


def test_every_file_that_is_read_needs_its_line(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported / "first", tmp_path / "case"))
    whole = json.loads((folder / MANIFEST).read_text())
    for name in whole["files"]:
        files = {other: info for other, info in whole["files"].items() if other != name}
        (folder / MANIFEST).write_text(json.dumps(of_version(whole | {"files": files})))
        with pytest.raises(
            ValueError, match=f"files should have {name}|{name}' is not in manifest"
        ):
            Scorer(folder)
    (folder / MANIFEST).write_text(json.dumps(of_version(whole | {"files": {}})))
    with pytest.raises(
        ValueError, match=r"files should have dense\.bin, golden\.json, model\.onnx"
    ):
        Scorer(folder)


def test_a_version_s_name_is_bound_to_its_content(exported: Path, tmp_path: Path) -> None:
    """Other tables, hashed anew, under the name of a version that serves."""
    folder = Path(shutil.copytree(exported / "second", tmp_path / "case"))
    manifest = ArtifactManifest.read(folder)
    first = ArtifactManifest.read(exported / "first")
    taken = manifest.model_copy(update={"version": first.version})
    (folder / MANIFEST).write_text(taken.model_dump_json())
    with pytest.raises(ValueError, match=f"names version '{first.version}', and its content is"):
        Scorer(folder)
    assert first.version == first.content_version() != manifest.version
    later = first.model_copy(update={"created": "2999-01-01T00:00:00+00:00"})
    assert later.content_version() == first.version
    loose = {
        name: part.model_copy(update={"tolerance": 9.0}) for name, part in first.parity.items()
    }
    assert first.model_copy(update={"parity": loose}).content_version() != first.version


def test_an_added_vocabulary_is_named(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported / "first", tmp_path / "case", copy_function=os.link))
    (folder / "README.md").write_text("a note hurts nobody")
    Scorer(folder)
    (folder / "vocabularies/more.parquet").write_text("")
    with pytest.raises(ValueError, match=r"more.parquet' is not in manifest.json, and would be"):
        Scorer(folder)
