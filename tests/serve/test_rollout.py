"""The version that serves is the one on disk, whatever happens to names; others are refused."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.traffic_split import TrafficSplit
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.serve.versions import LOG, ModelVersions
from tests.support.exported_models import version_in
from tools.served import publish, write_manifest

Step = Callable[[Path, Path], None]
"""Changes a root folder, given a folder with the exported versions `first` and `second`."""


def served(root: Path, **options: Any) -> ModelVersions:
    return ModelVersions(root, ServerMetrics(), threads=1, **options)


def count(versions: ModelVersions, result: str) -> float:
    labels = {"result": result}
    found = versions.metrics.registry.get_sample_value("mail_version_loads_total", labels)
    return found or 0.0


def link(root: Path, name: str, target: Path | str) -> None:
    """Switches a link as `ln -sfn` of a careful deployment does: by a rename."""
    (root / ".link").symlink_to(target)
    (root / ".link").rename(root / name)


def replace(root: Path, name: str, source: Path) -> None:
    """Puts a copy of a version in the place of a folder: `mv ads old; mv new ads`."""
    shutil.copytree(source, root / ".new")
    if (root / name).exists():
        (root / name).rename(root / ".old")
    (root / ".new").rename(root / name)
    shutil.rmtree(root / ".old", ignore_errors=True)


def as_config_map(root: Path, name: str, source: Path) -> None:
    """Puts a version there as Kubernetes mounts a ConfigMap: files link into `..data`."""
    folder = root / name
    stamp = folder / f"..{source.name}.{len(list(folder.glob('..*')))}"
    shutil.copytree(source, stamp)
    link(folder, "..data", stamp.name)
    for path in source.iterdir():
        if not (folder / path.name).is_symlink():
            (folder / path.name).symlink_to(f"..data/{path.name}")


PLACES: dict[str, Callable[[Path, Path], None]] = {
    "a link to a version elsewhere": lambda root, source: link(root, "ads", source),
    "git-sync": lambda root, source: link(
        root, "ads", shutil.copytree(source, root / f".worktrees/{source.name}", dirs_exist_ok=True)
    ),
    "a ConfigMap": lambda root, source: as_config_map(root, "ads", source),
    "a folder renamed onto the name": lambda root, source: replace(root, "ads", source),
}


@pytest.mark.parametrize("is_root", [False, True], ids=["a folder of versions", "the root itself"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_name_that_comes_to_mean_another_version_serves_it_and_back_again(
    exported: Path, tmp_path: Path, place: Step, is_root: bool
) -> None:
    place(tmp_path, exported / "first")
    versions = served(tmp_path / "ads" if is_root else tmp_path)
    before = versions.choose("", None)
    for name in ("second", "first"):  # forward, and a rollback to the older one
        place(tmp_path, exported / name)
        assert not versions.refresh()
        version = version_in(exported / name)
        assert versions.choose("", None).manifest.version == version
        assert versions.choose("ads", None).manifest.version == version
        assert [one.manifest.version for one in versions.all] == [version]
        loads = count(versions, "loaded")
        assert not versions.refresh() and count(versions, "loaded") == loads  # once
    assert before.manifest.version == version_in(exported / "first")
    before.check_golden()  # a request that has begun ends with the version it began with


def test_what_a_name_stood_for_goes_on_while_the_new_one_is_bad(
    exported: Path, tmp_path: Path
) -> None:
    publish(exported / "first", tmp_path / "ads")
    versions = served(tmp_path)
    replace(tmp_path, "ads", exported / "second")
    (tmp_path / "ads" / "dense.bin").write_bytes(b"half")
    [problem] = versions.refresh()
    assert "dense.bin' is not the file that was exported" in problem
    assert not versions.refresh() and count(versions, "refused") == 1
    assert versions.choose("ads", None).manifest.version == version_in(exported / "first")
    shutil.copy(exported / "second" / "dense.bin", tmp_path / "ads")
    assert not versions.refresh()
    assert versions.choose("ads", None).manifest.version == version_in(exported / "second")


def test_files_that_change_under_a_version_are_told_and_counted(
    exported: Path, tmp_path: Path
) -> None:
    publish(exported / "first", tmp_path / "ads")
    versions = served(tmp_path)
    (tmp_path / "ads" / "golden.json").write_text("[]")
    [problem] = versions.refresh()
    assert "golden.json' is not the file that was exported" in problem
    assert count(versions, "refused") == 1 and len(versions.all) == 1


def test_a_link_and_its_target_and_a_copy_are_one_version_that_every_name_finds(
    exported: Path, tmp_path: Path
) -> None:
    for name in ("v1", "copy"):
        publish(exported / "first", tmp_path / name)
    link(tmp_path, "current", "v1")
    versions, version = served(tmp_path), version_in(exported / "first")
    assert [one.manifest.version for one in versions.all] == [version]
    for name in ("v1", "copy", "current", version):
        assert versions.choose(name, None).manifest.version == version
    assert versions.choose("v1", None) is versions.choose("current", None)  # loaded once
    assert versions.served.describe() == f"{version} (copy, current, v1)"


def test_a_link_beside_the_versions_chooses_which_one_serves(
    exported: Path, tmp_path: Path
) -> None:
    first, second = version_in(exported / "first"), version_in(exported / "second")
    for name in ("first", "second"):
        publish(exported / name, tmp_path / name)
    versions = served(tmp_path)

    def serving() -> str:
        versions.refresh()
        return versions.choose("", None).manifest.version

    assert serving() == second  # the newest
    link(tmp_path, "live", "first")
    assert serving() == first and len(versions.all) == 2
    link(tmp_path, "previous", "second")
    assert serving() == second  # neither decides, so the newest
    link(tmp_path, "current", "first")
    assert serving() == first
    link(tmp_path, "current", "second")
    assert serving() == second
    assert count(versions, "loaded") == 2


def test_the_split_s_candidate_is_what_its_folder_holds(exported: Path, tmp_path: Path) -> None:
    publish(exported / "second", tmp_path / "main")
    publish(exported / "first", tmp_path / "candidate")
    first, second = version_in(exported / "first"), version_in(exported / "second")
    by_name = served(tmp_path, split=TrafficSplit("candidate", 1.0))
    by_version = served(tmp_path, split=TrafficSplit(first, 1.0))
    third = tmp_path.parent / f"{tmp_path.name}.third"
    shutil.copytree(exported / "first", third)
    write_manifest(third, created="2997-01-01T00:00:00+00:00", name="third")
    of_third = version_in(third)
    replace(tmp_path, "candidate", third)
    for versions in (by_name, by_version):
        versions.refresh()
        versions.refresh()
        assert not versions.metrics.loads.labels("refused")._value.get()
    assert by_name.choose("", "u").manifest.version == of_third
    assert by_version.choose("", "u").manifest.version == first  # as one that was deleted
    shutil.rmtree(tmp_path / "main")
    shutil.rmtree(tmp_path / "candidate")
    by_name.refresh()
    by_name.split = TrafficSplit("candidate", 0.0)
    assert by_name.choose("", "u").manifest.version == second  # the last one that served
    assert by_name.choose("candidate", None).manifest.version == of_third


def test_a_folder_that_cannot_be_read_stops_no_other(exported: Path, tmp_path: Path) -> None:
    publish(exported / "first", tmp_path / "a")
    versions = served(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nothing").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "manifest.json")
    publish(exported / "second", tmp_path / "c")
    [problem] = versions.refresh()
    assert "b/manifest.json' should be a regular file" in problem
    assert not versions.refresh() and len(versions.all) == 2


def other_requests(source: Path, target: Path, **changes: Any) -> Path:
    """Copies a version and changes its manifest's schema, value types or outputs."""
    shutil.copytree(source, target)
    text = json.loads((target / "manifest.json").read_text())
    for path, value in changes.items():
        *keys, last = path.split("__")
        place = text
        for key in keys:
            place = place[int(key) if key.isdigit() else key]
        if value is None:
            del place[int(last) if last.isdigit() else last]
        else:
            place[last] = value
    ArtifactManifest.model_validate_json(json.dumps(text)).write(target)
    write_manifest(target, created="2999-01-01T00:00:00+00:00")
    return target


