"""Versions of a model side by side, loaded from and unloaded with the folders of a root folder.

The served versions are one immutable dictionary that is replaced as a whole, so a request keeps
the version that it began with.
"""

import threading
from collections.abc import Iterable
from pathlib import Path

from mail_torchrec.inference.artifact_files import MANIFEST
from mail_torchrec.inference.errors import InvalidRequestError
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.inference.traffic_split import TrafficSplit
from mail_torchrec.serve.prometheus import ServerMetrics
from mail_torchrec.utils.logging import get_logger

LOG = get_logger("mail_torchrec.serve")
Fingerprint = tuple[tuple[str, int, int], ...]
"""Path, size and modification time of every file of a folder."""


class ModelVersions:
    """Versions of a model: the root folder is one itself, or each folder in it with a manifest.

    The newest version (by the time in its manifest) serves, beside it the traffic split's
    candidate. A new version is loaded in the calling thread, checked against its checksums and
    golden requests, and only then serves requests. A bad one is logged and tried again when its
    files change. The folder of a loaded version must not change: its tables are mapped, not read.
    A version whose folder was deleted is unloaded, unless it is the last one or the traffic
    split's.

    Args:
        root: folder of the versions.
        metrics: counts loads.
        threads: number of ONNX Runtime's threads for a request; None leaves it to the runtime.
        split: traffic split between the newest version and a candidate.

    Raises:
        ValueError: no good version in the folder, or the split's is none of them.
    """

    def __init__(
        self,
        root: Path,
        metrics: ServerMetrics,
        *,
        threads: int | None = None,
        split: TrafficSplit | None = None,
    ) -> None:
        self.root, self.threads, self.split, self.metrics = root, threads, split, metrics
        self._failed: dict[Path, Fingerprint] = {}
        self._by_folder: dict[Path, Scorer] = {}
        self._refresh_lock = threading.Lock()
        problems = self.refresh()
        if not self._by_folder:
            raise ValueError(
                f"'{root}' should be what `mail-torchrec export` wrote, or hold such folders; "
                f"none is good: {problems or 'no ' + MANIFEST}"
            )
        if split is not None and self._find(split.version) is None:
            raise ValueError(f"--split: version '{split.version}' should be one of {self._known()}")

    def refresh(self) -> list[str]:
        """Scans the root folder once: loads new versions, unloads deleted ones.

        Returns:
            Problems of versions that were not tried before, or that have changed since.
        """
        with self._refresh_lock:
            try:
                folders = self._folders()
            except OSError as error:  # loaded versions go on serving, however long it lasts
                LOG.error("cannot look into %s: %s", self.root, error)
                return [str(error)]
            loaded = dict(self._by_folder)
            problems = self._load_new(folders, loaded)
            self._unload_deleted(folders, loaded)
            self._by_folder = loaded
            self.metrics.serving.clear()
            for scorer in loaded.values():
                self.metrics.serving.labels(scorer.manifest.version).set(1)
            return problems

    @property
    def all(self) -> list[Scorer]:
        """Every loaded version, the newest last."""
        return sorted(self._by_folder.values(), key=lambda scorer: scorer.manifest.created)

    def choose(self, version: str, user: str | None) -> Scorer:
        """Chooses the version that serves a request.

        Args:
            version: version that the client asks for; empty for the one that serves the user.
            user: id of the request's user.

        Raises:
            InvalidRequestError: unknown version; or a traffic split, and no user.
        """
        if version:
            if (found := self._find(version)) is None:
                raise InvalidRequestError(
                    f"version '{version}' should be one of {self._known()}", 404
                )
            return found
        if self.split is None:
            return self.all[-1]
        if user is None:
            raise InvalidRequestError(
                "users are split between versions, so a request should name its user: the group "
                "key in 'user', or a parameter 'user'"
            )
        candidate = self._find(self.split.version)
        assert candidate is not None  # never unloaded
        others = [scorer for scorer in self.all if scorer is not candidate]
        return candidate if self.split.is_assigned(user) or not others else others[-1]

    def _folders(self) -> list[Path]:
        if (self.root / MANIFEST).exists():
            return [self.root]
        return [
            folder
            for folder in sorted(self.root.iterdir())
            if (folder / MANIFEST).exists() and not folder.name.startswith(".")
        ]

    def _load_new(self, folders: Iterable[Path], loaded: dict[Path, Scorer]) -> list[str]:
        """Loads the folders that are new or changed since they failed; returns the problems."""
        problems = []
        for folder in folders:
            fingerprint = _fingerprint(folder) if folder not in loaded else None
            if fingerprint is None or self._failed.get(folder) == fingerprint:
                continue
            try:
                loaded[folder] = self._load(folder)
            except Exception as error:  # a bad version must not stop the others
                self._failed[folder] = fingerprint
                problems.append(f"{folder}: {error}")
                self.metrics.loads.labels("refused").inc()
                LOG.error("version refused: %s", problems[-1])
            else:
                self.metrics.loads.labels("loaded").inc()
                LOG.info("version %s loaded from %s", loaded[folder].manifest.version, folder)
        return problems

    def _unload_deleted(self, folders: Iterable[Path], loaded: dict[Path, Scorer]) -> None:
        for folder in self._by_folder.keys() - set(folders):
            if len(loaded) > 1 and not self._is_candidate(loaded[folder]):
                version = loaded.pop(folder).manifest.version
                LOG.info("version %s unloaded: %s was deleted", version, folder)

    def _load(self, folder: Path) -> Scorer:
        scorer = Scorer(folder, threads=self.threads)
        scorer.check_golden()
        return scorer

    def _find(self, name: str) -> Scorer | None:
        """Finds a version by its folder's name or its version."""
        for folder, scorer in self._by_folder.items():
            if name in (folder.name, scorer.manifest.version):
                return scorer
        return None

    def _known(self) -> str:
        return ", ".join(f"{scorer.manifest.version} ({scorer.folder.name})" for scorer in self.all)

    def _is_candidate(self, scorer: Scorer) -> bool:
        names = (scorer.folder.name, scorer.manifest.version)
        return self.split is not None and self.split.version in names


def _fingerprint(folder: Path) -> Fingerprint:
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            stat = path.stat()
        except FileNotFoundError:  # being replaced
            continue
        found.append((str(path), stat.st_size, stat.st_mtime_ns))
    return tuple(found)
