"""Monitor of drift: samples served new users, and compares them with golden behaviours.

A request pays for a decision by chance and, where a user is sampled, for the copy of one more
output, which the graph computes anyway. All else is done by a thread of its own.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry

from mail_torchrec.drift.golden_behaviours import DriftInfo, GoldenBehaviours, behaviour_vectors
from mail_torchrec.inference.datatypes import Array
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.serve.drift.gauges import DriftGauges
from mail_torchrec.serve.drift.reservoir import Reservoir, Sampled
from mail_torchrec.serve.prometheus import cold_users
from mail_torchrec.serve.versions import ModelVersions
from mail_torchrec.utils.logging import get_logger

LOG = get_logger("mail_torchrec.serve.drift")
_LEAST = 50
"""Fewest users that are compared; with fewer a window goes on."""
_TICK = 5.0
"""Most seconds until a new version is sampled, and an unloaded one forgotten."""


@dataclass(frozen=True)
class SampledCall:
    """Users of a request whose virtual behaviours are wanted."""

    version: str
    rows: list[int]
    """Positions among the request's users."""
    sampled: Sampled
    outputs: tuple[str, ...]
    """Names of the outputs that hold them."""


@dataclass
class _Window:
    """Sample of the new users that a version has served since some time."""

    info: DriftInfo
    golden: GoldenBehaviours
    reservoir: Reservoir
    outputs: tuple[str, ...]
    started: float


class DriftMonitor:
    """Compares the new users of each version with its golden behaviours, window by window.

    Args:
        versions: loaded versions; those without golden behaviours are left out.
        registry: of the server's metrics.
        seconds: length of a window; it goes on until it has 50 users.
    """

    def __init__(
        self, versions: ModelVersions, registry: CollectorRegistry, seconds: float
    ) -> None:
        self.versions, self.seconds = versions, seconds
        self.gauges = DriftGauges(registry)
        self._windows: Mapping[str, _Window] = {}
        self._without_golden: set[str] = set()
        self._is_broken = False
        self._find_versions()

    @classmethod
    def of(
        cls, versions: ModelVersions, registry: CollectorRegistry, seconds: float | None
    ) -> Self | None:
        """Returns a monitor; None without a length of its windows."""
        return None if seconds is None else cls(versions, registry, seconds)

    def offer(self, inputs: Mapping[str, Array], manifest: ArtifactManifest) -> SampledCall | None:
        """Decides which users of a request to sample; None for nobody. It never raises.

        Args:
            inputs: checked arrays by input name, [users, ...] or [candidates, ...].
            manifest: manifest of the version that scores them.
        """
        if (window := self._windows.get(manifest.version)) is None:
            return None
        try:
            new = cold_users(inputs, manifest).nonzero()[0].tolist()
            if not new or (sampled := window.reservoir.offer(len(new))) is None:
                return None
            rows = [new[user] for user in sampled.users_S]
            return SampledCall(manifest.version, rows, sampled, window.outputs)
        except Exception:  # whatever is wrong here, the request goes on
            self._report("sampling failed")
            return None

    def keep(self, users: SampledCall, outputs: Mapping[str, Array]) -> None:
        """Keeps the virtual behaviours of sampled users. It never raises.

        Args:
            users: what :meth:`offer` returned.
            outputs: arrays by name, the wanted ones among them, [users, ...].
        """
        if (window := self._windows.get(users.version)) is None:
            return
        try:
            found = [outputs[name][users.rows] for name in users.outputs]
            window.reservoir.put(users.sampled, behaviour_vectors(found))
        except Exception:
            self._report("keeping a sample failed")

    def update(self) -> None:
        """Finds loaded and unloaded versions, and compares the samples of windows that are over."""
        self._find_versions()
        for version, window in self._windows.items():
            if time.monotonic() - window.started < self.seconds:
                continue
            least = min(_LEAST, window.reservoir.capacity)
            if (vectors_UD := window.reservoir.take(least)) is not None:
                window.started = time.monotonic()
                found = window.golden.compare_served(vectors_UD, window.info)
                self.gauges.set_served(version, found)

    def start(self, stop: threading.Event) -> None:
        """Updates again and again in a thread of its own, until an event stops it."""
        threading.Thread(target=self._run, args=(stop,), daemon=True).start()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(min(_TICK, self.seconds)):
            try:
                self.update()
            except Exception:  # requests go on, and so does the next window
                self._report("a comparison failed")

    def _find_versions(self) -> None:
        loaded = {scorer.manifest.version: scorer for scorer in self.versions.all}
        windows = {name: one for name, one in self._windows.items() if name in loaded}
        for version in self._windows.keys() - windows.keys():
            self.gauges.remove(version)
        self._without_golden &= loaded.keys()
        for version in loaded.keys() - windows.keys() - self._without_golden:
            if (window := _new_window(loaded[version])) is not None:
                windows[version] = window
                self.gauges.set_golden(version, window.info)
                continue
            self._without_golden.add(version)
            LOG.warning(
                "drift: version %s has no golden behaviours, so its users are compared with none; "
                "export it with --drift",
                version,
            )
        self._windows = windows  # replaced as a whole: requests read it meanwhile

    def _report(self, message: str) -> None:
        """Logs the first fault; more would fill the log."""
        if not self._is_broken:
            self._is_broken = True
            LOG.exception("drift: %s; requests go on", message)


def _new_window(scorer: Scorer) -> _Window | None:
    """Starts the window of a version; None for one without golden behaviours."""
    info, golden = scorer.manifest.drift, scorer.golden_behaviours
    if info is None or golden is None:
        return None
    outputs = scorer.manifest.outputs_of("virtual_behaviours")
    names = tuple(spec.name for spec in outputs)
    return _Window(info, golden, Reservoir(info.new_users, info.dim), names, time.monotonic())