def renamed(source: Path, target: Path) -> Path:
    """Copies a version that works, with a user column of another name."""
    golden = (source / "golden.json").read_text().replace('"age":', '"years":')
    types = ArtifactManifest.read(source).value_types
    types = {"years" if name == "age" else name: kind for name, kind in types.items()}
    other_requests(source, target, schema__columns__age__column="years", value_types=types)
    (target / "golden.json").write_text(golden)
    write_manifest(target)
    return target


COLUMN = {"group": "context", "kind": "numeric"}
TYPES = {
    "age": "integer",
    "city": "string",
    "income": "number",
    "history": "integer",
    "actions": "integer",
    "hour": "integer",
    "item": "integer",
    "tags": "integer",
    "user": "integer",
}
DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "an added column": (
        {"schema__columns__day": COLUMN, "value_types": TYPES | {"day": "number"}},
        "user column 'day': none here, number there",
    ),
    "a removed column": (
        {"schema__columns__hour": None},
        "user column 'hour': integer here, none there",
    ),
    "another type": (
        {"value_types__city": "integer"},
        "user column 'city': string here, integer there",
    ),
    "a list for a scalar": (
        {"schema__columns__tags": {"group": "item"}},
        "candidate column 'tags': list of integer here, integer there",
    ),
    "another side": (
        {"schema__columns__hour": {"group": "item"}},
        "candidate column 'hour': none here, integer there; user column 'hour': integer here, none",
    ),
    "another group key": (
        {"value_types__user": "string"},
        "user column 'user': integer here, string there",
    ),
    "values from 0": (
        {"schema__columns__income__transform": "log"},
        "user column 'income': number here, number of at least 0 there",
    ),
    "an output less": (
        {"outputs__0": None},
        "output 'pctr': ('candidates', (), 'float32') here, none there",
    ),
    "a wider output": ({"outputs__3__size": [6, 9]}, "here, ('users', (6, 9), 'float32') there"),
}


