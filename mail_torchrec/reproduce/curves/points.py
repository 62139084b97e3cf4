"""Points of a curve: shares of hidden training users, or numbers of training rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mail_torchrec.config import Config, load_config
from mail_torchrec.reproduce.curves.sampled_rows import sample_training_rows

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares of the training users whose behaviours are hidden, by default."""
_TRAIN_SHARE = "data.cold_start.train_share"


class Axis(StrEnum):
    """Axis of a curve; the value is the name of its section."""

    SHARE = "curve"
    ROWS = "curve-rows"


@dataclass(frozen=True)
class CurvePoint:
    """Settings that all methods are trained with at one place of the curve."""

    name: str
    """As a part of paths."""
    title: str
    """On the axis and in sentences."""
    overrides: tuple[str, ...]


def share_points(shares: Sequence[float]) -> list[CurvePoint]:
    """Makes the points of several training shares, the smallest one first.

    Args:
        shares: from 0 to 1; none: :data:`SHARES`.
    """
    return [
        CurvePoint(f"share-{share:g}", f"{100 * share:g} %", (f"{_TRAIN_SHARE}={share!r}",))
        for share in sorted(set(shares or SHARES))
    ]


def rows_points(numbers: Sequence[int], config: Config, folder: Path) -> list[CurvePoint]:
    """Makes the points of several numbers of training rows, then that of all rows.

    Args:
        numbers: rows to train on, about; a sample of the users is kept with all their rows.
        config: whose training files are sampled.
        folder: gets the samples.

    Raises:
        ValueError: a number that leaves no user, or more rows than there are.
    """
    points = []
    for wanted in sorted(set(numbers)):
        sample, num_rows = sample_training_rows(config, wanted, folder / f"rows-{wanted}.data")
        train = f"data.train={json.dumps(str(sample.resolve()))}"
        points.append(CurvePoint(f"rows-{wanted}", f"{num_rows:,} rows", (train,)))
    return [*points, CurvePoint("rows-all", "all rows", ())]


def check_curve(axis: Axis, config_path: Path, overrides: tuple[str, ...]) -> Config:
    """Reads the configuration, and checks that the curve can measure what it says.

    Args:
        axis: of the curve.
        config_path: the user's configuration.
        overrides: of the command line.

    Raises:
        ValueError: no test user is hidden, hidden ones keep behaviours, or the share that is swept
            is overridden.
    """
    config = load_config(config_path, list(overrides))
    cold_start = config.data.cold_start
    if axis is Axis.SHARE and any(text.startswith(f"{_TRAIN_SHARE}=") for text in overrides):
        raise ValueError(
            f"the curve sweeps {_TRAIN_SHARE} itself; leave it out (--share chooses its values)"
        )
    if not cold_start.of_test.hide_share:
        raise ValueError(
            "the curve measures hidden users of the test data, and there are none; set "
            "data.cold_start.test_share, to 0.4 for example"
        )
    if cold_start.keep:
        raise ValueError(
            f"data.cold_start.keep={cold_start.keep} leaves hidden users some behaviours, in "
            "training too; leave it out"
        )
    return config
