"""Loaded versions of a model at one moment, found by name and by version."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.serve.version_folders import Fingerprint


@dataclass(frozen=True)
class LoadedVersion:
    """Version in memory, and the state of its folder that it was loaded from."""

    fingerprint: Fingerprint
    scorer: Scorer

    @property
    def manifest(self) -> ArtifactManifest:
        """Manifest of the version."""
        return self.scorer.manifest

    @property
    def created(self) -> datetime:
        """Time of the export."""
        time = datetime.fromisoformat(self.manifest.created)
        return time if time.tzinfo else time.replace(tzinfo=UTC)

    @property
    def age_order(self) -> tuple[datetime, str]:
        """Sort key of versions, the newest last."""
        return self.created, self.manifest.version


@dataclass(frozen=True)
class ServedVersions:
    """Loaded versions at one moment; it is never changed."""

    by_name: Mapping[str, LoadedVersion]
    """Versions by the names of their folders; names of equal versions share or repeat one."""
    serving: LoadedVersion
    """Version that serves whoever asks for none."""
    candidate: LoadedVersion | None
    """The traffic split's candidate; None without a split."""

    @property
    def all(self) -> list[Scorer]:
        """Every version once, the newest last."""
        return [one.scorer for one in distinct_versions(self.by_name)]

    def find(self, name: str) -> LoadedVersion | None:
        """Finds a version by its folder's name or its version."""
        return find_version(self.by_name, name)

    def describe(self) -> str:
        """Lists the versions, each with the names of its folders."""
        return ", ".join(
            f"{one.manifest.version} ({', '.join(self._names(one))})"
            for one in distinct_versions(self.by_name)
        )

    def _names(self, version: LoadedVersion) -> list[str]:
        same = version.manifest.version
        return [name for name, one in self.by_name.items() if one.manifest.version == same]


def find_version(by_name: Mapping[str, LoadedVersion], name: str) -> LoadedVersion | None:
    """Finds a version by its folder's name or its version."""
    same = [one for one in by_name.values() if one.manifest.version == name]
    return by_name.get(name) or (same[0] if same else None)


def distinct_versions(by_name: Mapping[str, LoadedVersion]) -> list[LoadedVersion]:
    """Lists each version once, the newest last; of equal ones the newest export."""
    by_age = sorted(by_name.values(), key=lambda one: one.age_order)
    last = {one.manifest.version: one for one in by_age}
    return sorted(last.values(), key=lambda one: one.age_order)


def is_same_version(one: LoadedVersion, other: LoadedVersion) -> bool:
    """Tells if two versions are equal, from whatever folders."""
    return one.manifest.version == other.manifest.version
