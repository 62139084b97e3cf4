"""Trackers by name, and by import path for trackers of one's own."""

from collections.abc import Sequence
from importlib import import_module

from mail_torchrec.trackers.mlflow import MlflowTracker
from mail_torchrec.trackers.settings import TrackerSettings
from mail_torchrec.trackers.tracker import Tracker

TRACKERS: dict[str, type[Tracker]] = {"mlflow": MlflowTracker}
"""Name -> class of the trackers that come with the project."""


def build_tracker(settings: TrackerSettings) -> Tracker:
    """Builds a tracker; nothing is sent yet.

    Raises:
        ValueError: the tracker is unknown or cannot be imported, or refuses its options.
    """
    return _tracker_class(settings.name)(settings.options)


def check_trackers(settings: Sequence[TrackerSettings]) -> None:
    """Checks the settings of trackers before anything long begins.

    Raises:
        ValueError: as :func:`build_tracker`, or two have one name.
    """
    names = [one.name for one in settings]
    if len(names) > len(set(names)):
        raise ValueError(f"trackers: each name should stand once, received {', '.join(names)}")
    for one in settings:
        build_tracker(one)


def _tracker_class(name: str) -> type[Tracker]:
    if name in TRACKERS:
        return TRACKERS[name]
    module_name, colon, class_name = name.partition(":")
    if not (colon and module_name and class_name):
        raise ValueError(
            f"unknown tracker '{name}'; known are {', '.join(TRACKERS)}, or name your own as "
            "package.module:ClassName"
        )
    try:
        found = getattr(import_module(module_name), class_name, None)
    except Exception as error:  # Importing runs a user's code, which may raise anything.
        raise ValueError(
            f"tracker '{name}': cannot import '{module_name}' ({type(error).__name__}: {error}); "
            "install it or add its folder to PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Tracker)):
        raise ValueError(
            f"tracker '{name}': '{class_name}' should be a class derived from "
            f"mail_torchrec.trackers.tracker.Tracker, received {found!r}"
        )
    return found
