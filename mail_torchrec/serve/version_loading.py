"""Loading of one version, from its folder or from a private copy."""

import shutil
import tempfile
from pathlib import Path

from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.serve.served_versions import LoadedVersion
from mail_torchrec.serve.version_folders import VersionFolder


def load_version(folder: VersionFolder, threads: int | None, copy_to: Path | None) -> LoadedVersion:
    """Loads a version and scores its golden requests.

    Args:
        folder: folder of the version.
        threads: number of ONNX Runtime's threads for a request; None leaves it to the runtime.
        copy_to: folder for a private copy, which is checked and mapped in its place, and deleted
            at once: a mapping outlives its file.

    Raises:
        ValueError: it is damaged, or has no time of export.
        OSError: it cannot be read or copied.
    """
    if copy_to is None:
        return _load(folder, folder.target, threads)
    with tempfile.TemporaryDirectory(dir=copy_to, prefix="serve-") as private:
        copy = shutil.copytree(folder.target, Path(private) / folder.path.name)
        return _load(folder, copy, threads)


def _load(folder: VersionFolder, path: Path, threads: int | None) -> LoadedVersion:
    scorer = Scorer(path, threads=threads)
    scorer.check_golden()
    version = LoadedVersion(folder.fingerprint, scorer)
    try:
        version.created  # noqa: B018
    except ValueError as error:
        raise ValueError(f"'created' should be a time in ISO 8601: {error}") from error
    return version


def check_requests(serving: ArtifactManifest, manifest: ArtifactManifest) -> None:
    """Raises ValueError for a version that takes other requests than the serving one."""
    if changes := serving.changes_for_clients(manifest):
        raise ValueError(
            f"it takes other requests than version {serving.version}, which serves: "
            f"{'; '.join(changes)}; `serve --allow-schema-change` loads it all the same"
        )
