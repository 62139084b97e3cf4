"""Versions side by side: found in a folder, tried on their golden requests, taken in and given up while requests go on.

What is served is one immutable dictionary, replaced as a whole: a request keeps the version that it
began with.
"""

import logging
import threading
from pathlib import Path

from mail_torchrec.inference.errors import RefusedError
from mail_torchrec.inference.manifest import MANIFEST
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.inference.traffic_split import Split
from mail_torchrec.serve.prometheus import Metrics

LOG = logging.getLogger("mail_torchrec.serve")
Fingerprint = tuple[tuple[str, int, int], ...]


class Versions:
    """The versions in a folder: it is an exported model itself, or each folder in it that holds a manifest is one.

    The newest (by the time in its manifest) serves, beside it the split's. A new one is loaded in
    the calling thread, checked against its checksums and golden requests, and only then seen by
    requests; a bad one is logged, and tried again when its files change. The folder of a loaded one
    must not change: its tables are mapped, not read. One whose folder is gone is given up, unless
    it is the last.

    Args:
        root: the folder.
        threads: of ONNX Runtime for a request; None leaves it to the runtime.
        split: of users.
        metrics: counts loads.

    Raises:
        ValueError: no good version there, or the split's is none of them.
    """

    def __init__(
        self,
        root: Path,
        metrics: Metrics,
        *,
        threads: int | None = None,
        split: Split | None = None,
    ) -> None:
        self.root, self.threads, self.split, self.metrics = root, threads, split, metrics
        self._refused: dict[Path, Fingerprint] = {}
        self._by_folder: dict[Path, Scorer] = {}
        self._turn = threading.Lock()
        problems = self.refresh()
        if not self._by_folder:
            raise ValueError(
                f"'{root}' should be what `mail-torchrec export` wrote, or hold such folders; "
                f"none is good: {problems or 'no ' + MANIFEST}"
            )
        if split is not None and self._named(split.version) is None:
            raise ValueError(f"--split: version '{split.version}' should be one of {self._known()}")

    def refresh(self) -> list[str]:
        """Looks at the folder once; returns what is wrong with versions that were not tried before, or have changed since."""
        with self._turn:
            try:
                folders = self._folders()
            except OSError as error:  # for a moment, or for ever: what is loaded goes on
                LOG.error("cannot look into %s: %s", self.root, error)
                return [str(error)]
            loaded, problems = dict(self._by_folder), []
            for folder in folders:
                if folder in loaded or self._refused.get(folder) == (
                    fingerprint := _fingerprint(folder)
                ):
                    continue
                try:
                    loaded[folder] = self._good(folder)
                except Exception as error:  # whatever is wrong with it, the others go on
                    self._refused[folder] = fingerprint
                    problems.append(f"{folder}: {error}")
                    self.metrics.loads.labels("refused").inc()
                    LOG.error("version refused: %s", problems[-1])
                else:
                    self.metrics.loads.labels("loaded").inc()
                    LOG.info("version %s loaded from %s", loaded[folder].manifest.version, folder)
            for folder in self._by_folder.keys() - set(folders):
                if len(loaded) > 1 and not self._is_splits(loaded[folder]):
                    LOG.info(
                        "version %s given up: %s is gone",
                        loaded.pop(folder).manifest.version,
                        folder,
                    )
            self._by_folder = loaded
            self.metrics.serving.clear()
            for scorer in loaded.values():
                self.metrics.serving.labels(scorer.manifest.version).set(1)
            return problems

    @property
    def all(self) -> list[Scorer]:
        """Every version, the newest last."""
        return sorted(self._by_folder.values(), key=lambda scorer: scorer.manifest.created)

    def choose(self, version: str, user: str | None) -> Scorer:
        """The version that serves a request.

        Args:
            version: that the client asks for; empty: what serves this user.
            user: whose request it is.

        Raises:
            RefusedError: no such version; or a split, and no user.
        """
        if version:
            if (found := self._named(version)) is None:
                raise RefusedError(f"version '{version}' should be one of {self._known()}", 404)
            return found
        if self.split is None:
            return self.all[-1]
        if user is None:
            raise RefusedError(
                "users are split between versions, so a request should name its user: the group "
                "key in 'user', or a parameter 'user'"
            )
        second = self._named(self.split.version)
        assert second is not None  # never given up
        others = [scorer for scorer in self.all if scorer is not second]
        return second if self.split.takes(user) or not others else others[-1]

    def _folders(self) -> list[Path]:
        if (self.root / MANIFEST).exists():
            return [self.root]
        return [
            folder
            for folder in sorted(self.root.iterdir())
            if (folder / MANIFEST).exists() and not folder.name.startswith(".")
        ]

    def _good(self, folder: Path) -> Scorer:
        scorer = Scorer(folder, threads=self.threads)
        scorer.check_golden()
        return scorer

    def _named(self, name: str) -> Scorer | None:
        return next(
            (
                scorer
                for folder, scorer in self._by_folder.items()
                if name in (folder.name, scorer.manifest.version)
            ),
            None,
        )

    def _known(self) -> str:
        return ", ".join(f"{scorer.manifest.version} ({scorer.folder.name})" for scorer in self.all)

    def _is_splits(self, scorer: Scorer) -> bool:
        return self.split is not None and self.split.version in (
            scorer.folder.name,
            scorer.manifest.version,
        )


def _fingerprint(folder: Path) -> Fingerprint:
    """Of the files of a folder; it changes with each that is written."""
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            stat = path.stat()
        except FileNotFoundError:  # being replaced
            continue
        found.append((str(path), stat.st_size, stat.st_mtime_ns))
    return tuple(found)