@pytest.mark.parametrize(("changes", "message"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_version_that_takes_other_requests_is_refused_and_counted(
    exported: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    publish(exported / "first", root / "ads")
    versions = served(root)
    replace(root, "ads", other_requests(exported / "second", tmp_path / "other", **changes))
    [problem] = versions.refresh()
    assert message in problem and "--allow-schema-change" in problem
    assert count(versions, "refused") == 1 and not versions.refresh()
    assert versions.choose("ads", None).manifest.version == version_in(exported / "first")


def test_other_vocabularies_and_list_lengths_are_no_other_requests(exported: Path) -> None:
    manifest = ArtifactManifest.read(exported / "first")
    text = json.loads((exported / "first" / "manifest.json").read_text())
    text["schema"]["columns"]["tags"]["max_length"] = 7
    text["inputs"][0]["high"] = 99
    text["outputs"].append(text["outputs"][0] | {"name": "more"})
    other = ArtifactManifest.model_validate_json(json.dumps(text))
    assert manifest.changes_for_clients(other) == []
    assert other.changes_for_clients(manifest) == [
        "output 'more': ('candidates', (), 'float32') here, none there"
    ]


def test_other_requests_are_taken_where_they_are_allowed_or_nothing_serves_yet(
    exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    publish(exported / "first", root / "a")
    allowed, strict = served(root, allow_schema_change=True), served(root)
    publish(renamed(exported / "first", tmp_path / "new"), root / "b")
    of_renamed = version_in(root / "b")
    assert not allowed.refresh() and "user column 'years': none here" in strict.refresh()[0]
    assert allowed.choose("", None).manifest.version == of_renamed
    assert strict.choose("", None).manifest.version == version_in(exported / "first")
    LOG.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        assert served(root).choose("", None).manifest.version == of_renamed
    LOG.removeHandler(caplog.handler)
    assert f"than version {of_renamed}, which serves: user column 'age'" in caplog.text
    for split in (TrafficSplit("a", 0.5), TrafficSplit("b", 0.5)):
        with pytest.raises(ValueError, match="--split: it takes other requests than version"):
            served(root, split=split)
        assert served(root, split=split, allow_schema_change=True)
