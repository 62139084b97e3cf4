"""Prometheus gauges of drift, by version and by golden set."""

from collections.abc import Mapping
from contextlib import suppress

from prometheus_client import CollectorRegistry, Gauge

from mail_torchrec.drift.golden_behaviours import GOLDEN_SETS, DriftInfo, TwoSampleInfo

_PAIRS = ("old_virtual_old_real", "new_virtual_old_virtual")


class DriftGauges:
    """Gauges of the golden behaviours of each version, and of served users against them.

    Args:
        registry: of the server's metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        served, golden = ["version", "golden"], ["version", "pair"]
        self._served = _Trio("mail_drift", "Served new users' virtual behaviours", served, registry)
        self._golden = _Trio("mail_golden", "Golden behaviours at the export", golden, registry)
        self._served_users = Gauge(
            "mail_drift_users",
            "Served new users that mail_drift_auc and mail_drift_mmd rest on.",
            ["version"],
            registry=registry,
        )
        self._golden_users = Gauge(
            "mail_golden_users", "Users in a golden set.", served, registry=registry
        )

    def set_golden(self, version: str, info: DriftInfo) -> None:
        """Shows how the golden behaviours of a version compare."""
        pairs = info.virtual_and_real, info.new_and_old
        for name, found in zip(_PAIRS, pairs, strict=True):
            self._golden.set(version, name, found)
        sizes = info.new_users, info.old_users, info.old_users
        for name, size in zip(GOLDEN_SETS, sizes, strict=True):
            self._golden_users.labels(version, name).set(size)

    def set_served(self, version: str, found: Mapping[str, TwoSampleInfo]) -> None:
        """Shows how the users whom a version served compare with its golden sets."""
        for name, comparison in found.items():
            self._served.set(version, name, comparison)
            self._served_users.labels(version).set(comparison.rows[0])

    def remove(self, version: str) -> None:
        """Forgets a version that is unloaded."""
        for name in GOLDEN_SETS:
            self._served.remove(version, name)
            _remove(self._golden_users, version, name)
        for name in _PAIRS:
            self._golden.remove(version, name)
        _remove(self._served_users, version)


class _Trio:
    """Two-sample AUC, squared MMD and what chance makes of it."""

    def __init__(
        self, prefix: str, what: str, labels: list[str], registry: CollectorRegistry
    ) -> None:
        meanings = {
            "auc": "two-sample AUC; .5: not to be told apart.",
            "mmd": "squared MMD.",
            "mmd_noise": "squared MMD that chance exceeds in a twentieth of all cases.",
        }
        self._gauges = {
            name: Gauge(f"{prefix}_{name}", f"{what}: {meaning}", labels, registry=registry)
            for name, meaning in meanings.items()
        }

    def set(self, version: str, name: str, found: TwoSampleInfo) -> None:
        for part, gauge in self._gauges.items():
            gauge.labels(version, name).set(getattr(found, part))

    def remove(self, version: str, name: str) -> None:
        for gauge in self._gauges.values():
            _remove(gauge, version, name)


def _remove(gauge: Gauge, *labels: str) -> None:
    with suppress(KeyError):  # that was never set
        gauge.remove(*labels)
