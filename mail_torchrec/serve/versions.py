"""Versions of a model side by side, loaded from and unloaded with the folders of a root folder.

The served versions are one immutable dictionary that is replaced as a whole, so a request keeps
the version that it began with.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from mail_torchrec.inference.artifact_files import MANIFEST
from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.inference.traffic_split import TrafficSplit
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.serve.served_versions import (
    LoadedVersion,
    ServedVersions,
    distinct_versions,
    find_version,
    is_same_version,
)
from mail_torchrec.serve.version_folders import (
    Fingerprint,
    VersionFolder,
    linked_version,
    version_folders,
)
from mail_torchrec.utils.logging import get_logger

LOG = get_logger("mail_torchrec.serve")


class ModelVersions:
    """Versions of a model: the root folder is one itself, or each folder in it with a manifest.

    The newest version (by the time in its manifest) serves, or the one that a link there names
    (:func:`linked_version`), beside it the traffic split's candidate. A new version is loaded in
    the calling thread, checked against its checksums and golden requests, and only then serves
    requests. One that is bad, or that takes other requests than the version that serves, is logged,
    counted and tried again when its files change; what its name stood for goes on serving. A
    version whose folder was deleted is unloaded, unless it is the last one or the traffic split's.
    The files of a loaded version must not be changed: its tables are mapped, not read.

    Args:
        root: folder of the versions.
        metrics: counts loads.
        threads: number of ONNX Runtime's threads for a request; None leaves it to the runtime.
        split: traffic split between the serving version and a candidate.
        allow_schema_change: load versions that take other requests, too.

    Raises:
        ValueError: no good version in the folder, or the split's is none of them or takes other
            requests.
    """

    def __init__(
        self,
        root: Path,
        metrics: ServerMetrics,
        *,
        threads: int | None = None,
        split: TrafficSplit | None = None,
        allow_schema_change: bool = False,
    ) -> None:
        self.root, self.threads, self.split, self.metrics = root, threads, split, metrics
        self.allow_schema_change = allow_schema_change
        self._failed: set[Fingerprint] = set()
        self._served: ServedVersions | None = None
        self._refresh_lock = threading.Lock()
        problems = self.refresh()
        if self._served is None:
            raise ValueError(
                f"'{root}' should be what `mail-torchrec export` wrote, or hold such folders; "
                f"none is good: {problems or 'no ' + MANIFEST}"
            )
        if split is not None and self._served.candidate is None:
            raise ValueError(
                f"--split: version '{split.version}' should be one of {self._served.describe()}"
            )
        self._compare_at_start(self._served)

    @property
    def served(self) -> ServedVersions:
        """Versions that serve now; a request takes it once."""
        assert self._served is not None
        return self._served

    @property
    def all(self) -> list[Scorer]:
        """Every loaded version once, the newest last."""
        return self.served.all

    @property
    def serving(self) -> Scorer:
        """Version that serves whoever asks for none."""
        return self.served.serving.scorer

    def refresh(self) -> list[str]:
        """Scans the root folder once: loads new versions, unloads deleted ones.

        Returns:
            Problems of versions that were not tried before, or that have changed since.
        """
        with self._refresh_lock:
            try:
                folders = version_folders(self.root)
            except OSError as error:  # loaded versions go on serving, however long it lasts
                LOG.error("cannot look into %s: %s", self.root, error)
                return [str(error)]
            loaded = dict(self._served.by_name) if self._served else {}
            problems = self._load_new(folders, loaded)
            self._unload_deleted(folders, loaded)
            if loaded:
                self._serve(folders, loaded)
            return problems

    def choose(self, version: str, user: str | None) -> Scorer:
        """Chooses the version that serves a request.

        Args:
            version: version that the client asks for; empty for the one that serves the user.
            user: id of the request's user.

        Raises:
            InvalidRequestError: unknown version; or a traffic split, and no user.
        """
        served = self.served
        if version:
            if (found := served.find(version)) is None:
                raise InvalidRequestError(
                    f"version '{version}' should be one of {served.describe()}", 404
                )
            return found.scorer
        if self.split is None or served.candidate is None:
            return served.serving.scorer
        if user is None:
            raise InvalidRequestError(
                "users are split between versions, so a request should name its user: the group "
                "key in 'user', or a parameter 'user'"
            )
        is_assigned = self.split.is_assigned(user)
        return (served.candidate if is_assigned else served.serving).scorer

    def _load_new(
        self, folders: Sequence[VersionFolder], loaded: dict[str, LoadedVersion]
    ) -> list[str]:
        """Loads the folders that are new or changed; returns the problems."""
        problems = []
        known = {one.fingerprint: one for one in loaded.values()}
        for folder in folders:
            name = folder.path.name
            if folder.fingerprint in self._failed:
                continue
            try:
                if folder.fingerprint not in known:  # else it was linked or renamed
                    known[folder.fingerprint] = self._load(folder)
            except Exception as error:  # a bad version must not stop the others
                self._failed.add(folder.fingerprint)
                problems.append(f"{folder.path}: {error}")
                self.metrics.loads.labels("refused").inc()
                LOG.error("version refused: %s%s", problems[-1], _goes_on(loaded.get(name)))
            else:
                loaded[name] = known[folder.fingerprint]
        self._failed &= {folder.fingerprint for folder in folders}
        return problems

    def _load(self, folder: VersionFolder) -> LoadedVersion:
        if self._served is not None and not self.allow_schema_change:
            _check_requests(self._served.serving.manifest, ArtifactManifest.read(folder.target))
        scorer = Scorer(folder.target, threads=self.threads)
        scorer.check_golden()
        self.metrics.loads.labels("loaded").inc()
        LOG.info("version %s loaded from %s", scorer.manifest.version, folder.path)
        return LoadedVersion(folder.fingerprint, scorer)

    def _unload_deleted(
        self, folders: Sequence[VersionFolder], loaded: dict[str, LoadedVersion]
    ) -> None:
        """Forgets the names that are gone, except the last version's and the candidate's."""
        if self._served is None:
            return
        names = {folder.path.name for folder in folders}
        kept = [self._served.candidate]
        if not loaded.keys() & names:
            kept.append(self._served.serving)
        for name in loaded.keys() - names:
            if loaded[name] not in kept:
                version = loaded.pop(name).manifest.version
                LOG.info("version %s unloaded: %s was deleted", version, self.root / name)
        if self.split and self._served.candidate and self._candidate(loaded) is None:
            loaded[self.split.version] = self._served.candidate
            LOG.error("the split's version %s is on disk no more; it goes on", self.split.version)

    def _serve(self, folders: Sequence[VersionFolder], loaded: Mapping[str, LoadedVersion]) -> None:
        """Puts the loaded versions in the place of those that serve."""
        candidate, distinct = self._candidate(loaded), distinct_versions(loaded)
        others = [
            one for one in distinct if candidate is None or not is_same_version(one, candidate)
        ]
        serving = others[-1] if others else distinct[-1]
        name = linked_version(folders, self.split.version if self.split else None)
        if name is not None and any(is_same_version(one, loaded[name]) for one in others):
            serving = loaded[name]
        if self._served is None or not is_same_version(serving, self._served.serving):
            LOG.info("version %s serves", serving.manifest.version)
        self._served = ServedVersions(loaded, serving, candidate)
        self.metrics.serving.clear()
        for one in distinct:
            self.metrics.serving.labels(one.manifest.version).set(1)

    def _candidate(self, loaded: Mapping[str, LoadedVersion]) -> LoadedVersion | None:
        return None if self.split is None else find_version(loaded, self.split.version)

    def _compare_at_start(self, served: ServedVersions) -> None:
        """Warns of versions that take other requests than the serving one; refuses a candidate."""
        if self.allow_schema_change:
            return
        for one in distinct_versions(served.by_name):
            try:
                _check_requests(served.serving.manifest, one.manifest)
            except ValueError as error:
                if served.candidate is not None and is_same_version(one, served.candidate):
                    raise ValueError(f"--split: {error}") from error
                LOG.warning("version %s: %s", one.manifest.version, error)


def _goes_on(version: LoadedVersion | None) -> str:
    return f"; version {version.manifest.version} goes on serving" if version else ""


def _check_requests(serving: ArtifactManifest, manifest: ArtifactManifest) -> None:
    """Raises ValueError for a version that takes other requests than the serving one."""
    if changes := serving.changes_for_clients(manifest):
        raise ValueError(
            f"it takes other requests than version {serving.version}, which serves: "
            f"{'; '.join(changes)}; `serve --allow-schema-change` loads it all the same"
        )
