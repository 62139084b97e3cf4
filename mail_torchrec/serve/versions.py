"""Versions of a model side by side, loaded from and unloaded with the folders of a root folder.

The served versions are one immutable dictionary that is replaced as a whole, so a request keeps
the version that it began with.
"""

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from weakref import WeakSet

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
    changed_in_place,
    linked_version,
    version_folders,
)
from mail_torchrec.serve.version_loading import check_requests, load_version
from mail_torchrec.utils.logging import get_logger

LOG = get_logger("mail_torchrec.serve")
_CLOCK_SKEW = timedelta(minutes=5)
"""Difference of clocks between machines that is taken as normal."""


class ModelVersions:
    """Versions of a model: the root folder is one itself, or each folder in it with a manifest.

    The newest version (by the time in its manifest) serves, or the one that a link there names
    (:func:`linked_version`), beside it the traffic split's candidate. A new version is loaded in
    the calling thread, checked against its checksums and golden requests, and only then serves
    requests. One that is bad, or that takes other requests than the version that serves, is logged,
    counted and tried again when its files change; what its name stood for goes on serving. A
    version whose folder was deleted is unloaded, unless it is the last one or the traffic split's.
    The files of a loaded version must not be changed: its tables are mapped, not read. One whose
    files were written to is unloaded, unless it is the last one.

    Args:
        root: folder of the versions.
        metrics: counts loads.
        threads: number of ONNX Runtime's threads for a request; None leaves it to the runtime.
        split: traffic split between the serving version and a candidate.
        allow_schema_change: load versions that take other requests, too.
        copy_to: folder for private copies of the versions, to be mapped in their place.

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
        copy_to: Path | None = None,
    ) -> None:
        self.root, self.threads, self.split, self.metrics = root, threads, split, metrics
        self.allow_schema_change, self.copy_to = allow_schema_change, copy_to
        self._failed: set[Fingerprint] = set()
        self._reported: set[object] = set()
        self._alive = WeakSet[Scorer]()
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

    def in_use(self) -> set[str]:
        """Lists the versions in memory: loaded, or with requests that have not ended."""
        return {scorer.manifest.version for scorer in self._alive}

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
                self.metrics.loads.labels("refused").inc()
                return [str(error)]
            loaded = dict(self._served.by_name) if self._served else {}
            problems = self._load_new(folders, loaded)
            if self.copy_to is None:
                self._unload_changed(folders, loaded)
            self._unload_deleted(folders, loaded)
            if loaded:
                self._serve(folders, loaded)
                self._check_on_disk(folders, self.served)
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
            check_requests(self._served.serving.manifest, ArtifactManifest.read(folder.target))
        version = load_version(folder, self.threads, self.copy_to)
        self._alive.add(version.scorer)
        self.metrics.loads.labels("loaded").inc()
        LOG.info("version %s loaded from %s", version.manifest.version, folder.path)
        if version.created > datetime.now(UTC) + _CLOCK_SKEW:
            self.metrics.loads.labels("future").inc()
            LOG.error(
                "version %s was exported in the future (%s): it counts as newer than any export to "
                "come until then; correct the clock and export anew, or choose a version by a link",
                version.manifest.version,
                version.created.isoformat(),
            )
        return version

    def _unload_changed(
        self, folders: Sequence[VersionFolder], loaded: dict[str, LoadedVersion]
    ) -> None:
        """Unloads versions whose mapped files were written to, except the last one."""
        for folder in folders:
            name = folder.path.name
            version = loaded.get(name)
            files = changed_in_place(version.fingerprint, folder.fingerprint) if version else []
            if version is None or not files:
                continue
            others = [one for one in loaded.values() if one.fingerprint != version.fingerprint]
            self.report(
                "changed",
                (version.fingerprint, folder.fingerprint),
                f"files of version {version.manifest.version} were written to while it is served: "
                f"{', '.join(files[:3])}; it "
                + ("is unloaded" if others else "is the last one and goes on, damaged"),
            )
            if others:
                del loaded[name]

    def _check_on_disk(self, folders: Sequence[VersionFolder], served: ServedVersions) -> None:
        """Reports a serving version that is on disk no more, unless a bad one is in its place."""
        prints = {folder.fingerprint for folder in folders}
        version = served.serving.manifest.version
        on_disk = {
            one.manifest.version for one in served.by_name.values() if one.fingerprint in prints
        }
        if version not in on_disk and not self._failed:
            self.report(
                "gone",
                (version, frozenset(prints)),
                f"version {version} serves, and {self.root} has it no more",
            )

    def report(self, result: str, state: object, message: str) -> None:
        """Logs and counts an error once for a state of the folders."""
        if state not in self._reported:
            self._reported.add(state)
            self.metrics.loads.labels(result).inc()
            LOG.error("%s", message)

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
        linked = None if name is None else loaded.get(name)  # a bad one was never loaded
        if linked is not None and any(is_same_version(one, linked) for one in others):
            serving = linked
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
                check_requests(served.serving.manifest, one.manifest)
            except ValueError as error:
                if served.candidate is not None and is_same_version(one, served.candidate):
                    raise ValueError(f"--split: {error}") from error
                LOG.warning("version %s: %s", one.manifest.version, error)


def _goes_on(version: LoadedVersion | None) -> str:
    return f"; version {version.manifest.version} goes on serving" if version else ""
